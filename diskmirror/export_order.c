// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export_order.c - one order for requests that overlap, the same for the image and for the stream.
 *
 * First come, first served: a request waits for the earlier ones that it overlaps and for no other, so nobody starves,
 * also not who wants the whole disk.
 */
#include "export_priv.h"

static bool must_wait(const struct ft_range *r)
{
	for (const struct ft_range *o = r->prev; o; o = o->prev)
		if (o->from < r->to && r->from < o->to)
			return true;
	return false;
}

static void append(struct ft_export *e, struct ft_range *r)
{
	r->prev = e->last;
	r->next = NULL;
	*(e->last ? &e->last->next : &e->first) = r;
	e->last = r;
}

static void take_out(struct ft_export *e, struct ft_range *r)
{
	*(r->prev ? &r->prev->next : &e->first) = r->next;
	*(r->next ? &r->next->prev : &e->last) = r->prev;
}

void ft_export_order(struct ft_export *e, struct ft_range *r, uint64_t at, uint64_t len)
{
	*r = (struct ft_range){ .from = at, .to = at + len, .floor = UINT64_MAX };
	pthread_mutex_lock(&e->order_lock);
	append(e, r);
	while (must_wait(r))
		pthread_cond_wait(&e->order_changed, &e->order_lock);
	r->floor = e->seq + 1;
	pthread_mutex_unlock(&e->order_lock);
}

void ft_export_order_all(struct ft_export *e, struct ft_range *r)
{
	ft_export_order(e, r, 0, UINT64_MAX);
}

/*
 * A change under way has touched the map under the least number that its op can have, and will do so again under
 * the right one. Until then the map may hear of smaller numbers only. Zero: nothing new.
 */
static uint64_t news_for_map(struct ft_export *e)
{
	uint64_t upto = e->durable;

	for (const struct ft_range *r = e->first; r; r = r->next)
		if (r->floor <= upto)
			upto = r->floor - 1;
	if (upto <= e->applied)
		return 0;
	e->applied = upto;
	return upto;
}

static void tell_map(struct ft_export *e, uint64_t upto)
{
	if (upto && e->map)
		ft_map_durable(e->map, upto);
}

void ft_export_settle(struct ft_export *e, struct ft_range *r)
{
	uint64_t news = 0;

	pthread_mutex_lock(&e->order_lock);
	take_out(e, r);
	if (e->applied < e->durable)
		news = news_for_map(e);
	pthread_cond_broadcast(&e->order_changed);
	pthread_mutex_unlock(&e->order_lock);
	tell_map(e, news);
}

void ft_export_durable(struct ft_export *e, uint64_t seq)
{
	uint64_t news;

	pthread_mutex_lock(&e->order_lock);
	if (seq > e->durable)
		e->durable = seq;
	news = news_for_map(e);
	pthread_mutex_unlock(&e->order_lock);
	tell_map(e, news);
}
