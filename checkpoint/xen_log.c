// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_log.c - Xen's log of the pages that a domain writes. See checkpoint/xen.h.
 *
 * There is one log, and `xl migrate` takes it over without asking: it switches it off and on again, then reads and
 * cleans it as we do. Whoever cleans it takes pages from the other, who hears nothing of it. So there is a canary: a
 * frame that nobody writes, marked dirty by us. Not to find it means that others have been there. Then we do not
 * touch the log any more, and put back what our last reading took, so that what they copy is whole.
 *
 * Xen cleans leaves of 32768 frames, from frame 0 up to where it is told. The canary of a guest of less than 3.9 GiB
 * is alone in the last leaf, which we never clean: it is set once, and no instant goes unwatched. In a larger guest it
 * goes with each cleaning and is set again. Who takes over between those two calls is not noticed before he cleans
 * the log for the first time, and until then our readings take pages from him; so all of the memory is put back then.
 */
#include "checkpoint/xen.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include <xen/hvm/params.h>

#define LEAF ((uint64_t)32768)
#define LOOK_NS (500 * FT_MS_NS)
#define QUIET_NS (10 * FT_S_NS)         /* nobody has touched the log for so long, and no saver of xl's is there */
#define ENDED_NS (3 * FT_S_NS)          /* ... and since somebody has switched it off, which ends a migration */

/* --- what Xen knows --- */

static uint64_t leaf_of(uint64_t gfn)
{
	return gfn / LEAF * LEAF;
}

static bool bit(const uint64_t *bits, uint64_t gfn)
{
	return bits[gfn / 64] >> (gfn % 64) & 1;
}

static int control(struct xen_log *l, unsigned op, struct xen_log_bits *b, uint64_t nr_gfns, unsigned mode)
{
	return xc_logdirty_control(l->dom->xc, l->dom->domid, op, &b->buf, nr_gfns, mode, NULL) < 0 ? -errno : 0;
}

static int shadow_op(const struct xen_log *l, unsigned op)
{
	return xc_shadow_control(l->dom->xc, l->dom->domid, op, NULL, 0) < 0 ? -errno : 0;
}

static int mark(const struct xen_log *l, uint64_t gfn, uint64_t nr)
{
	return xendevicemodel_modified_memory(l->dm, (domid_t)l->dom->domid, gfn, (uint32_t)nr) ? -errno : 0;
}

static void set_canary(struct xen_log *l)
{
	int rc = mark(l, l->canary_gfn, 1);

	l->canary = !rc;
	if (rc)
		ft_debug("%s: frame %" PRIx64 " cannot be marked: %s", l->dom->guest, l->canary_gfn, strerror(-rc));
}

/* -EBUSY: the canary is gone, or somebody is reading right now. A log that is off reads as one in which nothing is set. */
static int peek(struct xen_log *l)
{
	int rc = control(l, XEN_DOMCTL_SHADOW_OP_PEEK, &l->seen, l->nr_gfns, 0);

	return rc ? rc : l->canary && !bit(l->seen.bit, l->canary_gfn) ? -EBUSY : 0;
}

/* Nothing stays marked in it. */
static bool is_off(struct xen_log *l)
{
	set_canary(l);
	return peek(l) != 0;
}

/* --- others --- */

/* What the last reading took is dirty again; all of the memory, where readings before it may have taken something, too. */
static void put_back(struct xen_log *l)
{
	uint64_t first = 0, end, nr = 0;

	if (!l->canary_stays)
		memset(l->taken.bit, 0xff, (l->nr_gfns + 63) / 64 * 8);
	for (first = 0; first < l->nr_gfns - 1; first = end + 1) {
		while (first < l->nr_gfns - 1 && !bit(l->taken.bit, first))
			first += l->taken.bit[first / 64] ? 1 : 64 - first % 64;
		for (end = first; end < l->nr_gfns - 1 && bit(l->taken.bit, end); end++)
			nr++;
		if (end > first && mark(l, first, end - first))
			ft_err("%s: frames %" PRIx64 " to %" PRIx64 " could not be put back into the log: %s", l->dom->guest,
			       first, end, strerror(errno));
	}
	ft_debug("%s: %" PRIu64 " frames put back into the log of written pages", l->dom->guest, nr);
}

/* From here on the log is theirs. */
static int give_up(struct xen_log *l)
{
	ft_err("%s: somebody else reads the log of written pages: is it being saved or migrated? No epoch is taken and the "
	       "output is held until it is gone, or nobody does any more", l->dom->guest);
	l->shared = true;
	l->since_ns = l->look_ns = ft_now_ns();
	l->was_off = false;
	return -EBUSY;
}

/* Of "libxl-save-helper --save-domain FD FD DOMID ...", as /proc has it: is it this, and of @domid (0: of any)? */
static bool is_saver(const char *text, size_t len, uint32_t domid)
{
	static const char name[] = "libxl-save-helper\0--save-domain";
	const char *arg = memmem(text, len, name, sizeof(name) - 1), *end = text + len;

	for (unsigned i = 0; arg && domid && i < 4; i++) {
		arg = memchr(arg, 0, (size_t)(end - arg));
		arg = arg ? arg + 1 : NULL;
	}
	return arg && (!domid || (arg < end && strtoul(arg, NULL, 10) == domid));
}

/* Other toolstacks have other names. */
bool xen_saver_runs(uint32_t domid)
{
	DIR *proc = opendir("/proc");
	bool found = false;
	struct dirent *e;

	while (proc && !found && (e = readdir(proc))) {
		char path[sizeof(e->d_name) + 16], text[256];
		int fd, n;

		if (*e->d_name < '1' || *e->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/cmdline", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? 0 : (int)read(fd, text, sizeof(text) - 1);
		text[n > 0 ? n : 0] = 0;
		found = n > 0 && is_saver(text, (size_t)n, domid);
		if (fd >= 0)
			close(fd);
	}
	if (proc)
		closedir(proc);
	return found;
}

/* Whatever moves is them: the time starts anew. */
static bool quiet(struct xen_log *l, uint64_t now)
{
	bool touched = peek(l) != 0, off = touched && is_off(l);

	if (off == l->was_off && off == touched)
		return now - l->since_ns >= (off ? ENDED_NS : QUIET_NS) && (off || !xen_saver_runs(0));
	l->was_off = off;
	l->since_ns = now;
	return false;
}

bool xen_log_ours_again(struct xen_log *l)
{
	uint64_t now = ft_now_ns();

	if (now - l->look_ns < LOOK_NS)
		return false;
	l->look_ns = now;
	if (!quiet(l, now))
		return false;
	if (l->was_off && shadow_op(l, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY)) {
		l->since_ns = now;
		return false;
	}
	set_canary(l);
	l->shared = false;
	ft_info("%s: nobody else reads the log of written pages any more: all of its memory is copied anew", l->dom->guest);
	return true;
}

/* --- ours --- */

static int cannot(const struct xen_log *l, int rc)
{
	ft_err("%s: Xen does not log which pages the domain writes: %s", l->dom->guest, strerror(-rc));
	return rc;
}

/* A log that is on already was left so by a dead ft-protect, and then the canary is there; or it is somebody else's. */
int xen_log_start(struct xen_log *l)
{
	int rc = shadow_op(l, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);

	if (rc && rc != -EINVAL)
		return cannot(l, rc);
	l->on = l->canary = true;
	if (!rc) {
		set_canary(l);
	} else if (peek(l)) {
		if (is_off(l))
			return cannot(l, rc);
		ft_ignore(give_up(l));
	}
	return 0;
}

int xen_log_look(struct xen_log *l)
{
	if (l->shared)
		return -EBUSY;
	if (!l->on || ft_now_ns() - l->look_ns < LOOK_NS)
		return 0;
	l->look_ns = ft_now_ns();
	return peek(l) ? give_up(l) : 0;
}

/* Xen had no memory to note a page. */
static int start_anew(struct xen_log *l)
{
	int rc;

	ft_err("%s: Xen's log of written pages is not whole: all of its memory is to be copied anew", l->dom->guest);
	(void)shadow_op(l, XEN_DOMCTL_SHADOW_OP_OFF);
	rc = shadow_op(l, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
	set_canary(l);
	return rc ? cannot(l, rc) : -EIO;
}

/* The last leaf is only looked at: what is set there stays set. */
static int look_at_last(struct xen_log *l)
{
	int rc = peek(l);

	for (uint64_t w = l->nr_clean / 64; !rc && w < (l->nr_gfns + 63) / 64; w++)
		l->taken.bit[w] = l->seen.bit[w];
	return rc;
}

int xen_log_take(struct xen_log *l, bool suspended)
{
	int rc;

	if (l->shared)
		return -EBUSY;
	rc = control(l, XEN_DOMCTL_SHADOW_OP_CLEAN, &l->taken, l->nr_clean,
		     suspended ? XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL : 0);
	if (rc == -ENOMEM)
		return start_anew(l);
	if (rc)
		return give_up(l);
	if (l->canary_stays)
		rc = look_at_last(l);
	else
		rc = l->canary && !bit(l->taken.bit, l->canary_gfn) ? -EBUSY : 0;
	if (rc) {
		put_back(l);
		return give_up(l);
	}
	l->look_ns = ft_now_ns();
	if (!l->canary_stays || !l->canary)
		set_canary(l);
	return 0;
}

/* Whoever began a migration since the last look copies nothing but what his log says. */
bool xen_log_is_ours(struct xen_log *l)
{
	return l->on && !l->shared && !peek(l);
}

void xen_log_stop(struct xen_log *l)
{
	if (xen_log_is_ours(l))
		(void)shadow_op(l, XEN_DOMCTL_SHADOW_OP_OFF);
	l->on = false;
}

/* --- life --- */

static int alloc_bits(struct xen_log *l, struct xen_log_bits *b)
{
	DECLARE_HYPERCALL_BUFFER(uint64_t, bits);

	b->nr_pages = (unsigned)((l->nr_gfns / 8 + FT_PAGE_SIZE) / FT_PAGE_SIZE);
	bits = xc_hypercall_buffer_alloc_pages(l->dom->xc, bits, (int)b->nr_pages);
	if (!bits) {
		ft_err("%s: no %u pages for Xen's dirty log: %s", l->dom->guest, b->nr_pages, strerror(errno));
		return -ENOMEM;
	}
	b->buf = *HYPERCALL_BUFFER(bits);
	b->bit = bits;
	return 0;
}

static void free_bits(struct xen_log *l, struct xen_log_bits *b)
{
	if (b->bit)
		xc__hypercall_buffer_free_pages(l->dom->xc, &b->buf, (int)b->nr_pages);
	b->bit = NULL;
}

/*
 * Every domain has these frames for rings of Xen's monitoring tools, and guests do not know them. (Not xenstore's or the
 * console's: a guest writes those, and would wake the canary.)
 */
static int find_canary(struct xen_log *l)
{
	static const int ring[] = { HVM_PARAM_PAGING_RING_PFN, HVM_PARAM_SHARING_RING_PFN, HVM_PARAM_MONITOR_RING_PFN };

	for (unsigned i = 0; i < FT_ARRAY_LEN(ring) && !l->canary_gfn; i++)
		if (xc_hvm_param_get(l->dom->xc, l->dom->domid, (uint32_t)ring[i], &l->canary_gfn))
			l->canary_gfn = 0;
	if (l->canary_gfn)
		return 0;
	ft_err("%s: the domain has no frame that its guest does not write: was it built by xl?", l->dom->guest);
	return -ENOTSUP;
}

/* Pages of @map from frame @from on. */
static uint64_t pages_from(const struct xen_pages *map, uint64_t from)
{
	uint64_t nr = 0;

	for (unsigned i = 0; i < map->nr; i++) {
		uint64_t first = map->range[i].first, end = first + map->range[i].count;

		nr += end <= from ? 0 : end - (first > from ? first : from);
	}
	return nr;
}

int xen_log_open(struct xen_log *l, const struct xen_dom *d, const struct xen_pages *map)
{
	uint64_t leaf;
	xen_pfn_t nr;
	int rc;

	l->dom = d;
	l->dm = xendevicemodel_open(NULL, 0);
	if (!l->dm) {
		rc = -errno;
		ft_err("%s: Xen's device model interface cannot be opened: %s", d->guest, strerror(-rc));
		return rc;
	}
	if (xc_domain_nr_gpfns(d->xc, d->domid, &nr))
		return -errno;
	l->nr_gfns = nr;
	rc = find_canary(l);
	if (rc)
		return rc;
	leaf = leaf_of(l->canary_gfn);
	l->canary_stays = leaf && leaf_of(l->nr_gfns - 1) == leaf && pages_from(map, leaf) <= XEN_SPECIALS_MAX;
	ft_debug("%s: frame %" PRIx64 " of %" PRIx64 " is the canary%s", d->guest, l->canary_gfn, l->nr_gfns,
		 l->canary_stays ? " and stays" : "");
	l->nr_clean = l->canary_stays ? leaf : l->nr_gfns;
	rc = alloc_bits(l, &l->taken);
	return rc ? rc : alloc_bits(l, &l->seen);
}

void xen_log_close(struct xen_log *l)
{
	free_bits(l, &l->taken);
	free_bits(l, &l->seen);
	if (l->dm)
		xendevicemodel_close(l->dm);
	l->dm = NULL;
}
