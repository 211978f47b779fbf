// SPDX-License-Identifier: GPL-3.0-or-later
/* test_journal.c - what the segments hold is replayed in order, and nothing that was thrown away. */
#include "diskmirror/journal.h"

#include "tests/lib/forgetful.h"
#include "tests/test.h"

#define BOUND (400u << 10)              /* a segment is left at 100 KiB */
#define LEN (60u << 10)

static struct ft_journal_config config(struct forgetful *fs)
{
	return (struct ft_journal_config){ .files = forgetful_files(fs), .dir = "/s", .guest = "vm1", .durable = true, .bound = BOUND };
}

static void put(struct ft_journal *j, unsigned type, char what, size_t len)
{
	static uint8_t body[FT_JOURNAL_BODY_MAX];

	memset(body, what, len);
	CHECK_OK(ft_journal_append(j, type, body, len, NULL));
}

/* An epoch of two batches, durable. */
static void put_epoch(struct ft_journal *j, char what, uint64_t ordinal)
{
	ft_journal_begin(j);
	put(j, FT_JOURNAL_BATCH, what, LEN);
	put(j, FT_JOURNAL_BATCH, what, LEN);
	put(j, FT_JOURNAL_WHOLE, what, 16);
	CHECK_OK(ft_journal_sync(j));
	ft_journal_keep(j, ordinal);
}

struct seen {
	char whole[16], batches[32];
};

static int see(void *ctx, unsigned type, const uint8_t *body, size_t len)
{
	struct seen *s = ctx;
	char *to = type == FT_JOURNAL_WHOLE ? s->whole : s->batches;

	to[strlen(to)] = (char)body[0];
	return 0;
}

static struct seen replay(struct forgetful *fs)
{
	struct ft_journal_config cfg = config(fs);
	struct seen s = { { 0 }, { 0 } };
	uint64_t nr;

	CHECK_OK(ft_journal_replay(&cfg, see, &s, &nr));
	CHECK_EQ(nr, strlen(s.whole));
	return s;
}

static struct ft_journal *new_journal(struct forgetful *fs)
{
	struct ft_journal_config cfg = config(fs);
	struct ft_journal *j;

	CHECK_OK(ft_journal_new(&cfg, &j));
	return j;
}

TEST(epochs_come_back_in_order_whichever_segment_is_the_older)
{
	struct forgetful *fs = forgetful_new();
	struct ft_journal *j = new_journal(fs);

	CHECK_STR(replay(fs).whole, "");
	put_epoch(j, 'a', 1);                   /* in the first segment */
	put_epoch(j, 'b', 2);                   /* in the second one */
	CHECK_STR(replay(fs).whole, "ab");
	CHECK_OK(ft_journal_reset(j, 1));
	CHECK_STR(replay(fs).whole, "b");
	put_epoch(j, 'c', 3);                   /* in the first one again */
	ft_journal_free(j);
	forgetful_power_on(fs, 1);
	CHECK_STR(replay(fs).whole, "bc");
	CHECK_STR(replay(fs).batches, "bbcc");
	forgetful_free(fs);
}

TEST(a_cut_while_segments_are_removed_never_leaves_only_the_older_one)
{
	unsigned seen[3] = { 0 };

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 16; seed++)
		for (unsigned cut_at = 1; cut_at <= 5; cut_at++) {
			struct forgetful *fs = forgetful_new();
			struct ft_journal_config cfg = config(fs);
			struct ft_journal *j = new_journal(fs);
			struct seen s;
			int rc;

			put_epoch(j, 'a', 1);
			put_epoch(j, 'b', 2);
			CHECK_OK(ft_journal_reset(j, 1));
			put_epoch(j, 'c', 3);
			ft_journal_free(j);
			forgetful_cut_at(fs, cut_at);
			rc = ft_journal_remove(&cfg);
			forgetful_power_on(fs, seed);
			s = replay(fs);
			CHECK(rc || !s.whole[0]);
			CHECK(!strcmp(s.whole, "bc") || !strcmp(s.whole, "c") || !s.whole[0]);
			seen[strlen(s.whole)]++;
			forgetful_free(fs);
		}
	CHECK(seen[0] && seen[1] && seen[2]);
}

TEST(what_was_thrown_away_does_not_end_another_epoch)
{
	struct forgetful *fs = forgetful_new();
	struct ft_journal *j = new_journal(fs);

	ft_journal_begin(j);
	put(j, FT_JOURNAL_BATCH, 'a', 1000);
	put(j, FT_JOURNAL_WHOLE, 'a', 16);
	ft_journal_keep(j, 1);
	ft_journal_begin(j);
	put(j, FT_JOURNAL_BATCH, 'x', 1000);
	put(j, FT_JOURNAL_WHOLE, 'x', 16);
	put(j, FT_JOURNAL_BATCH, 'x', 1000);
	ft_journal_discard(j);                  /* its sync had failed */
	ft_journal_begin(j);
	put(j, FT_JOURNAL_BATCH, 'b', 1000);    /* as long as the other one's */
	CHECK_OK(ft_journal_sync(j));
	ft_journal_free(j);
	forgetful_power_on(fs, 1);
	CHECK_STR(replay(fs).whole, "a");
	CHECK_STR(replay(fs).batches, "a");
	forgetful_free(fs);
}

TEST(a_segment_that_could_not_be_emptied_is_not_written_to)
{
	for (unsigned step = 1; step <= 3; step++) {
		struct forgetful *fs = forgetful_new();
		struct ft_journal *j = new_journal(fs);

		forgetful_failed_sync_keeps(fs, true);
		ft_journal_begin(j);
		put(j, FT_JOURNAL_BATCH, 'a', 1000);
		put(j, FT_JOURNAL_WHOLE, 'a', 16);
		CHECK_OK(ft_journal_sync(j));
		ft_journal_keep(j, 1);
		forgetful_fail_at(fs, step, EIO, false);
		CHECK_EQ(ft_journal_reset(j, 1), -EIO);
		CHECK(ft_test_logged("vm1.journal: cannot empty it"));
		put_epoch(j, 'b', 2);
		ft_journal_free(j);
		forgetful_power_on(fs, step);
		CHECK(strchr(replay(fs).whole, 'b') != NULL);
		forgetful_free(fs);
	}
}
