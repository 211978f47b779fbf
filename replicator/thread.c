// SPDX-License-Identifier: GPL-3.0-or-later
/* thread.c - see ft/thread.h. */
#include "ft/thread.h"

#include <signal.h>
#include <time.h>

int ft_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg)
{
	sigset_t all, before;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	rc = -pthread_create(t, NULL, fn, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!rc)
		(void)pthread_setname_np(*t, name);
	return rc;
}

void ft_cond_init(pthread_cond_t *c)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(c, &attr);
	pthread_condattr_destroy(&attr);
}

int ft_cond_wait(pthread_cond_t *c, pthread_mutex_t *lock, uint64_t until_ns)
{
	struct timespec until = { .tv_sec = (time_t)(until_ns / FT_S_NS), .tv_nsec = (long)(until_ns % FT_S_NS) };

	return -pthread_cond_timedwait(c, lock, &until);
}
