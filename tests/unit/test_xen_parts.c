// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_parts.c - a domain's state and its device model's travel as one blob; what comes back may be anything. */
#include "checkpoint/xen_parts.h"
#include "tests/test.h"

#define MODEL "QEVM\0\0\0\3\0"

static const struct ft_blob domain = { (uint8_t *)(uintptr_t)"domain", 6 };
static const struct ft_blob model = { (uint8_t *)(uintptr_t)MODEL, 9 };
static struct ft_blob whole, a, b;

TEST(two_parts_come_back_as_they_went)
{
	CHECK_OK(xen_parts_join(&domain, &model, &whole));
	CHECK_OK(xen_parts_split(&whole, &a, &b));
	CHECK(a.len == domain.len && !memcmp(a.data, domain.data, a.len));
	CHECK(b.len == model.len && !memcmp(b.data, model.data, b.len));
	ft_blob_free(&whole);
}

/* Each in memory of its own length, so that a sanitizer sees a byte read beyond it. */
TEST(whatever_is_cut_off_is_refused)
{
	CHECK_OK(xen_parts_join(&domain, &model, &whole));
	for (size_t len = 0; len < whole.len; len++) {
		struct ft_blob part = { 0 };

		CHECK_OK(ft_blob_copy(&part, whole.data, len));
		CHECK_EQ(xen_parts_split(&part, &a, &b), -EPROTO);
		ft_blob_free(&part);
	}
	ft_blob_free(&whole);
}

TEST(lengths_that_do_not_add_up_are_refused)
{
	static const struct { uint32_t domain, model; } bad[] = {
		{ 0, 15 }, { 15, 0 }, { 7, 8 }, { 6, 10 }, { 5, 9 }, { 7, 9 }, { UINT32_MAX, 16 }, { 6, UINT32_MAX },
		{ UINT32_MAX - 8, 9 }, { 0x80000000u, 0x80000000u + 15 },
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK_OK(xen_parts_join(&domain, &model, &whole));
		ft_put32(whole.data + 8, bad[i].domain);
		ft_put32(whole.data + 12, bad[i].model);
		CHECK_EQ(xen_parts_split(&whole, &a, &b), -EPROTO);
		ft_blob_free(&whole);
	}
}

TEST(another_magic_or_version_is_refused)
{
	static const unsigned at[] = { 0, 3, 4, 7, 16 + 6, 16 + 6 + 7 };

	for (size_t i = 0; i < FT_ARRAY_LEN(at); i++) {
		CHECK_OK(xen_parts_join(&domain, &model, &whole));
		whole.data[at[i]] ^= 1;
		CHECK_EQ(xen_parts_split(&whole, &a, &b), -EPROTO);
		ft_blob_free(&whole);
	}
}

TEST(a_model_that_is_too_large_is_refused)
{
	struct ft_blob large = { .data = calloc(1, XEN_MODEL_MAX + 1), .len = XEN_MODEL_MAX + 1 };

	CHECK(large.data);
	CHECK_EQ(xen_parts_join(&domain, &large, &whole), -EMSGSIZE);
	ft_blob_free(&large);
}
