// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * gate.c - see gate.h.
 *
 * What survives what. A table with an owner cannot be touched by others: not by `nft flush ruleset`, not by
 * a firewall's reload. On kernels since 6.9 it can also persist, that is outlive its owner: one layer of
 * rules is enough. On older ones an owned table dies with the last copy of its socket, so that two layers
 * are needed: an owned one, and a plain one (without queueing) that stays shut when all of us are dead.
 * Kernels before 5.12 know no owner: one plain layer, and the watch says when somebody removed it.
 */
#include "netbuf/gate_priv.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SLACK_MS 20                     /* two ticks of the coarsest kernel: an element outlives its slot */
#define SLOT_SHIFT_MIN 23u              /* 8.4 ms */
#define SLOT_SHIFT_MAX 25u              /* 33.6 ms: the window that counts is the backup's, and may be shorter than ours */
#define SLOTS_OF_SILENCE 64u            /* at most: each is an element of a set, to be made and to expire */
#define SLOTS_MAX 250u                  /* renewals reach no further */
#define PLENTY(left) ((left) - (left) / 8)      /* with so much in hand there is no hurry to renew: a transaction of the kernel's */
#define STEP_NS (5 * (int64_t)FT_MS_NS) /* more than a clock is slewed between two renewals */

/* --- the object --- */

static int64_t clock_wrong_ns;

void ft_gate_set_clock(int64_t wrong_ns)
{
	clock_wrong_ns = wrong_ns;
}

static uint64_t wall_clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)((int64_t)(ts.tv_sec * FT_S_NS) + ts.tv_nsec + clock_wrong_ns);
}

/* The largest slot that costs little of the lease. */
static unsigned slot_shift(unsigned silence_ms)
{
	uint64_t most = silence_ms * FT_MS_NS / SLOTS_OF_SILENCE;
	unsigned shift = SLOT_SHIFT_MIN;

	while (shift < SLOT_SHIFT_MAX && 2ull << shift <= most)
		shift++;
	return shift;
}

static void choose_layers(struct ft_gate *g, const struct ft_gate_caps *caps)
{
	struct gate_layer *first = &g->layer[0], *second = &g->layer[1];

	*first = (struct gate_layer){ .hold = true };
	*second = (struct gate_layer){ .nr = 1 };
	g->nr_layers = 1;
	if (caps->persist || !caps->owner) {
		gate_name_plain(first->name, g->guest);
		first->flags = caps->persist ? NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST : 0;
		return;
	}
	gate_name_owned(first->name, g->guest);
	first->flags = NFT_TABLE_F_OWNER;
	gate_name_plain(second->name, g->guest);
	g->nr_layers = 2;
}

static int choose(struct ft_gate *g)
{
	struct ft_gate_caps caps;
	int rc = ft_gate_probe(&caps);

	if (rc) {
		ft_err("%s: cannot use nf_tables: %s (root and a kernel with nf_tables for bridges are needed)",
		       g->guest, strerror(-rc));
		return rc;
	}
	if (ft_gate_lacks(&caps)) {
		ft_err("%s: this kernel cannot hold the guest's packets: %s", g->guest, ft_gate_lacks(&caps));
		return -EOPNOTSUPP;
	}
	if (!caps.owner)
		ft_warn("%s: tables have no owner on this kernel: `nft flush ruleset` opens the output until it is noticed",
			g->guest);
	g->holds_all = caps.bridge_queue;
	choose_layers(g, &caps);
	return 0;
}

static int open_sockets(struct ft_gate *g, int owner_fd)
{
	int rc = owner_fd >= 0 ? ft_nl_adopt(owner_fd, &g->owner) : ft_nl_open(NETLINK_NETFILTER, 0, &g->owner);

	if (!rc)
		rc = ft_nl_open(NETLINK_NETFILTER, 0, &g->reader);
	return rc ? rc : ft_nft_init(&g->batch);
}

int ft_gate_new(const struct ft_gate_config *cfg, struct ft_gate **out)
{
	struct ft_gate *g = calloc(1, sizeof(*g));
	int rc;

	if (!g) {
		if (cfg->owner_fd >= 0)
			close(cfg->owner_fd);
		return -ENOMEM;
	}
	assert(ft_name_ok(cfg->guest) && cfg->nr_taps <= FT_TAPS_MAX);
	pthread_mutex_init(&g->lock, NULL);
	g->slot_shift = slot_shift(cfg->silence_ms);
	g->clock_offset = (int64_t)(wall_clock_ns() - ft_now_ns());
	snprintf(g->guest, sizeof(g->guest), "%s", cfg->guest);
	g->nr_taps = cfg->nr_taps;
	for (unsigned i = 0; i < cfg->nr_taps; i++)
		snprintf(g->tap[i], IFNAMSIZ, "%s", cfg->tap[i]);
	rc = open_sockets(g, cfg->owner_fd);
	if (!rc)
		rc = choose(g);
	if (rc)
		ft_gate_free(g);
	else
		*out = g;
	return rc;
}

void ft_gate_free(struct ft_gate *g)
{
	if (!g)
		return;
	if (g->owner)
		mnl_socket_close(g->owner);
	if (g->reader)
		mnl_socket_close(g->reader);
	ft_nft_free(&g->batch);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

bool ft_gate_holds_all(const struct ft_gate *g)
{
	return g->holds_all;
}

uint32_t ft_gate_portid(const struct ft_gate *g)
{
	return mnl_socket_get_portid(g->owner);
}

int ft_gate_owner_fd(struct ft_gate *g)
{
	int fd = fcntl(mnl_socket_get_fd(g->owner), F_DUPFD_CLOEXEC, 3);

	return fd < 0 ? -errno : fd;
}

/* --- are the rules still what we made? --- */

static int digest_all(struct ft_gate *g)
{
	int rc = 0;

	for (unsigned i = 0; i < g->nr_layers && !rc; i++)
		rc = gate_digest(g->reader, g->layer[i].name, &g->layer[i].digest);
	return rc;
}

/* The owned layer is whole and the spare is not: somebody flushed the ruleset. Nothing got out. */
static int restore_spare(struct ft_gate *g, struct gate_layer *spare)
{
	struct gate_found f;
	int rc = gate_find(g->reader, g->guest, &f);

	if (rc)
		return rc;
	pthread_mutex_lock(&g->lock);
	ft_nft_begin(&g->batch);
	for (unsigned i = 0; i < f.nr; i++)
		if (!strcmp(f.table[i].name, spare->name))
			ft_nft_del_table(&g->batch, f.table[i].family, f.table[i].name);
	gate_add_layer(g, spare, 0);
	g->slots_end = 0;
	rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
	pthread_mutex_unlock(&g->lock);
	if (!rc)
		rc = gate_digest(g->reader, spare->name, &spare->digest);
	if (!rc)
		ft_warn("%s: somebody removed table %s; its twin kept the output shut, and it is back", g->guest, spare->name);
	return rc;
}

int ft_gate_verify(struct ft_gate *g, char *what, size_t size)
{
	for (unsigned i = 0; i < g->nr_layers; i++) {
		struct gate_layer *l = &g->layer[i];
		uint64_t now;
		int rc = gate_digest(g->reader, l->name, &now);

		if (!rc && now == l->digest)
			continue;
		if (!rc && !l->hold)
			rc = restore_spare(g, l);
		else if (!rc)
			rc = -ENOENT;
		if (!rc)
			continue;
		snprintf(what, size, "nf_tables rules of table %s %s", l->name,
			 rc != -ENOENT ? strerror(-rc) : now ? "were changed" : "were removed");
		return rc;
	}
	return 0;
}

/* --- life --- */

int ft_gate_install(struct ft_gate *g, uint16_t queue, const struct ft_gate_port *port)
{
	struct gate_found f = { 0 };
	int rc = gate_find(g->reader, g->guest, &f);

	if (!rc) {
		pthread_mutex_lock(&g->lock);
		if (port)
			memcpy(g->port, port, g->nr_taps * sizeof(*port));
		ft_nft_begin(&g->batch);
		gate_delete_found(&g->batch, &f);
		for (unsigned i = 0; i < g->nr_layers; i++)
			gate_add_layer(g, &g->layer[i], queue);
		rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
		g->installed = rc == 0;
		g->slots_end = 0;
		g->shut = g->complained = false;
		pthread_mutex_unlock(&g->lock);
	}
	if (!rc)
		rc = digest_all(g);
	return gate_explain(g->guest, "put the rules in", &f, rc);
}

/* Slots from @first to before @last, with what is left of each as its time-out. */
static void add_slots(struct ft_gate *g, const struct gate_layer *l, uint64_t real, uint64_t first, uint64_t last)
{
	struct nlattr *list = ft_nft_elems_begin(&g->batch, NFPROTO_BRIDGE, l->name, "fresh");

	for (uint64_t slot = first; slot < last; slot++) {
		uint64_t key = slot << g->slot_shift;
		uint64_t end = (slot + 1) << g->slot_shift;

		ft_nft_elem(&g->batch, &key, sizeof(key), (end - real) / FT_MS_NS + SLACK_MS);
	}
	ft_nft_elems_end(&g->batch, list);
}

/*
 * The first slot that has to be added: those before are in the sets. Not so when the wall clock was set: what is there
 * has the time-outs of another time, and is replaced.
 */
static uint64_t first_missing(struct ft_gate *g, uint64_t real, uint64_t mono)
{
	int64_t offset = (int64_t)(real - mono), step = offset - g->clock_offset;

	if (step > STEP_NS || step < -STEP_NS)
		g->slots_end = 0;
	g->clock_offset = offset;
	return g->slots_end < real >> g->slot_shift ? real >> g->slot_shift : g->slots_end;
}

static void add_flush(struct ft_gate *g)
{
	for (unsigned i = 0; i < g->nr_layers; i++)
		ft_nft_flush_set(&g->batch, NFPROTO_BRIDGE, g->layer[i].name, "fresh");
}

static int flush_locked(struct ft_gate *g)
{
	ft_nft_begin(&g->batch);
	add_flush(g);
	g->slots_end = 0;
	return ft_nft_send(&g->batch, g->owner, NULL, 0);
}

/* Slots that end before @until_ns. The clocks are read in this order: a stall in between can only make them fewer. */
static int renew_locked(struct ft_gate *g, uint64_t until_ns, uint64_t *open_ns)
{
	uint64_t before = ft_now_ns(), real = wall_clock_ns(), mono = ft_now_ns();
	uint64_t first = first_missing(g, real, mono), most = SLOTS_MAX * gate_slot_ns(g);
	uint64_t left = until_ns <= mono ? 0 : until_ns - mono < most ? until_ns - mono : most;
	uint64_t last = (real + left) >> g->slot_shift;
	int rc = 0;

	if (first < last && first << g->slot_shift <= real + PLENTY(left)) {
		ft_nft_begin(&g->batch);
		if (!g->slots_end)
			add_flush(g);
		for (unsigned i = 0; i < g->nr_layers; i++)
			add_slots(g, &g->layer[i], real, first, last);
		rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
		g->slots_end = rc ? 0 : last;
	}
	if (g->slots_end << g->slot_shift > real)
		*open_ns = before + (g->slots_end << g->slot_shift) - real;
	return rc;
}

static int may_renew(const struct ft_gate *g, uint64_t until_ns)
{
	if (!g->installed)
		return -ENOTCONN;
	if (until_ns && g->shut)
		return -EIO;
	return until_ns && g->hushed ? -ECANCELED : 0;
}

int ft_gate_fresh(struct ft_gate *g, uint64_t until_ns, uint64_t *open_ns)
{
	bool complain = false;
	uint64_t open = 0;
	int rc;

	pthread_mutex_lock(&g->lock);
	rc = may_renew(g, until_ns);
	if (!rc) {
		rc = until_ns ? renew_locked(g, until_ns, &open) : flush_locked(g);
		complain = rc && !g->complained;
		g->complained |= complain;
	}
	pthread_mutex_unlock(&g->lock);
	if (open_ns)
		*open_ns = open;
	if (complain)
		ft_err("%s: cannot renew the right to speak in the kernel: %s; output closes by itself", g->guest, strerror(-rc));
	return rc;
}

int ft_gate_hush(struct ft_gate *g, bool hushed)
{
	int rc;

	pthread_mutex_lock(&g->lock);
	g->hushed = hushed;
	rc = hushed && g->installed ? flush_locked(g) : 0;
	pthread_mutex_unlock(&g->lock);
	return rc;
}

void ft_gate_shut(struct ft_gate *g)
{
	int rc = 0;

	pthread_mutex_lock(&g->lock);
	g->shut = true;
	if (g->installed)
		rc = flush_locked(g);
	pthread_mutex_unlock(&g->lock);
	if (rc && rc != -ENOENT)
		ft_err("%s: cannot close the gate at once: %s; it closes by itself when the lease ends", g->guest, strerror(-rc));
}

static void prepend_accept(struct ft_gate *g, const struct gate_layer *l, uint8_t family, const char *name)
{
	struct ft_nft_chain c = { .family = family, .table = l->name, .name = name };
	struct nlattr *r = ft_nft_rule_begin(&g->batch, &c, true);

	ft_nft_verdict(&g->batch, NF_ACCEPT);
	ft_nft_rule_end(&g->batch, r);
}

/*
 * Frames that met the old rules are in the queue when their read-side sections have ended. membarrier's global
 * command waits for those of every CPU; where it cannot (nohz_full), a frame underway may be lost, as on any network.
 */
static void wait_for_frames_underway(void)
{
	(void)!syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
}

int ft_gate_bypass(struct ft_gate *g)
{
	int rc;

	pthread_mutex_lock(&g->lock);
	ft_nft_begin(&g->batch);
	for (unsigned i = 0; i < g->nr_layers; i++) {
		const struct gate_layer *l = &g->layer[i];

		prepend_accept(g, l, NFPROTO_BRIDGE, "gate");
		if (l->hold)
			prepend_accept(g, l, NFPROTO_BRIDGE, "hold");
		if (l->hold && !g->holds_all) {
			prepend_accept(g, l, NFPROTO_IPV4, "hold");
			prepend_accept(g, l, NFPROTO_IPV6, "hold");
		}
	}
	rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
	pthread_mutex_unlock(&g->lock);
	if (!rc)
		wait_for_frames_underway();
	return gate_explain(g->guest, "open the gate", &(struct gate_found){ 0 }, rc);
}

int ft_gate_remove(struct ft_gate *g)
{
	struct gate_found f = { 0 };
	int rc = gate_find(g->reader, g->guest, &f);

	if (!rc) {
		pthread_mutex_lock(&g->lock);
		ft_nft_begin(&g->batch);
		gate_delete_found(&g->batch, &f);
		rc = f.nr ? ft_nft_send(&g->batch, g->owner, NULL, 0) : 0;
		if (!rc)
			g->installed = false;
		pthread_mutex_unlock(&g->lock);
	}
	return gate_explain(g->guest, "take the rules out", &f, rc);
}
