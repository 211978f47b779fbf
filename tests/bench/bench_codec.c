// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * bench_codec.c - what the page codec costs, and what it saves.
 *
 *	bench_codec [-q] [-c PART] [DIRECTORY...]
 *
 * Each directory holds snapshots of one guest's RAM, taken one after the other (files of whole pages, in the
 * order of their names): the first is a first full copy, and what differs from one to the next an epoch. Then
 * come synthetic classes of pages. One JSON line a class:
 *
 *	encode_gbps, decode_gbps        raw GB/s of one thread; decode is check and apply
 *	encode_all_gbps                 of the encoder with a thread per CPU, wall clock
 *	ratio                           raw bytes / wire bytes
 *	cpu_s_per_gb                    sender's CPU: encode, checksum, AES-256-GCM in TLS-sized records
 *	plain_cpu_s_per_gb              the same for LZ4 alone on the same chunks of pages
 *	cpu_ratio                       median of the ratios of neighbouring runs of these two
 *
 * -q: less of everything (a few seconds). -c: only classes with PART in their names.
 */
#include "ft/codec.h"
#include "ft/encode.h"
#include "ft/wire.h"

#include <dirent.h>
#include <fcntl.h>
#include <lz4.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define TLS_RECORD 16384u
#define RUNS_MAX 16u

static bool quick;
static const char *only = "";

static double clock_s(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static void *must(void *p)
{
	if (!p) {
		fprintf(stderr, "bench_codec: out of memory\n");
		exit(1);
	}
	return p;
}

static void must_be(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "bench_codec: %s\n", what);
		exit(1);
	}
}

static void *pages_alloc(uint64_t nr)
{
	void *p = mmap(NULL, nr * FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return must(p == MAP_FAILED ? NULL : p);
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *v, unsigned n)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[n / 2];
}

/* --- a class: pages in an old and a new version --- */

struct set {
	const char *name;
	uint64_t nr, room;
	uint64_t *page;                 /* ascending */
	uint8_t *old, *new;             /* nr pages each; old NULL: the peer knows nothing of them */
};

static uint64_t seed = 1;

static uint64_t rnd(void)
{
	uint64_t z = seed += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static void fill_random(uint8_t *p)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 8)
		ft_put64(p + i, rnd());
}

static void fill_text(uint8_t *p)
{
	char line[64];
	size_t at = 0;

	while (at < FT_PAGE_SIZE) {
		int n = snprintf(line, sizeof(line), "%u.%06u GET /item/%u 200 %u\n", (unsigned)(rnd() % 1000000),
				 (unsigned)(rnd() % 1000000), (unsigned)(rnd() % 5000), (unsigned)(rnd() % 20000));
		size_t len = (size_t)n < FT_PAGE_SIZE - at ? (size_t)n : FT_PAGE_SIZE - at;

		memcpy(p + at, line, len);
		at += len;
	}
}

/* A heap: pointers into one region, small numbers, zeros. */
static void fill_heap(uint8_t *p)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 8)
		ft_put64(p + i, rnd() % 3 == 0 ? 0x7f3a10000000 + rnd() % 0x1000000 * 16 : rnd() % 3 ? 0 : rnd() % 1000);
}

static void fill_zero(uint8_t *p)
{
	memset(p, 0, FT_PAGE_SIZE);
}

/* @nr words change as most do: counters, pointers. */
static void change_words(uint8_t *p, int nr)
{
	while (nr-- > 0) {
		uint8_t *w = p + rnd() % 512 * 8;

		ft_put64(w, ft_le64(w) + 1 + rnd() % 4096);
	}
}

static void set_alloc(struct set *s, const char *name, uint64_t nr, bool old)
{
	*s = (struct set){ .name = name, .nr = nr, .room = nr };
	s->page = must(calloc(nr, sizeof(uint64_t)));
	s->new = pages_alloc(nr);
	s->old = old ? pages_alloc(nr) : NULL;
	for (uint64_t i = 0; i < nr; i++)
		s->page[i] = i;
}

static void set_free(struct set *s)
{
	munmap(s->new, s->room * FT_PAGE_SIZE);
	if (s->old)
		munmap(s->old, s->room * FT_PAGE_SIZE);
	free(s->page);
}

#define FIRST_COPY (-1)
#define REWRITTEN (-2)

static void synthetic(struct set *s, const char *name, void (*fill)(uint8_t *), int words, uint64_t nr)
{
	set_alloc(s, name, nr, words != FIRST_COPY);
	for (uint64_t i = 0; i < nr; i++) {
		uint8_t *p = s->new + i * FT_PAGE_SIZE;

		fill(p);
		if (s->old)
			memcpy(s->old + i * FT_PAGE_SIZE, p, FT_PAGE_SIZE);
		if (words == REWRITTEN)
			fill(p);
		change_words(p, words);
	}
}

/* --- the set as chunks, cut as capture would --- */

static uint64_t nr_chunks(const struct set *s)
{
	return (s->nr + FT_CHUNK_PAGES - 1) / FT_CHUNK_PAGES;
}

static void get_chunk(const struct set *s, uint8_t *version, uint64_t i, struct ft_chunk *c)
{
	uint64_t first = i * FT_CHUNK_PAGES;

	c->nr = (uint32_t)(s->nr - first < FT_CHUNK_PAGES ? s->nr - first : FT_CHUNK_PAGES);
	memcpy(c->page, s->page + first, c->nr * sizeof(uint64_t));
	c->data = version + first * FT_PAGE_SIZE;
}

static double gigabytes(const struct set *s)
{
	return (double)s->nr * FT_PAGE_SIZE / 1e9;
}

static uint64_t ram_pages(const struct set *s)
{
	return s->page[s->nr - 1] + 1;
}

/* --- what both senders do with their bytes --- */

struct seal {
	EVP_CIPHER_CTX *evp;
	uint8_t out[TLS_RECORD + 16];
};

static void seal_init(struct seal *s)
{
	static const uint8_t key[32] = { 1 };

	s->evp = must(EVP_CIPHER_CTX_new());
	EVP_EncryptInit_ex(s->evp, EVP_aes_256_gcm(), NULL, key, NULL);
}

static void seal_bytes(struct seal *s, const uint8_t *p, size_t len)
{
	uint8_t iv[12] = { 0 }, tag[16];
	int n;

	for (size_t at = 0; at < len; at += TLS_RECORD) {
		size_t part = len - at < TLS_RECORD ? len - at : TLS_RECORD;

		EVP_EncryptInit_ex(s->evp, NULL, NULL, NULL, iv);
		EVP_EncryptUpdate(s->evp, s->out, &n, p + at, (int)part);
		EVP_EncryptFinal_ex(s->evp, s->out + n, &n);
		EVP_CIPHER_CTX_ctrl(s->evp, EVP_CTRL_GCM_GET_TAG, 16, tag);
		iv[0]++;
	}
}

struct bench {
	struct ft_codec *cd, *peer;
	struct ft_shadow *shadow;
	struct seal seal;
	XXH3_state_t *sum;
	uint8_t *block;
	struct ft_codec_stats st;
};

static void bench_init(struct bench *b, const struct set *s)
{
	*b = (struct bench){ 0 };
	must_be(!ft_codec_new(&b->cd) && !ft_codec_new(&b->peer) && !ft_shadow_new(ram_pages(s), &b->shadow), "out of memory");
	b->sum = must(XXH3_createState());
	XXH3_64bits_reset(b->sum);
	b->block = must(malloc(FT_BLOCK_MAX));
	seal_init(&b->seal);
}

static void bench_free(struct bench *b)
{
	ft_codec_free(b->cd);
	ft_codec_free(b->peer);
	ft_shadow_free(b->shadow);
	XXH3_freeState(b->sum);
	EVP_CIPHER_CTX_free(b->seal.evp);
	free(b->block);
}

/* LZ4 and AES-GCM, nothing else. */
static void plain_chunk(struct bench *b, const struct set *s, uint64_t i)
{
	struct ft_chunk c;
	int raw, len;

	get_chunk(s, s->new, i, &c);
	raw = (int)(c.nr * FT_PAGE_SIZE);
	len = LZ4_compress_default((const char *)c.data, (char *)b->block, raw, (int)FT_BLOCK_MAX);
	if (len > 0 && len < raw)
		seal_bytes(&b->seal, b->block, (size_t)len);
	else
		seal_bytes(&b->seal, c.data, (size_t)raw);
}

static size_t codec_chunk(struct bench *b, const struct set *s, uint8_t *version, uint64_t i)
{
	struct ft_chunk c;
	ssize_t len;

	get_chunk(s, version, i, &c);
	len = ft_codec_encode(b->cd, b->shadow, &c, b->block, &b->st);
	must_be(len >= 0, "a chunk was refused");
	return (size_t)len;
}

/* All that the sender does with a chunk. */
static void our_chunk(struct bench *b, const struct set *s, uint64_t i)
{
	size_t len = codec_chunk(b, s, s->new, i);

	XXH3_64bits_update(b->sum, b->block, len);
	seal_bytes(&b->seal, b->block, len);
}

/* CPU seconds to encode all of @version. */
static double codec_run(struct bench *b, const struct set *s, uint8_t *version)
{
	double start = clock_s(CLOCK_THREAD_CPUTIME_ID);

	for (uint64_t i = 0; i < nr_chunks(s); i++)
		codec_chunk(b, s, version, i);
	return clock_s(CLOCK_THREAD_CPUTIME_ID) - start;
}

/*
 * Both senders over all chunks, a few chunks each in turn, so that what else this machine does hits both; and
 * each finds its chunks as cold as the other.
 */
static void compare(struct bench *b, const struct set *s, double *ours, double *plain)
{
	uint64_t nr = nr_chunks(s), group = nr < 8 ? 1 : 4;
	double t[3];

	*ours = *plain = 0;
	for (uint64_t i = 0; i < nr; i += group) {
		uint64_t end = i + group < nr ? i + group : nr;

		t[0] = clock_s(CLOCK_THREAD_CPUTIME_ID);
		for (uint64_t k = i; k < end; k++)
			plain_chunk(b, s, (k + nr / 2) % nr);
		t[1] = clock_s(CLOCK_THREAD_CPUTIME_ID);
		for (uint64_t k = i; k < end; k++)
			our_chunk(b, s, k);
		t[2] = clock_s(CLOCK_THREAD_CPUTIME_ID);
		*plain += t[1] - t[0];
		*ours += t[2] - t[1];
	}
}

/* The peer knows the old version again. */
static void rewind_to_old(struct bench *b, const struct set *s)
{
	if (s->old)
		codec_run(b, s, s->old);
	else
		ft_shadow_forget(b->shadow);
	b->st = (struct ft_codec_stats){ 0 };
}

/* CPU seconds of the receiver. */
static double decode_run(struct bench *b, const struct set *s, uint8_t *ram)
{
	double cpu = 0;
	uint32_t pages;

	rewind_to_old(b, s);
	for (uint64_t i = 0; i < nr_chunks(s); i++) {
		size_t len = codec_chunk(b, s, s->new, i);
		double start = clock_s(CLOCK_THREAD_CPUTIME_ID);

		if (!len)
			continue;
		must_be(!ft_codec_check(b->peer, b->block, len, ram_pages(s), &pages), "a block was refused");
		ft_codec_apply_checked(b->peer, ram);
		cpu += clock_s(CLOCK_THREAD_CPUTIME_ID) - start;
	}
	return cpu;
}

/* --- the encoder with all CPUs --- */

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	uint64_t done;
};

static int emit_nothing(void *ctx, uint32_t type, const void *body, size_t len)
{
	(void)ctx, (void)type, (void)body, (void)len;
	return 0;
}

static void note_done(void *ctx, uint64_t epoch, const struct ft_codec_stats *st)
{
	struct waiter *w = ctx;

	(void)st;
	pthread_mutex_lock(&w->lock);
	w->done = epoch;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static void encoder_epoch(struct ft_encoder *en, struct ft_staging *st, struct waiter *w, const struct set *s,
			  uint8_t *version, uint64_t epoch)
{
	struct ft_blob state = { 0 };

	must_be(!ft_encoder_begin(en, epoch, epoch - 1, 0), "begin failed");
	for (uint64_t i = 0; i < nr_chunks(s); i++) {
		struct ft_chunk *c = must(ft_staging_get(st, 60000));
		uint8_t *data = c->data;

		get_chunk(s, version, i, c);
		memcpy(data, c->data, c->nr * FT_PAGE_SIZE);
		c->data = data;
		c->epoch = epoch;
		c->batch = 0;
		must_be(!ft_encoder_chunk(en, c), "chunk failed");
	}
	must_be(!ft_encoder_end(en, &state), "end failed");
	pthread_mutex_lock(&w->lock);
	while (w->done < epoch)
		pthread_cond_wait(&w->cond, &w->lock);
	pthread_mutex_unlock(&w->lock);
}

/* Wall seconds from capture to the last record. */
static double encoder_run(const struct set *s)
{
	struct waiter w = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 };
	struct ft_encoder_config cfg = {
		.threads = (unsigned)sysconf(_SC_NPROCESSORS_ONLN), .nr_pages = ram_pages(s), .shadow = true,
		.emit = emit_nothing, .epoch_done = note_done, .ctx = &w,
	};
	struct ft_encoder *en;
	double start, wall;

	must_be(!ft_staging_new(32 << 20, &cfg.staging) && !ft_encoder_new(&cfg, &en), "out of memory");
	encoder_epoch(en, cfg.staging, &w, s, s->old ? s->old : s->new, 1);
	if (!s->old)
		ft_encoder_reset(en);
	start = clock_s(CLOCK_MONOTONIC);
	encoder_epoch(en, cfg.staging, &w, s, s->new, 2);
	wall = clock_s(CLOCK_MONOTONIC) - start;
	ft_encoder_free(en);
	ft_staging_free(cfg.staging);
	return wall;
}

/* --- one class --- */

static void measure(const struct set *s)
{
	double ratio[RUNS_MAX], ours[RUNS_MAX], plain[RUNS_MAX], bare[RUNS_MAX], all[RUNS_MAX];
	unsigned runs = quick ? 3 : 9;
	uint8_t *ram = pages_alloc(ram_pages(s));
	double gb = gigabytes(s), decode;
	struct ft_codec_stats st;
	struct bench b;

	bench_init(&b, s);
	codec_run(&b, s, s->new);               /* the shadow's memory is there from here on */
	for (unsigned i = 0; i < runs; i++) {
		rewind_to_old(&b, s);
		compare(&b, s, &ours[i], &plain[i]);
		ratio[i] = ours[i] / plain[i];
		rewind_to_old(&b, s);
		bare[i] = codec_run(&b, s, s->new) / gb;
		st = b.st;
		all[i] = encoder_run(s) / gb;
	}
	decode_run(&b, s, ram);                 /* RAM's memory is there, too */
	decode = decode_run(&b, s, ram) / gb;
	printf("{\"bench\": \"codec\", \"class\": \"%s\", \"pages\": %llu, \"encode_gbps\": %.2f, \"encode_all_gbps\": %.2f, "
	       "\"decode_gbps\": %.2f, \"ratio\": %.2f, \"cpu_s_per_gb\": %.3f, \"plain_cpu_s_per_gb\": %.3f, \"cpu_ratio\": %.2f, "
	       "\"unchanged\": %llu, \"zero\": %llu, \"delta\": %llu, \"whole\": %llu}\n",
	       s->name, (unsigned long long)s->nr, 1 / median(bare, runs), 1 / median(all, runs), decode > 0 ? 1 / decode : 0.0,
	       st.wire_bytes ? (double)st.raw_bytes / (double)st.wire_bytes : 0.0, median(ours, runs) / gb, median(plain, runs) / gb,
	       median(ratio, runs), (unsigned long long)st.unchanged, (unsigned long long)st.zero,
	       (unsigned long long)st.delta, (unsigned long long)st.whole);
	fflush(stdout);
	bench_free(&b);
	munmap(ram, ram_pages(s) * FT_PAGE_SIZE);
}

static void run_set(const struct set *s)
{
	if (s->nr && strstr(s->name, only))
		measure(s);
}

/* --- snapshots of a real guest --- */

static uint8_t *map_file(const char *dir, const char *name, uint64_t *nr)
{
	char path[4096];
	struct stat st;
	void *p;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)FT_PAGE_SIZE) {
		fprintf(stderr, "bench_codec: %s: not a file of pages\n", path);
		exit(1);
	}
	*nr = (uint64_t)st.st_size / FT_PAGE_SIZE;
	p = mmap(NULL, *nr * FT_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	close(fd);
	return must(p == MAP_FAILED ? NULL : p);
}

static int no_dots(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

/* The pages of @new that differ from @old; @old NULL: all pages. */
static void snapshot_set(struct set *s, const char *name, const uint8_t *old, const uint8_t *new, uint64_t nr)
{
	uint64_t n = 0;

	set_alloc(s, name, nr, old != NULL);
	for (uint64_t page = 0; page < nr; page++) {
		size_t at = page * FT_PAGE_SIZE;

		if (old && !memcmp(old + at, new + at, FT_PAGE_SIZE))
			continue;
		s->page[n] = page;
		memcpy(s->new + n * FT_PAGE_SIZE, new + at, FT_PAGE_SIZE);
		if (old)
			memcpy(s->old + n * FT_PAGE_SIZE, old + at, FT_PAGE_SIZE);
		n++;
	}
	s->nr = n;
}

static void run_directory(const char *dir)
{
	struct dirent **names;
	int n = scandir(dir, &names, no_dots, alphasort);
	uint8_t *last = NULL;
	uint64_t last_nr = 0;

	must_be(n > 0, "no snapshots in the directory");
	for (int i = 0; i < n; i++) {
		uint64_t nr;
		uint8_t *ram = map_file(dir, names[i]->d_name, &nr);
		char name[64];
		struct set s;

		must_be(!last || nr == last_nr, "snapshots differ in size");
		snprintf(name, sizeof(name), i ? "real-epoch-%d" : "real-first-copy", i);
		snapshot_set(&s, name, last, ram, nr);
		run_set(&s);
		set_free(&s);
		if (last)
			munmap(last, last_nr * FT_PAGE_SIZE);
		last = ram;
		last_nr = nr;
		free(names[i]);
	}
	munmap(last, last_nr * FT_PAGE_SIZE);
	free(names);
}

static void run_memcpy(void)
{
	uint64_t nr = quick ? 8192 : 32768;
	uint8_t *a = pages_alloc(nr), *b = pages_alloc(nr);
	double best = 1e9;

	memset(a, 1, nr * FT_PAGE_SIZE);
	for (unsigned i = 0; i < 8; i++) {
		double start = clock_s(CLOCK_THREAD_CPUTIME_ID), s;

		memcpy(b, a, nr * FT_PAGE_SIZE);
		__asm__ volatile("" : : "r"(b) : "memory");
		s = clock_s(CLOCK_THREAD_CPUTIME_ID) - start;
		if (i && s < best)
			best = s;
	}
	printf("{\"bench\": \"memcpy\", \"gbps\": %.2f}\n", (double)nr * FT_PAGE_SIZE / 1e9 / best);
	munmap(a, nr * FT_PAGE_SIZE);
	munmap(b, nr * FT_PAGE_SIZE);
}

static void run_synthetic(void)
{
	static const struct {
		const char *name;
		void (*fill)(uint8_t *);
		int words;              /* changed */
	} sets[] = {
		{ "zero", fill_zero, FIRST_COPY }, { "text", fill_text, FIRST_COPY }, { "heap", fill_heap, FIRST_COPY },
		{ "random", fill_random, FIRST_COPY }, { "unchanged", fill_heap, 0 }, { "delta-1-word", fill_heap, 1 },
		{ "delta-16-words", fill_heap, 16 }, { "delta-128-words", fill_heap, 128 }, { "delta-400-words", fill_heap, 400 },
		{ "rewritten-text", fill_text, REWRITTEN }, { "rewritten-random", fill_random, REWRITTEN },
	};
	uint64_t nr = quick ? 2048 : 8192;

	for (size_t i = 0; i < FT_ARRAY_LEN(sets); i++) {
		struct set s;

		if (!strstr(sets[i].name, only))
			continue;
		synthetic(&s, sets[i].name, sets[i].fill, sets[i].words, nr);
		run_set(&s);
		set_free(&s);
	}
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "qc:")) != -1) {
		if (opt == 'q') {
			quick = true;
		} else if (opt == 'c') {
			only = optarg;
		} else {
			fprintf(stderr, "usage: bench_codec [-q] [-c PART] [DIRECTORY...]\n");
			return 2;
		}
	}
	run_memcpy();
	for (int i = optind; i < argc; i++)
		run_directory(argv[i]);
	run_synthetic();
	return 0;
}
