// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * test_netbuf.c - output commit on real frames. Each test has a network namespace of its own:
 *
 *	guest (this process, writing frames to tap0) -- bridge br0 -- veth -- client (packet socket on "client")
 *	                                                    |
 *	                                                   host (packet socket on br0)
 */
#include "tests/test.h"

#include "ft/netbuf.h"
#include "netbuf/gate.h"
#include "netbuf/nft.h"
#include "netbuf/queue.h"
#include "netbuf/rtnl.h"
#include <ev.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define FRAME_MAX 70000
#define ARRIVAL_MS 3000         /* bound on waiting for what must come */
#define SILENCE_MS 150          /* how long to listen for what must not come */
#define SEEN_MAX 80000u

/* --- a small world --- */

struct world {
	int tap, client, host;
	int lldp;                       /* what the host's own protocols see on tap0 itself */
	uint8_t client_mac[6], host_mac[6];
	struct ev_loop *loop;
	struct ft_netbuf *nb;
	struct ft_output *out;
	unsigned held_calls, breaches;
	char why[256];
	uint32_t next_tag;
};

static struct mnl_socket *rt;

static struct nlmsghdr *rt_link(char *buf, uint16_t flags)
{
	struct nlmsghdr *m = mnl_nlmsg_put_header(buf);
	struct ifinfomsg *ifi;

	m->nlmsg_type = RTM_NEWLINK;
	m->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
	ifi = mnl_nlmsg_put_extra_header(m, sizeof(*ifi));
	ifi->ifi_change = flags ? 0 : IFF_UP;
	ifi->ifi_flags = flags ? 0 : IFF_UP;
	return m;
}

static int link_add_by(struct mnl_socket *nl, const char *name, const char *kind, const char *peer)
{
	char buf[512];
	struct nlmsghdr *m = rt_link(buf, NLM_F_CREATE | NLM_F_EXCL);
	struct nlattr *info, *data, *p;

	mnl_attr_put_strz(m, IFLA_IFNAME, name);
	info = mnl_attr_nest_start(m, IFLA_LINKINFO);
	mnl_attr_put_strz(m, IFLA_INFO_KIND, kind);
	if (peer) {
		data = mnl_attr_nest_start(m, IFLA_INFO_DATA);
		p = mnl_attr_nest_start(m, VETH_INFO_PEER);
		mnl_nlmsg_put_extra_header(m, sizeof(struct ifinfomsg));
		mnl_attr_put_strz(m, IFLA_IFNAME, peer);
		mnl_attr_nest_end(m, p);
		mnl_attr_nest_end(m, data);
	}
	mnl_attr_nest_end(m, info);
	return ft_nl_request(nl, m, NULL, NULL);
}

static int link_add(const char *name, const char *kind, const char *peer)
{
	return link_add_by(rt, name, kind, peer);
}

/* Up, and into @bridge (NULL: out of any). */
static int link_join(const char *name, const char *bridge)
{
	char buf[256];
	struct nlmsghdr *m = rt_link(buf, 0);

	mnl_attr_put_strz(m, IFLA_IFNAME, name);
	mnl_attr_put_u32(m, IFLA_MASTER, bridge ? if_nametoindex(bridge) : 0);
	return ft_nl_request(rt, m, NULL, NULL);
}

static int link_rename(const char *from, const char *to)
{
	char buf[256];
	struct nlmsghdr *m = rt_link(buf, 0);

	((struct ifinfomsg *)mnl_nlmsg_get_payload(m))->ifi_index = (int)if_nametoindex(from);
	mnl_attr_put_strz(m, IFLA_IFNAME, to);
	return ft_nl_request(rt, m, NULL, NULL);
}

static int bridge_stp(const char *bridge, bool on)
{
	char buf[256];
	struct nlmsghdr *m = rt_link(buf, 0);
	struct nlattr *info, *data;

	mnl_attr_put_strz(m, IFLA_IFNAME, bridge);
	info = mnl_attr_nest_start(m, IFLA_LINKINFO);
	mnl_attr_put_strz(m, IFLA_INFO_KIND, "bridge");
	data = mnl_attr_nest_start(m, IFLA_INFO_DATA);
	mnl_attr_put_u32(m, IFLA_BR_STP_STATE, on);
	mnl_attr_nest_end(m, data);
	mnl_attr_nest_end(m, info);
	return ft_nl_request(rt, m, NULL, NULL);
}

static void put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		(void)!write(fd, text, strlen(text));
		close(fd);
	}
}

static int tap_open(const char *name)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		ft_test_skip("no /dev/net/tun: %s", strerror(errno));
	strncpy(ifr.ifr_name, name, IFNAMSIZ - 1);
	CHECK(ioctl(fd, TUNSETIFF, &ifr) == 0);
	return fd;
}

static int listen_on(const char *ifname, uint16_t protocol)
{
	struct sockaddr_ll at = { .sll_family = AF_PACKET, .sll_protocol = htons(protocol),
				  .sll_ifindex = (int)if_nametoindex(ifname) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), size = 128 << 20;

	CHECK(fd >= 0);
	(void)!setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	CHECK(bind(fd, (struct sockaddr *)&at, sizeof(at)) == 0);
	return fd;
}

static void client_sends(struct world *w, const uint8_t *to, const uint8_t *from)
{
	uint8_t f[60] = { [12] = 0x88, [13] = 0xb5 };

	memcpy(f, to, 6);
	memcpy(f + 6, from, 6);
	CHECK_EQ(send(w->client, f, sizeof(f), 0), sizeof(f));
}

static bool tap_gets(struct world *w, uint16_t ethertype, unsigned within_ms)
{
	uint64_t end = ft_now_ns() + within_ms * FT_MS_NS;
	uint8_t buf[2048];

	while (ft_now_ns() < end) {
		ssize_t n = read(w->tap, buf, sizeof(buf));
		size_t at = sizeof(struct virtio_net_hdr) + 12;

		if (n > (ssize_t)at + 2 && (buf[at] << 8 | buf[at + 1]) == ethertype)
			return true;
		if (n < 0)
			usleep(1000);
	}
	return false;
}

/* Bridge ports open a moment after they come up, by a kernel thread. */
static void wait_for_path(struct world *w)
{
	static const uint8_t all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	uint64_t end = ft_now_ns() + ARRIVAL_MS * FT_MS_NS;

	do
		client_sends(w, all, w->client_mac);
	while (!tap_gets(w, 0x88b5, 20) && ft_now_ns() < end);
}

static void read_mac(const char *ifname, uint8_t mac[6])
{
	struct ifreq ifr = { .ifr_name = "" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	strcpy(ifr.ifr_name, ifname);
	CHECK(ioctl(fd, SIOCGIFHWADDR, &ifr) == 0);
	close(fd);
	memcpy(mac, ifr.ifr_hwaddr.sa_data, 6);
}

static struct world *world_new(void)
{
	struct world *w = calloc(1, sizeof(*w));

	if (unshare(CLONE_NEWNET) < 0)
		ft_test_skip("a network namespace needs root: %s", strerror(errno));
	put_file("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
	put_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	/* Off for all bridges of the host, as many administrators have it. */
	put_file("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
	put_file("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0");
	CHECK_OK(ft_rtnl_open(&rt));
	CHECK_OK(link_add("br0", "bridge", NULL));
	CHECK_OK(link_add("veth0", "veth", "client"));
	w->tap = tap_open("tap0");
	CHECK_OK(link_join("br0", NULL));
	CHECK_OK(link_join("client", NULL));
	CHECK_OK(link_join("veth0", "br0"));
	CHECK_OK(link_join("tap0", "br0"));
	read_mac("client", w->client_mac);
	read_mac("br0", w->host_mac);
	w->client = listen_on("client", ETH_P_ALL);
	w->host = listen_on("br0", ETH_P_ALL);
	w->lldp = listen_on("tap0", 0x88cc);
	w->loop = ev_loop_new(EVFLAG_AUTO);
	wait_for_path(w);
	return w;
}

static void world_free(struct world *w)
{
	if (w->out)
		w->out->ops->free(w->out);
	ev_loop_destroy(w->loop);
	mnl_socket_close(rt);
	close(w->tap);
	close(w->client);
	close(w->host);
	close(w->lldp);
	free(w);
}

static void on_held(void *ctx)
{
	((struct world *)ctx)->held_calls++;
}

static void on_breach(void *ctx, const char *why)
{
	struct world *w = ctx;

	w->breaches++;
	snprintf(w->why, sizeof(w->why), "%s", why);
}

static struct ft_netbuf_config config(struct world *w)
{
	return (struct ft_netbuf_config){ .guest = "vm1", .nr_taps = 1, .tap = { "tap0" }, .bridge = { "br0" },
					  .on_held = on_held, .on_breach = on_breach, .ctx = w };
}

static void protect_as(struct world *w, const struct ft_netbuf_config *cfg)
{
	int rc = ft_netbuf_new(w->loop, cfg, &w->nb);

	if (rc == -EOPNOTSUPP)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	CHECK_OK(rc);
	w->out = ft_netbuf_output(w->nb);
	CHECK_OK(w->out->ops->setup(w->out));
}

static void protect(struct world *w)
{
	struct ft_netbuf_config cfg = config(w);

	protect_as(w, &cfg);
}

static struct world *protected_world(void)
{
	struct world *w = world_new();

	protect(w);
	return w;
}

static bool holds_all(struct world *w)
{
	struct ft_netbuf_stats st;

	ft_netbuf_get_stats(w->nb, &st);
	return !strcmp(st.held, "all ethertypes");
}

static int fresh_ms(struct world *w, unsigned ms)
{
	return ft_netbuf_fresh(w->nb, ft_now_ns() + ms * FT_MS_NS, NULL);
}

static void stop_loop(struct ev_loop *loop, ev_timer *t, int revents)
{
	ev_break(loop, EVBREAK_ALL);
}

static void run_ms(struct world *w, unsigned ms)
{
	ev_timer t;

	ev_timer_init(&t, stop_loop, ms / 1000.0, 0);
	ev_now_update(w->loop);
	ev_timer_start(w->loop, &t);
	ev_run(w->loop, 0);
}

static void run_until(struct world *w, const unsigned *count, unsigned at_least)
{
	uint64_t end = ft_now_ns() + ARRIVAL_MS * FT_MS_NS;

	while (*count < at_least && ft_now_ns() < end)
		run_ms(w, 5);
	CHECK(*count >= at_least);
}

/* --- frames, each with a number of its own --- */

enum kind { K_IPV4, K_IPV4_TO_HOST, K_IPV4_ALL, K_IPV6, K_VLAN, K_ODD, K_LLDP, K_STP, K_ARP, K_NOBODY, K_GROUP, NR_KINDS };

static const uint8_t guest_mac[6] = { 0x52, 0x54, 0, 1, 2, 3 };
static const uint8_t tag_magic[4] = { 0xf7, 'T', 'a', 'g' };

static void put_tag(uint8_t *p, uint32_t tag)
{
	memcpy(p, tag_magic, 4);
	ft_put32(p + 4, tag);
}

static uint16_t ip_checksum(const uint8_t *p, size_t len)
{
	uint32_t sum = 0;

	for (size_t i = 0; i < len; i += 2)
		sum += (uint32_t)(p[i] << 8 | p[i + 1]);
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static void put_be16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)(v >> 8);
	p[1] = (uint8_t)v;
}

static size_t put_ipv4(uint8_t *p, uint8_t protocol, size_t payload)
{
	static const uint8_t addresses[8] = { 10, 0, 0, 2, 10, 0, 0, 9 };

	memset(p, 0, 20);
	p[0] = 0x45;
	put_be16(p + 2, (uint16_t)(20 + payload));
	p[8] = 64;
	p[9] = protocol;
	memcpy(p + 12, addresses, 8);
	put_be16(p + 10, ip_checksum(p, 20));
	return 20;
}

static size_t put_ipv6(uint8_t *p, size_t payload)
{
	memset(p, 0, 40);
	p[0] = 0x60;
	put_be16(p + 4, (uint16_t)payload);
	p[6] = 253;
	p[7] = 64;
	p[8] = p[24] = 0xfd;
	p[23] = 2;
	p[39] = 9;
	return 40;
}

static const uint8_t *destination(const struct world *w, enum kind k)
{
	static const uint8_t all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, lldp[6] = { 0x01, 0x80, 0xc2, 0, 0, 0x0e },
			     stp[6] = { 0x01, 0x80, 0xc2, 0, 0, 0 };

	switch (k) {
	case K_LLDP: return lldp;
	case K_STP: return stp;
	case K_ARP:
	case K_IPV4_ALL: return all;
	case K_IPV4_TO_HOST: return w->host_mac;
	default: return w->client_mac;
	}
}

static size_t make_frame(const struct world *w, uint8_t *f, enum kind k, uint32_t tag)
{
	static const uint16_t type[NR_KINDS] = {
		[K_IPV4] = 0x0800, [K_IPV4_TO_HOST] = 0x0800, [K_IPV4_ALL] = 0x0800, [K_IPV6] = 0x86dd, [K_VLAN] = 0x8100,
		[K_ODD] = 0x88b5, [K_LLDP] = 0x88cc, [K_STP] = 0x0026, [K_ARP] = 0x0806, [K_NOBODY] = 0x0800, [K_GROUP] = 0x0800,
	};
	size_t at = 14;

	memset(f, 0, 128);
	memcpy(f, destination(w, k), 6);
	if (k != K_NOBODY)
		memcpy(f + 6, guest_mac, 6);
	if (k == K_GROUP)
		f[6] |= 1;
	put_be16(f + 12, type[k]);
	if (k == K_VLAN) {
		put_be16(f + 14, 5);
		put_be16(f + 16, 0x0800);
		at = 18;
	}
	if (type[k] == 0x0800 || k == K_VLAN)
		at += put_ipv4(f + at, 253, 40);
	if (k == K_IPV6)
		at += put_ipv6(f + at, 40);
	if (k == K_ARP)
		at += 28;
	put_tag(f + at, tag);
	return at + 40;
}

static void tap_write(struct world *w, const struct virtio_net_hdr *hdr, const uint8_t *frame, size_t len)
{
	static uint8_t buf[sizeof(*hdr) + FRAME_MAX];

	memcpy(buf, hdr, sizeof(*hdr));
	memcpy(buf + sizeof(*hdr), frame, len);
	CHECK_EQ(write(w->tap, buf, sizeof(*hdr) + len), sizeof(*hdr) + len);
}

static uint32_t guest_sends(struct world *w, enum kind k)
{
	struct virtio_net_hdr hdr = { 0 };
	uint8_t frame[256];
	uint32_t tag = ++w->next_tag;

	tap_write(w, &hdr, frame, make_frame(w, frame, k, tag));
	return tag;
}

static void guest_sends_every_kind(struct world *w)
{
	for (enum kind k = 0; k < NR_KINDS; k++)
		guest_sends(w, k);
}

/* --- what is seen outside --- */

struct seen {
	unsigned nr;
	uint32_t tag[SEEN_MAX];
	size_t longest;
};

static uint32_t find_tag(const uint8_t *p, size_t len)
{
	for (size_t i = 0; i + 8 <= len && i < 200; i++)
		if (!memcmp(p + i, tag_magic, 4))
			return ft_le32(p + i + 4);
	return 0;
}

static void collect(int fd, struct seen *s)
{
	static uint8_t buf[FRAME_MAX];
	struct sockaddr_ll from;
	socklen_t from_len = sizeof(from);
	ssize_t n;

	while ((n = recvfrom(fd, buf, sizeof(buf), MSG_DONTWAIT, (struct sockaddr *)&from, &from_len)) > 0) {
		uint32_t tag = from.sll_pkttype == PACKET_OUTGOING ? 0 : find_tag(buf, (size_t)n);

		if (!tag)
			continue;
		CHECK(s->nr < SEEN_MAX);
		s->tag[s->nr++] = tag;
		if ((size_t)n > s->longest)
			s->longest = (size_t)n;
	}
}

static void collect_until(int fd, struct seen *s, unsigned at_least, unsigned ms)
{
	uint64_t end = ft_now_ns() + ms * FT_MS_NS, now;
	struct pollfd p = { .fd = fd, .events = POLLIN };

	for (;;) {
		collect(fd, s);
		now = ft_now_ns();
		if ((at_least && s->nr >= at_least) || now >= end)
			return;
		(void)!poll(&p, 1, (int)((end - now) / FT_MS_NS) + 1);
	}
}

static void nothing_is_seen(struct world *w)
{
	static struct seen c, h;

	c.nr = h.nr = 0;
	collect_until(w->client, &c, 0, SILENCE_MS);
	collect(w->host, &h);
	collect(w->lldp, &h);
	if (c.nr || h.nr)
		ft_test_fail(__FILE__, __LINE__, "%u frames at the client (first: %u), %u at the host (first: %u)",
			     c.nr, c.tag[0], h.nr, h.tag[0]);
}

/* Exactly @first..@last at the client, in order. */
static void client_sees(struct world *w, uint32_t first, uint32_t last)
{
	static struct seen c;

	c.nr = 0;
	collect_until(w->client, &c, last - first + 1, ARRIVAL_MS);
	collect_until(w->client, &c, 0, 20);
	CHECK_EQ(c.nr, last - first + 1);
	for (uint32_t i = 0; i < c.nr; i++)
		CHECK_EQ(c.tag[i], first + i);
}

static int seal(struct world *w, uint64_t epoch)
{
	return w->out->ops->seal(w->out, epoch);
}

static int commit(struct world *w, uint64_t epoch)
{
	return w->out->ops->commit(w->out, epoch);
}

/* The backup has @epoch, and we may speak. */
static int acked(struct world *w, uint64_t epoch)
{
	int rc = fresh_ms(w, 1900);

	return rc ? rc : commit(w, epoch);
}

/* The gate works: one packet, @tag, is sealed as @epoch and leaves alone when that is acknowledged. */
static void one_packet_leaves(struct world *w, uint64_t epoch, uint32_t tag)
{
	CHECK_OK(fresh_ms(w, 1900));
	w->next_tag = tag - 1;
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, epoch));
	CHECK_OK(acked(w, epoch));
	client_sees(w, tag, tag);
}

/* --- stories --- */

/* The world itself is sound: without protection every kind that a bridge forwards arrives. */
TEST(unprotected_frames_arrive)
{
	struct world *w = world_new();
	static struct seen c, h;

	guest_sends_every_kind(w);
	collect_until(w->client, &c, 6, ARRIVAL_MS);
	collect(w->client, &c);
	collect(w->host, &h);
	CHECK(c.nr >= 6);
	CHECK(h.nr >= 2);
	h.nr = 0;
	collect(w->lldp, &h);
	CHECK_EQ(h.nr, 1);
	world_free(w);
}

static void nothing_leaves(void)
{
	struct world *w = protected_world();
	static struct seen c;

	guest_sends_every_kind(w);
	CHECK_OK(seal(w, 1));
	nothing_is_seen(w);
	CHECK_OK(fresh_ms(w, 1500));
	guest_sends_every_kind(w);
	CHECK_OK(seal(w, 2));
	if (holds_all(w)) {
		nothing_is_seen(w);
	} else {
		collect_until(w->client, &c, 0, SILENCE_MS);
		CHECK_EQ(c.nr, 1);
		CHECK_EQ(c.tag[0], NR_KINDS + 1 + K_ARP);
	}
	world_free(w);
}

TEST(nothing_leaves_before_the_ack_of_any_kind)
{
	nothing_leaves();
}

TEST(nothing_leaves_before_the_ack_of_any_kind_over_br_netfilter)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	nothing_leaves();
}

static void epochs_leave_in_order(void)
{
	struct world *w = protected_world();
	uint32_t last1, last2, last3;

	CHECK_OK(fresh_ms(w, 1900));
	for (int i = 0; i < 20; i++)
		last1 = guest_sends(w, i % 2 ? K_IPV6 : K_IPV4);
	CHECK_OK(seal(w, 1));
	for (int i = 0; i < 20; i++)
		last2 = guest_sends(w, i % 3 ? K_IPV4_ALL : K_IPV6);
	CHECK_OK(seal(w, 2));
	CHECK_OK(seal(w, 3));
	for (int i = 0; i < 20; i++)
		last3 = guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 4));
	nothing_is_seen(w);
	CHECK_OK(acked(w, 1));
	client_sees(w, 1, last1);
	nothing_is_seen(w);
	CHECK_OK(acked(w, 3));
	client_sees(w, last1 + 1, last2);
	CHECK_OK(fresh_ms(w, 1900));
	CHECK_OK(acked(w, 4));
	client_sees(w, last2 + 1, last3);
	world_free(w);
}

TEST(acknowledged_epochs_leave_whole_and_in_order)
{
	epochs_leave_in_order();
}

TEST(acknowledged_epochs_leave_whole_and_in_order_over_br_netfilter)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	epochs_leave_in_order();
}

TEST(what_comes_after_the_seal_waits_for_the_next_epoch)
{
	struct world *w = protected_world();
	struct ft_netbuf_stats st;

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	guest_sends(w, K_IPV4);
	run_ms(w, 5);
	CHECK_OK(acked(w, 1));
	client_sees(w, 1, 1);
	nothing_is_seen(w);
	ft_netbuf_get_stats(w->nb, &st);
	CHECK_EQ(st.held_packets, 1);
	CHECK_EQ(st.released_packets, 1);
	CHECK_OK(seal(w, 2));
	ft_netbuf_get_stats(w->nb, &st);
	CHECK_EQ(st.in_flight, 1);
	CHECK_OK(acked(w, 2));
	client_sees(w, 2, 2);
	world_free(w);
}

TEST(the_first_held_packet_of_an_epoch_is_told_once)
{
	struct world *w = protected_world();

	run_ms(w, 20);
	CHECK_EQ(w->held_calls, 0);
	for (uint64_t epoch = 1; epoch <= 3; epoch++) {
		for (int i = 0; i < 10; i++) {
			guest_sends(w, K_IPV4);
			run_ms(w, 3);
		}
		CHECK_EQ(w->held_calls, epoch);
		CHECK_OK(seal(w, epoch));
	}
	run_ms(w, 20);
	CHECK_EQ(w->held_calls, 3);
	world_free(w);
}

TEST(without_a_seal_held_packets_do_not_keep_the_loop_awake)
{
	struct world *w = protected_world();
	unsigned before;

	guest_sends(w, K_IPV4);
	run_ms(w, 20);
	before = ev_iteration(w->loop);
	run_ms(w, 300);                         /* cut off, frozen */
	CHECK(ev_iteration(w->loop) - before < 20);
	guest_sends(w, K_IPV4);
	run_ms(w, 20);
	CHECK_EQ(w->held_calls, 1);
	CHECK_OK(seal(w, 1));
	CHECK_OK(acked(w, 1));
	client_sees(w, 1, 2);
	world_free(w);
}

TEST(delivery_to_the_host_itself_is_held_too)
{
	struct world *w = protected_world();
	static struct seen h;

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4_TO_HOST);
	CHECK_OK(seal(w, 1));
	nothing_is_seen(w);
	CHECK_OK(acked(w, 1));
	collect_until(w->host, &h, 1, ARRIVAL_MS);
	CHECK_EQ(h.nr, 1);
	world_free(w);
}

TEST(a_release_without_the_right_to_speak_goes_nowhere)
{
	struct world *w = protected_world();
	struct ft_netbuf_stats st;

	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	CHECK_OK(commit(w, 1));                 /* never fresh */
	nothing_is_seen(w);
	CHECK_OK(fresh_ms(w, 1900));
	nothing_is_seen(w);                     /* and not later either */
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 2));
	CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
	CHECK_OK(commit(w, 2));
	nothing_is_seen(w);
	ft_netbuf_get_stats(w->nb, &st);
	CHECK_EQ(st.dropped_packets, 2);
	world_free(w);
}

TEST(a_renewal_that_comes_too_late_opens_nothing)
{
	struct world *w = protected_world();

	CHECK_OK(ft_netbuf_fresh(w->nb, ft_now_ns() - FT_MS_NS, NULL));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	CHECK_OK(commit(w, 1));
	guest_sends(w, K_ARP);
	nothing_is_seen(w);
	world_free(w);
}

TEST(a_hushed_gate_is_not_opened_by_a_late_renewal)
{
	struct world *w = protected_world();

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	CHECK_OK(ft_netbuf_hush(w->nb, true));
	CHECK_EQ(fresh_ms(w, 1900), -ECANCELED);
	CHECK_OK(commit(w, 1));
	guest_sends(w, K_ARP);
	nothing_is_seen(w);
	CHECK_OK(ft_netbuf_hush(w->nb, false));
	nothing_is_seen(w);
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 2));
	CHECK_OK(acked(w, 2));
	client_sees(w, holds_all(w) ? 2 : 3, 3);        /* the ARP was held, or is gone */
	world_free(w);
}

/* A renewal adds what the kernel does not have yet: after the gate was closed that is all of it. */
TEST(a_gate_that_was_closed_opens_with_the_next_renewal)
{
	struct world *w = protected_world();

	for (int n = 1; n <= 3; n++) {
		CHECK_OK(fresh_ms(w, 1900));
		if (n == 2)
			CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
		CHECK_OK(ft_netbuf_hush(w->nb, n == 3));
		CHECK_OK(ft_netbuf_hush(w->nb, false));
		CHECK_OK(fresh_ms(w, 1900));
		guest_sends(w, K_IPV4);
		CHECK_OK(seal(w, (uint64_t)n));
		CHECK_OK(commit(w, (uint64_t)n));
		client_sees(w, (uint32_t)n, (uint32_t)n);
	}
	world_free(w);
}

static uint64_t open_until(struct world *w, uint64_t until_ns)
{
	uint64_t open_ns;

	CHECK_OK(ft_netbuf_fresh(w->nb, until_ns, &open_ns));
	CHECK(open_ns <= until_ns + FT_MS_NS);          /* two clocks were read, not at once */
	return open_ns;
}

/* Each slot is an element of a set, each renewal a transaction: a lease of seconds must not need 30 a second. */
TEST(a_long_lease_has_coarse_slots_and_is_renewed_seldom)
{
	struct world *w = world_new();
	struct ft_netbuf_config cfg = config(w);
	uint64_t until, first;

	cfg.silence_ms = 5000;
	protect_as(w, &cfg);
	until = ft_now_ns() + 20 * FT_S_NS;
	CHECK(open_until(w, until) < until - 2 * FT_S_NS);      /* 250 slots of 34 ms: the rest is asked for again */
	CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
	until = ft_now_ns() + 4 * FT_S_NS;
	first = open_until(w, until);
	CHECK(first > until - 50 * FT_MS_NS);
	CHECK(open_until(w, until + FT_S_NS / 4) < first + 20 * FT_MS_NS);
	CHECK(open_until(w, until + FT_S_NS) > first + FT_S_NS / 2);
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	CHECK_OK(commit(w, 1));
	client_sees(w, 1, 1);
	CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
	until = open_until(w, ft_now_ns() + 200 * FT_MS_NS);
	while (ft_now_ns() < until)
		usleep(1000);
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 2));
	CHECK_OK(commit(w, 2));
	nothing_is_seen(w);
	world_free(w);
}

TEST(a_wall_clock_that_is_set_does_not_shut_the_gate_for_longer_than_to_the_next_renewal)
{
	struct world *w = protected_world();
	uint32_t n = 0;

	for (int64_t wrong = 3600; wrong >= -3600; wrong -= 7200) {
		ft_gate_set_clock(wrong * (int64_t)FT_S_NS);
		CHECK(open_until(w, ft_now_ns() + FT_S_NS));    /* by that clock; the kernel's is right */
		guest_sends(w, K_IPV4);
		CHECK_OK(seal(w, 2 * n + 1));
		CHECK_OK(commit(w, 2 * n + 1));
		nothing_is_seen(w);
		ft_gate_set_clock(0);
		open_until(w, ft_now_ns() + FT_MS_NS);          /* less than a slot: nothing can be added */
		CHECK(open_until(w, ft_now_ns() + FT_S_NS) > ft_now_ns() + FT_S_NS / 2);
		guest_sends(w, K_IPV4);
		CHECK_OK(seal(w, 2 * n + 2));
		CHECK_OK(commit(w, 2 * n + 2));
		n++;
		client_sees(w, 2 * n, 2 * n);
		CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
	}
	world_free(w);
}

/* Nothing of ours runs while the right to speak ends. */
TEST(the_kernel_closes_the_gate_of_a_stopped_process)
{
	struct world *w = world_new();
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		protect(w);
		guest_sends(w, K_IPV4);
		if (seal(w, 1) || fresh_ms(w, 200) || raise(SIGSTOP))
			_exit(1);
		_exit(commit(w, 1) ? 1 : 0);    /* wakes up with an old ack and believes in it */
	}
	CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	CHECK(WIFSTOPPED(status));
	usleep(300000);
	guest_sends(w, K_ARP);
	nothing_is_seen(w);
	kill(pid, SIGCONT);
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	nothing_is_seen(w);
	world_free(w);
}

static void killed_process_stays_mute(void)
{
	struct world *w = world_new();
	static struct seen c;
	int status;
	pid_t pid;

	CHECK(!ft_netbuf_present("vm1"));
	pid = fork();
	if (pid == 0) {
		protect(w);
		guest_sends(w, K_IPV4);
		(void)!fresh_ms(w, 100);
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	usleep(120000);
	guest_sends_every_kind(w);
	nothing_is_seen(w);
	CHECK(ft_netbuf_present("vm1"));
	CHECK(!ft_netbuf_present("vm2"));
	CHECK_OK(ft_netbuf_purge("vm1"));
	CHECK(!ft_netbuf_present("vm1"));
	guest_sends(w, K_IPV4);
	collect_until(w->client, &c, 1, ARRIVAL_MS);
	CHECK_EQ(c.nr, 1);
	world_free(w);
}

TEST(a_killed_process_leaves_the_guest_mute_until_purged)
{
	killed_process_stays_mute();
}

TEST(a_killed_process_leaves_the_guest_mute_on_kernels_before_6_9)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .persist = true });
	killed_process_stays_mute();
}

TEST(a_killed_process_leaves_the_guest_mute_on_kernels_before_5_12)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .owner = true });
	killed_process_stays_mute();
}

/* ft-protect and QEMU are dead, and a new QEMU comes with a new tap of the same name. */
TEST(what_a_dead_instance_left_mutes_the_next_until_it_is_purged)
{
	struct world *w = world_new();
	static struct seen c;
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		protect(w);
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	CHECK_EQ(ft_netbuf_purge_dead("vm1"), -EBUSY);
	CHECK(ft_test_logged("interface tap0 of earlier is still there"));
	close(w->tap);
	w->tap = tap_open("tap0");
	CHECK_OK(link_join("tap0", "br0"));
	wait_for_path(w);
	guest_sends(w, K_IPV4);
	nothing_is_seen(w);
	CHECK_OK(ft_netbuf_purge_dead("vm1"));
	CHECK_OK(ft_netbuf_purge_dead("vm1"));
	guest_sends(w, K_IPV4);
	collect_until(w->client, &c, 1, ARRIVAL_MS);
	CHECK_EQ(c.nr, 1);
	world_free(w);
}

/* A guest that sends without pause, until its parent is gone. */
static pid_t flood(struct world *w)
{
	pid_t pid = fork();

	while (pid == 0) {
		guest_sends(w, K_IPV4);
		guest_sends(w, K_IPV6);
		usleep(50);
	}
	return pid;
}

static void restart_claims_without_a_window(void)
{
	struct world *w = world_new();
	static struct seen c;
	int status;
	pid_t pid = fork(), flooder;

	if (pid == 0) {
		protect(w);
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	flooder = flood(w);
	for (int i = 0; i < 10; i++) {
		protect(w);
		usleep(3000);
		CHECK_OK(seal(w, 1));
		if (i < 9)
			w->out->ops->free(w->out);
	}
	nothing_is_seen(w);
	kill(flooder, SIGKILL);
	waitpid(flooder, &status, 0);
	CHECK_OK(seal(w, 2));
	CHECK_OK(fresh_ms(w, 1900));
	w->next_tag = 1000000;
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 3));
	nothing_is_seen(w);
	CHECK_OK(acked(w, 2));
	collect_until(w->client, &c, 1, ARRIVAL_MS);
	collect_until(w->client, &c, 0, 50);
	CHECK_OK(acked(w, 3));
	client_sees(w, 1000001, 1000001);
	world_free(w);
}

TEST(a_restart_takes_the_rules_over_without_a_window)
{
	restart_claims_without_a_window();
}

TEST(a_restart_takes_the_rules_over_on_kernels_before_6_9)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .persist = true });
	restart_claims_without_a_window();
}

/* `nft flush ruleset`, as somebody else. */
static void flush_ruleset(void)
{
	struct mnl_socket *nl;
	struct ft_nft b;
	struct nlmsghdr *m;

	CHECK_OK(ft_nl_open(NETLINK_NETFILTER, 0, &nl));
	CHECK_OK(ft_nft_init(&b));
	ft_nft_begin(&b);
	ft_nft_del_table(&b, NFPROTO_UNSPEC, "");
	m = b.msg;
	m->nlmsg_len = MNL_ALIGN(sizeof(*m)) + 4;       /* no name: all of them */
	CHECK_OK(ft_nft_send(&b, nl, NULL, 0));
	mnl_socket_close(nl);
	ft_nft_free(&b);
}

static void flush_everything(void)
{
	flush_ruleset();
	if (access("/usr/sbin/iptables", X_OK) == 0)
		(void)!system("for i in iptables ip6tables; do $i -F; $i -t raw -F; $i -t raw -X; done >/dev/null 2>&1");
	if (access("/usr/sbin/nft", X_OK) == 0)
		(void)!system("nft flush ruleset; nft delete table bridge ft-vm1 2>/dev/null; nft delete table bridge fto-vm1 2>/dev/null");
}

static void owned_tables_survive(struct world *w)
{
	static struct seen c;

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	flush_everything();
	guest_sends(w, K_IPV6);
	run_ms(w, 20);
	CHECK_EQ(w->breaches, 0);
	nothing_is_seen(w);
	CHECK_OK(fresh_ms(w, 1900));
	CHECK_OK(seal(w, 2));
	CHECK_OK(acked(w, 2));
	/* The kernel drops what any queue holds when any chain disappears, so the first one may be lost. */
	collect_until(w->client, &c, 2, SILENCE_MS);
	CHECK(c.nr >= 1 && c.tag[c.nr - 1] == 2 && (c.nr == 1 || (c.nr == 2 && c.tag[0] == 1)));
	world_free(w);
}

static bool kernel_has_owner(void)
{
	struct ft_gate_caps caps;

	return ft_gate_probe(&caps) == 0 && caps.owner;
}

TEST(a_flushed_ruleset_changes_nothing)
{
	struct world *w = protected_world();

	if (!kernel_has_owner())
		ft_test_skip("this kernel's tables have no owner");
	owned_tables_survive(w);
}

TEST(a_flushed_ruleset_changes_nothing_on_kernels_before_6_9)
{
	struct world *w;

	ft_gate_forbid(&(struct ft_gate_caps){ .persist = true });
	w = protected_world();
	if (!kernel_has_owner())
		ft_test_skip("this kernel's tables have no owner");
	owned_tables_survive(w);
	CHECK(ft_test_logged("its twin kept the output shut"));
}

TEST(a_flushed_ruleset_shuts_the_output_on_kernels_before_5_12)
{
	struct world *w;

	ft_gate_forbid(&(struct ft_gate_caps){ .owner = true });
	w = protected_world();
	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	flush_ruleset();
	run_until(w, &w->breaches, 1);
	CHECK(strstr(w->why, "removed"));
	guest_sends_every_kind(w);
	nothing_is_seen(w);
	CHECK_EQ(seal(w, 2), -EIO);
	CHECK_EQ(commit(w, 1), -EIO);
	CHECK_EQ(fresh_ms(w, 1000), -EIO);
	CHECK_EQ(w->breaches, 1);

	CHECK_OK(w->out->ops->setup(w->out));
	one_packet_leaves(w, 3, 501);
	world_free(w);
}

static void count_line(void *ctx, enum ft_log_level level, const char *line)
{
	++*(unsigned *)ctx;
}

TEST(a_breach_that_stays_is_told_once_a_minute)
{
	struct world *w = protected_world();
	struct ft_log_limit limit = { 0 };
	unsigned lines = 0;

	CHECK_OK(link_join("tap0", NULL));
	ft_log_divert(count_line, &lines);
	CHECK_EQ(seal(w, 1), -EIO);
	for (unsigned i = 0; i < 20; i++)
		CHECK_EQ(w->out->ops->setup(w->out), -ENODEV);
	CHECK_EQ(lines, 2);
	world_free(w);

	CHECK(ft_log_due(&limit, "a"));
	CHECK(!ft_log_due(&limit, "a"));
	CHECK(ft_log_due(&limit, "b"));
	limit.at_ns -= 61 * FT_S_NS;
	CHECK(ft_log_due(&limit, "b"));
}

TEST(a_tap_that_leaves_its_bridge_shuts_the_output)
{
	struct world *w = protected_world();

	CHECK_OK(seal(w, 1));
	CHECK_OK(link_join("tap0", NULL));
	usleep(60000);
	CHECK_EQ(seal(w, 2), -EIO);
	CHECK(ft_test_logged("tap0 left its bridge"));
	CHECK_EQ(w->breaches, 0);               /* said by the seal that failed */
	CHECK_EQ(fresh_ms(w, 100), -EIO);
	world_free(w);
}

static void a_renamed_tap(void)
{
	struct world *w = protected_world();

	CHECK_OK(fresh_ms(w, 1900));
	CHECK_OK(seal(w, 1));
	if (link_rename("tap0", "other0"))
		ft_test_skip("this kernel does not rename an interface that is up");
	for (enum kind k = 0; k < K_LLDP; k++)
		guest_sends(w, k);
	nothing_is_seen(w);
	CHECK_EQ(seal(w, 2), -EIO);
	CHECK(ft_test_logged("tap0 was renamed") || ft_test_logged("without having been held"));
	CHECK_OK(link_join("other0", "br0"));
	guest_sends(w, K_IPV4);
	nothing_is_seen(w);
	CHECK_EQ(w->out->ops->setup(w->out), -ENODEV);
	CHECK(ft_test_logged("ip link set other0 name tap0"));
	CHECK_OK(link_rename("other0", "tap0"));
	CHECK_OK(w->out->ops->setup(w->out));
	one_packet_leaves(w, 3, 101);
	world_free(w);
}

TEST(a_renamed_tap_does_not_slip_out)
{
	a_renamed_tap();
}

TEST(a_renamed_tap_does_not_slip_out_over_br_netfilter)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	a_renamed_tap();
}

/* Somebody's own rule takes frames away between the tap and the bridge. */
static void divert(void)
{
	struct ft_nft_chain c = { .family = NFPROTO_NETDEV, .table = "other", .name = "c", .hook = NF_NETDEV_INGRESS,
				  .priority = 0, .device = "tap0" };
	struct mnl_socket *nl;
	struct nlattr *r;
	struct ft_nft b;

	CHECK_OK(ft_nl_open(NETLINK_NETFILTER, 0, &nl));
	CHECK_OK(ft_nft_init(&b));
	ft_nft_begin(&b);
	ft_nft_table(&b, c.family, c.table, 0, "");
	ft_nft_chain(&b, &c);
	r = ft_nft_rule_begin(&b, &c, false);
	ft_nft_verdict(&b, NF_DROP);
	ft_nft_rule_end(&b, r);
	CHECK_OK(ft_nft_send(&b, nl, NULL, 0));
	mnl_socket_close(nl);
	ft_nft_free(&b);
}

TEST(frames_that_take_another_way_shut_the_output)
{
	struct world *w = protected_world();
	int rc = 0;

	guest_sends_every_kind(w);
	for (uint64_t epoch = 1; epoch < 6; epoch++, usleep(55000))
		CHECK_OK(seal(w, epoch));
	divert();
	guest_sends(w, K_IPV4);
	for (uint64_t epoch = 6; epoch < 16 && !rc; epoch++, usleep(55000))
		rc = seal(w, epoch);
	CHECK_EQ(rc, -EIO);
	CHECK(ft_test_logged("do not come by the rules"));
	world_free(w);
}


static void guest_sends_large(struct world *w, size_t payload)
{
	struct virtio_net_hdr hdr = { .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .gso_type = VIRTIO_NET_HDR_GSO_TCPV4,
				      .hdr_len = 54, .gso_size = 1400, .csum_start = 34, .csum_offset = 16 };
	static uint8_t f[FRAME_MAX];

	memset(f, 0, sizeof(f));
	memcpy(f, w->client_mac, 6);
	memcpy(f + 6, guest_mac, 6);
	put_be16(f + 12, 0x0800);
	put_ipv4(f + 14, 6, 20 + payload);
	f[34 + 12] = 0x50;
	f[34 + 13] = 0x10;
	put_tag(f + 54, ++w->next_tag);
	tap_write(w, &hdr, f, 54 + payload);
}

static void large_packets(void)
{
	struct world *w = protected_world();
	static struct seen c;

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends_large(w, 60000);
	CHECK_OK(seal(w, 1));
	nothing_is_seen(w);
	CHECK_OK(acked(w, 1));
	collect_until(w->client, &c, 1, ARRIVAL_MS);
	CHECK_EQ(c.nr, 1);
	CHECK_EQ(c.longest, 60054);
	world_free(w);
}

TEST(large_packets_stay_whole)
{
	large_packets();
}

TEST(large_packets_stay_whole_over_br_netfilter)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	large_packets();
}

TEST(held_bytes_are_bounded)
{
	struct world *w = world_new();
	struct ft_netbuf_config cfg = config(w);
	struct ft_netbuf_stats st;

	cfg.held_bytes_max = 1 << 20;
	protect_as(w, &cfg);
	for (int i = 0; i < 30; i++)
		guest_sends_large(w, 60000);
	CHECK_OK(seal(w, 1));
	ft_netbuf_get_stats(w->nb, &st);
	/* Nobody read and counted while they came: the kernel alone keeps to the bound. */
	CHECK_EQ(st.held_packets, 16);
	CHECK(st.held_bytes <= 1 << 20);
	CHECK_EQ(st.dropped_packets, 14);
	CHECK(ft_test_logged("too much output waits"));
	CHECK_OK(fresh_ms(w, 1900));
	CHECK_OK(acked(w, 1));
	client_sees(w, 1, 16);
	/* Small ones are many more, when somebody counts. */
	w->next_tag = 100;
	for (int i = 0; i < 100; i++) {
		guest_sends(w, K_IPV4);
		if (i % 8 == 7)
			run_ms(w, 4);
	}
	CHECK_OK(seal(w, 2));
	CHECK_OK(acked(w, 2));
	client_sees(w, 101, 200);
	world_free(w);
}

/* vm1 is dead and its rules point to a queue that another guest's ft-protect happens to get. */
TEST(a_dead_guests_frames_do_not_go_with_anothers_release)
{
	struct world *w = world_new();
	char name[16] = "vm1";
	struct ft_queue *q;
	uint16_t number;
	int status, tap1 = tap_open("tap1");
	struct ft_netbuf_config cfg = config(w);
	pid_t pid;

	CHECK_OK(link_join("tap1", "br0"));
	pid = fork();
	if (pid == 0) {
		protect(w);
		(void)!fresh_ms(w, 1900);       /* the dead one's lease has not ended yet */
		raise(SIGKILL);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		ft_test_skip("this kernel cannot hold a bridge's packets");
	CHECK_OK(ft_queue_open(name, &q));
	number = ft_queue_number(q);
	ft_queue_close(q);
	for (unsigned i = 0, found = 0; !found; i++) {
		snprintf(name, sizeof(name), "other%u", i);
		CHECK_OK(ft_queue_open(name, &q));
		found = ft_queue_number(q) == number;
		ft_queue_close(q);
	}
	cfg.guest = name;
	cfg.tap[0] = "tap1";
	CHECK_OK(ft_netbuf_new(w->loop, &cfg, &w->nb));
	w->out = ft_netbuf_output(w->nb);
	CHECK_OK(w->out->ops->setup(w->out));
	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);                 /* vm1's, on tap0 */
	CHECK_OK(seal(w, 1));
	CHECK_OK(acked(w, 1));
	nothing_is_seen(w);
	close(tap1);
	world_free(w);
}

static void teardown_loses_nothing(void)
{
	struct world *w = protected_world();
	static struct seen c;
	static bool got[SEEN_MAX];
	int *sent = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), status;
	pid_t pid = fork();

	for (int i = 0; pid == 0 && i < 600; i++) {
		*sent = (int)guest_sends(w, K_IPV4);
		usleep(20);
	}
	if (pid == 0)
		_exit(0);
	for (unsigned i = 0; *sent < 100; i++, usleep(100))
		CHECK(i < 200000);
	CHECK_OK(seal(w, 1));
	CHECK_OK(w->out->ops->teardown(w->out));
	CHECK(!ft_netbuf_present("vm1"));
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	collect_until(w->client, &c, 600, ARRIVAL_MS);
	CHECK_EQ(c.nr, 600);
	for (unsigned i = 0; i < c.nr; i++)
		got[c.tag[i]] = true;
	for (unsigned i = 1; i <= 600; i++)
		CHECK(got[i]);
	world_free(w);
}

TEST(teardown_opens_without_losing_a_frame)
{
	teardown_loses_nothing();
}

TEST(teardown_opens_without_losing_a_frame_over_br_netfilter)
{
	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	teardown_loses_nothing();
}

TEST(after_teardown_the_bridge_is_as_it_was)
{
	struct world *w = protected_world();
	struct ft_rtnl_link br;

	CHECK_OK(w->out->ops->teardown(w->out));
	CHECK_OK(ft_rtnl_link(rt, "br0", &br));
	CHECK(!br.nf_call_ip && !br.nf_call_ip6);
	CHECK_EQ(fresh_ms(w, 100), -ENOTCONN);
	CHECK_EQ(seal(w, 1), -ENOTCONN);
	world_free(w);
}

static bool calls_ip_rules(void)
{
	struct ft_rtnl_link br;

	CHECK_OK(ft_rtnl_link(rt, "br0", &br));
	CHECK_EQ(br.nf_call_ip, br.nf_call_ip6);
	return br.nf_call_ip;
}

TEST(br_netfilter_is_put_back_as_it_was_before_the_first_setup)
{
	struct world *w;

	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	w = protected_world();
	CHECK(calls_ip_rules());
	CHECK_OK(w->out->ops->setup(w->out));   /* a breach is over */
	w->out->ops->free(w->out);              /* and ft-protect restarted */
	protect(w);
	CHECK_OK(w->out->ops->teardown(w->out));
	CHECK(!calls_ip_rules());
	CHECK_OK(w->out->ops->setup(w->out));
	w->out->ops->free(w->out);
	w->out = NULL;
	CHECK(calls_ip_rules());
	CHECK_OK(ft_netbuf_purge("vm1"));
	CHECK(!calls_ip_rules());
	world_free(w);
}

TEST(br_netfilter_stays_on_for_the_other_guest_of_the_bridge)
{
	struct world *w;
	struct ft_netbuf *nb;
	struct ft_output *out;
	struct ft_netbuf_config cfg;
	int tap1;

	ft_gate_forbid(&(struct ft_gate_caps){ .bridge_queue = true });
	w = protected_world();
	cfg = config(w);
	cfg.guest = "vm2";
	cfg.tap[0] = "tap1";
	tap1 = tap_open("tap1");
	CHECK_OK(link_join("tap1", "br0"));
	CHECK_OK(ft_netbuf_new(w->loop, &cfg, &nb));
	out = ft_netbuf_output(nb);
	CHECK_OK(out->ops->setup(out));
	CHECK_OK(w->out->ops->teardown(w->out));
	CHECK(calls_ip_rules());
	CHECK_OK(out->ops->teardown(out));
	CHECK(!calls_ip_rules());
	out->ops->free(out);
	close(tap1);
	world_free(w);
}

TEST(discarded_output_never_leaves)
{
	struct world *w = protected_world();

	CHECK_OK(fresh_ms(w, 1900));
	guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 1));
	w->out->ops->discard(w->out);
	CHECK_EQ(commit(w, 1), -EIO);
	CHECK_EQ(fresh_ms(w, 1000), -EIO);
	guest_sends_every_kind(w);
	nothing_is_seen(w);
	/* The instance is destroyed: nothing is left that could mute the next one. */
	CHECK_OK(w->out->ops->teardown(w->out));
	CHECK(!ft_netbuf_present("vm1"));
	world_free(w);
}

TEST(a_setup_that_fails_leaves_the_guest_untouched)
{
	struct world *w = world_new();
	struct ft_netbuf_config cfg = config(w);
	static struct seen c;

	cfg.bridge[0] = "br7";
	if (ft_netbuf_new(w->loop, &cfg, &w->nb))
		ft_test_skip("this kernel cannot hold a bridge's packets");
	w->out = ft_netbuf_output(w->nb);
	CHECK(w->out->ops->setup(w->out) < 0);
	CHECK(ft_test_logged("tap0 is not a port of bridge br7"));
	CHECK(!ft_netbuf_present("vm1"));
	guest_sends(w, K_IPV4);
	collect_until(w->client, &c, 1, ARRIVAL_MS);
	CHECK_EQ(c.nr, 1);
	world_free(w);
}

static void note_obstacle(void *ctx, const char *line)
{
	ft_warn("obstacle: %s", line);
	++*(unsigned *)ctx;
}

TEST(check_names_each_obstacle_and_touches_nothing)
{
	struct world *w = world_new();
	struct ft_netbuf_config cfg = config(w);
	unsigned n = 0;

	if (ft_netbuf_check(&cfg, note_obstacle, &n))
		ft_test_skip("this kernel cannot hold a bridge's packets");
	CHECK_EQ(n, 0);
	cfg.nr_taps = 2;
	cfg.tap[1] = "tap9";
	cfg.bridge[1] = "br0";
	CHECK_OK(link_join("tap0", NULL));
	CHECK_EQ(ft_netbuf_check(&cfg, note_obstacle, &n), -EOPNOTSUPP);
	CHECK_EQ(n, 2);
	CHECK(ft_test_logged("interface tap0 is not a port of bridge br0"));
	CHECK(ft_test_logged("interface tap9: No such device"));
	CHECK(!ft_netbuf_present("vm1"));
	world_free(w);
}

TEST(a_bridge_with_spanning_tree_is_an_obstacle)
{
	struct world *w = world_new();
	struct ft_netbuf_config cfg = config(w);
	unsigned n = 0;

	CHECK_OK(bridge_stp("br0", true));
	CHECK_EQ(ft_netbuf_check(&cfg, note_obstacle, &n), -EOPNOTSUPP);
	CHECK(ft_test_logged("ip link set br0 type bridge stp_state 0"));
	if (ft_netbuf_new(w->loop, &cfg, &w->nb))
		ft_test_skip("this kernel cannot hold a bridge's packets");
	w->out = ft_netbuf_output(w->nb);
	CHECK_EQ(w->out->ops->setup(w->out), -EOPNOTSUPP);
	CHECK_OK(bridge_stp("br0", false));
	CHECK_OK(w->out->ops->setup(w->out));
	world_free(w);
}

/* --- interfaces come and go while they are listed --- */

struct churn {
	struct mnl_socket *nl;
	sem_t go, done;
};

enum { CHANGES = 200 };

/* One change whenever it is told to: no listing meets more than two, on however slow a machine. */
static void *churn(void *arg)
{
	struct churn *c = arg;
	char name[IFNAMSIZ];

	for (unsigned i = 0; i < CHANGES; i++) {
		sem_wait(&c->go);
		snprintf(name, sizeof(name), "churn%u", i);
		CHECK_OK(link_add_by(c->nl, name, "bridge", NULL));
		sem_post(&c->done);
	}
	return NULL;
}

TEST(a_listing_that_is_interrupted_is_taken_again)
{
	struct world *w = world_new();
	char name[IFNAMSIZ], what[64];
	struct churn c;
	pthread_t t;

	CHECK_OK(ft_rtnl_open(&c.nl));
	sem_init(&c.go, 0, 0);
	sem_init(&c.done, 0, 0);
	for (unsigned i = 0; i < 60; i++) {
		snprintf(name, sizeof(name), "more%u", i);
		CHECK_OK(link_add(name, "bridge", NULL));
	}
	CHECK_EQ(pthread_create(&t, NULL, churn, &c), 0);
	for (unsigned i = 0; i < CHANGES; i++) {
		sem_post(&c.go);
		CHECK_OK(ft_rtnl_diversion(rt, if_nametoindex("tap0"), what, sizeof(what)));
		while (sem_wait(&c.done))
			CHECK_EQ(errno, EINTR);
	}
	pthread_join(t, NULL);
	mnl_socket_close(c.nl);
	world_free(w);
}

TEST(an_owner_that_lives_is_named)
{
	struct world *w = protected_world();

	if (!kernel_has_owner())
		ft_test_skip("this kernel's tables have no owner");
	CHECK_EQ(ft_netbuf_purge("vm1"), -EPERM);
	CHECK(ft_test_logged("another process"));
	world_free(w);
}

/* The guard keeps a copy of the socket; a restarted ft-protect gets it back and goes on with the same tables. */
TEST(the_guards_copy_of_the_socket_gives_the_tables_back)
{
	struct world *w = protected_world();
	struct ft_netbuf_config cfg = config(w);
	int fd = ft_netbuf_owner_fd(w->nb);

	CHECK(fd >= 0);
	w->out->ops->free(w->out);              /* ft-protect dies; the copy lives */
	flush_everything();
	guest_sends_every_kind(w);
	nothing_is_seen(w);
	cfg.owner_fd = fd;
	CHECK_OK(ft_netbuf_new(w->loop, &cfg, &w->nb));
	w->out = ft_netbuf_output(w->nb);
	CHECK_OK(w->out->ops->setup(w->out));
	one_packet_leaves(w, 1, 101);
	world_free(w);
}

/* --- the heartbeat thread renews while the loop works --- */

static _Atomic bool renewing;
static _Atomic unsigned renewals;

static void *renew(void *arg)
{
	while (renewing) {
		CHECK_OK(fresh_ms(arg, 1900));
		renewals++;
		usleep(1000);
	}
	return NULL;
}

static void renewing_start(struct world *w, pthread_t *t)
{
	CHECK_OK(fresh_ms(w, 1900));
	renewing = true;
	CHECK_EQ(pthread_create(t, NULL, renew, w), 0);
}

static void renewing_stop(pthread_t t)
{
	renewing = false;
	pthread_join(t, NULL);
}

TEST(renewals_come_from_another_thread)
{
	struct world *w = protected_world();
	pthread_t t;
	uint32_t last = 0;

	renewing_start(w, &t);
	for (uint64_t epoch = 1; epoch <= 200; epoch++) {
		last = guest_sends(w, K_IPV4);
		run_ms(w, 1);
		CHECK_OK(seal(w, epoch));
		CHECK_OK(commit(w, epoch));
	}
	renewing_stop(t);
	CHECK(renewals > 20);
	client_sees(w, 1, last);
	CHECK_EQ(w->breaches, 0);
	world_free(w);
}

TEST_TIMEOUT(a_full_queue_drops_and_says_so_and_goes_on, 150)
{
	struct world *w = protected_world();
	struct ft_netbuf_stats st;
	const uint32_t extra = 500;
	pthread_t t;

	if (getenv("FT_TEST_SLOW"))
		ft_test_skip("releasing a full queue outlasts every lease on a machine this slow");
	for (uint32_t i = 0; i < FT_QUEUE_MAX + extra; i++) {
		guest_sends(w, K_IPV4);
		if (i % 1000 == 0)
			run_ms(w, 4);           /* as a loop that lives */
	}
	run_ms(w, 20);
	CHECK_OK(seal(w, 1));
	ft_netbuf_get_stats(w->nb, &st);
	CHECK_EQ(st.held_packets, FT_QUEUE_MAX);
	CHECK_EQ(st.dropped_packets, extra);
	CHECK(ft_test_logged("too much output waits"));
	CHECK_EQ(w->breaches, 0);
	renewing_start(w, &t);              /* it takes longer than a lease on a slow machine */
	CHECK_OK(commit(w, 1));
	client_sees(w, 1, FT_QUEUE_MAX);
	renewing_stop(t);
	world_free(w);
}

TEST(renewal_seal_and_release_are_cheap)
{
	struct world *w = protected_world();
	uint64_t t0, renew_ns, seal_ns, audit_ns, commit_ns, release_ns;

	t0 = ft_now_ns();
	for (int i = 0; i < 200; i++) {         /* one that finds enough in hand would do nothing */
		CHECK_OK(ft_netbuf_fresh(w->nb, 0, NULL));
		CHECK_OK(fresh_ms(w, 240));
	}
	renew_ns = (ft_now_ns() - t0) / 200;
	t0 = ft_now_ns();
	for (uint64_t i = 1; i <= 60; i++)
		CHECK_OK(seal(w, i));
	seal_ns = (ft_now_ns() - t0) / 60;
	usleep(60000);
	t0 = ft_now_ns();
	CHECK_OK(seal(w, 61));
	audit_ns = ft_now_ns() - t0;
	t0 = ft_now_ns();
	CHECK_OK(commit(w, 61));
	commit_ns = ft_now_ns() - t0;
	for (int i = 0; i < 1000; i++)
		guest_sends(w, K_IPV4);
	CHECK_OK(seal(w, 62));
	CHECK_OK(fresh_ms(w, 240));
	t0 = ft_now_ns();
	CHECK_OK(commit(w, 62));
	release_ns = (ft_now_ns() - t0) / 1000;
	printf("# close and renewal %.1f us, empty seal %.1f us, with audit %.1f us, empty commit %.1f us, release %.2f us a packet\n",
	       renew_ns / 1e3, seal_ns / 1e3, audit_ns / 1e3, commit_ns / 1e3, release_ns / 1e3);
	world_free(w);
}

/* --- announcement --- */

static unsigned count_rarp(int fd)
{
	uint8_t buf[2048];
	unsigned n = 0;
	ssize_t len;

	while ((len = recv(fd, buf, sizeof(buf), MSG_DONTWAIT)) > 0)
		n += len >= 42 && buf[12] == 0x80 && buf[13] == 0x35 && !memcmp(buf + 6, guest_mac, 6);
	return n;
}

TEST(after_takeover_the_network_learns_where_the_guest_is)
{
	static const uint8_t somebody[6] = { 2, 0, 0, 0, 0, 7 }, all[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
	struct world *w = world_new();
	unsigned seen;

	while (tap_gets(w, 0x88b5, 20))
		;
	client_sends(w, all, guest_mac);        /* until now the guest was out there */
	CHECK(tap_gets(w, 0x88b5, ARRIVAL_MS));
	client_sends(w, guest_mac, somebody);
	CHECK(!tap_gets(w, 0x88b5, SILENCE_MS));            /* so the bridge believes */
	CHECK_OK(ft_announce(w->loop, "tap0", guest_mac));
	run_ms(w, 20);
	seen = count_rarp(w->client);
	CHECK(seen >= 1);
	client_sends(w, guest_mac, somebody);
	CHECK(tap_gets(w, 0x88b5, ARRIVAL_MS));
	for (unsigned i = 0; i < 60 && seen < 6; i++) {
		run_ms(w, 50);
		seen += count_rarp(w->client);
	}
	run_ms(w, 100);
	CHECK_EQ(seen + count_rarp(w->client), 6);
	CHECK(ft_announce(w->loop, "client", guest_mac) < 0);
	CHECK(ft_test_logged("is it a port of a bridge?"));
	world_free(w);
}
