// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * codec.h - pages to block bytes and back.
 *
 * Per page, cheapest first: unchanged against the shadow of the last sent version (dropped), zero, XOR
 * delta against the shadow, whole. The pages of a chunk then go through LZ4 as one block; raw when LZ4 does
 * not help. The byte layout of a block is in docs/PROTOCOL.md ("PAGES").
 */
#ifndef FT_CODEC_H
#define FT_CODEC_H

#include "ft/base.h"
#include "ft/capture.h"

/* The last sent version of every page. Optional: without it there is no delta and no drop. */
struct ft_shadow;
int ft_shadow_new(uint64_t nr_pages, struct ft_shadow **out) FT_MUST_CHECK;
void ft_shadow_free(struct ft_shadow *sh);
void ft_shadow_forget(struct ft_shadow *sh);    /* the peer's replica is unknown again (new session) */

struct ft_codec_stats {
	uint64_t pages, unchanged, zero, delta, whole;
	uint64_t raw_bytes, wire_bytes;
};

#define FT_BLOCK_MAX (FT_CHUNK_PAGES * (FT_PAGE_SIZE + 64u) + 64u)  /* no encoded block is larger */

struct ft_codec;                        /* one per thread: LZ4 and delta scratch */
int ft_codec_new(struct ft_codec **out) FT_MUST_CHECK;
void ft_codec_free(struct ft_codec *cd);
/*
 * Encode @c into @out (FT_BLOCK_MAX bytes); the length, 0 when nothing changed, or -EINVAL when the chunk is
 * not one of ascending pages below FT_WIRE_PAGES_MAX. Updates @shadow (may be NULL): two threads must not
 * encode the same page at once; batches see to that. @stats accumulates.
 */
ssize_t ft_codec_encode(struct ft_codec *cd, struct ft_shadow *shadow, const struct ft_chunk *c,
			uint8_t *out, struct ft_codec_stats *stats) FT_MUST_CHECK;

/* How a page travels. Values are protocol. */
enum ft_page_how { FT_PAGE_ZERO = 0, FT_PAGE_WHOLE = 1, FT_PAGE_DELTA = 2 };

struct ft_page_run {                    /* neighbouring pages that travel in the same way */
	uint64_t first;
	uint32_t nr;
	enum ft_page_how how;
};

/*
 * Check a block from the peer completely (bounds, order, sizes, decompression), so that ft_codec_apply
 * of the same bytes cannot fail. -EPROTO. *pages counts its pages.
 */
int ft_codec_check(struct ft_codec *cd, const uint8_t *block, size_t len, uint64_t nr_pages, uint32_t *pages) FT_MUST_CHECK;
void ft_codec_apply(struct ft_codec *cd, const uint8_t *block, size_t len, uint8_t *ram);     /* @ram: page-aligned */

/* The block that @cd checked last, while it is still in memory: its runs, and applying it without a second decoding. */
const struct ft_page_run *ft_codec_checked_runs(const struct ft_codec *cd, unsigned *nr);
void ft_codec_apply_checked(const struct ft_codec *cd, uint8_t *ram);

#endif
