// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * export.h - a disk of the guest as nbdkit serves it, and the control socket by which it is mirrored.
 *
 * diskmirror/nbdkit-ft-plugin.c is thin: nbdkit's calls become the calls below. The export does the I/O on the image,
 * keeps the map (map.h), and streams what changes to whoever has started the mirror on the control socket.
 *
 * Order. Requests that overlap are put in one order, the same for the image and for the stream. An op is in the
 * stream, and counted in the shared page, before the guest hears of its completion. So whoever reads that counter
 * while the guest is stopped and its disks are drained knows which ops belong to the epoch that ends.
 *
 * The stream is a socket: whoever reads it must always read on, whatever the backup does (mirror.h spills). A
 * reader that has taken nothing for FT_EXPORT_STALL_MS is dropped, as if it had closed the socket: the guest's disk goes on,
 * and the map knows what was touched.
 */
#ifndef FT_EXPORT_H
#define FT_EXPORT_H

#include "ft/disk.h"
#include "ft/diskfile.h"

#define FT_EXPORT_STALL_MS 5000

struct ft_export_config {
	const char *image;              /* raw file or block device; locked against a second user. A multiple of 512 bytes */
	const char *map;                /* of map.h; made when a mirror starts for the first time */
	const char *control;            /* unix socket; an old one is replaced */
	bool parked;                    /* a replica's: every write is refused, and nothing opened, until ACTIVATE */
	bool read_only;
	const struct ft_disk_files *files;      /* NULL: real ones */
};

struct ft_export;
/*
 * Logs what is wrong, with the remedy. A parked one needs the image only for its size. -EUCLEAN, also of ACTIVATE: what is
 * on the image is no consistent disk, as a copy to it was not finished, or flushes were answered from the mirror when
 * this host crashed.
 */
int ft_export_open(const struct ft_export_config *cfg, struct ft_export **out) FT_MUST_CHECK;
/* Serve the control socket, on a thread: after the last fork. Who has connected since open is served then. */
int ft_export_start(struct ft_export *e) FT_MUST_CHECK;
/* fsyncs, closes the map in order. NULL is fine. */
void ft_export_close(struct ft_export *e);

/* --- called by any number of threads; -errno is the guest's error --- */
uint64_t ft_export_size(const struct ft_export *e);
int ft_export_read(struct ft_export *e, void *buf, uint32_t len, uint64_t at) FT_MUST_CHECK;
int ft_export_write(struct ft_export *e, const void *buf, uint32_t len, uint64_t at, bool fua) FT_MUST_CHECK;
int ft_export_zero(struct ft_export *e, uint32_t len, uint64_t at, bool fua) FT_MUST_CHECK;    /* and trim */
int ft_export_flush(struct ft_export *e) FT_MUST_CHECK;
/* Is [@at, +*len) data or a hole? *len is cut to one kind. */
int ft_export_extent(struct ft_export *e, uint64_t at, uint64_t *len, bool *hole) FT_MUST_CHECK;

/*
 * --- control socket: SOCK_STREAM, several clients, at most one of which has started the mirror ---
 * Messages both ways: le32 type, le32 length of the body, body; little-endian. A client that sends anything else is
 * dropped.
 */
#define FT_EXPORT_VERSION 1u
#define FT_EXPORT_BODY_MAX (FT_DISK_OP_LEN + FT_DISK_OP_DATA_MAX)

enum ft_export_msg {
	/* client -> export */
	FT_EXPORT_ASK      = 1,         /* empty: HERE */
	FT_EXPORT_START    = 2,         /* le32 version, with a memfd (SCM_RIGHTS) for struct ft_export_page. HERE, then
					   OP for all that changes from now on. Makes the map when there is none. */
	FT_EXPORT_ADD      = 3,         /* le64 region, then le64 words: the peer's side may differ there, too */
	FT_EXPORT_COPY     = 4,         /* le32 all: begin to compare; PLAN..., PLANNED */
	FT_EXPORT_COMPARE  = 5,         /* le64 region, le64 granules, then one FT_HASH_LEN for each of them, ascending: ops for
					   those that differ, then a MARK */
	FT_EXPORT_DURABLE  = 6,         /* le64 seq: the peer's, of this stream */
	FT_EXPORT_HELD     = 7,         /* nobody sees what the guest does until the mirror has it: makes no generation. ASK
					   after it: until then the guest's next write may make one */
	/* ADD to ADOPTED only from who has started the mirror; LEAVE from others when nobody has. */
	FT_EXPORT_ELIDE    = 8,         /* le32 on: flushes are answered from the mirror. Off: they are honoured, and an fsync
					   for the others begins, which LEFT waits for */
	FT_EXPORT_ADOPTED  = 9,         /* the peer's image is of our generation now: base becomes 0 */
	FT_EXPORT_LEAVE    = 10,        /* the guest will be seen without the mirror: fsync, stop streaming, a new generation
					   before the next write. LEFT */
	FT_EXPORT_FENCE    = 11,        /* this instance must never write again: FENCED */
	FT_EXPORT_ACTIVATE = 12,        /* a parked one: lock and open the image for real, a new generation before the first
					   write. ACTIVE */
	FT_EXPORT_SEEN     = 13,        /* the guest is seen: a generation that is due is made now, not at its next write */
	/* export -> client */
	FT_EXPORT_HERE     = 32,        /* packed ft_disk_id, le64 last seq */
	FT_EXPORT_OP       = 33,        /* packed ft_disk_op, data */
	FT_EXPORT_PLAN     = 34,        /* le64 region, then le64 words: granules to be compared */
	FT_EXPORT_PLANNED  = 35,        /* le64 granules in all */
	FT_EXPORT_LEFT     = 36,        /* le32 errno of the fsync, or 0 */
	FT_EXPORT_FENCED   = 37,
	FT_EXPORT_ACTIVE   = 38,        /* le32 errno, or 0 */
	FT_EXPORT_FAILED   = 39,        /* text: the mirror is no longer complete; the connection closes */
};

#define FT_EXPORT_ENDED UINT64_MAX
struct ft_export_page {                 /* in the memfd of START; one page */
	/*
	 * seq of the last op that is in the stream, for good, before its completion. FT_EXPORT_ENDED from before the
	 * completion of the first change that is not in it any more.
	 */
	_Atomic uint64_t sent;
};

#endif
