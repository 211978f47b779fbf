// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * bench_tracker.c - what a take costs: each tracker that works here, by size of RAM and number of written pages.
 *
 * One JSON object a line. first_write_ns: what tracking adds to the guest's first write to a page, for it is
 * the guest that pays for that. QUICK=1: the smallest size only. A size that memory does not suffice for is
 * skipped with a line that says so.
 */
#include "checkpoint/uffd_abi.h"
#include "ft/tracker.h"

#include <fcntl.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#define ROUNDS 30
#define BUDGET_NS (5 * FT_S_NS)
#define MAX_DIRTY 10000

struct desk {                           /* shared with the target */
	uint64_t addr;
	int uffd;
	bool kvm;
	uint32_t nr;
	uint32_t page[MAX_DIRTY];
	uint64_t write_ns;              /* time for all of them */
};

struct bench {
	struct desk *desk;
	struct ft_track_target t;
	uint8_t *ram;
	int ram_fd, wire;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t random_next(void)
{
	static uint64_t state = 88172645463325252ull;

	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* --- the target --- */

static int make_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FT_UFFD_FEATURES };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	return fd >= 0 && ioctl(fd, UFFDIO_API, &api) ? -1 : fd;
}

/* A process that holds a KVM guest is scanned in another way. */
static bool hold_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	return kvm >= 0 && ioctl(kvm, KVM_CREATE_VM, 0) >= 0;
}

static void write_pages(struct desk *d, uint8_t *ram)
{
	uint64_t start = ft_now_ns();

	for (uint32_t i = 0; i < d->nr; i++)
		++*(volatile uint64_t *)(ram + (uint64_t)d->page[i] * FT_PAGE_SIZE);
	d->write_ns = ft_now_ns() - start;
}

static void target_main(const struct bench *b, int wire, bool kvm)
{
	uint64_t len = b->t.nr_pages * FT_PAGE_SIZE;
	uint8_t *ram = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, b->ram_fd, 0);
	char c;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (ram == MAP_FAILED)
		_exit(1);
	for (uint64_t p = 0; p < b->t.nr_pages; p++)
		*(volatile uint64_t *)(ram + p * FT_PAGE_SIZE) = p;
	b->desk->addr = (uintptr_t)ram;
	b->desk->uffd = make_uffd();
	b->desk->kvm = kvm && hold_kvm();
	b->desk->nr = 0;
	do {
		write_pages(b->desk, ram);
		if (send(wire, "", 1, 0) != 1)
			break;
	} while (recv(wire, &c, 1, 0) == 1);
	_exit(0);
}

static void await_target(const struct bench *b)
{
	char c;

	if (recv(b->wire, &c, 1, 0) != 1)
		die("the target");
}

/* Have @nr random pages written. */
static void dirty_pages(const struct bench *b, uint32_t nr)
{
	b->desk->nr = nr;
	for (uint32_t i = 0; i < nr; i++)
		b->desk->page[i] = (uint32_t)(random_next() % b->t.nr_pages);
	if (send(b->wire, "", 1, 0) != 1)
		die("the target");
	await_target(b);
}

static void target_start(struct bench *b, bool kvm)
{
	int sv[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv))
		die("socketpair");
	b->t.pid = fork();
	if (b->t.pid == 0) {
		close(sv[0]);
		target_main(b, sv[1], kvm);
	}
	close(sv[1]);
	b->wire = sv[0];
	await_target(b);
	b->t.addr = b->desk->addr;
	b->t.uffd = b->desk->uffd;
	b->t.pidfd = (int)syscall(SYS_pidfd_open, b->t.pid, 0);
	if (b->t.pidfd < 0)
		die("pidfd_open");
}

static void target_stop(struct bench *b)
{
	close(b->wire);
	waitpid(b->t.pid, NULL, 0);
	close(b->t.pidfd);
}

/* --- measuring --- */

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

struct samples {
	unsigned nr;
	uint64_t ns[ROUNDS];
};

static uint64_t at_rank(struct samples *s, unsigned rank)
{
	qsort(s->ns, s->nr, sizeof(s->ns[0]), by_value);
	return s->ns[rank];
}

/* Take by take, until there are enough or it has taken long enough. Returns how many pages were reported each. */
static uint64_t run_takes(const struct bench *b, struct ft_tracker *tr, uint32_t nr, struct samples *takes,
			  struct samples *writes)
{
	uint64_t limit = ft_now_ns() + BUDGET_NS, reported = 0;
	struct ft_bitmap dirty;

	if (ft_bitmap_init(&dirty, b->t.nr_pages))
		die("bitmap");
	for (takes->nr = 0; takes->nr < ROUNDS && (takes->nr < 3 || ft_now_ns() < limit);) {
		uint64_t t0;

		dirty_pages(b, nr);
		ft_bitmap_zero(&dirty);
		t0 = ft_now_ns();
		if (tr->ops->take(tr, &dirty))
			exit(1);
		takes->ns[takes->nr] = ft_now_ns() - t0;
		writes->ns[takes->nr++] = b->desk->write_ns / nr;
		reported += ft_bitmap_count(&dirty);
	}
	ft_bitmap_free(&dirty);
	writes->nr = takes->nr;
	return reported / takes->nr;
}

static void measure_takes(const struct bench *b, struct ft_tracker *tr, uint32_t nr, uint64_t start_ns)
{
	struct samples takes, writes;
	uint64_t reported = run_takes(b, tr, nr, &takes, &writes);

	printf("{\"bench\": \"scan\", \"tracker\": \"%s\", \"kvm\": %s, \"mib\": %" PRIu64 ", \"dirty\": %u, \"reported\": %" PRIu64
	       ", \"rounds\": %u, \"min_us\": %" PRIu64 ", \"p50_us\": %" PRIu64 ", \"max_us\": %" PRIu64
	       ", \"start_us\": %" PRIu64 ", \"first_write_ns\": %" PRIu64 "}\n",
	       tr->ops->name, b->desk->kvm ? "true" : "false", b->t.nr_pages >> 8, nr, reported, takes.nr,
	       at_rank(&takes, 0) / 1000, at_rank(&takes, takes.nr / 2) / 1000, at_rank(&takes, takes.nr - 1) / 1000,
	       start_ns / 1000, at_rank(&writes, writes.nr / 2));
	fflush(stdout);
}

static void measure(const struct bench *b, const struct ft_tracker_ops *ops)
{
	struct ft_tracker *tr;
	uint64_t t0;

	if (ops->probe(&b->t))
		return;
	if (ops->open(&b->t, &tr))
		exit(1);
	t0 = ft_now_ns();
	if (ops->start(tr))
		exit(1);
	t0 = ft_now_ns() - t0;
	measure_takes(b, tr, 100, t0);
	measure_takes(b, tr, MAX_DIRTY, t0);
	ops->close(tr);
}

/* For RAM, the shadow of compare, and some room. */
static bool memory_suffices(uint64_t mib)
{
	unsigned long kb = 0;
	char line[128];
	FILE *f = fopen("/proc/meminfo", "re");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %lu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb / 1024 > 2 * mib + mib / 4;
}

static void measure_size(uint64_t mib)
{
	struct bench b = { .t.nr_pages = mib << 8 };
	uint64_t len = mib << 20;

	if (!memory_suffices(mib)) {
		printf("{\"bench\": \"scan\", \"mib\": %" PRIu64 ", \"skipped\": \"not enough memory\"}\n", mib);
		return;
	}
	b.ram_fd = memfd_create("ram", MFD_CLOEXEC);
	if (b.ram_fd < 0 || ftruncate(b.ram_fd, (off_t)len))
		die("memfd");
	b.ram = mmap(NULL, len, PROT_READ, MAP_SHARED, b.ram_fd, 0);
	b.desk = mmap(NULL, sizeof(*b.desk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (b.ram == MAP_FAILED || b.desk == MAP_FAILED)
		die("mmap");
	b.t.ram = b.ram;
	target_start(&b, false);
	measure(&b, &ft_tracker_uffd);
	measure(&b, &ft_tracker_softdirty);
	measure(&b, &ft_tracker_compare);
	target_stop(&b);
	target_start(&b, true);
	if (b.desk->kvm)
		measure(&b, &ft_tracker_uffd);
	target_stop(&b);
	munmap(b.ram, len);
	munmap(b.desk, sizeof(*b.desk));
	close(b.ram_fd);
}

static void drop_line(void *ctx, enum ft_log_level level, const char *line)
{
	if (level <= FT_LOG_WARN)
		fprintf(stderr, "%s\n", line);
}

int main(void)
{
	ft_log_divert(drop_line, NULL);
	measure_size(256);
	if (getenv("QUICK"))
		return 0;
	measure_size(2048);
	measure_size(8192);
	return 0;
}
