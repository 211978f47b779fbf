// SPDX-License-Identifier: GPL-3.0-or-later
/* sim_beta.c - ftd's child: the ops behind ft_backup, and its life. */
#include "sim_world.h"

/* --- ops of the backup --- */

static void b_tick(struct sim *s, uint64_t key);
static uint64_t timer_key;              /* the newest setting is the one that counts */
static void drill_done(struct sim *s, uint64_t life);

static void b_timer(void *ctx, uint64_t at_ns)
{
	struct sim *s = ctx;

	sim_after(s, at_ns > s->now ? at_ns - s->now : 50000, b_tick, ++timer_key);
}

static int b_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->b) || !s->conn || !s->b_link)
		return -EPIPE;
	if (type == FT_REC_ACK && ft_le64(body) < EPOCHS_MAX)
		s->acked_sent = s->sent_at[ft_le64(body)];
	sim_transmit(s, &s->to_a, sim_pump_to_a, type, body, len);
	return 0;
}

static void b_disconnect(void *ctx)
{
	struct sim *s = ctx;

	/* What was sent goes out first: the break waits behind it. */
	s->b_link = false;
	if (!s->accepting)              /* the connection before, which alpha has given up already */
		sim_after(s, 5 * FT_MS_NS, sim_a_link_down, s->conn_id);
}

static void b_random(void *ctx, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(1 + sim_rnd(ctx, 255));
}

static uint32_t b_silence_ms(void *ctx)
{
	(void)ctx;
	return SILENCE_NS / FT_MS_NS;
}

static int b_echo_start(void *ctx, const uint8_t session[16], uint32_t silence_ms, uint16_t *port)
{
	struct sim *s = ctx;

	(void)silence_ms;
	if (sim_dies_here(s, &s->b))
		return -EIO;
	if (s->echoing && s->armed) {
		s->old_session = s->echo_session;
		s->old_silence = s->silence;
	}
	s->echo_session = ft_le64(session);
	s->echoing = true;
	s->armed = false;
	*port = 1;
	return 0;
}

static void b_echo_arm(void *ctx)
{
	struct sim *s = ctx;

	s->armed = true;
	ft_silence_init(&s->silence, s->now, s->mutant == SIM_HASTY_DETECTOR ? 35 * FT_MS_NS : SILENCE_NS, 10 * FT_MS_NS);
}

static void b_life(void *ctx)
{
	struct sim *s = ctx;

	ft_silence_life(&s->silence, s->now);
}

static bool b_silent(void *ctx)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->b) || !s->echoing || !s->armed)
		return false;
	if (s->old_session && ft_silence_judge(&s->old_silence, s->now))
		s->old_session = 0;
	if (s->old_session || !ft_silence_judge(&s->silence, s->now))
		return false;
	s->echoing = false;
	return true;
}

static void b_echo_stop(void *ctx)
{
	struct sim *s = ctx;

	s->echoing = s->armed = false;
	s->old_session = 0;
}

static enum ft_wire_reason b_admit(void *ctx, const struct ft_wire_hello *h, const char *spec, const char *facts, char *why,
				   size_t size)
{
	(void)ctx, (void)facts;
	snprintf(why, size, "%s", "");
	return !strcmp(spec, "spec") && h->nr_pages == PAGES ? FT_REASON_OK : FT_REASON_MISMATCH;
}

static bool b_runs_here(void *ctx)
{
	return ((struct sim *)ctx)->b_guest != NULL;
}

const struct ft_fake_config sim_machine = { .nr_pages = PAGES, .seed = 1 };

static int replica_hook(void *ctx, enum ft_fake_op op)
{
	struct sim *s = ctx;

	if (op == FT_FAKE_DESTROY) {
		s->replica = NULL;
		return 0;
	}
	if (op == FT_FAKE_DRILL && !sim_rnd(s, 40) && !s->calm)
		return -EIO;
	return sim_dies_here(s, &s->b) ? -EIO : 0;
}

static enum ft_wire_reason b_prepare(void *ctx, struct ft_replica **out, char *why, size_t size)
{
	struct sim *s = ctx;

	if (sim_dies_here(s, &s->b) || ft_fake_replica_prepare(&sim_machine, out)) {
		snprintf(why, size, "no replica");
		return FT_REASON_INTERNAL;
	}
	ft_fake_replica_on_op(*out, replica_hook, s);
	s->replica = *out;
	return FT_REASON_OK;
}

static enum ft_wire_reason b_could_prepare(void *ctx, char *why, size_t size)
{
	(void)ctx, (void)why, (void)size;
	return FT_REASON_OK;
}

static unsigned b_nr_disks(void *ctx)
{
	(void)ctx;
	return 1;
}

static void b_watch_drill(void *ctx, int fd)
{
	struct sim *s = ctx;

	if (fd >= 0)
		sim_after(s, 30 * FT_MS_NS + sim_rnd(s, 200) * FT_MS_NS, drill_done, s->b.life);
}

static void b_took_over(void *ctx, uint64_t generation, uint64_t epoch)
{
	struct sim *s = ctx;

	(void)epoch;
	sim_trace(s, "beta runs the guest, generation %llu", (unsigned long long)generation);
	s->res->takeovers++;
	if (!sim_rnd(s, 4))
		sim_after(s, sim_rnd(s, 2 * FT_S_NS), sim_guest_ends_on_beta, 0);
}

static void check_takeover(struct sim *s)
{
	struct ft_backup_status st;

	ft_backup_get_status(s->backup, &st);
	s->b_guest = ft_fake_replica_guest(s->replica);
	if (!s->b_guest) {
		sim_broken(s, "whole: beta says RUNNING but no guest was started");
		return;
	}
	ft_fake_on_send(s->b_guest, sim_beta_sends, s);
	if (st.epoch >= EPOCHS_MAX || ft_fake_digest(s->b_guest) != s->digest[st.epoch])
		sim_broken(s, "whole: beta starts something that is not sealed epoch %llu", (unsigned long long)st.epoch);
	if (st.epoch < EPOCHS_MAX && sim_beta_disk_digest(s) != s->disk_digest[st.epoch])
		sim_broken(s, "whole: the disk that beta starts with is not the one of epoch %llu", (unsigned long long)st.epoch);
	if (s->was_alone)
		sim_broken(s, "nothing lost: an old replica was started although the primary went on alone");
	if (ft_fake_sent(s->b_guest) < s->out_max)
		sim_broken(s, "nothing lost: packet %llu was seen, the guest on beta has sent %llu", (unsigned long long)s->out_max,
		       (unsigned long long)ft_fake_sent(s->b_guest));
	if (ft_fake_last_request(s->b_guest) < s->answered)
		sim_broken(s, "nothing lost: request %llu was answered, the guest on beta knows %llu",
		       (unsigned long long)s->answered, (unsigned long long)ft_fake_last_request(s->b_guest));
}

static void b_changed(void *ctx, enum ft_backup_state from, enum ft_backup_state to, const char *why)
{
	struct sim *s = ctx;

	sim_trace(s, "beta %s -> %s: %s", ft_backup_state_name(from), ft_backup_state_name(to), why);
	if (to == FT_BACKUP_ARMED) {
		s->was_alone = false;   /* a full copy came after that: the replica is of today */
		s->ever_armed = true;
	}
	s->promised = to == FT_BACKUP_DISARMED;
	if (to == FT_BACKUP_RUNNING && !s->excuse)
		sim_broken(s, "no panic: takeover (%s) although the primary's host, guest and network are well", why);
	if (to == FT_BACKUP_RUNNING)
		check_takeover(s);
	if (to == FT_BACKUP_EMPTY && !strcmp(why, "takeover failed") && !s->b.doomed)
		sim_broken(s, "whole: the replica does not start");
}

static const struct ft_backup_ops backup_ops = {
	.now_ns = sim_op_now, .timer = b_timer, .send = b_send, .disconnect = b_disconnect, .random = b_random,
	.silence_ms = b_silence_ms, .echo_start = b_echo_start, .echo_arm = b_echo_arm, .echo_stop = b_echo_stop,
	.life = b_life, .silent = b_silent, .admit = b_admit, .runs_here = b_runs_here,
	.could_prepare = b_could_prepare, .nr_disks = b_nr_disks,
	.open_store = sim_open_store, .close_store = sim_close_store, .prepare = b_prepare, .watch_drill = b_watch_drill,
	.took_over = b_took_over, .changed = b_changed,
};

/* --- the life of ftd's child --- */

static void child_start(struct sim *s)
{
	struct ft_backup_config cfg = {
		.guest = "vm1", .files = &sim_files_b, .state_dir = "/tmp", .staging_bound = 1 << 20,
		.tick_ns = 10 * FT_MS_NS, .ops = &backup_ops, .ctx = s,
	};

	s->b = (struct proc){ .name = "child", .up = true, .life = s->b.life + 1 };
	s->b_link = s->echoing = s->armed = false;
	s->old_session = 0;
	if (ft_backup_new(&cfg, &s->backup))
		abort();
	ft_backup_tick(s->backup);
}

void sim_child_free(struct sim *s)
{
	if (!s->b.up)
		return;
	s->b.up = false;
	s->b.life++;
	ft_backup_free(s->backup);
	forgetful_process_dies(s->b_files);
	s->backup = NULL;
	s->echoing = false;
}

void sim_beta_settle(struct sim *s)
{
	if (!s->b.up || !s->b.doomed)
		return;
	sim_child_free(s);
	sim_conn_break(s, sim_delay(s), FT_S_NS);
}

static void b_tick(struct sim *s, uint64_t key)
{
	if (key != timer_key || !sim_awake(s, &s->b, b_tick, key))
		return;
	ft_backup_tick(s->backup);
	sim_store_syncs(s);
	sim_beta_settle(s);
}

void sim_beta_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len)
{
	if (ft_wire_check(type, len, true))
		sim_broken(s, "alpha sends a record that the table refuses: %u of %zu bytes", type, len);
	if (s->b_link)
		ft_backup_record(s->backup, type, body, len);
	sim_beta_settle(s);
}

void sim_b_link_down(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !sim_awake(s, &s->b, sim_b_link_down, id) || !s->b_link)
		return;
	s->b_link = false;
	ft_backup_link_down(s->backup, "connection lost");
	sim_beta_settle(s);
}

void sim_accept_conn(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !s->a.up || !s->a_link)
		return;
	if (s->cut_ab || s->cut_ba || (s->b.up && s->b.stalled_until > s->now)) {
		sim_after(s, 500 * FT_MS_NS, sim_a_link_down, id);
		return;
	}
	if (!s->b.up)
		child_start(s);
	sim_wire_clear(&s->to_a);
	sim_wire_clear(&s->to_b);
	s->conn = true;
	sim_capture_connection();
	s->accepting = true;
	ft_backup_link_up(s->backup, "alpha");
	s->accepting = false;
	s->b_link = true;
	if (s->a.stalled_until <= s->now)
		ft_primary_link_up(s->primary);
	else
		sim_conn_break(s, 0, sim_delay(s));
	sim_alpha_settle(s);
}

static void drill_done(struct sim *s, uint64_t life)
{
	if (life != s->b.life || !sim_awake(s, &s->b, drill_done, life))
		return;
	ft_backup_drilled(s->backup);
	sim_beta_settle(s);
}
