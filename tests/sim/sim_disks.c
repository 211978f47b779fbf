// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * sim_disks.c - the guest's disk on alpha, and the mirror that ft_primary sees. On beta the shipped store works, on files
 * in memory. The disk outlives ft-protect, as an export does; the mirror's log dies with it.
 */
#include "sim_world.h"

#include "diskmirror/store_priv.h"

#define GRANULES (DISK_BYTES / FT_GRANULE)

struct logged {
	uint64_t seq, sector;           /* sector UINT64_MAX: a whole granule, or the region's mark */
	uint32_t op;
	uint8_t data[512];              /* of a sector */
};

struct fake_mirror {
	struct ft_mirror base;          /* first */
	struct sim *s;
	struct logged *log;
	size_t nr, room, taken;
	uint64_t mark_seq;              /* all that was compared is before it */
	uint64_t sealed[EPOCHS_MAX];
	uint64_t theirs, plan;          /* granules */
	bool started, asked, copied, flushes_elided;
};

static struct fake_mirror *of(const struct ft_mirror *m)
{
	return (struct fake_mirror *)m;
}

static struct fake_mirror *of_output(struct ft_output *o)
{
	return ft_container_of(o, struct fake_mirror, base.output);
}

/* --- the disk --- */

uint64_t sim_disk_digest(const uint8_t *disk)
{
	return XXH3_64bits(disk, DISK_BYTES);
}

static void log_op(struct fake_mirror *fm, uint32_t op, uint64_t sector)
{
	struct logged *l;

	if (fm->nr == fm->room) {
		fm->room = fm->room ? 2 * fm->room : 64;
		fm->log = realloc(fm->log, fm->room * sizeof(*fm->log));
		if (!fm->log)
			abort();
	}
	l = &fm->log[fm->nr++];
	*l = (struct logged){ .seq = ++fm->s->disk_seq, .sector = sector, .op = op };
	if (sector != UINT64_MAX)
		memcpy(l->data, fm->s->disk + sector * 512, 512);
}

/* Seen without the mirror: whatever the peer has is of an older one. */
static void new_generation(struct sim *s)
{
	if (!s->disk_seen || !s->disk_id.current)
		return;
	if (!s->disk_id.base)
		s->disk_id.base = s->disk_id.current;
	s->disk_id.current = 1 + sim_rnd(s, UINT64_MAX - 1);
	s->disk_seen = false;
}

void sim_guest_writes(struct sim *s)
{
	/* One granule is hot for a while: copies of what was touched are smaller than the disk. */
	uint64_t sector = s->now / (400 * FT_MS_NS) % GRANULES * (FT_GRANULE / 512) + sim_rnd(s, FT_GRANULE / 512);
	uint64_t value = sim_rnd(s, UINT64_MAX);

	if (!s->a_host_up || !ft_fake_running(s->guest) || sim_rnd(s, 3))
		return;
	memcpy(s->disk + sector * 512 + sim_rnd(s, 63) * 8, &value, 8);
	s->disk_touched |= 1ull << sector * 512 / FT_GRANULE;
	new_generation(s);
	s->disk_last[sector * 512 / FT_GRANULE] = UINT64_MAX;   /* nothing confirms it, unless it is streamed */
	if (s->a.up && !s->a.doomed && s->mirror && of(s->mirror)->started) {
		log_op(of(s->mirror), FT_DISK_WRITE, sector);
		s->disk_last[sector * 512 / FT_GRANULE] = s->disk_seq;
	}
}

/* --- the mirror as ft_primary knows it --- */

static void m_describe(struct ft_mirror *m, unsigned disk, struct ft_disk_id *out)
{
	struct sim *s = of(m)->s;

	(void)disk;
	if (!s->disk_id.current) {      /* its map is made when the first mirror starts */
		s->disk_id.current = 1 + sim_rnd(s, UINT64_MAX - 1);
		s->disk_touched = (1ull << GRANULES) - 1;
		s->disk_seen = false;
	}
	new_generation(s);
	*out = s->disk_id;
	out->bytes = DISK_BYTES;
	of(m)->theirs = 0;
}

static int m_theirs(struct ft_mirror *m, unsigned disk, uint64_t region, const uint64_t *word, size_t nr)
{
	(void)disk, (void)nr;
	if (region)
		abort();
	of(m)->theirs |= word[0];
	return 0;
}

static int m_copy(struct ft_mirror *m, const bool *all)
{
	struct fake_mirror *fm = of(m);
	struct sim *s = fm->s;

	if (sim_dies_here(s, &s->a))
		return -EIO;
	for (unsigned g = 0; g < GRANULES; g++)         /* the plan has what earlier streams did not settle */
		s->disk_last[g] = 0;
	s->disk_touched |= fm->theirs;
	fm->nr = fm->taken = 0;
	memset(fm->sealed, 0, sizeof(fm->sealed));
	fm->plan = all[0] ? (1ull << GRANULES) - 1 : s->disk_touched | fm->theirs;
	s->res->disk_copies++;
	s->res->disk_granules += (unsigned)__builtin_popcountll(fm->plan);
	fm->started = true;
	fm->mark_seq = 0;
	fm->asked = fm->copied = !fm->plan;
	return 0;
}

static bool m_ask(struct ft_mirror *m, unsigned *disk, uint64_t *region, uint64_t *granules)
{
	struct fake_mirror *fm = of(m);

	if (!fm->started || fm->asked)
		return false;
	fm->asked = true;
	*disk = 0;
	*region = 0;
	*granules = fm->plan;
	return true;
}

static int m_hashes(struct ft_mirror *m, unsigned disk, uint64_t region, uint64_t granules, const uint8_t *hash, size_t nr)
{
	struct fake_mirror *fm = of(m);
	uint8_t mine[FT_HASH_LEN];

	(void)disk;
	if (!fm->asked || fm->copied || region || granules != fm->plan || nr != (size_t)__builtin_popcountll(granules))
		return -EPROTO;
	for (uint32_t g = 0; g < GRANULES; g++) {
		if (!(granules >> g & 1))
			continue;
		ft_disk_hash(fm->s->disk + g * FT_GRANULE, FT_GRANULE, mine);
		if (memcmp(mine, hash, FT_HASH_LEN))
			for (uint64_t i = 0; i < FT_GRANULE / 512; i++)
				log_op(fm, FT_DISK_WRITE, g * (FT_GRANULE / 512) + i);
		hash += FT_HASH_LEN;
	}
	log_op(fm, FT_DISK_MARK, UINT64_MAX);
	fm->mark_seq = fm->s->disk_seq;
	fm->copied = true;
	return 0;
}

static bool m_copied(const struct ft_mirror *m)
{
	return of(m)->copied;
}

/* How far next goes: @upto 0 is whatever is there. */
static uint64_t bound(const struct fake_mirror *fm, uint64_t upto)
{
	return upto ? fm->sealed[upto % EPOCHS_MAX] : UINT64_MAX;
}

static bool m_pending(struct ft_mirror *m, uint64_t upto)
{
	struct fake_mirror *fm = of(m);

	return fm->taken < fm->nr && fm->log[fm->taken].seq <= bound(fm, upto);
}

static int m_next(struct ft_mirror *m, uint64_t upto, uint8_t *body, size_t *len)
{
	static uint8_t raw[FT_DISK_BATCH_MAX];
	struct fake_mirror *fm = of(m);
	uint32_t nr_ops = 0;
	size_t at = 0;

	while (m_pending(m, upto) && at + FT_DISK_OP_LEN + 512 <= sizeof(raw)) {
		const struct logged *l = &fm->log[fm->taken++];
		struct ft_disk_op op = { .seq = l->seq, .op = l->op };

		if (fm->s->mutant == SIM_DISK_WRITE_LOST && l->op == FT_DISK_WRITE && !sim_rnd(fm->s, 50))
			continue;
		if (l->op == FT_DISK_WRITE) {
			op.offset = l->sector * 512;
			op.len = 512;
		}
		ft_disk_pack_op(&op, raw + at);
		memcpy(raw + at + FT_DISK_OP_LEN, l->data, op.len);
		at += FT_DISK_OP_LEN + op.len;
		nr_ops++;
	}
	if (!nr_ops)
		return 0;
	*len = ft_disk_pack_batch(0, raw, at, nr_ops, body);
	return 1;
}

static int m_rewind(struct ft_mirror *m, uint64_t whole)
{
	struct fake_mirror *fm = of(m);
	uint64_t seq = fm->sealed[whole % EPOCHS_MAX];

	while (fm->taken && fm->log[fm->taken - 1].seq > seq)
		fm->taken--;
	return 0;
}

/* What the guest writes in a slice's pause is not there: it stands still. */
static int m_digest(struct ft_mirror *m, unsigned disk, uint64_t region, uint64_t granules, uint8_t *out)
{
	const uint8_t *image = of(m)->s->disk;

	(void)disk;
	if (region)
		abort();
	for (; granules; granules &= granules - 1, out += FT_HASH_LEN)
		ft_disk_hash(image + (uint64_t)__builtin_ctzll(granules) * FT_GRANULE, FT_GRANULE, out);
	return 0;
}

static bool m_resumable(const struct ft_mirror *m)
{
	return of(m)->started;
}

static int m_durable(struct ft_mirror *m, unsigned disk, uint64_t seq)
{
	struct fake_mirror *fm = of(m);

	(void)disk;
	if (seq > fm->s->disk_seq)
		return -EPROTO;
	for (unsigned g = 0; g < GRANULES && fm->copied && seq >= fm->mark_seq; g++)
		if (fm->s->disk_last[g] <= seq)
			fm->s->disk_touched &= ~(1ull << g);
	return 0;
}

static void m_adopted(struct ft_mirror *m)
{
	of(m)->s->disk_id.base = 0;
}

static void m_protect(struct ft_mirror *m, bool on)
{
	struct fake_mirror *fm = of(m);
	struct ft_backup_status st = { .state = FT_BACKUP_ARMED };
	struct sim *s = fm->s;

	if (s->b.up && s->backup)
		ft_backup_get_status(s->backup, &st);
	if (on && !fm->flushes_elided && (st.state == FT_BACKUP_EMPTY || st.state == FT_BACKUP_SYNCING))
		sim_broken(s, "nothing lost: flushes are answered from the mirror while beta has no whole epoch");
	fm->flushes_elided = on;
}

static void m_status(const struct ft_mirror *m, unsigned disk, struct ft_mirror_status *out)
{
	(void)m, (void)disk;
	*out = (struct ft_mirror_status){ 0 };
}

static int m_setup(struct ft_output *o)
{
	struct fake_mirror *fm = of_output(o);

	if (sim_dies_here(fm->s, &fm->s->a))
		return -EIO;
	fm->s->disk_seen = false;
	return 0;
}

static int m_seal(struct ft_output *o, uint64_t epoch)
{
	struct fake_mirror *fm = of_output(o);

	if (sim_dies_here(fm->s, &fm->s->a))
		return -EIO;
	fm->sealed[epoch % EPOCHS_MAX] = fm->s->disk_seq;
	return 0;
}

static int m_commit(struct ft_output *o, uint64_t epoch)
{
	struct fake_mirror *fm = of_output(o);

	return sim_dies_here(fm->s, &fm->s->a) ? -EIO : 0;
}

static void m_discard(struct ft_output *o)
{
	of_output(o)->started = false;
}

/* The sync takes its time: the output may not open before. */
static int m_teardown(struct ft_output *o)
{
	struct fake_mirror *fm = of_output(o);
	struct sim *s = fm->s;

	if (sim_dies_here(s, &s->a))
		return -EIO;
	if (fm->started && sim_rnd(s, 3))
		return -EINPROGRESS;
	fm->started = false;
	s->disk_seen = true;
	return 0;
}

static void m_free(struct ft_mirror *m)
{
	free(of(m)->log);
	free(m);
}

static void m_output_free(struct ft_output *o)
{
	m_free(&of_output(o)->base);
}

static const struct ft_output_ops output_ops = {
	.name = "sim disks", .setup = m_setup, .seal = m_seal, .commit = m_commit, .discard = m_discard,
	.teardown = m_teardown, .free = m_output_free,
};

static const struct ft_mirror_ops mirror_ops = {
	.describe = m_describe, .theirs = m_theirs, .copy = m_copy, .ask = m_ask, .hashes = m_hashes, .digest = m_digest, .copied = m_copied,
	.next = m_next, .pending = m_pending, .rewind = m_rewind, .resumable = m_resumable, .durable = m_durable,
	.adopted = m_adopted, .protect = m_protect, .status = m_status, .free = m_free,
};

struct ft_mirror *sim_mirror_new(struct sim *s)
{
	struct fake_mirror *fm = calloc(1, sizeof(*fm));

	if (!fm)
		abort();
	fm->base.ops = &mirror_ops;
	fm->base.output.ops = &output_ops;
	fm->base.nr_disks = 1;
	fm->s = s;
	return &fm->base;
}

int sim_encoder_disks(void *ctx, uint64_t upto, uint8_t *body, size_t *len)
{
	struct sim *s = ctx;

	return s->mirror->ops->next(s->mirror, upto, body, len);
}

/* --- beta's image, as the guest finds it there --- */

uint64_t sim_beta_disk_digest(struct sim *s)
{
	static uint8_t image[DISK_BYTES];

	forgetful_read(s->b_files, "/images/vm1", image, sizeof(image), 0);
	return sim_disk_digest(image);
}

/* What the store's thread does, when the clock says so. */
void sim_store_syncs(struct sim *s)
{
	if (!s->store || sim_rnd(s, 30))
		return;
	ft_ignore(ft_store_sync(s->store));
	ft_backup_store_event(s->backup);
}

void sim_close_store(void *ctx, struct ft_store *st)
{
	struct sim *s = ctx;

	ft_store_free(st);
	s->store = NULL;
}

enum ft_wire_reason sim_open_store(void *ctx, const struct ft_disk_id *theirs, struct ft_store **out, char *why, size_t size)
{
	struct sim *s = ctx;
	struct ft_store_config cfg = {
		.guest = "vm1", .nr_disks = 1, .disk[0] = { "/images/vm1", theirs->bytes }, .state_dir = "/state",
		.memory_bound = 1 << 20, .journal_bound = 64 << 20, .files = forgetful_files(s->b_files),
		.durability = s->journal ? FT_DURABILITY_JOURNAL : FT_DURABILITY_MEMORY,
	};

	if (sim_dies_here(s, &s->b) || ft_store_open(&cfg, out)) {
		snprintf(why, size, "no store");
		return FT_REASON_INTERNAL;
	}
	s->store = *out;
	return FT_REASON_OK;
}
