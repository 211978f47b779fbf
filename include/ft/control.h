// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * control.h - the local control socket that ft-ctl speaks to: one JSON object a line, each way.
 *
 * ft-protect serves RUN_DIR/guests/NAME/primary.sock, ftd's child RUN_DIR/guests/NAME/backup.sock; both 0600.
 * Request {"cmd": "status"|"failover"|"unprotect"|"verify"|"drill", ...}; the answer is one object with
 * "ok": true|false and, when false, "error": one clear line; it may come later (drill).
 */
#ifndef FT_CONTROL_H
#define FT_CONTROL_H

#include "ft/base.h"
#include <jansson.h>

struct ev_loop;
struct ft_control;
struct ft_control_req;                  /* one pending request */

struct ft_control_ops {
	/* Answer now or later with ft_control_reply, exactly once. @args is borrowed. */
	void (*request)(void *ctx, struct ft_control_req *req, const char *cmd, const json_t *args);
	void *ctx;
};

/*
 * Serve @path, made with its directory; @ops is copied. -EADDRINUSE: another live process serves it; what a dead one left is
 * replaced.
 */
int ft_control_new(struct ev_loop *loop, const char *path, const struct ft_control_ops *ops, struct ft_control **out) FT_MUST_CHECK;
/*
 * Unlinks the socket. An answer just given still goes out; who waits for one gets an error, and replying to
 * that request later only frees it. May be called inside the request callback.
 */
void ft_control_free(struct ft_control *c);
void ft_control_reply(struct ft_control_req *req, json_t *answer);      /* steals @answer; sets "ok" unless it is there */
void ft_control_fail(struct ft_control_req *req, const char *fmt, ...) FT_PRINTF(2, 3);

/* One line of a client: 0 and *args (the caller's) with its *cmd (inside *args), or -EPROTO and why. */
int ft_control_parse(const char *line, size_t len, json_t **args, const char **cmd, const char **why) FT_MUST_CHECK;

/*
 * Client side, for ft-ctl: one request (borrowed), one answer (the caller's). -ENOENT and -ECONNREFUSED: nobody
 * serves @path; -ETIMEDOUT; -ECONNRESET: closed without an answer; -EPROTO: the answer makes no sense.
 */
int ft_control_call(const char *path, const json_t *request, unsigned timeout_ms, json_t **answer) FT_MUST_CHECK;

#endif
