// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * guard_process.c - the guard itself: one thread that polls, and a heartbeat thread. See ft/guard.h.
 *
 * In the order of a guard's life: it opens what it will need (a hold on the guest: QEMU's pidfd and a QMP connection of
 * its own, or handles to Xen) before anything goes wrong, is attached by ft-protect, watches the pause word, loses
 * ft-protect, and in the end either is adopted by the next one or gives up.
 */
#include "ft/guard.h"
#include "failover/guard_msg.h"
#include "ft/attach.h"
#include "ft/conf.h"
#include "ft/hv.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#define PAUSE_LIMIT_MS 1000
#define GRACE_MS 10000
#define POLL_MS 50                      /* how late a pause that is too long may be noticed, or a twentieth of the limit: */
#define POLL_MOST_MS 250
#define IDLE_MS 1000
#define SETTLE_OWNED_NS FT_S_NS         /* under the next one: later it is its own */
#define ORPHAN_NS (20 * FT_S_NS)        /* nobody ever came */

struct guard {
	const char *guest;
	int lock_fd, listen_fd;
	struct ft_hold *hold;
	bool gone;                              /* QEMU, or the domain */
	bool leaving;                           /* somebody saves or migrates it */
	bool left;                              /* it was, and what the backup holds is older: until that has a new epoch */
	bool session;                           /* the owner's own: it can tell the backup what becomes of the guest */
	int pending_fd;                         /* connected, has not said anything yet */
	int page_fd, held_fd;                   /* held_fd: the gate's socket */
	struct guard_page *page;
	struct ft_beat *beat;

	struct {
		int fd, pidfd;
	} owner;                                /* the ft-protect of now */
	bool had_owner, gave_up, end;
	uint64_t pause_limit_ns, grace_ns;
	uint64_t born_ns, lost_ns;              /* when the owner was lost */
	uint64_t grace_left_ns;                 /* of the time without an owner since the last session began */
	uint64_t settle_until_ns;
	uint64_t attached_ns;           /* when the newest ft-protect came */
	bool complained;                        /* of a guest that could not be let run; it is tried again */

	struct ft_silence loop;                 /* of the owner's loop */
	uint64_t ticks;
};

static bool readable(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return fd >= 0 && poll(&p, 1, 0) > 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static int open_hold(struct guard *g)
{
	struct ft_attach at;
	int rc = ft_attach_load(g->guest, &at);

	if (!rc)
		rc = ft_hv_hold(&at, &g->hold);
	if (rc)
		ft_err("%s: cannot guard it: %s", g->guest, rc == -ESRCH || rc == -ENOENT ? "it does not run here" : strerror(-rc));
	return rc;
}

static bool paused(const struct guard *g)
{
	return g->hold->ops->paused(g->hold);
}

/* --- letting a paused guest run --- */

/* The word says REVOKING. Tried again at each turn until there is an answer. */
static void let_run(struct guard *g)
{
	char why[200] = "";
	int rc = g->hold->ops->run(g->hold, why, sizeof(why));

	if (rc && rc != -EAGAIN && !g->complained)
		ft_err("%s: cannot let the guest run: %s%s", g->guest, why, rc == -EREMOTEIO ? "" : "; trying on");
	g->complained = rc && rc != -EAGAIN;
	if (rc && rc != -EREMOTEIO)
		return;
	/* With no ft-protect there is no capture that could be void. */
	atomic_store(&g->page->pause, guard_word(g->owner.fd >= 0 ? GUARD_REVOKED : GUARD_RUNNING, ft_now_ns()));
}

static bool revoke_pause(struct guard *g, uint64_t word)
{
	if (!atomic_compare_exchange_strong(&g->page->pause, &word, guard_word(GUARD_REVOKING, ft_now_ns())))
		return false;
	let_run(g);
	return true;
}

/* May what stands still now stand so for an ft-protect that is dead? */
static bool settles(const struct guard *g, uint64_t now)
{
	return now < g->settle_until_ns && (g->owner.fd < 0 || now < g->attached_ns + SETTLE_OWNED_NS);
}

static void watch_pause(struct guard *g)
{
	uint64_t word = atomic_load(&g->page->pause), now = ft_now_ns(), since = guard_word_since(word);
	bool still = paused(g);         /* asked at each turn: events must be read */

	switch (guard_word_state(word)) {
	case GUARD_PAUSED:
		if (now > since + g->pause_limit_ns && revoke_pause(g, word))
			ft_warn("%s: paused for %llu ms by an ft-protect that does not move: letting it run, mute", g->guest,
				(unsigned long long)((now - since) / FT_MS_NS));
		break;
	case GUARD_REVOKING:
		let_run(g);
		break;
	case GUARD_REVOKED:             /* a stop that ft-protect sent before it was stopped itself came after our cont */
		if (still)
			(void)revoke_pause(g, word);
		break;
	case GUARD_RUNNING:
		if (still && settles(g, now))
			(void)revoke_pause(g, word);
		break;
	}
}

/* --- ft-protect comes and goes --- */

static void stop_beating(struct guard *g)
{
	ft_beat_stop(g->beat);
	g->beat = NULL;
}

static void owner_lost(struct guard *g, const char *how)
{
	close_fd(&g->owner.fd);
	close_fd(&g->owner.pidfd);
	g->session = false;
	g->lost_ns = ft_now_ns();
	if (g->gone) {
		g->end = !g->left;
		return;
	}
	ft_warn("%s: ft-protect %s: output is shut; %s", g->guest, how,
		g->beat ? "the backup is told that this host lives" : "no heartbeats are due");
	if (guard_word_state(atomic_load(&g->page->pause)) == GUARD_RUNNING)
		return;
	ft_info("%s: left paused: letting it run, mute", g->guest);
	g->settle_until_ns = g->lost_ns + g->hold->settle_ns;
	atomic_store(&g->page->pause, guard_word(GUARD_REVOKING, g->lost_ns));
	let_run(g);
}

/* Somebody new: what the one before left paused, or we, runs before the new one looks at the guest. */
static void take_over_pause(struct guard *g)
{
	uint64_t spent = ft_now_ns() - g->lost_ns;

	g->grace_left_ns -= spent < g->grace_left_ns ? spent : g->grace_left_ns;
	if (g->hold->ops->ask_paused(g->hold)) {
		ft_info("%s: was paused: it runs on, mute, for the ft-protect that has come", g->guest);
		atomic_store(&g->page->pause, guard_word(GUARD_REVOKING, ft_now_ns()));
		let_run(g);
	}
}

/* While there is an owner. */
static unsigned poll_ms(const struct guard *g)
{
	uint64_t limit_ms = (g->pause_limit_ns < g->grace_ns ? g->pause_limit_ns : g->grace_ns) / FT_MS_NS;

	return limit_ms < 20 * POLL_MS ? POLL_MS : limit_ms > 20 * POLL_MOST_MS ? POLL_MOST_MS : (unsigned)limit_ms / 20;
}

/* The record names another guest since: one that left and has come back. */
static int find_again(struct guard *g)
{
	struct ft_hold *old = g->hold;
	int rc = open_hold(g);

	if (rc)
		return rc;
	old->ops->close(old);
	g->gone = false;
	g->lost_ns = ft_now_ns();
	return 0;
}

static void attach(struct guard *g, int fd, const struct guard_msg *msg)
{
	struct guard_reply reply = { .magic = GUARD_MAGIC };
	int fds[GUARD_FDS_MAX] = { g->page_fd, g->held_fd };
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);

	if (readable(g->owner.pidfd))
		owner_lost(g, "has died");
	if (g->owner.fd >= 0)
		reply.rc = -EBUSY;
	else if (msg->abi != GUARD_ABI)
		reply.rc = -EPROTO;
	else if (g->gone)
		reply.rc = find_again(g);
	if (!reply.rc && g->had_owner)
		take_over_pause(g);
	if (!reply.rc) {
		atomic_store(&g->page->ticks, 0);
		atomic_store(&g->page->whole, 0);
	}
	if (guard_send(fd, &reply, sizeof(reply), fds, reply.rc ? 0 : g->held_fd >= 0 ? 2 : 1) || reply.rc) {
		close(fd);
		return;
	}
	(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len);
	g->owner.fd = fd;
	g->owner.pidfd = pidfd_open(peer.pid, 0);
	g->attached_ns = ft_now_ns();
	g->had_owner = true;
	g->gave_up = false;
	g->pause_limit_ns = (msg->pause_limit_ms ? msg->pause_limit_ms : PAUSE_LIMIT_MS) * FT_MS_NS;
	g->grace_ns = (msg->grace_ms ? msg->grace_ms : GRACE_MS) * FT_MS_NS;
	g->ticks = 0;
	ft_silence_init(&g->loop, ft_now_ns(), g->grace_ns, poll_ms(g) * FT_MS_NS);
}

static void begin_beating(struct guard *g, const struct ft_beat_config *cfg)
{
	stop_beating(g);
	if (ft_beat_start(cfg, &g->beat))
		g->beat = NULL;                 /* said why; ft-protect's own go on */
	g->grace_left_ns = g->grace_ns;         /* a session stands: whoever made it was of use */
	g->session = true;
}

static void obey(struct guard *g, const struct guard_msg *msg, int fd)
{
	switch (msg->type) {
	case GUARD_HOLD:
		close_fd(&g->held_fd);
		g->held_fd = fd;
		return;
	case GUARD_BEAT:
		begin_beating(g, &msg->beat);
		break;
	case GUARD_MUTE:
		stop_beating(g);
		break;
	case GUARD_END:
		g->end = true;
		break;
	}
	close_fd(&fd);
}

/* One message from @sock; its fd, if one came, in *@fd. */
static int receive(int sock, struct guard_msg *msg, int *fd)
{
	int fds[GUARD_FDS_MAX];
	unsigned nr_fds;
	ssize_t n;

	*msg = (struct guard_msg){ 0 };
	n = guard_receive(sock, msg, sizeof(*msg), fds, &nr_fds);
	*fd = nr_fds ? fds[0] : -1;
	if (nr_fds > 1)
		close(fds[1]);
	if (n < 0)
		return (int)n;
	if (n < (ssize_t)GUARD_MSG_MIN || msg->magic != GUARD_MAGIC ||
	    (msg->type != GUARD_ATTACH && (msg->abi != GUARD_ABI || n != sizeof(*msg)))) {
		close_fd(fd);
		return -EPROTO;
	}
	return 0;
}

static void hear_owner(struct guard *g)
{
	struct guard_msg msg;
	int fd, rc = 0;

	while (g->owner.fd >= 0 && !g->end && (rc = receive(g->owner.fd, &msg, &fd)) == 0)
		obey(g, &msg, fd);
	explicit_bzero(&msg, sizeof(msg));
	if (g->owner.fd >= 0 && rc != -EAGAIN && !g->end)
		owner_lost(g, rc == -EPROTO ? "speaks nonsense" : "has gone");
	else if (readable(g->owner.pidfd))
		owner_lost(g, "has died");
}

static void hear_pending(struct guard *g)
{
	struct guard_msg msg;
	int fd, sock = g->pending_fd, rc = receive(sock, &msg, &fd);

	if (rc == -EAGAIN)
		return;
	g->pending_fd = -1;
	close_fd(&fd);
	if (!rc && msg.type == GUARD_ATTACH)
		attach(g, sock, &msg);
	else
		close(sock);
}

static void hear_listener(struct guard *g)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	int fd = accept4(g->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != geteuid()) {
		close(fd);
		return;
	}
	close_fd(&g->pending_fd);               /* who says nothing gives way to the next */
	g->pending_fd = fd;
}

/* --- without ft-protect --- */

static void give_up(struct guard *g)
{
	bool held = atomic_load(&g->page->held);
	int rc = held ? g->hold->ops->stop(g->hold) : 0;

	if (rc)
		ft_err("%s: cannot pause the guest: %s; it runs on, mute", g->guest, strerror(-rc));
	ft_warn("%s: no ft-protect came back in %llu ms: %s", g->guest, (unsigned long long)(g->grace_ns / FT_MS_NS),
		held ? "the guest is paused and the backup may take over" :
		       "the guest runs on as it is, and no backup takes over by itself");
	stop_beating(g);                        /* after the guest stands still */
	if (held)
		g->settle_until_ns = 0;
	g->gave_up = true;
}

/* While ft-protect has a session it sees that itself, and says so. */
static void watch_leaving(struct guard *g)
{
	bool was = g->leaving;

	g->left &= !atomic_load(&g->page->whole);
	g->leaving = !g->session && g->hold->ops->leaving && g->hold->ops->leaving(g->hold);
	if (g->leaving && !was)
		ft_warn("%s: somebody saves or migrates the guest, and there is no ft-protect to tell the backup: do that after "
			"'ft-ctl unprotect'", g->guest);
}

static void watch_grace(struct guard *g)
{
	bool lost = g->owner.fd < 0 && g->had_owner && !g->gave_up && g->beat && !g->leaving && !g->left;

	if (lost && ft_now_ns() - g->lost_ns >= g->grace_left_ns)
		give_up(g);
	if (!g->had_owner && ft_now_ns() - g->born_ns > ORPHAN_NS)
		g->end = true;
}

/* A stall of our own restarts the window, as with a peer's silence. */
static void watch_loop(struct guard *g)
{
	uint64_t ticks = atomic_load(&g->page->ticks);
	bool moved = ticks != g->ticks;

	g->ticks = ticks;
	if (g->owner.fd < 0)
		return;
	if (moved || !ticks)
		ft_silence_life(&g->loop, ft_now_ns());
	if (!ft_silence_judge(&g->loop, ft_now_ns()) || g->owner.pidfd < 0)
		return;
	ft_warn("%s: ft-protect has not moved for %llu ms: killing it, so that another can take its place", g->guest,
		(unsigned long long)(g->grace_ns / FT_MS_NS));
	(void)pidfd_send_signal(g->owner.pidfd, SIGKILL, NULL, 0);
	close_fd(&g->owner.pidfd);              /* once; its socket tells when it is dead */
}

/* It lives elsewhere, and silence would have the backup start another. */
static void guest_left(struct guard *g)
{
	ft_err("%s: the guest was saved or migrated without ft-protect: the backup is told that this host lives, or it would start "
	       "its own, older one. Give that up with 'ft-ctl unprotect --force %s' there; then bring the guest back here and protect "
	       "it, or end this guard (pid %d)", g->guest, g->guest, (int)getpid());
	g->gone = g->left = true;
	atomic_store(&g->page->pause, guard_word(GUARD_RUNNING, ft_now_ns()));  /* nothing is left to be let run */
}

static void guest_gone(struct guard *g)
{
	if ((g->leaving || g->left) && g->beat && !g->session) {
		guest_left(g);
		return;
	}
	g->left = false;
	ft_info("%s: the guest has ended; no more heartbeats from here", g->guest);
	g->gone = true;
	stop_beating(g);                        /* a crash, and nobody else to say so: silence does */
	g->end |= g->owner.fd < 0;              /* a living ft-protect ends us when it has handed over */
}

/* --- the loop --- */

static int turn_ms(const struct guard *g)
{
	uint64_t now = ft_now_ns(), until = g->lost_ns + g->grace_left_ns;
	unsigned most, state = guard_word_state(atomic_load(&g->page->pause));

	if (g->owner.fd >= 0 && state <= GUARD_PAUSED && now >= g->settle_until_ns)
		return (int)poll_ms(g);
	if (g->owner.fd >= 0 || state != GUARD_RUNNING || now < g->settle_until_ns)
		return POLL_MS;
	if (!g->beat || g->gave_up || g->gone)
		return IDLE_MS;
	if (g->leaving || g->left)
		return POLL_MOST_MS;
	most = g->hold->fd < 0 ? POLL_MOST_MS : IDLE_MS;        /* we beat for a guest that may have ended */
	if (until > now + most * FT_MS_NS)
		return (int)most;
	return until > now ? (int)((until - now) / FT_MS_NS) + 1 : 0;
}

static void run(struct guard *g)
{
	while (!g->end) {
		struct pollfd p[] = {
			{ .fd = g->gone ? -1 : g->hold->fd, .events = POLLIN }, { .fd = g->owner.fd, .events = POLLIN },
			{ .fd = g->owner.pidfd, .events = POLLIN }, { .fd = g->pending_fd, .events = POLLIN },
			{ .fd = g->listen_fd, .events = POLLIN },
		};

		(void)poll(p, FT_ARRAY_LEN(p), turn_ms(g));
		if (!g->gone && (g->hold->fd < 0 || readable(g->hold->fd)) && g->hold->ops->gone(g->hold))
			guest_gone(g);
		hear_owner(g);
		if (g->pending_fd >= 0)
			hear_pending(g);
		if (readable(g->listen_fd))
			hear_listener(g);
		if (g->gone) {
			g->end |= g->owner.fd < 0 && !g->left;  /* nothing to guard, nobody to wait for */
			continue;
		}
		watch_pause(g);
		watch_loop(g);
		watch_leaving(g);
		watch_grace(g);
	}
}

/* --- opening and closing --- */

static int lock_guest(struct guard *g)
{
	char path[2 * FT_PATH_MAX];
	int rc = ft_run_path(path, sizeof(path), g->guest, "guard.lock");

	if (rc)
		return rc;
	rc = ft_lock_file(path, false, &g->lock_fd);
	if (rc)
		ft_err("%s: %s", path, rc == -EBUSY ? "another guard of this guest lives" : strerror(-rc));
	return rc;
}

static int listen_here(struct guard *g)
{
	struct sockaddr_un a;
	int rc = guard_address(g->guest, &a);

	if (rc)
		return rc;
	g->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (g->listen_fd < 0)
		return -errno;
	(void)unlink(a.sun_path);               /* of a dead one: we have the lock */
	if (bind(g->listen_fd, (struct sockaddr *)&a, sizeof(a)) < 0 || chmod(a.sun_path, 0600) < 0 ||
	    listen(g->listen_fd, 4) < 0) {
		rc = -errno;
		ft_err("%s: %s", a.sun_path, strerror(-rc));
	}
	return rc;
}

static int make_page(struct guard *g)
{
	g->page_fd = memfd_create("ft-guard-page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (g->page_fd < 0 || ftruncate(g->page_fd, sizeof(*g->page)) < 0 ||
	    fcntl(g->page_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) < 0)
		return -errno;
	g->page = mmap(NULL, sizeof(*g->page), PROT_READ | PROT_WRITE, MAP_SHARED, g->page_fd, 0);
	if (g->page == MAP_FAILED) {
		g->page = NULL;
		return -errno;
	}
	return 0;
}

static int open_guard(struct guard *g, const char *guest)
{
	int rc;

	*g = (struct guard){
		.guest = guest, .lock_fd = -1, .listen_fd = -1, .pending_fd = -1, .page_fd = -1, .held_fd = -1,
		.owner = { -1, -1 }, .born_ns = ft_now_ns(),
	};
	rc = lock_guest(g);
	if (!rc)
		rc = open_hold(g);
	if (!rc)
		rc = make_page(g);
	if (!rc)
		rc = listen_here(g);
	return rc;
}

static void close_guard(struct guard *g)
{
	struct sockaddr_un a;

	stop_beating(g);
	if (g->listen_fd >= 0 && !guard_address(g->guest, &a))
		(void)unlink(a.sun_path);
	if (g->hold)
		g->hold->ops->close(g->hold);
	if (g->page)
		munmap(g->page, sizeof(*g->page));
	close_fd(&g->listen_fd);
	close_fd(&g->pending_fd);
	close_fd(&g->page_fd);
	close_fd(&g->held_fd);
	close_fd(&g->lock_fd);
	close_fd(&g->owner.pidfd);
	close_fd(&g->owner.fd);                 /* last: ft_guard_end waits for it */
}

/* --- the program --- */

static void to_syslog(void *ctx, enum ft_log_level level, const char *line)
{
	syslog((int)level, "%s", line);
}

/*
 * From now on nobody waits for us. stderr stays when it leads to the journal or to a file; a terminal or a pipe
 * would be held open by a process that outlives whoever reads it.
 */
static void detach(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	struct stat st;

	if (null < 0)
		return;
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	if (!getenv("JOURNAL_STREAM") && (fstat(STDERR_FILENO, &st) < 0 || !S_ISREG(st.st_mode))) {
		dup2(null, STDERR_FILENO);
		openlog("ft-guard", LOG_PID, LOG_DAEMON);
		ft_log_divert(to_syslog, NULL);
	}
	close(null);
}

static void spare_from_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	(void)!write(fd, "-900", 4);
	close(fd);
}

static int guard_life(const char *guest, int ready_fd)
{
	struct guard g;
	int rc = open_guard(&g, guest);

	if (!rc && write(ready_fd, "r", 1) != 1)
		rc = -EPIPE;                    /* the starter has lost patience */
	close(ready_fd);
	if (!rc) {
		detach();
		run(&g);
	}
	close_guard(&g);
	return rc ? 1 : 0;
}

/* The first process ends when the second is ready, or has said why it never will be. */
static int start_detached(const char *guest)
{
	int ready[2];
	pid_t pid;
	char byte;

	if (pipe2(ready, O_CLOEXEC) < 0 || setsid() < 0 || (pid = fork()) < 0) {
		ft_err("%s: cannot start the guard: %s", guest, strerror(errno));
		return 1;
	}
	if (pid == 0) {
		close(ready[0]);
		return guard_life(guest, ready[1]);
	}
	close(ready[1]);
	return read(ready[0], &byte, 1) == 1 ? 0 : 1;
}

int ft_guard_main(int argc, char **argv)
{
	struct ft_conf conf = *ft_conf();

	ft_log_init("ft-guard");
	if (argc != 3 || !ft_name_ok(argv[1]) || strlen(argv[2]) >= sizeof(conf.run_dir)) {
		ft_err("ft-guard is started by ft-protect; there is nothing to do by hand");
		return 2;
	}
	strcpy(conf.run_dir, argv[2]);
	ft_conf_set(&conf);
	(void)close_range(3, ~0u, 0);
	if (chdir("/") < 0)
		return 1;
	umask(077);
	spare_from_oom();
	return start_detached(argv[1]);
}
