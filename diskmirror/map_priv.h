// SPDX-License-Identifier: GPL-3.0-or-later
/* map_priv.h - what only tests of map.c set, before a map is made or opened. */
#ifndef FT_MAP_PRIV_H
#define FT_MAP_PRIV_H

struct ft_map_tuning {
	unsigned slots;                 /* of the activity log of new maps */
	const char *boot_id;            /* NULL: the kernel's */
};
extern struct ft_map_tuning ft_map_tuning;

#endif
