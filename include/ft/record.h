// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * record.h - the durable {generation, role} of a guest on this host: STATE_DIR/NAME.record.
 *
 * Generations only grow. The record is durable before the act it allows: temporary file, fsync, rename,
 * fsync of the directory. Each of these steps is an op, so that tests can forget what was not fsynced and
 * cut the power between any two of them. Text, one line: "ft-record 1 GENERATION ROLE PEER CRC32".
 */
#ifndef FT_RECORD_H
#define FT_RECORD_H

#include "ft/base.h"

enum ft_role {
	FT_ROLE_NONE,           /* never protected, or ended in order */
	FT_ROLE_PRIMARY,        /* runs here, protected: the peer may take over, so ask it before starting again */
	FT_ROLE_ARMED,          /* backup: has a whole epoch of this generation and may start it */
	FT_ROLE_DISARMED,       /* backup: promised never to start this generation */
	FT_ROLE_RUNNING,        /* took over (or was handed over to, or goes on alone): runs here under this generation */
	FT_ROLE_STOOD_DOWN,     /* the peer runs it under this generation; must not start here */
};
#define FT_NR_ROLES 6

struct ft_record {
	uint64_t generation;
	enum ft_role role;
	char peer[FT_NAME_MAX + 1];     /* may be empty */
};

/*
 * Where records live; NULL stands for the real file system. Order of a save: begin, read, write, sync,
 * rename, sync_dir, end. A failure skips to end. Int members return 0 or -errno.
 */
struct ft_file_ops {
	/* Open an empty temporary file and lock it against other writers: -EBUSY when there is one. @h >= 0. */
	int (*begin)(void *ctx, const char *tmp, int *h);
	int (*read)(void *ctx, const char *path, size_t max, struct ft_blob *out);
	int (*write)(void *ctx, int h, const void *data, size_t len);
	int (*sync)(void *ctx, int h);
	int (*rename)(void *ctx, const char *from, const char *to);
	int (*sync_dir)(void *ctx, const char *dir);
	void (*end)(void *ctx, int h);
	void *ctx;
};

/* No file: generation 0, FT_ROLE_NONE, 0. A damaged one: -EBADMSG and a line with the remedy. */
int ft_record_load(const struct ft_file_ops *ops, const char *dir, const char *guest, struct ft_record *out) FT_MUST_CHECK;
/*
 * Durable once it returns 0; after an error either record may be found, whole. -EINVAL when the generation
 * would shrink or the change of role is not in the table of record.c; -EBUSY: another process is writing.
 */
int ft_record_save(const struct ft_file_ops *ops, const char *dir, const char *guest, const struct ft_record *r) FT_MUST_CHECK;
/* Would ft_record_save take @to after @from? */
bool ft_record_allowed(const struct ft_record *from, const struct ft_record *to);
const char *ft_role_name(enum ft_role role);
/* Why a guest that does not run here must not be started here by hand, to go before the peer's name; NULL: nothing forbids it. */
const char *ft_record_forbids(const struct ft_record *r);

#endif
