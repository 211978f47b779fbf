// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * recbuf.h - records as owned buffers (header and body in one piece), queues of them, and a pool.
 *
 * Block-sized buffers pass between two threads thousands of times a second; fresh memory for each would
 * cost more in page faults than its encryption. So a few megabytes of them are kept and used again.
 */
#ifndef FT_RECBUF_H
#define FT_RECBUF_H

#include "ft/wire.h"
#include <pthread.h>

struct ft_recbuf {
	struct ft_recbuf *next;         /* owner's queue, or the pool's */
	size_t cap;
	size_t len;                     /* header and body */
	uint8_t data[];
};

static inline uint32_t ft_recbuf_type(const struct ft_recbuf *b)
{
	return ft_le32(b->data);
}

struct ft_recpool {                     /* thread-safe */
	pthread_mutex_t lock;
	struct ft_recbuf *free;
	size_t bytes;
};

void ft_recpool_init(struct ft_recpool *p);
void ft_recpool_destroy(struct ft_recpool *p);
/* A buffer for a body of @body bytes with the header filled in; NULL: no memory. */
struct ft_recbuf *ft_recpool_get(struct ft_recpool *p, uint32_t type, size_t body);
void ft_recpool_put(struct ft_recpool *p, struct ft_recbuf *b);         /* NULL is fine */

struct ft_recqueue {                    /* zero value: empty; the owner locks */
	struct ft_recbuf *head, *tail;
};

void ft_recqueue_push(struct ft_recqueue *q, struct ft_recbuf *b);
struct ft_recbuf *ft_recqueue_pop(struct ft_recqueue *q);               /* NULL: empty */

/*
 * The incremental reader: bytes of a peer in, whole records out. A header is checked against the record
 * table before memory for its body exists.
 */
struct ft_recreader {
	struct ft_recpool *pool;        /* borrowed */
	bool from_primary;              /* the side that sends to us */
	uint8_t header[FT_WIRE_HDR];
	size_t have;                    /* of the header, then of the whole record */
	struct ft_recbuf *rec;          /* NULL while the header is incomplete */
};

/* Where the next bytes go, and how many at most (never 0). */
uint8_t *ft_recreader_want(struct ft_recreader *r, size_t *len);
/* @len of them are there. 1: *out is a whole record, the caller's; 0: more is needed; -EPROTO, -ENOMEM. */
int ft_recreader_got(struct ft_recreader *r, size_t len, struct ft_recbuf **out) FT_MUST_CHECK;
void ft_recreader_reset(struct ft_recreader *r);

#endif
