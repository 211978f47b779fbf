// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * heartbeat.c - the datagram of the heartbeats, and what both sides need of the system. See ft/heartbeat.h.
 *
 *   offset  bytes
 *        0      4  "FThb"
 *        4      1  version, 1
 *        5      1  kind: 1 beat (primary to backup), 2 echo (back)
 *        6      1  sender of the beat: 1 ft-protect, 2 the guard
 *        7      1  path of the beat, 0 to 3
 *        8     16  session, as in WELCOME
 *       24      8  sequence, little-endian
 *       32     16  the first half of HMAC-SHA256 over bytes 0 to 31
 *
 * An echo repeats its beat with kind 2 and a MAC of its own. The key is HMAC-SHA256(link key, "ft heartbeat 1",
 * kind, sender, session): one for each direction and sender, so that nothing can be reflected. A sender numbers
 * its datagrams upwards, whatever the path, from its CLOCK_MONOTONIC in nanoseconds at its start: a guard started
 * anew in the same session goes on above the numbers of the one before. The sender remembers when it sent which
 * number; a clock does not travel.
 */
#include "failover/datagram.h"
#include "failover/hmac.h"
#include "ft/thread.h"

#include <netinet/ip.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#define MAGIC "FThb"
#define VERSION 1
#define SIGNED_LEN 32u
#define MAC_LEN 16u

int ft_hb_keys(const uint8_t link_key[32], const uint8_t session[16], struct ft_hb_keys *out)
{
	static const char label[] = "ft heartbeat 1";
	uint8_t text[sizeof(label) - 1 + 2 + 16];
	int rc = 0;

	memcpy(out->session, session, 16);
	memcpy(text, label, sizeof(label) - 1);
	memcpy(text + sizeof(text) - 16, session, 16);
	for (uint8_t kind = FT_HB_BEAT; kind <= FT_HB_ECHO && !rc; kind++)
		for (uint8_t sender = FT_HB_REPLICATOR; sender <= FT_HB_GUARD && !rc; sender++) {
			text[sizeof(label) - 1] = kind;
			text[sizeof(label)] = sender;
			rc = ft_hmac(link_key, text, sizeof(text), out->key[kind - 1][sender - 1]);
		}
	return rc;
}

static bool fields_ok(const struct ft_hb *hb)
{
	return (hb->kind == FT_HB_BEAT || hb->kind == FT_HB_ECHO) &&
	       (hb->sender == FT_HB_REPLICATOR || hb->sender == FT_HB_GUARD) && hb->path < FT_HB_PATHS;
}

static int mac_of(const struct ft_hb_keys *k, const struct ft_hb *hb, const uint8_t *buf, uint8_t mac[FT_HMAC_LEN])
{
	return ft_hmac(k->key[hb->kind - 1][hb->sender - 1], buf, SIGNED_LEN, mac);
}

int ft_hb_seal(const struct ft_hb_keys *k, const struct ft_hb *hb, uint8_t buf[FT_HB_LEN])
{
	uint8_t mac[FT_HMAC_LEN];
	int rc;

	assert(fields_ok(hb));
	memcpy(buf, MAGIC, 4);
	buf[4] = VERSION;
	buf[5] = hb->kind;
	buf[6] = hb->sender;
	buf[7] = hb->path;
	memcpy(buf + 8, k->session, 16);
	ft_put64(buf + 24, hb->seq);
	rc = mac_of(k, hb, buf, mac);
	if (!rc)
		memcpy(buf + SIGNED_LEN, mac, MAC_LEN);
	return rc;
}

int ft_hb_open(const struct ft_hb_keys *k, enum ft_hb_kind kind, const void *data, size_t len, struct ft_hb *out)
{
	const uint8_t *buf = data;
	uint8_t mac[FT_HMAC_LEN];
	struct ft_hb hb;

	if (len != FT_HB_LEN || memcmp(buf, MAGIC, 4) || buf[4] != VERSION || memcmp(buf + 8, k->session, 16))
		return -EPROTO;
	hb = (struct ft_hb){ .kind = buf[5], .sender = buf[6], .path = buf[7], .seq = ft_le64(buf + 24) };
	if (!fields_ok(&hb) || hb.kind != kind || mac_of(k, &hb, buf, mac) || !ft_hmac_equal(mac, buf + SIGNED_LEN, MAC_LEN))
		return -EPROTO;
	*out = hb;
	return 0;
}

bool ft_hb_window_take(struct ft_hb_window *w, uint64_t seq)
{
	uint64_t ahead = seq - w->top, behind = w->top - seq;

	if (seq > w->top) {
		w->seen = ahead < 64 ? w->seen << ahead | 1 : 1;
		w->top = seq;
		return true;
	}
	if (behind >= 64 || w->seen >> behind & 1)
		return false;
	w->seen |= 1ull << behind;
	return true;
}

/* --- sockets, threads --- */

static int bind_to(int fd, bool v4_only, uint16_t port)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_any };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons(port) };
	int off = 0;

	if (v4_only)
		return bind(fd, (struct sockaddr *)&four, sizeof(four)) < 0 ? -errno : 0;
	if (setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0)
		return -errno;
	return bind(fd, (struct sockaddr *)&six, sizeof(six)) < 0 ? -errno : 0;
}

/* A saturated replication stream uses the same wire: let heartbeats overtake it. Best effort. */
static void prefer(int fd)
{
	int tos = IPTOS_CLASS_CS6, priority = 6;

	(void)setsockopt(fd, IPPROTO_IP, IP_TOS, &tos, sizeof(tos));
	(void)setsockopt(fd, IPPROTO_IPV6, IPV6_TCLASS, &tos, sizeof(tos));
	(void)setsockopt(fd, SOL_SOCKET, SO_PRIORITY, &priority, sizeof(priority));
}

int ft_hb_socket(uint16_t port, bool *v4_only)
{
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc;

	*v4_only = fd < 0 && errno == EAFNOSUPPORT;
	if (*v4_only)
		fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	rc = bind_to(fd, *v4_only, port);
	if (rc) {
		close(fd);
		return rc;
	}
	prefer(fd);
	return fd;
}

socklen_t ft_hb_address(const struct sockaddr_storage *a, bool v4_only, struct sockaddr_storage *out)
{
	const struct sockaddr_in *four = (const struct sockaddr_in *)a;
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;

	*out = *a;
	if (a->ss_family == AF_INET6)
		return v4_only ? 0 : sizeof(struct sockaddr_in6);
	if (a->ss_family != AF_INET)
		return 0;
	if (v4_only)
		return sizeof(struct sockaddr_in);
	*six = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = four->sin_port };
	six->sin6_addr.s6_addr[10] = six->sin6_addr.s6_addr[11] = 0xff;
	memcpy(&six->sin6_addr.s6_addr[12], &four->sin_addr, 4);
	return sizeof(*six);
}

int ft_hb_thread(pthread_t *t, const char *name, void *(*fn)(void *), void *arg)
{
	struct sched_param rr = { .sched_priority = 1 };
	int rc = ft_thread_start(t, name, fn, arg);

	if (rc)
		return rc;
	(void)pthread_setschedparam(*t, SCHED_RR, &rr);
	return 0;
}

int ft_hb_mutex(pthread_mutex_t *m)
{
	pthread_mutexattr_t attr;
	int rc = -pthread_mutexattr_init(&attr);

	if (rc)
		return rc;
	(void)pthread_mutexattr_setprotocol(&attr, PTHREAD_PRIO_INHERIT);
	rc = -pthread_mutex_init(m, &attr);
	pthread_mutexattr_destroy(&attr);
	return rc;
}

void ft_hb_wait(int fd, int wake, uint64_t at_ns)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN }, { .fd = wake, .events = POLLIN } };
	uint64_t now = ft_now_ns(), left = at_ns > now ? at_ns - now : 0, count;
	struct timespec ts = { (time_t)(left / FT_S_NS), (long)(left % FT_S_NS) };

	if (ppoll(p, 2, &ts, NULL) > 0 && p[1].revents)
		(void)!read(wake, &count, sizeof(count));
}
