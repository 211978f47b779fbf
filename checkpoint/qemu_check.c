// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_check.c - what makes a guest unprotectable, found by asking QEMU and /proc and changing nothing: state that
 * no epoch would carry, writers that no tracker sees, and outputs that nobody would hold.
 */
#include "checkpoint/obstacles.h"
#include "checkpoint/qemu_vm.h"
#include "ft/diskserver.h"

#include <dirent.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

struct check {
	struct ft_qmp *qmp;
	const struct ft_attach *at;
	struct ft_obstacles o;
};

static bool starts(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

/*
 * The answer, of type @type, or NULL. What cannot be asked may be anything, so it is an obstacle; except an error of
 * class @fine, by which QEMU says that it has nothing of that kind.
 */
static json_t *ask_unless(struct check *c, const char *command, json_t *args, json_type type, const char *fine)
{
	json_t *ret = NULL;
	int rc = ft_qmp_call(c->qmp, command, args, -1, FT_QEMU_CALL_MS, &ret);

	if (!rc && json_typeof(ret) == type)
		return ret;
	if (rc != -EREMOTEIO || !fine || strcmp(ft_qmp_error_class(c->qmp), fine))
		ft_obstacle(&c->o, "QEMU does not say what was asked with %s: %s", command,
		      rc ? ft_qmp_error(c->qmp) : "it answers something else");
	json_decref(ret);
	return NULL;
}

static json_t *ask(struct check *c, const char *command, json_type type)
{
	return ask_unless(c, command, NULL, type, NULL);
}

/* A human's command: its answer in lines, freed by the caller. NULL is an obstacle, told. */
static char *ask_monitor(struct check *c, const char *line)
{
	json_t *answer = ask_unless(c, "human-monitor-command", json_pack("{s:s}", "command-line", line), JSON_STRING, NULL);
	char *text = answer ? strdup(json_string_value(answer)) : NULL;

	if (text && (starts(text, "unknown command") || starts(text, "Error:"))) {
		ft_obstacle(&c->o, "QEMU does not say what was asked with '%s': %.*s", line, (int)strcspn(text, "\r\n"), text);
		free(text);
		text = NULL;
	}
	json_decref(answer);
	return text;
}

static const char *text(const json_t *object, const char *key)
{
	const char *s = json_string_value(json_object_get(object, key));

	return s ? s : "";
}

/* --- this QEMU, this guest --- */

static bool lists(const json_t *array, const char *key, const char *value)
{
	for (size_t i = 0; i < json_array_size(array); i++)
		if (!strcmp(text(json_array_get(array, i), key), value))
			return true;
	return false;
}

static void check_commands(struct check *c)
{
	static const char *const needed[] = { "xen-save-devices-state", "set-action", "getfd", "add-fd" };
	json_t *commands = ask(c, "query-commands", JSON_ARRAY), *caps = ask(c, "query-migrate-capabilities", JSON_ARRAY);

	for (size_t i = 0; i < FT_ARRAY_LEN(needed); i++)
		if (!lists(commands, "name", needed[i]))
			ft_obstacle(&c->o, "this QEMU has no command %s: QEMU 7.2 or later for x86 is needed", needed[i]);
	if (!lists(caps, "capability", "x-ignore-shared"))
		ft_obstacle(&c->o, "this QEMU cannot migrate without its shared RAM (x-ignore-shared)");
	json_decref(commands);
	json_decref(caps);
}

static void check_status(struct check *c)
{
	json_t *status = ask(c, "query-status", JSON_OBJECT);
	const char *s = text(status, "status");
	bool ours = !strcmp(s, "paused") && qemu_old_pause(c->at);

	/*
	 * Off counts as running: its end is reported as an event. A pause that we left behind ends when we open the guest, and who
	 * stands still for want of room on a disk is let run again and again.
	 */
	if (status && strcmp(s, "running") && strcmp(s, "shutdown") && strcmp(s, "io-error") && !ours)
		ft_obstacle(&c->o, "the guest does not run (QEMU says '%s'); another client may hold it: `cont` it", s);
	json_decref(status);
}

static void check_blockers(struct check *c)
{
	json_t *migrate = ask(c, "query-migrate", JSON_OBJECT), *reason;
	size_t i;

	json_array_foreach(json_object_get(migrate, "blocked-reasons"), i, reason)
		ft_obstacle(&c->o, "QEMU cannot save its state: %s", json_string_value(reason));
	json_decref(migrate);
}

/* --- memory --- */

static void check_backends(struct check *c)
{
	json_t *backends = ask(c, "query-memdev", JSON_ARRAY), *b = json_array_get(backends, 0);
	struct statfs fs;

	if (!backends)
		return;
	if (json_array_size(backends) != 1)
		ft_obstacle(&c->o, "it has %zu memory backends; exactly one is supported", json_array_size(backends));
	else if (!json_is_true(json_object_get(b, "share")))
		ft_obstacle(&c->o, "memory backend '%s' is private: it needs share=on", text(b, "id"));
	else if ((uint64_t)json_integer_value(json_object_get(b, "size")) != c->at->memory)
		ft_obstacle(&c->o, "memory backend '%s' and the attach record disagree about its size", text(b, "id"));
	if (!statfs(c->at->ram, &fs) && fs.f_type == HUGETLBFS_MAGIC)
		ft_obstacle(&c->o, "RAM file %s is made of huge pages, which are not tracked", c->at->ram);
	json_decref(backends);
}

/* RAM that is never written after boot comes with the firmware; any other would be lost. */
static bool block_is_known(const char *name)
{
	static const char *const known[] = { FT_QEMU_RAM_BLOCK, "pc.bios", "pc.rom", "xen.ram" };
	size_t len = strlen(name);

	for (size_t i = 0; i < FT_ARRAY_LEN(known); i++)
		if (!strcmp(name, known[i]))
			return true;
	return starts(name, "/rom@") || (len > 4 && !strcmp(name + len - 4, ".rom"));
}

/* One HMP line a block, under a line of headings: name (none: a backend in no machine), page size, ... */
static void check_blocks(struct check *c)
{
	char *answer = ask_monitor(c, "info ramblock"), *save = NULL, *line = answer ? strtok_r(answer, "\r\n", &save) : NULL;
	unsigned known = 0;

	while (line && (line = strtok_r(NULL, "\r\n", &save))) {
		char name[128];
		unsigned page;

		if (sscanf(line, "%127s %u", name, &page) != 2)
			continue;
		if (block_is_known(name))
			known++;
		else
			ft_obstacle(&c->o, "RAM block %s lies outside guest RAM and would not be replicated", name);
	}
	if (answer && !known)
		ft_obstacle(&c->o, "QEMU's list of RAM blocks ('info ramblock') is not understood: this version of QEMU is not supported");
	free(answer);
}

static void check_balloon(struct check *c)
{
	json_t *balloon = ask_unless(c, "query-balloon", NULL, JSON_OBJECT, "DeviceNotActive");

	if (balloon)
		ft_obstacle(&c->o, "it has a balloon: memory that QEMU gives back to the host (free-page-reporting does, too) is not tracked");
	json_decref(balloon);
}

/* --- devices --- */

static const struct {
	const char *prefix, *why;
} bad_devices[] = {
	{ "vfio-", "a device of the host writes guest RAM unseen" },
	{ "vhost-", "it writes guest RAM and sends outside of QEMU" },
	{ "virtio-balloon", "memory that a balloon or free-page-reporting gives back to the host is not tracked" },
	{ "virtio-mem", "memory that comes and goes is not tracked" },
	{ "virtio-pmem", "its memory is not guest RAM" },
	{ "nvdimm", "its memory is not guest RAM" },
	{ "pc-dimm", "its memory is not guest RAM" },
	{ "ivshmem", "its memory belongs to others too" },
	{ "virtio-9p", "a folder of the host would not be replicated" },
	{ "usb-host", "a device of the host does not move with the guest" },
	{ "usb-redir", "a device of a client does not move with the guest" },
	{ "scsi-generic", "a device of the host does not move with the guest" },
};

static void check_device(struct check *c, const char *type)
{
	if (!starts(type, "child<"))
		return;
	type += strlen("child<");
	for (size_t i = 0; i < FT_ARRAY_LEN(bad_devices); i++)
		if (starts(type, bad_devices[i].prefix))
			ft_obstacle(&c->o, "device %.*s: %s", (int)strcspn(type, ">"), type, bad_devices[i].why);
}

static void check_devices(struct check *c)
{
	static const char *const places[] = { "/machine/peripheral", "/machine/peripheral-anon" };

	for (size_t k = 0; k < FT_ARRAY_LEN(places); k++) {
		json_t *list = ask_unless(c, "qom-list", json_pack("{s:s}", "path", places[k]), JSON_ARRAY, NULL), *entry;
		size_t i;

		json_array_foreach(list, i, entry)
			check_device(c, text(entry, "type"));
		json_decref(list);
	}
}

/* QEMU names what our servers serve "nbd+unix://?socket=PATH". Those are mirrored. */
static bool is_our_disk(const struct ft_attach *at, const char *file)
{
	const char *socket = starts(file, "nbd+unix:") ? strstr(file, "?socket=") : NULL;

	for (unsigned i = 0; i < at->nr_disks && socket; i++)
		if (!strcmp(socket + strlen("?socket="), at->disk[i].nbd))
			return true;
	return false;
}

/* A disk made with -blockdev has no name of its own, but its device has. */
static const char *disk_name(const json_t *disk)
{
	const char *name = text(disk, "device");

	return *name ? name : text(disk, "qdev");
}

static void check_disks(struct check *c)
{
	json_t *disks = ask(c, "query-block", JSON_ARRAY), *disk;
	size_t i;

	json_array_foreach(disks, i, disk) {
		json_t *medium = json_object_get(disk, "inserted");

		if (medium && !json_is_true(json_object_get(medium, "ro")) && !is_our_disk(c->at, text(medium, "file")))
			ft_obstacle(&c->o, "disk %s is writable (%s): what the guest writes there would not be replicated",
			      disk_name(disk), text(medium, "file"));
	}
	json_decref(disks);
}

static void check_servers(struct check *c)
{
	for (unsigned i = 0; i < c->at->nr_disks; i++) {
		const struct ft_attach_disk *d = &c->at->disk[i];

		if (!ft_disk_served(d))
			ft_obstacle(&c->o, "the server of disk %s (process %d) is gone, and the guest waits for it: 'ft-guest start %s' "
			      "starts it again", d->image, (int)d->pid, c->at->guest);
	}
}

static bool is_our_tap(const struct ft_attach *at, const char *name)
{
	for (unsigned i = 0; i < at->nr_nics; i++)
		if (!strcmp(at->nic[i].tap, name))
			return true;
	return false;
}

/* Which tap descriptor @fd of QEMU is, its fdinfo tells. */
static void check_tap(struct check *c, const char *fd)
{
	char path[64], name[16] = "";
	struct ft_blob info;
	const char *iff;
	int rc;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", (int)c->at->pid, fd);
	rc = ft_read_file(path, 4096, &info);
	if (rc && rc != -ENOENT)        /* that: closed since */
		ft_obstacle(&c->o, "%s: %s: which tap this is cannot be told", path, strerror(-rc));
	if (rc)
		return;
	iff = strstr((const char *)info.data, "iff:");
	if (iff && sscanf(iff, "iff: %15s", name) == 1 && !is_our_tap(c->at, name))
		ft_obstacle(&c->o, "tap %s is not in the attach record: its packets would not be held", name);
	ft_blob_free(&info);
}

/* What QEMU holds open says more than its options: vhost=on has no other trace. */
static void check_open_file(struct check *c, const char *file)
{
	static const struct { const char *prefix, *why; } bad[] = {
		{ "/dev/vhost-", "vhost writes guest RAM and sends packets outside of QEMU: start it with vhost=off" },
		{ "/dev/vfio/", "a device of the host writes guest RAM unseen" },
		{ "/dev/tap", "a macvtap's packets cannot be held: use a tap on a bridge" },
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		if (starts(file, bad[i].prefix))
			ft_obstacle(&c->o, "QEMU has %s open: %s", file, bad[i].why);
}

static void check_open_files(struct check *c)
{
	char path[64], link[512];
	struct dirent *e;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)c->at->pid);
	dir = opendir(path);
	if (!dir)
		ft_obstacle(&c->o, "%s: %s (not permitted to look into QEMU?)", path, strerror(errno));
	while (dir && (e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);

		if (n < 0 && errno != ENOENT && errno != EINVAL)        /* closed since; "." and ".." */
			ft_obstacle(&c->o, "%s/%s: %s (not permitted to look into QEMU?)", path, e->d_name, strerror(errno));
		link[n > 0 ? n : 0] = 0;
		check_open_file(c, link);
		if (!strcmp(link, "/dev/net/tun"))
			check_tap(c, e->d_name);
	}
	if (dir)
		closedir(dir);
}

/* --- outputs --- */

/* One line of HMP's `info network`: " \ net0: index=0,type=tap,fd=21". Which taps these are, open files tell. */
static void check_net_line(struct check *c, const char *line)
{
	static const char *const good[] = { "nic", "hubport", "tap" };
	const char *type = strstr(line, "type=");
	size_t len;

	if (!type)
		return;
	type += strlen("type=");
	len = strcspn(type, ",\r\n");
	for (size_t i = 0; i < FT_ARRAY_LEN(good); i++)
		if (strlen(good[i]) == len && !strncmp(type, good[i], len))
			return;
	ft_obstacle(&c->o, "a network of type %.*s: its packets cannot be held, only a tap's can", (int)len, type);
}

static void check_networks(struct check *c)
{
	char *answer = ask_monitor(c, "info network"), *save = NULL;

	for (char *line = answer ? strtok_r(answer, "\r\n", &save) : NULL; line; line = strtok_r(NULL, "\r\n", &save))
		check_net_line(c, line);
	free(answer);
}

/* "unix:PATH,server=on", also with "disconnected:" in front. */
static bool is_our_socket(const struct ft_attach *at, const char *filename)
{
	const char *const ours[] = { at->qmp, at->qmp_guard, at->qmp_state };
	size_t len;

	if (!starts(filename, "unix:"))
		return false;
	filename += strlen("unix:");
	len = strcspn(filename, ",");
	for (size_t i = 0; i < FT_ARRAY_LEN(ours); i++)
		if (strlen(ours[i]) == len && !strncmp(ours[i], filename, len))
			return true;
	return false;
}

static void check_chardev(struct check *c, const char *label, const char *filename)
{
	static const char *const unseen[] = { "file", "null", "ringbuf" };      /* a file is read at the reader's own risk */

	if (starts(filename, "disconnected:"))
		filename += strlen("disconnected:");
	/* Monitors say nothing of the guest's. */
	if (is_our_socket(c->at, filename) || starts(label, "compat_monitor"))
		return;
	for (size_t i = 0; i < FT_ARRAY_LEN(unseen); i++)
		if (!strcmp(filename, unseen[i]))
			return;
	ft_obstacle(&c->o, "character device %s (%s): a client there would see output that a failover may undo (file, null, ringbuf are "
	      "fine)", label, filename);
}

static void check_chardevs(struct check *c)
{
	json_t *devices = ask(c, "query-chardev", JSON_ARRAY), *d;
	size_t i;

	json_array_foreach(devices, i, d)
		check_chardev(c, text(d, "label"), text(d, "filename"));
	json_decref(devices);
}

static void check_displays(struct check *c)
{
	static const char *const queries[] = { "query-vnc", "query-spice" };
	json_t *options = ask(c, "query-display-options", JSON_OBJECT);

	if (options && strcmp(text(options, "type"), "none"))
		ft_obstacle(&c->o, "its screen is shown (%s): somebody there would see output that a failover may undo: it needs -display none",
		      text(options, "type"));
	json_decref(options);
	for (size_t i = 0; i < FT_ARRAY_LEN(queries); i++) {
		json_t *display = ask_unless(c, queries[i], NULL, JSON_OBJECT, "CommandNotFound");

		if (json_is_true(json_object_get(display, "enabled")))
			ft_obstacle(&c->o, "its screen is served over %s: a client there would see output that a failover may undo",
			      queries[i] + strlen("query-"));
		json_decref(display);
	}
}

/* --- all of it --- */

unsigned qemu_obstacles(struct ft_qmp *q, const struct ft_attach *at, void (*tell)(void *ctx, const char *line),
			void *ctx)
{
	static void (*const checks[])(struct check *) = {
		check_commands, check_status, check_blockers, check_backends, check_blocks, check_balloon, check_devices,
		check_disks, check_servers, check_open_files, check_networks, check_chardevs, check_displays,
	};
	struct check c = { .qmp = q, .at = at, .o = { .tell = tell, .ctx = ctx } };

	for (size_t i = 0; i < FT_ARRAY_LEN(checks); i++)
		checks[i](&c);
	return c.o.nr;
}

/* Its memory is Xen's, and whether it runs the domain tells. */
unsigned qemu_model_obstacles(struct ft_qmp *q, const struct ft_attach *at, void (*tell)(void *ctx, const char *line),
			      void *ctx)
{
	static void (*const checks[])(struct check *) = {
		check_blockers, check_blocks, check_devices, check_disks, check_open_files, check_networks, check_chardevs,
		check_displays,
	};
	struct check c = { .qmp = q, .at = at, .o = { .tell = tell, .ctx = ctx } };

	for (size_t i = 0; i < FT_ARRAY_LEN(checks); i++)
		checks[i](&c);
	return c.o.nr;
}

/* 'T' in /proc/PID/stat, after the name in brackets: a signal or a debugger stopped the process. */
static bool is_stopped(pid_t pid)
{
	struct ft_blob stat;
	const char *state;
	char path[64];
	bool stopped;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (ft_read_file(path, 4096, &stat))
		return false;
	state = strrchr((const char *)stat.data, ')');
	stopped = state && (!strncmp(state, ") T", 3) || !strncmp(state, ") t", 3));
	ft_blob_free(&stat);
	return stopped;
}

static void say_mute(struct check *c, const char *why)
{
	int pid = (int)c->at->pid;

	if (is_stopped(c->at->pid))
		ft_obstacle(&c->o, "QMP socket %s does not answer: QEMU (process %d) is stopped: let it run (kill -CONT %d)", c->at->qmp,
		      pid, pid);
	else
		ft_obstacle(&c->o, "QMP socket %s: %s: end the other client, or look at process %d", c->at->qmp, why, pid);
}

static bool has_ram_file(const struct ft_attach *at)
{
	struct stat st;

	return stat(at->ram, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size == at->memory;
}

int ft_qemu_check(const struct ft_attach *at, void (*obstacle)(void *ctx, const char *line), void *ctx)
{
	struct check c = { .at = at, .o = { .tell = obstacle, .ctx = ctx } };
	struct ft_qmp *q = NULL;
	char why[320] = "out of memory";
	int fd = ft_attach_pidfd(at);

	if (fd < 0) {
		ft_obstacle(&c.o, "its QEMU is gone: start the guest");
		return 1;
	}
	close(fd);
	if (!has_ram_file(at))
		ft_obstacle(&c.o, "its RAM file %s is gone or has another size, so its memory cannot be read: stop it and start it again "
		      "(ft-guest stop %s; ft-guest start %s)", at->ram, at->guest, at->guest);
	if (ft_qmp_try(at->qmp, FT_QEMU_CALL_MS, &q, why, sizeof(why))) {
		say_mute(&c, why);
		return (int)c.o.nr;
	}
	c.o.nr += qemu_obstacles(q, at, obstacle, ctx);
	ft_qmp_close(q);
	return (int)c.o.nr;
}
