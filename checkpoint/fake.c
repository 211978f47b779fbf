// SPDX-License-Identifier: GPL-3.0-or-later
/* fake.c - a deterministic guest in process; see ft/fake.h. */
#include "ft/fake.h"

#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#define MAGIC 0x74736575476b6146ull     /* "FakGuest" */
#define STATE_WORDS 9u
#define EVENTS_MAX 8u
#define STEP_NS (1 * FT_MS_NS)
#define CONTENDED "somebody else reads the log of written pages: no epoch can be taken"

/* What a vCPU and devices are to a real guest. The order is that of the state blob. */
struct machine {
	uint64_t magic, seed, nr_pages;
	uint64_t rng;
	uint64_t steps;
	uint64_t sent;                  /* packets */
	uint64_t last_request;
	uint64_t ram_digest;            /* sum of page_digest: kept up to date by every write */
};
_Static_assert(sizeof(struct machine) == (STATE_WORDS - 1) * 8, "the blob is these words and their hash");

struct ft_fake_guest {
	struct machine m;
	uint8_t *ram;
	bool paused, off, gone, contended;
	struct fake_vm *attached;
	ft_fake_packet *packet;
	void *packet_ctx;
	ft_fake_hook *hook;
	void *hook_ctx;
};

struct fake_vm {
	struct ft_vm vm;
	struct ft_fake_guest *guest;    /* borrowed */
	bool tracking;
	bool robbed;                    /* others have read what was written: it is not known here */
	struct ft_bitmap dirty;
	enum ft_vm_event event[EVENTS_MAX];
	unsigned nr_events;
};

struct fake_replica {
	struct ft_replica r;
	struct ft_fake_config cfg;
	bool killed, started;
	struct ft_fake_guest *guest;    /* started, until ft_fake_replica_guest hands it out */
	bool drilling;
	uint64_t drill_digest;          /* of RAM when the drill began */
	int drill_rc, drill_fd;
	ft_fake_hook *hook;
	void *hook_ctx;
};

/* --- the machine --- */

static uint64_t next_random(uint64_t *rng)      /* splitmix64 */
{
	uint64_t z = *rng += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static uint64_t page_digest(const uint8_t *ram, uint64_t page)
{
	return XXH3_64bits_withSeed(ram + page * FT_PAGE_SIZE, FT_PAGE_SIZE, page + 1);
}

static uint64_t ram_digest(const uint8_t *ram, uint64_t nr_pages)
{
	uint64_t sum = 0;

	for (uint64_t page = 0; page < nr_pages; page++)
		sum += page_digest(ram, page);
	return sum;
}

static uint8_t *begin_write(struct ft_fake_guest *g, uint64_t page)
{
	g->m.ram_digest -= page_digest(g->ram, page);
	return g->ram + page * FT_PAGE_SIZE;
}

static void end_write(struct ft_fake_guest *g, uint64_t page)
{
	g->m.ram_digest += page_digest(g->ram, page);
	if (g->attached && g->attached->tracking)
		ft_bitmap_set(&g->attached->dirty, page);
}

void ft_fake_write(struct ft_fake_guest *g, uint64_t page, size_t offset, const void *data, size_t len)
{
	assert(page < g->m.nr_pages && offset + len <= FT_PAGE_SIZE);
	memcpy(begin_write(g, page) + offset, data, len);
	end_write(g, page);
}

static void fill_random(struct ft_fake_guest *g, uint8_t *page)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 8)
		ft_put64(page + i, next_random(&g->m.rng));
}

static void fill_text(struct ft_fake_guest *g, uint8_t *page)
{
	for (unsigned i = 0; i < FT_PAGE_SIZE; i += 16) {
		unsigned n = (unsigned)(next_random(&g->m.rng) % 1000);
		char line[] = "key:000000=value";       /* printf would take most of a simulated life */

		line[7] += (char)(n / 100);
		line[8] += (char)(n / 10 % 10);
		line[9] += (char)(n % 10);
		memcpy(page + i, line, 16);
	}
}

/* One write to a random page, of a random kind. */
static void write_something(struct ft_fake_guest *g)
{
	uint64_t page = next_random(&g->m.rng) % g->m.nr_pages;
	uint64_t kind = next_random(&g->m.rng) % 16;
	uint8_t *p = begin_write(g, page);

	if (kind < 8)                   /* a word: most of what a guest does */
		ft_put64(p + next_random(&g->m.rng) % (FT_PAGE_SIZE - 8), next_random(&g->m.rng));
	else if (kind < 10)
		memset(p, 0, FT_PAGE_SIZE);
	else if (kind < 12)
		fill_text(g, p);
	else if (kind < 13)
		fill_random(g, p);
	else if (kind < 15)
		memmove(p, g->ram + next_random(&g->m.rng) % g->m.nr_pages * FT_PAGE_SIZE, FT_PAGE_SIZE);
	/* else: written with what it already holds */
	end_write(g, page);
}

static void send_packet(struct ft_fake_guest *g, uint64_t id)
{
	g->m.sent++;
	ft_fake_write(g, 0, 0, &g->m.sent, 8);
	if (g->packet)
		g->packet(g->packet_ctx, g->m.sent, id);
}

bool ft_fake_running(const struct ft_fake_guest *g)
{
	return !g->paused && !g->off && !g->gone;
}

void ft_fake_step(struct ft_fake_guest *g)
{
	uint64_t writes;

	if (!ft_fake_running(g))
		return;
	g->m.steps++;
	writes = next_random(&g->m.rng) % 8;
	while (writes--)
		write_something(g);
	if (next_random(&g->m.rng) % 4 == 0)
		send_packet(g, 0);
}

bool ft_fake_request(struct ft_fake_guest *g, uint64_t id)
{
	if (!ft_fake_running(g))
		return false;
	g->m.last_request = id;
	ft_fake_write(g, id % g->m.nr_pages, 8 + id % 511 * 8, &id, 8);
	send_packet(g, id);
	return true;
}

static void put_state(const struct machine *m, uint8_t blob[STATE_WORDS * 8])
{
	const uint64_t *word = (const uint64_t *)m;

	for (unsigned i = 0; i < STATE_WORDS - 1; i++)
		ft_put64(blob + 8 * i, word[i]);
	ft_put64(blob + 8 * (STATE_WORDS - 1), XXH3_64bits(blob, 8 * (STATE_WORDS - 1)));
}

/* -EBADMSG unless @state is a state of that machine and @ram is what it left. */
static int get_state(struct machine *m, const struct ft_blob *state, const struct ft_fake_config *cfg,
		     const uint8_t *ram)
{
	uint64_t *word = (uint64_t *)m;

	if (state->len != STATE_WORDS * 8 ||
	    ft_le64(state->data + 8 * (STATE_WORDS - 1)) != XXH3_64bits(state->data, 8 * (STATE_WORDS - 1)))
		return -EBADMSG;
	for (unsigned i = 0; i < STATE_WORDS - 1; i++)
		word[i] = ft_le64(state->data + 8 * i);
	if (m->magic != MAGIC || m->seed != cfg->seed || m->nr_pages != cfg->nr_pages)
		return -EBADMSG;
	return m->ram_digest == ram_digest(ram, cfg->nr_pages) ? 0 : -EBADMSG;
}

static uint64_t whole_digest(const uint8_t *ram, uint64_t nr_pages, const uint8_t *state, size_t len)
{
	return ram_digest(ram, nr_pages) ^ XXH3_64bits(state, len);
}

uint64_t ft_fake_digest(struct ft_fake_guest *g)
{
	uint8_t blob[STATE_WORDS * 8];

	put_state(&g->m, blob);
	return whole_digest(g->ram, g->m.nr_pages, blob, sizeof(blob));
}

static uint8_t *new_ram(uint64_t nr_pages)
{
	void *ram = mmap(NULL, nr_pages * FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return ram == MAP_FAILED ? NULL : ram;
}

/* RAM and state as at power on: a third of the pages hold something. */
static void boot(struct ft_fake_guest *g)
{
	for (uint64_t page = 0; page < g->m.nr_pages; page++) {
		uint64_t kind = next_random(&g->m.rng) % 6;
		uint8_t *p = begin_write(g, page);

		memset(p, 0, FT_PAGE_SIZE);
		if (kind == 0)
			fill_random(g, p);
		else if (kind == 1)
			fill_text(g, p);
		end_write(g, page);
	}
}

static struct ft_fake_guest *new_guest(uint64_t nr_pages)
{
	struct ft_fake_guest *g = calloc(1, sizeof(*g));

	if (!g)
		return NULL;
	g->m.nr_pages = nr_pages;
	g->ram = new_ram(nr_pages);
	if (!g->ram) {
		free(g);
		return NULL;
	}
	return g;
}

int ft_fake_guest_new(const struct ft_fake_config *cfg, struct ft_fake_guest **out)
{
	struct ft_fake_guest *g;

	if (cfg->nr_pages < 2)
		return -EINVAL;
	g = new_guest(cfg->nr_pages);
	if (!g)
		return -ENOMEM;
	g->m.magic = MAGIC;
	g->m.seed = g->m.rng = cfg->seed;
	g->m.ram_digest = ram_digest(g->ram, cfg->nr_pages);
	boot(g);
	*out = g;
	return 0;
}

void ft_fake_guest_free(struct ft_fake_guest *g)
{
	if (!g)
		return;
	assert(!g->attached);
	munmap(g->ram, g->m.nr_pages * FT_PAGE_SIZE);
	free(g);
}

void ft_fake_on_send(struct ft_fake_guest *g, ft_fake_packet *packet, void *ctx)
{
	g->packet = packet;
	g->packet_ctx = ctx;
}

void ft_fake_on_op(struct ft_fake_guest *g, ft_fake_hook *hook, void *ctx)
{
	g->hook = hook;
	g->hook_ctx = ctx;
}

uint64_t ft_fake_sent(const struct ft_fake_guest *g)
{
	return g->m.sent;
}

uint64_t ft_fake_last_request(const struct ft_fake_guest *g)
{
	return g->m.last_request;
}

void ft_fake_resume(struct ft_fake_guest *g)
{
	g->paused = false;
}

void ft_fake_pause(struct ft_fake_guest *g)
{
	g->paused = true;
	ft_fake_event(g, FT_VM_PAUSED_BY_OTHER);
}

void ft_fake_contend(struct ft_fake_guest *g, bool contended)
{
	g->contended = contended;
	if (g->attached)
		g->attached->robbed |= contended;
}

void ft_fake_event(struct ft_fake_guest *g, enum ft_vm_event event)
{
	struct fake_vm *v = g->attached;

	if (event == FT_VM_SHUTDOWN)
		g->off = true;
	else if (event == FT_VM_GONE)
		g->gone = true;
	else if (event == FT_VM_RESET)
		boot(g);
	if (v && v->nr_events < EVENTS_MAX) {
		v->event[v->nr_events++] = event;
		eventfd_write(v->vm.event_fd, 1);
	}
}

/* --- the running guest, in the order of ft_hv_ops --- */

static struct ft_fake_guest *guest_of(struct ft_vm *vm)
{
	return ft_container_of(vm, struct fake_vm, vm)->guest;
}

/* What happens before every op: the process must be there, and a test may have a word. */
static int enter(struct ft_vm *vm, enum ft_fake_op op)
{
	struct ft_fake_guest *g = guest_of(vm);
	int rc = g->hook ? g->hook(g->hook_ctx, op) : 0;

	return rc ? rc : g->gone ? -EPIPE : 0;
}

static int not_robbed(struct ft_vm *vm)
{
	vm->contended = ft_container_of(vm, struct fake_vm, vm)->robbed ? CONTENDED : NULL;
	return vm->contended ? -EBUSY : 0;
}

static int fake_track(struct ft_vm *vm)
{
	struct fake_vm *v = ft_container_of(vm, struct fake_vm, vm);
	int rc = enter(vm, FT_FAKE_TRACK);

	if (!rc)
		v->tracking = true;
	v->robbed |= v->guest->contended;
	(void)not_robbed(vm);           /* it is said, and no fault of this op's */
	return rc;
}

static int fake_pause(struct ft_vm *vm)
{
	int rc = enter(vm, FT_FAKE_PAUSE);

	if (!rc)
		rc = not_robbed(vm);
	if (!rc)
		guest_of(vm)->paused = true;
	return rc;
}

static int fake_state_begin(struct ft_vm *vm)
{
	int rc = enter(vm, FT_FAKE_STATE_BEGIN);

	return rc ? rc : guest_of(vm)->paused ? 0 : -EINVAL;
}

/* Serialising writes RAM, as device models do when they flush what they hold of a ring. */
static int fake_state_end(struct ft_vm *vm, struct ft_blob *out)
{
	struct ft_fake_guest *g = guest_of(vm);
	uint8_t blob[STATE_WORDS * 8];
	int rc = enter(vm, FT_FAKE_STATE_END);

	if (rc)
		return rc;
	for (uint64_t i = next_random(&g->m.rng) % 3; i > 0; i--)
		write_something(g);
	put_state(&g->m, blob);
	return ft_blob_copy(out, blob, sizeof(blob));
}

static int fake_take_dirty(struct ft_vm *vm, struct ft_bitmap *dirty)
{
	struct fake_vm *v = ft_container_of(vm, struct fake_vm, vm);
	int rc = enter(vm, FT_FAKE_TAKE_DIRTY);

	if (!rc)
		rc = not_robbed(vm);
	if (rc)
		return rc;
	ft_bitmap_or(dirty, &v->dirty);
	ft_bitmap_zero(&v->dirty);
	return 0;
}

static int fake_resume(struct ft_vm *vm)
{
	int rc = enter(vm, FT_FAKE_RESUME);

	if (!rc)
		guest_of(vm)->paused = false;
	return rc;
}

static int fake_firmware(struct ft_vm *vm, struct ft_blob *out)
{
	uint64_t word[2] = { MAGIC, guest_of(vm)->m.seed };
	int rc = enter(vm, FT_FAKE_FIRMWARE);

	return rc ? rc : ft_blob_copy(out, word, sizeof(word));
}

static enum ft_vm_event fake_next_event(struct ft_vm *vm)
{
	struct fake_vm *v = ft_container_of(vm, struct fake_vm, vm);
	enum ft_vm_event event;
	eventfd_t count;

	if (vm->contended && !v->guest->contended) {
		ft_bitmap_zero(&v->dirty);
		v->robbed = false;
		vm->contended = NULL;
	}
	if (!v->nr_events) {
		(void)eventfd_read(vm->event_fd, &count);
		return FT_VM_NONE;
	}
	event = v->event[0];
	memmove(v->event, v->event + 1, --v->nr_events * sizeof(v->event[0]));
	return event;
}

static uint64_t fake_cpu_time_ns(struct ft_vm *vm)
{
	return guest_of(vm)->m.steps * STEP_NS;
}

static int fake_destroy(struct ft_vm *vm)
{
	guest_of(vm)->gone = true;
	return 0;
}

void ft_fake_abandon(struct ft_vm *vm)
{
	struct fake_vm *v;

	if (!vm)
		return;
	v = ft_container_of(vm, struct fake_vm, vm);
	v->guest->attached = NULL;
	if (vm->event_fd >= 0)
		close(vm->event_fd);
	ft_bitmap_free(&v->dirty);
	free(v);
}

static void fake_close(struct ft_vm *vm)
{
	guest_of(vm)->paused = false;
	ft_fake_abandon(vm);
}

static const struct ft_hv_ops fake_ops = {
	.track = fake_track,
	.pause = fake_pause,
	.state_begin = fake_state_begin,
	.state_end = fake_state_end,
	.take_dirty = fake_take_dirty,
	.resume = fake_resume,
	.firmware = fake_firmware,
	.next_event = fake_next_event,
	.cpu_time_ns = fake_cpu_time_ns,
	.destroy = fake_destroy,
	.close = fake_close,
};

int ft_fake_attach(struct ft_fake_guest *g, struct ft_vm **out)
{
	struct fake_vm *v;

	if (g->attached)
		return -EBUSY;
	v = calloc(1, sizeof(*v));
	if (!v)
		return -ENOMEM;
	v->guest = g;
	v->vm = (struct ft_vm){
		.ops = &fake_ops, .backend = "fake", .accel = "fake", .tracker = "fake",
		.ram = g->ram, .nr_pages = g->m.nr_pages, .event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	g->attached = v;
	if (v->vm.event_fd < 0 || ft_bitmap_init(&v->dirty, g->m.nr_pages)) {
		ft_fake_abandon(&v->vm);
		return -ENOMEM;
	}
	*out = &v->vm;
	return 0;
}

/* --- the replica, in the order of ft_replica_ops --- */

static int replica_enter(struct fake_replica *f, enum ft_fake_op op)
{
	int rc = f->hook ? f->hook(f->hook_ctx, op) : 0;

	return rc ? rc : f->killed ? -EPIPE : 0;
}

static bool is_firmware(const struct fake_replica *f, const struct ft_blob *firmware)
{
	return firmware->len == 16 && ft_le64(firmware->data) == MAGIC && ft_le64(firmware->data + 8) == f->cfg.seed;
}

/* A guest that goes on from @r's RAM and @state, or -EBADMSG. */
static int load(const struct fake_replica *f, const struct ft_blob *firmware, const struct ft_blob *state,
		struct ft_fake_guest **out)
{
	struct ft_fake_guest *g;
	struct machine m;
	int rc;

	if (!is_firmware(f, firmware)) {
		ft_err("fake replica: this is not the guest's firmware");
		return -EBADMSG;
	}
	rc = get_state(&m, state, &f->cfg, f->r.ram);
	if (rc) {
		ft_err("fake replica: RAM and state are not of one instant");
		return rc;
	}
	g = new_guest(f->cfg.nr_pages);
	if (!g)
		return -ENOMEM;
	g->m = m;
	memcpy(g->ram, f->r.ram, f->cfg.nr_pages * FT_PAGE_SIZE);
	*out = g;
	return 0;
}

static int fake_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state)
{
	struct fake_replica *f = ft_container_of(r, struct fake_replica, r);
	int rc = replica_enter(f, FT_FAKE_START);

	if (!rc && f->started)
		rc = -EBUSY;
	if (!rc)
		rc = load(f, firmware, state, &f->guest);
	f->started |= !rc;
	return rc;
}

static int fake_drill_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state, int *fd)
{
	struct fake_replica *f = ft_container_of(r, struct fake_replica, r);
	struct ft_fake_guest *scratch = NULL;
	int rc = replica_enter(f, FT_FAKE_DRILL);

	if (rc)
		return rc;
	if (f->drilling)
		return -EBUSY;
	f->drill_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
	if (f->drill_fd < 0)
		return -errno;
	f->drilling = true;
	f->drill_digest = ram_digest(r->ram, r->nr_pages);
	f->drill_rc = load(f, firmware, state, &scratch);
	ft_fake_guest_free(scratch);
	*fd = f->drill_fd;
	return 0;
}

static void fake_drill_end(struct ft_replica *r, struct ft_drill_result *out)
{
	struct fake_replica *f = ft_container_of(r, struct fake_replica, r);
	bool changed = f->drilling && f->drill_digest != ram_digest(r->ram, r->nr_pages);

	*out = (struct ft_drill_result){ .ok = f->drilling && !f->drill_rc && !changed, .load_ms = 1, .dirtied_pages = 1 };
	if (!out->ok)
		snprintf(out->why, sizeof(out->why), "%s", !f->drilling ? "no drill was begun" : changed ?
			 "RAM changed during the drill" : "RAM and state are not of one instant");
	if (f->drilling)
		close(f->drill_fd);
	f->drilling = false;
}

static void fake_replica_destroy(struct ft_replica *r)
{
	struct fake_replica *f;

	if (!r)
		return;
	f = ft_container_of(r, struct fake_replica, r);
	(void)replica_enter(f, FT_FAKE_DESTROY);
	if (f->drilling)
		close(f->drill_fd);
	if (r->watch_fd >= 0)
		close(r->watch_fd);
	if (r->ram)
		munmap(r->ram, r->nr_pages * FT_PAGE_SIZE);
	ft_fake_guest_free(f->guest);
	free(f);
}

static int fake_detach(struct ft_replica *r)
{
	fake_replica_destroy(r);        /* the guest was handed out and has RAM of its own */
	return 0;
}

static int fake_fits(struct ft_replica *r, const struct ft_blob *firmware, char *why, size_t size)
{
	if (is_firmware(ft_container_of(r, struct fake_replica, r), firmware))
		return 0;
	snprintf(why, size, "this is not the guest's firmware");
	return -ENOEXEC;
}

static const struct ft_replica_ops fake_replica_ops = {
	.start = fake_start,
	.drill_start = fake_drill_start,
	.drill_end = fake_drill_end,
	.fits = fake_fits,
	.detach = fake_detach,
	.destroy = fake_replica_destroy,
};

int ft_fake_replica_prepare(const struct ft_fake_config *cfg, struct ft_replica **out)
{
	struct fake_replica *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->cfg = *cfg;
	f->r = (struct ft_replica){
		.ops = &fake_replica_ops, .ram = new_ram(cfg->nr_pages), .nr_pages = cfg->nr_pages,
		.watch_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
	};
	if (!f->r.ram || f->r.watch_fd < 0) {
		fake_replica_destroy(&f->r);
		return -ENOMEM;
	}
	*out = &f->r;
	return 0;
}

void ft_fake_replica_on_op(struct ft_replica *r, ft_fake_hook *hook, void *ctx)
{
	struct fake_replica *f = ft_container_of(r, struct fake_replica, r);

	f->hook = hook;
	f->hook_ctx = ctx;
}

void ft_fake_replica_kill(struct ft_replica *r)
{
	ft_container_of(r, struct fake_replica, r)->killed = true;
	eventfd_write(r->watch_fd, 1);
}

struct ft_fake_guest *ft_fake_replica_guest(struct ft_replica *r)
{
	struct fake_replica *f = ft_container_of(r, struct fake_replica, r);
	struct ft_fake_guest *g = f->guest;

	f->guest = NULL;
	return g;
}

uint64_t ft_fake_replica_digest(const struct ft_replica *r, const struct ft_blob *state)
{
	return whole_digest(r->ram, r->nr_pages, state->data, state->len);
}
