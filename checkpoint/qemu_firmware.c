// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * qemu_firmware.c - RAM blocks outside guest RAM: BIOS, option ROMs, ACPI tables. A replica without them runs, until
 * its guest reboots into an empty BIOS. Taken once a session, by migrating all but shared RAM into a socket of ours.
 */
#include "checkpoint/qemu_stream.h"
#include "checkpoint/qemu_vm.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define FIRMWARE_TIMEOUT_MS 10000

/* Only while we migrate: a migration or snapshot of somebody else's would come out without the guest's RAM. */
static int ignore_shared(struct qemu_vm *v, bool on)
{
	return qemu_vm_call(v, "migrate-set-capabilities", ft_qmp_ignore_shared(on), -1, NULL);
}

static int start_migration(struct qemu_vm *v, int sock)
{
	int rc = qemu_vm_call(v, "getfd", json_pack("{s:s}", "fdname", "ft-firmware"), sock, NULL);

	return rc ? rc : qemu_vm_call(v, "migrate", json_pack("{s:s}", "uri", "fd:ft-firmware"), -1, NULL);
}

static int grow_blob(struct ft_blob *b, size_t *size)
{
	size_t bigger = *size ? *size * 2 : 1 << 20;
	uint8_t *data = bigger > FT_QEMU_FIRMWARE_MAX ? NULL : realloc(b->data, bigger);

	if (!data)
		return bigger > FT_QEMU_FIRMWARE_MAX ? -EFBIG : -ENOMEM;
	b->data = data;
	*size = bigger;
	return 0;
}

static int wait_for_more(struct qemu_vm *v, int fd, uint64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	int n;

	while ((n = poll(&p, 1, FT_QEMU_BUSY_MS)) == 0 && ft_now_ns() < deadline)
		ft_vm_busy(&v->vm);
	return n > 0 || (n < 0 && errno == EINTR) ? 0 : n ? -errno : -ETIMEDOUT;
}

/* All that QEMU sends until it closes its end. */
static int read_stream(struct qemu_vm *v, int sock, uint64_t deadline, struct ft_blob *out)
{
	size_t size = 0;
	int rc = 0;

	while (!rc) {
		ssize_t n;

		rc = out->len == size ? grow_blob(out, &size) : 0;
		if (rc)
			break;
		n = recv(sock, out->data + out->len, size - out->len, MSG_DONTWAIT);
		if (n == 0)
			return 0;
		if (n > 0)
			out->len += (size_t)n;
		else
			rc = errno == EAGAIN ? wait_for_more(v, sock, deadline) : -errno;
	}
	return rc;
}

/* Its stream has ended, but QEMU itself is not through with it for some instants more. */
static int finish_migration(struct qemu_vm *v, uint64_t deadline)
{
	while (ft_now_ns() < deadline) {
		json_t *status = NULL;
		const char *now;
		bool over;
		int rc = qemu_vm_call(v, "query-status", NULL, -1, &status);

		if (rc)
			return rc;
		now = json_string_value(json_object_get(status, "status"));
		over = now && !strcmp(now, "postmigrate");
		json_decref(status);
		if (over)
			return 0;
		ft_vm_busy(&v->vm);
	}
	return -ETIMEDOUT;
}

static int migrate_firmware(struct qemu_vm *v, struct ft_blob *out)
{
	uint64_t deadline = ft_now_ns() + FIRMWARE_TIMEOUT_MS * FT_MS_NS;
	int sock[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock))
		return -errno;
	rc = start_migration(v, sock[1]);
	close(sock[1]);
	ft_vm_busy(&v->vm);
	if (!rc)
		rc = read_stream(v, sock[0], deadline, out);
	close(sock[0]);
	if (!rc)
		rc = finish_migration(v, deadline);
	if (rc) {
		ft_err("%s: QEMU's firmware could not be read: %s", v->at.guest, strerror(-rc));
		qemu_vm_try(v, "migrate_cancel", NULL);
	}
	return rc;
}

static int migrate_alone(struct qemu_vm *v, struct ft_blob *out)
{
	int off, rc = ignore_shared(v, true);

	if (rc)
		return rc;
	rc = migrate_firmware(v, out);
	off = ignore_shared(v, false);
	return rc ? rc : off;
}

/* Keep only what a replica needs: the devices in it are older than every epoch. */
static int trim_firmware(struct ft_blob *fw)
{
	size_t end;
	int rc = ft_qemu_stream_ram(fw->data, fw->len, FT_QEMU_RAM_BLOCK, &end);

	if (!rc)
		fw->len = end;
	return rc;
}

int qemu_vm_firmware(struct ft_vm *vm, struct ft_blob *out)
{
	struct qemu_vm *v = qemu_of(vm);
	bool was_paused = v->paused;
	int rc;

	*out = (struct ft_blob){ 0 };
	rc = ft_qmp_disarm(v->qmp, FT_QEMU_CALL_MS);
	if (!rc)
		rc = qemu_vm_pause(vm);
	if (rc)
		return rc;
	ft_vm_busy(&v->vm);
	v->changing = true;             /* migration stops the stopped guest in its own way */
	rc = migrate_alone(v, out);
	qemu_vm_take_events(v);
	v->changing = false;
	ft_vm_busy(&v->vm);
	if (!was_paused) {
		int resumed = qemu_vm_resume(vm);

		rc = rc ? rc : resumed;
	}
	if (!rc)
		rc = trim_firmware(out);
	if (rc)
		ft_blob_free(out);
	return rc;
}
