// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * Certificates and TLS versions: each mistake ends the connection, with its own line and remedy. The peers
 * that no ft would be (expired, without a certificate, TLS 1.2) are plain OpenSSL.
 */
#include "tests/link_pair.h"

#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>

static void check_line(const struct end *e, int rc, const char *part, const char *remedy)
{
	CHECK_EQ(e->rc, rc);
	if (!strstr(e->why, part) || !strstr(e->why, remedy))
		ft_test_fail(__FILE__, __LINE__, "\"%s\" does not say \"%s\" and \"%s\"", e->why, part, remedy);
	CHECK(!strchr(e->why, '\n'));
	CHECK(!e->up && !e->records);
}

/* --- two real ends --- */

TEST(another_ca_is_refused_and_both_ends_say_so)
{
	struct pair *p;

	make_ca("ca");
	make_ca("other");
	p = pair_new();
	use_files(p, false, "other/ca.pem", "other/beta.pem", "other/beta.key");
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down && p->backup.down);
	check_line(&p->primary, -EKEYREJECTED, "another CA than", "same 'ft-cert ca'");
	check_line(&p->backup, -EKEYREJECTED, "refuses our certificate", "it trusts another CA");
	pair_free(p);
}

TEST(a_client_of_another_ca_is_refused_before_anything_comes_up)
{
	struct pair *p;

	make_ca("ca");
	make_ca("other");
	p = pair_new();
	/* The primary trusts both CAs, the backup only its own. */
	CHECK_EQ(shell("cd %s && cat ca/ca.pem other/ca.pem >both.pem", ft_test_dir()), 0);
	use_files(p, true, "both.pem", "other/alpha.pem", "other/alpha.key");
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down && p->backup.down);
	check_line(&p->backup, -EKEYREJECTED, "another CA than", "same 'ft-cert ca'");
	check_line(&p->primary, -EKEYREJECTED, "refuses our certificate", "it trusts another CA");
	pair_free(p);
}

TEST(another_name_is_refused)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	use_files(p, false, "ca/ca.pem", "ca/alpha.pem", "ca/alpha.key");
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down);
	check_line(&p->primary, -EKEYREJECTED, "its certificate carries \"alpha\", expected \"beta\"", "'ft-cert host beta'");
	pair_free(p);
}

TEST(certificates_are_read_anew_for_each_connection)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	use_files(p, false, "ca/ca.pem", "beta.pem", "beta.key");
	CHECK_EQ(shell("cd %s && cp ca/beta.pem ca/beta.key .", ft_test_dir()), 0);
	pair_up(p);
	CHECK_EQ(shell("cd %s && cp ca/alpha.pem beta.pem && cp ca/alpha.key beta.key", ft_test_dir()), 0);
	CHECK_OK(send_counted(p->primary.link, FT_LANE_BULK, 0, 1000));
	RUN_UNTIL(p, p->backup.records == 1);           /* the connection there is does not care */
	end_free(&p->primary);
	end_free(&p->backup);
	p->primary = p->backup = (struct end){ 0 };
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down);
	check_line(&p->primary, -EKEYREJECTED, "carries \"alpha\"", "expected \"beta\"");
	pair_free(p);
}

/* --- our own files --- */

static const struct {
	const char *name, *damage;      /* a shell command in the directory with ca.pem, alpha.pem, alpha.key */
	int rc;
	const char *part, *remedy;
} own[] = {
	{ "no CA", "rm ca.pem", -ENOENT, "CA certificate", "ft-cert" },
	{ "no certificate", "rm alpha.pem", -ENOENT, "certificate", "ft-cert" },
	{ "no key", "rm alpha.key", -ENOENT, "key", "ft-cert" },
	{ "CA is no PEM", "echo hello >ca.pem", -EINVAL, "holds no certificate", "ft-cert ca" },
	{ "certificate is no PEM", "echo hello >alpha.pem", -EINVAL, "is not usable", "ft-cert host" },
	{ "key is no PEM", "echo hello >alpha.key", -EINVAL, "is not a private key", "ft-cert host" },
	{ "key for all", "chmod 644 alpha.key", -EACCES, "can be read by others (mode 0644)", "chmod 600" },
	{ "key for a group", "chmod 640 alpha.key", -EACCES, "can be read by others (mode 0640)", "chmod 600" },
	{ "another key", "cp beta.key alpha.key", -EINVAL, "does not belong to certificate", "same 'ft-cert host NAME'" },
	{ "locked key", "openssl pkey -aes128 -passout pass:x -in alpha.key -out k && mv k alpha.key", -EINVAL,
	  "locked with a passphrase", "ft-cert host" },
	{ "another CA", "cp ../other/ca.pem .", -EKEYREJECTED, "is not accepted by CA", "ft-cert" },
	{ "key is a directory", "rm alpha.key && mkdir alpha.key", -EINVAL, "not a regular file", "ft.conf" },
};

TEST(each_mistake_in_our_own_files_has_its_line)
{
	struct pair *p;

	make_ca("ca");
	make_ca("other");
	for (size_t i = 0; i < FT_ARRAY_LEN(own); i++) {
		printf("# %s\n", own[i].name);
		CHECK_EQ(shell("cd %s && rm -rf try && cp -a ca try && cd try && %s", ft_test_dir(), own[i].damage), 0);
		p = pair_new();
		use_files(p, true, "try/ca.pem", "try/alpha.pem", "try/alpha.key");
		CHECK_EQ(ft_tls_check(&p->cfg[0].tls), own[i].rc);
		CHECK(ft_test_logged(own[i].part) && ft_test_logged(own[i].remedy));
		pair_connect(p);
		RUN_UNTIL(p, p->primary.down);
		check_line(&p->primary, own[i].rc, own[i].part, own[i].remedy);
		pair_free(p);
	}
}

TEST(one_check_names_every_file_that_is_wrong)
{
	struct ft_tls_files f = { "/nonexistent/ca.pem", "/nonexistent/cert.pem", NULL };

	CHECK_EQ(ft_tls_check(&f), -ENOENT);
	CHECK(ft_test_logged("CA certificate /nonexistent/ca.pem"));
	CHECK(ft_test_logged("\ncertificate /nonexistent/cert.pem"));
	CHECK(ft_test_logged("no key is configured"));
}

TEST(good_files_pass_in_silence)
{
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	CHECK_OK(ft_tls_check(&p->cfg[0].tls));
	CHECK(!ft_test_logged("certificate"));
	pair_free(p);
}

/* --- certificates that are out of date: signed again with other dates --- */

static void *read_pem(const char *path, bool key)
{
	char full[PATH_MAX];
	void *got;
	FILE *f;

	snprintf(full, sizeof(full), "%s/%s", ft_test_dir(), path);
	f = fopen(full, "r");
	CHECK(f);
	got = key ? (void *)PEM_read_PrivateKey(f, NULL, NULL, NULL) : (void *)PEM_read_X509(f, NULL, NULL, NULL);
	CHECK(got);
	fclose(f);
	return got;
}

static void shift_dates(const char *cert, long from_s, long until_s)
{
	EVP_PKEY *ca = read_pem("ca/ca.key", true);
	X509 *x = read_pem(cert, false);
	char full[PATH_MAX];
	FILE *f;

	X509_gmtime_adj(X509_getm_notBefore(x), from_s);
	X509_gmtime_adj(X509_getm_notAfter(x), until_s);
	CHECK(X509_sign(x, ca, EVP_sha256()) > 0);
	snprintf(full, sizeof(full), "%s/%s", ft_test_dir(), cert);
	f = fopen(full, "w");
	CHECK(f && PEM_write_X509(f, x) == 1);
	fclose(f);
	X509_free(x);
	EVP_PKEY_free(ca);
}

TEST(our_own_certificate_out_of_date_is_found_before_connecting)
{
	struct pair *p;

	make_ca("ca");
	shift_dates("ca/alpha.pem", -7200, -3600);
	shift_dates("ca/beta.pem", 3600, 7200);
	p = pair_new();
	CHECK_EQ(ft_tls_check(&p->cfg[0].tls), -EKEYREJECTED);
	CHECK(ft_test_logged("alpha.pem has expired - 'ft-cert renew'"));
	CHECK_EQ(ft_tls_check(&p->cfg[1].tls), -EKEYREJECTED);
	CHECK(ft_test_logged("beta.pem is not yet valid - check this host's clock"));
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down);
	check_line(&p->primary, -EKEYREJECTED, "has expired", "ft-cert renew");
	pair_free(p);
}

TEST(a_backup_out_of_date_is_named_on_the_primary)
{
	struct pair *p;

	make_ca("ca");
	shift_dates("ca/beta.pem", -7200, -3600);
	p = pair_new();
	pair_connect(p);
	RUN_UNTIL(p, p->primary.down);
	check_line(&p->primary, -EKEYREJECTED, "its certificate has expired", "'ft-cert renew' there");
	CHECK(ft_test_logged("beta.pem has expired"));
	pair_free(p);
}

/* --- plain OpenSSL on the other end --- */

struct raw {
	const char *cert, *key;         /* NULL: none */
	int max_version;
	int fd;
	bool server;
};

static void *raw_run(void *arg)
{
	struct raw *r = arg;
	char cert[PATH_MAX], key[PATH_MAX], buf[256];
	SSL_CTX *ctx = SSL_CTX_new(r->server ? TLS_server_method() : TLS_client_method());
	SSL *ssl;

	CHECK(ctx);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_NONE, NULL);
	if (r->max_version)
		SSL_CTX_set_max_proto_version(ctx, r->max_version);
	if (r->cert) {
		snprintf(cert, sizeof(cert), "%s/%s", ft_test_dir(), r->cert);
		snprintf(key, sizeof(key), "%s/%s", ft_test_dir(), r->key);
		CHECK_EQ(SSL_CTX_use_certificate_file(ctx, cert, SSL_FILETYPE_PEM), 1);
		CHECK_EQ(SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM), 1);
	}
	ssl = SSL_new(ctx);
	SSL_set_fd(ssl, r->fd);
	if ((r->server ? SSL_accept(ssl) : SSL_connect(ssl)) == 1)
		while (SSL_read(ssl, buf, sizeof(buf)) > 0)
			;
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	close(r->fd);
	return NULL;
}

/* A plain OpenSSL client to an accepting link, until that is down. */
static void from_raw_client(struct pair *p, struct raw *r)
{
	pthread_t thread;
	int sv[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	r->fd = sv[1];
	CHECK_EQ(pthread_create(&thread, NULL, raw_run, r), 0);
	CHECK_OK(ft_link_accept(p->loop, &p->cfg[1], sv[0], &p->backup.link));
	RUN_UNTIL(p, p->backup.down);
	end_free(&p->backup);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

/* A link that connects to a plain OpenSSL server behind the preamble, until it is down. */
static void to_raw_server(struct pair *p, struct raw *r)
{
	struct ft_preamble pre = { .have = 0 };
	char guest[FT_NAME_MAX + 1];
	struct pollfd pfd = { .events = POLLIN };
	pthread_t thread;

	ev_io_stop(p->loop, &p->listener);
	pair_connect(p);
	pfd.fd = r->fd = accept4(p->listener.fd, NULL, NULL, SOCK_CLOEXEC);
	CHECK(r->fd >= 0);
	while (ft_preamble_read(&pre, r->fd, guest))
		CHECK(poll(&pfd, 1, 10000) == 1);
	r->server = true;
	CHECK_EQ(pthread_create(&thread, NULL, raw_run, r), 0);
	RUN_UNTIL(p, p->primary.down);
	end_free(&p->primary);
	CHECK_EQ(pthread_join(thread, NULL), 0);
}

TEST(a_client_without_a_certificate_is_refused)
{
	struct raw r = { 0 };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	from_raw_client(p, &r);
	check_line(&p->backup, -EKEYREJECTED, "shows no certificate", "it needs one of the CA");
	pair_free(p);
}

TEST(a_client_out_of_date_is_refused)
{
	struct raw r = { .cert = "ca/alpha.pem", .key = "ca/alpha.key" };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	shift_dates("ca/alpha.pem", -7200, -3600);
	from_raw_client(p, &r);
	check_line(&p->backup, -EKEYREJECTED, "its certificate has expired", "'ft-cert renew' there");
	p->backup = (struct end){ 0 };
	shift_dates("ca/alpha.pem", 3600, 7200);
	from_raw_client(p, &r);
	check_line(&p->backup, -EKEYREJECTED, "not yet valid", "compare the clocks");
	pair_free(p);
}

TEST(a_server_out_of_date_is_refused)
{
	struct raw r = { .cert = "ca/beta.pem", .key = "ca/beta.key" };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	shift_dates("ca/beta.pem", -7200, -3600);
	to_raw_server(p, &r);
	check_line(&p->primary, -EKEYREJECTED, "its certificate has expired", "'ft-cert renew' there");
	p->primary = (struct end){ 0 };
	shift_dates("ca/beta.pem", 3600, 7200);
	to_raw_server(p, &r);
	check_line(&p->primary, -EKEYREJECTED, "not yet valid", "compare the clocks");
	pair_free(p);
}

TEST(a_server_with_a_certificate_of_nobody_is_refused)
{
	struct raw r = { .cert = "self.pem", .key = "self.key" };
	struct pair *p;

	make_ca("ca");
	CHECK_EQ(shell("cd %s && openssl req -new -x509 -newkey rsa:2048 -noenc -keyout self.key -out self.pem -days 3 "
		       "-subj /CN=beta -addext subjectAltName=DNS:beta >log 2>&1", ft_test_dir()), 0);
	p = pair_new();
	to_raw_server(p, &r);
	check_line(&p->primary, -EKEYREJECTED, "another CA than", "same 'ft-cert ca'");
	pair_free(p);
}

/* Of our CA, but with names that ft does not take: none, and one that could be mistaken in a permission. */
TEST(a_client_whose_certificate_names_no_host_is_refused)
{
	static const char *const names[] = { "IP:192.0.2.1", "DNS:*.example", "DNS:alpha/beta" };
	struct raw r = { .cert = "odd.pem", .key = "ca/alpha.key" };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	for (size_t i = 0; i < FT_ARRAY_LEN(names); i++) {
		CHECK_EQ(shell("cd %s && openssl req -new -x509 -key ca/alpha.key -CA ca/ca.pem -CAkey ca/ca.key -out odd.pem "
			       "-days 3 -subj /CN=alpha -addext 'subjectAltName=%s' -addext basicConstraints=CA:FALSE >log 2>&1",
			       ft_test_dir(), names[i]), 0);
		p->backup = (struct end){ 0 };
		from_raw_client(p, &r);
		check_line(&p->backup, -EKEYREJECTED, "no usable DNS name", "'ft-cert host NAME'");
	}
	pair_free(p);
}

TEST(another_tls_version_is_refused_on_either_side)
{
	struct raw r = { .cert = "ca/beta.pem", .key = "ca/beta.key", .max_version = TLS1_2_VERSION };
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	to_raw_server(p, &r);
	check_line(&p->primary, -EPROTONOSUPPORT, "does not speak TLS 1.3", "update");
	r.server = false;
	from_raw_client(p, &r);
	check_line(&p->backup, -EPROTONOSUPPORT, "does not speak TLS 1.3", "update");
	pair_free(p);
}

static void *ssh_banner(void *arg)
{
	struct raw *r = arg;
	static const char banner[] = "SSH-2.0-OpenSSH_9.2p1\r\n";
	char buf[4096];

	CHECK_EQ(write(r->fd, banner, sizeof(banner) - 1), (ssize_t)sizeof(banner) - 1);
	while (read(r->fd, buf, sizeof(buf)) > 0)
		;
	close(r->fd);
	return NULL;
}

TEST(a_server_of_another_service_is_told_from_a_broken_one)
{
	struct raw r = { 0 };
	pthread_t thread;
	struct pair *p;

	make_ca("ca");
	p = pair_new();
	ev_io_stop(p->loop, &p->listener);
	pair_connect(p);
	r.fd = accept4(p->listener.fd, NULL, NULL, SOCK_CLOEXEC);
	CHECK_EQ(pthread_create(&thread, NULL, ssh_banner, &r), 0);
	RUN_UNTIL(p, p->primary.down);
	check_line(&p->primary, -EPROTONOSUPPORT, "does not speak TLS", "check address and port in ft.conf");
	end_free(&p->primary);
	pthread_join(thread, NULL);
	pair_free(p);
}

/* --- bytes that are no records, from a peer with a good certificate --- */

struct liar {
	struct raw raw;
	const uint8_t *bytes;
	size_t len;
};

static void *liar_run(void *arg)
{
	struct liar *li = arg;
	char cert[PATH_MAX], key[PATH_MAX], buf[256];
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	SSL *ssl;

	snprintf(cert, sizeof(cert), "%s/ca/alpha.pem", ft_test_dir());
	snprintf(key, sizeof(key), "%s/ca/alpha.key", ft_test_dir());
	CHECK_EQ(SSL_CTX_use_certificate_file(ctx, cert, SSL_FILETYPE_PEM), 1);
	CHECK_EQ(SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM), 1);
	ssl = SSL_new(ctx);
	SSL_set_fd(ssl, li->raw.fd);
	CHECK_EQ(SSL_connect(ssl), 1);
	CHECK(SSL_write(ssl, li->bytes, (int)li->len) > 0);
	while (SSL_read(ssl, buf, sizeof(buf)) > 0)
		;
	SSL_free(ssl);
	SSL_CTX_free(ctx);
	close(li->raw.fd);
	return NULL;
}

TEST(a_peer_that_sends_nonsense_is_dropped_before_memory_is_spent_on_it)
{
	static const struct { uint32_t type, len; const char *part; } bad[] = {
		{ 4711, 8, "type 4711, unknown record, 8 bytes" },
		{ FT_REC_STATE, UINT32_MAX, "STATE, 4294967295 bytes" },
		{ FT_REC_ACK, 16, "ACK, 16 bytes" },            /* only a backup acknowledges */
		{ FT_REC_EPOCH_BEGIN, 7, "EPOCH_BEGIN, 7 bytes" },
	};
	struct pair *p;

	make_ca("ca");
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++) {
		uint8_t header[8];
		struct liar li = { .bytes = header, .len = sizeof(header) };
		pthread_t thread;
		int sv[2];

		p = pair_new();
		ft_put32(header, bad[i].type);
		ft_put32(header + 4, bad[i].len);
		CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
		li.raw.fd = sv[1];
		CHECK_EQ(pthread_create(&thread, NULL, liar_run, &li), 0);
		CHECK_OK(ft_link_accept(p->loop, &p->cfg[1], sv[0], &p->backup.link));
		RUN_UNTIL(p, p->backup.down);
		CHECK_EQ(p->backup.rc, -EPROTO);
		CHECK(strstr(p->backup.why, bad[i].part) && strstr(p->backup.why, "same ft"));
		CHECK_EQ(p->backup.records, 0);
		end_free(&p->backup);
		CHECK_EQ(pthread_join(thread, NULL), 0);
		pair_free(p);
	}
}

/* --- ft-cert --- */

TEST(ft_cert_never_overwrites_unless_forced)
{
	const char *d = ft_test_dir();

	make_ca("ca");
	CHECK_EQ(shell("cd %s/ca && sha256sum *.pem *.key >../sums", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh ca %s/ca 2>%s/err", d, d), 1);
	CHECK_EQ(shell("grep -q 'ca.key exists - use --force' %s/err", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh host alpha %s/ca 2>/dev/null", d), 1);
	CHECK_EQ(shell("cd %s/ca && sha256sum --quiet -c ../sums", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh host alpha %s/ca --force >/dev/null", d), 0);
	CHECK_EQ(shell("cd %s/ca && sha256sum --status -c ../sums 2>/dev/null", d), 1);
	CHECK_EQ(shell("ls -a %s/ca | grep -q ft-cert", d), 1);         /* no leavings */
}

TEST(ft_cert_renews_a_certificate_and_keeps_its_key)
{
	const char *d = ft_test_dir();
	struct pair *p;

	make_ca("ca");
	CHECK_EQ(shell("cd %s/ca && sha256sum *.key >../sums", d), 0);
	shift_dates("ca/beta.pem", -7200, -3600);
	CHECK_EQ(shell("sh replicator/ft-cert.sh show %s/ca >/dev/null 2>&1", d), 1);
	CHECK_EQ(shell("sh replicator/ft-cert.sh renew beta %s/ca --days 10 >/dev/null", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh show %s/ca | grep -q 'expires within 30 days'", d), 0);
	CHECK_EQ(shell("cd %s/ca && sha256sum --quiet -c ../sums", d), 0);
	p = pair_new();
	pair_up(p);
	pair_free(p);
}

TEST(ft_cert_makes_keys_for_the_owner_alone_and_takes_only_names_of_hosts)
{
	static const char *const bad[] = { "''", "../x", "-x", ".x", "a/b", "'a b'", "ca", "a*",
					   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" };
	const char *d = ft_test_dir();
	char path[PATH_MAX];
	struct stat st;

	make_ca("ca");
	snprintf(path, sizeof(path), "%s/ca/alpha.key", d);
	CHECK_EQ(stat(path, &st), 0);
	CHECK_EQ(st.st_mode & 07777, 0600);
	snprintf(path, sizeof(path), "%s/ca/ca.key", d);
	CHECK_EQ(stat(path, &st), 0);
	CHECK_EQ(st.st_mode & 07777, 0600);
	for (size_t i = 0; i < FT_ARRAY_LEN(bad); i++)
		CHECK(shell("sh replicator/ft-cert.sh host %s %s/ca >/dev/null 2>&1", bad[i], d));
	CHECK_EQ(shell("test $(ls %s/ca | wc -l) = 6", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh host alpha %s/nowhere 2>&1 | grep -q 'there is no CA in'", d), 0);
	CHECK_EQ(shell("sh replicator/ft-cert.sh frobnicate 2>/dev/null"), 2);
}
