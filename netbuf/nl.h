// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * nl.h - netlink requests that never block: the kernel answers within sendmsg and recvmsg, so an answer
 * that is not there when we look is an error, not something to wait for.
 */
#ifndef FT_NETBUF_NL_H
#define FT_NETBUF_NL_H

#include "ft/base.h"
#include <libmnl/libmnl.h>

#define FT_NL_BUF 16384u
#define FT_NL_DUMP_TRIES 8              /* a dump during which somebody commits has to be taken again */

/* A bound, non-blocking socket of @bus in @groups. Close with mnl_socket_close. */
int ft_nl_open(int bus, unsigned groups, struct mnl_socket **out) FT_MUST_CHECK;
/* The same around a socket that another process opened and handed over; @fd is ours from here on, also on failure. */
int ft_nl_adopt(int fd, struct mnl_socket **out) FT_MUST_CHECK;
/*
 * Send @req and give every answer to @cb (NULL: there are none). Dumps run to their end; a dump that the
 * kernel calls interrupted is -EINTR. Other requests must carry NLM_F_ACK.
 */
int ft_nl_request(struct mnl_socket *nl, struct nlmsghdr *req, mnl_cb_t cb, void *ctx) FT_MUST_CHECK;
/* Throw away what an earlier request left behind. */
void ft_nl_drop_stale(struct mnl_socket *nl);

#endif
