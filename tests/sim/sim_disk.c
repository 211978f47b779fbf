// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_disk.c - the durable record of each host. */
#include "sim_world.h"

/* --- durable records: one blob a host, kept by the disk --- */


struct store sim_store_a, sim_store_b;

static int file_begin(void *ctx, const char *tmp, int *h)
{
	struct store *st = ctx;

	(void)tmp;
	ft_blob_free(&st->tmp);
	*h = 0;
	return sim_dies_here(st->s, st->owner) ? -EIO : 0;
}

static int file_read(void *ctx, const char *path, size_t max, struct ft_blob *out)
{
	struct store *st = ctx;

	(void)path, (void)max;
	*out = (struct ft_blob){ 0 };
	if (!st->blob->data)
		return -ENOENT;
	return ft_blob_copy(out, st->blob->data, st->blob->len);
}

static int file_write(void *ctx, int h, const void *data, size_t len)
{
	struct store *st = ctx;

	(void)h;
	return sim_dies_here(st->s, st->owner) ? -EIO : ft_blob_copy(&st->tmp, data, len);
}

static int file_sync(void *ctx, int h)
{
	struct store *st = ctx;

	(void)h;
	return sim_dies_here(st->s, st->owner) ? -EIO : 0;
}

static uint64_t generation_of(const struct ft_blob *b)
{
	unsigned long long gen = 0;

	if (b->data)
		sscanf((const char *)b->data, "ft-record 1 %llu", &gen);
	return gen;
}

static int file_rename(void *ctx, const char *from, const char *to)
{
	struct store *st = ctx;

	(void)from, (void)to;
	if (sim_dies_here(st->s, st->owner))
		return -EIO;
	if (generation_of(&st->tmp) < generation_of(st->blob))
		sim_broken(st->s, "grow: a durable generation shrank");
	ft_blob_free(st->blob);
	*st->blob = st->tmp;
	st->tmp = (struct ft_blob){ 0 };
	sim_trace(st->s, "%s writes %.*s", st->owner->name, (int)strcspn((char *)st->blob->data, "\n"), st->blob->data);
	return 0;
}

static int file_sync_dir(void *ctx, const char *dir)
{
	struct store *st = ctx;

	(void)dir;
	return sim_dies_here(st->s, st->owner) ? -EIO : 0;
}

static void file_end(void *ctx, int h)
{
	struct store *st = ctx;

	(void)h;
	ft_blob_free(&st->tmp);
}

#define FILE_OPS(store) { .begin = file_begin, .read = file_read, .write = file_write, .sync = file_sync, \
			  .rename = file_rename, .sync_dir = file_sync_dir, .end = file_end, .ctx = store }
const struct ft_file_ops sim_files_a = FILE_OPS(&sim_store_a), sim_files_b = FILE_OPS(&sim_store_b);
