// SPDX-License-Identifier: GPL-3.0-or-later
/* guard_msg.h - what ft-protect (guard.c) and its guard (guard_process.c) say to each other, and share. */
#ifndef FT_FAILOVER_GUARD_MSG_H
#define FT_FAILOVER_GUARD_MSG_H

#include "ft/base.h"
#include "ft/heartbeat.h"
#include <stdatomic.h>
#include <sys/un.h>

/*
 * The pause word: to whom a pause belongs.
 *
 *	RUNNING --ft-protect--> PAUSED --ft-protect--> RUNNING          an epoch
 *	                        PAUSED --guard--> REVOKING              too long, or ft-protect has died
 *	                                          REVOKING --guard--> REVOKED     its QMP cont has returned
 *	                                                              REVOKED --ft-protect--> RUNNING
 *
 * Only the guard leaves REVOKING, and it sends cont in no other state. So a cont of the guard, however late, never
 * comes into a pause that ft-protect believes to be its own.
 */
enum guard_pause {
	GUARD_RUNNING = 0,
	GUARD_PAUSED = 1,
	GUARD_REVOKING = 2,
	GUARD_REVOKED = 3,
};

struct guard_page {                     /* a memfd, made by the guard */
	_Atomic uint64_t pause;         /* enum guard_pause, and since when (ft_now_ns) in the bits above two */
	_Atomic uint64_t ticks;         /* turns of ft-protect's loop */
	_Atomic uint32_t held;          /* output is held */
	_Atomic uint32_t whole;         /* the backup has an epoch of this ft-protect's */
};

static inline uint64_t guard_word(enum guard_pause state, uint64_t since_ns)
{
	return since_ns << 2 | state;
}

static inline enum guard_pause guard_word_state(uint64_t word)
{
	return (enum guard_pause)(word & 3);
}

static inline uint64_t guard_word_since(uint64_t word)
{
	return word >> 2;
}

#define GUARD_MAGIC 0x64674654u
#define GUARD_ABI 2u                    /* grows with any change of what follows, or of ft_beat_config */

enum guard_type {
	GUARD_ATTACH = 1,               /* become its ft-protect; answered with guard_reply, the page, and the held fd */
	GUARD_END,
	GUARD_HOLD,                     /* with an fd, or without: let go */
	GUARD_BEAT,
	GUARD_MUTE,
};

struct guard_msg {                      /* SOCK_SEQPACKET, one each */
	uint32_t magic, abi, type;
	uint32_t pause_limit_ms, grace_ms;      /* ATTACH */
	struct ft_beat_config beat;             /* BEAT */
};
#define GUARD_MSG_MIN 20u               /* an ATTACH of any version */

struct guard_reply {
	uint32_t magic;
	int32_t rc;                     /* -EBUSY: another ft-protect lives; -EPROTO: I am of another version */
};

#define GUARD_FDS_MAX 2
int guard_address(const char *guest, struct sockaddr_un *out) FT_MUST_CHECK;
/* Never blocks; -EAGAIN, -EPIPE. */
int guard_send(int sock, const void *buf, size_t len, const int *fds, unsigned nr_fds) FT_MUST_CHECK;
/* Never blocks. Bytes received, -EAGAIN, -EPIPE. *@nr_fds fds (close-on-exec) belong to the caller. */
ssize_t guard_receive(int sock, void *buf, size_t size, int fds[GUARD_FDS_MAX], unsigned *nr_fds);

#endif
