// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_memory.c - a domain's memory in our address space. It stays mapped, so that an epoch costs copying only; frames
 * that come and go under it (ballooning) are found by who maps. See checkpoint/xen.h.
 */
#include "checkpoint/xen_model.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>

#define BATCH 1024u                     /* frames a call */
#define HIGH ((uint64_t)1 << 20)        /* 4 GiB */
#define MMIO 0xf0000ull                 /* from here to 4 GiB toolstacks lay no memory, so the rest begins at 4 GiB */
#define LOW_HVM 0x100ull                /* below 1 MiB an HVM guest has windows of devices */
#define FIRMWARE 0xfc000ull             /* from here to 4 GiB hvmloader puts what it makes: ACPI tables and the like */

/* --- mapping --- */

struct mapper {
	const struct xen_dom *d;
	const struct xen_specials *specials;
	int prot;
	uint64_t nr_missing;
	uint64_t page;                  /* of the map: the next batch's first */
	struct ft_bitmap *there, *changed;      /* NULL: not of interest */
	xen_pfn_t gfn[BATCH];
	int err[BATCH];
};

/* Pages that read as zeros, and are nobody's. Always whole mappings: the kernel does not split those of foreign memory.
 */
static int put_zeros(uint8_t *at, uint64_t nr)
{
	void *p = mmap(at, nr * FT_PAGE_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? -errno : 0;
}

/* Map @nr frames from @first on; m->err says which of them there are not (those must not be touched). */
static int map_run(struct mapper *m, uint64_t first, unsigned nr, uint8_t *at)
{
	for (unsigned i = 0; i < nr; i++)
		m->gfn[i] = first + i;
	if (xenforeignmemory_map2(m->d->mem, m->d->domid, at, m->prot, MAP_FIXED, nr, m->gfn, m->err))
		return 0;
	ft_err("%s: its memory from frame %" PRIx64 " on cannot be mapped: %s", m->d->guest, first, strerror(errno));
	return -errno;
}

static unsigned run_length(const bool *there, unsigned from, unsigned nr)
{
	unsigned i = from;

	while (i < nr && there[i])
		i++;
	return i - from;
}

/* A page that could not be mapped would be a SIGBUS; one of the domain's own connections is none of ours. */
static int map_present(struct mapper *m, uint64_t first, unsigned nr, const bool *there, uint8_t *at)
{
	int rc = put_zeros(at, nr);

	for (unsigned i = 0; i < nr && !rc; i++) {
		unsigned run = run_length(there, i, nr);

		if (run)
			rc = map_run(m, first + i, run, at + (uint64_t)i * FT_PAGE_SIZE);
		i += run;
	}
	return rc;
}

static void note_presence(struct mapper *m, uint64_t page, bool there)
{
	if (!m->there || ft_bitmap_test(m->there, page) == there)
		return;
	if (there)
		ft_bitmap_set(m->there, page);
	else
		ft_bitmap_clear(m->there, page);
	if (m->changed)
		ft_bitmap_set(m->changed, page);
}

static int map_batch(struct mapper *m, uint64_t first, unsigned nr, uint8_t *at)
{
	unsigned nr_there = 0;
	bool there[BATCH];
	int rc = map_run(m, first, nr, at);

	for (unsigned i = 0; i < nr && !rc; i++) {
		bool special = first + i == m->specials->store || first + i == m->specials->console;

		there[i] = !m->err[i] && !special;
		nr_there += there[i];
		note_presence(m, m->page + i, there[i]);
		m->nr_missing += m->err[i] != 0 && !special;
	}
	return rc || nr_there == nr ? rc : map_present(m, first, nr, there, at);
}

static int map_all(struct mapper *m, const struct xen_pages *map, uint8_t *ram)
{
	int rc = 0;

	for (unsigned r = 0; r < map->nr; r++) {
		for (uint64_t i = 0; i < map->range[r].count && !rc; i += BATCH) {
			uint64_t left = map->range[r].count - i;
			unsigned nr = left < BATCH ? (unsigned)left : BATCH;

			rc = map_batch(m, map->range[r].first + i, nr, ram + i * FT_PAGE_SIZE);
			m->page += nr;
		}
		ram += map->range[r].count * FT_PAGE_SIZE;
	}
	return rc;
}

static int map_memory(struct mapper *m, const struct xen_pages *map, uint8_t **out)
{
	uint8_t *ram = *out;
	int rc;

	if (!ram) {
		ram = mmap(NULL, map->total * FT_PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
			   0);
		if (ram == MAP_FAILED)
			return -errno;
	}
	rc = map_all(m, map, ram);
	if (rc)
		ft_err("%s: its memory of %" PRIu64 " pages cannot be mapped: %s", m->d->guest, map->total,
		       strerror(-rc));
	if (rc && !*out)
		munmap(ram, map->total * FT_PAGE_SIZE);
	if (!rc)
		*out = ram;
	return rc;
}

int xen_map(const struct xen_dom *d, const struct xen_pages *map, const struct xen_specials *specials, bool writable,
	    uint8_t **out, uint64_t *nr_missing)
{
	struct mapper m = { .d = d, .specials = specials, .prot = writable ? PROT_READ | PROT_WRITE : PROT_READ };
	int rc = map_memory(&m, map, out);

	if (nr_missing)
		*nr_missing = m.nr_missing;
	return rc;
}

int xen_map_moving(const struct xen_dom *d, const struct xen_pages *map, const struct xen_specials *specials, uint8_t **out,
		   struct ft_bitmap *there, struct ft_bitmap *changed)
{
	struct mapper m = { .d = d, .specials = specials, .prot = PROT_READ, .there = there, .changed = changed };

	return map_memory(&m, map, out);
}

void xen_unmap(uint8_t *ram, const struct xen_pages *map)
{
	if (ram)
		munmap(ram, map->total * FT_PAGE_SIZE);
}

/* --- finding --- */

struct finder {
	const struct xen_dom *d;
	struct ft_bitmap there;
	uint64_t found, wanted;
	xen_pfn_t gfn[BATCH];
	int err[BATCH];
};

/* Returns how many of @nr frames from @first on have memory, or -errno. */
static int probe(struct finder *f, uint64_t first, unsigned nr)
{
	int n = 0;
	void *p;

	for (unsigned i = 0; i < nr; i++)
		f->gfn[i] = first + i;
	p = xenforeignmemory_map(f->d->mem, f->d->domid, PROT_READ, nr, f->gfn, f->err);
	if (!p)
		return -errno;
	xenforeignmemory_unmap(f->d->mem, p, nr);
	for (unsigned i = 0; i < nr; i++) {
		if (f->err[i])
			continue;
		ft_bitmap_set(&f->there, first + i);
		n++;
	}
	f->found += (unsigned)n;
	return n;
}

/* Frames first..end, all of them or until a batch has nothing; upwards. */
static int probe_up(struct finder *f, uint64_t first, uint64_t end, bool all)
{
	int n = 1;

	for (; first < end && (n > 0 || (all && !n)) && f->found < f->wanted; first += BATCH)
		n = probe(f, first, end - first < BATCH ? (unsigned)(end - first) : BATCH);
	return n < 0 ? n : 0;
}

/* Not below @sure unless there is more to be found: frames that Xen does not count may be among those that are. */
static int probe_down(struct finder *f, uint64_t first, uint64_t sure, uint64_t end)
{
	int n = 0;

	while (end > first && n >= 0 && (end > sure || f->found < f->wanted)) {
		unsigned nr = end - first < BATCH ? (unsigned)(end - first) : BATCH;

		end -= nr;
		n = probe(f, end, nr);
	}
	return n < 0 ? n : 0;
}

static int collect_with(const struct finder *f, uint64_t gap, struct xen_pages *out)
{
	uint64_t gfn = ft_bitmap_next(&f->there, 0);
	int rc = 0;

	*out = (struct xen_pages){ 0 };
	while (gfn < f->there.nr_bits && !rc) {
		rc = xen_pages_add(out, gfn, 1, gap);
		gfn = ft_bitmap_next(&f->there, gfn + 1);
	}
	return rc;
}

/* A balloon may leave many holes: then the larger ones are counted as memory, too. */
static int collect(const struct finder *f, struct xen_pages *out)
{
	uint64_t gap = xen_has_model(f->d) ? XEN_GAP_HVM : XEN_GAP_MIN;
	int rc;

	while ((rc = collect_with(f, gap, out)) == -E2BIG && gap < f->there.nr_bits)
		gap *= 2;
	return rc;
}

/*
 * Xen has no call that lists them, and asking for one without memory costs a hypercall of its own. So first where
 * memory is wont to be: from 0 up, from 4 GiB up, and what toolstacks put below 4 GiB; until all that the domain has
 * is found.
 */
static int find(struct finder *f, uint64_t nr_gfns)
{
	uint64_t low = nr_gfns < HIGH ? nr_gfns : HIGH;
	int rc = probe_up(f, 0, low, false);

	if (!rc && nr_gfns > HIGH)
		rc = probe_up(f, HIGH, nr_gfns, true);
	return rc ? rc : probe_down(f, ft_bitmap_count(&f->there), xen_has_model(f->d) ? FIRMWARE : low, low);
}

static void add_range(struct finder *f, uint64_t first, uint64_t end)
{
	if (end > f->there.nr_bits)
		end = f->there.nr_bits;
	for (; first < end; first++)
		ft_bitmap_set(&f->there, first);
}

/* What a balloon has taken may come back: all that the domain was built with, as toolstacks lay it out. */
static void add_ballooned(struct finder *f)
{
	uint64_t most = xen_dom_kb(f->d, "static-max"), video = xen_dom_kb(f->d, "videoram");
	uint64_t nr = most > video ? (most - video) / 4 : 0;

	add_range(f, xen_has_model(f->d) ? LOW_HVM : 0, nr < MMIO ? nr : MMIO);
	if (nr > MMIO)
		add_range(f, HIGH, HIGH + nr - MMIO);
}

int xen_find_pages(const struct xen_dom *d, struct xen_pages *out)
{
	struct finder f = { .d = d };
	xc_domaininfo_t info;
	xen_pfn_t nr_gfns;
	int rc = xen_dom_info(d, &info);

	if (rc)
		return rc;
	if (xc_domain_nr_gpfns(d->xc, d->domid, &nr_gfns))
		return -errno;
	f.wanted = info.tot_pages;
	rc = ft_bitmap_init(&f.there, nr_gfns);
	if (!rc)
		rc = find(&f, nr_gfns);
	if (!rc) {
		add_ballooned(&f);
		rc = collect(&f, out);
	}
	if (rc)
		ft_err("%s: the layout of its memory cannot be found out: %s", d->guest, strerror(-rc));
	ft_debug("%s: %" PRIu64 " of %" PRIu64 " pages found below frame %" PRIx64, d->guest, f.found, f.wanted,
		 (uint64_t)nr_gfns);
	ft_bitmap_free(&f.there);
	return rc;
}

/* --- giving --- */

int xen_populate(const struct xen_dom *d, const struct xen_pages *map)
{
	struct finder f = { .d = d, .wanted = UINT64_MAX };
	int rc = ft_bitmap_init(&f.there, map->range[map->nr - 1].first + map->range[map->nr - 1].count);

	for (unsigned r = 0; r < map->nr && !rc; r++)
		rc = probe_up(&f, map->range[r].first, map->range[r].first + map->range[r].count, true);
	for (unsigned r = 0; r < map->nr && !rc; r++) {
		for (uint64_t i = 0; i < map->range[r].count && !rc; i++) {
			xen_pfn_t gfn = map->range[r].first + i;

			if (!ft_bitmap_test(&f.there, gfn) &&
			    xc_domain_populate_physmap_exact(d->xc, d->domid, 1, 0, 0, &gfn))
				rc = -ENOMEM;
		}
	}
	if (rc)
		ft_err("%s: its replica cannot be given the memory that the guest has: %s", d->guest, strerror(-rc));
	ft_bitmap_free(&f.there);
	return rc;
}
