// SPDX-License-Identifier: GPL-3.0-or-later
/* preamble.c - the few plaintext bytes that name the guest before TLS begins. See ft/link.h. */
#include "ft/link.h"

#include <sys/socket.h>

#define MAGIC_LEN 4u
#define FIXED_LEN (MAGIC_LEN + 1u)

size_t ft_preamble_pack(const char *guest, uint8_t buf[FT_PREAMBLE_MAX])
{
	size_t len = strlen(guest);

	assert(ft_name_ok(guest));
	memcpy(buf, FT_PREAMBLE_MAGIC, MAGIC_LEN);
	buf[MAGIC_LEN] = (uint8_t)len;
	memcpy(buf + FIXED_LEN, guest, len);
	return FIXED_LEN + len;
}

int ft_preamble_parse(const uint8_t *buf, size_t len, char guest[FT_NAME_MAX + 1])
{
	size_t name;

	/* The first wrong byte ends it: whoever speaks another protocol is not waited for. */
	if (len && memcmp(buf, FT_PREAMBLE_MAGIC, len < MAGIC_LEN ? len : MAGIC_LEN))
		return -EPROTO;
	if (len < FIXED_LEN)
		return -EAGAIN;
	name = buf[MAGIC_LEN];
	if (name == 0 || name > FT_NAME_MAX)
		return -EPROTO;
	if (len < FIXED_LEN + name)
		return -EAGAIN;
	memcpy(guest, buf + FIXED_LEN, name);
	guest[name] = 0;
	return strlen(guest) == name && ft_name_ok(guest) ? (int)(FIXED_LEN + name) : -EPROTO;
}

int ft_preamble_read(struct ft_preamble *p, int fd, char guest[FT_NAME_MAX + 1])
{
	for (;;) {
		int rc = ft_preamble_parse(p->buf, p->have, guest);
		size_t want = p->have < FIXED_LEN ? FIXED_LEN : FIXED_LEN + (size_t)p->buf[MAGIC_LEN];
		ssize_t n;

		if (rc != -EAGAIN)
			return rc < 0 ? rc : 0;
		/* Not a byte more: the next one belongs to TLS. */
		n = recv(fd, p->buf + p->have, want - p->have, MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EWOULDBLOCK ? -EAGAIN : -errno;
		if (n == 0)
			return -ECONNRESET;
		p->have += (size_t)n;
	}
}
