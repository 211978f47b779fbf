// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * echo.c - the backup's side of ft/heartbeat.h: answer beats, judge silence.
 *
 * Receiving, answering and judging happen under one lock, so that a beat is either answered before the decision
 * to take over (and then the window starts again) or never. Whoever judges has emptied the socket under the same
 * lock: after a stall of ours, what the peer sent meanwhile is read first.
 */
#include "ft/heartbeat.h"
#include "failover/datagram.h"

#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define DRAIN_MAX 4096                  /* more than a receive buffer holds */
#define TICKS 6                         /* a window has */

struct ft_echo {
	struct ft_hb_keys keys;
	int fd, wake;
	bool v4_only, started;
	_Atomic bool stop;
	pthread_t thread;

	pthread_mutex_t lock;           /* of what follows, and of the socket */
	struct ft_silence silence;
	struct ft_hb_window window[2][FT_HB_PATHS];     /* [sender - 1][path] */
	bool armed, taken;
	uint64_t last_life_ns;
	uint64_t stalls_told;
};

/* A reply leaves from the address the beat came to: on a host of many addresses routing alone may choose another. */
union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(sizeof(struct in6_pktinfo))];
};

static void life(struct ft_echo *e)
{
	e->last_life_ns = ft_now_ns();
	ft_silence_life(&e->silence, e->last_life_ns);
}

/* @msg came with @hb: send the echo back along the same addresses. */
static void answer(struct ft_echo *e, struct msghdr *msg, struct ft_hb *hb)
{
	uint8_t buf[FT_HB_LEN];
	struct iovec iov = { buf, sizeof(buf) };
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);

	if (c && c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO)
		((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_ifindex = 0; /* any way that leads there */
	else if (c && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO)
		((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex = 0;
	hb->kind = FT_HB_ECHO;
	if (ft_hb_seal(&e->keys, hb, buf))
		return;
	msg->msg_iov = &iov;
	msg->msg_flags = 0;
	(void)!sendmsg(e->fd, msg, MSG_NOSIGNAL);       /* lost is lost: the next beat is on its way */
	msg->msg_iov = NULL;
}

/* One datagram. -EAGAIN when there is none. */
static int receive_one(struct ft_echo *e)
{
	uint8_t buf[FT_HB_LEN + 1];
	struct sockaddr_storage from;
	union control control;
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr msg = {
		.msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct ft_hb hb;
	ssize_t n = recvmsg(e->fd, &msg, 0);

	if (n < 0)
		return errno == EINTR ? 0 : -EAGAIN;
	if (ft_hb_open(&e->keys, FT_HB_BEAT, buf, (size_t)n, &hb))
		return 0;
	if (!ft_hb_window_take(&e->window[hb.sender - 1][hb.path], hb.seq) || e->taken)
		return 0;
	life(e);
	answer(e, &msg, &hb);
	return 0;
}

static void drain(struct ft_echo *e)
{
	for (int i = 0; i < DRAIN_MAX && receive_one(e) == 0; i++)
		;
}

static bool judge(struct ft_echo *e)
{
	return ft_silence_judge(&e->silence, ft_now_ns()) && e->armed;
}

static void tell_stalls(struct ft_echo *e)
{
	if (e->armed && e->silence.stalls != e->stalls_told)
		ft_warn("heartbeats: this host did not let us run in time; the silence window starts again");
	e->stalls_told = e->silence.stalls;
}

/* The thread's judgement only notices stalls; to act on silence is the owner's. */
static void *run(void *arg)
{
	struct ft_echo *e = arg;

	while (!atomic_load(&e->stop)) {
		ft_hb_wait(e->fd, e->wake, ft_now_ns() + e->silence.tick_ns);
		pthread_mutex_lock(&e->lock);
		drain(e);
		(void)judge(e);
		tell_stalls(e);
		pthread_mutex_unlock(&e->lock);
	}
	return NULL;
}

/* --- the owner's side --- */

static int bind_in_range(struct ft_echo *e, const struct ft_echo_config *cfg)
{
	for (unsigned port = cfg->port_min; port <= cfg->port_max; port++) {
		e->fd = ft_hb_socket((uint16_t)port, &e->v4_only);
		if (e->fd != -EADDRINUSE)
			break;
	}
	if (e->fd == -EADDRINUSE)
		ft_err("heartbeats: UDP ports %u to %u are all in use; widen heartbeat-ports", cfg->port_min, cfg->port_max);
	else if (e->fd < 0)
		ft_err("heartbeats: cannot open a UDP socket: %s", strerror(-e->fd));
	return e->fd < 0 ? e->fd : 0;
}

static int want_destination(struct ft_echo *e)
{
	int on = 1, rc;

	rc = e->v4_only ? setsockopt(e->fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on))
			: setsockopt(e->fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on));
	return rc < 0 ? -errno : 0;
}

static int bound_port(int fd, uint16_t *port)
{
	struct sockaddr_in6 a = { 0 };  /* sin_port lies at the same place */
	socklen_t len = sizeof(a);

	if (getsockname(fd, (struct sockaddr *)&a, &len) < 0)
		return -errno;
	*port = ntohs(a.sin6_port);
	return 0;
}

static int open_all(struct ft_echo *e, const struct ft_echo_config *cfg, uint16_t *port)
{
	int rc = ft_hb_keys(cfg->key, cfg->session, &e->keys);

	if (!rc)
		rc = bind_in_range(e, cfg);
	if (!rc)
		rc = want_destination(e);
	if (!rc)
		rc = bound_port(e->fd, port);
	if (rc)
		return rc;
	e->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (e->wake < 0)
		return -errno;
	rc = ft_hb_thread(&e->thread, "ft-echo", run, e);
	e->started = !rc;
	return rc;
}

int ft_echo_start(const struct ft_echo_config *cfg, uint16_t *port, struct ft_echo **out)
{
	struct ft_echo *e = malloc(sizeof(*e));
	uint64_t silence_ns = cfg->silence_ms * FT_MS_NS;
	int rc;

	*out = NULL;
	if (!e)
		return -ENOMEM;
	*e = (struct ft_echo){ .fd = -1, .wake = -1 };
	rc = ft_hb_mutex(&e->lock);
	if (rc) {
		free(e);
		return rc;
	}
	ft_silence_init(&e->silence, ft_now_ns(), silence_ns, silence_ns / TICKS);
	rc = open_all(e, cfg, port);
	if (rc) {
		ft_echo_stop(e);
		return rc;
	}
	*out = e;
	return 0;
}

void ft_echo_stop(struct ft_echo *e)
{
	uint64_t one = 1;

	if (!e)
		return;
	if (e->started) {
		atomic_store(&e->stop, true);
		(void)!write(e->wake, &one, sizeof(one));
		pthread_join(e->thread, NULL);
	}
	if (e->fd >= 0)
		close(e->fd);
	if (e->wake >= 0)
		close(e->wake);
	pthread_mutex_destroy(&e->lock);
	explicit_bzero(e, sizeof(*e));
	free(e);
}

void ft_echo_arm(struct ft_echo *e)
{
	pthread_mutex_lock(&e->lock);
	e->armed = true;
	life(e);
	pthread_mutex_unlock(&e->lock);
}

void ft_echo_life(struct ft_echo *e)
{
	pthread_mutex_lock(&e->lock);
	life(e);
	pthread_mutex_unlock(&e->lock);
}

bool ft_echo_try_takeover(struct ft_echo *e)
{
	bool taken;

	pthread_mutex_lock(&e->lock);
	drain(e);
	if (!e->taken)
		e->taken = judge(e);
	taken = e->taken;
	pthread_mutex_unlock(&e->lock);
	return taken;
}

uint64_t ft_echo_last_life_ns(struct ft_echo *e)
{
	uint64_t at;

	pthread_mutex_lock(&e->lock);
	at = e->last_life_ns;
	pthread_mutex_unlock(&e->lock);
	return at;
}
