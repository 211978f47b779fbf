// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * frame_watch.c - every frame that a MAC address sends, and through which interface it came.
 *
 *	frame_watch LOG MAC INTERFACE...
 *
 * Prints "ready" once it listens on all of them. LOG gets a line "NS INTERFACE ETHERTYPE BYTES TEXT" for each
 * incoming frame whose source is MAC: CLOCK_MONOTONIC as the kernel received it, and what the frame says
 * between "FTT " and ";" (the test guest's numbered frames), or "-". Ends at SIGTERM, or with its parent.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <arpa/inet.h>
#include <net/if.h>
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

#define PORTS_MAX 8
#define SNAP 256

static volatile sig_atomic_t stopped;

static void on_term(int sig)
{
	(void)sig;
	stopped = 1;
}

static int64_t clock_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int listen_on(const char *name)
{
	int index = (int)if_nametoindex(name), one = 1, room = 8 << 20, fd;
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = index };
	struct packet_mreq promisc = { .mr_ifindex = index, .mr_type = PACKET_MR_PROMISC };

	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || !index || setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc, sizeof(promisc)) ||
	    bind(fd, (struct sockaddr *)&at, sizeof(at))) {
		fprintf(stderr, "frame_watch: %s: %s\n", name, strerror(errno));
		exit(1);
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room));
	return fd;
}

static int64_t received_ns(struct msghdr *msg)
{
	struct timespec ts;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_TIMESTAMPNS)
			continue;
		memcpy(&ts, CMSG_DATA(c), sizeof(ts));
		return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec + clock_ns(CLOCK_MONOTONIC) - clock_ns(CLOCK_REALTIME);
	}
	return clock_ns(CLOCK_MONOTONIC);
}

/* "v4 17" out of "...FTT v4 17;...". */
static void text_of(const uint8_t *frame, size_t len, char out[32])
{
	const char *at = memmem(frame, len, "FTT ", 4), *end = at ? memchr(at, ';', len - (size_t)((const uint8_t *)at - frame)) : NULL;

	strcpy(out, "-");
	if (end && end - at - 4 < 32)
		snprintf(out, 32, "%.*s", (int)(end - at - 4), at + 4);
}

static bool take_frame(int fd, const char *port, const uint8_t mac[6], FILE *log)
{
	uint8_t frame[SNAP];
	char control[256], text[32];
	struct sockaddr_ll from;
	struct iovec iov = { frame, sizeof(frame) };
	struct msghdr msg = { .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1,
			      .msg_control = control, .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(fd, &msg, MSG_TRUNC);
	size_t have = n < 0 ? 0 : (size_t)n < SNAP ? (size_t)n : SNAP;

	if (n < 0)
		return errno == EINTR;
	if (have < 14 || from.sll_pkttype == PACKET_OUTGOING || memcmp(frame + 6, mac, 6))
		return true;
	text_of(frame, have, text);
	fprintf(log, "%lld %s %04x %zd %s\n", (long long)received_ns(&msg), port, frame[12] << 8 | frame[13], n, text);
	return true;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
	return sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]) == 6;
}

int main(int argc, char **argv)
{
	struct sigaction term = { .sa_handler = on_term };
	struct pollfd fd[PORTS_MAX];
	uint8_t mac[6];
	int nr = argc - 3;
	FILE *log;

	if (nr < 1 || nr > PORTS_MAX || !parse_mac(argv[2], mac)) {
		fprintf(stderr, "usage: frame_watch LOG MAC INTERFACE...\n");
		return 2;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	sigaction(SIGTERM, &term, NULL);
	log = fopen(argv[1], "we");
	if (!log) {
		perror(argv[1]);
		return 2;
	}
	for (int i = 0; i < nr; i++)
		fd[i] = (struct pollfd){ listen_on(argv[3 + i]), POLLIN, 0 };
	printf("ready\n");
	fflush(stdout);
	while (!stopped && (poll(fd, (nfds_t)nr, -1) >= 0 || errno == EINTR)) {
		for (int i = 0; i < nr; i++)
			if (fd[i].revents)
				while (take_frame(fd[i].fd, argv[3 + i], mac, log))
					;
		fflush(log);
	}
	return fclose(log) ? 1 : 0;
}
