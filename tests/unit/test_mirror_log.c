// SPDX-License-Identifier: GPL-3.0-or-later
/* The mirror's log over a file that takes its time. What it keeps and gives is tested through the mirror. */
#include "diskmirror/mirror_log.h"

#include "tests/test.h"

#include <pthread.h>
#include <semaphore.h>
#include <sys/syscall.h>
#include <unistd.h>

#define OP_DATA (64u << 10)
#define OPS (FT_DLOG_CHUNK / OP_DATA + 1)       /* one more than fit into a chunk, with what is around their data */
#define WAIT_MS 20u

static sem_t writing, may_write;

/* In place of the C library's: the file is full of patience. */
ssize_t pwrite(int fd, const void *data, size_t len, off_t at)
{
	sem_post(&writing);
	while (sem_wait(&may_write) < 0)
		;
	return syscall(SYS_pwrite64, fd, data, len, at);
}

static void *reader(void *log)
{
	static uint8_t op[FT_DISK_OP_LEN + OP_DATA];

	for (uint64_t seq = 1; seq <= OPS; seq++) {
		ft_disk_pack_op(&(struct ft_disk_op){ .seq = seq, .offset = seq * OP_DATA, .len = OP_DATA, .op = FT_DISK_WRITE }, op);
		CHECK_OK(ft_dlog_append(log, 0, seq, op, sizeof(op)));
	}
	return NULL;
}

static void *patience(void *unused)
{
	(void)unused;
	usleep(20 * WAIT_MS * 1000);
	sem_post(&may_write);
	return NULL;
}

TEST(ops_that_wait_for_the_file_are_waited_for)
{
	const struct ft_dlog_config cfg = { .nr_disks = 1, .memory_bound = 1, .file_bound = 64u << 20, .spill_dir = ft_test_dir() };
	static uint8_t raw[FT_DISK_BATCH_MAX];
	const uint64_t sealed[] = { OPS, OPS + 1 };
	pthread_t from_export, clock;
	unsigned disk, got = 0, waits = 0;
	struct ft_dlog *log;
	uint32_t nr;
	size_t len;

	sem_init(&writing, 0, 0);
	sem_init(&may_write, 0, 0);
	CHECK_OK(ft_dlog_new(&cfg, &log));
	ft_dlog_stream(log, 0, 0);
	ft_dlog_restart(log);
	CHECK_EQ(pthread_create(&from_export, NULL, reader, log), 0);
	CHECK_EQ(sem_wait(&writing), 0);
	CHECK_OK(ft_dlog_seal(log, 1, &sealed[0]));
	CHECK_EQ(pthread_create(&clock, NULL, patience, NULL), 0);
	while (got < OPS) {
		int rc = ft_dlog_take(log, 1, WAIT_MS, &disk, raw, &len, &nr);

		if (rc != -EAGAIN)
			CHECK_EQ(rc, 1);
		got += rc == 1 ? nr : 0;
		waits += rc == -EAGAIN;
	}
	CHECK(waits > 0);
	CHECK_EQ(ft_dlog_take(log, 1, WAIT_MS, &disk, raw, &len, &nr), 0);
	pthread_join(from_export, NULL);
	pthread_join(clock, NULL);

	CHECK_OK(ft_dlog_seal(log, 2, &sealed[1]));     /* counted and never sent */
	CHECK_EQ(ft_dlog_take(log, 2, WAIT_MS, &disk, raw, &len, &nr), -ETIMEDOUT);
	ft_dlog_free(log);
}
