// SPDX-License-Identifier: GPL-3.0-or-later
/* fdpass.c - see fdpass.h. */
#include "fdpass.h"

#include <sys/socket.h>

union control {
	struct cmsghdr hdr;
	char space[CMSG_SPACE(sizeof(int))];
};

int ft_fd_send(int sock, int fd)
{
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	union control c = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&msg);

	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(h), &fd, sizeof(int));
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) == 1 ? 0 : -errno;
}

int ft_fd_receive(int sock)
{
	char byte;
	struct iovec iov = { &byte, 1 };
	union control c = { .space = { 0 } };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	struct cmsghdr *h;
	ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	int fd;

	if (n <= 0)
		return n ? -errno : -EPIPE;
	h = CMSG_FIRSTHDR(&msg);
	if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || h->cmsg_len != CMSG_LEN(sizeof(int)))
		return -EPROTO;
	memcpy(&fd, CMSG_DATA(h), sizeof(int));
	return fd;
}
