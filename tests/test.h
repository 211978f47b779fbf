// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test.h - unit tests that read like a story. Each TEST runs in a forked child with a time limit, so a
 * crash or a hang is one failed test; output is TAP. Link with tests/lib.
 *
 *	TEST(a_promise_in_words) { CHECK_EQ(1 + 1, 2); }
 */
#ifndef FT_TEST_H
#define FT_TEST_H

#include "ft/base.h"
#include <stdio.h>

struct ft_test {
	const char *name;
	void (*fn)(void);
	unsigned timeout_s;
	struct ft_test *next;
};
void ft_test_register(struct ft_test *t);
void ft_test_fail(const char *file, int line, const char *fmt, ...) FT_PRINTF(3, 4) __attribute__((noreturn));
void ft_test_skip(const char *fmt, ...) FT_PRINTF(1, 2) __attribute__((noreturn));
/* A directory of this test alone, removed when the test has ended, however it ended. */
const char *ft_test_dir(void);
/* Lines logged since the start of the test: does one contain @part? */
bool ft_test_logged(const char *part);

/* Fail unless each key of the INI tables in @source is an item of the manual page. Paths from the top of the tree. */
void ft_test_keys_documented(const char *source, const char *page);
/*
 * From here on the test runs as PID 1 of a process namespace, with a network namespace and mounts of its own: whatever
 * it starts dies with it, also when it fails or hits its time limit. Skips the test where that is not allowed.
 */
void ft_test_namespaces(void);
/* A bridge, up. Skips the test where the kernel has none. */
void ft_test_bridge(const char *name);

#define TEST_TIMEOUT(id, seconds) \
	static void test_##id(void); \
	__attribute__((constructor)) static void register_##id(void) \
	{ \
		static struct ft_test t = { .name = #id, .fn = test_##id, .timeout_s = seconds }; \
		ft_test_register(&t); \
	} \
	static void test_##id(void)
#define TEST(id) TEST_TIMEOUT(id, 60)

#define CHECK(cond) \
	do { if (cond) { } else { ft_test_fail(__FILE__, __LINE__, "%s", #cond); } } while (0)
#define CHECK_EQ(a, b) \
	do { long long a_ = (long long)(a), b_ = (long long)(b); \
	     if (a_ != b_) ft_test_fail(__FILE__, __LINE__, "%s == %lld, expected %s == %lld", #a, a_, #b, b_); } while (0)
#define CHECK_OK(call) \
	do { int rc_ = (call); if (rc_) ft_test_fail(__FILE__, __LINE__, "%s: %s", #call, strerror(rc_ < 0 ? -rc_ : rc_)); } while (0)
#define CHECK_STR(a, b) \
	do { const char *a_ = (a), *b_ = (b); \
	     if (strcmp(a_, b_)) ft_test_fail(__FILE__, __LINE__, "%s is \"%s\", expected \"%s\"", #a, a_, b_); } while (0)

#endif
