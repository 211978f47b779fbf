// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * preload.c - lives inside QEMU; see ft/preload.h. Never allocates, locks or logs after its constructor, and whatever
 * fails leaves QEMU as it would be without it.
 */
#include "ft/preload.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* By number: the features are probed on the running kernel, whatever the headers know. */
#define FEATURE_WP             (1ull << 0)
#define FEATURE_WP_SHMEM       (1ull << 12)
#define FEATURE_WP_UNPOPULATED (1ull << 13)
#define FEATURE_WP_ASYNC       (1ull << 15)
#define DEV_UFFD_NEW           _IO(0xAA, 0x00)  /* USERFAULTFD_IOC_NEW of /dev/userfaultfd */

#define STAMP_MASK ((1ull << 48) - 1)

#ifndef KVM_CLOCK_REALTIME
#define KVM_CLOCK_REALTIME (1 << 2)
#endif

typedef int clock_fn(clockid_t clock, struct timespec *ts);
typedef int ioctl_fn(int fd, unsigned long request, void *arg);

static struct ft_preload_page *page;    /* NULL: do nothing */
static clock_fn *real_clock_gettime;
ioctl_fn *ft_preload_ioctl;             /* the real one; tests put a fake in its place */
/*
 * The latch: low 16 bits of the hold's sequence number, then 48 bits of its instant in nanoseconds, so that
 * one compare-and-swap sets both. 48 bits are three days; a hold lasts a second at most.
 */
static _Atomic uint64_t latch;
/* When KVM_GET_CLOCK was answered last, and in which hold. */
static _Atomic uint64_t got_seq, got_ns;

__attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec *ts);
__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, ...);

static int uffd_open(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK), dev;

	if (fd >= 0)
		return fd;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -1;
	fd = ioctl(dev, DEV_UFFD_NEW, O_CLOEXEC | O_NONBLOCK);
	close(dev);
	return fd;
}

/* A userfaultfd that can track writes to shared memory without a handler, or -1. */
static int uffd_new(uint64_t *features)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = FEATURE_WP | FEATURE_WP_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC,
	};
	int fd = uffd_open();

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
		close(fd);
		fd = -1;
	}
	*features = fd >= 0 ? api.features : 0;
	return fd;
}

static struct ft_preload_page *map_page(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;
	void *p = MAP_FAILED;

	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size >= FT_PRELOAD_SIZE)
		p = mmap(NULL, FT_PRELOAD_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	return p == MAP_FAILED ? NULL : p;
}

__attribute__((constructor)) static void preload_start(void)
{
	const char *path = getenv("FT_PRELOAD_PAGE");
	struct ft_preload_page *p = path ? map_page(path) : NULL;
	int32_t nobody = 0;

	real_clock_gettime = (clock_fn *)(uintptr_t)dlsym(RTLD_NEXT, "clock_gettime");
	ft_preload_ioctl = (ioctl_fn *)(uintptr_t)dlsym(RTLD_NEXT, "ioctl");
	if (!p)
		return;
	/* The first process has the page, also through exec; what QEMU may start itself inherits only the variable. */
	if (!atomic_compare_exchange_strong(&p->pid, &nobody, getpid()) && nobody != getpid()) {
		munmap(p, FT_PRELOAD_SIZE);
		return;
	}
	p->version = FT_PRELOAD_VERSION;
	p->uffd = uffd_new(&p->uffd_features);
	page = p;
	atomic_store_explicit(&p->magic, FT_PRELOAD_MAGIC, memory_order_release);
}

static int read_real(clockid_t clock, struct timespec *ts)
{
	/* Constructors that run before ours may ask for the time. */
	return real_clock_gettime ? real_clock_gettime(clock, ts) : (int)syscall(SYS_clock_gettime, clock, ts);
}

/* A thread that slept since the hold before must not put that one back: this one would be latched anew, and earlier. */
static int is_newer(uint64_t seq, uint64_t l)
{
	return (int16_t)((uint16_t)seq - (uint16_t)(l >> 48)) > 0;
}

/*
 * The instant of hold @seq, latching it if we are the first to see it; @now when the hold is too old; 0 when
 * another hold has begun meanwhile.
 */
static uint64_t hold_instant(uint64_t seq, uint64_t now)
{
	uint64_t instant = now - atomic_load(&page->hold_back_ns);
	uint64_t l = atomic_load(&latch), mine = seq << 48 | (instant & STAMP_MASK), age;

	if (is_newer(seq, l) && atomic_compare_exchange_strong(&latch, &l, mine)) {
		l = mine;
		atomic_store(&page->latched_ns, instant);
		atomic_store(&page->latched_seq, seq);
	}
	if (l >> 48 != (seq & 0xffff))
		return 0;
	age = (now - l) & STAMP_MASK;
	return age < atomic_load(&page->hold_limit_ns) ? now - age : now;
}

/*
 * The clock is read between two looks at the sequence number: an answer given while time ran is older than every
 * latch that follows, so no thread sees time go back.
 */
static int read_held(struct timespec *ts)
{
	uint64_t seq = atomic_load(&page->hold_seq), again, now, held;

	for (unsigned tries = 0; ; tries++, seq = again) {
		int rc = read_real(CLOCK_MONOTONIC, ts);

		again = atomic_load(&page->hold_seq);
		if (rc || tries == 16 || (!(seq & 1) && again == seq))
			return rc;
		if (!(seq & 1))
			continue;
		now = (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
		held = hold_instant(seq, now);
		if (!held)
			continue;
		ts->tv_sec = (time_t)(held / 1000000000u);
		ts->tv_nsec = (long)(held % 1000000000u);
		return 0;
	}
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
	return clock == CLOCK_MONOTONIC && page ? read_held(ts) : read_real(clock, ts);
}

/* --- kvmclock: QEMU reads it in stop and writes the same value back in cont, so it would lose every pause --- */

static uint64_t real_now(void)
{
	struct timespec ts;

	return read_real(CLOCK_MONOTONIC, &ts) ? 0 : (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * How old the value is that QEMU is about to write in hold @seq. It ran until it was read, a moment after the latch; a
 * replica, which reads it from the epoch and not from KVM, has it from the instant of the latch.
 */
static uint64_t clock_age(uint64_t seq)
{
	uint64_t now = real_now(), held = hold_instant(seq, now), got = atomic_load(&got_ns);

	if (!held || held >= now)       /* not held any more, or for too long: then time is lost, as without us */
		return 0;
	return atomic_load(&got_seq) == seq && got > held && got <= now ? now - got : now - held;
}

static int set_kvm_clock(int fd, const struct kvm_clock_data *given, uint64_t seq)
{
	struct kvm_clock_data data = *given;

	/* With this flag KVM itself adds the time that has passed since the value was read. */
	if (!(data.flags & KVM_CLOCK_REALTIME))
		data.clock += clock_age(seq);
	return ft_preload_ioctl(fd, KVM_SET_CLOCK, &data);
}

static int get_kvm_clock(int fd, struct kvm_clock_data *data, uint64_t seq)
{
	int rc = ft_preload_ioctl(fd, KVM_GET_CLOCK, data);

	if (!rc) {
		atomic_store(&got_ns, real_now());
		atomic_store(&got_seq, seq);
	}
	return rc;
}

static int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	uint64_t seq = page ? atomic_load(&page->hold_seq) : 0;

	if (!(seq & 1))
		return ft_preload_ioctl(fd, request, arg);
	return request == KVM_SET_CLOCK ? set_kvm_clock(fd, arg, seq) : get_kvm_clock(fd, arg, seq);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	void *arg;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	if (!ft_preload_ioctl)
		return (int)syscall(SYS_ioctl, fd, request, arg);
	if (request == KVM_SET_CLOCK || request == KVM_GET_CLOCK)
		return kvm_ioctl(fd, request, arg);
	return ft_preload_ioctl(fd, request, arg);
}
