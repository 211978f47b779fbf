// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_argv.c - the one place that knows QEMU's command line.
 *
 * Guest and replica must come out as the same machine, so everything that shapes the machine is said here, and nothing
 * of it depends on the kind of start. Devices are few: each adds to the state that every pause has to serialise.
 */
#include "checkpoint/qemu_start.h"
#include "ft/conf.h"
#include "ft/diskserver.h"

#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#define ARGS_MAX 128
#define FIRST_NIC_SLOT 4                /* pc uses 0..1, q35 0 and 31 */
#define FIRST_DISK_SLOT (FIRST_NIC_SLOT + FT_SPEC_NICS_MAX)

struct args {
	char *v[ARGS_MAX + 1];
	unsigned n;
	bool failed;
};

static void add(struct args *a, const char *fmt, ...) FT_PRINTF(2, 3);
static void add(struct args *a, const char *fmt, ...)
{
	va_list ap;

	assert(a->n < ARGS_MAX);
	va_start(ap, fmt);
	if (vasprintf(&a->v[a->n], fmt, ap) < 0)
		a->failed = true;
	else
		a->n++;
	va_end(ap);
}

static void add_machine(struct args *a, const struct ft_qemu_plan *p)
{
	const struct ft_spec *s = p->spec;

	add(a, "-machine");
	add(a, "%s,memory-backend=ram,usb=off,smbus=off,vmport=off,hpet=on,dump-guest-core=off", p->machine);
	add(a, "-accel");
	add(a, "%s", p->accel == FT_ACCEL_KVM ? "kvm" : "tcg,thread=multi");
	/* Under KVM a feature this host lacks must be an error now, not a fault after takeover. */
	if (p->accel == FT_ACCEL_KVM || s->cpu[0]) {
		add(a, "-cpu");
		add(a, "%s%s", s->cpu[0] ? s->cpu : FT_QEMU_KVM_CPU, p->accel == FT_ACCEL_KVM ? ",enforce" : "");
	}
	add(a, "-smp");
	add(a, "%u", s->vcpus);
	add(a, "-m");
	add(a, "%" PRIu64 "M", s->memory >> 20);
	add(a, "-object");
	add(a, "memory-backend-file,id=ram,mem-path=%s,size=%" PRIu64 ",share=%s",
	    p->ram, s->memory, p->kind == FT_QEMU_SCRATCH ? "off" : "on");
}

static void add_boot(struct args *a, const struct ft_spec *s)
{
	if (s->kernel[0]) {
		add(a, "-kernel");
		add(a, "%s", s->kernel);
	}
	if (s->initrd[0]) {
		add(a, "-initrd");
		add(a, "%s", s->initrd);
	}
	if (s->cmdline[0]) {
		add(a, "-append");
		add(a, "%s", s->cmdline);
	}
}

static const char *virtio_version(enum ft_virtio v)
{
	return v == FT_VIRTIO_MODERN ? "disable-legacy=on" : "disable-modern=on,disable-legacy=off";
}

/* QEMU ends an option's value at a comma, unless it is doubled. */
static void double_commas(char out[2 * FT_SPEC_PATH_MAX], const char *path)
{
	for (; *path; *out++ = *path++)
		if (*path == ',')
			*out++ = ',';
	*out = 0;
}

static bool is_block_device(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode);
}

/*
 * A scratch guest reads the replica's image and writes to a temporary file of its own, which QEMU makes and unlinks,
 * and which can grow no larger than a log may (see ft_qemu_spawn). The image is the store's, so it is not locked.
 */
static void add_scratch_image(struct args *a, const struct ft_disk_spec *d, unsigned i)
{
	char image[2 * FT_SPEC_PATH_MAX];

	double_commas(image, d->image);
	add(a, "-drive");
	add(a, "if=none,id=image%u,format=raw,file.driver=%s,file.filename=%s,file.locking=off,%s", i,
	    is_block_device(d->image) ? "host_device" : "file", image, d->read_only ? "read-only=on" : "snapshot=on");
}

/* Requests of a server that has died wait for the next one; see ft/diskserver.h. */
static void add_served_image(struct args *a, const struct ft_attach_disk *d, unsigned i)
{
	add(a, "-blockdev");
	add(a, "driver=nbd,node-name=image%u,server.type=unix,server.path=%s,reconnect-delay=%u,read-only=%s,discard=unmap,"
	    "detect-zeroes=off", i, d->nbd, FT_DISK_RECONNECT_S, d->read_only ? "on" : "off");
}

/* One queue, as QEMU serves all of them in one thread; its state is small. */
static void add_disk(struct args *a, const struct ft_qemu_plan *p, unsigned i)
{
	const struct ft_disk_spec *d = &p->spec->disk[i];
	char boot[24] = "";

	if (p->kind == FT_QEMU_SCRATCH)
		add_scratch_image(a, d, i);
	else
		add_served_image(a, &p->at->disk[i], i);
	if (!p->spec->kernel[0])
		snprintf(boot, sizeof(boot), ",bootindex=%u", i + 1);
	add(a, "-device");
	add(a, "virtio-blk-pci,id=disk%u,drive=image%u,addr=0x%x,num-queues=1,write-cache=on,%s%s", i, i, FIRST_DISK_SLOT + i,
	    virtio_version(d->virtio), boot);
}

static void add_nic(struct args *a, const struct ft_qemu_plan *p, unsigned i)
{
	const struct ft_nic *nic = &p->spec->nic[i];
	const uint8_t *m = nic->mac;

	add(a, "-netdev");
	add(a, "tap,id=net%u,fd=%d,vhost=off", i, p->tap_fd[i]);
	add(a, "-device");
	add(a, "virtio-net-pci,id=nic%u,netdev=net%u,mac=%02x:%02x:%02x:%02x:%02x:%02x,addr=0x%x,romfile=,%s", i, i,
	    m[0], m[1], m[2], m[3], m[4], m[5], FIRST_NIC_SLOT + i,
	    virtio_version(nic->virtio));
}

static void add_sockets(struct args *a, const struct ft_qemu_plan *p)
{
	static const char *const id[] = { "qmp-replicator", "qmp-guard", "qmp-state" };

	for (unsigned i = 0; i < FT_ARRAY_LEN(id); i++) {
		add(a, "-chardev");
		add(a, "socket,id=%s,fd=%d,server=on,wait=off", id[i], p->qmp_fd[i]);
		add(a, "-mon");
		add(a, "chardev=%s,mode=control", id[i]);
	}
	add(a, "-chardev");
	add(a, "file,id=console,path=%s/console.log", p->dir);
	add(a, "-serial");
	add(a, "chardev:console");
}

int ft_qemu_argv(const struct ft_qemu_plan *p, char ***argv)
{
	struct args *a = calloc(1, sizeof(*a));

	*argv = NULL;
	if (!a)
		return -ENOMEM;
	add(a, "%s", ft_conf()->qemu);
	add(a, "-name");
	add(a, "%s,debug-threads=on", p->spec->name);
	add(a, "-no-user-config");
	add(a, "-nodefaults");
	add(a, "-display");
	add(a, "none");
	add(a, "-vga");
	add(a, "none");
	add_machine(a, p);
	add_boot(a, p->spec);
	for (unsigned i = 0; i < p->spec->nr_disks; i++)
		add_disk(a, p, i);
	for (unsigned i = 0; i < p->spec->nr_nics; i++)
		add_nic(a, p, i);
	add_sockets(a, p);
	if (p->kind != FT_QEMU_GUEST) {
		add(a, "-incoming");
		add(a, "defer");
	}
	*argv = a->v;                   /* the first member: freed as a whole */
	if (!a->failed)
		return 0;
	ft_qemu_argv_free(*argv);
	*argv = NULL;
	return -ENOMEM;
}

void ft_qemu_argv_free(char **argv)
{
	if (!argv)
		return;
	for (unsigned i = 0; argv[i]; i++)
		free(argv[i]);
	free(argv);
}
