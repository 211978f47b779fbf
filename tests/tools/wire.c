// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * wire.c - the cable between two hosts, in the test's hands.
 *
 * The cable lies in a network namespace of this program: port w0 is one end, w1 the other, each the peer of a
 * host's eth1. An undamaged cable is a bridge, so that frames need nobody in user space; as soon as it is to
 * lose, delay or pass one way only, the ports leave the bridge and this program carries the frames.
 * Commands are lines on stdin, each answered with "ok [RESULT]" or "error WHAT" on stdout; the program ends
 * with its stdin.
 *
 *	attach END              port w<END> has been made (again): plug it in, undamaged
 *	pass FROM on|off        let frames pass that come from END FROM
 *	delay US | rate BYTES_PER_S | loss PERMILLE     each direction; 0 is none
 *	power PID NETNS_PID PORT END    power cut of host PID, as one act: link PORT in the namespace of NETNS_PID
 *	                        (the switch's side) and w<END> go down, PID gets SIGKILL. Answers CLOCK_MONOTONIC
 *	                        in ns at the first of these.
 *	port NETNS_PID PORT up|down
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/sockios.h>
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

#define FRAME_MAX (66 * 1024)   /* with its offload header; large ones stay whole */
#define QUEUE_MAX (8 << 20)     /* bytes waiting in one direction; what is more is lost, as in a switch */
#define SOCKET_ROOM (16 << 20)
#define S_NS 1000000000ull
#define BRIDGE "cable"

struct frame {
	struct frame *next;
	uint64_t due_ns;
	size_t len;
	uint8_t data[];
};

struct end {
	char port[IFNAMSIZ];
	int fd;                 /* packet socket on the port while we carry the frames, else -1 */
	bool pass;              /* what comes from here is forwarded */
	struct frame *first, **last;
	size_t queued;
	uint64_t free_ns;       /* when the cable has sent what it was given */
};

static struct end ends[2] = { { .port = "w0", .fd = -1, .pass = true }, { .port = "w1", .fd = -1, .pass = true } };
static uint64_t delay_ns, rate, seed = 88172645463325252u;
static unsigned loss_permille;
static int own_netns, ioctl_fd;

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

/* ---- frames, while we carry them ---- */

static void deliver(struct end *to, const uint8_t *data, size_t len)
{
	if (to->fd >= 0)
		(void)!write(to->fd, data, len);        /* a full or dead port loses the frame, as cables do */
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
		ssize_t n = read(from->fd, buf, sizeof(buf));

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

static int open_port(const char *port)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = (int)if_nametoindex(port) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, room = SOCKET_ROOM;
	struct packet_mreq promisc = { .mr_ifindex = at.sll_ifindex, .mr_type = PACKET_MR_PROMISC };

	if (fd < 0 || setsockopt(fd, SOL_PACKET, PACKET_VNET_HDR, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_ADD_MEMBERSHIP, &promisc, sizeof(promisc)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)) || bind(fd, (struct sockaddr *)&at, sizeof(at))) {
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

/* ---- links ---- */

static bool set_up(int fd, const char *link, bool up)
{
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", link);
	if (ioctl(fd, SIOCGIFFLAGS, &ifr))
		return false;
	ifr.ifr_flags = (short)(up ? ifr.ifr_flags | IFF_UP : ifr.ifr_flags & ~IFF_UP);
	return ioctl(fd, SIOCSIFFLAGS, &ifr) == 0;
}

static bool set_bridged(const char *port, bool bridged)
{
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", BRIDGE);
	ifr.ifr_ifindex = (int)if_nametoindex(port);
	return ioctl(ioctl_fd, bridged ? SIOCBRADDIF : SIOCBRDELIF, &ifr) == 0 || errno == (bridged ? EBUSY : EINVAL);
}

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

static bool set_port_of(int netns_pid, const char *port, bool up)
{
	bool ok = false;
	int fd;

	if (!enter(netns_pid))
		return false;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd >= 0) {
		ok = set_up(fd, port, up);
		close(fd);
	}
	leave();
	return ok;
}

/* ---- the cable ---- */

static bool damaged(void)
{
	return !ends[0].pass || !ends[1].pass || delay_ns || rate || loss_permille;
}

static bool carry(struct end *e)
{
	if (e->fd >= 0 || !if_nametoindex(e->port))
		return true;
	if (!set_bridged(e->port, false))
		return false;
	e->fd = open_port(e->port);
	return e->fd >= 0;
}

static bool let_go(struct end *e)
{
	if (e->fd >= 0)
		close(e->fd);
	e->fd = -1;
	return !if_nametoindex(e->port) || set_bridged(e->port, true);
}

static bool apply(void)
{
	bool ok = true;

	for (int i = 0; i < 2; i++)
		ok = (damaged() ? carry(&ends[i]) : let_go(&ends[i])) && ok;
	return ok;
}

static bool attach(struct end *e)
{
	if (e->fd >= 0)
		close(e->fd);
	e->fd = -1;
	e->pass = true;
	return set_up(ioctl_fd, e->port, true) && apply();
}

static void answer(bool ok)
{
	if (ok)
		printf("ok\n");
	else
		printf("error %s\n", strerror(errno));
}

static void power_cut(int pid, int netns_pid, const char *port, struct end *e)
{
	uint64_t at = now_ns();
	bool ok = set_port_of(netns_pid, port, false);

	ok = set_up(ioctl_fd, e->port, false) && ok;
	ok = kill(pid, SIGKILL) == 0 && ok;
	if (ok)
		printf("ok %llu\n", (unsigned long long)at);
	else
		answer(false);
}

static bool set_number(uint64_t *what, uint64_t value)
{
	*what = value;
	return apply();
}

static void command(const char *line)
{
	char name[IFNAMSIZ], word[8];
	unsigned long long n;
	unsigned end;
	int pid, ns;

	errno = EINVAL;
	if (sscanf(line, "attach %u", &end) == 1 && end < 2) {
		answer(attach(&ends[end]));
	} else if (sscanf(line, "pass %u %7s", &end, word) == 2 && end < 2) {
		ends[end].pass = !strcmp(word, "on");
		answer(apply());
	} else if (sscanf(line, "delay %llu", &n) == 1) {
		answer(set_number(&delay_ns, n * 1000));
	} else if (sscanf(line, "rate %llu", &n) == 1) {
		answer(set_number(&rate, n));
	} else if (sscanf(line, "loss %llu", &n) == 1) {
		loss_permille = (unsigned)n;
		answer(apply());
	} else if (sscanf(line, "power %d %d %15s %u", &pid, &ns, name, &end) == 4 && end < 2) {
		power_cut(pid, ns, name, &ends[end]);
	} else if (sscanf(line, "port %d %15s %7s", &ns, name, word) == 3) {
		answer(set_port_of(ns, name, !strcmp(word, "up")));
	} else {
		answer(false);
	}
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

	for (int i = 0; i < 2; i++) {
		uint64_t due = ends[i].first ? ends[i].first->due_ns : now + ns;

		ns = due <= now ? 0 : due - now < ns ? due - now : ns;
	}
	return (struct timespec){ (time_t)(ns / S_NS), (long)(ns % S_NS) };
}

static void set_knob(const char *path, char value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;         /* this kernel has no such thing to switch off */
	(void)!write(fd, &value, 1);
	close(fd);
}

/* A cable has no address, says nothing by itself and filters nothing. */
static void be_a_cable(void)
{
	set_knob("/proc/sys/net/ipv6/conf/all/disable_ipv6", '1');
	set_knob("/proc/sys/net/ipv6/conf/default/disable_ipv6", '1');
	set_knob("/proc/sys/net/bridge/bridge-nf-call-iptables", '0');
	set_knob("/proc/sys/net/bridge/bridge-nf-call-ip6tables", '0');
	set_knob("/proc/sys/net/bridge/bridge-nf-call-arptables", '0');
}

static bool make_cable(void)
{
	if (unshare(CLONE_NEWNET))
		return false;
	be_a_cable();
	own_netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	ioctl_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	for (int i = 0; i < 2; i++)
		ends[i].last = &ends[i].first;
	return own_netns >= 0 && ioctl_fd >= 0 && ioctl(ioctl_fd, SIOCBRADDBR, BRIDGE) == 0 && set_up(ioctl_fd, BRIDGE, true);
}

int main(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 });        /* a cable waits for no CPU */
	answer(make_cable());
	fflush(stdout);
	for (;;) {
		struct pollfd fd[3] = { { 0, POLLIN, 0 }, { ends[0].fd, POLLIN, 0 }, { ends[1].fd, POLLIN, 0 } };
		struct timespec ts = until_due(now_ns());

		if (ppoll(fd, 3, &ts, NULL) < 0 && errno != EINTR)
			return 1;
		if (fd[0].revents && !read_commands())
			return 0;
		for (int i = 0; i < 2; i++) {
			if (fd[i + 1].revents && ends[i].fd == fd[i + 1].fd)
				forward(&ends[i], &ends[!i]);
			flush_due(&ends[i], &ends[!i], now_ns());
		}
	}
}
