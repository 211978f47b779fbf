// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_vm.h - the running QEMU guest, shared by the files that implement struct ft_vm for it: qemu_open.c (making
 * and unmaking the handle), qemu_vm.c (what an epoch needs), qemu_firmware.c (once a session), qemu_room.c (disks that are full).
 *
 * Two QMP connections, so that nothing long is said while the guest stands still: each is armed with the command
 * its next use will need. qmp says stop and cont (and all else, disarmed); state_qmp only says the state command,
 * which writes into a memfd of ours that QEMU knows as an fd set.
 */
#ifndef FT_QEMU_VM_H
#define FT_QEMU_VM_H

#include "checkpoint/qemu.h"
#include "ft/hv.h"
#include "ft/preload.h"
#include "ft/tracker.h"

#define FT_QEMU_CALL_MS 5000            /* a command that does nothing long */
#define FT_QEMU_BUSY_MS 50              /* a wait that takes long says ft_vm_busy so often */
#define FT_QEMU_VCPUS_MAX 64
#define FT_QEMU_EVENTS_MAX 8            /* kinds are few, and told once each */

struct qemu_vm {
	struct ft_vm vm;
	struct ft_attach at;
	struct ft_qmp *qmp, *state_qmp;
	const uint8_t *mapping;         /* of the RAM file; vm.ram is what the tracker says to read, often the same */
	int pidfd;
	int wake_fd;                    /* eventfd: a call of ours met events */
	int state_rd, state_wr;         /* one memfd; QEMU writes through a duplicate of wr, so its offset is the length */
	int64_t state_fdset;            /* -1: QEMU does not know state_wr */
	struct ft_preload_page *page;   /* NULL: QEMU runs without the preload */
	const struct ft_tracker_ops *tracker_ops;
	struct ft_tracker *tracker;     /* NULL: not tracked */
	bool prepared;                  /* QEMU was told what protection needs of it; undone by close */
	bool paused;                    /* by us */
	bool changing;                  /* a stop or cont of ours is under way: its event is ours */
	bool off;                       /* the guest powered itself off */
	bool foreign_pause;             /* somebody else's `stop`: not ours to resume */
	bool starved;                   /* QEMU stopped it: a disk has no room */
	int room_fd;                    /* timer: let it run, and see */
	char trouble[2 * FT_SPEC_PATH_MAX + 256];
	bool resumed_by_other;          /* during our pause: what was captured is void */
	bool exited;                    /* and told */
	enum ft_vm_event event[FT_QEMU_EVENTS_MAX];
	unsigned nr_events;
	unsigned nr_vcpus;
	int vcpu_fd[FT_QEMU_VCPUS_MAX]; /* /proc/PID/task/TID/schedstat */
	uint64_t vcpu_ns[FT_QEMU_VCPUS_MAX];
	uint64_t busy_ns;               /* what cpu_time_ns returns */
};

static inline struct qemu_vm *qemu_of(struct ft_vm *vm)
{
	return ft_container_of(vm, struct qemu_vm, vm);
}

/* qemu_vm.c */
extern const struct ft_hv_ops qemu_vm_ops;
/* A command on qmp, which must not be armed; a failure is logged. */
int qemu_vm_call(struct qemu_vm *v, const char *command, json_t *args, int fd, json_t **ret) FT_MUST_CHECK;
/* The same where a failure changes nothing. */
void qemu_vm_try(struct qemu_vm *v, const char *command, json_t *args);
void qemu_vm_queue_event(struct qemu_vm *v, enum ft_vm_event ev);
void qemu_vm_take_events(struct qemu_vm *v);
void qemu_vm_check_exit(struct qemu_vm *v);
void qemu_vm_hold_clock(struct qemu_vm *v, bool still);

int qemu_vm_pause(struct ft_vm *vm) FT_MUST_CHECK;
int qemu_vm_resume(struct ft_vm *vm) FT_MUST_CHECK;

/* qemu_room.c */
void qemu_room_lost(struct qemu_vm *v, const json_t *data);     /* QEMU's BLOCK_IO_ERROR */
void qemu_room_found(struct qemu_vm *v);                        /* it was so before we came */
void qemu_room_tick(struct qemu_vm *v);                         /* the timer may be due */

/* qemu_firmware.c */
int qemu_vm_firmware(struct ft_vm *vm, struct ft_blob *out) FT_MUST_CHECK;

/* qemu_open.c */
struct ft_track_target qemu_vm_target(const struct qemu_vm *v);         /* without addr */
void qemu_vm_say_unmapped(const struct qemu_vm *v, int rc);
bool qemu_old_pause(const struct ft_attach *at);        /* is the guest in a pause of ours that nobody lived to end? */
void qemu_vm_close(struct ft_vm *vm);

/* qemu_check.c: ask QEMU and /proc for what makes the guest unprotectable; how many lines were told. */
unsigned qemu_obstacles(struct ft_qmp *q, const struct ft_attach *at, void (*tell)(void *ctx, const char *line),
			void *ctx);
/* The same of a Xen domain's device model, as far as it has outputs and devices. */
unsigned qemu_model_obstacles(struct ft_qmp *q, const struct ft_attach *at, void (*tell)(void *ctx, const char *line),
			      void *ctx);

#endif
