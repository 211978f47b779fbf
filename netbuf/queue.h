// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * queue.h - the NFQUEUE that holds the guest's packets.
 *
 * Packets stay in the kernel; what is read are their numbers. Numbers grow by one a packet, so one verdict
 * "accept everything up to N" releases an epoch in order, and any number of epochs can wait at once.
 * Closing the queue drops what is held.
 */
#ifndef FT_NETBUF_QUEUE_H
#define FT_NETBUF_QUEUE_H

#include "ft/base.h"

/* A released packet carries this mark from the verdict to the gate, the very next hook, which clears it. */
#define FT_RELEASED_MARK 0x66745245u
#define FT_QUEUE_MAX 65536u             /* packets held at most; more are dropped, as by a full network card */

struct ft_queue;

struct ft_queue_packet {
	uint32_t id;
	uint32_t ifindex;               /* of the bridge port it came from */
	uint32_t bytes;
};

/* Bind a free queue; @name spreads guests over the numbers. */
int ft_queue_open(const char *name, struct ft_queue **out) FT_MUST_CHECK;
void ft_queue_close(struct ft_queue *q);                /* NULL is fine; drops what is held */
uint16_t ft_queue_number(const struct ft_queue *q);
int ft_queue_fd(const struct ft_queue *q);              /* readable: packets to drain */
/* Read at most @max notices of packets, each to @packet; how many, or -errno. Never blocks. */
int ft_queue_drain(struct ft_queue *q, unsigned max, void (*packet)(void *ctx, const struct ft_queue_packet *p), void *ctx);
/* Release (marked) everything up to and with @id, in order. When this returns, the packets have gone. */
int ft_queue_release(struct ft_queue *q, uint32_t id) FT_MUST_CHECK;
/* From now on at most @packets are held, FT_QUEUE_MAX at first; what is held already stays. */
int ft_queue_limit(struct ft_queue *q, uint32_t packets) FT_MUST_CHECK;
int ft_queue_drop_one(struct ft_queue *q, uint32_t id) FT_MUST_CHECK;
/* Packets that the kernel could not queue: since open. */
uint64_t ft_queue_overflowed(struct ft_queue *q);

#endif
