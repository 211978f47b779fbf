// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * policy.h - when the next checkpoint starts. Pure arithmetic on times that the epoch loop brings.
 *
 * Wanted when output waits, when the dirty budget is reached (estimated from the last epochs' rate), or at the
 * maximum interval. Not before the pause budget allows it: after a pause of p the guest runs at least
 * p * (100 - budget) / budget, scaled by how short of time its busiest vCPU really was: one with time to spare
 * catches up after a pause and loses nothing, so such a guest answers at once, and a busy one keeps its share. A fixed interval replaces all of it.
 */
#ifndef FT_POLICY_H
#define FT_POLICY_H

#include "ft/conf.h"

struct ft_pacer {
	const struct ft_policy *policy; /* borrowed */
	unsigned vcpus;
	uint64_t resumed_ns;            /* the guest runs since then */
	uint64_t pause_ns;              /* smoothed */
	double busy;                    /* 0..1, smoothed: how much of its running time the busiest vCPU used */
	double pages_per_ns;            /* smoothed dirty rate */
	uint64_t cpu_ns;                /* vCPU time at resumed_ns */
	bool held;                      /* output waits since the last seal */
};

void ft_pacer_init(struct ft_pacer *pc, const struct ft_policy *policy, unsigned vcpus, uint64_t now);
void ft_pacer_held(struct ft_pacer *pc);
/* An epoch was taken: paused from @paused_ns to @resumed_ns, @cpu_ns is the vCPUs' time at the pause. */
void ft_pacer_epoch(struct ft_pacer *pc, uint64_t paused_ns, uint64_t resumed_ns, uint64_t cpu_ns, uint64_t dirty_pages);
/* The instant at which the next checkpoint should start (may be in the past). */
uint64_t ft_pacer_next_ns(const struct ft_pacer *pc);

#endif
