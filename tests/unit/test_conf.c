// SPDX-License-Identifier: GPL-3.0-or-later
/* test_conf.c - ft.conf: what it says is what we get, and what it must not say is refused by line. */
#include "ft/conf.h"
#include "tests/test.h"

#include <unistd.h>

static struct ft_conf c;

static int load(const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/ft.conf", ft_test_dir());
	CHECK_OK(ft_write_file(path, text, strlen(text), 0600));
	return ft_conf_load(path, &c);
}

TEST(an_empty_file_means_the_defaults)
{
	CHECK_OK(load(""));
	CHECK_EQ(c.port, 7800);
	CHECK_EQ(c.policy.silence_ms, 300);
	CHECK_EQ(c.policy.grace_ms, 10000);
	CHECK_EQ(c.policy.on_peer_loss, FT_LOSS_FREEZE);
	CHECK(c.policy.shadow);
	CHECK_STR(c.run_dir, "/run/ft");
	CHECK(ft_name_ok(c.host));
}

TEST(every_key_arrives)
{
	CHECK_OK(load("[ft]\nhost = alpha\nguests-dir = /a\nstate-dir = /b\nrun-dir = /c\nshm-dir = /d\nqemu = q\n"
		      "libexec-dir = /e\nlisten = [2001:db8::1]\nport = 1234\nheartbeat-ports = 7801-7864\n"
		      "[tls]\nca = /ca\ncert = /cert\nkey = /key\n"
		      "[policy]\ninterval-max-ms = 100\ninterval-fixed-ms = 25\ndirty-max-mb = 8\npause-budget-percent = 20\n"
		      "in-flight-max = 2\non-peer-loss = continue\nshadow = no\nstaging-mb = 64\nencode-threads = 3\n"
		      "silence-ms = 500\nheartbeat-ms = 50\nhook = /hook\ntracker = compare\n"
		      "[peer beta]\naddress = beta.example\nheartbeat-addresses = 192.0.2.9  2001:db8::9\nguests = vm1 vm2\n"
		      "[peer gamma]\nguests = *\n"));
	CHECK_STR(c.host, "alpha");
	CHECK_STR(c.guests_dir, "/a");
	CHECK_STR(c.state_dir, "/b");
	CHECK_STR(c.run_dir, "/c");
	CHECK_STR(c.shm_dir, "/d");
	CHECK_STR(c.qemu, "q");
	CHECK_STR(c.libexec_dir, "/e");
	CHECK_STR(c.listen, "2001:db8::1");
	CHECK_EQ(c.port, 1234);
	CHECK_EQ(c.heartbeat_port_min, 7801);
	CHECK_EQ(c.heartbeat_port_max, 7864);
	CHECK_STR(c.tls_ca, "/ca");
	CHECK_STR(c.tls_cert, "/cert");
	CHECK_STR(c.tls_key, "/key");
	CHECK_EQ(c.policy.interval_max_ms, 100);
	CHECK_EQ(c.policy.interval_fixed_ms, 25);
	CHECK_EQ(c.policy.dirty_max_mb, 8);
	CHECK_EQ(c.policy.pause_budget_percent, 20);
	CHECK_EQ(c.policy.in_flight_max, 2);
	CHECK_EQ(c.policy.on_peer_loss, FT_LOSS_CONTINUE);
	CHECK(!c.policy.shadow);
	CHECK_EQ(c.policy.staging_mb, 64);
	CHECK_EQ(c.policy.encode_threads, 3);
	CHECK_EQ(c.policy.silence_ms, 500);
	CHECK_EQ(c.policy.heartbeat_ms, 50);
	CHECK_STR(c.policy.hook, "/hook");
	CHECK_STR(c.policy.tracker, "compare");
	CHECK_EQ(c.nr_peers, 2);
	CHECK_STR(ft_conf_peer(&c, "beta")->address, "beta.example");
	CHECK_EQ(c.peer[0].nr_heartbeat, 2);
	CHECK_STR(c.peer[0].heartbeat[1], "2001:db8::9");
}

TEST(a_peer_may_replicate_what_its_section_names_and_nothing_else)
{
	CHECK_OK(load("[peer beta]\nguests = vm1 vm2\n[peer gamma]\nguests = *\n[peer delta]\naddress = 192.0.2.1\n"));
	CHECK(ft_conf_permits(&c, "beta", "vm2"));
	CHECK(!ft_conf_permits(&c, "beta", "vm"));
	CHECK(!ft_conf_permits(&c, "beta", "vm1 vm2"));
	CHECK(!ft_conf_permits(&c, "beta", "vm3"));
	CHECK(ft_conf_permits(&c, "gamma", "anything"));
	CHECK(!ft_conf_permits(&c, "gamma", "../x"));
	CHECK(!ft_conf_permits(&c, "delta", "vm1"));
	CHECK(!ft_conf_permits(&c, "nobody", "vm1"));
}

TEST(what_is_wrong_is_named_with_its_line)
{
	static const struct { const char *text, *complaint; } bad[] = {
		{ "port = 1\n", "ft.conf:1: 'port' stands before the first [section]" },
		{ "[ft]\n\nprot = 1\n", "ft.conf:3: section [ft] knows no key 'prot'" },
		{ "[fat]\n", "ft.conf:1: there is no section [fat]" },
		{ "[ft]\n[ft]\n", "ft.conf:2: section [ft] is there twice" },
		{ "[ft\n", "must end with ']'" },
		{ "[\n", "must end with ']'" },
		{ "[]\n", "there is no section []" },
		{ "[ft x]\n", "takes no name" },
		{ "[peer]\n", "needs a valid name" },
		{ "[peer ../x]\n", "needs a valid name" },
		{ "[peer a]\n[peer a]\n", "ft.conf:2: section [peer a] is there twice" },
		{ "[ft]\nport\n", "ft.conf:2: expected 'key = value'" },
		{ "[ft]\nport = 7800\nport = 7801\n", "ft.conf:3: 'port' is set twice" },
		{ "[ft]\nport = 0\n", "a port from 1 to 65535" },
		{ "[ft]\nport = 65536\n", "a port from 1 to 65535" },
		{ "[ft]\nport = 78x\n", "a port from 1 to 65535" },
		{ "[ft]\nport = -1\n", "a port from 1 to 65535" },
		{ "[ft]\nheartbeat-ports = 9-8\n", "two ports" },
		{ "[ft]\nlisten = alpha\n", "an IP address" },
		{ "[ft]\nrun-dir = run\n", "absolute path" },
		{ "[ft]\nhost = -x\n", "no valid name" },
		{ "[ft]\nhost =\n", "is empty" },
		{ "[tls]\nkey = key.pem\n", "absolute path" },
		{ "[policy]\nsilence-ms = 99\n", "from 100 to 60000, not '99'" },
		{ "[policy]\nsilence-ms = 99999999999999999999\n", "from 100 to 60000" },
		{ "[policy]\nsilence-ms = 100\n", "at least four times heartbeat-ms" },
		{ "[policy]\ninterval-fixed-ms = 3\n", "at least 5" },
		{ "[policy]\non-peer-loss = panic\n", "one of freeze, continue" },
		{ "[policy]\nshadow = true\n", "yes or no" },
		{ "[policy]\ntracker = magic\n", "one of auto" },
		{ "[peer a]\naddress = a b\n", "an IP address or a host name" },
		{ "[peer a]\nheartbeat-addresses = b\n", "IP addresses" },
		{ "[peer a]\nheartbeat-addresses = ::1 ::2 ::3 ::4\n", "at most 3" },
		{ "[policy]\nin-flight-max = 16\n", "from 1 to 15" },
		{ "[peer a]\nguests = vm1 *\n", "guest names" },
		{ "[peer a]\nguests = vm1,vm2\n", "guest names" },
		{ "[ft]\nhost = a\x01\n", "control character" },
	};

	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK_EQ(load(bad[i].text), -EINVAL);
		if (!ft_test_logged(bad[i].complaint))
			ft_test_fail(__FILE__, __LINE__, "case %u did not say \"%s\"", i, bad[i].complaint);
	}
}

TEST(more_than_the_bounds_is_refused)
{
	char text[8192];
	size_t n;

	n = (size_t)sprintf(text, "[ft]\nqemu = ");
	memset(text + n, 'q', 3000);
	strcpy(text + n + 3000, "\n");
	CHECK_EQ(load(text), -EINVAL);
	CHECK(ft_test_logged("ft.conf:2: the line has more than 2048 bytes"));
	text[n + 300] = 0;
	CHECK_EQ(load(text), -EINVAL);
	CHECK(ft_test_logged("at most 255 are allowed"));
	n = 0;
	for (unsigned i = 0; i <= FT_PEERS_MAX; i++)
		n += (size_t)sprintf(text + n, "[peer p%u]\n", i);
	CHECK_EQ(load(text), -EINVAL);
	CHECK(ft_test_logged("more than 32 peers"));
}

TEST(a_missing_file_is_an_error_only_when_it_was_named)
{
	CHECK_EQ(ft_conf_load("/nonexistent/ft.conf", &c), -ENOENT);
	CHECK(ft_test_logged("/nonexistent/ft.conf"));
	if (access("/etc/ft/ft.conf", F_OK) < 0)
		CHECK_OK(ft_conf_load(NULL, &c));
}

TEST(the_example_file_is_valid_and_says_the_defaults)
{
	static struct ft_conf example, defaults;
	struct ft_blob text;
	char *p;

	CHECK_OK(load(""));
	defaults = c;
	CHECK_OK(ft_conf_load("etc/ft.conf", &example));
	CHECK(!memcmp(&example.policy, &defaults.policy, sizeof(example.policy)));
	/* And with every '#' before a key taken away. */
	CHECK_OK(ft_read_file("etc/ft.conf", 65536, &text));
	for (p = (char *)text.data; (p = strstr(p, "\n#")); p++)
		if (p[2] != ' ')
			memmove(p + 1, p + 2, strlen(p + 2) + 1);
	CHECK_OK(load((char *)text.data));
	ft_blob_free(&text);
	CHECK_STR(c.policy.hook, "/etc/ft/hook");
	c.policy.hook[0] = 0;
	memset(c.policy.hook, 0, sizeof(c.policy.hook));
	CHECK(!memcmp(&c.policy, &defaults.policy, sizeof(c.policy)));
	CHECK_STR(c.tls_key, defaults.tls_key);
	CHECK_STR(c.shm_dir, defaults.shm_dir);
	CHECK_STR(c.listen, defaults.listen);
	CHECK_EQ(c.port, defaults.port);
	CHECK_EQ(c.nr_peers, 1);
}

TEST(the_manual_page_knows_every_key)
{
	ft_test_keys_documented("replicator/conf.c", "man/ft.conf.5");
}

TEST(run_paths_are_bounded)
{
	char buf[64];

	ft_conf_set(&(struct ft_conf){ .run_dir = "/run/ft" });
	CHECK_OK(ft_run_path(buf, sizeof(buf), "vm1", "attach"));
	CHECK_STR(buf, "/run/ft/guests/vm1/attach");
	CHECK_EQ(ft_run_path(buf, 20, "vm1", "attach"), -ENAMETOOLONG);
}
