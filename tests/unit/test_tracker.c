// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_tracker.c - the dirty trackers, each on a real other process: what it writes is what they report.
 *
 * A test that takes a tracker runs for all of them; what this kernel has not is skipped with the reason.
 */
#include "checkpoint/track.h"
#include "checkpoint/uffd_abi.h"
#include "tests/test.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define TEST_EACH_TRACKER(id) \
	static void each_##id(const struct ft_tracker_ops *ops); \
	TEST(id##_uffd) { each_##id(&ft_tracker_uffd); } \
	TEST(id##_softdirty) { each_##id(&ft_tracker_softdirty); } \
	TEST(id##_compare) { each_##id(&ft_tracker_compare); } \
	static void each_##id(const struct ft_tracker_ops *ops)

#define PAGES 4096u                     /* 16 MiB */
#define WRITERS 3

/* --- the target: a process that does to its RAM what it is told --- */

enum order { ORDER_WRITE, ORDER_READ, ORDER_SYSCALL_WRITE, ORDER_RUN, ORDER_HALT, ORDER_FORGET };

struct desk {                           /* shared with the target */
	uint64_t addr;
	int uffd;
	uint64_t stamp;                 /* what to write */
	uint32_t nr;                    /* and where */
	uint32_t page[PAGES];
	_Atomic bool run;
	_Atomic uint64_t spins[WRITERS];
	_Atomic uint64_t signals;
};

struct guest {
	struct desk *desk;
	int wire;                       /* orders go out, one byte comes back when done */
	int ram_fd;
	uint8_t *ram;                   /* our mapping */
	struct ft_track_target t;
};

struct guest_opts {
	uint64_t nr_pages;              /* 0: PAGES */
	int ram_fd;                     /* 0: a fresh memfd */
	bool kvm;                       /* the target also holds a KVM guest */
};

static struct desk *desk;               /* of the target, in the target */
static uint8_t *ram;
static uint64_t ram_pages;

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* Scribbles all over, and flips words to and fro as locks and flags do. The writers race, as a guest's may. */
__attribute__((no_sanitize("thread"))) static void *writer(void *arg)
{
	uint64_t nr = (uintptr_t)arg, seed = 77 + nr, n = 0;

	while (atomic_load(&desk->run)) {
		volatile uint64_t *page = (void *)(ram + (random_next(&seed) % ram_pages) * FT_PAGE_SIZE);
		volatile uint64_t *flag = (void *)(ram + (n % 16) * FT_PAGE_SIZE);

		page[random_next(&seed) % 512] = ++n;
		flag[8 + nr] ^= 1;
		atomic_fetch_add(&desk->spins[nr], 1);
	}
	return NULL;
}

static void write_pages(void)
{
	for (uint32_t i = 0; i < desk->nr; i++)
		*(volatile uint64_t *)(ram + (uint64_t)desk->page[i] * FT_PAGE_SIZE) = desk->stamp;
}

static void read_pages(void)
{
	for (uint32_t i = 0; i < desk->nr; i++)
		(void)*(volatile uint64_t *)(ram + (uint64_t)desk->page[i] * FT_PAGE_SIZE);
}

/* The kernel writes on the target's behalf, as for a device that reads a socket into RAM. */
static void syscall_write_pages(void)
{
	int p[2];

	if (pipe(p))
		_exit(1);
	for (uint32_t i = 0; i < desk->nr; i++)
		if (write(p[1], &desk->stamp, 8) != 8 || read(p[0], ram + (uint64_t)desk->page[i] * FT_PAGE_SIZE, 8) != 8)
			_exit(1);
	close(p[0]);
	close(p[1]);
}

static void obey(enum order order)
{
	static pthread_t thread[WRITERS];

	switch (order) {
	case ORDER_WRITE: write_pages(); break;
	case ORDER_READ: read_pages(); break;
	case ORDER_SYSCALL_WRITE: syscall_write_pages(); break;
	case ORDER_RUN:
		desk->run = true;
		for (uintptr_t i = 0; i < WRITERS; i++)
			pthread_create(&thread[i], NULL, writer, (void *)i);
		break;
	case ORDER_HALT:
		desk->run = false;
		for (int i = 0; i < WRITERS; i++)
			pthread_join(thread[i], NULL);
		break;
	case ORDER_FORGET:                      /* its RAM, as a dying process does first */
		munmap(ram, ram_pages * FT_PAGE_SIZE);
		break;
	}
}

static int make_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = FT_UFFD_FEATURES };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	return fd;
}

static void count_signal(int sig)
{
	atomic_fetch_add(&desk->signals, 1);
}

static void become_kvm_host(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0 || ioctl(kvm, KVM_CREATE_VM, 0) < 0)
		_exit(77);
}

static bool next_order(int wire, uint8_t *order)
{
	ssize_t n;

	do
		n = recv(wire, order, 1, 0);
	while (n < 0 && errno == EINTR);
	return n == 1;
}

static void target_main(int wire, int ram_fd, const struct guest_opts *o)
{
	uint8_t order = ORDER_READ + 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGRTMIN, count_signal);
	ram = mmap(NULL, ram_pages * FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ram_fd, 0);
	if (ram == MAP_FAILED)
		_exit(1);
	desk->addr = (uintptr_t)ram;
	desk->uffd = make_uffd();
	if (o->kvm)
		become_kvm_host();
	do {
		obey(order - 1);
		if (send(wire, "", 1, 0) != 1)
			break;
	} while (next_order(wire, &order));
	_exit(0);
}

static void await_target(struct guest *g)
{
	struct pollfd p = { .fd = g->wire, .events = POLLIN };
	char c;

	CHECK_EQ(poll(&p, 1, 20000), 1);
	CHECK_EQ(recv(g->wire, &c, 1, 0), 1);
}

static void tell(struct guest *g, enum order order)
{
	uint8_t byte = (uint8_t)(order + 1);

	CHECK_EQ(send(g->wire, &byte, 1, 0), 1);
	await_target(g);
}

static void guest_map(struct guest *g, uint64_t pages, int ram_fd)
{
	g->ram_fd = ram_fd ? ram_fd : memfd_create("ram", MFD_CLOEXEC);
	CHECK(g->ram_fd >= 0);
	CHECK(ftruncate(g->ram_fd, (off_t)(pages * FT_PAGE_SIZE)) == 0);
	g->ram = mmap(NULL, pages * FT_PAGE_SIZE, PROT_READ, MAP_SHARED, g->ram_fd, 0);
	CHECK(g->ram != MAP_FAILED);
	g->desk = mmap(NULL, sizeof(*g->desk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(g->desk != MAP_FAILED);
}

static struct guest *guest_new_with(const struct guest_opts *o)
{
	static struct guest g;
	uint64_t pages = o->nr_pages ? o->nr_pages : PAGES;
	int sv[2];
	pid_t pid;

	guest_map(&g, pages, o->ram_fd);
	desk = g.desk;
	ram_pages = pages;
	CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv) == 0);
	pid = fork();
	if (pid == 0) {
		close(sv[0]);
		target_main(sv[1], g.ram_fd, o);
	}
	CHECK(pid > 0);
	close(sv[1]);
	g.wire = sv[0];
	if (o->kvm) {
		struct pollfd p = { .fd = g.wire, .events = POLLIN };
		char c;

		if (poll(&p, 1, 20000) != 1 || recv(g.wire, &c, 1, MSG_PEEK) != 1)
			ft_test_skip("/dev/kvm makes no VM here");
	}
	await_target(&g);
	g.t = (struct ft_track_target){ .pid = pid, .addr = g.desk->addr, .nr_pages = pages, .ram = g.ram, .uffd = g.desk->uffd };
	g.t.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	CHECK(g.t.pidfd >= 0);
	return &g;
}

static struct guest *guest_new(void)
{
	return guest_new_with(&(struct guest_opts){ 0 });
}

static void guest_free(struct guest *g)
{
	kill(g->t.pid, SIGKILL);
	waitpid(g->t.pid, NULL, 0);
	close(g->wire);
	close(g->t.pidfd);
	close(g->ram_fd);
	munmap(g->ram, g->t.nr_pages * FT_PAGE_SIZE);
	munmap(g->desk, sizeof(*g->desk));
}

/* --- using a tracker --- */

static void need(const struct ft_tracker_ops *ops, const struct guest *g)
{
	int rc = ops->probe(&g->t);

	if (rc)
		ft_test_skip("%s does not serve here: %s", ops->name, strerror(-rc));
}

static struct ft_tracker *tracker_started(const struct ft_tracker_ops *ops, const struct guest *g)
{
	struct ft_tracker *tr;

	CHECK_OK(ops->open(&g->t, &tr));
	CHECK_OK(ops->start(tr));
	return tr;
}

static void check_same(const struct ft_bitmap *got, const struct ft_bitmap *want, unsigned round)
{
	for (uint64_t p = 0; p < want->nr_bits; p++)
		if (ft_bitmap_test(got, p) != ft_bitmap_test(want, p))
			ft_test_fail(__FILE__, __LINE__, "round %u: page %llu was%s written but is%s reported (%llu written, %llu reported)",
				     round, (unsigned long long)p, ft_bitmap_test(want, p) ? "" : " not",
				     ft_bitmap_test(got, p) ? "" : " not", (unsigned long long)ft_bitmap_count(want),
				     (unsigned long long)ft_bitmap_count(got));
}

/* A set of pages on the desk: none, few, many, a run, or all. */
static void choose_pages(struct guest *g, uint64_t *seed, struct ft_bitmap *set)
{
	uint64_t shape = random_next(seed) % 8, nr = PAGES, first;

	ft_bitmap_zero(set);
	switch (shape) {
	case 0: break;
	case 1: ft_bitmap_fill(set); break;
	case 2:
		first = random_next(seed) % nr;
		ft_bitmap_set_range(set, first, random_next(seed) % 1500);
		break;
	default:
		for (uint64_t n = 1ull << (shape * 3 / 2); n; n--)
			ft_bitmap_set(set, random_next(seed) % nr);
	}
	g->desk->nr = 0;
	for (uint64_t p = ft_bitmap_next(set, 0); p < nr; p = ft_bitmap_next(set, p + 1))
		g->desk->page[g->desk->nr++] = (uint32_t)p;
}

static void check_exact(struct guest *g, struct ft_tracker *tr, unsigned rounds, uint64_t seed)
{
	struct ft_bitmap want, got;

	CHECK_OK(ft_bitmap_init(&want, g->t.nr_pages));
	CHECK_OK(ft_bitmap_init(&got, g->t.nr_pages));
	for (unsigned i = 0; i < rounds; i++) {
		choose_pages(g, &seed, &want);
		tell(g, ORDER_READ);            /* reading is not writing, also where no page was yet */
		choose_pages(g, &seed, &want);
		g->desk->stamp = random_next(&seed);
		tell(g, i % 5 ? ORDER_WRITE : ORDER_SYSCALL_WRITE);
		ft_bitmap_zero(&got);
		CHECK_OK(tr->ops->take(tr, &got));
		check_same(&got, &want, i);
	}
	CHECK(!memcmp(tr->view, g->ram, g->t.nr_pages * FT_PAGE_SIZE));
	ft_bitmap_free(&want);
	ft_bitmap_free(&got);
}

TEST_EACH_TRACKER(reports_exactly_what_was_written)
{
	struct guest *g = guest_new();
	struct ft_tracker *tr;

	need(ops, g);
	tr = tracker_started(ops, g);
	check_exact(g, tr, 100, 11);
	ops->close(tr);
	guest_free(g);
}

TEST_EACH_TRACKER(adds_to_what_the_set_already_holds)
{
	struct guest *g = guest_new();
	struct ft_bitmap dirty;
	struct ft_tracker *tr;

	need(ops, g);
	tr = tracker_started(ops, g);
	CHECK_OK(ft_bitmap_init(&dirty, PAGES));
	ft_bitmap_set(&dirty, 5);
	g->desk->stamp = 1;
	g->desk->nr = 1;
	g->desk->page[0] = PAGES - 1;
	tell(g, ORDER_WRITE);
	CHECK_OK(ops->take(tr, &dirty));
	CHECK_EQ(ft_bitmap_count(&dirty), 2);
	CHECK(ft_bitmap_test(&dirty, 5) && ft_bitmap_test(&dirty, PAGES - 1));
	ft_bitmap_free(&dirty);
	ops->close(tr);
	guest_free(g);
}

/* Copy some of what is due, as a copy round with the guest running does. */
static void copy_due(struct ft_tracker *tr, uint8_t *replica, struct ft_bitmap *due, uint64_t at_most)
{
	for (uint64_t p = ft_bitmap_next(due, 0); p < due->nr_bits && at_most; p = ft_bitmap_next(due, p + 1), at_most--) {
		memcpy(replica + p * FT_PAGE_SIZE, tr->view + p * FT_PAGE_SIZE, FT_PAGE_SIZE);
		ft_bitmap_clear(due, p);
	}
}

TEST_EACH_TRACKER(loses_no_write_while_the_target_runs)
{
	struct guest *g = guest_new();
	uint8_t *replica = malloc(PAGES * FT_PAGE_SIZE);
	struct ft_tracker *tr;
	struct ft_bitmap due;

	need(ops, g);
	CHECK(replica);
	CHECK_OK(ft_bitmap_init(&due, PAGES));
	tr = tracker_started(ops, g);
	ft_bitmap_fill(&due);
	for (int epoch = 0; epoch < 5; epoch++) {
		tell(g, ORDER_RUN);
		for (int i = 0; i < 10; i++) {
			copy_due(tr, replica, &due, 1000);
			CHECK_OK(ops->take(tr, &due));
		}
		tell(g, ORDER_HALT);
		CHECK_OK(ops->take(tr, &due));
		copy_due(tr, replica, &due, PAGES);
		for (uint64_t p = 0; p < PAGES; p++)
			if (memcmp(replica + p * FT_PAGE_SIZE, g->ram + p * FT_PAGE_SIZE, FT_PAGE_SIZE))
				ft_test_fail(__FILE__, __LINE__, "epoch %d: a write to page %llu was lost", epoch, (unsigned long long)p);
	}
	ops->close(tr);
	ft_bitmap_free(&due);
	free(replica);
	guest_free(g);
}

TEST_EACH_TRACKER(starts_afresh_after_close)
{
	struct guest *g = guest_new();
	uint64_t seed = 5;

	need(ops, g);
	for (int life = 0; life < 4; life++) {
		struct ft_tracker *tr = tracker_started(ops, g);
		struct ft_bitmap untracked;

		check_exact(g, tr, 5, seed + (uint64_t)life);
		ops->close(tr);
		CHECK_OK(ft_bitmap_init(&untracked, PAGES));
		choose_pages(g, &seed, &untracked);
		tell(g, ORDER_WRITE);           /* nobody looks: no tracker may report these */
		ft_bitmap_free(&untracked);
	}
	guest_free(g);
}

TEST_EACH_TRACKER(takes_over_from_a_tracker_that_died)
{
	struct guest *g = guest_new();
	struct ft_tracker *tr;
	uint64_t seed = 9;
	struct ft_bitmap set;
	int status;
	pid_t pid;

	need(ops, g);
	pid = fork();
	if (pid == 0) {
		tr = tracker_started(ops, g);
		check_exact(g, tr, 3, 1);
		_exit(0);                       /* without close */
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	CHECK_OK(ft_bitmap_init(&set, PAGES));
	choose_pages(g, &seed, &set);
	tell(g, ORDER_WRITE);
	need(ops, g);
	tr = tracker_started(ops, g);
	check_exact(g, tr, 20, 2);
	ops->close(tr);
	ft_bitmap_free(&set);
	guest_free(g);
}

TEST_EACH_TRACKER(says_when_the_target_is_gone)
{
	struct guest *g = guest_new();
	struct ft_bitmap dirty;
	struct ft_tracker *tr;

	need(ops, g);
	tr = tracker_started(ops, g);
	CHECK_OK(ft_bitmap_init(&dirty, PAGES));
	kill(g->t.pid, SIGKILL);
	CHECK_EQ(waitpid(g->t.pid, NULL, 0), g->t.pid);
	CHECK_EQ(ops->take(tr, &dirty), -ESRCH);
	CHECK_EQ(ft_bitmap_count(&dirty), PAGES);       /* whoever goes on all the same copies everything */
	ops->close(tr);
	CHECK(ops->probe(&g->t) != 0);
	ft_bitmap_free(&dirty);
}

/* What is copied between two takes may be newer than either; it must not pass for what is there now. */
TEST_EACH_TRACKER(sees_through_a_page_that_comes_back)
{
	struct guest *g = guest_new();
	uint8_t replica[FT_PAGE_SIZE];
	struct ft_bitmap due;
	struct ft_tracker *tr;

	need(ops, g);
	g->desk->nr = 1;
	g->desk->page[0] = 7;
	CHECK_OK(ft_bitmap_init(&due, PAGES));
	tr = tracker_started(ops, g);
	g->desk->stamp = 1;
	tell(g, ORDER_WRITE);
	memcpy(replica, tr->view + 7 * FT_PAGE_SIZE, FT_PAGE_SIZE);
	g->desk->stamp = 0;
	tell(g, ORDER_WRITE);
	CHECK_OK(ops->take(tr, &due));
	if (ft_bitmap_test(&due, 7))
		memcpy(replica, tr->view + 7 * FT_PAGE_SIZE, FT_PAGE_SIZE);
	CHECK(!memcmp(replica, g->ram + 7 * FT_PAGE_SIZE, FT_PAGE_SIZE));
	ops->close(tr);
	ft_bitmap_free(&due);
	guest_free(g);
}

/* A page whose mapping has gone while the process dies must not look clean. */
TEST_EACH_TRACKER(never_takes_a_dying_target_for_an_idle_one)
{
	for (int i = 0; i < 20; i++) {
		struct guest *g = guest_new();
		struct ft_bitmap dirty;
		struct ft_tracker *tr;

		need(ops, g);
		tr = tracker_started(ops, g);
		CHECK_OK(ft_bitmap_init(&dirty, PAGES));
		g->desk->stamp = 1;
		g->desk->nr = 1;
		g->desk->page[0] = 321;
		tell(g, ORDER_WRITE);
		kill(g->t.pid, SIGKILL);
		for (int spin = i * 500; spin; spin--)
			atomic_signal_fence(memory_order_seq_cst);
		(void)!ops->take(tr, &dirty);
		CHECK(ft_bitmap_test(&dirty, 321));
		ops->close(tr);
		ft_bitmap_free(&dirty);
		guest_free(g);
	}
}

/* --- one tracker's own --- */

TEST(uffd_never_takes_ram_that_is_no_longer_mapped_for_clean)
{
	struct guest *g = guest_new();
	struct ft_bitmap dirty;
	struct ft_tracker *tr;

	need(&ft_tracker_uffd, g);
	tr = tracker_started(&ft_tracker_uffd, g);
	CHECK_OK(ft_bitmap_init(&dirty, PAGES));
	tell(g, ORDER_FORGET);
	CHECK_EQ(ft_tracker_uffd.take(tr, &dirty), -ESRCH);
	CHECK_EQ(ft_bitmap_count(&dirty), PAGES);
	ft_tracker_uffd.close(tr);
	ft_bitmap_free(&dirty);
	guest_free(g);
}

static bool smaps_has_flag(const struct guest *g)
{
	struct ft_map_facts facts;

	CHECK_OK(ft_map_facts(&g->t, &facts));
	return facts.uffd_wp;
}

TEST(uffd_leaves_the_target_unprotected)
{
	struct guest *g = guest_new();
	struct ft_tracker *tr;

	need(&ft_tracker_uffd, g);
	CHECK(!smaps_has_flag(g));              /* the probe has undone what it did */
	tr = tracker_started(&ft_tracker_uffd, g);
	CHECK(smaps_has_flag(g));
	ft_tracker_uffd.close(tr);
	CHECK(!smaps_has_flag(g));
	guest_free(g);
}

TEST(uffd_probe_does_not_disturb_a_tracker_at_work)
{
	struct guest *g = guest_new();
	struct ft_tracker *tr;
	struct ft_bitmap dirty;

	need(&ft_tracker_uffd, g);
	tr = tracker_started(&ft_tracker_uffd, g);
	CHECK_OK(ft_bitmap_init(&dirty, PAGES));
	g->desk->nr = 1;
	g->desk->page[0] = 99;
	tell(g, ORDER_WRITE);
	CHECK_OK(ft_tracker_uffd.probe(&g->t));
	CHECK_OK(ft_tracker_uffd.take(tr, &dirty));
	CHECK_EQ(ft_bitmap_count(&dirty), 1);
	CHECK(ft_bitmap_test(&dirty, 99));
	ft_tracker_uffd.close(tr);
	ft_bitmap_free(&dirty);
	guest_free(g);
}

TEST(uffd_is_as_exact_where_kvm_shares_the_page_tables)
{
	struct guest *g = guest_new_with(&(struct guest_opts){ .kvm = true });
	struct ft_tracker *tr;

	need(&ft_tracker_uffd, g);
	tr = tracker_started(&ft_tracker_uffd, g);
	check_exact(g, tr, 50, 13);
	ft_tracker_uffd.close(tr);
	guest_free(g);
}

/* Enough pages that the scan runs on several threads; hardly any of them exist. */
TEST(uffd_is_as_exact_on_several_threads)
{
	struct guest *g = guest_new_with(&(struct guest_opts){ .nr_pages = (2ull << 30 >> FT_PAGE_SHIFT) + 77 });
	struct ft_bitmap want, got;
	struct ft_tracker *tr;
	uint64_t seed = 3;

	need(&ft_tracker_uffd, g);
	tr = tracker_started(&ft_tracker_uffd, g);
	CHECK_OK(ft_bitmap_init(&want, g->t.nr_pages));
	CHECK_OK(ft_bitmap_init(&got, g->t.nr_pages));
	for (unsigned i = 0; i < 20; i++) {
		ft_bitmap_zero(&want);
		ft_bitmap_zero(&got);
		g->desk->stamp = random_next(&seed);
		for (g->desk->nr = 0; g->desk->nr < 2000; g->desk->nr++) {
			uint64_t p = random_next(&seed) % g->t.nr_pages;

			g->desk->page[g->desk->nr] = (uint32_t)p;
			ft_bitmap_set(&want, p);
		}
		tell(g, ORDER_WRITE);
		CHECK_OK(ft_tracker_uffd.take(tr, &got));
		check_same(&got, &want, i);
	}
	ft_tracker_uffd.close(tr);
	ft_bitmap_free(&want);
	ft_bitmap_free(&got);
	guest_free(g);
}

/* A file on a tmpfs that gives out huge pages whenever it can. */
static int huge_ram_file(void)
{
	char path[128];
	int fd;

	if (geteuid() || unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		ft_test_skip("needs root, for a mount of its own");
	if (mount("huge", ft_test_dir(), "tmpfs", 0, "huge=always"))
		ft_test_skip("this kernel has no huge pages on tmpfs: %s", strerror(errno));
	snprintf(path, sizeof(path), "%s/ram", ft_test_dir());
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	return fd;
}

/* Make the pages be there, huge where the kernel can, before anybody tracks them. */
static void fill_ram(struct guest *g)
{
	g->desk->nr = 0;
	for (uint32_t p = 0; p < PAGES; p += 512)
		g->desk->page[g->desk->nr++] = p;
	tell(g, ORDER_WRITE);
}

TEST(uffd_is_as_exact_on_huge_pages)
{
	struct guest *g = guest_new_with(&(struct guest_opts){ .ram_fd = huge_ram_file() });
	struct ft_map_facts facts;
	struct ft_tracker *tr;

	need(&ft_tracker_uffd, g);
	fill_ram(g);
	CHECK_OK(ft_map_facts(&g->t, &facts));
	CHECK(facts.huge);
	tr = tracker_started(&ft_tracker_uffd, g);
	check_exact(g, tr, 50, 17);
	ft_tracker_uffd.close(tr);
	guest_free(g);
}

TEST(softdirty_refuses_huge_pages)
{
	struct guest *g = guest_new_with(&(struct guest_opts){ .ram_fd = huge_ram_file() });

	fill_ram(g);
	CHECK(ft_tracker_softdirty.probe(&g->t) != 0);
	if (!ft_test_logged("huge pages"))
		ft_test_skip("soft-dirty is refused here for another reason already");
	guest_free(g);
}

/* --- choosing --- */

TEST(auto_takes_the_best_that_works)
{
	struct guest *g = guest_new();
	const struct ft_tracker_ops *best = NULL, *got;

	if (!ft_tracker_uffd.probe(&g->t))
		best = &ft_tracker_uffd;
	else if (!ft_tracker_softdirty.probe(&g->t))
		best = &ft_tracker_softdirty;
	else
		best = &ft_tracker_compare;
	CHECK_OK(ft_tracker_choose("auto", &g->t, &got));
	CHECK(got == best);
	CHECK_OK(ft_tracker_choose(NULL, &g->t, &got));
	CHECK(got == best);
	g->t.uffd = -1;                         /* a guest without the preload */
	CHECK_OK(ft_tracker_choose("auto", &g->t, &got));
	CHECK(got != &ft_tracker_uffd);
	CHECK(ft_test_logged("no userfaultfd; start the guest with ft-guest"));
	guest_free(g);
}

TEST(a_tracker_asked_for_by_name_is_taken_or_refused_aloud)
{
	struct guest *g = guest_new();
	const struct ft_tracker_ops *got;

	CHECK_OK(ft_tracker_choose("compare", &g->t, &got));
	CHECK(got == &ft_tracker_compare);
	CHECK_EQ(ft_tracker_choose("guesswork", &g->t, &got), -EINVAL);
	CHECK(ft_test_logged("no dirty tracker is called 'guesswork'"));
	g->t.uffd = -1;
	CHECK_EQ(ft_tracker_choose("uffd-wp-async", &g->t, &got), -ENOENT);
	CHECK(ft_test_logged("uffd-wp-async was asked for"));
	guest_free(g);
}

TEST(a_descriptor_that_is_no_userfaultfd_is_refused)
{
	struct guest *g = guest_new();

	g->t.uffd = 0;
	CHECK(ft_tracker_uffd.probe(&g->t) != 0);
	g->t.uffd = 4000;
	CHECK(ft_tracker_uffd.probe(&g->t) != 0);
	guest_free(g);
}

TEST(compare_refuses_without_memory_for_its_shadow)
{
	struct guest *g = guest_new();

	g->t.nr_pages = 1ull << 40;
	CHECK_EQ(ft_tracker_compare.probe(&g->t), -ENOMEM);
	g->t.nr_pages = PAGES;
	g->t.ram = NULL;
	CHECK_EQ(ft_tracker_compare.probe(&g->t), -EINVAL);
	guest_free(g);
}

/* --- finding the mapping --- */

static int find(int fd, uint64_t nr_pages, uint64_t *addr)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return ft_track_find_mapping(getpid(), path, nr_pages, addr);
}

static void *map_file(int fd, int flags, unsigned pages)
{
	void *p = mmap(NULL, pages * FT_PAGE_SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(p != MAP_FAILED);
	return p;
}

TEST(finds_where_the_ram_file_is_mapped)
{
	int fd = memfd_create("a file (deleted)", MFD_CLOEXEC);
	uint64_t addr = 0;
	uint8_t *p;

	CHECK(fd >= 0 && ftruncate(fd, 64 * FT_PAGE_SIZE) == 0);
	CHECK_EQ(find(fd, 64, &addr), -ENOENT);
	p = map_file(fd, MAP_SHARED, 64);
	CHECK_OK(find(fd, 64, &addr));
	CHECK_EQ(addr, (uintptr_t)p);
	/* The kernel shows one mapping as several lines once parts of it differ. */
	CHECK(madvise(p + 16 * FT_PAGE_SIZE, 16 * FT_PAGE_SIZE, MADV_DONTDUMP) == 0);
	CHECK_OK(find(fd, 64, &addr));
	CHECK_EQ(addr, (uintptr_t)p);
	CHECK_EQ(find(fd, 65, &addr), -ENOENT);
}

TEST(refuses_ram_that_is_mapped_twice_or_not_whole)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);
	uint64_t addr;
	void *part;

	CHECK(fd >= 0 && ftruncate(fd, 64 * FT_PAGE_SIZE) == 0);
	part = map_file(fd, MAP_SHARED, 32);
	CHECK_EQ(find(fd, 64, &addr), -ENOENT);
	map_file(fd, MAP_SHARED, 64);
	CHECK_EQ(find(fd, 64, &addr), -ENOTUNIQ);
	CHECK(munmap(part, 32 * FT_PAGE_SIZE) == 0);
	CHECK_OK(find(fd, 64, &addr));
}

TEST(refuses_private_ram)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);
	uint64_t addr;

	CHECK(fd >= 0 && ftruncate(fd, 64 * FT_PAGE_SIZE) == 0);
	map_file(fd, MAP_PRIVATE, 64);
	CHECK_EQ(find(fd, 64, &addr), -ENOENT);
	CHECK_EQ(ft_track_find_mapping(getpid(), "/nonexistent/ram", 64, &addr), -ENOENT);
	CHECK_EQ(ft_track_find_mapping(0x7ffffff0, "/proc/self/exe", 64, &addr), -ESRCH);
}

/* --- the parallel walk --- */

struct tally {
	_Atomic uint64_t pages, calls;
	_Atomic bool bad_start;
};

static int tally_piece(void *ctx, uint64_t first, uint64_t nr)
{
	struct tally *t = ctx;

	t->pages += nr;
	t->calls++;
	if (first % 64)
		t->bad_start = true;
	return first ? 0 : -EIO;
}

TEST(the_walk_covers_every_page_once_and_keeps_an_error)
{
	const uint64_t sizes[] = { 1, 64, 32768, 32769, 1000001, (8ull << 30 >> FT_PAGE_SHIFT) + 1 };

	for (size_t i = 0; i < FT_ARRAY_LEN(sizes); i++) {
		const struct ft_track_target target = { .nr_pages = sizes[i] };
		struct tally t = { 0 };

		CHECK_EQ(ft_scan_pages(&target, tally_piece, &t), -EIO);
		CHECK_EQ(t.pages, sizes[i]);
		CHECK(!t.bad_start);
	}
}

static void count_busy(void *ctx)
{
	++*(unsigned *)ctx;
}

/* A take over all RAM can last longer than the guard's patience with a pause. */
TEST(a_long_take_says_that_it_is_at_work)
{
	unsigned busy = 0;
	struct ft_track_target target = { .nr_pages = 96 << 20 >> FT_PAGE_SHIFT, .pidfd = -1, .busy = count_busy, .busy_ctx = &busy };
	struct ft_bitmap dirty;
	struct ft_tracker *tr;

	target.ram = mmap(NULL, 96 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(target.ram != MAP_FAILED);
	CHECK_OK(ft_bitmap_init(&dirty, target.nr_pages));
	CHECK_OK(ft_tracker_compare.open(&target, &tr));
	CHECK_OK(tr->ops->take(tr, &dirty));
	CHECK(busy >= 3);
	CHECK_EQ(ft_bitmap_count(&dirty), 0);
	tr->ops->close(tr);
	ft_bitmap_free(&dirty);
}

/* --- holding a process --- */

static uint64_t all_spins(const struct guest *g)
{
	uint64_t n = 0;

	for (int i = 0; i < WRITERS; i++)
		n += g->desk->spins[i];
	return n;
}

static int watch_stand_still(void *ctx)
{
	const struct timespec nap = { .tv_nsec = 3000000 };
	const struct guest *g = ctx;
	uint64_t before = all_spins(g);

	nanosleep(&nap, NULL);
	return all_spins(g) == before ? 0 : -EBUSY;
}

static void check_moves(struct guest *g)
{
	uint64_t before = all_spins(g), deadline = ft_now_ns() + 20 * FT_S_NS;

	while (all_spins(g) == before) {
		CHECK(ft_now_ns() < deadline);
		sched_yield();
	}
}

TEST(a_frozen_process_stands_still_and_goes_on)
{
	struct guest *g = guest_new();

	tell(g, ORDER_RUN);
	for (int i = 0; i < 20; i++) {
		CHECK_OK(ft_while_frozen(g->t.pid, 10000, watch_stand_still, g));
		check_moves(g);
	}
	tell(g, ORDER_HALT);
	guest_free(g);
}

static int nothing(void *ctx)
{
	return 0;
}

#define STORM 20000u

/* Queued signals: each one sent is one delivered, unless somebody drops it. */
static void *signal_storm(void *arg)
{
	const struct guest *g = arg;

	for (unsigned sent = 0; sent < STORM;)
		if (!sigqueue(g->t.pid, SIGRTMIN, (union sigval){ 0 }))
			sent++;
		else
			sched_yield();          /* its queue is full */
	return NULL;
}

TEST(freezing_swallows_no_signal)
{
	struct guest *g = guest_new();
	uint64_t deadline = ft_now_ns() + 30 * FT_S_NS;
	pthread_t storm;

#ifdef __SANITIZE_THREAD__
	ft_test_skip("the thread sanitizer keeps signals for itself");
#endif
	tell(g, ORDER_RUN);
	CHECK_OK(pthread_create(&storm, NULL, signal_storm, g));
	for (int i = 0; i < 200; i++)
		CHECK_OK(ft_while_frozen(g->t.pid, 10000, nothing, NULL));
	pthread_join(storm, NULL);
	while (g->desk->signals < STORM && ft_now_ns() < deadline)
		sched_yield();
	CHECK_EQ(g->desk->signals, STORM);
	tell(g, ORDER_HALT);
	guest_free(g);
}

static int die(void *ctx)
{
	_exit(3);
}

TEST(a_process_frozen_by_one_that_died_goes_on)
{
	struct guest *g = guest_new();
	int status;
	pid_t pid;

	tell(g, ORDER_RUN);
	check_moves(g);
	pid = fork();
	if (pid == 0)
		_exit(ft_while_frozen(g->t.pid, 10000, die, NULL) ? 1 : 0);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(WEXITSTATUS(status), 3);
	check_moves(g);
	tell(g, ORDER_HALT);
	guest_free(g);
}

TEST(freezing_a_process_that_is_gone_says_so)
{
	struct guest *g = guest_new();

	kill(g->t.pid, SIGKILL);
	waitpid(g->t.pid, NULL, 0);
	CHECK_EQ(ft_while_frozen(g->t.pid, 1000, die, NULL), -ESRCH);
}
