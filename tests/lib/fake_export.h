// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fake_export.h - an export (ft/export.h) in a few lines of the test's own: a disk in memory, one thread that serves its
 * control socket, and whatever a test wants to be different about it. Another writing of the protocol than ft_export's.
 */
#ifndef FT_FAKE_EXPORT_H
#define FT_FAKE_EXPORT_H

#include "ft/disk.h"
#include "ft/export.h"

#include <pthread.h>

struct fake_export {
	char control[108];
	uint8_t *image;
	uint64_t bytes;
	struct ft_disk_id id;

	/* Under the lock. */
	pthread_mutex_t lock;
	pthread_cond_t moved;
	uint64_t seq;
	uint64_t *touched;              /* words */
	int stream;                     /* connection that has started, or -1 */
	struct ft_export_page *page;
	bool held, elide, fenced, left, adopted, active;
	uint64_t durable, starts, compares, granules_sent, adds, adds_at_off;
	/* What the test wants. */
	int leave_errno;
	bool silent;                    /* commands are read, and nothing is answered */
	bool lazy;                      /* ops are counted in the page but sent only by fake_export_send_late */
	bool no_start;
	struct { uint8_t bytes[FT_EXPORT_BODY_MAX + 8]; size_t len; } late;

	int listener, stop_fd;
	pthread_t thread;
	bool running;
};

void fake_export_init(struct fake_export *x, const char *control, uint64_t bytes, uint64_t seed);
void fake_export_start(struct fake_export *x);
/* Its process is killed: sockets are closed, nothing is said. start begins another life, with the same image. */
void fake_export_kill(struct fake_export *x);
void fake_export_free(struct fake_export *x);
/* The guest's. False: fenced. */
bool fake_export_write(struct fake_export *x, const void *data, uint32_t len, uint64_t at);
bool fake_export_zero(struct fake_export *x, uint32_t len, uint64_t at);
void fake_export_send_late(struct fake_export *x);
void fake_export_send(struct fake_export *x, const void *bytes, size_t len);   /* whatever the test likes */

#endif
