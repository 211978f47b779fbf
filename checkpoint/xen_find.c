// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_find.c - which domain is the guest, and can it be protected? See ft/hv.h. */
#include "checkpoint/xen.h"

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

static int fill(const struct xen_dom *d, const struct ft_spec *spec, struct ft_attach *at)
{
	struct xen_pages map;
	xc_domaininfo_t info;
	int rc = xen_dom_info(d, &info);

	if (rc)
		return rc;
	at->domid = d->domid;
	xen_dom_uuid(&info, at->uuid);
	fill_version(d, at);
	rc = xen_dom_nics(d, at);
	if (!rc)
		rc = xen_disks_plan(spec, at);
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

static void check_type(struct check *c, const struct xen_dom *d, const xc_domaininfo_t *info)
{
	char *model = xen_read(d->xs, "/local/domain/%u/device-model/%u/state", 0u, d->domid);
	uint64_t irq = 0;

	if (!(info->flags & XEN_DOMINF_hvm_guest)) {
		ft_obstacle(&c->o, "it is a PV domain: ft protects those of type pvh (Debian's Xen cannot log which pages a PV domain writes)");
		free(model);
		return;
	}
	if (model || !(info->flags & XEN_DOMINF_hap))
		ft_obstacle(&c->o, "it is not of type pvh with hardware assisted paging: ft cannot replicate a device model's state");
	if (xc_hvm_param_get(d->xc, d->domid, HVM_PARAM_CALLBACK_IRQ, &irq) || !irq)
		ft_obstacle(&c->o, "its kernel has no Xen drivers, or has not started them yet: it cannot be asked to suspend");
	free(model);
}

static void check_devices(struct check *c, const struct xen_dom *d)
{
	char path[64], **kind;
	unsigned nr = 0;

	snprintf(path, sizeof(path), "/local/domain/%u/device", d->domid);
	kind = xs_directory(d->xs, XBT_NULL, path, &nr);
	for (unsigned i = 0; i < nr; i++)
		if (strcmp(kind[i], "vif") && strcmp(kind[i], "vbd") && strcmp(kind[i], "suspend"))
			ft_obstacle(&c->o, "it has a device of kind '%s': only network interfaces and disks are protected", kind[i]);
	free(kind);
	xen_disks_check(d, c->spec, &c->o);
}

/* The replica is built from the guest file: does the domain look as if it had been, too? */
static void check_spec(struct check *c, const xc_domaininfo_t *info)
{
	if (info->max_vcpu_id + 1 != c->spec->vcpus)
		ft_obstacle(&c->o, "it has %u vCPUs and its guest file says %u", info->max_vcpu_id + 1, c->spec->vcpus);
	if (c->at->nr_nics != c->spec->nr_nics)
		ft_obstacle(&c->o, "it has %u network interfaces and its guest file says %u", c->at->nr_nics,
			 c->spec->nr_nics);
	for (unsigned i = 0; i < c->at->nr_nics && i < c->spec->nr_nics; i++)
		if (memcmp(c->at->nic[i].mac, c->spec->nic[i].mac, 6))
			ft_obstacle(&c->o, "the MAC address of its network interface number %u is not that of its guest file",
				 i + 1);
	if ((uint64_t)info->tot_pages * FT_PAGE_SIZE > c->spec->memory + (16u << 20))
		ft_obstacle(&c->o, "it has %" PRIu64 " MiB and its guest file says %" PRIu64,
			 (uint64_t)info->tot_pages * FT_PAGE_SIZE >> 20, c->spec->memory >> 20);
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
	} else {
		check_type(&c, &d, &info);
		check_devices(&c, &d);
		check_spec(&c, &info);
		if (info.flags & XEN_DOMINF_paused)
			ft_obstacle(&c.o, "it is paused: let it run with 'xl unpause %s'", at->guest);
	}
	xen_dom_close(&d);
	return (int)c.o.nr;
}
