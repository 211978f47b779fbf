// SPDX-License-Identifier: GPL-3.0-or-later
/* test_disk.c - what both ends of the mirror agree on, and what they refuse to. */
#include "ft/disk.h"
#include "tests/test.h"

#define BYTES (3 * (uint64_t)FT_REGION + 4096)

static int unpack(struct ft_disk_op op, struct ft_disk_op *out)
{
	uint8_t buf[FT_DISK_OP_LEN];

	ft_disk_pack_op(&op, buf);
	return ft_disk_unpack_op(buf, BYTES, out);
}

TEST(an_op_comes_back_as_it_was_packed)
{
	struct ft_disk_op op = { 0x1122334455667788, 2 * (uint64_t)FT_REGION + 7, 4096, FT_DISK_WRITE }, out;
	uint8_t buf[FT_DISK_OP_LEN];

	ft_disk_pack_op(&op, buf);
	CHECK_EQ(buf[0], 0x88);
	CHECK_EQ(buf[20], FT_DISK_WRITE);
	CHECK_OK(ft_disk_unpack_op(buf, BYTES, &out));
	CHECK(out.seq == op.seq && out.offset == op.offset && out.len == op.len && out.op == op.op);
}

TEST(ops_up_to_the_last_byte_pass_and_none_beyond)
{
	static const struct ft_disk_op good[] = {
		{ 1, 0, 1, FT_DISK_WRITE }, { 1, BYTES - 1, 1, FT_DISK_WRITE }, { 1, 0, FT_DISK_OP_DATA_MAX, FT_DISK_WRITE },
		{ 1, 0, (uint32_t)BYTES, FT_DISK_ZERO }, { 1, 0, 0, FT_DISK_MARK }, { 1, 3 * (uint64_t)FT_REGION, 0, FT_DISK_MARK },
	}, bad[] = {
		{ 1, BYTES, 1, FT_DISK_WRITE }, { 1, BYTES - 1, 2, FT_DISK_WRITE }, { 1, UINT64_MAX, 2, FT_DISK_WRITE },
		{ 1, 0, FT_DISK_OP_DATA_MAX + 1, FT_DISK_WRITE }, { 1, 0, 0, FT_DISK_WRITE }, { 1, 0, 0, FT_DISK_ZERO },
		{ 1, 0, (uint32_t)BYTES + 1, FT_DISK_ZERO }, { 1, 0, 1, FT_DISK_MARK }, { 1, 4096, 0, FT_DISK_MARK },
		{ 1, 4 * (uint64_t)FT_REGION, 0, FT_DISK_MARK }, { 1, 0, 1, 0 }, { 1, 0, 1, 4 }, { 0, 0, 1, FT_DISK_WRITE },
	};
	struct ft_disk_op out;

	for (size_t i = 0; i < FT_ARRAY_LEN(good); i++)
		CHECK_OK(unpack(good[i], &out));
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		CHECK_EQ(unpack(bad[i], &out), -EPROTO);
}

/* --- batches --- */

static uint8_t raw[FT_DISK_BATCH_MAX], body[FT_DISK_BODY_MAX], back[FT_DISK_BATCH_MAX];

static void fill_random(uint8_t *p, size_t len)
{
	uint64_t x = 88172645463325252ull;

	for (size_t i = 0; i < len; i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		p[i] = (uint8_t)x;
	}
}

static void round_trip(size_t len, size_t at_most)
{
	uint32_t disk, nr_ops;
	size_t n = ft_disk_pack_batch(3, raw, len, 1, body), back_len;

	CHECK(n <= at_most);
	CHECK_OK(ft_disk_unpack_batch(body, n, &disk, back, &back_len, &nr_ops));
	CHECK(disk == 3 && nr_ops == 1 && back_len == len && !memcmp(raw, back, len));
}

TEST(a_batch_comes_back_compressed_or_not)
{
	memset(raw, 'x', sizeof(raw));
	round_trip(sizeof(raw), sizeof(raw) / 50);
	fill_random(raw, sizeof(raw));
	round_trip(sizeof(raw), FT_DISK_BATCH_HDR + sizeof(raw));
	round_trip(FT_DISK_OP_LEN, FT_DISK_BATCH_HDR + FT_DISK_OP_LEN);
}

static int unpack_body(size_t len)
{
	uint8_t *exact = malloc(len ? len : 1);         /* so that a sanitizer sees what is read beyond */
	uint32_t disk, nr_ops;
	size_t n;
	int rc;

	memcpy(exact, body, len);
	rc = ft_disk_unpack_batch(exact, len, &disk, back, &n, &nr_ops);
	free(exact);
	return rc;
}

/* A large batch that would save next to nothing travels as it is, and what packs well does not. */
TEST(what_does_not_pack_is_let_be)
{
	static uint8_t here[FT_DISK_BODY_MAX], scratch[FT_DISK_BODY_MAX];
	static const struct { unsigned zeros_of_32; bool packed; } rows[] = { { 0, false }, { 1, false }, { 8, true }, { 32, true } };
	const uint8_t *ops;
	uint32_t disk, nr;
	size_t n, len;

	for (unsigned i = 0; i < FT_ARRAY_LEN(rows); i++) {
		for (size_t k = 0; k < sizeof(raw); k++)
			raw[k] = k / 64 % 32 < rows[i].zeros_of_32 ? 0 : (uint8_t)random();
		n = ft_disk_pack_batch(1, raw, sizeof(raw), 1, body);
		CHECK_EQ(n < FT_DISK_BATCH_HDR + sizeof(raw), rows[i].packed);
		memcpy(here + FT_DISK_BATCH_HDR, raw, sizeof(raw));
		CHECK_EQ(ft_disk_pack_here(1, here, sizeof(raw), 1, scratch), n);
		CHECK(!memcmp(here, body, n));
		CHECK_OK(ft_disk_open_batch(body, n, &disk, scratch, &ops, &len, &nr));
		CHECK_EQ(ops == scratch, rows[i].packed);
		CHECK(len == sizeof(raw) && !memcmp(ops, raw, len));
	}
}

TEST(hostile_batches_are_refused)
{
	memset(raw, 0, 4096);
	for (int random = 0; random < 2; random++) {
		static const struct { unsigned at; uint32_t value; } wrong[] = {
			{ 0, FT_DISKS_MAX }, { 0, UINT32_MAX }, { 4, 2 }, { 4, UINT32_MAX }, { 8, 0 }, { 8, 23 }, { 8, 4095 }, { 8, 4097 },
			{ 8, FT_DISK_BATCH_MAX + 1 }, { 8, UINT32_MAX }, { 12, 0 }, { 12, 4096 / 24 + 1 }, { 12, UINT32_MAX },
		};
		size_t n = ft_disk_pack_batch(0, raw, 4096, 4, body);

		for (size_t i = 0; i < FT_ARRAY_LEN(wrong); i++) {
			uint32_t was = ft_le32(body + wrong[i].at);

			ft_put32(body + wrong[i].at, wrong[i].value);
			CHECK_EQ(unpack_body(n), -EPROTO);
			ft_put32(body + wrong[i].at, was);
		}
		for (size_t len = 0; len < n; len++)
			CHECK_EQ(unpack_body(len), -EPROTO);
		CHECK_OK(unpack_body(n));
		body[4] ^= 1;                           /* says LZ4 and is not, or the other way round */
		CHECK_EQ(unpack_body(n), -EPROTO);
		fill_random(raw, 4096);
	}
}

TEST(a_compressed_batch_never_writes_beyond_its_room)
{
	size_t n;

	memset(raw, 0, sizeof(raw));
	n = ft_disk_pack_batch(0, raw, sizeof(raw), 1, body);
	CHECK_EQ(body[4], 1);
	for (uint32_t claim = FT_DISK_OP_LEN; claim < sizeof(raw); claim += 9973) {
		ft_put32(body + 8, claim);
		CHECK_EQ(unpack_body(n), -EPROTO);
	}
}

/* --- ids --- */

TEST(an_id_comes_back_and_senseless_ones_do_not)
{
	static const struct ft_disk_id good[] = {
		{ 4096, 5, 0, 0 }, { 4096, 5, 4, 0 }, { 4096, 0, 0, FT_DISK_FRESH }, { FT_DISK_BYTES_MAX, 0, 9, FT_DISK_TARGET },
	}, bad[] = {
		{ 0, 5, 0, 0 }, { FT_DISK_BYTES_MAX + 1, 5, 0, 0 }, { 4096, 0, 0, 0 }, { 4096, 5, 0, FT_DISK_FRESH },
		{ 4096, 0, 5, FT_DISK_FRESH }, { 4096, 0, 0, FT_DISK_FRESH | FT_DISK_TARGET }, { 4096, 5, 0, 4 },
	};
	uint8_t buf[FT_DISK_ID_LEN];
	struct ft_disk_id out;

	for (size_t i = 0; i < FT_ARRAY_LEN(good); i++) {
		ft_disk_pack_id(&good[i], buf);
		CHECK_OK(ft_disk_unpack_id(buf, &out));
		CHECK(out.bytes == good[i].bytes && out.current == good[i].current && out.base == good[i].base &&
		      out.flags == good[i].flags);
		buf[31] = 1;
		CHECK_EQ(ft_disk_unpack_id(buf, &out), -EPROTO);
	}
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		ft_disk_pack_id(&bad[i], buf);
		CHECK_EQ(ft_disk_unpack_id(buf, &out), -EPROTO);
	}
}

#define ALL FT_DISK_COPY_ALL
#define TOUCHED FT_DISK_COPY_TOUCHED
#define REFUSE FT_DISK_REFUSE
#define FRESH FT_DISK_FRESH
#define TARGET FT_DISK_TARGET

TEST(who_may_be_copied_over_whom)
{
	static const struct {
		struct ft_disk_id mine, theirs;
		enum ft_disk_verdict verdict;
		const char *why;
	} table[] = {
		/* the first mirror of a disk; a first copy that broke off; and the same after the guest went on alone */
		{ { 8, 5, 0, 0 }, { 8, 0, 0, FRESH }, ALL, "" },
		{ { 8, 5, 4, 0 }, { 8, 0, 0, FRESH }, ALL, "" },
		{ { 8, 0, 0, FRESH }, { 8, 0, 0, FRESH }, ALL, "" },
		{ { 8, 5, 0, 0 }, { 8, 0, 5, TARGET }, TOUCHED, "" },
		{ { 8, 6, 5, 0 }, { 8, 0, 5, TARGET }, TOUCHED, "" },
		/* a copy of something else: whatever is there is useless */
		{ { 8, 6, 5, 0 }, { 8, 0, 4, TARGET }, ALL, "" },
		{ { 8, 6, 0, 0 }, { 8, 6, 4, TARGET }, ALL, "" },
		{ { 8, 6, 0, 0 }, { 8, 0, 0, TARGET }, ALL, "" },
		{ { 8, 0, 0, FRESH }, { 8, 0, 4, TARGET }, ALL, "" },
		/* mirrored; we went on alone; and the first epoch was acknowledged but we have not heard of it */
		{ { 8, 5, 0, 0 }, { 8, 5, 0, 0 }, TOUCHED, "" },
		{ { 8, 6, 5, 0 }, { 8, 5, 0, 0 }, TOUCHED, "" },
		{ { 8, 6, 5, 0 }, { 8, 6, 0, 0 }, TOUCHED, "" },
		{ { 8, 6, 5, 0 }, { 8, 5, 4, 0 }, TOUCHED, "" },
		/* the peer went on alone, or both did, or they never met */
		{ { 8, 5, 0, 0 }, { 8, 6, 5, 0 }, REFUSE, "start the guest there" },
		{ { 8, 6, 5, 0 }, { 8, 7, 5, 0 }, REFUSE, "remove its map" },
		{ { 8, 5, 0, 0 }, { 8, 6, 0, 0 }, REFUSE, "remove its map" },
		{ { 8, 0, 0, FRESH }, { 8, 6, 0, 0 }, REFUSE, "remove its map" },
		{ { 8, 0, 0, FRESH }, { 8, 6, 5, 0 }, REFUSE, "remove its map" },
		/* ours is no disk; sizes differ */
		{ { 8, 0, 5, TARGET }, { 8, 5, 0, 0 }, REFUSE, "unfinished copy" },
		{ { 8, 0, 5, TARGET }, { 8, 0, 0, FRESH }, REFUSE, "unfinished copy" },
		{ { 8, 0, 5, TARGET }, { 8, 0, 5, TARGET }, REFUSE, "unfinished copy" },
		{ { 8, 5, 0, 0 }, { 9, 5, 0, 0 }, REFUSE, "8 bytes here and 9 on the other" },
		{ { 8, 5, 0, 0 }, { 9, 0, 0, FRESH }, REFUSE, "same size" },
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(table); i++) {
		char why[256] = "before";

		if (ft_disk_judge(&table[i].mine, &table[i].theirs, why, sizeof(why)) != table[i].verdict)
			ft_test_fail(__FILE__, __LINE__, "row %zu", i);
		CHECK(strstr(why, table[i].why) && !*table[i].why == !*why && !strchr(why, '\n'));
	}
}

TEST(generations_are_never_zero_nor_twice_the_same)
{
	for (int i = 0; i < 1000; i++) {
		uint64_t a = ft_disk_new_generation(), b = ft_disk_new_generation();

		CHECK(a && b && a != b);
	}
}

TEST(a_hash_tells_one_bit)
{
	uint8_t a[FT_HASH_LEN], b[FT_HASH_LEN];

	memset(raw, 0, FT_GRANULE);
	ft_disk_hash(raw, FT_GRANULE, a);
	raw[77] ^= 1;
	ft_disk_hash(raw, FT_GRANULE, b);
	CHECK(memcmp(a, b, FT_HASH_LEN));
	ft_disk_hash(raw + FT_GRANULE, FT_GRANULE - 1, b);
	CHECK(memcmp(a, b, FT_HASH_LEN));
}
