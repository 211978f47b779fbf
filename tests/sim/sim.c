// SPDX-License-Identifier: GPL-3.0-or-later
/* sim.c - see sim.h. From the bottom up: clock, network, kernel, the two hosts, the monkey, the run. */
#include "sim.h"

#include "ft/backup.h"
#include "ft/detector.h"
#include "ft/fake.h"
#include "ft/image.h"
#include "ft/primary.h"
#include <stdio.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#define PAGES 48u
#define SILENCE_NS (300 * FT_MS_NS)
#define BEAT_NS (30 * FT_MS_NS)
#define PAUSE_LIMIT_NS (1000 * FT_MS_NS)
#define RUN_NS (5 * FT_S_NS)            /* with faults */
#define CALM_NS (4 * FT_S_NS)           /* and then without */
#define EPOCHS_MAX 8192u

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

	/* ft-protect */
	struct proc a;
	struct ft_vm *vm;
	struct ft_staging *staging;
	struct ft_encoder *encoder;
	struct ft_primary *primary;
	struct ft_output output;
	struct ft_lease lease;
	bool beating, hushed, a_link, ended;
	enum ft_primary_end end;
	uint64_t beat_session;

	/* guard */
	struct proc g;
	bool g_beating;
	uint64_t g_session;

	/* host beta: ftd's child */
	struct proc b;
	struct ft_backup *backup;
	struct ft_replica *replica;     /* borrowed from backup while parked */
	struct ft_silence silence;
	bool echoing, b_link, takeover_due;
	uint64_t echo_session;
	struct ft_fake_guest *b_guest;  /* took over */
	struct ft_blob b_record;

	/* what is known to the all-seeing */
	uint64_t digest[EPOCHS_MAX], sent_at[EPOCHS_MAX];
	uint64_t epoch_base;            /* epochs of ft-protects that died */
	uint64_t acked_sent;            /* packets contained in the newest acknowledged epoch */
	uint64_t out_max;               /* newest packet that left alpha */
	uint64_t answered;              /* newest request whose answer the client has */
	uint64_t next_request;
	bool open_allowed;              /* unprotected by right: before, or after DISARMED */
	bool excuse;                    /* somebody had a reason to take over */
	bool go_on;                     /* policy `continue` */
	bool was_alone;                 /* ... was needed: what beta has is old, and nobody may force it */
	uint64_t fault_until;           /* one fault at a time */
};

static uint64_t rnd(struct sim *s, uint64_t n)  /* 0..n-1 */
{
	uint64_t z = s->rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (z ^ z >> 31) % n;
}

static void FT_PRINTF(2, 3) trace(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (!s->trace)
		return;
	printf("%10.3f ms  ", (double)s->now / 1e6);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	putchar('\n');
	fflush(stdout);         /* a crash must not swallow the last lines */
}

static void FT_PRINTF(2, 3) broken(struct sim *s, const char *fmt, ...)
{
	size_t n;
	va_list ap;

	if (!s->res->ok)
		return;
	s->res->ok = false;
	n = (size_t)snprintf(s->res->why, sizeof(s->res->why), "at %.3f ms: ", (double)s->now / 1e6);
	va_start(ap, fmt);
	vsnprintf(s->res->why + n, sizeof(s->res->why) - n, fmt, ap);
	va_end(ap);
	trace(s, "BROKEN: %s", s->res->why);
}

static void insert(struct sim *s, struct event *e)
{
	struct event **at = &s->events;

	while (*at && ((*at)->at < e->at || ((*at)->at == e->at && (*at)->order < e->order)))
		at = &(*at)->next;
	e->next = *at;
	*at = e;
}

static void after(struct sim *s, uint64_t ns, event_fn *fn, uint64_t arg)
{
	struct event *e = malloc(sizeof(*e));

	if (!e)
		abort();
	*e = (struct event){ .at = s->now + ns, .order = s->order++, .fn = fn, .arg = arg };
	insert(s, e);
}

/* Run what is due until @until. Nested while a process is stalled in the middle of a call. */
static void run_until(struct sim *s, uint64_t until)
{
	while (s->res->ok && s->events && s->events->at <= until) {
		struct event *e = s->events;

		s->events = e->next;
		if (e->at > s->now)
			s->now = e->at;
		e->fn(s, e->arg);
		free(e);
	}
	if (s->now < until)
		s->now = until;
}

/* False: not now; @fn comes again when the process runs again. */
static bool awake(struct sim *s, struct proc *p, event_fn *fn, uint64_t arg)
{
	if (!p->up)
		return false;
	if (p->stalled_until <= s->now)
		return true;
	after(s, p->stalled_until - s->now, fn, arg);
	return false;
}

/* Each op of a process passes here: a crash may come at any of them. True: it is dead. */
static bool dies_here(struct sim *s, struct proc *p)
{
	if (p->doom && !--p->doom) {
		p->doomed = true;
		trace(s, "%s dies in the middle of it", p->name);
	}
	return p->doomed;
}

/* --- the network --- */

static void alpha_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len);
static void beta_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len);
static void pump_to_a(struct sim *s, uint64_t id);
static void pump_to_b(struct sim *s, uint64_t id);

static void wire_clear(struct wire *w)
{
	while (w->first) {
		struct message *m = w->first;

		w->first = m->next;
		free(m->body);
		free(m);
	}
	*w = (struct wire){ .last = &w->first };
}

static uint64_t delay(struct sim *s)
{
	uint64_t ns = 200000 + rnd(s, 1500000);

	return rnd(s, 200) ? ns : ns + rnd(s, 60) * FT_MS_NS;
}

static void transmit(struct sim *s, struct wire *w, event_fn *pump, uint32_t type, const void *body, size_t len)
{
	struct message *m = calloc(1, sizeof(*m));

	if (!m)
		abort();
	m->type = type;
	m->len = len;
	m->body = malloc(len + 1);
	memcpy(m->body, body ? body : "", len);
	m->at = s->now + delay(s);
	if (m->at < w->last_at)
		m->at = w->last_at;
	w->last_at = m->at;
	*w->last = m;
	w->last = &m->next;
	if (!w->pumping) {
		w->pumping = true;
		after(s, m->at - s->now, pump, s->conn_id);
	}
}

static void pump(struct sim *s, struct wire *w, bool cut, struct proc *to, event_fn *self,
		 void (*deliver)(struct sim *, uint32_t, const uint8_t *, size_t), uint64_t id)
{
	struct message *m;

	if (id != s->conn_id || !s->conn)
		return;
	if (cut) {
		after(s, 15 * FT_MS_NS, self, id);      /* TCP tries again */
		return;
	}
	if (!awake(s, to, self, id))
		return;
	while ((m = w->first) && m->at <= s->now && id == s->conn_id && s->conn && to->stalled_until <= s->now) {
		w->first = m->next;
		if (!w->first)
			w->last = &w->first;
		deliver(s, m->type, m->body, m->len);
		free(m->body);
		free(m);
	}
	if (id != s->conn_id || !s->conn)
		return;
	w->pumping = w->first != NULL;
	if (w->first)
		after(s, w->first->at > s->now ? w->first->at - s->now : 0, self, id);
}

static void pump_to_a(struct sim *s, uint64_t id)
{
	pump(s, &s->to_a, s->cut_ba, &s->a, pump_to_a, alpha_record, id);
}

static void pump_to_b(struct sim *s, uint64_t id)
{
	pump(s, &s->to_b, s->cut_ab, &s->b, pump_to_b, beta_record, id);
}

static void a_link_down(struct sim *s, uint64_t id);
static void b_link_down(struct sim *s, uint64_t id);

/* The connection is gone; each side learns of it in its own time. */
static void conn_break(struct sim *s, uint64_t a_ns, uint64_t b_ns)
{
	if (!s->conn)
		return;
	s->conn = false;
	wire_clear(&s->to_a);
	wire_clear(&s->to_b);
	after(s, a_ns, a_link_down, s->conn_id);
	after(s, b_ns, b_link_down, s->conn_id);
}

/* --- durable records: one blob a host, kept by the disk --- */

struct store {
	struct sim *s;
	struct ft_blob *blob;
	struct proc *owner;
	struct ft_blob tmp;
};
static struct store store_a, store_b;

static int file_begin(void *ctx, const char *tmp, int *h)
{
	struct store *st = ctx;

	(void)tmp;
	ft_blob_free(&st->tmp);
	*h = 0;
	return dies_here(st->s, st->owner) ? -EIO : 0;
}

static int file_read(void *ctx, const char *path, size_t max, struct ft_blob *out)
{
	struct store *st = ctx;

	(void)path, (void)max;
	*out = (struct ft_blob){ 0 };
	if (!st->blob->data)
		return -ENOENT;
	return ft_blob_copy(out, st->blob->data, st->blob->len);
}

static int file_write(void *ctx, int h, const void *data, size_t len)
{
	struct store *st = ctx;

	(void)h;
	return dies_here(st->s, st->owner) ? -EIO : ft_blob_copy(&st->tmp, data, len);
}

static int file_sync(void *ctx, int h)
{
	struct store *st = ctx;

	(void)h;
	return dies_here(st->s, st->owner) ? -EIO : 0;
}

static uint64_t generation_of(const struct ft_blob *b)
{
	unsigned long long gen = 0;

	if (b->data)
		sscanf((const char *)b->data, "ft-record 1 %llu", &gen);
	return gen;
}

static int file_rename(void *ctx, const char *from, const char *to)
{
	struct store *st = ctx;

	(void)from, (void)to;
	if (dies_here(st->s, st->owner))
		return -EIO;
	if (generation_of(&st->tmp) < generation_of(st->blob))
		broken(st->s, "grow: a durable generation shrank");
	ft_blob_free(st->blob);
	*st->blob = st->tmp;
	st->tmp = (struct ft_blob){ 0 };
	trace(st->s, "%s writes %.*s", st->owner->name, (int)strcspn((char *)st->blob->data, "\n"), st->blob->data);
	return 0;
}

static int file_sync_dir(void *ctx, const char *dir)
{
	struct store *st = ctx;

	(void)dir;
	return dies_here(st->s, st->owner) ? -EIO : 0;
}

static void file_end(void *ctx, int h)
{
	struct store *st = ctx;

	(void)h;
	ft_blob_free(&st->tmp);
}

#define FILE_OPS(store) { .begin = file_begin, .read = file_read, .write = file_write, .sync = file_sync, \
			  .rename = file_rename, .sync_dir = file_sync_dir, .end = file_end, .ctx = store }
static const struct ft_file_ops files_a = FILE_OPS(&store_a), files_b = FILE_OPS(&store_b);

/* --- packets: what leaves a host is seen by everybody --- */

static void seen(struct sim *s, bool from_alpha, uint64_t seq, uint64_t id)
{
	if (from_alpha) {
		s->res->released++;
		if (s->b_guest)
			broken(s, "one guest: packet %llu leaves alpha while beta runs the guest", (unsigned long long)seq);
		if (!s->open_allowed && seq > s->acked_sent)
			broken(s, "released: packet %llu leaves alpha, acknowledged epochs contain %llu",
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

static void alpha_sends(void *ctx, uint64_t seq, uint64_t id)
{
	struct sim *s = ctx;
	struct packet *p, **last = &s->held;

	if (!s->a_host_up)
		return;
	if (!s->shut) {
		seen(s, true, seq, id);
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

static void drop_held(struct sim *s)
{
	while (s->held) {
		struct packet *p = s->held;

		s->held = p->next;
		free(p);
	}
}

static void beta_sends(void *ctx, uint64_t seq, uint64_t id)
{
	seen(ctx, false, seq, id);
}

/* --- the held output as ft_primary knows it --- */

static struct sim *sim_of(struct ft_output *o)
{
	return ft_container_of(o, struct sim, output);
}

static int out_setup(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (dies_here(s, &s->a))
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

	if (dies_here(s, &s->a))
		return -EIO;
	for (struct packet *p = s->held; p; p = p->next)
		if (!p->epoch)
			p->epoch = epoch;
	return 0;
}

static int out_commit(struct ft_output *o, uint64_t epoch)
{
	struct sim *s = sim_of(o);

	if (dies_here(s, &s->a))
		return -EIO;
	while (s->held && (s->held->epoch ? s->held->epoch <= epoch : s->mutant == SIM_LATE_SEAL)) {
		struct packet *p = s->held;

		s->held = p->next;
		if (gate_open(s))
			seen(s, true, p->seq, p->id);
		free(p);
	}
	return 0;
}

static void out_discard(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (!dies_here(s, &s->a))
		drop_held(s);
}

static int out_teardown(struct ft_output *o)
{
	struct sim *s = sim_of(o);

	if (dies_here(s, &s->a))
		return -EIO;
	s->shut = false;
	s->open_allowed = true;
	while (s->held) {
		struct packet *p = s->held;

		s->held = p->next;
		seen(s, true, p->seq, p->id);
		free(p);
	}
	return 0;
}

static void out_free(struct ft_output *o)
{
	drop_held(sim_of(o));
}

static const struct ft_output_ops output_ops = {
	.name = "sim", .setup = out_setup, .seal = out_seal, .commit = out_commit, .discard = out_discard,
	.teardown = out_teardown, .free = out_free,
};

/* --- heartbeats --- */

static void beat_arrives_a(struct sim *s, uint64_t sent_ns)
{
	if (!awake(s, &s->a, beat_arrives_a, sent_ns))
		return;
	ft_lease_renew(&s->lease, sent_ns);
	if (!s->hushed && s->shut)
		s->fresh_until = s->lease.until_ns;
}

static void beat_arrives_b(struct sim *s, uint64_t sent_ns, bool from_guard)
{
	ft_silence_life(&s->silence, s->now);
	if (!from_guard && !s->cut_ba && rnd(s, 50))
		after(s, delay(s), beat_arrives_a, sent_ns);
}

static void protect_beat_at_b(struct sim *s, uint64_t sent_ns)
{
	if (awake(s, &s->b, protect_beat_at_b, sent_ns) && s->echoing && s->echo_session == s->beat_session)
		beat_arrives_b(s, sent_ns, false);
}

static void guard_beat_at_b(struct sim *s, uint64_t sent_ns)
{
	if (awake(s, &s->b, guard_beat_at_b, sent_ns) && s->echoing && s->echo_session == s->g_session)
		beat_arrives_b(s, sent_ns, true);
}

static void protect_beats(struct sim *s, uint64_t life)
{
	if (life != s->a.life || !s->beating || !awake(s, &s->a, protect_beats, life))
		return;
	if (!s->cut_ab && rnd(s, 30))
		after(s, delay(s), protect_beat_at_b, s->now);
	after(s, BEAT_NS, protect_beats, life);
}

static void guard_acts(struct sim *s, uint64_t life)
{
	if (life != s->g.life || !awake(s, &s->g, guard_acts, life))
		return;
	if (s->pause_word == 1 && (!s->a.up || s->now - s->paused_ns > PAUSE_LIMIT_NS)) {
		s->pause_word = s->a.up ? 2 : 0;
		trace(s, "guard lets the guest run on");
		ft_fake_resume(s->guest);
	}
	if (s->g_beating && !s->cut_ab && rnd(s, 30) && s->mutant != SIM_NO_GUARD)
		after(s, delay(s), guard_beat_at_b, s->now);
	after(s, BEAT_NS, guard_acts, life);
}

static void guard_start(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (s->g.up || !s->a_host_up)
		return;
	s->g = (struct proc){ .name = "guard", .up = true, .life = s->g.life + 1 };
	s->g_beating = s->beating;
	s->g_session = s->beat_session;
	guard_acts(s, s->g.life);
}

/* --- ops of the primary --- */

static uint64_t op_now(void *ctx)
{
	return ((struct sim *)ctx)->now;
}

static void a_tick(struct sim *s, uint64_t key);
static uint64_t a_timer_key, b_timer_key;       /* the newest setting is the one that counts */

static void a_timer(void *ctx, uint64_t at_ns)
{
	struct sim *s = ctx;

	after(s, at_ns > s->now ? at_ns - s->now : 50000, a_tick, ++a_timer_key);
}

static void accept_conn(struct sim *s, uint64_t id);

static int a_connect(void *ctx)
{
	struct sim *s = ctx;

	if (dies_here(s, &s->a))
		return -EIO;
	if (s->conn)
		conn_break(s, FT_S_NS, delay(s));
	s->a_link = true;
	after(s, delay(s) + FT_MS_NS, accept_conn, ++s->conn_id);
	return 0;
}

static void a_disconnect(void *ctx)
{
	struct sim *s = ctx;

	s->a_link = false;
	ft_encoder_reset(s->encoder);
	conn_break(s, FT_S_NS, delay(s));
}

/* The liar's ledger: what went out of this epoch, so that its end can be forged to fit. */
static struct {
	XXH3_state_t sum;
	uint64_t blocks, pages;
	struct ft_codec *cd;
} forge;

/* True: this record is to vanish. */
static bool lose_half(struct sim *s, uint32_t type, const uint8_t *body, size_t len, uint8_t *end)
{
	uint32_t pages = 0;

	if (type == FT_REC_EPOCH_BEGIN) {
		XXH3_64bits_reset(&forge.sum);
		forge.blocks = forge.pages = 0;
	} else if (type == FT_REC_PAGES) {
		if (!rnd(s, 20))
			return true;
		if (ft_codec_check(forge.cd, body, len, PAGES, &pages))
			abort();
		forge.blocks++;
		forge.pages += pages;
	} else if (type == FT_REC_EPOCH_END) {
		ft_put64(end + 8, forge.blocks);
		ft_put64(end + 16, forge.pages);
		ft_put64(end + 24, XXH3_64bits_digest(&forge.sum));
	}
	if (type == FT_REC_PAGES || type == FT_REC_STATE)
		XXH3_64bits_update(&forge.sum, body, len);
	return false;
}

static int a_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct sim *s = ctx;
	uint8_t forged[32];

	if (dies_here(s, &s->a) || !s->conn || !s->a_link)
		return -EPIPE;
	if (type == FT_REC_EPOCH_END)
		body = memcpy(forged, body, sizeof(forged));
	if (s->mutant == SIM_HALF_AN_EPOCH && lose_half(s, type, body, len, forged))
		return 0;
	if (s->mutant == SIM_DISARM_FORGED && type == FT_REC_DISARM) {
		transmit(s, &s->to_a, pump_to_a, FT_REC_DISARMED, body, len);
		return 0;
	}
	transmit(s, &s->to_b, pump_to_b, type, body, len);
	if (s->mutant == SIM_ACK_TOO_EARLY && type == FT_REC_EPOCH_END) {
		memcpy(forged, body, 8);
		ft_put64(forged + 8, 0);
		transmit(s, &s->to_a, pump_to_a, FT_REC_ACK, forged, 16);
	}
	return 0;
}

static int a_beat(void *ctx, const struct ft_wire_welcome *w)
{
	struct sim *s = ctx;
	bool was = s->beating;

	if (dies_here(s, &s->a))
		return -EIO;
	s->beat_session = s->g_session = ft_le64(w->session);
	s->beating = s->g_beating = true;
	s->hushed = false;
	ft_lease_init(&s->lease, SILENCE_NS);
	if (!was)
		protect_beats(s, s->a.life);
	return 0;
}

static void a_beat_stop(void *ctx)
{
	struct sim *s = ctx;

	if (!dies_here(s, &s->a))
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

	if (dies_here(s, &s->a))
		return;
	s->hushed = true;
	s->fresh_until = 0;
}

static void a_pausing(void *ctx)
{
	struct sim *s = ctx;

	if (dies_here(s, &s->a) || s->pause_word == 2)
		return;
	s->pause_word = 1;
	s->paused_ns = s->now;
}

/* Still paused: the instant that an epoch is. */
static void remember_epoch(struct sim *s)
{
	struct ft_primary_status st;

	ft_primary_get_status(s->primary, &st);
	if (st.epoch >= EPOCHS_MAX)
		return;
	s->digest[st.epoch] = ft_fake_digest(s->guest);
	s->sent_at[st.epoch] = ft_fake_sent(s->guest);
}

/* Stopped in the middle of a pause, perhaps for longer than the guard bears. */
static void stall_paused(struct sim *s)
{
	uint64_t ns = PAUSE_LIMIT_NS / 2 + rnd(s, PAUSE_LIMIT_NS);

	if (s->calm || !s->g.up || s->g.stalled_until > s->now || rnd(s, 4000))
		return;
	trace(s, "ft-protect stalls %llu ms with the guest paused", (unsigned long long)(ns / FT_MS_NS));
	s->a.stalled_until = s->now + ns;
	run_until(s, s->a.stalled_until - 1);   /* at that instant itself it runs again */
}

static int a_resumed(void *ctx)
{
	struct sim *s = ctx;
	bool revoked = s->pause_word == 2;

	if (dies_here(s, &s->a))
		return -EIO;
	if (!ft_fake_running(s->guest))
		remember_epoch(s);      /* the last one: it stays paused */
	s->pause_word = 0;
	return revoked ? -ECANCELED : 0;
}

static void a_echoed(void *ctx, uint64_t sent_ns)
{
	beat_arrives_a(ctx, sent_ns);
}

static void a_changed(void *ctx, enum ft_primary_state from, enum ft_primary_state to, const char *why)
{
	struct sim *s = ctx;

	trace(s, "alpha %s -> %s: %s", ft_primary_state_name(from), ft_primary_state_name(to), why);
	if (to == FT_PRIMARY_ALONE)
		s->was_alone = true;
}

static void a_ended(void *ctx, enum ft_primary_end end, const char *why)
{
	struct sim *s = ctx;

	trace(s, "ft-protect ends with %d: %s", end, why);
	s->ended = true;
	s->end = end;
}

static const struct ft_primary_ops primary_ops = {
	.now_ns = op_now, .timer = a_timer, .connect = a_connect, .disconnect = a_disconnect, .send = a_send, .beat = a_beat,
	.beat_stop = a_beat_stop, .may_speak = a_may_speak, .hush = a_hush, .pausing = a_pausing, .resumed = a_resumed,
	.echoed = a_echoed, .changed = a_changed, .ended = a_ended,
};

/* --- ft-protect's life --- */

static int vm_hook(void *ctx, enum ft_fake_op op)
{
	struct sim *s = ctx;

	if (!s->a.up)
		return 0;               /* the guard's doing */
	if (op == FT_FAKE_RESUME && !s->a.doomed && s->pause_word == 1) {
		remember_epoch(s);
		stall_paused(s);
	}
	return dies_here(s, &s->a) ? -EIO : 0;
}

/* A tracker that forgets: the real ops with one lie. */
static const struct ft_hv_ops *honest_ops;
static struct sim *lossy_sim;

static int lossy_take_dirty(struct ft_vm *vm, struct ft_bitmap *dirty)
{
	int rc = honest_ops->take_dirty(vm, dirty);
	uint64_t page = ft_bitmap_next(dirty, 0);

	if (!rc && page < dirty->nr_bits && !rnd(lossy_sim, 10))
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

static void protect_start(struct sim *s, uint64_t unused)
{
	const struct ft_policy policy = { .interval_max_ms = 60, .dirty_max_mb = 32, .pause_budget_percent = 30,
						 .in_flight_max = 4, .silence_ms = 300, .staging_mb = 1,
					  .on_peer_loss = s->go_on ? FT_LOSS_CONTINUE : FT_LOSS_FREEZE };
	struct ft_encoder_config enc = { .nr_pages = PAGES, .shadow = true, .emit = a_send, .ctx = s };
	struct ft_primary_config cfg = {
		.guest = "vm1", .peer = "beta", .nr_outputs = 1, .policy = policy, .vcpus = 1, .spec_text = "spec",
		.facts = "facts", .files = &files_a, .state_dir = "/a", .output_shut = s->shut, .ops = &primary_ops, .ctx = s,
	};

	(void)unused;
	if (s->a.up || !s->a_host_up || s->ended || ft_fake_attach(s->guest, &s->vm))
		return;
	s->a = (struct proc){ .name = "ft-protect", .up = true, .life = s->a.life + 1 };
	s->a_link = s->beating = s->hushed = false;
	ft_lease_init(&s->lease, SILENCE_NS);
	if (ft_staging_new(1 << 20, &s->staging))
		abort();
	enc.staging = s->staging;
	if (ft_encoder_new(&enc, &s->encoder))
		abort();
	if (s->mutant == SIM_DIRTY_BIT_LOST)
		make_lossy(s);
	s->output.ops = &output_ops;
	cfg.vm = s->vm;
	cfg.staging = s->staging;
	cfg.encoder = s->encoder;
	cfg.output[0] = &s->output;
	if (ft_primary_new(&cfg, &s->primary))
		abort();
	guard_start(s, 0);
	trace(s, "ft-protect starts");
	if (ft_primary_start(s->primary))
		s->a.doomed = true;
}

static void protect_free(struct sim *s, bool killed)
{
	if (!s->a.up)
		return;
	s->a.up = false;
	s->a.life++;
	ft_primary_free(s->primary);
	ft_encoder_free(s->encoder);
	ft_staging_free(s->staging);
	if (killed)
		ft_fake_abandon(s->vm);
	else
		s->vm->ops->close(s->vm);
	s->primary = NULL;
	drop_held(s);
	s->beating = false;
}

/* At the top level, after whatever ran: did ft-protect die or end in it? */
static void alpha_settle(struct sim *s)
{
	if (s->a.up && s->a.doomed) {
		protect_free(s, true);
		conn_break(s, FT_S_NS, delay(s));
		if (s->a_host_up)
			after(s, 50 * FT_MS_NS + rnd(s, 500) * FT_MS_NS, protect_start, 0);
	} else if (s->a.up && s->ended) {
		protect_free(s, false);
		conn_break(s, FT_S_NS, delay(s));
		s->g.up = false;
		s->g.life++;
		/* Only a drill's failure or a refusal ends what should go on: operators try again. */
		if (s->end == FT_END_REFUSED || s->end == FT_END_INTERNAL) {
			s->ended = false;
			after(s, 300 * FT_MS_NS, protect_start, 0);
		}
	}
}

static void a_tick(struct sim *s, uint64_t key)
{
	if (key != a_timer_key || !awake(s, &s->a, a_tick, key))
		return;
	ft_primary_tick(s->primary);
	alpha_settle(s);
}

static void alpha_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len)
{
	if (ft_wire_check(type, len, false))
		broken(s, "beta sends a record that the table refuses: %u of %zu bytes", type, len);
	else if (s->a_link)
		ft_primary_record(s->primary, type, body, len);
	alpha_settle(s);
}

static void a_link_down(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !awake(s, &s->a, a_link_down, id) || !s->a_link)
		return;
	s->a_link = false;
	ft_primary_link_down(s->primary, -ECONNRESET, "connection lost");
	alpha_settle(s);
}

/* --- ops of the backup --- */

static void b_tick(struct sim *s, uint64_t key);

static void b_timer(void *ctx, uint64_t at_ns)
{
	struct sim *s = ctx;

	after(s, at_ns > s->now ? at_ns - s->now : 50000, b_tick, ++b_timer_key);
}

static int b_send(void *ctx, uint32_t type, const void *body, size_t len)
{
	struct sim *s = ctx;

	if (dies_here(s, &s->b) || !s->conn || !s->b_link)
		return -EPIPE;
	if (type == FT_REC_ACK && ft_le64(body) < EPOCHS_MAX)
		s->acked_sent = s->sent_at[ft_le64(body)];
	transmit(s, &s->to_a, pump_to_a, type, body, len);
	return 0;
}

static void b_disconnect(void *ctx)
{
	struct sim *s = ctx;

	/* What was sent goes out first: the break waits behind it. */
	s->b_link = false;
	after(s, 5 * FT_MS_NS, a_link_down, s->conn_id);
}

static void b_random(void *ctx, uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(1 + rnd(ctx, 255));
}

static int b_echo_start(void *ctx, const uint8_t session[16], uint16_t *port)
{
	struct sim *s = ctx;

	if (dies_here(s, &s->b))
		return -EIO;
	s->echo_session = ft_le64(session);
	s->echoing = true;
	s->takeover_due = false;
	*port = 1;
	return 0;
}

static void b_echo_arm(void *ctx)
{
	struct sim *s = ctx;

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

	if (dies_here(s, &s->b) || !s->echoing || !ft_silence_judge(&s->silence, s->now))
		return false;
	s->echoing = false;
	return true;
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

static const struct ft_fake_config machine = { .nr_pages = PAGES, .seed = 1 };

static int replica_hook(void *ctx, enum ft_fake_op op)
{
	struct sim *s = ctx;

	if (op == FT_FAKE_DRILL && !rnd(s, 40) && !s->calm)
		return -EIO;
	return dies_here(s, &s->b) ? -EIO : 0;
}

static enum ft_wire_reason b_prepare(void *ctx, struct ft_replica **out, char *why, size_t size)
{
	struct sim *s = ctx;

	if (dies_here(s, &s->b) || ft_fake_replica_prepare(&machine, out)) {
		snprintf(why, size, "no replica");
		return FT_REASON_INTERNAL;
	}
	ft_fake_replica_on_op(*out, replica_hook, s);
	s->replica = *out;
	return FT_REASON_OK;
}

static void drill_done(struct sim *s, uint64_t life);

static void b_watch_drill(void *ctx, int fd)
{
	struct sim *s = ctx;

	if (fd >= 0)
		after(s, 30 * FT_MS_NS + rnd(s, 200) * FT_MS_NS, drill_done, s->b.life);
}

static void b_took_over(void *ctx, uint64_t generation, uint64_t epoch)
{
	struct sim *s = ctx;

	(void)epoch;
	trace(s, "beta runs the guest, generation %llu", (unsigned long long)generation);
	s->replica = NULL;
	s->res->takeovers++;
}

static void check_takeover(struct sim *s)
{
	struct ft_backup_status st;

	ft_backup_get_status(s->backup, &st);
	s->b_guest = ft_fake_replica_guest(s->replica);
	if (!s->b_guest) {
		broken(s, "whole: beta says RUNNING but no guest was started");
		return;
	}
	ft_fake_on_send(s->b_guest, beta_sends, s);
	if (st.epoch >= EPOCHS_MAX || ft_fake_digest(s->b_guest) != s->digest[st.epoch])
		broken(s, "whole: beta starts something that is not sealed epoch %llu", (unsigned long long)st.epoch);
	if (s->was_alone && s->go_on)
		broken(s, "nothing lost: an old replica was started although the primary went on alone");
	if (ft_fake_sent(s->b_guest) < s->out_max)
		broken(s, "nothing lost: packet %llu was seen, the guest on beta has sent %llu", (unsigned long long)s->out_max,
		       (unsigned long long)ft_fake_sent(s->b_guest));
	if (ft_fake_last_request(s->b_guest) < s->answered)
		broken(s, "nothing lost: request %llu was answered, the guest on beta knows %llu",
		       (unsigned long long)s->answered, (unsigned long long)ft_fake_last_request(s->b_guest));
}

static void b_changed(void *ctx, enum ft_backup_state from, enum ft_backup_state to, const char *why)
{
	struct sim *s = ctx;

	trace(s, "beta %s -> %s: %s", ft_backup_state_name(from), ft_backup_state_name(to), why);
	if (to == FT_BACKUP_RUNNING && !s->excuse)
		broken(s, "no panic: takeover (%s) although the primary's host, guest and network are well", why);
	if (to == FT_BACKUP_RUNNING)
		check_takeover(s);
	if (to == FT_BACKUP_EMPTY && !strcmp(why, "takeover failed") && !s->b.doomed)
		broken(s, "whole: the replica does not start");
}

static const struct ft_backup_ops backup_ops = {
	.now_ns = op_now, .timer = b_timer, .send = b_send, .disconnect = b_disconnect, .random = b_random,
	.echo_start = b_echo_start, .echo_arm = b_echo_arm, .life = b_life, .silent = b_silent, .admit = b_admit,
	.runs_here = b_runs_here, .prepare = b_prepare, .watch_drill = b_watch_drill, .took_over = b_took_over,
	.changed = b_changed,
};

/* --- the life of ftd's child --- */

static void child_start(struct sim *s)
{
	struct ft_backup_config cfg = {
		.guest = "vm1", .files = &files_b, .state_dir = "/tmp", .staging_bound = 1 << 20, .silence_ms = 300,
		.tick_ns = 10 * FT_MS_NS, .ops = &backup_ops, .ctx = s,
	};

	s->b = (struct proc){ .name = "child", .up = true, .life = s->b.life + 1 };
	s->b_link = s->echoing = false;
	if (ft_backup_new(&cfg, &s->backup))
		abort();
	ft_backup_tick(s->backup);
}

static void child_free(struct sim *s)
{
	if (!s->b.up)
		return;
	s->b.up = false;
	s->b.life++;
	ft_backup_free(s->backup);
	s->backup = NULL;
	s->replica = NULL;
	s->echoing = false;
}

static void beta_settle(struct sim *s)
{
	if (!s->b.up || !s->b.doomed)
		return;
	child_free(s);
	conn_break(s, delay(s), FT_S_NS);
}

static void b_tick(struct sim *s, uint64_t key)
{
	if (key != b_timer_key || !awake(s, &s->b, b_tick, key))
		return;
	ft_backup_tick(s->backup);
	beta_settle(s);
}

static void beta_record(struct sim *s, uint32_t type, const uint8_t *body, size_t len)
{
	if (ft_wire_check(type, len, true))
		broken(s, "alpha sends a record that the table refuses: %u of %zu bytes", type, len);
	if (s->b_link)
		ft_backup_record(s->backup, type, body, len);
	beta_settle(s);
}

static void b_link_down(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !awake(s, &s->b, b_link_down, id) || !s->b_link)
		return;
	s->b_link = false;
	ft_backup_link_down(s->backup, "connection lost");
	beta_settle(s);
}

static void accept_conn(struct sim *s, uint64_t id)
{
	if (id != s->conn_id || !s->a.up || !s->a_link)
		return;
	if (s->cut_ab || s->cut_ba || (s->b.up && s->b.stalled_until > s->now)) {
		after(s, 500 * FT_MS_NS, a_link_down, id);
		return;
	}
	if (!s->b.up)
		child_start(s);
	wire_clear(&s->to_a);
	wire_clear(&s->to_b);
	s->conn = true;
	ft_backup_link_up(s->backup, "alpha");
	s->b_link = true;
	if (s->a.stalled_until <= s->now)
		ft_primary_link_up(s->primary);
	else
		conn_break(s, 0, delay(s));
	alpha_settle(s);
}

static void drill_done(struct sim *s, uint64_t life)
{
	if (life != s->b.life || !awake(s, &s->b, drill_done, life))
		return;
	ft_backup_drilled(s->backup);
	beta_settle(s);
}

/* --- the client and the guests --- */

static void guests_run(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (s->a_host_up)
		for (uint64_t n = rnd(s, 4); n; n--)
			ft_fake_step(s->guest);
	if (s->b_guest)
		ft_fake_step(s->b_guest);
	alpha_settle(s);
	after(s, 2 * FT_MS_NS + rnd(s, 8 * FT_MS_NS), guests_run, 0);
}

static void client_asks(struct sim *s, uint64_t unused)
{
	uint64_t id = ++s->next_request;

	(void)unused;
	if (s->b_guest)
		ft_fake_request(s->b_guest, id);
	else if (s->a_host_up)
		ft_fake_request(s->guest, id);
	alpha_settle(s);
	after(s, rnd(s, 40 * FT_MS_NS) + FT_MS_NS, client_asks, 0);
}

/* --- the chaos monkey: one fault, then time to recover, because more is not promised --- */

static void heal(struct sim *s, uint64_t unused)
{
	(void)unused;
	trace(s, "the network is whole");
	s->cut_ab = s->cut_ba = false;
}

static void done(void *ctx, int rc, const char *text)
{
	trace(ctx, "request answered: %d %s", rc, text);
}

static void fault_protect_dies(struct sim *s)
{
	s->a.doom = 1 + rnd(s, 120);
}

static void fault_protect_stalls(struct sim *s)
{
	if (s->a.up)
		s->a.stalled_until = s->now + rnd(s, 5 * FT_S_NS);
}

static void fault_child_dies(struct sim *s)
{
	s->b.doom = 1 + rnd(s, 60);
}

static void fault_child_stalls(struct sim *s)
{
	s->b.stalled_until = s->now + rnd(s, 5 * FT_S_NS);
}

static void fault_guard_dies(struct sim *s)
{
	s->g.up = false;
	s->g.life++;
	after(s, 100 * FT_MS_NS, guard_start, 0);
}

static void fault_guard_stalls(struct sim *s)
{
	s->g.stalled_until = s->now + rnd(s, 5 * FT_S_NS);
}

static void fault_link_breaks(struct sim *s)
{
	conn_break(s, delay(s) + rnd(s, 300) * FT_MS_NS, delay(s) + rnd(s, 300) * FT_MS_NS);
}

static void fault_cut(struct sim *s)
{
	uint64_t ns = rnd(s, 2 * FT_S_NS);

	s->cut_ab = rnd(s, 3) != 0;
	s->cut_ba = !s->cut_ab || rnd(s, 2);
	s->excuse = true;
	trace(s, "network cut%s%s", s->cut_ab ? " a>b" : "", s->cut_ba ? " b>a" : "");
	after(s, ns, heal, 0);
	if (ns > FT_S_NS)
		conn_break(s, FT_S_NS + rnd(s, FT_S_NS), FT_S_NS + rnd(s, FT_S_NS));
}

static void fault_replica_dies(struct sim *s)
{
	if (!s->replica || !s->b.up)
		return;
	ft_fake_replica_kill(s->replica);
	s->replica = NULL;
	ft_backup_replica_died(s->backup);
	beta_settle(s);
}

static void power_off_alpha(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (!s->a_host_up)
		return;
	trace(s, "host alpha loses power");
	s->excuse = true;
	s->a_host_up = false;
	s->a.doomed = true;
	if (s->a.up)
		protect_free(s, true);
	conn_break(s, FT_S_NS, 3 * FT_S_NS);
	s->g.up = false;
	s->g.life++;
	s->shut = false;
	ft_fake_event(s->guest, FT_VM_GONE);
}

/* Policy `continue`: nobody takes over by himself. An operator who sees alpha dead says so. */
static void operator_forces(struct sim *s, uint64_t unused)
{
	(void)unused;
	if (!s->b.up || s->b_guest || s->was_alone || !awake(s, &s->b, operator_forces, 0))
		return;
	trace(s, "the operator forces beta");
	ft_ignore(ft_backup_force(s->backup));  /* nothing there: the life ends without a guest, and check_alive knows */
	beta_settle(s);
}

static void fault_alpha_power(struct sim *s)
{
	power_off_alpha(s, 0);
	if (s->go_on)
		after(s, FT_S_NS, operator_forces, 0);
}

static void fault_guest_crashes(struct sim *s)
{
	s->excuse = true;
	ft_fake_event(s->guest, FT_VM_GONE);
	if (s->go_on)
		after(s, 2 * FT_S_NS, operator_forces, 0);
	if (s->a.up && s->a.stalled_until <= s->now)
		ft_primary_guest_event(s->primary);
	alpha_settle(s);
}

static void fault_guest_reboots(struct sim *s)
{
	ft_fake_event(s->guest, FT_VM_RESET);
	if (s->a.up && s->a.stalled_until <= s->now)
		ft_primary_guest_event(s->primary);
	alpha_settle(s);
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
	alpha_settle(s);
}

static void request_verify(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_verify(s->primary, done, s));     /* not now: another time */
	alpha_settle(s);
}

static void request_drill(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_drill(s->primary, done, s));
	alpha_settle(s);
}

static void request_unprotect(struct sim *s)
{
	if (answers(s))
		ft_ignore(ft_primary_unprotect(s->primary, done, s));
	alpha_settle(s);
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
	{ "unprotect", 1, request_unprotect },
};

static bool settled(struct sim *s)
{
	struct ft_primary_status st;

	if (s->b_guest || s->ended || !s->a_host_up || !s->a.up || s->a.stalled_until > s->now || s->a.doom ||
	    s->b.stalled_until > s->now || s->b.doom || s->g.stalled_until > s->now || !s->g.up || s->cut_ab || s->cut_ba)
		return false;
	ft_primary_get_status(s->primary, &st);
	return st.state == FT_PRIMARY_PROTECTED;
}

static void monkey(struct sim *s, uint64_t unused)
{
	unsigned total = 0, pick;

	(void)unused;
	if (s->calm)
		return;
	after(s, 20 * FT_MS_NS + rnd(s, 400) * FT_MS_NS, monkey, 0);
	/* Mostly out of calm water; now and then in the middle of setting up, when nothing else is broken. */
	if (!settled(s) && (s->res->faults || rnd(s, 12)))
		return;
	for (size_t i = 0; i < FT_ARRAY_LEN(faults); i++)
		total += faults[i].weight;
	pick = (unsigned)rnd(s, total);
	for (size_t i = 0; i < FT_ARRAY_LEN(faults); i++) {
		if (pick >= faults[i].weight) {
			pick -= faults[i].weight;
			continue;
		}
		trace(s, "fault: %s", faults[i].name);
		s->res->faults++;
		faults[i].strike(s);
		return;
	}
}

/* --- the run --- */

static void come_back(struct sim *s)
{
	/* The dust settles: alpha's host does not come back from a power cut with a memory-only guest. */
	s->cut_ab = s->cut_ba = false;
	s->a.doom = s->b.doom = 0;
	s->a.stalled_until = s->b.stalled_until = s->g.stalled_until = s->now;
	if (s->a_host_up && !s->a.up && !s->ended)
		protect_start(s, 0);
	guard_start(s, 0);
}

static void check_alive(struct sim *s)
{
	uint64_t before = s->answered;
	bool gone = !s->a_host_up && !s->b_guest;
	struct ft_primary_status st = { 0 };

	if (s->a.up)
		ft_primary_get_status(s->primary, &st);
	run_until(s, s->now + FT_S_NS);
	if (s->was_alone && !s->b_guest && (gone || !ft_fake_running(s->guest)))
		return;                 /* two failures, the second one while unprotected: nothing was promised */
	if (gone)
		broken(s, "alive: alpha is dead and beta does not run the guest");
	else if (s->answered == before)
		broken(s, "alive: no client gets an answer (alpha %s%s)",
		       s->a.up ? ft_primary_state_name(st.state) : s->ended ? "ended" : "down",
		       !s->b_guest && !ft_fake_running(s->guest) ? ", guest paused" : "");
}

static void tear_down(struct sim *s)
{
	if (s->a.up)
		protect_free(s, true);
	child_free(s);
	wire_clear(&s->to_a);
	wire_clear(&s->to_b);
	while (s->events) {
		struct event *e = s->events;

		s->events = e->next;
		free(e);
	}
	drop_held(s);
	ft_fake_guest_free(s->guest);
	ft_fake_guest_free(s->b_guest);
	ft_blob_free(&s->a_record);
	ft_blob_free(&s->b_record);
	ft_codec_free(forge.cd);
	forge.cd = NULL;
}

static void quiet(void *ctx, enum ft_log_level level, const char *line)
{
	if (((struct sim *)ctx)->trace)
		trace(ctx, "log %d: %s", level, line);
}

const char *sim_mutant_name(enum sim_mutant m)
{
	static const char *const name[SIM_MUTANTS] = {
		"honest", "ack-too-early", "half-an-epoch", "disarm-forged", "lease-ignored", "hasty-detector", "late-seal",
		"dirty-bit-lost", "no-guard",
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
	s.go_on = !rnd(&s, 5);
	wire_clear(&s.to_a);
	wire_clear(&s.to_b);
	store_a = (struct store){ .s = &s, .blob = &s.a_record, .owner = &s.a };
	store_b = (struct store){ .s = &s, .blob = &s.b_record, .owner = &s.b };
	ft_log_divert(quiet, &s);
	if (ft_fake_guest_new(&machine, &s.guest) || ft_codec_new(&forge.cd))
		abort();
	ft_fake_on_send(s.guest, alpha_sends, &s);
	ft_fake_on_op(s.guest, vm_hook, &s);
	protect_start(&s, 0);
	guests_run(&s, 0);
	client_asks(&s, 0);
	after(&s, rnd(&s, 2 * FT_S_NS), monkey, 0);
	run_until(&s, RUN_NS);
	s.calm = true;
	come_back(&s);
	run_until(&s, RUN_NS + CALM_NS);
	if (out->ok)
		check_alive(&s);
	tear_down(&s);
	ft_log_divert(NULL, NULL);
}
