// SPDX-License-Identifier: GPL-3.0-or-later
/* fdpass.c - see fdpass.h. */
#include "fdpass.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

union control {
	struct cmsghdr hdr;
	char space[CMSG_SPACE(sizeof(int))];
};

int ft_fd_send(int sock, int fd, const char *guest)
{
	struct iovec iov = { (void *)(uintptr_t)guest, strlen(guest) };
	union control c = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&msg);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fd, sizeof(int));
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)iov.iov_len ? 0 : -errno;
}

/* One message from @sock, which has a limit of time: the sender may be between its connect and its send. */
static int receive(int sock, char guest[FT_NAME_MAX + 1])
{
	struct iovec iov = { guest, FT_NAME_MAX };
	union control c = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	struct cmsghdr *h;
	ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	int fd;

	if (n <= 0)
		return n ? -errno : -EPIPE;
	h = CMSG_FIRSTHDR(&msg);
	if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || h->cmsg_len != CMSG_LEN(sizeof(int)))
		return -EPROTO;
	memcpy(&fd, CMSG_DATA(h), sizeof(int));
	guest[n] = 0;
	if (ft_name_ok(guest))
		return fd;
	close(fd);
	return -EPROTO;
}

int ft_fd_accept(int door, char guest[FT_NAME_MAX + 1])
{
	const struct timeval limit = { .tv_sec = 1 };
	int fd, sock = accept4(door, NULL, NULL, SOCK_CLOEXEC);

	if (sock < 0)
		return -errno;
	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	fd = receive(sock, guest);
	close(sock);
	return fd;
}
