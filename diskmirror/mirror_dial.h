// SPDX-License-Identifier: GPL-3.0-or-later
/* mirror_dial.h - talking to an export's control socket (ft/export.h) with a deadline: the first words, and single commands. */
#ifndef FT_MIRROR_DIAL_H
#define FT_MIRROR_DIAL_H

#include "ft/base.h"

#define FT_DIAL_TEXT_MAX 512u           /* of FAILED; also the longest answer these calls take */

/* A socket that does not block, connected. -ENOENT, -ECONNREFUSED: nobody is there. */
int ft_dial_export(const char *path, uint64_t deadline_ns, int *fd) FT_MUST_CHECK;
/* @pass: a descriptor that goes along, or -1. */
int ft_dial_send(int fd, uint32_t type, const void *body, size_t len, int pass, uint64_t deadline_ns) FT_MUST_CHECK;
/*
 * The next message, and not a byte beyond it. *len is the room in @body, then its length. -EPROTO: longer; -EPIPE: closed;
 * -ETIMEDOUT.
 */
int ft_dial_recv(int fd, uint32_t *type, void *body, size_t *len, uint64_t deadline_ns) FT_MUST_CHECK;
/*
 * The answer: of @type with @len bytes of body, else an error. FAILED is -EREMOTEIO, with its text as a string in @body [>
 * FT_DIAL_TEXT_MAX].
 */
int ft_dial_answer(int fd, uint32_t type, void *body, size_t len, uint64_t deadline_ns) FT_MUST_CHECK;

#endif
