// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_open.c - attaching to a running QEMU, and leaving it as if we had never been there. See qemu_vm.h. */
#include "checkpoint/qemu_vm.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define QUIT_TIMEOUT_MS 10000
#define HOLD_LIMIT_NS FT_S_NS           /* a longer pause is not hidden from the guest's clock */

static int map_file(const char *path, int flags, uint64_t size, void **out)
{
	int fd = open(path, flags | O_CLOEXEC), rc = 0;
	struct stat st;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &st))
		rc = -errno;
	else if ((uint64_t)st.st_size != size)
		rc = -EINVAL;
	if (!rc) {
		*out = mmap(NULL, size, flags == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
		rc = *out == MAP_FAILED ? -errno : 0;
	}
	close(fd);
	return rc;
}

static int map_ram(struct qemu_vm *v)
{
	void *ram;
	int rc = map_file(v->at.ram, O_RDONLY, v->at.memory, &ram);

	if (rc) {
		ft_err("%s: RAM file %s of %llu bytes: %s: %s", v->at.guest, v->at.ram, (unsigned long long)v->at.memory,
		       rc == -EINVAL ? "it has another size" : strerror(-rc),
		       rc == -EACCES || rc == -EPERM ? "run as root" : "stop and start the guest again");
		return rc;
	}
	v->mapping = v->vm.ram = ram;
	v->vm.nr_pages = v->at.memory / FT_PAGE_SIZE;
	/* Later faults would be ours, in the pause. Without it (Linux before 5.14) they are. */
	if (madvise(ram, v->at.memory, MADV_POPULATE_READ))
		ft_debug("%s: RAM is not mapped beforehand: %s", v->at.guest, strerror(errno));
	return 0;
}

static void map_preload(struct qemu_vm *v)
{
	void *page;
	int rc = v->at.preload[0] ? map_file(v->at.preload, O_RDWR, FT_PRELOAD_SIZE, &page) : -ENOENT;

	if (!rc) {
		v->page = page;
		atomic_store(&v->page->hold_limit_ns, HOLD_LIMIT_NS);
	}
	if (rc || atomic_load(&v->page->magic) != FT_PRELOAD_MAGIC)
		ft_warn("%s: QEMU runs without ft-preload.so: the guest's clock loses every pause", v->at.guest);
}

/* Who pauses for an epoch holds the clock before it says stop, and lets go of it after cont. */
bool qemu_old_pause(const struct ft_attach *at)
{
	struct ft_preload_page *page;
	void *map;
	bool held;

	if (!at->preload[0] || map_file(at->preload, O_RDONLY, FT_PRELOAD_SIZE, &map))
		return false;
	page = map;
	held = atomic_load(&page->magic) == FT_PRELOAD_MAGIC && (atomic_load(&page->hold_seq) & 1);
	munmap(map, FT_PRELOAD_SIZE);
	return held;
}

/* A predecessor died in its pause: the clock is held, and the guest stands unless a guard was there. */
static void end_old_pause(struct qemu_vm *v)
{
	if (!v->page || !(atomic_load(&v->page->hold_seq) & 1))
		return;
	ft_warn("%s: it was left in a pause of ft's: it goes on", v->at.guest);
	qemu_vm_try(v, "cont", NULL);
	qemu_vm_hold_clock(v, false);
}

/* What one that died left in QEMU; it is known by the name it has there. */
static void remove_old_fdsets(struct qemu_vm *v)
{
	json_t *sets = NULL, *set;
	size_t i;

	if (qemu_vm_call(v, "query-fdsets", NULL, -1, &sets))
		return;
	json_array_foreach(sets, i, set) {
		json_t *fd = json_array_get(json_object_get(set, "fds"), 0);
		const char *name = json_string_value(json_object_get(fd, "opaque"));

		if (name && !strcmp(name, "ft-state"))
			qemu_vm_try(v, "remove-fd", json_pack("{s:O}", "fdset-id", json_object_get(set, "fdset-id")));
	}
	json_decref(sets);
}

/* QEMU opens a fd set only in the mode its descriptor has: it gets one that can only write. */
static int share_state_fd(struct qemu_vm *v)
{
	char path[32];
	json_t *ret = NULL;
	int rc;

	v->state_rd = memfd_create("ft-state", MFD_CLOEXEC);
	if (v->state_rd < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", v->state_rd);
	v->state_wr = open(path, O_WRONLY | O_CLOEXEC);
	if (v->state_wr < 0)
		return -errno;
	rc = qemu_vm_call(v, "add-fd", json_pack("{s:s}", "opaque", "ft-state"), v->state_wr, &ret);
	if (!rc)
		v->state_fdset = json_integer_value(json_object_get(ret, "fdset-id"));
	json_decref(ret);
	return rc;
}

static int open_qmp(struct qemu_vm *v)
{
	int rc = ft_qmp_open(v->at.qmp, FT_QEMU_CALL_MS, &v->qmp);

	if (!rc)
		rc = ft_qmp_open(v->at.qmp_state, FT_QEMU_CALL_MS, &v->state_qmp);
	if (!rc)
		remove_old_fdsets(v);
	return rc;
}

/* --- the rest of the handle --- */

static int open_vcpus(struct qemu_vm *v)
{
	json_t *cpus = NULL, *cpu;
	size_t i;
	int rc = qemu_vm_call(v, "query-cpus-fast", NULL, -1, &cpus);

	json_array_foreach(cpus, i, cpu) {
		char path[64];

		if (i == FT_QEMU_VCPUS_MAX)
			break;
		snprintf(path, sizeof(path), "/proc/%d/task/%lld/schedstat", (int)v->at.pid,
			 (long long)json_integer_value(json_object_get(cpu, "thread-id")));
		v->vcpu_fd[v->nr_vcpus] = open(path, O_RDONLY | O_CLOEXEC);
		if (v->vcpu_fd[v->nr_vcpus] < 0)
			ft_debug("%s: %s: %s", v->at.guest, path, strerror(errno));
		else
			v->nr_vcpus++;
	}
	json_decref(cpus);
	return rc;
}

struct ft_track_target qemu_vm_target(const struct qemu_vm *v)
{
	return (struct ft_track_target){
		.pidfd = v->pidfd, .pid = v->at.pid, .nr_pages = v->vm.nr_pages, .ram = v->mapping,
		.uffd = v->page && atomic_load(&v->page->magic) == FT_PRELOAD_MAGIC ? v->page->uffd : -1,
		.busy = v->vm.busy, .busy_ctx = v->vm.busy_ctx,
	};
}

static int choose_tracker(struct qemu_vm *v, const char *name)
{
	struct ft_track_target t = qemu_vm_target(v);
	int rc = ft_track_find_mapping(v->at.pid, v->at.ram, v->vm.nr_pages, &t.addr);

	if (rc) {
		qemu_vm_say_unmapped(v, rc);
		return rc;
	}
	rc = ft_tracker_choose(name, &t, &v->tracker_ops);
	if (!rc)
		v->vm.tracker = v->tracker_ops->name;
	return rc;
}

static int watch(struct qemu_vm *v, int fd)
{
	struct epoll_event e = { .events = EPOLLIN };

	return epoll_ctl(v->vm.event_fd, EPOLL_CTL_ADD, fd, &e) ? -errno : 0;
}

static int open_events(struct qemu_vm *v)
{
	int rc;

	v->vm.event_fd = epoll_create1(EPOLL_CLOEXEC);
	v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	v->room_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (v->vm.event_fd < 0 || v->wake_fd < 0 || v->room_fd < 0)
		return -errno;
	rc = watch(v, v->wake_fd);
	if (!rc)
		rc = watch(v, v->room_fd);
	if (!rc)
		rc = watch(v, v->pidfd);
	return rc ? rc : watch(v, ft_qmp_fd(v->qmp));
}

/* Powered off, or stopped for want of room, while nobody of ours was there to see it: told now. */
static int find_state(struct qemu_vm *v)
{
	json_t *status = NULL;
	const char *s;
	int rc = qemu_vm_call(v, "query-status", NULL, -1, &status);

	s = json_string_value(json_object_get(status, "status"));
	v->off = s && !strcmp(s, "shutdown");
	if (v->off)
		qemu_vm_queue_event(v, FT_VM_SHUTDOWN);
	else if (s && !strcmp(s, "io-error"))
		qemu_room_found(v);
	json_decref(status);
	return rc;
}

void qemu_vm_say_unmapped(const struct qemu_vm *v, int rc)
{
	ft_err("%s: QEMU does not map %s as its RAM: %s: stop and start the guest again with ft-guest, as root", v->at.guest,
	       v->at.ram, strerror(-rc));
}

static void tell_obstacle(void *ctx, const char *line)
{
	const struct qemu_vm *v = ctx;

	ft_err("%s cannot be protected: %s", v->at.guest, line);
}

static int open_all(struct qemu_vm *v, const struct ft_qemu_options *opt)
{
	int rc;

	v->pidfd = ft_attach_pidfd(&v->at);
	if (v->pidfd < 0) {
		ft_err("%s: its QEMU (process %d) is gone", v->at.guest, (int)v->at.pid);
		return v->pidfd;
	}
	rc = map_ram(v);
	if (!rc)
		rc = open_qmp(v);
	if (rc)
		return rc;
	map_preload(v);
	end_old_pause(v);
	if (qemu_obstacles(v->qmp, &v->at, tell_obstacle, v))
		return -EOPNOTSUPP;
	rc = share_state_fd(v);
	if (!rc)
		rc = open_vcpus(v);
	if (!rc)
		rc = choose_tracker(v, opt ? opt->tracker : NULL);
	if (!rc)
		rc = open_events(v);
	return rc ? rc : find_state(v);
}

int ft_qemu_open(const struct ft_attach *at, const struct ft_qemu_options *opt, struct ft_vm **out)
{
	struct qemu_vm *v = calloc(1, sizeof(*v));
	int rc;

	*out = NULL;
	if (!v)
		return -ENOMEM;
	*v = (struct qemu_vm){
		.vm = { .ops = &qemu_vm_ops, .backend = "qemu", .accel = ft_accel_name(at->accel), .event_fd = -1 },
		.at = *at, .pidfd = -1, .wake_fd = -1, .room_fd = -1, .state_rd = -1, .state_wr = -1, .state_fdset = -1,
	};
	rc = open_all(v, opt);
	if (rc) {
		qemu_vm_close(&v->vm);
		return rc;
	}
	*out = &v->vm;
	return 0;
}

/* --- leaving --- */

static bool has_ended(struct qemu_vm *v)
{
	struct pollfd p = { .fd = v->pidfd, .events = POLLIN };

	return poll(&p, 1, QUIT_TIMEOUT_MS) > 0;
}

/* A guest that is off has nothing left to wait for; what it leaves behind would stand in the way of a replica here. */
static void end_guest(struct qemu_vm *v)
{
	qemu_vm_try(v, "quit", NULL);
	v->exited = has_ended(v);
	if (!v->exited)
		ft_err("%s: is off, but its QEMU does not quit: end it with 'ft-guest stop %s'", v->at.guest, v->at.guest);
}

static void remove_guest(const struct qemu_vm *v)
{
	ft_qemu_cleanup(&v->at);
	if (ft_attach_remove(v->at.guest))
		ft_err("%s: its attach record cannot be removed: 'ft-guest stop %s' does it", v->at.guest, v->at.guest);
}

/* Leave the guest as if we had never been here. */
static void release_guest(struct qemu_vm *v)
{
	if (v->paused && !v->off && qemu_vm_resume(&v->vm))
		ft_err("%s: the guest could not be resumed: `cont` it over %s", v->at.guest, v->at.qmp_guard);
	if (ft_qmp_disarm(v->qmp, FT_QEMU_CALL_MS))
		return;
	if (v->prepared)
		qemu_vm_try(v, "set-action", json_pack("{s:s}", "shutdown", "poweroff"));
	if (v->state_fdset >= 0)
		qemu_vm_try(v, "remove-fd", json_pack("{s:I}", "fdset-id", (json_int_t)v->state_fdset));
	if (v->off)
		end_guest(v);
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

void qemu_vm_close(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);

	if (v->tracker)
		v->tracker_ops->close(v->tracker);
	v->tracker = NULL;
	if (v->qmp && v->pidfd >= 0)
		qemu_vm_check_exit(v);
	if (v->qmp && !v->exited)
		release_guest(v);
	if (v->off && v->exited)
		remove_guest(v);
	qemu_vm_hold_clock(v, false);
	ft_qmp_close(v->state_qmp);
	ft_qmp_close(v->qmp);
	for (unsigned i = 0; i < v->nr_vcpus; i++)
		close_fd(v->vcpu_fd[i]);
	if (v->page)
		munmap(v->page, FT_PRELOAD_SIZE);
	if (v->mapping)
		munmap((void *)(uintptr_t)v->mapping, v->at.memory);
	close_fd(v->state_rd);
	close_fd(v->state_wr);
	close_fd(v->wake_fd);
	close_fd(v->room_fd);
	close_fd(v->pidfd);
	close_fd(vm->event_fd);
	free(v);
}
