// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_find.c - which domain is the guest, and can it be protected? See ft/hv.h. */
#include "checkpoint/xen_model.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/record.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include <xen/hvm/params.h>
#include <xen/sched.h>

bool ft_xen_built(void)
{
	return true;
}

static void fill_version(const struct xen_dom *d, struct ft_attach *at)
{
	int v = xc_version(d->xc, XENVER_version, NULL);

	snprintf(at->xen_version, sizeof(at->xen_version), "%d.%d", v >> 16, v & 0xffff);
}

static bool is_pv(const xc_domaininfo_t *info)
{
	return !(info->flags & XEN_DOMINF_hvm_guest);
}

static int fill(const struct xen_dom *d, const struct ft_spec *spec, struct ft_attach *at)
{
	struct xen_pages map;
	xc_domaininfo_t info;
	int rc = xen_dom_info(d, &info);

	if (!rc)
		rc = xen_dom_devices(d, &at->devices);
	if (rc)
		return rc;
	at->domid = d->domid;
	at->early = xen_has_model(d) && !xen_params_booted(d);
	xen_dom_uuid(&info, at->uuid);
	fill_version(d, at);
	if (is_pv(&info))
		return 0;               /* it is refused, and its frames are numbered as the machine's */
	rc = xen_has_model(d) ? xen_model_describe(d, at->model) : 0;
	if (!rc)
		rc = xen_dom_nics(d, at);
	if (!rc)
		rc = ft_disk_plan_here(spec, at);
	if (!rc)
		rc = xen_find_pages(d, &map);
	if (rc)
		return rc;
	at->memory = map.total * FT_PAGE_SIZE;
	return xen_pages_format(&map, at->pages, sizeof(at->pages));
}

int ft_xen_find(const struct ft_spec *spec, struct ft_attach *out)
{
	struct xen_dom d;
	uint32_t domid;
	int rc = xen_dom_open(&d, spec->name, 0);

	*out = (struct ft_attach){ .hypervisor = FT_HYPERVISOR_XEN };
	snprintf(out->guest, sizeof(out->guest), "%s", spec->name);
	if (rc)
		return rc;
	rc = xen_dom_find(d.xs, spec->name, &domid);
	d.domid = rc ? 0 : domid;
	if (!rc)
		rc = fill(&d, spec, out);
	xen_dom_close(&d);
	return rc;
}

int ft_xen_find_nics(struct ft_attach *at)
{
	struct xen_dom d;
	int rc = xen_dom_open(&d, at->guest, at->domid);

	if (rc)
		return rc;
	rc = xen_dom_devices(&d, &at->devices);
	if (!rc)
		rc = xen_dom_nics(&d, at);
	xen_dom_close(&d);
	return rc;
}

int ft_xen_glance(const char *name, struct ft_attach *out)
{
	struct xen_dom d;
	xc_domaininfo_t info;
	int rc = xen_dom_open(&d, name, 0);

	*out = (struct ft_attach){ .hypervisor = FT_HYPERVISOR_XEN };
	if (rc)
		return rc;
	rc = xen_dom_find(d.xs, name, &d.domid);
	if (!rc && xen_dom_info(&d, &info))
		rc = -ENOENT;
	if (!rc) {
		out->domid = d.domid;
		out->memory = (uint64_t)info.tot_pages * FT_PAGE_SIZE;
		fill_version(&d, out);
	}
	xen_dom_close(&d);
	return rc;
}

int ft_xen_name(uint32_t domid, char name[FT_NAME_MAX + 1])
{
	struct xen_dom d;
	char *text;
	int rc = xen_dom_open(&d, "domain", domid);

	if (rc)
		return rc;
	text = xen_read(d.xs, "/local/domain/%u/name", domid);
	rc = text && ft_name_ok(text) ? 0 : -ENOENT;
	if (!rc)
		snprintf(name, FT_NAME_MAX + 1, "%s", text);
	free(text);
	xen_dom_close(&d);
	return rc;
}

bool ft_xen_alive(const struct ft_attach *at)
{
	struct xen_dom d;
	xc_domaininfo_t info;
	char uuid[37];
	bool alive;

	if (xen_dom_open(&d, at->guest, at->domid))
		return false;
	alive = !xen_dom_info(&d, &info);
	if (alive) {
		xen_dom_uuid(&info, uuid);
		alive = !strcmp(uuid, at->uuid);
	}
	xen_dom_close(&d);
	return alive;
}

/* --- obstacles --- */

struct check {
	const struct ft_spec *spec;
	const struct ft_attach *at;
	struct ft_obstacles o;
};

/*
 * Xen logs what a PV domain writes by shadow paging alone, and says whether it has that. To switch the log on and off
 * again would tell the same, and make a domain that runs run otherwise.
 */
void xen_pv_check(const struct xen_dom *d, struct ft_obstacles *o)
{
	int v = xc_version(d->xc, XENVER_version, NULL);
	xc_physinfo_t info = { 0 };

	if (xc_physinfo(d->xc, &info))
		ft_obstacle(o, "it is a PV domain, and Xen does not say whether it can log which pages such a domain writes: %s",
			    strerror(errno));
	else if (!(info.capabilities & XEN_SYSCTL_PHYSCAP_shadow))
		ft_obstacle(o, "it is a PV domain, and this host's Xen %d.%d cannot log which pages such a domain writes: it was built "
			    "without shadow paging ('xl info' shows what it has as virt_caps): ft protects types pvh and hvm", v >> 16,
			    v & 0xffff);
	else
		ft_obstacle(o, "it is a PV domain: this host's Xen %d.%d can log which pages it writes, but ft cannot build a replica of "
			    "a PV domain: ft protects types pvh and hvm", v >> 16, v & 0xffff);
}

static void check_type(struct check *c, const struct xen_dom *d, const xc_domaininfo_t *info)
{
	bool model = xen_has_model(d);

	if (!(info->flags & XEN_DOMINF_hap))
		ft_obstacle(&c->o, "it has no hardware assisted paging: ft protects domains that have");
	if (model != (c->spec->type == FT_XEN_HVM))
		ft_obstacle(&c->o, "it is of type %s and its guest file says %s", model ? "hvm" : "pvh", model ? "pvh" : "hvm");
	if (!model && !xen_has_drivers(d))
		ft_obstacle(&c->o, "its kernel has no Xen drivers, or has not started them yet: it cannot be asked to suspend");
	if (model && c->at->early)
		ft_obstacle(&c->o, "its firmware is still at work: wait until it boots");
	if (model)
		xen_model_check(d, c->at, &c->o);
}

static void check_devices(struct check *c, const struct xen_dom *d)
{
	unsigned nr;
	char **kind = xen_list(d->xs, &nr, "/local/domain/%u/device", d->domid);

	for (unsigned i = 0; i < nr; i++)
		if (strcmp(kind[i], "vif") && strcmp(kind[i], "vbd") && strcmp(kind[i], "suspend"))
			ft_obstacle(&c->o, "it has a device of kind '%s': only network interfaces and disks are protected", kind[i]);
	free(kind);
	xen_disks_check(d, c->spec, &c->o);
}

static bool is_emulated(const char *tap)
{
	size_t len = strlen(tap), end = strlen(XEN_EMULATED);

	return len > end && !strcmp(tap + len - end, XEN_EMULATED);
}

/* The replica is built from the guest file: does the domain look as if it had been, too? */
static void check_spec(struct check *c, const struct xen_dom *d, const xc_domaininfo_t *info)
{
	uint64_t most = xen_dom_kb(d, "static-max") << 10;
	unsigned nr_nics = c->at->nr_nics;

	while (nr_nics && is_emulated(c->at->nic[nr_nics - 1].tap))
		ft_obstacle(&c->o, "it has an emulated network card (%s): give it type=vif in the domain's own file",
			    c->at->nic[--nr_nics].tap);
	if (info->max_vcpu_id + 1 != c->spec->vcpus)
		ft_obstacle(&c->o, "it has %u vCPUs and its guest file says %u", info->max_vcpu_id + 1, c->spec->vcpus);
	if (nr_nics != c->spec->nr_nics)
		ft_obstacle(&c->o, "it has %u network interfaces and its guest file says %u", nr_nics, c->spec->nr_nics);
	for (unsigned i = 0; i < nr_nics && i < c->spec->nr_nics; i++)
		if (memcmp(c->at->nic[i].mac, c->spec->nic[i].mac, 6))
			ft_obstacle(&c->o, "the MAC address of its network interface number %u is not that of its guest file",
				 i + 1);
	if ((uint64_t)info->tot_pages * FT_PAGE_SIZE > c->spec->memory + (16u << 20))
		ft_obstacle(&c->o, "it has %" PRIu64 " MiB and its guest file says %" PRIu64,
			 (uint64_t)info->tot_pages * FT_PAGE_SIZE >> 20, c->spec->memory >> 20);
	else if (most > c->spec->memory + (16u << 20))
		ft_obstacle(&c->o, "it may grow to %" PRIu64 " MiB (maxmem) and its guest file says %" PRIu64, most >> 20,
			    c->spec->memory >> 20);
}

/* Nobody is told to let run what may run elsewhere. */
static void say_paused(struct check *c)
{
	struct ft_record r;
	const char *why = ft_record_load(NULL, ft_conf()->state_dir, c->at->guest, &r) ? NULL : ft_record_forbids(&r);

	if (why)
		ft_obstacle(&c->o, "it is paused, and it %s %s: if 'ft-guest status %s' there says that it runs, 'xl destroy %s' it here, else "
			    "'xl unpause %s'", why, r.peer, c->at->guest, c->at->guest, c->at->guest);
	else
		ft_obstacle(&c->o, "it is paused: let it run with 'xl unpause %s'", c->at->guest);
}

int ft_xen_check(const struct ft_spec *spec, const struct ft_attach *at, void (*told)(void *ctx, const char *line),
		 void *ctx)
{
	struct check c = { .spec = spec, .at = at, .o = { .tell = told, .ctx = ctx } };
	xc_domaininfo_t info;
	struct xen_dom d;

	if (xen_dom_open(&d, at->guest, at->domid)) {
		ft_obstacle(&c.o, "Xen cannot be asked about it (see the line above)");
		return (int)c.o.nr;
	}
	if (xen_dom_info(&d, &info)) {
		ft_obstacle(&c.o, "its domain %u is gone", at->domid);
	} else if (is_pv(&info)) {
		xen_pv_check(&d, &c.o);
	} else {
		check_type(&c, &d, &info);
		check_devices(&c, &d);
		check_spec(&c, &d, &info);
		if (info.flags & XEN_DOMINF_paused)
			say_paused(&c);
	}
	xen_dom_close(&d);
	return (int)c.o.nr;
}
