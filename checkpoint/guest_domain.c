// SPDX-License-Identifier: GPL-3.0-or-later
/* guest_domain.c - what ft-guest does for a Xen domain, and what it leaves to xl. See checkpoint/guest.h. */
#include "checkpoint/guest.h"
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/hv.h"

#include <stdio.h>
#include <unistd.h>

/* --- does it run here? --- */

bool guest_is_domain(const char *guest)
{
	char path[2 * FT_PATH_MAX];
	struct ft_spec spec;

	snprintf(path, sizeof(path), "%s/%s.conf", ft_conf()->guests_dir, guest);
	return !access(path, F_OK) && !ft_spec_load(guest, &spec) && spec.hypervisor == FT_HYPERVISOR_XEN;
}

/* xl starts and ends domains without us, so what we remember of one does not say whether it runs. */
const char *domain_state(const char *guest, struct ft_attach *at)
{
	struct ft_attach ignored;
	char replica[FT_NAME_MAX + 16];
	int rc = ft_xen_glance(guest, at);

	snprintf(replica, sizeof(replica), "%s--replica", guest);
	if (rc != -ENOENT)
		return rc ? "unknown" : "running";
	rc = ft_xen_glance(replica, &ignored);
	return !rc ? "replica" : rc == -ENOENT ? "stopped" : "unknown";
}

/* --- start, stop --- */

/* Domains are the toolstack's: it starts them, and who stops one without it leaves half of it behind. */
static int leave_to_xl(const char *guest, const char *verb)
{
	ft_err("guest %s is a Xen domain: 'xl %s' does that", guest, verb);
	return GUEST_REFUSED;
}

/* GUEST_DONE: it runs, and @at says where. GUEST_UNKNOWN: it does not. */
static int find(const char *guest, struct ft_attach *at)
{
	const char *state = domain_state(guest, at);

	return !strcmp(state, "running") ? GUEST_DONE : !strcmp(state, "unknown") ? GUEST_FAILED : GUEST_UNKNOWN;
}

/* Their servers may have died; a device without one waits for the next. */
static int serve_disks(struct ft_attach *at)
{
	unsigned device;

	for (unsigned i = 0; i < at->nr_disks; i++)
		if (!ft_disk_device(at, i, &device) && ft_disk_serve(at, i, false))
			return GUEST_FAILED;
	return GUEST_DONE;
}

/* The spec's disks, as block-ft serves them. */
static int plan_disks(const char *guest, struct ft_spec *spec, struct ft_attach *at)
{
	int rc = guest_load_spec(guest, spec);

	if (rc)
		return rc;
	*at = (struct ft_attach){ .hypervisor = FT_HYPERVISOR_XEN };
	snprintf(at->guest, sizeof(at->guest), "%s", guest);
	if (spec->hypervisor != FT_HYPERVISOR_XEN)
		return GUEST_DONE;
	return ft_disk_plan_here(spec, at) ? GUEST_FAILED : GUEST_DONE;
}

/* Hotplug scripts of several disks run at once, so here one waits for another. */
static int locked(const struct guest_options *o, int (*run)(const struct guest_options *o))
{
	int fd = guest_lock(o->guest, 0), rc;

	if (fd < 0)
		return GUEST_FAILED;
	rc = run(o);
	guest_unlock(o->guest, fd);
	return rc;
}

/* The device of a disk that lost its server waits for the next; block-ft may be at work on another. */
static int serve_locked(const struct guest_options *o)
{
	struct ft_attach at = { .hypervisor = FT_HYPERVISOR_XEN };
	bool known = !ft_attach_load(o->guest, &at);
	struct ft_spec spec;
	int rc = known ? GUEST_DONE : plan_disks(o->guest, &spec, &at);

	if (!rc)
		rc = serve_disks(&at);
	return rc || !known || !at.nr_disks ? rc : ft_attach_save(&at) ? GUEST_FAILED : GUEST_DONE;
}

int domain_start(const struct ft_spec *spec, bool force)
{
	const struct guest_options o = { .guest = spec->name };
	char how[FT_NAME_MAX + 96] = "--force, and then 'xl create'";
	struct ft_attach at;
	int rc = find(spec->name, &at);

	if (spec->nr_disks)
		snprintf(how, sizeof(how), "'xl create', and target=%s:N:force for its disks in its xl file for this one start", spec->name);
	if (rc == GUEST_UNKNOWN)
		rc = guest_may_start(spec->name, force, how) ?: (force ? guest_claim(spec->name) : GUEST_DONE) ?:
		     leave_to_xl(spec->name, "create");
	if (!rc)
		rc = locked(&o, serve_locked);
	if (!rc)
		ft_info("guest %s runs already (domain %u)", spec->name, at.domid);
	return rc;
}

int domain_stop(const struct guest_options *o)
{
	struct ft_attach at;
	int rc = find(o->guest, &at);

	if (!rc)
		return leave_to_xl(o->guest, o->kill ? "destroy" : "shutdown");
	if (rc == GUEST_UNKNOWN)
		ft_err("guest %s does not run here", o->guest);
	return rc;
}

/* --- its disks --- */

/* The domain is the guest itself, or its replica: a disk is not given to others, nor to a guest that arrives by migration. */
static int check_domain(const struct guest_options *o)
{
	char want[FT_NAME_MAX + 16];

	snprintf(want, sizeof(want), "%s%s", o->guest, o->replica ? "--replica" : "");
	if (!o->domain || !strcmp(o->domain, want))
		return GUEST_DONE;
	ft_err("guest %s: domain %s is not %s, whose disk this is", o->guest, o->domain, want);
	return GUEST_REFUSED;
}

static int may_start(const struct guest_options *o)
{
	char how[FT_NAME_MAX + 64];

	snprintf(how, sizeof(how), "target=%s:%u:force in its xl file for this one start", o->guest, o->disk);
	return guest_may_start(o->guest, o->force, how);
}

/* Once for all of a guest's disks: what is served is in use, and was looked at when it was not. */
static int recover_disks(const struct guest_options *o, const struct ft_spec *spec, const struct ft_attach *at)
{
	int rc;

	for (unsigned i = 0; i < at->nr_disks; i++)
		if (ft_disk_served(&at->disk[i]))
			return GUEST_DONE;
	rc = ft_disk_recover(spec, o->force);
	return rc == -EUCLEAN ? GUEST_REFUSED : rc < 0 ? GUEST_FAILED : rc;
}

static int attach_locked(const struct guest_options *o)
{
	struct ft_attach at;
	struct ft_spec spec;
	unsigned device;
	int rc = plan_disks(o->guest, &spec, &at);

	if (!rc && o->disk >= at.nr_disks) {
		ft_err("guest %s: its guest file has no [disk] number %u of a Xen guest", o->guest, o->disk + 1);
		return GUEST_UNKNOWN;
	}
	if (!rc && !o->replica)
		rc = may_start(o);
	if (rc)
		return rc;
	if (!ft_disk_device(&at, o->disk, &device)) {
		ft_err("guest %s: its disk %s is /dev/nbd%u already: 'ft-guest disk-detach %s:%u' lets go of it, if no domain has it",
		       o->guest, at.disk[o->disk].image, device, o->guest, o->disk);
		return GUEST_REFUSED;
	}
	ft_disk_end_one(&at, o->disk);
	rc = o->replica ? GUEST_DONE : recover_disks(o, &spec, &at);
	if (!rc && o->force)
		rc = guest_claim(o->guest);
	if (rc)
		return rc;
	if (ft_disk_serve(&at, o->disk, o->replica) || ft_disk_device(&at, o->disk, &device))
		return GUEST_FAILED;
	printf("/dev/nbd%u\n", device);
	return GUEST_DONE;
}

int domain_disk_attach(const struct guest_options *o)
{
	int rc = check_domain(o);

	return rc ? rc : locked(o, attach_locked);
}

/* Also when the guest file is gone, or says something else by now. */
static int detach_locked(const struct guest_options *o)
{
	struct ft_attach at = { .hypervisor = FT_HYPERVISOR_XEN, .nr_disks = o->disk + 1 };
	unsigned device;
	uint32_t domid;
	int rc;

	snprintf(at.guest, sizeof(at.guest), "%s", o->guest);
	if (o->force || ft_disk_device(&at, o->disk, &device))
		return ft_disk_detach(&at, o->disk) ? GUEST_FAILED : GUEST_DONE;
	rc = ft_xen_device_user(o->guest, device, &domid);
	if (rc && rc != -ENOENT)
		ft_err("guest %s: this disk is /dev/nbd%u, and Xen cannot be asked which domain has it: if none has, say --force", o->guest, device);
	if (!rc)
		ft_err("guest %s: this disk is /dev/nbd%u and domain %u has it: it is let go of when that domain ends", o->guest, device, domid);
	if (rc != -ENOENT)
		return GUEST_REFUSED;
	return ft_disk_detach(&at, o->disk) ? GUEST_FAILED : GUEST_DONE;
}

int domain_disk_detach(const struct guest_options *o)
{
	return locked(o, detach_locked);
}
