// SPDX-License-Identifier: GPL-3.0-or-later
/* store_priv.h - what only tests of store.c use. */
#ifndef FT_STORE_PRIV_H
#define FT_STORE_PRIV_H

#include <stddef.h>

struct ft_store;
struct ft_store_tuning {
	unsigned sync_ms;               /* between syncs of the images; 0: no thread, ft_store_sync does it */
	size_t slice;                   /* bytes that advance applies beyond what epochs have brought since */
};
extern struct ft_store_tuning ft_store_tuning;
/* What the thread does, here and now. */
int ft_store_sync(struct ft_store *st);

#endif
