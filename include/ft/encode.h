// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * encode.h - worker threads between capture and the link: chunks in, records out, in epoch order.
 *
 * Chunks of one batch are encoded in parallel; a batch (and so an epoch) is begun only when the one before
 * is through, because both may hold the same page. For each epoch the sink sees EPOCH_BEGIN, PAGES and DISK...,
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
	bool yield;                     /* workers run at everybody's priority, not at ours */
	/* Called by one thread at a time, in order. -errno stops the stream until ft_encoder_reset. */
	int (*emit)(void *ctx, uint32_t type, const void *body, size_t len);
	/*
	 * The same, but never blocking: lets ft_encoder_end send the last records of an epoch from the calling
	 * thread when the workers have nothing left to do. -EAGAIN leaves this record and the rest to a worker.
	 * NULL: only workers emit.
	 */
	int (*emit_nowait)(void *ctx, uint32_t type, const void *body, size_t len);
	/* The next body of a DISK record into @body [FT_DISK_BODY_MAX]: 1, 0: no more, -EAGAIN: ask again (mirror.h). NULL: no disks. */
	int (*disks)(void *ctx, uint64_t upto, uint8_t *body, size_t *len);
	/* EPOCH_END of @epoch was emitted (any thread) - statistics only. May be NULL. */
	void (*epoch_done)(void *ctx, uint64_t epoch, const struct ft_codec_stats *st);
	void *ctx;
};

int ft_encoder_new(const struct ft_encoder_config *cfg, struct ft_encoder **out) FT_MUST_CHECK;
void ft_encoder_free(struct ft_encoder *en);
/*
 * Begin, chunk..., end: one epoch. All from one thread, and without waiting for a worker. chunk is an
 * ft_chunk_sink member. end takes over @state, also on failure. An error of emit comes back from whichever is
 * called next. -EBUSY: too many epochs are queued.
 */
int ft_encoder_begin(struct ft_encoder *en, uint64_t epoch, uint64_t base, uint32_t flags) FT_MUST_CHECK;
int ft_encoder_chunk(void *en, struct ft_chunk *c);
/*
 * At this place in the epoch: DISK records, as many as cfg.disks gives for @upto. It is called by an encoder thread; what it
 * returns when it fails stops the stream. -EBUSY: too many are queued; nothing was.
 */
int ft_encoder_disks(struct ft_encoder *en, uint64_t upto) FT_MUST_CHECK;
int ft_encoder_end(struct ft_encoder *en, struct ft_blob *state) FT_MUST_CHECK;
/*
 * Throw away all that is queued and the epoch begun, give chunks back, forget the shadow: the link is gone.
 * Waits for workers, so a blocked emit must have been made to return.
 */
void ft_encoder_reset(struct ft_encoder *en);
void ft_encoder_get_stats(struct ft_encoder *en, struct ft_codec_stats *out);   /* of all epochs emitted since new */

#endif
