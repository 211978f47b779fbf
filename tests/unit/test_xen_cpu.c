// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_cpu.c - what a peer sends as the guest's processor may be anything; what is none never comes near Xen. */
#include "checkpoint/xen.h"
#include "tests/test.h"

#define HEADER 16u
#define LEAF_LEN 24u
#define MSR_LEN 16u

static const struct xen_dom nowhere = { .guest = "vm1" };       /* without Xen's handles: a hypercall would crash */

/* In memory of its own length, so that a sanitizer sees a byte read beyond it. */
static void refused(size_t len, uint32_t nr_leaves, uint32_t nr_msrs, uint32_t magic, uint32_t version)
{
	uint8_t head[HEADER];
	struct ft_blob b = { .data = calloc(1, len ? len : 1), .len = len };

	CHECK(b.data);
	ft_put32(head, magic);
	ft_put32(head + 4, version);
	ft_put32(head + 8, nr_leaves);
	ft_put32(head + 12, nr_msrs);
	memcpy(b.data, head, len < HEADER ? len : HEADER);
	CHECK_EQ(xen_cpu_take(&nowhere, &b), -ENOEXEC);
	ft_blob_free(&b);
}

TEST(what_is_no_processor_is_refused)
{
	const uint32_t magic = 0x63787466;

	for (size_t len = 0; len < HEADER + 2 * LEAF_LEN + MSR_LEN; len++)
		refused(len, 2, 1, magic, 1);
	refused(HEADER + 2 * LEAF_LEN + MSR_LEN + 1, 2, 1, magic, 1);
	refused(HEADER, 0, 0, magic + 1, 1);
	refused(HEADER, 0, 0, magic, 2);
}

TEST(numbers_that_do_not_add_up_are_refused)
{
	static const struct { uint32_t leaves, msrs; } bad[] = {
		{ 513, 0 }, { 0, 513 }, { UINT32_MAX, 0 }, { 0, UINT32_MAX }, { UINT32_MAX, UINT32_MAX }, { 0x80000000u, 0 },
		{ 0, 0x10000000u }, { 0xaaaaaaabu, 0 }, { 2, 0xfffffffeu }, { 0, 2 }, { 1, 0 },
	};

	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		refused(HEADER, bad[i].leaves, bad[i].msrs, 0x63787466, 1);
		refused(HEADER + 2 * LEAF_LEN, bad[i].leaves, bad[i].msrs, 0x63787466, 1);
	}
	refused(HEADER + 513 * LEAF_LEN, 513, 0, 0x63787466, 1);
	refused(HEADER + 513 * MSR_LEN, 0, 513, 0x63787466, 1);
}
