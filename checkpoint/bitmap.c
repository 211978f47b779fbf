// SPDX-License-Identifier: GPL-3.0-or-later
/* bitmap.c - see ft/bitmap.h. */
#include "ft/bitmap.h"

static uint64_t nr_words(const struct ft_bitmap *bm)
{
	return (bm->nr_bits + 63) / 64;
}

int ft_bitmap_init(struct ft_bitmap *bm, uint64_t nr_bits)
{
	*bm = (struct ft_bitmap){ .nr_bits = nr_bits };
	bm->word = calloc(nr_words(bm) ? nr_words(bm) : 1, sizeof(*bm->word));
	return bm->word ? 0 : -ENOMEM;
}

void ft_bitmap_free(struct ft_bitmap *bm)
{
	free(bm->word);
	*bm = (struct ft_bitmap){ 0 };
}

void ft_bitmap_zero(struct ft_bitmap *bm)
{
	memset(bm->word, 0, nr_words(bm) * sizeof(*bm->word));
}

void ft_bitmap_fill(struct ft_bitmap *bm)
{
	ft_bitmap_set_range(bm, 0, bm->nr_bits);
}

void ft_bitmap_set_range(struct ft_bitmap *bm, uint64_t first, uint64_t nr)
{
	uint64_t end = first + nr;

	if (first >= bm->nr_bits)
		return;
	if (end < first || end > bm->nr_bits)
		end = bm->nr_bits;
	for (; first < end && first % 64; first++)
		ft_bitmap_set(bm, first);
	for (; first + 64 <= end; first += 64)
		bm->word[first / 64] = ~0ull;
	for (; first < end; first++)
		ft_bitmap_set(bm, first);
}

void ft_bitmap_or(struct ft_bitmap *bm, const struct ft_bitmap *other)
{
	assert(bm->nr_bits == other->nr_bits);
	for (uint64_t i = 0; i < nr_words(bm); i++)
		bm->word[i] |= other->word[i];
}

uint64_t ft_bitmap_count(const struct ft_bitmap *bm)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < nr_words(bm); i++)
		n += (uint64_t)__builtin_popcountll(bm->word[i]);
	return n;
}

uint64_t ft_bitmap_next(const struct ft_bitmap *bm, uint64_t from)
{
	uint64_t word, i;

	if (from >= bm->nr_bits)
		return bm->nr_bits;
	i = from / 64;
	word = bm->word[i] & (~0ull << (from % 64));
	while (!word) {
		if (++i >= nr_words(bm))
			return bm->nr_bits;
		word = bm->word[i];
	}
	return i * 64 + (uint64_t)__builtin_ctzll(word);
}
