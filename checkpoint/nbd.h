// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * nbd.h - internal: a block device of this host's kernel (/dev/nbdN) that is a disk as its server (ft/diskserver.h)
 * serves it: for back ends that live in the kernel and take no socket, as Xen's do.
 *
 * The kernel is asked by netlink, so that no process of ours has to stay, and a server that died can be replaced
 * under a device that is in use. Which device is whose the kernel knows, too: it keeps a name with each.
 */
#ifndef FT_CHECKPOINT_NBD_H
#define FT_CHECKPOINT_NBD_H

#include "ft/base.h"

struct nbd_export {
	uint64_t bytes;
	uint16_t flags;                 /* NBD_FLAG_*, as the server sends them */
};

/* --- nbd_hello.c --- */
/* Speak to a server that has taken the connection @fd, until requests may follow. -EPROTO; -ETIMEDOUT. Silent. */
int nbd_hello(int fd, unsigned timeout_ms, struct nbd_export *out) FT_MUST_CHECK;

/* --- nbd.c --- */
#define NBD_SYS "/sys/block"
/* The device that is called @name. -ENOENT. Linux 5.14: before, no device had a name. */
int nbd_find(const char *sys, const char *name, unsigned *index) FT_MUST_CHECK;
/*
 * See to it that the device @name is connected to the server at @socket: a free one is taken, or a dead connection of
 * its own replaced. One that works is left alone. What a guest asks of it meanwhile waits, @patience_s seconds at most.
 * Logged, naming @guest. -ENOENT: this kernel has no nbd.
 */
int nbd_connect(const char *guest, const char *socket, const char *name, unsigned patience_s, unsigned *index) FT_MUST_CHECK;
/* No such device any more; its server hears of it, and ends. Logged when that fails. */
int nbd_disconnect(const char *guest, const char *name);
/* Can this kernel have such devices? Loads its module when it must. -ENOENT, silent. */
int nbd_available(void) FT_MUST_CHECK;

#endif
