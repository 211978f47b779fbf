// SPDX-License-Identifier: GPL-3.0-or-later
/* xen_model.c - see xen_model.h. */
#include "checkpoint/xen_model.h"
#include "checkpoint/qemu_vm.h"
#include "checkpoint/xen_parts.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <unistd.h>
#include <xxhash.h>

#define CALL_MS 5000                    /* a command that does nothing long */
#define ANNOUNCE_MS 1000
#define ASK_SOCKET "/var/run/xen/qmp-libxl-%u"
#define OWN_SOCKET "/var/run/xen/qmp-libxenstat-%u"
#define DEVICES_MAX 256u

struct xen_model {
	char guest[FT_NAME_MAX + 1];
	struct ft_qmp *qmp;
	int memory, wr;                 /* one memfd; QEMU writes through a duplicate of wr, so its offset is the length */
	int64_t fdset;
	bool stopped, woken;            /* by us; by somebody else, since */
};

bool xen_has_model(const struct xen_dom *d)
{
	char *state = xen_read(d->xs, "/local/domain/0/device-model/%u/state", d->domid);
	bool has = state != NULL;

	free(state);
	return has;
}

static pid_t model_pid(const struct xen_dom *d)
{
	char *text = xen_read(d->xs, "/local/domain/%u/image/device-model-pid", d->domid);
	long pid = text ? strtol(text, NULL, 10) : 0;

	free(text);
	return pid > 0 && pid <= INT32_MAX ? (pid_t)pid : 0;
}

int xen_model_pidfd(const struct xen_dom *d)
{
	pid_t pid = model_pid(d);

	return pid ? pidfd_open(pid, 0) : -1;
}

/* --- questions --- */

static int ask_open(const struct xen_dom *d, struct ft_qmp **q, char *why, size_t size)
{
	char path[64], reason[320] = "out of memory";
	int rc;

	snprintf(path, sizeof(path), ASK_SOCKET, d->domid);
	rc = ft_qmp_try(path, CALL_MS, q, reason, sizeof(reason));
	if (rc)
		snprintf(why, size, "its device model does not answer at %s: %s", path, reason);
	return rc;
}

/* "7.2.22" */
static int ask_version(struct ft_qmp *q, char *out, size_t size)
{
	json_t *v = NULL;
	int major, minor, micro, rc = ft_qmp_call(q, "query-version", NULL, -1, CALL_MS, &v);

	if (!rc && json_unpack(v, "{s:{s:i, s:i, s:i}}", "qemu", "major", &major, "minor", &minor, "micro", &micro))
		rc = -EPROTO;
	if (!rc)
		snprintf(out, size, "%d.%d.%d", major, minor, micro);
	json_decref(v);
	return rc;
}

struct devices {
	char *type[DEVICES_MAX];
	unsigned nr;
};

static bool is_device(const char *type)
{
	/* A back end in QEMU comes and goes with its front end. */
	static const char *const parts[] = { "child<memory-region>", "child<irq>", "child<container>", "child<xen-backend>" };

	for (size_t i = 0; i < FT_ARRAY_LEN(parts); i++)
		if (!strcmp(type, parts[i]))
			return false;
	return !strncmp(type, "child<", strlen("child<"));
}

static int take_devices(struct devices *d, const json_t *list)
{
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *type = json_string_value(json_object_get(json_array_get(list, i), "type"));

		if (!type || !is_device(type))
			continue;
		if (d->nr == DEVICES_MAX)
			return -E2BIG;
		d->type[d->nr] = strdup(type);
		if (!d->type[d->nr])
			return -ENOMEM;
		d->nr++;
	}
	return 0;
}

static int compare_texts(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static int ask_devices(struct ft_qmp *q, struct devices *d)
{
	static const char *const places[] = { "/machine/unattached", "/machine/peripheral", "/machine/peripheral-anon" };
	int rc = 0;

	for (size_t i = 0; i < FT_ARRAY_LEN(places) && !rc; i++) {
		json_t *list = NULL;

		rc = ft_qmp_call(q, "qom-list", json_pack("{s:s}", "path", places[i]), -1, CALL_MS, &list);
		if (!rc)
			rc = take_devices(d, list);
		json_decref(list);
	}
	qsort(d->type, d->nr, sizeof(d->type[0]), compare_texts);
	return rc;
}

/* A kind of device is in it as often as there are such devices. */
static uint64_t hash_devices(const char *guest, const struct devices *d)
{
	uint64_t hash = 0;

	for (unsigned i = 0; i < d->nr; i++) {
		ft_debug("%s: its device model has %s", guest, d->type[i]);
		hash = XXH3_64bits_withSeed(d->type[i], strlen(d->type[i]), hash);
	}
	return hash;
}

static int describe(const char *guest, struct ft_qmp *q, char out[FT_ATTACH_MODEL_MAX])
{
	struct devices d = { .nr = 0 };
	char version[24];
	int rc = ask_version(q, version, sizeof(version));

	if (!rc)
		rc = ask_devices(q, &d);
	if (!rc)
		snprintf(out, FT_ATTACH_MODEL_MAX, "%s/%016" PRIx64, version, hash_devices(guest, &d));
	while (d.nr)
		free(d.type[--d.nr]);
	return rc;
}

int xen_model_describe(const struct xen_dom *d, char out[FT_ATTACH_MODEL_MAX])
{
	struct ft_qmp *q = NULL;
	char why[400];
	int rc = ask_open(d, &q, why, sizeof(why));

	if (!rc) {
		rc = describe(d->guest, q, out);
		snprintf(why, sizeof(why), "its device model does not say what it is made of: %s", ft_qmp_error(q));
	}
	if (rc)
		ft_err("%s: %s", d->guest, why);
	ft_qmp_close(q);
	return rc;
}

void xen_model_check(const struct xen_dom *d, const struct ft_attach *at, struct ft_obstacles *o)
{
	struct ft_attach model = *at;
	struct ft_qmp *q = NULL;
	char why[400];

	if (ask_open(d, &q, why, sizeof(why))) {
		ft_obstacle(o, "%s", why);
		return;
	}
	model.pid = model_pid(d);
	snprintf(model.qmp, sizeof(model.qmp), ASK_SOCKET, d->domid);
	snprintf(model.qmp_guard, sizeof(model.qmp_guard), OWN_SOCKET, d->domid);
	o->nr += qemu_model_obstacles(q, &model, o->tell, o->ctx);
	ft_qmp_close(q);
}

/* Stopped, with the domain: of its own accord it stops for nothing that we would undo. */
static int wake(struct ft_qmp *q)
{
	json_t *status = NULL;
	int rc = ft_qmp_call(q, "query-status", NULL, -1, CALL_MS, &status);

	if (!rc && !json_is_true(json_object_get(status, "running")))
		rc = ft_qmp_call(q, "cont", NULL, -1, CALL_MS, NULL);
	json_decref(status);
	return rc;
}

int xen_model_wake(const struct xen_dom *d, char *why, size_t size)
{
	struct ft_qmp *q = NULL;
	int rc = ask_open(d, &q, why, size);

	if (rc)
		return rc;
	rc = wake(q);
	if (rc)
		snprintf(why, size, "its device model does not go on: %s", ft_qmp_error(q));
	ft_qmp_close(q);
	return rc;
}

/* --- the one connection that stays --- */

static int failed(const struct xen_model *m, const char *what, int rc)
{
	ft_err("%s: its device model does not %s: %s", m->guest, what, ft_qmp_error(m->qmp));
	return rc;
}

static int call(struct xen_model *m, const char *what, const char *command, json_t *args, int fd, json_t **ret)
{
	int rc = ft_qmp_call(m->qmp, command, args, fd, CALL_MS, ret);

	return rc ? failed(m, what, rc) : 0;
}

/* QEMU opens a fd set only in the mode its descriptor has: so it is opened anew in that one. */
static int open_again(const struct xen_model *m, int mode, int *fd)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", m->memory);
	*fd = open(path, mode | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

static int share_wr(struct xen_model *m)
{
	json_t *ret = NULL;
	int rc = open_again(m, O_WRONLY, &m->wr);

	if (!rc)
		rc = call(m, "take a descriptor", "add-fd", NULL, m->wr, &ret);
	if (!rc)
		m->fdset = json_integer_value(json_object_get(ret, "fdset-id"));
	json_decref(ret);
	return rc;
}

/* Its fd sets go by themselves when this connection ends. */
int xen_model_open(const struct xen_dom *d, struct xen_model **out)
{
	struct xen_model *m = calloc(1, sizeof(*m));
	char path[64];
	int rc;

	*out = NULL;
	if (!m)
		return -ENOMEM;
	m->wr = -1;
	snprintf(m->guest, sizeof(m->guest), "%s", d->guest);
	m->memory = memfd_create("ft-model", MFD_CLOEXEC);
	snprintf(path, sizeof(path), OWN_SOCKET, d->domid);
	rc = m->memory < 0 ? -errno : ft_qmp_open(path, CALL_MS, &m->qmp);
	if (!rc)
		rc = share_wr(m);
	if (rc)
		xen_model_close(m);
	else
		*out = m;
	return rc;
}

void xen_model_close(struct xen_model *m)
{
	if (!m)
		return;
	ft_qmp_close(m->qmp);
	if (m->wr >= 0)
		close(m->wr);
	if (m->memory >= 0)
		close(m->memory);
	free(m);
}

int xen_model_log_writes(struct xen_model *m, bool on)
{
	return call(m, "log its writes", "xen-set-global-dirty-log", json_pack("{s:b}", "enable", (int)on), -1, NULL);
}

/* Events are of interest for one thing: has it gone on since they were looked at last? */
static bool went_on(struct xen_model *m)
{
	bool did = false;
	json_t *ev;

	while ((ev = ft_qmp_event(m->qmp))) {
		const char *name = json_string_value(json_object_get(ev, "event"));

		did = did || (name && !strcmp(name, "RESUME"));
		json_decref(ev);
	}
	return did;
}

int xen_model_alive(const struct xen_model *m)
{
	struct pollfd p = { .fd = ft_qmp_fd(m->qmp), .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 ? -EPIPE : 0;
}

int xen_model_stop(struct xen_model *m)
{
	int rc;

	(void)went_on(m);               /* not since it is stopped */
	rc = call(m, "stop", "stop", NULL, -1, NULL);
	m->stopped = !rc;
	m->woken = false;
	return rc;
}

int xen_model_cont(struct xen_model *m)
{
	int rc;

	if (!m->stopped)
		return 0;
	m->woken |= went_on(m);
	m->stopped = false;
	rc = call(m, "go on", "cont", NULL, -1, NULL);
	m->stopped = rc != 0;
	return rc ? rc : m->woken ? -ECANCELED : 0;
}

static json_t *filename(int64_t fdset)
{
	char path[48];

	snprintf(path, sizeof(path), "/dev/fdset/%" PRId64, fdset);
	return json_string(path);
}

int xen_model_save_begin(struct xen_model *m)
{
	int rc;

	if (lseek(m->wr, 0, SEEK_SET) < 0)
		return -errno;
	rc = ft_qmp_send(m->qmp, "xen-save-devices-state",
			 json_pack("{s:o, s:b}", "filename", filename(m->fdset), "live", 0), -1);
	return rc ? failed(m, "save its state", rc) : 0;
}

static int read_state(const struct xen_model *m, struct ft_blob *out)
{
	off_t len = lseek(m->wr, 0, SEEK_CUR);

	if (len <= 0 || len > (off_t)XEN_MODEL_MAX) {
		ft_err("%s: its device model wrote a state of %lld bytes", m->guest, (long long)len);
		return -EIO;
	}
	*out = (struct ft_blob){ .data = malloc((size_t)len), .len = (size_t)len };
	if (!out->data)
		return -ENOMEM;
	if (pread(m->memory, out->data, out->len, 0) == len)
		return 0;
	ft_blob_free(out);
	return -EIO;
}

int xen_model_save_end(struct xen_model *m, struct ft_blob *out)
{
	int rc = ft_qmp_wait(m->qmp, CALL_MS, NULL);

	*out = (struct ft_blob){ 0 };
	return rc ? failed(m, "save its state", rc) : read_state(m, out);
}

/* Its vCPUs run, as it thinks, when all has been taken; one that cannot take it ends. */
static int wait_running(struct xen_model *m)
{
	uint64_t now = ft_now_ns(), end = now + CALL_MS * FT_MS_NS;
	bool runs = false;

	for (; !runs && now < end && !ft_qmp_closed(m->qmp); now = ft_now_ns()) {
		struct pollfd p = { .fd = ft_qmp_fd(m->qmp), .events = POLLIN };

		if (poll(&p, 1, (int)((end - now) / FT_MS_NS) + 1) < 0 && errno != EINTR)
			return -errno;
		runs = went_on(m);
	}
	if (runs)
		return 0;
	ft_err("%s: its device model does not take its state: %s", m->guest,
	       ft_qmp_closed(m->qmp) ? "it has ended (see /var/log/xen/qemu-dm-*.log)" : "it does not run in time");
	return ft_qmp_closed(m->qmp) ? -EPIPE : -ETIMEDOUT;
}

static int write_state(const struct xen_model *m, const struct ft_blob *state)
{
	return ftruncate(m->memory, 0) || pwrite(m->memory, state->data, state->len, 0) != (ssize_t)state->len ? -EIO : 0;
}

/* As libxl restores a domain. Not xen-load-devices-state: QEMU 7.2 fails an assertion behind it (in util/yank.c). */
int xen_model_load(struct xen_model *m, const struct ft_blob *state)
{
	int fd = -1, rc = write_state(m, state);

	if (!rc)
		rc = open_again(m, O_RDONLY, &fd);
	if (!rc)
		rc = call(m, "take a descriptor", "getfd", json_pack("{s:s}", "fdname", "ft-state"), fd, NULL);
	if (!rc)
		rc = call(m, "take its state", "migrate-incoming", json_pack("{s:s}", "uri", "fd:ft-state"), -1, NULL);
	if (fd >= 0)
		close(fd);
	return rc ? rc : wait_running(m);
}

bool xen_model_announce(struct xs_handle *xs, uint32_t domid)
{
	struct ft_qmp *q = NULL;
	char path[64], why[320];
	int rc;

	snprintf(path, sizeof(path), OWN_SOCKET, domid);
	if (!ft_qmp_listening(path) || ft_qmp_try(path, ANNOUNCE_MS, &q, why, sizeof(why)))
		return false;
	ft_qmp_close(q);
	rc = xen_write(xs, "running", "/local/domain/0/device-model/%u/state", domid);
	if (rc)
		ft_warn("xenstore cannot be told that the device model of domain %u is there: %s", domid, strerror(-rc));
	return true;
}
