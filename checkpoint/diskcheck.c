// SPDX-License-Identifier: GPL-3.0-or-later
/* diskcheck.c - what would be in the way of a guest's disks, for those who only ask; see ft/diskserver.h. */
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/mirror.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define ASK_MS 1000u

/* --- one image, two guests --- */

static bool same_file(const char *a, const char *b)
{
	struct stat x, y;

	if (!strcmp(a, b))
		return true;
	if (stat(a, &x) < 0 || stat(b, &y) < 0)
		return false;
	return (x.st_dev == y.st_dev && x.st_ino == y.st_ino) ||
	       (S_ISBLK(x.st_mode) && S_ISBLK(y.st_mode) && x.st_rdev == y.st_rdev);
}

/* Of any guest file, also one that is not valid: its owner may mend it. */
static bool names_image(char *text, const char *image)
{
	for (char *save, *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char path[FT_SPEC_PATH_MAX];

		if (sscanf(line, " image = %255[^\r]", path) != 1)
			continue;
		for (size_t n = strlen(path); n && strchr(" \t", path[n - 1]); n--)
			path[n - 1] = 0;
		if (same_file(path, image))
			return true;
	}
	return false;
}

/* Another guest's file in the same directory names @image, too. */
static bool shared_with(const char *guest, const char *image, char path[PATH_MAX])
{
	DIR *d = opendir(ft_conf()->guests_dir);
	bool found = false;

	for (struct dirent *e; d && !found && (e = readdir(d)) != NULL; ) {
		size_t len = strlen(e->d_name), cut = strlen(".conf");
		struct ft_blob text;

		if (len <= cut || strcmp(e->d_name + len - cut, ".conf") ||
		    (len - cut == strlen(guest) && !strncmp(e->d_name, guest, len - cut)))
			continue;
		snprintf(path, PATH_MAX, "%s/%s", ft_conf()->guests_dir, e->d_name);
		if (ft_read_file(path, FT_SPEC_TEXT_MAX, &text))
			continue;
		found = names_image((char *)text.data, image);
		ft_blob_free(&text);
	}
	if (d)
		closedir(d);
	return found;
}

static int say_shared(const char *guest, const char *image)
{
	char path[PATH_MAX];

	if (!shared_with(guest, image, path))
		return 0;
	ft_err("guest %s: its disk image %s is that of %s, too: give each guest an image of its own", guest, image, path);
	return -EBUSY;
}

/* --- where the guest runs --- */

static int check_disk(const struct ft_attach *at, const struct ft_attach_disk *d)
{
	struct ft_disk_id served;
	uint64_t bytes;
	int rc = ft_disk_image_size(at->guest, d->image, d->read_only, &bytes);

	if (!rc && ft_disk_served(d) && !ft_export_ask(d->control, ASK_MS, &served) && served.bytes != bytes) {
		ft_err("guest %s: its disk image %s has %" PRIu64 " bytes, and had %" PRIu64 " when the guest was started: restore "
		       "its size ('truncate -s %" PRIu64 " %s' for a file)", at->guest, d->image, bytes, served.bytes,
		       served.bytes, d->image);
		rc = -EFBIG;
	}
	return rc ? rc : say_shared(at->guest, d->image);
}

void ft_disk_check(const struct ft_attach *at, void (*found)(void *ctx, const char *line), void *ctx)
{
	char line[1024];

	for (unsigned i = 0; i < at->nr_disks; i++) {
		int rc;

		ft_log_keep(line, sizeof(line));
		rc = check_disk(at, &at->disk[i]);
		ft_log_keep(NULL, 0);
		if (rc)
			found(ctx, line);
	}
}

void ft_disk_measure(const struct ft_attach *at, struct ft_disk_need need[FT_DISKS_MAX])
{
	for (unsigned i = 0; i < at->nr_disks; i++) {
		int fd = open(at->disk[i].image, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		off_t end = fd < 0 ? -1 : lseek(fd, 0, SEEK_END);
		struct stat st;

		need[i] = (struct ft_disk_need){ 0 };
		if (end > 0 && !fstat(fd, &st)) {
			need[i].bytes = (uint64_t)end;
			need[i].used = S_ISBLK(st.st_mode) ? need[i].bytes : (uint64_t)st.st_blocks * 512;
		}
		if (fd >= 0)
			close(fd);
	}
}

/* --- where its replica would be --- */

static int cannot(const char *guest, const char *image, int rc)
{
	ft_err("guest %s: its disk image %s cannot be written on %s: %s", guest, image, ft_conf()->host, strerror(-rc));
	return rc;
}

/* What the primary's image takes and ours does not have yet; @used: of a file that is there. */
static int check_room(const char *guest, const char *image, uint64_t used, const struct ft_disk_need *need)
{
	uint64_t more = need->used > used ? need->used - used : 0;
	char dir[FT_SPEC_PATH_MAX];
	struct statvfs fs;
	int rc = ft_parent_dir(image, dir, sizeof(dir));

	if (!rc && statvfs(dir, &fs) < 0)
		rc = -errno;
	if (rc)
		return cannot(guest, image, rc);
	if (more <= (uint64_t)fs.f_bavail * fs.f_frsize)
		return 0;
	ft_err("guest %s: its disk image %s needs %" PRIu64 " MB more than it has on %s, and %s has %" PRIu64 " MB free: make room there",
	       guest, image, more >> 20, ft_conf()->host, dir, (uint64_t)fs.f_bavail * fs.f_frsize >> 20);
	return -ENOSPC;
}

static int check_missing(const char *guest, const char *image, const struct ft_disk_need *need)
{
	char dir[FT_SPEC_PATH_MAX];
	int rc = ft_parent_dir(image, dir, sizeof(dir));

	if (!rc && access(dir, W_OK | X_OK) < 0)
		rc = -errno;
	if (rc == -ENOENT)
		ft_err("guest %s: on %s there is no directory %s for its disk image %s: make it ('mkdir -p %s'), or correct 'image' in "
		       "the guest file", guest, ft_conf()->host, dir, image, dir);
	else if (rc)
		ft_err("guest %s: on %s its disk image %s cannot be made: %s: %s", guest, ft_conf()->host, image, dir, strerror(-rc));
	return rc ? rc : check_room(guest, image, 0, need);
}

static bool in_use(int fd)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	return !fcntl(fd, F_OFD_GETLK, &all) && all.l_type != F_UNLCK;
}

/* An empty file is one whose making was cut short. */
static int check_size(const char *guest, const char *image, uint64_t bytes, const struct ft_disk_need *need)
{
	if (!bytes || bytes == need->bytes)
		return 0;
	ft_err("guest %s: its disk image %s has %" PRIu64 " bytes, the primary's %" PRIu64 ": remove it, if it holds nothing "
	       "that is wanted, or give it the same size", guest, image, bytes, need->bytes);
	return -EFBIG;
}

static int check_there(const char *guest, const char *image, int fd, const struct ft_disk_need *need)
{
	off_t bytes = lseek(fd, 0, SEEK_END);
	struct stat st;
	int rc;

	if (bytes < 0 || fstat(fd, &st) < 0)
		return cannot(guest, image, -errno);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return cannot(guest, image, -ENOTBLK);
	if (in_use(fd)) {
		ft_err("guest %s: its disk image %s is in use on %s by another guest or program", guest, image, ft_conf()->host);
		return -EBUSY;
	}
	rc = check_size(guest, image, (uint64_t)bytes, need);
	return rc || S_ISBLK(st.st_mode) ? rc : check_room(guest, image, (uint64_t)st.st_blocks * 512, need);
}

static int check_replica_disk(const char *guest, const char *image, const struct ft_disk_need *need)
{
	int fd = open(image, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc = fd < 0 ? -errno : 0;

	if (rc == -ENOENT)
		rc = check_missing(guest, image, need);
	else if (rc)
		cannot(guest, image, rc);
	else
		rc = check_there(guest, image, fd, need);
	if (fd >= 0)
		close(fd);
	return rc ? rc : say_shared(guest, image);
}

int ft_disk_replica_check(const struct ft_spec *spec, const struct ft_disk_need *need, unsigned nr)
{
	int rc = 0;

	for (unsigned i = 0; i < spec->nr_disks && i < nr && !rc; i++)
		if (need[i].bytes)
			rc = check_replica_disk(spec->name, spec->disk[i].image, &need[i]);
	return rc;
}
