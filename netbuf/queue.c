// SPDX-License-Identifier: GPL-3.0-or-later
/* queue.c - see queue.h. */
#include "netbuf/queue.h"

#include "netbuf/nl.h"
#include <arpa/inet.h>
#include <libnetfilter_queue/libnetfilter_queue.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define NUMBER_BASE 26000u
#define NUMBER_SPREAD 512u
#define NUMBER_TRIES 64u
#define RECEIVE_BUFFER (64 << 20)       /* notices of a full queue */
#define NOTICE_MAX 1024u
#define BURST 64u
#define COPY_RANGE 1                    /* one byte makes the kernel tell the packet's length */

struct ft_queue {
	struct mnl_socket *nl;
	uint16_t number;
	uint32_t last_id;
	uint64_t unread;                /* packets dropped because their notice did not fit */
	uint8_t notice[BURST][NOTICE_MAX];
};

static uint32_t hash(const char *name)
{
	uint32_t h = 2166136261u;

	for (; *name; name++)
		h = (h ^ (uint8_t)*name) * 16777619u;
	return h;
}

static int bind_number(struct ft_queue *q, uint16_t number)
{
	char buf[256];
	struct nlmsghdr *m = nfq_nlmsg_put(buf, NFQNL_MSG_CONFIG, number);

	m->nlmsg_flags |= NLM_F_ACK;
	nfq_nlmsg_cfg_put_cmd(m, AF_UNSPEC, NFQNL_CFG_CMD_BIND);
	return ft_nl_request(q->nl, m, NULL, NULL);
}

/* Numbers are shared by everyone in this network namespace: take the first that nobody has. */
static int bind_free(struct ft_queue *q, const char *name)
{
	uint32_t h = hash(name);
	int rc = -EBUSY;

	for (unsigned i = 0; i < NUMBER_TRIES; i++) {
		q->number = (uint16_t)(NUMBER_BASE + (h + i) % NUMBER_SPREAD);
		rc = bind_number(q, q->number);
		if (rc != -EBUSY && rc != -EPERM)
			return rc;
	}
	return rc;
}

static int configure(struct ft_queue *q)
{
	char buf[512];
	struct nlmsghdr *m = nfq_nlmsg_put(buf, NFQNL_MSG_CONFIG, q->number);

	m->nlmsg_flags |= NLM_F_ACK;
	nfq_nlmsg_cfg_put_params(m, NFQNL_COPY_PACKET, COPY_RANGE);
	nfq_nlmsg_cfg_put_qmaxlen(m, FT_QUEUE_MAX);
	/* Large packets stay whole. Fail-open is in the mask and not in the value: it is off. */
	mnl_attr_put_u32(m, NFQA_CFG_MASK, htonl(NFQA_CFG_F_GSO | NFQA_CFG_F_FAIL_OPEN));
	mnl_attr_put_u32(m, NFQA_CFG_FLAGS, htonl(NFQA_CFG_F_GSO));
	return ft_nl_request(q->nl, m, NULL, NULL);
}

static void enlarge(struct ft_queue *q)
{
	int fd = mnl_socket_get_fd(q->nl), size = RECEIVE_BUFFER, one = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) < 0)
		(void)!setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	(void)!setsockopt(fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &one, sizeof(one));
}

int ft_queue_open(const char *name, struct ft_queue **out)
{
	static struct ft_log_limit limit;
	struct ft_queue *q = calloc(1, sizeof(*q));
	int rc;

	if (!q)
		return -ENOMEM;
	rc = ft_nl_open(NETLINK_NETFILTER, 0, &q->nl);
	if (!rc)
		rc = bind_free(q, name);
	if (!rc)
		rc = configure(q);
	if (rc) {
		if (ft_log_due(&limit, strerror(-rc)))
			ft_err("%s: cannot get an NFQUEUE: %s%s", name, strerror(-rc),
			       rc == -EBUSY ? " (all numbers from 26000 on are taken)" : "");
		ft_queue_close(q);
		return rc;
	}
	enlarge(q);
	*out = q;
	return 0;
}

void ft_queue_close(struct ft_queue *q)
{
	if (q && q->nl)
		mnl_socket_close(q->nl);
	free(q);
}

uint16_t ft_queue_number(const struct ft_queue *q)
{
	return q->number;
}

int ft_queue_fd(const struct ft_queue *q)
{
	return mnl_socket_get_fd(q->nl);
}

static uint32_t attr_u32(const struct nlattr *a)
{
	return a && mnl_attr_get_payload_len(a) >= 4 ? ntohl(mnl_attr_get_u32(a)) : 0;
}

static bool parse(const struct nlmsghdr *nlh, struct ft_queue_packet *p)
{
	struct nlattr *attr[NFQA_MAX + 1] = { 0 };
	const struct nfqnl_msg_packet_hdr *hdr;

	if (nlh->nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET))
		return false;
	if (nfq_nlmsg_parse(nlh, attr) < 0 || !attr[NFQA_PACKET_HDR])
		return false;
	hdr = mnl_attr_get_payload(attr[NFQA_PACKET_HDR]);
	p->id = ntohl(hdr->packet_id);
	p->ifindex = attr_u32(attr[attr[NFQA_IFINDEX_PHYSINDEV] ? NFQA_IFINDEX_PHYSINDEV : NFQA_IFINDEX_INDEV]);
	p->bytes = attr_u32(attr[NFQA_CAP_LEN]);
	return true;
}

static void one_datagram(struct ft_queue *q, const uint8_t *buf, size_t len,
			 void (*packet)(void *ctx, const struct ft_queue_packet *p), void *ctx)
{
	int left = (int)len;

	for (const struct nlmsghdr *h = (const void *)buf; mnl_nlmsg_ok(h, left); h = mnl_nlmsg_next(h, &left)) {
		struct ft_queue_packet p;

		if (!parse(h, &p))
			continue;       /* an error: -ENOENT of a verdict whose packets a vanished device took along */
		q->unread += p.id - q->last_id - 1;
		q->last_id = p.id;
		packet(ctx, &p);
	}
}

int ft_queue_drain(struct ft_queue *q, unsigned max, void (*packet)(void *ctx, const struct ft_queue_packet *p), void *ctx)
{
	struct mmsghdr mm[BURST] = { 0 };
	struct iovec iov[BURST];
	unsigned done = 0;
	int n;

	for (unsigned i = 0; i < BURST; i++) {
		iov[i] = (struct iovec){ .iov_base = q->notice[i], .iov_len = NOTICE_MAX };
		mm[i].msg_hdr = (struct msghdr){ .msg_iov = &iov[i], .msg_iovlen = 1 };
	}
	do {
		n = recvmmsg(ft_queue_fd(q), mm, BURST, MSG_DONTWAIT, NULL);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? (int)done : -errno;
		for (int i = 0; i < n; i++)
			one_datagram(q, q->notice[i], mm[i].msg_len, packet, ctx);
		done += (unsigned)n;
	} while (n == (int)BURST && done < max);
	return (int)done;
}

static int verdict(struct ft_queue *q, uint16_t type, uint32_t id, int what, uint32_t mark)
{
	char buf[256];
	struct nlmsghdr *m = nfq_nlmsg_put(buf, type, q->number);

	nfq_nlmsg_verdict_put(m, (int)id, what);
	if (mark)
		nfq_nlmsg_verdict_put_mark(m, mark);
	return mnl_socket_sendto(q->nl, m, m->nlmsg_len) < 0 ? -errno : 0;
}

int ft_queue_release(struct ft_queue *q, uint32_t id)
{
	return verdict(q, NFQNL_MSG_VERDICT_BATCH, id, NF_ACCEPT, FT_RELEASED_MARK);
}

/* Without an answer, which would come between the notices. */
int ft_queue_limit(struct ft_queue *q, uint32_t packets)
{
	char buf[256];
	struct nlmsghdr *m = nfq_nlmsg_put(buf, NFQNL_MSG_CONFIG, q->number);

	nfq_nlmsg_cfg_put_qmaxlen(m, packets);
	return mnl_socket_sendto(q->nl, m, m->nlmsg_len) < 0 ? -errno : 0;
}

int ft_queue_drop_one(struct ft_queue *q, uint32_t id)
{
	return verdict(q, NFQNL_MSG_VERDICT, id, NF_DROP, 0);
}

/* /proc has one line a queue: number, portid, length, mode, range, dropped, dropped by the socket, ... */
uint64_t ft_queue_overflowed(struct ft_queue *q)
{
	FILE *f = fopen("/proc/net/netfilter/nfnetlink_queue", "re");
	unsigned number, portid, length, mode, range;
	unsigned long full, unread;
	uint64_t found = 0;

	while (f && fscanf(f, "%u %u %u %u %u %lu %lu %*u %*u", &number, &portid, &length, &mode, &range, &full, &unread) == 7)
		if (number == q->number && portid == mnl_socket_get_portid(q->nl))
			found = full;
	if (f)
		fclose(f);
	return found + q->unread;
}
