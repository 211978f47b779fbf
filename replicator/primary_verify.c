// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary_verify.c - `ft-ctl verify` of the guest's disks.
 *
 * A slice of a disk is hashed in an epoch's pause, as memory is: the disks are drained, and what the image has then is what
 * the epoch makes of the backup's. Once the epoch is acknowledged, and before there is a later one, the backup is asked for
 * its hashes of the same slice. So the guest runs between slices, and no write can be mistaken for a difference.
 */
#include "primary_priv.h"

#include <inttypes.h>
#include <stdio.h>

/* The next slice with anything in it, or false: that was all. */
static bool find_slice(const struct ft_primary *p, struct ft_disk_verify *v)
{
	while (v->disk < p->cfg.mirror->nr_disks && v->region >= ft_disk_regions(p->disk_id[v->disk].bytes)) {
		v->disk++;
		v->region = 0;
	}
	return v->disk < p->cfg.mirror->nr_disks;
}

static unsigned regions_of_slice(const struct ft_primary *p, const struct ft_disk_verify *v)
{
	uint64_t left = ft_disk_regions(p->disk_id[v->disk].bytes) - v->region;

	return left < FT_VERIFY_REGIONS ? (unsigned)left : FT_VERIFY_REGIONS;
}

void ft_primary_verify_disks(struct ft_primary *p)
{
	struct ft_disk_verify *v = &p->verify_disks;

	*v = (struct ft_disk_verify){ .on = true, .late = v->late };
	p->verify_epoch = 0;
	ft_primary_held(p);             /* an epoch soon */
}

void ft_primary_verify_paused(struct ft_primary *p)
{
	struct ft_disk_verify *v = &p->verify_disks;

	v->nr = regions_of_slice(p, v);
	v->answered = 0;
	v->asked = false;
	v->rc = 0;
	for (unsigned i = 0; i < v->nr && !v->rc; i++) {
		v->rc = p->cfg.mirror->ops->digest(p->cfg.mirror, v->disk, v->region + i,
						   ft_disk_granules(p->disk_id[v->disk].bytes, v->region + i), v->hash[i]);
		p->ops->pausing(p->cfg.ctx);
	}
	p->verify_epoch = p->epoch;
}

int ft_primary_verify_ask(struct ft_primary *p)
{
	struct ft_disk_verify *v = &p->verify_disks;
	int rc = 0;

	v->asked = true;
	for (unsigned i = 0; i < v->nr && !rc; i++) {
		uint8_t body[FT_WIRE_DISK_RANGE_LEN];
		const struct ft_wire_disk_range r = {
			.disk = v->disk, .region = v->region + i,
			.granules = ft_disk_granules(p->disk_id[v->disk].bytes, v->region + i),
		};

		rc = p->ops->send(p->cfg.ctx, FT_REC_DISK_ASK, body, ft_wire_pack_disk_range(&r, body));
	}
	return rc;
}

static void compare(struct ft_disk_verify *v, const struct ft_wire_disk_range *r, const uint8_t *theirs)
{
	const uint8_t *ours = v->hash[r->region - v->region];

	for (uint64_t left = r->granules; left; left &= left - 1, ours += FT_HASH_LEN, theirs += FT_HASH_LEN)
		if (memcmp(ours, theirs, FT_HASH_LEN) && !v->differing[r->disk]++)
			v->first[r->disk] = r->region * FT_REGION + (uint64_t)__builtin_ctzll(left) * FT_GRANULE;
}

int ft_primary_verify_hashes(struct ft_primary *p, const uint8_t *body, size_t len)
{
	struct ft_disk_verify *v = &p->verify_disks;
	struct ft_wire_disk_range r;

	if (ft_wire_unpack_disk_range(body, len, &r))
		return -EPROTO;
	if (v->late) {                  /* given up since */
		v->late--;
		return 0;
	}
	if (!v->on || !v->asked || r.disk != v->disk || r.region != v->region + v->answered || v->answered == v->nr ||
	    r.granules != ft_disk_granules(p->disk_id[r.disk].bytes, r.region) ||
	    len != FT_WIRE_DISK_RANGE_LEN + (size_t)__builtin_popcountll(r.granules) * FT_HASH_LEN)
		return -EPROTO;
	compare(v, &r, body + FT_WIRE_DISK_RANGE_LEN);
	if (++v->answered < v->nr)
		return 0;
	v->region += v->nr;
	if (!find_slice(p, v))
		return 1;
	p->verify_epoch = 0;
	ft_primary_held(p);
	return 0;
}

void ft_primary_verify_stop(struct ft_primary *p, bool link_lost)
{
	struct ft_disk_verify *v = &p->verify_disks;
	unsigned late = v->on && v->asked ? v->nr - v->answered : 0;

	*v = (struct ft_disk_verify){ .late = link_lost ? 0 : v->late + late };
	p->verify_epoch = 0;
}

static int describe(char *buf, size_t size, const struct ft_primary *p, unsigned disk)
{
	const struct ft_disk_verify *v = &p->verify_disks;
	uint64_t bytes = p->disk_id[disk].bytes;

	if (v->differing[disk])
		return snprintf(buf, size, "; disk %u DIFFERS in %" PRIu64 " blocks of 64 KB, first at byte %" PRIu64, disk,
				v->differing[disk], v->first[disk]);
	return snprintf(buf, size, "; disk %u: %" PRIu64 " %s equal", disk, bytes >> 20 ? bytes >> 20 : bytes,
			bytes >> 20 ? "MB" : "bytes");
}

bool ft_primary_verify_result(const struct ft_primary *p, char *buf, size_t size)
{
	size_t used = strlen(buf);
	bool equal = true;

	for (unsigned i = 0; i < p->cfg.mirror->nr_disks && used < size; i++) {
		used += (size_t)describe(buf + used, size - used, p, i);
		equal = equal && !p->verify_disks.differing[i];
	}
	return equal;
}
