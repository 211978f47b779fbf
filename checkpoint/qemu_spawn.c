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

static bool is_ours(const char *var)
{
	static const char *const names[] = { "LD_PRELOAD=", "FT_PRELOAD_PAGE=", "LISTEN_" };

	for (unsigned i = 0; i < FT_ARRAY_LEN(names); i++)
		if (!strncmp(var, names[i], strlen(names[i])))
			return true;
	return false;
}

char **ft_spawn_environment(char *const *more)
{
	unsigned n = 0, nr_more = 0, used = 0;
	char **env;

	while (environ[n])
		n++;
	while (more[nr_more])
		nr_more++;
	env = calloc(n + nr_more + 1, sizeof(*env));
	if (!env)
		return NULL;
	for (unsigned i = 0; i < n; i++)
		if (!is_ours(environ[i]))
			env[used++] = environ[i];
	memcpy(env + used, more, nr_more * sizeof(*more));
	return env;
}

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

/* Our ends, then theirs. */
struct pipes {
	int status_rd, go_wr;
	int status_wr, go_rd;
};

/*
 * Nobody's child begins only when nobody is its parent: nbdkit, as other programs do when systemd's protocol is spoken
 * to them, asks to be ended with the parent that it finds.
 */
static void await_go(int go_rd)
{
	char none;

	while (read(go_rd, &none, 1) < 0 && errno == EINTR)
		;
}

/* The status pipe carries the program's pid, then an errno if it could not be executed. */
static void child(const struct ft_spawn *x, const struct pipes *p, pid_t parent) __attribute__((noreturn));
static void child(const struct ft_spawn *x, const struct pipes *p, pid_t parent)
{
	/* Out of the way of what prepare places. */
	int status_fd = fcntl(p->status_wr, F_DUPFD_CLOEXEC, 64), rc;
	pid_t pid;

	close(p->go_wr);
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
	pid = getpid();
	if (write(status_fd, &pid, sizeof(pid)) != sizeof(pid))
		_exit(125);
	await_go(p->go_rd);
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

static void reap(pid_t pid)
{
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

static int make_pipes(struct pipes *p)
{
	int status[2], go[2], rc;

	if (pipe2(status, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(go, O_CLOEXEC) < 0) {
		rc = -errno;
		close(status[0]);
		close(status[1]);
		return rc;
	}
	*p = (struct pipes){ .status_rd = status[0], .status_wr = status[1], .go_rd = go[0], .go_wr = go[1] };
	return 0;
}

/* @pid is our child: the program, or who has made it and ends at once. */
static int follow(const struct ft_spawn *x, const struct pipes *p, pid_t pid, pid_t *out)
{
	bool made = read_int(p->status_rd, out);
	int rc = made ? 0 : -EAGAIN;

	if (!x->scratch)
		reap(pid);
	close(p->go_wr);
	if (made)
		ft_ignore(!read_int(p->status_rd, &rc));        /* nothing more: it runs */
	if (rc && x->scratch)
		reap(pid);
	return rc;
}

int ft_spawn(const struct ft_spawn *x, pid_t *out)
{
	pid_t parent = getpid(), pid;
	struct pipes p = { .status_rd = -1 };
	int rc = make_pipes(&p);

	*out = 0;
	if (rc)
		return rc;
	pid = fork();
	if (pid == 0)
		child(x, &p, parent);
	rc = pid < 0 ? -errno : 0;
	close(p.status_wr);
	close(p.go_rd);
	if (rc)
		close(p.go_wr);
	else
		rc = follow(x, &p, pid, out);
	close(p.status_rd);
	return rc;
}

int ft_qemu_spawn(const struct ft_qemu_exec *x, pid_t *pid)
{
	struct ft_spawn s = {
		.argv = x->argv, .envp = x->envp, .prepare = prepare_qemu, .ctx = x, .scratch = x->plan->kind == FT_QEMU_SCRATCH,
	};

	return ft_spawn(&s, pid);
}
