// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * xen_disk.c - a domain's disks: vbds whose backing is a disk of ft. See checkpoint/xen.h and ft/diskserver.h.
 *
 * Disk N of the guest file is the Nth xvd device, and its vbd says "script=block-ft,target=NAME:N". So the domain's own xl
 * config asks for the same as the one that ftd writes for the replica, and what is what can be read off xenstore.
 *
 * A domain with a device model counts from xvde: libxl has it emulate xvda to xvdd, each hd and each sd, too. What such
 * a guest writes before its own drivers start goes through dom0's cache, and its disk is one more device whose state
 * would have to fit. Those from xvde on have a back end only, as all have in a domain of type pvh.
 *
 * A request that is under way when the domain suspends may end in either epoch, and need not be waited for: the guest's
 * front end keeps each until it has taken the answer, and asks for all of them again when it connects to another back
 * end. What a back end writes into a page for an answer that the guest has not taken is written again there. What it
 * has answered is in the log of written pages, since it gives the page back, and Xen then counts it as written, before
 * it answers. That is not so with persistent grants, which it keeps.
 *
 * All the same it is given a moment to be done, since a comparison of memory (`ft-ctl verify`) would take an answer that
 * comes while it counts for a page that was missed.
 */
#include "checkpoint/xen.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/mirror.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#define SETTLE_NS (100 * FT_MS_NS)
#define BACK "/local/domain/0/backend/vbd/%u/%u"
#define XVDA 51712u                     /* 202 << 8: xvda */
#define XVD_STEP 16u                    /* the next one's number is larger by that */
#define NR_EMULATED 4u                  /* that a device model emulates, too */
#define SCRIPT "block-ft"
#define SCRIPT_PATH FT_XEN_SCRIPTS "/" SCRIPT
#define ACTIVATE_MS 10000              /* an image opened, a few blocks synced */

/* Among all xvd devices. */
static unsigned place(const struct ft_spec *spec, unsigned disk)
{
	return disk + (spec->type == FT_XEN_HVM ? NR_EMULATED : 0);
}

static char letter(const struct ft_spec *spec, unsigned disk)
{
	return (char)('a' + place(spec, disk));
}

static unsigned vdev(const struct ft_spec *spec, unsigned disk)
{
	return XVDA + XVD_STEP * place(spec, disk);
}

/* --- what is under way when the domain suspends --- */

void xen_disks_open(const struct ft_attach *at, struct xen_disks *out)
{
	char path[64];
	unsigned index;

	*out = (struct xen_disks){ 0 };
	for (unsigned i = 0; i < at->nr_disks; i++) {
		if (ft_disk_device(at, i, &index))
			continue;
		snprintf(path, sizeof(path), "/sys/block/nbd%u/inflight", index);
		out->fd[out->nr] = open(path, O_RDONLY | O_CLOEXEC);
		out->nr += out->fd[out->nr] >= 0;
	}
}

void xen_disks_close(struct xen_disks *d)
{
	while (d->nr)
		close(d->fd[--d->nr]);
}

static bool settled(const struct xen_disks *d)
{
	for (unsigned i = 0; i < d->nr; i++) {
		ssize_t n;
		char text[32];
		unsigned reads, writes;

		n = pread(d->fd[i], text, sizeof(text) - 1, 0);
		text[n > 0 ? n : 0] = 0;
		if (sscanf(text, "%u %u", &reads, &writes) == 2 && (reads || writes))
			return false;
	}
	return true;
}

/* There is no event for it: the kernel is asked again each millisecond. */
void xen_disks_settle(const struct xen_disks *d)
{
	uint64_t end = ft_now_ns() + SETTLE_NS;

	while (!settled(d) && ft_now_ns() < end)
		poll(NULL, 0, 1);
}

/* --- is it as the guest file says? --- */

/* What was given as target, or NULL: another script's. The caller frees. */
static char *target_of(const struct xen_dom *d, unsigned id)
{
	char *script = xen_read(d->xs, BACK "/script", d->domid, id);
	const char *base = script ? strrchr(script, '/') : NULL;
	char *target = NULL;

	if (script && !strcmp(base ? base + 1 : script, SCRIPT))
		target = xen_read(d->xs, BACK "/params", d->domid, id);
	free(script);
	return target;
}

/* "vm1:0", perhaps with a word behind it. */
static bool is_disk(const char *target, const char *guest, unsigned disk)
{
	char want[FT_NAME_MAX + 8];
	size_t len = (size_t)snprintf(want, sizeof(want), "%s:%u", guest, disk);

	return target && !strncmp(target, want, len) && (!target[len] || target[len] == ':');
}

int xen_disks_check_script(const struct ft_spec *spec)
{
	if (!spec->nr_disks || !access(SCRIPT_PATH, X_OK))
		return 0;
	ft_err("%s: it has disks, and on %s there is no " SCRIPT_PATH " for xl to start: install ft there, from a tree built with libxen-dev",
	       spec->name, ft_conf()->host);
	return -ENOENT;
}

static void check_one(const struct xen_dom *d, const struct ft_spec *spec, unsigned disk, struct ft_obstacles *o)
{
	unsigned id = vdev(spec, disk);
	char *target = target_of(d, id), xvd = letter(spec, disk);
	char *mode = xen_read(d->xs, BACK "/mode", d->domid, id);
	char *persistent = xen_read(d->xs, BACK "/feature-persistent", d->domid, id);
	bool read_only = mode && strcmp(mode, "w");

	if (!is_disk(target, spec->name, disk))
		ft_obstacle(o, "it has no disk xvd%c served by ft, which is what [disk] number %u of its guest file means: "
			    "\"vdev=xvd%c,script=" SCRIPT ",target=%s:%u\" in the 'disk' of its xl config", xvd, disk + 1, xvd,
			    spec->name, disk);
	else if (read_only != spec->disk[disk].read_only)
		ft_obstacle(o, "its disk xvd%c is %s, and [disk] number %u of its guest file is not", xvd,
			    read_only ? "read only" : "writable", disk + 1);
	else if (persistent && !strcmp(persistent, "1"))
		ft_obstacle(o, "its disk xvd%c uses persistent grants, and what a back end writes through those Xen does not log: "
			    "write N to /sys/module/xen_blkback/parameters/feature_persistent, and start it again", xvd);
	free(persistent);
	free(mode);
	free(target);
}

static bool is_expected(const char *id, const struct ft_spec *spec)
{
	char number[16];

	for (unsigned i = 0; i < spec->nr_disks; i++) {
		snprintf(number, sizeof(number), "%u", vdev(spec, i));
		if (!strcmp(id, number))
			return true;
	}
	return false;
}

static bool is_emulated(const char *id)
{
	unsigned long number = strtoul(id, NULL, 10);

	return number < XVDA + XVD_STEP * NR_EMULATED;          /* hd and sd have smaller numbers than xvd */
}

static void check_unexpected(const char *id, const struct ft_spec *spec, struct ft_obstacles *o)
{
	if (is_expected(id, spec))
		return;
	if (spec->type == FT_XEN_HVM && is_emulated(id))
		ft_obstacle(o, "it has a disk, device %s, that its device model emulates, too, as it does xvda to xvdd, hd and sd: "
			    "call the disks of a domain of type hvm xvde, xvdf and so on", id);
	else
		ft_obstacle(o, "it has a disk, device %s, that is not in its guest file: what is on it would not be there after a "
			    "takeover, also if it is read only: give it a [disk] section, or detach it ('xl block-detach')", id);
}

void xen_disks_check(const struct xen_dom *d, const struct ft_spec *spec, struct ft_obstacles *o)
{
	unsigned nr;
	char **id;

	for (unsigned i = 0; i < spec->nr_disks; i++)
		check_one(d, spec, i, o);
	id = xen_list(d->xs, &nr, "/local/domain/%u/device/vbd", d->domid);
	for (unsigned i = 0; i < nr; i++)
		check_unexpected(id[i], spec, o);
	free(id);
}

/* --- whose is a device? --- */

/* Entries of a domain that is gone do not count. */
static bool has(const struct xen_dom *d, const char *vbd, const char *device)
{
	char *path = xen_read(d->xs, "/local/domain/0/backend/vbd/%u/%s/physical-device-path", d->domid, vbd);
	xc_domaininfo_t info;
	bool is = path && !strcmp(path, device) && !xen_dom_info(d, &info);

	free(path);
	return is;
}

static bool domain_has(const struct xen_dom *d, const char *device)
{
	unsigned nr;
	char **vbd = xen_list(d->xs, &nr, "/local/domain/0/backend/vbd/%u", d->domid);
	bool is = false;

	for (unsigned i = 0; i < nr && !is; i++)
		is = has(d, vbd[i], device);
	free(vbd);
	return is;
}

int ft_xen_device_user(const char *guest, unsigned index, uint32_t *domid)
{
	char device[24], **domain;
	struct xen_dom d;
	unsigned nr;
	int rc = xen_dom_open(&d, guest, 0);

	if (rc)
		return rc;
	snprintf(device, sizeof(device), "/dev/nbd%u", index);
	domain = xen_list(d.xs, &nr, "/local/domain/0/backend/vbd");
	rc = domain || errno == ENOENT ? -ENOENT : -errno;
	for (unsigned i = 0; domain && i < nr && rc; i++)
		if (sscanf(domain[i], "%u", &d.domid) == 1 && domain_has(&d, device))
			rc = 0;
	*domid = d.domid;
	free(domain);
	xen_dom_close(&d);
	return rc;
}

/* --- the replica's --- */

int xen_disks_config(const struct ft_spec *spec, char *buf, size_t size)
{
	int n = snprintf(buf, size, "disk = [");

	for (unsigned i = 0; i < spec->nr_disks; i++)
		n += snprintf(buf + n, size - (size_t)n, " \"format=raw,vdev=xvd%c,access=%s,script=" SCRIPT ",target=%s:%u:replica\",",
			      letter(spec, i), spec->disk[i].read_only ? "ro" : "rw", spec->name, i);
	return n + snprintf(buf + n, size - (size_t)n, " ]\n");
}

int xen_disks_serve(struct ft_attach *at)
{
	int rc = 0;

	for (unsigned i = 0; i < at->nr_disks && !rc; i++)
		rc = ft_disk_serve(at, i, true);
	return rc;
}

int xen_disks_activate(const struct ft_attach *at)
{
	int rc = 0;

	for (unsigned i = 0; i < at->nr_disks && !rc; i++)
		rc = ft_export_activate(at->disk[i].control, ACTIVATE_MS);
	return rc;
}
