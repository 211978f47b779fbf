// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_model.h - the device model of an HVM domain: a QEMU in dom0, to which the guest's chipset and emulated devices
 * belong. It is asked over QMP. It has two sockets, each for one client at a time: libxl connects to its own now and
 * then, and so do questions that are asked once; who protects the domain stays connected to the other one.
 */
#ifndef FT_CHECKPOINT_XEN_MODEL_H
#define FT_CHECKPOINT_XEN_MODEL_H

#include "checkpoint/obstacles.h"
#include "checkpoint/xen.h"
#include "ft/attach.h"

bool xen_has_model(const struct xen_dom *d);
/* Its process; -1: not known, or gone. */
int xen_model_pidfd(const struct xen_dom *d);
/* Which QEMU, and which devices: "7.2.22/HASH". Equal on both hosts, or the state of one is none of the other's. */
int xen_model_describe(const struct xen_dom *d, char out[FT_ATTACH_MODEL_MAX]) FT_MUST_CHECK;
/* What it does that would not be replicated, or that nobody would hold. */
void xen_model_check(const struct xen_dom *d, const struct ft_attach *at, struct ft_obstacles *o);
/* A device model that a dead ft-protect has left stopped goes on. 0: it runs. -errno, and @why. */
int xen_model_wake(const struct xen_dom *d, char *why, size_t size) FT_MUST_CHECK;

/*
 * Order: open, { stop, save_begin, save_end, cont }..., close; or open, load, close. Failures are logged. -EPIPE: it is
 * gone.
 */
struct xen_model;
int xen_model_open(const struct xen_dom *d, struct xen_model **out) FT_MUST_CHECK;
void xen_model_close(struct xen_model *m);      /* NULL is fine; leaves it as it is */
/* From now on what it writes into the guest's memory is in Xen's log. */
int xen_model_log_writes(struct xen_model *m, bool on) FT_MUST_CHECK;
/* 0, or -EPIPE: it is gone. Asks nobody: its end of the connection is open, or not. */
int xen_model_alive(const struct xen_model *m) FT_MUST_CHECK;
/* It neither writes the guest's memory nor raises interrupts from here to cont. */
int xen_model_stop(struct xen_model *m) FT_MUST_CHECK;
int xen_model_cont(struct xen_model *m) FT_MUST_CHECK;  /* -ECANCELED: it had been let go on before, by somebody else */
int xen_model_save_begin(struct xen_model *m) FT_MUST_CHECK;
int xen_model_save_end(struct xen_model *m, struct ft_blob *out) FT_MUST_CHECK;  /* the caller frees */
/* Of one that waits with `-incoming defer`. Returns when it runs. */
int xen_model_load(struct xen_model *m, const struct ft_blob *state) FT_MUST_CHECK;
/*
 * libxl waits until a device model says in xenstore that it runs, and one that waits for its state never does: say it
 * when it answers. False: not yet.
 */
bool xen_model_announce(struct xs_handle *xs, uint32_t domid);

#endif
