// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_launch.c - starting a real QEMU (TCG, firmware only, 32 MiB) as guest, parked and scratch, in a network namespace
 * of the test's own, and leaving nothing behind.
 */
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"
#include "ft/hv.h"
#include "ft/preload.h"
#include "tests/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <linux/sockios.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST "[guest]\nname = vm1\nmemory = 32M\nvcpus = 2\naccel = tcg\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n"

static struct ft_spec spec;
static struct ft_qemu_launch launch;

static void use_test_dirs(void)
{
	struct ft_conf c = *ft_conf();
	char self[200];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	CHECK(n > 0);
	self[n] = 0;
	*strrchr(self, '/') = 0;
	snprintf(c.run_dir, sizeof(c.run_dir), "%s/run", ft_test_dir());
	snprintf(c.shm_dir, sizeof(c.shm_dir), "%s/shm", ft_test_dir());
	snprintf(c.libexec_dir, sizeof(c.libexec_dir), "%s/../bin", self);
	ft_conf_set(&c);
	CHECK_OK(ft_spec_parse(GUEST, strlen(GUEST), "vm1.conf", &spec));
	launch = (struct ft_qemu_launch){ .spec = &spec };
}

static void make_world(void)
{
	if (access("/dev/net/tun", R_OK | W_OK) < 0)
		ft_test_skip("no /dev/net/tun");
	ft_test_namespaces();
	use_test_dirs();
	if (ft_qemu_default_machine(launch.dir, sizeof(launch.dir)))
		ft_test_skip("no qemu-system-x86_64");
	launch.dir[0] = 0;
	ft_test_bridge("br0");
}

static bool is_up(const char *name)
{
	struct ifreq r = { 0 };
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);

	strcpy(r.ifr_name, name);
	CHECK_OK(ioctl(s, SIOCGIFFLAGS, &r));
	close(s);
	return r.ifr_flags & IFF_UP;
}

/* The host has no address on the guest's wire, not even a link-local one. */
static void check_silent(const char *name)
{
	struct ft_blob addresses;

	if (ft_read_file("/proc/net/if_inet6", 65536, &addresses))
		return;                 /* a kernel without IPv6 */
	CHECK(!strstr((const char *)addresses.data, name));
	ft_blob_free(&addresses);
}

static void check_status(const struct ft_attach *at, const char *expected)
{
	struct ft_qmp *q;
	json_t *ret;

	CHECK_OK(ft_qmp_open(at->qmp, 20000, &q));
	CHECK_OK(ft_qmp_call(q, "query-status", NULL, -1, 20000, &ret));
	CHECK_STR(json_string_value(json_object_get(ret, "status")), expected);
	json_decref(ret);
	ft_qmp_close(q);
}

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	for (struct dirent *e; d && (e = readdir(d)); )
		n += e->d_name[0] != '.';
	if (d)
		closedir(d);
	return n;
}

static unsigned run_entries(const char *what)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", ft_test_dir(), what);
	return entries(path);
}

static void check_nothing_left(void)
{
	char tap[16];

	ft_tap_name("vm1", 0, tap);
	CHECK_EQ(run_entries("shm"), 0);
	CHECK_EQ(run_entries("run/guests"), 0);
	for (int i = 0; i < 50 && if_nametoindex(tap); i++)
		usleep(100000);         /* the kernel takes a tap down after its last descriptor is closed */
	CHECK_EQ(if_nametoindex(tap), 0);
}

TEST_TIMEOUT(a_guest_starts_answers_and_leaves_nothing_behind, 120)
{
	struct ft_preload_page *page;
	struct ft_attach at;
	struct rlimit logs;
	struct stat st;
	int fd;

	make_world();
	CHECK_OK(ft_qemu_start(&launch, &at));
	CHECK_EQ(at.accel, FT_ACCEL_TCG);
	CHECK(!strncmp(at.machine, "pc-i440fx-", 10));
	CHECK(strchr(at.qemu_version, '.'));
	check_status(&at, "running");
	CHECK(ft_qmp_listening(at.qmp_guard));
	CHECK_OK(stat(at.ram, &st));
	CHECK_EQ(st.st_size, 32 << 20);
	CHECK_EQ(st.st_blocks * 512, 32 << 20);
	CHECK_EQ(st.st_mode & 0777, 0600);
	CHECK(getsid(at.pid) != getsid(0));
	CHECK(is_up(at.nic[0].tap));
	check_silent(at.nic[0].tap);
	CHECK_OK(prlimit(at.pid, RLIMIT_FSIZE, NULL, &logs));
	CHECK_EQ(logs.rlim_cur, FT_QEMU_LOG_MAX);

	fd = open(at.preload, O_RDONLY);
	CHECK(fd >= 0);
	page = mmap(NULL, FT_PRELOAD_SIZE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK_EQ(atomic_load(&page->magic), FT_PRELOAD_MAGIC);
	CHECK_EQ(atomic_load(&page->pid), at.pid);
	close(fd);

	CHECK_OK(ft_attach_save(&at));
	CHECK_OK(ft_attach_load("vm1", &at));
	CHECK_OK(ft_attach_remove("vm1"));
	ft_qemu_cleanup(&at);
	CHECK_EQ(ft_attach_pidfd(&at), -ESRCH);
	check_nothing_left();
	ft_qemu_cleanup(&at);
}

/* What a child finds out. */
static struct ft_attach *shared_record(void)
{
	void *p = mmap(NULL, sizeof(struct ft_attach), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

static unsigned count_fds(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	return entries(path);
}

TEST_TIMEOUT(qemu_is_nobodys_child_and_inherits_no_descriptor, 120)
{
	struct ft_attach at, *shared = shared_record();
	unsigned before;
	pid_t pid;

	make_world();
	CHECK_OK(ft_qemu_start(&launch, &at));
	before = count_fds(at.pid);
	ft_qemu_cleanup(&at);
	pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 50; i++)
			if (open("/dev/null", O_RDONLY) < 0)    /* no O_CLOEXEC */
				_exit(1);
		_exit(ft_qemu_start(&launch, shared) ? 1 : 0);
	}
	int status;
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	check_status(shared, "running");        /* its starter is gone */
	CHECK(count_fds(shared->pid) < before + 10);
	ft_qemu_cleanup(shared);
	check_nothing_left();
}

TEST_TIMEOUT(a_replica_waits_with_its_taps_down_until_takeover, 120)
{
	struct ft_attach at;

	make_world();
	launch.kind = FT_QEMU_PARKED;
	CHECK_OK(ft_qemu_start(&launch, &at));
	check_status(&at, "inmigrate");
	CHECK(!is_up(at.nic[0].tap));
	CHECK_OK(ft_qemu_net(&at, true));
	CHECK(is_up(at.nic[0].tap));
	CHECK_OK(ft_qemu_net(&at, false));
	CHECK(!is_up(at.nic[0].tap));
	ft_qemu_cleanup(&at);
	check_nothing_left();
}

TEST_TIMEOUT(a_parked_qemu_whose_owner_died_is_ended_by_the_next_but_a_guest_never, 120)
{
	struct ft_attach parked, guest, none;

	make_world();
	launch.kind = FT_QEMU_PARKED;
	CHECK_OK(ft_qemu_start(&launch, &parked));
	CHECK_OK(ft_qemu_start(&launch, &guest));
	CHECK_EQ(ft_attach_pidfd(&parked), -ESRCH);
	ft_qemu_cleanup(&guest);
	launch.kind = FT_QEMU_GUEST;
	CHECK_OK(ft_qemu_start(&launch, &guest));
	CHECK_EQ(ft_qemu_start(&launch, &none), -EEXIST);
	launch.kind = FT_QEMU_PARKED;
	CHECK_EQ(ft_qemu_start(&launch, &none), -EEXIST);
	check_status(&guest, "running");
	ft_qemu_cleanup(&guest);
	check_nothing_left();
}

TEST_TIMEOUT(a_scratch_guest_has_no_network_and_no_memory_of_its_own, 120)
{
	struct ft_attach parked, scratch;
	unsigned char byte = 1;
	char ns[64], theirs[64] = "", ours[64] = "";
	int fd;

	make_world();
	launch.kind = FT_QEMU_PARKED;
	CHECK_OK(ft_qemu_start(&launch, &parked));
	launch.kind = FT_QEMU_SCRATCH;
	CHECK_OK(ft_qemu_start(&launch, &scratch));
	check_status(&scratch, "inmigrate");
	CHECK_STR(scratch.ram, "");
	snprintf(ns, sizeof(ns), "/proc/%d/ns/net", scratch.pid);
	CHECK(readlink(ns, theirs, sizeof(theirs) - 1) > 0 && readlink("/proc/self/ns/net", ours, sizeof(ours) - 1) > 0);
	CHECK(strcmp(ours, theirs));
	ft_qemu_cleanup(&scratch);
	CHECK_EQ(ft_attach_pidfd(&scratch), -ESRCH);
	CHECK_EQ(waitpid(scratch.pid, NULL, WNOHANG), -1);      /* no zombie */
	fd = open(parked.ram, O_RDWR);
	CHECK(fd >= 0 && pread(fd, &byte, 1, 0) == 1);
	CHECK_EQ(byte, 0);
	close(fd);
	check_status(&parked, "inmigrate");
	ft_qemu_cleanup(&parked);
	check_nothing_left();
}

TEST_TIMEOUT(a_scratch_guest_dies_with_its_starter, 120)
{
	struct ft_attach *at = shared_record();
	struct pollfd p = { .events = POLLIN };
	pid_t pid;
	int go[2];

	make_world();
	CHECK_OK(pipe(go));
	launch.kind = FT_QEMU_SCRATCH;
	pid = fork();
	if (pid == 0) {
		int rc = ft_qemu_start(&launch, at);

		if (write(go[1], &rc, sizeof(rc)) == sizeof(rc))
			pause();
		_exit(0);
	}
	int rc;
	CHECK_EQ(read(go[0], &rc, sizeof(rc)), sizeof(rc));
	CHECK_OK(rc);
	p.fd = ft_attach_pidfd(at);
	CHECK(p.fd >= 0);
	kill(pid, SIGKILL);
	CHECK_EQ(poll(&p, 1, 20000), 1);
	ft_qemu_cleanup(at);
}

TEST_TIMEOUT(what_fails_is_said_in_one_line_and_undone, 120)
{
	struct ft_attach at;
	struct ft_conf c;

	make_world();
	strcpy(spec.nic[0].bridge, "br9");
	CHECK_EQ(ft_qemu_start(&launch, &at), -ENODEV);
	CHECK(ft_test_logged("guest vm1: there is no bridge br9 on this host"));
	check_nothing_left();
	strcpy(spec.nic[0].bridge, "br0");

	launch.machine = "pc-i440fx-99.9";
	CHECK(ft_qemu_start(&launch, &at) < 0);
	CHECK(ft_test_logged("guest vm1: QEMU did not start: "));
	CHECK(ft_test_logged("nsupported machine type"));
	check_nothing_left();
	launch.machine = NULL;

	strcpy(spec.kernel, "/nonexistent/vmlinuz");
	CHECK(ft_qemu_start(&launch, &at) < 0);
	CHECK(ft_test_logged("/nonexistent/vmlinuz"));
	check_nothing_left();
	spec.kernel[0] = 0;

	c = *ft_conf();
	strcpy(c.qemu, "/nonexistent/qemu");
	strcpy(spec.machine, "pc-i440fx-7.2");
	ft_conf_set(&c);
	CHECK_EQ(ft_qemu_start(&launch, &at), -ENOENT);
	CHECK(ft_test_logged("install qemu-system-x86"));
	check_nothing_left();
}

TEST(memory_that_does_not_fit_is_refused_before_qemu_starts)
{
	struct ft_conf c;
	struct ft_attach at;
	struct statfs v;

	make_world();
	if (statfs("/dev/shm", &v) || v.f_type != 0x01021994 || !v.f_blocks)
		ft_test_skip("/dev/shm is no tmpfs with a bound");
	spec.memory = (uint64_t)v.f_blocks * (uint64_t)v.f_bsize + (2 << 20);
	spec.memory -= spec.memory % (2 << 20);
	c = *ft_conf();
	snprintf(c.shm_dir, sizeof(c.shm_dir), "/dev/shm/ft-test-launch-%d", getpid());
	ft_conf_set(&c);
	CHECK(ft_qemu_start(&launch, &at) < 0);
	CHECK(ft_test_logged("no room for its memory of"));
	CHECK_OK(rmdir(c.shm_dir));     /* empty */
	check_nothing_left();
}

static void mount_shm(const char *options)
{
	CHECK_OK(ft_mkdir_p(ft_conf()->shm_dir, 0700));
	CHECK_OK(mount("tmpfs", ft_conf()->shm_dir, "tmpfs", 0, options));
}

/* What ft_facts would have told the backup of a guest that runs somewhere else. */
static struct ft_attach facts_of_guest(void)
{
	struct ft_attach theirs;

	launch.kind = FT_QEMU_GUEST;
	CHECK_OK(ft_qemu_start(&launch, &theirs));
	ft_qemu_cleanup(&theirs);
	return theirs;
}

/* ftd's child is killed; its replica's QEMU and memory stay, and are all the room that there is. */
TEST_TIMEOUT(a_replica_is_built_anew_in_the_room_of_the_one_left_behind, 120)
{
	struct ft_attach theirs, running;
	struct ft_replica *r, *again;
	char dir[128], why[256];
	int status;
	pid_t pid;

	make_world();
	mount_shm("size=40m");
	theirs = facts_of_guest();
	pid = fork();
	if (pid == 0)
		_exit(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)) ? 1 : 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_OK(ft_qemu_replica_prepare(&spec, &theirs, &again, why, sizeof(why)));
	CHECK(ft_test_logged("that was left behind"));
	again->ops->destroy(again);
	CHECK_EQ(run_entries("shm"), 0);

	/* The guest itself died here before: its record must not name the replica's files as its own. */
	snprintf(dir, sizeof(dir), "%s/run/guests/vm1", ft_test_dir());
	CHECK_OK(ft_mkdir_p(dir, 0700));
	CHECK_OK(ft_attach_save(&theirs));
	CHECK_EQ(ft_attach_load("vm1", &running), -ESRCH);
	CHECK_OK(ft_qemu_replica_prepare(&spec, &theirs, &again, why, sizeof(why)));
	CHECK_EQ(ft_attach_load("vm1", &running), -ENOENT);
	ft_qemu_cleanup(&theirs);       /* as somebody would who read it before */
	CHECK_EQ(run_entries("shm"), 1);
	CHECK(ft_qmp_listening(theirs.qmp));
	again->ops->destroy(again);
	check_nothing_left();
	CHECK_OK(umount2(ft_conf()->shm_dir, MNT_DETACH));
}

/* The guest file says more memory than the last time. */
TEST_TIMEOUT(memory_of_another_size_is_replaced_for_a_replica, 120)
{
	struct ft_attach at;
	struct stat st;
	char path[128];

	make_world();
	snprintf(path, sizeof(path), "%s/shm/vm1.ram", ft_test_dir());
	CHECK_OK(ft_mkdir_p(ft_conf()->shm_dir, 0700));
	CHECK_OK(ft_write_file(path, "old", 3, 0600));
	launch.kind = FT_QEMU_SCRATCH;
	CHECK_EQ(ft_qemu_start(&launch, &at), -EINVAL);
	launch.kind = FT_QEMU_PARKED;
	CHECK_OK(ft_qemu_start(&launch, &at));
	CHECK_OK(stat(path, &st));
	CHECK_EQ(st.st_blocks * 512, 32 << 20);
	ft_qemu_cleanup(&at);
	check_nothing_left();

	CHECK_OK(symlink("/dev/null", path));
	CHECK_EQ(ft_qemu_start(&launch, &at), -EINVAL);
	CHECK(ft_test_logged("vm1.ram is no regular file: remove it"));
	unlink(path);
}

TEST(cleaning_up_removes_nothing_but_files_of_ours)
{
	struct ft_attach at = { .guest = "vm1" };
	char keep[128], outside[128];

	use_test_dirs();
	CHECK_OK(ft_mkdir_p(ft_conf()->shm_dir, 0700));
	CHECK_OK(ft_mkdir_p(ft_conf()->run_dir, 0700));
	snprintf(outside, sizeof(outside), "%s/console.log", ft_test_dir());
	CHECK_OK(ft_write_file(outside, "mine", 4, 0600));
	snprintf(keep, sizeof(keep), "%s/shm/node", ft_test_dir());
	CHECK_OK(mkfifo(keep, 0600));

	strcpy(at.ram, keep);
	snprintf(at.qmp, sizeof(at.qmp), "%s/qmp.sock", ft_test_dir());
	ft_qemu_cleanup(&at);
	CHECK(ft_test_logged("is not removed"));
	CHECK_OK(access(keep, F_OK));
	snprintf(at.qmp, sizeof(at.qmp), "%s/run/../qmp.sock", ft_test_dir());
	snprintf(at.ram, sizeof(at.ram), "%s/shm/../console.log", ft_test_dir());
	ft_qemu_cleanup(&at);
	CHECK_OK(access(outside, F_OK));
}

static bool is_port(const char *bridge, const char *tap)
{
	struct ifreq r = { 0 };
	int s = socket(AF_UNIX, SOCK_DGRAM, 0), rc;

	strcpy(r.ifr_name, bridge);
	r.ifr_ifindex = (int)if_nametoindex(tap);
	rc = ioctl(s, SIOCBRDELIF, &r);
	close(s);
	return rc == 0;
}

static void remove_bridge(const char *name)
{
	struct ifreq r = { 0 };
	int s = socket(AF_UNIX, SOCK_DGRAM, 0);

	strcpy(r.ifr_name, name);
	CHECK_OK(ioctl(s, SIOCSIFFLAGS, &r));
	CHECK_OK(ioctl(s, SIOCBRDELBR, name));
	close(s);
}

/* The backup's administrator restarted the network while the replica waited. */
TEST_TIMEOUT(a_takeover_finds_the_bridge_that_was_made_anew, 120)
{
	struct ft_attach at;

	make_world();
	launch.kind = FT_QEMU_PARKED;
	CHECK_OK(ft_qemu_start(&launch, &at));
	remove_bridge("br0");
	CHECK_EQ(ft_qemu_net(&at, true), -ENODEV);
	CHECK(ft_test_logged("cannot set tap"));
	CHECK_OK(ft_qemu_net(&at, false));
	ft_test_bridge("br0");
	CHECK_OK(ft_qemu_net(&at, true));
	CHECK_OK(ft_qemu_net(&at, true));       /* it is there already */
	CHECK(is_up(at.nic[0].tap));
	CHECK(is_port("br0", at.nic[0].tap));
	ft_qemu_cleanup(&at);
	check_nothing_left();
}

/* A QEMU whose KVM shows @firmware and, of a kernel, @kernel; and which counts its starts. */
static void use_fake_qemu(const char *firmware, const char *kernel)
{
	char script[512];
	struct ft_conf c = *ft_conf();
	int n;

	CHECK(snprintf(c.qemu, sizeof(c.qemu), "%s/qemu", ft_test_dir()) < (int)sizeof(c.qemu));
	n = snprintf(script, sizeof(script), "#!/bin/sh\necho >>%s/starts\ncase \"$*\" in\n*-kernel*) echo '%s';;\n*) echo '%s';;\nesac\n",
		     ft_test_dir(), kernel, firmware);
	CHECK_OK(ft_write_file(c.qemu, script, (size_t)n, 0700));
	ft_conf_set(&c);
}

static unsigned qemu_starts(void)
{
	struct ft_blob starts;
	char path[128];
	size_t n;

	snprintf(path, sizeof(path), "%s/starts", ft_test_dir());
	if (ft_read_file(path, 4096, &starts))
		return 0;
	n = starts.len;
	ft_blob_free(&starts);
	return (unsigned)n;
}

TEST(what_kvm_does_is_remembered_for_each_kernel)
{
	char good[128], bad[128];

	if (access("/dev/kvm", R_OK | W_OK))
		ft_test_skip("no /dev/kvm");
	use_test_dirs();
	snprintf(good, sizeof(good), "%s/good", ft_test_dir());
	snprintf(bad, sizeof(bad), "%s/bad kernel", ft_test_dir());
	CHECK_OK(ft_write_file(good, "1", 1, 0600));
	CHECK_OK(ft_write_file(bad, "1", 1, 0600));
	use_fake_qemu("No bootable device", "nothing of the kind");
	CHECK_EQ(ft_qemu_probe_accel(bad), FT_ACCEL_TCG);
	CHECK(ft_test_logged("KVM does not run"));
	CHECK(ft_test_logged("to have KVM tried again"));
	CHECK_EQ(ft_qemu_probe_accel(""), FT_ACCEL_KVM);
	use_fake_qemu("No bootable device", "[    0.000000] Linux version 6.1");
	CHECK_EQ(ft_qemu_probe_accel(good), FT_ACCEL_KVM);
	CHECK_EQ(qemu_starts(), 3);
	CHECK_EQ(ft_qemu_probe_accel(good), FT_ACCEL_KVM);
	CHECK_EQ(ft_qemu_probe_accel(bad), FT_ACCEL_TCG);
	CHECK_EQ(qemu_starts(), 3);
	CHECK_OK(ft_write_file(bad, "22", 2, 0600));    /* another kernel in its place */
	CHECK_EQ(ft_qemu_probe_accel(bad), FT_ACCEL_KVM);
	CHECK_EQ(qemu_starts(), 4);
}

TEST(what_could_not_be_tried_says_nothing_about_kvm)
{
	struct ft_conf c;
	char kernel[128];

	if (access("/dev/kvm", R_OK | W_OK))
		ft_test_skip("no /dev/kvm");
	use_test_dirs();
	snprintf(kernel, sizeof(kernel), "%s/kernel", ft_test_dir());
	c = *ft_conf();
	snprintf(c.qemu, sizeof(c.qemu), "%s/not-installed-yet", ft_test_dir());
	ft_conf_set(&c);
	CHECK_EQ(ft_qemu_probe_accel(kernel), FT_ACCEL_TCG);
	use_fake_qemu("No bootable device", "Linux version 6.1");
	CHECK_EQ(ft_qemu_probe_accel(kernel), FT_ACCEL_TCG);    /* there is no such file yet */
	CHECK_OK(ft_write_file(kernel, "1", 1, 0600));
	CHECK_EQ(ft_qemu_probe_accel(kernel), FT_ACCEL_KVM);
	CHECK(!ft_test_logged("KVM does not run"));
}

TEST_TIMEOUT(kvm_is_believed_only_after_something_ran, 60)
{
	enum ft_accel a;
	uint64_t t;

	use_test_dirs();
	a = ft_qemu_probe_accel("");
	CHECK(a == FT_ACCEL_KVM || a == FT_ACCEL_TCG);
	t = ft_now_ns();
	CHECK_EQ(ft_qemu_probe_accel(""), a);
	CHECK(ft_now_ns() - t < FT_S_NS);       /* remembered: no five seconds again */
}
