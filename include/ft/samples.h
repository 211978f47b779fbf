// SPDX-License-Identifier: GPL-3.0-or-later
/* samples.h - the last FT_SAMPLES durations, for percentiles. */
#ifndef FT_SAMPLES_H
#define FT_SAMPLES_H

#include "ft/base.h"

#define FT_SAMPLES 1024u

struct ft_samples {
	uint64_t count;                 /* ever */
	uint64_t max_ns;                /* ever */
	uint64_t ns[FT_SAMPLES];        /* ring */
};

void ft_samples_add(struct ft_samples *s, uint64_t ns);
/* The @percent-th percentile of the ring; 0 when it is empty. */
uint64_t ft_samples_percentile(const struct ft_samples *s, unsigned percent);

#endif
