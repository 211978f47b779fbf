// SPDX-License-Identifier: GPL-3.0-or-later
/* nbd_hello.c - the client's half of NBD's fixed newstyle negotiation: one export, the nameless one. See nbd.h. */
#include "checkpoint/nbd.h"

#include <endian.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define HELLO "NBDMAGICIHAVEOPT"
#define OPTION "IHAVEOPT"
#define REPLY_MAGIC 0x3e889045565a9ull
#define FIXED_NEWSTYLE 1u
#define NO_ZEROES 2u
#define OPT_GO 7u
#define REP_ACK 1u
#define REP_INFO 3u
#define INFO_EXPORT 0u
#define REPLY_MAX 4096u                 /* errors come with a text */
#define REPLIES_MAX 16u

static int take(int fd, void *buf, size_t len, uint64_t end)
{
	for (size_t have = 0; have < len; ) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		uint64_t now = ft_now_ns();
		ssize_t n;

		if (now >= end || poll(&p, 1, (int)((end - now) / FT_MS_NS) + 1) == 0)
			return -ETIMEDOUT;
		n = recv(fd, (char *)buf + have, len - have, MSG_DONTWAIT);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return -ECONNRESET;
		have += (size_t)n;
	}
	return 0;
}

static int give(int fd, const void *buf, size_t len)
{
	return send(fd, buf, len, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -ECONNRESET;
}

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, sizeof(v));
	return be16toh(v);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

static int greet(int fd, uint64_t end)
{
	uint8_t hello[sizeof(HELLO) - 1 + 2];
	uint32_t flags;
	int rc = take(fd, hello, sizeof(hello), end);

	if (rc)
		return rc;
	flags = get16(hello + sizeof(HELLO) - 1);
	if (memcmp(hello, HELLO, sizeof(HELLO) - 1) || !(flags & FIXED_NEWSTYLE))
		return -EPROTO;
	flags = htobe32(flags & (FIXED_NEWSTYLE | NO_ZEROES));
	return give(fd, &flags, sizeof(flags));
}

/* The nameless export, and no information beyond what comes anyway. */
static int ask_go(int fd)
{
	static const char go[] = OPTION "\0\0\0\7" "\0\0\0\6" "\0\0\0\0" "\0\0";

	return give(fd, go, sizeof(go) - 1);
}

/* 1: an acknowledgement: that was the last. */
static int take_reply(int fd, uint64_t end, struct nbd_export *out, bool *there)
{
	uint8_t head[20], body[REPLY_MAX];
	uint32_t type, len;
	int rc = take(fd, head, sizeof(head), end);

	if (rc)
		return rc;
	type = get32(head + 12);
	len = get32(head + 16);
	if (get64(head) != REPLY_MAGIC || get32(head + 8) != OPT_GO || len > sizeof(body))
		return -EPROTO;
	rc = take(fd, body, len, end);
	if (rc)
		return rc;
	if (type == REP_ACK)
		return 1;
	if (type != REP_INFO || len < 2)
		return -EPROTO;
	if (get16(body) != INFO_EXPORT)
		return 0;
	if (len != 12)
		return -EPROTO;
	*out = (struct nbd_export){ .bytes = get64(body + 2), .flags = get16(body + 10) };
	*there = true;
	return 0;
}

int nbd_hello(int fd, unsigned timeout_ms, struct nbd_export *out)
{
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;
	bool there = false;
	int rc = greet(fd, end);

	if (!rc)
		rc = ask_go(fd);
	for (unsigned i = 0; i < REPLIES_MAX && !rc; i++)
		rc = take_reply(fd, end, out, &there);
	if (rc < 0)
		return rc;
	return rc == 1 && there ? 0 : -EPROTO;
}
