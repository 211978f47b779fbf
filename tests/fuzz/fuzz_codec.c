// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fuzz_codec.c - blocks from a peer, and pages through the codec and back.
 *
 * First byte even: the rest is a block. What passes the check is applied, both ways, within RAM. First byte odd: the
 * rest says how a few pages change from one chunk to the next; they must come out as they went in.
 */
#include "ft/codec.h"

#define NR_PAGES 66u
#define ROUND_PAGES 8u
#define PAGES(name, nr) static uint8_t name[(nr) * FT_PAGE_SIZE] __attribute__((aligned(FT_PAGE_SIZE)))

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must(bool ok)
{
	if (!ok)
		abort();
}

static void decode(struct ft_codec *cd, const uint8_t *block, size_t len)
{
	PAGES(a, NR_PAGES);
	PAGES(b, NR_PAGES);
	const struct ft_page_run *run;
	uint32_t pages, sum = 0;
	unsigned nr;

	if (ft_codec_check(cd, block, len, NR_PAGES, &pages))
		return;
	run = ft_codec_checked_runs(cd, &nr);
	for (unsigned i = 0; i < nr; i++) {
		must(run[i].nr && run[i].first + run[i].nr <= NR_PAGES);
		must(!i || run[i].first >= run[i - 1].first + run[i - 1].nr);
		sum += run[i].nr;
	}
	must(sum == pages && pages <= FT_CHUNK_PAGES);
	memset(a, 0, sizeof(a));
	memset(b, 0, sizeof(b));
	ft_codec_apply_checked(cd, a);
	ft_codec_apply(cd, block, len, b);
	must(!memcmp(a, b, sizeof(a)));
}

/* Four bytes a change: which page, and in the chunk at all; where; what, and how much of it. */
static void change(struct ft_chunk *c, uint8_t *guest, const uint8_t *op)
{
	uint64_t page = op[0] % ROUND_PAGES;
	size_t at = (size_t)(op[1] * 16), len = (size_t)1 << op[3] % 13;
	uint8_t *p = guest + page * FT_PAGE_SIZE;

	len = len < FT_PAGE_SIZE - at ? len : FT_PAGE_SIZE - at;
	for (size_t i = 0; i < len; i++)
		p[at + i] = (uint8_t)(op[2] & 1 ? (i * i >> 3) + op[2] : op[2]);
	if ((c->nr == 0 || c->page[c->nr - 1] < page) && op[0] & 0x80) {
		memcpy(c->data + (size_t)c->nr * FT_PAGE_SIZE, p, FT_PAGE_SIZE);
		c->page[c->nr++] = page;
	}
}

static void round_trip(struct ft_codec *cd, const uint8_t *data, size_t size)
{
	PAGES(guest, ROUND_PAGES);
	PAGES(ram, ROUND_PAGES);
	PAGES(chunk, ROUND_PAGES);
	static uint8_t block[FT_BLOCK_MAX];
	struct ft_chunk c = { .data = chunk };
	struct ft_codec_stats st = { 0 };
	struct ft_shadow *sh = NULL;
	uint32_t pages;

	memset(guest, 0, sizeof(guest));
	memset(ram, 0, sizeof(ram));
	must(!ft_shadow_new(ROUND_PAGES, &sh));
	for (unsigned ops = 0; size >= 4 && ops < 64; ops++, data += 4, size -= 4) {
		ssize_t len;

		change(&c, guest, data);
		if (!(data[2] & 2))
			continue;
		len = ft_codec_encode(cd, sh, &c, block, &st);
		must(len >= 0 && len <= (ssize_t)FT_BLOCK_MAX);
		if (len) {
			must(!ft_codec_check(cd, block, (size_t)len, ROUND_PAGES, &pages));
			ft_codec_apply_checked(cd, ram);
		}
		for (uint32_t i = 0; i < c.nr; i++)
			must(!memcmp(ram + c.page[i] * FT_PAGE_SIZE, c.data + (size_t)i * FT_PAGE_SIZE, FT_PAGE_SIZE));
		c.nr = 0;
	}
	ft_shadow_free(sh);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct ft_codec *cd;

	if (!size)
		return 0;
	if (!cd)
		must(!ft_codec_new(&cd));
	if (data[0] & 1)
		round_trip(cd, data + 1, size - 1);
	else
		decode(cd, data + 1, size - 1);
	return 0;
}
