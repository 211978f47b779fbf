// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * codec.c - pages to block bytes and back; see ft/codec.h.
 *
 * A block, the body of a PAGES record (integers little-endian):
 *
 *   offset  size
 *        0     1  flags: bit 0: the payload is an LZ4 block; other bits 0
 *        1     1  runs: how many, 1..64
 *        2     2  0
 *        4     4  size of the payload before LZ4, at most 64 x 4096
 *        8     .  the runs
 *        .     .  the payload, up to the end of the record
 *
 * A run is a row of neighbouring pages that travel in the same way, at most 64 pages in the whole block:
 *
 *   u8      bits 0-5: pages in the run, less one; bits 6-7: 0 zero, 1 whole, 2 delta
 *   varint  pages skipped since the end of the run before (the first run: since page 0), below 2^35:
 *           seven bits a byte, low ones first, bit 7 set in all bytes but the last; at most 5 bytes, and
 *           the last is not 0 unless it is the only one
 *
 * So pages ascend and none comes twice. The payload holds the contents of the pages in this order, one
 * after another without padding:
 *
 *   zero    nothing: the page is all zeros
 *   whole   4096 bytes
 *   delta   what to XOR into the page as the receiver has it, at most 4096 bytes. The page is 64 lines of
 *           eight 8-byte words:
 *             u64                        bit i: line i changed; not 0
 *             u8 for each changed line   bit j: word j of the line changed; not 0
 *             u64 for each changed word  old XOR new, in ascending order; not 0
 *
 * An LZ4 block decompresses to exactly the size given; without LZ4 the payload has exactly that size.
 * Anything else is -EPROTO and changes nothing.
 */
#include "ft/codec.h"
#include "ft/wire.h"

#include <lz4.h>
#include <sys/mman.h>

#define HDR 8u
#define FLAG_LZ4 1u
#define LINES 64u
#define LINE_WORDS 8u
#define WORDS (LINES * LINE_WORDS)
#define PAYLOAD_MAX (FT_CHUNK_PAGES * FT_PAGE_SIZE)
#define RUN_BYTES_MAX 6u                /* byte and varint */
#define SKIP_BITS 35u
/*
 * A delta with more changed words than this goes whole: LZ4 finds more in the page itself than in the
 * noise that old XOR new makes of it.
 */
#define DELTA_WORDS_MAX (WORDS / 2)
#define DELTA_MAX (8u + LINES + 8u * WORDS)
/* Fewer bytes than this are not worth a call of LZ4. */
#define LZ4_MIN 48u

_Static_assert(HDR + FT_CHUNK_PAGES * RUN_BYTES_MAX + PAYLOAD_MAX <= FT_BLOCK_MAX, "a raw block fits");
_Static_assert(FT_WIRE_PAGES_MAX <= 1ull << SKIP_BITS, "every page can be reached");

struct ft_codec {
	void *lz4;                      /* LZ4 state */
	uint8_t *scratch;               /* PAYLOAD_MAX + DELTA_MAX: payload before or after LZ4 */
	/* The block last decoded. */
	struct ft_page_run run[FT_CHUNK_PAGES];
	unsigned nr_runs;
	const uint8_t *payload;         /* in the scratch, or in the block itself */
};

int ft_codec_new(struct ft_codec **out)
{
	struct ft_codec *cd = calloc(1, sizeof(*cd));

	if (!cd)
		return -ENOMEM;
	cd->lz4 = calloc(1, (size_t)LZ4_sizeofState());
	cd->scratch = malloc(PAYLOAD_MAX + DELTA_MAX);
	if (!cd->lz4 || !cd->scratch) {
		ft_codec_free(cd);
		return -ENOMEM;
	}
	*out = cd;
	return 0;
}

void ft_codec_free(struct ft_codec *cd)
{
	if (!cd)
		return;
	free(cd->lz4);
	free(cd->scratch);
	free(cd);
}

/* --- the shadow --- */

/* What the peer has of a page. A byte a page, so that threads with different pages do not meet. */
enum known { UNKNOWN, ALL_ZERO, AS_SHADOW };

struct ft_shadow {
	uint64_t nr_pages;
	uint8_t *known;                 /* enum known */
	uint8_t *ram;                   /* meaningful where AS_SHADOW; untouched memory costs nothing */
};

int ft_shadow_new(uint64_t nr_pages, struct ft_shadow **out)
{
	struct ft_shadow *sh = calloc(1, sizeof(*sh));

	if (!sh)
		return -ENOMEM;
	sh->nr_pages = nr_pages;
	sh->known = calloc(nr_pages ? nr_pages : 1, 1);
	sh->ram = mmap(NULL, (nr_pages ? nr_pages : 1) * FT_PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (sh->ram == MAP_FAILED)
		sh->ram = NULL;
	if (!sh->known || !sh->ram) {
		ft_shadow_free(sh);
		return -ENOMEM;
	}
	(void)madvise(sh->ram, nr_pages * FT_PAGE_SIZE, MADV_HUGEPAGE); /* only a wish: fewer faults and TLB misses */
	*out = sh;
	return 0;
}

void ft_shadow_free(struct ft_shadow *sh)
{
	if (!sh)
		return;
	if (sh->ram)
		munmap(sh->ram, (sh->nr_pages ? sh->nr_pages : 1) * FT_PAGE_SIZE);
	free(sh->known);
	free(sh);
}

void ft_shadow_forget(struct ft_shadow *sh)
{
	memset(sh->known, UNKNOWN, sh->nr_pages);
}

/* --- encoding --- */

static bool is_zero(const uint8_t *page)
{
	const uint64_t *w = (const uint64_t *)page;

	for (unsigned i = 0; i < WORDS; i += 16) {
		uint64_t any = 0;

		for (unsigned k = 0; k < 16; k++)
			any |= w[i + k];
		if (any)
			return false;
	}
	return true;
}

/* The words of one changed line go to @out as old XOR new; their mask is returned. */
static inline uint8_t line_delta(const uint64_t *old, const uint64_t *new, uint8_t **out)
{
	uint8_t mask = 0;

	for (unsigned j = 0; j < LINE_WORDS; j++) {
		uint64_t x = old[j] ^ new[j];

		memcpy(*out, &x, 8);    /* branchless: the next word overwrites an unchanged one */
		*out += x ? 8 : 0;
		mask |= (uint8_t)(!!x << j);
	}
	return mask;
}

static inline bool line_differs(const uint64_t *a, const uint64_t *b)
{
	uint64_t any = 0;

	for (unsigned j = 0; j < LINE_WORDS; j++)
		any |= a[j] ^ b[j];
	return any;
}

/*
 * Write the delta from @old to @new to @out (DELTA_MAX bytes of room): its length, 0 when the page did not
 * change, SIZE_MAX when it changed so much that it goes whole.
 */
static size_t make_delta(const uint8_t *old, const uint8_t *new, uint8_t *out)
{
	const uint64_t *o = (const uint64_t *)old, *n = (const uint64_t *)new;
	uint8_t mask[LINES], words[WORDS * 8 + 8];
	uint8_t *w = words, *m = mask;
	uint64_t lines = 0;

	for (unsigned i = 0; i < LINES; i++, o += LINE_WORDS, n += LINE_WORDS) {
		if (!line_differs(o, n))
			continue;
		lines |= 1ull << i;
		*m++ = line_delta(o, n, &w);
		if (w - words > DELTA_WORDS_MAX * 8)
			return SIZE_MAX;
	}
	if (!lines)
		return 0;
	ft_put64(out, lines);
	memcpy(out + 8, mask, (size_t)(m - mask));
	memcpy(out + 8 + (m - mask), words, (size_t)(w - words));
	return 8 + (size_t)(m - mask) + (size_t)(w - words);
}

struct encoding {
	uint8_t *run, *runs_end;        /* the open run; where the next begins */
	unsigned nr_runs;
	uint64_t next;                  /* page after the last one */
	uint8_t *payload;               /* where the next page's bytes go */
	uint64_t zero, whole, delta;
};

static void add_page(struct encoding *e, uint64_t page, enum ft_page_how how)
{
	uint64_t skip = page - e->next;

	e->next = page + 1;
	if (e->nr_runs && !skip && *e->run >> 6 == how) {
		++*e->run;
		return;
	}
	e->run = e->runs_end;
	*e->runs_end++ = (uint8_t)(how << 6);
	for (; skip >= 0x80; skip >>= 7)
		*e->runs_end++ = (uint8_t)(skip | 0x80);
	*e->runs_end++ = (uint8_t)skip;
	e->nr_runs++;
}

static void add_zero(struct encoding *e, struct ft_shadow *sh, uint64_t page)
{
	if (sh && sh->known[page] == ALL_ZERO)
		return;
	if (sh)
		sh->known[page] = ALL_ZERO;
	add_page(e, page, FT_PAGE_ZERO);
	e->zero++;
}

/* The delta against what the peer has; false when the page had better go whole. */
static bool add_delta(struct encoding *e, struct ft_shadow *sh, uint64_t page, const uint8_t *data)
{
	static const uint8_t zeros[FT_PAGE_SIZE] __attribute__((aligned(64)));
	uint8_t *shadow = sh->ram + page * FT_PAGE_SIZE;
	size_t len;

	if (sh->known[page] == UNKNOWN)
		return false;
	len = make_delta(sh->known[page] == ALL_ZERO ? zeros : shadow, data, e->payload);
	if (len == SIZE_MAX)
		return false;
	if (len) {
		memcpy(shadow, data, FT_PAGE_SIZE);
		sh->known[page] = AS_SHADOW;
		add_page(e, page, FT_PAGE_DELTA);
		e->payload += len;
		e->delta++;
	}
	return true;
}

static void add_whole(struct encoding *e, struct ft_shadow *sh, uint64_t page, const uint8_t *data)
{
	if (sh) {
		memcpy(sh->ram + page * FT_PAGE_SIZE, data, FT_PAGE_SIZE);
		sh->known[page] = AS_SHADOW;
	}
	add_page(e, page, FT_PAGE_WHOLE);
	memcpy(e->payload, data, FT_PAGE_SIZE);
	e->payload += FT_PAGE_SIZE;
	e->whole++;
}

static bool chunk_ok(const struct ft_chunk *c, const struct ft_shadow *sh)
{
	uint64_t end = sh ? sh->nr_pages : FT_WIRE_PAGES_MAX;

	if (c->nr > FT_CHUNK_PAGES)
		return false;
	for (uint32_t i = 0; i < c->nr; i++)
		if (c->page[i] >= end || (i && c->page[i] <= c->page[i - 1]))
			return false;
	return true;
}

/* The payload behind the runs: LZ4 when that saves at least a sixteenth, else raw. Returns the block's length. */
static size_t pack_payload(struct ft_codec *cd, uint8_t *block, uint8_t *at, const uint8_t *payload, size_t len)
{
	int packed = 0;

	if (len >= LZ4_MIN)
		packed = LZ4_compress_fast_extState(cd->lz4, (const char *)payload, (char *)at, (int)len, (int)(len - len / 16), 1);
	block[0] = packed > 0 ? FLAG_LZ4 : 0;
	if (packed > 0)
		return (size_t)(at - block) + (size_t)packed;
	memcpy(at, payload, len);
	return (size_t)(at - block) + len;
}

ssize_t ft_codec_encode(struct ft_codec *cd, struct ft_shadow *sh, const struct ft_chunk *c,
			uint8_t *out, struct ft_codec_stats *stats)
{
	struct encoding e = { .runs_end = out + HDR, .payload = cd->scratch };
	size_t raw, len = 0;

	if (!chunk_ok(c, sh))
		return -EINVAL;
	for (uint32_t i = 0; i < c->nr; i++) {
		const uint8_t *data = c->data + (size_t)i * FT_PAGE_SIZE;

		if (is_zero(data))
			add_zero(&e, sh, c->page[i]);
		else if (!sh || !add_delta(&e, sh, c->page[i], data))
			add_whole(&e, sh, c->page[i], data);
	}
	raw = (size_t)(e.payload - cd->scratch);
	if (e.nr_runs) {
		out[1] = (uint8_t)e.nr_runs;
		ft_put16(out + 2, 0);
		ft_put32(out + 4, (uint32_t)raw);
		len = pack_payload(cd, out, e.runs_end, cd->scratch, raw);
	}
	stats->pages += c->nr;
	stats->zero += e.zero;
	stats->whole += e.whole;
	stats->delta += e.delta;
	stats->unchanged += c->nr - e.zero - e.whole - e.delta;
	stats->raw_bytes += (uint64_t)c->nr * FT_PAGE_SIZE;
	stats->wire_bytes += len;
	return (ssize_t)len;
}

/* --- decoding: nothing here trusts a byte until decode() has returned 0 --- */

/* A varint at *p; false when it is cut off, too long or not the shortest form. */
static bool get_varint(const uint8_t **p, const uint8_t *end, uint64_t *out)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < SKIP_BITS && *p < end; shift += 7) {
		uint8_t byte = *(*p)++;

		v |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80)) {
			*out = v;
			return byte || !shift;
		}
	}
	return false;
}

/* The run table. Returns where the payload starts, or NULL. */
static const uint8_t *get_runs(struct ft_codec *cd, const uint8_t *p, const uint8_t *end, unsigned nr_runs, uint64_t nr_pages)
{
	uint64_t next = 0, skip;
	unsigned total = 0;

	for (unsigned i = 0; i < nr_runs; i++) {
		struct ft_page_run *r = &cd->run[i];

		if (p == end || *p >> 6 > FT_PAGE_DELTA)
			return NULL;
		r->how = (enum ft_page_how)(*p >> 6);
		r->nr = (*p++ & 0x3f) + 1u;
		total += r->nr;
		if (total > FT_CHUNK_PAGES || !get_varint(&p, end, &skip))
			return NULL;
		r->first = next + skip;
		next = r->first + r->nr;
		if (next > nr_pages)
			return NULL;
	}
	cd->nr_runs = nr_runs;
	return p;
}

/* The length of the delta at @p, of which @left bytes are there; 0 when it is not well formed. */
static size_t delta_len(const uint8_t *p, size_t left)
{
	unsigned lines, words = 0;
	size_t len;

	if (left < 8)
		return 0;
	lines = (unsigned)__builtin_popcountll(ft_le64(p));
	if (!lines || left < 8 + lines)
		return 0;
	for (unsigned i = 0; i < lines; i++) {
		if (!p[8 + i])
			return 0;
		words += (unsigned)__builtin_popcount(p[8 + i]);
	}
	len = 8 + lines + 8 * (size_t)words;
	if (len > left || len > FT_PAGE_SIZE)
		return 0;
	for (const uint8_t *w = p + 8 + lines; w < p + len; w += 8)
		if (!ft_le64(w))
			return 0;
	return len;
}

static bool payload_ok(const struct ft_codec *cd, size_t left)
{
	const uint8_t *p = cd->payload;

	for (unsigned i = 0; i < cd->nr_runs; i++) {
		const struct ft_page_run *r = &cd->run[i];

		for (uint32_t k = 0; k < r->nr && r->how != FT_PAGE_ZERO; k++) {
			size_t len = r->how == FT_PAGE_DELTA ? delta_len(p, left) : FT_PAGE_SIZE;

			if (!len || len > left)
				return false;
			p += len;
			left -= len;
		}
	}
	return left == 0;
}

static int decode(struct ft_codec *cd, const uint8_t *block, size_t len, uint64_t nr_pages)
{
	const uint8_t *end = block + len, *p;
	size_t payload_len;

	cd->nr_runs = 0;
	if (len < HDR || len > FT_BLOCK_MAX || block[0] & ~FLAG_LZ4 || !block[1] || block[1] > FT_CHUNK_PAGES || ft_le16(block + 2))
		return -EPROTO;
	payload_len = ft_le32(block + 4);
	p = get_runs(cd, block + HDR, end, block[1], nr_pages);
	if (!p || payload_len > PAYLOAD_MAX)
		goto bad;
	if (block[0] & FLAG_LZ4) {
		if (LZ4_decompress_safe((const char *)p, (char *)cd->scratch, (int)(end - p), (int)payload_len) != (int)payload_len)
			goto bad;
		cd->payload = cd->scratch;
	} else {
		if ((size_t)(end - p) != payload_len)
			goto bad;
		cd->payload = p;
	}
	if (payload_ok(cd, payload_len))
		return 0;
bad:
	cd->nr_runs = 0;
	return -EPROTO;
}

int ft_codec_check(struct ft_codec *cd, const uint8_t *block, size_t len, uint64_t nr_pages, uint32_t *pages)
{
	int rc = decode(cd, block, len, nr_pages);

	*pages = 0;
	for (unsigned i = 0; i < cd->nr_runs; i++)
		*pages += cd->run[i].nr;
	return rc;
}

const struct ft_page_run *ft_codec_checked_runs(const struct ft_codec *cd, unsigned *nr)
{
	*nr = cd->nr_runs;
	return cd->run;
}

/* XOR the delta at @p into @page. Returns its length. */
static size_t apply_delta(const uint8_t *p, uint8_t *page)
{
	uint64_t lines = ft_le64(p);
	const uint8_t *m = p + 8, *w = m + __builtin_popcountll(lines);

	for (; lines; lines &= lines - 1) {
		uint8_t *line = page + 64 * (unsigned)__builtin_ctzll(lines);

		for (unsigned mask = *m++; mask; mask &= mask - 1, w += 8) {
			uint8_t *word = line + 8 * (unsigned)__builtin_ctz(mask);

			ft_put64(word, ft_le64(word) ^ ft_le64(w));
		}
	}
	return (size_t)(w - p);
}

void ft_codec_apply_checked(const struct ft_codec *cd, uint8_t *ram)
{
	const uint8_t *p = cd->payload;

	for (unsigned i = 0; i < cd->nr_runs; i++) {
		const struct ft_page_run *r = &cd->run[i];
		uint8_t *page = ram + r->first * FT_PAGE_SIZE;
		size_t bytes = (size_t)r->nr * FT_PAGE_SIZE;

		switch (r->how) {
		case FT_PAGE_ZERO:
			memset(page, 0, bytes);
			break;
		case FT_PAGE_WHOLE:
			memcpy(page, p, bytes);
			p += bytes;
			break;
		case FT_PAGE_DELTA:
			for (uint32_t k = 0; k < r->nr; k++)
				p += apply_delta(p, page + (size_t)k * FT_PAGE_SIZE);
			break;
		}
	}
}

void ft_codec_apply(struct ft_codec *cd, const uint8_t *block, size_t len, uint8_t *ram)
{
	int rc = decode(cd, block, len, FT_WIRE_PAGES_MAX);

	assert(!rc);                    /* the caller has checked these bytes */
	ft_codec_apply_checked(cd, ram);
}
