// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * link_priv.h - a link as its two sides share it: link.c (owner and loop) and link_thread.c.
 *
 * The thread meets senders and loop at the queues, under the lock. Socket and TLS belong to whoever holds the
 * engine: the thread, except while it sleeps. Then a sender takes the engine for a moment and puts a short record
 * on the wire itself, which saves the wake-up on the way of an acknowledgement. Order: engine, then lock.
 */
#ifndef FT_LINK_PRIV_H
#define FT_LINK_PRIV_H

#include "ft/link.h"
#include "replicator/recbuf.h"
#include "replicator/tls.h"

#include <ev.h>
#include <pthread.h>
#include <stdatomic.h>

#define FT_LINK_INBOX_BOUND (8u << 20)  /* received, not yet taken by the loop; and one record more */

enum stage { STAGE_HANDSHAKE, STAGE_UP, STAGE_LEAVING };

struct ft_link {
	struct ft_link_config cfg;
	char *ca, *cert, *key, *guest, *peer, *host;    /* owned; cfg points to them */
	uint16_t port;
	struct ev_loop *loop;                           /* borrowed */
	ev_async async;
	pthread_t thread;
	bool running;
	int stop_fd;                                    /* readable once the thread must end */
	int wake_fd;                                    /* readable: look at the queues again */
	struct ft_recpool pool;

	pthread_mutex_t lock;                           /* guards what follows, up to the next group */
	pthread_cond_t room;
	struct ft_recqueue urgent, bulk, inbox;
	size_t urgent_bytes, bulk_bytes, inbox_bytes;
	unsigned inside;                                /* threads in ft_link_send that wait for room */
	bool asleep;                                    /* the thread is in poll, or about to be */
	bool inbox_full;                                /* the thread has stopped reading */
	bool closed;                                    /* no more sending */
	bool up, down;
	bool finishing;
	uint64_t finish_by_ns;
	int down_rc;
	char name[FT_NAME_MAX + 1];
	char why[768];
	uint8_t exported[32];
	struct sockaddr_storage address;                /* of the peer, when up */

	pthread_mutex_t engine;                         /* guards what follows, up to the next group */
	enum stage stage;
	int sock;
	struct ft_tls *tls;
	char who[128];
	struct ft_recreader reader;
	struct ft_recbuf *sending;
	bool sending_urgent;
	size_t sending_at;
	const uint8_t *piece;                           /* what the next TLS record carries */
	size_t piece_len;
	size_t unkeyed_bytes;                           /* sent since the last key update */
	uint64_t keyed_ns;
	uint64_t deadline_ns;                           /* of the handshake, or of leaving */
	int send_error, recv_error;                     /* -errno once the socket's direction is over */
	int tls_error;                                  /* of a sender's turn at the engine */
	bool eof;

	bool *gone;                                     /* the loop's own: set by free while a callback runs */
	bool up_told, down_told, muted;

	atomic_uint_fast64_t sent, received, key_updates, last_received_ns;
	uint8_t small[FT_TLS_RECORD];                   /* the engine's: small records, gathered into one TLS record */
};

void *ft_link_run(void *link);                                  /* the thread */
/* A sender's turn: true when all that was queued is on the wire. False: wake the thread. */
bool ft_link_try_pump(struct ft_link *l);
void ft_link_wake(struct ft_link *l);                           /* under the lock: look at the queues again */
void ft_link_unreserve(struct ft_link *l, bool urgent, size_t len);     /* under the lock: bytes have left a lane */

#endif
