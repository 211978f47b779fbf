// SPDX-License-Identifier: GPL-3.0-or-later
/* rtnl.c - see rtnl.h. */
#include "netbuf/rtnl.h"

#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <stdio.h>

int ft_rtnl_open(struct mnl_socket **out)
{
	return ft_nl_open(NETLINK_ROUTE, 0, out);
}

static struct nlmsghdr *request(char *buf, uint16_t type, uint16_t flags)
{
	static _Atomic uint32_t seq;
	struct nlmsghdr *m = mnl_nlmsg_put_header(buf);

	m->nlmsg_type = type;
	m->nlmsg_flags = NLM_F_REQUEST | flags;
	m->nlmsg_seq = ++seq;
	return m;
}

/* --- one link --- */

static void read_bridge(const struct nlattr *info, struct ft_rtnl_link *out)
{
	const struct nlattr *a, *b;

	mnl_attr_for_each_nested(a, info) {
		if (mnl_attr_get_type(a) == IFLA_INFO_KIND)
			out->is_bridge = !strncmp(mnl_attr_get_str(a), "bridge", mnl_attr_get_payload_len(a));
		if (mnl_attr_get_type(a) != IFLA_INFO_DATA || !out->is_bridge)
			continue;
		mnl_attr_for_each_nested(b, a) {
			if (mnl_attr_get_type(b) == IFLA_BR_STP_STATE)
				out->stp = mnl_attr_get_u32(b) != 0;
			if (mnl_attr_get_type(b) == IFLA_BR_NF_CALL_IPTABLES)
				out->nf_call_ip = mnl_attr_get_u8(b);
			if (mnl_attr_get_type(b) == IFLA_BR_NF_CALL_IP6TABLES)
				out->nf_call_ip6 = mnl_attr_get_u8(b);
		}
	}
}

static int read_link(const struct nlmsghdr *nlh, void *ctx)
{
	const struct ifinfomsg *ifi = mnl_nlmsg_get_payload(nlh);
	struct ft_rtnl_link *out = ctx;
	const struct nlattr *a;

	if (nlh->nlmsg_type != RTM_NEWLINK)
		return MNL_CB_OK;
	out->ifindex = (uint32_t)ifi->ifi_index;
	mnl_attr_for_each(a, nlh, sizeof(*ifi)) {
		if (mnl_attr_get_type(a) == IFLA_IFNAME)
			snprintf(out->name, sizeof(out->name), "%s", mnl_attr_get_str(a));
		if (mnl_attr_get_type(a) == IFLA_MASTER)
			out->master = mnl_attr_get_u32(a);
		if (mnl_attr_get_type(a) == IFLA_LINKINFO)
			read_bridge(a, out);
		if (mnl_attr_get_type(a) == IFLA_STATS64)       /* struct rtnl_link_stats64 begins with it */
			memcpy(&out->rx_packets, mnl_attr_get_payload(a), sizeof(out->rx_packets));
	}
	return MNL_CB_OK;
}

static int get_link(struct mnl_socket *nl, const char *ifname, uint32_t ifindex, struct ft_rtnl_link *out)
{
	char buf[256];
	struct nlmsghdr *m = request(buf, RTM_GETLINK, NLM_F_ACK);
	struct ifinfomsg *ifi = mnl_nlmsg_put_extra_header(m, sizeof(*ifi));

	*out = (struct ft_rtnl_link){ 0 };
	ifi->ifi_index = (int)ifindex;
	if (ifname)
		mnl_attr_put_strz(m, IFLA_IFNAME, ifname);
	return ft_nl_request(nl, m, read_link, out);
}

int ft_rtnl_link(struct mnl_socket *nl, const char *ifname, struct ft_rtnl_link *out)
{
	return get_link(nl, ifname, 0, out);
}

int ft_rtnl_link_by_index(struct mnl_socket *nl, uint32_t ifindex, struct ft_rtnl_link *out)
{
	return get_link(nl, NULL, ifindex, out);
}

/* --- changes --- */

int ft_rtnl_bridge_nf_call(struct mnl_socket *nl, uint32_t bridge, bool ip, bool ip6)
{
	char buf[256];
	struct nlmsghdr *m = request(buf, RTM_NEWLINK, NLM_F_ACK);
	struct ifinfomsg *ifi = mnl_nlmsg_put_extra_header(m, sizeof(*ifi));
	struct nlattr *info, *data;

	ifi->ifi_index = (int)bridge;
	info = mnl_attr_nest_start(m, IFLA_LINKINFO);
	mnl_attr_put_strz(m, IFLA_INFO_KIND, "bridge");
	data = mnl_attr_nest_start(m, IFLA_INFO_DATA);
	mnl_attr_put_u8(m, IFLA_BR_NF_CALL_IPTABLES, ip);
	mnl_attr_put_u8(m, IFLA_BR_NF_CALL_IP6TABLES, ip6);
	mnl_attr_nest_end(m, data);
	mnl_attr_nest_end(m, info);
	return ft_nl_request(nl, m, NULL, NULL);
}

int ft_rtnl_fdb_move(struct mnl_socket *nl, uint32_t port, const uint8_t mac[6])
{
	char buf[256];
	struct nlmsghdr *m = request(buf, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
	struct ndmsg *nd = mnl_nlmsg_put_extra_header(m, sizeof(*nd));

	/* Reachable, not permanent: it ages like a learned address and moves on when the guest does. */
	*nd = (struct ndmsg){ .ndm_family = AF_BRIDGE, .ndm_ifindex = (int)port, .ndm_state = NUD_REACHABLE,
			      .ndm_flags = NTF_MASTER };
	mnl_attr_put(m, NDA_LLADDR, ETH_ALEN, mac);
	return ft_nl_request(nl, m, NULL, NULL);
}

/* --- what sits on a port --- */

struct diversion {
	uint32_t port;
	char *what;
	size_t size;
	bool found;
};

static int look_for_upper(const struct nlmsghdr *nlh, void *ctx)
{
	const struct nlattr *a, *name = NULL, *link = NULL, *netns = NULL;
	struct diversion *d = ctx;

	mnl_attr_for_each(a, nlh, sizeof(struct ifinfomsg)) {
		if (mnl_attr_get_type(a) == IFLA_IFNAME)
			name = a;
		if (mnl_attr_get_type(a) == IFLA_LINK)
			link = a;
		if (mnl_attr_get_type(a) == IFLA_LINK_NETNSID)
			netns = a;      /* an interface number of another namespace (a veth's peer) */
	}
	if (name && link && !netns && mnl_attr_get_u32(link) == d->port) {
		snprintf(d->what, d->size, "the device %s", mnl_attr_get_str(name));
		d->found = true;
	}
	return MNL_CB_OK;
}

static int look_for_ingress(const struct nlmsghdr *nlh, void *ctx)
{
	const struct tcmsg *tc = mnl_nlmsg_get_payload(nlh);
	struct diversion *d = ctx;
	const struct nlattr *a;

	if (tc->tcm_ifindex != (int)d->port)
		return MNL_CB_OK;
	mnl_attr_for_each(a, nlh, sizeof(*tc)) {
		if (mnl_attr_get_type(a) != TCA_KIND)
			continue;
		if (strcmp(mnl_attr_get_str(a), "ingress") && strcmp(mnl_attr_get_str(a), "clsact"))
			continue;
		snprintf(d->what, d->size, "a tc %s qdisc", mnl_attr_get_str(a));
		d->found = true;
	}
	return MNL_CB_OK;
}

static int find_upper(struct mnl_socket *nl, struct diversion *d)
{
	char buf[256];
	struct nlmsghdr *m = request(buf, RTM_GETLINK, NLM_F_DUMP);

	mnl_nlmsg_put_extra_header(m, sizeof(struct ifinfomsg));
	return ft_nl_request(nl, m, look_for_upper, d);
}

static int find_ingress(struct mnl_socket *nl, struct diversion *d)
{
	char buf[256];
	struct nlmsghdr *m = request(buf, RTM_GETQDISC, NLM_F_DUMP);
	struct tcmsg *tc = mnl_nlmsg_put_extra_header(m, sizeof(*tc));

	tc->tcm_ifindex = (int)d->port;
	return ft_nl_request(nl, m, look_for_ingress, d);
}

/* What an interrupted listing has found is there; what it has not found may be there all the same. */
static int look(struct mnl_socket *nl, struct diversion *d, int (*find)(struct mnl_socket *nl, struct diversion *d))
{
	int rc = -EINTR;

	for (int i = 0; i < FT_NL_DUMP_TRIES && rc == -EINTR && !d->found; i++)
		rc = find(nl, d);
	return d->found ? -EEXIST : rc;
}

int ft_rtnl_diversion(struct mnl_socket *nl, uint32_t port, char *what, size_t size)
{
	struct diversion d = { .port = port, .what = what, .size = size };
	int rc = look(nl, &d, find_upper);

	return rc ? rc : look(nl, &d, find_ingress);
}

/* --- a port whose output can be held --- */

int ft_rtnl_bridge(struct mnl_socket *nl, const char *name, struct ft_rtnl_link *br, char *why, size_t size)
{
	int rc = ft_rtnl_link(nl, name, br);

	if (rc || !br->is_bridge) {
		snprintf(why, size, "there is no bridge %s here: make it (ip link add %s type bridge), or correct 'bridge' in the "
			 "guest file", name, name);
		return rc ? rc : -ENODEV;
	}
	if (!br->stp)
		return 0;
	snprintf(why, size, "bridge %s runs spanning tree: a guest that is taken over would be deaf for half a minute; "
		 "switch it off (ip link set %s type bridge stp_state 0)", name, name);
	return -EOPNOTSUPP;
}

int ft_rtnl_port(struct mnl_socket *nl, const char *ifname, const char *bridge, struct ft_rtnl_link *port,
		 struct ft_rtnl_link *br, char *why, size_t size)
{
	char what[64];
	int rc = ft_rtnl_link(nl, ifname, port);

	if (rc) {
		snprintf(why, size, "interface %s: %s", ifname, strerror(-rc));
		return rc;
	}
	rc = ft_rtnl_bridge(nl, bridge, br, why, size);
	if (rc == -EOPNOTSUPP)
		return rc;
	if (rc || port->master != br->ifindex) {
		snprintf(why, size, "interface %s is not a port of bridge %s", ifname, bridge);
		return rc ? rc : -ENODEV;
	}
	rc = ft_rtnl_diversion(nl, port->ifindex, what, sizeof(what));
	if (rc == -EEXIST)
		snprintf(why, size, "%s on interface %s would take frames past the rules; remove it", what, ifname);
	else if (rc)
		snprintf(why, size, "what takes frames off interface %s cannot be listed: %s", ifname, strerror(-rc));
	return rc;
}
