#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# lint.sh FLAG... -- FILE... - static analysis of FILEs with the compiler's FLAGs. Says nothing when all is well.
set -u
cd "$(dirname "$0")/.."
flags=() cppcheck_flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
	flags+=("$1")
	case $1 in -D* | -I*) cppcheck_flags+=("$1") ;; esac
	shift
done
shift
[ $# -gt 0 ] || { echo "usage: lint.sh FLAG... -- FILE..." >&2; exit 2; }
rc=0
# FT_MUST_CHECK away: cppcheck cannot read an attribute behind a function pointer.
cppcheck --std=c11 --enable=warning,portability,performance --inline-suppr --error-exitcode=1 --quiet -j "$(nproc)" \
	--library=tests/lint/cppcheck.cfg --suppressions-list=tests/lint/cppcheck.suppress \
	"${cppcheck_flags[@]}" -DFT_MUST_CHECK= "$@" || rc=1
# Counts of what was suppressed go to stderr.
printf '%s\0' "$@" | xargs -0 -P "$(nproc)" -I{} clang-tidy --quiet {} -- -include tests/lint/errno.h "${flags[@]}" 2>/dev/null || rc=1
exit $rc
