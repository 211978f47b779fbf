// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * follower.h - the other end of an export's control socket, for tests: a thread that reads all that comes and does
 * to a replica in memory what the stream says, while the test sends commands.
 */
#ifndef FT_FOLLOWER_H
#define FT_FOLLOWER_H

#include "ft/export.h"

#include <pthread.h>
#include <stdatomic.h>

struct follower {
	int fd;
	struct ft_export_page *page;    /* once started */
	pthread_t thread;
	pthread_mutex_t lock;           /* for what follows */
	pthread_cond_t news;
	uint64_t bytes;
	uint8_t *replica;
	uint64_t seq;                   /* of the last op */
	unsigned ops, zeros, marks;
	uint64_t data;                  /* bytes of WRITE ops */
	unsigned heres, planned, lefts, fenced, actives;        /* messages */
	struct ft_disk_id id;           /* of the last HERE */
	uint64_t *plan;                 /* a word for each region, of the last PLAN */
	uint64_t to_compare;
	int left_errno, active_errno;
	char failed[256];
	atomic_bool closed;
};

/* Connects. @bytes: of the disk. The replica is all zeros. */
struct follower *follower_new(const char *control, uint64_t bytes);
void follower_free(struct follower *f);         /* closes the connection */
void follower_say(struct follower *f, uint32_t type, const void *body, size_t len);
void follower_say32(struct follower *f, uint32_t type, uint32_t value);
void follower_say64(struct follower *f, uint32_t type, uint64_t value);
void follower_ask(struct follower *f);          /* waits for HERE */
void follower_start(struct follower *f);        /* START; waits for HERE, or that it is refused */
void follower_copy(struct follower *f, bool all);       /* waits for PLANNED */
/* All that is planned, as the replica is at each moment; waits for the MARKs. */
void follower_compare_all(struct follower *f);
void follower_catch_up(struct follower *f);     /* with the counter in the page */
void follower_leave(struct follower *f);        /* waits for LEFT */
int follower_activate(struct follower *f);      /* waits for ACTIVE */

/* Waits, 20 seconds at most, with the lock held while @cond is looked at. */
#define FOLLOWER_UNTIL(f, cond) \
	do { \
		pthread_mutex_lock(&(f)->lock); \
		while (!(cond)) \
			follower_wait(f, __FILE__, __LINE__, #cond); \
		pthread_mutex_unlock(&(f)->lock); \
	} while (0)
void follower_wait(struct follower *f, const char *file, int line, const char *what);

#endif
