// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_preamble.c - the first bytes of any stranger, whole and growing by one byte at a time. */
#include "ft/link.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char guest[FT_NAME_MAX + 1], again[FT_NAME_MAX + 1];
	uint8_t buf[FT_PREAMBLE_MAX];
	int whole = ft_preamble_parse(data, size, guest);

	if (whole > 0) {
		if ((size_t)whole > size || !ft_name_ok(guest) || ft_preamble_pack(guest, buf) != (size_t)whole ||
		    memcmp(buf, data, (size_t)whole))
			abort();
	} else if (whole != -EAGAIN && whole != -EPROTO) {
		abort();
	}
	/* A verdict on a part of it is the verdict on the whole. */
	for (size_t n = 0; n <= size && n <= FT_PREAMBLE_MAX; n++) {
		int rc = ft_preamble_parse(data, n, again);

		if (rc != -EAGAIN && rc != whole)
			abort();
		if (rc > 0 && strcmp(guest, again))
			abort();
	}
	return 0;
}
