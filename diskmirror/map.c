// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * map.c - touched granules and the activity log; see ft/map.h.
 *
 * The file is made of sectors of 512 bytes, each with a hash of its own, because a disk writes a sector whole or not
 * at all: one header, the activity log (numbers of regions), the words. A region may gain bits in memory only while
 * the log on disk names it, for then a crash counts all of it as touched; so the words on disk may be late, but never
 * say less than is true together with the log. Bits that are cleared in memory may stay on disk: that is only work.
 */
#include "ft/map.h"

#include "diskmirror/map_priv.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <xxhash.h>

#define MAGIC 0x0031702d70616d66ull             /* "fmap-p1" */
#define SECTOR 512u
#define VALUES 63u                              /* 64-bit ones in a sector, before its hash */
#define SLOTS_MAX 65536u
#define BOOT_LEN 36u
#define FEW_REGIONS 4u                          /* a longer touch goes into the words at once: one sync for all of it */
#define NEVER UINT64_MAX                        /* no seq of the peer's confirms it */
#define NO_REGION UINT64_MAX

struct ft_map_tuning ft_map_tuning = { .slots = 1024 };         /* hot: 4 GiB; that much is compared after a crash */

struct region {
	uint64_t word;
	uint64_t disk;                  /* bits that are certainly on disk */
	uint64_t saving;                /* what is being written; becomes disk with the sync */
	uint64_t touched;               /* seq of the last touch */
	uint32_t slot;                  /* of the activity log, from 1; 0: cold */
	bool compared;
};

struct slot {
	uint64_t region;                /* or NO_REGION */
	uint64_t used;                  /* tick of the last touch */
};

struct ft_map {
	struct ft_disk_files f;
	int h;                          /* -1: none */
	char path[PATH_MAX];
	struct ft_map_image image;
	uint64_t nr_regions;
	unsigned nr_slots;

	pthread_mutex_t io;             /* of whoever writes the file; taken before: */
	pthread_mutex_t lock;           /* for all below; never held during I/O */
	struct region *region;
	uint64_t *summary;              /* a bit for each region with a word */
	uint64_t count;
	struct slot *slot;
	uint64_t tick;
	struct ft_disk_id id;
	bool unsafe;                    /* on disk, */
	bool unsafe_before;             /* since another boot */
	char boot[BOOT_LEN + 1];        /* of the unsafe mark */
	struct ft_log_limit limit;

	uint32_t *written;              /* sectors of words, since the last sync; io's */
	size_t nr_written;
};

/* --- sectors --- */

static uint64_t log_sectors(const struct ft_map *m)
{
	return (m->nr_slots + VALUES - 1) / VALUES;
}

static uint64_t word_sectors(const struct ft_map *m)
{
	return (m->nr_regions + VALUES - 1) / VALUES;
}

static uint64_t file_bytes(const struct ft_map *m)
{
	return (1 + log_sectors(m) + word_sectors(m)) * SECTOR;
}

/* The hash knows the place, so that a sector cannot stand for another. */
static uint64_t hash_sector(const uint8_t *buf, uint64_t nr)
{
	return XXH3_64bits_withSeed(buf, SECTOR - 8, nr + 1);
}

static int put_sector(struct ft_map *m, uint8_t *buf, uint64_t nr)
{
	ft_put64(buf + SECTOR - 8, hash_sector(buf, nr));
	return m->f.pwrite(m->f.ctx, m->h, buf, SECTOR, nr * SECTOR);
}

static int get_sector(struct ft_map *m, uint8_t *buf, uint64_t nr)
{
	int rc = m->f.pread(m->f.ctx, m->h, buf, SECTOR, nr * SECTOR);

	return rc ? rc : ft_le64(buf + SECTOR - 8) == hash_sector(buf, nr) ? 0 : -EBADMSG;
}

static int sync_map(struct ft_map *m)
{
	return m->f.sync(m->f.ctx, m->h);
}

/* A guest may try again and again. */
static int failed(struct ft_map *m, int rc)
{
	bool due;

	if (!rc)
		return 0;
	pthread_mutex_lock(&m->lock);
	due = ft_log_due(&m->limit, strerror(-rc));
	pthread_mutex_unlock(&m->lock);
	if (due)
		ft_err("%s: cannot write: %s", m->path, strerror(-rc));
	return rc;
}

/* --- words in memory; lock held --- */

static void set_word(struct ft_map *m, uint64_t region, uint64_t word)
{
	struct region *r = &m->region[region];

	m->count += (uint64_t)__builtin_popcountll(word) - (uint64_t)__builtin_popcountll(r->word);
	r->word = word;
	if (word)
		m->summary[region / 64] |= 1ull << region % 64;
	else
		m->summary[region / 64] &= ~(1ull << region % 64);
}

static uint64_t next_word(const struct ft_map *m, uint64_t region)
{
	uint64_t i = region / 64, bits;

	if (region >= m->nr_regions)
		return m->nr_regions;
	for (bits = m->summary[i] & UINT64_MAX << region % 64; !bits; bits = m->summary[i])
		if (++i * 64 >= m->nr_regions)
			return m->nr_regions;
	return i * 64 + (unsigned)__builtin_ctzll(bits);
}

static bool saved(const struct ft_map *m, uint64_t region)
{
	return !(m->region[region].word & ~m->region[region].disk);
}

/* --- words to disk; io held --- */

/* The sector @s of words. Until settle, only what was on disk before and is in it now counts as there. */
static int write_words(struct ft_map *m, uint64_t s)
{
	uint8_t buf[SECTOR] = { 0 };

	pthread_mutex_lock(&m->lock);
	for (uint64_t i = 0; i < VALUES && s * VALUES + i < m->nr_regions; i++) {
		struct region *r = &m->region[s * VALUES + i];

		r->saving = r->word;
		r->disk &= r->word;
		ft_put64(buf + 8 * i, r->word);
	}
	pthread_mutex_unlock(&m->lock);
	m->written[m->nr_written++] = (uint32_t)s;
	return put_sector(m, buf, 1 + log_sectors(m) + s);
}

/* Sync what was written, unless it went wrong with @rc. */
static int settle(struct ft_map *m, int rc)
{
	if (!rc && m->nr_written)
		rc = sync_map(m);
	pthread_mutex_lock(&m->lock);
	for (size_t w = 0; w < m->nr_written && !rc; w++)
		for (uint64_t i = 0, r = (uint64_t)m->written[w] * VALUES; i < VALUES && r < m->nr_regions; i++, r++)
			m->region[r].disk = m->region[r].saving;
	pthread_mutex_unlock(&m->lock);
	m->nr_written = 0;
	return rc;
}

/* Has the disk too little of the sector of words @s, or, if @exact, anything else? */
static bool sector_differs(struct ft_map *m, uint64_t s, bool exact)
{
	bool differs = false;

	pthread_mutex_lock(&m->lock);
	for (uint64_t r = s * VALUES; r < (s + 1) * VALUES && r < m->nr_regions && !differs; r++)
		differs = exact ? m->region[r].word != m->region[r].disk : !saved(m, r);
	pthread_mutex_unlock(&m->lock);
	return differs;
}

/* The words of @first to @last, and what shares their sectors. */
static int save_words(struct ft_map *m, uint64_t first, uint64_t last, bool exact)
{
	int rc = 0;

	for (uint64_t s = first / VALUES; s <= last / VALUES && !rc; s++)
		if (sector_differs(m, s, exact))
			rc = write_words(m, s);
	return settle(m, rc);
}

static bool is_written(const struct ft_map *m, uint64_t s)
{
	for (size_t w = 0; w < m->nr_written; w++)
		if (m->written[w] == s)
			return true;
	return false;
}

/* Of all hot regions, so that many of them can leave the log without a sync of their own. */
static int save_hot_words(struct ft_map *m, uint64_t leaving)
{
	int rc = write_words(m, leaving / VALUES);

	for (unsigned i = 0; i < m->nr_slots && !rc; i++) {
		uint64_t s = m->slot[i].region / VALUES;

		if (m->slot[i].region != NO_REGION && !is_written(m, s) && sector_differs(m, s, false))
			rc = write_words(m, s);
	}
	return settle(m, rc);
}

/* --- the activity log; io and lock held, lock released during I/O --- */

static int write_log(struct ft_map *m, unsigned slot)
{
	unsigned first = slot / VALUES * VALUES;
	uint8_t buf[SECTOR] = { 0 };
	int rc;

	for (unsigned i = 0; i < VALUES && first + i < m->nr_slots; i++)
		ft_put64(buf + 8 * i, m->slot[first + i].region + 1);   /* NO_REGION becomes 0 */
	pthread_mutex_unlock(&m->lock);
	rc = put_sector(m, buf, 1 + slot / VALUES);
	if (!rc)
		rc = sync_map(m);
	pthread_mutex_lock(&m->lock);
	return rc;
}

/* A free one, or the one not used for longest. */
static unsigned pick_slot(const struct ft_map *m)
{
	unsigned best = 0;

	for (unsigned i = 0; i < m->nr_slots; i++) {
		if (m->slot[i].region == NO_REGION)
			return i;
		if (m->slot[i].used < m->slot[best].used)
			best = i;
	}
	return best;
}

/* Its region is cold in memory first: from then on no bit is added to it, and its word can be made durable. */
static int empty_slot(struct ft_map *m, unsigned slot)
{
	uint64_t old = m->slot[slot].region;
	int rc = 0;

	if (old == NO_REGION)
		return 0;
	m->region[old].slot = 0;
	if (!saved(m, old)) {
		pthread_mutex_unlock(&m->lock);
		rc = save_hot_words(m, old);
		pthread_mutex_lock(&m->lock);
	}
	if (rc)
		m->region[old].slot = slot + 1;
	else
		m->slot[slot].region = NO_REGION;
	return rc;
}

static int enter_log(struct ft_map *m, uint64_t region)
{
	unsigned slot = pick_slot(m);
	int rc = empty_slot(m, slot);

	if (rc)
		return rc;
	m->slot[slot].region = region;
	rc = write_log(m, slot);
	if (rc)
		m->slot[slot].region = NO_REGION;       /* on disk it is the old one or the new one: too much at worst */
	else
		m->region[region].slot = slot + 1;
	return rc;
}

/* Lock held, and again when it returns. */
static int make_hot(struct ft_map *m, uint64_t region)
{
	int rc = 0;

	pthread_mutex_unlock(&m->lock);
	pthread_mutex_lock(&m->io);
	pthread_mutex_lock(&m->lock);
	if (!m->region[region].slot)
		rc = enter_log(m, region);
	pthread_mutex_unlock(&m->io);
	return rc;
}

/* --- touching --- */

static void mark(struct ft_map *m, uint64_t region, uint64_t word, uint64_t seq)
{
	struct region *r = &m->region[region];

	if ((r->word | word) != r->word)
		set_word(m, region, r->word | word);
	if (!seq)
		seq = NEVER;
	if (r->touched < seq)
		r->touched = seq;
}

/* The granules of @region between the granules @first and @last of the disk. */
static uint64_t part_of(uint64_t region, uint64_t first, uint64_t last)
{
	uint64_t begin = region * FT_REGION_GRANULES, end = begin + FT_REGION_GRANULES - 1;

	first = first > begin ? first - begin : 0;
	last = last < end ? last - begin : FT_REGION_GRANULES - 1;
	return UINT64_MAX << first & UINT64_MAX >> (63 - last);
}

static int touch_few(struct ft_map *m, uint64_t first, uint64_t last, uint64_t seq)
{
	int rc = 0;

	pthread_mutex_lock(&m->lock);
	for (uint64_t r = first / FT_REGION_GRANULES; r <= last / FT_REGION_GRANULES && !rc; r++) {
		if (!m->region[r].slot)
			rc = make_hot(m, r);
		if (rc)
			break;
		m->slot[m->region[r].slot - 1].used = ++m->tick;
		mark(m, r, part_of(r, first, last), seq);
	}
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static int touch_many(struct ft_map *m, uint64_t first, uint64_t last, uint64_t seq)
{
	uint64_t from = first / FT_REGION_GRANULES, to = last / FT_REGION_GRANULES;
	int rc;

	pthread_mutex_lock(&m->io);
	pthread_mutex_lock(&m->lock);
	for (uint64_t r = from; r <= to; r++)
		mark(m, r, part_of(r, first, last), seq);
	pthread_mutex_unlock(&m->lock);
	rc = save_words(m, from, to, false);
	pthread_mutex_unlock(&m->io);
	return rc;
}

int ft_map_touch(struct ft_map *m, uint64_t offset, uint64_t len, uint64_t seq)
{
	uint64_t first = offset / FT_GRANULE, last = (offset + len - 1) / FT_GRANULE;
	int rc;

	assert(len && offset < m->image.bytes && len <= m->image.bytes - offset);
	if (last / FT_REGION_GRANULES - first / FT_REGION_GRANULES < FEW_REGIONS)
		rc = touch_few(m, first, last, seq);
	else
		rc = touch_many(m, first, last, seq);
	return failed(m, rc);
}

int ft_map_touch_all(struct ft_map *m)
{
	return failed(m, touch_many(m, 0, (m->image.bytes - 1) / FT_GRANULE, 0));
}

void ft_map_add(struct ft_map *m, uint64_t region, uint64_t word)
{
	pthread_mutex_lock(&m->lock);
	if (region < m->nr_regions && (word &= ft_disk_granules(m->image.bytes, region)))
		mark(m, region, word, 0);
	pthread_mutex_unlock(&m->lock);
}

/* --- clean again --- */

void ft_map_copy_begins(struct ft_map *m)
{
	pthread_mutex_lock(&m->lock);
	for (uint64_t r = 0; r < m->nr_regions; r++) {
		m->region[r].compared = !m->region[r].word;
		m->region[r].touched = 0;       /* what the comparison finds is younger than what was touched before */
	}
	pthread_mutex_unlock(&m->lock);
}

void ft_map_compared(struct ft_map *m, uint64_t region, uint64_t seq)
{
	pthread_mutex_lock(&m->lock);
	if (region < m->nr_regions) {
		m->region[region].compared = true;
		if (m->region[region].touched < seq)
			m->region[region].touched = seq;
	}
	pthread_mutex_unlock(&m->lock);
}

void ft_map_durable(struct ft_map *m, uint64_t seq)
{
	pthread_mutex_lock(&m->lock);
	for (uint64_t r = next_word(m, 0); r < m->nr_regions; r = next_word(m, r + 1))
		if (m->region[r].compared && m->region[r].touched != NEVER && m->region[r].touched <= seq)
			set_word(m, r, 0);
	pthread_mutex_unlock(&m->lock);
}

uint64_t ft_map_word(struct ft_map *m, uint64_t region)
{
	uint64_t word;

	pthread_mutex_lock(&m->lock);
	word = region < m->nr_regions ? m->region[region].word : 0;
	pthread_mutex_unlock(&m->lock);
	return word;
}

uint64_t ft_map_next(struct ft_map *m, uint64_t region)
{
	pthread_mutex_lock(&m->lock);
	region = next_word(m, region);
	pthread_mutex_unlock(&m->lock);
	return region;
}

uint64_t ft_map_count(struct ft_map *m)
{
	uint64_t count;

	pthread_mutex_lock(&m->lock);
	count = m->count;
	pthread_mutex_unlock(&m->lock);
	return count;
}

/* --- the header: le64 magic, version and slots, bytes, inode, born, 0, id, le64 unsafe, boot id --- */

enum { AT_MAGIC = 0, AT_VERSION = 8, AT_SLOTS = 12, AT_BYTES = 16, AT_INODE = 24, AT_BORN = 32, AT_ID = 48, AT_UNSAFE = 80,
       AT_BOOT = 88 };

/* io held. In place: a sector is written whole or not at all, and a hash tells if a disk breaks that word. */
static int write_header(struct ft_map *m, const struct ft_disk_id *id, bool unsafe, const char *boot)
{
	uint8_t buf[SECTOR] = { 0 };
	int rc;

	ft_put64(buf + AT_MAGIC, MAGIC);
	ft_put32(buf + AT_VERSION, 1);
	ft_put32(buf + AT_SLOTS, m->nr_slots);
	ft_put64(buf + AT_BYTES, m->image.bytes);
	ft_put64(buf + AT_INODE, m->image.inode);
	ft_put64(buf + AT_BORN, m->image.born_ns);
	ft_disk_pack_id(id, buf + AT_ID);
	ft_put64(buf + AT_UNSAFE, unsafe);
	memcpy(buf + AT_BOOT, boot, BOOT_LEN);
	rc = put_sector(m, buf, 0);
	return rc ? rc : sync_map(m);
}

static int refuse(const struct ft_map *m, int rc, const char *what)
{
	ft_err("%s: %s - remove it, and the whole disk is compared when it is mirrored again", m->path, what);
	return rc;
}

static bool another_image(const struct ft_map_image *a, const struct ft_map_image *b)
{
	return a->bytes != b->bytes || a->inode != b->inode || (a->born_ns && b->born_ns && a->born_ns != b->born_ns);
}

static int read_header(struct ft_map *m)
{
	struct ft_map_image was;
	uint8_t buf[SECTOR];
	int rc = get_sector(m, buf, 0);

	if (rc == -EBADMSG || (!rc && (ft_le64(buf + AT_MAGIC) != MAGIC || ft_disk_unpack_id(buf + AT_ID, &m->id))))
		return refuse(m, -EBADMSG, "damaged");
	if (rc)
		return rc;
	m->nr_slots = ft_le32(buf + AT_SLOTS);
	if (ft_le32(buf + AT_VERSION) != 1 || !m->nr_slots || m->nr_slots > SLOTS_MAX)
		return refuse(m, -EBADMSG, "made by another version of ft");
	was = (struct ft_map_image){ ft_le64(buf + AT_BYTES), ft_le64(buf + AT_INODE), ft_le64(buf + AT_BORN) };
	if (another_image(&was, &m->image))
		return refuse(m, -ESTALE, "belongs to another image, or the image was replaced or changed its size");
	m->unsafe = ft_le64(buf + AT_UNSAFE);
	memcpy(m->boot, buf + AT_BOOT, BOOT_LEN);
	return m->id.bytes == m->image.bytes ? 0 : refuse(m, -EBADMSG, "damaged");
}

/* --- open --- */

static void get_boot_id(char out[BOOT_LEN + 1])
{
	struct ft_blob b = { 0 };

	memset(out, 0, BOOT_LEN + 1);
	if (ft_map_tuning.boot_id) {
		memcpy(out, ft_map_tuning.boot_id, strnlen(ft_map_tuning.boot_id, BOOT_LEN));
		return;
	}
	if (!ft_read_file("/proc/sys/kernel/random/boot_id", 64, &b))
		memcpy(out, b.data, b.len < BOOT_LEN ? b.len : BOOT_LEN);
	ft_blob_free(&b);       /* unknown: empty, and equal to no boot that was known */
}

static int read_log(struct ft_map *m)
{
	uint8_t buf[SECTOR];
	int rc;

	for (unsigned i = 0; i < m->nr_slots; i++) {
		uint64_t region;

		if (i % VALUES == 0 && (rc = get_sector(m, buf, 1 + i / VALUES)))
			return rc;
		region = ft_le64(buf + 8 * (i % VALUES)) - 1;
		if (region != NO_REGION && region >= m->nr_regions)
			return -EBADMSG;
		if (region == NO_REGION || m->region[region].slot)
			continue;
		m->slot[i].region = region;
		m->region[region].slot = i + 1;
		m->region[region].touched = NEVER;
		set_word(m, region, ft_disk_granules(m->image.bytes, region));
	}
	return 0;
}

static int read_words(struct ft_map *m)
{
	uint8_t buf[SECTOR];
	int rc;

	for (uint64_t r = 0; r < m->nr_regions; r++) {
		uint64_t word;

		if (r % VALUES == 0 && (rc = get_sector(m, buf, 1 + log_sectors(m) + r / VALUES)))
			return rc;
		word = ft_le64(buf + 8 * (r % VALUES));
		if (word & ~ft_disk_granules(m->image.bytes, r))
			return -EBADMSG;
		m->region[r].disk = word;
		m->region[r].touched = word ? NEVER : 0;
		set_word(m, r, word);
	}
	return 0;
}

static int alloc_regions(struct ft_map *m)
{
	m->nr_regions = ft_disk_regions(m->image.bytes);
	m->region = calloc(m->nr_regions, sizeof(*m->region));
	m->summary = calloc((m->nr_regions + 63) / 64, sizeof(*m->summary));
	m->slot = calloc(m->nr_slots, sizeof(*m->slot));
	m->written = calloc(word_sectors(m) + 1, sizeof(*m->written));
	if (!m->region || !m->summary || !m->slot || !m->written)
		return -ENOMEM;
	for (uint64_t r = 0; r < m->nr_regions; r++)
		m->region[r].compared = true;
	for (unsigned i = 0; i < m->nr_slots; i++)
		m->slot[i].region = NO_REGION;
	return 0;
}

/* Flushes were not honoured and the host went down: what the image lost, no word knows. */
static void look_at_unsafe(struct ft_map *m)
{
	char now[BOOT_LEN + 1];

	get_boot_id(now);
	m->unsafe_before = m->unsafe && (!*now || memcmp(now, m->boot, BOOT_LEN));
	if (!m->unsafe_before)
		return;
	for (uint64_t r = 0; r < m->nr_regions; r++)
		mark(m, r, ft_disk_granules(m->image.bytes, r), 0);
}

static int load(struct ft_map *m)
{
	int rc = read_header(m);

	if (!rc)
		rc = alloc_regions(m);
	if (rc)
		return rc;
	rc = read_words(m);
	if (!rc)
		rc = read_log(m);
	if (rc == -EBADMSG)
		return refuse(m, rc, "damaged");
	if (!rc)
		look_at_unsafe(m);
	return rc;
}

static int new_map(const struct ft_disk_files *f, const char *path, const struct ft_map_image *im, struct ft_map **out)
{
	struct ft_map *m = calloc(1, sizeof(*m));

	if (!m)
		return -ENOMEM;
	assert(im->bytes && im->bytes <= FT_DISK_BYTES_MAX);
	m->f = *f;
	m->h = -1;
	m->image = *im;
	pthread_mutex_init(&m->io, NULL);
	pthread_mutex_init(&m->lock, NULL);
	*out = m;
	return snprintf(m->path, sizeof(m->path), "%s", path) < (int)sizeof(m->path) ? 0 : -ENAMETOOLONG;
}

/* Opened, and nobody else's. */
static int open_file(struct ft_map *m, const char *path, bool create)
{
	int rc = m->f.open(m->f.ctx, path, create, &m->h);

	if (rc) {
		m->h = -1;
		return rc;
	}
	return m->f.lock(m->f.ctx, m->h);
}

static int cannot_open(const char *path, int rc)
{
	ft_err("%s: cannot open: %s", path, rc == -EBUSY ? "another process uses this disk" : strerror(-rc));
	return rc;
}

int ft_map_open(const struct ft_disk_files *f, const char *path, const struct ft_map_image *im, struct ft_map **out)
{
	struct ft_map *m = NULL;
	int rc = new_map(f, path, im, &m);

	if (!rc)
		rc = open_file(m, path, false);
	if (!rc)
		rc = load(m);
	if (!rc) {
		*out = m;
		return 0;
	}
	ft_map_abandon(m);
	return rc == -ENOENT || rc == -EBADMSG || rc == -ESTALE ? rc : cannot_open(path, rc);
}

/* --- create --- */

static int write_new(struct ft_map *m, const struct ft_disk_id *id)
{
	uint8_t buf[SECTOR];
	int rc = 0;

	for (uint64_t s = 0; s < log_sectors(m) && !rc; s++) {
		memset(buf, 0, SECTOR);
		rc = put_sector(m, buf, 1 + s);
	}
	for (uint64_t r = 0; r < m->nr_regions; r++)
		mark(m, r, ft_disk_granules(m->image.bytes, r), 0);
	if (!rc)
		rc = save_words(m, 0, m->nr_regions - 1, true);
	m->id = *id;
	m->id.bytes = m->image.bytes;
	return rc ? rc : write_header(m, &m->id, false, m->boot);
}

/* Whole under another name first, so that there is always one whole map. */
static int create(struct ft_map *m, const struct ft_disk_id *id)
{
	char tmp[PATH_MAX + 8], dir[PATH_MAX];
	int rc;

	m->nr_slots = ft_map_tuning.slots;
	snprintf(tmp, sizeof(tmp), "%s.new", m->path);
	rc = open_file(m, tmp, true);
	if (!rc)
		rc = alloc_regions(m);
	if (!rc)
		rc = m->f.truncate(m->f.ctx, m->h, 0);
	if (!rc)
		rc = m->f.truncate(m->f.ctx, m->h, file_bytes(m));
	if (!rc)
		rc = write_new(m, id);
	if (!rc)
		rc = m->f.rename(m->f.ctx, tmp, m->path);
	if (rc)
		return rc;
	rc = ft_parent_dir(m->path, dir, sizeof(dir));
	return rc ? rc : m->f.sync_dir(m->f.ctx, dir);
}

int ft_map_create(const struct ft_disk_files *f, const char *path, const struct ft_map_image *im, const struct ft_disk_id *id,
		  struct ft_map **out)
{
	struct ft_map *m = NULL;
	int rc = new_map(f, path, im, &m);

	if (!rc)
		rc = create(m, id);
	if (!rc) {
		*out = m;
		return 0;
	}
	ft_err("%s: cannot make it: %s", path, rc == -EBUSY ? "another process uses this disk" : strerror(-rc));
	ft_map_abandon(m);
	return rc;
}

/* --- id and mark --- */

void ft_map_id(struct ft_map *m, struct ft_disk_id *out)
{
	pthread_mutex_lock(&m->lock);
	*out = m->id;
	pthread_mutex_unlock(&m->lock);
}

int ft_map_set_id(struct ft_map *m, const struct ft_disk_id *id)
{
	struct ft_disk_id new = *id;
	int rc;

	assert(!(id->flags & FT_DISK_FRESH));
	new.bytes = m->image.bytes;
	pthread_mutex_lock(&m->io);
	rc = write_header(m, &new, m->unsafe, m->boot);
	if (!rc) {
		pthread_mutex_lock(&m->lock);
		m->id = new;
		pthread_mutex_unlock(&m->lock);
	}
	pthread_mutex_unlock(&m->io);
	return failed(m, rc);
}

/* io held. One write: there is no moment between two marks. */
static int change_unsafe(struct ft_map *m, bool unsafe)
{
	char boot[BOOT_LEN + 1] = "";
	int rc = 0;

	if (unsafe)
		get_boot_id(boot);
	if (m->unsafe_before)
		rc = save_words(m, 0, m->nr_regions - 1, false);        /* what open has added */
	if (!rc)
		rc = write_header(m, &m->id, unsafe, boot);
	if (rc)
		return rc;
	pthread_mutex_lock(&m->lock);
	m->unsafe = unsafe;
	m->unsafe_before = false;
	memcpy(m->boot, boot, sizeof(boot));
	pthread_mutex_unlock(&m->lock);
	return 0;
}

static int set_unsafe(struct ft_map *m, bool unsafe, bool anew)
{
	int rc = 0;

	pthread_mutex_lock(&m->io);
	if (anew || !unsafe || !m->unsafe_before)       /* else it stays what it was: since an earlier boot */
		rc = change_unsafe(m, unsafe);
	pthread_mutex_unlock(&m->io);
	return failed(m, rc);
}

int ft_map_set_unsafe(struct ft_map *m, bool unsafe)
{
	return set_unsafe(m, unsafe, false);
}

int ft_map_unsafe_anew(struct ft_map *m)
{
	return set_unsafe(m, true, true);
}

int ft_map_lost(struct ft_map *m)
{
	static const char no_boot[BOOT_LEN + 1];
	int rc;

	pthread_mutex_lock(&m->io);
	rc = write_header(m, &m->id, true, no_boot);
	if (!rc) {
		pthread_mutex_lock(&m->lock);
		m->unsafe = m->unsafe_before = true;
		memcpy(m->boot, no_boot, sizeof(no_boot));
		pthread_mutex_unlock(&m->lock);
	}
	pthread_mutex_unlock(&m->io);
	return failed(m, rc);
}

bool ft_map_unsafe(const struct ft_map *m)
{
	return m->unsafe_before;
}

int ft_map_save(struct ft_map *m)
{
	int rc;

	pthread_mutex_lock(&m->io);
	rc = save_words(m, 0, m->nr_regions - 1, true);
	pthread_mutex_unlock(&m->io);
	return failed(m, rc);
}

/* --- close --- */

static bool log_used(const struct ft_map *m)
{
	for (unsigned i = 0; i < m->nr_slots; i++)
		if (m->slot[i].region != NO_REGION)
			return true;
	return false;
}

static int empty_log(struct ft_map *m)
{
	uint8_t buf[SECTOR];
	int rc = 0;

	for (uint64_t s = 0; s < log_sectors(m) && !rc; s++) {
		memset(buf, 0, SECTOR);
		rc = put_sector(m, buf, 1 + s);
	}
	return rc ? rc : sync_map(m);
}

int ft_map_close(struct ft_map *m)
{
	int rc = save_words(m, 0, m->nr_regions - 1, true);

	if (!rc && log_used(m))
		rc = empty_log(m);
	failed(m, rc);
	ft_map_abandon(m);
	return rc;
}

void ft_map_abandon(struct ft_map *m)
{
	if (!m)
		return;
	if (m->h >= 0)
		m->f.close(m->f.ctx, m->h);
	pthread_mutex_destroy(&m->io);
	pthread_mutex_destroy(&m->lock);
	free(m->region);
	free(m->summary);
	free(m->slot);
	free(m->written);
	free(m);
}
