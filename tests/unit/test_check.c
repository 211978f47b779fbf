// SPDX-License-Identifier: GPL-3.0-or-later
/* test_check.c - what cannot be found out about a guest counts against it. The QEMU here is a fake that answers as told. */
#include "ft/hv.h"
#include "tests/test.h"

#include <jansson.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct ft_attach at = { .guest = "vm1", .memory = 64 << 20 };
static char obstacles[8192];

static void keep(void *ctx, const char *line)
{
	(void)ctx;
	printf("# obstacle: %s\n", line);
	snprintf(obstacles + strlen(obstacles), sizeof(obstacles) - strlen(obstacles), "%s\n", line);
}

static bool told(const char *part)
{
	return strstr(obstacles, part) != NULL;
}

/* Greets, agrees to the handshake, and says @answer to anything else. */
static void serve(int listener, const char *answer)
{
	int fd = accept(listener, NULL, NULL);
	char command[4096];
	ssize_t len;

	dprintf(fd, "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n");
	while ((len = recv(fd, command, sizeof(command), 0)) > 0) {     /* one at a time, and whole: it waits for answers */
		json_t *msg = json_loadb(command, (size_t)len, 0, NULL);
		const char *name = json_string_value(json_object_get(msg, "execute"));

		CHECK(name);
		dprintf(fd, "{%s, \"id\": %lld}\r\n", strcmp(name, "qmp_capabilities") ? answer : "\"return\": {}",
			(long long)json_integer_value(json_object_get(msg, "id")));
		json_decref(msg);
	}
	_exit(0);
}

static void check_qemu(const char *answer)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	CHECK(snprintf(a.sun_path, sizeof(a.sun_path), "%s/qmp", ft_test_dir()) < (int)sizeof(a.sun_path));
	unlink(a.sun_path);
	CHECK(!bind(fd, (struct sockaddr *)&a, sizeof(a)) && !listen(fd, 1));
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(fd, answer);
	}
	close(fd);
	strcpy(at.qmp, a.sun_path);
	CHECK(snprintf(at.ram, sizeof(at.ram), "%s/vm1.ram", ft_test_dir()) < (int)sizeof(at.ram));
	CHECK_OK(ft_write_file(at.ram, "", 0, 0600));
	CHECK_OK(ft_attach_fill_pid(&at, pid));
	CHECK(ft_qemu_check(&at, keep, NULL) > 0);
}

static const char *const asked[] = {
	"query-commands", "query-migrate-capabilities", "query-status", "query-migrate:", "query-memdev", "query-balloon",
	"qom-list", "query-block", "query-chardev", "query-display-options", "query-vnc", "query-spice",
};

static void check_all_are_obstacles(void)
{
	for (size_t i = 0; i < FT_ARRAY_LEN(asked); i++)
		if (!told(asked[i]))
			ft_test_fail(__FILE__, __LINE__, "no answer to %s is no obstacle", asked[i]);
}

TEST(a_qemu_that_only_says_error_is_not_protectable)
{
	check_qemu("\"error\": {\"class\": \"GenericError\", \"desc\": \"not today\"}");
	check_all_are_obstacles();
	CHECK(told("human-monitor-command: not today"));
}

TEST(an_answer_of_another_kind_is_none)
{
	check_qemu("\"return\": 7");
	check_all_are_obstacles();
	CHECK(told("human-monitor-command"));
}

TEST(a_list_that_is_not_understood_is_no_empty_list)
{
	check_qemu("\"return\": \"nonsense\\r\\nmore nonsense\\r\\n\"");
	CHECK(told("list of RAM blocks ('info ramblock') is not understood"));
}

TEST(what_qemu_does_not_have_is_no_obstacle)
{
	check_qemu("\"error\": {\"class\": \"DeviceNotActive\", \"desc\": \"none\"}");
	CHECK(!told("query-balloon"));
	CHECK(told("query-vnc"));
	obstacles[0] = 0;
	check_qemu("\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"none\"}");
	CHECK(told("query-balloon"));
	CHECK(!told("query-vnc"));
	CHECK(told("query-block"));
}
