// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * mirror_int.h - what the parts of the mirror (ft/mirror.h) share: mirror.c the calls of its owner, mirror_stream.c the
 * exports' sockets and the thread that reads them, mirror_copy.c the copy of a session.
 *
 * A disk's connection is made by the loop thread, and closed by the reader alone: so nobody reads a descriptor that
 * has become something else's.
 */
#ifndef FT_MIRROR_INT_H
#define FT_MIRROR_INT_H

#include "diskmirror/mirror_log.h"
#include "ft/export.h"
#include "ft/mirror.h"

#include <pthread.h>

#define FLIGHT_MAX 256u
#define MSG_HDR 8u
#define RX_ROOM (2u * (MSG_HDR + FT_EXPORT_BODY_MAX))

struct words {                          /* of a PLAN message */
	struct words *next;
	uint64_t region;
	size_t nr, at;
	uint64_t word[];
};

struct message {                        /* to an export */
	struct message *next;
	size_t len, done;
	uint8_t bytes[];
};

struct mirror_disk {
	struct mirror *m;
	unsigned index;
	char *control;
	char *image, *map;              /* NULL: not known */
	bool read_only;                 /* nobody writes to it */
	struct ft_log_limit log;        /* the loop thread's */

	/* Under the mirror's lock. */
	int fd;
	bool streaming;                 /* START was answered */
	bool held;                      /* HELD was said */
	unsigned here_due;              /* ASKs not answered */
	struct ft_disk_id id;
	struct message *out, **out_end;
	struct message *durable;        /* one in @out that is not on its way: the next one joins it */
	size_t out_bytes;

	uint32_t command;               /* FT_EXPORT_LEAVE, FT_EXPORT_FENCE, or 0: none */
	bool said, done;                /* it is on its way; it was answered */
	int result;

	/* Its export has died: what that had answered flushes for is synced here, by a thread. */
	pthread_t syncer;
	bool has_syncer, syncing;
	uint64_t sync_for;              /* m->leaves, when it began */
	int sync_error;                 /* of the first sync that failed: the kernel does not say so again */

	struct words *plan;
	struct words *plan_last;
	unsigned plans_due;             /* COPYs not PLANNED yet: what compares before the last one is of no account */
	uint64_t plan_next;             /* region */
	uint64_t copy_total, copy_done; /* granules */

	/* The loop thread's. */
	struct ft_export_page *page;
	uint64_t sealed;                /* what it said last */

	/* The reader's, once streaming. */
	uint64_t seq;
	uint8_t *rx;
	size_t rx_len;
};

struct flight {
	struct mirror_disk *d;
	uint64_t region, granules;
	bool comparing;                 /* its hashes have come, and went to the export */
};

struct mirror {
	struct ft_mirror api;
	char *guest;
	unsigned nr_disks;
	struct mirror_disk disk[FT_DISKS_MAX];
	struct ft_dlog *log;
	int event_fd, poke_fd;
	pthread_t thread;
	bool running;
	uint8_t *scratch;               /* next's */

	pthread_mutex_t lock;           /* before the log's own; for the rest: */
	pthread_cond_t moved;           /* here_due, fd */
	bool stop;
	bool held, discarded;
	bool wake_due, broken_due, broken;
	char why[FT_NAME_MAX + 512];

	bool copying;                   /* a copy was begun, and nothing has broken since */
	bool sealed;                    /* since then: its epoch is sealed */
	bool ops_told;                  /* the owner was woken for the ops that wait */
	bool ask_waits;                 /* ask had more, but not yet */
	struct flight flight[FLIGHT_MAX];
	unsigned nr_flight;
	uint64_t flight_bytes;
	uint64_t window;
	uint64_t rate, rate_at_ns;      /* when the next region is due */
	uint64_t teardown_until_ns;
	uint64_t leaves;                /* how often LEAVE was begun */
	const struct ft_disk_files *files;
};

static inline struct mirror *mirror_of(const struct ft_mirror *m)
{
	return ft_container_of(m, struct mirror, api);
}

/* Lock held in all of these. */
void ft_mirror_post(struct mirror *m);                          /* wake is due */
void ft_mirror_break(struct mirror *m, const char *fmt, ...) FT_PRINTF(2, 3);

/* --- mirror_stream.c --- */
int ft_mirror_start_reader(struct mirror *m) FT_MUST_CHECK;
void ft_mirror_stop_reader(struct mirror *m);
void ft_mirror_poke(struct mirror *m);                          /* the reader looks again at what it waits for */
/* Connect and START, within @wait_ms; 0 also when that was so. Called without the lock. Logged, now and then. */
int ft_mirror_up(struct mirror *m, struct mirror_disk *d, unsigned wait_ms) FT_MUST_CHECK;
/* Queue a message; a disk that is not connected swallows it. @first: before all others. */
int ft_mirror_say(struct mirror *m, struct mirror_disk *d, uint32_t type, const void *body, size_t len, bool first);
/* One that waits is of an earlier session, and must not be joined by what this one says. */
void ft_mirror_forget_durable(struct mirror_disk *d);
/* Say the disk's command where that is still due, connecting only for it if need be. */
void ft_mirror_command(struct mirror *m, struct mirror_disk *d);
/* At the end, without the lock. */
void ft_mirror_stop_syncers(struct mirror *m);

/* --- mirror_digest.c --- */
int ft_mirror_digest(struct ft_mirror *api, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out);

/* --- mirror_copy.c --- */
void ft_mirror_copy_reset(struct mirror *m, struct mirror_disk *d);     /* forget its plan and what is in flight */
/* From the export. Hostile: false. */
bool ft_mirror_plan(struct mirror_disk *d, const uint8_t *body, size_t len);
bool ft_mirror_planned(struct mirror *m, struct mirror_disk *d, const uint8_t *body, size_t len);
bool ft_mirror_mark(struct mirror *m, struct mirror_disk *d, uint64_t region);
bool ft_mirror_copied(const struct mirror *m);
bool ft_mirror_ask(struct mirror *m, unsigned *disk, uint64_t *region, uint64_t *granules);
int ft_mirror_hashes(struct mirror *m, struct mirror_disk *d, uint64_t region, uint64_t granules, const uint8_t *hash, size_t nr);
/* Would ask have one now? Wakes the owner, if so, or returns when to look again (0: something else will happen). */
uint64_t ft_mirror_ask_again(struct mirror *m);

#endif
