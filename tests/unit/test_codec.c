// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/codec.h"
#include "ft/wire.h"
#include "tests/test.h"

#define NR_PAGES 4096u

/* --- pages of a guest, from a fixed seed --- */

static uint64_t seed = 1;

static uint64_t rnd(void)
{
	uint64_t z = seed += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static void random_page(uint8_t *p)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 8)
		ft_put64(p + i, rnd());
}

static void text_page(uint8_t *p)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 16)
		memcpy(p + i, rnd() % 2 ? "the quick brown " : "fox jumps over a", 16);
}

static void change_words(uint8_t *p, unsigned nr)
{
	while (nr--)
		ft_put64(p + rnd() % 512 * 8, rnd());
}

struct side {
	struct ft_codec *sender, *receiver;
	struct ft_shadow *shadow;
	struct ft_chunk chunk;
	uint8_t *block, *replica;
	struct ft_codec_stats st;
};

static void side_init(struct side *s, bool shadow)
{
	*s = (struct side){ 0 };
	CHECK_OK(ft_codec_new(&s->sender));
	CHECK_OK(ft_codec_new(&s->receiver));
	if (shadow)
		CHECK_OK(ft_shadow_new(NR_PAGES, &s->shadow));
	s->chunk.data = aligned_alloc(64, FT_CHUNK_PAGES * FT_PAGE_SIZE);
	s->block = malloc(FT_BLOCK_MAX);
	s->replica = aligned_alloc(FT_PAGE_SIZE, (size_t)NR_PAGES * FT_PAGE_SIZE);
	memset(s->replica, 0xee, (size_t)NR_PAGES * FT_PAGE_SIZE);
}

static void side_free(struct side *s)
{
	ft_codec_free(s->sender);
	ft_codec_free(s->receiver);
	ft_shadow_free(s->shadow);
	free(s->chunk.data);
	free(s->block);
	free(s->replica);
}

static uint8_t *add(struct side *s, uint64_t page)
{
	s->chunk.page[s->chunk.nr] = page;
	return s->chunk.data + (size_t)s->chunk.nr++ * FT_PAGE_SIZE;
}

/* Encode the chunk, check, apply, compare. Returns the length of the block. */
static size_t round_trip(struct side *s)
{
	struct ft_codec_stats before = s->st;
	ssize_t len = ft_codec_encode(s->sender, s->shadow, &s->chunk, s->block, &s->st);
	uint32_t pages = 0;

	CHECK(len >= 0 && len <= (ssize_t)FT_BLOCK_MAX);
	if (len) {
		/* An exact copy, so that a sanitizer sees a read past the end. */
		uint8_t *exact = malloc((size_t)len);

		memcpy(exact, s->block, (size_t)len);
		CHECK_OK(ft_codec_check(s->receiver, exact, (size_t)len, NR_PAGES, &pages));
		ft_codec_apply(s->receiver, exact, (size_t)len, s->replica);
		free(exact);
	}
	CHECK_EQ(pages, s->st.pages - before.pages - (s->st.unchanged - before.unchanged));
	CHECK_EQ(s->st.pages, s->st.unchanged + s->st.zero + s->st.delta + s->st.whole);
	for (uint32_t i = 0; i < s->chunk.nr; i++)
		CHECK(!memcmp(s->replica + s->chunk.page[i] * FT_PAGE_SIZE, s->chunk.data + (size_t)i * FT_PAGE_SIZE, FT_PAGE_SIZE));
	return (size_t)len;
}

TEST(each_class_costs_what_it_should)
{
	struct side s;

	side_init(&s, true);
	memset(add(&s, 7), 0, FT_PAGE_SIZE);
	CHECK(round_trip(&s) < 16);
	CHECK_EQ(s.st.zero, 1);
	CHECK_EQ(round_trip(&s), 0);            /* still zero */
	CHECK_EQ(s.st.unchanged, 1);

	text_page(s.chunk.data);
	CHECK(round_trip(&s) < FT_PAGE_SIZE / 2);
	CHECK_EQ(s.st.whole, 1);
	CHECK_EQ(round_trip(&s), 0);
	CHECK_EQ(s.st.unchanged, 2);

	s.chunk.data[1234] ^= 1;
	CHECK(round_trip(&s) < 40);
	CHECK_EQ(s.st.delta, 1);

	random_page(s.chunk.data);
	CHECK(round_trip(&s) <= FT_PAGE_SIZE + 16);
	CHECK_EQ(s.st.whole, 2);
	side_free(&s);
}

TEST(a_page_that_was_zero_gets_a_delta)
{
	struct side s;

	side_init(&s, true);
	memset(add(&s, 7), 0, FT_PAGE_SIZE);
	round_trip(&s);
	change_words(s.chunk.data, 3);
	CHECK(round_trip(&s) < 60);
	CHECK_EQ(s.st.delta, 1);
	change_words(s.chunk.data, 3);
	round_trip(&s);
	CHECK_EQ(s.st.delta, 2);
	side_free(&s);
}

TEST(after_forget_nothing_relies_on_the_peer)
{
	struct side s;

	side_init(&s, true);
	random_page(add(&s, 5));
	memset(add(&s, 6), 0, FT_PAGE_SIZE);
	round_trip(&s);
	ft_shadow_forget(s.shadow);
	memset(s.replica, 0x11, (size_t)NR_PAGES * FT_PAGE_SIZE);
	change_words(s.chunk.data, 1);
	round_trip(&s);
	CHECK_EQ(s.st.whole, 2);
	CHECK_EQ(s.st.zero, 2);
	CHECK_EQ(s.st.delta, 0);
	side_free(&s);
}

/* What a guest may do to a page between two epochs. */
static void mutate(uint8_t *p)
{
	static const unsigned words[] = { 1, 2, 10, 100, 200, 250, 300, 400, 512, 2000 };

	switch (rnd() % 8) {
	case 0: memset(p, 0, FT_PAGE_SIZE); break;
	case 1: random_page(p); break;
	case 2: text_page(p); break;
	case 3: p[rnd() % FT_PAGE_SIZE]++; break;
	case 4: memset(p + rnd() % 2048, (int)rnd(), rnd() % 2048); break;
	case 5: break;
	default: change_words(p, words[rnd() % FT_ARRAY_LEN(words)]); break;
	}
}

static void random_chunks(bool shadow, unsigned rounds)
{
	uint8_t *guest = calloc(NR_PAGES, FT_PAGE_SIZE);
	struct side s;

	side_init(&s, shadow);
	while (rounds--) {
		uint64_t page = rnd() % 64, step = 1 + rnd() % 3 * (rnd() % 40);
		unsigned nr = 1 + (unsigned)(rnd() % FT_CHUNK_PAGES);

		s.chunk.nr = 0;
		for (; nr-- && page < NR_PAGES; page += 1 + rnd() % step) {
			mutate(guest + page * FT_PAGE_SIZE);
			memcpy(add(&s, page), guest + page * FT_PAGE_SIZE, FT_PAGE_SIZE);
		}
		round_trip(&s);
	}
	if (shadow)
		CHECK(s.st.delta && s.st.unchanged && s.st.whole && s.st.zero);
	side_free(&s);
	free(guest);
}

TEST(random_chunks_come_out_as_they_went_in_with_shadow)
{
	random_chunks(true, 600);
}

TEST(random_chunks_come_out_as_they_went_in_without_shadow)
{
	random_chunks(false, 300);
}

TEST(the_worst_block_fits)
{
	struct side s;

	side_init(&s, false);
	for (unsigned i = 0; i < FT_CHUNK_PAGES; i++)
		random_page(add(&s, i * 63));
	CHECK(round_trip(&s) <= FT_BLOCK_MAX);
	CHECK_EQ(s.st.whole, FT_CHUNK_PAGES);
	side_free(&s);
}

TEST(chunks_that_make_no_sense_are_refused)
{
	struct ft_codec_stats st = { 0 };
	struct side s;

	side_init(&s, true);
	memset(s.chunk.data, 1, FT_CHUNK_PAGES * FT_PAGE_SIZE);
	s.chunk.nr = 2;
	s.chunk.page[0] = 5, s.chunk.page[1] = 5;
	CHECK_EQ(ft_codec_encode(s.sender, s.shadow, &s.chunk, s.block, &st), -EINVAL);
	s.chunk.page[1] = NR_PAGES;
	CHECK_EQ(ft_codec_encode(s.sender, s.shadow, &s.chunk, s.block, &st), -EINVAL);
	s.chunk.nr = FT_CHUNK_PAGES + 1;
	CHECK_EQ(ft_codec_encode(s.sender, s.shadow, &s.chunk, s.block, &st), -EINVAL);
	side_free(&s);
}

/* --- hostile blocks --- */

#define B(...) (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ })
#define LEN(n) (n) & 0xff, (n) >> 8 & 0xff, (n) >> 16 & 0xff, (n) >> 24 & 0xff

static const struct {
	const char *what;
	const uint8_t *head;            /* then @zeros zero bytes */
	size_t len, zeros;
	int rc;
} blocks[] = {
	{ "one zero page",                B(0, 1, 0, 0, LEN(0), 0x00, 5), 0, 0 },
	{ "64 zero pages",                B(0, 1, 0, 0, LEN(0), 0x3f, 0), 0, 0 },
	{ "the last page",                B(0, 1, 0, 0, LEN(0), 0x00, 0xff, 0x1f), 0, 0 },
	{ "one whole page, raw",          B(0, 1, 0, 0, LEN(4096), 0x40, 5), 4096, 0 },
	{ "a delta of one word",          B(0, 1, 0, 0, LEN(17), 0x80, 5, 1, 0, 0, 0, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9, 9), 0, 0 },
	{ "nothing",                      B(0), 0, -EPROTO },
	{ "a header alone",               B(0, 1, 0, 0, LEN(0)), 0, -EPROTO },
	{ "no runs",                      B(0, 0, 0, 0, LEN(0)), 0, -EPROTO },
	{ "65 runs",                      B(0, 65, 0, 0, LEN(0)), 65 * 2, -EPROTO },
	{ "unknown flag",                 B(2, 1, 0, 0, LEN(0), 0x00, 5), 0, -EPROTO },
	{ "reserved bytes",               B(0, 1, 1, 0, LEN(0), 0x00, 5), 0, -EPROTO },
	{ "unknown class",                B(0, 1, 0, 0, LEN(0), 0xc0, 5), 0, -EPROTO },
	{ "past the end of RAM",          B(0, 1, 0, 0, LEN(0), 0x01, 0xff, 0x1f), 0, -EPROTO },
	{ "far past the end of RAM",      B(0, 1, 0, 0, LEN(0), 0x00, 0xff, 0xff, 0xff, 0xff, 0x7f), 0, -EPROTO },
	{ "varint of six bytes",          B(0, 1, 0, 0, LEN(0), 0x00, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01), 0, -EPROTO },
	{ "varint cut off",               B(0, 1, 0, 0, LEN(0), 0x00, 0x80), 0, -EPROTO },
	{ "varint not the shortest",      B(0, 1, 0, 0, LEN(0), 0x00, 0x85, 0x00), 0, -EPROTO },
	{ "65 pages in two runs",         B(0, 2, 0, 0, LEN(0), 0x3f, 0, 0x00, 1), 0, -EPROTO },
	{ "fewer runs than said",         B(0, 2, 0, 0, LEN(0), 0x00, 5), 0, -EPROTO },
	{ "bytes after the payload",      B(0, 1, 0, 0, LEN(0), 0x00, 5), 1, -EPROTO },
	{ "payload shorter than said",    B(0, 1, 0, 0, LEN(4096), 0x40, 5), 4095, -EPROTO },
	{ "payload too short for pages",  B(0, 1, 0, 0, LEN(4095), 0x40, 5), 4095, -EPROTO },
	{ "payload too long for pages",   B(0, 1, 0, 0, LEN(4097), 0x40, 5), 4097, -EPROTO },
	{ "payload of 4 GiB",             B(1, 1, 0, 0, LEN(0xffffffffu), 0x40, 5), 100, -EPROTO },
	{ "payload over the limit",       B(1, 1, 0, 0, LEN(262145), 0x40, 5), 100, -EPROTO },
	{ "LZ4 of nothing",               B(1, 1, 0, 0, LEN(4096), 0x40, 5), 0, -EPROTO },
	{ "LZ4 with an offset before the start", B(1, 1, 0, 0, LEN(4096), 0x40, 5, 0x1f, 0, 9, 0), 20, -EPROTO },
	{ "LZ4 that ends early",          B(1, 1, 0, 0, LEN(4096), 0x40, 5, 0x50, 'h', 'e', 'l', 'l', 'o'), 0, -EPROTO },
	{ "delta without lines",          B(0, 1, 0, 0, LEN(8), 0x80, 5), 8, -EPROTO },
	{ "delta cut off in its lines",   B(0, 1, 0, 0, LEN(4), 0x80, 5, 1, 0, 0, 0), 0, -EPROTO },
	{ "delta with an empty line",     B(0, 1, 0, 0, LEN(9), 0x80, 5, 1), 8, -EPROTO },
	{ "delta with a word of zero",    B(0, 1, 0, 0, LEN(17), 0x80, 5, 1, 0, 0, 0, 0, 0, 0, 0, 1), 8, -EPROTO },
	{ "delta cut off in its words",   B(0, 1, 0, 0, LEN(16), 0x80, 5, 1, 0, 0, 0, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9, 9), 0, -EPROTO },
	{ "delta cut off in its masks",   B(0, 1, 0, 0, LEN(9), 0x80, 5, 3, 0, 0, 0, 0, 0, 0, 0, 1), 0, -EPROTO },
};

TEST(blocks_of_a_hostile_peer_are_refused_and_honest_ones_pass)
{
	struct ft_codec *cd;

	CHECK_OK(ft_codec_new(&cd));
	for (size_t i = 0; i < FT_ARRAY_LEN(blocks); i++) {
		uint8_t *block = calloc(1, blocks[i].len + blocks[i].zeros);
		uint32_t pages = 99;
		int rc;

		memcpy(block, blocks[i].head, blocks[i].len);
		rc = ft_codec_check(cd, block, blocks[i].len + blocks[i].zeros, NR_PAGES, &pages);
		if (rc != blocks[i].rc)
			ft_test_fail(__FILE__, __LINE__, "%s: %d, expected %d", blocks[i].what, rc, blocks[i].rc);
		CHECK_EQ(pages != 0, rc == 0);
		free(block);
	}
	ft_codec_free(cd);
}

TEST(a_delta_larger_than_its_page_is_refused)
{
	size_t payload = 8 + 64 + 8 * 512;
	uint8_t *block = malloc(10 + payload);
	struct ft_codec *cd;
	uint32_t pages;

	CHECK_OK(ft_codec_new(&cd));
	memset(block, 0xff, 10 + payload);
	memcpy(block, (uint8_t[]){ 0, 1, 0, 0 }, 4);
	ft_put32(block + 4, (uint32_t)payload);
	memcpy(block + 8, (uint8_t[]){ 0x80, 0 }, 2);
	CHECK_EQ(ft_codec_check(cd, block, 10 + payload, NR_PAGES, &pages), -EPROTO);
	ft_codec_free(cd);
	free(block);
}

/* Whatever a mutated block says: refused, or applied within RAM. */
TEST(mutated_blocks_never_reach_outside)
{
	struct side s;
	unsigned passed = 0;

	side_init(&s, true);
	for (unsigned round = 0; round < 3000; round++) {
		size_t len;
		uint32_t pages;
		uint8_t *bad;

		s.chunk.nr = 0;
		for (uint64_t page = rnd() % 8; s.chunk.nr < 1 + round % 9; page += 1 + rnd() % 3) {
			uint8_t *p = add(&s, page);

			memcpy(p, s.replica + page * FT_PAGE_SIZE, FT_PAGE_SIZE);
			mutate(p);
		}
		len = (size_t)ft_codec_encode(s.sender, s.shadow, &s.chunk, s.block, &s.st);
		if (!len)
			continue;
		bad = malloc(len);
		memcpy(bad, s.block, len);
		for (unsigned i = 0; i <= rnd() % 4; i++)
			bad[rnd() % (rnd() % 2 ? len : len < 24 ? len : 24)] ^= (uint8_t)(1 << rnd() % 8);
		len -= rnd() % 4 ? 0 : rnd() % len;
		if (!ft_codec_check(s.receiver, bad, len, 64, &pages)) {
			CHECK(pages >= 1 && pages <= FT_CHUNK_PAGES);
			ft_codec_apply(s.receiver, bad, len, s.replica);
			passed++;
		}
		free(bad);
		CHECK(s.replica[64 * FT_PAGE_SIZE] == 0xee);
	}
	printf("# %u mutated blocks passed the check\n", passed);
	side_free(&s);
}
