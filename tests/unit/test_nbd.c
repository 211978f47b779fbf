// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_nbd.c - a Xen guest's disks where no Xen is: the negotiation with a server, whose device is whose, and Xen's hotplug
 * script among stand-ins for xenstore's tools and ft-guest. The kernel's part is tested in the Xen lab.
 */
#include "checkpoint/nbd.h"
#include "tests/test.h"

#include <endian.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GO_LEN 12                       /* IHAVEOPT, 7 */

/* --- negotiation --- */

static void put(int fd, const void *data, size_t len)
{
	CHECK_EQ(send(fd, data, len, MSG_NOSIGNAL), (ssize_t)len);
}

static void put_reply(int fd, uint32_t type, const void *body, uint32_t len)
{
	uint64_t magic = htobe64(0x3e889045565a9);
	uint32_t head[3] = { htobe32(7), htobe32(type), htobe32(len) };

	put(fd, &magic, sizeof(magic));
	put(fd, head, sizeof(head));
	put(fd, body, len);
}

static const uint8_t export_info[12] = { 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0x6d };
static const uint8_t block_info[14] = { 0, 3 };

struct answers {
	const char *hello;
	unsigned nr;
	struct {
		uint32_t type;
		const uint8_t *body;
		uint32_t len;
	} reply[3];
};

/* All that it will say is there before it is asked: the client reads in order. */
static int hello_of(const struct answers *a, struct nbd_export *out, char said[4 + GO_LEN])
{
	int fd[2], rc;

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
	put(fd[1], a->hello, 18);
	for (unsigned i = 0; i < a->nr; i++)
		put_reply(fd[1], a->reply[i].type, a->reply[i].body, a->reply[i].len);
	if (!a->nr)
		shutdown(fd[1], SHUT_WR);
	rc = nbd_hello(fd[0], 2000, out);
	if (!rc)
		CHECK_EQ(recv(fd[1], said, 4 + GO_LEN, MSG_WAITALL), 4 + GO_LEN);
	close(fd[0]);
	close(fd[1]);
	return rc;
}

TEST(a_server_is_asked_for_its_nameless_export_and_tells_size_and_flags)
{
	const struct answers a = {
		.hello = "NBDMAGICIHAVEOPT\0\3", .nr = 3,
		.reply = { { 3, block_info, sizeof(block_info) }, { 3, export_info, sizeof(export_info) }, { 1, NULL, 0 } },
	};
	struct nbd_export e;
	char said[4 + GO_LEN];

	CHECK_OK(hello_of(&a, &e, said));
	CHECK_EQ(e.bytes, 3 << 24);
	CHECK_EQ(e.flags, 0x6d);
	CHECK(!memcmp(said, "\0\0\0\3IHAVEOPT\0\0\0\7", sizeof(said)));     /* GO at once: no structured replies */
}

TEST(a_server_that_speaks_otherwise_is_refused)
{
	static const uint8_t refused[] = "no such export";
	static const struct answers bad[] = {
		{ .hello = "NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\0\0" },                          /* oldstyle */
		{ .hello = "NBDMAGICIHAVEOPT\0\2" },                                            /* newstyle, not fixed */
		{ .hello = "NBDMAGICIHAVEOPT\0\3", .nr = 1, .reply = { { 0x80000006, refused, 14 } } },
		{ .hello = "NBDMAGICIHAVEOPT\0\3", .nr = 1, .reply = { { 1, NULL, 0 } } },      /* done, and no size */
		{ .hello = "NBDMAGICIHAVEOPT\0\3", .nr = 1, .reply = { { 3, export_info, 11 } } },
		{ .hello = "NBDMAGICIHAVEOPT\0\3", .nr = 1, .reply = { { 3, export_info, 1 } } },
	};
	struct nbd_export e;
	char said[4 + GO_LEN];

	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		printf("# case %u\n", i);
		CHECK_EQ(hello_of(&bad[i], &e, said), -EPROTO);
	}
	CHECK_EQ(hello_of(&(struct answers){ .hello = "NBDMAGICIHAVEOPT\0\3" }, &e, said), -EPROTO);
}

TEST(a_server_that_says_nothing_is_not_waited_for_for_ever)
{
	struct nbd_export e;
	int fd[2];

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
	CHECK_EQ(nbd_hello(fd[0], 50, &e), -ETIMEDOUT);
}

/* --- whose device --- */

static void make_device(const char *name, const char *backend)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", ft_test_dir(), name);
	CHECK_OK(ft_mkdir_p(path, 0700));
	if (!backend)
		return;
	strcat(path, "/backend");
	CHECK_OK(ft_write_file(path, backend, strlen(backend), 0600));
}

TEST(a_device_is_known_by_the_whole_of_its_name)
{
	const char *d = ft_test_dir();
	unsigned n = 99;

	make_device("nbd0", NULL);
	make_device("nbd1", "ft:vm1.disk01\n");
	make_device("nbd2", "ft:vm1.disk\n");
	make_device("nbd12", "ft:vm1.disk0\n");
	make_device("nbd12p1", "ft:vm1.disk1\n");
	CHECK_OK(nbd_find(d, "ft:vm1.disk0", &n));
	CHECK_EQ(n, 12);
	CHECK_EQ(nbd_find(d, "ft:vm1.disk1", &n), -ENOENT);
	CHECK_EQ(nbd_find(d, "ft:vm1.dis", &n), -ENOENT);
	CHECK_EQ(nbd_find(d, "ft:vm2.disk0", &n), -ENOENT);
	CHECK_EQ(nbd_find("/no/such/directory", "ft:vm1.disk0", &n), -ENOENT);
}

/* --- the hotplug script --- */

static char script[200];

static void make_program(const char *name, const char *text)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s", ft_test_dir(), name);
	CHECK_OK(ft_write_file(path, text, strlen(text), 0700));
}

/* Stand-ins: xenstore is a folder, and its tools and ft-guest note what they were told. */
static void make_script(const char *ft_guest)
{
	const char *d = ft_test_dir();
	char command[600], text[600];

	snprintf(script, sizeof(script), "%s/block-ft", d);
	snprintf(command, sizeof(command), "sed s,@BIN@,%s, etc/xen/block-ft >%s && chmod 700 %s", d, script, script);
	CHECK_OK(system(command));
	snprintf(text, sizeof(text), "#!/bin/sh\ncase $1 in\n*/params) echo vm1:0:replica ;;\n/local/domain/7/name) echo vm1--replica ;;\n"
		 "*) grep -s \"^${1##*/}=\" %s/store || exit 1 ;;\nesac\n", d);
	make_program("xenstore-read", text);
	snprintf(text, sizeof(text), "#!/bin/sh\nwhile [ $# -gt 0 ]; do echo \"${1##*/}=$2\" >>%s/store; shift 2; done\n", d);
	make_program("xenstore-write", text);
	snprintf(text, sizeof(text), "#!/bin/sh\necho \"$*\" >>%s/told\n%s\n", d, ft_guest);
	make_program("ft-guest", text);
	CHECK_OK(ft_mkdir_p(strcat(strcpy(command, d), "/blkback/parameters"), 0700));
	CHECK_OK(ft_write_file(strcat(command, "/feature_persistent"), "Y\n", 2, 0600));
}

static int run_script(const char *what)
{
	char command[600];
	int status;

	snprintf(command, sizeof(command), "PATH=%s:$PATH FT_BLKBACK=%s/blkback XENBUS_PATH=/local/domain/0/backend/vbd/7/51712 %s %s",
		 ft_test_dir(), ft_test_dir(), script, what);
	status = system(command);
	CHECK(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void check_file(const char *name, const char *want)
{
	struct ft_blob text;
	char path[200], got[600];

	snprintf(path, sizeof(path), "%s/%s", ft_test_dir(), name);
	CHECK_OK(ft_read_file(path, 4096, &text));
	snprintf(got, sizeof(got), "%.*s", (int)text.len, (const char *)text.data);
	ft_blob_free(&text);
	CHECK_STR(got, want);
}

TEST(the_hotplug_script_tells_xenstore_which_device_the_disk_is)
{
	make_script("echo 'ft-guest: a warning' >&2; echo /dev/null");
	CHECK_EQ(run_script("add"), 0);
	check_file("told", "disk-attach vm1:0:replica --domain vm1--replica\n");
	check_file("store", "node=/dev/null\nphysical-device=1:3\nphysical-device-path=/dev/null\nhotplug-status=connected\n");
	check_file("blkback/parameters/feature_persistent", "N\n");
}

TEST(the_hotplug_script_tells_xl_why_there_is_no_disk)
{
	make_script("echo 'guest vm1 was handed over to beta' >&2; exit 4");
	CHECK_EQ(run_script("add"), 1);
	check_file("store", "hotplug-error=guest vm1 was handed over to beta\nhotplug-status=error\n");
}

/* libxl removes what it could not add. The disk is a replica's, say, and keeps its device. */
TEST(the_hotplug_script_lets_go_of_its_own_disk_only)
{
	make_script("echo 'its disk is /dev/nbd0 already' >&2; exit 4");
	CHECK_EQ(run_script("add"), 1);
	CHECK_EQ(run_script("remove"), 0);
	check_file("told", "disk-attach vm1:0:replica --domain vm1--replica\n");
	make_script("echo /dev/null");
	CHECK_EQ(run_script("add"), 0);
	CHECK_EQ(run_script("remove"), 0);
	check_file("told", "disk-attach vm1:0:replica --domain vm1--replica\ndisk-attach vm1:0:replica --domain vm1--replica\n"
		   "disk-detach --force vm1:0:replica\n");
}
