// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_replica.c - the replica on the backup: a domain that xl has built from the guest file and never let run, while
 * ftd writes its memory epoch by epoch. Its vifs, its xenstore and its console are connected, so that a takeover is a
 * handful of hypercalls; the guest then believes it was suspended and moved, and connects anew.
 *
 * Until then it is called NAME--replica, and is paused once more than xl pauses: an `xl unpause` does not start it.
 */
#include "checkpoint/xen_model.h"
#include "checkpoint/xen_parts.h"
#include "checkpoint/xen_watch.h"
#include "ft/diskserver.h"
#include "ft/conf.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define CREATE_S 180
#define SUFFIX "--replica"
#define ROOM_EXTRA (16ull << 20)        /* what Xen itself needs for a domain, and some more for each GiB */
#define MEMORY_EXTRA (64ull << 20)      /* what the page map may have beyond the guest file's memory: firmware's, and small gaps */
#define UNPAUSES_MAX 8u

struct xen_replica {
	struct ft_replica r;
	struct ft_spec spec;
	struct ft_attach at;
	struct xen_dom dom;
	struct xen_pages map;
	struct xen_specials specials;
	struct xen_watch *watch;
	struct xen_model *model;        /* NULL: it has none */
	char name[FT_NAME_MAX + sizeof(SUFFIX)];
	bool alone;                     /* no other domain of the guest's is here: what serves its disks is ours */
	bool built;                     /* the domain exists and is ours to destroy */
	bool started;
	bool announced;                 /* xl knows that its device model is there */
};

static struct xen_replica *xen_of(struct ft_replica *r)
{
	return ft_container_of(r, struct xen_replica, r);
}

/* Without a line of its own it is a bare error of the system. */
static int told(int rc, char *why, size_t size)
{
	ft_log_keep(NULL, 0);
	if (rc && !*why)
		snprintf(why, size, "%s: %s", ft_conf()->host, strerror(-rc));
	return rc;
}

/* --- takeover --- */

/* xl and its kin know a domain by what xenstore calls it. */
static void rename_domain(const struct xen_replica *x, const char *name)
{
	uint32_t other;
	int rc = xen_dom_find(x->dom.xs, name, &other);

	if (!rc && other != x->dom.domid) {
		ft_err("%s: domain %u has this name on %s and runs beside it: 'xl destroy %u', then 'xl rename %u %s'", x->spec.name,
		       other, ft_conf()->host, other, x->dom.domid, name);
		return;
	}
	rc = xen_write(x->dom.xs, name, "/local/domain/%u/name", x->dom.domid);
	if (!rc)
		rc = xen_write(x->dom.xs, name, "/vm/%s/name", x->at.uuid);
	if (rc)
		ft_warn("%s: domain %u cannot be renamed: %s: 'xl rename %u %s' does it", x->spec.name, x->dom.domid,
			strerror(-rc), x->dom.domid, name);
}

static int let_run(const struct xen_replica *x)
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(&x->dom, &info);

	for (unsigned i = 0; i < UNPAUSES_MAX && !rc && info.flags & XEN_DOMINF_paused; i++) {
		if (xc_domain_unpause(x->dom.xc, x->dom.domid))
			return -errno;
		rc = xen_dom_info(&x->dom, &info);
	}
	return rc ? rc : info.flags & XEN_DOMINF_paused ? -EBUSY : 0;
}

/* Its vbds are connected to parked servers since it was built; one may have died since. */
static int start_disks(struct xen_replica *x)
{
	int rc = xen_disks_serve(&x->at);

	return rc ? rc : xen_disks_activate(&x->at);
}

static int load_state(struct xen_replica *x, const struct ft_blob *state)
{
	struct ft_blob domain = *state, model;
	int rc = x->model ? xen_parts_split(state, &domain, &model) : 0;

	if (rc)
		ft_err("%s: what should be its state is none: both hosts need the same ft", x->spec.name);
	if (!rc && x->model)
		rc = xen_model_load(x->model, &model);
	return rc ? rc : xen_state_load(&x->dom, &domain);
}

static int start(struct xen_replica *x, const struct ft_blob *params, const struct ft_blob *state)
{
	int rc = xen_params_check(&x->dom, params);

	if (!rc && x->model)
		rc = xen_params_take(&x->dom, params);
	if (!rc)
		rc = start_disks(x);
	if (!rc)
		rc = load_state(x, state);
	if (rc)
		return rc;
	/* The record first: should we die from here on, the guest is still found. */
	if (ft_attach_save(&x->at))
		ft_warn("%s: goes on without its attach record", x->spec.name);
	rename_domain(x, x->spec.name);
	rc = let_run(x);
	if (!rc)
		return 0;
	ft_err("%s: domain %u does not run: %s", x->spec.name, x->dom.domid, strerror(-rc));
	(void)ft_attach_remove(x->spec.name);
	return rc;
}

static int xen_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state)
{
	struct xen_replica *x = xen_of(r);
	uint64_t begin = ft_now_ns();
	int rc;

	if (x->started)
		return -EALREADY;
	x->started = true;
	rc = start(x, firmware, state);
	if (!rc)
		ft_info("%s: runs here, %.1f ms after the command", x->spec.name, (double)(ft_now_ns() - begin) / 1e6);
	return rc;
}

/* --- drill --- */

static int xen_drill_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state, int *fd)
{
	ft_warn("%s: a Xen guest's replica cannot be started in a scratch domain", xen_of(r)->spec.name);
	return -EOPNOTSUPP;
}

static void xen_drill_end(struct ft_replica *r, struct ft_drill_result *out)
{
	*out = (struct ft_drill_result){ .why = "no drill is under way" };
}

/* --- the end of a replica --- */

static void free_replica(struct xen_replica *x)
{
	xen_watch_free(x->watch);
	xen_model_close(x->model);
	xen_unmap(x->r.ram, &x->map);
	xen_dom_close(&x->dom);
	free(x);
}

static int xen_detach(struct ft_replica *r)
{
	struct xen_replica *x = xen_of(r);
	int rc = ft_attach_save(&x->at);

	free_replica(x);
	return rc;
}

static void xen_replica_destroy(struct ft_replica *r)
{
	struct xen_replica *x;

	if (!r)
		return;
	x = xen_of(r);
	/* Memory of a dead domain that somebody maps is not free for the next one. */
	xen_unmap(x->r.ram, &x->map);
	x->r.ram = NULL;
	if (x->built && xen_destroy(&x->dom))
		ft_err("%s: its replica, domain %u, is left over: 'xl destroy %u'", x->spec.name, x->dom.domid,
		       x->dom.domid);
	if (x->alone)
		ft_disk_end_here(&x->at);
	free_replica(x);
}

static int xen_fits(struct ft_replica *r, const struct ft_blob *firmware, char *why, size_t size)
{
	const struct xen_dom *d = &xen_of(r)->dom;
	int rc;

	ft_log_keep(why, size);
	rc = xen_params_check(d, firmware);
	if (!rc) {
		struct ft_blob cpu = xen_params_cpu(firmware);

		rc = xen_cpu_take(d, &cpu);
	}
	return told(rc, why, size);
}

static const struct ft_replica_ops xen_replica_ops = {
	.start = xen_start,
	.drill_start = xen_drill_start,
	.drill_end = xen_drill_end,
	.fits = xen_fits,
	.detach = xen_detach,
	.destroy = xen_replica_destroy,
};

/* --- preparing --- */

/* A device model without what would have to be replicated, or would show the guest to somebody. */
static const char hvm[] = "type = \"hvm\"\nvga = \"none\"\nvnc = 0\nsdl = 0\nusb = 0\nvkb_device = 0\n"
			  "device_model_args_hvm = [ \"-incoming\", \"defer\" ]";

/* In the order of the guest file; what xl's parser would take for the end of a text has been refused. */
static int write_config(const struct xen_replica *x, char *path, size_t size)
{
	char text[4 * FT_SPEC_PATH_MAX + FT_SPEC_CMDLINE_MAX + FT_SPEC_NICS_MAX * 96 + XEN_DISKS_CONFIG_MAX];
	const struct ft_spec *s = &x->spec;
	int n, rc = ft_run_path(path, size, s->name, "xl.cfg");

	if (rc)
		return rc;
	n = snprintf(text, sizeof(text),
		     "# written by ftd, read once by xl\nname = \"%s\"\n%s\nkernel = \"%s\"\n"
		     "ramdisk = \"%s\"\nextra = \"%s\"\nmemory = %" PRIu64 "\nvcpus = %u\nvif = [",
		     x->name, s->type == FT_XEN_HVM ? hvm : "type = \"pvh\"", s->kernel, s->initrd, s->cmdline, s->memory >> 20, s->vcpus);
	for (unsigned i = 0; i < s->nr_nics; i++) {
		const uint8_t *m = s->nic[i].mac;

		n += snprintf(text + n, sizeof(text) - (size_t)n, " \"mac=%02x:%02x:%02x:%02x:%02x:%02x,bridge=%s%s\",",
			      m[0], m[1], m[2], m[3], m[4], m[5], s->nic[i].bridge, s->type == FT_XEN_HVM ? ",type=vif" : "");
	}
	n += snprintf(text + n, sizeof(text) - (size_t)n, " ]\n");
	n += xen_disks_config(s, text + n, sizeof(text) - (size_t)n);
	return ft_write_file(path, text, (size_t)n, 0600);
}

static int check_texts(const struct ft_spec *s)
{
	const char *const text[] = { s->kernel, s->initrd, s->cmdline };

	for (unsigned i = 0; i < FT_ARRAY_LEN(text); i++) {
		if (!strpbrk(text[i], "\"\\\n"))
			continue;
		ft_err("%s: its guest file has a quote or a backslash in '%s', which xl cannot be told", s->name,
		       text[i]);
		return -EINVAL;
	}
	return 0;
}

static int check_name(struct xen_dom *d)
{
	int rc = xen_dom_find(d->xs, d->guest, &d->domid);

	if (rc)
		return rc == -ENOENT ? 0 : rc;
	ft_err("%s: a domain of this name is on %s already: stop it with 'xl shutdown %s', or 'xl destroy'", d->guest,
	       ft_conf()->host, d->guest);
	return -EEXIST;
}

/* A name that is free; a replica that a dead ftd left goes. */
static int clear_name(struct xen_replica *x)
{
	struct xen_dom *d = &x->dom;
	int rc = check_name(d);

	if (!rc && !xen_dom_find(d->xs, x->name, &d->domid))
		rc = xen_destroy(d) ?: -ENOENT;
	d->domid = 0;
	return rc == -ENOENT ? 0 : rc;
}

static void announce_model(void *ctx)
{
	struct xen_replica *x = ctx;
	uint32_t domid;

	if (!x->announced && !xen_dom_find(x->dom.xs, x->name, &domid))
		x->announced = xen_model_announce(x->dom.xs, domid);
}

static int build(struct xen_replica *x)
{
	char path[2 * FT_PATH_MAX];
	int rc, found;

	snprintf(x->at.guest, sizeof(x->at.guest), "%s", x->spec.name);
	x->at.hypervisor = FT_HYPERVISOR_XEN;
	rc = ft_disk_plan_here(&x->spec, &x->at);

	if (!rc) {
		x->alone = true;
		ft_disk_end_here(&x->at);       /* what a dead domain left */
		rc = write_config(x, path, sizeof(path));
	}
	if (!rc)
		rc = xen_xl_meanwhile(x->spec.name, CREATE_S, (const char *const[]){ "create", "-p", "-q", path, NULL },
				      x->spec.type == FT_XEN_HVM ? announce_model : NULL, x);
	/* Of an xl that was killed there may be half a domain. */
	found = x->alone ? xen_dom_find(x->dom.xs, x->name, &x->dom.domid) : -ENOENT;
	x->built = !found;
	if (!rc)
		rc = found;
	if (!rc && xc_domain_pause(x->dom.xc, x->dom.domid))
		rc = -errno;
	return rc;
}

/* What is known of the domain that was built; its page map is the guest's. */
static int fill_attach(struct xen_replica *x, const struct ft_attach *theirs)
{
	xc_domaininfo_t info;
	int rc = xen_dom_info(&x->dom, &info);

	if (rc)
		return rc;
	x->at = *theirs;
	snprintf(x->at.guest, sizeof(x->at.guest), "%s", x->spec.name);
	x->at.hypervisor = FT_HYPERVISOR_XEN;
	x->at.domid = x->dom.domid;
	xen_dom_uuid(&info, x->at.uuid);
	rc = xen_dom_nics(&x->dom, &x->at);
	return rc ? rc : ft_disk_plan_here(&x->spec, &x->at);
}

static int map_memory(struct xen_replica *x)
{
	uint64_t nr_missing;
	int rc = xen_populate(&x->dom, &x->map);

	if (!rc)
		rc = xen_dom_specials(&x->dom, &x->specials);
	if (!rc)
		rc = xen_map(&x->dom, &x->map, &x->specials, true, &x->r.ram, &nr_missing);
	x->r.nr_pages = x->map.total;
	if (!rc && nr_missing) {
		ft_err("%s: %" PRIu64 " pages of the replica's memory cannot be mapped", x->spec.name, nr_missing);
		rc = -ENOMEM;
	}
	return rc;
}

/* Once its state has come it is too late to find that it is none of this device model's. */
static int take_model(struct xen_replica *x, const struct ft_attach *theirs)
{
	int rc = xen_model_describe(&x->dom, x->at.model);

	if (!rc && strcmp(x->at.model, theirs->model)) {
		ft_err("%s: the device models differ, %s there and %s here (QEMU's version/its devices): both hosts need the same QEMU, and the domain the devices that ft-guest-file(5) says",
		       x->spec.name, theirs->model, x->at.model);
		rc = -ENOEXEC;
	}
	return rc ? rc : xen_model_open(&x->dom, &x->model);
}

static int prepare(struct xen_replica *x, const struct ft_attach *theirs)
{
	int rc = xen_pages_parse(theirs->pages, &x->map);

	if (!rc)
		rc = check_texts(&x->spec);
	if (!rc)
		rc = xen_dom_open(&x->dom, x->spec.name, 0);
	if (!rc)
		rc = clear_name(x);
	if (!rc)
		rc = ft_xen_replica_room(&x->spec);
	if (!rc)
		rc = build(x);
	if (!rc)
		rc = fill_attach(x, theirs);
	if (!rc)
		rc = map_memory(x);
	if (!rc && x->spec.type == FT_XEN_HVM)
		rc = take_model(x, theirs);
	if (!rc)
		rc = xen_watch_new(x->spec.name, x->dom.domid, x->model ? xen_model_pidfd(&x->dom) : -1, &x->watch);
	if (!rc)
		x->r.watch_fd = xen_watch_fd(x->watch);
	return rc;
}

/* --- what can be known without building --- */

int ft_xen_replica_room(const struct ft_spec *spec)
{
	uint64_t need = spec->memory + spec->memory / 64 + ROOM_EXTRA, there = UINT64_MAX;
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	xc_physinfo_t info = { 0 };

	if (xc && !xc_physinfo(xc, &info))
		there = info.free_pages * FT_PAGE_SIZE;
	if (xc)
		xc_interface_close(xc);
	if (there >= need)
		return 0;
	ft_err("%s: no room for its memory of %" PRIu64 " MiB on %s: Xen has %" PRIu64
	       " MiB free: give dom0 less ('xl mem-set 0'), or stop a guest",
	       spec->name, spec->memory >> 20, ft_conf()->host, there >> 20);
	return -ENOSPC;
}

static int check_version(const struct ft_attach *theirs)
{
	xc_interface *xc = xc_interface_open(NULL, NULL, 0);
	char ours[sizeof(theirs->xen_version)] = "";
	int v = xc ? xc_version(xc, XENVER_version, NULL) : -1;

	if (xc)
		xc_interface_close(xc);
	if (v < 0) {
		ft_err("%s is no Xen host: boot it with Xen, or protect the guest elsewhere", ft_conf()->host);
		return -ENOENT;
	}
	snprintf(ours, sizeof(ours), "%d.%d", v >> 16, v & 0xffff);
	if (!strcmp(ours, theirs->xen_version))
		return 0;
	ft_err("the guest runs on Xen %s, but %s has Xen %s: install the same version on both hosts",
	       theirs->xen_version, ft_conf()->host, ours);
	return -ENOEXEC;
}

int ft_xen_replica_check(const struct ft_spec *spec, const struct ft_attach *theirs, char *why, size_t size)
{
	struct xen_pages map;
	struct xen_dom d;
	int rc;

	ft_log_keep(why, size);
	rc = xen_pages_parse(theirs->pages, &map);
	if (!rc && (map.total * FT_PAGE_SIZE != theirs->memory || theirs->memory > spec->memory + MEMORY_EXTRA))
		rc = -EPROTO;
	if (!rc)
		rc = check_version(theirs);
	if (!rc)
		rc = xen_disks_check_script(spec);
	if (!rc)
		rc = xen_dom_open(&d, theirs->guest, 0);
	if (!rc) {
		rc = check_name(&d);
		xen_dom_close(&d);
	}
	return told(rc, why, size);
}

int ft_xen_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			   char *why, size_t size)
{
	struct xen_replica *x = calloc(1, sizeof(*x));
	int rc;

	*out = NULL;
	ft_log_keep(why, size);
	if (!x)
		return told(-ENOMEM, why, size);
	*x = (struct xen_replica){ .r = { .ops = &xen_replica_ops, .watch_fd = -1 }, .spec = *spec };
	snprintf(x->name, sizeof(x->name), "%s%s", spec->name, SUFFIX);
	rc = told(prepare(x, theirs), why, size);
	if (rc) {
		xen_replica_destroy(&x->r);
		return rc;
	}
	*out = &x->r;
	return 0;
}
