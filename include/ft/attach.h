// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * attach.h - the attach record: how to reach a running guest. Written by ft-guest (or another
 * launcher) to /run/ft/guests/NAME/attach, JSON, one object, all keys required, unknown keys refused.
 * Of a Xen guest ft itself writes it, from what xenstore says of the domain; its object has other keys.
 */
#ifndef FT_ATTACH_H
#define FT_ATTACH_H

#include "ft/base.h"
#include "ft/spec.h"
#include <sys/types.h>

struct ft_attach_disk {                 /* see ft/diskserver.h */
	char image[FT_SPEC_PATH_MAX];
	char nbd[FT_SPEC_PATH_MAX];      /* the server's socket for QEMU, or for dom0's kernel */
	char control[FT_SPEC_PATH_MAX];  /* and the one for the mirror, see ft/export.h */
	bool read_only;
	pid_t pid;                       /* of the server */
	uint64_t pid_start;
};

#define FT_ATTACH_PAGES_MAX 512
#define FT_ATTACH_MODEL_MAX 64

struct ft_attach {
	char guest[FT_NAME_MAX + 1];
	enum ft_hypervisor hypervisor;
	uint64_t memory;                 /* bytes to replicate; QEMU: equals the RAM file's size */
	unsigned nr_nics;
	struct {
		uint8_t mac[6];
		char tap[16];            /* or vif */
		char bridge[16];
	} nic[FT_SPEC_NICS_MAX];

	/* Xen */
	uint32_t domid;
	char uuid[37];                   /* a domid used again is not our guest */
	char xen_version[16];            /* "4.17" */
	char pages[FT_ATTACH_PAGES_MAX]; /* the frames that make up memory, as checkpoint/xen_pages.h writes them */
	uint64_t devices;               /* not in the record: a sum of what is attached to it, taken before it was looked at */
	bool early;                      /* not in the record: its firmware is at work, and other frames may make it up later */
	char model[FT_ATTACH_MODEL_MAX]; /* of type hvm: its device model, see checkpoint/xen_model.h */

	/* QEMU */
	pid_t pid;                       /* of QEMU */
	uint64_t pid_start;              /* field 22 of /proc/PID/stat: a recycled pid is not our guest */
	char qmp[FT_SPEC_PATH_MAX];      /* QMP socket for the replicator */
	char qmp_guard[FT_SPEC_PATH_MAX];/* QMP socket for the guard */
	char qmp_state[FT_SPEC_PATH_MAX];/* QMP socket for the replicator's state command alone (see ft_qmp_arm) */
	char ram[FT_SPEC_PATH_MAX];      /* RAM file, shared mapping */
	char preload[FT_SPEC_PATH_MAX];  /* shared page of the preload (struct ft_preload_page), or empty */
	enum ft_accel accel;             /* what really runs: KVM or TCG, never AUTO */
	char machine[64];                /* resolved versioned machine type */
	char qemu_version[32];           /* "7.2.22" as QMP reports it */

	/* both */
	unsigned nr_disks;
	struct ft_attach_disk disk[FT_DISKS_MAX];
};

/* -ENOENT: no record, -ESRCH: its QEMU or domain is gone (@out is filled): both silent. -EINVAL: logged. */
int ft_attach_load(const char *guest, struct ft_attach *out) FT_MUST_CHECK;
/* The guest's run directory must exist. */
int ft_attach_save(const struct ft_attach *at) FT_MUST_CHECK;
int ft_attach_remove(const char *guest);
/* Fill pid and pid_start of the running process @pid. -ESRCH. */
int ft_attach_fill_pid(struct ft_attach *at, pid_t pid) FT_MUST_CHECK;
/* pidfd of the guest's QEMU after checking pid_start; -ESRCH when it is gone. Caller closes. */
int ft_attach_pidfd(const struct ft_attach *at) FT_MUST_CHECK;
/* The same of any process: its start, and a pidfd unless all of its threads have ended. */
int ft_pid_start(pid_t pid, uint64_t *start) FT_MUST_CHECK;
int ft_pid_open(pid_t pid, uint64_t start) FT_MUST_CHECK;

#endif
