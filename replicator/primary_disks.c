// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary_disks.c - the guest's disks in a session of the primary: whose data is newer, the copy, and what epochs carry.
 *
 * A new session compares before it copies memory: DISKS, the backup's maps, DISKS_HERE, then hashes region by region while the
 * guest writes on. What differs travels in the session's FULL epoch, in one stream with what the guest writes meanwhile.
 */
#include "primary_priv.h"

#include <stdio.h>

static struct ft_mirror *mirror(const struct ft_primary *p)
{
	return p->cfg.mirror;
}

/* --- whose data is newer --- */

int ft_primary_disks_greet(struct ft_primary *p)
{
	uint8_t body[FT_DISKS_MAX * FT_DISK_ID_LEN];

	for (unsigned i = 0; i < mirror(p)->nr_disks; i++) {
		mirror(p)->ops->describe(mirror(p), i, &p->disk_id[i]);
		ft_disk_pack_id(&p->disk_id[i], body + i * FT_DISK_ID_LEN);
	}
	p->disks_greeted = true;
	return p->ops->send(p->cfg.ctx, FT_REC_DISKS, body, mirror(p)->nr_disks * FT_DISK_ID_LEN);
}

void ft_primary_on_disk_map(struct ft_primary *p, const uint8_t *body, size_t len)
{
	uint64_t word[FT_WIRE_MAP_WORDS];
	struct ft_wire_disk_at at;
	size_t nr;

	if (!p->disks_greeted || ft_wire_unpack_disk_at(body, len, &at) || at.disk >= mirror(p)->nr_disks) {
		ft_primary_drop_link(p, "a DISK_MAP that makes no sense");
		return;
	}
	nr = (len - FT_WIRE_DISK_AT_LEN) / 8;
	if (at.at >= ft_disk_regions(p->disk_id[at.disk].bytes) || nr > ft_disk_regions(p->disk_id[at.disk].bytes) - at.at) {
		ft_primary_drop_link(p, "a DISK_MAP beyond the disk");
		return;
	}
	for (size_t i = 0; i < nr; i++)
		word[i] = ft_le64(body + FT_WIRE_DISK_AT_LEN + 8 * i);
	if (mirror(p)->ops->theirs(mirror(p), at.disk, at.at, word, nr))
		ft_primary_drop_link(p, "no memory for the backup's map");
}

/* -EPERM: our data must not be copied over theirs. */
static int judge(struct ft_primary *p, const uint8_t *body, char *why, size_t size)
{
	char line[256];

	for (unsigned i = 0; i < mirror(p)->nr_disks; i++) {
		struct ft_disk_id theirs;
		enum ft_disk_verdict v;

		if (ft_disk_unpack_id(body + i * FT_DISK_ID_LEN, &theirs))
			return -EPROTO;
		v = ft_disk_judge(&p->disk_id[i], &theirs, line, sizeof(line));
		p->disk_all[i] = v == FT_DISK_COPY_ALL;
		if (v == FT_DISK_REFUSE) {
			snprintf(why, size, "disk %u of %s: %s", i, p->cfg.guest, line);
			return -EPERM;
		}
	}
	return 0;
}

int ft_primary_on_disks_here(struct ft_primary *p, const uint8_t *body, size_t len, char *why, size_t size)
{
	if (!p->disks_greeted || len != mirror(p)->nr_disks * FT_DISK_ID_LEN)
		return -EPROTO;
	p->disks_greeted = false;
	return judge(p, body, why, size);
}

int ft_primary_disks_begin(struct ft_primary *p)
{
	int rc = mirror(p)->ops->copy(mirror(p), p->disk_all);

	p->disks_copying = !rc;
	p->disks_adopted = false;
	return rc;
}

/* --- the copy --- */

static int ask_some(struct ft_primary *p)
{
	struct ft_wire_disk_range r = { 0 };
	unsigned disk;
	int rc = 0;

	while (!rc && mirror(p)->ops->ask(mirror(p), &disk, &r.region, &r.granules)) {
		uint8_t body[FT_WIRE_DISK_RANGE_LEN];

		r.disk = disk;
		rc = p->ops->send(p->cfg.ctx, FT_REC_DISK_ASK, body, ft_wire_pack_disk_range(&r, body));
	}
	return rc;
}

int ft_primary_disks_slice(struct ft_primary *p)
{
	int rc = ask_some(p);

	if (!rc && mirror(p)->ops->pending(mirror(p), 0)) {
		rc = ft_encoder_disks(p->cfg.encoder, 0);
		return rc == -EBUSY ? 0 : rc;   /* the next slice will do */
	}
	if (!rc && mirror(p)->ops->copied(mirror(p)))
		p->disks_copying = false;
	return rc;
}

void ft_primary_on_disk_hashes(struct ft_primary *p, const uint8_t *body, size_t len)
{
	struct ft_wire_disk_range r;
	int rc = -EPROTO;

	if (!ft_wire_unpack_disk_range(body, len, &r) && len > FT_WIRE_DISK_RANGE_LEN &&
	    r.disk < mirror(p)->nr_disks)
		rc = mirror(p)->ops->hashes(mirror(p), r.disk, r.region, r.granules, body + FT_WIRE_DISK_RANGE_LEN,
					    (len - FT_WIRE_DISK_RANGE_LEN) / FT_HASH_LEN);
	if (rc)
		ft_primary_drop_link(p, "hashes of a disk that nobody asked for");
}

/* --- epochs --- */

int ft_primary_carry_disks(struct ft_primary *p, uint64_t epoch)
{
	if (!mirror(p) || !mirror(p)->ops->pending(mirror(p), epoch))
		return 0;
	return ft_encoder_disks(p->cfg.encoder, epoch);
}

void ft_primary_on_disk_durable(struct ft_primary *p, const uint8_t *body, size_t len)
{
	struct ft_wire_disk_at at;

	if (!mirror(p) || ft_wire_unpack_disk_at(body, len, &at) || at.disk >= mirror(p)->nr_disks ||
	    mirror(p)->ops->durable(mirror(p), at.disk, at.at))
		ft_primary_drop_link(p, "the backup made durable what it was never sent");
}

/* From the first whole epoch of the session on, the backup's images are of our generation. */
void ft_primary_disks_adopted(struct ft_primary *p)
{
	if (!mirror(p) || p->disks_adopted)
		return;
	mirror(p)->ops->adopted(mirror(p));
	p->disks_adopted = true;
}

/* Flushes are answered from the mirror only while a backup stands behind them. */
void ft_primary_disks_state(struct ft_primary *p, enum ft_primary_state to)
{
	bool on = to == FT_PRIMARY_PROTECTED || to == FT_PRIMARY_HANDING_OVER;

	/* Disarming leaves it as it was: it may come from a copy, with nobody behind us yet. */
	if (mirror(p) && to != FT_PRIMARY_DISARMING)
		mirror(p)->ops->protect(mirror(p), on);
}

/* A disk of the guest is no longer mirrored completely: nothing that is sealed from here on can be sent. */
void ft_primary_mirror_broken(struct ft_primary *p, const char *why)
{
	if (p->state == FT_PRIMARY_ENDED)
		return;
	ft_primary_guest_event(p);      /* an export ends with its guest */
	if (p->state == FT_PRIMARY_ENDED || p->guest_ended || p->leaving)
		return;
	memset(p->session, 0, sizeof(p->session));
	ft_primary_breach(p, why);
	if (p->standing)
		ft_primary_drop_link(p, why);
}
