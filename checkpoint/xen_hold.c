// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_hold.c - how a guard sees, lets run and stops a domain; see struct ft_hold. */
#include "checkpoint/xen_model.h"

#include <stdio.h>
#include <xen/sched.h>

#define LEAVING_NS (30 * FT_S_NS)       /* from a saver's end to that of the domain which it has saved, at most */
#define SAVER_LOOK_NS (200 * FT_MS_NS)
#define LATE_NS (5 * FT_S_NS)           /* a request that a dead ft-protect has made may be answered as late as that */

struct xen_hold {
	struct ft_hold hold;
	struct xen_dom dom;
	struct xen_suspend suspend;
	bool stopped;                   /* by us */
	uint64_t run_since_ns;          /* when run was first asked for; 0: it is not */
	uint64_t saver_ns;              /* when somebody was last seen to save or migrate it; 0: never */
	uint64_t look_ns;               /* when it was last looked for one */
};

static struct xen_hold *xen_of(struct ft_hold *hold)
{
	return ft_container_of(hold, struct xen_hold, hold);
}

static bool suspended(const struct xen_hold *h)
{
	xc_domaininfo_t info;

	return !xen_dom_info(&h->dom, &info) && xen_is_shut_down(&info, SHUTDOWN_suspend);
}

static bool xen_gone(struct ft_hold *hold)
{
	struct xen_hold *h = xen_of(hold);
	xc_domaininfo_t info;

	return xen_dom_info(&h->dom, &info) == -ESRCH;
}

static bool xen_paused(struct ft_hold *hold)
{
	return suspended(xen_of(hold));
}

/* Somebody else may have let it run since. */
static bool still_stopped(struct xen_hold *h)
{
	xc_domaininfo_t info;

	if (h->stopped && !xen_dom_info(&h->dom, &info))
		h->stopped = info.flags & XEN_DOMINF_paused;
	return h->stopped;
}

static bool xen_ask_paused(struct ft_hold *hold)
{
	struct xen_hold *h = xen_of(hold);

	return still_stopped(h) || suspended(h);
}

static int unpause(struct xen_hold *h, char *why, size_t size)
{
	if (still_stopped(h) && xc_domain_unpause(h->dom.xc, h->dom.domid)) {
		snprintf(why, size, "Xen does not unpause it: %s", strerror(errno));
		return -EIO;
	}
	h->stopped = false;
	return 0;
}

/* Was one seen within the time that a saved domain takes to end? Looks for it when the last look is @old_ns ago. */
static bool saver_seen(struct xen_hold *h, uint64_t old_ns)
{
	uint64_t now = ft_now_ns();

	if (now - h->look_ns >= old_ns) {
		h->look_ns = now;
		h->saver_ns = xen_saver_runs(h->dom.domid) ? now : h->saver_ns;
	}
	return h->saver_ns && now - h->saver_ns < LEAVING_NS;
}

/* The other end of a migration may take longer to answer, but then the domain stands still. */
static bool xen_leaving(struct ft_hold *hold)
{
	struct xen_hold *h = xen_of(hold);

	return saver_seen(h, SAVER_LOOK_NS) || (h->saver_ns && suspended(h));
}

static int xen_run(struct ft_hold *hold, char *why, size_t size)
{
	struct xen_hold *h = xen_of(hold);
	uint64_t now = ft_now_ns();
	int rc = unpause(h, why, size);

	if (rc)
		return rc;
	if (!h->run_since_ns)
		h->run_since_ns = now;
	if (suspended(h)) {
		if (saver_seen(h, 0)) {         /* it stands still for somebody who reads its memory */
			snprintf(why, size, "it is being saved or migrated");
			return -EAGAIN;
		}
		if (xen_has_model(&h->dom))
			rc = xen_model_wake(&h->dom, why, size);
		if (rc)
			return rc;
		rc = xen_suspend_end(&h->suspend);
		if (rc == -ECANCELED)           /* it runs already */
			rc = 0;
		if (rc)
			snprintf(why, size, "Xen does not resume it: %s", strerror(-rc));
	} else if (xen_suspend_take_back(&h->suspend) && now - h->run_since_ns < LATE_NS && !xen_gone(hold)) {
		/* What ft-protect asked for last has been taken by the guest, or the node would still say so. */
		snprintf(why, size, "it may suspend yet");
		return -EAGAIN;
	}
	if (!rc)
		h->run_since_ns = 0;
	return rc;
}

static int xen_stop(struct ft_hold *hold)
{
	struct xen_hold *h = xen_of(hold);

	if (still_stopped(h))
		return 0;
	if (xc_domain_pause(h->dom.xc, h->dom.domid))
		return -errno;
	h->stopped = true;
	return 0;
}

static void xen_hold_close(struct ft_hold *hold)
{
	struct xen_hold *h = xen_of(hold);

	xen_dom_close(&h->dom);
	free(h);
}

static const struct ft_hold_ops xen_hold_ops = {
	.gone = xen_gone,
	.paused = xen_paused,
	.ask_paused = xen_ask_paused,
	.run = xen_run,
	.stop = xen_stop,
	.leaving = xen_leaving,
	.close = xen_hold_close,
};

int ft_xen_hold(const struct ft_attach *at, struct ft_hold **out)
{
	struct xen_hold *h = calloc(1, sizeof(*h));
	int rc;

	if (!h)
		return -ENOMEM;
	h->hold.ops = &xen_hold_ops;
	rc = xen_dom_open(&h->dom, at->guest, at->domid);
	h->suspend = (struct xen_suspend){ .dom = &h->dom, .apart = true };
	if (rc) {
		xen_hold_close(&h->hold);
		return rc;
	}
	h->hold.settle_ns = XEN_SUSPEND_NS;
	h->hold.fd = -1;                /* xenstore would tell of each epoch's suspend, too */
	*out = &h->hold;
	return 0;
}
