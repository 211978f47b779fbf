// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * store.h - the replica's disks on the backup: whole epochs or nothing (P2), beside image.h for memory.
 *
 * Ops of an epoch are staged as they arrive: in memory up to a bound, beyond it in the journal file. They reach the
 * image, in order, only when the epoch is committed. Durability `journal`: the epoch is in the journal, synced, before it
 * may be acknowledged, and the journal is replayed after a crash; `memory`: the journal is only room, and forgotten.
 * A thread syncs images now and then; what it has made durable is told to the primary, whose map gets clean by it.
 * Loop thread only.
 */
#ifndef FT_STORE_H
#define FT_STORE_H

#include "ft/disk.h"
#include "ft/diskfile.h"

enum ft_durability { FT_DURABILITY_MEMORY, FT_DURABILITY_JOURNAL };

struct ft_store;

struct ft_store_config {
	const char *guest;
	unsigned nr_disks;
	struct {
		const char *image;              /* made, sparse, of @bytes when it is not there */
		uint64_t bytes;                 /* the primary's */
	} disk[FT_DISKS_MAX];
	const char *state_dir;                  /* GUEST.diskN.map, GUEST.journal0, GUEST.journal1 */
	size_t memory_bound;
	uint64_t journal_bound;                 /* beyond it: -ENOSPC */
	enum ft_durability durability;
	const struct ft_disk_files *files;      /* NULL: real ones */
};

/*
 * Locks the images, opens the maps, replays a journal. Logged, and one line in the caller's ft_log_keep: -EBUSY: another
 * guest's or another program's image; -EFBIG: sizes differ; -EROFS, -EACCES ...; -EBADMSG: a map or journal is damaged.
 */
int ft_store_open(const struct ft_store_config *cfg, struct ft_store **out) FT_MUST_CHECK;
/* As after a crash for what is not committed. NULL is fine. */
void ft_store_free(struct ft_store *st);
/*
 * After the last commit: everything is on the images, synced; let go of them, for the export that the guest will write
 * to. -EBUSY: held. From then on only free.
 */
int ft_store_release(struct ft_store *st) FT_MUST_CHECK;
/*
 * Only replay what a crash left in the journal of @cfg, if anything: before a guest is started from the images by
 * hand. Maps and images need not exist.
 */
int ft_store_recover(const struct ft_store_config *cfg) FT_MUST_CHECK;

void ft_store_id(const struct ft_store *st, unsigned disk, struct ft_disk_id *out);
uint64_t ft_store_next_word(const struct ft_store *st, unsigned disk, uint64_t region, uint64_t *word); /* see ft_map_next; none when fresh */
/*
 * The primary's id of each disk, at the start of a session. -EPERM: ft_disk_judge would refuse, or the primary's is
 * FRESH; one line in @why; then no FULL epoch is taken. From here on ft_store_durable speaks of the new stream only.
 */
int ft_store_peer(struct ft_store *st, const struct ft_disk_id *theirs, unsigned nr, char *why, size_t size) FT_MUST_CHECK;

/*
 * Order as in image.h: begin, batch..., whole; whatever fails throws the epoch away. FT_EPOCH_FULL: the copy of a new
 * session, after which the images are of the primary's generation (TARGET until they are also synced); with FT_EPOCH_DIRECT ops go to the images at once
 * (durably marked as the target of a copy before the first). seq must grow from op to op of a disk. -EPROTO, -ENOSPC, -EIO ...
 */
int ft_store_begin(struct ft_store *st, uint64_t epoch, uint32_t flags) FT_MUST_CHECK;
int ft_store_batch(struct ft_store *st, const uint8_t *body, size_t len) FT_MUST_CHECK;        /* a DISK record's */
/*
 * The epoch is whole. 0: may be acknowledged, as far as disks are concerned (journal: it is durable). -EINPROGRESS: a thread
 * syncs what came DIRECT; to be called again at the store's event.
 */
int ft_store_whole(struct ft_store *st) FT_MUST_CHECK;
/*
 * Apply all whole epochs, oldest first. While held: nothing. -errno: the image cannot be written; the epochs stay staged and
 * the next commit goes on from where it stopped.
 */
int ft_store_commit(struct ft_store *st) FT_MUST_CHECK;
/*
 * The same in turns, for a loop that must not stand still: what epochs have brought, but of a copy only some MiB. -EAGAIN: more
 * is to be done at the store's event.
 */
int ft_store_advance(struct ft_store *st) FT_MUST_CHECK;
bool ft_store_behind(const struct ft_store *st);        /* something whole is not on the images, and may be */
void ft_store_hold(struct ft_store *st, bool held);
/* A sync of an image has failed. No later one brings back what was written, so nothing here can be started any more. */
bool ft_store_lost(struct ft_store *st);
/* Why the last begin, batch, whole, commit, or release failed for want of a disk, with the remedy. Else empty. */
const char *ft_store_why(struct ft_store *st);
void ft_store_discard_partial(struct ft_store *st);

/*
 * Hashes of the granules in @granules of @region as the image is now, with all whole epochs (they are applied first),
 * ascending. Returns how many, or -errno: -EBUSY while held with epochs waiting.
 */
int ft_store_hashes(struct ft_store *st, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out /* [64][FT_HASH_LEN] */);

/* Readable when ft_store_durable, a whole that was in progress, or advance has news. */
int ft_store_event_fd(const struct ft_store *st);
/* True when @disk has more durable than when last asked: *seq. */
bool ft_store_durable(struct ft_store *st, unsigned disk, uint64_t *seq);
void ft_store_tell_again(struct ft_store *st);  /* who was told may not have heard: all that is durable is news */

struct ft_store_status {
	uint64_t bytes;
	uint64_t staged_bytes;          /* in memory */
	uint64_t journal_bytes;
	uint64_t applied_epoch;
	bool target;                    /* a copy is under way */
};
void ft_store_get_status(const struct ft_store *st, struct ft_store_status *out);

#endif
