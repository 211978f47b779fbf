// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * announce.c - tell the network where the guest is now. See ft/netbuf.h.
 *
 * The frame goes out of the bridge device, which floods it to every port: writing to the tap would send it
 * to the guest. The bridge itself learns only from what it receives, so it is told by netlink.
 */
#include "ft/netbuf.h"

#include "netbuf/rtnl.h"
#include <arpa/inet.h>
#include <ev.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static const double at_s[] = { 0, 0.05, 0.15, 0.3, 0.5, 1.0 };

struct announce {
	struct ev_loop *loop;           /* borrowed */
	ev_timer timer;
	unsigned nr_sent;
	int fd;
	char tap[16];
	uint8_t mac[6];
	uint32_t bridge;
	bool learned;           /* by our own bridge */
	uint8_t frame[60];
};

/* "Who am I?", asked by the guest's MAC: switches learn the port, and nobody has to answer. */
static void make_rarp(uint8_t frame[60], const uint8_t mac[6])
{
	static const uint8_t fixed[] = { 0x80, 0x35, 0, ARPHRD_ETHER, 0x08, 0, 6, 4, 0, ARPOP_RREQUEST };

	memset(frame, 0, 60);
	memset(frame, 0xff, 6);
	memcpy(frame + 6, mac, 6);
	memcpy(frame + 12, fixed, sizeof(fixed));
	memcpy(frame + 22, mac, 6);
	memcpy(frame + 32, mac, 6);
}

static void announce_free(struct announce *a)
{
	ev_timer_stop(a->loop, &a->timer);
	if (a->fd >= 0)
		close(a->fd);
	free(a);
}

/*
 * A bridge learns nothing behind a port without carrier: a vif has none before the guest has connected anew. The
 * switches beyond can be told at once, and the bridge later.
 */
static int learn(struct announce *a)
{
	struct ft_rtnl_link link;
	struct mnl_socket *nl;
	int rc = ft_rtnl_open(&nl);

	if (rc)
		return rc;
	rc = ft_rtnl_link(nl, a->tap, &link);
	if (!rc && !link.master)
		rc = -ENODEV;
	if (!rc) {
		a->bridge = link.master;
		rc = ft_rtnl_fdb_move(nl, link.ifindex, a->mac);
	}
	mnl_socket_close(nl);
	a->learned = !rc;
	return rc == -EPERM ? 0 : rc;
}

static int send_one(struct announce *a)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_RARP),
				  .sll_ifindex = (int)a->bridge, .sll_halen = 6 };

	memset(to.sll_addr, 0xff, 6);
	if (sendto(a->fd, a->frame, sizeof(a->frame), MSG_DONTWAIT, (struct sockaddr *)&to, sizeof(to)) < 0)
		return -errno;
	return 0;
}

static void on_timer(struct ev_loop *loop, ev_timer *t, int revents)
{
	struct announce *a = t->data;
	int rc = send_one(a);

	if (!rc && !a->learned)
		rc = learn(a);
	if (rc)
		ft_warn("announcement %u of %zu: %s", a->nr_sent + 1, FT_ARRAY_LEN(at_s), strerror(-rc));
	if (++a->nr_sent == FT_ARRAY_LEN(at_s)) {
		announce_free(a);
		return;
	}
	ev_timer_set(t, at_s[a->nr_sent] - at_s[a->nr_sent - 1], 0);
	ev_timer_start(loop, t);
}

int ft_announce(struct ev_loop *loop, const char *tap, const uint8_t mac[6])
{
	struct announce *a = calloc(1, sizeof(*a));
	int rc;

	if (!a)
		return -ENOMEM;
	a->loop = loop;
	snprintf(a->tap, sizeof(a->tap), "%s", tap);
	memcpy(a->mac, mac, 6);
	a->fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);  /* protocol 0: receives nothing */
	rc = a->fd < 0 ? -errno : learn(a);
	if (rc) {
		ft_err("%s: cannot announce the guest: %s (is it a port of a bridge?)", tap, strerror(-rc));
		announce_free(a);
		return rc;
	}
	make_rarp(a->frame, mac);
	ev_timer_init(&a->timer, on_timer, at_s[0], 0);
	a->timer.data = a;
	ev_timer_start(loop, &a->timer);
	return 0;
}
