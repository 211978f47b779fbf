// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_tool.c - what Xen's toolstack does for us: building domains, and clearing away dead ones. See checkpoint/xen.h.
 */
#include "checkpoint/xen.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define DESTROY_S 60
#define TURN_MS 100

/* The last line that @fd holds. */
static void last_line(int fd, char *out, size_t size)
{
	char text[4096];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	char *line;

	text[n > 0 ? n : 0] = 0;
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	line = strrchr(text, '\n');
	snprintf(out, size, "%.*s", (int)size - 1, line ? line + 1 : text);
}

/* The child makes nothing but system calls until exec. xl leaves a process that watches the domain: it keeps nothing of
 * ours. */
static void run(int log_fd, char *const *argv)
{
	sigset_t none;
	int null = open("/dev/null", O_RDWR);

	dup2(null, 0);
	dup2(log_fd, 1);
	dup2(log_fd, 2);
	(void)close_range(3, ~0u, 0);
	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	ft_priority_default();
	execvp(argv[0], argv);
	_exit(127);
}

static int wait_for(pid_t pid, unsigned timeout_s, void (*turn)(void *ctx), void *ctx)
{
	struct pollfd p = { .fd = pidfd_open(pid, 0), .events = POLLIN };
	uint64_t now = ft_now_ns(), end = now + timeout_s * FT_S_NS;
	int status = 0, n = -1;

	for (; p.fd >= 0 && n <= 0 && now < end; now = ft_now_ns()) {
		n = poll(&p, 1, turn ? TURN_MS : (int)((end - now) / FT_MS_NS) + 1);
		if (n < 0 && errno != EINTR)
			break;
		if (!n && turn)
			turn(ctx);
	}
	if (p.fd >= 0)
		close(p.fd);
	if (n <= 0)
		kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid)
		return -ECHILD;
	if (n <= 0)
		return -ETIMEDOUT;
	return !WIFEXITED(status) ? -EIO : WEXITSTATUS(status) == 127 ? -ENOENT : WEXITSTATUS(status) ? -EIO : 0;
}

int xen_xl(const char *guest, unsigned timeout_s, const char *const *arg)
{
	return xen_xl_meanwhile(guest, timeout_s, arg, NULL, NULL);
}

int xen_xl_meanwhile(const char *guest, unsigned timeout_s, const char *const *arg, void (*turn)(void *ctx), void *ctx)
{
	const char *argv[16] = { "xl" };
	char said[200];
	int log_fd = memfd_create("ft-xl", MFD_CLOEXEC), rc;
	pid_t pid;

	for (unsigned i = 1; i < FT_ARRAY_LEN(argv) - 1 && arg[i - 1]; i++)
		argv[i] = arg[i - 1];
	if (log_fd < 0)
		return -errno;
	pid = fork();
	if (pid == 0)
		run(log_fd, (char *const *)(uintptr_t)argv);
	rc = pid < 0 ? -errno : wait_for(pid, timeout_s, turn, ctx);
	if (rc) {
		last_line(log_fd, said, sizeof(said));
		ft_err("%s: 'xl %s' %s%s%s", guest, argv[1], rc == -ENOENT ? "cannot be started: install xen-utils" :
		       rc == -ETIMEDOUT ? "did not end in time" : "failed", *said ? ": " : "", said);
	}
	close(log_fd);
	return rc;
}

int xen_apart(unsigned timeout_s, int (*job)(void *ctx), void *ctx)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(job(ctx) ? 1 : 0);
	return pid < 0 ? -errno : wait_for(pid, timeout_s, NULL, NULL);
}

int xen_destroy(const struct xen_dom *d)
{
	char id[16];
	xc_domaininfo_t info;

	snprintf(id, sizeof(id), "%u", d->domid);
	if (xen_dom_info(d, &info))
		return 0;
	if (xc_domain_pause(d->xc, d->domid))           /* from this instant on it does nothing more */
		ft_warn("%s: domain %s cannot be paused: %s", d->guest, id, strerror(errno));
	return xen_xl(d->guest, DESTROY_S, (const char *const[]){ "destroy", id, NULL });
}
