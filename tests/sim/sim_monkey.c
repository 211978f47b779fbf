// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_monkey.c - the client, the guests, and the chaos monkey. */
#include "sim_world.h"

/* --- the client and the guests --- */

void sim_guests_run(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (s->a_host_up)
		for (uint64_t n = sim_rnd(s, 4); n; n--)
			ft_fake_step(s->guest);
	sim_guest_writes(s);
	if (s->b_guest)
		ft_fake_step(s->b_guest);
	sim_alpha_settle(s);
	sim_after(s, 2 * FT_MS_NS + sim_rnd(s, 8 * FT_MS_NS), sim_guests_run, 0);
}

void sim_client_asks(struct sim *s, uint64_t unused)
{
	uint64_t id = ++s->next_request;

	(void)unused;
	if (s->b_guest)
		ft_fake_request(s->b_guest, id);
	else if (s->a_host_up)
		ft_fake_request(s->guest, id);
	sim_alpha_settle(s);
	sim_after(s, sim_rnd(s, 40 * FT_MS_NS) + FT_MS_NS, sim_client_asks, 0);
}

/* --- the chaos monkey: one fault, then time to recover, because more is not promised --- */

static void heal(struct sim *s, uint64_t unused)
{
	(void)unused;
	sim_trace(s, "the network is whole");
	s->cut_ab = s->cut_ba = false;
}

static void done(void *ctx, int rc, const char *text)
{
	sim_trace(ctx, "request answered: %d %s", rc, text);
}

static void fault_protect_dies(struct sim *s)
{
	s->a.doom = 1 + sim_rnd(s, 120);
}

static void fault_protect_stalls(struct sim *s)
{
	if (s->a.up && !s->a_in_stall)
		s->a.stalled_until = s->now + sim_rnd(s, 5 * FT_S_NS);
}

static void fault_child_dies(struct sim *s)
{
	s->b.doom = 1 + sim_rnd(s, 60);
}

static void fault_child_stalls(struct sim *s)
{
	s->b.stalled_until = s->now + sim_rnd(s, 5 * FT_S_NS);
}

static void fault_guard_dies(struct sim *s)
{
	s->g.up = false;
	s->g.life++;
	sim_after(s, 100 * FT_MS_NS, sim_guard_start, 0);
}

static void fault_guard_stalls(struct sim *s)
{
	s->g.stalled_until = s->now + sim_rnd(s, 5 * FT_S_NS);
}

static void fault_link_breaks(struct sim *s)
{
	sim_conn_break(s, sim_delay(s) + sim_rnd(s, 300) * FT_MS_NS, sim_delay(s) + sim_rnd(s, 300) * FT_MS_NS);
}

static void fault_cut(struct sim *s)
{
	uint64_t ns = sim_rnd(s, 2 * FT_S_NS);

	s->cut_ab = sim_rnd(s, 3) != 0;
	s->cut_ba = !s->cut_ab || sim_rnd(s, 2);
	s->excuse = true;
	sim_trace(s, "network cut%s%s", s->cut_ab ? " a>b" : "", s->cut_ba ? " b>a" : "");
	sim_after(s, ns, heal, 0);
	if (ns > FT_S_NS)
		sim_conn_break(s, FT_S_NS + sim_rnd(s, FT_S_NS), FT_S_NS + sim_rnd(s, FT_S_NS));
}

/* Long enough for everybody to act on it. */
static void cut_long(struct sim *s, uint64_t unused)
{
	(void)unused;
	s->cut_ab = s->cut_ba = s->excuse = true;
	sim_trace(s, "network cut, both ways, for long");
	sim_after(s, 1500 * FT_MS_NS + sim_rnd(s, 2 * FT_S_NS), heal, 0);
	sim_conn_break(s, sim_rnd(s, FT_MS_NS), sim_rnd(s, 300 * FT_MS_NS));
}

/* Its kernel acknowledges, it does nothing. */
static void noticed(struct sim *s, uint64_t unused)
{
	struct ft_primary_status st;

	(void)unused;
	if (!s->a.up || s->a.stalled_until > s->now || s->b.stalled_until <= s->now)
		return;
	ft_primary_get_status(s->primary, &st);
	if (st.state == FT_PRIMARY_PROTECTED)
		sim_broken(s, "noticed: the backup has hung for 11 s, alpha says PROTECTED");
}

static void fault_child_hangs(struct sim *s)
{
	if (!s->b.up || s->calm || s->longer)   /* once in a life: it must be over when the dust settles */
		return;
	s->b.stalled_until = s->now + 12 * FT_S_NS;
	s->longer = 12 * FT_S_NS;
	sim_after(s, 11 * FT_S_NS, noticed, 0);
}

static void fault_replica_dies(struct sim *s)
{
	if (!s->replica || !s->b.up)
		return;
	ft_fake_replica_kill(s->replica);
	ft_backup_replica_died(s->backup);
	sim_beta_settle(s);
}

static void forced(void *ctx, int rc)
{
	sim_trace(ctx, "forced: %d", rc);
}

/* Policy `continue`: nobody takes over by himself. An operator who sees alpha dead says so. */
static void operator_forces(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (!s->b.up || s->b_guest || s->was_alone || !sim_awake(s, &s->b, operator_forces, 0))
		return;
	sim_trace(s, "the operator forces beta");
	s->forced = true;
	ft_ignore(ft_backup_force(s->backup, forced, s));       /* nothing there: check_alive knows */
	sim_beta_settle(s);
}

void sim_power_off_alpha(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (!s->a_host_up)
		return;
	sim_trace(s, "host alpha loses power");
	s->excuse = true;
	s->a_host_up = false;
	s->a.doomed = true;
	if (s->a.up)
		sim_protect_free(s, true);
	sim_conn_break(s, FT_S_NS, 3 * FT_S_NS);
	s->g.up = false;
	s->g.life++;
	s->shut = false;
	s->crashed |= !s->ever_armed;   /* nobody had promised anything yet */
	ft_fake_event(s->guest, FT_VM_GONE);
	if (s->go_on)
		sim_after(s, FT_S_NS, operator_forces, 0);
}

/* It powers off over there; whoever comes back must not go on with what alpha was. */
void sim_guest_ends_on_beta(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (!s->b_guest)
		return;
	sim_trace(s, "the guest powers off on beta");
	ft_fake_guest_free(s->b_guest);
	s->b_guest = NULL;
	s->b_ended = true;
	if (sim_rnd(s, 2))
		fault_child_dies(s);
}

static void fault_alpha_power(struct sim *s)
{
	sim_power_off_alpha(s, 0);
}

static void fault_guest_crashes(struct sim *s)
{
	s->excuse = true;
	s->crashed |= !s->ever_armed || s->promised;    /* beta owes nothing, yet or any more */
	ft_fake_event(s->guest, FT_VM_GONE);
	if (s->go_on)
		sim_after(s, 2 * FT_S_NS, operator_forces, 0);
	if (s->a.up && s->a.stalled_until <= s->now)
		ft_primary_guest_event(s->primary);
	sim_alpha_settle(s);
}

static void fault_guest_reboots(struct sim *s)
{
	ft_fake_event(s->guest, FT_VM_RESET);
	if (s->a.up && s->a.stalled_until <= s->now)
		ft_primary_guest_event(s->primary);
	sim_alpha_settle(s);
}

static void log_is_ours(struct sim *s, uint64_t unused)
{
	(void)unused;
	ft_fake_contend(s->guest, false);
}

static void log_is_read(struct sim *s, uint64_t ns_max)
{
	ft_fake_contend(s->guest, true);
	sim_after(s, sim_rnd(s, ns_max), log_is_ours, 0);
}

static void fault_log_is_read(struct sim *s)
{
	log_is_read(s, 3 * FT_S_NS);
}

/* Alpha is left without an answer until it freezes its guest, which may be when it sees it; then the old session goes on. */
static void fault_read_when_cut_off(struct sim *s)
{
	uint64_t ns = 300 * FT_MS_NS + sim_rnd(s, 2 * FT_S_NS);

	s->b.stalled_until = s->now + ns;
	sim_conn_break(s, sim_delay(s), sim_delay(s));
	sim_after(s, sim_rnd(s, ns), log_is_read, FT_S_NS);
}

/* The operator's socket is served by the same thread as all the rest. */
static bool answers(struct sim *s)
{
	return s->a.up && s->a.stalled_until <= s->now;
}

static void request_failover(struct sim *s)
{
	if (!answers(s) || ft_primary_failover(s->primary, done, s))
		return;
	s->excuse = true;
	if (s->go_on || !sim_rnd(s, 3))
		sim_after(s, sim_rnd(s, 4 * FT_MS_NS), cut_long, 0);
	sim_alpha_settle(s);
}

/* Nobody here damages memory or disks behind ft's back. */
static void verified(void *ctx, int rc, const char *text)
{
	done(ctx, rc, text);
	if (rc == -EILSEQ || rc == -EIO)
		sim_broken(ctx, "whole: verify says: %s", text);
}

static void request_verify(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_verify(s->primary, verified, s));     /* not now: another time */
	sim_alpha_settle(s);
}

static void request_drill(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_drill(s->primary, done, s));
	sim_alpha_settle(s);
}

static void request_unprotect(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_unprotect(s->primary, done, s));
	sim_alpha_settle(s);
}

static const struct fault {
	const char *name;
	unsigned weight;
	void (*strike)(struct sim *s);
} faults[] = {
	{ "ft-protect is killed", 6, fault_protect_dies }, { "ft-protect stalls", 6, fault_protect_stalls },
	{ "the child is killed", 6, fault_child_dies }, { "the child stalls", 6, fault_child_stalls },
	{ "the guard is killed", 3, fault_guard_dies }, { "the guard stalls", 3, fault_guard_stalls },
	{ "the link breaks", 6, fault_link_breaks }, { "the network is cut", 6, fault_cut },
	{ "the parked replica dies", 4, fault_replica_dies }, { "alpha loses power", 4, fault_alpha_power },
	{ "the guest crashes", 2, fault_guest_crashes }, { "the guest reboots", 2, fault_guest_reboots },
	{ "planned failover", 3, request_failover }, { "verify", 3, request_verify }, { "drill", 3, request_drill },
	{ "unprotect", 1, request_unprotect }, { "the child hangs", 1, fault_child_hangs },
	{ "others read the dirty log", 3, fault_log_is_read },
	{ "others read the dirty log and the backup does not answer", 3, fault_read_when_cut_off },
};

static bool settled(struct sim *s)
{
	struct ft_primary_status st;

	if (s->b_guest || s->b_ended || s->ended || !s->a_host_up || !s->a.up || s->a.stalled_until > s->now || s->a_in_stall ||
	    s->a.doom || !s->b.up || s->b.stalled_until > s->now || s->b.doom || s->g.stalled_until > s->now || !s->g.up || s->cut_ab || s->cut_ba)
		return false;
	ft_primary_get_status(s->primary, &st);
	return st.state == FT_PRIMARY_PROTECTED;
}

void sim_monkey(struct sim *s, uint64_t unused)
{
	unsigned total = 0, pick;

	(void)unused;
	if (s->calm)
		return;
	sim_after(s, 20 * FT_MS_NS + sim_rnd(s, 400) * FT_MS_NS, sim_monkey, 0);
	/* Mostly out of calm water; now and then in the middle of setting up, when nothing else is broken. */
	if (!settled(s) && (s->res->faults || s->a_in_stall || sim_rnd(s, 12)))
		return;
	for (size_t i = 0; i < FT_ARRAY_LEN(faults); i++)
		total += faults[i].weight;
	pick = (unsigned)sim_rnd(s, total);
	for (size_t i = 0; i < FT_ARRAY_LEN(faults); i++) {
		if (pick >= faults[i].weight) {
			pick -= faults[i].weight;
			continue;
		}
		sim_trace(s, "fault: %s", faults[i].name);
		s->res->faults++;
		faults[i].strike(s);
		return;
	}
}
