// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_clock.c - the virtual clock, the generator, and the way a process dies. */
#include "sim_world.h"

uint64_t sim_rnd(struct sim *s, uint64_t n)  /* 0..n-1 */
{
	uint64_t z = s->rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (z ^ z >> 31) % n;
}

void sim_trace(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (!s->trace)
		return;
	printf("%10.3f ms  ", (double)s->now / 1e6);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);         /* a crash must not swallow the last lines */
}

void sim_broken(struct sim *s, const char *fmt, ...)
{
	size_t n;
	va_list ap;

	if (!s->res->ok)
		return;
	s->res->ok = false;
	n = (size_t)snprintf(s->res->why, sizeof(s->res->why), "at %.3f ms: ", (double)s->now / 1e6);
	va_start(ap, fmt);
	vsnprintf(s->res->why + n, sizeof(s->res->why) - n, fmt, ap);
	va_end(ap);
	sim_trace(s, "BROKEN: %s", s->res->why);
}

static void insert(struct sim *s, struct event *e)
{
	struct event **at = &s->events;

	while (*at && ((*at)->at < e->at || ((*at)->at == e->at && (*at)->order < e->order)))
		at = &(*at)->next;
	e->next = *at;
	*at = e;
}

void sim_after(struct sim *s, uint64_t ns, event_fn *fn, uint64_t arg)
{
	struct event *e = malloc(sizeof(*e));

	if (!e)
		abort();
	*e = (struct event){ .at = s->now + ns, .order = s->order++, .fn = fn, .arg = arg };
	insert(s, e);
}

/* Run what is due until @until. Nested while a process is stalled in the middle of a call. */
void sim_run_until(struct sim *s, uint64_t until)
{
	while (s->res->ok && s->events && s->events->at <= until) {
		struct event *e = s->events;

		s->events = e->next;
		if (e->at > s->now)
			s->now = e->at;
		e->fn(s, e->arg);
		free(e);
	}
	if (s->now < until)
		s->now = until;
}

/* False: not now; @fn comes again when the process runs again. */
bool sim_awake(struct sim *s, struct proc *p, event_fn *fn, uint64_t arg)
{
	if (!p->up)
		return false;
	if (p->stalled_until <= s->now)
		return true;
	sim_after(s, p->stalled_until - s->now, fn, arg);
	return false;
}

/* Each op of a process passes here: a crash may come at any of them. True: it is dead. */
bool sim_dies_here(struct sim *s, struct proc *p)
{
	if (p->doom && !--p->doom) {
		p->doomed = true;
		sim_trace(s, "%s dies in the middle of it", p->name);
	}
	return p->doomed;
}
