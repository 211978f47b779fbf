// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary_priv.h - what primary.c (sessions, requests), primary_epoch.c (the epoch loop) and primary_disks.c share.
 */
#ifndef FT_PRIMARY_PRIV_H
#define FT_PRIMARY_PRIV_H

#include "ft/primary.h"
#include "policy.h"

#define IN_FLIGHT_MAX 16u

/* A sealed epoch that the backup has not acknowledged. */
struct in_flight {
	uint64_t epoch;
	uint64_t sealed_ns;
	struct ft_bitmap pages;         /* what it carries: carried over if it is lost with its link */
};

/* A request of the operator that has not been answered. */
struct pending {
	ft_primary_done *done;
	void *ctx;
};

#define FT_VERIFY_REGIONS 4u                    /* of a disk, hashed in one pause: 16 MB */

struct ft_disk_verify {
	bool on;
	bool asked;                             /* for the slice */
	int rc;                                 /* ours could not be read */
	unsigned disk, nr, answered;            /* the slice: regions */
	uint64_t region;
	unsigned late;                          /* answers that nobody waits for any more */
	uint64_t differing[FT_DISKS_MAX], first[FT_DISKS_MAX];
	uint8_t hash[FT_VERIFY_REGIONS][FT_REGION_GRANULES * FT_HASH_LEN];
};

struct ft_primary {
	struct ft_primary_config cfg;
	const struct ft_primary_ops *ops;       /* = cfg.ops */
	struct ft_vm *vm;                       /* = cfg.vm */
	enum ft_primary_state state;
	struct ft_record record;                /* as it is on disk */

	/* session */
	uint64_t generation;                    /* of this session */
	uint8_t session[16];                    /* zero: none to resume */
	bool link;                              /* up, or on its way */
	bool talking;                           /* link_up came */
	uint64_t heard_ns;                      /* the backup's last record */
	bool standing;                          /* WELCOME was accepted, heartbeats run */
	bool maybe_armed;                       /* the backup may hold a whole epoch of ours: it may take over */
	bool refusal_logged;
	bool direct;                            /* the backup has nothing that a full copy could spoil */
	uint64_t reconnect_ns, reconnect_delay_ns, cut_ns, ping_ns, look_ns;
	uint32_t silence_ms;                    /* the backup's window */

	/* epochs: released <= acked <= epoch */
	uint64_t epoch, acked, released;
	bool release_waits;                     /* acked > released, the lease is stale */
	struct in_flight flight[IN_FLIGHT_MAX];
	unsigned nr_flight;                     /* oldest first */
	struct ft_bitmap dirty;                 /* to be captured by the next epoch, beyond what the tracker says */
	bool tracking;
	struct ft_pacer pacer;
	struct ft_chunk_sink sink;
	bool sync_through;                      /* the rounds of a full copy are over, its epoch is not */
	bool stopping;                          /* the guest is being paused, which may take a while */
	struct in_flight *filling;              /* the epoch being captured, for the sink */
	uint64_t chunk_ns;                      /* the pause word was refreshed then */

	/* the full copy of a new session */
	uint64_t cursor, sync_total, sync_done;
	uint64_t sync_epoch;                    /* the epoch that carries it */
	bool resumed;                           /* since then the session went over to another connection */
	uint32_t batch;
	unsigned round;
	bool round_over;                        /* all of it is copied, not all of it is encoded */

	/* disks */
	struct ft_disk_id disk_id[FT_DISKS_MAX];        /* as DISKS said */
	bool disk_all[FT_DISKS_MAX];            /* to be compared completely */
	bool disks_greeted;                     /* DISKS is out */
	bool disks_copying;                     /* in the full copy, before memory */
	bool disks_adopted;

	/* output */
	bool holding;                           /* setup has succeeded: nothing leaves unacknowledged */
	bool breached;                          /* ... but holding is not complete: shut until setup again */
	uint64_t breach_retry_ns;
	struct ft_log_limit hold_log, breach_log, alone_log, disks_log;
	bool breach_logged;                     /* the newest one: then its end is, too */
	bool leaving;                           /* disks are being synced: then the output opens, and this: */
	enum ft_primary_end leave_end;
	char leave_why[160];
	bool frozen;                            /* policy freeze: paused because we are cut off */

	/* requests and what they wait for */
	struct pending unprotect, failover, drill, verify;
	bool disarm_sent, drilling;
	bool handover_sent;                     /* the backup may run the guest, until a WELCOME says that it does not */
	bool first_drill_done;
	bool survivor;                          /* our record said RUNNING when the session began */
	bool disarmed;                          /* the peer has promised, and knows by that whose the guest is */
	bool guest_ended;                       /* nothing to capture any more: it powered off, or */
	bool crashed;                           /* its process died */
	uint64_t outrun_by;                     /* != 0: the generation under which the backup ran the guest on; ours is old */
	uint64_t final_epoch;                   /* planned failover: the last one */
	uint64_t verify_epoch;                  /* != 0: no later epoch until VERIFIED */
	struct ft_blob verify_body;
	struct ft_disk_verify verify_disks;
	unsigned verify_tries;                  /* comparisons of memory so far */
	bool verify_differs;                    /* memory did */
	char verify_line[160 + 96 * FT_DISKS_MAX];

	struct ft_samples pause, ack;
	uint64_t interval_ns, bytes_dirty;
	struct ft_capture_stats last_capture;
};

/* DRILLING, and the session's first epoch is acknowledged: the backup has a whole replica. */
static inline bool ft_primary_first_acked(const struct ft_primary *p)
{
	return p->state == FT_PRIMARY_DRILLING && p->acked >= p->sync_epoch;
}

/* --- primary_epoch.c --- */
int ft_primary_track(struct ft_primary *p) FT_MUST_CHECK;
/* Pause the guest, in a pause that is ours; ops->resumed ends it. */
int ft_primary_stop(struct ft_primary *p) FT_MUST_CHECK;
void ft_primary_still_pausing(void *ctx);       /* vm->busy */
/* Start the full copy of a new session; slices follow at each tick. */
int ft_primary_sync_begin(struct ft_primary *p, bool direct) FT_MUST_CHECK;
int ft_primary_sync_slice(struct ft_primary *p) FT_MUST_CHECK;         /* 1: the copy is through, the epoch was taken */
/* One epoch; with @last the guest stays paused. */
bool ft_primary_backlog(const struct ft_primary *p);
int ft_primary_take_epoch(struct ft_primary *p, bool last) FT_MUST_CHECK;
bool ft_primary_may_take_epoch(const struct ft_primary *p);
void ft_primary_on_ack(struct ft_primary *p, uint64_t epoch);
void ft_primary_try_release(struct ft_primary *p);
/* The link is gone, the backup's last whole epoch is @whole: older ones count as acknowledged, the rest is dirty. */
int ft_primary_flight_lost(struct ft_primary *p, uint64_t whole) FT_MUST_CHECK;
int ft_primary_hold(struct ft_primary *p) FT_MUST_CHECK;               /* close the output (again) */

/* --- primary_disks.c --- */
int ft_primary_disks_greet(struct ft_primary *p) FT_MUST_CHECK;
void ft_primary_on_disk_map(struct ft_primary *p, const uint8_t *body, size_t len);
/* 0: ours may be copied. -EPERM: our data must not be copied over theirs, @why says so. */
int ft_primary_on_disks_here(struct ft_primary *p, const uint8_t *body, size_t len, char *why, size_t size) FT_MUST_CHECK;
int ft_primary_disks_begin(struct ft_primary *p) FT_MUST_CHECK;
int ft_primary_disks_slice(struct ft_primary *p) FT_MUST_CHECK;
void ft_primary_on_disk_hashes(struct ft_primary *p, const uint8_t *body, size_t len);
void ft_primary_on_disk_durable(struct ft_primary *p, const uint8_t *body, size_t len);
int ft_primary_carry_disks(struct ft_primary *p, uint64_t epoch) FT_MUST_CHECK;        /* sealed, before its end */
void ft_primary_disks_adopted(struct ft_primary *p);
void ft_primary_disks_state(struct ft_primary *p, enum ft_primary_state to);

/* --- primary_verify.c: disks, once memory has been compared --- */
void ft_primary_verify_disks(struct ft_primary *p);             /* begin */
void ft_primary_verify_paused(struct ft_primary *p);            /* in an epoch's pause: hash the next slice */
int ft_primary_verify_ask(struct ft_primary *p) FT_MUST_CHECK;  /* that epoch is acknowledged */
int ft_primary_verify_hashes(struct ft_primary *p, const uint8_t *body, size_t len) FT_MUST_CHECK;      /* 1: that was the last */
void ft_primary_verify_stop(struct ft_primary *p, bool link_lost);
/* Appends what came of each disk. True: all are equal. */
bool ft_primary_verify_result(const struct ft_primary *p, char *buf, size_t size);

/* --- primary.c --- */
void ft_primary_drop_link(struct ft_primary *p, const char *why);

static inline uint64_t primary_now(const struct ft_primary *p)
{
	return p->ops->now_ns(p->cfg.ctx);
}

#endif
