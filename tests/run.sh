#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# run.sh PROGRAM... - run test programs that speak TAP, add up, end with "N passed, N failed, N skipped".
# A program that dies, times out or stops short of its plan counts as one more failure.
set -u
limit=${TEST_TIMEOUT:-600}
export MALLOC_PERTURB_=${MALLOC_PERTURB_:-165}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}
passed=0 failed=0 skipped=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for prog in "$@"; do
	start=$(date +%s)
	timeout -k 20 "$limit" "$prog" >"$log" 2>&1 </dev/null
	rc=$?
	ok=$(grep -c '^ok ' "$log") bad=$(grep -c '^not ok ' "$log") skip=$(grep -ci '^ok .*# skip' "$log")
	plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | tail -1)
	note=
	if [ $rc -eq 77 ]; then
		skip=$((skip + 1)) ok=$((ok + 1))
		grep -i '# skip' "$log" | head -1
	elif [ "${plan:-none}" != $((ok + bad)) ] || { [ $rc -ne 0 ] && [ "$bad" -eq 0 ]; }; then
		bad=$((bad + 1)) note=" (exit status $rc, plan ${plan:-missing})"
	fi
	passed=$((passed + ok - skip)) failed=$((failed + bad)) skipped=$((skipped + skip))
	printf '%-34s %3d ok %3d failed %3d skipped %4ds%s\n' "${prog##*/}" $((ok - skip)) "$bad" "$skip" $(($(date +%s) - start)) "$note"
	grep -i '^ok .*# skip' "$log" | sed 's/^/    /'
	if [ "$bad" -gt 0 ]; then
		grep -n -B12 '^not ok ' "$log" | sed 's/^/    /' | head -120
		[ -n "$note" ] && tail -40 "$log" | sed 's/^/    /'
	fi
done
[ -n "${RUN_SUM:-}" ] && echo "$passed $failed $skipped" >>"$RUN_SUM"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
