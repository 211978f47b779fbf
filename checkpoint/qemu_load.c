// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_load.c - see checkpoint/qemu_load.h. */
#include "checkpoint/qemu_load.h"
#include "checkpoint/qemu_stream.h"

#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define CALL_MS 5000
#define LOAD_TIMEOUT_MS 10000

struct ft_qemu_loader {
	struct ft_attach at;
	struct ft_qmp *qmp;
	int sock;                       /* our end; QEMU has the other one, named "ft-incoming" */
	bool used;
};

/* The end of QEMU's log: why it refuses a stream is said nowhere else. */
static void last_words(const struct ft_attach *at, char *out, size_t size)
{
	char path[FT_SPEC_PATH_MAX + 16];
	const char *slash = strrchr(at->qmp, '/'), *tail;
	struct ft_blob log;

	*out = 0;
	snprintf(path, sizeof(path), "%.*s/qemu.log", slash ? (int)(slash - at->qmp) : 0, at->qmp);
	if (ft_read_file(path, FT_QEMU_LOG_MAX, &log))
		return;
	tail = (const char *)log.data + (log.len > size ? log.len - size : 0);
	if (!strncmp(tail, "qemu-system-x86_64: ", 20))
		tail += 20;
	snprintf(out, size, "%s", tail);
	for (char *p = out; (p = strchr(p, '\n')); p++)
		*p = p[1] ? ';' : 0;
	ft_blob_free(&log);
}

static int failed(struct ft_qemu_loader *l, const char *what, int rc)
{
	const char *why = l->qmp ? ft_qmp_error(l->qmp) : "";
	char log[400];

	last_words(&l->at, log, sizeof(log));
	ft_err("%s: replica: %s: %s", l->at.guest, what, *log ? log : *why ? why : strerror(-rc));
	return rc == -EREMOTEIO || rc == -EPIPE ? -EIO : rc;
}

/* --- beforehand --- */

static int give_socket(struct ft_qemu_loader *l)
{
	int sock[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
		return -errno;
	l->sock = sock[0];
	rc = ft_qmp_call(l->qmp, "getfd", json_pack("{s:s}", "fdname", "ft-incoming"), sock[1], CALL_MS, NULL);
	close(sock[1]);
	return rc;
}

static int ignore_shared(struct ft_qemu_loader *l, bool on)
{
	return ft_qmp_call(l->qmp, "migrate-set-capabilities", ft_qmp_ignore_shared(on), -1, CALL_MS, NULL);
}

int ft_qemu_loader_new(const struct ft_attach *at, struct ft_qemu_loader **out)
{
	struct ft_qemu_loader *l = calloc(1, sizeof(*l));
	int rc;

	*out = NULL;
	if (!l)
		return -ENOMEM;
	l->sock = -1;
	l->at = *at;
	rc = ft_qmp_open(at->qmp, CALL_MS, &l->qmp);
	if (!rc)
		rc = ignore_shared(l, true);
	if (!rc)
		rc = give_socket(l);
	if (!rc)
		rc = ft_qmp_arm(l->qmp, "migrate-incoming", json_pack("{s:s}", "uri", "fd:ft-incoming"));
	if (rc) {
		rc = failed(l, "QEMU cannot be made ready", rc);
		ft_qemu_loader_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

void ft_qemu_loader_free(struct ft_qemu_loader *l)
{
	if (!l)
		return;
	ft_qmp_close(l->qmp);
	if (l->sock >= 0)
		close(l->sock);
	free(l);
}

/* --- the load --- */

static int wait_fd(int fd, short events, uint64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = events };
	uint64_t now = ft_now_ns();
	int n = now < deadline ? poll(&p, 1, (int)((deadline - now) / FT_MS_NS) + 1) : 0;

	return n > 0 || (n < 0 && errno == EINTR) ? 0 : n ? -errno : -ETIMEDOUT;
}

static int send_part(int sock, struct iovec part, uint64_t deadline)
{
	int rc = 0;

	while (part.iov_len && !rc) {
		ssize_t n = send(sock, part.iov_base, part.iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n >= 0) {
			part.iov_base = (char *)part.iov_base + n;
			part.iov_len -= (size_t)n;
		} else if (errno == EAGAIN) {
			rc = wait_fd(sock, POLLOUT, deadline);
		} else if (errno != EINTR) {
			rc = -errno;
		}
	}
	return rc;
}

static int send_stream(struct ft_qemu_loader *l, const struct iovec part[2], uint64_t deadline)
{
	int rc = send_part(l->sock, part[0], deadline);

	if (!rc)
		rc = send_part(l->sock, part[1], deadline);
	if (!rc && shutdown(l->sock, SHUT_WR))
		rc = -errno;
	return rc;
}

/* -EAGAIN: no word yet. */
static int heard_running(struct ft_qmp *q)
{
	json_t *event;
	int rc = -EAGAIN;

	while (rc == -EAGAIN && (event = ft_qmp_event(q))) {
		const char *name = json_string_value(json_object_get(event, "event"));

		if (name && !strcmp(name, "RESUME"))
			rc = 0;
		json_decref(event);
	}
	return rc;
}

/* The event comes an instant before clock and vCPUs start; the answer to a question comes after. */
static int check_running(struct ft_qmp *q)
{
	json_t *status;
	int rc = ft_qmp_call(q, "query-status", NULL, -1, CALL_MS, &status);

	if (!rc && !json_is_true(json_object_get(status, "running")))
		rc = -EIO;
	json_decref(status);
	return rc;
}

/* A QEMU that cannot load what it gets says so in its log and exits: its end of the QMP connection closes. */
static int wait_running(struct ft_qemu_loader *l, uint64_t deadline)
{
	int rc = heard_running(l->qmp);

	while (rc == -EAGAIN) {
		rc = wait_fd(ft_qmp_fd(l->qmp), POLLIN, deadline);
		if (rc)
			break;
		rc = heard_running(l->qmp);
		if (rc == -EAGAIN && ft_qmp_closed(l->qmp))
			rc = -EIO;
	}
	return rc ? rc : check_running(l->qmp);
}

int ft_qemu_load(struct ft_qemu_loader *l, const struct ft_blob *firmware, const struct ft_blob *state)
{
	uint64_t deadline = ft_now_ns() + LOAD_TIMEOUT_MS * FT_MS_NS;
	struct iovec part[2];
	int rc;

	assert(!l->used);
	rc = ft_qemu_stream_splice(firmware, state, FT_QEMU_RAM_BLOCK, part);
	if (rc)
		return rc;
	l->used = true;
	rc = ft_qmp_fire(l->qmp);
	if (!rc)
		rc = ft_qmp_wait(l->qmp, LOAD_TIMEOUT_MS, NULL);
	if (!rc)
		rc = send_stream(l, part, deadline);
	if (!rc)
		rc = wait_running(l, deadline);
	if (rc)
		return failed(l, "the guest does not come up", rc);
	if (ignore_shared(l, false))        /* it runs: what is left of its birth harms nobody until somebody migrates it */
		ft_warn("%s: x-ignore-shared stays on: %s", l->at.guest, ft_qmp_error(l->qmp));
	return 0;
}
