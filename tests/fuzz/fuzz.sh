#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# fuzz.sh [FUZZER...] - run libFuzzer programs (all that are built) for FUZZ_SECONDS each from their kept corpus; TAP.
# What a run finds stays in build/fuzz: new inputs in corpus/NAME, a crashing one as crash-NAME-*.
# FUZZ_KEEP=1 merges the new inputs that reach new code into tests/fuzz/corpus.
set -u
seconds=${FUZZ_SECONDS:-10}
here=$(dirname "$0")
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}

[ $# -gt 0 ] || set -- "${BUILD:-build}"/fuzz/fuzz_*
if [ ! -x "$1" ]; then
	echo "ok 1 fuzz # SKIP no fuzzer is built: make fuzzers wants clang with its libFuzzer"
	echo "1..1"
	exit 0
fi

# fuzz PROGRAM LOG: as many lines of input as it likes, one line of result in LOG.tap
fuzz() {
	local name=${1##*/fuzz_} log=$2 out found kept
	out=$(dirname "$1")
	found=$out/corpus/$name kept=$here/corpus/$name
	mkdir -p "$found" "$kept"
	# -rss_limit_mb and -malloc_limit_mb: no input may cost more than the largest record.
	"$1" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=256 -print_final_stats=1 -verbosity=0 \
		-artifact_prefix="$out/crash-$name-" "$found" "$kept" >"$log" 2>&1 </dev/null
	local rc=$? runs
	runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
	if [ $rc -eq 0 ] && [ "${runs:-0}" -gt 0 ]; then
		echo "ok - fuzz_$name: $runs inputs in $seconds s"
	else
		echo "not ok - fuzz_$name (exit status $rc)"
		tail -60 "$log" | sed 's/^/# /'
	fi
	[ -z "${FUZZ_KEEP:-}" ] || "$1" -merge=1 "$kept" "$found" >>"$log" 2>&1
}

work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
n=0 bad=0
for prog in "$@"; do
	while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do
		wait -n
	done
	fuzz "$prog" "$work/${prog##*/}.log" >"$work/${prog##*/}.tap" &
done
wait
for prog in "$@"; do
	n=$((n + 1))
	# A result line comes after its diagnosis, as TAP readers expect it.
	grep '^#' "$work/${prog##*/}.tap"
	grep '^not ok' "$work/${prog##*/}.tap" >/dev/null && bad=$((bad + 1))
	sed -n "s/^\(not ok\|ok\) - /\1 $n /p" "$work/${prog##*/}.tap"
done
echo "1..$n"
[ $bad -eq 0 ]
