// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * ini.h - the INI dialect of ft.conf and of guest files, read from tables that say what is allowed.
 *
 * Lines are "[kind]", "[kind name]", "key = value", or empty, or comments that begin with '#' or ';'. A value
 * reaches to the end of its line: nothing in it is a comment, a quote or an escape. Unknown sections and keys,
 * keys said twice, values out of range, control characters and overlong lines are refused, each with one line
 * "ORIGIN:LINE: what is wrong and what is expected". (libinih as distributions build it cuts lines and
 * names silently, does not number lines, and takes two [nic] sections in a row for one.)
 */
#ifndef FT_INI_H
#define FT_INI_H

#include "ft/base.h"

#define FT_INI_LINE_MAX 2048

/* Where the parser is; what an error names. */
struct ft_ini_at {
	const char *origin;
	unsigned line;
};

enum ft_ini_type {
	FT_INI_TEXT,            /* char[max]: 1..max-1 bytes */
	FT_INI_PATH,            /* the same, absolute */
	FT_INI_NAME,            /* the same, ft_name_ok */
	FT_INI_UINT,            /* unsigned, min..max */
	FT_INI_BOOL,            /* bool: yes, no */
	FT_INI_WORD,            /* unsigned (or enum): index in words */
	FT_INI_FUNC,            /* parse() */
};

struct ft_ini_key {
	const char *key;
	enum ft_ini_type type;
	size_t offset;          /* of the member in the section's object */
	unsigned long min, max; /* for text types: max is the size of the member */
	const char *const *words;               /* NULL-terminated */
	/* @member points at offset. Logs with ft_ini_error. */
	int (*parse)(const struct ft_ini_at *at, const char *key, const char *value, void *member);
};

struct ft_ini_section {
	const char *kind;
	const struct ft_ini_key *keys;          /* ends with a NULL key; at most 64 */
	bool named;                             /* "[kind name]"; the name is ft_name_ok */
	bool repeated;                          /* may appear more than once */
	/* The object that the keys' offsets are in, for this occurrence. NULL: logged, stop. */
	void *(*object)(const struct ft_ini_at *at, void *ctx, const char *name);
};

/* @sections ends with a NULL kind. -EINVAL after one logged line. @text need not end with NUL or newline. */
int ft_ini_parse(const char *text, size_t len, const char *origin, const struct ft_ini_section *sections, void *ctx) FT_MUST_CHECK;
/* Log "ORIGIN:LINE: ..." and return -EINVAL. Line 0: the file as a whole. */
int ft_ini_error(const struct ft_ini_at *at, const char *fmt, ...) FT_PRINTF(2, 3);

#endif
