// SPDX-License-Identifier: GPL-3.0-or-later
/* beat.c - the primary's side of ft/heartbeat.h: beats on every path, the lease from their echoes. */
#include "ft/heartbeat.h"
#include "failover/datagram.h"

#include <arpa/inet.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define NR_SENT 256                     /* an echo of an older datagram is too late for any lease */
#define INTERVAL_DEFAULT_MS 30
#define INTERVAL_MIN_MS 5
#define GATE_MARGIN_NS (2 * FT_MS_NS)   /* the way of a released frame through the gate */
#define ECHOES_MAX 256                  /* in a row, before it is time to beat again */

struct sent {
	uint64_t seq, at_ns;            /* seq 0: answered, or never used */
};

struct ft_beat {
	struct ft_beat_config cfg;
	struct ft_hb_keys keys;
	int fd, wake;
	bool v4_only, started;
	_Atomic bool stop;
	pthread_t thread;

	/* The thread's own. */
	uint64_t seq;
	uint64_t open_until_ns;         /* under @lock: what on_lease has returned */
	struct sent sent[NR_SENT];
	bool unreachable[FT_HB_PATHS];  /* and said so */

	pthread_mutex_t lock;           /* of what follows */
	struct ft_lease lease;
	uint64_t last_echo_ns;
	unsigned rtt_us;
};

/* --- sending --- */

static void note_reachable(struct ft_beat *b, unsigned path, int rc)
{
	const struct sockaddr_storage *a = &b->cfg.path[path];
	char text[INET6_ADDRSTRLEN] = "?";

	if (rc == -EAGAIN || rc == -ENOBUFS || b->unreachable[path] == (rc != 0))
		return;
	b->unreachable[path] = rc != 0;
	if (a->ss_family == AF_INET6)
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)a)->sin6_addr, text, sizeof(text));
	else
		inet_ntop(AF_INET, &((const struct sockaddr_in *)a)->sin_addr, text, sizeof(text));
	if (rc)
		ft_warn("heartbeats: cannot send to %s: %s; check the route", text, strerror(-rc));
	else
		ft_info("heartbeats: %s can be reached again", text);
}

static int send_beat(struct ft_beat *b, unsigned path)
{
	struct ft_hb hb = {
		.kind = FT_HB_BEAT, .sender = b->cfg.guard ? FT_HB_GUARD : FT_HB_REPLICATOR, .path = (uint8_t)path, .seq = ++b->seq,
	};
	struct sockaddr_storage to;
	socklen_t len = ft_hb_address(&b->cfg.path[path], b->v4_only, &to);
	uint8_t buf[FT_HB_LEN];
	int rc;

	if (!len)
		return -EAFNOSUPPORT;
	rc = ft_hb_seal(&b->keys, &hb, buf);
	if (rc)
		return rc;
	/* The clock is read before sending: the lease must not count from later than the backup may have heard it. */
	b->sent[hb.seq % NR_SENT] = (struct sent){ hb.seq, ft_now_ns() };
	return sendto(b->fd, buf, sizeof(buf), MSG_NOSIGNAL, (struct sockaddr *)&to, len) < 0 ? -errno : 0;
}

/* --- echoes --- */

static void take_echo(struct ft_beat *b, const struct ft_hb *hb)
{
	struct sent *s = &b->sent[hb->seq % NR_SENT];
	uint64_t now = ft_now_ns(), rtt_us;

	if (s->seq != hb->seq || !hb->seq)
		return;                                 /* a copy, a replay, or far too late */
	s->seq = 0;
	rtt_us = (now - s->at_ns) / 1000;
	pthread_mutex_lock(&b->lock);
	b->last_echo_ns = now;
	b->rtt_us = b->rtt_us ? (unsigned)((7 * (uint64_t)b->rtt_us + rtt_us) / 8) : (unsigned)rtt_us;
	if (!b->cfg.guard)
		ft_lease_renew(&b->lease, s->at_ns);
	pthread_mutex_unlock(&b->lock);
}

static void receive_echoes(struct ft_beat *b)
{
	uint8_t buf[FT_HB_LEN + 1];
	struct ft_hb hb;

	for (int i = 0; i < ECHOES_MAX; i++) {
		ssize_t n = recv(b->fd, buf, sizeof(buf), 0);

		if (n < 0 && errno != EINTR)
			return;
		if (n >= 0 && !ft_hb_open(&b->keys, FT_HB_ECHO, buf, (size_t)n, &hb) &&
		    hb.sender == (b->cfg.guard ? FT_HB_GUARD : FT_HB_REPLICATOR))
			take_echo(b, &hb);
	}
}

/* After a stall the lease may be over already: then there is nothing to tell. */
static void tell_lease(struct ft_beat *b)
{
	uint64_t until, open;

	pthread_mutex_lock(&b->lock);
	until = b->lease.until_ns;
	pthread_mutex_unlock(&b->lock);
	if (until <= b->open_until_ns || !b->cfg.on_lease || until <= ft_now_ns())
		return;
	open = b->cfg.on_lease(b->cfg.ctx, until);
	pthread_mutex_lock(&b->lock);
	b->open_until_ns = open;
	pthread_mutex_unlock(&b->lock);
}

static void *run(void *arg)
{
	struct ft_beat *b = arg;
	uint64_t next = ft_now_ns();

	while (!atomic_load(&b->stop)) {
		receive_echoes(b);
		tell_lease(b);
		if (ft_now_ns() >= next) {
			next = ft_now_ns() + b->cfg.interval_ms * FT_MS_NS;
			for (unsigned i = 0; i < b->cfg.nr_paths; i++)
				note_reachable(b, i, send_beat(b, i));
		}
		ft_hb_wait(b->fd, b->wake, next);
	}
	return NULL;
}

/* --- the owner's side --- */

static int open_all(struct ft_beat *b)
{
	int rc = ft_hb_keys(b->cfg.key, b->cfg.session, &b->keys);

	if (rc)
		return rc;
	b->fd = ft_hb_socket(0, &b->v4_only);
	if (b->fd < 0)
		return b->fd;
	b->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (b->wake < 0)
		return -errno;
	rc = ft_hb_thread(&b->thread, b->cfg.guard ? "ft-guard-beat" : "ft-beat", run, b);
	b->started = !rc;
	return rc;
}

int ft_beat_start(const struct ft_beat_config *cfg, struct ft_beat **out)
{
	struct ft_beat *b;
	int rc;

	*out = NULL;
	if (cfg->nr_paths > FT_HB_PATHS)
		return -EINVAL;
	b = malloc(sizeof(*b));
	if (!b)
		return -ENOMEM;
	*b = (struct ft_beat){ .cfg = *cfg, .fd = -1, .wake = -1, .seq = ft_now_ns() };
	rc = ft_hb_mutex(&b->lock);
	if (rc) {
		free(b);
		return rc;
	}
	if (!b->cfg.interval_ms)
		b->cfg.interval_ms = INTERVAL_DEFAULT_MS;
	if (b->cfg.interval_ms < INTERVAL_MIN_MS)
		b->cfg.interval_ms = INTERVAL_MIN_MS;
	ft_lease_init(&b->lease, cfg->silence_ms * FT_MS_NS);
	rc = open_all(b);
	if (rc) {
		ft_err("heartbeats: cannot start: %s", strerror(-rc));
		ft_beat_stop(b);
		return rc;
	}
	*out = b;
	return 0;
}

static void poke(struct ft_beat *b)
{
	uint64_t one = 1;

	(void)!write(b->wake, &one, sizeof(one));
}

void ft_beat_stop(struct ft_beat *b)
{
	if (!b)
		return;
	if (b->started) {
		atomic_store(&b->stop, true);
		poke(b);
		pthread_join(b->thread, NULL);
	}
	if (b->fd >= 0)
		close(b->fd);
	if (b->wake >= 0)
		close(b->wake);
	pthread_mutex_destroy(&b->lock);
	explicit_bzero(b, sizeof(*b));
	free(b);
}

bool ft_beat_fresh(struct ft_beat *b)
{
	uint64_t now = ft_now_ns();
	bool fresh;

	pthread_mutex_lock(&b->lock);
	fresh = ft_lease_fresh(&b->lease, now);
	if (b->cfg.on_lease)
		fresh = fresh && b->open_until_ns > now + GATE_MARGIN_NS;
	pthread_mutex_unlock(&b->lock);
	return fresh;
}

void ft_beat_renew(struct ft_beat *b, uint64_t sent_ns)
{
	if (b->cfg.guard || sent_ns > ft_now_ns())      /* the peer may return any number */
		return;
	pthread_mutex_lock(&b->lock);
	ft_lease_renew(&b->lease, sent_ns);
	pthread_mutex_unlock(&b->lock);
	poke(b);                                        /* the thread tells on_lease */
}

uint64_t ft_beat_last_echo_ns(struct ft_beat *b)
{
	uint64_t at;

	pthread_mutex_lock(&b->lock);
	at = b->last_echo_ns;
	pthread_mutex_unlock(&b->lock);
	return at;
}

unsigned ft_beat_rtt_us(struct ft_beat *b)
{
	unsigned us;

	pthread_mutex_lock(&b->lock);
	us = b->rtt_us;
	pthread_mutex_unlock(&b->lock);
	return us;
}
