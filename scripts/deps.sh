#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# deps.sh SET... - install distribution packages. The one place where dependencies are listed.
#   build  compile and link        run   what a protected host needs
#   check  tests and demo          lint  static analysis     debian13  the trixie tree
#   xen    the Xen backend (optional: without it ft is built for QEMU only) and its lab
# Does nothing, and needs no network, when everything is already there. DEPS_PRINT=1 prints them instead,
# DEPS_PRINT=missing those that are not installed.
set -eu
build="gcc make pkg-config libc6-dev libev-dev libjansson-dev liblz4-dev libxxhash-dev libssl-dev
 libnetfilter-queue-dev libnftnl-dev libmnl-dev libnfnetlink-dev libnbd-dev nbdkit-plugin-dev"
run="qemu-system-x86 iproute2 iptables nftables openssl nbdkit"
check="$run qemu-utils redis-server redis-tools busybox-static cpio python3 procps kmod xz-utils util-linux ca-certificates e2fsprogs sqlite3
 fio binutils clang libclang-rt-dev libspice-server1"
lint="clang-tidy cppcheck clang-format"
debian13="debootstrap"
xen="libxen-dev pkg-config zstd binutils"

want=
for set in "$@"; do
	case $set in
	build) want="$want $build" ;;
	run) want="$want $run" ;;
	check) want="$want $check" ;;
	lint) want="$want $lint" ;;
	debian13) want="$want $debian13" ;;
	xen) want="$want $xen" ;;
	*) echo "deps.sh: no package set '$set' (build, run, check, lint, debian13, xen)" >&2; exit 2 ;;
	esac
done
[ $# -gt 0 ] || { echo "usage: deps.sh SET... (build, run, check, lint, debian13, xen)" >&2; exit 2; }
if [ "${DEPS_PRINT:-missing}" != missing ]; then
	echo $want
	exit 0
fi
missing=
for p in $want; do
	dpkg-query -W -f '${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || missing="$missing $p"
done
if [ "${DEPS_PRINT:-}" ]; then
	echo "$missing"
	exit 0
fi
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || { echo "deps.sh: no apt-get here: install what your distribution calls$missing" >&2; exit 1; }
if [ "$(id -u)" != 0 ]; then
	echo "deps.sh: missing packages:$missing - install them as root: apt-get install$missing" >&2
	exit 1
fi
echo "deps.sh: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# No service may start on this machine: the tests start what they need in namespaces of their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 755 $policy
	trap 'rm -f $policy' EXIT
fi
apt-get update -q >/dev/null
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing >/dev/null
