// SPDX-License-Identifier: GPL-3.0-or-later
/* forgetful.c - see forgetful.h. */
#include "tests/lib/forgetful.h"

#include "tests/test.h"

#include <pthread.h>

#define SECTOR 512u
#define NR_INODES 256
#define NR_HANDLES 4096
#define NR_NAMES 64

struct change {                         /* of an inode, not yet synced, oldest first */
	struct change *next;
	bool size;                      /* the file's size becomes @at */
	uint64_t at;
	size_t len;
	uint8_t data[];
};

struct bytes {
	uint8_t *data;
	size_t size, room;
};

struct inode {
	struct bytes cached, stored;
	struct change *first, **last;
	bool locked;
	char path[64];                  /* under which it was made: for `only` */
};

struct name {
	char path[64];
	int inode;                      /* 0: free */
};

struct names {
	struct name name[NR_NAMES];
	struct names *next;             /* the state after the next change */
};

struct handle {
	int inode;                      /* 0: closed, or dead */
	bool has_lock;
};

struct forgetful {
	struct ft_disk_files files;
	pthread_mutex_t lock;
	struct inode inode[NR_INODES];
	int nr_inodes;
	struct handle handle[NR_HANDLES];
	int nr_handles;
	struct names *stored, *cached;  /* a list from what is durable to what is seen */
	unsigned steps, cut_at, fail_at;
	int fail_err, read_err;
	bool fail_stays, failed_keeps, off;
	unsigned lies;
	const char *only;
};

/* --- bytes --- */

static void resize(struct bytes *b, size_t size)
{
	if (size > b->room) {
		b->room = size * 2;
		b->data = realloc(b->data, b->room);
		CHECK(b->data != NULL);
	}
	if (size > b->size)
		memset(b->data + b->size, 0, size - b->size);
	b->size = size;
}

static void put_bytes(struct bytes *b, uint64_t at, const uint8_t *data, size_t len)
{
	if (at + len > b->size)
		resize(b, at + len);
	memcpy(b->data + at, data, len);
}

static void add_change(struct inode *in, bool size, uint64_t at, const void *data, size_t len)
{
	struct change *c = malloc(sizeof(*c) + len);

	CHECK(c != NULL);
	*c = (struct change){ .size = size, .at = at, .len = len };
	if (len && data)
		memcpy(c->data, data, len);
	else if (len)
		memset(c->data, 0, len);
	*in->last = c;
	in->last = &c->next;
	if (size)
		resize(&in->cached, at);
	else
		put_bytes(&in->cached, at, c->data, len);
}

static void drop_changes(struct inode *in)
{
	for (struct change *c = in->first, *next; c; c = next) {
		next = c->next;
		free(c);
	}
	in->first = NULL;
	in->last = &in->first;
}

static void store_all(struct inode *in)
{
	resize(&in->stored, in->cached.size);
	memcpy(in->stored.data, in->cached.data, in->cached.size);
	drop_changes(in);
}

static uint64_t roll(uint64_t *seed)
{
	*seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
	return *seed * 0x2545f4914f6cdd1dull >> 32;
}

/* As Linux after a failed sync: the pages count as clean, and nobody is told again. Sizes are metadata: journaled. */
static void lose_data(struct inode *in)
{
	for (struct change *c = in->first; c; c = c->next)
		if (c->size)
			resize(&in->stored, c->at);
	drop_changes(in);
}

/* Sectors of a write, each by itself; sometimes all, sometimes none of a whole file. */
static void store_some(struct inode *in, uint64_t *seed)
{
	unsigned mood = (unsigned)(roll(seed) % 5);             /* 0: none, 1: all */

	for (struct change *c = in->first; c; c = c->next) {
		if (c->size && (mood == 1 || (mood && roll(seed) % 2)))
			resize(&in->stored, c->at);
		for (size_t done = 0, n; done < c->len; done += n) {
			uint64_t at = c->at + done;

			n = SECTOR - at % SECTOR;
			n = n < c->len - done ? n : c->len - done;
			if (mood == 1 || (mood && roll(seed) % 2))
				put_bytes(&in->stored, at, c->data + done, n);
		}
	}
	resize(&in->cached, in->stored.size);
	if (in->stored.size)
		memcpy(in->cached.data, in->stored.data, in->stored.size);
	drop_changes(in);
	in->locked = false;
}

/* --- names --- */

static struct name *find(struct forgetful *fs, const char *path)
{
	for (int i = 0; i < NR_NAMES; i++)
		if (fs->cached->name[i].inode && !strcmp(fs->cached->name[i].path, path))
			return &fs->cached->name[i];
	return NULL;
}

static void change_names(struct forgetful *fs)
{
	struct names *n = malloc(sizeof(*n));

	CHECK(n != NULL);
	*n = *fs->cached;
	n->next = NULL;
	fs->cached->next = n;
	fs->cached = n;
}

static void set_name(struct forgetful *fs, const char *path, int inode)
{
	struct name *n = find(fs, path);

	for (int i = 0; !n && i < NR_NAMES; i++)
		if (!fs->cached->name[i].inode)
			n = &fs->cached->name[i];
	CHECK(n != NULL && strlen(path) < sizeof(n->path));
	strcpy(n->path, path);
	n->inode = inode;
}

/* Of the changes of names the oldest @nr are durable; the others, if they @stay, are still seen. */
static void store_names(struct forgetful *fs, size_t nr, bool stay)
{
	while (nr-- && fs->stored->next) {
		struct names *old = fs->stored;

		fs->stored = old->next;
		free(old);
	}
	for (struct names *n = stay ? NULL : fs->stored->next, *next; n; n = next) {
		next = n->next;
		free(n);
	}
	if (!stay) {
		fs->stored->next = NULL;
		fs->cached = fs->stored;
	}
}

static size_t nr_name_changes(const struct forgetful *fs)
{
	size_t nr = 0;

	for (const struct names *n = fs->stored; n->next; n = n->next)
		nr++;
	return nr;
}

/* --- steps; lock held --- */

static int step(struct forgetful *fs, const char *path)
{
	if (fs->off)
		return -EIO;
	if (fs->only && !strstr(path, fs->only))
		return 0;
	fs->steps++;
	if (fs->cut_at && fs->steps >= fs->cut_at) {
		fs->off = true;
		return -EIO;
	}
	if (fs->fail_at && (fs->steps == fs->fail_at || (fs->fail_stays && fs->steps > fs->fail_at)))
		return -fs->fail_err;
	return 0;
}

static struct inode *inode_of(struct forgetful *fs, int h)
{
	CHECK(h >= 0 && h < fs->nr_handles);
	return fs->handle[h].inode ? &fs->inode[fs->handle[h].inode] : NULL;
}

static int new_inode(struct forgetful *fs, const char *path)
{
	struct inode *in;

	CHECK(++fs->nr_inodes < NR_INODES);
	in = &fs->inode[fs->nr_inodes];
	in->last = &in->first;
	snprintf(in->path, sizeof(in->path), "%s", path);
	return fs->nr_inodes;
}

static int open_locked(struct forgetful *fs, const char *path, bool create, int *h)
{
	struct name *n = find(fs, path);
	int inode = n ? n->inode : 0, rc;

	if (fs->off)
		return -EIO;
	if (!inode && !create)
		return -ENOENT;
	if (!inode) {
		rc = step(fs, path);
		if (rc)
			return rc;
		inode = new_inode(fs, path);
		change_names(fs);
		set_name(fs, path, inode);
	}
	CHECK(fs->nr_handles < NR_HANDLES);
	fs->handle[fs->nr_handles] = (struct handle){ .inode = inode };
	*h = fs->nr_handles++;
	return 0;
}

static int fake_open(void *ctx, const char *path, bool create, int *h)
{
	struct forgetful *fs = ctx;
	int rc;

	pthread_mutex_lock(&fs->lock);
	rc = open_locked(fs, path, create, h);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static int fake_open_read(void *ctx, const char *path, int *h)
{
	return fake_open(ctx, path, false, h);
}

static int fake_size(void *ctx, int h, uint64_t *bytes)
{
	struct forgetful *fs = ctx;
	struct inode *in;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	*bytes = in ? in->cached.size : 0;
	pthread_mutex_unlock(&fs->lock);
	return in && !fs->off ? 0 : -EIO;
}

static int fake_identity(void *ctx, int h, uint64_t *inode, uint64_t *born_ns)
{
	struct forgetful *fs = ctx;

	*inode = (uint64_t)fs->handle[h].inode;
	*born_ns = 1;
	return 0;
}

/* Everything that changes bytes: the whole of it, or half when the step fails. */
static int change(struct forgetful *fs, int h, bool size, uint64_t at, const void *data, size_t len)
{
	struct inode *in;
	int rc;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	rc = in ? step(fs, in->path) : -EIO;
	if (!rc)
		add_change(in, size, at, data, len);
	else if (!fs->off && in && !size && len > 1)
		add_change(in, false, at, data, len / 2);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static int fake_truncate(void *ctx, int h, uint64_t bytes)
{
	return change(ctx, h, true, bytes, NULL, 0);
}

static int fake_pwrite(void *ctx, int h, const void *buf, size_t len, uint64_t at)
{
	return change(ctx, h, false, at, buf, len);
}

static int fake_zero(void *ctx, int h, uint64_t at, uint64_t len)
{
	return change(ctx, h, false, at, NULL, len);
}

static int fake_pread(void *ctx, int h, void *buf, size_t len, uint64_t at)
{
	struct forgetful *fs = ctx;
	struct inode *in;
	int rc = 0;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	if (!in || fs->off || at > in->cached.size || len > in->cached.size - at)
		rc = -EIO;
	else if (fs->read_err && (!fs->only || strstr(in->path, fs->only)))
		rc = -fs->read_err;
	else
		memcpy(buf, in->cached.data + at, len);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static bool fake_is_hole(void *ctx, int h, uint64_t at, uint64_t len)
{
	return false;
}

static int fake_sync(void *ctx, int h)
{
	struct forgetful *fs = ctx;
	struct inode *in;
	int rc;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	rc = in ? step(fs, in->path) : -EIO;
	if (!rc && !(fs->lies & FORGETFUL_SYNC))
		store_all(in);
	else if (rc && !fs->off && in)
		fs->failed_keeps ? store_all(in) : lose_data(in);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static int fake_lock(void *ctx, int h)
{
	struct forgetful *fs = ctx;
	struct inode *in;
	int rc = 0;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	if (!in || fs->off)
		rc = -EIO;
	else if (in->locked && !fs->handle[h].has_lock)
		rc = -EBUSY;
	else
		in->locked = fs->handle[h].has_lock = true;
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

/* @to NULL: unlink. */
static int rename_locked(struct forgetful *fs, const char *from, const char *to)
{
	int rc = fs->off ? -EIO : find(fs, from) ? step(fs, from) : -ENOENT, inode;

	if (rc)
		return rc;
	change_names(fs);
	inode = find(fs, from)->inode;
	find(fs, from)->inode = 0;
	if (to)
		set_name(fs, to, inode);
	return 0;
}

static int fake_rename(void *ctx, const char *from, const char *to)
{
	struct forgetful *fs = ctx;
	int rc;

	pthread_mutex_lock(&fs->lock);
	rc = rename_locked(fs, from, to);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static int fake_unlink(void *ctx, const char *path)
{
	return fake_rename(ctx, path, NULL);
}

static int fake_sync_dir(void *ctx, const char *dir)
{
	struct forgetful *fs = ctx;
	int rc;

	pthread_mutex_lock(&fs->lock);
	rc = step(fs, dir);
	if (!rc && !(fs->lies & FORGETFUL_SYNC_DIR))
		store_names(fs, SIZE_MAX, true);
	pthread_mutex_unlock(&fs->lock);
	return rc;
}

static void fake_close(void *ctx, int h)
{
	struct forgetful *fs = ctx;
	struct inode *in;

	pthread_mutex_lock(&fs->lock);
	in = inode_of(fs, h);
	if (in && fs->handle[h].has_lock)
		in->locked = false;
	fs->handle[h] = (struct handle){ 0 };
	pthread_mutex_unlock(&fs->lock);
}

/* --- for tests --- */

struct forgetful *forgetful_new(void)
{
	struct forgetful *fs = calloc(1, sizeof(*fs));

	CHECK(fs != NULL);
	pthread_mutex_init(&fs->lock, NULL);
	fs->stored = fs->cached = calloc(1, sizeof(*fs->stored));
	CHECK(fs->stored != NULL);
	fs->files = (struct ft_disk_files){
		.open = fake_open, .open_read = fake_open_read, .size = fake_size, .identity = fake_identity, .truncate = fake_truncate, .pread = fake_pread,
		.pwrite = fake_pwrite, .zero = fake_zero, .is_hole = fake_is_hole, .sync = fake_sync, .lock = fake_lock,
		.rename = fake_rename, .unlink = fake_unlink, .sync_dir = fake_sync_dir, .close = fake_close, .ctx = fs,
	};
	return fs;
}

void forgetful_free(struct forgetful *fs)
{
	for (int i = 1; i <= fs->nr_inodes; i++) {
		drop_changes(&fs->inode[i]);
		free(fs->inode[i].cached.data);
		free(fs->inode[i].stored.data);
	}
	store_names(fs, 0, false);
	free(fs->stored);
	pthread_mutex_destroy(&fs->lock);
	free(fs);
}

const struct ft_disk_files *forgetful_files(struct forgetful *fs)
{
	return &fs->files;
}

unsigned forgetful_steps(struct forgetful *fs)
{
	unsigned steps;

	pthread_mutex_lock(&fs->lock);
	steps = fs->steps;
	pthread_mutex_unlock(&fs->lock);
	return steps;
}

void forgetful_cut_at(struct forgetful *fs, unsigned at)
{
	pthread_mutex_lock(&fs->lock);
	fs->cut_at = at ? fs->steps + at : 0;
	pthread_mutex_unlock(&fs->lock);
}

void forgetful_fail_at(struct forgetful *fs, unsigned at, int err, bool stays)
{
	pthread_mutex_lock(&fs->lock);
	fs->fail_at = at ? fs->steps + at : 0;
	fs->fail_err = err;
	fs->fail_stays = stays;
	pthread_mutex_unlock(&fs->lock);
}

void forgetful_failed_sync_keeps(struct forgetful *fs, bool keeps)
{
	fs->failed_keeps = keeps;
}

void forgetful_fail_reads(struct forgetful *fs, int err)
{
	pthread_mutex_lock(&fs->lock);
	fs->read_err = err;
	pthread_mutex_unlock(&fs->lock);
}

bool forgetful_is_off(struct forgetful *fs)
{
	bool off;

	pthread_mutex_lock(&fs->lock);
	off = fs->off;
	pthread_mutex_unlock(&fs->lock);
	return off;
}

static void kill_handles(struct forgetful *fs)
{
	memset(fs->handle, 0, sizeof(fs->handle[0]) * (size_t)fs->nr_handles);
	for (int i = 1; i <= fs->nr_inodes; i++)
		fs->inode[i].locked = false;
}

void forgetful_power_on(struct forgetful *fs, uint64_t seed)
{
	uint64_t dice = seed * 0x9e3779b97f4a7c15ull + 1;

	pthread_mutex_lock(&fs->lock);
	kill_handles(fs);
	store_names(fs, roll(&dice) % (nr_name_changes(fs) + 1), false);
	for (int i = 1; i <= fs->nr_inodes; i++)
		store_some(&fs->inode[i], &dice);
	fs->steps = fs->cut_at = fs->fail_at = 0;
	fs->off = false;
	pthread_mutex_unlock(&fs->lock);
}

void forgetful_process_dies(struct forgetful *fs)
{
	pthread_mutex_lock(&fs->lock);
	kill_handles(fs);
	fs->cut_at = fs->fail_at = 0;
	fs->off = false;
	pthread_mutex_unlock(&fs->lock);
}

void forgetful_lie(struct forgetful *fs, unsigned which)
{
	fs->lies = which;
}

void forgetful_only(struct forgetful *fs, const char *part)
{
	pthread_mutex_lock(&fs->lock);
	fs->only = part;
	pthread_mutex_unlock(&fs->lock);
}

bool forgetful_exists(struct forgetful *fs, const char *path)
{
	bool there;

	pthread_mutex_lock(&fs->lock);
	there = find(fs, path) != NULL;
	pthread_mutex_unlock(&fs->lock);
	return there;
}

static struct inode *inode_at(struct forgetful *fs, const char *path)
{
	struct name *n = find(fs, path);

	if (!n)
		ft_test_fail(__FILE__, __LINE__, "no file %s", path);
	return &fs->inode[n->inode];
}

uint64_t forgetful_size(struct forgetful *fs, const char *path)
{
	uint64_t size;

	pthread_mutex_lock(&fs->lock);
	size = inode_at(fs, path)->cached.size;
	pthread_mutex_unlock(&fs->lock);
	return size;
}

void forgetful_read(struct forgetful *fs, const char *path, void *buf, size_t len, uint64_t at)
{
	struct inode *in;

	pthread_mutex_lock(&fs->lock);
	in = inode_at(fs, path);
	CHECK(at + len <= in->cached.size);
	memcpy(buf, in->cached.data + at, len);
	pthread_mutex_unlock(&fs->lock);
}

void forgetful_put(struct forgetful *fs, const char *path, const void *data, size_t len)
{
	struct inode *in;

	pthread_mutex_lock(&fs->lock);
	if (!find(fs, path)) {
		change_names(fs);
		set_name(fs, path, new_inode(fs, path));
	}
	store_names(fs, SIZE_MAX, true);
	in = inode_at(fs, path);
	resize(&in->cached, len);
	if (len)
		memcpy(in->cached.data, data, len);
	store_all(in);
	pthread_mutex_unlock(&fs->lock);
}

static void swallow(void *ctx, enum ft_log_level level, const char *line)
{
}

void forgetful_quiet(void)
{
	ft_log_divert(swallow, NULL);
}
