// SPDX-License-Identifier: GPL-3.0-or-later
/* test_xen_find.c - what is said of a PV domain is what Xen says of itself. Xen's library is ours here. */
#include "checkpoint/xen.h"
#include "tests/test.h"

static uint32_t capabilities;
static int answer, asked;
static char said[512];

int xc_physinfo(xc_interface *xc, xc_physinfo_t *info)
{
	asked++;
	*info = (xc_physinfo_t){ .capabilities = capabilities };
	errno = EPERM;
	return answer;
}

int xc_version(xc_interface *xc, int cmd, void *arg)
{
	return 4 << 16 | 17;
}

/* Nothing may be done to the domain. */
int xc_shadow_control(xc_interface *xc, uint32_t domid, unsigned int sop, unsigned int *mb, unsigned int mode)
{
	CHECK(!"a domain that runs is left alone");
	return -1;
}

static void tell(void *ctx, const char *line)
{
	snprintf(said, sizeof(said), "%s", line);
}

static void check_pv(void)
{
	const struct xen_dom d = { .domid = 1 };
	struct ft_obstacles o = { .tell = tell };

	*said = 0;
	asked = 0;
	xen_pv_check(&d, &o);
	CHECK_EQ(o.nr, 1);
	CHECK_EQ(asked, 1);
}

TEST(a_pv_domain_is_refused_for_the_reason_that_xen_gives)
{
	capabilities = XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_hap;
	check_pv();
	CHECK(strstr(said, "Xen 4.17 cannot log which pages such a domain writes: it was built without shadow paging"));
	capabilities |= XEN_SYSCTL_PHYSCAP_shadow;
	check_pv();
	CHECK(strstr(said, "can log which pages it writes, but ft cannot build a replica"));
	answer = -1;
	check_pv();
	CHECK(strstr(said, "Xen does not say whether it can log"));
	CHECK(strstr(said, strerror(EPERM)));
}
