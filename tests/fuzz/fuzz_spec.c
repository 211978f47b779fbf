// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_spec.c - guest files are hostile: whatever parses must survive a round trip through its own text. */
#include "ft/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void swallow(void *ctx, enum ft_log_level level, const char *line)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ft_spec spec, again;
	char text[FT_SPEC_TEXT_MAX], why[160];
	int len;

	ft_log_divert(swallow, NULL);
	if (ft_spec_parse((const char *)data, size, "input", &spec))
		return 0;
	len = ft_spec_format(&spec, text, sizeof(text));
	if (len < 0 || ft_spec_parse(text, (size_t)len, "output", &again) || memcmp(&spec, &again, sizeof(spec)) ||
	    ft_spec_compatible(&spec, &again, why, sizeof(why)))
		abort();
	return 0;
}
