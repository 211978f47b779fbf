// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_watch.h - internal: a descriptor that becomes readable when a domain, or its device model, is gone. */
#ifndef FT_CHECKPOINT_XEN_WATCH_H
#define FT_CHECKPOINT_XEN_WATCH_H

#include "ft/base.h"

struct xen_watch;
/* @model_fd: a pidfd, ours from here on whatever comes; -1: it has none. */
int xen_watch_new(const char *guest, uint32_t domid, int model_fd, struct xen_watch **out) FT_MUST_CHECK;
int xen_watch_fd(const struct xen_watch *w);            /* ours; valid until free */
void xen_watch_free(struct xen_watch *w);               /* NULL is fine */

#endif
