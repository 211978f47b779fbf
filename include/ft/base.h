// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * base.h - what every module uses: sizes, little-endian access, logging, time, small containers.
 *
 * Error convention of the whole tree: functions return 0 or -errno. A foreign result (-1 and errno,
 * SSL_*, nfq_*, pthread_*) becomes one on the line that receives it. Whoever meets a failure logs it
 * once, naming the object and, where there is one, the remedy; callers only pass rc up. Bad bytes
 * from a peer are -EPROTO. A bug of ours is an assert.
 */
#ifndef FT_BASE_H
#define FT_BASE_H

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#define FT_PAGE_SHIFT 12
#define FT_PAGE_SIZE  4096u
#define FT_NAME_MAX   63          /* guest and peer names: [A-Za-z0-9][A-Za-z0-9._-]{0,62} */

#ifndef FT_MUST_CHECK              /* cppcheck cannot read it behind a function pointer: make lint defines it away */
#define FT_MUST_CHECK  __attribute__((warn_unused_result))
#endif
/* For the few results that change nothing; say why beside it. */
#define ft_ignore(call) do { if (call) { /* nothing to do about it */ } } while (0)
#define FT_PRINTF(f,a) __attribute__((format(printf, f, a)))
#define FT_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define ft_container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))

#define FT_MS_NS 1000000ull
#define FT_S_NS  1000000000ull

/* CLOCK_MONOTONIC in nanoseconds; the only clock that decisions are made on. */
uint64_t ft_now_ns(void);

/*
 * What we do stands in the way of somebody's reply, and busy vCPUs are on the same cores: ask the scheduler to let
 * this thread, and those it makes, go first. Best effort. Programs we start must undo it (ft_priority_default).
 */
void ft_priority_raise(void);
void ft_priority_default(void);

/* --- log: one line an event, to stderr, journal-style priorities when stderr is the journal. --- */
enum ft_log_level { FT_LOG_ERR = 3, FT_LOG_WARN = 4, FT_LOG_INFO = 6, FT_LOG_DEBUG = 7 };

/* @program must outlive the process. Default level: INFO; FT_DEBUG=1 in the environment: DEBUG. */
void ft_log_init(const char *program);
/* Divert lines (tests, status line redraw). NULL restores stderr. @line has no newline. */
void ft_log_divert(void (*sink)(void *ctx, enum ft_log_level level, const char *line), void *ctx);
/*
 * From now on keep this thread's newest error line in @why (empty until there is one), beside logging it: what a peer
 * or an operator elsewhere is to be told. NULL: no more.
 */
void ft_log_keep(char *why, size_t size);
/* @c, or '?' for what controls a terminal: peers and guests do not get to forge lines. */
char ft_log_char(char c);
void ft_log(enum ft_log_level level, const char *fmt, ...) FT_PRINTF(2, 3);
void ft_vlog(enum ft_log_level level, const char *fmt, va_list ap) FT_PRINTF(2, 0);

#define ft_err(...)   ft_log(FT_LOG_ERR, __VA_ARGS__)
#define ft_warn(...)  ft_log(FT_LOG_WARN, __VA_ARGS__)
#define ft_info(...)  ft_log(FT_LOG_INFO, __VA_ARGS__)
#define ft_debug(...) ft_log(FT_LOG_DEBUG, __VA_ARGS__)

/*
 * For what is tried again and again: true when @what differs from the line before, or that is a minute old. One
 * thread's, zero at first.
 */
struct ft_log_limit {
	uint64_t at_ns;
	char what[160];
};
bool ft_log_due(struct ft_log_limit *l, const char *what);

/* --- names: true when @name is a valid guest or peer name (see FT_NAME_MAX). --- */
bool ft_name_ok(const char *name);

/* --- blob: an owned byte string. Zero value is empty; free is idempotent. --- */
struct ft_blob {
	uint8_t *data;
	size_t len;
};
void ft_blob_free(struct ft_blob *b);
int ft_blob_copy(struct ft_blob *b, const void *data, size_t len) FT_MUST_CHECK; /* replaces */

/* --- files --- */
int ft_read_file(const char *path, size_t max, struct ft_blob *out) FT_MUST_CHECK; /* NUL after len; -EFBIG over max */
/* Write @path atomically and durably: temporary file, fsync, rename, fsync of the directory. */
int ft_write_file(const char *path, const void *data, size_t len, unsigned mode) FT_MUST_CHECK;
int ft_write_all(int fd, const void *data, size_t len) FT_MUST_CHECK;
int ft_pwrite_all(int fd, const void *data, size_t len, off_t at) FT_MUST_CHECK;
int ft_pread_all(int fd, void *data, size_t len, off_t at) FT_MUST_CHECK;      /* -EIO beyond the end */
int ft_mkdir_p(const char *path, unsigned mode) FT_MUST_CHECK;
/* The directory that @path lies in, "." when it names none. Returns -ENAMETOOLONG when it does not fit. */
int ft_parent_dir(const char *path, char *dir, size_t size) FT_MUST_CHECK;
int ft_sync_dir(const char *dir) FT_MUST_CHECK;
/*
 * Make @path if need be, never through a symbolic link, and lock it. -EBUSY: somebody else has the lock; with @wait
 * until he lets go, or a signal comes (-EINTR). It lasts until @fd is closed, so no longer than its process.
 */
int ft_lock_file(const char *path, bool wait, int *fd) FT_MUST_CHECK;
/* Does a process that lives hold that lock? Nothing is made. */
bool ft_lock_held(const char *path);

/*
 * memcpy for what is many pages long. libc copies that with one `rep movsb`, which some CPUs (Zen 3) do at a
 * fifth of the speed when @to lies just after @from modulo 4096, as it does behind a header.
 */
void ft_copy(void *to, const void *from, size_t len);

/* --- little-endian bytes of the wire and of files --- */
static inline uint16_t ft_le16(const void *p)
{
	const uint8_t *b = p;
	return (uint16_t)(b[0] | b[1] << 8);
}

static inline uint32_t ft_le32(const void *p)
{
	const uint8_t *b = p;
	return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static inline uint64_t ft_le64(const void *p)
{
	return ft_le32(p) | (uint64_t)ft_le32((const uint8_t *)p + 4) << 32;
}

static inline void ft_put16(void *p, uint16_t v)
{
	uint8_t *b = p;
	b[0] = (uint8_t)v;
	b[1] = (uint8_t)(v >> 8);
}

static inline void ft_put32(void *p, uint32_t v)
{
	ft_put16(p, (uint16_t)v);
	ft_put16((uint8_t *)p + 2, (uint16_t)(v >> 16));
}

static inline void ft_put64(void *p, uint64_t v)
{
	ft_put32(p, (uint32_t)v);
	ft_put32((uint8_t *)p + 4, (uint32_t)(v >> 32));
}

#endif
