// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * backup.h - the backup's half of the protocol: admit a primary, keep whole epochs, judge silence, take over.
 *
 * A state machine without I/O of its own, one per guest, linked unchanged into ftd's child and into the
 * simulation. It outlives connections: a link comes and goes, the replica stays. One thread calls all of it.
 */
#ifndef FT_BACKUP_H
#define FT_BACKUP_H

#include "ft/base.h"
#include "ft/hv.h"
#include "ft/image.h"
#include "ft/record.h"
#include "ft/store.h"
#include "ft/wire.h"

enum ft_backup_state {
	FT_BACKUP_EMPTY,                /* nothing that could be started */
	FT_BACKUP_SYNCING,              /* a session is copying; what could be started before still can */
	FT_BACKUP_ARMED,                /* a whole epoch: takes over on silence */
	FT_BACKUP_RUNNING,              /* took over */
	FT_BACKUP_DISARMED,             /* promised never to start it */
};
const char *ft_backup_state_name(enum ft_backup_state s);

/* @ctx everywhere: ft_backup_config.ctx. */
struct ft_backup_ops {
	uint64_t (*now_ns)(void *ctx);
	void (*timer)(void *ctx, uint64_t at_ns);       /* one timer: ft_backup_tick */
	int (*send)(void *ctx, uint32_t type, const void *body, size_t len);
	void (*disconnect)(void *ctx);                  /* after what was sent; no callback for that link comes any more */
	void (*random)(void *ctx, uint8_t *buf, size_t len);
	uint32_t (*silence_ms)(void *ctx);              /* the window for sessions that start now */
	/*
	 * Heartbeats of a new session, keyed by the link. Those of the session before are answered and count until
	 * they fall silent: the primary changes over when WELCOME has reached it.
	 */
	int (*echo_start)(void *ctx, const uint8_t session[16], uint32_t silence_ms, uint16_t *port);
	void (*echo_arm)(void *ctx);                    /* the silence window starts now */
	void (*echo_stop)(void *ctx);                   /* answer no heartbeat any more */
	void (*life)(void *ctx);                        /* an authenticated record came */
	bool (*silent)(void *ctx);                      /* ft_echo_try_takeover */
	/*
	 * May this peer replicate this guest, and do its spec and facts fit this host? FT_REASON_OK, or the reason
	 * and one line in @why. Checks only; builds nothing.
	 */
	enum ft_wire_reason (*admit)(void *ctx, const struct ft_wire_hello *h, const char *spec, const char *facts,
				     char *why, size_t size);
	bool (*runs_here)(void *ctx);                   /* this host runs the guest itself */
	/* What admit cannot know: room, a hypervisor. As prepare would answer, building nothing. */
	enum ft_wire_reason (*could_prepare)(void *ctx, char *why, size_t size);
	unsigned (*nr_disks)(void *ctx);                /* of the guest that was admitted */
	/*
	 * Open its disks here, of the sizes of @theirs [nr_disks]. FT_REASON_OK, or why not. Watch its event fd:
	 * ft_backup_store_event.
	 */
	enum ft_wire_reason (*open_store)(void *ctx, const struct ft_disk_id *theirs, struct ft_store **out, char *why,
					  size_t size);
	void (*close_store)(void *ctx, struct ft_store *st);    /* ... no more, and free it */
	/* Build and park the replica. FT_REASON_OK, or why not. Watch its watch_fd: ft_backup_replica_died. */
	enum ft_wire_reason (*prepare)(void *ctx, struct ft_replica **out, char *why, size_t size);
	/* Poll @fd (a drill's): ft_backup_drilled. -1: no more. */
	void (*watch_drill)(void *ctx, int fd);
	/* The guest runs here now: tell the network, and whoever is asked. The replica was detached. */
	void (*took_over)(void *ctx, uint64_t generation, uint64_t epoch);
	void (*changed)(void *ctx, enum ft_backup_state from, enum ft_backup_state to, const char *why);
};

struct ft_backup_config {
	const char *guest;
	const struct ft_file_ops *files;        /* NULL: real ones */
	const char *state_dir;
	size_t staging_bound;
	uint64_t tick_ns;                       /* how often to judge silence */
	const struct ft_backup_ops *ops;
	void *ctx;
};

struct ft_backup;

/* Loads the durable record. */
int ft_backup_new(const struct ft_backup_config *cfg, struct ft_backup **out) FT_MUST_CHECK;
void ft_backup_free(struct ft_backup *b);       /* a parked replica is destroyed, a running one stays; NULL is fine */

/* --- events --- */
void ft_backup_tick(struct ft_backup *b);
/* May @peer's new link replace the present one? Not while another peer's session is alive. */
bool ft_backup_may_link(const struct ft_backup *b, const char *peer);
void ft_backup_link_up(struct ft_backup *b, const char *peer);  /* replaces a present one */
void ft_backup_link_down(struct ft_backup *b, const char *why);
void ft_backup_record(struct ft_backup *b, uint32_t type, const uint8_t *body, size_t len);
/*
 * What WELCOME would say to a HELLO with FT_HELLO_CHECK, from any link: opens no session, replaces none. Returns the
 * length of the WELCOME body in @out.
 */
size_t ft_backup_check(struct ft_backup *b, const uint8_t *hello, size_t len, uint8_t out[FT_WIRE_WELCOME_MAX]);
void ft_backup_replica_died(struct ft_backup *b);
void ft_backup_drilled(struct ft_backup *b);
void ft_backup_store_event(struct ft_backup *b);

/* --- the operator, on the backup --- */
/*
 * Start the replica whatever the primary does, once its lease has ended. 0: @done is called, once, with the outcome;
 * -ENODATA: there is nothing to start; -EBUSY: on its way already.
 */
typedef void ft_backup_done(void *ctx, int rc);
int ft_backup_force(struct ft_backup *b, ft_backup_done *done, void *ctx) FT_MUST_CHECK;
/*
 * The guest lives elsewhere: what is here is never started any more, durably. -EBUSY: the primary is connected (it must end the
 * protection) or the replica is being started; -ENODATA: there is nothing.
 */
int ft_backup_give_up(struct ft_backup *b) FT_MUST_CHECK;

struct ft_backup_status {
	enum ft_backup_state state;
	uint64_t generation, epoch, applied_epoch;
	const char *peer;
	bool linked, drilling;
	size_t staging_bytes;
	uint64_t epochs;                /* acknowledged since start */
	const struct ft_store *store;   /* NULL: no disks, or none open */
};
void ft_backup_get_status(const struct ft_backup *b, struct ft_backup_status *out);

#endif
