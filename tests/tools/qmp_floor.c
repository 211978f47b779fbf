// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qmp_floor.c - what a pause costs at least: stop, device state, cont, and nothing else.
 *
 *	qmp_floor QMP-SOCKET CYCLES GAP_MS STATE-FILE
 *
 * Prints one number a cycle: microseconds from the `stop` request to the answer to `cont`. STATE-FILE is a
 * path as QEMU sees it. A cycle every GAP_MS. The guest runs when the program ends.
 */
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static FILE *qmp;

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

static void die(const char *what)
{
	fprintf(stderr, "qmp_floor: %s\n", what);
	exit(1);
}

static void say(const char *line)
{
	if (send(fileno(qmp), line, strlen(line), MSG_NOSIGNAL) < 0)
		die("QMP: cannot send");
}

/* Events may come in between; an answer is one line with "return" or "error" in it. */
static void call(const char *line)
{
	char answer[8192];

	say(line);
	for (;;) {
		if (!fgets(answer, sizeof(answer), qmp))
			die("QMP: no answer");
		if (!strncmp(answer, "{\"return\"", 9))
			return;
		if (!strncmp(answer, "{\"error\"", 8))
			die(answer);
	}
}

static void connect_qmp(const char *path)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	struct timeval limit = { 10, 0 };
	char greeting[8192];
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(at.sun_path))
		die("path too long");
	strcpy(at.sun_path, path);
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)))
		die("cannot connect");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	qmp = fdopen(fd, "r");
	if (!qmp || !fgets(greeting, sizeof(greeting), qmp))
		die("no greeting");
	call("{\"execute\":\"qmp_capabilities\"}\n");
}

int main(int argc, char **argv)
{
	char save[512];
	long gap_ms;
	int cycles;

	if (argc != 5) {
		fprintf(stderr, "usage: qmp_floor QMP-SOCKET CYCLES GAP_MS STATE-FILE\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	cycles = atoi(argv[2]);
	gap_ms = atol(argv[3]);
	connect_qmp(argv[1]);
	snprintf(save, sizeof(save), "{\"execute\":\"xen-save-devices-state\",\"arguments\":{\"filename\":\"%s\",\"live\":false}}\n", argv[4]);
	for (int i = 0; i < cycles; i++) {
		uint64_t start = now_us();

		call("{\"execute\":\"stop\"}\n");
		call(save);
		call("{\"execute\":\"cont\"}\n");
		printf("%llu\n", (unsigned long long)(now_us() - start));
		nanosleep(&(struct timespec){ gap_ms / 1000, gap_ms % 1000 * 1000000 }, NULL);
	}
	return 0;
}
