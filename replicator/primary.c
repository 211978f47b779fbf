// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * primary.c - sessions, lifecycle and requests of the primary; see ft/primary.h. The epoch loop itself is
 * in primary_epoch.c. Functions stand in the order in which a protection runs through them.
 */
#include "primary_priv.h"

#include "ft/image.h"
#include <stdio.h>

#define RECONNECT_MIN_NS (100 * FT_MS_NS)
#define RECONNECT_MAX_NS (1000 * FT_MS_NS)
#define PINGS 6u                        /* in a silence; at most one each 50 ms */
#define BREACH_RETRY_NS (200 * FT_MS_NS)
#define RELEASE_RETRY_NS (5 * FT_MS_NS)
#define LOOK_NS (50 * FT_MS_NS)
#define DISKS_NS (10 * FT_MS_NS)        /* the mirror wakes us; this is for what it cannot know, room in the encoder */
#define BACKLOG_RETRY_NS (5 * FT_MS_NS)
#define VERIFY_TRIES 5                  /* comparisons that have to differ, where back ends write a paused guest's memory */
#define UNANSWERED_NS (10 * FT_S_NS)    /* pings go out; a backup that hangs, not one that is busy */
#define UNPREPARED_NS (60 * FT_S_NS)    /* while it starts the replica, or compares */
#define UNBUILT_NS (240 * FT_S_NS)      /* while it builds it: a toolstack has the memory of a large domain scrubbed */

const char *ft_primary_state_name(enum ft_primary_state s)
{
	static const char *const name[] = {
		[FT_PRIMARY_CONNECTING] = "CONNECTING", [FT_PRIMARY_GREETING] = "GREETING",
		[FT_PRIMARY_PREPARING] = "PREPARING", [FT_PRIMARY_SYNCING] = "SYNCING",
		[FT_PRIMARY_DRILLING] = "DRILLING", [FT_PRIMARY_PROTECTED] = "PROTECTED",
		[FT_PRIMARY_CUT_OFF] = "CUT_OFF", [FT_PRIMARY_ALONE] = "ALONE",
		[FT_PRIMARY_DISARMING] = "DISARMING", [FT_PRIMARY_HANDING_OVER] = "HANDING_OVER",
		[FT_PRIMARY_ENDED] = "ENDED",
	};

	return name[s];
}

static void set_state(struct ft_primary *p, enum ft_primary_state to, const char *why)
{
	enum ft_primary_state from = p->state;

	if (from == to)
		return;
	p->state = to;
	ft_primary_disks_state(p, to);
	p->ops->changed(p->cfg.ctx, from, to, why);
}

/* --- the one timer: whatever is due next --- */

static void sooner(uint64_t *at, uint64_t candidate)
{
	if (candidate < *at)
		*at = candidate;
}

/* For what has no time of its own. Not put off by whatever else arms meanwhile. */
static uint64_t look_again(struct ft_primary *p, uint64_t now)
{
	if (p->look_ns <= now)
		p->look_ns = now + LOOK_NS;
	return p->look_ns;
}

static uint64_t unless_backlog(const struct ft_primary *p, uint64_t at, uint64_t now)
{
	uint64_t retry = now + BACKLOG_RETRY_NS;

	return ft_primary_backlog(p) && at < retry ? retry : at;
}

static void arm(struct ft_primary *p)
{
	uint64_t now = primary_now(p), at = now + FT_S_NS;

	if (p->state == FT_PRIMARY_ENDED)
		return;
	if (p->leaving) {
		p->ops->timer(p->cfg.ctx, look_again(p, now));
		return;
	}
	if (!p->link)
		sooner(&at, p->reconnect_ns);
	if (p->standing)
		sooner(&at, p->ping_ns);
	if (p->vm->contended)
		sooner(&at, look_again(p, now));
	else if (p->state == FT_PRIMARY_SYNCING)
		sooner(&at, p->disks_copying ? now + DISKS_NS : unless_backlog(p, now, now));
	if (ft_primary_may_take_epoch(p))
		sooner(&at, unless_backlog(p, ft_pacer_next_ns(&p->pacer), now));
	if (p->release_waits)
		sooner(&at, now + RELEASE_RETRY_NS);
	if (p->breached)
		sooner(&at, p->breach_retry_ns);
	if (p->state == FT_PRIMARY_CUT_OFF)
		sooner(&at, look_again(p, now));
	p->ops->timer(p->cfg.ctx, at);
}

/* --- requests --- */

static void answer(struct pending *rq, int rc, const char *text)
{
	struct pending was = *rq;

	*rq = (struct pending){ 0 };
	if (was.done)
		was.done(was.ctx, rc, text);
}

static void fail_requests(struct ft_primary *p, const char *why)
{
	answer(&p->unprotect, -ENOTCONN, why);
	answer(&p->failover, -ENOTCONN, why);
	answer(&p->drill, -ENOTCONN, why);
	answer(&p->verify, -ENOTCONN, why);
	ft_blob_free(&p->verify_body);
	ft_primary_verify_stop(p, true);
	p->drilling = false;
}

/* --- the durable record --- */

static int save_role(struct ft_primary *p, uint64_t generation, enum ft_role role)
{
	struct ft_record r = { .generation = generation, .role = role };
	int rc;

	snprintf(r.peer, sizeof(r.peer), "%s", p->cfg.peer);
	rc = ft_record_save(p->cfg.files, p->cfg.state_dir, p->cfg.guest, &r);
	if (!rc)
		p->record = r;
	return rc;
}

/* --- the end --- */

static void end(struct ft_primary *p, enum ft_primary_end how, const char *why)
{
	if (p->state == FT_PRIMARY_ENDED)
		return;
	p->ops->beat_stop(p->cfg.ctx);
	p->standing = p->link = p->talking = false;
	p->ops->disconnect(p->cfg.ctx);
	ft_encoder_reset(p->cfg.encoder);
	set_state(p, FT_PRIMARY_ENDED, why);
	fail_requests(p, why);
	p->ops->ended(p->cfg.ctx, how, why);
}

/* -EINPROGRESS: disks are being synced; call again. Nothing is seen of the guest before that is through. */
static int open_outputs(struct ft_primary *p)
{
	int rc = 0;

	for (unsigned i = 0; i < p->cfg.nr_outputs && p->holding && !rc; i++) {
		struct ft_output *o = p->cfg.output[i];

		/* The exports end with the guest, and sync by themselves. */
		if (!p->guest_ended || !p->cfg.mirror || o != &p->cfg.mirror->output)
			rc = o->ops->teardown(o);
	}
	if (!rc)
		p->holding = false;
	return rc;
}

/* What the peer had to know of us before a session that came to nothing, it has to know after it. */
static int leave_role(struct ft_primary *p)
{
	uint64_t generation = p->record.generation;

	if (p->survivor && !p->disarmed)
		return save_role(p, generation + 1, FT_ROLE_RUNNING);
	return save_role(p, generation, FT_ROLE_NONE);
}

/* Nothing of ours can be armed over there, or it has promised: the output may flow unprotected. */
static void end_open(struct ft_primary *p, enum ft_primary_end how, const char *why)
{
	int rc = open_outputs(p);

	if (rc == -EINPROGRESS) {
		if (!p->leaving)        /* @why may be the copy */
			snprintf(p->leave_why, sizeof(p->leave_why), "%s", why);
		p->leave_end = how;
		p->leaving = true;
		return;
	}
	if (rc) {
		ft_err("%s: the output stays shut: our rules could not be removed, or the disks not synced: %s", p->cfg.guest,
		       strerror(-rc));
		end(p, FT_END_INTERNAL, "the output could not be opened");
		return;
	}
	if (p->record.role == FT_ROLE_PRIMARY && leave_role(p))
		how = FT_END_INTERNAL;
	answer(&p->unprotect, 0, "unprotected: output flows again");
	end(p, how, why);
}

static void discard_outputs(struct ft_primary *p)
{
	for (unsigned i = 0; i < p->cfg.nr_outputs && p->holding; i++)
		p->cfg.output[i]->ops->discard(p->cfg.output[i]);
}

/* The backup runs the guest under @generation, larger than ours: our instance must never speak again. */
static void stand_down(struct ft_primary *p, uint64_t generation)
{
	bool planned = p->failover.done != NULL;
	int rc, saved;

	p->ops->hush(p->cfg.ctx);
	discard_outputs(p);
	saved = save_role(p, generation, FT_ROLE_STOOD_DOWN);   /* if not: a successor is told the same again */
	rc = p->vm->ops->destroy(p->vm);
	p->guest_ended |= !rc;
	if (rc)
		ft_err("%s: our instance could not be stopped, its output stays shut: %s", p->cfg.guest, strerror(-rc));
	else if (open_outputs(p))       /* nobody is behind them now, and they would mute the guest when it comes back */
		ft_warn("%s: rules of the instance that ended are left; they go when the guest is replicated to this host",
			p->cfg.guest);
	if (!rc)
		rc = saved;
	answer(&p->failover, 0, "the backup runs the guest");
	end(p, rc ? FT_END_INTERNAL : planned ? FT_END_OK : FT_END_TAKEN_OVER, "the backup runs the guest");
}

/* --- losing the link --- */

static void freeze(struct ft_primary *p)
{
	int rc, kept;

	if (p->frozen)
		return;
	rc = ft_primary_stop(p);
	kept = p->ops->resumed(p->cfg.ctx);     /* stays paused on purpose: not the guard's business */
	if (!rc && kept)
		ft_ignore(p->vm->ops->resume(p->vm));   /* the guard let it run; tried again at the next tick */
	p->frozen = !rc && !kept;
	if (!p->frozen)
		return;
	ft_warn("%s: cut off from %s: output is shut, the guest is frozen until %s answers", p->cfg.guest, p->cfg.peer,
		p->cfg.peer);
}

static void unfreeze(struct ft_primary *p)
{
	if (p->frozen && p->vm->ops->resume(p->vm))
		ft_err("%s: the frozen guest could not be resumed", p->cfg.guest);
	p->frozen = false;
}

/* What our output shows was never acknowledged? Then what the backup holds is outrun, for good. */
static bool outran(const struct ft_primary *p)
{
	return p->record.role == FT_ROLE_RUNNING;
}

/* Durable before the first frame leaves: whoever speaks for us later must void what the backup holds. */
static int outrun_backup(struct ft_primary *p)
{
	uint64_t generation = p->record.generation;
	int rc;

	if (outran(p) && !p->outrun_by)
		return 0;
	if (p->generation > generation)
		generation = p->generation;
	if (p->outrun_by > generation)
		generation = p->outrun_by;
	rc = save_role(p, generation + 1, FT_ROLE_RUNNING);
	if (rc)
		return rc;
	p->generation = generation + 2;
	p->outrun_by = 0;
	memset(p->session, 0, sizeof(p->session));
	return 0;
}

/* Could the backup start what it holds, by right? */
static bool claims(const struct ft_primary *p)
{
	return p->maybe_armed && !outran(p);
}

/* The backup ran the guest on, and ours, older, has ended too. */
static void give_in(struct ft_primary *p)
{
	discard_outputs(p);
	if (open_outputs(p))
		ft_warn("%s: our rules could not be removed", p->cfg.guest);
	if (save_role(p, p->outrun_by, FT_ROLE_STOOD_DOWN))
		end(p, FT_END_INTERNAL, "the generation could not be made durable");
	else
		end(p, FT_END_TAKEN_OVER, "the guest ran on there, and has ended");
}

static void go_alone(struct ft_primary *p)
{
	int rc = outrun_backup(p);

	if (!rc)
		rc = open_outputs(p);
	if (rc) {                       /* stays cut off; tried again at the next tick */
		if (rc != -EINPROGRESS && ft_log_due(&p->alone_log, strerror(-rc)))
			ft_err("%s: cannot go on alone, the output stays shut: %s", p->cfg.guest, strerror(-rc));
		return;
	}
	unfreeze(p);
	set_state(p, FT_PRIMARY_ALONE, "peer lost, policy is `continue`: the guest runs UNPROTECTED");
}

static bool serving(const struct ft_primary *p)
{
	return p->standing && (p->state == FT_PRIMARY_PROTECTED || p->state == FT_PRIMARY_DRILLING);
}

static bool was_whole(const struct ft_primary *p)
{
	return p->state == FT_PRIMARY_PROTECTED || p->state == FT_PRIMARY_DISARMING || p->state == FT_PRIMARY_HANDING_OVER ||
	       ft_primary_first_acked(p);
}

/* What was written is not known any more, also when that is over: what the backup holds is no base for a delta. */
static void forget_if_contended(struct ft_primary *p)
{
	if (p->vm->contended)
		memset(p->session, 0, sizeof(p->session));
}

static void lost(struct ft_primary *p, const char *why)
{
	uint64_t now = primary_now(p);

	p->link = p->standing = p->talking = false;
	p->disks_greeted = p->disks_copying = false;
	ft_encoder_reset(p->cfg.encoder);
	fail_requests(p, why);
	p->disarm_sent = false;
	forget_if_contended(p);
	p->reconnect_ns = now + p->reconnect_delay_ns;
	p->reconnect_delay_ns = p->reconnect_delay_ns * 2 < RECONNECT_MAX_NS ? p->reconnect_delay_ns * 2 : RECONNECT_MAX_NS;
	if (p->state == FT_PRIMARY_ALONE)
		return;
	/* A backup that greets and gets no further is no backup: since the last one that was. */
	if (was_whole(p) || !p->cut_ns)
		p->cut_ns = now;
	set_state(p, FT_PRIMARY_CUT_OFF, why);
}

void ft_primary_drop_link(struct ft_primary *p, const char *why)
{
	if (p->state == FT_PRIMARY_ENDED)
		return;
	ft_warn("%s: dropping the link to %s: %s", p->cfg.guest, p->cfg.peer, why);
	p->ops->disconnect(p->cfg.ctx);
	ft_primary_link_down(p, -EPROTO, why);
}

void ft_primary_link_down(struct ft_primary *p, int rc, const char *why)
{
	if (p->state == FT_PRIMARY_ENDED)
		return;
	if (p->leaving) {
		p->link = p->standing = p->talking = false;
		arm(p);
		return;
	}
	/* Before anything of ours can be armed, a lost link is an ordinary failure to start. */
	if (!p->maybe_armed)
		end_open(p, FT_END_REFUSED, why);
	else
		lost(p, why);
	arm(p);
}

/* --- a new session --- */

int ft_primary_start(struct ft_primary *p)
{
	int rc = ft_record_load(p->cfg.files, p->cfg.state_dir, p->cfg.guest, &p->record);

	if (rc)
		return rc;
	p->generation = p->record.generation + 1;
	p->reconnect_delay_ns = RECONNECT_MIN_NS;
	/* The peer may have taken over, or may still: shut first, ask after. */
	if (p->record.role == FT_ROLE_PRIMARY || p->cfg.output_shut) {
		p->maybe_armed = true;
		rc = ft_primary_hold(p);
		if (rc)
			return rc;
	}
	p->reconnect_ns = primary_now(p);
	ft_primary_tick(p);
	return 0;
}

static void connect_peer(struct ft_primary *p)
{
	int rc;

	p->link = true;         /* until link_down says otherwise */
	if (p->state != FT_PRIMARY_CUT_OFF && p->state != FT_PRIMARY_ALONE)
		set_state(p, FT_PRIMARY_CONNECTING, "connecting");
	rc = p->ops->connect(p->cfg.ctx);
	if (rc)
		ft_primary_link_down(p, rc, "cannot connect");
}

int ft_primary_hello(const struct ft_primary_config *cfg, const struct ft_wire_hello *h, struct ft_blob *out)
{
	struct ft_wire_hello hello = *h;
	uint8_t *body;

	hello.version_min = FT_WIRE_VERSION_MIN;
	hello.version_max = FT_WIRE_VERSION_MAX;
	hello.flags |= cfg->policy.on_peer_loss == FT_LOSS_CONTINUE ? FT_HELLO_CONTINUE : 0;
	hello.spec_len = (uint32_t)strlen(cfg->spec_text);
	hello.facts_len = (uint32_t)strlen(cfg->facts);
	body = malloc(FT_WIRE_HELLO_LEN + hello.spec_len + hello.facts_len);
	if (!body)
		return -ENOMEM;
	ft_wire_pack_hello(&hello, body);
	memcpy(body + FT_WIRE_HELLO_LEN, cfg->spec_text, hello.spec_len);
	memcpy(body + FT_WIRE_HELLO_LEN + hello.spec_len, cfg->facts, hello.facts_len);
	*out = (struct ft_blob){ .data = body, .len = FT_WIRE_HELLO_LEN + hello.spec_len + hello.facts_len };
	return 0;
}

static int send_hello(struct ft_primary *p)
{
	struct ft_wire_hello h = {
		.flags = outran(p) ? FT_HELLO_OUTRUN : 0, .generation = p->generation, .nr_pages = p->vm->nr_pages,
	};
	struct ft_blob body = { 0 };
	int rc;

	memcpy(h.resume, p->session, sizeof(h.resume));
	rc = ft_primary_hello(&p->cfg, &h, &body);
	if (!rc)
		rc = p->ops->send(p->cfg.ctx, FT_REC_HELLO, body.data, body.len);
	ft_blob_free(&body);
	return rc;
}

void ft_primary_link_up(struct ft_primary *p)
{
	p->talking = true;
	p->heard_ns = primary_now(p);
	if (p->state == FT_PRIMARY_CONNECTING)
		set_state(p, FT_PRIMARY_GREETING, "connected");
	if (send_hello(p))
		ft_primary_drop_link(p, "HELLO could not be sent");
	arm(p);
}

static void refused(struct ft_primary *p, const struct ft_wire_welcome *w, const char *text)
{
	char why[FT_WIRE_TEXT_MAX + 160];

	snprintf(why, sizeof(why), "%s refuses %s: %s%s%s", p->cfg.peer, p->cfg.guest, ft_wire_reason_text(w->reason),
		 *text ? ": " : "", text);
	/* Where the guest ran on there, a fresh instance here just needs a larger generation; an old one is outrun. */
	if ((w->reason == FT_REASON_GENERATION || (w->reason == FT_REASON_GUEST_ENDED && !claims(p))) &&
	    w->generation < UINT64_MAX - 1) {
		p->generation = w->generation + 1;
		memset(p->session, 0, sizeof(p->session));
		p->ops->disconnect(p->cfg.ctx);
		p->link = p->talking = false;
		p->reconnect_ns = primary_now(p);
		return;
	}
	if (w->reason == FT_REASON_TAKEN_OVER && p->maybe_armed && w->generation > p->record.generation) {
		stand_down(p, w->generation);
		return;
	}
	if (w->reason == FT_REASON_GUEST_ENDED && claims(p) && w->generation > p->record.generation) {
		p->outrun_by = w->generation;
		if (p->guest_ended) {
			give_in(p);
			return;
		}
	}
	if (!p->maybe_armed) {
		p->ops->disconnect(p->cfg.ctx);
		end_open(p, FT_END_REFUSED, why);
		return;
	}
	if (!p->refusal_logged)
		ft_err("%s; the output %s, asking again%s", why, p->holding ? "stays shut" : "is open",
		       w->reason == FT_REASON_TAKEN_OVER ? ". The guest runs on both hosts: end one with ft-guest stop --force" :
		       w->reason == FT_REASON_GUEST_ENDED ? ". Our instance is the older one: give it up with ft-guest stop "
		       "--force, or go on with it, unprotected, with ft-ctl unprotect --force" : "");
	p->refusal_logged = true;
	p->ops->disconnect(p->cfg.ctx);
	lost(p, why);
}

static void protected_again(struct ft_primary *p)
{
	p->refusal_logged = p->handover_sent = false;
	ft_pacer_init(&p->pacer, &p->cfg.policy, p->cfg.vcpus, primary_now(p));
}

/* The child over there still has our epochs: send what the lost ones held on top of its last whole one. */
static void resume_session(struct ft_primary *p, uint64_t whole)
{
	if (ft_primary_flight_lost(p, whole)) {
		memset(p->session, 0, sizeof(p->session));
		ft_primary_drop_link(p, "what the disks had written is no longer there to be sent again");
		return;
	}
	unfreeze(p);
	protected_again(p);
	ft_pacer_held(&p->pacer);
	p->resumed = true;
	set_state(p, FT_PRIMARY_DRILLING, "session resumed");
}

/* Drops the link, by name, when it fails. */
static void send_firmware(struct ft_primary *p)
{
	struct ft_blob fw = { 0 };
	int rc, resumed;

	p->ops->pausing(p->cfg.ctx);
	p->stopping = true;
	rc = p->vm->ops->firmware(p->vm, &fw);
	p->stopping = false;
	resumed = p->ops->resumed(p->cfg.ctx);
	if (!rc && resumed)
		rc = resumed;
	if (!rc)
		rc = p->ops->send(p->cfg.ctx, FT_REC_FIRMWARE, fw.data, fw.len);
	ft_blob_free(&fw);
	if (rc == -ECANCELED)
		ft_primary_drop_link(p, "the guard let the guest run before its firmware was read: it was paused for too long");
	else if (rc)
		ft_primary_drop_link(p, "the firmware could not be read and sent");
}

static void new_session(struct ft_primary *p, const struct ft_wire_welcome *w)
{
	/* Durable before the backup can be armed with it. */
	if (p->record.role == FT_ROLE_PRIMARY && p->record.generation > p->generation) {
		ft_primary_drop_link(p, "our own record knows a higher generation");
		return;
	}
	p->survivor |= p->record.role == FT_ROLE_RUNNING;
	if (save_role(p, p->generation, FT_ROLE_PRIMARY)) {
		ft_primary_drop_link(p, "the generation could not be made durable");
		return;
	}
	memcpy(p->session, w->session, sizeof(p->session));
	p->resumed = false;
	unfreeze(p);
	protected_again(p);
	set_state(p, FT_PRIMARY_PREPARING, "the backup builds the replica");
	if (p->cfg.mirror && ft_primary_disks_greet(p))
		ft_primary_drop_link(p, "DISKS could not be sent");
	else if (!p->cfg.mirror)
		send_firmware(p);
}

static const char *how_ended(const struct ft_primary *p)
{
	return p->vm->ended ? p->vm->ended : "the guest powered off";
}

static void send_disarm(struct ft_primary *p)
{
	uint8_t body[8];

	ft_put64(body, p->generation);
	if (p->ops->send(p->cfg.ctx, FT_REC_DISARM, body, sizeof(body))) {
		ft_primary_drop_link(p, "DISARM could not be sent");
		return;
	}
	p->disarm_sent = true;
	set_state(p, FT_PRIMARY_DISARMING, p->guest_ended ? how_ended(p) : "unprotect");
}

/* Guest paused, its last output released: from the moment HANDOVER is out, the backup may speak. */
static void send_handover(struct ft_primary *p)
{
	uint8_t body[8];

	p->ops->hush(p->cfg.ctx);
	ft_put64(body, p->final_epoch);
	if (p->ops->send(p->cfg.ctx, FT_REC_HANDOVER, body, sizeof(body)))
		ft_primary_drop_link(p, "HANDOVER could not be sent");
	else
		p->handover_sent = true;
}

/* The guest ended while we were cut off; tell the peer now that it answers. */
static void bury(struct ft_primary *p, bool armed)
{
	if (p->crashed && !armed) {
		end_open(p, FT_END_INTERNAL, "the guest's process died, and the backup holds no whole epoch of it");
	} else if (p->crashed) {
		set_state(p, FT_PRIMARY_HANDING_OVER, "the guest's process died");
		send_handover(p);
	} else {
		send_disarm(p);
	}
}

static void on_welcome(struct ft_primary *p, const uint8_t *body, size_t len)
{
	char text[FT_WIRE_TEXT_MAX + 1] = "";
	struct ft_wire_welcome w;

	if (p->standing || ft_wire_unpack_welcome(body, len, &w)) {
		ft_primary_drop_link(p, "a WELCOME that makes no sense");
		return;
	}
	memcpy(text, body + FT_WIRE_WELCOME_LEN, len - FT_WIRE_WELCOME_LEN);
	if (w.reason != FT_REASON_OK) {
		refused(p, &w, text);
		return;
	}
	p->silence_ms = w.silence_ms;
	/* DIRECT spoils what the replica held; one that may be all there is must survive until ours is whole. */
	p->direct = w.replica != FT_REPLICA_ARMED;
	if (p->ops->beat(p->cfg.ctx, &w)) {
		ft_primary_drop_link(p, "heartbeats could not be started");
		return;
	}
	p->standing = true;
	p->ping_ns = primary_now(p);
	if (p->guest_ended)
		bury(p, w.replica == FT_REPLICA_ARMED);
	else if (w.replica == FT_REPLICA_ARMED && w.generation == p->generation && p->tracking && p->session[0] &&
	    !memcmp(w.session, p->session, sizeof(w.session)) && w.epoch >= p->acked && w.epoch <= p->epoch)
		resume_session(p, w.epoch);
	else
		new_session(p, &w);
}

/* The backup will have the disks; nothing of the guest was touched before. */
static void on_disks_here(struct ft_primary *p, const uint8_t *body, size_t len)
{
	char why[320];
	int rc = ft_primary_on_disks_here(p, body, len, why, sizeof(why));

	if (rc == -EPERM && !p->maybe_armed) {
		p->ops->disconnect(p->cfg.ctx);
		end_open(p, FT_END_REFUSED, why);
	} else if (rc == -EPERM) {
		if (ft_log_due(&p->disks_log, why))
			ft_err("%s: %s", p->cfg.guest, why);
		ft_primary_drop_link(p, "the backup has data that must not be overwritten");
	} else if (rc) {
		ft_primary_drop_link(p, "a DISKS_HERE that makes no sense");
	} else {
		send_firmware(p);
	}
}

static void on_ready(struct ft_primary *p)
{
	if (p->state != FT_PRIMARY_PREPARING || p->disks_greeted)
		ft_primary_drop_link(p, "READY out of turn");
	else if (p->cfg.mirror && ft_primary_disks_begin(p))
		ft_primary_drop_link(p, "the disks cannot be mirrored");
	else if (ft_primary_sync_begin(p, p->direct))
		ft_primary_drop_link(p, "the full copy could not be started");
	else
		set_state(p, FT_PRIMARY_SYNCING, p->disks_copying ? "first full copy: disks, then memory" : "first full copy");
}

/* --- protected --- */

static void start_drill(struct ft_primary *p)
{
	uint8_t body[8];

	ft_put64(body, p->acked);
	if (p->ops->send(p->cfg.ctx, FT_REC_DRILL, body, sizeof(body)))
		ft_primary_drop_link(p, "DRILL could not be sent");
	else
		p->drilling = true;
}

static void sync_slice(struct ft_primary *p)
{
	int rc = ft_primary_sync_slice(p);

	p->sync_epoch = p->epoch;
	if (rc == 1)
		set_state(p, FT_PRIMARY_DRILLING, "full copy sent");
	else if (rc)
		ft_primary_drop_link(p, "the full copy failed");
}

static void verify_ends(struct ft_primary *p, int rc)
{
	bool equal = !rc && (!p->cfg.mirror || ft_primary_verify_result(p, p->verify_line, sizeof(p->verify_line))) && !p->verify_differs;

	ft_primary_verify_stop(p, false);
	if (rc)
		snprintf(p->verify_line, sizeof(p->verify_line), "a disk could not be read here: %s", strerror(-rc));
	ft_log(equal ? FT_LOG_INFO : FT_LOG_ERR, "%s: verify: %s", p->cfg.guest, p->verify_line);
	answer(&p->verify, equal ? 0 : rc ? rc : -EILSEQ, p->verify_line);
}

/* The epoch of a slice of the disks is acknowledged. */
static void verify_slice(struct ft_primary *p)
{
	if (p->verify_disks.rc)
		verify_ends(p, p->verify_disks.rc);
	else if (ft_primary_verify_ask(p))
		ft_primary_drop_link(p, "the backup's disks could not be asked for");
}

/* After each acknowledgement or release: is something waiting for all of them? */
static void settled(struct ft_primary *p)
{
	bool all = p->standing && !p->nr_flight && p->released == p->acked;

	if (ft_primary_first_acked(p))
		ft_primary_disks_adopted(p);
	if (ft_primary_first_acked(p) && !p->drilling) {
		if (p->first_drill_done || p->vm->no_drill)
			set_state(p, FT_PRIMARY_PROTECTED, p->resumed ? "the backup has kept its replica, nothing is copied anew" :
				  "full copy acknowledged");
		else
			start_drill(p);
	}
	if (p->verify_epoch && p->acked >= p->verify_epoch && p->verify_body.data) {
		if (p->ops->send(p->cfg.ctx, FT_REC_VERIFY, p->verify_body.data, p->verify_body.len))
			ft_primary_drop_link(p, "VERIFY could not be sent");
		ft_blob_free(&p->verify_body);
	}
	if (p->verify_epoch && p->acked >= p->verify_epoch && p->verify_disks.on && !p->verify_disks.asked)
		verify_slice(p);
	if (p->unprotect.done && all && !p->disarm_sent)
		send_disarm(p);
	if (p->state == FT_PRIMARY_HANDING_OVER && p->failover.done && all && !p->handover_sent)
		send_handover(p);
}

static void on_disk_hashes(struct ft_primary *p, const uint8_t *body, size_t len)
{
	int rc;

	if (p->disks_copying) {
		ft_primary_on_disk_hashes(p, body, len);
		return;
	}
	rc = p->cfg.mirror ? ft_primary_verify_hashes(p, body, len) : -EPROTO;
	if (rc < 0)
		ft_primary_drop_link(p, "hashes of a disk that nobody asked for");
	else if (rc)
		verify_ends(p, 0);
}

static void on_drilled(struct ft_primary *p, const uint8_t *body, size_t len)
{
	char line[FT_WIRE_TEXT_MAX + 128];
	struct ft_wire_drilled d;

	if (!p->drilling || ft_wire_unpack_drilled(body, len, &d)) {
		ft_primary_drop_link(p, "a DRILLED that makes no sense");
		return;
	}
	p->drilling = false;
	if (d.ok)
		snprintf(line, sizeof(line), "drill: the replica runs after %u ms (wrote %u pages)", d.load_ms, d.dirtied_pages);
	else
		snprintf(line, sizeof(line), "drill failed: %.*s", (int)(len - FT_WIRE_DRILLED_LEN),
			 (const char *)body + FT_WIRE_DRILLED_LEN);
	ft_log(d.ok ? FT_LOG_INFO : FT_LOG_ERR, "%s: %s", p->cfg.guest, line);
	answer(&p->drill, d.ok ? 0 : -EIO, line);
	if (p->state != FT_PRIMARY_DRILLING)
		return;
	p->first_drill_done = d.ok;
	if (d.ok) {
		set_state(p, FT_PRIMARY_PROTECTED, line);
	} else {
		/* A replica that cannot run protects nobody: say so now, and let the guest go on as it was. */
		ft_err("%s: %s cannot run this guest; ending protection", p->cfg.guest, p->cfg.peer);
		send_disarm(p);
	}
}

static void on_verified(struct ft_primary *p, const uint8_t *body, size_t len)
{
	struct ft_wire_verified v;

	if (!p->verify_epoch || p->verify_disks.on || ft_wire_unpack_verified(body, len, &v) || v.epoch != p->verify_epoch) {
		ft_primary_drop_link(p, "a VERIFIED that makes no sense");
		return;
	}
	p->verify_epoch = 0;
	/* What a back end wrote in the pause is gone with it; a page that was missed differs until it is written again. */
	if (v.differing && p->vm->served_paused && ++p->verify_tries < VERIFY_TRIES) {
		ft_debug("%s: verify: epoch %llu differs in %llu blocks, the first at page %llu: once more", p->cfg.guest,
			 (unsigned long long)v.epoch, (unsigned long long)v.differing, (unsigned long long)v.first_page);
		ft_primary_held(p);     /* soon */
		return;
	}
	p->verify_differs = v.differing;
	if (v.differing)
		snprintf(p->verify_line, sizeof(p->verify_line), "epoch %llu DIFFERS in %llu blocks of %u pages, first at page %llu",
			 (unsigned long long)v.epoch, (unsigned long long)v.differing, FT_HASH_PAGES,
			 (unsigned long long)v.first_page);
	else
		snprintf(p->verify_line, sizeof(p->verify_line), "epoch %llu: all %llu pages of the replica are the guest's",
			 (unsigned long long)v.epoch, (unsigned long long)p->vm->nr_pages);
	if (p->cfg.mirror)
		ft_primary_verify_disks(p);
	else
		verify_ends(p, 0);
}

static void on_disarmed(struct ft_primary *p, uint64_t generation)
{
	if (p->state != FT_PRIMARY_DISARMING || generation != p->generation) {
		ft_primary_drop_link(p, "a DISARMED that nobody asked for");
		return;
	}
	p->maybe_armed = false;
	p->disarmed = true;
	if (p->first_drill_done || p->guest_ended || p->unprotect.done)
		end_open(p, FT_END_OK, p->guest_ended ? how_ended(p) : "unprotected");
	else
		end_open(p, FT_END_REFUSED, "the first drill failed");
}

static void on_error(struct ft_primary *p, const uint8_t *body, size_t len)
{
	char why[FT_WIRE_TEXT_MAX + 128];

	snprintf(why, sizeof(why), "%s says: %s: %.*s", p->cfg.peer, ft_wire_reason_text(ft_le32(body)), (int)(len - 4),
		 (const char *)body + 4);
	ft_primary_drop_link(p, why);
}

void ft_primary_record(struct ft_primary *p, uint32_t type, const uint8_t *body, size_t len)
{
	if (p->state == FT_PRIMARY_ENDED || p->leaving || !p->link)
		return;
	p->heard_ns = primary_now(p);
	if (!p->standing && type != FT_REC_WELCOME && type != FT_REC_ERROR && type != FT_REC_PING) {
		ft_primary_drop_link(p, "the backup spoke before its WELCOME");
		return;
	}
	switch (type) {
	case FT_REC_WELCOME:
		on_welcome(p, body, len);
		break;
	case FT_REC_READY:
		on_ready(p);
		break;
	case FT_REC_ACK:
		if (ft_le64(body) > p->acked)           /* a backup that gets no further is asked less and less often */
			p->reconnect_delay_ns = RECONNECT_MIN_NS;
		ft_primary_on_ack(p, ft_le64(body));
		break;
	case FT_REC_DISK_MAP:
		ft_primary_on_disk_map(p, body, len);
		break;
	case FT_REC_DISKS_HERE:
		on_disks_here(p, body, len);
		break;
	case FT_REC_DISK_HASHES:
		on_disk_hashes(p, body, len);
		break;
	case FT_REC_DISK_DURABLE:
		ft_primary_on_disk_durable(p, body, len);
		break;
	case FT_REC_DRILLED:
		on_drilled(p, body, len);
		break;
	case FT_REC_VERIFIED:
		on_verified(p, body, len);
		break;
	case FT_REC_DISARMED:
		on_disarmed(p, ft_le64(body));
		break;
	case FT_REC_RUNNING:
		/* Only after HANDOVER; a backup that ran the guest unasked would say so in WELCOME. */
		if (p->state == FT_PRIMARY_HANDING_OVER && ft_le64(body) > p->record.generation)
			stand_down(p, ft_le64(body));
		else
			ft_primary_drop_link(p, "RUNNING out of turn");
		break;
	case FT_REC_PING:
		(void)p->ops->send(p->cfg.ctx, FT_REC_PONG, body, len); /* a link that cannot is about to say so */
		break;
	case FT_REC_PONG:
		p->ops->echoed(p->cfg.ctx, ft_le64(body));
		break;
	case FT_REC_ERROR:
		on_error(p, body, len);
		break;
	default:
		ft_primary_drop_link(p, "a record that a backup does not send");
	}
	if (p->state != FT_PRIMARY_ENDED)
		settled(p);
	arm(p);
}

/* --- what the guest and its output do --- */

void ft_primary_held(struct ft_primary *p)
{
	ft_pacer_held(&p->pacer);
	arm(p);
}

void ft_primary_breach(struct ft_primary *p, const char *why)
{
	if (p->breached || !p->holding || p->state == FT_PRIMARY_ENDED)
		return;
	p->breached = true;
	p->breach_retry_ns = primary_now(p);
	p->breach_logged = ft_log_due(&p->breach_log, why);
	if (p->breach_logged)
		ft_err("%s: output is shut: %s; what was held is dropped, trying to hold it again", p->cfg.guest, why);
	arm(p);
}

static void retry_breach(struct ft_primary *p)
{
	p->breach_retry_ns = primary_now(p) + BREACH_RETRY_NS;
	if (!ft_primary_hold(p)) {
		p->released = p->acked; /* older epochs hold nothing any more */
		if (p->breach_logged)
			ft_info("%s: output is held again", p->cfg.guest);
	}
}

static void guest_crashed(struct ft_primary *p)
{
	p->guest_ended = p->crashed = true;
	if (p->outrun_by) {
		give_in(p);
		return;
	}
	if (!claims(p)) {
		end_open(p, FT_END_INTERNAL, "the guest's process died while it was not protected");
		return;
	}
	ft_err("%s: the guest's process died: %s takes over", p->cfg.guest, p->cfg.peer);
	p->final_epoch = 0;
	set_state(p, FT_PRIMARY_HANDING_OVER, "the guest's process died");
	if (p->standing)
		send_handover(p);
	else
		p->ops->hush(p->cfg.ctx);
	p->ops->beat_stop(p->cfg.ctx);  /* should the handover not arrive, silence will do */
}

static void guest_off(struct ft_primary *p)
{
	p->guest_ended = true;
	ft_info("%s: %s: protection ends", p->cfg.guest, how_ended(p));
	if (p->outrun_by)
		give_in(p);
	else if (!claims(p))
		end_open(p, FT_END_OK, how_ended(p));
	else if (p->standing)
		send_disarm(p);
	/* Cut off: the promise is asked for as soon as the peer answers. */
}

/* The guest became somebody else's, or got a device, while we had it: what is under way cannot be ended. */
static bool spoils(const struct ft_primary *p)
{
	return (p->state == FT_PRIMARY_SYNCING || serving(p)) && p->standing && !p->unprotect.done && !p->failover.done;
}

void ft_primary_guest_event(struct ft_primary *p)
{
	bool was = p->vm->contended;
	enum ft_vm_event ev;

	while (p->state != FT_PRIMARY_ENDED && !p->leaving && (ev = p->vm->ops->next_event(p->vm)) != FT_VM_NONE) {
		if (ev == FT_VM_GONE && !p->guest_ended)
			guest_crashed(p);
		else if (ev == FT_VM_SHUTDOWN && !p->guest_ended)
			guest_off(p);
		else if (ev == FT_VM_RESET)
			ft_info("%s: the guest rebooted; protection goes on", p->cfg.guest);
		else if (ev == FT_VM_PAUSED_BY_OTHER)
			ft_warn("%s: another client paused the guest; checkpoints go on when it runs", p->cfg.guest);
		else if (ev == FT_VM_TROUBLE && p->vm->trouble)
			ft_err("%s: the guest stands still: %s", p->cfg.guest, p->vm->trouble);
		else if (ev == FT_VM_TROUBLE)
			ft_info("%s: the guest goes on", p->cfg.guest);
	}
	forget_if_contended(p);
	if (p->vm->contended && !was && spoils(p))
		ft_primary_drop_link(p, "no epoch can be taken");
	arm(p);
}

/* --- time --- */

static void cut_off_tick(struct ft_primary *p, uint64_t now)
{
	uint64_t window = (p->silence_ms ? p->silence_ms : p->cfg.policy.silence_ms) * FT_MS_NS;

	/* After HANDOVER the backup may run it: only its word lets ours go on. */
	if (now - p->cut_ns < 2 * window || p->guest_ended || p->handover_sent || p->outrun_by)
		return;
	if (p->cfg.policy.on_peer_loss == FT_LOSS_CONTINUE)
		go_alone(p);
	else
		freeze(p);
}

/* Its kernel acknowledges, it does not: without this a backup that hangs would keep the guest mute for ever. */
static bool unanswered(const struct ft_primary *p, uint64_t now)
{
	bool slow = p->state == FT_PRIMARY_HANDING_OVER || p->verify_epoch;
	uint64_t limit = p->state == FT_PRIMARY_PREPARING ? UNBUILT_NS : slow ? UNPREPARED_NS : UNANSWERED_NS;

	return p->talking && now - p->heard_ns > limit;
}

static void ping(struct ft_primary *p, uint64_t now)
{
	unsigned each = (p->silence_ms ? p->silence_ms : p->cfg.policy.silence_ms) / PINGS;
	uint8_t body[8];

	ft_put64(body, now);
	p->ping_ns = now + (each > 50 ? each : 50) * FT_MS_NS;
	(void)p->ops->send(p->cfg.ctx, FT_REC_PING, body, sizeof(body));        /* only a sign of life: the next one will do */
}

static void next_epoch(struct ft_primary *p)
{
	int rc = ft_primary_take_epoch(p, false);

	if (rc)
		ft_primary_guest_event(p);      /* did the guest end under our hands? */
	if (rc && !p->guest_ended)
		ft_primary_drop_link(p, rc == -ECANCELED ? "the epoch was revoked by the guard" : "the epoch could not be taken");
}

void ft_primary_tick(struct ft_primary *p)
{
	uint64_t now = primary_now(p);
	bool ready;

	if (p->state == FT_PRIMARY_ENDED)
		return;
	if (p->leaving) {
		end_open(p, p->leave_end, p->leave_why);
		arm(p);
		return;
	}
	if (unanswered(p, now))
		ft_primary_drop_link(p, "it is connected but does not answer");
	if (p->state == FT_PRIMARY_ENDED)
		return;
	if (!p->link && now >= p->reconnect_ns)
		connect_peer(p);
	if (p->standing && now >= p->ping_ns)
		ping(p, now);
	if (p->breached && now >= p->breach_retry_ns)
		retry_breach(p);
	if (p->release_waits) {
		ft_primary_try_release(p);
		settled(p);
	}
	if (p->state == FT_PRIMARY_CUT_OFF)
		cut_off_tick(p, now);
	forget_if_contended(p);                 /* to freeze the guest may have told */
	if (p->vm->contended)
		ft_primary_guest_event(p);      /* is it over? */
	ready = !p->vm->contended && !ft_primary_backlog(p);    /* backlog: the link is slower than the guest */
	if (ready && p->state == FT_PRIMARY_SYNCING)
		sync_slice(p);
	else if (ready && ft_primary_may_take_epoch(p) && now >= ft_pacer_next_ns(&p->pacer))
		next_epoch(p);
	arm(p);
}

/* --- requests --- */

static int request(struct ft_primary *p, struct pending *rq, ft_primary_done *done, void *ctx)
{
	/* Large disks take long to compare, and what ends protection need not wait for that. */
	if (p->verify.done && p->verify_disks.on && (rq == &p->unprotect || rq == &p->failover)) {
		ft_primary_verify_stop(p, false);
		answer(&p->verify, -ECANCELED, "given up, as protection ends");
	}
	if (p->unprotect.done || p->failover.done || p->drill.done || p->verify.done)
		return -EBUSY;
	*rq = (struct pending){ .done = done, .ctx = ctx };
	return 0;
}

int ft_primary_unprotect(struct ft_primary *p, ft_primary_done *done, void *ctx)
{
	bool promised = !claims(p);             /* nothing over there could be started */
	/* There is no epoch to be waited for: what the backup could start is older, and it promises not to. */
	bool copying = p->standing && p->state == FT_PRIMARY_SYNCING;
	int rc;

	if (p->leaving)
		return -EBUSY;
	if (!serving(p) && !copying && !promised)
		return -ENOTCONN;
	rc = request(p, &p->unprotect, done, ctx);
	if (rc)
		return rc;
	if (promised)
		end_open(p, FT_END_OK, "unprotected");
	else if (copying)
		send_disarm(p);
	else
		settled(p);
	arm(p);
	return 0;
}

int ft_primary_give_up_backup(struct ft_primary *p, ft_primary_done *done, void *ctx)
{
	int rc;

	if (p->leaving || p->standing)
		return p->leaving ? -EBUSY : -EISCONN;
	rc = request(p, &p->unprotect, done, ctx);
	if (!rc && claims(p))
		rc = outrun_backup(p);
	if (rc) {
		p->unprotect = (struct pending){ 0 };
		return rc;
	}
	unfreeze(p);
	end_open(p, FT_END_OK, "the backup was given up");
	return 0;
}

int ft_primary_failover(struct ft_primary *p, ft_primary_done *done, void *ctx)
{
	int rc;

	if (!serving(p) || p->drilling)
		return -ENOTCONN;
	rc = request(p, &p->failover, done, ctx);
	if (rc)
		return rc;
	p->handover_sent = false;
	set_state(p, FT_PRIMARY_HANDING_OVER, "planned failover");
	if (ft_primary_take_epoch(p, true))
		ft_primary_drop_link(p, "the last epoch could not be taken");
	p->final_epoch = p->epoch;
	arm(p);
	return 0;
}

int ft_primary_drill(struct ft_primary *p, ft_primary_done *done, void *ctx)
{
	int rc = -ENOTCONN;

	if (p->vm->no_drill)
		return -EOPNOTSUPP;
	if (p->state == FT_PRIMARY_PROTECTED && p->standing)
		rc = p->drilling ? -EBUSY : request(p, &p->drill, done, ctx);
	if (!rc)
		start_drill(p);
	return rc;
}

int ft_primary_verify(struct ft_primary *p, ft_primary_done *done, void *ctx)
{
	int rc = -ENOTCONN;

	if (p->state == FT_PRIMARY_PROTECTED && p->standing)
		rc = p->drilling ? -EBUSY : request(p, &p->verify, done, ctx);
	if (rc)
		return rc;
	p->verify_tries = 0;
	ft_primary_held(p);             /* soon */
	return 0;
}

/* --- life --- */

int ft_primary_new(const struct ft_primary_config *cfg, struct ft_primary **out)
{
	struct ft_primary *p = calloc(1, sizeof(*p));
	int rc = 0;

	if (!p)
		return -ENOMEM;
	p->cfg = *cfg;
	p->ops = cfg->ops;
	p->vm = cfg->vm;
	p->vm->busy = ft_primary_still_pausing;
	p->vm->busy_ctx = p;
	ft_pacer_init(&p->pacer, &p->cfg.policy, cfg->vcpus, primary_now(p));
	rc = ft_bitmap_init(&p->dirty, p->vm->nr_pages);
	for (unsigned i = 0; i < IN_FLIGHT_MAX && !rc; i++)
		rc = ft_bitmap_init(&p->flight[i].pages, p->vm->nr_pages);
	if (rc) {
		ft_primary_free(p);
		return rc;
	}
	*out = p;
	return 0;
}

void ft_primary_free(struct ft_primary *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < IN_FLIGHT_MAX; i++)
		ft_bitmap_free(&p->flight[i].pages);
	ft_bitmap_free(&p->dirty);
	ft_blob_free(&p->verify_body);
	free(p);
}

void ft_primary_get_status(const struct ft_primary *p, struct ft_primary_status *out)
{
	*out = (struct ft_primary_status){
		.state = p->state, .generation = p->record.generation, .epoch = p->epoch, .acked_epoch = p->acked,
		.in_flight = p->nr_flight, .interval_ns = p->interval_ns, .dirty_pages = p->last_capture.dirty_pages,
		.bytes_dirty = p->bytes_dirty, .sync_done = p->sync_done, .sync_total = p->sync_total,
		.pause = &p->pause, .ack = &p->ack, .holding = p->holding, .breached = p->breached,
	};
}
