// SPDX-License-Identifier: GPL-3.0-or-later
/* main_ft-ctl.c - ask ft-protect, or ftd's child, over the local control socket. */
#include "ft/conf.h"
#include "ft/control.h"
#include "ft/record.h"

#include <dirent.h>
#include <getopt.h>
#include <stdio.h>

static const char usage[] =
	"usage: ft-ctl [--config FILE] COMMAND [GUEST] [options]\n"
	"\n"
	"  list [--json]             guests known to this host: role and state\n"
	"  status [GUEST] [--json]   everything about one guest, or about all\n"
	"  failover GUEST            planned: move the guest to its backup, lose nothing\n"
	"  failover --force GUEST    on the backup: start the replica although the primary may live (dangerous)\n"
	"  unprotect GUEST           end protection in order; the guest runs on\n"
	"  unprotect --force GUEST   on the primary: the backup is dead for certain, give it up, output opens (dangerous);\n"
	"                            on the backup: the guest lives elsewhere for certain, give the replica up (dangerous)\n"
	"  verify GUEST              compare all of the replica's memory and disks with the guest's\n"
	"  drill GUEST               load the replica in a scratch guest without network, see that it runs\n"
	"\n"
	"Exit status: 0 done, 1 it failed (the line says why), 2 usage or configuration, 3 nobody serves this guest here.\n";

enum { FAILED = 1, USAGE = 2, NOBODY = 3 };

#define STATUS_MS 3000                  /* who lives answers at once */
#define VERIFY_MS (24 * 3600 * 1000)    /* disks may be large */

struct options {
	bool json, force;
};

struct command {
	const char *name;
	bool needs_guest;
	unsigned timeout_ms;
	int (*run)(const struct command *c, const char *guest, const struct options *o);
};

/* --- asking --- */

/* The primary's socket if somebody serves it, else the backup's: *@role. -ECONNREFUSED: nobody. */
static int ask(const char *guest, json_t *request, unsigned timeout_ms, json_t **answer, const char **role)
{
	static const char *const roles[] = { "primary", "backup" };
	char path[FT_PATH_MAX], sock[16];
	int rc = -ECONNREFUSED;

	for (size_t i = 0; i < FT_ARRAY_LEN(roles); i++) {
		*role = roles[i];
		snprintf(sock, sizeof(sock), "%s.sock", roles[i]);
		rc = ft_run_path(path, sizeof(path), guest, sock);
		if (!rc)
			rc = ft_control_call(path, request, timeout_ms, answer);
		if (rc != -ECONNREFUSED && rc != -ENOENT)
			break;
	}
	json_decref(request);
	return rc == -ENOENT ? -ECONNREFUSED : rc;
}

static int complain(const char *guest, int rc)
{
	if (rc == -ECONNREFUSED) {
		ft_err("%s is neither protected nor replicated on this host", guest);
		return NOBODY;
	}
	if (rc == -ETIMEDOUT)
		ft_err("%s: no answer in time: ft-protect or ftd is stalled", guest);
	else if (rc == -EACCES || rc == -EPERM)
		ft_err("%s: %s: run as root", guest, strerror(-rc));
	else if (rc == -ECONNRESET || rc == -EPIPE)
		ft_err("%s: who serves it here ended before it answered: look again with ft-ctl status %s", guest, guest);
	else
		ft_err("%s: %s", guest, strerror(-rc));
	return FAILED;
}

static void print_json(const json_t *j)
{
	json_dumpf(j, stdout, JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
	putchar('\n');
}

static int run_request(const struct command *c, const char *guest, const struct options *o)
{
	json_t *answer = NULL;
	const char *text, *role;
	int rc = ask(guest, json_pack("{s:s, s:b}", "cmd", c->name, "force", o->force), c->timeout_ms, &answer, &role);

	if (rc)
		return complain(guest, rc);
	if (o->json)
		print_json(answer);
	rc = json_is_true(json_object_get(answer, "ok")) ? 0 : FAILED;
	text = json_string_value(json_object_get(answer, rc ? "error" : "text"));
	if (rc)
		ft_err("%s: %s", guest, text ? text : "failed");
	else if (!o->json)
		printf("%s: %s\n", guest, text ? text : "done");
	json_decref(answer);
	return rc;
}

/* --- what this host knows --- */

/*
 * Of a guest whose program does not tell: the durable record still does. @state: of a program that is there all the
 * same; NULL: nobody is. NULL when there is nothing at all.
 */
static json_t *recorded(const char *guest, const char *role, const char *state)
{
	struct ft_record r = { 0 };

	if (ft_record_load(NULL, ft_conf()->state_dir, guest, &r) || (r.role == FT_ROLE_NONE && !state))
		return NULL;
	return json_pack("{s:b, s:s, s:s, s:s, s:I, s:s}", "ok", 1, "guest", guest, "role", state ? role : "none",
			 "state", state ? state : ft_role_name(r.role), "generation", (json_int_t)r.generation, "peer", r.peer);
}

/* Every promised key is there for everybody who reads it: null where the role has no such thing. */
static void complete(json_t *status)
{
	static const char *const keys[] = {
		"guest", "role", "state", "generation", "peer", "backend", "accel", "tracker", "epoch", "acked_epoch", "interval_ms",
		"dirty_pages", "bytes_dirty", "bytes_sent", "held_packets", "dropped_packets", "in_flight", "staging_bytes",
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(keys); i++)
		if (!json_object_get(status, keys[i]))
			json_object_set_new(status, keys[i], json_null());
	if (!json_object_get(status, "pause_us"))
		json_object_set_new(status, "pause_us", json_pack("{s:n, s:n, s:n}", "p50", "p99", "max"));
	if (!json_object_get(status, "ack_us"))
		json_object_set_new(status, "ack_us", json_pack("{s:n, s:n}", "p50", "p99"));
}

/* NULL: *rc says why; -ECONNREFUSED: nobody knows the guest. */
static json_t *status_of(const char *guest, int *rc)
{
	json_t *answer = NULL;
	const char *role;

	*rc = ask(guest, json_pack("{s:s}", "cmd", "status"), STATUS_MS, &answer, &role);
	if (!*rc || *rc == -EACCES || *rc == -EPERM)
		return answer;
	answer = recorded(guest, role, *rc == -ETIMEDOUT ? "STALLED" : NULL);
	*rc = answer ? 0 : -ECONNREFUSED;
	return answer;
}

static void print_value(const char *key, const json_t *value)
{
	char *text = json_is_string(value) ? strdup(json_string_value(value)) :
		     json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(6));

	printf("  %-18s %s\n", key, text ? text : "?");
	free(text);
}

/* A list (of disks) has a line for each of its members. */
static void print_status(const json_t *s)
{
	json_t *value, *member;
	const char *key;
	size_t i;

	printf("%s\n", json_string_value(json_object_get(s, "guest")));
	json_object_foreach((json_t *)s, key, value) {
		if (!strcmp(key, "ok") || !strcmp(key, "guest") || json_is_null(value))
			continue;
		json_array_foreach(value, i, member)
			print_value(key, member);
		if (!json_is_array(value))
			print_value(key, value);
	}
}

/* Names of the entries of @dir that are a guest's, @suffix cut off, as keys of @names. */
static void collect(const char *dir, const char *suffix, json_t *names)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	while (d && (e = readdir(d))) {
		size_t len = strlen(e->d_name), cut = strlen(suffix);
		char name[FT_NAME_MAX + 1];

		if (len <= cut || strcmp(e->d_name + len - cut, suffix) || len - cut > FT_NAME_MAX)
			continue;
		snprintf(name, sizeof(name), "%.*s", (int)(len - cut), e->d_name);
		if (ft_name_ok(name))
			json_object_set_new(names, name, json_null());
	}
	if (d)
		closedir(d);
}

/* An array with the status of every guest that has one. What may not be asked is said. */
static json_t *status_of_all(int *status)
{
	json_t *names = json_object(), *all = json_array(), *ignored;
	char run[FT_PATH_MAX];
	const char *name;

	if (!ft_run_path(run, sizeof(run), "", ""))
		collect(run, "", names);
	collect(ft_conf()->state_dir, ".record", names);
	json_object_foreach(names, name, ignored) {
		int rc;
		json_t *s = status_of(name, &rc);

		if (s)
			json_array_append_new(all, s);
		else if (rc != -ECONNREFUSED)
			*status = complain(name, rc);
	}
	json_decref(names);
	return all;
}

static int run_status(const struct command *c, const char *guest, const struct options *o)
{
	int status = 0, rc = 0;
	json_t *all = guest ? json_array() : status_of_all(&status), *one = guest ? status_of(guest, &rc) : NULL;
	size_t i;

	(void)c;
	if (guest && !one) {
		json_decref(all);
		return complain(guest, rc);
	}
	if (one)
		json_array_append_new(all, one);
	json_array_foreach(all, i, one)
		if (o->json)
			complete(one);
	if (o->json && guest)
		print_json(json_array_get(all, 0));
	else if (o->json)
		print_json(all);
	else
		json_array_foreach(all, i, one)
			print_status(one);
	json_decref(all);
	return status;
}

static const char *text_of(const json_t *s, const char *key)
{
	const char *text = json_string_value(json_object_get(s, key));

	return text && *text ? text : "-";
}

static int run_list(const struct command *c, const char *guest, const struct options *o)
{
	int status = 0;
	json_t *all = status_of_all(&status), *s;
	size_t i;

	(void)c, (void)guest;
	if (o->json)
		print_json(all);
	else
		printf("%-20s %-9s %-14s %-20s %s\n", "GUEST", "ROLE", "STATE", "PEER", "GENERATION");
	json_array_foreach(all, i, s)
		if (!o->json)
			printf("%-20s %-9s %-14s %-20s %lld\n", text_of(s, "guest"), text_of(s, "role"), text_of(s, "state"),
			       text_of(s, "peer"), (long long)json_integer_value(json_object_get(s, "generation")));
	json_decref(all);
	return status;
}

/* --- the commands --- */

static const struct command commands[] = {
	{ "list", false, 0, run_list },
	{ "status", false, 0, run_status },
	{ "failover", true, 60000, run_request },
	{ "unprotect", true, 30000, run_request },
	{ "verify", true, VERIFY_MS, run_request },
	{ "drill", true, 120000, run_request },
};

static int parse_options(int argc, char **argv, struct options *o, const char **config)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' }, { "force", no_argument, NULL, 'f' },
		{ "config", required_argument, NULL, 'C' }, { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'j': o->json = true; break;
		case 'f': o->force = true; break;
		case 'C': *config = optarg; break;
		case 'h': fputs(usage, stdout); return 0;
		case 'V': puts("ft-ctl " FT_VERSION); return 0;
		default: return USAGE;
		}
	}
	if (optind >= argc || argc - optind > 2) {
		fputs(usage, stderr);
		return USAGE;
	}
	return -1;
}

static const struct command *find_command(const char *name, const char *guest, const struct options *o)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(commands); i++) {
		const struct command *c = &commands[i];

		if (strcmp(c->name, name))
			continue;
		if (c->needs_guest && !guest)
			fprintf(stderr, "ft-ctl: %s needs the name of a guest\n", name);
		else if (o->force && strcmp(name, "failover") && strcmp(name, "unprotect"))
			fprintf(stderr, "ft-ctl: --force goes with failover and unprotect only\n");
		else
			return c;
		return NULL;
	}
	fprintf(stderr, "ft-ctl: no command '%s' (ft-ctl --help lists them)\n", name);
	return NULL;
}

int main(int argc, char **argv)
{
	static struct ft_conf conf;
	const struct command *c;
	struct options o = { 0 };
	const char *config = NULL, *guest;
	int status;

	ft_log_init("ft-ctl");
	status = parse_options(argc, argv, &o, &config);
	if (status >= 0)
		return status;
	guest = argv[optind + 1];
	c = find_command(argv[optind], guest, &o);
	if (!c)
		return USAGE;
	if (guest && !ft_name_ok(guest)) {
		fprintf(stderr, "ft-ctl: '%s' is not a valid guest name\n", guest);
		return USAGE;
	}
	if (ft_conf_load(config, &conf))
		return USAGE;
	ft_conf_set(&conf);
	return c->run(c, guest, &o);
}
