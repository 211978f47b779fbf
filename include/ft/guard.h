// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * guard.h - the guard process: what keeps a guest safe while ft-protect is dead, hung or stopped.
 *
 * A small process per guest, started by ft-protect but a child of nobody (double fork, own session). It
 *   - keeps the gate table's socket open, so that the guest's output stays shut without ft-protect;
 *   - sends heartbeats of its own, so that a stall of ft-protect is not taken for a dead host;
 *   - lets a guest run on (mute) that ft-protect left paused;
 *   - gives up after a grace time without ft-protect: pauses the guest, falls silent, and the backup takes over;
 *   - but not when somebody saves or migrates the guest meanwhile: then it beats on, also when the guest is gone from
 *     here, since it lives elsewhere; until it is back and the backup has an epoch of it, or the guard is ended by hand.
 * They share one page, in which the pause word decides to whom a pause belongs. A guard outlives ft-protect and is
 * found again through RUN_DIR/guests/NAME/guard.sock. Nothing here opens an output: a guest that the guard lets
 * run stays mute until ft-protect has asked the peer.
 *
 * One thread of ft-protect makes all calls.
 */
#ifndef FT_GUARD_H
#define FT_GUARD_H

#include "ft/base.h"
#include "ft/heartbeat.h"

struct ft_guard;                        /* ft-protect's handle */

struct ft_guard_config {
	const char *guest;
	unsigned pause_limit_ms;        /* 0: 1000. A longer pause is taken for a dead ft-protect */
	unsigned grace_ms;              /* 0: 10000. So long heartbeats go on without ft-protect */
	int owner_fd;                   /* of ft_netbuf_owner_fd, or -1; the guard gets a duplicate */
};

/* Start a guard, or adopt the one that lives. The attach record must be there. */
int ft_guard_start(const struct ft_guard_config *cfg, struct ft_guard **out) FT_MUST_CHECK;
/*
 * Adopt the guard that a dead ft-protect left, before anything else is done with the guest: a guest that was left
 * paused, by whomever, runs when this returns. *@owner_fd: the gate table's socket it kept, or -1; the caller's.
 * -ENOENT: there is none (silent).
 */
int ft_guard_adopt(const struct ft_guard_config *cfg, int *owner_fd, struct ft_guard **out) FT_MUST_CHECK;
/* The guard keeps a duplicate of @owner_fd instead of the one before. */
int ft_guard_hold(struct ft_guard *g, int owner_fd) FT_MUST_CHECK;
/* Heartbeats of a new session; stops those of the one before. NULL: stop beating. Never blocks. */
int ft_guard_beat(struct ft_guard *g, const struct ft_beat_config *beat) FT_MUST_CHECK;
/*
 * Around a pause: pause before QMP stop, and again now and then while it lasts; resume after QMP cont has
 * returned. In between the pause is ours, and whenever we die in between, the guard lets the guest run.
 * -ECANCELED: it did, or is about to: what was captured is void; the guest must run now, so cont was right.
 * Without a guard (NULL) nothing that is captured counts.
 */
void ft_guard_pause(struct ft_guard *g);
int ft_guard_resume(struct ft_guard *g) FT_MUST_CHECK;
/* Is output held, so that a backup may take over? Only then the guard pauses the guest when it gives up. */
void ft_guard_held(struct ft_guard *g, bool held);
/* Has the backup a whole epoch of ours? What it has before that may be older than a guest that was saved and restored. */
void ft_guard_whole(struct ft_guard *g, bool whole);
/*
 * The loop turns: call it each second or so. From the first call on, a loop that stands still for the grace time
 * is taken for hung, and ft-protect is killed (a restarted one finds its way; a hung one would keep the guest mute).
 */
void ft_guard_tick(struct ft_guard *g);
/* What follows may take long, and has a limit of its own: the loop is not judged until it ticks again. */
void ft_guard_rest(struct ft_guard *g);
bool ft_guard_alive(struct ft_guard *g);
int ft_guard_fd(struct ft_guard *g);    /* readable: the guard died; free it and start another one */
/* End the guard in order (protection has ended); waits a second at most. The handle is still to be freed. */
void ft_guard_end(struct ft_guard *g);
/* Free our handle; the guard stays. NULL is fine. */
void ft_guard_free(struct ft_guard *g);

/* main of the program ft-guard: internal, started by ft_guard_start only. */
int ft_guard_main(int argc, char **argv);

#endif
