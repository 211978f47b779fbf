// SPDX-License-Identifier: GPL-3.0-or-later
/* nl.c - see nl.h. */
#include "netbuf/nl.h"

#include <sys/socket.h>
#include <unistd.h>

int ft_nl_open(int bus, unsigned groups, struct mnl_socket **out)
{
	struct mnl_socket *nl = mnl_socket_open2(bus, SOCK_CLOEXEC | SOCK_NONBLOCK);
	int rc;

	if (!nl)
		return -errno;
	if (mnl_socket_bind(nl, groups, MNL_SOCKET_AUTOPID) < 0) {
		rc = -errno;
		mnl_socket_close(nl);
		return rc;
	}
	*out = nl;
	return 0;
}

int ft_nl_adopt(int fd, struct mnl_socket **out)
{
	struct mnl_socket *nl = mnl_socket_fdopen(fd);
	int rc = nl ? 0 : -errno;

	if (rc)
		close(fd);
	else
		*out = nl;
	return rc;
}

void ft_nl_drop_stale(struct mnl_socket *nl)
{
	char buf[256];

	while (recv(mnl_socket_get_fd(nl), buf, sizeof(buf), MSG_DONTWAIT | MSG_TRUNC) > 0)
		;
}

int ft_nl_request(struct mnl_socket *nl, struct nlmsghdr *req, mnl_cb_t cb, void *ctx)
{
	char buf[FT_NL_BUF];
	unsigned portid = mnl_socket_get_portid(nl);
	ssize_t n;
	int more;

	ft_nl_drop_stale(nl);
	if (mnl_socket_sendto(nl, req, req->nlmsg_len) < 0)
		return -errno;
	do {
		n = recv(mnl_socket_get_fd(nl), buf, sizeof(buf), MSG_DONTWAIT);
		if (n < 0)
			return -errno;
		more = mnl_cb_run(buf, (size_t)n, req->nlmsg_seq, portid, cb, ctx);
	} while (more > 0);
	return more < 0 ? -errno : 0;
}
