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

#define FT_QEMU_RAM_BLOCK "ram"         /* id of the memory backend, and QEMU's name for the block */

/* --- qemu_launch.c: one way to build the command line and to start the process --- */
enum ft_qemu_kind {
	FT_QEMU_GUEST,                  /* runs from its kernel or firmware */
	FT_QEMU_PARKED,                 /* -incoming defer; taps on their bridges, but down */
	FT_QEMU_SCRATCH,                /* -incoming defer, no network, private copy of RAM; dies with our thread */
};

struct ft_qemu_launch {
	const struct ft_spec *spec;
	enum ft_qemu_kind kind;
	enum ft_accel accel;            /* what a replica's guest runs with; AUTO: as the spec says, or what works */
	const char *machine;            /* what a replica's guest runs on; NULL: as the spec says, or this QEMU's "pc" */
	/* For sockets, logs, preload page; empty: RUN_DIR/guests/NAME, or RUN_DIR/drill/NAME for SCRATCH. */
	char dir[FT_SPEC_PATH_MAX];
	char ram[FT_SPEC_PATH_MAX];     /* RAM file; empty: SHM_DIR/NAME.ram. See ft_qemu_start */
};

/*
 * Make taps and preload page, start the servers of its disks (ft/diskserver.h; a SCRATCH guest has none: it reads the
 * replica's images, and what it writes is thrown away), and start QEMU as a session of its own that is nobody's child
 * and outlives us; wait until its QMP answers. The RAM file is made and every page of it allocated (tmpfs full later is SIGBUS). PARKED takes
 * one of the right size that is there; GUEST always starts with a fresh one.
 *
 * A PARKED QEMU that a dead owner left in @dir is ended first. Any other QEMU there: -EEXIST.
 * On success @out is filled (not saved; @out->ram is empty for SCRATCH, which has no file of its own), and QEMU's
 * console goes to DIR/console.log, its own messages to DIR/qemu.log, each at most FT_QEMU_LOG_MAX bytes. On failure
 * everything made is undone and one line was logged.
 */
#define FT_QEMU_LOG_MAX (16u << 20)
int ft_qemu_start(const struct ft_qemu_launch *l, struct ft_attach *out) FT_MUST_CHECK;
/*
 * Set the taps up (true) or down. A PARKED guest's taps stay down until takeover: bring them up after the durable
 * record says RUNNING and before the guest runs, so that its announcement is heard.
 */
int ft_qemu_net(const struct ft_attach *at, bool up) FT_MUST_CHECK;
/*
 * Kill (SIGKILL by pidfd), wait until it is dead and its disks' servers have ended in order; remove RAM file, sockets,
 * logs, preload page and, when nothing else is in it, the directory. Taps vanish with their QEMU. Idempotent; the
 * attach record is its owner's. Only regular files in SHM_DIR and RUN_DIR go, and none when another QEMU (a replica of
 * this guest) has the directory by now.
 */
void ft_qemu_cleanup(const struct ft_attach *at);
/*
 * KVM only where it really works: runs firmware, and each @kernel (the guest's, or empty), in it once, with a time
 * limit; kept in RUN_DIR/accel.
 */
enum ft_accel ft_qemu_probe_accel(const char *kernel);

/* Where its memory lies unless it is told otherwise. 0 or -ENAMETOOLONG. */
int ft_qemu_ram_path(const char *guest, char out[FT_SPEC_PATH_MAX]) FT_MUST_CHECK;

/* --- qmp.c: a QMP client with a bound on every wait; one at a time per socket --- */
struct ft_qmp;
bool ft_qmp_listening(const char *path);                        /* does a process listen there? */
/* Connect and greet. A failure is logged, naming @path. -ETIMEDOUT also when another client holds the socket. */
int ft_qmp_open(const char *path, unsigned timeout_ms, struct ft_qmp **out) FT_MUST_CHECK;
/* The same, but the reason goes to @why instead of the log. */
int ft_qmp_try(const char *path, unsigned timeout_ms, struct ft_qmp **out, char *why, size_t size) FT_MUST_CHECK;
void ft_qmp_close(struct ft_qmp *q);                            /* NULL is fine */
int ft_qmp_fd(struct ft_qmp *q);                                /* for polling: events may be there */
bool ft_qmp_closed(const struct ft_qmp *q);                     /* QEMU's end is gone; nothing more will come */
/*
 * Run @command with @args (stolen, may be NULL). 0 and *ret (may be NULL; caller frees), or -errno:
 * -ETIMEDOUT (a late answer is dropped), -EPIPE (QEMU is gone), -EREMOTEIO (QEMU said error), -EPROTO. Not logged:
 * only the caller knows what the command was for; ft_qmp_error has the text.
 * Events that arrive meanwhile are queued for ft_qmp_event. @fd_to_pass: -1 or an fd sent along (getfd).
 */
int ft_qmp_call(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass, unsigned timeout_ms,
		json_t **ret) FT_MUST_CHECK;
/* For migrate-set-capabilities: is guest RAM, which is in place on either side, left out of the stream? */
json_t *ft_qmp_ignore_shared(bool on);
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
const char *ft_qmp_error_class(struct ft_qmp *q);              /* of the last -EREMOTEIO, as "DeviceNotActive" */
/*
 * The next queued event, NULL when none. Never blocks; reads what is there. Caller decrefs. At most 1024 wait, then
 * the oldest go: whoever pauses and resumes makes two an epoch, so look at them.
 */
json_t *ft_qmp_event(struct ft_qmp *q);

#endif
