// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_saver.c - libxl's program that saves a domain is known by its command line; anybody else's is not. */
#include "checkpoint/xen.h"
#include "tests/test.h"

#define LINE "/usr/lib/xen-4.17/bin/libxl-save-helper\0--save-domain\0" "11\0-1\0" "7\0" "0\0" "3\0" "0"

static bool is(const char *line, size_t len, uint32_t domid)
{
	struct ft_blob own = { 0 };             /* of its own length, so that a sanitizer sees a byte read beyond it */
	bool yes;

	CHECK_OK(ft_blob_copy(&own, line, len));
	yes = xen_saver_is((const char *)own.data, own.len, domid);
	ft_blob_free(&own);
	return yes;
}

TEST(a_saver_is_known_by_the_domain_that_it_saves)
{
	static const char restore[] = "libxl-save-helper\0--restore-domain\0" "11\0-1\0" "7\0" "0";
	static const char editor[] = "vi\0libxl-save-helper.c";

	CHECK(is(LINE, sizeof(LINE), 7));
	CHECK(!is(LINE, sizeof(LINE), 11));
	CHECK(!is(LINE, sizeof(LINE), 3));
	CHECK(!is(restore, sizeof(restore), 7));
	CHECK(!is(editor, sizeof(editor), 7));
}

/* One that is being written as it is read. */
TEST(a_line_that_is_cut_off_names_no_domain)
{
	for (size_t len = 0; len < sizeof(LINE) - 6; len++)
		CHECK(!is(LINE, len, 7));
}
