// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu.h - what the qemu backend's files share: the command line, starting and ending a QEMU, QMP.
 * ft-guest (a guest), ftd (a parked replica) and the drill (a scratch guest) all start QEMU through here.
 */
#ifndef FT_CHECKPOINT_QEMU_H
#define FT_CHECKPOINT_QEMU_H

#include "ft/attach.h"
#include "ft/spec.h"
#include <jansson.h>

/* --- qemu_launch.c: one way to build the command line and to start the process --- */
enum ft_qemu_kind {
	FT_QEMU_GUEST,                  /* runs from its kernel or firmware */
	FT_QEMU_PARKED,                 /* -incoming defer, taps made but down */
	FT_QEMU_SCRATCH,                /* -incoming defer, no network (each nic on a hubport), private copy of RAM */
};

struct ft_qemu_launch {
	const struct ft_spec *spec;
	enum ft_qemu_kind kind;
	enum ft_accel accel;            /* AUTO: probe KVM by really starting something, else TCG */
	const char *machine;            /* resolved versioned type, or NULL: the default of this QEMU for the spec */
	char dir[FT_SPEC_PATH_MAX];     /* for sockets, log, preload page: RUN_DIR/guests/NAME or a scratch directory */
	char ram[FT_SPEC_PATH_MAX];     /* RAM file; created and posix_fallocate'd by the launcher unless it exists */
};

/*
 * Make RAM file, taps (named "ft" + hash of guest and nic; attached to the bridge; for PARKED left down),
 * preload page, and start QEMU as a session of its own that outlives us; wait until its QMP answers.
 * On success @out is filled (not saved). On failure everything made is undone and one line was logged,
 * with QEMU's own last words.
 */
int ft_qemu_start(const struct ft_qemu_launch *l, struct ft_attach *out) FT_MUST_CHECK;
/* Kill (SIGKILL by pidfd), wait, remove taps, RAM file and directory contents. Idempotent. */
void ft_qemu_cleanup(const struct ft_attach *at);
/* KVM only where it really works: starts a tiny guest once, remembers the answer in RUN_DIR. */
enum ft_accel ft_qemu_probe_accel(void);

/* --- qmp.c: a QMP client with a bound on every wait; one at a time per socket --- */
struct ft_qmp;
/* Connect and greet. A failure is logged, naming @path. -ETIMEDOUT also when another client holds the socket. */
int ft_qmp_open(const char *path, unsigned timeout_ms, struct ft_qmp **out) FT_MUST_CHECK;
void ft_qmp_close(struct ft_qmp *q);                            /* NULL is fine */
int ft_qmp_fd(struct ft_qmp *q);                                /* for polling: events may be there */
/*
 * Run @command with @args (stolen, may be NULL). 0 and *ret (may be NULL; caller frees), or -errno:
 * -ETIMEDOUT (a late answer is dropped), -EPIPE (QEMU is gone), -EREMOTEIO (QEMU said error), -EPROTO. Not logged:
 * only the caller knows what the command was for; ft_qmp_error has the text.
 * Events that arrive meanwhile are queued for ft_qmp_event. @fd_to_pass: -1 or an fd sent along (getfd).
 */
int ft_qmp_call(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass, unsigned timeout_ms, json_t **ret) FT_MUST_CHECK;
/* The two halves of a call, so that other work overlaps with QEMU's. */
int ft_qmp_send(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass) FT_MUST_CHECK;
int ft_qmp_wait(struct ft_qmp *q, unsigned timeout_ms, json_t **ret) FT_MUST_CHECK;
/*
 * QEMU reads its monitor one byte a poll: a long command costs it half a millisecond before it begins. So a command
 * that a pause will need is said beforehand, all but its last byte (arm); fire says that one, ft_qmp_wait takes the
 * answer. In between nothing else may be sent, except by disarm, which takes the command back unexecuted.
 */
int ft_qmp_arm(struct ft_qmp *q, const char *command, json_t *args) FT_MUST_CHECK;
int ft_qmp_fire(struct ft_qmp *q) FT_MUST_CHECK;
int ft_qmp_disarm(struct ft_qmp *q, unsigned timeout_ms) FT_MUST_CHECK; /* nothing armed: nothing to do */
bool ft_qmp_armed(const struct ft_qmp *q);
const char *ft_qmp_error(struct ft_qmp *q);
/*
 * The next queued event, NULL when none. Never blocks; reads what is there. Caller decrefs. At most 1024 wait, then
 * the oldest go: whoever pauses and resumes makes two an epoch, so look at them.
 */
json_t *ft_qmp_event(struct ft_qmp *q);

#endif
