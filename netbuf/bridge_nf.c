// SPDX-License-Identifier: GPL-3.0-or-later
/* bridge_nf.c - see bridge_nf.h. */
#include "netbuf/bridge_nf.h"

struct lookup {
	uint32_t bridge;
	struct ft_gate_port port;
	bool found;
};

static void look(void *ctx, const struct ft_gate_port *p)
{
	struct lookup *l = ctx;

	if (p->bridge == l->bridge && !l->found)
		l->port = *p;
	l->found |= p->bridge == l->bridge;
}

int ft_bridge_nf_find(struct mnl_socket *rtnl, uint32_t bridge, struct ft_gate_port *port)
{
	struct lookup l = { .bridge = bridge };
	int rc = ft_gate_ports(NULL, look, &l);
	struct ft_rtnl_link now;

	if (!rc && !l.found)
		rc = ft_rtnl_link_by_index(rtnl, bridge, &now);
	if (rc)
		return rc;
	port->bridge = bridge;
	port->call_ip = l.found ? l.port.call_ip : now.nf_call_ip;
	port->call_ip6 = l.found ? l.port.call_ip6 : now.nf_call_ip6;
	return 0;
}

void ft_bridge_nf_restore(struct mnl_socket *rtnl, const struct ft_gate_port *port, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		struct lookup l = { .bridge = port[i].bridge };
		int rc;

		if (!l.bridge || ft_gate_ports(NULL, look, &l) || l.found)
			continue;       /* another guest's packets need it */
		rc = ft_rtnl_bridge_nf_call(rtnl, l.bridge, port[i].call_ip, port[i].call_ip6);
		if (rc && rc != -ENODEV)
			ft_warn("br_netfilter stays on for bridge %u: %s", l.bridge, strerror(-rc));
	}
}
