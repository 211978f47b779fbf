// SPDX-License-Identifier: GPL-3.0-or-later
/* mirror_digest.c - hashes of what an image has, read past its export: both go through one page cache. */
#include "diskmirror/mirror_int.h"

#include "ft/diskfile.h"

#include <fcntl.h>
#include <unistd.h>

#define AHEAD (4 * FT_REGION)

static int hash_granule(const struct mirror_disk *d, int fd, uint64_t at, uint8_t *data, uint8_t *out)
{
	const struct ft_disk_files *f = &ft_disk_files_real;
	uint64_t left = d->id.bytes - at;
	size_t len = left < FT_GRANULE ? left : FT_GRANULE;
	int rc = 0;

	if (f->is_hole(f->ctx, fd, at, len))
		memset(data, 0, len);
	else
		rc = f->pread(f->ctx, fd, data, len, at);
	if (!rc)
		ft_disk_hash(data, len, out);
	return rc;
}

int ft_mirror_digest(struct ft_mirror *api, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out)
{
	struct mirror *m = mirror_of(api);
	struct mirror_disk *d = &m->disk[disk];
	uint8_t *data = malloc(FT_GRANULE);
	int fd = open(d->image ? d->image : "", O_RDONLY | O_CLOEXEC | O_NONBLOCK);     /* none: -ENOENT */
	int rc = !data ? -ENOMEM : fd < 0 ? -errno : 0;

	assert(disk < m->nr_disks);
	for (; granules && !rc; granules &= granules - 1, out += FT_HASH_LEN)
		rc = hash_granule(d, fd, region * FT_REGION + (uint64_t)__builtin_ctzll(granules) * FT_GRANULE, data, out);
	if (rc)
		ft_err("%s: disk %s cannot be read: %s", m->guest, d->image ? d->image : "?", strerror(-rc));
	/* With the guest standing still nobody should wait for the disk. */
	else
		ft_ignore(posix_fadvise(fd, (off_t)((region + 1) * FT_REGION), AHEAD, POSIX_FADV_WILLNEED));
	if (fd >= 0)
		close(fd);
	free(data);
	return rc;
}
