// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * store.c - the replica's disks: stage, apply, sync; see ft/store.h.
 *
 * An epoch is a list of batches in memory, then, once the bound is reached, a stretch of the journal. With durability
 * `journal` all batches are in the journal, and memory only saves reading them again.
 *
 * A copy makes the images useless until it is through: the map says TARGET from before the first op of a DIRECT copy
 * reaches an image, and before a staged one is acknowledged, because from then on the primary takes for granted that
 * the images are of its generation. They are once everything is applied and synced, which is the thread's work
 * (it may take long). With durability `journal` a staged copy is in the journal instead, together with the ids.
 */
#include "ft/store.h"

#include "diskmirror/journal.h"
#include "diskmirror/store_priv.h"
#include "ft/image.h"
#include "ft/map.h"
#include "ft/thread.h"

#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* Whole epochs waiting for the end of a drill, as in image.c. */
#define EPOCHS_MAX 65536u
#define WHOLE_HDR 16u                           /* le64 epoch, le32 flags, le32 number of disks; then their ids */
#define WHOLE_MAX (WHOLE_HDR + FT_DISKS_MAX * FT_DISK_ID_LEN)
#define WHY_MAX (PATH_MAX + 256)

/* A disk of 20 MB/s has a slice in 200 ms, within which nobody minds that the loop stands still. */
struct ft_store_tuning ft_store_tuning = { .sync_ms = 1000, .slice = 4 << 20 };

struct record {                                 /* a batch in memory: the body as it came */
	struct record *next;
	uint32_t len;
	uint8_t data[];
};

struct epoch {
	struct epoch *next;
	uint64_t number, ordinal, stream;
	uint32_t flags;
	struct ft_disk_id ids[FT_DISKS_MAX];    /* FULL: what the images are with it */
	struct record *first, **last;
	unsigned spilled;                       /* batches that are only in the journal, after those in memory: */
	struct ft_journal_place at;
	size_t bytes;                           /* staged */
};

struct disk {
	char image[PATH_MAX], map_path[PATH_MAX];
	int h;                                  /* -1: none */
	struct ft_map_image identity;
	struct ft_map *map;                     /* NULL: fresh */
	uint64_t seq, seq_whole;                /* last op staged: of the open epoch, of whole ones */
	/* Under the lock: */
	uint64_t applied, synced, told;         /* seq in this stream */
	bool dirty;
};

struct ft_store {
	struct ft_store_config cfg;
	struct ft_disk_files f;
	struct ft_journal_config jcfg;
	struct ft_journal *journal;
	struct disk disk[FT_DISKS_MAX];
	uint8_t *raw, *back;                    /* a batch unpacked; a body read back */
	int event_fd;
	bool held;
	uint64_t left;                          /* epochs that a crash has left in the journal */

	struct ft_disk_id peer[FT_DISKS_MAX];   /* of this session */
	bool peer_ok;                           /* they may be copied over ours */
	bool usable;                            /* a FULL epoch is whole: others may follow */
	uint64_t whole;                         /* number of the newest whole epoch */
	uint64_t applied_epoch;
	uint64_t ordinal;                       /* of the newest whole epoch */
	struct epoch *first, **last;            /* whole, not yet applied */
	unsigned nr_epochs;
	size_t due;                             /* of epochs that came since advance, without copies */
	size_t mem_used;
	struct epoch *open;

	pthread_mutex_t emptying;               /* of the journal; taken last */
	pthread_mutex_t syncing;                /* one syncs at a time; taken before ids, that before lock */
	pthread_mutex_t ids;                    /* for the ids in the maps, and: */
	bool adopt;                             /* all of a copy is applied: with the next sync the images are */
	struct ft_disk_id adopted[FT_DISKS_MAX];        /* these */
	uint64_t copies;                        /* how many have begun: a sync for an older one adopts nothing */

	pthread_mutex_t lock;                   /* for disk[].applied ..., and: */
	pthread_cond_t wake;
	pthread_t thread;
	bool running, stop, kicked;
	bool retry;                             /* the last sync did not do all of its work */
	uint64_t stream;                        /* sessions; seqs of another one mean nothing */
	uint64_t ordinal_applied;
	uint64_t begun, ended;                  /* syncs of the images; ended: those that went well, by number */
	uint64_t awaited;                       /* the loop waits for that one; 0: for none */
	int await_rc;
	int failed;                             /* a sync: what was written is lost, and the kernel will not say so again */
	unsigned failed_disk;

	struct ft_log_limit log;                /* the loop thread's, for: */
	char why[WHY_MAX];                      /* the last failure, empty after a success */
};

static bool durable_mode(const struct ft_store *st)
{
	return st->cfg.durability == FT_DURABILITY_JOURNAL;
}

/* --- what went wrong --- */

static int sync_failure(struct ft_store *st)
{
	int rc;

	pthread_mutex_lock(&st->lock);
	rc = st->failed;
	pthread_mutex_unlock(&st->lock);
	return rc;
}

/* Said again and again while it is tried again and again: logged now and then. */
static int fault(struct ft_store *st, int rc, const char *fmt, ...) FT_PRINTF(3, 4);
static int fault(struct ft_store *st, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(st->why, sizeof(st->why), fmt, ap);
	va_end(ap);
	if (ft_log_due(&st->log, st->why))
		ft_err("%s", st->why);
	return rc;
}

bool ft_store_lost(struct ft_store *st)
{
	return sync_failure(st) != 0;
}

const char *ft_store_why(struct ft_store *st)
{
	int rc = sync_failure(st);

	if (rc)
		snprintf(st->why, sizeof(st->why), "%s: a sync of it failed (%s), and what was written to it is lost - replace the disk "
			 "under it", st->disk[st->failed_disk].image, strerror(-rc));
	return st->why;
}

/* --- syncing: by the thread, or when there is no other way out --- */

struct point {                                  /* what a sync makes durable */
	uint64_t nr, stream, ordinal, copies;
	uint64_t applied[FT_DISKS_MAX];
	bool dirty[FT_DISKS_MAX], adopt;
};

static void take_point(struct ft_store *st, struct point *p)
{
	*p = (struct point){ 0 };
	pthread_mutex_lock(&st->ids);
	p->adopt = st->adopt;
	p->copies = st->copies;
	pthread_mutex_lock(&st->lock);
	p->nr = ++st->begun;
	p->stream = st->stream;
	p->ordinal = st->ordinal_applied;
	for (unsigned i = 0; i < st->cfg.nr_disks; i++) {
		p->applied[i] = st->disk[i].applied;
		p->dirty[i] = st->disk[i].dirty;
		st->disk[i].dirty = false;
	}
	pthread_mutex_unlock(&st->lock);
	pthread_mutex_unlock(&st->ids);
}

static void raise_event(struct ft_store *st)
{
	uint64_t one = 1;

	if (write(st->event_fd, &one, sizeof(one)) < 0)
		ft_debug("event: %s", strerror(errno));         /* the counter is full: it is readable anyway */
}

/* The kernel takes what it could not write for written, and a later sync succeeds: only the map will remember. */
static void mark_lost(struct ft_store *st, unsigned disk, int rc)
{
	ft_err("%s: sync: %s - what was written to it is lost; replace the disk under it", st->disk[disk].image, strerror(-rc));
	pthread_mutex_lock(&st->lock);
	st->failed = rc;
	st->failed_disk = disk;
	pthread_mutex_unlock(&st->lock);
	pthread_mutex_lock(&st->ids);
	if (st->disk[disk].map)
		ft_ignore(ft_map_lost(st->disk[disk].map));     /* logged; until we end, nothing is started from it anyway */
	pthread_mutex_unlock(&st->ids);
}

static int sync_images(struct ft_store *st, const struct point *p)
{
	for (unsigned i = 0; i < st->cfg.nr_disks; i++) {
		int rc = p->dirty[i] ? st->f.sync(st->f.ctx, st->disk[i].h) : 0;

		if (!rc)
			continue;
		mark_lost(st, i, rc);
		return rc;
	}
	return 0;
}

/*
 * ids held. The image is the peer's at an epoch, durably: nothing of before counts. Without a journal, later epochs are
 * written to it, and nothing tells what of them is lost with the power. So its map says, before it says whose image it
 * is, that it may be torn: after a power cut all of it is compared, and no guest is started from it by hand.
 */
static int adopt_disk(struct ft_store *st, struct disk *d, const struct ft_disk_id *peer)
{
	struct ft_disk_id id = { .bytes = peer->bytes, .current = peer->current };
	int rc = durable_mode(st) ? 0 : ft_map_unsafe_anew(d->map);

	if (!rc)
		rc = ft_map_set_id(d->map, &id);
	if (rc)
		return rc;
	ft_map_copy_begins(d->map);
	for (uint64_t r = ft_map_next(d->map, 0); r < ft_disk_regions(peer->bytes); r = ft_map_next(d->map, r + 1))
		ft_map_compared(d->map, r, 0);
	ft_map_durable(d->map, 0);
	rc = ft_map_save(d->map);
	if (rc)
		return rc;
	return durable_mode(st) ? ft_map_set_unsafe(d->map, false) : 0;
}

static int adopt_ids(struct ft_store *st, const struct point *p)
{
	int rc = 0;

	pthread_mutex_lock(&st->ids);
	if (st->adopt && st->copies == p->copies) {
		for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++)
			rc = adopt_disk(st, &st->disk[i], &st->adopted[i]);
		st->adopt = rc;
	}
	pthread_mutex_unlock(&st->ids);
	return rc;
}

static void publish(struct ft_store *st, const struct point *p)
{
	bool news = false;

	pthread_mutex_lock(&st->lock);
	for (unsigned i = 0; i < st->cfg.nr_disks && st->stream == p->stream; i++) {
		news |= st->disk[i].synced < p->applied[i];
		st->disk[i].synced = p->applied[i];
	}
	st->ended = p->nr;
	news |= st->awaited && st->awaited <= p->nr;
	pthread_mutex_unlock(&st->lock);
	if (news)
		raise_event(st);
}

static int empty_journal(struct ft_store *st, uint64_t ordinal)
{
	int rc;

	pthread_mutex_lock(&st->emptying);
	rc = ft_journal_reset(st->journal, ordinal);
	pthread_mutex_unlock(&st->emptying);
	return rc;
}

int ft_store_sync(struct ft_store *st)
{
	struct point p;
	int rc;

	pthread_mutex_lock(&st->syncing);
	take_point(st, &p);
	rc = sync_images(st, &p);
	if (!rc && p.adopt)
		rc = adopt_ids(st, &p);
	if (!rc) {
		publish(st, &p);
		rc = empty_journal(st, p.ordinal);
	}
	pthread_mutex_lock(&st->lock);
	st->retry = rc;
	if (st->awaited && st->awaited <= p.nr && rc) {
		st->await_rc = rc;
		raise_event(st);
	}
	pthread_mutex_unlock(&st->lock);
	pthread_mutex_unlock(&st->syncing);
	return rc;
}

/* --- the thread --- */

static bool has_work(struct ft_store *st)
{
	bool work = ft_journal_used(st->journal) > 0;

	for (unsigned i = 0; i < st->cfg.nr_disks; i++)
		work |= st->disk[i].dirty;
	return (work || st->kicked || st->retry) && !st->failed;
}

static void wait_turn(struct ft_store *st)
{
	uint64_t end = ft_now_ns() + ft_store_tuning.sync_ms * FT_MS_NS;

	while (!st->stop && !st->kicked)
		if (ft_cond_wait(&st->wake, &st->lock, end))
			break;
}

static void *sync_main(void *arg)
{
	struct ft_store *st = arg;

	pthread_mutex_lock(&st->lock);
	while (!st->stop) {
		bool work;

		wait_turn(st);
		work = !st->stop && has_work(st);
		st->kicked = false;
		pthread_mutex_unlock(&st->lock);
		if (work)
			ft_ignore(ft_store_sync(st));   /* logged; a failed sync is found by commit, the rest is tried again */
		pthread_mutex_lock(&st->lock);
	}
	pthread_mutex_unlock(&st->lock);
	return NULL;
}

static void kick(struct ft_store *st)
{
	pthread_mutex_lock(&st->lock);
	st->kicked = true;
	pthread_cond_signal(&st->wake);
	pthread_mutex_unlock(&st->lock);
}

static int start_thread(struct ft_store *st)
{
	int rc;

	if (!ft_store_tuning.sync_ms)
		return 0;
	rc = ft_thread_start(&st->thread, "ft-store", sync_main, st);
	st->running = !rc;
	return rc;
}

static void stop_thread(struct ft_store *st)
{
	if (!st->running)
		return;
	pthread_mutex_lock(&st->lock);
	st->stop = true;
	pthread_cond_signal(&st->wake);
	pthread_mutex_unlock(&st->lock);
	pthread_join(st->thread, NULL);
	st->running = false;
}

/* --- applying --- */

static int apply_op(struct ft_store *st, struct disk *d, const struct ft_disk_op *op, const uint8_t *data)
{
	switch (op->op) {
	case FT_DISK_WRITE: return st->f.pwrite(st->f.ctx, d->h, data, op->len, op->offset);
	case FT_DISK_ZERO: return st->f.zero(st->f.ctx, d->h, op->offset, op->len);
	default: return 0;
	}
}

/*
 * Go through @ops: -EPROTO unless they are ops of @disk with growing numbers that fill the batch exactly.
 * *seq becomes the last one's. @apply: to the image, too.
 */
static int walk_ops(struct ft_store *st, unsigned disk, const uint8_t *ops, size_t len, uint32_t nr_ops, uint64_t *seq, bool apply)
{
	const uint8_t *p = ops, *end = ops + len;
	struct disk *d = &st->disk[disk];
	int rc = 0;

	for (uint32_t i = 0; i < nr_ops && !rc; i++) {
		struct ft_disk_op op;
		size_t data;

		if ((size_t)(end - p) < FT_DISK_OP_LEN || ft_disk_unpack_op(p, st->cfg.disk[disk].bytes, &op) || op.seq <= *seq)
			return -EPROTO;
		p += FT_DISK_OP_LEN;
		data = op.op == FT_DISK_WRITE ? op.len : 0;
		if ((size_t)(end - p) < data)
			return -EPROTO;
		if (apply)
			rc = apply_op(st, d, &op, p);
		p += data;
		*seq = op.seq;
	}
	return rc ? rc : p == end ? 0 : -EPROTO;
}

/* *ops: in @body, or in st->raw. */
static int unpack(struct ft_store *st, const uint8_t *body, size_t body_len, uint32_t *disk, const uint8_t **ops, size_t *len,
		  uint32_t *nr_ops)
{
	if (ft_disk_open_batch(body, body_len, disk, st->raw, ops, len, nr_ops) || *disk >= st->cfg.nr_disks)
		return -EPROTO;
	return 0;
}

static int cannot_apply(struct ft_store *st, unsigned disk, int rc)
{
	return fault(st, rc, "%s: cannot write: %s%s", st->disk[disk].image, strerror(-rc), rc == -ENOSPC ? " - free space there" : "");
}

static void set_applied(struct ft_store *st, unsigned disk, uint64_t seq, uint64_t stream)
{
	pthread_mutex_lock(&st->lock);
	if (stream == st->stream)
		st->disk[disk].applied = seq;
	pthread_mutex_unlock(&st->lock);
}

/* Before the first byte: a sync that runs beside it may not have all of it. */
static void set_dirty(struct ft_store *st, unsigned disk)
{
	pthread_mutex_lock(&st->lock);
	st->disk[disk].dirty = true;
	pthread_mutex_unlock(&st->lock);
}

/* They were checked when they came. */
static int apply_ops(struct ft_store *st, unsigned disk, const uint8_t *ops, size_t len, uint32_t nr_ops, uint64_t stream)
{
	uint64_t seq = 0;
	int rc;

	set_dirty(st, disk);
	rc = walk_ops(st, disk, ops, len, nr_ops, &seq, true);
	set_dirty(st, disk);
	if (rc)
		return cannot_apply(st, disk, rc);
	set_applied(st, disk, seq, stream);
	return 0;
}

static int apply_body(struct ft_store *st, const uint8_t *body, size_t body_len, uint64_t stream)
{
	const uint8_t *ops;
	uint32_t disk, nr_ops;
	size_t len;
	int rc = unpack(st, body, body_len, &disk, &ops, &len, &nr_ops);

	return rc ? rc : apply_ops(st, disk, ops, len, nr_ops, stream);
}

/* --- open --- */

static void init_locks(struct ft_store *st)
{
	pthread_mutex_init(&st->emptying, NULL);
	pthread_mutex_init(&st->syncing, NULL);
	pthread_mutex_init(&st->ids, NULL);
	pthread_mutex_init(&st->lock, NULL);
	ft_cond_init(&st->wake);
}

static int new_store(const struct ft_store_config *cfg, struct ft_store **out)
{
	struct ft_store *st = calloc(1, sizeof(*st));

	if (!st)
		return -ENOMEM;
	assert(cfg->nr_disks && cfg->nr_disks <= FT_DISKS_MAX);
	st->cfg = *cfg;
	st->f = *(cfg->files ? cfg->files : &ft_disk_files_real);
	st->jcfg = (struct ft_journal_config){ .files = &st->f, .dir = cfg->state_dir, .guest = cfg->guest,
					       .durable = durable_mode(st), .bound = cfg->journal_bound };
	st->last = &st->first;
	st->stream = 1;
	st->event_fd = -1;
	for (unsigned i = 0; i < FT_DISKS_MAX; i++)
		st->disk[i].h = -1;
	init_locks(st);
	*out = st;
	st->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (st->event_fd < 0)
		return -errno;
	st->raw = malloc(FT_DISK_BATCH_MAX);
	st->back = malloc(FT_JOURNAL_BODY_MAX);
	return st->raw && st->back ? 0 : -ENOMEM;
}

static int sync_parent(struct ft_store *st, const char *path)
{
	char dir[PATH_MAX];
	int rc = ft_parent_dir(path, dir, sizeof(dir));

	return rc ? rc : st->f.sync_dir(st->f.ctx, dir);
}

static const char *remedy(int rc)
{
	switch (rc) {
	case -EBUSY: return "another program, or another guest, uses it";
	case -ENOENT: return "not there - make its directory, or put the image back that the journal has writes for";
	case -EROFS: case -EACCES: case -EPERM: return "not writable";
	default: return strerror(-rc);
	}
}

static int cannot_open(const struct disk *d, int rc)
{
	ft_err("%s: cannot be the replica's disk: %s", d->image, remedy(rc));
	return rc;
}

/* One that is not there, or whose making was cut short, is made. */
static int open_image(struct ft_store *st, struct disk *d, bool *made)
{
	int rc = st->f.open(st->f.ctx, d->image, false, &d->h);
	uint64_t bytes;

	*made = rc == -ENOENT && !st->left;
	if (*made)
		rc = st->f.open(st->f.ctx, d->image, true, &d->h);
	if (rc) {
		d->h = -1;
		return rc;
	}
	rc = st->f.lock(st->f.ctx, d->h);
	if (!rc)
		rc = st->f.size(st->f.ctx, d->h, &bytes);
	if (!rc)
		*made |= !bytes && !st->left;
	return rc;
}

static int size_image(struct ft_store *st, struct disk *d, uint64_t bytes, bool made)
{
	uint64_t size;
	int rc = 0;

	if (made)
		rc = st->f.truncate(st->f.ctx, d->h, bytes);
	if (!rc && made)
		rc = st->f.sync(st->f.ctx, d->h);
	if (!rc && made)
		rc = sync_parent(st, d->image);
	if (!rc)
		rc = st->f.size(st->f.ctx, d->h, &size);
	if (rc)
		return cannot_open(d, rc);
	if (size == bytes)
		return 0;
	ft_err("%s: has %llu bytes, and the primary's disk %llu - make it the same size, or remove it: it is made anew then", d->image,
	       (unsigned long long)size, (unsigned long long)bytes);
	return -EFBIG;
}

static int open_map(struct ft_store *st, struct disk *d, uint64_t bytes, bool made)
{
	int rc = st->f.identity(st->f.ctx, d->h, &d->identity.inode, &d->identity.born_ns);

	if (rc)
		return cannot_open(d, rc);
	d->identity.bytes = bytes;
	if (made)
		return 0;                       /* a map of an image that is gone says nothing */
	rc = ft_map_open(&st->f, d->map_path, &d->identity, &d->map);
	return rc == -ENOENT ? 0 : rc;
}

static int open_disk(struct ft_store *st, unsigned i)
{
	struct disk *d = &st->disk[i];
	bool made = false;
	int rc;

	if (snprintf(d->image, PATH_MAX, "%s", st->cfg.disk[i].image) >= PATH_MAX ||
	    snprintf(d->map_path, PATH_MAX, "%s/%s.disk%u.map", st->cfg.state_dir, st->cfg.guest, i) >= PATH_MAX)
		return -ENAMETOOLONG;
	rc = open_image(st, d, &made);
	if (rc)
		return cannot_open(d, rc);
	rc = size_image(st, d, st->cfg.disk[i].bytes, made);
	return rc ? rc : open_map(st, d, st->cfg.disk[i].bytes, made);
}

/* --- replay --- */

/* The end of an epoch in the journal: what it makes of the disks' ids. */
static int parse_whole(struct ft_store *st, const uint8_t *body, size_t len, uint32_t *flags, struct ft_disk_id *ids)
{
	if (len < WHOLE_HDR || ft_le32(body + 12) != st->cfg.nr_disks || len != WHOLE_HDR + st->cfg.nr_disks * FT_DISK_ID_LEN)
		return -EBADMSG;
	*flags = ft_le32(body + 8);
	for (unsigned i = 0; i < st->cfg.nr_disks; i++)
		if (ft_disk_unpack_id(body + WHOLE_HDR + i * FT_DISK_ID_LEN, &ids[i]) || ids[i].bytes != st->cfg.disk[i].bytes)
			return -EBADMSG;
	return 0;
}

static size_t pack_whole(const struct ft_store *st, const struct epoch *e, uint8_t body[WHOLE_MAX])
{
	ft_put64(body, e->number);
	ft_put32(body + 8, e->flags);
	ft_put32(body + 12, st->cfg.nr_disks);
	for (unsigned i = 0; i < st->cfg.nr_disks; i++) {
		struct ft_disk_id none = { .bytes = st->cfg.disk[i].bytes, .flags = FT_DISK_FRESH };

		ft_disk_pack_id(e->flags & FT_EPOCH_FULL ? &e->ids[i] : &none, body + WHOLE_HDR + i * FT_DISK_ID_LEN);
	}
	return WHOLE_HDR + st->cfg.nr_disks * FT_DISK_ID_LEN;
}

static int replay_record(void *ctx, unsigned type, const uint8_t *body, size_t len)
{
	struct ft_disk_id ids[FT_DISKS_MAX];
	struct ft_store *st = ctx;
	uint32_t flags;
	int rc;

	if (type == FT_JOURNAL_BATCH) {
		rc = apply_body(st, body, len, 0);
		return rc == -EPROTO ? -EBADMSG : rc;
	}
	rc = type == FT_JOURNAL_WHOLE ? parse_whole(st, body, len, &flags, ids) : -EBADMSG;
	if (!rc && flags & FT_EPOCH_FULL) {
		memcpy(st->adopted, ids, sizeof(ids));
		st->adopt = true;
	}
	return rc;
}

static int make_maps(struct ft_store *st);

/* Idempotent: a crash on the way leaves the journal for the next time. */
static int replay(struct ft_store *st)
{
	struct point p;
	uint64_t nr;
	int rc = ft_journal_replay(&st->jcfg, replay_record, st, &nr);

	if (rc)
		return rc;
	take_point(st, &p);
	rc = sync_images(st, &p);
	if (!rc && st->adopt)
		rc = make_maps(st);
	if (!rc && st->adopt)
		rc = adopt_ids(st, &p);
	if (!rc && nr)
		ft_info("%s: %llu epochs of disk writes that a crash had left in the journal are on the images now", st->cfg.guest,
			(unsigned long long)nr);
	return rc ? rc : ft_journal_remove(&st->jcfg);
}

static int open_disks(struct ft_store *st)
{
	int rc = ft_journal_replay(&st->jcfg, NULL, NULL, &st->left);

	for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++)
		rc = open_disk(st, i);
	return rc ? rc : replay(st);
}

int ft_store_open(const struct ft_store_config *cfg, struct ft_store **out)
{
	struct ft_store *st = NULL;
	int rc = new_store(cfg, &st);

	if (!rc)
		rc = open_disks(st);
	if (!rc)
		rc = ft_journal_new(&st->jcfg, &st->journal);
	if (!rc)
		rc = start_thread(st);
	if (rc) {
		ft_store_free(st);
		return rc;
	}
	*out = st;
	return 0;
}

/* --- which data is where --- */

static void disk_id(struct ft_store *st, unsigned disk, struct ft_disk_id *out)
{
	if (st->disk[disk].map)
		ft_map_id(st->disk[disk].map, out);
	else
		*out = (struct ft_disk_id){ .bytes = st->cfg.disk[disk].bytes, .flags = FT_DISK_FRESH };
}

void ft_store_id(const struct ft_store *st, unsigned disk, struct ft_disk_id *out)
{
	assert(disk < st->cfg.nr_disks);
	disk_id((struct ft_store *)st, disk, out);
}

uint64_t ft_store_next_word(const struct ft_store *st, unsigned disk, uint64_t region, uint64_t *word)
{
	struct ft_map *map = st->disk[disk].map;

	*word = 0;
	if (!map)
		return ft_disk_regions(st->cfg.disk[disk].bytes);
	region = ft_map_next(map, region);
	*word = ft_map_word(map, region);
	return region;
}

static int judge(struct ft_store *st, const struct ft_disk_id *theirs, unsigned disk, char *why, size_t size)
{
	struct ft_disk_id ours;
	char text[384];

	disk_id(st, disk, &ours);
	if (theirs->flags & FT_DISK_FRESH)
		snprintf(text, sizeof(text), "the primary has made no generation for it");
	else if (ft_disk_judge(theirs, &ours, text, sizeof(text)) != FT_DISK_REFUSE)
		return 0;
	snprintf(why, size, "disk %u: %s", disk, text);
	return -EPERM;
}

int ft_store_peer(struct ft_store *st, const struct ft_disk_id *theirs, unsigned nr, char *why, size_t size)
{
	int rc = 0;

	ft_store_discard_partial(st);
	st->peer_ok = false;
	if (size)
		*why = 0;
	if (nr != st->cfg.nr_disks)
		return -EPROTO;
	pthread_mutex_lock(&st->lock);
	st->stream++;
	for (unsigned i = 0; i < nr; i++)
		st->disk[i].applied = st->disk[i].synced = st->disk[i].told = 0;
	pthread_mutex_unlock(&st->lock);
	for (unsigned i = 0; i < nr && !rc; i++)
		rc = judge(st, &theirs[i], i, why, size);
	st->peer_ok = !rc;
	if (!rc)
		memcpy(st->peer, theirs, nr * sizeof(*theirs));
	return rc;
}

/* --- targets of a copy --- */

/* ids held, or no thread yet. */
static int make_maps(struct ft_store *st)
{
	int rc = 0;

	for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++) {
		struct disk *d = &st->disk[i];
		struct ft_disk_id id = { .bytes = d->identity.bytes, .flags = FT_DISK_TARGET };

		if (!d->map)
			rc = ft_map_create(&st->f, d->map_path, &d->identity, &id, &d->map);
	}
	return rc;
}

/* From here on the images are useless by themselves, until the copy of @e is adopted. */
static int mark_targets(struct ft_store *st, const struct epoch *e)
{
	int rc;

	pthread_mutex_lock(&st->ids);
	st->adopt = false;
	st->copies++;
	rc = make_maps(st);
	for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++) {
		struct ft_disk_id id = { .bytes = e->ids[i].bytes, .base = e->ids[i].current, .flags = FT_DISK_TARGET };

		rc = ft_map_set_id(st->disk[i].map, &id);
	}
	pthread_mutex_unlock(&st->ids);
	return rc;
}

/* All of a copy is on the images: what is left is to sync them. */
static void copy_applied(struct ft_store *st, const struct epoch *e)
{
	pthread_mutex_lock(&st->ids);
	st->adopt = true;
	memcpy(st->adopted, e->ids, sizeof(st->adopted));
	pthread_mutex_unlock(&st->ids);
	kick(st);
}

/* --- an epoch arrives --- */

static void pop_record(struct ft_store *st, struct epoch *e)
{
	struct record *r = e->first;

	e->first = r->next;
	st->mem_used -= sizeof(*r) + r->len;
	free(r);
}

static void drop_epoch(struct ft_store *st, struct epoch *e)
{
	while (e->first)
		pop_record(st, e);
	free(e);
}

void ft_store_discard_partial(struct ft_store *st)
{
	if (!st->open)
		return;
	pthread_mutex_lock(&st->lock);
	st->awaited = 0;
	pthread_mutex_unlock(&st->lock);
	ft_journal_discard(st->journal);
	drop_epoch(st, st->open);
	st->open = NULL;
}

/* Every failure on the way of an epoch ends here: nothing of it stays. */
static int discard(struct ft_store *st, int rc)
{
	ft_store_discard_partial(st);
	return rc;
}

static bool begin_ok(const struct ft_store *st, uint64_t epoch, uint32_t flags)
{
	if (!epoch || flags & ~(FT_EPOCH_FULL | FT_EPOCH_DIRECT))
		return false;
	if (flags & FT_EPOCH_DIRECT && (!(flags & FT_EPOCH_FULL) || st->first || st->held))
		return false;
	return flags & FT_EPOCH_FULL ? st->peer_ok : st->usable && epoch > st->whole;
}

/*
 * The images are written from now on, and are useless until the copy is through. So the journal need not be on them before it
 * is emptied, which it must be: a replay would undo what is written now. All epochs in it are applied.
 */
static int begin_direct(struct ft_store *st, struct epoch *e)
{
	int rc = mark_targets(st, e);

	if (rc)
		return rc;
	st->usable = false;
	rc = empty_journal(st, st->ordinal);
	return !rc && ft_journal_used(st->journal) ? -EIO : rc;
}

static struct epoch *new_epoch(struct ft_store *st, uint64_t number, uint32_t flags)
{
	struct epoch *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->number = number;
	e->flags = flags;
	e->stream = st->stream;
	e->last = &e->first;
	memcpy(e->ids, st->peer, sizeof(e->ids));
	for (unsigned i = 0; i < st->cfg.nr_disks; i++)         /* a new session is a new stream */
		st->disk[i].seq = flags & FT_EPOCH_FULL ? 0 : st->disk[i].seq_whole;
	return e;
}

int ft_store_begin(struct ft_store *st, uint64_t epoch, uint32_t flags)
{
	struct epoch *e;
	int rc = 0;

	ft_store_discard_partial(st);
	*st->why = 0;
	if (!begin_ok(st, epoch, flags))
		return -EPROTO;
	if (st->nr_epochs >= EPOCHS_MAX)
		return -ENOBUFS;
	rc = sync_failure(st);
	if (rc)
		return rc;
	e = new_epoch(st, epoch, flags);
	if (!e)
		return -ENOMEM;
	if (flags & FT_EPOCH_DIRECT)
		rc = begin_direct(st, e);
	if (rc) {
		drop_epoch(st, e);
		return rc;
	}
	ft_journal_begin(st->journal);
	st->open = e;
	return 0;
}

static int journal_failed(struct ft_store *st, int rc)
{
	return fault(st, rc, "journal of %s in %s: %s%s", st->cfg.guest, st->cfg.state_dir, strerror(-rc),
		     rc == -ENOSPC ? " - free space there" : "");
}

static int journal_full(struct ft_store *st)
{
	return fault(st, -ENOSPC, "journal of %s in %s: what comes in at once does not fit into %llu MiB - raise 'disk-spill-mb' in "
		     "the ft.conf of this host", st->cfg.guest, st->cfg.state_dir, (unsigned long long)(st->cfg.journal_bound >> 20));
}

/* When it is full, and all epochs in it are applied, a sync makes room. */
static int append(struct ft_store *st, unsigned type, const uint8_t *body, size_t len, struct ft_journal_place *at)
{
	int rc = ft_journal_append(st->journal, type, body, len, at);

	if (rc == -ENOSPC && !ft_store_commit(st) && !ft_store_sync(st))
		rc = ft_journal_append(st->journal, type, body, len, at);
	if (ft_journal_wants_reset(st->journal))
		kick(st);
	if (rc == -ENOSPC && !ft_journal_fits(st->journal, len))
		return journal_full(st);
	return rc ? journal_failed(st, rc) : 0;
}

static int stage_in_memory(struct ft_store *st, const uint8_t *body, size_t len)
{
	struct record *r = malloc(sizeof(*r) + len);

	if (!r)
		return -ENOMEM;
	*r = (struct record){ .len = (uint32_t)len };
	ft_copy(r->data, body, len);
	*st->open->last = r;
	st->open->last = &r->next;
	st->mem_used += sizeof(*r) + len;
	return 0;
}

static int stage(struct ft_store *st, const uint8_t *body, size_t len)
{
	struct epoch *e = st->open;
	bool spill = e->spilled || st->mem_used + sizeof(struct record) + len > st->cfg.memory_bound;
	struct ft_journal_place at;
	int rc = 0;

	if (spill || durable_mode(st))
		rc = append(st, FT_JOURNAL_BATCH, body, len, &at);
	if (rc)
		return rc;
	e->bytes += len;
	if (!spill)
		return stage_in_memory(st, body, len);
	if (!e->spilled++)
		e->at = at;
	return 0;
}

int ft_store_batch(struct ft_store *st, const uint8_t *body, size_t body_len)
{
	const uint8_t *ops;
	uint32_t disk, nr_ops;
	uint64_t seq;
	size_t len;
	int rc;

	if (!st->open)
		return -EPROTO;
	if (unpack(st, body, body_len, &disk, &ops, &len, &nr_ops))
		return discard(st, -EPROTO);
	seq = st->disk[disk].seq;
	rc = walk_ops(st, disk, ops, len, nr_ops, &seq, false);
	if (!rc)
		rc = st->open->flags & FT_EPOCH_DIRECT ? apply_ops(st, disk, ops, len, nr_ops, st->open->stream) : stage(st, body, body_len);
	if (rc)
		return discard(st, rc);
	st->disk[disk].seq = seq;
	return 0;
}

/* --- it is whole --- */

/* A sync of all that was written until now, by the thread, as it may take long. -EINPROGRESS: the event says when to ask. */
static int await_sync(struct ft_store *st)
{
	int rc = 0;

	if (!st->running)
		return ft_store_sync(st);
	pthread_mutex_lock(&st->lock);
	if (!st->awaited) {
		st->awaited = st->begun + 1;
		st->await_rc = 0;
		st->kicked = true;
		pthread_cond_signal(&st->wake);
	}
	if (st->ended < st->awaited)
		rc = st->await_rc ? st->await_rc : -EINPROGRESS;
	else
		st->awaited = 0;
	pthread_mutex_unlock(&st->lock);
	return rc;
}

/* What stands in the way of saying so to the primary, which goes by it. */
static int make_sure(struct ft_store *st, const struct epoch *e)
{
	uint8_t body[WHOLE_MAX];
	bool direct = e->flags & FT_EPOCH_DIRECT;
	int rc = 0;

	if (!durable_mode(st))
		return e->flags & FT_EPOCH_FULL && !direct ? mark_targets(st, e) : 0;
	if (e->flags & FT_EPOCH_FULL) {
		pthread_mutex_lock(&st->ids);
		rc = make_maps(st);
		pthread_mutex_unlock(&st->ids);
	}
	if (!rc && direct)
		rc = await_sync(st);            /* its ops are nowhere but on the images */
	if (!rc)
		rc = append(st, FT_JOURNAL_WHOLE, body, pack_whole(st, e, body), NULL);
	if (!rc) {
		rc = ft_journal_sync(st->journal);
		if (rc)
			journal_failed(st, rc);
	}
	return rc;
}

static void applied(struct ft_store *st, struct epoch *e)
{
	st->applied_epoch = e->number;
	if (e->flags & FT_EPOCH_FULL)
		copy_applied(st, e);
	/* Last: a sync that sees it may empty the journal, and must then have seen that there are ids to adopt. */
	pthread_mutex_lock(&st->lock);
	st->ordinal_applied = e->ordinal;
	pthread_mutex_unlock(&st->lock);
	drop_epoch(st, e);
}

static void queue(struct ft_store *st, struct epoch *e)
{
	*st->last = e;
	st->last = &e->next;
	st->nr_epochs++;
}

int ft_store_whole(struct ft_store *st)
{
	struct epoch *e = st->open;
	int rc;

	if (!e)
		return -EPROTO;
	rc = sync_failure(st);
	if (!rc)
		rc = make_sure(st, e);
	if (rc == -EINPROGRESS)
		return rc;
	if (rc)
		return discard(st, rc);
	e->ordinal = ++st->ordinal;
	ft_journal_keep(st->journal, e->ordinal);
	for (unsigned i = 0; i < st->cfg.nr_disks; i++)
		st->disk[i].seq_whole = st->disk[i].seq;
	st->open = NULL;
	st->whole = e->number;
	st->usable = true;
	if (!(e->flags & FT_EPOCH_FULL))
		st->due += e->bytes;
	if (e->flags & FT_EPOCH_DIRECT)
		applied(st, e);
	else
		queue(st, e);
	return 0;
}

/* --- whole epochs are applied --- */

static void spend(size_t *budget, size_t len)
{
	*budget -= len < *budget ? len : *budget;
}

static int apply_spilled(struct ft_store *st, struct epoch *e, size_t *budget)
{
	struct ft_journal_place next = e->at;
	size_t len;
	int rc = ft_journal_read(st->journal, &next, st->back, &len);

	if (rc)
		return journal_failed(st, rc);
	rc = apply_body(st, st->back, len, e->stream);
	if (!rc) {
		e->at = next;
		e->spilled--;
		spend(budget, len);
	}
	return rc;
}

static int apply_staged(struct ft_store *st, struct epoch *e, size_t *budget)
{
	int rc = apply_body(st, e->first->data, e->first->len, e->stream);

	if (!rc) {
		spend(budget, e->first->len);
		pop_record(st, e);
	}
	return rc;
}

/*
 * What is done is taken off, so that a second try goes on from there. An op done twice does no harm. -EAGAIN: the budget is spent
 * before the epoch is.
 */
static int apply_epoch(struct ft_store *st, struct epoch *e, size_t *budget)
{
	int rc = 0;

	while (!rc && (e->first || e->spilled)) {
		if (!*budget)
			return -EAGAIN;
		rc = e->first ? apply_staged(st, e, budget) : apply_spilled(st, e, budget);
	}
	return rc;
}

static int apply_whole(struct ft_store *st, size_t budget)
{
	while (st->first && !st->held) {
		struct epoch *e = st->first;
		int rc = sync_failure(st);

		if (!rc)
			rc = apply_epoch(st, e, &budget);
		if (rc)
			return rc;
		st->first = e->next;
		if (!st->first)
			st->last = &st->first;
		st->nr_epochs--;
		applied(st, e);
		*st->why = 0;
	}
	return sync_failure(st);
}

int ft_store_commit(struct ft_store *st)
{
	st->due = 0;
	return apply_whole(st, SIZE_MAX);
}

int ft_store_advance(struct ft_store *st)
{
	size_t budget = ft_store_tuning.slice + st->due;
	int rc;

	st->due = 0;
	rc = apply_whole(st, budget);
	if (rc == -EAGAIN)
		raise_event(st);
	return rc;
}

bool ft_store_behind(const struct ft_store *st)
{
	return st->first && !st->held;
}

void ft_store_hold(struct ft_store *st, bool held)
{
	st->held = held;
}

/* --- end --- */

/* All is synced, and nobody writes any more. What an earlier boot has lost is not made good by that. */
static int close_maps(struct ft_store *st)
{
	int rc = 0;

	for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++) {
		struct disk *d = &st->disk[i];

		if (d->map && !durable_mode(st) && !ft_map_unsafe(d->map))
			rc = ft_map_set_unsafe(d->map, false);
		if (d->map && !rc) {
			rc = ft_map_close(d->map);
			d->map = NULL;
		}
	}
	return rc;
}

int ft_store_release(struct ft_store *st)
{
	int rc;

	ft_store_discard_partial(st);
	rc = st->held ? -EBUSY : ft_store_commit(st);
	if (rc)
		return rc;
	stop_thread(st);
	rc = ft_store_sync(st);
	if (!rc)
		rc = ft_journal_remove(&st->jcfg);
	if (!rc)
		rc = close_maps(st);
	for (unsigned i = 0; i < st->cfg.nr_disks && !rc; i++) {
		st->f.close(st->f.ctx, st->disk[i].h);
		st->disk[i].h = -1;
	}
	return rc;
}

/* An end in order: a short sync now saves comparing all of the disks after the next start of this host. */
static void leave_safe(struct ft_store *st)
{
	bool whole = st->journal && !durable_mode(st) && !sync_failure(st);

	for (unsigned i = 0; i < st->cfg.nr_disks; i++) {
		struct ft_disk_id id;

		disk_id(st, i, &id);
		whole &= !(id.flags & (FT_DISK_TARGET | FT_DISK_FRESH));
	}
	if (whole && (ft_store_sync(st) || close_maps(st)))
		ft_warn("%s: its disks here are compared as a whole if this host restarts", st->cfg.guest);
}

void ft_store_free(struct ft_store *st)
{
	if (!st)
		return;
	stop_thread(st);
	leave_safe(st);
	if (st->journal)
		ft_store_discard_partial(st);
	for (struct epoch *e = st->first, *next; e; e = next) {
		next = e->next;
		drop_epoch(st, e);
	}
	ft_journal_free(st->journal);
	for (unsigned i = 0; i < FT_DISKS_MAX; i++) {
		ft_map_abandon(st->disk[i].map);
		if (st->disk[i].h >= 0)
			st->f.close(st->f.ctx, st->disk[i].h);
	}
	if (st->event_fd >= 0)
		close(st->event_fd);
	pthread_mutex_destroy(&st->emptying);
	pthread_mutex_destroy(&st->syncing);
	pthread_mutex_destroy(&st->ids);
	pthread_mutex_destroy(&st->lock);
	pthread_cond_destroy(&st->wake);
	free(st->raw);
	free(st->back);
	free(st);
}

int ft_store_recover(const struct ft_store_config *cfg)
{
	const struct ft_disk_files *f = cfg->files ? cfg->files : &ft_disk_files_real;
	struct ft_journal_config jcfg = { .files = f, .dir = cfg->state_dir, .guest = cfg->guest };
	struct ft_store *st;
	uint64_t nr;
	int rc = ft_journal_replay(&jcfg, NULL, NULL, &nr);

	if (rc || !nr)
		return rc;
	rc = ft_store_open(cfg, &st);
	if (rc)
		return rc;
	rc = ft_store_release(st);
	ft_store_free(st);
	return rc;
}

/* --- what the primary asks, and is told --- */

static int hash_granule(struct ft_store *st, unsigned disk, uint64_t at, uint8_t out[FT_HASH_LEN])
{
	uint64_t left = st->cfg.disk[disk].bytes - at;
	size_t len = left < FT_GRANULE ? left : FT_GRANULE;
	struct disk *d = &st->disk[disk];
	int rc = 0;

	if (st->f.is_hole(st->f.ctx, d->h, at, len))
		memset(st->raw, 0, len);
	else
		rc = st->f.pread(st->f.ctx, d->h, st->raw, len, at);
	if (rc)
		ft_err("%s: cannot read: %s", d->image, strerror(-rc));
	else
		ft_disk_hash(st->raw, len, out);
	return rc;
}

int ft_store_hashes(struct ft_store *st, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out)
{
	int n = 0, rc;

	if (disk >= st->cfg.nr_disks || region >= ft_disk_regions(st->cfg.disk[disk].bytes) || !granules)
		return -EPROTO;
	rc = ft_store_commit(st);               /* what is whole comes before what is compared */
	if (rc || st->first)
		return rc ? rc : -EBUSY;
	for (; granules; granules &= granules - 1, n++) {
		uint64_t at = region * FT_REGION + (uint64_t)__builtin_ctzll(granules) * FT_GRANULE;

		if (at >= st->cfg.disk[disk].bytes)
			return -EPROTO;
		rc = hash_granule(st, disk, at, out + (size_t)n * FT_HASH_LEN);
		if (rc)
			return rc;
	}
	return n;
}

int ft_store_event_fd(const struct ft_store *st)
{
	return st->event_fd;
}

bool ft_store_durable(struct ft_store *st, unsigned disk, uint64_t *seq)
{
	struct disk *d = &st->disk[disk];
	uint64_t count;
	bool more;

	if (read(st->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		ft_debug("event: %s", strerror(errno));
	pthread_mutex_lock(&st->lock);
	more = d->synced > d->told;
	*seq = d->told = d->synced;
	pthread_mutex_unlock(&st->lock);
	return more;
}

void ft_store_tell_again(struct ft_store *st)
{
	pthread_mutex_lock(&st->lock);
	for (unsigned i = 0; i < st->cfg.nr_disks; i++)
		st->disk[i].told = 0;
	pthread_mutex_unlock(&st->lock);
	raise_event(st);
}

void ft_store_get_status(const struct ft_store *st, struct ft_store_status *out)
{
	struct ft_disk_id id;

	*out = (struct ft_store_status){
		.staged_bytes = st->mem_used, .journal_bytes = ft_journal_used(st->journal), .applied_epoch = st->applied_epoch,
	};
	for (unsigned i = 0; i < st->cfg.nr_disks; i++) {
		ft_store_id(st, i, &id);
		out->bytes += id.bytes;
		out->target |= id.flags & FT_DISK_TARGET;
	}
}
