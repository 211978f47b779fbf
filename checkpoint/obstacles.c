// SPDX-License-Identifier: GPL-3.0-or-later
/* obstacles.c - see checkpoint/obstacles.h. */
#include "checkpoint/obstacles.h"

#include <stdio.h>

void ft_obstacle(struct ft_obstacles *o, const char *fmt, ...)
{
	char line[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	o->tell(o->ctx, line);
	o->nr++;
}
