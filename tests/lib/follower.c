// SPDX-License-Identifier: GPL-3.0-or-later
/* follower.c - see follower.h. */
#include "tests/lib/follower.h"
#include "tests/test.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define WAIT_S 20

void follower_wait(struct follower *f, const char *file, int line, const char *what)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_S;
	if (pthread_cond_timedwait(&f->news, &f->lock, &until))
		ft_test_fail(file, line, "%s has not come true in %d s", what, WAIT_S);
}

/* --- what comes --- */

static void take_op(struct follower *f, const uint8_t *body, size_t len)
{
	struct ft_disk_op op;

	CHECK(len >= FT_DISK_OP_LEN);
	CHECK_OK(ft_disk_unpack_op(body, f->bytes, &op));
	CHECK_EQ(op.seq, f->seq + 1);
	CHECK_EQ(len, FT_DISK_OP_LEN + (op.op == FT_DISK_WRITE ? op.len : 0));
	f->seq = op.seq;
	f->ops += op.op != FT_DISK_MARK;
	f->zeros += op.op == FT_DISK_ZERO;
	f->marks += op.op == FT_DISK_MARK;
	if (op.op == FT_DISK_WRITE)
		memcpy(f->replica + op.offset, body + FT_DISK_OP_LEN, op.len);
	else
		memset(f->replica + op.offset, 0, op.len);
	f->data += op.op == FT_DISK_WRITE ? op.len : 0;
}

static void take_plan(struct follower *f, const uint8_t *body, size_t len)
{
	CHECK(len >= 16 && len % 8 == 0 && ft_le64(body) + len / 8 - 1 <= ft_disk_regions(f->bytes));
	for (size_t i = 0; i < len / 8 - 1; i++)
		f->plan[ft_le64(body) + i] = ft_le64(body + 8 + 8 * i);
}

static void take_here(struct follower *f, const uint8_t *body, size_t len)
{
	CHECK_EQ(len, FT_DISK_ID_LEN + 8);
	CHECK_OK(ft_disk_unpack_id(body, &f->id));
	if (!f->ops)
		f->seq = ft_le64(body + FT_DISK_ID_LEN);
	f->heres++;
}

static void take(struct follower *f, uint32_t type, const uint8_t *body, size_t len)
{
	switch (type) {
	case FT_EXPORT_HERE: take_here(f, body, len); break;
	case FT_EXPORT_OP: take_op(f, body, len); break;
	case FT_EXPORT_PLAN: take_plan(f, body, len); break;
	case FT_EXPORT_PLANNED: f->to_compare = ft_le64(body); f->planned++; break;
	case FT_EXPORT_LEFT: f->left_errno = (int)ft_le32(body); f->lefts++; break;
	case FT_EXPORT_FENCED: f->fenced++; break;
	case FT_EXPORT_ACTIVE: f->active_errno = (int)ft_le32(body); f->actives++; break;
	case FT_EXPORT_FAILED: snprintf(f->failed, sizeof(f->failed), "%.*s", (int)len, (const char *)body); break;
	default: ft_test_fail(__FILE__, __LINE__, "message %u from the export", type);
	}
}

static bool read_all(int fd, uint8_t *buf, size_t len)
{
	return !len || recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static void *follow(void *arg)
{
	struct follower *f = arg;
	uint8_t *body = malloc(FT_EXPORT_BODY_MAX), hdr[8];

	CHECK(body);
	while (read_all(f->fd, hdr, sizeof(hdr))) {
		size_t len = ft_le32(hdr + 4);

		CHECK(len <= FT_EXPORT_BODY_MAX);
		if (!read_all(f->fd, body, len))
			break;
		pthread_mutex_lock(&f->lock);
		take(f, ft_le32(hdr), body, len);
		pthread_cond_broadcast(&f->news);
		pthread_mutex_unlock(&f->lock);
	}
	pthread_mutex_lock(&f->lock);
	f->closed = true;
	pthread_cond_broadcast(&f->news);
	pthread_mutex_unlock(&f->lock);
	free(body);
	return NULL;
}

/* --- life --- */

static int dial(const char *control)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", control);
	CHECK(fd >= 0);
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		ft_test_fail(__FILE__, __LINE__, "%s: %s", control, strerror(errno));
	return fd;
}

struct follower *follower_new(const char *control, uint64_t bytes)
{
	struct follower *f = calloc(1, sizeof(*f));

	CHECK(f);
	f->bytes = bytes;
	f->replica = calloc(1, bytes);
	f->plan = calloc(ft_disk_regions(bytes), 8);
	CHECK(f->replica && f->plan);
	pthread_mutex_init(&f->lock, NULL);
	pthread_cond_init(&f->news, NULL);
	f->fd = dial(control);
	CHECK_OK(-pthread_create(&f->thread, NULL, follow, f));
	return f;
}

void follower_free(struct follower *f)
{
	shutdown(f->fd, SHUT_RDWR);
	pthread_join(f->thread, NULL);
	close(f->fd);
	if (f->page)
		munmap(f->page, FT_PAGE_SIZE);
	free(f->replica);
	free(f->plan);
	free(f);
}

/* --- what is said --- */

void follower_say(struct follower *f, uint32_t type, const void *body, size_t len)
{
	uint8_t hdr[8];

	ft_put32(hdr, type);
	ft_put32(hdr + 4, (uint32_t)len);
	/* It may just have been dropped. */
	ft_ignore(send(f->fd, hdr, 8, MSG_NOSIGNAL | (len ? MSG_MORE : 0)) != 8);
	if (len)
		ft_ignore(send(f->fd, body, len, MSG_NOSIGNAL) != (ssize_t)len);
}

void follower_say32(struct follower *f, uint32_t type, uint32_t value)
{
	uint8_t body[4];

	ft_put32(body, value);
	follower_say(f, type, body, 4);
}

void follower_say64(struct follower *f, uint32_t type, uint64_t value)
{
	uint8_t body[8];

	ft_put64(body, value);
	follower_say(f, type, body, 8);
}

void follower_ask(struct follower *f)
{
	unsigned before = f->heres;

	follower_say(f, FT_EXPORT_ASK, NULL, 0);
	FOLLOWER_UNTIL(f, f->heres > before || f->closed);
}

void follower_start(struct follower *f)
{
	int fd = memfd_create("page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	uint8_t msg[12];
	struct iovec iov = { msg, sizeof(msg) };
	union { struct cmsghdr hdr; char space[CMSG_SPACE(sizeof(int))]; } c = { .space = { 0 } };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof(c) };
	unsigned before = f->heres;

	CHECK(fd >= 0 && !ftruncate(fd, FT_PAGE_SIZE));
	f->page = mmap(NULL, FT_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(f->page != MAP_FAILED);
	ft_put32(msg, FT_EXPORT_START);
	ft_put32(msg + 4, 4);
	ft_put32(msg + 8, FT_EXPORT_VERSION);
	c.hdr.cmsg_level = SOL_SOCKET;
	c.hdr.cmsg_type = SCM_RIGHTS;
	c.hdr.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&c.hdr), &fd, sizeof(int));
	CHECK_EQ(sendmsg(f->fd, &m, MSG_NOSIGNAL), 12);
	close(fd);
	FOLLOWER_UNTIL(f, f->heres > before || f->closed);
}

void follower_copy(struct follower *f, bool all)
{
	unsigned before = f->planned;

	memset(f->plan, 0, ft_disk_regions(f->bytes) * 8);
	follower_say32(f, FT_EXPORT_COPY, all);
	FOLLOWER_UNTIL(f, f->planned > before || f->closed);
}

/* The hashes, and the ops that come later, are in one order. */
static void compare(struct follower *f, uint64_t region)
{
	uint8_t body[16 + FT_REGION_GRANULES * FT_HASH_LEN];
	size_t len = 16;

	ft_put64(body, region);
	ft_put64(body + 8, f->plan[region]);
	pthread_mutex_lock(&f->lock);
	for (unsigned g = 0; g < FT_REGION_GRANULES; g++) {
		uint64_t at = region * FT_REGION + g * (uint64_t)FT_GRANULE;

		if (!(f->plan[region] >> g & 1))
			continue;
		CHECK(at < f->bytes);
		ft_disk_hash(f->replica + at, f->bytes - at < FT_GRANULE ? f->bytes - at : FT_GRANULE, body + len);
		len += FT_HASH_LEN;
	}
	pthread_mutex_unlock(&f->lock);
	follower_say(f, FT_EXPORT_COMPARE, body, len);
}

void follower_compare_all(struct follower *f)
{
	unsigned want = f->marks;

	for (uint64_t r = 0; r < ft_disk_regions(f->bytes); r++) {
		if (!f->plan[r])
			continue;
		compare(f, r);
		want++;
	}
	FOLLOWER_UNTIL(f, f->marks >= want || f->closed);
}

void follower_catch_up(struct follower *f)
{
	FOLLOWER_UNTIL(f, f->seq >= f->page->sent || f->closed);
}

void follower_leave(struct follower *f)
{
	unsigned before = f->lefts;

	follower_say(f, FT_EXPORT_LEAVE, NULL, 0);
	FOLLOWER_UNTIL(f, f->lefts > before || f->closed);
}

int follower_activate(struct follower *f)
{
	unsigned before = f->actives;

	follower_say(f, FT_EXPORT_ACTIVATE, NULL, 0);
	FOLLOWER_UNTIL(f, f->actives > before || f->closed);
	return -f->active_errno;
}
