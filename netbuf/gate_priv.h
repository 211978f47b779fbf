// SPDX-License-Identifier: GPL-3.0-or-later
/* gate_priv.h - what the three files of the gate share: gate.c (its life), gate_rules.c, gate_tables.c. */
#ifndef FT_NETBUF_GATE_PRIV_H
#define FT_NETBUF_GATE_PRIV_H

#include "netbuf/gate.h"
#include "netbuf/nft.h"
#include <linux/netfilter_bridge.h>
#include <pthread.h>

#define GATE_NAME_MAX (4 + FT_NAME_MAX + 1)
#define GATE_LAYERS_MAX 2u

struct gate_layer {
	char name[GATE_NAME_MAX];       /* of its tables */
	uint32_t flags;
	bool hold;                      /* queues, and counts; the other layer is only a gate */
	int32_t nr;
	uint64_t digest;                /* of its chains and rules as the kernel tells them */
};

struct ft_gate {
	char guest[FT_NAME_MAX + 1];
	unsigned nr_taps;
	char tap[FT_TAPS_MAX][IFNAMSIZ];
	struct ft_gate_port port[FT_TAPS_MAX];  /* of each; since install */
	bool holds_all;
	unsigned nr_layers;
	struct gate_layer layer[GATE_LAYERS_MAX];
	unsigned slot_shift;            /* a slot is so many bits of nanoseconds; since new */
	struct mnl_socket *reader;      /* loop thread only */
	pthread_mutex_t lock;           /* of all below */
	struct mnl_socket *owner;
	struct ft_nft batch;
	bool installed, hushed, shut, complained;
	uint64_t slots_end;             /* the first slot that is not in the sets yet; 0: what is there is not known, or of no use */
	int64_t clock_offset;           /* wall clock less CLOCK_MONOTONIC at the last renewal */
};

static inline uint64_t gate_slot_ns(const struct ft_gate *g)
{
	return 1ull << g->slot_shift;
}

/* gate_rules.c: append a layer's tables to the batch; @queue is for the layer that holds. */
void gate_add_layer(struct ft_gate *g, const struct gate_layer *l, uint16_t queue);

/* gate_tables.c: tables in the kernel, whoever made them. */
#define GATE_NOTE_LEN 9u                /* a port, in the note that a table carries */
void gate_pack_port(uint8_t note[GATE_NOTE_LEN], const struct ft_gate_port *p);

#define GATE_FOUND_MAX 16u

struct gate_found {
	const char *guest;
	unsigned nr;
	struct {
		uint8_t family;
		char name[GATE_NAME_MAX];
		uint32_t owner;         /* portid; 0: none */
	} table[GATE_FOUND_MAX];
};

void gate_name_plain(char name[GATE_NAME_MAX], const char *guest);
void gate_name_owned(char name[GATE_NAME_MAX], const char *guest);
int gate_find(struct mnl_socket *nl, const char *guest, struct gate_found *f) FT_MUST_CHECK;
void gate_delete_found(struct ft_nft *b, const struct gate_found *f);
/* Log that @what could not be done to the tables in @f, unless @rc is 0; returns @rc. */
int gate_explain(const char *guest, const char *what, const struct gate_found *f, int rc);
/* A sum over all chains and rules of table @name, in every family; 0: there are none. */
int gate_digest(struct mnl_socket *nl, const char *name, uint64_t *sum) FT_MUST_CHECK;

#endif
