// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export_control.c - the control socket: one thread, commands in the order in which they come.
 *
 * Commands that change how the guest's requests are treated take the whole disk for a moment: no request is then half
 * under the old rule.
 */
#include "export_priv.h"
#include "ft/thread.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define STREAM_BUFFER (4 << 20)         /* of the socket, where the kernel allows it */

typedef struct ft_export_client client;

/* --- commands: 0, or the client is dropped; -EPROTO is logged --- */

static bool has_stream(struct ft_export *e, const client *c)
{
	bool yes;

	pthread_mutex_lock(&e->stream_lock);
	yes = e->stream == c;
	pthread_mutex_unlock(&e->stream_lock);
	return yes;
}

static int tell_here(struct ft_export *e, client *c)
{
	uint8_t body[FT_DISK_ID_LEN + 8];
	struct ft_disk_id id;

	ft_export_id(e, &id);
	ft_disk_pack_id(&id, body);
	ft_put64(body + FT_DISK_ID_LEN, e->seq);
	return ft_export_tell(e, c, FT_EXPORT_HERE, body, sizeof(body));
}

static int tell_error(struct ft_export *e, client *c, uint32_t type, int rc)
{
	uint8_t body[4];

	ft_put32(body, (uint32_t)-rc);
	return ft_export_tell(e, c, type, body, sizeof(body));
}

static int cmd_ask(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	return tell_here(e, c);
}

/* The page stays as long as we have it mapped: nobody may cut the file under us. */
static int map_page(client *c, struct ft_export_page **out)
{
	struct stat st;
	void *p;

	if (c->memfd < 0 || fstat(c->memfd, &st) < 0 || st.st_size < FT_PAGE_SIZE)
		return -EPROTO;
	if (fcntl(c->memfd, F_ADD_SEALS, F_SEAL_SHRINK) < 0 && !(fcntl(c->memfd, F_GET_SEALS) & F_SEAL_SHRINK))
		return -EPROTO;
	p = mmap(NULL, sizeof(**out), PROT_READ | PROT_WRITE, MAP_SHARED, c->memfd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

static const char *why_not_start(struct ft_export *e)
{
	if (e->parked)
		return "it is a replica's and waits for a takeover";
	if (!e->map_path)
		return "it has no map; start its nbdkit with map=PATH";
	return e->streaming ? "another ft-protect mirrors it already; stop that first" : NULL;
}

static int refuse_start(struct ft_export *e, client *c, const char *why)
{
	char text[256];

	snprintf(text, sizeof(text), "disk %s cannot be mirrored: %s", e->image, why);
	ft_err("%s", text);
	ft_ignore(ft_export_tell(e, c, FT_EXPORT_FAILED, text, strlen(text)));     /* dropped anyway */
	return -EPERM;
}

static void forget_durable(struct ft_export *e)
{
	pthread_mutex_lock(&e->order_lock);
	e->durable = e->applied = 0;
	pthread_mutex_unlock(&e->order_lock);
}

static void begin_stream(struct ft_export *e, client *c, struct ft_export_page *page)
{
	pthread_mutex_lock(&e->stream_lock);
	page->sent = e->seq;
	e->page = page;
	e->stream = c;
	c->had_stream = true;
	e->streaming = true;
	pthread_mutex_unlock(&e->stream_lock);
}

/*
 * Nobody changes the disk meanwhile. What an earlier stream carried proves nothing about this one: until a copy says
 * so, nothing that is touched counts as compared.
 */
static int start(struct ft_export *e, client *c, struct ft_export_page *page)
{
	int rc = e->map ? 0 : ft_export_make_map(e);

	if (rc)
		return rc;
	forget_durable(e);
	ft_map_copy_begins(e->map);
	rc = tell_here(e, c);
	if (!rc)
		begin_stream(e, c, page);
	return rc;
}

static int cmd_start(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	struct ft_export_page *page = NULL;
	struct ft_range whole;
	int rc;

	if (ft_le32(body) != FT_EXPORT_VERSION)
		return refuse_start(e, c, "ft-protect and nbdkit-ft-plugin.so are of different versions; install both "
				    "from one");
	if (why_not_start(e))
		return refuse_start(e, c, why_not_start(e));
	rc = map_page(c, &page);
	if (rc)
		return rc;
	ft_export_order_all(e, &whole);
	rc = start(e, c, page);
	ft_export_settle(e, &whole);
	if (!rc)
		return 0;
	munmap(page, sizeof(*page));
	return refuse_start(e, c, strerror(-rc));
}

static int cmd_add(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	return ft_export_add(e, body, len);
}

static int cmd_copy(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	return ft_export_copy(e, c, ft_le32(body));
}

static int cmd_compare(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	return ft_export_compare(e, body, len);
}

/* The peer can be faster than who has just sent an op and is about to count it: hence the lock. */
static uint64_t last_sent(struct ft_export *e)
{
	uint64_t seq;

	pthread_mutex_lock(&e->stream_lock);
	seq = e->seq;
	pthread_mutex_unlock(&e->stream_lock);
	return seq;
}

static int cmd_durable(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	if (ft_le64(body) > last_sent(e))
		return -EPROTO;
	ft_export_durable(e, ft_le64(body));
	return 0;
}

/* A generation that is due and was not made yet is not needed: nobody has seen anything new. */
static int cmd_held(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	pthread_mutex_lock(&e->id_lock);
	e->generation_due = false;
	pthread_mutex_unlock(&e->id_lock);
	return 0;
}

static int cmd_seen(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	struct ft_range whole;
	int rc;

	ft_export_order_all(e, &whole);
	rc = ft_export_make_generation(e);
	ft_export_settle(e, &whole);
	if (rc)
		ft_export_fail(e, "its map cannot be written: %s", strerror(-rc));
	return rc;
}

static int cmd_elide(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	int rc = 0;

	if (ft_le32(body))
		rc = ft_export_begin_elide(e);
	else
		ft_export_end_elide(e);         /* what cannot be synced ends the mirror, and is the guest's at its next flush */
	if (rc)
		ft_export_fail(e, "its map cannot be written: %s", strerror(-rc));
	return rc;
}

static int cmd_adopted(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	struct ft_disk_id id;
	int rc;

	pthread_mutex_lock(&e->id_lock);
	ft_map_id(e->map, &id);
	id.base = 0;
	rc = ft_map_set_id(e->map, &id);
	pthread_mutex_unlock(&e->id_lock);
	if (rc)
		ft_export_fail(e, "its map cannot be written: %s", strerror(-rc));
	return rc;
}

/* The guest goes on meanwhile, as a new generation; who asked hears when it is synced. */
static int cmd_leave(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	struct ft_range whole;

	if (e->streaming && !has_stream(e, c))
		return -EPROTO;
	ft_export_order_all(e, &whole);
	ft_export_stream_end(e);
	e->generation_due = !e->parked;
	ft_export_settle(e, &whole);
	c->leave = ft_export_owe(e);
	return 0;
}

static int cmd_fence(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	struct ft_range whole;

	e->fenced = true;
	ft_export_order_all(e, &whole);         /* whoever had got past the check is through */
	ft_export_settle(e, &whole);
	ft_warn("disk %s: fenced; nothing is written to it any more", e->image);
	return ft_export_tell(e, c, FT_EXPORT_FENCED, NULL, 0);
}

static int activate(struct ft_export *e)
{
	struct ft_range whole;
	int rc;

	if (!e->was_parked)
		return -EINVAL;
	if (!e->parked)
		return 0;
	ft_export_order_all(e, &whole);
	rc = e->fenced ? -EROFS : ft_export_open_image(e);
	if (!rc)
		e->parked = false;
	ft_export_settle(e, &whole);
	return rc;
}

static int cmd_activate(struct ft_export *e, client *c, const uint8_t *body, size_t len)
{
	return tell_error(e, c, FT_EXPORT_ACTIVE, activate(e));
}

static const struct command {
	uint32_t type, least, most;
	bool streamer;                  /* only from who has the stream */
	int (*run)(struct ft_export *e, client *c, const uint8_t *body, size_t len);
} commands[] = {
	{ FT_EXPORT_ASK,      0,  0,                   false, cmd_ask },
	{ FT_EXPORT_START,    4,  4,                   false, cmd_start },
	{ FT_EXPORT_ADD,      8,  FT_EXPORT_BODY_MAX,  true,  cmd_add },
	{ FT_EXPORT_COPY,     4,  4,                   true,  cmd_copy },
	{ FT_EXPORT_COMPARE,  16, 16 + FT_REGION_GRANULES * FT_HASH_LEN, true, cmd_compare },
	{ FT_EXPORT_DURABLE,  8,  8,                   true,  cmd_durable },
	{ FT_EXPORT_HELD,     0,  0,                   true,  cmd_held },
	{ FT_EXPORT_SEEN,     0,  0,                   true,  cmd_seen },
	{ FT_EXPORT_ELIDE,    4,  4,                   true,  cmd_elide },
	{ FT_EXPORT_ADOPTED,  0,  0,                   true,  cmd_adopted },
	{ FT_EXPORT_LEAVE,    0,  0,                   false, cmd_leave },
	{ FT_EXPORT_FENCE,    0,  0,                   false, cmd_fence },
	{ FT_EXPORT_ACTIVATE, 0,  0,                   false, cmd_activate },
};

static int dispatch(struct ft_export *e, client *c, uint32_t type, const uint8_t *body, size_t len)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(commands); i++) {
		const struct command *cmd = &commands[i];

		if (cmd->type != type || len < cmd->least || len > cmd->most)
			continue;
		if (cmd->streamer && !has_stream(e, c))
			return c->had_stream ? -EPIPE : -EPROTO;
		return cmd->run(e, c, body, len);
	}
	return -EPROTO;
}

/* --- clients --- */

static void drop_client(struct ft_export *e, client *c)
{
	if (has_stream(e, c))
		ft_export_stream_end(e);
	close(c->fd);
	if (c->memfd >= 0)
		close(c->memfd);
	free(c->in);
	*c = (client){ .fd = -1, .memfd = -1 };
}

union control {
	struct cmsghdr hdr;
	char space[CMSG_SPACE(sizeof(int))];
};

static void take_fd(client *c, struct msghdr *m)
{
	struct cmsghdr *h = CMSG_FIRSTHDR(m);

	if (!h || h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS || h->cmsg_len != CMSG_LEN(sizeof(int)))
		return;
	if (c->memfd >= 0)
		close(c->memfd);
	memcpy(&c->memfd, CMSG_DATA(h), sizeof(int));
}

static ssize_t receive(client *c)
{
	struct iovec iov = { c->in + c->have, FT_EXPORT_HDR + FT_EXPORT_BODY_MAX - c->have };
	union control ctl = { .space = { 0 } };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &ctl, .msg_controllen = sizeof(ctl) };
	ssize_t n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (n < 0)
		return errno == EAGAIN || errno == EINTR ? 0 : -errno;
	take_fd(c, &m);
	return n ? n : -EPIPE;
}

static int run_messages(struct ft_export *e, client *c)
{
	size_t at = 0;
	int rc = 0;

	while (!rc && c->have - at >= FT_EXPORT_HDR) {
		size_t len = ft_le32(c->in + at + 4);

		if (len > FT_EXPORT_BODY_MAX)
			return -EPROTO;
		if (c->have - at - FT_EXPORT_HDR < len)
			break;
		rc = dispatch(e, c, ft_le32(c->in + at), c->in + at + FT_EXPORT_HDR, len);
		at += FT_EXPORT_HDR + len;
	}
	c->have -= at;
	memmove(c->in, c->in + at, c->have);
	return rc;
}

static void serve(struct ft_export *e, client *c)
{
	ssize_t n = receive(c);
	int rc = n < 0 ? (int)n : 0;

	c->have += n > 0 ? (size_t)n : 0;
	if (!rc)
		rc = run_messages(e, c);
	if (rc == -EPROTO)
		ft_err("disk %s: a client of %s sends what makes no sense; it is dropped", e->image, e->control);
	if (rc)
		drop_client(e, c);
}

/* A free place, or that of somebody who only asks. */
static client *place(struct ft_export *e)
{
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		if (e->client[i].fd < 0)
			return &e->client[i];
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		if (!has_stream(e, &e->client[i])) {
			drop_client(e, &e->client[i]);
			return &e->client[i];
		}
	return NULL;
}

static void welcome(struct ft_export *e)
{
	int size = STREAM_BUFFER, fd = accept4(e->door, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	client *c;

	if (fd < 0)
		return;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) < 0)
		setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	c = place(e);
	assert(c);                      /* one at most has the stream */
	c->in = malloc(FT_EXPORT_HDR + FT_EXPORT_BODY_MAX);
	if (!c->in) {
		close(fd);
		return;
	}
	c->fd = fd;
}

/* --- the thread --- */

static void answer_leave(struct ft_export *e, client *c)
{
	int rc;

	if (c->fd < 0 || !c->leave || !ft_export_paid(e, c->leave, &rc))
		return;
	c->leave = 0;
	if (tell_error(e, c, FT_EXPORT_LEFT, rc))
		drop_client(e, c);
}

static void woken(struct ft_export *e)
{
	eventfd_t nr;

	ft_ignore(eventfd_read(e->wake_fd, &nr));
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		answer_leave(e, &e->client[i]);
}

static void serve_ready(struct ft_export *e, const struct pollfd *p)
{
	/* Those who are here first: the end of one mirror is seen before the start of the next. */
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		if (p[i].revents && e->client[i].fd == p[i].fd)
			serve(e, &e->client[i]);
	if (p[FT_EXPORT_CLIENTS].revents)
		welcome(e);
	if (p[FT_EXPORT_CLIENTS + 1].revents)
		woken(e);
}

static void *control_main(void *arg)
{
	struct ft_export *e = arg;
	struct pollfd p[FT_EXPORT_CLIENTS + 2];

	while (!e->stop) {
		for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
			p[i] = (struct pollfd){ .fd = e->client[i].fd, .events = POLLIN };
		p[FT_EXPORT_CLIENTS] = (struct pollfd){ .fd = e->door, .events = POLLIN };
		p[FT_EXPORT_CLIENTS + 1] = (struct pollfd){ .fd = e->wake_fd, .events = POLLIN };
		if (poll(p, FT_ARRAY_LEN(p), -1) > 0)
			serve_ready(e, p);
	}
	return NULL;
}

static bool is_ours(const char *path, uint64_t inode)
{
	struct stat st;

	return !lstat(path, &st) && S_ISSOCK(st.st_mode) && (!inode || st.st_ino == inode);
}

/* Nobody can connect before listen, so the mode is right from the first moment on. */
static int bind_door(struct ft_export *e)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct stat st;

	if (strlen(e->control) >= sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	strcpy(sa.sun_path, e->control);
	if (is_ours(e->control, 0))
		unlink(e->control);
	if (bind(e->door, (struct sockaddr *)&sa, sizeof(sa)) < 0 || lstat(e->control, &st) < 0)
		return -errno;
	e->bound = true;
	e->door_inode = st.st_ino;
	return chmod(e->control, 0600) < 0 || listen(e->door, FT_EXPORT_CLIENTS) < 0 ? -errno : 0;
}

int ft_export_listen(struct ft_export *e)
{
	int rc;

	e->door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	rc = e->door < 0 ? -errno : bind_door(e);
	if (rc)
		ft_err("disk %s: the control socket %s cannot be made: %s", e->image, e->control, strerror(-rc));
	return rc;
}

static int start_thread(struct ft_export *e)
{
	int rc = ft_thread_start(&e->thread, "ft-export", control_main, e);

	e->running = !rc;
	return rc;
}

int ft_export_start(struct ft_export *e)
{
	int rc;

	e->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = e->wake_fd < 0 ? -errno : ft_export_start_syncer(e);
	if (!rc && e->door >= 0)
		rc = start_thread(e);
	if (rc)
		ft_err("disk %s: no threads to serve it: %s", e->image, strerror(-rc));
	return rc;
}

void ft_export_stop(struct ft_export *e)
{
	e->stop = true;
	if (e->running) {
		ft_ignore(eventfd_write(e->wake_fd, 1));        /* a counter of 1 always fits */
		pthread_join(e->thread, NULL);
	}
	for (unsigned i = 0; i < FT_EXPORT_CLIENTS; i++)
		if (e->client[i].fd >= 0)
			drop_client(e, &e->client[i]);
	if (e->door >= 0)
		close(e->door);
	if (e->bound && is_ours(e->control, e->door_inode))
		unlink(e->control);
}
