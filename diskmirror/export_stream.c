// SPDX-License-Identifier: GPL-3.0-or-later
/* export_stream.c - ops to whoever has started the mirror, before the guest hears that they are done. */
#include "export_priv.h"

#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>

/* --- sending --- */

static int wait_writable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };
	int n = poll(&p, 1, FT_EXPORT_STALL_MS);

	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	return n ? 0 : -ETIMEDOUT;
}

static void advance(struct msghdr *m, size_t n)
{
	while (n && m->msg_iovlen) {
		size_t part = n < m->msg_iov->iov_len ? n : m->msg_iov->iov_len;

		m->msg_iov->iov_base = (uint8_t *)m->msg_iov->iov_base + part;
		m->msg_iov->iov_len -= part;
		n -= part;
		if (!m->msg_iov->iov_len) {
			m->msg_iov++;
			m->msg_iovlen--;
		}
	}
}

int ft_export_send(int fd, uint32_t type, const void *body, size_t len, const void *data, size_t data_len)
{
	uint8_t hdr[FT_EXPORT_HDR];
	struct iovec iov[] = {
		{ hdr, sizeof(hdr) }, { (void *)(uintptr_t)body, len }, { (void *)(uintptr_t)data, data_len },
	};
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = 3 };
	size_t left = sizeof(hdr) + len + data_len;

	ft_put32(hdr, type);
	ft_put32(hdr + 4, (uint32_t)(len + data_len));
	while (left) {
		ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		int rc = n < 0 ? -errno : 0;

		if (rc == -EAGAIN)
			rc = wait_writable(fd);
		else if (rc == -EINTR)
			rc = 0;
		if (rc)
			return rc;
		if (n > 0) {
			left -= (size_t)n;
			advance(&m, (size_t)n);
		}
	}
	return 0;
}

int ft_export_tell(struct ft_export *e, struct ft_export_client *c, uint32_t type, const void *body, size_t len)
{
	int rc;

	pthread_mutex_lock(&e->stream_lock);
	rc = ft_export_send(c->fd, type, body, len, NULL, 0);
	pthread_mutex_unlock(&e->stream_lock);
	return rc;
}

/* --- the end: stream_lock held. The control thread sees the socket shut down, and does what waits for the disk. --- */

static void end_stream(struct ft_export *e, bool hang_up)
{
	if (!e->stream)
		return;
	if (hang_up)
		shutdown(e->stream->fd, SHUT_RDWR);
	e->page->sent = FT_EXPORT_ENDED;
	munmap(e->page, sizeof(*e->page));
	e->page = NULL;
	e->stream = NULL;
	e->streaming = false;
	ft_export_end_elide(e);
}

void ft_export_stream_end(struct ft_export *e)
{
	pthread_mutex_lock(&e->stream_lock);
	end_stream(e, false);
	pthread_mutex_unlock(&e->stream_lock);
}

static void drop_reader(struct ft_export *e, int rc)
{
	if (rc == -ETIMEDOUT)
		ft_err("disk %s: the mirror has read nothing for %u ms; the guest goes on without it", e->image,
		       FT_EXPORT_STALL_MS);
	else
		ft_warn("disk %s: the mirror has gone: %s", e->image, strerror(-rc));
	end_stream(e, true);
}

void ft_export_fail(struct ft_export *e, const char *fmt, ...)
{
	char why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	pthread_mutex_lock(&e->stream_lock);
	if (e->stream) {
		ft_err("disk %s is no longer mirrored: %s", e->image, why);
		/* A reader that does not take it finds the socket closed. */
		ft_ignore(ft_export_send(e->stream->fd, FT_EXPORT_FAILED, why, strlen(why), NULL, 0));
		end_stream(e, true);
	}
	pthread_mutex_unlock(&e->stream_lock);
}

/* --- ops: stream_lock held --- */

static void one_op(struct ft_export *e, const struct ft_disk_op *op, const void *data)
{
	uint8_t packed[FT_DISK_OP_LEN];
	size_t data_len = op->op == FT_DISK_WRITE ? op->len : 0;
	int rc;

	ft_disk_pack_op(op, packed);
	rc = ft_export_send(e->stream->fd, FT_EXPORT_OP, packed, sizeof(packed), data, data_len);
	if (rc) {
		drop_reader(e, rc);
		return;
	}
	e->seq = op->seq;
	e->page->sent = op->seq;
}

/* The map must know the op's true number before the peer can tell that it is durable. */
static bool touch_again(struct ft_export *e, const struct ft_disk_op *op)
{
	int rc = ft_map_touch(e->map, op->offset, op->len, op->seq);

	if (!rc)
		return true;
	ft_err("disk %s is no longer mirrored: its map cannot be written: %s", e->image, strerror(-rc));
	end_stream(e, true);
	return false;
}

void ft_export_stream(struct ft_export *e, uint32_t opcode, const void *buf, uint64_t at, uint32_t len)
{
	const uint8_t *data = buf;
	uint32_t most = opcode == FT_DISK_WRITE ? FT_DISK_OP_DATA_MAX : len;

	if (!e->streaming)
		return;
	pthread_mutex_lock(&e->stream_lock);
	for (uint32_t done = 0, n; e->stream && done < len; done += n) {
		n = len - done < most ? len - done : most;
		struct ft_disk_op op = { .seq = e->seq + 1, .offset = at + done, .len = n, .op = opcode };

		if (touch_again(e, &op))
			one_op(e, &op, data ? data + done : NULL);
	}
	pthread_mutex_unlock(&e->stream_lock);
}

bool ft_export_stream_copy(struct ft_export *e, uint32_t opcode, const void *buf, uint64_t at, uint32_t len,
			   uint64_t *seq)
{
	bool there;

	pthread_mutex_lock(&e->stream_lock);
	if (e->stream) {
		struct ft_disk_op op = { .seq = e->seq + 1, .offset = at, .len = len, .op = opcode };

		one_op(e, &op, buf);
	}
	there = e->stream;
	*seq = e->seq;
	pthread_mutex_unlock(&e->stream_lock);
	return there;
}
