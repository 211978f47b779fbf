// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/capture.h"
#include "ft/fake.h"
#include "tests/test.h"

#include <pthread.h>
#include <unistd.h>

#define NR_PAGES 1000u
#define CHUNK_BYTES ((size_t)FT_CHUNK_PAGES * FT_PAGE_SIZE)

/* A guest, its staging, and a sink that writes chunks into a replica of RAM. */
struct rig {
	struct ft_fake_guest *guest;
	struct ft_vm *vm;
	struct ft_staging *st;
	struct ft_bitmap dirty;
	struct ft_chunk_sink sink;
	struct ft_blob state;
	struct ft_capture_stats stats;
	uint8_t *replica;
	unsigned chunks, fail_at;       /* 0: never */
	bool keep;                      /* chunks are never given back */
	struct ft_chunk *kept;
	uint32_t batches;
	uint64_t pages;
};

static int sink_chunk(void *ctx, struct ft_chunk *c)
{
	struct rig *r = ctx;

	CHECK(c->nr > 0 && c->nr <= FT_CHUNK_PAGES);
	for (uint32_t i = 0; i < c->nr; i++) {
		CHECK(!i || c->page[i] > c->page[i - 1]);
		memcpy(r->replica + c->page[i] * FT_PAGE_SIZE, c->data + (size_t)i * FT_PAGE_SIZE, FT_PAGE_SIZE);
	}
	r->pages += c->nr;
	r->batches = c->batch + 1;
	if (r->keep) {
		c->next = r->kept;
		r->kept = c;
	} else {
		ft_staging_put(r->st, c);
	}
	return ++r->chunks == r->fail_at ? -EPIPE : 0;
}

static void rig_init(struct rig *r, size_t staging)
{
	struct ft_fake_config cfg = { .nr_pages = NR_PAGES, .seed = 42 };

	*r = (struct rig){ .sink = { .chunk = sink_chunk, .ctx = r } };
	CHECK_OK(ft_fake_guest_new(&cfg, &r->guest));
	CHECK_OK(ft_fake_attach(r->guest, &r->vm));
	CHECK_OK(ft_staging_new(staging, &r->st));
	CHECK_OK(ft_bitmap_init(&r->dirty, NR_PAGES));
	r->replica = calloc(NR_PAGES, FT_PAGE_SIZE);
	memcpy(r->replica, r->vm->ram, (size_t)NR_PAGES * FT_PAGE_SIZE);
	CHECK_OK(r->vm->ops->track(r->vm));
}

static void rig_free(struct rig *r)
{
	while (r->kept) {
		struct ft_chunk *c = r->kept;

		r->kept = c->next;
		ft_staging_put(r->st, c);
	}
	r->vm->ops->close(r->vm);
	ft_fake_guest_free(r->guest);
	ft_staging_free(r->st);
	ft_bitmap_free(&r->dirty);
	ft_blob_free(&r->state);
	free(r->replica);
}

static int epoch(struct rig *r, unsigned timeout_ms)
{
	int rc;

	ft_blob_free(&r->state);
	CHECK_OK(r->vm->ops->pause(r->vm));
	rc = ft_capture_epoch(r->vm, r->st, 1, timeout_ms, &r->dirty, &r->sink, &r->state, &r->stats);
	return rc;
}

static bool same(const struct rig *r)
{
	return !memcmp(r->replica, r->vm->ram, (size_t)NR_PAGES * FT_PAGE_SIZE);
}

TEST(an_epoch_is_the_paused_guest_exactly)
{
	struct rig r;

	rig_init(&r, 0);
	for (unsigned i = 0; i < 200; i++) {
		for (unsigned k = 0; k < i % 7; k++)
			ft_fake_step(r.guest);
		CHECK_OK(epoch(&r, 0));
		CHECK(same(&r));
		CHECK_EQ(ft_bitmap_count(&r.dirty), 0);
		CHECK(r.state.len > 0);
		CHECK_OK(r.vm->ops->resume(r.vm));
	}
	CHECK_EQ(ft_staging_used(r.st), 0);
	rig_free(&r);
}

static int write_while_serialising(void *ctx, enum ft_fake_op op)
{
	struct rig *r = ctx;

	if (op == FT_FAKE_STATE_END)
		for (uint64_t page = 0; page < NR_PAGES; page += 7)
			ft_fake_write(r->guest, page, 100, "late", 4);
	return 0;
}

TEST(what_serialising_writes_comes_as_a_second_batch)
{
	struct rig r;

	rig_init(&r, 0);
	ft_fake_write(r.guest, 7, 0, "early", 5);       /* this one is in both batches */
	ft_fake_on_op(r.guest, write_while_serialising, &r);
	CHECK_OK(epoch(&r, 0));
	CHECK(same(&r));
	CHECK_EQ(r.batches, 2);
	CHECK_EQ(r.stats.dirty_pages, r.pages);
	rig_free(&r);
}

TEST(only_what_was_written_is_copied)
{
	struct rig r;

	rig_init(&r, 0);
	for (uint64_t page = 10; page < 500; page += 3)
		ft_fake_write(r.guest, page, 8, &page, 8);
	CHECK_OK(epoch(&r, 0));
	/* The fake's device models write two pages at most. */
	CHECK(r.stats.dirty_pages >= 164 && r.stats.dirty_pages <= 166);
	CHECK_EQ(r.stats.bytes, r.stats.dirty_pages * FT_PAGE_SIZE);
	rig_free(&r);
}

/* --- the bound --- */

/* A slow encoder: takes what is queued, gives it back after a while. Ends when told. */
struct slow {
	struct rig *rig;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct ft_chunk *queue, **last;
	bool end;
};

static void *slow_encoder(void *arg)
{
	struct slow *s = arg;

	pthread_mutex_lock(&s->lock);
	while (s->queue || !s->end) {
		struct ft_chunk *c = s->queue;

		if (!c) {
			pthread_cond_wait(&s->more, &s->lock);
			continue;
		}
		s->queue = c->next;
		if (!s->queue)
			s->last = &s->queue;
		pthread_mutex_unlock(&s->lock);
		usleep(500);
		sink_chunk(s->rig, c);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

static int queue_chunk(void *ctx, struct ft_chunk *c)
{
	struct slow *s = ctx;

	CHECK(ft_staging_used(s->rig->st) <= ft_staging_bound(s->rig->st));
	pthread_mutex_lock(&s->lock);
	c->next = NULL;
	*s->last = c;
	s->last = &c->next;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

TEST(a_guest_that_dirties_all_of_its_ram_waits_and_keeps_the_bound)
{
	struct slow s = { .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };
	pthread_t thread;
	struct rig r;

	rig_init(&r, 4 * CHUNK_BYTES);
	CHECK_EQ(ft_staging_bound(r.st), 4 * CHUNK_BYTES);
	s.rig = &r;
	s.last = &s.queue;
	r.sink = (struct ft_chunk_sink){ .chunk = queue_chunk, .ctx = &s };
	for (uint64_t page = 0; page < NR_PAGES; page++)
		ft_fake_write(r.guest, page, 0, &page, 8);
	CHECK_EQ(pthread_create(&thread, NULL, slow_encoder, &s), 0);
	CHECK_OK(epoch(&r, 20000));
	pthread_mutex_lock(&s.lock);
	s.end = true;
	pthread_cond_signal(&s.more);
	pthread_mutex_unlock(&s.lock);
	pthread_join(thread, NULL);
	CHECK(same(&r));
	CHECK_EQ(ft_staging_used(r.st), 0);
	rig_free(&r);
}

TEST(an_empty_pool_ends_the_wait_and_loses_no_dirty_page)
{
	struct rig r;

	rig_init(&r, 0);
	r.keep = true;
	for (uint64_t page = 0; page < NR_PAGES; page++)
		ft_fake_write(r.guest, page, 0, &page, 8);
	CHECK_EQ(epoch(&r, 20), -ETIMEDOUT);
	CHECK_EQ(ft_bitmap_count(&r.dirty), NR_PAGES);
	CHECK(!r.state.data);
	rig_free(&r);
}

TEST(a_cancelled_pool_lets_nobody_wait)
{
	struct ft_staging *st;
	struct ft_chunk *c;

	CHECK_OK(ft_staging_new(0, &st));
	ft_staging_cancel(st, true);
	CHECK(!ft_staging_get(st, 50000));
	ft_staging_cancel(st, false);
	c = ft_staging_get(st, 0);
	CHECK(c != NULL);
	ft_staging_put(st, c);
	ft_staging_free(st);
}

/* --- failures --- */

static int fail_op(void *ctx, enum ft_fake_op op)
{
	return op == *(enum ft_fake_op *)ctx ? -EIO : 0;
}

TEST(a_failed_epoch_keeps_every_dirty_page_for_the_next)
{
	static enum ft_fake_op ops[] = { FT_FAKE_STATE_BEGIN, FT_FAKE_STATE_END, FT_FAKE_TAKE_DIRTY };

	for (size_t i = 0; i < FT_ARRAY_LEN(ops); i++) {
		struct rig r;

		rig_init(&r, 0);
		for (unsigned k = 0; k < 50; k++)
			ft_fake_step(r.guest);
		ft_fake_on_op(r.guest, fail_op, &ops[i]);
		CHECK_EQ(epoch(&r, 0), -EIO);
		ft_fake_on_op(r.guest, NULL, NULL);
		/* What the sink got is worth nothing: the epoch was thrown away. */
		memset(r.replica, 0x55, (size_t)NR_PAGES * FT_PAGE_SIZE);
		for (uint64_t page = 0; page < NR_PAGES; page++)
			if (!ft_bitmap_test(&r.dirty, page))
				memcpy(r.replica + page * FT_PAGE_SIZE, r.vm->ram + page * FT_PAGE_SIZE, FT_PAGE_SIZE);
		CHECK_OK(r.vm->ops->resume(r.vm));
		ft_fake_step(r.guest);
		CHECK_OK(epoch(&r, 0));
		CHECK(same(&r));
		rig_free(&r);
	}
}

TEST(a_sink_that_fails_anywhere_keeps_every_dirty_page)
{
	for (unsigned at = 1; at < 20; at++) {
		struct rig r;

		rig_init(&r, 0);
		for (uint64_t page = 0; page < NR_PAGES; page++)
			ft_fake_write(r.guest, page, 0, &page, 8);
		ft_fake_on_op(r.guest, write_while_serialising, &r);
		r.fail_at = at;
		if (epoch(&r, 0) == 0) {
			CHECK(at > r.chunks);
			rig_free(&r);
			break;
		}
		CHECK_EQ(ft_bitmap_count(&r.dirty), NR_PAGES);
		CHECK(!r.state.data);
		CHECK_EQ(ft_staging_used(r.st), 0);
		rig_free(&r);
	}
}

/* --- rounds --- */

TEST(rounds_with_the_guest_running_and_one_epoch_copy_everything)
{
	uint64_t cursor = 0;
	unsigned rounds = 0;
	struct rig r;

	rig_init(&r, 0);
	memset(r.replica, 0xaa, (size_t)NR_PAGES * FT_PAGE_SIZE);
	ft_bitmap_fill(&r.dirty);
	while (cursor < NR_PAGES) {
		ft_fake_step(r.guest);
		CHECK_OK(ft_capture_round(r.vm, r.st, 1, 0, 0, &r.dirty, &cursor, 100, &r.sink));
		rounds++;
	}
	CHECK_EQ(rounds, 10);
	CHECK_EQ(ft_bitmap_count(&r.dirty), 0);
	CHECK_OK(epoch(&r, 0));
	CHECK(same(&r));
	rig_free(&r);
}

TEST(a_round_goes_on_where_staging_ended_it)
{
	uint64_t cursor = 0;
	struct rig r;

	rig_init(&r, 4 * CHUNK_BYTES);
	r.keep = true;
	ft_bitmap_fill(&r.dirty);
	CHECK_OK(ft_capture_round(r.vm, r.st, 1, 0, 0, &r.dirty, &cursor, UINT64_MAX, &r.sink));
	CHECK_EQ(cursor, 4 * FT_CHUNK_PAGES);
	CHECK_EQ(ft_bitmap_count(&r.dirty), NR_PAGES - 4 * FT_CHUNK_PAGES);
	CHECK_EQ(ft_capture_round(r.vm, r.st, 1, 0, 0, &r.dirty, &cursor, UINT64_MAX, &r.sink), -ETIMEDOUT);
	rig_free(&r);
}

TEST(a_round_whose_sink_fails_keeps_the_pages)
{
	uint64_t cursor = 0;
	struct rig r;

	rig_init(&r, 0);
	ft_bitmap_fill(&r.dirty);
	r.fail_at = 3;
	CHECK_EQ(ft_capture_round(r.vm, r.st, 1, 0, 0, &r.dirty, &cursor, UINT64_MAX, &r.sink), -EPIPE);
	CHECK_EQ(ft_bitmap_count(&r.dirty), NR_PAGES - 2 * FT_CHUNK_PAGES);
	CHECK_EQ(cursor, 2 * FT_CHUNK_PAGES);
	rig_free(&r);
}
