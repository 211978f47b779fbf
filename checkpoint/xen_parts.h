// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_parts.h - the state of a domain with a device model is two blobs in one: the domain's and the device model's.
 *
 *   "ftxm" version32 domain_len32 model_len32 domain model         all little-endian
 *
 * Nothing here needs Xen.
 */
#ifndef FT_CHECKPOINT_XEN_PARTS_H
#define FT_CHECKPOINT_XEN_PARTS_H

#include "ft/base.h"

#define XEN_MODEL_MAX (64u << 20)       /* a device model's state is some 10 KiB; no frame buffer is in it */

/* @out belongs to the caller. */
int xen_parts_join(const struct ft_blob *domain, const struct ft_blob *model, struct ft_blob *out) FT_MUST_CHECK;
/* @whole may be hostile; the parts borrow from it. Neither is empty, and a model's begins as QEMU's does. -EPROTO. */
int xen_parts_split(const struct ft_blob *whole, struct ft_blob *domain, struct ft_blob *model) FT_MUST_CHECK;

#endif
