// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * disk.h - what both ends of the disk mirror agree on: geometry, operations, data generations, direction.
 *
 * A disk is an array of bytes served to the guest over NBD by nbdkit with our plugin (export.h). What the
 * guest changes becomes a stream of operations, numbered from 1 in the order in which they were applied.
 */
#ifndef FT_DISK_H
#define FT_DISK_H

#include "ft/base.h"

#define FT_DISKS_MAX 8u
#define FT_GRANULE (64u << 10)          /* what is compared, and marked as touched, at once */
#define FT_REGION_GRANULES 64u
#define FT_REGION (FT_GRANULE * FT_REGION_GRANULES)     /* 4 MiB: a slot of the activity log, a word of the map */
#define FT_DISK_BYTES_MAX (1ull << 44)  /* 16 TiB */
#define FT_DISK_OP_DATA_MAX (256u << 10)
#define FT_DISK_OP_LEN 24u              /* packed, before the data */

static inline uint64_t ft_disk_regions(uint64_t bytes)
{
	return (bytes + FT_REGION - 1) / FT_REGION;
}

/* A bit for each granule of @region; the last region of a disk of @bytes may have fewer than 64. */
static inline uint64_t ft_disk_granules(uint64_t bytes, uint64_t region)
{
	uint64_t nr = (bytes - region * FT_REGION + FT_GRANULE - 1) / FT_GRANULE;

	return nr >= FT_REGION_GRANULES ? UINT64_MAX : (1ull << nr) - 1;
}

enum ft_disk_opcode {
	FT_DISK_WRITE = 1,              /* len bytes follow */
	FT_DISK_ZERO  = 2,              /* reads back as zeros from here on: write-zeroes and trim */
	FT_DISK_MARK  = 3,              /* offset is a region's: all that differed in it came before this. len 0 */
};

struct ft_disk_op {
	uint64_t seq;                   /* grows by one from op to op of a disk, over all of a stream's life */
	uint64_t offset;
	uint32_t len;
	uint32_t op;
};

/* FT_DISK_OP_LEN bytes: le64 seq, le64 offset, le32 len, le32 op. */
void ft_disk_pack_op(const struct ft_disk_op *op, uint8_t buf[FT_DISK_OP_LEN]);
/* Hostile bytes: -EPROTO unless the op is known, and lies inside a disk of @bytes. */
int ft_disk_unpack_op(const uint8_t buf[FT_DISK_OP_LEN], uint64_t bytes, struct ft_disk_op *out) FT_MUST_CHECK;

/*
 * --- DISK records: a batch of ops of one disk, LZ4 where that helps ---
 * Body: le32 disk, le32 flags (1: LZ4), le32 raw length, le32 number of ops, then the batch.
 */
#define FT_DISK_BATCH_MAX (FT_DISK_OP_LEN + FT_DISK_OP_DATA_MAX)        /* raw bytes: the largest op fits alone */
#define FT_DISK_BATCH_HDR 16u
#define FT_DISK_BODY_MAX (FT_DISK_BATCH_HDR + FT_DISK_BATCH_MAX + FT_DISK_BATCH_MAX / 255 + 16)

/* @raw: ops as packed, each WRITE followed by its data. Returns the length of the body in @out [FT_DISK_BODY_MAX]. */
size_t ft_disk_pack_batch(uint32_t disk, const uint8_t *raw, size_t len, uint32_t nr_ops, uint8_t *out);
/* The same of what lies in @body already, behind the header. @scratch [FT_DISK_BODY_MAX]. */
size_t ft_disk_pack_here(uint32_t disk, uint8_t *body, size_t len, uint32_t nr_ops, uint8_t *scratch);
/* Hostile bytes. @raw has FT_DISK_BATCH_MAX bytes; *len and *nr_ops are what it holds. Ops are not looked at. -EPROTO. */
int ft_disk_unpack_batch(const uint8_t *body, size_t body_len, uint32_t *disk, uint8_t *raw, size_t *len,
			 uint32_t *nr_ops) FT_MUST_CHECK;
/* The same without a copy of what is not compressed: *ops is in @raw, or in @body. */
int ft_disk_open_batch(const uint8_t *body, size_t body_len, uint32_t *disk, uint8_t *raw, const uint8_t **ops, size_t *len,
		       uint32_t *nr_ops) FT_MUST_CHECK;

/*
 * --- data generations: which side has what the other lacks. After DRBD's generation identifiers. ---
 *
 * A generation is a random number for the content that the guest's users have seen. Mirrored disks are of the
 * same generation. Whoever lets the guest be seen without the mirror (a takeover, going on alone, protection
 * ended, a new start) first makes a new one durable and remembers the one it grew from; from there on the map
 * says what was touched since. What a primary wrote while it was cut off and mute makes no generation: nobody
 * has seen it, and the map of the primary has it as touched.
 */
#define FT_DISK_FRESH  1u               /* there is no map: the image was never part of a mirror */
#define FT_DISK_TARGET 2u               /* a copy to it was begun and is not through: useless by itself */

struct ft_disk_id {                     /* 32 bytes on the wire: le64 bytes, current, base, le32 flags, le32 0 */
	uint64_t bytes;                 /* size of the disk */
	uint64_t current;               /* generation; 0 with FRESH */
	uint64_t base;                  /* 0, or the one it grew from; with TARGET the one that was being copied */
	uint32_t flags;
};
#define FT_DISK_ID_LEN 32u
void ft_disk_pack_id(const struct ft_disk_id *id, uint8_t buf[FT_DISK_ID_LEN]);
int ft_disk_unpack_id(const uint8_t buf[FT_DISK_ID_LEN], struct ft_disk_id *out) FT_MUST_CHECK;

enum ft_disk_verdict {
	FT_DISK_COPY_ALL,               /* compare everything */
	FT_DISK_COPY_TOUCHED,           /* compare what either map has as touched */
	FT_DISK_REFUSE,                 /* sizes differ, or the peer has data that we lack */
};
/* May @mine be copied over @theirs? On REFUSE one line in @why, with the remedy. */
enum ft_disk_verdict ft_disk_judge(const struct ft_disk_id *mine, const struct ft_disk_id *theirs, char *why, size_t size);

/* A random generation, never 0. */
uint64_t ft_disk_new_generation(void);

/* --- comparing: 128 bits of XXH3 a granule; the last one of a disk may be short --- */
#define FT_HASH_LEN 16u
void ft_disk_hash(const uint8_t *data, size_t len, uint8_t out[FT_HASH_LEN]);

#endif
