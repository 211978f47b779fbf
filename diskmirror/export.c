// SPDX-License-Identifier: GPL-3.0-or-later
/* export.c - the image, its generation, and what the guest asks for; see ft/export.h. */
#include "export_priv.h"

#include <unistd.h>

#define SECTOR 512u
#define EXTENT_STEPS 1024u              /* granules of data looked at for one answer */

/* --- the image --- */

static void say_cannot_open(const char *image, int rc)
{
	switch (rc) {
	case -ENOENT:
		ft_err("disk %s: there is no such image; make it (truncate -s 10G %s), or correct the path", image,
		       image);
		break;
	case -EBUSY:
		ft_err("disk %s is in use by another guest or another program; stop that, or give this guest an image "
		       "of its own", image);
		break;
	case -EROFS:
	case -EACCES:
	case -EPERM:
		ft_err("disk %s cannot be opened for writing: %s; give it to this user, on a file system that is "
		       "mounted writable", image, strerror(-rc));
		break;
	default:
		ft_err("disk %s cannot be opened: %s", image, strerror(-rc));
	}
}

static int check_size(const char *image, uint64_t bytes)
{
	if (bytes && bytes <= FT_DISK_BYTES_MAX && !(bytes % SECTOR))
		return 0;
	ft_err("disk %s has %llu bytes; a disk has a multiple of %u, and at most 16 TiB (truncate -s SIZE changes it)",
	       image, (unsigned long long)bytes, SECTOR);
	return -EINVAL;
}

static int measure(struct ft_export *e, int h, uint64_t *bytes)
{
	int rc = e->f->size(e->f->ctx, h, bytes);

	if (rc)
		ft_err("disk %s: its size cannot be read: %s", e->image, strerror(-rc));
	return rc ? rc : check_size(e->image, *bytes);
}

/* A parked one only tells how large its disk is; somebody else is writing to it. */
static int park(struct ft_export *e)
{
	int h, rc = ft_disk_open_image(e->f, e->image, e->read_only, &h);

	if (rc) {
		say_cannot_open(e->image, rc);
		return rc;
	}
	rc = measure(e, h, &e->bytes);
	e->f->close(e->f->ctx, h);
	return rc;
}

/* The size was told when the disk was parked, and a guest cannot bear that it changes. */
static int check_grown(const struct ft_export *e, uint64_t bytes)
{
	if (!e->bytes || e->bytes == bytes)
		return 0;
	ft_err("disk %s had %llu bytes when the replica was made and has %llu now; restore its size", e->image,
	       (unsigned long long)e->bytes, (unsigned long long)bytes);
	return -ESTALE;
}

static int lock_image(struct ft_export *e)
{
	uint64_t bytes;
	int rc = ft_disk_open_image(e->f, e->image, e->read_only, &e->h);

	if (!rc)
		rc = e->f->lock(e->f->ctx, e->h);
	if (rc) {
		say_cannot_open(e->image, rc);
		return rc;
	}
	rc = measure(e, e->h, &bytes);
	if (!rc)
		rc = check_grown(e, bytes);
	if (!rc)
		e->bytes = bytes;
	return rc;
}

/* --- its map --- */

static int identify(const struct ft_export *e, struct ft_map_image *out)
{
	int rc;

	*out = (struct ft_map_image){ .bytes = e->bytes };
	rc = e->f->identity(e->f->ctx, e->h, &out->inode, &out->born_ns);
	if (rc)
		ft_err("disk %s: it cannot be told from other files: %s", e->image, strerror(-rc));
	return rc;
}

/* May a guest be given what is on this image? */
static int check_content(struct ft_export *e, struct ft_map *m)
{
	struct ft_disk_id id;

	ft_map_id(m, &id);
	if (id.flags & FT_DISK_TARGET) {
		ft_err("disk %s: a copy to it was begun and never finished, so it is no whole disk; start the guest "
		       "where the copy came from, or, to use it nonetheless, remove %s", e->image, e->map_path);
		return -EUCLEAN;
	}
	if (ft_map_unsafe(m)) {
		ft_err("disk %s: this host went down while the guest was protected, and its last writes are only on "
		       "the backup; start the guest there, or, to use this image nonetheless, remove %s", e->image,
		       e->map_path);
		return -EUCLEAN;
	}
	return 0;
}

static int open_map(struct ft_export *e)
{
	struct ft_map_image im;
	struct ft_map *m;
	int rc;

	if (!e->map_path)
		return 0;
	rc = identify(e, &im);
	if (rc)
		return rc;
	rc = ft_map_open(e->f, e->map_path, &im, &m);
	if (rc)
		return rc == -ENOENT ? 0 : rc;
	rc = check_content(e, m);
	if (rc) {
		ft_map_abandon(m);
		return rc;
	}
	e->map = m;
	e->generation_due = true;
	return 0;
}

static void let_go(struct ft_export *e)
{
	ft_map_abandon(e->map);
	e->map = NULL;
	if (e->h >= 0)
		e->f->close(e->f->ctx, e->h);
	e->h = -1;
}

int ft_export_open_image(struct ft_export *e)
{
	int rc = lock_image(e);

	if (!rc)
		rc = open_map(e);
	if (rc)
		let_go(e);
	else if (e->map)
		ft_export_owe(e);       /* one that died while flushes were answered from the mirror left them to the kernel */
	return rc;
}

int ft_export_make_map(struct ft_export *e)
{
	struct ft_disk_id id = { .bytes = e->bytes, .current = ft_disk_new_generation() };
	struct ft_map_image im;
	struct ft_map *m;
	int rc = identify(e, &im);

	if (!rc)
		rc = ft_map_create(e->f, e->map_path, &im, &id, &m);
	if (!rc)
		e->map = m;
	return rc;
}

/* --- generations --- */

void ft_export_id(struct ft_export *e, struct ft_disk_id *out)
{
	if (e->map)
		ft_map_id(e->map, out);
	else
		*out = (struct ft_disk_id){ .bytes = e->bytes, .flags = FT_DISK_FRESH };
}

/* It grew from what the peer may have: from the older one when that was never mirrored since. */
static int new_generation(struct ft_export *e)
{
	struct ft_disk_id id;
	int rc;

	ft_map_id(e->map, &id);
	if (!id.base)
		id.base = id.current;
	id.current = ft_disk_new_generation();
	rc = ft_map_set_id(e->map, &id);
	if (rc)
		ft_err("disk %s: its map %s cannot be written: %s; the guest cannot write either until it can",
		       e->image, e->map_path, strerror(-rc));
	return rc;
}

int ft_export_make_generation(struct ft_export *e)
{
	int rc = 0;

	if (!e->generation_due)
		return 0;
	pthread_mutex_lock(&e->id_lock);
	if (e->generation_due && e->map)
		rc = new_generation(e);
	if (!rc)
		e->generation_due = false;
	pthread_mutex_unlock(&e->id_lock);
	return rc;
}

/* --- syncing --- */

/*
 * What was written since the last sync that succeeded may be gone, also where the map has it as clean: the kernel
 * reports a failure once and then forgets. So the mirror ends, everything counts as touched, and no later flush
 * succeeds.
 */
static void sync_failed(struct ft_export *e, int rc)
{
	e->sync_error = rc;
	ft_err("disk %s: its image cannot be synced: %s; what the guest wrote last may be lost", e->image,
	       strerror(-rc));
	ft_export_fail(e, "the image cannot be synced: %s", strerror(-rc));
	if (e->map && ft_map_touch_all(e->map))
		ft_err("disk %s: remove %s before the guest is protected again, so that all of it is compared",
		       e->image, e->map_path);
}

int ft_export_sync(struct ft_export *e)
{
	int rc = e->sync_error;

	if (rc || e->h < 0)
		return rc;
	rc = e->f->sync(e->f->ctx, e->h);
	if (rc)
		sync_failed(e, rc);
	return rc;
}

/* --- what the guest asks for --- */

static int check_request(const struct ft_export *e, uint64_t at, uint64_t len)
{
	if (e->parked)
		return -EIO;
	return at > e->bytes || len > e->bytes - at ? -EINVAL : 0;
}

static int may_change(struct ft_export *e)
{
	if (e->read_only || e->fenced)
		return -EROFS;
	return ft_export_make_generation(e);
}

/* Durable before the image changes. Under the least number that the op can get; see export_order.c. */
static int touch(struct ft_export *e, const struct ft_range *r)
{
	if (!e->map)
		return 0;
	return ft_map_touch(e->map, r->from, r->to - r->from, e->streaming ? r->floor : 0);
}

static void request_failed(struct ft_export *e, const char *what, uint64_t at, int rc)
{
	bool due;

	pthread_mutex_lock(&e->order_lock);
	due = ft_log_due(&e->log, strerror(-rc));
	pthread_mutex_unlock(&e->order_lock);
	if (due)
		ft_err("disk %s: %s at byte %llu failed: %s", e->image, what, (unsigned long long)at, strerror(-rc));
}

static bool no_room(int rc)
{
	return rc == -ENOSPC || rc == -EDQUOT;
}

/*
 * A full file system has taken part of a request. The guest's QEMU will try it again, and again, until there is room; what
 * the image has there meanwhile the peer gets, too, so that the mirror stays whole.
 */
static int stream_what_is_there(struct ft_export *e, const struct ft_range *r)
{
	uint8_t *data;
	int rc = 0;

	if (!e->streaming)
		return 0;
	data = malloc(FT_DISK_OP_DATA_MAX);
	if (!data)
		return -ENOMEM;
	for (uint64_t at = r->from, n; at < r->to && !rc; at += n) {
		n = r->to - at < FT_DISK_OP_DATA_MAX ? r->to - at : FT_DISK_OP_DATA_MAX;
		rc = e->f->pread(e->f->ctx, e->h, data, n, at);
		if (!rc)
			ft_export_stream(e, FT_DISK_WRITE, data, at, (uint32_t)n);
	}
	free(data);
	return rc;
}

/* Some of it may have been written: unless that can be told, nobody can say what the peer should have there. */
static void change_failed(struct ft_export *e, const struct ft_range *r, int rc)
{
	request_failed(e, "writing", r->from, rc);
	if (!no_room(rc) || stream_what_is_there(e, r))
		ft_export_fail(e, "writing to the image failed: %s", strerror(-rc));
}

/* @buf: NULL for zeros. */
static int change_image(struct ft_export *e, const void *buf, uint32_t len, uint64_t at)
{
	return buf ? e->f->pwrite(e->f->ctx, e->h, buf, len, at) : e->f->zero(e->f->ctx, e->h, at, len);
}

static int change_in_order(struct ft_export *e, const struct ft_range *r, const void *buf, uint32_t len)
{
	int rc = may_change(e);

	if (!rc)
		rc = touch(e, r);
	if (rc)
		return rc;
	rc = change_image(e, buf, len, r->from);
	if (rc)
		change_failed(e, r, rc);
	else
		ft_export_stream(e, buf ? FT_DISK_WRITE : FT_DISK_ZERO, buf, r->from, len);
	return rc;
}

static int change(struct ft_export *e, const void *buf, uint32_t len, uint64_t at, bool fua)
{
	struct ft_range r;
	int rc = check_request(e, at, len);

	if (rc || !len)
		return rc;
	ft_export_order(e, &r, at, len);
	rc = change_in_order(e, &r, buf, len);
	ft_export_settle(e, &r);
	return !rc && fua ? ft_export_flush(e) : rc;
}

uint64_t ft_export_size(const struct ft_export *e)
{
	return e->bytes;
}

int ft_export_read(struct ft_export *e, void *buf, uint32_t len, uint64_t at)
{
	int rc = check_request(e, at, len);

	if (rc || !len)
		return rc;
	rc = e->f->pread(e->f->ctx, e->h, buf, len, at);
	if (rc)
		request_failed(e, "reading", at, rc);
	return rc;
}

int ft_export_write(struct ft_export *e, const void *buf, uint32_t len, uint64_t at, bool fua)
{
	return change(e, buf, len, at, fua);
}

int ft_export_zero(struct ft_export *e, uint32_t len, uint64_t at, bool fua)
{
	return change(e, NULL, len, at, fua);
}

int ft_export_flush(struct ft_export *e)
{
	return e->parked || e->elide ? 0 : ft_export_sync(e);
}

/* Granule by granule, since that is how an image gets holes; one question when all of it is one. */
int ft_export_extent(struct ft_export *e, uint64_t at, uint64_t *len, bool *hole)
{
	const struct ft_disk_files *f = e->f;
	uint64_t end = at + *len, to;
	int rc = check_request(e, at, *len);

	*hole = false;
	if (rc || !*len)
		return rc;
	*hole = f->is_hole(f->ctx, e->h, at, *len);
	if (*hole)
		return 0;
	to = at;
	for (unsigned i = 0; i < EXTENT_STEPS && to < end; i++) {
		uint64_t next = (to / FT_GRANULE + 1) * FT_GRANULE;
		bool is = f->is_hole(f->ctx, e->h, to, (next < end ? next : end) - to);

		if (to == at)
			*hole = is;
		if (is != *hole)
			break;
		to = next < end ? next : end;
	}
	*len = to - at;
	return 0;
}

/* --- life --- */

static char *copy_of(const char *s)
{
	return s ? strdup(s) : NULL;
}

static int take_config(struct ft_export *e, const struct ft_export_config *cfg)
{
	e->f = cfg->files ? cfg->files : &ft_disk_files_real;
	e->read_only = cfg->read_only;
	e->parked = e->was_parked = cfg->parked;
	e->image = copy_of(cfg->image);
	e->map_path = copy_of(cfg->map);
	e->control = copy_of(cfg->control);
	return e->image && !cfg->map == !e->map_path && !cfg->control == !e->control ? 0 : -ENOMEM;
}

static void init(struct ft_export *e)
{
	*e = (struct ft_export){ .h = -1, .door = -1, .wake_fd = -1 };
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		e->client[i] = (struct ft_export_client){ .fd = -1, .memfd = -1 };
	pthread_mutex_init(&e->order_lock, NULL);
	pthread_cond_init(&e->order_changed, NULL);
	pthread_mutex_init(&e->id_lock, NULL);
	pthread_mutex_init(&e->stream_lock, NULL);
	pthread_mutex_init(&e->mark_lock, NULL);
	pthread_mutex_init(&e->sync_lock, NULL);
	pthread_cond_init(&e->sync_moved, NULL);
}

int ft_export_open(const struct ft_export_config *cfg, struct ft_export **out)
{
	struct ft_export *e = malloc(sizeof(*e));
	int rc;

	if (!e)
		return -ENOMEM;
	init(e);
	rc = take_config(e, cfg);
	if (!rc)
		rc = e->parked ? park(e) : ft_export_open_image(e);
	if (!rc && e->control)
		rc = ft_export_listen(e);
	if (rc) {
		ft_export_close(e);
		return rc;
	}
	*out = e;
	return 0;
}

static void close_image(struct ft_export *e)
{
	if (e->h < 0)
		return;
	ft_ignore(ft_export_pay(e));            /* logged; the map remembers */
	if (e->map && ft_map_close(e->map))
		ft_warn("disk %s: its map %s could not be closed in order; some more will be compared next time",
			e->image, e->map_path);
	e->f->close(e->f->ctx, e->h);
}

void ft_export_close(struct ft_export *e)
{
	if (!e)
		return;
	ft_export_stop(e);
	ft_export_stop_syncer(e);
	close_image(e);
	if (e->wake_fd >= 0)
		close(e->wake_fd);
	pthread_mutex_destroy(&e->order_lock);
	pthread_cond_destroy(&e->order_changed);
	pthread_mutex_destroy(&e->id_lock);
	pthread_mutex_destroy(&e->stream_lock);
	pthread_mutex_destroy(&e->mark_lock);
	pthread_mutex_destroy(&e->sync_lock);
	pthread_cond_destroy(&e->sync_moved);
	free(e->image);
	free(e->map_path);
	free(e->control);
	free(e);
}
