// SPDX-License-Identifier: GPL-3.0-or-later
/* fdpass.h - hand a connected socket, and the guest it is for, to another process over a SOCK_SEQPACKET socket. */
#ifndef FT_REPLICATOR_FDPASS_H
#define FT_REPLICATOR_FDPASS_H

#include "ft/base.h"

/* The caller keeps its copy of @fd. Never blocks. */
int ft_fd_send(int sock, int fd, const char *guest) FT_MUST_CHECK;
/* The next fd that is passed through the listening @door, close-on-exec, or -errno. Waits a second at most. */
int ft_fd_accept(int door, char guest[FT_NAME_MAX + 1]) FT_MUST_CHECK;

#endif
