// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * link.h - one authenticated, encrypted connection between a primary and a backup.
 *
 * A thread of its own does TLS 1.3 (client certificates required, peer name checked, key updates by volume
 * and age) on a nonblocking socket; the owner's libev loop gets whole, size-checked records. Nothing
 * outside replicator/tls.c includes OpenSSL.
 */
#ifndef FT_LINK_H
#define FT_LINK_H

#include "ft/base.h"
#include "ft/wire.h"
#include <sys/socket.h>

struct ev_loop;
struct ft_link;

struct ft_tls_files {                   /* PEM; the key must be ours alone (0600) */
	const char *ca, *cert, *key;
};

/* Copied by connect and accept, strings included. Zero in a number: its default. */
struct ft_link_config {
	struct ft_tls_files tls;        /* read anew for each connection: certificates are renewed under way */
	bool primary;                   /* we are the primary: connect, TLS client */
	const char *guest;
	const char *peer;               /* connect: the name the certificate must carry; accept: NULL, any of our CA */
	unsigned connect_timeout_ms;    /* name, TCP and handshake together; 5000 */
	unsigned dead_after_ms;         /* the connection ends when the peer's kernel is silent this long; 15000 */
	size_t send_bound;              /* bytes queued before ft_link_send blocks or refuses; 8 MiB */
	uint64_t rekey_bytes;           /* new keys after this much sent (32 GB) or this old (24 h) */
	unsigned rekey_s;
	/*
	 * All on the loop thread. on_up: both sides have accepted
	 * the other's certificate. on_record: @body is valid in the call. on_down: once, after every record that
	 * came before; nothing more comes after it. @why is one clear line with the remedy. @rc is
	 *   -ECONNREFUSED -EHOSTUNREACH -ETIMEDOUT -ECONNRESET   the peer or the network: trying again may help
	 *   -EKEYREJECTED       a certificate, ours or the peer's, was refused
	 *   -EPROTONOSUPPORT    the peer does not speak TLS 1.3
	 *   -EPROTO             it sent bytes that are no record
	 *   -ENOENT -EACCES -EINVAL   our own TLS files
	 *   0                   after ft_link_finish: all was sent
	 */
	void (*on_up)(void *ctx, const char *peer_name);
	void (*on_record)(void *ctx, uint32_t type, const uint8_t *body, size_t len);
	void (*on_down)(void *ctx, int rc, const char *why);
	void *ctx;
};

/* Connect to host:port and send the preamble. Returns at once; on_up or on_down follows. */
int ft_link_connect(struct ev_loop *loop, const struct ft_link_config *cfg, const char *host, uint16_t port,
		    struct ft_link **out) FT_MUST_CHECK;
/* Serve a connected socket whose preamble was read. Takes over @fd also on failure. */
int ft_link_accept(struct ev_loop *loop, const struct ft_link_config *cfg, int fd, struct ft_link **out) FT_MUST_CHECK;
/*
 * Thread-safe: accept nothing more, send what is queued, say goodbye; on_down(0) follows, within seconds. For
 * a last word (ERROR, DISARMED): the peer reads it before it sees the end.
 */
void ft_link_finish(struct ft_link *l);
/*
 * Down at once: no callback comes any more, blocked and later senders get -EPIPE. May be called inside a
 * callback. Waits for nothing, so the owner can send its workers home between this and ft_link_free.
 */
void ft_link_close(struct ft_link *l);
/*
 * Close, and wait for the link's thread (it never waits long). Queued bytes are dropped. Nobody may call
 * ft_link_send from now on. May be called inside a callback. NULL is fine.
 */
void ft_link_free(struct ft_link *l);

enum ft_link_lane {
	FT_LANE_URGENT,                 /* goes before queued bulk; never blocks (own bound of 1 MiB, -EAGAIN) */
	FT_LANE_BULK,                   /* in order; blocks a worker thread while over the bound; -EPIPE once down */
	FT_LANE_BULK_NOWAIT,            /* in order with bulk, for the loop thread: never blocks, may exceed the bound by one record */
};
/* Thread-safe; copies @body. May be called before on_up: it goes out then. -EMSGSIZE: not in the record table. */
int ft_link_send(struct ft_link *l, enum ft_link_lane lane, uint32_t type, const void *body, size_t len) FT_MUST_CHECK;

/* Session secret (RFC 5705 exporter, label "EXPORTER-ft-heartbeat"), once up: keys of the UDP heartbeats. */
int ft_link_export(struct ft_link *l, uint8_t key[32]) FT_MUST_CHECK;

/* Whom TCP has reached, once up. */
int ft_link_address(struct ft_link *l, struct sockaddr_storage *out) FT_MUST_CHECK;

struct ft_link_stats {
	uint64_t bytes_sent, bytes_received;    /* of records */
	uint64_t key_updates;           /* of either direction */
	size_t queued;
	uint64_t last_received_ns;      /* ft_now_ns of the last authenticated bytes: a sign of life */
};
void ft_link_get_stats(struct ft_link *l, struct ft_link_stats *out);

/* Check files without a peer (ft-protect --check, ftd start): one clear line each. 0 when all is well. */
int ft_tls_check(const struct ft_tls_files *f) FT_MUST_CHECK;

/* --- the preamble, on a plain socket --- */
size_t ft_preamble_pack(const char *guest, uint8_t buf[FT_PREAMBLE_MAX]);
int ft_preamble_parse(const uint8_t *buf, size_t len, char guest[FT_NAME_MAX + 1]) FT_MUST_CHECK; /* used bytes, -EAGAIN, -EPROTO */

/* For ftd's parent: takes exactly the preamble from a nonblocking socket, in as many calls as it needs. */
struct ft_preamble {                    /* zero value: nothing read yet */
	uint8_t buf[FT_PREAMBLE_MAX];
	size_t have;
};
/* 0: @guest is complete. -EAGAIN: call again when readable. -EPROTO; -ECONNRESET: closed early. */
int ft_preamble_read(struct ft_preamble *p, int fd, char guest[FT_NAME_MAX + 1]) FT_MUST_CHECK;

#endif
