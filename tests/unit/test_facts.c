// SPDX-License-Identifier: GPL-3.0-or-later
/* test_facts.c - what a backup is told of a guest that runs elsewhere, and what it refuses to go on with. */
#include "replicator/facts.h"
#include "tests/test.h"

static char facts[FT_FACTS_MAX], why[256];
static struct ft_spec spec;

static void make_facts(enum ft_accel accel)
{
	struct ft_attach at = { .accel = accel, .machine = "pc-i440fx-7.2", .qemu_version = "7.2.22", .memory = 64 << 20 };

	snprintf(spec.kernel, sizeof(spec.kernel), "%s/vmlinuz", ft_test_dir());
	CHECK_OK(ft_write_file(spec.kernel, "kernel", 6, 0600));
	CHECK_OK(ft_facts_format(&spec, &at, facts, sizeof(facts)));
}

/* Change what is told under @key to something of the same length. */
static void lie_about(const char *key)
{
	char *p = strstr(facts, key);

	CHECK(p);
	p[strlen(key) + 1] ^= 1;
}

static int check(void)
{
	struct ft_attach theirs;
	int rc = ft_facts_check(facts, &spec, &theirs, why, sizeof(why));

	if (!rc)
		CHECK_STR(theirs.machine, "pc-i440fx-7.2");
	return rc;
}

TEST(what_is_the_same_is_accepted)
{
	make_facts(FT_ACCEL_TCG);
	CHECK_OK(check());
	make_facts(FT_ACCEL_KVM);
	CHECK_OK(check());
	strcat(facts, "moon=full\n");
	CHECK_OK(check());
}

TEST(a_device_model_is_told_of_and_a_domain_without_has_none)
{
	struct ft_attach at = { .hypervisor = FT_HYPERVISOR_XEN, .xen_version = "4.17", .pages = "0+a0,c0+7f40", .memory = 128 << 20,
				.model = "7.2.22/0123456789abcdef" }, theirs;

	make_facts(FT_ACCEL_TCG);
	spec.hypervisor = FT_HYPERVISOR_XEN;
	CHECK_OK(ft_facts_format(&spec, &at, facts, sizeof(facts)));
	CHECK_OK(ft_facts_check(facts, &spec, &theirs, why, sizeof(why)));
	CHECK_STR(theirs.model, at.model);
	CHECK_STR(theirs.pages, at.pages);
	at.model[0] = 0;
	CHECK_OK(ft_facts_format(&spec, &at, facts, sizeof(facts)));
	CHECK_OK(ft_facts_check(facts, &spec, &theirs, why, sizeof(why)));
	CHECK_STR(theirs.model, "");
	spec.hypervisor = FT_HYPERVISOR_QEMU;
}

static unsigned disks_in(const char *text, struct ft_disk_need need[FT_DISKS_MAX])
{
	snprintf(facts, sizeof(facts), "accel=tcg\ndisks=%s\nmoon=full\n", text);
	return ft_facts_disks(facts, need);
}

TEST(disks_are_told_to_who_is_only_asked)
{
	struct ft_attach at = { .nr_disks = 2 };
	struct ft_disk_need need[FT_DISKS_MAX];

	snprintf(at.disk[0].image, sizeof(at.disk[0].image), "%s/disk", ft_test_dir());
	snprintf(at.disk[1].image, sizeof(at.disk[1].image), "%s/gone", ft_test_dir());
	CHECK_OK(ft_write_file(at.disk[0].image, facts, 512, 0600));
	make_facts(FT_ACCEL_TCG);
	ft_facts_add_disks(&at, facts, sizeof(facts));
	CHECK_EQ(ft_facts_disks(facts, need), 2);
	CHECK_EQ(need[0].bytes, 512);
	CHECK_EQ(need[1].bytes, 0);
	CHECK_OK(check());
}

TEST(nonsense_about_disks_ends_what_is_known_of_them)
{
	struct ft_disk_need need[FT_DISKS_MAX];

	CHECK_EQ(disks_in("512/0,1024/512", need), 2);
	CHECK_EQ(need[1].bytes, 1024);
	CHECK_EQ(need[1].used, 512);
	CHECK_EQ(disks_in("", need), 0);
	CHECK_EQ(disks_in("512", need), 0);
	CHECK_EQ(disks_in("512/", need), 0);
	CHECK_EQ(disks_in("512/1,/", need), 1);
	CHECK_EQ(disks_in("1/1,1/1,1/1,1/1,1/1,1/1,1/1,1/1,1/1,1/1", need), FT_DISKS_MAX);
}

TEST(another_kernel_is_refused_by_name)
{
	make_facts(FT_ACCEL_TCG);
	CHECK_OK(ft_write_file(spec.kernel, "Kernel", 6, 0600));
	CHECK_EQ(check(), -ENOEXEC);
	CHECK(strstr(why, "kernel differs"));
}

/* Only KVM shows the guest which processor the host has. */
TEST(under_kvm_another_maker_s_processor_is_refused)
{
	make_facts(FT_ACCEL_TCG);
	lie_about("cpu_vendor");
	CHECK_OK(check());
	make_facts(FT_ACCEL_KVM);
	lie_about("cpu_vendor");
	CHECK_EQ(check(), -ENOEXEC);
	CHECK(strstr(why, "processor of"));
	*strstr(facts, "cpu_vendor") = 'x';
	CHECK_EQ(check(), -EPROTO);
}
