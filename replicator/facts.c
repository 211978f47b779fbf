// SPDX-License-Identifier: GPL-3.0-or-later
/* facts.c - see facts.h. */
#include "facts.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define DIGEST_TEXT 33
#define VENDOR_TEXT 32

/* A digest of a file's bytes: tells apart what should be equal, proves nothing against an attacker. */
static int digest_file(const char *path, char text[DIGEST_TEXT])
{
	XXH128_hash_t h;
	struct stat st;
	void *map;
	int fd, rc = 0;

	strcpy(text, "none");
	if (!*path)
		return 0;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	map = fstat(fd, &st) < 0 || !st.st_size ? MAP_FAILED : mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (map == MAP_FAILED) {
		rc = errno ? -errno : -EINVAL;
	} else {
		h = XXH3_128bits(map, (size_t)st.st_size);
		snprintf(text, DIGEST_TEXT, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
		munmap(map, (size_t)st.st_size);
	}
	close(fd);
	return rc;
}

static int digest_or_complain(const char *path, char text[DIGEST_TEXT])
{
	int rc = digest_file(path, text);

	if (rc)
		ft_err("%s: cannot be read: %s", path, strerror(-rc));
	return rc;
}

/* Under KVM a guest sees the maker of the host's processor, whatever its model, and chooses instructions by it. */
static void cpu_vendor(char vendor[VENDOR_TEXT])
{
	struct ft_blob text;
	const char *line;

	strcpy(vendor, "unknown");
	if (ft_read_file("/proc/cpuinfo", 8 << 20, &text))
		return;
	line = strstr((const char *)text.data, "vendor_id");
	if (!line || sscanf(line, "vendor_id : %31s", vendor) != 1)
		strcpy(vendor, "unknown");
	ft_blob_free(&text);
}

int ft_facts_format(const struct ft_spec *spec, const struct ft_attach *at, char *buf, size_t size)
{
	char kernel[DIGEST_TEXT], initrd[DIGEST_TEXT], vendor[VENDOR_TEXT];
	int rc, len;

	rc = digest_or_complain(spec->kernel, kernel);
	if (!rc)
		rc = digest_or_complain(spec->initrd, initrd);
	if (rc)
		return rc;
	cpu_vendor(vendor);
	if (at->hypervisor == FT_HYPERVISOR_XEN)
		len = snprintf(buf, size, "hypervisor=xen\nxen=%s\npages=%s\n%s%s%smemory=%llu\nkernel=%s\ninitrd=%s\ncpu_vendor=%s\n",
			       at->xen_version, at->pages, at->model[0] ? "model=" : "", at->model, at->model[0] ? "\n" : "",
			       (unsigned long long)at->memory, kernel, initrd, vendor);
	else
		len = snprintf(buf, size, "accel=%s\nmachine=%s\nqemu=%s\nmemory=%llu\nkernel=%s\ninitrd=%s\ncpu_vendor=%s\n",
		       ft_accel_name(at->accel), at->machine, at->qemu_version,
		       (unsigned long long)at->memory, kernel, initrd, vendor);
	return len < (int)size ? 0 : -ENAMETOOLONG;
}

/* The value of @key, or false. */
static bool fact(const char *facts, const char *key, char *value, size_t size)
{
	size_t key_len = strlen(key);

	for (const char *line = facts; line && *line; line = strchr(line, '\n'), line += line != NULL) {
		if (strncmp(line, key, key_len) || line[key_len] != '=')
			continue;
		line += key_len + 1;
		snprintf(value, size, "%.*s", (int)strcspn(line, "\n"), line);
		return true;
	}
	return false;
}

void ft_facts_add_disks(const struct ft_attach *at, char *facts, size_t size)
{
	struct ft_disk_need need[FT_DISKS_MAX];
	char line[FT_DISKS_MAX * 42 + 8];
	size_t len = (size_t)snprintf(line, sizeof(line), "disks");

	ft_disk_measure(at, need);
	for (unsigned i = 0; i < at->nr_disks; i++)
		len += (size_t)snprintf(line + len, sizeof(line) - len, "%c%llu/%llu", i ? ',' : '=',
					(unsigned long long)need[i].bytes, (unsigned long long)need[i].used);
	if (at->nr_disks && strlen(facts) + len + 2 <= size)
		sprintf(facts + strlen(facts), "%s\n", line);
}

unsigned ft_facts_disks(const char *facts, struct ft_disk_need need[FT_DISKS_MAX])
{
	char value[FT_DISKS_MAX * 42], *p = value;
	unsigned nr = 0;

	if (!fact(facts, "disks", value, sizeof(value)))
		return 0;
	while (nr < FT_DISKS_MAX) {
		char *slash, *end;

		need[nr].bytes = strtoull(p, &slash, 10);
		need[nr].used = *slash == '/' ? strtoull(slash + 1, &end, 10) : 0;
		if (slash == p || *slash != '/' || end == slash + 1)
			break;
		nr++;
		if (*end != ',')
			break;
		p = end + 1;
	}
	return nr;
}

static int same_file(const char *facts, const char *key, const char *path, char *why, size_t size)
{
	char theirs[DIGEST_TEXT], mine[DIGEST_TEXT];

	if (!fact(facts, key, theirs, sizeof(theirs)))
		return -EPROTO;
	if (digest_or_complain(path, mine)) {
		snprintf(why, size, "%s %s cannot be read on the backup", key, path);
		return -ENOEXEC;
	}
	if (!strcmp(mine, theirs))
		return 0;
	snprintf(why, size, "%s differs: %s on the backup is not the file that the guest was started from", key,
		 *path ? path : "none");
	return -ENOEXEC;
}

static int same_vendor(const char *facts, const struct ft_attach *theirs, char *why, size_t size)
{
	char there[VENDOR_TEXT], here[VENDOR_TEXT];

	if (theirs->hypervisor == FT_HYPERVISOR_QEMU && theirs->accel != FT_ACCEL_KVM)
		return 0;
	if (!fact(facts, "cpu_vendor", there, sizeof(there)))
		return -EPROTO;
	cpu_vendor(here);
	if (!strcmp(here, there))
		return 0;
	snprintf(why, size, "the guest runs on a processor of %s, the backup has one of %s: use hosts of one maker%s", there, here,
		 theirs->hypervisor == FT_HYPERVISOR_QEMU ? ", or set accel = tcg in both guest files" : "");
	return -ENOEXEC;
}

static int qemu_facts(const char *facts, struct ft_attach *theirs)
{
	char accel[8];

	if (!fact(facts, "accel", accel, sizeof(accel)) || !fact(facts, "machine", theirs->machine, sizeof(theirs->machine)) ||
	    !fact(facts, "qemu", theirs->qemu_version, sizeof(theirs->qemu_version)))
		return -EPROTO;
	theirs->accel = !strcmp(accel, "kvm") ? FT_ACCEL_KVM : FT_ACCEL_TCG;
	return strcmp(accel, ft_accel_name(theirs->accel)) ? -EPROTO : 0;
}

static int xen_facts(const char *facts, struct ft_attach *theirs)
{
	theirs->hypervisor = FT_HYPERVISOR_XEN;
	(void)fact(facts, "model", theirs->model, sizeof(theirs->model));       /* of type hvm only */
	return fact(facts, "xen", theirs->xen_version, sizeof(theirs->xen_version)) &&
	       fact(facts, "pages", theirs->pages, sizeof(theirs->pages)) ? 0 : -EPROTO;
}

int ft_facts_check(const char *facts, const struct ft_spec *mine, struct ft_attach *theirs, char *why, size_t size)
{
	char memory[24], *end;
	int rc;

	*why = 0;
	*theirs = (struct ft_attach){ .pid = 0 };
	snprintf(theirs->guest, sizeof(theirs->guest), "%s", mine->name);
	rc = mine->hypervisor == FT_HYPERVISOR_XEN ? xen_facts(facts, theirs) : qemu_facts(facts, theirs);
	if (rc || !fact(facts, "memory", memory, sizeof(memory)))
		return -EPROTO;
	theirs->memory = strtoull(memory, &end, 10);
	if (*end)
		return -EPROTO;
	rc = same_vendor(facts, theirs, why, size);
	if (!rc)
		rc = same_file(facts, "kernel", mine->kernel, why, size);
	return rc ? rc : same_file(facts, "initrd", mine->initrd, why, size);
}
