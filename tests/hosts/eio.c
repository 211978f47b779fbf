// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * eio.c - a preload: writing to some files, or syncing them, fails for as long as /run/eio says so: "CALL ERRNO PART", CALL
 * is pwrite or fdatasync, for files whose path contains PART. ERRNO below 0: it takes so many ms, and succeeds. Loaded into
 * what serves or keeps disks.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

static bool fails(const char *call, int fd)
{
	char link[64], path[4096], which[16], part[256];
	FILE *f = fopen("/run/eio", "re");
	int rc, n;
	ssize_t len;

	if (!f)
		return false;
	n = fscanf(f, "%15s %d %255s", which, &rc, part);
	fclose(f);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	len = readlink(link, path, sizeof(path) - 1);
	path[len > 0 ? len : 0] = 0;
	if (n != 3 || strcmp(which, call) || !strstr(path, part))
		return false;
	if (rc < 0)
		usleep((unsigned)-rc * 1000);
	else
		errno = rc;
	return rc > 0;
}

EXPORT ssize_t pwrite(int fd, const void *buf, size_t len, off_t at);
ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
	static ssize_t (*real)(int, const void *, size_t, off_t);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "pwrite");
	return fails("pwrite", fd) ? -1 : real(fd, buf, len, at);
}

EXPORT ssize_t pwrite64(int fd, const void *buf, size_t len, off_t at);
ssize_t pwrite64(int fd, const void *buf, size_t len, off_t at)
{
	return pwrite(fd, buf, len, at);
}

EXPORT int fdatasync(int fd);
int fdatasync(int fd)
{
	static int (*real)(int);

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
	return fails("fdatasync", fd) ? -1 : real(fd);
}
