// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_stream.c - see checkpoint/qemu_stream.h. */
#include "checkpoint/qemu_stream.h"

#define HEADER_LEN 8
static const uint8_t header[HEADER_LEN] = { 'Q', 'E', 'V', 'M', 0, 0, 0, 3 };

enum {
	SECTION_EOF = 0, SECTION_START = 1, SECTION_PART = 2, SECTION_END = 3, SECTION_FULL = 4, SUBSECTION = 5,
	SECTION_CONFIGURATION = 7, SECTION_COMMAND = 8, SECTION_FOOTER = 0x7e,
};

enum {                                  /* of a RAM record; the low bits of a page's address */
	RAM_ZERO = 0x02,                /* u8: the byte that fills the page */
	RAM_MEM_SIZE = 0x04,            /* the blocks: u8 n, name, u64 bytes, u64 guest-physical address; sum in the address */
	RAM_PAGE = 0x08,                /* the page */
	RAM_EOS = 0x10,
	RAM_CONTINUE = 0x20,            /* the block of the page before; else u8 n, name */
	RAM_FLAGS = FT_PAGE_SIZE - 1,
};

#define BLOCKS_MAX 256
#define MACHINE_NAME_MAX 256
#define CAPABILITIES_MAX 64

struct text {
	const uint8_t *at;
	uint8_t len;
};

struct block {
	struct text name;
	uint64_t bytes;
	bool guest_ram;
};

struct reader {
	const uint8_t *data;
	size_t len, pos;
	const char *fault;              /* the first; after it every read gives zeros */
	const char *ram_block;
	const struct block *current;    /* what CONTINUE means */
	unsigned nr_blocks;
	struct block block[BLOCKS_MAX];
};

static void fault(struct reader *r, const char *what)
{
	if (!r->fault)
		r->fault = what;
}

/* The next @n bytes, or NULL: the stream ends before, or something was wrong already. */
static const uint8_t *take(struct reader *r, size_t n)
{
	const uint8_t *p = r->data + r->pos;

	if (n > r->len - r->pos)
		fault(r, "it ends in the middle");
	if (r->fault)
		return NULL;
	r->pos += n;
	return p;
}

static uint8_t take8(struct reader *r)
{
	const uint8_t *p = take(r, 1);

	return p ? *p : 0;
}

static uint32_t take32(struct reader *r)
{
	const uint8_t *p = take(r, 4);

	return p ? (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3] : 0;
}

static uint64_t take64(struct reader *r)
{
	uint64_t high = take32(r);

	return high << 32 | take32(r);
}

static struct text take_text(struct reader *r)
{
	struct text t = { .len = take8(r) };

	t.at = take(r, t.len);
	if (!t.len)
		fault(r, "a name is empty");
	return t;
}

static bool text_is(const struct text *t, const char *s)
{
	return t->at && t->len == strlen(s) && !memcmp(t->at, s, t->len);
}

/* --- RAM records --- */

static void take_block(struct reader *r, uint64_t *left)
{
	struct block b;

	b.name = take_text(r);
	b.bytes = take64(r);
	take64(r);                      /* guest-physical address: QEMU compares it */
	if (!b.bytes || b.bytes % FT_PAGE_SIZE || b.bytes > *left)
		fault(r, "a block's size is not possible");
	if (r->nr_blocks == BLOCKS_MAX)
		fault(r, "too many blocks");
	if (r->fault)
		return;
	b.guest_ram = text_is(&b.name, r->ram_block);
	r->block[r->nr_blocks++] = b;
	*left -= b.bytes;
}

static void take_blocks(struct reader *r, uint64_t total)
{
	if (r->nr_blocks)
		fault(r, "the blocks are listed twice");
	while (total && !r->fault)
		take_block(r, &total);
}

static const struct block *find_block(struct reader *r)
{
	struct text name = take_text(r);

	for (unsigned i = 0; i < r->nr_blocks && !r->fault; i++) {
		const struct text *have = &r->block[i].name;

		if (have->len == name.len && !memcmp(have->at, name.at, name.len))
			return &r->block[i];
	}
	fault(r, "a page of no block");
	return NULL;
}

static void take_page(struct reader *r, uint64_t address, unsigned flags)
{
	if (!(flags & RAM_CONTINUE))
		r->current = find_block(r);
	if (!r->current)
		fault(r, "a page of no block");
	else if (r->current->guest_ram)
		fault(r, "a page of guest RAM, which must not be in here (is the RAM file mapped shared?)");
	else if (address >= r->current->bytes)
		fault(r, "a page beyond its block");
	take(r, flags & RAM_PAGE ? FT_PAGE_SIZE : 1);
}

/* False after the last record of a section. */
static bool take_record(struct reader *r)
{
	uint64_t word = take64(r);
	uint64_t address = word & ~(uint64_t)RAM_FLAGS;
	unsigned flags = word & RAM_FLAGS;

	switch (flags) {
	case RAM_EOS:
		return false;
	case RAM_MEM_SIZE:
		take_blocks(r, address);
		break;
	case RAM_ZERO:
	case RAM_PAGE:
	case RAM_ZERO | RAM_CONTINUE:
	case RAM_PAGE | RAM_CONTINUE:
		take_page(r, address, flags);
		break;
	default:
		fault(r, "a RAM record of unknown kind (is a migration capability switched on?)");
	}
	return !r->fault;
}

/* --- configuration: the machine's name, which QEMU compares, then subsections --- */

static void take_capabilities(struct reader *r)
{
	uint32_t nr = take32(r);

	if (nr > CAPABILITIES_MAX)
		fault(r, "too many capabilities");
	while (nr-- && !r->fault)
		take_text(r);
}

static void take_subsection(struct reader *r)
{
	struct text name = take_text(r);

	take32(r);                      /* version */
	if (text_is(&name, "configuration/capabilities"))
		take_capabilities(r);
	else if (text_is(&name, "configuration/target-page-bits"))
		take32(r);
	else if (text_is(&name, "configuration/uuid"))
		take(r, 16);
	else
		fault(r, "a configuration of unknown kind");
}

static void take_configuration(struct reader *r)
{
	uint32_t len = take32(r);

	if (len > MACHINE_NAME_MAX)
		fault(r, "the machine's name is too long");
	take(r, len);
	while (!r->fault && r->pos < r->len && r->data[r->pos] == SUBSECTION) {
		r->pos++;
		take_subsection(r);
	}
}

/* --- sections --- */

static void take_ram_section(struct reader *r, unsigned type)
{
	uint32_t id = take32(r);

	if (type == SECTION_START) {
		struct text name = take_text(r);

		take64(r);              /* instance and version: QEMU compares them */
		if (!text_is(&name, "ram"))
			fault(r, "a section that is neither RAM nor a device");
	}
	while (take_record(r))
		;
	if (take8(r) != SECTION_FOOTER || take32(r) != id)
		fault(r, "a section without its footer");
}

static int reject(const struct reader *r, const char *piece)
{
	ft_err("QEMU's %s cannot be used: at byte %zu of %zu: %s", piece, r->pos, r->len, r->fault);
	return -EPROTO;
}

static void take_header(struct reader *r)
{
	const uint8_t *p = take(r, HEADER_LEN);

	if (p && memcmp(p, header, HEADER_LEN))
		fault(r, "not a QEMU stream of version 3");
}

static bool has_guest_ram(const struct reader *r)
{
	for (unsigned i = 0; i < r->nr_blocks; i++)
		if (r->block[i].guest_ram)
			return true;
	return false;
}

/* Where RAM ends: at the first device, or at the command with which QEMU 10 announces devices. */
static bool at_end_of_ram(const struct reader *r)
{
	return r->pos == r->len || r->data[r->pos] == SECTION_FULL || r->data[r->pos] == SECTION_COMMAND;
}

int ft_qemu_stream_ram(const void *data, size_t len, const char *ram_block, size_t *end)
{
	struct reader r = { .data = data, .len = len, .ram_block = ram_block };

	take_header(&r);
	if (take8(&r) != SECTION_CONFIGURATION)
		fault(&r, "no configuration (migration.send-configuration must be on)");
	take_configuration(&r);
	while (!r.fault && !at_end_of_ram(&r)) {
		unsigned type = take8(&r);

		if (type >= SECTION_START && type <= SECTION_END)
			take_ram_section(&r, type);
		else
			fault(&r, "neither RAM nor a device");
	}
	if (!r.fault && !has_guest_ram(&r))
		fault(&r, "guest RAM is not among its blocks");
	if (r.fault)
		return reject(&r, "firmware stream");
	*end = r.pos;
	return 0;
}

/* A device's body has no length, so only the frame can be looked at: QEMU judges the rest. */
static int check_state(const struct ft_blob *state)
{
	struct reader r = { .data = state->data, .len = state->len };

	take_header(&r);
	if (take8(&r) != SECTION_FULL)
		fault(&r, "no device section");
	take32(&r);
	take_text(&r);
	if (!r.fault && state->data[state->len - 1] != SECTION_EOF)
		fault(&r, "its end is missing");
	return r.fault ? reject(&r, "device state") : 0;
}

int ft_qemu_stream_splice(const struct ft_blob *firmware, const struct ft_blob *state, const char *ram_block,
			  struct iovec part[2])
{
	size_t end;
	int rc = ft_qemu_stream_ram(firmware->data, firmware->len, ram_block, &end);

	if (!rc)
		rc = check_state(state);
	if (rc)
		return rc;
	part[0] = (struct iovec){ firmware->data, end };
	part[1] = (struct iovec){ state->data + HEADER_LEN, state->len - HEADER_LEN };
	return 0;
}
