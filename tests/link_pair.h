// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * link_pair.h - for tests of links: certificates made by ft-cert, a primary's and a backup's link on
 * loopback on one libev loop, and a log of what each end was told.
 */
#ifndef FT_LINK_PAIR_H
#define FT_LINK_PAIR_H

#include "ft/link.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <ev.h>
#include <limits.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAYBE_UNUSED __attribute__((unused))

struct end {
	struct ft_link *link;
	bool up, down;
	int rc;
	char peer[FT_NAME_MAX + 1];
	char why[768];
	unsigned records, urgent_at;    /* urgent_at: how many records came before the first PING */
	uint64_t bytes, next;           /* next: the counter the next bulk record must carry */
	uint32_t last_type;
	bool free_in_up, free_in_record, free_in_down;
};

struct pair {
	struct ev_loop *loop;
	ev_io listener, preamble;
	ev_timer tick;
	struct ft_preamble pre;
	char guest[FT_NAME_MAX + 1];    /* as the preamble said */
	int conn;
	uint16_t port;
	struct ft_link_config cfg[2];   /* primary, backup: to be changed before pair_connect */
	char path[2][3][PATH_MAX];      /* ca, cert, key of both */
	struct end primary, backup;
};

/* Run a command as the shell does; its exit status. */
static MAYBE_UNUSED int shell(const char *fmt, ...) FT_PRINTF(1, 2);
static MAYBE_UNUSED int shell(const char *fmt, ...)
{
	char cmd[2048];
	va_list ap;
	int rc;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	fflush(stdout);
	rc = system(cmd);
	return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static MAYBE_UNUSED void ft_cert(const char *args)
{
	CHECK_EQ(shell("sh replicator/ft-cert.sh %s >/dev/null", args), 0);
}

/* Certificates take a second to make, so the tests of one program copy from a store that the first of them fills. */
static char cert_store[64];
static pid_t cert_store_owner;

static void remove_cert_store(void)
{
	if (getpid() == cert_store_owner)
		shell("rm -rf %s", cert_store);
}

__attribute__((constructor)) static void make_cert_store(void)
{
	strcpy(cert_store, "/tmp/ft-certs-XXXXXX");
	if (!mkdtemp(cert_store))
		abort();
	cert_store_owner = getpid();
	atexit(remove_cert_store);
}

/* A CA in ft_test_dir()/@ca with a certificate for alpha and for beta. */
static MAYBE_UNUSED void make_ca(const char *ca)
{
	char args[256];

	if (shell("test -e %s/%s", cert_store, ca)) {
		snprintf(args, sizeof(args), "ca %s/%s.new", cert_store, ca);
		ft_cert(args);
		snprintf(args, sizeof(args), "host alpha %s/%s.new", cert_store, ca);
		ft_cert(args);
		snprintf(args, sizeof(args), "host beta %s/%s.new", cert_store, ca);
		ft_cert(args);
		CHECK_EQ(shell("mv %s/%s.new %s/%s", cert_store, ca, cert_store, ca), 0);
	}
	CHECK_EQ(shell("cp -a %s/%s %s/%s", cert_store, ca, ft_test_dir(), ca), 0);
}

static MAYBE_UNUSED void use_files(struct pair *p, bool primary, const char *ca, const char *cert, const char *key)
{
	char (*path)[PATH_MAX] = p->path[primary ? 0 : 1];
	struct ft_tls_files *f = &p->cfg[primary ? 0 : 1].tls;

	snprintf(path[0], PATH_MAX, "%s/%s", ft_test_dir(), ca);
	snprintf(path[1], PATH_MAX, "%s/%s", ft_test_dir(), cert);
	snprintf(path[2], PATH_MAX, "%s/%s", ft_test_dir(), key);
	*f = (struct ft_tls_files){ path[0], path[1], path[2] };
}

static void end_free(struct end *e)
{
	struct ft_link *l = e->link;

	e->link = NULL;
	ft_link_free(l);
}

static void end_up(void *ctx, const char *peer)
{
	struct end *e = ctx;

	CHECK(!e->up && !e->down);
	e->up = true;
	snprintf(e->peer, sizeof(e->peer), "%s", peer);
	if (e->free_in_up)
		end_free(e);
}

/* Bulk records of tests carry a counter in front: order, and nothing lost or twice. */
static void end_record(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	struct end *e = ctx;

	CHECK(e->up && !e->down);
	if (type == FT_REC_PING && !e->urgent_at)
		e->urgent_at = e->records + 1;
	if (type == FT_REC_PAGES || type == FT_REC_STATE) {
		CHECK_EQ(ft_le64(body), e->next);
		e->next++;
		for (size_t i = 8; i < len; i += 1021)
			CHECK_EQ(body[i], (uint8_t)(i + e->next));
	}
	e->records++;
	e->bytes += len;
	e->last_type = type;
	if (e->free_in_record)
		end_free(e);
}

static void end_down(void *ctx, int rc, const char *why)
{
	struct end *e = ctx;

	CHECK(!e->down);
	e->down = true;
	e->rc = rc;
	snprintf(e->why, sizeof(e->why), "%s", why);
	printf("# down %d: %s\n", rc, why);
	if (e->free_in_down)
		end_free(e);
}

static void on_preamble(struct ev_loop *loop, ev_io *w, int revents)
{
	struct pair *p = w->data;
	int rc = ft_preamble_read(&p->pre, p->conn, p->guest);

	(void)revents;
	if (rc == -EAGAIN)
		return;
	ev_io_stop(loop, w);
	if (rc) {
		close(p->conn);
		return;
	}
	CHECK_OK(ft_link_accept(loop, &p->cfg[1], p->conn, &p->backup.link));
}

static void on_connection(struct ev_loop *loop, ev_io *w, int revents)
{
	struct pair *p = w->data;

	(void)revents;
	p->conn = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	CHECK(p->conn >= 0);
	p->pre = (struct ft_preamble){ .have = 0 };
	ev_io_set(&p->preamble, p->conn, EV_READ);
	ev_io_start(loop, &p->preamble);
}

static void on_tick(struct ev_loop *loop, ev_timer *w, int revents)
{
	(void)loop, (void)w, (void)revents;
}

static MAYBE_UNUSED int listen_on_loopback(uint16_t *port)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	CHECK(fd >= 0);
	CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_EQ(listen(fd, 8), 0);
	CHECK_EQ(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	*port = ntohs(sa.sin_port);
	return fd;
}

/* Certificates are those of make_ca("ca"), unless use_files says otherwise. */
static MAYBE_UNUSED struct pair *pair_new(void)
{
	struct pair *p = calloc(1, sizeof(*p));

	CHECK(p);
	p->loop = ev_loop_new(EVFLAG_AUTO);
	use_files(p, true, "ca/ca.pem", "ca/alpha.pem", "ca/alpha.key");
	use_files(p, false, "ca/ca.pem", "ca/beta.pem", "ca/beta.key");
	for (int i = 0; i < 2; i++) {
		p->cfg[i].primary = i == 0;
		p->cfg[i].guest = "vm1";
		p->cfg[i].peer = i == 0 ? "beta" : NULL;
		p->cfg[i].connect_timeout_ms = 20000;
		p->cfg[i].on_up = end_up;
		p->cfg[i].on_record = end_record;
		p->cfg[i].on_down = end_down;
		p->cfg[i].ctx = i == 0 ? &p->primary : &p->backup;
	}
	ev_io_init(&p->listener, on_connection, listen_on_loopback(&p->port), EV_READ);
	p->listener.data = p->preamble.data = p;
	ev_init(&p->preamble, on_preamble);
	ev_timer_init(&p->tick, on_tick, 0.02, 0.02);
	ev_io_start(p->loop, &p->listener);
	ev_timer_start(p->loop, &p->tick);
	return p;
}

static MAYBE_UNUSED void pair_connect(struct pair *p)
{
	CHECK_OK(ft_link_connect(p->loop, &p->cfg[0], "127.0.0.1", p->port, &p->primary.link));
}

/* Run the loop until @cond, for at most 30 s. */
#define RUN_UNTIL(p, cond) \
	do { \
		uint64_t end_ = ft_now_ns() + 30 * FT_S_NS; \
		while (!(cond)) { \
			CHECK(ft_now_ns() < end_ && "in time: " #cond); \
			ev_run((p)->loop, EVRUN_ONCE); \
		} \
	} while (0)

static MAYBE_UNUSED void pair_up(struct pair *p)
{
	pair_connect(p);
	RUN_UNTIL(p, (p->primary.up && p->backup.up) || p->primary.down);
	CHECK(p->primary.up && p->backup.up);
}

static MAYBE_UNUSED void pair_free(struct pair *p)
{
	end_free(&p->primary);
	end_free(&p->backup);
	ev_io_stop(p->loop, &p->preamble);
	ev_io_stop(p->loop, &p->listener);
	ev_timer_stop(p->loop, &p->tick);
	close(p->listener.fd);
	ev_loop_destroy(p->loop);
	free(p);
}

/* A bulk record that end_record checks. */
static MAYBE_UNUSED int send_counted(struct ft_link *l, enum ft_link_lane lane, uint64_t counter, size_t len)
{
	uint8_t *body = malloc(len);
	int rc;

	CHECK(body && len >= 8);
	for (size_t i = 8; i < len; i++)
		body[i] = (uint8_t)(i + counter + 1);
	ft_put64(body, counter);
	rc = ft_link_send(l, lane, FT_REC_PAGES, body, len);
	free(body);
	return rc;
}

#endif
