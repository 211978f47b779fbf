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
#include "netbuf/gate.h"

#include "netbuf/nft.h"
#include "netbuf/queue.h"
#include <endian.h>
#include <fcntl.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter_bridge.h>
#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#define SLOT_SHIFT 23u                  /* 8.4 ms */
#define SLACK_MS 20                     /* two ticks of the coarsest kernel: an element outlives its slot */
#define LEASE_MAX_NS (2 * FT_S_NS)      /* renewals reach no further: 239 slots */
#define NAME_MAX_LEN (4 + FT_NAME_MAX + 1)
#define LAYERS_MAX 2u
#define PRIO_FIRST (-1000)              /* before anybody's rules, so that nobody changes a mark in between */
#define PRIO_AFTER_IP 1000              /* ip_queue: behind br_netfilter */

/* nft's numbers of key types, only for what `nft list` prints. */
#define TYPE_IFNAME 41u
#define TYPE_TIME 43u

struct layer {
	char name[NAME_MAX_LEN];
	uint32_t flags;
	bool hold;                      /* queues, and counts; the other layer is only a gate */
	int32_t nr;
	uint64_t digest;                /* of its chains and rules as the kernel tells them */
};

struct ft_gate {
	char guest[FT_NAME_MAX + 1];
	unsigned nr_taps;
	char tap[FT_TAPS_MAX][IFNAMSIZ];
	bool holds_all;
	unsigned nr_layers;
	struct layer layer[LAYERS_MAX];
	struct mnl_socket *reader;      /* loop thread only */
	pthread_mutex_t lock;           /* of all below */
	struct mnl_socket *owner;
	struct ft_nft batch;
	bool installed, hushed, shut, complained;
};

static struct ft_gate_caps forbidden;

void ft_gate_forbid(const struct ft_gate_caps *caps)
{
	forbidden = *caps;
}

/* --- rules --- */

static void rule_skip_others(struct ft_nft *b, const struct ft_nft_chain *c)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_load_meta(b, NFT_META_IIFNAME);
	ft_nft_in_set(b, "taps", true);
	ft_nft_verdict(b, NF_ACCEPT);
	ft_nft_rule_end(b, r);
}

static void rule_count(struct ft_nft *b, const struct ft_nft_chain *c, const char *counter)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_count(b, counter);
	ft_nft_rule_end(b, r);
}

static unsigned rule_queue(struct ft_nft *b, const struct ft_nft_chain *c, uint16_t queue)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_queue(b, queue);
	return ft_nft_rule_end(b, r);
}

static unsigned rule_ip_queue(struct ft_nft *b, const struct ft_nft_chain *c, const char *tap, uint16_t queue)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_xt_physdev(b, tap);
	ft_nft_xt_queue(b, queue);
	return ft_nft_rule_end(b, r);
}

static void match_fresh(struct ft_nft *b)
{
	const uint64_t slot = ~((1ull << SLOT_SHIFT) - 1);

	ft_nft_load_meta(b, NFT_META_TIME_NS);
	ft_nft_mask(b, &slot, sizeof(slot));
	ft_nft_in_set(b, "fresh", false);
}

static void match_released(struct ft_nft *b)
{
	const uint32_t mark = FT_RELEASED_MARK;

	ft_nft_load_meta(b, NFT_META_MARK);
	ft_nft_is(b, NFT_CMP_EQ, &mark, sizeof(mark));
}

static void match_ethertype(struct ft_nft *b, uint16_t type)
{
	const uint16_t be = htons(type);

	ft_nft_load_ll(b, 12, 2);       /* of a tagged frame: the tag's */
	ft_nft_is(b, NFT_CMP_EQ, &be, sizeof(be));
}

static void rule_drop(struct ft_nft *b, const struct ft_nft_chain *c, uint16_t ethertype, const char *counter)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	if (ethertype)
		match_ethertype(b, ethertype);
	ft_nft_count(b, counter);
	ft_nft_verdict(b, NF_DROP);
	ft_nft_rule_end(b, r);
}

static void rules_released(struct ft_nft *b, const struct ft_nft_chain *c, bool last)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	match_released(b);
	match_fresh(b);
	if (last)
		ft_nft_set_mark(b, 0);
	ft_nft_count(b, "passed");
	ft_nft_verdict(b, NF_ACCEPT);
	ft_nft_rule_end(b, r);

	r = ft_nft_rule_begin(b, c, false);
	match_released(b);
	ft_nft_count(b, "stale");
	ft_nft_verdict(b, NF_DROP);
	ft_nft_rule_end(b, r);
}

/* ARP carries no data of the guest, only who has which address: without being held, but while fresh. */
static void rules_arp(struct ft_nft *b, const struct ft_nft_chain *c)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	match_ethertype(b, 0x0806);
	match_fresh(b);
	ft_nft_count(b, "arp");
	ft_nft_verdict(b, NF_ACCEPT);
	ft_nft_rule_end(b, r);
	rule_drop(b, c, 0x0806, "stale");
}

/* A bridge takes these itself, or throws them away, before its first rule: they cannot be held. */
static void rules_link(struct ft_nft *b, const struct ft_nft_chain *c)
{
	static const uint8_t control[6] = { 0x01, 0x80, 0xc2 }, mask[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0 };
	static const uint8_t none[6], group = 1;
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_load_ll(b, 0, 6);
	ft_nft_mask(b, mask, 6);
	ft_nft_is(b, NFT_CMP_EQ, control, 6);   /* spanning tree, pause, LLDP */
	ft_nft_count(b, "link");
	ft_nft_verdict(b, NF_DROP);
	ft_nft_rule_end(b, r);

	r = ft_nft_rule_begin(b, c, false);     /* sent by nobody */
	ft_nft_load_ll(b, 6, 6);
	ft_nft_is(b, NFT_CMP_EQ, none, 6);
	ft_nft_count(b, "link");
	ft_nft_verdict(b, NF_DROP);
	ft_nft_rule_end(b, r);

	r = ft_nft_rule_begin(b, c, false);     /* sent by a group */
	ft_nft_load_ll(b, 6, 1);
	ft_nft_mask(b, &group, 1);
	ft_nft_is(b, NFT_CMP_EQ, &group, 1);
	ft_nft_count(b, "link");
	ft_nft_verdict(b, NF_DROP);
	ft_nft_rule_end(b, r);
}

/* --- tables --- */

static void add_table(struct ft_gate *g, const struct layer *l, uint8_t family)
{
	char comment[200];

	snprintf(comment, sizeof(comment), "output of guest %s waits here for its backup; see ft-protect(8)", g->guest);
	ft_nft_table(&g->batch, family, l->name, l->flags, comment);
}

static void add_netdev(struct ft_gate *g, const struct layer *l)
{
	add_table(g, l, NFPROTO_NETDEV);
	ft_nft_counter(&g->batch, NFPROTO_NETDEV, l->name, "link");
	for (unsigned i = 0; i < g->nr_taps; i++) {
		struct ft_nft_chain c = { .family = NFPROTO_NETDEV, .table = l->name, .name = g->tap[i],
					  .hook = NF_NETDEV_INGRESS, .priority = PRIO_FIRST + l->nr, .device = g->tap[i] };

		ft_nft_chain(&g->batch, &c);
		rules_link(&g->batch, &c);
	}
}

static void add_ip_hold(struct ft_gate *g, const struct layer *l, uint8_t family, uint16_t queue)
{
	struct ft_nft_chain c = { .family = family, .table = l->name, .name = "hold", .hook = NF_INET_PRE_ROUTING,
				  .priority = PRIO_AFTER_IP };

	add_table(g, l, family);
	ft_nft_chain(&g->batch, &c);
	for (unsigned i = 0; i < g->nr_taps; i++)
		rule_ip_queue(&g->batch, &c, g->tap[i], queue);
}

static void add_hold(struct ft_gate *g, const struct layer *l, uint16_t queue)
{
	struct ft_nft_chain c = { .family = NFPROTO_BRIDGE, .table = l->name, .name = "hold",
				  .hook = NF_BR_PRE_ROUTING, .priority = PRIO_FIRST };

	ft_nft_chain(&g->batch, &c);
	rule_skip_others(&g->batch, &c);
	rule_count(&g->batch, &c, "seen");
	if (g->holds_all) {
		rule_queue(&g->batch, &c, queue);
		return;
	}
	add_ip_hold(g, l, NFPROTO_IPV4, queue);
	add_ip_hold(g, l, NFPROTO_IPV6, queue);
}

static void add_gate(struct ft_gate *g, const struct layer *l)
{
	struct ft_nft_chain c = { .family = NFPROTO_BRIDGE, .table = l->name, .name = "gate", .hook = NF_BR_PRE_ROUTING,
				  .priority = (g->holds_all ? PRIO_FIRST : PRIO_AFTER_IP) + 1 + l->nr };

	ft_nft_chain(&g->batch, &c);
	rule_skip_others(&g->batch, &c);
	rules_released(&g->batch, &c, l->nr + 1 == (int32_t)g->nr_layers);
	if (!g->holds_all) {
		rules_arp(&g->batch, &c);
		rule_drop(&g->batch, &c, 0x0800, "unheld");
		rule_drop(&g->batch, &c, 0x86dd, "unheld");
	}
	rule_drop(&g->batch, &c, 0, g->holds_all ? "unheld" : "unholdable");
}

static void add_bridge(struct ft_gate *g, const struct layer *l, uint16_t queue)
{
	static const char *const counters[] = { "seen", "passed", "arp", "stale", "unheld", "unholdable" };
	struct nlattr *taps;

	add_table(g, l, NFPROTO_BRIDGE);
	for (unsigned i = 0; i < FT_ARRAY_LEN(counters); i++)
		ft_nft_counter(&g->batch, NFPROTO_BRIDGE, l->name, counters[i]);
	ft_nft_set(&g->batch, NFPROTO_BRIDGE, l->name, "taps", TYPE_IFNAME, IFNAMSIZ, false);
	taps = ft_nft_elems_begin(&g->batch, NFPROTO_BRIDGE, l->name, "taps");
	for (unsigned i = 0; i < g->nr_taps; i++)
		ft_nft_elem(&g->batch, g->tap[i], IFNAMSIZ, 0);
	ft_nft_elems_end(&g->batch, taps);
	ft_nft_set(&g->batch, NFPROTO_BRIDGE, l->name, "fresh", TYPE_TIME, sizeof(uint64_t), true);
	if (l->hold)
		add_hold(g, l, queue);
	add_gate(g, l);
}

static void add_layer(struct ft_gate *g, const struct layer *l, uint16_t queue)
{
	add_netdev(g, l);
	add_bridge(g, l, queue);
}

/* --- probing --- */

static bool have_br_netfilter(void)
{
	return access("/proc/sys/net/bridge/bridge-nf-call-iptables", F_OK) == 0;
}

static unsigned try_gate(struct ft_nft *b, const struct ft_nft_chain *c)
{
	struct nlattr *r;

	ft_nft_counter(b, c->family, c->table, "passed");
	ft_nft_set(b, c->family, c->table, "fresh", TYPE_TIME, sizeof(uint64_t), true);
	r = ft_nft_rule_begin(b, c, false);
	match_released(b);
	match_fresh(b);
	ft_nft_set_mark(b, 0);
	ft_nft_count(b, "passed");
	return ft_nft_rule_end(b, r);
}

static unsigned try_ip_queue(struct ft_nft *b, uint8_t family)
{
	struct ft_nft_chain c = { .family = family, .table = "ft.probe", .name = "c", .no_hook = true };

	ft_nft_table(b, family, c.table, 0, "");
	ft_nft_chain(b, &c);
	return rule_ip_queue(b, &c, "lo", 1);
}

/* Chains without a hook: registering one and taking it back would flush everybody's held packets. */
static int probe_with(struct ft_nft *b, struct mnl_socket *nl, struct ft_gate_caps *out)
{
	struct ft_nft_chain c = { .family = NFPROTO_BRIDGE, .table = "ft.probe", .name = "c", .no_hook = true };
	unsigned owner, persist, base, queue, gate, ip = 0, ip6 = 0, never;
	bool br_nf = have_br_netfilter();
	int each[32], rc;

	ft_nft_begin(b);
	owner = ft_nft_table(b, NFPROTO_BRIDGE, "ft.probe.o", NFT_TABLE_F_OWNER, "");
	persist = ft_nft_table(b, NFPROTO_BRIDGE, "ft.probe.p", NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST, "");
	base = ft_nft_table(b, c.family, c.table, 0, "");
	ft_nft_chain(b, &c);
	queue = rule_queue(b, &c, 1);
	gate = try_gate(b, &c);
	if (br_nf) {
		ip = try_ip_queue(b, NFPROTO_IPV4);
		ip6 = try_ip_queue(b, NFPROTO_IPV6);
	}
	never = ft_nft_del_table(b, NFPROTO_BRIDGE, "ft.probe.never");  /* fails, so nothing is applied */
	rc = ft_nft_send(b, nl, each, FT_ARRAY_LEN(each));
	if (rc == 0 || each[never] == 0 || each[base])
		return rc ? rc : -EIO;
	*out = (struct ft_gate_caps){ .owner = !each[owner], .persist = !each[persist], .bridge_queue = !each[queue],
				      .gate = !each[gate], .ip_queue = br_nf && !each[ip] && !each[ip6] };
	return 0;
}

int ft_gate_probe(struct ft_gate_caps *out)
{
	struct mnl_socket *nl = NULL;
	struct ft_nft b = { 0 };
	int rc;

	*out = (struct ft_gate_caps){ 0 };
	rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);
	if (!rc)
		rc = ft_nft_init(&b);
	if (!rc)
		rc = probe_with(&b, nl, out);
	if (nl)
		mnl_socket_close(nl);
	ft_nft_free(&b);
	out->owner &= !forbidden.owner;
	out->persist &= out->owner && !forbidden.persist;
	out->bridge_queue &= !forbidden.bridge_queue;
	out->ip_queue &= !forbidden.ip_queue;
	out->gate &= !forbidden.gate;
	return rc;
}

/* --- the object --- */

static void name_plain(char name[NAME_MAX_LEN], const char *guest)
{
	snprintf(name, NAME_MAX_LEN, "ft-%s", guest);
}

static void name_owned(char name[NAME_MAX_LEN], const char *guest)
{
	snprintf(name, NAME_MAX_LEN, "fto-%s", guest);
}

static void choose_layers(struct ft_gate *g, const struct ft_gate_caps *caps)
{
	struct layer *first = &g->layer[0], *second = &g->layer[1];

	*first = (struct layer){ .hold = true };
	*second = (struct layer){ .nr = 1 };
	g->nr_layers = 1;
	if (caps->persist || !caps->owner) {
		name_plain(first->name, g->guest);
		first->flags = caps->persist ? NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST : 0;
		return;
	}
	name_owned(first->name, g->guest);
	first->flags = NFT_TABLE_F_OWNER;
	name_plain(second->name, g->guest);
	g->nr_layers = 2;
}

const char *ft_gate_lacks(const struct ft_gate_caps *caps)
{
	if (!caps->gate)
		return "nf_tables for bridges lacks time, marks or counters (modprobe nft_meta_bridge nft_objref)";
	if (!caps->bridge_queue && !caps->ip_queue)
		return "nf_tables cannot queue on a bridge (modprobe nft_queue), and x_tables cannot either (modprobe br_netfilter xt_NFQUEUE)";
	return NULL;
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
		ft_warn("%s: tables without owner on this kernel: `nft flush ruleset` would end protection (noticed, and output shut)", g->guest);
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

/* --- what is there already --- */

#define FOUND_MAX 16u

struct found {
	const char *guest;              /* NULL: tables of any guest */
	unsigned nr;
	struct {
		uint8_t family;
		char name[NAME_MAX_LEN];
		uint32_t owner;         /* portid; 0: none */
	} table[FOUND_MAX];
};

static bool is_ours(const char *name, const char *guest)
{
	char plain[NAME_MAX_LEN], owned[NAME_MAX_LEN];

	if (!guest)
		return !strncmp(name, "ft-", 3) || !strncmp(name, "fto-", 4);
	name_plain(plain, guest);
	name_owned(owned, guest);
	return !strcmp(name, plain) || !strcmp(name, owned);
}

static int find_one(const struct nlmsghdr *nlh, void *ctx)
{
	const struct nfgenmsg *nfg = mnl_nlmsg_get_payload(nlh);
	const char *name = NULL;
	struct found *f = ctx;
	const struct nlattr *a;
	uint32_t owner = 0;

	mnl_attr_for_each(a, nlh, sizeof(*nfg)) {
		if (mnl_attr_get_type(a) == NFTA_TABLE_NAME)
			name = mnl_attr_get_str(a);
		if (mnl_attr_get_type(a) == NFTA_TABLE_OWNER)
			owner = ntohl(mnl_attr_get_u32(a));
	}
	if (!name || !is_ours(name, f->guest) || f->nr == FOUND_MAX || strlen(name) >= NAME_MAX_LEN)
		return MNL_CB_OK;
	f->table[f->nr].family = nfg->nfgen_family;
	f->table[f->nr].owner = owner;
	strcpy(f->table[f->nr].name, name);
	f->nr++;
	return MNL_CB_OK;
}

static struct nlmsghdr *dump_request(char *buf, unsigned type, uint8_t family)
{
	static _Atomic uint32_t seq;
	struct nlmsghdr *m = mnl_nlmsg_put_header(buf);
	struct nfgenmsg *nfg;

	m->nlmsg_type = (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type);
	m->nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
	m->nlmsg_seq = ++seq;
	nfg = mnl_nlmsg_put_extra_header(m, sizeof(*nfg));
	*nfg = (struct nfgenmsg){ .nfgen_family = family, .version = NFNETLINK_V0 };
	return m;
}

/* A dump during which somebody commits (we do, at each renewal) has to be taken again. */
#define DUMP_TRIES 8

static int find_tables(struct mnl_socket *nl, const char *guest, struct found *f)
{
	char buf[256];
	int rc = -EINTR;

	for (int i = 0; i < DUMP_TRIES && rc == -EINTR; i++) {
		*f = (struct found){ .guest = guest };
		rc = ft_nl_request(nl, dump_request(buf, NFT_MSG_GETTABLE, NFPROTO_UNSPEC), find_one, f);
	}
	return rc;
}

static void delete_found(struct ft_nft *b, const struct found *f)
{
	for (unsigned i = 0; i < f->nr; i++)
		ft_nft_del_table(b, f->table[i].family, f->table[i].name);
}

static int explain(const char *guest, const char *what, const struct found *f, int rc)
{
	for (unsigned i = 0; rc == -EPERM && i < f->nr; i++) {
		if (f->table[i].owner) {
			ft_err("%s: cannot %s: another process (netlink port %u) owns table %s; is an ft-protect or ft-guard of this guest alive?",
			       guest, what, f->table[i].owner, f->table[i].name);
			return rc;
		}
	}
	if (rc)
		ft_err("%s: cannot %s: %s", guest, what, strerror(-rc));
	return rc;
}

bool ft_gate_present(const char *guest)
{
	struct mnl_socket *nl;
	struct found f = { 0 };
	int rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);

	if (rc)
		return false;
	rc = find_tables(nl, guest, &f);
	mnl_socket_close(nl);
	return rc == 0 && f.nr > 0;
}

bool ft_gate_any_left(void)
{
	return ft_gate_present(NULL);
}

int ft_gate_purge(const char *guest)
{
	struct mnl_socket *nl = NULL;
	struct ft_nft b = { 0 };
	struct found f = { 0 };
	int rc;

	rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);
	if (!rc)
		rc = ft_nft_init(&b);
	if (!rc)
		rc = find_tables(nl, guest, &f);
	if (!rc && f.nr) {
		ft_nft_begin(&b);
		delete_found(&b, &f);
		rc = ft_nft_send(&b, nl, NULL, 0);
	}
	if (nl)
		mnl_socket_close(nl);
	ft_nft_free(&b);
	return explain(guest, "take the rules out", &f, rc);
}

/* --- digest: are the rules still what we made? --- */

struct digest {
	const char *table;
	uint64_t sum;
	unsigned nr;
};

static int digest_one(const struct nlmsghdr *nlh, void *ctx)
{
	const uint8_t *body = (const uint8_t *)mnl_nlmsg_get_payload(nlh) + sizeof(struct nfgenmsg);
	size_t len = mnl_nlmsg_get_payload_len(nlh) - sizeof(struct nfgenmsg);
	struct digest *d = ctx;
	const struct nlattr *a;

	mnl_attr_for_each(a, nlh, sizeof(struct nfgenmsg)) {
		/* NFTA_CHAIN_TABLE and NFTA_RULE_TABLE are the same number */
		if (mnl_attr_get_type(a) != NFTA_RULE_TABLE || strcmp(mnl_attr_get_str(a), d->table))
			continue;
		d->sum = XXH3_64bits_withSeed(body, len, d->sum);
		d->nr++;
	}
	return MNL_CB_OK;
}

static int digest_layer(struct ft_gate *g, const struct layer *l, uint64_t *sum)
{
	static const unsigned type[] = { NFT_MSG_GETCHAIN, NFT_MSG_GETRULE };
	struct digest d;
	char buf[256];
	int rc = -EINTR;

	for (int i = 0; i < DUMP_TRIES && rc == -EINTR; i++) {
		d = (struct digest){ .table = l->name };
		rc = 0;
		for (unsigned t = 0; t < FT_ARRAY_LEN(type) && !rc; t++)
			rc = ft_nl_request(g->reader, dump_request(buf, type[t], NFPROTO_UNSPEC), digest_one, &d);
	}
	*sum = d.nr ? d.sum : 0;
	return rc;
}

static int digest_all(struct ft_gate *g)
{
	int rc = 0;

	for (unsigned i = 0; i < g->nr_layers && !rc; i++)
		rc = digest_layer(g, &g->layer[i], &g->layer[i].digest);
	return rc;
}

/* The owned layer is whole and the spare is not: somebody flushed the ruleset. Nothing got out. */
static int restore_spare(struct ft_gate *g, struct layer *spare)
{
	struct found f;
	int rc = find_tables(g->reader, g->guest, &f);

	if (rc)
		return rc;
	pthread_mutex_lock(&g->lock);
	ft_nft_begin(&g->batch);
	for (unsigned i = 0; i < f.nr; i++)
		if (!strcmp(f.table[i].name, spare->name))
			ft_nft_del_table(&g->batch, f.table[i].family, f.table[i].name);
	add_layer(g, spare, 0);
	rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
	pthread_mutex_unlock(&g->lock);
	if (!rc)
		rc = digest_layer(g, spare, &spare->digest);
	if (!rc)
		ft_warn("%s: somebody removed table %s; its twin kept the output shut, and it is back", g->guest, spare->name);
	return rc;
}

int ft_gate_verify(struct ft_gate *g, char *what, size_t size)
{
	for (unsigned i = 0; i < g->nr_layers; i++) {
		struct layer *l = &g->layer[i];
		uint64_t now;
		int rc = digest_layer(g, l, &now);

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

int ft_gate_install(struct ft_gate *g, uint16_t queue)
{
	struct found f = { 0 };
	int rc = find_tables(g->reader, g->guest, &f);

	if (!rc) {
		pthread_mutex_lock(&g->lock);
		ft_nft_begin(&g->batch);
		delete_found(&g->batch, &f);
		for (unsigned i = 0; i < g->nr_layers; i++)
			add_layer(g, &g->layer[i], queue);
		rc = ft_nft_send(&g->batch, g->owner, NULL, 0);
		g->installed = rc == 0;
		g->shut = g->complained = false;
		pthread_mutex_unlock(&g->lock);
	}
	if (!rc)
		rc = digest_all(g);
	return explain(g->guest, "put the rules in", &f, rc);
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * FT_S_NS + (uint64_t)ts.tv_nsec;
}

/* Slots that end before @until_ns. Read in this order, a stall in between can only make them fewer. */
static void add_slots(struct ft_gate *g, const struct layer *l, uint64_t until_ns)
{
	uint64_t real = clock_ns(CLOCK_REALTIME), mono = ft_now_ns();
	uint64_t left = until_ns > mono ? until_ns - mono : 0;
	uint64_t last = (real + (left < LEASE_MAX_NS ? left : LEASE_MAX_NS)) >> SLOT_SHIFT;
	struct nlattr *list = ft_nft_elems_begin(&g->batch, NFPROTO_BRIDGE, l->name, "fresh");

	for (uint64_t slot = real >> SLOT_SHIFT; slot < last; slot++) {
		uint64_t key = slot << SLOT_SHIFT;
		uint64_t end = (slot + 1) << SLOT_SHIFT;

		ft_nft_elem(&g->batch, &key, sizeof(key), (end - real) / FT_MS_NS + SLACK_MS);
	}
	ft_nft_elems_end(&g->batch, list);
}

static int renew_locked(struct ft_gate *g, uint64_t until_ns)
{
	ft_nft_begin(&g->batch);
	for (unsigned i = 0; i < g->nr_layers; i++) {
		if (until_ns)
			add_slots(g, &g->layer[i], until_ns);
		else
			ft_nft_flush_set(&g->batch, NFPROTO_BRIDGE, g->layer[i].name, "fresh");
	}
	return ft_nft_send(&g->batch, g->owner, NULL, 0);
}

static int may_renew(const struct ft_gate *g, uint64_t until_ns)
{
	if (!g->installed)
		return -ENOTCONN;
	if (until_ns && g->shut)
		return -EIO;
	return until_ns && g->hushed ? -ECANCELED : 0;
}

int ft_gate_fresh(struct ft_gate *g, uint64_t until_ns)
{
	bool complain = false;
	int rc;

	pthread_mutex_lock(&g->lock);
	rc = may_renew(g, until_ns);
	if (!rc) {
		rc = renew_locked(g, until_ns);
		complain = rc && !g->complained;
		g->complained |= complain;
	}
	pthread_mutex_unlock(&g->lock);
	if (complain)
		ft_err("%s: cannot renew the right to speak in the kernel: %s; output closes by itself", g->guest, strerror(-rc));
	return rc;
}

int ft_gate_hush(struct ft_gate *g, bool hushed)
{
	int rc;

	pthread_mutex_lock(&g->lock);
	g->hushed = hushed;
	rc = hushed && g->installed ? renew_locked(g, 0) : 0;
	pthread_mutex_unlock(&g->lock);
	return rc;
}

void ft_gate_shut(struct ft_gate *g)
{
	int rc = 0;

	pthread_mutex_lock(&g->lock);
	g->shut = true;
	if (g->installed)
		rc = renew_locked(g, 0);
	pthread_mutex_unlock(&g->lock);
	if (rc && rc != -ENOENT)
		ft_err("%s: cannot close the gate at once: %s; it closes by itself when the lease ends", g->guest, strerror(-rc));
}

static void prepend_accept(struct ft_gate *g, const struct layer *l, uint8_t family, const char *name)
{
	struct ft_nft_chain c = { .family = family, .table = l->name, .name = name };
	struct nlattr *r = ft_nft_rule_begin(&g->batch, &c, true);

	ft_nft_verdict(&g->batch, NF_ACCEPT);
	ft_nft_rule_end(&g->batch, r);
}

int ft_gate_bypass(struct ft_gate *g)
{
	int rc;

	pthread_mutex_lock(&g->lock);
	ft_nft_begin(&g->batch);
	for (unsigned i = 0; i < g->nr_layers; i++) {
		const struct layer *l = &g->layer[i];

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
	return explain(g->guest, "open the gate", &(struct found){ 0 }, rc);
}

int ft_gate_remove(struct ft_gate *g)
{
	struct found f = { 0 };
	int rc = find_tables(g->reader, g->guest, &f);

	if (!rc) {
		pthread_mutex_lock(&g->lock);
		ft_nft_begin(&g->batch);
		delete_found(&g->batch, &f);
		rc = f.nr ? ft_nft_send(&g->batch, g->owner, NULL, 0) : 0;
		if (!rc)
			g->installed = false;
		pthread_mutex_unlock(&g->lock);
	}
	return explain(g->guest, "take the rules out", &f, rc);
}

/* --- counters --- */

struct counting {
	const char *table;
	struct ft_gate_counters *out;
	unsigned nr;
};

static uint64_t packets_of(const struct nlattr *data)
{
	const struct nlattr *a;

	mnl_attr_for_each_nested(a, data)
		if (mnl_attr_get_type(a) == NFTA_COUNTER_PACKETS)
			return be64toh(mnl_attr_get_u64(a));
	return 0;
}

static int count_one(const struct nlmsghdr *nlh, void *ctx)
{
	struct counting *c = ctx;
	const struct {
		const char *name;
		uint64_t *to;
	} row[] = {
		{ "seen", &c->out->seen },     { "passed", &c->out->passed }, { "arp", &c->out->arp },
		{ "stale", &c->out->stale },   { "unheld", &c->out->unheld }, { "unholdable", &c->out->unholdable },
		{ "link", &c->out->link },
	};
	const char *table = "", *name = "";
	const struct nlattr *a;
	uint64_t packets = 0;

	mnl_attr_for_each(a, nlh, sizeof(struct nfgenmsg)) {
		if (mnl_attr_get_type(a) == NFTA_OBJ_TABLE)
			table = mnl_attr_get_str(a);
		if (mnl_attr_get_type(a) == NFTA_OBJ_NAME)
			name = mnl_attr_get_str(a);
		if (mnl_attr_get_type(a) == NFTA_OBJ_DATA)
			packets = packets_of(a);
	}
	for (unsigned i = 0; i < FT_ARRAY_LEN(row) && !strcmp(table, c->table); i++) {
		if (!strcmp(name, row[i].name)) {
			*row[i].to += packets;
			c->nr++;
		}
	}
	return MNL_CB_OK;
}

int ft_gate_count(struct ft_gate *g, struct ft_gate_counters *out)
{
	struct counting c = { .table = g->layer[0].name, .out = out };
	char buf[256];
	int rc = -EINTR;

	for (int i = 0; i < DUMP_TRIES && rc == -EINTR; i++) {
		struct nlmsghdr *m = dump_request(buf, NFT_MSG_GETOBJ, NFPROTO_UNSPEC);

		mnl_attr_put_strz(m, NFTA_OBJ_TABLE, c.table);
		*out = (struct ft_gate_counters){ 0 };
		c.nr = 0;
		rc = ft_nl_request(g->reader, m, count_one, &c);
	}
	return rc ? rc : c.nr ? 0 : -ENOENT;
}
