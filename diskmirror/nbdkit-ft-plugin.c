// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * nbdkit-ft-plugin.c - nbdkit's calls become those of ft/export.h.
 *
 * The image is opened before nbdkit goes into the background, so that whoever starts it sees what is wrong; the
 * control thread starts after that. The process ends with its last client, since a guest's disk belongs to one guest.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "ft/export.h"

#include <pthread.h>
#include <stdio.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL       /* requests of one connection, too */
#define REQUEST_MAX (2u << 20)

static struct ft_export_config config;
static struct ft_export *export;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned nr_clients;             /* under lock */

/* nbdkit knows where errors go, also in the background. */
static void log_to_nbdkit(void *ctx, enum ft_log_level level, const char *line)
{
	if (level <= FT_LOG_WARN)
		nbdkit_error("%s", line);
	else
		nbdkit_debug("%s", line);
}

static void ft_load(void)
{
	ft_log_init("nbdkit-ft-plugin");
	ft_log_divert(log_to_nbdkit, NULL);
}

static void ft_unload(void)
{
	ft_export_close(export);
	free((void *)(uintptr_t)config.image);
	free((void *)(uintptr_t)config.map);
	free((void *)(uintptr_t)config.control);
}

/* --- parameters --- */

static int set_path(const char **to, const char *key, const char *value)
{
	if (*to) {
		nbdkit_error("%s was given twice", key);
		return -1;
	}
	*to = nbdkit_absolute_path(value);      /* nbdkit goes to / in the background */
	return *to ? 0 : -1;
}

static int set_flag(bool *to, const char *value)
{
	int yes = nbdkit_parse_bool(value);

	*to = yes == 1;
	return yes < 0 ? -1 : 0;
}

static int ft_config(const char *key, const char *value)
{
	if (!strcmp(key, "image"))
		return set_path(&config.image, key, value);
	if (!strcmp(key, "map"))
		return set_path(&config.map, key, value);
	if (!strcmp(key, "control"))
		return set_path(&config.control, key, value);
	if (!strcmp(key, "parked"))
		return set_flag(&config.parked, value);
	if (!strcmp(key, "readonly"))
		return set_flag(&config.read_only, value);
	nbdkit_error("unknown parameter '%s'; there are image, map, control, parked and readonly", key);
	return -1;
}

static int ft_config_complete(void)
{
	if (!config.image) {
		nbdkit_error("image=PATH is missing: the raw file or block device to be served");
		return -1;
	}
	if (config.parked && !config.control) {
		nbdkit_error("control=PATH is missing: a parked disk is activated by that socket");
		return -1;
	}
	return 0;
}

#define CONFIG_HELP \
	"image=PATH     (required) Raw file or block device of the guest's disk.\n" \
	"map=PATH       What may differ from the peer's copy; needed to mirror.\n" \
	"control=PATH   Unix socket by which ft-protect mirrors the disk.\n" \
	"parked=1       Refuse requests until activated by the control socket.\n" \
	"readonly=1     Refuse writes."

/* --- life --- */

static int ft_get_ready(void)
{
	return ft_export_open(&config, &export) ? -1 : 0;
}

static int ft_after_fork(void)
{
	return ft_export_start(export) ? -1 : 0;
}

static void *ft_open(int readonly)
{
	pthread_mutex_lock(&lock);
	nr_clients++;
	pthread_mutex_unlock(&lock);
	return export;
}

/* The image is synced, and its map closed, when nbdkit unloads us. */
static void ft_close(void *handle)
{
	bool last;

	pthread_mutex_lock(&lock);
	last = !--nr_clients;
	pthread_mutex_unlock(&lock);
	if (last)
		nbdkit_shutdown();
}

/* --- what the disk can --- */

static int64_t ft_get_size(void *handle)
{
	return (int64_t)ft_export_size(handle);
}

static int yes(void *handle)
{
	return 1;
}

static int ft_can_write(void *handle)
{
	return !config.read_only;
}

static int ft_can_fua(void *handle)
{
	return NBDKIT_FUA_NATIVE;
}

/* Where the file system cannot punch holes zeros are written, so nobody is promised that it is fast. */
static int ft_can_fast_zero(void *handle)
{
	return 0;
}

/* Each of nbdkit's 16 threads keeps a buffer of the largest request that it has seen, and QEMU merges what fits into one. */
static int ft_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	*minimum = 1;
	*preferred = FT_PAGE_SIZE;
	*maximum = REQUEST_MAX;
	return 0;
}

/* --- requests --- */

static int answer(int rc)
{
	if (!rc)
		return 0;
	nbdkit_set_error(-rc);
	return -1;
}

static int ft_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	return answer(ft_export_read(handle, buf, count, offset));
}

static int ft_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	return answer(ft_export_write(handle, buf, count, offset, flags & NBDKIT_FLAG_FUA));
}

static int ft_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	return answer(ft_export_zero(handle, count, offset, flags & NBDKIT_FLAG_FUA));
}

static int ft_flush(void *handle, uint32_t flags)
{
	return answer(ft_export_flush(handle));
}

static int ft_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags, struct nbdkit_extents *extents)
{
	uint64_t end = offset + count;

	while (offset < end) {
		uint64_t len = end - offset;
		bool hole;
		int rc = ft_export_extent(handle, offset, &len, &hole);

		if (rc)
			return answer(rc);
		if (nbdkit_add_extent(extents, offset, len, hole ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0) < 0)
			return -1;
		if (flags & NBDKIT_FLAG_REQ_ONE)
			break;
		offset += len;
	}
	return 0;
}

static struct nbdkit_plugin plugin = {
	.name = "ft",
	.longname = "mirrored disk of a guest protected by ft",
	.version = FT_VERSION,
	.description = "Serves a raw image, and streams what changes in it to ft-protect.",
	.magic_config_key = "image",
	.load = ft_load,
	.unload = ft_unload,
	.config = ft_config,
	.config_complete = ft_config_complete,
	.config_help = CONFIG_HELP,
	.get_ready = ft_get_ready,
	.after_fork = ft_after_fork,
	.open = ft_open,
	.close = ft_close,
	.get_size = ft_get_size,
	.block_size = ft_block_size,
	.can_write = ft_can_write,
	.can_flush = yes,
	.can_fua = ft_can_fua,
	.can_trim = yes,
	.can_zero = yes,
	.can_fast_zero = ft_can_fast_zero,
	.can_extents = yes,
	.can_multi_conn = yes,          /* one page cache, one order */
	.pread = ft_pread,
	.pwrite = ft_pwrite,
	.zero = ft_zero,
	.trim = ft_zero,
	.flush = ft_flush,
	.extents = ft_extents,
};

NBDKIT_REGISTER_PLUGIN(plugin)
