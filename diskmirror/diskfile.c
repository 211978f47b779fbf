// SPDX-License-Identifier: GPL-3.0-or-later
/* diskfile.c - files and block devices of the real world; see ft/diskfile.h. */
#include "ft/diskfile.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define ZEROS_LEN (64u << 10)

static int open_file(const char *path, int flags, int *h)
{
	/* Not blocking: a FIFO by mistake must be refused, not waited for. */
	int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0600);
	struct stat st;
	int rc = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0)
		rc = -errno;
	else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		rc = -ENOTBLK;
	if (rc) {
		close(fd);
		return rc;
	}
	*h = fd;
	return 0;
}

static int real_open(void *ctx, const char *path, bool create, int *h)
{
	return open_file(path, O_RDWR | (create ? O_CREAT : 0), h);
}

static int real_open_read(void *ctx, const char *path, int *h)
{
	return open_file(path, O_RDONLY, h);
}

static int real_size(void *ctx, int h, uint64_t *bytes)
{
	struct stat st;

	if (fstat(h, &st) < 0)
		return -errno;
	*bytes = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode) && ioctl(h, BLKGETSIZE64, bytes) < 0)
		return -errno;
	return 0;
}

static int real_identity(void *ctx, int h, uint64_t *inode, uint64_t *born_ns)
{
	struct statx stx;

	*inode = *born_ns = 0;
	if (statx(h, "", AT_EMPTY_PATH, STATX_TYPE | STATX_INO | STATX_BTIME, &stx) < 0)
		return -errno;
	if (S_ISBLK(stx.stx_mode))
		return 0;
	*inode = stx.stx_ino;
	if (stx.stx_mask & STATX_BTIME)
		*born_ns = (uint64_t)stx.stx_btime.tv_sec * FT_S_NS + stx.stx_btime.tv_nsec;
	return 0;
}

static int real_truncate(void *ctx, int h, uint64_t bytes)
{
	return ftruncate(h, (off_t)bytes) < 0 ? -errno : 0;
}

static int real_pread(void *ctx, int h, void *buf, size_t len, uint64_t at)
{
	return ft_pread_all(h, buf, len, (off_t)at);
}

static int real_pwrite(void *ctx, int h, const void *buf, size_t len, uint64_t at)
{
	return ft_pwrite_all(h, buf, len, (off_t)at);
}

static int write_zeros(int fd, uint64_t at, uint64_t len)
{
	static const uint8_t zeros[ZEROS_LEN];
	int rc = 0;

	while (len && !rc) {
		size_t n = len < ZEROS_LEN ? len : ZEROS_LEN;

		rc = ft_pwrite_all(fd, zeros, n, (off_t)at);
		at += n;
		len -= n;
	}
	return rc;
}

/* File systems and devices differ in what they can do, and in how they say that they cannot. */
static bool cannot(int err)
{
	return err == EOPNOTSUPP || err == ENOSYS || err == EINVAL || err == ENODEV || err == EPERM;
}

static int real_zero(void *ctx, int h, uint64_t at, uint64_t len)
{
	static const int how[] = {
		FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(how); i++) {
		int rc;

		do
			rc = fallocate(h, how[i], (off_t)at, (off_t)len) < 0 ? -errno : 0;
		while (rc == -EINTR);
		if (!rc || !cannot(-rc))
			return rc;
	}
	return write_zeros(h, at, len);
}

static bool real_is_hole(void *ctx, int h, uint64_t at, uint64_t len)
{
	off_t data = lseek(h, (off_t)at, SEEK_DATA);

	return data < 0 ? errno == ENXIO : (uint64_t)data >= at + len;
}

static int real_sync(void *ctx, int h)
{
	return fdatasync(h) < 0 ? -errno : 0;
}

/* Of the open file, so that another open of the same process is kept out, too, and closing a copy frees nothing. */
static int real_lock(void *ctx, int h)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if ((fcntl(h, F_GETFL) & O_ACCMODE) == O_RDONLY)
		all.l_type = F_RDLCK;
	if (fcntl(h, F_OFD_SETLK, &all) == 0)
		return 0;
	return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
}

static int real_rename(void *ctx, const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : 0;
}

static int real_unlink(void *ctx, const char *path)
{
	return unlink(path) < 0 ? -errno : 0;
}

static int real_sync_dir(void *ctx, const char *dir)
{
	return ft_sync_dir(dir);
}

static void real_close(void *ctx, int h)
{
	close(h);
}

const struct ft_disk_files ft_disk_files_real = {
	.open = real_open, .open_read = real_open_read, .size = real_size, .identity = real_identity,
	.truncate = real_truncate, .pread = real_pread, .pwrite = real_pwrite, .zero = real_zero, .is_hole = real_is_hole, .sync = real_sync, .lock = real_lock,
	.rename = real_rename, .unlink = real_unlink, .sync_dir = real_sync_dir, .close = real_close,
};
