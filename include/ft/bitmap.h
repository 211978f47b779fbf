// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * bitmap.h - the set of dirty pages. One bit a page of guest RAM, numbered by its offset in the RAM
 * file (not by guest-physical address), so that holes of the physical map never appear.
 */
#ifndef FT_BITMAP_H
#define FT_BITMAP_H

#include "ft/base.h"

struct ft_bitmap {
	uint64_t nr_bits;
	uint64_t *word;         /* ceil(nr_bits / 64); bits past nr_bits are zero */
};

int ft_bitmap_init(struct ft_bitmap *bm, uint64_t nr_bits) FT_MUST_CHECK;
void ft_bitmap_free(struct ft_bitmap *bm);
void ft_bitmap_zero(struct ft_bitmap *bm);
void ft_bitmap_fill(struct ft_bitmap *bm);                             /* every page */
void ft_bitmap_set_range(struct ft_bitmap *bm, uint64_t first, uint64_t nr); /* clipped to nr_bits */
void ft_bitmap_or(struct ft_bitmap *bm, const struct ft_bitmap *other);
uint64_t ft_bitmap_count(const struct ft_bitmap *bm);
/* The first set bit >= @from, or nr_bits. */
uint64_t ft_bitmap_next(const struct ft_bitmap *bm, uint64_t from);

static inline void ft_bitmap_set(struct ft_bitmap *bm, uint64_t bit)
{
	bm->word[bit / 64] |= 1ull << (bit % 64);
}

static inline void ft_bitmap_clear(struct ft_bitmap *bm, uint64_t bit)
{
	bm->word[bit / 64] &= ~(1ull << (bit % 64));
}

static inline bool ft_bitmap_test(const struct ft_bitmap *bm, uint64_t bit)
{
	return bm->word[bit / 64] >> (bit % 64) & 1;
}

#endif
