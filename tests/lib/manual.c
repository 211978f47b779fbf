// SPDX-License-Identifier: GPL-3.0-or-later
/* manual.c - manual pages keep up with the tables they describe; see tests/test.h. */
#include "tests/test.h"

/* Does one of the item lines of the manual page @page name @key? */
static bool page_has_item(const char *page, const char *key)
{
	size_t len = strlen(key);

	for (const char *line = page; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, ".It Ic ", 7))
			continue;
		for (const char *p = line + 7; p; p = *p == ' ' ? p + 1 : NULL) {
			size_t word = strcspn(p, " \n");

			if (word == len && !strncmp(p, key, len))
				return true;
			p += word;
		}
	}
	return false;
}

/* Tables name their keys as ..._KEY("name" or .key = "name". */
void ft_test_keys_documented(const char *source, const char *page)
{
	static const char *const before[] = { "_KEY(\"", ".key = \"" };
	struct ft_blob src, man;
	unsigned n = 0;

	CHECK_OK(ft_read_file(source, 1 << 20, &src));
	CHECK_OK(ft_read_file(page, 1 << 20, &man));
	for (unsigned i = 0; i < FT_ARRAY_LEN(before); i++) {
		for (const char *p = (const char *)src.data; (p = strstr(p, before[i])); n++) {
			char key[64];

			p += strlen(before[i]);
			snprintf(key, sizeof(key), "%.*s", (int)strcspn(p, "\""), p);
			if (!page_has_item((const char *)man.data, key))
				ft_test_fail(source, 0, "%s does not document '%s'", page, key);
		}
	}
	CHECK(n > 5);
	ft_blob_free(&src);
	ft_blob_free(&man);
}
