// SPDX-License-Identifier: GPL-3.0-or-later
/* test_qemu_stream.c - splicing firmware and state; what a hostile peer could send instead. */
#include "checkpoint/qemu_stream.h"
#include "tests/test.h"

struct maker {
	uint8_t buf[64 << 10];
	size_t len;
};

static void put(struct maker *m, const void *p, size_t n)
{
	CHECK(m->len + n <= sizeof(m->buf));
	memcpy(m->buf + m->len, p, n);
	m->len += n;
}

static void put8(struct maker *m, uint8_t v)
{
	put(m, &v, 1);
}

static void put32(struct maker *m, uint32_t v)
{
	uint8_t b[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };

	put(m, b, 4);
}

static void put64(struct maker *m, uint64_t v)
{
	put32(m, (uint32_t)(v >> 32));
	put32(m, (uint32_t)v);
}

static void put_text(struct maker *m, const char *s)
{
	put8(m, (uint8_t)strlen(s));
	put(m, s, strlen(s));
}

static void put_header(struct maker *m)
{
	put(m, "QEVM\0\0\0\3", 8);
}

/* As of a guest with a UUID, which ours have not. */
static void put_configuration(struct maker *m)
{
	put8(m, 7);
	put32(m, 14);
	put(m, "pc-i440fx-10.0", 14);
	put8(m, 5);
	put_text(m, "configuration/capabilities");
	put32(m, 1);
	put32(m, 1);
	put_text(m, "x-ignore-shared");
	put8(m, 5);
	put_text(m, "configuration/uuid");
	put32(m, 1);
	put(m, "0123456789abcdef", 16);
	put8(m, 5);
	put_text(m, "configuration/target-page-bits");
	put32(m, 1);
	put32(m, 12);
}

static void put_section(struct maker *m, uint8_t type, uint32_t id, const char *name)
{
	put8(m, type);
	put32(m, id);
	if (name) {
		put_text(m, name);
		put64(m, 4);
	}
}

static void put_footer(struct maker *m, uint32_t id)
{
	put8(m, 0x7e);
	put32(m, id);
}

static void put_block(struct maker *m, const char *name, uint64_t bytes)
{
	put_text(m, name);
	put64(m, bytes);
	put64(m, 0xfffc0000);
}

static void put_page(struct maker *m, uint64_t address, const char *block)
{
	uint8_t page[4096];

	memset(page, 0xee, sizeof(page));
	put64(m, address | 0x08 | (block ? 0 : 0x20));
	if (block)
		put_text(m, block);
	put(m, page, sizeof(page));
}

static void put_zero(struct maker *m, uint64_t address, const char *block)
{
	put64(m, address | 0x02 | (block ? 0 : 0x20));
	if (block)
		put_text(m, block);
	put8(m, 0);
}

static void begin_ram(struct maker *m)
{
	put_section(m, 1, 2, "ram");
	put64(m, ((256 << 20) + 0x40000) | 0x04);
	put_block(m, "ram", 256 << 20);
	put_block(m, "pc.bios", 0x40000);
	put64(m, 0x10);
	put_footer(m, 2);
}

static void put_ram(struct maker *m)
{
	begin_ram(m);
	put_section(m, 2, 2, NULL);
	put_page(m, 0x0, "pc.bios");
	put_page(m, 0x1000, NULL);
	put_zero(m, 0x2000, NULL);
	put64(m, 0x10);
	put_footer(m, 2);
	put_section(m, 3, 2, NULL);
	put_zero(m, 0x3f000, "pc.bios");
	put64(m, 0x10);
	put_footer(m, 2);
}

static void put_device(struct maker *m, const char *name)
{
	put_section(m, 4, 7, name);
	put(m, "whatever is in a device", 23);
	put_footer(m, 7);
}

/* What `migrate` sends. */
static struct maker *make_firmware(void)
{
	static struct maker m;

	m.len = 0;
	put_header(&m);
	put_configuration(&m);
	put_ram(&m);
	put_device(&m, "old timer");
	put8(&m, 0);
	put(&m, "{vmdesc}", 8);
	return &m;
}

/* What `xen-save-devices-state` writes. */
static struct maker *make_state(void)
{
	static struct maker m;

	m.len = 0;
	put_header(&m);
	put_device(&m, "timer");
	put_device(&m, "cpu");
	put8(&m, 0);
	return &m;
}

static struct ft_blob blob(struct maker *m)
{
	return (struct ft_blob){ m->buf, m->len };
}

static int splice(struct maker *firmware, struct maker *state, struct iovec part[2])
{
	struct ft_blob fw = blob(firmware), st = blob(state);

	return ft_qemu_stream_splice(&fw, &st, "ram", part);
}

TEST(firmware_and_state_become_one_stream)
{
	struct maker *fw = make_firmware(), *st = make_state();
	static struct maker want;
	struct iovec part[2];

	put_header(&want);
	put_configuration(&want);
	put_ram(&want);
	put_device(&want, "timer");
	put_device(&want, "cpu");
	put8(&want, 0);
	CHECK_OK(splice(fw, st, part));
	CHECK_EQ(part[0].iov_len + part[1].iov_len, want.len);
	CHECK(!memcmp(part[0].iov_base, want.buf, part[0].iov_len));
	CHECK(!memcmp(part[1].iov_base, want.buf + part[0].iov_len, part[1].iov_len));
}

TEST(the_ram_part_alone_serves_as_firmware)
{
	struct maker *fw = make_firmware();
	struct iovec part[2];
	size_t end;

	CHECK_OK(ft_qemu_stream_ram(fw->buf, fw->len, "ram", &end));
	CHECK(end < fw->len);
	fw->len = end;
	CHECK_OK(splice(fw, make_state(), part));
	CHECK_EQ(part[0].iov_len, end);
}

TEST(a_stream_cut_anywhere_is_refused)
{
	struct maker *fw = make_firmware();
	size_t whole, end;

	CHECK_OK(ft_qemu_stream_ram(fw->buf, fw->len, "ram", &whole));
	for (size_t len = 0; len < whole; len += len > 200 && len < whole - 4300 ? 97 : 1) {
		uint8_t *exact = malloc(len);           /* so that a sanitizer sees a read beyond */
		int rc;

		memcpy(exact, fw->buf, len);
		rc = ft_qemu_stream_ram(exact, len, "ram", &end);
		/* Between sections nothing is missing yet; before the first there are no blocks. */
		CHECK(rc == -EPROTO || (end == len && fw->buf[len] <= 4 && len > 60));
		free(exact);
	}
}

TEST(a_state_without_its_end_is_refused)
{
	struct maker *fw = make_firmware(), *st = make_state();
	struct iovec part[2];

	for (st->len--; st->len; st->len--)
		if (st->buf[st->len - 1] || st->len < 16)
			CHECK_EQ(splice(fw, st, part), -EPROTO);
	CHECK_EQ(splice(fw, st, part), -EPROTO);
	CHECK(ft_test_logged("its end is missing"));
}

TEST(pages_of_guest_ram_are_refused)
{
	struct maker m = { .len = 0 };
	size_t end;

	put_header(&m);
	put_configuration(&m);
	begin_ram(&m);
	put_section(&m, 2, 2, NULL);
	put_page(&m, 0x5000, "ram");
	put64(&m, 0x10);
	put_footer(&m, 2);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("a page of guest RAM"));
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "elsewhere", &end), -EPROTO);
	CHECK(ft_test_logged("guest RAM is not among its blocks"));
}

/* One RAM section holding @words and nothing else; what it says must be refused as @why. */
static void check_refused(const char *why, const uint64_t *words, unsigned n)
{
	struct maker m = { .len = 0 };
	size_t end;

	put_header(&m);
	put_configuration(&m);
	begin_ram(&m);
	put_section(&m, 2, 2, NULL);
	for (unsigned i = 0; i < n; i++)
		put64(&m, words[i]);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	if (!ft_test_logged(why))
		ft_test_fail(__FILE__, __LINE__, "not refused as \"%s\"", why);
}

TEST(records_that_make_no_sense_are_refused)
{
	check_refused("of no block", (uint64_t[]){ 0x1028 }, 1);                        /* continues nothing */
	check_refused("a name is empty", (uint64_t[]){ 0x1008, 0 }, 2);
	check_refused("of unknown kind", (uint64_t[]){ 0x1040 }, 1);                    /* XBZRLE */
	check_refused("of unknown kind", (uint64_t[]){ 0x1006 }, 1);
	check_refused("listed twice", (uint64_t[]){ 0x1004 }, 1);
	check_refused("without its footer", (uint64_t[]){ 0x10, 0 }, 2);
	check_refused("beyond its block", (uint64_t[]){ 0x40008, 0x0770632e62696f73 /* "\7pc.bios" */ }, 2);
	check_refused("ends in the middle", (uint64_t[]){ 0x0 | 0x08, 0x0770632e62696f73 }, 2);
}

TEST(block_lists_that_make_no_sense_are_refused)
{
	static const struct { uint64_t total, bytes; const char *why; } bad[] = {
		{ 0x2000, 0x3000, "size is not possible" },
		{ 0x2000, 0, "size is not possible" },
		{ 0x2000, 0x800, "size is not possible" },
		{ 0x2000, UINT64_MAX & ~(uint64_t)0xfff, "size is not possible" },
		{ UINT64_MAX & ~(uint64_t)0xfff, 0x1000, "too many blocks" },
	};

	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		struct maker m = { .len = 0 };
		size_t end;

		put_header(&m);
		put_configuration(&m);
		put_section(&m, 1, 2, "ram");
		put64(&m, bad[i].total | 0x04);
		for (unsigned k = 0; k < 300; k++)
			put_block(&m, "b", bad[i].bytes);
		CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
		CHECK(ft_test_logged(bad[i].why));
	}
}

TEST(what_qemu_10_announces_devices_with_is_no_ram)
{
	struct maker *fw = make_firmware();
	size_t end, with_command;

	CHECK_OK(ft_qemu_stream_ram(fw->buf, fw->len, "ram", &end));
	fw->buf[end] = 8;
	CHECK_OK(ft_qemu_stream_ram(fw->buf, fw->len, "ram", &with_command));
	CHECK_EQ(with_command, end);
}

TEST(strange_sections_are_refused_with_a_hint)
{
	struct maker m = { .len = 0 };
	size_t end;

	put_header(&m);
	put_ram(&m);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("send-configuration"));
	m.len = 0;
	put_header(&m);
	put_configuration(&m);
	put_section(&m, 1, 2, "block");
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("neither RAM nor a device"));
	CHECK_EQ(ft_qemu_stream_ram("QEVM\0\0\0\2", 8, "ram", &end), -EPROTO);
	CHECK_EQ(ft_qemu_stream_ram("", 0, "ram", &end), -EPROTO);
}

TEST(configurations_that_make_no_sense_are_refused)
{
	struct maker m = { .len = 0 };
	size_t end, body;

	put_header(&m);
	put8(&m, 7);
	body = m.len;
	put32(&m, 0xffffffff);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("name is too long"));
	m.len = body;
	put32(&m, 0);
	put8(&m, 5);
	put_text(&m, "configuration/surprise");
	put64(&m, 1);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("of unknown kind"));
	m.len = body;
	put32(&m, 0);
	put8(&m, 5);
	put_text(&m, "configuration/capabilities");
	put32(&m, 1);
	put32(&m, 0x10000);
	CHECK_EQ(ft_qemu_stream_ram(m.buf, m.len, "ram", &end), -EPROTO);
	CHECK(ft_test_logged("too many capabilities"));
}

static void drop_line(void *ctx, enum ft_log_level level, const char *line)
{
	(void)ctx, (void)level, (void)line;
}

TEST(no_flipped_byte_leads_out_of_the_buffer)
{
	struct maker *fw = make_firmware();
	uint8_t *copy = malloc(fw->len);
	uint32_t seed = 1;
	size_t end;

	ft_log_divert(drop_line, NULL);
	for (unsigned i = 0; i < 20000; i++) {
		memcpy(copy, fw->buf, fw->len);
		for (unsigned k = 0; k < 1 + i % 3; k++) {
			seed = seed * 1664525 + 1013904223;
			copy[(seed >> 8) % (k ? 200 : fw->len)] ^= (uint8_t)(1u << (seed >> 29));
		}
		if (!ft_qemu_stream_ram(copy, fw->len, "ram", &end))
			CHECK(end <= fw->len);
	}
	free(copy);
}
