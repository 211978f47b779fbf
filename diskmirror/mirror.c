// SPDX-License-Identifier: GPL-3.0-or-later
/* mirror.c - the primary's end of the disk mirror; see ft/mirror.h. Its parts are in mirror_int.h. */
#include "diskmirror/mirror_int.h"
#include "ft/thread.h"

#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONNECT_MS 5000u                /* at the start; later: */
#define RECONNECT_MS 1000u
#define NEXT_MS 5000u                   /* sealed ops are in the socket already, or nearly */
#define TEARDOWN_NS (300 * FT_S_NS)     /* an fsync of much on a slow disk */
#define WINDOW_MAX (64u << 20)

static struct mirror *mirror_of_output(struct ft_output *o)
{
	return ft_container_of(o, struct mirror, api.output);
}

/* --- start of a session --- */

static int ask_id(struct mirror *m, struct mirror_disk *d)
{
	int rc = ft_mirror_say(m, d, FT_EXPORT_ASK, NULL, 0, false);

	if (!rc && d->fd >= 0)
		d->here_due++;
	return rc;
}

/* The ids may change with the word, so ask for them after it. */
static int hold_disk(struct mirror *m, struct mirror_disk *d)
{
	int rc = d->held ? 0 : ft_mirror_say(m, d, FT_EXPORT_HELD, NULL, 0, false);

	if (rc)
		return rc;
	d->held = true;
	return ask_id(m, d);
}

static int mirror_setup(struct ft_output *o)
{
	struct mirror *m = mirror_of_output(o);
	int rc = 0;

	for (unsigned i = 0; i < m->nr_disks && !rc; i++)
		rc = ft_mirror_up(m, &m->disk[i], RECONNECT_MS);
	if (rc)
		return rc;
	pthread_mutex_lock(&m->lock);
	m->held = true;
	for (unsigned i = 0; i < m->nr_disks && !rc; i++)
		rc = hold_disk(m, &m->disk[i]);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/* Lock held. The export's last word about itself has come, or it takes too long. */
static void wait_here(struct mirror *m, struct mirror_disk *d)
{
	uint64_t until = ft_now_ns() + RECONNECT_MS * FT_MS_NS;

	while (d->here_due)
		if (ft_cond_wait(&m->moved, &m->lock, until)) {
			ft_mirror_break(m, "%s: disk %u (%s): its nbdkit does not answer", m->guest, d->index, d->control);
			return;
		}
}

static void mirror_describe(struct ft_mirror *api, unsigned disk, struct ft_disk_id *out)
{
	struct mirror *m = mirror_of(api);
	struct mirror_disk *d = &m->disk[disk];

	assert(disk < m->nr_disks);
	ft_ignore(ft_mirror_up(m, d, RECONNECT_MS));    /* logged; copy will refuse */
	pthread_mutex_lock(&m->lock);
	if (d->command && d->done && !m->discarded) {   /* a LEAVE that nobody waits for any more */
		d->command = 0;
		m->teardown_until_ns = 0;
	}
	/* The id that the session will have: while the guest is seen, its next write must not change it. */
	if (!m->held)
		ft_ignore(ft_mirror_say(m, d, FT_EXPORT_SEEN, NULL, 0, false));
	ft_ignore(ask_id(m, d));        /* no room: wait_here, or copy, finds it out */
	wait_here(m, d);
	*out = d->id;
	pthread_mutex_unlock(&m->lock);
}

static int say_words(struct mirror *m, struct mirror_disk *d, uint64_t region, const uint64_t *word, size_t nr)
{
	uint8_t *body = malloc(8 + 8 * nr);
	int rc;

	if (!body)
		return -ENOMEM;
	ft_put64(body, region);
	for (size_t i = 0; i < nr; i++)
		ft_put64(body + 8 + 8 * i, word[i]);
	rc = ft_mirror_say(m, d, FT_EXPORT_ADD, body, 8 + 8 * nr, false);
	free(body);
	return rc;
}

static int mirror_theirs(struct ft_mirror *api, unsigned disk, uint64_t region, const uint64_t *word, size_t nr)
{
	struct mirror *m = mirror_of(api);
	struct mirror_disk *d = &m->disk[disk];
	uint64_t regions;
	int rc = 0;

	if (disk >= m->nr_disks)
		return -EPROTO;
	pthread_mutex_lock(&m->lock);
	regions = ft_disk_regions(d->id.bytes);
	if (region >= regions || nr > regions - region)
		rc = -EPROTO;
	for (size_t i = 0; i < nr && !rc; i++)
		if (word[i] & ~ft_disk_granules(d->id.bytes, region + i))
			rc = -EPROTO;
	for (size_t at = 0, n; at < nr && !rc; at += n) {
		n = nr - at < FT_EXPORT_BODY_MAX / 8 - 1 ? nr - at : FT_EXPORT_BODY_MAX / 8 - 1;
		rc = say_words(m, d, region + at, word + at, n);
	}
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static int copy_disk(struct mirror *m, struct mirror_disk *d, bool all)
{
	uint8_t body[4];
	int rc;

	ft_mirror_copy_reset(m, d);
	ft_mirror_forget_durable(d);
	ft_put32(body, all);
	rc = ft_mirror_say(m, d, FT_EXPORT_COPY, body, sizeof(body), false);
	if (!rc)
		d->plans_due++;
	return rc;
}

static int begin_copy(struct mirror *m, const bool *all)
{
	int rc = 0;

	for (unsigned i = 0; i < m->nr_disks; i++)
		if (!m->disk[i].streaming || m->disk[i].command)
			return -ENOTCONN;
	m->broken = m->broken_due = false;
	m->copying = true;
	m->sealed = m->ops_told = m->ask_waits = false;
	m->rate_at_ns = 0;
	ft_dlog_restart(m->log);
	for (unsigned i = 0; i < m->nr_disks && !rc; i++)
		rc = copy_disk(m, &m->disk[i], all[i]);
	if (rc)
		ft_mirror_break(m, "%s: the copy of the disks cannot be begun: %s", m->guest, strerror(-rc));
	return rc;
}

static int mirror_copy(struct ft_mirror *api, const bool *all)
{
	struct mirror *m = mirror_of(api);
	int rc;

	pthread_mutex_lock(&m->lock);
	rc = begin_copy(m, all);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/* --- the copy --- */

static bool mirror_ask(struct ft_mirror *api, unsigned *disk, uint64_t *region, uint64_t *granules)
{
	struct mirror *m = mirror_of(api);
	bool yes;

	pthread_mutex_lock(&m->lock);
	yes = ft_mirror_ask(m, disk, region, granules);
	pthread_mutex_unlock(&m->lock);
	return yes;
}

static int mirror_hashes(struct ft_mirror *api, unsigned disk, uint64_t region, uint64_t granules, const uint8_t *hash, size_t nr)
{
	struct mirror *m = mirror_of(api);
	int rc = 0;

	if (disk >= m->nr_disks)
		return -EPROTO;
	pthread_mutex_lock(&m->lock);
	if (m->copying)                         /* what broke has forgotten its questions */
		rc = ft_mirror_hashes(m, &m->disk[disk], region, granules, hash, nr);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static bool mirror_copied(const struct ft_mirror *api)
{
	struct mirror *m = mirror_of(api);
	bool yes;

	pthread_mutex_lock(&m->lock);
	yes = ft_mirror_copied(m);
	pthread_mutex_unlock(&m->lock);
	return yes;
}

/* --- epochs --- */

/* What the pages say. -EIO: one says what cannot be. */
static int read_pages(struct mirror *m, uint64_t *bound)
{
	for (unsigned i = 0; i < m->nr_disks; i++) {
		struct mirror_disk *d = &m->disk[i];

		bound[i] = d->page ? atomic_load_explicit(&d->page->sent, memory_order_acquire) : 0;
		if (!d->streaming)
			return -EIO;
		if (bound[i] == FT_EXPORT_ENDED) {      /* the reader has not come to the end yet */
			ft_mirror_break(m, "%s: disk %u (%s): its nbdkit no longer mirrors it", m->guest, i, d->control);
			return -EIO;
		}
		if (bound[i] < d->sealed) {
			ft_mirror_break(m, "%s: disk %u (%s): its export counts backwards", m->guest, i, d->control);
			return -EIO;
		}
		d->sealed = bound[i];
	}
	return 0;
}

static int mirror_seal(struct ft_output *o, uint64_t epoch)
{
	struct mirror *m = mirror_of_output(o);
	uint64_t bound[FT_DISKS_MAX] = { 0 };
	int rc;

	pthread_mutex_lock(&m->lock);
	rc = read_pages(m, bound);
	if (!rc)
		rc = ft_dlog_seal(m->log, epoch, bound);
	if (!rc)
		m->sealed = true;
	pthread_mutex_unlock(&m->lock);
	return rc;
}

static int mirror_commit(struct ft_output *o, uint64_t epoch)
{
	struct mirror *m = mirror_of_output(o);
	bool broken;

	ft_dlog_commit(m->log, epoch);
	if (ft_dlog_untidy(m->log))
		ft_mirror_poke(m);
	pthread_mutex_lock(&m->lock);
	broken = m->broken;
	pthread_mutex_unlock(&m->lock);
	return broken ? -EIO : 0;       /* what broke may have been in an epoch that was acknowledged since */
}

static int mirror_rewind(struct ft_mirror *api, uint64_t whole)
{
	return ft_dlog_rewind(mirror_of(api)->log, whole);
}

static bool mirror_resumable(const struct ft_mirror *api)
{
	return ft_dlog_resumable(mirror_of(api)->log);
}

/* The encoder's thread took something: there may be room for the copy to go on. */
static void took(struct mirror *m)
{
	pthread_mutex_lock(&m->lock);
	if (m->ask_waits)
		ft_mirror_poke(m);
	pthread_mutex_unlock(&m->lock);
}

static int mirror_next(struct ft_mirror *api, uint64_t upto, uint8_t *body, size_t *len)
{
	struct mirror *m = mirror_of(api);
	uint32_t nr_ops;
	unsigned disk;
	size_t raw;
	int rc;

	if (!upto) {                            /* before looking: what comes meanwhile is told */
		pthread_mutex_lock(&m->lock);
		m->ops_told = false;
		pthread_mutex_unlock(&m->lock);
	}
	rc = ft_dlog_take(m->log, upto, NEXT_MS, &disk, body + FT_DISK_BATCH_HDR, &raw, &nr_ops);
	if (rc == -ETIMEDOUT) {
		pthread_mutex_lock(&m->lock);
		ft_mirror_break(m, "%s: an export counted writes that it did not send - is its nbdkit stuck?", m->guest);
		pthread_mutex_unlock(&m->lock);
	}
	if (rc != 1)
		return rc;
	took(m);
	*len = ft_disk_pack_here(disk, body, raw, nr_ops, m->scratch);
	return 1;
}

static bool mirror_pending(struct ft_mirror *api, uint64_t upto)
{
	return ft_dlog_pending(mirror_of(api)->log, upto);
}

/* --- words for the exports --- */

static int mirror_durable(struct ft_mirror *api, unsigned disk, uint64_t seq)
{
	struct mirror *m = mirror_of(api);
	uint8_t body[8];
	int rc;

	if (disk >= m->nr_disks || seq > ft_dlog_sent(m->log, disk))
		return -EPROTO;
	ft_put64(body, seq);
	pthread_mutex_lock(&m->lock);
	rc = ft_mirror_say(m, &m->disk[disk], FT_EXPORT_DURABLE, body, sizeof(body), false);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/* A word that an export must not miss. Lock held. */
static void say_or_break(struct mirror *m, struct mirror_disk *d, uint32_t type, const void *body, size_t len, bool first)
{
	int rc = ft_mirror_say(m, d, type, body, len, first);

	if (rc)
		ft_mirror_break(m, "%s: disk %u (%s) cannot be told: %s", m->guest, d->index, d->control, strerror(-rc));
}

static void mirror_adopted(struct ft_mirror *api)
{
	struct mirror *m = mirror_of(api);

	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < m->nr_disks; i++) {
		say_or_break(m, &m->disk[i], FT_EXPORT_ADOPTED, NULL, 0, false);
		ft_ignore(ask_id(m, &m->disk[i]));      /* no room: said above */
	}
	pthread_mutex_unlock(&m->lock);
}

static void mirror_protect(struct ft_mirror *api, bool on)
{
	struct mirror *m = mirror_of(api);
	uint8_t body[4];

	ft_put32(body, on);
	pthread_mutex_lock(&m->lock);
	for (unsigned i = 0; i < m->nr_disks; i++)
		if (m->disk[i].streaming)
			say_or_break(m, &m->disk[i], FT_EXPORT_ELIDE, body, sizeof(body), !on);
	pthread_mutex_unlock(&m->lock);
}

/* --- the end: LEAVE, or FENCE, on every disk --- */

static void command_all(struct mirror *m, uint32_t command)
{
	ft_dlog_shut(m->log);
	m->copying = false;
	m->teardown_until_ns = ft_now_ns() + TEARDOWN_NS;
	m->leaves++;
	for (unsigned i = 0; i < m->nr_disks; i++) {
		struct mirror_disk *d = &m->disk[i];

		d->command = command;
		d->said = d->done = false;
		d->result = 0;
		ft_mirror_command(m, d);
	}
}

static void mirror_discard(struct ft_output *o)
{
	struct mirror *m = mirror_of_output(o);

	pthread_mutex_lock(&m->lock);
	if (!m->discarded)
		command_all(m, FT_EXPORT_FENCE);
	m->discarded = true;
	pthread_mutex_unlock(&m->lock);
}

/* 0: all have answered well; -EINPROGRESS. */
static int answers(struct mirror *m)
{
	int rc = 0;

	for (unsigned i = 0; i < m->nr_disks; i++) {
		struct mirror_disk *d = &m->disk[i];

		ft_mirror_command(m, d);
		if (!d->done)
			return ft_now_ns() < m->teardown_until_ns ? -EINPROGRESS : -ETIMEDOUT;
		if (d->result)
			rc = -d->result;
	}
	return rc;
}

static int teardown(struct mirror *m)
{
	int rc;

	if (!m->teardown_until_ns)
		command_all(m, FT_EXPORT_LEAVE);
	rc = answers(m);
	if (rc == -EINPROGRESS || m->discarded)
		return rc;
	if (rc == -ETIMEDOUT)
		ft_err("%s: a disk's last fsync has not ended in %u s", m->guest, (unsigned)(TEARDOWN_NS / FT_S_NS));
	m->teardown_until_ns = 0;               /* after a failure the next call says it anew */
	for (unsigned i = 0; i < m->nr_disks; i++)
		m->disk[i].command = 0;
	if (!rc)
		m->held = false;
	return rc;
}

static int mirror_teardown(struct ft_output *o)
{
	struct mirror *m = mirror_of_output(o);
	int rc;

	pthread_mutex_lock(&m->lock);
	rc = teardown(m);
	pthread_mutex_unlock(&m->lock);
	return rc;
}

/* --- for the owner's loop --- */

static void mirror_status(const struct ft_mirror *api, unsigned disk, struct ft_mirror_status *out)
{
	struct mirror *m = mirror_of(api);
	const struct mirror_disk *d = &m->disk[disk];
	struct ft_dlog_status st;

	assert(disk < m->nr_disks);
	ft_dlog_get_status(m->log, disk, &st);
	pthread_mutex_lock(&m->lock);
	*out = (struct ft_mirror_status){
		.bytes = d->id.bytes, .behind = st.behind, .pending = st.pending, .mirrored = st.taken_data,
		.log_bytes = st.file_bytes, .copy_done = d->copy_done, .copy_total = d->copy_total,
	};
	pthread_mutex_unlock(&m->lock);
}

int ft_mirror_event_fd(const struct ft_mirror *api)
{
	return mirror_of(api)->event_fd;
}

void ft_mirror_event(struct ft_mirror *api)
{
	struct mirror *m = mirror_of(api);
	char why[sizeof(m->why)];
	bool wake, broken;
	uint64_t n;

	ft_ignore(read(m->event_fd, &n, sizeof(n)) < 0);
	pthread_mutex_lock(&m->lock);
	wake = m->wake_due;
	broken = m->broken_due;
	m->wake_due = m->broken_due = false;
	memcpy(why, m->why, sizeof(why));
	pthread_mutex_unlock(&m->lock);
	if (broken && api->broken)
		api->broken(api->ctx, why);
	if (wake && api->wake)
		api->wake(api->ctx);
}

/* --- life --- */

static void mirror_free(struct ft_mirror *api)
{
	struct mirror *m;

	if (!api)
		return;
	m = mirror_of(api);
	ft_mirror_stop_reader(m);
	ft_mirror_stop_syncers(m);
	for (unsigned i = 0; i < m->nr_disks; i++) {
		if (m->disk[i].page)
			munmap(m->disk[i].page, FT_PAGE_SIZE);
		free(m->disk[i].rx);
		free(m->disk[i].control);
		free(m->disk[i].image);
		free(m->disk[i].map);
	}
	ft_dlog_free(m->log);
	if (m->event_fd >= 0)
		close(m->event_fd);
	if (m->poke_fd >= 0)
		close(m->poke_fd);
	pthread_cond_destroy(&m->moved);
	pthread_mutex_destroy(&m->lock);
	free(m->scratch);
	free(m->guest);
	free(m);
}

static void output_free(struct ft_output *o)
{
	if (o)
		mirror_free(&mirror_of_output(o)->api);
}

static const struct ft_output_ops output_ops = {
	.name = "disks",
	.setup = mirror_setup,
	.seal = mirror_seal,
	.commit = mirror_commit,
	.discard = mirror_discard,
	.teardown = mirror_teardown,
	.free = output_free,
};

static const struct ft_mirror_ops mirror_ops = {
	.describe = mirror_describe,
	.theirs = mirror_theirs,
	.copy = mirror_copy,
	.ask = mirror_ask,
	.hashes = mirror_hashes,
	.digest = ft_mirror_digest,
	.copied = mirror_copied,
	.next = mirror_next,
	.pending = mirror_pending,
	.rewind = mirror_rewind,
	.resumable = mirror_resumable,
	.durable = mirror_durable,
	.adopted = mirror_adopted,
	.protect = mirror_protect,
	.status = mirror_status,
	.free = mirror_free,
};

static void init_sync(struct mirror *m)
{
	pthread_mutex_init(&m->lock, NULL);
	ft_cond_init(&m->moved);
}

static char *copy_of(const char *s)
{
	return s ? strdup(s) : NULL;
}

static int init_disk(struct mirror *m, const struct ft_mirror_config *cfg, unsigned i)
{
	struct mirror_disk *d = &m->disk[i];

	d->m = m;
	d->index = i;
	d->fd = -1;
	d->out_end = &d->out;
	d->control = strdup(cfg->control[i]);
	d->image = copy_of(cfg->image[i]);
	d->map = copy_of(cfg->map[i]);
	d->read_only = cfg->read_only[i];
	d->rx = malloc(RX_ROOM);
	return d->control && !cfg->image[i] == !d->image && !cfg->map[i] == !d->map && d->rx ? 0 : -ENOMEM;
}

static int init(struct mirror *m, const struct ft_mirror_config *cfg)
{
	struct ft_dlog_config lcfg = {
		.nr_disks = cfg->nr_disks, .memory_bound = cfg->memory_bound, .file_bound = cfg->file_bound,
		.spill_dir = cfg->spill_dir,
	};
	int rc = ft_dlog_new(&lcfg, &m->log);

	for (unsigned i = 0; i < m->nr_disks && !rc; i++)
		rc = init_disk(m, cfg, i);
	if (rc)
		return rc;
	m->guest = strdup(cfg->guest);
	m->scratch = malloc(FT_DISK_BODY_MAX);
	if (!m->guest || !m->scratch)
		return -ENOMEM;
	m->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	m->poke_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (m->event_fd < 0 || m->poke_fd < 0)
		return -errno;
	for (unsigned i = 0; i < m->nr_disks && !rc; i++)
		rc = ft_mirror_up(m, &m->disk[i], CONNECT_MS);
	return rc ? rc : ft_mirror_start_reader(m);
}

int ft_mirror_new(const struct ft_mirror_config *cfg, struct ft_mirror **out)
{
	struct mirror *m = calloc(1, sizeof(*m));
	int rc;

	if (!m)
		return -ENOMEM;
	assert(cfg->nr_disks <= FT_DISKS_MAX);
	m->api = (struct ft_mirror){ .ops = &mirror_ops, .output.ops = &output_ops, .nr_disks = cfg->nr_disks };
	m->nr_disks = cfg->nr_disks;
	m->event_fd = m->poke_fd = -1;
	m->files = cfg->files ? cfg->files : &ft_disk_files_real;
	m->rate = cfg->rate_limit;
	m->window = cfg->memory_bound / 2 < WINDOW_MAX ? cfg->memory_bound / 2 : WINDOW_MAX;
	if (m->window < FT_REGION)
		m->window = FT_REGION;
	for (unsigned i = 0; i < m->nr_disks; i++)
		m->disk[i].fd = -1;
	init_sync(m);
	rc = init(m, cfg);
	if (rc) {
		mirror_free(&m->api);
		return rc;
	}
	*out = &m->api;
	return 0;
}
