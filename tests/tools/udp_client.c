// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * udp_client.c - numbered datagrams to the guest's echo service, and what came back.
 *
 *	udp_client ADDRESS PORT INTERVAL_MS LOG
 *
 * Sends "SEQ" every INTERVAL_MS; the guest answers "SEQ COUNTER". LOG gets "R SEQ REPLY_NS COUNTER" for each
 * answer and "S NS SENT" at SIGTERM. Datagrams may be lost; a counter that does not grow must never be seen.
 */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;

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

static int connect_udp(const char *host, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_DGRAM }, *ai;
	int fd;

	if (getaddrinfo(host, port, &hints, &ai))
		return -1;
	fd = socket(ai->ai_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && connect(fd, ai->ai_addr, ai->ai_addrlen)) {
		close(fd);
		fd = -1;
	}
	freeaddrinfo(ai);
	return fd;
}

static void log_line(int fd, const char *line)
{
	if (write(fd, line, strlen(line)) < 0)
		exit(2);
}

static void take_answers(int fd, int log)
{
	unsigned long long seq, counter;
	char buf[128], line[128];
	ssize_t n;

	while ((n = recv(fd, buf, sizeof(buf) - 1, 0)) > 0) {
		buf[n] = 0;
		if (sscanf(buf, "%llu %llu", &seq, &counter) != 2)
			continue;
		snprintf(line, sizeof(line), "R %llu %llu %llu\n", seq, (unsigned long long)now_ns(), counter);
		log_line(log, line);
	}
}

int main(int argc, char **argv)
{
	struct sigaction term = { .sa_handler = on_term };
	uint64_t interval, next, seq = 0;
	char text[64];
	int fd, log;

	if (argc != 5) {
		fprintf(stderr, "usage: udp_client ADDRESS PORT INTERVAL_MS LOG\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	sigaction(SIGTERM, &term, NULL);
	fd = connect_udp(argv[1], argv[2]);
	log = open(argv[4], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0 || log < 0) {
		perror("udp_client");
		return 2;
	}
	interval = strtoull(argv[3], NULL, 10) * 1000000u;
	for (next = now_ns(); !stopped; ) {
		struct pollfd p = { fd, POLLIN, 0 };
		uint64_t now = now_ns();
		int wait_ms = next > now ? (int)((next - now) / 1000000u) + 1 : 0;

		if (poll(&p, 1, wait_ms) < 0 && errno != EINTR)
			return 2;
		take_answers(fd, log);
		if (now_ns() < next)
			continue;
		snprintf(text, sizeof(text), "%llu", (unsigned long long)++seq);
		if (send(fd, text, strlen(text), 0) < 0)
			seq--;          /* no route yet, or the neighbour does not answer */
		next += interval;
	}
	snprintf(text, sizeof(text), "S %llu %llu\n", (unsigned long long)now_ns(), (unsigned long long)seq);
	log_line(log, text);
	return 0;
}
