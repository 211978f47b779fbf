// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tracker.h - dirty tracking of another process's shared mapping, chosen by probing, never by version.
 *
 * Each tracker must return exactly the pages written through QEMU's own mapping since the last take.
 *   uffd-wp-async  userfaultfd made inside QEMU by the preload, PAGEMAP_SCAN from outside (Linux 6.7+)
 *   soft-dirty     /proc/PID/clear_refs and pagemap bit 55 (CONFIG_MEM_SOFT_DIRTY); holds every thread of
 *                  QEMU for the time of a take, because reading and clearing are two steps there
 *   compare        against a shadow copy of all RAM: needs nothing, costs a read of all RAM
 *
 * None sees what is written past the page tables of QEMU: writes of other processes, vhost workers aside,
 * and direct I/O (O_DIRECT) into pages that were pinned before a take and are filled after it. A take
 * decides only while the guest is paused, when QEMU has drained its disks; before that a guest must not
 * read its disks directly into RAM.
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
	int uffd;               /* fd number inside the target, from the preload page (UFFDIO_API done); -1: none */
	/* Called in the taker's thread now and then (each 32 MiB of work) while a take goes on; NULL: nobody waits. */
	void (*busy)(void *ctx);
	void *busy_ctx;
};

struct ft_tracker_ops {
	const char *name;
	int (*probe)(const struct ft_track_target *t);          /* 0: works here (really tried), else -errno */
	int (*open)(const struct ft_track_target *t, struct ft_tracker **out);
	int (*start)(struct ft_tracker *tr);                    /* from here on writes are reported */
	/*
	 * OR the pages written since the last take (first: since start) into @dirty, and re-arm. Atomic for
	 * each page, also while the target writes. On failure every page is set in @dirty: nothing is known.
	 * -ESRCH: the target is gone.
	 */
	int (*take)(struct ft_tracker *tr, struct ft_bitmap *dirty);
	void (*close)(struct ft_tracker *tr);                   /* leaves the target unprotected and at full speed */
};

/*
 * Copy pages from @view, never from anywhere else: it is the target's RAM, but for compare it is the
 * shadow. A page that was A at one take, copied as B, and A again at the next would compare equal, so
 * with compare only the shadow, which changes in take alone, may be copied from. Valid until close.
 */
struct ft_tracker {
	const struct ft_tracker_ops *ops;
	const uint8_t *view;
};

extern const struct ft_tracker_ops ft_tracker_uffd, ft_tracker_softdirty, ft_tracker_compare;

/* The best tracker that works for @t, or the one called @name (NULL, "auto": probe all, best first). */
int ft_tracker_choose(const char *name, const struct ft_track_target *t, const struct ft_tracker_ops **out) FT_MUST_CHECK;
/* Where @pid maps @path whole and shared: /proc/PID/maps. -ENOENT, or -ENOTUNIQ when any of it is mapped twice. */
int ft_track_find_mapping(pid_t pid, const char *path, uint64_t nr_pages, uint64_t *addr) FT_MUST_CHECK;

#endif
