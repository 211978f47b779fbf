// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fuzz_image.c - a stream of records into the image, beside a model that keeps whole copies of RAM: whatever
 * comes, RAM is exactly the model's last whole epoch after each commit, and never changes while held.
 *
 * First byte: bit 0: everything spills. Then operations: one byte each, with what they need behind it.
 */
#include "ft/codec.h"
#include "ft/image.h"
#include "ft/wire.h"

#include <xxhash.h>

#define NR_PAGES 4u
#define RAM_BYTES (NR_PAGES * FT_PAGE_SIZE)
#define STATE_MAX 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct ft_codec *codec;
static uint8_t ram[RAM_BYTES] __attribute__((aligned(FT_PAGE_SIZE)));

static struct model {
	uint8_t open[RAM_BYTES] __attribute__((aligned(FT_PAGE_SIZE)));
	uint8_t whole[RAM_BYTES] __attribute__((aligned(FT_PAGE_SIZE)));
	uint8_t applied[RAM_BYTES];
	uint64_t epoch, whole_epoch;
	bool in_epoch, usable, held, direct, torn;
	uint64_t blocks, pages, batches;
	XXH3_state_t *sum;
} m;

struct input {
	const uint8_t *p;
	size_t left;
};

static uint8_t byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->p++;
}

static size_t bytes(struct input *in, const uint8_t **out)
{
	size_t n = (size_t)byte(in) | (size_t)byte(in) << 8;

	n = n < in->left ? n : in->left;
	*out = in->p;
	in->p += n;
	in->left -= n;
	return n;
}

static void must(bool ok)
{
	if (!ok)
		abort();
}

/* A failed record ends the epoch; a direct one has written RAM, which is nothing from then on. */
static void lost(void)
{
	m.in_epoch = false;
}

static void begin(struct ft_image *im, struct input *in)
{
	uint8_t how = byte(in);
	uint64_t epoch = how & 0x80 ? m.whole_epoch + 1 : byte(in), base = how & 0x80 ? m.whole_epoch : byte(in);
	uint32_t flags = how & 3;
	int rc;

	if (flags & FT_EPOCH_FULL && how & 0x40)
		base = 0;
	rc = ft_image_begin(im, epoch, base, flags);
	lost();
	if (rc)
		return;
	must(flags & FT_EPOCH_FULL ? base == 0 : m.usable && base == m.whole_epoch);
	must(!(flags & FT_EPOCH_DIRECT) || !m.usable);
	m.in_epoch = true;
	m.direct = flags & FT_EPOCH_DIRECT;
	m.epoch = epoch;
	m.blocks = m.pages = m.batches = 0;
	XXH3_64bits_reset(m.sum);
	memcpy(m.open, m.whole, RAM_BYTES);
}

static void pages(struct ft_image *im, const uint8_t *block, size_t len)
{
	int rc = ft_image_pages(im, block, len);
	uint32_t nr = 0;

	if (rc) {
		lost();
		return;
	}
	must(m.in_epoch && !ft_codec_check(codec, block, len, NR_PAGES, &nr));
	ft_codec_apply_checked(codec, m.open);
	m.blocks++;
	m.pages += nr;
	m.torn |= m.direct;
	XXH3_64bits_update(m.sum, block, len);
}

/* A block that makes sense: one page, of a kind. */
static void good_pages(struct ft_image *im, struct input *in)
{
	uint8_t block[8 + 2 + FT_PAGE_SIZE] = { 0, 1 }, what = byte(in), fill = byte(in);
	size_t payload = 0;

	block[9] = what % NR_PAGES;
	switch (what >> 4) {
	case 0:                         /* all pages at once */
		block[8] = NR_PAGES - 1;
		block[9] = 0;
		break;
	case 1:
		block[8] = FT_PAGE_WHOLE << 6;
		memset(block + 10, fill, FT_PAGE_SIZE);
		payload = FT_PAGE_SIZE;
		break;
	case 2:
		block[8] = FT_PAGE_DELTA << 6;
		block[10 + fill % 8] = 1;
		block[18] = 1;
		block[19] = (uint8_t)(fill | 1);
		payload = 17;
		break;
	}
	ft_put32(block + 4, (uint32_t)payload);
	pages(im, block, 10 + payload);
}

static void disk(struct ft_image *im, struct input *in)
{
	const uint8_t *p;
	size_t len = bytes(in, &p);

	if (ft_image_disk(im, p, len)) {
		lost();
		return;
	}
	must(m.in_epoch);
	m.batches++;
	XXH3_64bits_update(m.sum, p, len);
}

static void state(struct ft_image *im, struct input *in)
{
	const uint8_t *p;
	size_t len = bytes(in, &p);

	if (ft_image_state(im, p, len)) {
		lost();
		return;
	}
	must(m.in_epoch && len <= STATE_MAX);
	XXH3_64bits_update(m.sum, p, len);
}

static void end(struct ft_image *im, const uint8_t *body, size_t len)
{
	struct ft_wire_epoch_end e;
	int rc = ft_image_end(im, body, len);

	if (rc) {
		lost();
		return;
	}
	must(m.in_epoch && !ft_wire_unpack_epoch_end(body, len, &e));
	must(e.epoch == m.epoch && e.blocks == m.blocks && e.pages == m.pages && e.batches == m.batches && e.checksum == XXH3_64bits_digest(m.sum));
	m.in_epoch = false;
	m.usable = true;
	m.whole_epoch = m.epoch;
	memcpy(m.whole, m.open, RAM_BYTES);
	if (m.direct) {
		memcpy(m.applied, m.open, RAM_BYTES);
		m.torn = false;
	}
	must(ft_image_whole_epoch(im) == m.epoch);
}

static void good_end(struct ft_image *im)
{
	struct ft_wire_epoch_end e = { m.epoch, m.blocks, m.pages, m.batches, XXH3_64bits_digest(m.sum) };
	uint8_t body[FT_WIRE_EPOCH_END_LEN];

	end(im, body, ft_wire_pack_epoch_end(&e, body));
}

static void commit(struct ft_image *im)
{
	ft_image_commit(im);
	if (!m.held && m.usable) {
		memcpy(m.applied, m.whole, RAM_BYTES);
		m.torn = false;
		must(ft_image_applied_epoch(im) == m.whole_epoch);
	}
}

static void forget(struct ft_image *im)
{
	ft_image_reset(im);
	lost();
	m.usable = m.torn = false;
	m.whole_epoch = 0;
	memcpy(m.applied, ram, RAM_BYTES);
	memcpy(m.whole, ram, RAM_BYTES);
}

static void step(struct ft_image *im, struct input *in)
{
	const uint8_t *p;
	size_t len;

	switch (byte(in) % 11) {
	case 0: begin(im, in); break;
	case 1: len = bytes(in, &p), pages(im, p, len); break;
	case 2: good_pages(im, in); break;
	case 3: state(im, in); break;
	case 4: len = bytes(in, &p), end(im, p, len); break;
	case 5: good_end(im); break;
	case 6: commit(im); break;
	case 7: m.held = !m.held, ft_image_hold(im, m.held); break;
	case 8: ft_image_discard_partial(im), lost(); break;
	case 9: forget(im); break;
	case 10: disk(im, in); break;
	}
}

static void check(const struct ft_image *im)
{
	must(ft_image_usable(im) == m.usable);
	must(m.torn || !m.usable || !memcmp(ram, m.applied, RAM_BYTES));
	must(!m.usable || ft_image_whole_epoch(im) == m.whole_epoch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ft_image_config cfg = { .ram = ram, .nr_pages = NR_PAGES, .spill_dir = "/tmp", .state_max = STATE_MAX };
	struct input in = { data, size };
	struct ft_image *im;

	cfg.staging_bound = byte(&in) & 1 ? 0 : 1 << 20;
	memset(ram, 0, RAM_BYTES);
	memset(&m, 0, sizeof(m));
	m.sum = XXH3_createState();
	must(m.sum && (codec || !ft_codec_new(&codec)) && !ft_image_new(&cfg, &im));
	XXH3_64bits_reset(m.sum);
	while (in.left) {
		step(im, &in);
		check(im);
	}
	ft_image_free(im);
	XXH3_freeState(m.sum);
	return 0;
}
