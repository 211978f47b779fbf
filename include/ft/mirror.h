// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * mirror.h - the primary's end of the disk mirror: what the guest changed, kept until the backup has it.
 *
 * One thread reads the streams of all disks (export.h) into a log: in memory up to a bound, beyond it in an unlinked
 * file, so that reading never waits for the network. The encoder's threads take the log, epoch by epoch; it is freed when
 * the epoch is committed, and rewound when a session is resumed. A log that outgrows its file bound is dropped: the map
 * knows what was touched, and the next session copies that.
 *
 * Behind ops, so that the simulation can put disks of its own there. Loop thread only, except next.
 */
#ifndef FT_MIRROR_H
#define FT_MIRROR_H

#include "ft/disk.h"
#include "ft/diskfile.h"
#include "ft/output.h"

struct ft_mirror_status {               /* of one disk */
	uint64_t bytes;
	uint64_t behind;                /* bytes of ops that the backup has not acknowledged */
	uint64_t pending;               /* ops of them */
	uint64_t mirrored;              /* bytes of data handed over since start */
	uint64_t log_bytes;             /* in the log's file */
	uint64_t copy_done, copy_total; /* granules compared, of the copy of this session */
};

struct ft_mirror {
	const struct ft_mirror_ops *ops;
	/*
	 * Its lifecycle in ft_output's terms. setup: output is held, the guest's writes are nobody's but the mirror's.
	 * seal: guest stopped, disks drained; all completed ops are of @epoch. commit: frees the log up to @epoch.
	 * discard: the exports refuse every further write. teardown: fsync, a new generation; -EINPROGRESS: call again later.
	 */
	struct ft_output output;
	unsigned nr_disks;
	/* The owner's. Wake: something has changed that ask, copied, teardown or, while copying, pending(0) would tell. */
	void (*wake)(void *ctx);
	/* A disk is no longer mirrored completely. resumable is false until the next copy; the line is for the owner to log. */
	void (*broken)(void *ctx, const char *why);
	void *ctx;
};

struct ft_mirror_ops {
	/*
	 * At the start of a session: connects again to what was broken, so that the id is what the export now says, and
	 * waits for its word for at most a second. A disk that is not there is described as it was last; copy then fails.
	 */
	void (*describe)(struct ft_mirror *m, unsigned disk, struct ft_disk_id *out);
	/* The backup's map says that it may differ here. Before copy. */
	int (*theirs)(struct ft_mirror *m, unsigned disk, uint64_t region, const uint64_t *word, size_t nr) FT_MUST_CHECK;
	/*
	 * A new session: whatever is logged is forgotten (the maps have it as touched), and we start to compare: all of
	 * disk i with all[i], else what either map has as touched. -ENOTCONN: a disk has broken (describe connects).
	 */
	int (*copy)(struct ft_mirror *m, const bool *all) FT_MUST_CHECK;
	/* The next region whose hashes are wanted, when there is one and not too many are on their way. */
	bool (*ask)(struct ft_mirror *m, unsigned *disk, uint64_t *region, uint64_t *granules);
	/* They have come: FT_HASH_LEN for each bit of @granules. -EPROTO: nobody asked. */
	int (*hashes)(struct ft_mirror *m, unsigned disk, uint64_t region, uint64_t granules, const uint8_t *hash, size_t nr) FT_MUST_CHECK;
	/*
	 * Guest stopped, disks drained: FT_HASH_LEN for each of @granules of the image, ascending. Reads ahead what the next
	 * call will want.
	 */
	int (*digest)(struct ft_mirror *m, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out) FT_MUST_CHECK;
	bool (*copied)(const struct ft_mirror *m);      /* all regions compared, and what differed is in the log */
	/*
	 * Encoder's thread. The next DISK record body (disk.h) of an op of an epoch <= @upto that was not taken yet;
	 * @upto 0: of whatever is in the log now, sealed or not. 1: there is one, *len is its length in @body
	 * [FT_DISK_BODY_MAX]. 0: that was all. Waits for ops that were sealed but are still in the stream: -ETIMEDOUT.
	 * -EAGAIN: not yet, because the log's own file is slow; ask again.
	 */
	int (*next)(struct ft_mirror *m, uint64_t upto, uint8_t *body, size_t *len);
	bool (*pending)(struct ft_mirror *m, uint64_t upto);    /* would next have one? */
	/* The session is resumed: what epochs after @whole carried is taken again. No next runs meanwhile. -ESTALE: not resumable. */
	int (*rewind)(struct ft_mirror *m, uint64_t whole) FT_MUST_CHECK;
	/* Not before the first commit after copy: ops of the copy are freed as they are taken, or it would have to fit in the log. */
	bool (*resumable)(const struct ft_mirror *m);
	int (*durable)(struct ft_mirror *m, unsigned disk, uint64_t seq) FT_MUST_CHECK;        /* -EPROTO: never sent */
	void (*adopted)(struct ft_mirror *m);           /* the backup's first whole epoch of the session is acknowledged */
	/* While @on, flushes are answered from the mirror. Switched off the moment the session is lost. */
	void (*protect)(struct ft_mirror *m, bool on);
	void (*status)(const struct ft_mirror *m, unsigned disk, struct ft_mirror_status *out);
	void (*free)(struct ft_mirror *m);
};

struct ft_mirror_config {
	const char *guest;
	unsigned nr_disks;
	const char *control[FT_DISKS_MAX];      /* the exports' sockets */
	/*
	 * Their images: digest reads them, and one whose export has died is synced by us before teardown is through, as flushes
	 * may have been answered from the mirror. NULL: neither.
	 */
	const char *image[FT_DISKS_MAX];
	const char *map[FT_DISKS_MAX];          /* theirs: such a sync is noted there. NULL: it is not */
	bool read_only[FT_DISKS_MAX];           /* nobody writes to it, so there is nothing to sync */
	const struct ft_disk_files *files;      /* for syncs; NULL: real ones */
	size_t memory_bound;                    /* of the log, all disks; the rest in a file */
	uint64_t file_bound;
	const char *spill_dir;
	uint64_t rate_limit;                    /* bytes of the disks that a copy compares in a second; 0: no limit */
};
/*
 * Connects to the exports. Logs the disk that cannot be mirrored. Runs in the loop thread's poll: event_fd is readable
 * when wake or broken is due; then call ft_mirror_event. The mirror goes with output.free or ops.free, which are the same.
 */
int ft_mirror_new(const struct ft_mirror_config *cfg, struct ft_mirror **out) FT_MUST_CHECK;
int ft_mirror_event_fd(const struct ft_mirror *m);
void ft_mirror_event(struct ft_mirror *m);

/* --- for launchers and tests: one command, answered --- */
/* ACTIVATE the parked export at @control, which must answer within @timeout_ms. */
int ft_export_activate(const char *control, unsigned timeout_ms) FT_MUST_CHECK;
int ft_export_ask(const char *control, unsigned timeout_ms, struct ft_disk_id *out) FT_MUST_CHECK;

#endif
