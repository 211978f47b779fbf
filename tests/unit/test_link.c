// SPDX-License-Identifier: GPL-3.0-or-later
/* The link between two ends on loopback: order, bounds, lanes, keys, and every way a connection can end. */
#include "tests/link_pair.h"

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>

TEST(both_ends_come_up_and_records_arrive_in_order_both_ways)
{
	struct pair *p;
	uint8_t ack[16] = { 7 };

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	CHECK_STR(p->primary.peer, "beta");
	CHECK_STR(p->backup.peer, "alpha");
	CHECK_STR(p->guest, "vm1");
	for (uint64_t i = 0; i < 1000; i++) {
		CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK_NOWAIT, i, 8 + i * 7));
		if (i % 10 == 0)
			CHECK_OK(ft_link_send(p->backup.link, FT_LANE_URGENT, FT_REC_ACK, ack, sizeof(ack)));
	}
	RUN_UNTIL(p, p->backup.next == 1000 && p->primary.records == 100);
	CHECK(!p->primary.down && !p->backup.down);
	pair_free(p);
}

TEST(what_is_sent_before_the_link_is_up_goes_out_when_it_is)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_connect(p);
	CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, 0, 100));
	CHECK_OK(ft_link_send(p->primary.link, FT_LANE_URGENT, FT_REC_PING, &p->port, 8));
	RUN_UNTIL(p, p->backup.records == 2);
	CHECK_EQ(p->backup.urgent_at, 1);
	pair_free(p);
}

TEST(a_record_that_is_not_in_the_table_is_not_sent)
{
	struct pair *p;
	uint8_t body[16] = { 0 };

	make_ca("ca");
	p = pair_new();
	pair_connect(p);
	CHECK_EQ(ft_link_send(p->primary.link, FT_LANE_BULK, FT_REC_ACK, body, 16), -EMSGSIZE);
	CHECK_EQ(ft_link_send(p->primary.link, FT_LANE_BULK, FT_REC_PING, body, 9), -EMSGSIZE);
	CHECK_EQ(ft_link_send(p->primary.link, FT_LANE_BULK, 4711, body, 9), -EMSGSIZE);
	pair_free(p);
}

/* --- bulk --- */

struct sender {
	pthread_t thread;
	struct ft_link *link;
	size_t len;
	uint64_t count;
	_Atomic uint64_t sent;
	_Atomic int rc;
};

static void *sender_run(void *arg)
{
	struct sender *s = arg;
	int rc = 0;

	while (!rc && s->sent < s->count) {
		rc = send_counted(s->link, FT_LANE_BULK, s->sent, s->len);
		if (!rc)
			s->sent++;
	}
	s->rc = rc;
	return NULL;
}

static void sender_start(struct sender *s, struct ft_link *l, size_t len, uint64_t count)
{
	*s = (struct sender){ .link = l, .len = len, .count = count, .rc = 1 };
	CHECK_EQ(pthread_create(&s->thread, NULL, sender_run, s), 0);
}

static void sender_end(struct sender *s)
{
	CHECK_EQ(pthread_join(s->thread, NULL), 0);
}

/* Until nothing moves any more although nobody reads: everything that has a bound is full. */
static void wait_until_stuck(struct sender *s)
{
	uint64_t last = UINT64_MAX;

	while (last != s->sent) {
		last = s->sent;
		usleep(150000);
	}
}

TEST(a_slow_reader_stops_the_sender_and_memory_stays_bounded)
{
	struct ft_link_stats st;
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	p->cfg[0].send_bound = 2 << 20;
	pair_up(p);
	sender_start(&s, p->primary.link, 256 << 10, 400);      /* 100 MB */
	wait_until_stuck(&s);                                   /* the loop does not run: nobody takes records */
	/* Send queue 2 MiB, inbox 8 MiB and a record, windows, and what the kernel's socket buffers take. */
	CHECK(s.sent * s.len < (48 << 20));
	ft_link_get_stats(p->primary.link, &st);
	CHECK(st.queued <= 2 << 20);
	CHECK(st.queued > 1 << 20);
	RUN_UNTIL(p, p->backup.next == 400);
	sender_end(&s);
	CHECK_OK(s.rc);
	ft_link_get_stats(p->primary.link, &st);
	CHECK_EQ(st.queued, 0);
	CHECK_EQ(st.bytes_sent, 400ull * ((256 << 10) + 8));
	ft_link_get_stats(p->backup.link, &st);
	CHECK_EQ(st.bytes_received, 400ull * ((256 << 10) + 8));
	pair_free(p);
}

TEST(a_record_larger_than_the_bound_passes_alone)
{
	struct ft_link_stats st;
	uint8_t *state = calloc(1, 32 << 20);
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	p->cfg[0].send_bound = 64 << 10;
	pair_up(p);
	for (size_t i = 8; i < 32 << 20; i++)
		state[i] = (uint8_t)(i + 1);
	CHECK_OK(ft_link_send(p->primary.link, FT_LANE_BULK, FT_REC_STATE, state, 32 << 20));
	CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, 1, 1000) == -EAGAIN);
	RUN_UNTIL(p, p->backup.next == 2);
	ft_link_get_stats(p->primary.link, &st);
	free(state);
	pair_free(p);
}

TEST(the_loop_thread_never_blocks_it_exceeds_the_bound_by_one_record_only)
{
	uint64_t n = 0;
	struct pair *p;
	int rc;

	make_ca("ca");
	p = pair_new();
	p->cfg[0].send_bound = 100 << 10;
	pair_connect(p);                                        /* nothing leaves before the loop has run */
	while (!(rc = send_counted(p->primary.link, FT_LANE_BULK_NOWAIT, n, 60 << 10)))
		n++;
	CHECK_EQ(rc, -EAGAIN);
	CHECK_EQ(n, 2);
	RUN_UNTIL(p, p->backup.next == 2);
	pair_free(p);
}

TEST(urgent_records_overtake_queued_bulk_and_have_a_bound_of_their_own)
{
	uint8_t ping[8] = { 1 };
	uint64_t sent = 0;
	struct pair *p;
	int rc, pings;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	/* The loop stands still, so that inbox, sockets and queue fill up. */
	for (int quiet = 0; quiet < 20; ) {
		rc = send_counted(p->primary.link, FT_LANE_BULK_NOWAIT, sent, 200 << 10);
		sent += !rc;
		quiet = rc ? quiet + 1 : 0;
		if (rc)
			usleep(10000);
	}
	for (pings = 0; !(rc = ft_link_send(p->primary.link, FT_LANE_URGENT, FT_REC_PING, ping, 8)); pings++)
		;
	CHECK_EQ(rc, -EAGAIN);
	CHECK(pings >= (1 << 20) / 16 && pings < (1 << 20) / 16 + 1000);      /* a few still got into a socket */
	RUN_UNTIL(p, p->backup.next == sent);
	/* 8 MiB of the bulk were in the queue; all of that came after the first ping. */
	CHECK(p->backup.urgent_at > 0);
	CHECK(sent - p->backup.urgent_at > 30);
	pair_free(p);
}

TEST(a_blocked_sender_is_sent_home_when_its_side_closes)
{
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	sender_start(&s, p->primary.link, 256 << 10, 1000);
	wait_until_stuck(&s);
	ft_link_close(p->primary.link);
	sender_end(&s);
	CHECK_EQ(s.rc, -EPIPE);
	CHECK_EQ(ft_link_send(p->primary.link, FT_LANE_URGENT, FT_REC_PING, &s, 8), -EPIPE);
	pair_free(p);
}

TEST(a_blocked_sender_is_sent_home_when_the_peer_is_gone)
{
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	sender_start(&s, p->primary.link, 256 << 10, 1000);
	wait_until_stuck(&s);
	end_free(&p->backup);
	sender_end(&s);
	CHECK_EQ(s.rc, -EPIPE);
	RUN_UNTIL(p, p->primary.down);
	CHECK_EQ(p->primary.rc, -ECONNRESET);
	pair_free(p);
}

/* --- keys --- */

TEST(both_ends_export_the_same_secret_and_each_session_another_one)
{
	uint8_t key[2][32], second[32];
	struct sockaddr_storage reached;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_connect(p);
	CHECK_EQ(ft_link_export(p->primary.link, key[0]), -ENOTCONN);
	CHECK_EQ(ft_link_address(p->primary.link, &reached), -ENOTCONN);
	RUN_UNTIL(p, p->primary.up && p->backup.up);
	CHECK_OK(ft_link_export(p->primary.link, key[0]));
	CHECK_OK(ft_link_address(p->primary.link, &reached));
	CHECK_EQ(((struct sockaddr_in *)&reached)->sin_addr.s_addr, htonl(INADDR_LOOPBACK));
	CHECK_OK(ft_link_export(p->backup.link, key[1]));
	CHECK(!memcmp(key[0], key[1], 32));
	pair_free(p);
	p = pair_new();
	pair_up(p);
	CHECK_OK(ft_link_export(p->primary.link, second));
	CHECK(memcmp(key[0], second, 32));
	pair_free(p);
}

TEST(keys_are_renewed_by_volume_while_bulk_flows_in_both_directions)
{
	struct ft_link_stats st;
	uint8_t ack[16] = { 0 };
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	p->cfg[0].rekey_bytes = p->cfg[1].rekey_bytes = 100 << 10;
	pair_up(p);
	sender_start(&s, p->primary.link, 50 << 10, 400);
	while (p->backup.next < 400) {
		for (int i = 0; i < 50; i++)
			CHECK_OK(ft_link_send(p->backup.link, FT_LANE_BULK_NOWAIT, FT_REC_ACK, ack, sizeof(ack)));
		ev_run(p->loop, EVRUN_ONCE);
	}
	sender_end(&s);
	CHECK(!p->primary.down && !p->backup.down);
	ft_link_get_stats(p->primary.link, &st);
	CHECK(st.key_updates > 100);
	pair_free(p);
}

TEST(keys_are_renewed_by_age_on_an_idle_link)
{
	struct ft_link_stats st = { 0 };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	p->cfg[1].rekey_s = 1;                  /* only the backup's side wants it; it asks the primary too */
	pair_up(p);
	RUN_UNTIL(p, (ft_link_get_stats(p->primary.link, &st), st.key_updates >= 2));
	CHECK(!p->primary.down && !p->backup.down);
	pair_free(p);
}

/* --- ends --- */

TEST(the_last_word_arrives_before_the_end_also_from_a_side_that_is_being_flooded)
{
	uint8_t error[4] = { FT_REASON_GUEST_ENDED };
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	sender_start(&s, p->primary.link, 200 << 10, 100000);
	wait_until_stuck(&s);                   /* the backup's inbox is full: it reads no more */
	CHECK_OK(ft_link_send(p->backup.link, FT_LANE_URGENT, FT_REC_ERROR, error, sizeof(error)));
	ft_link_finish(p->backup.link);
	CHECK_EQ(ft_link_send(p->backup.link, FT_LANE_URGENT, FT_REC_ERROR, error, sizeof(error)), -EPIPE);
	RUN_UNTIL(p, p->primary.down && p->backup.down);
	sender_end(&s);
	CHECK_EQ(s.rc, -EPIPE);
	CHECK_EQ(p->primary.last_type, FT_REC_ERROR);
	CHECK_EQ(p->primary.rc, -ECONNRESET);
	CHECK(strstr(p->primary.why, "beta at 127.0.0.1") && strstr(p->primary.why, "closed the connection"));
	CHECK_EQ(p->backup.rc, 0);
	pair_free(p);
}

TEST(a_peer_that_takes_nothing_cannot_delay_the_end_for_ever)
{
	struct sender s;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	sender_start(&s, p->primary.link, 256 << 10, 1000);
	wait_until_stuck(&s);
	ft_link_finish(p->primary.link);
	sender_end(&s);
	usleep(3500000);                        /* the loop stands still, so the backup takes nothing */
	RUN_UNTIL(p, p->primary.down);
	CHECK_EQ(p->primary.rc, -ETIMEDOUT);
	pair_free(p);
}

TEST(a_killed_peer_is_noticed_at_once)
{
	struct pair *p;
	int status;
	pid_t pid;

	make_ca("ca");
	p = pair_new();
	fflush(stdout);
	pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		struct end me = { 0 };
		struct ev_loop *loop = ev_loop_new(EVFLAG_AUTO);

		p->cfg[0].ctx = &me;
		CHECK_OK(ft_link_connect(loop, &p->cfg[0], "127.0.0.1", p->port, &me.link));
		for (;;)
			ev_run(loop, 0);
	}
	RUN_UNTIL(p, p->backup.up);
	CHECK_EQ(kill(pid, SIGKILL), 0);
	RUN_UNTIL(p, p->backup.down);
	CHECK_EQ(p->backup.rc, -ECONNRESET);
	CHECK(strstr(p->backup.why, "without a goodbye"));
	CHECK(waitpid(pid, &status, 0) == pid);
	pair_free(p);
}

static void loopback_up(bool up)
{
	struct ifreq ifr = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	CHECK(fd >= 0 && ioctl(fd, SIOCGIFFLAGS, &ifr) == 0);
	ifr.ifr_flags = (short)(up ? ifr.ifr_flags | IFF_UP : ifr.ifr_flags & ~IFF_UP);
	CHECK_EQ(ioctl(fd, SIOCSIFFLAGS, &ifr), 0);
	close(fd);
}

TEST(a_silent_network_is_noticed_by_both_ends_without_any_heartbeat)
{
	struct pair *p;

	if (unshare(CLONE_NEWNET) < 0)
		ft_test_skip("needs root for a network namespace of its own: %s", strerror(errno));
	loopback_up(true);
	make_ca("ca");
	p = pair_new();
	p->cfg[0].dead_after_ms = p->cfg[1].dead_after_ms = 1500;
	pair_up(p);
	usleep(300000);                         /* TCP's own acknowledgements are through, too */
	loopback_up(false);
	CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, 0, 1000)); /* the backup has nothing to send: it must probe */
	RUN_UNTIL(p, p->primary.down && p->backup.down);
	CHECK(p->primary.rc == -ETIMEDOUT || p->primary.rc == -EHOSTUNREACH);
	CHECK(p->backup.rc == -ETIMEDOUT || p->backup.rc == -EHOSTUNREACH);
	pair_free(p);
}

TEST(a_link_can_be_freed_inside_each_of_its_callbacks)
{
	struct pair *p;

	make_ca("ca");
	for (int i = 0; i < 3; i++) {
		p = pair_new();
		p->backup.free_in_up = i == 0;
		p->backup.free_in_record = i == 1;
		p->backup.free_in_down = i == 2;
		pair_connect(p);
		RUN_UNTIL(p, p->backup.up);
		for (uint64_t k = 0; i == 1 && k < 10; k++)
			CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, k, 1000));
		if (i == 2) {
			RUN_UNTIL(p, p->primary.up);
			end_free(&p->primary);
			RUN_UNTIL(p, p->backup.down);
		} else {
			RUN_UNTIL(p, p->primary.down);
		}
		CHECK(!p->backup.link);
		pair_free(p);
	}
}

TEST(a_closed_link_calls_nobody)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	for (uint64_t k = 0; k < 10; k++)
		CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, k, 1000));
	usleep(200000);                         /* they wait in the inbox */
	ft_link_close(p->backup.link);
	RUN_UNTIL(p, p->primary.down);
	for (int i = 0; i < 5; i++)
		ev_run(p->loop, EVRUN_ONCE);
	CHECK_EQ(p->backup.records, 0);
	CHECK(!p->backup.down);
	pair_free(p);
}

TEST(a_link_can_be_freed_at_any_time)
{
	unsigned seed = 1;
	struct pair *p;

	make_ca("ca");
	for (int i = 0; i < 50; i++) {
		int turns = rand_r(&seed) % 12;
		struct sender s;
		bool sending = i % 3 == 0;

		p = pair_new();
		p->cfg[0].send_bound = 64 << 10;
		pair_connect(p);
		if (sending)
			sender_start(&s, p->primary.link, 20 << 10, 100);
		while (turns--)
			ev_run(p->loop, EVRUN_ONCE);
		if (i & 1)
			end_free(&p->backup);
		usleep((unsigned)rand_r(&seed) % 3000);
		if (sending) {
			ft_link_close(p->primary.link);
			sender_end(&s);
		}
		pair_free(p);
	}
}

/* --- what is not a link --- */

static void check_down(struct pair *p, struct end *e, int rc, const char *part)
{
	RUN_UNTIL(p, e->down);
	CHECK_EQ(e->rc, rc);
	if (!strstr(e->why, part))
		ft_test_fail(__FILE__, __LINE__, "\"%s\" does not say \"%s\"", e->why, part);
	CHECK(!e->up);
}

TEST(nobody_listens)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	ev_io_stop(p->loop, &p->listener);
	close(p->listener.fd);
	pair_connect(p);
	check_down(p, &p->primary, -ECONNREFUSED, "start ftd");
	p->listener.fd = listen_on_loopback(&p->port);
	pair_free(p);
}

TEST(no_route_and_no_such_name)
{
	struct pair *p;

	make_ca("ca");
	if (unshare(CLONE_NEWNET) < 0)
		ft_test_skip("needs root for a network namespace of its own: %s", strerror(errno));
	loopback_up(true);
	p = pair_new();
	CHECK_OK(ft_link_connect(p->loop, &p->cfg[0], "192.0.2.1", p->port, &p->primary.link));
	check_down(p, &p->primary, -EHOSTUNREACH, "beta at 192.0.2.1:");
	end_free(&p->primary);
	p->primary = (struct end){ 0 };
	CHECK_OK(ft_link_connect(p->loop, &p->cfg[0], "no-such-host.invalid", p->port, &p->primary.link));
	check_down(p, &p->primary, -EHOSTUNREACH, "cannot resolve no-such-host.invalid (beta)");
	pair_free(p);
}

/* A listener whose backlog is full answers no SYN: what a firewall that drops looks like. */
TEST(nobody_answers)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fill[4];
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	ev_io_stop(p->loop, &p->listener);
	CHECK_EQ(listen(p->listener.fd, 0), 0);
	sa.sin_port = htons(p->port);
	for (size_t i = 0; i < FT_ARRAY_LEN(fill); i++) {
		fill[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		connect(fill[i], (struct sockaddr *)&sa, sizeof(sa));
	}
	p->cfg[0].connect_timeout_ms = 300;
	pair_connect(p);
	check_down(p, &p->primary, -ETIMEDOUT, "does not answer - check that it is up");
	for (size_t i = 0; i < FT_ARRAY_LEN(fill); i++)
		close(fill[i]);
	pair_free(p);
}

TEST(a_listener_that_says_nothing)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	ev_io_stop(p->loop, &p->listener);
	p->cfg[0].connect_timeout_ms = 300;
	pair_connect(p);
	check_down(p, &p->primary, -ETIMEDOUT, "takes the connection but does not answer");
	pair_free(p);
}

/* @bytes come to an accepting link over a plain connection; it stays open unless @close_it. */
static void plain_client(struct pair *p, const char *bytes, size_t len, bool close_it)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(p->port) };
	int fd = socket(AF_INET, SOCK_STREAM, 0), conn;

	ev_io_stop(p->loop, &p->listener);
	CHECK_EQ(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	conn = accept4(p->listener.fd, NULL, NULL, SOCK_CLOEXEC);
	CHECK_EQ(send(fd, bytes, len, 0), (ssize_t)len);
	CHECK_OK(ft_link_accept(p->loop, &p->cfg[1], conn, &p->backup.link));
	if (close_it)
		close(fd);
}

TEST(a_stranger_without_tls)
{
	static const char hello_tls[] = "\x16\x03\x01\x40\x01garbage that is no handshake";
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	plain_client(p, "GET / HTTP/1.0\r\n\r\n", 18, false);
	check_down(p, &p->backup, -EPROTONOSUPPORT, "does not speak TLS - only ft-protect may connect");
	pair_free(p);
	p = pair_new();
	plain_client(p, "\0\0\0\0\0\0\0\0", 8, true);
	check_down(p, &p->backup, -EPROTONOSUPPORT, "does not speak TLS");
	pair_free(p);
	p = pair_new();
	plain_client(p, hello_tls, sizeof(hello_tls) - 1, true);
	RUN_UNTIL(p, p->backup.down);
	CHECK(!p->backup.up);
	pair_free(p);
	p = pair_new();
	p->cfg[1].connect_timeout_ms = 300;
	plain_client(p, "\x16", 1, false);
	check_down(p, &p->backup, -ETIMEDOUT, "began no TLS handshake");
	pair_free(p);
}

/* --- the preamble --- */

TEST(the_preamble_is_taken_to_the_byte_however_it_arrives)
{
	struct ft_preamble pre = { .have = 0 };
	uint8_t buf[FT_PREAMBLE_MAX + 4];
	char guest[FT_NAME_MAX + 1], rest[8];
	size_t len = ft_preamble_pack("vm-1.prod", buf);
	int sv[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, sv), 0);
	for (size_t i = 0; i < len; i++) {
		CHECK_EQ(ft_preamble_read(&pre, sv[0], guest), -EAGAIN);
		CHECK_EQ(write(sv[1], buf + i, 1), 1);
	}
	CHECK_EQ(write(sv[1], "TLS", 3), 3);
	CHECK_OK(ft_preamble_read(&pre, sv[0], guest));
	CHECK_STR(guest, "vm-1.prod");
	CHECK_EQ(read(sv[0], rest, sizeof(rest)), 3);   /* TLS's bytes are still there */
	pre = (struct ft_preamble){ .have = 0 };
	CHECK_EQ(write(sv[1], "FTr1\x05vm", 7), 7);
	close(sv[1]);
	CHECK_EQ(ft_preamble_read(&pre, sv[0], guest), -ECONNRESET);
	close(sv[0]);
}

TEST(a_preamble_that_names_no_guest_is_refused_at_the_first_wrong_byte)
{
	static const struct { const char *bytes; size_t len; } bad[] = {
		{ "S", 1 }, { "FTr2", 4 }, { "FTr1\0", 5 }, { "FTr1\x40", 5 }, { "FTr1\x02..", 7 }, { "FTr1\x03v\0m", 8 },
		{ "FTr1\x03v/m", 8 },
	};
	char guest[FT_NAME_MAX + 1];

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		CHECK_EQ(ft_preamble_parse((const uint8_t *)bad[i].bytes, bad[i].len, guest), -EPROTO);
}
