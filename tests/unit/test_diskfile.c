// SPDX-License-Identifier: GPL-3.0-or-later
/* test_diskfile.c - the real file operations, and that the forgetful ones do forget. */
#include "tests/lib/forgetful.h"
#include "tests/test.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const struct ft_disk_files *const real = &ft_disk_files_real;

static const char *in_dir(const char *name)
{
	static char path[4][256];
	static unsigned nr;
	char *p = path[nr++ % 4];

	snprintf(p, 256, "%s/%s", ft_test_dir(), name);
	return p;
}

static int make(const char *name, uint64_t bytes)
{
	int h;

	CHECK_OK(real->open(NULL, in_dir(name), true, &h));
	CHECK_OK(real->truncate(NULL, h, bytes));
	return h;
}

TEST(what_is_written_is_read_and_not_beyond_the_end)
{
	int h = make("image", 1 << 20);
	uint64_t bytes;
	char buf[8];

	CHECK_OK(real->pwrite(NULL, h, "hello", 5, (1 << 20) - 5));
	CHECK_OK(real->pread(NULL, h, buf, 5, (1 << 20) - 5));
	CHECK(!memcmp(buf, "hello", 5));
	CHECK_EQ(real->pread(NULL, h, buf, 6, (1 << 20) - 5), -EIO);
	CHECK_OK(real->size(NULL, h, &bytes));
	CHECK_EQ(bytes, 1 << 20);
	CHECK_OK(real->sync(NULL, h));
	CHECK_OK(real->sync_dir(NULL, ft_test_dir()));
	real->close(NULL, h);
	CHECK_OK(real->open(NULL, in_dir("image"), true, &h));          /* not truncated */
	CHECK_OK(real->size(NULL, h, &bytes));
	CHECK_EQ(bytes, 1 << 20);
	CHECK_EQ(real->open(NULL, in_dir("other"), false, &h), -ENOENT);
}

TEST(zeroed_ranges_read_as_zeros_and_give_their_space_back)
{
	int h = make("image", 1 << 20);
	static uint8_t data[256 << 10], back[256 << 10];
	struct stat before, after;

	memset(data, 7, sizeof(data));
	CHECK_OK(real->pwrite(NULL, h, data, sizeof(data), 0));
	CHECK_OK(real->sync(NULL, h));
	CHECK_OK(fstat(h, &before));
	CHECK(!real->is_hole(NULL, h, 0, 64 << 10));
	CHECK_OK(real->zero(NULL, h, 3, sizeof(data) - 4));
	CHECK_OK(real->pread(NULL, h, back, sizeof(back), 0));
	CHECK(back[2] == 7 && back[sizeof(back) - 1] == 7);
	for (size_t i = 3; i < sizeof(back) - 1; i++)
		CHECK_EQ(back[i], 0);
	CHECK_OK(real->sync(NULL, h));
	CHECK_OK(fstat(h, &after));
	CHECK(after.st_size == before.st_size);
	if (after.st_blocks == before.st_blocks)
		ft_test_skip("this file system punches no holes");
	CHECK(after.st_blocks < before.st_blocks);
	if (!real->is_hole(NULL, h, 512 << 10, 64 << 10))
		ft_test_skip("this file system does not tell holes");
	CHECK(!real->is_hole(NULL, h, 0, 1));
}

TEST(a_second_open_cannot_lock_not_even_ours)
{
	int a = make("image", 4096), b, status;
	pid_t pid;

	CHECK_OK(real->open(NULL, in_dir("image"), false, &b));
	CHECK_OK(real->lock(NULL, a));
	CHECK_OK(real->lock(NULL, a));
	CHECK_EQ(real->lock(NULL, b), -EBUSY);
	pid = fork();
	if (!pid) {
		int c;

		_exit(real->open(NULL, in_dir("image"), false, &c) || real->lock(NULL, c) != -EBUSY);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status));
	real->close(NULL, a);
	CHECK_OK(real->lock(NULL, b));
}

TEST(another_file_of_the_same_name_has_another_identity)
{
	int a = make("image", 4096), b;
	uint64_t inode[2], born[2];

	CHECK_OK(real->rename(NULL, in_dir("image"), in_dir("old")));
	b = make("image", 4096);
	CHECK_OK(real->identity(NULL, a, &inode[0], &born[0]));
	CHECK_OK(real->identity(NULL, b, &inode[1], &born[1]));
	CHECK(inode[0] && inode[1] && inode[0] != inode[1]);
	CHECK_OK(real->unlink(NULL, in_dir("old")));
	CHECK_EQ(real->unlink(NULL, in_dir("old")), -ENOENT);
}

TEST(what_is_no_file_and_no_device_is_refused)
{
	int h;

	CHECK_OK(mkfifo(in_dir("fifo"), 0600));
	CHECK_EQ(real->open(NULL, in_dir("fifo"), false, &h), -ENOTBLK);
	CHECK_EQ(real->open(NULL, ft_test_dir(), false, &h), -EISDIR);
	CHECK_EQ(real->open(NULL, "/dev/zero", false, &h), -ENOTBLK);
}

/* --- the fake: a test that trusts it must be able to fail --- */

static int fake_make(const struct ft_disk_files *f, const char *path)
{
	int h;

	CHECK_OK(f->open(f->ctx, path, true, &h));
	CHECK_OK(f->truncate(f->ctx, h, 2048));
	return h;
}

TEST(what_was_synced_survives_and_of_the_rest_any_sectors_may)
{
	int kept = 0, lost = 0, torn = 0;

	for (uint64_t seed = 0; seed < 64; seed++) {
		struct forgetful *fs = forgetful_new();
		const struct ft_disk_files *f = forgetful_files(fs);
		int h = fake_make(f, "/d/image");
		uint8_t a[2048], b[2048], back[2048];

		memset(a, 'a', sizeof(a));
		memset(b, 'b', sizeof(b));
		CHECK_OK(f->pwrite(f->ctx, h, a, sizeof(a), 0));
		CHECK_OK(f->sync(f->ctx, h));
		CHECK_OK(f->sync_dir(f->ctx, "/d"));
		CHECK_OK(f->pwrite(f->ctx, h, b, sizeof(b), 0));
		forgetful_power_on(fs, seed);
		forgetful_read(fs, "/d/image", back, sizeof(back), 0);
		for (int i = 0; i < 2048; i++)
			CHECK(back[i] == back[i / 512 * 512] && (back[i] == 'a' || back[i] == 'b'));
		!memcmp(back, a, 2048) ? lost++ : !memcmp(back, b, 2048) ? kept++ : torn++;
		forgetful_free(fs);
	}
	CHECK(kept && lost && torn);
}

TEST(names_are_forgotten_in_order_until_the_directory_is_synced)
{
	int seen[3] = { 0 };

	for (uint64_t seed = 0; seed < 64; seed++) {
		struct forgetful *fs = forgetful_new();
		const struct ft_disk_files *f = forgetful_files(fs);
		bool one, two;

		fake_make(f, "/d/one");
		CHECK_OK(f->rename(f->ctx, "/d/one", "/d/two"));
		forgetful_power_on(fs, seed);
		one = forgetful_exists(fs, "/d/one");
		two = forgetful_exists(fs, "/d/two");
		CHECK(!one || !two);
		seen[one ? 1 : two ? 2 : 0]++;
		forgetful_free(fs);
	}
	CHECK(seen[0] && seen[1] && seen[2]);
}

TEST(a_cut_and_a_fault_come_at_their_step)
{
	struct forgetful *fs = forgetful_new();
	const struct ft_disk_files *f = forgetful_files(fs);
	int h = fake_make(f, "/d/image");
	uint64_t bytes;
	uint8_t c;

	forgetful_fail_at(fs, 2, ENOSPC, false);
	CHECK_OK(f->pwrite(f->ctx, h, "x", 1, 0));
	CHECK_EQ(f->pwrite(f->ctx, h, "y", 1, 0), -ENOSPC);
	CHECK_OK(f->pwrite(f->ctx, h, "z", 1, 0));
	forgetful_cut_at(fs, 1);
	CHECK_EQ(f->sync(f->ctx, h), -EIO);
	CHECK(forgetful_is_off(fs));
	CHECK_EQ(f->pread(f->ctx, h, &c, 1, 0), -EIO);
	CHECK_EQ(f->size(f->ctx, h, &bytes), -EIO);
	f->close(f->ctx, h);
	forgetful_free(fs);
}

TEST(a_failed_sync_is_not_made_good_by_the_next_one)
{
	int lost = 0;

	for (uint64_t seed = 0; seed < 16; seed++) {
		struct forgetful *fs = forgetful_new();
		const struct ft_disk_files *f = forgetful_files(fs);
		int h = fake_make(f, "/d/image");
		uint8_t c;

		CHECK_OK(f->sync(f->ctx, h));
		CHECK_OK(f->sync_dir(f->ctx, "/d"));
		CHECK_OK(f->pwrite(f->ctx, h, "x", 1, 0));
		forgetful_fail_at(fs, 1, EIO, false);
		CHECK_EQ(f->sync(f->ctx, h), -EIO);
		forgetful_power_on(fs, seed);
		forgetful_read(fs, "/d/image", &c, 1, 0);
		lost += c == 0;
		forgetful_free(fs);
	}
	CHECK_EQ(lost, 16);
}
