// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * main_ftd.c - the backup's daemon. The parent reads nothing but a preamble (the guest's name) and hands the
 * socket to that guest's child, starting one if there is none. It holds no keys and no replica, so that
 * its death or restart harms no protected guest.
 */
#include "fdpass.h"
#include "ft/conf.h"
#include "ft/link.h"
#include "refuse.h"
#include "standby.h"

#include <ev.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PENDING_MAX 64                  /* connections whose preamble has not come */
#define PREAMBLE_S 5.0
#define CHILD_DOOR_FD 3
#define CHILD_TCP_FD 4

static const char usage[] =
	"usage: ftd [--config FILE] [--check]\n"
	"Accept guests that other hosts replicate to this one, keep their replicas, take over when they die.\n"
	"\n"
	"  --check        check configuration and certificates, listen to nothing\n"
	"  --config FILE  instead of /etc/ft/ft.conf\n"
	"  --help, --version\n"
	"\n"
	"Exit status: 0 ended by SIGTERM, or the check found nothing; 1 cannot listen; 2 usage or configuration;\n"
	"3 certificates cannot be used.\n";

struct pending {
	struct daemon *d;
	int fd;                         /* -1: free slot */
	struct ft_preamble preamble;
	ev_io readable;
	ev_timer limit;
};

struct daemon {
	struct ev_loop *loop;
	const char *config;
	int listen_fd;
	ev_io acceptable;
	ev_signal sigterm, sigint;
	struct pending pending[PENDING_MAX];
};

/* --- children --- */

/* @child: the guest whose child it is; NULL: the one that answers for all guests that are unknown here. */
static int door_address(const char *child, struct sockaddr_un *sa)
{
	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (!child)
		return ft_refuse_door(sa->sun_path, sizeof(sa->sun_path));
	return ft_standby_door(child, sa->sun_path, sizeof(sa->sun_path));
}

static int pass_to_child(const char *child, const char *guest, int fd)
{
	struct sockaddr_un sa;
	int sock, rc = door_address(child, &sa);

	if (rc)
		return rc;
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return -errno;
	if (connect(sock, (struct sockaddr *)&sa, sizeof(sa)) < 0)
		rc = -errno;
	else
		rc = ft_fd_send(sock, fd, guest);
	close(sock);
	return rc;
}

static int open_door(const char *child)
{
	char dir[sizeof(((struct sockaddr_un *)0)->sun_path)];
	struct sockaddr_un sa;
	int fd, rc = door_address(child, &sa);

	if (rc)
		return rc;
	rc = ft_parent_dir(sa.sun_path, dir, sizeof(dir));
	if (!rc)
		rc = ft_mkdir_p(dir, 0755);
	if (rc)
		return rc;
	unlink(sa.sun_path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 16) < 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	return fd;
}

static void exec_child(struct daemon *d, const char *child, int door, int tcp)
{
	char option[FT_NAME_MAX + 16];
	char self[] = "ftd", opt_config[] = "--config";
	char *argv[] = { self, option, d->config ? opt_config : NULL, (char *)d->config, NULL };
	int high_door, high_tcp;

	snprintf(option, sizeof(option), child ? "--guest=%s" : "--unknown", child);
	setsid();
	if (fork())                     /* a child of nobody: our end is not its end */
		_exit(0);
	high_door = fcntl(door, F_DUPFD, 10);
	high_tcp = tcp < 0 ? -1 : fcntl(tcp, F_DUPFD, 10);
	if (high_door < 0 || dup2(high_door, CHILD_DOOR_FD) < 0)
		_exit(127);
	if (tcp >= 0 && (high_tcp < 0 || dup2(high_tcp, CHILD_TCP_FD) < 0))
		_exit(127);
	close(high_door);
	if (high_tcp >= 0)
		close(high_tcp);
	execv("/proc/self/exe", argv);
	_exit(127);
}

static int start_child(struct daemon *d, const char *child, int tcp)
{
	const char *who = child ? child : "unknown guests";
	int door = open_door(child);
	pid_t pid;

	if (door < 0) {
		ft_err("%s: no door for its child: %s", who, strerror(-door));
		return door;
	}
	pid = fork();
	if (pid == 0)
		exec_child(d, child, door, tcp);
	close(door);
	if (pid < 0) {
		ft_err("%s: no child: %s", who, strerror(errno));
		return -errno;
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	ft_info("%s: started its child", who);
	return 0;
}

static bool there_is(const char *dir, const char *guest, const char *suffix)
{
	char path[FT_PATH_MAX + FT_NAME_MAX + 16];

	snprintf(path, sizeof(path), "%s/%s%s", dir, guest, suffix);
	return access(path, F_OK) == 0;
}

/* Anybody can connect and say a name. Only one that the administrator or a session wrote down is worth a child. */
static bool known(const char *guest)
{
	return there_is(ft_conf()->guests_dir, guest, ".conf") || there_is(ft_conf()->state_dir, guest, ".record");
}

static bool has_gone(int rc)
{
	return rc == -ECONNREFUSED || rc == -ENOENT || rc == -EPIPE || rc == -ECONNRESET;      /* or is just leaving */
}

/* All of them go to one process, which has the first in its door's queue before it runs. */
static int deliver_unknown(struct daemon *d, const char *guest, int fd)
{
	int rc = pass_to_child(NULL, guest, fd);

	if (!has_gone(rc))
		return rc;
	rc = start_child(d, NULL, -1);
	return rc ? rc : pass_to_child(NULL, guest, fd);
}

static void deliver(struct daemon *d, const char *guest, int fd)
{
	int rc = pass_to_child(guest, guest, fd);

	if (has_gone(rc) && known(guest))
		rc = start_child(d, guest, fd); /* logged there; the primary tries again */
	else if (has_gone(rc))
		rc = deliver_unknown(d, guest, fd);
	if (rc)
		ft_warn("%s: its child does not answer: %s", guest, strerror(-rc));
	close(fd);
}

/* --- preambles --- */

static void forget(struct pending *p)
{
	ev_io_stop(p->d->loop, &p->readable);
	ev_timer_stop(p->d->loop, &p->limit);
	p->fd = -1;
}

static void on_limit(struct ev_loop *loop, ev_timer *w, int revents)
{
	struct pending *p = w->data;
	int fd = p->fd;

	(void)loop, (void)revents;
	forget(p);
	close(fd);
}

static void on_readable(struct ev_loop *loop, ev_io *w, int revents)
{
	struct pending *p = w->data;
	char guest[FT_NAME_MAX + 1];
	int fd = p->fd, rc = ft_preamble_read(&p->preamble, fd, guest);

	(void)loop, (void)revents;
	if (rc == -EAGAIN)
		return;
	forget(p);
	if (rc) {
		ft_warn("a connection that does not speak our protocol was closed");
		close(fd);
		return;
	}
	deliver(p->d, guest, fd);
}

static void on_acceptable(struct ev_loop *loop, ev_io *w, int revents)
{
	struct daemon *d = w->data;
	struct pending *p = NULL;
	int fd = accept4(d->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

	(void)revents;
	if (fd < 0)
		return;
	for (unsigned i = 0; i < PENDING_MAX && !p; i++)
		if (d->pending[i].fd < 0)
			p = &d->pending[i];
	if (!p) {
		ft_warn("too many connections without a preamble; one was turned away");
		close(fd);
		return;
	}
	*p = (struct pending){ .d = d, .fd = fd };
	ev_io_init(&p->readable, on_readable, fd, EV_READ);
	ev_timer_init(&p->limit, on_limit, PREAMBLE_S, 0.0);
	p->readable.data = p->limit.data = p;
	ev_io_start(loop, &p->readable);
	ev_timer_start(loop, &p->limit);
}

/* --- life --- */

static int listen_on(const char *address, uint16_t port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICHOST }, *res = NULL;
	char service[8];
	int fd, on = 1, off = 0, rc = 0;

	snprintf(service, sizeof(service), "%u", port);
	if (getaddrinfo(address, service, &hints, &res) || !res)
		return -EINVAL;
	fd = socket(res->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		rc = -errno;
	} else {
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		if (res->ai_family == AF_INET6)
			setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
		if (bind(fd, res->ai_addr, res->ai_addrlen) < 0 || listen(fd, 64) < 0)
			rc = -errno;
	}
	freeaddrinfo(res);
	if (rc && fd >= 0)
		close(fd);
	return rc ? rc : fd;
}

static void on_stop(struct ev_loop *loop, ev_signal *w, int revents)
{
	(void)w, (void)revents;
	ev_break(loop, EVBREAK_ALL);
}

static int run(const char *config)
{
	static struct daemon d;
	const struct ft_conf *conf = ft_conf();

	d = (struct daemon){ .loop = ev_default_loop(0), .config = config };
	for (unsigned i = 0; i < PENDING_MAX; i++)
		d.pending[i].fd = -1;
	d.listen_fd = listen_on(*conf->listen ? conf->listen : "::", conf->port);
	if (d.listen_fd < 0) {
		ft_err("cannot listen on %s port %u: %s%s", conf->listen, conf->port, strerror(-d.listen_fd),
		       d.listen_fd == -EADDRINUSE ? " - does ftd run already? else set another 'port' in ft.conf, on both hosts" :
		       d.listen_fd == -EADDRNOTAVAIL ? " - correct 'listen' in ft.conf" : "");
		return 1;
	}
	ev_io_init(&d.acceptable, on_acceptable, d.listen_fd, EV_READ);
	ev_signal_init(&d.sigterm, on_stop, SIGTERM);
	ev_signal_init(&d.sigint, on_stop, SIGINT);
	d.acceptable.data = &d;
	ev_io_start(d.loop, &d.acceptable);
	ev_signal_start(d.loop, &d.sigterm);
	ev_signal_start(d.loop, &d.sigint);
	ft_info("listening on %s port %u as %s", conf->listen, conf->port, conf->host);
	ev_run(d.loop, 0);
	ft_info("ended; children that keep a replica go on");
	return 0;
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'C' }, { "check", no_argument, NULL, 'n' },
		{ "guest", required_argument, NULL, 'g' }, { "unknown", no_argument, NULL, 'u' },
		{ "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' }, { 0 },
	};
	static struct ft_conf conf;
	const char *config = NULL, *guest = NULL;
	struct ft_tls_files tls;
	bool check = false, unknown = false;
	int c;

	ft_log_init("ftd");
	signal(SIGPIPE, SIG_IGN);
	while ((c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'C': config = optarg; break;
		case 'n': check = true; break;
		case 'g': guest = optarg; break;        /* internal: started by ourselves with the sockets of exec_child */
		case 'u': unknown = true; break;        /* the same */
		case 'h': fputs(usage, stdout); return 0;
		case 'V': puts("ftd " FT_VERSION); return 0;
		default: return 2;
		}
	}
	if (optind != argc || (guest && !ft_name_ok(guest))) {
		fputs(usage, stderr);
		return 2;
	}
	if (ft_conf_load(config, &conf))
		return 2;
	ft_conf_set(&conf);
	prctl(PR_SET_NAME, "ftd");              /* a child was started as /proc/self/exe */
	if (unknown)
		return ft_refuse_run(CHILD_DOOR_FD);
	if (guest)
		return ft_standby_run(guest, CHILD_DOOR_FD, CHILD_TCP_FD);
	tls = (struct ft_tls_files){ conf.tls_ca, conf.tls_cert, conf.tls_key };
	if (ft_tls_check(&tls))
		return 3;
	if (check) {
		puts("ftd: configuration and certificates can be used");
		return 0;
	}
	return run(config);
}
