// SPDX-License-Identifier: GPL-3.0-or-later
/* conf.c - see ft/conf.h. One table a section; man ft.conf(5) is written from these tables. */
#include "ft/conf.h"
#include "ft/ini.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <unistd.h>

#define CONF_DEFAULT "/etc/ft/ft.conf"
#define CONF_TEXT_MAX (256u << 10)

/* --- values of their own kind --- */

/* "192.0.2.1", "2001:db8::1" or "[2001:db8::1]"; stored without brackets. */
static bool ip_literal(const char *value, char *out, size_t size)
{
	struct in6_addr a;
	size_t len = strlen(value);
	bool bracketed = len > 2 && value[0] == '[' && value[len - 1] == ']';

	if ((size_t)snprintf(out, size, "%.*s", (int)(bracketed ? len - 2 : len), bracketed ? value + 1 : value) >= size)
		return false;
	return inet_pton(AF_INET6, out, &a) == 1 || (!bracketed && inet_pton(AF_INET, out, &a) == 1);
}

static int parse_listen(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	char ip[sizeof(((struct ft_conf *)0)->listen)];

	if (!ip_literal(value, ip, sizeof(ip)))
		return ft_ini_error(at, "'%s' must be an IP address of this host, or [::] for all, not '%s'", key, value);
	strcpy(member, ip);
	return 0;
}

static int parse_port(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	unsigned v;
	char rest;

	if (strlen(value) > 5 || sscanf(value, "%5u%c", &v, &rest) != 1 || v < 1 || v > 65535)
		return ft_ini_error(at, "'%s' must be a port from 1 to 65535, not '%s'", key, value);
	*(uint16_t *)member = (uint16_t)v;
	return 0;
}

static int parse_port_range(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	uint16_t *range = member;       /* heartbeat_port_min, heartbeat_port_max */
	unsigned lo, hi;
	char rest;

	if (!strcmp(value, "any")) {
		range[0] = range[1] = 0;
		return 0;
	}
	if (sscanf(value, "%5u-%5u%c", &lo, &hi, &rest) != 2 || lo < 1 || hi > 65535 || lo > hi)
		return ft_ini_error(at, "'%s' must be 'any' or two ports as in 7801-7864, not '%s'", key, value);
	range[0] = (uint16_t)lo;
	range[1] = (uint16_t)hi;
	return 0;
}

static int parse_address(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	char ip[64];
	size_t size = sizeof(((struct ft_peer *)0)->address);

	if (ip_literal(value, ip, sizeof(ip))) {
		strcpy(member, ip);
		return 0;
	}
	if (!*value || strlen(value) >= size ||
	    strspn(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-") != strlen(value))
		return ft_ini_error(at, "'%s' must be an IP address or a host name, not '%s'", key, value);
	strcpy(member, value);
	return 0;
}

/* Copy the next word of *@p; false at the end. A word that does not fit comes out empty. */
static bool next_word(const char **p, char *word, size_t size)
{
	size_t len;

	*p += strspn(*p, " \t");
	len = strcspn(*p, " \t");
	snprintf(word, size, "%.*s", len < size ? (int)len : 0, *p);
	*p += len;
	return len > 0;
}

static int parse_heartbeats(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	struct ft_peer *peer = member;
	char word[64];

	while (next_word(&value, word, sizeof(word))) {
		if (peer->nr_heartbeat == FT_ARRAY_LEN(peer->heartbeat))
			return ft_ini_error(at, "'%s' takes at most %zu addresses", key, FT_ARRAY_LEN(peer->heartbeat));
		if (!ip_literal(word, peer->heartbeat[peer->nr_heartbeat], sizeof(peer->heartbeat[0])))
			return ft_ini_error(at, "'%s' must be IP addresses with spaces between, not '%s'", key, word);
		peer->nr_heartbeat++;
	}
	return peer->nr_heartbeat ? 0 : ft_ini_error(at, "'%s' is empty: give it a value or leave the line out", key);
}

static int parse_guests(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	size_t size = sizeof(((struct ft_peer *)0)->guests), used = 0;
	char word[FT_NAME_MAX + 2], *out = member;
	unsigned n = 0;

	if (!strcmp(value, "*")) {
		strcpy(out, "*");
		return 0;
	}
	while (next_word(&value, word, sizeof(word))) {
		if (!ft_name_ok(word))
			return ft_ini_error(at, "'%s' must be guest names with spaces between, or * alone, not '%s'", key, word);
		used += (size_t)snprintf(out + used, size - used, "%s%s", n++ ? " " : "", word);
		if (used >= size)
			return ft_ini_error(at, "'%s' has more than %zu bytes", key, size - 1);
	}
	return n ? 0 : ft_ini_error(at, "'%s' is empty: name the guests, or * for all, or leave the line out", key);
}

static const char *const trackers[] = { "auto", "uffd-wp-async", "soft-dirty", "compare", NULL };

int ft_conf_set_tracker(struct ft_policy *policy, const char *name)
{
	for (unsigned i = 0; trackers[i]; i++) {
		if (!strcmp(trackers[i], name)) {
			strcpy(policy->tracker, name);
			return 0;
		}
	}
	return -EINVAL;
}

static int parse_tracker(const struct ft_ini_at *at, const char *key, const char *value, void *member)
{
	if (!ft_conf_set_tracker(member, value))
		return 0;
	return ft_ini_error(at, "'%s' must be one of auto, uffd-wp-async, soft-dirty, compare, not '%s'", key, value);
}

/* --- tables --- */

#define TEXT_KEY(k, t, obj, m) { .key = k, .type = t, .offset = offsetof(obj, m), .max = sizeof(((obj *)0)->m) }
#define UINT_KEY(k, obj, m, lo, hi) { .key = k, .type = FT_INI_UINT, .offset = offsetof(obj, m), .min = lo, .max = hi }
#define FUNC_KEY(k, obj, m, fn) { .key = k, .type = FT_INI_FUNC, .offset = offsetof(obj, m), .parse = fn }

static const struct ft_ini_key ft_keys[] = {
	TEXT_KEY("host", FT_INI_NAME, struct ft_conf, host),
	TEXT_KEY("guests-dir", FT_INI_PATH, struct ft_conf, guests_dir),
	TEXT_KEY("state-dir", FT_INI_PATH, struct ft_conf, state_dir),
	TEXT_KEY("run-dir", FT_INI_PATH, struct ft_conf, run_dir),
	TEXT_KEY("shm-dir", FT_INI_PATH, struct ft_conf, shm_dir),
	TEXT_KEY("qemu", FT_INI_TEXT, struct ft_conf, qemu),
	TEXT_KEY("nbdkit", FT_INI_TEXT, struct ft_conf, nbdkit),
	TEXT_KEY("libexec-dir", FT_INI_PATH, struct ft_conf, libexec_dir),
	FUNC_KEY("listen", struct ft_conf, listen, parse_listen),
	FUNC_KEY("port", struct ft_conf, port, parse_port),
	FUNC_KEY("heartbeat-ports", struct ft_conf, heartbeat_port_min, parse_port_range),
	{ 0 }
};

static const struct ft_ini_key tls_keys[] = {
	TEXT_KEY("ca", FT_INI_PATH, struct ft_conf, tls_ca),
	TEXT_KEY("cert", FT_INI_PATH, struct ft_conf, tls_cert),
	TEXT_KEY("key", FT_INI_PATH, struct ft_conf, tls_key),
	{ 0 }
};

static const char *const loss_words[] = {
	[FT_LOSS_FREEZE] = "freeze", [FT_LOSS_CONTINUE] = "continue", NULL
};

static const struct ft_ini_key policy_keys[] = {
	UINT_KEY("interval-max-ms", struct ft_policy, interval_max_ms, 5, 10000),
	UINT_KEY("interval-fixed-ms", struct ft_policy, interval_fixed_ms, 0, 10000),
	UINT_KEY("dirty-max-mb", struct ft_policy, dirty_max_mb, 1, 65536),
	UINT_KEY("pause-budget-percent", struct ft_policy, pause_budget_percent, 1, 90),
	UINT_KEY("in-flight-max", struct ft_policy, in_flight_max, 1, 15),
	{ .key = "on-peer-loss", .type = FT_INI_WORD, .offset = offsetof(struct ft_policy, on_peer_loss), .words = loss_words },
	{ .key = "shadow", .type = FT_INI_BOOL, .offset = offsetof(struct ft_policy, shadow) },
	UINT_KEY("staging-mb", struct ft_policy, staging_mb, 16, 65536),
	UINT_KEY("disk-log-mb", struct ft_policy, disk_log_mb, 1, 65536),
	UINT_KEY("disk-spill-mb", struct ft_policy, disk_spill_mb, 16, 1048576),
	UINT_KEY("disk-copy-mb", struct ft_policy, disk_copy_mb, 0, 65536),
	UINT_KEY("encode-threads", struct ft_policy, encode_threads, 0, 64),
	UINT_KEY("silence-ms", struct ft_policy, silence_ms, 100, 60000),
	UINT_KEY("heartbeat-ms", struct ft_policy, heartbeat_ms, 5, 5000),
	UINT_KEY("grace-ms", struct ft_policy, grace_ms, 1000, 3600000),
	TEXT_KEY("hook", FT_INI_PATH, struct ft_policy, hook),
	{ .key = "tracker", .type = FT_INI_FUNC, .parse = parse_tracker },
	{ 0 }
};

static const struct ft_ini_key peer_keys[] = {
	FUNC_KEY("address", struct ft_peer, address, parse_address),
	{ .key = "heartbeat-addresses", .type = FT_INI_FUNC, .parse = parse_heartbeats },
	FUNC_KEY("guests", struct ft_peer, guests, parse_guests),
	{ 0 }
};

static void *host_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	return ctx;
}

static void *policy_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	return &((struct ft_conf *)ctx)->policy;
}

static void *peer_object(const struct ft_ini_at *at, void *ctx, const char *name)
{
	struct ft_conf *c = ctx;
	struct ft_peer *peer;

	if (ft_conf_peer(c, name)) {
		ft_ini_error(at, "section [peer %s] is there twice", name);
		return NULL;
	}
	if (c->nr_peers == FT_PEERS_MAX) {
		ft_ini_error(at, "more than %d peers", FT_PEERS_MAX);
		return NULL;
	}
	peer = &c->peer[c->nr_peers++];
	strcpy(peer->name, name);
	return peer;
}

static const struct ft_ini_section conf_sections[] = {
	{ .kind = "ft", .keys = ft_keys, .object = host_object },
	{ .kind = "tls", .keys = tls_keys, .object = host_object },
	{ .kind = "policy", .keys = policy_keys, .object = policy_object },
	{ .kind = "peer", .keys = peer_keys, .named = true, .repeated = true, .object = peer_object },
	{ 0 }
};

/* --- the configuration --- */

static void set_defaults(struct ft_conf *c)
{
	*c = (struct ft_conf){
		.path = CONF_DEFAULT,
		.guests_dir = "/etc/ft/guests",
		.state_dir = "/var/lib/ft",
		.run_dir = "/run/ft",
		.shm_dir = "/dev/shm/ft",
		.qemu = "qemu-system-x86_64",
		.nbdkit = "nbdkit",
		.libexec_dir = FT_LIBEXEC,
		.listen = "::",
		.port = 7800,
		.tls_ca = "/etc/ft/tls/ca.pem",
		.tls_cert = "/etc/ft/tls/cert.pem",
		.tls_key = "/etc/ft/tls/key.pem",
		.policy = {
			.interval_max_ms = 200,
			.dirty_max_mb = 32,
			.pause_budget_percent = 30,
			.in_flight_max = 4,
			.on_peer_loss = FT_LOSS_FREEZE,
			.shadow = true,
			.staging_mb = 128,
			.disk_log_mb = 64,
			.disk_spill_mb = 4096,
			.silence_ms = 300,
			.heartbeat_ms = 30,
			.grace_ms = 10000,
			.tracker = "auto",
		},
	};
	if (gethostname(c->host, sizeof(c->host)) < 0 || !memchr(c->host, 0, sizeof(c->host)) || !ft_name_ok(c->host))
		strcpy(c->host, "localhost");
}

/* What no single key can say. */
static int check_whole(const struct ft_conf *c)
{
	struct ft_ini_at at = { .origin = c->path };
	const struct ft_policy *p = &c->policy;

	if (p->heartbeat_ms * 4 > p->silence_ms)
		return ft_ini_error(&at, "silence-ms (%u) must be at least four times heartbeat-ms (%u): one lost datagram is "
				    "not a dead host", p->silence_ms, p->heartbeat_ms);
	if (p->interval_fixed_ms && p->interval_fixed_ms < 5)
		return ft_ini_error(&at, "interval-fixed-ms must be 0 (adaptive) or at least 5");
	return 0;
}

int ft_conf_load(const char *path, struct ft_conf *out)
{
	bool may_miss = !path;
	struct ft_blob text;
	int rc;

	set_defaults(out);
	if (path && (size_t)snprintf(out->path, sizeof(out->path), "%s", path) >= sizeof(out->path)) {
		ft_err("%s: the path is too long", path);
		return -ENAMETOOLONG;
	}
	rc = ft_read_file(out->path, CONF_TEXT_MAX, &text);
	if (rc == -ENOENT && may_miss)
		return 0;
	if (rc) {
		ft_err("%s: cannot read the configuration: %s", out->path, strerror(-rc));
		return rc;
	}
	rc = ft_ini_parse((const char *)text.data, text.len, out->path, conf_sections, out);
	ft_blob_free(&text);
	return rc ? rc : check_whole(out);
}

static struct ft_conf process_conf;
static bool process_conf_set;

void ft_conf_set(const struct ft_conf *c)
{
	process_conf = *c;
	process_conf_set = true;
}

void ft_conf_reload(void)
{
	static struct ft_conf now;
	char path[FT_PATH_MAX];

	memcpy(path, ft_conf()->path, sizeof(path));
	if (!ft_conf_load(access(path, R_OK) ? NULL : path, &now))     /* the default one may be missing */
		ft_conf_set(&now);
}

const struct ft_conf *ft_conf(void)
{
	if (!process_conf_set) {
		set_defaults(&process_conf);
		process_conf_set = true;
	}
	return &process_conf;
}

const struct ft_peer *ft_conf_peer(const struct ft_conf *c, const char *name)
{
	for (unsigned i = 0; i < c->nr_peers; i++)
		if (!strcmp(c->peer[i].name, name))
			return &c->peer[i];
	return NULL;
}

bool ft_conf_permits(const struct ft_conf *c, const char *peer, const char *guest)
{
	const struct ft_peer *p = ft_conf_peer(c, peer);
	char word[FT_NAME_MAX + 2];
	const char *list;

	if (!p || !ft_name_ok(guest))
		return false;
	if (!strcmp(p->guests, "*"))
		return true;
	for (list = p->guests; next_word(&list, word, sizeof(word)); )
		if (!strcmp(word, guest))
			return true;
	return false;
}

int ft_run_path(char *buf, size_t size, const char *guest, const char *file)
{
	int n = snprintf(buf, size, "%s/guests/%s/%s", ft_conf()->run_dir, guest, file);

	return n < 0 || (size_t)n >= size ? -ENAMETOOLONG : 0;
}
