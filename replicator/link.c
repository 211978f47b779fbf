// SPDX-License-Identifier: GPL-3.0-or-later
/* link.c - see ft/link.h: making, sending, ending, and telling the loop. The thread is in link_thread.c. */
#include "replicator/link_priv.h"
#include "ft/thread.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define URGENT_BOUND (1u << 20)
#define SHORT_MAX    4096u              /* a sender may put this much on the wire itself */
#define FINISH_NS    (3 * FT_S_NS)

#define DEFAULT_CONNECT_MS  5000u
#define DEFAULT_DEAD_MS     15000u
#define DEFAULT_SEND_BOUND  (8u << 20)
#define DEFAULT_REKEY_BYTES (32ull << 30)
#define DEFAULT_REKEY_S     (24u * 3600u)

/* --- the owner's side: making, sending, ending --- */

static char *copy_string(const char *s, bool *failed)
{
	char *copy = s ? strdup(s) : NULL;

	*failed |= s && !copy;
	return copy;
}

static int copy_config(struct ft_link *l, const struct ft_link_config *cfg)
{
	bool failed = false;

	l->cfg = *cfg;
	l->cfg.tls.ca = l->ca = copy_string(cfg->tls.ca, &failed);
	l->cfg.tls.cert = l->cert = copy_string(cfg->tls.cert, &failed);
	l->cfg.tls.key = l->key = copy_string(cfg->tls.key, &failed);
	l->cfg.guest = l->guest = copy_string(cfg->guest, &failed);
	l->cfg.peer = l->peer = copy_string(cfg->peer, &failed);
	if (!cfg->connect_timeout_ms)
		l->cfg.connect_timeout_ms = DEFAULT_CONNECT_MS;
	if (!cfg->dead_after_ms)
		l->cfg.dead_after_ms = DEFAULT_DEAD_MS;
	if (!cfg->send_bound)
		l->cfg.send_bound = DEFAULT_SEND_BOUND;
	if (!cfg->rekey_bytes)
		l->cfg.rekey_bytes = DEFAULT_REKEY_BYTES;
	if (!cfg->rekey_s)
		l->cfg.rekey_s = DEFAULT_REKEY_S;
	return failed ? -ENOMEM : 0;
}

static void on_async(struct ev_loop *loop, ev_async *w, int revents);

/* Takes over @fd. */
static int link_new(struct ev_loop *loop, const struct ft_link_config *cfg, int fd, struct ft_link **out)
{
	struct ft_link *l = calloc(1, sizeof(*l));

	if (!l) {
		if (fd >= 0)
			close(fd);
		return -ENOMEM;
	}
	l->loop = loop;
	l->sock = fd;
	l->stop_fd = l->wake_fd = -1;
	ft_recpool_init(&l->pool);
	pthread_mutex_init(&l->lock, NULL);
	pthread_mutex_init(&l->engine, NULL);
	pthread_cond_init(&l->room, NULL);
	l->reader = (struct ft_recreader){ .pool = &l->pool, .from_primary = !cfg->primary };
	ev_async_init(&l->async, on_async);
	l->async.data = l;
	ev_async_start(loop, &l->async);
	*out = l;
	l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (l->stop_fd < 0 || l->wake_fd < 0)
		return -errno;
	return copy_config(l, cfg);
}

static int start_thread(struct ft_link *l)
{
	int rc = ft_thread_start(&l->thread, "ft-link", ft_link_run, l);

	l->running = !rc;
	return rc;
}

int ft_link_connect(struct ev_loop *loop, const struct ft_link_config *cfg, const char *host, uint16_t port,
		    struct ft_link **out)
{
	struct ft_link *l = NULL;
	bool failed = false;
	int rc;

	assert(cfg->primary && cfg->peer && ft_name_ok(cfg->guest));
	rc = link_new(loop, cfg, -1, &l);
	if (!rc) {
		l->host = copy_string(host, &failed);
		l->port = port;
		rc = failed ? -ENOMEM : start_thread(l);
	}
	if (rc) {
		ft_err("%s: no link: %s", cfg->peer, strerror(-rc));
		ft_link_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

int ft_link_accept(struct ev_loop *loop, const struct ft_link_config *cfg, int fd, struct ft_link **out)
{
	struct ft_link *l = NULL;
	int rc = link_new(loop, cfg, fd, &l);

	if (!rc && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) < 0)
		rc = -errno;
	if (!rc)
		rc = start_thread(l);
	if (rc) {
		ft_err("%s: no link: %s", cfg->guest ? cfg->guest : "connection", strerror(-rc));
		ft_link_free(l);
		return rc;
	}
	*out = l;
	return 0;
}

static void signal_fd(int fd)
{
	const uint64_t one = 1;
	ssize_t n = write(fd, &one, sizeof(one));

	(void)n;                        /* full means that it is readable already */
}

void ft_link_wake(struct ft_link *l)
{
	if (!l->asleep)
		return;
	l->asleep = false;
	signal_fd(l->wake_fd);
}

/* Under the lock: room for @len bytes more? One record may be larger than the bound, alone. */
static bool has_room(const struct ft_link *l, enum ft_link_lane lane, size_t len)
{
	size_t bytes = lane == FT_LANE_URGENT ? l->urgent_bytes : l->bulk_bytes;
	size_t bound = lane == FT_LANE_URGENT ? URGENT_BOUND : l->cfg.send_bound;

	if (lane == FT_LANE_BULK_NOWAIT)
		return bytes <= bound;
	return !bytes || bytes + len <= bound;
}

/* Room first, memory second: what waits for room holds none. */
static int reserve(struct ft_link *l, enum ft_link_lane lane, size_t len)
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	while (lane == FT_LANE_BULK && !l->closed && !has_room(l, lane, len)) {
		l->inside++;
		pthread_cond_wait(&l->room, &l->lock);
		if (!--l->inside)
			pthread_cond_broadcast(&l->room);       /* free may wait for the last one */
	}
	if (l->closed)
		rc = -EPIPE;
	else if (!has_room(l, lane, len))
		rc = -EAGAIN;
	else if (lane == FT_LANE_URGENT)
		l->urgent_bytes += len;
	else
		l->bulk_bytes += len;
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void ft_link_unreserve(struct ft_link *l, bool urgent, size_t len)
{
	if (urgent)
		l->urgent_bytes -= len;
	else
		l->bulk_bytes -= len;
	if (l->inside)
		pthread_cond_broadcast(&l->room);
}

static void enqueue(struct ft_link *l, enum ft_link_lane lane, struct ft_recbuf *b)
{
	bool asleep, is_short = b->len <= SHORT_MAX;    /* once it is queued it is not ours any more */

	pthread_mutex_lock(&l->lock);
	ft_recqueue_push(lane == FT_LANE_URGENT ? &l->urgent : &l->bulk, b);
	asleep = l->asleep;
	pthread_mutex_unlock(&l->lock);
	if (!asleep || (is_short && ft_link_try_pump(l)))
		return;
	pthread_mutex_lock(&l->lock);
	ft_link_wake(l);
	pthread_mutex_unlock(&l->lock);
}

int ft_link_send(struct ft_link *l, enum ft_link_lane lane, uint32_t type, const void *body, size_t len)
{
	struct ft_recbuf *b;
	int rc;

	if (ft_wire_check(type, len, l->cfg.primary))
		return -EMSGSIZE;
	rc = reserve(l, lane, FT_WIRE_HDR + len);
	if (rc)
		return rc;
	b = ft_recpool_get(&l->pool, type, len);
	if (!b) {
		pthread_mutex_lock(&l->lock);
		ft_link_unreserve(l, lane == FT_LANE_URGENT, FT_WIRE_HDR + len);
		pthread_mutex_unlock(&l->lock);
		return -ENOMEM;
	}
	if (len)
		ft_copy(b->data + FT_WIRE_HDR, body, len);
	enqueue(l, lane, b);
	return 0;
}

int ft_link_export(struct ft_link *l, uint8_t key[32])
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	if (l->up)
		memcpy(key, l->exported, sizeof(l->exported));
	else
		rc = -ENOTCONN;
	pthread_mutex_unlock(&l->lock);
	return rc;
}

int ft_link_address(struct ft_link *l, struct sockaddr_storage *out)
{
	bool up;

	pthread_mutex_lock(&l->lock);
	up = l->up;
	*out = l->address;
	pthread_mutex_unlock(&l->lock);
	return up ? 0 : -ENOTCONN;
}

void ft_link_get_stats(struct ft_link *l, struct ft_link_stats *out)
{
	*out = (struct ft_link_stats){
		.bytes_sent = atomic_load(&l->sent),
		.bytes_received = atomic_load(&l->received),
		.key_updates = atomic_load(&l->key_updates),
		.last_received_ns = atomic_load(&l->last_received_ns),
	};
	pthread_mutex_lock(&l->lock);
	out->queued = l->urgent_bytes + l->bulk_bytes;
	pthread_mutex_unlock(&l->lock);
}

void ft_link_finish(struct ft_link *l)
{
	pthread_mutex_lock(&l->lock);
	if (!l->finishing) {
		l->closed = l->finishing = true;
		l->finish_by_ns = ft_now_ns() + FINISH_NS;
		pthread_cond_broadcast(&l->room);
		ft_link_wake(l);
	}
	pthread_mutex_unlock(&l->lock);
}

void ft_link_close(struct ft_link *l)
{
	l->muted = true;
	pthread_mutex_lock(&l->lock);
	l->closed = true;
	pthread_cond_broadcast(&l->room);
	pthread_mutex_unlock(&l->lock);
	signal_fd(l->stop_fd);
}

static void free_queue(struct ft_link *l, struct ft_recqueue *q)
{
	struct ft_recbuf *b;

	while ((b = ft_recqueue_pop(q)))
		ft_recpool_put(&l->pool, b);
}

static void wait_for_senders(struct ft_link *l)
{
	pthread_mutex_lock(&l->lock);
	while (l->inside)
		pthread_cond_wait(&l->room, &l->lock);
	pthread_mutex_unlock(&l->lock);
}

void ft_link_free(struct ft_link *l)
{
	if (!l)
		return;
	ft_link_close(l);
	wait_for_senders(l);
	if (l->running)
		pthread_join(l->thread, NULL);
	ev_async_stop(l->loop, &l->async);
	if (l->gone)
		*l->gone = true;
	free_queue(l, &l->urgent);
	free_queue(l, &l->bulk);
	free_queue(l, &l->inbox);
	ft_recpool_put(&l->pool, l->sending);
	ft_recreader_reset(&l->reader);
	ft_recpool_destroy(&l->pool);
	ft_tls_free(l->tls);
	if (l->sock >= 0)
		close(l->sock);
	if (l->stop_fd >= 0)
		close(l->stop_fd);
	if (l->wake_fd >= 0)
		close(l->wake_fd);
	free(l->ca), free(l->cert), free(l->key), free(l->guest), free(l->peer), free(l->host);
	explicit_bzero(l->exported, sizeof(l->exported));
	pthread_cond_destroy(&l->room);
	pthread_mutex_destroy(&l->lock);
	pthread_mutex_destroy(&l->engine);
	free(l);
}

/* --- the loop's side --- */

static struct ft_recbuf *take_record(struct ft_link *l)
{
	struct ft_recbuf *rec;

	pthread_mutex_lock(&l->lock);
	rec = ft_recqueue_pop(&l->inbox);
	pthread_mutex_unlock(&l->lock);
	return rec;
}

static void record_done(struct ft_link *l, struct ft_recbuf *rec)
{
	pthread_mutex_lock(&l->lock);
	l->inbox_bytes -= rec->len;
	if (l->inbox_full && l->inbox_bytes <= FT_LINK_INBOX_BOUND / 2) {
		l->inbox_full = false;
		ft_link_wake(l);
	}
	pthread_mutex_unlock(&l->lock);
	ft_recpool_put(&l->pool, rec);
}

/* Each tell_ returns false when the callback freed the link. */
static bool tell_up(struct ft_link *l)
{
	bool gone = false, up;

	pthread_mutex_lock(&l->lock);
	up = l->up;
	pthread_mutex_unlock(&l->lock);
	if (!up || l->up_told || l->muted)
		return true;
	l->up_told = true;
	if (!l->cfg.on_up)
		return true;
	l->gone = &gone;
	l->cfg.on_up(l->cfg.ctx, l->name);
	if (gone)
		return false;
	l->gone = NULL;
	return true;
}

static bool tell_record(struct ft_link *l, struct ft_recbuf *rec)
{
	bool gone = false;

	l->gone = &gone;
	l->cfg.on_record(l->cfg.ctx, ft_recbuf_type(rec), rec->data + FT_WIRE_HDR, rec->len - FT_WIRE_HDR);
	if (gone) {
		free(rec);
		return false;
	}
	l->gone = NULL;
	record_done(l, rec);
	return true;
}

static void tell_down(struct ft_link *l)
{
	bool down;

	pthread_mutex_lock(&l->lock);
	down = l->down && !l->inbox.head;
	pthread_mutex_unlock(&l->lock);
	if (!down || l->down_told || l->muted)
		return;
	l->down_told = true;
	/* The thread has written them for the last time. @why lives until free. */
	l->cfg.on_down(l->cfg.ctx, l->down_rc, l->why);
}

static void on_async(struct ev_loop *loop, ev_async *w, int revents)
{
	struct ft_link *l = w->data;
	unsigned budget = 256;                  /* records a turn: others use this loop, too */
	struct ft_recbuf *rec;

	(void)revents;
	if (!tell_up(l))
		return;
	while (!l->muted && budget-- && (rec = take_record(l)))
		if (!tell_record(l, rec))
			return;
	pthread_mutex_lock(&l->lock);
	if (l->inbox.head && !l->muted)
		ev_async_send(loop, &l->async);
	pthread_mutex_unlock(&l->lock);
	tell_down(l);
}
