// SPDX-License-Identifier: GPL-3.0-or-later
/* nbd.c - devices of the kernel's NBD client. See checkpoint/nbd.h. */
#include "checkpoint/nbd.h"
#include "netbuf/nl.h"

#include <dirent.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define HELLO_MS 30000u
#define BLOCK 512u                      /* what any image is a multiple of: guests see it as the size of a sector */
/*
 * After so long the kernel looks whether a request that has no answer was lost with its connection, and sends it again on
 * the new one. Not a limit for the server: a slow one is left in peace, since no timeout is set for the connection itself.
 */
#define LOOK_AGAIN_MS "2000"

extern char **environ;

/* --- which is ours --- */

static bool has_name(const char *sys, const char *device, const char *name)
{
	char path[512];
	struct ft_blob text;
	size_t len = strlen(name);
	bool is;

	snprintf(path, sizeof(path), "%s/%s/backend", sys, device);
	if (ft_read_file(path, 256, &text))
		return false;           /* free, or another program's */
	is = text.len >= len && !memcmp(text.data, name, len) && (text.len == len || text.data[len] == '\n');
	ft_blob_free(&text);
	return is;
}

int nbd_find(const char *sys, const char *name, unsigned *index)
{
	DIR *d = opendir(sys);
	int rc = -ENOENT;
	char rest;

	for (struct dirent *e; d && rc && (e = readdir(d)) != NULL; )
		if (sscanf(e->d_name, "nbd%u%c", index, &rest) == 1 && has_name(sys, e->d_name, name))
			rc = 0;
	if (d)
		closedir(d);
	return rc;
}

/* --- the kernel's answers --- */

struct talk {
	struct mnl_socket *nl;
	uint16_t family;
	uint32_t index;                 /* of the device that CONNECT has taken */
	char buf[1024];
};

static int find_family(const struct nlattr *attr, void *ctx)
{
	struct talk *t = ctx;

	if (mnl_attr_get_type(attr) == CTRL_ATTR_FAMILY_ID)
		t->family = mnl_attr_get_u16(attr);
	return MNL_CB_OK;
}

static int find_index(const struct nlattr *attr, void *ctx)
{
	struct talk *t = ctx;

	if (mnl_attr_get_type(attr) == NBD_ATTR_INDEX)
		t->index = mnl_attr_get_u32(attr);
	return MNL_CB_OK;
}

static int on_family(const struct nlmsghdr *m, void *ctx)
{
	return mnl_attr_parse(m, sizeof(struct genlmsghdr), find_family, ctx);
}

static int on_index(const struct nlmsghdr *m, void *ctx)
{
	return mnl_attr_parse(m, sizeof(struct genlmsghdr), find_index, ctx);
}

static struct nlmsghdr *message(struct talk *t, uint16_t family, uint8_t command)
{
	struct nlmsghdr *m = mnl_nlmsg_put_header(t->buf);
	struct genlmsghdr *g;

	m->nlmsg_type = family;
	m->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
	m->nlmsg_seq = 1;
	g = mnl_nlmsg_put_extra_header(m, sizeof(*g));
	g->cmd = command;
	g->version = 1;
	return m;
}

static int ask_family(struct talk *t)
{
	struct nlmsghdr *m = message(t, GENL_ID_CTRL, CTRL_CMD_GETFAMILY);

	mnl_attr_put_strz(m, CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME);
	return ft_nl_request(t->nl, m, on_family, t);
}

static void load_module(void)
{
	char *const argv[] = { (char *)"modprobe", (char *)"-q", (char *)"nbd", NULL };
	pid_t pid;

	if (!posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ))
		waitpid(pid, NULL, 0);
}

static int begin(struct talk *t)
{
	int rc = ft_nl_open(NETLINK_GENERIC, 0, &t->nl);

	if (rc)
		return rc;
	rc = ask_family(t);
	if (rc == -ENOENT) {
		load_module();
		rc = ask_family(t);
	}
	if (rc)
		mnl_socket_close(t->nl);
	return rc;
}

int nbd_available(void)
{
	struct talk t = { .nl = NULL };
	int rc = begin(&t);

	if (!rc)
		mnl_socket_close(t.nl);
	return rc;
}

/* --- the server's socket --- */

static int dial(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd, rc;

	if (strlen(path) >= sizeof(a.sun_path))
		return -ENAMETOOLONG;
	strcpy(a.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (!connect(fd, (struct sockaddr *)&a, sizeof(a)))
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

static void put_socket(struct nlmsghdr *m, int fd)
{
	struct nlattr *all = mnl_attr_nest_start(m, NBD_ATTR_SOCKETS), *one = mnl_attr_nest_start(m, NBD_SOCK_ITEM);

	mnl_attr_put_u32(m, NBD_SOCK_FD, (uint32_t)fd);
	mnl_attr_nest_end(m, one);
	mnl_attr_nest_end(m, all);
}

/* A new device, whichever is free. */
static int take_device(struct talk *t, int fd, const char *name, unsigned patience_s, const struct nbd_export *e)
{
	struct nlmsghdr *m = message(t, t->family, NBD_CMD_CONNECT);

	mnl_attr_put_u64(m, NBD_ATTR_SIZE_BYTES, e->bytes);
	mnl_attr_put_u64(m, NBD_ATTR_BLOCK_SIZE_BYTES, BLOCK);
	mnl_attr_put_u64(m, NBD_ATTR_SERVER_FLAGS, e->flags);
	mnl_attr_put_u64(m, NBD_ATTR_DEAD_CONN_TIMEOUT, patience_s);
	mnl_attr_put_strz(m, NBD_ATTR_BACKEND_IDENTIFIER, name);
	put_socket(m, fd);
	t->index = UINT32_MAX;
	return ft_nl_request(t->nl, m, on_index, t);
}

/* The kernel puts the new connection in the place of a dead one, and leaves it when there is none. */
static int mend_device(struct talk *t, int fd, const char *name, unsigned index)
{
	struct nlmsghdr *m = message(t, t->family, NBD_CMD_RECONFIGURE);

	mnl_attr_put_u32(m, NBD_ATTR_INDEX, index);
	mnl_attr_put_strz(m, NBD_ATTR_BACKEND_IDENTIFIER, name);
	put_socket(m, fd);
	t->index = index;
	return ft_nl_request(t->nl, m, NULL, t);
}

static int look_again_soon(unsigned index)
{
	char path[64];
	int rc = 0;
	FILE *f;

	snprintf(path, sizeof(path), NBD_SYS "/nbd%u/queue/io_timeout", index);
	f = fopen(path, "we");
	if (!f)
		return -errno;
	if (fputs(LOOK_AGAIN_MS, f) < 0)
		rc = -EIO;
	if (fclose(f))
		rc = -errno;
	return rc;
}

static int give_to_kernel(struct talk *t, const char *guest, int fd, const char *name, unsigned patience_s,
			  const struct nbd_export *e)
{
	unsigned index;
	int rc;

	if (!nbd_find(NBD_SYS, name, &index))
		rc = mend_device(t, fd, name, index);
	else
		rc = take_device(t, fd, name, patience_s, e);
	if (!rc && t->index == UINT32_MAX)
		rc = -EPROTO;
	if (rc)
		ft_err("guest %s: its disk cannot be made a device of this kernel: %s", guest, strerror(-rc));
	else if (look_again_soon(t->index))
		ft_warn("guest %s: /dev/nbd%u: should its server die, what is under way then waits half a minute too long", guest,
			t->index);
	return rc;
}

int nbd_connect(const char *guest, const char *socket, const char *name, unsigned patience_s, unsigned *index)
{
	struct talk t = { .nl = NULL };
	int fd, rc = begin(&t);
	struct nbd_export e;

	if (rc) {
		ft_err("guest %s: this kernel has no network block devices (%s): load its module with 'modprobe nbd'", guest,
		       strerror(-rc));
		return rc;
	}
	fd = dial(socket);
	rc = fd < 0 ? fd : nbd_hello(fd, HELLO_MS, &e);
	if (rc)
		ft_err("guest %s: the server of its disk at %s does not answer: %s", guest, socket, strerror(-rc));
	else
		rc = give_to_kernel(&t, guest, fd, name, patience_s, &e);
	*index = t.index;
	if (fd >= 0)
		close(fd);              /* the kernel has it by now */
	mnl_socket_close(t.nl);
	return rc;
}

int nbd_disconnect(const char *guest, const char *name)
{
	struct talk t = { .nl = NULL };
	struct nlmsghdr *m;
	unsigned index;
	int rc = nbd_find(NBD_SYS, name, &index);

	if (rc)
		return 0;
	rc = begin(&t);
	if (!rc) {
		m = message(&t, t.family, NBD_CMD_DISCONNECT);
		mnl_attr_put_u32(m, NBD_ATTR_INDEX, index);
		rc = ft_nl_request(t.nl, m, NULL, &t);
		mnl_socket_close(t.nl);
	}
	if (rc)
		ft_err("guest %s: /dev/nbd%u, its disk, cannot be disconnected: %s: 'nbd-client -d /dev/nbd%u' does it", guest, index,
		       strerror(-rc), index);
	return rc;
}
