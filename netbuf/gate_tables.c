// SPDX-License-Identifier: GPL-3.0-or-later
/* gate_tables.c - read from the kernel what tables there are, and take them out. */
#include "netbuf/gate_priv.h"

#include <endian.h>
#include <linux/netfilter/nfnetlink.h>
#include <stdio.h>
#include <xxhash.h>

/* --- tables --- */

void gate_name_plain(char name[GATE_NAME_MAX], const char *guest)
{
	snprintf(name, GATE_NAME_MAX, "ft-%s", guest);
}

void gate_name_owned(char name[GATE_NAME_MAX], const char *guest)
{
	snprintf(name, GATE_NAME_MAX, "fto-%s", guest);
}

static bool is_ours(const char *name, const char *guest)
{
	char plain[GATE_NAME_MAX], owned[GATE_NAME_MAX];

	if (!guest)
		return !strncmp(name, "ft-", 3) || !strncmp(name, "fto-", 4);
	gate_name_plain(plain, guest);
	gate_name_owned(owned, guest);
	return !strcmp(name, plain) || !strcmp(name, owned);
}

struct table {
	const char *name;
	uint32_t owner;
	const struct nlattr *userdata;
};

/* False: not a table of ours. */
static bool read_table(const struct nlmsghdr *nlh, const char *guest, struct table *t)
{
	const struct nlattr *a;

	*t = (struct table){ 0 };
	mnl_attr_for_each(a, nlh, sizeof(struct nfgenmsg)) {
		if (mnl_attr_get_type(a) == NFTA_TABLE_NAME)
			t->name = mnl_attr_get_str(a);
		if (mnl_attr_get_type(a) == NFTA_TABLE_OWNER)
			t->owner = ntohl(mnl_attr_get_u32(a));
		if (mnl_attr_get_type(a) == NFTA_TABLE_USERDATA)
			t->userdata = a;
	}
	return t->name && is_ours(t->name, guest) && strlen(t->name) < GATE_NAME_MAX;
}

static int find_one(const struct nlmsghdr *nlh, void *ctx)
{
	const struct nfgenmsg *nfg = mnl_nlmsg_get_payload(nlh);
	struct gate_found *f = ctx;
	struct table t;

	if (!read_table(nlh, f->guest, &t) || f->nr == GATE_FOUND_MAX)
		return MNL_CB_OK;
	f->table[f->nr].family = nfg->nfgen_family;
	f->table[f->nr].owner = t.owner;
	strcpy(f->table[f->nr].name, t.name);
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

int gate_find(struct mnl_socket *nl, const char *guest, struct gate_found *f)
{
	char buf[256];
	int rc = -EINTR;

	for (int i = 0; i < FT_NL_DUMP_TRIES && rc == -EINTR; i++) {
		*f = (struct gate_found){ .guest = guest };
		rc = ft_nl_request(nl, dump_request(buf, NFT_MSG_GETTABLE, NFPROTO_UNSPEC), find_one, f);
	}
	return rc;
}

void gate_delete_found(struct ft_nft *b, const struct gate_found *f)
{
	for (unsigned i = 0; i < f->nr; i++)
		ft_nft_del_table(b, f->table[i].family, f->table[i].name);
}

int gate_explain(const char *guest, const char *what, const struct gate_found *f, int rc)
{
	static struct ft_log_limit limit;
	char line[160];

	snprintf(line, sizeof(line), "%s: cannot %s: %s", guest, what, strerror(-rc));
	if (!rc || !ft_log_due(&limit, line))
		return rc;
	for (unsigned i = 0; rc == -EPERM && i < f->nr; i++) {
		if (f->table[i].owner) {
			ft_err("%s: cannot %s: another process (netlink port %u) owns table %s; is an ft-protect or ft-guard of this guest alive?",
			       guest, what, f->table[i].owner, f->table[i].name);
			return rc;
		}
	}
	ft_err("%s", line);
	return rc;
}

bool ft_gate_present(const char *guest)
{
	struct mnl_socket *nl;
	struct gate_found f = { 0 };
	int rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);

	if (rc)
		return false;
	rc = gate_find(nl, guest, &f);
	mnl_socket_close(nl);
	return rc == 0 && f.nr > 0;
}

/* --- what a table says of the ports it was made for --- */

void gate_pack_port(uint8_t note[GATE_NOTE_LEN], const struct ft_gate_port *p)
{
	ft_put32(note, p->tap);
	ft_put32(note + 4, p->bridge);
	note[8] = (uint8_t)(p->call_ip | p->call_ip6 << 1);
}

struct porting {
	const char *guest;
	void (*port)(void *ctx, const struct ft_gate_port *p);
	void *ctx;
};

static int ports_of_one(const struct nlmsghdr *nlh, void *ctx)
{
	const struct porting *w = ctx;
	const uint8_t *note;
	uint8_t len = 0;
	struct table t;

	if (!read_table(nlh, w->guest, &t) || !t.userdata)
		return MNL_CB_OK;
	note = ft_nft_note(t.userdata, &len);
	for (; note && len >= GATE_NOTE_LEN; note += GATE_NOTE_LEN, len -= GATE_NOTE_LEN) {
		struct ft_gate_port p = { .tap = ft_le32(note), .bridge = ft_le32(note + 4), .call_ip = note[8] & 1,
					  .call_ip6 = note[8] >> 1 & 1 };

		w->port(w->ctx, &p);
	}
	return MNL_CB_OK;
}

int ft_gate_ports(const char *guest, void (*port)(void *ctx, const struct ft_gate_port *p), void *ctx)
{
	struct porting w = { .guest = guest, .port = port, .ctx = ctx };
	struct mnl_socket *nl;
	char buf[256];
	int rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);

	if (rc)
		return rc;
	rc = -EINTR;
	for (int i = 0; i < FT_NL_DUMP_TRIES && rc == -EINTR; i++)
		rc = ft_nl_request(nl, dump_request(buf, NFT_MSG_GETTABLE, NFPROTO_UNSPEC), ports_of_one, &w);
	mnl_socket_close(nl);
	return rc;
}

int ft_gate_purge(const char *guest)
{
	struct mnl_socket *nl = NULL;
	struct ft_nft b = { 0 };
	struct gate_found f = { 0 };
	int rc;

	rc = ft_nl_open(NETLINK_NETFILTER, 0, &nl);
	if (!rc)
		rc = ft_nft_init(&b);
	if (!rc)
		rc = gate_find(nl, guest, &f);
	if (!rc && f.nr) {
		ft_nft_begin(&b);
		gate_delete_found(&b, &f);
		rc = ft_nft_send(&b, nl, NULL, 0);
	}
	if (nl)
		mnl_socket_close(nl);
	ft_nft_free(&b);
	return gate_explain(guest, "take the rules out", &f, rc);
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

int gate_digest(struct mnl_socket *nl, const char *name, uint64_t *sum)
{
	static const unsigned type[] = { NFT_MSG_GETCHAIN, NFT_MSG_GETRULE };
	struct digest d;
	char buf[256];
	int rc = -EINTR;

	for (int i = 0; i < FT_NL_DUMP_TRIES && rc == -EINTR; i++) {
		d = (struct digest){ .table = name };
		rc = 0;
		for (unsigned t = 0; t < FT_ARRAY_LEN(type) && !rc; t++)
			rc = ft_nl_request(nl, dump_request(buf, type[t], NFPROTO_UNSPEC), digest_one, &d);
	}
	*sum = d.nr ? d.sum : 0;
	return rc;
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

	for (int i = 0; i < FT_NL_DUMP_TRIES && rc == -EINTR; i++) {
		struct nlmsghdr *m = dump_request(buf, NFT_MSG_GETOBJ, NFPROTO_UNSPEC);

		mnl_attr_put_strz(m, NFTA_OBJ_TABLE, c.table);
		*out = (struct ft_gate_counters){ 0 };
		c.nr = 0;
		rc = ft_nl_request(g->reader, m, count_one, &c);
	}
	return rc ? rc : c.nr ? 0 : -ENOENT;
}
