// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_guard_left.c - the guard of a guest that somebody saves or migrates while there is no ft-protect. The hold on the
 * guest is the test's own; the guard is a process as ever, and ft-protect is this one.
 */
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/guard.h"
#include "ft/hv.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define GRACE_MS 600
#define SETTLE_NS (30 * FT_S_NS)
#define LONG_MS (4 * GRACE_MS)          /* nothing happens so long: it does not happen */

static struct guest {
	_Atomic bool gone, leaving, paused;
	_Atomic unsigned looks, stops, holds;
	_Atomic pid_t guard;
} *guest;

static bool is_gone(struct ft_hold *h)
{
	(void)h;
	guest->looks++;
	return guest->gone;
}

static bool is_leaving(struct ft_hold *h)
{
	(void)h;
	return guest->leaving;
}

static bool is_paused(struct ft_hold *h)
{
	(void)h;
	return guest->paused;
}

static int runs(struct ft_hold *h, char *why, size_t size)
{
	(void)h, (void)why, (void)size;
	guest->paused = false;
	return 0;
}

static int stops(struct ft_hold *h)
{
	(void)h;
	guest->stops++;
	return 0;
}

static void closes(struct ft_hold *h)
{
	free(h);
}

/* In place of checkpoint/hv.c's. */
int ft_hv_hold(const struct ft_attach *at, struct ft_hold **out)
{
	static const struct ft_hold_ops ops = {
		.gone = is_gone, .paused = is_paused, .ask_paused = is_paused, .run = runs, .stop = stops, .leaving = is_leaving,
		.close = closes,
	};

	(void)at;
	guest->guard = getpid();
	alarm(60);                              /* of a test that fails nobody ends the guard */
	if (guest->gone)
		return -ESRCH;
	*out = calloc(1, sizeof(**out));
	CHECK(*out);
	(*out)->ops = &ops;
	(*out)->fd = -1;
	(*out)->settle_ns = SETTLE_NS;
	guest->holds++;
	return 0;
}

static void start(void)
{
	struct ft_attach at = { .guest = "vm1", .memory = 1 << 20, .accel = FT_ACCEL_TCG, .machine = "q35", .qemu_version = "7.2.0" };
	char program[] = "ft-guard", name[] = "vm1", dir[2 * FT_PATH_MAX];
	struct ft_conf conf = *ft_conf();
	int status;
	pid_t pid;

	snprintf(conf.run_dir, sizeof(conf.run_dir), "%s/run", ft_test_dir());
	ft_conf_set(&conf);
	CHECK_OK(ft_run_path(dir, sizeof(dir), name, ""));
	CHECK_OK(ft_mkdir_p(dir, 0700));
	CHECK_OK(ft_run_path(at.qmp, sizeof(at.qmp), name, "qmp"));
	CHECK_OK(ft_run_path(at.qmp_guard, sizeof(at.qmp_guard), name, "qmp-guard"));
	CHECK_OK(ft_run_path(at.qmp_state, sizeof(at.qmp_state), name, "qmp-state"));
	CHECK(snprintf(at.ram, sizeof(at.ram), "%s/ram", ft_test_dir()) < (int)sizeof(at.ram));
	CHECK_OK(ft_attach_fill_pid(&at, getpid()));
	CHECK_OK(ft_attach_save(&at));
	guest = mmap(NULL, sizeof(*guest), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(guest != MAP_FAILED);
	pid = fork();
	if (!pid)
		_exit(ft_guard_main(3, (char *[]){ program, name, conf.run_dir, NULL }));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
}

/* ft-protect comes; with ft_guard_free it goes. */
static struct ft_guard *come(void)
{
	const struct ft_guard_config cfg = { .guest = "vm1", .pause_limit_ms = 60000, .grace_ms = GRACE_MS, .owner_fd = -1 };
	struct ft_guard *g;
	int fd;

	CHECK_OK(ft_guard_adopt(&cfg, &fd, &g));
	return g;
}

static struct ft_echo *session(struct ft_guard *g)
{
	struct ft_beat_config cfg = { .interval_ms = 10, .silence_ms = 300, .nr_paths = 1 };
	struct sockaddr_in *a = (struct sockaddr_in *)&cfg.path[0];
	struct ft_echo *e;
	uint16_t port;

	CHECK_OK(ft_echo_start(&(struct ft_echo_config){ .silence_ms = cfg.silence_ms }, &port, &e));
	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	CHECK_OK(ft_guard_beat(g, &cfg));
	ft_guard_held(g, true);
	while (!ft_echo_last_life_ns(e))
		poll(NULL, 0, 2);
	ft_echo_arm(e);
	return e;
}

static bool takes_over_within(struct ft_echo *e, unsigned ms)
{
	uint64_t end = ft_now_ns() + ms * FT_MS_NS;

	while (!ft_echo_try_takeover(e) && ft_now_ns() < end)
		poll(NULL, 0, 5);
	return ft_echo_try_takeover(e);
}

/* Each turn looks. */
static void guard_turns(void)
{
	for (unsigned n = guest->looks + 2; guest->looks < n;)
		poll(NULL, 0, 2);
}

static struct ft_echo *protected(struct ft_guard **g)
{
	start();
	*g = come();
	return session(*g);
}

/* There was a session, and ft-protect has died. */
static struct ft_echo *abandoned(void)
{
	struct ft_guard *g;
	struct ft_echo *e = protected(&g);

	ft_guard_free(g);
	return e;
}

TEST(a_guest_that_leaves_without_ft_protect_is_not_taken_over)
{
	struct ft_guard *g;
	struct ft_echo *e = protected(&g);

	guest->leaving = true;
	ft_guard_free(g);
	CHECK(!takes_over_within(e, LONG_MS));  /* the grace is over, but somebody reads its memory */
	CHECK_EQ(guest->stops, 0);
	guest->gone = true;
	CHECK(!takes_over_within(e, LONG_MS));

	/* Restored here: what the backup holds is older, until it has an epoch of this one. */
	guest->gone = guest->leaving = false;
	g = come();
	CHECK_EQ(guest->holds, 2);
	ft_guard_free(g);
	CHECK(!takes_over_within(e, LONG_MS));
	CHECK_EQ(guest->stops, 0);
	g = come();
	ft_echo_stop(e);
	e = session(g);
	ft_guard_free(g);
	CHECK(!takes_over_within(e, LONG_MS));
	g = come();
	ft_guard_whole(g, true);
	guard_turns();
	ft_guard_free(g);
	CHECK(takes_over_within(e, 15000));
	CHECK_EQ(guest->stops, 1);
	ft_echo_stop(e);
	ft_guard_end(come());
}

/* As a domain does that took the request to suspend and was busy. */
TEST(a_guest_that_does_late_what_a_dead_ft_protect_asked_for_runs_on)
{
	struct ft_guard *g;

	start();
	g = come();
	ft_guard_pause(g);
	ft_guard_free(g);
	poll(NULL, 0, LONG_MS);
	guest->paused = true;
	while (guest->paused)           /* or the test's time is over */
		poll(NULL, 0, 5);

	/* What the next one does itself is not undone for as long. */
	g = come();
	poll(NULL, 0, LONG_MS);
	guest->paused = true;
	poll(NULL, 0, LONG_MS);
	CHECK(guest->paused);
	guest->paused = false;
	ft_guard_free(g);
	ft_guard_end(come());
}

TEST(one_that_has_come_back_and_is_gone_again_is_not_taken_over)
{
	struct ft_echo *e = abandoned();
	struct ft_guard *g;

	guest->leaving = true;
	guard_turns();
	guest->gone = true;
	CHECK(!takes_over_within(e, LONG_MS));
	guest->gone = guest->leaving = false;
	g = come();
	guest->gone = true;                     /* and this ft-protect has no session in which it could say so */
	CHECK(!takes_over_within(e, LONG_MS));
	ft_guard_end(g);
	ft_guard_free(g);
	CHECK(takes_over_within(e, 15000));
	ft_echo_stop(e);
}

TEST(an_ft_protect_without_a_session_cannot_tell_that_a_guest_left)
{
	struct ft_echo *e = abandoned();
	struct ft_guard *g = come();

	guest->leaving = true;
	guard_turns();
	guest->gone = true;
	CHECK(!takes_over_within(e, LONG_MS));
	ft_guard_free(g);
	CHECK(!takes_over_within(e, LONG_MS));
	CHECK_OK(kill(guest->guard, SIGKILL));
	CHECK(takes_over_within(e, 15000));
	ft_echo_stop(e);
}

TEST(a_save_that_has_failed_is_forgotten)
{
	struct ft_echo *e = abandoned();

	guest->leaving = true;
	guard_turns();
	CHECK(!takes_over_within(e, LONG_MS));
	guest->leaving = false;
	CHECK(takes_over_within(e, 15000));
	CHECK_EQ(guest->stops, 1);
	ft_echo_stop(e);
	ft_guard_end(come());
}

TEST(a_guest_that_left_in_a_session_is_that_ft_protects_business)
{
	struct ft_guard *g;
	struct ft_echo *e = protected(&g);

	guest->leaving = guest->gone = true;
	CHECK(takes_over_within(e, 15000));     /* it would tell the backup; this one does not */
	ft_guard_end(g);
	ft_guard_free(g);
	ft_echo_stop(e);
}
