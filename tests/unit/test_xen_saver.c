// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_saver.c - whose memory a saver of xl's reads: another domain's is none of ours. */
#include "checkpoint/xen.h"
#include "tests/test.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* A process that shows these arguments to /proc, from its exec on. */
static pid_t show(const char *helper, const char *domid)
{
	int started[2];
	char byte;
	pid_t pid;

	CHECK_EQ(pipe(started), 0);
	pid = fork();
	if (!pid) {
		(void)dup2(started[1], 1);
		(void)close(started[0]);
		execl("/bin/sh", "sh", "-c", "echo; kill -STOP $$", helper, "--save-domain", "11", "12", domid, "1", NULL);
		_exit(1);
	}
	(void)close(started[1]);
	CHECK_EQ(read(started[0], &byte, 1), 1);
	(void)close(started[0]);
	return pid;
}

static void end(pid_t pid)
{
	(void)kill(pid, SIGKILL);
	CHECK_EQ(waitpid(pid, NULL, 0), pid);
}

TEST(a_saver_is_known_by_the_domain_that_it_saves)
{
	pid_t pid = show("libxl-save-helper", "917");

	CHECK(xen_saver_runs(917));
	CHECK(xen_saver_runs(0));
	CHECK(!xen_saver_runs(91));
	CHECK(!xen_saver_runs(11));
	end(pid);
	CHECK(!xen_saver_runs(917));
}

TEST(what_only_looks_like_a_saver_is_none)
{
	pid_t pid = show("libxl-saver", "918");

	CHECK(!xen_saver_runs(918));
	end(pid);
}
