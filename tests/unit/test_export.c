// SPDX-License-Identifier: GPL-3.0-or-later
/* test_export.c - what the mirror is told is what is on the disk, and the disk is never worse for being mirrored. */
#include "ft/export.h"

#include "diskmirror/export_priv.h"
#include "diskmirror/map_priv.h"
#include "ft/map.h"
#include "tests/lib/follower.h"
#include "tests/lib/forgetful.h"
#include "tests/test.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- a host with one disk: 2 regions, and a last one that is short by all but a granule and a half --- */

#define DISK (2 * FT_REGION + FT_GRANULE + FT_GRANULE / 2)
#define IMAGE "/vm/disk.img"
#define MAP "/state/disk.map"

/* Writes to the image that wait, or take their time: everything else is the forgetful file system's. */
static struct {
	const struct ft_disk_files *inner;
	atomic_bool slow;
	_Atomic uint64_t hold_at;       /* a write there waits */
	atomic_bool held;               /* it does */
	unsigned syncs;                 /* of the image, begun */
	bool hold_syncs;                /* they wait */
	pthread_mutex_t lock;
	pthread_cond_t change;
} gate = { .lock = PTHREAD_MUTEX_INITIALIZER, .change = PTHREAD_COND_INITIALIZER };

static void hold_writes_at(uint64_t at)
{
	pthread_mutex_lock(&gate.lock);
	gate.hold_at = at;
	pthread_cond_broadcast(&gate.change);
	pthread_mutex_unlock(&gate.lock);
}

static void until_held(void)
{
	pthread_mutex_lock(&gate.lock);
	while (!gate.held)
		pthread_cond_wait(&gate.change, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static void pass_gate(uint64_t at)
{
	pthread_mutex_lock(&gate.lock);
	while (gate.hold_at == at && at) {
		gate.held = true;
		pthread_cond_broadcast(&gate.change);
		pthread_cond_wait(&gate.change, &gate.lock);
	}
	gate.held = false;
	pthread_mutex_unlock(&gate.lock);
}

static void hold_syncs(bool hold)
{
	pthread_mutex_lock(&gate.lock);
	gate.hold_syncs = hold;
	pthread_cond_broadcast(&gate.change);
	pthread_mutex_unlock(&gate.lock);
}

static void until_syncs(unsigned nr)
{
	pthread_mutex_lock(&gate.lock);
	while (gate.syncs < nr)
		pthread_cond_wait(&gate.change, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static unsigned nr_syncs(void)
{
	unsigned nr;

	pthread_mutex_lock(&gate.lock);
	nr = gate.syncs;
	pthread_mutex_unlock(&gate.lock);
	return nr;
}

static int gated_open(void *ctx, const char *path, bool create, int *h);
static int gated_sync(void *ctx, int h);

/* A disk's latency, not a synchronisation. */
static void take_time(void)
{
	if (gate.slow)
		usleep((unsigned)(random() % 300));
}

static int gated_pwrite(void *ctx, int h, const void *buf, size_t len, uint64_t at)
{
	int rc = gate.inner->pwrite(ctx, h, buf, len, at);

	pass_gate(at);
	take_time();
	return rc;
}

static int slow_pread(void *ctx, int h, void *buf, size_t len, uint64_t at)
{
	int rc = gate.inner->pread(ctx, h, buf, len, at);

	take_time();
	return rc;
}

static bool is_image[4096];             /* by handle */

static int gated_open(void *ctx, const char *path, bool create, int *h)
{
	int rc = gate.inner->open(ctx, path, create, h);

	if (!rc)
		is_image[*h] = !strcmp(path, IMAGE);
	return rc;
}

static int gated_sync(void *ctx, int h)
{
	pthread_mutex_lock(&gate.lock);
	if (is_image[h]) {
		gate.syncs++;
		pthread_cond_broadcast(&gate.change);
		while (gate.hold_syncs)
			pthread_cond_wait(&gate.change, &gate.lock);
	}
	pthread_mutex_unlock(&gate.lock);
	return gate.inner->sync(ctx, h);
}

struct host {
	struct forgetful *fs;
	struct ft_disk_files files;
	struct ft_export_config cfg;
	char control[108];
	struct ft_export *e;
};

static void host_make(struct host *h)
{
	uint8_t *zeros = calloc(1, DISK);

	*h = (struct host){ .fs = forgetful_new() };
	forgetful_put(h->fs, IMAGE, zeros, DISK);
	free(zeros);
	gate.inner = forgetful_files(h->fs);
	h->files = *gate.inner;
	h->files.pwrite = gated_pwrite;
	h->files.pread = slow_pread;
	h->files.open = gated_open;
	h->files.sync = gated_sync;
	gate.syncs = 0;
	snprintf(h->control, sizeof(h->control), "%s/c", ft_test_dir());
	h->cfg = (struct ft_export_config){ .image = IMAGE, .map = MAP, .control = h->control, .files = &h->files };
}

static int host_open(struct host *h)
{
	int rc = ft_export_open(&h->cfg, &h->e);

	if (rc)
		h->e = NULL;
	else
		CHECK_OK(ft_export_start(h->e));
	return rc;
}

static void host_close(struct host *h)
{
	ft_export_close(h->e);
	h->e = NULL;
}

static void host_free(struct host *h)
{
	host_close(h);
	forgetful_free(h->fs);
}

/* The map as the next start finds it. The export must be closed, or dead. */
static struct ft_map *host_map(struct host *h)
{
	struct ft_map_image im = { .bytes = DISK };
	struct ft_map *m;
	int fd;

	CHECK_OK(h->files.open(h->files.ctx, IMAGE, false, &fd));
	CHECK_OK(h->files.identity(h->files.ctx, fd, &im.inode, &im.born_ns));
	h->files.close(h->files.ctx, fd);
	CHECK_OK(ft_map_open(&h->files, MAP, &im, &m));
	return m;
}

static uint64_t touched(struct host *h)
{
	struct ft_map *m = host_map(h);
	uint64_t nr = ft_map_count(m);

	ft_map_abandon(m);
	return nr;
}

static struct ft_disk_id map_id(struct host *h)
{
	struct ft_map *m = host_map(h);
	struct ft_disk_id id;

	ft_map_id(m, &id);
	ft_map_abandon(m);
	return id;
}

static int put(struct host *h, uint8_t with, uint32_t len, uint64_t at)
{
	uint8_t *buf = malloc(len);
	int rc;

	memset(buf, with, len);
	rc = ft_export_write(h->e, buf, len, at, false);
	free(buf);
	return rc;
}

static bool image_is(struct host *h, const uint8_t *what)
{
	uint8_t *buf = malloc(DISK);
	bool same;

	forgetful_read(h->fs, IMAGE, buf, DISK, 0);
	same = !memcmp(buf, what, DISK);
	free(buf);
	return same;
}

/* A session up to the point where the peer has everything, and the map knows. */
static struct follower *protect(struct host *h)
{
	struct follower *f = follower_new(h->control, DISK);

	follower_start(f);
	follower_say(f, FT_EXPORT_HELD, NULL, 0);
	follower_copy(f, false);
	follower_compare_all(f);
	follower_say(f, FT_EXPORT_ADOPTED, NULL, 0);
	follower_say64(f, FT_EXPORT_DURABLE, f->seq);
	follower_ask(f);
	CHECK(!f->closed);
	return f;
}

#define SEEDS 4u        /* ways in which what was not synced is lost */

/* What is on disk says that all is clean: only what is written from here on can tell. */
static struct follower *protect_clean(struct host *h)
{
	CHECK_OK(host_open(h));
	follower_free(protect(h));
	host_close(h);
	CHECK_EQ(touched(h), 0);
	CHECK_OK(host_open(h));
	return protect(h);
}

/* --- order --- */

struct guest {
	struct host *h;
	unsigned seed;
	pthread_t thread;
};

#define ROUNDS 20
#define CHANGES 25

/* Starts of granules, so that requests meet each other and the comparison; few enough that a wrong order stays seen. */
static void *write_at_random(void *arg)
{
	struct guest *g = arg;
	uint8_t *buf = malloc(2 * FT_DISK_OP_DATA_MAX);

	for (int i = 0; i < CHANGES; i++) {
		uint64_t r = (uint64_t)rand_r(&g->seed), at = r % (DISK / FT_GRANULE) * FT_GRANULE + r % 4 * 512;
		uint32_t len = (uint32_t)(1 + rand_r(&g->seed) % (i % 16 ? 8192 : 2 * FT_DISK_OP_DATA_MAX));

		if (len > DISK - at)
			len = (uint32_t)(DISK - at);
		memset(buf, rand_r(&g->seed), len);
		if (r % 7)
			CHECK_OK(ft_export_write(g->h->e, buf, len, at, r % 50 == 0));
		else
			CHECK_OK(ft_export_zero(g->h->e, len, at, false));
	}
	free(buf);
	return NULL;
}

/* The replica has something else everywhere; while it is compared four threads write. */
static void write_and_copy(struct host *h, struct follower *f, unsigned round)
{
	struct guest g[4];

	memset(f->replica, (int)(round + 0x5a), DISK);
	for (unsigned i = 0; i < FT_ARRAY_LEN(g); i++) {
		g[i] = (struct guest){ .h = h, .seed = 4 * round + i + 1 };
		CHECK_OK(-pthread_create(&g[i].thread, NULL, write_at_random, &g[i]));
	}
	follower_copy(f, true);
	CHECK_EQ(f->to_compare, 2 * 64 + 2);
	follower_compare_all(f);
	for (unsigned i = 0; i < FT_ARRAY_LEN(g); i++)
		pthread_join(g[i].thread, NULL);
}

TEST(image_and_stream_have_one_order_also_while_a_copy_is_under_way)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = follower_new(h.control, DISK);
	follower_start(f);
	gate.slow = true;
	for (unsigned round = 0; round < ROUNDS; round++) {
		write_and_copy(&h, f, round);
		follower_ask(f);                /* the last MARK is counted, too */
		uint64_t sent = f->page->sent;

		follower_catch_up(f);
		CHECK_EQ(f->seq, sent);
		CHECK(!f->closed);
		CHECK(image_is(&h, f->replica));
	}
	follower_free(f);
	host_free(&h);
}

TEST(an_op_is_counted_before_its_completion)
{
	struct host h;
	struct follower *f;
	uint64_t sent;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	sent = f->page->sent;
	for (unsigned i = 0; i < 500; i++) {
		CHECK_OK(put(&h, 7, 512, i * 512));
		CHECK_EQ(f->page->sent, ++sent);
	}
	CHECK_OK(put(&h, 8, 2 * FT_DISK_OP_DATA_MAX + 1, 0));   /* too large for one op */
	CHECK_EQ(f->page->sent, sent + 3);
	CHECK_OK(ft_export_zero(h.e, DISK, 0, true));           /* zeros have no data */
	CHECK_EQ(f->page->sent, sent + 4);
	follower_catch_up(f);
	CHECK(image_is(&h, f->replica));
	follower_free(f);
	host_free(&h);
}

TEST(only_what_differs_is_sent)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	CHECK_OK(put(&h, 1, 512, 5 * FT_GRANULE));
	CHECK_OK(put(&h, 2, 512, DISK - 512));
	CHECK_OK(put(&h, 0, FT_GRANULE, 9 * FT_GRANULE));       /* zeros that are no hole */
	f = follower_new(h.control, DISK);
	f->replica[FT_REGION] = 1;                              /* where the image is a hole */
	follower_start(f);
	follower_copy(f, false);                                /* there was no map: all of it anyway */
	CHECK_EQ(f->to_compare, 2 * 64 + 2);
	follower_compare_all(f);
	CHECK_EQ(f->marks, 3);
	CHECK_EQ(f->ops, 3);
	CHECK_EQ(f->zeros, 1);
	CHECK_EQ(f->data, FT_GRANULE + FT_GRANULE / 2);
	CHECK(image_is(&h, f->replica));
	follower_free(f);
	host_free(&h);
}

/* A last region of 63 granules and a half, whose word is full. */
TEST(the_last_region_may_be_short_by_less_than_a_granule)
{
	const uint64_t bytes = FT_REGION - 512;
	struct host h;
	struct follower *f;
	int fd;

	host_make(&h);
	CHECK_OK(h.files.open(h.files.ctx, IMAGE, false, &fd));
	CHECK_OK(h.files.truncate(h.files.ctx, fd, bytes));
	h.files.close(h.files.ctx, fd);
	CHECK_OK(host_open(&h));
	CHECK_OK(put(&h, 1, 512, bytes - 512));
	f = follower_new(h.control, bytes);
	follower_start(f);
	follower_copy(f, true);
	CHECK_EQ(f->to_compare, 64);
	follower_compare_all(f);
	CHECK_EQ(f->ops, 1);
	CHECK_EQ(f->replica[bytes - 1], 1);
	follower_free(f);
	host_free(&h);
}

/* --- the map --- */

TEST(a_second_session_compares_what_was_touched_and_what_the_peer_adds)
{
	struct host h;
	struct follower *f;
	uint8_t add[16];

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_free(f);
	CHECK_OK(put(&h, 1, 512, 3 * FT_GRANULE));
	f = follower_new(h.control, DISK);
	follower_start(f);
	ft_put64(add, 1);
	ft_put64(add + 8, 1ull << 63);
	follower_say(f, FT_EXPORT_ADD, add, sizeof(add));
	follower_copy(f, false);
	CHECK_EQ(f->to_compare, 2);
	CHECK_EQ(f->plan[0], 1 << 3);
	CHECK_EQ(f->plan[1], 1ull << 63);
	follower_compare_all(f);
	CHECK_EQ(f->ops, 1);
	follower_copy(f, true);
	CHECK_EQ(f->to_compare, 2 * 64 + 2);
	follower_free(f);
	host_free(&h);
}

TEST(what_the_peer_has_durable_is_clean)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	CHECK_OK(put(&h, 1, 512, 0));
	follower_say64(f, FT_EXPORT_DURABLE, f->page->sent);
	CHECK_OK(put(&h, 1, 512, FT_REGION));
	follower_ask(f);
	follower_free(f);
	host_close(&h);
	CHECK_EQ(touched(&h), 1);
	host_free(&h);
}

/* What an earlier session carried says nothing about this one, whatever number the peer calls durable. */
TEST(a_new_stream_makes_nothing_clean_that_was_not_compared)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	CHECK_OK(put(&h, 1, 512, 0));           /* streamed, and lost with the peer */
	follower_free(f);
	f = follower_new(h.control, DISK);
	follower_start(f);
	CHECK_OK(put(&h, 1, 512, FT_REGION));
	follower_say64(f, FT_EXPORT_DURABLE, f->page->sent);
	follower_ask(f);
	follower_free(f);
	host_close(&h);
	CHECK_EQ(touched(&h), 1);               /* the second region was the same when the stream began */
	host_free(&h);
}

static void *write_one(void *arg)
{
	CHECK_OK(put(arg, 1, 512, 4096));
	return NULL;
}

/*
 * It is on the image, and its op not in the stream yet; the peer has what came later durable. Neither the words on disk
 * help here, which say that all is clean, nor the activity log: it has one place, and another region takes it.
 */
TEST(a_change_under_way_stays_touched)
{
	struct host h;
	struct follower *f;
	struct ft_map *m;
	pthread_t t;

	ft_map_tuning.slots = 1;
	host_make(&h);
	f = protect_clean(&h);
	hold_writes_at(4096);
	CHECK_OK(-pthread_create(&t, NULL, write_one, &h));
	until_held();
	CHECK_OK(put(&h, 1, 512, 8192));
	follower_say64(f, FT_EXPORT_DURABLE, f->page->sent);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, FT_REGION));
	forgetful_power_on(h.fs, 1);            /* the writer is still held: it is as if it had died */
	m = host_map(&h);
	CHECK(ft_map_word(m, 0) & 1);
	ft_map_abandon(m);
	hold_writes_at(0);
	pthread_join(t, NULL);
	follower_free(f);
	host_free(&h);
}

TEST(a_change_under_way_holds_up_the_map_only_until_it_is_through)
{
	struct host h;
	struct follower *f;
	pthread_t t;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	hold_writes_at(4096);
	CHECK_OK(-pthread_create(&t, NULL, write_one, &h));
	until_held();
	CHECK_OK(put(&h, 1, 512, FT_REGION));
	follower_say64(f, FT_EXPORT_DURABLE, f->page->sent);
	follower_ask(f);
	hold_writes_at(0);
	pthread_join(t, NULL);
	follower_free(f);
	host_close(&h);
	CHECK_EQ(touched(&h), 1);               /* of the two regions only the one that the peer has not confirmed */
	host_free(&h);
}

/* Cut at every step: wherever the image differs from what the peer has, the map has it as touched. */
static void check_touched(struct host *h)
{
	struct ft_map *m = host_map(h);
	uint8_t *buf = malloc(FT_GRANULE);

	for (uint64_t at = 0; at < DISK; at += FT_GRANULE) {
		size_t len = DISK - at < FT_GRANULE ? DISK - at : FT_GRANULE;
		bool same = true;

		forgetful_read(h->fs, IMAGE, buf, len, at);
		for (size_t i = 0; i < len; i++)
			same = same && !buf[i];
		CHECK(same || ft_map_word(m, at / FT_REGION) >> at % FT_REGION / FT_GRANULE & 1);
	}
	free(buf);
	ft_map_abandon(m);
}

TEST_TIMEOUT(after_a_power_cut_at_any_step_the_map_has_all_that_differs, 120)
{
	bool done = false;

	for (unsigned i = 0; !done || i % SEEDS; i++) {
		struct host h;
		struct follower *f;

		host_make(&h);
		f = protect_clean(&h);
		follower_leave(f);
		forgetful_cut_at(h.fs, 1 + i / SEEDS);
		for (unsigned r = 0; r < 3; r++)
			ft_ignore(put(&h, 1, 512, r * FT_REGION));
		done = !forgetful_is_off(h.fs);
		forgetful_power_on(h.fs, i);
		follower_free(f);
		host_close(&h);
		check_touched(&h);
		host_free(&h);
	}
}

/* --- generations --- */

TEST(a_generation_is_made_before_what_the_guest_is_seen_with)
{
	struct host h;
	struct follower *f;
	struct ft_disk_id was;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	was = f->id;
	CHECK(was.current && !was.base && !was.flags);
	CHECK_OK(put(&h, 1, 512, 0));           /* held: nobody sees it */
	follower_ask(f);
	CHECK_EQ(f->id.current, was.current);
	follower_free(f);                       /* ft-protect has died: nobody sees it, still */
	CHECK_OK(put(&h, 2, 512, 0));
	f = follower_new(h.control, DISK);
	follower_start(f);
	CHECK_EQ(f->id.current, was.current);
	follower_leave(f);
	CHECK_EQ(f->left_errno, 0);
	follower_ask(f);
	CHECK_EQ(f->id.current, was.current);   /* the guest has written nothing since */
	CHECK_OK(put(&h, 3, 512, 0));
	follower_ask(f);
	CHECK(f->id.current != was.current);
	CHECK_EQ(f->id.base, was.current);
	was = f->id;
	CHECK_OK(put(&h, 4, 512, 0));
	follower_ask(f);
	CHECK_EQ(f->id.current, was.current);   /* one is enough */
	follower_free(f);
	host_free(&h);
}

TEST(a_new_start_makes_a_generation_and_keeps_what_the_peer_has)
{
	struct host h;
	struct follower *f;
	struct ft_disk_id first, second;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	first = f->id;
	follower_free(f);
	host_close(&h);
	CHECK_OK(host_open(&h));
	host_close(&h);
	CHECK_EQ(map_id(&h).current, first.current);    /* nothing written, nothing new */
	for (int i = 0; i < 2; i++) {
		CHECK_OK(host_open(&h));
		CHECK_OK(ft_export_zero(h.e, 512, 0, false));
		host_close(&h);
		second = map_id(&h);
		CHECK(second.current != first.current);
		CHECK_EQ(second.base, first.current);
	}
	host_free(&h);
}

/* From HELD on the session has one generation: the old one if the guest has written nothing since the start. */
TEST(held_before_the_first_write_needs_no_generation)
{
	for (int written = 0; written < 2; written++) {
		struct host h;
		struct follower *f;
		struct ft_disk_id was, held;

		host_make(&h);
		CHECK_OK(host_open(&h));
		f = protect(&h);
		was = f->id;
		follower_free(f);
		host_close(&h);
		CHECK_OK(host_open(&h));
		f = follower_new(h.control, DISK);
		follower_start(f);
		if (written)
			CHECK_OK(put(&h, 1, 512, 0));
		follower_say(f, FT_EXPORT_HELD, NULL, 0);
		follower_ask(f);
		held = f->id;
		CHECK_EQ(held.current == was.current, !written);
		CHECK_OK(put(&h, 2, 512, 0));
		follower_say(f, FT_EXPORT_ADOPTED, NULL, 0);
		follower_ask(f);
		CHECK_EQ(f->id.current, held.current);
		CHECK_EQ(f->id.base, 0);
		follower_free(f);
		host_free(&h);
	}
}

TEST_TIMEOUT(after_a_power_cut_at_any_step_nothing_was_seen_under_the_old_generation, 120)
{
	bool done = false;

	for (unsigned i = 0; !done || i % SEEDS; i++) {
		struct host h;
		struct ft_disk_id was;
		uint8_t byte;

		host_make(&h);
		CHECK_OK(host_open(&h));
		follower_free(protect(&h));
		host_close(&h);
		was = map_id(&h);
		CHECK_OK(host_open(&h));
		forgetful_cut_at(h.fs, 1 + i / SEEDS);
		ft_ignore(put(&h, 1, 512, 0));
		done = !forgetful_is_off(h.fs);
		forgetful_power_on(h.fs, i);
		host_close(&h);
		forgetful_read(h.fs, IMAGE, &byte, 1, 0);
		CHECK(!byte || map_id(&h).current != was.current);
		host_free(&h);
	}
}

/* --- flushes --- */

static unsigned image_steps(struct host *h)
{
	return forgetful_steps(h->fs);
}

TEST(flushes_are_answered_from_the_mirror_and_honoured_without_it)
{
	struct host h;
	struct follower *f;
	unsigned before;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	forgetful_only(h.fs, "disk.img");
	CHECK_OK(put(&h, 1, 512, 0));
	before = image_steps(&h);
	CHECK_OK(ft_export_flush(h.e));
	CHECK_EQ(image_steps(&h), before + 1);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	before = image_steps(&h);
	CHECK_OK(ft_export_flush(h.e));
	CHECK_EQ(image_steps(&h), before);
	CHECK_OK(ft_export_write(h.e, "x", 1, 0, true));
	CHECK_EQ(image_steps(&h), before + 1);          /* the write */
	follower_say32(f, FT_EXPORT_ELIDE, 0);
	follower_ask(f);
	ft_export_wait_paid(h.e);
	CHECK_EQ(image_steps(&h), before + 2);          /* what was answered is made good */
	CHECK_OK(ft_export_flush(h.e));
	CHECK_EQ(image_steps(&h), before + 3);
	follower_free(f);
	host_free(&h);
}

/* Every way out of protection: the image then survives a loss of power with all that was flushed. */
static void leave_by(struct host *h, struct follower *f, int way)
{
	switch (way) {
	case 0: follower_leave(f); CHECK_EQ(f->left_errno, 0); break;
	case 1: follower_say32(f, FT_EXPORT_ELIDE, 0); follower_ask(f); ft_export_wait_paid(h->e); break;
	case 2: host_close(h); break;
	case 3: follower_say(f, 999, NULL, 0); break;           /* dropped, as if it had died */
	}
}

static void leave_and_lose_power(int way, unsigned seed)
{
	struct host h;
	struct follower *f, *again = NULL;
	uint8_t byte;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	CHECK_OK(ft_export_flush(h.e));
	leave_by(&h, f, way);
	if (way == 3) {
		FOLLOWER_UNTIL(f, f->closed);
		again = follower_new(h.control, DISK);
		follower_ask(again);            /* served after the end of the stream */
		ft_export_wait_paid(h.e);
	}
	forgetful_power_on(h.fs, seed);
	forgetful_read(h.fs, IMAGE, &byte, 1, 0);
	CHECK_EQ(byte, 1);
	follower_free(f);
	if (again)
		follower_free(again);
	host_close(&h);
	ft_map_tuning.boot_id = "the next boot";
	CHECK_OK(host_open(&h));                /* and is known to be */
	host_free(&h);
	ft_map_tuning.boot_id = NULL;
}

TEST(what_was_flushed_is_safe_when_protection_ends_in_any_way)
{
	for (int way = 0; way < 4; way++)
		for (unsigned seed = 0; seed < SEEDS; seed++)
			leave_and_lose_power(way, seed);
}

TEST(an_image_whose_flushes_only_the_mirror_has_is_refused)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	forgetful_power_on(h.fs, 1);
	follower_free(f);
	host_close(&h);
	ft_map_tuning.boot_id = "the next boot";
	CHECK_EQ(host_open(&h), -EUCLEAN);
	CHECK(ft_test_logged("its last writes are only on the backup"));
	host_free(&h);
}

/* The kernel still has it: it is synced, and then a crash of the host is no matter. */
TEST(an_export_that_died_is_followed_by_one_that_makes_its_flushes_good)
{
	struct host h;
	struct follower *f;
	uint8_t byte;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	forgetful_process_dies(h.fs);
	follower_free(f);
	host_close(&h);
	CHECK_OK(host_open(&h));
	ft_export_wait_paid(h.e);
	forgetful_power_on(h.fs, 1);
	host_close(&h);
	forgetful_read(h.fs, IMAGE, &byte, 1, 0);
	CHECK_EQ(byte, 1);
	ft_map_tuning.boot_id = "the next boot";
	CHECK_OK(host_open(&h));
	host_free(&h);
}

/* --- a sync that takes long --- */

/* Else whoever asks, or begins a session, would give up, and the next one after it. */
TEST(nobody_at_the_control_socket_waits_for_a_sync_but_who_leaves)
{
	struct follower *f, *again;
	unsigned syncs;
	struct host h;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	syncs = nr_syncs();
	hold_syncs(true);
	follower_say32(f, FT_EXPORT_ELIDE, 0);
	follower_ask(f);
	until_syncs(syncs + 1);
	follower_say(f, 999, NULL, 0);          /* dropped, as if it had died */
	FOLLOWER_UNTIL(f, f->closed);
	again = protect(&h);                    /* the next session, from START to its end */
	follower_say(again, FT_EXPORT_LEAVE, NULL, 0);
	CHECK_OK(put(&h, 2, 512, 0));           /* the guest goes on meanwhile */
	follower_free(f);
	f = follower_new(h.control, DISK);
	follower_ask(f);
	CHECK_EQ(again->lefts, 0);
	hold_syncs(false);
	FOLLOWER_UNTIL(again, again->lefts == 1);
	CHECK_EQ(again->left_errno, 0);
	follower_free(again);
	follower_free(f);
	host_free(&h);
}

static void unsafe_after_boot(struct host *h)
{
	struct ft_map *m;

	ft_map_tuning.boot_id = "the next boot";
	m = host_map(h);
	CHECK(ft_map_unsafe(m));
	ft_map_abandon(m);
}

TEST(an_export_that_follows_a_dead_one_serves_before_all_is_synced)
{
	struct follower *f;
	struct host h;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	forgetful_process_dies(h.fs);
	follower_free(f);
	host_close(&h);
	hold_syncs(true);
	CHECK_OK(host_open(&h));
	until_syncs(1);
	f = follower_new(h.control, DISK);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 4096));
	/* But a loss of power is known until it is. */
	forgetful_power_on(h.fs, 1);
	hold_syncs(false);
	follower_free(f);
	host_close(&h);
	unsafe_after_boot(&h);
	host_free(&h);
}

/* The mark of the new session must not go with the sync of the old one. */
TEST(a_sync_of_the_session_before_makes_nothing_safe_that_came_after_it)
{
	struct follower *f;
	struct host h;
	unsigned syncs;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	syncs = nr_syncs();
	hold_syncs(true);
	follower_say32(f, FT_EXPORT_ELIDE, 0);
	follower_ask(f);
	until_syncs(syncs + 1);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	CHECK_OK(ft_export_flush(h.e));
	hold_syncs(false);
	ft_export_wait_paid(h.e);
	forgetful_power_on(h.fs, 1);
	follower_free(f);
	host_close(&h);
	unsafe_after_boot(&h);
	host_free(&h);
}

TEST(an_unfinished_copy_is_refused)
{
	struct host h;
	struct ft_map *m;
	struct ft_disk_id id;

	host_make(&h);
	CHECK_OK(host_open(&h));
	follower_free(protect(&h));
	host_close(&h);
	m = host_map(&h);
	ft_map_id(m, &id);
	id.flags = FT_DISK_TARGET;
	CHECK_OK(ft_map_set_id(m, &id));
	CHECK_OK(ft_map_close(m));
	CHECK_EQ(host_open(&h), -EUCLEAN);
	CHECK(ft_test_logged("never finished"));
	host_free(&h);
}

/* --- faults --- */

TEST(a_write_that_fails_ends_the_mirror_and_stays_touched)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	forgetful_only(h.fs, "disk.img");
	forgetful_fail_at(h.fs, 1, EIO, false);
	CHECK_EQ(put(&h, 1, 8192, FT_REGION), -EIO);
	FOLLOWER_UNTIL(f, f->closed);
	CHECK(strstr(f->failed, strerror(EIO)));
	CHECK_EQ(f->page->sent, FT_EXPORT_ENDED);       /* whoever seals now must not think that all is there */
	CHECK_OK(put(&h, 1, 512, 0));           /* the guest's disk goes on */
	follower_free(f);
	forgetful_only(h.fs, NULL);
	host_close(&h);
	CHECK_EQ(touched(&h), 2);
	host_free(&h);
}

TEST(a_write_without_room_leaves_the_same_on_both_sides)
{
	const uint32_t len = FT_DISK_OP_DATA_MAX + 8192;
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	CHECK_OK(put(&h, 1, len, FT_REGION));
	forgetful_only(h.fs, "disk.img");
	forgetful_fail_at(h.fs, 1, ENOSPC, true);
	CHECK_EQ(put(&h, 2, len, FT_REGION), -ENOSPC);
	CHECK_EQ(put(&h, 2, len, FT_REGION), -ENOSPC);
	FOLLOWER_UNTIL(f, f->seq == f->page->sent);
	CHECK(!f->closed);
	CHECK_EQ(f->replica[FT_REGION], 2);                     /* half of it was written */
	CHECK_EQ(f->replica[FT_REGION + len - 1], 1);
	CHECK(image_is(&h, f->replica));
	forgetful_fail_at(h.fs, 0, 0, false);
	CHECK_OK(put(&h, 2, len, FT_REGION));
	FOLLOWER_UNTIL(f, f->seq == f->page->sent);
	CHECK(image_is(&h, f->replica));

	/* What cannot be told ends the mirror. */
	forgetful_fail_at(h.fs, 1, ENOSPC, false);
	forgetful_fail_reads(h.fs, EIO);
	CHECK_EQ(put(&h, 3, len, FT_REGION), -ENOSPC);
	FOLLOWER_UNTIL(f, f->closed);
	CHECK(strstr(f->failed, strerror(ENOSPC)));
	forgetful_fail_reads(h.fs, 0);
	follower_free(f);
	host_free(&h);
}

TEST(a_sync_that_fails_is_never_forgotten)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	CHECK_OK(put(&h, 1, 512, 0));
	forgetful_only(h.fs, "disk.img");
	forgetful_fail_at(h.fs, 1, EIO, false);
	follower_leave(f);
	CHECK_EQ(f->left_errno, EIO);
	CHECK_EQ(ft_export_flush(h.e), -EIO);
	CHECK_EQ(ft_export_flush(h.e), -EIO);
	follower_free(f);
	forgetful_only(h.fs, NULL);
	host_close(&h);
	CHECK_EQ(touched(&h), 2 * 64 + 2);
	host_free(&h);
}

TEST(without_its_map_the_guest_cannot_write)
{
	struct host h;
	uint8_t byte;

	host_make(&h);
	CHECK_OK(host_open(&h));
	follower_free(protect(&h));
	host_close(&h);
	CHECK_OK(host_open(&h));
	forgetful_only(h.fs, MAP);
	forgetful_fail_at(h.fs, 1, ENOSPC, true);
	CHECK_EQ(put(&h, 1, 512, 0), -ENOSPC);
	forgetful_read(h.fs, IMAGE, &byte, 1, 0);
	CHECK_EQ(byte, 0);
	forgetful_fail_at(h.fs, 0, 0, false);
	CHECK_OK(put(&h, 1, 512, 0));
	host_free(&h);
}

TEST_TIMEOUT(a_reader_that_reads_nothing_is_dropped_and_the_guest_goes_on, 60)
{
	struct host h;
	struct follower *f;
	uint64_t began;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	follower_say32(f, FT_EXPORT_ELIDE, 1);
	follower_ask(f);
	pthread_mutex_lock(&f->lock);           /* its thread hangs at the next message */
	began = ft_now_ns();
	for (unsigned i = 0; i < 64; i++)
		CHECK_OK(put(&h, 1, FT_DISK_OP_DATA_MAX, i % 16 * FT_DISK_OP_DATA_MAX));
	CHECK(ft_now_ns() - began > FT_EXPORT_STALL_MS * FT_MS_NS);
	CHECK(ft_now_ns() - began < 3 * FT_EXPORT_STALL_MS * FT_MS_NS);
	CHECK(ft_test_logged("the guest goes on without it"));
	forgetful_only(h.fs, "disk.img");
	unsigned before = image_steps(&h);
	CHECK_OK(ft_export_flush(h.e));
	CHECK(image_steps(&h) > before);        /* honoured again */
	pthread_mutex_unlock(&f->lock);
	follower_free(f);
	host_free(&h);
}

static void *keep_writing(void *arg)
{
	while (!put(arg, 1, 512, 4096))
		;
	return NULL;
}

TEST(nothing_is_written_after_fenced)
{
	struct host h;
	struct follower *f;
	uint8_t *then;
	pthread_t t;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	hold_writes_at(4096);
	CHECK_OK(-pthread_create(&t, NULL, keep_writing, &h));
	until_held();
	follower_say(f, FT_EXPORT_FENCE, NULL, 0);
	usleep(100000);                         /* long enough for an answer that must not come */
	CHECK_EQ(f->fenced, 0);
	hold_writes_at(0);
	FOLLOWER_UNTIL(f, f->fenced);
	then = malloc(DISK);
	forgetful_read(h.fs, IMAGE, then, DISK, 0);
	pthread_join(t, NULL);
	CHECK_EQ(ft_export_zero(h.e, 512, 4096, false), -EROFS);
	CHECK(image_is(&h, then));
	free(then);
	follower_free(f);
	host_free(&h);
}

/* --- who may --- */

TEST(a_parked_disk_is_nobodys_until_it_is_activated)
{
	struct host h, store;
	struct follower *f, *g;
	uint8_t byte;
	int owner;

	host_make(&h);
	CHECK_OK(host_open(&h));
	follower_free(protect(&h));
	host_close(&h);
	store = h;
	CHECK_OK(store.files.open(store.files.ctx, IMAGE, false, &owner));
	CHECK_OK(store.files.lock(store.files.ctx, owner));
	h.cfg.parked = true;
	CHECK_OK(host_open(&h));
	CHECK_EQ(ft_export_size(h.e), DISK);
	CHECK_EQ(put(&h, 1, 512, 0), -EIO);
	CHECK_EQ(ft_export_read(h.e, &byte, 1, 0), -EIO);
	CHECK_OK(ft_export_flush(h.e));
	f = follower_new(h.control, DISK);
	follower_start(f);
	CHECK(f->closed && strstr(f->failed, "takeover"));
	g = follower_new(h.control, DISK);
	CHECK_EQ(follower_activate(g), -EBUSY);         /* the store has not let go of it */
	store.files.close(store.files.ctx, owner);
	CHECK_OK(follower_activate(g));
	CHECK_OK(follower_activate(g));
	follower_ask(g);
	struct ft_disk_id was = g->id;
	CHECK_OK(put(&h, 1, 512, 0));
	follower_ask(g);
	CHECK(g->id.current != was.current);
	CHECK_EQ(g->id.base, was.current);
	follower_free(f);
	follower_free(g);
	host_free(&h);
}

TEST(a_disk_that_was_never_parked_is_not_activated)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = follower_new(h.control, DISK);
	CHECK_EQ(follower_activate(f), -EINVAL);
	follower_free(f);
	host_free(&h);
}

TEST(one_image_has_one_guest)
{
	struct host h;
	struct ft_export *second;

	host_make(&h);
	CHECK_OK(host_open(&h));
	CHECK_EQ(ft_export_open(&h.cfg, &second), -EBUSY);
	CHECK(ft_test_logged("disk " IMAGE " is in use by another guest"));
	host_free(&h);
}

TEST(a_disk_has_one_mirror)
{
	struct host h;
	struct follower *f, *g;

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	g = follower_new(h.control, DISK);
	follower_start(g);
	CHECK(g->closed && strstr(g->failed, "another ft-protect"));
	follower_free(g);
	g = follower_new(h.control, DISK);
	follower_leave(g);
	CHECK(g->closed && !g->lefts);
	CHECK_OK(put(&h, 1, 512, 0));
	follower_catch_up(f);
	CHECK(!f->closed && f->replica[0] == 1);
	follower_free(f);
	follower_free(g);
	g = protect(&h);                        /* once the first has gone */
	follower_free(g);
	host_free(&h);
}

TEST(a_read_only_disk_is_mirrored_and_never_written)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	h.cfg.read_only = true;
	CHECK_OK(host_open(&h));
	f = protect(&h);
	CHECK_EQ(put(&h, 1, 512, 0), -EROFS);
	CHECK_EQ(ft_export_zero(h.e, 512, 0, false), -EROFS);
	CHECK(!f->closed);
	follower_free(f);
	host_free(&h);
}

static int refuse_write(void *ctx, const char *path, bool create, int *h)
{
	return strcmp(path, IMAGE) ? gated_open(ctx, path, create, h) : -EROFS;
}

static int open_to_read(void *ctx, const char *path, int *h)
{
	return gated_open(ctx, path, false, h);
}

TEST(a_read_only_disk_may_lie_where_nobody_can_write)
{
	struct host h;
	uint8_t byte;

	host_make(&h);
	h.files.open = refuse_write;
	h.files.open_read = open_to_read;
	CHECK_EQ(host_open(&h), -EROFS);
	h.cfg.read_only = true;
	CHECK_OK(host_open(&h));
	CHECK_OK(ft_export_read(h.e, &byte, 1, 0));
	host_close(&h);
	h.cfg.parked = true;
	CHECK_OK(host_open(&h));
	host_free(&h);
}

static unsigned lines;

static void count_line(void *ctx, enum ft_log_level level, const char *line)
{
	lines += strstr(line, "at byte") != NULL;
}

TEST(a_guest_that_tries_a_bad_sector_again_and_again_does_not_fill_the_log)
{
	struct host h;
	uint8_t byte;

	host_make(&h);
	CHECK_OK(host_open(&h));
	forgetful_fail_reads(h.fs, EIO);
	ft_log_divert(count_line, NULL);
	for (int i = 0; i < 1000; i++)
		CHECK_EQ(ft_export_read(h.e, &byte, 1, 0), -EIO);
	CHECK(lines >= 1 && lines < 20);
	forgetful_fail_reads(h.fs, 0);
	forgetful_only(h.fs, "disk.img");
	forgetful_fail_at(h.fs, 1, EIO, true);
	lines = 0;
	for (int i = 0; i < 1000; i++)
		CHECK_EQ(put(&h, 1, 512, 0), -EIO);
	CHECK(lines < 20);
	ft_log_divert(NULL, NULL);
	forgetful_fail_at(h.fs, 0, 0, false);
	host_free(&h);
}

TEST(a_disk_without_a_map_is_served_and_not_mirrored)
{
	struct host h;
	struct follower *f;

	host_make(&h);
	h.cfg.map = NULL;
	CHECK_OK(host_open(&h));
	CHECK_OK(put(&h, 1, 512, 0));
	f = follower_new(h.control, DISK);
	follower_ask(f);
	CHECK_EQ(f->id.flags, FT_DISK_FRESH);
	follower_start(f);
	CHECK(f->closed && strstr(f->failed, "map=PATH"));
	follower_free(f);
	host_free(&h);
}

/* --- images that are not what they should be --- */

TEST(images_that_cannot_be_are_refused_by_name)
{
	struct host h;

	host_make(&h);
	h.cfg.image = "/vm/missing.img";
	CHECK_EQ(host_open(&h), -ENOENT);
	CHECK(ft_test_logged("/vm/missing.img: there is no such image"));
	forgetful_put(h.fs, "/vm/odd.img", "123", 3);
	h.cfg.image = "/vm/odd.img";
	CHECK_EQ(host_open(&h), -EINVAL);
	CHECK(ft_test_logged("/vm/odd.img has 3 bytes"));
	host_free(&h);
}

TEST(a_disk_that_has_grown_is_not_the_one_of_its_map)
{
	struct host h;
	int fd;

	host_make(&h);
	CHECK_OK(host_open(&h));
	follower_free(protect(&h));
	host_close(&h);
	h.cfg.parked = true;
	CHECK_OK(host_open(&h));
	CHECK_OK(h.files.open(h.files.ctx, IMAGE, false, &fd));
	CHECK_OK(h.files.truncate(h.files.ctx, fd, DISK + FT_REGION));
	h.files.close(h.files.ctx, fd);
	struct follower *f = follower_new(h.control, DISK);
	CHECK_EQ(follower_activate(f), -ESTALE);
	CHECK(ft_test_logged("restore its size"));
	follower_free(f);
	host_close(&h);
	h.cfg.parked = false;
	CHECK_EQ(host_open(&h), -ESTALE);
	CHECK(ft_test_logged(MAP));
	host_free(&h);
}

TEST(requests_beyond_the_end_are_refused)
{
	struct host h;
	uint8_t buf[512];

	host_make(&h);
	CHECK_OK(host_open(&h));
	CHECK_EQ(ft_export_read(h.e, buf, 512, DISK - 511), -EINVAL);
	CHECK_EQ(ft_export_write(h.e, buf, 512, UINT64_MAX - 100, false), -EINVAL);
	CHECK_EQ(ft_export_zero(h.e, UINT32_MAX, 0, false), -EINVAL);
	CHECK_OK(ft_export_write(h.e, buf, 0, DISK, false));
	CHECK_OK(ft_export_read(h.e, buf, 512, DISK - 512));
	host_free(&h);
}

/* Of a real file: the forgetful ones have no holes. */
TEST(extents_tell_holes_from_data)
{
	struct ft_export_config cfg = { .image = NULL };
	char image[128];
	struct ft_export *e;
	uint64_t len = DISK;
	bool hole;
	int fd;

	snprintf(image, sizeof(image), "%s/disk.img", ft_test_dir());
	fd = open(image, O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, DISK));
	close(fd);
	cfg.image = image;
	CHECK_OK(ft_export_open(&cfg, &e));
	CHECK_OK(ft_export_extent(e, 0, &len, &hole));
	CHECK(hole);
	CHECK_EQ(len, DISK);
	CHECK_OK(ft_export_write(e, "x", 1, FT_GRANULE + 4711, true));
	len = DISK - 512;
	CHECK_OK(ft_export_extent(e, 512, &len, &hole));
	CHECK(hole);
	CHECK_EQ(len, FT_GRANULE - 512);
	len = DISK - FT_GRANULE;
	CHECK_OK(ft_export_extent(e, FT_GRANULE, &len, &hole));
	CHECK(!hole);
	CHECK_EQ(len, FT_GRANULE);
	len = FT_GRANULE / 2;
	CHECK_OK(ft_export_extent(e, DISK - FT_GRANULE / 2, &len, &hole));
	CHECK(hole);
	CHECK_EQ(len, FT_GRANULE / 2);
	CHECK_OK(ft_export_zero(e, FT_GRANULE, FT_GRANULE, false));
	len = DISK;
	CHECK_OK(ft_export_extent(e, 0, &len, &hole));
	CHECK(hole);
	CHECK_EQ(len, DISK);
	ft_export_close(e);
}

/* --- hostile clients: each is dropped, and the mirror of another goes on --- */

TEST(what_makes_no_sense_is_dropped)
{
	static const struct { uint32_t type; uint64_t a, b; size_t len; bool started; } bad[] = {
		{ 999, 0, 0, 0, true },
		{ FT_EXPORT_ASK, 0, 0, 4, false },
		{ FT_EXPORT_START, FT_EXPORT_VERSION, 0, 4, false },            /* without a memfd */
		{ FT_EXPORT_COPY, 0, 0, 4, false },                             /* without START */
		{ FT_EXPORT_DURABLE, 0, 0, 8, false },
		{ FT_EXPORT_DURABLE, UINT64_MAX, 0, 8, true },                  /* what was never sent */
		{ FT_EXPORT_ADD, 0, 0, 9, true },
		{ FT_EXPORT_ADD, 3, 1, 16, true },                              /* beyond the disk */
		{ FT_EXPORT_ADD, UINT64_MAX, 1, 16, true },
		{ FT_EXPORT_COMPARE, 0, 1, 16, true },                          /* a hash is missing */
		{ FT_EXPORT_COMPARE, 3, 0, 16, true },
		{ FT_EXPORT_COMPARE, UINT64_MAX / FT_REGION + 1, 0, 16, true },
		{ FT_EXPORT_COMPARE, 2, 4, 32, true },                          /* a granule beyond the disk */
	};
	struct host h;

	host_make(&h);
	CHECK_OK(host_open(&h));
	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		struct follower *f = follower_new(h.control, DISK);
		uint8_t body[32] = { 0 };

		if (bad[i].started)
			follower_start(f);
		ft_put64(body, bad[i].a);
		ft_put64(body + 8, bad[i].b);
		follower_say(f, bad[i].type, body, bad[i].len);
		FOLLOWER_UNTIL(f, f->closed);
		CHECK_STR(f->failed, "");       /* it was not even tried */
		follower_free(f);
	}
	CHECK(ft_test_logged("makes no sense"));
	follower_free(protect(&h));
	host_free(&h);
}

TEST(a_length_beyond_all_messages_is_dropped)
{
	struct host h;
	struct follower *f;
	uint8_t hdr[8];

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = follower_new(h.control, DISK);
	ft_put32(hdr, FT_EXPORT_ADD);
	ft_put32(hdr + 4, UINT32_MAX);
	CHECK_EQ(send(f->fd, hdr, 8, MSG_NOSIGNAL), 8);
	FOLLOWER_UNTIL(f, f->closed);
	follower_free(f);
	host_free(&h);
}

TEST(idle_clients_make_room)
{
	struct host h;
	struct follower *f, *idle[20];

	host_make(&h);
	CHECK_OK(host_open(&h));
	f = protect(&h);
	for (unsigned i = 0; i < FT_ARRAY_LEN(idle); i++) {
		idle[i] = follower_new(h.control, DISK);
		follower_ask(idle[i]);
		CHECK_EQ(idle[i]->heres, 1);
	}
	CHECK_OK(put(&h, 1, 512, 0));
	follower_catch_up(f);
	CHECK(!f->closed);
	for (unsigned i = 0; i < FT_ARRAY_LEN(idle); i++)
		follower_free(idle[i]);
	follower_free(f);
	host_free(&h);
}
