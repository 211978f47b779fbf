// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * encode.h - worker threads between capture and the link: chunks in, records out, in epoch order.
 *
 * Chunks of one batch are encoded in parallel; a batch (and so an epoch) is begun only when the one before
 * is through, because both may hold the same page. For each epoch the sink sees EPOCH_BEGIN, PAGES...,
 * STATE, EPOCH_END (wire.h) in this order. Sinks may block (link back-pressure); that stops the workers,
 * then the staging pool, then capture.
 */
#ifndef FT_ENCODE_H
#define FT_ENCODE_H

#include "ft/base.h"
#include "ft/capture.h"
#include "ft/codec.h"

struct ft_encoder;

struct ft_encoder_config {
	unsigned threads;               /* 0: encode inside the calls (simulation, tests) */
	struct ft_staging *staging;     /* borrowed; chunks go back there */
	uint64_t nr_pages;
	bool shadow;                    /* keep a shadow copy: deltas, at the price of RAM */
	/* Called by one thread at a time, in order. -errno stops the stream until ft_encoder_reset. */
	int (*emit)(void *ctx, uint32_t type, const void *body, size_t len);
	/* EPOCH_END of @epoch was emitted (worker thread) - statistics only. May be NULL. */
	void (*epoch_done)(void *ctx, uint64_t epoch, const struct ft_codec_stats *st);
	void *ctx;
};

int ft_encoder_new(const struct ft_encoder_config *cfg, struct ft_encoder **out) FT_MUST_CHECK;
void ft_encoder_free(struct ft_encoder *en);
/* Begin, chunk..., end: one epoch. chunk is an ft_chunk_sink member. end takes over @state. */
int ft_encoder_begin(struct ft_encoder *en, uint64_t epoch, uint64_t base, uint32_t flags) FT_MUST_CHECK;
int ft_encoder_chunk(void *en, struct ft_chunk *c);
int ft_encoder_end(struct ft_encoder *en, struct ft_blob *state) FT_MUST_CHECK;
/* Throw away all that is queued, give chunks back, forget the shadow: the link is gone. Waits for workers. */
void ft_encoder_reset(struct ft_encoder *en);
void ft_encoder_get_stats(struct ft_encoder *en, struct ft_codec_stats *out);   /* since new */

#endif
