// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_dom.c - handles, domains, xenstore. See checkpoint/xen.h. */
#include "checkpoint/xen.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include <xen/hvm/params.h>
#include <xxhash.h>

#define DEVICES "devices"               /* the token of that watch */

/* --- handles --- */

int xen_dom_open(struct xen_dom *d, const char *guest, uint32_t domid)
{
	*d = (struct xen_dom){ .domid = domid };
	snprintf(d->guest, sizeof(d->guest), "%s", guest);
	d->xc = xc_interface_open(NULL, NULL, 0);
	d->xs = d->xc ? xs_open(0) : NULL;
	d->mem = d->xs ? xenforeignmemory_open(NULL, 0) : NULL;
	if (d->mem)
		return 0;
	ft_err("%s: %s cannot be reached: %s: is this dom0 of a Xen host, and are you root?", guest,
	       d->xc ? d->xs ? "guest memory" : "xenstore" : "the hypervisor", strerror(errno));
	xen_dom_close(d);
	return -ENOTCONN;
}

void xen_dom_close(struct xen_dom *d)
{
	if (d->mem)
		xenforeignmemory_close(d->mem);
	if (d->ends)
		xs_close(d->ends);
	if (d->xs)
		xs_close(d->xs);
	if (d->xc)
		xc_interface_close(d->xc);
	*d = (struct xen_dom){ .domid = d->domid };
}

int xen_dom_watch(struct xen_dom *d)
{
	char devices[64];

	snprintf(devices, sizeof(devices), "/local/domain/%u/device", d->domid);
	d->ends = xs_open(0);
	if (d->ends && xs_watch(d->ends, "@releaseDomain", "ends") && xs_watch(d->ends, devices, DEVICES))
		return 0;
	ft_err("%s: xenstore cannot be watched: %s", d->guest, strerror(errno));
	return -ENOTCONN;
}

int xen_dom_fd(const struct xen_dom *d)
{
	assert(d->ends);
	return xs_fileno(d->ends);
}

void xen_dom_drain(struct xen_dom *d)
{
	char **event;

	assert(d->ends);
	while ((event = xs_check_watch(d->ends))) {
		d->devices_touched |= !strcmp(event[XS_WATCH_TOKEN], DEVICES);
		free(event);
	}
}

/* --- domains --- */

int xen_dom_info(const struct xen_dom *d, xc_domaininfo_t *info)
{
	int n = xc_domain_getinfolist(d->xc, d->domid, 1, info);

	if (n < 0)
		return -errno;
	return n == 1 && info->domain == d->domid && !(info->flags & XEN_DOMINF_dying) ? 0 : -ESRCH;
}

void xen_dom_uuid(const xc_domaininfo_t *info, char uuid[37])
{
	const uint8_t *b = (const uint8_t *)info->handle;

	for (unsigned i = 0; i < 16; i++)
		uuid += sprintf(uuid, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", b[i]);
}

int xen_dom_find(struct xs_handle *xs, const char *name, uint32_t *domid)
{
	unsigned nr;
	char **ids = xen_list(xs, &nr, "/local/domain");
	int rc = ids ? -ENOENT : -errno;

	for (unsigned i = 0; i < nr && rc == -ENOENT; i++) {
		char *other = xen_read(xs, "/local/domain/%s/name", ids[i]);

		if (other && !strcmp(other, name) && strcmp(ids[i], "0")) {
			*domid = (uint32_t)strtoul(ids[i], NULL, 10);
			rc = 0;
		}
		free(other);
	}
	free(ids);
	return rc;
}

int xen_dom_specials(const struct xen_dom *d, struct xen_specials *out)
{
	if (!xc_hvm_param_get(d->xc, d->domid, HVM_PARAM_STORE_PFN, &out->store) &&
	    !xc_hvm_param_get(d->xc, d->domid, HVM_PARAM_CONSOLE_PFN, &out->console))
		return 0;
	ft_err("%s: the frames of its xenstore and console connections cannot be asked for: %s", d->guest,
	       strerror(errno));
	return -errno;
}

/* --- xenstore --- */

char *xen_read(struct xs_handle *xs, const char *fmt, ...)
{
	char path[256];
	unsigned len;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	return xs_read(xs, XBT_NULL, path, &len);
}

char **xen_list(struct xs_handle *xs, unsigned *nr, const char *fmt, ...)
{
	char path[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	*nr = 0;
	return xs_directory(xs, XBT_NULL, path, nr);
}

int xen_write(struct xs_handle *xs, const char *value, const char *fmt, ...)
{
	char path[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	return xs_write(xs, XBT_NULL, path, value, (unsigned)strlen(value)) ? 0 : -errno;
}

uint64_t xen_dom_kb(const struct xen_dom *d, const char *node)
{
	char *text = xen_read(d->xs, "/local/domain/%u/memory/%s", d->domid, node);
	uint64_t kb = text ? strtoull(text, NULL, 10) : 0;

	free(text);
	return kb;
}

/* --- network interfaces --- */

static bool parse_mac(const char *text, uint8_t mac[6])
{
	unsigned b[6];

	if (!text || sscanf(text, "%2x:%2x:%2x:%2x:%2x:%2x", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5]) != 6)
		return false;
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return true;
}

static bool is_vif(const char *name)
{
	char path[80];

	snprintf(path, sizeof(path), "/sys/class/net/%s", name);
	return *name && access(path, F_OK) == 0;
}

/* Interface @id of the domain: false: it is not served by this dom0, or not as a port of a bridge. */
static bool read_nic(const struct xen_dom *d, const char *id, struct ft_attach *at)
{
	char back[64];
	unsigned i = at->nr_nics++;
	char *mac, *bridge, *name;
	bool ok;

	snprintf(back, sizeof(back), "/local/domain/0/backend/vif/%u/%s", d->domid, id);
	mac = xen_read(d->xs, "%s/mac", back);
	bridge = xen_read(d->xs, "%s/bridge", back);
	name = xen_read(d->xs, "%s/vifname", back);
	snprintf(at->nic[i].bridge, sizeof(at->nic[i].bridge), "%s", bridge ? bridge : "");
	if (name)
		snprintf(at->nic[i].tap, sizeof(at->nic[i].tap), "%s", name);
	else
		snprintf(at->nic[i].tap, sizeof(at->nic[i].tap), "vif%u.%s", d->domid, id);
	ok = parse_mac(mac, at->nic[i].mac) && at->nic[i].bridge[0] && is_vif(at->nic[i].tap);
	free(name);
	free(bridge);
	free(mac);
	return ok;
}

/*
 * What the device model emulates sends through a tap of its own: behind those of the drivers, as a nic of its own, with
 * the address of the same.
 */
static int add_emulated(struct ft_attach *at)
{
	unsigned nr = at->nr_nics;

	for (unsigned i = 0; i < nr; i++) {
		char name[24];

		snprintf(name, sizeof(name), "%s" XEN_EMULATED, at->nic[i].tap);
		if (strlen(name) >= sizeof(at->nic[i].tap) || !is_vif(name))
			continue;
		if (at->nr_nics == FT_SPEC_NICS_MAX)
			return -E2BIG;
		at->nic[at->nr_nics] = at->nic[i];
		strcpy(at->nic[at->nr_nics++].tap, name);
	}
	return 0;
}

int xen_dom_nics(const struct xen_dom *d, struct ft_attach *at)
{
	unsigned nr;
	char **ids = xen_list(d->xs, &nr, "/local/domain/%u/device/vif", d->domid);
	int rc = 0;

	at->nr_nics = 0;
	for (unsigned i = 0; i < nr && !rc; i++) {
		rc = i == FT_SPEC_NICS_MAX ? -E2BIG : read_nic(d, ids[i], at) ? 0 : -ENODEV;
		if (rc)
			ft_err("%s: its network interface %s is not a vif on a bridge of this dom0: what it sends could not be held",
			       d->guest, ids[i]);
	}
	free(ids);
	if (!rc && (rc = add_emulated(at)))
		ft_err("%s: it has more than %u network interfaces, emulated ones included", d->guest, FT_SPEC_NICS_MAX);
	return rc;
}

/* --- devices of any kind --- */

static uint64_t add_text(uint64_t seed, const char *text)
{
	return text ? XXH3_64bits_withSeed(text, strlen(text), seed) : seed;
}

/* Another disk may come under the name of one that went: what is behind it counts, too. */
static uint64_t device_sum(const struct xen_dom *d, const char *kind, const char *id)
{
	static const char *const of_back[] = { "params", "physical-device-path", "script" };
	char *back = xen_read(d->xs, "/local/domain/%u/device/%s/%s/backend", d->domid, kind, id);
	uint64_t sum = add_text(add_text(add_text(0, kind), id), back);

	for (unsigned i = 0; back && i < FT_ARRAY_LEN(of_back); i++) {
		char *text = xen_read(d->xs, "%s/%s", back, of_back[i]);

		sum = add_text(sum + i, text);
		free(text);
	}
	free(back);
	return sum;
}

/* In whatever order they are listed. */
static void add_kind(const struct xen_dom *d, const char *kind, uint64_t *sum)
{
	unsigned nr;
	char **ids = xen_list(d->xs, &nr, "/local/domain/%u/device/%s", d->domid, kind);

	for (unsigned i = 0; i < nr; i++)
		*sum += device_sum(d, kind, ids[i]);
	free(ids);
}

int xen_dom_devices(const struct xen_dom *d, uint64_t *sum)
{
	unsigned nr;
	char **kind = xen_list(d->xs, &nr, "/local/domain/%u/device", d->domid);

	if (!kind && errno != ENOENT)
		return -errno;
	*sum = 0;
	for (unsigned i = 0; i < nr; i++)
		if (strcmp(kind[i], "suspend"))         /* the guest's own */
			add_kind(d, kind[i], sum);
	free(kind);
	return 0;
}
