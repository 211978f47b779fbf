// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * mirror_stream.c - the exports' control sockets (ft/export.h) and the thread that reads them. It does nothing
 * that could wait for the network, or an export would wait for it, and the guest's disk for the export.
 */
#include "diskmirror/mirror_dial.h"
#include "diskmirror/mirror_int.h"
#include "ft/map.h"
#include "ft/thread.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define TURN_BYTES (4u << 20)           /* read of one disk before the others get their turn */
#define OUT_BYTES_MAX (8u << 20)        /* waiting for an export, above what the words of its map need */

/* --- telling the owner --- */

static void raise_event(int fd)
{
	uint64_t one = 1;

	ft_ignore(write(fd, &one, sizeof(one)) < 0);    /* full: it is raised already */
}

void ft_mirror_post(struct mirror *m)
{
	m->wake_due = true;
	raise_event(m->event_fd);
}

void ft_mirror_poke(struct mirror *m)
{
	raise_event(m->poke_fd);
}

void ft_mirror_break(struct mirror *m, const char *fmt, ...)
{
	va_list ap;

	m->copying = false;
	ft_dlog_shut(m->log);
	if (m->broken)
		return;
	m->broken = m->broken_due = true;
	va_start(ap, fmt);
	vsnprintf(m->why, sizeof(m->why), fmt, ap);
	va_end(ap);
	raise_event(m->event_fd);
}

/* --- what goes out: lock held --- */

static void drop_out(struct mirror_disk *d)
{
	while (d->out) {
		struct message *msg = d->out;

		d->out = msg->next;
		free(msg);
	}
	d->out_end = &d->out;
	d->durable = NULL;
	d->out_bytes = 0;
}

/* The reader sees the end of a connection, and ends it. */
static void hang_up(struct mirror_disk *d)
{
	if (d->fd >= 0)
		shutdown(d->fd, SHUT_RDWR);
}

static void flush_out(struct mirror_disk *d)
{
	while (d->fd >= 0 && d->out) {
		struct message *msg = d->out;
		ssize_t n;

		if (msg == d->durable)
			d->durable = NULL;
		n = send(d->fd, msg->bytes + msg->done, msg->len - msg->done, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			if (errno != EAGAIN)
				hang_up(d);
			return;
		}
		msg->done += (size_t)n;
		if (msg->done < msg->len)
			return;
		d->out = msg->next;
		if (!d->out)
			d->out_end = &d->out;
		d->out_bytes -= msg->len;
		free(msg);
	}
}

static void queue(struct mirror_disk *d, struct message *msg, bool first)
{
	struct message **at = d->out_end;

	if (first)
		at = d->out && d->out->done ? &d->out->next : &d->out;
	msg->next = *at;
	*at = msg;
	if (!msg->next)
		d->out_end = &msg->next;
	d->out_bytes += msg->len;
}

/* What a newer word of @type makes void, unless it is on its way. */
static void unqueue(struct mirror_disk *d, uint32_t type)
{
	struct message **at = &d->out, *msg;

	while ((msg = *at)) {
		if (msg->done || ft_le32(msg->bytes) != type) {
			at = &msg->next;
			continue;
		}
		*at = msg->next;
		d->out_bytes -= msg->len;
		free(msg);
	}
	d->out_end = at;
}

void ft_mirror_forget_durable(struct mirror_disk *d)
{
	unqueue(d, FT_EXPORT_DURABLE);
	d->durable = NULL;
}

static struct message *message_new(uint32_t type, const void *body, size_t len)
{
	struct message *msg = malloc(sizeof(*msg) + MSG_HDR + len);

	if (!msg)
		return NULL;
	*msg = (struct message){ .len = MSG_HDR + len };
	ft_put32(msg->bytes, type);
	ft_put32(msg->bytes + 4, (uint32_t)len);
	if (len)
		memcpy(msg->bytes + MSG_HDR, body, len);
	return msg;
}

int ft_mirror_say(struct mirror *m, struct mirror_disk *d, uint32_t type, const void *body, size_t len, bool first)
{
	struct message *msg;

	if (d->fd < 0)
		return 0;
	if (type == FT_EXPORT_DURABLE && d->durable && body) {
		memcpy(d->durable->bytes + MSG_HDR, body, len);
		return 0;
	}
	if (d->out_bytes > OUT_BYTES_MAX + 8 * ft_disk_regions(d->id.bytes))
		return -ENOBUFS;
	msg = message_new(type, body, len);
	if (!msg)
		return -ENOMEM;
	if (type == FT_EXPORT_ELIDE)
		unqueue(d, type);
	queue(d, msg, first);
	if (type == FT_EXPORT_DURABLE)
		d->durable = msg;
	flush_out(d);
	if (d->out)
		ft_mirror_poke(m);              /* the reader goes on when there is room */
	return 0;
}

/* --- losing a disk: the reader, lock held --- */

static void connection_gone(struct mirror *m, struct mirror_disk *d)
{
	close(d->fd);
	d->fd = -1;
	d->streaming = d->held = d->said = false;
	d->here_due = d->plans_due = 0;
	d->rx_len = 0;
	drop_out(d);
	ft_mirror_copy_reset(m, d);
	pthread_cond_broadcast(&m->moved);
}

static void lost(struct mirror *m, struct mirror_disk *d, const char *why)
{
	bool streaming = d->streaming;

	connection_gone(m, d);
	if (d->command)
		ft_mirror_post(m);              /* whoever waits for its answer says it again */
	if (streaming && !d->command)
		ft_mirror_break(m, "%s: disk %u (%s) is no longer mirrored: %s", m->guest, d->index, d->control, why);
}

static void lost_bytes(struct mirror *m, struct mirror_disk *d)
{
	lost(m, d, "its export said what makes no sense - nbdkit-ft-plugin and ft-protect must be of one version");
}

/* --- what comes in: the reader; false: the connection ended --- */

static bool on_op(struct mirror *m, struct mirror_disk *d, const uint8_t *body, size_t len)
{
	struct ft_disk_op op;
	size_t data;
	bool ok = true;
	int rc;

	if (!d->streaming || len < FT_DISK_OP_LEN || ft_disk_unpack_op(body, d->id.bytes, &op))
		return false;
	data = op.op == FT_DISK_WRITE ? op.len : 0;
	if (data > FT_DISK_OP_DATA_MAX || len != FT_DISK_OP_LEN + data || op.seq != d->seq + 1)
		return false;
	d->seq = op.seq;
	rc = ft_dlog_append(m->log, d->index, op.seq, body, len);
	pthread_mutex_lock(&m->lock);
	if (rc)
		ft_mirror_break(m, "%s: the disk log is dropped: %s; what was touched is copied anew", m->guest, rc == -EFBIG ?
				"the backup is too far behind for it" : strerror(-rc));
	else if (op.op == FT_DISK_MARK && m->copying)
		ok = op.offset % FT_REGION == 0 && ft_mirror_mark(m, d, op.offset / FT_REGION);
	if (m->copying && !m->sealed && !m->ops_told) {
		m->ops_told = true;
		ft_mirror_post(m);
	}
	pthread_mutex_unlock(&m->lock);
	return ok;
}

static bool on_here(struct mirror *m, struct mirror_disk *d, const uint8_t *body, size_t len)
{
	struct ft_disk_id id;

	if (len != FT_DISK_ID_LEN + 8 || !d->here_due || ft_disk_unpack_id(body, &id) || id.bytes != d->id.bytes)
		return false;
	d->id = id;
	d->here_due--;
	pthread_cond_broadcast(&m->moved);
	return true;
}

static bool on_answer(struct mirror *m, struct mirror_disk *d, uint32_t type, const uint8_t *body, size_t len)
{
	if (d->command != (type == FT_EXPORT_LEFT ? FT_EXPORT_LEAVE : FT_EXPORT_FENCE) || !d->said ||
	    len != (type == FT_EXPORT_LEFT ? 4 : 0))
		return false;
	d->done = true;
	d->result = type == FT_EXPORT_LEFT ? (int)ft_le32(body) : 0;
	if (d->result < 0 || d->result > 4095)
		d->result = EIO;
	if (d->result)
		ft_err("%s: disk %u (%s): fsync at the end of the mirror: %s - check the image's file system", m->guest, d->index,
		       d->control, strerror(d->result));
	ft_mirror_post(m);
	return true;
}

static void on_failed(struct mirror *m, struct mirror_disk *d, const uint8_t *body, size_t len)
{
	char text[256];
	size_t n = len < sizeof(text) - 1 ? len : sizeof(text) - 1;

	for (size_t i = 0; i < n; i++)
		text[i] = ft_log_char((char)body[i]);
	text[n] = 0;
	lost(m, d, text);
}

/* Lock held. */
static bool on_word(struct mirror *m, struct mirror_disk *d, uint32_t type, const uint8_t *body, size_t len)
{
	switch (type) {
	case FT_EXPORT_HERE:
		return on_here(m, d, body, len);
	case FT_EXPORT_PLAN:
		return ft_mirror_plan(d, body, len);
	case FT_EXPORT_PLANNED:
		return ft_mirror_planned(m, d, body, len);
	case FT_EXPORT_LEFT:
	case FT_EXPORT_FENCED:
		return on_answer(m, d, type, body, len);
	default:
		return false;
	}
}

static bool on_message(struct mirror *m, struct mirror_disk *d, uint32_t type, const uint8_t *body, size_t len)
{
	bool ok = true;

	if (type == FT_EXPORT_OP && on_op(m, d, body, len))
		return true;
	pthread_mutex_lock(&m->lock);
	if (type == FT_EXPORT_FAILED)
		on_failed(m, d, body, len);
	else if (type == FT_EXPORT_OP || !on_word(m, d, type, body, len))
		lost_bytes(m, d);
	else if (d->done)
		connection_gone(m, d);
	ok = d->fd >= 0;
	pthread_mutex_unlock(&m->lock);
	return ok;
}

/* All whole messages in d->rx; what is left moves to its front. */
static bool parse(struct mirror *m, struct mirror_disk *d)
{
	size_t at = 0;

	while (d->rx_len - at >= MSG_HDR) {
		size_t len = ft_le32(d->rx + at + 4);

		if (len > FT_EXPORT_BODY_MAX) {
			pthread_mutex_lock(&m->lock);
			lost_bytes(m, d);
			pthread_mutex_unlock(&m->lock);
			return false;
		}
		if (d->rx_len - at - MSG_HDR < len)
			break;
		if (!on_message(m, d, ft_le32(d->rx + at), d->rx + at + MSG_HDR, len))
			return false;
		at += MSG_HDR + len;
	}
	d->rx_len -= at;
	memmove(d->rx, d->rx + at, d->rx_len);
	return true;
}

static void read_disk(struct mirror *m, struct mirror_disk *d, int fd)
{
	for (size_t got = 0; got < TURN_BYTES;) {
		ssize_t n = recv(fd, d->rx + d->rx_len, RX_ROOM - d->rx_len, MSG_DONTWAIT);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			pthread_mutex_lock(&m->lock);
			lost(m, d, "its nbdkit closed the connection - is it running? the next session connects again");
			pthread_mutex_unlock(&m->lock);
			return;
		}
		got += (size_t)n;
		d->rx_len += (size_t)n;
		if (!parse(m, d))
			return;
	}
}

/* --- the thread --- */

/* What to wait for, and for how many ms. False: stop. */
static bool look(struct mirror *m, struct pollfd *p, int *timeout)
{
	uint64_t at, now;
	bool stop;

	pthread_mutex_lock(&m->lock);
	stop = m->stop;
	at = ft_mirror_ask_again(m);
	for (unsigned i = 0; i < m->nr_disks; i++)
		p[i] = (struct pollfd){ .fd = m->disk[i].fd, .events = POLLIN | (m->disk[i].out ? POLLOUT : 0) };
	pthread_mutex_unlock(&m->lock);
	p[m->nr_disks] = (struct pollfd){ .fd = m->poke_fd, .events = POLLIN };
	now = ft_now_ns();
	*timeout = !at ? -1 : at <= now ? 0 : (int)((at - now) / FT_MS_NS) + 1;
	return !stop;
}

static void *reader_main(void *ctx)
{
	struct mirror *m = ctx;
	struct pollfd p[FT_DISKS_MAX + 1];
	uint64_t pokes;
	int timeout;

	while (look(m, p, &timeout)) {
		if (poll(p, m->nr_disks + 1, timeout) < 0)
			continue;
		if (p[m->nr_disks].revents)
			ft_ignore(read(m->poke_fd, &pokes, sizeof(pokes)) < 0);
		for (unsigned i = 0; i < m->nr_disks; i++) {
			if (p[i].revents & POLLOUT) {
				pthread_mutex_lock(&m->lock);
				flush_out(&m->disk[i]);
				pthread_mutex_unlock(&m->lock);
			}
			if (p[i].revents & ~POLLOUT)
				read_disk(m, &m->disk[i], p[i].fd);
		}
		ft_dlog_tidy(m->log);
	}
	return NULL;
}

int ft_mirror_start_reader(struct mirror *m)
{
	int rc = ft_thread_start(&m->thread, "ft-mirror", reader_main, m);

	m->running = !rc;
	return rc;
}

void ft_mirror_stop_reader(struct mirror *m)
{
	if (m->running) {
		pthread_mutex_lock(&m->lock);
		m->stop = true;
		ft_mirror_poke(m);
		pthread_mutex_unlock(&m->lock);
		pthread_join(m->thread, NULL);
		m->running = false;
	}
	for (unsigned i = 0; i < m->nr_disks; i++)
		if (m->disk[i].fd >= 0)
			connection_gone(m, &m->disk[i]);
}

/* --- connecting: the loop thread, lock not held while it waits --- */

/* The page cannot be cut short by whoever else has it, or reading it would be our end. */
static int page_new(struct mirror_disk *d, int *fd)
{
	void *page;

	if (d->page)
		munmap(d->page, FT_PAGE_SIZE);
	d->page = NULL;
	d->sealed = 0;
	*fd = memfd_create("ft-mirror", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0)
		return -errno;
	if (ftruncate(*fd, FT_PAGE_SIZE) < 0 || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		return -errno;
	page = mmap(NULL, FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (page == MAP_FAILED)
		return -errno;
	d->page = page;
	return 0;
}

/* *answer: FT_DIAL_TEXT_MAX + 1 bytes, HERE's body or the text of a refusal. */
static int start_stream(struct mirror_disk *d, int fd, uint8_t *answer, uint64_t deadline_ns)
{
	uint8_t version[4];
	int memfd = -1, rc = page_new(d, &memfd);

	ft_put32(version, FT_EXPORT_VERSION);
	if (!rc)
		rc = ft_dial_send(fd, FT_EXPORT_START, version, sizeof(version), memfd, deadline_ns);
	if (memfd >= 0)
		close(memfd);
	if (!rc)
		rc = ft_dial_answer(fd, FT_EXPORT_HERE, answer, FT_DISK_ID_LEN + 8, deadline_ns);
	return rc;
}

static void say_why(struct mirror *m, struct mirror_disk *d, int rc, const uint8_t *answer)
{
	char why[FT_DIAL_TEXT_MAX + 1];

	if (rc == -EREMOTEIO)
		snprintf(why, sizeof(why), "%s", (const char *)answer);
	else if (rc == -ENOENT || rc == -ECONNREFUSED)
		snprintf(why, sizeof(why), "nobody serves it - is its nbdkit running?");
	else if (rc == -EPIPE)
		snprintf(why, sizeof(why), "its nbdkit closes the connection - is another ft-protect mirroring it?");
	else
		snprintf(why, sizeof(why), "%s", strerror(-rc));
	if (ft_log_due(&d->log, why))
		ft_err("%s: disk %u (%s) cannot be mirrored: %s", m->guest, d->index, d->control, why);
}

static void streaming(struct mirror *m, struct mirror_disk *d, int fd, const struct ft_disk_id *id, uint64_t last)
{
	ft_dlog_stream(m->log, d->index, last);
	d->fd = fd;
	d->streaming = true;
	d->said = d->done = false;
	d->id = *id;
	d->seq = last;
	if (m->held) {
		d->held = true;
		ft_ignore(ft_mirror_say(m, d, FT_EXPORT_HELD, NULL, 0, false)); /* an empty queue has room */
	}
	ft_mirror_poke(m);
}

int ft_mirror_up(struct mirror *m, struct mirror_disk *d, unsigned wait_ms)
{
	uint64_t deadline = ft_now_ns() + wait_ms * FT_MS_NS;
	uint8_t answer[FT_DIAL_TEXT_MAX + 1];
	struct ft_disk_id id;
	bool up, free_to;
	int fd = -1, rc;

	pthread_mutex_lock(&m->lock);
	up = d->streaming;
	free_to = d->fd < 0 && !d->command;
	pthread_mutex_unlock(&m->lock);
	if (up || !free_to)
		return up ? 0 : -EBUSY;
	rc = ft_dial_export(d->control, deadline, &fd);
	if (!rc)
		rc = start_stream(d, fd, answer, deadline);
	if (!rc)
		rc = ft_disk_unpack_id(answer, &id);
	if (rc) {
		say_why(m, d, rc, answer);
		if (fd >= 0)
			close(fd);
		return rc;
	}
	pthread_mutex_lock(&m->lock);
	streaming(m, d, fd, &id, ft_le64(answer + FT_DISK_ID_LEN));
	pthread_mutex_unlock(&m->lock);
	return 0;
}

/* --- an export that has died: what it answered flushes for is on nobody's disk yet --- */

/*
 * Its map says that flushes were answered from the mirror; nothing but the next server would take that back, and after a restart of
 * this host a good image would be refused. What an earlier boot, or a failed sync, has lost stays lost.
 */
static int clear_mark(const struct ft_disk_files *f, int h, const char *path)
{
	struct ft_map_image im;
	struct ft_map *map;
	int rc = f->size(f->ctx, h, &im.bytes);

	if (!rc)
		rc = f->identity(f->ctx, h, &im.inode, &im.born_ns);
	if (!rc)
		rc = ft_map_open(f, path, &im, &map);
	if (rc)
		return rc;
	if (!ft_map_unsafe(map))
		rc = ft_map_set_unsafe(map, false);
	ft_map_abandon(map);
	return rc;
}

/* With the image locked nobody serves it, or has since the last sync: who does sees to the mark himself. */
static int note_sync(const struct ft_disk_files *f, int h, const struct mirror_disk *d)
{
	int rc;

	if (!d->map || f->lock(f->ctx, h))
		return 0;
	rc = f->sync(f->ctx, h);
	if (!rc && clear_mark(f, h, d->map))
		ft_warn("%s: its map %s still says that it is no consistent disk", d->image, d->map);
	return rc;
}

static int sync_image(struct mirror *m, const struct mirror_disk *d)
{
	const struct ft_disk_files *f = m->files;
	int h, rc = f->open(f->ctx, d->image, false, &h);

	if (rc)
		return rc;
	rc = f->sync(f->ctx, h);                /* may take long */
	if (!rc)
		rc = note_sync(f, h, d);
	f->close(f->ctx, h);
	return rc;
}

static void *sync_main(void *arg)
{
	struct mirror_disk *d = arg;
	struct mirror *m = d->m;
	int rc = sync_image(m, d);

	if (rc)
		ft_err("%s: disk %u: its nbdkit is gone, and %s cannot be synced: %s - check its file system", m->guest, d->index,
		       d->image, strerror(-rc));
	pthread_mutex_lock(&m->lock);
	if (rc && !d->sync_error)
		d->sync_error = rc;
	d->syncing = false;
	if (d->command == FT_EXPORT_LEAVE && d->sync_for == m->leaves) {
		d->done = true;
		d->result = -d->sync_error;
	}
	ft_mirror_post(m);
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

/* Lock held. */
static int start_sync(struct mirror *m, struct mirror_disk *d)
{
	int rc;

	if (d->has_syncer)
		pthread_join(d->syncer, NULL);          /* has ended, or is about to without our lock */
	d->sync_for = m->leaves;
	rc = ft_thread_start(&d->syncer, "ft-mirror-sync", sync_main, d);
	d->has_syncer = d->syncing = !rc;
	return rc;
}

void ft_mirror_stop_syncers(struct mirror *m)
{
	for (unsigned i = 0; i < m->nr_disks; i++)
		if (m->disk[i].has_syncer)
			pthread_join(m->disk[i].syncer, NULL);
}

/* Nobody there: there is nobody who could write, either. */
static void without_export(struct mirror *m, struct mirror_disk *d)
{
	int rc = 0;

	if (d->command == FT_EXPORT_LEAVE && d->image && !d->read_only)
		rc = start_sync(m, d);
	else
		d->done = true;
	if (!rc && ft_log_due(&d->log, "gone"))
		ft_warn("%s: disk %u (%s): its nbdkit is gone; the image is as that left it", m->guest, d->index, d->control);
}

/* Only for its command: an export that dropped us, say. */
static void connect_plainly(struct mirror *m, struct mirror_disk *d)
{
	int fd, rc = ft_dial_export(d->control, ft_now_ns(), &fd);

	if (!rc) {
		d->fd = fd;
		ft_mirror_poke(m);
	} else if (rc == -ENOENT || rc == -ECONNREFUSED) {
		without_export(m, d);
	}
}

void ft_mirror_command(struct mirror *m, struct mirror_disk *d)
{
	if (d->done || d->said || d->syncing)
		return;
	if (d->fd < 0)
		connect_plainly(m, d);
	if (d->fd >= 0)
		d->said = !ft_mirror_say(m, d, d->command, NULL, 0, d->command == FT_EXPORT_FENCE);
	if (!d->said && !d->done && !d->syncing)
		ft_mirror_post(m);              /* to be tried again */
}
