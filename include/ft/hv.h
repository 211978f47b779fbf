// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * hv.h - what a checkpoint needs from a hypervisor, and what a replica needs from one.
 *
 * Two ops tables, one for the running guest on the primary (struct ft_vm), one for the replica on the
 * backup (struct ft_replica). Backends: qemu (checkpoint/qemu_*.c), xen (checkpoint/xen_*.c), fake (ft/fake.h: a
 * deterministic guest in process, for tests and the simulation).
 * All members are set; int ones return 0 or -errno; every call has a bound on its time inside.
 */
#ifndef FT_HV_H
#define FT_HV_H

#include "ft/attach.h"
#include "ft/base.h"
#include "ft/bitmap.h"
#include "ft/spec.h"

enum ft_vm_event {
	FT_VM_NONE,
	FT_VM_SHUTDOWN,         /* the guest powered itself off; the process may still exist */
	FT_VM_RESET,            /* the guest rebooted; protection goes on */
	FT_VM_GONE,             /* the process died without a shutdown: a crash */
	FT_VM_PAUSED_BY_OTHER,  /* somebody else stopped the guest (another management client) */
	FT_VM_TROUBLE,          /* ft_vm.trouble is another */
};

/* Backends embed this as their first member. */
struct ft_vm {
	const struct ft_hv_ops *ops;
	const char *backend;    /* "qemu", "xen", "fake" */
	const char *accel;      /* "kvm", "tcg", "hap", "fake" */
	const char *tracker;    /* "uffd-wp-async", "soft-dirty", "compare", "log-dirty", "fake" */
	/*
	 * Guest RAM without its holes, as pages are to be copied: in RAM-file order, or in that of the page map
	 * (struct ft_attach.pages). track may change it.
	 */
	const uint8_t *ram;
	uint64_t nr_pages;
	int event_fd;           /* readable: call next_event until FT_VM_NONE */
	/* Why the guest stands still by itself, with the remedy: it is let run again and again until it does. NULL: it does not. */
	const char *trouble;
	/* How the guest ended, when FT_VM_SHUTDOWN is told. NULL: it powered off. */
	const char *ended;
	/*
	 * Back ends write its memory while it stands still: what was received, and unseen by the log a line in a ring or
	 * a bit for an event channel, which a guest that is taken over makes anew. What verify finds may be theirs.
	 */
	bool served_paused;
	bool no_drill;          /* a replica of this kind cannot be rehearsed: protection begins without */
	/*
	 * Why no epoch can be taken, with the remedy: somebody else reads which pages are written (a migration that is not
	 * ours), or the guest has a device that nobody holds. Set by an op that failed because of it, by track, or by
	 * next_event, which makes it NULL when that is over, and then all may have been written.
	 */
	const char *contended;
	/* The owner's, set before track; called through ft_vm_busy. NULL: not wanted. */
	void (*busy)(void *ctx);
	void *busy_ctx;
};

/* Said now and then while a pause or take_dirty takes long: a loaded machine is not a dead ft-protect. */
static inline void ft_vm_busy(const struct ft_vm *vm)
{
	if (vm->busy)
		vm->busy(vm->busy_ctx);
}

/*
 * Order: open (backend's own constructor), track, { pause, state_begin, take_dirty, state_end,
 * take_dirty, resume }..., close. Loop thread only. close follows every successful open exactly once,
 * whatever failed in between, and leaves the guest running and untracked.
 */
struct ft_hv_ops {
	/* Start dirty tracking. Everything written from here on is reported by some take_dirty. */
	int (*track)(struct ft_vm *vm);
	/*
	 * Returns once vCPUs stand still and devices have stopped writing RAM that counts (QMP stop has returned; a domain
	 * has suspended: what back ends still write then, front ends forget when they connect anew).
	 */
	int (*pause)(struct ft_vm *vm);
	/* Start serialising vCPU and device state; returns at once so that pages are copied meanwhile. */
	int (*state_begin)(struct ft_vm *vm);
	/* Wait for the state. The caller frees @out. Serialising may write guest RAM: take_dirty again. */
	int (*state_end)(struct ft_vm *vm, struct ft_blob *out);
	/* OR into @dirty the pages written since the last call (first: since track). May run unpaused. */
	int (*take_dirty)(struct ft_vm *vm, struct ft_bitmap *dirty);
	/* -ECANCELED: it runs, but somebody else let it run on before: what was captured is void. */
	int (*resume)(struct ft_vm *vm);
	/*
	 * Firmware and other RAM blocks outside guest RAM and outside the state blob, once at the start;
	 * pauses the guest for some ms by itself. Opaque to all but the same backend's replica.
	 */
	int (*firmware)(struct ft_vm *vm, struct ft_blob *out);
	/* Never blocks. FT_VM_NONE when nothing is left. */
	enum ft_vm_event (*next_event)(struct ft_vm *vm);
	/*
	 * Busy time so far, ns: between two calls it grows by what the busiest vCPU used. The pause budget counts busy
	 * time only, and a vCPU that waits loses nothing by a pause.
	 */
	uint64_t (*cpu_time_ns)(struct ft_vm *vm);
	/* Kill the guest for good (it was taken over elsewhere). Idempotent. */
	int (*destroy)(struct ft_vm *vm);
	void (*close)(struct ft_vm *vm);
};

struct ft_qemu_options {
	const char *tracker;    /* NULL or "auto": probe; else force one by name */
};
/* Attach to the running guest of @at: QMP, RAM mapping, tracker choice. Names every obstacle. */
int ft_qemu_open(const struct ft_attach *at, const struct ft_qemu_options *opt, struct ft_vm **out) FT_MUST_CHECK;
/*
 * Ask without touching: log one line for each thing that makes the guest unprotectable (several memory
 * backends, balloon, free-page-reporting, virtio-mem, vhost-user, vhost, VFIO, slirp, macvtap, socket
 * chardevs and displays a client could see, a QMP client holding the guest paused ...). What cannot be asked
 * counts, too; a pause that an ft-protect left behind when it died does not. Returns how many.
 */
int ft_qemu_check(const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line), void *ctx);

struct ft_drill_result {
	bool ok;
	unsigned load_ms;       /* from the command to "running" in the scratch guest */
	unsigned dirtied_pages; /* written by the scratch guest: it runs */
	char why[160];          /* when !ok */
};

struct ft_replica {
	const struct ft_replica_ops *ops;
	uint8_t *ram;           /* writable mapping of the replica's RAM, preallocated; the image writes here */
	uint64_t nr_pages;
	int watch_fd;           /* readable: the parked process died; there must be no ack from then on */
	/*
	 * The owner keeps here when its last whole epoch came in (ft_now_ns), so that start can move the guest's
	 * clock on by what has passed since. 0: not known.
	 */
	uint64_t epoch_ns;
};

/*
 * Order: prepare (backend's constructor), { fits } a session, { drill_start, drill_end }..., start once or never, then
 * detach after a start that succeeded, or destroy. Loop thread only.
 */
struct ft_replica_ops {
	/* Can it be started with this @firmware? May make it ready for that. 0, or -ENOEXEC: logged, and the same line in @why. */
	int (*fits)(struct ft_replica *r, const struct ft_blob *firmware, char *why, size_t size);
	/*
	 * Load @state (RAM is in place; images, too, and let go of by who wrote them) and run. Once in a life. Returns when
	 * the guest runs. Its attach record is there before it runs, and gone again when this fails.
	 */
	int (*start)(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state);
	/*
	 * Load RAM as it is now plus @state in a scratch guest without network, beside the parked one.
	 * Returns at once with a pollable fd; RAM must not change until drill_end. The caller closes nothing.
	 */
	int (*drill_start)(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state, int *fd);
	void (*drill_end)(struct ft_replica *r, struct ft_drill_result *out);   /* also cancels */
	/* The running guest is on its own: its attach record is written, our handle is freed. */
	int (*detach)(struct ft_replica *r);
	void (*destroy)(struct ft_replica *r);          /* kills what is parked; frees RAM; NULL is fine */
};

/*
 * Could a replica of the guest that runs as @theirs says be built here? Builds nothing: asks this host's QEMU for its
 * version and machine types. -ENOENT: no usable QEMU; -ENOEXEC: another one. Logged, and the same line in @why.
 */
int ft_qemu_replica_check(const struct ft_attach *theirs, char *why, size_t size) FT_MUST_CHECK;
/* Is there memory for one more? 0, or -ENOSPC, logged. */
int ft_qemu_replica_room(const struct ft_spec *spec) FT_MUST_CHECK;
/*
 * Build the RAM file and park a QEMU with incoming migration deferred, and the servers of its disks, whose images are
 * there by now. The reason is logged, and in @why.
 */
int ft_qemu_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			    char *why, size_t size) FT_MUST_CHECK;

/* --- Xen: a build without libxen-dev has them too; they say so and fail with -ENOTSUP --- */

bool ft_xen_built(void);
/* Fill @out from the running domain that is called as the guest. -ENOENT: there is none (silent). Else logged. */
int ft_xen_find(const struct ft_spec *spec, struct ft_attach *out) FT_MUST_CHECK;
/* For a list: of the domain called @name its number, version and memory. -ENOENT. Else logged. */
int ft_xen_glance(const char *name, struct ft_attach *out) FT_MUST_CHECK;
/* What the domain @domid is called. -ENOENT: there is none, or its name is no guest's. Else logged. */
int ft_xen_name(uint32_t domid, char name[FT_NAME_MAX + 1]) FT_MUST_CHECK;
/* The domain that has /dev/nbd@index of this host for a disk. -ENOENT: none has. Else nobody can tell. */
int ft_xen_device_user(const char *guest, unsigned index, uint32_t *domid) FT_MUST_CHECK;
/* Its network interfaces, which may have come or gone since the record was made, and the sum of its devices. */
int ft_xen_find_nics(struct ft_attach *at) FT_MUST_CHECK;
bool ft_xen_alive(const struct ft_attach *at);          /* the domain of the record still exists */
int ft_xen_open(const struct ft_attach *at, struct ft_vm **out) FT_MUST_CHECK;
int ft_xen_check(const struct ft_spec *spec, const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line), void *ctx);
int ft_xen_replica_check(const struct ft_spec *spec, const struct ft_attach *theirs, char *why, size_t size) FT_MUST_CHECK;
int ft_xen_replica_room(const struct ft_spec *spec) FT_MUST_CHECK;
int ft_xen_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			   char *why, size_t size) FT_MUST_CHECK;

/* --- whichever the guest runs on --- */

/* The attach record of the running guest: QEMU's is on disk, a domain's is made now, and saved if @keep. As ft_attach_load. */
int ft_hv_find(const struct ft_spec *spec, bool keep, struct ft_attach *out) FT_MUST_CHECK;
int ft_hv_open(const struct ft_attach *at, const char *tracker, struct ft_vm **out) FT_MUST_CHECK;
int ft_hv_check(const struct ft_spec *spec, const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line), void *ctx);
int ft_hv_replica_check(const struct ft_spec *spec, const struct ft_attach *theirs, char *why, size_t size) FT_MUST_CHECK;
int ft_hv_replica_room(const struct ft_spec *spec) FT_MUST_CHECK;
int ft_hv_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			  char *why, size_t size) FT_MUST_CHECK;

/*
 * What a guard needs of a hypervisor: to see whether the guest stands still, and to let it run or stop it. A
 * connection of its own, opened before anything goes wrong. One thread.
 */
struct ft_hold {
	const struct ft_hold_ops *ops;
	int fd;                 /* readable: ask gone(). -1: ask now and then, it costs little */
	uint64_t settle_ns;     /* how long after the death of an ft-protect its last request to stand still may take effect */
};

struct ft_hold_ops {
	bool (*gone)(struct ft_hold *h);
	bool (*paused)(struct ft_hold *h);      /* as far as it has been told; never blocks for long */
	bool (*ask_paused)(struct ft_hold *h);  /* asks */
	/*
	 * Let it run, also when the pause of a dead ft-protect is still on its way. 0: it has answered, or -EREMOTEIO: it
	 * refused, @why says. Anything else: try again.
	 */
	int (*run)(struct ft_hold *h, char *why, size_t size);
	int (*stop)(struct ft_hold *h);
	/* Does somebody save or migrate it, or did so half a minute ago? When it is gone then, it lives elsewhere. NULL: never. */
	bool (*leaving)(struct ft_hold *h);
	void (*close)(struct ft_hold *h);
};

int ft_hv_hold(const struct ft_attach *at, struct ft_hold **out) FT_MUST_CHECK;
int ft_qemu_hold(const struct ft_attach *at, struct ft_hold **out) FT_MUST_CHECK;
int ft_xen_hold(const struct ft_attach *at, struct ft_hold **out) FT_MUST_CHECK;

#endif
