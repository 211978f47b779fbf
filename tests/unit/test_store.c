// SPDX-License-Identifier: GPL-3.0-or-later
/* test_store.c - the replica's disks are whole epochs, whatever fails and whenever the power does. */
#include "ft/store.h"

#include "diskmirror/map_priv.h"
#include "diskmirror/store_priv.h"
#include "ft/image.h"
#include "ft/map.h"
#include "tests/lib/forgetful.h"
#include "tests/test.h"

#include <poll.h>

#define NR_DISKS 2u
#define BYTES (4 * FT_GRANULE + 512)
#define EPOCHS 12
#define FULL FT_EPOCH_FULL
#define DIRECT (FT_EPOCH_FULL | FT_EPOCH_DIRECT)

static const char *const images[] = { "/d/a.img", "/d/b.img" };

struct world {
	struct forgetful *fs;
	struct ft_store_config cfg;
	struct ft_store *st;
	struct ft_disk_id peer[NR_DISKS];
	uint64_t seed, seq[NR_DISKS];
	uint8_t now[NR_DISKS][BYTES];                   /* the primary's disks */
	uint8_t at[EPOCHS + 2][NR_DISKS][BYTES];        /* at the end of each epoch; 0: before */
	uint64_t sent, whole, committed;                /* epochs */
};

static uint64_t rnd(struct world *w)
{
	w->seed ^= w->seed << 13, w->seed ^= w->seed >> 7, w->seed ^= w->seed << 17;
	return w->seed >> 11;
}

static struct world *world_new(enum ft_durability durability)
{
	struct world *w = calloc(1, sizeof(*w));

	ft_store_tuning.sync_ms = 0;
	ft_map_tuning.slots = 4;
	w->fs = forgetful_new();
	w->seed = 4711;
	w->cfg = (struct ft_store_config){
		.guest = "vm1", .nr_disks = NR_DISKS, .state_dir = "/s", .memory_bound = 1 << 20, .journal_bound = 8 << 20,
		.durability = durability, .files = forgetful_files(w->fs),
	};
	for (unsigned i = 0; i < NR_DISKS; i++) {
		w->cfg.disk[i].image = images[i];
		w->cfg.disk[i].bytes = BYTES;
		w->peer[i] = (struct ft_disk_id){ BYTES, 500 + i, 0, 0 };
	}
	return w;
}

static void world_free(struct world *w)
{
	ft_store_free(w->st);
	forgetful_free(w->fs);
	free(w);
}

static int meet(struct world *w)
{
	char why[256];

	return ft_store_peer(w->st, w->peer, NR_DISKS, why, sizeof(why));
}

static struct world *world_open(enum ft_durability durability)
{
	struct world *w = world_new(durability);

	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	return w;
}

/* One op in a batch of its own. */
static int send_op(struct world *w, unsigned disk, struct ft_disk_op op, const uint8_t *data)
{
	static uint8_t raw[FT_DISK_BATCH_MAX], body[FT_DISK_BODY_MAX];
	size_t len = op.op == FT_DISK_WRITE ? op.len : 0;

	ft_disk_pack_op(&op, raw);
	if (len)
		memcpy(raw + FT_DISK_OP_LEN, data, len);
	return ft_store_batch(w->st, body, ft_disk_pack_batch(disk, raw, FT_DISK_OP_LEN + len, 1, body));
}

static int random_op(struct world *w)
{
	unsigned disk = rnd(w) % NR_DISKS;
	struct ft_disk_op op = { ++w->seq[disk], rnd(w) % BYTES, 0, FT_DISK_WRITE };
	uint32_t max = rnd(w) % 4 ? 3000 : 70000;
	static uint8_t data[70008];

	op.len = 1 + (uint32_t)(rnd(w) % max);
	op.len = op.len < BYTES - op.offset ? op.len : (uint32_t)(BYTES - op.offset);
	if (rnd(w) % 5 == 0)
		op.op = FT_DISK_ZERO;
	for (uint32_t i = 0; i < op.len; i += 8) {
		uint64_t v = op.op == FT_DISK_ZERO ? 0 : rnd(w) * 0x9e3779b97f4a7c15ull;

		memcpy(data + i, &v, 8);
	}
	memcpy(w->now[disk] + op.offset, data, op.len);
	return send_op(w, disk, op, data);
}

static int send_epoch(struct world *w, uint32_t flags)
{
	int rc = ft_store_begin(w->st, w->sent + 1, flags);

	for (int i = 0; i < 4 && !rc; i++)
		rc = random_op(w);
	w->sent++;
	memcpy(w->at[w->sent], w->now, sizeof(w->now));
	if (!rc)
		rc = ft_store_whole(w->st);
	if (!rc)
		w->whole = w->sent;
	return rc;
}

static int commit(struct world *w)
{
	int rc = ft_store_commit(w->st);

	if (!rc)
		w->committed = w->whole;
	return rc;
}

static bool images_are(struct world *w, uint64_t epoch)
{
	static uint8_t back[BYTES];
	bool same = true;

	for (unsigned i = 0; i < NR_DISKS; i++) {
		forgetful_read(w->fs, images[i], back, BYTES, 0);
		same &= !memcmp(back, w->at[epoch][i], BYTES);
	}
	return same;
}

static struct ft_disk_id id_of(struct world *w, unsigned disk)
{
	struct ft_disk_id id;

	ft_store_id(w->st, disk, &id);
	return id;
}

static uint32_t flags_of(struct world *w)
{
	CHECK_EQ(id_of(w, 0).flags, id_of(w, 1).flags);
	return id_of(w, 0).flags;
}

/* --- in order --- */

TEST(an_epoch_reaches_the_images_when_it_is_committed_and_not_before)
{
	for (int d = 0; d < 2; d++) {
		struct world *w = world_open(d ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY);

		CHECK_OK(send_epoch(w, FULL));
		CHECK(images_are(w, 0));
		CHECK_OK(commit(w));
		CHECK(images_are(w, 1));
		CHECK_OK(send_epoch(w, 0));
		CHECK_OK(send_epoch(w, 0));
		CHECK(images_are(w, 1));
		CHECK_OK(commit(w));
		CHECK(images_are(w, 3));
		CHECK_OK(ft_store_begin(w->st, 4, 0));
		CHECK_OK(random_op(w));
		CHECK_OK(commit(w));
		CHECK(images_are(w, 3));
		CHECK_OK(ft_store_release(w->st));
		CHECK(images_are(w, 3));
		CHECK(!forgetful_exists(w->fs, "/s/vm1.journal0") && !forgetful_exists(w->fs, "/s/vm1.journal1"));
		world_free(w);
	}
}

TEST(what_does_not_fit_in_memory_goes_to_the_journal_and_comes_back)
{
	for (int d = 0; d < 2; d++)
		for (size_t bound = 0; bound < 100000; bound = bound * 2 + 1000) {
			struct world *w = world_new(d ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY);
			struct ft_store_status s;

			w->cfg.memory_bound = bound;
			CHECK_OK(ft_store_open(&w->cfg, &w->st));
			CHECK_OK(meet(w));
			for (int e = 1; e <= EPOCHS; e++) {
				CHECK_OK(send_epoch(w, e == 1 ? FULL : 0));
				ft_store_get_status(w->st, &s);
				CHECK(s.staged_bytes <= bound);
				CHECK(bound || s.journal_bytes > 0);
				if (e % 3 == 0) {
					CHECK_OK(commit(w));
					CHECK(images_are(w, w->sent));
					CHECK_OK(ft_store_sync(w->st));
					ft_store_get_status(w->st, &s);
					CHECK_EQ(s.journal_bytes, 0);
					CHECK_EQ(s.staged_bytes, 0);
				}
			}
			world_free(w);
		}
}

/* Whoever has a loop to run does not stand still for a copy, and what else comes meanwhile makes it no longer. */
TEST(a_copy_is_applied_in_turns_and_other_epochs_as_they_come)
{
	for (size_t bound = 0; bound <= 1 << 20; bound += 1 << 20) {     /* in the journal; in memory */
		struct world *w = world_new(FT_DURABILITY_MEMORY);
		struct pollfd p;
		unsigned turns = 0;
		uint64_t seq;

		w->cfg.memory_bound = bound;
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		CHECK_OK(meet(w));
		ft_store_tuning.slice = 1;
		p = (struct pollfd){ .fd = ft_store_event_fd(w->st), .events = POLLIN };
		CHECK_OK(send_epoch(w, FULL));                          /* four ops */
		for (int rc = -EAGAIN; rc; turns++) {
			ft_store_durable(w->st, 0, &seq);               /* takes the event */
			rc = ft_store_advance(w->st);
			CHECK(!rc || rc == -EAGAIN);
			CHECK_EQ(ft_store_behind(w->st), rc != 0);
			CHECK_EQ(poll(&p, 1, 0), rc != 0);
			if (turns < 2)
				CHECK_OK(send_epoch(w, 0));
		}
		CHECK(turns >= 2 && turns <= 4);
		CHECK(images_are(w, w->sent));

		CHECK_OK(send_epoch(w, 0));                             /* without a copy there is nothing to put off */
		CHECK_OK(ft_store_advance(w->st));
		CHECK(images_are(w, w->sent));

		CHECK_OK(send_epoch(w, FULL));
		CHECK_EQ(ft_store_advance(w->st), -EAGAIN);
		CHECK_OK(commit(w));                                    /* a takeover wants all of it */
		CHECK(images_are(w, w->sent));
		world_free(w);
	}
}

TEST(while_held_nothing_is_applied)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	ft_store_hold(w->st, true);
	CHECK_OK(send_epoch(w, 0));
	CHECK_OK(ft_store_commit(w->st));
	CHECK(images_are(w, 1));
	CHECK_EQ(ft_store_release(w->st), -EBUSY);
	ft_store_hold(w->st, false);
	CHECK_OK(commit(w));
	CHECK(images_are(w, 2));
	world_free(w);
}

TEST(a_partial_epoch_leaves_nothing_and_its_ops_may_come_again)
{
	struct world *w = world_open(FT_DURABILITY_JOURNAL);
	uint64_t seq[NR_DISKS];

	CHECK_OK(send_epoch(w, FULL));
	memcpy(seq, w->seq, sizeof(seq));
	CHECK_OK(ft_store_begin(w->st, 2, 0));
	for (int i = 0; i < 5; i++)
		CHECK_OK(random_op(w));
	ft_store_discard_partial(w->st);
	CHECK_EQ(ft_store_whole(w->st), -EPROTO);
	CHECK_OK(commit(w));
	CHECK(images_are(w, 1));
	memcpy(w->seq, seq, sizeof(seq));
	memcpy(w->now, w->at[1], sizeof(w->now));
	CHECK_OK(send_epoch(w, 0));
	CHECK_OK(commit(w));
	CHECK(images_are(w, 2));
	world_free(w);
}

/* --- bytes that make no sense --- */

TEST(an_epoch_with_a_senseless_op_is_thrown_away_whole)
{
	static const struct { unsigned disk; struct ft_disk_op op; } bad[] = {
		{ 0, { 0, 0, 4, FT_DISK_WRITE } }, { 0, { 1, 0, 4, FT_DISK_WRITE } },           /* seq not growing */
		{ NR_DISKS, { 90, 0, 4, FT_DISK_WRITE } }, { 7, { 90, 0, 4, FT_DISK_ZERO } },   /* no such disk */
		{ 0, { 90, BYTES, 1, FT_DISK_WRITE } }, { 0, { 90, BYTES - 3, 4, FT_DISK_ZERO } }, { 0, { 90, 0, 4, 9 } },
		{ 0, { 90, 512, 0, FT_DISK_MARK } }, { 0, { 90, 0, 0, FT_DISK_ZERO } },
	};
	struct world *w = world_open(FT_DURABILITY_MEMORY);

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK_OK(ft_store_begin(w->st, 1, FULL));
		CHECK_OK(send_op(w, 0, (struct ft_disk_op){ 1, 0, 4, FT_DISK_WRITE }, (const uint8_t *)"good"));
		CHECK_EQ(send_op(w, bad[i].disk, bad[i].op, (const uint8_t *)"evil"), -EPROTO);
		CHECK_EQ(ft_store_whole(w->st), -EPROTO);
	}
	CHECK_OK(commit(w));
	CHECK(images_are(w, 0));
	world_free(w);
}

TEST(order_of_records_matters)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	uint8_t junk[64] = { 0 };

	CHECK_EQ(ft_store_batch(w->st, junk, sizeof(junk)), -EPROTO);
	CHECK_EQ(ft_store_whole(w->st), -EPROTO);
	CHECK_EQ(ft_store_begin(w->st, 1, 0), -EPROTO);                 /* needs a full one first */
	CHECK_EQ(ft_store_begin(w->st, 1, FT_EPOCH_DIRECT), -EPROTO);
	CHECK_EQ(ft_store_begin(w->st, 1, 4), -EPROTO);
	CHECK_EQ(ft_store_begin(w->st, 0, FULL), -EPROTO);
	CHECK_OK(send_epoch(w, FULL));
	CHECK_EQ(random_op(w), -EPROTO);                                /* after whole */
	CHECK_EQ(ft_store_begin(w->st, 1, 0), -EPROTO);
	CHECK_EQ(ft_store_begin(w->st, 2, DIRECT), -EPROTO);            /* epochs are waiting */
	CHECK_OK(ft_store_begin(w->st, 2, 0));
	CHECK_EQ(ft_store_batch(w->st, junk, sizeof(junk)), -EPROTO);
	world_free(w);
}

TEST(two_ops_in_a_batch_must_fill_it_exactly)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	uint8_t raw[200] = { 0 }, body[FT_DISK_BODY_MAX];
	struct ft_disk_op op = { 1, 0, 10, FT_DISK_WRITE }, next = { 2, 0, 10, FT_DISK_ZERO };
	static const struct { size_t len; uint32_t nr; int rc; } row[] = {
		{ 58, 2, 0 }, { 58, 1, -EPROTO }, { 57, 2, -EPROTO }, { 59, 2, -EPROTO }, { 34, 1, 0 }, { 33, 1, -EPROTO }, { 24, 1, -EPROTO },
	};

	ft_disk_pack_op(&op, raw);
	ft_disk_pack_op(&next, raw + 34);
	for (size_t i = 0; i < FT_ARRAY_LEN(row); i++) {
		CHECK_OK(ft_store_begin(w->st, 1, FULL));
		CHECK_EQ(ft_store_batch(w->st, body, ft_disk_pack_batch(0, raw, row[i].len, row[i].nr, body)), row[i].rc);
	}
	world_free(w);
}

/* --- whose data --- */

TEST(a_copy_makes_the_images_the_primarys)
{
	for (int d = 0; d < 2; d++)
		for (int direct = 0; direct < 2; direct++) {
			struct world *w = world_open(d ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY);
			uint64_t word;

			CHECK_EQ(flags_of(w), FT_DISK_FRESH);
			CHECK_EQ(ft_store_next_word(w->st, 0, 0, &word), 1);
			CHECK_OK(send_epoch(w, direct ? DIRECT : FULL));
			CHECK_EQ(flags_of(w), FT_DISK_TARGET);
			CHECK_EQ(images_are(w, 1), direct);
			CHECK_OK(commit(w));
			CHECK(images_are(w, 1));
			CHECK_OK(ft_store_sync(w->st));
			CHECK_EQ(flags_of(w), 0);
			CHECK(id_of(w, 0).current == 500 && id_of(w, 1).current == 501 && id_of(w, 1).base == 0);
			CHECK_EQ(ft_store_next_word(w->st, 0, 0, &word), 1);
			CHECK_OK(ft_store_release(w->st));
			world_free(w);
		}
}

TEST(a_direct_copy_marks_the_target_durably_before_its_first_op)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);

	CHECK_OK(ft_store_begin(w->st, 1, DIRECT));
	ft_store_free(w->st);
	forgetful_power_on(w->fs, 3);
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_EQ(flags_of(w), FT_DISK_TARGET);
	CHECK_EQ(id_of(w, 0).base, 500);
	CHECK_OK(meet(w));                              /* may go on: what differs is in the primary's map */
	world_free(w);
}

TEST(the_peer_is_refused_when_we_have_what_it_lacks)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	char why[256];

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	CHECK_OK(ft_store_sync(w->st));
	w->peer[1].current = 999;
	CHECK_EQ(ft_store_peer(w->st, w->peer, NR_DISKS, why, sizeof(why)), -EPERM);
	CHECK(strstr(why, "disk 1: each host has data"));
	CHECK_EQ(ft_store_begin(w->st, 9, FULL), -EPROTO);
	w->peer[1].base = 501;                          /* it grew from ours */
	CHECK_OK(meet(w));
	CHECK_OK(ft_store_begin(w->st, 9, FULL));
	w->peer[1] = (struct ft_disk_id){ BYTES, 0, 0, FT_DISK_FRESH };
	CHECK_EQ(ft_store_peer(w->st, w->peer, NR_DISKS, why, sizeof(why)), -EPERM);
	CHECK_EQ(ft_store_peer(w->st, w->peer, 1, why, sizeof(why)), -EPROTO);
	world_free(w);
}

TEST(words_of_a_host_that_ran_the_guest_are_told_until_the_copy_is_through)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	struct ft_map_image im = { BYTES, 0, 0 };
	struct ft_map *m;
	uint64_t word;
	int h;

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(ft_store_release(w->st));
	CHECK_OK(w->cfg.files->open(w->cfg.files->ctx, images[0], false, &h));
	CHECK_OK(w->cfg.files->identity(w->cfg.files->ctx, h, &im.inode, &im.born_ns));
	CHECK_OK(ft_map_open(w->cfg.files, "/s/vm1.disk0.map", &im, &m));
	CHECK_OK(ft_map_touch(m, 2 * FT_GRANULE, 1, 0));
	CHECK_OK(ft_map_close(m));
	ft_store_free(w->st);
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	CHECK_EQ(ft_store_next_word(w->st, 0, 0, &word), 0);
	CHECK_EQ(word, 4);
	CHECK_OK(send_epoch(w, FULL));
	CHECK_EQ(ft_store_next_word(w->st, 0, 0, &word), 0);
	CHECK_OK(commit(w));
	CHECK_OK(ft_store_sync(w->st));
	CHECK_EQ(ft_store_next_word(w->st, 0, 0, &word), 1);
	world_free(w);
}

TEST(hashes_are_of_the_image_with_all_that_is_whole)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	uint8_t out[FT_REGION_GRANULES * FT_HASH_LEN], want[FT_HASH_LEN];

	CHECK_OK(send_epoch(w, FULL));
	CHECK_EQ(ft_store_hashes(w->st, 0, 0, 1 << 1 | 1 << 4, out), 2);
	ft_disk_hash(w->at[1][0] + FT_GRANULE, FT_GRANULE, want);
	CHECK(!memcmp(out, want, FT_HASH_LEN));
	ft_disk_hash(w->at[1][0] + 4 * FT_GRANULE, 512, want);
	CHECK(!memcmp(out + FT_HASH_LEN, want, FT_HASH_LEN));
	CHECK_EQ(ft_store_hashes(w->st, 0, 0, 1 << 5, out), -EPROTO);
	CHECK_EQ(ft_store_hashes(w->st, 0, 1, 1, out), -EPROTO);
	CHECK_EQ(ft_store_hashes(w->st, 2, 0, 1, out), -EPROTO);
	CHECK_EQ(ft_store_hashes(w->st, 0, 0, 0, out), -EPROTO);
	forgetful_fail_reads(w->fs, EIO);
	CHECK_EQ(ft_store_hashes(w->st, 0, 0, 1, out), -EIO);
	world_free(w);
}

/* --- durable --- */

TEST(durable_is_what_was_synced_and_of_this_session)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	uint64_t seq;

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	CHECK(!ft_store_durable(w->st, 0, &seq));
	CHECK_OK(ft_store_sync(w->st));
	CHECK_EQ(poll(&(struct pollfd){ ft_store_event_fd(w->st), POLLIN, 0 }, 1, 0), 1);
	CHECK(ft_store_durable(w->st, 0, &seq));
	CHECK_EQ(seq, w->seq[0]);
	CHECK(!ft_store_durable(w->st, 0, &seq));
	CHECK_EQ(poll(&(struct pollfd){ ft_store_event_fd(w->st), POLLIN, 0 }, 1, 0), 0);
	CHECK_OK(send_epoch(w, 0));                     /* of the old session, still to be applied */
	CHECK_OK(meet(w));
	CHECK_OK(commit(w));
	CHECK_OK(ft_store_sync(w->st));
	CHECK(!ft_store_durable(w->st, 0, &seq) && !ft_store_durable(w->st, 1, &seq));
	world_free(w);
}

TEST(a_thread_syncs_and_says_so)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	struct pollfd p = { .events = POLLIN };
	uint64_t seq = 0;

	ft_store_tuning.sync_ms = 20;
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	p.fd = ft_store_event_fd(w->st);
	for (int e = 1; e <= 8; e++) {
		CHECK_OK(send_epoch(w, e == 1 ? FULL : 0));
		CHECK_OK(commit(w));
		while (seq != w->seq[0]) {
			CHECK_EQ(poll(&p, 1, 10000), 1);
			ft_store_durable(w->st, 0, &seq);
		}
	}
	CHECK_EQ(flags_of(w), 0);
	CHECK_OK(ft_store_release(w->st));
	CHECK(images_are(w, 8));
	world_free(w);
}

/* --- power cuts --- */

/* A life of epochs until the power fails. */
static void live(struct world *w, bool direct)
{
	int rc = meet(w);

	for (int e = 1; e <= EPOCHS && !rc; e++) {
		rc = send_epoch(w, e > 1 ? 0 : direct ? DIRECT : FULL);
		if (!rc && e % 5 == 4) {                /* a primary that thinks again */
			rc = ft_store_begin(w->st, w->sent + 1, 0);
			if (!rc)
				rc = send_op(w, 0, (struct ft_disk_op){ w->seq[0] + 1, 0, 4, FT_DISK_WRITE }, (const uint8_t *)"evil");
			ft_store_discard_partial(w->st);
		}
		if (!rc && e % 3)
			rc = commit(w);
		if (!rc && e % 4 == 1)
			rc = ft_store_sync(w->st);
	}
}

static int64_t found_epoch(struct world *w)
{
	for (uint64_t e = 0; e <= w->sent; e++)
		if (images_are(w, e))
			return (int64_t)e;
	return -1;
}

/* Reopen, with power failing again one step later each time, until it is through. False: refused. */
static bool reopen(struct world *w, uint64_t seed)
{
	int rc = -EIO;

	for (unsigned cut = 1; rc && forgetful_is_off(w->fs); cut++) {
		CHECK(cut < 500);
		forgetful_power_on(w->fs, seed * 31 + cut);
		forgetful_cut_at(w->fs, cut);
		rc = ft_store_open(&w->cfg, &w->st);
	}
	forgetful_cut_at(w->fs, 0);
	if (rc)
		w->st = NULL;
	return !rc;
}

static bool both(struct world *w, uint32_t flags)
{
	return id_of(w, 0).flags == flags && id_of(w, 1).flags == flags;
}

/* What may not be after a cut. */
static bool is_wrong(struct world *w, bool direct)
{
	int64_t found = found_epoch(w);

	/* Acknowledged epochs are there, whole, and their generation is the primary's. */
	if (w->whole)
		return found < (int64_t)w->whole || !both(w, 0) || id_of(w, 0).current != 500 || id_of(w, 1).current != 501;
	/* Half an epoch is found only of a direct copy, and says what it is. */
	if (found < 0)
		return !direct || !both(w, FT_DISK_TARGET);
	return found == 0 && (!id_of(w, 0).flags || !id_of(w, 1).flags);
}

static bool cut_life(unsigned cut_at, uint64_t seed, bool direct, unsigned lies, unsigned *wrong)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	bool was_cut;

	w->seed += seed * 99991;
	w->cfg.memory_bound = seed % 3 ? 20000 : 1 << 20;
	w->cfg.journal_bound = seed % 2 ? 8 << 20 : 400000;
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	forgetful_lie(w->fs, lies);
	forgetful_cut_at(w->fs, cut_at);
	live(w, direct);
	was_cut = forgetful_is_off(w->fs);
	ft_store_free(w->st);
	forgetful_cut_at(w->fs, 1);
	CHECK(w->cfg.files->sync_dir(w->cfg.files->ctx, "/"));
	if (reopen(w, seed)) {
		*wrong += is_wrong(w, direct);
		CHECK_OK(meet(w));
	} else {
		++*wrong;
	}
	world_free(w);
	return was_cut;
}

TEST_TIMEOUT(with_a_journal_a_cut_at_any_step_leaves_a_whole_epoch_and_all_acknowledged_ones, 300)
{
	unsigned wrong = 0, lives = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 6; seed++)
		for (unsigned cut_at = 1; cut_life(cut_at, seed, seed >= 4, 0, &wrong); cut_at++)
			lives++;
	printf("# %u lives\n", lives);
	CHECK(lives > 300);
	CHECK_EQ(wrong, 0);
}

/* A sync of much data would keep the caller, who serves the primary, for too long. */
TEST(a_direct_copy_begins_without_a_sync_of_the_images)
{
	for (int d = 0; d < 2; d++) {
		struct world *w = world_open(d ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY);
		unsigned steps;

		w->cfg.memory_bound = 1000;
		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(send_epoch(w, 0));
		CHECK_OK(commit(w));
		CHECK_OK(meet(w));
		forgetful_only(w->fs, "/d/");
		steps = forgetful_steps(w->fs);
		CHECK_OK(ft_store_begin(w->st, 3, DIRECT));
		CHECK_EQ(forgetful_steps(w->fs), steps);
		world_free(w);
	}
}

/* The journal may not be replayed over a copy: it is gone before the first op of that, and the mark is there. */
TEST(a_cut_while_a_direct_copy_follows_a_journal_leaves_what_was_before_or_a_target)
{
	bool was_cut = true;
	unsigned targets = 0;

	forgetful_quiet();
	for (unsigned cut_at = 1; was_cut; cut_at++) {
		struct world *w = world_open(FT_DURABILITY_JOURNAL);
		bool before;

		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(send_epoch(w, 0));
		CHECK_OK(commit(w));
		CHECK_OK(meet(w));
		forgetful_cut_at(w->fs, cut_at);
		memset(w->seq, 0, sizeof(w->seq));
		if (!ft_store_begin(w->st, 3, DIRECT))
			for (int i = 0; i < 8; i++)
				ft_ignore(random_op(w));
		was_cut = forgetful_is_off(w->fs);
		ft_store_free(w->st);
		forgetful_cut_at(w->fs, 1);
		CHECK(w->cfg.files->sync_dir(w->cfg.files->ctx, "/"));
		forgetful_power_on(w->fs, cut_at);
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		before = both(w, 0);
		CHECK(before ? images_are(w, 2) : id_of(w, 0).flags == FT_DISK_TARGET || id_of(w, 1).flags == FT_DISK_TARGET);
		targets += !before;
		world_free(w);
	}
	CHECK(targets > 5);
}

TEST(a_disk_that_lies_about_sync_is_caught_by_the_same_cuts)
{
	unsigned wrong = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 4 && !wrong; seed++)
		for (unsigned cut_at = 1; cut_life(cut_at, seed, false, FORGETFUL_SYNC, &wrong) && !wrong; cut_at++)
			;
	CHECK(wrong > 0);
}

TEST(without_a_journal_a_dying_process_leaves_whole_ops_in_order)
{
	forgetful_quiet();
	for (unsigned cut_at = 1; cut_at < 120; cut_at++) {
		struct world *w = world_new(FT_DURABILITY_MEMORY);
		bool fresh;

		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		forgetful_cut_at(w->fs, cut_at);
		live(w, cut_at % 2);
		ft_store_free(w->st);
		forgetful_process_dies(w->fs);
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		fresh = id_of(w, 0).flags == FT_DISK_FRESH || id_of(w, 1).flags == FT_DISK_FRESH;
		CHECK(!fresh || (images_are(w, 0) && !w->whole));
		CHECK(id_of(w, 0).flags || found_epoch(w) != 0);
		CHECK(!forgetful_exists(w->fs, "/s/vm1.journal0"));
		CHECK_OK(meet(w));
		world_free(w);
	}
}

/* Does the map say that all of the disks may differ from what their generation promises? */
/* Without an end in order; what is on the disks is there again. */
static void lose_power(struct world *w)
{
	forgetful_cut_at(w->fs, 1);
	CHECK(w->cfg.files->sync_dir(w->cfg.files->ctx, "/"));
	ft_store_free(w->st);
	forgetful_power_on(w->fs, 5);
}

static bool suspect(struct world *w, unsigned disk)
{
	uint64_t word;

	return ft_store_next_word(w->st, disk, 0, &word) == 0 && word == ft_disk_granules(BYTES, 0);
}

static bool all_suspect(struct world *w)
{
	bool all = true;

	for (unsigned i = 0; i < NR_DISKS; i++)
		all &= suspect(w, i);
	return all;
}

/* A life without a journal until the power fails; *torn: a generation's image was found that is no epoch of it. */
static bool cut_life_without(unsigned cut_at, uint64_t seed, unsigned *torn)
{
	struct world *w = world_new(FT_DURABILITY_MEMORY);
	bool was_cut;

	w->seed += seed * 99991;
	ft_map_tuning.boot_id = "boot-1";
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	CHECK_OK(ft_store_release(w->st));      /* a map that has nothing as touched */
	ft_store_free(w->st);
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	forgetful_cut_at(w->fs, cut_at);
	live(w, seed % 2);
	was_cut = forgetful_is_off(w->fs);
	forgetful_cut_at(w->fs, 1);
	CHECK(w->cfg.files->sync_dir(w->cfg.files->ctx, "/"));
	ft_store_free(w->st);
	ft_map_tuning.boot_id = "boot-2";
	forgetful_power_on(w->fs, seed * 31 + cut_at);
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	if (both(w, 0) && found_epoch(w) < 0) {
		++*torn;
		CHECK(all_suspect(w));
	}
	world_free(w);
	ft_map_tuning.boot_id = NULL;
	return was_cut;
}

TEST_TIMEOUT(without_a_journal_an_image_that_a_power_cut_has_torn_says_so, 300)
{
	unsigned torn = 0;

	forgetful_quiet();
	for (uint64_t seed = 0; seed < 8; seed++)
		for (unsigned cut_at = 1; cut_life_without(cut_at, seed, &torn); cut_at++)
			;
	printf("# torn in %u lives\n", torn);
	CHECK(torn > 100);
}

/* Else each start of the host would compare all of the disks. */
TEST(without_a_journal_an_end_in_order_leaves_images_that_a_power_cut_does_not_touch)
{
	for (int release = 0; release < 2; release++) {
		struct world *w = world_new(FT_DURABILITY_MEMORY);

		ft_map_tuning.boot_id = "boot-1";
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		CHECK_OK(meet(w));
		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(commit(w));
		CHECK_OK(ft_store_sync(w->st));
		CHECK_OK(send_epoch(w, 0));
		CHECK_OK(commit(w));
		if (release)
			CHECK_OK(ft_store_release(w->st));
		ft_store_free(w->st);
		ft_map_tuning.boot_id = "boot-2";
		forgetful_power_on(w->fs, 5);
		CHECK(images_are(w, 2));
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		CHECK(!all_suspect(w));
		CHECK_EQ(id_of(w, 0).current, 500);
		/* And once written to it is marked anew. */
		CHECK_OK(meet(w));
		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(commit(w));
		CHECK_OK(ft_store_sync(w->st));
		ft_map_tuning.boot_id = "boot-3";
		lose_power(w);
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		CHECK(all_suspect(w));
		world_free(w);
		ft_map_tuning.boot_id = NULL;
	}
}

TEST(recover_replays_what_a_crash_left_and_wants_nothing_else)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);

	CHECK_OK(ft_store_recover(&w->cfg));            /* nothing there, nothing made */
	CHECK(!forgetful_exists(w->fs, images[0]));
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(send_epoch(w, 0));
	ft_store_free(w->st);
	w->st = NULL;
	forgetful_power_on(w->fs, 9);
	CHECK(!images_are(w, 2));
	CHECK_OK(ft_store_recover(&w->cfg));
	CHECK(images_are(w, 2));
	CHECK(!forgetful_exists(w->fs, "/s/vm1.journal0"));
	CHECK_OK(ft_store_recover(&w->cfg));
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_EQ(id_of(w, 0).current, 500);
	world_free(w);
}

TEST(a_journal_whose_image_is_gone_or_that_is_damaged_is_refused)
{
	struct world *w = world_open(FT_DURABILITY_JOURNAL);
	static uint8_t bytes[1 << 20];
	size_t len;

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(send_epoch(w, 0));
	CHECK_OK(send_epoch(w, 0));
	ft_store_free(w->st);
	w->st = NULL;
	len = forgetful_size(w->fs, "/s/vm1.journal0");
	CHECK(len < sizeof(bytes));
	forgetful_read(w->fs, "/s/vm1.journal0", bytes, len, 0);
	for (size_t at = 0; at < 32; at++) {
		bytes[at] ^= 1;
		forgetful_put(w->fs, "/s/vm1.journal0", bytes, len);
		CHECK_EQ(ft_store_open(&w->cfg, &w->st), -EBADMSG);
		bytes[at] ^= 1;
	}
	bytes[512 + 32 + 20] ^= 1;                      /* in the body of the first record: others follow */
	forgetful_put(w->fs, "/s/vm1.journal0", bytes, len);
	CHECK_EQ(ft_store_open(&w->cfg, &w->st), -EBADMSG);
	CHECK(ft_test_logged("vm1.journal0: damaged; "));
	bytes[512 + 32 + 20] ^= 1;
	forgetful_put(w->fs, "/s/vm1.journal0", bytes, len);
	CHECK_OK(w->cfg.files->unlink(w->cfg.files->ctx, images[1]));
	CHECK_EQ(ft_store_open(&w->cfg, &w->st), -ENOENT);
	CHECK(ft_test_logged("put the image back"));
	w->st = NULL;
	world_free(w);
}

/* --- faults --- */

TEST_TIMEOUT(a_fault_at_any_step_is_an_error_and_leaves_nothing_half, 300)
{
	unsigned faults = 0;

	forgetful_quiet();
	for (int d = 0; d < 2; d++)
		for (int err = 0; err < 2; err++)
			for (unsigned step = 1; step < 90; step++) {
				struct world *w = world_open(d ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY);
				int rc = 0;

				w->cfg.memory_bound = 20000;
				forgetful_fail_at(w->fs, step, err ? EIO : ENOSPC, false);
				for (int e = 1; e <= EPOCHS && !rc; e++) {
					rc = send_epoch(w, e == 1 ? FULL : 0);
					if (!rc)
						rc = commit(w);
				}
				CHECK(!rc || rc == (err ? -EIO : -ENOSPC));
				faults += !!rc;
				/* What was acknowledged can be committed after all, and is whole. */
				if (rc && w->whole) {
					CHECK_OK(ft_store_commit(w->st));
					CHECK(images_are(w, w->whole));
				}
				world_free(w);
			}
	printf("# %u faults\n", faults);
	CHECK(faults > 100);
}

TEST(a_sync_that_fails_is_never_taken_for_a_later_one_that_does_not)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	uint64_t seq;

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	forgetful_fail_at(w->fs, 1, EIO, false);
	CHECK_EQ(ft_store_sync(w->st), -EIO);
	CHECK(ft_test_logged("replace the disk under it"));
	CHECK_EQ(send_epoch(w, 0), -EIO);
	CHECK_EQ(ft_store_commit(w->st), -EIO);
	CHECK_EQ(ft_store_release(w->st), -EIO);
	CHECK(!ft_store_durable(w->st, 0, &seq));
	CHECK_EQ(flags_of(w), FT_DISK_TARGET);
	world_free(w);
}

/* The page cache has it, clean, and drops it some day: who opens the image again on this boot must not believe it. */
TEST(an_image_whose_sync_failed_is_suspect_until_it_is_copied_anew)
{
	for (int durability = FT_DURABILITY_MEMORY; durability <= FT_DURABILITY_JOURNAL; durability++) {
		struct world *w = world_open((enum ft_durability)durability);

		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(commit(w));
		CHECK_OK(ft_store_sync(w->st));
		CHECK_OK(send_epoch(w, 0));
		CHECK_OK(commit(w));
		forgetful_fail_at(w->fs, 1, EIO, false);
		CHECK_EQ(ft_store_sync(w->st), -EIO);
		ft_store_free(w->st);
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		CHECK(suspect(w, 0));
		CHECK(!suspect(w, 1));
		CHECK_OK(meet(w));
		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(commit(w));
		CHECK_OK(ft_store_sync(w->st));
		CHECK(!suspect(w, 0));
		world_free(w);
	}
}

TEST(who_dies_after_a_copy_has_nothing_to_compare)
{
	for (int durability = FT_DURABILITY_MEMORY; durability <= FT_DURABILITY_JOURNAL; durability++) {
		struct world *w = world_open((enum ft_durability)durability);
		uint64_t word;

		CHECK_OK(send_epoch(w, FULL));
		CHECK_OK(commit(w));
		CHECK_OK(ft_store_sync(w->st));
		lose_power(w);
		CHECK_OK(ft_store_open(&w->cfg, &w->st));
		for (unsigned i = 0; i < NR_DISKS; i++)
			CHECK(ft_store_next_word(w->st, i, 0, &word) > 0);
		world_free(w);
	}
}

TEST(a_journal_beyond_its_bound_is_full_and_empties_itself_when_it_can)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	int rc = 0;

	w->cfg.journal_bound = 300000;
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(commit(w));
	ft_store_hold(w->st, true);
	for (int e = 2; e <= EPOCHS && !rc; e++)
		rc = send_epoch(w, 0);
	CHECK_EQ(rc, -ENOSPC);
	CHECK(ft_test_logged("does not fit into 0 MiB - raise 'disk-spill-mb'"));
	ft_store_hold(w->st, false);
	CHECK_OK(commit(w));
	CHECK(images_are(w, w->whole));
	memcpy(w->now, w->at[w->whole], sizeof(w->now));
	w->sent = w->whole;
	for (int e = 0; e < 30; e++) {                  /* nobody but append syncs here */
		w->sent = w->sent < EPOCHS ? w->sent : EPOCHS;
		rc = ft_store_begin(w->st, 100 + (uint64_t)e, 0);
		if (!rc)
			rc = random_op(w);
		if (!rc)
			rc = ft_store_whole(w->st);
		CHECK_OK(rc);
		CHECK_OK(ft_store_commit(w->st));
	}
	world_free(w);
}

/* --- images that cannot be used --- */

static int open_second(struct world *w, const char *guest, uint64_t bytes, char *why, size_t size)
{
	struct ft_store_config cfg = w->cfg;
	struct ft_store *st = NULL;
	int rc;

	cfg.guest = guest;
	cfg.disk[0].bytes = bytes;
	ft_log_keep(why, size);
	rc = ft_store_open(&cfg, &st);
	ft_log_keep(NULL, 0);
	ft_store_free(rc ? NULL : st);
	return rc;
}

TEST(an_image_belongs_to_one_guest_and_must_have_the_right_size)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	char why[256];

	CHECK_EQ(open_second(w, "vm2", BYTES, why, sizeof(why)), -EBUSY);
	CHECK(strstr(why, "/d/a.img: cannot be the replica's disk: another program, or another guest, uses it"));
	ft_store_free(w->st);
	w->st = NULL;
	CHECK_EQ(open_second(w, "vm1", BYTES + 512, why, sizeof(why)), -EFBIG);
	CHECK(strstr(why, "make it the same size"));
	CHECK_OK(open_second(w, "vm1", BYTES, why, sizeof(why)));
	w->cfg.disk[1].image = images[0];
	CHECK_EQ(open_second(w, "vm1", BYTES, why, sizeof(why)), -EBUSY);
	world_free(w);
}

TEST(an_image_that_was_replaced_has_a_map_of_another)
{
	struct world *w = world_open(FT_DURABILITY_MEMORY);
	static uint8_t zeros[BYTES];

	CHECK_OK(send_epoch(w, FULL));
	CHECK_OK(ft_store_release(w->st));
	ft_store_free(w->st);
	w->st = NULL;
	CHECK_OK(w->cfg.files->unlink(w->cfg.files->ctx, images[0]));
	forgetful_put(w->fs, images[0], zeros, BYTES);
	CHECK_EQ(ft_store_open(&w->cfg, &w->st), -ESTALE);
	w->st = NULL;
	/* Gone altogether: made anew, and fresh. */
	CHECK_OK(w->cfg.files->unlink(w->cfg.files->ctx, images[0]));
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_EQ(id_of(w, 0).flags, FT_DISK_FRESH);
	CHECK_EQ(id_of(w, 1).flags, 0);
	world_free(w);
}

TEST(real_files_too)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	static char path[2][256];
	struct ft_blob b;

	w->cfg.files = NULL;
	w->cfg.state_dir = ft_test_dir();
	for (int i = 0; i < 2; i++) {
		snprintf(path[i], sizeof(path[i]), "%s/%d.img", ft_test_dir(), i);
		w->cfg.disk[i].image = path[i];
	}
	ft_store_tuning.sync_ms = 5;
	CHECK_OK(ft_store_open(&w->cfg, &w->st));
	CHECK_OK(meet(w));
	for (int e = 1; e <= EPOCHS; e++) {
		CHECK_OK(send_epoch(w, e == 1 ? FULL : 0));
		if (e % 3)
			CHECK_OK(commit(w));
	}
	CHECK_OK(ft_store_release(w->st));
	for (int i = 0; i < 2; i++) {
		CHECK_OK(ft_read_file(path[i], BYTES, &b));
		CHECK(b.len == BYTES && !memcmp(b.data, w->now[i], BYTES));
		ft_blob_free(&b);
	}
	world_free(w);
}
