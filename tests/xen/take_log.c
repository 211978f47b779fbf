// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * take_log.c - Xen's log of the pages that a domain writes, as the saver of a migration takes it.
 *
 *	take_log DOMID          off and on again, whoever had it
 *	take_log DOMID is-on    status 0 if it is on; it is, afterwards
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenctrl.h>

static int control(xc_interface *xc, uint32_t domid, unsigned op)
{
	return xc_shadow_control(xc, domid, op, NULL, 0) < 0 ? errno : 0;
}

int main(int argc, char **argv)
{
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	uint32_t domid = argc > 1 ? (uint32_t)atoi(argv[1]) : 0;
	int rc;

	if (argc < 2 || !xc) {
		fprintf(stderr, argc < 2 ? "usage: take_log DOMID [is-on]\n" : "take_log: no Xen here\n");
		return 2;
	}
	if (argc == 2)
		(void)control(xc, domid, XEN_DOMCTL_SHADOW_OP_OFF);
	rc = control(xc, domid, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
	if (rc && rc != EINVAL) {
		fprintf(stderr, "take_log: %s\n", strerror(rc));
		return 2;
	}
	return argc == 2 ? rc != 0 : rc != EINVAL;
}
