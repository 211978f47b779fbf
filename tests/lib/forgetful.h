// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * forgetful.h - a file system in memory that forgets what was not synced, fails, and loses power at any step.
 *
 * A step is whatever changes something: create, truncate, pwrite, zero, sync, rename, unlink, sync_dir. After a cut
 * every call fails until forgetful_power_on, which decides by @seed what of the unsynced has reached the disk: of
 * writes any 512-byte sectors, of names any number of the oldest changes. Thread-safe.
 */
#ifndef FT_FORGETFUL_H
#define FT_FORGETFUL_H

#include "ft/diskfile.h"

struct forgetful *forgetful_new(void);
void forgetful_free(struct forgetful *fs);
const struct ft_disk_files *forgetful_files(struct forgetful *fs);

unsigned forgetful_steps(struct forgetful *fs);                 /* so far, since power on */
void forgetful_cut_at(struct forgetful *fs, unsigned step);     /* before that one, counted from now; 0: never */
/* That step, and if @stays all after it, fails with @err; a write has half been done. A failed sync loses what it was for. */
void forgetful_fail_at(struct forgetful *fs, unsigned step, int err, bool stays);
void forgetful_failed_sync_keeps(struct forgetful *fs, bool keeps);     /* or it does not, but is not told */
void forgetful_fail_reads(struct forgetful *fs, int err);       /* 0: no more */
bool forgetful_is_off(struct forgetful *fs);
/* Pulls the plug when it has not been, and starts again. Open handles are dead, locks gone. */
void forgetful_power_on(struct forgetful *fs, uint64_t seed);
/* Locks and handles of a dead process go; what was written stays. */
void forgetful_process_dies(struct forgetful *fs);
enum { FORGETFUL_SYNC = 1, FORGETFUL_SYNC_DIR = 2 };
void forgetful_lie(struct forgetful *fs, unsigned which);       /* they say that they have done it */
/* Only steps on files whose path contains @part count, can be cut at, or fail. NULL: all. */
void forgetful_only(struct forgetful *fs, const char *part);

/* Without a step, as the page cache has it. */
bool forgetful_exists(struct forgetful *fs, const char *path);
uint64_t forgetful_size(struct forgetful *fs, const char *path);
void forgetful_read(struct forgetful *fs, const char *path, void *buf, size_t len, uint64_t at);
/* There, durable, with these bytes. */
void forgetful_put(struct forgetful *fs, const char *path, const void *data, size_t len);

/* A test of a thousand failures: do not show their lines. */
void forgetful_quiet(void);

#endif
