// SPDX-License-Identifier: GPL-3.0-or-later
/* check.c - what ft/netbuf.h offers without an object: obstacles, leftovers. */
#include "ft/netbuf.h"

#include "netbuf/gate.h"
#include "netbuf/rtnl.h"
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
	char line[256] = "", what[64] = "";
	struct ft_rtnl_link t, b = { 0 };
	int rc = ft_rtnl_link(nl, tap, &t);

	if (rc)
		snprintf(line, sizeof(line), "interface %s: %s", tap, strerror(-rc));
	else if (ft_rtnl_link(nl, bridge, &b) || !b.is_bridge || t.master != b.ifindex)
		snprintf(line, sizeof(line), "interface %s is not a port of bridge %s", tap, bridge);
	else if (ft_rtnl_diversion(nl, t.ifindex, what, sizeof(what)))
		snprintf(line, sizeof(line), "%s on interface %s would take frames past the rules; remove it", what, tap);
	if (!*line)
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

int ft_netbuf_purge(const char *guest)
{
	return ft_gate_purge(guest);
}

bool ft_netbuf_present(const char *guest)
{
	return ft_gate_present(guest);
}
