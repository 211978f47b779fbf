#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# debian13.sh [TARGET]... - build and test this tree on Debian 13: `make check`, or the targets given.
#
# Makes a trixie tree in build/debian13/root, once, from the package source that apt is configured with,
# copies the sources there, installs what they need, builds with its gcc, and runs the tests in namespaces
# of their own (mounts, processes, network). The running kernel stays. Needs root; bounded by DEBIAN13_TIMEOUT
# seconds (7200).
set -eu -o pipefail
cd "$(dirname "$0")/.."
suite=trixie
base=$(realpath -m "${BUILD:-build}")/debian13
root=$base/root
targets=${*:-check}

fail() {
	echo "debian13.sh: $*" >&2
	exit 1
}

# The URI from which apt gets packages labelled $1: whatever mirror, proxy or cache this machine uses.
source_of() {
	apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' |
		sed -n "s/^$1|//p" | sort -u | head -1
}

configure_apt() {
	local security
	security=$(source_of Debian-Security)
	{
		echo "deb $uri $suite main"
		[ -z "$security" ] || echo "deb $security $suite-security main"
	} >"$root/etc/apt/sources.list"
	# How this machine reaches the source: proxies, certificates, names.
	cp -L /etc/apt/apt.conf.d/*prox* "$root/etc/apt/apt.conf.d/" 2>/dev/null || true
	for f in /etc/resolv.conf /etc/hosts; do
		rm -f "$root$f"
		cp -L "$f" "$root$f"
	done
	cp -rL /usr/local/share/ca-certificates "$root/usr/local/share/" 2>/dev/null || true
}

make_root() {
	[ ! -e "$base/complete" ] || return 0
	command -v debootstrap >/dev/null || fail "debootstrap is missing; run scripts/deps.sh debian13"
	uri=$(source_of Debian)
	[ -n "$uri" ] || fail "apt is configured with no source labelled Debian"
	echo "debian13.sh: making a $suite tree from $uri" >&2
	rm -rf --one-file-system "$root"
	mkdir -p "$root"
	debootstrap --variant=minbase --include=ca-certificates "$suite" "$root" "$uri" >"$base/debootstrap.log" 2>&1 ||
		fail "debootstrap failed: $(tail -3 "$base/debootstrap.log")"
	configure_apt
	touch "$base/complete"
}

copy_tree() {
	mkdir -p "$root/src"
	# Only the kernel for guests stays: objects would be newer than sources that were changed meanwhile.
	find "$root/src" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
	find "$root/src/build" -mindepth 1 -maxdepth 1 ! -name kernel -exec rm -rf {} + 2>/dev/null || true
	tar --exclude=./build --exclude="./${BUILD:-build}" --exclude=./.git -cf - . | tar -xf - -C "$root/src"
}

# inside NAMESPACES COMMAND - run a shell command in the tree. Everything it starts and mounts ends with it.
inside() {
	timeout -k 30 "${DEBIAN13_TIMEOUT:-7200}" unshare --fork --kill-child --pid --mount --uts --ipc $1 /bin/sh -c '
		set -e
		mount --make-rprivate /
		mount --bind "$1" "$1"
		mount -t proc proc "$1/proc"
		mount -t sysfs sys "$1/sys"
		mount --rbind /dev "$1/dev"
		mount --make-rprivate "$1/dev"
		mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
		mount -t tmpfs -o mode=1777 tmp "$1/tmp"
		mount -t tmpfs run "$1/run"
		hostname debian13
		ip link set lo up 2>/dev/null || true
		cd "$1"
		pivot_root . mnt                # not only chroot: tests make mount namespaces of their own
		exec chroot . /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
			http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" \
			/bin/sh -c "umount -l /mnt && cd /src && $2"' sh "$root" "$2"
}

[ "$(id -u)" = 0 ] || fail "must run as root"
make_root
copy_tree
# With the network: everything that is fetched.
case $targets in
*-xen*) build="make -s -j$(nproc) all tests stage && tests/xen/mklab.sh build/xen" ;;
*) build="make -s -j$(nproc) all tests fuzzers stage guest && tests/kernel.sh >/dev/null" ;;
esac
inside "" "scripts/deps.sh build check xen && $build"
# Without it: everything that is tested.
inside --net "make -s $targets"
