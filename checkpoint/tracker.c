// SPDX-License-Identifier: GPL-3.0-or-later
/* tracker.c - choosing a dirty tracker by trying them, and the walk they share. */
#include "checkpoint/track.h"
#include "ft/thread.h"

#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <unistd.h>

/* Best first. */
static const struct ft_tracker_ops *const trackers[] = {
	&ft_tracker_uffd,
	&ft_tracker_softdirty,
	&ft_tracker_compare,
};

static int choose_named(const char *name, const struct ft_track_target *t, const struct ft_tracker_ops **out)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(trackers); i++) {
		int rc;

		if (strcmp(trackers[i]->name, name))
			continue;
		rc = trackers[i]->probe(t);
		if (rc)
			ft_err("tracker %s was asked for but does not serve process %d: %s", name, t->pid, strerror(-rc));
		else
			*out = trackers[i];
		return rc;
	}
	ft_err("no dirty tracker is called '%s' (auto, uffd-wp-async, soft-dirty, compare)", name);
	return -EINVAL;
}

int ft_tracker_choose(const char *name, const struct ft_track_target *t, const struct ft_tracker_ops **out)
{
	if (name && strcmp(name, "auto"))
		return choose_named(name, t, out);
	for (size_t i = 0; i < FT_ARRAY_LEN(trackers); i++) {
		if (trackers[i]->probe(t))
			continue;
		*out = trackers[i];
		return 0;
	}
	ft_err("no dirty tracker serves process %d; the reasons are logged above", t->pid);
	return -EOPNOTSUPP;
}

int ft_track_alive(const struct ft_track_target *t)
{
	struct pollfd p = { .fd = t->pidfd, .events = POLLIN };

	return poll(&p, 1, 0) > 0 ? -ESRCH : 0;
}

int ft_track_open_proc(const struct ft_track_target *t, const char *file, int flags, int *fd)
{
	char path[64];
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/%s", t->pid, file);
	*fd = open(path, flags | O_CLOEXEC);
	if (*fd < 0)
		return errno == ENOENT ? -ESRCH : -errno;
	/* The process was alive after the open, so its number was not yet another's. */
	rc = ft_track_alive(t);
	if (rc) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}

/* --- the parallel walk --- */

#define PIECE_PAGES 8192ull             /* 32 MiB: many pieces to share out in a large guest, each a matter of ms */
#define PARALLEL_FROM (2ull << 30 >> FT_PAGE_SHIFT)
#define MAX_THREADS 4

struct walk {
	const struct ft_track_target *t;
	ft_scan_fn fn;
	void *ctx;
	_Atomic uint64_t next;          /* page at which the next piece starts */
	_Atomic int rc;
};

static void walk_pieces(struct walk *w, void (*busy)(void *ctx))
{
	for (;;) {
		uint64_t first = atomic_fetch_add(&w->next, PIECE_PAGES);
		uint64_t left = first < w->t->nr_pages ? w->t->nr_pages - first : 0;
		int none = 0, rc;

		if (!left)
			return;
		rc = w->fn(w->ctx, first, left < PIECE_PAGES ? left : PIECE_PAGES);
		if (rc)
			atomic_compare_exchange_strong(&w->rc, &none, rc);
		if (busy)
			busy(w->t->busy_ctx);
	}
}

static void *help(void *arg)
{
	walk_pieces(arg, NULL);
	return NULL;
}

/* Worth at most one thread for each GiB, and no more than there are CPUs. */
static unsigned helpers_for(uint64_t nr_pages)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	uint64_t want = nr_pages >> (30 - FT_PAGE_SHIFT);

	if (nr_pages < PARALLEL_FROM || cpus < 2)
		return 0;
	want = want < MAX_THREADS ? want : MAX_THREADS;
	return (unsigned)(want < (uint64_t)cpus ? want : (uint64_t)cpus) - 1;
}

int ft_scan_pages(const struct ft_track_target *t, ft_scan_fn fn, void *ctx)
{
	struct walk w = { .t = t, .fn = fn, .ctx = ctx };
	unsigned want = helpers_for(t->nr_pages), nr = 0;
	pthread_t helper[MAX_THREADS];

	/* A helper that cannot be had leaves its share to the others. */
	while (nr < want && !ft_thread_start(&helper[nr], "ft-scan", help, &w))
		nr++;
	walk_pieces(&w, t->busy);
	while (nr)
		pthread_join(helper[--nr], NULL);
	return w.rc;
}
