// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_hold.c - how a guard sees, lets run and stops a QEMU guest; see struct ft_hold. */
#include "checkpoint/qemu.h"
#include "ft/hv.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define QMP_MS 1000
#define QMP_START_MS 5000

struct qemu_hold {
	struct ft_hold hold;            /* fd: a pidfd */
	char socket[FT_SPEC_PATH_MAX];
	struct ft_qmp *qmp;             /* NULL: lost, opened again when needed */
	bool paused;                    /* QEMU says so */
};

static struct qemu_hold *qemu_of(struct ft_hold *hold)
{
	return ft_container_of(hold, struct qemu_hold, hold);
}

static int call(struct qemu_hold *h, const char *command, json_t **ret)
{
	int rc = 0;

	if (ret)
		*ret = NULL;
	if (!h->qmp)
		rc = ft_qmp_open(h->socket, QMP_MS, &h->qmp);
	if (!rc)
		rc = ft_qmp_call(h->qmp, command, NULL, -1, QMP_MS, ret);
	if (rc && rc != -EREMOTEIO) {
		ft_qmp_close(h->qmp);
		h->qmp = NULL;
	}
	return rc;
}

/* Two events an epoch come in: they must be read, and the last one tells. */
static bool qemu_paused(struct ft_hold *hold)
{
	struct qemu_hold *h = qemu_of(hold);
	json_t *event;

	while (h->qmp && (event = ft_qmp_event(h->qmp))) {
		const char *name = json_string_value(json_object_get(event, "event"));

		if (name && !strcmp(name, "STOP"))
			h->paused = true;
		else if (name && !strcmp(name, "RESUME"))
			h->paused = false;
		json_decref(event);
	}
	return h->paused;
}

static bool qemu_ask_paused(struct ft_hold *hold)
{
	struct qemu_hold *h = qemu_of(hold);
	const char *status;
	json_t *ret;

	qemu_paused(hold);
	if (call(h, "query-status", &ret))
		return h->paused;
	status = json_string_value(json_object_get(ret, "status"));
	h->paused = status && !strcmp(status, "paused");
	json_decref(ret);
	return h->paused;
}

static int qemu_run(struct ft_hold *hold, char *why, size_t size)
{
	struct qemu_hold *h = qemu_of(hold);
	int rc = call(h, "cont", NULL);

	if (rc)
		snprintf(why, size, "QMP cont: %s", h->qmp ? ft_qmp_error(h->qmp) : strerror(-rc));
	qemu_paused(hold);
	return rc;
}

static int qemu_stop(struct ft_hold *hold)
{
	return call(qemu_of(hold), "stop", NULL);
}

static bool qemu_gone(struct ft_hold *hold)
{
	struct pollfd p = { .fd = hold->fd, .events = POLLIN };

	return poll(&p, 1, 0) > 0;
}

static void qemu_hold_close(struct ft_hold *hold)
{
	struct qemu_hold *h = qemu_of(hold);

	ft_qmp_close(h->qmp);
	if (hold->fd >= 0)
		close(hold->fd);
	free(h);
}

static const struct ft_hold_ops qemu_hold_ops = {
	.gone = qemu_gone,
	.paused = qemu_paused,
	.ask_paused = qemu_ask_paused,
	.run = qemu_run,
	.stop = qemu_stop,
	.close = qemu_hold_close,
};

int ft_qemu_hold(const struct ft_attach *at, struct ft_hold **out)
{
	struct qemu_hold *h = calloc(1, sizeof(*h));
	int rc;

	if (!h)
		return -ENOMEM;
	h->hold.ops = &qemu_hold_ops;
	strcpy(h->socket, at->qmp_guard);
	h->hold.settle_ns = FT_S_NS;
	h->hold.fd = ft_attach_pidfd(at);
	rc = h->hold.fd < 0 ? h->hold.fd : ft_qmp_open(h->socket, QMP_START_MS, &h->qmp);
	if (rc) {
		qemu_hold_close(&h->hold);
		return rc;
	}
	(void)qemu_ask_paused(&h->hold);
	*out = &h->hold;
	return 0;
}
