// SPDX-License-Identifier: GPL-3.0-or-later
/* protect.c - see protect.h. The ops of ft_primary first, then making the parts, then the loop. */
#include "protect.h"

#include "ft/diskserver.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#define SEND_BOUND (4u << 20)           /* bytes queued on the link: little, so that acknowledgements stay near */
#define PAUSE_LIMIT_MS 1000u            /* at least */
#define PAUSE_SILENCES 3u
#define CONNECT_SILENCES 10             /* hosts that are slow to be heard are slow to connect, too */
#define CHECK_S 20.0                    /* the backup asks its QEMU */

/* --- time --- */

static uint64_t op_now(void *ctx)
{
	(void)ctx;
	return ft_now_ns();
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct protect *pr = w->data;

	(void)revents;
	ev_timer_stop(loop, w);
	ft_primary_tick(pr->primary);
}

static void op_timer(void *ctx, uint64_t at_ns)
{
	struct protect *pr = ctx;
	uint64_t now = ft_now_ns();

	ev_timer_stop(pr->loop, &pr->timer);
	ev_now_update(pr->loop);
	ev_timer_set(&pr->timer, at_ns > now ? (double)(at_ns - now) / 1e9 : 0.0, 0.0);
	ev_timer_start(pr->loop, &pr->timer);
}

/* --- the link --- */

static void link_up(void *ctx, const char *peer_name)
{
	struct protect *pr = ctx;

	(void)peer_name;                /* checked by TLS */
	ft_primary_link_up(pr->primary);
}

static void link_record(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	struct protect *pr = ctx;

	ft_primary_record(pr->primary, type, body, len);
}

static void on_reap(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct protect *pr = w->data;

	(void)revents;
	ev_timer_stop(loop, w);
	ft_link_free(pr->dead_link);
	pr->dead_link = NULL;
}

/*
 * Order matters: the closed link turns blocked workers away, the reset waits for them, and only then, and
 * never inside its own callback, is the link freed.
 */
static void op_disconnect(void *ctx)
{
	struct protect *pr = ctx;

	if (!pr->link)
		return;
	ft_link_close(pr->link);
	ft_encoder_reset(pr->encoder);
	ft_link_free(pr->dead_link);
	pr->dead_link = pr->link;
	pr->link = NULL;
	ev_timer_set(&pr->reaper, 0.0, 0.0);
	ev_timer_start(pr->loop, &pr->reaper);
}

static void link_down(void *ctx, int rc, const char *why)
{
	struct protect *pr = ctx;

	op_disconnect(pr);
	ft_primary_link_down(pr->primary, rc, why);
}

static unsigned connect_timeout_ms(void)
{
	return ft_conf()->policy.silence_ms * CONNECT_SILENCES;
}

static bool guest_lives(const struct ft_attach *at)
{
	int fd;

	if (at->hypervisor == FT_HYPERVISOR_XEN)
		return ft_xen_alive(at);
	fd = ft_attach_pidfd(at);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* QEMU, or dom0's kernel, holds the guest's requests back until the disk is served again. */
static void serve_again(struct protect *pr)
{
	if (!pr->attach.nr_disks || !guest_lives(&pr->attach))   /* servers end with their guest */
		return;
	for (unsigned i = 0; i < pr->attach.nr_disks; i++) {
		struct ft_attach_disk *d = &pr->attach.disk[i];
		unsigned device;

		/* A domain that was not given this disk is an obstacle, and nothing to be mended. */
		if (pr->attach.hypervisor == FT_HYPERVISOR_XEN && ft_disk_device(&pr->attach, i, &device))
			continue;
		if (ft_disk_served(d))
			continue;
		if (pr->guard)
			ft_guard_rest(pr->guard);
		if (ft_disk_serve(&pr->attach, i, false))
			continue;
		ft_warn("%s: the server of %s had ended; started another", pr->guest, d->image);
		if (ft_attach_save(&pr->attach))
			ft_err("%s: its attach record could not be written", pr->guest);
	}
}

static int op_connect(void *ctx)
{
	const struct ft_conf *conf = ft_conf();
	struct protect *pr = ctx;
	struct ft_link_config cfg = {
		.tls = { conf->tls_ca, conf->tls_cert, conf->tls_key },
		.primary = true, .guest = pr->guest, .peer = pr->peer, .connect_timeout_ms = connect_timeout_ms(),
		.send_bound = SEND_BOUND, .on_up = link_up, .on_record = link_record, .on_down = link_down, .ctx = pr,
	};

	op_disconnect(pr);
	serve_again(pr);
	return ft_link_connect(pr->loop, &cfg, pr->address, conf->port, &pr->link);
}

static int op_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct protect *pr = ctx;
	bool urgent = type == FT_REC_PING || type == FT_REC_PONG;

	if (!pr->link)
		return -EPIPE;
	return ft_link_send(pr->link, urgent ? FT_LANE_URGENT : FT_LANE_BULK_NOWAIT, type, body, len);
}

/* Worker thread. The link cannot go away under it: see op_disconnect. */
static int emit(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct protect *pr = ctx;

	return pr->link ? ft_link_send(pr->link, FT_LANE_BULK, type, body, len) : -EPIPE;
}

/* Loop thread: the end of a small epoch need not wait for a worker to wake up. */
static int emit_nowait(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct protect *pr = ctx;

	return pr->link ? ft_link_send(pr->link, FT_LANE_BULK_NOWAIT, type, body, len) : -EPIPE;
}

/* Worker thread. */
static int disks(void *ctx, uint64_t upto, uint8_t *body, size_t *len)
{
	struct protect *pr = ctx;

	return pr->mirror->ops->next(pr->mirror, upto, body, len);
}

/* --- the right to speak --- */

/* Heartbeat thread. */
static uint64_t on_lease(void *ctx, uint64_t until_ns)
{
	struct protect *pr = ctx;

	if (pr->netbuf)
		ft_ignore(ft_netbuf_fresh(pr->netbuf, until_ns, &until_ns)); /* a gate that is not renewed closes by itself */
	return until_ns;
}

/* The configuration takes nothing but addresses here: no name is resolved while the guest's output waits. */
static void heartbeat_address(const char *ip, struct sockaddr_storage *out)
{
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)out;
	struct sockaddr_in *four = (struct sockaddr_in *)out;

	*out = (struct sockaddr_storage){ .ss_family = AF_INET6 };
	if (inet_pton(AF_INET6, ip, &six->sin6_addr) == 1)
		return;
	out->ss_family = AF_INET;
	if (inet_pton(AF_INET, ip, &four->sin_addr) != 1)
		assert(!"a heartbeat address that the configuration should have refused");
}

static void set_port(struct sockaddr_storage *a, uint16_t port)
{
	if (a->ss_family == AF_INET6)
		((struct sockaddr_in6 *)a)->sin6_port = htons(port);
	else
		((struct sockaddr_in *)a)->sin_port = htons(port);
}

/* The first path is where TCP got through; a name may have other addresses that lead nowhere. */
static int beat_paths(struct protect *pr, struct ft_beat_config *cfg, uint16_t port)
{
	const struct ft_peer *peer = ft_conf_peer(ft_conf(), pr->peer);
	int rc = ft_link_address(pr->link, &cfg->path[0]);

	_Static_assert(FT_ARRAY_LEN(peer->heartbeat) < FT_ARRAY_LEN(cfg->path), "each configured address has a path");
	if (rc)
		return rc;
	cfg->nr_paths = 1;
	for (unsigned i = 0; peer && i < peer->nr_heartbeat; i++)
		heartbeat_address(peer->heartbeat[i], &cfg->path[cfg->nr_paths++]);
	for (unsigned i = 0; i < cfg->nr_paths; i++)
		set_port(&cfg->path[i], port);
	return 0;
}

/* Our setting fits our own silence-ms; the window that counts is the backup's. */
static unsigned beat_interval(struct protect *pr, unsigned silence_ms)
{
	unsigned most = silence_ms / 4;

	if (pr->policy.heartbeat_ms <= most)
		return pr->policy.heartbeat_ms;
	if (pr->clamped_for_ms != silence_ms)
		ft_info("%s: heartbeats every %u ms instead of %u: %s takes over after %u ms of silence", pr->guest, most,
			pr->policy.heartbeat_ms, pr->peer, silence_ms);
	pr->clamped_for_ms = silence_ms;
	return most;
}

static void op_beat_stop(void *ctx)
{
	struct protect *pr = ctx;

	ft_beat_stop(pr->beat);
	pr->beat = NULL;
	pr->beat_cfg.nr_paths = 0;
	if (pr->guard && ft_guard_beat(pr->guard, NULL))
		ft_warn("%s: the guard could not be told to stop its heartbeats", pr->guest);
}

static void guard_beats(struct protect *pr)
{
	struct ft_beat_config cfg = pr->beat_cfg;

	cfg.guard = true;
	cfg.on_lease = NULL;
	if (!pr->guard || !cfg.nr_paths)
		return;
	if (ft_guard_beat(pr->guard, &cfg))
		ft_warn("%s: the guard sends no heartbeats: a stall of ft-protect would look like a dead host", pr->guest);
}

static int op_beat(void *ctx, const struct ft_wire_welcome *w)
{
	struct protect *pr = ctx;
	struct ft_beat_config cfg = {
		.interval_ms = beat_interval(pr, w->silence_ms), .silence_ms = w->silence_ms, .on_lease = on_lease, .ctx = pr,
	};
	struct ft_beat *old = pr->beat;
	int rc;

	memcpy(cfg.session, w->session, sizeof(cfg.session));
	rc = ft_link_export(pr->link, cfg.key);
	if (!rc)
		rc = beat_paths(pr, &cfg, w->udp_port);
	if (rc)
		return rc;
	pr->beat = NULL;
	ft_beat_stop(old);
	pr->hushed = false;
	rc = pr->netbuf ? ft_netbuf_hush(pr->netbuf, false) : 0;
	if (!rc)
		rc = ft_beat_start(&cfg, &pr->beat);
	if (rc)
		return rc;
	pr->beat_cfg = cfg;
	guard_beats(pr);
	return 0;
}

static bool op_may_speak(void *ctx)
{
	struct protect *pr = ctx;

	return !pr->hushed && pr->beat && ft_beat_fresh(pr->beat);
}

static void op_hush(void *ctx)
{
	struct protect *pr = ctx;

	pr->hushed = true;
	if (pr->netbuf && ft_netbuf_hush(pr->netbuf, true))
		ft_err("%s: the gate could not be shut at once; it closes by itself when the lease ends", pr->guest);
}

static void op_echoed(void *ctx, uint64_t sent_ns)
{
	struct protect *pr = ctx;

	if (pr->beat && sent_ns <= ft_now_ns())
		ft_beat_renew(pr->beat, sent_ns);
}

/* --- the pause word --- */

static void op_pausing(void *ctx)
{
	struct protect *pr = ctx;

	ft_guard_pause(pr->guard);
	if (pr->guard)
		ft_guard_tick(pr->guard);       /* it may wait for a slow disk: we live */
}

static int op_resumed(void *ctx)
{
	struct protect *pr = ctx;

	return ft_guard_resume(pr->guard);
}

/* --- what happens --- */

static void tell_guard(struct protect *pr);

static void op_changed(void *ctx, enum ft_primary_state from, enum ft_primary_state to, const char *why)
{
	tell_guard(ctx);
	protect_changed(ctx, from, to, why);
}

static void op_ended(void *ctx, enum ft_primary_end end, const char *why)
{
	struct protect *pr = ctx;

	(void)why;                      /* the change of state said it */
	pr->end = end;
	pr->ended = true;
	ev_break(pr->loop, EVBREAK_ALL);
}

static const struct ft_primary_ops primary_ops = {
	.now_ns = op_now, .timer = op_timer, .connect = op_connect, .disconnect = op_disconnect, .send = op_send,
	.beat = op_beat, .beat_stop = op_beat_stop, .may_speak = op_may_speak, .hush = op_hush, .pausing = op_pausing,
	.resumed = op_resumed, .echoed = op_echoed, .changed = op_changed, .ended = op_ended,
};

static void netbuf_held(void *ctx)
{
	struct protect *pr = ctx;

	if (pr->primary)
		ft_primary_held(pr->primary);
}

static void netbuf_breach(void *ctx, const char *why)
{
	struct protect *pr = ctx;

	if (pr->primary)
		ft_primary_breach(pr->primary, why);
}

static void on_mirror_event(struct ev_loop *loop, ev_io *w, int revents)
{
	struct protect *pr = w->data;

	(void)loop, (void)revents;
	ft_mirror_event(pr->mirror);
}

static void mirror_wake(void *ctx)
{
	struct protect *pr = ctx;

	ft_primary_tick(pr->primary);
}

static void mirror_broken(void *ctx, const char *why)
{
	struct protect *pr = ctx;

	serve_again(pr);                /* first: QEMU answers nothing while a request of the guest waits for its disk */
	ft_primary_mirror_broken(pr->primary, why);
}

static void on_vm_event(struct ev_loop *loop, ev_io *w, int revents)
{
	struct protect *pr = w->data;

	(void)loop, (void)revents;
	ft_primary_guest_event(pr->primary);
}

/* Hosts that may be silent for long may also pause for long. */
static unsigned pause_limit_ms(const struct protect *pr)
{
	unsigned limit = pr->policy.silence_ms * PAUSE_SILENCES;

	return limit > PAUSE_LIMIT_MS ? limit : PAUSE_LIMIT_MS;
}

/*
 * A guard that a dead ft-protect left comes before all else: it lets the guest run, which else would look like one
 * that somebody paused, and it gives back the socket that owns the gate.
 */
static int adopt_guard(struct protect *pr)
{
	const struct ft_guard_config cfg = {
		.guest = pr->guest, .pause_limit_ms = pause_limit_ms(pr), .grace_ms = pr->policy.grace_ms, .owner_fd = -1,
	};
	int rc = ft_guard_adopt(&cfg, &pr->owner_fd, &pr->guard);

	return rc == -ENOENT ? 0 : rc;
}

/* The guard that lives, or a new one, with what it must keep open: the socket that owns the gate. */
static int start_guard(struct protect *pr)
{
	struct ft_guard_config cfg = {
		.guest = pr->guest, .pause_limit_ms = pause_limit_ms(pr), .grace_ms = pr->policy.grace_ms,
		.owner_fd = pr->netbuf ? ft_netbuf_owner_fd(pr->netbuf) : -1,
	};
	int rc;

	if (pr->guard)
		rc = cfg.owner_fd >= 0 ? ft_guard_hold(pr->guard, cfg.owner_fd) : 0;
	else
		rc = ft_guard_start(&cfg, &pr->guard);
	if (cfg.owner_fd >= 0)
		close(cfg.owner_fd);
	return rc;
}

/* Under `continue` nobody takes over by himself, so the guard has no reason to give the guest up. */
static void tell_guard(struct protect *pr)
{
	struct ft_primary_status s;

	ft_primary_get_status(pr->primary, &s);
	if (!pr->guard)
		return;
	ft_guard_held(pr->guard, s.holding && pr->policy.on_peer_loss != FT_LOSS_CONTINUE);
	ft_guard_whole(pr->guard, s.state == FT_PRIMARY_PROTECTED);
}

static void on_alive(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct protect *pr = w->data;

	(void)loop, (void)revents;
	if (pr->guard)
		ft_guard_tick(pr->guard);
}

static void on_guard_died(struct ev_loop *loop, ev_io *w, int revents)
{
	struct protect *pr = w->data;

	(void)revents;
	ev_io_stop(loop, w);
	ft_warn("%s: the guard died; starting another", pr->guest);
	ft_guard_free(pr->guard);
	pr->guard = NULL;
	if (start_guard(pr)) {
		ft_err("%s: no guard can be started: ending, so that nothing is left to chance; output stays shut", pr->guest);
		pr->end = FT_END_INTERNAL;
		pr->ended = true;
		ev_break(loop, EVBREAK_ALL);
		return;
	}
	guard_beats(pr);
	tell_guard(pr);
	ev_io_set(w, ft_guard_fd(pr->guard), EV_READ);
	ev_io_start(loop, w);
}

/* --- requests --- */

static void request_done(void *ctx, int rc, const char *text)
{
	struct ft_control_req *req = ctx;

	if (rc)
		ft_control_fail(req, "%s", text);
	else
		ft_control_reply(req, json_pack("{s:b, s:s}", "ok", 1, "text", text));
}

static void fail_not_now(const struct protect *pr, struct ft_control_req *req)
{
	struct ft_primary_status s;

	ft_primary_get_status(pr->primary, &s);
	ft_control_fail(req, "not while it is %s%s%s", ft_primary_state_name(s.state), protect_trouble(pr) ? ": " : "",
			protect_trouble(pr) ? protect_trouble(pr) : "");
}

static void on_request(void *ctx, struct ft_control_req *req, const char *cmd, const json_t *args)
{
	static const struct {
		const char *cmd;
		bool force;
		int (*start)(struct ft_primary *p, ft_primary_done *done, void *ctx);
	} table[] = {
		{ "failover", false, ft_primary_failover }, { "unprotect", false, ft_primary_unprotect },
		{ "unprotect", true, ft_primary_give_up_backup }, { "verify", false, ft_primary_verify },
		{ "drill", false, ft_primary_drill },
	};
	bool force = json_is_true(json_object_get(args, "force"));
	struct protect *pr = ctx;

	if (!strcmp(cmd, "status")) {
		ft_control_reply(req, protect_status_json(pr));
		return;
	}
	for (size_t i = 0; i < FT_ARRAY_LEN(table); i++) {
		int rc;

		if (strcmp(cmd, table[i].cmd) || force != table[i].force)
			continue;
		rc = table[i].start(pr->primary, request_done, req);
		if (rc == -ENOTCONN)
			fail_not_now(pr, req);
		else if (rc == -EOPNOTSUPP)
			ft_control_fail(req, "there is no drill under %s: a replica cannot be started there for a trial", pr->vm->backend);
		else if (rc == -EISCONN)
			ft_control_fail(req, "%s answers: end protection in order, without --force", pr->peer);
		else if (rc == -EBUSY)
			ft_control_fail(req, "another request for %s is still running; try again when it is done", pr->guest);
		else if (rc)
			ft_control_fail(req, "%s: %s", cmd, strerror(-rc));
		return;
	}
	if (force)
		ft_control_fail(req, "this host is the primary of %s: ft-ctl %s --force is for the backup", pr->guest, cmd);
	else
		ft_control_fail(req, "ft-protect does not know the command '%s'", cmd);
}

static void stopped(void *ctx, int rc, const char *text)
{
	struct protect *pr = ctx;

	if (rc)
		ft_err("%s: protection could not be ended: %s", pr->guest, text);
}

/* SIGINT and SIGTERM end protection in order; what cannot be ended in order is not ended. */
static void on_stop(struct ev_loop *loop, ev_signal *w, int revents)
{
	struct protect *pr = w->data;
	int rc = ft_primary_unprotect(pr->primary, stopped, pr);

	(void)revents;
	if (pr->ended)                  /* nothing was armed: it is over, and said */
		return;
	if (!rc)
		ft_info("%s: ending protection in order", pr->guest);
	else if (pr->stop_warned)
		ev_break(loop, EVBREAK_ALL);
	else
		ft_warn("%s: %s: %s has not promised to stay down. Once more to stop ft-protect all the same: the guest's output "
			"will stay shut; if %s is dead for certain, ft-ctl unprotect --force %s opens it", pr->guest,
			rc == -EBUSY ? "protection is still being ended in order" : "protection cannot be ended in order now",
			pr->peer, pr->peer, pr->guest);
	pr->stop_warned = rc != 0;
}

/* --- making the parts --- */

static int take_lock(struct protect *pr)
{
	char path[FT_PATH_MAX];
	int rc = ft_run_path(path, sizeof(path), pr->guest, "protect.lock");

	if (rc)
		return rc;
	rc = ft_lock_file(path, false, &pr->lock_fd);
	if (rc == -EBUSY)
		ft_err("%s is protected already by another ft-protect on this host: see ft-ctl status %s", pr->guest, pr->guest);
	else if (rc)
		ft_err("%s: %s", path, strerror(-rc));
	return rc;
}

/* Nobody is told to start what runs elsewhere. */
static void say_not_here(const struct protect *pr)
{
	bool xen = pr->spec.hypervisor == FT_HYPERVISOR_XEN;
	struct ft_record r;
	const char *why = ft_record_load(NULL, ft_conf()->state_dir, pr->guest, &r) ? NULL : ft_record_forbids(&r);

	if (why)
		ft_err("%s does not run here: it %s %s: protect it there", pr->guest, why, r.peer);
	else
		ft_err("%s does not run here: start it with '%s %s'", pr->guest, xen ? "xl create" : "ft-guest start",
		       xen ? "FILE" : pr->guest);
}

static int load_guest(struct protect *pr, bool keep)
{
	const struct ft_peer *peer = ft_conf_peer(ft_conf(), pr->peer);
	int rc = ft_spec_load(pr->guest, &pr->spec);

	if (rc)                         /* logged, with file and line */
		return rc;
	rc = ft_hv_find(&pr->spec, keep, &pr->attach);
	if (rc) {
		if (rc == -ENOENT || rc == -ESRCH)
			say_not_here(pr);
		return rc;
	}
	rc = ft_spec_format(&pr->spec, pr->spec_text, sizeof(pr->spec_text));
	snprintf(pr->address, sizeof(pr->address), "%s", peer && *peer->address ? peer->address : pr->peer);
	if (rc >= 0)
		rc = ft_facts_format(&pr->spec, &pr->attach, pr->facts, sizeof(pr->facts));
	if (!rc)
		ft_facts_add_disks(&pr->attach, pr->facts, sizeof(pr->facts));
	return rc;
}

static void log_obstacle(void *ctx, const char *line)
{
	struct protect *pr = ctx;

	ft_err("%s: %s", pr->guest, line);
}

/* What the durable record forbids, whatever the peer would answer. */
static int check_record(struct protect *pr, void (*obstacle)(void *ctx, const char *line), void *ctx)
{
	const char *dir = ft_conf()->state_dir;
	struct ft_record *r = &pr->record, next;
	char line[1024] = "";

	if (ft_record_load(NULL, dir, pr->guest, r))
		snprintf(line, sizeof(line), "its durable record %s/%s.record cannot be used", dir, pr->guest);
	next = (struct ft_record){ .generation = r->generation + 1, .role = FT_ROLE_PRIMARY };
	if (!*line && r->role == FT_ROLE_PRIMARY && *r->peer && strcmp(r->peer, pr->peer))
		snprintf(line, sizeof(line), "%s may still start its replica of generation %llu: run ft-protect %s %s and end it "
			 "in order first (if %s is dead for good, with ft-ctl unprotect --force %s)", r->peer,
			 (unsigned long long)r->generation, pr->guest, r->peer, r->peer, pr->guest);
	else if (!*line && !ft_record_allowed(r, &next))
		snprintf(line, sizeof(line), "the durable record here says %s (generation %llu, peer %s): the guest is that "
			 "host's; stop the instance here", ft_role_name(r->role), (unsigned long long)r->generation,
			 *r->peer ? r->peer : "unknown");
	if (!*line)
		return 0;
	obstacle(ctx, line);
	return -EPERM;
}

static void netbuf_config(struct protect *pr, struct ft_netbuf_config *cfg)
{
	*cfg = (struct ft_netbuf_config){
		.guest = pr->guest, .nr_taps = pr->attach.nr_nics, .on_held = netbuf_held, .on_breach = netbuf_breach, .ctx = pr,
		.silence_ms = pr->policy.silence_ms,
	};
	for (unsigned i = 0; i < cfg->nr_taps; i++) {
		cfg->tap[i] = pr->attach.nic[i].tap;
		cfg->bridge[i] = pr->attach.nic[i].bridge;
	}
}

static int make_netbuf(struct protect *pr)
{
	struct ft_netbuf_config cfg;

	netbuf_config(pr, &cfg);
	if (!cfg.nr_taps)
		return 0;
	cfg.owner_fd = pr->owner_fd;
	pr->owner_fd = -1;
	return ft_netbuf_new(pr->loop, &cfg, &pr->netbuf);
}

static int make_mirror(struct protect *pr)
{
	struct ft_mirror_config cfg = {
		.guest = pr->guest, .nr_disks = pr->attach.nr_disks, .memory_bound = (size_t)pr->policy.disk_log_mb << 20,
		.file_bound = (uint64_t)pr->policy.disk_spill_mb << 20, .spill_dir = ft_conf()->state_dir,
		.rate_limit = (uint64_t)pr->policy.disk_copy_mb << 20,
	};
	char map[FT_DISKS_MAX][FT_SPEC_PATH_MAX];
	int rc;

	if (!cfg.nr_disks)
		return 0;
	serve_again(pr);
	for (unsigned i = 0; i < cfg.nr_disks; i++) {
		cfg.control[i] = pr->attach.disk[i].control;
		cfg.image[i] = pr->attach.disk[i].image;
		cfg.map[i] = ft_disk_map_path(map[i], pr->guest, i) ? map[i] : NULL;    /* then nobody has one */
		cfg.read_only[i] = pr->attach.disk[i].read_only;
	}
	rc = ft_mirror_new(&cfg, &pr->mirror);
	if (rc)
		return rc;
	pr->mirror->wake = mirror_wake;
	pr->mirror->broken = mirror_broken;
	pr->mirror->ctx = pr;
	return 0;
}

static unsigned encode_threads(const struct ft_policy *policy)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (policy->encode_threads)
		return policy->encode_threads;
	return cpus < 1 ? 1 : cpus > 4 ? 4 : (unsigned)cpus;
}

static int make_data_path(struct protect *pr)
{
	struct ft_encoder_config cfg = {
		.threads = encode_threads(&pr->policy), .nr_pages = pr->vm->nr_pages, .shadow = pr->policy.shadow,
		.emit = emit, .emit_nowait = emit_nowait, .disks = pr->mirror ? disks : NULL, .ctx = pr,
		/* A domain suspends with xenstored's help, which is nobody's priority. */
		.yield = pr->attach.hypervisor == FT_HYPERVISOR_XEN,
	};
	int rc = ft_staging_new((size_t)pr->policy.staging_mb << 20, &pr->staging);

	if (rc)
		return rc;
	cfg.staging = pr->staging;
	return ft_encoder_new(&cfg, &pr->encoder);
}

static int make_primary(struct protect *pr)
{
	struct ft_primary_config cfg = {
		.guest = pr->guest, .peer = pr->peer, .vm = pr->vm, .staging = pr->staging, .encoder = pr->encoder,
		.policy = pr->policy, .vcpus = pr->spec.vcpus, .spec_text = pr->spec_text, .facts = pr->facts,
		.state_dir = ft_conf()->state_dir, .output_shut = pr->netbuf && ft_netbuf_present(pr->guest),
		.mirror = pr->mirror, .ops = &primary_ops, .ctx = pr,
	};

	if (pr->mirror)
		cfg.output[cfg.nr_outputs++] = &pr->mirror->output;
	if (pr->netbuf)
		cfg.output[cfg.nr_outputs++] = ft_netbuf_output(pr->netbuf);
	return ft_primary_new(&cfg, &pr->primary);
}

static int make_control(struct protect *pr)
{
	const struct ft_control_ops ops = { .request = on_request, .ctx = pr };
	char path[FT_PATH_MAX];
	int rc = ft_run_path(path, sizeof(path), pr->guest, "primary.sock");

	return rc ? rc : ft_control_new(pr->loop, path, &ops, &pr->control);
}

static void watch(struct protect *pr)
{
	ev_timer_init(&pr->timer, on_timer, 0.0, 0.0);
	ev_timer_init(&pr->reaper, on_reap, 0.0, 0.0);
	ev_timer_init(&pr->alive, on_alive, 0.0, 0.5);
	ev_io_init(&pr->vm_event, on_vm_event, pr->vm->event_fd, EV_READ);
	ev_io_init(&pr->guard_event, on_guard_died, ft_guard_fd(pr->guard), EV_READ);
	ev_signal_init(&pr->sigint, on_stop, SIGINT);
	ev_signal_init(&pr->sigterm, on_stop, SIGTERM);
	if (pr->mirror) {
		ev_io_init(&pr->mirror_event, on_mirror_event, ft_mirror_event_fd(pr->mirror), EV_READ);
		pr->mirror_event.data = pr;
		ev_io_start(pr->loop, &pr->mirror_event);
	}
	pr->timer.data = pr->alive.data = pr->reaper.data = pr->vm_event.data = pr->guard_event.data = pr;
	pr->sigint.data = pr->sigterm.data = pr;
	ev_timer_start(pr->loop, &pr->alive);
	ev_io_start(pr->loop, &pr->vm_event);
	ev_io_start(pr->loop, &pr->guard_event);
	ev_signal_start(pr->loop, &pr->sigint);
	ev_signal_start(pr->loop, &pr->sigterm);
}

static int make_parts(struct protect *pr)
{
	int rc = make_netbuf(pr);

	if (!rc)
		rc = ft_hv_open(&pr->attach, pr->policy.tracker, &pr->vm);
	if (!rc)
		rc = make_mirror(pr);
	if (!rc)
		rc = make_data_path(pr);
	if (!rc)
		rc = make_primary(pr);
	if (!rc)
		rc = start_guard(pr);
	if (!rc)
		rc = make_control(pr);
	return rc;
}

static void count_disk(void *ctx, const char *line)
{
	unsigned *nr = ctx;

	(void)line;                     /* logged */
	++*nr;
}

/*
 * Images that are not as they should be keep protection from beginning. One that was protected already goes on: its servers have
 * the images open, and to refuse it would leave it mute.
 */
static int check_disks(struct protect *pr)
{
	unsigned nr = 0;

	ft_disk_check(&pr->attach, count_disk, &nr);
	return nr && pr->record.role != FT_ROLE_PRIMARY ? -EINVAL : 0;
}

int protect_open(struct protect *pr, const char *guest, const char *peer, const struct ft_policy *policy)
{
	const struct ft_conf *conf = ft_conf();
	const struct ft_tls_files tls = { conf->tls_ca, conf->tls_cert, conf->tls_key };
	char why[256];
	int rc;

	*pr = (struct protect){
		.guest = guest, .peer = peer, .policy = *policy, .lock_fd = -1, .owner_fd = -1, .loop = ev_default_loop(0),
	};
	if (load_guest(pr, true) || take_lock(pr) || check_record(pr, log_obstacle, pr) || adopt_guard(pr) || ft_tls_check(&tls))
		return FT_END_OBSTACLE;
	serve_again(pr);                /* a server that died is none of the guest's faults */
	if (ft_hv_check(&pr->spec, &pr->attach, log_obstacle, pr) || check_disks(pr))
		return FT_END_OBSTACLE;
	ft_priority_raise();
	ft_log_keep(why, sizeof(why));
	rc = make_parts(pr);
	ft_log_keep(NULL, 0);
	if (rc && !*why)
		ft_err("%s cannot be protected: %s", guest, strerror(-rc));
	if (rc)
		return FT_END_OBSTACLE;
	watch(pr);
	return 0;
}

int protect_run(struct protect *pr)
{
	int rc;

	protect_display_start(pr);
	rc = ft_primary_start(pr->primary);
	if (rc) {
		ft_err("%s: protection could not be started: %s", pr->guest, strerror(-rc));
		return FT_END_INTERNAL;
	}
	tell_guard(pr);
	if (!pr->ended)
		ev_run(pr->loop, 0);
	return pr->ended ? (int)pr->end : FT_END_INTERNAL;
}

void protect_close(struct protect *pr)
{
	bool over = pr->ended && (pr->end == FT_END_OK || pr->end == FT_END_REFUSED || pr->end == FT_END_TAKEN_OVER);

	if (pr->encoder)
		op_disconnect(pr);
	ft_link_free(pr->dead_link);
	ft_beat_stop(pr->beat);
	if (pr->guard && over)
		ft_guard_end(pr->guard);        /* else it stays: the output is shut and somebody must watch the guest */
	ft_guard_free(pr->guard);
	ft_primary_free(pr->primary);
	ft_encoder_free(pr->encoder);
	ft_staging_free(pr->staging);
	if (pr->mirror)
		pr->mirror->ops->free(pr->mirror);
	if (pr->netbuf) {
		struct ft_output *o = ft_netbuf_output(pr->netbuf);

		o->ops->free(o);
	}
	if (pr->vm)
		pr->vm->ops->close(pr->vm);
	ft_control_free(pr->control);   /* answers last: who has asked for the end may migrate the guest at once */
	if (pr->owner_fd >= 0)
		close(pr->owner_fd);
	if (pr->lock_fd >= 0)
		close(pr->lock_fd);
}

/* --- ft-protect --check --- */

struct check {
	struct protect *pr;
	struct ft_link *link;
	int count;
	bool up, done;
};

static void count_obstacle(void *ctx, const char *line)
{
	struct check *ck = ctx;

	printf("obstacle: ");
	for (; *line; line++)
		putchar(ft_log_char(*line));
	putchar('\n');
	ck->count++;
}

static void say_nothing(void *ctx, enum ft_log_level level, const char *line)
{
	(void)ctx, (void)level, (void)line;
}

/* Whose lock it is takes it for as long as it lives. Nothing is created. */
static bool is_protected(const char *guest)
{
	char path[FT_PATH_MAX];

	return !ft_run_path(path, sizeof(path), guest, "protect.lock") && ft_lock_held(path);
}

/* @why: an obstacle, or NULL. */
static void check_done(struct check *ck, const char *why)
{
	if (why && !ck->done)
		count_obstacle(ck, why);
	ck->done = true;
	ev_break(ck->pr->loop, EVBREAK_ALL);
}

/* May the peer have run on what this instance sent it? As ft_primary_start sees it, and ft_primary when it is refused. */
static bool may_be_outrun(const struct protect *pr)
{
	return pr->record.role == FT_ROLE_PRIMARY ||
	       (pr->record.role != FT_ROLE_RUNNING && pr->attach.nr_nics && ft_netbuf_present(pr->guest));
}

/*
 * The question: what would WELCOME say to a session of this guest? Any other instance finds a generation that is large
 * enough by trying, so it asks with one that is larger than all.
 */
static void check_up(void *ctx, const char *peer_name)
{
	struct check *ck = ctx;
	const struct protect *pr = ck->pr;
	const struct ft_primary_config cfg = { .spec_text = pr->spec_text, .facts = pr->facts, .policy = pr->policy };
	struct ft_wire_hello h = {
		.flags = FT_HELLO_CHECK, .generation = may_be_outrun(pr) ? pr->record.generation + 1 : UINT64_MAX - 1,
		.nr_pages = pr->attach.memory / FT_PAGE_SIZE,
	};
	struct ft_blob body = { 0 };

	(void)peer_name;
	ck->up = true;
	if (ft_primary_hello(&cfg, &h, &body) ||
	    ft_link_send(ck->link, FT_LANE_BULK_NOWAIT, FT_REC_HELLO, body.data, body.len))
		check_done(ck, "the backup cannot be asked");
	ft_blob_free(&body);
}

/* A larger generation is found by trying, so its lack is no obstacle. */
static void check_answer(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	char line[FT_WIRE_TEXT_MAX + 256];
	struct check *ck = ctx;
	struct ft_wire_welcome w;

	if (type != FT_REC_WELCOME || ft_wire_unpack_welcome(body, len, &w)) {
		check_done(ck, "the backup's answer makes no sense: both hosts need the same ft");
		return;
	}
	len -= FT_WIRE_WELCOME_LEN;
	snprintf(line, sizeof(line), "%s refuses %s: %s%s%.*s", ck->pr->peer, ck->pr->guest, ft_wire_reason_text(w.reason),
		 len ? ": " : "", (int)len, (const char *)body + FT_WIRE_WELCOME_LEN);
	check_done(ck, w.reason == FT_REASON_OK || w.reason == FT_REASON_GENERATION ? NULL : line);
}

static void check_down(void *ctx, int rc, const char *why)
{
	(void)rc;
	check_done(ctx, why);
}

static void check_late(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct check *ck = w->data;

	(void)loop, (void)revents;
	check_done(ck, ck->up ? "the backup takes the connection and does not answer: look at its ftd" :
		   "the backup does not answer: is the host up, ftd running, and TCP to its port let through?");
}

static void check_peer(struct check *ck)
{
	const struct ft_conf *conf = ft_conf();
	struct ft_link_config cfg = {
		.tls = { conf->tls_ca, conf->tls_cert, conf->tls_key },
		.primary = true, .guest = ck->pr->guest, .peer = ck->pr->peer, .connect_timeout_ms = connect_timeout_ms(),
		.send_bound = SEND_BOUND, .on_up = check_up, .on_record = check_answer, .on_down = check_down, .ctx = ck,
	};
	ev_timer late;

	if (ft_link_connect(ck->pr->loop, &cfg, ck->pr->address, conf->port, &ck->link)) {
		count_obstacle(ck, "the backup cannot be connected to");
		return;
	}
	ev_timer_init(&late, check_late, CHECK_S, 0.0);
	late.data = ck;
	ev_timer_start(ck->pr->loop, &late);
	while (!ck->done)
		ev_run(ck->pr->loop, EVRUN_ONCE);
	ev_timer_stop(ck->pr->loop, &late);
	ft_link_free(ck->link);
}

int protect_check(struct protect *pr, const char *guest, const char *peer)
{
	const struct ft_conf *conf = ft_conf();
	const struct ft_tls_files tls = { conf->tls_ca, conf->tls_cert, conf->tls_key };
	struct check ck = { .pr = pr };
	struct ft_netbuf_config nb;

	*pr = (struct protect){
		.guest = guest, .peer = peer, .policy = conf->policy, .lock_fd = -1, .owner_fd = -1, .loop = ev_default_loop(0),
	};
	if (ft_tls_check(&tls))
		count_obstacle(&ck, "this host's certificate files cannot be used (see the line above)");
	if (load_guest(pr, false)) {
		count_obstacle(&ck, "the guest cannot be reached (see the line above)");
		return ck.count;
	}
	(void)check_record(pr, count_obstacle, &ck);    /* counted by the callback */
	if (is_protected(guest)) {      /* who protects it holds QEMU's socket and the backup's session: leave them alone */
		count_obstacle(&ck, "it is protected already by another ft-protect on this host (ft-ctl status names its peer)");
		return ck.count;
	}
	(void)ft_hv_check(&pr->spec, &pr->attach, count_obstacle, &ck);  /* counted by the callback */
	ft_log_divert(say_nothing, NULL);       /* what it logs it also finds */
	ft_disk_check(&pr->attach, count_obstacle, &ck);
	ft_log_divert(NULL, NULL);
	netbuf_config(pr, &nb);
	if (nb.nr_taps)
		(void)ft_netbuf_check(&nb, count_obstacle, &ck);
	check_peer(&ck);
	return ck.count;
}
