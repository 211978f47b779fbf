// SPDX-License-Identifier: GPL-3.0-or-later
/* watch.c - see watch.h. */
#include "netbuf/watch.h"

#include "netbuf/nl.h"
#include <ev.h>
#include <linux/netfilter/nfnetlink.h>
#include <sys/socket.h>

struct ft_watch {
	struct ev_loop *loop;           /* borrowed */
	struct mnl_socket *nl;
	uint32_t self;
	void (*changed)(void *ctx);
	void *ctx;
	ev_io io;
};

static bool by_others(const struct ft_watch *w, const uint8_t *buf, size_t len)
{
	int left = (int)len;

	for (const struct nlmsghdr *h = (const void *)buf; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left))
		if (h->nlmsg_pid != w->self)
			return true;
	return false;
}

static void on_readable(struct ev_loop *loop, ev_io *io, int revents)
{
	struct ft_watch *w = io->data;
	uint8_t buf[FT_NL_BUF];
	bool others = false;
	ssize_t n;

	do {
		n = recv(io->fd, buf, sizeof(buf), MSG_DONTWAIT);
		if (n > 0)
			others |= by_others(w, buf, (size_t)n);
		else if (n < 0 && errno == ENOBUFS)
			others = true;          /* notices were lost: assume the worst */
	} while (n > 0 || (n < 0 && errno == ENOBUFS));
	if (others)
		w->changed(w->ctx);             /* may close @w */
}

int ft_watch_open(struct ev_loop *loop, uint32_t self, void (*changed)(void *ctx), void *ctx,
		  struct ft_watch **out)
{
	struct ft_watch *w = calloc(1, sizeof(*w));
	int group = NFNLGRP_NFTABLES, rc;

	if (!w)
		return -ENOMEM;
	w->loop = loop;
	w->self = self;
	w->changed = changed;
	w->ctx = ctx;
	rc = ft_nl_open(NETLINK_NETFILTER, 0, &w->nl);
	if (!rc && mnl_socket_setsockopt(w->nl, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
		rc = -errno;
	if (rc) {
		ft_err("cannot watch nf_tables: %s", strerror(-rc));
		ft_watch_close(w);
		return rc;
	}
	ev_io_init(&w->io, on_readable, mnl_socket_get_fd(w->nl), EV_READ);
	w->io.data = w;
	ev_io_start(loop, &w->io);
	*out = w;
	return 0;
}

void ft_watch_close(struct ft_watch *w)
{
	if (!w)
		return;
	ev_io_stop(w->loop, &w->io);
	if (w->nl)
		mnl_socket_close(w->nl);
	free(w);
}
