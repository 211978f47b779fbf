// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * heartbeat.h - authenticated UDP heartbeats on a thread of their own.
 *
 * Datagram (failover/heartbeat.c): magic, kind, sender (replicator or guard), path, session, sequence,
 * HMAC-SHA256 truncated to 16 bytes; keys derived from the TLS session, one per direction and sender. Forgeries,
 * replays and datagrams of other sessions are dropped. The beat side (primary: ft-protect and guard) sends every
 * interval on every path and learns from the echo; the echo side (backup) answers at once. Either side may
 * restart alone: nothing but the session's key is shared.
 */
#ifndef FT_HEARTBEAT_H
#define FT_HEARTBEAT_H

#include "ft/base.h"
#include "ft/detector.h"
#include <sys/socket.h>

struct ft_beat;                         /* primary side */

struct ft_beat_config {
	uint8_t key[32];                /* ft_link_export */
	uint8_t session[16];
	bool guard;                     /* sent by the guard: counts as life, gives no lease */
	unsigned interval_ms;           /* 0: 30; at least 5 */
	unsigned silence_ms;            /* the backup's window; the lease follows from it */
	unsigned nr_paths;
	struct sockaddr_storage path[4];/* the backup's addresses with the session's UDP port */
	/*
	 * Beat thread: the lease now lasts until @until_ns, which lies ahead. Opens the kernel gate; it may be
	 * called late, so compare with the clock once more when the gate is open. Returns until when it is, which may be
	 * less (0: it is shut): nothing is released that would come later, and the gate is asked again. May be NULL.
	 */
	uint64_t (*on_lease)(void *ctx, uint64_t until_ns);
	void *ctx;
};

int ft_beat_start(const struct ft_beat_config *cfg, struct ft_beat **out) FT_MUST_CHECK;
void ft_beat_stop(struct ft_beat *b);                   /* joins, frees; NULL is fine */
/* Thread-safe: may we speak now? Not before on_lease has returned: what is released too early finds the gate shut. */
bool ft_beat_fresh(struct ft_beat *b);
/* A PONG on the TLS link, to a PING sent at @sent_ns, proves the same (and is told on_lease). Thread-safe. */
void ft_beat_renew(struct ft_beat *b, uint64_t sent_ns);
uint64_t ft_beat_last_echo_ns(struct ft_beat *b);
unsigned ft_beat_rtt_us(struct ft_beat *b);

struct ft_echo;                         /* backup side */

struct ft_echo_config {
	uint8_t key[32];
	uint8_t session[16];
	uint16_t port_min, port_max;    /* 0, 0: any */
	unsigned silence_ms;
};

/* Binds (dual-stack) at once so that @port can go into WELCOME; judges only after ft_echo_arm. */
int ft_echo_start(const struct ft_echo_config *cfg, uint16_t *port, struct ft_echo **out) FT_MUST_CHECK;
void ft_echo_stop(struct ft_echo *e);
/* Start (or restart) the window: now is a sign of life. */
void ft_echo_arm(struct ft_echo *e);
/* Authenticated bytes came on the TLS link. A PONG must come after this, and none after a takeover. Thread-safe. */
void ft_echo_life(struct ft_echo *e);
/*
 * Called at each tick of the owner, who has told ft_echo_life what the link received: true when silent, and ever
 * after. From that moment on nothing is echoed any more (the decision and the last echo are ordered by a lock),
 * so no lease can be renewed behind the takeover. The owner's own ticks may be late: only a stall of the whole
 * process restarts the window.
 */
bool ft_echo_try_takeover(struct ft_echo *e);
uint64_t ft_echo_last_life_ns(struct ft_echo *e);

#endif
