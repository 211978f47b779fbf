// SPDX-License-Identifier: GPL-3.0-or-later
/* mirror_dial.c - an export's control socket, one word at a time; see mirror_dial.h. */
#include "diskmirror/mirror_dial.h"

#include "ft/export.h"
#include "ft/mirror.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* 0, or -ETIMEDOUT. */
static int wait_for(int fd, short events, uint64_t deadline_ns)
{
	for (;;) {
		uint64_t now = ft_now_ns();
		struct pollfd p = { .fd = fd, .events = events };
		int n;

		if (now >= deadline_ns)
			return -ETIMEDOUT;
		n = poll(&p, 1, (int)((deadline_ns - now) / FT_MS_NS) + 1);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

/* A listener whose queue is full tells nobody when it has room again: so ask now and then. */
static int connect_by(int fd, const struct sockaddr_un *sa, uint64_t deadline_ns)
{
	while (connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) < 0) {
		if (errno != EAGAIN && errno != EINTR)
			return -errno;
		if (ft_now_ns() >= deadline_ns)
			return -ETIMEDOUT;
		poll(NULL, 0, 2);
	}
	return 0;
}

int ft_dial_export(const char *path, uint64_t deadline_ns, int *fd)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int rc;

	if (strlen(path) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	memcpy(sa.sun_path, path, strlen(path) + 1);
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (*fd < 0)
		return -errno;
	rc = connect_by(*fd, &sa, deadline_ns);
	if (rc) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}

static ssize_t send_some(int fd, const void *p, size_t len, int pass)
{
	union {
		struct cmsghdr hdr;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)p, .iov_len = len };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (pass >= 0) {
		m.msg_control = control.buf;
		m.msg_controllen = sizeof(control.buf);
		control.hdr = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
		memcpy(CMSG_DATA(&control.hdr), &pass, sizeof(pass));
	}
	n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

int ft_dial_send(int fd, uint32_t type, const void *body, size_t len, int pass, uint64_t deadline_ns)
{
	uint8_t buf[8 + 64], *p = buf;
	size_t left = 8 + len;

	assert(len <= sizeof(buf) - 8);
	ft_put32(buf, type);
	ft_put32(buf + 4, (uint32_t)len);
	if (len)
		memcpy(buf + 8, body, len);
	while (left) {
		ssize_t n = send_some(fd, p, left, pass);

		if (n == -EAGAIN) {
			int rc = wait_for(fd, POLLOUT, deadline_ns);

			if (rc)
				return rc;
		} else if (n < 0 && n != -EINTR) {
			return (int)n;
		} else if (n > 0) {
			pass = -1;
			p += n;
			left -= (size_t)n;
		}
	}
	return 0;
}

static int recv_all(int fd, uint8_t *p, size_t len, uint64_t deadline_ns)
{
	while (len) {
		ssize_t n = recv(fd, p, len, MSG_DONTWAIT);
		int rc = 0;

		if (!n)
			return -EPIPE;
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) {
			rc = wait_for(fd, POLLIN, deadline_ns);
		} else if (errno != EINTR) {
			rc = errno == ECONNRESET ? -EPIPE : -errno;
		}
		if (rc)
			return rc;
	}
	return 0;
}

int ft_dial_recv(int fd, uint32_t *type, void *body, size_t *len, uint64_t deadline_ns)
{
	uint8_t hdr[8];
	int rc = recv_all(fd, hdr, sizeof(hdr), deadline_ns);

	if (rc)
		return rc;
	*type = ft_le32(hdr);
	if (ft_le32(hdr + 4) > *len)
		return -EPROTO;
	*len = ft_le32(hdr + 4);
	return recv_all(fd, body, *len, deadline_ns);
}

int ft_dial_answer(int fd, uint32_t type, void *body, size_t len, uint64_t deadline_ns)
{
	uint8_t *text = body;
	size_t got = FT_DIAL_TEXT_MAX;
	uint32_t t;
	int rc = ft_dial_recv(fd, &t, body, &got, deadline_ns);

	if (rc)
		return rc;
	if (t == FT_EXPORT_FAILED) {
		text[got] = 0;
		return -EREMOTEIO;
	}
	return t == type && got == len ? 0 : -EPROTO;
}

/* --- one command, answered --- */

static int command(const char *control, unsigned timeout_ms, uint32_t type, uint32_t answer, void *body, size_t len)
{
	uint64_t deadline = ft_now_ns() + timeout_ms * FT_MS_NS;
	int fd, rc = ft_dial_export(control, deadline, &fd);

	if (rc)
		return rc;
	rc = ft_dial_send(fd, type, NULL, 0, -1, deadline);
	if (!rc)
		rc = ft_dial_answer(fd, answer, body, len, deadline);
	close(fd);
	return rc;
}

static int tell(const char *control, int rc, const uint8_t *text)
{
	if (rc == -EREMOTEIO)
		ft_err("disk at %s: %s", control, (const char *)text);
	else if (rc)
		ft_err("disk at %s: its nbdkit does not answer as it should: %s - is it running?", control, strerror(-rc));
	return rc;
}

int ft_export_activate(const char *control, unsigned timeout_ms)
{
	uint8_t body[FT_DIAL_TEXT_MAX + 1];
	int rc = tell(control, command(control, timeout_ms, FT_EXPORT_ACTIVATE, FT_EXPORT_ACTIVE, body, 4), body);
	uint32_t refused = rc ? 0 : ft_le32(body);

	if (!refused)
		return rc;
	if (refused > 4095)
		return -EPROTO;
	ft_err("disk at %s: cannot be opened for the guest: %s - nbdkit's log says more", control, strerror((int)refused));
	return -(int)refused;
}

int ft_export_ask(const char *control, unsigned timeout_ms, struct ft_disk_id *out)
{
	uint8_t body[FT_DIAL_TEXT_MAX + 1];
	int rc = tell(control, command(control, timeout_ms, FT_EXPORT_ASK, FT_EXPORT_HERE, body, FT_DISK_ID_LEN + 8), body);

	return rc ? rc : ft_disk_unpack_id(body, out);
}
