// SPDX-License-Identifier: GPL-3.0-or-later
/* thread.h - the few ways in which our threads begin and wait. */
#ifndef FT_THREAD_H
#define FT_THREAD_H

#include "ft/base.h"

#include <pthread.h>

/* Run fn(arg) on a thread called @name (at most 15 characters). It takes no signal: they are the main thread's. */
int ft_thread_start(pthread_t *t, const char *name, void *(*fn)(void *), void *arg) FT_MUST_CHECK;

/* A condition that is waited for by ft_now_ns()'s clock; pthread_cond_destroy ends it. */
void ft_cond_init(pthread_cond_t *c);
/* pthread_cond_timedwait until ft_now_ns() is @until_ns: 0 (look at what you wait for) or -ETIMEDOUT. */
int ft_cond_wait(pthread_cond_t *c, pthread_mutex_t *lock, uint64_t until_ns) FT_MUST_CHECK;

#endif
