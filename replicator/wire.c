// SPDX-License-Identifier: GPL-3.0-or-later
/* wire.c - the record table, and each fixed-width record to bytes and back. See ft/wire.h, docs/PROTOCOL.md. */
#include "ft/wire.h"

#include "ft/disk.h"
#include "ft/image.h"

enum side { PRIMARY = 1, BACKUP = 2, EITHER = PRIMARY | BACKUP };

static const struct row {
	uint32_t type;
	enum side from;
	uint32_t min, max;              /* bytes of the body */
	const char *name;
} table[] = {
	{ FT_REC_HELLO,       PRIMARY, FT_WIRE_HELLO_LEN, FT_WIRE_HELLO_LEN + FT_WIRE_SPEC_MAX + FT_WIRE_FACTS_MAX, "HELLO" },
	{ FT_REC_FIRMWARE,    PRIMARY, 0, FT_WIRE_FIRMWARE_MAX, "FIRMWARE" },
	{ FT_REC_EPOCH_BEGIN, PRIMARY, FT_WIRE_EPOCH_BEGIN_LEN, FT_WIRE_EPOCH_BEGIN_LEN, "EPOCH_BEGIN" },
	{ FT_REC_PAGES,       PRIMARY, 1, FT_BLOCK_MAX, "PAGES" },
	{ FT_REC_STATE,       PRIMARY, 0, FT_WIRE_STATE_MAX, "STATE" },
	{ FT_REC_EPOCH_END,   PRIMARY, FT_WIRE_EPOCH_END_LEN, FT_WIRE_EPOCH_END_LEN, "EPOCH_END" },
	{ FT_REC_DISARM,      PRIMARY, 8, 8, "DISARM" },
	{ FT_REC_HANDOVER,    PRIMARY, 8, 8, "HANDOVER" },
	{ FT_REC_DRILL,       PRIMARY, 8, 8, "DRILL" },
	{ FT_REC_VERIFY,      PRIMARY, 16, 8 + 8 * FT_WIRE_HASHES_MAX, "VERIFY" },
	{ FT_REC_DISKS,       PRIMARY, FT_DISK_ID_LEN, FT_DISKS_MAX * FT_DISK_ID_LEN, "DISKS" },
	{ FT_REC_DISK_ASK,    PRIMARY, FT_WIRE_DISK_RANGE_LEN, FT_WIRE_DISK_RANGE_LEN, "DISK_ASK" },
	{ FT_REC_DISK,        PRIMARY, FT_DISK_BATCH_HDR + 1, FT_DISK_BODY_MAX, "DISK" },
	{ FT_REC_WELCOME,     BACKUP,  FT_WIRE_WELCOME_LEN, FT_WIRE_WELCOME_MAX, "WELCOME" },
	{ FT_REC_READY,       BACKUP,  0, 0, "READY" },
	{ FT_REC_ACK,         BACKUP,  16, 16, "ACK" },
	{ FT_REC_DISARMED,    BACKUP,  8, 8, "DISARMED" },
	{ FT_REC_RUNNING,     BACKUP,  8, 8, "RUNNING" },
	{ FT_REC_DRILLED,     BACKUP,  FT_WIRE_DRILLED_LEN, FT_WIRE_DRILLED_LEN + FT_WIRE_TEXT_MAX, "DRILLED" },
	{ FT_REC_VERIFIED,    BACKUP,  FT_WIRE_VERIFIED_LEN, FT_WIRE_VERIFIED_LEN, "VERIFIED" },
	{ FT_REC_DISK_MAP,    BACKUP,  FT_WIRE_DISK_AT_LEN + 8, FT_WIRE_DISK_AT_LEN + 8 * FT_WIRE_MAP_WORDS, "DISK_MAP" },
	{ FT_REC_DISKS_HERE,  BACKUP,  FT_DISK_ID_LEN, FT_DISKS_MAX * FT_DISK_ID_LEN, "DISKS_HERE" },
	{ FT_REC_DISK_HASHES, BACKUP,  FT_WIRE_DISK_RANGE_LEN + FT_HASH_LEN,
	  FT_WIRE_DISK_RANGE_LEN + FT_REGION_GRANULES * FT_HASH_LEN, "DISK_HASHES" },
	{ FT_REC_DISK_DURABLE, BACKUP, FT_WIRE_DISK_AT_LEN, FT_WIRE_DISK_AT_LEN, "DISK_DURABLE" },
	{ FT_REC_PING,        EITHER,  8, 8, "PING" },
	{ FT_REC_PONG,        EITHER,  8, 8, "PONG" },
	{ FT_REC_ERROR,       EITHER,  4, 4 + FT_WIRE_TEXT_MAX, "ERROR" },
};

static const struct row *find(uint32_t type)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(table); i++)
		if (table[i].type == type)
			return &table[i];
	return NULL;
}

int ft_wire_check(uint32_t type, uint64_t len, bool from_primary)
{
	const struct row *r = find(type);

	if (!r || !(r->from & (from_primary ? PRIMARY : BACKUP)) || len < r->min || len > r->max)
		return -EPROTO;
	return 0;
}

const char *ft_wire_name(uint32_t type)
{
	const struct row *r = find(type);

	return r ? r->name : "unknown record";
}

const char *ft_wire_reason_text(uint32_t reason)
{
	static const char *const text[] = {
		[FT_REASON_OK]            = "ok",
		[FT_REASON_VERSION]       = "no common protocol version",
		[FT_REASON_NOT_PERMITTED] = "this peer may not replicate this guest",
		[FT_REASON_TAKEN_OVER]    = "the backup runs the guest",
		[FT_REASON_UNKNOWN_GUEST] = "no guest file on the backup",
		[FT_REASON_MISMATCH]      = "the two hosts do not describe the same guest",
		[FT_REASON_NO_ROOM]       = "not enough memory or disk on the backup",
		[FT_REASON_NO_HYPERVISOR] = "the backup lacks what the guest needs",
		[FT_REASON_BUSY]          = "another session of this guest is alive",
		[FT_REASON_PROTO]         = "the peer sent bytes that make no sense",
		[FT_REASON_GENERATION]    = "the backup knows a higher generation",
		[FT_REASON_INTERNAL]      = "internal error",
		[FT_REASON_GUEST_ENDED]   = "the guest has ended",
	};

	return reason < FT_ARRAY_LEN(text) ? text[reason] : "a reason unknown to this version";
}

/* --- a cursor over the fixed part: fields go in and out in the order of the document --- */

static void put16(uint8_t **p, uint16_t v)
{
	ft_put16(*p, v);
	*p += 2;
}

static void put32(uint8_t **p, uint32_t v)
{
	ft_put32(*p, v);
	*p += 4;
}

static void put64(uint8_t **p, uint64_t v)
{
	ft_put64(*p, v);
	*p += 8;
}

static void put_id(uint8_t **p, const uint8_t id[16])
{
	memcpy(*p, id, 16);
	*p += 16;
}

static uint16_t get16(const uint8_t **p)
{
	*p += 2;
	return ft_le16(*p - 2);
}

static uint32_t get32(const uint8_t **p)
{
	*p += 4;
	return ft_le32(*p - 4);
}

static uint64_t get64(const uint8_t **p)
{
	*p += 8;
	return ft_le64(*p - 8);
}

static void get_id(const uint8_t **p, uint8_t id[16])
{
	memcpy(id, *p, 16);
	*p += 16;
}

/* --- HELLO. Its layout is the same in every version: it is what negotiates the version. --- */

size_t ft_wire_pack_hello(const struct ft_wire_hello *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put32(&p, r->version_min);
	put32(&p, r->version_max);
	put32(&p, r->flags);
	put32(&p, 0);
	put64(&p, r->generation);
	put64(&p, r->nr_pages);
	put32(&p, r->spec_len);
	put32(&p, r->facts_len);
	put_id(&p, r->resume);
	return (size_t)(p - buf);
}

int ft_wire_unpack_hello(const uint8_t *buf, size_t len, struct ft_wire_hello *out)
{
	const uint8_t *p = buf;

	if (len < FT_WIRE_HELLO_LEN)
		return -EPROTO;
	out->version_min = get32(&p);
	out->version_max = get32(&p);
	out->flags = get32(&p);
	out->pad = get32(&p);
	out->generation = get64(&p);
	out->nr_pages = get64(&p);
	out->spec_len = get32(&p);
	out->facts_len = get32(&p);
	get_id(&p, out->resume);
	if (!out->version_min || out->version_min > out->version_max)
		return -EPROTO;
	if (out->pad || out->flags & ~FT_HELLO_FLAGS)
		return -EPROTO;
	if (!out->generation || !out->nr_pages || out->nr_pages > FT_WIRE_PAGES_MAX)
		return -EPROTO;
	if (out->spec_len > FT_WIRE_SPEC_MAX || out->facts_len > FT_WIRE_FACTS_MAX)
		return -EPROTO;
	return len == (size_t)FT_WIRE_HELLO_LEN + out->spec_len + out->facts_len ? 0 : -EPROTO;
}

/* --- WELCOME: refusals fill in less, so what a session needs is asked for only with REASON_OK --- */

size_t ft_wire_pack_welcome(const struct ft_wire_welcome *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put32(&p, r->version);
	put32(&p, r->reason);
	put32(&p, r->replica);
	put16(&p, r->udp_port);
	put16(&p, 0);
	put64(&p, r->generation);
	put64(&p, r->epoch);
	put32(&p, r->silence_ms);
	put32(&p, 0);
	put_id(&p, r->session);
	return (size_t)(p - buf);
}

size_t ft_wire_pack_welcome_text(const struct ft_wire_welcome *r, const char *text, uint8_t buf[FT_WIRE_WELCOME_MAX])
{
	size_t len = ft_wire_pack_welcome(r, buf), text_len = strnlen(text, FT_WIRE_TEXT_MAX);

	memcpy(buf + len, text, text_len);
	return len + text_len;
}

int ft_wire_unpack_welcome(const uint8_t *buf, size_t len, struct ft_wire_welcome *out)
{
	const uint8_t *p = buf;

	if (len < FT_WIRE_WELCOME_LEN || len > FT_WIRE_WELCOME_MAX)
		return -EPROTO;
	out->version = get32(&p);
	out->reason = get32(&p);
	out->replica = get32(&p);
	out->udp_port = get16(&p);
	out->pad = get16(&p);
	out->generation = get64(&p);
	out->epoch = get64(&p);
	out->silence_ms = get32(&p);
	out->pad2 = get32(&p);
	get_id(&p, out->session);
	if (out->pad || out->pad2 || out->replica > FT_REPLICA_DISARMED || out->silence_ms > FT_WIRE_SILENCE_MAX_MS)
		return -EPROTO;
	if (out->reason != FT_REASON_OK)
		return 0;
	if (out->version < FT_WIRE_VERSION_MIN || out->version > FT_WIRE_VERSION_MAX || !out->silence_ms)
		return -EPROTO;
	return 0;
}

/* --- epochs --- */

size_t ft_wire_pack_epoch_begin(const struct ft_wire_epoch_begin *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put64(&p, r->epoch);
	put64(&p, r->base);
	put32(&p, r->flags);
	put32(&p, 0);
	return (size_t)(p - buf);
}

int ft_wire_unpack_epoch_begin(const uint8_t *buf, size_t len, struct ft_wire_epoch_begin *out)
{
	const uint8_t *p = buf;

	if (len != FT_WIRE_EPOCH_BEGIN_LEN)
		return -EPROTO;
	out->epoch = get64(&p);
	out->base = get64(&p);
	out->flags = get32(&p);
	out->pad = get32(&p);
	if (out->base >= out->epoch || !out->base != !!(out->flags & FT_EPOCH_FULL))
		return -EPROTO;
	if (out->pad || out->flags & ~(FT_EPOCH_FULL | FT_EPOCH_DIRECT))
		return -EPROTO;
	return out->flags == FT_EPOCH_DIRECT ? -EPROTO : 0;     /* DIRECT goes only with FULL */
}

size_t ft_wire_pack_epoch_end(const struct ft_wire_epoch_end *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put64(&p, r->epoch);
	put64(&p, r->blocks);
	put64(&p, r->pages);
	put64(&p, r->batches);
	put64(&p, r->checksum);
	return (size_t)(p - buf);
}

int ft_wire_unpack_epoch_end(const uint8_t *buf, size_t len, struct ft_wire_epoch_end *out)
{
	const uint8_t *p = buf;

	if (len != FT_WIRE_EPOCH_END_LEN)
		return -EPROTO;
	out->epoch = get64(&p);
	out->blocks = get64(&p);
	out->pages = get64(&p);
	out->batches = get64(&p);
	out->checksum = get64(&p);
	if (!out->epoch || out->blocks > out->pages)
		return -EPROTO;
	return out->blocks < out->pages / FT_CHUNK_PAGES + (out->pages % FT_CHUNK_PAGES != 0) ? -EPROTO : 0;
}

/* --- answers to requests of the operator --- */

size_t ft_wire_pack_drilled(const struct ft_wire_drilled *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put32(&p, r->ok);
	put32(&p, r->load_ms);
	put32(&p, r->dirtied_pages);
	put32(&p, 0);
	return (size_t)(p - buf);
}

int ft_wire_unpack_drilled(const uint8_t *buf, size_t len, struct ft_wire_drilled *out)
{
	const uint8_t *p = buf;

	if (len < FT_WIRE_DRILLED_LEN || len > FT_WIRE_DRILLED_LEN + FT_WIRE_TEXT_MAX)
		return -EPROTO;
	out->ok = get32(&p);
	out->load_ms = get32(&p);
	out->dirtied_pages = get32(&p);
	out->pad = get32(&p);
	return out->ok > 1 || out->pad ? -EPROTO : 0;
}

size_t ft_wire_pack_verified(const struct ft_wire_verified *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put64(&p, r->epoch);
	put64(&p, r->differing);
	put64(&p, r->first_page);
	return (size_t)(p - buf);
}

int ft_wire_unpack_verified(const uint8_t *buf, size_t len, struct ft_wire_verified *out)
{
	const uint8_t *p = buf;

	if (len != FT_WIRE_VERIFIED_LEN)
		return -EPROTO;
	out->epoch = get64(&p);
	out->differing = get64(&p);
	out->first_page = get64(&p);
	return out->differing > FT_WIRE_HASHES_MAX || out->first_page > FT_WIRE_PAGES_MAX ? -EPROTO : 0;
}

/* --- disks --- */

size_t ft_wire_pack_disk_at(const struct ft_wire_disk_at *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put32(&p, r->disk);
	put32(&p, 0);
	put64(&p, r->at);
	return (size_t)(p - buf);
}

int ft_wire_unpack_disk_at(const uint8_t *buf, size_t len, struct ft_wire_disk_at *out)
{
	const uint8_t *p = buf;

	if (len < FT_WIRE_DISK_AT_LEN || (len - FT_WIRE_DISK_AT_LEN) % 8)
		return -EPROTO;
	out->disk = get32(&p);
	out->pad = get32(&p);
	out->at = get64(&p);
	return out->disk >= FT_DISKS_MAX || out->pad ? -EPROTO : 0;
}

size_t ft_wire_pack_disk_range(const struct ft_wire_disk_range *r, uint8_t *buf)
{
	uint8_t *p = buf;

	put32(&p, r->disk);
	put32(&p, 0);
	put64(&p, r->region);
	put64(&p, r->granules);
	return (size_t)(p - buf);
}

int ft_wire_unpack_disk_range(const uint8_t *buf, size_t len, struct ft_wire_disk_range *out)
{
	const uint8_t *p = buf;

	if (len < FT_WIRE_DISK_RANGE_LEN)
		return -EPROTO;
	out->disk = get32(&p);
	out->pad = get32(&p);
	out->region = get64(&p);
	out->granules = get64(&p);
	if (out->disk >= FT_DISKS_MAX || out->pad || !out->granules || out->region >= ft_disk_regions(FT_DISK_BYTES_MAX))
		return -EPROTO;
	/* DISK_ASK ends here, DISK_HASHES has one for each granule. */
	len -= FT_WIRE_DISK_RANGE_LEN;
	return len && len != (size_t)__builtin_popcountll(out->granules) * FT_HASH_LEN ? -EPROTO : 0;
}
