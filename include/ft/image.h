// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * image.h - the replica's memory on the backup: whole epochs or nothing (P2).
 *
 * An epoch is staged as it arrives, checked completely at its end (counts, checksum, every block
 * decodable), and only then may be acknowledged; commit applies it to RAM, oldest first, and cannot fail.
 * Staging beyond the bound spills to an unlinked file in @spill_dir. Loop thread only.
 */
#ifndef FT_IMAGE_H
#define FT_IMAGE_H

#include "ft/base.h"

struct ft_image;

struct ft_image_config {
	uint8_t *ram;                   /* borrowed: ft_replica.ram */
	uint64_t nr_pages;
	size_t staging_bound;           /* bytes held in memory; the rest spills */
	const char *spill_dir;          /* e.g. /var/lib/ft */
	size_t state_max;               /* a larger state blob is -EPROTO */
};

int ft_image_new(const struct ft_image_config *cfg, struct ft_image **out) FT_MUST_CHECK;
void ft_image_free(struct ft_image *im);

#define FT_EPOCH_FULL   1u  /* every page is in it; needs no predecessor */
#define FT_EPOCH_DIRECT 2u  /* with FULL: apply blocks as they arrive; the image is no epoch until the end */

/*
 * Order of an epoch: begin, {pages, disk}..., state, end; anything else is -EPROTO. Whatever fails in begin..end
 * discards the epoch: the next call must be a begin. -ENOSPC: the spill file's disk is full.
 *
 * @base is the epoch the pages build on and must be the last whole one (0 with FULL); @epoch > @base: numbers
 * may be skipped, because a primary that resumes a broken session sends what the lost epochs held as one
 * later epoch. A partial epoch is discarded. -EPROTO: wrong base, DIRECT over a usable image.
 */
int ft_image_begin(struct ft_image *im, uint64_t epoch, uint64_t base, uint32_t flags) FT_MUST_CHECK;
int ft_image_pages(struct ft_image *im, const uint8_t *body, size_t len) FT_MUST_CHECK;
/* A DISK record: counted and summed here, staged by store.h. */
int ft_image_disk(struct ft_image *im, const uint8_t *body, size_t len) FT_MUST_CHECK;
int ft_image_state(struct ft_image *im, const uint8_t *body, size_t len) FT_MUST_CHECK;
/* @body is an EPOCH_END record: would ft_image_end take it? For what must be whole together with the memory. */
bool ft_image_ends(const struct ft_image *im, const uint8_t *body, size_t len);
/* 0: whole and verified - may be acknowledged. */
int ft_image_end(struct ft_image *im, const uint8_t *body, size_t len) FT_MUST_CHECK;
/*
 * Apply every whole epoch staged. While held (a drill reads RAM) it does nothing until released. Only a
 * spill file that cannot be read back can stop it: then the image is no longer usable, and says so.
 */
void ft_image_commit(struct ft_image *im);
void ft_image_hold(struct ft_image *im, bool held);             /* false: the next commit applies again */
/* Throw away the epoch that is not whole. Whole ones stay: they may have been acknowledged. */
void ft_image_discard_partial(struct ft_image *im);
/* Forget everything: the next epoch must be FULL. */
void ft_image_reset(struct ft_image *im);

bool ft_image_usable(const struct ft_image *im);                /* RAM plus staged whole epochs are an epoch */
uint64_t ft_image_whole_epoch(const struct ft_image *im);       /* last whole one: what may be acked */
uint64_t ft_image_applied_epoch(const struct ft_image *im);     /* what RAM holds now */
const struct ft_blob *ft_image_applied_state(const struct ft_image *im); /* borrowed until the next call */
size_t ft_image_staging_used(const struct ft_image *im);        /* in memory, not spilled */

/* --- verification: one 64-bit XXH3 per FT_HASH_PAGES pages, the same on both sides --- */
#define FT_HASH_PAGES 256u
static inline size_t ft_hash_count(uint64_t nr_pages)
{
	return (nr_pages + FT_HASH_PAGES - 1) / FT_HASH_PAGES;
}
void ft_hash_ram(const uint8_t *ram, uint64_t nr_pages, uint64_t *out /* [ft_hash_count] */);

#endif
