// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_pages.c - see xen_pages.h. */
#include "checkpoint/xen_pages.h"

#include <inttypes.h>
#include <stdio.h>

#define GFN_MAX ((uint64_t)1 << 36)     /* 48 bits of address */

int xen_pages_add(struct xen_pages *map, uint64_t gfn, uint64_t count, uint64_t gap)
{
	unsigned last = map->nr - 1;
	uint64_t end = map->nr ? map->range[last].first + map->range[last].count : 0;

	if (map->nr && gfn - end < gap) {
		map->range[last].count += gfn - end + count;
		map->total += gfn - end + count;
		return 0;
	}
	if (map->nr == XEN_RANGES_MAX)
		return -E2BIG;
	map->range[map->nr].first = gfn;
	map->range[map->nr++].count = count;
	map->total += count;
	return 0;
}

/* One "FIRST+COUNT", behind those before. */
static int add_checked(struct xen_pages *map, uint64_t first, uint64_t count)
{
	unsigned last = map->nr - 1;

	if (map->nr == XEN_RANGES_MAX || !count || first >= GFN_MAX || count > GFN_MAX - first)
		return -EPROTO;
	if (map->nr && first < map->range[last].first + map->range[last].count)
		return -EPROTO;
	map->range[map->nr].first = first;
	map->range[map->nr++].count = count;
	map->total += count;
	return 0;
}

static bool take_hex(const char **text, uint64_t *out)
{
	size_t len = strspn(*text, "0123456789abcdef");

	if (!len || len > 12)
		return false;
	*out = strtoull(*text, NULL, 16);
	*text += len;
	return true;
}

static bool take_char(const char **text, char c)
{
	bool there = **text == c;

	*text += there;
	return there;
}

int xen_pages_parse(const char *text, struct xen_pages *out)
{
	uint64_t first, count;
	int rc = 0;

	*out = (struct xen_pages){ 0 };
	do {
		if (!take_hex(&text, &first) || !take_char(&text, '+') || !take_hex(&text, &count))
			return -EPROTO;
		rc = add_checked(out, first, count);
	} while (!rc && take_char(&text, ','));
	return rc ? rc : *text ? -EPROTO : 0;
}

int xen_pages_format(const struct xen_pages *map, char *buf, size_t size)
{
	size_t len = 0;

	for (unsigned i = 0; i < map->nr; i++) {
		int n = snprintf(buf + len, size - len, "%s%" PRIx64 "+%" PRIx64, i ? "," : "", map->range[i].first,
				 map->range[i].count);

		if (n < 0 || (size_t)n >= size - len)
			return -ENAMETOOLONG;
		len += (size_t)n;
	}
	return 0;
}

bool xen_pages_index(const struct xen_pages *map, uint64_t gfn, uint64_t *index)
{
	uint64_t before = 0;

	for (unsigned i = 0; i < map->nr; i++) {
		if (gfn >= map->range[i].first && gfn - map->range[i].first < map->range[i].count) {
			*index = before + gfn - map->range[i].first;
			return true;
		}
		before += map->range[i].count;
	}
	return false;
}

/* Bits first..end of @from, to @shift + their place behind first. */
static void fold_range(const uint64_t *from, uint64_t first, uint64_t end, uint64_t to, struct ft_bitmap *out)
{
	for (uint64_t w = first / 64; w * 64 < end; w++) {
		uint64_t word = from[w];

		while (word) {
			uint64_t gfn = w * 64 + (unsigned)__builtin_ctzll(word);

			word &= word - 1;
			if (gfn >= first && gfn < end)
				ft_bitmap_set(out, to + gfn - first);
		}
	}
}

void xen_pages_fold(const struct xen_pages *map, const uint64_t *gfns, uint64_t nr_gfns, struct ft_bitmap *out)
{
	uint64_t before = 0;

	for (unsigned i = 0; i < map->nr; i++) {
		uint64_t first = map->range[i].first, end = first + map->range[i].count;

		if (first < nr_gfns)
			fold_range(gfns, first, end < nr_gfns ? end : nr_gfns, before, out);
		before += map->range[i].count;
	}
}
