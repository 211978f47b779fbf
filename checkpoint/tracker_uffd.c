// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * tracker_uffd.c - asynchronous write protection with QEMU's own userfaultfd, read with PAGEMAP_SCAN.
 *
 * The kernel lifts the protection of a page at its first write and goes on; nobody is woken. PAGEMAP_SCAN
 * then finds the pages without protection and protects them again, both under the page table's lock, so a
 * write falls before or after, never between.
 */
#include "checkpoint/track.h"
#include "checkpoint/uffd_abi.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NR_REGIONS 1024u                /* 24 KiB on the stack of each scanning thread */
/* Written pages this close are protected in one call under KVM; see take_gently. */
#define GAP_BYTES (64ull << FT_PAGE_SHIFT)

struct uffd_tracker {
	struct ft_tracker base;
	struct ft_track_target t;
	int uffd;                       /* our duplicate of the target's */
	int pagemap;
	bool kvm;
	bool registered;
};

static uint64_t target_end(const struct uffd_tracker *tr)
{
	return tr->t.addr + (tr->t.nr_pages << FT_PAGE_SHIFT);
}

/* --- the target's userfaultfd --- */

static int get_uffd(const struct ft_track_target *t, int *fd)
{
	*fd = (int)syscall(SYS_pidfd_getfd, t->pidfd, t->uffd, 0);
	return *fd < 0 ? -errno : 0;
}

/* The features its maker asked for: "API: aa:<features>:<all>" in fdinfo. */
static int uffd_features(const struct ft_track_target *t, uint64_t *features)
{
	char path[64], line[128];
	FILE *f;

	*features = 0;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", t->pid, t->uffd);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT ? -EBADF : -errno;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "API: %*x:%" SCNx64, features) == 1)
			break;
	fclose(f);
	return *features ? 0 : -EBADF;
}

static int uffd_register(struct uffd_tracker *tr)
{
	struct uffdio_register reg = {
		.range = { .start = tr->t.addr, .len = tr->t.nr_pages << FT_PAGE_SHIFT },
		.mode = UFFDIO_REGISTER_MODE_WP,
	};

	/* A dead predecessor's registration through the same userfaultfd is no obstacle. */
	if (ioctl(tr->uffd, UFFDIO_REGISTER, &reg))
		return -errno;
	tr->registered = true;
	return reg.ioctls & 1ull << _UFFDIO_WRITEPROTECT ? 0 : -EOPNOTSUPP;
}

static void uffd_unregister(struct uffd_tracker *tr)
{
	struct uffdio_range range = { .start = tr->t.addr, .len = tr->t.nr_pages << FT_PAGE_SHIFT };

	/* ENOMEM, too, is the answer for a process that has ended. */
	if (tr->registered && ioctl(tr->uffd, UFFDIO_UNREGISTER, &range) && errno != ESRCH && errno != ENOMEM)
		ft_warn("process %d: cannot end write tracking: %s; its first write to each page stays slow",
			tr->t.pid, strerror(errno));
	tr->registered = false;
}

/* Protect everything, pages not yet there included, so that reading one does not make it count as written. */
static int protect_all(struct uffd_tracker *tr)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = tr->t.addr, .len = tr->t.nr_pages << FT_PAGE_SHIFT },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};

	/* EAGAIN: the address space is changing (a fork); it ends by itself. */
	for (unsigned tries = 0; ioctl(tr->uffd, UFFDIO_WRITEPROTECT, &wp); tries++)
		if (errno != EAGAIN || tries == 1000)
			return -errno;
	return 0;
}

/* Does the target run a KVM guest, so that scanning has secondary page tables to spare? */
static bool has_kvm(pid_t pid)
{
	char path[320], link[64];
	struct dirent *e;
	bool found = false;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	d = opendir(path);
	if (!d)
		return false;
	while (!found && (e = readdir(d))) {
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, e->d_name);
		n = readlink(path, link, sizeof(link) - 1);
		link[n > 0 ? n : 0] = 0;
		found = !strcmp(link, "anon_inode:kvm-vm");
	}
	closedir(d);
	return found;
}

/* --- scanning --- */

/*
 * One PAGEMAP_SCAN from *@start, which moves on to where the walk stopped. Returns the number of regions.
 * No other category masks: only "written", asked for and returned, is right on every kernel that has it.
 */
static int scan(const struct uffd_tracker *tr, uint64_t flags, uint64_t *start, uint64_t end, struct page_region *vec)
{
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags | PM_SCAN_CHECK_WPASYNC,
		.start = *start,
		.end = end,
		.vec = (uintptr_t)vec,
		.vec_len = NR_REGIONS,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	int n = ioctl(tr->pagemap, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	if (arg.walk_end <= *start || arg.walk_end > end)
		return -EIO;
	*start = arg.walk_end;
	return n;
}

struct take {
	const struct uffd_tracker *tr;
	struct ft_bitmap *dirty;
};

static int take_range(const struct take *tk, uint64_t start, uint64_t end)
{
	struct page_region vec[NR_REGIONS];
	uint64_t base = tk->tr->t.addr;

	while (start < end) {
		int n = scan(tk->tr, PM_SCAN_WP_MATCHING, &start, end, vec);

		if (n < 0)
			return n;
		for (int i = 0; i < n; i++)
			ft_bitmap_set_range(tk->dirty, (vec[i].start - base) >> FT_PAGE_SHIFT,
					    (vec[i].end - vec[i].start) >> FT_PAGE_SHIFT);
	}
	return 0;
}

/*
 * A protecting scan tells KVM that its whole range changes, and KVM forgets how it maps all of it. So look
 * first, then take only near what was found. A page written in between is found the next time.
 */
static int take_gently(const struct take *tk, uint64_t start, uint64_t end)
{
	struct page_region vec[NR_REGIONS];

	while (start < end) {
		int n = scan(tk->tr, 0, &start, end, vec), rc;

		if (n < 0)
			return n;
		for (int i = 0, j; i < n; i = j) {
			for (j = i + 1; j < n && vec[j].start - vec[j - 1].end <= GAP_BYTES; j++)
				;
			rc = take_range(tk, vec[i].start, vec[j - 1].end);
			if (rc)
				return rc;
		}
	}
	return 0;
}

static int take_piece(void *ctx, uint64_t first, uint64_t nr)
{
	const struct take *tk = ctx;
	uint64_t start = tk->tr->t.addr + (first << FT_PAGE_SHIFT);
	uint64_t end = start + (nr << FT_PAGE_SHIFT);

	return (tk->tr->kvm ? take_gently : take_range)(tk, start, end);
}

/* A scan passes over what is not mapped without a word, and a dying process loses its mappings first. */
static int still_mapped(const struct uffd_tracker *tr, uint64_t addr)
{
	struct page_region region;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.start = addr,
		.end = addr + FT_PAGE_SIZE,
		.vec = (uintptr_t)&region,
		.vec_len = 1,
		.category_mask = PAGE_IS_WPALLOWED,
		.return_mask = PAGE_IS_WPALLOWED,
	};
	int n = ioctl(tr->pagemap, PAGEMAP_SCAN, &arg);

	if (n < 0)
		return -errno;
	return n == 1 ? 0 : -ESRCH;
}

static int uffd_take(struct ft_tracker *base, struct ft_bitmap *dirty)
{
	struct uffd_tracker *tr = ft_container_of(base, struct uffd_tracker, base);
	struct take tk = { tr, dirty };
	int rc = ft_scan_pages(&tr->t, take_piece, &tk);

	if (!rc)
		rc = still_mapped(tr, tr->t.addr);
	if (!rc)
		rc = still_mapped(tr, target_end(tr) - FT_PAGE_SIZE);
	if (ft_track_alive(&tr->t))
		rc = -ESRCH;
	if (!rc)
		return 0;
	ft_bitmap_fill(dirty);
	if (rc != -ESRCH)
		ft_err("uffd-wp-async: cannot scan the RAM of process %d: %s", tr->t.pid, strerror(-rc));
	return rc;
}

/* --- life --- */

static void uffd_close(struct ft_tracker *base)
{
	struct uffd_tracker *tr = ft_container_of(base, struct uffd_tracker, base);

	uffd_unregister(tr);
	if (tr->uffd >= 0)
		close(tr->uffd);
	if (tr->pagemap >= 0)
		close(tr->pagemap);
	free(tr);
}

static int uffd_open(const struct ft_track_target *t, struct ft_tracker **out)
{
	struct uffd_tracker *tr = calloc(1, sizeof(*tr));
	int rc;

	if (!tr)
		return -ENOMEM;
	*tr = (struct uffd_tracker){ .base = { &ft_tracker_uffd, t->ram }, .t = *t, .uffd = -1, .pagemap = -1 };
	rc = get_uffd(t, &tr->uffd);
	if (!rc)
		rc = ft_track_open_proc(t, "pagemap", O_RDONLY, &tr->pagemap);
	if (rc)
		goto fail;
	tr->kvm = has_kvm(t->pid);
	*out = &tr->base;
	return 0;
fail:
	ft_err("uffd-wp-async: cannot reach process %d: %s", t->pid, strerror(-rc));
	uffd_close(&tr->base);
	return rc;
}

static int uffd_start(struct ft_tracker *base)
{
	struct uffd_tracker *tr = ft_container_of(base, struct uffd_tracker, base);
	int rc = uffd_register(tr);

	if (!rc)
		rc = protect_all(tr);
	if (rc)
		ft_err("uffd-wp-async: cannot track the RAM of process %d: %s", tr->t.pid, strerror(-rc));
	return rc;
}

/* --- probe --- */

static int refuse(const struct ft_track_target *t, int rc, const char *why)
{
	ft_info("process %d: tracker uffd-wp-async not used: %s (%s)", t->pid, why, strerror(-rc));
	return rc;
}

/* Register, look at one page, and undo it; not when it is registered already, for somebody may be at work. */
static int try_scan(struct uffd_tracker *tr, bool already)
{
	uint64_t start = tr->t.addr;
	struct page_region vec[NR_REGIONS];
	int rc = already ? 0 : uffd_register(tr);

	if (!rc)
		rc = scan(tr, 0, &start, start + FT_PAGE_SIZE, vec);
	uffd_unregister(tr);
	return rc < 0 ? rc : 0;
}

static int probe_scan(const struct ft_track_target *t, bool already)
{
	struct uffd_tracker tr = { .t = *t, .uffd = -1, .pagemap = -1 };
	int rc = get_uffd(t, &tr.uffd);

	if (rc)
		return refuse(t, rc, "cannot take its userfaultfd; run as root");
	rc = ft_track_open_proc(t, "pagemap", O_RDONLY, &tr.pagemap);
	if (!rc)
		rc = try_scan(&tr, already);
	close(tr.uffd);
	if (tr.pagemap >= 0)
		close(tr.pagemap);
	return rc ? refuse(t, rc, "PAGEMAP_SCAN fails; it needs Linux 6.7") : 0;
}

static int uffd_probe(const struct ft_track_target *t)
{
	struct ft_map_facts facts;
	uint64_t features;
	int rc;

	if (t->uffd < 0)
		return refuse(t, -ENOENT, "no userfaultfd; start the guest with ft-guest on Linux 6.7 or later");
	rc = uffd_features(t, &features);
	if (rc)
		return refuse(t, rc, "its userfaultfd cannot be seen");
	if ((features & FT_UFFD_FEATURES) != FT_UFFD_FEATURES)
		return refuse(t, -EOPNOTSUPP, "its userfaultfd does not write-protect asynchronously; that needs Linux 6.7");
	rc = ft_map_facts(t, &facts);
	if (rc)
		return refuse(t, rc, "its RAM mapping cannot be seen");
	if (facts.page_kb * 1024 != FT_PAGE_SIZE)
		return refuse(t, -EOPNOTSUPP, "its RAM is on hugetlbfs; use a tmpfs such as /dev/shm");
	return probe_scan(t, facts.uffd_wp);
}

const struct ft_tracker_ops ft_tracker_uffd = {
	.name = "uffd-wp-async",
	.probe = uffd_probe,
	.open = uffd_open,
	.start = uffd_start,
	.take = uffd_take,
	.close = uffd_close,
};
