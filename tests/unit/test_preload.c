// SPDX-License-Identifier: GPL-3.0-or-later
/* test_preload.c - what runs inside QEMU: time stands still exactly as long as asked, and nothing else changes. */
#include "ft/preload.h"
#include "tests/test.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static struct ft_preload_page *page;
static int (*preload_gettime)(clockid_t clock, struct timespec *ts);

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
	CHECK(preload_gettime);
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
