// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * detector.h - judging silence, on both sides. Pure: the caller brings the clock.
 *
 * Backup: ft_silence. Primary: ft_lease. They are two ends of one argument: the backup takes over no earlier
 * than @silence_ns after it received the last sign of life; a sign of life sent at t is received at t or
 * later; so until t + lease (lease < silence, the difference covers clock drift and the last system call)
 * the primary of an echoed sign of life knows that nobody else speaks.
 * The detector reports, the actor decides.
 */
#ifndef FT_DETECTOR_H
#define FT_DETECTOR_H

#include "ft/base.h"

struct ft_silence {
	uint64_t silence_ns;    /* judge() is true after this much */
	uint64_t tick_ns;       /* judge is expected at least this often; a later call is a stall of ours */
	uint64_t last_life_ns;
	uint64_t last_judge_ns;
	uint64_t stalls;        /* late wake-ups seen */
};

void ft_silence_init(struct ft_silence *s, uint64_t now, uint64_t silence_ns, uint64_t tick_ns);
void ft_silence_life(struct ft_silence *s, uint64_t now);
/*
 * True: silent for the whole window. A call that comes more than 2 x tick late first restarts the window:
 * it was us who slept, and what the peer sent meanwhile may not have been read yet. Read before judging.
 */
bool ft_silence_judge(struct ft_silence *s, uint64_t now);

struct ft_lease {
	uint64_t lease_ns;
	uint64_t until_ns;      /* 0: none */
};

/* lease = silence - max(silence / 5, 20 ms); none at all when that leaves nothing. */
void ft_lease_init(struct ft_lease *l, uint64_t silence_ns);
void ft_lease_renew(struct ft_lease *l, uint64_t sent_ns);  /* a sign of life sent then was echoed; never shortens */
void ft_lease_revoke(struct ft_lease *l);                   /* ends this lease; a later echo may start another */
bool ft_lease_fresh(const struct ft_lease *l, uint64_t now);

#endif
