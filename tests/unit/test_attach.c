// SPDX-License-Identifier: GPL-3.0-or-later
/* test_attach.c - the attach record: names exactly one running process, or nothing. */
#include "ft/attach.h"
#include "ft/conf.h"
#include "tests/test.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char record_path[FT_PATH_MAX];

static void use_test_dir(void)
{
	struct ft_conf c = { 0 };

	snprintf(c.run_dir, sizeof(c.run_dir), "%s", ft_test_dir());
	ft_conf_set(&c);
	CHECK_OK(ft_run_path(record_path, sizeof(record_path), "vm1", ""));
	CHECK_OK(ft_mkdir_p(record_path, 0700));
	CHECK_OK(ft_run_path(record_path, sizeof(record_path), "vm1", "attach"));
}

static struct ft_attach sample(pid_t pid)
{
	struct ft_attach at = {
		.guest = "vm1", .qmp = "/run/q", .qmp_guard = "/run/g", .qmp_state = "/run/s", .ram = "/dev/shm/r", .memory = 64 << 20,
		.preload = "/run/p", .accel = FT_ACCEL_TCG, .machine = "pc-i440fx-7.2", .qemu_version = "7.2.22",
		.nr_disks = 1, .disk = { { .image = "/img", .nbd = "/run/n", .control = "/run/c", .read_only = true, .pid = 7, .pid_start = 8 } },
		.nr_nics = 1, .nic = { { .mac = { 0x52, 0x54, 0, 1, 2, 0xff }, .tap = "ft0", .bridge = "br0" } },
	};

	CHECK_OK(ft_attach_fill_pid(&at, pid));
	return at;
}

static pid_t child_that_waits(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (!pid) {
		pause();
		_exit(0);
	}
	return pid;
}

TEST(what_is_saved_is_loaded)
{
	struct ft_attach at, back;

	use_test_dir();
	at = sample(getpid());
	CHECK_OK(ft_attach_save(&at));
	CHECK_OK(ft_attach_load("vm1", &back));
	CHECK(!memcmp(&at, &back, sizeof(at)));
	CHECK_OK(ft_attach_remove("vm1"));
	CHECK_OK(ft_attach_remove("vm1"));
	CHECK_EQ(ft_attach_load("vm1", &back), -ENOENT);
}

/* Nobody asks Xen here: what is loaded is compared with what was saved, whether the domain lives or not. */
TEST(a_record_of_a_domain_has_its_disks_also_unserved_ones)
{
	struct ft_attach at = {
		.guest = "vm1", .hypervisor = FT_HYPERVISOR_XEN, .memory = 64 << 20, .domid = 7, .uuid = "u", .xen_version = "4.17", .pages = "0+4000",
		.nr_disks = 2, .disk = { { .image = "/img", .nbd = "/run/n", .control = "/run/c", .pid = 7, .pid_start = 8 },
					 { .image = "/img2", .nbd = "/run/n2", .control = "/run/c2", .read_only = true } },
		.nr_nics = 1, .nic = { { .mac = { 0x52, 0x54, 0, 1, 2, 0xff }, .tap = "vif7.0", .bridge = "xenbr0" } },
	};
	struct ft_attach back;

	use_test_dir();
	CHECK_OK(ft_attach_save(&at));
	CHECK_EQ(ft_attach_load("vm1", &back), -ESRCH);
	CHECK(!memcmp(&at, &back, sizeof(at)));
}

TEST(a_process_that_ended_is_gone_and_its_pidfd_says_so)
{
	pid_t pid;
	struct ft_attach at, back;
	struct pollfd p = { .events = POLLIN };

	use_test_dir();
	pid = child_that_waits();
	at = sample(pid);
	CHECK_OK(ft_attach_save(&at));
	p.fd = ft_attach_pidfd(&at);
	CHECK(p.fd >= 0);
	CHECK_EQ(poll(&p, 1, 0), 0);
	kill(pid, SIGKILL);
	CHECK_EQ(poll(&p, 1, 10000), 1);
	CHECK_EQ(ft_attach_load("vm1", &back), -ESRCH); /* a zombie */
	waitpid(pid, NULL, 0);
	CHECK_EQ(ft_attach_load("vm1", &back), -ESRCH);
	CHECK_STR(back.ram, "/dev/shm/r");
	close(p.fd);
}

TEST(a_recycled_pid_is_not_our_guest)
{
	struct ft_attach at, back;

	use_test_dir();
	at = sample(getpid());
	at.pid_start++;
	CHECK_OK(ft_attach_save(&at));
	CHECK_EQ(ft_attach_load("vm1", &back), -ESRCH);
}

static char *edited(const char *text, const char *from, const char *to)
{
	const char *at = strstr(text, from);
	char *out = NULL;

	CHECK(at);
	CHECK(asprintf(&out, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from)) > 0);
	return out;
}

TEST(a_record_that_does_not_follow_the_schema_is_refused)
{
	static const struct { const char *from, *to, *complaint; } edits[] = {
		{ "\"guest\": \"vm1\"", "\"guest\": \"vm2\"", "'guest' must be" },
		{ "\"guest\": \"vm1\"", "\"guest\": 7", "'guest' must be" },
		{ "\"pid\": ", "\"pid\": -", "'pid' must be" },
		{ "\"pid\": ", "\"pid\": 99999999999", "'pid' must be" },
		{ "\"pid\": ", "\"pidd\": ", "'pid' must be" },
		{ "\"qmp\": \"/run/q\"", "\"qmp\": \"run/q\"", "'qmp' must be" },
		{ "\"ram\": \"/dev/shm/r\"", "\"ram\": \"\"", "'ram' must be" },
		{ "\"memory\": 67108864", "\"memory\": 67108865", "'memory' must be" },
		{ "\"memory\": 67108864", "\"memory\": 1e300", "'memory' must be" },
		{ "\"accel\": \"tcg\"", "\"accel\": \"auto\"", "'accel' must be" },
		{ "52:54:00:01:02:ff", "52:54:00:01:02", "'mac' must be" },
		{ "52:54:00:01:02:ff", "52:54:00:01:02:ff:00", "'mac' must be" },
		{ "\"tap\": \"ft0\"", "\"tap\": \"0123456789abcdef\"", "'tap' must be" },
		{ "\"tap\": \"ft0\"", "\"tap\": \"ft0\", \"x\": 1", "'nics' must be" },
		{ "\"image\": \"/img\"", "\"image\": \"img\"", "'image' must be" },
		{ "\"nbd\": \"/run/n\"", "\"nbd\": 1", "'nbd' must be" },
		{ "\"read_only\": true", "\"read_only\": 1", "'read_only' must be" },
		{ "\"pid\": 7", "\"pid\": 0", "'pid' must be" },
		{ "\"image\": \"/img\"", "\"image\": \"/img\", \"x\": 1", "'disks' must be" },
		{ "\"disks\": [", "\"disks\": 3, \"d\": [", "'disks' must be" },
		{ "{\n", "{\n\"extra\": 1,\n", "free of unknown keys" },
		{ "{\n", "{\n\"guest\": \"vm1\",\n", "duplicate" },
		{ "{\n", "[", "attach:" },
	};
	struct ft_attach at, back;
	struct ft_blob text;

	use_test_dir();
	at = sample(getpid());
	CHECK_OK(ft_attach_save(&at));
	CHECK_OK(ft_read_file(record_path, 65536, &text));
	for (unsigned i = 0; i < FT_ARRAY_LEN(edits); i++) {
		char *bad = edited((const char *)text.data, edits[i].from, edits[i].to);

		CHECK_OK(ft_write_file(record_path, bad, strlen(bad), 0600));
		CHECK_EQ(ft_attach_load("vm1", &back), -EINVAL);
		if (!ft_test_logged(edits[i].complaint))
			ft_test_fail(__FILE__, __LINE__, "case %u did not say \"%s\"", i, edits[i].complaint);
		free(bad);
	}
	for (size_t n = 0; n < text.len; n += 7) {
		CHECK_OK(ft_write_file(record_path, text.data, n, 0600));
		CHECK_EQ(ft_attach_load("vm1", &back), -EINVAL);
	}
	ft_blob_free(&text);
}
