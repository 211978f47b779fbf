// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * journal.h - epochs of disk ops in files: as room for what memory does not hold, or so that they survive a crash.
 *
 * Two files (segments) in turn. While one is written, the other waits until the images have all of it, synced; then
 * it is emptied, durably, before it is used again. So at any time the segments together hold, in order, everything
 * that the images may lack. Records are chained by hashes: what was left by an epoch thrown away, or by an earlier
 * use of the segment, does not continue the chain.
 *
 * One thread writes; ft_journal_reset may run on another one beside it.
 */
#ifndef FT_JOURNAL_H
#define FT_JOURNAL_H

#include "ft/disk.h"
#include "ft/diskfile.h"

struct ft_journal;

struct ft_journal_config {
	const struct ft_disk_files *files;
	const char *dir, *guest;
	bool durable;                   /* false: only room; the files have no names */
	uint64_t bound;                 /* bytes of both segments */
};

struct ft_journal_place {               /* of a record */
	unsigned seg;
	uint64_t at, chain;
};

enum { FT_JOURNAL_BATCH = 1, FT_JOURNAL_WHOLE = 2 };    /* a DISK body; the end of an epoch */
#define FT_JOURNAL_BODY_MAX FT_DISK_BODY_MAX

/*
 * What crashes have left: @record is called for every record of whole epochs, in order. -EBADMSG: damaged, logged. Also
 * what @record returns ends it. *nr counts whole epochs. Nothing is changed. @record NULL: only count.
 */
int ft_journal_replay(const struct ft_journal_config *cfg, int (*record)(void *ctx, unsigned type, const uint8_t *body, size_t len),
		      void *ctx, uint64_t *nr) FT_MUST_CHECK;
/* Removes what is there. After a replay all of whose images are synced. */
int ft_journal_remove(const struct ft_journal_config *cfg) FT_MUST_CHECK;

int ft_journal_new(const struct ft_journal_config *cfg, struct ft_journal **out) FT_MUST_CHECK;
void ft_journal_free(struct ft_journal *j);     /* the files stay; NULL is fine */

/* --- epoch by epoch: begin, append..., then keep or discard --- */
void ft_journal_begin(struct ft_journal *j);
bool ft_journal_fits(struct ft_journal *j, size_t len);        /* a body of @len stays within the bound */
/* -ENOSPC: beyond the bound, or the disk is full. *at (may be NULL) is where it is. */
int ft_journal_append(struct ft_journal *j, unsigned type, const uint8_t *body, size_t len, struct ft_journal_place *at) FT_MUST_CHECK;
int ft_journal_sync(struct ft_journal *j) FT_MUST_CHECK;
void ft_journal_keep(struct ft_journal *j, uint64_t ordinal);   /* ordinals grow from epoch to epoch */
void ft_journal_discard(struct ft_journal *j);
/* Read the record at @at, which moves on to the next. -EIO: not what was written. */
int ft_journal_read(struct ft_journal *j, struct ft_journal_place *at, uint8_t *body, size_t *len) FT_MUST_CHECK;

/* The images have everything up to epoch @ordinal, synced: empty segments that hold nothing later. Any thread. */
int ft_journal_reset(struct ft_journal *j, uint64_t ordinal) FT_MUST_CHECK;
uint64_t ft_journal_used(struct ft_journal *j);
bool ft_journal_wants_reset(struct ft_journal *j);      /* so full that it is worth a sync of the images */

#endif
