// SPDX-License-Identifier: GPL-3.0-or-later
/* fdpass.h - hand a connected socket to another process over a unix socket. */
#ifndef FT_REPLICATOR_FDPASS_H
#define FT_REPLICATOR_FDPASS_H

#include "ft/base.h"

/* Send one byte and @fd; the caller keeps its copy. */
int ft_fd_send(int sock, int fd) FT_MUST_CHECK;
/* The fd that came, close-on-exec, or -errno (-EPIPE: the other end is gone). */
int ft_fd_receive(int sock) FT_MUST_CHECK;

#endif
