// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * agent.c - runs in the test guest (static, one file): does on request what a protected guest may do.
 *
 *	agent [TICK_MS]     how often it looks whether there is something to do: more where each interrupt is dear
 *
 * UDP port 7001, one command a datagram, answered with one line "ok ..." or "error ...":
 *	dirty MB RATE       keep writing RATE pages a second, all over MB megabytes (0 0 stops)
 *	cpuid LEAF          what the processor says of itself: eax ebx ecx edx
 *	whole               is each of these pages as it was written last?
 *	burn N              N CPU-bound threads
 *	frames N MS [FROM]  send N sets of frames, one every MS ms, numbered from FROM: UDP over IPv4 and IPv6, a
 *	                    VLAN-tagged frame, ethertype 0x88b5. Each carries "FTT KIND NUMBER;".
 *	fill MB SEED        write a known pattern; `check MB SEED` reads it back
 *	time                guest clocks, ns: monotonic, realtime
 *	stat                pages written, rounds burnt, echoes answered, boot id
 *	reboot, poweroff    at once, without waiting for anybody
 * UDP port 7002 echoes "SEQ" as "SEQ COUNTER": the counter counts datagrams since boot, so a client sees
 * memory that went backwards.
 */
#include <arpa/inet.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define BURNERS_MAX 8
#define CONTROL_PORT 7001
#define ECHO_PORT 7002
#define FRAMES_PORT 7003

static const char nic[] = "eth0";
static unsigned tick_ms = 2;
static _Atomic uint64_t pages_written, rounds_burnt[BURNERS_MAX];
static _Atomic unsigned dirty_rate, nr_burners;
static uint64_t echoes;

static uint64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static void sleep_ms(unsigned ms)
{
	struct timespec ts = { ms / 1000, (long)(ms % 1000) * 1000000 };

	nanosleep(&ts, NULL);
}

static uint64_t xorshift(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	return *s ^= *s << 17;
}

static void *anonymous(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* ---- dirty ---- */

static pthread_mutex_t dirty_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t dirty_wanted = PTHREAD_COND_INITIALIZER;
static uint8_t *dirty_area;
static size_t dirty_pages;
static uint64_t *last_write, nr_writes; /* of each page; it begins with that number */

/* Half of what is written looks like text, the rest like nothing: a middling page for a compressor. */
static void dirty_one(uint64_t *seed)
{
	uint64_t r = xorshift(seed);
	uint8_t *page = dirty_area + (r % dirty_pages) * PAGE;
	size_t at = 8 + (r >> 32) % (PAGE - 256 - 8);

	last_write[r % dirty_pages] = ++nr_writes;
	memcpy(page, &nr_writes, 8);
	memset(page + at, 'a' + (int)(r % 26), 128);
	for (size_t i = 128; i < 256; i += 8) {
		uint64_t v = xorshift(seed);
		memcpy(page + at + i, &v, 8);
	}
}

static void *dirtier(void *arg)
{
	uint64_t seed = 88172645463325252u, last = now_ns(CLOCK_MONOTONIC), due = 0;

	for (;;) {
		uint64_t now, elapsed;

		pthread_mutex_lock(&dirty_lock);
		while (!dirty_rate) {           /* an idle guest is to be idle: it may share a slow processor */
			pthread_cond_wait(&dirty_wanted, &dirty_lock);
			last = now_ns(CLOCK_MONOTONIC);
			due = 0;
		}
		now = now_ns(CLOCK_MONOTONIC);
		elapsed = now - last;
		last = now;
		/* What a stop of the guest made late is not made up for: at most one second's worth. */
		due += (elapsed < 1000000000u ? elapsed : 1000000000u) * dirty_rate;
		for (; due >= 1000000000u; due -= 1000000000u, pages_written++)
			dirty_one(&seed);
		pthread_mutex_unlock(&dirty_lock);
		sleep_ms(tick_ms);
	}
	return arg;
}

static const char *dirty_set(size_t mb, unsigned rate)
{
	const char *error = NULL;

	pthread_mutex_lock(&dirty_lock);
	if (dirty_pages != mb * (1 << 20) / PAGE) {
		if (dirty_area)
			munmap(dirty_area, dirty_pages * PAGE);
		free(last_write);
		dirty_pages = mb * (1 << 20) / PAGE;
		dirty_area = mb ? anonymous(dirty_pages * PAGE) : NULL;
		last_write = calloc(dirty_pages, sizeof(*last_write));
		if (mb && !(dirty_area && last_write))
			error = "no memory";
	}
	dirty_rate = dirty_area && last_write ? rate : 0;
	pthread_cond_signal(&dirty_wanted);
	pthread_mutex_unlock(&dirty_lock);
	return error;
}

static const char *dirty_check(void)
{
	size_t nr_old = 0;

	pthread_mutex_lock(&dirty_lock);
	for (size_t i = 0; dirty_area && i < dirty_pages; i++)
		nr_old += memcmp(dirty_area + i * PAGE, &last_write[i], 8) != 0;
	pthread_mutex_unlock(&dirty_lock);
	return nr_old ? "there are pages that are not as they were written last" : NULL;
}

/* ---- burn ---- */

static pthread_mutex_t burn_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t burn_wanted = PTHREAD_COND_INITIALIZER;

static void *burner(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint64_t seed = me + 1;

	for (;;) {
		if (me >= nr_burners) {
			pthread_mutex_lock(&burn_lock);
			while (me >= nr_burners)
				pthread_cond_wait(&burn_wanted, &burn_lock);
			pthread_mutex_unlock(&burn_lock);
		}
		for (int i = 0; i < 100000; i++)
			xorshift(&seed);
		if (seed)               /* always, but the compiler does not know */
			rounds_burnt[me]++;
	}
	return NULL;
}

static const char *burn_set(unsigned long n)
{
	if (n > BURNERS_MAX)
		return "too many";
	pthread_mutex_lock(&burn_lock);
	nr_burners = (unsigned)n;
	pthread_cond_broadcast(&burn_wanted);
	pthread_mutex_unlock(&burn_lock);
	return NULL;
}

/* ---- frames ---- */

struct frames_job {
	unsigned count, interval_ms, from;
};

static int send_udp(int fd, const struct sockaddr *to, socklen_t len, const char *text)
{
	return sendto(fd, text, strlen(text), 0, to, len) < 0 ? -errno : 0;
}

static int udp_socket(int family)
{
	int one = 1, fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	setsockopt(fd, SOL_SOCKET, SO_BROADCAST, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, nic, sizeof(nic));
	return fd;
}

static void own_mac(int fd, uint8_t mac[6])
{
	struct ifreq ifr;

	memset(&ifr, 0, sizeof(ifr));
	memcpy(ifr.ifr_name, nic, sizeof(nic));
	ioctl(fd, SIOCGIFHWADDR, &ifr);
	memcpy(mac, ifr.ifr_hwaddr.sa_data, 6);
}

/* A broadcast frame: @head is what follows the addresses, ethertype included. */
static void send_raw(int fd, const uint8_t *head, size_t head_len, const char *text)
{
	struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(nic), .sll_halen = 6 };
	uint8_t frame[128] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

	own_mac(fd, frame + 6);
	memcpy(frame + 12, head, head_len);
	memcpy(frame + 12 + head_len, text, strlen(text));
	memset(to.sll_addr, 0xff, 6);
	sendto(fd, frame, 64, 0, (struct sockaddr *)&to, sizeof(to));
}

static void send_set(int v4, int v6, int raw, unsigned i)
{
	static const uint8_t vlan[] = { 0x81, 0x00, 0x00, 0x07, 0x88, 0xb5 }, local[] = { 0x88, 0xb5 };
	struct sockaddr_in to4 = { .sin_family = AF_INET, .sin_port = htons(FRAMES_PORT), .sin_addr.s_addr = INADDR_BROADCAST };
	struct sockaddr_in6 to6 = { .sin6_family = AF_INET6, .sin6_port = htons(FRAMES_PORT), .sin6_scope_id = if_nametoindex(nic) };
	char text[64];

	inet_pton(AF_INET6, "ff02::1", &to6.sin6_addr);
	snprintf(text, sizeof(text), "FTT v4 %u;", i);
	send_udp(v4, (struct sockaddr *)&to4, sizeof(to4), text);
	snprintf(text, sizeof(text), "FTT v6 %u;", i);
	send_udp(v6, (struct sockaddr *)&to6, sizeof(to6), text);
	snprintf(text, sizeof(text), "FTT vlan %u;", i);
	send_raw(raw, vlan, sizeof(vlan), text);
	snprintf(text, sizeof(text), "FTT 88b5 %u;", i);
	send_raw(raw, local, sizeof(local), text);
}

static void *frame_sender(void *arg)
{
	struct frames_job *job = arg;
	int v4 = udp_socket(AF_INET), v6 = udp_socket(AF_INET6), raw = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);

	for (unsigned i = 0; i < job->count; i++) {
		send_set(v4, v6, raw, job->from + i);
		sleep_ms(job->interval_ms);
	}
	close(v4);
	close(v6);
	close(raw);
	free(job);
	return NULL;
}

static const char *frames_start(unsigned count, unsigned interval_ms, unsigned from)
{
	struct frames_job *job = malloc(sizeof(*job));
	pthread_t t;

	if (!job)
		return "no memory";
	*job = (struct frames_job){ count, interval_ms, from };
	if (pthread_create(&t, NULL, frame_sender, job))
		return "no thread";
	pthread_detach(t);
	return NULL;
}

/* ---- a known pattern ---- */

static uint64_t *pattern_area;
static size_t pattern_words;

static const char *pattern_fill(size_t mb, uint64_t seed)
{
	if (pattern_area)
		munmap(pattern_area, pattern_words * 8);
	pattern_words = mb * (1 << 20) / 8;
	pattern_area = anonymous(pattern_words * 8);
	if (!pattern_area)
		return "no memory";
	seed = seed * 2 + 1;
	for (size_t i = 0; i < pattern_words; i++)
		pattern_area[i] = xorshift(&seed);
	return NULL;
}

static const char *pattern_check(size_t mb, uint64_t seed)
{
	if (!pattern_area || pattern_words != mb * (1 << 20) / 8)
		return "no such pattern";
	seed = seed * 2 + 1;
	for (size_t i = 0; i < pattern_words; i++)
		if (pattern_area[i] != xorshift(&seed))
			return "the pattern differs";
	return NULL;
}

/* ---- commands ---- */

static uint64_t total_burnt(void)
{
	uint64_t sum = 0;

	for (int i = 0; i < BURNERS_MAX; i++)
		sum += rounds_burnt[i];
	return sum;
}

static void boot_id(char *buf, size_t size)
{
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, buf, size - 1);

	buf[n > 0 ? n : 0] = 0;
	buf[strcspn(buf, "\n")] = 0;
	if (fd >= 0)
		close(fd);
}

static void answer(char *out, size_t size, const char *error)
{
	snprintf(out, size, error ? "error %s" : "ok", error);
}

static void status(char *out, size_t size)
{
	char id[64];

	boot_id(id, sizeof(id));
	snprintf(out, size, "ok pages=%llu burnt=%llu echoes=%llu boot=%s", (unsigned long long)pages_written,
		 (unsigned long long)total_burnt(), (unsigned long long)echoes, id);
}

static void cpuid_answer(unsigned leaf, char *out, size_t size)
{
	unsigned a = 0, b = 0, c = 0, d = 0;

	__cpuid_count(leaf, 0, a, b, c, d);
	snprintf(out, size, "ok %x %x %x %x", a, b, c, d);
}

static void command(const char *line, char *out, size_t size)
{
	unsigned long a = 0, b = 0, c = 0;
	char verb[16] = "";
	int n = sscanf(line, "%15s %lu %lu %lu", verb, &a, &b, &c);

	if (!strcmp(verb, "dirty") && n == 3)
		answer(out, size, dirty_set(a, (unsigned)b));
	else if (!strcmp(verb, "cpuid") && n == 2)
		cpuid_answer((unsigned)a, out, size);
	else if (!strcmp(verb, "whole"))
		answer(out, size, dirty_check());
	else if (!strcmp(verb, "burn") && n == 2)
		answer(out, size, burn_set(a));
	else if (!strcmp(verb, "frames") && n >= 3)
		answer(out, size, frames_start((unsigned)a, (unsigned)b, (unsigned)c));
	else if (!strcmp(verb, "fill") && n == 3)
		answer(out, size, pattern_fill(a, b));
	else if (!strcmp(verb, "check") && n == 3)
		answer(out, size, pattern_check(a, b));
	else if (!strcmp(verb, "time"))
		snprintf(out, size, "ok %llu %llu", (unsigned long long)now_ns(CLOCK_MONOTONIC),
			 (unsigned long long)now_ns(CLOCK_REALTIME));
	else if (!strcmp(verb, "stat"))
		status(out, size);
	else if (!strcmp(verb, "reboot"))
		reboot(RB_AUTOBOOT);
	else if (!strcmp(verb, "poweroff"))
		reboot(RB_POWER_OFF);
	else
		answer(out, size, "no such command");
}

static void echo(const char *request, char *out, size_t size)
{
	snprintf(out, size, "%.32s %llu", request, (unsigned long long)++echoes);
}

static int listen_udp(uint16_t port)
{
	struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)))
		perror("agent: bind"), exit(1);
	return fd;
}

static void serve(int fd, void (*act)(const char *request, char *out, size_t size))
{
	struct sockaddr_storage from;
	socklen_t len = sizeof(from);
	char in[256], out[256] = "";
	ssize_t n = recvfrom(fd, in, sizeof(in) - 1, 0, (struct sockaddr *)&from, &len);

	if (n <= 0)
		return;
	in[n] = 0;
	in[strcspn(in, "\n")] = 0;
	act(in, out, sizeof(out));
	sendto(fd, out, strlen(out), 0, (struct sockaddr *)&from, len);
}

int main(int argc, char **argv)
{
	struct pollfd fd[2] = { { listen_udp(CONTROL_PORT), POLLIN, 0 }, { listen_udp(ECHO_PORT), POLLIN, 0 } };
	pthread_t t;

	if (argc > 1)
		tick_ms = (unsigned)atoi(argv[1]);
	pthread_create(&t, NULL, dirtier, NULL);
	for (uintptr_t i = 0; i < BURNERS_MAX; i++)
		pthread_create(&t, NULL, burner, (void *)i);
	while (poll(fd, 2, -1) >= 0 || errno == EINTR) {
		if (fd[0].revents & POLLIN)
			serve(fd[0].fd, command);
		if (fd[1].revents & POLLIN)
			serve(fd[1].fd, echo);
	}
	return 1;
}
