// SPDX-License-Identifier: GPL-3.0-or-later
/* watch.h - be told when somebody else changes nf_tables in this network namespace. */
#ifndef FT_NETBUF_WATCH_H
#define FT_NETBUF_WATCH_H

#include "ft/base.h"

struct ev_loop;
struct ft_watch;

/* @changed runs on the loop, once for a burst of changes. Changes made by port @self do not count. */
int ft_watch_open(struct ev_loop *loop, uint32_t self, void (*changed)(void *ctx), void *ctx,
		  struct ft_watch **out) FT_MUST_CHECK;
void ft_watch_close(struct ft_watch *w);        /* NULL is fine */

#endif
