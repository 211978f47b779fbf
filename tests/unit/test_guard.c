// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_guard.c - the real program ft-guard between a QEMU of a few lines and an ft-protect that is told, letter by
 * letter, what to do next, so that it can be killed and stopped between any two steps.
 */
#include "checkpoint/qemu.h"
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/guard.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMIT_MS 800                    /* the epochs of a loaded machine are slow */
#define GRACE_MS 1500

static void pause_ms(unsigned ms)
{
	poll(NULL, 0, (int)ms);
}

#define WITHIN(ms, cond) \
	({ uint64_t end_ = ft_now_ns() + (ms) * FT_MS_NS; \
	   while (!(cond) && ft_now_ns() < end_) \
		pause_ms(2); \
	   (bool)(cond); })
#define EVENTUALLY(cond) CHECK(WITHIN(15000, cond))

/* --- QEMU: runs or is paused, tells everybody, and may be made to hesitate --- */

struct qemu {
	_Atomic bool paused;
	_Atomic unsigned stops, guard_conts;    /* the latter came through the guard's socket */
	_Atomic bool hesitate;                  /* the guard's cont lies there and is not executed */
	_Atomic bool hesitates;
};
static struct qemu *qemu;
static pid_t qemu_pid;

static int serve_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
	CHECK(!bind(fd, (struct sockaddr *)&a, sizeof(a)) && !listen(fd, 4));
	return fd;
}

struct client {
	int fd;
	char buf[4096];
	size_t len;
};

static void say(int fd, const char *text)
{
	if (fd >= 0)
		(void)!send(fd, text, strlen(text), MSG_NOSIGNAL);
}

static void set_paused(struct client c[2], bool paused)
{
	if (qemu->paused == paused)
		return;
	qemu->paused = paused;
	for (int i = 0; i < 2; i++)
		say(c[i].fd, paused ? "{\"event\": \"STOP\"}\r\n" : "{\"event\": \"RESUME\"}\r\n");
}

static void execute(struct client c[2], int who, json_t *msg)
{
	const char *command = json_string_value(json_object_get(msg, "execute"));
	char text[128], value[64] = "{}";

	if (!strcmp(command, "cont") && who == 1)
		while (qemu->hesitate) {
			qemu->hesitates = true;
			pause_ms(2);
		}
	if (!strcmp(command, "stop")) {
		qemu->stops++;
		set_paused(c, true);
	} else if (!strcmp(command, "cont")) {
		qemu->guard_conts += who == 1;
		set_paused(c, false);
	} else if (!strcmp(command, "query-status")) {
		snprintf(value, sizeof(value), "{\"status\": \"%s\"}", qemu->paused ? "paused" : "running");
	}
	snprintf(text, sizeof(text), "{\"return\": %s, \"id\": %lld}\r\n", value,
		 (long long)json_integer_value(json_object_get(msg, "id")));
	say(c[who].fd, text);
}

static void hear(struct client c[2], int who)
{
	struct client *me = &c[who];
	ssize_t n = recv(me->fd, me->buf + me->len, sizeof(me->buf) - me->len, 0);
	json_error_t err;
	json_t *msg;

	if (n <= 0) {
		close(me->fd);
		*me = (struct client){ .fd = -1 };
		return;
	}
	me->len += (size_t)n;
	while (me->len && (msg = json_loadb(me->buf, me->len, JSON_DISABLE_EOF_CHECK, &err))) {
		execute(c, who, msg);
		json_decref(msg);
		me->len -= (size_t)err.position;
		memmove(me->buf, me->buf + err.position, me->len);
	}
}

static void qemu_main(const int listener[2])
{
	struct client c[2] = { { .fd = -1 }, { .fd = -1 } };

	for (;;) {
		struct pollfd p[4];

		for (int i = 0; i < 2; i++) {
			p[i] = (struct pollfd){ .fd = c[i].fd, .events = POLLIN };
			p[2 + i] = (struct pollfd){ .fd = c[i].fd < 0 ? listener[i] : -1, .events = POLLIN };
		}
		poll(p, 4, -1);
		for (int i = 0; i < 2; i++) {
			if (p[i].revents)
				hear(c, i);
			if (p[2 + i].revents) {
				c[i].fd = accept(listener[i], NULL, NULL);
				say(c[i].fd, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n");
			}
		}
	}
}

/* --- the host: directories, configuration, QEMU, its attach record --- */

static void host_configure(void)
{
	struct ft_conf conf = *ft_conf();
	char self[200], log[300];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	CHECK(n > 0);
	self[n] = 0;
	*strrchr(self, '/') = 0;
	snprintf(conf.run_dir, sizeof(conf.run_dir), "%s/run", ft_test_dir());
	snprintf(conf.shm_dir, sizeof(conf.shm_dir), "%s/shm", ft_test_dir());
	snprintf(conf.libexec_dir, sizeof(conf.libexec_dir), "%s/../bin", self);
	ft_conf_set(&conf);
	snprintf(log, sizeof(log), "%s/run/guests/vm1", ft_test_dir());
	CHECK_OK(ft_mkdir_p(log, 0700));
	snprintf(log, sizeof(log), "%s/guard.log", ft_test_dir());      /* a file: the guard keeps it as its stderr */
	CHECK(freopen(log, "w", stderr) != NULL);
	unsetenv("JOURNAL_STREAM");
}

static void host_new(void)
{
	struct ft_attach at = { .guest = "vm1", .memory = 1 << 20, .accel = FT_ACCEL_TCG, .machine = "q35", .qemu_version = "7.2.0" };
	int listener[2];

	host_configure();
	CHECK_OK(ft_run_path(at.qmp, sizeof(at.qmp), "vm1", "qmp"));
	CHECK_OK(ft_run_path(at.qmp_guard, sizeof(at.qmp_guard), "vm1", "qmp-guard"));
	CHECK_OK(ft_run_path(at.qmp_state, sizeof(at.qmp_state), "vm1", "qmp-state"));
	CHECK(snprintf(at.ram, sizeof(at.ram), "%s/shm/vm1.ram", ft_test_dir()) < (int)sizeof(at.ram));
	listener[0] = serve_at(at.qmp);
	listener[1] = serve_at(at.qmp_guard);
	qemu = mmap(NULL, sizeof(*qemu), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	qemu_pid = fork();
	if (qemu_pid == 0)
		qemu_main(listener);
	close(listener[0]);
	close(listener[1]);
	CHECK_OK(ft_attach_fill_pid(&at, qemu_pid));
	CHECK_OK(ft_attach_save(&at));
}

static bool guard_said(const char *part)
{
	struct ft_blob text;
	char path[300];
	bool found;

	snprintf(path, sizeof(path), "%s/guard.log", ft_test_dir());
	CHECK_OK(ft_read_file(path, 1 << 20, &text));
	found = strstr((const char *)text.data, part) != NULL;
	ft_blob_free(&text);
	return found;
}

/* pidfd of the guard that lives, or -1. */
static int guard_pidfd(pid_t *pid)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), pidfd = -1;
	struct ucred peer;
	socklen_t len = sizeof(peer);

	CHECK_OK(ft_run_path(a.sun_path, sizeof(a.sun_path), "vm1", "guard.sock"));
	if (!connect(fd, (struct sockaddr *)&a, sizeof(a)) && !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len)) {
		pidfd = pidfd_open(peer.pid, 0);
		*pid = peer.pid;
	}
	close(fd);
	return pidfd;
}

static bool ended(int pidfd, unsigned ms)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	return poll(&p, 1, (int)ms) == 1;
}

/* --- ft-protect: does what the letters say, answers each with one --- */

struct protect {
	pid_t pid;
	int sock;
};

static struct ft_beat_config beats_to(uint16_t port)
{
	struct ft_beat_config cfg = { .interval_ms = 10, .silence_ms = 300, .nr_paths = 1 };
	struct sockaddr_in *a = (struct sockaddr_in *)&cfg.path[0];

	*a = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	return cfg;
}

static const struct ft_guard_config config = { .guest = "vm1", .pause_limit_ms = LIMIT_MS, .grace_ms = GRACE_MS, .owner_fd = -1 };

static void qmp_call(struct ft_qmp **q, const char *command)
{
	char path[FT_PATH_MAX];
	json_t *event;

	CHECK_OK(ft_run_path(path, sizeof(path), "vm1", "qmp"));
	if (!*q)
		CHECK_OK(ft_qmp_open(path, 5000, q));
	CHECK_OK(ft_qmp_call(*q, command, NULL, -1, 5000, NULL));
	while ((event = ft_qmp_event(*q)))
		json_decref(event);
}

static uint16_t backup_port;            /* where 'b' sends */
static int gate_fd = -1;                /* what 'g' lets the guard hold */

static char obey(struct ft_guard **g, struct ft_qmp **q, char letter)
{
	struct ft_beat_config beat = beats_to(backup_port);
	struct ft_guard_config cfg = config;
	struct stat kept, mine;
	int rc, fd;

	switch (letter) {
	case 'S':                       /* start, or start anew */
		ft_guard_free(*g);
		return ft_guard_start(&cfg, g) ? 'E' : '0';
	case 'A':                       /* adopt: was the gate's socket kept? */
		if (ft_guard_adopt(&cfg, &fd, g))
			return 'E';
		return fd >= 0 && !fstat(fd, &kept) && !fstat(gate_fd, &mine) && kept.st_ino == mine.st_ino ? 'k' : '0';
	case 'g': return ft_guard_hold(*g, gate_fd) ? 'E' : '0';
	case 'b': return ft_guard_beat(*g, &beat) ? 'E' : '0';
	case 'm': return ft_guard_beat(*g, NULL) ? 'E' : '0';
	case 'h': return ft_guard_held(*g, true), '0';
	case 't': return ft_guard_tick(*g), '0';
	case 'R': return ft_guard_rest(*g), '0';
	case 'p': return ft_guard_pause(*g), '0';
	case 's': return qmp_call(q, "stop"), '0';
	case 'c': return qmp_call(q, "cont"), '0';
	case 'r':
		rc = ft_guard_resume(*g);
		return rc == -ECANCELED ? 'x' : rc ? 'E' : '0';
	case 'a': return ft_guard_alive(*g) ? 'y' : 'n';
	case 'e': return ft_guard_end(*g), ft_guard_free(*g), *g = NULL, '0';
	}
	return '?';
}

static struct protect protect_new(void)
{
	struct protect p;
	int sock[2];

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock));
	p.pid = fork();
	CHECK(p.pid >= 0);
	if (p.pid == 0) {
		struct ft_guard *g = NULL;
		struct ft_qmp *q = NULL;
		char letter;

		close(sock[0]);
		while (read(sock[1], &letter, 1) == 1) {
			letter = obey(&g, &q, letter);
			if (write(sock[1], &letter, 1) != 1)
				break;
		}
		_exit(0);
	}
	close(sock[1]);
	p.sock = sock[0];
	return p;
}

static void tell(struct protect *p, char letter)
{
	CHECK_EQ(write(p->sock, &letter, 1), 1);
}

static char answer(struct protect *p)
{
	struct pollfd pfd = { .fd = p->sock, .events = POLLIN };
	char letter;

	CHECK_EQ(poll(&pfd, 1, 30000), 1);
	CHECK_EQ(read(p->sock, &letter, 1), 1);
	return letter;
}

/* Obeys @letters one after the other; the answer to the last one, all others being '0'. */
static char does(struct protect *p, const char *letters)
{
	char last = '0';

	for (; *letters; letters++) {
		CHECK_EQ(last, '0');
		tell(p, *letters);
		last = answer(p);
	}
	return last;
}

static void is_killed(struct protect *p)
{
	CHECK_OK(kill(p->pid, SIGKILL));
	CHECK_EQ(waitpid(p->pid, NULL, 0), p->pid);
	close(p->sock);
}

static void is_stopped(pid_t pid)
{
	int status;

	CHECK_OK(kill(pid, SIGSTOP));
	CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
}

static void wakes(pid_t pid)
{
	CHECK_OK(kill(pid, SIGCONT));
}

static struct protect started(void)
{
	struct protect p;

	host_new();
	p = protect_new();
	CHECK_EQ(does(&p, "S"), '0');
	return p;
}

/* After a revoked pause some more may be void, until the guard has heard QEMU's answer; not for long. */
static bool epochs_are_whole_again(struct protect *p)
{
	int whole = 0;

	for (int i = 0; i < 500 && whole < 2; i++)
		whole = does(p, "pscr") == '0' ? whole + 1 : 0;
	return whole == 2;
}

/* A QMP stop by somebody else, or one that was on its way when ft-protect died. */
static void stray_stop(void)
{
	struct ft_qmp *q = NULL;

	qmp_call(&q, "stop");
	ft_qmp_close(q);
}

/* --- the pause word --- */

TEST(epochs_in_time_are_none_of_the_guards_business)
{
	struct protect p = started();

	for (int i = 0; i < 200; i++)
		CHECK_EQ(does(&p, "pscr"), '0');
	CHECK_EQ(qemu->guard_conts, 0);
	CHECK_EQ(does(&p, "e"), '0');
}

TEST(a_long_pause_that_is_told_of_is_not_revoked)
{
	struct protect p = started();
	uint64_t told, longest = 0;
	char kept;

	CHECK_EQ(does(&p, "ps"), '0');
	told = ft_now_ns();
	for (int i = 0; i < 3 * LIMIT_MS / 20; i++) {
		uint64_t before = told;

		CHECK_EQ(does(&p, "p"), '0');
		told = ft_now_ns();
		longest = told - before > longest ? told - before : longest;
		pause_ms(20);
	}
	kept = does(&p, "cr");
	longest = ft_now_ns() - told > longest ? ft_now_ns() - told : longest;
	if (longest > LIMIT_MS * FT_MS_NS / 2)
		ft_test_skip("this machine lets nobody tell in time");
	CHECK_EQ(kept, '0');
	CHECK_EQ(qemu->guard_conts, 0);
}

TEST(a_guest_left_paused_by_a_killed_ft_protect_runs_on)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "ps"), '0');
	is_killed(&p);
	EVENTUALLY(!qemu->paused);
	EVENTUALLY(guard_said("left paused: letting it run, mute"));
}

TEST(killed_after_cont_and_before_the_word_nothing_is_amiss)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "psc"), '0');
	is_killed(&p);
	EVENTUALLY(guard_said("letting it run"));
	CHECK(!qemu->paused);
}

TEST(a_stop_still_on_its_way_when_ft_protect_died_is_undone)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "p"), '0');
	is_killed(&p);
	EVENTUALLY(qemu->guard_conts == 1);
	stray_stop();
	EVENTUALLY(!qemu->paused);
	CHECK_EQ(qemu->guard_conts, 2);
}

TEST(a_guest_somebody_else_paused_stays_paused_without_ft_protect)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "pscrs"), '0');       /* the last one: an operator, or ft-protect cut off from its peer */
	is_killed(&p);
	EVENTUALLY(guard_said("has gone"));
	pause_ms(LIMIT_MS);
	CHECK(qemu->paused);
	CHECK_EQ(qemu->guard_conts, 0);
}

TEST(a_stopped_ft_protect_finds_its_capture_void_when_it_wakes)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "ps"), '0');
	is_stopped(p.pid);
	EVENTUALLY(!qemu->paused);
	wakes(p.pid);
	CHECK_EQ(does(&p, "cr"), 'x');
	CHECK(epochs_are_whole_again(&p));
	CHECK_EQ(qemu->guard_conts, 1);
}

TEST(a_stop_sent_after_the_guard_has_acted_is_undone_at_once)
{
	struct protect p = started();

	CHECK_EQ(does(&p, "p"), '0');
	is_stopped(p.pid);
	EVENTUALLY(qemu->guard_conts == 1);
	wakes(p.pid);
	CHECK_EQ(does(&p, "s"), '0');
	EVENTUALLY(!qemu->paused);
	EVENTUALLY(qemu->guard_conts == 2);
	CHECK_EQ(does(&p, "cr"), 'x');
	CHECK(epochs_are_whole_again(&p));
}

/* The guard has decided, and is slow: its cont must not fall into a later pause that counts. */
TEST(a_late_cont_of_the_guard_never_comes_into_a_pause_that_counts)
{
	struct protect p = started();

	qemu->hesitate = true;
	CHECK_EQ(does(&p, "ps"), '0');
	EVENTUALLY(qemu->hesitates);            /* the guard's cont is on its way; nobody else is served meanwhile */
	CHECK_EQ(does(&p, "r"), 'x');
	CHECK_EQ(does(&p, "p"), '0');
	CHECK_EQ(does(&p, "r"), 'x');           /* a capture now would be void as well */
	qemu->hesitate = false;
	EVENTUALLY(qemu->guard_conts > 0);
	CHECK(epochs_are_whole_again(&p));
}

TEST(qemu_that_does_not_answer_is_asked_again)
{
	struct protect p = started();

	qemu->hesitate = true;
	CHECK_EQ(does(&p, "ps"), '0');
	is_killed(&p);
	EVENTUALLY(guard_said("cannot let the guest run"));
	qemu->hesitate = false;
	EVENTUALLY(!qemu->paused);
}

/* --- ft-protect comes back --- */

TEST(the_next_ft_protect_adopts_the_guard_and_the_gates_socket)
{
	struct protect p, q;
	int sock[2], guard;
	pid_t pid, again;

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	gate_fd = sock[0];
	p = started();
	CHECK_EQ(does(&p, "g"), '0');
	close(sock[0]);
	guard = guard_pidfd(&pid);
	q = protect_new();
	gate_fd = -1;
	CHECK_EQ(does(&q, "A"), 'E');           /* the first one lives */
	is_killed(&p);
	close(sock[1]);
	CHECK_EQ(does(&q, "S"), '0');
	CHECK(guard_pidfd(&again) >= 0);
	CHECK_EQ(pid, again);
	CHECK_EQ(does(&q, "pscr"), '0');
	CHECK_EQ(does(&q, "e"), '0');
	CHECK(ended(guard, 10000));
}

TEST(what_the_guard_holds_survives_ft_protect_and_is_given_back)
{
	struct protect p, q;
	int sock[2];

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	gate_fd = sock[0];
	p = started();
	q = protect_new();
	CHECK_EQ(does(&p, "g"), '0');
	is_killed(&p);
	CHECK_EQ(does(&q, "A"), 'k');
}

TEST(an_adopted_guest_runs_whoever_had_paused_it)
{
	struct protect p = started(), q = protect_new();

	CHECK_EQ(does(&p, "s"), '0');
	is_killed(&p);
	EVENTUALLY(guard_said("has gone"));
	CHECK(qemu->paused);
	CHECK_EQ(does(&q, "A"), '0');
	CHECK(!qemu->paused);
	CHECK(epochs_are_whole_again(&q));
}

TEST(two_ft_protects_of_one_guest_are_one_too_many)
{
	struct protect p = started(), q = protect_new();

	CHECK_EQ(does(&q, "S"), 'E');
	CHECK(ft_test_logged("its guard belongs to another ft-protect that lives"));
	CHECK_EQ(does(&p, "pscr"), '0');
}

/* --- heartbeats, grace --- */

static struct ft_echo *backup_new(void)
{
	struct ft_beat_config cfg = beats_to(0);
	struct ft_echo_config echo = { .silence_ms = cfg.silence_ms };
	struct ft_echo *e;

	memcpy(echo.key, cfg.key, sizeof(echo.key));
	memcpy(echo.session, cfg.session, sizeof(echo.session));
	CHECK_OK(ft_echo_start(&echo, &backup_port, &e));
	return e;
}

/* A port for the backup that is started once all forks are made. */
static void reserve_port(void)
{
	struct ft_echo *e = backup_new();

	ft_echo_stop(e);
}

static struct ft_echo *backup_at_port(void)
{
	struct ft_beat_config cfg = beats_to(0);
	struct ft_echo_config echo = { .silence_ms = cfg.silence_ms, .port_min = backup_port, .port_max = backup_port };
	struct ft_echo *e;

	CHECK_OK(ft_echo_start(&echo, &backup_port, &e));
	return e;
}

TEST(the_guard_beats_for_a_dead_ft_protect_then_pauses_the_guest_and_falls_silent)
{
	struct ft_echo *e;
	struct protect p, q;
	uint64_t killed;

	reserve_port();
	p = started();
	q = protect_new();
	e = backup_at_port();
	CHECK_EQ(does(&p, "hb"), '0');
	EVENTUALLY(ft_echo_last_life_ns(e) > 0);
	ft_echo_arm(e);
	killed = ft_now_ns();
	is_killed(&p);
	while (!ft_echo_try_takeover(e)) {
		CHECK(ft_now_ns() < killed + 30 * FT_S_NS);
		pause_ms(10);
	}
	CHECK(ft_now_ns() - killed >= (GRACE_MS + 200) * FT_MS_NS);
	CHECK(qemu->paused);
	CHECK(guard_said("the guest is paused and the backup may take over"));
	/* One that comes now finds the guest running, and must ask the backup whether it may speak. */
	CHECK_EQ(does(&q, "A"), '0');
	CHECK(!qemu->paused);
	ft_echo_stop(e);
}

TEST(a_guest_whose_output_was_open_is_not_paused_for_nobody)
{
	struct ft_echo *e;
	struct protect p;
	uint64_t life;

	reserve_port();
	p = started();
	e = backup_at_port();
	CHECK_EQ(does(&p, "b"), '0');
	EVENTUALLY(ft_echo_last_life_ns(e) > 0);
	is_killed(&p);
	do {
		life = ft_echo_last_life_ns(e);
		pause_ms(300);
	} while (ft_echo_last_life_ns(e) != life);
	CHECK(!qemu->paused);
	CHECK_EQ(qemu->stops, 0);
	ft_echo_stop(e);
}

TEST(ft_protects_that_come_and_die_do_not_renew_the_grace)
{
	struct protect p[12];
	unsigned i;

	backup_port = 9;
	p[0] = started();
	CHECK_EQ(does(&p[0], "hb"), '0');
	for (i = 0; i + 1 < FT_ARRAY_LEN(p) && !guard_said("may take over"); i++) {
		is_killed(&p[i]);
		pause_ms(GRACE_MS / 4);
		p[i + 1] = protect_new();
		CHECK_EQ(does(&p[i + 1], "A"), '0');
	}
	CHECK(guard_said("may take over"));
	/* A session is what counts. */
	CHECK_EQ(does(&p[i], "b"), '0');
	is_killed(&p[i]);
	pause_ms(GRACE_MS / 2);
	CHECK(!qemu->paused);
	EVENTUALLY(qemu->paused);
}

TEST(a_killed_guard_is_noticed_and_replaced)
{
	struct protect p = started();
	pid_t old, new;
	int fd = guard_pidfd(&old);

	CHECK_EQ(does(&p, "a"), 'y');
	CHECK_OK(kill(old, SIGKILL));
	EVENTUALLY(does(&p, "a") == 'n');
	CHECK(ended(fd, 10000));
	CHECK_EQ(does(&p, "S"), '0');
	CHECK(guard_pidfd(&new) >= 0);
	CHECK(new != old);
	CHECK_EQ(does(&p, "pscr"), '0');
	CHECK_EQ(does(&p, "ps"), '0');
	is_killed(&p);
	EVENTUALLY(!qemu->paused);
}

TEST(a_stopped_guard_is_in_nobodys_way)
{
	struct protect p = started();
	pid_t pid;

	CHECK(guard_pidfd(&pid) >= 0);
	CHECK_OK(kill(pid, SIGSTOP));
	backup_port = 9;
	for (int i = 0; i < 50; i++) {
		CHECK_EQ(does(&p, "bpscr"), '0');
		pause_ms(LIMIT_MS / 20);
	}
	CHECK_OK(kill(pid, SIGCONT));
	CHECK(epochs_are_whole_again(&p));
	CHECK_EQ(does(&p, "ps"), '0');
	is_killed(&p);
	EVENTUALLY(!qemu->paused);
}

TEST(a_guard_that_does_not_answer_is_replaced)
{
	struct protect p = started(), q = protect_new();
	pid_t old, new;
	int fd = guard_pidfd(&old);

	CHECK_OK(kill(old, SIGSTOP));
	is_killed(&p);
	CHECK_EQ(does(&q, "S"), '0');
	CHECK(ended(fd, 10000));
	CHECK(guard_pidfd(&new) >= 0 && new != old);
	CHECK_EQ(does(&q, "pscr"), '0');
}

TEST(a_loop_that_stands_still_is_killed_once_it_has_ticked)
{
	struct protect p = started();
	int status;

	is_stopped(p.pid);                      /* has never ticked: not watched */
	pause_ms(GRACE_MS + 500);
	wakes(p.pid);
	CHECK_EQ(does(&p, "pscr"), '0');
	CHECK_EQ(does(&p, "tR"), '0');          /* said that it will take long */
	is_stopped(p.pid);
	pause_ms(GRACE_MS + 500);
	wakes(p.pid);
	for (int i = 0; i < 5; i++) {
		CHECK_EQ(does(&p, "t"), '0');
		pause_ms(GRACE_MS / 4);
	}
	is_stopped(p.pid);
	CHECK_EQ(waitpid(p.pid, &status, 0), p.pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	CHECK(guard_said("has not moved"));
}

/* --- QEMU ends --- */

TEST(qemu_dies_without_ft_protect_then_the_guard_falls_silent_and_ends)
{
	struct ft_echo *e;
	struct protect p;
	pid_t pid;
	int fd;

	reserve_port();
	p = started();
	e = backup_at_port();
	fd = guard_pidfd(&pid);
	CHECK_EQ(does(&p, "hb"), '0');
	EVENTUALLY(ft_echo_last_life_ns(e) > 0);
	ft_echo_arm(e);
	is_killed(&p);
	CHECK_OK(kill(qemu_pid, SIGKILL));
	CHECK(ended(fd, GRACE_MS));
	EVENTUALLY(ft_echo_try_takeover(e));
	ft_echo_stop(e);
}

TEST(qemu_dies_under_a_living_ft_protect_then_the_guard_waits_for_it)
{
	struct protect p = started();
	pid_t pid;
	int fd = guard_pidfd(&pid);

	CHECK_OK(kill(qemu_pid, SIGKILL));
	EVENTUALLY(guard_said("the guest has ended"));
	CHECK_EQ(does(&p, "a"), 'y');
	CHECK_EQ(does(&p, "e"), '0');
	CHECK(ended(fd, 10000));
}

/* --- starting --- */

TEST(an_ended_guard_leaves_nothing_behind)
{
	struct protect p = started();
	char path[300];
	pid_t pid;
	int fd = guard_pidfd(&pid);

	CHECK_EQ(does(&p, "e"), '0');
	CHECK(ended(fd, 10000));
	CHECK_OK(ft_run_path(path, sizeof(path), "vm1", "guard.sock"));
	CHECK(access(path, F_OK) < 0);
	CHECK_EQ(does(&p, "A"), 'E');
	CHECK_EQ(does(&p, "S"), '0');
}

TEST(a_guest_that_does_not_run_cannot_be_guarded)
{
	struct ft_guard *g;

	host_configure();
	CHECK_EQ(ft_guard_start(&config, &g), -ECHILD);
	CHECK(guard_said("vm1: cannot guard it: it does not run here"));
}

TEST(a_missing_program_is_named)
{
	struct ft_conf conf;
	struct ft_guard *g;

	host_new();
	conf = *ft_conf();
	strcpy(conf.libexec_dir, "/nonexistent");
	ft_conf_set(&conf);
	CHECK_EQ(ft_guard_start(&config, &g), -ENOENT);
	CHECK(ft_test_logged("/nonexistent/ft-guard: cannot be started: No such file or directory; is ft installed completely?"));
}

TEST(strangers_who_say_nothing_or_nonsense_do_not_hinder)
{
	struct protect p = started();
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	static const char nonsense[700] = "GET / HTTP/1.1";

	CHECK_OK(ft_run_path(a.sun_path, sizeof(a.sun_path), "vm1", "guard.sock"));
	for (int i = 0; i < 40; i++) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		if (!connect(fd, (struct sockaddr *)&a, sizeof(a)) && i % 2)
			(void)!send(fd, nonsense, (size_t)(17 * i), MSG_NOSIGNAL);
		if (i % 4)
			close(fd);
	}
	CHECK_EQ(does(&p, "pscr"), '0');
	CHECK_EQ(does(&p, "ps"), '0');
	is_killed(&p);
	EVENTUALLY(!qemu->paused);
}
