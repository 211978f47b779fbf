// SPDX-License-Identifier: GPL-3.0-or-later
/* test_heartbeat.c - signs of life over a wire that loses, repeats, forges and stalls. */
#include "ft/heartbeat.h"
#include "failover/datagram.h"
#include "tests/test.h"

#include <arpa/inet.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

static void pause_ms(unsigned ms)
{
	poll(NULL, 0, (int)ms);
}

/* Poll for @cond, for at most ten seconds. */
#define EVENTUALLY(cond) \
	do { \
		uint64_t end_ = ft_now_ns() + 10 * FT_S_NS; \
		while (!(cond) && ft_now_ns() < end_) \
			pause_ms(2); \
		CHECK(cond); \
	} while (0)

static struct sockaddr_storage v4_port(uint16_t port)
{
	struct sockaddr_storage a = { 0 };

	*(struct sockaddr_in *)&a = (struct sockaddr_in){
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	return a;
}

/* --- the wire: a relay between the beating and the echoing side --- */

#define NR_TAPE 64
struct wire {
	int fd;                         /* both sides send here */
	uint16_t port, echo_port;
	_Atomic uint16_t beat_port;     /* learnt from the first beat */
	_Atomic bool cut, stop, twice, no_echo;
	_Atomic int flip;               /* -1, or the number of a bit to flip in each beat */
	_Atomic unsigned lose_percent, nr_beats, nr_echoes;
	uint8_t tape[2][NR_TAPE][FT_HB_LEN];    /* the last beats, the last echoes; of the thread until it ended */
	unsigned nr_tape[2];
	unsigned random;
	pthread_t thread;
};

static void wire_send(struct wire *w, uint16_t port, const void *buf, size_t len)
{
	struct sockaddr_storage a = v4_port(port);

	(void)!sendto(w->fd, buf, len, 0, (struct sockaddr *)&a, sizeof(struct sockaddr_in));
}

static void wire_forward(struct wire *w, uint8_t *buf, size_t len, bool echo)
{
	if (len == FT_HB_LEN)
		memcpy(w->tape[echo][w->nr_tape[echo]++ % NR_TAPE], buf, len);
	if (w->cut || (echo && w->no_echo) || (unsigned)rand_r(&w->random) % 100 < w->lose_percent)
		return;
	if (!echo && w->flip >= 0)
		buf[w->flip / 8] ^= (uint8_t)(1 << w->flip % 8);
	for (int i = 0; i < (w->twice ? 2 : 1); i++)
		wire_send(w, echo ? w->beat_port : w->echo_port, buf, len);
	echo ? w->nr_echoes++ : w->nr_beats++;
}

static void *wire_run(void *arg)
{
	struct wire *w = arg;

	while (!w->stop) {
		struct pollfd p = { .fd = w->fd, .events = POLLIN };
		struct sockaddr_in from;
		socklen_t from_len = sizeof(from);
		uint8_t buf[256];
		ssize_t n;

		if (poll(&p, 1, 20) != 1)
			continue;
		n = recvfrom(w->fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &from_len);
		if (n < 0)
			continue;
		if (ntohs(from.sin_port) != w->echo_port)
			w->beat_port = ntohs(from.sin_port);
		wire_forward(w, buf, (size_t)n, ntohs(from.sin_port) == w->echo_port);
	}
	return NULL;
}

static struct wire *wire_new(uint16_t echo_port)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct sockaddr_storage a = v4_port(0);
	socklen_t len = sizeof(struct sockaddr_in);

	w->fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	w->echo_port = echo_port;
	w->flip = -1;
	CHECK_OK(bind(w->fd, (struct sockaddr *)&a, len));
	CHECK_OK(getsockname(w->fd, (struct sockaddr *)&a, &len));
	w->port = ntohs(((struct sockaddr_in *)&a)->sin_port);
	CHECK_OK(pthread_create(&w->thread, NULL, wire_run, w));
	return w;
}

static void wire_end(struct wire *w)
{
	w->stop = true;
	pthread_join(w->thread, NULL);
}

static void wire_free(struct wire *w)
{
	close(w->fd);
	free(w);
}

/* --- a pair --- */

static _Atomic uint64_t told_until;

static uint64_t on_lease(void *ctx, uint64_t until_ns)
{
	CHECK(until_ns > told_until);
	told_until = until_ns;
	return until_ns;
}

#define SILENCE_MS 300

static struct ft_beat_config beat_config(uint16_t port, bool guard)
{
	return (struct ft_beat_config){
		.key = { 1, 2, 3 }, .session = { 9 }, .guard = guard, .interval_ms = 10, .silence_ms = SILENCE_MS,
		.nr_paths = 1, .path = { v4_port(port) }, .on_lease = guard ? NULL : on_lease,
	};
}

static struct ft_beat *beat_to(uint16_t port, bool guard)
{
	struct ft_beat_config cfg = beat_config(port, guard);
	struct ft_beat *b;

	CHECK_OK(ft_beat_start(&cfg, &b));
	return b;
}

static struct ft_echo *echo_new(uint16_t *port)
{
	struct ft_echo_config cfg = { .key = { 1, 2, 3 }, .session = { 9 }, .silence_ms = SILENCE_MS };
	struct ft_echo *e;

	CHECK_OK(ft_echo_start(&cfg, port, &e));
	return e;
}

/* The owner's ticks for @ms: does it take over? */
static bool takes_over_within(struct ft_echo *e, unsigned ms)
{
	uint64_t end = ft_now_ns() + ms * FT_MS_NS;

	while (ft_now_ns() < end) {
		if (ft_echo_try_takeover(e))
			return true;
		pause_ms(10);
	}
	return false;
}

struct pair {
	struct ft_echo *echo;
	struct wire *wire;
	struct ft_beat *beat;
};

static struct pair pair_new(bool guard)
{
	struct pair p;
	uint16_t port;

	told_until = 0;
	p.echo = echo_new(&port);
	p.wire = wire_new(port);
	p.beat = beat_to(p.wire->port, guard);
	return p;
}

static _Atomic bool gate_asked, gate_opens;

static uint64_t slow_gate(void *ctx, uint64_t until_ns)
{
	(void)ctx;
	gate_asked = true;
	for (unsigned i = 0; i < 10000 && !gate_opens; i++)
		pause_ms(1);
	return until_ns;
}

static _Atomic unsigned nr_refused;

/* Opens for a moment only, or not at all. */
static uint64_t poor_gate(void *ctx, uint64_t until_ns)
{
	(void)ctx, (void)until_ns;
	if (gate_opens)
		return ft_now_ns() + 20 * FT_MS_NS;
	nr_refused++;
	return 0;
}

static void pair_free(struct pair *p)
{
	ft_beat_stop(p->beat);
	if (!p->wire->stop)
		wire_end(p->wire);
	ft_echo_stop(p->echo);
	wire_free(p->wire);
}

/* --- stories --- */

TEST(the_right_to_speak_begins_when_the_gate_has_been_told)
{
	struct ft_beat_config cfg;
	struct ft_echo *e;
	struct ft_beat *b;
	uint16_t port;

	e = echo_new(&port);
	cfg = beat_config(port, false);
	cfg.on_lease = slow_gate;
	gate_asked = gate_opens = false;
	CHECK_OK(ft_beat_start(&cfg, &b));
	for (unsigned i = 0; i < 5000 && !gate_asked; i++)
		pause_ms(1);
	CHECK(gate_asked);
	CHECK(!ft_beat_fresh(b));
	gate_opens = true;
	for (unsigned i = 0; i < 5000 && !ft_beat_fresh(b); i++)
		pause_ms(1);
	CHECK(ft_beat_fresh(b));
	ft_beat_stop(b);
	ft_echo_stop(e);
}

TEST(nothing_is_released_that_the_gate_would_not_let_through)
{
	struct ft_beat_config cfg;
	struct pair p = pair_new(false);
	unsigned n;

	ft_beat_stop(p.beat);
	cfg = beat_config(p.wire->port, false);
	cfg.on_lease = poor_gate;
	cfg.silence_ms = 60000;                 /* one lease is enough for all of this */
	nr_refused = 0;
	gate_opens = false;
	CHECK_OK(ft_beat_start(&cfg, &p.beat));
	EVENTUALLY(nr_refused);
	p.wire->no_echo = true;
	pause_ms(50);
	n = nr_refused;
	EVENTUALLY(nr_refused > n + 2);         /* asked again, though no lease is longer */
	CHECK(!ft_beat_fresh(p.beat));
	gate_opens = true;
	EVENTUALLY(ft_beat_fresh(p.beat));
	gate_opens = false;
	EVENTUALLY(!ft_beat_fresh(p.beat));     /* the lease alone would do */
	pair_free(&p);
}

TEST(an_echoed_beat_gives_the_right_to_speak)
{
	struct pair p = pair_new(false);

	EVENTUALLY(ft_beat_fresh(p.beat));
	EVENTUALLY(told_until > ft_now_ns());
	CHECK(told_until <= ft_now_ns() + SILENCE_MS * FT_MS_NS * 4 / 5);
	CHECK(ft_beat_last_echo_ns(p.beat) > 0);
	CHECK(ft_echo_last_life_ns(p.echo) > 0);
	pair_free(&p);
}

TEST(the_right_to_speak_ends_with_the_echoes)
{
	struct pair p = pair_new(false);

	EVENTUALLY(ft_beat_fresh(p.beat));
	p.wire->no_echo = true;
	EVENTUALLY(!ft_beat_fresh(p.beat));
	CHECK(!takes_over_within(p.echo, 2 * SILENCE_MS));      /* beats still come: the primary is alive */
	p.wire->no_echo = false;
	EVENTUALLY(ft_beat_fresh(p.beat));
	pair_free(&p);
}

TEST(the_guard_is_a_sign_of_life_but_may_not_speak)
{
	struct pair p = pair_new(true);

	ft_echo_arm(p.echo);
	EVENTUALLY(ft_beat_last_echo_ns(p.beat) > 0);
	CHECK(!takes_over_within(p.echo, 2 * SILENCE_MS));
	CHECK(!ft_beat_fresh(p.beat));
	CHECK_EQ(told_until, 0);
	ft_beat_renew(p.beat, ft_now_ns());
	CHECK(!ft_beat_fresh(p.beat));
	p.wire->cut = true;
	CHECK(takes_over_within(p.echo, 10000));
	pair_free(&p);
}

TEST(nothing_is_judged_before_the_replica_is_armed)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);

	CHECK(!takes_over_within(e, 2 * SILENCE_MS));
	ft_echo_arm(e);
	CHECK(!ft_echo_try_takeover(e));
	CHECK(takes_over_within(e, 10000));
	CHECK(ft_echo_try_takeover(e));
	ft_echo_stop(e);
}

TEST(bytes_on_the_tls_link_are_life_too)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);

	ft_echo_arm(e);
	for (int i = 0; i < 3 * SILENCE_MS / 20; i++) {
		ft_echo_life(e);
		CHECK(!takes_over_within(e, 20));
	}
	CHECK(takes_over_within(e, 10000));
	ft_echo_stop(e);
}

TEST(a_pong_renews_the_lease_unless_it_comes_from_the_future)
{
	struct pair p = pair_new(false);

	p.wire->cut = true;
	EVENTUALLY(!ft_beat_fresh(p.beat));
	ft_beat_renew(p.beat, ft_now_ns() + FT_S_NS);
	CHECK(!ft_beat_fresh(p.beat));
	ft_beat_renew(p.beat, ft_now_ns());
	EVENTUALLY(ft_beat_fresh(p.beat));
	EVENTUALLY(told_until > ft_now_ns());           /* the gate hears of it */
	pair_free(&p);
}

TEST(a_wire_that_loses_half_and_doubles_the_rest_is_good_enough)
{
	struct pair p = pair_new(false);

	p.wire->lose_percent = 50;
	p.wire->twice = true;
	ft_echo_arm(p.echo);
	EVENTUALLY(ft_beat_fresh(p.beat));
	CHECK(!takes_over_within(p.echo, 4 * SILENCE_MS));
	pair_free(&p);
}

TEST(every_flipped_bit_of_a_beat_is_noticed)
{
	struct ft_hb_keys k;
	struct ft_hb hb = { FT_HB_BEAT, FT_HB_GUARD, 2, 77 }, out;
	uint8_t key[32] = { 4 }, session[16] = { 5 }, buf[FT_HB_LEN];

	CHECK_OK(ft_hb_keys(key, session, &k));
	CHECK_OK(ft_hb_seal(&k, &hb, buf));
	CHECK_OK(ft_hb_open(&k, FT_HB_BEAT, buf, sizeof(buf), &out));
	CHECK_EQ(out.seq, 77);
	CHECK_EQ(out.path, 2);
	CHECK_EQ(out.sender, FT_HB_GUARD);
	for (size_t bit = 0; bit < 8 * sizeof(buf); bit++) {
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
		CHECK_EQ(ft_hb_open(&k, FT_HB_BEAT, buf, sizeof(buf), &out), -EPROTO);
		buf[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (size_t len = 0; len < sizeof(buf); len++)
		CHECK_EQ(ft_hb_open(&k, FT_HB_BEAT, buf, len, &out), -EPROTO);
}

TEST(a_beat_sent_back_is_no_echo_even_when_relabelled)
{
	struct ft_hb_keys k;
	struct ft_hb hb = { FT_HB_BEAT, FT_HB_REPLICATOR, 0, 1 }, out;
	uint8_t key[32] = { 4 }, session[16] = { 5 }, buf[FT_HB_LEN];

	CHECK_OK(ft_hb_keys(key, session, &k));
	CHECK_OK(ft_hb_seal(&k, &hb, buf));
	CHECK_EQ(ft_hb_open(&k, FT_HB_ECHO, buf, sizeof(buf), &out), -EPROTO);
	buf[5] = FT_HB_ECHO;
	CHECK_EQ(ft_hb_open(&k, FT_HB_ECHO, buf, sizeof(buf), &out), -EPROTO);
}

TEST(forged_beats_are_neither_life_nor_answered)
{
	struct pair p = pair_new(false);

	p.wire->flip = 8 * 40;                          /* in the MAC */
	ft_echo_arm(p.echo);
	EVENTUALLY(p.wire->nr_beats > 10);
	pause_ms(SILENCE_MS);
	p.wire->nr_echoes = 0;
	EVENTUALLY(p.wire->nr_beats > 40);
	CHECK_EQ(p.wire->nr_echoes, 0);
	CHECK(takes_over_within(p.echo, 10000));
	pair_free(&p);
}

TEST(beats_of_another_session_or_key_are_not_ours)
{
	for (int which = 0; which < 2; which++) {
		uint16_t port;
		struct ft_echo *e = echo_new(&port);
		struct ft_beat_config cfg = beat_config(port, false);
		struct ft_beat *b;

		cfg.session[15] ^= (uint8_t)(which == 0);
		cfg.key[31] ^= (uint8_t)(which == 1);
		CHECK_OK(ft_beat_start(&cfg, &b));
		ft_echo_arm(e);
		CHECK(takes_over_within(e, 10000));
		CHECK(!ft_beat_fresh(b));
		ft_beat_stop(b);
		ft_echo_stop(e);
	}
}

TEST(replayed_beats_are_no_life)
{
	struct pair p = pair_new(false);

	ft_echo_arm(p.echo);
	EVENTUALLY(p.wire->nr_echoes >= NR_TAPE);
	ft_beat_stop(p.beat);
	p.beat = NULL;
	wire_end(p.wire);
	for (unsigned i = 0; i < 100; i++) {            /* a second of beats from the tape, in their order */
		wire_send(p.wire, p.wire->echo_port, p.wire->tape[0][(p.wire->nr_tape[0] + i) % NR_TAPE], FT_HB_LEN);
		if (takes_over_within(p.echo, 10))
			break;
	}
	CHECK(ft_echo_try_takeover(p.echo));
	pair_free(&p);
}

TEST(replayed_echoes_give_no_lease)
{
	struct pair p = pair_new(false);

	EVENTUALLY(p.wire->nr_echoes >= NR_TAPE);
	wire_end(p.wire);
	EVENTUALLY(!ft_beat_fresh(p.beat));
	for (unsigned i = 0; i < NR_TAPE; i++) {
		wire_send(p.wire, p.wire->beat_port, p.wire->tape[1][i], FT_HB_LEN);
		pause_ms(2);
		CHECK(!ft_beat_fresh(p.beat));
	}
	pair_free(&p);
}

TEST(a_guard_started_anew_in_the_same_session_is_heard)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);

	for (int life = 0; life < 3; life++) {
		struct ft_beat *b = beat_to(port, true);

		EVENTUALLY(ft_beat_last_echo_ns(b) > 0);
		ft_beat_stop(b);
	}
	ft_echo_stop(e);
}

TEST(each_number_is_taken_once_and_old_ones_never)
{
	struct ft_hb_window w = { 0 };

	CHECK(ft_hb_window_take(&w, 1000));
	CHECK(!ft_hb_window_take(&w, 1000));
	CHECK(ft_hb_window_take(&w, 1063));
	CHECK(ft_hb_window_take(&w, 1001));             /* late, not lost */
	CHECK(!ft_hb_window_take(&w, 1001));
	CHECK(!ft_hb_window_take(&w, 1000));
	CHECK(!ft_hb_window_take(&w, 999));             /* too old to know */
	CHECK(ft_hb_window_take(&w, UINT64_MAX));
	CHECK(!ft_hb_window_take(&w, 1063));
	CHECK(!ft_hb_window_take(&w, 0));
	CHECK(ft_hb_window_take(&w, UINT64_MAX - 63));
}

TEST(one_living_path_of_four_is_enough)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);
	struct ft_beat_config cfg = beat_config(1, false);      /* port 1: nobody listens */
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&cfg.path[1];
	struct ft_beat *b;

	cfg.nr_paths = 4;
	*six = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(port) };
	CHECK(inet_pton(AF_INET6, "2001:db8::1", &six->sin6_addr) == 1);        /* most likely no route */
	cfg.path[2] = (struct sockaddr_storage){ .ss_family = AF_UNIX };        /* not one at all */
	cfg.path[3] = v4_port(port);
	CHECK_OK(ft_beat_start(&cfg, &b));
	ft_echo_arm(e);
	EVENTUALLY(ft_beat_fresh(b));
	CHECK(!takes_over_within(e, 2 * SILENCE_MS));
	ft_beat_stop(b);
	ft_echo_stop(e);
}

TEST(ipv6_works_beside_ipv4)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);
	struct ft_beat_config cfg = beat_config(port, false);
	struct sockaddr_in6 *six = (struct sockaddr_in6 *)&cfg.path[0];
	struct ft_beat *b;
	int fd = socket(AF_INET6, SOCK_DGRAM, 0);

	*six = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback };
	if (fd < 0 || connect(fd, (struct sockaddr *)six, sizeof(*six)) < 0)
		ft_test_skip("no IPv6 on the loopback of this machine");
	CHECK_OK(ft_beat_start(&cfg, &b));
	EVENTUALLY(ft_beat_fresh(b));
	ft_beat_stop(b);
	ft_echo_stop(e);
}

TEST(the_echo_leaves_from_the_address_the_beat_came_to)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000007) }, from;
	struct ft_hb hb = { FT_HB_BEAT, FT_HB_REPLICATOR, 0, 1 };
	uint8_t key[32] = { 1, 2, 3 }, session[16] = { 9 }, buf[FT_HB_LEN];
	struct ft_hb_keys k;
	socklen_t len = sizeof(from);
	uint16_t port;
	struct ft_echo *e = echo_new(&port);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };

	to.sin_port = htons(port);
	CHECK_OK(ft_hb_keys(key, session, &k));
	CHECK_OK(ft_hb_seal(&k, &hb, buf));
	CHECK_EQ(sendto(fd, buf, sizeof(buf), 0, (struct sockaddr *)&to, sizeof(to)), sizeof(buf));
	CHECK_EQ(poll(&p, 1, 10000), 1);
	CHECK_EQ(recvfrom(fd, buf, sizeof(buf), 0, (struct sockaddr *)&from, &len), sizeof(buf));
	CHECK_EQ(from.sin_addr.s_addr, to.sin_addr.s_addr);
	close(fd);
	ft_echo_stop(e);
}

TEST(the_port_comes_from_the_configured_range)
{
	struct ft_echo_config cfg = { .silence_ms = SILENCE_MS };
	struct ft_echo *first, *e;
	uint16_t port, next;

	CHECK_OK(ft_echo_start(&cfg, &port, &first));
	cfg.port_min = cfg.port_max = port;
	CHECK_EQ(ft_echo_start(&cfg, &next, &e), -EADDRINUSE);
	CHECK(ft_test_logged("are all in use; widen heartbeat-ports"));
	cfg.port_max = (uint16_t)(port < 65000 ? port + 50 : port);
	cfg.port_min = (uint16_t)(port < 65000 ? port : port - 50);
	CHECK_OK(ft_echo_start(&cfg, &next, &e));
	CHECK(next != port && next >= cfg.port_min && next <= cfg.port_max);
	ft_echo_stop(e);
	ft_echo_stop(first);
}

/* --- takeover against echo --- */

TEST(after_the_decision_no_echo_and_no_lease)
{
	for (int round = 0; round < 6; round++) {
		struct pair p = pair_new(false);

		ft_echo_arm(p.echo);
		EVENTUALLY(ft_beat_fresh(p.beat));
		/* Beats come so rarely that the decision and a beat meet at the border. */
		p.wire->lose_percent = 97;
		while (!ft_echo_try_takeover(p.echo))
			;
		CHECK(!ft_beat_fresh(p.beat));
		p.wire->lose_percent = 0;
		for (int i = 0; i < 20; i++) {
			pause_ms(2);
			CHECK(!ft_beat_fresh(p.beat));
		}
		pair_free(&p);
	}
}

/* --- stalls: the other side is a process of its own, stopped and continued --- */

struct peer {
	pid_t pid;
	int from;               /* its reports; the port goes the way that is left */
};

/* Before any thread is started here. */
static struct peer peer_fork(void (*story)(int sock))
{
	struct peer p;
	int fd[2];

	CHECK_OK(socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
	p.pid = fork();
	CHECK(p.pid >= 0);
	if (p.pid == 0) {
		close(fd[0]);
		story(fd[1]);
		_exit(0);
	}
	close(fd[1]);
	p.from = fd[0];
	return p;
}

static void peer_stop(const struct peer *p)
{
	int status;

	CHECK_OK(kill(p->pid, SIGSTOP));
	CHECK_EQ(waitpid(p->pid, &status, WUNTRACED), p->pid);
	CHECK(WIFSTOPPED(status));
}

static void peer_continue(const struct peer *p)
{
	CHECK_OK(kill(p->pid, SIGCONT));
}

static void peer_kill(const struct peer *p)
{
	kill(p->pid, SIGKILL);
	waitpid(p->pid, NULL, 0);
	close(p->from);
}

static bool reported_within(const struct peer *p, unsigned ms)
{
	struct pollfd pfd = { .fd = p->from, .events = POLLIN };

	return poll(&pfd, 1, (int)ms) == 1;
}

static void backup_story(int report)
{
	uint16_t port;
	struct ft_echo *e = echo_new(&port);

	ft_echo_arm(e);
	CHECK_EQ(write(report, &port, sizeof(port)), sizeof(port));
	while (!ft_echo_try_takeover(e))
		pause_ms(10);
	CHECK_EQ(write(report, "T", 1), 1);
	for (;;)
		pause_ms(1000);
}

TEST(a_backup_that_was_stopped_does_not_take_over_from_the_living)
{
	struct peer backup = peer_fork(backup_story);
	struct ft_beat *b;
	uint16_t port;

	CHECK_EQ(read(backup.from, &port, sizeof(port)), sizeof(port));
	b = beat_to(port, false);
	EVENTUALLY(ft_beat_fresh(b));
	for (int i = 0; i < 2; i++) {
		peer_stop(&backup);
		pause_ms(3 * SILENCE_MS);
		CHECK(!ft_beat_fresh(b));               /* no echo: our output is shut meanwhile */
		peer_continue(&backup);
		CHECK(!reported_within(&backup, 100));
		EVENTUALLY(ft_beat_fresh(b));
	}
	ft_beat_stop(b);
	CHECK(reported_within(&backup, 10000));
	peer_kill(&backup);
}

TEST(a_backup_whose_whole_host_slept_gives_the_primary_time_to_be_heard)
{
	struct peer backup = peer_fork(backup_story);
	struct wire *w;
	struct ft_beat *b;
	uint16_t port;

	CHECK_EQ(read(backup.from, &port, sizeof(port)), sizeof(port));
	w = wire_new(port);
	b = beat_to(w->port, false);
	for (int i = 0; i < 2; i++) {
		EVENTUALLY(ft_beat_fresh(b));
		w->cut = true;                          /* its network card slept too: nothing waits in the socket */
		peer_stop(&backup);
		pause_ms(2 * SILENCE_MS);
		w->cut = false;
		peer_continue(&backup);
		CHECK(!reported_within(&backup, 100));
	}
	ft_beat_stop(b);
	wire_end(w);
	wire_free(w);
	peer_kill(&backup);
}

static void primary_story(int report)
{
	struct ft_beat *b;
	uint16_t port;

	CHECK_EQ(read(report, &port, sizeof(port)), sizeof(port));
	b = beat_to(port, false);
	for (;;) {
		uint8_t fresh = ft_beat_fresh(b);

		CHECK_EQ(write(report, &fresh, 1), 1);
		pause_ms(2);
	}
}

/* The newest report, once all older ones are read. */
static uint8_t newest(const struct peer *p)
{
	uint8_t buf[4096], last = 2;

	do {
		ssize_t n = read(p->from, buf, sizeof(buf));

		CHECK(n > 0);
		last = buf[n - 1];
	} while (reported_within(p, 0));
	return last;
}

TEST(a_primary_that_was_stopped_may_not_speak_when_it_wakes)
{
	struct peer primary = peer_fork(primary_story);
	uint16_t port;
	struct ft_echo *e = echo_new(&port);
	uint8_t buf[4096];

	CHECK_EQ(write(primary.from, &port, sizeof(port)), sizeof(port));
	ft_echo_arm(e);
	EVENTUALLY(newest(&primary) == 1);
	peer_stop(&primary);
	CHECK(takes_over_within(e, 10000));
	while (reported_within(&primary, 0))
		CHECK(read(primary.from, buf, sizeof(buf)) > 0);
	peer_continue(&primary);
	/* One report may have been on its way to the pipe when it was stopped. */
	CHECK(read(primary.from, buf, 1) == 1);
	for (int i = 0; i < 100; i++) {
		CHECK(read(primary.from, buf, 1) == 1);
		CHECK_EQ(buf[0], 0);
	}
	peer_kill(&primary);
	ft_echo_stop(e);
}
