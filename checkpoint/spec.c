// SPDX-License-Identifier: GPL-3.0-or-later
/* spec.c - see ft/spec.h. man ft-guest-file(5) is written from the tables here. */
#include "ft/conf.h"
#include "ft/ini.h"
#include "ft/spec.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define MIB ((uint64_t)1 << 20)
#define MEMORY_MIN (16 * MIB)
#define MEMORY_MAX ((uint64_t)1 << 40)
#define MEMORY_STEP (2 * MIB)
#define VCPUS_MAX 64

static const char alnum[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
static const char *const accel_words[] = {
	[FT_ACCEL_AUTO] = "auto", [FT_ACCEL_KVM] = "kvm", [FT_ACCEL_TCG] = "tcg", NULL
};

static const char *const hypervisor_words[] = {
	[FT_HYPERVISOR_QEMU] = "qemu", [FT_HYPERVISOR_XEN] = "xen", NULL
};

static const char *const virtio_words[] = {
	[FT_VIRTIO_LEGACY] = "legacy", [FT_VIRTIO_MODERN] = "modern", NULL
};

static const char *const type_words[] = { [FT_XEN_PVH] = "pvh", [FT_XEN_HVM] = "hvm", NULL };
static const char *const durability_words[] = {
	[FT_DURABILITY_MEMORY] = "memory", [FT_DURABILITY_JOURNAL] = "journal", NULL
};

static const char *const bool_words[] = { "no", "yes" };

const char *ft_accel_name(enum ft_accel a)
{
	return accel_words[a];
}

/* --- values of their own kind --- */

/* True when @value has 1..size-1 bytes, all alphanumeric or in @extra, the first alphanumeric. */
static bool plain_word(const char *value, const char *extra, size_t size)
{
	size_t len = strlen(value);

	if (!len || len >= size || !strchr(alnum, value[0]))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!strchr(alnum, value[i]) && !strchr(extra, value[i]))
			return false;
	return true;
}

static int parse_memory(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	uint64_t unit, v = 0;
	const char *p = value;

	for (; *p >= '0' && *p <= '9' && v <= MEMORY_MAX; p++)
		v = v * 10 + (uint64_t)(*p - '0');
	unit = *p == 'M' ? MIB : *p == 'G' ? 1024 * MIB : 0;
	if (p == value || !unit || p[1] || v > MEMORY_MAX / unit)
		return ft_ini_error(at, "'%s' must be a size as in 512M or 4G, at most 1024G, not '%s'", key, value);
	v *= unit;
	if (v < MEMORY_MIN || v % MEMORY_STEP)
		return ft_ini_error(at, "'%s' must be at least 16M and a multiple of 2M, not '%s'", key, value);
	*(uint64_t *)member = v;
	return 0;
}

/* "pc-i440fx-7.2", but not "pc" or "q35", which mean another machine after an upgrade of QEMU. */
static bool versioned_machine(const char *m)
{
	const char *dash = strrchr(m, '-');
	unsigned major, minor;
	char rest;

	return dash && dash != m && sscanf(dash, "-%3u.%3u%c", &major, &minor, &rest) == 2;
}

static int parse_machine(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	if (!plain_word(value, "._-", sizeof(((struct ft_spec *)0)->machine)) || !versioned_machine(value))
		return ft_ini_error(at, "'%s' must be a versioned QEMU machine type as in pc-i440fx-7.2 (see qemu-system-x86_64 "
				    "-machine help), not '%s'", key, value);
	strcpy(member, value);
	return 0;
}

static int parse_cpu(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	if (!plain_word(value, "._-,+=", sizeof(((struct ft_spec *)0)->cpu)))
		return ft_ini_error(at, "'%s' must be a QEMU CPU model as in qemu64 or Skylake-Server,-hle, not '%s'", key, value);
	strcpy(member, value);
	return 0;
}

static int parse_mac(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	unsigned b[6];
	uint8_t *mac = member;
	char rest;

	if (strlen(value) != 17 || strspn(value, "0123456789abcdefABCDEF:") != 17 ||
	    sscanf(value, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &rest) != 6)
		return ft_ini_error(at, "'%s' must be six bytes as in 52:54:00:12:34:56, not '%s'", key, value);
	if (b[0] & 1 || !(b[0] | b[1] | b[2] | b[3] | b[4] | b[5]))
		return ft_ini_error(at, "'%s' must be a unicast address (the first byte even), not '%s'", key, value);
	for (unsigned i = 0; i < 6; i++)
		mac[i] = (uint8_t)b[i];
	return 0;
}

static int parse_bridge(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	if (!plain_word(value, "._-", sizeof(((struct ft_nic *)0)->bridge)))
		return ft_ini_error(at, "'%s' must be the name of a bridge on this host, at most 15 characters, not '%s'", key,
				    value);
	strcpy(member, value);
	return 0;
}

/* --- tables --- */

#define TEXT_KEY(k, t, m) \
	{ .key = k, .type = t, .offset = offsetof(struct ft_spec, m), .max = sizeof(((struct ft_spec *)0)->m) }

static const struct ft_ini_key guest_keys[] = {
	TEXT_KEY("name", FT_INI_NAME, name),
	{ .key = "memory", .type = FT_INI_FUNC, .offset = offsetof(struct ft_spec, memory), .parse = parse_memory },
	{ .key = "vcpus", .type = FT_INI_UINT, .offset = offsetof(struct ft_spec, vcpus), .min = 1, .max = VCPUS_MAX },
	{ .key = "hypervisor", .type = FT_INI_WORD, .offset = offsetof(struct ft_spec, hypervisor), .words = hypervisor_words },
	{ .key = "type", .type = FT_INI_WORD, .offset = offsetof(struct ft_spec, type), .words = type_words },
	{ .key = "accel", .type = FT_INI_WORD, .offset = offsetof(struct ft_spec, accel), .words = accel_words },
	{ .key = "machine", .type = FT_INI_FUNC, .offset = offsetof(struct ft_spec, machine), .parse = parse_machine },
	{ .key = "cpu", .type = FT_INI_FUNC, .offset = offsetof(struct ft_spec, cpu), .parse = parse_cpu },
	TEXT_KEY("kernel", FT_INI_PATH, kernel),
	TEXT_KEY("initrd", FT_INI_PATH, initrd),
	TEXT_KEY("cmdline", FT_INI_TEXT, cmdline),
	{ .key = "durability", .type = FT_INI_WORD, .offset = offsetof(struct ft_spec, durability),
	  .words = durability_words },
	{ 0 }
};

static const struct ft_ini_key disk_keys[] = {
	{ .key = "image", .type = FT_INI_PATH, .offset = offsetof(struct ft_disk_spec, image), .max = FT_SPEC_PATH_MAX },
	{ .key = "read-only", .type = FT_INI_BOOL, .offset = offsetof(struct ft_disk_spec, read_only) },
	{ .key = "virtio", .type = FT_INI_WORD, .offset = offsetof(struct ft_disk_spec, virtio), .words = virtio_words },
	{ 0 }
};

static const struct ft_ini_key nic_keys[] = {
	{ .key = "mac", .type = FT_INI_FUNC, .offset = offsetof(struct ft_nic, mac), .parse = parse_mac },
	{ .key = "bridge", .type = FT_INI_FUNC, .offset = offsetof(struct ft_nic, bridge), .parse = parse_bridge },
	{ .key = "virtio", .type = FT_INI_WORD, .offset = offsetof(struct ft_nic, virtio), .words = virtio_words },
	{ 0 }
};

static void *guest_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	return ctx;
}

static void *disk_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	struct ft_spec *s = ctx;

	if (s->nr_disks == FT_DISKS_MAX) {
		ft_ini_error(at, "more than %u [disk] sections", FT_DISKS_MAX);
		return NULL;
	}
	s->disk[s->nr_disks].virtio = FT_VIRTIO_UNSAID;
	return &s->disk[s->nr_disks++];
}

static void *nic_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	struct ft_spec *s = ctx;

	if (s->nr_nics == FT_SPEC_NICS_MAX) {
		ft_ini_error(at, "more than %d [nic] sections", FT_SPEC_NICS_MAX);
		return NULL;
	}
	return &s->nic[s->nr_nics++];
}

static const struct ft_ini_section spec_sections[] = {
	{ .kind = "guest", .keys = guest_keys, .object = guest_object },
	{ .kind = "disk", .keys = disk_keys, .repeated = true, .object = disk_object },
	{ .kind = "nic", .keys = nic_keys, .repeated = true, .object = nic_object },
	{ 0 }
};

/* --- the guest file as a whole --- */

static int check_disks(const struct ft_ini_at *at, const struct ft_spec *s)
{
	for (unsigned i = 0; i < s->nr_disks; i++) {
		if (!s->disk[i].image[0])
			return ft_ini_error(at, "[disk] number %u has no 'image', for example image = /var/lib/ft/%s/disk%u.img",
					    i + 1, s->name, i);
		for (unsigned j = 0; j < i; j++)
			if (!strcmp(s->disk[i].image, s->disk[j].image))
				return ft_ini_error(at, "[disk] number %u has the same 'image' as number %u", i + 1, j + 1);
	}
	return 0;
}

static int check_nics(const struct ft_ini_at *at, const struct ft_spec *s)
{
	static const uint8_t none[6];

	for (unsigned i = 0; i < s->nr_nics; i++) {
		if (!memcmp(s->nic[i].mac, none, 6))
			return ft_ini_error(at, "[nic] number %u has no 'mac'", i + 1);
		if (!s->nic[i].bridge[0])
			return ft_ini_error(at, "[nic] number %u has no 'bridge'", i + 1);
		for (unsigned j = 0; j < i; j++)
			if (!memcmp(s->nic[i].mac, s->nic[j].mac, 6))
				return ft_ini_error(at, "[nic] number %u has the same 'mac' as number %u", i + 1, j + 1);
	}
	return 0;
}

/* What only a device model does. */
static int check_type(const struct ft_ini_at *at, const struct ft_spec *s)
{
	if (s->type == FT_XEN_HVM && s->hypervisor != FT_HYPERVISOR_XEN)
		return ft_ini_error(at, "'type' is a Xen domain's: it needs hypervisor = xen");
	return 0;
}

static int check_whole(const char *origin, const struct ft_spec *s)
{
	struct ft_ini_at at = { .origin = origin };
	int rc;

	if (!s->name[0])
		return ft_ini_error(&at, "[guest] has no 'name'");
	if (!s->memory)
		return ft_ini_error(&at, "[guest] has no 'memory', for example memory = 512M");
	if (s->initrd[0] && !s->kernel[0])
		return ft_ini_error(&at, "'initrd' needs a 'kernel'");
	if (s->cmdline[0] && !s->kernel[0])
		return ft_ini_error(&at, "'cmdline' needs a 'kernel'");
	if (s->hypervisor == FT_HYPERVISOR_XEN && (s->accel != FT_ACCEL_AUTO || s->machine[0] || s->cpu[0]))
		return ft_ini_error(&at, "'accel', 'machine' and 'cpu' are QEMU's: leave them out of the file of a Xen guest");
	if (s->hypervisor == FT_HYPERVISOR_XEN && !s->kernel[0])
		return ft_ini_error(&at, "a Xen guest needs a 'kernel': its domain boots from nothing else");
	rc = check_type(&at, s);
	if (!rc)
		rc = check_disks(&at, s);
	return rc ? rc : check_nics(&at, s);
}

int ft_spec_parse(const char *text, size_t len, const char *origin, struct ft_spec *out)
{
	struct ft_ini_at at = { .origin = origin };
	struct ft_spec s = { .vcpus = 1 };
	int rc;

	*out = (struct ft_spec){ 0 };
	if (len > FT_SPEC_TEXT_MAX)
		return ft_ini_error(&at, "a guest file has at most %d bytes", FT_SPEC_TEXT_MAX);
	rc = ft_ini_parse(text, len, origin, spec_sections, &s);
	for (unsigned i = 0; i < s.nr_disks; i++)
		if (s.disk[i].virtio == FT_VIRTIO_UNSAID)
			s.disk[i].virtio = s.kernel[0] ? FT_VIRTIO_LEGACY : FT_VIRTIO_MODERN;
	if (!rc)
		rc = check_whole(origin, &s);
	if (!rc)
		*out = s;
	return rc;
}

#define SPEC_PATH_MAX (FT_PATH_MAX + FT_NAME_MAX + 8)

static void spec_path(const char *guest, char path[SPEC_PATH_MAX])
{
	snprintf(path, SPEC_PATH_MAX, "%s/%s.conf", ft_conf()->guests_dir, guest);
}

bool ft_spec_exists(const char *guest)
{
	char path[SPEC_PATH_MAX];

	spec_path(guest, path);
	return !access(path, F_OK);
}

int ft_spec_load(const char *guest, struct ft_spec *out)
{
	char path[SPEC_PATH_MAX];
	struct ft_blob text;
	int rc;

	*out = (struct ft_spec){ 0 };
	if (!ft_name_ok(guest)) {
		ft_err("'%s' is no valid guest name", guest);
		return -EINVAL;
	}
	spec_path(guest, path);
	rc = ft_read_file(path, FT_SPEC_TEXT_MAX, &text);
	if (rc) {
		ft_err("guest %s: cannot read its guest file %s: %s%s", guest, path, rc == -EFBIG ? "it is too long" : strerror(-rc),
		       rc == -ENOENT ? ": write it as ft-guest-file(5) says, or copy it from the other host" :
		       rc == -EACCES || rc == -EPERM ? ": run as root" : "");
		return rc;
	}
	rc = ft_spec_parse((const char *)text.data, text.len, path, out);
	ft_blob_free(&text);
	if (!rc && strcmp(out->name, guest)) {
		ft_err("%s: 'name' is '%s': it must be '%s' as in the name of the file", path, out->name, guest);
		rc = -EINVAL;
	}
	return rc;
}

/* --- canonical text --- */

struct text {
	char *buf;
	size_t size, len;               /* len counts on past size */
};

static void add(struct text *t, const char *fmt, ...) FT_PRINTF(2, 3);
static void add(struct text *t, const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(t->len < t->size ? t->buf + t->len : NULL, t->len < t->size ? t->size - t->len : 0, fmt, ap);
	va_end(ap);
	t->len += (size_t)n;
}

static void add_key(struct text *t, const char *key, const char *value)
{
	if (*value)
		add(t, "%s = %s\n", key, value);
}

int ft_spec_format(const struct ft_spec *s, char *buf, size_t size)
{
	struct text t = { buf, size, 0 };

	add(&t, "[guest]\nname = %s\nmemory = %" PRIu64 "M\nvcpus = %u\n", s->name, s->memory / MIB, s->vcpus);
	if (s->hypervisor == FT_HYPERVISOR_QEMU)
		add_key(&t, "accel", accel_words[s->accel]);
	else
		add_key(&t, "hypervisor", hypervisor_words[s->hypervisor]);
	if (s->type != FT_XEN_PVH)
		add_key(&t, "type", type_words[s->type]);
	add_key(&t, "machine", s->machine);
	add_key(&t, "cpu", s->cpu);
	add_key(&t, "kernel", s->kernel);
	add_key(&t, "initrd", s->initrd);
	add_key(&t, "cmdline", s->cmdline);
	if (s->durability != FT_DURABILITY_MEMORY)
		add_key(&t, "durability", durability_words[s->durability]);
	for (unsigned i = 0; i < s->nr_disks; i++)
		add(&t, "\n[disk]\nimage = %s\nread-only = %s\nvirtio = %s\n",
		    s->disk[i].image, bool_words[s->disk[i].read_only], virtio_words[s->disk[i].virtio]);
	for (unsigned i = 0; i < s->nr_nics; i++) {
		const uint8_t *m = s->nic[i].mac;

		add(&t, "\n[nic]\nmac = %02x:%02x:%02x:%02x:%02x:%02x\nbridge = %s\nvirtio = %s\n",
		    m[0], m[1], m[2], m[3], m[4], m[5], s->nic[i].bridge, virtio_words[s->nic[i].virtio]);
	}
	return t.len < size ? (int)t.len : -ENOSPC;
}

/* --- can mine, the backup's, go on where theirs stopped? --- */

static int differs(char *why, size_t size, const char *key, const char *mine, const char *theirs)
{
	snprintf(why, size, "'%s' is '%s' on the backup and '%s' on the primary", key, mine, theirs);
	return -ENOEXEC;
}

static int numbers_differ(char *why, size_t size, const char *key, uint64_t mine, uint64_t theirs)
{
	snprintf(why, size, "'%s' is %" PRIu64 " on the backup and %" PRIu64 " on the primary", key, mine, theirs);
	return -ENOEXEC;
}

static int sizes_differ(char *why, size_t size, const char *key, uint64_t mine, uint64_t theirs)
{
	snprintf(why, size, "'%s' is %" PRIu64 " MiB on the backup and %" PRIu64 " MiB on the primary", key, mine >> 20, theirs >> 20);
	return -ENOEXEC;
}

static int disk_differs(char *why, size_t size, unsigned disk, const char *key, const char *mine, const char *theirs)
{
	snprintf(why, size, "'%s' of [disk] number %u is '%s' on the backup and '%s' on the primary", key, disk + 1, mine, theirs);
	return -ENOEXEC;
}

static int disks_differ(const struct ft_spec *mine, const struct ft_spec *theirs, char *why, size_t size)
{
	if (mine->nr_disks != theirs->nr_disks)
		return numbers_differ(why, size, "number of [disk] sections", mine->nr_disks, theirs->nr_disks);
	for (unsigned i = 0; i < mine->nr_disks; i++) {
		const struct ft_disk_spec *m = &mine->disk[i], *t = &theirs->disk[i];

		if (m->read_only != t->read_only)
			return disk_differs(why, size, i, "read-only", bool_words[m->read_only], bool_words[t->read_only]);
		if (m->virtio != t->virtio)
			return disk_differs(why, size, i, "virtio", virtio_words[m->virtio], virtio_words[t->virtio]);
	}
	return 0;
}

static int nics_differ(const struct ft_spec *mine, const struct ft_spec *theirs, char *why, size_t size)
{
	if (mine->nr_nics != theirs->nr_nics)
		return numbers_differ(why, size, "number of [nic] sections", mine->nr_nics, theirs->nr_nics);
	for (unsigned i = 0; i < mine->nr_nics; i++) {
		if (memcmp(mine->nic[i].mac, theirs->nic[i].mac, 6)) {
			snprintf(why, size, "'mac' of [nic] number %u differs", i + 1);
			return -ENOEXEC;
		}
		if (mine->nic[i].virtio != theirs->nic[i].virtio)
			return differs(why, size, "virtio", virtio_words[mine->nic[i].virtio], virtio_words[theirs->nic[i].virtio]);
	}
	return 0;
}

int ft_spec_compatible(const struct ft_spec *mine, const struct ft_spec *theirs, char *why, size_t size)
{
	if (strcmp(mine->name, theirs->name))
		return differs(why, size, "name", mine->name, theirs->name);
	if (mine->memory != theirs->memory)
		return sizes_differ(why, size, "memory", mine->memory, theirs->memory);
	if (mine->vcpus != theirs->vcpus)
		return numbers_differ(why, size, "vcpus", mine->vcpus, theirs->vcpus);
	if (mine->hypervisor != theirs->hypervisor)
		return differs(why, size, "hypervisor", hypervisor_words[mine->hypervisor], hypervisor_words[theirs->hypervisor]);
	if (mine->type != theirs->type)
		return differs(why, size, "type", type_words[mine->type], type_words[theirs->type]);
	if (mine->accel != theirs->accel)
		return differs(why, size, "accel", ft_accel_name(mine->accel), ft_accel_name(theirs->accel));
	if (strcmp(mine->machine, theirs->machine))
		return differs(why, size, "machine", mine->machine, theirs->machine);
	if (strcmp(mine->cpu, theirs->cpu))
		return differs(why, size, "cpu", mine->cpu, theirs->cpu);
	/* Paths are each host's own; that there is one at all decides which option ROM the guest has. */
	if (!mine->kernel[0] != !theirs->kernel[0])
		return differs(why, size, "kernel", mine->kernel, theirs->kernel);
	if (!mine->initrd[0] != !theirs->initrd[0])
		return differs(why, size, "initrd", mine->initrd, theirs->initrd);
	if (strcmp(mine->cmdline, theirs->cmdline))
		return differs(why, size, "cmdline", mine->cmdline, theirs->cmdline);
	if (disks_differ(mine, theirs, why, size))
		return -ENOEXEC;
	return nics_differ(mine, theirs, why, size);
}
