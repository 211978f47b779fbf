// SPDX-License-Identifier: GPL-3.0-or-later
/* hash.c - what `ft-ctl verify` compares; see ft/image.h. */
#include "ft/image.h"

#include <xxhash.h>

void ft_hash_ram(const uint8_t *ram, uint64_t nr_pages, uint64_t *out)
{
	for (uint64_t first = 0; first < nr_pages; first += FT_HASH_PAGES) {
		uint64_t nr = nr_pages - first < FT_HASH_PAGES ? nr_pages - first : FT_HASH_PAGES;

		*out++ = XXH3_64bits(ram + first * FT_PAGE_SIZE, nr * FT_PAGE_SIZE);
	}
}
