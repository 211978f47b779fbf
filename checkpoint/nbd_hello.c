// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * nbd_hello.c - the client's half of NBD's negotiation is libnbd's; who speaks on afterwards is the kernel. See nbd.h.
 */
#include "checkpoint/nbd.h"

#include <fcntl.h>
#include <libnbd.h>
#include <linux/nbd.h>
#include <unistd.h>

static const struct {
	int (*has)(struct nbd_handle *h);
	uint16_t flag;
} flags[] = {
	{ nbd_is_read_only, NBD_FLAG_READ_ONLY },
	{ nbd_can_flush, NBD_FLAG_SEND_FLUSH },
	{ nbd_can_fua, NBD_FLAG_SEND_FUA },
	{ nbd_can_trim, NBD_FLAG_SEND_TRIM },
	{ nbd_can_zero, 1 << 6 },       /* SEND_WRITE_ZEROES, which the headers of older kernels do not have */
	{ nbd_can_multi_conn, NBD_FLAG_CAN_MULTI_CONN },
};

/* The kernel takes simple replies only, and asks for nothing that would have to be negotiated besides. */
static int negotiate(struct nbd_handle *h, int fd, uint64_t end)
{
	if (nbd_set_request_structured_replies(h, false) || nbd_aio_connect_socket(h, fd))
		return -EPROTO;
	while (nbd_aio_is_connecting(h) == 1) {
		uint64_t now = ft_now_ns();

		if (now >= end)
			return -ETIMEDOUT;
		if (nbd_poll(h, (int)((end - now) / FT_MS_NS) + 1) < 0)
			break;
	}
	return nbd_aio_is_ready(h) == 1 ? 0 : -EPROTO;
}

static int read_export(struct nbd_handle *h, struct nbd_export *out)
{
	int64_t bytes = nbd_get_size(h);

	*out = (struct nbd_export){ .bytes = (uint64_t)bytes, .flags = NBD_FLAG_HAS_FLAGS };
	for (size_t i = 0; i < FT_ARRAY_LEN(flags); i++)
		if (flags[i].has(h) == 1)
			out->flags |= flags[i].flag;
	return bytes < 0 ? -EPROTO : 0;
}

int nbd_hello(int fd, unsigned timeout_ms, struct nbd_export *out)
{
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;
	int theirs = fcntl(fd, F_DUPFD_CLOEXEC, 0);     /* libnbd closes what it is given */
	struct nbd_handle *h = theirs < 0 ? NULL : nbd_create();
	int rc;

	if (!h) {
		if (theirs >= 0)
			close(theirs);
		return -ENOMEM;
	}
	rc = negotiate(h, theirs, end);
	if (!rc)
		rc = read_export(h, out);
	nbd_close(h);
	return rc;
}
