// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * ft-guest: starts, stops and lists guests under stock QEMU, from guest files; gives a Xen domain its disks. man ft-guest(8).
 */
#include "checkpoint/guest.h"
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

#define QMP_TIMEOUT_MS 5000
#define QMP_BRIEF_MS 500                /* somebody else may have the socket */
#define STOP_TIMEOUT_S 60

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
	return GUEST_DONE;
}

/* A guest whose disk's server was killed waits for the next one. */
static int serve_again(struct ft_attach *at)
{
	bool again = false;

	for (unsigned i = 0; i < at->nr_disks; i++) {
		if (ft_disk_served(&at->disk[i]))
			continue;
		if (ft_disk_serve(at, i, false))
			return GUEST_FAILED;
		ft_warn("guest %s: the server of its disk %s had died and is started again", at->guest, at->disk[i].image);
		again = true;
	}
	return again && ft_attach_save(at) ? GUEST_FAILED : GUEST_DONE;
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
		return GUEST_FAILED;
	if (rc == -EEXIST) {
		let_run(&at);
		return say_running(&at);
	}
	if (!rc)
		rc = ft_disk_recover(spec, force);
	if (rc == -EUCLEAN)
		return GUEST_REFUSED;
	if (!rc && force)
		rc = guest_claim(spec->name);
	if (!rc)
		rc = ft_qemu_start(&l, &at);
	if (rc)
		return rc == GUEST_REFUSED ? GUEST_REFUSED : GUEST_FAILED;
	rc = ft_attach_save(&at);
	if (rc) {
		ft_qemu_cleanup(&at);
		return GUEST_FAILED;
	}
	printf("%s runs: %s, %s, QEMU %s, pid %d\n", spec->name, ft_accel_name(at.accel), at.machine, at.qemu_version,
	       (int)at.pid);
	return GUEST_DONE;
}

static int cmd_start(const struct guest_options *o)
{
	struct ft_spec spec;
	struct ft_attach at;
	int rc = guest_load_spec(o->guest, &spec), fd;

	if (rc)
		return rc;
	if (spec.hypervisor == FT_HYPERVISOR_XEN)
		return domain_start(&spec, o->force);
	/* What runs here is not started, so nothing forbids it. */
	rc = ft_attach_load(o->guest, &at) ? guest_may_start(o->guest, o->force, "--force") : GUEST_DONE;
	if (rc)
		return rc;
	fd = guest_lock(o->guest, LOCK_NB);
	if (fd < 0)
		return GUEST_FAILED;
	rc = start_locked(&spec, o->force);
	guest_unlock(o->guest, fd);
	return rc;
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
static void shut_down(struct ft_attach *at, int pidfd, const struct guest_options *o)
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

static int stop_locked(const struct guest_options *o)
{
	struct ft_attach at;
	int rc = ft_attach_load(o->guest, &at), pidfd;

	if (rc == -EINVAL)
		return GUEST_FAILED;
	if (rc == -ENOENT ? guest_is_domain(o->guest) : at.hypervisor == FT_HYPERVISOR_XEN)
		return domain_stop(o);
	if (rc == -ENOENT) {
		ft_err("guest %s does not run here", o->guest);
		return GUEST_UNKNOWN;
	}
	pidfd = rc ? -1 : ft_attach_pidfd(&at);
	if (pidfd >= 0) {
		shut_down(&at, pidfd, o);
		close(pidfd);
	}
	ft_qemu_cleanup(&at);
	ft_attach_remove(o->guest);
	printf("%s stopped\n", o->guest);
	return GUEST_DONE;
}

static int cmd_stop(const struct guest_options *o)
{
	int rc = guest_may_stop(o->guest, o->force), fd;

	if (rc)
		return rc;
	fd = guest_lock(o->guest, LOCK_NB);
	if (fd < 0)
		return GUEST_FAILED;
	rc = stop_locked(o);
	guest_unlock(o->guest, fd);
	return rc;
}

/* --- list, status --- */

struct guest_state {
	const char *state;              /* running, stopped, dead, replica, unknown */
	struct ft_attach at;            /* running */
	struct ft_record record;
};

static void look_at(const char *guest, struct guest_state *g)
{
	char path[2 * FT_PATH_MAX];
	int rc = ft_attach_load(guest, &g->at);

	g->state = rc == 0 ? "running" : rc == -ESRCH ? "dead" : rc == -ENOENT ? "stopped" : "unknown";
	if (rc == -ENOENT && !ft_run_path(path, sizeof(path), guest, "qmp.sock") && ft_qmp_listening(path))
		g->state = "replica";
	if ((rc == -ENOENT || rc == -ESRCH) && guest_is_domain(guest))
		g->state = domain_state(guest, &g->at);
	if (ft_record_load(NULL, ft_conf()->state_dir, guest, &g->record))
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

static int cmd_status(const struct guest_options *o)
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
	return !strcmp(g.state, "running") ? GUEST_DONE : GUEST_UNKNOWN;
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

static int cmd_list(const struct guest_options *o)
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
	return GUEST_DONE;
}

/* --- command line --- */

static const struct command {
	const char *name;
	int (*run)(const struct guest_options *o);
	enum { NOTHING, GUEST, DISK } takes;
	const char *allows;             /* short options */
	const char *help;
} commands[] = {
	{ "start", cmd_start, GUEST, "f", "start NAME [--force]                           start the guest of NAME's guest file" },
	{ "stop", cmd_stop, GUEST, "fkt", "stop NAME [--timeout S] [--kill] [--force]     shut it down, or end it at once" },
	{ "status", cmd_status, GUEST, "j", "status NAME [--json]                           does it run here?" },
	{ "list", cmd_list, NOTHING, "j", "list [--json]                                  all guests of this host" },
	{ "disk-attach", domain_disk_attach, DISK, "fd", "disk-attach NAME:N[:replica|:force] [--domain D]  a Xen domain's disk: prints its device" },
	{ "disk-detach", domain_disk_detach, DISK, "f", "disk-detach NAME:N [--force]                  no domain has it any more (--force: nobody looks)" },
};

static int usage(FILE *to)
{
	fprintf(to, "usage: ft-guest [--config FILE] COMMAND\n");
	for (size_t i = 0; i < FT_ARRAY_LEN(commands); i++)
		fprintf(to, "  %s\n", commands[i].help);
	fprintf(to, "status: 0 done, 1 failed, 2 usage or configuration, 3 no such guest here, 4 refused\n");
	return to == stdout ? GUEST_DONE : GUEST_USAGE;
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
	struct guest_options o;
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
static bool parse_disk(char *text, struct guest_options *o)
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
		return GUEST_DONE;
	}
	if (optind == argc)
		return usage(stderr);
	cmd = find_command(argv[optind]);
	if (!cmd || !fits(cmd, &p, argc, argv))
		return usage(stderr);
	if (ft_conf_load(p.config, &conf))
		return GUEST_USAGE;
	ft_conf_set(&conf);
	p.o.guest = cmd->takes != NOTHING ? argv[optind + 1] : NULL;
	return cmd->run(&p.o);
}
