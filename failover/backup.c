// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * backup.c - the backup's half of the protocol; see ft/backup.h. Functions stand in the order in which a
 * session runs through them: greet, prepare, epochs, drill, verify, disarm, take over.
 */
#include "ft/backup.h"

#include <stdio.h>

#define NO_ROOM_TRIES 3u                /* copies that did not fit beside what could be started */

struct ft_backup {
	struct ft_backup_config cfg;
	const struct ft_backup_ops *ops;        /* = cfg.ops */
	enum ft_backup_state state;
	struct ft_record record;                /* as it is on disk */

	/* session: the link may be down while it lasts */
	char peer[FT_NAME_MAX + 1];
	bool link, greeted;
	bool disks_known;                       /* DISKS has come, and ours may be overwritten */
	uint32_t silence_ms;                    /* what its primary was told */
	uint8_t session[16];
	uint64_t session_generation;
	uint64_t nr_pages;
	uint32_t flags;                         /* FT_HELLO_* */
	uint8_t end[FT_WIRE_EPOCH_END_LEN];     /* of an epoch that is whole once its disks are synced */
	bool ending;
	struct ft_blob session_firmware;        /* becomes @firmware with the first whole epoch */
	bool session_whole;                     /* ... which has come */

	/* what can be started: image and firmware of @generation */
	struct ft_replica *replica;
	struct ft_image *image;
	struct ft_store *store;                 /* of a guest with disks */
	struct ft_log_limit refusal_log, store_log, takeover_log;
	unsigned no_room;                       /* copies that did not fit, since the last one that did */
	bool unwritten;                         /* the disks could not be written */
	bool drill_waits;                       /* for the disks */
	struct ft_blob firmware;
	uint64_t generation;
	uint64_t epochs;
	char *machine;                          /* spec and facts that the replica was built from */
	uint64_t started_epoch;                 /* the one that was started, once it was */
	bool drilling;
	bool drill_asked;                       /* by this link */

	/* forced by the operator */
	uint64_t force_ns;                      /* != 0: when the primary's lease has ended for certain */
	ft_backup_done *forced;
	void *forced_ctx;
};

const char *ft_backup_state_name(enum ft_backup_state s)
{
	static const char *const name[] = {
		[FT_BACKUP_EMPTY] = "EMPTY", [FT_BACKUP_SYNCING] = "SYNCING", [FT_BACKUP_ARMED] = "ARMED",
		[FT_BACKUP_RUNNING] = "RUNNING", [FT_BACKUP_DISARMED] = "DISARMED",
	};

	return name[s];
}

static void set_state(struct ft_backup *b, enum ft_backup_state to, const char *why)
{
	enum ft_backup_state from = b->state;

	if (from == to)
		return;
	b->state = to;
	b->ops->changed(b->cfg.ctx, from, to, why);
}

static bool usable(const struct ft_backup *b)
{
	return b->state != FT_BACKUP_RUNNING && b->state != FT_BACKUP_DISARMED && b->image && ft_image_usable(b->image);
}

static uint64_t max64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static int save_role(struct ft_backup *b, uint64_t generation, enum ft_role role)
{
	struct ft_record r = { .generation = generation, .role = role };
	int rc;

	snprintf(r.peer, sizeof(r.peer), "%s", b->peer);
	rc = ft_record_save(b->cfg.files, b->cfg.state_dir, b->cfg.guest, &r);
	if (!rc)
		b->record = r;
	return rc;
}

/* --- memory and disks, together --- */

static void discard_partial(struct ft_backup *b)
{
	b->ending = false;
	if (b->image)
		ft_image_discard_partial(b->image);
	if (b->store)
		ft_store_discard_partial(b->store);
}

/* The store knows which disk it was, and what helps. */
static const char *why_not(struct ft_backup *b, int rc)
{
	const char *why = b->store ? ft_store_why(b->store) : "";

	return *why ? why : strerror(-rc);
}

/* -errno: the disks cannot be written. Their epochs stay staged, and are tried again. */
static int written(struct ft_backup *b, int rc)
{
	b->unwritten = rc != 0;
	if (rc && ft_log_due(&b->store_log, ft_store_why(b->store)))
		ft_err("%s: nothing more is acknowledged: %s", b->cfg.guest, why_not(b, rc));
	return rc;
}

static int commit(struct ft_backup *b)
{
	ft_image_commit(b->image);
	return written(b, b->store ? ft_store_commit(b->store) : 0);
}

/* The same, but a copy may take its time: nobody waits, and what waits for all of it says commit. */
static int advance(struct ft_backup *b)
{
	int rc;

	ft_image_commit(b->image);
	rc = b->store ? ft_store_advance(b->store) : 0;
	return written(b, rc == -EAGAIN ? 0 : rc);
}

static void hold(struct ft_backup *b, bool held)
{
	ft_image_hold(b->image, held);
	if (b->store)
		ft_store_hold(b->store, held);
}

/* --- parting --- */

static void drop_link(struct ft_backup *b)
{
	if (b->link)
		b->ops->disconnect(b->cfg.ctx);
	b->link = b->greeted = b->drill_asked = b->drill_waits = b->disks_known = false;
	discard_partial(b);
}

static void part(struct ft_backup *b, enum ft_wire_reason reason, const char *why)
{
	uint8_t body[4 + FT_WIRE_TEXT_MAX];
	size_t len = strnlen(why, FT_WIRE_TEXT_MAX);

	ft_warn("%s: closing the session with %s: %s", b->cfg.guest, b->peer, why);
	ft_put32(body, reason);
	memcpy(body + 4, why, len);
	(void)b->ops->send(b->cfg.ctx, FT_REC_ERROR, body, 4 + len);    /* a courtesy: the close says it too */
	drop_link(b);
}

static void stop_drill(struct ft_backup *b, struct ft_drill_result *res)
{
	assert(b->replica);             /* a drill is of one */
	b->ops->watch_drill(b->cfg.ctx, -1);
	b->replica->ops->drill_end(b->replica, res);
	b->drilling = false;
	hold(b, false);
}

static void close_store(struct ft_backup *b)
{
	if (b->store)
		b->ops->close_store(b->cfg.ctx, b->store);
	b->store = NULL;
	b->unwritten = false;
}

/* The replica and all it held are gone; the promise of its record is void without it. */
static void destroy_replica(struct ft_backup *b)
{
	struct ft_drill_result ignored;

	if (b->drilling)
		stop_drill(b, &ignored);
	b->ending = b->drill_waits = false;
	ft_image_free(b->image);
	b->image = NULL;
	if (b->replica)
		b->replica->ops->destroy(b->replica);
	b->replica = NULL;
	close_store(b);
	ft_blob_free(&b->firmware);
	free(b->machine);
	b->machine = NULL;
	b->generation = 0;
}

/* --- greeting --- */

bool ft_backup_may_link(const struct ft_backup *b, const char *peer)
{
	return !b->link || !b->greeted || !strcmp(b->peer, peer);
}

void ft_backup_link_up(struct ft_backup *b, const char *peer)
{
	drop_link(b);
	snprintf(b->peer, sizeof(b->peer), "%s", peer);
	b->link = true;
}

void ft_backup_link_down(struct ft_backup *b, const char *why)
{
	if (!b->link)
		return;
	ft_info("%s: link to %s lost: %s", b->cfg.guest, b->peer, why);
	b->link = false;        /* nothing to disconnect */
	drop_link(b);
}

static int welcome(struct ft_backup *b, struct ft_wire_welcome *w, const char *text)
{
	uint8_t body[FT_WIRE_WELCOME_MAX];

	return b->ops->send(b->cfg.ctx, FT_REC_WELCOME, body, ft_wire_pack_welcome_text(w, text, body));
}

static void refuse(struct ft_backup *b, enum ft_wire_reason reason, uint64_t generation, const char *why)
{
	struct ft_wire_welcome w = {
		.reason = reason, .generation = generation,
		.replica = reason == FT_REASON_TAKEN_OVER ? FT_REPLICA_RUNNING : FT_REPLICA_NONE,
	};

	if (ft_log_due(&b->refusal_log, *why ? why : ft_wire_reason_text(reason)))
		ft_warn("%s: %s is refused: %s%s%s", b->cfg.guest, b->peer, ft_wire_reason_text(reason), *why ? ": " : "", why);
	(void)welcome(b, &w, why);      /* the link closes next, whether it was sent or not */
	drop_link(b);
}

static enum ft_wire_reason judge_hello(struct ft_backup *b, const struct ft_wire_hello *h, const char *spec,
				       const char *facts, bool resume, char *why, size_t size)
{
	enum ft_wire_reason reason;

	*why = 0;
	if (h->version_min > FT_WIRE_VERSION_MAX || h->version_max < FT_WIRE_VERSION_MIN) {
		snprintf(why, size, "it speaks %u to %u, the primary %u to %u: install the same version of ft on both hosts",
			 FT_WIRE_VERSION_MIN, FT_WIRE_VERSION_MAX, h->version_min, h->version_max);
		return FT_REASON_VERSION;
	}
	if (b->force_ns)
		return FT_REASON_BUSY;
	if (b->ops->runs_here(b->cfg.ctx))
		return FT_REASON_TAKEN_OVER;
	/* It ended, or was protected from here since: others write the record then. */
	if (b->state == FT_BACKUP_RUNNING && ft_record_load(b->cfg.files, b->cfg.state_dir, b->cfg.guest, &b->record))
		return FT_REASON_INTERNAL;
	if (b->record.role == FT_ROLE_RUNNING && h->generation <= b->record.generation)
		return FT_REASON_GUEST_ENDED;
	reason = b->ops->admit(b->cfg.ctx, h, spec, facts, why, size);
	if (reason != FT_REASON_OK)
		return reason;
	if (!resume && h->generation <= max64(b->record.generation, b->session_generation))
		return FT_REASON_GENERATION;
	return FT_REASON_OK;
}

static int open_session(struct ft_backup *b, const struct ft_wire_hello *h, bool resume)
{
	struct ft_wire_welcome w = {
		.version = h->version_max < FT_WIRE_VERSION_MAX ? h->version_max : FT_WIRE_VERSION_MAX,
		.replica = FT_REPLICA_NONE, .silence_ms = b->ops->silence_ms(b->cfg.ctx),
	};

	b->silence_ms = w.silence_ms;
	if (!resume) {
		b->ops->random(b->cfg.ctx, b->session, sizeof(b->session));
		b->session_generation = h->generation;
		b->session_whole = false;
		ft_blob_free(&b->session_firmware);
	}
	b->flags = h->flags;
	b->nr_pages = h->nr_pages;
	if (b->ops->echo_start(b->cfg.ctx, b->session, b->silence_ms, &w.udp_port))
		return -EIO;
	if (usable(b)) {
		w.replica = FT_REPLICA_ARMED;
		w.generation = b->generation;
		w.epoch = ft_image_whole_epoch(b->image);
		b->ops->echo_arm(b->cfg.ctx);
	}
	memcpy(w.session, b->session, sizeof(w.session));
	b->greeted = true;
	b->disks_known = resume && b->store;
	if (b->disks_known)             /* what was told while there was no link, nobody heard */
		ft_store_tell_again(b->store);
	return welcome(b, &w, "");
}

/* What is here must never be started any more. Durable when it returns. */
static int void_replica(struct ft_backup *b, const char *why)
{
	int rc = 0;

	if (b->record.role == FT_ROLE_ARMED)
		rc = save_role(b, b->record.generation, FT_ROLE_DISARMED);
	if (rc)
		return rc;
	destroy_replica(b);
	memset(b->session, 0, sizeof(b->session));
	b->no_room = 0;
	set_state(b, FT_BACKUP_EMPTY, why);
	return 0;
}

static void keep_machine(struct ft_backup *b, const char *spec, const char *facts)
{
	const char *now = strstr(facts, "\n" FT_WIRE_FACTS_NOW);
	size_t fixed = now ? (size_t)(now - facts) + 1 : strlen(facts), len = strlen(spec) + fixed + 1;
	char *machine = malloc(len);

	if (machine)
		snprintf(machine, len, "%s%s", spec, facts);    /* as much of them as fits */
	/* Another guest by the same name: nothing here can serve it. */
	if ((b->replica || b->store) && (!machine || !b->machine || strcmp(machine, b->machine)))
		destroy_replica(b);
	free(b->machine);
	b->machine = machine;
}

static bool resumable(const struct ft_backup *b, const struct ft_wire_hello *h)
{
	return usable(b) && b->session_whole && h->generation == b->session_generation &&
	       !memcmp(h->resume, b->session, sizeof(b->session));
}

static void greet(struct ft_backup *b, const struct ft_wire_hello *h, const char *spec, const char *facts)
{
	bool outrun, resume = resumable(b, h);
	enum ft_wire_reason reason;
	char why[FT_WIRE_TEXT_MAX];
	int rc;

	reason = judge_hello(b, h, spec, facts, resume, why, sizeof(why));
	if (reason != FT_REASON_OK) {
		refuse(b, reason, max64(b->record.generation, b->session_generation), why);
		return;
	}
	outrun = h->flags & FT_HELLO_OUTRUN;    /* the guest went on without us, and was seen */
	if ((outrun && void_replica(b, "the guest went on without this backup")) ||
	    (b->store && ft_store_lost(b->store) && void_replica(b, "a disk here has lost what was written to it"))) {
		part(b, FT_REASON_INTERNAL, "the promise could not be made durable");
		return;
	}
	keep_machine(b, spec, facts);
	rc = b->unwritten ? commit(b) : 0;      /* a session would end with its first epoch */
	if (rc) {
		refuse(b, rc == -ENOSPC ? FT_REASON_NO_ROOM : FT_REASON_INTERNAL, max64(b->record.generation, b->session_generation),
		       why_not(b, rc));
		return;
	}
	resume = resume && usable(b);
	if (open_session(b, h, resume))
		part(b, FT_REASON_INTERNAL, "the session could not be opened");
	else if (resume)
		ft_info("%s: session with %s resumed at epoch %llu", b->cfg.guest, b->peer,
			(unsigned long long)ft_image_whole_epoch(b->image));
	else
		set_state(b, FT_BACKUP_SYNCING, "new session");
}

/* -EPROTO, or -ENOMEM; the caller frees both texts in any case. */
static int hello_texts(const uint8_t *body, size_t len, struct ft_wire_hello *h, char **spec, char **facts)
{
	*spec = *facts = NULL;
	if (ft_wire_unpack_hello(body, len, h))
		return -EPROTO;
	*spec = strndup((const char *)body + FT_WIRE_HELLO_LEN, h->spec_len);
	*facts = strndup((const char *)body + FT_WIRE_HELLO_LEN + h->spec_len, h->facts_len);
	return *spec && *facts ? 0 : -ENOMEM;
}

size_t ft_backup_check(struct ft_backup *b, const uint8_t *hello, size_t len, uint8_t out[FT_WIRE_WELCOME_MAX])
{
	struct ft_wire_welcome w = { .reason = FT_REASON_PROTO, .version = FT_WIRE_VERSION_MAX };
	char why[FT_WIRE_TEXT_MAX] = "", *spec, *facts;
	struct ft_wire_hello h;
	int rc = hello_texts(hello, len, &h, &spec, &facts);

	if (!rc)
		w.reason = judge_hello(b, &h, spec, facts, resumable(b, &h), why, sizeof(why));
	else if (rc == -ENOMEM)
		w.reason = FT_REASON_NO_ROOM;
	if (w.reason == FT_REASON_OK && !b->replica)
		w.reason = b->ops->could_prepare(b->cfg.ctx, why, sizeof(why));
	free(spec);
	free(facts);
	w.generation = max64(b->record.generation, b->session_generation);
	w.silence_ms = b->ops->silence_ms(b->cfg.ctx);
	return ft_wire_pack_welcome_text(&w, why, out);
}

static void on_hello(struct ft_backup *b, const uint8_t *body, size_t len)
{
	struct ft_wire_hello h;
	char *spec, *facts;
	int rc = hello_texts(body, len, &h, &spec, &facts);

	if (b->greeted || rc == -EPROTO || h.flags & FT_HELLO_CHECK)
		part(b, FT_REASON_PROTO, "a HELLO that makes no sense");
	else if (!rc)
		greet(b, &h, spec, facts);
	else
		part(b, FT_REASON_NO_ROOM, "out of memory");
	free(spec);
	free(facts);
}

/* --- the replica --- */

static enum ft_wire_reason build_replica(struct ft_backup *b, char *why, size_t size)
{
	struct ft_image_config cfg = {
		.staging_bound = b->cfg.staging_bound, .spill_dir = b->cfg.state_dir, .state_max = FT_WIRE_STATE_MAX,
	};
	enum ft_wire_reason reason;

	reason = b->ops->prepare(b->cfg.ctx, &b->replica, why, size);
	if (reason != FT_REASON_OK)
		return reason;
	cfg.ram = b->replica->ram;
	cfg.nr_pages = b->replica->nr_pages;
	if (b->replica->nr_pages != b->nr_pages) {
		snprintf(why, size, "memory differs: %llu pages here, %llu there", (unsigned long long)b->replica->nr_pages,
			 (unsigned long long)b->nr_pages);
		reason = FT_REASON_MISMATCH;
	} else if (ft_image_new(&cfg, &b->image)) {
		snprintf(why, size, "no memory for staging");
		reason = FT_REASON_NO_ROOM;
	}
	if (reason != FT_REASON_OK)
		destroy_replica(b);
	return reason;
}

/* --- disks: what is here, before anything is built on it --- */

static int tell_map(struct ft_backup *b, unsigned disk, uint64_t regions)
{
	struct ft_wire_disk_at at = { .disk = disk };
	uint8_t body[FT_WIRE_DISK_AT_LEN + 8 * FT_WIRE_MAP_WORDS];
	uint64_t word, next = ft_store_next_word(b->store, disk, 0, &word);
	int rc = 0;

	while (!rc && next < regions) {
		size_t len = FT_WIRE_DISK_AT_LEN;

		at.at = next;
		do {                    /* neighbours in one record */
			ft_put64(body + len, word);
			len += 8;
			next = ft_store_next_word(b->store, disk, at.at + (len - FT_WIRE_DISK_AT_LEN) / 8, &word);
		} while (next == at.at + (len - FT_WIRE_DISK_AT_LEN) / 8 && next < regions && len < sizeof(body));
		ft_wire_pack_disk_at(&at, body);
		rc = b->ops->send(b->cfg.ctx, FT_REC_DISK_MAP, body, len);
	}
	return rc;
}

static int tell_disks(struct ft_backup *b, unsigned nr)
{
	uint8_t body[FT_DISKS_MAX * FT_DISK_ID_LEN];
	int rc = 0;

	for (unsigned i = 0; i < nr && !rc; i++) {
		struct ft_disk_id id;

		ft_store_id(b->store, i, &id);
		ft_disk_pack_id(&id, body + i * FT_DISK_ID_LEN);
		rc = tell_map(b, i, ft_disk_regions(id.bytes));
	}
	return rc ? rc : b->ops->send(b->cfg.ctx, FT_REC_DISKS_HERE, body, nr * FT_DISK_ID_LEN);
}

static void on_disks(struct ft_backup *b, const uint8_t *body, size_t len)
{
	struct ft_disk_id theirs[FT_DISKS_MAX];
	unsigned nr = b->ops->nr_disks(b->cfg.ctx);
	enum ft_wire_reason reason = FT_REASON_OK;
	char why[FT_WIRE_TEXT_MAX] = "";
	int rc = b->session_whole || b->session_firmware.data || !nr || len != nr * FT_DISK_ID_LEN ? -EPROTO : 0;

	for (unsigned i = 0; i < nr && !rc; i++)
		rc = ft_disk_unpack_id(body + i * FT_DISK_ID_LEN, &theirs[i]);
	if (rc) {
		part(b, FT_REASON_PROTO, "a DISKS that makes no sense");
		return;
	}
	if (!b->store)
		reason = b->ops->open_store(b->cfg.ctx, theirs, &b->store, why, sizeof(why));
	if (reason != FT_REASON_OK) {
		part(b, reason, why);
		return;
	}
	rc = b->image ? commit(b) : 0;  /* what is compared, and said of it, is what is on them */
	if (rc) {
		part(b, FT_REASON_INTERNAL, why_not(b, rc));
		return;
	}
	rc = ft_store_peer(b->store, theirs, nr, why, sizeof(why));
	b->disks_known = !rc;
	if (rc)                         /* the primary sees that, too, and says so to its operator */
		ft_warn("%s: %s must not copy its disks over ours: %s", b->cfg.guest, b->peer, why);
	if (tell_disks(b, nr))
		part(b, FT_REASON_INTERNAL, "DISKS_HERE could not be sent");
}

static void on_disk_ask(struct ft_backup *b, const uint8_t *body, size_t len)
{
	uint8_t answer[FT_WIRE_DISK_RANGE_LEN + FT_REGION_GRANULES * FT_HASH_LEN];
	struct ft_wire_disk_range r;
	int nr;

	if (!b->disks_known || len != FT_WIRE_DISK_RANGE_LEN || ft_wire_unpack_disk_range(body, len, &r)) {
		part(b, FT_REASON_PROTO, "a DISK_ASK that makes no sense");
		return;
	}
	len = ft_wire_pack_disk_range(&r, answer);
	nr = ft_store_hashes(b->store, r.disk, r.region, r.granules, answer + len);
	if (nr < 0)
		part(b, nr == -EPROTO ? FT_REASON_PROTO : FT_REASON_INTERNAL, nr == -EPROTO ? "a DISK_ASK beyond the disk" :
		     "a disk cannot be read here");
	else if (b->ops->send(b->cfg.ctx, FT_REC_DISK_HASHES, answer, len + (size_t)nr * FT_HASH_LEN))
		part(b, FT_REASON_INTERNAL, "DISK_HASHES could not be sent");
}

static void go_on_ending(struct ft_backup *b);
static void begin_drill(struct ft_backup *b);

/* What is durable here lets the primary's map get clean; and a copy may not be on the images yet. */
void ft_backup_store_event(struct ft_backup *b)
{
	unsigned nr = b->store ? b->ops->nr_disks(b->cfg.ctx) : 0;

	for (unsigned i = 0; i < nr; i++) {
		struct ft_wire_disk_at at = { .disk = i };
		uint8_t body[FT_WIRE_DISK_AT_LEN];

		if (ft_store_durable(b->store, i, &at.at) && b->link && b->disks_known)
			(void)b->ops->send(b->cfg.ctx, FT_REC_DISK_DURABLE, body, ft_wire_pack_disk_at(&at, body)); /* said again later */
	}
	go_on_ending(b);
	if (b->drill_waits)
		begin_drill(b);
	else if (b->store && ft_store_behind(b->store))
		ft_ignore(advance(b));
}

static void on_firmware(struct ft_backup *b, const uint8_t *body, size_t len)
{
	enum ft_wire_reason reason = FT_REASON_OK;
	char why[FT_WIRE_TEXT_MAX] = "";

	if (b->session_whole || b->session_firmware.data || (b->ops->nr_disks(b->cfg.ctx) && !b->disks_known)) {
		part(b, FT_REASON_PROTO, "FIRMWARE out of turn");
		return;
	}
	if (ft_blob_copy(&b->session_firmware, body, len)) {
		part(b, FT_REASON_NO_ROOM, "no memory for the firmware");
		return;
	}
	if (!b->replica)
		reason = build_replica(b, why, sizeof(why));
	if (reason == FT_REASON_OK && b->replica->ops->fits(b->replica, &b->session_firmware, why, sizeof(why)))
		reason = FT_REASON_MISMATCH;
	if (reason != FT_REASON_OK)
		part(b, reason, why);
	else if (b->ops->send(b->cfg.ctx, FT_REC_READY, NULL, 0))
		part(b, FT_REASON_INTERNAL, "READY could not be sent");
}

void ft_backup_replica_died(struct ft_backup *b)
{
	if (!b->replica)
		return;
	ft_err("%s: the parked replica died: no acknowledgement until a new one holds a whole epoch", b->cfg.guest);
	destroy_replica(b);
	memset(b->session, 0, sizeof(b->session));
	if (b->link)
		part(b, FT_REASON_INTERNAL, "the parked replica died");
	set_state(b, FT_BACKUP_EMPTY, "the parked replica died");
}

/* --- epochs --- */

/* The first whole epoch of a session: from its acknowledgement on, this is what would be started. */
static int arm(struct ft_backup *b)
{
	int rc = save_role(b, b->session_generation, FT_ROLE_ARMED);

	if (rc)
		return rc;
	ft_blob_free(&b->firmware);
	b->firmware = b->session_firmware;
	b->session_firmware = (struct ft_blob){ 0 };
	b->generation = b->session_generation;
	b->session_whole = true;
	b->no_room = 0;
	b->ops->echo_arm(b->cfg.ctx);
	set_state(b, FT_BACKUP_ARMED, "a whole epoch is here");
	return 0;
}

/* Both or neither: the disks are asked last, once the epoch is known to be whole. */
static int whole(struct ft_backup *b, const uint8_t *body, size_t len)
{
	int rc;

	if (b->store && ft_image_ends(b->image, body, len)) {
		rc = ft_store_whole(b->store);
		if (rc)
			return rc;
	}
	return ft_image_end(b->image, body, len);
}

static int epoch_end(struct ft_backup *b, const uint8_t *body, size_t len)
{
	uint8_t ack[16];
	int rc = whole(b, body, len);

	b->ending = rc == -EINPROGRESS;
	if (b->ending) {
		memmove(b->end, body, sizeof(b->end));
		return 0;
	}
	if (!rc && !b->session_whole)
		rc = arm(b);
	if (rc)
		return rc;
	ft_put64(ack, ft_image_whole_epoch(b->image));
	ft_put64(ack + 8, ft_image_staging_used(b->image));
	rc = b->ops->send(b->cfg.ctx, FT_REC_ACK, ack, sizeof(ack));
	b->epochs++;
	b->replica->epoch_ns = b->ops->now_ns(b->cfg.ctx);
	ft_ignore(advance(b));          /* after the acknowledgement: clients wait for that, not for this */
	return rc;
}

static int epoch_begin(struct ft_backup *b, const uint8_t *body, size_t len)
{
	struct ft_wire_epoch_begin e;
	int rc;

	if (ft_wire_unpack_epoch_begin(body, len, &e))
		return -EPROTO;
	/* A new session starts with all of memory, and brings the firmware that goes with it. */
	if (!b->session_whole && (!(e.flags & FT_EPOCH_FULL) || !b->session_firmware.data))
		return -EPROTO;
	rc = b->unwritten ? commit(b) : 0;
	if (rc)
		return rc;
	rc = ft_image_begin(b->image, e.epoch, e.base, e.flags);
	if (!rc && b->store)
		rc = ft_store_begin(b->store, e.epoch, e.flags);
	return rc;
}

static int epoch_disk(struct ft_backup *b, const uint8_t *body, size_t len)
{
	int rc = b->store ? ft_image_disk(b->image, body, len) : -EPROTO;

	return rc ? rc : ft_store_batch(b->store, body, len);
}

static const char *no_room(struct ft_backup *b)
{
	const char *why = b->store ? ft_store_why(b->store) : "";

	return *why ? why : "no room to stage the epoch: free memory or disk space in the state directory";
}

/*
 * A copy goes beside what could be started until it is whole. When there is no room for both, time after time, the output would
 * stay shut for ever; so the old replica, whose primary lives, makes room: the next copy finds nothing to spare.
 */
static void make_room(struct ft_backup *b)
{
	if (b->session_whole || !usable(b) || ++b->no_room < NO_ROOM_TRIES)
		return;
	ft_warn("%s: %u copies in a row did not fit beside the replica here: it is given up, and the next copy takes its place",
		b->cfg.guest, b->no_room);
	if (void_replica(b, "no room for a copy beside it"))
		ft_err("%s: ... but that could not be made durable: it stays", b->cfg.guest);
}

static void epoch_result(struct ft_backup *b, int rc)
{
	if (rc == -EPROTO)
		part(b, FT_REASON_PROTO, "an epoch that makes no sense");
	else if (rc == -ENOSPC || rc == -ENOMEM)
		part(b, FT_REASON_NO_ROOM, no_room(b));
	if (rc == -ENOSPC)
		make_room(b);
	else if (rc && rc != -EPROTO && rc != -ENOMEM)
		part(b, FT_REASON_INTERNAL, why_not(b, rc));
}

static void on_epoch_record(struct ft_backup *b, uint32_t type, const uint8_t *body, size_t len)
{
	int rc = -EPROTO;

	if (b->state == FT_BACKUP_DISARMED)
		return;                 /* were on their way when the primary ended */
	if (b->ending)
		rc = -EPROTO;           /* nobody builds on an epoch before it is acknowledged as the first of a session */
	else if (b->image && type == FT_REC_EPOCH_BEGIN)
		rc = epoch_begin(b, body, len);
	else if (b->image && type == FT_REC_PAGES)
		rc = ft_image_pages(b->image, body, len);
	else if (b->image && type == FT_REC_DISK)
		rc = epoch_disk(b, body, len);
	else if (b->image && type == FT_REC_STATE)
		rc = ft_image_state(b->image, body, len);
	else if (b->image && type == FT_REC_EPOCH_END)
		rc = epoch_end(b, body, len);
	epoch_result(b, rc);
}

/* Its disks may be synced now. */
static void go_on_ending(struct ft_backup *b)
{
	if (b->ending)
		epoch_result(b, epoch_end(b, b->end, sizeof(b->end)));
}

/* --- drill --- */

static void drilled(struct ft_backup *b, const struct ft_drill_result *res)
{
	struct ft_wire_drilled d = { .ok = res->ok, .load_ms = res->load_ms, .dirtied_pages = res->dirtied_pages };
	uint8_t body[FT_WIRE_DRILLED_LEN + sizeof(res->why)];
	size_t len = ft_wire_pack_drilled(&d, body), text = res->ok ? 0 : strnlen(res->why, sizeof(res->why));

	memcpy(body + len, res->why, text);
	if (b->drill_asked && b->ops->send(b->cfg.ctx, FT_REC_DRILLED, body, len + text))
		part(b, FT_REASON_INTERNAL, "DRILLED could not be sent");
	b->drill_asked = false;
}

static void on_drill(struct ft_backup *b)
{
	if (!usable(b) || b->drill_asked) {
		part(b, FT_REASON_PROTO, "DRILL out of turn");
		return;
	}
	b->drill_asked = true;
	if (!b->drilling)               /* else a lost link asked for it: its answer serves this one too */
		begin_drill(b);
}

/* It needs memory and disks at one epoch: when a copy has just come, once that is on the images. */
static void begin_drill(struct ft_backup *b)
{
	struct ft_drill_result res = { 0 };
	int fd = -1, rc = advance(b);

	b->drill_waits = !rc && b->store && ft_store_behind(b->store);
	if (b->drill_waits)
		return;
	hold(b, true);
	if (!rc)
		rc = b->replica->ops->drill_start(b->replica, &b->firmware, ft_image_applied_state(b->image), &fd);
	if (rc) {
		hold(b, false);
		snprintf(res.why, sizeof(res.why), "the scratch guest could not be started: %s", strerror(-rc));
		drilled(b, &res);
		return;
	}
	b->drilling = true;
	b->ops->watch_drill(b->cfg.ctx, fd);
}

void ft_backup_drilled(struct ft_backup *b)
{
	struct ft_drill_result res = { 0 };

	if (!b->drilling)
		return;
	stop_drill(b, &res);
	ft_ignore(advance(b));          /* what was staged meanwhile */
	drilled(b, &res);
}

/* --- verify --- */

static void on_verify(struct ft_backup *b, const uint8_t *body, size_t len)
{
	struct ft_wire_verified v = { .epoch = ft_le64(body) };
	uint8_t answer[FT_WIRE_VERIFIED_LEN];
	size_t nr = ft_hash_count(b->nr_pages);
	uint64_t *hash;

	if (!usable(b) || b->drilling || v.epoch != ft_image_applied_epoch(b->image) || len != 8 + 8 * nr) {
		part(b, FT_REASON_PROTO, "a VERIFY that makes no sense");
		return;
	}
	hash = malloc(nr * sizeof(*hash));
	if (!hash) {
		part(b, FT_REASON_NO_ROOM, "no memory to verify");
		return;
	}
	ft_hash_ram(b->replica->ram, b->nr_pages, hash);
	for (size_t i = 0; i < nr; i++)
		if (hash[i] != ft_le64(body + 8 + 8 * i) && !v.differing++)
			v.first_page = i * FT_HASH_PAGES;
	free(hash);
	ft_wire_pack_verified(&v, answer);
	if (b->ops->send(b->cfg.ctx, FT_REC_VERIFIED, answer, sizeof(answer)))
		part(b, FT_REASON_INTERNAL, "VERIFIED could not be sent");
}

/* --- the promise --- */

/* What was acknowledged is on the images, synced, and they are of the primary's generation: a next copy is short. */
static void leave_disks_whole(struct ft_backup *b)
{
	struct ft_drill_result ignored;

	if (!b->store || !usable(b) || !b->session_whole)
		return;
	if (b->drilling)
		stop_drill(b, &ignored);
	discard_partial(b);
	if (commit(b) || ft_store_release(b->store))
		ft_warn("%s: the images here lack what was written last: the next copy compares more", b->cfg.guest);
}

static void on_disarm(struct ft_backup *b, uint64_t generation)
{
	uint8_t body[8];

	if (generation != b->session_generation) {
		part(b, FT_REASON_PROTO, "DISARM of a generation that is not this session's");
		return;
	}
	if (save_role(b, generation, FT_ROLE_DISARMED)) {
		part(b, FT_REASON_INTERNAL, "the promise could not be made durable");
		return;
	}
	ft_put64(body, generation);
	if (b->ops->send(b->cfg.ctx, FT_REC_DISARMED, body, sizeof(body)))
		drop_link(b);
	leave_disks_whole(b);           /* the primary need not wait for that */
	destroy_replica(b);
	memset(b->session, 0, sizeof(b->session));
	set_state(b, FT_BACKUP_DISARMED, "the primary ended protection in order");
}

/* --- takeover --- */

static int start_guest(struct ft_backup *b, uint64_t generation)
{
	struct ft_drill_result ignored;
	int rc;

	if (b->drilling)
		stop_drill(b, &ignored);
	discard_partial(b);
	rc = commit(b);
	if (rc)
		return ft_store_lost(b->store) ? rc : -EAGAIN;
	rc = save_role(b, generation, FT_ROLE_RUNNING);         /* durable before it can be seen */
	if (!rc && b->store)
		rc = ft_store_release(b->store);
	if (rc)
		return rc;
	return b->replica->ops->start(b->replica, &b->firmware, ft_image_applied_state(b->image));
}

static int take_over(struct ft_backup *b, const char *why)
{
	uint64_t generation = max64(max64(b->generation, b->session_generation), b->record.generation) + 1;
	uint64_t epoch = ft_image_whole_epoch(b->image);
	int rc;

	if (ft_log_due(&b->takeover_log, why))
		ft_warn("%s: taking over at epoch %llu: %s", b->cfg.guest, (unsigned long long)epoch, why);
	rc = start_guest(b, generation);
	if (rc == -EAGAIN)              /* its disks cannot be written now: nothing is lost, and it is tried again */
		return rc;
	if (rc) {
		/* Nothing runs here, and nothing may be started from this any more: if the primary lives, it goes on. */
		ft_err("%s: TAKEOVER FAILED: the replica does not run: %s", b->cfg.guest, why_not(b, rc));
		destroy_replica(b);
		memset(b->session, 0, sizeof(b->session));
		if (save_role(b, generation + 1, FT_ROLE_DISARMED))
			ft_err("%s: ... and that could not be recorded", b->cfg.guest);
		set_state(b, FT_BACKUP_EMPTY, "takeover failed");
		return rc;
	}
	b->started_epoch = epoch;
	set_state(b, FT_BACKUP_RUNNING, why);
	if (b->replica->ops->detach(b->replica))
		ft_err("%s: runs, but its attach record could not be written: it cannot be protected again", b->cfg.guest);
	b->replica = NULL;
	ft_image_free(b->image);
	b->image = NULL;
	close_store(b);
	b->ops->took_over(b->cfg.ctx, generation, epoch);
	return 0;
}

static void on_handover(struct ft_backup *b, uint64_t epoch)
{
	uint8_t body[8];

	if (!usable(b) || (epoch && epoch != ft_image_whole_epoch(b->image))) {
		part(b, FT_REASON_PROTO, "HANDOVER of an epoch that is not here");
		return;
	}
	if (take_over(b, epoch ? "planned failover" : "the primary's guest process died")) {
		part(b, FT_REASON_INTERNAL, "the replica does not run here");
		return;
	}
	ft_put64(body, b->record.generation);
	if (b->ops->send(b->cfg.ctx, FT_REC_RUNNING, body, sizeof(body)))
		drop_link(b);
}

/* Nothing of ours renews the primary's lease from here on; when it has ended, the guest starts. */
int ft_backup_force(struct ft_backup *b, ft_backup_done *done, void *ctx)
{
	uint32_t silence_ms = b->silence_ms ? b->silence_ms : b->ops->silence_ms(b->cfg.ctx);

	if (b->force_ns)
		return -EBUSY;
	if (!usable(b))
		return -ENODATA;
	if (b->link)
		ft_warn("%s: forced by the operator although %s is connected", b->cfg.guest, b->peer);
	drop_link(b);
	b->ops->echo_stop(b->cfg.ctx);
	b->forced = done;
	b->forced_ctx = ctx;
	b->force_ns = b->ops->now_ns(b->cfg.ctx) + silence_ms * FT_MS_NS;
	return 0;
}

int ft_backup_give_up(struct ft_backup *b)
{
	int rc;

	if (b->link || b->force_ns)
		return -EBUSY;
	if (!usable(b))
		return -ENODATA;
	leave_disks_whole(b);
	rc = void_replica(b, "given up by the operator");
	if (!rc)
		b->ops->echo_stop(b->cfg.ctx);
	return rc;
}

static void forced(struct ft_backup *b)
{
	int rc = usable(b) ? take_over(b, "forced by the operator") : -ENODATA;

	b->force_ns = 0;
	b->forced(b->forced_ctx, rc);
}

void ft_backup_tick(struct ft_backup *b)
{
	if (b->force_ns && b->ops->now_ns(b->cfg.ctx) >= b->force_ns)
		forced(b);
	else if (!b->force_ns && usable(b) && !(b->flags & FT_HELLO_CONTINUE) && b->ops->silent(b->cfg.ctx)) {
		drop_link(b);
		(void)take_over(b, "the primary is silent on every path");      /* logged inside */
	}
	b->ops->timer(b->cfg.ctx, b->ops->now_ns(b->cfg.ctx) + b->cfg.tick_ns);
}

/* --- records --- */

void ft_backup_record(struct ft_backup *b, uint32_t type, const uint8_t *body, size_t len)
{
	if (!b->link)
		return;
	if (!b->greeted && type != FT_REC_HELLO && type != FT_REC_ERROR && type != FT_REC_PING) {
		part(b, FT_REASON_PROTO, "records before HELLO");
		return;
	}
	if (b->greeted)
		b->ops->life(b->cfg.ctx);
	switch (type) {
	case FT_REC_HELLO:
		on_hello(b, body, len);
		break;
	case FT_REC_FIRMWARE:
		on_firmware(b, body, len);
		break;
	case FT_REC_DISKS:
		on_disks(b, body, len);
		break;
	case FT_REC_DISK_ASK:
		on_disk_ask(b, body, len);
		break;
	case FT_REC_EPOCH_BEGIN:
	case FT_REC_PAGES:
	case FT_REC_DISK:
	case FT_REC_STATE:
	case FT_REC_EPOCH_END:
		on_epoch_record(b, type, body, len);
		break;
	case FT_REC_DISARM:
		on_disarm(b, ft_le64(body));
		break;
	case FT_REC_HANDOVER:
		on_handover(b, ft_le64(body));
		break;
	case FT_REC_DRILL:
		on_drill(b);
		break;
	case FT_REC_VERIFY:
		on_verify(b, body, len);
		break;
	case FT_REC_PING:
		(void)b->ops->send(b->cfg.ctx, FT_REC_PONG, body, len); /* a link that cannot is about to say so */
		break;
	case FT_REC_PONG:
		break;
	case FT_REC_ERROR:
		ft_warn("%s: %s says: %s: %.*s", b->cfg.guest, b->peer, ft_wire_reason_text(ft_le32(body)), (int)(len - 4),
			(const char *)body + 4);
		drop_link(b);
		break;
	default:
		part(b, FT_REASON_PROTO, "a record that a primary does not send");
	}
}

/* --- life --- */

int ft_backup_new(const struct ft_backup_config *cfg, struct ft_backup **out)
{
	struct ft_backup *b = calloc(1, sizeof(*b));
	int rc;

	if (!b)
		return -ENOMEM;
	b->cfg = *cfg;
	b->ops = cfg->ops;
	rc = ft_record_load(cfg->files, cfg->state_dir, cfg->guest, &b->record);
	if (rc) {
		ft_backup_free(b);
		return rc;
	}
	*out = b;
	return 0;
}

void ft_backup_free(struct ft_backup *b)
{
	if (!b)
		return;
	destroy_replica(b);
	ft_blob_free(&b->session_firmware);
	if (b->force_ns)
		b->forced(b->forced_ctx, -ECANCELED);
	free(b);
}

void ft_backup_get_status(const struct ft_backup *b, struct ft_backup_status *out)
{
	*out = (struct ft_backup_status){
		.state = b->state, .generation = b->record.generation, .peer = b->peer, .linked = b->link,
		.drilling = b->drilling, .epochs = b->epochs,
		.epoch = b->image ? ft_image_whole_epoch(b->image) : b->started_epoch,
		.applied_epoch = b->image ? ft_image_applied_epoch(b->image) : b->started_epoch,
		.staging_bytes = b->image ? ft_image_staging_used(b->image) : 0,
	};
}
