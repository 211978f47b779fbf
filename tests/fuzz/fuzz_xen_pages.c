// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_xen_pages.c - a peer's page map: what is accepted is ascending, apart, and the same when it is written again. */
#include "checkpoint/xen_pages.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char text[512], again[512];
	struct xen_pages map, same;
	uint64_t total = 0;

	if (size >= sizeof(text))
		return 0;
	memcpy(text, data, size);
	text[size] = 0;
	if (xen_pages_parse(text, &map))
		return 0;
	for (unsigned i = 0; i < map.nr; i++) {
		if (!map.range[i].count || (i && map.range[i].first < map.range[i - 1].first + map.range[i - 1].count))
			abort();
		total += map.range[i].count;
	}
	if (!map.nr || total != map.total || xen_pages_format(&map, again, sizeof(again)) ||
	    xen_pages_parse(again, &same) || memcmp(&map, &same, sizeof(map)))
		abort();
	return 0;
}
