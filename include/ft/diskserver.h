// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * diskserver.h - the process that serves one disk of a guest to its QEMU: nbdkit with our plugin (ft/export.h).
 *
 * It is nobody's child, outlives whoever started it, and ends by itself when QEMU has gone. When one dies before that,
 * QEMU holds the guest's requests back and tries again for FT_DISK_RECONNECT_S: the guest waits, sees no error, and goes
 * on once somebody has called ft_disk_serve.
 *
 * For a Xen guest the kernel's NBD client stands where QEMU's does, and does the same: the disk is a device /dev/nbdN,
 * which a vbd of the domain has as its backing (etc/xen/block-ft, checkpoint/nbd.h).
 *
 * Sockets, pid and messages lie beside QEMU's sockets: DIR/diskN.nbd .ctl .pid .log; the map is
 * STATE_DIR/GUEST.diskN.map.
 */
#ifndef FT_DISKSERVER_H
#define FT_DISKSERVER_H

#include "ft/attach.h"
#include "ft/spec.h"

#define FT_DISK_RECONNECT_S 3600

/* Fill in the disks of @at, whose guest is set: what and where, no process yet. -ENAMETOOLONG, logged. */
int ft_disk_plan(const struct ft_spec *spec, const char *dir, struct ft_attach *at) FT_MUST_CHECK;
/* The same in the guest's run directory, and who serves them by now: pids, as the files beside the sockets have them. */
int ft_disk_plan_here(const struct ft_spec *spec, struct ft_attach *at) FT_MUST_CHECK;
/* Where the map of disk @n is. False: the path is too long. */
bool ft_disk_map_path(char out[FT_SPEC_PATH_MAX], const char *guest, unsigned n);
/*
 * See to it that disk @n of @at is served, and return when it is: 0, its pid in @at (not saved). A server that lives is
 * left alone, also one that another program started meanwhile. @parked: a replica's, which refuses writes until it is
 * told FT_EXPORT_ACTIVATE. A Xen guest's is a device of the kernel then, connected to that server. Logged, naming the
 * image: -ENOENT: no image (with the command that makes one), no nbdkit, no plugin or no nbd in the kernel; -EINVAL: no
 * raw disk image; -EROFS, -EACCES ...; -EIO: nbdkit's own words.
 */
int ft_disk_serve(struct ft_attach *at, unsigned n, bool parked) FT_MUST_CHECK;
bool ft_disk_served(const struct ft_attach_disk *d);    /* does its server live? */
/* The guest has gone. End them all, in order: what was written is synced. Killed when that takes longer than a minute. */
void ft_disk_end(const struct ft_attach *at);
/* One disk, whose guest does not run yet: of one that died something may be left. */
void ft_disk_end_one(const struct ft_attach *at, unsigned n);
/* The same for what a dead owner left in @dir. */
void ft_disk_end_left(const char *guest, const char *dir);
/* All of that in the guest's run directory: nothing stays but maps and images. */
void ft_disk_end_here(const struct ft_attach *at);
/* A Xen guest's disk: which device it is. -ENOENT: none. */
int ft_disk_device(const struct ft_attach *at, unsigned n, unsigned *index) FT_MUST_CHECK;
/* Its vbd is gone: no device any more, and its server ends by itself. */
int ft_disk_detach(const struct ft_attach *at, unsigned n);
/* Remove their files in @dir (not maps, not images). */
void ft_disk_remove_files(const char *dir);

/* Size of what @image says; the errors of ft_disk_serve. */
int ft_disk_image_size(const char *guest, const char *image, bool read_only, uint64_t *bytes) FT_MUST_CHECK;
/* Has this host what serves the guest's disks? Logs what it lacks, nbdkit or our plugin. 0 or -ENOENT. */
int ft_disk_server_check(const struct ft_spec *spec) FT_MUST_CHECK;
/*
 * Before a guest is started by hand: its images are there, and what a crash left in the journal is in them. -EUCLEAN: an
 * image is no consistent disk, as a copy to it was not finished, or the host went down while flushes were answered by
 * the mirror; logged. @force: uses it all the same, and removes its map.
 */
int ft_disk_recover(const struct ft_spec *spec, bool force) FT_MUST_CHECK;

/* --- diskcheck.c: for those who only ask; nothing is made, locked or changed --- */
struct ft_disk_need {
	uint64_t bytes;                 /* 0: not known */
	uint64_t used;                  /* what its blocks take: less where it is sparse */
};
/* Of a running guest's disks: @found gets a line for each image that is not there, not writable, of another size, shared. */
void ft_disk_check(const struct ft_attach *at, void (*found)(void *ctx, const char *line), void *ctx);
void ft_disk_measure(const struct ft_attach *at, struct ft_disk_need need[FT_DISKS_MAX]);
/*
 * Could this host keep the replica's disks? Logged, naming the image: -ENOSPC, -EFBIG: another size, -EBUSY: another guest's
 * or program's, -EROFS, -EACCES, -ENOENT: no directory for it.
 */
int ft_disk_replica_check(const struct ft_spec *spec, const struct ft_disk_need *need, unsigned nr) FT_MUST_CHECK;

#endif
