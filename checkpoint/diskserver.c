// SPDX-License-Identifier: GPL-3.0-or-later
/* diskserver.c - see ft/diskserver.h. */
#include "checkpoint/nbd.h"
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"
#include "ft/diskserver.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SERVE_TIMEOUT_MS 30000          /* a map is read, a busy host */
#define END_TIMEOUT_MS 60000            /* an fsync */
#define LISTEN_FD 3                     /* where systemd's protocol of socket activation has it */
#define LOG_READ_MAX (64u << 10)
#define LOG_MAX (1 << 20)               /* a server that begins with more forgets what its predecessors said */

static const char *const file_kinds[] = { "nbd", "ctl", "pid", "log" };
enum { F_NBD, F_CONTROL, F_PID, F_LOG };

/* One start of one server. */
struct server {
	const char *guest;
	struct ft_attach_disk *d;
	char pid_file[FT_SPEC_PATH_MAX], log_file[FT_SPEC_PATH_MAX];
	char plugin[FT_SPEC_PATH_MAX + 32];
	char arg_image[FT_SPEC_PATH_MAX + 8], arg_map[FT_SPEC_PATH_MAX + 8], arg_control[FT_SPEC_PATH_MAX + 8];
	char *argv[12];
	char **envp;
	char env_pid[32];               /* filled in by the child, who knows */
	int listen_fd, log_fd, null_fd;
	off_t log_start;                /* what is in the log already is not this one's */
};

/* --- places --- */

static bool disk_path(char out[FT_SPEC_PATH_MAX], const char *dir, unsigned n, unsigned kind)
{
	int len = snprintf(out, FT_SPEC_PATH_MAX, "%s/disk%u.%s", dir, n, file_kinds[kind]);

	return len > 0 && len < FT_SPEC_PATH_MAX;
}

int ft_disk_plan(const struct ft_spec *spec, const char *dir, struct ft_attach *at)
{
	at->nr_disks = spec->nr_disks;
	for (unsigned i = 0; i < spec->nr_disks; i++) {
		struct ft_attach_disk *d = &at->disk[i];

		*d = (struct ft_attach_disk){ .read_only = spec->disk[i].read_only };
		strcpy(d->image, spec->disk[i].image);
		if (!disk_path(d->nbd, dir, i, F_NBD) || !disk_path(d->control, dir, i, F_CONTROL) ||
		    strlen(d->nbd) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
			ft_err("guest %s: the path of its disk's socket is too long: set a shorter 'run-dir' in ft.conf", spec->name);
			return -ENAMETOOLONG;
		}
	}
	return 0;
}

bool ft_disk_map_path(char out[FT_SPEC_PATH_MAX], const char *guest, unsigned n)
{
	int len = snprintf(out, FT_SPEC_PATH_MAX, "%s/%s.disk%u.map", ft_conf()->state_dir, guest, n);

	return len > 0 && len < FT_SPEC_PATH_MAX;
}

void ft_disk_remove_files(const char *dir)
{
	char path[FT_SPEC_PATH_MAX];

	for (unsigned n = 0; n < FT_DISKS_MAX; n++)
		for (unsigned k = 0; k < FT_ARRAY_LEN(file_kinds); k++)
			if (disk_path(path, dir, n, k))
				unlink(path);
}

/* --- who serves --- */

bool ft_disk_served(const struct ft_attach_disk *d)
{
	int fd = ft_pid_open(d->pid, d->pid_start);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static int load_pid(const char *path, struct ft_attach_disk *d)
{
	struct ft_blob text;
	int rc = ft_read_file(path, 64, &text), pid;

	if (rc)
		return rc;
	rc = sscanf((const char *)text.data, "%d %" SCNu64, &pid, &d->pid_start) == 2 ? 0 : -EINVAL;
	d->pid = pid;
	ft_blob_free(&text);
	return rc;
}

static int save_pid(const struct server *s)
{
	char text[64];
	int n = snprintf(text, sizeof(text), "%d %" PRIu64 "\n", (int)s->d->pid, s->d->pid_start);
	int rc = ft_write_file(s->pid_file, text, (size_t)n, 0600);

	if (rc)
		ft_err("guest %s: cannot write %s: %s", s->guest, s->pid_file, strerror(-rc));
	return rc;
}

static int dial(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), rc;

	if (fd < 0)
		return -errno;
	strcpy(a.sun_path, path);
	if (!connect(fd, (struct sockaddr *)&a, sizeof(a)))
		return fd;
	rc = -errno;
	close(fd);
	return rc;
}

/* One that dies, or is about to end, has let go of its socket already, but not yet of the image. */
static bool listens(const struct ft_attach_disk *d)
{
	int fd = dial(d->nbd);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* --- the end of servers: all are told before one is waited for --- */

static void wait_end(const char *guest, const struct ft_attach_disk *d, int fd, uint64_t end)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint64_t now = ft_now_ns();

	if (poll(&p, 1, now < end ? (int)((end - now) / FT_MS_NS) + 1 : 0) == 1)
		return;
	ft_warn("guest %s: the server of its disk %s (process %d) does not end: it is killed", guest, d->image, (int)d->pid);
	pidfd_send_signal(fd, SIGKILL, NULL, 0);
	poll(&p, 1, 10000);
}

static void end_servers(const char *guest, const struct ft_attach_disk *disk, unsigned nr)
{
	uint64_t end = ft_now_ns() + END_TIMEOUT_MS * FT_MS_NS;
	int fd[FT_DISKS_MAX];

	for (unsigned i = 0; i < nr; i++) {
		fd[i] = ft_pid_open(disk[i].pid, disk[i].pid_start);
		if (fd[i] >= 0)
			pidfd_send_signal(fd[i], SIGTERM, NULL, 0);
	}
	for (unsigned i = 0; i < nr; i++) {
		if (fd[i] < 0)
			continue;
		wait_end(guest, &disk[i], fd[i], end);
		close(fd[i]);
	}
}

/* --- a Xen guest's: the kernel is the server's client --- */

static void device_name(const struct ft_attach *at, unsigned n, char name[FT_NAME_MAX + 24])
{
	snprintf(name, FT_NAME_MAX + 24, "ft:%s.disk%u", at->guest, n);
}

int ft_disk_device(const struct ft_attach *at, unsigned n, unsigned *index)
{
	char name[FT_NAME_MAX + 24];

	device_name(at, n, name);
	return nbd_find(NBD_SYS, name, index);
}

int ft_disk_detach(const struct ft_attach *at, unsigned n)
{
	char name[FT_NAME_MAX + 24];

	device_name(at, n, name);
	return nbd_disconnect(at->guest, name);
}

static int connect_device(const struct ft_attach *at, unsigned n)
{
	char name[FT_NAME_MAX + 24];
	unsigned index;

	if (at->hypervisor != FT_HYPERVISOR_XEN)
		return 0;
	device_name(at, n, name);
	return nbd_connect(at->guest, at->disk[n].nbd, name, FT_DISK_RECONNECT_S, &index);
}

void ft_disk_end_one(const struct ft_attach *at, unsigned n)
{
	if (at->hypervisor == FT_HYPERVISOR_XEN)
		ft_ignore(ft_disk_detach(at, n));       /* logged */
	end_servers(at->guest, &at->disk[n], 1);
}

void ft_disk_end(const struct ft_attach *at)
{
	for (unsigned i = 0; i < at->nr_disks && at->hypervisor == FT_HYPERVISOR_XEN; i++)
		ft_ignore(ft_disk_detach(at, i));       /* logged */
	end_servers(at->guest, at->disk, at->nr_disks);
}

void ft_disk_end_left(const char *guest, const char *dir)
{
	struct ft_attach_disk left[FT_DISKS_MAX];
	char path[FT_SPEC_PATH_MAX];
	unsigned nr = 0;

	for (unsigned n = 0; n < FT_DISKS_MAX; n++) {
		left[nr] = (struct ft_attach_disk){ 0 };
		if (!disk_path(path, dir, n, F_PID) || load_pid(path, &left[nr]) || !ft_disk_served(&left[nr]))
			continue;
		snprintf(left[nr].image, sizeof(left[nr].image), "%s", path);
		nr++;
	}
	end_servers(guest, left, nr);
}

/* --- is the image a disk? --- */

static int no_image(const char *guest, const char *image, int rc)
{
	if (rc == -ENOENT)
		ft_err("guest %s: there is no disk image %s: make one, for example with 'truncate -s 10G %s', or name "
		       "another in the guest file", guest, image, image);
	else
		ft_err("guest %s: cannot open its disk image %s: %s%s", guest, image, strerror(-rc),
		       rc == -EROFS || rc == -EACCES || rc == -EPERM ?
		       ": make it writable, or say 'read-only = yes' in the guest file" : "");
	return rc;
}

/* What other formats begin with: served as raw, the guest would read the container instead of the disk. */
static int refuse_format(const char *guest, const char *image, int fd)
{
	static const struct { const char *magic, *name; } formats[] = {
		{ "QFI\xfb", "qcow2" }, { "KDMV", "vmdk" }, { "vhdxfile", "vhdx" }, { "QED", "qed" },
	};
	char head[8] = "";

	if (pread(fd, head, sizeof(head), 0) < 0)
		return no_image(guest, image, -errno);
	for (unsigned i = 0; i < FT_ARRAY_LEN(formats); i++) {
		if (memcmp(head, formats[i].magic, strlen(formats[i].magic)))
			continue;
		ft_err("guest %s: its disk image %s is in %s format, not raw: convert it with 'qemu-img convert -O raw %s NEW'",
		       guest, image, formats[i].name, image);
		return -EINVAL;
	}
	return 0;
}

static int measure(const char *guest, const char *image, int fd, uint64_t *bytes)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st) < 0)
		return no_image(guest, image, -errno);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
		ft_err("guest %s: its disk image %s is neither a file nor a block device", guest, image);
		return -EINVAL;
	}
	end = lseek(fd, 0, SEEK_END);   /* of block devices, too */
	if (end < 0)
		return no_image(guest, image, -errno);
	*bytes = (uint64_t)end;
	return 0;
}

static int check_size(const char *guest, const char *image, uint64_t bytes)
{
	if (bytes && bytes % 512 == 0 && bytes <= FT_DISK_BYTES_MAX)
		return 0;
	ft_err("guest %s: its disk image %s has %" PRIu64 " bytes: it must have a multiple of 512, at most 16 TiB; "
	       "'truncate -s SIZE %s' sets the size of a file", guest, image, bytes, image);
	return -EINVAL;
}

int ft_disk_image_size(const char *guest, const char *image, bool read_only, uint64_t *bytes)
{
	int fd, rc;

	*bytes = 0;
	/* Not blocking: a path of a fifo must not hold us. */
	fd = open(image, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return no_image(guest, image, -errno);
	rc = measure(guest, image, fd, bytes);
	if (!rc)
		rc = refuse_format(guest, image, fd);
	if (!rc)
		rc = check_size(guest, image, *bytes);
	close(fd);
	return rc;
}

/* --- could a replica's be served here? --- */

/* Searched as exec does. */
static bool there_is_program(const char *name)
{
	const char *path = getenv("PATH"), *end;
	char file[2 * FT_PATH_MAX];

	if (strchr(name, '/'))
		return access(name, X_OK) == 0;
	for (path = path ? path : "/usr/bin:/bin"; ; path = end + 1) {
		end = strchrnul(path, ':');
		snprintf(file, sizeof(file), "%.*s/%s", (int)(end - path), path, name);
		if (access(file, X_OK) == 0)
			return true;
		if (!*end)
			return false;
	}
}

int ft_disk_server_check(const struct ft_spec *spec)
{
	const struct ft_conf *c = ft_conf();
	char plugin[2 * FT_PATH_MAX];

	if (!spec->nr_disks)
		return 0;
	snprintf(plugin, sizeof(plugin), "%s/nbdkit-ft-plugin.so", c->libexec_dir);
	if (!there_is_program(c->nbdkit))
		ft_err("guest %s: on %s there is no program %s to serve its disks: install nbdkit, or set 'nbdkit' in ft.conf",
		       spec->name, c->host, c->nbdkit);
	else if (access(plugin, R_OK) < 0)
		ft_err("guest %s: on %s there is no %s to serve its disks: build ft where nbdkit-plugin-dev is installed, and install "
		       "it again", spec->name, c->host, plugin);
	else if (spec->hypervisor == FT_HYPERVISOR_XEN && nbd_available())
		ft_err("guest %s: the kernel of %s has no network block devices for its disks: load the module with 'modprobe nbd'",
		       spec->name, c->host);
	else
		return 0;
	return -ENOENT;
}

/* --- the command --- */

static int set_paths(struct server *s, unsigned n)
{
	const struct ft_conf *c = ft_conf();
	char dir[FT_SPEC_PATH_MAX];
	char map[FT_SPEC_PATH_MAX];
	int rc = ft_parent_dir(s->d->nbd, dir, sizeof(dir));

	if (rc)
		return rc;
	snprintf(s->plugin, sizeof(s->plugin), "%s/nbdkit-ft-plugin.so", c->libexec_dir);
	snprintf(s->arg_image, sizeof(s->arg_image), "image=%s", s->d->image);
	snprintf(s->arg_control, sizeof(s->arg_control), "control=%s", s->d->control);
	if (ft_disk_map_path(map, s->guest, n) && disk_path(s->pid_file, dir, n, F_PID) && disk_path(s->log_file, dir, n, F_LOG)) {
		snprintf(s->arg_map, sizeof(s->arg_map), "map=%s", map);
		return 0;
	}
	ft_err("guest %s: the path of its disk's map is too long: set a shorter 'state-dir' in ft.conf", s->guest);
	return -ENAMETOOLONG;
}

static void set_argv(struct server *s, bool parked)
{
	unsigned n = 0;

	s->argv[n++] = (char *)ft_conf()->nbdkit;
	s->argv[n++] = (char *)"--foreground";          /* and messages go to standard error */
	s->argv[n++] = s->plugin;
	s->argv[n++] = s->arg_image;
	s->argv[n++] = s->arg_map;
	s->argv[n++] = s->arg_control;
	if (parked)
		s->argv[n++] = (char *)"parked=1";
	if (s->d->read_only)
		s->argv[n++] = (char *)"readonly=1";
	s->argv[n] = NULL;
}

static int set_environment(struct server *s)
{
	char *const more[] = { (char *)"LISTEN_FDS=1", s->env_pid, NULL };

	s->envp = ft_spawn_environment(more);
	return s->envp ? 0 : -ENOMEM;
}

static int set_files(struct server *s)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	s->log_fd = open(s->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (s->null_fd < 0 || s->log_fd < 0)
		return -errno;
	s->log_start = lseek(s->log_fd, 0, SEEK_END);
	if (s->log_start > LOG_MAX) {
		if (ftruncate(s->log_fd, 0) < 0)
			return -errno;
		s->log_start = 0;
	}
	s->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->listen_fd < 0)
		return -errno;
	strcpy(a.sun_path, s->d->nbd);
	unlink(a.sun_path);
	/* The directory is ours alone (0700), so there is no moment at which others could connect. */
	if (bind(s->listen_fd, (struct sockaddr *)&a, sizeof(a)) < 0 || chmod(a.sun_path, 0600) < 0 ||
	    listen(s->listen_fd, 4) < 0)
		return -errno;
	return 0;
}

static int make_all(struct server *s, unsigned n, bool parked)
{
	int rc = set_paths(s, n);

	if (rc)
		return rc;
	if (access(s->plugin, R_OK) < 0) {
		ft_err("guest %s: there is no %s, which serves disks: install ft again, built with nbdkit-plugin-dev",
		       s->guest, s->plugin);
		return -ENOENT;
	}
	set_argv(s, parked);
	rc = ft_mkdir_p(ft_conf()->state_dir, 0700);
	if (!rc)
		rc = set_environment(s);
	if (!rc)
		rc = set_files(s);
	if (rc)
		ft_err("guest %s: cannot make %s or what lies beside it: %s", s->guest, s->d->nbd, strerror(-rc));
	return rc;
}

/* --- the new process: only system calls --- */

static void write_pid(char *to, pid_t pid)
{
	char digits[16];
	unsigned n = 0;

	do
		digits[n++] = (char)('0' + pid % 10);
	while (pid /= 10);
	while (n)
		*to++ = digits[--n];
	*to = 0;
}

static int prepare(const void *ctx)
{
	const struct server *s = ctx;

	write_pid(strchr(s->env_pid, '=') + 1, getpid());       /* our own copy, after fork */
	if (dup2(s->null_fd, 0) < 0 || dup2(s->log_fd, 1) < 0 || dup2(s->log_fd, 2) < 0 ||
	    close_range(LISTEN_FD, ~0u, CLOSE_RANGE_CLOEXEC) < 0)
		return -errno;
	if (s->listen_fd == LISTEN_FD ? fcntl(LISTEN_FD, F_SETFD, 0) < 0 : dup2(s->listen_fd, LISTEN_FD) < 0)
		return -errno;
	umask(077);
	return chdir("/") < 0 ? -errno : 0;
}

/* --- until it serves --- */

/* Take @len bytes, or -ECONNRESET: the other end is gone. */
static int take(int fd, char *buf, size_t len, uint64_t end)
{
	for (size_t have = 0; have < len; ) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		uint64_t now = ft_now_ns();
		ssize_t n;

		if (now >= end || poll(&p, 1, (int)((end - now) / FT_MS_NS) + 1) == 0)
			return -ETIMEDOUT;
		n = read(fd, buf + have, len - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -ECONNRESET;
		have += (size_t)n;
	}
	return 0;
}

/*
 * The server is up when it speaks: our connection waits in the backlog from before it began, and breaks when it dies.
 * We ask for nothing (NBD_OPT_ABORT), so to the plugin nobody was there.
 */
static int greet(const struct server *s)
{
	static const char leave[] = "\0\0\0\1" "IHAVEOPT" "\0\0\0\2" "\0\0\0";
	uint64_t end = ft_now_ns() + SERVE_TIMEOUT_MS * FT_MS_NS;
	char hello[18], bye[20];
	int fd = dial(s->d->nbd), rc;

	if (fd < 0)
		return fd;
	rc = take(fd, hello, sizeof(hello), end);
	if (!rc && memcmp(hello, "NBDMAGICIHAVEOPT", 16))
		rc = -EPROTO;
	if (!rc && send(fd, leave, sizeof(leave), MSG_NOSIGNAL) == sizeof(leave))
		ft_ignore(take(fd, bye, sizeof(bye), end));     /* it need not have an answer */
	close(fd);
	return rc;
}

/* The last line that names an error, from there on; else the last line. */
static const char *last_words(char *log)
{
	const char *words = NULL, *last = NULL;

	for (char *save, *line = strtok_r(log, "\r\n", &save); line; line = strtok_r(NULL, "\r\n", &save)) {
		const char *error = strstr(line, "error: ");

		last = line;
		if (error)
			words = error + strlen("error: ");
	}
	return words ? words : last;
}

static int say_last_words(const struct server *s, int rc)
{
	char log[LOG_READ_MAX + 1];
	int fd = open(s->log_file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, log, LOG_READ_MAX, s->log_start);
	const char *words;

	if (fd >= 0)
		close(fd);
	log[n > 0 ? n : 0] = 0;
	words = last_words(log);
	ft_err("guest %s: its disk %s cannot be served: %s", s->guest, s->d->image,
	       words ? words : rc == -ETIMEDOUT ? "nbdkit does not answer" : "nbdkit ended at once");
	return -EIO;
}

static int spawn(struct server *s)
{
	struct ft_spawn x = { .argv = s->argv, .envp = s->envp, .prepare = prepare, .ctx = s };
	int rc = ft_spawn(&x, &s->d->pid);

	/* Our copies go, so that a server that dies is seen as a closed connection. */
	close(s->listen_fd);
	s->listen_fd = -1;
	if (rc)
		ft_err("guest %s: cannot run %s: %s", s->guest, s->argv[0],
		       rc == -ENOENT ? "there is no such program (install nbdkit, or set 'nbdkit' in ft.conf)" : strerror(-rc));
	return rc;
}

static int start(struct server *s)
{
	int rc = spawn(s);

	if (rc)
		return rc;
	rc = ft_pid_start(s->d->pid, &s->d->pid_start);
	if (!rc)
		rc = greet(s);
	if (rc)
		rc = say_last_words(s, rc);
	return rc ? rc : save_pid(s);
}

static void free_server(struct server *s)
{
	const int fds[] = { s->listen_fd, s->log_fd, s->null_fd };

	for (unsigned i = 0; i < FT_ARRAY_LEN(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	free(s->envp);
}

/* Somebody else may have started it anew: the pid file says so, our record does not. */
static void adopt(struct ft_attach_disk *d)
{
	struct ft_attach_disk other = *d;
	char path[FT_SPEC_PATH_MAX];
	size_t len = strlen(d->nbd);

	strcpy(path, d->nbd);
	if (ft_disk_served(d) || len < 4 || strcmp(path + len - 4, ".nbd"))
		return;
	strcpy(path + len - 4, ".pid");
	if (!load_pid(path, &other) && ft_disk_served(&other))
		*d = other;
}

static int start_server(struct ft_attach *at, unsigned n, bool parked)
{
	struct server s = {
		.guest = at->guest, .d = &at->disk[n], .env_pid = "LISTEN_PID=", .listen_fd = -1, .log_fd = -1, .null_fd = -1,
	};
	uint64_t bytes;
	int rc;

	end_servers(at->guest, s.d, 1);
	s.d->pid = 0;
	rc = ft_disk_image_size(at->guest, s.d->image, s.d->read_only, &bytes);
	if (!rc)
		rc = make_all(&s, n, parked);
	if (!rc)
		rc = start(&s);
	if (rc && s.d->pid > 0) {
		end_servers(at->guest, s.d, 1);
		s.d->pid = 0;
	}
	free_server(&s);
	return rc;
}

int ft_disk_serve(struct ft_attach *at, unsigned n, bool parked)
{
	struct ft_attach_disk *d = &at->disk[n];
	int rc = 0;

	adopt(d);
	if (!ft_disk_served(d) || !listens(d))
		rc = start_server(at, n, parked);
	/* Also of one that lives: who started it may have died before this. */
	return rc ? rc : connect_device(at, n);
}

/* --- in the guest's run directory --- */

static int run_dir(const char *guest, char dir[FT_SPEC_PATH_MAX])
{
	int rc = ft_run_path(dir, FT_SPEC_PATH_MAX, guest, "");
	size_t len = strlen(dir);

	if (!rc && len && dir[len - 1] == '/')
		dir[len - 1] = 0;
	return rc;
}

int ft_disk_plan_here(const struct ft_spec *spec, struct ft_attach *at)
{
	char dir[FT_SPEC_PATH_MAX];
	int rc = run_dir(spec->name, dir);

	if (!rc)
		rc = ft_disk_plan(spec, dir, at);
	for (unsigned i = 0; i < at->nr_disks && !rc; i++)
		adopt(&at->disk[i]);
	return rc;
}

void ft_disk_end_here(const struct ft_attach *at)
{
	char dir[FT_SPEC_PATH_MAX];

	ft_disk_end(at);
	if (run_dir(at->guest, dir))
		return;
	ft_disk_end_left(at->guest, dir);       /* one that was started again since @at was read */
	ft_disk_remove_files(dir);
}
