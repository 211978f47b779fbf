// SPDX-License-Identifier: GPL-3.0-or-later
/* hmac.h - HMAC-SHA256; hmac.c is the only file of failover/ that includes OpenSSL. */
#ifndef FT_FAILOVER_HMAC_H
#define FT_FAILOVER_HMAC_H

#include "ft/base.h"

#define FT_HMAC_LEN 32

int ft_hmac(const uint8_t key[FT_HMAC_LEN], const void *data, size_t len, uint8_t out[FT_HMAC_LEN]) FT_MUST_CHECK;
/* Compares in constant time. */
bool ft_hmac_equal(const void *a, const void *b, size_t len);

#endif
