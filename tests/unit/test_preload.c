// SPDX-License-Identifier: GPL-3.0-or-later
/* test_preload.c - what runs inside QEMU: time stands still exactly as long as asked, and nothing else changes. */
#include "ft/preload.h"
#include "tests/test.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct ft_preload_page *page;
static int (*preload_gettime)(clockid_t clock, struct timespec *ts);
static int (*preload_ioctl)(int fd, unsigned long request, ...);
static int (**behind_ioctl)(int fd, unsigned long request, void *arg);

/* ft-preload.so lies in ../bin from here. */
static void load_preload(void)
{
	char self[256], so[300];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	void *handle;

	CHECK(n > 0);
	self[n] = 0;
	*strrchr(self, '/') = 0;
	snprintf(so, sizeof(so), "%s/../bin/ft-preload.so", self);
	handle = dlopen(so, RTLD_NOW | RTLD_LOCAL);
	if (!handle)
		ft_test_fail(__FILE__, __LINE__, "%s", dlerror());
	preload_gettime = (int (*)(clockid_t, struct timespec *))(uintptr_t)dlsym(handle, "clock_gettime");
	preload_ioctl = (int (*)(int, unsigned long, ...))(uintptr_t)dlsym(handle, "ioctl");
	behind_ioctl = dlsym(handle, "ft_preload_ioctl");
	CHECK(preload_gettime && preload_ioctl && behind_ioctl && *behind_ioctl);
}

static void with_page(off_t size)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/page", ft_test_dir());
	fd = open(path, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && !ftruncate(fd, size));
	page = mmap(NULL, FT_PRELOAD_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	setenv("FT_PRELOAD_PAGE", path, 1);
	load_preload();
}

static uint64_t preload_now(void)
{
	struct timespec ts;

	CHECK_OK(preload_gettime(CLOCK_MONOTONIC, &ts));
	return (uint64_t)ts.tv_sec * FT_S_NS + (uint64_t)ts.tv_nsec;
}

static void hold(uint64_t limit_ns)
{
	atomic_store(&page->hold_limit_ns, limit_ns);
	atomic_fetch_add(&page->hold_seq, 1);
}

static void let_go(void)
{
	atomic_fetch_add(&page->hold_seq, 1);
}

TEST(time_runs_until_it_is_held)
{
	uint64_t before, t;

	with_page(FT_PRELOAD_SIZE);
	before = ft_now_ns();
	t = preload_now();
	CHECK(before <= t && t <= ft_now_ns());
	CHECK_EQ(atomic_load(&page->latched_seq), 0);
}

TEST(held_time_stands_still_and_then_jumps_over_the_pause)
{
	uint64_t before, held, t;

	with_page(FT_PRELOAD_SIZE);
	before = preload_now();
	hold(FT_S_NS * 50);
	held = preload_now();
	CHECK(before <= held);
	usleep(20000);
	CHECK_EQ(preload_now(), held);
	CHECK_EQ(atomic_load(&page->latched_ns), held);
	CHECK_EQ(atomic_load(&page->latched_seq), 1);
	let_go();
	t = preload_now();
	CHECK(t >= held + 20000000 && t <= ft_now_ns());
	hold(FT_S_NS * 50);
	CHECK(preload_now() >= t);
}

TEST(a_hold_can_begin_in_the_past_and_time_catches_up)
{
	uint64_t before, held;

	with_page(FT_PRELOAD_SIZE);
	before = preload_now();
	atomic_store(&page->hold_back_ns, 3 * FT_S_NS);
	hold(FT_S_NS * 50);
	held = preload_now();
	CHECK(held >= before - 3 * FT_S_NS && held <= ft_now_ns() - 3 * FT_S_NS);
	usleep(2000);
	CHECK_EQ(preload_now(), held);
	let_go();
	CHECK(preload_now() >= held + 3 * FT_S_NS);
}

TEST(a_dead_holder_does_not_stop_time)
{
	uint64_t held;

	with_page(FT_PRELOAD_SIZE);
	hold(30 * FT_MS_NS);
	held = preload_now();
	while (ft_now_ns() < held + 30 * FT_MS_NS)
		usleep(1000);
	CHECK(preload_now() >= held + 30 * FT_MS_NS);
	let_go();
	hold(0);
	held = ft_now_ns();
	CHECK(preload_now() >= held);
}

TEST(other_clocks_are_left_alone)
{
	struct timespec a, b;

	with_page(FT_PRELOAD_SIZE);
	hold(FT_S_NS * 50);
	preload_now();
	CHECK_OK(preload_gettime(CLOCK_REALTIME, &a));
	usleep(2000);
	CHECK_OK(preload_gettime(CLOCK_REALTIME, &b));
	CHECK(a.tv_nsec != b.tv_nsec);
	CHECK_EQ(preload_gettime(12345, &a), -1);
}

/* --- kvmclock, with a fake of KVM behind the preload: no machine of ours has a KVM that runs a guest --- */

#define BOOT_NS (77 * FT_S_NS)          /* what the fake's clock says, always */

static struct kvm_clock_data written;   /* what came through to KVM */
static unsigned nr_calls;

static int fake_kvm(int fd, unsigned long request, void *arg)
{
	struct kvm_clock_data *data = arg;

	CHECK_EQ(fd, 42);
	nr_calls++;
	if (request == KVM_SET_CLOCK)
		written = *data;
	else if (request == KVM_GET_CLOCK)
		data->clock = BOOT_NS;
	else
		CHECK_EQ(request, KVM_RUN);
	return 0;
}

static void with_fake_kvm(void)
{
	with_page(FT_PRELOAD_SIZE);
	*behind_ioctl = fake_kvm;
}

/* As QEMU does in stop and cont: what it read is what it writes. The time KVM is set ahead by, in a pause of @ms. */
static uint64_t stop_and_cont(unsigned ms, unsigned flags)
{
	struct kvm_clock_data data = { 0 };

	preload_now();                  /* the latch */
	usleep(30000);                  /* the stop takes effect: the guest's clock ran until then */
	CHECK_OK(preload_ioctl(42, KVM_GET_CLOCK, &data));
	usleep(ms * 1000);
	data = (struct kvm_clock_data){ .clock = data.clock, .flags = flags };
	CHECK_OK(preload_ioctl(42, KVM_SET_CLOCK, &data));
	CHECK_EQ(data.clock, BOOT_NS);  /* QEMU's own is not touched */
	CHECK_EQ(written.flags, flags);
	return written.clock - BOOT_NS;
}

TEST(kvmclock_gets_back_the_time_of_a_pause_and_no_more)
{
	uint64_t start, ahead;

	with_fake_kvm();
	hold(FT_S_NS * 50);
	start = ft_now_ns();
	ahead = stop_and_cont(20, 0);
	CHECK(ahead >= 20 * FT_MS_NS && ahead + 30 * FT_MS_NS <= ft_now_ns() - start);
	let_go();
	CHECK_EQ(stop_and_cont(5, 0), 0);       /* somebody else's stop: not ours to hide */
	CHECK_OK(preload_ioctl(42, KVM_RUN, 0));
	CHECK_EQ(nr_calls, 5);
}

TEST(kvmclock_of_a_replica_catches_up_with_the_outage)
{
	struct kvm_clock_data data = { .clock = BOOT_NS };
	uint64_t start = ft_now_ns();

	with_fake_kvm();
	atomic_store(&page->hold_back_ns, 3 * FT_S_NS);
	hold(FT_S_NS * 50);
	preload_now();
	usleep(5000);
	CHECK_OK(preload_ioctl(42, KVM_SET_CLOCK, &data));
	CHECK(written.clock >= BOOT_NS + 3 * FT_S_NS + 5 * FT_MS_NS && written.clock <= BOOT_NS + 3 * FT_S_NS + ft_now_ns() - start);
}

TEST(kvmclock_is_left_alone_where_nothing_is_to_be_added)
{
	with_fake_kvm();
	hold(1);                        /* its holder died long ago */
	CHECK_EQ(stop_and_cont(2, 0), 0);
	let_go();
	hold(FT_S_NS * 50);             /* KVM adds the time itself */
	CHECK_EQ(stop_and_cont(2, 1 << 2), 0);
}

/* The kernel's own KVM takes the corrected value, also where no guest runs in it. */
TEST(kvm_really_moves_its_clock_by_the_pause)
{
	struct kvm_clock_data data = { .clock = BOOT_NS };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0)
		ft_test_skip("no KVM here");
	with_page(FT_PRELOAD_SIZE);
	hold(FT_S_NS * 50);
	preload_now();
	usleep(20000);
	CHECK_OK(preload_ioctl(vm, KVM_SET_CLOCK, &data));
	CHECK_OK(preload_ioctl(vm, KVM_GET_CLOCK, &data));
	CHECK(data.clock >= BOOT_NS + 20 * FT_MS_NS && data.clock < BOOT_NS + 10 * FT_S_NS);
	close(vm);
	close(kvm);
}

static atomic_bool stop_readers;

static void *read_time(void *arg)
{
	uint64_t last = 0;

	while (!atomic_load(&stop_readers)) {
		uint64_t t = preload_now();

		if (t < last)
			return (void *)1;
		last = t;
	}
	return NULL;
}

TEST(time_never_runs_backwards_in_any_thread)
{
	pthread_t readers[4];
	void *backwards;

	with_page(FT_PRELOAD_SIZE);
	for (unsigned i = 0; i < 4; i++)
		CHECK_OK(pthread_create(&readers[i], NULL, read_time, NULL));
	for (unsigned i = 0; i < 300; i++) {
		hold(FT_S_NS * 50);
		usleep(500);
		let_go();
		usleep(500);
	}
	atomic_store(&stop_readers, true);
	for (unsigned i = 0; i < 4; i++) {
		CHECK_OK(pthread_join(readers[i], &backwards));
		CHECK(!backwards);
	}
}

TEST(the_page_says_who_has_it_and_whether_writes_can_be_tracked)
{
	with_page(FT_PRELOAD_SIZE);
	CHECK_EQ(atomic_load(&page->magic), FT_PRELOAD_MAGIC);
	CHECK_EQ(page->version, FT_PRELOAD_VERSION);
	CHECK_EQ(atomic_load(&page->pid), getpid());
	if (page->uffd < 0)
		ft_test_skip("this kernel has no userfaultfd with WP_ASYNC, or not for this user");
	CHECK(page->uffd_features & 1ull << 15);
	CHECK(fcntl(page->uffd, F_GETFD) == FD_CLOEXEC);
}

TEST(a_page_that_another_process_has_is_not_touched)
{
	char path[128];
	struct ft_preload_page theirs = { .pid = 1 };

	snprintf(path, sizeof(path), "%s/page", ft_test_dir());
	CHECK_OK(ft_write_file(path, &theirs, sizeof(theirs), 0600));
	with_page(FT_PRELOAD_SIZE);
	CHECK_EQ(atomic_load(&page->magic), 0);
	hold(FT_S_NS * 50);
	CHECK(preload_now() < preload_now() || preload_now() < preload_now());
}

static void check_time_runs(void)
{
	uint64_t a = preload_now();

	usleep(1000);
	CHECK(preload_now() > a);
}

TEST(without_a_page_nothing_happens)
{
	unsetenv("FT_PRELOAD_PAGE");
	load_preload();
	check_time_runs();
}

TEST(a_page_that_does_not_exist_is_none)
{
	setenv("FT_PRELOAD_PAGE", "/nonexistent", 1);
	load_preload();
	check_time_runs();
}

TEST(a_page_that_is_too_short_is_not_mapped)
{
	with_page(100);
	check_time_runs();
}
