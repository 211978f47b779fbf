// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_room.c - a guest that QEMU has stopped since a disk's image has no room. See qemu_vm.h.
 *
 * QEMU keeps the request and tries it again at `cont`. Nobody tells when there is room, so the guest is let run each second
 * until it goes on; between two tries it stands still, and its epochs, which it does not change, go on.
 */
#include "checkpoint/qemu_vm.h"

#include "ft/conf.h"

#include <stdio.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define TRY_S 1

static void look_again(struct qemu_vm *v)
{
	const struct itimerspec at = { .it_value.tv_sec = TRY_S };

	if (timerfd_settime(v->room_fd, 0, &at, NULL))
		ft_err("%s: timer: %s", v->at.guest, strerror(errno));
}

/* Disks are nodes image0, image1, ... of ft-guest's command line. */
static const char *image_of(const struct qemu_vm *v, const json_t *data)
{
	const char *node = json_string_value(json_object_get(data, "node-name"));
	unsigned n;

	if (!node || sscanf(node, "image%u", &n) != 1 || n >= v->at.nr_disks)
		return "(which one, QEMU does not say)";
	return v->at.disk[n].image;
}

static void stands_still(struct qemu_vm *v, const char *image, const char *reason)
{
	v->starved = true;
	look_again(v);
	if (v->vm.trouble)
		return;
	snprintf(v->trouble, sizeof(v->trouble), "its disk %s cannot be written: %s: make room there (or in %s, where the disk's map is), "
		 "and it goes on by itself", image, reason, ft_conf()->state_dir);
	v->vm.trouble = v->trouble;
	qemu_vm_queue_event(v, FT_VM_TROUBLE);
}

void qemu_room_lost(struct qemu_vm *v, const json_t *data)
{
	const char *action = json_string_value(json_object_get(data, "action"));
	const char *reason = json_string_value(json_object_get(data, "reason"));

	if (action && !strcmp(action, "stop"))
		stands_still(v, image_of(v, data), reason ? reason : "no room");
}

void qemu_room_found(struct qemu_vm *v)
{
	stands_still(v, image_of(v, NULL), "no room");
}

static int let_run(struct qemu_vm *v)
{
	int rc = ft_qmp_disarm(v->qmp, FT_QEMU_CALL_MS);

	if (rc)
		return rc;
	v->starved = false;
	v->changing = true;
	rc = ft_qmp_call(v->qmp, "cont", NULL, -1, FT_QEMU_CALL_MS, NULL);
	v->changing = false;
	qemu_vm_take_events(v);                 /* it may stand still again already */
	return rc;
}

void qemu_room_tick(struct qemu_vm *v)
{
	uint64_t times;

	if (read(v->room_fd, &times, sizeof(times)) < 0 || v->exited)
		return;
	if (!v->starved && v->vm.trouble) {     /* it ran since the last try */
		v->vm.trouble = NULL;
		qemu_vm_queue_event(v, FT_VM_TROUBLE);
	}
	if (!v->starved)
		return;
	look_again(v);
	if (!v->paused && !v->foreign_pause && let_run(v))
		ft_debug("%s: cont: %s", v->at.guest, ft_qmp_error(v->qmp));
}
