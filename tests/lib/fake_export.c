// SPDX-License-Identifier: GPL-3.0-or-later
#include "tests/lib/fake_export.h"

#include "tests/test.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 8

static void send_all(struct fake_export *x, int fd, const uint8_t *p, size_t len)
{
	while (len) {
		ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

		if (n <= 0) {                           /* the mirror has gone */
			if (fd == x->stream)
				x->stream = -1;
			return;
		}
		p += n;
		len -= (size_t)n;
	}
}

static void say(struct fake_export *x, int fd, uint32_t type, const void *body, size_t len)
{
	uint8_t buf[8 + 64];

	CHECK(len <= 64);
	if (x->silent)
		return;
	ft_put32(buf, type);
	ft_put32(buf + 4, (uint32_t)len);
	if (len)
		memcpy(buf + 8, body, len);
	send_all(x, fd, buf, 8 + len);
}

/* Lock held. */
static void send_op(struct fake_export *x, uint32_t opcode, const void *data, uint32_t len, uint64_t at)
{
	struct ft_disk_op op = { .seq = x->seq + 1, .offset = at, .len = len, .op = opcode };
	uint8_t *buf = x->late.bytes;
	size_t data_len = opcode == FT_DISK_WRITE ? len : 0;

	if (x->stream < 0)
		return;
	CHECK(!x->late.len);
	ft_put32(buf, FT_EXPORT_OP);
	ft_put32(buf + 4, (uint32_t)(FT_DISK_OP_LEN + data_len));
	ft_disk_pack_op(&op, buf + 8);
	if (data_len)
		memcpy(buf + 8 + FT_DISK_OP_LEN, data, data_len);
	x->seq++;
	if (x->lazy)
		x->late.len = 8 + FT_DISK_OP_LEN + data_len;
	else
		send_all(x, x->stream, buf, 8 + FT_DISK_OP_LEN + data_len);
	x->page->sent = x->seq;
}

static void touch(struct fake_export *x, uint64_t at, uint64_t len)
{
	for (uint64_t g = at / FT_GRANULE; g <= (at + len - 1) / FT_GRANULE; g++)
		x->touched[g / FT_REGION_GRANULES] |= 1ull << g % FT_REGION_GRANULES;
}

bool fake_export_write(struct fake_export *x, const void *data, uint32_t len, uint64_t at)
{
	bool fenced;

	pthread_mutex_lock(&x->lock);
	fenced = x->fenced;
	if (!fenced) {
		memcpy(x->image + at, data, len);
		touch(x, at, len);
		send_op(x, FT_DISK_WRITE, data, len, at);
	}
	pthread_mutex_unlock(&x->lock);
	return !fenced;
}

bool fake_export_zero(struct fake_export *x, uint32_t len, uint64_t at)
{
	bool fenced;

	pthread_mutex_lock(&x->lock);
	fenced = x->fenced;
	if (!fenced) {
		memset(x->image + at, 0, len);
		touch(x, at, len);
		send_op(x, FT_DISK_ZERO, NULL, len, at);
	}
	pthread_mutex_unlock(&x->lock);
	return !fenced;
}

void fake_export_send_late(struct fake_export *x)
{
	pthread_mutex_lock(&x->lock);
	send_all(x, x->stream, x->late.bytes, x->late.len);
	x->late.len = 0;
	pthread_mutex_unlock(&x->lock);
}

void fake_export_send(struct fake_export *x, const void *bytes, size_t len)
{
	pthread_mutex_lock(&x->lock);
	CHECK(x->stream >= 0);
	send_all(x, x->stream, bytes, len);
	pthread_mutex_unlock(&x->lock);
}

/* --- commands: lock held --- */

static void here(struct fake_export *x, int fd)
{
	uint8_t body[FT_DISK_ID_LEN + 8];

	ft_disk_pack_id(&x->id, body);
	ft_put64(body + FT_DISK_ID_LEN, x->seq);
	say(x, fd, FT_EXPORT_HERE, body, sizeof(body));
}

static void start(struct fake_export *x, int fd, int memfd)
{
	CHECK(memfd >= 0);
	if (x->no_start) {
		say(x, fd, FT_EXPORT_FAILED, "it is reserved", 14);
		close(memfd);
		shutdown(fd, SHUT_RDWR);
		return;
	}
	if (x->page)
		munmap(x->page, FT_PAGE_SIZE);
	x->page = mmap(NULL, FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	close(memfd);
	CHECK(x->page != MAP_FAILED);
	x->page->sent = x->seq;
	x->stream = fd;
	x->starts++;
	here(x, fd);
}

/* Two words at a time. */
static void copy(struct fake_export *x, int fd, bool all)
{
	uint64_t regions = ft_disk_regions(x->bytes), total = 0;
	uint8_t body[24];

	for (uint64_t r = 0; r < regions; r += 2) {
		size_t nr = regions - r > 1 ? 2 : 1;

		ft_put64(body, r);
		for (size_t i = 0; i < nr; i++) {
			uint64_t word = all ? ft_disk_granules(x->bytes, r + i) : x->touched[r + i];

			ft_put64(body + 8 + 8 * i, word);
			total += (uint64_t)__builtin_popcountll(word);
		}
		say(x, fd, FT_EXPORT_PLAN, body, 8 + 8 * nr);
	}
	ft_put64(body, total);
	say(x, fd, FT_EXPORT_PLANNED, body, 8);
}

static void compare(struct fake_export *x, const uint8_t *body)
{
	uint64_t region = ft_le64(body), granules = ft_le64(body + 8);
	const uint8_t *hash = body + 16;
	uint8_t mine[FT_HASH_LEN];

	x->compares++;
	for (unsigned i = 0; i < FT_REGION_GRANULES; i++) {
		uint64_t at = region * FT_REGION + i * (uint64_t)FT_GRANULE;
		uint32_t len = x->bytes - at < FT_GRANULE ? (uint32_t)(x->bytes - at) : FT_GRANULE;

		if (!(granules >> i & 1))
			continue;
		ft_disk_hash(x->image + at, len, mine);
		if (memcmp(mine, hash, FT_HASH_LEN)) {
			send_op(x, FT_DISK_WRITE, x->image + at, len, at);
			x->granules_sent++;
		}
		hash += FT_HASH_LEN;
	}
	if (!x->silent)
		send_op(x, FT_DISK_MARK, NULL, 0, region * FT_REGION);
}

static void add(struct fake_export *x, const uint8_t *body, size_t len)
{
	uint64_t region = ft_le64(body);

	x->adds++;
	for (size_t i = 0; i < len / 8 - 1; i++)
		x->touched[region + i] |= ft_le64(body + 8 + 8 * i);
}

static void command(struct fake_export *x, int fd, uint32_t type, const uint8_t *body, size_t len, int memfd)
{
	uint8_t answer[4];

	switch (type) {
	case FT_EXPORT_ASK:
		return here(x, fd);
	case FT_EXPORT_START:
		return start(x, fd, memfd);
	case FT_EXPORT_ADD:
		return add(x, body, len);
	case FT_EXPORT_COPY:
		return copy(x, fd, ft_le32(body));
	case FT_EXPORT_COMPARE:
		return compare(x, body);
	case FT_EXPORT_DURABLE:
		x->durable = ft_le64(body);
		return;
	case FT_EXPORT_HELD:
		x->held = true;
		return;
	case FT_EXPORT_ELIDE:
		x->elide = ft_le32(body);
		if (!x->elide)
			x->adds_at_off = x->adds;
		return;
	case FT_EXPORT_ADOPTED:
		x->adopted = true;
		x->id.base = 0;
		return;
	case FT_EXPORT_LEAVE:
		x->left = true;
		x->held = x->elide = false;
		if (x->stream == fd)
			x->stream = -1;
		x->id.base = x->id.current;
		x->id.current++;
		ft_put32(answer, (uint32_t)x->leave_errno);
		return say(x, fd, FT_EXPORT_LEFT, answer, 4);
	case FT_EXPORT_FENCE:
		x->fenced = true;
		return say(x, fd, FT_EXPORT_FENCED, NULL, 0);
	case FT_EXPORT_ACTIVATE:
		x->active = true;
		ft_put32(answer, (uint32_t)x->leave_errno);
		return say(x, fd, FT_EXPORT_ACTIVE, answer, 4);
	default:
		ft_test_fail(__FILE__, __LINE__, "command %u", type);
	}
}

/* --- its thread --- */

static bool recv_all(int fd, uint8_t *p, size_t len, int *memfd)
{
	union {
		struct cmsghdr hdr;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;

	while (len) {
		struct iovec iov = { p, len };
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf, .msg_controllen = sizeof(control.buf) };
		ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC);

		if (n <= 0)
			return false;
		if (CMSG_FIRSTHDR(&m))
			memcpy(memfd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(*memfd));
		p += n;
		len -= (size_t)n;
	}
	return true;
}

static bool serve(struct fake_export *x, int fd)
{
	static _Thread_local uint8_t body[1 << 20];
	int memfd = -1;
	uint8_t hdr[8];

	if (!recv_all(fd, hdr, sizeof(hdr), &memfd))
		return false;
	CHECK(ft_le32(hdr + 4) <= sizeof(body));
	if (!recv_all(fd, body, ft_le32(hdr + 4), &memfd))
		return false;
	pthread_mutex_lock(&x->lock);
	command(x, fd, ft_le32(hdr), body, ft_le32(hdr + 4), memfd);
	pthread_cond_broadcast(&x->moved);
	pthread_mutex_unlock(&x->lock);
	return true;
}

static void hang_up(struct fake_export *x, struct pollfd *p)
{
	pthread_mutex_lock(&x->lock);
	if (x->stream == p->fd)
		x->stream = -1;
	pthread_mutex_unlock(&x->lock);
	close(p->fd);
	p->fd = -1;
}

static void accept_one(struct pollfd *p, int listener)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

	CHECK(fd >= 0);
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (p[i].fd < 0) {
			p[i] = (struct pollfd){ .fd = fd, .events = POLLIN };
			return;
		}
	ft_test_fail(__FILE__, __LINE__, "too many clients");
}

static void *serve_main(void *ctx)
{
	struct fake_export *x = ctx;
	struct pollfd p[CLIENTS_MAX + 2];

	for (int i = 0; i < CLIENTS_MAX; i++)
		p[i].fd = -1;
	p[CLIENTS_MAX] = (struct pollfd){ .fd = x->listener, .events = POLLIN };
	p[CLIENTS_MAX + 1] = (struct pollfd){ .fd = x->stop_fd, .events = POLLIN };
	for (;;) {
		for (int i = 0; i < CLIENTS_MAX; i++)
			p[i].revents = 0;
		if (poll(p, CLIENTS_MAX + 2, -1) < 0)
			continue;
		if (p[CLIENTS_MAX + 1].revents)
			break;
		for (int i = 0; i < CLIENTS_MAX; i++)
			if (p[i].fd >= 0 && p[i].revents && !serve(x, p[i].fd))
				hang_up(x, &p[i]);
		if (p[CLIENTS_MAX].revents)
			accept_one(p, x->listener);
	}
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (p[i].fd >= 0)
			hang_up(x, &p[i]);
	return NULL;
}

void fake_export_init(struct fake_export *x, const char *control, uint64_t bytes, uint64_t seed)
{
	memset(x, 0, sizeof(*x));
	snprintf(x->control, sizeof(x->control), "%s", control);
	x->bytes = bytes;
	x->id = (struct ft_disk_id){ .bytes = bytes, .current = 1000 + seed, .base = seed };
	x->image = calloc(1, bytes);
	x->touched = calloc(ft_disk_regions(bytes), 8);
	CHECK(x->image && x->touched);
	x->stream = x->listener = x->stop_fd = -1;
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->moved, NULL);
}

void fake_export_start(struct fake_export *x)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", x->control);
	unlink(x->control);
	x->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	CHECK(x->listener >= 0);
	CHECK_EQ(bind(x->listener, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_EQ(listen(x->listener, 16), 0);
	x->stop_fd = eventfd(0, EFD_CLOEXEC);
	CHECK(x->stop_fd >= 0);
	x->late.len = 0;
	x->held = x->elide = false;
	CHECK_EQ(pthread_create(&x->thread, NULL, serve_main, x), 0);
	x->running = true;
}

void fake_export_kill(struct fake_export *x)
{
	uint64_t one = 1;

	if (!x->running)
		return;
	CHECK_EQ(write(x->stop_fd, &one, sizeof(one)), sizeof(one));
	pthread_mutex_lock(&x->lock);
	if (x->stream >= 0)
		shutdown(x->stream, SHUT_RDWR);
	pthread_mutex_unlock(&x->lock);
	pthread_join(x->thread, NULL);
	close(x->listener);
	close(x->stop_fd);
	x->running = false;
}

void fake_export_free(struct fake_export *x)
{
	fake_export_kill(x);
	if (x->page)
		munmap(x->page, FT_PAGE_SIZE);
	free(x->image);
	free(x->touched);
}
