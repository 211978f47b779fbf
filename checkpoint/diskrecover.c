// SPDX-License-Identifier: GPL-3.0-or-later
/* diskrecover.c - what must be so before a guest is started from its images by hand; see ft/diskserver.h. */
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/map.h"
#include "ft/store.h"

#include <stdio.h>
#include <unistd.h>

/* What a crash left in the journal belongs to the images, so it is written to them now. */
static int replay(const struct ft_spec *spec)
{
	struct ft_store_config cfg = {
		.guest = spec->name, .nr_disks = spec->nr_disks, .state_dir = ft_conf()->state_dir,
		.durability = spec->durability,
	};
	int rc = 0;

	for (unsigned i = 0; i < spec->nr_disks && !rc; i++) {
		const struct ft_disk_spec *d = &spec->disk[i];

		cfg.disk[i].image = d->image;
		rc = ft_disk_image_size(spec->name, d->image, d->read_only, &cfg.disk[i].bytes);
	}
	return rc ? rc : ft_store_recover(&cfg);
}

static int identify(const char *path, bool read_only, struct ft_map_image *im)
{
	const struct ft_disk_files *f = &ft_disk_files_real;
	int h, rc = ft_disk_open_image(f, path, read_only, &h);

	if (rc)
		return rc;
	rc = f->size(f->ctx, h, &im->bytes);
	if (!rc)
		rc = f->identity(f->ctx, h, &im->inode, &im->born_ns);
	if (!rc)
		rc = f->sync(f->ctx, h);        /* a server that was killed may have left to the kernel what flushes promised */
	f->close(f->ctx, h);
	return rc;
}

/* NULL: what is on the image is a disk. */
static const char *why_no_disk(struct ft_map *m)
{
	struct ft_disk_id id;

	ft_map_id(m, &id);
	if (id.flags & FT_DISK_TARGET)
		return "a copy to it was begun and never finished, so part of it is missing";
	if (ft_map_unsafe(m))
		return "the last that the guest wrote is only on the other host, as this one went down meanwhile, or could not sync the image";
	return NULL;
}

/* Without its map the image is one that was never mirrored. */
static int forget(const char *guest, const char *image, const char *path, const char *why)
{
	ft_warn("guest %s: its disk %s is used all the same, although %s", guest, image, why);
	if (!unlink(path))
		return 0;
	ft_err("guest %s: cannot remove %s: %s", guest, path, strerror(errno));
	return -EIO;
}

static int check_map(const char *guest, unsigned n, const struct ft_disk_spec *disk, bool force)
{
	const char *image = disk->image;
	char path[2 * FT_PATH_MAX + 32];
	struct ft_map_image im;
	struct ft_map *m;
	const char *why;
	int rc;

	rc = identify(image, disk->read_only, &im);
	snprintf(path, sizeof(path), "%s/%s.disk%u.map", ft_conf()->state_dir, guest, n);
	if (!rc)
		rc = ft_map_open(&ft_disk_files_real, path, &im, &m);
	if (rc == -ENOENT)
		return 0;               /* never mirrored */
	if (rc == -ESTALE || rc == -EBADMSG)
		return force ? forget(guest, image, path, "its map is damaged or another image's") : -EUCLEAN;  /* logged */
	if (rc)
		return rc;
	why = why_no_disk(m);
	ft_map_abandon(m);
	if (!why)
		return 0;
	if (force)
		return forget(guest, image, path, why);
	ft_err("guest %s: its disk %s is no consistent disk: %s: start the guest on the other host, or, to use this image "
	       "all the same, with --force", guest, image, why);
	return -EUCLEAN;
}

int ft_disk_recover(const struct ft_spec *spec, bool force)
{
	int rc = spec->nr_disks ? replay(spec) : 0;

	for (unsigned i = 0; i < spec->nr_disks && !rc; i++)
		rc = check_map(spec->name, i, &spec->disk[i], force);
	return rc;
}
