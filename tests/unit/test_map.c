// SPDX-License-Identifier: GPL-3.0-or-later
/* test_map.c - what was let through is touched after any crash, and nothing else for long. */
#include "ft/map.h"

#include "diskmirror/map_priv.h"
#include "tests/lib/forgetful.h"
#include "tests/test.h"

#include <pthread.h>

#define PATH "/d/vm1.disk0.map"
#define NR_REGIONS 70u                  /* more than a sector of words */
#define BYTES ((NR_REGIONS - 1) * (uint64_t)FT_REGION + 3 * FT_GRANULE + 512)
#define NR_GRANULES ((NR_REGIONS - 1) * FT_REGION_GRANULES + 4)

static const struct ft_map_image image = { BYTES, 7, 8 };
static const struct ft_disk_id first_id = { BYTES, 100, 0, 0 };

static uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
	return *s >> 11;
}

static struct ft_map *open_map(struct forgetful *fs)
{
	struct ft_map *m;

	CHECK_OK(ft_map_open(forgetful_files(fs), PATH, &image, &m));
	return m;
}

static void clean(struct ft_map *m)
{
	ft_map_copy_begins(m);
	for (uint64_t r = 0; r < NR_REGIONS; r++)
		ft_map_compared(m, r, 1);
	ft_map_durable(m, 1);
	CHECK_EQ(ft_map_count(m), 0);
}

/* A map on which nothing is touched, on disk. */
static struct forgetful *disk_with_a_map(unsigned slots)
{
	struct forgetful *fs = forgetful_new();
	struct ft_map *m;

	ft_map_tuning = (struct ft_map_tuning){ .slots = slots, .boot_id = "boot-1" };
	CHECK_OK(ft_map_create(forgetful_files(fs), PATH, &image, &first_id, &m));
	clean(m);
	CHECK_OK(ft_map_close(m));
	forgetful_power_on(fs, 0);
	return fs;
}

static bool is_touched(struct ft_map *m, uint64_t granule)
{
	return ft_map_word(m, granule / 64) >> granule % 64 & 1;
}

TEST(a_new_map_has_everything_touched_and_its_id)
{
	struct forgetful *fs = forgetful_new();
	struct ft_disk_id id;
	struct ft_map *m;

	CHECK_OK(ft_map_create(forgetful_files(fs), PATH, &image, &first_id, &m));
	CHECK_EQ(ft_map_count(m), NR_GRANULES);
	CHECK_EQ(ft_map_word(m, NR_REGIONS - 1), 15);
	ft_map_abandon(m);
	forgetful_power_on(fs, 3);
	m = open_map(fs);
	CHECK_EQ(ft_map_count(m), NR_GRANULES);
	ft_map_id(m, &id);
	CHECK(id.current == 100 && id.bytes == BYTES);
	ft_map_abandon(m);
	forgetful_free(fs);
}

TEST(what_is_touched_is_clean_when_the_peer_has_it_durable)
{
	struct forgetful *fs = disk_with_a_map(4);
	struct ft_map *m = open_map(fs);

	CHECK_EQ(ft_map_next(m, 0), NR_REGIONS);
	CHECK_OK(ft_map_touch(m, FT_REGION - 1, 2, 5));
	CHECK_OK(ft_map_touch(m, 9 * (uint64_t)FT_REGION, 1, 6));
	CHECK_EQ(ft_map_word(m, 0), 1ull << 63);
	CHECK_EQ(ft_map_word(m, 1), 1);
	CHECK_EQ(ft_map_next(m, 2), 9);
	ft_map_durable(m, 5);
	CHECK_EQ(ft_map_next(m, 0), 9);
	CHECK_EQ(ft_map_count(m), 1);
	ft_map_durable(m, 6);
	CHECK_EQ(ft_map_count(m), 0);
	CHECK_OK(ft_map_close(m));
	forgetful_free(fs);
}

TEST(what_nobody_confirms_stays_until_a_copy_has_compared_it)
{
	struct forgetful *fs = disk_with_a_map(4);
	struct ft_map *m = open_map(fs);

	CHECK_OK(ft_map_touch(m, 0, 1, 0));             /* not mirrored */
	CHECK_OK(ft_map_touch(m, 0, 1, 8));
	ft_map_add(m, 3, 1 << 5);                       /* the peer's */
	ft_map_add(m, NR_REGIONS - 1, UINT64_MAX);
	ft_map_add(m, NR_REGIONS, 1);
	CHECK_EQ(ft_map_word(m, NR_REGIONS - 1), 15);
	ft_map_durable(m, UINT64_MAX);
	CHECK_EQ(ft_map_count(m), 6);
	CHECK_OK(ft_map_touch(m, 64 * FT_GRANULE, 1, 2));
	ft_map_copy_begins(m);
	ft_map_compared(m, 0, 20);
	ft_map_durable(m, 19);
	CHECK_EQ(ft_map_count(m), 7);
	ft_map_durable(m, 30);
	CHECK_EQ(ft_map_next(m, 0), 1);                 /* 0 is clean, 1 and 3 were not compared */
	ft_map_compared(m, 1, 31);
	ft_map_compared(m, 3, 32);
	ft_map_compared(m, NR_REGIONS - 1, 33);
	CHECK_OK(ft_map_touch(m, 3 * (uint64_t)FT_REGION, 1, 40));
	CHECK_OK(ft_map_touch(m, 5 * (uint64_t)FT_REGION, 1, 35));      /* had nothing to compare */
	ft_map_durable(m, 39);
	CHECK_EQ(ft_map_next(m, 0), 3);
	CHECK_EQ(ft_map_next(m, 4), NR_REGIONS);
	CHECK_OK(ft_map_close(m));
	forgetful_free(fs);
}

TEST(closed_in_order_only_what_was_touched_is_touched)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);

	for (uint64_t r = 0; r < 10; r++)
		CHECK_OK(ft_map_touch(m, r * FT_REGION, 1, 5));
	CHECK_OK(ft_map_close(m));
	forgetful_power_on(fs, 1);
	m = open_map(fs);
	CHECK_EQ(ft_map_count(m), 10);
	ft_map_durable(m, 1000);                        /* another stream's */
	CHECK_EQ(ft_map_count(m), 10);
	ft_map_abandon(m);
	forgetful_free(fs);
}

TEST(a_crash_costs_no_more_than_the_hot_regions)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);

	for (uint64_t r = 0; r < 10; r++)
		CHECK_OK(ft_map_touch(m, r * FT_REGION, 1, 5));
	ft_map_abandon(m);
	forgetful_power_on(fs, 1);
	m = open_map(fs);
	CHECK_EQ(ft_map_count(m), 8 + 2 * 64);
	ft_map_abandon(m);
	forgetful_free(fs);
}

TEST(a_hot_region_needs_no_disk_and_a_cold_one_a_single_sync)
{
	struct forgetful *fs = disk_with_a_map(8);
	struct ft_map *m = open_map(fs);

	CHECK_OK(ft_map_touch(m, 0, 1, 1));
	CHECK_EQ(forgetful_steps(fs), 2);               /* write, sync */
	for (uint64_t g = 0; g < 64; g++)
		CHECK_OK(ft_map_touch(m, g * FT_GRANULE, FT_GRANULE, 2));
	CHECK_EQ(forgetful_steps(fs), 2);
	for (uint64_t r = 1; r < 8; r++)
		CHECK_OK(ft_map_touch(m, r * FT_REGION, 1, 3));
	CHECK_EQ(forgetful_steps(fs), 2 * 8);
	/* The log is full: all words are saved at once, and the next seven evictions cost nothing more. */
	for (uint64_t r = 8; r < 16; r++)
		CHECK_OK(ft_map_touch(m, r * FT_REGION, 1, 4));
	CHECK_EQ(forgetful_steps(fs), 2 * 16 + 2);
	CHECK_OK(ft_map_touch(m, 20 * (uint64_t)FT_REGION, 20 * FT_REGION, 5)); /* long: one sync */
	CHECK_EQ(forgetful_steps(fs), 2 * 16 + 2 + 2);
	CHECK_EQ(ft_map_count(m), 64 + 15 + 20 * 64);
	CHECK_OK(ft_map_close(m));
	forgetful_free(fs);
}

TEST(hot_touches_are_cheap)
{
	struct forgetful *fs = disk_with_a_map(64);
	struct ft_map *m = open_map(fs);
	uint64_t start, ns;

	for (uint64_t r = 0; r < 60; r++)
		CHECK_OK(ft_map_touch(m, r * FT_REGION, 1, 1));
	start = ft_now_ns();
	for (uint64_t i = 0; i < 1000000; i++)
		CHECK_OK(ft_map_touch(m, i * 7919 % (60ull * FT_REGION), 1, i + 1));
	ns = (ft_now_ns() - start) / 1000000;
	printf("# %llu ns a touch\n", (unsigned long long)ns);
	CHECK(ns < 5000);                               /* generous: sanitizers, a busy machine */
	ft_map_abandon(m);
	forgetful_free(fs);
}

/* --- power cuts --- */

struct life {
	struct forgetful *fs;
	struct ft_map *m;
	uint64_t seed, seq, durable;
	uint64_t must[NR_GRANULES];     /* seq of the last touch that was let through; 0: clean */
	uint64_t id, id_tried;
};

static void live_touch(struct life *l)
{
	uint64_t offset = rnd(&l->seed) % BYTES, max = rnd(&l->seed) % 8 ? 128 << 10 : 30ull << 20, len;

	len = 1 + rnd(&l->seed) % max;
	len = len < BYTES - offset ? len : BYTES - offset;
	if (ft_map_touch(l->m, offset, len, ++l->seq))
		return;
	for (uint64_t g = offset / FT_GRANULE; g <= (offset + len - 1) / FT_GRANULE; g++)
		l->must[g] = l->seq;
}

static void live_id(struct life *l)
{
	struct ft_disk_id id = { BYTES, 100 + rnd(&l->seed) % 1000, 0, 0 };

	id.base = id.current + 5;
	l->id_tried = id.current;
	if (!ft_map_set_id(l->m, &id))
		l->id = id.current;
}

static void live_confirm(struct life *l)
{
	l->durable += rnd(&l->seed) % (l->seq - l->durable + 1);
	ft_map_durable(l->m, l->durable);
	for (unsigned g = 0; g < NR_GRANULES; g++)
		if (l->must[g] <= l->durable)
			l->must[g] = 0;
}

static void live(struct life *l, int steps)
{
	while (steps-- && !forgetful_is_off(l->fs))
		switch (rnd(&l->seed) % 10) {
		case 0: live_id(l); break;
		case 1: case 2: live_confirm(l); break;
		default: live_touch(l); break;
		}
}

/* A life of touches, cut, and looked at. False: it ended before the cut. */
static bool cut_life(unsigned cut_at, uint64_t seed, unsigned slots, unsigned lies, unsigned *missed)
{
	struct forgetful *fs = disk_with_a_map(slots);
	struct life *l = calloc(1, sizeof(*l));
	struct ft_disk_id id;
	bool was_cut;

	*l = (struct life){ .fs = fs, .m = open_map(fs), .seed = seed * 77 + 1, .id = 100, .id_tried = 100 };
	forgetful_lie(fs, lies);
	forgetful_cut_at(fs, cut_at);
	live(l, 25);
	was_cut = forgetful_is_off(fs);
	ft_map_abandon(l->m);
	forgetful_power_on(fs, seed);
	l->m = open_map(fs);
	for (unsigned g = 0; g < NR_GRANULES; g++)
		*missed += l->must[g] && !is_touched(l->m, g);
	ft_map_id(l->m, &id);
	*missed += id.current != l->id && id.current != l->id_tried;
	*missed += id.base && id.base != id.current + 5;
	/* And it goes on from there. */
	CHECK_OK(ft_map_touch(l->m, 0, 1, 1));
	CHECK_OK(ft_map_close(l->m));
	forgetful_free(fs);
	free(l);
	return was_cut;
}

TEST(after_a_cut_at_any_step_all_that_was_let_through_is_touched)
{
	unsigned missed = 0, lives = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 24; seed++)
		for (unsigned cut_at = 1; cut_life(cut_at, seed, 3, 0, &missed); cut_at++)
			lives++;
	printf("# %u lives\n", lives);
	CHECK(lives > 500);
	CHECK_EQ(missed, 0);
}

TEST(a_disk_that_lies_about_sync_is_caught_by_the_same_cuts)
{
	unsigned missed = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 8 && !missed; seed++)
		for (unsigned cut_at = 1; cut_life(cut_at, seed, 3, FORGETFUL_SYNC, &missed) && !missed; cut_at++)
			;
	CHECK(missed > 0);
}

TEST(a_cut_while_a_map_is_made_or_closed_leaves_a_whole_one_or_none)
{
	int none = 0, whole = 0, closed = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 12; seed++)
		for (unsigned cut_at = 1; cut_at < 20; cut_at++) {
			struct forgetful *fs = forgetful_new();
			struct ft_map *m = NULL;
			int rc;

			ft_map_tuning = (struct ft_map_tuning){ .slots = 2 };
			forgetful_cut_at(fs, cut_at);
			rc = ft_map_create(forgetful_files(fs), PATH, &image, &first_id, &m);
			if (!rc) {
				clean(m);
				rc = ft_map_touch(m, 0, 1, 2) ? 1 : ft_map_close(m) ? 2 : 3;
				if (rc == 1)
					ft_map_abandon(m);
			}
			forgetful_power_on(fs, seed);
			if (ft_map_open(forgetful_files(fs), PATH, &image, &m)) {
				CHECK(rc < 0);
				none++;
			} else {
				CHECK(rc < 2 || is_touched(m, 0));
				CHECK(rc == 3 || ft_map_count(m) >= 1);
				CHECK(rc != 3 || ft_map_count(m) == 1);
				rc == 3 ? closed++ : whole++;
				ft_map_abandon(m);
			}
			forgetful_free(fs);
		}
	CHECK(none && whole && closed);
}

TEST(a_map_is_replaced_by_a_whole_new_one_or_stays)
{
	forgetful_quiet();
	for (uint64_t seed = 0; seed < 8; seed++)
		for (unsigned cut_at = 1; cut_at < 14; cut_at++) {
			struct forgetful *fs = disk_with_a_map(2);
			struct ft_disk_id id = { BYTES, 200, 0, 0 };
			struct ft_map *m = NULL;
			int rc;

			forgetful_cut_at(fs, cut_at);
			rc = ft_map_create(forgetful_files(fs), PATH, &image, &id, &m);
			ft_map_abandon(rc ? NULL : m);
			forgetful_power_on(fs, seed);
			m = open_map(fs);
			ft_map_id(m, &id);
			CHECK(id.current == 200 ? ft_map_count(m) == NR_GRANULES : rc && ft_map_count(m) == 0);
			ft_map_abandon(m);
			forgetful_free(fs);
		}
}

/* --- faults --- */

TEST(what_could_not_be_logged_is_not_let_through)
{
	forgetful_quiet();
	for (unsigned step = 1; step <= 12; step++)
		for (int err = 0; err < 2; err++) {
			struct forgetful *fs = disk_with_a_map(2);
			struct ft_map *m = open_map(fs);
			bool let[6];
			unsigned refused = 0;

			forgetful_fail_at(fs, step, err ? EIO : ENOSPC, false);
			for (uint64_t r = 0; r < 6; r++) {
				int rc = ft_map_touch(m, r * FT_REGION, 1, r + 1);

				CHECK(!rc || rc == (err ? -EIO : -ENOSPC));
				let[r] = !rc;
				refused += !!rc;
			}
			CHECK(refused == 1 || step > 2 * 6);
			/* What went wrong once is no longer in the way. */
			CHECK_OK(ft_map_touch(m, 6 * (uint64_t)FT_REGION, 1, 7));
			ft_map_abandon(m);
			forgetful_power_on(fs, step);
			m = open_map(fs);
			for (uint64_t r = 0; r < 6; r++)
				CHECK(!let[r] || is_touched(m, r * 64));
			CHECK(is_touched(m, 6 * 64));
			ft_map_abandon(m);
			forgetful_free(fs);
		}
}

/* Bits that were cleared, were about to be cleared on disk when that failed, and are set again: on disk or not? */
TEST(a_word_that_may_have_been_written_does_not_count_as_written)
{
	for (int keeps = 0; keeps < 2; keeps++) {
		struct forgetful *fs = disk_with_a_map(1);
		struct ft_map *m = open_map(fs);

		CHECK_OK(ft_map_touch(m, 0, 1, 5));
		CHECK_OK(ft_map_touch(m, FT_REGION, 1, 6));     /* saves the word of 0 */
		ft_map_durable(m, 5);
		forgetful_failed_sync_keeps(fs, keeps);
		forgetful_fail_at(fs, 2, EIO, false);
		CHECK_EQ(ft_map_touch(m, 2 * (uint64_t)FT_REGION, 1, 7), -EIO);
		ft_map_durable(m, 6);                           /* now nothing has to be saved */
		CHECK_OK(ft_map_touch(m, 0, 1, 8));
		CHECK_OK(ft_map_touch(m, 9 * (uint64_t)FT_REGION, 1, 9));
		ft_map_abandon(m);
		forgetful_power_on(fs, 1);
		m = open_map(fs);
		CHECK(is_touched(m, 0));
		ft_map_abandon(m);
		forgetful_free(fs);
	}
}

TEST(a_full_disk_refuses_the_id_and_says_so)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);
	struct ft_disk_id id = { BYTES, 200, 100, 0 };

	forgetful_fail_at(fs, 1, ENOSPC, true);
	CHECK_EQ(ft_map_set_id(m, &id), -ENOSPC);
	CHECK(ft_test_logged("/d/vm1.disk0.map: cannot write: No space left on device"));
	ft_map_id(m, &id);
	CHECK_EQ(id.current, 100);
	CHECK_EQ(ft_map_touch(m, 0, 1, 1), -ENOSPC);
	ft_map_abandon(m);
	forgetful_free(fs);
}

/* --- what is no map of ours --- */

static int open_other(struct forgetful *fs, struct ft_map_image im)
{
	struct ft_map *m;
	int rc = ft_map_open(forgetful_files(fs), PATH, &im, &m);

	if (!rc)
		ft_map_abandon(m);
	return rc;
}

TEST(a_map_of_another_image_is_refused)
{
	struct forgetful *fs = disk_with_a_map(2);

	CHECK_OK(open_other(fs, image));
	CHECK_OK(open_other(fs, (struct ft_map_image){ BYTES, 7, 0 }));
	CHECK_EQ(open_other(fs, (struct ft_map_image){ BYTES, 6, 8 }), -ESTALE);
	CHECK_EQ(open_other(fs, (struct ft_map_image){ BYTES, 7, 9 }), -ESTALE);
	CHECK_EQ(open_other(fs, (struct ft_map_image){ BYTES + 512, 7, 8 }), -ESTALE);
	CHECK(ft_test_logged("vm1.disk0.map: belongs to another image"));
	CHECK(ft_test_logged("remove it, and the whole disk is compared"));
	CHECK_OK(forgetful_files(fs)->unlink(forgetful_files(fs)->ctx, PATH));
	CHECK_EQ(open_other(fs, image), -ENOENT);
	forgetful_free(fs);
}

TEST(any_flipped_bit_is_found)
{
	struct forgetful *fs = disk_with_a_map(2);
	size_t len = forgetful_size(fs, PATH);
	uint8_t *bytes = malloc(len);

	forgetful_quiet();
	forgetful_read(fs, PATH, bytes, len, 0);
	for (size_t bit = 0; bit < len * 8; bit += 13) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		forgetful_put(fs, PATH, bytes, len);
		CHECK_EQ(open_other(fs, image), -EBADMSG);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	forgetful_put(fs, PATH, bytes, len);
	CHECK_OK(open_other(fs, image));
	for (size_t cut = 0; cut < len; cut += 511) {
		forgetful_put(fs, PATH, bytes, cut);
		CHECK(open_other(fs, image) < 0);
	}
	free(bytes);
	forgetful_free(fs);
}

TEST(one_process_at_a_time)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);

	CHECK_EQ(open_other(fs, image), -EBUSY);
	CHECK(ft_test_logged("another process uses this disk"));
	ft_map_abandon(m);
	CHECK_OK(open_other(fs, image));
	forgetful_free(fs);
}

/* --- flushes that were not honoured --- */

static struct ft_map *next_boot(struct forgetful *fs, struct ft_map *m, const char *boot)
{
	ft_map_abandon(m);
	ft_map_tuning.boot_id = boot;
	forgetful_power_on(fs, 5);
	return open_map(fs);
}

TEST(after_a_power_cut_of_an_unsafe_image_nothing_counts_as_known)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);

	CHECK_OK(ft_map_set_unsafe(m, true));
	m = next_boot(fs, m, "boot-1");                 /* only the process died */
	CHECK(!ft_map_unsafe(m));
	CHECK_EQ(ft_map_count(m), 0);
	m = next_boot(fs, m, "boot-2");
	CHECK(ft_map_unsafe(m));
	CHECK_EQ(ft_map_count(m), NR_GRANULES);
	CHECK_OK(ft_map_set_unsafe(m, true));           /* does not forget since when */
	m = next_boot(fs, m, "boot-2");
	CHECK(ft_map_unsafe(m));
	CHECK_OK(ft_map_set_unsafe(m, false));
	CHECK(!ft_map_unsafe(m));
	m = next_boot(fs, m, "boot-3");
	CHECK(!ft_map_unsafe(m));
	CHECK_EQ(ft_map_count(m), NR_GRANULES);
	ft_map_abandon(m);
	forgetful_free(fs);
}

TEST(touch_all_is_durable)
{
	struct forgetful *fs = disk_with_a_map(2);
	struct ft_map *m = open_map(fs);

	CHECK_OK(ft_map_touch_all(m));
	m = next_boot(fs, m, "boot-2");
	CHECK_EQ(ft_map_count(m), NR_GRANULES);
	ft_map_abandon(m);
	forgetful_free(fs);
}

/* --- threads --- */

static struct ft_map *shared;

static void *toucher(void *arg)
{
	uint64_t seed = (uint64_t)(uintptr_t)arg * 1000 + 1;

	for (int i = 0; i < 3000; i++) {
		uint64_t at = rnd(&seed) % (BYTES - 4096);

		CHECK_OK(ft_map_touch(shared, at, 4096, 10));
		CHECK(is_touched(shared, at / FT_GRANULE));
		if (i % 100 == 0)
			ft_map_durable(shared, 9);
	}
	return NULL;
}

TEST(many_threads_touch_at_once)
{
	struct forgetful *fs = disk_with_a_map(3);
	pthread_t t[4];

	shared = open_map(fs);
	for (uintptr_t i = 0; i < 4; i++)
		CHECK_OK(pthread_create(&t[i], NULL, toucher, (void *)i));
	for (int i = 0; i < 4; i++)
		CHECK_OK(pthread_join(t[i], NULL));
	CHECK_OK(ft_map_close(shared));
	forgetful_free(fs);
}

TEST(a_map_of_the_largest_disk_is_made_in_time)
{
	struct forgetful *fs = forgetful_new();
	struct ft_map_image im = { 1ull << 40, 0, 0 };
	struct ft_disk_id id = { 1ull << 40, 5, 0, 0 };
	struct ft_map *m;

	ft_map_tuning.slots = 1024;
	CHECK_OK(ft_map_create(forgetful_files(fs), PATH, &im, &id, &m));
	CHECK_EQ(ft_map_count(m), (1ull << 40) / FT_GRANULE);
	CHECK_OK(ft_map_close(m));
	CHECK_OK(ft_map_open(forgetful_files(fs), PATH, &im, &m));
	ft_map_abandon(m);
	forgetful_free(fs);
}
