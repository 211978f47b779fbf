// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export_sync.c - flushes answered from the mirror are made good: by a thread, since a sync of much data takes longer than
 * whoever waits at the control socket would.
 *
 * The map's mark, that the image is unsafe, goes with the first sync that began when flushes were honoured again.
 */
#include "export_priv.h"
#include "ft/thread.h"

#include <sys/eventfd.h>

/* sync_lock held. */
static uint64_t owe(struct ft_export *e)
{
	pthread_cond_broadcast(&e->sync_moved);
	return ++e->owed;
}

uint64_t ft_export_owe(struct ft_export *e)
{
	uint64_t nr;

	pthread_mutex_lock(&e->sync_lock);
	nr = owe(e);
	pthread_mutex_unlock(&e->sync_lock);
	return nr;
}

bool ft_export_paid(struct ft_export *e, uint64_t nr, int *rc)
{
	bool paid;

	pthread_mutex_lock(&e->sync_lock);
	paid = e->paid >= nr;
	*rc = e->paid_rc;
	pthread_mutex_unlock(&e->sync_lock);
	return paid;
}

void ft_export_wait_paid(struct ft_export *e)
{
	pthread_mutex_lock(&e->sync_lock);
	while (e->paid < e->owed)
		pthread_cond_wait(&e->sync_moved, &e->sync_lock);
	pthread_mutex_unlock(&e->sync_lock);
}

/* Nothing was answered from the mirror since sync @nr began? */
static bool all_good(struct ft_export *e, uint64_t nr)
{
	bool good;

	pthread_mutex_lock(&e->sync_lock);
	good = !e->elide && e->owed == nr;
	pthread_mutex_unlock(&e->sync_lock);
	return good;
}

static int pay_upto(struct ft_export *e, uint64_t nr)
{
	int rc = ft_export_sync(e);

	pthread_mutex_lock(&e->mark_lock);
	if (!rc && e->map && all_good(e, nr))
		rc = ft_map_set_unsafe(e->map, false);
	pthread_mutex_unlock(&e->mark_lock);
	return rc;
}

/* sync_lock held, and again when it returns. */
static void pay(struct ft_export *e)
{
	uint64_t nr = e->owed;
	int rc;

	pthread_mutex_unlock(&e->sync_lock);
	rc = pay_upto(e, nr);                   /* logged, and the guest's at its next flush */
	pthread_mutex_lock(&e->sync_lock);
	e->paid = nr;
	e->paid_rc = rc;
	pthread_cond_broadcast(&e->sync_moved);
	ft_ignore(eventfd_write(e->wake_fd, 1));        /* somebody may wait for LEFT */
}

int ft_export_pay(struct ft_export *e)
{
	e->elide = false;
	return pay_upto(e, e->owed);
}

static void *sync_main(void *arg)
{
	struct ft_export *e = arg;

	pthread_mutex_lock(&e->sync_lock);
	while (!e->sync_stop) {
		if (e->paid < e->owed)
			pay(e);
		else
			pthread_cond_wait(&e->sync_moved, &e->sync_lock);
	}
	pthread_mutex_unlock(&e->sync_lock);
	return NULL;
}

int ft_export_start_syncer(struct ft_export *e)
{
	int rc = ft_thread_start(&e->syncer, "ft-export-sync", sync_main, e);

	e->has_syncer = !rc;
	return rc;
}

void ft_export_stop_syncer(struct ft_export *e)
{
	if (!e->has_syncer)
		return;
	pthread_mutex_lock(&e->sync_lock);
	e->sync_stop = true;
	pthread_cond_broadcast(&e->sync_moved);
	pthread_mutex_unlock(&e->sync_lock);
	pthread_join(e->syncer, NULL);
	e->has_syncer = false;
}

/* --- flushes are answered from the mirror --- */

int ft_export_begin_elide(struct ft_export *e)
{
	bool gone;
	int rc;

	pthread_mutex_lock(&e->mark_lock);
	rc = ft_map_set_unsafe(e->map, true);
	pthread_mutex_lock(&e->stream_lock);
	gone = !e->streaming;
	e->elide = !rc && !gone;
	pthread_mutex_unlock(&e->stream_lock);
	pthread_mutex_unlock(&e->mark_lock);
	if (!rc && gone)
		ft_export_owe(e);
	return rc;
}

void ft_export_end_elide(struct ft_export *e)
{
	pthread_mutex_lock(&e->sync_lock);
	if (e->elide) {
		e->elide = false;
		owe(e);
	}
	pthread_mutex_unlock(&e->sync_lock);
}
