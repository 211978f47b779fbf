// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * image.c - the replica's memory: stage whole epochs, verify, apply; see ft/image.h.
 *
 * A staged epoch is a list of blocks in memory, then, once the bound is reached, a stretch of the spill
 * file. Only the newest epoch grows, so the stretches lie in the file in order: the file is cut back when
 * an epoch is thrown away, and emptied when all are applied. States stay in memory: as all whole epochs
 * are applied at once, only the newest one's is ever needed, and applying it is a change of owner.
 */
#include "ft/image.h"

#include "ft/bitmap.h"
#include "ft/codec.h"
#include "ft/wire.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

/* A staged epoch sends no page more often than this on average: a peer cannot fill the disk with one. */
#define ROUNDS_MAX 16u
/* Whole epochs waiting for the end of a drill: at 200 a second, more than five minutes. */
#define EPOCHS_MAX 65536u

struct record {                         /* a checked block */
	struct record *next;
	uint32_t len;
	uint8_t data[];
};

/* The same in the spill file, before the bytes. The hash is for disks that read back other bytes. */
struct spilled {
	uint64_t len, hash;
};

struct epoch {
	struct epoch *next;
	uint64_t number;
	struct record *first, **last;
	off_t spill_start, spill_end;
};

struct ft_image {
	struct ft_image_config cfg;
	struct ft_codec *codec;
	int spill_fd;                   /* -1 until it is needed */
	off_t spill_used;
	uint8_t *back;                  /* FT_BLOCK_MAX: a block read back from it */
	size_t mem_used;                /* records */
	bool held;

	bool ram_whole;                 /* RAM is the epoch @applied, and @state belongs to it */
	uint64_t applied;
	struct ft_blob state;

	struct epoch *first, **last;    /* whole ones not yet applied, oldest first */
	unsigned nr_epochs;
	uint64_t whole;                 /* the newest one, applied or not */
	struct ft_blob whole_state;     /* of the newest one not yet applied */

	/* The epoch that is arriving. */
	struct epoch *open;
	uint32_t flags;
	bool have_state;
	struct ft_blob open_state;
	uint64_t blocks, pages, batches;
	XXH3_state_t *sum;
	struct ft_bitmap covered;       /* FULL: pages it has brought */
};

int ft_image_new(const struct ft_image_config *cfg, struct ft_image **out)
{
	struct ft_image *im = calloc(1, sizeof(*im));
	int rc = -ENOMEM;

	if (!im)
		return -ENOMEM;
	im->cfg = *cfg;
	im->spill_fd = -1;
	im->last = &im->first;
	im->sum = XXH3_createState();
	if (!im->sum || ft_bitmap_init(&im->covered, cfg->nr_pages))
		goto fail;
	rc = ft_codec_new(&im->codec);
	if (rc)
		goto fail;
	*out = im;
	return 0;
fail:
	ft_image_free(im);
	return rc;
}

/* --- staging: records in memory, then in the spill file --- */

static void drop_epoch(struct ft_image *im, struct epoch *e)
{
	for (struct record *r = e->first, *next; r; r = next) {
		next = r->next;
		im->mem_used -= sizeof(*r) + r->len;
		free(r);
	}
	free(e);
}

/* Cut the file back to @used. Best effort: what stays is overwritten later. */
static void spill_cut(struct ft_image *im, off_t used)
{
	if (im->spill_used == used)
		return;
	im->spill_used = used;
	if (ftruncate(im->spill_fd, used) < 0)
		ft_warn("spill file in %s: %s", im->cfg.spill_dir, strerror(errno));
}

static int spill_open(struct ft_image *im)
{
	if (im->spill_fd >= 0)
		return 0;
	if (!im->back)
		im->back = malloc(FT_BLOCK_MAX);        /* now, for applying must not fail */
	if (!im->back)
		return -ENOMEM;
	im->spill_fd = open(im->cfg.spill_dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (im->spill_fd >= 0)
		return 0;
	ft_err("spill file in %s: %s - the directory must be writable", im->cfg.spill_dir, strerror(errno));
	return -errno;
}

static int spill(struct ft_image *im, const uint8_t *block, size_t len)
{
	struct spilled h = { .len = len, .hash = XXH3_64bits(block, len) };
	struct epoch *e = im->open;
	int rc = spill_open(im);

	if (rc)
		return rc;
	if (e->spill_start == e->spill_end)
		e->spill_start = e->spill_end = im->spill_used;
	rc = ft_pwrite_all(im->spill_fd, &h, sizeof(h), e->spill_end);
	if (!rc)
		rc = ft_pwrite_all(im->spill_fd, block, len, e->spill_end + (off_t)sizeof(h));
	if (rc) {
		ft_err("spill file in %s: %s - free space there, or raise the staging bound", im->cfg.spill_dir, strerror(-rc));
		return rc;
	}
	e->spill_end += (off_t)(sizeof(h) + len);
	im->spill_used = e->spill_end;
	return 0;
}

static int stage(struct ft_image *im, const uint8_t *block, size_t len)
{
	struct epoch *e = im->open;
	size_t bytes = sizeof(struct record) + len;
	struct record *r;

	if (e->spill_end != e->spill_start || im->mem_used + bytes > im->cfg.staging_bound)
		return spill(im, block, len);
	r = malloc(bytes);
	if (!r)
		return -ENOMEM;
	*r = (struct record){ .len = (uint32_t)len };
	ft_copy(r->data, block, len);
	*e->last = r;
	e->last = &r->next;
	im->mem_used += bytes;
	return 0;
}

/* --- an epoch arrives --- */

bool ft_image_usable(const struct ft_image *im)
{
	return im->ram_whole || im->first;      /* the list starts on a whole RAM, or with a full epoch */
}

void ft_image_discard_partial(struct ft_image *im)
{
	struct epoch *e = im->open;

	if (!e)
		return;
	if (e->spill_end != e->spill_start)
		spill_cut(im, e->spill_start);
	im->open = NULL;
	drop_epoch(im, e);
	ft_blob_free(&im->open_state);
}

/* Every failure on the way of an epoch ends here: nothing of it stays. */
static int discard(struct ft_image *im, int rc)
{
	ft_image_discard_partial(im);
	return rc;
}

static bool begin_ok(const struct ft_image *im, uint64_t epoch, uint64_t base, uint32_t flags)
{
	if (epoch <= base || flags & ~(FT_EPOCH_FULL | FT_EPOCH_DIRECT))
		return false;
	if (flags & FT_EPOCH_DIRECT && (!(flags & FT_EPOCH_FULL) || ft_image_usable(im) || im->held))
		return false;
	if (flags & FT_EPOCH_FULL)
		return base == 0;
	return base && ft_image_usable(im) && base == im->whole;
}

int ft_image_begin(struct ft_image *im, uint64_t epoch, uint64_t base, uint32_t flags)
{
	struct epoch *e;

	ft_image_discard_partial(im);
	if (!begin_ok(im, epoch, base, flags))
		return -EPROTO;
	if (im->nr_epochs >= EPOCHS_MAX)
		return -ENOBUFS;
	e = calloc(1, sizeof(*e));
	if (!e)
		return -ENOMEM;
	e->number = epoch;
	e->last = &e->first;
	im->open = e;
	im->flags = flags;
	im->have_state = false;
	im->blocks = im->pages = im->batches = 0;
	XXH3_64bits_reset(im->sum);
	if (flags & FT_EPOCH_FULL)
		ft_bitmap_zero(&im->covered);
	return 0;
}

/* A full epoch needs no predecessor: no delta before the page itself. */
static bool cover(struct ft_image *im)
{
	unsigned nr;
	const struct ft_page_run *run = ft_codec_checked_runs(im->codec, &nr);

	for (unsigned i = 0; i < nr; i++)
		for (uint64_t page = run[i].first; page < run[i].first + run[i].nr; page++) {
			if (run[i].how == FT_PAGE_DELTA && !ft_bitmap_test(&im->covered, page))
				return false;
			ft_bitmap_set(&im->covered, page);
		}
	return true;
}

int ft_image_pages(struct ft_image *im, const uint8_t *body, size_t len)
{
	uint32_t pages;
	int rc;

	if (!im->open)
		return -EPROTO;
	if (im->have_state || ft_codec_check(im->codec, body, len, im->cfg.nr_pages, &pages))
		return discard(im, -EPROTO);
	if (im->flags & FT_EPOCH_FULL && !cover(im))
		return discard(im, -EPROTO);
	im->blocks++;
	im->pages += pages;
	XXH3_64bits_update(im->sum, body, len);
	if (im->flags & FT_EPOCH_DIRECT) {
		ft_codec_apply_checked(im->codec, im->cfg.ram);
		return 0;
	}
	if (im->pages > im->cfg.nr_pages * ROUNDS_MAX)
		return discard(im, -EPROTO);
	rc = stage(im, body, len);
	return rc ? discard(im, rc) : 0;
}

int ft_image_disk(struct ft_image *im, const uint8_t *body, size_t len)
{
	if (!im->open)
		return -EPROTO;
	if (im->have_state)
		return discard(im, -EPROTO);
	im->batches++;
	XXH3_64bits_update(im->sum, body, len);
	return 0;
}

int ft_image_state(struct ft_image *im, const uint8_t *body, size_t len)
{
	if (!im->open)
		return -EPROTO;
	if (im->have_state || len > im->cfg.state_max)
		return discard(im, -EPROTO);
	if (ft_blob_copy(&im->open_state, body, len))
		return discard(im, -ENOMEM);
	im->have_state = true;
	XXH3_64bits_update(im->sum, body, len);
	return 0;
}

bool ft_image_ends(const struct ft_image *im, const uint8_t *body, size_t len)
{
	struct ft_wire_epoch_end end;

	if (!im->open || !im->have_state || ft_wire_unpack_epoch_end(body, len, &end))
		return false;
	if (end.epoch != im->open->number || end.blocks != im->blocks || end.pages != im->pages ||
	    end.batches != im->batches)
		return false;
	if (im->flags & FT_EPOCH_FULL && ft_bitmap_count(&im->covered) != im->cfg.nr_pages)
		return false;
	return end.checksum == XXH3_64bits_digest(im->sum);
}

static void move_blob(struct ft_blob *to, struct ft_blob *from)
{
	ft_blob_free(to);
	*to = *from;
	*from = (struct ft_blob){ 0 };
}

int ft_image_end(struct ft_image *im, const uint8_t *body, size_t len)
{
	struct epoch *e = im->open;

	if (!e)
		return -EPROTO;
	if (!ft_image_ends(im, body, len))
		return discard(im, -EPROTO);
	im->open = NULL;
	im->whole = e->number;
	if (im->flags & FT_EPOCH_DIRECT) {      /* RAM is it already */
		im->applied = e->number;
		im->ram_whole = true;
		move_blob(&im->state, &im->open_state);
		drop_epoch(im, e);
		return 0;
	}
	*im->last = e;
	im->last = &e->next;
	im->nr_epochs++;
	move_blob(&im->whole_state, &im->open_state);
	return 0;
}

/* --- whole epochs are applied --- */

/* Read the block at *@at back and apply it. */
static int apply_spilled(struct ft_image *im, const struct epoch *e, off_t *at)
{
	struct spilled h;
	int rc = ft_pread_all(im->spill_fd, &h, sizeof(h), *at);

	if (rc)
		return rc;
	*at += (off_t)sizeof(h);
	if (h.len > FT_BLOCK_MAX || (off_t)h.len > e->spill_end - *at)
		return -EIO;
	rc = ft_pread_all(im->spill_fd, im->back, h.len, *at);
	if (!rc && XXH3_64bits(im->back, h.len) != h.hash)
		rc = -EIO;
	if (!rc)
		ft_codec_apply(im->codec, im->back, h.len, im->cfg.ram);
	*at += (off_t)h.len;
	return rc;
}

static int apply_epoch(struct ft_image *im, const struct epoch *e)
{
	off_t at = e->spill_start;
	int rc = 0;

	for (const struct record *r = e->first; r; r = r->next)
		ft_codec_apply(im->codec, r->data, r->len, im->cfg.ram);
	while (!rc && at < e->spill_end)
		rc = apply_spilled(im, e, &at);
	return rc;
}

static void drop_whole_epochs(struct ft_image *im)
{
	for (struct epoch *e = im->first, *next; e; e = next) {
		next = e->next;
		drop_epoch(im, e);
	}
	im->first = NULL;
	im->last = &im->first;
	im->nr_epochs = 0;
	ft_blob_free(&im->whole_state);
	if (!im->open)
		spill_cut(im, 0);
}

void ft_image_commit(struct ft_image *im)
{
	int rc = 0;

	if (!im->first || im->held)
		return;
	for (struct epoch *e = im->first; e && !rc; e = e->next)
		rc = apply_epoch(im, e);
	if (rc) {
		ft_err("epoch %llu cannot be read back from %s: %s - the replica is lost until the next full copy",
		       (unsigned long long)im->whole, im->cfg.spill_dir, strerror(-rc));
		im->ram_whole = false;
	} else {
		im->ram_whole = true;
		im->applied = im->whole;
		move_blob(&im->state, &im->whole_state);
	}
	drop_whole_epochs(im);
}

void ft_image_hold(struct ft_image *im, bool held)
{
	im->held = held;
}

void ft_image_reset(struct ft_image *im)
{
	ft_image_discard_partial(im);
	drop_whole_epochs(im);
	im->ram_whole = false;
	im->whole = im->applied = 0;
	ft_blob_free(&im->state);
}

void ft_image_free(struct ft_image *im)
{
	if (!im)
		return;
	ft_image_reset(im);
	if (im->spill_fd >= 0)
		close(im->spill_fd);
	free(im->back);
	if (im->sum)
		XXH3_freeState(im->sum);
	ft_bitmap_free(&im->covered);
	ft_codec_free(im->codec);
	free(im);
}

uint64_t ft_image_whole_epoch(const struct ft_image *im)
{
	return im->whole;
}

uint64_t ft_image_applied_epoch(const struct ft_image *im)
{
	return im->applied;
}

const struct ft_blob *ft_image_applied_state(const struct ft_image *im)
{
	return &im->state;
}

size_t ft_image_staging_used(const struct ft_image *im)
{
	return im->mem_used;
}
