// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fuzz_store.c - hostile DISK bodies, and files that say they are a journal or a map, into the store, on files in
 * memory. Beside it a model of one whole copy: after each commit the image is the model's last whole epoch.
 *
 * First byte: bit 0: durability journal; bit 1: everything spills; bits 2 and 3: what follows first are a journal's, a
 * map's bytes.
 */
#include "diskmirror/map_priv.h"
#include "diskmirror/store_priv.h"
#include "ft/disk.h"
#include "ft/image.h"
#include "ft/store.h"

#include <xxhash.h>

#define BYTES (2 * FT_GRANULE + 512)
#define NR_FILES 16
#define FILE_MAX (1u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* --- files in memory --- */

static struct file {
	char path[32];                  /* "": no name */
	uint8_t *data;
	size_t size;
} file[NR_FILES];
static int nr_files;

static int find(const char *path)
{
	for (int i = 0; i < nr_files; i++)
		if (!strcmp(file[i].path, path))
			return i;
	return -1;
}

static int mem_open(void *ctx, const char *path, bool create, int *h)
{
	*h = find(path);
	if (*h >= 0)
		return 0;
	if (!create)
		return -ENOENT;
	assert(nr_files < NR_FILES && strlen(path) < sizeof(file[0].path));
	*h = nr_files++;
	strcpy(file[*h].path, path);
	file[*h].size = 0;
	if (!file[*h].data)
		file[*h].data = malloc(FILE_MAX);
	return 0;
}

static int mem_size(void *ctx, int h, uint64_t *bytes)
{
	*bytes = file[h].size;
	return 0;
}

static int mem_identity(void *ctx, int h, uint64_t *inode, uint64_t *born_ns)
{
	*inode = *born_ns = 1;
	return 0;
}

static int mem_truncate(void *ctx, int h, uint64_t bytes)
{
	if (bytes > FILE_MAX)
		return -EFBIG;
	if (bytes > file[h].size)
		memset(file[h].data + file[h].size, 0, bytes - file[h].size);
	file[h].size = bytes;
	return 0;
}

static int mem_pread(void *ctx, int h, void *buf, size_t len, uint64_t at)
{
	if (at > file[h].size || len > file[h].size - at)
		return -EIO;
	memcpy(buf, file[h].data + at, len);
	return 0;
}

static int mem_pwrite(void *ctx, int h, const void *buf, size_t len, uint64_t at)
{
	if (at + len > FILE_MAX)
		return -ENOSPC;
	if (at + len > file[h].size && mem_truncate(ctx, h, at + len))
		return -ENOSPC;
	if (buf)
		memcpy(file[h].data + at, buf, len);
	else
		memset(file[h].data + at, 0, len);
	return 0;
}

static int mem_zero(void *ctx, int h, uint64_t at, uint64_t len)
{
	return mem_pwrite(ctx, h, NULL, len, at);
}

static bool mem_is_hole(void *ctx, int h, uint64_t at, uint64_t len)
{
	return false;
}

static int mem_nothing(void *ctx, int h)
{
	return 0;
}

static int mem_unlink(void *ctx, const char *path)
{
	int h = find(path);

	if (h < 0)
		return -ENOENT;
	file[h].path[0] = 0;
	return 0;
}

static int mem_rename(void *ctx, const char *from, const char *to)
{
	int h = find(from);

	if (h < 0)
		return -ENOENT;
	mem_unlink(ctx, to);
	strcpy(file[h].path, to);
	return 0;
}

static int mem_sync_dir(void *ctx, const char *dir)
{
	return 0;
}

static void mem_close(void *ctx, int h)
{
}

static const struct ft_disk_files files = {
	.open = mem_open, .size = mem_size, .identity = mem_identity, .truncate = mem_truncate, .pread = mem_pread,
	.pwrite = mem_pwrite, .zero = mem_zero, .is_hole = mem_is_hole, .sync = mem_nothing, .lock = mem_nothing,
	.rename = mem_rename, .unlink = mem_unlink, .sync_dir = mem_sync_dir, .close = mem_close,
};

/* --- input --- */

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

/* Bytes of a file, with the hashes that it would have. */
static void make_file(const char *path, struct input *in, bool journal)
{
	const uint8_t *p;
	size_t len = bytes(in, &p);
	uint8_t *d;
	int h;

	must(!mem_open(NULL, path, true, &h) && !mem_pwrite(NULL, h, p, len, 0));
	d = file[h].data;
	if (journal && len >= 544) {
		uint32_t body = ft_le32(d + 512 + 16);

		ft_put64(d, 0x316c6e6a2d7466ull);
		ft_put64(d + 24, XXH3_64bits(d, 24));
		ft_put32(d + 512, 0x43455246u);
		if (body <= len - 544)
			ft_put64(d + 512 + 24, XXH3_64bits_withSeed(d + 512, 24, XXH3_64bits_withSeed(d + 544, body, ft_le64(d + 8))));
	}
	for (size_t s = 0; !journal && (s + 1) * 512 <= len; s++)
		ft_put64(d + s * 512 + 504, XXH3_64bits_withSeed(d + s * 512, 504, s + 1));
}

/* --- the model --- */

static struct {
	uint8_t open[BYTES], whole[BYTES], applied[BYTES];
	bool in_epoch, usable, direct, torn, held;
	uint64_t epoch, whole_epoch, seq, whole_seq;
} m;

static void op(struct ft_store *st, struct input *in)
{
	static uint8_t raw[FT_DISK_BATCH_MAX], body[FT_DISK_BODY_MAX];
	struct ft_disk_op o = { m.seq + byte(in), (uint64_t)byte(in) << 9 | byte(in), 0, 1 + byte(in) % 3 };
	size_t len;
	int rc;

	o.len = o.op == FT_DISK_MARK ? 0 : (uint32_t)byte(in) << 9 | byte(in);
	ft_disk_pack_op(&o, raw);
	len = FT_DISK_OP_LEN + (o.op == FT_DISK_WRITE ? o.len : 0);
	memset(raw + FT_DISK_OP_LEN, byte(in), len - FT_DISK_OP_LEN);
	rc = ft_store_batch(st, body, ft_disk_pack_batch(0, raw, len, 1, body));
	if (rc) {
		m.in_epoch = false;
		return;
	}
	must(m.in_epoch && o.seq > m.seq && o.offset + o.len <= BYTES);
	if (o.op != FT_DISK_MARK)
		memset(m.open + o.offset, o.op == FT_DISK_WRITE ? raw[FT_DISK_OP_LEN] : 0, o.len);
	m.seq = o.seq;
	m.torn |= m.direct;
}

static void begin(struct ft_store *st, struct input *in)
{
	uint32_t flags = byte(in) & 3;
	uint64_t epoch = m.whole_epoch + byte(in);

	m.in_epoch = !ft_store_begin(st, epoch, flags);
	if (!m.in_epoch)
		return;
	must(flags & FT_EPOCH_FULL || (m.usable && epoch > m.whole_epoch));
	m.direct = flags & FT_EPOCH_DIRECT;
	m.epoch = epoch;
	m.usable &= !m.direct;
	memcpy(m.open, m.direct ? file[find("/i")].data : m.whole, BYTES);
	m.seq = flags & FT_EPOCH_FULL ? 0 : m.whole_seq;        /* an epoch that got nowhere has used up none */
}

static void whole(struct ft_store *st)
{
	if (ft_store_whole(st)) {
		m.in_epoch = false;
		return;
	}
	must(m.in_epoch);
	m.in_epoch = false;
	m.usable = true;
	m.whole_epoch = m.epoch;
	m.whole_seq = m.seq;
	memcpy(m.whole, m.open, BYTES);
	if (m.direct) {
		memcpy(m.applied, m.open, BYTES);
		m.torn = false;
	}
}

static void commit(struct ft_store *st)
{
	must(!ft_store_commit(st));
	if (!m.held && m.usable && !m.torn)
		memcpy(m.applied, m.whole, BYTES);
}

static void step(struct ft_store *st, struct input *in)
{
	uint8_t hashes[64 * FT_HASH_LEN];
	const uint8_t *p;
	uint64_t seq;
	size_t len;

	switch (byte(in) % 10) {
	case 0: case 1: begin(st, in); break;
	case 2: case 3: op(st, in); break;
	case 4:                         /* whatever it is: the epoch does not get whole with it */
		len = bytes(in, &p);
		(void)!ft_store_batch(st, p, len);
		ft_store_discard_partial(st);
		m.in_epoch = false;
		m.torn |= m.direct;
		break;
	case 5: whole(st); break;
	case 6: commit(st); break;
	case 7: m.held = !m.held, ft_store_hold(st, m.held); break;
	case 8: must(!ft_store_sync(st)), ft_store_durable(st, 0, &seq); break;
	case 9:
		must(ft_store_hashes(st, byte(in), byte(in), byte(in), hashes) <= 64);
		if (!m.held)
			commit(st);
		break;
	}
}

static void run(const struct ft_store_config *cfg, struct input *in)
{
	struct ft_disk_id peer = { .bytes = BYTES, .current = 5 };
	struct ft_store *st;
	char why[256];

	if (ft_store_open(cfg, &st))
		return;
	memcpy(m.whole, file[find("/i")].data, BYTES);
	memcpy(m.applied, m.whole, BYTES);
	if (!ft_store_peer(st, &peer, 1, why, sizeof(why)))
		while (in->left) {
			step(st, in);
			must(m.torn || m.in_epoch || !memcmp(file[find("/i")].data, m.applied, BYTES));
		}
	ft_store_free(st);
}

static void swallow(void *ctx, enum ft_log_level level, const char *line)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ft_store_config cfg = {
		.guest = "g", .nr_disks = 1, .disk = { { "/i", BYTES } }, .state_dir = "/s", .journal_bound = 1 << 19, .files = &files,
	};
	struct input in = { data, size };
	uint8_t how = byte(&in);

	ft_log_divert(swallow, NULL);
	ft_store_tuning.sync_ms = 0;
	ft_map_tuning.slots = 2;
	ft_map_tuning.boot_id = "boot";
	for (int i = 0; i < nr_files; i++)
		file[i].path[0] = 0;
	nr_files = 0;
	memset(&m, 0, sizeof(m));
	cfg.durability = how & 1 ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY;
	cfg.memory_bound = how & 2 ? 0 : 1 << 20;
	if (how & 12) {
		int h;

		must(!mem_open(NULL, "/i", true, &h) && !mem_truncate(NULL, h, BYTES));
	}
	if (how & 4)
		make_file("/s/g.journal0", &in, true);
	if (how & 8)
		make_file("/s/g.disk0.map", &in, false);
	run(&cfg, &in);
	return 0;
}
