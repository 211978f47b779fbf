// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/disk.h"
#include "ft/image.h"
#include "ft/wire.h"
#include "tests/test.h"

TEST(a_record_is_refused_before_its_body_when_type_side_or_length_is_wrong)
{
	static const struct { uint32_t type; bool primary, backup; uint64_t min, max; } row[] = {
		{ FT_REC_HELLO, true, false, 56, 56 + 16384 + 4096 },
		{ FT_REC_FIRMWARE, true, false, 0, 64 << 20 },
		{ FT_REC_EPOCH_BEGIN, true, false, 24, 24 },
		{ FT_REC_PAGES, true, false, 1, FT_BLOCK_MAX },
		{ FT_REC_STATE, true, false, 0, 64 << 20 },
		{ FT_REC_EPOCH_END, true, false, 40, 40 },
		{ FT_REC_DISARM, true, false, 8, 8 },
		{ FT_REC_HANDOVER, true, false, 8, 8 },
		{ FT_REC_DRILL, true, false, 8, 8 },
		{ FT_REC_VERIFY, true, false, 16, 8 + (32 << 20) },
		{ FT_REC_DISKS, true, false, 32, 256 },
		{ FT_REC_DISK_ASK, true, false, 24, 24 },
		{ FT_REC_DISK, true, false, 17, 263228 },
		{ FT_REC_WELCOME, false, true, 56, 56 + 512 },
		{ FT_REC_READY, false, true, 0, 0 },
		{ FT_REC_ACK, false, true, 16, 16 },
		{ FT_REC_DISARMED, false, true, 8, 8 },
		{ FT_REC_RUNNING, false, true, 8, 8 },
		{ FT_REC_DRILLED, false, true, 16, 16 + 512 },
		{ FT_REC_VERIFIED, false, true, 24, 24 },
		{ FT_REC_DISK_MAP, false, true, 24, 65552 },
		{ FT_REC_DISKS_HERE, false, true, 32, 256 },
		{ FT_REC_DISK_HASHES, false, true, 40, 1048 },
		{ FT_REC_DISK_DURABLE, false, true, 16, 16 },
		{ FT_REC_PING, true, true, 8, 8 },
		{ FT_REC_PONG, true, true, 8, 8 },
		{ FT_REC_ERROR, true, true, 4, 4 + 512 },
	};
	unsigned known = 0;

	for (size_t i = 0; i < FT_ARRAY_LEN(row); i++) {
		CHECK_EQ(ft_wire_check(row[i].type, row[i].min, true), row[i].primary ? 0 : -EPROTO);
		CHECK_EQ(ft_wire_check(row[i].type, row[i].max, false), row[i].backup ? 0 : -EPROTO);
		CHECK_EQ(ft_wire_check(row[i].type, row[i].max + 1, row[i].primary), -EPROTO);
		CHECK_EQ(ft_wire_check(row[i].type, row[i].min - 1, row[i].primary), -EPROTO);
	}
	for (uint32_t type = 0; type < 300; type++)
		known += strcmp(ft_wire_name(type), "unknown record") != 0;
	CHECK_EQ(known, FT_ARRAY_LEN(row));
	CHECK_EQ(ft_wire_check(0, 0, true), -EPROTO);
	CHECK_EQ(ft_wire_check(UINT32_MAX, 8, true), -EPROTO);
}

TEST(hello_comes_back_as_it_was_and_its_lengths_must_add_up)
{
	struct ft_wire_hello in = { 1, 2, FT_HELLO_CONTINUE, 0, 77, 65536, 10, 5, "0123456789abcde" }, out;
	uint8_t buf[80] = { 0 };

	CHECK_EQ(ft_wire_pack_hello(&in, buf), FT_WIRE_HELLO_LEN);
	CHECK_EQ(ft_le32(buf + 4), 2);
	CHECK_EQ(ft_le64(buf + 16), 77);
	CHECK_OK(ft_wire_unpack_hello(buf, 56 + 15, &out));
	CHECK(!memcmp(&in, &out, sizeof(in)));
	CHECK_EQ(ft_wire_unpack_hello(buf, 56 + 14, &out), -EPROTO);
	CHECK_EQ(ft_wire_unpack_hello(buf, 56 + 16, &out), -EPROTO);
	CHECK_EQ(ft_wire_unpack_hello(buf, 55, &out), -EPROTO);
	ft_put32(buf + 32, UINT32_MAX - 55);            /* 56 + spec_len wraps in 32 bits */
	CHECK_EQ(ft_wire_unpack_hello(buf, 5, &out), -EPROTO);
	CHECK_EQ(ft_wire_unpack_hello(buf, 61, &out), -EPROTO);
}

TEST(hello_fields_have_ranges)
{
	const struct ft_wire_hello good = { 1, 1, 0, 0, 1, 1, 0, 0, { 0 } };
	struct ft_wire_hello bad[7], out;
	uint8_t buf[56];

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		bad[i] = good;
	bad[0].version_min = 0;
	bad[1].version_min = 2;
	bad[2].generation = 0;
	bad[3].nr_pages = 0;
	bad[4].nr_pages = UINT64_MAX;
	bad[5].spec_len = 1;
	bad[6].flags = 8;
	ft_wire_pack_hello(&good, buf);
	CHECK_OK(ft_wire_unpack_hello(buf, sizeof(buf), &out));
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		ft_wire_pack_hello(&bad[i], buf);
		CHECK_EQ(ft_wire_unpack_hello(buf, sizeof(buf), &out), -EPROTO);
	}
}

TEST(welcome_comes_back_as_it_was)
{
	struct ft_wire_welcome in = { .version = 1, .replica = FT_REPLICA_ARMED, .udp_port = 7801, .generation = 5,
				      .epoch = 1234567890123, .silence_ms = 300, .session = "sessionsession!" }, out;
	uint8_t buf[56 + 4] = { 0 };

	CHECK_EQ(ft_wire_pack_welcome(&in, buf), FT_WIRE_WELCOME_LEN);
	CHECK_OK(ft_wire_unpack_welcome(buf, sizeof(buf), &out));
	CHECK(!memcmp(&in, &out, sizeof(in)));
	CHECK_EQ(ft_wire_unpack_welcome(buf, 55, &out), -EPROTO);
	buf[14] = 1;                                    /* padding */
	CHECK_EQ(ft_wire_unpack_welcome(buf, 56, &out), -EPROTO);
}

TEST(a_refusal_may_leave_the_session_fields_empty_and_carry_an_unknown_reason)
{
	struct ft_wire_welcome in = { .reason = FT_REASON_VERSION }, out;
	uint8_t buf[56];

	ft_wire_pack_welcome(&in, buf);
	CHECK_OK(ft_wire_unpack_welcome(buf, sizeof(buf), &out));
	in.reason = 4711;
	ft_wire_pack_welcome(&in, buf);
	CHECK_OK(ft_wire_unpack_welcome(buf, sizeof(buf), &out));
	CHECK_STR(ft_wire_reason_text(out.reason), "a reason unknown to this version");
	in.reason = FT_REASON_OK;                       /* but a session needs its version and its window */
	ft_wire_pack_welcome(&in, buf);
	CHECK_EQ(ft_wire_unpack_welcome(buf, sizeof(buf), &out), -EPROTO);
	for (uint32_t r = 0; r <= FT_REASON_GUEST_ENDED; r++)
		CHECK(ft_wire_reason_text(r) && strcmp(ft_wire_reason_text(r), ft_wire_reason_text(4711)));
}

TEST(the_text_of_a_welcome_is_cut_to_what_the_record_may_hold)
{
	struct ft_wire_welcome w = { .reason = FT_REASON_MISMATCH };
	char text[FT_WIRE_TEXT_MAX + 2];
	uint8_t buf[FT_WIRE_WELCOME_MAX];

	memset(text, 'x', sizeof(text));
	text[sizeof(text) - 1] = 0;
	CHECK_EQ(ft_wire_pack_welcome_text(&w, text, buf), FT_WIRE_WELCOME_MAX);
	CHECK_OK(ft_wire_check(FT_REC_WELCOME, FT_WIRE_WELCOME_MAX, false));
	CHECK_EQ(ft_wire_pack_welcome_text(&w, "no", buf), FT_WIRE_WELCOME_LEN + 2);
	CHECK(!memcmp(buf + FT_WIRE_WELCOME_LEN, "no", 2));
	CHECK_EQ(ft_wire_pack_welcome_text(&w, "", buf), FT_WIRE_WELCOME_LEN);
}

TEST(epoch_records_come_back_and_refuse_what_makes_no_sense)
{
	struct ft_wire_epoch_begin begin = { .epoch = 9, .flags = FT_EPOCH_FULL | FT_EPOCH_DIRECT }, b;
	struct ft_wire_epoch_begin later = { .epoch = 9, .base = 7 };
	struct ft_wire_epoch_end end = { 9, 2, 65, 3, 0x1122334455667788 }, e;
	uint8_t buf[40];

	CHECK_EQ(ft_wire_pack_epoch_begin(&begin, buf), FT_WIRE_EPOCH_BEGIN_LEN);
	CHECK_OK(ft_wire_unpack_epoch_begin(buf, 24, &b));
	CHECK(b.epoch == 9 && b.flags == begin.flags);
	CHECK_EQ(ft_wire_unpack_epoch_begin(buf, 23, &b), -EPROTO);
	ft_put32(buf + 16, FT_EPOCH_DIRECT);
	CHECK_EQ(ft_wire_unpack_epoch_begin(buf, 24, &b), -EPROTO);
	ft_put32(buf + 16, 4);
	CHECK_EQ(ft_wire_unpack_epoch_begin(buf, 24, &b), -EPROTO);
	ft_wire_pack_epoch_begin(&later, buf);
	CHECK_OK(ft_wire_unpack_epoch_begin(buf, 24, &b));
	CHECK(b.base == 7);
	ft_put64(buf + 8, 9);                           /* builds on itself */
	CHECK_EQ(ft_wire_unpack_epoch_begin(buf, 24, &b), -EPROTO);
	ft_put64(buf + 8, 0);                           /* builds on nothing, but is not full */
	CHECK_EQ(ft_wire_unpack_epoch_begin(buf, 24, &b), -EPROTO);

	CHECK_EQ(ft_wire_pack_epoch_end(&end, buf), FT_WIRE_EPOCH_END_LEN);
	CHECK_OK(ft_wire_unpack_epoch_end(buf, 40, &e));
	CHECK(!memcmp(&end, &e, sizeof(end)));
	ft_put64(buf + 16, 1);                          /* two blocks, one page */
	CHECK_EQ(ft_wire_unpack_epoch_end(buf, 40, &e), -EPROTO);
	ft_put64(buf + 16, 129);                        /* three blocks would be needed */
	CHECK_EQ(ft_wire_unpack_epoch_end(buf, 40, &e), -EPROTO);
	ft_put64(buf + 16, UINT64_MAX);
	CHECK_EQ(ft_wire_unpack_epoch_end(buf, 40, &e), -EPROTO);
	ft_put64(buf, 0);
	CHECK_EQ(ft_wire_unpack_epoch_end(buf, 40, &e), -EPROTO);
}

TEST(answers_to_the_operator_come_back)
{
	struct ft_wire_drilled drilled = { .ok = 1, .load_ms = 14, .dirtied_pages = 99 }, d;
	struct ft_wire_verified verified = { 7, 3, 512 }, v;
	uint8_t buf[32] = { 0 };

	CHECK_EQ(ft_wire_pack_drilled(&drilled, buf), FT_WIRE_DRILLED_LEN);
	CHECK_OK(ft_wire_unpack_drilled(buf, 20, &d));
	CHECK(!memcmp(&drilled, &d, sizeof(d)));
	buf[0] = 2;
	CHECK_EQ(ft_wire_unpack_drilled(buf, 16, &d), -EPROTO);
	CHECK_EQ(ft_wire_pack_verified(&verified, buf), FT_WIRE_VERIFIED_LEN);
	CHECK_OK(ft_wire_unpack_verified(buf, 24, &v));
	CHECK(!memcmp(&verified, &v, sizeof(v)));
	CHECK_EQ(ft_wire_unpack_verified(buf, 25, &v), -EPROTO);
}

TEST(disk_records_come_back_and_refuse_what_makes_no_sense)
{
	struct ft_wire_disk_at at = { .disk = 3, .at = 1ull << 40 }, a;
	struct ft_wire_disk_range range = { .disk = 7, .region = 99, .granules = 5 }, r;
	uint8_t buf[FT_WIRE_DISK_RANGE_LEN + 3 * FT_HASH_LEN] = { 0 };

	CHECK_EQ(ft_wire_pack_disk_at(&at, buf), FT_WIRE_DISK_AT_LEN);
	CHECK_OK(ft_wire_unpack_disk_at(buf, 16 + 8 * 2, &a));  /* DISK_MAP with two words */
	CHECK(!memcmp(&at, &a, sizeof(a)));
	CHECK_EQ(ft_wire_unpack_disk_at(buf, 16 + 7, &a), -EPROTO);
	CHECK_EQ(ft_wire_unpack_disk_at(buf, 15, &a), -EPROTO);
	ft_put32(buf, 8);
	CHECK_EQ(ft_wire_unpack_disk_at(buf, 16, &a), -EPROTO);

	CHECK_EQ(ft_wire_pack_disk_range(&range, buf), FT_WIRE_DISK_RANGE_LEN);
	CHECK_OK(ft_wire_unpack_disk_range(buf, 24, &r));
	CHECK(!memcmp(&range, &r, sizeof(r)));
	CHECK_OK(ft_wire_unpack_disk_range(buf, 24 + 2 * FT_HASH_LEN, &r));     /* one hash a granule */
	CHECK_EQ(ft_wire_unpack_disk_range(buf, 24 + 3 * FT_HASH_LEN, &r), -EPROTO);
	ft_put64(buf + 16, 0);
	CHECK_EQ(ft_wire_unpack_disk_range(buf, 24, &r), -EPROTO);
	ft_put64(buf + 16, 1);
	ft_put64(buf + 8, UINT64_MAX);
	CHECK_EQ(ft_wire_unpack_disk_range(buf, 24, &r), -EPROTO);
}
