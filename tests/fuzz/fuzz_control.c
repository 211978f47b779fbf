// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_control.c - one line of a client of the control socket. */
#include "ft/control.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *cmd = NULL, *why = NULL;
	json_t *args = NULL;
	int rc = ft_control_parse((const char *)data, size, &args, &cmd, &why);

	if (rc ? rc != -EPROTO || args || !why || strchr(why, '\n') : !json_is_object(args) || !cmd)
		abort();
	json_decref(args);
	return 0;
}
