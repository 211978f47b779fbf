// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_suspend.c - asking a domain to suspend, and telling it that it was not moved. See checkpoint/xen.h.
 *
 * A guest with Xen's front ends must know of each epoch: one that is started elsewhere connects anew to xenstore, event
 * channels and back ends, and does so only when its own call to suspend returns. So xenstore's control/shutdown asks
 * it, as xl does, and the call returns 1 here (nothing has changed) and 0 on the host that takes over.
 */
#include "checkpoint/xen.h"
#include "ft/conf.h"

#include <poll.h>
#include <stdio.h>
#include <unistd.h>
#include <xen/hvm/params.h>
#include <xen/sched.h>
#include <xenguest.h>

#define ACK_NS (10 * FT_S_NS)           /* until the guest has taken the request */
#define TURN_MS 50
#define LOCK_NS FT_S_NS
#define STORE_S 2                       /* of a word apart */

static void control_path(const struct xen_suspend *s, char path[64])
{
	snprintf(path, 64, "/local/domain/%u/control/shutdown", s->dom->domid);
}

/*
 * Make @to of a node that says @from, or do nothing; nobody's word in between is overwritten. -EBUSY: it says something
 * else.
 */
static int swap_request(const struct xen_suspend *s, struct xs_handle *xs, const char *from, const char *to)
{
	char path[64], *now;
	unsigned len;
	int rc;

	control_path(s, path);
	do {
		xs_transaction_t t = xs_transaction_start(xs);

		if (t == XBT_NULL)
			return -errno;
		now = xs_read(xs, t, path, &len);
		rc = strcmp(now ? now : "", from) ? -EBUSY : xs_write(xs, t, path, to, (unsigned)strlen(to)) ? 0 : -errno;
		free(now);
		if (!xs_transaction_end(xs, t, rc != 0) && !rc)
			rc = -errno;
	} while (rc == -EAGAIN);
	return rc;
}

/* -EBUSY: somebody asked it to power off, or is about to save it: not now. */
static int request(struct xen_suspend *s)
{
	int rc = swap_request(s, s->dom->xs, "", "suspend");

	if (rc && rc != -EBUSY)
		ft_err("%s: xenstore cannot be told that it is to suspend: %s", s->dom->guest, strerror(-rc));
	return rc;
}

/* --- words with xenstore that a guard says, too, who does not wait for one that hangs --- */

struct word {
	const struct xen_suspend *s;
	int (*say)(const struct xen_suspend *s, struct xs_handle *xs);
};

static int say_in_child(void *ctx)
{
	const struct word *w = ctx;
	struct xs_handle *xs = xs_open(0);

	return xs ? w->say(w->s, xs) : -errno;
}

static int say(struct word w)
{
	return w.s->apart ? xen_apart(STORE_S, say_in_child, &w) : w.say(w.s, w.s->dom->xs);
}

static int take_back(const struct xen_suspend *s, struct xs_handle *xs)
{
	return swap_request(s, xs, "suspend", "");
}

int xen_suspend_take_back(struct xen_suspend *s)
{
	return say((struct word){ s, take_back });
}

static int tell_resumed(const struct xen_suspend *s, struct xs_handle *xs)
{
	return xs_resume_domain(xs, s->dom->domid) ? 0 : -errno;
}

/* --- asking the domain to suspend, and letting it run --- */

static int look(const struct xen_suspend *s, bool *suspended)
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(s->dom, &info);

	*suspended = false;
	if (rc)
		return rc;
	if (!(info.flags & XEN_DOMINF_shutdown))
		return 0;
	*suspended = xen_is_shut_down(&info, SHUTDOWN_suspend);
	return *suspended ? 0 : -ESHUTDOWN;
}

/* Events are hints only: each makes us look. */
static int wait_suspended(struct xen_suspend *s, uint64_t until)
{
	struct pollfd p = { .fd = xen_dom_fd(s->dom), .events = POLLIN };
	bool suspended;
	int rc;

	for (;;) {
		rc = look(s, &suspended);
		if (rc || suspended)
			return rc;
		if (ft_now_ns() >= until)
			return -ETIMEDOUT;
		if (poll(&p, 1, TURN_MS) > 0)
			xen_dom_drain(s->dom);
		ft_vm_busy(s->vm);
	}
}

/*
 * It was asked once more when it had not answered the request before for long: the one that it has answered now may be
 * that, and then it would suspend again for the other.
 */
static void take_back_second(struct xen_suspend *s)
{
	if (s->late)
		ft_ignore(xen_suspend_take_back(s));    /* -EBUSY: it has taken this one, and there is no other */
	s->late = false;
}

static int begin(struct xen_suspend *s)
{
	uint64_t start = ft_now_ns();
	int rc;

	rc = wait_suspended(s, start + ACK_NS);
	if (!rc)
		take_back_second(s);
	if (rc != -ETIMEDOUT)
		return rc;
	if (!xen_suspend_take_back(s)) {        /* else it has taken it, at the last moment, and will suspend */
		ft_err("%s: the guest does not answer the request to suspend: has it a Linux with Xen's PV drivers, and does it run?",
		       s->dom->guest);
		return rc;
	}
	rc = wait_suspended(s, start + XEN_SUSPEND_NS);
	s->late = rc == -ETIMEDOUT;     /* a Linux gives up after 20 s, and then it has to be asked once more */
	if (rc == -ETIMEDOUT)
		ft_err("%s: the guest took the request to suspend and does not suspend: look at its console",
		       s->dom->guest);
	return rc;
}

bool xen_has_drivers(const struct xen_dom *d)
{
	uint64_t irq = 0;

	return !xc_hvm_param_get(d->xc, d->domid, HVM_PARAM_CALLBACK_IRQ, &irq) && irq;
}

/*
 * Not xc_domain_pause: this waits until its device model has answered what a vCPU has asked it, or else an instruction
 * would be half done in what is saved.
 */
static int halt(struct xen_suspend *s)
{
	int rc = xc_domain_shutdown(s->dom->xc, (int)s->dom->domid, SHUTDOWN_suspend) ? -errno : 0;

	if (!rc)
		rc = wait_suspended(s, ft_now_ns() + ACK_NS);
	s->late = rc == -ETIMEDOUT;
	if (rc && rc != -ESRCH && rc != -ESHUTDOWN)
		ft_err("%s: Xen does not bring it to a halt: %s", s->dom->guest, strerror(-rc));
	return rc;
}

int xen_suspend_begin(struct xen_suspend *s)
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(s->dom, &info);

	if (!rc && info.flags & XEN_DOMINF_shutdown)
		rc = xen_is_shut_down(&info, SHUTDOWN_suspend) ? -EBUSY : -ESHUTDOWN;
	if (!rc && info.flags & XEN_DOMINF_paused)
		rc = -EBUSY;
	if (!rc && !xen_has_drivers(s->dom))
		return halt(s);
	if (!rc)
		rc = request(s);
	return rc ? rc : begin(s);
}

void xen_suspend_late(struct xen_suspend *s)
{
	if (s->late && !wait_suspended(s, ft_now_ns() + ACK_NS))
		ft_ignore(xen_suspend_end(s));          /* logged */
	s->late = false;
}

/*
 * Let run by two at once, ft-protect and its guard, a domain would die: xc_domain_resume reads a vCPU's registers and
 * writes them back, and meanwhile the other has let it run. The kernel ends this lock with the process that holds it.
 */
static int lock_resume(const struct xen_suspend *s, int *fd)
{
	uint64_t end = ft_now_ns() + LOCK_NS;
	char path[FT_PATH_MAX];
	int rc = ft_run_path(path, sizeof(path), s->dom->guest, "resume.lock");

	if (!rc)
		rc = ft_lock_file(path, false, fd);
	while (rc == -EBUSY && ft_now_ns() < end) {
		poll(NULL, 0, 1);
		rc = ft_lock_file(path, false, fd);
	}
	if (rc)
		ft_err("%s: cannot be resumed: %s: %s", s->dom->guest, path,
		       rc == -EBUSY ? "another process is about to, and does not" : strerror(-rc));
	return rc;
}

static int resume(const struct xen_suspend *s)
{
	bool suspended;
	int rc;

	rc = look(s, &suspended);
	if (rc)
		return rc == -ESHUTDOWN ? -ESRCH : rc;
	if (!suspended)
		return -ECANCELED;
	if (!xc_domain_resume(s->dom->xc, s->dom->domid, 1))
		return 0;
	rc = errno ? -errno : -EIO;
	if (look(s, &suspended))
		return -ESRCH;
	ft_err("%s: cannot be resumed: %s", s->dom->guest, strerror(-rc));
	return rc;
}

int xen_suspend_end(struct xen_suspend *s)
{
	int fd, rc;

	s->late = false;
	rc = lock_resume(s, &fd);
	if (rc)
		return rc;
	rc = resume(s);
	close(fd);
	if (rc)
		return rc;
	rc = say((struct word){ s, tell_resumed });
	if (rc)
		ft_warn("%s: xenstored was not told that the domain goes on: %s", s->dom->guest, strerror(-rc));
	return 0;
}
