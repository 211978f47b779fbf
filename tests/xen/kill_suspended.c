// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * kill_suspended.c - kill a process at an instant at which a domain is suspended.
 *
 *	kill_suspended DOMID PID DELAY_US
 *
 * Waits until it sees the domain suspended, DELAY_US longer, kills PID, and prints whether the domain was suspended
 * still. Runs before anybody else: on a host of one processor it would wait until PID has done its work.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <xenctrl.h>
#include <xen/sched.h>

static int suspended(xc_interface *xc, uint32_t domid)
{
	xc_domaininfo_t info;

	if (xc_domain_getinfolist(xc, domid, 1, &info) != 1 || info.domain != domid) {
		fprintf(stderr, "kill_suspended: there is no domain %u\n", domid);
		exit(2);
	}
	return info.flags & XEN_DOMINF_shutdown &&
	       (info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask) == SHUTDOWN_suspend;
}

int main(int argc, char **argv)
{
	const struct sched_param above = { .sched_priority = 1 };
	struct timespec ms = { 0, 1000000 }, delay = { 0, argc == 4 ? atol(argv[3]) * 1000 : 0 };
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	uint32_t domid = argc == 4 ? (uint32_t)atoi(argv[1]) : 0;

	if (argc != 4 || !xc) {
		fprintf(stderr,
			argc != 4 ? "usage: kill_suspended DOMID PID DELAY_US\n" : "kill_suspended: no Xen here\n");
		return 2;
	}
	if (sched_setscheduler(0, SCHED_FIFO, &above))
		perror("kill_suspended: priority");
	for (int i = 0; !suspended(xc, domid); i++) {
		if (i == 30000)
			return 1;
		nanosleep(&ms, NULL);
	}
	nanosleep(&delay, NULL);
	if (kill((pid_t)atoi(argv[2]), SIGKILL))
		perror("kill_suspended: kill");
	printf("%s\n", suspended(xc, domid) ? "suspended" : "running");
	return 0;
}
