// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * wire.h - the records of the replication protocol; docs/PROTOCOL.md is the authority, byte by byte.
 *
 * A connection starts with a plaintext preamble that only names the guest (so that ftd can hand the socket
 * to that guest's child), then TLS 1.3, then records: le32 type, le32 length of the body, body. All
 * integers little-endian. A record whose type is unknown or whose length is outside its row of the table
 * below is -EPROTO before its body is read.
 */
#ifndef FT_WIRE_H
#define FT_WIRE_H

#include "ft/base.h"
#include "ft/codec.h"

#define FT_WIRE_VERSION_MIN 1u
#define FT_WIRE_VERSION_MAX 1u

/* Preamble: "FTr1" magic, u8 length of the name, name. Checked with ft_name_ok. */
#define FT_PREAMBLE_MAGIC "FTr1"
#define FT_PREAMBLE_MAX (4 + 1 + FT_NAME_MAX)

#define FT_WIRE_HDR 8u
#define FT_WIRE_TEXT_MAX 512u           /* human-readable tails */
#define FT_WIRE_STATE_MAX (64u << 20)
#define FT_WIRE_FIRMWARE_MAX (64u << 20)
#define FT_WIRE_SPEC_MAX 16384u         /* canonical guest spec in HELLO */
#define FT_WIRE_FACTS_MAX 4096u
#define FT_WIRE_HASHES_MAX (4u << 20)   /* in VERIFY: 4 TiB of RAM */
#define FT_WIRE_PAGES_MAX (1ull << 30)  /* of a guest: 4 TiB */
#define FT_WIRE_MAP_WORDS 8192u         /* in one DISK_MAP */
#define FT_WIRE_SILENCE_MAX_MS 3600000u

enum ft_rec_type {
	/* primary -> backup */
	FT_REC_HELLO       = 1,         /* ft_wire_hello, then the canonical spec text, then attach facts text */
	FT_REC_FIRMWARE    = 2,         /* opaque, once per session before the first epoch */
	FT_REC_EPOCH_BEGIN = 3,         /* ft_wire_epoch_begin */
	FT_REC_PAGES       = 4,         /* one codec block */
	FT_REC_STATE       = 5,         /* vCPU and device state of this epoch */
	FT_REC_EPOCH_END   = 6,         /* ft_wire_epoch_end */
	FT_REC_DISARM      = 7,         /* le64 generation: promise durably never to start it */
	FT_REC_HANDOVER    = 8,         /* le64 epoch: it is the last, the guest is paused; run it (planned failover,
					   or the primary's QEMU crashed) */
	FT_REC_DRILL       = 9,         /* le64 epoch wanted at least */
	FT_REC_VERIFY      = 10,        /* le64 epoch, then le64 hashes of all RAM at that epoch */
	FT_REC_DISKS       = 11,        /* a packed ft_disk_id for each disk (disk.h), once per session, before FIRMWARE */
	FT_REC_DISK_ASK    = 12,        /* le32 disk, le32 0, le64 region, le64 granules: their hashes */
	FT_REC_DISK        = 13,        /* a batch of ops (disk.h), anywhere between EPOCH_BEGIN and STATE */
	/* backup -> primary */
	FT_REC_WELCOME     = 32,        /* ft_wire_welcome, then text */
	FT_REC_READY       = 33,        /* empty: the replica is built and parked; firmware taken */
	FT_REC_ACK         = 34,        /* le64 epoch: whole, verified and held; le64 of staging bytes used */
	FT_REC_DISARMED    = 35,        /* le64 generation: durable */
	FT_REC_RUNNING     = 36,        /* le64 generation under which the backup now runs the guest */
	FT_REC_DRILLED     = 37,        /* ft_wire_drilled, then text */
	FT_REC_VERIFIED    = 38,        /* ft_wire_verified */
	FT_REC_DISK_MAP    = 39,        /* le32 disk, le32 0, le64 region, le64 words: what may differ here; before */
	FT_REC_DISKS_HERE  = 40,        /* a packed ft_disk_id for each disk: the answer to DISKS */
	FT_REC_DISK_HASHES = 41,        /* DISK_ASK's body, then FT_HASH_LEN for each granule */
	FT_REC_DISK_DURABLE = 42,       /* le32 disk, le32 0, le64 seq: its ops up to this one survive a crash here */
	/* both */
	FT_REC_PING        = 64,        /* le64 sender's clock: returned in PONG; any record is a sign of life */
	FT_REC_PONG        = 65,
	FT_REC_ERROR       = 66,        /* le32 enum ft_wire_reason, then text: the sender closes after it */
};

/* Why a WELCOME refuses or an ERROR closes. Values are protocol; append only. */
enum ft_wire_reason {
	FT_REASON_OK = 0,
	FT_REASON_VERSION,              /* no common protocol version */
	FT_REASON_NOT_PERMITTED,        /* this peer may not replicate this guest */
	FT_REASON_TAKEN_OVER,           /* the backup runs the guest, at a higher generation */
	FT_REASON_UNKNOWN_GUEST,        /* no guest file on the backup */
	FT_REASON_MISMATCH,             /* spec, machine type or QEMU version differ; text names the key */
	FT_REASON_NO_ROOM,              /* memory, /dev/shm or disk */
	FT_REASON_NO_HYPERVISOR,        /* QEMU, nbdkit, a bridge or a directory: missing or unusable */
	FT_REASON_BUSY,                 /* another session of this guest is alive */
	FT_REASON_PROTO,                /* bytes that make no sense */
	FT_REASON_GENERATION,           /* the backup knows a higher generation */
	FT_REASON_INTERNAL,
	FT_REASON_GUEST_ENDED,          /* the backup ran the guest, at a higher generation; there it has ended */
};

/* What the backup has of the guest when a session starts. */
enum ft_replica_state {
	FT_REPLICA_NONE = 0,            /* nothing, or nothing whole: promises not to start anything */
	FT_REPLICA_ARMED = 1,           /* a whole epoch of (generation, epoch) */
	FT_REPLICA_RUNNING = 2,         /* it runs the guest */
	FT_REPLICA_DISARMED = 3,
};

#define FT_HELLO_CONTINUE 1u            /* primary's policy `continue`: never take over on silence alone */
#define FT_HELLO_OUTRUN 2u              /* the guest's output went on without the backup: what that holds is void */
#define FT_HELLO_CHECK 4u               /* only ask what WELCOME would say: opens no session, replaces none */
#define FT_HELLO_FLAGS 7u

/* The first fact that is of the moment; all before it is the machine, of which two HELLOs must not differ. */
#define FT_WIRE_FACTS_NOW "disks="

struct ft_wire_hello {                  /* fixed part, 56 bytes */
	uint32_t version_min, version_max;
	uint32_t flags;                 /* FT_HELLO_* */
	uint32_t pad;
	uint64_t generation;            /* of this session; larger than any the primary knows */
	uint64_t nr_pages;
	uint32_t spec_len;              /* canonical guest spec */
	uint32_t facts_len;             /* "key=value\n" */
	uint8_t resume[16];             /* session id to resume (link broke, nobody died); zero: new session */
};

struct ft_wire_welcome {                /* 56 bytes */
	uint32_t version;
	uint32_t reason;                /* enum ft_wire_reason */
	uint32_t replica;               /* enum ft_replica_state */
	uint16_t udp_port;              /* heartbeats of this session */
	uint16_t pad;
	uint64_t generation;            /* of the replica, or of the running guest */
	uint64_t epoch;                 /* last whole epoch of that replica */
	uint32_t silence_ms;            /* the backup takes over after this much silence */
	uint32_t pad2;
	uint8_t session[16];
};

struct ft_wire_epoch_begin {            /* 24 bytes */
	uint64_t epoch;
	uint64_t base;                  /* epoch it builds on: the receiver's last whole one; 0 with FULL */
	uint32_t flags;                 /* FT_EPOCH_* of image.h */
	uint32_t pad;
};

struct ft_wire_epoch_end {              /* 40 bytes */
	uint64_t epoch;
	uint64_t blocks;                /* PAGES records in this epoch */
	uint64_t pages;                 /* pages in them */
	uint64_t batches;               /* DISK records in this epoch */
	uint64_t checksum;              /* XXH3-64 over all PAGES, DISK and STATE bodies, in order */
};

struct ft_wire_drilled {                /* 16 bytes */
	uint32_t ok, load_ms, dirtied_pages, pad;
};

struct ft_wire_verified {               /* 24 bytes */
	uint64_t epoch;
	uint64_t differing;             /* how many hash units differ */
	uint64_t first_page;            /* of the first one */
};

struct ft_wire_disk_at {                /* 16 bytes: DISK_MAP (@at: first region), DISK_DURABLE (seq) */
	uint32_t disk, pad;
	uint64_t at;
};

struct ft_wire_disk_range {             /* 24 bytes: DISK_ASK, DISK_HASHES */
	uint32_t disk, pad;
	uint64_t region;
	uint64_t granules;              /* of the region, one bit each; not 0 */
};

/* 0, or -EPROTO when @type is unknown, came from the wrong side, or @len is out of its range. */
int ft_wire_check(uint32_t type, uint64_t len, bool from_primary) FT_MUST_CHECK;
const char *ft_wire_name(uint32_t type);
const char *ft_wire_reason_text(uint32_t reason);

/*
 * pack writes the fixed part and returns its length (the FT_WIRE_*_LEN below); the caller appends the tail.
 * unpack takes the whole body, tail included, and checks length and field ranges: 0 or -EPROTO. An unknown
 * reason passes: a newer peer may have more of them, and its text still says why.
 */
#define FT_WIRE_CODEC(rec) \
	size_t ft_wire_pack_##rec(const struct ft_wire_##rec *r, uint8_t *buf); \
	int ft_wire_unpack_##rec(const uint8_t *buf, size_t len, struct ft_wire_##rec *out) FT_MUST_CHECK
FT_WIRE_CODEC(hello);
FT_WIRE_CODEC(welcome);
FT_WIRE_CODEC(epoch_begin);
FT_WIRE_CODEC(epoch_end);
FT_WIRE_CODEC(drilled);
FT_WIRE_CODEC(verified);
FT_WIRE_CODEC(disk_at);
FT_WIRE_CODEC(disk_range);
#undef FT_WIRE_CODEC
#define FT_WIRE_HELLO_LEN 56u
#define FT_WIRE_WELCOME_LEN 56u
#define FT_WIRE_WELCOME_MAX (FT_WIRE_WELCOME_LEN + FT_WIRE_TEXT_MAX)
#define FT_WIRE_EPOCH_BEGIN_LEN 24u
#define FT_WIRE_EPOCH_END_LEN 40u
#define FT_WIRE_DRILLED_LEN 16u
#define FT_WIRE_VERIFIED_LEN 24u
#define FT_WIRE_DISK_AT_LEN 16u
#define FT_WIRE_DISK_RANGE_LEN 24u

/* A whole WELCOME: as much of @text as may follow. Returns its length. */
size_t ft_wire_pack_welcome_text(const struct ft_wire_welcome *r, const char *text, uint8_t buf[FT_WIRE_WELCOME_MAX]);

#endif
