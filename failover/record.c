// SPDX-License-Identifier: GPL-3.0-or-later
/* record.c - see ft/record.h. */
#include "ft/record.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define RECORD_MAX 256                  /* bytes of the text */

static const char *const role_names[FT_NR_ROLES] = {
	[FT_ROLE_NONE] = "NONE",
	[FT_ROLE_PRIMARY] = "PRIMARY",
	[FT_ROLE_ARMED] = "ARMED",
	[FT_ROLE_DISARMED] = "DISARMED",
	[FT_ROLE_RUNNING] = "RUNNING",
	[FT_ROLE_STOOD_DOWN] = "STOOD_DOWN",
};

const char *ft_role_name(enum ft_role role)
{
	return (unsigned)role < FT_NR_ROLES ? role_names[role] : "?";
}

/* --- which change of role is a step of the protocol --- */

enum change {
	NO,             /* never */
	SAME,           /* under the same generation or a larger one */
	GROW,           /* only under a larger generation: another session, or another owner of the guest */
};

/*
 * Three rules shape the table. A guest starts from a replica (RUNNING) only out of ARMED, so that DISARMED and
 * STOOD_DOWN are promises. Whoever changes sides does so under a larger generation. A record may always be
 * written again as it is, so that a retry after an error is harmless.
 */
static const enum change table[FT_NR_ROLES][FT_NR_ROLES] = {
	/* Nothing is promised yet: protect, be a backup, promise before the first whole epoch, or learn that the
	 * peer runs it. Not RUNNING: there is no replica. */
	[FT_ROLE_NONE] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = GROW, [FT_ROLE_ARMED] = GROW,
		[FT_ROLE_DISARMED] = GROW, [FT_ROLE_RUNNING] = NO, [FT_ROLE_STOOD_DOWN] = GROW,
	},
	/* A new session is a new generation. NONE: DISARM was acknowledged. RUNNING: goes on alone, which the peer
	 * must be able to see. ARMED, DISARMED: this host died, the peer took over and now replicates back to us. */
	[FT_ROLE_PRIMARY] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = SAME, [FT_ROLE_ARMED] = GROW,
		[FT_ROLE_DISARMED] = GROW, [FT_ROLE_RUNNING] = GROW, [FT_ROLE_STOOD_DOWN] = GROW,
	},
	/* NONE: the replica is lost, for instance with the process that kept it. Not PRIMARY: while the replica may
	 * be started, the guest is the peer's. Not STOOD_DOWN: it never ran here. */
	[FT_ROLE_ARMED] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = NO, [FT_ROLE_ARMED] = SAME,
		[FT_ROLE_DISARMED] = SAME, [FT_ROLE_RUNNING] = GROW, [FT_ROLE_STOOD_DOWN] = NO,
	},
	/* The promise holds until another session has armed us. PRIMARY: the guest was moved here by other means. */
	[FT_ROLE_DISARMED] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = GROW, [FT_ROLE_ARMED] = GROW,
		[FT_ROLE_DISARMED] = SAME, [FT_ROLE_RUNNING] = NO, [FT_ROLE_STOOD_DOWN] = NO,
	},
	/* The survivor: protected again, ended, or (an operator forced both sides) it gives in to a larger
	 * generation. ARMED, DISARMED: its guest is gone and the peer, started afresh, replicates to us. */
	[FT_ROLE_RUNNING] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = GROW, [FT_ROLE_ARMED] = GROW,
		[FT_ROLE_DISARMED] = GROW, [FT_ROLE_RUNNING] = SAME, [FT_ROLE_STOOD_DOWN] = GROW,
	},
	/* Back to life as the backup of whoever took over. PRIMARY: asked, the peer has nothing any more.
	 * NONE: the peer said that the guest has ended. */
	[FT_ROLE_STOOD_DOWN] = {
		[FT_ROLE_NONE] = SAME, [FT_ROLE_PRIMARY] = GROW, [FT_ROLE_ARMED] = GROW,
		[FT_ROLE_DISARMED] = GROW, [FT_ROLE_RUNNING] = NO, [FT_ROLE_STOOD_DOWN] = SAME,
	},
};

bool ft_record_allowed(const struct ft_record *from, const struct ft_record *to)
{
	if ((unsigned)from->role >= FT_NR_ROLES || (unsigned)to->role >= FT_NR_ROLES || to->generation < from->generation)
		return false;
	switch (table[from->role][to->role]) {
	case SAME: return true;
	case GROW: return to->generation > from->generation;
	default: return false;
	}
}

const char *ft_record_forbids(const struct ft_record *r)
{
	switch (r->role) {
	case FT_ROLE_PRIMARY: return "was protected here, and may have been taken over by";
	case FT_ROLE_ARMED: return "has its replica here and runs on";
	case FT_ROLE_DISARMED: return "was replicated to this host until that ended, and stayed with";
	case FT_ROLE_STOOD_DOWN: return "was handed over to";
	case FT_ROLE_NONE:
	case FT_ROLE_RUNNING: break;
	}
	return NULL;
}

/* --- text --- */

static uint32_t crc32_of(const char *data, size_t len)
{
	uint32_t crc = ~0u;

	for (size_t i = 0; i < len; i++) {
		crc ^= (uint8_t)data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static size_t format(const struct ft_record *r, char text[RECORD_MAX])
{
	int len = snprintf(text, RECORD_MAX, "ft-record 1 %" PRIu64 " %s %s ", r->generation, ft_role_name(r->role),
			   r->peer[0] ? r->peer : "-");

	return (size_t)len + (size_t)snprintf(text + len, RECORD_MAX - (size_t)len, "%08" PRIx32 "\n",
					      crc32_of(text, (size_t)len));
}

static int parse(const struct ft_blob *b, struct ft_record *out)
{
	char role[16], peer[FT_NAME_MAX + 1], again[RECORD_MAX];
	struct ft_record r = { 0 };

	if (sscanf((const char *)b->data, "ft-record 1 %" SCNu64 " %15s %63s", &r.generation, role, peer) != 3)
		return -EBADMSG;
	while (strcmp(role, ft_role_name(r.role)))
		if (++r.role >= FT_NR_ROLES)
			return -EBADMSG;
	if (strcmp(peer, "-") && !ft_name_ok(peer))
		return -EBADMSG;
	if (strcmp(peer, "-"))
		memcpy(r.peer, peer, sizeof(r.peer));
	/* What we would have written, checksum included, is the only text that is right. */
	if (format(&r, again) != b->len || memcmp(again, b->data, b->len))
		return -EBADMSG;
	*out = r;
	return 0;
}

/* --- the real file system --- */

/* The lock is on the file itself; a stale temporary file of a dead writer is simply taken over. */
static int real_begin(void *ctx, const char *tmp, int *h)
{
	struct stat mine, there;
	int fd, rc = ft_lock_file(tmp, false, &fd);

	if (rc)
		return rc;
	/* Before we had the lock another writer may have renamed it: then this is the record itself. */
	if (fstat(fd, &mine) < 0 || stat(tmp, &there) < 0 || mine.st_ino != there.st_ino)
		rc = -EBUSY;
	else if (ftruncate(fd, 0) < 0)
		rc = -errno;
	if (rc) {
		close(fd);
		return rc;
	}
	*h = fd;
	return 0;
}

static int real_read(void *ctx, const char *path, size_t max, struct ft_blob *out)
{
	return ft_read_file(path, max, out);
}

static int real_write(void *ctx, int h, const void *data, size_t len)
{
	return ft_write_all(h, data, len);
}

static int real_sync(void *ctx, int h)
{
	return fsync(h) < 0 ? -errno : 0;
}

static int real_rename(void *ctx, const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : 0;
}

static int real_sync_dir(void *ctx, const char *dir)
{
	return ft_sync_dir(dir);
}

static void real_end(void *ctx, int h)
{
	close(h);
}

static const struct ft_file_ops real_ops = {
	.begin = real_begin, .read = real_read, .write = real_write, .sync = real_sync,
	.rename = real_rename, .sync_dir = real_sync_dir, .end = real_end,
};

/* --- load and save --- */

static int record_path(char buf[PATH_MAX], const char *dir, const char *guest, const char *suffix)
{
	if (!ft_name_ok(guest))
		return -EINVAL;
	return snprintf(buf, PATH_MAX, "%s/%s.record%s", dir, guest, suffix) < PATH_MAX ? 0 : -ENAMETOOLONG;
}

static int load(const struct ft_file_ops *ops, const char *path, struct ft_record *out)
{
	struct ft_blob text = { 0 };
	int rc;

	*out = (struct ft_record){ 0 };
	rc = ops->read(ops->ctx, path, RECORD_MAX, &text);
	if (rc == -ENOENT)
		return 0;
	if (!rc)
		rc = parse(&text, out);
	if (rc == -EBADMSG || rc == -EFBIG) {
		ft_err("%s: damaged; make sure that the other host does not run the guest, then remove the file", path);
		rc = -EBADMSG;
	} else if (rc) {
		ft_err("%s: cannot read: %s%s", path, strerror(-rc), rc == -EACCES || rc == -EPERM ? ": run as root" : "");
	}
	ft_blob_free(&text);
	return rc;
}

int ft_record_load(const struct ft_file_ops *ops, const char *dir, const char *guest, struct ft_record *out)
{
	char path[PATH_MAX];
	int rc = record_path(path, dir, guest, "");

	return rc ? rc : load(ops ? ops : &real_ops, path, out);
}

static int check_change(const struct ft_file_ops *ops, const char *path, const struct ft_record *r)
{
	struct ft_record old;
	int rc = load(ops, path, &old);

	if (rc || ft_record_allowed(&old, r))
		return rc;
	ft_err("%s: refusing to go from generation %" PRIu64 " %s to generation %" PRIu64 " %s", path, old.generation,
	       ft_role_name(old.role), r->generation, ft_role_name(r->role));
	return -EINVAL;
}

static int publish(const struct ft_file_ops *ops, int h, const char *tmp, const char *path, const char *dir,
		   const struct ft_record *r)
{
	char text[RECORD_MAX];
	int rc;

	rc = ops->write(ops->ctx, h, text, format(r, text));
	if (!rc)
		rc = ops->sync(ops->ctx, h);    /* before the rename, or a cut could leave an empty record */
	if (!rc)
		rc = ops->rename(ops->ctx, tmp, path);
	if (!rc)
		rc = ops->sync_dir(ops->ctx, dir);
	if (rc)
		ft_err("%s: cannot write: %s", path, strerror(-rc));
	return rc;
}

int ft_record_save(const struct ft_file_ops *ops, const char *dir, const char *guest, const struct ft_record *r)
{
	char path[PATH_MAX], tmp[PATH_MAX];
	int h, rc;

	if (!ops)
		ops = &real_ops;
	rc = record_path(path, dir, guest, "");
	if (!rc)
		rc = record_path(tmp, dir, guest, ".tmp");
	if (!rc && r->peer[0] && !ft_name_ok(r->peer))
		rc = -EINVAL;
	if (rc)
		return rc;
	rc = ops->begin(ops->ctx, tmp, &h);
	if (rc) {
		ft_err("%s: cannot open: %s", tmp, rc == -EBUSY ? "another process is writing it" : strerror(-rc));
		return rc;
	}
	rc = check_change(ops, path, r);        /* under the lock: nobody changes it in between */
	if (!rc)
		rc = publish(ops, h, tmp, path, dir, r);
	ops->end(ops->ctx, h);
	return rc;
}
