// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_pages.c - the page map of a Xen guest: what two hosts must agree upon before a page may be called number 7.
 */
#include "checkpoint/xen_pages.h"
#include "tests/test.h"

static struct xen_pages map;

TEST(a_map_is_read_as_it_was_written)
{
	char text[64];

	CHECK_OK(xen_pages_parse("0+c000,fc000+9,feff8+8", &map));
	CHECK_EQ(map.nr, 3);
	CHECK_EQ(map.total, 0xc000 + 9 + 8);
	CHECK_OK(xen_pages_format(&map, text, sizeof(text)));
	CHECK_STR(text, "0+c000,fc000+9,feff8+8");
	CHECK_EQ(xen_pages_format(&map, text, 22), -ENAMETOOLONG);
}

TEST(what_is_no_map_is_refused)
{
	static const char *const bad[] = {
		"",
		"0",
		"0+",
		"+1",
		"0+0",
		"0+1,",
		"0+1,0+1",
		"0+10,8+4",
		"10+1,0+1",
		" 0+1",
		"0+ 1",
		"0+1 ",
		"0x0+1",
		"-1+1",
		"0+-1",
		"0+1;2+1",
		"1000000000+1",
		"0+1000000001",
		"fffffffff+2",
		"0+1ffffffffffff",
		"g+1",
		"0+1,2+1,4+1,6+1,8+1,a+1,c+1,e+1,10+1,12+1,14+1,16+1,18+1,1a+1,1c+1,1e+1,20+1",
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		CHECK_EQ(xen_pages_parse(bad[i], &map), -EPROTO);
}

TEST(small_gaps_are_part_of_a_range_and_large_ones_are_not)
{
	map = (struct xen_pages){ 0 };
	CHECK_OK(xen_pages_add(&map, 0, 0xa0, XEN_GAP_MIN));
	CHECK_OK(xen_pages_add(&map, 0xc0, 0x40, XEN_GAP_MIN));
	CHECK_OK(xen_pages_add(&map, 0x100 + XEN_GAP_MIN, 1, XEN_GAP_MIN));
	CHECK_EQ(map.nr, 2);
	CHECK_EQ(map.range[0].count, 0x100);
	CHECK_EQ(map.total, 0x101);
	for (unsigned i = 2; i < XEN_RANGES_MAX; i++)
		CHECK_OK(xen_pages_add(&map, i * 0x10000, 1, XEN_GAP_MIN));
	CHECK_EQ(xen_pages_add(&map, 0x1000000, 1, XEN_GAP_MIN), -E2BIG);
	CHECK_OK(xen_pages_add(&map, 0x1000000, 1, 0x1000000));
	CHECK_EQ(map.nr, XEN_RANGES_MAX);
}

TEST(a_frame_has_the_same_number_on_both_ways)
{
	uint64_t index;

	CHECK_OK(xen_pages_parse("0+100,fc000+9,100000+10", &map));
	CHECK(xen_pages_index(&map, 0xff, &index) && index == 0xff);
	CHECK(!xen_pages_index(&map, 0x100, &index));
	CHECK(xen_pages_index(&map, 0xfc008, &index) && index == 0x108);
	CHECK(xen_pages_index(&map, 0x10000f, &index) && index == 0x118);
	CHECK(!xen_pages_index(&map, 0x100010, &index));
}

TEST(dirty_frames_become_dirty_pages_and_no_others_do)
{
	enum { GFNS = 0x400 };
	uint64_t gfns[GFNS / 64], index;
	struct ft_bitmap out;

	CHECK_OK(xen_pages_parse("3+3e,c5+77,300+200", &map));
	CHECK_OK(ft_bitmap_init(&out, map.total));
	for (uint64_t gfn = 0; gfn < GFNS + 8; gfn++) {
		memset(gfns, 0, sizeof(gfns));
		if (gfn < GFNS)
			gfns[gfn / 64] |= 1ull << gfn % 64;
		ft_bitmap_zero(&out);
		xen_pages_fold(&map, gfns, GFNS, &out);
		if (gfn < GFNS && xen_pages_index(&map, gfn, &index))
			CHECK(ft_bitmap_count(&out) == 1 && ft_bitmap_test(&out, index));
		else
			CHECK_EQ(ft_bitmap_count(&out), 0);
	}
	ft_bitmap_free(&out);
}
