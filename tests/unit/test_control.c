// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/control.h"
#include "tests/test.h"

#include <ev.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct service {
	struct ev_loop *loop;
	struct ft_control *control;
	struct ft_control_req *later;           /* of "drill" */
	ev_timer limit;
	unsigned requests;
	bool end_in_request;
	char path[100];
};

static char big[3 << 20];

static void on_request(void *ctx, struct ft_control_req *req, const char *cmd, const json_t *args)
{
	struct service *s = ctx;

	s->requests++;
	if (!strcmp(cmd, "status"))
		ft_control_reply(req, json_pack("{s:s, s:O}", "role", "primary", "args", args));
	else if (!strcmp(cmd, "drill"))
		s->later = req;
	else if (!strcmp(cmd, "big"))
		ft_control_reply(req, json_pack("{s:s%}", "text", memset(big, 'x', sizeof(big)), sizeof(big)));
	else
		ft_control_fail(req, "no command '%s'", cmd);
	if (s->end_in_request) {
		ft_control_free(s->control);
		s->control = NULL;
	}
}

static void too_long(struct ev_loop *loop, ev_timer *w, int revents)
{
	(void)loop, (void)w, (void)revents;
	CHECK(!"the loop runs in time");
}

static void service_start(struct service *s)
{
	const struct ft_control_ops ops = { .request = on_request, .ctx = s };

	*s = (struct service){ .loop = ev_loop_new(EVFLAG_AUTO) };
	snprintf(s->path, sizeof(s->path), "%s/run/vm1/primary.sock", ft_test_dir());
	CHECK_OK(ft_control_new(s->loop, s->path, &ops, &s->control));
	ev_timer_init(&s->limit, too_long, 30, 0);
	ev_timer_start(s->loop, &s->limit);
}

static void service_stop(struct service *s)
{
	ft_control_free(s->control);
	ev_timer_stop(s->loop, &s->limit);
	ev_loop_destroy(s->loop);
}

/* A client on a thread of its own, as ft-ctl is a process of its own. */
struct call {
	pthread_t thread;
	const char *path;
	json_t *request, *answer;
	unsigned timeout_ms;
	int rc;
	struct ev_loop *loop;
	ev_async done;
	bool ended;
};

static void *call_run(void *arg)
{
	struct call *c = arg;

	c->rc = ft_control_call(c->path, c->request, c->timeout_ms, &c->answer);
	ev_async_send(c->loop, &c->done);
	return NULL;
}

static void call_done(struct ev_loop *loop, ev_async *w, int revents)
{
	(void)loop, (void)revents;
	((struct call *)w->data)->ended = true;
}

static void call_start(struct call *c, struct service *s, const char *cmd, unsigned timeout_ms)
{
	*c = (struct call){ .path = s->path, .request = json_pack("{s:s}", "cmd", cmd), .timeout_ms = timeout_ms, .loop = s->loop };
	ev_async_init(&c->done, call_done);
	c->done.data = c;
	ev_async_start(s->loop, &c->done);
	CHECK_EQ(pthread_create(&c->thread, NULL, call_run, c), 0);
}

static void call_end(struct call *c)
{
	while (!c->ended)
		ev_run(c->loop, EVRUN_ONCE);
	CHECK_EQ(pthread_join(c->thread, NULL), 0);
	ev_async_stop(c->loop, &c->done);
}

static void call_free(struct call *c)
{
	json_decref(c->request);
	json_decref(c->answer);
}

static const char *text(const struct call *c, const char *key)
{
	const char *s = json_string_value(json_object_get(c->answer, key));

	return s ? s : "(none)";
}

TEST(a_request_gets_one_answer_with_ok_in_it)
{
	struct service s;
	struct call c;

	service_start(&s);
	call_start(&c, &s, "status", 10000);
	call_end(&c);
	CHECK_OK(c.rc);
	CHECK(json_is_true(json_object_get(c.answer, "ok")));
	CHECK_STR(text(&c, "role"), "primary");
	call_free(&c);
	call_start(&c, &s, "fly", 10000);
	call_end(&c);
	CHECK_OK(c.rc);
	CHECK(json_is_false(json_object_get(c.answer, "ok")));
	CHECK_STR(text(&c, "error"), "no command 'fly'");
	call_free(&c);
	service_stop(&s);
}

TEST(an_answer_may_come_later_and_others_are_served_meanwhile)
{
	struct service s;
	struct call slow, quick;

	service_start(&s);
	call_start(&slow, &s, "drill", 20000);
	while (!s.later)
		ev_run(s.loop, EVRUN_ONCE);
	call_start(&quick, &s, "status", 10000);
	call_end(&quick);
	CHECK_OK(quick.rc);
	call_free(&quick);
	CHECK(!slow.ended);
	ft_control_reply(s.later, json_pack("{s:i}", "load_ms", 14));
	call_end(&slow);
	CHECK_OK(slow.rc);
	CHECK_EQ(json_integer_value(json_object_get(slow.answer, "load_ms")), 14);
	call_free(&slow);
	service_stop(&s);
}

TEST(an_answer_of_megabytes_arrives_whole)
{
	struct service s;
	struct call c;

	service_start(&s);
	call_start(&c, &s, "big", 20000);
	call_end(&c);
	CHECK_OK(c.rc);
	CHECK_EQ(strlen(text(&c, "text")), 3 << 20);
	call_free(&c);
	service_stop(&s);
}

TEST(a_client_that_waited_too_long_goes_and_its_late_answer_is_only_freed)
{
	struct service s;
	struct call c;

	service_start(&s);
	call_start(&c, &s, "drill", 200);
	call_end(&c);
	CHECK_EQ(c.rc, -ETIMEDOUT);
	CHECK(s.later);
	ft_control_reply(s.later, json_pack("{s:i}", "load_ms", 14));
	call_free(&c);
	call_start(&c, &s, "status", 10000);
	call_end(&c);
	CHECK_OK(c.rc);
	call_free(&c);
	service_stop(&s);
}

TEST(who_waits_when_the_service_ends_gets_an_error)
{
	struct service s;
	struct call c;

	service_start(&s);
	call_start(&c, &s, "drill", 20000);
	while (!s.later)
		ev_run(s.loop, EVRUN_ONCE);
	ft_control_free(s.control);
	s.control = NULL;
	call_end(&c);
	CHECK_OK(c.rc);
	CHECK(strstr(text(&c, "error"), "ended"));
	ft_control_reply(s.later, json_object());
	call_free(&c);
	service_stop(&s);
	CHECK(access(s.path, F_OK) < 0);
}

TEST(an_answer_given_just_before_the_end_still_arrives)
{
	struct service s;
	struct call c;

	service_start(&s);
	s.end_in_request = true;
	call_start(&c, &s, "status", 20000);
	call_end(&c);
	CHECK_OK(c.rc);
	CHECK_STR(text(&c, "role"), "primary");
	call_free(&c);
	service_stop(&s);
}

TEST(only_the_owner_can_reach_the_socket)
{
	struct service s;
	struct stat st;

	umask(0);
	service_start(&s);
	CHECK_EQ(stat(s.path, &st), 0);
	CHECK_EQ(st.st_mode & 07777, 0600);
	service_stop(&s);
}

TEST(a_second_service_is_refused_and_what_a_dead_one_left_is_replaced)
{
	const struct ft_control_ops ops = { .request = on_request };
	struct ft_control *second;
	struct service s;
	int status;
	pid_t pid;

	service_start(&s);
	pid = fork();
	if (pid == 0) {
		struct ft_control *c;

		_exit(ft_control_new(s.loop, s.path, &ops, &c) == -EADDRINUSE ? 0 : 1);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
	CHECK(ft_test_logged("another process serves it"));
	CHECK(access(s.path, F_OK) == 0);
	service_stop(&s);

	CHECK_EQ(mknod(s.path, S_IFREG | 0600, 0), 0);  /* as a crash would leave a socket */
	CHECK_OK(ft_control_new(ev_default_loop(0), s.path, &ops, &second));
	ft_control_free(second);
}

TEST(a_missing_service_and_an_unserved_socket_have_their_own_errors)
{
	json_t *request = json_pack("{s:s}", "cmd", "status"), *answer;
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s/dead.sock", ft_test_dir());
	CHECK_EQ(ft_control_call(sa.sun_path, request, 1000, &answer), -ENOENT);
	CHECK_EQ(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_EQ(ft_control_call(sa.sun_path, request, 1000, &answer), -ECONNREFUSED);
	CHECK_EQ(listen(fd, 4), 0);
	CHECK_EQ(ft_control_call(sa.sun_path, request, 100, &answer), -ETIMEDOUT);
	close(fd);
	json_decref(request);
}

/* A client that speaks by hand: what it sends, and the answer up to its newline or the end. */
static ssize_t speak(struct service *s, const char *bytes, size_t len, char *answer, size_t size)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	size_t sent = 0, have = 0;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", s->path);
	CHECK_EQ(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	for (;;) {
		ssize_t n = sent < len ? send(fd, bytes + sent, len - sent, MSG_NOSIGNAL) : 0;

		sent = n < 0 ? (errno == EAGAIN ? sent : len) : sent + (size_t)n;
		n = recv(fd, answer + have, size - 1 - have, 0);
		if (n == 0 || (n < 0 && errno != EAGAIN) || (have && answer[have - 1] == '\n'))
			break;
		have += n > 0 ? (size_t)n : 0;
		ev_run(s->loop, EVRUN_NOWAIT);
	}
	close(fd);
	answer[have] = 0;
	return (ssize_t)have;
}

TEST(nonsense_is_answered_in_one_line_and_an_endless_line_is_cut_off)
{
	static const char *const bad[] = { "hello\n", "[]\n", "{}\n", "{\"cmd\": 7}\n", "{\"cmd\":\"a\",\"cmd\":\"b\"}\n", "\n", "\"\xff\"\n" };
	char answer[1024], *endless = malloc(1 << 20);
	struct service s;

	service_start(&s);
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK(speak(&s, bad[i], strlen(bad[i]), answer, sizeof(answer)) > 0);
		CHECK(strstr(answer, "\"ok\":false") && strstr(answer, "JSON object"));
	}
	CHECK_EQ(s.requests, 0);
	memset(endless, '[', 1 << 20);
	CHECK_EQ(speak(&s, endless, 1 << 20, answer, sizeof(answer)), 0);
	free(endless);
	service_stop(&s);
}

TEST(several_lines_at_once_are_answered_one_after_the_other)
{
	static const char two[] = "{\"cmd\":\"a\"}\n{\"cmd\":\"b\"}\n";
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	char answer[1024];
	size_t have = 0;
	struct service s;

	service_start(&s);
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", s.path);
	CHECK_EQ(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	CHECK_EQ(send(fd, two, sizeof(two) - 1, 0), sizeof(two) - 1);
	CHECK_EQ(shutdown(fd, SHUT_WR), 0);
	for (ssize_t n = -1; n; ) {
		ev_run(s.loop, EVRUN_NOWAIT);
		n = recv(fd, answer + have, sizeof(answer) - 1 - have, 0);
		have += n > 0 ? (size_t)n : 0;
	}
	answer[have] = 0;
	CHECK_STR(answer, "{\"ok\":false,\"error\":\"no command 'a'\"}\n{\"ok\":false,\"error\":\"no command 'b'\"}\n");
	close(fd);
	service_stop(&s);
}
