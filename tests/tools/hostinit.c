// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * hostinit.c - one host of the test world: its own network, mounts, processes, name; and its PID 1.
 *
 *	hostinit NAME [-b SOURCE TARGET]... [-t TARGET]...
 *
 * -b binds a directory, -t mounts an empty tmpfs. Prints the PID of the new PID 1 (as its caller sees it) and
 * stays until that dies. PID 1 reaps orphans and does nothing else. Both die with their parent, so nothing
 * of the host outlives the test, however the test ended; SIGKILL of PID 1 is the host's power cut.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static void die(const char *what, const char *on)
{
	fprintf(stderr, "hostinit: %s %s: %s\n", what, on, strerror(errno));
	exit(1);
}

static void mount_or_die(const char *from, const char *to, const char *type, unsigned long flags)
{
	if (mount(from, to, type, flags, NULL))
		die("mount", to);
}

/* Fresh views of the kernel first, then what the caller asked for, in its order. */
static void make_mounts(int argc, char **argv)
{
	mount_or_die("none", "/", NULL, MS_REC | MS_PRIVATE);
	mount_or_die("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC);
	mount_or_die("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC);
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "-b") && i + 2 < argc) {
			mount_or_die(argv[i + 1], argv[i + 2], NULL, MS_BIND);
			i += 2;
		} else if (!strcmp(argv[i], "-t") && i + 1 < argc) {
			mount_or_die("tmpfs", argv[++i], "tmpfs", MS_NOSUID | MS_NODEV);
		} else {
			fprintf(stderr, "hostinit: unexpected '%s'\n", argv[i]);
			exit(2);
		}
	}
}

static void reap_forever(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwaitinfo(&set, NULL);
	}
}

static void be_pid_one(int argc, char **argv, int ready)
{
	sigset_t all;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	setsid();
	if (sethostname(argv[1], strlen(argv[1])))
		die("sethostname", argv[1]);
	make_mounts(argc, argv);
	if (write(ready, "", 1) != 1)           /* our parent is gone */
		exit(1);
	close(ready);
	reap_forever();
}

int main(int argc, char **argv)
{
	int ready[2];
	pid_t pid;
	char c;

	if (argc < 2) {
		fprintf(stderr, "usage: hostinit NAME [-b SOURCE TARGET]... [-t TARGET]...\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);                /* Ctrl-C is for the test; it takes us along */
	if (unshare(CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC))
		die("unshare", argv[1]);
	if (pipe(ready))
		die("pipe", argv[1]);
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		die("fork", argv[1]);
	if (pid == 0) {
		close(ready[0]);
		be_pid_one(argc, argv, ready[1]);
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		return 1;
	printf("%d\n", (int)pid);
	fflush(stdout);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return 0;
}
