// SPDX-License-Identifier: GPL-3.0-or-later
/* policy.c - see policy.h. */
#include "policy.h"

#define SMOOTH 0.25                     /* weight of the newest epoch */
#define SLACK 0.6                       /* up to here a vCPU has time to catch up: a pause costs it nothing */

static double smooth(double old, double new)
{
	return old + SMOOTH * (new - old);
}

static uint64_t min64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void ft_pacer_init(struct ft_pacer *pc, const struct ft_policy *policy, unsigned vcpus, uint64_t now)
{
	*pc = (struct ft_pacer){ .policy = policy, .vcpus = vcpus ? vcpus : 1, .resumed_ns = now, .busy = 1.0 };
}

void ft_pacer_held(struct ft_pacer *pc)
{
	pc->held = true;
}

void ft_pacer_epoch(struct ft_pacer *pc, uint64_t paused_ns, uint64_t resumed_ns, uint64_t cpu_ns, uint64_t dirty_pages)
{
	double ran = paused_ns > pc->resumed_ns ? (double)(paused_ns - pc->resumed_ns) : 1.0;
	double used = cpu_ns > pc->cpu_ns ? (double)(cpu_ns - pc->cpu_ns) / ran : 0.0;

	/* One busy vCPU loses as much of its time as four: the budget is about the busiest. */
	pc->busy = smooth(pc->busy, used > 1.0 ? 1.0 : used);
	pc->pages_per_ns = smooth(pc->pages_per_ns, (double)dirty_pages / ran);
	pc->pause_ns = (uint64_t)smooth((double)pc->pause_ns, (double)(resumed_ns - paused_ns));
	pc->resumed_ns = resumed_ns;
	pc->cpu_ns = cpu_ns;
	pc->held = false;
}

static uint64_t wanted_after(const struct ft_pacer *pc)
{
	uint64_t after = pc->policy->interval_max_ms * FT_MS_NS;
	double budget = (double)pc->policy->dirty_max_mb * 256.0;       /* pages */

	if (pc->held)
		return 0;
	if (pc->pages_per_ns > 0 && budget / pc->pages_per_ns < (double)after)
		after = (uint64_t)(budget / pc->pages_per_ns);
	return after;
}

static uint64_t allowed_after(const struct ft_pacer *pc)
{
	unsigned budget = pc->policy->pause_budget_percent;
	double short_of_time = pc->busy > SLACK ? (pc->busy - SLACK) / (1.0 - SLACK) : 0.0;
	double run = (double)pc->pause_ns * (100.0 - budget) / budget * short_of_time;

	return min64((uint64_t)run, pc->policy->interval_max_ms * FT_MS_NS);
}

uint64_t ft_pacer_next_ns(const struct ft_pacer *pc)
{
	uint64_t wanted, allowed;

	if (pc->policy->interval_fixed_ms)
		return pc->resumed_ns + pc->policy->interval_fixed_ms * FT_MS_NS;
	wanted = wanted_after(pc);
	allowed = allowed_after(pc);
	return pc->resumed_ns + (wanted > allowed ? wanted : allowed);
}
