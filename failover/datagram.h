// SPDX-License-Identifier: GPL-3.0-or-later
/* datagram.h - what the two sides of the heartbeat (beat.c, echo.c) share; heartbeat.c has the layout. */
#ifndef FT_FAILOVER_DATAGRAM_H
#define FT_FAILOVER_DATAGRAM_H

#include "ft/base.h"
#include <netinet/in.h>
#include <pthread.h>

#define FT_HB_LEN 48u                   /* every datagram, exactly */
#define FT_HB_PATHS 4

enum ft_hb_kind { FT_HB_BEAT = 1, FT_HB_ECHO = 2 };
enum ft_hb_sender { FT_HB_REPLICATOR = 1, FT_HB_GUARD = 2 };

struct ft_hb {
	uint8_t kind;                   /* enum ft_hb_kind */
	uint8_t sender;                 /* enum ft_hb_sender: whose beat, also in its echo */
	uint8_t path;                   /* below FT_HB_PATHS */
	uint64_t seq;
};

struct ft_hb_keys {
	uint8_t session[16];
	uint8_t key[2][2][32];          /* [kind - 1][sender - 1] */
};

int ft_hb_keys(const uint8_t link_key[32], const uint8_t session[16], struct ft_hb_keys *out) FT_MUST_CHECK;
int ft_hb_seal(const struct ft_hb_keys *k, const struct ft_hb *hb, uint8_t buf[FT_HB_LEN]) FT_MUST_CHECK;
/* -EPROTO: not one of ours, not of this session, not of @kind, or forged. */
int ft_hb_open(const struct ft_hb_keys *k, enum ft_hb_kind kind, const void *buf, size_t len, struct ft_hb *out) FT_MUST_CHECK;

/* Sequence numbers seen: each is taken once; one 64 or more below the highest is taken for a replay. */
struct ft_hb_window {
	uint64_t top, seen;             /* bit n of @seen: top - n was here */
};
bool ft_hb_window_take(struct ft_hb_window *w, uint64_t seq);

/* Nonblocking UDP socket on @port (0: any) of all addresses; dual-stack, or IPv4 alone where there is no IPv6. */
int ft_hb_socket(uint16_t port, bool *v4_only) FT_MUST_CHECK;   /* fd or -errno */
/* @a as a socket of ft_hb_socket wants it: IPv4 mapped into IPv6 unless @v4_only. 0 when it cannot be reached. */
socklen_t ft_hb_address(const struct sockaddr_storage *a, bool v4_only, struct sockaddr_storage *out);
/* A thread that takes no signals and, where permitted, is scheduled before ordinary ones. */
int ft_hb_thread(pthread_t *t, const char *name, void *(*fn)(void *), void *arg) FT_MUST_CHECK;
/* Whoever holds it is not preempted for long by ordinary work while such a thread waits. */
int ft_hb_mutex(pthread_mutex_t *m) FT_MUST_CHECK;
/* Until @at_ns, or until @fd or @wake is readable; @wake (an eventfd) is emptied. */
void ft_hb_wait(int fd, int wake, uint64_t at_ns);

#endif
