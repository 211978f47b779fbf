// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_vm.c - what an epoch needs from a running QEMU: pause, state, dirty pages, resume, events. See qemu_vm.h. */
#include "checkpoint/qemu_vm.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/pidfd.h>
#include <unistd.h>

/*
 * `stop` waits for disk requests in flight, and a slow disk may take its time. Whoever guards us hears of us meanwhile (ft_vm_busy),
 * so these need not be shorter than any limit that somebody sets, grace-ms or the guard's of a pause.
 */
#define PAUSE_TIMEOUT_MS 10000
#define STATE_TIMEOUT_MS 10000
#define STATE_MAX (16u << 20)
#define KILL_TIMEOUT_MS 5000

/* --- QMP --- */

static int failed(struct qemu_vm *v, struct ft_qmp *q, const char *command, int rc)
{
	ft_err("%s: QEMU: %s: %s", v->at.guest, command, ft_qmp_error(q));
	return rc == -EREMOTEIO ? -EIO : rc;
}

int qemu_vm_call(struct qemu_vm *v, const char *command, json_t *args, int fd, json_t **ret)
{
	int rc = ft_qmp_call(v->qmp, command, args, fd, FT_QEMU_CALL_MS, ret);

	return rc ? failed(v, v->qmp, command, rc) : 0;
}

void qemu_vm_try(struct qemu_vm *v, const char *command, json_t *args)
{
	if (qemu_vm_call(v, command, args, -1, NULL))
		ft_debug("%s: %s failed; going on", v->at.guest, command);
}

/* --- events --- */

void qemu_vm_queue_event(struct qemu_vm *v, enum ft_vm_event ev)
{
	uint64_t one = 1;

	for (unsigned i = 0; i < v->nr_events; i++)
		if (v->event[i] == ev)
			return;
	v->event[v->nr_events++] = ev;
	if (write(v->wake_fd, &one, sizeof(one)) < 0)
		ft_err("%s: eventfd: %s", v->at.guest, strerror(errno));
}

static void on_stop(struct qemu_vm *v)
{
	if (v->changing || v->off || v->starved)
		return;
	v->foreign_pause = true;
	qemu_vm_queue_event(v, FT_VM_PAUSED_BY_OTHER);
}

static void on_resume(struct qemu_vm *v)
{
	if (v->changing)
		return;
	v->foreign_pause = v->starved = false;
	v->resumed_by_other = v->paused;
}

/* A signal from outside is a crash to us: a host that goes down must not take the guest with it. */
static void on_shutdown(struct qemu_vm *v, const json_t *data)
{
	const char *reason = json_string_value(json_object_get(data, "reason"));

	if (reason && !strcmp(reason, "host-signal"))
		return;
	v->off = true;
	qemu_vm_queue_event(v, FT_VM_SHUTDOWN);
}

static void on_event(struct qemu_vm *v, const json_t *event)
{
	const char *name = json_string_value(json_object_get(event, "event"));

	if (!name)
		return;
	if (!strcmp(name, "STOP"))
		on_stop(v);
	else if (!strcmp(name, "RESUME"))
		on_resume(v);
	else if (!strcmp(name, "SHUTDOWN"))
		on_shutdown(v, json_object_get(event, "data"));
	else if (!strcmp(name, "RESET"))
		qemu_vm_queue_event(v, FT_VM_RESET);
	else if (!strcmp(name, "BLOCK_IO_ERROR"))
		qemu_room_lost(v, json_object_get(event, "data"));
}

void qemu_vm_take_events(struct qemu_vm *v)
{
	json_t *event;

	while ((event = ft_qmp_event(v->qmp))) {
		on_event(v, event);
		json_decref(event);
	}
}

/* Every monitor is told every event; those of this one nobody needs. */
static void drop_state_events(struct qemu_vm *v)
{
	json_t *event;

	while ((event = ft_qmp_event(v->state_qmp)))
		json_decref(event);
}

void qemu_vm_check_exit(struct qemu_vm *v)
{
	struct pollfd p = { .fd = v->pidfd, .events = POLLIN };

	if (v->exited || poll(&p, 1, 0) <= 0)
		return;
	v->exited = true;
	qemu_vm_take_events(v);                 /* its last words say whether the guest wanted this */
	if (!v->off)
		qemu_vm_queue_event(v, FT_VM_GONE);
	epoll_ctl(v->vm.event_fd, EPOLL_CTL_DEL, v->pidfd, NULL);
}

static enum ft_vm_event qemu_next_event(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	enum ft_vm_event ev;
	uint64_t count;

	qemu_vm_take_events(v);
	if (ft_qmp_closed(v->qmp))      /* readable for ever; the pidfd tells what it means */
		epoll_ctl(vm->event_fd, EPOLL_CTL_DEL, ft_qmp_fd(v->qmp), NULL);
	qemu_vm_check_exit(v);
	qemu_room_tick(v);
	if (!v->nr_events) {
		if (read(v->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
			ft_err("%s: eventfd: %s", v->at.guest, strerror(errno));
		return FT_VM_NONE;
	}
	ev = v->event[0];
	memmove(v->event, v->event + 1, --v->nr_events * sizeof(v->event[0]));
	return ev;
}

/* --- time --- */

void qemu_vm_hold_clock(struct qemu_vm *v, bool still)
{
	uint64_t seq = v->page ? atomic_load(&v->page->hold_seq) : 0;

	if (v->page && (seq & 1) != still)
		atomic_store(&v->page->hold_seq, seq + 1);
}

static uint64_t qemu_cpu_time_ns(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	uint64_t busiest = 0;

	for (unsigned i = 0; i < v->nr_vcpus; i++) {
		char text[96];
		ssize_t n = pread(v->vcpu_fd[i], text, sizeof(text) - 1, 0);
		uint64_t ns;

		if (n <= 0)
			continue;
		text[n] = 0;
		ns = strtoull(text, NULL, 10);
		if (ns - v->vcpu_ns[i] > busiest)
			busiest = ns - v->vcpu_ns[i];
		v->vcpu_ns[i] = ns;
	}
	return v->busy_ns += busiest;
}

/* --- pause and resume --- */

static json_t *state_args(const struct qemu_vm *v)
{
	char path[48];

	snprintf(path, sizeof(path), "/dev/fdset/%lld", (long long)v->state_fdset);
	return json_pack("{s:s, s:b}", "filename", path, "live", 0);
}

/* Say now what the next pause will need. Not being able to is no failure: the command is said whole then. */
static void arm_pause(struct qemu_vm *v)
{
	if (!ft_qmp_armed(v->qmp) && ft_qmp_arm(v->qmp, "stop", NULL))
		ft_debug("%s: stop is not armed: %s", v->at.guest, ft_qmp_error(v->qmp));
	if (!ft_qmp_armed(v->state_qmp) && ft_qmp_arm(v->state_qmp, "xen-save-devices-state", state_args(v)))
		ft_debug("%s: state is not armed: %s", v->at.guest, ft_qmp_error(v->state_qmp));
}

static int wait_patiently(struct qemu_vm *v, struct ft_qmp *q, unsigned timeout_ms)
{
	uint64_t end = ft_now_ns() + timeout_ms * FT_MS_NS;
	int rc;

	while ((rc = ft_qmp_wait(q, FT_QEMU_BUSY_MS, NULL)) == -ETIMEDOUT && ft_now_ns() < end)
		ft_vm_busy(&v->vm);
	return rc;
}

static int fire_or_send(struct ft_qmp *q, const char *command)
{
	return ft_qmp_armed(q) ? ft_qmp_fire(q) : ft_qmp_send(q, command, NULL, -1);
}

/* stop or cont: whatever is armed on qmp is this command. */
static int change(struct qemu_vm *v, const char *command)
{
	int rc;

	v->changing = true;
	rc = fire_or_send(v->qmp, command);
	if (!rc)
		rc = wait_patiently(v, v->qmp, PAUSE_TIMEOUT_MS);
	qemu_vm_take_events(v);
	v->changing = false;
	return rc;
}

/* A `stop` that takes too long still comes true some time: say `cont` behind it, and wait for neither. */
static void undo_pause(struct qemu_vm *v)
{
	if (ft_qmp_send(v->qmp, "cont", NULL, -1))
		ft_debug("%s: %s", v->at.guest, ft_qmp_error(v->qmp));
	qemu_vm_hold_clock(v, false);
}

int qemu_vm_pause(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	int rc;

	if (v->paused)
		return 0;
	qemu_vm_take_events(v);                 /* those of others, before our own come */
	v->resumed_by_other = false;
	qemu_vm_hold_clock(v, true);
	rc = change(v, "stop");
	if (rc) {
		rc = failed(v, v->qmp, "stop", rc);
		undo_pause(v);
		return rc;
	}
	v->paused = true;
	return 0;
}

static int let_run(struct qemu_vm *v)
{
	int rc;

	if (v->foreign_pause || v->starved || v->resumed_by_other)
		return ft_qmp_disarm(v->qmp, PAUSE_TIMEOUT_MS);
	rc = change(v, "cont");
	/* A guest that powered itself off cannot run on: there is nothing to resume. */
	return rc && !v->off ? failed(v, v->qmp, "cont", rc) : 0;
}

int qemu_vm_resume(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	int rc;

	if (!v->paused)
		return 0;
	qemu_vm_take_events(v);
	rc = let_run(v);
	qemu_vm_hold_clock(v, false);
	v->paused = rc != 0;
	if (rc)
		return rc;
	if (v->tracker)
		arm_pause(v);
	if (!v->resumed_by_other)
		return 0;
	ft_warn("%s: somebody else let the guest run on while it was paused", v->at.guest);
	return -ECANCELED;
}

/* --- state --- */

static int qemu_state_begin(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	int rc;

	if (lseek(v->state_wr, 0, SEEK_SET) < 0)
		return -errno;
	rc = ft_qmp_armed(v->state_qmp) ? ft_qmp_fire(v->state_qmp)
					: ft_qmp_send(v->state_qmp, "xen-save-devices-state", state_args(v), -1);
	if (rc)
		return failed(v, v->state_qmp, "xen-save-devices-state", rc);
	if (!ft_qmp_armed(v->qmp) && ft_qmp_arm(v->qmp, "cont", NULL))
		ft_debug("%s: cont is not armed: %s", v->at.guest, ft_qmp_error(v->qmp));
	return 0;
}

static int read_state(struct qemu_vm *v, struct ft_blob *out)
{
	off_t len = lseek(v->state_wr, 0, SEEK_CUR);
	ssize_t n;

	if (len <= 0 || len > (off_t)STATE_MAX) {
		ft_err("%s: QEMU wrote a device state of %lld bytes", v->at.guest, (long long)len);
		return -EIO;
	}
	*out = (struct ft_blob){ .data = malloc((size_t)len), .len = (size_t)len };
	if (!out->data)
		return -ENOMEM;
	n = pread(v->state_rd, out->data, out->len, 0);
	if (n == len)
		return 0;
	ft_blob_free(out);
	return -EIO;
}

static int qemu_state_end(struct ft_vm *vm, struct ft_blob *out)
{
	struct qemu_vm *v = qemu_of(vm);
	int rc = wait_patiently(v, v->state_qmp, STATE_TIMEOUT_MS);

	*out = (struct ft_blob){ 0 };
	if (rc)
		return failed(v, v->state_qmp, "xen-save-devices-state", rc);
	drop_state_events(v);
	return read_state(v, out);
}

/* --- tracking --- */

/* A guest that powers off must stay for its last epoch. */
static int set_shutdown_action(struct qemu_vm *v, const char *action)
{
	return qemu_vm_call(v, "set-action", json_pack("{s:s}", "shutdown", action), -1, NULL);
}

static int qemu_track(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	struct ft_track_target t = qemu_vm_target(v);
	int rc = ft_track_find_mapping(v->at.pid, v->at.ram, vm->nr_pages, &t.addr);

	if (rc) {
		qemu_vm_say_unmapped(v, rc);
		return rc;
	}
	rc = set_shutdown_action(v, "pause");
	if (rc)
		return rc;
	v->prepared = true;
	rc = v->tracker_ops->open(&t, &v->tracker);
	if (!rc)
		rc = v->tracker_ops->start(v->tracker);
	if (rc)
		return rc;
	vm->ram = v->tracker->view;
	arm_pause(v);
	return 0;
}

static int qemu_take_dirty(struct ft_vm *vm, struct ft_bitmap *dirty)
{
	struct qemu_vm *v = qemu_of(vm);

	return v->tracker_ops->take(v->tracker, dirty);
}

/* --- ending --- */

static int qemu_destroy(struct ft_vm *vm)
{
	struct qemu_vm *v = qemu_of(vm);
	struct pollfd p = { .fd = v->pidfd, .events = POLLIN };

	if (pidfd_send_signal(v->pidfd, SIGKILL, NULL, 0) && errno != ESRCH)
		return -errno;
	if (poll(&p, 1, KILL_TIMEOUT_MS) <= 0) {
		ft_err("%s: QEMU (process %d) does not die", v->at.guest, (int)v->at.pid);
		return -ETIMEDOUT;
	}
	v->exited = true;
	ft_qemu_cleanup(&v->at);
	return ft_attach_remove(v->at.guest);
}

const struct ft_hv_ops qemu_vm_ops = {
	.track = qemu_track,
	.pause = qemu_vm_pause,
	.state_begin = qemu_state_begin,
	.state_end = qemu_state_end,
	.take_dirty = qemu_take_dirty,
	.resume = qemu_vm_resume,
	.firmware = qemu_vm_firmware,
	.next_event = qemu_next_event,
	.cpu_time_ns = qemu_cpu_time_ns,
	.destroy = qemu_destroy,
	.close = qemu_vm_close,
};
