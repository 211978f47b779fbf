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
 *             u64           bit i: line i changed; not 0
 *             then for each changed line, in ascending order:
 *               u8          bit j: word j of the line changed; not 0
 *               8 bytes     old XOR new, for each changed word in ascending order; not all 0
 *
 * An LZ4 block decompresses to exactly the size given; without LZ4 the payload has exactly that size.
 * Anything else is -EPROTO and changes nothing.
 */
#include "ft/codec.h"
#include "ft/wire.h"

#include <lz4.h>
#include <sys/mman.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define HDR 8u
#define FLAG_LZ4 1u
#define LINES 64u
#define LINE_WORDS 8u
#define WORDS (LINES * LINE_WORDS)
#define PAYLOAD_MAX (FT_CHUNK_PAGES * FT_PAGE_SIZE)
#define RUN_BYTES_MAX 6u                /* byte and varint */
#define SKIP_BITS 35u
/*
 * A larger delta goes as a whole page: LZ4 finds more in the page itself than in the noise that old XOR new
 * makes of it. Measured: between 1200 and 4096 the choice hardly matters.
 */
#define DELTA_BYTES_MAX 2048
#define DELTA_MAX (DELTA_BYTES_MAX + 80u)       /* room for the line that is too much */
/* Fewer bytes than this are not worth a call of LZ4; and it must save a sixteenth. */
#define LZ4_MIN 48u
/* Whole pages in bulk, as in a first copy: a twentieth more bytes for a sixth less time. */
#define LZ4_BULK (PAYLOAD_MAX / 2)
#define LZ4_BULK_ACCELERATION 4
#define LZ4_GOOD(len) ((len) - (len) / 16)

_Static_assert(HDR + FT_CHUNK_PAGES * RUN_BYTES_MAX + PAYLOAD_MAX <= FT_BLOCK_MAX, "a raw block fits");
_Static_assert(FT_WIRE_PAGES_MAX <= 1ull << SKIP_BITS, "every page can be reached");

typedef uint64_t __attribute__((may_alias)) word;       /* of a page; its byte order never matters */

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

/* A page that starts with a zero line and is equal to itself one line on. */
static bool is_zero(const uint8_t *page)
{
	const word *w = (const word *)page;

	return !(w[0] | w[1] | w[2] | w[3] | w[4] | w[5] | w[6] | w[7]) && !memcmp(page, page + 64, FT_PAGE_SIZE - 64);
}

static inline bool line_differs(const word *a, const word *b)
{
	word any = 0;

	for (unsigned j = 0; j < LINE_WORDS; j++)
		any |= a[j] ^ b[j];
	return any;
}

/* One changed line: its mask, then its changed words. Branchless: the next word overwrites an unchanged one. */
static inline uint8_t *put_line(const word *old, const word *new, uint8_t *out)
{
	uint8_t *mask = out++;
	unsigned bits = 0;

	for (unsigned j = 0; j < LINE_WORDS; j++) {
		word x = old[j] ^ new[j];

		memcpy(out, &x, 8);
		out += x ? 8 : 0;
		bits |= (unsigned)!!x << j;
	}
	*mask = (uint8_t)bits;
	return out;
}

/*
 * Write the delta from @old to @new to @out (DELTA_MAX bytes of room): its length, 0 when the page did not
 * change, SIZE_MAX when it changed so much that it goes whole.
 */
static size_t make_delta(const uint8_t *old, const uint8_t *new, uint8_t *out)
{
	const word *o = (const word *)old, *n = (const word *)new;
	uint8_t *p = out + 8;
	uint64_t lines = 0;

	for (unsigned i = 0; i < LINES; i++, o += LINE_WORDS, n += LINE_WORDS) {
		if (!line_differs(o, n))
			continue;
		lines |= 1ull << i;
		p = put_line(o, n, p);
		if (p - out > DELTA_BYTES_MAX)
			return SIZE_MAX;
	}
	ft_put64(out, lines);
	return lines ? (size_t)(p - out) : 0;
}

/* Most pages that changed all over are known by four of their lines, without reading the rest of the shadow. */
static bool looks_rewritten(const uint8_t *old, const uint8_t *new)
{
	unsigned differ = 0;

	for (unsigned i = 5 * LINE_WORDS; i < WORDS; i += 16 * LINE_WORDS)
		for (unsigned j = i; j < i + LINE_WORDS; j++)
			differ += ((const word *)old)[j] != ((const word *)new)[j];
	return differ >= 3 * LINE_WORDS;
}

/* Copy a page to memory that is not read again soon: past the caches, where the machine can. */
static void copy_away(uint8_t *to, const uint8_t *from)
{
#ifdef __SSE2__
	__m128i *t = (__m128i *)to;
	const __m128i *f = (const __m128i *)from;

	for (unsigned i = 0; i < FT_PAGE_SIZE / sizeof(*t); i++)
		_mm_stream_si128(&t[i], _mm_loadu_si128(&f[i]));
#else
	memcpy(to, from, FT_PAGE_SIZE);
#endif
}

/* Other threads may read what copy_away wrote. */
static void copies_done(void)
{
#ifdef __SSE2__
	_mm_sfence();
#endif
}

/* Bring the shadow up to date where @new differs from it. */
static void update_lines(uint8_t *shadow, const uint8_t *new, const uint8_t *delta)
{
	for (uint64_t lines = ft_le64(delta); lines; lines &= lines - 1) {
		size_t at = 64 * (size_t)__builtin_ctzll(lines);

		memcpy(shadow + at, new + at, 64);
	}
}

struct encoding {
	struct ft_shadow *sh;           /* may be NULL */
	const struct ft_chunk *chunk;
	uint8_t *run, *runs_end;        /* the open run; where the next begins */
	unsigned nr_runs;
	uint64_t next;                  /* page after the last one */
	uint8_t *scratch, *payload;     /* where the payload grows, and its end so far */
	unsigned in_place;              /* the payload is the first pages of the chunk itself: not copied yet */
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

/* The payload becomes more than the chunk's first pages: from here on it is in the scratch. */
static void leave_chunk(struct encoding *e)
{
	ft_copy(e->scratch, e->chunk->data, (size_t)e->in_place * FT_PAGE_SIZE);
	e->payload = e->scratch + (size_t)e->in_place * FT_PAGE_SIZE;
	e->in_place = 0;
}

static void add_zero(struct encoding *e, uint64_t page)
{
	if (e->sh && e->sh->known[page] == ALL_ZERO)
		return;
	if (e->sh)
		e->sh->known[page] = ALL_ZERO;
	add_page(e, page, FT_PAGE_ZERO);
	e->zero++;
}

/* The delta against what the peer has; false when the page had better go whole. */
static bool add_delta(struct encoding *e, uint64_t page, const uint8_t *data)
{
	static const uint8_t zeros[FT_PAGE_SIZE] __attribute__((aligned(64)));
	uint8_t *shadow = e->sh->ram + page * FT_PAGE_SIZE, *at = e->payload + (size_t)e->in_place * FT_PAGE_SIZE;
	enum known known = (enum known)e->sh->known[page];
	const uint8_t *old = known == ALL_ZERO ? zeros : shadow;
	size_t len;

	if (known == UNKNOWN || looks_rewritten(old, data))
		return false;
	len = make_delta(old, data, at);
	if (!len || len == SIZE_MAX)
		return !len;
	if (known == ALL_ZERO)
		memcpy(shadow, data, FT_PAGE_SIZE);
	else
		update_lines(shadow, data, at);
	e->sh->known[page] = AS_SHADOW;
	if (e->in_place)
		leave_chunk(e);
	e->payload += len;
	add_page(e, page, FT_PAGE_DELTA);
	e->delta++;
	return true;
}

static void add_whole(struct encoding *e, uint64_t page, const uint8_t *data)
{
	if (e->sh) {
		copy_away(e->sh->ram + page * FT_PAGE_SIZE, data);
		e->sh->known[page] = AS_SHADOW;
	}
	add_page(e, page, FT_PAGE_WHOLE);
	e->whole++;
	if (e->payload == e->scratch && data == e->chunk->data + (size_t)e->in_place * FT_PAGE_SIZE) {
		e->in_place++;
		return;
	}
	if (e->in_place)
		leave_chunk(e);
	ft_copy(e->payload, data, FT_PAGE_SIZE);
	e->payload += FT_PAGE_SIZE;
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

static int lz4(struct ft_codec *cd, const uint8_t *from, size_t len, uint8_t *to, size_t room)
{
	int acceleration = len < LZ4_BULK ? 1 : LZ4_BULK_ACCELERATION;

	return LZ4_compress_fast_extState(cd->lz4, (const char *)from, (char *)to, (int)len, (int)room, acceleration);
}

/* A few of the pages of a large payload, tried alone: when none of them gets smaller, the rest is spared. */
static bool looks_random(struct ft_codec *cd, const uint8_t *payload, size_t len, uint8_t *room)
{
	size_t step = len / 4;

	if (step < 2 * FT_PAGE_SIZE)
		return false;
	for (size_t at = 0; at + FT_PAGE_SIZE <= len; at += step)
		if (lz4(cd, payload + at, FT_PAGE_SIZE, room, LZ4_GOOD(FT_PAGE_SIZE)) > 0)
			return false;
	return true;
}

/* The payload behind the runs: LZ4 when that saves something, else raw. Returns the block's length. */
static size_t pack_payload(struct ft_codec *cd, uint8_t *block, uint8_t *at, const uint8_t *payload, size_t len)
{
	int packed = 0;

	if (len >= LZ4_MIN && !looks_random(cd, payload, len, at))
		packed = lz4(cd, payload, len, at, LZ4_GOOD(len));
	block[0] = packed > 0 ? FLAG_LZ4 : 0;
	if (packed > 0)
		return (size_t)(at - block) + (size_t)packed;
	ft_copy(at, payload, len);
	return (size_t)(at - block) + len;
}

static void add_pages(struct encoding *e)
{
	for (uint32_t i = 0; i < e->chunk->nr; i++) {
		const uint8_t *data = e->chunk->data + (size_t)i * FT_PAGE_SIZE;
		uint64_t page = e->chunk->page[i];
		if (is_zero(data))
			add_zero(e, page);
		else if (!e->sh || !add_delta(e, page, data))
			add_whole(e, page, data);
	}
	copies_done();
}

/* Header and payload around the runs. Returns the block's length. */
static size_t finish_block(struct ft_codec *cd, const struct encoding *e, uint8_t *out)
{
	const uint8_t *payload = e->in_place ? e->chunk->data : e->scratch;
	size_t len = e->in_place ? (size_t)e->in_place * FT_PAGE_SIZE : (size_t)(e->payload - e->scratch);

	if (!e->nr_runs)
		return 0;
	out[1] = (uint8_t)e->nr_runs;
	ft_put16(out + 2, 0);
	ft_put32(out + 4, (uint32_t)len);
	return pack_payload(cd, out, e->runs_end, payload, len);
}

ssize_t ft_codec_encode(struct ft_codec *cd, struct ft_shadow *sh, const struct ft_chunk *c,
			uint8_t *out, struct ft_codec_stats *stats)
{
	struct encoding e = {
		.sh = sh, .chunk = c, .runs_end = out + HDR, .scratch = cd->scratch, .payload = cd->scratch,
	};
	size_t len;

	if (!chunk_ok(c, sh))
		return -EINVAL;
	add_pages(&e);
	len = finish_block(cd, &e, out);
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
static const uint8_t *get_runs(struct ft_codec *cd, const uint8_t *p, const uint8_t *end, unsigned nr_runs,
			       uint64_t nr_pages)
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
	size_t len = 8;
	uint64_t lines;

	if (left > FT_PAGE_SIZE)
		left = FT_PAGE_SIZE;
	if (left < 8)
		return 0;
	for (lines = ft_le64(p); lines; lines &= lines - 1) {
		unsigned words = len < left ? (unsigned)__builtin_popcount(p[len++]) : 0;

		if (!words || left - len < 8 * (size_t)words)
			return 0;
		for (; words; words--, len += 8)
			if (!ft_le64(p + len))
				return 0;
	}
	return len == 8 ? 0 : len;
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
	if (len < HDR || len > FT_BLOCK_MAX)
		return -EPROTO;
	if (block[0] & ~FLAG_LZ4 || !block[1] || block[1] > FT_CHUNK_PAGES || ft_le16(block + 2))
		return -EPROTO;
	payload_len = ft_le32(block + 4);
	p = get_runs(cd, block + HDR, end, block[1], nr_pages);
	if (!p || payload_len > PAYLOAD_MAX)
		goto bad;
	if (block[0] & FLAG_LZ4) {
		if (LZ4_decompress_safe((const char *)p, (char *)cd->scratch, (int)(end - p), (int)payload_len) !=
		    (int)payload_len)
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
	const uint8_t *start = p;
	uint64_t lines = ft_le64(p);

	for (p += 8; lines; lines &= lines - 1) {
		uint8_t *line = page + 64 * (unsigned)__builtin_ctzll(lines);

		for (unsigned mask = *p++; mask; mask &= mask - 1, p += 8) {
			word *w = (word *)(line + 8 * (unsigned)__builtin_ctz(mask)), x;

			memcpy(&x, p, 8);
			*w ^= x;
		}
	}
	return (size_t)(p - start);
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
			ft_copy(page, p, bytes);
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
