// SPDX-License-Identifier: GPL-3.0-or-later
/*
 * errno.h - included before everything by `make lint`: errno is some error where it is read. Otherwise the
 * analyzer takes each `return -errno` for a possible success whose results are not set.
 */
#include <errno.h>

static const int ft_lint_errno __attribute__((unused)) = EIO;

#undef errno
#define errno (*(int *)&ft_lint_errno)
