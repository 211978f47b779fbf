// SPDX-License-Identifier: GPL-3.0-or-later
/* test.c - runs what TEST registered: each in a forked child, under a time limit, as TAP. */
#include "tests/test.h"

#include <ftw.h>
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ft_test *first, **last = &first;
static char dir[64];
static char *captured;                  /* shared with the child: log lines, and a skip reason */
#define CAPTURE_MAX (1 << 20)

void ft_test_register(struct ft_test *t)
{
	*last = t;
	last = &t->next;
}

void ft_test_fail(const char *file, int line, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	printf("# %s:%d: ", file, line);
	vprintf(fmt, ap);
	printf("\n");
	va_end(ap);
	fflush(stdout);
	_exit(1);
}

void ft_test_skip(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(captured, 512, fmt, ap);
	va_end(ap);
	fflush(stdout);
	_exit(77);
}

/* Threads log, too. */
static void capture_line(void *ctx, enum ft_log_level level, const char *line)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	size_t used;

	(void)ctx;
	pthread_mutex_lock(&lock);
	used = strlen(captured);
	printf("# log %d: %s\n", level, line);
	if (used + strlen(line) + 2 < CAPTURE_MAX) {
		strcpy(captured + used, line);
		strcat(captured + used, "\n");
	}
	pthread_mutex_unlock(&lock);
}

bool ft_test_logged(const char *part)
{
	return strstr(captured, part) != NULL;
}

static int remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	(void)remove(path);     /* what a dying process just removed itself must not end the walk */
	return 0;
}

const char *ft_test_dir(void)
{
	return dir;
}

static void print_proc(pid_t pid, const char *file)
{
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		printf("# %s: %s%s", path, line, strchr(line, '\n') ? "" : "\n");
	if (f)
		fclose(f);
}

/* Its time limit ends a test by a signal; one that is stuck in the kernel does not hear it. Its status. */
static int wait_for_end(pid_t pid, unsigned limit_s)
{
	struct pollfd p = { .fd = (int)syscall(SYS_pidfd_open, pid, 0), .events = POLLIN };
	int status = 0;

	if (p.fd >= 0 && poll(&p, 1, (int)(limit_s + 20) * 1000) == 0) {
		printf("# process %d is stuck in the kernel\n", (int)pid);
		print_proc(pid, "stat");
		print_proc(pid, "syscall");
		print_proc(pid, "stack");
		fflush(stdout);
		kill(pid, SIGKILL);
		status = poll(&p, 1, 10000) == 0 ? SIGKILL : 0;
	}
	if (p.fd >= 0)
		close(p.fd);
	while (!status && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static int run_one(const struct ft_test *t)
{
	int status;
	pid_t pid;

	captured[0] = 0;
	strcpy(dir, "/tmp/ft-test-XXXXXX");
	if (!mkdtemp(dir))
		abort();
	fflush(stdout);
	pid = fork();
	if (pid < 0)
		abort();
	if (pid == 0) {
		setpgid(0, 0);
		ft_log_divert(capture_line, NULL);
		alarm(t->timeout_s);
		t->fn();
		fflush(stdout);
		exit(0);                /* not _exit: leaks are found at exit */
	}
	status = wait_for_end(pid, t->timeout_s);
	kill(-pid, SIGKILL);            /* what the test left running */
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	return status;
}

int main(int argc, char **argv)
{
	unsigned n = 0, bad = 0;

	captured = mmap(NULL, CAPTURE_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (captured == MAP_FAILED)
		return 1;
	for (struct ft_test *t = first; t; t = t->next) {
		int status;

		if (argc > 1 && !strstr(t->name, argv[1]))
			continue;
		if (getenv("FT_TEST_SLOW"))     /* should the whole machine hang: in which test? */
			printf("# %s\n", t->name);
		status = run_one(t);
		n++;
		if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
			printf("ok %u %s # SKIP %s\n", n, t->name, captured);
		} else if (status) {
			if (WIFSIGNALED(status))
				printf("# killed by signal %d%s\n", WTERMSIG(status), WTERMSIG(status) == SIGALRM ? " (time limit)" : "");
			printf("not ok %u %s\n", n, t->name);
			bad++;
		} else {
			printf("ok %u %s\n", n, t->name);
		}
	}
	printf("1..%u\n", n);
	return bad ? 1 : 0;
}
