// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * standby.c - see standby.h. ft_backup is the protocol; this file gives it TLS links, heartbeats, QEMU, a
 * clock and a control socket.
 */
#include "standby.h"

#include "facts.h"
#include "fdpass.h"
#include "ft/attach.h"
#include "ft/backup.h"
#include "ft/conf.h"
#include "ft/control.h"
#include "ft/diskserver.h"
#include "ft/heartbeat.h"
#include "ft/link.h"
#include "ft/netbuf.h"
#include "hook.h"
#include "refuse.h"

#include <ev.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNS_MAX 16                    /* one session, a successor, and many that never get that far */
#define LINGER_S 1.0                    /* what was sent last gets out */
#define IDLE_S 15.0                     /* nothing to keep and nobody here: end */
#define TAKEN_S 2.0                     /* ... sooner once the guest is ours: what we know of it grows old */
#define SEND_BOUND (1u << 20)
#define CONNECT_SILENCES 16             /* a little longer than the primary waits */
#define HEAP_PIECE (4 << 20)
#define HEAP_KEPT (32 << 20)
#define PREDECESSOR_S 20                /* a leaving child ends its links and its parked QEMU */

struct standby;

struct conn {
	struct standby *sb;
	struct ft_link *link;           /* NULL: free slot */
	char peer[FT_NAME_MAX + 1];     /* of its certificate, permitted; empty: not known yet */
	bool closing;                   /* no callback matters any more; freed when the linger is over, or the slot needed */
	uint64_t since_ns;
	ev_timer linger;
};

struct standby {
	const char *guest;
	struct ev_loop *loop;
	struct ft_backup *backup;
	struct conn conn[CONNS_MAX];
	struct conn *current;           /* whose records ft_backup gets */
	struct ft_echo *echo;
	struct ft_echo *old_echo;       /* of the session before, until the primary has changed over */
	bool echo_armed;                /* @echo judges silence */
	struct ft_control *control;
	struct ft_control_req *forced;  /* waits for the primary's lease to end */
	int door;
	struct ft_spec spec;
	struct ft_attach theirs;        /* what the primary said of its guest */
	struct ft_disk_need need[FT_DISKS_MAX]; /* what its disks take */
	unsigned nr_need;
	ev_io door_event, replica_event, drill_event, store_event;
	ev_timer timer, idle;
	ev_signal sigterm;
};

/* --- connections --- */

static void conn_free(struct conn *c)
{
	ev_timer_stop(c->sb->loop, &c->linger);
	ft_link_free(c->link);
	c->link = NULL;
	c->closing = false;
}

static void on_linger(struct ev_loop *loop, ev_timer *w, int revents)
{
	(void)loop, (void)revents;
	conn_free(w->data);
}

static void conn_close(struct conn *c)
{
	if (c->closing)
		return;
	if (c->sb->current == c)
		c->sb->current = NULL;
	c->closing = true;
	ev_timer_set(&c->linger, LINGER_S, 0.0);
	ev_timer_start(c->sb->loop, &c->linger);
}

static void conn_refuse(struct conn *c, enum ft_wire_reason reason, const char *why)
{
	ft_refuse(c->link, c->sb->guest, reason, why);
	conn_close(c);
}

static void conn_up(void *ctx, const char *peer)
{
	struct conn *c = ctx;
	struct standby *sb = c->sb;
	enum ft_wire_reason reason;
	char why[512];

	if (c->closing)
		return;
	reason = ft_refuse_stranger(sb->guest, peer, why, sizeof(why));
	if (reason != FT_REASON_OK) {
		conn_refuse(c, reason, why);
		return;
	}
	snprintf(c->peer, sizeof(c->peer), "%s", peer);
}

/* Whoever only asks (ft-protect --check) disturbs nobody. */
static void conn_check(struct conn *c, const uint8_t *body, size_t len)
{
	struct standby *sb = c->sb;
	uint8_t welcome[FT_WIRE_WELCOME_MAX];
	const struct ft_attach theirs = sb->theirs;
	const struct ft_spec spec = sb->spec;

	len = ft_backup_check(sb->backup, body, len, welcome);
	sb->theirs = theirs;            /* the session's, which may still be building its replica */
	sb->spec = spec;
	ft_ignore(ft_link_send(c->link, FT_LANE_BULK_NOWAIT, FT_REC_WELCOME, welcome, len));   /* it closes either way */
	conn_close(c);
}

/* A HELLO makes a connection the session's. */
static void conn_hello(struct conn *c, const uint8_t *body, size_t len)
{
	struct standby *sb = c->sb;
	struct ft_wire_hello h;
	char why[256];

	if (!ft_wire_unpack_hello(body, len, &h) && h.flags & FT_HELLO_CHECK) {
		conn_check(c, body, len);
		return;
	}
	if (!ft_backup_may_link(sb->backup, c->peer)) {
		snprintf(why, sizeof(why), "%s is being replicated by another host; %s has to wait", sb->guest, c->peer);
		conn_refuse(c, FT_REASON_BUSY, why);
		return;
	}
	ft_backup_link_up(sb->backup, c->peer); /* closes the link it replaces */
	sb->current = c;
	ft_backup_record(sb->backup, FT_REC_HELLO, body, len);
}

static void conn_record(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	struct conn *c = ctx;

	if (c->closing || !c->peer[0])
		return;
	if (c->sb->current == c) {
		ft_backup_record(c->sb->backup, type, body, len);
	} else if (type == FT_REC_HELLO) {
		conn_hello(c, body, len);
	} else {
		ft_warn("%s: %s sent %s before HELLO", c->sb->guest, c->peer, ft_wire_name(type));
		conn_close(c);
	}
}

static void conn_down(void *ctx, int rc, const char *why)
{
	struct conn *c = ctx;
	struct standby *sb = c->sb;

	(void)rc;
	if (sb->current == c) {
		sb->current = NULL;
		ft_backup_link_down(sb->backup, why);
	} else if (!c->closing) {
		ft_warn("%s: a connection ended before its session: %s", sb->guest, why);
	}
	conn_close(c);
}

/*
 * A free slot, or the one that has been there longest of those that carry no session: a port that anybody can connect
 * to must not be filled by those who say nothing. NULL cannot be: only one is the session's.
 */
static struct conn *make_slot(struct standby *sb)
{
	struct conn *oldest = NULL;

	for (unsigned i = 0; i < CONNS_MAX; i++) {
		struct conn *c = &sb->conn[i];

		if (!c->link)
			return c;
		if (c == sb->current)
			continue;
		if (!oldest || c->closing > oldest->closing ||
		    (c->closing == oldest->closing && c->since_ns < oldest->since_ns))
			oldest = c;
	}
	if (!oldest->closing)
		ft_warn("%s: too many connections at once; the one that has said nothing for longest was closed", sb->guest);
	conn_free(oldest);
	return oldest;
}

static void serve(struct standby *sb, int fd)
{
	const struct ft_conf *conf = ft_conf();
	struct ft_link_config cfg = {
		.tls = { conf->tls_ca, conf->tls_cert, conf->tls_key },
		.guest = sb->guest, .connect_timeout_ms = conf->policy.silence_ms * CONNECT_SILENCES, .send_bound = SEND_BOUND,
		.on_up = conn_up, .on_record = conn_record, .on_down = conn_down,
	};
	struct conn *c = make_slot(sb);

	ft_conf_reload();       /* a child lives long: permissions and paths are those of now, not of when it was born */
	*c = (struct conn){ .sb = sb, .since_ns = ft_now_ns() };
	ev_timer_init(&c->linger, on_linger, 0.0, 0.0);
	c->linger.data = c;
	cfg.ctx = c;
	if (ft_link_accept(sb->loop, &cfg, fd, &c->link))
		c->link = NULL;
}

static void on_door(struct ev_loop *loop, ev_io *w, int revents)
{
	struct standby *sb = w->data;
	char guest[FT_NAME_MAX + 1];
	int fd = ft_fd_accept(sb->door, guest);

	(void)loop, (void)revents;
	if (fd >= 0)
		serve(sb, fd);
}

/* --- ops of ft_backup --- */

static uint64_t op_now(void *ctx)
{
	(void)ctx;
	return ft_now_ns();
}

static void on_timer(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct standby *sb = w->data;

	(void)revents;
	ev_timer_stop(loop, w);
	ft_backup_tick(sb->backup);
}

static void op_timer(void *ctx, uint64_t at_ns)
{
	struct standby *sb = ctx;
	uint64_t now = ft_now_ns();

	ev_timer_stop(sb->loop, &sb->timer);
	ev_now_update(sb->loop);
	ev_timer_set(&sb->timer, at_ns > now ? (double)(at_ns - now) / 1e9 : 0.0, 0.0);
	ev_timer_start(sb->loop, &sb->timer);
}

static int op_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct standby *sb = ctx;

	return sb->current ? ft_link_send(sb->current->link, FT_LANE_BULK_NOWAIT, type, body, len) : -EPIPE;
}

static void op_disconnect(void *ctx)
{
	struct standby *sb = ctx;

	if (sb->current)
		conn_close(sb->current);
}

static void op_random(void *ctx, uint8_t *buf, size_t len)
{
	(void)ctx;
	if (getrandom(buf, len, 0) != (ssize_t)len)
		abort();                /* a session id that can be guessed is no session id */
}

static uint32_t op_silence_ms(void *ctx)
{
	(void)ctx;
	return ft_conf()->policy.silence_ms;
}

static int op_echo_start(void *ctx, const uint8_t session[16], uint32_t silence_ms, uint16_t *port)
{
	struct standby *sb = ctx;
	struct ft_echo_config cfg = {
		.port_min = ft_conf()->heartbeat_port_min, .port_max = ft_conf()->heartbeat_port_max, .silence_ms = silence_ms,
	};
	int rc = ft_link_export(sb->current->link, cfg.key);

	if (rc)
		return rc;
	memcpy(cfg.session, session, sizeof(cfg.session));
	ft_echo_stop(sb->echo_armed ? sb->old_echo : sb->echo); /* what never judged has nothing to fall silent from */
	if (sb->echo_armed)
		sb->old_echo = sb->echo;
	sb->echo = NULL;
	sb->echo_armed = false;
	return ft_echo_start(&cfg, port, &sb->echo);
}

static void op_echo_stop(void *ctx)
{
	struct standby *sb = ctx;

	ft_echo_stop(sb->old_echo);
	ft_echo_stop(sb->echo);
	sb->old_echo = sb->echo = NULL;
	sb->echo_armed = false;
}

static void op_echo_arm(void *ctx)
{
	struct standby *sb = ctx;

	if (!sb->echo)
		return;
	ft_echo_arm(sb->echo);
	sb->echo_armed = true;
}

static void op_life(void *ctx)
{
	struct standby *sb = ctx;

	if (sb->echo)
		ft_echo_life(sb->echo);
}

static bool op_silent(void *ctx)
{
	struct standby *sb = ctx;

	if (sb->old_echo && ft_echo_try_takeover(sb->old_echo)) {
		ft_echo_stop(sb->old_echo);
		sb->old_echo = NULL;
	}
	return sb->echo && !sb->old_echo && ft_echo_try_takeover(sb->echo);
}

static enum ft_wire_reason hypervisor_reason(int rc)
{
	switch (rc) {
	case 0:
		return FT_REASON_OK;
	case -ENOMEM:
	case -ENOSPC:
		return FT_REASON_NO_ROOM;
	case -ENOEXEC:
		return FT_REASON_MISMATCH;
	case -ENOENT:
	case -ENODEV:
	case -EEXIST:                   /* a free name */
		return FT_REASON_NO_HYPERVISOR;
	default:
		return FT_REASON_INTERNAL;
	}
}

static enum ft_wire_reason store_reason(int rc)
{
	switch (rc) {
	case 0:
		return FT_REASON_OK;
	case -EFBIG:
		return FT_REASON_MISMATCH;
	case -ENOMEM:
	case -ENOSPC:
		return FT_REASON_NO_ROOM;
	case -ENOENT:                   /* an image's directory */
	case -ESTALE:                   /* an image that its map knows */
	case -EBADMSG:                  /* a map that can be read */
		return FT_REASON_NO_HYPERVISOR;
	default:
		return FT_REASON_INTERNAL;
	}
}

/* Before anything is built, or made there. */
static enum ft_wire_reason check_disks(struct standby *sb, char *why, size_t size)
{
	enum ft_wire_reason reason;

	if (ev_is_active(&sb->store_event))             /* the images are ours already */
		return FT_REASON_OK;
	ft_log_keep(why, size);
	reason = hypervisor_reason(ft_disk_server_check(&sb->spec));
	if (reason == FT_REASON_OK)
		reason = store_reason(ft_disk_replica_check(&sb->spec, sb->need, sb->nr_need));
	ft_log_keep(NULL, 0);
	return reason;
}

static enum ft_wire_reason op_admit(void *ctx, const struct ft_wire_hello *h, const char *spec, const char *facts,
				    char *why, size_t size)
{
	struct standby *sb = ctx;
	enum ft_wire_reason reason;
	struct ft_spec theirs;
	int rc = ft_spec_load(sb->guest, &sb->spec);

	if (rc)
		return ft_refuse_guest(sb->guest, rc, why, size);
	rc = ft_spec_parse(spec, strlen(spec), "the primary's guest file", &theirs);
	if (rc || strcmp(theirs.name, sb->guest)) {
		snprintf(why, size, "the guest's description is not valid");
		return FT_REASON_PROTO;
	}
	if (ft_spec_compatible(&sb->spec, &theirs, why, size))
		return FT_REASON_MISMATCH;
	rc = ft_facts_check(facts, &sb->spec, &sb->theirs, why, size);
	if (rc == -EPROTO)
		snprintf(why, size, "the facts about the running guest are not valid");
	if (rc)
		return rc == -EPROTO ? FT_REASON_PROTO : FT_REASON_MISMATCH;
	sb->nr_need = ft_facts_disks(facts, sb->need);
	if (h->nr_pages != sb->theirs.memory / FT_PAGE_SIZE)
		return FT_REASON_PROTO;
	reason = check_disks(sb, why, size);
	if (reason != FT_REASON_OK)
		return reason;
	/* A parked QEMU has been asked already, and a session that is resumed must not wait for QEMU's help text. */
	if (ev_is_active(&sb->replica_event))
		return FT_REASON_OK;
	return hypervisor_reason(ft_hv_replica_check(&sb->spec, &sb->theirs, why, size));
}

static bool op_runs_here(void *ctx)
{
	struct standby *sb = ctx;
	struct ft_attach at;

	return ft_attach_load(sb->guest, &at) == 0;
}

static void on_replica(struct ev_loop *loop, ev_io *w, int revents)
{
	struct standby *sb = w->data;

	(void)revents;
	ev_io_stop(loop, w);
	ft_backup_replica_died(sb->backup);
}

/* Would the guest be heard here after a takeover? */
static int check_bridges(const struct standby *sb, char *why, size_t size)
{
	char line[FT_WIRE_TEXT_MAX] = "";
	int rc = 0;

	for (unsigned i = 0; i < sb->spec.nr_nics && !rc; i++)
		rc = ft_netbuf_check_bridge(sb->spec.nic[i].bridge, line, sizeof(line));
	if (rc)
		snprintf(why, size, "%s says: %s", ft_conf()->host, line);
	return rc;
}

/* The replica's taps are there, down and its own alone: is anything in the way of its being heard after a takeover? */
static int clear_the_way(struct standby *sb, char *why, size_t size)
{
	int rc = check_bridges(sb, why, size);

	if (rc)
		return rc;
	rc = ft_netbuf_purge_dead(sb->guest);
	if (rc)
		snprintf(why, size, "%s cannot remove the rules that keep an earlier instance of %s shut: %s (its log says more)",
			 ft_conf()->host, sb->guest, strerror(-rc));
	return rc;
}

static enum ft_wire_reason op_could_prepare(void *ctx, char *why, size_t size)
{
	struct standby *sb = ctx;
	int rc;

	if (check_bridges(sb, why, size))
		return FT_REASON_NO_HYPERVISOR;
	ft_log_keep(why, size);
	rc = ft_hv_replica_room(&sb->spec);
	ft_log_keep(NULL, 0);
	return hypervisor_reason(rc);
}

static enum ft_wire_reason op_prepare(void *ctx, struct ft_replica **out, char *why, size_t size)
{
	struct standby *sb = ctx;
	int rc = ft_hv_replica_prepare(&sb->spec, &sb->theirs, out, why, size);

	if (!rc && clear_the_way(sb, why, size)) {
		(*out)->ops->destroy(*out);
		*out = NULL;
		return FT_REASON_INTERNAL;
	}
	if (!rc) {
		ev_io_stop(sb->loop, &sb->replica_event);
		ev_io_set(&sb->replica_event, (*out)->watch_fd, EV_READ);
		ev_io_start(sb->loop, &sb->replica_event);
		return FT_REASON_OK;
	}
	return hypervisor_reason(rc);
}

static void on_store(struct ev_loop *loop, ev_io *w, int revents)
{
	struct standby *sb = w->data;

	(void)loop, (void)revents;
	ft_backup_store_event(sb->backup);
}

static unsigned op_nr_disks(void *ctx)
{
	struct standby *sb = ctx;

	return sb->spec.nr_disks;
}

static enum ft_wire_reason op_open_store(void *ctx, const struct ft_disk_id *theirs, struct ft_store **out, char *why, size_t size)
{
	const struct ft_conf *conf = ft_conf();
	struct standby *sb = ctx;
	struct ft_store_config cfg = {
		.guest = sb->guest, .nr_disks = sb->spec.nr_disks, .state_dir = conf->state_dir,
		.memory_bound = (size_t)conf->policy.disk_log_mb << 20,
		.journal_bound = (uint64_t)conf->policy.disk_spill_mb << 20, .durability = sb->spec.durability,
	};
	int rc;

	for (unsigned i = 0; i < cfg.nr_disks; i++) {
		cfg.disk[i].image = sb->spec.disk[i].image;
		cfg.disk[i].bytes = theirs[i].bytes;
	}
	ft_log_keep(why, size);
	rc = ft_store_open(&cfg, out);
	ft_log_keep(NULL, 0);
	if (rc)
		return store_reason(rc);
	ev_io_set(&sb->store_event, ft_store_event_fd(*out), EV_READ);
	ev_io_start(sb->loop, &sb->store_event);
	return FT_REASON_OK;
}

static void op_close_store(void *ctx, struct ft_store *st)
{
	struct standby *sb = ctx;

	ev_io_stop(sb->loop, &sb->store_event);
	ft_store_free(st);
}

static void on_drill(struct ev_loop *loop, ev_io *w, int revents)
{
	struct standby *sb = w->data;

	(void)loop, (void)revents;
	ft_backup_drilled(sb->backup);
}

static void op_watch_drill(void *ctx, int fd)
{
	struct standby *sb = ctx;

	ev_io_stop(sb->loop, &sb->drill_event);
	if (fd < 0)
		return;
	ev_io_set(&sb->drill_event, fd, EV_READ);
	ev_io_start(sb->loop, &sb->drill_event);
}

static void op_took_over(void *ctx, uint64_t generation, uint64_t epoch)
{
	struct standby *sb = ctx;
	struct ft_attach at;

	ev_io_stop(sb->loop, &sb->replica_event);
	sb->idle.repeat = TAKEN_S;      /* announced by then */
	ev_timer_again(sb->loop, &sb->idle);
	ft_info("%s: RUNNING here since epoch %llu, generation %llu", sb->guest, (unsigned long long)epoch,
		(unsigned long long)generation);
	if (ft_attach_load(sb->guest, &at)) {
		ft_warn("%s: not announced: no attach record", sb->guest);
		return;
	}
	for (unsigned i = 0; i < at.nr_nics; i++)
		if (ft_announce(sb->loop, at.nic[i].tap, at.nic[i].mac))
			ft_warn("%s: the takeover is not announced on %s: switches learn it from the guest's own frames",
				sb->guest, at.nic[i].tap);
}

static void op_changed(void *ctx, enum ft_backup_state from, enum ft_backup_state to, const char *why)
{
	struct standby *sb = ctx;

	ft_info("%s: %s -> %s: %s", sb->guest, ft_backup_state_name(from), ft_backup_state_name(to), why);
	ft_hook_run(ft_conf()->policy.hook, sb->guest, "backup", ft_backup_state_name(to), ft_backup_state_name(from), why);
}

static const struct ft_backup_ops backup_ops = {
	.now_ns = op_now, .timer = op_timer, .send = op_send, .disconnect = op_disconnect, .random = op_random,
	.silence_ms = op_silence_ms, .echo_start = op_echo_start, .echo_arm = op_echo_arm, .echo_stop = op_echo_stop,
	.life = op_life, .silent = op_silent, .admit = op_admit, .runs_here = op_runs_here,
	.could_prepare = op_could_prepare, .nr_disks = op_nr_disks, .open_store = op_open_store, .close_store = op_close_store,
	.prepare = op_prepare, .watch_drill = op_watch_drill,
	.took_over = op_took_over, .changed = op_changed,
};

/* --- ft-ctl --- */

static json_t *status_json(struct standby *sb)
{
	bool xen = sb->theirs.hypervisor == FT_HYPERVISOR_XEN;
	const char *accel = !sb->theirs.memory ? NULL : xen ? "hap" : ft_accel_name(sb->theirs.accel);
	struct ft_store_status disks = { 0 };
	struct ft_backup_status s;
	json_t *j;

	ft_backup_get_status(sb->backup, &s);
	if (s.store)
		ft_store_get_status(s.store, &disks);
	j = json_pack("{s:b, s:s, s:s, s:s, s:I, s:s, s:s, s:s?, s:I, s:I, s:I, s:b, s:b, s:I}",
			 "ok", 1, "guest", sb->guest, "role", "backup", "state", ft_backup_state_name(s.state),
			 "generation", (json_int_t)s.generation, "peer", s.peer, "backend", xen ? "xen" : "qemu", "accel", accel,
			 "epoch", (json_int_t)s.epoch, "acked_epoch", (json_int_t)s.epoch,
			 "applied_epoch", (json_int_t)s.applied_epoch, "linked", s.linked, "drilling", s.drilling,
			 "staging_bytes", (json_int_t)s.staging_bytes);
	if (j && s.store)
		json_object_set_new(j, "disks_staged_bytes", json_integer((json_int_t)disks.staged_bytes));
	if (j && s.store)
		json_object_set_new(j, "journal_bytes", json_integer((json_int_t)disks.journal_bytes));
	return j;
}

static void on_forced(void *ctx, int rc)
{
	struct standby *sb = ctx;

	if (rc)
		ft_control_fail(sb->forced, "the replica does not run: %s", strerror(-rc));
	else
		ft_control_reply(sb->forced, json_pack("{s:b, s:s}", "ok", 1, "text", "the guest runs here now"));
	sb->forced = NULL;
}

static void force(struct standby *sb, struct ft_control_req *req)
{
	int rc = ft_backup_force(sb->backup, on_forced, sb);

	if (!rc)
		sb->forced = req;
	else if (rc == -ENODATA)
		ft_control_fail(req, "there is no whole epoch of %s here to start", sb->guest);
	else
		ft_control_fail(req, "it is being started already");
}

static void give_up(struct standby *sb, struct ft_control_req *req)
{
	int rc = ft_backup_give_up(sb->backup);

	if (!rc)
		ft_control_reply(req, json_pack("{s:b, s:s}", "ok", 1, "text", "the replica is given up: it is not started any more"));
	else if (rc == -EBUSY)
		ft_control_fail(req, "the primary of %s is connected, or the replica is being started: run ft-ctl unprotect on the "
				"primary", sb->guest);
	else if (rc == -ENODATA)
		ft_control_fail(req, "there is no whole epoch of %s here to give up", sb->guest);
	else
		ft_control_fail(req, "that could not be recorded: %s", strerror(-rc));
}

static void on_request(void *ctx, struct ft_control_req *req, const char *cmd, const json_t *args)
{
	struct standby *sb = ctx;

	if (!strcmp(cmd, "status"))
		ft_control_reply(req, status_json(sb));
	else if (!strcmp(cmd, "failover") && json_is_true(json_object_get(args, "force")))
		force(sb, req);
	else if (!strcmp(cmd, "unprotect") && json_is_true(json_object_get(args, "force")))
		give_up(sb, req);
	else if (!strcmp(cmd, "failover"))
		ft_control_fail(req, "this host is the backup: run ft-ctl failover on the primary, or, if that is dead for "
				"certain, ft-ctl failover --force %s here", sb->guest);
	else
		ft_control_fail(req, "this host is the backup of %s: run ft-ctl %s on the primary", sb->guest, cmd);
}

/* --- life --- */

static bool worth_keeping(const struct standby *sb)
{
	struct ft_backup_status s;

	for (unsigned i = 0; i < CONNS_MAX; i++)
		if (sb->conn[i].link)
			return true;
	ft_backup_get_status(sb->backup, &s);
	return s.state == FT_BACKUP_ARMED || (s.state == FT_BACKUP_SYNCING && s.epoch);
}

static void on_idle(struct ev_loop *loop, ev_timer *w, int revents)
{
	(void)revents;
	if (!worth_keeping(w->data))
		ev_break(loop, EVBREAK_ALL);
}

static void on_sigterm(struct ev_loop *loop, ev_signal *w, int revents)
{
	struct standby *sb = w->data;

	(void)revents;
	if (worth_keeping(sb))
		ft_warn("%s: ended by a signal: the replica is given up, the guest is unprotected", sb->guest);
	ev_break(loop, EVBREAK_ALL);
}

static void watch(struct standby *sb)
{
	ev_io_init(&sb->door_event, on_door, sb->door, EV_READ);
	ev_io_init(&sb->replica_event, on_replica, 0, EV_READ);
	ev_io_init(&sb->drill_event, on_drill, 0, EV_READ);
	ev_io_init(&sb->store_event, on_store, 0, EV_READ);
	ev_timer_init(&sb->timer, on_timer, 0.0, 0.0);
	ev_timer_init(&sb->idle, on_idle, IDLE_S, IDLE_S);
	ev_signal_init(&sb->sigterm, on_sigterm, SIGTERM);
	sb->door_event.data = sb->replica_event.data = sb->drill_event.data = sb->store_event.data = sb;
	sb->timer.data = sb->idle.data = sb->sigterm.data = sb;
	ev_io_start(sb->loop, &sb->door_event);
	ev_timer_start(sb->loop, &sb->idle);
	ev_signal_start(sb->loop, &sb->sigterm);
}

static int make_parts(struct standby *sb)
{
	const struct ft_control_ops control_ops = { .request = on_request, .ctx = sb };
	struct ft_backup_config cfg = {
		.guest = sb->guest, .state_dir = ft_conf()->state_dir,
		.staging_bound = (size_t)ft_conf()->policy.staging_mb << 20,
		.tick_ns = ft_conf()->policy.silence_ms * FT_MS_NS / 30, .ops = &backup_ops, .ctx = sb,
	};
	char path[FT_PATH_MAX];
	int rc = ft_backup_new(&cfg, &sb->backup);

	if (!rc)
		rc = ft_run_path(path, sizeof(path), sb->guest, "backup.sock");
	return rc ? rc : ft_control_new(sb->loop, path, &control_ops, &sb->control);
}

static void on_alarm(int sig)
{
	(void)sig;                      /* to interrupt flock() */
}

/*
 * A child that is leaving has closed its door, so ftd starts the next one, but not yet let go of the guest's record,
 * control socket and QEMU. The kernel ends this lock with the process that holds it.
 */
static int succeed_predecessor(const char *guest)
{
	const struct sigaction interrupt = { .sa_handler = on_alarm };
	char path[FT_PATH_MAX];
	int fd, rc = ft_run_path(path, sizeof(path), guest, "standby.lock");

	if (rc)
		return rc;
	sigaction(SIGALRM, &interrupt, NULL);
	alarm(PREDECESSOR_S);
	rc = ft_lock_file(path, true, &fd);     /* held until we end */
	alarm(0);
	if (rc == -EINTR)
		ft_err("%s: another ftd --guest %s did not end in %d s: end that process", path, guest, PREDECESSOR_S);
	else if (rc)
		ft_err("%s: %s", path, strerror(-rc));
	return rc;
}

int ft_standby_door(const char *guest, char *buf, unsigned long size)
{
	return ft_run_path(buf, size, guest, "standby.sock");
}

/*
 * Each epoch takes memory for what is staged, and gives it back when that is written. As malloc would have it, large pieces come
 * from the kernel and go back there each time, and clearing them costs more than all else that is done with them.
 */
static void keep_heap(void)
{
	mallopt(M_MMAP_THRESHOLD, HEAP_PIECE);
	mallopt(M_TRIM_THRESHOLD, HEAP_KEPT);
}

int ft_standby_run(const char *guest, int listen_fd, int tcp_fd)
{
	static struct standby sb;
	char door[FT_PATH_MAX];

	sb = (struct standby){ .guest = guest, .loop = ev_default_loop(0), .door = listen_fd };
	if (succeed_predecessor(guest) || make_parts(&sb)) {
		close(tcp_fd);
		return 1;
	}
	ft_priority_raise();
	keep_heap();
	watch(&sb);
	ft_backup_tick(sb.backup);
	serve(&sb, tcp_fd);
	ev_run(sb.loop, 0);

	/* The door goes first: from here on ftd starts another child. */
	if (!ft_standby_door(guest, door, sizeof(door)))
		unlink(door);
	close(sb.door);
	for (unsigned i = 0; i < CONNS_MAX; i++)
		if (sb.conn[i].link)
			conn_free(&sb.conn[i]);
	op_echo_stop(&sb);
	ft_backup_free(sb.backup);      /* answers who waits */
	ft_control_free(sb.control);
	return 0;
}
