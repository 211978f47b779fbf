// SPDX-License-Identifier: GPL-3.0-or-later
/* test_record.c - a record survives power cuts whole, and only says what the protocol can mean. */
#include "ft/record.h"
#include "tests/test.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- a disk that forgets: what was not fsynced may be lost at a power cut --- */

struct bytes {
	char data[256];
	size_t len;
};

struct names {                          /* of inodes; 0: no such file */
	int record, tmp;
};

struct disk {
	struct { struct bytes cached, stored; } inode[64];
	int nr_inodes;
	struct names cached, stored;
	int steps, cut_at;              /* power fails before this step; 0: never */
	bool lying_sync, lying_sync_dir;
};

static int step(struct disk *d)
{
	return ++d->steps == d->cut_at ? -EIO : 0;
}

static int *name_of(struct disk *d, const char *path)
{
	return strstr(path, ".tmp") ? &d->cached.tmp : &d->cached.record;
}

static int disk_begin(void *ctx, const char *tmp, int *h)
{
	struct disk *d = ctx;
	int *name = name_of(d, tmp);

	if (step(d))
		return -EIO;
	if (!*name)
		*name = ++d->nr_inodes;
	d->inode[*name].cached.len = 0;
	*h = *name;
	return 0;
}

static int disk_read(void *ctx, const char *path, size_t max, struct ft_blob *out)
{
	struct disk *d = ctx;
	int inode = *name_of(d, path);

	if (!inode)
		return -ENOENT;
	return ft_blob_copy(out, d->inode[inode].cached.data, d->inode[inode].cached.len);
}

static int disk_write(void *ctx, int h, const void *data, size_t len)
{
	struct disk *d = ctx;

	CHECK(len <= sizeof(d->inode[h].cached.data));
	if (step(d))
		return -EIO;
	memcpy(d->inode[h].cached.data, data, len);
	d->inode[h].cached.len = len;
	return 0;
}

static int disk_sync(void *ctx, int h)
{
	struct disk *d = ctx;

	if (step(d))
		return -EIO;
	if (!d->lying_sync)
		d->inode[h].stored = d->inode[h].cached;
	return 0;
}

static int disk_rename(void *ctx, const char *from, const char *to)
{
	struct disk *d = ctx;

	if (step(d))
		return -EIO;
	*name_of(d, to) = *name_of(d, from);
	*name_of(d, from) = 0;
	return 0;
}

static int disk_sync_dir(void *ctx, const char *dir)
{
	struct disk *d = ctx;

	if (step(d))
		return -EIO;
	if (!d->lying_sync_dir)
		d->stored = d->cached;
	return 0;
}

static void disk_end(void *ctx, int h)
{
}

static struct ft_file_ops disk_ops(struct disk *d)
{
	return (struct ft_file_ops){
		.begin = disk_begin, .read = disk_read, .write = disk_write, .sync = disk_sync,
		.rename = disk_rename, .sync_dir = disk_sync_dir, .end = disk_end, .ctx = d,
	};
}

/* Every way a cut can end: names cached or stored; of unsynced bytes all, half or none reached the disk. */
#define NR_OUTCOMES 6
static void power_cut(struct disk *d, int outcome)
{
	if (outcome % 2)
		d->cached = d->stored;
	d->stored = d->cached;
	for (int i = 1; i <= d->nr_inodes; i++) {
		struct bytes *c = &d->inode[i].cached, *s = &d->inode[i].stored;

		if (outcome / 2 == 1 && c->len != s->len)
			c->len = (c->len + s->len) / 2;
		else if (outcome / 2 == 2)
			*c = *s;
		*s = *c;
	}
	d->cut_at = 0;
}

static const struct ft_record before = { 7, FT_ROLE_ARMED, "alpha" }, after = { 8, FT_ROLE_RUNNING, "alpha" };

static struct disk disk_with_a_record(void)
{
	struct disk d = { 0 };
	struct ft_file_ops ops = disk_ops(&d);

	CHECK_OK(ft_record_save(&ops, "/var/lib/ft", "vm1", &before));
	d.steps = 0;
	return d;
}

static bool same(const struct ft_record *a, const struct ft_record *b)
{
	return a->generation == b->generation && a->role == b->role && !strcmp(a->peer, b->peer);
}

/* Cut a save at @cut_at (0: not at all) with @outcome. What is found afterwards? */
static int cut_save(struct disk *d, int cut_at, int outcome, struct ft_record *found, bool *saved)
{
	struct ft_file_ops ops = disk_ops(d);

	d->cut_at = cut_at;
	*saved = ft_record_save(&ops, "/var/lib/ft", "vm1", &after) == 0;
	power_cut(d, outcome);
	return ft_record_load(&ops, "/var/lib/ft", "vm1", found);
}

TEST(a_power_cut_at_any_step_leaves_the_old_or_the_new_record_whole)
{
	int old = 0, new = 0;

	for (int cut_at = 0; cut_at <= 5; cut_at++)
		for (int outcome = 0; outcome < NR_OUTCOMES; outcome++) {
			struct disk d = disk_with_a_record();
			struct ft_file_ops ops = disk_ops(&d);
			struct ft_record found;
			bool saved;

			CHECK_OK(cut_save(&d, cut_at, outcome, &found, &saved));
			CHECK_EQ(saved, cut_at == 0);
			CHECK(same(&found, &after) || (!saved && same(&found, &before)));
			same(&found, &after) ? new++ : old++;
			/* and what the cut left behind does not hinder the next save */
			CHECK_OK(ft_record_save(&ops, "/var/lib/ft", "vm1", &after));
		}
	CHECK(old > 0 && new > 0);
}

TEST(a_disk_that_lies_about_sync_is_caught_by_the_same_cuts)
{
	for (int lie = 0; lie < 2; lie++) {
		int wrong = 0;

		for (int outcome = 0; outcome < NR_OUTCOMES; outcome++) {
			struct disk d = disk_with_a_record();
			struct ft_record found;
			bool saved;

			d.lying_sync = lie == 0;
			d.lying_sync_dir = lie == 1;
			if (cut_save(&d, 0, outcome, &found, &saved) || !same(&found, &after))
				wrong++;
			CHECK(saved);
		}
		CHECK(wrong > 0);
	}
}

/* --- on the real file system --- */

static void write_text(const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/vm1.record", ft_test_dir());
	CHECK_OK(ft_write_file(path, text, strlen(text), 0600));
}

TEST(no_file_means_never_protected)
{
	struct ft_record r;

	CHECK_OK(ft_record_load(NULL, ft_test_dir(), "vm1", &r));
	CHECK_EQ(r.generation, 0);
	CHECK_EQ(r.role, FT_ROLE_NONE);
	CHECK_STR(r.peer, "");
}

TEST(what_was_saved_is_loaded)
{
	struct ft_record r;

	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm1", &before));
	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm2", &(struct ft_record){ UINT64_MAX, FT_ROLE_PRIMARY, "" }));
	CHECK_OK(ft_record_load(NULL, ft_test_dir(), "vm1", &r));
	CHECK(same(&r, &before));
	CHECK_OK(ft_record_load(NULL, ft_test_dir(), "vm2", &r));
	CHECK_EQ(r.generation, UINT64_MAX);
	CHECK_STR(r.peer, "");
}

TEST(a_damaged_record_is_refused_with_the_remedy_and_never_replaced)
{
	static const char *const bad[] = {
		"", "\n", "ft-record 1 7 ARMED alpha 00000000\n", "ft-record 1 7 ARMED alpha\n",
		"ft-record 2 7 ARMED alpha 12345678\n", "ft-record 1 -7 ARMED alpha 12345678\n",
		"ft-record 1 7 KING alpha 12345678\n", "ft-record 1 7 ARMED ../x 12345678\n",
	};
	struct ft_record r;

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		write_text(bad[i]);
		CHECK_EQ(ft_record_load(NULL, ft_test_dir(), "vm1", &r), -EBADMSG);
		CHECK_EQ(ft_record_save(NULL, ft_test_dir(), "vm1", &after), -EBADMSG);
	}
	CHECK(ft_test_logged("vm1.record: damaged; make sure that the other host does not run the guest"));
}

TEST(every_flipped_bit_is_found)
{
	struct ft_blob text;
	struct ft_record r;
	char path[256];

	snprintf(path, sizeof(path), "%s/vm1.record", ft_test_dir());
	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm1", &before));
	CHECK_OK(ft_read_file(path, 256, &text));
	ft_log_divert(NULL, NULL);
	CHECK(freopen("/dev/null", "w", stderr) != NULL);
	for (size_t bit = 0; bit < text.len * 8; bit++) {
		int fd = open(path, O_WRONLY | O_TRUNC);

		text.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK_OK(ft_write_all(fd, text.data, text.len));
		close(fd);
		text.data[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK_EQ(ft_record_load(NULL, ft_test_dir(), "vm1", &r), -EBADMSG);
	}
	ft_blob_free(&text);
}

TEST(only_one_process_writes_at_a_time)
{
	char tmp[256];
	int fd;

	snprintf(tmp, sizeof(tmp), "%s/vm1.record.tmp", ft_test_dir());
	fd = open(tmp, O_RDWR | O_CREAT, 0600);
	CHECK_OK(flock(fd, LOCK_EX));
	CHECK_EQ(ft_record_save(NULL, ft_test_dir(), "vm1", &before), -EBUSY);
	CHECK(ft_test_logged("another process is writing it"));
	close(fd);
	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm1", &before));
}

TEST(a_guest_name_cannot_lead_out_of_the_directory)
{
	struct ft_record r;

	CHECK_EQ(ft_record_load(NULL, ft_test_dir(), "../vm1", &r), -EINVAL);
	CHECK_EQ(ft_record_save(NULL, ft_test_dir(), "a/b", &before), -EINVAL);
}

/* --- what may follow what --- */

static bool follows(enum ft_role from, enum ft_role to, int grow)
{
	return ft_record_allowed(&(struct ft_record){ 5, from, "" }, &(struct ft_record){ (uint64_t)(5 + grow), to, "" });
}

TEST(generations_never_shrink_and_a_record_may_be_written_again)
{
	for (enum ft_role a = 0; a < FT_NR_ROLES; a++) {
		CHECK(follows(a, a, 0));
		for (enum ft_role b = 0; b < FT_NR_ROLES; b++) {
			CHECK(!follows(a, b, -1));
			CHECK(!follows(a, b, 0) || follows(a, b, 1));
		}
	}
	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm1", &before));
	CHECK_OK(ft_record_save(NULL, ft_test_dir(), "vm1", &after));
	CHECK_EQ(ft_record_save(NULL, ft_test_dir(), "vm1", &before), -EINVAL);
	CHECK(ft_test_logged("refusing to go from generation 8 RUNNING to generation 7 ARMED"));
}

TEST(only_an_armed_backup_starts_the_guest)
{
	for (enum ft_role a = 0; a < FT_NR_ROLES; a++)
		for (int grow = 0; grow <= 1; grow++) {
			bool alone = a == FT_ROLE_PRIMARY && grow, again = a == FT_ROLE_RUNNING;

			CHECK_EQ(follows(a, FT_ROLE_RUNNING, grow), (a == FT_ROLE_ARMED && grow) || alone || again);
		}
}

TEST(a_promise_not_to_start_is_kept_until_the_next_session)
{
	CHECK(!follows(FT_ROLE_DISARMED, FT_ROLE_ARMED, 0));
	CHECK(follows(FT_ROLE_DISARMED, FT_ROLE_ARMED, 1));
	CHECK(!follows(FT_ROLE_STOOD_DOWN, FT_ROLE_PRIMARY, 0));
	CHECK(follows(FT_ROLE_STOOD_DOWN, FT_ROLE_PRIMARY, 1));
	CHECK(!follows(FT_ROLE_ARMED, FT_ROLE_PRIMARY, 1));
}

TEST(the_life_of_two_hosts_fits_the_table)
{
	static const struct ft_record alpha[] = {       /* primary, dies, becomes the backup, takes over, ends */
		{ 1, FT_ROLE_PRIMARY, "beta" }, { 2, FT_ROLE_PRIMARY, "beta" }, { 3, FT_ROLE_STOOD_DOWN, "beta" },
		{ 4, FT_ROLE_ARMED, "beta" }, { 5, FT_ROLE_RUNNING, "beta" }, { 5, FT_ROLE_NONE, "" },
	}, beta[] = {                                   /* backup, takes over, protects back, disarms, is backup again */
		{ 1, FT_ROLE_ARMED, "alpha" }, { 1, FT_ROLE_DISARMED, "alpha" }, { 2, FT_ROLE_ARMED, "alpha" },
		{ 3, FT_ROLE_RUNNING, "alpha" }, { 4, FT_ROLE_PRIMARY, "alpha" }, { 5, FT_ROLE_STOOD_DOWN, "alpha" },
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(alpha); i++) {
		CHECK_OK(ft_record_save(NULL, ft_test_dir(), "alpha", &alpha[i]));
		CHECK_OK(ft_record_save(NULL, ft_test_dir(), "beta", &beta[i]));
	}
}
