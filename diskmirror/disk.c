// SPDX-License-Identifier: GPL-3.0-or-later
/* disk.c - operations, batches, generations; see ft/disk.h. */
#include "ft/disk.h"

#include <lz4.h>
#include <stdio.h>
#include <sys/random.h>
#include <xxhash.h>

#define BATCH_LZ4 1u
#define PROBE_FROM (64u << 10)          /* shorter ones are just compressed */
#define PROBE_LEN 4096u
#define PROBES 4u

/* --- operations --- */

void ft_disk_pack_op(const struct ft_disk_op *op, uint8_t buf[FT_DISK_OP_LEN])
{
	ft_put64(buf, op->seq);
	ft_put64(buf + 8, op->offset);
	ft_put32(buf + 16, op->len);
	ft_put32(buf + 20, op->op);
}

static bool op_ok(const struct ft_disk_op *op, uint64_t bytes)
{
	switch (op->op) {
	case FT_DISK_WRITE:
		if (op->len > FT_DISK_OP_DATA_MAX)
			return false;
		/* fallthrough */
	case FT_DISK_ZERO:
		return op->len && op->offset < bytes && op->len <= bytes - op->offset;
	case FT_DISK_MARK:
		return !op->len && op->offset < bytes && op->offset % FT_REGION == 0;
	default:
		return false;
	}
}

int ft_disk_unpack_op(const uint8_t buf[FT_DISK_OP_LEN], uint64_t bytes, struct ft_disk_op *out)
{
	*out = (struct ft_disk_op){
		.seq = ft_le64(buf), .offset = ft_le64(buf + 8), .len = ft_le32(buf + 16), .op = ft_le32(buf + 20),
	};
	return out->seq && op_ok(out, bytes) ? 0 : -EPROTO;
}

/* --- batches --- */

/* Less than a sixteenth is not worth what both hosts pay for it. */
static bool worth_it(size_t packed, size_t len)
{
	return packed && packed <= len - len / 16;
}

/* Most large writes are of one kind of data throughout: so a few pieces tell, and what is compressed already is let be. */
static bool looks_packable(const uint8_t *raw, size_t len)
{
	char out[LZ4_COMPRESSBOUND(PROBE_LEN)];
	size_t packed = 0, step = len / PROBES;

	if (len < PROBE_FROM)
		return true;
	for (unsigned i = 0; i < PROBES; i++)
		packed += (size_t)LZ4_compress_default((const char *)raw + i * step, out, PROBE_LEN, sizeof(out));
	return worth_it(packed, PROBES * PROBE_LEN);
}

/* Bytes in @out [FT_DISK_BODY_MAX - FT_DISK_BATCH_HDR], or 0: better as it is. */
static size_t compress(const uint8_t *raw, size_t len, uint8_t *out)
{
	int packed;

	assert(len <= FT_DISK_BATCH_MAX);
	if (!looks_packable(raw, len))
		return 0;
	packed = LZ4_compress_default((const char *)raw, (char *)out, (int)len, (int)(FT_DISK_BODY_MAX - FT_DISK_BATCH_HDR));
	return packed > 0 && worth_it((size_t)packed, len) ? (size_t)packed : 0;
}

static size_t put_header(uint32_t disk, size_t len, uint32_t nr_ops, size_t packed, uint8_t *out)
{
	ft_put32(out, disk);
	ft_put32(out + 4, packed ? BATCH_LZ4 : 0);
	ft_put32(out + 8, (uint32_t)len);
	ft_put32(out + 12, nr_ops);
	return FT_DISK_BATCH_HDR + (packed ? packed : len);
}

size_t ft_disk_pack_batch(uint32_t disk, const uint8_t *raw, size_t len, uint32_t nr_ops, uint8_t *out)
{
	size_t packed = compress(raw, len, out + FT_DISK_BATCH_HDR);

	if (!packed)
		ft_copy(out + FT_DISK_BATCH_HDR, raw, len);
	return put_header(disk, len, nr_ops, packed, out);
}

size_t ft_disk_pack_here(uint32_t disk, uint8_t *body, size_t len, uint32_t nr_ops, uint8_t *scratch)
{
	size_t packed = compress(body + FT_DISK_BATCH_HDR, len, scratch);

	if (packed)
		ft_copy(body + FT_DISK_BATCH_HDR, scratch, packed);
	return put_header(disk, len, nr_ops, packed, body);
}

static bool batch_header_ok(const uint8_t *body, size_t body_len)
{
	uint32_t raw_len, nr_ops;

	if (body_len <= FT_DISK_BATCH_HDR || body_len > FT_DISK_BODY_MAX)
		return false;
	raw_len = ft_le32(body + 8);
	nr_ops = ft_le32(body + 12);
	if (ft_le32(body) >= FT_DISKS_MAX || ft_le32(body + 4) & ~BATCH_LZ4 || raw_len > FT_DISK_BATCH_MAX)
		return false;
	return nr_ops && nr_ops <= raw_len / FT_DISK_OP_LEN;
}

int ft_disk_open_batch(const uint8_t *body, size_t body_len, uint32_t *disk, uint8_t *raw, const uint8_t **ops, size_t *len,
		       uint32_t *nr_ops)
{
	const uint8_t *data = body + FT_DISK_BATCH_HDR;
	size_t data_len = body_len - FT_DISK_BATCH_HDR;

	if (!batch_header_ok(body, body_len))
		return -EPROTO;
	*disk = ft_le32(body);
	*len = ft_le32(body + 8);
	*nr_ops = ft_le32(body + 12);
	*ops = ft_le32(body + 4) & BATCH_LZ4 ? raw : data;
	if (*ops == raw)
		return LZ4_decompress_safe((const char *)data, (char *)raw, (int)data_len, (int)*len) == (int)*len ? 0 : -EPROTO;
	return data_len == *len ? 0 : -EPROTO;
}

int ft_disk_unpack_batch(const uint8_t *body, size_t body_len, uint32_t *disk, uint8_t *raw, size_t *len, uint32_t *nr_ops)
{
	const uint8_t *ops;
	int rc = ft_disk_open_batch(body, body_len, disk, raw, &ops, len, nr_ops);

	if (!rc && ops != raw)
		ft_copy(raw, ops, *len);
	return rc;
}

/* --- data generations --- */

void ft_disk_pack_id(const struct ft_disk_id *id, uint8_t buf[FT_DISK_ID_LEN])
{
	ft_put64(buf, id->bytes);
	ft_put64(buf + 8, id->current);
	ft_put64(buf + 16, id->base);
	ft_put32(buf + 24, id->flags);
	ft_put32(buf + 28, 0);
}

int ft_disk_unpack_id(const uint8_t buf[FT_DISK_ID_LEN], struct ft_disk_id *out)
{
	*out = (struct ft_disk_id){
		.bytes = ft_le64(buf), .current = ft_le64(buf + 8), .base = ft_le64(buf + 16), .flags = ft_le32(buf + 24),
	};
	if (!out->bytes || out->bytes > FT_DISK_BYTES_MAX || ft_le32(buf + 28))
		return -EPROTO;
	switch (out->flags) {
	case 0: return out->current ? 0 : -EPROTO;
	case FT_DISK_FRESH: return out->current || out->base ? -EPROTO : 0;
	case FT_DISK_TARGET: return 0;
	default: return -EPROTO;
	}
}

static bool same(uint64_t a, uint64_t b)
{
	return a && a == b;
}

static enum ft_disk_verdict refuse(char *why, size_t size, const char *text)
{
	snprintf(why, size, "%s", text);
	return FT_DISK_REFUSE;
}

/* What is there may be overwritten. Is all that differs from it in the maps? */
static enum ft_disk_verdict judge_target(const struct ft_disk_id *mine, const struct ft_disk_id *theirs)
{
	bool known = same(mine->current, theirs->base) || same(mine->base, theirs->base);

	return known ? FT_DISK_COPY_TOUCHED : FT_DISK_COPY_ALL;
}

enum ft_disk_verdict ft_disk_judge(const struct ft_disk_id *mine, const struct ft_disk_id *theirs, char *why, size_t size)
{
	if (size)
		*why = 0;
	if (mine->bytes != theirs->bytes) {
		snprintf(why, size, "the disk has %llu bytes here and %llu on the other host - make both images the same size",
			 (unsigned long long)mine->bytes, (unsigned long long)theirs->bytes);
		return FT_DISK_REFUSE;
	}
	if (mine->flags & FT_DISK_TARGET)
		return refuse(why, size, "the image here is an unfinished copy of the other host's - start the guest there");
	if (theirs->flags & FT_DISK_FRESH)
		return FT_DISK_COPY_ALL;
	if (theirs->flags & FT_DISK_TARGET)
		return judge_target(mine, theirs);
	if (same(mine->current, theirs->current) || same(mine->base, theirs->current))
		return FT_DISK_COPY_TOUCHED;
	if (same(mine->current, theirs->base))
		return refuse(why, size, "the guest has run on the other host since and its disk there is newer - start the guest there");
	return refuse(why, size, "each host has data that the other lacks - decide whose image is to be lost, and remove its "
		      "map file (GUEST.diskN.map) there: it is overwritten then");
}

uint64_t ft_disk_new_generation(void)
{
	uint64_t g = 0;

	while (!g)
		if (getrandom(&g, sizeof(g), 0) != sizeof(g))
			g = 0;
	return g;
}

void ft_disk_hash(const uint8_t *data, size_t len, uint8_t out[FT_HASH_LEN])
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits(data, len));
	memcpy(out, c.digest, FT_HASH_LEN);
}
