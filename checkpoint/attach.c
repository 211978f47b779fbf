// SPDX-License-Identifier: GPL-3.0-or-later
/* attach.c - see ft/attach.h. */
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/hv.h"

#include <inttypes.h>
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <unistd.h>

#define ATTACH_TEXT_MAX 16384

/* Field 22 of /proc/PID/stat, in clock ticks since boot. The name in field 2 may hold anything. */
static int read_stat(pid_t pid, uint64_t *start, bool *zombie)
{
	struct ft_blob stat;
	char path[64];
	const char *p;
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	rc = ft_read_file(path, 4096, &stat);
	if (rc)
		return -ESRCH;
	p = strrchr((const char *)stat.data, ')');
	*zombie = p && (!strncmp(p, ") Z", 3) || !strncmp(p, ") X", 3));
	for (int field = 2; p && field < 22; field++) {
		p = strchr(p, ' ');
		if (p)
			p++;
	}
	if (!p || sscanf(p, "%" SCNu64, start) != 1)
		rc = -EIO;
	ft_blob_free(&stat);
	return rc;
}

int ft_pid_start(pid_t pid, uint64_t *start)
{
	bool zombie;
	int rc = read_stat(pid, start, &zombie);

	return !rc && zombie ? -ESRCH : rc;
}

int ft_attach_fill_pid(struct ft_attach *at, pid_t pid)
{
	at->pid = pid;
	return ft_pid_start(pid, &at->pid_start);
}

/* Its first thread may be a zombie while others still hold its files: readable is the pidfd when all have ended. */
static bool has_ended(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, 0) == 1;
}

int ft_pid_open(pid_t pid, uint64_t start)
{
	uint64_t now;
	bool zombie;
	int fd, rc;

	if (pid <= 0)
		return -ESRCH;
	fd = pidfd_open(pid, 0);
	if (fd < 0)
		return errno == ESRCH || errno == EINVAL ? -ESRCH : -errno;
	/* Read after the pidfd is open: what it names can no longer change. */
	rc = read_stat(pid, &now, &zombie);
	if (!rc && (now != start || has_ended(fd)))
		rc = -ESRCH;
	if (rc) {
		close(fd);
		return rc;
	}
	return fd;
}

int ft_attach_pidfd(const struct ft_attach *at)
{
	return ft_pid_open(at->pid, at->pid_start);
}

/* --- reading: every member's type and range is checked; one line names the first that is wrong --- */

struct reader {
	const char *path;
	json_t *root;
	int rc;
	unsigned taken;                 /* members asked for; more than that in the object: unknown ones */
};

static void bad(struct reader *r, const char *key, const char *expected)
{
	if (!r->rc)
		ft_err("%s: '%s' must be %s: stop and start the guest again", r->path, key, expected);
	r->rc = -EINVAL;
}

static json_t *take(struct reader *r, json_t *obj, const char *key)
{
	r->taken++;
	return json_object_get(obj, key);
}

static void take_text(struct reader *r, json_t *obj, const char *key, char *out, size_t size)
{
	const char *s = json_string_value(take(r, obj, key));

	if (!s || strlen(s) >= size) {
		bad(r, key, "a text that is not too long");
		return;
	}
	strcpy(out, s);
}

static void take_path(struct reader *r, json_t *obj, const char *key, char *out, bool may_be_empty)
{
	take_text(r, obj, key, out, FT_SPEC_PATH_MAX);
	if (out[0] != '/' && !(may_be_empty && !out[0]))
		bad(r, key, "an absolute path");
}

static uint64_t take_number(struct reader *r, json_t *obj, const char *key, uint64_t min, uint64_t max)
{
	json_t *v = take(r, obj, key);

	if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) < min ||
	    (uint64_t)json_integer_value(v) > max) {
		bad(r, key, "a number in its range");
		return 0;
	}
	return (uint64_t)json_integer_value(v);
}

static void take_disk(struct reader *r, struct ft_attach *at, json_t *obj)
{
	struct ft_attach_disk *d = &at->disk[at->nr_disks++];
	unsigned outer = r->taken;
	json_t *read_only;

	r->taken = 0;
	take_path(r, obj, "image", d->image, false);
	take_path(r, obj, "nbd", d->nbd, false);
	take_path(r, obj, "control", d->control, false);
	read_only = take(r, obj, "read_only");
	if (!json_is_boolean(read_only))
		bad(r, "read_only", "true or false");
	d->read_only = json_is_true(read_only);
	/* A Xen guest's disk may be served by nobody when ft looks at it, or not by us: that is said later. */
	d->pid = (pid_t)take_number(r, obj, "pid", at->hypervisor == FT_HYPERVISOR_XEN ? 0 : 1, INT32_MAX);
	d->pid_start = take_number(r, obj, "pid_start", 0, INT64_MAX);
	if (json_object_size(obj) != r->taken)
		bad(r, "disks", "objects of image, nbd, control, read_only, pid and pid_start");
	r->taken = outer;
}

static void take_disks(struct reader *r, struct ft_attach *at)
{
	json_t *disks = take(r, r->root, "disks"), *disk;
	size_t i;

	if (!json_is_array(disks) || json_array_size(disks) > FT_DISKS_MAX) {
		bad(r, "disks", "an array of at most 8");
		return;
	}
	json_array_foreach(disks, i, disk)
		take_disk(r, at, disk);
}

static void take_nic(struct reader *r, struct ft_attach *at, json_t *obj)
{
	unsigned i = at->nr_nics++, b[6];
	unsigned outer = r->taken;
	char mac[18] = "", rest;

	r->taken = 0;
	take_text(r, obj, "mac", mac, sizeof(mac));
	take_text(r, obj, "tap", at->nic[i].tap, sizeof(at->nic[i].tap));
	take_text(r, obj, "bridge", at->nic[i].bridge, sizeof(at->nic[i].bridge));
	if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &rest) != 6)
		bad(r, "mac", "six bytes as in 52:54:00:12:34:56");
	if (json_object_size(obj) != r->taken)
		bad(r, "nics", "objects of mac, tap and bridge");
	for (unsigned k = 0; k < 6 && !r->rc; k++)
		at->nic[i].mac[k] = (uint8_t)b[k];
	r->taken = outer;
}

static void take_nics(struct reader *r, struct ft_attach *at)
{
	json_t *nics = take(r, r->root, "nics"), *nic;
	size_t i;

	if (!json_is_array(nics) || json_array_size(nics) > FT_SPEC_NICS_MAX) {
		bad(r, "nics", "an array of at most 8");
		return;
	}
	json_array_foreach(nics, i, nic)
		take_nic(r, at, nic);
}

static void take_accel(struct reader *r, struct ft_attach *at)
{
	char accel[8] = "";

	take_text(r, r->root, "accel", accel, sizeof(accel));
	at->accel = !strcmp(accel, "kvm") ? FT_ACCEL_KVM : FT_ACCEL_TCG;
	if (strcmp(accel, "kvm") && strcmp(accel, "tcg"))
		bad(r, "accel", "kvm or tcg");
}

static void take_qemu(struct reader *r, struct ft_attach *at)
{
	at->pid = (pid_t)take_number(r, r->root, "pid", 1, INT32_MAX);
	at->pid_start = take_number(r, r->root, "pid_start", 0, INT64_MAX);
	take_path(r, r->root, "qmp", at->qmp, false);
	take_path(r, r->root, "qmp_guard", at->qmp_guard, false);
	take_path(r, r->root, "qmp_state", at->qmp_state, false);
	take_path(r, r->root, "ram", at->ram, false);
	take_path(r, r->root, "preload", at->preload, true);
	take_accel(r, at);
	take_text(r, r->root, "machine", at->machine, sizeof(at->machine));
	take_text(r, r->root, "qemu_version", at->qemu_version, sizeof(at->qemu_version));
	take_disks(r, at);
}

static void take_xen(struct reader *r, struct ft_attach *at)
{
	at->hypervisor = FT_HYPERVISOR_XEN;
	at->domid = (uint32_t)take_number(r, r->root, "domid", 1, 0x7fef);
	take_text(r, r->root, "uuid", at->uuid, sizeof(at->uuid));
	take_text(r, r->root, "xen_version", at->xen_version, sizeof(at->xen_version));
	take_text(r, r->root, "pages", at->pages, sizeof(at->pages));
	take_disks(r, at);
	if (json_object_get(r->root, "model"))
		take_text(r, r->root, "model", at->model, sizeof(at->model));
}

static int read_record(const char *path, json_t *root, const char *guest, struct ft_attach *at)
{
	struct reader r = { .path = path, .root = root };

	if (!json_is_object(root)) {
		bad(&r, "record", "one JSON object");
		return r.rc;
	}
	take_text(&r, root, "guest", at->guest, sizeof(at->guest));
	at->memory = take_number(&r, root, "memory", FT_PAGE_SIZE, 1ull << 40);
	take_nics(&r, at);
	if (json_object_get(root, "domid"))
		take_xen(&r, at);
	else
		take_qemu(&r, at);
	if (!r.rc && strcmp(at->guest, guest))
		bad(&r, "guest", "the name of the directory");
	if (!r.rc && at->memory % FT_PAGE_SIZE)
		bad(&r, "memory", "a whole number of pages");
	if (!r.rc && json_object_size(root) != r.taken)
		bad(&r, "record", "free of unknown keys");
	return r.rc;
}

static int attach_path(const char *guest, char *path, size_t size)
{
	return ft_name_ok(guest) ? ft_run_path(path, size, guest, "attach") : -EINVAL;
}

int ft_attach_load(const char *guest, struct ft_attach *out)
{
	char path[2 * FT_PATH_MAX];
	struct ft_blob text;
	json_error_t err;
	json_t *root;
	int rc;

	*out = (struct ft_attach){ 0 };
	rc = attach_path(guest, path, sizeof(path));
	if (rc) {
		ft_err("guest '%s': the name, or 'run-dir' in ft.conf, makes no path of an attach record: %s", guest,
		       strerror(-rc));
		return -EINVAL;
	}
	rc = ft_read_file(path, ATTACH_TEXT_MAX, &text);
	if (rc == -ENOENT)
		return rc;
	if (rc) {
		ft_err("%s: %s: %s", path, strerror(-rc),
		       rc == -EACCES || rc == -EPERM ? "run as root" : "stop and start the guest again");
		return -EINVAL;
	}
	root = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, &err);
	ft_blob_free(&text);
	if (!root) {
		ft_err("%s:%d: %s: stop and start the guest again", path, err.line, err.text);
		return -EINVAL;
	}
	rc = read_record(path, root, guest, out);
	json_decref(root);
	if (rc)
		return rc;
	if (out->hypervisor == FT_HYPERVISOR_XEN)
		return ft_xen_alive(out) ? 0 : -ESRCH;
	rc = ft_attach_pidfd(out);
	if (rc < 0)
		return rc;
	close(rc);
	return 0;
}

/* --- writing --- */

static json_t *disks_json(const struct ft_attach *at)
{
	json_t *disks = json_array();

	for (unsigned i = 0; i < at->nr_disks; i++) {
		const struct ft_attach_disk *d = &at->disk[i];

		json_array_append_new(disks, json_pack("{s:s, s:s, s:s, s:b, s:i, s:I}", "image", d->image, "nbd", d->nbd,
						       "control", d->control, "read_only", (int)d->read_only, "pid", (int)d->pid,
						       "pid_start", (json_int_t)d->pid_start));
	}
	return disks;
}

static json_t *nics_json(const struct ft_attach *at)
{
	json_t *nics = json_array();

	for (unsigned i = 0; i < at->nr_nics; i++) {
		const uint8_t *m = at->nic[i].mac;
		char mac[18];

		snprintf(mac, sizeof(mac), "%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]);
		json_array_append_new(nics, json_pack("{s:s, s:s, s:s}", "mac", mac, "tap", at->nic[i].tap,
						      "bridge", at->nic[i].bridge));
	}
	return nics;
}

static json_t *xen_json(const struct ft_attach *at)
{
	return json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:o, s:o, s:s*}", "guest", at->guest, "memory", (json_int_t)at->memory,
			 "domid", (json_int_t)at->domid, "uuid", at->uuid, "xen_version", at->xen_version, "pages", at->pages,
			 "disks", disks_json(at), "nics", nics_json(at), "model", at->model[0] ? at->model : NULL);
}

static json_t *qemu_json(const struct ft_attach *at)
{
	return json_pack("{s:s, s:i, s:I, s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:s, s:o, s:o}",
			 "guest", at->guest, "pid", (int)at->pid, "pid_start", (json_int_t)at->pid_start,
			 "qmp", at->qmp, "qmp_guard", at->qmp_guard, "qmp_state", at->qmp_state, "ram", at->ram,
			 "memory", (json_int_t)at->memory, "preload", at->preload, "accel", ft_accel_name(at->accel),
			 "machine", at->machine, "qemu_version", at->qemu_version,
			 "disks", disks_json(at), "nics", nics_json(at));
}

int ft_attach_save(const struct ft_attach *at)
{
	char path[2 * FT_PATH_MAX], *text = NULL;
	json_t *root = NULL;
	int rc = attach_path(at->guest, path, sizeof(path));

	if (!rc) {
		root = at->hypervisor == FT_HYPERVISOR_XEN ? xen_json(at) : qemu_json(at);
		text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
		rc = text ? ft_write_file(path, text, strlen(text), 0600) : -ENOMEM;
	}
	if (rc)
		ft_err("guest %s: cannot write the attach record %s: %s", at->guest, path, strerror(-rc));
	free(text);
	json_decref(root);
	return rc;
}

int ft_attach_remove(const char *guest)
{
	char path[2 * FT_PATH_MAX];
	int rc = attach_path(guest, path, sizeof(path));

	if (!rc && unlink(path) < 0 && errno != ENOENT)
		rc = -errno;
	return rc;
}
