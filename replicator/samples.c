// SPDX-License-Identifier: GPL-3.0-or-later
/* samples.c - see ft/samples.h. */
#include "ft/samples.h"

void ft_samples_add(struct ft_samples *s, uint64_t ns)
{
	s->ns[s->count++ % FT_SAMPLES] = ns;
	if (ns > s->max_ns)
		s->max_ns = ns;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

uint64_t ft_samples_percentile(const struct ft_samples *s, unsigned percent)
{
	size_t n = s->count < FT_SAMPLES ? s->count : FT_SAMPLES;
	uint64_t sorted[FT_SAMPLES];

	if (!n)
		return 0;
	memcpy(sorted, s->ns, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), by_value);
	return sorted[(n - 1) * percent / 100];
}
