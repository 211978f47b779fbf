// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tracker.h - dirty tracking of another process's shared mapping, chosen by probing, never by version.
 *
 * Each tracker must return exactly the pages written through QEMU's own mapping since the last take.
 *   uffd-wp-async  userfaultfd made inside QEMU by the preload, PAGEMAP_SCAN from outside (Linux 6.7+)
 *   soft-dirty     /proc/PID/clear_refs and pagemap bit 55 (CONFIG_MEM_SOFT_DIRTY)
 *   compare        against a shadow copy of all RAM: needs nothing, costs a read of all RAM
 */
#ifndef FT_TRACKER_H
#define FT_TRACKER_H

#include "ft/base.h"
#include "ft/bitmap.h"
#include <sys/types.h>

struct ft_tracker;

struct ft_track_target {
	int pidfd;              /* borrowed; of the process whose mapping is tracked */
	pid_t pid;
	uint64_t addr;          /* where that process maps the RAM file (ft_track_find_mapping) */
	uint64_t nr_pages;
	const uint8_t *ram;     /* our own mapping of the same file, for compare */
	int uffd;               /* fd number inside the target, from the preload page; -1: none */
};

struct ft_tracker_ops {
	const char *name;
	int (*probe)(const struct ft_track_target *t);          /* 0: works here (really tried), else -errno */
	int (*open)(const struct ft_track_target *t, struct ft_tracker **out);
	int (*start)(struct ft_tracker *tr);                    /* from here on writes are reported */
	int (*take)(struct ft_tracker *tr, struct ft_bitmap *dirty);    /* read and re-arm atomically per page */
	void (*close)(struct ft_tracker *tr);                   /* leaves the target unprotected and at full speed */
};

struct ft_tracker {
	const struct ft_tracker_ops *ops;
};

extern const struct ft_tracker_ops ft_tracker_uffd, ft_tracker_softdirty, ft_tracker_compare;

/* The best tracker that works for @t, or the one called @name (NULL, "auto": probe all, best first). */
int ft_tracker_choose(const char *name, const struct ft_track_target *t, const struct ft_tracker_ops **out) FT_MUST_CHECK;
/* Where @pid maps @path whole and shared: /proc/PID/maps. -ENOENT, or -ENOTUNIQ when mapped twice. */
int ft_track_find_mapping(pid_t pid, const char *path, uint64_t nr_pages, uint64_t *addr) FT_MUST_CHECK;

#endif
