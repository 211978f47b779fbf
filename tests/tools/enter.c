// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * enter.c - run a program on a host of the test world.
 *
 *	enter PID PROGRAM ARGUMENT...
 *
 * PID is the host's PID 1 as we see it. The program gets all of the host's namespaces, / as its directory and
 * the PATH of its caller; it dies with us, and we with our parent. Exit status as a shell would say it.
 */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CANNOT_ENTER 125
#define CANNOT_RUN 127

static void join_host(pid_t pid)
{
	int fd = (int)syscall(SYS_pidfd_open, pid, 0);

	if (fd < 0 || setns(fd, CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC)) {
		fprintf(stderr, "enter: host with PID 1 = %d: %s\n", (int)pid, strerror(errno));
		exit(CANNOT_ENTER);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	int status;
	pid_t pid;

	if (argc < 3) {
		fprintf(stderr, "usage: enter PID PROGRAM ARGUMENT...\n");
		return CANNOT_ENTER;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	join_host((pid_t)atoi(argv[1]));
	pid = fork();
	if (pid < 0)
		return CANNOT_ENTER;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (chdir("/") == 0)
			execvp(argv[2], argv + 2);
		fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
		_exit(CANNOT_RUN);
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return CANNOT_ENTER;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
