// SPDX-License-Identifier: GPL-3.0-or-later
/* test_qmp.c - the QMP client against a scripted server: latency, late answers, floods, lies. */
#include "checkpoint/qemu.h"
#include "tests/test.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

static char path[108];

/* Fork a server that accepts one client and runs @script on it; ends with the test. */
static void serve(void (*script)(int fd))
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(path, sizeof(path), "%s/qmp", ft_test_dir());
	strcpy(a.sun_path, path);
	CHECK(!bind(listener, (struct sockaddr *)&a, sizeof(a)) && !listen(listener, 1));
	if (fork() == 0) {
		int fd = accept(listener, NULL, NULL);

		script(fd);
		_exit(0);
	}
	close(listener);
}

static void say(int fd, const char *text)
{
	if (ft_write_all(fd, text, strlen(text)))
		_exit(0);
}

/* The id of the next command, 0 at the end. *@name is the command. */
static long long next_command(int fd, char *name)
{
	char buf[4096];
	ssize_t n = recv(fd, buf, sizeof(buf) - 1, 0);
	json_t *msg;
	long long id;

	if (n <= 0)
		return 0;
	msg = json_loadb(buf, (size_t)n, 0, NULL);
	strcpy(name, json_string_value(json_object_get(msg, "execute")));
	id = json_integer_value(json_object_get(msg, "id"));
	json_decref(msg);
	return id;
}

static void answer(int fd, long long id, const char *value)
{
	char text[512];

	snprintf(text, sizeof(text), "{\"return\": %s, \"id\": %lld}\r\n", value, id);
	say(fd, text);
}

static long long greet(int fd, char *name)
{
	long long id;

	say(fd, GREETING);
	id = next_command(fd, name);
	answer(fd, id, "{}");
	return next_command(fd, name);
}

/* --- */

static void echoes(int fd)
{
	char name[64];

	for (long long id = greet(fd, name); id; id = next_command(fd, name)) {
		char value[80];

		snprintf(value, sizeof(value), "{\"was\": \"%s\"}", name);
		answer(fd, id, value);
	}
}

TEST(a_call_gets_its_answer)
{
	struct ft_qmp *q;
	json_t *ret;

	serve(echoes);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	for (int i = 0; i < 100; i++) {
		CHECK_OK(ft_qmp_call(q, "query-status", json_pack("{s:i}", "x", i), -1, 5000, &ret));
		CHECK_STR(json_string_value(json_object_get(ret, "was")), "query-status");
		json_decref(ret);
	}
	CHECK_OK(ft_qmp_call(q, "stop", NULL, -1, 5000, NULL));
	CHECK(!ft_qmp_event(q));
	ft_qmp_close(q);
}

static void says_no(int fd)
{
	char name[64], text[256];
	long long id = greet(fd, name);

	snprintf(text, sizeof(text), "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}, \"id\": %lld}\r\n", id);
	say(fd, text);
	next_command(fd, name);
}

TEST(an_error_of_qemu_is_told_in_its_words)
{
	struct ft_qmp *q;
	json_t *ret;

	serve(says_no);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_EQ(ft_qmp_call(q, "eject", NULL, -1, 5000, &ret), -EREMOTEIO);
	CHECK(!ret);
	CHECK_STR(ft_qmp_error(q), "no such thing");
	ft_qmp_close(q);
}

static void answers_late(int fd)
{
	char name[64];
	long long first = greet(fd, name), second = next_command(fd, name);

	answer(fd, first, "1");
	answer(fd, second, "2");
	next_command(fd, name);
}

TEST(a_late_answer_is_not_taken_for_the_next_one)
{
	struct ft_qmp *q;
	json_t *ret;

	serve(answers_late);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_EQ(ft_qmp_call(q, "first", NULL, -1, 20, &ret), -ETIMEDOUT);
	CHECK_OK(ft_qmp_call(q, "second", NULL, -1, 5000, &ret));
	CHECK_EQ(json_integer_value(ret), 2);
	json_decref(ret);
	ft_qmp_close(q);
}

static void tells_events_in_pieces(int fd)
{
	char name[64];
	long long id = greet(fd, name);

	say(fd, "{\"event\": \"STOP\", \"n\": 1}\r\n{\"event\":");
	usleep(20000);
	say(fd, " \"RESUME\"}\r");
	usleep(20000);
	say(fd, "\n");
	answer(fd, id, "{}");
	say(fd, "{\"event\": \"SHUTDOWN\"}\r\n");
	next_command(fd, name);
}

static void check_event(struct ft_qmp *q, const char *name)
{
	json_t *event = ft_qmp_event(q);

	CHECK(event);
	CHECK_STR(json_string_value(json_object_get(event, "event")), name);
	json_decref(event);
}

TEST(events_wait_in_order_whatever_the_pieces_they_come_in)
{
	struct ft_qmp *q;

	serve(tells_events_in_pieces);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_OK(ft_qmp_send(q, "stop", NULL, -1));
	CHECK_OK(ft_qmp_wait(q, 5000, NULL));
	check_event(q, "STOP");
	check_event(q, "RESUME");
	CHECK_EQ(ft_qmp_call(q, "unanswered", NULL, -1, 50, NULL), -EPIPE);
	check_event(q, "SHUTDOWN");
	CHECK(!ft_qmp_event(q));
	ft_qmp_close(q);
}

/* Reads what was said before the last byte, and what came then; plays QEMU's two answers. */
static void waits_for_the_last_byte(int fd)
{
	char name[64], text[256] = "";
	json_t *msg;

	greet(fd, name);                        /* "ready?" */
	say(fd, "{\"return\": {}, \"id\": 2}\r\n");
	if (recv(fd, text, sizeof(text) - 1, 0) <= 0 || json_loads(text, 0, NULL))
		_exit(1);                       /* armed: not whole yet */
	say(fd, "{\"event\": \"HALF\"}\r\n");
	if (recv(fd, text + strlen(text), 128, 0) <= 0)
		_exit(1);
	msg = json_loads(text, 0, NULL);
	if (json_object_get(msg, "disarm"))
		say(fd, "{\"error\": {\"desc\": \"QMP input member 'disarm' is unexpected\"}, \"id\": 3}\r\n");
	else if (!strcmp(json_string_value(json_object_get(msg, "execute")), "stop"))
		say(fd, "{\"return\": {}, \"id\": 3}\r\n");
	json_decref(msg);
	next_command(fd, name);
}

static struct ft_qmp *armed_qmp(void)
{
	struct ft_qmp *q;
	json_t *event;

	serve(waits_for_the_last_byte);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_OK(ft_qmp_call(q, "ready?", NULL, -1, 5000, NULL));
	CHECK_OK(ft_qmp_arm(q, "stop", NULL));
	CHECK(ft_qmp_armed(q));
	while (!(event = ft_qmp_event(q)))      /* the server has read the half */
		usleep(1000);
	json_decref(event);
	return q;
}

TEST(an_armed_command_runs_when_it_is_fired)
{
	struct ft_qmp *q = armed_qmp();

	CHECK_OK(ft_qmp_fire(q));
	CHECK(!ft_qmp_armed(q));
	CHECK_OK(ft_qmp_wait(q, 5000, NULL));
	ft_qmp_close(q);
}

TEST(a_disarmed_command_never_runs)
{
	struct ft_qmp *q = armed_qmp();

	CHECK_OK(ft_qmp_disarm(q, 5000));
	CHECK(!ft_qmp_armed(q));
	CHECK_OK(ft_qmp_disarm(q, 5000));
	ft_qmp_close(q);
}

static void answers_before_the_wait(int fd)
{
	char name[64];
	long long id = greet(fd, name);

	answer(fd, id, "7");
	say(fd, "{\"event\": \"AFTER\"}\r\n");
	next_command(fd, name);
}

TEST(looking_for_events_between_send_and_wait_loses_no_answer)
{
	struct ft_qmp *q;
	json_t *event, *ret;

	serve(answers_before_the_wait);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_OK(ft_qmp_send(q, "x", NULL, -1));
	while (!(event = ft_qmp_event(q)))
		;
	json_decref(event);
	CHECK_OK(ft_qmp_wait(q, 0, &ret));
	CHECK_EQ(json_integer_value(ret), 7);
	json_decref(ret);
	ft_qmp_close(q);
}

static void floods(int fd)
{
	char name[64], text[64];
	long long id = greet(fd, name);

	for (int i = 0; i < 3000; i++) {
		snprintf(text, sizeof(text), "{\"event\": \"E\", \"n\": %d}\r\n", i);
		say(fd, text);
	}
	answer(fd, id, "{}");
	next_command(fd, name);
}

TEST(a_flood_of_events_is_bounded_and_said)
{
	struct ft_qmp *q;
	json_t *event;
	int n = 0;

	serve(floods);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_OK(ft_qmp_call(q, "x", NULL, -1, 5000, NULL));
	CHECK(ft_test_logged("events nobody looked at"));
	while ((event = ft_qmp_event(q))) {
		CHECK_EQ(json_integer_value(json_object_get(event, "n")), 3000 - 1024 + n++);
		json_decref(event);
	}
	CHECK_EQ(n, 1024);
	ft_qmp_close(q);
}

static void talks_nonsense(int fd)
{
	say(fd, "SSH-2.0-OpenSSH\r\n");
	pause();
}

static void never_ends_its_line(int fd)
{
	char block[65536];

	memset(block, ' ', sizeof(block));
	for (;;)
		if (ft_write_all(fd, block, sizeof(block)))
			_exit(0);
}

static void hangs(int fd)
{
	pause();
}

static void closes(int fd)
{
	close(fd);
}

TEST(what_is_no_qmp_is_refused_by_name_and_in_time)
{
	static void (*const scripts[])(int fd) = { talks_nonsense, never_ends_its_line, hangs, closes };
	static const int expected[] = { -EPROTO, -EPROTO, -ETIMEDOUT, -EPIPE };
	static const char *const said[] = { "not QMP", "more than", "another client holds", "closed" };
	struct ft_qmp *q;

	for (unsigned i = 0; i < FT_ARRAY_LEN(scripts); i++) {
		serve(scripts[i]);
		CHECK_EQ(ft_qmp_open(path, i == 2 ? 100 : 20000, &q), expected[i]);
		CHECK(!q);
		CHECK(ft_test_logged(said[i]));
		CHECK(ft_test_logged(path));
		unlink(path);
	}
	CHECK_EQ(ft_qmp_open(path, 100, &q), -ENOENT);
	ft_qmp_close(NULL);
}

static void receives_an_fd(int fd)
{
	char name[64], buf[4096], control[64];
	struct iovec iov = { buf, sizeof(buf) };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	int passed;

	say(fd, GREETING);
	answer(fd, next_command(fd, name), "{}");
	recvmsg(fd, &m, 0);
	memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	say(passed, "hello");
	answer(fd, 2, "{}");
	next_command(fd, name);
}

TEST(a_file_descriptor_travels_along)
{
	struct ft_qmp *q;
	char buf[8] = "";
	int p[2];

	CHECK_OK(pipe(p));
	serve(receives_an_fd);
	CHECK_OK(ft_qmp_open(path, 5000, &q));
	CHECK_OK(ft_qmp_call(q, "getfd", json_pack("{s:s}", "fdname", "f"), p[1], 5000, NULL));
	CHECK_EQ(read(p[0], buf, 5), 5);
	CHECK_STR(buf, "hello");
	ft_qmp_close(q);
}
