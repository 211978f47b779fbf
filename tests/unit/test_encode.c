// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/disk.h"
#include "ft/encode.h"
#include "ft/fake.h"
#include "ft/image.h"
#include "ft/wire.h"
#include "tests/test.h"

#include <pthread.h>
#include <unistd.h>

#define NR_PAGES 2000u
#define CHUNK_BYTES ((size_t)FT_CHUNK_PAGES * FT_PAGE_SIZE)

/* A guest, its encoder, and an image at the other end that checks every record as it comes. */
struct rig {
	struct ft_fake_config cfg;
	struct ft_fake_guest *guest;
	struct ft_vm *vm;
	struct ft_staging *st;
	struct ft_encoder *en;
	struct ft_bitmap dirty;
	struct ft_replica *replica;
	struct ft_image *im;
	uint64_t epoch, base;
	uint64_t digest[512];           /* of the guest at each epoch */

	pthread_mutex_t lock;
	pthread_cond_t moved;
	uint64_t done;                  /* newest whole epoch at the other end */
	bool disks;
	bool stuck, down;               /* emit blocks; emit fails */
	unsigned fail_after;            /* records until the link goes down; 0: never */
	uint64_t records, emitters, nowait, epochs_done;
	uint64_t disks_given, disks_of, disks_seen;     /* DISK bodies of an epoch: its number modulo 4 */
	unsigned refuse;                /* emit_nowait says -EAGAIN each so many records; 0: never */
	pthread_t caller;
};

static int receive(struct rig *r, uint32_t type, const void *body, size_t len)
{
	struct ft_wire_epoch_begin b;
	int rc;

	CHECK_OK(ft_wire_check(type, len, true));
	switch (type) {
	case FT_REC_EPOCH_BEGIN:
		r->disks_seen = 0;
		CHECK_OK(ft_wire_unpack_epoch_begin(body, len, &b));
		return ft_image_begin(r->im, b.epoch, b.base, b.flags);
	case FT_REC_PAGES:
		return ft_image_pages(r->im, body, len);
	case FT_REC_DISK:
		r->disks_seen++;
		return ft_image_disk(r->im, body, len);
	case FT_REC_STATE:
		return ft_image_state(r->im, body, len);
	}
	rc = ft_image_end(r->im, body, len);
	if (r->disks)
		CHECK_EQ(r->disks_seen, ft_image_whole_epoch(r->im) % 4);
	ft_image_commit(r->im);
	CHECK(ft_fake_replica_digest(r->replica, ft_image_applied_state(r->im)) == r->digest[ft_image_applied_epoch(r->im) % 512]);
	return rc;
}

static int emit(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct rig *r = ctx;

	CHECK_EQ(__atomic_add_fetch(&r->emitters, 1, __ATOMIC_RELAXED), 1);     /* one at a time */
	pthread_mutex_lock(&r->lock);
	while (r->stuck && !r->down)
		pthread_cond_wait(&r->moved, &r->lock);
	r->records++;
	if (r->fail_after && !--r->fail_after)
		r->down = true;
	if (!r->down) {
		int rc = receive(r, type, body, len);

		if (rc)
			ft_test_fail(__FILE__, __LINE__, "%s refused: %s", ft_wire_name(type), strerror(-rc));
		r->done = ft_image_whole_epoch(r->im);
		pthread_cond_broadcast(&r->moved);
	}
	bool down = r->down;

	pthread_mutex_unlock(&r->lock);
	__atomic_sub_fetch(&r->emitters, 1, __ATOMIC_RELAXED);
	return down ? -EPIPE : 0;
}

static int emit_nowait(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct rig *r = ctx;

	CHECK(pthread_equal(pthread_self(), r->caller));
	r->nowait++;
	if (r->refuse && r->nowait % r->refuse == 0)
		return -EAGAIN;
	return emit(ctx, type, body, len);
}

static int give_disks(void *ctx, uint64_t upto, uint8_t *body, size_t *len)
{
	struct rig *r = ctx;

	if (r->disks_of != upto)
		r->disks_given = 0;
	r->disks_of = upto;
	if (r->disks_given == upto % 4)
		return 0;
	r->disks_given++;
	memset(body, (int)upto, FT_DISK_BATCH_HDR + 100);
	*len = FT_DISK_BATCH_HDR + 100;
	return 1;
}

static void epoch_done(void *ctx, uint64_t epoch, const struct ft_codec_stats *st)
{
	struct rig *r = ctx;

	CHECK_EQ(st->pages, st->unchanged + st->zero + st->delta + st->whole);
	__atomic_add_fetch(&r->epochs_done, 1, __ATOMIC_RELAXED);
}

struct opts {
	unsigned threads;
	size_t staging;
	bool nowait, no_shadow, disks;
	unsigned refuse;
};

static void rig_init(struct rig *r, const struct opts *o)
{
	struct ft_encoder_config ecfg = {
		.threads = o->threads, .nr_pages = NR_PAGES, .shadow = !o->no_shadow, .emit = emit,
		.emit_nowait = o->nowait ? emit_nowait : NULL, .epoch_done = epoch_done, .ctx = r,
		.disks = o->disks ? give_disks : NULL,
	};
	struct ft_image_config icfg = {
		.nr_pages = NR_PAGES, .staging_bound = 64 << 20, .spill_dir = ft_test_dir(), .state_max = 4096,
	};

	memset(r, 0, sizeof(*r));
	r->cfg = (struct ft_fake_config){ .nr_pages = NR_PAGES, .seed = 3 };
	r->caller = pthread_self();
	r->refuse = o->refuse;
	r->disks = o->disks;
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->moved, NULL);
	CHECK_OK(ft_fake_guest_new(&r->cfg, &r->guest));
	CHECK_OK(ft_fake_attach(r->guest, &r->vm));
	CHECK_OK(ft_staging_new(o->staging ? o->staging : 8 << 20, &r->st));
	ecfg.staging = r->st;
	CHECK_OK(ft_encoder_new(&ecfg, &r->en));
	CHECK_OK(ft_bitmap_init(&r->dirty, NR_PAGES));
	CHECK_OK(ft_fake_replica_prepare(&r->cfg, &r->replica));
	icfg.ram = r->replica->ram;
	CHECK_OK(ft_image_new(&icfg, &r->im));
	CHECK_OK(r->vm->ops->track(r->vm));
}

static void rig_free(struct rig *r)
{
	ft_encoder_free(r->en);
	CHECK_EQ(ft_staging_used(r->st), 0);    /* every chunk came back */
	ft_staging_free(r->st);
	ft_image_free(r->im);
	r->replica->ops->destroy(r->replica);
	ft_bitmap_free(&r->dirty);
	r->vm->ops->close(r->vm);
	ft_fake_guest_free(r->guest);
}

/* The guest runs @steps, then the next epoch is captured and queued. */
static int run_epoch(struct rig *r, unsigned steps)
{
	struct ft_chunk_sink sink = { .chunk = ft_encoder_chunk, .ctx = r->en };
	struct ft_capture_stats stats;
	struct ft_blob state;
	int rc;

	while (steps--)
		ft_fake_step(r->guest);
	if (!r->base)
		ft_bitmap_fill(&r->dirty);
	CHECK_OK(r->vm->ops->pause(r->vm));
	rc = ft_encoder_begin(r->en, r->epoch + 1, r->base, r->base ? 0 : FT_EPOCH_FULL);
	if (!rc)
		rc = ft_capture_epoch(r->vm, r->st, r->epoch + 1, 10000, &r->dirty, &sink, &state, &stats);
	if (!rc && r->disks)
		rc = ft_encoder_disks(r->en, r->epoch + 1);
	if (!rc) {
		/* The other end may look at this as soon as the end is queued. */
		pthread_mutex_lock(&r->lock);
		r->digest[(r->epoch + 1) % 512] = ft_fake_digest(r->guest);
		pthread_mutex_unlock(&r->lock);
		rc = ft_encoder_end(r->en, &state);
	}
	CHECK_OK(r->vm->ops->resume(r->vm));
	if (!rc)
		r->base = ++r->epoch;
	return rc;
}

static void wait_done(struct rig *r, uint64_t epoch)
{
	pthread_mutex_lock(&r->lock);
	while (r->done < epoch)
		pthread_cond_wait(&r->moved, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

static void many_epochs(const struct opts *o, unsigned nr)
{
	struct ft_codec_stats st;
	struct rig r;

	rig_init(&r, o);
	for (unsigned i = 0; i < nr; i++) {
		/* Now small epochs one by one, now large ones that pile up. */
		CHECK_OK(run_epoch(&r, i % 50 < 30 ? i % 3 : 300));
		if (i % 50 < 30)
			wait_done(&r, r.epoch);
	}
	wait_done(&r, nr);
	ft_encoder_reset(r.en);
	CHECK_EQ(r.epochs_done, nr);
	ft_encoder_get_stats(r.en, &st);
	CHECK(st.pages > NR_PAGES);
	CHECK_EQ(st.pages, st.unchanged + st.zero + st.delta + st.whole);
	CHECK_EQ(st.delta != 0, !o->no_shadow);
	if (o->nowait && o->threads)
		CHECK(r.nowait > 0);
	rig_free(&r);
}

TEST(every_epoch_arrives_whole_and_in_order_without_threads)
{
	many_epochs(&(struct opts){ .threads = 0 }, 200);
}

TEST(every_epoch_arrives_whole_and_in_order_with_one_thread)
{
	many_epochs(&(struct opts){ .threads = 1 }, 200);
}

TEST(every_epoch_arrives_whole_and_in_order_with_four_threads)
{
	many_epochs(&(struct opts){ .threads = 4 }, 200);
}

TEST(the_caller_may_send_the_last_records_itself)
{
	many_epochs(&(struct opts){ .threads = 4, .nowait = true }, 200);
}

TEST(what_the_caller_cannot_send_at_once_a_worker_sends)
{
	for (unsigned refuse = 1; refuse < 6; refuse++)
		many_epochs(&(struct opts){ .threads = 2, .nowait = true, .refuse = refuse }, 60);
}

TEST(disk_records_leave_in_their_epoch_and_are_summed)
{
	many_epochs(&(struct opts){ .threads = 0, .disks = true }, 60);
	many_epochs(&(struct opts){ .threads = 4, .nowait = true, .disks = true }, 200);
}

TEST(without_a_shadow_nothing_is_a_delta)
{
	many_epochs(&(struct opts){ .threads = 2, .no_shadow = true }, 60);
}

TEST(a_small_pool_only_makes_capture_wait)
{
	many_epochs(&(struct opts){ .threads = 4, .staging = 4 * CHUNK_BYTES }, 60);
}

/* --- the same page again and again: batches must not overtake each other --- */

static int write_again(void *ctx, enum ft_fake_op op)
{
	struct rig *r = ctx;

	if (op == FT_FAKE_STATE_END)
		for (uint64_t page = 0; page < 400; page++) {
			uint64_t word = r->epoch * 1000 + page;

			ft_fake_write(r->guest, page, page % 500 * 8, &word, 8);
		}
	return 0;
}

TEST(pages_of_both_batches_and_of_every_epoch_end_as_the_last_version)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .threads = 4, .nowait = true });
	ft_fake_on_op(r.guest, write_again, &r);
	for (unsigned i = 0; i < 60; i++) {
		for (uint64_t page = 0; page < 400; page++)
			ft_fake_write(r.guest, page, i * 8, &page, 8);
		CHECK_OK(run_epoch(&r, 1));
	}
	wait_done(&r, 60);
	rig_free(&r);
}

/* --- back-pressure --- */

TEST(a_stuck_link_stops_capture_and_no_memory_grows)
{
	struct rig r;
	struct ft_chunk_sink sink;
	struct ft_capture_stats stats;
	struct ft_blob state;

	rig_init(&r, &(struct opts){ .threads = 2, .staging = 4 * CHUNK_BYTES });
	CHECK_OK(run_epoch(&r, 1));
	wait_done(&r, 1);
	r.stuck = true;
	for (uint64_t page = 0; page < NR_PAGES; page++)
		ft_fake_write(r.guest, page, 0, &page, 8);
	sink = (struct ft_chunk_sink){ .chunk = ft_encoder_chunk, .ctx = r.en };
	CHECK_OK(r.vm->ops->pause(r.vm));
	CHECK_OK(ft_encoder_begin(r.en, 2, 1, 0));
	CHECK_EQ(ft_capture_epoch(r.vm, r.st, 2, 50, &r.dirty, &sink, &state, &stats), -ETIMEDOUT);
	CHECK_EQ(ft_bitmap_count(&r.dirty), NR_PAGES);
	CHECK_EQ(ft_staging_used(r.st), 4 * CHUNK_BYTES);
	pthread_mutex_lock(&r.lock);
	r.stuck = false;
	pthread_cond_broadcast(&r.moved);
	pthread_mutex_unlock(&r.lock);
	rig_free(&r);
}

TEST(a_link_that_was_stuck_loses_nothing)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .threads = 2, .nowait = false });
	CHECK_OK(run_epoch(&r, 1));
	wait_done(&r, 1);
	pthread_mutex_lock(&r.lock);
	r.stuck = true;
	pthread_mutex_unlock(&r.lock);
	for (unsigned i = 0; i < 8; i++)
		CHECK_OK(run_epoch(&r, 5));
	pthread_mutex_lock(&r.lock);
	CHECK_EQ(r.done, 1);
	r.stuck = false;
	pthread_cond_broadcast(&r.moved);
	pthread_mutex_unlock(&r.lock);
	wait_done(&r, 9);
	rig_free(&r);
}

TEST(too_many_queued_epochs_are_refused)
{
	struct rig r;
	int rc = 0;

	rig_init(&r, &(struct opts){ .threads = 1, .staging = 64 << 20 });
	pthread_mutex_lock(&r.lock);
	r.stuck = true;
	pthread_mutex_unlock(&r.lock);
	while (!rc && r.epoch < 200)
		rc = run_epoch(&r, 0);
	CHECK_EQ(rc, -EBUSY);
	pthread_mutex_lock(&r.lock);
	r.stuck = false;
	pthread_cond_broadcast(&r.moved);
	pthread_mutex_unlock(&r.lock);
	wait_done(&r, r.epoch);
	CHECK_OK(run_epoch(&r, 1));
	wait_done(&r, r.epoch);
	rig_free(&r);
}

/* --- the link goes down, and comes back --- */

static void new_session(struct rig *r)
{
	ft_encoder_reset(r->en);
	CHECK_EQ(ft_staging_used(r->st), 0);
	ft_image_reset(r->im);
	r->down = r->stuck = false;
	r->fail_after = 0;
	r->base = 0;
	r->done = 0;
}

TEST_TIMEOUT(reset_after_a_link_failure_at_any_record, 120)
{
	for (unsigned threads = 0; threads <= 4; threads += 2) {
		struct rig r;

		rig_init(&r, &(struct opts){ .threads = threads, .nowait = true });
		for (unsigned at = 1; at < 60; at++) {
			int rc = 0;

			r.fail_after = at;
			for (unsigned i = 0; i < 40 && !rc; i++)
				rc = run_epoch(&r, 20);
			CHECK(rc == 0 || rc == -EPIPE);
			new_session(&r);
			CHECK_OK(run_epoch(&r, 1));
			CHECK_OK(run_epoch(&r, 1));
			wait_done(&r, r.epoch);
			new_session(&r);
		}
		rig_free(&r);
	}
}

struct breaker {
	struct rig *r;
	unsigned after_us;
};

static void *break_link(void *arg)
{
	struct breaker *b = arg;

	usleep(b->after_us);
	pthread_mutex_lock(&b->r->lock);
	b->r->down = true;
	pthread_cond_broadcast(&b->r->moved);
	pthread_mutex_unlock(&b->r->lock);
	return NULL;
}

TEST_TIMEOUT(reset_at_a_random_instant, 120)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .threads = 3, .nowait = true });
	for (unsigned round = 0; round < 60; round++) {
		struct breaker b = { .r = &r, .after_us = round * 97 % 5000 };
		pthread_t thread;
		int rc = 0;

		CHECK_EQ(pthread_create(&thread, NULL, break_link, &b), 0);
		for (unsigned i = 0; i < 30 && !rc; i++)
			rc = run_epoch(&r, round % 30);
		pthread_join(thread, NULL);
		new_session(&r);
		CHECK_OK(run_epoch(&r, 1));
		wait_done(&r, r.epoch);
		new_session(&r);
	}
	rig_free(&r);
}

TEST(a_state_larger_than_a_record_is_refused)
{
	struct ft_blob state = { .data = calloc(1, FT_WIRE_STATE_MAX + 1), .len = FT_WIRE_STATE_MAX + 1 };
	struct rig r;

	rig_init(&r, &(struct opts){ .threads = 1 });
	CHECK_OK(ft_encoder_begin(r.en, 1, 0, FT_EPOCH_FULL));
	CHECK_EQ(ft_encoder_end(r.en, &state), -EMSGSIZE);
	CHECK(!state.data);
	rig_free(&r);
}
