// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * netbuf.h - hold the guest's packets until the epoch that sent them is safe.
 *
 * Two layers, both in the kernel, so that no process of ours has to be alive for them to hold:
 *   hold  every frame from the guest's taps goes to an NFQUEUE before the bridge sees where it is going:
 *         nf_tables' queue on the bridge where the kernel has it (every frame), else x_tables' NFQUEUE through
 *         br_netfilter (IPv4 and IPv6). No bypass, no fail-open. A verdict lets a packet go and marks it.
 *   gate  the next hook passes only frames with that mark, and only while the right to speak is fresh: a set
 *         of slots of time that the kernel itself lets expire. So neither a vanished hold rule, nor a
 *         stalled process with an old ack, nor a dead one lets a frame out. ARP, where it cannot be held,
 *         passes while fresh; what else cannot be held is dropped, counted and named.
 * The rules are in tables that only our socket can change, so `nft flush ruleset` skips them; where the
 * kernel is too old for that they are watched. netbuf/gate.h has the picture.
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
	/*
	 * Holding is no longer complete (rules gone, frames take another way). Output is shut; seal, commit
	 * and fresh fail with -EIO until setup is called again. Never called from within an op: a seal that
	 * finds a breach says so by failing. A queue that overflows is no breach: it drops, as a network may.
	 */
	void (*on_breach)(void *ctx, const char *why);
	void *ctx;
	unsigned silence_ms;            /* ours: the longer, the coarser is the gate's time; 0: 300 */
	uint64_t held_bytes_max;        /* more waiting output than this is dropped, also while we are stopped; 0: 256 MiB */
	int owner_fd;                   /* of a surviving guard (ft_netbuf_owner_fd), ours from here on; 0 or -1: none */
};

struct ft_netbuf_stats {
	uint64_t held_packets;          /* now in the queue */
	uint64_t released_packets;      /* since setup */
	uint64_t dropped_packets;       /* queue full, not fresh, of a kind that cannot be held: since setup */
	uint64_t in_flight;             /* sealed epochs with packets not yet committed */
	uint64_t held_bytes;
	const char *held;               /* "all ethertypes" or "ipv4, ipv6" */
	const char *dropped;            /* what cannot be held and never leaves, in words */
	const char *mechanism;          /* "nft-queue" or "xt-queue" */
};

int ft_netbuf_new(struct ev_loop *loop, const struct ft_netbuf_config *cfg, struct ft_netbuf **out) FT_MUST_CHECK;
/* The lifecycle face; freed through ops->free. */
struct ft_output *ft_netbuf_output(struct ft_netbuf *nb);
void ft_netbuf_get_stats(struct ft_netbuf *nb, struct ft_netbuf_stats *out);
/*
 * Extend the gate's freshness to @until_ns (CLOCK_MONOTONIC); 0 closes it at once. *@open_ns (may be NULL) is until when
 * the gate is open: rounded down to slots of 8.4 to 33.6 ms, so up to that much early and never late, also
 * when the caller is stopped inside this call; bounded to 250 slots ahead; and with nearly as much in hand as is asked
 * for nothing is done. So ask again while it lies before @until_ns. Thread-safe: the heartbeat thread calls it at each
 * renewal. -ENOTCONN before setup and after teardown, -EIO after a breach.
 */
int ft_netbuf_fresh(struct ft_netbuf *nb, uint64_t until_ns, uint64_t *open_ns) FT_MUST_CHECK;
/*
 * Close the gate, and let no renewal open it (-ECANCELED) until hush is called with false: the peer may speak
 * now. Thread-safe, and ordered with ft_netbuf_fresh: a renewal that is under way cannot come after it.
 */
int ft_netbuf_hush(struct ft_netbuf *nb, bool hushed) FT_MUST_CHECK;
/*
 * A duplicate of the socket that owns the tables, for the guard. Nobody else can change them while one is
 * open; a restarted ft-protect must get it back (config.owner_fd) or wait until the guard has ended.
 */
int ft_netbuf_owner_fd(struct ft_netbuf *nb) FT_MUST_CHECK;

/* One line for each obstacle to holding the taps' output here; touches nothing. 0: none, else -EOPNOTSUPP. */
int ft_netbuf_check(const struct ft_netbuf_config *cfg, void (*obstacle)(void *ctx, const char *line), void *ctx);
/* Can a tap on @bridge be heard as soon as it comes up? Else -errno, and the remedy in @why. */
int ft_netbuf_check_bridge(const char *bridge, char *why, size_t size) FT_MUST_CHECK;
/* Remove every rule of ours for @guest, also of a dead process. Opens the output: unprotect only. */
int ft_netbuf_purge(const char *guest) FT_MUST_CHECK;
/*
 * Remove the rules that a gone instance of @guest left, lest they mute the next one here. -EBUSY, with a line logged,
 * while an interface that they were made for is still there: whoever is behind it must stay mute.
 */
int ft_netbuf_purge_dead(const char *guest) FT_MUST_CHECK;
/* True when rules of ours for @guest exist (a previous ft-protect left the output shut). */
bool ft_netbuf_present(const char *guest);

/*
 * After takeover: let the bridge of @tap know that @mac is behind it, and the network that it is behind this
 * bridge (RARP, as from the guest, out of every other port; addresses stay bound to the MAC, so nothing more is
 * needed), at 0, 50, 150, 300, 500 and 1000 ms. Runs on the loop; frees itself. A bridge that filters VLANs
 * sends it in its own default VLAN only: QEMU's announce-self covers the others.
 */
int ft_announce(struct ev_loop *loop, const char *tap, const uint8_t mac[6]) FT_MUST_CHECK;

#endif
