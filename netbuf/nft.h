// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * nft.h - write nf_tables transactions: tables, chains, rules made of expressions, sets, counters.
 *
 * A batch is one transaction: the kernel applies all of it at one instant or nothing. Everything goes
 * into one buffer of fixed size; a batch that outgrows it is -ENOBUFS when sent.
 */
#ifndef FT_NETBUF_NFT_H
#define FT_NETBUF_NFT_H

#include "netbuf/nl.h"
#include <arpa/inet.h> /* before linux headers that define the same structs when it is missing */
#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>

#ifndef NFT_TABLE_F_PERSIST
#define NFT_TABLE_F_PERSIST 0x4 /* Linux 6.9 */
#endif

#define FT_NFT_BATCH_MAX 65536u

struct ft_nft {
	uint8_t *buf;
	size_t len;
	uint32_t first_seq, seq;        /* of the batch's begin; of the newest message */
	struct nlmsghdr *msg;           /* newest message, still open */
	bool overflow;
};

int ft_nft_init(struct ft_nft *b) FT_MUST_CHECK;
void ft_nft_free(struct ft_nft *b);
void ft_nft_begin(struct ft_nft *b);
/*
 * The messages of the batch, in order; each returns its number. @each (may be NULL) receives 0 or -errno
 * of each message. Returns the first error: then nothing of the batch was applied.
 */
int ft_nft_send(struct ft_nft *b, struct mnl_socket *nl, int *each, unsigned nr_each) FT_MUST_CHECK;

struct ft_nft_chain {
	uint8_t family;
	const char *table, *name;
	uint32_t hook;
	int32_t priority;
	const char *device;             /* netdev family only */
	bool no_hook;                   /* sees no packets: for a dry run */
};

unsigned ft_nft_table(struct ft_nft *b, uint8_t family, const char *name, uint32_t flags, const char *comment);
/* The same, with bytes of ours that the kernel keeps with the table (ft_nft_note finds them) and nft passes over. */
unsigned ft_nft_table_noted(struct ft_nft *b, uint8_t family, const char *name, uint32_t flags, const char *comment,
			    const void *note, uint8_t len);
/* The note in a table's NFTA_TABLE_USERDATA, and its length; NULL: none. */
const void *ft_nft_note(const struct nlattr *userdata, uint8_t *len);
unsigned ft_nft_del_table(struct ft_nft *b, uint8_t family, const char *name);
unsigned ft_nft_chain(struct ft_nft *b, const struct ft_nft_chain *c);
unsigned ft_nft_counter(struct ft_nft *b, uint8_t family, const char *table, const char *name);
/* A set of keys; @timeout: its elements expire. @type is nft's number of the key type, for `nft list`. */
unsigned ft_nft_set(struct ft_nft *b, uint8_t family, const char *table, const char *name, uint32_t type,
		    uint32_t key_len, bool timeout);
/* Elements of a set: begin, element.., end. Timeout 0: none. flush removes all. */
struct nlattr *ft_nft_elems_begin(struct ft_nft *b, uint8_t family, const char *table, const char *set);
void ft_nft_elem(struct ft_nft *b, const void *key, uint32_t len, uint64_t timeout_ms);
unsigned ft_nft_elems_end(struct ft_nft *b, struct nlattr *list);
unsigned ft_nft_flush_set(struct ft_nft *b, uint8_t family, const char *table, const char *set);

/* A rule: begin, expressions.., end. */
struct nlattr *ft_nft_rule_begin(struct ft_nft *b, const struct ft_nft_chain *c, bool prepend);
unsigned ft_nft_rule_end(struct ft_nft *b, struct nlattr *list);
/* Expressions. All work on register 1; those that compare end the rule when they do not hold. */
void ft_nft_load_meta(struct ft_nft *b, uint32_t key);
void ft_nft_load_ll(struct ft_nft *b, uint32_t offset, uint32_t len);          /* link-layer header */
void ft_nft_mask(struct ft_nft *b, const void *mask, uint32_t len);
void ft_nft_is(struct ft_nft *b, uint32_t op, const void *data, uint32_t len);  /* op: NFT_CMP_EQ, NFT_CMP_NEQ */
void ft_nft_in_set(struct ft_nft *b, const char *set, bool invert);
void ft_nft_set_mark(struct ft_nft *b, uint32_t mark);
void ft_nft_count(struct ft_nft *b, const char *counter);
void ft_nft_verdict(struct ft_nft *b, int verdict);
void ft_nft_queue(struct ft_nft *b, uint16_t queue);
/* The same through x_tables, for kernels whose nf_tables has no queue expression. IPv4 and IPv6 only. */
void ft_nft_xt_physdev(struct ft_nft *b, const char *ifname);
void ft_nft_xt_queue(struct ft_nft *b, uint16_t queue);

#endif
