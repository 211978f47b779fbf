// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tls.h - TLS 1.3 as an engine between two windows of bytes; the socket is its owner's.
 *
 *	plaintext  --ft_tls_write-->  tx window  --send-->  socket
 *	plaintext  <--ft_tls_read---  rx window  <--recv--  socket
 *
 * So many TLS records travel in one system call, and nothing here ever waits. One thread at a time.
 * Functions that fail leave one clear line with the remedy in ft_tls_why. rc as in link.h's on_down.
 */
#ifndef FT_TLS_H
#define FT_TLS_H

#include "ft/link.h"

struct ft_tls;

struct ft_tls_config {
	const struct ft_tls_files *files;
	bool client;
	const char *peer;               /* client: the name the server's certificate must carry */
	const char *who;                /* the peer in messages: "beta at 192.0.2.7:7800" */
};

#define FT_TLS_RECORD 16384u            /* the most that one ft_tls_write takes */

int ft_tls_new(const struct ft_tls_config *cfg, struct ft_tls **out) FT_MUST_CHECK;    /* -ENOMEM only */
void ft_tls_free(struct ft_tls *t);
int ft_tls_load(struct ft_tls *t) FT_MUST_CHECK;        /* the files, then ready to shake hands */
const char *ft_tls_why(const struct ft_tls *t);

/* 0: both sides have accepted each other. -EAGAIN: more bytes must go or come first. */
int ft_tls_handshake(struct ft_tls *t) FT_MUST_CHECK;
const char *ft_tls_peer_name(const struct ft_tls *t);   /* of its certificate; after the handshake */
int ft_tls_export(struct ft_tls *t, uint8_t key[32]) FT_MUST_CHECK;

bool ft_tls_room(const struct ft_tls *t);               /* the tx window takes one more ft_tls_write */
int ft_tls_write(struct ft_tls *t, const void *data, size_t len) FT_MUST_CHECK;         /* all of it */
ssize_t ft_tls_read(struct ft_tls *t, void *data, size_t len) FT_MUST_CHECK;            /* > 0 or -errno */
int ft_tls_rekey(struct ft_tls *t) FT_MUST_CHECK;       /* new keys in both directions; needs room */
uint64_t ft_tls_key_updates(const struct ft_tls *t);    /* sent and received */
void ft_tls_goodbye(struct ft_tls *t);                  /* close_notify */

/* The socket's side of the windows. */
size_t ft_tls_rx_space(struct ft_tls *t, uint8_t **at);         /* 0: read with ft_tls_read first */
void ft_tls_rx_filled(struct ft_tls *t, size_t len);
size_t ft_tls_tx_bytes(const struct ft_tls *t, const uint8_t **at);
void ft_tls_tx_sent(struct ft_tls *t, size_t len);
/* Plaintext bytes in front of the handshake: the preamble. */
void ft_tls_tx_plain(struct ft_tls *t, const void *data, size_t len);
/* The line for a connection that the peer closed during the handshake. */
int ft_tls_closed_early(struct ft_tls *t) FT_MUST_CHECK;

#endif
