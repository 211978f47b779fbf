// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_spawn.c - from fork to exec; see checkpoint/qemu_start.h. Our process may have threads and gigabytes mapped, so
 * the child makes nothing but system calls.
 */
#include "checkpoint/qemu_start.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- the child, in the order things happen --- */

static void set_signals(void)
{
	sigset_t none;

	for (int sig = 1; sig < NSIG; sig++)
		signal(sig, SIG_DFL);
	signal(SIGXFSZ, SIG_IGN);       /* a full log is a short write, not the guest's death */
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
}

/* QEMU in a network namespace where there is nothing: its taps lead nowhere. */
static int leave_network(const struct ft_qemu_plan *p)
{
	int rc = 0;

	if (unshare(CLONE_NEWNET) < 0)
		return -errno;
	for (unsigned i = 0; i < p->spec->nr_nics && rc >= 0; i++)
		rc = ft_tap_open_raw(p->tap[i], p->tap_fd[i]);
	return rc < 0 ? rc : 0;
}

static void keep_open(int fd)
{
	fcntl(fd, F_SETFD, fcntl(fd, F_GETFD) & ~FD_CLOEXEC);
}

static int set_files(const struct ft_qemu_exec *x)
{
	const struct rlimit bound = { FT_QEMU_LOG_MAX, FT_QEMU_LOG_MAX };
	const struct ft_qemu_plan *p = x->plan;

	if (dup2(x->null_fd, 0) < 0 || dup2(x->log_fd, 1) < 0 || dup2(x->log_fd, 2) < 0)
		return -errno;
	if (close_range(3, ~0u, CLOSE_RANGE_CLOEXEC) < 0 || setrlimit(RLIMIT_FSIZE, &bound) < 0)
		return -errno;
	for (unsigned i = 0; i < FT_ARRAY_LEN(p->qmp_fd); i++)
		keep_open(p->qmp_fd[i]);
	for (unsigned i = 0; i < p->spec->nr_nics; i++)
		keep_open(p->tap_fd[i]);
	umask(077);
	return chdir("/") < 0 ? -errno : 0;
}

static int prepare_qemu(const void *ctx)
{
	const struct ft_qemu_exec *x = ctx;
	int rc = 0;

	if (x->plan->kind == FT_QEMU_SCRATCH)
		rc = leave_network(x->plan);
	return rc ? rc : set_files(x);
}

static int become(const struct ft_spawn *x)
{
	int rc;

	set_signals();
	ft_priority_default();
	rc = x->prepare(x->ctx);
	if (rc)
		return rc;
	execvpe(x->argv[0], x->argv, x->envp);
	return -errno;
}

/* The status pipe carries the program's pid, then an errno if it could not be executed. */
static void child(const struct ft_spawn *x, int status_fd, pid_t parent) __attribute__((noreturn));
static void child(const struct ft_spawn *x, int status_fd, pid_t parent)
{
	pid_t pid;
	int rc;

	setsid();
	if (x->scratch) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(125);
	} else {
		pid = _Fork();
		if (pid)
			_exit(pid < 0 ? 125 : 0);
	}
	status_fd = fcntl(status_fd, F_DUPFD_CLOEXEC, 64);      /* out of the way of what prepare places */
	pid = getpid();
	if (write(status_fd, &pid, sizeof(pid)) != sizeof(pid))
		_exit(125);
	rc = become(x);
	_exit(write(status_fd, &rc, sizeof(rc)) == sizeof(rc) ? 127 : 126);
}

/* --- the parent --- */

static bool read_int(int fd, int *v)
{
	ssize_t n;

	do
		n = read(fd, v, sizeof(*v));
	while (n < 0 && errno == EINTR);
	return n == sizeof(*v);
}

static int read_status(int fd, pid_t *pid)
{
	int rc;

	if (!read_int(fd, pid))
		return -EAGAIN;
	return read_int(fd, &rc) ? rc : 0;
}

int ft_spawn(const struct ft_spawn *x, pid_t *out)
{
	pid_t parent = getpid(), pid;
	int p[2], rc;

	*out = 0;
	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	pid = fork();
	if (pid == 0)
		child(x, p[1], parent);
	rc = pid < 0 ? -errno : 0;
	close(p[1]);
	if (!rc)
		rc = read_status(p[0], out);
	close(p[0]);
	if (pid > 0 && (rc || !x->scratch))
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	return rc;
}

int ft_qemu_spawn(const struct ft_qemu_exec *x, pid_t *pid)
{
	struct ft_spawn s = {
		.argv = x->argv, .envp = x->envp, .prepare = prepare_qemu, .ctx = x, .scratch = x->plan->kind == FT_QEMU_SCRATCH,
	};

	return ft_spawn(&s, pid);
}
