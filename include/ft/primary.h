// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary.h - the primary's half of the protocol: sessions, epochs, output commit, standing down.
 *
 * A state machine without I/O of its own: time, the link, the right to speak and the pause word come through
 * ops, the guest through ft_vm, held output through ft_output. ft-protect gives it libev, TLS and QEMU; the
 * simulation a virtual clock and fakes. One thread calls all of it.
 */
#ifndef FT_PRIMARY_H
#define FT_PRIMARY_H

#include "ft/base.h"
#include "ft/capture.h"
#include "ft/conf.h"
#include "ft/encode.h"
#include "ft/hv.h"
#include "ft/mirror.h"
#include "ft/output.h"
#include "ft/record.h"
#include "ft/samples.h"
#include "ft/wire.h"

enum ft_primary_state {
	FT_PRIMARY_CONNECTING,          /* no session yet */
	FT_PRIMARY_GREETING,            /* HELLO is out */
	FT_PRIMARY_PREPARING,           /* the backup builds the replica */
	FT_PRIMARY_SYNCING,             /* first full copy; output open the first time, held after that */
	FT_PRIMARY_DRILLING,            /* epochs run; the copy is not acknowledged, or the first drill has not answered */
	FT_PRIMARY_PROTECTED,
	FT_PRIMARY_CUT_OFF,             /* no session: output shut, reconnecting */
	FT_PRIMARY_ALONE,               /* policy `continue`: peer lost, output open, unprotected, reconnecting */
	FT_PRIMARY_DISARMING,           /* DISARM is out: output stays held until DISARMED */
	FT_PRIMARY_HANDING_OVER,        /* planned failover, or our QEMU died */
	FT_PRIMARY_ENDED,
};
const char *ft_primary_state_name(enum ft_primary_state s);

enum ft_primary_end {                   /* also ft-protect's exit statuses */
	FT_END_OK = 0,                  /* unprotected in order, or the guest powered off */
	FT_END_INTERNAL = 1,
	FT_END_OBSTACLE = 3,            /* cannot be protected: guest or host; nothing was changed */
	FT_END_REFUSED = 4,             /* the backup is unreachable or refuses, before protection began */
	FT_END_TAKEN_OVER = 5,          /* the backup runs the guest now; ours was stopped */
};

struct ft_primary;

/* @ctx everywhere: ft_primary_config.ctx. */
struct ft_primary_ops {
	uint64_t (*now_ns)(void *ctx);
	/* Call ft_primary_tick at @at_ns. One timer; a new time replaces the old one. */
	void (*timer)(void *ctx, uint64_t at_ns);
	/* Start connecting: ft_primary_link_up or _down follows. */
	int (*connect)(void *ctx);
	/* Drop the link; no callback for it comes any more. */
	void (*disconnect)(void *ctx);
	/* A control record, in order with the encoder's. */
	int (*send)(void *ctx, uint32_t type, const void *body, size_t len);
	/*
	 * A session stands: start heartbeats to the UDP port of @w in place of the session's before, and let the
	 * lease open the gate again. They go on while the link is down: a broken connection is not a dead host.
	 */
	int (*beat)(void *ctx, const struct ft_wire_welcome *w);
	/* No more heartbeats: the guest is gone, the backup is to take over, or has no part in it any more. */
	void (*beat_stop)(void *ctx);
	/* Is the lease fresh? Asked just before each release. */
	bool (*may_speak)(void *ctx);
	/* Shut the kernel gate (the backup may speak from now on), whatever the lease says, until the next beat. */
	void (*hush)(void *ctx);
	/*
	 * The pause word: pausing before the guest is paused, and now and then while it is; resumed after it was let
	 * run. -ECANCELED: the guard was faster, what was captured is void.
	 */
	void (*pausing)(void *ctx);
	int (*resumed)(void *ctx);
	/* A round-trip on the TLS link proves the same as a heartbeat's echo. */
	void (*echoed)(void *ctx, uint64_t sent_ns);
	void (*changed)(void *ctx, enum ft_primary_state from, enum ft_primary_state to, const char *why);
	void (*ended)(void *ctx, enum ft_primary_end end, const char *why);
};

struct ft_primary_config {
	const char *guest, *peer;
	struct ft_vm *vm;
	struct ft_staging *staging;
	struct ft_encoder *encoder;
	unsigned nr_outputs;
	struct ft_output *output[4];    /* torn down in this order, until one fails */
	struct ft_mirror *mirror;       /* NULL: a guest without disks. Its output is one of those above, the first */
	struct ft_policy policy;
	unsigned vcpus;
	const char *spec_text;          /* canonical guest spec */
	const char *facts;              /* "key=value\n" */
	const struct ft_file_ops *files;/* NULL: real ones */
	const char *state_dir;
	bool output_shut;               /* a dead predecessor left our rules in place */
	const struct ft_primary_ops *ops;
	void *ctx;
};

/* Borrows everything in @cfg until free. */
int ft_primary_new(const struct ft_primary_config *cfg, struct ft_primary **out) FT_MUST_CHECK;
/* The guest is left running, output as shut as it is: what a crash would leave, in order. NULL is fine. */
void ft_primary_free(struct ft_primary *p);
/* Load the durable record and connect. */
int ft_primary_start(struct ft_primary *p) FT_MUST_CHECK;

/*
 * A HELLO for @cfg's guest, with flags, generation, nr_pages and session of @h. ft_primary sends its own; with
 * FT_HELLO_CHECK it is how to ask without a session. The caller frees @out.
 */
int ft_primary_hello(const struct ft_primary_config *cfg, const struct ft_wire_hello *h, struct ft_blob *out) FT_MUST_CHECK;

/* --- events --- */
void ft_primary_tick(struct ft_primary *p);
void ft_primary_link_up(struct ft_primary *p);
void ft_primary_link_down(struct ft_primary *p, int rc, const char *why);
void ft_primary_record(struct ft_primary *p, uint32_t type, const uint8_t *body, size_t len);
void ft_primary_held(struct ft_primary *p);                     /* an output holds something new */
void ft_primary_breach(struct ft_primary *p, const char *why);  /* an output is no longer complete */
void ft_primary_guest_event(struct ft_primary *p);              /* vm->event_fd */
void ft_primary_mirror_broken(struct ft_primary *p, const char *why);

/* --- requests of the operator. Answered once through @done (rc 0, or -errno and a line). --- */
typedef void ft_primary_done(void *ctx, int rc, const char *text);
int ft_primary_unprotect(struct ft_primary *p, ft_primary_done *done, void *ctx) FT_MUST_CHECK;
/* Only while the backup does not answer: the operator says that it is dead for good. Output opens at once. -EISCONN. */
int ft_primary_give_up_backup(struct ft_primary *p, ft_primary_done *done, void *ctx) FT_MUST_CHECK;
int ft_primary_failover(struct ft_primary *p, ft_primary_done *done, void *ctx) FT_MUST_CHECK;
int ft_primary_drill(struct ft_primary *p, ft_primary_done *done, void *ctx) FT_MUST_CHECK;
int ft_primary_verify(struct ft_primary *p, ft_primary_done *done, void *ctx) FT_MUST_CHECK;

struct ft_primary_status {
	enum ft_primary_state state;
	uint64_t generation, epoch, acked_epoch;
	unsigned in_flight;
	uint64_t interval_ns;           /* recent: from resume to resume */
	uint64_t dirty_pages;           /* of the last epoch */
	uint64_t bytes_dirty;           /* since start */
	uint64_t sync_done, sync_total; /* pages of the first full copy */
	const struct ft_samples *pause, *ack;
	bool holding, breached;
};
void ft_primary_get_status(const struct ft_primary *p, struct ft_primary_status *out);

#endif
