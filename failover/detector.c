// SPDX-License-Identifier: GPL-3.0-or-later
/* detector.c - see ft/detector.h. Times of different threads may be a little out of order: never subtract blindly. */
#include "ft/detector.h"

static uint64_t since(uint64_t then, uint64_t now)
{
	return now > then ? now - then : 0;
}

void ft_silence_init(struct ft_silence *s, uint64_t now, uint64_t silence_ns, uint64_t tick_ns)
{
	*s = (struct ft_silence){
		.silence_ns = silence_ns, .tick_ns = tick_ns, .last_life_ns = now, .last_judge_ns = now,
	};
}

void ft_silence_life(struct ft_silence *s, uint64_t now)
{
	if (now > s->last_life_ns)
		s->last_life_ns = now;
}

bool ft_silence_judge(struct ft_silence *s, uint64_t now)
{
	uint64_t slept = since(s->last_judge_ns, now);

	if (now > s->last_judge_ns)
		s->last_judge_ns = now;
	if (slept > 3 * s->tick_ns) {           /* due after one tick, more than two late */
		s->stalls++;
		ft_silence_life(s, now);
		return false;
	}
	return since(s->last_life_ns, now) >= s->silence_ns;
}

void ft_lease_init(struct ft_lease *l, uint64_t silence_ns)
{
	uint64_t margin = silence_ns / 5;

	if (margin < 20 * FT_MS_NS)
		margin = 20 * FT_MS_NS;
	*l = (struct ft_lease){ .lease_ns = since(margin, silence_ns) };
}

void ft_lease_renew(struct ft_lease *l, uint64_t sent_ns)
{
	if (l->lease_ns && sent_ns + l->lease_ns > l->until_ns)
		l->until_ns = sent_ns + l->lease_ns;
}

void ft_lease_revoke(struct ft_lease *l)
{
	l->until_ns = 0;
}

bool ft_lease_fresh(const struct ft_lease *l, uint64_t now)
{
	return now < l->until_ns;
}
