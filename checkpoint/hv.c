// SPDX-License-Identifier: GPL-3.0-or-later
/* hv.c - which backend a guest's file or record means. See ft/hv.h. */
#include "ft/hv.h"
#include "ft/conf.h"

#include <stdio.h>

static bool on_xen(const struct ft_attach *at)
{
	return at->hypervisor == FT_HYPERVISOR_XEN;
}

/* Of a guest that xl has started nobody has made the directory yet. */
static int save_found(const struct ft_attach *at)
{
	char dir[2 * FT_PATH_MAX];
	int rc = ft_run_path(dir, sizeof(dir), at->guest, "");

	if (!rc)
		rc = ft_mkdir_p(dir, 0700);
	return rc ? rc : ft_attach_save(at);
}

int ft_hv_find(const struct ft_spec *spec, bool keep, struct ft_attach *out)
{
	int rc = ft_attach_load(spec->name, out);

	if (spec->hypervisor == FT_HYPERVISOR_QEMU)
		return rc;
	/*
	 * Of a domain that has been found before the memory is known: to look for it takes seconds that a guard may not wait.
	 * Its network cards may be others since.
	 */
	if (!rc && on_xen(out) && out->nr_disks == spec->nr_disks)
		rc = ft_xen_find_nics(out);
	else
		rc = ft_xen_find(spec, out);
	return rc || out->early || !keep ? rc : save_found(out);
}

int ft_hv_open(const struct ft_attach *at, const char *tracker, struct ft_vm **out)
{
	const struct ft_qemu_options opt = { .tracker = tracker };

	return on_xen(at) ? ft_xen_open(at, out) : ft_qemu_open(at, &opt, out);
}

int ft_hv_check(const struct ft_spec *spec, const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line),
		void *ctx)
{
	return on_xen(at) ? ft_xen_check(spec, at, obstacle, ctx) : ft_qemu_check(at, obstacle, ctx);
}

int ft_hv_replica_check(const struct ft_spec *spec, const struct ft_attach *theirs, char *why, size_t size)
{
	return on_xen(theirs) ? ft_xen_replica_check(spec, theirs, why, size) : ft_qemu_replica_check(theirs, why, size);
}

int ft_hv_replica_room(const struct ft_spec *spec)
{
	return spec->hypervisor == FT_HYPERVISOR_XEN ? ft_xen_replica_room(spec) : ft_qemu_replica_room(spec);
}

int ft_hv_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			  char *why, size_t size)
{
	return on_xen(theirs) ? ft_xen_replica_prepare(spec, theirs, out, why, size) :
				ft_qemu_replica_prepare(spec, theirs, out, why, size);
}

int ft_hv_hold(const struct ft_attach *at, struct ft_hold **out)
{
	return on_xen(at) ? ft_xen_hold(at, out) : ft_qemu_hold(at, out);
}
