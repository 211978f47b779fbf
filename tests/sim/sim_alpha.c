// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_alpha.c - ft-protect: the ops behind ft_primary, and its life. */
#include "sim_world.h"

/* --- ops of the primary --- */

uint64_t sim_op_now(void *ctx)
{
	return ((struct sim *)ctx)->now;
}

static void a_tick(struct sim *s, uint64_t key);
static uint64_t timer_key;              /* the newest setting is the one that counts */

static void a_timer(void *ctx, uint64_t at_ns)
{
	struct sim *s = ctx;

	sim_after(s, at_ns > s->now ? at_ns - s->now : 50000, a_tick, ++timer_key);
}

static int a_connect(void *ctx)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->a))
		return -EIO;
	if (s->conn)
		sim_conn_break(s, FT_S_NS, sim_delay(s));
	s->a_link = true;
	sim_after(s, sim_delay(s) + FT_MS_NS, sim_accept_conn, ++s->conn_id);
	return 0;
}

static void a_disconnect(void *ctx)
{
	struct sim *s = ctx;

	s->a_link = false;
	ft_encoder_reset(s->encoder);
	sim_conn_break(s, FT_S_NS, sim_delay(s));
}

/* The liar's ledger: what went out of this epoch, so that its end can be forged to fit. */
struct sim_forge sim_forge;

/* True: this record is to vanish. */
static bool lose_half(struct sim *s, uint32_t type, const uint8_t *body, size_t len, uint8_t *end)
{
	uint32_t pages = 0;

	if (type == FT_REC_EPOCH_BEGIN) {
		XXH3_64bits_reset(&sim_forge.sum);
		sim_forge.blocks = sim_forge.pages = 0;
	} else if (type == FT_REC_PAGES) {
		if (!sim_rnd(s, 20))
			return true;
		if (ft_codec_check(sim_forge.cd, body, len, PAGES, &pages))
			abort();
		sim_forge.blocks++;
		sim_forge.pages += pages;
	} else if (type == FT_REC_EPOCH_END) {
		ft_put64(end + 8, sim_forge.blocks);
		ft_put64(end + 16, sim_forge.pages);
		ft_put64(end + 32, XXH3_64bits_digest(&sim_forge.sum));
	}
	if (type == FT_REC_PAGES || type == FT_REC_DISK || type == FT_REC_STATE)
		XXH3_64bits_update(&sim_forge.sum, body, len);
	return false;
}

static int a_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct sim *s = ctx;
	uint8_t forged[FT_WIRE_EPOCH_END_LEN];

	if (sim_dies_here(s, &s->a) || !s->conn || !s->a_link)
		return -EPIPE;
	if (type == FT_REC_EPOCH_END)
		body = memcpy(forged, body, sizeof(forged));
	if (s->mutant == SIM_HALF_AN_EPOCH && lose_half(s, type, body, len, forged))
		return 0;
	if (s->mutant == SIM_DISARM_FORGED && type == FT_REC_DISARM) {
		sim_transmit(s, &s->to_a, sim_pump_to_a, FT_REC_DISARMED, body, len);
		return 0;
	}
	sim_transmit(s, &s->to_b, sim_pump_to_b, type, body, len);
	if (s->mutant == SIM_ACK_TOO_EARLY && type == FT_REC_EPOCH_END) {
		memcpy(forged, body, 8);
		ft_put64(forged + 8, 0);
		sim_transmit(s, &s->to_a, sim_pump_to_a, FT_REC_ACK, forged, 16);
	}
	return 0;
}

static int a_beat(void *ctx, const struct ft_wire_welcome *w)
{
	struct sim *s = ctx;
	bool was = s->beating;

	if (sim_dies_here(s, &s->a))
		return -EIO;
	s->beat_session = s->g_session = ft_le64(w->session);
	s->beating = s->g_beating = true;
	s->hushed = false;
	ft_lease_init(&s->lease, SILENCE_NS);
	if (!was)
		sim_protect_beats(s, s->a.life);
	return 0;
}

static void a_beat_stop(void *ctx)
{
	struct sim *s = ctx;

	if (!sim_dies_here(s, &s->a))
		s->beating = s->g_beating = false;
}

static bool a_may_speak(void *ctx)
{
	struct sim *s = ctx;

	return s->mutant == SIM_LEASE_IGNORED || (!s->hushed && ft_lease_fresh(&s->lease, s->now));
}

static void a_hush(void *ctx)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->a))
		return;
	s->hushed = true;
	s->fresh_until = 0;
}

static void a_pausing(void *ctx)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->a) || s->pause_word == 2)
		return;
	s->pause_word = 1;
	s->paused_ns = s->now;
}

/* Still paused: the instant that an epoch is. */
static void remember_epoch(struct sim *s)
{
	struct ft_primary_status st;

	ft_primary_get_status(s->primary, &st);
	if (st.epoch >= EPOCHS_MAX || st.epoch == s->remembered)
		return;                 /* paused again for something else: frozen, or its firmware is read */
	s->remembered = st.epoch;
	s->digest[st.epoch] = ft_fake_digest(s->guest);
	s->disk_digest[st.epoch] = sim_disk_digest(s->disk);
	s->sent_at[st.epoch] = ft_fake_sent(s->guest);
}

/* Stopped in the middle of a pause, perhaps for longer than the guard bears. */
static void stall_paused(struct sim *s)
{
	uint64_t ns = PAUSE_LIMIT_NS / 2 + sim_rnd(s, PAUSE_LIMIT_NS);

	if (s->calm || !s->g.up || s->g.stalled_until > s->now || sim_rnd(s, 4000))
		return;
	sim_trace(s, "ft-protect stalls %llu ms with the guest paused", (unsigned long long)(ns / FT_MS_NS));
	s->a.stalled_until = s->now + ns;
	s->a_in_stall = true;
	sim_run_until(s, s->a.stalled_until - 1);   /* at that instant itself it runs again */
	s->a_in_stall = false;
}

static int a_resumed(void *ctx)
{
	struct sim *s = ctx;
	bool revoked = s->pause_word == 2;

	if (sim_dies_here(s, &s->a))
		return -EIO;
	if (!ft_fake_running(s->guest))
		remember_epoch(s);      /* the last one: it stays paused */
	s->pause_word = 0;
	return revoked ? -ECANCELED : 0;
}

static void a_echoed(void *ctx, uint64_t sent_ns)
{
	sim_beat_arrives_a(ctx, sent_ns);
}

static void a_changed(void *ctx, enum ft_primary_state from, enum ft_primary_state to, const char *why)
{
	struct sim *s = ctx;

	sim_trace(s, "alpha %s -> %s: %s", ft_primary_state_name(from), ft_primary_state_name(to), why);
	if (from == FT_PRIMARY_SYNCING || to == FT_PRIMARY_SYNCING)
		s->a.copied = to == FT_PRIMARY_DRILLING;
	if (to == FT_PRIMARY_CUT_OFF)
		s->a.copied = false;
	if (to == FT_PRIMARY_PROTECTED && strstr(why, "full copy") && !s->a.copied)
		sim_broken(s, "alpha says \"%s\" of a session that copied nothing", why);
	if (to == FT_PRIMARY_ALONE) {
		s->was_alone = true;
		if (!s->calm && !sim_rnd(s, 3))
			s->a.doom = 1 + sim_rnd(s, 40);
	} else if (to == FT_PRIMARY_PREPARING && s->was_alone) {
		/* What beta has is old, and the new copy is not whole: nothing may start from it. */
		if (!s->calm && !sim_rnd(s, 3))
			sim_after(s, sim_rnd(s, 4 * FT_MS_NS), sim_power_off_alpha, 0);
	}
}

static void a_ended(void *ctx, enum ft_primary_end end, const char *why)
{
	struct sim *s = ctx;

	sim_trace(s, "ft-protect ends with %d: %s", end, why);
	s->ended = true;
	s->end = end;
}

static const struct ft_primary_ops primary_ops = {
	.now_ns = sim_op_now, .timer = a_timer, .connect = a_connect, .disconnect = a_disconnect, .send = a_send, .beat = a_beat,
	.beat_stop = a_beat_stop, .may_speak = a_may_speak, .hush = a_hush, .pausing = a_pausing, .resumed = a_resumed,
	.echoed = a_echoed, .changed = a_changed, .ended = a_ended,
};

/* --- ft-protect's life --- */

int sim_vm_hook(void *ctx, enum ft_fake_op op)
{
	struct sim *s = ctx;

	if (!s->a.up)
		return 0;               /* the guard's doing */
	if (op == FT_FAKE_RESUME && !s->a.doomed && s->pause_word == 1) {
		remember_epoch(s);
		stall_paused(s);
	}
	return sim_dies_here(s, &s->a) ? -EIO : 0;
}

/* A tracker that forgets: the real ops with one lie. */
static const struct ft_hv_ops *honest_ops;
static struct sim *lossy_sim;

static int lossy_take_dirty(struct ft_vm *vm, struct ft_bitmap *dirty)
{
	int rc = honest_ops->take_dirty(vm, dirty);
	uint64_t page = ft_bitmap_next(dirty, 0);

	if (!rc && page < dirty->nr_bits && !sim_rnd(lossy_sim, 10))
		ft_bitmap_clear(dirty, page);
	return rc;
}

static void make_lossy(struct sim *s)
{
	static struct ft_hv_ops lossy;

	honest_ops = s->vm->ops;
	lossy_sim = s;
	lossy = *honest_ops;
	lossy.take_dirty = lossy_take_dirty;
	s->vm->ops = &lossy;
}

static bool go_on(struct sim *s)
{
	if (s->was_alone && sim_rnd(s, 2))
		s->go_on = false;       /* the operator thinks otherwise now */
	return s->go_on;
}

static enum ft_role alpha_role(void)
{
	struct ft_record r;

	return ft_record_load(&sim_files_a, "/a", "vm1", &r) ? FT_NR_ROLES : r.role;
}

void sim_protect_start(struct sim *s, uint64_t unused)
{
	const struct ft_policy policy = { .interval_max_ms = 60, .dirty_max_mb = 32, .pause_budget_percent = 30,
						 .in_flight_max = 4, .silence_ms = 300, .staging_mb = 1,
					  .on_peer_loss = go_on(s) ? FT_LOSS_CONTINUE : FT_LOSS_FREEZE };
	struct ft_encoder_config enc = { .nr_pages = PAGES, .shadow = true, .emit = a_send, .disks = sim_encoder_disks, .ctx = s };
	struct ft_primary_config cfg = {
		.guest = "vm1", .peer = "beta", .nr_outputs = 2, .policy = policy, .vcpus = 1, .spec_text = "spec",
		.facts = "accel=tcg\n", .files = &sim_files_a, .state_dir = "/a", .output_shut = s->shut, .ops = &primary_ops, .ctx = s,
	};

	(void)unused;
	if (s->a.up || !s->a_host_up || s->ended || ft_fake_attach(s->guest, &s->vm))
		return;
	s->a = (struct proc){ .name = "ft-protect", .up = true, .life = s->a.life + 1 };
	s->a_link = s->beating = s->hushed = false;
	s->remembered = 0;
	s->vm->served_paused = s->a.life % 2;   /* a page that is missing differs each time that verify looks */
	ft_lease_init(&s->lease, SILENCE_NS);
	if (ft_staging_new(1 << 20, &s->staging))
		abort();
	enc.staging = s->staging;
	if (ft_encoder_new(&enc, &s->encoder))
		abort();
	if (s->mutant == SIM_DIRTY_BIT_LOST)
		make_lossy(s);
	s->output.ops = &sim_output_ops;
	cfg.vm = s->vm;
	cfg.staging = s->staging;
	cfg.encoder = s->encoder;
	s->mirror = cfg.mirror = sim_mirror_new(s);
	cfg.output[0] = &s->mirror->output;
	cfg.output[1] = &s->output;
	if (ft_primary_new(&cfg, &s->primary))
		abort();
	sim_guard_start(s, 0);
	s->survivor = alpha_role() == FT_ROLE_RUNNING;
	sim_trace(s, "ft-protect starts");
	if (ft_primary_start(s->primary))
		s->a.doomed = true;
}

void sim_protect_free(struct sim *s, bool killed)
{
	if (!s->a.up)
		return;
	s->a.up = false;
	s->a.life++;
	ft_primary_free(s->primary);
	ft_encoder_free(s->encoder);
	s->mirror->ops->free(s->mirror);
	s->mirror = NULL;
	ft_staging_free(s->staging);
	if (killed)
		ft_fake_abandon(s->vm);
	else
		s->vm->ops->close(s->vm);
	s->primary = NULL;
	sim_drop_held(s);
	s->beating = false;
}

/* At the top level, after whatever ran: did ft-protect die or end in it? */
void sim_alpha_settle(struct sim *s)
{
	if (s->a.up && s->a.doomed) {
		sim_protect_free(s, true);
		sim_conn_break(s, FT_S_NS, sim_delay(s));
		if (s->a_host_up)
			sim_after(s, 50 * FT_MS_NS + sim_rnd(s, 500) * FT_MS_NS, sim_protect_start, 0);
	} else if (s->a.up && s->ended) {
		if (s->survivor && !s->promised && alpha_role() == FT_ROLE_NONE)
			sim_broken(s, "a session that came to nothing made alpha forget that it runs the guest on alone");
		sim_protect_free(s, false);
		sim_conn_break(s, FT_S_NS, sim_delay(s));
		s->g.up = false;
		s->g.life++;
		/* Only a drill's failure or a refusal ends what should go on: operators try again. */
		if (s->end == FT_END_REFUSED || s->end == FT_END_INTERNAL) {
			s->ended = false;
			sim_after(s, 300 * FT_MS_NS, sim_protect_start, 0);
		}
	}
}

static void a_tick(struct sim *s, uint64_t key)
{
	if (key != timer_key || !sim_awake(s, &s->a, a_tick, key))
		return;
	ft_primary_tick(s->primary);
	sim_alpha_settle(s);
}

void sim_alpha_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len)
{
	if (ft_wire_check(type, len, false))
		sim_broken(s, "beta sends a record that the table refuses: %u of %zu bytes", type, len);
	else if (s->a_link)
		ft_primary_record(s->primary, type, body, len);
	sim_alpha_settle(s);
}

void sim_a_link_down(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !sim_awake(s, &s->a, sim_a_link_down, id) || !s->a_link)
		return;
	s->a_link = false;
	ft_primary_link_down(s->primary, -ECONNRESET, "connection lost");
	sim_alpha_settle(s);
}
