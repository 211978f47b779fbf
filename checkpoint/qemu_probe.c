// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_probe.c - what QEMU can do on this host, found out by running it. */
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT_MAX (256u << 10)
#define HELP_TIMEOUT_MS 20000
#define KVM_TIMEOUT_MS 8000             /* with KVM each takes a second or two */

struct output {
	char text[OUTPUT_MAX + 1];
	size_t len;
};

/* Read until the end, @needle, or the deadline; true when @needle came. */
static bool read_output(int fd, const char *needle, unsigned timeout_ms, struct output *o)
{
	uint64_t deadline = ft_now_ns() + timeout_ms * FT_MS_NS;

	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		uint64_t now = ft_now_ns();
		ssize_t n;

		if (now >= deadline || o->len == OUTPUT_MAX)
			return false;
		if (poll(&p, 1, (int)((deadline - now) / FT_MS_NS) + 1) <= 0)
			continue;
		n = read(fd, o->text + o->len, OUTPUT_MAX - o->len);
		if (n <= 0)
			return false;
		o->len += (size_t)n;
		o->text[o->len] = 0;
		if (needle && strstr(o->text, needle))
			return true;
	}
}

static int spawn_with_output(char *const argv[], int *out, pid_t *pid)
{
	posix_spawn_file_actions_t fa;
	int p[2], rc;

	if (pipe2(p, O_CLOEXEC) < 0)
		return -errno;
	posix_spawn_file_actions_init(&fa);
	posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", O_RDONLY, 0);
	posix_spawn_file_actions_adddup2(&fa, p[1], 1);
	posix_spawn_file_actions_addopen(&fa, 2, "/dev/null", O_WRONLY, 0);
	rc = -posix_spawnp(pid, argv[0], &fa, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	close(p[1]);
	if (rc) {
		close(p[0]);
		return rc;
	}
	*out = p[0];
	return 0;
}

/* Run @argv for at most @timeout_ms and collect what it says. 1 when @needle came, else 0 or -errno. */
static int run(const char *const argv[], const char *needle, unsigned timeout_ms, struct output *o)
{
	int fd = -1, rc;
	pid_t pid;

	o->len = 0;
	o->text[0] = 0;
	rc = spawn_with_output((char *const *)argv, &fd, &pid);
	if (rc)
		return rc;
	rc = read_output(fd, needle, timeout_ms, o);
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	close(fd);
	return rc;
}

/* "pc   Standard PC (...) (alias of pc-i440fx-7.2)" */
static bool find_alias(const char *help, char *machine, size_t size)
{
	const char *line = strstr(help, "\npc "), *alias, *end;

	if (!line)
		return false;
	end = strchrnul(line + 1, '\n');
	alias = strstr(line, "(alias of ");
	if (!alias || alias > end)
		return false;
	alias += strlen("(alias of ");
	end = strchr(alias, ')');
	return end && (size_t)snprintf(machine, size, "%.*s", (int)(end - alias), alias) < size;
}

/* What QEMU says to these arguments; the caller frees it. NULL, after saying why in *rc and in the log. */
static struct output *ask_qemu(const char *arg1, const char *arg2, int *rc)
{
	const char *argv[] = { ft_conf()->qemu, arg1, arg2, NULL };
	struct output *o = malloc(sizeof(*o));

	*rc = o ? run(argv, NULL, HELP_TIMEOUT_MS, o) : -ENOMEM;
	if (*rc >= 0)
		return o;
	ft_err("cannot run %s on %s: %s (install qemu-system-x86, or set 'qemu' in ft.conf)", argv[0], ft_conf()->host,
	       strerror(-*rc));
	free(o);
	return NULL;
}

int ft_qemu_default_machine(char *machine, size_t size)
{
	int rc;
	struct output *o = ask_qemu("-machine", "help", &rc);

	if (!o)
		return rc;
	if (!find_alias(o->text, machine, size)) {
		ft_err("%s -machine help names no machine type for 'pc': set 'machine' in the guest file", ft_conf()->qemu);
		rc = -ENOTSUP;
	}
	free(o);
	return rc;
}

int ft_qemu_version(char *version, size_t size)
{
	static const char before[] = "version ";
	const char *at;
	int rc;
	struct output *o = ask_qemu("--version", NULL, &rc);

	if (!o)
		return rc;
	at = strstr(o->text, before);
	if (at)
		snprintf(version, size, "%.*s", (int)strspn(at + sizeof(before) - 1, "0123456789."), at + sizeof(before) - 1);
	if (!at || !*version) {
		ft_err("%s --version on %s names no version: is it QEMU? (set 'qemu' in ft.conf)", ft_conf()->qemu, ft_conf()->host);
		rc = -ENOENT;
	}
	free(o);
	return rc;
}

/* Its lines begin with the name. */
int ft_qemu_knows_machine(const char *machine)
{
	char line[80];
	int rc;
	struct output *o = ask_qemu("-machine", "help", &rc);

	if (!o)
		return rc;
	snprintf(line, sizeof(line), "\n%s ", machine);
	if (!strstr(o->text, line)) {
		ft_err("machine type %s is unknown to %s on %s: set a 'machine' in the guest file that both hosts' QEMU have, and "
		       "start the guest again", machine, ft_conf()->qemu, ft_conf()->host);
		rc = -ENOEXEC;
	}
	free(o);
	return rc;
}

/*
 * /dev/kvm may open, and firmware run to its end, on hosts where an operating system then hangs in silence. So the
 * firmware must give up, and where the guest brings a kernel, that one must say something. Each with the default CPU.
 */
#define KVM_ARGS ft_conf()->qemu, "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", \
	"-accel", "kvm", "-cpu", (FT_QEMU_KVM_CPU ",enforce")

/* 1 or 0; -errno: that could not be tried, which says nothing about KVM. */
static int runs_firmware(struct output *o)
{
	const char *argv[] = { KVM_ARGS, "-m", "16M", "-global", "isa-debugcon.iobase=0x402", "-debugcon", "stdio", NULL };
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0) {
		ft_info("KVM cannot be used: /dev/kvm: %s", strerror(errno));
		return -ENODEV;
	}
	close(fd);
	return run(argv, "No bootable device", KVM_TIMEOUT_MS, o);
}

/* How far it comes without its root is its own affair: a kernel that speaks has been decompressed and runs. */
static int runs_kernel(const char *kernel, struct output *o)
{
	const char *argv[] = {
		KVM_ARGS, "-m", "256M", "-smp", "2", "-no-reboot", "-serial", "stdio", "-kernel", kernel,
		"-append", "console=ttyS0 panic=-1", NULL
	};

	return access(kernel, R_OK) < 0 ? -errno : run(argv, "Linux version", KVM_TIMEOUT_MS, o);
}

/* --- what is known already: RUN_DIR/accel, a line "kvm KEY" or "tcg KEY" for the firmware and each kernel file --- */

#define KNOWN_MAX 65536
#define KEY_MAX (FT_SPEC_PATH_MAX + 64)

static void accel_path(char *path, size_t size)
{
	snprintf(path, size, "%s/accel", ft_conf()->run_dir);
}

/* Another file of the same name is another kernel. */
static void key_of(const char *kernel, char key[KEY_MAX])
{
	struct stat st = { 0 };

	if (!*kernel) {
		strcpy(key, "firmware");
		return;
	}
	(void)stat(kernel, &st);        /* QEMU will say that it is not there */
	snprintf(key, KEY_MAX, "%lld.%09ld %lld %s", (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (long long)st.st_size,
		 kernel);
}

/* 1: KVM, 0: not, -ENOENT: not known. */
static int recall(const char *key)
{
	char path[FT_PATH_MAX + 8];
	struct ft_blob known;
	int rc = -ENOENT;

	accel_path(path, sizeof(path));
	if (ft_read_file(path, KNOWN_MAX, &known))
		return -ENOENT;
	for (char *save, *line = strtok_r((char *)known.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		if (strlen(line) > 4 && !strcmp(line + 4, key))
			rc = !strncmp(line, "kvm ", 4);
	ft_blob_free(&known);
	return rc;
}

static void remember(const char *key, bool kvm)
{
	char path[FT_PATH_MAX + 8], *text = NULL;
	struct ft_blob known = { 0 };
	int n;

	accel_path(path, sizeof(path));
	if (ft_read_file(path, KNOWN_MAX / 2, &known))
		known = (struct ft_blob){ 0 };          /* none yet, or so long that it starts anew */
	n = asprintf(&text, "%s%s %s\n", known.data ? (const char *)known.data : "", kvm ? "kvm" : "tcg", key);
	if (n < 0 || ft_mkdir_p(ft_conf()->run_dir, 0755) || ft_write_file(path, text, (size_t)n, 0644))
		ft_warn("cannot write %s: KVM will be probed again", path);
	if (n >= 0)
		free(text);
	ft_blob_free(&known);
}

/*
 * A failure may have been a time-out on a busy machine: who reads this can have it tried again. What could not be tried,
 * as QEMU is not installed yet, is not remembered, and who starts the guest then says why.
 */
static bool believe(const char *what, const char *key, int kvm)
{
	char path[FT_PATH_MAX + 8];

	if (kvm < 0)
		return false;
	accel_path(path, sizeof(path));
	remember(key, kvm);
	if (kvm)
		ft_info("KVM runs %s; remembered in %s", what, path);
	else
		ft_info("KVM does not run %s (it had %u s): it goes under TCG, until the next boot; remove %s to have KVM tried "
			"again", what, KVM_TIMEOUT_MS / 1000, path);
	return kvm;
}

static bool kvm_works(const char *kernel, struct output *o)
{
	char key[KEY_MAX];
	int known;

	key_of("", key);
	known = recall(key);
	if (known < 0)
		known = believe("firmware on this host", key, runs_firmware(o));
	if (!known || !*kernel)
		return known;
	key_of(kernel, key);
	known = recall(key);
	return known < 0 ? believe(kernel, key, runs_kernel(kernel, o)) : known;
}

enum ft_accel ft_qemu_probe_accel(const char *kernel)
{
	struct output *o = malloc(sizeof(*o));
	bool kvm = o && kvm_works(kernel, o);

	free(o);
	return kvm ? FT_ACCEL_KVM : FT_ACCEL_TCG;
}
