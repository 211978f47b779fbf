// SPDX-License-Identifier: GPL-3.0-or-later
/* journal.c - see journal.h. */
#include "diskmirror/journal.h"

#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <xxhash.h>

/*
 * A segment: a sector with le64 magic, incarnation, number of the next record, and hash of the three; then records: le32 magic, type, le64 number,
 * le32 length, 0, le64 hash, then the body. Numbers grow over both segments and are never used twice.
 */
#define SEG_MAGIC 0x316c6e6a2d7466ull           /* "ft-jnl1" */
#define REC_MAGIC 0x43455246u
#define SEG_HDR 512u
#define REC_HDR 32u
#define NR_SEGS 2u
#define SWITCH_BYTES (64ull << 20)

struct segment {
	int h;                          /* -1: none */
	uint64_t used;                  /* end of the last record */
	uint64_t chain;                 /* hash of the last record, at first the incarnation */
	uint64_t ordinal;               /* of the last epoch kept in it */
	bool resetting;
	bool stale;                     /* emptying it has failed: nobody knows which chain it has on disk */
};

struct ft_journal {
	struct ft_journal_config cfg;
	struct ft_disk_files f;
	_Atomic uint64_t next_nr;       /* the writer's */
	pthread_mutex_t lock;           /* for the rest; not held during I/O */
	struct segment seg[NR_SEGS];
	unsigned current;
	bool open;                      /* an epoch, begun here: */
	uint64_t start, start_chain;
};

struct record {
	uint32_t type, len;
	uint64_t nr, hash;
};

static int seg_path(const struct ft_journal_config *cfg, unsigned i, char path[PATH_MAX])
{
	return snprintf(path, PATH_MAX, "%s/%s.journal%u", cfg->dir, cfg->guest, i) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static uint64_t record_hash(uint64_t chain, const uint8_t *hdr, const uint8_t *body, size_t len)
{
	return XXH3_64bits_withSeed(hdr, REC_HDR - 8, XXH3_64bits_withSeed(body, len, chain));
}

static bool parse_record(const uint8_t *hdr, struct record *r)
{
	*r = (struct record){ ft_le32(hdr + 4), ft_le32(hdr + 16), ft_le64(hdr + 8), ft_le64(hdr + 24) };
	return ft_le32(hdr) == REC_MAGIC && !ft_le32(hdr + 20) && r->len <= FT_JOURNAL_BODY_MAX;
}

/* --- what crashes have left --- */

struct scan {
	const struct ft_disk_files *f;
	char path[PATH_MAX];
	int h;
	uint64_t bytes, at, chain;
	uint64_t incarnation;
	uint64_t floor;                 /* records with smaller numbers are of an earlier incarnation */
	uint64_t first_nr;              /* 0: no record */
	uint64_t whole_end, nr_whole;   /* of whole epochs */
	uint8_t *body;
};

static int damaged(const struct scan *s)
{
	ft_err("%s: damaged; the disks of this host may lack acknowledged writes - run the guest on the other host, or remove the file "
	       "to go on without them", s->path);
	return -EBADMSG;
}

/* 1: a record that continues the chain, 0: none. */
static int next_record(struct scan *s, struct record *r)
{
	uint8_t hdr[REC_HDR];
	int rc;

	*r = (struct record){ 0 };
	if (s->bytes - s->at < REC_HDR)
		return 0;
	rc = s->f->pread(s->f->ctx, s->h, hdr, REC_HDR, s->at);
	if (rc)
		return rc;
	if (!parse_record(hdr, r) || r->len > s->bytes - s->at - REC_HDR)
		return 0;
	rc = s->f->pread(s->f->ctx, s->h, s->body, r->len, s->at + REC_HDR);
	if (rc)
		return rc;
	if (record_hash(s->chain, hdr, s->body, r->len) != r->hash)
		return 0;
	s->chain = r->hash;
	s->at += REC_HDR + r->len;
	return 1;
}

/*
 * The chain ends at @s->at: because the last write was cut, or because a record in the middle went bad? In the second
 * case records of a later epoch follow. What was thrown away earlier may follow, too, but has smaller numbers.
 */
static bool goes_on(struct scan *s, uint64_t last_nr)
{
	uint8_t hdr[REC_HDR];
	struct record r;
	bool whole = false;
	uint64_t at = s->at;

	while (s->bytes - at >= REC_HDR && !s->f->pread(s->f->ctx, s->h, hdr, REC_HDR, at)) {
		if (!parse_record(hdr, &r) || r.nr <= last_nr || r.len > s->bytes - at - REC_HDR)
			return false;
		if (whole)
			return true;
		whole = r.type == FT_JOURNAL_WHOLE;
		last_nr = r.nr;
		at += REC_HDR + r.len;
	}
	return false;
}

/* *empty: nothing was ever made durable in it. */
static int read_seg_header(struct scan *s, bool *empty)
{
	static const uint8_t zeros[32];
	uint8_t hdr[32];
	int rc;

	*empty = s->bytes < SEG_HDR;
	if (*empty)
		return 0;
	rc = s->f->pread(s->f->ctx, s->h, hdr, sizeof(hdr), 0);
	if (rc)
		return rc;
	*empty = !memcmp(hdr, zeros, sizeof(hdr));
	if (*empty)
		return 0;
	if (ft_le64(hdr) != SEG_MAGIC || !ft_le64(hdr + 16) || ft_le64(hdr + 24) != XXH3_64bits(hdr, 24))
		return damaged(s);
	s->incarnation = s->chain = ft_le64(hdr + 8);
	s->floor = ft_le64(hdr + 16);
	s->at = s->whole_end = SEG_HDR;
	return 0;
}

/* How far do whole epochs go? */
static int measure(struct scan *s)
{
	struct record r;
	uint64_t last_nr;
	bool empty;
	int rc = read_seg_header(s, &empty);

	if (rc || empty)
		return rc;
	last_nr = s->floor - 1;
	while ((rc = next_record(s, &r)) > 0) {
		if (!s->first_nr)
			s->first_nr = r.nr;
		if (r.type == FT_JOURNAL_WHOLE) {
			s->whole_end = s->at;
			s->nr_whole++;
		}
		last_nr = r.nr;
	}
	return !rc && goes_on(s, last_nr) ? damaged(s) : rc;
}

typedef int record_fn(void *ctx, unsigned type, const uint8_t *body, size_t len);

static int visit(struct scan *s, record_fn *record, void *ctx)
{
	struct record r;
	int rc = 0;

	s->at = SEG_HDR;
	s->chain = s->incarnation;
	while (!rc && s->nr_whole && s->at < s->whole_end) {
		rc = next_record(s, &r);
		if (rc == 0)
			return -EIO;            /* it was readable a moment ago */
		if (rc > 0)
			rc = record(ctx, r.type, s->body, r.len);
		if (rc == -EBADMSG)
			return damaged(s);
	}
	return rc;
}

static int scan_open(const struct ft_journal_config *cfg, unsigned i, struct scan *s)
{
	int rc;

	*s = (struct scan){ .f = cfg->files, .h = -1 };
	rc = seg_path(cfg, i, s->path);
	if (!rc)
		rc = s->f->open(s->f->ctx, s->path, false, &s->h);
	if (rc) {
		s->h = -1;
		return rc == -ENOENT ? 0 : rc;
	}
	s->body = malloc(FT_JOURNAL_BODY_MAX);
	rc = s->body ? s->f->size(s->f->ctx, s->h, &s->bytes) : -ENOMEM;
	return rc ? rc : measure(s);
}

/* The older one first. s[].h is -1 where there is none, or after an error. */
static int scan_both(const struct ft_journal_config *cfg, struct scan s[NR_SEGS])
{
	int rc = 0;

	s[0] = s[1] = (struct scan){ .h = -1 };
	for (unsigned i = 0; i < NR_SEGS && !rc; i++)
		rc = scan_open(cfg, i, &s[i]);
	if (s[1].first_nr < s[0].first_nr) {
		struct scan later = s[0];

		s[0] = s[1];
		s[1] = later;
	}
	return rc;
}

static void scan_close(struct scan *s)
{
	if (s->h >= 0)
		s->f->close(s->f->ctx, s->h);
	free(s->body);
}

int ft_journal_replay(const struct ft_journal_config *cfg, int (*record)(void *ctx, unsigned type, const uint8_t *body, size_t len),
		      void *ctx, uint64_t *nr)
{
	struct scan s[NR_SEGS];
	int rc = scan_both(cfg, s);

	*nr = s[0].nr_whole + s[1].nr_whole;
	for (unsigned i = 0; i < NR_SEGS && !rc && record; i++)
		rc = visit(&s[i], record, ctx);
	if (rc && rc != -EBADMSG)
		ft_err("%s/%s.journal: cannot replay: %s", cfg->dir, cfg->guest, strerror(-rc));
	for (unsigned i = 0; i < NR_SEGS; i++)
		scan_close(&s[i]);
	return rc;
}

/* The older one first, durably: what a replay finds must not end before it begins. */
int ft_journal_remove(const struct ft_journal_config *cfg)
{
	struct scan s[NR_SEGS];
	int rc = scan_both(cfg, s);

	for (unsigned i = 0; i < NR_SEGS && !rc; i++) {
		if (s[i].h < 0)
			continue;
		rc = cfg->files->unlink(cfg->files->ctx, s[i].path);
		if (!rc)
			rc = cfg->files->sync_dir(cfg->files->ctx, cfg->dir);
	}
	if (rc && rc != -EBADMSG)
		ft_err("%s/%s.journal: cannot remove: %s", cfg->dir, cfg->guest, strerror(-rc));
	for (unsigned i = 0; i < NR_SEGS; i++)
		scan_close(&s[i]);
	return rc;
}

/* --- a new one --- */

/* Durably nothing: whatever was in it does not continue the new chain. */
static int empty_segment(struct ft_journal *j, struct segment *s, uint64_t *incarnation)
{
	uint8_t buf[SEG_HDR] = { 0 };
	int rc;

	*incarnation = ft_disk_new_generation();
	ft_put64(buf, SEG_MAGIC);
	ft_put64(buf + 8, *incarnation);
	ft_put64(buf + 16, j->next_nr);
	ft_put64(buf + 24, XXH3_64bits(buf, 24));
	rc = j->f.pwrite(j->f.ctx, s->h, buf, SEG_HDR, 0);
	if (!rc)
		rc = j->f.truncate(j->f.ctx, s->h, SEG_HDR);
	if (!rc && j->cfg.durable)
		rc = j->f.sync(j->f.ctx, s->h);
	return rc;
}

static int make_segment(struct ft_journal *j, unsigned i)
{
	struct segment *s = &j->seg[i];
	char path[PATH_MAX];
	int rc = seg_path(&j->cfg, i, path);

	if (!rc)
		rc = j->f.open(j->f.ctx, path, true, &s->h);
	if (rc) {
		s->h = -1;
		goto out;
	}
	rc = j->f.lock(j->f.ctx, s->h);
	if (!rc)
		rc = empty_segment(j, s, &s->chain);
	if (!rc && !j->cfg.durable)
		rc = j->f.unlink(j->f.ctx, path);
	s->used = SEG_HDR;
out:
	if (rc)
		ft_err("%s: cannot make it: %s", path, strerror(-rc));
	return rc;
}

int ft_journal_new(const struct ft_journal_config *cfg, struct ft_journal **out)
{
	struct ft_journal *j = calloc(1, sizeof(*j));
	int rc = 0;

	if (!j)
		return -ENOMEM;
	j->cfg = *cfg;
	j->f = *cfg->files;
	j->next_nr = 1;
	pthread_mutex_init(&j->lock, NULL);
	for (unsigned i = 0; i < NR_SEGS; i++)
		j->seg[i].h = -1;
	for (unsigned i = 0; i < NR_SEGS && !rc; i++)
		rc = make_segment(j, i);
	if (!rc && cfg->durable)
		rc = j->f.sync_dir(j->f.ctx, cfg->dir);
	if (rc) {
		ft_journal_free(j);
		return rc;
	}
	*out = j;
	return 0;
}

void ft_journal_free(struct ft_journal *j)
{
	if (!j)
		return;
	for (unsigned i = 0; i < NR_SEGS; i++)
		if (j->seg[i].h >= 0)
			j->f.close(j->f.ctx, j->seg[i].h);
	pthread_mutex_destroy(&j->lock);
	free(j);
}

/* --- an epoch is written --- */

static bool is_empty(const struct segment *s)
{
	return s->used == SEG_HDR && !s->resetting && !s->stale;
}

static uint64_t switch_at(const struct ft_journal *j)
{
	return j->cfg.bound / 4 < SWITCH_BYTES ? j->cfg.bound / 4 : SWITCH_BYTES;
}

/* Only here a segment is changed for the other one: an epoch lies in one of them. */
void ft_journal_begin(struct ft_journal *j)
{
	struct segment *s;

	pthread_mutex_lock(&j->lock);
	assert(!j->open);
	s = &j->seg[j->current];
	if ((s->resetting || s->stale || s->used > switch_at(j)) && is_empty(&j->seg[!j->current]))
		j->current = !j->current;
	s = &j->seg[j->current];
	assert(!s->resetting && !s->stale);     /* the other one was empty then */
	j->open = true;
	j->start = s->used;
	j->start_chain = s->chain;
	pthread_mutex_unlock(&j->lock);
}

static int write_record(struct ft_journal *j, const struct segment *s, unsigned type, const uint8_t *body, size_t len, uint64_t *hash)
{
	uint8_t hdr[REC_HDR] = { 0 };
	int rc;

	ft_put32(hdr, REC_MAGIC);
	ft_put32(hdr + 4, type);
	ft_put64(hdr + 8, j->next_nr++);
	ft_put32(hdr + 16, (uint32_t)len);
	*hash = record_hash(s->chain, hdr, body, len);
	ft_put64(hdr + 24, *hash);
	rc = j->f.pwrite(j->f.ctx, s->h, hdr, REC_HDR, s->used);
	return rc ? rc : j->f.pwrite(j->f.ctx, s->h, body, len, s->used + REC_HDR);
}

bool ft_journal_fits(struct ft_journal *j, size_t len)
{
	return ft_journal_used(j) + REC_HDR + len <= j->cfg.bound;
}

int ft_journal_append(struct ft_journal *j, unsigned type, const uint8_t *body, size_t len, struct ft_journal_place *at)
{
	struct segment *s = &j->seg[j->current];        /* open: nobody else changes it */
	uint64_t hash;
	int rc;

	assert(j->open && len <= FT_JOURNAL_BODY_MAX);
	if (!ft_journal_fits(j, len))
		return -ENOSPC;
	rc = write_record(j, s, type, body, len, &hash);
	if (rc)
		return rc;
	if (at)
		*at = (struct ft_journal_place){ j->current, s->used, s->chain };
	pthread_mutex_lock(&j->lock);
	s->used += REC_HDR + len;
	s->chain = hash;
	pthread_mutex_unlock(&j->lock);
	return 0;
}

int ft_journal_sync(struct ft_journal *j)
{
	return j->f.sync(j->f.ctx, j->seg[j->current].h);
}

void ft_journal_keep(struct ft_journal *j, uint64_t ordinal)
{
	pthread_mutex_lock(&j->lock);
	if (j->seg[j->current].used != j->start)
		j->seg[j->current].ordinal = ordinal;
	j->open = false;
	pthread_mutex_unlock(&j->lock);
}

void ft_journal_discard(struct ft_journal *j)
{
	pthread_mutex_lock(&j->lock);
	if (j->open) {
		j->seg[j->current].used = j->start;
		j->seg[j->current].chain = j->start_chain;
	}
	j->open = false;
	pthread_mutex_unlock(&j->lock);
}

int ft_journal_read(struct ft_journal *j, struct ft_journal_place *at, uint8_t *body, size_t *len)
{
	int h = j->seg[at->seg].h;
	uint8_t hdr[REC_HDR];
	struct record r;
	int rc = j->f.pread(j->f.ctx, h, hdr, REC_HDR, at->at);

	if (rc)
		return rc;
	if (!parse_record(hdr, &r))
		return -EIO;
	rc = j->f.pread(j->f.ctx, h, body, r.len, at->at + REC_HDR);
	if (rc)
		return rc;
	if (record_hash(at->chain, hdr, body, r.len) != r.hash)
		return -EIO;
	at->at += REC_HDR + r.len;
	at->chain = r.hash;
	*len = r.len;
	return 0;
}

/* --- emptied --- */

static bool may_reset(const struct ft_journal *j, unsigned i, uint64_t ordinal)
{
	const struct segment *s = &j->seg[i];

	return (s->used > SEG_HDR || s->stale) && !s->resetting && s->ordinal <= ordinal && !(j->open && j->current == i);
}

/* Lock held, and again when it returns. */
static int reset_segment(struct ft_journal *j, struct segment *s)
{
	uint64_t incarnation;
	int rc;

	s->resetting = true;
	pthread_mutex_unlock(&j->lock);
	rc = empty_segment(j, s, &incarnation);
	pthread_mutex_lock(&j->lock);
	if (!rc) {
		s->used = SEG_HDR;
		s->chain = incarnation;
	}
	s->resetting = false;
	s->stale = rc;
	return rc;
}

int ft_journal_reset(struct ft_journal *j, uint64_t ordinal)
{
	int rc = 0;

	pthread_mutex_lock(&j->lock);
	/* The older one first, see remove. */
	if (may_reset(j, !j->current, ordinal))
		rc = reset_segment(j, &j->seg[!j->current]);
	/* An epoch may begin meanwhile, and needs a place: the other one. */
	if (!rc && may_reset(j, j->current, ordinal) && is_empty(&j->seg[!j->current]))
		rc = reset_segment(j, &j->seg[j->current]);
	pthread_mutex_unlock(&j->lock);
	if (rc)
		ft_err("%s/%s.journal: cannot empty it: %s", j->cfg.dir, j->cfg.guest, strerror(-rc));
	return rc;
}

uint64_t ft_journal_used(struct ft_journal *j)
{
	uint64_t used = 0;

	pthread_mutex_lock(&j->lock);
	for (unsigned i = 0; i < NR_SEGS; i++)
		used += j->seg[i].used - SEG_HDR;
	pthread_mutex_unlock(&j->lock);
	return used;
}

bool ft_journal_wants_reset(struct ft_journal *j)
{
	return ft_journal_used(j) > switch_at(j);
}
