// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qmp.c - see checkpoint/qemu.h. The loop's pause waits on these calls: a command is one sendmsg, bytes are looked
 * at once, and nothing sleeps but ppoll.
 */
#include "checkpoint/qemu.h"

#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES (8u << 20)       /* query-qmp-schema of QEMU 10 has half a megabyte */
#define EVENTS_MAX 1024
#define SEND_TIMEOUT_MS 1000

struct ft_qmp {
	int fd;
	char *buf;                      /* [0, len) received; no newline in [0, seen) */
	size_t size, len, seen;
	uint64_t id;                    /* of the last command; answers to others come too late and are dropped */
	json_t *answer;                 /* to id, when it has come */
	json_t *events;                 /* array, oldest first */
	bool greeted, overflowed;
	bool closed;                    /* QEMU's end is gone */
	bool armed;                     /* a command is said, all but its last byte */
	char error[256];
	char error_class[48];           /* of QEMU's last error */
};

static int fail(struct ft_qmp *q, int rc, const char *fmt, ...) FT_PRINTF(3, 4);
static int fail(struct ft_qmp *q, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(q->error, sizeof(q->error), fmt, ap);
	va_end(ap);
	return rc;
}

const char *ft_qmp_error_class(struct ft_qmp *q)
{
	return q->error_class;
}

const char *ft_qmp_error(struct ft_qmp *q)
{
	return q->error;
}

int ft_qmp_fd(struct ft_qmp *q)
{
	return q->fd;
}

bool ft_qmp_closed(const struct ft_qmp *q)
{
	return q->closed;
}

static int wait_for(struct ft_qmp *q, short events, uint64_t deadline)
{
	struct pollfd p = { .fd = q->fd, .events = events };

	for (;;) {
		uint64_t now = ft_now_ns(), left = now < deadline ? deadline - now : 0;
		struct timespec ts = { (time_t)(left / FT_S_NS), (long)(left % FT_S_NS) };
		int n = ppoll(&p, 1, &ts, NULL);

		if (n > 0)
			return 0;
		if (n == 0)
			return fail(q, -ETIMEDOUT, "QEMU did not answer in time");
		if (errno != EINTR)
			return fail(q, -errno, "poll: %s", strerror(errno));
	}
}

/* --- receiving --- */

static void take_event(struct ft_qmp *q, json_t *event)
{
	if (json_array_size(q->events) == EVENTS_MAX) {
		if (!q->overflowed)
			ft_warn("QMP: more than %d events nobody looked at; the oldest are dropped", EVENTS_MAX);
		q->overflowed = true;
		json_array_remove(q->events, 0);
	}
	json_array_append(q->events, event);
}

static void take_message(struct ft_qmp *q, json_t *msg)
{
	json_t *id = json_object_get(msg, "id");

	if (json_object_get(msg, "QMP"))
		q->greeted = true;
	else if (json_object_get(msg, "event"))
		take_event(q, msg);
	else if (!q->answer && json_is_integer(id) && (uint64_t)json_integer_value(id) == q->id)
		q->answer = json_incref(msg);
}

static int take_line(struct ft_qmp *q, const char *line, size_t len)
{
	json_error_t err;
	json_t *msg = json_loadb(line, len, 0, &err);

	if (!json_is_object(msg)) {
		json_decref(msg);
		return fail(q, -EPROTO, "what answers is not QMP: %s", msg ? "not an object" : err.text);
	}
	take_message(q, msg);
	json_decref(msg);
	return 0;
}

/* Take every whole line out of the buffer. */
static int take_lines(struct ft_qmp *q)
{
	size_t start = 0;
	char *nl;
	int rc = 0;

	while (!rc && (nl = memchr(q->buf + q->seen, '\n', q->len - q->seen))) {
		size_t end = (size_t)(nl - q->buf);

		rc = take_line(q, q->buf + start, end - start);
		start = q->seen = end + 1;
	}
	memmove(q->buf, q->buf + start, q->len - start);
	q->len -= start;
	q->seen = q->len;
	return rc;
}

static int grow(struct ft_qmp *q)
{
	size_t size = q->size ? q->size * 2 : 16384;
	char *buf;

	if (size > LINE_MAX_BYTES)
		return fail(q, -EPROTO, "QEMU sent a line of more than %u bytes", LINE_MAX_BYTES);
	buf = realloc(q->buf, size);
	if (!buf)
		return fail(q, -ENOMEM, "out of memory");
	q->buf = buf;
	q->size = size;
	return 0;
}

/* Read what is there; -EAGAIN when nothing is. */
static int receive(struct ft_qmp *q)
{
	ssize_t n;
	int rc = q->len == q->size ? grow(q) : 0;

	if (rc)
		return rc;
	do
		n = recv(q->fd, q->buf + q->len, q->size - q->len, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return -EAGAIN;
	if (n <= 0) {
		q->closed = true;
		return fail(q, -EPIPE, "QEMU closed the QMP connection");
	}
	q->len += (size_t)n;
	return take_lines(q);
}

/* Until @done says so. */
static int receive_until(struct ft_qmp *q, bool (*done)(const struct ft_qmp *q), uint64_t deadline)
{
	int rc = 0;

	while (!rc && !done(q)) {
		rc = receive(q);
		if (rc == -EAGAIN)
			rc = wait_for(q, POLLIN, deadline);
	}
	return rc;
}

static bool has_answer(const struct ft_qmp *q)
{
	return q->answer != NULL;
}

static bool has_greeting(const struct ft_qmp *q)
{
	return q->greeted;
}

json_t *ft_qmp_event(struct ft_qmp *q)
{
	json_t *event;

	while (json_array_size(q->events) < EVENTS_MAX && receive(q) == 0)
		;
	event = json_incref(json_array_get(q->events, 0));
	if (event)
		json_array_remove(q->events, 0);
	return event;
}

/* --- sending --- */

static int send_text(struct ft_qmp *q, const char *text, size_t len, int fd_to_pass)
{
	char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8))) = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)text, .iov_len = len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	uint64_t deadline = ft_now_ns() + SEND_TIMEOUT_MS * FT_MS_NS;

	if (fd_to_pass >= 0) {
		m.msg_control = control;
		m.msg_controllen = sizeof(control);
		*CMSG_FIRSTHDR(&m) = (struct cmsghdr){ CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(CMSG_FIRSTHDR(&m)), &fd_to_pass, sizeof(int));
	}
	while (iov.iov_len) {
		ssize_t n = sendmsg(q->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0) {
			iov.iov_base = (char *)iov.iov_base + n;
			iov.iov_len -= (size_t)n;
			m.msg_control = NULL;
			m.msg_controllen = 0;
		} else if (errno == EAGAIN) {
			int rc = wait_for(q, POLLOUT, deadline);

			if (rc)
				return rc;
		} else if (errno != EINTR) {
			return fail(q, -EPIPE, "QEMU is gone: %s", strerror(errno));
		}
	}
	return 0;
}

static char *command_text(const char *command, json_t *args, uint64_t id)
{
	json_t *msg = args ? json_pack("{s:s, s:I, s:o}", "execute", command, "id", (json_int_t)id, "arguments", args)
			   : json_pack("{s:s, s:I}", "execute", command, "id", (json_int_t)id);
	char *text = msg ? json_dumps(msg, JSON_COMPACT) : NULL;

	json_decref(msg);
	return text;
}

/* Say @command, leaving out the last @withheld bytes. */
static int say(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass, size_t withheld)
{
	char *text;
	int rc;

	assert(!q->armed);
	json_decref(q->answer);         /* of a call whose wait timed out */
	q->answer = NULL;
	q->error[0] = 0;
	text = command_text(command, args, ++q->id);
	if (!text)
		return fail(q, -ENOMEM, "out of memory");
	rc = send_text(q, text, strlen(text) - withheld, fd_to_pass);
	free(text);
	return rc;
}

int ft_qmp_send(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass)
{
	return say(q, command, args, fd_to_pass, 0);
}

int ft_qmp_arm(struct ft_qmp *q, const char *command, json_t *args)
{
	int rc = say(q, command, args, -1, 1);

	q->armed = !rc;
	return rc;
}

int ft_qmp_fire(struct ft_qmp *q)
{
	assert(q->armed);
	q->armed = false;
	return send_text(q, "}", 1, -1);
}

int ft_qmp_disarm(struct ft_qmp *q, unsigned timeout_ms)
{
	/* A member no command has: QEMU refuses the whole. */
	static const char refuse[] = ",\"disarm\":0}";
	int rc;

	if (!q->armed)
		return 0;
	q->armed = false;
	rc = send_text(q, refuse, strlen(refuse), -1);
	if (!rc)
		rc = ft_qmp_wait(q, timeout_ms, NULL);
	return rc == -EREMOTEIO ? 0 : rc ? rc : fail(q, -EPROTO, "QEMU ran a command that was taken back");
}

bool ft_qmp_armed(const struct ft_qmp *q)
{
	return q->armed;
}

static int take_answer(struct ft_qmp *q, json_t **ret)
{
	json_t *answer = q->answer, *error = json_object_get(answer, "error"), *value = json_object_get(answer, "return");
	int rc = 0;

	q->answer = NULL;
	if (error) {
		const char *desc = json_string_value(json_object_get(error, "desc"));
		const char *class = json_string_value(json_object_get(error, "class"));

		snprintf(q->error_class, sizeof(q->error_class), "%s", class ? class : "");
		rc = fail(q, -EREMOTEIO, "%s", desc ? desc : "QEMU said no");
	} else if (!value) {
		rc = fail(q, -EPROTO, "an answer without 'return'");
	} else if (ret) {
		*ret = json_incref(value);
	}
	json_decref(answer);
	return rc;
}

int ft_qmp_wait(struct ft_qmp *q, unsigned timeout_ms, json_t **ret)
{
	int rc;

	if (ret)
		*ret = NULL;
	rc = receive_until(q, has_answer, ft_now_ns() + timeout_ms * FT_MS_NS);
	return rc ? rc : take_answer(q, ret);
}

int ft_qmp_call(struct ft_qmp *q, const char *command, json_t *args, int fd_to_pass, unsigned timeout_ms, json_t **ret)
{
	int rc;

	if (ret)
		*ret = NULL;
	rc = ft_qmp_send(q, command, args, fd_to_pass);
	return rc ? rc : ft_qmp_wait(q, timeout_ms, ret);
}

json_t *ft_qmp_ignore_shared(bool on)
{
	return json_pack("{s:[{s:s, s:b}]}", "capabilities", "capability", "x-ignore-shared", "state", on);
}

/* --- connection --- */

static int unix_connect(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd, rc;

	if ((size_t)snprintf(a.sun_path, sizeof(a.sun_path), "%s", path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	rc = errno == EAGAIN ? -EBUSY : -errno; /* the backlog is full of others who wait */
	close(fd);
	return rc;
}

bool ft_qmp_listening(const char *path)
{
	int fd = unix_connect(path);

	if (fd >= 0)
		close(fd);
	return fd >= 0 || fd == -EBUSY;
}

int ft_qmp_try(const char *path, unsigned timeout_ms, struct ft_qmp **out, char *why, size_t size)
{
	uint64_t deadline = ft_now_ns() + timeout_ms * FT_MS_NS;
	struct ft_qmp *q = calloc(1, sizeof(*q));
	int rc;

	*out = NULL;
	if (!q)
		return -ENOMEM;
	q->fd = unix_connect(path);
	q->events = json_array();
	rc = q->fd < 0 ? fail(q, q->fd, "%s", strerror(-q->fd)) : !q->events ? fail(q, -ENOMEM, "out of memory") : 0;
	if (!rc)
		rc = receive_until(q, has_greeting, deadline);
	if (!rc)
		rc = ft_qmp_call(q, "qmp_capabilities", NULL, -1, timeout_ms, NULL);
	if (!rc) {
		*out = q;
		return 0;
	}
	snprintf(why, size, "%s%s", q->error, rc == -ETIMEDOUT ? " (QEMU hangs, or another client holds this socket)" : "");
	ft_qmp_close(q);
	return rc;
}

int ft_qmp_open(const char *path, unsigned timeout_ms, struct ft_qmp **out)
{
	char why[320] = "out of memory";
	int rc = ft_qmp_try(path, timeout_ms, out, why, sizeof(why));

	if (rc)
		ft_err("QMP socket %s: %s", path, why);
	return rc;
}

void ft_qmp_close(struct ft_qmp *q)
{
	if (!q)
		return;
	if (q->fd >= 0)
		close(q->fd);
	json_decref(q->answer);
	json_decref(q->events);
	free(q->buf);
	free(q);
}
