// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_load.h - bringing an epoch to life in a QEMU that waits with deferred incoming migration. The parked replica
 * does it once, at takeover; each drill does it in a scratch QEMU.
 */
#ifndef FT_QEMU_LOAD_H
#define FT_QEMU_LOAD_H

#include "checkpoint/qemu.h"
#include "ft/hv.h"

struct ft_qemu_loader;

/* Connect to @at and say beforehand all that can be: what is left for the load is one byte and the stream. */
int ft_qemu_loader_new(const struct ft_attach *at, struct ft_qemu_loader **out) FT_MUST_CHECK;
void ft_qemu_loader_free(struct ft_qemu_loader *l);     /* NULL is fine */
/*
 * Feed firmware and state and return when the guest runs. Once. Logged, with QEMU's own words; -EPROTO: the pieces
 * make no sense (QEMU was not touched), -EIO: QEMU refused them and is gone, -ETIMEDOUT.
 */
int ft_qemu_load(struct ft_qemu_loader *l, const struct ft_blob *firmware, const struct ft_blob *state) FT_MUST_CHECK;

/* --- qemu_drill.c: a process that loads an epoch in a scratch QEMU and watches the guest run --- */
struct ft_qemu_drill;
/*
 * A copy of what @parked would load, beside it: its RAM file is mapped privately and must not change until end.
 * *@fd is readable when the drill is over; it belongs to the drill.
 */
int ft_qemu_drill_new(const struct ft_spec *spec, const struct ft_attach *parked, const struct ft_blob *firmware,
		      const struct ft_blob *state, struct ft_qemu_drill **out, int *fd) FT_MUST_CHECK;
/* The result, or that it was cancelled. Nothing of the drill is left after that, nor when its owner dies. */
void ft_qemu_drill_end(struct ft_qemu_drill *d, struct ft_drill_result *out);

#endif
