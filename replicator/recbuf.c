// SPDX-License-Identifier: GPL-3.0-or-later
/* recbuf.c - see recbuf.h. */
#include "replicator/recbuf.h"

#define POOL_MIN   (4u << 10)           /* smaller ones are malloc's business */
#define POOL_MAX   (1u << 20)           /* larger ones are rare */
#define POOL_BYTES (4u << 20)
#define POOL_STEP  (64u << 10)

void ft_recpool_init(struct ft_recpool *p)
{
	*p = (struct ft_recpool){ .lock = PTHREAD_MUTEX_INITIALIZER };
}

void ft_recpool_destroy(struct ft_recpool *p)
{
	while (p->free) {
		struct ft_recbuf *b = p->free;

		p->free = b->next;
		free(b);
	}
	pthread_mutex_destroy(&p->lock);
}

static struct ft_recbuf *take_fitting(struct ft_recpool *p, size_t len)
{
	struct ft_recbuf **at, *b;

	pthread_mutex_lock(&p->lock);
	for (at = &p->free; *at && (*at)->cap < len; at = &(*at)->next)
		;
	b = *at;
	if (b) {
		*at = b->next;
		p->bytes -= b->cap;
	}
	pthread_mutex_unlock(&p->lock);
	return b;
}

struct ft_recbuf *ft_recpool_get(struct ft_recpool *p, uint32_t type, size_t body)
{
	size_t len = FT_WIRE_HDR + body, cap = len;
	struct ft_recbuf *b = NULL;

	if (len > POOL_MIN && len <= POOL_MAX) {
		cap = (len + POOL_STEP - 1) / POOL_STEP * POOL_STEP;
		b = take_fitting(p, len);
	}
	if (!b) {
		b = malloc(sizeof(*b) + cap);
		if (!b)
			return NULL;
		b->cap = cap;
	}
	b->next = NULL;
	b->len = len;
	ft_put32(b->data, type);
	ft_put32(b->data + 4, (uint32_t)body);
	return b;
}

void ft_recpool_put(struct ft_recpool *p, struct ft_recbuf *b)
{
	if (!b)
		return;
	if (b->cap > POOL_MIN && b->cap <= POOL_MAX) {
		pthread_mutex_lock(&p->lock);
		if (p->bytes + b->cap <= POOL_BYTES) {
			b->next = p->free;
			p->free = b;
			p->bytes += b->cap;
			b = NULL;
		}
		pthread_mutex_unlock(&p->lock);
	}
	free(b);
}

void ft_recqueue_push(struct ft_recqueue *q, struct ft_recbuf *b)
{
	b->next = NULL;
	if (q->tail)
		q->tail->next = b;
	else
		q->head = b;
	q->tail = b;
}

struct ft_recbuf *ft_recqueue_pop(struct ft_recqueue *q)
{
	struct ft_recbuf *b = q->head;

	if (!b)
		return NULL;
	q->head = b->next;
	if (!q->head)
		q->tail = NULL;
	b->next = NULL;
	return b;
}

uint8_t *ft_recreader_want(struct ft_recreader *r, size_t *len)
{
	if (r->rec) {
		*len = r->rec->len - r->have;
		return r->rec->data + r->have;
	}
	*len = FT_WIRE_HDR - r->have;
	return r->header + r->have;
}

static int begin_body(struct ft_recreader *r)
{
	uint32_t type = ft_le32(r->header), len = ft_le32(r->header + 4);
	int rc = ft_wire_check(type, len, r->from_primary);

	if (rc)
		return rc;
	r->rec = ft_recpool_get(r->pool, type, len);
	return r->rec ? 0 : -ENOMEM;
}

int ft_recreader_got(struct ft_recreader *r, size_t len, struct ft_recbuf **out)
{
	r->have += len;
	if (!r->rec) {
		int rc;

		assert(r->have <= FT_WIRE_HDR);
		if (r->have < FT_WIRE_HDR)
			return 0;
		rc = begin_body(r);
		if (rc)
			return rc;
	}
	assert(r->have <= r->rec->len);
	if (r->have < r->rec->len)
		return 0;
	*out = r->rec;
	r->rec = NULL;
	r->have = 0;
	return 1;
}

void ft_recreader_reset(struct ft_recreader *r)
{
	ft_recpool_put(r->pool, r->rec);
	r->rec = NULL;
	r->have = 0;
}
