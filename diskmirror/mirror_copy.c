// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * mirror_copy.c - the copy of a session: PLAN from the export, regions asked of the backup, their hashes to the export, ops
 * and a MARK from there. Lock held everywhere.
 *
 * What is under way is bounded: granules asked for or being compared, which may all turn out to differ, and what
 * the log holds that was not taken yet.
 */
#include "diskmirror/mirror_int.h"

#define RATE_BURST_NS (100 * FT_MS_NS)  /* what was not used of the rate is remembered for so long */

static uint64_t granule_bytes(uint64_t granules)
{
	return (uint64_t)__builtin_popcountll(granules) * FT_GRANULE;
}

static void drop_plan(struct mirror_disk *d)
{
	while (d->plan) {
		struct words *w = d->plan;

		d->plan = w->next;
		free(w);
	}
	d->plan_last = NULL;
	d->plan_next = d->copy_total = d->copy_done = 0;
}

static void drop_flight(struct mirror *m, unsigned i)
{
	m->flight_bytes -= granule_bytes(m->flight[i].granules);
	m->flight[i] = m->flight[--m->nr_flight];
}

void ft_mirror_copy_reset(struct mirror *m, struct mirror_disk *d)
{
	drop_plan(d);
	for (unsigned i = m->nr_flight; i--;)
		if (m->flight[i].d == d)
			drop_flight(m, i);
}

/* --- from the export --- */

bool ft_mirror_plan(struct mirror_disk *d, const uint8_t *body, size_t len)
{
	uint64_t regions = ft_disk_regions(d->id.bytes), region;
	size_t nr = len / 8 - 1;
	struct words *w;

	if (len < 16 || len % 8 || !d->plans_due)
		return false;
	region = ft_le64(body);
	if (region < d->plan_next || region >= regions || nr > regions - region)
		return false;
	if (d->plans_due > 1)
		return true;                    /* of a session that is over */
	w = malloc(sizeof(*w) + nr * sizeof(w->word[0]));
	if (!w)
		return false;
	*w = (struct words){ .region = region, .nr = nr };
	for (size_t i = 0; i < nr; i++) {
		w->word[i] = ft_le64(body + 8 + 8 * i);
		if (w->word[i] & ~ft_disk_granules(d->id.bytes, region + i)) {
			free(w);
			return false;
		}
		d->copy_total += (uint64_t)__builtin_popcountll(w->word[i]);
	}
	if (d->plan_last)
		d->plan_last->next = w;
	else
		d->plan = w;
	d->plan_last = w;
	d->plan_next = region + nr;
	return true;
}

bool ft_mirror_planned(struct mirror *m, struct mirror_disk *d, const uint8_t *body, size_t len)
{
	if (len != 8 || !d->plans_due)
		return false;
	if (--d->plans_due)
		return true;
	if (ft_le64(body) != d->copy_total)
		return false;
	ft_mirror_post(m);
	return true;
}

bool ft_mirror_mark(struct mirror *m, struct mirror_disk *d, uint64_t region)
{
	if (d->plans_due)
		return true;                    /* compared for a session that is over */
	for (unsigned i = 0; i < m->nr_flight; i++) {
		struct flight *f = &m->flight[i];

		if (f->d != d || f->region != region || !f->comparing)
			continue;
		d->copy_done += (uint64_t)__builtin_popcountll(f->granules);
		drop_flight(m, i);
		if (m->ask_waits || ft_mirror_copied(m))
			ft_mirror_post(m);
		return true;
	}
	return false;
}

bool ft_mirror_copied(const struct mirror *m)
{
	if (!m->copying || m->broken || m->nr_flight)
		return false;
	for (unsigned i = 0; i < m->nr_disks; i++)
		if (m->disk[i].plans_due || m->disk[i].copy_done != m->disk[i].copy_total)
			return false;
	return true;
}

/* --- to the backup --- */

/* The next word of a plan that has bits, or NULL. */
static struct words *next_words(struct mirror_disk *d)
{
	while (!d->plans_due && d->plan) {
		struct words *w = d->plan;

		while (w->at < w->nr && !w->word[w->at])
			w->at++;
		if (w->at < w->nr)
			return w;
		d->plan = w->next;
		if (!d->plan)
			d->plan_last = NULL;
		free(w);
	}
	return NULL;
}

static struct mirror_disk *next_disk(struct mirror *m)
{
	for (unsigned i = 0; i < m->nr_disks && m->copying && !m->broken; i++)
		if (next_words(&m->disk[i]))
			return &m->disk[i];
	return NULL;
}

static bool has_room(struct mirror *m)
{
	if (m->nr_flight == FLIGHT_MAX)
		return false;
	return m->flight_bytes + ft_dlog_untaken(m->log) < m->window;
}

static bool is_due(struct mirror *m, uint64_t now)
{
	return !m->rate || now >= m->rate_at_ns;
}

static void spend(struct mirror *m, uint64_t bytes, uint64_t now)
{
	if (!m->rate)
		return;
	if (m->rate_at_ns + RATE_BURST_NS < now)
		m->rate_at_ns = now - RATE_BURST_NS;
	m->rate_at_ns += (uint64_t)((double)bytes * FT_S_NS / (double)m->rate);
}

bool ft_mirror_ask(struct mirror *m, unsigned *disk, uint64_t *region, uint64_t *granules)
{
	struct mirror_disk *d = next_disk(m);
	uint64_t now = ft_now_ns();
	struct words *w;

	m->ask_waits = d && !(has_room(m) && is_due(m, now));
	if (m->ask_waits)
		ft_mirror_poke(m);              /* the reader knows the time */
	if (!d || m->ask_waits)
		return false;
	w = d->plan;
	*disk = d->index;
	*region = w->region + w->at;
	*granules = w->word[w->at++];
	m->flight[m->nr_flight++] = (struct flight){ .d = d, .region = *region, .granules = *granules };
	m->flight_bytes += granule_bytes(*granules);
	spend(m, granule_bytes(*granules), now);
	return true;
}

uint64_t ft_mirror_ask_again(struct mirror *m)
{
	if (!m->ask_waits || !has_room(m))
		return 0;
	if (!is_due(m, ft_now_ns()))
		return m->rate_at_ns;
	m->ask_waits = false;
	ft_mirror_post(m);
	return 0;
}

int ft_mirror_hashes(struct mirror *m, struct mirror_disk *d, uint64_t region, uint64_t granules, const uint8_t *hash, size_t nr)
{
	uint8_t body[16 + FT_REGION_GRANULES * FT_HASH_LEN];
	struct flight *f = NULL;

	for (unsigned i = 0; i < m->nr_flight && !f; i++)
		if (m->flight[i].d == d && m->flight[i].region == region)
			f = &m->flight[i];
	if (!f || f->comparing || f->granules != granules || nr != (size_t)__builtin_popcountll(granules))
		return -EPROTO;
	ft_put64(body, region);
	ft_put64(body + 8, granules);
	memcpy(body + 16, hash, nr * FT_HASH_LEN);
	f->comparing = true;
	return ft_mirror_say(m, d, FT_EXPORT_COMPARE, body, 16 + nr * FT_HASH_LEN, false);
}
