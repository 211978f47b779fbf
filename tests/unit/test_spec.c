// SPDX-License-Identifier: GPL-3.0-or-later
/* test_spec.c - guest files: data with a schema, hostile until checked. */
#include "ft/conf.h"
#include "ft/spec.h"
#include "tests/test.h"

#define GUEST "[guest]\nname = vm1\nmemory = 64M\n"

static struct ft_spec s;

static int parse(const char *text)
{
	return ft_spec_parse(text, strlen(text), "vm1.conf", &s);
}

TEST(a_small_guest_file_is_enough)
{
	CHECK_OK(parse(GUEST));
	CHECK_STR(s.name, "vm1");
	CHECK_EQ(s.memory, 64ull << 20);
	CHECK_EQ(s.vcpus, 1);
	CHECK_EQ(s.accel, FT_ACCEL_AUTO);
	CHECK_EQ(s.nr_nics, 0);
	CHECK_STR(s.machine, "");
}

TEST(every_key_arrives)
{
	static const uint8_t mac2[6] = { 0x02, 0xab, 0xcd, 0xef, 0, 9 };

	CHECK_OK(parse("[guest]\r\nname = vm1\r\nmemory = 4G\nvcpus = 8\naccel = tcg\nmachine = pc-q35-7.2\ncpu = max,-avx2\n"
		       "kernel = /boot/vmlinuz\ninitrd = /boot/initrd\ndurability = journal\ncmdline = a=b c=\"d # e\" ; f\n"
		       "[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n[nic]\nbridge = br-lan.7\nmac = 02:AB:cd:ef:00:09\nvirtio = modern\n"
		       "[disk]\nimage = /srv/a b,c.img\n[disk]\nread-only = yes\nvirtio = modern\nimage = /dev/vg/x"));
	CHECK_EQ(s.memory, 4ull << 30);
	CHECK_EQ(s.vcpus, 8);
	CHECK_EQ(s.accel, FT_ACCEL_TCG);
	CHECK_STR(s.machine, "pc-q35-7.2");
	CHECK_STR(s.cpu, "max,-avx2");
	CHECK_STR(s.kernel, "/boot/vmlinuz");
	CHECK_STR(s.initrd, "/boot/initrd");
	CHECK_STR(s.cmdline, "a=b c=\"d # e\" ; f");
	CHECK_EQ(s.nr_nics, 2);
	CHECK_STR(s.nic[0].bridge, "br0");
	CHECK_EQ(s.nic[0].virtio, FT_VIRTIO_LEGACY);
	CHECK_EQ(s.nic[1].virtio, FT_VIRTIO_MODERN);
	CHECK_STR(s.nic[1].bridge, "br-lan.7");
	CHECK(!memcmp(s.nic[1].mac, mac2, 6));
	CHECK_EQ(s.durability, FT_DURABILITY_JOURNAL);
	CHECK_EQ(s.nr_disks, 2);
	CHECK_STR(s.disk[0].image, "/srv/a b,c.img");
	CHECK(!s.disk[0].read_only);
	CHECK_EQ(s.disk[0].virtio, FT_VIRTIO_LEGACY);
	CHECK_STR(s.disk[1].image, "/dev/vg/x");
	CHECK(s.disk[1].read_only);
	CHECK_EQ(s.disk[1].virtio, FT_VIRTIO_MODERN);
}

TEST(firmware_boots_from_a_modern_disk_unless_the_file_says_otherwise)
{
	CHECK_OK(parse(GUEST "[disk]\nimage = /a\n[disk]\nimage = /b\nvirtio = legacy\n"));
	CHECK_EQ(s.disk[0].virtio, FT_VIRTIO_MODERN);
	CHECK_EQ(s.disk[1].virtio, FT_VIRTIO_LEGACY);
	CHECK_OK(parse(GUEST "kernel = /k\n[disk]\nimage = /a\n"));
	CHECK_EQ(s.disk[0].virtio, FT_VIRTIO_LEGACY);
}

TEST(a_xen_guest_has_disks_as_any_other)
{
	char text[4096];

	CHECK_OK(parse(GUEST "hypervisor = xen\nkernel = /k\n[disk]\nimage = /a\n[disk]\nimage = /b\nread-only = yes\n"));
	CHECK_EQ(s.nr_disks, 2);
	CHECK(ft_spec_format(&s, text, sizeof(text)) > 0);
	CHECK_OK(parse(text));
	CHECK_EQ(s.hypervisor, FT_HYPERVISOR_XEN);
	CHECK_STR(s.disk[1].image, "/b");
	CHECK(s.disk[1].read_only);
}

TEST(what_is_formatted_parses_to_the_same_guest)
{
	struct ft_spec first;
	char text[4096], again[4096];

	CHECK_OK(parse(GUEST "vcpus = 2\naccel = kvm\nkernel = /k\ncmdline = x\ndurability = journal\n[nic]\nmac = 52:54:00:00:00:01\n"
		       "bridge = br0\n[disk]\nimage = /a\nvirtio = modern\n[disk]\nimage = /b\nread-only = yes\n"));
	first = s;
	CHECK(ft_spec_format(&first, text, sizeof(text)) > 0);
	CHECK_OK(parse(text));
	CHECK(ft_spec_format(&s, again, sizeof(again)) > 0);
	CHECK_STR(text, again);
	CHECK(!memcmp(&first, &s, sizeof(s)));
	CHECK_EQ(ft_spec_format(&first, text, 40), -ENOSPC);
}

TEST(a_xen_guest_may_have_a_device_model)
{
	static const char hvm[] = GUEST "hypervisor = xen\ntype = hvm\nkernel = /k\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n";
	struct ft_spec first;
	char text[4096], why[256];

	CHECK_OK(parse(GUEST "hypervisor = xen\nkernel = /k\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n"));
	CHECK_EQ(s.type, FT_XEN_PVH);
	first = s;
	CHECK_OK(parse(hvm));
	CHECK_EQ(s.type, FT_XEN_HVM);
	CHECK_EQ(ft_spec_compatible(&first, &s, why, sizeof(why)), -ENOEXEC);
	CHECK_STR(why, "'type' is 'pvh' on the backup and 'hvm' on the primary");
	first = s;
	CHECK(ft_spec_format(&first, text, sizeof(text)) > 0);
	CHECK_OK(parse(text));
	CHECK(!memcmp(&first, &s, sizeof(s)));
	snprintf(text, sizeof(text), "%s[disk]\nimage = /a\n", hvm);
	CHECK_OK(parse(text));
	CHECK_EQ(s.nr_disks, 1);
}

TEST(hostile_files_are_refused_by_line)
{
	static const struct { const char *text, *complaint; } bad[] = {
		{ "", "has no 'name'" },
		{ "[guest]\nname = vm1\n", "has no 'memory'" },
		{ "[guest]\nname = ../vm1\n", "vm1.conf:2: '../vm1' is no valid name" },
		{ GUEST "memory = 64M\n", "vm1.conf:4: 'memory' is set twice" },
		{ "[guest]\nmemory = 64\n", "a size as in 512M" },
		{ "[guest]\nmemory = M\n", "a size as in 512M" },
		{ "[guest]\nmemory = 64MB\n", "a size as in 512M" },
		{ "[guest]\nmemory = 63M\n", "a multiple of 2M" },
		{ "[guest]\nmemory = 0M\n", "at least 16M" },
		{ "[guest]\nmemory = 99999999999999999999G\n", "a size as in 512M" },
		{ "[guest]\nmemory = 18014398509481984G\n", "a size as in 512M" },
		{ "[guest]\nmemory = 1025G\n", "at most 1024G" },
		{ GUEST "vcpus = 0\n", "from 1 to 64" },
		{ GUEST "vcpus = 65\n", "from 1 to 64" },
		{ GUEST "accel = xen\n", "one of auto, kvm, tcg" },
		{ GUEST "type = pv\n", "one of pvh, hvm" },
		{ GUEST "type = hvm\n", "needs hypervisor = xen" },
		{ GUEST "hypervisor = xen\ntype = hvm\n", "needs a 'kernel'" },
		{ GUEST "machine = pc\n", "versioned QEMU machine type" },
		{ GUEST "machine = microvm\n", "versioned QEMU machine type" },
		{ GUEST "machine = pc-i440fx-7.2,dump-guest-core=on\n", "versioned QEMU machine type" },
		{ GUEST "cpu = host -device vfio\n", "a QEMU CPU model" },
		{ GUEST "cpu = -x\n", "a QEMU CPU model" },
		{ GUEST "kernel = vmlinuz\n", "absolute path" },
		{ GUEST "initrd = /x\n", "needs a 'kernel'" },
		{ GUEST "cmdline = x\n", "needs a 'kernel'" },
		{ GUEST "disk = /x\n", "knows no key 'disk'" },
		{ GUEST "[disc]\n", "no section [disc]" },
		{ GUEST "[disk]\n", "[disk] number 1 has no 'image'" },
		{ GUEST "[disk]\nimage = disk.img\n", "absolute path" },
		{ GUEST "[disk]\nimage = /x\nread-only = maybe\n", "yes or no" },
		{ GUEST "[disk]\nimage = /x\nvirtio = ide\n", "legacy, modern" },
		{ GUEST "[disk]\nimage = /x\n[disk]\nimage = /x\n", "[disk] number 2 has the same 'image' as number 1" },
		{ GUEST "durability = never\n", "memory, journal" },
		{ GUEST "[nic]\n", "[nic] number 1 has no 'mac'" },
		{ GUEST "[nic]\nmac = 52:54:00:00:00:01\n", "[nic] number 1 has no 'bridge'" },
		{ GUEST "[nic]\nmac = 53:54:00:00:00:01\n", "unicast" },
		{ GUEST "[nic]\nmac = 00:00:00:00:00:00\n", "unicast" },
		{ GUEST "[nic]\nmac = 5:2:5:4:0:0:0:0:01\n", "six bytes" },
		{ GUEST "[nic]\nmac = 52:54:00:00:00:011\n", "six bytes" },
		{ GUEST "[nic]\nmac = 52-54-00-00-00-01\n", "six bytes" },
		{ GUEST "[nic]\nbridge = br0/../x\n", "name of a bridge" },
		{ GUEST "[nic]\nbridge = abcdefghijklmnop\n", "name of a bridge" },
		{ GUEST "[nic]\nmac = 52:54:00:00:00:01\nbridge = b\n[nic]\nmac = 52:54:00:00:00:01\nbridge = b\n", "same 'mac' as number 1" },
	};

	for (unsigned i = 0; i < FT_ARRAY_LEN(bad); i++) {
		CHECK_EQ(parse(bad[i].text), -EINVAL);
		if (!ft_test_logged(bad[i].complaint))
			ft_test_fail(__FILE__, __LINE__, "case %u did not say \"%s\"", i, bad[i].complaint);
		CHECK_STR(s.name, "");
	}
}

TEST(bounds_hold)
{
	static char text[FT_SPEC_TEXT_MAX + 2];
	size_t n = (size_t)sprintf(text, GUEST);

	for (unsigned i = 0; i < 9; i++)
		n += (size_t)sprintf(text + n, "[nic]\nmac = 52:54:00:00:00:0%u\nbridge = b\n", i);
	CHECK_EQ(parse(text), -EINVAL);
	CHECK(ft_test_logged("more than 8 [nic] sections"));
	n = (size_t)sprintf(text, GUEST);
	for (unsigned i = 0; i < 9; i++)
		n += (size_t)sprintf(text + n, "[disk]\nimage = /%u\n", i);
	CHECK_EQ(parse(text), -EINVAL);
	CHECK(ft_test_logged("more than 8 [disk] sections"));
	n = (size_t)sprintf(text, GUEST "kernel = /k\ncmdline = ");
	memset(text + n, 'x', FT_SPEC_CMDLINE_MAX);
	text[n + FT_SPEC_CMDLINE_MAX] = 0;
	CHECK_EQ(parse(text), -EINVAL);
	text[n + FT_SPEC_CMDLINE_MAX - 1] = 0;
	CHECK_OK(parse(text));
	memset(text, '\n', sizeof(text));
	CHECK_EQ(ft_spec_parse(text, sizeof(text), "vm1.conf", &s), -EINVAL);
	CHECK(ft_test_logged("at most 16384 bytes"));
	CHECK_EQ(ft_spec_parse("[guest]\nname = a\0b\n", 19, "vm1.conf", &s), -EINVAL);
	CHECK(ft_test_logged("control character"));
}

TEST(a_truncated_file_never_passes_for_another_guest)
{
	static const char text[] = GUEST "vcpus = 2\nkernel = /k\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n";

	for (size_t n = 0; n < sizeof(text) - 1; n++)
		if (!ft_spec_parse(text, n, "vm1.conf", &s))
			CHECK_STR(s.name, "vm1");
}

TEST(a_replica_must_be_the_same_machine_but_may_have_its_own_paths)
{
	static const struct { const char *theirs, *key; } cases[] = {
		{ GUEST "kernel = /other\ninitrd = /i\ncmdline = q\n[nic]\nmac = 52:54:00:00:00:01\nbridge = elsewhere\n", NULL },
		{ "[guest]\nname = vm2\nmemory = 64M\n", "name" },
		{ "[guest]\nname = vm1\nmemory = 66M\n", "memory" },
		{ GUEST "vcpus = 2\n", "vcpus" },
		{ GUEST "accel = tcg\n", "accel" },
		{ GUEST "machine = pc-q35-7.2\n", "machine" },
		{ GUEST "cpu = max\n", "cpu" },
		{ GUEST, "kernel" },
		{ GUEST "kernel = /k\n", "initrd" },
		{ GUEST "kernel = /k\ninitrd = /i\ncmdline = r\n", "cmdline" },
		{ GUEST "kernel = /k\ninitrd = /i\ncmdline = q\n", "[nic]" },
		{ GUEST "kernel = /k\ninitrd = /i\ncmdline = q\n[nic]\nmac = 52:54:00:00:00:02\nbridge = br0\n", "mac" },
		{ GUEST "kernel = /k\ninitrd = /i\ncmdline = q\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\nvirtio = modern\n", "virtio" },
	};
	struct ft_spec mine, theirs;
	char why[160];

	CHECK_OK(parse(GUEST "kernel = /k\ninitrd = /i\ncmdline = q\n[nic]\nmac = 52:54:00:00:00:01\nbridge = br0\n"));
	mine = s;
	for (unsigned i = 0; i < FT_ARRAY_LEN(cases); i++) {
		CHECK_OK(parse(cases[i].theirs));
		theirs = s;
		CHECK_EQ(ft_spec_compatible(&mine, &theirs, why, sizeof(why)), cases[i].key ? -ENOEXEC : 0);
		if (cases[i].key && !strstr(why, cases[i].key))
			ft_test_fail(__FILE__, __LINE__, "case %u: \"%s\" does not name %s", i, why, cases[i].key);
	}
}

TEST(disks_of_a_replica_may_lie_elsewhere_but_are_as_many_and_of_the_same_kind)
{
	static const struct { const char *theirs, *key; } cases[] = {
		{ GUEST "durability = journal\n[disk]\nimage = /x\n[disk]\nimage = /y\nread-only = yes\n", NULL },
		{ GUEST "[disk]\nimage = /a\n", "number of [disk] sections" },
		{ GUEST "[disk]\nimage = /a\n[disk]\nimage = /b\n", "'read-only' of [disk] number 2" },
		{ GUEST "[disk]\nimage = /a\nvirtio = legacy\n[disk]\nimage = /b\nread-only = yes\n", "'virtio' of [disk] number 1" },
	};
	struct ft_spec mine;
	char why[160];

	CHECK_OK(parse(GUEST "[disk]\nimage = /a\n[disk]\nimage = /b\nread-only = yes\n"));
	mine = s;
	for (unsigned i = 0; i < FT_ARRAY_LEN(cases); i++) {
		CHECK_OK(parse(cases[i].theirs));
		CHECK_EQ(ft_spec_compatible(&mine, &s, why, sizeof(why)), cases[i].key ? -ENOEXEC : 0);
		if (cases[i].key && !strstr(why, cases[i].key))
			ft_test_fail(__FILE__, __LINE__, "case %u: \"%s\" does not name %s", i, why, cases[i].key);
	}
}

TEST(the_manual_page_knows_every_key)
{
	ft_test_keys_documented("checkpoint/spec.c", "man/ft-guest-file.5");
}

TEST(a_guest_is_found_by_name_and_the_example_is_valid)
{
	char path[128];

	CHECK_OK(ft_conf_load("etc/ft.conf", &(struct ft_conf){ 0 }));
	ft_conf_set(&(struct ft_conf){ .guests_dir = "etc/guests" });
	CHECK_OK(ft_spec_load("vm1", &s));
	CHECK_EQ(s.nr_nics, 1);
	CHECK_EQ(ft_spec_load("vm9", &s), -ENOENT);
	CHECK(ft_test_logged("etc/guests/vm9.conf"));
	CHECK_EQ(ft_spec_load("../vm1", &s), -EINVAL);
	snprintf(path, sizeof(path), "%s/other.conf", ft_test_dir());
	CHECK_OK(ft_write_file(path, GUEST, strlen(GUEST), 0600));
	struct ft_conf c = { 0 };
	snprintf(c.guests_dir, sizeof(c.guests_dir), "%s", ft_test_dir());
	ft_conf_set(&c);
	CHECK_EQ(ft_spec_load("other", &s), -EINVAL);
	CHECK(ft_test_logged("it must be 'other'"));
}
