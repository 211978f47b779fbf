// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * spec.h - the guest file: what a guest is, as data with a checked schema.
 *
 * The same file lies on both hosts (/etc/ft/guests/NAME.conf). Each host builds its own QEMU command
 * line, or Xen domain, from its own copy; a peer sends its spec only to be compared, never to be executed. INI syntax
 * (ini.h): a [guest] section, then one [disk] section per disk and one [nic] section per interface.
 */
#ifndef FT_SPEC_H
#define FT_SPEC_H

#include "ft/base.h"
#include "ft/disk.h"
#include "ft/store.h"

#define FT_SPEC_PATH_MAX 256
#define FT_SPEC_CMDLINE_MAX 1024
#define FT_SPEC_NICS_MAX 8
#define FT_SPEC_TEXT_MAX 16384          /* a longer guest file is refused */

enum ft_accel { FT_ACCEL_AUTO, FT_ACCEL_KVM, FT_ACCEL_TCG };
const char *ft_accel_name(enum ft_accel a);     /* "auto", "kvm", "tcg" */
enum ft_hypervisor { FT_HYPERVISOR_QEMU, FT_HYPERVISOR_XEN };
enum ft_xen_type { FT_XEN_PVH, FT_XEN_HVM };

/*
 * Legacy is the default: the modern interface alone makes 45 KB of device state per nic or disk (QEMU keeps room for
 * 1,024 queues), legacy 1 KB, and every pause serialises it. But QEMU 10's firmware reads no legacy disk, so where it boots
 * the guest disks are modern unless the file says otherwise. A parsed spec has one of the first two.
 */
enum ft_virtio { FT_VIRTIO_LEGACY, FT_VIRTIO_MODERN, FT_VIRTIO_UNSAID };

struct ft_nic {
	enum ft_virtio virtio;
	uint8_t mac[6];                 /* unicast */
	char bridge[16];                /* IFNAMSIZ; a bridge of this host */
};

struct ft_disk_spec {
	char image[FT_SPEC_PATH_MAX];   /* absolute path on this host: raw file or block device */
	bool read_only;
	enum ft_virtio virtio;
};

struct ft_spec {
	char name[FT_NAME_MAX + 1];
	uint64_t memory;                /* bytes, a multiple of 2 MiB */
	unsigned vcpus;                 /* 1..64 */
	enum ft_hypervisor hypervisor;  /* under Xen accel, machine, cpu and virtio say nothing */
	enum ft_xen_type type;          /* of the domain; HVM: with a device model */
	enum ft_accel accel;
	char machine[64];               /* versioned QEMU machine type, or empty: the default */
	char cpu[64];                   /* QEMU CPU model, or empty: the default of the accelerator */
	char kernel[FT_SPEC_PATH_MAX];  /* absolute paths on this host; empty: firmware boots the disk */
	char initrd[FT_SPEC_PATH_MAX];
	char cmdline[FT_SPEC_CMDLINE_MAX];
	enum ft_durability durability;  /* of the replica's disks, where this host keeps one */
	unsigned nr_disks;
	struct ft_disk_spec disk[FT_DISKS_MAX];
	unsigned nr_nics;
	struct ft_nic nic[FT_SPEC_NICS_MAX];
};

/*
 * Parse @text (hostile until this returns 0). @origin names it in errors ("/etc/ft/guests/vm1.conf").
 * Logs one line "ORIGIN:LINE: what is wrong and what is expected" on failure; -EINVAL.
 */
int ft_spec_parse(const char *text, size_t len, const char *origin, struct ft_spec *out) FT_MUST_CHECK;
/* Load the spec of @guest from the guests directory of ft_conf. -ENOENT when there is no such file. */
int ft_spec_load(const char *guest, struct ft_spec *out) FT_MUST_CHECK;
/* Is there a guest file of this name? */
bool ft_spec_exists(const char *guest);
/* Canonical text, parseable by ft_spec_parse; what travels to the peer. Returns its length. */
int ft_spec_format(const struct ft_spec *spec, char *buf, size_t size) FT_MUST_CHECK;
/*
 * Can a replica built from @mine continue a guest started from @theirs? 0, or -ENOEXEC with one line
 * in @why naming the first key that differs (bridge and path names and durability may differ, MACs may not; sizes of
 * disks are the store's to compare).
 */
int ft_spec_compatible(const struct ft_spec *mine, const struct ft_spec *theirs, char *why, size_t size) FT_MUST_CHECK;

#endif
