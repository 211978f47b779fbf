// SPDX-License-Identifier: GPL-3.0-or-later
/* rtnl.h - what netbuf asks about interfaces, over netlink: /sys shows another namespace's when it is not remounted. */
#ifndef FT_NETBUF_RTNL_H
#define FT_NETBUF_RTNL_H

#include "netbuf/nl.h"

struct ft_rtnl_link {
	uint32_t ifindex;
	uint32_t master;                /* ifindex of the bridge; 0: none */
	uint64_t rx_packets;            /* a tap's: frames that the guest sent */
	char name[16];
	bool is_bridge;
	bool stp;                       /* bridge: spanning tree is on, so a new port is deaf for half a minute */
	bool nf_call_ip, nf_call_ip6;   /* bridge: br_netfilter is on for it */
};

int ft_rtnl_open(struct mnl_socket **out) FT_MUST_CHECK;
int ft_rtnl_link(struct mnl_socket *nl, const char *ifname, struct ft_rtnl_link *out) FT_MUST_CHECK; /* -ENODEV */
int ft_rtnl_link_by_index(struct mnl_socket *nl, uint32_t ifindex, struct ft_rtnl_link *out) FT_MUST_CHECK;
/* The bridge @name, if its ports hear and speak as soon as they are up; else as ft_rtnl_port. */
int ft_rtnl_bridge(struct mnl_socket *nl, const char *name, struct ft_rtnl_link *br, char *why,
		   size_t size) FT_MUST_CHECK;
/* The tap @ifname and its bridge; else -errno, and in @why what is in the way of holding its output, with the remedy. */
int ft_rtnl_port(struct mnl_socket *nl, const char *ifname, const char *bridge, struct ft_rtnl_link *port,
		 struct ft_rtnl_link *br, char *why, size_t size) FT_MUST_CHECK;
/* Switch br_netfilter for one bridge. */
int ft_rtnl_bridge_nf_call(struct mnl_socket *nl, uint32_t bridge, bool ip, bool ip6) FT_MUST_CHECK;
/* Let @bridge know that @mac is now behind its port @port. */
int ft_rtnl_fdb_move(struct mnl_socket *nl, uint32_t port, const uint8_t mac[6]) FT_MUST_CHECK;
/*
 * The first thing that takes frames off @port before its bridge sees them (a VLAN device on it, an ingress
 * qdisc): its name in @what, -EEXIST. 0: none. Asked again while interfaces change under the listing; -EINTR when
 * they never stop.
 */
int ft_rtnl_diversion(struct mnl_socket *nl, uint32_t port, char *what, size_t size) FT_MUST_CHECK;

#endif
