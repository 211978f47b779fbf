// SPDX-License-Identifier: GPL-3.0-or-later
/* dial.c - see dial.h. */
#include "replicator/dial.h"
#include "ft/thread.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static int fail(struct ft_dial *d, int rc, const char *fmt, ...) FT_PRINTF(3, 4);
static int fail(struct ft_dial *d, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(d->why, sizeof(d->why), fmt, ap);
	va_end(ap);
	return rc;
}

void ft_addr_format(const struct sockaddr *sa, char *buf, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "?";
	const struct sockaddr_in *v4 = (const void *)sa;
	const struct sockaddr_in6 *v6 = (const void *)sa;

	if (sa->sa_family == AF_INET) {
		inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
		snprintf(buf, size, "%s:%u", host, ntohs(v4->sin_port));
	} else if (sa->sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
		snprintf(buf, size, "[%s]:%u", host, ntohs(v6->sin6_port));
	} else {
		snprintf(buf, size, "a local peer");
	}
}

/* Poll @fd and the stop fd until @until_ns: 1 ready, 0 too late, -ECANCELED. */
static int wait_for(const struct ft_dial *d, int fd, short events, uint64_t until_ns)
{
	struct pollfd p[2] = { { .fd = fd, .events = events }, { .fd = d->stop_fd, .events = POLLIN } };

	for (;;) {
		uint64_t now = ft_now_ns();
		int n;

		if (now >= until_ns)
			return 0;
		n = poll(p, 2, (int)((until_ns - now + FT_MS_NS - 1) / FT_MS_NS));
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0 && p[1].revents)
			return -ECANCELED;
		if (n > 0 && p[0].revents)
			return 1;
	}
}

/* --- names: getaddrinfo can take half a minute, so it runs on a thread that may be left behind --- */

struct resolve {
	atomic_int refs;                        /* the thread's and the waiter's */
	char host[256], port[8];
	int flags;
	int done_fd;                            /* eventfd */
	int rc;                                 /* EAI_* */
	struct addrinfo *list;
};

static void resolve_put(struct resolve *r)
{
	if (atomic_fetch_sub(&r->refs, 1) != 1)
		return;
	if (r->list)
		freeaddrinfo(r->list);
	if (r->done_fd >= 0)
		close(r->done_fd);
	free(r);
}

static void resolve_now(struct resolve *r, int flags)
{
	const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV | flags };

	r->rc = getaddrinfo(r->host, r->port, &hints, &r->list);
}

static void *resolve_run(void *arg)
{
	struct resolve *r = arg;
	const uint64_t one = 1;
	ssize_t n;

	resolve_now(r, AI_ADDRCONFIG);
	n = write(r->done_fd, &one, sizeof(one));
	(void)n;                                /* an eventfd that is zero takes a one */
	resolve_put(r);
	return NULL;
}

static int resolve_on_thread(struct ft_dial *d, struct resolve *r)
{
	pthread_t thread;
	uint64_t done;
	int rc;

	r->done_fd = eventfd(0, EFD_CLOEXEC);
	if (r->done_fd < 0)
		return fail(d, -errno, "%s: eventfd: %s", d->peer, strerror(errno));
	atomic_fetch_add(&r->refs, 1);
	rc = ft_thread_start(&thread, "ft-resolve", resolve_run, r);
	if (rc) {
		atomic_fetch_sub(&r->refs, 1);
		return fail(d, rc, "%s: no thread to resolve its name: %s", d->peer, strerror(-rc));
	}
	pthread_detach(thread);
	rc = wait_for(d, r->done_fd, POLLIN, d->deadline_ns);
	if (rc == 1 && read(r->done_fd, &done, sizeof(done)) < 0)       /* the thread's results are behind it */
		rc = -errno;
	if (rc == 0)
		return fail(d, -ETIMEDOUT, "cannot resolve %s (%s) in time - check DNS, or set its address in ft.conf",
			    d->host, d->peer);
	return rc < 0 ? rc : 0;
}

static int resolve(struct ft_dial *d, struct resolve **out)
{
	struct resolve *r = calloc(1, sizeof(*r));
	int rc = 0;

	if (!r)
		return fail(d, -ENOMEM, "%s: no memory", d->peer);
	atomic_init(&r->refs, 1);
	r->done_fd = -1;
	snprintf(r->host, sizeof(r->host), "%s", d->host);
	snprintf(r->port, sizeof(r->port), "%u", d->port);
	resolve_now(r, AI_NUMERICHOST);
	if (r->rc)
		rc = resolve_on_thread(d, r);
	if (!rc && r->rc)
		rc = fail(d, -EHOSTUNREACH, "cannot resolve %s (%s): %s - check the name, or set 'address' in [peer %s] of ft.conf",
			  d->host, d->peer, gai_strerror(r->rc), d->peer);
	if (rc)
		resolve_put(r);
	else
		*out = r;
	return rc;
}

/* --- connecting --- */

static int connect_failed(struct ft_dial *d, int err)
{
	switch (err) {
	case ECONNREFUSED:
		return fail(d, -ECONNREFUSED, "%s refuses the connection: nothing listens there - start ftd on it, or correct "
			    "the port in ft.conf", d->who);
	case ETIMEDOUT:
		return fail(d, -ETIMEDOUT, "%s does not answer - check that it is up and that no firewall drops the port", d->who);
	default:
		return fail(d, -EHOSTUNREACH, "%s cannot be reached: %s - check the network and the address in ft.conf", d->who,
			    strerror(err));
	}
}

static int connect_one(struct ft_dial *d, const struct addrinfo *ai, uint64_t until_ns, int *out)
{
	char addr[80];
	socklen_t len = sizeof(int);
	int err = 0, rc, fd;

	ft_addr_format(ai->ai_addr, addr, sizeof(addr));
	snprintf(d->who, sizeof(d->who), "%s at %s", d->peer, addr);
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
	if (fd < 0)
		return connect_failed(d, errno);
	if (connect(fd, ai->ai_addr, ai->ai_addrlen) < 0) {
		err = errno;
		if (err == EINPROGRESS) {
			rc = wait_for(d, fd, POLLOUT, until_ns);
			if (rc < 0) {
				close(fd);
				return rc;
			}
			if (rc == 0)
				err = ETIMEDOUT;
			else if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len) < 0)
				err = errno;
		}
	}
	if (err) {
		close(fd);
		return connect_failed(d, err);
	}
	*out = fd;
	return 0;
}

int ft_dial(struct ft_dial *d, int *fd)
{
	struct resolve *r = NULL;
	unsigned left = 0;
	int rc;

	snprintf(d->who, sizeof(d->who), "%s", d->peer);
	rc = resolve(d, &r);
	if (rc)
		return rc;
	assert(r);
	for (struct addrinfo *ai = r->list; ai; ai = ai->ai_next)
		left++;
	rc = -EHOSTUNREACH;
	for (struct addrinfo *ai = r->list; ai; ai = ai->ai_next, left--) {
		uint64_t now = ft_now_ns(), end = d->deadline_ns > now ? d->deadline_ns : now;

		/* A dead address must not eat the time of the next one. */
		rc = connect_one(d, ai, now + (end - now) / left, fd);
		if (!rc || rc == -ECANCELED)
			break;
	}
	resolve_put(r);
	return rc;
}
