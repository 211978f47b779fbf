// SPDX-License-Identifier: GPL-3.0-or-later
/* guard_msg.c - see guard_msg.h. */
#include "failover/guard_msg.h"
#include "ft/conf.h"

#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

int guard_address(const char *guest, struct sockaddr_un *out)
{
	char path[2 * FT_PATH_MAX];
	int rc = ft_run_path(path, sizeof(path), guest, "guard.sock");

	*out = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!rc && (size_t)snprintf(out->sun_path, sizeof(out->sun_path), "%s", path) >= sizeof(out->sun_path))
		rc = -ENAMETOOLONG;
	return rc;
}

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(GUARD_FDS_MAX * sizeof(int))];
};

int guard_send(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds)
{
	struct iovec iov = { (void *)(uintptr_t)buf, len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control = { 0 };

	if (nr_fds) {
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(nr_fds * sizeof(int));
		control.align = (struct cmsghdr){ CMSG_LEN(nr_fds * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.align), fds, nr_fds * sizeof(int));
	}
	if (sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
		return 0;
	return errno == EAGAIN ? -EAGAIN : -EPIPE;
}

static void take_fds(struct msghdr *msg, int fds[GUARD_FDS_MAX], unsigned *nr_fds)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		*nr_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(fds, CMSG_DATA(c), *nr_fds * sizeof(int));       /* our room holds no more than GUARD_FDS_MAX */
	}
}

ssize_t guard_receive(int sock, void *buf, size_t size, int fds[GUARD_FDS_MAX], unsigned *nr_fds)
{
	union control control;
	struct iovec iov = { buf, size };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	ssize_t n;

	*nr_fds = 0;
	do
		n = recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : -EPIPE;
	take_fds(&msg, fds, nr_fds);
	return n ? n : -EPIPE;
}
