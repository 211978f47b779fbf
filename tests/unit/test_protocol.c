// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * The wire and its document. Streams come from the simulation (the shipped state machines, encoder and codec);
 * tests/protocol_check.py judges them by docs/PROTOCOL.md, with no code of ours.
 */
#include "ft/link.h"
#include "tests/sim/sim.h"
#include "tests/test.h"

#include <limits.h>
#include <sys/wait.h>

#define LIVES 60u

/* Exit status of the checker on @name in the test's directory; what it prints goes to "out" there. */
static int judge(const char *name)
{
	char cmd[PATH_MAX];
	int rc;

	snprintf(cmd, sizeof(cmd), "cd %s && python3 \"$OLDPWD/tests/protocol_check.py\" %s >out 2>&1", ft_test_dir(), name);
	rc = system(cmd);
	return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static void show_out(void)
{
	char cmd[PATH_MAX];

	fflush(stdout);
	snprintf(cmd, sizeof(cmd), "head -20 %s/out | sed 's/^/# /'", ft_test_dir());
	(void)!system(cmd);
}

static bool out_has(const char *part)
{
	char path[PATH_MAX];
	struct ft_blob b = { 0 };
	bool found;

	snprintf(path, sizeof(path), "%s/out", ft_test_dir());
	CHECK_OK(ft_read_file(path, 1 << 20, &b));
	found = strstr((const char *)b.data, part) != NULL;
	ft_blob_free(&b);
	return found;
}

static void live(uint64_t seed, enum sim_mutant mutant, const char *name)
{
	struct sim_result r;
	char path[PATH_MAX];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", ft_test_dir(), name);
	f = fopen(path, "w");
	CHECK(f);
	sim_capture(f);
	sim_run(seed, mutant, false, &r);
	sim_capture(NULL);
	CHECK_EQ(fclose(f), 0);
}

TEST_TIMEOUT(what_the_state_machines_say_is_what_the_document_allows, 300)
{
	static const char *const must_have[] = { "HELLO=", "FIRMWARE=", "PAGES=", "ACK=", "DRILLED=", "VERIFIED=", "DISARMED=",
						 "RUNNING=", "PONG=" };
	char name[32];
	int rc;

	for (unsigned seed = 1; seed <= LIVES; seed++) {
		snprintf(name, sizeof(name), "life%u", seed);
		live(seed, SIM_HONEST, name);
	}
	rc = judge("life*");
	show_out();
	CHECK_EQ(rc, 0);
	for (size_t i = 0; i < FT_ARRAY_LEN(must_have); i++)    /* else the lives prove little */
		CHECK(out_has(must_have[i]));
}

/* Does the checker find @part in one of some lives with @mutant in them? */
static bool caught(enum sim_mutant mutant, const char *part)
{
	for (unsigned seed = 1; seed <= 40; seed++) {
		char name[32];

		snprintf(name, sizeof(name), "%s-%u", sim_mutant_name(mutant), seed % 10);
		live(seed, mutant, name);
		snprintf(name, sizeof(name), "%s-*", sim_mutant_name(mutant));
		if (seed % 10 == 0 && judge(name) && out_has(part))
			return true;
	}
	return false;
}

TEST_TIMEOUT(the_checker_catches_a_peer_that_lies, 300)
{
	CHECK(caught(SIM_ACK_TOO_EARLY, "ACK of epoch"));
	CHECK(caught(SIM_DISARM_FORGED, "DISARMED out of turn"));
	CHECK(caught(SIM_HALF_AN_EPOCH, "hashes are not those of the memory"));        /* counts and checksum are forged to fit */
}

/* --- damage, record by record --- */

struct item {
	size_t at, len;                 /* mark, header and body */
	char mark;
	uint32_t type;
};

static size_t split(const struct ft_blob *b, struct item *items, size_t max)
{
	size_t n = 0;

	for (size_t at = 0; at < b->len && n < max; n++) {
		items[n] = (struct item){ .at = at, .len = 1, .mark = (char)b->data[at] };
		if (items[n].mark != 'C') {
			items[n].type = ft_le32(b->data + at + 1);
			items[n].len = 9 + ft_le32(b->data + at + 5);
		}
		at += items[n].len;
	}
	return n;
}

static unsigned nr_damaged;

static void write_parts(const struct ft_blob *b, size_t skip_at, size_t skip_len, const void *insert,
			size_t insert_len)
{
	char path[PATH_MAX];
	FILE *f;

	snprintf(path, sizeof(path), "%s/damaged-%02u", ft_test_dir(), nr_damaged++);
	f = fopen(path, "w");
	CHECK(f);
	CHECK_EQ(fwrite(b->data, 1, skip_at, f), skip_at);
	CHECK_EQ(fwrite(insert, 1, insert_len, f), insert_len);
	CHECK_EQ(fwrite(b->data + skip_at + skip_len, 1, b->len - skip_at - skip_len, f), b->len - skip_at - skip_len);
	CHECK_EQ(fclose(f), 0);
}

static const struct item *first_of(const struct item *items, size_t n, uint32_t type)
{
	for (size_t i = 0; i < n; i++)
		if (items[i].mark != 'C' && items[i].type == type)
			return &items[i];
	return NULL;
}

TEST_TIMEOUT(the_checker_catches_each_record_that_is_missing_doubled_or_changed, 300)
{
	static const struct { uint32_t type; bool missing, doubled, changed; } row[] = {
		{ FT_REC_HELLO, true, true, true }, { FT_REC_WELCOME, true, true, true }, { FT_REC_FIRMWARE, true, true, false },
		{ FT_REC_READY, true, true, false }, { FT_REC_EPOCH_BEGIN, true, true, true }, { FT_REC_PAGES, true, true, true },
		{ FT_REC_STATE, true, true, true }, { FT_REC_EPOCH_END, true, true, true }, { FT_REC_ACK, false, true, true },
	};
	static struct item items[300];
	struct ft_blob b = { 0 };
	char path[PATH_MAX];
	size_t n;

	live(1, SIM_HONEST, "life");
	snprintf(path, sizeof(path), "%s/life", ft_test_dir());
	CHECK_OK(ft_read_file(path, 256 << 20, &b));
	n = split(&b, items, FT_ARRAY_LEN(items));
	b.len = items[n - 1].at + items[n - 1].len;     /* the start of a life is enough */
	write_parts(&b, 0, 0, "", 0);
	CHECK_EQ(judge("damaged-00"), 0);
	for (size_t i = 0; i < FT_ARRAY_LEN(row); i++) {
		const struct item *it = first_of(items, n, row[i].type);

		CHECK(it);
		if (row[i].missing)
			write_parts(&b, it->at, it->len, "", 0);
		if (row[i].doubled)
			write_parts(&b, it->at, 0, b.data + it->at, it->len);
		if (row[i].changed) {
			b.data[it->at + 9] ^= 0xa4;
			write_parts(&b, 0, 0, "", 0);
			b.data[it->at + 9] ^= 0xa4;
		}
	}
	ft_blob_free(&b);
	CHECK_EQ(judge("damaged-*"), 1);
	for (unsigned i = 1; i < nr_damaged; i++) {
		char name[32];

		snprintf(name, sizeof(name), "damaged-%02u: byte", i);
		if (!out_has(name))
			ft_test_fail(__FILE__, __LINE__, "%s: nothing was found", name);
	}
}

TEST(the_record_table_is_the_one_of_the_document)
{
	FILE *f = fopen("docs/PROTOCOL.md", "r");
	unsigned rows = 0, types = 0;
	char line[512];

	CHECK(f);
	while (fgets(line, sizeof(line), f)) {
		unsigned type, least, most;
		char name[32], from[16];
		bool primary, backup;

		if (sscanf(line, "| %u | %31[A-Z_] | %15[a-z] | %u | %u |", &type, name, from, &least, &most) != 5)
			continue;
		primary = strcmp(from, "backup") != 0;
		backup = strcmp(from, "primary") != 0;
		CHECK_STR(ft_wire_name(type), name);
		CHECK_EQ(!ft_wire_check(type, least, true), primary);
		CHECK_EQ(!ft_wire_check(type, most, false), backup);
		CHECK(ft_wire_check(type, (uint64_t)most + 1, primary));
		CHECK(!least || ft_wire_check(type, least - 1, primary));
		rows++;
	}
	fclose(f);
	for (uint32_t type = 0; type < 1000; type++)
		types += strcmp(ft_wire_name(type), "unknown record") != 0;
	CHECK_EQ(rows, types);
}
