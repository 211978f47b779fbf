// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * netbuf.c - the life of held packets. See ft/netbuf.h.
 *
 * The order that never leaves a window open: setup binds the queue first, because its number is part of the
 * rules, and then puts in all rules, closed, by one transaction. Teardown releases what is held, lets new
 * frames pass without queueing, releases what came in between, and only then takes the rules out, for a
 * chain that disappears takes along what every queue of the namespace holds.
 */
#include "ft/netbuf.h"

#include "netbuf/bridge_nf.h"
#include "netbuf/gate.h"
#include "netbuf/queue.h"
#include "netbuf/rtnl.h"
#include "netbuf/watch.h"
#include <ev.h>
#include <net/if.h>
#include <stdio.h>

#define EPOCHS_MAX 64u
#define HELD_BYTES_MAX (256ull << 20)
#define LARGEST 65536u                  /* a frame that is cut into segments behind us */
#define DRAIN_SLICE 4096u               /* packets a visit; the loop has other work */
#define SWEEP_S 0.002                   /* little is left to read when the guest is paused */
#define AUDIT_NS (50 * FT_MS_NS)
#define AUDIT_STRIKES 3u                /* frames may be on their way from the tap to the bridge */

enum state {
	ST_NEW,                         /* no rules of this object */
	ST_CLOSED,                      /* everything is held */
	ST_BREACHED,                    /* shut: holding was incomplete */
	ST_DISCARDED,                   /* shut: the backup has taken over */
};

struct epoch {
	uint64_t nr;
	uint32_t last_id;
	uint64_t packets, bytes;
};

struct tap {
	char name[IFNAMSIZ], bridge[IFNAMSIZ];
	uint32_t ifindex, bridge_index;
};

struct ft_netbuf {
	struct ft_output output;
	struct ev_loop *loop;           /* borrowed */
	char guest[FT_NAME_MAX + 1];
	unsigned nr_taps;
	struct tap tap[FT_TAPS_MAX];
	struct ft_gate_port port[FT_TAPS_MAX];
	void (*on_held)(void *ctx);
	void (*on_breach)(void *ctx, const char *why);
	void *ctx;
	enum state state;
	char why[256];                  /* of the breach */

	struct ft_gate *gate;
	struct ft_queue *queue;
	struct ft_watch *watch;
	struct mnl_socket *rtnl;
	ev_io readable;
	ev_timer sweep;

	struct epoch now;               /* being filled; nr is unused */
	struct epoch sealed[EPOCHS_MAX];/* ring: oldest at first */
	unsigned first, nr_sealed;
	uint64_t held, held_bytes, held_bytes_max;
	uint64_t limit;                 /* packets the kernel may hold */
	uint64_t released, refused;     /* refused: over the bounds, or not ours */
	bool told;                      /* on_held, in this epoch */
	struct ft_log_limit full_log, breach_log, setup_log;

	bool recheck;                   /* rules changed, and could not be read whole */
	bool audited;                   /* base values are known */
	uint64_t audited_ns, unheld_base;
	int64_t missing_base;
	unsigned strikes;
};

static struct ft_netbuf *netbuf_of(struct ft_output *o)
{
	return ft_container_of(o, struct ft_netbuf, output);
}

/* --- breach --- */

static void stop_holding(struct ft_netbuf *nb)
{
	ev_io_stop(nb->loop, &nb->readable);
	ev_timer_stop(nb->loop, &nb->sweep);
	ft_watch_close(nb->watch);
	nb->watch = NULL;
	ft_queue_close(nb->queue);
	nb->queue = NULL;
	nb->now = (struct epoch){ 0 };
	nb->told = false;
	nb->first = nb->nr_sealed = 0;
	nb->held = nb->held_bytes = 0;
}

/* Where tables have no owner somebody may have taken them out: put them back, closed. */
static void close_again(struct ft_netbuf *nb)
{
	char what[200];

	if (ft_gate_verify(nb->gate, what, sizeof(what)) == -ENOENT)
		(void)!ft_gate_install(nb->gate, ft_queue_number(nb->queue), NULL);
	ft_gate_shut(nb->gate);
}

/* Closes first, then tells. */
static int breach(struct ft_netbuf *nb, const char *why)
{
	if (nb->state != ST_CLOSED)
		return -EIO;
	close_again(nb);
	nb->state = ST_BREACHED;
	snprintf(nb->why, sizeof(nb->why), "%s", why);
	if (ft_log_due(&nb->breach_log, nb->why))
		ft_err("%s: output is shut: %s", nb->guest, nb->why);
	stop_holding(nb);
	return -EIO;
}

static void tell_breach(struct ft_netbuf *nb)
{
	if (nb->on_breach)
		nb->on_breach(nb->ctx, nb->why);
}

/* --- packets --- */

static void refuse(struct ft_netbuf *nb, uint32_t id)
{
	if (ft_queue_drop_one(nb->queue, id) == 0)
		nb->refused++;
}

static bool is_tap(const struct ft_netbuf *nb, uint32_t ifindex)
{
	for (unsigned i = 0; i < nb->nr_taps; i++)
		if (nb->tap[i].ifindex == ifindex)
			return true;
	return false;
}

static void log_full(struct ft_netbuf *nb)
{
	if (ft_log_due(&nb->full_log, "full"))
		ft_warn("%s: too much output waits for the backup (%llu packets, %llu MiB): more is dropped until it acknowledges",
			nb->guest, (unsigned long long)nb->held, (unsigned long long)(nb->held_bytes >> 20));
}

static void on_packet(void *ctx, const struct ft_queue_packet *p)
{
	struct ft_netbuf *nb = ctx;

	/* A dead guest's rules may point to our number: never let its frames go with ours. */
	if (!is_tap(nb, p->ifindex)) {
		refuse(nb, p->id);
		return;
	}
	if (nb->held_bytes + p->bytes > nb->held_bytes_max) {
		log_full(nb);
		refuse(nb, p->id);
		return;
	}
	nb->now.last_id = p->id;
	nb->now.packets++;
	nb->now.bytes += p->bytes;
	nb->held++;
	nb->held_bytes += p->bytes;
}

/*
 * The kernel counts packets, we count bytes, and we may be stopped: it gets leave for as many more as would fit if
 * they were the largest there are.
 */
static void limit_queue(struct ft_netbuf *nb)
{
	uint64_t room = nb->held_bytes < nb->held_bytes_max ? nb->held_bytes_max - nb->held_bytes : 0;
	uint64_t want = nb->held + (room + LARGEST - 1) / LARGEST, step = nb->held_bytes_max / LARGEST / 4;

	if (want > FT_QUEUE_MAX)
		want = FT_QUEUE_MAX;
	if (want == nb->limit || (want < nb->limit + step && nb->limit < want + step))
		return;
	if (ft_queue_limit(nb->queue, (uint32_t)want))
		return;                 /* again with the next packets */
	nb->limit = want;
}

static int drain(struct ft_netbuf *nb, unsigned max)
{
	int n = ft_queue_drain(nb->queue, max, on_packet, nb);

	if (n < 0)
		ft_err("%s: cannot read the packet queue: %s", nb->guest, strerror(-n));
	if (n > 0 && nb->held >= nb->limit)
		log_full(nb);
	if (n > 0)
		limit_queue(nb);
	return n;
}

/* Woken by each packet while they are few, by the clock while they are many: both cost little. */
static void sweep(struct ft_netbuf *nb, bool many)
{
	if (many) {
		ev_io_stop(nb->loop, &nb->readable);
		ev_timer_again(nb->loop, &nb->sweep);
	} else {
		ev_timer_stop(nb->loop, &nb->sweep);
		ev_io_start(nb->loop, &nb->readable);
	}
}

/* The first packet of an epoch is news; what follows is swept up now and then, without waking for each. */
static void tell_held(struct ft_netbuf *nb)
{
	if (!nb->now.packets)
		return;
	sweep(nb, true);
	if (!nb->told)
		nb->on_held(nb->ctx);
	nb->told = true;
}

static void on_readable(struct ev_loop *loop, ev_io *io, int revents)
{
	struct ft_netbuf *nb = io->data;

	if (drain(nb, DRAIN_SLICE) >= 0)
		tell_held(nb);
	else if (breach(nb, "the packet queue cannot be read"))
		tell_breach(nb);
}

static void on_sweep(struct ev_loop *loop, ev_timer *t, int revents)
{
	struct ft_netbuf *nb = t->data;
	int n = drain(nb, DRAIN_SLICE);

	if (!n)
		sweep(nb, false);
	else if (n < 0 && breach(nb, "the packet queue cannot be read"))
		tell_breach(nb);
}

static int check_rules(struct ft_netbuf *nb)
{
	char why[200];
	int rc = ft_gate_verify(nb->gate, why, sizeof(why));

	nb->recheck = rc == -EINTR;     /* somebody commits all the time: again at the next audit */
	return !rc || rc == -EINTR ? 0 : breach(nb, why);
}

static void on_rules_changed(void *ctx)
{
	struct ft_netbuf *nb = ctx;

	if (nb->state == ST_CLOSED && check_rules(nb))
		tell_breach(nb);
}

/* --- audit: does every frame that leaves a tap come by our rules? --- */

/* What has become of @t that holding it is no longer certain; NULL: nothing. By number: names change. */
static const char *changed(struct ft_netbuf *nb, const struct tap *t, struct ft_rtnl_link *link)
{
	if (ft_rtnl_link_by_index(nb->rtnl, t->ifindex, link))
		return "is gone";
	if (strcmp(link->name, t->name))
		return "was renamed";
	return link->master != t->bridge_index ? "left its bridge" : NULL;
}

static int read_taps(struct ft_netbuf *nb, uint64_t *rx)
{
	char why[128];

	*rx = 0;
	for (unsigned i = 0; i < nb->nr_taps; i++) {
		struct ft_rtnl_link link;
		const char *what = changed(nb, &nb->tap[i], &link);

		if (what) {
			snprintf(why, sizeof(why), "%s %s", nb->tap[i].name, what);
			return breach(nb, why);
		}
		*rx += link.rx_packets;
	}
	return 0;
}

static int judge(struct ft_netbuf *nb, const struct ft_gate_counters *c, uint64_t rx)
{
	int64_t missing = (int64_t)(rx - c->seen - c->link);

	if (!nb->audited || missing < nb->missing_base)
		nb->missing_base = missing;
	if (!nb->audited)
		nb->unheld_base = c->unheld;
	nb->audited = true;
	if (c->unheld > nb->unheld_base)
		return breach(nb, "frames came to the gate without having been held");
	nb->strikes = missing > nb->missing_base ? nb->strikes + 1 : 0;
	if (nb->strikes >= AUDIT_STRIKES)
		return breach(nb, "frames leave the tap and do not come by the rules: something diverts or filters them "
				  "(tc, an nft netdev chain, ebtables broute)");
	return 0;
}

/* With the guest paused the counters stand still, so they can be compared exactly. */
static int audit(struct ft_netbuf *nb)
{
	struct ft_gate_counters c;
	uint64_t rx, now = ft_now_ns();
	int rc;

	if (nb->audited && now - nb->audited_ns < AUDIT_NS)
		return 0;
	nb->audited_ns = now;
	if (nb->recheck && check_rules(nb))
		return -EIO;
	rc = ft_gate_count(nb->gate, &c);
	if (rc == -EINTR)
		return 0;               /* somebody commits all the time; next seal */
	if (rc)
		return breach(nb, "the rules are gone");
	rc = read_taps(nb, &rx);
	return rc ? rc : judge(nb, &c, rx);
}

/* --- setup --- */

/* Setup is tried again for as long as a breach stays. */
static int cannot_hold(struct ft_netbuf *nb, int rc, const char *why)
{
	if (ft_log_due(&nb->setup_log, why))
		ft_err("%s: %s", nb->guest, why);
	return rc;
}

static int find_tap(struct ft_netbuf *nb, struct tap *t)
{
	struct ft_rtnl_link port, bridge, before;
	char why[256];
	int rc = ft_rtnl_port(nb->rtnl, t->name, t->bridge, &port, &bridge, why, sizeof(why));

	if (rc == -ENODEV && t->ifindex && !ft_rtnl_link_by_index(nb->rtnl, t->ifindex, &before) &&
	    strcmp(before.name, t->name))
		snprintf(why, sizeof(why), "interface %s was renamed: name it back (ip link set %s name %s)", t->name,
			 before.name, t->name);
	if (rc)
		return cannot_hold(nb, rc, why);
	t->ifindex = port.ifindex;
	t->bridge_index = bridge.ifindex;
	return 0;
}

static int find_taps(struct ft_netbuf *nb)
{
	int rc = 0;

	for (unsigned i = 0; i < nb->nr_taps && !rc; i++)
		rc = find_tap(nb, &nb->tap[i]);
	for (unsigned i = 0; i < nb->nr_taps && !rc; i++) {
		nb->port[i] = (struct ft_gate_port){ .tap = nb->tap[i].ifindex };
		if (!ft_gate_holds_all(nb->gate))
			rc = ft_bridge_nf_find(nb->rtnl, nb->tap[i].bridge_index, &nb->port[i]);
	}
	return rc;
}

/* For these bridges only: the switch for all bridges of the host stays as it is. */
static int call_ip_rules(struct ft_netbuf *nb)
{
	char why[128];

	for (unsigned i = 0; i < nb->nr_taps && !ft_gate_holds_all(nb->gate); i++) {
		int rc = ft_rtnl_bridge_nf_call(nb->rtnl, nb->tap[i].bridge_index, true, true);

		if (rc) {
			snprintf(why, sizeof(why), "cannot switch br_netfilter on for bridge %s: %s", nb->tap[i].bridge,
				 strerror(-rc));
			return cannot_hold(nb, rc, why);
		}
	}
	return 0;
}

static int take_rules_out(struct ft_netbuf *nb)
{
	int rc = ft_gate_remove(nb->gate);

	if (!rc)
		ft_bridge_nf_restore(nb->rtnl, nb->port, nb->nr_taps);
	return rc;
}

static void start_watching(struct ft_netbuf *nb)
{
	ev_io_set(&nb->readable, ft_queue_fd(nb->queue), EV_READ);
	ev_io_start(nb->loop, &nb->readable);
	nb->audited = nb->recheck = false;
	nb->strikes = 0;
	nb->released = nb->refused = 0;
}

static int netbuf_setup(struct ft_output *o)
{
	struct ft_netbuf *nb = netbuf_of(o);
	bool was_shut = ft_gate_present(nb->guest);
	int rc;

	stop_holding(nb);
	rc = find_taps(nb);
	if (!rc)
		rc = ft_queue_open(nb->guest, &nb->queue);
	if (!rc) {
		nb->limit = FT_QUEUE_MAX;
		limit_queue(nb);
	}
	if (!rc)
		rc = ft_watch_open(nb->loop, ft_gate_portid(nb->gate), on_rules_changed, nb, &nb->watch);
	/* The rules first: they carry how the bridge was found, and until it calls them they let nothing by. */
	if (!rc)
		rc = ft_gate_install(nb->gate, ft_queue_number(nb->queue), nb->port);
	if (!rc)
		rc = call_ip_rules(nb);
	if (rc) {
		stop_holding(nb);
		/* A guest that nobody protected must not be left mute; one that was stays mute. */
		if (!was_shut && ft_gate_present(nb->guest))
			(void)!take_rules_out(nb);
		return rc;
	}
	nb->state = ST_CLOSED;
	start_watching(nb);
	return 0;
}

/* --- epochs --- */

static int not_holding(const struct ft_netbuf *nb)
{
	return nb->state == ST_NEW ? -ENOTCONN : -EIO;
}

static int netbuf_seal(struct ft_output *o, uint64_t epoch)
{
	struct ft_netbuf *nb = netbuf_of(o);

	if (nb->state != ST_CLOSED)
		return not_holding(nb);
	if (nb->nr_sealed == EPOCHS_MAX)
		return -ENOBUFS;
	if (drain(nb, UINT32_MAX) < 0)
		return breach(nb, "the packet queue cannot be read");
	nb->now.nr = epoch;
	nb->sealed[(nb->first + nb->nr_sealed++) % EPOCHS_MAX] = nb->now;
	nb->now = (struct epoch){ 0 };
	nb->told = false;
	sweep(nb, false);
	return audit(nb);
}

static int netbuf_commit(struct ft_output *o, uint64_t epoch)
{
	struct ft_netbuf *nb = netbuf_of(o);
	struct epoch all = { 0 };
	int rc;

	if (nb->state != ST_CLOSED)
		return not_holding(nb);
	for (; nb->nr_sealed && nb->sealed[nb->first].nr <= epoch; nb->nr_sealed--) {
		const struct epoch *e = &nb->sealed[nb->first];

		if (e->packets)
			all.last_id = e->last_id;
		all.packets += e->packets;
		all.bytes += e->bytes;
		nb->first = (nb->first + 1) % EPOCHS_MAX;
	}
	if (!all.packets)
		return 0;
	rc = ft_queue_release(nb->queue, all.last_id);
	if (rc) {
		ft_err("%s: cannot release packets: %s", nb->guest, strerror(-rc));
		return rc;
	}
	nb->held -= all.packets;
	nb->held_bytes -= all.bytes;
	nb->released += all.packets;
	limit_queue(nb);
	return 0;
}

static void netbuf_discard(struct ft_output *o)
{
	struct ft_netbuf *nb = netbuf_of(o);

	ft_gate_shut(nb->gate);
	stop_holding(nb);
	if (nb->state != ST_NEW)
		nb->state = ST_DISCARDED;
}

/* --- the end --- */

static int release_all(struct ft_netbuf *nb)
{
	int rc = drain(nb, UINT32_MAX);
	uint32_t last = nb->now.last_id;

	if (rc < 0)
		return rc;
	for (unsigned i = 0; i < nb->nr_sealed && !nb->now.packets; i++)
		if (nb->sealed[(nb->first + i) % EPOCHS_MAX].packets)
			last = nb->sealed[(nb->first + i) % EPOCHS_MAX].last_id;
	if (!nb->held)
		return 0;
	nb->released += nb->held;
	nb->held = nb->held_bytes = 0;
	nb->nr_sealed = 0;
	nb->now = (struct epoch){ 0 };
	return ft_queue_release(nb->queue, last);
}

static int netbuf_teardown(struct ft_output *o)
{
	struct ft_netbuf *nb = netbuf_of(o);
	int rc = 0;

	if (nb->state == ST_CLOSED) {
		rc = ft_gate_fresh(nb->gate, ft_now_ns() + FT_S_NS, NULL);
		if (!rc)
			rc = release_all(nb);
		if (!rc)
			rc = ft_gate_bypass(nb->gate);
		if (!rc)
			rc = release_all(nb);
	}
	ft_watch_close(nb->watch);      /* what we do now is no breach */
	nb->watch = NULL;
	if (!rc)
		rc = take_rules_out(nb);
	stop_holding(nb);
	if (rc)
		return rc;
	nb->state = ST_NEW;
	return 0;
}

static void netbuf_free(struct ft_output *o)
{
	struct ft_netbuf *nb;

	if (!o)
		return;
	nb = netbuf_of(o);
	stop_holding(nb);
	ft_gate_free(nb->gate);
	if (nb->rtnl)
		mnl_socket_close(nb->rtnl);
	free(nb);
}

static const struct ft_output_ops netbuf_ops = {
	.name = "netbuf",
	.setup = netbuf_setup,
	.seal = netbuf_seal,
	.commit = netbuf_commit,
	.discard = netbuf_discard,
	.teardown = netbuf_teardown,
	.free = netbuf_free,
};

/* --- the object --- */

static int open_gate(struct ft_netbuf *nb, const struct ft_netbuf_config *cfg)
{
	struct ft_gate_config gc = { .guest = cfg->guest, .nr_taps = cfg->nr_taps, .tap = cfg->tap, .silence_ms = cfg->silence_ms,
				     .owner_fd = cfg->owner_fd > 0 ? cfg->owner_fd : -1 };

	return ft_gate_new(&gc, &nb->gate);
}

int ft_netbuf_new(struct ev_loop *loop, const struct ft_netbuf_config *cfg, struct ft_netbuf **out)
{
	struct ft_netbuf *nb = calloc(1, sizeof(*nb));
	int rc;

	if (!nb)
		return -ENOMEM;
	assert(cfg->nr_taps <= FT_TAPS_MAX);
	nb->output.ops = &netbuf_ops;
	nb->loop = loop;
	nb->on_held = cfg->on_held;
	nb->on_breach = cfg->on_breach;
	nb->ctx = cfg->ctx;
	nb->held_bytes_max = cfg->held_bytes_max ? cfg->held_bytes_max : HELD_BYTES_MAX;
	snprintf(nb->guest, sizeof(nb->guest), "%s", cfg->guest);
	nb->nr_taps = cfg->nr_taps;
	for (unsigned i = 0; i < cfg->nr_taps; i++) {
		snprintf(nb->tap[i].name, IFNAMSIZ, "%s", cfg->tap[i]);
		snprintf(nb->tap[i].bridge, IFNAMSIZ, "%s", cfg->bridge[i]);
	}
	ev_io_init(&nb->readable, on_readable, -1, EV_READ);
	ev_init(&nb->sweep, on_sweep);
	nb->sweep.repeat = SWEEP_S;
	nb->readable.data = nb->sweep.data = nb;
	rc = open_gate(nb, cfg);
	if (!rc)
		rc = ft_rtnl_open(&nb->rtnl);
	if (rc)
		netbuf_free(&nb->output);
	else
		*out = nb;
	return rc;
}

struct ft_output *ft_netbuf_output(struct ft_netbuf *nb)
{
	return &nb->output;
}

int ft_netbuf_fresh(struct ft_netbuf *nb, uint64_t until_ns, uint64_t *open_ns)
{
	return ft_gate_fresh(nb->gate, until_ns, open_ns);
}

int ft_netbuf_hush(struct ft_netbuf *nb, bool hushed)
{
	return ft_gate_hush(nb->gate, hushed);
}

int ft_netbuf_owner_fd(struct ft_netbuf *nb)
{
	return ft_gate_owner_fd(nb->gate);
}

void ft_netbuf_get_stats(struct ft_netbuf *nb, struct ft_netbuf_stats *out)
{
	bool all = ft_gate_holds_all(nb->gate);
	struct ft_gate_counters c = { 0 };

	if (nb->state != ST_NEW && ft_gate_count(nb->gate, &c))
		c = (struct ft_gate_counters){ 0 };
	*out = (struct ft_netbuf_stats){
		.held_packets = nb->held,
		.held_bytes = nb->held_bytes,
		.released_packets = nb->released,
		.dropped_packets = c.stale + c.unheld + c.unholdable + c.link + nb->refused +
				   (nb->queue ? ft_queue_overflowed(nb->queue) : 0),
		.held = all ? "all ethertypes" : "ipv4, ipv6",
		.dropped = all ? "link control (spanning tree, LLDP)"
			       : "link control (spanning tree, LLDP), vlan and other ethertypes; arp passes unheld",
		.mechanism = all ? "nft-queue" : "xt-queue",
	};
	for (unsigned i = 0; i < nb->nr_sealed; i++)
		out->in_flight += nb->sealed[(nb->first + i) % EPOCHS_MAX].packets > 0;
}
