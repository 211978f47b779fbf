// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * map.h - what of a disk may differ from the peer's copy: a map of touched granules and a write-ahead activity
 * log, durable, beside the disk's data generation. After DRBD's activity log and quick-sync bitmap.
 *
 * One 64-bit word of granules for each region. A region that is written to is first entered in the activity log
 * (one sync each time a cold region becomes hot); after a crash every granule of a hot region counts as touched. A region leaves
 * the log only when its word is durable. Bits are cleared when the peer has made durable what was written.
 * A map file belongs to one image: it remembers its size and its inode, and is refused (-ESTALE) for another.
 *
 * Thread-safe. Only touch and the id calls do I/O; ft_map_touch of a hot region takes a lock and no more.
 */
#ifndef FT_MAP_H
#define FT_MAP_H

#include "ft/disk.h"
#include "ft/diskfile.h"

struct ft_map;

/* What the map must belong to. */
struct ft_map_image {
	uint64_t bytes;
	uint64_t inode;                 /* 0 for block devices */
	uint64_t born_ns;               /* statx btime; 0: not known */
};

/*
 * Open the map at @path. -ENOENT: there is none; -EBADMSG: damaged; -ESTALE: another image's; both logged with the
 * remedy. After a crash the hot regions come back as touched.
 */
int ft_map_open(const struct ft_disk_files *f, const char *path, const struct ft_map_image *im, struct ft_map **out) FT_MUST_CHECK;
/* A new one, everything touched, durable (file and directory), under @id (bytes is the image's). Replaces one. */
int ft_map_create(const struct ft_disk_files *f, const char *path, const struct ft_map_image *im, const struct ft_disk_id *id,
		  struct ft_map **out) FT_MUST_CHECK;
/* Ends in order: the bits of hot regions are made durable and the log emptied. After a failure it is as after a crash. */
int ft_map_close(struct ft_map *m);
void ft_map_abandon(struct ft_map *m);  /* frees, writes nothing (a crash in tests); NULL is fine */

void ft_map_id(struct ft_map *m, struct ft_disk_id *out);
int ft_map_set_id(struct ft_map *m, const struct ft_disk_id *id) FT_MUST_CHECK;        /* durable when it returns */
/*
 * Durable too: flushes are answered from the mirror, or a replica's writes not synced yet, so after a crash of this host
 * (another boot id) the image is no consistent disk. ft_map_unsafe after open: was it so? Then everything counts as
 * touched already; the mark stays until it is set to false.
 */
int ft_map_set_unsafe(struct ft_map *m, bool unsafe) FT_MUST_CHECK;
/* What was lost before is made good, but it is unsafe from now on, too. */
int ft_map_unsafe_anew(struct ft_map *m) FT_MUST_CHECK;
/* A sync of the image has failed: it may lack what was written, for good, also for who opens it on this boot. */
int ft_map_lost(struct ft_map *m) FT_MUST_CHECK;
bool ft_map_unsafe(const struct ft_map *m);

/* Before the image is changed in [@offset, +@len) by op @seq (0: not mirrored, nothing will confirm it). */
int ft_map_touch(struct ft_map *m, uint64_t offset, uint64_t len, uint64_t seq) FT_MUST_CHECK;
/* Everything counts as touched (a new peer). Durable. */
int ft_map_touch_all(struct ft_map *m) FT_MUST_CHECK;
/* Add @word to @region's: the peer's side may differ there. Only in memory: the peer says it again in a new session. */
void ft_map_add(struct ft_map *m, uint64_t region, uint64_t word);
/*
 * A copy begins: no region with a word counts as compared until ft_map_compared says so, and bits of a region that is
 * not are never cleared. Without a copy every region counts as compared, but what was touched before open, or without a
 * seq, is confirmed by none.
 */
void ft_map_copy_begins(struct ft_map *m);
void ft_map_compared(struct ft_map *m, uint64_t region, uint64_t seq);  /* @seq: of its MARK */
/* The peer has ops up to @seq durable: regions that are compared and touched no later are clean. */
void ft_map_durable(struct ft_map *m, uint64_t seq);
/* What is clean is so on disk, too; else its sector says so when it is next written, or at close. */
int ft_map_save(struct ft_map *m) FT_MUST_CHECK;

uint64_t ft_map_word(struct ft_map *m, uint64_t region);
uint64_t ft_map_next(struct ft_map *m, uint64_t region);        /* first region >= @region with a word, or the number of regions */
uint64_t ft_map_count(struct ft_map *m);                        /* touched granules */

#endif
