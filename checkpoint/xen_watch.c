// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_watch.c - a descriptor that becomes readable when a domain is gone, and not before: xenstore tells of the end of
 * any domain, so a thread of its own looks which one it was. See checkpoint/xen_watch.h.
 */
#include "checkpoint/xen_watch.h"
#include "checkpoint/xen.h"
#include "ft/thread.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct xen_watch {
	struct xen_dom dom;
	pthread_t thread;
	bool started;
	int gone_fd, stop_fd, model_fd;
};

static bool gone(struct xen_watch *w)
{
	xc_domaininfo_t info;

	xen_dom_drain(&w->dom);
	return xen_dom_info(&w->dom, &info) == -ESRCH;
}

static void *watch(void *arg)
{
	struct xen_watch *w = arg;
	struct pollfd p[] = { { .fd = xen_dom_fd(&w->dom), .events = POLLIN },
			      { .fd = w->stop_fd, .events = POLLIN },
			      { .fd = w->model_fd, .events = POLLIN } };

	while (!p[1].revents) {
		if (p[2].revents || gone(w)) {
			eventfd_write(w->gone_fd, 1);
			break;
		}
		(void)poll(p, 3, -1);
	}
	return NULL;
}

static int start(struct xen_watch *w, const char *guest, uint32_t domid)
{
	int rc = xen_dom_open(&w->dom, guest, domid);

	if (rc)
		return rc;
	w->gone_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->gone_fd < 0 || w->stop_fd < 0)
		return -errno;
	rc = xen_dom_watch(&w->dom);
	if (rc)
		return rc;
	rc = ft_thread_start(&w->thread, "ft-xen-watch", watch, w);
	w->started = !rc;
	return rc;
}

int xen_watch_new(const char *guest, uint32_t domid, int model_fd, struct xen_watch **out)
{
	struct xen_watch *w = calloc(1, sizeof(*w));
	int rc;

	*out = NULL;
	if (!w) {
		if (model_fd >= 0)
			close(model_fd);
		return -ENOMEM;
	}
	w->model_fd = model_fd;
	w->gone_fd = w->stop_fd = -1;
	rc = start(w, guest, domid);
	if (rc)
		xen_watch_free(w);
	else
		*out = w;
	return rc;
}

int xen_watch_fd(const struct xen_watch *w)
{
	return w->gone_fd;
}

void xen_watch_free(struct xen_watch *w)
{
	if (!w)
		return;
	if (w->started) {
		eventfd_write(w->stop_fd, 1);
		pthread_join(w->thread, NULL);
	}
	if (w->model_fd >= 0)
		close(w->model_fd);
	if (w->gone_fd >= 0)
		close(w->gone_fd);
	if (w->stop_fd >= 0)
		close(w->stop_fd);
	xen_dom_close(&w->dom);
	free(w);
}
