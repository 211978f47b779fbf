// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * ft-guest: starts, stops and lists guests under stock QEMU, from guest files; gives a Xen domain its disks. man ft-guest(8).
 */
#include "checkpoint/qemu.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/hv.h"
#include "ft/record.h"

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/pidfd.h>
#include <unistd.h>

/* Documented in ft-guest(8). */
enum { DONE = 0, FAILED = 1, USAGE = 2, UNKNOWN = 3, REFUSED = 4 };

#define QMP_TIMEOUT_MS 5000
#define QMP_BRIEF_MS 500                /* somebody else may have the socket */
#define STOP_TIMEOUT_S 60

struct options {
	bool force, kill, json;
	unsigned timeout_s;             /* 0 with --kill */
	const char *guest;              /* checked; NULL: none given */
	const char *domain;             /* that gets the disk */
	unsigned disk;                  /* of a target NAME:N */
	bool replica;                   /* ... NAME:N:replica */
};

/* --- one command at a time works on a guest --- */

/* A lock on the guest's run directory itself leaves no file behind. */
static int lock_guest_when(const char *guest, int how)
{
	char dir[2 * FT_PATH_MAX];
	int fd, rc = ft_run_path(dir, sizeof(dir), guest, "");

	if (!rc)
		rc = ft_mkdir_p(dir, 0700);
	fd = rc ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		rc = rc ? rc : -errno;
		ft_err("guest %s: cannot make its directory %s: %s%s", guest, dir, strerror(-rc), rc == -EACCES ? ": run as root" : "");
		return -1;
	}
	if (flock(fd, LOCK_EX | how) < 0) {
		ft_err("guest %s: another ft-guest is at work on it", guest);
		close(fd);
		return -1;
	}
	return fd;
}

static int lock_guest(const char *guest)
{
	return lock_guest_when(guest, LOCK_NB);
}

static void unlock_guest(const char *guest, int fd)
{
	char dir[2 * FT_PATH_MAX];

	if (!ft_run_path(dir, sizeof(dir), guest, ""))
		rmdir(dir);             /* only if nothing is in it */
	close(fd);
}

/* --- what the durable record allows --- */

static int load_record(const char *guest, struct ft_record *r)
{
	return ft_record_load(NULL, ft_conf()->state_dir, guest, r);
}

/* NULL: it may start here. Else why not. */
static const char *why_not_start(const struct ft_record *r)
{
	switch (r->role) {
	case FT_ROLE_PRIMARY:
		return "was protected here when it ended, and may have been taken over by";
	case FT_ROLE_ARMED:
		return "has its replica here and runs on";
	case FT_ROLE_STOOD_DOWN:
		return "was handed over to";
	case FT_ROLE_NONE:
	case FT_ROLE_DISARMED:
	case FT_ROLE_RUNNING:
		break;
	}
	return NULL;
}

/* @how: what makes it start all the same. */
static int check_start(const char *guest, bool force, const char *how)
{
	struct ft_record r;
	const char *why;
	int rc = load_record(guest, &r);

	if (rc == -EACCES)              /* logged, as all of them */
		return FAILED;
	if (rc) {
		if (force)
			return DONE;
		ft_err("guest %s: make sure that it runs nowhere else, then start it with %s", guest, how);
		return REFUSED;
	}
	why = why_not_start(&r);
	if (!why)
		return DONE;
	if (force) {
		ft_warn("guest %s %s %s (generation %" PRIu64 "): started all the same", guest, why, r.peer, r.generation);
		r.role = FT_ROLE_NONE;          /* a new instance: what was promised was promised of the old one */
		return ft_record_save(NULL, ft_conf()->state_dir, guest, &r) ? FAILED : DONE;
	}
	ft_err("guest %s %s %s (generation %" PRIu64 "): ask there with 'ft-ctl status %s'; only if it runs nowhere, start it "
	       "with %s", guest, why, r.peer, r.generation, guest, how);
	return REFUSED;
}

static int check_stop(const char *guest, bool force)
{
	struct ft_record r;
	int rc = load_record(guest, &r);

	if (rc == -EACCES)
		return FAILED;
	if (force || rc)
		return DONE;
	if (r.role == FT_ROLE_ARMED) {
		ft_err("guest %s runs on %s; here is only its replica: stop the guest there, or end its protection there with "
		       "'ft-ctl unprotect %s'", guest, r.peer, guest);
		return REFUSED;
	}
	if (r.role != FT_ROLE_PRIMARY)
		return DONE;
	ft_err("guest %s is protected towards %s, which would take over: end that first with 'ft-ctl unprotect %s', or stop "
	       "it with --force", guest, r.peer, guest);
	return REFUSED;
}

/* --- start --- */

/* What a guest that died left behind goes before it starts again. 0: nothing runs. */
static int clear_dead(const char *guest, struct ft_attach *at)
{
	int rc = ft_attach_load(guest, at);

	if (rc == -ENOENT)
		return 0;
	if (rc == -ESRCH) {
		ft_qemu_cleanup(at);
		return ft_attach_remove(guest);
	}
	return rc ? rc : -EEXIST;
}

static int say_running(const struct ft_attach *at)
{
	ft_info("guest %s runs already (pid %d)", at->guest, (int)at->pid);
	return DONE;
}

/* A guest whose disk's server was killed waits for the next one. */
static int serve_again(struct ft_attach *at)
{
	bool again = false;

	for (unsigned i = 0; i < at->nr_disks; i++) {
		if (ft_disk_served(&at->disk[i]))
			continue;
		if (ft_disk_serve(at, i, false))
			return FAILED;
		ft_warn("guest %s: the server of its disk %s had died and is started again", at->guest, at->disk[i].image);
		again = true;
	}
	return again && ft_attach_save(at) ? FAILED : DONE;
}

/* Did QEMU stop it since a disk of it had no room? Nobody answers while it is protected: ft-protect sees to it then. */
static bool stands_still(const struct ft_attach *at, bool let_run)
{
	char why[320];
	struct ft_qmp *q;
	json_t *status = NULL;
	const char *s;
	bool still;

	if (at->hypervisor == FT_HYPERVISOR_XEN || ft_qmp_try(at->qmp, QMP_BRIEF_MS, &q, why, sizeof(why)))
		return false;
	still = !ft_qmp_call(q, "query-status", NULL, -1, QMP_TIMEOUT_MS, &status);
	s = json_string_value(json_object_get(status, "status"));
	still = still && s && !strcmp(s, "io-error");
	json_decref(status);
	if (still && let_run && ft_qmp_call(q, "cont", NULL, -1, QMP_TIMEOUT_MS, NULL))
		ft_warn("guest %s: %s", at->guest, ft_qmp_error(q));
	ft_qmp_close(q);
	return still;
}

static void let_run(const struct ft_attach *at)
{
	if (stands_still(at, true))
		ft_warn("guest %s stood still since a disk of it had no room: it goes on, and stands still again if there is none", at->guest);
}

static int start_locked(const struct ft_spec *spec, bool force)
{
	struct ft_qemu_launch l = { .spec = spec, .kind = FT_QEMU_GUEST };
	struct ft_attach at;
	int rc = clear_dead(spec->name, &at);

	if (rc == -EEXIST && serve_again(&at))
		return FAILED;
	if (rc == -EEXIST) {
		let_run(&at);
		return say_running(&at);
	}
	if (!rc)
		rc = ft_disk_recover(spec, force);
	if (rc == -EUCLEAN)
		return REFUSED;
	if (!rc)
		rc = ft_qemu_start(&l, &at);
	if (rc)
		return FAILED;
	rc = ft_attach_save(&at);
	if (rc) {
		ft_qemu_cleanup(&at);
		return FAILED;
	}
	printf("%s runs: %s, %s, QEMU %s, pid %d\n", spec->name, ft_accel_name(at.accel), at.machine, at.qemu_version,
	       (int)at.pid);
	return DONE;
}

/* Domains are the toolstack's: it starts them, and who stops one without it leaves half of it behind. */
static int leave_to_xl(const char *guest, const char *verb)
{
	ft_err("guest %s is a Xen domain: 'xl %s' does that", guest, verb);
	return REFUSED;
}

/* A domain that runs has its disks' servers again; starting one is xl's. */
static int start_domain(const struct ft_spec *spec)
{
	struct ft_attach at;

	if (ft_attach_load(spec->name, &at))
		return leave_to_xl(spec->name, "create");
	for (unsigned i = 0; i < at.nr_disks; i++) {
		unsigned device;

		if (!ft_disk_device(&at, i, &device) && ft_disk_serve(&at, i, false))
			return FAILED;
	}
	ft_info("guest %s runs already (domain %u)", at.guest, at.domid);
	return at.nr_disks && ft_attach_save(&at) ? FAILED : DONE;
}

static int load_spec(const char *guest, struct ft_spec *spec)
{
	int rc = ft_spec_load(guest, spec);

	return !rc ? DONE : rc == -ENOENT ? UNKNOWN : rc == -EINVAL ? USAGE : FAILED;
}

static int cmd_start(const struct options *o)
{
	struct ft_spec spec;
	struct ft_attach at;
	int rc = load_spec(o->guest, &spec), fd;

	if (rc)
		return rc;
	if (spec.hypervisor == FT_HYPERVISOR_XEN)
		return start_domain(&spec);
	/* What runs here is not started, so nothing forbids it. */
	rc = ft_attach_load(o->guest, &at) ? check_start(o->guest, o->force, "--force") : DONE;
	if (rc)
		return rc;
	fd = lock_guest(o->guest);
	if (fd < 0)
		return FAILED;
	rc = start_locked(&spec, o->force);
	unlock_guest(o->guest, fd);
	return rc;
}

/* --- a Xen domain's disks: what etc/xen/block-ft has us do --- */

/* The domain is the guest itself, or its replica: a disk is not given to others, nor to a guest that arrives by migration. */
static int check_domain(const struct options *o)
{
	char want[FT_NAME_MAX + 16];

	snprintf(want, sizeof(want), "%s%s", o->guest, o->replica ? "--replica" : "");
	if (!o->domain || !strcmp(o->domain, want))
		return DONE;
	ft_err("guest %s: domain %s is not %s, whose disk this is", o->guest, o->domain, want);
	return REFUSED;
}

static int plan_disks(const struct options *o, struct ft_spec *spec, struct ft_attach *at)
{
	int rc = load_spec(o->guest, spec);

	if (rc)
		return rc;
	if (spec->hypervisor != FT_HYPERVISOR_XEN || o->disk >= spec->nr_disks) {
		ft_err("guest %s: its guest file has no [disk] number %u of a Xen guest", o->guest, o->disk + 1);
		return UNKNOWN;
	}
	*at = (struct ft_attach){ .hypervisor = FT_HYPERVISOR_XEN };
	snprintf(at->guest, sizeof(at->guest), "%s", o->guest);
	return ft_disk_plan_here(spec, at) ? FAILED : DONE;
}

/* Once for all of a guest's disks: what is served is in use, and was looked at when it was not. */
static int recover_disks(const struct options *o, const struct ft_spec *spec, const struct ft_attach *at)
{
	char how[FT_NAME_MAX + 64];
	int rc;

	snprintf(how, sizeof(how), "target=%s:%u:force in its xl file for this one start", o->guest, o->disk);
	rc = check_start(o->guest, o->force, how);
	for (unsigned i = 0; i < at->nr_disks; i++)
		if (ft_disk_served(&at->disk[i]))
			return rc;
	if (!rc)
		rc = ft_disk_recover(spec, o->force);
	return rc == -EUCLEAN ? REFUSED : rc < 0 ? FAILED : rc;
}

static int attach_locked(const struct options *o)
{
	struct ft_attach at;
	struct ft_spec spec;
	unsigned device;
	int rc = plan_disks(o, &spec, &at);

	if (rc)
		return rc;
	if (!ft_disk_device(&at, o->disk, &device)) {
		ft_err("guest %s: its disk %s is /dev/nbd%u already: if no domain has it, 'ft-guest disk-detach %s:%u' lets go of it",
		       o->guest, at.disk[o->disk].image, device, o->guest, o->disk);
		return REFUSED;
	}
	ft_disk_end_one(&at, o->disk);
	if (!o->replica)
		rc = recover_disks(o, &spec, &at);
	if (rc)
		return rc;
	if (ft_disk_serve(&at, o->disk, o->replica) || ft_disk_device(&at, o->disk, &device))
		return FAILED;
	printf("/dev/nbd%u\n", device);
	return DONE;
}

/* Hotplug scripts of several disks run at once, so here one waits for another. */
static int locked(const struct options *o, int (*run)(const struct options *o))
{
	int fd = lock_guest_when(o->guest, 0), rc;

	if (fd < 0)
		return FAILED;
	rc = run(o);
	unlock_guest(o->guest, fd);
	return rc;
}

static int cmd_disk_attach(const struct options *o)
{
	int rc = check_domain(o);

	return rc ? rc : locked(o, attach_locked);
}

/* Also when the guest file is gone, or says something else by now. */
static int detach_locked(const struct options *o)
{
	struct ft_attach at = { .hypervisor = FT_HYPERVISOR_XEN };

	snprintf(at.guest, sizeof(at.guest), "%s", o->guest);
	return ft_disk_detach(&at, o->disk) ? FAILED : DONE;
}

static int cmd_disk_detach(const struct options *o)
{
	return locked(o, detach_locked);
}

/* --- stop --- */

static bool wait_dead(int pidfd, unsigned timeout_s)
{
	uint64_t end = ft_now_ns() + timeout_s * FT_S_NS, now;
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	while ((now = ft_now_ns()) < end)
		if (poll(&p, 1, (int)((end - now) / FT_MS_NS) + 1) == 1)
			return true;
	return false;
}

/* Either socket will do: the replicator or the guard may hold one. */
static int tell_qemu(const struct ft_attach *at, const char *command)
{
	const char *const paths[] = { at->qmp, at->qmp_guard };
	char why[320] = "";
	struct ft_qmp *q;
	int rc = 0;

	for (unsigned i = 0; i < 2; i++) {
		rc = ft_qmp_try(paths[i], QMP_TIMEOUT_MS / 2, &q, why, sizeof(why));
		if (rc)
			continue;
		rc = ft_qmp_call(q, command, NULL, -1, QMP_TIMEOUT_MS, NULL);
		if (rc)
			snprintf(why, sizeof(why), "%s", ft_qmp_error(q));
		ft_qmp_close(q);
		break;
	}
	if (rc && rc != -EPIPE)
		ft_warn("guest %s: cannot tell QEMU to %s: %s", at->guest, command, why);
	return rc == -EPIPE ? 0 : rc;
}

/* The guest's own shutdown, else QEMU's end in order; ft_qemu_cleanup kills what is still there. */
static void shut_down(struct ft_attach *at, int pidfd, const struct options *o)
{
	if (!o->kill) {
		(void)serve_again(at);          /* it syncs its disks */
		if (!tell_qemu(at, "system_powerdown") && wait_dead(pidfd, o->timeout_s))
			return;
		ft_warn("guest %s: did not shut down within %u s: it is ended now", at->guest, o->timeout_s);
	}
	if (!tell_qemu(at, "quit"))
		wait_dead(pidfd, QMP_TIMEOUT_MS / 1000);
}

static int stop_locked(const struct options *o)
{
	struct ft_attach at;
	int rc = ft_attach_load(o->guest, &at), pidfd;

	if (rc == -EINVAL)
		return FAILED;
	if (rc == -ENOENT) {
		ft_err("guest %s does not run here", o->guest);
		return UNKNOWN;
	}
	if (at.hypervisor == FT_HYPERVISOR_XEN)
		return leave_to_xl(o->guest, o->kill ? "destroy" : "shutdown");
	pidfd = rc ? -1 : ft_attach_pidfd(&at);
	if (pidfd >= 0) {
		shut_down(&at, pidfd, o);
		close(pidfd);
	}
	ft_qemu_cleanup(&at);
	ft_attach_remove(o->guest);
	printf("%s stopped\n", o->guest);
	return DONE;
}

static int cmd_stop(const struct options *o)
{
	int rc = check_stop(o->guest, o->force), fd;

	if (rc)
		return rc;
	fd = lock_guest(o->guest);
	if (fd < 0)
		return FAILED;
	rc = stop_locked(o);
	unlock_guest(o->guest, fd);
	return rc;
}

/* --- list, status --- */

struct guest_state {
	const char *state;              /* running, stopped, dead, replica, unknown */
	struct ft_attach at;            /* running */
	struct ft_record record;
};

/* Is there a file that says so? One that is not there is nobody's fault here. */
static bool is_domain(const char *guest)
{
	char path[2 * FT_PATH_MAX];
	struct ft_spec spec;

	snprintf(path, sizeof(path), "%s/%s.conf", ft_conf()->guests_dir, guest);
	return !access(path, F_OK) && !ft_spec_load(guest, &spec) && spec.hypervisor == FT_HYPERVISOR_XEN;
}

/* xl starts and ends domains without us, so what we remember of one does not say whether it runs. */
static const char *domain_state(const char *guest, struct ft_attach *at)
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

static void look_at(const char *guest, struct guest_state *g)
{
	char path[2 * FT_PATH_MAX];
	int rc = ft_attach_load(guest, &g->at);

	g->state = rc == 0 ? "running" : rc == -ESRCH ? "dead" : rc == -ENOENT ? "stopped" : "unknown";
	if (rc == -ENOENT && !ft_run_path(path, sizeof(path), guest, "qmp.sock") && ft_qmp_listening(path))
		g->state = "replica";
	if ((rc == -ENOENT || rc == -ESRCH) && is_domain(guest))
		g->state = domain_state(guest, &g->at);
	if (load_record(guest, &g->record))
		g->record = (struct ft_record){ 0 };
}

static json_t *guest_json(const char *guest, const struct guest_state *g)
{
	json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:s?}", "guest", guest, "state", g->state,
			      "role", ft_role_name(g->record.role), "generation", (json_int_t)g->record.generation,
			      "peer", g->record.peer[0] ? g->record.peer : NULL);

	if (!strcmp(g->state, "running") && g->at.hypervisor == FT_HYPERVISOR_XEN)
		json_object_update_new(j, json_pack("{s:I, s:s, s:s, s:I}", "domid", (json_int_t)g->at.domid, "accel", "hap",
						    "xen_version", g->at.xen_version, "memory", (json_int_t)g->at.memory));
	else if (!strcmp(g->state, "running"))
		json_object_update_new(j, json_pack("{s:i, s:s, s:s, s:s, s:I}", "pid", (int)g->at.pid, "accel", ft_accel_name(g->at.accel),
						    "machine", g->at.machine, "qemu_version", g->at.qemu_version,
						    "memory", (json_int_t)g->at.memory));
	return j;
}

static void print_guest(const char *guest, const struct guest_state *g)
{
	char pid[16] = "-", memory[24] = "-";
	bool runs = !strcmp(g->state, "running"), xen = g->at.hypervisor == FT_HYPERVISOR_XEN;

	if (runs) {
		snprintf(pid, sizeof(pid), xen ? "dom%d" : "%d", xen ? (int)g->at.domid : (int)g->at.pid);
		snprintf(memory, sizeof(memory), "%" PRIu64 "M", g->at.memory >> 20);
	}
	printf("%-20s %-8s %8s %8s %-5s %-12s %s\n", guest, g->state, pid, memory, !runs ? "-" : xen ? "hap" : ft_accel_name(g->at.accel),
	       ft_role_name(g->record.role), g->record.peer[0] ? g->record.peer : "-");
}

static void print_header(void)
{
	printf("%-20s %-8s %8s %8s %-5s %-12s %s\n", "GUEST", "STATE", "PID", "MEMORY", "ACCEL", "ROLE", "PEER");
}

static void print_json(json_t *j)
{
	json_dumpf(j, stdout, JSON_INDENT(2));
	putchar('\n');
	json_decref(j);
}

static int cmd_status(const struct options *o)
{
	struct guest_state g;

	look_at(o->guest, &g);
	if (o->json) {
		print_json(guest_json(o->guest, &g));
	} else {
		print_header();
		print_guest(o->guest, &g);
	}
	if (!strcmp(g.state, "running") && stands_still(&g.at, false))
		ft_warn("guest %s stands still: a disk of it has no room: make some, and say 'ft-guest start %s'", o->guest, o->guest);
	return !strcmp(g.state, "running") ? DONE : UNKNOWN;
}

/* Add the guest names that are in @dir, with @suffix taken off, to the set @names. */
static void collect(const char *dir, const char *suffix, json_t *names)
{
	DIR *d = opendir(dir);
	size_t cut = strlen(suffix);

	for (struct dirent *e; d && (e = readdir(d)); ) {
		size_t len = strlen(e->d_name);

		if (len <= cut || strcmp(e->d_name + len - cut, suffix))
			continue;
		e->d_name[len - cut] = 0;
		if (ft_name_ok(e->d_name))
			json_object_set_new(names, e->d_name, json_true());
	}
	if (d)
		closedir(d);
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static const char **sorted(json_t *names, size_t *n)
{
	const char **v = calloc(json_object_size(names) + 1, sizeof(*v)), *name;
	json_t *unused;

	*n = 0;
	if (!v)
		return NULL;
	json_object_foreach(names, name, unused)
		v[(*n)++] = name;
	qsort(v, *n, sizeof(*v), compare_names);
	return v;
}

static int cmd_list(const struct options *o)
{
	json_t *names = json_object(), *all = json_array();
	char running[2 * FT_PATH_MAX];
	const char **v;
	size_t n;

	snprintf(running, sizeof(running), "%s/guests", ft_conf()->run_dir);
	collect(ft_conf()->guests_dir, ".conf", names);
	collect(running, "", names);
	v = sorted(names, &n);
	if (!o->json)
		print_header();
	for (size_t i = 0; i < n; i++) {
		struct guest_state g;

		look_at(v[i], &g);
		if (o->json)
			json_array_append_new(all, guest_json(v[i], &g));
		else
			print_guest(v[i], &g);
	}
	if (o->json)
		print_json(json_incref(all));
	json_decref(all);
	free(v);
	json_decref(names);
	return DONE;
}

/* --- command line --- */

static const struct command {
	const char *name;
	int (*run)(const struct options *o);
	enum { NOTHING, GUEST, DISK } takes;
	const char *allows;             /* short options */
	const char *help;
} commands[] = {
	{ "start", cmd_start, GUEST, "f", "start NAME [--force]                           start the guest of NAME's guest file" },
	{ "stop", cmd_stop, GUEST, "fkt", "stop NAME [--timeout S] [--kill] [--force]     shut it down, or end it at once" },
	{ "status", cmd_status, GUEST, "j", "status NAME [--json]                           does it run here?" },
	{ "list", cmd_list, NOTHING, "j", "list [--json]                                  all guests of this host" },
	{ "disk-attach", cmd_disk_attach, DISK, "fd", "disk-attach NAME:N[:replica|:force] [--domain D]  a Xen domain's disk: prints its device" },
	{ "disk-detach", cmd_disk_detach, DISK, "", "disk-detach NAME:N                            the domain is gone, or was never made" },
};

static int usage(FILE *to)
{
	fprintf(to, "usage: ft-guest [--config FILE] COMMAND\n");
	for (size_t i = 0; i < FT_ARRAY_LEN(commands); i++)
		fprintf(to, "  %s\n", commands[i].help);
	return to == stdout ? DONE : USAGE;
}

static const struct option long_options[] = {
	{ "config", required_argument, NULL, 'c' },
	{ "force", no_argument, NULL, 'f' },
	{ "kill", no_argument, NULL, 'k' },
	{ "timeout", required_argument, NULL, 't' },
	{ "json", no_argument, NULL, 'j' },
	{ "domain", required_argument, NULL, 'd' },
	{ "help", no_argument, NULL, 'h' },
	{ "version", no_argument, NULL, 'V' },
	{ 0 }
};

struct parsed {
	struct options o;
	const char *config;
	char given[8];                  /* command options that were there */
	bool help, version;
};

static bool parse_seconds(const char *text, unsigned *out)
{
	char rest;

	return strlen(text) <= 5 && sscanf(text, "%5u%c", out, &rest) == 1;
}

static int parse_options(int argc, char **argv, struct parsed *p)
{
	int c;

	while ((c = getopt_long(argc, argv, "c:hV", long_options, NULL)) >= 0) {
		if (strchr("fkjtd", c) && !strchr(p->given, c))
			p->given[strlen(p->given)] = (char)c;
		switch (c) {
		case 'c': p->config = optarg; break;
		case 'f': p->o.force = true; break;
		case 'k': p->o.kill = true; break;
		case 'j': p->o.json = true; break;
		case 'd': p->o.domain = optarg; break;
		case 'h': p->help = true; break;
		case 'V': p->version = true; break;
		case 't':
			if (parse_seconds(optarg, &p->o.timeout_s))
				break;
			ft_err("--timeout takes seconds, not '%s'", optarg);
			return -EINVAL;
		default:
			return -EINVAL;
		}
	}
	return 0;
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(commands); i++)
		if (!strcmp(commands[i].name, name))
			return &commands[i];
	ft_err("there is no command '%s'", name);
	return NULL;
}

static const char *long_name(char c)
{
	const struct option *l = long_options;

	while (l->name && l->val != c)
		l++;
	return l->name;
}

/* NAME:N, NAME:N:replica, NAME:N:force. @text is cut up. */
static bool parse_disk(char *text, struct options *o)
{
	char *number = strchr(text, ':'), *word = number ? strchr(number + 1, ':') : NULL, rest;

	if (number)
		*number++ = 0;
	if (word)
		*word++ = 0;
	o->replica = word && !strcmp(word, "replica");
	o->force |= word && !strcmp(word, "force");
	return ft_name_ok(text) && number && strlen(number) == 1 && sscanf(number, "%u%c", &o->disk, &rest) == 1 &&
	       o->disk < FT_DISKS_MAX && (!word || o->replica || !strcmp(word, "force"));
}

/* Options and arguments that the command does not know are errors, not noise. */
static bool fits(const struct command *cmd, struct parsed *p, int argc, char **argv)
{
	static const char *const wants[] = { "no name", "the name of one guest", "a disk as in vm1:0" };

	if (argc - optind != 1 + (cmd->takes != NOTHING)) {
		ft_err("%s takes %s", cmd->name, wants[cmd->takes]);
		return false;
	}
	if (cmd->takes == DISK && !parse_disk(argv[optind + 1], &p->o)) {
		ft_err("%s takes %s", cmd->name, wants[DISK]);
		return false;
	}
	for (const char *c = p->given; *c; c++) {
		if (!strchr(cmd->allows, *c)) {
			ft_err("%s has no option --%s", cmd->name, long_name(*c));
			return false;
		}
	}
	if (cmd->takes == GUEST && !ft_name_ok(argv[optind + 1])) {
		ft_err("'%s' is no valid guest name", argv[optind + 1]);
		return false;
	}
	return true;
}

int main(int argc, char **argv)
{
	struct parsed p = { .o = { .timeout_s = STOP_TIMEOUT_S } };
	static struct ft_conf conf;
	const struct command *cmd;

	ft_log_init("ft-guest");
	if (parse_options(argc, argv, &p))
		return usage(stderr);
	if (p.help)
		return usage(stdout);
	if (p.version) {
		printf("ft-guest %s\n", FT_VERSION);
		return DONE;
	}
	if (optind == argc)
		return usage(stderr);
	cmd = find_command(argv[optind]);
	if (!cmd || !fits(cmd, &p, argc, argv))
		return usage(stderr);
	if (ft_conf_load(p.config, &conf))
		return USAGE;
	ft_conf_set(&conf);
	p.o.guest = cmd->takes != NOTHING ? argv[optind + 1] : NULL;
	return cmd->run(&p.o);
}
