// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * wire.c - the cable between two hosts, in the test's hands.
 *
 * Both ends are tap devices in the hosts' network namespaces; frames go through this program, large ones
 * unsegmented. Commands are lines on stdin, each answered with "ok [RESULT]" or "error WHAT" on stdout; the
 * program ends with its stdin.
 *
 *	attach END PID NAME     make tap NAME in the network namespace of PID and plug it into END (0 or 1)
 *	pass FROM on|off        forward frames that come from END FROM (both are on at first)
 *	delay US | rate BYTES_PER_S | loss PERMILLE     each direction; 0 is none
 *	power PID NETNS_PID PORT END    power cut of host PID, as one act: link PORT in the namespace of NETNS_PID
 *	                        (the switch's side) goes down, END is unplugged, PID gets SIGKILL. Answers
 *	                        CLOCK_MONOTONIC in ns at the first of these.
 *	port NETNS_PID PORT up|down
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define FRAME_MAX (66 * 1024)
#define QUEUE_MAX (8 << 20)     /* bytes waiting in one direction; what is more is lost, as in a switch */
#define S_NS 1000000000ull

struct frame {
	struct frame *next;
	uint64_t due_ns;
	size_t len;
	uint8_t data[];
};

struct end {
	int tap;                /* -1: nothing plugged in */
	bool pass;              /* what comes from here is forwarded */
	struct frame *first, **last;
	size_t queued;
	uint64_t free_ns;       /* when the cable has sent what it was given */
};

static struct end ends[2];
static uint64_t delay_ns, rate, seed = 88172645463325252u;
static unsigned loss_permille;

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * S_NS + (uint64_t)ts.tv_nsec;
}

static bool is_lost(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % 1000 < loss_permille;
}

/* ---- frames ---- */

static void unplug(struct end *e)
{
	if (e->tap >= 0)
		close(e->tap);
	e->tap = -1;
}

static void deliver(struct end *to, const uint8_t *data, size_t len)
{
	/* A full or vanished tap loses the frame: that is what cables do. */
	if (to->tap >= 0 && write(to->tap, data, len) < 0 && errno == EBADFD)
		unplug(to);
}

static void enqueue(struct end *from, const uint8_t *data, size_t len, uint64_t now)
{
	struct frame *f;

	if (from->queued + len > QUEUE_MAX)
		return;
	f = malloc(sizeof(*f) + len);
	if (!f)
		return;
	if (from->free_ns < now)
		from->free_ns = now;
	if (rate)
		from->free_ns += len * S_NS / rate;
	f->next = NULL;
	f->due_ns = from->free_ns + delay_ns;
	f->len = len;
	memcpy(f->data, data, len);
	*from->last = f;
	from->last = &f->next;
	from->queued += len;
}

static void flush_due(struct end *from, struct end *to, uint64_t now)
{
	struct frame *f;

	while ((f = from->first) && f->due_ns <= now) {
		from->first = f->next;
		if (!from->first)
			from->last = &from->first;
		from->queued -= f->len;
		if (from->pass)
			deliver(to, f->data, f->len);
		free(f);
	}
}

static void forward(struct end *from, struct end *to)
{
	static uint8_t buf[FRAME_MAX];

	for (int burst = 0; burst < 64; burst++) {
		ssize_t n = read(from->tap, buf, sizeof(buf));

		if (n < 0 && errno == EBADFD)
			unplug(from);           /* its host is gone */
		if (n <= 0)
			return;
		if (!from->pass || (loss_permille && is_lost()))
			continue;
		if (delay_ns || rate || from->first)
			enqueue(from, buf, (size_t)n, now_ns());
		else
			deliver(to, buf, (size_t)n);
	}
}

/* ---- namespaces ---- */

static int own_netns;

static bool enter(int pid)
{
	char path[64];
	int fd, rc;

	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	rc = fd < 0 ? -1 : setns(fd, CLONE_NEWNET);
	if (fd >= 0)
		close(fd);
	return rc == 0;
}

static void leave(void)
{
	if (setns(own_netns, CLONE_NEWNET)) {
		perror("wire: setns");
		exit(1);
	}
}

static int open_tap(const char *name)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	if (fd >= 0 && (ioctl(fd, TUNSETIFF, &ifr) || ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6))) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool attach(unsigned end, int pid, const char *name)
{
	if (!enter(pid))
		return false;
	unplug(&ends[end]);
	ends[end].tap = open_tap(name);
	ends[end].pass = true;
	leave();
	return ends[end].tap >= 0;
}

static bool set_port(int netns_pid, const char *port, bool up)
{
	struct ifreq ifr;
	int fd = -1, rc = -1;

	if (!enter(netns_pid))
		return false;
	memset(&ifr, 0, sizeof(ifr));
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", port);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &ifr) == 0) {
		ifr.ifr_flags = (short)(up ? ifr.ifr_flags | IFF_UP : ifr.ifr_flags & ~IFF_UP);
		rc = ioctl(fd, SIOCSIFFLAGS, &ifr);
	}
	if (fd >= 0)
		close(fd);
	leave();
	return rc == 0;
}

/* ---- commands ---- */

static void answer(bool ok)
{
	if (ok)
		printf("ok\n");
	else
		printf("error %s\n", strerror(errno));
}

static void power_cut(int pid, int netns_pid, const char *port, unsigned end)
{
	uint64_t at = now_ns();
	bool ok = set_port(netns_pid, port, false);

	ends[end].pass = false;
	ok = kill(pid, SIGKILL) == 0 && ok;
	unplug(&ends[end]);     /* last: removing a tap takes time that a power cut does not */
	if (ok)
		printf("ok %llu\n", (unsigned long long)at);
	else
		answer(false);
}

static void command(const char *line)
{
	char name[IFNAMSIZ], word[8];
	unsigned end;
	int pid, ns;
	unsigned long long n;

	errno = EINVAL;
	if (sscanf(line, "attach %u %d %15s", &end, &pid, name) == 3 && end < 2)
		answer(attach(end, pid, name));
	else if (sscanf(line, "pass %u %7s", &end, word) == 2 && end < 2)
		ends[end].pass = !strcmp(word, "on"), answer(true);
	else if (sscanf(line, "delay %llu", &n) == 1)
		delay_ns = n * 1000, answer(true);
	else if (sscanf(line, "rate %llu", &n) == 1)
		rate = n, answer(true);
	else if (sscanf(line, "loss %llu", &n) == 1)
		loss_permille = (unsigned)n, answer(true);
	else if (sscanf(line, "power %d %d %15s %u", &pid, &ns, name, &end) == 4 && end < 2)
		power_cut(pid, ns, name, end);
	else if (sscanf(line, "port %d %15s %7s", &ns, name, word) == 3)
		answer(set_port(ns, name, !strcmp(word, "up")));
	else
		answer(false);
	fflush(stdout);
}

/* Complete lines only; false at the end of stdin. */
static bool read_commands(void)
{
	static char buf[512];
	static size_t len;
	ssize_t n = read(0, buf + len, sizeof(buf) - 1 - len);
	char *nl;

	if (n <= 0)
		return n < 0 && errno == EINTR;
	len += (size_t)n;
	buf[len] = 0;
	while ((nl = strchr(buf, '\n'))) {
		*nl = 0;
		command(buf);
		len -= (size_t)(nl + 1 - buf);
		memmove(buf, nl + 1, len + 1);
	}
	return len < sizeof(buf) - 1;
}

static struct timespec until_due(uint64_t now)
{
	uint64_t ns = S_NS;

	for (int i = 0; i < 2; i++)
		if (ends[i].first)
			ns = ends[i].first->due_ns <= now ? 0 : ends[i].first->due_ns - now < ns ? ends[i].first->due_ns - now : ns;
	return (struct timespec){ (time_t)(ns / S_NS), (long)(ns % S_NS) };
}

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });        /* a cable waits for no CPU */
	own_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	for (int i = 0; i < 2; i++)
		ends[i] = (struct end){ .tap = -1, .pass = true, .last = &ends[i].first };
	for (;;) {
		struct pollfd fd[3] = { { 0, POLLIN, 0 }, { ends[0].tap, POLLIN, 0 }, { ends[1].tap, POLLIN, 0 } };
		struct timespec ts = until_due(now_ns());

		if (ppoll(fd, 3, &ts, NULL) < 0 && errno != EINTR)
			return 1;
		if (fd[0].revents && !read_commands())
			return 0;
		for (int i = 0; i < 2; i++) {
			if (fd[i + 1].revents && ends[i].tap == fd[i + 1].fd)
				forward(&ends[i], &ends[!i]);
			flush_due(&ends[i], &ends[!i], now_ns());
		}
	}
}
