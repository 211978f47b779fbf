// SPDX-License-Identifier: GPL-3.0-or-later
/* base.c - see ft/base.h. */
#include "ft/base.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t ft_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * FT_S_NS + (uint64_t)ts.tv_nsec;
}

#define NICE -10

void ft_priority_raise(void)
{
	if (setpriority(PRIO_PROCESS, 0, NICE) < 0)
		ft_debug("scheduling priority stays as it is: %s", strerror(errno));
}

void ft_priority_default(void)
{
	if (getpriority(PRIO_PROCESS, 0) == NICE && setpriority(PRIO_PROCESS, 0, 0) < 0)
		ft_debug("scheduling priority stays raised: %s", strerror(errno));
}

void ft_copy(void *to, const void *from, size_t len)
{
	const size_t piece = 2048;      /* below it libc uses vectors */
	uint8_t *t = to;
	const uint8_t *f = from;

	for (; len > piece; len -= piece, t += piece, f += piece)
		memcpy(t, f, piece);
	memcpy(t, f, len);
}

static const char *log_program = "ft";
static enum ft_log_level log_max = FT_LOG_INFO;
static bool log_journal;
static void (*log_sink)(void *ctx, enum ft_log_level level, const char *line);
static void *log_sink_ctx;

void ft_log_init(const char *program)
{
	const char *debug = getenv("FT_DEBUG");

	log_program = program;
	log_journal = getenv("JOURNAL_STREAM") != NULL;
	if (debug && !strcmp(debug, "1"))
		log_max = FT_LOG_DEBUG;
}

void ft_log_divert(void (*sink)(void *ctx, enum ft_log_level level, const char *line), void *ctx)
{
	log_sink = sink;
	log_sink_ctx = ctx;
}

static _Thread_local char *log_kept;
static _Thread_local size_t log_kept_size;

void ft_log_keep(char *why, size_t size)
{
	log_kept = why;
	log_kept_size = size;
	if (why && size)
		*why = 0;
}

char ft_log_char(char c)
{
	return (unsigned char)c < 0x20 || c == 0x7f ? '?' : c;
}

void ft_vlog(enum ft_log_level level, const char *fmt, va_list ap)
{
	int saved = errno;
	char line[1024];

	if (level > log_max)
		return;
	vsnprintf(line, sizeof(line), fmt, ap);
	for (char *p = line; *p; p++)
		*p = ft_log_char(*p);
	if (level == FT_LOG_ERR && log_kept)
		snprintf(log_kept, log_kept_size, "%s", line);
	if (log_sink)
		log_sink(log_sink_ctx, level, line);
	else if (log_journal)
		fprintf(stderr, "<%d>%s\n", level, line);
	else
		fprintf(stderr, "%s: %s%s\n", log_program, level == FT_LOG_WARN ? "warning: " : "", line);
	errno = saved;
}

void ft_log(enum ft_log_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	ft_vlog(level, fmt, ap);
	va_end(ap);
}

bool ft_log_due(struct ft_log_limit *l, const char *what)
{
	uint64_t now = ft_now_ns();

	if (l->at_ns && now - l->at_ns < 60 * FT_S_NS && !strncmp(l->what, what, sizeof(l->what) - 1))
		return false;
	l->at_ns = now;
	snprintf(l->what, sizeof(l->what), "%s", what);
	return true;
}

bool ft_name_ok(const char *name)
{
	size_t len = strnlen(name, FT_NAME_MAX + 1);

	if (len == 0 || len > FT_NAME_MAX || !isalnum((unsigned char)name[0]))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
			return false;
	return true;
}

void ft_blob_free(struct ft_blob *b)
{
	free(b->data);
	*b = (struct ft_blob){ 0 };
}

int ft_blob_copy(struct ft_blob *b, const void *data, size_t len)
{
	uint8_t *p = malloc(len + 1);

	if (!p)
		return -ENOMEM;
	if (len)
		memcpy(p, data, len);
	p[len] = 0;
	ft_blob_free(b);
	*b = (struct ft_blob){ .data = p, .len = len };
	return 0;
}

int ft_read_file(const char *path, size_t max, struct ft_blob *out)
{
	uint8_t *data = malloc(max + 2);
	size_t len = 0;
	int fd, rc = 0;

	*out = (struct ft_blob){ 0 };
	if (!data)
		return -ENOMEM;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (fd < 0) {
		rc = -errno;
		goto fail;
	}
	while (len <= max) {
		ssize_t n = read(fd, data + len, max + 1 - len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			rc = -errno;
		if (n <= 0)
			break;
		len += (size_t)n;
	}
	close(fd);
	if (!rc && len > max)
		rc = -EFBIG;
	if (rc)
		goto fail;
	data[len] = 0;
	*out = (struct ft_blob){ .data = data, .len = len };
	return 0;
fail:
	free(data);
	return rc;
}

int ft_write_all(int fd, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int ft_pwrite_all(int fd, const void *data, size_t len, off_t at)
{
	const uint8_t *p = data;

	while (len) {
		ssize_t n = pwrite(fd, p, len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int ft_pread_all(int fd, void *data, size_t len, off_t at)
{
	uint8_t *p = data;

	while (len) {
		ssize_t n = pread(fd, p, len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		p += n;
		at += n;
		len -= (size_t)n;
	}
	return 0;
}

int ft_parent_dir(const char *path, char *dir, size_t size)
{
	const char *slash = strrchr(path, '/');
	int len = slash ? (int)(slash - path) + (slash == path) : 1;

	return snprintf(dir, size, "%.*s", len, slash ? path : ".") < (int)size ? 0 : -ENAMETOOLONG;
}

int ft_sync_dir(const char *dir)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;

	if (fd < 0)
		return -errno;
	rc = fsync(fd) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

int ft_write_file(const char *path, const void *data, size_t len, unsigned mode)
{
	char tmp[PATH_MAX], dir[PATH_MAX];
	int fd, rc;

	if (snprintf(tmp, sizeof(tmp), "%s.XXXXXX", path) >= (int)sizeof(tmp))
		return -ENAMETOOLONG;
	fd = mkostemp(tmp, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	rc = ft_write_all(fd, data, len);
	if (!rc && fchmod(fd, mode) < 0)
		rc = -errno;
	if (!rc && fsync(fd) < 0)
		rc = -errno;
	if (close(fd) < 0 && !rc)
		rc = -errno;
	if (!rc && rename(tmp, path) < 0)
		rc = -errno;
	if (rc) {
		unlink(tmp);
		return rc;
	}
	rc = ft_parent_dir(path, dir, sizeof(dir));
	return rc ? rc : ft_sync_dir(dir);
}

int ft_mkdir_p(const char *path, unsigned mode)
{
	char dir[PATH_MAX];

	if (snprintf(dir, sizeof(dir), "%s", path) >= (int)sizeof(dir))
		return -ENAMETOOLONG;
	for (char *p = dir + 1; ; p++) {
		if (*p && *p != '/')
			continue;
		char was = *p;

		*p = 0;
		if (mkdir(dir, mode) < 0 && errno != EEXIST)
			return -errno;
		*p = was;
		if (!was)
			return 0;
	}
}

int ft_lock_file(const char *path, bool wait, int *fd)
{
	int f = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), rc;

	if (f < 0)
		return -errno;
	if (flock(f, wait ? LOCK_EX : LOCK_EX | LOCK_NB) < 0) {
		rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
		close(f);
		return rc;
	}
	*fd = f;
	return 0;
}

bool ft_lock_held(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	bool held;

	if (fd < 0)
		return false;
	held = flock(fd, LOCK_SH | LOCK_NB) < 0;
	close(fd);
	return held;
}
