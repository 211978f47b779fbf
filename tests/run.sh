#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# run.sh [PROGRAM... --] PROGRAM... - run test programs that speak TAP, add up, end with "N passed, N failed, N skipped".
# Those before -- run side by side, one a processor; those after it (real guests, which have clocks to meet) alone.
# A program that dies, times out or stops short of its plan counts as one more failure.
set -u
limit=${TEST_TIMEOUT:-600}
export MALLOC_PERTURB_=${MALLOC_PERTURB_:-165}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1} UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1}
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM HUP

# run_one PROGRAM LOG: its results on standard output, at once; the counts in LOG.sum
run_one() {
	local prog=$1 log=$2 start rc ok bad skip plan note=
	start=$(date +%s)
	timeout -k 20 "$limit" "$prog" >"$log" 2>&1 </dev/null &
	trap "kill $!; wait $!; exit 1" TERM
	wait $! 2>/dev/null
	rc=$?
	ok=$(grep -c '^ok ' "$log") bad=$(grep -c '^not ok ' "$log") skip=$(grep -ci '^ok .*# skip' "$log")
	plan=$(sed -n 's/^1\.\.\([0-9]*\).*/\1/p' "$log" | tail -1)
	if [ $rc -eq 77 ]; then
		skip=$((skip + 1)) ok=$((ok + 1))
	elif [ "${plan:-none}" != $((ok + bad)) ] || { [ $rc -ne 0 ] && [ "$bad" -eq 0 ]; }; then
		bad=$((bad + 1)) note=" (exit status $rc, plan ${plan:-missing})"
	fi
	echo "$((ok - skip)) $bad $skip" >"$log.sum"
	[ "$bad" -eq 0 ] || { grep -B4 '^not ok ' "$log" | grep -v '^ok ' || echo "it ended early$note"; } |
		sed "s,^,${prog##*/}: ," >"$log.bad"
	{
		printf '%-34s %3d ok %3d failed %3d skipped %4ds%s\n' "${prog##*/}" $((ok - skip)) "$bad" "$skip" \
			$(($(date +%s) - start)) "$note"
		[ $rc -ne 77 ] || grep -i '# skip' "$log" | head -1
		grep -i '^ok .*# skip' "$log" | sed 's/^/    /'
		if [ "$bad" -gt 0 ]; then
			grep -n -B12 '^not ok ' "$log" | sed 's/^/    /' | head -120
			[ -z "$note" ] || tail -40 "$log" | sed 's/^/    /'
		fi
	} >"$log.said"
	cat "$log.said"
}

together=() alone=("$@")
for i in $(seq $#); do
	[ "${!i}" != -- ] || { together=("${@:1:i-1}") alone=("${@:i+1}"); break; }
done
n=0
for prog in "${together[@]}"; do
	[ "$(jobs -pr | wc -l)" -lt "$(nproc)" ] || wait -n
	n=$((n + 1))
	run_one "$prog" "$work/$n" &
done
wait
for prog in "${alone[@]}"; do
	n=$((n + 1))
	run_one "$prog" "$work/$n" &
	wait $!         # not in the foreground: a signal must not wait for it
done
cat "$work"/*.bad 2>/dev/null        # once more, where nobody has to look for them
cat "$work"/*.sum 2>/dev/null | awk '{ p += $1; f += $2; s += $3 }
	END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || NR != '"$n"' }'
