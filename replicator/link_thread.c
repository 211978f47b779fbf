// SPDX-License-Identifier: GPL-3.0-or-later
/* link_thread.c - a link's thread: its life, out, in, and one turn after the other. */
#include "replicator/link_priv.h"

#include "replicator/dial.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define UNSENT_BOUND (256 << 10)        /* in the kernel: what an urgent record may have to wait for */

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

void *ft_link_run(void *arg)
{
	struct ft_link *l = arg;
	int rc;

	pthread_mutex_lock(&l->engine);
	l->deadline_ns = ft_now_ns() + l->cfg.connect_timeout_ms * FT_MS_NS;
	rc = reach_peer(l);
	if (!rc) {
		tune_socket(l);
		rc = start_tls(l);
	}
	if (!rc)
		rc = serve(l);
	go_down(l, rc);
	pthread_mutex_unlock(&l->engine);
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
	ft_link_unreserve(l, l->sending_urgent, b->len);
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
	int rc = l->tls_error;

	if (!rc && l->stage == STAGE_UP)
		rc = fill_window(l);
	flush_socket(l);
	return rc ? tls_lost(l, rc) : 0;
}

bool ft_link_try_pump(struct ft_link *l)
{
	const uint8_t *at;
	bool done = false;

	if (pthread_mutex_trylock(&l->engine))
		return false;
	if (l->stage == STAGE_UP && !l->send_error && !l->tls_error) {
		l->tls_error = pump_out(l);
		done = !l->tls_error && !l->send_error && !ft_tls_tx_bytes(l->tls, &at) && !l->piece_len && !next_record(l);
	}
	pthread_mutex_unlock(&l->engine);
	return done;
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
	bool first;

	pthread_mutex_lock(&l->lock);
	first = !l->inbox.head;         /* else the loop has been told, and looks again before it sleeps */
	ft_recqueue_push(&l->inbox, rec);
	l->inbox_bytes += rec->len;
	l->inbox_full = l->inbox_bytes >= FT_LINK_INBOX_BOUND;
	pthread_mutex_unlock(&l->lock);
	if (first)
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
	if (!err || err == -ECONNRESET || err == -EPIPE)
		return lost(l, -ECONNRESET, "%s ended the connection without a goodbye - did it die?", l->who);
	return lost(l, -EHOSTUNREACH, "%s cannot be reached any more: %s - check the network", l->who, strerror(-err));
}

static int shake_hands(struct ft_link *l)
{
	struct sockaddr_storage address = { 0 };
	socklen_t len = sizeof(address);
	uint8_t key[32];
	int rc = ft_tls_handshake(l->tls);

	if (!rc)
		rc = ft_tls_export(l->tls, key);
	if (rc)
		return rc == -EAGAIN ? -EAGAIN : tls_lost(l, rc);
	/* Unknown when the peer has just gone: the next read says so. */
	(void)getpeername(l->sock, (struct sockaddr *)&address, &len);
	l->keyed_ns = ft_now_ns();
	atomic_store(&l->last_received_ns, l->keyed_ns);
	l->stage = STAGE_UP;
	pthread_mutex_lock(&l->lock);
	l->up = true;
	snprintf(l->name, sizeof(l->name), "%s", l->cfg.primary ? l->cfg.peer : ft_tls_peer_name(l->tls));
	memcpy(l->exported, key, sizeof(key));
	l->address = address;
	pthread_mutex_unlock(&l->lock);
	explicit_bzero(key, sizeof(key));
	ev_async_send(l->loop, &l->async);
	return 0;
}

/* After our goodbye only the end of the peer's stream is of interest. */
static int drain(struct ft_link *l)
{
	for (;;) {
		ssize_t n = recv(l->sock, l->small, sizeof(l->small), MSG_DONTWAIT);

		if (n < 0 && errno == EAGAIN && !l->send_error)
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

/* Goodbye follows the last record; the end of our stream follows the goodbye; then the peer's end is waited for. */
static void leave_when_done(struct ft_link *l)
{
	const uint8_t *at;
	bool done;

	pthread_mutex_lock(&l->lock);
	done = l->finishing && !l->urgent_bytes && !l->bulk_bytes && !l->piece_len;
	if (l->finishing)
		l->deadline_ns = l->finish_by_ns;
	pthread_mutex_unlock(&l->lock);
	if (l->stage == STAGE_UP && done) {
		ft_tls_goodbye(l->tls);
		flush_socket(l);
		l->stage = STAGE_LEAVING;
	}
	if (l->stage == STAGE_LEAVING && !ft_tls_tx_bytes(l->tls, &at))
		shutdown(l->sock, SHUT_WR);     /* more than once does no harm */
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
	int timeout, n, err;

	unsent = !l->send_error && ft_tls_tx_bytes(l->tls, &at);
	pthread_mutex_lock(&l->lock);
	finishing = l->finishing;
	work = has_work(l, unsent);
	l->asleep = !work;
	if (l->stage == STAGE_LEAVING || (!l->inbox_full && !l->eof))
		p[0].events = POLLIN;
	pthread_mutex_unlock(&l->lock);
	if (unsent)
		p[0].events |= POLLOUT;
	if (!p[0].events)
		p[0].fd = -1;                   /* a broken socket would be reported without end */
	timeout = work ? 0 : poll_timeout(l, finishing);
	pthread_mutex_unlock(&l->engine);
	n = poll(p, 3, timeout);
	err = n < 0 ? errno : 0;
	pthread_mutex_lock(&l->engine);
	pthread_mutex_lock(&l->lock);
	l->asleep = false;
	pthread_mutex_unlock(&l->lock);
	if (err && err != EINTR)
		return lost(l, -err, "%s: poll: %s", l->who, strerror(err));
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
		if (rc)
			break;
		leave_when_done(l);
		rc = wait_turn(l, &readable);
	}
	return rc == -ESHUTDOWN ? 0 : rc;
}
