// SPDX-License-Identifier: GPL-3.0-or-later
/* fuzz_qemu_stream.c - first half firmware, second half state: splice must judge both and stay inside them. */
#include "checkpoint/qemu_stream.h"

static void drop_line(void *ctx, enum ft_log_level level, const char *line)
{
	(void)ctx, (void)level, (void)line;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t cut = size > 2 ? 2 + ft_le16(data) % (size - 1) : 0;
	struct ft_blob firmware = { 0 }, state = { 0 };
	struct iovec part[2];

	ft_log_divert(drop_line, NULL);
	if (cut < 2 || cut > size || ft_blob_copy(&firmware, data + 2, cut - 2) || ft_blob_copy(&state, data + cut, size - cut))
		goto out;
	if (ft_qemu_stream_splice(&firmware, &state, "ram", part) == 0) {
		assert(part[0].iov_len <= firmware.len);
		assert(part[1].iov_len + 8 == state.len);
	}
out:
	ft_blob_free(&firmware);
	ft_blob_free(&state);
	return 0;
}
