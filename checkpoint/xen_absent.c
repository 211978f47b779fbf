// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_absent.c - in a build without libxen-dev: there is no Xen backend, and that is said. See ft/hv.h. */
#include "ft/hv.h"

#include <stdio.h>

static int say_absent(const char *guest)
{
	ft_err("%s: this ft was built without Xen: install libxen-dev and build it again", guest);
	return -ENOTSUP;
}

bool ft_xen_built(void)
{
	return false;
}

int ft_xen_find(const struct ft_spec *spec, struct ft_attach *out)
{
	*out = (struct ft_attach){ 0 };
	return say_absent(spec->name);
}

int ft_xen_glance(const char *name, struct ft_attach *out)
{
	*out = (struct ft_attach){ 0 };
	return say_absent(name);
}

int ft_xen_name(uint32_t domid, char name[FT_NAME_MAX + 1])
{
	return -ENOENT;
}

int ft_xen_device_user(const char *guest, unsigned index, uint32_t *domid)
{
	return -ENOENT;
}

int ft_xen_find_nics(struct ft_attach *at)
{
	return say_absent(at->guest);
}

bool ft_xen_alive(const struct ft_attach *at)
{
	return false;
}

int ft_xen_open(const struct ft_attach *at, struct ft_vm **out)
{
	return say_absent(at->guest);
}

int ft_xen_check(const struct ft_spec *spec, const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line),
		 void *ctx)
{
	obstacle(ctx, "this ft was built without Xen");
	return 1;
}

int ft_xen_replica_check(const struct ft_spec *spec, const struct ft_attach *theirs, char *why, size_t size)
{
	snprintf(why, size, "ft on the backup was built without Xen: install libxen-dev there and build it again");
	return -ENOENT;
}

int ft_xen_replica_room(const struct ft_spec *spec)
{
	return say_absent(spec->name);
}

int ft_xen_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			   char *why, size_t size)
{
	return ft_xen_replica_check(spec, theirs, why, size);
}

int ft_xen_hold(const struct ft_attach *at, struct ft_hold **out)
{
	return say_absent(at->guest);
}
