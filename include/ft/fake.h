// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fake.h - a guest in process, deterministic from its seed, for tests and the simulation.
 *
 * The guest outlives whoever protects it, as a real one does. A simulation uses it like this:
 *
 *	ft_fake_guest_new(&cfg, &g);            the machine on the primary host
 *	ft_fake_on_send(g, packet, ctx);        each packet it sends, to be held by a fake ft_output
 *	ft_fake_attach(g, &vm);                 the ft_vm that the primary works with
 *	ft_fake_step(g);                        let it run for a moment (does nothing while paused)
 *	ft_fake_request(g, id);                 a client asks; the answer is a packet
 *	ft_fake_abandon(vm);                    the replicator was killed: the guest stays as it is
 *	ft_fake_resume(g);                      the guard lets it run on
 *
 *	ft_fake_replica_prepare(&cfg, &r);      the backup; ft_image writes into r->ram
 *	r->ops->start(r, &firmware, &state);    takeover: -EBADMSG unless RAM and state are of one instant
 *	ft_fake_replica_guest(r, &g2);          the guest that runs on from there, to be stepped and attached
 *
 * Its state knows a digest of its RAM and how many packets it has sent, so a replica of mixed epochs does
 * not start, and ft_fake_sent() of what did start must be at least the newest packet that was released.
 */
#ifndef FT_FAKE_H
#define FT_FAKE_H

#include "ft/hv.h"

struct ft_fake_config {
	uint64_t nr_pages;
	uint64_t seed;
};

struct ft_fake_guest;
int ft_fake_guest_new(const struct ft_fake_config *cfg, struct ft_fake_guest **out) FT_MUST_CHECK;
void ft_fake_guest_free(struct ft_fake_guest *g);               /* NULL is fine; close or abandon its ft_vm first */

/* Runs: writes whole pages, words, zeros, copies, the same once more; now and then sends a packet. */
void ft_fake_step(struct ft_fake_guest *g);
/* One write of the guest's own, for tests that need a certain page written. */
void ft_fake_write(struct ft_fake_guest *g, uint64_t page, size_t offset, const void *data, size_t len);
/* Packet @seq (1, 2, ...) leaves the guest. It answers request @id; 0: it was sent unasked. */
typedef void ft_fake_packet(void *ctx, uint64_t seq, uint64_t id);
void ft_fake_on_send(struct ft_fake_guest *g, ft_fake_packet *packet, void *ctx);
/* @id (not 0) is in RAM for good, and a packet answers it. False: paused, powered off or gone. */
bool ft_fake_request(struct ft_fake_guest *g, uint64_t id);
uint64_t ft_fake_sent(const struct ft_fake_guest *g);           /* packets so far, in the life before a takeover too */
uint64_t ft_fake_last_request(const struct ft_fake_guest *g);   /* the newest id answered; 0: none */
/* Digest of RAM (read anew) and state as they are now: what P2 compares. */
uint64_t ft_fake_digest(struct ft_fake_guest *g);

bool ft_fake_running(const struct ft_fake_guest *g);
void ft_fake_resume(struct ft_fake_guest *g);                   /* somebody else's `cont` */
void ft_fake_pause(struct ft_fake_guest *g);                    /* somebody else's `stop`: FT_VM_PAUSED_BY_OTHER */
/* Somebody else reads which pages are written, until @contended is false: what was written is lost to us. */
void ft_fake_contend(struct ft_fake_guest *g, bool contended);
/* SHUTDOWN: it runs no more. RESET: RAM as at the start. GONE: every op fails with -EPIPE. */
void ft_fake_event(struct ft_fake_guest *g, enum ft_vm_event event);

/* Called before each op; what it returns, unless 0, is the op's result and the op does nothing. */
enum ft_fake_op {
	FT_FAKE_TRACK, FT_FAKE_PAUSE, FT_FAKE_STATE_BEGIN, FT_FAKE_STATE_END, FT_FAKE_TAKE_DIRTY, FT_FAKE_RESUME,
	FT_FAKE_FIRMWARE, FT_FAKE_START, FT_FAKE_DRILL,
	FT_FAKE_DESTROY,                /* of a replica, detached or not: happens whatever is returned */
};
typedef int ft_fake_hook(void *ctx, enum ft_fake_op op);
void ft_fake_on_op(struct ft_fake_guest *g, ft_fake_hook *hook, void *ctx);

/* One attachment at a time: -EBUSY. vm->ops->close lets the guest run on; abandon does not even do that. */
int ft_fake_attach(struct ft_fake_guest *g, struct ft_vm **out) FT_MUST_CHECK;
void ft_fake_abandon(struct ft_vm *vm);

/* @cfg as the guest's. drill_start's fd is readable at once; the drill fails when RAM changes before drill_end. */
int ft_fake_replica_prepare(const struct ft_fake_config *cfg, struct ft_replica **out) FT_MUST_CHECK;
void ft_fake_replica_on_op(struct ft_replica *r, ft_fake_hook *hook, void *ctx);
void ft_fake_replica_kill(struct ft_replica *r);                /* the parked process dies: watch_fd becomes readable */
/* After start, once: the guest that runs now. The caller frees it. It lives on its own copy of RAM. */
struct ft_fake_guest *ft_fake_replica_guest(struct ft_replica *r);
uint64_t ft_fake_replica_digest(const struct ft_replica *r, const struct ft_blob *state);

#endif
