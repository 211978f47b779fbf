// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * diskfile.h - the file operations under images, maps and journals, as ops: tests put a file system there that
 * forgets everything not synced, fails with ENOSPC and EIO, and loses power at any step.
 */
#ifndef FT_DISKFILE_H
#define FT_DISKFILE_H

#include "ft/base.h"

struct ft_disk_files {
	/* @create: make it when it is not there (0600). An existing one is not truncated. *h >= 0. Block devices, too. */
	int (*open)(void *ctx, const char *path, bool create, int *h);
	int (*open_read)(void *ctx, const char *path, int *h);          /* only to be read: from a read-only file system, too */
	int (*size)(void *ctx, int h, uint64_t *bytes);
	/* What tells it from another file of that name (map.h): inode, 0 for a block device; time of birth, 0: not known. */
	int (*identity)(void *ctx, int h, uint64_t *inode, uint64_t *born_ns);
	int (*truncate)(void *ctx, int h, uint64_t bytes);              /* to set, or grow, the size of a file */
	int (*pread)(void *ctx, int h, void *buf, size_t len, uint64_t at);     /* all of it, or -EIO beyond the end */
	int (*pwrite)(void *ctx, int h, const void *buf, size_t len, uint64_t at);
	int (*zero)(void *ctx, int h, uint64_t at, uint64_t len);       /* reads back as zeros; frees space where it can */
	bool (*is_hole)(void *ctx, int h, uint64_t at, uint64_t len);   /* certainly zeros, without reading */
	int (*sync)(void *ctx, int h);                                  /* fdatasync */
	/* -EBUSY: another open of it, of any process, has it. Who only reads shares it with others who do. */
	int (*lock)(void *ctx, int h);
	int (*rename)(void *ctx, const char *from, const char *to);
	int (*unlink)(void *ctx, const char *path);
	int (*sync_dir)(void *ctx, const char *dir);
	void (*close)(void *ctx, int h);
	void *ctx;
};

extern const struct ft_disk_files ft_disk_files_real;

/* An image that is there, as its guest file has it. */
static inline int ft_disk_open_image(const struct ft_disk_files *f, const char *path, bool read_only, int *h)
{
	return read_only ? f->open_read(f->ctx, path, h) : f->open(f->ctx, path, false, h);
}

#endif
