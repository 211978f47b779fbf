// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_qemu_backend.c - the qemu backend on a real guest: checkpoints under load, a replica, takeover, drill.
 *
 * Each test is PID 1 of namespaces of its own, so that nothing it starts outlives it. Two hosts are two network
 * namespaces with directories of their own, their bridges joined by a cable; the client sits on the first.
 */
#include "checkpoint/qemu_start.h"
#include "ft/bitmap.h"
#include "ft/conf.h"
#include "ft/hv.h"
#include "ft/preload.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define GUEST_IP "10.7.0.2"
#define BOOT_TIMEOUT_S 120
#define MB (1ull << 20)

/* --- the world --- */

struct host {
	struct ft_conf conf;
	int netns;
};

static struct host alpha, beta;

static void run(const char *command)
{
	if (system(command))
		ft_test_fail(__FILE__, __LINE__, "failed: %s", command);
}

/* The backend's directories and network are the calling process's: be at @h while it works for @h. */
static void at(struct host *h)
{
	CHECK(!setns(h->netns, CLONE_NEWNET));
	ft_conf_set(&h->conf);
}

static void set_dir(char *out, const char *host, const char *dir)
{
	CHECK(snprintf(out, FT_PATH_MAX, "%s/%s/%s", ft_test_dir(), host, dir) < FT_PATH_MAX);
	CHECK_OK(ft_mkdir_p(out, 0700));
}

static void make_host(struct host *h, const char *name)
{
	CHECK_OK(ft_conf_load("/dev/null", &h->conf));
	set_dir(h->conf.run_dir, name, "run");
	set_dir(h->conf.shm_dir, name, "shm");
	set_dir(h->conf.state_dir, name, "state");
	if (getenv("FT_QEMU"))          /* another QEMU than the host's */
		CHECK(snprintf(h->conf.qemu, FT_PATH_MAX, "%s", getenv("FT_QEMU")) < FT_PATH_MAX);
	CHECK(snprintf(h->conf.libexec_dir, FT_PATH_MAX, "%s/bin", getenv("FT_OBJ")) < FT_PATH_MAX);
	CHECK(!unshare(CLONE_NEWNET));
	h->netns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	CHECK(h->netns >= 0);
	run("ip link add br0 type bridge stp_state 0 forward_delay 0 && ip link set br0 up && ip link set lo up");
}

static void make_world(void)
{
	char cable[160];

	CHECK(!mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(!mount("proc", "/proc", "proc", 0, NULL));
	CHECK(!mount("tmpfs", ft_test_dir(), "tmpfs", 0, NULL));
	make_host(&beta, "beta");
	make_host(&alpha, "alpha");
	snprintf(cable, sizeof(cable), "ip link add cable type veth peer name cable netns /proc/self/fd/%d", beta.netns);
	fcntl(beta.netns, F_SETFD, 0);
	run(cable);
	fcntl(beta.netns, F_SETFD, FD_CLOEXEC);
	run("ip link set cable master br0 up && ip addr add 10.7.0.1/24 dev br0");
	at(&beta);
	run("ip link set cable master br0 up");
	at(&alpha);
}

/* Run @story as PID 1 of a world; pass its outcome on. */
static void in_world(void (*story)(void))
{
	int status;
	pid_t pid;

	if (geteuid())
		ft_test_skip("root is needed for namespaces and taps");
	if (!getenv("FT_OBJ") || !getenv("FT_GUEST") || access(getenv("FT_GUEST"), R_OK))
		ft_test_skip("FT_OBJ and FT_GUEST must name the build and the test guest: use `make check-root`");
	if (unshare(CLONE_NEWPID | CLONE_NEWNS))
		ft_test_skip("no namespaces here: %s", strerror(errno));
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make_world();
		CHECK(!chdir(ft_test_dir()));
		story();
		fflush(stdout);
		exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	if (!WIFEXITED(status))
		ft_test_fail(__FILE__, __LINE__, "killed by signal %d", WTERMSIG(status));
	fflush(stdout);
	_exit(WEXITSTATUS(status));     /* leaks were looked for in there; here no new process can be born any more */
}

/* --- a guest, and talking to it --- */

static struct ft_spec spec_of(unsigned memory_mb)
{
	char text[2048];
	struct ft_spec spec;
	const char *g = getenv("FT_GUEST");

	snprintf(text, sizeof(text),
		 "[guest]\nname = vm1\nmemory = %uM\nvcpus = 2\naccel = tcg\nkernel = %s/vmlinuz\ninitrd = %s/initrd.img\n"
		 "cmdline = console=ttyS0 quiet panic=-1 clocksource=hpet tsc=unstable ft.ip4=" GUEST_IP "/24\n"
		 "[nic]\nmac = 52:54:00:07:00:02\nbridge = br0\n", memory_mb, g, g);
	CHECK_OK(ft_spec_parse(text, strlen(text), "test", &spec));
	return spec;
}

static int client(void)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(7001) };
	int fd;

	at(&alpha);
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	inet_pton(AF_INET, GUEST_IP, &to.sin_addr);
	CHECK(!connect(fd, (struct sockaddr *)&to, sizeof(to)));
	return fd;
}

/* One question, asked again until it is answered; NULL after @timeout_ms. */
static const char *try_ask(const char *question, unsigned timeout_ms)
{
	static char answer[256];
	int fd = client();
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;
	ssize_t n = -1;

	while (n <= 0 && ft_now_ns() < end) {
		struct pollfd p = { .fd = fd, .events = POLLIN };

		if (send(fd, question, strlen(question), 0) < 0)
			n = -1;         /* no neighbour yet */
		if (poll(&p, 1, 200) > 0)
			n = recv(fd, answer, sizeof(answer) - 1, 0);
	}
	close(fd);
	if (n <= 0)
		return NULL;
	answer[n] = 0;
	return answer;
}

static const char *ask(const char *question)
{
	const char *a = try_ask(question, 20000);

	if (!a || strncmp(a, "ok", 2))
		ft_test_fail(__FILE__, __LINE__, "the guest answers '%s' with '%s'", question, a ? a : "nothing");
	return a;
}

static unsigned long long ask_stat(const char *key)
{
	const char *p = strstr(ask("stat"), key);

	CHECK(p);
	return strtoull(p + strlen(key), NULL, 10);
}

static void ask_boot(char out[64])
{
	const char *p = strstr(ask("stat"), "boot=");

	CHECK(p);
	snprintf(out, 64, "%s", p + 5);
}

static uint64_t guest_clock(void)
{
	return strtoull(ask("time") + 3, NULL, 10);
}

static struct ft_attach start_guest(unsigned memory_mb)
{
	struct ft_spec spec = spec_of(memory_mb);
	struct ft_qemu_launch launch = { .spec = &spec, .kind = FT_QEMU_GUEST };
	struct ft_attach a;

	at(&alpha);
	CHECK_OK(ft_qemu_start(&launch, &a));
	CHECK_OK(ft_attach_save(&a));
	if (!try_ask("stat", BOOT_TIMEOUT_S * 1000))
		ft_test_fail(__FILE__, __LINE__, "the guest does not boot");
	return a;
}

/* --- epochs, as the replicator takes them, but kept here --- */

/* Times of one step of the pause, over the last epochs. */
enum { STOP, STATE, RESCAN, CONT, WHOLE, NR_STEPS };
#define TIMES_MAX 512

struct copy {
	struct ft_vm *vm;
	uint8_t *ram;                   /* NULL: pages are only counted */
	struct ft_bitmap dirty;
	struct ft_blob state, firmware;
	uint64_t pages;                 /* copied so far */
	unsigned epochs;
	uint64_t time_ns[NR_STEPS][TIMES_MAX];
};

static struct ft_vm *open_vm(const struct ft_attach *a, const char *tracker)
{
	struct ft_qemu_options opt = { .tracker = tracker };
	struct ft_vm *vm;

	CHECK_OK(ft_qemu_open(a, &opt, &vm));
	return vm;
}

static void copy_dirty(struct copy *c)
{
	for (uint64_t p = ft_bitmap_next(&c->dirty, 0); p < c->vm->nr_pages; p = ft_bitmap_next(&c->dirty, p + 1)) {
		if (c->ram)
			memcpy(c->ram + p * FT_PAGE_SIZE, c->vm->ram + p * FT_PAGE_SIZE, FT_PAGE_SIZE);
		c->pages++;
	}
	ft_bitmap_zero(&c->dirty);
}

static uint64_t took(struct copy *c, unsigned step, uint64_t since)
{
	uint64_t now = ft_now_ns();

	c->time_ns[step][c->epochs % TIMES_MAX] = now - since;
	return now;
}

static void take_epoch(struct copy *c)
{
	const struct ft_hv_ops *ops = c->vm->ops;
	uint64_t start = ft_now_ns(), t = start;

	ft_blob_free(&c->state);
	CHECK_OK(ops->pause(c->vm));
	t = took(c, STOP, t);
	CHECK_OK(ops->state_begin(c->vm));
	CHECK_OK(ops->take_dirty(c->vm, &c->dirty));
	copy_dirty(c);
	CHECK_OK(ops->state_end(c->vm, &c->state));
	t = took(c, STATE, t);
	CHECK_OK(ops->take_dirty(c->vm, &c->dirty));
	copy_dirty(c);
	t = took(c, RESCAN, t);
	CHECK_OK(ops->resume(c->vm));
	took(c, CONT, t);
	took(c, WHOLE, start);
	c->epochs++;
}

static void begin_copy(struct copy *c, struct ft_vm *vm, uint8_t *ram)
{
	*c = (struct copy){ .vm = vm, .ram = ram };
	CHECK_OK(ft_bitmap_init(&c->dirty, vm->nr_pages));
	CHECK_OK(vm->ops->track(vm));
	CHECK_OK(vm->ops->firmware(vm, &c->firmware));
	ft_bitmap_fill(&c->dirty);
	take_epoch(c);
}

static void take_epochs(struct copy *c, unsigned n, unsigned gap_ms)
{
	for (unsigned i = 0; i < n; i++) {
		take_epoch(c);
		usleep(gap_ms * 1000);
	}
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void print_pauses(struct copy *c)
{
	static const char *const name[NR_STEPS] = { "stop", "state and copy", "rescan", "cont", "whole" };
	unsigned n = c->epochs < TIMES_MAX ? c->epochs : TIMES_MAX;

	printf("# pause p50/p90 ms:");
	for (unsigned i = 0; i < NR_STEPS; i++) {
		uint64_t *t = c->time_ns[i];

		qsort(t, n, sizeof(*t), by_value);
		printf(" %s %.2f/%.2f", name[i], (double)t[n / 2] / 1e6, (double)t[n * 9 / 10] / 1e6);
	}
	printf("; %u epochs, %s, state %zu bytes, %.1f pages an epoch\n", c->epochs, c->vm->tracker, c->state.len,
	       (double)c->pages / c->epochs);
}

static void end_copy(struct copy *c)
{
	c->vm->ops->close(c->vm);
	ft_bitmap_free(&c->dirty);
	ft_blob_free(&c->state);
	ft_blob_free(&c->firmware);
}

static struct ft_replica *park(const struct ft_attach *theirs)
{
	struct ft_spec spec = spec_of((unsigned)(theirs->memory / MB));
	struct ft_replica *r;
	char why[256];

	at(&beta);
	CHECK_OK(ft_qemu_replica_prepare(&spec, theirs, &r, why, sizeof(why)));
	return r;
}

/* --- events --- */

static enum ft_vm_event wait_event(struct ft_vm *vm, unsigned timeout_ms)
{
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;
	enum ft_vm_event ev = FT_VM_NONE;

	while (ev == FT_VM_NONE && ft_now_ns() < end) {
		struct pollfd p = { .fd = vm->event_fd, .events = POLLIN };

		if (poll(&p, 1, 100) > 0)
			ev = vm->ops->next_event(vm);
	}
	return ev;
}

/* Nothing more comes, and the descriptor is quiet: a loop on it would sleep. */
static void check_quiet(struct ft_vm *vm)
{
	struct pollfd p = { .fd = vm->event_fd, .events = POLLIN };

	while (poll(&p, 1, 200) > 0)
		CHECK_EQ(vm->ops->next_event(vm), FT_VM_NONE);
}

/* --- stories --- */

/* FT_MEMORY_MB=2048: does the time of a takeover depend on the size of memory? */
static unsigned takeover_mb(void)
{
	const char *mb = getenv("FT_MEMORY_MB");

	return mb ? (unsigned)atoi(mb) : 256;
}

/* A guest's clock was at guest_ns at some instant between two of ours. */
struct reading {
	uint64_t guest_ns, from_ns, to_ns;
};

static struct reading read_clock(void)
{
	struct reading r = { .from_ns = ft_now_ns() };

	r.guest_ns = guest_clock();
	r.to_ns = ft_now_ns();
	return r;
}

/* Neither behind by the outage nor ahead of the time that really passed. */
static void check_clock(const struct reading *before)
{
	struct reading now = read_clock();
	int64_t passed = (int64_t)(now.guest_ns - before->guest_ns);
	int64_t least = (int64_t)(now.from_ns - before->to_ns), most = (int64_t)(now.to_ns - before->from_ns);

	printf("# takeover: %.0f ms passed in the guest, between %.0f and %.0f in the world\n", (double)passed / 1e6,
	       (double)least / 1e6, (double)most / 1e6);
	CHECK(passed > 0 && passed > least - (int64_t)FT_S_NS && passed < most + (int64_t)(FT_S_NS / 10));
}

/* Somebody's own migration or snapshot would lack the guest's RAM. */
static void check_migrates_whole(const struct ft_attach *a)
{
	struct ft_qmp *q;
	json_t *caps, *cap;
	size_t i, seen = 0;

	CHECK_OK(ft_qmp_open(a->qmp_guard, 5000, &q));
	CHECK_OK(ft_qmp_call(q, "query-migrate-capabilities", NULL, -1, 5000, &caps));
	json_array_foreach(caps, i, cap)
		if (!strcmp(json_string_value(json_object_get(cap, "capability")), "x-ignore-shared")) {
			CHECK(json_is_false(json_object_get(cap, "state")));
			seen++;
		}
	CHECK_EQ(seen, 1);
	json_decref(caps);
	ft_qmp_close(q);
}

static void story_takeover(void)
{
	struct ft_attach a = start_guest(takeover_mb()), b;
	struct ft_replica *r = park(&a);
	struct copy c;
	char boot[64], boot_after[64];
	unsigned long long pages;
	struct reading before;
	uint64_t start;

	ask("fill 8 42");
	ask("dirty 16 4000");
	ask_boot(boot);
	at(&alpha);
	begin_copy(&c, open_vm(&a, NULL), r->ram);
	check_migrates_whole(&a);
	take_epochs(&c, 120, 5);
	print_pauses(&c);
	pages = ask_stat("pages=");
	before = read_clock();
	at(&alpha);
	take_epoch(&c);
	r->epoch_ns = ft_now_ns();
	CHECK_OK(c.vm->ops->destroy(c.vm));
	usleep(2000000);                /* until somebody noticed */
	at(&beta);
	start = ft_now_ns();
	CHECK_OK(r->ops->start(r, &c.firmware, &c.state));
	printf("# takeover: %.1f ms from the command to running\n", (double)(ft_now_ns() - start) / 1e6);
	CHECK_OK(ft_attach_load("vm1", &b));    /* whoever of ours dies now, it is found */
	CHECK_OK(r->ops->detach(r));
	CHECK_OK(ft_attach_load("vm1", &b));
	check_migrates_whole(&b);
	ask("check 8 42");
	check_clock(&before);
	CHECK(ask_stat("pages=") >= pages);
	ask_boot(boot_after);
	CHECK_STR(boot_after, boot);
	pages = ask_stat("pages=");
	usleep(300000);
	CHECK(ask_stat("pages=") > pages);
	end_copy(&c);

	/* The firmware came along: the guest reboots. And the survivor can be protected. */
	at(&beta);
	begin_copy(&c, open_vm(&b, NULL), NULL);
	try_ask("reboot", 100);
	CHECK_EQ(wait_event(c.vm, 60000), FT_VM_RESET);
	CHECK(try_ask("stat", BOOT_TIMEOUT_S * 1000));
	ask_boot(boot_after);
	CHECK(strcmp(boot_after, boot));
	at(&beta);
	take_epochs(&c, 3, 5);
	end_copy(&c);
}
TEST_TIMEOUT(a_replica_goes_on_where_the_last_epoch_was_and_can_reboot, 300)
{
	in_world(story_takeover);
}

static void story_clock(void)
{
	struct ft_attach a = start_guest(256);
	struct copy c;
	uint64_t guest0, guest1, real0, real1, last;
	double speed;

	begin_copy(&c, open_vm(&a, NULL), NULL);
	take_epochs(&c, 20, 5);
	last = guest0 = guest_clock();
	real0 = ft_now_ns();
	do {
		take_epochs(&c, 20, 4);
		guest1 = guest_clock();
		real1 = ft_now_ns();
		CHECK(guest1 > last);
		last = guest1;
	} while (real1 - real0 < 5 * FT_S_NS);
	speed = (double)(guest1 - guest0) / (double)(real1 - real0);
	printf("# guest clock at %.2f %% of real time, %.0f pauses a second\n", speed * 100,
	       (c.epochs - 20) / ((double)(real1 - real0) / 1e9));
	print_pauses(&c);
	CHECK(speed > 0.98 && speed < 1.02);
	end_copy(&c);
}
TEST_TIMEOUT(the_guest_clock_keeps_pace_with_many_pauses, 200)
{
	in_world(story_clock);
}

static void story_drill(void)
{
	struct ft_attach a = start_guest(256);
	struct ft_replica *r = park(&a);
	struct ft_drill_result res;
	struct copy c;
	struct pollfd p = { .events = POLLIN };
	uint8_t *before;
	size_t cpu;

	at(&alpha);
	begin_copy(&c, open_vm(&a, NULL), r->ram);
	take_epochs(&c, 5, 20);
	before = malloc(r->nr_pages * FT_PAGE_SIZE);
	CHECK(before);
	memcpy(before, r->ram, r->nr_pages * FT_PAGE_SIZE);

	at(&beta);
	CHECK_OK(r->ops->drill_start(r, &c.firmware, &c.state, &p.fd));
	CHECK_EQ(r->ops->drill_start(r, &c.firmware, &c.state, &p.fd), -EBUSY);
	CHECK(poll(&p, 1, 60000) == 1);
	r->ops->drill_end(r, &res);
	printf("# drill: %s, loaded in %u ms, %u pages written; %s\n", res.ok ? "ok" : "not ok", res.load_ms, res.dirtied_pages, res.why);
	CHECK(res.ok && res.dirtied_pages > 0);
	CHECK(!memcmp(before, r->ram, r->nr_pages * FT_PAGE_SIZE));

	/* A state that is not this guest's: a bit of a device's name. */
	for (cpu = 0; memcmp(c.state.data + cpu, "cpu_common", 10); cpu++)
		CHECK(cpu + 10 < c.state.len);
	c.state.data[cpu] ^= 1;
	CHECK_OK(r->ops->drill_start(r, &c.firmware, &c.state, &p.fd));
	CHECK(poll(&p, 1, 60000) == 1);
	r->ops->drill_end(r, &res);
	printf("# drill of a wrong state: %s\n", res.why);
	CHECK(!res.ok && res.why[0]);
	c.state.data[cpu] ^= 1;

	/* Cancelled in the middle. */
	CHECK_OK(r->ops->drill_start(r, &c.firmware, &c.state, &p.fd));
	r->ops->drill_end(r, &res);
	CHECK(!res.ok);
	CHECK_STR(res.why, "cancelled");

	/* None of this touched the parked one: it still takes over. */
	CHECK_OK(c.vm->ops->destroy(c.vm));
	CHECK_OK(r->ops->start(r, &c.firmware, &c.state));
	CHECK(try_ask("stat", 20000));
	CHECK_EQ(r->ops->start(r, &c.firmware, &c.state), -EALREADY);
	r->ops->destroy(r);
	end_copy(&c);
	free(before);
}
TEST_TIMEOUT(a_drill_proves_the_replica_and_leaves_it_alone, 200)
{
	in_world(story_drill);
}

static unsigned count_scratch(void)
{
	FILE *p = popen("ps -eo args | grep -c '[s]hare=off'", "r");
	unsigned n = 0;

	CHECK(p && fscanf(p, "%u", &n) == 1);
	pclose(p);
	return n;
}

static void wait_no_scratch(void)
{
	for (unsigned i = 0; i < 300 && count_scratch(); i++)
		usleep(100000);
	CHECK_EQ(count_scratch(), 0);
}

/* ftd's child dies in the middle of a drill. */
static void story_orphan(void)
{
	struct ft_attach theirs = { .guest = "vm1", .accel = FT_ACCEL_TCG };
	struct ft_spec spec = spec_of(256);
	struct ft_qemu_launch launch = { .spec = &spec, .kind = FT_QEMU_GUEST };
	struct ft_blob firmware = { 0 }, state = { 0 };
	struct ft_replica *r;
	char why[256];
	int fd, status;
	pid_t pid;

	at(&alpha);
	CHECK_OK(ft_qemu_start(&launch, &theirs));
	at(&beta);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		CHECK_OK(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)));
		CHECK_OK(ft_blob_copy(&firmware, "?", 1));
		CHECK_OK(ft_blob_copy(&state, "?", 1));
		CHECK_OK(r->ops->drill_start(r, &firmware, &state, &fd));
		usleep(300000);
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	wait_no_scratch();

	/* What is left stands in nobody's way; and a takeover that fails leaves nothing that looks like a guest. */
	CHECK_OK(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)));
	CHECK_OK(ft_blob_copy(&firmware, "?", 1));
	CHECK_OK(ft_blob_copy(&state, "?", 1));
	CHECK(r->ops->start(r, &firmware, &state) < 0);
	CHECK_EQ(ft_attach_load("vm1", &theirs), -ENOENT);
	r->ops->destroy(r);
	ft_blob_free(&firmware);
	ft_blob_free(&state);
}
TEST_TIMEOUT(a_drill_dies_with_its_owner, 120)
{
	in_world(story_orphan);
}

static void story_events(void)
{
	struct ft_attach a = start_guest(256), b;
	struct ft_qmp *other;
	struct copy c;

	begin_copy(&c, open_vm(&a, NULL), NULL);
	take_epochs(&c, 5, 5);
	check_quiet(c.vm);              /* our own stops are no news */

	CHECK_OK(ft_qmp_open(a.qmp_guard, 5000, &other));
	CHECK_OK(ft_qmp_call(other, "stop", NULL, -1, 5000, NULL));
	CHECK_EQ(wait_event(c.vm, 5000), FT_VM_PAUSED_BY_OTHER);
	take_epoch(&c);
	CHECK(!try_ask("stat", 500));   /* still theirs: an epoch does not let it run */
	at(&alpha);
	CHECK_OK(ft_qmp_call(other, "cont", NULL, -1, 5000, NULL));
	ask("stat");

	/* A guard that lets the guest run during our pause voids the epoch. */
	at(&alpha);
	CHECK_OK(c.vm->ops->pause(c.vm));
	CHECK_OK(ft_qmp_call(other, "cont", NULL, -1, 5000, NULL));
	CHECK_EQ(c.vm->ops->resume(c.vm), -ECANCELED);
	ask("stat");
	at(&alpha);
	take_epochs(&c, 3, 5);
	ft_qmp_close(other);

	/* Busy vCPUs use CPU time. */
	ask("burn 1");
	uint64_t cpu = c.vm->ops->cpu_time_ns(c.vm);
	usleep(300000);
	CHECK(c.vm->ops->cpu_time_ns(c.vm) > cpu + 20 * FT_MS_NS);
	ask("burn 0");

	/* Powered off, it stays for its last epoch. */
	at(&alpha);
	try_ask("poweroff", 100);
	CHECK_EQ(wait_event(c.vm, 30000), FT_VM_SHUTDOWN);
	take_epoch(&c);
	CHECK(c.state.len > 0);
	check_quiet(c.vm);
	end_copy(&c);
	/* Off, it leaves nothing here that would later be taken for a replica's. */
	CHECK_EQ(ft_attach_load("vm1", &b), -ENOENT);
	CHECK(access(a.ram, F_OK) < 0 && access(a.qmp, F_OK) < 0);
}
TEST_TIMEOUT(what_happens_to_the_guest_is_told_once, 200)
{
	in_world(story_events);
}

static void story_crash(void)
{
	struct ft_attach a = start_guest(256);
	struct ft_vm *vm = open_vm(&a, NULL);

	CHECK_OK(vm->ops->track(vm));
	CHECK(!kill(a.pid, SIGKILL));
	CHECK_EQ(wait_event(vm, 5000), FT_VM_GONE);
	check_quiet(vm);
	CHECK(vm->ops->pause(vm) < 0);
	CHECK_OK(vm->ops->destroy(vm));
	vm->ops->close(vm);
}
TEST_TIMEOUT(a_qemu_that_dies_is_a_crash, 120)
{
	in_world(story_crash);
}

static unsigned nr_lines;

static void keep_line(void *ctx, const char *line)
{
	char *all = ctx;

	printf("# obstacle: %s\n", line);
	snprintf(all + strlen(all), 8192 - strlen(all), "%s\n", line);
	nr_lines++;
}

/* ft-protect dies with the guest paused and the clock held; the next one finds it so. */
static void story_restart(void)
{
	static char lines[8192];
	struct ft_attach a = start_guest(256);
	struct ft_vm *vm;
	int status;
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		vm = open_vm(&a, NULL);
		CHECK_OK(vm->ops->track(vm));
		CHECK_OK(vm->ops->pause(vm));
		_exit(0);
	}
	CHECK(waitpid(pid, &status, 0) == pid && !status);
	CHECK(!try_ask("stat", 500));
	at(&alpha);
	CHECK_EQ(ft_qemu_check(&a, keep_line, lines), 0);       /* looks, and does not touch */
	CHECK(!try_ask("stat", 500));
	at(&alpha);
	vm = open_vm(&a, NULL);
	ask("stat");
	at(&alpha);
	CHECK_OK(vm->ops->track(vm));
	CHECK_OK(vm->ops->pause(vm));
	vm->ops->close(vm);             /* leaves it running, whatever came before */
	ask("stat");
}
TEST_TIMEOUT(a_restart_finds_the_guest_paused_and_lets_it_run, 120)
{
	in_world(story_restart);
}

static void story_mismatch(void)
{
	struct ft_attach theirs = { .guest = "vm1", .accel = FT_ACCEL_TCG, .machine = "pc-i440fx-7.1", .qemu_version = "6.2.0" };
	struct ft_spec spec = spec_of(64);
	struct ft_replica *r;
	char why[512];

	at(&beta);
	CHECK_EQ(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)), -ENOEXEC);
	CHECK(ft_test_logged("QEMU 6.2.0") && strstr(why, "QEMU 6.2.0"));
	strcpy(theirs.machine, "pc,kernel-irqchip=off");
	CHECK_EQ(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)), -EPROTO);
	CHECK_OK(ft_qemu_version(theirs.qemu_version, sizeof(theirs.qemu_version)));
	strcpy(theirs.machine, "pc-i440fx-0.1");
	CHECK_EQ(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)), -ENOEXEC);
	CHECK(strstr(why, "pc-i440fx-0.1"));
	strcpy(theirs.machine, "pc-i440fx-7.1");
	spec.memory = 1ull << 46;
	CHECK_EQ(ft_qemu_replica_prepare(&spec, &theirs, &r, why, sizeof(why)), -ENOSPC);
	CHECK(ft_test_logged("no room for its memory") && strstr(why, "no room for its memory"));
}
TEST_TIMEOUT(a_replica_that_could_not_go_on_is_refused_by_name, 60)
{
	in_world(story_mismatch);
}

static pid_t start_bad_qemu(void)
{
	pid_t pid = fork();

	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execlp("qemu-system-x86_64", "qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-machine",
		       "pc,memory-backend=ram", "-m", "64M", "-object", "memory-backend-file,id=ram,mem-path=bad.ram,size=64M",
		       "-object", "memory-backend-ram,id=more,size=16M", "-device", "virtio-balloon-pci", "-vga", "std",
		       "-netdev", "user,id=u", "-device", "virtio-net-pci,netdev=u", "-netdev", "tap,id=t,script=no,downscript=no,ifname=tapx",
		       "-device", "virtio-net-pci,netdev=t", "-chardev", "socket,id=c,path=bad.con,server=on,wait=off",
		       "-serial", "chardev:c", "-chardev", "vc,id=v", "-vnc", "unix:bad.vnc", "-drive", "if=virtio,format=raw,file=bad.img",
		       "-qmp", "unix:bad.qmp,server=on,wait=off", (char *)NULL);
		_exit(127);
	}
	return pid;
}

static void story_obstacles(void)
{
	static const char *const expected[] = {
		"2 memory backends", "vga.vram", "balloon", "writable", "type user", "tapx is not in the attach record",
		"character device c ", "character device v ", "vnc", "does not run",
	};
	struct ft_attach a = { .guest = "bad", .qmp = "bad.qmp", .ram = "bad.ram", .memory = 64 * MB };
	static char lines[8192];

	run("truncate -s 1M bad.img");
	CHECK_OK(ft_attach_fill_pid(&a, start_bad_qemu()));
	for (unsigned i = 0; i < 200 && access(a.qmp, F_OK); i++)
		usleep(50000);
	CHECK_EQ(ft_qemu_check(&a, keep_line, lines), (int)nr_lines);
	for (size_t i = 0; i < FT_ARRAY_LEN(expected); i++)
		if (!strstr(lines, expected[i]))
			ft_test_fail(__FILE__, __LINE__, "no obstacle says '%s'", expected[i]);
}
TEST_TIMEOUT(every_obstacle_is_named, 60)
{
	in_world(story_obstacles);
}
