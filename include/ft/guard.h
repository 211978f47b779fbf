// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * guard.h - the guard process: what keeps a guest safe while ft-protect is dead, hung or stopped.
 *
 * A small process per guest, started by ft-protect but a child of nobody (double fork, own session). It
 *   - keeps the gate table's socket open, so that the guest's output stays shut without ft-protect;
 *   - sends heartbeats of its own, so that a stall of ft-protect is not taken for a dead host;
 *   - watches the pause word and lets a guest run on (mute) that ft-protect left paused.
 * ft-protect and guard share one page (struct ft_guard_page, a memfd). A guard outlives ft-protect and is
 * found again through /run/ft/guests/NAME/guard.sock.
 */
#ifndef FT_GUARD_H
#define FT_GUARD_H

#include "ft/base.h"
#include "ft/heartbeat.h"
#include <stdatomic.h>

enum ft_pause_word {
	FT_PAUSE_RUNNING = 0,           /* ft-protect has not paused the guest */
	FT_PAUSE_PAUSED = 1,            /* ft-protect has it paused, since paused_ns */
	FT_PAUSE_REVOKED = 2,           /* the guard let it run on: the capture in progress is void */
};

struct ft_guard_page {
	_Atomic uint32_t pause_word;
	_Atomic uint64_t paused_ns;
};

struct ft_guard;                        /* ft-protect's handle */

struct ft_guard_config {
	const char *guest;
	unsigned pause_limit_ms;        /* default 1000: a longer pause is taken for a dead ft-protect */
	int owner_fd;                   /* of ft_netbuf_owner_fd, or -1; duplicated */
};

/* Start a guard, or adopt the one that lives. */
int ft_guard_start(const struct ft_guard_config *cfg, struct ft_guard **out) FT_MUST_CHECK;
/* Heartbeats of a new session; stops those of the one before. NULL: stop beating. */
int ft_guard_beat(struct ft_guard *g, const struct ft_beat_config *beat) FT_MUST_CHECK;
/* Around a pause. pause before QMP stop. resume before QMP cont: -ECANCELED when the guard was faster. */
void ft_guard_pause(struct ft_guard *g);
int ft_guard_resume(struct ft_guard *g) FT_MUST_CHECK;
bool ft_guard_alive(struct ft_guard *g);
int ft_guard_fd(struct ft_guard *g);    /* readable: the guard died; start another one */
/* End the guard in order (protection has ended). */
void ft_guard_end(struct ft_guard *g);
/* Free our handle; the guard stays. NULL is fine. */
void ft_guard_free(struct ft_guard *g);

/* main of the program ft-guard (failover/guard_main.c): internal, started by ft_guard_start only. */
int ft_guard_main(int argc, char **argv);

#endif
