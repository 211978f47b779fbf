// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * link.c - see ft/link.h. One thread owns socket and TLS; it meets the senders and the loop only at the
 * queues under the lock. In the file: the owner's side, the thread's life, out, in, the loop's side.
 */
#include "ft/link.h"

#include "replicator/dial.h"
#include "replicator/recbuf.h"
#include "replicator/tls.h"

#include <ev.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define URGENT_BOUND (1u << 20)
#define INBOX_BOUND  (8u << 20)         /* received, not yet taken by the loop; and one record more */
#define UNSENT_BOUND (256 << 10)        /* in the kernel: what an urgent record may have to wait for */
#define FINISH_NS    (3 * FT_S_NS)

#define DEFAULT_CONNECT_MS  5000u
#define DEFAULT_DEAD_MS     15000u
#define DEFAULT_SEND_BOUND  (8u << 20)
#define DEFAULT_REKEY_BYTES (32ull << 30)
#define DEFAULT_REKEY_S     (24u * 3600u)

enum stage { STAGE_HANDSHAKE, STAGE_UP, STAGE_LEAVING };

struct ft_link {
	struct ft_link_config cfg;
	char *ca, *cert, *key, *guest, *peer, *host;    /* owned; cfg points to them */
	uint16_t port;
	struct ev_loop *loop;                           /* borrowed */
	ev_async async;
	pthread_t thread;
	bool running;
	int stop_fd;                                    /* readable once the thread must end */
	int wake_fd;                                    /* readable: look at the queues again */
	struct ft_recpool pool;

	pthread_mutex_t lock;                           /* guards what follows, up to the next group */
	pthread_cond_t room;
	struct ft_recqueue urgent, bulk, inbox;
	size_t urgent_bytes, bulk_bytes, inbox_bytes;
	unsigned inside;                                /* threads in ft_link_send that wait for room */
	bool asleep;                                    /* the thread is in poll, or about to be */
	bool inbox_full;                                /* the thread has stopped reading */
	bool closed;                                    /* no more sending */
	bool up, down;
	bool finishing;
	uint64_t finish_by_ns;
	int down_rc;
	char name[FT_NAME_MAX + 1];
	char why[768];
	uint8_t exported[32];

	enum stage stage;                               /* the thread's own, from here on */
	int sock;
	struct ft_tls *tls;
	char who[128];
	struct ft_recreader reader;
	struct ft_recbuf *sending;
	bool sending_urgent;
	size_t sending_at;
	const uint8_t *piece;                           /* what the next TLS record carries */
	size_t piece_len;
	size_t unkeyed_bytes;                           /* sent since the last key update */
	uint64_t keyed_ns;
	uint64_t deadline_ns;                           /* of the handshake, or of leaving */
	int send_error, recv_error;                     /* -errno once the socket's direction is over */
	bool eof;
	uint8_t small[FT_TLS_RECORD];                   /* small records on their way into one TLS record */

	bool up_told, down_told, muted;                 /* the loop's own */
	bool *gone;                                     /* set by free while a callback runs */

	atomic_uint_fast64_t sent, received, key_updates, last_received_ns;
};

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
static void *run(void *arg);

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

/* Signals belong to the loop's thread. */
static int start_thread(struct ft_link *l)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&l->thread, NULL, run, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc)
		return -rc;
	pthread_setname_np(l->thread, "ft-link");
	l->running = true;
	return 0;
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

/* Under the lock. */
static void wake_thread(struct ft_link *l)
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

/* Under the lock. */
static void unreserve(struct ft_link *l, bool urgent, size_t len)
{
	if (urgent)
		l->urgent_bytes -= len;
	else
		l->bulk_bytes -= len;
	if (l->inside)
		pthread_cond_broadcast(&l->room);
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
	if (b && len)
		memcpy(b->data + FT_WIRE_HDR, body, len);
	pthread_mutex_lock(&l->lock);
	if (b) {
		ft_recqueue_push(lane == FT_LANE_URGENT ? &l->urgent : &l->bulk, b);
		wake_thread(l);
	} else {
		unreserve(l, lane == FT_LANE_URGENT, FT_WIRE_HDR + len);
	}
	pthread_mutex_unlock(&l->lock);
	return b ? 0 : -ENOMEM;
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
		wake_thread(l);
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
	free(l);
}

/* --- the thread's life --- */

static int lost(struct ft_link *l, int rc, const char *fmt, ...) FT_PRINTF(3, 4);
static int lost(struct ft_link *l, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	pthread_mutex_lock(&l->lock);
	vsnprintf(l->why, sizeof(l->why), fmt, ap);
	pthread_mutex_unlock(&l->lock);
	va_end(ap);
	return rc;
}

static int tls_lost(struct ft_link *l, int rc)
{
	return lost(l, rc, "%s", ft_tls_why(l->tls));
}

static int reach_peer(struct ft_link *l)
{
	struct ft_dial d = { .host = l->host, .port = l->port, .peer = l->cfg.peer, .deadline_ns = l->deadline_ns,
			     .stop_fd = l->stop_fd };
	struct sockaddr_storage sa = { 0 };
	socklen_t len = sizeof(sa);
	int rc;

	if (l->sock >= 0) {
		getpeername(l->sock, (struct sockaddr *)&sa, &len);
		ft_addr_format((struct sockaddr *)&sa, l->who, sizeof(l->who));
		return 0;
	}
	rc = ft_dial(&d, &l->sock);
	snprintf(l->who, sizeof(l->who), "%s", d.who);
	return rc ? lost(l, rc, "%s", d.why) : 0;
}

static void set_option(int fd, int level, int option, int value)
{
	/* A local socket knows none of them and works without. */
	if (setsockopt(fd, level, option, &value, sizeof(value)) < 0)
		ft_debug("link: socket option %d/%d: %s", level, option, strerror(errno));
}

static void tune_socket(struct ft_link *l)
{
	int dead_ms = (int)l->cfg.dead_after_ms, probe_s = dead_ms / 4000;

	set_option(l->sock, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(l->sock, IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BOUND);
	set_option(l->sock, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(l->sock, IPPROTO_TCP, TCP_KEEPIDLE, probe_s ? probe_s : 1);
	set_option(l->sock, IPPROTO_TCP, TCP_KEEPINTVL, probe_s ? probe_s : 1);
	set_option(l->sock, IPPROTO_TCP, TCP_KEEPCNT, 3);
	set_option(l->sock, IPPROTO_TCP, TCP_USER_TIMEOUT, dead_ms);
}

static int start_tls(struct ft_link *l)
{
	const struct ft_tls_config cfg = { .files = &l->cfg.tls, .client = l->cfg.primary, .peer = l->cfg.peer, .who = l->who };
	uint8_t preamble[FT_PREAMBLE_MAX];
	int rc = ft_tls_new(&cfg, &l->tls);

	if (rc)
		return lost(l, rc, "%s: no memory for TLS", l->who);
	rc = ft_tls_load(l->tls);
	if (rc)
		return tls_lost(l, rc);
	if (l->cfg.primary)
		ft_tls_tx_plain(l->tls, preamble, ft_preamble_pack(l->cfg.guest, preamble));
	return 0;
}

static int serve(struct ft_link *l);
static void flush_socket(struct ft_link *l);

static void go_down(struct ft_link *l, int rc)
{
	if (l->tls && l->sock >= 0 && l->stage != STAGE_LEAVING) {
		ft_tls_goodbye(l->tls);         /* and an alert that says what was wrong */
		flush_socket(l);
	}
	if (l->sock >= 0)
		shutdown(l->sock, SHUT_RDWR);
	pthread_mutex_lock(&l->lock);
	l->closed = l->down = true;
	l->down_rc = rc;
	pthread_cond_broadcast(&l->room);
	pthread_mutex_unlock(&l->lock);
	ev_async_send(l->loop, &l->async);
}

static void *run(void *arg)
{
	struct ft_link *l = arg;
	int rc;

	l->deadline_ns = ft_now_ns() + l->cfg.connect_timeout_ms * FT_MS_NS;
	rc = reach_peer(l);
	if (!rc) {
		tune_socket(l);
		rc = start_tls(l);
	}
	if (!rc)
		rc = serve(l);
	go_down(l, rc);
	return NULL;
}

/* --- out: queue -> pieces of TLS record size -> window -> socket --- */

static bool next_record(struct ft_link *l)
{
	if (l->sending)
		return true;
	pthread_mutex_lock(&l->lock);
	l->sending = ft_recqueue_pop(&l->urgent);
	l->sending_urgent = l->sending != NULL;
	if (!l->sending)
		l->sending = ft_recqueue_pop(&l->bulk);
	pthread_mutex_unlock(&l->lock);
	l->sending_at = 0;
	return l->sending != NULL;
}

static void advance(struct ft_link *l, size_t len)
{
	struct ft_recbuf *b = l->sending;

	l->sending_at += len;
	if (l->sending_at < b->len)
		return;
	pthread_mutex_lock(&l->lock);
	unreserve(l, l->sending_urgent, b->len);
	pthread_mutex_unlock(&l->lock);
	l->sending = NULL;
	ft_recpool_put(&l->pool, b);
}

/* The next TLS record's plaintext: from a large record in place, from small ones gathered. */
static bool next_piece(struct ft_link *l)
{
	if (l->piece_len || !next_record(l))
		return l->piece_len != 0;
	if (l->sending->len - l->sending_at >= FT_TLS_RECORD) {
		l->piece = l->sending->data + l->sending_at;
		l->piece_len = FT_TLS_RECORD;
		return true;
	}
	l->piece = l->small;
	while (l->piece_len < FT_TLS_RECORD && next_record(l)) {
		size_t space = FT_TLS_RECORD - l->piece_len, n = l->sending->len - l->sending_at;

		n = n < space ? n : space;
		memcpy(l->small + l->piece_len, l->sending->data + l->sending_at, n);
		l->piece_len += n;
		advance(l, n);
	}
	return true;
}

static void piece_done(struct ft_link *l)
{
	atomic_fetch_add(&l->sent, l->piece_len);
	l->unkeyed_bytes += l->piece_len;
	if (l->piece != l->small)
		advance(l, l->piece_len);
	l->piece_len = 0;
}

static int rekey_when_due(struct ft_link *l)
{
	uint64_t now = ft_now_ns();

	if (l->unkeyed_bytes < l->cfg.rekey_bytes && now - l->keyed_ns < l->cfg.rekey_s * FT_S_NS)
		return 0;
	l->unkeyed_bytes = 0;
	l->keyed_ns = now;
	return ft_tls_rekey(l->tls);
}

static int fill_window(struct ft_link *l)
{
	int rc = 0;

	while (!rc && ft_tls_room(l->tls)) {
		rc = rekey_when_due(l);         /* also when there is nothing to send */
		if (rc || !next_piece(l))
			break;
		rc = ft_tls_write(l->tls, l->piece, l->piece_len);
		if (!rc)
			piece_done(l);
	}
	return rc == -EAGAIN ? 0 : rc;
}

static void flush_socket(struct ft_link *l)
{
	const uint8_t *at;
	size_t len;

	while (!l->send_error && (len = ft_tls_tx_bytes(l->tls, &at))) {
		ssize_t n = send(l->sock, at, len, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (n > 0)
			ft_tls_tx_sent(l->tls, (size_t)n);
		else if (errno == EAGAIN)
			return;
		else if (errno != EINTR)
			l->send_error = -errno; /* the peer's last words may still be readable */
	}
}

static int pump_out(struct ft_link *l)
{
	int rc = 0;

	if (l->stage == STAGE_UP)
		rc = fill_window(l);
	flush_socket(l);
	return rc ? tls_lost(l, rc) : 0;
}

/* --- in: socket -> window -> records -> inbox --- */

static void fill_from_socket(struct ft_link *l)
{
	uint8_t *at;
	size_t space = ft_tls_rx_space(l->tls, &at);
	ssize_t n;

	if (!space || l->eof)
		return;
	do
		n = recv(l->sock, at, space, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n > 0) {
		ft_tls_rx_filled(l->tls, (size_t)n);
	} else if (n == 0 || errno != EAGAIN) {
		l->eof = true;
		l->recv_error = n < 0 ? -errno : 0;
	}
}

static void deliver(struct ft_link *l, struct ft_recbuf *rec)
{
	pthread_mutex_lock(&l->lock);
	ft_recqueue_push(&l->inbox, rec);
	l->inbox_bytes += rec->len;
	l->inbox_full = l->inbox_bytes >= INBOX_BOUND;
	pthread_mutex_unlock(&l->lock);
	ev_async_send(l->loop, &l->async);
}

static bool inbox_full(struct ft_link *l)
{
	bool full;

	pthread_mutex_lock(&l->lock);
	full = l->inbox_full;
	pthread_mutex_unlock(&l->lock);
	return full;
}

static int bad_record(struct ft_link *l, int rc)
{
	uint32_t type = ft_le32(l->reader.header), len = ft_le32(l->reader.header + 4);

	if (rc == -ENOMEM)
		return lost(l, rc, "%s: no memory for a record of %u bytes", l->who, len);
	return lost(l, rc, "%s sent bytes that are no record (type %u, %s, %u bytes) - both hosts need the same ft", l->who,
		    type, ft_wire_name(type), len);
}

static int read_records(struct ft_link *l)
{
	while (!inbox_full(l)) {
		struct ft_recbuf *rec;
		size_t len;
		uint8_t *at = ft_recreader_want(&l->reader, &len);
		ssize_t n = ft_tls_read(l->tls, at, len);
		int rc;

		if (n < 0)
			return n == -EAGAIN ? -EAGAIN : tls_lost(l, (int)n);
		atomic_fetch_add(&l->received, (uint64_t)n);
		atomic_store(&l->last_received_ns, ft_now_ns());
		rc = ft_recreader_got(&l->reader, (size_t)n, &rec);
		if (rc < 0)
			return bad_record(l, rc);
		if (rc > 0)
			deliver(l, rec);
	}
	return 0;
}

/* Nothing more can come: say what happened. */
static int connection_over(struct ft_link *l)
{
	int err = l->recv_error ? l->recv_error : l->send_error;

	if (l->stage == STAGE_HANDSHAKE && (!err || err == -ECONNRESET || err == -EPIPE))
		return tls_lost(l, ft_tls_closed_early(l->tls));
	if (err == -ETIMEDOUT)
		return lost(l, -ETIMEDOUT, "%s is silent: no TCP answer for %u ms", l->who, l->cfg.dead_after_ms);
	if (!err)
		return lost(l, -ECONNRESET, "%s closed the connection without a goodbye - did it die?", l->who);
	if (err == -EHOSTUNREACH || err == -ENETUNREACH)
		return lost(l, -EHOSTUNREACH, "%s cannot be reached any more: %s", l->who, strerror(-err));
	return lost(l, -ECONNRESET, "%s broke the connection: %s", l->who, strerror(-err));
}

static int shake_hands(struct ft_link *l)
{
	uint8_t key[32];
	int rc = ft_tls_handshake(l->tls);

	if (!rc)
		rc = ft_tls_export(l->tls, key);
	if (rc)
		return rc == -EAGAIN ? -EAGAIN : tls_lost(l, rc);
	l->keyed_ns = ft_now_ns();
	atomic_store(&l->last_received_ns, l->keyed_ns);
	l->stage = STAGE_UP;
	pthread_mutex_lock(&l->lock);
	l->up = true;
	snprintf(l->name, sizeof(l->name), "%s", l->cfg.primary ? l->cfg.peer : ft_tls_peer_name(l->tls));
	memcpy(l->exported, key, sizeof(key));
	pthread_mutex_unlock(&l->lock);
	explicit_bzero(key, sizeof(key));
	ev_async_send(l->loop, &l->async);
	return 0;
}

/* After our goodbye only the end of the peer's stream is of interest. */
static int drain(struct ft_link *l)
{
	uint8_t *at;
	size_t len = ft_tls_rx_space(l->tls, &at);

	for (;;) {
		ssize_t n = recv(l->sock, at, len, MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n == 0 || (n < 0 && errno != EINTR))
			return lost(l, -ESHUTDOWN, "closed by us after all was sent");
	}
}

static int pump_in(struct ft_link *l, bool readable)
{
	int rc = 0;

	if (l->stage == STAGE_LEAVING)
		return drain(l);
	if (readable)
		fill_from_socket(l);
	if (l->stage == STAGE_HANDSHAKE)
		rc = shake_hands(l);
	if (!rc && l->stage == STAGE_UP)
		rc = read_records(l);
	if (rc == -EAGAIN)              /* all that came is used up */
		rc = l->eof || l->send_error ? connection_over(l) : 0;
	if (!rc)
		atomic_store(&l->key_updates, ft_tls_key_updates(l->tls));
	return rc;
}

/* --- one turn of the thread after the other --- */

static int leave_when_done(struct ft_link *l)
{
	const uint8_t *at;
	bool done;

	pthread_mutex_lock(&l->lock);
	done = l->finishing && !l->urgent_bytes && !l->bulk_bytes;
	if (l->finishing)
		l->deadline_ns = l->finish_by_ns;
	pthread_mutex_unlock(&l->lock);
	if (l->stage != STAGE_UP || !done || l->piece_len || ft_tls_tx_bytes(l->tls, &at))
		return 0;
	ft_tls_goodbye(l->tls);
	flush_socket(l);
	shutdown(l->sock, SHUT_WR);
	l->stage = STAGE_LEAVING;
	return 0;
}

/* Under the lock: is there a reason not to sleep? */
static bool has_work(const struct ft_link *l, bool unsent)
{
	if (l->send_error)
		return !l->inbox_full;          /* read what is left, then go down */
	return l->stage == STAGE_UP && !unsent && (l->sending || l->urgent.head || l->bulk.head || l->finishing);
}

/* When the thread must look up although nothing happens. */
static int poll_timeout(const struct ft_link *l, bool finishing)
{
	uint64_t now = ft_now_ns(), until = l->keyed_ns + l->cfg.rekey_s * FT_S_NS;

	if (l->stage != STAGE_UP || finishing)
		until = l->deadline_ns;
	if (until <= now)
		return 0;
	until = (until - now + FT_MS_NS - 1) / FT_MS_NS;
	return until < 3600000 ? (int)until : 3600000;
}

static int too_late(struct ft_link *l, bool finishing)
{
	if (ft_now_ns() < l->deadline_ns || (l->stage == STAGE_UP && !finishing))
		return 0;
	if (l->stage == STAGE_HANDSHAKE && l->cfg.primary)
		return lost(l, -ETIMEDOUT, "%s takes the connection but does not answer within %u ms - is it ftd that listens "
			    "there?", l->who, l->cfg.connect_timeout_ms);
	if (l->stage == STAGE_HANDSHAKE)
		return lost(l, -ETIMEDOUT, "%s began no TLS handshake within %u ms", l->who, l->cfg.connect_timeout_ms);
	return lost(l, -ETIMEDOUT, "%s did not take our last records", l->who);
}

/* Sleep until the socket or a queue has something. Sets *@readable. */
static int wait_turn(struct ft_link *l, bool *readable)
{
	struct pollfd p[3] = { { .fd = l->sock }, { .fd = l->wake_fd, .events = POLLIN }, { .fd = l->stop_fd, .events = POLLIN } };
	bool finishing, work, unsent;
	const uint8_t *at;
	uint64_t drained;
	int timeout, n;

	unsent = !l->send_error && ft_tls_tx_bytes(l->tls, &at);
	pthread_mutex_lock(&l->lock);
	finishing = l->finishing;
	work = has_work(l, unsent);
	l->asleep = !work;
	if (!l->inbox_full && !l->eof)
		p[0].events = POLLIN;
	pthread_mutex_unlock(&l->lock);
	if (unsent)
		p[0].events |= POLLOUT;
	if (!p[0].events)
		p[0].fd = -1;                   /* a broken socket would be reported without end */
	timeout = work ? 0 : poll_timeout(l, finishing);
	n = poll(p, 3, timeout);
	if (n < 0 && errno != EINTR)
		return lost(l, -errno, "%s: poll: %s", l->who, strerror(errno));
	if (p[2].revents)
		return lost(l, -ECANCELED, "%s: stopped by us", l->who);
	if (p[1].revents && read(l->wake_fd, &drained, sizeof(drained)) < 0 && errno != EAGAIN)
		return lost(l, -errno, "%s: eventfd: %s", l->who, strerror(errno));
	*readable = n > 0 && (p[0].revents & (POLLIN | POLLHUP | POLLERR));
	return too_late(l, finishing);
}

static int serve(struct ft_link *l)
{
	bool readable = false;
	int rc = 0;

	while (!rc) {
		rc = pump_in(l, readable);
		if (!rc)
			rc = pump_out(l);
		if (!rc)
			rc = leave_when_done(l);
		if (!rc)
			rc = wait_turn(l, &readable);
	}
	return rc == -ESHUTDOWN ? 0 : rc;
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
	if (l->inbox_full && l->inbox_bytes <= INBOX_BOUND / 2) {
		l->inbox_full = false;
		wake_thread(l);
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
	l->gone = &gone;
	if (l->cfg.on_up)
		l->cfg.on_up(l->cfg.ctx, l->name);
	if (!gone)
		l->gone = NULL;
	return !gone;
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
