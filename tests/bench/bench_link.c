// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * bench_link.c - our link on loopback beside plain OpenSSL on blocking sockets, in turns, in one run.
 *
 *	bench_link [-q] [-c CASE]
 *
 * One JSON line a case. bulk: records of 256 KiB, GB/s of wall clock and CPU seconds a GB (both ends, all
 * threads); small: records of 4 KiB; ping: round trips of a 16-byte record. Each number is the median of its
 * runs, each ratio the median of the ratios of neighbouring runs. -q: a few seconds in all.
 * -c: one case only.
 */
#include "ft/link.h"

#include <arpa/inet.h>
#include <ev.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RUNS 5
#define PINGS 2000

static char dir[] = "/tmp/ft-bench-XXXXXX";
static char ca[64], cert[2][64], key[2][64];    /* alpha, beta */
static size_t volume = 256u << 20;
static unsigned runs = RUNS;
static const char *only;

static void must(bool ok, const char *what)
{
	if (!ok) {
		fprintf(stderr, "bench_link: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static double clock_s(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double percentile(double *v, size_t n, double p)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[(size_t)((double)(n - 1) * p)];
}

struct result {
	double gbps, cpu_s_per_gb;              /* bulk */
	double p50_us, p99_us;                  /* ping */
};

static struct result bulk_result(double wall, double cpu)
{
	double gb = (double)volume * 1e-9;

	return (struct result){ .gbps = gb / wall, .cpu_s_per_gb = cpu / gb };
}

static void make_certs(void)
{
	static const char *const name[2] = { "alpha", "beta" };
	char cmd[512];

	must(mkdtemp(dir) != NULL, dir);
	snprintf(cmd, sizeof(cmd), "(c='sh replicator/ft-cert.sh'; $c ca %s && $c host alpha %s && $c host beta %s) >/dev/null",
		 dir, dir, dir);
	must(system(cmd) == 0, "ft-cert");
	snprintf(ca, sizeof(ca), "%s/ca.pem", dir);
	for (int i = 0; i < 2; i++) {
		snprintf(cert[i], sizeof(cert[i]), "%s/%s.pem", dir, name[i]);
		snprintf(key[i], sizeof(key[i]), "%s/%s.key", dir, name[i]);
	}
}

static void remove_certs(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		fprintf(stderr, "bench_link: %s is left behind\n", dir);
}

/* A connected pair of TCP sockets on loopback. */
static void tcp_pair(int *client, int *server)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int one = 1, l = socket(AF_INET, SOCK_STREAM, 0);

	must(l >= 0 && !bind(l, (struct sockaddr *)&sa, len) && !listen(l, 1) && !getsockname(l, (struct sockaddr *)&sa, &len), "listen");
	*client = socket(AF_INET, SOCK_STREAM, 0);
	must(!connect(*client, (struct sockaddr *)&sa, len), "connect");
	*server = accept(l, NULL, NULL);
	must(*server >= 0, "accept");
	setsockopt(*client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(*server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	close(l);
}

/* --- plain OpenSSL --- */

struct plain {
	int fd, side;
	size_t record;
	bool ping;
};

static SSL *plain_ssl(const struct plain *p, SSL_CTX **ctx)
{
	SSL *ssl;

	*ctx = SSL_CTX_new(p->side ? TLS_server_method() : TLS_client_method());
	must(*ctx && SSL_CTX_use_certificate_file(*ctx, cert[p->side], SSL_FILETYPE_PEM) == 1 &&
	     SSL_CTX_use_PrivateKey_file(*ctx, key[p->side], SSL_FILETYPE_PEM) == 1 &&
	     SSL_CTX_load_verify_locations(*ctx, ca, NULL) == 1, "plain context");
	SSL_CTX_set_verify(*ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	ssl = SSL_new(*ctx);
	SSL_set_fd(ssl, p->fd);
	must((p->side ? SSL_accept(ssl) : SSL_connect(ssl)) == 1, "plain handshake");
	return ssl;
}

static void read_exactly(SSL *ssl, uint8_t *buf, size_t len)
{
	for (size_t at = 0; at < len; ) {
		int n = SSL_read(ssl, buf + at, (int)(len - at));

		must(n > 0, "SSL_read");
		at += (size_t)n;
	}
}

static void *plain_server(void *arg)
{
	struct plain *p = arg;
	uint8_t *buf = malloc(p->record);
	SSL_CTX *ctx;
	SSL *ssl = plain_ssl(p, &ctx);

	if (p->ping) {
		for (int i = 0; i < PINGS; i++) {
			read_exactly(ssl, buf, p->record);
			must(SSL_write(ssl, buf, (int)p->record) > 0, "SSL_write");
		}
	} else {
		for (size_t got = 0; got < volume; got += p->record)
			read_exactly(ssl, buf, p->record);
		must(SSL_write(ssl, "!", 1) == 1, "SSL_write");         /* all of it has arrived */
	}
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	free(buf);
	return NULL;
}

static struct result plain_run(size_t record, bool ping)
{
	struct plain server = { .side = 1, .record = record, .ping = ping }, client = { .record = record };
	static double rtt[PINGS];
	uint8_t *buf = calloc(1, record);
	struct result r = { 0 };
	double wall, cpu;
	pthread_t thread;
	SSL_CTX *ctx;
	SSL *ssl;

	tcp_pair(&client.fd, &server.fd);
	must(!pthread_create(&thread, NULL, plain_server, &server), "thread");
	ssl = plain_ssl(&client, &ctx);
	wall = clock_s(CLOCK_MONOTONIC);
	cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
	if (ping) {
		for (int i = 0; i < PINGS; i++) {
			double at = clock_s(CLOCK_MONOTONIC);

			must(SSL_write(ssl, buf, (int)record) > 0, "SSL_write");
			read_exactly(ssl, buf, record);
			rtt[i] = (clock_s(CLOCK_MONOTONIC) - at) * 1e6;
		}
		r.p99_us = percentile(rtt, PINGS, 0.99);
		r.p50_us = percentile(rtt, PINGS, 0.5);
	} else {
		for (size_t sent = 0; sent < volume; sent += record)
			must(SSL_write(ssl, buf, (int)record) == (int)record, "SSL_write");
		read_exactly(ssl, buf, 1);
		r = bulk_result(clock_s(CLOCK_MONOTONIC) - wall, clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	}
	pthread_join(thread, NULL);
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	close(client.fd);
	close(server.fd);
	free(buf);
	return r;
}

/* --- our link: two loops on two threads, as two hosts have them, and a worker that sends --- */

struct side {
	struct ev_loop *loop;
	struct ft_link *link;
	ev_async quit;
	pthread_t thread;
	size_t got;
	_Atomic bool up, done;
	bool ping;
	double at, rtt[PINGS];
	unsigned pings;
};

static void on_up(void *ctx, const char *peer)
{
	((struct side *)ctx)->up = true;
}

static void send_ping(struct side *s)
{
	uint8_t body[8] = { 0 };

	s->at = clock_s(CLOCK_MONOTONIC);
	must(!ft_link_send(s->link, FT_LANE_URGENT, FT_REC_PING, body, sizeof(body)), "ft_link_send");
}

static void on_record(void *ctx, uint32_t type, const uint8_t *body, size_t len)
{
	struct side *s = ctx;

	s->got += len;
	if (type == FT_REC_PING) {
		must(!ft_link_send(s->link, FT_LANE_URGENT, FT_REC_PONG, body, len), "ft_link_send");
	} else if (type == FT_REC_PONG) {
		s->rtt[s->pings++] = (clock_s(CLOCK_MONOTONIC) - s->at) * 1e6;
		if (s->pings == PINGS)
			s->done = true;
		else
			send_ping(s);
	} else if (s->got >= volume) {
		s->done = true;
	}
}

static void on_down(void *ctx, int rc, const char *why)
{
	fprintf(stderr, "bench_link: %s\n", why);
	exit(1);
}

static void on_quit(struct ev_loop *loop, ev_async *w, int revents)
{
	ev_break(loop, EVBREAK_ALL);
}

static void *side_run(void *arg)
{
	ev_run(((struct side *)arg)->loop, 0);
	return NULL;
}

static void side_new(struct side *s, bool ping)
{
	*s = (struct side){ .loop = ev_loop_new(EVFLAG_AUTO), .ping = ping };
	ev_async_init(&s->quit, on_quit);
	ev_async_start(s->loop, &s->quit);
}

static struct ft_link_config side_config(struct side *s, bool primary)
{
	return (struct ft_link_config){
		.tls = { ca, cert[!primary], key[!primary] }, .primary = primary, .guest = "bench", .peer = primary ? "beta" : NULL,
		.on_up = on_up, .on_record = on_record, .on_down = on_down, .ctx = s,
	};
}

/* The listener of ftd, as short as it gets. */
static void connect_sides(struct side *primary, struct side *backup)
{
	struct sockaddr_in sa = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct ft_link_config cfg = side_config(primary, true), accept_cfg = side_config(backup, false);
	struct ft_preamble pre = { .have = 0 };
	char guest[FT_NAME_MAX + 1];
	socklen_t len = sizeof(sa);
	int fd, l = socket(AF_INET, SOCK_STREAM, 0);

	must(l >= 0 && !bind(l, (struct sockaddr *)&sa, len) && !listen(l, 1) && !getsockname(l, (struct sockaddr *)&sa, &len), "listen");
	must(!ft_link_connect(primary->loop, &cfg, "127.0.0.1", ntohs(sa.sin_port), &primary->link), "ft_link_connect");
	fd = accept(l, NULL, NULL);
	must(fd >= 0, "accept");
	while (ft_preamble_read(&pre, fd, guest) == -EAGAIN)
		usleep(100);
	must(!ft_link_accept(backup->loop, &accept_cfg, fd, &backup->link), "ft_link_accept");
	close(l);
	must(!pthread_create(&primary->thread, NULL, side_run, primary), "thread");
	must(!pthread_create(&backup->thread, NULL, side_run, backup), "thread");
	while (!primary->up || !backup->up)
		usleep(1000);
}

/* Both loops first: neither may hear of the other's end. */
static void end_sides(struct side *a, struct side *b)
{
	struct side *s[2] = { a, b };

	for (int i = 0; i < 2; i++) {
		ev_async_send(s[i]->loop, &s[i]->quit);
		pthread_join(s[i]->thread, NULL);
	}
	for (int i = 0; i < 2; i++) {
		ft_link_free(s[i]->link);
		ev_loop_destroy(s[i]->loop);
	}
}

static struct result link_run(size_t record, bool ping)
{
	static struct side primary, backup;
	uint8_t *buf = calloc(1, record);
	struct result r = { 0 };
	double wall, cpu;

	side_new(&primary, ping);
	side_new(&backup, ping);
	connect_sides(&primary, &backup);
	wall = clock_s(CLOCK_MONOTONIC);
	cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
	if (ping)
		send_ping(&primary);
	else
		for (size_t sent = 0; sent < volume; sent += record)
			must(!ft_link_send(primary.link, FT_LANE_BULK, FT_REC_PAGES, buf, record), "ft_link_send");
	while (ping ? !primary.done : !backup.done)
		usleep(200);
	if (ping) {
		r.p99_us = percentile(primary.rtt, PINGS, 0.99);
		r.p50_us = percentile(primary.rtt, PINGS, 0.5);
	} else {
		r = bulk_result(clock_s(CLOCK_MONOTONIC) - wall, clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu);
	}
	end_sides(&primary, &backup);
	free(buf);
	return r;
}

/* --- what the hardware gives: one thread sealing TLS-sized records --- */

static double gcm_cpu_s_per_gb(void)
{
	EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	uint8_t k[32] = { 1 }, iv[12] = { 2 }, buf[16384 + 16] = { 0 };
	size_t total = volume / 4;
	double cpu;
	int len;

	must(c && EVP_EncryptInit_ex(c, EVP_aes_256_gcm(), NULL, k, iv) == 1, "AES-GCM");
	cpu = clock_s(CLOCK_THREAD_CPUTIME_ID);
	for (size_t done = 0; done < total; done += 16384) {
		EVP_EncryptInit_ex(c, NULL, NULL, NULL, iv);
		EVP_EncryptUpdate(c, buf, &len, buf, 16384);
		EVP_EncryptFinal_ex(c, buf + len, &len);
		EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_GCM_GET_TAG, 16, buf + 16384);
	}
	cpu = clock_s(CLOCK_THREAD_CPUTIME_ID) - cpu;
	EVP_CIPHER_CTX_free(c);
	return cpu / ((double)total * 1e-9);
}

static void compare(const char *name, size_t record, bool ping)
{
	double v[6][RUNS];

	if (only && strcmp(only, name))
		return;
	for (unsigned i = 0; i < runs; i++) {
		struct result a = plain_run(record, ping), b = link_run(record, ping);

		v[0][i] = ping ? a.p50_us : a.gbps;
		v[1][i] = ping ? a.p99_us : a.cpu_s_per_gb;
		v[2][i] = ping ? b.p50_us : b.gbps;
		v[3][i] = ping ? b.p99_us : b.cpu_s_per_gb;
		v[4][i] = v[2][i] / v[0][i];
		v[5][i] = v[3][i] / v[1][i];
	}
	printf(ping ? "{\"bench\":\"link\",\"case\":\"%s\",\"record\":%zu,\"plain_p50_us\":%.1f,\"plain_p99_us\":%.1f,\"link_p50_us\":%.1f,"
		      "\"link_p99_us\":%.1f,\"p50_ratio\":%.2f,\"p99_ratio\":%.2f}\n"
		    : "{\"bench\":\"link\",\"case\":\"%s\",\"record\":%zu,\"plain_gbps\":%.3f,\"plain_cpu_s_per_gb\":%.3f,\"link_gbps\":%.3f,"
		      "\"link_cpu_s_per_gb\":%.3f,\"speed_ratio\":%.2f,\"cpu_ratio\":%.2f}\n",
	       name, record, percentile(v[0], runs, 0.5), percentile(v[1], runs, 0.5), percentile(v[2], runs, 0.5),
	       percentile(v[3], runs, 0.5), percentile(v[4], runs, 0.5), percentile(v[5], runs, 0.5));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int opt;

	while ((opt = getopt(argc, argv, "qc:")) != -1) {
		if (opt == 'q') {
			volume = 64u << 20;
			runs = 3;
		} else if (opt == 'c') {
			only = optarg;
		} else {
			fprintf(stderr, "usage: bench_link [-q] [-c CASE]\n");
			return 2;
		}
	}
	make_certs();
	atexit(remove_certs);
	printf("{\"bench\":\"link\",\"case\":\"aes-256-gcm\",\"cpu_s_per_gb\":%.3f}\n", gcm_cpu_s_per_gb());
	compare("bulk", 256u << 10, false);
	compare("small", 4u << 10, false);
	compare("ping", 16, true);
	return 0;
}
