// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * encode.c - worker threads between capture and the link; see ft/encode.h.
 *
 * Items (chunks, disks, ends of epochs) wait in a ring and are numbered. Whoever takes an item encodes it beside
 * the others, waits until all items with smaller numbers are emitted, and emits it: so records leave in the
 * order of capture, and no more blocks exist than there are workers. A chunk is taken only when no chunk of
 * another batch is still being encoded, because both may hold the same page and its shadow.
 */
#include "ft/encode.h"

#include "ft/disk.h"
#include "ft/thread.h"
#include "ft/wire.h"

#include <signal.h>
#include <stdatomic.h>
#include <xxhash.h>

#define EPOCHS_MAX 64u          /* ends queued */
#define DISKS_MAX 64u           /* likewise */

struct item {
	bool begins;                    /* EPOCH_BEGIN goes before it */
	uint64_t epoch, base;
	uint32_t flags;
	enum { CHUNK, DISKS, END } kind;
	struct ft_chunk *chunk;
	uint64_t upto;                  /* of DISKS */
	struct ft_blob state;           /* of END */
	bool state_sent;
};

struct worker {
	struct ft_encoder *en;
	pthread_t thread;
	bool running;
	struct ft_codec *codec;
	uint8_t *block;                 /* FT_BLOCK_MAX, and a DISK body */
};

struct ft_encoder {
	struct ft_encoder_config cfg;
	struct ft_shadow *shadow;
	struct worker *worker;          /* one without a thread when cfg.threads is 0 */
	unsigned nr_workers;

	/* The calling thread's. */
	struct item opening;            /* what the next item takes along of ft_encoder_begin */
	bool begun;

	pthread_mutex_t lock;           /* for the rest, unless it says otherwise */
	pthread_cond_t work;            /* an item may be taken */
	pthread_cond_t turn;            /* next_emit moved */
	struct item *ring;
	uint64_t ring_size;
	uint64_t next_put, next_take, next_emit;        /* numbers of items */
	unsigned ends, disks;           /* queued */
	unsigned encoding;              /* chunks taken and not yet encoded, all of the one batch: */
	uint64_t batch_epoch;
	uint32_t batch;
	int failed;                     /* of emit: nothing more is emitted until reset */
	atomic_bool resetting;
	bool stop;
	struct ft_codec_stats stats;

	/* Of whoever's turn it is to emit. */
	uint64_t blocks, pages, batches;
	XXH3_state_t *sum;
	struct ft_codec_stats epoch_stats;
};

typedef int emit_fn(void *ctx, uint32_t type, const void *body, size_t len);

/* --- emitting: by the one whose turn it is, lock not held --- */

static int emit_begin(struct ft_encoder *en, emit_fn *emit, struct item *it)
{
	struct ft_wire_epoch_begin begin = { .epoch = it->epoch, .base = it->base, .flags = it->flags };
	uint8_t buf[FT_WIRE_EPOCH_BEGIN_LEN];
	int rc;

	if (!it->begins)
		return 0;
	en->blocks = en->pages = en->batches = 0;
	en->epoch_stats = (struct ft_codec_stats){ 0 };
	XXH3_64bits_reset(en->sum);
	rc = emit(en->cfg.ctx, FT_REC_EPOCH_BEGIN, buf, ft_wire_pack_epoch_begin(&begin, buf));
	it->begins = rc != 0;
	return rc;
}

static void add_stats(struct ft_codec_stats *to, const struct ft_codec_stats *from)
{
	to->pages += from->pages;
	to->unchanged += from->unchanged;
	to->zero += from->zero;
	to->delta += from->delta;
	to->whole += from->whole;
	to->raw_bytes += from->raw_bytes;
	to->wire_bytes += from->wire_bytes;
}

static int emit_block(struct ft_encoder *en, emit_fn *emit, const uint8_t *block, size_t len,
		      const struct ft_codec_stats *st)
{
	add_stats(&en->epoch_stats, st);
	if (!len)
		return 0;
	en->blocks++;
	en->pages += st->pages - st->unchanged;
	XXH3_64bits_update(en->sum, block, len);
	return emit(en->cfg.ctx, FT_REC_PAGES, block, len);
}

/* They are made here, in turn: what they hold is in order already. */
static int emit_disks(struct ft_encoder *en, emit_fn *emit, const struct item *it, uint8_t *body)
{
	int rc;

	assert(body);                   /* made where there are disks */
	for (;;) {
		size_t len = 0;

		do
			rc = en->cfg.disks(en->cfg.ctx, it->upto, body, &len);
		while (rc == -EAGAIN && !atomic_load(&en->resetting));
		if (rc != 1)
			return rc == -EAGAIN ? -ECANCELED : rc;
		en->batches++;
		XXH3_64bits_update(en->sum, body, len);
		rc = emit(en->cfg.ctx, FT_REC_DISK, body, len);
		if (rc)
			return rc;
		en->epoch_stats.raw_bytes += ft_le32(body + 8);
		en->epoch_stats.wire_bytes += len;
	}
}

static int emit_state(struct ft_encoder *en, emit_fn *emit, struct item *it)
{
	int rc;

	if (it->state_sent)
		return 0;
	rc = emit(en->cfg.ctx, FT_REC_STATE, it->state.data, it->state.len);
	if (rc)
		return rc;
	XXH3_64bits_update(en->sum, it->state.data, it->state.len);
	it->state_sent = true;
	return 0;
}

static int emit_end(struct ft_encoder *en, emit_fn *emit, struct item *it)
{
	struct ft_wire_epoch_end end = {
		.epoch = it->epoch, .blocks = en->blocks, .pages = en->pages, .batches = en->batches,
	};
	uint8_t buf[FT_WIRE_EPOCH_END_LEN];
	int rc = emit_state(en, emit, it);

	if (rc)
		return rc;
	end.checksum = XXH3_64bits_digest(en->sum);
	rc = emit(en->cfg.ctx, FT_REC_EPOCH_END, buf, ft_wire_pack_epoch_end(&end, buf));
	if (!rc && en->cfg.epoch_done)
		en->cfg.epoch_done(en->cfg.ctx, it->epoch, &en->epoch_stats);
	return rc;
}

/* What was emitted is noted in @it, so that another thread can go on from there. */
static int emit_item(struct ft_encoder *en, emit_fn *emit, struct item *it, uint8_t *block, size_t len,
		     const struct ft_codec_stats *st)
{
	int rc = emit_begin(en, emit, it);

	if (rc)
		return rc;
	switch (it->kind) {
	case CHUNK:
		return emit_block(en, emit, block, len, st);
	case DISKS:
		return emit_disks(en, emit, it, block);
	default:
		return emit_end(en, emit, it);
	}
}

/* --- taking and running items: lock held, released while encoding and emitting --- */

static bool may_take(const struct ft_encoder *en)
{
	const struct item *it = &en->ring[en->next_take % en->ring_size];

	if (en->next_take == en->next_put)
		return false;
	if (it->kind != CHUNK || !en->encoding)
		return true;
	return it->epoch == en->batch_epoch && it->chunk->batch == en->batch;
}

/* The chunk into @w's block; its length. The chunk goes back to the pool. */
static size_t encode(struct worker *w, struct ft_chunk *c, struct ft_codec_stats *st)
{
	struct ft_encoder *en = w->en;
	ssize_t len = ft_codec_encode(w->codec, en->shadow, c, w->block, st);

	assert(len >= 0);               /* capture makes no other chunks */
	ft_staging_put(en->cfg.staging, c);
	return (size_t)len;
}

static void drop_item(struct ft_encoder *en, struct item *it)
{
	if (it->chunk)
		ft_staging_put(en->cfg.staging, it->chunk);
	ft_blob_free(&it->state);
}

static void drop_queue(struct ft_encoder *en)
{
	while (en->next_put != en->next_take) {
		struct item *it = &en->ring[--en->next_put % en->ring_size];

		en->ends -= it->kind == END;
		en->disks -= it->kind == DISKS;
		drop_item(en, it);
	}
}

/* The turn of item @nr has come and gone. */
static void end_turn(struct ft_encoder *en, int rc)
{
	if (rc) {
		en->failed = rc;
		drop_queue(en);
	}
	en->next_emit++;
	pthread_cond_broadcast(&en->turn);
}

/* Wait for the turn of item @nr, emit, let the next one go on. */
static void take_turn(struct worker *w, uint64_t nr, struct item *it, size_t len, const struct ft_codec_stats *st)
{
	struct ft_encoder *en = w->en;
	int rc = 0;

	while (en->next_emit != nr)
		pthread_cond_wait(&en->turn, &en->lock);
	if (!en->failed) {
		pthread_mutex_unlock(&en->lock);
		rc = emit_item(en, en->cfg.emit, it, w->block, len, st);
		pthread_mutex_lock(&en->lock);
		add_stats(&en->stats, st);
	}
	end_turn(en, rc);
}

static void end_item(struct ft_encoder *en, struct item *it)
{
	en->ends -= it->kind == END;
	en->disks -= it->kind == DISKS;
	ft_blob_free(&it->state);
}

static void run_item(struct worker *w)
{
	struct ft_encoder *en = w->en;
	uint64_t nr = en->next_take++;
	struct item it = en->ring[nr % en->ring_size];
	struct ft_codec_stats st = { 0 };
	size_t len = 0;

	if (it.kind == CHUNK) {
		en->encoding++;
		en->batch_epoch = it.epoch;
		en->batch = it.chunk->batch;
		pthread_mutex_unlock(&en->lock);
		len = encode(w, it.chunk, &st);
		pthread_mutex_lock(&en->lock);
		if (!--en->encoding && may_take(en))
			pthread_cond_broadcast(&en->work);
	}
	take_turn(w, nr, &it, len, &st);
	end_item(en, &it);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct ft_encoder *en = w->en;

	if (en->cfg.yield)
		ft_priority_default();
	pthread_mutex_lock(&en->lock);
	while (!en->stop) {
		if (may_take(en))
			run_item(w);
		else
			pthread_cond_wait(&en->work, &en->lock);
	}
	pthread_mutex_unlock(&en->lock);
	return NULL;
}

/* --- the calling thread --- */

/*
 * All is emitted but the last item, the end of an epoch: emit it here and now, and leave to a worker what would
 * block.
 */
static void finish_here(struct ft_encoder *en)
{
	struct item *slot = &en->ring[en->next_take++ % en->ring_size], it = *slot;
	const struct ft_codec_stats none = { 0 };
	int rc;

	pthread_mutex_unlock(&en->lock);
	rc = emit_item(en, en->cfg.emit_nowait, &it, NULL, 0, &none);
	pthread_mutex_lock(&en->lock);
	if (rc == -EAGAIN) {
		*slot = it;
		en->next_take--;
		pthread_cond_signal(&en->work);
		return;
	}
	end_turn(en, rc);
	end_item(en, &it);
}

/* Queue @it and see that somebody runs it. */
static int put_item(struct ft_encoder *en, struct item *it)
{
	int rc;

	it->epoch = en->opening.epoch;
	it->base = en->opening.base;
	it->flags = en->opening.flags;
	it->begins = en->opening.begins;
	en->opening.begins = false;
	pthread_mutex_lock(&en->lock);
	if (en->failed) {
		drop_item(en, it);
	} else {
		assert(en->next_put - en->next_take < en->ring_size);
		en->ends += it->kind == END;
		en->disks += it->kind == DISKS;
		en->ring[en->next_put++ % en->ring_size] = *it;
		if (!en->cfg.threads)
			run_item(&en->worker[0]);
		else if (it->kind == END && en->cfg.emit_nowait && en->next_emit + 1 == en->next_put)
			finish_here(en);
		else
			pthread_cond_signal(&en->work);
	}
	rc = en->failed;
	pthread_mutex_unlock(&en->lock);
	return rc;
}

int ft_encoder_begin(struct ft_encoder *en, uint64_t epoch, uint64_t base, uint32_t flags)
{
	int rc;

	assert(!en->begun);
	pthread_mutex_lock(&en->lock);
	rc = en->failed ? en->failed : en->ends >= EPOCHS_MAX ? -EBUSY : 0;
	pthread_mutex_unlock(&en->lock);
	if (rc)
		return rc;
	en->begun = true;
	en->opening = (struct item){ .begins = true, .epoch = epoch, .base = base, .flags = flags };
	return 0;
}

int ft_encoder_chunk(void *ctx, struct ft_chunk *c)
{
	struct ft_encoder *en = ctx;
	struct item it = { .kind = CHUNK, .chunk = c };

	assert(en->begun && c->epoch == en->opening.epoch);
	return put_item(en, &it);
}

int ft_encoder_disks(struct ft_encoder *en, uint64_t upto)
{
	struct item it = { .kind = DISKS, .upto = upto };
	bool full;

	assert(en->begun && en->cfg.disks);
	pthread_mutex_lock(&en->lock);
	full = en->disks >= DISKS_MAX;
	pthread_mutex_unlock(&en->lock);
	return full ? -EBUSY : put_item(en, &it);
}

int ft_encoder_end(struct ft_encoder *en, struct ft_blob *state)
{
	struct item it = { .kind = END, .state = *state };

	assert(en->begun);
	en->begun = false;
	*state = (struct ft_blob){ 0 };
	if (it.state.len > FT_WIRE_STATE_MAX) {
		ft_err("epoch %llu: %zu bytes of device state are more than a record takes",
		       (unsigned long long)en->opening.epoch, it.state.len);
		ft_blob_free(&it.state);
		return -EMSGSIZE;
	}
	return put_item(en, &it);
}

void ft_encoder_reset(struct ft_encoder *en)
{
	pthread_mutex_lock(&en->lock);
	drop_queue(en);
	atomic_store(&en->resetting, true);
	while (en->next_emit != en->next_take)
		pthread_cond_wait(&en->turn, &en->lock);
	atomic_store(&en->resetting, false);
	en->failed = 0;
	en->begun = false;
	if (en->shadow)
		ft_shadow_forget(en->shadow);
	pthread_mutex_unlock(&en->lock);
}

void ft_encoder_get_stats(struct ft_encoder *en, struct ft_codec_stats *out)
{
	pthread_mutex_lock(&en->lock);
	*out = en->stats;
	pthread_mutex_unlock(&en->lock);
}

/* --- life --- */

static int start_worker(struct worker *w)
{
	int rc = ft_thread_start(&w->thread, "ft-encode", worker_main, w);

	w->running = !rc;
	return rc;
}

static int make_workers(struct ft_encoder *en)
{
	int rc = 0;

	en->nr_workers = en->cfg.threads ? en->cfg.threads : 1;
	en->worker = calloc(en->nr_workers, sizeof(*en->worker));
	if (!en->worker)
		return -ENOMEM;
	for (unsigned i = 0; i < en->nr_workers && !rc; i++) {
		struct worker *w = &en->worker[i];

		w->en = en;
		w->block = malloc(FT_BLOCK_MAX > FT_DISK_BODY_MAX ? FT_BLOCK_MAX : FT_DISK_BODY_MAX);
		rc = w->block ? ft_codec_new(&w->codec) : -ENOMEM;
		if (!rc && en->cfg.threads)
			rc = start_worker(w);
	}
	return rc;
}

int ft_encoder_new(const struct ft_encoder_config *cfg, struct ft_encoder **out)
{
	struct ft_encoder *en = calloc(1, sizeof(*en));
	int rc = -ENOMEM;

	if (!en)
		return -ENOMEM;
	en->cfg = *cfg;
	pthread_mutex_init(&en->lock, NULL);
	pthread_cond_init(&en->work, NULL);
	pthread_cond_init(&en->turn, NULL);
	en->ring_size = ft_staging_bound(cfg->staging) / (FT_CHUNK_PAGES * FT_PAGE_SIZE) + EPOCHS_MAX + DISKS_MAX;
	en->ring = calloc(en->ring_size, sizeof(*en->ring));
	en->sum = XXH3_createState();
	if (!en->ring || !en->sum)
		goto fail;
	if (cfg->shadow) {
		rc = ft_shadow_new(cfg->nr_pages, &en->shadow);
		if (rc)
			goto fail;
	}
	rc = make_workers(en);
	if (rc)
		goto fail;
	*out = en;
	return 0;
fail:
	ft_encoder_free(en);
	return rc;
}

static void stop_workers(struct ft_encoder *en)
{
	pthread_mutex_lock(&en->lock);
	en->stop = true;
	pthread_cond_broadcast(&en->work);
	pthread_mutex_unlock(&en->lock);
	for (unsigned i = 0; en->worker && i < en->nr_workers; i++) {
		if (en->worker[i].running)
			pthread_join(en->worker[i].thread, NULL);
		ft_codec_free(en->worker[i].codec);
		free(en->worker[i].block);
	}
	free(en->worker);
}

void ft_encoder_free(struct ft_encoder *en)
{
	if (!en)
		return;
	ft_encoder_reset(en);
	stop_workers(en);
	ft_shadow_free(en->shadow);
	XXH3_freeState(en->sum);
	free(en->ring);
	pthread_cond_destroy(&en->work);
	pthread_cond_destroy(&en->turn);
	pthread_mutex_destroy(&en->lock);
	free(en);
}
