// SPDX-License-Identifier: GPL-3.0-or-later
/* check.c - what ft/netbuf.h offers without an object: obstacles, leftovers. */
#include "ft/netbuf.h"

#include "netbuf/bridge_nf.h"
#include <net/if.h>
#include <stdio.h>

static void check_kernel(void (*obstacle)(void *ctx, const char *line), void *ctx, int *found)
{
	struct ft_gate_caps caps;
	char line[256];
	int rc = ft_gate_probe(&caps);

	if (!rc && !ft_gate_lacks(&caps))
		return;
	*found = -EOPNOTSUPP;
	if (rc)
		snprintf(line, sizeof(line), "nf_tables cannot be used: %s (root and a kernel with nf_tables for bridges are needed)",
			 strerror(-rc));
	else
		snprintf(line, sizeof(line), "this kernel cannot hold packets: %s", ft_gate_lacks(&caps));
	obstacle(ctx, line);
}

static void check_tap(struct mnl_socket *nl, const char *tap, const char *bridge,
		      void (*obstacle)(void *ctx, const char *line), void *ctx, int *found)
{
	struct ft_rtnl_link port, br;
	char line[256];

	if (!ft_rtnl_port(nl, tap, bridge, &port, &br, line, sizeof(line)))
		return;
	*found = -EOPNOTSUPP;
	obstacle(ctx, line);
}

int ft_netbuf_check(const struct ft_netbuf_config *cfg, void (*obstacle)(void *ctx, const char *line), void *ctx)
{
	struct mnl_socket *nl;
	int found = 0;
	int rc = ft_rtnl_open(&nl);

	if (rc)
		return rc;
	check_kernel(obstacle, ctx, &found);
	for (unsigned i = 0; i < cfg->nr_taps; i++)
		check_tap(nl, cfg->tap[i], cfg->bridge[i], obstacle, ctx, &found);
	mnl_socket_close(nl);
	return found;
}

int ft_netbuf_check_bridge(const char *bridge, char *why, size_t size)
{
	struct ft_rtnl_link br;
	struct mnl_socket *nl;
	int rc = ft_rtnl_open(&nl);

	if (rc) {
		snprintf(why, size, "interfaces cannot be listed: %s", strerror(-rc));
		return rc;
	}
	rc = ft_rtnl_bridge(nl, bridge, &br, why, size);
	mnl_socket_close(nl);
	return rc;
}

/* --- leftovers --- */

struct ports {
	struct ft_gate_port port[FT_TAPS_MAX];
	unsigned nr;
};

static void note_port(void *ctx, const struct ft_gate_port *p)
{
	struct ports *all = ctx;

	for (unsigned i = 0; i < all->nr; i++)
		if (all->port[i].tap == p->tap)
			return;         /* each table of the guest names it */
	if (all->nr < FT_TAPS_MAX)
		all->port[all->nr++] = *p;
}

int ft_netbuf_purge(const char *guest)
{
	struct ports all = { .nr = 0 };
	struct mnl_socket *rtnl;
	int rc = ft_rtnl_open(&rtnl);

	if (rc)
		return rc;
	rc = ft_gate_ports(guest, note_port, &all);
	if (!rc)
		rc = ft_gate_purge(guest);
	if (!rc)
		ft_bridge_nf_restore(rtnl, all.port, all.nr);
	mnl_socket_close(rtnl);
	return rc;
}

int ft_netbuf_purge_dead(const char *guest)
{
	struct ports all = { .nr = 0 };
	char name[IF_NAMESIZE];
	int rc;

	if (!ft_gate_present(guest))
		return 0;
	rc = ft_gate_ports(guest, note_port, &all);
	for (unsigned i = 0; i < all.nr && !rc; i++) {
		if (!if_indextoname(all.port[i].tap, name))
			continue;
		ft_err("%s: its interface %s of earlier is still there, and the rules that keep it shut stay: end what uses it",
		       guest, name);
		rc = -EBUSY;
	}
	return rc ? rc : ft_netbuf_purge(guest);
}

bool ft_netbuf_present(const char *guest)
{
	return ft_gate_present(guest);
}
