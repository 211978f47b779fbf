// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * record.h - the durable {generation, role} of a guest on this host: /var/lib/ft/NAME.record.
 *
 * Generations only grow. The record is written (temporary file, fsync, rename, fsync of the directory)
 * before the act it allows. File operations go through ops so that tests can forget what was not
 * fsynced and cut at every step. Text, one line: "ft-record 1 GENERATION ROLE PEER CRC32".
 */
#ifndef FT_RECORD_H
#define FT_RECORD_H

#include "ft/base.h"

enum ft_role {
	FT_ROLE_NONE,           /* never protected, or ended in order */
	FT_ROLE_PRIMARY,        /* runs here, protected: the peer may take over, so ask it before starting again */
	FT_ROLE_ARMED,          /* backup: has a whole epoch of this generation and may start it */
	FT_ROLE_DISARMED,       /* backup: promised never to start this generation */
	FT_ROLE_RUNNING,        /* took over (or was handed over to): runs here under this generation */
	FT_ROLE_STOOD_DOWN,     /* the peer runs it under this generation; must not start here */
};

struct ft_record {
	uint64_t generation;
	enum ft_role role;
	char peer[FT_NAME_MAX + 1];
};

struct ft_file_ops {            /* default: the real system calls */
	int (*write_durable)(void *ctx, const char *path, const void *data, size_t len);
	int (*read)(void *ctx, const char *path, size_t max, struct ft_blob *out);
	void *ctx;
};

/* No file: generation 0, FT_ROLE_NONE, 0. A damaged one: -EBADMSG and a line with the remedy. */
int ft_record_load(const struct ft_file_ops *ops, const char *dir, const char *guest, struct ft_record *out) FT_MUST_CHECK;
/* -EINVAL when the generation would shrink, or the role change is not in the table of record.c. */
int ft_record_save(const struct ft_file_ops *ops, const char *dir, const char *guest, const struct ft_record *r) FT_MUST_CHECK;
const char *ft_role_name(enum ft_role role);

#endif
