// SPDX-License-Identifier: GPL-3.0-or-later
/* guest.h - internal: what the parts of ft-guest share. See ft-guest(8). */
#ifndef FT_CHECKPOINT_GUEST_H
#define FT_CHECKPOINT_GUEST_H

#include "ft/attach.h"
#include "ft/spec.h"

/* Exit statuses, documented in ft-guest(8). */
enum { GUEST_DONE = 0, GUEST_FAILED = 1, GUEST_USAGE = 2, GUEST_UNKNOWN = 3, GUEST_REFUSED = 4 };

struct guest_options {
	bool force, kill, json;
	unsigned timeout_s;             /* 0 with --kill */
	const char *guest;              /* checked; NULL: none given */
	const char *domain;             /* that gets the disk */
	unsigned disk;                  /* of a target NAME:N */
	bool replica;                   /* ... NAME:N:replica */
};

/* --- guest_record.c: may it be started, stopped? What is returned is an exit status, unless said otherwise --- */

/* One command at a time works on a guest. @how: LOCK_NB, or 0 to wait. A descriptor, or -1: logged. */
int guest_lock(const char *guest, int how) FT_MUST_CHECK;
void guest_unlock(const char *guest, int fd);
int guest_load_spec(const char *guest, struct ft_spec *spec) FT_MUST_CHECK;
/*
 * Does the durable record let it start here? @how: what makes it start all the same, for the refusal. @force: that was
 * said; still no while an ft-protect, or the ftd that keeps its replica, lives.
 */
int guest_may_start(const char *guest, bool force, const char *how) FT_MUST_CHECK;
/* By force, and it starts next: the record forgets whose it was. GUEST_REFUSED: somebody acts on it by now. */
int guest_claim(const char *guest) FT_MUST_CHECK;
int guest_may_stop(const char *guest, bool force) FT_MUST_CHECK;

/* --- guest_domain.c: the same commands of a Xen domain, which xl starts and ends; each returns an exit status --- */

/* Is there a guest file that says so? One that is not there is nobody's fault here. */
bool guest_is_domain(const char *guest);
/* The domain called as the guest runs, has its replica here, is not here, or nobody can tell: as a state of ft-guest(8). */
const char *domain_state(const char *guest, struct ft_attach *at);
int domain_start(const struct ft_spec *spec, bool force) FT_MUST_CHECK;
int domain_stop(const struct guest_options *o) FT_MUST_CHECK;
/* What etc/xen/block-ft has us do when a domain gets a disk, and when it is through with it. */
int domain_disk_attach(const struct guest_options *o) FT_MUST_CHECK;
int domain_disk_detach(const struct guest_options *o) FT_MUST_CHECK;

#endif
