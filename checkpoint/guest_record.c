// SPDX-License-Identifier: GPL-3.0-or-later
/* guest_record.c - what a guest's file, its durable record and other commands at work let ft-guest do. See checkpoint/guest.h. */
#include "checkpoint/guest.h"
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/record.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

/* --- one command at a time works on a guest --- */

/* A lock on the guest's run directory itself leaves no file behind. */
int guest_lock(const char *guest, int how)
{
	char dir[2 * FT_PATH_MAX];
	int fd, rc = ft_run_path(dir, sizeof(dir), guest, "");

	if (!rc)
		rc = ft_mkdir_p(dir, 0700);
	fd = rc ? -1 : open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0) {
		rc = rc ? rc : -errno;
		ft_err("guest %s: cannot make its directory %s: %s%s", guest, dir, strerror(-rc), rc == -EACCES ? ": run as root" : "");
		return -1;
	}
	if (flock(fd, LOCK_EX | how) < 0) {
		ft_err("guest %s: another ft-guest is at work on it", guest);
		close(fd);
		return -1;
	}
	return fd;
}

void guest_unlock(const char *guest, int fd)
{
	char dir[2 * FT_PATH_MAX];

	if (!ft_run_path(dir, sizeof(dir), guest, ""))
		rmdir(dir);             /* only if nothing is in it */
	close(fd);
}

int guest_load_spec(const char *guest, struct ft_spec *spec)
{
	int rc = ft_spec_load(guest, spec);

	return !rc ? GUEST_DONE : rc == -ENOENT ? GUEST_UNKNOWN : rc == -EINVAL ? GUEST_USAGE : GUEST_FAILED;
}

/* --- what the durable record allows --- */

static int load_record(const char *guest, struct ft_record *r)
{
	return ft_record_load(NULL, ft_conf()->state_dir, guest, r);
}

/* Does a process of ours live that acts on this very record? NULL, or what to do instead. */
static const char *who_acts(const char *guest, enum ft_role role)
{
	const char *lock = role == FT_ROLE_PRIMARY ? "protect.lock" : role == FT_ROLE_ARMED ? "standby.lock" : NULL;
	char path[2 * FT_PATH_MAX];

	if (!lock || ft_run_path(path, sizeof(path), guest, lock) || !ft_lock_held(path))
		return NULL;
	return role == FT_ROLE_ARMED ?
	       "ftd keeps it ready: 'ft-ctl failover --force' here has it take over, 'ft-ctl unprotect --force' here gives it up" :
	       "its ft-protect lives: end that with 'ft-ctl unprotect' first";
}

int guest_may_start(const char *guest, bool force, const char *how)
{
	struct ft_record r;
	const char *why, *instead;
	int rc = load_record(guest, &r);

	if (rc == -EACCES)              /* logged, as all of them */
		return GUEST_FAILED;
	if (rc) {
		if (force)
			return GUEST_DONE;
		ft_err("guest %s: make sure that it runs nowhere else, then start it with %s", guest, how);
		return GUEST_REFUSED;
	}
	why = ft_record_forbids(&r);
	if (!why)
		return GUEST_DONE;
	instead = who_acts(guest, r.role);
	if (force && !instead)
		return GUEST_DONE;
	if (instead)
		ft_err("guest %s %s %s (generation %" PRIu64 "): %s", guest, why, r.peer, r.generation, instead);
	else
		ft_err("guest %s %s %s (generation %" PRIu64 "): ask there with 'ft-guest status %s'; only if it runs nowhere, start it "
		       "with %s", guest, why, r.peer, r.generation, guest, how);
	return GUEST_REFUSED;
}

int guest_claim(const char *guest)
{
	struct ft_record r;
	const char *why = load_record(guest, &r) ? NULL : ft_record_forbids(&r);

	if (!why)
		return GUEST_DONE;
	if (who_acts(guest, r.role)) {
		ft_err("guest %s %s %s (generation %" PRIu64 "): %s", guest, why, r.peer, r.generation, who_acts(guest, r.role));
		return GUEST_REFUSED;
	}
	ft_warn("guest %s %s %s (generation %" PRIu64 "): started all the same", guest, why, r.peer, r.generation);
	r.role = FT_ROLE_NONE;          /* a new instance: what was promised was promised of the old one */
	return ft_record_save(NULL, ft_conf()->state_dir, guest, &r) ? GUEST_FAILED : GUEST_DONE;
}

int guest_may_stop(const char *guest, bool force)
{
	struct ft_record r;
	int rc = load_record(guest, &r);

	if (rc == -EACCES)
		return GUEST_FAILED;
	if (force || rc)
		return GUEST_DONE;
	if (r.role == FT_ROLE_ARMED) {
		ft_err("guest %s runs on %s; here is only its replica: stop the guest there, or end its protection there with "
		       "'ft-ctl unprotect %s'", guest, r.peer, guest);
		return GUEST_REFUSED;
	}
	if (r.role != FT_ROLE_PRIMARY)
		return GUEST_DONE;
	ft_err("guest %s is protected towards %s, which would take over: end that first with 'ft-ctl unprotect %s', or stop "
	       "it with --force", guest, r.peer, guest);
	return GUEST_REFUSED;
}
