// SPDX-License-Identifier: GPL-3.0-or-later
/* gate_rules.c - what the gate's tables contain, and whether this kernel takes it. The picture is in gate.h. */
#include "netbuf/gate_priv.h"

#include "netbuf/queue.h"
#include <stdio.h>
#include <unistd.h>

#define PRIO_FIRST (-1000)              /* before anybody's rules, so that nobody changes a mark in between */
#define PRIO_AFTER_IP 1000              /* ip_queue: behind br_netfilter */

/* nft's numbers of key types, only for what `nft list` prints. */
#define TYPE_IFINDEX 20u
#define TYPE_IFNAME 41u
#define TYPE_TIME 43u

/* --- rules --- */

static void rule_skip_others(struct ft_nft *b, const struct ft_nft_chain *c)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	ft_nft_load_meta(b, NFT_META_IIFNAME);
	ft_nft_in_set(b, "taps", true);
	ft_nft_load_meta(b, NFT_META_IIF);
	ft_nft_in_set(b, "ports", true);
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

static void match_fresh(struct ft_nft *b, uint64_t slot_ns)
{
	const uint64_t slot = ~(slot_ns - 1);

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

static void rules_released(struct ft_nft *b, const struct ft_nft_chain *c, uint64_t slot_ns, bool last)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	match_released(b);
	match_fresh(b, slot_ns);
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
static void rules_arp(struct ft_nft *b, const struct ft_nft_chain *c, uint64_t slot_ns)
{
	struct nlattr *r = ft_nft_rule_begin(b, c, false);

	match_ethertype(b, 0x0806);
	match_fresh(b, slot_ns);
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

static void add_table(struct ft_gate *g, const struct gate_layer *l, uint8_t family)
{
	uint8_t note[FT_TAPS_MAX * GATE_NOTE_LEN];
	char comment[128];

	snprintf(comment, sizeof(comment), "output of guest %s waits here for its backup; see ft-protect(8)", g->guest);
	for (unsigned i = 0; i < g->nr_taps; i++)
		gate_pack_port(note + i * GATE_NOTE_LEN, &g->port[i]);
	ft_nft_table_noted(&g->batch, family, l->name, l->flags, comment, note, (uint8_t)(g->nr_taps * GATE_NOTE_LEN));
}

static void add_netdev(struct ft_gate *g, const struct gate_layer *l)
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

static void add_ip_hold(struct ft_gate *g, const struct gate_layer *l, uint8_t family, uint16_t queue)
{
	struct ft_nft_chain c = { .family = family, .table = l->name, .name = "hold", .hook = NF_INET_PRE_ROUTING,
				  .priority = PRIO_AFTER_IP };

	add_table(g, l, family);
	ft_nft_chain(&g->batch, &c);
	for (unsigned i = 0; i < g->nr_taps; i++)
		rule_ip_queue(&g->batch, &c, g->tap[i], queue);
}

static void add_hold(struct ft_gate *g, const struct gate_layer *l, uint16_t queue)
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

static void add_gate(struct ft_gate *g, const struct gate_layer *l)
{
	struct ft_nft_chain c = { .family = NFPROTO_BRIDGE, .table = l->name, .name = "gate", .hook = NF_BR_PRE_ROUTING,
				  .priority = (g->holds_all ? PRIO_FIRST : PRIO_AFTER_IP) + 1 + l->nr };

	ft_nft_chain(&g->batch, &c);
	rule_skip_others(&g->batch, &c);
	rules_released(&g->batch, &c, gate_slot_ns(g), l->nr + 1 == (int32_t)g->nr_layers);
	if (!g->holds_all) {
		rules_arp(&g->batch, &c, gate_slot_ns(g));
		rule_drop(&g->batch, &c, 0x0800, "unheld");
		rule_drop(&g->batch, &c, 0x86dd, "unheld");
	}
	rule_drop(&g->batch, &c, 0, g->holds_all ? "unheld" : "unholdable");
}

static void add_bridge(struct ft_gate *g, const struct gate_layer *l, uint16_t queue)
{
	static const char *const counters[] = { "seen", "passed", "arp", "stale", "unheld", "unholdable" };
	struct nlattr *taps, *ports;

	add_table(g, l, NFPROTO_BRIDGE);
	for (unsigned i = 0; i < FT_ARRAY_LEN(counters); i++)
		ft_nft_counter(&g->batch, NFPROTO_BRIDGE, l->name, counters[i]);
	ft_nft_set(&g->batch, NFPROTO_BRIDGE, l->name, "taps", TYPE_IFNAME, IFNAMSIZ, false);
	taps = ft_nft_elems_begin(&g->batch, NFPROTO_BRIDGE, l->name, "taps");
	for (unsigned i = 0; i < g->nr_taps; i++)
		ft_nft_elem(&g->batch, g->tap[i], IFNAMSIZ, 0);
	ft_nft_elems_end(&g->batch, taps);
	ft_nft_set(&g->batch, NFPROTO_BRIDGE, l->name, "ports", TYPE_IFINDEX, sizeof(uint32_t), false);
	ports = ft_nft_elems_begin(&g->batch, NFPROTO_BRIDGE, l->name, "ports");
	for (unsigned i = 0; i < g->nr_taps; i++)
		ft_nft_elem(&g->batch, &g->port[i].tap, sizeof(g->port[i].tap), 0);
	ft_nft_elems_end(&g->batch, ports);
	ft_nft_set(&g->batch, NFPROTO_BRIDGE, l->name, "fresh", TYPE_TIME, sizeof(uint64_t), true);
	if (l->hold)
		add_hold(g, l, queue);
	add_gate(g, l);
}

void gate_add_layer(struct ft_gate *g, const struct gate_layer *l, uint16_t queue)
{
	add_netdev(g, l);
	add_bridge(g, l, queue);
}

/* --- probing --- */

static struct ft_gate_caps forbidden;

void ft_gate_forbid(const struct ft_gate_caps *caps)
{
	forbidden = *caps;
}

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
	match_fresh(b, 1);
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

const char *ft_gate_lacks(const struct ft_gate_caps *caps)
{
	if (!caps->gate)
		return "nf_tables for bridges lacks time, marks or counters (modprobe nft_meta_bridge nft_objref)";
	if (!caps->bridge_queue && !caps->ip_queue)
		return "nf_tables cannot queue on a bridge (modprobe nft_queue), and x_tables cannot either (modprobe br_netfilter xt_NFQUEUE)";
	return NULL;
}
