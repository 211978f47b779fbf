// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_drill.c - the first takeover must not be the first load. A forked process starts a scratch QEMU without a
 * network on a private mapping of the replica's RAM, loads the epoch there, and sees whether the guest writes memory.
 *
 * A process of its own, because starting and loading take longer than a loop may wait. It dies with its owner, and the
 * scratch QEMU with it; then only files are left, which the next drill removes.
 */
#include "checkpoint/qemu_load.h"
#include "ft/conf.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define RUN_TIMEOUT_MS 10000            /* an idle guest still writes at each of its timers */
#define LOOK_EVERY_MS 20

struct ft_qemu_drill {
	pid_t pid;
	int pipe;                       /* one struct ft_drill_result, or nothing when it was killed */
	struct ft_attach files;         /* what cleanup needs to remove what a killed drill leaves */
};

/* --- the drill's own process --- */

static void keep_first_error(void *ctx, enum ft_log_level level, const char *line)
{
	struct ft_drill_result *res = ctx;

	if (level <= FT_LOG_ERR && !res->why[0])
		snprintf(res->why, sizeof(res->why), "%s", line);
}

/* Pages of the private mapping of @ram that are the process's own: it wrote them. */
static int count_written(pid_t pid, const char *ram, uint64_t *pages)
{
	char path[64], line[FT_SPEC_PATH_MAX + 128];
	bool in_ram = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return -errno;
	*pages = 0;
	while (fgets(line, sizeof(line), f)) {
		uint64_t kib;

		if (line[0] >= 'A' && line[0] <= 'Z') {
			if (in_ram && sscanf(line, "Anonymous: %" SCNu64, &kib) == 1)
				*pages += kib / (FT_PAGE_SIZE / 1024);
		} else {
			in_ram = strstr(line, ram) != NULL;     /* the first line of a mapping */
		}
	}
	fclose(f);
	return 0;
}

/* Wait until the guest has written memory since it was loaded. */
static int watch_run(const struct ft_attach *scratch, const char *ram, struct ft_drill_result *res)
{
	struct pollfd p = { .fd = ft_attach_pidfd(scratch), .events = POLLIN };
	uint64_t before, now = 0, end = ft_now_ns() + RUN_TIMEOUT_MS * FT_MS_NS;
	int rc = p.fd < 0 ? p.fd : count_written(scratch->pid, ram, &before);

	while (!rc && now <= before) {
		if (poll(&p, 1, LOOK_EVERY_MS) > 0)
			rc = -ESRCH;
		else if (ft_now_ns() > end)
			rc = -ETIMEDOUT;
		else
			rc = count_written(scratch->pid, ram, &now);
	}
	if (p.fd >= 0)
		close(p.fd);
	if (rc == -ETIMEDOUT)
		ft_err("%s: loaded, but the guest does not run: it wrote nothing in %u s", scratch->guest, RUN_TIMEOUT_MS / 1000);
	else if (rc)
		ft_err("%s: loaded, but its QEMU ended: %s", scratch->guest, strerror(-rc));
	else
		res->dirtied_pages = (unsigned)(now - before);
	return rc;
}

static int load_scratch(const struct ft_attach *scratch, const struct ft_blob *firmware, const struct ft_blob *state,
			struct ft_drill_result *res)
{
	struct ft_qemu_loader *loader;
	uint64_t start;
	int rc = ft_qemu_loader_new(scratch, &loader);

	if (rc)
		return rc;
	start = ft_now_ns();
	rc = ft_qemu_load(loader, firmware, state);
	res->load_ms = (unsigned)((ft_now_ns() - start) / FT_MS_NS);
	ft_qemu_loader_free(loader);
	return rc;
}

static void run_drill(const struct ft_qemu_launch *launch, const struct ft_blob *firmware, const struct ft_blob *state,
		      struct ft_drill_result *res)
{
	struct ft_attach scratch;
	int rc = ft_qemu_start(launch, &scratch);

	if (!rc) {
		rc = load_scratch(&scratch, firmware, state, res);
		if (!rc)
			rc = watch_run(&scratch, launch->ram, res);
		ft_qemu_cleanup(&scratch);
	}
	res->ok = !rc;
	if (rc && !res->why[0])
		snprintf(res->why, sizeof(res->why), "%s", strerror(-rc));
}

/* Of our owner's descriptors only @fd stays: a link that it closes must not live on in here. */
static int leave_owner(pid_t owner, int *fd)
{
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != owner)
		return -ESRCH;
	signal(SIGTERM, SIG_DFL);
	signal(SIGINT, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (*fd != 3 && dup3(*fd, 3, O_CLOEXEC) < 0)
		return -errno;
	*fd = 3;
	return close_range(4, ~0u, 0) ? -errno : 0;
}

static void drill_process(pid_t owner, const struct ft_qemu_launch *launch, const struct ft_blob *firmware,
			  const struct ft_blob *state, int fd) __attribute__((noreturn));
static void drill_process(pid_t owner, const struct ft_qemu_launch *launch, const struct ft_blob *firmware,
			  const struct ft_blob *state, int fd)
{
	struct ft_drill_result res = { .ok = false };

	if (leave_owner(owner, &fd))
		_exit(1);
	ft_log_divert(keep_first_error, &res);
	run_drill(launch, firmware, state, &res);
	_exit(ft_write_all(fd, &res, sizeof(res)) ? 1 : 0);
}

/* --- its owner --- */

static int plan(const struct ft_spec *spec, const struct ft_attach *parked, struct ft_qemu_launch *launch,
		struct ft_attach *files)
{
	int n;

	*launch = (struct ft_qemu_launch){
		.spec = spec, .kind = FT_QEMU_SCRATCH, .accel = parked->accel, .machine = parked->machine,
	};
	*files = (struct ft_attach){ .pid = 0 };
	strcpy(files->guest, parked->guest);
	strcpy(launch->ram, parked->ram);
	n = snprintf(launch->dir, sizeof(launch->dir), "%s/drill/%s", ft_conf()->run_dir, parked->guest);
	if (n < (int)sizeof(launch->dir))
		n = snprintf(files->qmp, sizeof(files->qmp), "%s/qmp.sock", launch->dir);
	return n < (int)sizeof(files->qmp) ? 0 : -ENAMETOOLONG;
}

int ft_qemu_drill_new(const struct ft_spec *spec, const struct ft_attach *parked, const struct ft_blob *firmware,
		      const struct ft_blob *state, struct ft_qemu_drill **out, int *fd)
{
	struct ft_qemu_drill *d = calloc(1, sizeof(*d));
	struct ft_qemu_launch launch;
	pid_t owner = getpid();
	int p[2], rc;

	*out = NULL;
	rc = d ? plan(spec, parked, &launch, &d->files) : -ENOMEM;
	if (!rc && pipe2(p, O_CLOEXEC))
		rc = -errno;
	if (rc) {
		free(d);
		return rc;
	}
	ft_qemu_cleanup(&d->files);     /* of a drill whose owner died */
	d->pid = fork();
	if (d->pid == 0)
		drill_process(owner, &launch, firmware, state, p[1]);
	rc = d->pid < 0 ? -errno : 0;
	close(p[1]);
	d->pipe = *fd = p[0];
	*out = d;
	if (rc) {
		struct ft_drill_result none;

		ft_qemu_drill_end(d, &none);
		*out = NULL;
	}
	return rc;
}

static void reap(pid_t pid)
{
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

void ft_qemu_drill_end(struct ft_qemu_drill *d, struct ft_drill_result *out)
{
	struct pollfd p = { .fd = d->pipe, .events = POLLIN };
	bool over = poll(&p, 1, 0) > 0;

	*out = (struct ft_drill_result){ .ok = false };
	if (!over || read(d->pipe, out, sizeof(*out)) != sizeof(*out)) {
		*out = (struct ft_drill_result){ .ok = false };
		snprintf(out->why, sizeof(out->why), "%s", over ? "the drill's process died" : "cancelled");
	}
	if (d->pid > 0)
		reap(d->pid);
	close(d->pipe);
	ft_qemu_cleanup(&d->files);
	free(d);
}
