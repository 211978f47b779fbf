// SPDX-License-Identifier: GPL-3.0-or-later
/* guard.c - ft-protect's side of ft/guard.h: start or adopt the guard, and talk to it. */
#include "ft/guard.h"
#include "failover/guard_msg.h"
#include "ft/conf.h"

#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 10000                  /* the new guard speaks to QEMU first */
#define ATTACH_MS 5000                  /* a living one answers at once, unless it must speak to QEMU */
#define END_MS 1000

struct ft_guard {
	int fd;
	struct guard_page *page;
};

extern char **environ;

static bool readable_within(int fd, unsigned ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t end = ft_now_ns() + ms * FT_MS_NS;
	int n;

	do {
		uint64_t now = ft_now_ns();

		n = poll(&p, 1, now < end ? (int)((end - now + FT_MS_NS - 1) / FT_MS_NS) : 0);
	} while (n < 0 && errno == EINTR);
	return n > 0;
}

/* --- attaching --- */

static int dial(const char *guest)
{
	struct sockaddr_un a;
	int fd, rc = guard_address(guest, &a);

	if (rc)
		return rc;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	rc = errno == ECONNREFUSED ? -ENOENT : errno == EAGAIN ? -ETIMEDOUT : -errno;
	close(fd);
	return rc;
}

static struct guard_msg message(enum guard_type type)
{
	return (struct guard_msg){ .magic = GUARD_MAGIC, .abi = GUARD_ABI, .type = type };
}

static int map_page(struct ft_guard *g, int page_fd)
{
	g->page = mmap(NULL, sizeof(*g->page), PROT_READ | PROT_WRITE, MAP_SHARED, page_fd, 0);
	if (g->page != MAP_FAILED)
		return 0;
	g->page = NULL;
	return -errno;
}

/* @fd is connected and ours. *@kept: the gate's socket it held, or -1. */
static int attach(struct ft_guard *g, const struct ft_guard_config *cfg, int *kept)
{
	struct guard_msg msg = message(GUARD_ATTACH);
	struct guard_reply reply;
	int fds[GUARD_FDS_MAX], rc;
	unsigned nr_fds;
	ssize_t n;

	*kept = -1;
	msg.pause_limit_ms = cfg->pause_limit_ms;
	msg.grace_ms = cfg->grace_ms;
	rc = guard_send(g->fd, &msg, sizeof(msg), NULL, 0);
	if (rc)
		return rc;
	if (!readable_within(g->fd, ATTACH_MS))
		return -ETIMEDOUT;
	n = guard_receive(g->fd, &reply, sizeof(reply), fds, &nr_fds);
	if (n < 0)
		return (int)n;
	rc = n != sizeof(reply) || reply.magic != GUARD_MAGIC || (!reply.rc && !nr_fds) ? -EPROTO : reply.rc;
	if (!rc)
		rc = map_page(g, fds[0]);
	if (!rc && nr_fds == 2)
		*kept = fds[1];
	for (unsigned i = 0; i < nr_fds; i++)
		if (fds[i] != *kept)
			close(fds[i]);
	return rc;
}

/* A guard that does not answer, or not in our words, guards nothing: make room for another. */
static void replace(const char *guest, int sock, int why)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int pidfd;

	ft_warn("%s: the guard that runs %s; replacing it", guest,
		why == -ETIMEDOUT ? "does not answer" : "is of another version");
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return;
	pidfd = pidfd_open(peer.pid, 0);
	if (pidfd < 0)
		return;
	(void)pidfd_send_signal(pidfd, SIGKILL, NULL, 0);
	(void)readable_within(pidfd, END_MS);
	close(pidfd);
}

int ft_guard_adopt(const struct ft_guard_config *cfg, int *owner_fd, struct ft_guard **out)
{
	struct ft_guard *g = malloc(sizeof(*g));
	int rc;

	*out = NULL;
	*owner_fd = -1;
	if (!g)
		return -ENOMEM;
	*g = (struct ft_guard){ .fd = dial(cfg->guest) };
	rc = g->fd < 0 ? g->fd : attach(g, cfg, owner_fd);
	if (rc == -EBUSY)
		ft_err("%s: its guard belongs to another ft-protect that lives", cfg->guest);
	if ((rc == -ETIMEDOUT || rc == -EPROTO) && g->fd >= 0)
		replace(cfg->guest, g->fd, rc);
	if (rc) {
		ft_guard_free(g);
		return rc == -EBUSY ? rc : -ENOENT;
	}
	*out = g;
	return 0;
}

/* --- starting --- */

/* The program forks, and its first process ends when the guard is ready: 0, or not 0 after saying why. */
static int wait_ready(const char *program, pid_t pid)
{
	int status = 0, pidfd = pidfd_open(pid, 0);
	bool ended = pidfd >= 0 && readable_within(pidfd, START_MS);

	if (pidfd >= 0)
		close(pidfd);
	if (!ended) {
		kill(pid, SIGKILL);
		ft_err("%s: not ready in %d ms; is QEMU alive?", program, START_MS);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return !ended ? -ETIMEDOUT : status ? -ECHILD : 0;
}

static int spawn(const char *guest)
{
	char program[FT_PATH_MAX + 16], *argv[] = { program, (char *)(uintptr_t)guest, NULL, NULL };
	char run_dir[FT_PATH_MAX];
	posix_spawnattr_t attr;
	sigset_t none, all;
	pid_t pid;
	int rc;

	snprintf(program, sizeof(program), "%s/ft-guard", ft_conf()->libexec_dir);
	strcpy(run_dir, ft_conf()->run_dir);
	argv[2] = run_dir;
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawnattr_init(&attr);
	posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&attr, &none);
	posix_spawnattr_setsigdefault(&attr, &all);
	rc = -posix_spawn(&pid, program, NULL, &attr, argv, environ);
	posix_spawnattr_destroy(&attr);
	if (rc) {
		ft_err("%s: cannot be started: %s; is ft installed completely?", program, strerror(-rc));
		return rc;
	}
	return wait_ready(program, pid);
}

int ft_guard_start(const struct ft_guard_config *cfg, struct ft_guard **out)
{
	int kept, rc = ft_guard_adopt(cfg, &kept, out);

	if (rc == -ENOENT) {
		rc = spawn(cfg->guest);
		if (!rc)
			rc = ft_guard_adopt(cfg, &kept, out);
	}
	if (rc)
		return rc;
	if (kept >= 0)
		close(kept);
	if (cfg->owner_fd >= 0)
		rc = ft_guard_hold(*out, cfg->owner_fd);
	if (rc) {
		ft_guard_free(*out);
		*out = NULL;
	}
	return rc;
}

/* --- talking --- */

int ft_guard_hold(struct ft_guard *g, int owner_fd)
{
	struct guard_msg msg = message(GUARD_HOLD);

	return guard_send(g->fd, &msg, sizeof(msg), &owner_fd, owner_fd >= 0);
}

int ft_guard_beat(struct ft_guard *g, const struct ft_beat_config *beat)
{
	struct guard_msg msg = message(beat ? GUARD_BEAT : GUARD_MUTE);
	int rc;

	if (beat) {
		msg.beat = *beat;
		msg.beat.guard = true;
		msg.beat.on_lease = NULL;
		msg.beat.ctx = NULL;
	}
	rc = guard_send(g->fd, &msg, sizeof(msg), NULL, 0);
	explicit_bzero(&msg, sizeof(msg));
	return rc;
}

void ft_guard_pause(struct ft_guard *g)
{
	uint64_t word;

	if (!g)
		return;
	word = atomic_load(&g->page->pause);
	/* What the guard has revoked stays revoked until resume has been told. */
	while ((guard_word_state(word) == GUARD_RUNNING || guard_word_state(word) == GUARD_PAUSED) &&
	       !atomic_compare_exchange_weak(&g->page->pause, &word, guard_word(GUARD_PAUSED, ft_now_ns())))
		;
}

int ft_guard_resume(struct ft_guard *g)
{
	uint64_t word, next;

	if (!g)
		return -ECANCELED;
	word = atomic_load(&g->page->pause);
	do {
		if (guard_word_state(word) == GUARD_REVOKING)
			return -ECANCELED;      /* its cont may still come: the next pause is void as well */
		next = guard_word(GUARD_RUNNING, 0);
	} while (!atomic_compare_exchange_weak(&g->page->pause, &word, next));
	return guard_word_state(word) == GUARD_PAUSED ? 0 : -ECANCELED;
}

void ft_guard_held(struct ft_guard *g, bool held)
{
	atomic_store(&g->page->held, held);
}

void ft_guard_whole(struct ft_guard *g, bool whole)
{
	atomic_store(&g->page->whole, whole);
}

void ft_guard_tick(struct ft_guard *g)
{
	atomic_fetch_add(&g->page->ticks, 1);
}

void ft_guard_rest(struct ft_guard *g)
{
	atomic_store(&g->page->ticks, 0);
}

bool ft_guard_alive(struct ft_guard *g)
{
	return !readable_within(g->fd, 0);
}

int ft_guard_fd(struct ft_guard *g)
{
	return g->fd;
}

void ft_guard_end(struct ft_guard *g)
{
	struct guard_msg msg = message(GUARD_END);

	if (!guard_send(g->fd, &msg, sizeof(msg), NULL, 0))
		(void)readable_within(g->fd, END_MS);
}

void ft_guard_free(struct ft_guard *g)
{
	if (!g)
		return;
	if (g->page)
		munmap(g->page, sizeof(*g->page));
	if (g->fd >= 0)
		close(g->fd);
	free(g);
}
