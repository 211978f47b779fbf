// SPDX-License-Identifier: GPL-3.0-or-later
/* ini.c - see ft/ini.h. */
#include "ft/ini.h"

#include <stdio.h>

#define KEYS_MAX 64
#define SECTIONS_MAX 16

struct parser {
	struct ft_ini_at at;
	const struct ft_ini_section *sections;
	const struct ft_ini_section *section;   /* the one we are in; NULL before the first */
	uint32_t sections_seen;
	void *object;
	uint64_t keys_seen;                     /* in this section */
	void *ctx;
};

int ft_ini_error(const struct ft_ini_at *at, const char *fmt, ...)
{
	char what[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (at->line)
		ft_err("%s:%u: %s", at->origin, at->line, what);
	else
		ft_err("%s: %s", at->origin, what);
	return -EINVAL;
}

/* --- values --- */

static int set_text(const struct ft_ini_at *at, const struct ft_ini_key *k, const char *value, void *member)
{
	size_t len = strlen(value);

	if (len == 0)
		return ft_ini_error(at, "'%s' is empty: give it a value or leave the line out", k->key);
	if (len >= k->max)
		return ft_ini_error(at, "'%s' has %zu bytes, at most %lu are allowed", k->key, len, k->max - 1);
	if (k->type == FT_INI_PATH && value[0] != '/')
		return ft_ini_error(at, "'%s' must be an absolute path, not '%s'", k->key, value);
	if (k->type == FT_INI_NAME && !ft_name_ok(value))
		return ft_ini_error(at, "'%s' is no valid name: letters, digits, '.', '_' and '-', a letter or digit first, at most %d",
				    value, FT_NAME_MAX);
	memcpy(member, value, len + 1);
	return 0;
}

static int set_uint(const struct ft_ini_at *at, const struct ft_ini_key *k, const char *value, void *member)
{
	unsigned long v = 0;
	const char *p = value;

	for (; *p >= '0' && *p <= '9' && v <= k->max; p++)
		v = v * 10 + (unsigned long)(*p - '0');
	if (p == value || *p || v < k->min || v > k->max)
		return ft_ini_error(at, "'%s' must be a whole number from %lu to %lu, not '%s'", k->key, k->min, k->max, value);
	*(unsigned *)member = (unsigned)v;
	return 0;
}

static int set_bool(const struct ft_ini_at *at, const struct ft_ini_key *k, const char *value, void *member)
{
	bool yes = !strcmp(value, "yes");

	if (!yes && strcmp(value, "no"))
		return ft_ini_error(at, "'%s' must be yes or no, not '%s'", k->key, value);
	*(bool *)member = yes;
	return 0;
}

static int set_word(const struct ft_ini_at *at, const struct ft_ini_key *k, const char *value, void *member)
{
	char list[256] = "";

	for (unsigned i = 0; k->words[i]; i++) {
		if (!strcmp(k->words[i], value)) {
			*(unsigned *)member = i;
			return 0;
		}
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", i ? ", " : "", k->words[i]);
	}
	return ft_ini_error(at, "'%s' must be one of %s, not '%s'", k->key, list, value);
}

static int set_value(struct parser *p, const struct ft_ini_key *k, const char *value)
{
	void *member = (char *)p->object + k->offset;

	switch (k->type) {
	case FT_INI_TEXT:
	case FT_INI_PATH:
	case FT_INI_NAME:
		return set_text(&p->at, k, value, member);
	case FT_INI_UINT:
		return set_uint(&p->at, k, value, member);
	case FT_INI_BOOL:
		return set_bool(&p->at, k, value, member);
	case FT_INI_WORD:
		return set_word(&p->at, k, value, member);
	case FT_INI_FUNC:
		return k->parse(&p->at, k->key, value, member);
	}
	return -EINVAL;
}

/* --- lines --- */

static char *trim(char *s)
{
	size_t len;

	s += strspn(s, " \t");
	len = strlen(s);
	while (len && (s[len - 1] == ' ' || s[len - 1] == '\t'))
		s[--len] = 0;
	return s;
}

static int enter_section(struct parser *p, char *line)
{
	char *kind = line + 1, *end = line + strlen(line) - 1, *name;
	const struct ft_ini_section *s;
	uint32_t bit;

	if (*end != ']')
		return ft_ini_error(&p->at, "a section must end with ']'");
	*end = 0;
	kind = trim(kind);
	name = kind + strcspn(kind, " \t");
	if (*name)
		*name++ = 0;
	name = trim(name);
	for (s = p->sections; s->kind && strcmp(s->kind, kind); s++)
		;
	if (!s->kind)
		return ft_ini_error(&p->at, "there is no section [%s]", kind);
	if (s->named && !ft_name_ok(name))
		return ft_ini_error(&p->at, "section [%s NAME] needs a valid name, not '%s'", kind, name);
	if (!s->named && *name)
		return ft_ini_error(&p->at, "section [%s] takes no name", kind);
	assert(s - p->sections < SECTIONS_MAX);
	bit = 1u << (s - p->sections);
	if (!s->repeated && (p->sections_seen & bit))
		return ft_ini_error(&p->at, "section [%s] is there twice", kind);
	p->sections_seen |= bit;
	p->section = s;
	p->keys_seen = 0;
	p->object = s->object(&p->at, p->ctx, name);
	return p->object ? 0 : -EINVAL;
}

static int take_key(struct parser *p, char *line)
{
	char *eq = strchr(line, '=');
	const struct ft_ini_key *k;
	const char *key, *value;
	uint64_t bit;

	if (!eq)
		return ft_ini_error(&p->at, "expected 'key = value' or '[section]'");
	*eq = 0;
	key = trim(line);
	value = trim(eq + 1);
	if (!p->section)
		return ft_ini_error(&p->at, "'%s' stands before the first [section]", key);
	for (k = p->section->keys; k->key && strcmp(k->key, key); k++)
		;
	if (!k->key)
		return ft_ini_error(&p->at, "section [%s] knows no key '%s'", p->section->kind, key);
	assert(k - p->section->keys < KEYS_MAX);
	bit = 1ull << (k - p->section->keys);
	if (p->keys_seen & bit)
		return ft_ini_error(&p->at, "'%s' is set twice in this section", key);
	p->keys_seen |= bit;
	return set_value(p, k, value);
}

static int take_line(struct parser *p, const char *text, size_t len)
{
	char buf[FT_INI_LINE_MAX + 1], *line;

	if (len && text[len - 1] == '\r')
		len--;
	if (len > FT_INI_LINE_MAX)
		return ft_ini_error(&p->at, "the line has more than %d bytes", FT_INI_LINE_MAX);
	for (size_t i = 0; i < len; i++)
		if (((unsigned char)text[i] < 0x20 && text[i] != '\t') || text[i] == 0x7f)
			return ft_ini_error(&p->at, "the line holds a control character (0x%02x)", (unsigned char)text[i]);
	memcpy(buf, text, len);
	buf[len] = 0;
	line = trim(buf);
	if (!*line || *line == '#' || *line == ';')
		return 0;
	return *line == '[' ? enter_section(p, line) : take_key(p, line);
}

int ft_ini_parse(const char *text, size_t len, const char *origin, const struct ft_ini_section *sections, void *ctx)
{
	struct parser p = { .at = { .origin = origin }, .sections = sections, .ctx = ctx };
	int rc = 0;

	for (size_t pos = 0; pos < len && !rc; ) {
		const char *nl = memchr(text + pos, '\n', len - pos);
		size_t n = nl ? (size_t)(nl - text) - pos : len - pos;

		p.at.line++;
		rc = take_line(&p, text + pos, n);
		pos += n + 1;
	}
	return rc;
}
