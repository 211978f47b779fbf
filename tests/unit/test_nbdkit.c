// SPDX-License-Identifier: GPL-3.0-or-later
/* test_nbdkit.c - the plugin in the real nbdkit, with QEMU's NBD client: what a guest gets, and how it ends. */
#include "ft/export.h"
#include "ft/map.h"
#include "tests/lib/follower.h"
#include "tests/test.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define DISK (8u << 20)
#define URI "'nbd+unix:///?socket=%s/s'"

struct disk {
	char dir[64], image[96], map[96], control[96], plugin[PATH_MAX];
	pid_t pid;
	int pidfd;
};

/* The plugin lies beside this program's directory. */
static void find_plugin(struct disk *d)
{
	char *slash;
	ssize_t n = readlink("/proc/self/exe", d->plugin, sizeof(d->plugin) - 64);

	CHECK(n > 0);
	d->plugin[n] = 0;
	for (int i = 0; i < 2; i++) {
		slash = strrchr(d->plugin, '/');
		CHECK(slash);
		*slash = 0;
	}
	strcat(d->plugin, "/bin/nbdkit-ft-plugin.so");
	if (access(d->plugin, R_OK))
		ft_test_skip("%s was not built: nbdkit-plugin-dev is not installed", d->plugin);
	if (system("which nbdkit qemu-io qemu-nbd qemu-img >/dev/null 2>&1"))
		ft_test_skip("nbdkit or qemu-utils is not installed");
}

static void disk_make(struct disk *d)
{
	int fd;

	*d = (struct disk){ .pidfd = -1 };
	find_plugin(d);
	snprintf(d->dir, sizeof(d->dir), "%s", ft_test_dir());
	snprintf(d->image, sizeof(d->image), "%s/disk.img", d->dir);
	snprintf(d->map, sizeof(d->map), "%s/disk.map", d->dir);
	snprintf(d->control, sizeof(d->control), "%s/c", d->dir);
	fd = open(d->image, O_CREAT | O_RDWR, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, DISK));
	close(fd);
}

/* Runs @command, keeps what it says (both outputs) in @out, returns its exit status. */
static int run(char *out, size_t size, const char *fmt, ...) FT_PRINTF(3, 4);
static int run(char *out, size_t size, const char *fmt, ...)
{
	char command[4096];
	size_t len;
	va_list ap;
	FILE *p;

	va_start(ap, fmt);
	vsnprintf(command, sizeof(command), fmt, ap);
	va_end(ap);
	p = popen(command, "r");
	CHECK(p);
	len = fread(out, 1, size - 1, p);
	out[len] = 0;
	return WEXITSTATUS(pclose(p));
}

/* nbdkit's parent ends before its child has written the pid file; then comes the thread that answers here. */
static void until_answered(struct disk *d)
{
	struct follower *f = follower_new(d->control, DISK);

	follower_ask(f);
	CHECK_EQ(f->heres, 1);
	follower_free(f);
}

/* As a launcher does. */
static void serve(struct disk *d, const char *more)
{
	char out[4096], path[128];
	struct ft_blob pid;

	if (run(out, sizeof(out), "cd %s && rm -f s pid && nbdkit -U s -P pid %s image=disk.img map=disk.map "
		"control=c %s >log 2>&1; rc=$?; cat log; exit $rc", d->dir, d->plugin, more))
		ft_test_fail(__FILE__, __LINE__, "nbdkit: %s", out);
	until_answered(d);
	snprintf(path, sizeof(path), "%s/pid", d->dir);
	CHECK_OK(ft_read_file(path, 32, &pid));
	d->pid = atoi((char *)pid.data);
	ft_blob_free(&pid);
	d->pidfd = pidfd_open(d->pid, 0);
	CHECK(d->pidfd >= 0);
}

static bool ends_within(struct disk *d, int timeout_ms)
{
	struct pollfd p = { .fd = d->pidfd, .events = POLLIN };

	return poll(&p, 1, timeout_ms) == 1;
}

static void check_ended(struct disk *d)
{
	if (!ends_within(d, 10000)) {
		kill(d->pid, SIGKILL);
		ft_test_fail(__FILE__, __LINE__, "nbdkit goes on without its client");
	}
	close(d->pidfd);
}

/* A guest: qemu-io that lives until its input ends. */
static FILE *guest(struct disk *d)
{
	char command[256];
	FILE *p;

	snprintf(command, sizeof(command), "qemu-io -f raw " URI " >>%s/out 2>&1", d->dir, d->dir);
	p = popen(command, "w");
	CHECK(p);
	return p;
}

static void tell(FILE *g, const char *what)
{
	fprintf(g, "%s\n", what);
	fflush(g);
}

/* Ten seconds at most. */
static void until_said(struct disk *d, const char *what)
{
	char out[4096];

	for (unsigned i = 0; i < 1000; i++) {
		ft_ignore(run(out, sizeof(out), "cat %s/out 2>&1", d->dir));
		if (strstr(out, what))
			return;
		usleep(10000);
	}
	ft_test_fail(__FILE__, __LINE__, "qemu-io has not said \"%s\": %s", what, out);
}

static void read_image(struct disk *d, uint8_t *buf)
{
	int fd = open(d->image, O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(pread(fd, buf, DISK, 0), DISK);
	close(fd);
}

TEST(a_guest_gets_every_feature)
{
	struct disk d;
	char out[4096];

	disk_make(&d);
	serve(&d, "");
	CHECK_EQ(run(out, sizeof(out), "qemu-nbd -L -k %s/s", d.dir), 0);
	CHECK(strstr(out, "size:  8388608"));
	CHECK(strstr(out, "( flush fua trim zeroes df multi )"));
	CHECK(strstr(out, "base:allocation"));
	CHECK(strstr(out, "opt block: 4096"));
	check_ended(&d);
	serve(&d, "readonly=1");
	CHECK_EQ(run(out, sizeof(out), "qemu-nbd -L -k %s/s", d.dir), 0);
	CHECK(strstr(out, "( readonly"));
	check_ended(&d);
}

TEST(every_request_of_a_guest_reaches_image_and_mirror)
{
	struct disk d;
	char out[8192];
	uint8_t *image = malloc(DISK);

	disk_make(&d);
	serve(&d, "");
	struct follower *f = follower_new(d.control, DISK);

	follower_start(f);
	CHECK_EQ(run(out, sizeof(out), "qemu-io -f raw -d unmap " URI " -c 'write -P 1 512 1M' "
		     "-c 'write -f -P 2 3M 64k' -c 'write -P 3 5M 300k' -c 'discard 64k 128k' -c 'write -z 5M 128k' "
		     "-c 'write -z -u 3M 4k' -c flush -c 'read -P 1 512 1k' -c 'read -P 0 64k 128k' "
		     "-c 'read -P 2 3076k 60k' -c 'read -P 0 5M 128k' 2>&1", d.dir), 0);
	CHECK(!strstr(out, "failed"));
	FOLLOWER_UNTIL(f, f->closed);
	CHECK_EQ(f->page->sent, FT_EXPORT_ENDED);
	CHECK_EQ(f->zeros, 3);
	read_image(&d, image);
	CHECK(!memcmp(image, f->replica, DISK));
	CHECK(image[512] == 1 && image[3084 << 10] == 2 && image[(5 << 20) + (128 << 10)] == 3 && !image[64 << 10]);
	check_ended(&d);
	follower_free(f);
	free(image);
}

TEST(a_guest_sees_what_is_sparse)
{
	struct disk d;
	char out[8192];

	disk_make(&d);
	CHECK_EQ(run(out, sizeof(out), "dd if=/dev/urandom of=%s bs=64k seek=16 count=1 conv=notrunc 2>&1",
		     d.image), 0);
	serve(&d, "");
	CHECK_EQ(run(out, sizeof(out), "qemu-img map --output=json -f raw " URI, d.dir), 0);
	CHECK(strstr(out, "\"start\": 0, \"length\": 1048576, \"depth\": 0, \"present\": true, \"zero\": true"));
	CHECK(strstr(out, "\"start\": 1048576, \"length\": 65536, \"depth\": 0, \"present\": true, \"zero\": false"));
	check_ended(&d);
}

/* The process of a disk ends with its guest, with everything on the image and the map closed in order. */
TEST(it_ends_when_the_last_client_has_gone)
{
	struct disk d;
	char out[4096];
	struct ft_map *m;
	FILE *g;
	int h;

	disk_make(&d);
	serve(&d, "");
	struct follower *f = follower_new(d.control, DISK);

	follower_start(f);
	follower_copy(f, false);
	follower_compare_all(f);
	g = guest(&d);
	tell(g, "write -P 1 0 4k");
	FOLLOWER_UNTIL(f, f->ops >= 1 || f->closed);
	CHECK_EQ(run(out, sizeof(out), "qemu-io -f raw " URI " -c 'read -P 1 0 4k' -c 'write -P 2 4M 4k'", d.dir), 0);
	CHECK(!strstr(out, "failed"));
	tell(g, "write -P 3 8k 4k");            /* one of two clients has gone: the other's disk is there */
	FOLLOWER_UNTIL(f, f->ops >= 3 || f->closed);
	CHECK(!f->closed);
	follower_say64(f, FT_EXPORT_DURABLE, f->seq);
	follower_ask(f);
	CHECK(!ends_within(&d, 0));
	pclose(g);
	check_ended(&d);
	FOLLOWER_UNTIL(f, f->closed);
	follower_free(f);
	CHECK(access(d.control, F_OK) < 0);
	struct ft_map_image im = { .bytes = DISK };
	CHECK_OK(ft_disk_files_real.open(NULL, d.image, false, &h));
	CHECK_OK(ft_disk_files_real.identity(NULL, h, &im.inode, &im.born_ns));
	ft_disk_files_real.close(NULL, h);
	CHECK_OK(ft_map_open(&ft_disk_files_real, d.map, &im, &m));
	CHECK_EQ(ft_map_count(m), 0);
	ft_map_abandon(m);
}

TEST(a_signal_ends_it_in_order)
{
	struct disk d;
	FILE *g;

	disk_make(&d);
	serve(&d, "");
	struct follower *f = follower_new(d.control, DISK);

	follower_start(f);
	g = guest(&d);
	tell(g, "write -P 1 0 4k");
	FOLLOWER_UNTIL(f, f->ops >= 1 || f->closed);
	CHECK(!kill(d.pid, SIGTERM));
	pclose(g);
	check_ended(&d);
	CHECK(access(d.control, F_OK) < 0);
	follower_free(f);
	serve(&d, "");                          /* and may start again */
	kill(d.pid, SIGTERM);
	check_ended(&d);
}

TEST(a_parked_disk_serves_after_a_takeover)
{
	struct disk d;
	char out[4096];
	FILE *g;

	disk_make(&d);
	serve(&d, "parked=1");
	g = guest(&d);                          /* a replica's QEMU is connected all the time */
	tell(g, "write -P 1 0 4k");
	until_said(&d, "write failed: Input/output error");
	tell(g, "flush");
	struct follower *f = follower_new(d.control, DISK);

	follower_ask(f);
	CHECK_OK(follower_activate(f));
	tell(g, "write -P 2 4k 4k");
	pclose(g);
	check_ended(&d);
	follower_free(f);
	CHECK_EQ(run(out, sizeof(out), "od -An -tx1 -N1 %s; od -An -tx1 -N1 -j4096 %s", d.image, d.image), 0);
	CHECK_STR(out, " 00\n 02\n");
}

TEST(two_guests_cannot_have_one_image)
{
	struct disk d;
	char out[4096];

	disk_make(&d);
	serve(&d, "");
	CHECK(run(out, sizeof(out), "nbdkit -U %s/s2 %s image=%s 2>&1", d.dir, d.plugin, d.image) != 0);
	CHECK(strstr(out, d.image) && strstr(out, "in use by another guest"));
	kill(d.pid, SIGTERM);
	check_ended(&d);
}

TEST(mistakes_in_parameters_are_named)
{
	static const struct { const char *args, *says; } bad[] = {
		{ "map=m", "image=PATH is missing" },
		{ "image=i image=j", "image was given twice" },
		{ "image=i parked=1", "control=PATH is missing" },
		{ "image=i parked=perhaps", "could not decipher boolean" },
		{ "image=i size=1G", "unknown parameter 'size'" },
		{ "image=nowhere/disk.img", "nowhere/disk.img: there is no such image" },
		{ "image=/dev/null", "/dev/null cannot be opened" },
	};
	struct disk d;
	char out[4096];

	disk_make(&d);
	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK(run(out, sizeof(out), "cd %s && nbdkit -U s %s %s 2>&1", d.dir, d.plugin, bad[i].args) != 0);
		if (!strstr(out, bad[i].says))
			ft_test_fail(__FILE__, __LINE__, "%s: expected \"%s\", got: %s", bad[i].args, bad[i].says, out);
	}
}
