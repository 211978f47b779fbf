// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tracker_softdirty.c - the soft-dirty bit: cleared for a whole process through /proc/PID/clear_refs, read
 * as bit 55 of /proc/PID/pagemap.
 *
 * Reading and clearing are two steps, and a write between them would be lost. So every thread of the
 * target is held meanwhile. Two things make the kernel drop a page's bit: reclaim, so the RAM is locked
 * into memory, and collapsing pages to a huge one, so a mapping for which that may happen is refused.
 */
#include "checkpoint/track.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SOFT_DIRTY (1ull << 55)
#define BATCH 4096u                     /* pagemap entries read at once: 32 KiB */
#define FREEZE_MS 1000

struct softdirty_tracker {
	struct ft_tracker base;
	struct ft_track_target t;
	int pagemap, clear_refs;
	bool locked;
};

static int clear_bits(int clear_refs)
{
	ssize_t n = pwrite(clear_refs, "4", 1, 0);

	return n < 0 ? -errno : n == 1 ? 0 : -EIO;
}

/* --- take --- */

/* Also used by the probe: OR the soft-dirty pages of [@first, @first + @nr) into @dirty. */
static int read_bits(int pagemap, uint64_t addr, uint64_t first, uint64_t nr, struct ft_bitmap *dirty)
{
	uint64_t entry[BATCH];

	while (nr) {
		size_t want = nr < BATCH ? nr : BATCH;
		uint64_t at = (addr >> FT_PAGE_SHIFT) + first;
		ssize_t n = pread(pagemap, entry, want * 8, (off_t)(at * 8));

		if (n <= 0 || n % 8)
			return n < 0 ? -errno : -ESRCH; /* no address space is left to read */
		for (size_t i = 0; i < (size_t)n / 8; i++)
			if (entry[i] & SOFT_DIRTY)
				ft_bitmap_set(dirty, first + i);
		first += (uint64_t)n / 8;
		nr -= (uint64_t)n / 8;
	}
	return 0;
}

struct take {
	struct softdirty_tracker *tr;
	struct ft_bitmap *dirty;
};

static int take_piece(void *ctx, uint64_t first, uint64_t nr)
{
	const struct take *tk = ctx;

	return read_bits(tk->tr->pagemap, tk->tr->t.addr, first, nr, tk->dirty);
}

static int take_frozen(void *ctx)
{
	const struct take *tk = ctx;
	int rc = ft_scan_pages(&tk->tr->t, take_piece, ctx);

	return rc ? rc : clear_bits(tk->tr->clear_refs);
}

static int softdirty_take(struct ft_tracker *base, struct ft_bitmap *dirty)
{
	struct softdirty_tracker *tr = ft_container_of(base, struct softdirty_tracker, base);
	struct take tk = { tr, dirty };
	int rc = ft_while_frozen(tr->t.pid, FREEZE_MS, take_frozen, &tk);

	if (ft_track_alive(&tr->t))
		rc = -ESRCH;
	if (!rc)
		return 0;
	ft_bitmap_fill(dirty);
	if (rc != -ESRCH)
		ft_err("soft-dirty: cannot scan the RAM of process %d: %s", tr->t.pid, strerror(-rc));
	return rc;
}

/* --- life --- */

static void softdirty_close(struct ft_tracker *base)
{
	struct softdirty_tracker *tr = ft_container_of(base, struct softdirty_tracker, base);

	/* Pages protected by the last clear get their write permission back one by one, as they are written. */
	if (tr->locked)
		munlock(tr->t.ram, tr->t.nr_pages << FT_PAGE_SHIFT);
	if (tr->pagemap >= 0)
		close(tr->pagemap);
	if (tr->clear_refs >= 0)
		close(tr->clear_refs);
	free(tr);
}

static int lock_ram(struct softdirty_tracker *tr)
{
	if (mlock(tr->t.ram, tr->t.nr_pages << FT_PAGE_SHIFT))
		return -errno;
	tr->locked = true;
	return 0;
}

static int softdirty_open(const struct ft_track_target *t, struct ft_tracker **out)
{
	struct softdirty_tracker *tr = calloc(1, sizeof(*tr));
	int rc;

	if (!tr)
		return -ENOMEM;
	*tr = (struct softdirty_tracker){
		.base = { &ft_tracker_softdirty, t->ram }, .t = *t, .pagemap = -1, .clear_refs = -1,
	};
	rc = ft_track_open_proc(t, "pagemap", O_RDONLY, &tr->pagemap);
	if (!rc)
		rc = ft_track_open_proc(t, "clear_refs", O_WRONLY, &tr->clear_refs);
	if (rc) {
		ft_err("soft-dirty: cannot reach process %d: %s", t->pid, strerror(-rc));
		goto fail;
	}
	rc = lock_ram(tr);
	if (rc) {
		ft_err("soft-dirty: cannot lock guest RAM: %s; raise RLIMIT_MEMLOCK or run as root", strerror(-rc));
		goto fail;
	}
	*out = &tr->base;
	return 0;
fail:
	softdirty_close(&tr->base);
	return rc;
}

static int softdirty_start(struct ft_tracker *base)
{
	struct softdirty_tracker *tr = ft_container_of(base, struct softdirty_tracker, base);
	struct ft_bitmap ignored;
	int rc = ft_bitmap_init(&ignored, tr->t.nr_pages);

	if (rc)
		return rc;
	/* A full take, so that whatever would fail later fails now. */
	rc = softdirty_take(base, &ignored);
	ft_bitmap_free(&ignored);
	return rc;
}

/* --- probe --- */

static int refuse(const struct ft_track_target *t, int rc, const char *why)
{
	ft_info("process %d: tracker soft-dirty not used: %s (%s)", t->pid, why, strerror(-rc));
	return rc;
}

/* Write the second of two pages of our own: its bit must come, and the other's must go. */
static int try_on(uint8_t *scratch, int pagemap, int clear_refs)
{
	struct ft_bitmap seen;
	bool works;
	int rc;

	scratch[0] = scratch[FT_PAGE_SIZE] = 1;
	rc = clear_bits(clear_refs);
	if (rc)
		return rc;
	*(volatile uint8_t *)&scratch[FT_PAGE_SIZE] = 2;
	rc = ft_bitmap_init(&seen, 2);
	if (rc)
		return rc;
	rc = read_bits(pagemap, (uintptr_t)scratch, 0, 2, &seen);
	works = !ft_bitmap_test(&seen, 0) && ft_bitmap_test(&seen, 1);
	ft_bitmap_free(&seen);
	return rc ? rc : works ? 0 : -EOPNOTSUPP;
}

/* On a mapping of ours: clearing the target's bits would steal them from whoever tracks it now. */
static int try_here(void)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	int clear_refs = open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
	void *scratch = mmap(NULL, 2 * FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int rc = -EACCES;

	if (pagemap >= 0 && clear_refs >= 0 && scratch != MAP_FAILED)
		rc = try_on(scratch, pagemap, clear_refs);
	if (scratch != MAP_FAILED)
		munmap(scratch, 2 * FT_PAGE_SIZE);
	if (pagemap >= 0)
		close(pagemap);
	if (clear_refs >= 0)
		close(clear_refs);
	return rc;
}

static int nothing(void *ctx)
{
	return 0;
}

static int softdirty_probe(const struct ft_track_target *t)
{
	struct ft_map_facts facts;
	int rc = try_here();

	if (rc)
		return refuse(t, rc, "the kernel keeps no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)");
	if (!t->ram)
		return refuse(t, -EINVAL, "its RAM is not mapped here and cannot be locked");
	rc = ft_map_facts(t, &facts);
	if (rc)
		return refuse(t, rc, "its RAM mapping cannot be seen");
	if (facts.page_kb * 1024 != FT_PAGE_SIZE || facts.huge)
		return refuse(t, -EOPNOTSUPP, "its RAM has huge pages; use a tmpfs without them, see shmem_enabled and mount "
			      "option huge=");
	rc = ft_while_frozen(t->pid, FREEZE_MS, nothing, NULL);
	if (rc)
		return refuse(t, rc, "its threads cannot be held; run as root, and end debuggers");
	return 0;
}

const struct ft_tracker_ops ft_tracker_softdirty = {
	.name = "soft-dirty",
	.probe = softdirty_probe,
	.open = softdirty_open,
	.start = softdirty_start,
	.take = softdirty_take,
	.close = softdirty_close,
};
