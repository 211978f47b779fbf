// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * The disk mirror against exports of the test's own (tests/lib/fake_export.h), and against the real one. At the other end: a
 * backup in a few lines, which stages epochs and applies whole ones, as store.h does.
 */
#include "ft/export.h"

#include "diskmirror/map_priv.h"
#include "ft/image.h"
#include "ft/map.h"
#include "ft/mirror.h"
#include "tests/lib/fake_export.h"
#include "tests/test.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

#define MIB (1u << 20)
#define DISK_BYTES (24u * MIB + 5u * 4096)      /* ends in the middle of a granule */
#define SMALL (6u * MIB + 5u * 4096)            /* where much is written at the same places, and compared often */

struct staged {
	struct staged *next;
	uint8_t *body;
	size_t len;
};

struct rig {
	unsigned nr;
	struct fake_export x[2];
	char control[2][128];
	bool real;
	struct ft_export *e[2];
	char image[2][128], map[2][128];
	uint64_t bytes;

	struct ft_mirror *m;
	struct ft_mirror_config cfg;
	bool wakes;
	unsigned broken;
	char why[512];

	/* The backup: what it has applied, and what of the epoch has come. */
	uint8_t *replica[2], *snap[2], *raw, *body;
	struct staged *staged, **staged_end;
	uint64_t last_seq[2], whole_seq[2], applied, marks;
	uint64_t epoch, asked;

	/* Writers. A seal has the lock for writing. */
	pthread_rwlock_t guest;
	pthread_t writer[8];
	unsigned nr_writers;
	atomic_bool stop;
	atomic_ullong writes;
	unsigned most;                  /* bytes of a write */
};

struct opts {
	unsigned disks;
	size_t memory;
	uint64_t file, rate;
	uint64_t bytes;                 /* of a disk; 0: DISK_BYTES */
	bool real;
	const struct ft_disk_files *files;      /* for images of dead exports */
};

static void on_wake(void *ctx)
{
	((struct rig *)ctx)->wakes = true;
}

static void on_broken(void *ctx, const char *why)
{
	struct rig *r = ctx;

	r->broken++;
	snprintf(r->why, sizeof(r->why), "%s", why);
}

static void start_disk(struct rig *r, unsigned i)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/disk%u.ctl", ft_test_dir(), i);
	snprintf(r->control[i], sizeof(r->control[i]), "%s", path);
	if (!r->real) {
		fake_export_init(&r->x[i], path, r->bytes, i + 1);
		fake_export_start(&r->x[i]);
		return;
	}
	snprintf(r->image[i], sizeof(r->image[i]), "%s/disk%u.img", ft_test_dir(), i);
	snprintf(r->map[i], sizeof(r->map[i]), "%s/disk%u.map", ft_test_dir(), i);
	FILE *f = fopen(r->image[i], "w");
	CHECK(f && !ftruncate(fileno(f), (off_t)r->bytes) && !fclose(f));
	struct ft_export_config cfg = { .image = r->image[i], .map = r->map[i], .control = r->control[i] };
	CHECK_OK(ft_export_open(&cfg, &r->e[i]));
	CHECK_OK(ft_export_start(r->e[i]));
}

static void rig_init(struct rig *r, const struct opts *o)
{
	memset(r, 0, sizeof(*r));
	r->nr = o->disks ? o->disks : 2;
	r->real = o->real;
	r->bytes = o->bytes ? o->bytes : DISK_BYTES;
	r->most = 32 << 10;
	r->staged_end = &r->staged;
	r->raw = malloc(FT_DISK_BATCH_MAX);
	r->body = malloc(FT_DISK_BODY_MAX);
	pthread_rwlockattr_t attr;
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&r->guest, &attr);
	r->cfg = (struct ft_mirror_config){
		.guest = "web", .nr_disks = r->nr, .memory_bound = o->memory ? o->memory : 64 * MIB,
		.file_bound = o->file ? o->file : 1024ull * MIB, .spill_dir = ft_test_dir(), .rate_limit = o->rate,
		.files = o->files,
	};
	for (unsigned i = 0; i < r->nr; i++) {
		start_disk(r, i);
		r->cfg.control[i] = r->control[i];
		r->cfg.image[i] = o->files ? i ? "/images/b" : "/images/a" : r->real ? r->image[i] : NULL;
		r->cfg.map[i] = r->real ? r->map[i] : NULL;
		r->replica[i] = calloc(1, r->bytes);
		r->snap[i] = malloc(r->bytes);
		CHECK(r->replica[i] && r->snap[i]);
	}
	CHECK_OK(ft_mirror_new(&r->cfg, &r->m));
	r->m->wake = on_wake;
	r->m->broken = on_broken;
	r->m->ctx = r;
}

static void drop_staged(struct rig *r)
{
	while (r->staged) {
		struct staged *s = r->staged;

		r->staged = s->next;
		free(s->body);
		free(s);
	}
	r->staged_end = &r->staged;
	memcpy(r->last_seq, r->whole_seq, sizeof(r->last_seq));
}

static void writers_stop(struct rig *r)
{
	r->stop = true;
	for (unsigned i = 0; i < r->nr_writers; i++)
		pthread_join(r->writer[i], NULL);
	r->nr_writers = 0;
}

static void rig_free(struct rig *r)
{
	writers_stop(r);
	r->m->ops->free(r->m);
	drop_staged(r);
	for (unsigned i = 0; i < r->nr; i++) {
		if (r->real)
			ft_export_close(r->e[i]);
		else
			fake_export_free(&r->x[i]);
		free(r->replica[i]);
		free(r->snap[i]);
	}
	free(r->raw);
	free(r->body);
}

/* One turn of the owner's loop: at most @ms for something to happen. */
static bool turn(struct rig *r, int ms)
{
	struct pollfd p = { .fd = ft_mirror_event_fd(r->m), .events = POLLIN };

	if (poll(&p, 1, ms) <= 0)
		return false;
	ft_mirror_event(r->m);
	return true;
}

#define UNTIL(r, cond) \
	do { uint64_t end_ = ft_now_ns() + 20 * FT_S_NS; \
	     while (!(cond)) { if (ft_now_ns() > end_) ft_test_fail(__FILE__, __LINE__, "never: %s", #cond); turn(r, 10); } } while (0)

/* --- the guest --- */

static void disk_write(struct rig *r, unsigned i, const void *data, uint32_t len, uint64_t at)
{
	if (r->real)
		CHECK_OK(ft_export_write(r->e[i], data, len, at, false));
	else
		fake_export_write(&r->x[i], data, len, at);
}

static void disk_zero(struct rig *r, unsigned i, uint32_t len, uint64_t at)
{
	if (r->real)
		CHECK_OK(ft_export_zero(r->e[i], len, at, false));
	else
		fake_export_zero(&r->x[i], len, at);
}

/* The disk as it is: the guest is stopped. */
static void disk_image(struct rig *r, unsigned i, uint8_t *out)
{
	if (!r->real)
		memcpy(out, r->x[i].image, r->bytes);
	else
		for (uint64_t at = 0; at < r->bytes; at += 4096)
			CHECK_OK(ft_export_read(r->e[i], out + at, 4096, at));
}

static uint64_t rnd(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static void write_some(struct rig *r, uint64_t *seed, uint8_t *buf)
{
	unsigned i = (unsigned)(rnd(seed) % r->nr);
	uint32_t len = 512 * (1 + (uint32_t)(rnd(seed) % (r->most / 512)));
	uint64_t at = rnd(seed) % ((r->bytes - len) / 512) * 512;

	if (rnd(seed) % 8 == 0) {
		disk_zero(r, i, len, at);
	} else {
		memset(buf, (int)rnd(seed), len);
		for (uint32_t k = 0; k < len; k += 64)
			ft_put64(buf + k, rnd(seed));
		disk_write(r, i, buf, len, at);
	}
	r->writes++;
}

static void *writer_main(void *ctx)
{
	static _Thread_local uint8_t buf[FT_DISK_OP_DATA_MAX];
	static atomic_uint nr;
	struct rig *r = ctx;
	uint64_t seed = 88172645463325252ull + ++nr;

	while (!r->stop) {
		pthread_rwlock_rdlock(&r->guest);
		write_some(r, &seed, buf);
		pthread_rwlock_unlock(&r->guest);
		sched_yield();
	}
	return NULL;
}

static void writers_start(struct rig *r, unsigned nr)
{
	r->stop = false;
	r->nr_writers = nr;
	for (unsigned i = 0; i < nr; i++)
		CHECK_EQ(pthread_create(&r->writer[i], NULL, writer_main, r), 0);
}

/* --- the backup --- */

static void apply(struct rig *r, const uint8_t *body, size_t len)
{
	struct ft_disk_op op;
	uint32_t disk, nr;
	size_t raw_len;

	CHECK_OK(ft_disk_unpack_batch(body, len, &disk, r->raw, &raw_len, &nr));
	CHECK(disk < r->nr);
	for (size_t at = 0; at < raw_len; nr--) {
		CHECK(nr > 0);
		CHECK_OK(ft_disk_unpack_op(r->raw + at, r->bytes, &op));
		at += FT_DISK_OP_LEN;
		CHECK(!r->last_seq[disk] || op.seq == r->last_seq[disk] + 1);
		r->last_seq[disk] = op.seq;
		if (op.op == FT_DISK_WRITE) {
			memcpy(r->replica[disk] + op.offset, r->raw + at, op.len);
			at += op.len;
		} else if (op.op == FT_DISK_ZERO) {
			memset(r->replica[disk] + op.offset, 0, op.len);
		} else {
			r->marks++;
		}
		r->applied++;
	}
	CHECK_EQ(nr, 0);
}

static int take_one(struct rig *r, uint64_t upto)
{
	size_t len;
	int rc;

	do
		rc = r->m->ops->next(r->m, upto, r->body, &len);
	while (rc == -EAGAIN);
	if (rc != 1)
		return rc;
	struct staged *s = calloc(1, sizeof(*s));
	CHECK(s && len <= FT_DISK_BODY_MAX);
	s->body = malloc(len);          /* exactly: sanitizers see who reads on */
	s->len = len;
	memcpy(s->body, r->body, len);
	*r->staged_end = s;
	r->staged_end = &s->next;
	return 1;
}

static void apply_staged(struct rig *r)
{
	for (struct staged *s = r->staged; s; s = s->next)
		apply(r, s->body, s->len);
	memcpy(r->whole_seq, r->last_seq, sizeof(r->last_seq));
	drop_staged(r);
}

static void answer_hashes(struct rig *r, unsigned disk, uint64_t region, uint64_t granules)
{
	uint8_t hash[FT_REGION_GRANULES * FT_HASH_LEN];
	size_t nr = 0;

	for (unsigned i = 0; i < FT_REGION_GRANULES; i++) {
		uint64_t at = region * FT_REGION + i * (uint64_t)FT_GRANULE;

		if (granules >> i & 1)
			ft_disk_hash(r->replica[disk] + at, r->bytes - at < FT_GRANULE ? r->bytes - at : FT_GRANULE,
				     hash + FT_HASH_LEN * nr++);
	}
	CHECK_OK(r->m->ops->hashes(r->m, disk, region, granules, hash, nr));
}

/* A new session up to the point where all is compared: ops go to the replica at once. */
static void copy_begins(struct rig *r, bool all)
{
	bool which[2] = { all, all };
	struct ft_disk_id id;

	drop_staged(r);
	memset(r->last_seq, 0, sizeof(r->last_seq));
	CHECK_OK(r->m->output.ops->setup(&r->m->output));
	for (unsigned i = 0; i < r->nr; i++) {
		r->m->ops->describe(r->m, i, &id);
		CHECK_EQ(id.bytes, r->bytes);
	}
	CHECK_OK(r->m->ops->copy(r->m, which));
}

static void copy_runs(struct rig *r)
{
	uint64_t region, granules, end = ft_now_ns() + 40 * FT_S_NS;
	unsigned disk;
	int rc;

	while (!r->m->ops->copied(r->m)) {
		CHECK(ft_now_ns() < end && !r->broken);
		while (r->m->ops->ask(r->m, &disk, &region, &granules)) {
			r->asked += (uint64_t)__builtin_popcountll(granules);
			answer_hashes(r, disk, region, granules);
		}
		while ((rc = take_one(r, 0)) == 1)
			;
		CHECK_EQ(rc, 0);
		apply_staged(r);
		turn(r, 20);
	}
}

/* --- epochs --- */

static void seal(struct rig *r)
{
	pthread_rwlock_wrlock(&r->guest);
	CHECK_OK(r->m->output.ops->seal(&r->m->output, ++r->epoch));
	for (unsigned i = 0; i < r->nr; i++)
		disk_image(r, i, r->snap[i]);
	pthread_rwlock_unlock(&r->guest);
}

static void take_all(struct rig *r)
{
	int rc;

	while ((rc = take_one(r, r->epoch)) == 1)
		;
	CHECK_EQ(rc, 0);
	CHECK(!r->m->ops->pending(r->m, r->epoch));
}

static void check_replica(struct rig *r)
{
	for (unsigned i = 0; i < r->nr; i++)
		for (uint64_t at = 0; at < r->bytes; at += 4096)
			if (memcmp(r->replica[i] + at, r->snap[i] + at, 4096))
				ft_test_fail(__FILE__, __LINE__, "epoch %llu: disk %u differs at %llu", (unsigned long long)r->epoch, i,
					     (unsigned long long)at);
}

static void commit(struct rig *r)
{
	CHECK_OK(r->m->output.ops->commit(&r->m->output, r->epoch));
}

static void one_epoch(struct rig *r)
{
	seal(r);
	take_all(r);
	apply_staged(r);
	check_replica(r);
	commit(r);
}

static void session(struct rig *r, bool all)
{
	copy_begins(r, all);
	copy_runs(r);
	CHECK(!r->m->ops->resumable(r->m));
	one_epoch(r);
	CHECK(r->m->ops->resumable(r->m));
	r->m->ops->adopted(r->m);
	r->m->ops->protect(r->m, true);
}

static struct ft_mirror_status status(struct rig *r, unsigned disk)
{
	struct ft_mirror_status st;

	r->m->ops->status(r->m, disk, &st);
	return st;
}

static uint64_t written(struct rig *r)
{
	return r->writes;
}

static void write_n(struct rig *r, unsigned n, uint32_t len)
{
	static uint8_t buf[FT_DISK_OP_DATA_MAX];
	static uint64_t seed = 4711;

	for (unsigned i = 0; i < n; i++) {
		for (uint32_t k = 0; k < len; k += 8)
			ft_put64(buf + k, rnd(&seed));
		disk_write(r, i % r->nr, buf, len, i / r->nr * (uint64_t)len % (r->bytes - len));
	}
}

static bool told(struct fake_export *x, const bool *flag, bool value)
{
	bool yes;

	pthread_mutex_lock(&x->lock);
	yes = *flag == value;
	pthread_mutex_unlock(&x->lock);
	return yes;
}

static int tear_down(struct rig *r)
{
	int rc;

	UNTIL(r, (rc = r->m->output.ops->teardown(&r->m->output)) != -EINPROGRESS);
	return rc;
}

/* --- the promise: at each epoch the replica is the disk of the seal --- */

static void torture(const struct opts *o, unsigned epochs)
{
	struct rig r;

	rig_init(&r, o);
	writers_start(&r, 3);
	UNTIL(&r, written(&r) > 50);
	session(&r, true);
	for (unsigned i = 0; i < epochs; i++) {
		uint64_t before = written(&r);

		UNTIL(&r, written(&r) > before + 20);
		one_epoch(&r);
	}
	writers_stop(&r);
	one_epoch(&r);
	for (unsigned i = 0; i < r.nr; i++) {
		CHECK_EQ(status(&r, i).behind, 0);
		CHECK_EQ(status(&r, i).pending, 0);
		CHECK_EQ(status(&r, i).log_bytes, 0);
		CHECK(status(&r, i).mirrored > 0);
	}
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

TEST_TIMEOUT(at_each_epoch_the_replica_is_the_disk_of_the_seal, 180)
{
	torture(&(struct opts){ .bytes = SMALL }, 40);
}

TEST_TIMEOUT(so_it_is_with_the_real_export, 180)
{
	torture(&(struct opts){ .bytes = SMALL, .real = true }, 40);
}

TEST_TIMEOUT(so_it_is_through_the_file, 180)
{
	torture(&(struct opts){ .bytes = SMALL, .memory = 1 }, 40);
}

/* Half an epoch sent, the session resumed at an epoch between the newest committed and the newest sealed. */
static void rewinds(const struct opts *o)
{
	struct rig r;
	uint64_t seed = 99;

	rig_init(&r, o);
	writers_start(&r, 3);
	session(&r, true);
	for (unsigned n = 0; n < 30; n++) {
		unsigned whole = (unsigned)(rnd(&seed) % 4), more = (unsigned)(rnd(&seed) % 3);
		uint64_t before = written(&r);

		for (unsigned i = 0; i < whole; i++) {          /* whole over there, but nobody told us */
			seal(&r);
			take_all(&r);
			apply_staged(&r);
			check_replica(&r);
		}
		uint64_t at = r.epoch;
		UNTIL(&r, written(&r) > before + 30);
		for (unsigned i = 0; i < more; i++)
			seal(&r);
		for (unsigned i = (unsigned)(rnd(&seed) % 20); i && take_one(&r, r.epoch) == 1; i--)
			;
		drop_staged(&r);
		CHECK_OK(r.m->ops->rewind(r.m, at));
		if (rnd(&seed) % 2)
			CHECK_OK(r.m->output.ops->commit(&r.m->output, at));
		one_epoch(&r);
	}
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

TEST_TIMEOUT(a_resumed_session_gets_again_what_was_lost, 180)
{
	rewinds(&(struct opts){ .bytes = SMALL });
}

TEST_TIMEOUT(a_resumed_session_gets_it_from_the_file_too, 180)
{
	rewinds(&(struct opts){ .bytes = SMALL, .memory = 1 });
}

TEST(what_was_freed_is_not_promised_again)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	copy_begins(&r, true);
	copy_runs(&r);
	CHECK(!r.m->ops->resumable(r.m));
	CHECK_EQ(r.m->ops->rewind(r.m, 0), -ESTALE);
	one_epoch(&r);
	one_epoch(&r);
	CHECK_EQ(r.m->ops->rewind(r.m, 1), -ESTALE);
	CHECK_OK(r.m->ops->rewind(r.m, 2));
	rig_free(&r);
}

TEST(what_was_taken_after_the_copy_s_epoch_is_kept_for_the_resume)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	copy_begins(&r, true);
	copy_runs(&r);
	seal(&r);
	take_all(&r);
	apply_staged(&r);
	write_n(&r, 300, 32 << 10);                     /* more than a chunk */
	UNTIL(&r, status(&r, 0).pending >= 150);
	seal(&r);
	take_all(&r);
	drop_staged(&r);                                /* never came: only the first one is acknowledged */
	CHECK_OK(r.m->output.ops->commit(&r.m->output, r.epoch - 1));
	CHECK_OK(r.m->ops->rewind(r.m, r.epoch - 1));
	one_epoch(&r);
	rig_free(&r);
}

/* --- the log --- */

static uint64_t in_file(struct rig *r)
{
	return status(r, 0).log_bytes + (r->nr > 1 ? status(r, 1).log_bytes : 0);
}

TEST(writers_never_wait_for_a_backup_that_takes_nothing)
{
	struct rig r;
	uint64_t began;

	rig_init(&r, &(struct opts){ .memory = 8 * MIB });
	session(&r, true);
	began = ft_now_ns();
	write_n(&r, 400, 256 << 10);                    /* 100 MiB, nothing is taken */
	CHECK(ft_now_ns() - began < 30 * FT_S_NS);
	UNTIL(&r, in_file(&r) > 80 * MIB);
	CHECK_EQ(r.broken, 0);
	CHECK(r.m->ops->resumable(r.m));
	seal(&r);
	CHECK_EQ(status(&r, 0).pending, 200);
	take_all(&r);
	apply_staged(&r);
	check_replica(&r);
	commit(&r);
	CHECK_EQ(in_file(&r), 0);
	write_n(&r, 4, 4096);                           /* the reader tidies up */
	one_epoch(&r);
	rig_free(&r);
}

TEST(a_log_beyond_its_bound_is_dropped_and_said_to_be)
{
	struct rig r;
	size_t len;

	rig_init(&r, &(struct opts){ .memory = 2 * MIB, .file = 16 * MIB });
	session(&r, true);
	write_n(&r, 200, 256 << 10);
	UNTIL(&r, r.broken);
	CHECK(strstr(r.why, "too far behind"));
	CHECK(!r.m->ops->resumable(r.m));
	CHECK_EQ(in_file(&r), 0);
	CHECK_EQ(r.m->output.ops->seal(&r.m->output, r.epoch + 1), -EIO);
	CHECK_EQ(r.m->ops->next(r.m, r.epoch + 1, r.body, &len), -EIO);
	write_n(&r, 200, 256 << 10);                    /* nobody stalls */
	r.broken = 0;
	session(&r, false);                             /* and the next session has it all */
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

TEST(a_first_copy_need_not_fit_into_the_log)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .memory = 2 * MIB, .file = 8 * MIB });
	write_n(&r, 180, 256 << 10);                    /* 45 MiB that differ */
	session(&r, true);
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

static void *send_late(void *x)
{
	fake_export_send_late(x);
	return NULL;
}

TEST(next_waits_for_what_is_sealed_and_still_in_the_stream)
{
	struct rig r;
	uint8_t data[512];
	pthread_t t;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	memset(data, 7, sizeof(data));
	r.x[0].lazy = true;
	disk_write(&r, 0, data, sizeof(data), 4096);    /* counted, not sent */
	seal(&r);
	CHECK(r.m->ops->pending(r.m, r.epoch));
	CHECK_EQ(pthread_create(&t, NULL, send_late, &r.x[0]), 0);
	take_all(&r);
	pthread_join(t, NULL);
	apply_staged(&r);
	check_replica(&r);
	rig_free(&r);
}

TEST(what_comes_after_the_seal_is_of_the_next_epoch)
{
	struct rig r;
	uint64_t before;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	write_n(&r, 10, 4096);
	seal(&r);
	write_n(&r, 5, 8192);
	UNTIL(&r, status(&r, 0).pending == 15);
	before = r.applied;
	take_all(&r);
	apply_staged(&r);
	check_replica(&r);
	CHECK_EQ(r.applied - before, 10);
	commit(&r);
	CHECK_EQ(status(&r, 0).pending, 5);
	one_epoch(&r);
	rig_free(&r);
}

TEST_TIMEOUT(an_export_that_counts_what_it_does_not_send_is_found_out, 90)
{
	struct rig r;
	uint8_t data[512] = { 1 };
	size_t len;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	r.x[0].lazy = true;
	disk_write(&r, 0, data, sizeof(data), 0);
	CHECK_OK(r.m->output.ops->seal(&r.m->output, ++r.epoch));
	CHECK_EQ(r.m->ops->next(r.m, r.epoch, r.body, &len), -ETIMEDOUT);
	UNTIL(&r, r.broken);
	rig_free(&r);
}

/* --- the copy --- */

TEST(a_copy_of_what_is_touched_asks_for_no_more)
{
	struct rig r;
	uint64_t word[6] = { 0, 0, 0, 0, 1ull << 63, 0 };

	rig_init(&r, &(struct opts){ .disks = 1 });
	disk_write(&r, 0, "x", 1, 5 * FT_GRANULE);
	disk_write(&r, 0, "y", 1, FT_REGION + 1);
	r.replica[0][5ull * FT_REGION - 1] = 'z';       /* there, not here */
	CHECK_OK(r.m->ops->theirs(r.m, 0, 0, word, 6));
	session(&r, false);
	CHECK_EQ(r.asked, 3);
	CHECK_EQ(r.x[0].compares, 3);
	CHECK_EQ(r.x[0].granules_sent, 3);
	CHECK_EQ(r.marks, 3);
	CHECK_EQ(status(&r, 0).copy_done, 3);
	CHECK_EQ(status(&r, 0).copy_total, 3);
	rig_free(&r);
}

TEST(a_copy_of_equal_disks_sends_nothing_but_marks)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	CHECK_EQ(r.asked, 2 * ((DISK_BYTES + FT_GRANULE - 1) / FT_GRANULE));
	CHECK_EQ(r.x[0].granules_sent + r.x[1].granules_sent, 0);
	CHECK_EQ(r.marks, 2 * ft_disk_regions(r.bytes));
	rig_free(&r);
}

TEST(a_copy_has_a_bound_of_what_is_under_way)
{
	struct rig r;
	uint64_t region, granules, bytes = 0;
	unsigned disk;

	rig_init(&r, &(struct opts){ .memory = 16 * MIB });
	write_n(&r, 180, 256 << 10);
	copy_begins(&r, true);
	do {
		turn(&r, 20);
	} while (!r.m->ops->ask(r.m, &disk, &region, &granules));
	bytes += FT_REGION;
	for (int i = 0; i < 50; i++, turn(&r, 2))
		while (r.m->ops->ask(r.m, &disk, &region, &granules))
			bytes += FT_REGION;
	CHECK(bytes <= 8 * MIB + FT_REGION);            /* half the memory, and one more region */
	rig_free(&r);
}

TEST(a_copy_keeps_to_its_rate)
{
	struct rig r;
	uint64_t began = ft_now_ns();

	rig_init(&r, &(struct opts){ .disks = 1, .rate = 16 * MIB });
	session(&r, true);
	CHECK(ft_now_ns() - began > FT_S_NS);           /* 24 MiB, of which the first region and a tenth are free */
	CHECK(ft_now_ns() - began < 20 * FT_S_NS);
	rig_free(&r);
}

TEST(hashes_that_nobody_asked_for_are_refused)
{
	struct rig r;
	uint8_t hash[FT_REGION_GRANULES * FT_HASH_LEN] = { 0 };
	uint64_t region, granules, word = UINT64_MAX;
	unsigned disk;

	rig_init(&r, &(struct opts){ 0 });
	copy_begins(&r, true);
	CHECK_EQ(r.m->ops->hashes(r.m, 0, 0, UINT64_MAX, hash, 64), -EPROTO);
	UNTIL(&r, r.m->ops->ask(r.m, &disk, &region, &granules));
	CHECK_EQ(r.m->ops->hashes(r.m, 1 - disk, region, granules, hash, 64), -EPROTO);
	CHECK_EQ(r.m->ops->hashes(r.m, disk, region, granules >> 1, hash, 63), -EPROTO);
	CHECK_EQ(r.m->ops->hashes(r.m, disk, region, granules, hash, 63), -EPROTO);
	CHECK_EQ(r.m->ops->hashes(r.m, 9, region, granules, hash, 64), -EPROTO);
	CHECK_OK(r.m->ops->hashes(r.m, disk, region, granules, hash, 64));
	CHECK_EQ(r.m->ops->hashes(r.m, disk, region, granules, hash, 64), -EPROTO);
	CHECK_EQ(r.m->ops->theirs(r.m, 0, 7, &word, 1), -EPROTO);
	CHECK_EQ(r.m->ops->theirs(r.m, 0, 6, &word, 1), -EPROTO);       /* bits beyond the disk */
	CHECK_EQ(r.m->ops->theirs(r.m, 2, 0, &word, 1), -EPROTO);
	rig_free(&r);
}

TEST(a_copy_begun_anew_forgets_the_one_before)
{
	struct rig r;
	uint64_t region, granules;
	unsigned disk;

	rig_init(&r, &(struct opts){ 0 });
	write_n(&r, 100, 256 << 10);
	writers_start(&r, 2);
	for (int i = 0; i < 5; i++) {
		copy_begins(&r, true);
		for (int k = 0; k < 3; k++) {           /* some are asked, some answered, some taken; then the link is cut */
			UNTIL(&r, r.m->ops->ask(r.m, &disk, &region, &granules));
			if (k)
				answer_hashes(&r, disk, region, granules);
		}
		while (take_one(&r, 0) == 1 && written(&r) % 3)
			;
	}
	session(&r, true);
	writers_stop(&r);
	one_epoch(&r);
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

TEST(a_mark_of_the_session_before_is_of_no_account)
{
	bool all[2] = { true, true };
	uint64_t region, granules;
	unsigned disk;
	struct rig r;

	rig_init(&r, &(struct opts){ .disks = 1 });
	copy_begins(&r, true);
	UNTIL(&r, r.m->ops->ask(r.m, &disk, &region, &granules));
	pthread_mutex_lock(&r.x[0].lock);               /* compares only when the new copy is begun */
	answer_hashes(&r, disk, region, granules);
	CHECK_OK(r.m->ops->copy(r.m, all));
	pthread_mutex_unlock(&r.x[0].lock);
	copy_runs(&r);
	CHECK_EQ(status(&r, 0).copy_done, status(&r, 0).copy_total);
	CHECK_EQ(r.x[0].compares, 1 + ft_disk_regions(r.bytes));
	one_epoch(&r);
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

/* --- exports that go, and come back --- */

TEST(a_killed_export_is_named_and_connected_again)
{
	struct rig r;
	bool all[2] = { true, true };

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	write_n(&r, 10, 4096);
	fake_export_kill(&r.x[1]);
	UNTIL(&r, r.broken);
	CHECK(strstr(r.why, "disk 1"));
	CHECK(!r.m->ops->resumable(r.m));
	CHECK_EQ(r.m->output.ops->seal(&r.m->output, r.epoch + 1), -EIO);
	CHECK_EQ(r.m->ops->copy(r.m, all), -ENOTCONN);
	r.x[1].id.current = 77;                         /* the guest was seen without the mirror */
	r.x[1].seq = 3;
	fake_export_start(&r.x[1]);
	struct ft_disk_id id;
	r.m->ops->describe(r.m, 1, &id);
	CHECK_EQ(id.current, 77);
	UNTIL(&r, told(&r.x[1], &r.x[1].held, true));   /* the new one hears it at once */
	r.broken = 0;
	session(&r, false);
	write_n(&r, 10, 4096);
	one_epoch(&r);
	CHECK_EQ(r.broken, 0);
	rig_free(&r);
}

static void all_durable(struct rig *r)
{
	struct ft_disk_id id;

	for (unsigned i = 0; i < r->nr; i++)
		CHECK_OK(r->m->ops->durable(r->m, i, r->whole_seq[i]));
	r->m->ops->adopted(r->m);
	for (unsigned i = 0; i < r->nr; i++)            /* when it answers, it has heard */
		r->m->ops->describe(r->m, i, &id);
}

TEST(the_real_export_copies_again_only_what_was_touched_and_also_when_it_has_died)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .real = true });
	write_n(&r, 60, 256 << 10);
	session(&r, true);
	all_durable(&r);
	write_n(&r, 6, 4096);                           /* one granule each, and the link is cut */
	r.asked = 0;
	session(&r, false);
	CHECK_EQ(r.asked, 2);
	all_durable(&r);
	ft_export_close(r.e[1]);
	UNTIL(&r, r.broken);
	struct ft_export_config cfg = { .image = r.image[1], .map = r.map[1], .control = r.control[1] };
	CHECK_OK(ft_export_open(&cfg, &r.e[1]));
	CHECK_OK(ft_export_start(r.e[1]));
	write_n(&r, 6, 4096);
	r.broken = 0;
	memset(r.whole_seq, 0, sizeof(r.whole_seq));    /* its stream is a new one */
	session(&r, false);
	CHECK_EQ(r.broken, 0);
	CHECK_OK(tear_down(&r));
	rig_free(&r);
}

TEST(an_export_that_is_not_there_is_an_error_with_a_name)
{
	struct ft_mirror_config cfg = {
		.guest = "web", .nr_disks = 1, .control = { "/nonexistent/ctl" }, .memory_bound = MIB, .file_bound = MIB,
		.spill_dir = ft_test_dir(),
	};
	struct ft_mirror *m;
	struct fake_export x;
	char path[128];

	CHECK_EQ(ft_mirror_new(&cfg, &m), -ENOENT);
	CHECK(ft_test_logged("disk 0 (/nonexistent/ctl)") && ft_test_logged("nbdkit"));
	snprintf(path, sizeof(path), "%s/ctl", ft_test_dir());
	fake_export_init(&x, path, MIB, 1);
	x.no_start = true;
	fake_export_start(&x);
	cfg.control[0] = path;
	CHECK_EQ(ft_mirror_new(&cfg, &m), -EREMOTEIO);
	CHECK(ft_test_logged("it is reserved"));
	cfg.spill_dir = "/nonexistent";
	CHECK_EQ(ft_mirror_new(&cfg, &m), -ENOENT);
	CHECK(ft_test_logged("disk log in /nonexistent"));
	fake_export_free(&x);
}

static void hostile(const uint8_t *bytes, size_t len)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	fake_export_send(&r.x[0], bytes, len);
	UNTIL(&r, r.broken);
	CHECK(strstr(r.why, "disk 0"));
	rig_free(&r);
}

static size_t pack(uint8_t *buf, uint32_t type, const struct ft_disk_op *op, size_t len)
{
	ft_put32(buf, type);
	ft_put32(buf + 4, (uint32_t)len);
	if (op)
		ft_disk_pack_op(op, buf + 8);
	return 8 + len;
}

TEST(an_export_that_talks_nonsense_is_left)
{
	uint8_t buf[4096] = { 0 };
	struct ft_disk_op ok = { .seq = 7, .offset = 0, .len = 512, .op = FT_DISK_WRITE }, op = ok;

	/* session: 7 MARKs on an empty disk; the next seq is 8 */
	hostile(buf, pack(buf, FT_EXPORT_OP, &ok, FT_DISK_OP_LEN + 512));               /* a seq again */
	op.seq = 9;
	hostile(buf, pack(buf, FT_EXPORT_OP, &op, FT_DISK_OP_LEN + 512));               /* a seq left out */
	op = ok, op.seq = 8, op.len = 1024;
	hostile(buf, pack(buf, FT_EXPORT_OP, &op, FT_DISK_OP_LEN + 512));               /* data missing */
	op = ok, op.seq = 8, op.offset = DISK_BYTES - 100;
	hostile(buf, pack(buf, FT_EXPORT_OP, &op, FT_DISK_OP_LEN + 512));               /* beyond the disk */
	op = ok, op.seq = 8, op.op = FT_DISK_ZERO;
	hostile(buf, pack(buf, FT_EXPORT_OP, &op, FT_DISK_OP_LEN + 512));               /* ZERO with data */
	op = (struct ft_disk_op){ .seq = 8, .op = FT_DISK_MARK };
	hostile(buf, pack(buf, FT_EXPORT_OP, &op, FT_DISK_OP_LEN));                     /* a MARK that nobody wants */
	hostile(buf, pack(buf, FT_EXPORT_OP, NULL, 3));
	pack(buf, FT_EXPORT_OP, NULL, 0x7fffffff);
	hostile(buf, 8);                                                                /* longer than can be */
	hostile(buf, pack(buf, FT_EXPORT_PLAN, NULL, 16));
	hostile(buf, pack(buf, FT_EXPORT_PLANNED, NULL, 8));
	hostile(buf, pack(buf, FT_EXPORT_LEFT, NULL, 4));
	hostile(buf, pack(buf, FT_EXPORT_FENCED, NULL, 0));
	hostile(buf, pack(buf, FT_EXPORT_HERE, NULL, FT_DISK_ID_LEN + 8));
	hostile(buf, pack(buf, 4711, NULL, 0));
}

TEST(what_an_export_says_when_it_fails_is_passed_on)
{
	uint8_t buf[64] = { 0 };
	struct rig r;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	memcpy(buf + 8, "the map is full\n", 16);
	fake_export_send(&r.x[0], buf, pack(buf, FT_EXPORT_FAILED, NULL, 16));
	UNTIL(&r, r.broken);
	CHECK(strstr(r.why, "the map is full?"));
	rig_free(&r);
}

TEST(a_count_that_goes_back_holds_the_output)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	write_n(&r, 10, 4096);
	one_epoch(&r);
	r.x[0].page->sent = 3;
	CHECK_EQ(r.m->output.ops->seal(&r.m->output, r.epoch + 1), -EIO);
	UNTIL(&r, r.broken);
	rig_free(&r);
}

/* --- words to the exports --- */

TEST(exports_hear_of_protection_and_of_what_is_durable)
{
	struct rig r;
	struct ft_disk_id id;

	rig_init(&r, &(struct opts){ 0 });
	CHECK(told(&r.x[0], &r.x[0].held, false));
	session(&r, true);
	CHECK(r.x[0].held && r.x[1].held);
	UNTIL(&r, told(&r.x[1], &r.x[1].elide, true));
	r.m->ops->describe(r.m, 0, &id);
	CHECK_EQ(id.base, 0);                           /* after ADOPTED */
	r.m->ops->protect(r.m, false);
	UNTIL(&r, told(&r.x[0], &r.x[0].elide, false) && told(&r.x[1], &r.x[1].elide, false));
	CHECK_EQ(r.m->ops->durable(r.m, 0, 1000), -EPROTO);
	CHECK_EQ(r.m->ops->durable(r.m, 2, 1), -EPROTO);
	CHECK_OK(r.m->ops->durable(r.m, 0, 2));
	CHECK_OK(r.m->ops->durable(r.m, 0, 5));
	pthread_mutex_lock(&r.x[0].lock);
	while (r.x[0].durable != 5)
		pthread_cond_wait(&r.x[0].moved, &r.x[0].lock);
	pthread_mutex_unlock(&r.x[0].lock);
	write_n(&r, 1, 512);
	UNTIL(&r, status(&r, 0).pending == 1);
	CHECK_EQ(r.m->ops->durable(r.m, 0, 8), -EPROTO);        /* logged, never sent */
	one_epoch(&r);
	CHECK_OK(r.m->ops->durable(r.m, 0, 8));
	rig_free(&r);
}

static uint64_t adds(struct fake_export *x)
{
	uint64_t n;

	pthread_mutex_lock(&x->lock);
	n = x->adds;
	pthread_mutex_unlock(&x->lock);
	return n;
}

static atomic_bool changing;

static void *change_slowly(void *ctx)
{
	struct fake_export *x = ctx;

	pthread_mutex_lock(&x->lock);
	x->id.current = 4242;
	changing = true;
	poll(NULL, 0, 100);                             /* long enough for who does not wait */
	pthread_mutex_unlock(&x->lock);
	return NULL;
}

TEST(an_id_is_described_as_it_is_after_the_last_word)
{
	struct rig r;
	struct ft_disk_id id;
	pthread_t t;

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	r.m->ops->describe(r.m, 0, &id);
	CHECK_EQ(pthread_create(&t, NULL, change_slowly, &r.x[0]), 0);
	while (!changing)
		sched_yield();
	r.m->ops->adopted(r.m);
	r.m->ops->describe(r.m, 0, &id);
	CHECK_EQ(id.current, 4242);
	pthread_join(t, NULL);
	rig_free(&r);
}

/* Protection off must overtake what waits, and what said `on` must not follow it. */
TEST(protection_off_does_not_wait_behind_a_copy)
{
	struct rig r;
	uint64_t *words = calloc(6, 8);

	rig_init(&r, &(struct opts){ .disks = 1 });
	session(&r, true);
	UNTIL(&r, told(&r.x[0], &r.x[0].elide, true));
	pthread_mutex_lock(&r.x[0].lock);               /* the export is busy: its socket fills up */
	for (int i = 0; i < 20000; i++)
		CHECK_OK(r.m->ops->theirs(r.m, 0, 0, words, 6));
	r.m->ops->protect(r.m, true);
	r.m->ops->protect(r.m, false);
	pthread_mutex_unlock(&r.x[0].lock);
	UNTIL(&r, adds(&r.x[0]) == 20000);
	CHECK(!r.x[0].elide);
	CHECK(r.x[0].adds_at_off < 10000);
	session(&r, false);
	rig_free(&r);
	free(words);
}

TEST(teardown_ends_when_every_disk_is_synced_and_can_be_begun_again)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	CHECK_EQ(r.m->output.ops->teardown(&r.m->output), -EINPROGRESS);
	CHECK_OK(tear_down(&r));
	CHECK(r.x[0].left && r.x[1].left && !r.x[0].held);
	CHECK_EQ(r.broken, 0);
	CHECK(!r.m->ops->resumable(r.m));
	write_n(&r, 10, 4096);                          /* the guest goes on alone */
	session(&r, false);
	CHECK(r.x[0].held && r.x[1].held && r.x[1].starts == 2);
	rig_free(&r);
}

TEST(a_failed_sync_is_an_input_to_the_release)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	r.x[1].leave_errno = EIO;
	CHECK_EQ(tear_down(&r), -EIO);
	CHECK(ft_test_logged("disk 1"));
	pthread_mutex_lock(&r.x[1].lock);
	r.x[1].leave_errno = 0;
	pthread_mutex_unlock(&r.x[1].lock);
	CHECK_OK(tear_down(&r));
	rig_free(&r);
}

TEST(teardown_finds_an_export_that_had_dropped_us_and_does_not_wait_for_a_dead_one)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	fake_export_kill(&r.x[0]);
	fake_export_kill(&r.x[1]);
	UNTIL(&r, r.broken);
	fake_export_start(&r.x[0]);
	unlink(r.control[1]);
	CHECK_OK(tear_down(&r));
	CHECK(r.x[0].left && !r.x[1].left);
	rig_free(&r);
}

/* --- an image whose export has died --- */

struct slow_disk {                      /* file operations whose sync lasts until it is let through */
	struct ft_disk_files files;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	unsigned begun, may, ended;     /* syncs */
	int rc;
	char path[32];
};

static int slow_open(void *ctx, const char *path, bool create, int *h)
{
	struct slow_disk *sd = ctx;

	CHECK(!create);
	snprintf(sd->path, sizeof(sd->path), "%s", path);
	*h = 1;
	return 0;
}

static int slow_sync(void *ctx, int h)
{
	struct slow_disk *sd = ctx;
	int rc;

	pthread_mutex_lock(&sd->lock);
	sd->begun++;
	pthread_cond_broadcast(&sd->moved);
	while (sd->may < sd->begun)
		pthread_cond_wait(&sd->moved, &sd->lock);
	sd->ended++;
	rc = sd->rc;
	sd->rc = 0;                             /* the kernel says it once */
	pthread_mutex_unlock(&sd->lock);
	return rc;
}

static void slow_close(void *ctx, int h)
{
}

static void slow_init(struct slow_disk *sd)
{
	*sd = (struct slow_disk){ .files = { .open = slow_open, .sync = slow_sync, .close = slow_close, .ctx = sd } };
	pthread_mutex_init(&sd->lock, NULL);
	pthread_cond_init(&sd->moved, NULL);
}

static void slow_let(struct slow_disk *sd, unsigned may)
{
	pthread_mutex_lock(&sd->lock);
	sd->may = may;
	pthread_cond_broadcast(&sd->moved);
	pthread_mutex_unlock(&sd->lock);
}

static void slow_wait(struct slow_disk *sd, unsigned begun)
{
	pthread_mutex_lock(&sd->lock);
	while (sd->begun < begun)
		pthread_cond_wait(&sd->moved, &sd->lock);
	pthread_mutex_unlock(&sd->lock);
}

/* Flushes were answered from the mirror: what they promised must be on the disk before anybody sees the guest without it. */
TEST(what_a_dead_export_left_in_memory_is_synced_before_teardown_is_through)
{
	struct slow_disk sd;
	struct rig r;

	slow_init(&sd);
	rig_init(&r, &(struct opts){ .disks = 1, .files = &sd.files });
	session(&r, true);
	r.m->ops->protect(r.m, true);
	fake_export_kill(&r.x[0]);
	UNTIL(&r, r.broken);
	CHECK_EQ(r.m->output.ops->teardown(&r.m->output), -EINPROGRESS);
	slow_wait(&sd, 1);
	for (int i = 0; i < 100; i++)
		CHECK_EQ(r.m->output.ops->teardown(&r.m->output), -EINPROGRESS);
	CHECK_EQ(sd.begun, 1);                          /* and the loop was never kept waiting for it */
	slow_let(&sd, 1);
	CHECK_OK(tear_down(&r));
	CHECK_EQ(sd.ended, 1);
	CHECK_STR(sd.path, "/images/a");
	rig_free(&r);
}

/* As it would be if the host restarted now. */
static bool unsafe_after_restart(struct rig *r, unsigned i, bool set)
{
	const struct ft_disk_files *f = &ft_disk_files_real;
	struct ft_map_image im;
	struct ft_map *map;
	bool unsafe;
	int h;

	ft_map_tuning.boot_id = set ? NULL : "the next boot";
	CHECK_OK(f->open(f->ctx, r->image[i], false, &h));
	CHECK_OK(f->size(f->ctx, h, &im.bytes));
	CHECK_OK(f->identity(f->ctx, h, &im.inode, &im.born_ns));
	f->close(f->ctx, h);
	CHECK_OK(ft_map_open(f, r->map[i], &im, &map));
	if (set)
		CHECK_OK(ft_map_set_unsafe(map, true));
	unsafe = ft_map_unsafe(map);
	ft_map_abandon(map);
	ft_map_tuning.boot_id = NULL;
	return unsafe;
}

TEST(a_dead_export_whose_image_is_synced_leaves_a_disk_that_may_be_used_after_a_restart)
{
	struct rig r;

	rig_init(&r, &(struct opts){ .disks = 1, .real = true });
	session(&r, true);
	ft_export_close(r.e[0]);
	r.e[0] = NULL;
	(void)unsafe_after_restart(&r, 0, true);        /* as one that was killed leaves it */
	CHECK(unsafe_after_restart(&r, 0, false));
	UNTIL(&r, r.broken);
	CHECK_OK(tear_down(&r));
	CHECK(!unsafe_after_restart(&r, 0, false));
	rig_free(&r);
}

TEST(a_dead_export_whose_image_cannot_be_synced_keeps_the_output_shut)
{
	struct slow_disk sd;
	struct rig r;

	slow_init(&sd);
	sd.rc = -EIO;
	slow_let(&sd, 100);
	rig_init(&r, &(struct opts){ .disks = 1, .files = &sd.files });
	session(&r, true);
	r.m->ops->protect(r.m, true);
	fake_export_kill(&r.x[0]);
	UNTIL(&r, r.broken);
	CHECK_EQ(tear_down(&r), -EIO);
	CHECK(ft_test_logged("/images/a cannot be synced: Input/output error"));
	CHECK_EQ(tear_down(&r), -EIO);                  /* the next sync brings nothing back */
	CHECK_EQ(sd.ended, 2);
	rig_free(&r);
}

TEST(an_export_that_is_started_again_is_told_to_leave_after_all)
{
	struct slow_disk sd;
	struct rig r;

	slow_init(&sd);
	rig_init(&r, &(struct opts){ .disks = 2, .files = &sd.files });
	session(&r, true);
	r.m->ops->protect(r.m, true);
	fake_export_kill(&r.x[0]);
	UNTIL(&r, r.broken);
	fake_export_start(&r.x[0]);
	CHECK_OK(tear_down(&r));
	CHECK(r.x[0].left && r.x[1].left);
	CHECK_EQ(sd.begun, 0);
	rig_free(&r);
}

TEST(after_a_discard_no_write_gets_through)
{
	struct rig r;

	rig_init(&r, &(struct opts){ 0 });
	session(&r, true);
	fake_export_kill(&r.x[0]);                      /* it had dropped us: it must hear of it all the same */
	UNTIL(&r, r.broken);
	fake_export_start(&r.x[0]);
	r.m->output.ops->discard(&r.m->output);
	CHECK_OK(tear_down(&r));
	CHECK_OK(tear_down(&r));
	CHECK(!fake_export_write(&r.x[0], "x", 1, 0) && !fake_export_write(&r.x[1], "x", 1, 0));
	CHECK(!r.x[0].left && !r.x[1].left);            /* our data make no new generation */
	rig_free(&r);
}

TEST(one_command_is_answered_or_times_out)
{
	struct fake_export x;
	struct ft_disk_id id;
	char path[128];

	snprintf(path, sizeof(path), "%s/ctl", ft_test_dir());
	CHECK_EQ(ft_export_ask(path, 100, &id), -ENOENT);
	fake_export_init(&x, path, MIB, 5);
	fake_export_start(&x);
	CHECK_OK(ft_export_ask(path, 1000, &id));
	CHECK_EQ(id.current, 1005);
	CHECK_OK(ft_export_activate(path, 1000));
	CHECK(x.active);
	x.leave_errno = EBUSY;
	CHECK_EQ(ft_export_activate(path, 1000), -EBUSY);
	CHECK(ft_test_logged("cannot be opened for the guest"));
	x.silent = true;
	CHECK_EQ(ft_export_ask(path, 100, &id), -ETIMEDOUT);
	CHECK_EQ(ft_export_activate(path, 100), -ETIMEDOUT);
	fake_export_free(&x);
}
