// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * gate.h - the nf_tables rules that hold the guest's frames and keep them in while nobody may speak.
 *
 *	tap -> [netdev ingress: link]    drops what a bridge takes for itself before any rule of it
 *	    -> [bridge prerouting: hold] counts, queues (all frames; or, where nf_tables cannot queue on a
 *	                                 bridge, ip and ip6 prerouting queue IPv4 and IPv6)
 *	    -> [bridge prerouting: gate] passes only what a verdict marked, and only while fresh
 *	    -> the bridge forwards, delivers, routes
 *
 * Fresh is a set of slots of wall-clock time, 8 to 34 ms each, in which the guest may be heard. A slot is absolute,
 * so a renewal that was computed and then delayed by any stall adds only what has already passed. Each
 * element also has a time-out of its own, so a clock set back opens nothing that was not open.
 *
 * All rules of a guest are put in by one transaction, closed: no instant exists at which a frame finds half.
 */
#ifndef FT_NETBUF_GATE_H
#define FT_NETBUF_GATE_H

#include "ft/base.h"

#define FT_TAPS_MAX 8u

/* What this kernel can do, found out by a transaction that is tried whole and never applied. */
struct ft_gate_caps {
	bool owner;             /* a table that only our socket may change */
	bool persist;           /* and that outlives it */
	bool bridge_queue;      /* nf_tables queues any frame on a bridge */
	bool ip_queue;          /* x_tables queues IPv4 and IPv6 on a bridge (br_netfilter) */
	bool gate;              /* marks, counters, and sets of time slots that expire, on a bridge */
};
int ft_gate_probe(struct ft_gate_caps *out) FT_MUST_CHECK;
/* What is missing to hold a guest's frames, and the remedy; NULL: nothing. */
const char *ft_gate_lacks(const struct ft_gate_caps *caps);
/* Tests: do as if this kernel lacked what is set in @caps. */
void ft_gate_forbid(const struct ft_gate_caps *caps);
/* Tests: do as if the wall clock were ahead by so much. */
void ft_gate_set_clock(int64_t wrong_ns);

struct ft_gate;

/* A tap, and its bridge as it was before us: kept with the tables, for whoever takes them out. */
struct ft_gate_port {
	uint32_t tap;           /* ifindex */
	uint32_t bridge;        /* ifindex of one that br_netfilter is switched on for; 0: none has to be */
	bool call_ip, call_ip6; /* was br_netfilter on for it already? */
};

struct ft_gate_config {
	const char *guest;
	unsigned nr_taps;
	const char *const *tap;
	unsigned silence_ms;    /* see ft_netbuf_config */
	int owner_fd;           /* ours from here on, also on failure; -1: open one */
};

struct ft_gate_counters {       /* packets since install */
	uint64_t seen;          /* came to the bridge */
	uint64_t passed;        /* released and fresh */
	uint64_t arp;           /* passed without being held, because ARP cannot be (ip_queue only) */
	uint64_t stale;         /* dropped: not fresh */
	uint64_t unheld;        /* dropped: should have been held and was not. Holding is broken */
	uint64_t unholdable;    /* dropped: of a kind that cannot be held (ip_queue only) */
	uint64_t link;          /* dropped before the bridge: link control, impossible senders */
};

int ft_gate_new(const struct ft_gate_config *cfg, struct ft_gate **out) FT_MUST_CHECK;
void ft_gate_free(struct ft_gate *g);   /* NULL is fine; the rules stay */
/*
 * Replace whatever rules there are for the guest by closed ones that queue to @queue. They know the taps by name and
 * by number: an interface that is renamed does not slip out, and a new one of the same name starts shut. @port is
 * copied; NULL: the same taps as before.
 */
int ft_gate_install(struct ft_gate *g, uint16_t queue, const struct ft_gate_port *port) FT_MUST_CHECK;
/* Thread-safe. Frames that were released may pass until @until_ns (CLOCK_MONOTONIC); 0: no longer. See ft_netbuf_fresh. */
int ft_gate_fresh(struct ft_gate *g, uint64_t until_ns, uint64_t *open_ns) FT_MUST_CHECK;
/* Thread-safe. Close, and refuse to be opened (-ECANCELED) until @hushed is false. */
int ft_gate_hush(struct ft_gate *g, bool hushed) FT_MUST_CHECK;
/* Thread-safe. Close, and refuse to be opened again (-EIO) before the next install. */
void ft_gate_shut(struct ft_gate *g);
/* For the end of protection: frames no longer need to be queued, marked or fresh. On return no more of them are queued. */
int ft_gate_bypass(struct ft_gate *g) FT_MUST_CHECK;
int ft_gate_remove(struct ft_gate *g) FT_MUST_CHECK;

int ft_gate_count(struct ft_gate *g, struct ft_gate_counters *out) FT_MUST_CHECK;
/*
 * Are the rules as install made them? 0; -ENOENT with a line in @what; -EINTR: could not be read whole. Puts back the
 * spare of a table that nobody could remove (then nothing got out, and 0 is returned with a warning logged).
 */
int ft_gate_verify(struct ft_gate *g, char *what, size_t size) FT_MUST_CHECK;
bool ft_gate_holds_all(const struct ft_gate *g);        /* every frame, not only IPv4 and IPv6 */
uint32_t ft_gate_portid(const struct ft_gate *g);       /* who makes our changes, in notifications */
int ft_gate_owner_fd(struct ft_gate *g) FT_MUST_CHECK;  /* a duplicate */

/* Rules of a guest, whoever made them. */
bool ft_gate_present(const char *guest);
int ft_gate_purge(const char *guest) FT_MUST_CHECK;
/* What they were made for, each port at least once. @guest NULL: of every guest in this network namespace. */
int ft_gate_ports(const char *guest, void (*port)(void *ctx, const struct ft_gate_port *p), void *ctx) FT_MUST_CHECK;

#endif
