// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_launch.c - starting and ending a QEMU, and the servers of its disks; see checkpoint/qemu.h. */
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"
#include "ft/diskserver.h"
#include "ft/preload.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT_MS 60000          /* TCG on a busy host */
#define END_TIMEOUT_MS 10000
#define LISTEN_BACKLOG 4

static const char *const dir_files[] = {
	"qmp.sock", "qmp-guard.sock", "qmp-state.sock", "console.log", "qemu.log", "preload", "qemu.pid",
};
enum { F_QMP, F_QMP_GUARD, F_QMP_STATE, F_CONSOLE, F_LOG, F_PRELOAD, F_PID };

/* One start, from the plan to a QEMU that answers; what was made so far can be undone at any point. */
struct start {
	const struct ft_qemu_launch *l;
	struct ft_qemu_plan plan;
	struct ft_attach at;
	char dir[FT_SPEC_PATH_MAX];
	char ram[FT_SPEC_PATH_MAX];
	char machine[64];
	char path[FT_ARRAY_LEN(dir_files)][FT_SPEC_PATH_MAX];
	char preload_so[FT_SPEC_PATH_MAX];
	char **argv, **envp;
	char env_preload[FT_SPEC_PATH_MAX + 16], env_page[FT_SPEC_PATH_MAX + 32];
	int log_fd, null_fd;
	bool ram_made;
};

#define NAME(s) ((s)->l->spec->name)

static void kill_and_wait(const struct ft_attach *at)
{
	struct pollfd p = { .fd = ft_attach_pidfd(at), .events = POLLIN };
	siginfo_t info;

	if (p.fd < 0)
		return;
	pidfd_send_signal(p.fd, SIGKILL, NULL, 0);
	if (poll(&p, 1, END_TIMEOUT_MS) != 1)
		ft_warn("guest %s: its QEMU (pid %d) does not end", at->guest, (int)at->pid);
	waitid(P_PIDFD, (id_t)p.fd, &info, WEXITED | WNOHANG);  /* a scratch guest is our child */
	close(p.fd);
}

/* --- what the start needs, settled before anything is made --- */

static bool set_path(char out[FT_SPEC_PATH_MAX], const char *fmt, ...) FT_PRINTF(2, 3);
static bool set_path(char out[FT_SPEC_PATH_MAX], const char *fmt, ...)
{
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(out, FT_SPEC_PATH_MAX, fmt, ap);
	va_end(ap);
	return n > 0 && n < FT_SPEC_PATH_MAX;
}

int ft_qemu_ram_path(const char *guest, char out[FT_SPEC_PATH_MAX])
{
	return set_path(out, "%s/%s.ram", ft_conf()->shm_dir, guest) ? 0 : -ENAMETOOLONG;
}

static bool paths_fit(struct start *s)
{
	const struct ft_qemu_launch *l = s->l;
	bool fit;

	fit = l->dir[0] ? set_path(s->dir, "%s", l->dir) :
	      set_path(s->dir, "%s/%s/%s", ft_conf()->run_dir, l->kind == FT_QEMU_SCRATCH ? "drill" : "guests", NAME(s));
	fit = fit && (l->ram[0] ? set_path(s->ram, "%s", l->ram) : !ft_qemu_ram_path(NAME(s), s->ram));
	for (unsigned i = 0; i < FT_ARRAY_LEN(dir_files) && fit; i++)
		fit = set_path(s->path[i], "%s/%s", s->dir, dir_files[i]);
	return fit && strlen(s->path[F_QMP_STATE]) < sizeof(((struct sockaddr_un *)0)->sun_path);
}

static int set_paths(struct start *s)
{
	if (!paths_fit(s)) {
		ft_err("guest %s: the path of its directory or memory is too long: set shorter ones in ft.conf ('run-dir', "
		       "'shm-dir')", NAME(s));
		return -ENAMETOOLONG;
	}
	if (strchr(s->dir, ',') || strchr(s->ram, ',')) {
		ft_err("guest %s: QEMU takes no comma in a path: change 'run-dir' or 'shm-dir' in ft.conf", NAME(s));
		return -EINVAL;
	}
	strcpy(s->at.guest, NAME(s));
	strcpy(s->at.qmp, s->path[F_QMP]);
	strcpy(s->at.qmp_guard, s->path[F_QMP_GUARD]);
	strcpy(s->at.qmp_state, s->path[F_QMP_STATE]);
	if (s->l->kind != FT_QEMU_SCRATCH)
		strcpy(s->at.ram, s->ram);
	return 0;
}

static int set_accel(struct start *s)
{
	enum ft_accel want = s->l->accel != FT_ACCEL_AUTO ? s->l->accel : s->l->spec->accel;

	s->at.accel = want == FT_ACCEL_TCG ? FT_ACCEL_TCG : ft_qemu_probe_accel(s->l->spec->kernel);
	if (want == FT_ACCEL_KVM && s->at.accel != FT_ACCEL_KVM) {
		ft_err("guest %s: KVM does not work on this host: say accel = tcg in the guest file, or repair KVM and remove "
		       "%s/accel", NAME(s), ft_conf()->run_dir);
		return -ENODEV;
	}
	return 0;
}

static int set_machine(struct start *s)
{
	const char *m = s->l->machine ? s->l->machine : s->l->spec->machine;

	if (*m)
		return snprintf(s->machine, sizeof(s->machine), "%s", m) < (int)sizeof(s->machine) ? 0 : -EINVAL;
	return ft_qemu_default_machine(s->machine, sizeof(s->machine));
}

/* Without a TSC that follows its clock, a TCG guest must keep time by a device clock: pauses do not stop the TSC. */
static void warn_about_clock(const struct start *s)
{
	const char *c = s->l->spec->cmdline;

	if (s->l->kind == FT_QEMU_GUEST && s->at.accel == FT_ACCEL_TCG && s->l->spec->kernel[0] &&
	    !strstr(c, "clocksource=hpet") && !strstr(c, "clocksource=acpi_pm"))
		ft_warn("guest %s: under TCG its clock loses the time of every pause unless 'cmdline' has clocksource=hpet "
			"tsc=unstable", NAME(s));
}

static int plan_start(struct start *s)
{
	int rc = set_paths(s);

	if (!rc)
		rc = set_accel(s);
	if (!rc)
		rc = set_machine(s);
	if (rc)
		return rc;
	strcpy(s->at.machine, s->machine);
	s->at.memory = s->l->spec->memory;
	s->plan.spec = s->l->spec;
	s->plan.kind = s->l->kind;
	s->plan.accel = s->at.accel;
	s->plan.machine = s->machine;
	s->plan.dir = s->dir;
	s->plan.ram = s->ram;
	s->plan.at = &s->at;
	warn_about_clock(s);
	return 0;
}

/* --- a QEMU that is already there --- */

/* Whose the socket is cannot be asked of the socket (we made it), so the pid lies in a file beside it. */
static int save_pid(const struct start *s)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "%d %" PRIu64 "\n", (int)s->at.pid, s->at.pid_start);
	int rc = ft_write_file(s->path[F_PID], text, (size_t)n, 0600);

	if (rc)
		ft_err("guest %s: cannot write %s: %s", NAME(s), s->path[F_PID], strerror(-rc));
	return rc;
}

static int load_pid(const char *path, const char *guest, struct ft_attach *at)
{
	struct ft_blob text;
	int rc = ft_read_file(path, 64, &text), pid;

	if (rc)
		return rc;
	*at = (struct ft_attach){ 0 };
	strcpy(at->guest, guest);
	rc = sscanf((const char *)text.data, "%d %" SCNu64, &pid, &at->pid_start) == 2 ? 0 : -EINVAL;
	at->pid = pid;
	ft_blob_free(&text);
	return rc;
}

static bool is_parked(const struct start *s, char *state, size_t size)
{
	struct ft_qmp *q;
	json_t *status = NULL;
	int rc = ft_qmp_try(s->path[F_QMP], 5000, &q, state, size);

	if (rc)
		return false;
	rc = ft_qmp_call(q, "query-status", NULL, -1, 5000, &status);
	snprintf(state, size, "%s", rc ? ft_qmp_error(q) : json_string_value(json_object_get(status, "status")));
	json_decref(status);
	ft_qmp_close(q);
	return !rc && !strcmp(state, "inmigrate");
}

/* A parked QEMU whose owner died would keep memory for nothing; one that runs a guest is never touched. */
static int end_leftover(struct start *s)
{
	struct ft_attach left;
	char state[160] = "";

	if (!ft_qmp_listening(s->path[F_QMP]))
		return 0;
	if (s->l->kind != FT_QEMU_GUEST && !load_pid(s->path[F_PID], NAME(s), &left) && is_parked(s, state, sizeof(state))) {
		ft_warn("guest %s: ending a parked QEMU (pid %d) that was left behind", NAME(s), (int)left.pid);
		kill_and_wait(&left);
		return 0;
	}
	ft_err("guest %s: a QEMU already has %s%s%s", NAME(s), s->path[F_QMP], *state ? ": " : "", state);
	return -EEXIST;
}

/* --- making what QEMU is given --- */

static void say_no_room(const struct start *s)
{
	struct statvfs v;
	uint64_t left = statvfs(s->ram, &v) ? 0 : (uint64_t)v.f_bavail * v.f_frsize;

	ft_err("guest %s: no room for its memory of %" PRIu64 " MiB in %s (%" PRIu64 " MiB free): free some, or mount a "
	       "larger tmpfs there", NAME(s), s->at.memory >> 20, s->ram, left >> 20);
}

/*
 * What another QEMU of this name left at the place of our memory, and its users are dead (end_leftover). A replica
 * takes over a file of the right size, as it lies there; a scratch guest only reads the replica's. Anything else goes.
 */
static int clear_old_ram(struct start *s)
{
	struct stat st;

	if (lstat(s->ram, &st) < 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISREG(st.st_mode)) {
		ft_err("guest %s: %s is no regular file: remove it", NAME(s), s->ram);
		return -EINVAL;
	}
	if (s->l->kind != FT_QEMU_GUEST && (uint64_t)st.st_size == s->at.memory)
		return 0;
	if (s->l->kind == FT_QEMU_SCRATCH) {
		ft_err("guest %s: %s has not the guest's %" PRIu64 " MiB: no replica lies there", NAME(s), s->ram,
		       s->at.memory >> 20);
		return -EINVAL;
	}
	return unlink(s->ram) < 0 ? -errno : 0;
}

static int open_ram(struct start *s)
{
	int fd = open(s->ram, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	s->ram_made = fd >= 0;
	if (fd < 0 && errno == EEXIST)
		fd = open(s->ram, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int make_ram(struct start *s)
{
	int fd, rc = clear_old_ram(s);

	if (rc == -EINVAL)
		return rc;
	fd = rc ? rc : open_ram(s);
	if (fd < 0) {
		ft_err("guest %s: cannot make its memory %s: %s (root is needed; 'shm-dir' in ft.conf)", NAME(s), s->ram,
		       strerror(-fd));
		return fd;
	}
	do
		rc = -posix_fallocate(fd, 0, (off_t)s->at.memory);
	while (rc == -EINTR);
	if (rc == -ENOSPC || rc == -EFBIG)
		say_no_room(s);
	else if (rc)
		ft_err("guest %s: cannot allocate its memory %s: %s", NAME(s), s->ram, strerror(-rc));
	close(fd);
	return rc;
}

static int make_dirs(struct start *s)
{
	char ram_dir[FT_SPEC_PATH_MAX];
	int rc = ft_parent_dir(s->ram, ram_dir, sizeof(ram_dir));

	if (!rc)
		rc = ft_mkdir_p(s->dir, 0700);
	if (!rc)
		rc = ft_mkdir_p(ram_dir, 0700);
	if (rc)
		ft_err("guest %s: cannot make %s or %s: %s", NAME(s), s->dir, ram_dir, strerror(-rc));
	for (unsigned i = 0; i < FT_ARRAY_LEN(dir_files); i++)
		unlink(s->path[i]);
	ft_disk_end_left(NAME(s), s->dir);
	ft_disk_remove_files(s->dir);
	return rc;
}

static int listen_at(const char *path, int *out)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc = 0;

	if (fd < 0)
		return -errno;
	strcpy(a.sun_path, path);
	/* The directory is ours alone (0700), so there is no moment at which others could connect. */
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || chmod(path, 0600) < 0 || listen(fd, LISTEN_BACKLOG) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	*out = fd;
	return 0;
}

/* We make the sockets, so that a connection waits in the backlog from the first moment: no polling for QEMU. */
static int make_sockets(struct start *s)
{
	for (unsigned i = 0; i < FT_ARRAY_LEN(s->plan.qmp_fd); i++) {
		int rc = listen_at(s->path[F_QMP + i], &s->plan.qmp_fd[i]);

		if (rc) {
			ft_err("guest %s: cannot make the socket %s: %s", NAME(s), s->path[F_QMP + i], strerror(-rc));
			return rc;
		}
	}
	return 0;
}

static int make_preload(struct start *s)
{
	int fd;

	if (!set_path(s->preload_so, "%s/ft-preload.so", ft_conf()->libexec_dir) || access(s->preload_so, R_OK) < 0) {
		ft_warn("guest %s: there is no %s/ft-preload.so: it will run, but protected its clock falls behind and tracking "
			"is slow", NAME(s), ft_conf()->libexec_dir);
		s->preload_so[0] = 0;
		return 0;
	}
	fd = open(s->path[F_PRELOAD], O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, FT_PRELOAD_SIZE) < 0) {
		int rc = -errno;

		ft_err("guest %s: cannot make %s: %s", NAME(s), s->path[F_PRELOAD], strerror(-rc));
		if (fd >= 0)
			close(fd);
		return rc;
	}
	close(fd);
	strcpy(s->at.preload, s->path[F_PRELOAD]);
	return 0;
}

static int make_tap(struct start *s, unsigned i)
{
	const char *tap = s->plan.tap[i];
	int rc;

	if (s->l->kind == FT_QEMU_SCRATCH) {
		/* Only the number: the tap itself is made by the child in a network namespace of its own. */
		s->plan.tap_fd[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
		return s->plan.tap_fd[i] < 0 ? -errno : 0;
	}
	rc = ft_tap_open(NAME(s), tap, &s->l->spec->nic[i], &s->plan.tap_fd[i]);
	if (rc || s->l->kind == FT_QEMU_PARKED)
		return rc;
	rc = ft_tap_set(tap, true);
	if (rc)
		ft_err("guest %s: cannot set tap %s up: %s", NAME(s), tap, strerror(-rc));
	return rc;
}

static int make_nics(struct start *s)
{
	int rc = 0;

	s->at.nr_nics = s->l->spec->nr_nics;
	for (unsigned i = 0; i < s->at.nr_nics && !rc; i++) {
		memcpy(s->at.nic[i].mac, s->l->spec->nic[i].mac, 6);
		strcpy(s->at.nic[i].bridge, s->l->spec->nic[i].bridge);
		ft_tap_name(NAME(s), i, s->plan.tap[i]);
		strcpy(s->at.nic[i].tap, s->plan.tap[i]);
		rc = make_tap(s, i);
	}
	return rc;
}

/* Before QEMU, which connects as it starts. A scratch guest reads the images itself. */
static int make_disks(struct start *s)
{
	int rc;

	if (s->l->kind == FT_QEMU_SCRATCH)
		return 0;
	rc = ft_disk_plan(s->l->spec, s->dir, &s->at);
	for (unsigned i = 0; i < s->at.nr_disks && !rc; i++)
		rc = ft_disk_serve(&s->at, i, s->l->kind == FT_QEMU_PARKED);
	return rc;
}

static int make_environment(struct start *s)
{
	char *more[] = { s->env_preload, s->env_page, NULL };

	snprintf(s->env_preload, sizeof(s->env_preload), "LD_PRELOAD=%s", s->preload_so);
	snprintf(s->env_page, sizeof(s->env_page), "FT_PRELOAD_PAGE=%s", s->path[F_PRELOAD]);
	if (!s->preload_so[0])
		more[0] = NULL;
	s->envp = ft_spawn_environment(more);
	return s->envp ? 0 : -ENOMEM;
}

static int make_all(struct start *s)
{
	int rc = make_dirs(s);

	if (!rc)
		rc = make_ram(s);
	if (!rc)
		rc = make_sockets(s);
	if (!rc)
		rc = make_preload(s);
	if (!rc)
		rc = make_disks(s);
	if (!rc)
		rc = make_nics(s);
	if (!rc)
		rc = make_environment(s);
	if (!rc)
		rc = ft_qemu_argv(&s->plan, &s->argv);
	if (rc)
		return rc;
	s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	s->log_fd = open(s->path[F_LOG], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (s->null_fd < 0 || s->log_fd < 0) {
		rc = -errno;
		ft_err("guest %s: cannot open %s: %s", NAME(s), s->path[F_LOG], strerror(-rc));
	}
	return rc;
}

/* --- starting --- */

/* Our copies go, so that a QEMU that dies is seen as a closed connection. */
static void close_given(struct start *s)
{
	int *fds[] = { &s->plan.qmp_fd[0], &s->plan.qmp_fd[1], &s->plan.qmp_fd[2], &s->log_fd, &s->null_fd };

	for (unsigned i = 0; i < FT_ARRAY_LEN(fds); i++) {
		if (*fds[i] >= 0)
			close(*fds[i]);
		*fds[i] = -1;
	}
	for (unsigned i = 0; i < FT_SPEC_NICS_MAX; i++) {
		if (s->plan.tap_fd[i] >= 0)
			close(s->plan.tap_fd[i]);
		s->plan.tap_fd[i] = -1;
	}
}

/* What in its log says best why QEMU ended: its last line of its own that is no warning, or else the last line. */
static const char *last_words(const struct start *s, char *log)
{
	const char *prog = strrchr(s->argv[0], '/'), *words = NULL, *last = NULL;
	size_t n;

	prog = prog ? prog + 1 : s->argv[0];
	n = strlen(prog);
	for (char *save, *line = strtok_r(log, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
		const char *own = strstr(line, prog);

		last = line;
		if (own && !strncmp(own + n, ": ", 2) && !strstr(own, "warning: "))
			words = own + n + 2;
	}
	return words ? words : last;
}

static void say_last_words(const struct start *s, const char *why)
{
	struct ft_blob log = { 0 };
	const char *words = NULL;

	if (!ft_read_file(s->path[F_LOG], FT_QEMU_LOG_MAX, &log))
		words = last_words(s, (char *)log.data);
	ft_err("guest %s: QEMU did not start: %s", NAME(s), words ? words : why);
	ft_blob_free(&log);
}

static int take_version(struct ft_attach *at, json_t *version)
{
	json_t *q = json_object_get(version, "qemu");
	json_int_t major = json_integer_value(json_object_get(q, "major"));
	json_int_t minor = json_integer_value(json_object_get(q, "minor"));
	json_int_t micro = json_integer_value(json_object_get(q, "micro"));

	if (!json_is_object(q) || snprintf(at->qemu_version, sizeof(at->qemu_version), "%lld.%lld.%lld", (long long)major,
					   (long long)minor, (long long)micro) >= (int)sizeof(at->qemu_version))
		return -EPROTO;
	return 0;
}

/* QEMU is up when it answers; a QEMU that died closes the connection. */
static int greet(struct start *s)
{
	char why[320] = "out of memory";
	struct ft_qmp *q;
	json_t *version = NULL;
	int rc = ft_qmp_try(s->path[F_QMP], START_TIMEOUT_MS, &q, why, sizeof(why));

	if (!rc) {
		rc = ft_qmp_call(q, "query-version", NULL, -1, START_TIMEOUT_MS, &version);
		snprintf(why, sizeof(why), "%s", ft_qmp_error(q));
	}
	if (!rc)
		rc = take_version(&s->at, version);
	json_decref(version);
	ft_qmp_close(q);
	if (rc)
		say_last_words(s, why);
	return rc;
}

static int spawn(struct start *s, pid_t *pid)
{
	struct ft_qemu_exec x = {
		.plan = &s->plan, .argv = s->argv, .envp = s->envp, .log_fd = s->log_fd, .null_fd = s->null_fd,
	};
	int rc = ft_qemu_spawn(&x, pid);

	if (rc)
		ft_err("guest %s: cannot run %s: %s", NAME(s), s->argv[0],
		       rc == -ENOENT ? "there is no such program (install qemu-system-x86, or set 'qemu' in ft.conf)" :
		       strerror(-rc));
	return rc;
}

static int start_qemu(struct start *s)
{
	pid_t pid;
	int rc = spawn(s, &pid);

	close_given(s);
	if (rc)
		return rc;
	rc = ft_attach_fill_pid(&s->at, pid);
	if (rc) {
		say_last_words(s, "it ended at once");
		return rc;
	}
	rc = save_pid(s);
	return rc ? rc : greet(s);
}

static void free_start(struct start *s)
{
	close_given(s);
	ft_qemu_argv_free(s->argv);
	free(s->envp);
}

int ft_qemu_start(const struct ft_qemu_launch *l, struct ft_attach *out)
{
	struct start s = { .l = l, .plan = { .qmp_fd = { -1, -1, -1 } }, .log_fd = -1, .null_fd = -1 };
	int rc;

	memset(s.plan.tap_fd, 0xff, sizeof(s.plan.tap_fd));
	*out = (struct ft_attach){ 0 };
	rc = plan_start(&s);
	if (!rc)
		rc = end_leftover(&s);
	if (!rc) {
		rc = make_all(&s);
		if (!rc)
			rc = start_qemu(&s);
		if (rc) {
			if (!s.ram_made)        /* it was there before us */
				s.at.ram[0] = 0;
			ft_qemu_cleanup(&s.at);
		}
	}
	if (!rc)
		*out = s.at;
	free_start(&s);
	return rc;
}

/* --- ending --- */

/* An attach record is only a file: what it names is removed where files of ours lie, and nowhere else. */
static bool lies_in(const char *path, const char *dir)
{
	size_t len = strlen(dir);

	return len && !strncmp(path, dir, len) && path[len] == '/' && !strstr(path + len, "/..");
}

static void remove_ram(const struct ft_attach *at)
{
	struct stat st;

	if (!at->ram[0] || (lstat(at->ram, &st) < 0 && errno == ENOENT))
		return;
	if (!lies_in(at->ram, ft_conf()->shm_dir) || lstat(at->ram, &st) < 0 || !S_ISREG(st.st_mode))
		ft_warn("guest %s: its memory %s is not removed, as it is no regular file in %s ('shm-dir' in ft.conf)",
			at->guest, at->ram, ft_conf()->shm_dir);
	else if (unlink(at->ram) < 0)
		ft_warn("guest %s: cannot remove its memory %s: %s", at->guest, at->ram, strerror(errno));
}

/* Where its sockets and logs lie; false when that is no place of ours. */
static bool dir_of(const struct ft_attach *at, char dir[FT_SPEC_PATH_MAX])
{
	return lies_in(at->qmp, ft_conf()->run_dir) && !ft_parent_dir(at->qmp, dir, FT_SPEC_PATH_MAX);
}

/* A QEMU of the same name that came after ours, such as a replica's, has the same places. */
static bool has_successor(const struct ft_attach *at, const char *dir)
{
	char path[FT_SPEC_PATH_MAX + 32];
	struct ft_attach now;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", dir, dir_files[F_PID]);
	if (load_pid(path, at->guest, &now) || (now.pid == at->pid && now.pid_start == at->pid_start))
		return false;
	fd = ft_attach_pidfd(&now);
	if (fd < 0)
		return false;
	close(fd);
	ft_info("guest %s: another QEMU (pid %d) has %s by now: its files stay", at->guest, (int)now.pid, dir);
	return true;
}

static void remove_dir_files(const char *dir)
{
	char path[FT_SPEC_PATH_MAX + 32];

	for (unsigned i = 0; i < FT_ARRAY_LEN(dir_files); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, dir_files[i]);
		unlink(path);
	}
	ft_disk_remove_files(dir);
	rmdir(dir);                     /* if it is empty now */
}

void ft_qemu_cleanup(const struct ft_attach *at)
{
	char dir[FT_SPEC_PATH_MAX];
	bool ours = dir_of(at, dir);

	kill_and_wait(at);
	ft_disk_end(at);
	if (ours && has_successor(at, dir))
		return;
	if (ours)
		ft_disk_end_left(at->guest, dir);       /* one that was started again since @at was read */
	remove_ram(at);
	if (ours)
		remove_dir_files(dir);
}
