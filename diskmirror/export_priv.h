// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export_priv.h - what the parts of the export share.
 *
 *   export.c          the image, its generation, what the guest asks for
 *   export_order.c    which of two overlapping requests is first
 *   export_stream.c   the stream of ops to the mirror, and its end
 *   export_copy.c     comparing with the peer
 *   export_sync.c     syncs that may take long, by a thread of their own
 *   export_control.c  the control socket and its thread
 *
 * Locks, in the order in which they are taken: a range, then mark_lock, then id_lock or stream_lock, then sync_lock.
 * What decides how a change is treated (image, map, whether there is a stream to come) is changed only by who holds the
 * whole disk as its range.
 */
#ifndef FT_DISKMIRROR_EXPORT_PRIV_H
#define FT_DISKMIRROR_EXPORT_PRIV_H

#include "ft/export.h"
#include "ft/map.h"

#include <pthread.h>
#include <stdatomic.h>

#define FT_EXPORT_CLIENTS 8u
#define FT_EXPORT_HDR 8u

struct ft_export_client {
	int fd;                         /* -1: free */
	int memfd;                      /* came with a message, or -1 */
	bool had_stream;                /* what it sent before it knew of the end is no nonsense */
	uint64_t leave;                 /* LEFT is due when as much is paid; 0: none */
	size_t have;
	uint8_t *in;                    /* FT_EXPORT_HDR + FT_EXPORT_BODY_MAX */
};

struct ft_range {                       /* a request, from when it came to when it is answered */
	uint64_t from, to;
	uint64_t floor;                 /* its op will have at least this number; UINT64_MAX while it waits */
	struct ft_range *prev, *next;   /* in the order in which they came */
};

struct ft_export {
	char *image, *map_path, *control;
	const struct ft_disk_files *f;
	bool read_only;
	bool was_parked;
	uint64_t bytes;
	int h;                          /* of the image, or -1 */
	struct ft_map *_Atomic map;     /* NULL: never mirrored */
	atomic_bool parked, fenced;
	atomic_int sync_error;          /* a flush that failed once: what was written before it may be lost */

	pthread_mutex_t order_lock;
	pthread_cond_t order_changed;
	struct ft_range *first, *last;
	struct ft_log_limit log;        /* of requests that fail: a guest may try again and again */
	uint64_t durable, applied;      /* what the peer has durable; up to where the map knows */

	pthread_mutex_t id_lock;
	atomic_bool generation_due;     /* the next change needs a new one first */

	pthread_mutex_t stream_lock;    /* whoever sends on the stream, and for: */
	struct ft_export_client *stream;
	struct ft_export_page *page;
	atomic_bool streaming;          /* stream != NULL, for who has not the lock */
	atomic_bool elide;
	_Atomic uint64_t seq;

	pthread_mutex_t mark_lock;      /* elide and the map's mark change together */
	pthread_mutex_t sync_lock;      /* for: */
	pthread_cond_t sync_moved;
	uint64_t owed, paid;            /* syncs asked for, and made */
	int paid_rc;                    /* of the last one */
	bool sync_stop;
	pthread_t syncer;
	bool has_syncer;

	struct ft_export_client client[FT_EXPORT_CLIENTS];      /* of the control thread */
	int door, wake_fd;
	bool bound;
	uint64_t door_inode;
	pthread_t thread;
	bool running;
	atomic_bool stop;
};

/* --- order: returns once no earlier request overlaps --- */
void ft_export_order(struct ft_export *e, struct ft_range *r, uint64_t at, uint64_t len);
void ft_export_order_all(struct ft_export *e, struct ft_range *r);
void ft_export_settle(struct ft_export *e, struct ft_range *r);
/* The peer has ops up to @seq durable: tell the map, but nothing that a change under way may make untrue. */
void ft_export_durable(struct ft_export *e, uint64_t seq);

/* --- image --- */
int ft_export_open_image(struct ft_export *e) FT_MUST_CHECK;   /* lock it, open its map if there is one */
int ft_export_make_map(struct ft_export *e) FT_MUST_CHECK;
int ft_export_make_generation(struct ft_export *e) FT_MUST_CHECK;      /* if one is due */
int ft_export_sync(struct ft_export *e) FT_MUST_CHECK;
void ft_export_id(struct ft_export *e, struct ft_disk_id *out);

/* --- syncs that may take long: whoever serves the control socket never waits for one --- */
/* What was answered without a sync is made good from here on; returns what e->paid reaches then. Flushes are honoured already. */
uint64_t ft_export_owe(struct ft_export *e);
/* Is that so? *rc is the outcome. */
bool ft_export_paid(struct ft_export *e, uint64_t nr, int *rc);
void ft_export_wait_paid(struct ft_export *e);          /* for tests: all that is owed */
int ft_export_start_syncer(struct ft_export *e) FT_MUST_CHECK;
void ft_export_stop_syncer(struct ft_export *e);        /* what is still owed, the caller pays: */
int ft_export_pay(struct ft_export *e) FT_MUST_CHECK;
int ft_export_begin_elide(struct ft_export *e) FT_MUST_CHECK;
void ft_export_end_elide(struct ft_export *e);

/* --- stream --- */
/* Whole messages, to any client. -ETIMEDOUT: it has taken nothing for FT_EXPORT_STALL_MS. */
int ft_export_send(int fd, uint32_t type, const void *body, size_t len, const void *data, size_t data_len)
	FT_MUST_CHECK;
/* To @c, whether it has the stream or not. Control thread. */
int ft_export_tell(struct ft_export *e, struct ft_export_client *c, uint32_t type, const void *body, size_t len)
	FT_MUST_CHECK;
/* What the guest has changed. */
void ft_export_stream(struct ft_export *e, uint32_t op, const void *buf, uint64_t at, uint32_t len);
/* What is only copied to the peer; *seq is its number. False: there is no stream any more. */
bool ft_export_stream_copy(struct ft_export *e, uint32_t op, const void *buf, uint64_t at, uint32_t len, uint64_t *seq);
/* The stream ends: by itself, or since the mirror is not complete any more, which is told. */
void ft_export_stream_end(struct ft_export *e);
void ft_export_fail(struct ft_export *e, const char *fmt, ...) FT_PRINTF(2, 3);

/* --- copying: -EPROTO, or what ended the stream. Control thread. --- */
int ft_export_copy(struct ft_export *e, struct ft_export_client *c, bool all) FT_MUST_CHECK;
int ft_export_add(struct ft_export *e, const uint8_t *body, size_t len) FT_MUST_CHECK;
int ft_export_compare(struct ft_export *e, const uint8_t *body, size_t len) FT_MUST_CHECK;

/* --- control --- */
int ft_export_listen(struct ft_export *e) FT_MUST_CHECK;
void ft_export_stop(struct ft_export *e);       /* the thread, all clients, the socket */

#endif
