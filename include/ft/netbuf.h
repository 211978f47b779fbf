// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * netbuf.h - hold the guest's packets until the epoch that sent them is safe (output commit).
 *
 * Two layers, both in the kernel, so that no process of ours has to be alive for them to hold:
 *   hold  every frame from the guest's taps goes to an NFQUEUE at PREROUTING: nftables' bridge queue where
 *         the kernel has it (all ethertypes), else iptables/ip6tables raw PREROUTING with physdev
 *         (IPv4, IPv6). No bypass, no fail-open. A verdict lets a packet go and marks it as released.
 *   gate  an nftables bridge table owned by us (flags owner, and persist where the kernel knows it, so
 *         that `nft flush ruleset` does not remove it): a frame from the tap passes forward and input
 *         only with the released mark (ARP: without) and while the "fresh" element, which the kernel
 *         expires by itself, is there. So neither a vanished hold rule, nor a stalled process with an
 *         old ack, nor a dead one lets a frame out.
 */
#ifndef FT_NETBUF_H
#define FT_NETBUF_H

#include "ft/base.h"
#include "ft/output.h"

struct ev_loop;
struct ft_netbuf;

struct ft_netbuf_config {
	const char *guest;
	unsigned nr_taps;
	const char *tap[8];             /* borrowed during the call */
	const char *bridge[8];          /* bridge of each tap: br_netfilter is switched on for these only */
	/* A packet was held and none was since the last seal: the policy may start an epoch now. */
	void (*on_held)(void *ctx);
	/* Holding is no longer complete (rules gone, queue overflow, counters differ). Output is shut. */
	void (*on_breach)(void *ctx, const char *why);
	void *ctx;
};

struct ft_netbuf_stats {
	uint64_t held_packets;          /* now in the queue */
	uint64_t released_packets;      /* since setup */
	uint64_t dropped_packets;       /* by the queue, by the gate, unholdable ethertypes: since setup */
	uint64_t in_flight;             /* sealed epochs with packets not yet committed */
	const char *held;               /* "all ethertypes" or "ipv4, ipv6" */
	const char *dropped;            /* "none" or "vlan and other ethertypes" */
	const char *mechanism;          /* "nft-queue" or "iptables-queue" */
};

int ft_netbuf_new(struct ev_loop *loop, const struct ft_netbuf_config *cfg, struct ft_netbuf **out) FT_MUST_CHECK;
/* The lifecycle face; freed through ops->free. */
struct ft_output *ft_netbuf_output(struct ft_netbuf *nb);
void ft_netbuf_get_stats(struct ft_netbuf *nb, struct ft_netbuf_stats *out);
/*
 * Extend the gate's freshness to @until_ns (CLOCK_MONOTONIC); 0 closes it at once. Thread-safe: the
 * heartbeat thread calls it at each renewal, with its own netlink socket traffic serialised inside.
 */
int ft_netbuf_fresh(struct ft_netbuf *nb, uint64_t until_ns) FT_MUST_CHECK;
/* A duplicate of the socket that owns the gate table, for the guard: the table lives while one is open. */
int ft_netbuf_owner_fd(struct ft_netbuf *nb) FT_MUST_CHECK;

/* Log one line for each obstacle to holding the taps' output on this kernel; touches nothing. */
int ft_netbuf_check(const struct ft_netbuf_config *cfg, void (*obstacle)(void *ctx, const char *line), void *ctx);
/* Remove every rule of ours for @guest, also of a dead process. Opens the output: unprotect only. */
int ft_netbuf_purge(const char *guest, const struct ft_netbuf_config *cfg) FT_MUST_CHECK;
/* True when rules of ours for @guest exist (a previous ft-protect left the output shut). */
bool ft_netbuf_present(const char *guest);

/*
 * Announce @mac on the bridge port after takeover: RARP, and for every address given gratuitous ARP or
 * unsolicited neighbour advertisement, at 0, 50, 150, 300, 500 and 1000 ms. Runs on the loop; frees itself.
 */
int ft_announce(struct ev_loop *loop, const char *tap, const uint8_t mac[6]) FT_MUST_CHECK;

#endif
