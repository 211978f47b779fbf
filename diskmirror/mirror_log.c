// SPDX-License-Identifier: GPL-3.0-or-later
/* mirror_log.c - what the guest changed, until the backup has it; see mirror_log.h. */
#include "diskmirror/mirror_log.h"
#include "ft/thread.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define SLOT_BYTES ((FT_DLOG_CHUNK + 4095u) & ~4095u)
#define NO_SLOT UINT32_MAX

struct chunk {
	struct chunk *next;
	uint64_t id;
	uint64_t first, last;           /* seq; contiguous */
	uint64_t start;                 /* bytes of the stream before it */
	size_t len;
	uint8_t *data;                  /* NULL: in the file */
	uint32_t slot;
	unsigned busy;                  /* somebody reads or writes its slot without the lock */
	bool orphan;                    /* freed by the last of them */
};

struct disk_log {
	struct chunk *head, *tail;
	uint64_t last;                  /* newest seq that came */
	uint64_t committed;             /* seq */
	uint64_t next;                  /* to be taken; committed < next <= last + 1 */
	uint64_t sent;
	struct chunk *cur;              /* where next was looked for last, and at which byte; or NULL */
	size_t off;
	uint64_t in_pos, taken_pos, committed_pos;      /* bytes of the stream; in_pos counts what came while it was open */
	uint64_t taken_data, file_bytes;
};

struct seal {
	uint64_t epoch;
	uint64_t bound[FT_DISKS_MAX];
};

struct ft_dlog {
	struct ft_dlog_config cfg;
	pthread_mutex_t lock;
	pthread_cond_t moved;           /* ops have come, or the log was shut */
	bool spilling;                  /* the reader is at the file, with an op in its hand */
	bool open;
	uint64_t life;                  /* grows with each restart, shut and rewind: whoever takes meanwhile takes nothing */
	bool copying;                   /* the session's first epoch is not committed */
	uint64_t copy_epoch;            /* 0: not sealed yet */
	uint64_t copy_bound[FT_DISKS_MAX];
	uint64_t committed_epoch;
	struct disk_log disk[FT_DISKS_MAX];
	unsigned turn;                  /* disk to take from first */

	struct seal *seal;              /* oldest first, not committed */
	size_t nr_seals, room_seals;

	uint64_t next_id;
	size_t memory;
	uint8_t *spare;                 /* a chunk's data */

	int fd;
	uint32_t nr_slots, max_slots, slots_used;       /* nr_slots: the file's length */
	uint32_t *free_slot;
	uint32_t nr_free, room_free;

	uint8_t *back;                  /* the taker's: chunk back_id as it is in the file */
	uint64_t back_id;
};

/* --- file --- */

static off_t slot_at(uint32_t slot)
{
	return (off_t)slot * SLOT_BYTES;
}

/* Room to give each slot back is made when the slot is: giving back must not fail. */
static int slot_get(struct ft_dlog *l, uint32_t *slot)
{
	if (l->nr_free) {
		*slot = l->free_slot[--l->nr_free];
	} else {
		if (l->nr_slots >= l->max_slots)
			return -EFBIG;
		if (l->nr_slots >= l->room_free) {
			uint32_t room = l->room_free ? 2 * l->room_free : 64;
			uint32_t *more = realloc(l->free_slot, room * sizeof(*more));

			if (!more)
				return -ENOMEM;
			l->free_slot = more;
			l->room_free = room;
		}
		*slot = l->nr_slots++;
	}
	l->slots_used++;
	return 0;
}

static void slot_put(struct ft_dlog *l, uint32_t slot)
{
	l->free_slot[l->nr_free++] = slot;
	l->slots_used--;
}

/* --- chunks: lock held --- */

static uint8_t *data_get(struct ft_dlog *l)
{
	uint8_t *data = l->spare ? l->spare : malloc(FT_DLOG_CHUNK);

	l->spare = NULL;
	if (data)
		l->memory += FT_DLOG_CHUNK;
	return data;
}

static void data_put(struct ft_dlog *l, uint8_t *data)
{
	if (!data)
		return;
	l->memory -= FT_DLOG_CHUNK;
	if (l->spare)
		free(data);
	else
		l->spare = data;
}

static void chunk_free(struct ft_dlog *l, struct chunk *c)
{
	data_put(l, c->data);
	if (c->slot != NO_SLOT)
		slot_put(l, c->slot);
	free(c);
}

/* Done with a chunk that was busy. False: it is gone. */
static bool chunk_idle(struct ft_dlog *l, struct chunk *c)
{
	c->busy--;
	if (!c->orphan)
		return true;
	if (!c->busy)
		chunk_free(l, c);
	return false;
}

static void drop_head(struct ft_dlog *l, struct disk_log *d)
{
	struct chunk *c = d->head;

	d->head = c->next;
	if (!d->head)
		d->tail = NULL;
	if (d->cur == c)
		d->cur = NULL;
	if (c->slot != NO_SLOT && !c->data)
		d->file_bytes -= c->len;
	if (c->busy)
		c->orphan = true;
	else
		chunk_free(l, c);
}

static int chunk_new(struct ft_dlog *l, struct disk_log *d, uint64_t seq)
{
	struct chunk *c = calloc(1, sizeof(*c));
	uint8_t *data = data_get(l);

	if (!c || !data) {
		free(c);
		data_put(l, data);
		return -ENOMEM;
	}
	*c = (struct chunk){ .id = ++l->next_id, .first = seq, .last = seq - 1, .start = d->in_pos, .data = data, .slot = NO_SLOT };
	if (d->tail)
		d->tail->next = c;
	else
		d->head = c;
	d->tail = c;
	return 0;
}

/* The reader's. Without the lock while it writes: a seal must not wait for the file. */
static int spill(struct ft_dlog *l, struct disk_log *d, struct chunk *c)
{
	uint32_t slot;
	int rc = slot_get(l, &slot);

	if (rc)
		return rc;
	c->slot = slot;
	c->busy++;
	l->spilling = true;
	pthread_mutex_unlock(&l->lock);
	rc = ft_pwrite_all(l->fd, c->data, c->len, slot_at(slot));
	pthread_mutex_lock(&l->lock);
	l->spilling = false;
	if (!chunk_idle(l, c))
		return 0;                       /* nobody wants it any more, so nobody minds a failure */
	if (rc) {
		slot_put(l, slot);
		c->slot = NO_SLOT;
		return rc;
	}
	data_put(l, c->data);
	c->data = NULL;
	d->file_bytes += c->len;
	return 0;
}

/* Nobody will want to take these again. */
static uint64_t unwanted(const struct ft_dlog *l, unsigned disk)
{
	const struct disk_log *d = &l->disk[disk];
	uint64_t taken = d->next - 1;

	if (!l->copying)
		return d->committed;
	return l->copy_epoch && taken > l->copy_bound[disk] ? l->copy_bound[disk] : taken;
}

static void trim(struct ft_dlog *l, unsigned disk)
{
	struct disk_log *d = &l->disk[disk];

	while (d->head && d->head->last <= unwanted(l, disk))
		drop_head(l, d);
}

static void forget(struct ft_dlog *l)
{
	for (unsigned i = 0; i < l->cfg.nr_disks; i++) {
		struct disk_log *d = &l->disk[i];

		while (d->head)
			drop_head(l, d);
		d->committed = d->last;
		d->next = d->last + 1;
		d->taken_pos = d->committed_pos = d->in_pos;
	}
	l->nr_seals = 0;
	l->life++;
	l->copy_epoch = l->committed_epoch = 0;
}

static void shut(struct ft_dlog *l)
{
	forget(l);
	l->open = false;
	pthread_cond_broadcast(&l->moved);
}

/* --- in: the reader's thread --- */

void ft_dlog_stream(struct ft_dlog *l, unsigned disk, uint64_t last)
{
	struct disk_log *d = &l->disk[disk];

	pthread_mutex_lock(&l->lock);
	shut(l);
	d->last = d->committed = d->sent = last;
	d->next = last + 1;
	pthread_mutex_unlock(&l->lock);
}

/* A chunk with room for @len bytes at the tail. */
static int make_room(struct ft_dlog *l, struct disk_log *d, uint64_t seq, size_t len)
{
	struct chunk *tail = d->tail;
	int rc = 0;

	if (tail && tail->len + len <= FT_DLOG_CHUNK)
		return 0;
	if (tail && tail->data && l->memory + FT_DLOG_CHUNK > l->cfg.memory_bound)
		rc = spill(l, d, tail);
	return rc ? rc : chunk_new(l, d, seq);
}

static int append(struct ft_dlog *l, unsigned disk, uint64_t seq, const uint8_t *op, size_t len)
{
	struct disk_log *d = &l->disk[disk];
	int rc;

	assert(seq == d->last + 1 && len <= FT_DISK_BATCH_MAX);
	rc = l->open ? make_room(l, d, seq, len) : 0;
	d->last = seq;
	if (rc)
		return rc;
	if (!l->open) {                         /* also: shut while the lock was away */
		while (d->head)
			drop_head(l, d);
		d->committed = seq;
		d->next = seq + 1;
		return 0;
	}
	ft_copy(d->tail->data + d->tail->len, op, len);
	d->tail->len += len;
	d->tail->last = seq;
	d->in_pos += len;
	pthread_cond_broadcast(&l->moved);
	return 0;
}

int ft_dlog_append(struct ft_dlog *l, unsigned disk, uint64_t seq, const uint8_t *op, size_t len)
{
	int rc;

	pthread_mutex_lock(&l->lock);
	rc = append(l, disk, seq, op, len);
	if (rc)
		shut(l);
	pthread_mutex_unlock(&l->lock);
	return rc;
}

bool ft_dlog_untidy(struct ft_dlog *l)
{
	bool untidy;

	pthread_mutex_lock(&l->lock);
	untidy = l->nr_slots && !l->slots_used;
	pthread_mutex_unlock(&l->lock);
	return untidy;
}

/* Only the reader makes slots, so none comes to be between looking and cutting. */
void ft_dlog_tidy(struct ft_dlog *l)
{
	if (!ft_dlog_untidy(l))
		return;
	if (ftruncate(l->fd, 0) < 0)
		ft_warn("disk log in %s: its space cannot be given back: %s", l->cfg.spill_dir, strerror(errno));
	pthread_mutex_lock(&l->lock);
	l->nr_slots = l->nr_free = 0;
	pthread_mutex_unlock(&l->lock);
}

/* --- epochs: the loop's thread --- */

void ft_dlog_restart(struct ft_dlog *l)
{
	pthread_mutex_lock(&l->lock);
	forget(l);
	l->open = l->copying = true;
	pthread_mutex_unlock(&l->lock);
}

void ft_dlog_shut(struct ft_dlog *l)
{
	pthread_mutex_lock(&l->lock);
	shut(l);
	pthread_mutex_unlock(&l->lock);
}

static int seal_room(struct ft_dlog *l)
{
	size_t room = l->room_seals ? 2 * l->room_seals : 64;
	struct seal *more;

	if (l->nr_seals < l->room_seals)
		return 0;
	more = realloc(l->seal, room * sizeof(*more));
	if (!more)
		return -ENOMEM;
	l->seal = more;
	l->room_seals = room;
	return 0;
}

/* The bound of the newest epoch <= @epoch. */
static uint64_t bound_of(const struct ft_dlog *l, uint64_t epoch, unsigned disk)
{
	for (size_t i = l->nr_seals; i--;)
		if (l->seal[i].epoch <= epoch)
			return l->seal[i].bound[disk];
	return l->disk[disk].committed;
}

static int seal(struct ft_dlog *l, uint64_t epoch, const uint64_t *bound)
{
	struct seal *s;
	int rc = l->open ? seal_room(l) : -EIO;

	if (rc)
		return rc;
	s = &l->seal[l->nr_seals++];
	s->epoch = epoch;
	for (unsigned i = 0; i < l->cfg.nr_disks; i++)  /* what has come already was before the seal, too */
		s->bound[i] = bound[i] > l->disk[i].last ? bound[i] : l->disk[i].last;
	if (l->copying && !l->copy_epoch) {
		l->copy_epoch = epoch;
		memcpy(l->copy_bound, s->bound, sizeof(s->bound));
	}
	return 0;
}

int ft_dlog_seal(struct ft_dlog *l, uint64_t epoch, const uint64_t *bound)
{
	int rc;

	pthread_mutex_lock(&l->lock);
	rc = seal(l, epoch, bound);
	pthread_mutex_unlock(&l->lock);
	return rc;
}

/* Bytes of the stream up to op @seq: exact where a chunk ends, in between as if all its ops were of one size. */
static uint64_t position(const struct disk_log *d, uint64_t seq)
{
	const struct chunk *c = d->head;

	while (c && c->last < seq)
		c = c->next;
	if (!c)
		return d->in_pos;
	if (seq < c->first)
		return c->start;
	return c->start + (seq == c->last ? c->len : c->len * (seq - c->first + 1) / (c->last - c->first + 1));
}

static void commit_disk(struct ft_dlog *l, unsigned disk, uint64_t bound)
{
	struct disk_log *d = &l->disk[disk];

	if (bound > d->last)
		bound = d->last;                /* a backup that has what we never read: nothing to free */
	if (bound > d->committed) {
		d->committed = bound;
		d->committed_pos = position(d, bound);
	}
	if (d->next <= d->committed) {
		d->next = d->committed + 1;
		d->taken_pos = d->committed_pos;
		d->cur = NULL;
	}
	trim(l, disk);
}

void ft_dlog_commit(struct ft_dlog *l, uint64_t epoch)
{
	size_t done = 0;

	pthread_mutex_lock(&l->lock);
	while (done < l->nr_seals && l->seal[done].epoch <= epoch)
		done++;
	if (done) {
		const struct seal s = l->seal[done - 1];

		if (l->copying && l->copy_epoch && l->copy_epoch <= epoch)
			l->copying = false;
		l->committed_epoch = s.epoch;
		for (unsigned i = 0; i < l->cfg.nr_disks; i++)
			commit_disk(l, i, s.bound[i]);
		l->nr_seals -= done;
		memmove(l->seal, l->seal + done, l->nr_seals * sizeof(*l->seal));
	}
	pthread_mutex_unlock(&l->lock);
}

static bool resumable(const struct ft_dlog *l)
{
	return l->open && !l->copying;
}

bool ft_dlog_resumable(struct ft_dlog *l)
{
	bool yes;

	pthread_mutex_lock(&l->lock);
	yes = resumable(l);
	pthread_mutex_unlock(&l->lock);
	return yes;
}

int ft_dlog_rewind(struct ft_dlog *l, uint64_t whole)
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	if (!resumable(l) || whole < l->committed_epoch)
		rc = -ESTALE;
	l->life++;
	for (unsigned i = 0; i < l->cfg.nr_disks && !rc; i++) {
		struct disk_log *d = &l->disk[i];
		uint64_t bound = bound_of(l, whole, i);

		d->next = (bound < d->last ? bound : d->last) + 1;
		d->taken_pos = position(d, d->next - 1);
		d->cur = NULL;
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

/* --- out: the encoder's thread --- */

/* The op at @off of a chunk's @data. 0: it does not fit, which only a failing disk under the file can bring about. */
static size_t op_at(const struct chunk *c, const uint8_t *data, size_t off, uint64_t *seq)
{
	size_t len = FT_DISK_OP_LEN;

	if (c->len - off < len)
		return 0;
	*seq = ft_le64(data + off);
	if (ft_le32(data + off + 20) == FT_DISK_WRITE)
		len += ft_le32(data + off + 16);
	return len <= c->len - off && len <= FT_DISK_BATCH_MAX && *seq >= c->first && *seq <= c->last ? len : 0;
}

static struct chunk *find_chunk(const struct disk_log *d)
{
	struct chunk *c = d->cur && d->cur->first <= d->next ? d->cur : d->head;

	while (c && c->last < d->next)
		c = c->next;
	return c;
}

/* *data: where @c can be read. Without the lock while it reads. */
static int load(struct ft_dlog *l, struct chunk *c, const uint8_t **data)
{
	uint64_t life = l->life;
	int rc;

	*data = c->data ? c->data : l->back;
	if (c->data || l->back_id == c->id)
		return 0;
	l->back_id = 0;
	c->busy++;
	pthread_mutex_unlock(&l->lock);
	rc = ft_pread_all(l->fd, l->back, c->len, slot_at(c->slot));
	pthread_mutex_lock(&l->lock);
	if (!chunk_idle(l, c) || life != l->life)
		return -ECANCELED;
	if (rc) {
		ft_err("disk log in %s: what was written cannot be read back: %s", l->cfg.spill_dir, strerror(-rc));
		return -EIO;
	}
	l->back_id = c->id;
	return 0;
}

/* What of @c may be taken, up to @limit. */
static int take_from(struct ft_dlog *l, unsigned disk, struct chunk *c, const uint8_t *data, uint64_t limit,
		     uint8_t *raw, size_t *len, uint32_t *nr_ops)
{
	struct disk_log *d = &l->disk[disk];
	size_t off = c == d->cur ? d->off : 0, from = off, n;
	uint64_t seq = 0;

	*len = *nr_ops = 0;
	while (off < c->len) {
		n = op_at(c, data, off, &seq);
		if (!n)
			return -EIO;
		if (seq > limit || (seq >= d->next && *len + n > FT_DISK_BATCH_MAX))
			break;
		off += n;
		if (seq < d->next) {
			from = off;
			continue;
		}
		*len += n;
		(*nr_ops)++;
	}
	ft_copy(raw, data + from, *len);
	d->cur = c;
	d->off = off;
	d->next += *nr_ops;
	if (d->sent < d->next - 1)
		d->sent = d->next - 1;
	d->taken_pos = c->start + off;
	d->taken_data += *len - (uint64_t)*nr_ops * FT_DISK_OP_LEN;
	trim(l, disk);
	return 1;
}

static uint64_t limit_of(const struct ft_dlog *l, uint64_t upto, unsigned disk)
{
	return upto ? bound_of(l, upto, disk) : l->disk[disk].last;
}

/* Something of a disk that has come. 0: there is nothing now; *missing: but it was sealed. */
static int take_any(struct ft_dlog *l, uint64_t upto, unsigned *disk, uint8_t *raw, size_t *len, uint32_t *nr_ops, bool *missing)
{
	*missing = false;
	for (unsigned n = 0; n < l->cfg.nr_disks; n++) {
		unsigned i = (l->turn + n) % l->cfg.nr_disks;
		struct disk_log *d = &l->disk[i];
		uint64_t limit = limit_of(l, upto, i);
		const uint8_t *data;
		struct chunk *c;
		int rc;

		if (d->next > limit)
			continue;
		if (d->next > d->last) {
			*missing = true;
			continue;
		}
		c = find_chunk(d);
		assert(c);                      /* what is to be taken is kept */
		rc = load(l, c, &data);
		if (rc)
			return rc;
		l->turn = i;
		*disk = i;
		return take_from(l, i, c, data, limit, raw, len, nr_ops);
	}
	return 0;
}

int ft_dlog_take(struct ft_dlog *l, uint64_t upto, unsigned wait_ms, unsigned *disk, uint8_t *raw, size_t *len, uint32_t *nr_ops)
{
	uint64_t until = ft_now_ns() + wait_ms * FT_MS_NS;
	bool missing;
	int rc;

	pthread_mutex_lock(&l->lock);
	for (;;) {
		rc = l->open ? take_any(l, upto, disk, raw, len, nr_ops, &missing) : -EIO;
		if (rc || !missing)
			break;
		if (ft_cond_wait(&l->moved, &l->lock, until)) {
			rc = l->spilling ? -EAGAIN : -ETIMEDOUT;        /* a slow file is no fault of the export's */
			break;
		}
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

bool ft_dlog_pending(struct ft_dlog *l, uint64_t upto)
{
	bool yes = false;

	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->cfg.nr_disks && l->open; i++)
		yes |= l->disk[i].next <= limit_of(l, upto, i);
	pthread_mutex_unlock(&l->lock);
	return yes;
}

uint64_t ft_dlog_untaken(struct ft_dlog *l)
{
	uint64_t bytes = 0;

	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->cfg.nr_disks; i++)
		bytes += l->disk[i].in_pos - l->disk[i].taken_pos;
	pthread_mutex_unlock(&l->lock);
	return bytes;
}

uint64_t ft_dlog_sent(struct ft_dlog *l, unsigned disk)
{
	uint64_t seq;

	pthread_mutex_lock(&l->lock);
	seq = l->disk[disk].sent;
	pthread_mutex_unlock(&l->lock);
	return seq;
}

void ft_dlog_get_status(struct ft_dlog *l, unsigned disk, struct ft_dlog_status *out)
{
	const struct disk_log *d = &l->disk[disk];

	pthread_mutex_lock(&l->lock);
	*out = (struct ft_dlog_status){
		.behind = d->in_pos - d->committed_pos, .pending = d->last - d->committed,
		.taken_data = d->taken_data, .file_bytes = d->file_bytes,
	};
	pthread_mutex_unlock(&l->lock);
}

size_t ft_dlog_memory(struct ft_dlog *l)
{
	size_t bytes;

	pthread_mutex_lock(&l->lock);
	bytes = l->memory;
	pthread_mutex_unlock(&l->lock);
	return bytes;
}

/* --- life --- */

int ft_dlog_new(const struct ft_dlog_config *cfg, struct ft_dlog **out)
{
	struct ft_dlog *l = calloc(1, sizeof(*l));
	uint64_t slots = cfg->file_bound / SLOT_BYTES;
	int rc = -ENOMEM;

	if (!l)
		return -ENOMEM;
	l->cfg = *cfg;
	pthread_mutex_init(&l->lock, NULL);
	ft_cond_init(&l->moved);
	l->max_slots = slots < NO_SLOT ? (uint32_t)slots : NO_SLOT;
	for (unsigned i = 0; i < cfg->nr_disks; i++)
		l->disk[i].next = 1;
	l->fd = open(cfg->spill_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (l->fd < 0) {
		rc = -errno;
		ft_err("disk log in %s: %s - the directory must be writable", cfg->spill_dir, strerror(errno));
		goto fail;
	}
	l->back = malloc(FT_DLOG_CHUNK);
	if (!l->back)
		goto fail;
	*out = l;
	return 0;
fail:
	ft_dlog_free(l);
	return rc;
}

void ft_dlog_free(struct ft_dlog *l)
{
	if (!l)
		return;
	forget(l);
	if (l->fd >= 0)
		close(l->fd);
	free(l->spare);
	free(l->back);
	free(l->seal);
	free(l->free_slot);
	pthread_cond_destroy(&l->moved);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
