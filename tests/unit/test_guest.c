// SPDX-License-Identifier: GPL-3.0-or-later
/* test_guest.c - the program ft-guest as its user meets it: what it says, what it refuses, how it exits. */
#include "checkpoint/qemu.h"
#include "ft/conf.h"
#include "ft/record.h"
#include "tests/test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct ft_conf c;
static char out[65536];                 /* what the last ft-guest said, both ways */

static void write_text(const char *path, const char *fmt, ...) FT_PRINTF(2, 3);
static void write_text(const char *path, const char *fmt, ...)
{
	char text[4096];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	CHECK_OK(ft_write_file(path, text, strlen(text), 0600));
}

static void program_dir(char *dir, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", dir, size - 8);

	CHECK(n > 0);
	dir[n] = 0;
	strcpy(strrchr(dir, '/'), "/../bin");
}

static void make_world(void)
{
	char path[128], bin[200];
	const char *d = ft_test_dir();

	program_dir(bin, sizeof(bin));
	snprintf(path, sizeof(path), "%s/ft.conf", d);
	write_text(path, "[ft]\nguests-dir = %s/guests\nstate-dir = %s/state\nrun-dir = %s/run\nshm-dir = %s/shm\nlibexec-dir = %s\n",
		   d, d, d, d, bin);
	CHECK_OK(ft_conf_load(path, &c));
	ft_conf_set(&c);
	CHECK_OK(ft_mkdir_p(c.guests_dir, 0700));
	CHECK_OK(ft_mkdir_p(c.state_dir, 0700));
	snprintf(path, sizeof(path), "%s/guests/vm1.conf", d);
	write_text(path, "[guest]\nname = vm1\nmemory = 32M\naccel = tcg\n");
}

/* Run ft-guest with these words; its exit status. */
static int guest(const char *words)
{
	char command[1024], bin[200];
	size_t n = 0, got;
	FILE *f;
	int status;

	program_dir(bin, sizeof(bin));
	snprintf(command, sizeof(command), "%s/ft-guest -c %s %s 2>&1 </dev/null", bin, c.path, words);
	f = popen(command, "r");
	CHECK(f);
	while (n < sizeof(out) - 1 && (got = fread(out + n, 1, sizeof(out) - 1 - n, f)) > 0)
		n += got;
	out[n] = 0;
	status = pclose(f);
	printf("# ft-guest %s: status %d\n", words, WEXITSTATUS(status));
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static bool said(const char *part)
{
	if (!strstr(out, part))
		printf("# it said: %s\n", out);
	return strstr(out, part) != NULL;
}

static void record(enum ft_role role)
{
	struct ft_record r = { .generation = 7, .role = role, .peer = "beta" };
	char path[2 * FT_PATH_MAX];

	snprintf(path, sizeof(path), "%s/vm1.record", c.state_dir);
	unlink(path);
	if (role == FT_ROLE_RUNNING)    /* only a takeover leads there */
		CHECK_OK(ft_record_save(NULL, c.state_dir, "vm1", &(struct ft_record){ 6, FT_ROLE_ARMED, "beta" }));
	CHECK_OK(ft_record_save(NULL, c.state_dir, "vm1", &r));
}

static enum ft_role recorded(void)
{
	struct ft_record r;

	CHECK_OK(ft_record_load(NULL, c.state_dir, "vm1", &r));
	return r.role;
}

TEST(wrong_words_are_usage_errors)
{
	static const char *const bad[] = {
		"", "frobnicate", "start", "start a b", "list vm1", "start ../x", "start vm1 --json", "stop vm1 --timeout x",
		"list --force", "start vm1 --nonsense", "disk-attach vm1", "disk-attach vm1:", "disk-attach vm1:8", "disk-attach vm1:00",
		"disk-attach vm1:0:x", "disk-attach ../x:0", "disk-attach :0", "disk-detach vm1:0 --domain vm1",
	};

	make_world();
	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK_EQ(guest(bad[i]), 2);
		CHECK(said("usage: ft-guest"));
	}
	CHECK_EQ(guest("--help"), 0);
	CHECK_EQ(guest("--version"), 0);
}

TEST(guests_that_do_not_exist_or_do_not_parse_are_named)
{
	char path[2 * FT_PATH_MAX];

	make_world();
	CHECK_EQ(guest("start vm9"), 3);
	CHECK(said("guests/vm9.conf: No such file"));
	CHECK_EQ(guest("stop vm1"), 3);
	CHECK(said("guest vm1 does not run here"));
	CHECK_EQ(guest("status vm1"), 3);
	snprintf(path, sizeof(path), "%s/guests/vm2.conf", ft_test_dir());
	write_text(path, "[guest]\nname = vm2\nmemory = lots\n");
	CHECK_EQ(guest("start vm2"), 2);
	CHECK(said("vm2.conf:3: 'memory' must be a size"));
	write_text(c.path, "[ft]\nprot = 1\n");
	CHECK_EQ(guest("list"), 2);
	CHECK(said("ft.conf:2: section [ft] knows no key 'prot'"));
}

TEST(a_guest_that_may_run_elsewhere_is_not_started)
{
	static const struct { enum ft_role role; const char *why; } cases[] = {
		{ FT_ROLE_PRIMARY, "may have been taken over by beta" },
		{ FT_ROLE_ARMED, "has its replica here and runs on beta" },
		{ FT_ROLE_DISARMED, "stayed with beta" },
		{ FT_ROLE_STOOD_DOWN, "was handed over to beta" },
	};
	char path[2 * FT_PATH_MAX];

	make_world();
	for (unsigned i = 0; i < FT_ARRAY_LEN(cases); i++) {
		record(cases[i].role);
		CHECK_EQ(guest("start vm1"), 4);
		CHECK(said(cases[i].why));
		CHECK(said("generation 7"));
		CHECK(said("--force"));
	}
	snprintf(path, sizeof(path), "%s/vm1.record", c.state_dir);
	write_text(path, "nonsense\n");
	CHECK_EQ(guest("start vm1"), 4);
	CHECK(said("--force"));
}

/* As Xen's hotplug script asks for it; nothing of Xen is needed to refuse. */
TEST(a_domain_is_not_given_a_disk_that_is_not_its_own_or_whose_guest_may_run_elsewhere)
{
	char path[2 * FT_PATH_MAX];

	make_world();
	snprintf(path, sizeof(path), "%s/guests/vm2.conf", ft_test_dir());
	write_text(path, "[guest]\nname = vm2\nmemory = 32M\n[disk]\nimage = /x\n");
	CHECK_EQ(guest("disk-attach vm2:0 --domain vm2"), 3);
	CHECK(said("no [disk] number 1 of a Xen guest"));
	snprintf(path, sizeof(path), "%s/guests/vm1.conf", ft_test_dir());
	write_text(path, "[guest]\nname = vm1\nhypervisor = xen\nkernel = /k\nmemory = 32M\n[disk]\nimage = %s/none.raw\n", ft_test_dir());
	CHECK_EQ(guest("disk-attach vm9:0 --domain vm9"), 3);
	CHECK_EQ(guest("disk-attach vm1:1 --domain vm1"), 3);
	CHECK(said("no [disk] number 2"));
	CHECK_EQ(guest("disk-attach vm1:0 --domain vm1--incoming"), 4);
	CHECK(said("domain vm1--incoming is not vm1"));
	CHECK_EQ(guest("disk-attach vm1:0:replica --domain vm1"), 4);
	CHECK(said("is not vm1--replica"));
	CHECK_EQ(guest("disk-attach vm1:0 --domain vm1"), 1);
	CHECK(said("there is no disk image"));
	record(FT_ROLE_STOOD_DOWN);
	CHECK_EQ(guest("disk-attach vm1:0 --domain vm1"), 4);
	CHECK(said("was handed over to beta"));
	CHECK_EQ(guest("disk-attach vm1:0:force --domain vm1"), 1);
	CHECK(said("there is no disk image"));
	CHECK_EQ(recorded(), FT_ROLE_STOOD_DOWN);       /* nothing was started */
	CHECK_EQ(guest("disk-detach vm1:0"), 0);
}

/* What somebody types who thinks of the guest that ran here before. */
TEST_TIMEOUT(a_replica_is_not_stopped_in_the_name_of_its_guest, 120)
{
	struct ft_qemu_launch l = { .kind = FT_QEMU_PARKED };
	struct ft_attach parked, dead;
	struct ft_spec spec;

	make_world();
	ft_test_namespaces();
	CHECK_OK(ft_spec_load("vm1", &spec));
	l.spec = &spec;
	CHECK_OK(ft_qemu_start(&l, &parked));
	dead = parked;
	dead.pid_start++;               /* the guest's QEMU, long gone */
	CHECK_OK(ft_attach_save(&dead));
	record(FT_ROLE_ARMED);
	CHECK_EQ(guest("stop vm1"), 4);
	CHECK(said("runs on beta; here is only its replica"));
	CHECK_EQ(guest("stop vm1 --force"), 0);
	CHECK(ft_qmp_listening(parked.qmp));
	CHECK_OK(access(parked.ram, F_OK));
	ft_qemu_cleanup(&parked);
	CHECK(access(parked.ram, F_OK) < 0);
}

TEST_TIMEOUT(a_guest_lives_from_start_to_stop, 120)
{
	char path[2 * FT_PATH_MAX];
	struct ft_attach at;
	struct stat st;

	make_world();
	ft_test_namespaces();
	CHECK_EQ(guest("start vm1"), 0);
	CHECK(said("vm1 runs: tcg, pc-i440fx-"));
	CHECK_EQ(guest("start vm1"), 0);
	CHECK(said("runs already"));
	CHECK_EQ(guest("status vm1 --json"), 0);
	CHECK(said("\"state\": \"running\""));
	CHECK_EQ(guest("list"), 0);
	CHECK(said("running"));
	CHECK_OK(ft_attach_load("vm1", &at));

	/* Protected: stopping it would start it elsewhere. */
	record(FT_ROLE_PRIMARY);
	CHECK_EQ(guest("start vm1"), 0);
	CHECK(said("runs already"));
	CHECK_EQ(guest("stop vm1"), 4);
	CHECK(said("ft-ctl unprotect vm1"));
	CHECK_OK(ft_attach_load("vm1", &at));

	/* Firmware knows no power button: after the time limit QEMU is told to quit. */
	CHECK_EQ(guest("stop vm1 --force --timeout 1"), 0);
	CHECK(said("did not shut down within 1 s"));
	CHECK_EQ(ft_attach_load("vm1", &at), -ENOENT);
	CHECK_OK(ft_run_path(path, sizeof(path), "vm1", ""));
	CHECK(stat(path, &st) < 0);
	CHECK(stat(at.ram, &st) < 0);
}

TEST_TIMEOUT(a_guest_that_died_leaves_nothing_in_the_way_of_the_next, 120)
{
	struct ft_attach at, next;

	make_world();
	ft_test_namespaces();
	CHECK_EQ(guest("start vm1"), 0);
	CHECK_OK(ft_attach_load("vm1", &at));
	kill(at.pid, SIGKILL);
	while (ft_attach_load("vm1", &at) == 0)
		usleep(10000);
	CHECK_EQ(guest("list"), 0);
	CHECK(said("dead"));
	record(FT_ROLE_RUNNING);
	CHECK_EQ(guest("start vm1"), 0);
	CHECK_OK(ft_attach_load("vm1", &next));
	CHECK(next.pid != at.pid);
	CHECK_EQ(guest("stop vm1 --kill"), 0);
	CHECK_EQ(guest("list --json"), 0);
	CHECK(said("\"state\": \"stopped\""));
}

TEST_TIMEOUT(a_forced_start_says_what_it_overrides, 120)
{
	make_world();
	ft_test_namespaces();
	record(FT_ROLE_STOOD_DOWN);
	CHECK_EQ(guest("start vm1 --force"), 0);
	CHECK(said("was handed over to beta (generation 7): started all the same"));
	CHECK_EQ(guest("stop vm1 --kill"), 0);
}

/* ftd would find that it may not start what it keeps; a guest that ft-protect keeps would lose its record under it. */
TEST(no_force_takes_the_record_from_a_process_that_acts_on_it)
{
	static const struct { enum ft_role role; const char *lock, *instead; } cases[] = {
		{ FT_ROLE_ARMED, "standby.lock", "'ft-ctl failover --force' here has it take over" },
		{ FT_ROLE_PRIMARY, "protect.lock", "end that with 'ft-ctl unprotect' first" },
	};
	char path[2 * FT_PATH_MAX];
	int fd;

	make_world();
	CHECK_OK(ft_run_path(path, sizeof(path), "vm1", ""));
	CHECK_OK(ft_mkdir_p(path, 0700));
	for (unsigned i = 0; i < FT_ARRAY_LEN(cases); i++) {
		record(cases[i].role);
		CHECK_OK(ft_run_path(path, sizeof(path), "vm1", cases[i].lock));
		CHECK_OK(ft_lock_file(path, false, &fd));
		CHECK_EQ(guest("start vm1 --force"), 4);
		CHECK(said(cases[i].instead));
		CHECK_EQ(recorded(), cases[i].role);
		close(fd);
		CHECK_EQ(guest("start vm1"), 4);
		CHECK(said("start it with --force"));
	}
}

TEST(two_at_once_on_one_guest_do_not_meet)
{
	char dir[2 * FT_PATH_MAX];
	int fd;

	make_world();
	CHECK_OK(ft_run_path(dir, sizeof(dir), "vm1", ""));
	CHECK_OK(ft_mkdir_p(dir, 0700));
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(fd >= 0 && !flock(fd, LOCK_EX));
	CHECK_EQ(guest("start vm1"), 1);
	CHECK(said("another ft-guest is at work"));
	close(fd);
}
