#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# run.sh [-m MODULE]... [-a MODULE]... [-x COMMAND]... [-f FILE]... PROGRAM[:FILTER]... - run test programs
# inside a distribution kernel.
#
# Boots the kernel of tests/kernel.sh under QEMU (TCG), from an initramfs with the programs and their shared
# libraries, the modules, COMMANDs found in PATH, and FILEs (or directories) at their own paths. Modules of -m
# are loaded at the start, those of -a when the kernel asks for them. FILTER picks a program's tests by a part of their names. What the programs say in TAP comes out as one TAP stream. Ends within VM_TIMEOUT (400) seconds.
# FT_* variables of the environment reach the programs; FT_TEST_SLOW says that no test may count on speed.
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
modules=() more_modules=() commands=() files=()
while getopts m:a:x:f: opt; do
	case $opt in
	m) modules+=("$OPTARG") ;;
	a) more_modules+=("$OPTARG") ;;
	x) commands+=("$OPTARG") ;;
	f) files+=("$OPTARG") ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n 's/^# \(run.sh .*\) - .*/usage: \1/p' "$0" >&2; exit 2; }

skip() {
	echo "1..0 # SKIP $*"
	exit 77
}

PATH=$PATH:/usr/sbin:/sbin
for tool in busybox cpio depmod qemu-system-x86_64; do
	command -v $tool >/dev/null || skip "$tool is missing; run scripts/deps.sh check"
done
kernel=$("$here/../kernel.sh") || skip "no kernel for the guest"
work=$(mktemp -d)
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null; rm -rf "$work"' EXIT
root=$work/root

# --- the initramfs ---

# File $1 at its own path, and the libraries it is linked with.
add_file() {
	[ -e "$root$1" ] || cp -rL --parents "$1" "$root"
}

add_libraries() {
	{ ldd "$1" 2>/dev/null || true; } | { grep -o '/[^ ]*' || true; } | while read -r lib; do add_file "$lib"; done
}

# Module $1 and all it depends on. What is built into the kernel has no file and is left out.
add_module() {
	local line file to
	line=$(grep -E "(^|/)${1//[-_]/[-_]}\.ko[^:/]*:" "$from/modules.dep" || true)
	for file in ${line/:/}; do
		to=$root$to_modules/$(basename "$file" | sed 's/\.ko.*/.ko/')
		case $file in
		*.xz) xz -dc "$from/$file" >"$to" ;;
		*.zst) zstd -dqc "$from/$file" >"$to" ;;
		*) cp "$from/$file" "$to" ;;
		esac
	done
}

add_modules() {
	from=$(echo "$kernel"/lib/modules/*)
	to_modules=/lib/modules/${from##*/}
	mkdir -p "$root$to_modules"
	for m in "${modules[@]}" "${more_modules[@]}"; do add_module "$m"; done
	cp "$from"/modules.builtin* "$from/modules.order" "$root$to_modules/"
	depmod -b "$root" "${from##*/}"
	printf '%s\n' "${modules[@]}" >"$root/modules"
}

make_root() {
	mkdir -p "$root"/{bin,sbin,dev,proc,programs,sys,tmp,run,etc,usr/bin,usr/sbin}
	cp -L "$(command -v busybox)" "$root/bin/busybox"
	ln -s ../bin/busybox "$root/sbin/modprobe"      # what the kernel calls
	install -m 755 "$here/init" "$root/init"
	add_modules
	for f in "${files[@]}"; do
		add_file "$f"
		find "$f" -type f -name '*.so*' | while read -r so; do add_libraries "$so"; done
	done
	for c in "${commands[@]}"; do
		c=$(command -v "$c") || skip "command ${c:-of the test} is missing"
		add_libraries "$c"
		cp -L "$c" "$root/usr/sbin/"
	done
	for arg in "$@"; do
		p=${arg%%:*}
		[ -x "$p" ] || skip "$p is not built"
		add_libraries "$p"
		cp -L "$p" "$root/programs/"
		echo "$(basename "$p") ${arg#"$p"}" | tr -d : >>"$root/programs.order"
	done
	env | { grep -E '^FT_[A-Z_]*=[A-Za-z0-9_./,-]*$' || true; } | sed 's/^/export /' >"$root/environment"
	echo "export FT_TEST_SLOW=1" >>"$root/environment"
	(cd "$root" && find . | cpio -o -H newc -R 0:0 --quiet) >"$work/initrd"
}

# --- what comes out of the guest's second serial port, as one TAP stream ---

# "@ begin NAME", the program's output, "@ end NAME STATUS"; at last "@ done".
merge_tap() {
	tr -d '\r' | awk '
	function verdict(good, text) { printf "%s %d %s\n", good ? "ok" : "not ok", ++n, text; fflush(); bad += !good }
	/^@ begin / { name = $3; tests = 0; plan = -1; failed = 0; next }
	/^@ end / {
		if (plan != tests || ($4 != 0 && !failed))
			verdict(0, name " ended with status " $4 " after " tests " tests, plan " plan)
		name = ""
		next
	}
	/^@ done/ { finished = 1; next }
	/^1\.\./ { plan = substr($1, 4) + 0; next }
	/^ok |^not ok / {
		good = $1 == "ok"
		sub(/^(not )?ok [0-9]+ /, "")
		tests++
		failed += !good
		verdict(good, name ": " $0)
		next
	}
	{ print ($0 ~ /^#/ ? "" : "# ") $0 }
	END {
		if (!finished)
			verdict(0, "the guest finished" (name ? ", not while " name " ran" : ""))
		printf "1..%d\n", n
		exit bad > 0
	}'
}

make_root "$@"
mkfifo "$work/tap"
# One thread for both vCPUs: with two, QEMU 7.2 now and then goes on to run what the other vCPU has just patched (a jump
# label: stale int3, for ever), and the kernel patches whenever a first netfilter hook comes or a last one goes.
# A kernel that spins all the same is a panic with a trace after 20 s, not a wait for VM_TIMEOUT.
timeout -k 5 "${VM_TIMEOUT:-400}" qemu-system-x86_64 -accel tcg,thread=single -cpu max -smp 2 -m "${VM_MEMORY:-768}" \
	-nodefaults -no-user-config -display none -no-reboot -kernel "$kernel/vmlinuz" -initrd "$work/initrd" \
	-append "console=ttyS0 panic=-1 loglevel=4 mitigations=off softlockup_panic=1" \
	-serial "file:$work/console" -serial "file:$work/tap" \
	</dev/null >"$work/qemu" 2>&1 &
qemu=$!
rc=0
merge_tap <"$work/tap" || rc=1
wait "$qemu" || rc=1
qemu=
if [ $rc -ne 0 ]; then
	tail -q -n 40 "$work/console" "$work/qemu" | tr -d '\r' | sed 's/^/# guest: /'
fi
exit $rc
