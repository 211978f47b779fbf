// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export_copy.c - what the peer lacks, found by comparing hashes.
 *
 * A granule is read, compared and streamed as one request among the guest's, so whatever the guest writes there is in
 * the stream behind it, or already in what was read.
 */
#include "export_priv.h"

#define PLAN_WORDS 1024u

/* --- what is to be compared --- */

/* The granules that a region has: the last one of a disk may be short of some. */
int ft_export_add(struct ft_export *e, const uint8_t *body, size_t len)
{
	uint64_t region, regions = ft_disk_regions(e->bytes), nr;

	if (len < 8 || len % 8)
		return -EPROTO;
	region = ft_le64(body);
	nr = len / 8 - 1;
	if (region > regions || nr > regions - region)
		return -EPROTO;
	for (uint64_t i = 0; i < nr; i++)
		ft_map_add(e->map, region + i, ft_le64(body + 8 + 8 * i) & ft_disk_granules(e->bytes, region + i));
	return 0;
}

struct plan {
	uint8_t body[8 + 8 * PLAN_WORDS];
	unsigned nr;
	uint64_t total;
};

static int send_plan(struct ft_export *e, struct ft_export_client *c, struct plan *p)
{
	unsigned nr = p->nr;

	p->nr = 0;
	return nr ? ft_export_tell(e, c, FT_EXPORT_PLAN, p->body, 8 + 8 * nr) : 0;
}

static void add_to_plan(struct plan *p, uint64_t region, uint64_t word)
{
	if (!p->nr)
		ft_put64(p->body, region);
	ft_put64(p->body + 8 + 8 * p->nr++, word);
	p->total += (unsigned)__builtin_popcountll(word);
}

/* A region that is the same on both sides now stays so as long as its changes are streamed: it counts as compared. */
static int plan_region(struct ft_export *e, struct ft_export_client *c, struct plan *p, uint64_t region)
{
	uint64_t word = ft_map_word(e->map, region) & ft_disk_granules(e->bytes, region);

	if (!word) {
		ft_map_compared(e->map, region, e->seq);
		return send_plan(e, c, p);
	}
	add_to_plan(p, region, word);
	return p->nr == PLAN_WORDS ? send_plan(e, c, p) : 0;
}

int ft_export_copy(struct ft_export *e, struct ft_export_client *c, bool all)
{
	struct plan p = { .nr = 0 };
	uint8_t total[8];
	int rc = all ? ft_map_touch_all(e->map) : 0;

	if (rc) {
		ft_export_fail(e, "its map cannot be written: %s", strerror(-rc));
		return rc;
	}
	ft_map_copy_begins(e->map);
	for (uint64_t r = 0; r < ft_disk_regions(e->bytes) && !rc; r++)
		rc = plan_region(e, c, &p, r);
	if (!rc)
		rc = send_plan(e, c, &p);
	ft_put64(total, p.total);
	return rc ? rc : ft_export_tell(e, c, FT_EXPORT_PLANNED, total, sizeof(total));
}

/* --- comparing --- */

static bool all_zero(const uint8_t *data, uint32_t len)
{
	return !data[0] && !memcmp(data, data + 1, len - 1);
}

static int read_granule(struct ft_export *e, uint64_t at, uint32_t len, uint8_t *data)
{
	int rc = 0;

	if (e->f->is_hole(e->f->ctx, e->h, at, len))
		memset(data, 0, len);
	else
		rc = e->f->pread(e->f->ctx, e->h, data, len, at);
	if (rc)
		ft_export_fail(e, "reading the image at byte %llu failed: %s", (unsigned long long)at, strerror(-rc));
	return rc;
}

static int compare_in_order(struct ft_export *e, uint64_t at, uint32_t len, const uint8_t *theirs, uint8_t *data)
{
	uint8_t ours[FT_HASH_LEN];
	uint64_t seq;
	uint32_t op;
	int rc = read_granule(e, at, len, data);

	if (rc)
		return rc;
	ft_disk_hash(data, len, ours);
	if (!memcmp(ours, theirs, FT_HASH_LEN))
		return 0;
	op = all_zero(data, len) ? FT_DISK_ZERO : FT_DISK_WRITE;
	return ft_export_stream_copy(e, op, data, at, len, &seq) ? 0 : -EPIPE;
}

static int compare_granule(struct ft_export *e, uint64_t at, const uint8_t *theirs, uint8_t *data)
{
	uint32_t len = e->bytes - at < FT_GRANULE ? (uint32_t)(e->bytes - at) : FT_GRANULE;
	struct ft_range r;
	int rc;

	ft_export_order(e, &r, at, len);
	rc = compare_in_order(e, at, len, theirs, data);
	ft_export_settle(e, &r);
	return rc;
}

static int mark(struct ft_export *e, uint64_t region)
{
	uint64_t seq;

	if (!ft_export_stream_copy(e, FT_DISK_MARK, NULL, region * FT_REGION, 0, &seq))
		return -EPIPE;
	ft_map_compared(e->map, region, seq);
	return 0;
}

int ft_export_compare(struct ft_export *e, const uint8_t *body, size_t len)
{
	uint64_t region, granules;
	uint8_t *data;
	int rc = 0;

	if (len < 16)
		return -EPROTO;
	region = ft_le64(body);
	granules = ft_le64(body + 8);
	if (region >= ft_disk_regions(e->bytes) || granules & ~ft_disk_granules(e->bytes, region))
		return -EPROTO;
	if (len != 16 + FT_HASH_LEN * (size_t)__builtin_popcountll(granules))
		return -EPROTO;
	data = malloc(FT_GRANULE);
	if (!data)
		return -ENOMEM;
	body += 16;
	for (unsigned g = 0; g < FT_REGION_GRANULES && !rc; g++) {
		if (!(granules >> g & 1))
			continue;
		rc = compare_granule(e, region * FT_REGION + g * (uint64_t)FT_GRANULE, body, data);
		body += FT_HASH_LEN;
	}
	free(data);
	return rc ? rc : mark(e, region);
}
