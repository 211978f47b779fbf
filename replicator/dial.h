// SPDX-License-Identifier: GPL-3.0-or-later
/* dial.h - resolve a name and connect, within a deadline, and give up at once when told to. */
#ifndef FT_DIAL_H
#define FT_DIAL_H

#include "ft/base.h"

struct ft_dial {
	const char *host;               /* name or address */
	uint16_t port;
	const char *peer;               /* its name in messages */
	uint64_t deadline_ns;
	int stop_fd;                    /* readable: -ECANCELED */
	char who[128];                  /* out: "beta at 192.0.2.7:7800" */
	char why[512];                  /* out: one line with the remedy on failure */
};

/* Tries each address of the name. *@fd is nonblocking and the caller's. */
int ft_dial(struct ft_dial *d, int *fd) FT_MUST_CHECK;

/* "192.0.2.7:7800", "[2001:db8::7]:7800" */
struct sockaddr;
void ft_addr_format(const struct sockaddr *sa, char *buf, size_t size);

#endif
