// SPDX-License-Identifier: GPL-3.0-or-later
/* test_backup.c - the backup of a guest with a disk, when that disk fails it. What else it promises, test_sim.c judges. */
#include "ft/backup.h"

#include "diskmirror/store_priv.h"
#include "ft/encode.h"
#include "ft/fake.h"
#include "tests/lib/forgetful.h"
#include "tests/test.h"

#include <poll.h>
#include <pthread.h>

#define NR_PAGES 64u
#define BYTES (4 * FT_GRANULE)
#define IMAGE "/d/a.img"

static const struct ft_fake_config machine = { .nr_pages = NR_PAGES, .seed = 3 };

/* The disk under the image: a sync of it waits while it is held. */
static struct {
	const struct ft_disk_files *inner;
	struct ft_disk_files files;
	pthread_mutex_t lock;
	pthread_cond_t moved;
	bool is_image[4096];            /* by handle */
	bool held;
	unsigned syncs;                 /* begun */
} disk = { .lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER };

static int disk_open(void *ctx, const char *path, bool create, int *h)
{
	int rc = disk.inner->open(ctx, path, create, h);

	if (!rc)
		disk.is_image[*h] = !strcmp(path, IMAGE);
	return rc;
}

static int disk_sync(void *ctx, int h)
{
	pthread_mutex_lock(&disk.lock);
	if (disk.is_image[h]) {
		disk.syncs++;
		pthread_cond_broadcast(&disk.moved);
		while (disk.held)
			pthread_cond_wait(&disk.moved, &disk.lock);
	}
	pthread_mutex_unlock(&disk.lock);
	return disk.inner->sync(ctx, h);
}

static void hold_disk(bool held)
{
	pthread_mutex_lock(&disk.lock);
	disk.held = held;
	disk.syncs = 0;
	pthread_cond_broadcast(&disk.moved);
	pthread_mutex_unlock(&disk.lock);
}

static void until_sync(void)
{
	pthread_mutex_lock(&disk.lock);
	while (!disk.syncs)
		pthread_cond_wait(&disk.moved, &disk.lock);
	pthread_mutex_unlock(&disk.lock);
}

struct world {
	struct forgetful *fs;
	struct ft_backup *b;
	struct ft_store *st;
	struct ft_replica *replica;
	size_t memory_bound, journal_bound;
	enum ft_durability durability;
	bool silent, took_over;
	unsigned acks, pongs;
	uint64_t durable;               /* what the primary was told last */
	char error[FT_WIRE_TEXT_MAX + 1];       /* of the last ERROR record */
	uint32_t reason;
	struct ft_wire_welcome welcome; /* the last one */
	char refusal[FT_WIRE_TEXT_MAX + 1];

	/* the primary */
	struct ft_fake_guest *guest;
	struct ft_vm *vm;
	struct ft_staging *staging;
	struct ft_encoder *encoder;
	struct ft_bitmap dirty;
	uint64_t epoch, seq;
	unsigned ops;                   /* of the disk, in the epoch under way */
};

/* --- what the backup asks of its host --- */

static uint64_t op_now(void *ctx)
{
	return ft_now_ns();
}

static void op_timer(void *ctx, uint64_t at_ns)
{
}

static int op_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct world *w = ctx;

	if (type == FT_REC_ACK)
		w->acks++;
	if (type == FT_REC_DISK_DURABLE) {
		struct ft_wire_disk_at at;

		CHECK_OK(ft_wire_unpack_disk_at(body, len, &at));
		w->durable = at.at;
	}
	if (type == FT_REC_PONG)
		w->pongs++;
	if (type == FT_REC_WELCOME) {
		CHECK_OK(ft_wire_unpack_welcome(body, len, &w->welcome));
		memcpy(w->refusal, (const uint8_t *)body + FT_WIRE_WELCOME_LEN, len - FT_WIRE_WELCOME_LEN);
		w->refusal[len - FT_WIRE_WELCOME_LEN] = 0;
	}
	if (type != FT_REC_ERROR)
		return 0;
	w->reason = ft_le32(body);
	memcpy(w->error, (const uint8_t *)body + 4, len - 4);
	w->error[len - 4] = 0;
	return 0;
}

static void nothing(void *ctx)
{
}

static void op_random(void *ctx, uint8_t *buf, size_t len)
{
	memset(buf, 7, len);
}

static uint32_t op_silence(void *ctx)
{
	return 300;
}

static int op_echo_start(void *ctx, const uint8_t session[16], uint32_t silence_ms, uint16_t *port)
{
	*port = 1;
	return 0;
}

static bool op_silent(void *ctx)
{
	return ((struct world *)ctx)->silent;
}

static enum ft_wire_reason op_admit(void *ctx, const struct ft_wire_hello *h, const char *spec, const char *facts, char *why,
				    size_t size)
{
	return FT_REASON_OK;
}

static bool op_runs_here(void *ctx)
{
	return ((struct world *)ctx)->took_over;
}

static enum ft_wire_reason op_could_prepare(void *ctx, char *why, size_t size)
{
	return FT_REASON_OK;
}

static unsigned op_nr_disks(void *ctx)
{
	return 1;
}

static enum ft_wire_reason op_open_store(void *ctx, const struct ft_disk_id *theirs, struct ft_store **out, char *why, size_t size)
{
	struct world *w = ctx;
	struct ft_store_config cfg = {
		.guest = "vm1", .nr_disks = 1, .disk[0] = { IMAGE, theirs->bytes }, .state_dir = "/s", .memory_bound = w->memory_bound,
		.journal_bound = w->journal_bound, .files = &disk.files, .durability = w->durability,
	};

	CHECK_OK(ft_store_open(&cfg, out));
	w->st = *out;
	return FT_REASON_OK;
}

static void op_close_store(void *ctx, struct ft_store *st)
{
	ft_store_free(st);
	((struct world *)ctx)->st = NULL;
}

static int destroyed(void *ctx, enum ft_fake_op op)
{
	if (op == FT_FAKE_DESTROY)
		((struct world *)ctx)->replica = NULL;
	return 0;
}

static enum ft_wire_reason op_prepare(void *ctx, struct ft_replica **out, char *why, size_t size)
{
	struct world *w = ctx;

	CHECK_OK(ft_fake_replica_prepare(&machine, out));
	ft_fake_replica_on_op(*out, destroyed, w);
	w->replica = *out;
	return FT_REASON_OK;
}

static void op_watch_drill(void *ctx, int fd)
{
}

static void op_took_over(void *ctx, uint64_t generation, uint64_t epoch)
{
	((struct world *)ctx)->took_over = true;
}

static void op_changed(void *ctx, enum ft_backup_state from, enum ft_backup_state to, const char *why)
{
}

static const struct ft_backup_ops ops = {
	.now_ns = op_now, .timer = op_timer, .send = op_send, .disconnect = nothing, .random = op_random, .silence_ms = op_silence,
	.echo_start = op_echo_start, .echo_arm = nothing, .echo_stop = nothing, .life = nothing, .silent = op_silent,
	.admit = op_admit, .runs_here = op_runs_here, .could_prepare = op_could_prepare, .nr_disks = op_nr_disks,
	.open_store = op_open_store, .close_store = op_close_store, .prepare = op_prepare, .watch_drill = op_watch_drill,
	.took_over = op_took_over, .changed = op_changed,
};

/* --- its primary --- */

static int emit(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct world *w = ctx;

	ft_backup_record(w->b, type, body, len);
	return 0;
}

static int next_disk_op(void *ctx, uint64_t upto, uint8_t *body, size_t *len)
{
	static uint8_t raw[FT_DISK_OP_LEN + FT_GRANULE];
	struct world *w = ctx;
	struct ft_disk_op op = { ++w->seq, 0, FT_GRANULE, FT_DISK_WRITE };

	if (!w->ops)
		return 0;
	w->ops--;
	ft_disk_pack_op(&op, raw);
	/* Nothing that packs well. */
	for (size_t i = FT_DISK_OP_LEN; i < sizeof(raw); i += 8)
		ft_put64(raw + i, (w->seq << 32 | i) * 0x9e3779b97f4a7c15ull);
	*len = ft_disk_pack_batch(0, raw, sizeof(raw), 1, body);
	return 1;
}

static struct world *world_new(enum ft_durability durability)
{
	struct world *w = calloc(1, sizeof(*w));
	struct ft_encoder_config ecfg = { .nr_pages = NR_PAGES, .emit = emit, .disks = next_disk_op, .ctx = w };
	struct ft_backup_config cfg = { .guest = "vm1", .state_dir = ft_test_dir(), .staging_bound = 16 << 20, .ops = &ops, .ctx = w };

	ft_store_tuning.sync_ms = 0;
	w->fs = forgetful_new();
	disk.inner = forgetful_files(w->fs);
	disk.files = *disk.inner;
	disk.files.open = disk_open;
	disk.files.sync = disk_sync;
	w->durability = durability;
	w->memory_bound = 1 << 20;
	w->journal_bound = 8 << 20;
	CHECK_OK(ft_fake_guest_new(&machine, &w->guest));
	CHECK_OK(ft_fake_attach(w->guest, &w->vm));
	CHECK_OK(w->vm->ops->track(w->vm));
	CHECK_OK(ft_staging_new(0, &w->staging));
	ecfg.staging = w->staging;
	CHECK_OK(ft_encoder_new(&ecfg, &w->encoder));
	CHECK_OK(ft_bitmap_init(&w->dirty, NR_PAGES));
	CHECK_OK(ft_backup_new(&cfg, &w->b));
	return w;
}

static void world_free(struct world *w)
{
	ft_backup_free(w->b);
	ft_encoder_free(w->encoder);
	ft_staging_free(w->staging);
	ft_bitmap_free(&w->dirty);
	w->vm->ops->close(w->vm);
	ft_fake_guest_free(w->guest);
	forgetful_free(w->fs);
	free(w);
}

/* @resume: 0, or the byte that its session is made of. */
static void hello_of(struct world *w, uint64_t generation, int resume, const char *facts)
{
	struct ft_wire_hello h = {
		.version_min = FT_WIRE_VERSION_MIN, .version_max = FT_WIRE_VERSION_MAX, .generation = generation, .nr_pages = NR_PAGES,
		.spec_len = 4, .facts_len = (uint32_t)strlen(facts),
	};
	uint8_t body[FT_WIRE_HELLO_LEN + 100];

	memset(h.resume, resume, sizeof(h.resume));
	ft_wire_pack_hello(&h, body);
	memcpy(body + FT_WIRE_HELLO_LEN, "spec", 4);
	memcpy(body + FT_WIRE_HELLO_LEN + 4, facts, h.facts_len);
	ft_backup_link_up(w->b, "alpha");
	ft_backup_record(w->b, FT_REC_HELLO, body, FT_WIRE_HELLO_LEN + 4 + h.facts_len);
}

static void hello(struct world *w, uint64_t generation, int resume)
{
	hello_of(w, generation, resume, "machine=pc\ndisks=512/0\n");
}

static void greet(struct world *w, uint64_t generation)
{
	struct ft_disk_id id = { .bytes = BYTES, .current = 500 };
	uint8_t disks[FT_DISK_ID_LEN];
	struct ft_blob firmware = { 0 };

	*w->error = 0;
	w->epoch = w->seq = 0;
	ft_encoder_reset(w->encoder);
	ft_disk_pack_id(&id, disks);
	hello(w, generation, 0);
	ft_backup_record(w->b, FT_REC_DISKS, disks, sizeof(disks));
	CHECK_OK(w->vm->ops->firmware(w->vm, &firmware));
	ft_backup_record(w->b, FT_REC_FIRMWARE, firmware.data, firmware.len);
	ft_blob_free(&firmware);
	CHECK_STR(w->error, "");
}

/* An epoch with @nr_ops writes of the disk. Was it acknowledged? */
static bool send_epoch(struct world *w, uint32_t flags, unsigned nr_ops)
{
	struct ft_chunk_sink sink = { .chunk = ft_encoder_chunk, .ctx = w->encoder };
	struct ft_capture_stats stats;
	struct ft_blob state;
	unsigned acks = w->acks;

	for (unsigned i = 0; i < 5; i++)
		ft_fake_step(w->guest);
	if (flags)
		ft_bitmap_fill(&w->dirty);
	w->ops = nr_ops;
	CHECK_OK(w->vm->ops->pause(w->vm));
	CHECK_OK(ft_encoder_begin(w->encoder, w->epoch + 1, w->epoch, flags));
	CHECK_OK(ft_capture_epoch(w->vm, w->staging, w->epoch + 1, 0, &w->dirty, &sink, &state, &stats));
	CHECK_OK(ft_encoder_disks(w->encoder, w->epoch + 1));
	CHECK_OK(w->vm->ops->resume(w->vm));
	CHECK_OK(ft_encoder_end(w->encoder, &state));
	w->epoch++;
	return w->acks > acks;
}

static struct ft_backup_status status(struct world *w)
{
	struct ft_backup_status st;

	ft_backup_get_status(w->b, &st);
	return st;
}

/* --- what is here, and for whom --- */

static struct world *armed_world(enum ft_durability durability)
{
	struct world *w = world_new(durability);

	greet(w, 1);
	CHECK(send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 2));
	CHECK(send_epoch(w, 0, 2));
	return w;
}

TEST(another_machine_by_the_same_name_finds_nothing_and_the_same_one_its_replica)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	hello_of(w, 2, 0, "machine=pc\ndisks=512/512\n");      /* its image has grown fuller since */
	CHECK_EQ(w->welcome.replica, FT_REPLICA_ARMED);
	hello_of(w, 3, 0, "machine=pd\ndisks=512/512\n");
	CHECK_EQ(w->welcome.replica, FT_REPLICA_NONE);
	world_free(w);
}

TEST(firmware_of_another_machine_is_refused_before_an_epoch_counts)
{
	struct world *w = world_new(FT_DURABILITY_MEMORY);
	struct ft_disk_id id = { .bytes = BYTES, .current = 500 };
	uint8_t disks[FT_DISK_ID_LEN], other[16] = { 1 };

	ft_disk_pack_id(&id, disks);
	hello(w, 1, 0);
	ft_backup_record(w->b, FT_REC_DISKS, disks, sizeof(disks));
	ft_backup_record(w->b, FT_REC_FIRMWARE, other, sizeof(other));
	CHECK_EQ(w->reason, FT_REASON_MISMATCH);
	CHECK_STR(w->error, "this is not the guest's firmware");
	world_free(w);
}

/* --- takeover --- */

TEST(it_takes_over_with_what_was_acknowledged)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);
	struct ft_replica *replica = w->replica;

	w->silent = true;
	ft_backup_tick(w->b);
	CHECK(w->took_over);
	CHECK_EQ(status(w).state, FT_BACKUP_RUNNING);
	CHECK(replica && !w->st);
	world_free(w);
}

TEST(what_was_given_up_is_not_started_any_more)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);
	struct ft_record r;

	CHECK_EQ(ft_backup_give_up(w->b), -EBUSY);              /* the primary is connected */
	ft_backup_link_down(w->b, "cut");
	CHECK_OK(ft_backup_give_up(w->b));
	CHECK_OK(ft_record_load(NULL, ft_test_dir(), "vm1", &r));
	CHECK_EQ(r.role, FT_ROLE_DISARMED);
	w->silent = true;
	ft_backup_tick(w->b);
	CHECK(!w->took_over);
	CHECK_EQ(status(w).state, FT_BACKUP_EMPTY);
	CHECK_EQ(ft_backup_give_up(w->b), -ENODATA);
	world_free(w);
}

/* Waiting would not bring back what is lost, and nobody would hear of it. */
TEST(a_takeover_whose_disk_has_lost_what_was_written_fails_and_says_so)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, EIO, false);
	CHECK_EQ(ft_store_sync(w->st), -EIO);
	w->silent = true;
	ft_backup_tick(w->b);
	CHECK(!w->took_over && !w->replica);
	CHECK_EQ(status(w).state, FT_BACKUP_EMPTY);
	CHECK(ft_test_logged("TAKEOVER FAILED: the replica does not run: " IMAGE ": a sync of it failed (Input/output error), and what "
			     "was written to it is lost - replace the disk under it"));
	world_free(w);
}

TEST(a_takeover_whose_disk_is_full_waits_for_room)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, ENOSPC, true);
	CHECK(send_epoch(w, 0, 1));             /* acknowledged, and then there is no room for it */
	w->silent = true;
	for (int i = 0; i < 10; i++)
		ft_backup_tick(w->b);
	CHECK(!w->took_over && w->replica);
	CHECK(ft_test_logged(IMAGE ": cannot write: No space left on device - free space there"));
	forgetful_fail_at(w->fs, 0, 0, false);
	ft_backup_tick(w->b);
	CHECK(w->took_over);
	world_free(w);
}

/* --- a sync that takes long --- */

static void copy_with_a_slow_disk(struct world *w)
{
	ft_store_tuning.sync_ms = 3600 * 1000;
	greet(w, 1);
	hold_disk(true);
	CHECK(!send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 2));
	until_sync();
	for (int i = 0; i < 10; i++) {                  /* its loop is free meanwhile */
		ft_backup_record(w->b, FT_REC_PING, NULL, 0);
		ft_backup_store_event(w->b);
	}
	CHECK_EQ(w->pongs, 10);
	CHECK_EQ(w->acks, 0);
	CHECK_STR(w->error, "");
}

/* A copy with a journal is durable when it is acknowledged, however long that takes. */
TEST(a_copy_is_acknowledged_when_it_is_synced_and_the_primary_hears_from_us_meanwhile)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	struct pollfd p = { .events = POLLIN };

	copy_with_a_slow_disk(w);
	hold_disk(false);
	p.fd = ft_store_event_fd(w->st);
	while (!w->acks) {
		CHECK_EQ(poll(&p, 1, 20000), 1);
		ft_backup_store_event(w->b);
	}
	CHECK_EQ(status(w).state, FT_BACKUP_ARMED);
	CHECK(send_epoch(w, 0, 1));
	world_free(w);
}

TEST(a_copy_that_cannot_be_synced_is_not_acknowledged)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);
	struct pollfd p = { .events = POLLIN };

	copy_with_a_slow_disk(w);
	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, EIO, false);
	p.fd = ft_store_event_fd(w->st);
	hold_disk(false);
	while (!*w->error) {
		CHECK_EQ(poll(&p, 1, 20000), 1);
		ft_backup_store_event(w->b);
	}
	CHECK_EQ(w->acks, 0);
	CHECK(strstr(w->error, IMAGE ": a sync of it failed"));
	world_free(w);
}

TEST(a_link_lost_during_that_sync_leaves_nothing_to_acknowledge)
{
	struct world *w = world_new(FT_DURABILITY_JOURNAL);

	copy_with_a_slow_disk(w);
	ft_backup_link_down(w->b, "cut");
	hold_disk(false);
	CHECK_OK(ft_store_sync(w->st));
	ft_backup_store_event(w->b);
	CHECK_EQ(w->acks, 0);
	CHECK_EQ(status(w).state, FT_BACKUP_SYNCING);
	greet(w, 2);
	CHECK(!send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 1));
	struct pollfd p = { .fd = ft_store_event_fd(w->st), .events = POLLIN };
	while (!w->acks) {
		CHECK_EQ(poll(&p, 1, 20000), 1);
		ft_backup_store_event(w->b);
	}
	world_free(w);
}

/* --- what the primary is told --- */

TEST(the_primary_hears_which_image_has_no_space_left)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, ENOSPC, true);
	CHECK(send_epoch(w, 0, 1));
	CHECK(!send_epoch(w, 0, 1));
	CHECK_EQ(w->reason, FT_REASON_NO_ROOM);
	CHECK_STR(w->error, IMAGE ": cannot write: No space left on device - free space there");
	world_free(w);
}

/* Else it would be, and end with its first epoch, time and again. */
TEST(a_session_is_not_resumed_before_the_disks_can_be_written)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, ENOSPC, true);
	CHECK(send_epoch(w, 0, 1));
	ft_backup_link_down(w->b, "cut");
	hello(w, 1, 7);
	CHECK_EQ(w->welcome.reason, FT_REASON_NO_ROOM);
	CHECK_STR(w->refusal, IMAGE ": cannot write: No space left on device - free space there");
	forgetful_fail_at(w->fs, 0, 0, false);
	hello(w, 1, 7);
	CHECK_EQ(w->welcome.reason, FT_REASON_OK);
	CHECK_EQ(w->welcome.epoch, 3);
	CHECK(w->replica);
	world_free(w);
}

TEST(a_backup_whose_disk_has_lost_what_was_written_begins_anew)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	forgetful_only(w->fs, IMAGE);
	forgetful_fail_at(w->fs, 1, EIO, false);
	CHECK_EQ(ft_store_sync(w->st), -EIO);
	ft_backup_link_down(w->b, "cut");
	hello(w, 1, 7);
	CHECK_EQ(w->welcome.reason, FT_REASON_OK);
	CHECK_EQ(w->welcome.replica, FT_REPLICA_NONE);  /* nothing to resume */
	CHECK(!w->replica && !w->st);
	ft_backup_link_down(w->b, "cut");
	greet(w, 2);
	CHECK(send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 2));
	CHECK_EQ(status(w).state, FT_BACKUP_ARMED);
	world_free(w);
}

/* Else the map of a primary whose guest writes no more would never get clean. */
TEST(what_became_durable_without_a_link_is_told_when_the_session_is_resumed)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);
	uint64_t last = w->seq - 1;             /* the encoder asked for one more */

	ft_backup_link_down(w->b, "cut");
	CHECK_OK(ft_store_sync(w->st));
	ft_backup_store_event(w->b);
	CHECK_EQ(w->durable, 0);
	hello(w, 1, 7);
	ft_backup_store_event(w->b);
	CHECK_EQ(w->durable, last);
	world_free(w);
}

/* --- a copy that does not fit beside what could be started --- */

static struct world *armed_with_little_room(void)
{
	struct world *w = world_new(FT_DURABILITY_MEMORY);

	w->memory_bound = 1 << 17;
	w->journal_bound = 1 << 18;
	greet(w, 1);
	CHECK(send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 8));
	return w;
}

/* A large copy beside what could be started: nobody waits for it to be on the images, but who needs all of it. */
TEST(a_copy_is_put_on_the_images_in_turns_and_a_drill_waits_for_it)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);
	uint8_t body[8] = { 0 };
	unsigned turns = 0;

	ft_store_tuning.slice = 1;
	greet(w, 2);
	CHECK(send_epoch(w, FT_EPOCH_FULL, 6));
	CHECK(ft_store_behind(w->st));                  /* acknowledged, and not all of it is there */
	ft_backup_record(w->b, FT_REC_DRILL, body, sizeof(body));
	CHECK(!status(w).drilling);
	while (!status(w).drilling) {
		unsigned pongs = w->pongs;

		CHECK(ft_store_behind(w->st));
		ft_backup_store_event(w->b);
		ft_backup_record(w->b, FT_REC_PING, body, sizeof(body));
		CHECK(w->pongs == pongs + 1 && ++turns < 20);
	}
	CHECK(turns > 1 && !ft_store_behind(w->st));
	world_free(w);
}

TEST(a_takeover_puts_the_rest_of_a_copy_on_the_images_first)
{
	struct world *w = armed_world(FT_DURABILITY_MEMORY);

	ft_store_tuning.slice = 1;
	greet(w, 2);
	CHECK(send_epoch(w, FT_EPOCH_FULL, 6));
	CHECK(ft_store_behind(w->st));
	w->silent = true;
	ft_backup_tick(w->b);                           /* ft_store_release refuses what is not applied */
	CHECK(w->took_over);
	world_free(w);
}

TEST(a_copy_that_never_fits_beside_the_replica_takes_its_place)
{
	struct world *w = armed_with_little_room();

	for (uint64_t g = 2; g <= 4; g++) {
		CHECK(w->replica);              /* the first times may be chance */
		greet(w, g);
		CHECK(!send_epoch(w, FT_EPOCH_FULL, 8));
		CHECK_EQ(w->reason, FT_REASON_NO_ROOM);
		CHECK(strstr(w->error, "raise 'disk-spill-mb' in the ft.conf of this host"));
	}
	CHECK(!w->replica);
	CHECK_EQ(status(w).state, FT_BACKUP_EMPTY);
	w->silent = true;
	ft_backup_tick(w->b);                   /* it is nothing to start */
	CHECK(!w->took_over);
	w->silent = false;
	greet(w, 5);
	CHECK(send_epoch(w, FT_EPOCH_FULL | FT_EPOCH_DIRECT, 8));
	CHECK_EQ(status(w).state, FT_BACKUP_ARMED);
	world_free(w);
}

TEST(copies_that_fit_in_between_keep_the_replica)
{
	struct world *w = armed_with_little_room();

	for (uint64_t g = 2; g <= 9; g++) {
		greet(w, g);
		CHECK_EQ(send_epoch(w, FT_EPOCH_FULL, g % 3 ? 8 : 1), g % 3 == 0);
		CHECK(w->replica);
	}
	world_free(w);
}
