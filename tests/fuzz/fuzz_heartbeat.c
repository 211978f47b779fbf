// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * fuzz_heartbeat.c - anybody may send to the heartbeat port. Raw bytes must not pass; bytes with a right MAC (as
 * from a broken peer) must pass only with every field in range, and each number once.
 */
#include "failover/datagram.h"
#include "failover/hmac.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void sign(const struct ft_hb_keys *k, uint8_t *buf)
{
	uint8_t mac[FT_HMAC_LEN];

	if (ft_hmac(k->key[(buf[5] - 1) & 1][(buf[6] - 1) & 1], buf, 32, mac))
		abort();
	memcpy(buf + 32, mac, 16);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const uint8_t secret[32] = { 1 }, session[16] = { 2 };
	static struct ft_hb_keys keys;
	struct ft_hb_window window = { 0 };
	uint8_t buf[FT_HB_LEN];
	struct ft_hb hb;

	if (!keys.session[0] && ft_hb_keys(secret, session, &keys))
		abort();
	(void)!ft_hb_open(&keys, FT_HB_BEAT, data, size, &hb);
	for (; size >= FT_HB_LEN; data += FT_HB_LEN, size -= FT_HB_LEN) {
		memcpy(buf, data, sizeof(buf));
		memcpy(buf + 8, session, sizeof(session));
		sign(&keys, buf);
		if (ft_hb_open(&keys, FT_HB_BEAT, buf, sizeof(buf), &hb))
			continue;
		if (hb.kind != FT_HB_BEAT || hb.path >= FT_HB_PATHS || (hb.sender != FT_HB_REPLICATOR && hb.sender != FT_HB_GUARD))
			abort();
		(void)ft_hb_window_take(&window, hb.seq);
		if (ft_hb_window_take(&window, hb.seq))
			abort();
	}
	return 0;
}
