// SPDX-License-Identifier: GPL-3.0-or-later
/* nft.c - see nft.h. */
#include "netbuf/nft.h"

#include <endian.h>
#include <linux/netfilter/nf_tables_compat.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/xt_NFQUEUE.h>
#include <linux/netfilter/xt_physdev.h>
#include <sys/socket.h>

#define MESSAGE_MAX 4096u               /* no message of ours is longer; elements check for themselves */
#define UDATA_TABLE_COMMENT 0           /* what `nft list` shows as the table's comment */
#define UDATA_SET_BYTEORDER 0           /* of the keys, for `nft list` */
#define HOST_ENDIAN 1u
#define UDATA_TABLE_NOTE 0x66           /* no type of nft's, which counts from 0 */

int ft_nft_init(struct ft_nft *b)
{
	*b = (struct ft_nft){ .buf = malloc(FT_NFT_BATCH_MAX) };
	return b->buf ? 0 : -ENOMEM;
}

void ft_nft_free(struct ft_nft *b)
{
	free(b->buf);
	*b = (struct ft_nft){ 0 };
}

/* --- messages --- */

static void close_message(struct ft_nft *b)
{
	if (b->msg)
		b->len += MNL_ALIGN(b->msg->nlmsg_len);
	b->msg = NULL;
}

static struct nlmsghdr *add(struct ft_nft *b, uint16_t type, uint8_t family, uint16_t res_id, uint16_t flags)
{
	struct nfgenmsg *nfg;

	close_message(b);
	if (b->len + 2 * MESSAGE_MAX > FT_NFT_BATCH_MAX) {
		b->overflow = true;
		b->len = 0;
	}
	b->msg = mnl_nlmsg_put_header(b->buf + b->len);
	b->msg->nlmsg_type = type;
	b->msg->nlmsg_flags = NLM_F_REQUEST | flags;
	b->msg->nlmsg_seq = ++b->seq;
	nfg = mnl_nlmsg_put_extra_header(b->msg, sizeof(*nfg));
	*nfg = (struct nfgenmsg){ .nfgen_family = family, .version = NFNETLINK_V0, .res_id = htons(res_id) };
	return b->msg;
}

static struct nlmsghdr *add_nft(struct ft_nft *b, unsigned type, uint8_t family, uint16_t flags)
{
	return add(b, (uint16_t)(NFNL_SUBSYS_NFTABLES << 8 | type), family, 0, flags);
}

static unsigned number(const struct ft_nft *b)
{
	return b->seq - b->first_seq - 1;
}

void ft_nft_begin(struct ft_nft *b)
{
	b->len = 0;
	b->msg = NULL;
	b->overflow = false;
	b->first_seq = b->seq + 1;
	add(b, NFNL_MSG_BATCH_BEGIN, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 0);
}

/* One answer: remembers the message's error; true when it was the last one expected. */
static bool answer(const struct ft_nft *b, const struct nlmsghdr *nlh, uint32_t last, int *first_error,
		   int *each, unsigned nr_each)
{
	const struct nlmsgerr *e = mnl_nlmsg_get_payload(nlh);
	uint32_t nr = nlh->nlmsg_seq - b->first_seq - 1;

	if (nlh->nlmsg_type != NLMSG_ERROR || mnl_nlmsg_get_payload_len(nlh) < sizeof(e->error))
		return false;
	if (e->error && !*first_error)
		*first_error = e->error;
	if (each && nr < nr_each)
		each[nr] = e->error;
	/* An error that names the begin is about the batch as a whole. */
	return nlh->nlmsg_seq == last || nlh->nlmsg_seq == b->first_seq;
}

static int collect(const struct ft_nft *b, struct mnl_socket *nl, uint32_t last, int *each, unsigned nr_each)
{
	char buf[FT_NL_BUF];
	int first_error = 0;

	for (;;) {
		ssize_t n = recv(mnl_socket_get_fd(nl), buf, sizeof(buf), MSG_DONTWAIT);
		int left = (int)n;

		if (n < 0)
			return first_error ? first_error : -errno;
		for (struct nlmsghdr *h = (struct nlmsghdr *)buf; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left))
			if (answer(b, h, last, &first_error, each, nr_each))
				return first_error;
	}
}

int ft_nft_send(struct ft_nft *b, struct mnl_socket *nl, int *each, unsigned nr_each)
{
	uint32_t last = b->seq;

	if (b->msg)
		b->msg->nlmsg_flags |= NLM_F_ACK;
	add(b, NFNL_MSG_BATCH_END, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, 0);
	close_message(b);
	if (b->overflow)
		return -ENOBUFS;
	if (each)
		memset(each, 0, nr_each * sizeof(*each));
	ft_nl_drop_stale(nl);
	if (mnl_socket_sendto(nl, b->buf, b->len) < 0)
		return -errno;
	return collect(b, nl, last, each, nr_each);
}

/* --- objects --- */

/* User data is a list of type, length, value; returns the place behind the new element. */
static uint8_t *put_udata(uint8_t *p, uint8_t type, const void *value, size_t len)
{
	p[0] = type;
	p[1] = (uint8_t)len;
	memcpy(p + 2, value, len);
	return p + 2 + len;
}

unsigned ft_nft_table_noted(struct ft_nft *b, uint8_t family, const char *name, uint32_t flags, const char *comment,
			    const void *note, uint8_t len)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_NEWTABLE, family, NLM_F_CREATE);
	uint8_t udata[NFT_USERDATA_MAXLEN], *end;

	assert(2 + strlen(comment) + 1 + 2 + len <= sizeof(udata));
	end = put_udata(udata, UDATA_TABLE_COMMENT, comment, strlen(comment) + 1);
	if (len)
		end = put_udata(end, UDATA_TABLE_NOTE, note, len);
	mnl_attr_put_strz(m, NFTA_TABLE_NAME, name);
	mnl_attr_put_u32(m, NFTA_TABLE_FLAGS, htonl(flags));
	mnl_attr_put(m, NFTA_TABLE_USERDATA, (size_t)(end - udata), udata);
	return number(b);
}

unsigned ft_nft_table(struct ft_nft *b, uint8_t family, const char *name, uint32_t flags, const char *comment)
{
	return ft_nft_table_noted(b, family, name, flags, comment, NULL, 0);
}

const void *ft_nft_note(const struct nlattr *userdata, uint8_t *len)
{
	const uint8_t *p = mnl_attr_get_payload(userdata), *end = p + mnl_attr_get_payload_len(userdata);

	for (; end - p >= 2 && end - p - 2 >= p[1]; p += 2 + p[1]) {
		*len = p[1];
		if (p[0] == UDATA_TABLE_NOTE)
			return p + 2;
	}
	return NULL;
}

unsigned ft_nft_del_table(struct ft_nft *b, uint8_t family, const char *name)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_DELTABLE, family, 0);

	mnl_attr_put_strz(m, NFTA_TABLE_NAME, name);
	return number(b);
}

unsigned ft_nft_chain(struct ft_nft *b, const struct ft_nft_chain *c)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_NEWCHAIN, c->family, NLM_F_CREATE);
	struct nlattr *hook;

	mnl_attr_put_strz(m, NFTA_CHAIN_TABLE, c->table);
	mnl_attr_put_strz(m, NFTA_CHAIN_NAME, c->name);
	if (c->no_hook)
		return number(b);
	mnl_attr_put_strz(m, NFTA_CHAIN_TYPE, "filter");
	hook = mnl_attr_nest_start(m, NFTA_CHAIN_HOOK);
	mnl_attr_put_u32(m, NFTA_HOOK_HOOKNUM, htonl(c->hook));
	mnl_attr_put_u32(m, NFTA_HOOK_PRIORITY, htonl((uint32_t)c->priority));
	if (c->device)
		mnl_attr_put_strz(m, NFTA_HOOK_DEV, c->device);
	mnl_attr_nest_end(m, hook);
	return number(b);
}

unsigned ft_nft_counter(struct ft_nft *b, uint8_t family, const char *table, const char *name)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_NEWOBJ, family, NLM_F_CREATE);
	struct nlattr *data;

	mnl_attr_put_strz(m, NFTA_OBJ_TABLE, table);
	mnl_attr_put_strz(m, NFTA_OBJ_NAME, name);
	mnl_attr_put_u32(m, NFTA_OBJ_TYPE, htonl(NFT_OBJECT_COUNTER));
	data = mnl_attr_nest_start(m, NFTA_OBJ_DATA);
	mnl_attr_put_u64(m, NFTA_COUNTER_PACKETS, 0);
	mnl_attr_nest_end(m, data);
	return number(b);
}

unsigned ft_nft_set(struct ft_nft *b, uint8_t family, const char *table, const char *name, uint32_t type,
		    uint32_t key_len, bool timeout)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_NEWSET, family, NLM_F_CREATE);
	const uint32_t order = HOST_ENDIAN;
	uint8_t udata[2 + sizeof(order)];

	mnl_attr_put_strz(m, NFTA_SET_TABLE, table);
	mnl_attr_put_strz(m, NFTA_SET_NAME, name);
	mnl_attr_put_u32(m, NFTA_SET_ID, htonl(b->seq));
	mnl_attr_put_u32(m, NFTA_SET_FLAGS, htonl(timeout ? NFT_SET_TIMEOUT : 0));
	mnl_attr_put_u32(m, NFTA_SET_KEY_TYPE, htonl(type));
	mnl_attr_put_u32(m, NFTA_SET_KEY_LEN, htonl(key_len));
	put_udata(udata, UDATA_SET_BYTEORDER, &order, sizeof(order));
	mnl_attr_put(m, NFTA_SET_USERDATA, sizeof(udata), udata);
	if (timeout)
		mnl_attr_put_u32(m, NFTA_SET_GC_INTERVAL, htonl(1000));
	return number(b);
}

static struct nlmsghdr *add_elems(struct ft_nft *b, unsigned type, uint8_t family, uint16_t flags,
				  const char *table, const char *set)
{
	struct nlmsghdr *m = add_nft(b, type, family, flags);

	mnl_attr_put_strz(m, NFTA_SET_ELEM_LIST_TABLE, table);
	mnl_attr_put_strz(m, NFTA_SET_ELEM_LIST_SET, set);
	return m;
}

struct nlattr *ft_nft_elems_begin(struct ft_nft *b, uint8_t family, const char *table, const char *set)
{
	struct nlmsghdr *m = add_elems(b, NFT_MSG_NEWSETELEM, family, NLM_F_CREATE, table, set);

	return mnl_attr_nest_start(m, NFTA_SET_ELEM_LIST_ELEMENTS);
}

void ft_nft_elem(struct ft_nft *b, const void *key, uint32_t len, uint64_t timeout_ms)
{
	struct nlattr *elem, *k;

	if (b->len + b->msg->nlmsg_len + MESSAGE_MAX > FT_NFT_BATCH_MAX) {
		b->overflow = true;
		return;
	}
	elem = mnl_attr_nest_start(b->msg, NFTA_LIST_ELEM);
	k = mnl_attr_nest_start(b->msg, NFTA_SET_ELEM_KEY);
	mnl_attr_put(b->msg, NFTA_DATA_VALUE, len, key);
	mnl_attr_nest_end(b->msg, k);
	if (timeout_ms)
		mnl_attr_put_u64(b->msg, NFTA_SET_ELEM_TIMEOUT, htobe64(timeout_ms));
	mnl_attr_nest_end(b->msg, elem);
}

unsigned ft_nft_elems_end(struct ft_nft *b, struct nlattr *list)
{
	mnl_attr_nest_end(b->msg, list);
	return number(b);
}

unsigned ft_nft_flush_set(struct ft_nft *b, uint8_t family, const char *table, const char *set)
{
	add_elems(b, NFT_MSG_DELSETELEM, family, 0, table, set);
	return number(b);
}

/* --- rules --- */

struct nlattr *ft_nft_rule_begin(struct ft_nft *b, const struct ft_nft_chain *c, bool prepend)
{
	struct nlmsghdr *m = add_nft(b, NFT_MSG_NEWRULE, c->family, NLM_F_CREATE | (prepend ? 0 : NLM_F_APPEND));

	mnl_attr_put_strz(m, NFTA_RULE_TABLE, c->table);
	mnl_attr_put_strz(m, NFTA_RULE_CHAIN, c->name);
	return mnl_attr_nest_start(m, NFTA_RULE_EXPRESSIONS);
}

unsigned ft_nft_rule_end(struct ft_nft *b, struct nlattr *list)
{
	mnl_attr_nest_end(b->msg, list);
	return number(b);
}

struct expr {
	struct nlattr *elem, *data;
};

static struct expr expr_begin(struct ft_nft *b, const char *name)
{
	struct expr e = { .elem = mnl_attr_nest_start(b->msg, NFTA_LIST_ELEM) };

	mnl_attr_put_strz(b->msg, NFTA_EXPR_NAME, name);
	e.data = mnl_attr_nest_start(b->msg, NFTA_EXPR_DATA);
	return e;
}

static void expr_end(struct ft_nft *b, struct expr e)
{
	mnl_attr_nest_end(b->msg, e.data);
	mnl_attr_nest_end(b->msg, e.elem);
}

static void put32(struct ft_nft *b, uint16_t attr, uint32_t value)
{
	mnl_attr_put_u32(b->msg, attr, htonl(value));
}

static void put_value(struct ft_nft *b, uint16_t attr, const void *data, uint32_t len)
{
	struct nlattr *nest = mnl_attr_nest_start(b->msg, attr);

	mnl_attr_put(b->msg, NFTA_DATA_VALUE, len, data);
	mnl_attr_nest_end(b->msg, nest);
}

void ft_nft_load_meta(struct ft_nft *b, uint32_t key)
{
	struct expr e = expr_begin(b, "meta");

	put32(b, NFTA_META_DREG, NFT_REG_1);
	put32(b, NFTA_META_KEY, key);
	expr_end(b, e);
}

void ft_nft_load_ll(struct ft_nft *b, uint32_t offset, uint32_t len)
{
	struct expr e = expr_begin(b, "payload");

	put32(b, NFTA_PAYLOAD_DREG, NFT_REG_1);
	put32(b, NFTA_PAYLOAD_BASE, NFT_PAYLOAD_LL_HEADER);
	put32(b, NFTA_PAYLOAD_OFFSET, offset);
	put32(b, NFTA_PAYLOAD_LEN, len);
	expr_end(b, e);
}

void ft_nft_mask(struct ft_nft *b, const void *mask, uint32_t len)
{
	static const uint8_t zero[16];
	struct expr e = expr_begin(b, "bitwise");

	put32(b, NFTA_BITWISE_SREG, NFT_REG_1);
	put32(b, NFTA_BITWISE_DREG, NFT_REG_1);
	put32(b, NFTA_BITWISE_LEN, len);
	put_value(b, NFTA_BITWISE_MASK, mask, len);
	put_value(b, NFTA_BITWISE_XOR, zero, len);
	expr_end(b, e);
}

void ft_nft_is(struct ft_nft *b, uint32_t op, const void *data, uint32_t len)
{
	struct expr e = expr_begin(b, "cmp");

	put32(b, NFTA_CMP_SREG, NFT_REG_1);
	put32(b, NFTA_CMP_OP, op);
	put_value(b, NFTA_CMP_DATA, data, len);
	expr_end(b, e);
}

void ft_nft_in_set(struct ft_nft *b, const char *set, bool invert)
{
	struct expr e = expr_begin(b, "lookup");

	mnl_attr_put_strz(b->msg, NFTA_LOOKUP_SET, set);
	put32(b, NFTA_LOOKUP_SREG, NFT_REG_1);
	if (invert)
		put32(b, NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
	expr_end(b, e);
}

void ft_nft_set_mark(struct ft_nft *b, uint32_t mark)
{
	struct expr e = expr_begin(b, "immediate");

	put32(b, NFTA_IMMEDIATE_DREG, NFT_REG_1);
	put_value(b, NFTA_IMMEDIATE_DATA, &mark, sizeof(mark));
	expr_end(b, e);
	e = expr_begin(b, "meta");
	put32(b, NFTA_META_KEY, NFT_META_MARK);
	put32(b, NFTA_META_SREG, NFT_REG_1);
	expr_end(b, e);
}

void ft_nft_count(struct ft_nft *b, const char *counter)
{
	struct expr e = expr_begin(b, "objref");

	put32(b, NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER);
	mnl_attr_put_strz(b->msg, NFTA_OBJREF_IMM_NAME, counter);
	expr_end(b, e);
}

void ft_nft_verdict(struct ft_nft *b, int verdict)
{
	struct expr e = expr_begin(b, "immediate");
	struct nlattr *data, *v;

	put32(b, NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
	data = mnl_attr_nest_start(b->msg, NFTA_IMMEDIATE_DATA);
	v = mnl_attr_nest_start(b->msg, NFTA_DATA_VERDICT);
	put32(b, NFTA_VERDICT_CODE, (uint32_t)verdict);
	mnl_attr_nest_end(b->msg, v);
	mnl_attr_nest_end(b->msg, data);
	expr_end(b, e);
}

void ft_nft_queue(struct ft_nft *b, uint16_t queue)
{
	struct expr e = expr_begin(b, "queue");

	mnl_attr_put_u16(b->msg, NFTA_QUEUE_NUM, htons(queue));
	mnl_attr_put_u16(b->msg, NFTA_QUEUE_TOTAL, htons(1));
	expr_end(b, e);
}

/* x_tables structures are padded to eight bytes. */
#define XT_PADDED(type) ((sizeof(type) + 7u) & ~7u)

void ft_nft_xt_physdev(struct ft_nft *b, const char *ifname)
{
	uint8_t info[XT_PADDED(struct xt_physdev_info)] = { 0 };
	struct xt_physdev_info *pi = (struct xt_physdev_info *)info;
	struct expr e = expr_begin(b, "match");

	strncpy(pi->physindev, ifname, sizeof(pi->physindev) - 1);
	memset(pi->in_mask, 0xff, strlen(pi->physindev) + 1);
	pi->bitmask = XT_PHYSDEV_OP_IN;
	mnl_attr_put_strz(b->msg, NFTA_MATCH_NAME, "physdev");
	put32(b, NFTA_MATCH_REV, 0);
	mnl_attr_put(b->msg, NFTA_MATCH_INFO, sizeof(info), info);
	expr_end(b, e);
}

void ft_nft_xt_queue(struct ft_nft *b, uint16_t queue)
{
	uint8_t info[XT_PADDED(struct xt_NFQ_info)] = { 0 };
	struct expr e = expr_begin(b, "target");

	((struct xt_NFQ_info *)info)->queuenum = queue;
	mnl_attr_put_strz(b->msg, NFTA_TARGET_NAME, "NFQUEUE");
	put32(b, NFTA_TARGET_REV, 0);
	mnl_attr_put(b->msg, NFTA_TARGET_INFO, sizeof(info), info);
	expr_end(b, e);
}
