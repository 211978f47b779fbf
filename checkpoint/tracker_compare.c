// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tracker_compare.c - find written pages by comparing all RAM with a shadow copy as of the last take.
 *
 * Needs nothing of the kernel; costs as much memory again and a read of both at each take. A page that is
 * being written while it is compared is copied torn and differs again at the next take.
 */
#include "checkpoint/track.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

struct compare_tracker {
	struct ft_tracker base;
	struct ft_track_target t;
	uint8_t *shadow;
};

struct take {
	struct compare_tracker *tr;
	struct ft_bitmap *dirty;        /* NULL: only copy */
};

static int take_piece(void *ctx, uint64_t first, uint64_t nr)
{
	const struct take *tk = ctx;

	for (uint64_t page = first; page < first + nr; page++) {
		const uint8_t *now = tk->tr->t.ram + (page << FT_PAGE_SHIFT);
		uint8_t *then = tk->tr->shadow + (page << FT_PAGE_SHIFT);

		if (!memcmp(then, now, FT_PAGE_SIZE))
			continue;
		memcpy(then, now, FT_PAGE_SIZE);
		if (tk->dirty)
			ft_bitmap_set(tk->dirty, page);
	}
	return 0;
}

static int compare_take(struct ft_tracker *base, struct ft_bitmap *dirty)
{
	struct compare_tracker *tr = ft_container_of(base, struct compare_tracker, base);
	struct take tk = { tr, dirty };
	int rc = ft_scan_pages(&tr->t, take_piece, &tk);

	if (!rc)
		rc = ft_track_alive(&tr->t);
	if (rc)
		ft_bitmap_fill(dirty);
	return rc;
}

static int compare_start(struct ft_tracker *base)
{
	struct compare_tracker *tr = ft_container_of(base, struct compare_tracker, base);
	struct take tk = { tr, NULL };
	int rc = ft_scan_pages(&tr->t, take_piece, &tk);

	return rc ? rc : ft_track_alive(&tr->t);
}

static void compare_close(struct ft_tracker *base)
{
	struct compare_tracker *tr = ft_container_of(base, struct compare_tracker, base);

	if (tr->shadow)
		munmap(tr->shadow, tr->t.nr_pages << FT_PAGE_SHIFT);
	free(tr);
}

static int compare_open(const struct ft_track_target *t, struct ft_tracker **out)
{
	struct compare_tracker *tr = calloc(1, sizeof(*tr));
	void *shadow;

	if (!tr)
		return -ENOMEM;
	tr->t = *t;
	shadow = mmap(NULL, t->nr_pages << FT_PAGE_SHIFT, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shadow == MAP_FAILED) {
		ft_err("compare: no %" PRIu64 " MiB for the shadow of guest RAM: %s", t->nr_pages >> 8, strerror(errno));
		free(tr);
		return -ENOMEM;
	}
	tr->shadow = shadow;
	tr->base = (struct ft_tracker){ &ft_tracker_compare, shadow };
	*out = &tr->base;
	return 0;
}

/* --- probe --- */

static int refuse(const struct ft_track_target *t, int rc, const char *why)
{
	ft_info("process %d: tracker compare not used: %s (%s)", t->pid, why, strerror(-rc));
	return rc;
}

/* Pages the kernel could hand out without harm; all of them when it does not say. */
static uint64_t available_pages(void)
{
	unsigned long long kb = ~0ull;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	if (!f)
		return ~0ull;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
			break;
	fclose(f);
	return kb / 4;
}

static int compare_probe(const struct ft_track_target *t)
{
	int rc = ft_track_alive(t);

	if (rc)
		return refuse(t, rc, "it has ended");
	if (!t->ram)
		return refuse(t, -EINVAL, "its RAM is not mapped here");
	if (available_pages() < t->nr_pages)
		return refuse(t, -ENOMEM, "memory for a copy of its RAM is missing");
	return 0;
}

const struct ft_tracker_ops ft_tracker_compare = {
	.name = "compare",
	.probe = compare_probe,
	.open = compare_open,
	.start = compare_start,
	.take = compare_take,
	.close = compare_close,
};
