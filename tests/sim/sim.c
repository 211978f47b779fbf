// SPDX-License-Identifier: GPL-3.0-or-later
/* sim.c - see sim.h. One life from beginning to end. */
#include "sim_world.h"

#include "diskmirror/store_priv.h"

#define RUN_NS (5 * FT_S_NS)            /* with faults */
#define CALM_NS (4 * FT_S_NS)           /* and then without */

/* --- the run --- */

static void come_back(struct sim *s)
{
	/* The dust settles: alpha's host does not come back from a power cut with a memory-only guest. */
	s->cut_ab = s->cut_ba = false;
	s->a.doom = s->b.doom = 0;
	s->b.stalled_until = s->g.stalled_until = s->now;
	if (!s->a_in_stall)
		s->a.stalled_until = s->now;
	if (s->a_host_up && !s->a.up && !s->ended)
		sim_protect_start(s, 0);
	sim_guard_start(s, 0);
}

static void check_alive(struct sim *s)
{
	uint64_t before = s->answered;
	bool gone = !s->a_host_up && !s->b_guest;
	struct ft_primary_status st = { 0 };

	if (s->a.up)
		ft_primary_get_status(s->primary, &st);
	sim_run_until(s, s->now + FT_S_NS);
	if (s->b_ended || (s->crashed && !s->b_guest))
		return;                 /* and alpha stayed silent, or sim_seen knows */
	if (s->was_alone && !s->b_guest && (gone || !ft_fake_running(s->guest)))
		return;                 /* two failures, the second one while unprotected: nothing was promised */
	if (gone && s->ever_armed && !s->promised)
		sim_broken(s, "alive: alpha is dead and beta does not run the guest");
	else if (!gone && s->answered == before)
		sim_broken(s, "alive: no client gets an answer (alpha %s%s)",
		       s->a.up ? ft_primary_state_name(st.state) : s->ended ? "ended" : "down",
		       !s->b_guest && !ft_fake_running(s->guest) ? ", guest paused" : "");
}

static void tear_down(struct sim *s)
{
	if (s->a.up)
		sim_protect_free(s, true);
	sim_child_free(s);
	sim_wire_clear(&s->to_a);
	sim_wire_clear(&s->to_b);
	while (s->events) {
		struct event *e = s->events;

		s->events = e->next;
		free(e);
	}
	sim_drop_held(s);
	ft_fake_guest_free(s->guest);
	ft_fake_guest_free(s->b_guest);
	forgetful_free(s->b_files);
	ft_blob_free(&s->a_record);
	ft_blob_free(&s->b_record);
	ft_codec_free(sim_forge.cd);
	sim_forge.cd = NULL;
}

static void quiet(void *ctx, enum ft_log_level level, const char *line)
{
	if (((struct sim *)ctx)->trace)
		sim_trace(ctx, "log %d: %s", level, line);
}

const char *sim_mutant_name(enum sim_mutant m)
{
	static const char *const name[SIM_MUTANTS] = {
		"honest", "ack-too-early", "half-an-epoch", "disarm-forged", "lease-ignored", "hasty-detector", "late-seal",
		"dirty-bit-lost", "no-guard", "disk-write-lost",
	};

	return name[m];
}

void sim_run(uint64_t seed, enum sim_mutant mutant, bool trace_on, struct sim_result *out)
{
	static struct sim s;
	static int verbose = -1;

	if (verbose < 0)
		verbose = getenv("SIM_VERBOSE") != NULL;
	if (verbose)
		fprintf(stderr, "seed %llu %s\n", (unsigned long long)seed, sim_mutant_name(mutant));

	*out = (struct sim_result){ .ok = true };
	s = (struct sim){ .rng = seed * 0x9e3779b97f4a7c15ull + 1, .mutant = mutant, .trace = trace_on, .res = out,
			  .a_host_up = true, .open_allowed = true };
	s.go_on = !sim_rnd(&s, 5);
	s.journal = sim_rnd(&s, 2);
	s.disk_seen = true;
	s.b_files = forgetful_new();
	ft_store_tuning.sync_ms = 0;    /* no thread: sim_store_syncs */
	ft_store_tuning.slice = seed % 2 ? 4 << 20 : 1; /* copies are applied at once, or op by op */
	sim_wire_clear(&s.to_a);
	sim_wire_clear(&s.to_b);
	sim_store_a = (struct store){ .s = &s, .blob = &s.a_record, .owner = &s.a };
	sim_store_b = (struct store){ .s = &s, .blob = &s.b_record, .owner = &s.b };
	ft_log_divert(quiet, &s);
	if (ft_fake_guest_new(&sim_machine, &s.guest) || ft_codec_new(&sim_forge.cd))
		abort();
	ft_fake_on_send(s.guest, sim_alpha_sends, &s);
	ft_fake_on_op(s.guest, sim_vm_hook, &s);
	sim_protect_start(&s, 0);
	sim_guests_run(&s, 0);
	sim_client_asks(&s, 0);
	sim_after(&s, sim_rnd(&s, 2 * FT_S_NS), sim_monkey, 0);
	sim_run_until(&s, RUN_NS);
	if (s.longer)
		sim_run_until(&s, RUN_NS + s.longer);
	s.calm = true;
	come_back(&s);
	sim_run_until(&s, RUN_NS + s.longer + CALM_NS);
	if (out->ok)
		check_alive(&s);
	tear_down(&s);
	ft_log_divert(NULL, NULL);
}
