// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * capture.h - copy an epoch out of the paused guest into bounded staging.
 *
 * Staging is a fixed pool of chunks. Capture fills chunks while the guest stands still; the encoder
 * (encode.h) gives them back when they are on their way. An empty pool makes capture wait with the guest
 * paused: that is the back-pressure, and why a guest that dirties all of its RAM cannot break the bound.
 */
#ifndef FT_CAPTURE_H
#define FT_CAPTURE_H

#include "ft/base.h"
#include "ft/bitmap.h"
#include "ft/hv.h"

#define FT_CHUNK_PAGES 64u              /* 256 KiB of pages: big enough for LZ4, small enough to parallelise */

struct ft_chunk {
	struct ft_chunk *next;          /* owner's list */
	uint64_t epoch;
	uint32_t batch;                 /* pages are unique within a batch; batches are encoded in order */
	uint32_t nr;
	uint64_t page[FT_CHUNK_PAGES];  /* ascending */
	uint8_t *data;                  /* FT_CHUNK_PAGES pages */
};

struct ft_staging;
int ft_staging_new(size_t bytes, struct ft_staging **out) FT_MUST_CHECK; /* rounded down to chunks, at least 4 */
void ft_staging_free(struct ft_staging *st);
/* NULL after @timeout_ms or once cancelled. Thread-safe. */
struct ft_chunk *ft_staging_get(struct ft_staging *st, unsigned timeout_ms);
void ft_staging_put(struct ft_staging *st, struct ft_chunk *c);
void ft_staging_cancel(struct ft_staging *st, bool cancelled);  /* wakes every waiter, and later ones, until false */
size_t ft_staging_used(struct ft_staging *st);                  /* bytes now out of the pool */
size_t ft_staging_bound(struct ft_staging *st);
/* An empty bitmap kept for the one capture that uses this pool, so that no epoch has to allocate. Borrowed. */
int ft_staging_scratch(struct ft_staging *st, uint64_t nr_bits, struct ft_bitmap **out) FT_MUST_CHECK;

/* Where filled chunks go. Takes ownership also on failure. */
struct ft_chunk_sink {
	int (*chunk)(void *ctx, struct ft_chunk *c);
	void *ctx;
};

struct ft_capture_stats {
	uint64_t dirty_pages;
	uint64_t bytes;                 /* pages copied x 4096 */
	uint64_t scan_ns, copy_ns, state_ns;
};

/*
 * The body of an epoch, guest paused: state_begin, take the dirty set, copy its pages, state_end, take
 * once more what serialising wrote and copy that again (as a later batch). @dirty holds pages carried
 * over from before (a failed epoch, a copy round) and is empty on success; on failure it holds all that
 * must be copied next time, so no dirty bit is ever lost. -ETIMEDOUT: staging gave no chunk for @timeout_ms.
 */
int ft_capture_epoch(struct ft_vm *vm, struct ft_staging *st, uint64_t epoch, unsigned timeout_ms,
		     struct ft_bitmap *dirty, const struct ft_chunk_sink *sink,
		     struct ft_blob *state, struct ft_capture_stats *stats) FT_MUST_CHECK;
/*
 * One copy round with the guest running (first full copy): copies up to @max_pages pages of @todo from
 * @cursor on and clears their bits; *cursor moves on, nr_pages when the round is through. Torn pages
 * are no harm: whatever was written meanwhile is dirty again. Ends early when staging gives no more chunks;
 * -ETIMEDOUT when it gave none at all.
 */
int ft_capture_round(struct ft_vm *vm, struct ft_staging *st, uint64_t epoch, uint32_t batch, unsigned timeout_ms,
		     struct ft_bitmap *todo, uint64_t *cursor, uint64_t max_pages,
		     const struct ft_chunk_sink *sink) FT_MUST_CHECK;

#endif
