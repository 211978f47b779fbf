// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * bridge_nf.h - br_netfilter's switch of one bridge: as found before the first guest, and put back after the last.
 *
 * How it was found is kept in the guests' tables, so that neither a second setup, nor a restarted process, nor a
 * second guest on the bridge takes what ft itself switched on for what it found.
 */
#ifndef FT_NETBUF_BRIDGE_NF_H
#define FT_NETBUF_BRIDGE_NF_H

#include "netbuf/gate.h"
#include "netbuf/rtnl.h"

/* Fill the part of @port that is about @bridge: from the tables of any guest, else as it is now. */
int ft_bridge_nf_find(struct mnl_socket *rtnl, uint32_t bridge, struct ft_gate_port *port) FT_MUST_CHECK;
/* For each port whose bridge is in no guest's table any more: as it was. A bridge that stays on is logged. */
void ft_bridge_nf_restore(struct mnl_socket *rtnl, const struct ft_gate_port *port, unsigned nr);

#endif
