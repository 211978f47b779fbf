// SPDX-License-Identifier: GPL-3.0-or-later
#include "ft/bitmap.h"
#include "tests/test.h"

TEST(walks_exactly_the_set_bits)
{
	static const uint64_t bits[] = { 0, 1, 63, 64, 127, 128, 999 };
	struct ft_bitmap bm;
	size_t i = 0;

	CHECK_OK(ft_bitmap_init(&bm, 1000));
	for (size_t k = 0; k < FT_ARRAY_LEN(bits); k++)
		ft_bitmap_set(&bm, bits[k]);
	for (uint64_t b = ft_bitmap_next(&bm, 0); b < 1000; b = ft_bitmap_next(&bm, b + 1))
		CHECK_EQ(b, bits[i++]);
	CHECK_EQ(i, FT_ARRAY_LEN(bits));
	CHECK_EQ(ft_bitmap_count(&bm), FT_ARRAY_LEN(bits));
	ft_bitmap_free(&bm);
}

TEST(ranges_are_clipped_and_never_touch_neighbours)
{
	struct ft_bitmap bm;

	CHECK_OK(ft_bitmap_init(&bm, 200));
	ft_bitmap_set_range(&bm, 61, 70);
	CHECK(!ft_bitmap_test(&bm, 60) && ft_bitmap_test(&bm, 61) && ft_bitmap_test(&bm, 130) && !ft_bitmap_test(&bm, 131));
	ft_bitmap_set_range(&bm, 190, UINT64_MAX);
	CHECK_EQ(ft_bitmap_count(&bm), 70 + 10);
	ft_bitmap_set_range(&bm, 200, 5);
	ft_bitmap_fill(&bm);
	CHECK_EQ(ft_bitmap_count(&bm), 200);
	ft_bitmap_free(&bm);
}
