// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * sim_world.h - the simulated world, as the files of tests/sim share it. sim.h says what it is for.
 */
#ifndef FT_SIM_WORLD_H
#define FT_SIM_WORLD_H

#include "sim.h"

#include "ft/backup.h"
#include "ft/codec.h"
#include "ft/detector.h"
#include "ft/fake.h"
#include "ft/image.h"
#include "ft/mirror.h"
#include "ft/primary.h"
#include "tests/lib/forgetful.h"
#include <stdio.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#define PAGES 48u
#define SILENCE_NS (300 * FT_MS_NS)
#define BEAT_NS (30 * FT_MS_NS)
#define PAUSE_LIMIT_NS (1000 * FT_MS_NS)
#define EPOCHS_MAX 8192u
#define DISK_BYTES (8 * FT_GRANULE)

/* --- the virtual clock: events in order of time, then of creation --- */

struct sim;
typedef void event_fn(struct sim *s, uint64_t arg);

struct event {
	struct event *next;
	uint64_t at, order;
	event_fn *fn;
	uint64_t arg;
};

/* A process: what happens to it waits while it is stalled, and is forgotten when it dies. */
struct proc {
	const char *name;
	bool up;
	uint64_t life;                  /* counts incarnations: events of an older one are void */
	uint64_t stalled_until;
	uint64_t doom;                  /* dies at this op from now; 0: does not */
	bool copied;                    /* a full copy was sent in this session */
	bool doomed;                    /* dead already, its code is still unwinding: its ops do nothing */
};

struct packet {
	struct packet *next;
	uint64_t seq, id, epoch;        /* epoch 0: not sealed yet */
};

struct message {
	struct message *next;
	uint64_t at;
	uint32_t type;
	size_t len;
	uint8_t *body;
};

struct wire {                           /* one direction of a connection */
	struct message *first, **last;
	uint64_t last_at;
	bool pumping;
};

struct sim {
	uint64_t now, order, rng;
	struct event *events;
	enum sim_mutant mutant;
	bool trace, calm;
	uint64_t longer;                /* this life takes so much more, for one fault's sake */
	struct sim_result *res;

	/* network between the hosts */
	bool cut_ab, cut_ba;
	bool conn;                      /* a TLS connection stands */
	uint64_t conn_id;
	struct wire to_b, to_a;

	/* host alpha: the kernel */
	bool a_host_up, a_ever_cut;
	struct ft_fake_guest *guest;
	bool shut;                      /* hold rules and gate are in place */
	uint64_t fresh_until;
	struct packet *held;
	uint32_t pause_word;
	uint64_t paused_ns;
	struct ft_blob a_record;

	/* ... and its disk's export */
	uint8_t disk[DISK_BYTES];
	uint64_t disk_seq, disk_touched;        /* granules */
	uint64_t disk_last[DISK_BYTES / FT_GRANULE];    /* the op that wrote to each last */
	struct ft_disk_id disk_id;
	bool disk_seen;                 /* what is written is seen without the mirror: a new generation */

	/* ft-protect */
	struct proc a;
	struct ft_mirror *mirror;
	struct ft_vm *vm;
	struct ft_staging *staging;
	struct ft_encoder *encoder;
	struct ft_primary *primary;
	struct ft_output output;
	struct ft_lease lease;
	bool beating, hushed, a_link, ended;
	bool a_in_stall;                /* in the middle of a pause: nobody may call it earlier, or later */
	enum ft_primary_end end;
	uint64_t beat_session;

	/* guard */
	struct proc g;
	bool g_beating;
	uint64_t g_session;

	/* host beta: ftd's child */
	struct proc b;
	struct ft_backup *backup;
	struct ft_replica *replica;     /* the backup's, as long as it has one */
	struct ft_silence silence;
	bool echoing, armed, b_link, accepting;
	uint64_t echo_session;
	uint64_t old_session;           /* != 0: of the session before, until it falls silent */
	struct ft_silence old_silence;
	struct ft_fake_guest *b_guest;  /* took over */
	struct ft_blob b_record;
	struct forgetful *b_files;      /* its image, map and journal */
	bool journal;                   /* durability of the store */
	struct ft_store *store;         /* borrowed from backup */

	/* what is known to the all-seeing */
	uint64_t digest[EPOCHS_MAX], disk_digest[EPOCHS_MAX], sent_at[EPOCHS_MAX];
	uint64_t remembered;            /* the newest of these; 0: none of this ft-protect */
	uint64_t epoch_base;            /* epochs of ft-protects that died */
	uint64_t acked_sent;            /* packets contained in the newest acknowledged epoch */
	uint64_t out_max;               /* newest packet that left alpha */
	uint64_t answered;              /* newest request whose answer the client has */
	uint64_t next_request;
	bool open_allowed;              /* unprotected by right: before, or after DISARMED */
	bool excuse;                    /* somebody had a reason to take over */
	bool go_on;                     /* policy `continue` */
	bool forced;                    /* the operator forced beta: what he risked is his */
	bool b_ended;                   /* beta's guest powered off after its takeover: the guest is no more */
	bool crashed;                   /* the guest, before it was protected for the first time */
	bool survivor;                  /* alpha's record said RUNNING when its ft-protect started */
	bool promised;                  /* beta has promised to stay down: protection was ended in order */
	bool ever_armed;                /* before that beta can promise nothing */
	bool was_alone;                 /* ... was needed: what beta has is old, and nobody may force it */
	uint64_t fault_until;           /* one fault at a time */
};

struct store {
	struct sim *s;
	struct ft_blob *blob;
	struct proc *owner;
	struct ft_blob tmp;
};

/* The liar's ledger: what went out of this epoch, so that its end can be forged to fit. */
struct sim_forge {
	XXH3_state_t sum;
	uint64_t blocks, pages;
	struct ft_codec *cd;
};

/* --- sim_clock.c --- */
void sim_after(struct sim *s, uint64_t ns, event_fn *fn, uint64_t arg);
bool sim_awake(struct sim *s, struct proc *p, event_fn *fn, uint64_t arg);
void sim_broken(struct sim *s, const char *fmt, ...) FT_PRINTF(2, 3);
bool sim_dies_here(struct sim *s, struct proc *p);
uint64_t sim_rnd(struct sim *s, uint64_t n);
void sim_run_until(struct sim *s, uint64_t until);
void sim_trace(struct sim *s, const char *fmt, ...) FT_PRINTF(2, 3);

/* --- sim_net.c --- */
void sim_conn_break(struct sim *s, uint64_t a_ns, uint64_t b_ns);
uint64_t sim_delay(struct sim *s);
void sim_pump_to_a(struct sim *s, uint64_t id);
void sim_pump_to_b(struct sim *s, uint64_t id);
void sim_capture_connection(void);      /* a new one, in the capture that is under way */
void sim_transmit(struct sim *s, struct wire *w, event_fn *pump, uint32_t type, const void *body, size_t len);
void sim_wire_clear(struct wire *w);

/* --- sim_disk.c --- */
extern struct store sim_store_a, sim_store_b;
extern const struct ft_file_ops sim_files_a, sim_files_b;

/* --- sim_disks.c --- */
uint64_t sim_disk_digest(const uint8_t *disk);
uint64_t sim_beta_disk_digest(struct sim *s);
void sim_guest_writes(struct sim *s);
struct ft_mirror *sim_mirror_new(struct sim *s);
int sim_encoder_disks(void *ctx, uint64_t upto, uint8_t *body, size_t *len);
void sim_store_syncs(struct sim *s);
void sim_close_store(void *ctx, struct ft_store *st);
enum ft_wire_reason sim_open_store(void *ctx, const struct ft_disk_id *theirs, struct ft_store **out, char *why, size_t size);

/* --- sim_kernel.c --- */
void sim_alpha_sends(void *ctx, uint64_t seq, uint64_t id);
void sim_beat_arrives_a(struct sim *s, uint64_t sent_ns);
void sim_beta_sends(void *ctx, uint64_t seq, uint64_t id);
void sim_drop_held(struct sim *s);
void sim_guard_start(struct sim *s, uint64_t unused);
void sim_protect_beats(struct sim *s, uint64_t life);
void sim_seen(struct sim *s, bool from_alpha, uint64_t seq, uint64_t id);
extern const struct ft_output_ops sim_output_ops;

/* --- sim_alpha.c --- */
void sim_a_link_down(struct sim *s, uint64_t id);
void sim_alpha_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len);
void sim_alpha_settle(struct sim *s);
uint64_t sim_op_now(void *ctx);
void sim_protect_free(struct sim *s, bool killed);
void sim_protect_start(struct sim *s, uint64_t unused);
int sim_vm_hook(void *ctx, enum ft_fake_op op);
extern struct sim_forge sim_forge;

/* --- sim_beta.c --- */
void sim_accept_conn(struct sim *s, uint64_t id);
void sim_b_link_down(struct sim *s, uint64_t id);
void sim_beta_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len);
void sim_beta_settle(struct sim *s);
void sim_child_free(struct sim *s);
extern const struct ft_fake_config sim_machine;

/* --- sim_monkey.c --- */
void sim_client_asks(struct sim *s, uint64_t unused);
void sim_guests_run(struct sim *s, uint64_t unused);
void sim_monkey(struct sim *s, uint64_t unused);
void sim_power_off_alpha(struct sim *s, uint64_t unused);
void sim_guest_ends_on_beta(struct sim *s, uint64_t unused);

#endif
