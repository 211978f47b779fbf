// SPDX-License-Identifier: GPL-3.0-or-later
/* tls.c - OpenSSL behind tls.h; the only file that includes it. */
#include "replicator/tls.h"

#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW (128u << 10)
#define RECORD_ROOM (FT_TLS_RECORD + 1024u)     /* one full TLS record, and a key update or an alert */

struct window {                                 /* ciphertext at data[head..tail) */
	size_t head, tail;
	uint8_t data[WINDOW];
};

struct ft_tls {
	struct ft_tls_files files;              /* borrowed strings */
	bool client;
	char peer[FT_NAME_MAX + 1];
	char who[128];
	SSL_CTX *ctx;
	SSL *ssl;
	bool shaken;
	bool confirmed;                         /* client: the server has accepted our certificate */
	char name[FT_NAME_MAX + 1];
	char offered[256];                      /* names in a certificate that we refuse */
	uint64_t key_updates;
	uint8_t first[2];                       /* of what the peer sent: is it TLS at all? */
	size_t nr_first;
	char why[768];
	struct window rx, tx;
};

static int fail(struct ft_tls *t, int rc, const char *fmt, ...) FT_PRINTF(3, 4);
static int fail(struct ft_tls *t, int rc, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(t->why, sizeof(t->why), fmt, ap);
	va_end(ap);
	return rc;
}

const char *ft_tls_why(const struct ft_tls *t)
{
	return t->why;
}

/* --- windows --- */

static size_t window_space(struct window *w)
{
	if (w->head == w->tail)
		w->head = w->tail = 0;
	if (w->head > WINDOW / 2) {
		memmove(w->data, w->data + w->head, w->tail - w->head);
		w->tail -= w->head;
		w->head = 0;
	}
	return WINDOW - w->tail;
}

size_t ft_tls_rx_space(struct ft_tls *t, uint8_t **at)
{
	size_t space = window_space(&t->rx);

	*at = t->rx.data + t->rx.tail;
	return space;
}

void ft_tls_rx_filled(struct ft_tls *t, size_t len)
{
	for (size_t i = 0; i < len && t->nr_first < sizeof(t->first); i++)
		t->first[t->nr_first++] = t->rx.data[t->rx.tail + i];
	t->rx.tail += len;
}

size_t ft_tls_tx_bytes(const struct ft_tls *t, const uint8_t **at)
{
	*at = t->tx.data + t->tx.head;
	return t->tx.tail - t->tx.head;
}

void ft_tls_tx_sent(struct ft_tls *t, size_t len)
{
	t->tx.head += len;
	window_space(&t->tx);
}

void ft_tls_tx_plain(struct ft_tls *t, const void *data, size_t len)
{
	assert(len <= window_space(&t->tx));
	memcpy(t->tx.data + t->tx.tail, data, len);
	t->tx.tail += len;
}

bool ft_tls_room(const struct ft_tls *t)
{
	return WINDOW - t->tx.tail >= RECORD_ROOM;
}

/* --- the windows as an OpenSSL BIO --- */

static int bio_write(BIO *bio, const char *data, size_t len, size_t *done)
{
	struct ft_tls *t = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	if (window_space(&t->tx) < len) {
		BIO_set_retry_write(bio);
		return 0;
	}
	memcpy(t->tx.data + t->tx.tail, data, len);
	t->tx.tail += len;
	*done = len;
	return 1;
}

static int bio_read(BIO *bio, char *data, size_t len, size_t *done)
{
	struct ft_tls *t = BIO_get_data(bio);
	size_t have = t->rx.tail - t->rx.head;

	BIO_clear_retry_flags(bio);
	if (!have) {
		BIO_set_retry_read(bio);
		return 0;
	}
	*done = len < have ? len : have;
	memcpy(data, t->rx.data + t->rx.head, *done);
	t->rx.head += *done;
	return 1;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio, (void)num, (void)ptr;
	return cmd == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method;                  /* one for the process, for good */

static void bio_method_make(void)
{
	bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "ft windows");
	if (!bio_method)
		return;
	BIO_meth_set_write_ex(bio_method, bio_write);
	BIO_meth_set_read_ex(bio_method, bio_read);
	BIO_meth_set_ctrl(bio_method, bio_ctrl);
}

static BIO *bio_new(struct ft_tls *t)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	BIO *bio;

	pthread_once(&once, bio_method_make);
	bio = bio_method ? BIO_new(bio_method) : NULL;
	if (bio) {
		BIO_set_data(bio, t);
		BIO_set_init(bio, 1);
	}
	return bio;
}

/* --- our own files --- */

static const char *ssl_reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());

	return text ? text : "unknown reason";
}

/* A passphrase prompt would hang a service: an encrypted key is an error. */
static int no_passphrase(char *buf, int size, int rwflag, void *ctx)
{
	(void)buf, (void)size, (void)rwflag;
	*(bool *)ctx = true;
	return -1;
}

/* Open with one line for each way it can go wrong; the FILE or NULL, *rc. */
static FILE *open_pem(struct ft_tls *t, const char *what, const char *path, int *rc)
{
	struct stat st;
	FILE *f;
	int fd;

	if (!path || !*path) {
		*rc = fail(t, -ENOENT, "no %s is configured - set it in the [tls] section of ft.conf", what);
		return NULL;
	}
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0) {
		*rc = fail(t, -errno, "%s %s: %s - %s", what, path, strerror(errno), errno == EACCES ? "run as root" :
			   "ft-cert makes one, or correct the [tls] section of ft.conf");
		return NULL;
	}
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		*rc = fail(t, -EINVAL, "%s %s is not a regular file - correct the [tls] section of ft.conf", what, path);
		close(fd);
		return NULL;
	}
	f = fdopen(fd, "r");
	if (!f) {
		*rc = fail(t, -ENOMEM, "%s %s: no memory", what, path);
		close(fd);
	}
	return f;
}

static int load_ca(struct ft_tls *t)
{
	X509_STORE *store = SSL_CTX_get_cert_store(t->ctx);
	X509 *ca;
	unsigned n = 0;
	int rc = 0;
	FILE *f = open_pem(t, "CA certificate", t->files.ca, &rc);

	if (!f)
		return rc;
	while ((ca = PEM_read_X509(f, NULL, NULL, NULL))) {
		n += X509_STORE_add_cert(store, ca) == 1;
		X509_free(ca);
	}
	ERR_clear_error();                      /* the end of the file is an error, too */
	fclose(f);
	if (!n)
		return fail(t, -EINVAL, "CA certificate %s holds no certificate in PEM form - copy ca.pem from the host "
			    "where 'ft-cert ca' was run", t->files.ca);
	return 0;
}

static int load_cert(struct ft_tls *t)
{
	int rc = 0;
	FILE *f = open_pem(t, "certificate", t->files.cert, &rc);

	if (!f)
		return rc;
	fclose(f);
	if (SSL_CTX_use_certificate_chain_file(t->ctx, t->files.cert) != 1)
		return fail(t, -EINVAL, "certificate %s is not usable (%s) - make one with 'ft-cert host NAME'",
			    t->files.cert, ssl_reason());
	return 0;
}

static int check_key_file(struct ft_tls *t, FILE *f)
{
	struct stat st;

	if (fstat(fileno(f), &st) < 0)
		return fail(t, -errno, "key %s: %s", t->files.key, strerror(errno));
	if (st.st_mode & 077)
		return fail(t, -EACCES, "key %s can be read by others (mode %04o) - chmod 600 %s, and renew the key if "
			    "strangers were about", t->files.key, (unsigned)st.st_mode & 07777, t->files.key);
	if (st.st_uid != geteuid() && st.st_uid != 0)
		return fail(t, -EACCES, "key %s belongs to another user (uid %u) - chown it to the user ft runs as",
			    t->files.key, (unsigned)st.st_uid);
	return 0;
}

static int load_key(struct ft_tls *t)
{
	EVP_PKEY *key = NULL;
	bool asked = false;
	int rc = 0;
	FILE *f = open_pem(t, "key", t->files.key, &rc);

	if (!f)
		return rc;
	rc = check_key_file(t, f);
	if (!rc) {
		key = PEM_read_PrivateKey(f, NULL, no_passphrase, &asked);
		if (!key)
			rc = fail(t, -EINVAL, asked ? "key %s is locked with a passphrase - a service cannot type one; make a "
				  "key with 'ft-cert host NAME'" : "key %s is not a private key in PEM form - make one with "
				  "'ft-cert host NAME'", t->files.key);
	}
	fclose(f);
	if (!rc && SSL_CTX_use_PrivateKey(t->ctx, key) != 1)
		rc = fail(t, -EINVAL, "key %s does not belong to certificate %s - take both from the same 'ft-cert host NAME'",
			  t->files.key, t->files.cert);
	EVP_PKEY_free(key);
	return rc;
}

/* Would a peer of the same CA accept us? It finds at start what would else be found at the first failure. */
static int check_own_cert(struct ft_tls *t)
{
	X509_STORE_CTX *v = X509_STORE_CTX_new();
	STACK_OF(X509) *chain = NULL;
	int err = X509_V_ERR_OUT_OF_MEM;

	SSL_CTX_get0_chain_certs(t->ctx, &chain);
	if (v && X509_STORE_CTX_init(v, SSL_CTX_get_cert_store(t->ctx), SSL_CTX_get0_certificate(t->ctx), chain) == 1) {
		X509_STORE_CTX_set_purpose(v, t->client ? X509_PURPOSE_SSL_CLIENT : X509_PURPOSE_SSL_SERVER);
		err = X509_verify_cert(v) == 1 ? X509_V_OK : X509_STORE_CTX_get_error(v);
	}
	X509_STORE_CTX_free(v);
	ERR_clear_error();
	switch (err) {
	case X509_V_OK:
		return 0;
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return fail(t, -EKEYREJECTED, "certificate %s has expired - 'ft-cert renew' makes a new one", t->files.cert);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return fail(t, -EKEYREJECTED, "certificate %s is not yet valid - check this host's clock", t->files.cert);
	default:
		return fail(t, -EKEYREJECTED, "certificate %s is not accepted by CA %s (%s) - make it with the 'ft-cert' of "
			    "that CA", t->files.cert, t->files.ca, X509_verify_cert_error_string(err));
	}
}

/* A backup shows what it has: the primary's refusal tells the operator there, where a closed connection would not. */
static int judge_own_cert(struct ft_tls *t)
{
	int rc = check_own_cert(t);

	if (!rc || t->client)
		return rc;
	ft_warn("%s", t->why);
	return 0;
}

/* --- setting up --- */

static void on_message(int sent, int version, int type, const void *data, size_t len, SSL *ssl, void *ctx)
{
	struct ft_tls *t = ctx;
	const uint8_t *msg = data;

	(void)version, (void)ssl;
	if (type != SSL3_RT_HANDSHAKE || !len)
		return;
	if (msg[0] == SSL3_MT_KEY_UPDATE)
		t->key_updates++;
	/* A server sends its ticket after it has accepted the client's certificate. */
	if (msg[0] == SSL3_MT_NEWSESSION_TICKET && !sent)
		t->confirmed = true;
}

static void cert_names(X509 *cert, char *buf, size_t size)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	size_t used = 0;

	snprintf(buf, size, "no name");
	for (int i = 0; i < sk_GENERAL_NAME_num(names) && used < size; i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);

		if (n->type == GEN_DNS)
			used += (size_t)snprintf(buf + used, size - used, "%s\"%.*s\"", used ? ", " : "",
						 ASN1_STRING_length(n->d.dNSName), ASN1_STRING_get0_data(n->d.dNSName));
	}
	GENERAL_NAMES_free(names);
}

/* OpenSSL forgets a certificate that it refuses: note its names while it is there. */
static int on_verify(int ok, X509_STORE_CTX *v)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(v, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct ft_tls *t = ssl ? SSL_get_app_data(ssl) : NULL;
	X509 *cert = X509_STORE_CTX_get0_cert(v);

	if (!ok && t && cert)
		cert_names(cert, t->offered, sizeof(t->offered));
	return ok;
}

static int make_context(struct ft_tls *t)
{
	t->ctx = SSL_CTX_new(t->client ? TLS_client_method() : TLS_server_method());
	if (!t->ctx || SSL_CTX_set_min_proto_version(t->ctx, TLS1_3_VERSION) != 1 ||
	    SSL_CTX_set_max_proto_version(t->ctx, TLS1_3_VERSION) != 1)
		return fail(t, -ENOMEM, "OpenSSL gives no TLS 1.3 context (%s)", ssl_reason());
	SSL_CTX_set_verify(t->ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, on_verify);
	SSL_CTX_set_session_cache_mode(t->ctx, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(t->ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_num_tickets(t->ctx, 1);     /* the confirmation; resumption is impossible across contexts */
	SSL_CTX_set_msg_callback(t->ctx, on_message);
	SSL_CTX_set_msg_callback_arg(t->ctx, t);
	return 0;
}

static int make_session(struct ft_tls *t)
{
	BIO *bio = NULL;

	t->ssl = SSL_new(t->ctx);
	if (t->ssl)
		bio = bio_new(t);
	if (!bio)
		return fail(t, -ENOMEM, "no memory for a TLS session");
	SSL_set_bio(t->ssl, bio, bio);
	SSL_set_app_data(t->ssl, t);
	if (!t->client) {
		SSL_set_accept_state(t->ssl);
		return 0;
	}
	SSL_set_connect_state(t->ssl);
	SSL_set_hostflags(t->ssl, X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
	if (SSL_set1_host(t->ssl, t->peer) != 1)
		return fail(t, -ENOMEM, "no memory for a TLS session");
	return 0;
}

int ft_tls_new(const struct ft_tls_config *cfg, struct ft_tls **out)
{
	struct ft_tls *t = malloc(sizeof(*t));

	if (!t)
		return -ENOMEM;
	memset(t, 0, offsetof(struct ft_tls, rx));      /* the windows' pages come when they are used */
	t->rx.head = t->rx.tail = t->tx.head = t->tx.tail = 0;
	t->files = *cfg->files;
	t->client = cfg->client;
	snprintf(t->peer, sizeof(t->peer), "%s", cfg->peer ? cfg->peer : "");
	snprintf(t->who, sizeof(t->who), "%s", cfg->who ? cfg->who : "peer");
	*out = t;
	return 0;
}

void ft_tls_free(struct ft_tls *t)
{
	if (!t)
		return;
	SSL_free(t->ssl);
	SSL_CTX_free(t->ctx);
	free(t);
}

int ft_tls_load(struct ft_tls *t)
{
	int (*const step[])(struct ft_tls *) = { make_context, load_ca, load_cert, load_key, judge_own_cert, make_session };
	int rc = 0;

	ERR_clear_error();
	for (size_t i = 0; !rc && i < FT_ARRAY_LEN(step); i++)
		rc = step[i](t);
	return rc;
}

int ft_tls_check(const struct ft_tls_files *f)
{
	static int (*const independent[])(struct ft_tls *) = { load_ca, load_cert, load_key };
	const struct ft_tls_config cfg = { .files = f, .client = true };
	struct ft_tls *t;
	int rc = ft_tls_new(&cfg, &t), first = 0;

	if (rc) {
		ft_err("no memory to check the TLS files");
		return rc;
	}
	rc = make_context(t);
	if (rc)
		ft_err("%s", t->why);
	/* Each file on its own, so that one run names every obstacle. */
	for (size_t i = 0; !rc && i < FT_ARRAY_LEN(independent); i++) {
		int one = independent[i](t);

		if (one)
			ft_err("%s", t->why);
		first = first ? first : one;
	}
	rc = rc ? rc : first;
	if (!rc) {
		rc = check_own_cert(t);
		if (rc)
			ft_err("%s", t->why);
	}
	ft_tls_free(t);
	return rc;
}

/* --- what goes wrong with the peer, in words --- */

/* We refused the peer's certificate. */
static int refused_by_us(struct ft_tls *t, long err)
{
	switch (err) {
	case X509_V_ERR_HOSTNAME_MISMATCH:
		return fail(t, -EKEYREJECTED, "%s: its certificate carries %s, expected \"%s\" - protect to that name, or make "
			    "one there with 'ft-cert host %s'", t->who, t->offered, t->peer, t->peer);
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return fail(t, -EKEYREJECTED, "%s: its certificate has expired - run 'ft-cert renew' there", t->who);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return fail(t, -EKEYREJECTED, "%s: its certificate is not yet valid - compare the clocks of both hosts", t->who);
	case X509_V_ERR_INVALID_PURPOSE:
		return fail(t, -EKEYREJECTED, "%s: its certificate is not meant for this use - make it with 'ft-cert host'", t->who);
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
	case X509_V_ERR_AKID_SKID_MISMATCH:
	case X509_V_ERR_INVALID_CA:
		return fail(t, -EKEYREJECTED, "%s: its certificate is of another CA than %s - both hosts need certificates of "
			    "the same 'ft-cert ca'", t->who, t->files.ca);
	default:
		return fail(t, -EKEYREJECTED, "%s: its certificate is refused: %s", t->who, X509_verify_cert_error_string(err));
	}
}

static int not_tls(struct ft_tls *t)
{
	if (t->client)
		return fail(t, -EPROTONOSUPPORT, "%s does not speak TLS: another service listens on that port - check address "
			    "and port in ft.conf", t->who);
	return fail(t, -EPROTONOSUPPORT, "%s does not speak TLS - only ft-protect may connect to this port", t->who);
}

static int other_version(struct ft_tls *t)
{
	return fail(t, -EPROTONOSUPPORT, "%s does not speak TLS 1.3, the only version allowed - update its OpenSSL or ft", t->who);
}

/* "sslv3 alert bad certificate", whatever the version: only the end says something. */
static const char *alert_name(void)
{
	const char *text = ssl_reason(), *alert = strstr(text, "alert ");

	return alert ? alert + strlen("alert ") : text;
}

/* OpenSSL reports an alert of the peer as one of these reasons. */
static int refused_by_peer(struct ft_tls *t, int reason)
{
	switch (reason) {
	case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
		return fail(t, -EKEYREJECTED, "%s refuses our certificate %s: it trusts another CA - both hosts need certificates "
			    "of the same 'ft-cert ca'", t->who, t->files.cert);
	case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
		return fail(t, -EKEYREJECTED, "%s refuses our certificate %s: it has expired - 'ft-cert renew', and compare "
			    "the clocks of both hosts", t->who, t->files.cert);
	case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE:
	case SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN:
	case SSL_R_SSLV3_ALERT_CERTIFICATE_REVOKED:
	case SSL_R_SSLV3_ALERT_UNSUPPORTED_CERTIFICATE:
	case SSL_R_TLSV1_ALERT_ACCESS_DENIED:
	case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
	case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
		return fail(t, -EKEYREJECTED, "%s refuses our certificate %s (%s) - its log says why; compare names, CA and "
			    "the clocks of both hosts", t->who, t->files.cert, alert_name());
	case SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
		return fail(t, -EKEYREJECTED, "%s wants a certificate and got none from %s", t->who, t->files.cert);
	case SSL_R_TLSV1_ALERT_PROTOCOL_VERSION:
		return other_version(t);
	default:
		return fail(t, -EPROTO, "%s: TLS fails: %s - both hosts need the same ft", t->who, alert_name());
	}
}

static bool looks_like_tls(const struct ft_tls *t)
{
	return t->nr_first < 2 || (t->first[0] >= SSL3_RT_CHANGE_CIPHER_SPEC && t->first[0] <= SSL3_RT_APPLICATION_DATA &&
				   t->first[1] == SSL3_VERSION_MAJOR);
}

static int protocol_error(struct ft_tls *t)
{
	int reason = ERR_GET_REASON(ERR_peek_error());
	long verify = SSL_get_verify_result(t->ssl);

	if (!looks_like_tls(t))
		return not_tls(t);
	switch (reason) {
	case SSL_R_CERTIFICATE_VERIFY_FAILED:
		return refused_by_us(t, verify);
	case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
		return fail(t, -EKEYREJECTED, "%s shows no certificate - it needs one of the CA %s", t->who, t->files.ca);
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_WRONG_SSL_VERSION:
	case SSL_R_UNKNOWN_SSL_VERSION:
	case SSL_R_VERSION_TOO_LOW:
	case SSL_R_BAD_PROTOCOL_VERSION_NUMBER:
		return other_version(t);
	default:
		return refused_by_peer(t, reason);
	}
}

/* What an SSL_ call that did not succeed means. */
static int ssl_failure(struct ft_tls *t, int ret)
{
	switch (SSL_get_error(t->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE:
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return fail(t, -ECONNRESET, "%s closed the connection", t->who);
	default:
		return protocol_error(t);
	}
}

int ft_tls_closed_early(struct ft_tls *t)
{
	if (!looks_like_tls(t))
		return not_tls(t);
	return fail(t, -ECONNRESET, "%s closed the connection during the TLS handshake - its log says why", t->who);
}

/* --- the handshake --- */

/* The name permissions are looked up by: the certificate's first DNS name. */
static int take_peer_name(struct ft_tls *t)
{
	X509 *cert = SSL_get0_peer_certificate(t->ssl);
	GENERAL_NAMES *names = cert ? X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL) : NULL;

	for (int i = 0; i < sk_GENERAL_NAME_num(names) && !t->name[0]; i++) {
		const GENERAL_NAME *n = sk_GENERAL_NAME_value(names, i);

		if (n->type != GEN_DNS || ASN1_STRING_length(n->d.dNSName) > FT_NAME_MAX)
			continue;
		memcpy(t->name, ASN1_STRING_get0_data(n->d.dNSName), (size_t)ASN1_STRING_length(n->d.dNSName));
		if (strlen(t->name) != (size_t)ASN1_STRING_length(n->d.dNSName) || !ft_name_ok(t->name))
			memset(t->name, 0, sizeof(t->name));
	}
	GENERAL_NAMES_free(names);
	if (!t->name[0])
		return fail(t, -EKEYREJECTED, "%s: its certificate carries no usable DNS name - make it with 'ft-cert host NAME'",
			    t->who);
	return 0;
}

int ft_tls_handshake(struct ft_tls *t)
{
	uint8_t byte;
	int ret;

	ERR_clear_error();
	if (!t->shaken) {
		ret = SSL_do_handshake(t->ssl);
		if (ret != 1)
			return ssl_failure(t, ret);
		t->shaken = true;
		ret = take_peer_name(t);
		if (ret)
			return ret;
	}
	if (!t->client || t->confirmed)
		return 0;
	/* A client is through before the server has seen its certificate: wait for the server's word. */
	ret = SSL_peek(t->ssl, &byte, 1);
	if (ret == 1 || t->confirmed)
		return 0;
	return ssl_failure(t, ret);
}

const char *ft_tls_peer_name(const struct ft_tls *t)
{
	return t->name;
}

int ft_tls_export(struct ft_tls *t, uint8_t key[32])
{
	static const char label[] = "EXPORTER-ft-heartbeat";

	ERR_clear_error();
	if (SSL_export_keying_material(t->ssl, key, 32, label, sizeof(label) - 1, NULL, 0, 0) != 1)
		return fail(t, -EPROTO, "%s: no key for heartbeats: %s", t->who, ssl_reason());
	return 0;
}

/* --- data --- */

int ft_tls_write(struct ft_tls *t, const void *data, size_t len)
{
	size_t done;
	int ret;

	assert(len && len <= FT_TLS_RECORD && ft_tls_room(t));
	ERR_clear_error();
	ret = SSL_write_ex(t->ssl, data, len, &done);
	if (ret != 1)
		return ssl_failure(t, ret);
	assert(done == len);
	return 0;
}

ssize_t ft_tls_read(struct ft_tls *t, void *data, size_t len)
{
	size_t done;
	int ret;

	ERR_clear_error();
	ret = SSL_read_ex(t->ssl, data, len, &done);
	return ret == 1 ? (ssize_t)done : ssl_failure(t, ret);
}

int ft_tls_rekey(struct ft_tls *t)
{
	int ret;

	ERR_clear_error();
	if (SSL_key_update(t->ssl, SSL_KEY_UPDATE_REQUESTED) != 1)
		return fail(t, -EPROTO, "%s: key update fails: %s", t->who, ssl_reason());
	ret = SSL_do_handshake(t->ssl);
	return ret == 1 ? 0 : ssl_failure(t, ret);
}

uint64_t ft_tls_key_updates(const struct ft_tls *t)
{
	return t->key_updates;
}

void ft_tls_goodbye(struct ft_tls *t)
{
	ERR_clear_error();
	if (t->ssl && t->shaken)
		SSL_shutdown(t->ssl);
	ERR_clear_error();
}
