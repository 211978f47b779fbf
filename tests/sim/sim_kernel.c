// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_kernel.c - alpha's kernel and what works without ft-protect: held output, the gate, heartbeats, the guard. */
#include "sim_world.h"

/* --- packets: what leaves a host is seen by everybody --- */

void sim_seen(struct sim *s, bool from_alpha, uint64_t seq, uint64_t id)
{
	if (from_alpha) {
		s->res->released++;
		if (s->res->takeovers && !s->forced)
			sim_broken(s, "one history: packet %llu leaves alpha after beta ran the guest", (unsigned long long)seq);
		if (s->b_guest)
			sim_broken(s, "one guest: packet %llu leaves alpha while beta runs the guest", (unsigned long long)seq);
		if (!s->open_allowed && seq > s->acked_sent)
			sim_broken(s, "released: packet %llu leaves alpha, acknowledged epochs contain %llu",
			       (unsigned long long)seq, (unsigned long long)s->acked_sent);
		if (seq > s->out_max)
			s->out_max = seq;
	}
	if (id > s->answered) {
		s->answered = id;
		s->res->answered++;
	}
}

/* The gate: the kernel's own clock, no process needed. */
static bool gate_open(struct sim *s)
{
	return s->mutant == SIM_LEASE_IGNORED || s->fresh_until > s->now;
}

void sim_alpha_sends(void *ctx, uint64_t seq, uint64_t id)
{
	struct sim *s = ctx;
	struct packet *p, **last = &s->held;

	if (!s->a_host_up)
		return;
	if (!s->shut) {
		sim_seen(s, true, seq, id);
		return;
	}
	if (!s->a.up || s->a.doomed)
		return;                 /* no listener: the queue rule drops */
	p = calloc(1, sizeof(*p));
	if (!p)
		abort();
	*p = (struct packet){ .seq = seq, .id = id };
	while (*last)
		last = &(*last)->next;
	*last = p;
	ft_primary_held(s->primary);
}

void sim_drop_held(struct sim *s)
{
	while (s->held) {
		struct packet *p = s->held;

		s->held = p->next;
		free(p);
	}
}

void sim_beta_sends(void *ctx, uint64_t seq, uint64_t id)
{
	sim_seen(ctx, false, seq, id);
}

/* --- the held output as ft_primary knows it --- */

static struct sim *sim_of(struct ft_output *o)
{
	return ft_container_of(o, struct sim, output);
}

static int out_setup(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (sim_dies_here(s, &s->a))
		return -EIO;
	if (!s->shut)
		s->open_allowed = false;
	s->shut = true;
	/* What was sent while the output was open is history that anyone may have seen. */
	return 0;
}

static int out_seal(struct ft_output *o, uint64_t epoch)
{
	struct sim *s = sim_of(o);

	if (sim_dies_here(s, &s->a))
		return -EIO;
	if (!s->shut)
		return -ENOTCONN;
	for (struct packet *p = s->held; p; p = p->next)
		if (!p->epoch)
			p->epoch = epoch;
	return 0;
}

static int out_commit(struct ft_output *o, uint64_t epoch)
{
	struct sim *s = sim_of(o);

	if (sim_dies_here(s, &s->a))
		return -EIO;
	while (s->held && (s->held->epoch ? s->held->epoch <= epoch : s->mutant == SIM_LATE_SEAL)) {
		struct packet *p = s->held;

		s->held = p->next;
		if (gate_open(s))
			sim_seen(s, true, p->seq, p->id);
		free(p);
	}
	return 0;
}

static void out_discard(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (!sim_dies_here(s, &s->a))
		sim_drop_held(s);
}

static int out_teardown(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (sim_dies_here(s, &s->a))
		return -EIO;
	s->shut = false;
	s->open_allowed = true;
	while (s->held) {
		struct packet *p = s->held;

		s->held = p->next;
		sim_seen(s, true, p->seq, p->id);
		free(p);
	}
	return 0;
}

static void out_free(struct ft_output *o)
{
	sim_drop_held(sim_of(o));
}

const struct ft_output_ops sim_output_ops = {
	.name = "sim", .setup = out_setup, .seal = out_seal, .commit = out_commit, .discard = out_discard,
	.teardown = out_teardown, .free = out_free,
};

/* --- heartbeats --- */

void sim_beat_arrives_a(struct sim *s, uint64_t sent_ns)
{
	if (!sim_awake(s, &s->a, sim_beat_arrives_a, sent_ns))
		return;
	ft_lease_renew(&s->lease, sent_ns);
	if (!s->hushed && s->shut)
		s->fresh_until = s->lease.until_ns;
}

/* Answered, if it is of a session that is listened for. */
static void beat_arrives_b(struct sim *s, uint64_t session, uint64_t sent_ns, bool from_guard)
{
	if (!s->echoing || (session != s->echo_session && session != s->old_session))
		return;
	ft_silence_life(session == s->echo_session ? &s->silence : &s->old_silence, s->now);
	if (!from_guard && !s->cut_ba && sim_rnd(s, 50))
		sim_after(s, sim_delay(s), sim_beat_arrives_a, sent_ns);
}

static void protect_beat_at_b(struct sim *s, uint64_t sent_ns)
{
	if (sim_awake(s, &s->b, protect_beat_at_b, sent_ns))
		beat_arrives_b(s, s->beat_session, sent_ns, false);
}

static void guard_beat_at_b(struct sim *s, uint64_t sent_ns)
{
	if (sim_awake(s, &s->b, guard_beat_at_b, sent_ns))
		beat_arrives_b(s, s->g_session, sent_ns, true);
}

void sim_protect_beats(struct sim *s, uint64_t life)
{
	if (life != s->a.life || !s->beating || !sim_awake(s, &s->a, sim_protect_beats, life))
		return;
	if (!s->cut_ab && sim_rnd(s, 30))
		sim_after(s, sim_delay(s), protect_beat_at_b, s->now);
	sim_after(s, BEAT_NS, sim_protect_beats, life);
}

static void guard_acts(struct sim *s, uint64_t life)
{
	if (life != s->g.life || !sim_awake(s, &s->g, guard_acts, life))
		return;
	if (s->pause_word == 1 && (!s->a.up || s->now - s->paused_ns > PAUSE_LIMIT_NS)) {
		s->pause_word = s->a.up ? 2 : 0;
		sim_trace(s, "guard lets the guest run on");
		ft_fake_resume(s->guest);
	}
	if (s->g_beating && !s->cut_ab && sim_rnd(s, 30) && s->mutant != SIM_NO_GUARD)
		sim_after(s, sim_delay(s), guard_beat_at_b, s->now);
	sim_after(s, BEAT_NS, guard_acts, life);
}

void sim_guard_start(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (s->g.up || !s->a_host_up)
		return;
	s->g = (struct proc){ .name = "guard", .up = true, .life = s->g.life + 1 };
	s->g_beating = s->beating;
	s->g_session = s->beat_session;
	guard_acts(s, s->g.life);
}
