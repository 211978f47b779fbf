// SPDX-License-Identifier: GPL-3.0-or-later
/* capture.c - copy an epoch out of the guest into bounded staging; see ft/capture.h. */
#include "ft/capture.h"

#define WAIT_TURN_MS 200u

struct copier {
	struct ft_vm *vm;
	struct ft_staging *st;
	const struct ft_chunk_sink *sink;
	uint64_t epoch;
	uint32_t batch;
	unsigned timeout_ms;
	uint64_t copied;                /* pages handed to the sink */
};

/* The next pages of @set from @from on, at most @max and one chunk's worth, into @c. Returns where to go on. */
static uint64_t fill_chunk(const struct copier *cp, struct ft_chunk *c, const struct ft_bitmap *set, uint64_t from,
			   uint64_t max)
{
	uint64_t page = ft_bitmap_next(set, from);

	c->epoch = cp->epoch;
	c->batch = cp->batch;
	c->nr = 0;
	while (page < set->nr_bits && c->nr < FT_CHUNK_PAGES && c->nr < max) {
		uint32_t start = c->nr;
		uint64_t first = page;

		do                      /* neighbours are copied at once */
			c->page[c->nr++] = page++;
		while (page < set->nr_bits && ft_bitmap_test(set, page) && c->nr < FT_CHUNK_PAGES && c->nr < max);
		memcpy(c->data + (size_t)start * FT_PAGE_SIZE, cp->vm->ram + first * FT_PAGE_SIZE,
		       (page - first) * FT_PAGE_SIZE);
		page = ft_bitmap_next(set, page);
	}
	return page;
}

/* Whoever watches that a pause of ours is not one of a dead ft-protect hears of us meanwhile. */
static struct ft_chunk *wait_chunk(const struct copier *cp)
{
	unsigned left = cp->timeout_ms;

	for (;;) {
		unsigned turn = left < WAIT_TURN_MS ? left : WAIT_TURN_MS;
		uint64_t start = ft_now_ns();
		struct ft_chunk *c = ft_staging_get(cp->st, turn);

		left -= turn;
		/* Cancelled: it did not even wait. */
		if (c || !left || ft_now_ns() - start < turn * FT_MS_NS / 2)
			return c;
		ft_vm_busy(cp->vm);
	}
}

/* A filled chunk of at most @max pages; NULL when staging stays empty. */
static struct ft_chunk *next_chunk(const struct copier *cp, const struct ft_bitmap *set, uint64_t *cursor, uint64_t max)
{
	struct ft_chunk *c = wait_chunk(cp);

	if (c)
		*cursor = fill_chunk(cp, c, set, *cursor, max);
	return c;
}

/* To the sink, which owns the chunk from here on. */
static int hand_over(struct copier *cp, struct ft_chunk *c)
{
	uint32_t nr = c->nr;
	int rc = cp->sink->chunk(cp->sink->ctx, c);

	if (!rc)
		cp->copied += nr;
	return rc;
}

static int copy_all(struct copier *cp, const struct ft_bitmap *set)
{
	uint64_t cursor = ft_bitmap_next(set, 0);

	while (cursor < set->nr_bits) {
		struct ft_chunk *c = next_chunk(cp, set, &cursor, UINT64_MAX);
		int rc = c ? hand_over(cp, c) : -ETIMEDOUT;

		if (rc)
			return rc;
	}
	cp->batch++;
	return 0;
}

static int take(struct ft_vm *vm, struct ft_bitmap *set, struct ft_capture_stats *stats)
{
	uint64_t start = ft_now_ns();
	int rc = vm->ops->take_dirty(vm, set);

	stats->scan_ns += ft_now_ns() - start;
	return rc;
}

static int copy(struct copier *cp, const struct ft_bitmap *set, struct ft_capture_stats *stats)
{
	uint64_t start = ft_now_ns();
	int rc = copy_all(cp, set);

	stats->copy_ns += ft_now_ns() - start;
	return rc;
}

static int state_end(struct ft_vm *vm, struct ft_blob *state, struct ft_capture_stats *stats)
{
	uint64_t start = ft_now_ns();
	int rc = vm->ops->state_end(vm, state);

	stats->state_ns += ft_now_ns() - start;
	return rc;
}

/* Copy what is dirty while the hypervisor serialises, then what serialising wrote, into @again. */
static int capture(struct copier *cp, struct ft_bitmap *dirty, struct ft_bitmap *again,
		   struct ft_blob *state, struct ft_capture_stats *stats)
{
	int copied, rc = take(cp->vm, dirty, stats);

	/* A state that was begun is always ended, or the next epoch would find the last one's. */
	copied = rc ? rc : copy(cp, dirty, stats);
	rc = state_end(cp->vm, state, stats);
	if (copied)
		return copied;
	if (!rc)
		rc = take(cp->vm, again, stats);
	return rc ? rc : copy(cp, again, stats);
}

int ft_capture_epoch(struct ft_vm *vm, struct ft_staging *st, uint64_t epoch, unsigned timeout_ms,
		     struct ft_bitmap *dirty, const struct ft_chunk_sink *sink,
		     struct ft_blob *state, struct ft_capture_stats *stats)
{
	struct copier cp = { .vm = vm, .st = st, .sink = sink, .epoch = epoch, .timeout_ms = timeout_ms };
	struct ft_bitmap *again;
	uint64_t start = ft_now_ns();
	int rc;

	*stats = (struct ft_capture_stats){ 0 };
	*state = (struct ft_blob){ 0 };
	rc = ft_staging_scratch(st, dirty->nr_bits, &again);
	if (rc)
		return rc;
	rc = vm->ops->state_begin(vm);
	if (rc)
		return rc;
	stats->state_ns = ft_now_ns() - start;
	rc = capture(&cp, dirty, again, state, stats);
	if (rc) {
		ft_bitmap_or(dirty, again);
		ft_blob_free(state);
		return rc;
	}
	ft_bitmap_zero(dirty);
	stats->dirty_pages = cp.copied;
	stats->bytes = cp.copied * FT_PAGE_SIZE;
	return 0;
}

int ft_capture_round(struct ft_vm *vm, struct ft_staging *st, uint64_t epoch, uint32_t batch, unsigned timeout_ms,
		     struct ft_bitmap *todo, uint64_t *cursor, uint64_t max_pages,
		     const struct ft_chunk_sink *sink)
{
	struct copier cp = { .vm = vm, .st = st, .sink = sink, .epoch = epoch, .batch = batch, .timeout_ms = timeout_ms };

	*cursor = ft_bitmap_next(todo, *cursor);
	while (*cursor < todo->nr_bits && cp.copied < max_pages) {
		uint64_t from = *cursor;
		struct ft_chunk *c = next_chunk(&cp, todo, cursor, max_pages - cp.copied);
		int rc;

		if (!c)
			return cp.copied ? 0 : -ETIMEDOUT;
		rc = hand_over(&cp, c);
		if (rc) {
			*cursor = from;
			return rc;
		}
		for (uint64_t page = from; page < *cursor; page = ft_bitmap_next(todo, page + 1))
			ft_bitmap_clear(todo, page);
	}
	return 0;
}
