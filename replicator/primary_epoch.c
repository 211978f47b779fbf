// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary_epoch.c - the epoch loop of the primary: pause, seal, capture, resume, send; on ACK release.
 *
 * Failures inside an epoch never lose a dirty page: what was captured for an epoch that does not reach the
 * backup is dirty again. A broken epoch is not repaired in place; the link is dropped and the session
 * resumed, because WELCOME then says what the backup really has.
 */
#include "primary_priv.h"

#include "ft/image.h"

#define CAPTURE_SILENCES 7u
#define SLICE_PAGES 2048u               /* of the full copy, between two looks at the loop */
#define LAST_ROUND_PAGES 512u           /* few enough to copy with the guest paused */
#define ROUNDS_MAX 8u

/* --- outputs: one lifecycle, several holders --- */

int ft_primary_hold(struct ft_primary *p)
{
	for (unsigned i = 0; i < p->cfg.nr_outputs; i++) {
		struct ft_output *o = p->cfg.output[i];
		int rc = o->ops->setup(o);

		if (rc) {
			if (ft_log_due(&p->hold_log, strerror(-rc)))
				ft_err("%s: output cannot be held by %s: %s", p->cfg.guest, o->ops->name, strerror(-rc));
			return rc;
		}
	}
	p->holding = true;
	p->breached = false;
	return 0;
}

static int seal_outputs(struct ft_primary *p, uint64_t epoch)
{
	for (unsigned i = 0; i < p->cfg.nr_outputs; i++) {
		int rc = p->cfg.output[i]->ops->seal(p->cfg.output[i], epoch);

		if (rc)
			return rc;
	}
	return 0;
}

/* Everything that leads to a release is checked here, at the last moment. */
void ft_primary_try_release(struct ft_primary *p)
{
	p->release_waits = false;
	if (!p->holding || p->breached || p->released >= p->acked)
		return;
	if (!p->ops->may_speak(p->cfg.ctx)) {
		p->release_waits = true;
		return;
	}
	for (unsigned i = 0; i < p->cfg.nr_outputs; i++) {
		struct ft_output *o = p->cfg.output[i];
		int rc = o->ops->commit(o, p->acked);

		if (rc) {
			ft_primary_breach(p, "a release failed");
			return;
		}
	}
	p->released = p->acked;
}

/* --- epochs in flight --- */

static struct in_flight *flight_push(struct ft_primary *p, uint64_t epoch)
{
	struct in_flight *f = &p->flight[p->nr_flight++];

	f->epoch = epoch;
	f->sealed_ns = primary_now(p);
	ft_bitmap_zero(&f->pages);
	return f;
}

static void flight_shift(struct ft_primary *p)
{
	struct in_flight first = p->flight[0];

	memmove(p->flight, p->flight + 1, (IN_FLIGHT_MAX - 1) * sizeof(first));
	p->flight[IN_FLIGHT_MAX - 1] = first;   /* its bitmap is used again */
	p->nr_flight--;
}

void ft_primary_on_ack(struct ft_primary *p, uint64_t epoch)
{
	if (epoch > p->epoch || epoch < p->acked) {
		ft_primary_drop_link(p, "the backup acknowledged an epoch that was never sent");
		return;
	}
	while (p->nr_flight && p->flight[0].epoch <= epoch) {
		ft_samples_add(&p->ack, primary_now(p) - p->flight[0].sealed_ns);
		flight_shift(p);
	}
	p->acked = epoch;
	/* Frees the mirror's log; nothing of it is seen, so this needs no right to speak. What is wrong, the release finds. */
	if (p->cfg.mirror)
		ft_ignore(p->cfg.mirror->output.ops->commit(&p->cfg.mirror->output, epoch));
	ft_primary_try_release(p);
}

int ft_primary_flight_lost(struct ft_primary *p, uint64_t whole)
{
	if (whole > p->acked && whole <= p->epoch)
		ft_primary_on_ack(p, whole);
	while (p->nr_flight) {
		ft_bitmap_or(&p->dirty, &p->flight[0].pages);
		flight_shift(p);
	}
	return p->cfg.mirror ? p->cfg.mirror->ops->rewind(p->cfg.mirror, whole) : 0;
}

/* --- capture --- */

/* A long capture is not a dead ft-protect: tell the guard. Only in a pause of ours: @filling says so. */
void ft_primary_still_pausing(void *ctx)
{
	struct ft_primary *p = ctx;

	if (!(p->filling || p->stopping) || primary_now(p) - p->chunk_ns <= 50 * FT_MS_NS)
		return;
	p->ops->pausing(p->cfg.ctx);
	p->chunk_ns = primary_now(p);
}

static int sink_chunk(void *ctx, struct ft_chunk *c)
{
	struct ft_primary *p = ctx;

	for (uint32_t i = 0; p->filling && i < c->nr; i++)
		ft_bitmap_set(&p->filling->pages, c->page[i]);
	ft_primary_still_pausing(p);
	return ft_encoder_chunk(p->cfg.encoder, c);
}

int ft_primary_track(struct ft_primary *p)
{
	int rc;

	p->sink = (struct ft_chunk_sink){ .chunk = sink_chunk, .ctx = p };
	if (p->tracking)
		return 0;
	rc = p->vm->ops->track(p->vm);
	if (!rc)
		p->tracking = true;
	return rc;
}

static int hash_paused(struct ft_primary *p)
{
	size_t nr = ft_hash_count(p->vm->nr_pages);
	uint64_t *hash = malloc(nr * sizeof(*hash));
	const uint64_t slice = 64 * FT_HASH_PAGES;

	p->verify_body = (struct ft_blob){ .data = malloc(8 + 8 * nr), .len = 8 + 8 * nr };
	if (!hash || !p->verify_body.data) {
		free(hash);
		ft_blob_free(&p->verify_body);
		return -ENOMEM;
	}
	for (uint64_t page = 0; page < p->vm->nr_pages; page += slice) {
		uint64_t left = p->vm->nr_pages - page;

		ft_hash_ram(p->vm->ram + page * FT_PAGE_SIZE, left < slice ? left : slice, hash + page / FT_HASH_PAGES);
		p->ops->pausing(p->cfg.ctx);
	}
	ft_put64(p->verify_body.data, p->epoch);
	for (size_t i = 0; i < nr; i++)
		ft_put64(p->verify_body.data + 8 + 8 * i, hash[i]);
	free(hash);
	p->verify_epoch = p->epoch;
	return 0;
}

/* So long a capture waits without a single chunk coming free. */
static unsigned capture_timeout_ms(const struct ft_primary *p)
{
	return p->cfg.policy.silence_ms * CAPTURE_SILENCES;
}

/* Guest is paused, outputs are sealed. */
static int capture(struct ft_primary *p, struct ft_blob *state)
{
	struct ft_capture_stats stats = { 0 };
	int rc;

	p->filling = flight_push(p, p->epoch);
	p->chunk_ns = primary_now(p);
	rc = ft_capture_epoch(p->vm, p->cfg.staging, p->epoch, capture_timeout_ms(p), &p->dirty, &p->sink, state, &stats);
	p->filling = NULL;
	p->last_capture = stats;
	p->bytes_dirty += stats.bytes;
	if (!rc && p->verify.done && !p->verify_epoch && p->verify_disks.on)
		ft_primary_verify_paused(p);
	else if (!rc && p->verify.done && !p->verify_epoch)
		rc = hash_paused(p);
	return rc;
}

static int resume_guest(struct ft_primary *p)
{
	int kept, rc = p->vm->ops->resume(p->vm);

	if (rc && rc != -ECANCELED)
		return rc;                              /* may be paused still: the word stands, the guard will try */
	kept = p->ops->resumed(p->cfg.ctx);
	if (kept)
		ft_warn("%s: the guard let the guest run on while we were stalled: epoch %llu is void", p->cfg.guest,
			(unsigned long long)p->epoch);
	return rc ? rc : kept;
}

/* For who asks why a pause was long. */
static void note_pause(const struct ft_primary *p, uint64_t start, uint64_t stopped, uint64_t copied, uint64_t now)
{
	const struct ft_capture_stats *s = &p->last_capture;

	ft_debug("%s: epoch %llu: ms to stop %.1f, scan %.1f, copy %llu pages %.1f, state %.1f, other %.1f, resume %.1f", p->cfg.guest,
		 (unsigned long long)p->epoch, (double)(stopped - start) / 1e6, (double)s->scan_ns / 1e6,
		 (unsigned long long)s->dirty_pages, (double)s->copy_ns / 1e6, (double)s->state_ns / 1e6,
		 (double)(int64_t)(copied - stopped - s->scan_ns - s->copy_ns - s->state_ns) / 1e6, (double)(now - copied) / 1e6);
}

int ft_primary_stop(struct ft_primary *p)
{
	int rc;

	p->ops->pausing(p->cfg.ctx);
	p->chunk_ns = primary_now(p);
	p->stopping = true;
	rc = p->vm->ops->pause(p->vm);
	p->stopping = false;
	return rc;
}

static int paused_part(struct ft_primary *p, bool last, struct ft_blob *state)
{
	uint64_t cpu_ns, stopped, copied, start = primary_now(p);
	int rc, resumed;

	rc = ft_primary_stop(p);
	stopped = primary_now(p);
	cpu_ns = p->vm->ops->cpu_time_ns(p->vm);
	if (!rc) {
		rc = seal_outputs(p, p->epoch + 1);
		if (rc)
			ft_primary_breach(p, "the output could not be sealed");
	}
	if (!rc) {
		p->epoch++;
		rc = capture(p, state);
	}
	if (last && !rc) {
		rc = p->ops->resumed(p->cfg.ctx);       /* stays paused on purpose: not the guard's business */
		p->frozen = !rc;
		return rc;
	}
	copied = primary_now(p);
	resumed = resume_guest(p);                      /* always: the guest is never left paused by a failure */
	if (!rc)
		rc = resumed;
	if (!rc) {
		uint64_t now = primary_now(p);

		note_pause(p, start, stopped, copied, now);
		p->interval_ns = now - p->pacer.resumed_ns;
		ft_samples_add(&p->pause, now - start);
		ft_pacer_epoch(&p->pacer, start, now, cpu_ns, p->last_capture.dirty_pages);
	}
	return rc;
}

static int begin_delta(struct ft_primary *p)
{
	uint64_t base = p->nr_flight ? p->flight[p->nr_flight - 1].epoch : p->acked;

	return ft_encoder_begin(p->cfg.encoder, p->epoch + 1, base, 0);
}

static int finish_epoch(struct ft_primary *p, bool last)
{
	struct ft_blob state = { 0 };
	int rc = paused_part(p, last, &state);

	if (rc) {
		ft_blob_free(&state);
		return rc;
	}
	rc = ft_primary_carry_disks(p, p->epoch);
	if (rc) {
		ft_blob_free(&state);
		return rc;
	}
	p->maybe_armed = true;          /* from the moment END may reach the wire */
	return ft_encoder_end(p->cfg.encoder, &state);
}

/* Nothing builds on the first epoch of a session before it is acknowledged: the backup may have to sync a whole copy for that. */
bool ft_primary_may_take_epoch(const struct ft_primary *p)
{
	unsigned max = p->cfg.policy.in_flight_max;

	return (p->state == FT_PRIMARY_PROTECTED || ft_primary_first_acked(p)) && !p->breached && !p->guest_ended &&
	       !p->vm->contended && !p->verify_epoch && !p->unprotect.done && !p->failover.done &&
	       p->nr_flight < (max && max < IN_FLIGHT_MAX ? max : IN_FLIGHT_MAX - 1);
}

/*
 * Staging is more than half full. A pause that begins now might have to wait for the network with the guest standing
 * still, and what is copied while it runs can wait at least as well. After a round of the full copy nearly all of it has
 * to be gone: the last pause may follow, and with few processors encoding is what it would wait for.
 */
bool ft_primary_backlog(const struct ft_primary *p)
{
	bool last = p->state == FT_PRIMARY_SYNCING && p->round_over;

	return ft_staging_used(p->cfg.staging) > ft_staging_bound(p->cfg.staging) / (last ? 8 : 2);
}

int ft_primary_take_epoch(struct ft_primary *p, bool last)
{
	int rc = begin_delta(p);

	return rc ? rc : finish_epoch(p, last);
}

/* --- the full copy of a new session: disks, then rounds over memory with the guest running, then one epoch --- */

int ft_primary_sync_begin(struct ft_primary *p, bool direct)
{
	int rc = ft_primary_track(p);

	if (rc)
		return rc;
	while (p->nr_flight)            /* a full epoch covers whatever was on its way */
		flight_shift(p);
	ft_bitmap_fill(&p->dirty);
	p->cursor = p->sync_done = 0;
	p->sync_total = p->vm->nr_pages;
	p->batch = 2;           /* ft_capture_epoch uses 0 and 1; only a change counts */
	p->round = 0;
	p->sync_through = p->round_over = false;
	return ft_encoder_begin(p->cfg.encoder, p->epoch + 1, 0, FT_EPOCH_FULL | (direct ? FT_EPOCH_DIRECT : 0));
}

static int next_round(struct ft_primary *p)
{
	uint64_t left;
	int rc;

	rc = p->vm->ops->take_dirty(p->vm, &p->dirty);
	if (rc)
		return rc;
	left = ft_bitmap_count(&p->dirty);
	p->sync_through = left <= LAST_ROUND_PAGES || ++p->round >= ROUNDS_MAX;
	p->cursor = 0;
	p->batch++;
	p->round_over = p->sync_through;
	if (!p->sync_through)
		p->sync_total += left;
	return 0;
}

static int copy_slice(struct ft_primary *p)
{
	uint64_t before = ft_bitmap_count(&p->dirty);
	int rc;

	rc = ft_capture_round(p->vm, p->cfg.staging, p->epoch + 1, p->batch, capture_timeout_ms(p), &p->dirty,
			      &p->cursor, SLICE_PAGES, &p->sink);
	if (rc)
		return rc;
	p->sync_done += before - ft_bitmap_count(&p->dirty);
	p->round_over = p->cursor >= p->vm->nr_pages;
	return 0;
}

int ft_primary_sync_slice(struct ft_primary *p)
{
	int rc;

	if (p->disks_copying)
		return ft_primary_disks_slice(p);
	if (!p->round_over) {
		rc = copy_slice(p);
		if (rc || !p->round_over || ft_primary_backlog(p))
			return rc;
	}
	rc = p->sync_through ? 0 : next_round(p);
	if (rc || !p->sync_through)
		return rc;
	if (!p->holding) {
		rc = ft_primary_hold(p);
		if (rc)
			return rc;
	}
	p->round_over = false;
	rc = finish_epoch(p, false);
	return rc ? rc : 1;
}
