// SPDX-License-Identifier: GPL-3.0-or-later
/* control.c - see ft/control.h. One request at a time from each client; the next line waits in its buffer. */
#include "ft/control.h"

#include <ev.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES (64u << 10)
#define ANSWER_MAX     (16u << 20)
#define CLIENTS_MAX    32u
#define IDLE_S         30.0             /* a client that neither asks nor reads makes room for others */

struct client {
	struct client *next;
	struct ft_control *control;     /* whose list we are in */
	int fd;
	ev_io reader, writer;
	ev_timer idle;
	struct ft_control_req *req;     /* being worked on, or NULL */
	char *out;                      /* answer under way, or NULL */
	size_t out_len, out_at;
	bool eof;
	size_t have;
	char line[LINE_MAX_BYTES];
};

struct ft_control_req {
	struct client *client;          /* NULL: it went away */
};

struct ft_control {
	struct ev_loop *loop;           /* borrowed */
	struct ft_control_ops ops;
	int fd, lock_fd;
	ev_io acceptor;
	struct client *clients;
	unsigned nr_clients;
	bool *gone;                     /* set by free while a request callback runs */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	bool bound;
};

/* --- requests and answers --- */

int ft_control_parse(const char *line, size_t len, json_t **args, const char **cmd, const char **why)
{
	json_t *j = json_loadb(line, len, JSON_REJECT_DUPLICATES, NULL);

	*args = NULL;
	*cmd = json_string_value(json_object_get(j, "cmd"));
	if (*cmd) {
		*args = j;
		return 0;
	}
	*why = j ? "a request is a JSON object with a string \"cmd\"" : "a request is one JSON object on one line";
	json_decref(j);
	return -EPROTO;
}

static void request_done(struct ft_control_req *req)
{
	if (req->client)
		req->client->req = NULL;
	free(req);
}

void ft_control_reply(struct ft_control_req *req, json_t *answer)
{
	struct client *cl = req->client;

	request_done(req);
	if (cl) {
		json_t *ok = json_object_get(answer, "ok");
		char *text = NULL;

		if (ok || !json_object_set_new(answer, "ok", json_true()))
			text = json_dumps(answer, JSON_COMPACT);
		if (!text)
			text = strdup("{\"ok\":false,\"error\":\"no memory for an answer\"}");
		cl->out = text;
		cl->out_at = 0;
		cl->out_len = text ? strlen(text) : 0;
		if (text)
			text[cl->out_len++] = '\n';     /* over the final NUL: lengths count from here on */
		/* Also without an answer: the writer then closes. */
		ev_io_start(cl->control->loop, &cl->writer);
	}
	json_decref(answer);
}

void ft_control_fail(struct ft_control_req *req, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	ft_control_reply(req, json_pack("{s:b, s:s}", "ok", 0, "error", text));
}

/* --- one client --- */

static void client_free(struct client *cl)
{
	struct ft_control *c = cl->control;
	struct client **at = &c->clients;

	while (*at != cl)
		at = &(*at)->next;
	*at = cl->next;
	c->nr_clients--;
	ev_io_stop(c->loop, &cl->reader);
	ev_io_stop(c->loop, &cl->writer);
	ev_timer_stop(c->loop, &cl->idle);
	if (cl->req)
		cl->req->client = NULL;
	close(cl->fd);
	free(cl->out);
	free(cl);
}

/* False: the client is gone, or the callback freed the whole control object. */
static bool dispatch(struct client *cl, const char *line, size_t len)
{
	struct ft_control *c = cl->control;
	struct ft_control_req *req = calloc(1, sizeof(*req));
	const char *cmd, *why;
	bool gone = false;
	json_t *args;

	if (!req) {
		client_free(cl);
		return false;
	}
	req->client = cl;
	cl->req = req;
	if (ft_control_parse(line, len, &args, &cmd, &why)) {
		ft_control_fail(req, "%s", why);
		return true;
	}
	c->gone = &gone;
	c->ops.request(c->ops.ctx, req, cmd, args);
	json_decref(args);
	if (!gone)
		c->gone = NULL;
	return !gone;
}

/* The next whole line, if the client has no request under way. False: nothing may be touched any more. */
static bool next_line(struct client *cl)
{
	char *end = memchr(cl->line, '\n', cl->have);
	struct ft_control *c = cl->control;
	size_t len;

	if (cl->req || cl->out)
		return true;
	if (!end) {
		if (cl->eof || cl->have == sizeof(cl->line)) {
			client_free(cl);
			return false;
		}
		ev_io_start(c->loop, &cl->reader);
		return true;
	}
	len = (size_t)(end - cl->line);
	ev_io_stop(c->loop, &cl->reader);
	ev_timer_stop(c->loop, &cl->idle);      /* an answer may take its time */
	if (!dispatch(cl, cl->line, len))
		return false;
	cl->have -= len + 1;
	memmove(cl->line, end + 1, cl->have);
	return true;
}

static void on_readable(struct ev_loop *loop, ev_io *w, int revents)
{
	struct client *cl = w->data;
	ssize_t n = read(cl->fd, cl->line + cl->have, sizeof(cl->line) - cl->have);

	(void)revents;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0)
		cl->eof = true;
	else
		cl->have += (size_t)n;
	if (cl->eof)
		ev_io_stop(loop, &cl->reader);
	next_line(cl);
}

static void on_writable(struct ev_loop *loop, ev_io *w, int revents)
{
	struct client *cl = w->data;
	ssize_t n = -1;

	(void)revents;
	if (cl->out)
		n = send(cl->fd, cl->out + cl->out_at, cl->out_len - cl->out_at, MSG_NOSIGNAL);
	if (n < 0 && cl->out && (errno == EAGAIN || errno == EINTR))
		return;
	if (n < 0) {
		client_free(cl);
		return;
	}
	cl->out_at += (size_t)n;
	ev_timer_again(loop, &cl->idle);
	if (cl->out_at < cl->out_len)
		return;
	ev_io_stop(loop, &cl->writer);
	free(cl->out);
	cl->out = NULL;
	next_line(cl);
}

static void on_idle(struct ev_loop *loop, ev_timer *w, int revents)
{
	(void)loop, (void)revents;
	client_free(w->data);
}

static void client_new(struct ft_control *c, int fd)
{
	struct client *cl = c->nr_clients < CLIENTS_MAX ? malloc(sizeof(*cl)) : NULL;

	if (!cl) {
		close(fd);
		return;
	}
	memset(cl, 0, offsetof(struct client, line));
	cl->control = c;
	cl->fd = fd;
	cl->next = c->clients;
	c->clients = cl;
	c->nr_clients++;
	ev_io_init(&cl->reader, on_readable, fd, EV_READ);
	ev_io_init(&cl->writer, on_writable, fd, EV_WRITE);
	ev_timer_init(&cl->idle, on_idle, IDLE_S, IDLE_S);
	cl->reader.data = cl->writer.data = cl->idle.data = cl;
	ev_io_start(c->loop, &cl->reader);
	ev_timer_start(c->loop, &cl->idle);
}

static void on_client(struct ev_loop *loop, ev_io *w, int revents)
{
	struct ft_control *c = w->data;
	int fd = accept4(c->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)loop, (void)revents;
	if (fd >= 0)
		client_new(c, fd);
}

/* --- the socket --- */

static int make_directory(const char *path)
{
	char dir[PATH_MAX];
	int rc = ft_parent_dir(path, dir, sizeof(dir));

	return rc ? rc : ft_mkdir_p(dir, 0755);
}

/* The lock dies with its process, so whoever has it may replace the socket that a dead one left. */
static int take_lock(struct ft_control *c)
{
	char path[sizeof(c->path) + 8];
	int rc;

	snprintf(path, sizeof(path), "%s.lock", c->path);
	rc = ft_lock_file(path, false, &c->lock_fd);
	return rc == -EBUSY ? -EADDRINUSE : rc;
}

static int bind_socket(struct ft_control *c)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	memcpy(sa.sun_path, c->path, sizeof(c->path));
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->fd < 0)
		return -errno;
	if (unlink(c->path) < 0 && errno != ENOENT)
		return -errno;
	/* Before bind: the file appears with this mode, there is no moment in which others could connect. */
	if (fchmod(c->fd, 0600) < 0 || bind(c->fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		return -errno;
	c->bound = true;
	return listen(c->fd, 16) < 0 ? -errno : 0;
}

int ft_control_new(struct ev_loop *loop, const char *path, const struct ft_control_ops *ops, struct ft_control **out)
{
	struct ft_control *c = calloc(1, sizeof(*c));
	int rc = 0;

	if (!c)
		return -ENOMEM;
	c->loop = loop;
	c->ops = *ops;
	c->fd = c->lock_fd = -1;
	ev_init(&c->acceptor, on_client);
	if (snprintf(c->path, sizeof(c->path), "%s", path) >= (int)sizeof(c->path))
		rc = -ENAMETOOLONG;
	if (!rc)
		rc = make_directory(path);
	if (!rc)
		rc = take_lock(c);
	if (!rc)
		rc = bind_socket(c);
	if (rc) {
		ft_err("control socket %s: %s", path,
		       rc == -EADDRINUSE ? "another process serves it - stop that one first" : strerror(-rc));
		ft_control_free(c);
		return rc;
	}
	ev_io_set(&c->acceptor, c->fd, EV_READ);
	c->acceptor.data = c;
	ev_io_start(loop, &c->acceptor);
	*out = c;
	return 0;
}

/* Whoever waits hears of it: the answer just given, or that there will be none. A socket takes either at once. */
static void last_words(struct client *cl)
{
	static const char ending[] = "{\"ok\":false,\"error\":\"the service ended before it could answer\"}\n";
	const char *text = cl->out ? cl->out + cl->out_at : ending;
	size_t len = cl->out ? cl->out_len - cl->out_at : sizeof(ending) - 1;

	if ((cl->out || cl->req) && send(cl->fd, text, len, MSG_NOSIGNAL) < 0)
		ft_debug("control socket %s: %s", cl->control->path, strerror(errno));
}

void ft_control_free(struct ft_control *c)
{
	if (!c)
		return;
	if (c->gone)
		*c->gone = true;
	for (struct client *cl = c->clients, *next; cl; cl = next) {
		next = cl->next;
		last_words(cl);
		client_free(cl);
	}
	ev_io_stop(c->loop, &c->acceptor);
	if (c->bound)
		unlink(c->path);
	if (c->fd >= 0)
		close(c->fd);
	if (c->lock_fd >= 0)
		close(c->lock_fd);
	free(c);
}

/* --- the client's side --- */

static int open_call(const char *path, unsigned timeout_ms, int *out)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct timeval tv = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
	int fd, rc;

	if (snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path) >= (int)sizeof(sa.sun_path))
		return -ENAMETOOLONG;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	/* The send timeout also bounds connect. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv)) < 0 ||
	    connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0) {
		rc = errno == EAGAIN ? -ETIMEDOUT : -errno;
		close(fd);
		return rc;
	}
	*out = fd;
	return 0;
}

static int send_request(int fd, const json_t *request)
{
	char *text = json_dumps(request, JSON_COMPACT);
	size_t len, at = 0;
	int rc = 0;

	if (!text)
		return -ENOMEM;
	len = strlen(text);
	text[len++] = '\n';
	while (!rc && at < len) {
		ssize_t n = send(fd, text + at, len - at, MSG_NOSIGNAL);

		if (n >= 0)
			at += (size_t)n;
		else if (errno == EAGAIN)
			rc = -ETIMEDOUT;
		else if (errno == EPIPE)
			rc = -ECONNRESET;
		else if (errno != EINTR)
			rc = -errno;
	}
	free(text);
	return rc;
}

/* One line into @b, which grows; bytes after the line would be a second answer and are no protocol of ours. */
static int read_line(int fd, uint64_t until_ns, struct ft_blob *b)
{
	size_t cap = 0;

	for (;;) {
		uint64_t now = ft_now_ns();
		struct pollfd p = { .fd = fd, .events = POLLIN };
		ssize_t n;

		if (b->len && b->data[b->len - 1] == '\n')
			return 0;
		if (b->len == cap) {
			uint8_t *more = cap < ANSWER_MAX ? realloc(b->data, cap + (64u << 10)) : NULL;

			if (!more)
				return cap < ANSWER_MAX ? -ENOMEM : -EPROTO;
			b->data = more;
			cap += 64u << 10;
		}
		if (now >= until_ns || !poll(&p, 1, (int)((until_ns - now + FT_MS_NS - 1) / FT_MS_NS)))
			return -ETIMEDOUT;
		n = recv(fd, b->data + b->len, cap - b->len, MSG_DONTWAIT);
		if (n == 0)
			return -ECONNRESET;
		if (n > 0)
			b->len += (size_t)n;
		else if (errno != EAGAIN && errno != EINTR)
			return -errno;
	}
}

int ft_control_call(const char *path, const json_t *request, unsigned timeout_ms, json_t **answer)
{
	uint64_t until_ns = ft_now_ns() + timeout_ms * FT_MS_NS;
	struct ft_blob line = { 0 };
	int fd = -1, rc;

	*answer = NULL;
	rc = open_call(path, timeout_ms, &fd);
	if (rc)
		return rc;
	rc = send_request(fd, request);
	if (!rc)
		rc = read_line(fd, until_ns, &line);
	if (!rc) {
		*answer = json_loadb((const char *)line.data, line.len, JSON_REJECT_DUPLICATES, NULL);
		if (!json_is_boolean(json_object_get(*answer, "ok"))) {
			json_decref(*answer);
			*answer = NULL;
			rc = -EPROTO;
		}
	}
	ft_blob_free(&line);
	close(fd);
	return rc;
}
