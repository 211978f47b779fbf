// SPDX-License-Identifier: GPL-3.0-or-later
/* qemu_tap.c - the taps of a guest; see checkpoint/qemu_start.h. */
#include "checkpoint/qemu_start.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* FNV-1a: names differ between guests, and are the same on each start and host. */
void ft_tap_name(const char *guest, unsigned nic, char name[16])
{
	uint32_t h = 2166136261u;

	for (; *guest; guest++)
		h = (h ^ (uint8_t)*guest) * 16777619u;
	snprintf(name, 16, "ft%08xn%u", h, nic % 10);
}

static struct ifreq request(const char *name)
{
	struct ifreq r = { 0 };

	memcpy(r.ifr_name, name, strnlen(name, IFNAMSIZ - 1));
	return r;
}

int ft_tap_open_raw(const char *name, int fd)
{
	struct ifreq r = request(name);
	int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);

	if (tun < 0)
		return -errno;
	r.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL);
	if (ioctl(tun, TUNSETIFF, &r) < 0 || (fd >= 0 && fd != tun && dup2(tun, fd) < 0)) {
		int rc = -errno;

		close(tun);
		return rc;
	}
	if (fd < 0)
		return tun;
	if (fd != tun)
		close(tun);
	return fd;
}

static int link_request(unsigned long what, struct ifreq *r)
{
	int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), rc = 0;

	if (s < 0)
		return -errno;
	if (ioctl(s, what, r) < 0)
		rc = -errno;
	close(s);
	return rc;
}

/* The host itself must not speak on the guest's wire: no router solicitation, no neighbour discovery. */
static int silence_host(const char *name)
{
	char path[80];
	int fd, rc;

	snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;    /* a kernel without IPv6 */
	rc = ft_write_all(fd, "1", 1);
	close(fd);
	return rc;
}

/* A bridge takes the lowest address of its ports for its own; with fe: in front it will not be this one. */
static int set_address(const char *name, const uint8_t mac[6])
{
	struct ifreq r = request(name);

	r.ifr_hwaddr.sa_family = ARPHRD_ETHER;
	memcpy(r.ifr_hwaddr.sa_data, mac, 6);
	r.ifr_hwaddr.sa_data[0] = (char)0xfe;
	return link_request(SIOCSIFHWADDR, &r);
}

static int join_bridge(const char *name, const char *bridge)
{
	struct ifreq r = request(bridge);

	r.ifr_ifindex = (int)if_nametoindex(name);
	return r.ifr_ifindex ? link_request(SIOCBRADDIF, &r) : -errno;
}

static const char *remedy(int rc)
{
	return rc == -EPERM ? " (root is needed)" :
	       rc == -EBUSY ? " (another process has it)" :
	       rc == -ENOENT || rc == -ENODEV ? " (is the tun module there?)" : "";
}

static int set_up(const char *guest, const char *name, const struct ft_nic *nic)
{
	int rc = silence_host(name);

	if (!rc)
		rc = set_address(name, nic->mac);
	if (rc) {
		ft_err("guest %s: cannot set up tap %s: %s", guest, name, strerror(-rc));
		return rc;
	}
	rc = join_bridge(name, nic->bridge);
	if (rc == -ENODEV || rc == -EOPNOTSUPP)
		ft_err("guest %s: there is no bridge %s on this host: make it (ip link add %s type bridge) or correct 'bridge' "
		       "in the guest file", guest, nic->bridge, nic->bridge);
	else if (rc)
		ft_err("guest %s: cannot attach tap %s to bridge %s: %s", guest, name, nic->bridge, strerror(-rc));
	return rc;
}

int ft_tap_open(const char *guest, const char *name, const struct ft_nic *nic, int *fd)
{
	int rc;

	*fd = ft_tap_open_raw(name, -1);
	if (*fd < 0) {
		ft_err("guest %s: cannot make tap %s: %s%s", guest, name, strerror(-*fd), remedy(*fd));
		return *fd;
	}
	rc = set_up(guest, name, nic);
	if (rc) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}

int ft_tap_set(const char *name, bool up)
{
	struct ifreq r = request(name);
	int rc = link_request(SIOCGIFFLAGS, &r);

	if (rc)
		return rc;
	r.ifr_flags = (short)(up ? r.ifr_flags | IFF_UP : r.ifr_flags & ~IFF_UP);
	return link_request(SIOCSIFFLAGS, &r);
}

/* The bridge may have been made anew since the tap joined it; a tap that is on it is busy. */
static int set_nic(const char *tap, const char *bridge, bool up)
{
	int rc = up ? join_bridge(tap, bridge) : 0;
	int set = ft_tap_set(tap, up);

	return set ? set : rc == -EBUSY ? 0 : rc;
}

int ft_qemu_net(const struct ft_attach *at, bool up)
{
	int rc = 0;

	for (unsigned i = 0; i < at->nr_nics; i++) {
		int one = set_nic(at->nic[i].tap, at->nic[i].bridge, up);

		if (one)
			ft_err("guest %s: cannot set tap %s of bridge %s %s: %s (make the bridge and put the tap on it by hand)",
			       at->guest, at->nic[i].tap, at->nic[i].bridge, up ? "up" : "down", strerror(-one));
		if (one && !rc)
			rc = one;
	}
	return rc;
}
