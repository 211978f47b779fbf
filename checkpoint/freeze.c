// SPDX-License-Identifier: GPL-3.0-or-later
/* freeze.c - hold every thread of a process still for a moment. */
#include "checkpoint/track.h"
#include "ft/thread.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>

#define MAX_FROZEN 4096u

struct frozen {
	pid_t tid;
	int signal;                     /* caught on its way to the thread; handed on when it is let go */
};

struct freeze {
	pid_t pid;
	uint64_t deadline_ns;
	unsigned nr, room;
	struct frozen *thread;
	int (*fn)(void *ctx);
	void *ctx;
	int rc;
};

static bool is_held(const struct freeze *fz, pid_t tid)
{
	for (unsigned i = 0; i < fz->nr; i++)
		if (fz->thread[i].tid == tid)
			return true;
	return false;
}

static int remember(struct freeze *fz, pid_t tid)
{
	if (fz->nr == fz->room) {
		unsigned room = fz->room ? fz->room * 2 : 64;
		struct frozen *more;

		if (room > MAX_FROZEN)
			return -E2BIG;
		more = realloc(fz->thread, room * sizeof(*more));
		if (!more)
			return -ENOMEM;
		fz->thread = more;
		fz->room = room;
	}
	fz->thread[fz->nr++] = (struct frozen){ .tid = tid };
	return 0;
}

/* Gone, or a zombie: those cannot be held (EPERM) and do nothing more. */
static bool has_ended(pid_t pid, pid_t tid)
{
	char path[64], stat[128] = "";
	const char *state;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", pid, tid);
	f = fopen(path, "re");
	if (!f)
		return true;
	if (!fgets(stat, sizeof(stat), f))
		stat[0] = 0;
	fclose(f);
	state = strrchr(stat, ')');
	return state && (!strncmp(state, ") Z", 3) || !strncmp(state, ") X", 3));
}

/* Ask one thread to stop. A thread that has just ended is no failure. */
static int seize(struct freeze *fz, pid_t tid)
{
	if (ptrace(PTRACE_SEIZE, tid, NULL, NULL)) {
		int rc = -errno;

		return rc == -ESRCH || has_ended(fz->pid, tid) ? 0 : rc;
	}
	if (ptrace(PTRACE_INTERRUPT, tid, NULL, NULL) && errno != ESRCH)
		return -errno;
	return remember(fz, tid);
}

/* Seize the threads not yet held. Returns how many were new. */
static int seize_new(struct freeze *fz)
{
	struct dirent *e;
	char path[32];
	unsigned before = fz->nr;
	int rc = 0;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/task", fz->pid);
	d = opendir(path);
	if (!d)
		return errno == ENOENT ? -ESRCH : -errno;
	while (!rc && (e = readdir(d))) {
		pid_t tid = (pid_t)strtol(e->d_name, NULL, 10);

		if (tid <= 0 || is_held(fz, tid))
			continue;
		rc = seize(fz, tid);
	}
	closedir(d);
	return rc ? rc : (int)(fz->nr - before);
}

/* There is no wait with a time limit that leaves SIGCHLD to the caller; a stop takes microseconds. */
static int wait_stopped(struct freeze *fz, struct frozen *th)
{
	const struct timespec nap = { .tv_nsec = 20000 };
	int status;

	for (;;) {
		pid_t got = waitpid(th->tid, &status, __WALL | WNOHANG);

		if (got < 0 && errno != EINTR)
			return errno == ECHILD ? 0 : -errno;    /* ended meanwhile */
		if (got > 0)
			break;
		if (ft_now_ns() > fz->deadline_ns)
			return -ETIMEDOUT;
		nanosleep(&nap, NULL);
	}
	if (WIFSTOPPED(status) && status >> 16 != PTRACE_EVENT_STOP)
		th->signal = WSTOPSIG(status);
	return 0;
}

/* A thread still running may start others: list again until nobody new is found. */
static int freeze_all(struct freeze *fz)
{
	unsigned stopped = 0;
	int rc;

	while ((rc = seize_new(fz)) > 0)
		for (; stopped < fz->nr; stopped++) {
			rc = wait_stopped(fz, &fz->thread[stopped]);
			if (rc)
				return rc;
		}
	if (rc)
		return rc;
	return fz->nr ? 0 : -ESRCH;
}

static void thaw(struct freeze *fz)
{
	for (unsigned i = 0; i < fz->nr; i++)
		ptrace(PTRACE_DETACH, fz->thread[i].tid, NULL, (void *)(long)fz->thread[i].signal);
}

static void *freeze_and_call(void *arg)
{
	struct freeze *fz = arg;

	fz->rc = freeze_all(fz);
	if (!fz->rc)
		fz->rc = fz->fn(fz->ctx);
	thaw(fz);
	return NULL;
}

int ft_while_frozen(pid_t pid, unsigned timeout_ms, int (*fn)(void *ctx), void *ctx)
{
	struct freeze fz = { .pid = pid, .fn = fn, .ctx = ctx };
	pthread_t thread;
	int rc;

	fz.deadline_ns = ft_now_ns() + timeout_ms * FT_MS_NS;
	rc = ft_thread_start(&thread, "ft-freeze", freeze_and_call, &fz);
	if (rc)
		return rc;
	pthread_join(thread, NULL);
	free(fz.thread);
	return fz.rc;
}
