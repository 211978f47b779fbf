// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * suspend_watch.c - when a domain is asked to suspend, is suspended, and runs again; whoever does it.
 *
 *	suspend_watch DOMID SECONDS
 *
 * Prints "ASKED SUSPENDED RESUMED" in ns of CLOCK_MONOTONIC for each time. It looks each two milliseconds, above everybody
 * else's priority: with one processor the one who works would else hide what he does.
 */
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <xenctrl.h>
#include <xenstore.h>
#include <xen/sched.h>

#define LOOK_NS 2000000

static unsigned long long now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned long long)t.tv_sec * 1000000000u + (unsigned long long)t.tv_nsec;
}

static int is_suspended(xc_interface *xc, uint32_t domid)
{
	xc_domaininfo_t info;

	return xc_domain_getinfolist(xc, domid, 1, &info) == 1 && info.domain == domid && info.flags & XEN_DOMINF_shutdown &&
	       (info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask) == SHUTDOWN_suspend;
}

/* Somebody wrote "suspend", or the guest has taken it. */
static int was_asked(struct xs_handle *xs, const char *path)
{
	char **event, *text;
	unsigned len;
	int asked = 0;

	while ((event = xs_check_watch(xs))) {
		free(event);
		text = xs_read(xs, XBT_NULL, path, &len);
		asked |= text && !strcmp(text, "suspend");
		free(text);
	}
	return asked;
}

static void watch(xc_interface *xc, struct xs_handle *xs, uint32_t domid, const char *path, unsigned long long until)
{
	struct timespec turn = { 0, LOOK_NS };
	unsigned long long asked = 0, suspended = 0, now;

	for (now = now_ns(); now < until; now = now_ns()) {
		int is = is_suspended(xc, domid);

		if (was_asked(xs, path))
			asked = now;
		if (is && !suspended)
			suspended = now;
		if (!is && suspended) {
			printf("%llu %llu %llu\n", asked, suspended, now);
			asked = suspended = 0;
		}
		nanosleep(&turn, NULL);
	}
}

int main(int argc, char **argv)
{
	const struct sched_param above = { .sched_priority = 50 };
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	struct xs_handle *xs = xs_open(0);
	char path[64];

	if (argc != 3 || !xc || !xs) {
		fprintf(stderr, "usage, on a Xen host: suspend_watch DOMID SECONDS\n");
		return 2;
	}
	snprintf(path, sizeof(path), "/local/domain/%s/control/shutdown", argv[1]);
	if (!xs_watch(xs, path, "asked"))
		return 1;
	(void)mlockall(MCL_CURRENT | MCL_FUTURE);
	if (sched_setscheduler(0, SCHED_FIFO, &above))
		perror("suspend_watch: priority");
	watch(xc, xs, (uint32_t)atoi(argv[1]), path, now_ns() + strtoull(argv[2], NULL, 10) * 1000000000u);
	return 0;
}
