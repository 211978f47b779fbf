// SPDX-License-Identifier: GPL-3.0-or-later
/* namespaces.c - a small world for one test; see tests/test.h. */
#include "tests/test.h"

#include <linux/sockios.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

void ft_test_namespaces(void)
{
	int status;
	pid_t pid;

	if (unshare(CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWNS) < 0)
		ft_test_skip("no namespaces of our own: %s", strerror(errno));
	CHECK_OK(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	pid = fork();
	CHECK(pid >= 0);
	if (pid) {
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
	}
	CHECK_OK(mount("proc", "/proc", "proc", 0, NULL));
}

void ft_test_bridge(const char *name)
{
	struct ifreq r = { 0 };
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);

	CHECK(s >= 0 && strlen(name) < IFNAMSIZ);
	if (ioctl(s, SIOCBRADDBR, name) < 0)
		ft_test_skip("this kernel has no bridges: %s", strerror(errno));
	strcpy(r.ifr_name, name);
	r.ifr_flags = IFF_UP;
	CHECK_OK(ioctl(s, SIOCSIFFLAGS, &r));
	close(s);
}
