// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_xen_parts.c - a peer's state of a domain: what is accepted is two parts inside of it, and all of it. */
#include "checkpoint/xen_parts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct ft_blob whole = { .data = (uint8_t *)(uintptr_t)data, .len = size }, domain, model, again;

	if (xen_parts_split(&whole, &domain, &model))
		return 0;
	if (domain.data < data || model.data != domain.data + domain.len || model.data + model.len != data + size)
		abort();
	if (xen_parts_join(&domain, &model, &again) || again.len != size || memcmp(again.data, data, size))
		abort();
	ft_blob_free(&again);
	return 0;
}
