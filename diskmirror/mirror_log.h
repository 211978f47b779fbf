// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * mirror_log.h - the ops of all disks between the exports and the encoder: in order per disk, in memory up to a bound,
 * beyond it in an unlinked file, beyond that dropped.
 *
 * Ops lie packed in chunks. A chunk that is full stays in memory while there is room, else it goes to the file: the newest
 * go, because the oldest are wanted first. What was taken is kept until its epoch is committed, so that a
 * session can be resumed; only the ops of a session's first epoch, the copy, are freed as they are taken, or a first copy
 * would have to fit into the log.
 *
 * Has a lock of its own and calls nobody. append and tidy: the reader's thread. take: one thread at a time.
 */
#ifndef FT_MIRROR_LOG_H
#define FT_MIRROR_LOG_H

#include "ft/disk.h"

#define FT_DLOG_CHUNK (4u * FT_DISK_BATCH_MAX)

struct ft_dlog;

struct ft_dlog_config {
	unsigned nr_disks;
	size_t memory_bound;            /* a chunk per disk is always there */
	uint64_t file_bound;
	const char *spill_dir;
};
int ft_dlog_new(const struct ft_dlog_config *cfg, struct ft_dlog **out) FT_MUST_CHECK;
void ft_dlog_free(struct ft_dlog *l);

/* A new stream of @disk, whose next op is @last + 1. */
void ft_dlog_stream(struct ft_dlog *l, unsigned disk, uint64_t last);
/*
 * The next op of @disk as packed, with its data. While the log is shut it is forgotten at once. -EFBIG: beyond the
 * file's bound; -ENOSPC, -EIO ...: the file. Then everything was dropped and the log is shut.
 */
int ft_dlog_append(struct ft_dlog *l, unsigned disk, uint64_t seq, const uint8_t *op, size_t len) FT_MUST_CHECK;
void ft_dlog_tidy(struct ft_dlog *l);           /* gives the file's space back when nothing is in it */
bool ft_dlog_untidy(struct ft_dlog *l);

/* A new session: forget everything and take ops from now on. */
void ft_dlog_restart(struct ft_dlog *l);
/* Something is missing: forget everything until the next restart. Whoever takes gets -EIO. */
void ft_dlog_shut(struct ft_dlog *l);
/* Ops up to @bound[disk], and whatever has come, belong to @epoch and those before. -EIO: shut. */
int ft_dlog_seal(struct ft_dlog *l, uint64_t epoch, const uint64_t *bound) FT_MUST_CHECK;
void ft_dlog_commit(struct ft_dlog *l, uint64_t epoch);
/* Take again what epochs after @whole held. -ESTALE: not kept. */
int ft_dlog_rewind(struct ft_dlog *l, uint64_t whole) FT_MUST_CHECK;
bool ft_dlog_resumable(struct ft_dlog *l);

/*
 * A batch of ops of one disk, as ft_mirror_ops.next wants them. 1, 0: that was all, -EIO: shut, -ETIMEDOUT: sealed
 * ops did not come, -EAGAIN: nor could they, the reader is at the file, -ECANCELED: restarted meanwhile. @raw has
 * FT_DISK_BATCH_MAX bytes.
 */
int ft_dlog_take(struct ft_dlog *l, uint64_t upto, unsigned wait_ms, unsigned *disk, uint8_t *raw, size_t *len, uint32_t *nr_ops);
bool ft_dlog_pending(struct ft_dlog *l, uint64_t upto);
uint64_t ft_dlog_untaken(struct ft_dlog *l);    /* bytes, all disks */
uint64_t ft_dlog_sent(struct ft_dlog *l, unsigned disk);        /* newest seq ever taken of this stream */

struct ft_dlog_status {
	uint64_t behind, pending;       /* bytes (exact where a chunk ends) and ops not committed */
	uint64_t taken_data;            /* bytes without the ops around them, since new; what is taken again counts again */
	uint64_t file_bytes;
};
void ft_dlog_get_status(struct ft_dlog *l, unsigned disk, struct ft_dlog_status *out);
size_t ft_dlog_memory(struct ft_dlog *l);       /* bytes of chunks in memory */

#endif
