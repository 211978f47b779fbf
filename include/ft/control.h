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

int ft_control_new(struct ev_loop *loop, const char *path, const struct ft_control_ops *ops, struct ft_control **out) FT_MUST_CHECK;
void ft_control_free(struct ft_control *c);     /* unlinks; pending requests get an error */
void ft_control_reply(struct ft_control_req *req, json_t *answer);      /* steals @answer; client gone: freed */
void ft_control_fail(struct ft_control_req *req, const char *fmt, ...) FT_PRINTF(2, 3);

/* Client side, for ft-ctl: one request, one answer. -ETIMEDOUT, -ECONNREFUSED. */
int ft_control_call(const char *path, json_t *request, unsigned timeout_ms, json_t **answer) FT_MUST_CHECK;

#endif
