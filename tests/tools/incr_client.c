// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * incr_client.c - ONE TCP connection to Redis, INCR as fast as replies come; never connects again.
 *
 *	incr_client ADDRESS PORT KEY LOG
 *
 * LOG gets a line "C NS" when connected, "R SENT_NS REPLY_NS VALUE" for each reply and, at the end, "B NS WHY"
 * (the connection broke; status 1) or "S NS VALUE-IN-FLIGHT" (SIGTERM; status 0). Times are CLOCK_MONOTONIC.
 * The log alone tells what was acknowledged: every line is written before the next request is sent.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECT_TRIES 300

static volatile sig_atomic_t stopped;
static int log_fd;

static void on_term(int sig)
{
	(void)sig;
	stopped = 1;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void log_line(const char *line)
{
	if (write(log_fd, line, strlen(line)) < 0) {
		perror("incr_client: log");
		exit(2);
	}
}

static void broke(const char *why)
{
	char line[128];

	snprintf(line, sizeof(line), "B %llu %s\n", (unsigned long long)now_ns(), why);
	log_line(line);
	exit(1);
}

static int connect_once(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *ai;
	int one = 1, fd;

	if (getaddrinfo(host, port, &hints, &ai))
		return -1;
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen)) {
		close(fd);
		fd = -1;
	}
	freeaddrinfo(ai);
	if (fd >= 0)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

/* Redis may still be starting; once connected there is no second try. */
static int connect_first(const char *host, const char *port)
{
	int fd = -1;

	for (int i = 0; i < CONNECT_TRIES && fd < 0 && !stopped; i++) {
		fd = connect_once(host, port);
		if (fd < 0)
			nanosleep(&(struct timespec){ 0, 100000000 }, NULL);
	}
	if (fd < 0) {
		fprintf(stderr, "incr_client: cannot connect to %s port %s\n", host, port);
		exit(2);
	}
	return fd;
}

/* ":NUMBER\r\n". False when stopped meanwhile. */
static bool read_reply(int fd, long long *value)
{
	char buf[64];
	size_t len = 0;

	for (;;) {
		ssize_t n = recv(fd, buf + len, sizeof(buf) - 1 - len, 0);

		if (n < 0 && errno == EINTR) {
			if (stopped)
				return false;
			continue;
		}
		if (n <= 0)
			broke(n ? strerror(errno) : "closed by the guest");
		len += (size_t)n;
		buf[len] = 0;
		if (strstr(buf, "\r\n"))
			break;
		if (len == sizeof(buf) - 1)
			broke("reply too long");
	}
	if (buf[0] != ':')
		broke("not a number");
	*value = strtoll(buf + 1, NULL, 10);
	return true;
}

int main(int argc, char **argv)
{
	struct sigaction term = { .sa_handler = on_term };      /* no SA_RESTART: recv wakes up */
	char request[128], line[128];
	long long value = 0;
	uint64_t sent = 0;
	int fd;

	if (argc != 5) {
		fprintf(stderr, "usage: incr_client ADDRESS PORT KEY LOG\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &term, NULL);
	log_fd = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (log_fd < 0) {
		perror(argv[4]);
		return 2;
	}
	fd = connect_first(argv[1], argv[2]);
	snprintf(line, sizeof(line), "C %llu\n", (unsigned long long)now_ns());
	log_line(line);
	snprintf(request, sizeof(request), "INCR %s\r\n", argv[3]);
	while (!stopped) {
		sent = now_ns();
		if (send(fd, request, strlen(request), 0) < 0)
			broke(strerror(errno));
		if (!read_reply(fd, &value))
			break;
		snprintf(line, sizeof(line), "R %llu %llu %lld\n", (unsigned long long)sent, (unsigned long long)now_ns(), value);
		log_line(line);
	}
	snprintf(line, sizeof(line), "S %llu %lld\n", (unsigned long long)now_ns(), value);
	log_line(line);
	return 0;
}
