// SPDX-License-Identifier: GPL-3.0-or-later
/* refuse.c - see refuse.h. */
#include "refuse.h"

#include "fdpass.h"
#include "ft/conf.h"

#include <ev.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#define VISITORS_MAX 16
#define IDLE_S 15.0
#define STAY_NS (10 * FT_S_NS)

enum ft_wire_reason ft_refuse_stranger(const char *guest, const char *peer, char *why, size_t size)
{
	if (ft_name_ok(peer) && ft_conf_permits(ft_conf(), peer, guest))
		return FT_REASON_OK;
	snprintf(why, size, "%s may not replicate %s to %s: add it to 'guests' of [peer %s] there", peer, guest,
		 ft_conf()->host, peer);
	return FT_REASON_NOT_PERMITTED;
}

enum ft_wire_reason ft_refuse_guest(const char *guest, int rc, char *why, size_t size)
{
	snprintf(why, size, "%s/%s.conf on %s %s", ft_conf()->guests_dir, guest, ft_conf()->host,
		 rc == -ENOENT ? "does not exist: copy it from the primary" : "cannot be used: see the log there");
	return FT_REASON_UNKNOWN_GUEST;
}

void ft_refuse(struct ft_link *link, const char *guest, enum ft_wire_reason reason, const char *why)
{
	struct ft_wire_welcome w = { .reason = reason };
	uint8_t body[FT_WIRE_WELCOME_MAX];
	size_t len = ft_wire_pack_welcome_text(&w, why, body);

	ft_warn("%s: %s", guest, why);
	ft_ignore(ft_link_send(link, FT_LANE_BULK_NOWAIT, FT_REC_WELCOME, body, len));  /* it closes either way */
}

/* --- the process --- */

struct visitor {
	struct ft_link *link;           /* NULL: free slot */
	char guest[FT_NAME_MAX + 1], peer[FT_NAME_MAX + 1];
	uint64_t since_ns;
};

static struct visitor visitors[VISITORS_MAX];

static void visitor_gone(struct visitor *v)
{
	ft_link_free(v->link);
	v->link = NULL;
}

static void visitor_up(void *ctx, const char *peer)
{
	struct visitor *v = ctx;

	snprintf(v->peer, sizeof(v->peer), "%s", peer);
}

/* Its HELLO, whatever it says. Not earlier: our goodbye could come before it has anything to say. */
static void visitor_record(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	struct visitor *v = ctx;
	char why[512];
	enum ft_wire_reason reason = ft_refuse_stranger(v->guest, v->peer, why, sizeof(why));

	(void)type, (void)body, (void)len;
	if (reason == FT_REASON_OK)
		reason = ft_refuse_guest(v->guest, -ENOENT, why, sizeof(why));
	ft_refuse(v->link, v->guest, reason, why);
	ft_link_finish(v->link);
}

static void visitor_down(void *ctx, int rc, const char *why)
{
	(void)rc, (void)why;            /* who it was does not matter, and strangers do not fill the log */
	visitor_gone(ctx);
}

/* A free slot, or that of the one who has been here longest. */
static struct visitor *make_slot(void)
{
	struct visitor *oldest = &visitors[0];

	for (unsigned i = 0; i < VISITORS_MAX; i++) {
		if (!visitors[i].link)
			return &visitors[i];
		if (visitors[i].since_ns < oldest->since_ns)
			oldest = &visitors[i];
	}
	visitor_gone(oldest);
	return oldest;
}

static void on_door(struct ev_loop *loop, ev_io *w, int revents)
{
	const struct ft_conf *conf = ft_conf();         /* one object, read again below */
	struct visitor *v = make_slot();
	struct ft_link_config cfg = {
		.tls = { conf->tls_ca, conf->tls_cert, conf->tls_key }, .guest = v->guest, .connect_timeout_ms = 5000,
		.on_up = visitor_up, .on_record = visitor_record, .on_down = visitor_down, .ctx = v,
	};
	int fd = ft_fd_accept(w->fd, v->guest);

	(void)revents;
	ft_conf_reload();
	v->since_ns = ft_now_ns();
	if (fd >= 0 && ft_link_accept(loop, &cfg, fd, &v->link))
		v->link = NULL;
}

static void on_idle(struct ev_loop *loop, ev_timer *w, int revents)
{
	uint64_t now = ft_now_ns();
	unsigned here = 0;

	(void)w, (void)revents;
	for (unsigned i = 0; i < VISITORS_MAX; i++) {
		if (visitors[i].link && now - visitors[i].since_ns > STAY_NS)
			visitor_gone(&visitors[i]);
		here += visitors[i].link != NULL;
	}
	if (!here)
		ev_break(loop, EVBREAK_ALL);
}

int ft_refuse_door(char *buf, size_t size)
{
	int n = snprintf(buf, size, "%s/unknown.sock", ft_conf()->run_dir);

	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}

int ft_refuse_run(int door)
{
	struct ev_loop *loop = ev_default_loop(0);
	ev_timer idle;
	ev_io event;

	ev_io_init(&event, on_door, door, EV_READ);
	ev_timer_init(&idle, on_idle, IDLE_S, IDLE_S);
	ev_io_start(loop, &event);
	ev_timer_start(loop, &idle);
	ev_run(loop, 0);
	close(door);                    /* who comes now is told so by the kernel, and ftd starts another of us */
	return 0;
}
