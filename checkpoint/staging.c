// SPDX-License-Identifier: GPL-3.0-or-later
/* staging.c - the fixed pool of chunks between capture and the encoder; see ft/capture.h. */
#include "ft/capture.h"
#include "ft/thread.h"

#include <sys/mman.h>

#define CHUNK_BYTES ((size_t)FT_CHUNK_PAGES * FT_PAGE_SIZE)
#define CHUNKS_MIN 4u

struct ft_staging {
	pthread_mutex_t lock;
	pthread_cond_t freed;           /* CLOCK_MONOTONIC */
	bool cancelled;
	struct ft_chunk *pool;          /* last in, first out: the hottest memory is used again */
	struct ft_chunk *chunk;         /* all of them */
	uint8_t *data;
	size_t nr, out;                 /* chunks: in all, and now out of the pool */
	struct ft_bitmap scratch;       /* of the capture that uses this pool */
};

static void make_pool(struct ft_staging *st)
{
	for (size_t i = st->nr; i-- > 0; ) {
		st->chunk[i].data = st->data + i * CHUNK_BYTES;
		st->chunk[i].next = st->pool;
		st->pool = &st->chunk[i];
	}
}

int ft_staging_new(size_t bytes, struct ft_staging **out)
{
	struct ft_staging *st = calloc(1, sizeof(*st));

	if (!st)
		return -ENOMEM;
	st->nr = bytes / CHUNK_BYTES < CHUNKS_MIN ? CHUNKS_MIN : bytes / CHUNK_BYTES;
	pthread_mutex_init(&st->lock, NULL);
	ft_cond_init(&st->freed);
	st->data = mmap(NULL, st->nr * CHUNK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			-1, 0);
	if (st->data == MAP_FAILED)
		st->data = NULL;
	st->chunk = calloc(st->nr, sizeof(*st->chunk));
	if (!st->data || !st->chunk) {
		ft_staging_free(st);
		return -ENOMEM;
	}
	(void)madvise(st->data, st->nr * CHUNK_BYTES, MADV_HUGEPAGE);   /* only a wish */
	make_pool(st);
	*out = st;
	return 0;
}

void ft_staging_free(struct ft_staging *st)
{
	if (!st)
		return;
	assert(st->out == 0);
	if (st->data)
		munmap(st->data, st->nr * CHUNK_BYTES);
	free(st->chunk);
	ft_bitmap_free(&st->scratch);
	pthread_cond_destroy(&st->freed);
	pthread_mutex_destroy(&st->lock);
	free(st);
}

/* Wait for a chunk with the lock held; false when time is up. */
static bool wait_freed(struct ft_staging *st, unsigned timeout_ms)
{
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;

	while (!st->pool && !st->cancelled)
		if (ft_cond_wait(&st->freed, &st->lock, end))
			break;
	return st->pool && !st->cancelled;
}

struct ft_chunk *ft_staging_get(struct ft_staging *st, unsigned timeout_ms)
{
	struct ft_chunk *c = NULL;

	pthread_mutex_lock(&st->lock);
	if (!st->cancelled && (st->pool || (timeout_ms && wait_freed(st, timeout_ms)))) {
		c = st->pool;
		st->pool = c->next;
		st->out++;
		c->next = NULL;
		c->nr = 0;
	}
	pthread_mutex_unlock(&st->lock);
	return c;
}

void ft_staging_put(struct ft_staging *st, struct ft_chunk *c)
{
	pthread_mutex_lock(&st->lock);
	assert(st->out > 0);
	c->next = st->pool;
	st->pool = c;
	st->out--;
	pthread_cond_signal(&st->freed);
	pthread_mutex_unlock(&st->lock);
}

void ft_staging_cancel(struct ft_staging *st, bool cancelled)
{
	pthread_mutex_lock(&st->lock);
	st->cancelled = cancelled;
	pthread_cond_broadcast(&st->freed);
	pthread_mutex_unlock(&st->lock);
}

size_t ft_staging_used(struct ft_staging *st)
{
	size_t out;

	pthread_mutex_lock(&st->lock);
	out = st->out;
	pthread_mutex_unlock(&st->lock);
	return out * CHUNK_BYTES;
}

size_t ft_staging_bound(struct ft_staging *st)
{
	return st->nr * CHUNK_BYTES;
}

int ft_staging_scratch(struct ft_staging *st, uint64_t nr_bits, struct ft_bitmap **out)
{
	*out = &st->scratch;
	if (st->scratch.word && st->scratch.nr_bits == nr_bits) {
		ft_bitmap_zero(&st->scratch);
		return 0;
	}
	ft_bitmap_free(&st->scratch);
	return ft_bitmap_init(&st->scratch, nr_bits);
}
