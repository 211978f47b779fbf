// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fuzz_wire.c - a peer's stream of records through the incremental reader, in pieces of every size, then each
 * body through its unpacker. The first byte chooses the side and the size of the pieces. What unpacks must
 * pack to the same bytes.
 */
#include "replicator/recbuf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROUND_TRIP(rec, body, len) \
	do { \
		struct ft_wire_##rec r_; \
		uint8_t again_[64]; \
		if (!ft_wire_unpack_##rec(body, len, &r_) && memcmp(body, again_, ft_wire_pack_##rec(&r_, again_))) \
			abort(); \
	} while (0)

static void unpack(const struct ft_recbuf *rec)
{
	const uint8_t *body = rec->data + FT_WIRE_HDR;
	size_t len = rec->len - FT_WIRE_HDR;

	switch (ft_recbuf_type(rec)) {
	case FT_REC_HELLO: ROUND_TRIP(hello, body, len); break;
	case FT_REC_WELCOME: ROUND_TRIP(welcome, body, len); break;
	case FT_REC_EPOCH_BEGIN: ROUND_TRIP(epoch_begin, body, len); break;
	case FT_REC_EPOCH_END: ROUND_TRIP(epoch_end, body, len); break;
	case FT_REC_DRILLED: ROUND_TRIP(drilled, body, len); break;
	case FT_REC_VERIFIED: ROUND_TRIP(verified, body, len); break;
	case FT_REC_DISK_DURABLE: ROUND_TRIP(disk_at, body, len); break;
	case FT_REC_DISK_ASK: ROUND_TRIP(disk_range, body, len); break;
	case FT_REC_ERROR: (void)strlen(ft_wire_reason_text(ft_le32(body))); break;
	default: break;
	}
}

/* The reader must never want more than the table allows, nor read behind what is there. */
static int feed(struct ft_recreader *r, const uint8_t *data, size_t size, size_t step)
{
	while (size) {
		struct ft_recbuf *rec;
		size_t want, n;
		uint8_t *at = ft_recreader_want(r, &want);
		int rc;

		if (!want || want > FT_WIRE_HDR + FT_WIRE_STATE_MAX)
			abort();
		n = want < step ? want : step;
		n = n < size ? n : size;
		memcpy(at, data, n);
		data += n;
		size -= n;
		rc = ft_recreader_got(r, n, &rec);
		if (rc < 0)
			return rc;
		if (rc > 0) {
			if (ft_wire_check(ft_recbuf_type(rec), rec->len - FT_WIRE_HDR, r->from_primary))
				abort();
			unpack(rec);
			ft_recpool_put(r->pool, rec);
		}
		/* A body without bytes is whole at once: nothing may be left to wait for. */
		if (r->rec && r->have == r->rec->len)
			abort();
	}
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ft_recpool pool;
	struct ft_recreader reader = { .pool = &pool };
	int rc;

	if (!size)
		return 0;
	ft_recpool_init(&pool);
	reader.from_primary = data[0] & 1;
	rc = feed(&reader, data + 1, size - 1, (size_t)(data[0] >> 1) + 1);
	if (rc && rc != -EPROTO)
		abort();
	ft_recreader_reset(&reader);
	ft_recpool_destroy(&pool);
	return 0;
}
