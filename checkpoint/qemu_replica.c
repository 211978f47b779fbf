// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_replica.c - the replica on the backup: a QEMU that is parked with deferred incoming migration while ftd writes
 * its RAM file epoch by epoch. All that can be done before a takeover is done here beforehand.
 */
#include "checkpoint/qemu_load.h"
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/mirror.h"
#include "ft/preload.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define CATCH_UP_MAX_NS (15 * FT_S_NS)  /* a 32-bit HPET cannot tell a longer jump from a clock that went back */
#define ACTIVATE_TIMEOUT_MS 10000       /* an image opened, a few blocks synced */
#define LOAD_HOLD_NS (20 * FT_S_NS)     /* longer than a load may take */

struct qemu_replica {
	struct ft_replica r;
	struct ft_spec spec;
	struct ft_attach at;            /* saved only once the guest runs: a parked QEMU is no guest */
	struct ft_qemu_loader *loader;
	struct ft_preload_page *page;   /* NULL: QEMU runs without the preload */
	struct ft_qemu_drill *drill;    /* NULL: none under way */
	bool saved;                     /* the attach record is written */
	bool started;                   /* tried, at least: a QEMU loads once in its life */
};

static struct qemu_replica *qemu_of(struct ft_replica *r)
{
	return ft_container_of(r, struct qemu_replica, r);
}

/* --- takeover --- */

static uint64_t epoch_age(const struct qemu_replica *q)
{
	uint64_t age = q->r.epoch_ns ? ft_now_ns() - q->r.epoch_ns : 0;

	if (age <= CATCH_UP_MAX_NS)
		return age;
	ft_warn("%s: its clock is %llu s behind: too much for a jump, its own time service must correct it",
		q->at.guest, age / FT_S_NS);
	return 0;
}

/* Its virtual clock starts in the instant of the epoch and, let go, reads as if the guest had run all the time. */
static void begin_catch_up(struct qemu_replica *q)
{
	uint64_t age = epoch_age(q);

	if (!q->page)
		return;
	atomic_store(&q->page->hold_back_ns, age);
	atomic_store(&q->page->hold_limit_ns, age + LOAD_HOLD_NS);
	atomic_fetch_add(&q->page->hold_seq, 1);
}

static void end_catch_up(struct qemu_replica *q)
{
	if (!q->page)
		return;
	atomic_fetch_add(&q->page->hold_seq, 1);
	atomic_store(&q->page->hold_back_ns, 0);
}

static int save_attach(struct qemu_replica *q)
{
	int rc = q->saved ? 0 : ft_attach_save(&q->at);

	q->saved = !rc;
	return rc;
}

/* A parked server may have died since. The guest does not run yet, so nothing waits for it. */
static int serve_disks(struct qemu_replica *q)
{
	int rc = 0;

	for (unsigned i = 0; i < q->at.nr_disks && !rc; i++)
		rc = ft_disk_serve(&q->at, i, true);
	return rc;
}

/* From here on the images are the guest's. */
static int activate_disks(struct qemu_replica *q)
{
	int rc = 0;

	for (unsigned i = 0; i < q->at.nr_disks && !rc; i++)
		rc = ft_export_activate(q->at.disk[i].control, ACTIVATE_TIMEOUT_MS);
	return rc;
}

static int load(struct qemu_replica *q, const struct ft_blob *firmware, const struct ft_blob *state)
{
	int rc;

	begin_catch_up(q);
	rc = ft_qemu_load(q->loader, firmware, state);
	end_catch_up(q);
	return rc;
}

/* The record names a QEMU that is about to go: nobody takes it for a guest. */
static int give_up(struct qemu_replica *q, int rc)
{
	if (q->saved)
		(void)ft_attach_remove(q->at.guest);
	q->saved = false;
	return rc;
}

/*
 * Nothing here but a disk that is not to be had or a load that fails may make a takeover fail: the guest would be lost
 * for a nic or a file.
 */
static int qemu_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state)
{
	struct qemu_replica *q = qemu_of(r);
	uint64_t begin = ft_now_ns();
	int rc;

	if (q->started)
		return -EALREADY;
	q->started = true;
	rc = serve_disks(q);
	if (rc)
		return rc;
	/* The record first: should we die from here on, the guest is still found. detach tries once more. */
	if (save_attach(q))
		ft_warn("%s: goes on without its attach record", q->at.guest);
	rc = activate_disks(q);
	if (rc)
		return give_up(q, rc);
	if (ft_qemu_net(&q->at, true))          /* before it runs, so that its announcement is heard */
		ft_err("%s: takes over without all of its network", q->at.guest);
	rc = load(q, firmware, state);
	if (rc)
		return give_up(q, rc);
	ft_info("%s: runs here, %.1f ms after the command", q->at.guest, (double)(ft_now_ns() - begin) / 1e6);
	return 0;
}

/* --- drill --- */

static int qemu_drill_start(struct ft_replica *r, const struct ft_blob *firmware, const struct ft_blob *state, int *fd)
{
	struct qemu_replica *q = qemu_of(r);

	if (q->drill)
		return -EBUSY;
	return ft_qemu_drill_new(&q->spec, &q->at, firmware, state, &q->drill, fd);
}

static void qemu_drill_end(struct ft_replica *r, struct ft_drill_result *out)
{
	struct qemu_replica *q = qemu_of(r);

	*out = (struct ft_drill_result){ .why = "no drill is under way" };
	if (q->drill)
		ft_qemu_drill_end(q->drill, out);
	q->drill = NULL;
}

/* --- the end of a replica --- */

static void free_replica(struct qemu_replica *q)
{
	struct ft_drill_result ignored;

	qemu_drill_end(&q->r, &ignored);
	ft_qemu_loader_free(q->loader);
	if (q->r.ram)
		munmap(q->r.ram, q->at.memory);
	if (q->page)
		munmap(q->page, FT_PRELOAD_SIZE);
	if (q->r.watch_fd >= 0)
		close(q->r.watch_fd);
	free(q);
}

static int qemu_detach(struct ft_replica *r)
{
	struct qemu_replica *q = qemu_of(r);
	int rc = save_attach(q);

	free_replica(q);
	return rc;
}

static void qemu_destroy(struct ft_replica *r)
{
	struct qemu_replica *q;

	if (!r)
		return;
	q = qemu_of(r);
	if (q->at.pid > 0)
		ft_qemu_cleanup(&q->at);
	free_replica(q);
}

/* Both QEMUs are of one version and one machine type: that has been compared. */
static int qemu_fits(struct ft_replica *r, const struct ft_blob *firmware, char *why, size_t size)
{
	return 0;
}

static const struct ft_replica_ops qemu_replica_ops = {
	.start = qemu_start,
	.drill_start = qemu_drill_start,
	.drill_end = qemu_drill_end,
	.fits = qemu_fits,
	.detach = qemu_detach,
	.destroy = qemu_destroy,
};

/* --- preparing --- */

static int check_free_name(const struct ft_spec *spec)
{
	struct ft_attach running;
	int rc = ft_attach_load(spec->name, &running);

	if (rc == -ENOENT)
		return 0;
	/* Its files are taken over or replaced; a record of a dead guest would name them as its own. */
	if (rc == -ESRCH)
		return ft_attach_remove(spec->name);
	if (rc)
		return rc;              /* logged, with what to do */
	ft_err("%s: a guest of this name runs on this host already: stop it with 'ft-guest stop %s'", spec->name, spec->name);
	return -EEXIST;
}

static uint64_t mem_available(void)
{
	struct ft_blob text;
	const char *line;
	uint64_t kib = 0;

	if (ft_read_file("/proc/meminfo", 64 << 10, &text))
		return UINT64_MAX;
	line = strstr((const char *)text.data, "MemAvailable:");
	if (!line || sscanf(line, "MemAvailable: %" SCNu64, &kib) != 1)
		kib = UINT64_MAX / 1024;
	ft_blob_free(&text);
	return kib * 1024;
}

/* Bytes that an earlier replica's RAM file holds: ft_qemu_start takes it over, or removes it first. */
static uint64_t left_behind(const char *guest)
{
	char path[FT_SPEC_PATH_MAX];
	struct stat st;

	if (ft_qemu_ram_path(guest, path) || lstat(path, &st) || !S_ISREG(st.st_mode))
		return 0;
	return (uint64_t)st.st_blocks * 512;
}

/* Asked before allocating: a host that is driven out of memory takes its other guests along. */
int ft_qemu_replica_room(const struct ft_spec *spec)
{
	const char *dir = ft_conf()->shm_dir;
	uint64_t free_ram = mem_available(), free_shm = UINT64_MAX, old = left_behind(spec->name);
	uint64_t need = spec->memory > old ? spec->memory - old : 0;
	struct statvfs fs;

	if (ft_mkdir_p(dir, 0700) == 0 && statvfs(dir, &fs) == 0)
		free_shm = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (need <= free_shm && need <= free_ram)
		return 0;
	ft_err("%s: no room for its memory of %" PRIu64 " MiB on %s: %" PRIu64 " MiB free in %s, %" PRIu64 " MiB available: "
	       "free some, or mount a larger tmpfs", spec->name, spec->memory >> 20, ft_conf()->host, free_shm >> 20, dir,
	       free_ram >> 20);
	return -ENOSPC;
}

/* It becomes part of a command line. */
static int check_machine_name(const char *machine)
{
	static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_";

	if (machine[0] && !machine[strspn(machine, allowed)])
		return 0;
	ft_err("the peer names a machine type that is none");
	return -EPROTO;
}

/* Device state has no meaning for another machine, or another QEMU than the one that wrote it. */
static int check_version(const char *ours, const char *theirs)
{
	if (!strcmp(ours, theirs))
		return 0;
	ft_err("the guest runs in QEMU %s, but %s has QEMU %s: install the same version on both hosts", theirs,
	       ft_conf()->host, ours);
	return -ENOEXEC;
}

/* What can be known without starting a machine. */
static int check_host(const struct ft_attach *theirs)
{
	char version[sizeof(theirs->qemu_version)] = "";
	int rc = check_machine_name(theirs->machine);

	if (!rc)
		rc = ft_qemu_version(version, sizeof(version));
	if (!rc)
		rc = check_version(version, theirs->qemu_version);
	return rc ? rc : ft_qemu_knows_machine(theirs->machine);
}

/* What the parked one says of itself. */
static int check_same(const struct ft_attach *ours, const struct ft_attach *theirs)
{
	int rc = check_version(ours->qemu_version, theirs->qemu_version);

	if (rc)
		return rc;
	if (strcmp(ours->machine, theirs->machine) || ours->accel != theirs->accel) {
		ft_err("%s: it runs on machine %s (%s), but on %s (%s) on %s: set 'machine' and 'accel' in both guest files and "
		       "start it again", ours->guest, theirs->machine, ft_accel_name(theirs->accel), ours->machine,
		       ft_accel_name(ours->accel), ft_conf()->host);
		return -ENOEXEC;
	}
	return 0;
}

static int map_file(const char *path, uint64_t size, void **out)
{
	int fd = open(path, O_RDWR | O_CLOEXEC), rc = 0;
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st))
		rc = -errno;
	else if ((uint64_t)st.st_size != size)
		rc = -EINVAL;
	if (!rc) {
		*out = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		rc = *out == MAP_FAILED ? -errno : 0;
	}
	close(fd);
	return rc;
}

static int map_ram(struct qemu_replica *q)
{
	void *ram;
	int rc = map_file(q->at.ram, q->at.memory, &ram);

	if (rc) {
		ft_err("%s: its memory %s cannot be mapped: %s", q->at.guest, q->at.ram, strerror(-rc));
		return rc;
	}
	q->r.ram = ram;
	q->r.nr_pages = q->at.memory / FT_PAGE_SIZE;
	/* Neither is needed for correctness: swapped or unmapped pages make applying an epoch slow. */
	if (madvise(ram, q->at.memory, MADV_POPULATE_WRITE) || mlock(ram, q->at.memory))
		ft_debug("%s: its memory is not locked: %s", q->at.guest, strerror(errno));
	return 0;
}

static void map_preload(struct qemu_replica *q)
{
	void *page;

	if (!q->at.preload[0] || map_file(q->at.preload, FT_PRELOAD_SIZE, &page))
		ft_warn("%s: QEMU runs without ft-preload.so: after a takeover the guest's clock is behind", q->at.guest);
	else
		q->page = page;
}

static int prepare(struct qemu_replica *q, const struct ft_attach *theirs)
{
	struct ft_qemu_launch launch = {
		.spec = &q->spec, .kind = FT_QEMU_PARKED, .accel = theirs->accel, .machine = theirs->machine,
	};
	int rc = check_host(theirs);

	if (!rc)
		rc = check_free_name(&q->spec);
	if (!rc)
		rc = ft_qemu_replica_room(&q->spec);
	if (!rc)
		rc = ft_qemu_start(&launch, &q->at);
	if (rc)
		return rc;
	rc = check_same(&q->at, theirs);
	if (!rc)
		rc = map_ram(q);
	if (!rc)
		rc = ft_qemu_loader_new(&q->at, &q->loader);
	if (rc)
		return rc;
	map_preload(q);
	q->r.watch_fd = ft_attach_pidfd(&q->at);
	return q->r.watch_fd < 0 ? q->r.watch_fd : 0;
}

/* Without a line of its own it is a bare error of the system. */
static int told(int rc, char *why, size_t size)
{
	ft_log_keep(NULL, 0);
	if (rc && !*why)
		snprintf(why, size, "%s: %s", ft_conf()->host, strerror(-rc));
	return rc;
}

int ft_qemu_replica_check(const struct ft_attach *theirs, char *why, size_t size)
{
	ft_log_keep(why, size);
	return told(check_host(theirs), why, size);
}

int ft_qemu_replica_prepare(const struct ft_spec *spec, const struct ft_attach *theirs, struct ft_replica **out,
			    char *why, size_t size)
{
	struct qemu_replica *q = calloc(1, sizeof(*q));
	int rc;

	*out = NULL;
	ft_log_keep(why, size);
	if (!q)
		return told(-ENOMEM, why, size);
	*q = (struct qemu_replica){ .r = { .ops = &qemu_replica_ops, .watch_fd = -1 }, .spec = *spec };
	rc = told(prepare(q, theirs), why, size);
	if (rc) {
		qemu_destroy(&q->r);
		return rc;
	}
	*out = &q->r;
	return 0;
}
