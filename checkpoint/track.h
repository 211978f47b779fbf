// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * track.h - what the dirty trackers share: facts about the target's mapping, a parallel walk, and holding
 * a process still. Private to checkpoint/.
 */
#ifndef FT_TRACK_H
#define FT_TRACK_H

#include "ft/tracker.h"

/* What /proc/PID/smaps says about the tracked mapping. */
struct ft_map_facts {
	unsigned page_kb;               /* KernelPageSize: 4, or more for hugetlbfs */
	bool huge;                      /* mapped by transparent huge pages now, or may be at any time */
	bool uffd_wp;                   /* registered with a userfaultfd for write protection */
};
int ft_map_facts(const struct ft_track_target *t, struct ft_map_facts *out) FT_MUST_CHECK;

/* Open /proc/PID/@file of the target, certain that it is the target's and not of a later process. */
int ft_track_open_proc(const struct ft_track_target *t, const char *file, int flags, int *fd) FT_MUST_CHECK;
/* 0, or -ESRCH once the target has died. */
int ft_track_alive(const struct ft_track_target *t) FT_MUST_CHECK;

/*
 * Call @fn for pieces of the target's pages, large guests on a few threads at once. Pieces begin at multiples of 64, so
 * two threads never touch the same word of a bitmap. Every piece is called; the first error wins. Between pieces of its
 * own the calling thread calls the target's busy.
 */
typedef int (*ft_scan_fn)(void *ctx, uint64_t first, uint64_t nr);
int ft_scan_pages(const struct ft_track_target *t, ft_scan_fn fn, void *ctx) FT_MUST_CHECK;

/*
 * Call @fn while every thread of @pid is held (ptrace). -ETIMEDOUT when a thread does not stop within
 * @timeout_ms. Runs on a thread of its own, whose end makes the kernel let go of whatever is still held:
 * so do a time-out and our own death.
 */
int ft_while_frozen(pid_t pid, unsigned timeout_ms, int (*fn)(void *ctx), void *ctx) FT_MUST_CHECK;

#endif
