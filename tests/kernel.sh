#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# kernel.sh [FLAVOUR] - a distribution kernel for guests of the tests, fetched once and unpacked, not installed.
#
# Prints a directory that holds `vmlinuz`, `config` and `lib/modules/<release>/` (with modules.dep).
# FLAVOUR: cloud-amd64 (default) or amd64. The suite is whatever apt is configured for. With the kernel
# already there, neither network nor root is needed. Progress goes to stderr. Status 77: cannot be had here.
set -eu
flavour=${1:-cloud-amd64}
cd "$(dirname "$0")/.."
dir=$(realpath -m "${BUILD:-build}")/kernel/$flavour
case $flavour in
cloud-amd64 | amd64) ;;
*) echo "kernel.sh: no kernel flavour '$flavour' (cloud-amd64, amd64)" >&2; exit 2 ;;
esac
mkdir -p "${dir%/*}"
exec 9>"$dir.lock"
flock 9
if [ -e "$dir/complete" ]; then
	echo "$dir"
	exit 0
fi

cannot() {
	echo "kernel.sh: $*" >&2
	exit 77
}

# The package that really holds the kernel: linux-image-FLAVOUR only depends on it.
real_package() {
	apt-cache depends "linux-image-$flavour" 2>/dev/null |
		sed -n "s/^ *Depends: \(linux-image-[0-9].*$flavour\)\$/\1/p" | head -1
}

package=$(real_package)
if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
	apt-get update -q >&2 || cannot "apt-get update failed"
	package=$(real_package)
fi
[ -n "$package" ] || cannot "apt knows no linux-image-$flavour; run apt-get update as root"

new=$dir.new
rm -rf "$new" "$dir"
mkdir -p "$new/deb"
echo "kernel.sh: fetching $package" >&2
# apt's own unprivileged user cannot write here.
(cd "$new/deb" && apt-get -q -o APT::Sandbox::User=root download "$package" >&2) || {
	[ "$(id -u)" = 0 ] && apt-get update -q >&2 &&       # the lists were older than the archive
		(cd "$new/deb" && apt-get -q -o APT::Sandbox::User=root download "$package" >&2)
} || cannot "cannot download $package"
dpkg-deb -x "$new"/deb/*.deb "$new/root"
# A merged-/usr release ships its modules below usr.
[ -d "$new/root/lib/modules" ] || mv "$new/root/usr/lib" "$new/root/lib"
mkdir "$new/lib"
mv "$new/root/lib/modules" "$new/lib/"
mv "$new"/root/boot/vmlinuz-* "$new/vmlinuz"
mv "$new"/root/boot/config-* "$new/config"
release=$(ls "$new/lib/modules")
PATH=$PATH:/sbin:/usr/sbin depmod -b "$new" "$release"
rm -rf "$new/deb" "$new/root"
echo "$package" >"$new/complete"
mv "$new" "$dir"
echo "$dir"
