// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_diskserver.c - the processes that serve a guest's disks, under a real nbdkit and a real QEMU (TCG, firmware only).
 * What the plugin promises has tests of its own: here nbdkit's file plugin stands in for it.
 */
#include "checkpoint/qemu_load.h"
#include "checkpoint/qemu_start.h"
#include "diskmirror/map_priv.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/image.h"
#include "ft/map.h"
#include "ft/store.h"
#include "tests/test.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST "[guest]\nname = vm1\nmemory = 32M\naccel = tcg\n"
#define DISK_BYTES (8u << 20)

static struct ft_spec spec;
static struct ft_qemu_launch launch;
static char image[128];
static const char *dir;

static void make_file(const char *name, const char *text, unsigned mode)
{
	char path[160];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	CHECK_OK(ft_write_file(path, text, strlen(text), mode));
}

/* Takes our arguments, serves the image with the file plugin, and leaves with its last client as our plugin does. */
#define STAND_IN "#!/bin/sh\necho \"ppid=$PPID $*\" >>%s/args\nfor a; do case $a in image=*) i=${a#image=};; readonly=1) r=-r;; esac; done\n" \
		 "exec nbdkit $r --foreground --filter=exitlast file \"$i\"\n"

static void use_test_dirs(const char *disks)
{
	struct ft_conf c = *ft_conf();
	char text[1024];

	dir = ft_test_dir();
	snprintf(c.run_dir, sizeof(c.run_dir), "%s/run", dir);
	snprintf(c.shm_dir, sizeof(c.shm_dir), "%s/shm", dir);
	snprintf(c.state_dir, sizeof(c.state_dir), "%s/state", dir);
	snprintf(c.libexec_dir, sizeof(c.libexec_dir), "%s", dir);
	snprintf(c.nbdkit, sizeof(c.nbdkit), "%s/nbdkit", dir);
	ft_conf_set(&c);
	make_file("nbdkit-ft-plugin.so", "", 0600);
	snprintf(text, sizeof(text), STAND_IN, dir);
	make_file("nbdkit", text, 0700);
	snprintf(image, sizeof(image), "%s/disk.img", dir);
	make_file("disk.img", "", 0600);
	CHECK_OK(truncate(image, DISK_BYTES));
	snprintf(text, sizeof(text), GUEST "%s", disks);
	CHECK_OK(ft_spec_parse(text, strlen(text), "vm1.conf", &spec));
	for (unsigned i = 0; i < spec.nr_disks; i++)
		if (!strcmp(spec.disk[i].image, "/here"))
			strcpy(spec.disk[i].image, image);
	launch = (struct ft_qemu_launch){ .spec = &spec };
}

static void make_world(const char *disks)
{
	char version[32];

	ft_test_namespaces();
	if (access("/usr/bin/nbdkit", X_OK) && access("/usr/sbin/nbdkit", X_OK))
		ft_test_skip("no nbdkit");
	use_test_dirs(disks);
	if (ft_qemu_version(version, sizeof(version)))
		ft_test_skip("no qemu-system-x86_64");
}

/* The plan of one disk, in a directory as a guest's. */
static void plan(struct ft_attach *at)
{
	char run[FT_SPEC_PATH_MAX];

	CHECK_OK(ft_run_path(run, sizeof(run), "vm1", ""));
	run[strlen(run) - 1] = 0;
	CHECK_OK(ft_mkdir_p(run, 0700));
	*at = (struct ft_attach){ .guest = "vm1" };
	CHECK_OK(ft_disk_plan(&spec, run, at));
}

static void wait_gone(const struct ft_attach_disk *d)
{
	struct pollfd p = { .fd = ft_pid_open(d->pid, d->pid_start), .events = POLLIN };

	if (p.fd < 0)
		return;
	CHECK_EQ(poll(&p, 1, 20000), 1);
	close(p.fd);
}

static bool file_has(const char *name, const char *part)
{
	struct ft_blob text;
	char path[160];
	bool has;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (ft_read_file(path, 1 << 20, &text))
		return false;
	has = strstr((const char *)text.data, part);
	ft_blob_free(&text);
	return has;
}

/* --- the server alone --- */

TEST(a_server_gets_its_arguments_and_is_nobodys_child)
{
	struct ft_attach at;
	struct stat st;
	char stat_path[64], expected[160];
	struct ft_blob text;
	int ppid;

	make_world("[disk]\nimage = /here\nread-only = yes\n");
	plan(&at);
	CHECK(!ft_disk_served(&at.disk[0]));
	CHECK_OK(ft_disk_serve(&at, 0, true));
	CHECK(ft_disk_served(&at.disk[0]));
	CHECK_OK(stat(at.disk[0].nbd, &st));
	CHECK_EQ(st.st_mode & 0777, 0600);
	CHECK(file_has("args", "ppid=1 "));             /* from the first moment: it may ask to end with its parent */
	CHECK(file_has("args", "parked=1 readonly=1"));
	snprintf(expected, sizeof(expected), "map=%s/state/vm1.disk0.map control=%s/run/guests/vm1/disk0.ctl", dir, dir);
	CHECK(file_has("args", expected));
	CHECK(getsid(at.disk[0].pid) != getsid(0));
	snprintf(stat_path, sizeof(stat_path), "/proc/%d/stat", at.disk[0].pid);
	CHECK_OK(ft_read_file(stat_path, 4096, &text));
	CHECK_EQ(sscanf(strrchr((char *)text.data, ')'), ") %*c %d", &ppid), 1);
	CHECK_EQ(ppid, 1);
	ft_blob_free(&text);
	ft_disk_end(&at);
	CHECK(!ft_disk_served(&at.disk[0]));
	CHECK(!ft_test_logged("is killed"));
}

TEST(a_server_that_lives_is_left_alone_and_a_dead_one_is_started_again)
{
	struct ft_attach at, old;
	pid_t first;

	make_world("[disk]\nimage = /here\n");
	plan(&at);
	old = at;
	CHECK_OK(ft_disk_serve(&at, 0, false));
	first = at.disk[0].pid;
	CHECK_OK(ft_disk_serve(&at, 0, false));
	CHECK_EQ(at.disk[0].pid, first);
	CHECK_OK(ft_disk_serve(&old, 0, false));        /* whose record does not know of it */
	CHECK_EQ(old.disk[0].pid, first);
	kill(first, SIGKILL);
	wait_gone(&at.disk[0]);
	CHECK_OK(ft_disk_serve(&at, 0, false));
	CHECK(at.disk[0].pid != first && ft_disk_served(&at.disk[0]));
	ft_disk_end_left("vm1", launch.dir);            /* elsewhere */
	CHECK(ft_disk_served(&at.disk[0]));
	CHECK_OK(ft_run_path(launch.dir, sizeof(launch.dir), "vm1", ""));
	ft_disk_end_left("vm1", launch.dir);
	CHECK(!ft_disk_served(&at.disk[0]));
}

static void expect(int rc, const char *words)
{
	struct ft_attach at;

	plan(&at);
	CHECK_EQ(ft_disk_serve(&at, 0, false), rc);
	if (!ft_test_logged(words))
		ft_test_fail(__FILE__, __LINE__, "it did not say \"%s\"", words);
	CHECK_EQ(at.disk[0].pid, 0);
}

static void write_at_start(const char *bytes)
{
	int fd = open(image, O_WRONLY);

	CHECK(fd >= 0 && pwrite(fd, bytes, strlen(bytes), 0) == (ssize_t)strlen(bytes));
	close(fd);
}

TEST(an_image_that_is_no_disk_is_refused_by_name_with_the_remedy)
{
	char words[400];

	make_world("[disk]\nimage = /here\n");
	write_at_start("QFI\xfb");
	expect(-EINVAL, "is in qcow2 format, not raw: convert it with 'qemu-img convert -O raw");
	CHECK_OK(truncate(image, 0));
	CHECK_OK(truncate(image, 1000));
	expect(-EINVAL, "has 1000 bytes: it must have a multiple of 512");
	CHECK_OK(truncate(image, 0));
	expect(-EINVAL, "has 0 bytes");
	unlink(image);
	snprintf(words, sizeof(words), "disk image %s: make one, for example with 'truncate -s 10G %s'", image, image);
	expect(-ENOENT, words);
	CHECK_OK(mkfifo(image, 0600));
	expect(-EINVAL, "is neither a file nor a block device");
	unlink(image);
	CHECK_OK(mkdir(image, 0700));
	expect(-EISDIR, "cannot open its disk image");
}

TEST(what_this_host_lacks_for_the_disks_of_a_replica_is_named)
{
	struct ft_conf c;

	use_test_dirs("[disk]\nimage = /here\n");
	CHECK_OK(ft_disk_server_check(&spec));
	c = *ft_conf();
	strcpy(c.nbdkit, "no-such-nbdkit");
	ft_conf_set(&c);
	CHECK_EQ(ft_disk_server_check(&spec), -ENOENT);
	CHECK(ft_test_logged("no program no-such-nbdkit to serve its disks: install nbdkit"));
	strcpy(c.nbdkit, "sh");                 /* found in PATH */
	ft_conf_set(&c);
	CHECK_OK(ft_disk_server_check(&spec));
	strcpy(c.libexec_dir, "/nowhere");
	ft_conf_set(&c);
	CHECK_EQ(ft_disk_server_check(&spec), -ENOENT);
	CHECK(ft_test_logged("no /nowhere/nbdkit-ft-plugin.so to serve its disks: build ft where nbdkit-plugin-dev is"));
	spec.nr_disks = 0;
	CHECK_OK(ft_disk_server_check(&spec));
}

TEST(an_image_on_a_read_only_file_system_is_for_read_only_disks)
{
	struct ft_attach at;
	char ro[160];

	make_world("[disk]\nimage = /here\n");
	snprintf(ro, sizeof(ro), "%s/ro", dir);
	CHECK_OK(mkdir(ro, 0700));
	CHECK_OK(mount("none", ro, "tmpfs", 0, NULL));
	make_file("ro/disk.img", "x", 0600);
	strcpy(spec.disk[0].image, strcat(ro, "/disk.img"));
	CHECK_OK(truncate(ro, DISK_BYTES));
	*strrchr(ro, '/') = 0;
	CHECK_OK(mount(NULL, ro, NULL, MS_REMOUNT | MS_RDONLY, NULL));
	expect(-EROFS, "Read-only file system: make it writable, or say 'read-only = yes' in the guest file");
	spec.disk[0].read_only = true;
	plan(&at);
	CHECK_OK(ft_disk_serve(&at, 0, false));
	ft_disk_end(&at);
	CHECK_OK(umount2(ro, MNT_DETACH));
}

TEST(a_server_that_does_not_start_is_told_in_its_own_words)
{
	struct ft_conf c;

	make_world("[disk]\nimage = /here\n");
	make_file("nbdkit", "#!/bin/sh\necho 'nbdkit: ft: error: somebody has it'>&2\necho nbdkit: more>&2\nexit 1\n", 0700);
	expect(-EIO, "disk.img cannot be served: somebody has it");
	make_file("nbdkit", "#!/bin/sh\nexit 1\n", 0700);
	expect(-EIO, "disk.img cannot be served: nbdkit ended at once");        /* the old words are not its own */
	c = *ft_conf();
	strcpy(c.nbdkit, "/nonexistent/nbdkit");
	ft_conf_set(&c);
	expect(-ENOENT, "install nbdkit, or set 'nbdkit' in ft.conf");
	strcpy(c.libexec_dir, "/nonexistent");
	ft_conf_set(&c);
	expect(-ENOENT, "there is no /nonexistent/nbdkit-ft-plugin.so");
}

/* --- images and maps before a start by hand --- */

static char map_path[160];

/* A map of the image as it is now, closed in order. */
static void make_map(uint32_t flags, bool unsafe)
{
	struct ft_map_image im = { .bytes = DISK_BYTES };
	struct ft_disk_id id = { .bytes = DISK_BYTES, .current = 7, .base = 6, .flags = flags };
	struct ft_map *m;
	int h;

	CHECK_OK(ft_disk_files_real.open(NULL, image, false, &h));
	CHECK_OK(ft_disk_files_real.identity(NULL, h, &im.inode, &im.born_ns));
	ft_disk_files_real.close(NULL, h);
	CHECK_OK(ft_mkdir_p(ft_conf()->state_dir, 0700));
	snprintf(map_path, sizeof(map_path), "%s/state/vm1.disk0.map", dir);
	CHECK_OK(ft_map_create(&ft_disk_files_real, map_path, &im, &id, &m));
	if (unsafe)
		CHECK_OK(ft_map_set_unsafe(m, true));
	CHECK_OK(ft_map_close(m));
}

TEST(an_image_that_was_mirrored_or_never_was_is_started)
{
	use_test_dirs("[disk]\nimage = /here\n");
	CHECK_OK(ft_disk_recover(&spec, false));
	make_map(0, false);
	CHECK_OK(ft_disk_recover(&spec, false));
	CHECK_OK(access(map_path, F_OK));
	make_map(0, true);                              /* QEMU and the servers died, the host did not */
	CHECK_OK(ft_disk_recover(&spec, false));
	unlink(image);
	CHECK_EQ(ft_disk_recover(&spec, false), -ENOENT);
	CHECK(ft_test_logged("there is no disk image"));
}

static void check_refused(const char *words)
{
	CHECK_EQ(ft_disk_recover(&spec, false), -EUCLEAN);
	CHECK(ft_test_logged(words));
	CHECK_OK(access(map_path, F_OK));
	CHECK_OK(ft_disk_recover(&spec, true));
	CHECK(ft_test_logged("is used all the same"));
	CHECK_EQ(access(map_path, F_OK), -1);
	CHECK_OK(ft_disk_recover(&spec, false));        /* and was never mirrored */
}

TEST(an_image_that_is_no_whole_disk_is_started_by_force_only)
{
	use_test_dirs("[disk]\nimage = /here\n");
	make_map(FT_DISK_TARGET, false);
	check_refused("a copy to it was begun and never finished");
	ft_map_tuning.boot_id = "00000000-0000-0000-0000-000000000001";
	make_map(0, true);
	ft_map_tuning.boot_id = "00000000-0000-0000-0000-000000000002";
	check_refused("the last that the guest wrote is only on the other host");
	make_map(0, false);
	CHECK_OK(truncate(image, DISK_BYTES * 2));
	check_refused("belongs to another image");
}

static uint8_t image_byte(off_t at)
{
	uint8_t byte;
	int fd = open(image, O_RDONLY);

	CHECK(fd >= 0 && pread(fd, &byte, 1, at) == 1);
	close(fd);
	return byte;
}

/* One byte at @at, in the journal of a backup that dies before it commits. */
static void leave_in_journal(uint8_t byte, uint64_t at)
{
	struct ft_store_config cfg = {
		.guest = "vm1", .nr_disks = 1, .disk = { { .image = image, .bytes = DISK_BYTES } }, .state_dir = ft_conf()->state_dir,
		.memory_bound = 1 << 20, .journal_bound = 8 << 20, .durability = FT_DURABILITY_JOURNAL,
	};
	struct ft_disk_id theirs = { .bytes = DISK_BYTES, .current = 7 };
	struct ft_disk_op op = { .seq = 1, .offset = at, .len = 512, .op = FT_DISK_WRITE };
	uint8_t raw[FT_DISK_OP_LEN + 512], body[FT_DISK_BODY_MAX];
	struct ft_store *st;
	char why[160];
	size_t len;

	CHECK_OK(ft_mkdir_p(ft_conf()->state_dir, 0700));
	memset(raw, byte, sizeof(raw));
	ft_disk_pack_op(&op, raw);
	len = ft_disk_pack_batch(0, raw, sizeof(raw), 1, body);
	CHECK_OK(ft_store_open(&cfg, &st));
	CHECK_OK(ft_store_peer(st, &theirs, 1, why, sizeof(why)));
	CHECK_OK(ft_store_begin(st, 1, FT_EPOCH_FULL));
	CHECK_OK(ft_store_batch(st, body, len));
	CHECK_OK(ft_store_whole(st));
	ft_store_free(st);
}

TEST(what_the_backup_had_acknowledged_is_in_the_image_before_a_start_by_hand)
{
	use_test_dirs("[disk]\nimage = /here\n");
	spec.durability = FT_DURABILITY_JOURNAL;
	leave_in_journal(9, 4096);
	CHECK_EQ(image_byte(4096), 0);
	CHECK_OK(ft_disk_recover(&spec, false));
	CHECK_EQ(image_byte(4096), 9);
	CHECK_OK(ft_disk_recover(&spec, false));
}

/* --- under QEMU --- */

static struct ft_qmp *monitor_of(const struct ft_attach *at)
{
	struct ft_qmp *q;

	CHECK_OK(ft_qmp_open(at->qmp, 20000, &q));
	return q;
}

/* QEMU itself does I/O on the guest's disk. */
static void send_io(struct ft_qmp *q, unsigned disk, const char *command)
{
	char line[160];

	snprintf(line, sizeof(line), "qemu-io -d /machine/peripheral/disk%u/virtio-backend \"%s\"", disk, command);
	CHECK_OK(ft_qmp_send(q, "human-monitor-command", json_pack("{s:s}", "command-line", line), -1));
}

/* What came of it QEMU only prints, into its log. */
static void wait_io(struct ft_qmp *q)
{
	CHECK_OK(ft_qmp_wait(q, 30000, NULL));
}

static unsigned left_in(const char *what)
{
	char command[200];
	FILE *f;
	unsigned n = 0;

	snprintf(command, sizeof(command), "%s/%s", dir, what);
	if (access(command, F_OK))
		return 0;
	snprintf(command, sizeof(command), "ls %s/%s | wc -l", dir, what);
	f = popen(command, "r");
	CHECK(f && fscanf(f, "%u", &n) == 1);
	pclose(f);
	return n;
}

TEST_TIMEOUT(a_guest_has_its_disks_and_their_servers_end_with_it, 120)
{
	struct ft_attach at;
	struct ft_qmp *q;

	make_world("[disk]\nimage = /here\n[disk]\nimage = /other\nread-only = yes\nvirtio = modern\n");
	snprintf(spec.disk[1].image, sizeof(spec.disk[1].image), "%s/ro, with a comma.img", dir);
	make_file("ro, with a comma.img", "", 0600);
	CHECK_OK(truncate(spec.disk[1].image, DISK_BYTES));
	CHECK_OK(ft_qemu_start(&launch, &at));
	CHECK_EQ(at.nr_disks, 2);
	q = monitor_of(&at);
	send_io(q, 0, "write -P 7 4096 512");
	wait_io(q);
	CHECK_EQ(image_byte(4096), 7);
	send_io(q, 0, "discard 4096 4096");
	wait_io(q);
	CHECK_EQ(image_byte(4096), 0);
	send_io(q, 1, "read -P 0 4096 512");
	wait_io(q);
	ft_qmp_close(q);
	ft_qemu_cleanup(&at);
	CHECK(!ft_disk_served(&at.disk[0]) && !ft_disk_served(&at.disk[1]));
	CHECK(!ft_test_logged("is killed"));
	CHECK_EQ(left_in("run/guests"), 0);
}

TEST_TIMEOUT(a_server_that_stays_is_ended_when_its_qemu_has_gone, 120)
{
	struct ft_attach at;

	make_world("[disk]\nimage = /here\n");
	make_file("nbdkit", "#!/bin/sh\nexec nbdkit --foreground memory 8M\n", 0700);
	CHECK_OK(ft_qemu_start(&launch, &at));
	ft_qemu_cleanup(&at);
	CHECK(!ft_disk_served(&at.disk[0]));
	CHECK_EQ(left_in("run/guests"), 0);
}

TEST_TIMEOUT(a_guest_waits_for_the_server_that_died_and_goes_on, 120)
{
	struct ft_attach at;
	struct ft_qmp *q;

	make_world("[disk]\nimage = /here\n");
	CHECK_OK(ft_qemu_start(&launch, &at));
	q = monitor_of(&at);
	send_io(q, 0, "write -P 7 4096 512");
	wait_io(q);
	kill(at.disk[0].pid, SIGKILL);
	wait_gone(&at.disk[0]);
	send_io(q, 0, "write -P 8 4096 512");
	CHECK_OK(ft_disk_serve(&at, 0, false));
	wait_io(q);
	CHECK_EQ(image_byte(4096), 8);
	ft_qmp_close(q);
	ft_qemu_cleanup(&at);
}

static char obstacles[4096];

static void keep_obstacle(void *ctx, const char *line)
{
	strncat(obstacles, line, sizeof(obstacles) - strlen(obstacles) - 2);
	strcat(obstacles, "\n");
}

static unsigned check(const struct ft_attach *at)
{
	obstacles[0] = 0;
	return (unsigned)ft_qemu_check(at, keep_obstacle, NULL);
}

TEST_TIMEOUT(our_disks_are_no_obstacle_but_others_are_and_one_that_nobody_serves, 120)
{
	struct ft_attach at, foreign;

	make_world("[disk]\nimage = /here\n");
	CHECK_OK(ft_qemu_start(&launch, &at));
	if (check(&at))
		ft_test_fail(__FILE__, __LINE__, "%s", obstacles);
	foreign = at;
	strcat(foreign.disk[0].nbd, "x");
	CHECK_EQ(check(&foreign), 1);
	CHECK(strstr(obstacles, "disk0") && strstr(obstacles, "is writable"));
	kill(at.disk[0].pid, SIGKILL);
	wait_gone(&at.disk[0]);
	CHECK_EQ(check(&at), 1);
	CHECK(strstr(obstacles, "the server of disk") && strstr(obstacles, image));
	ft_qemu_cleanup(&at);
}

TEST_TIMEOUT(a_guest_whose_disk_is_not_served_does_not_start, 120)
{
	struct ft_attach at;

	make_world("[disk]\nimage = /here\n[disk]\nimage = /nonexistent.img\n");
	CHECK_EQ(ft_qemu_start(&launch, &at), -ENOENT);
	CHECK(ft_test_logged("there is no disk image /nonexistent.img"));
	CHECK_EQ(left_in("run/guests"), 0);
	CHECK_EQ(left_in("shm"), 0);
}

/* What a replica would be loaded with: the guest stands still from here on. */
static void count_busy(void *ctx)
{
	++*(unsigned *)ctx;
}

static void capture(const struct ft_attach *at, struct ft_blob *firmware, struct ft_blob *state)
{
	struct ft_qemu_options opt = { .tracker = "compare" };
	unsigned told = 0;
	struct ft_vm *vm;

	CHECK_OK(ft_qemu_open(at, &opt, &vm));
	vm->busy = count_busy;
	vm->busy_ctx = &told;
	CHECK_OK(vm->ops->firmware(vm, firmware));
	CHECK(told);            /* or a loaded machine is taken for a dead ft-protect */
	vm->busy = NULL;
	CHECK_OK(vm->ops->pause(vm));
	CHECK_OK(vm->ops->state_begin(vm));
	CHECK_OK(vm->ops->state_end(vm, state));
	/* Not closed: that would resume it. */
}

static void load(const struct ft_attach *scratch, const struct ft_blob *firmware, const struct ft_blob *state)
{
	struct ft_qemu_loader *l;

	CHECK_OK(ft_qemu_loader_new(scratch, &l));
	CHECK_OK(ft_qemu_load(l, firmware, state));
	ft_qemu_loader_free(l);
}

TEST_TIMEOUT(what_a_scratch_guest_writes_is_bounded_and_never_in_the_image, 120)
{
	struct ft_attach guest, scratch;
	struct ft_blob firmware, state;
	struct ft_qmp *q;

	make_world("[disk]\nimage = /here\n[disk]\nimage = /other\nread-only = yes\n");
	snprintf(spec.disk[1].image, sizeof(spec.disk[1].image), "%s/ro,x.img", dir);
	make_file("ro,x.img", "", 0600);
	CHECK_OK(truncate(spec.disk[1].image, DISK_BYTES));
	CHECK_OK(truncate(image, 64 << 20));
	CHECK_OK(ft_qemu_start(&launch, &guest));
	capture(&guest, &firmware, &state);
	launch.kind = FT_QEMU_SCRATCH;
	strcpy(launch.ram, guest.ram);
	CHECK_OK(ft_qemu_start(&launch, &scratch));
	CHECK_EQ(scratch.nr_disks, 0);
	load(&scratch, &firmware, &state);
	q = monitor_of(&scratch);
	send_io(q, 0, "write -P 7 0 512");
	wait_io(q);
	send_io(q, 0, "read -P 7 0 512");       /* it says so when it reads something else */
	wait_io(q);
	send_io(q, 0, "read -P 0 4096 512");
	wait_io(q);
	send_io(q, 0, "write -P 7 1M 32M");     /* more than it may keep */
	wait_io(q);
	ft_qmp_close(q);
	kill(scratch.pid, SIGTERM);             /* QEMU's end in order writes out what it printed */
	CHECK_EQ(waitpid(scratch.pid, NULL, 0), scratch.pid);
	CHECK(file_has("run/drill/vm1/qemu.log", "read 512/512"));
	CHECK(file_has("run/drill/vm1/qemu.log", "File too large"));
	CHECK(!file_has("run/drill/vm1/qemu.log", "Pattern verification failed"));
	ft_qemu_cleanup(&scratch);
	CHECK_EQ(image_byte(0), 0);
	CHECK_EQ(image_byte(1 << 20), 0);
	ft_qemu_cleanup(&guest);
	CHECK_EQ(left_in("run/guests"), 0);
	ft_blob_free(&firmware);
	ft_blob_free(&state);
}

/* --- a replica, with the plugin itself --- */

static void use_plugin(void)
{
	struct ft_conf c = *ft_conf();
	char self[200];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	CHECK(n > 0);
	self[n] = 0;
	*strrchr(self, '/') = 0;
	snprintf(c.libexec_dir, sizeof(c.libexec_dir), "%s/../bin", self);
	strcpy(c.nbdkit, "nbdkit");
	ft_conf_set(&c);
	snprintf(self + strlen(self), 40, "/../bin/nbdkit-ft-plugin.so");
	if (access(self, R_OK))
		ft_test_skip("built without nbdkit-ft-plugin.so");
}

/* A guest that ran somewhere else: its facts, its memory, what its replica is loaded with. */
struct elsewhere {
	struct ft_attach at;
	uint8_t *ram;
	struct ft_blob firmware, state;
};

static void run_elsewhere(struct elsewhere *g)
{
	int fd;

	CHECK_OK(ft_qemu_start(&launch, &g->at));
	capture(&g->at, &g->firmware, &g->state);
	g->ram = malloc(g->at.memory);
	fd = open(g->at.ram, O_RDONLY);
	CHECK(g->ram && fd >= 0 && pread(fd, g->ram, g->at.memory, 0) == (ssize_t)g->at.memory);
	close(fd);
	ft_qemu_cleanup(&g->at);
}

static struct ft_replica *make_replica(const struct elsewhere *g)
{
	struct ft_replica *r;
	char why[256];

	CHECK_OK(ft_qemu_replica_prepare(&spec, &g->at, &r, why, sizeof(why)));
	memcpy(r->ram, g->ram, g->at.memory);
	return r;
}

/* Of the parked QEMU, which has no record. */
static pid_t only_server(void)
{
	struct ft_blob text;
	char path[FT_SPEC_PATH_MAX];
	int pid;

	CHECK_OK(ft_run_path(path, sizeof(path), "vm1", "disk0.pid"));
	CHECK_OK(ft_read_file(path, 64, &text));
	CHECK_EQ(sscanf((char *)text.data, "%d", &pid), 1);
	ft_blob_free(&text);
	return pid;
}

static void wait_killed(pid_t pid)
{
	struct ft_attach_disk d = { .pid = pid };

	CHECK_OK(ft_pid_start(pid, &d.pid_start));
	kill(pid, SIGKILL);
	wait_gone(&d);
}

static void drill(struct ft_replica *r, const struct elsewhere *g)
{
	struct pollfd p = { .events = POLLIN };
	struct ft_drill_result res;

	CHECK_OK(r->ops->drill_start(r, &g->firmware, &g->state, &p.fd));
	CHECK_EQ(poll(&p, 1, 60000), 1);
	r->ops->drill_end(r, &res);
	/* Firmware that only counts its ticks writes no page that it had not written before. */
	if (!res.ok && !strstr(res.why, "wrote nothing"))
		ft_test_fail(__FILE__, __LINE__, "drill: %s", res.why);
}

static void write_as_guest(const struct ft_attach *at, const char *command)
{
	struct ft_qmp *q = monitor_of(at);

	send_io(q, 0, command);
	wait_io(q);
	ft_qmp_close(q);
}

TEST_TIMEOUT(a_replica_gets_its_disk_at_takeover_also_when_the_parked_server_had_died, 180)
{
	struct elsewhere g = { .ram = NULL };
	struct ft_attach at;
	struct ft_replica *r;

	make_world("[disk]\nimage = /here\n");
	use_plugin();
	run_elsewhere(&g);
	r = make_replica(&g);
	drill(r, &g);
	wait_killed(only_server());
	CHECK_OK(r->ops->start(r, &g.firmware, &g.state));
	CHECK_OK(r->ops->detach(r));
	CHECK_OK(ft_attach_load("vm1", &at));
	CHECK_EQ(at.nr_disks, 1);
	CHECK(ft_disk_served(&at.disk[0]) && at.disk[0].pid == only_server());
	write_as_guest(&at, "write -P 9 4096 512");
	CHECK_EQ(image_byte(4096), 9);
	wait_killed(only_server());                     /* and again, under the guest: as one that is no replica's any more */
	CHECK_OK(ft_disk_serve(&at, 0, false));
	write_as_guest(&at, "write -P 8 4096 512");
	CHECK_EQ(image_byte(4096), 8);
	CHECK_OK(ft_attach_remove("vm1"));
	ft_qemu_cleanup(&at);
	CHECK_EQ(left_in("run/guests"), 0);
}

/* Somebody else has the image by then: better no guest than one that writes where another does. */
TEST_TIMEOUT(a_takeover_without_its_disk_is_none, 180)
{
	struct elsewhere g = { .ram = NULL };
	struct ft_attach at;
	struct ft_replica *r;
	int h;

	make_world("[disk]\nimage = /here\n");
	use_plugin();
	run_elsewhere(&g);
	r = make_replica(&g);
	CHECK_OK(ft_disk_files_real.open(NULL, image, false, &h));
	CHECK_OK(ft_disk_files_real.lock(NULL, h));
	CHECK(r->ops->start(r, &g.firmware, &g.state) < 0);
	CHECK(ft_test_logged("cannot be opened for the guest"));
	CHECK_EQ(ft_attach_load("vm1", &at), -ENOENT);
	r->ops->destroy(r);
	CHECK_EQ(left_in("run/guests"), 0);

	/* A guest that is started by hand is refused in the plugin's words. */
	CHECK_EQ(ft_qemu_start(&launch, &at), -EIO);
	CHECK(ft_test_logged("another"));
	ft_disk_files_real.close(NULL, h);
	CHECK_OK(ft_qemu_start(&launch, &at));
	ft_qemu_cleanup(&at);
}
