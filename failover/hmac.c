// SPDX-License-Identifier: GPL-3.0-or-later
/* hmac.c - see hmac.h. */
#include "failover/hmac.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>

int ft_hmac(const uint8_t key[FT_HMAC_LEN], const void *data, size_t len, uint8_t out[FT_HMAC_LEN])
{
	size_t n = 0;

	if (!EVP_Q_mac(NULL, "HMAC", NULL, "SHA256", NULL, key, FT_HMAC_LEN, data, len, out, FT_HMAC_LEN, &n) ||
	    n != FT_HMAC_LEN)
		return -EIO;
	return 0;
}

bool ft_hmac_equal(const void *a, const void *b, size_t len)
{
	return CRYPTO_memcmp(a, b, len) == 0;
}
