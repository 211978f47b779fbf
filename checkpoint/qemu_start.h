// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_start.h - between the files that start a QEMU: command line, taps, probes. */
#ifndef FT_CHECKPOINT_QEMU_START_H
#define FT_CHECKPOINT_QEMU_START_H

#include "checkpoint/qemu.h"

/* All that the command line says; file descriptors have these numbers in QEMU. */
struct ft_qemu_plan {
	const struct ft_spec *spec;
	enum ft_qemu_kind kind;
	enum ft_accel accel;
	const char *machine;
	const char *dir;
	const char *ram;
	int qmp_fd[3];                  /* listening: replicator, guard, the replicator's state command */
	int tap_fd[FT_SPEC_NICS_MAX];
	char tap[FT_SPEC_NICS_MAX][16];
	const struct ft_attach *at;     /* its disks' sockets */
};

/* --- qemu_spawn.c --- */
struct ft_spawn {
	char **argv, **envp;
	/* In the new process, before the program: only system calls. Every descriptor that it leaves open is inherited. */
	int (*prepare)(const void *ctx);
	const void *ctx;
	bool scratch;                   /* our child, which dies with the calling thread; else nobody's */
};
/* Run a program in a session of its own. -errno when it cannot be executed, unlogged. */
int ft_spawn(const struct ft_spawn *x, pid_t *pid) FT_MUST_CHECK;
/*
 * For ft_spawn: our environment without what was meant for us alone, then the strings of @more (NULL ends them). Only
 * the array is new; the caller frees it. NULL: no memory.
 */
char **ft_spawn_environment(char *const *more) FT_MUST_CHECK;

struct ft_qemu_exec {
	const struct ft_qemu_plan *plan;        /* its descriptors are what QEMU inherits */
	char **argv, **envp;
	int log_fd, null_fd;                    /* standard output and error; standard input */
};
/* The same for QEMU. A scratch guest has its taps in an empty network namespace. */
int ft_qemu_spawn(const struct ft_qemu_exec *x, pid_t *pid) FT_MUST_CHECK;

/* --- qemu_argv.c --- */
#define FT_QEMU_KVM_CPU "kvm64"         /* what every host with KVM has, and so the default that can move */
int ft_qemu_argv(const struct ft_qemu_plan *p, char ***argv) FT_MUST_CHECK;
void ft_qemu_argv_free(char **argv);    /* NULL is fine */

/* --- qemu_tap.c --- */
void ft_tap_name(const char *guest, unsigned nic, char name[16]);
/*
 * A tap on @bridge that exists as long as its descriptor is open; down. Nothing of the host speaks on it: no IPv6,
 * and an address that the bridge does not take over. Logged, naming @guest.
 */
int ft_tap_open(const char *guest, const char *name, const struct ft_nic *nic, int *fd) FT_MUST_CHECK;
int ft_tap_set(const char *name, bool up) FT_MUST_CHECK;
/* After fork: a tap in our network namespace under descriptor @fd. Only system calls. */
int ft_tap_open_raw(const char *name, int fd) FT_MUST_CHECK;

/* --- qemu_probe.c --- */
/* What "pc" means to this host's QEMU today, for example pc-i440fx-7.2. Logged. */
int ft_qemu_default_machine(char *machine, size_t size) FT_MUST_CHECK;
/* This host's QEMU in the form of an attach record ("7.2.22"), without starting a machine. Logged. */
int ft_qemu_version(char *version, size_t size) FT_MUST_CHECK;
/* Does this host's QEMU know @machine? 0, -ENOEXEC, or why it could not be asked. Logged. */
int ft_qemu_knows_machine(const char *machine) FT_MUST_CHECK;

#endif
