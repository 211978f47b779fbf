// SPDX-License-Identifier: GPL-3.0-or-later
/* obstacles.h - what stands in a guest's way, line by line, for ft_qemu_check and ft_xen_check. */
#ifndef FT_CHECKPOINT_OBSTACLES_H
#define FT_CHECKPOINT_OBSTACLES_H

#include "ft/base.h"

struct ft_obstacles {
	void (*tell)(void *ctx, const char *line);
	void *ctx;
	unsigned nr;                    /* told */
};

void ft_obstacle(struct ft_obstacles *o, const char *fmt, ...) FT_PRINTF(2, 3);

#endif
