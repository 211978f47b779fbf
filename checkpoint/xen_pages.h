// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_pages.h - the page map: which guest frames there are, without the holes between them.
 *
 * A small PVH guest has memory at 0 and some pages just below 4 GiB. Everything of ft that counts pages counts those of
 * the map, in its order; both hosts use the primary's map. As text: "0+b000,feff8+8" (hexadecimal FIRST+COUNT).
 * Nothing here needs Xen.
 */
#ifndef FT_CHECKPOINT_XEN_PAGES_H
#define FT_CHECKPOINT_XEN_PAGES_H

#include "ft/bitmap.h"

#define XEN_RANGES_MAX 16u
#define XEN_GAP_MIN 512u                /* smaller gaps are part of a range, at least */
#define XEN_GAP_HVM 32u                 /* ... of an HVM guest, where the display's window at a0000 is no memory */

struct xen_pages {
	unsigned nr;
	struct {
		uint64_t first, count;
	} range[XEN_RANGES_MAX];        /* ascending, apart */
	uint64_t total;
};

/* Append frame @gfn, not below any that is there; a gap below @gap becomes part of a range. -E2BIG: too many ranges. */
int xen_pages_add(struct xen_pages *map, uint64_t gfn, uint64_t count, uint64_t gap) FT_MUST_CHECK;
/* @text may be hostile. -EPROTO. */
int xen_pages_parse(const char *text, struct xen_pages *out) FT_MUST_CHECK;
int xen_pages_format(const struct xen_pages *map, char *buf, size_t size) FT_MUST_CHECK;
/* Where @gfn is in the order of the map; false: in none of its ranges. */
bool xen_pages_index(const struct xen_pages *map, uint64_t gfn, uint64_t *index);
/* Set in @out the bit of each page whose bit @gfns has. @nr_gfns bits; frames outside of the map are left out. */
void xen_pages_fold(const struct xen_pages *map, const uint64_t *gfns, uint64_t nr_gfns, struct ft_bitmap *out);

#endif
