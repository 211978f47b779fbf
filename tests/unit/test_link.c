// SPDX-License-Identifier: GPL-3.0-or-later
#include "tests/link_pair.h"

TEST(both_ends_come_up_and_records_arrive_in_order_both_ways)
{
	struct pair *p;
	uint8_t ack[16] = { 7 };

	make_ca("ca");
	p = pair_new();
	pair_up(p);
	CHECK_STR(p->primary.peer, "beta");
	CHECK_STR(p->backup.peer, "alpha");
	CHECK_STR(p->guest, "vm1");
	for (uint64_t i = 0; i < 1000; i++) {
		CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK_NOWAIT, i, 8 + i * 7));
		if (i % 10 == 0)
			CHECK_OK(ft_link_send(p->backup.link, FT_LANE_URGENT, FT_REC_ACK, ack, sizeof(ack)));
	}
	RUN_UNTIL(p, p->backup.next == 1000 && p->primary.records == 100);
	CHECK(!p->primary.down && !p->backup.down);
	pair_free(p);
}
