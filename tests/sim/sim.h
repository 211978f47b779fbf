// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * sim.h - two hosts, the links between them, a client and a chaos monkey in one process on a virtual clock.
 *
 * The protocol is the shipped one: ft_primary, ft_backup, the detector, the durable record, capture, codec,
 * encoder, image and store are linked unchanged; only what lies behind their ops is made up here. Everything is
 * decided by one seeded generator, so a failing seed fails again in the same way.
 *
 * After each event these must hold (sim_check.c):
 *   released     no packet leaves the primary that no acknowledged epoch contains
 *   whole        what the backup starts is exactly one sealed epoch, memory and disk
 *   one guest    once the backup runs the guest, nothing leaves the primary
 *   nothing lost the started guest knows every packet and every answer that anyone saw
 *   grow         a durable generation never shrinks
 *   no panic     nobody takes over unless the primary's host or guest died, or the network was cut
 * and at the end, when everything has been healed:
 *   alive        the guest runs somewhere, unpaused, and a client gets an answer
 */
#ifndef FT_SIM_H
#define FT_SIM_H

#include "ft/base.h"
#include <stdio.h>

/* Deliberately broken worlds: the protocol as shipped, one seam lying. Each must be caught. */
enum sim_mutant {
	SIM_HONEST,
	SIM_ACK_TOO_EARLY,              /* an acknowledgement comes before the backup has the epoch */
	SIM_HALF_AN_EPOCH,              /* a block is lost and the epoch's end is forged to match */
	SIM_DISARM_FORGED,              /* DISARMED is answered without the backup's promise */
	SIM_LEASE_IGNORED,              /* may_speak says yes always, and the gate never closes */
	SIM_HASTY_DETECTOR,             /* silence is declared long before the window is over */
	SIM_LATE_SEAL,                  /* packets sent after the resume count as the epoch before */
	SIM_DIRTY_BIT_LOST,             /* a written page is not reported */
	SIM_NO_GUARD,                   /* nobody beats while ft-protect is stalled */
	SIM_DISK_WRITE_LOST,            /* what the disk wrote is in no epoch */
	SIM_MUTANTS,
};
const char *sim_mutant_name(enum sim_mutant m);

struct sim_result {
	bool ok;
	char why[200];                  /* the invariant that broke, and when */
	uint64_t epochs, takeovers, faults, released, answered, disk_copies, disk_granules;
};

/* From now on all records go to @f too, as tests/protocol_check.py wants them. NULL: no more. */
void sim_capture(FILE *f);

/* One life, from protection to the end. With @trace every event is printed. */
void sim_run(uint64_t seed, enum sim_mutant mutant, bool trace, struct sim_result *out);

#endif
