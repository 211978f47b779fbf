#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# mkguest.sh DIR - make DIR/vmlinuz and DIR/initrd.img, the guest of the demo and of the host tests, and
# DIR/initrd-disk.img for guests with disks, which also has e2fsprogs, sqlite3 and fio (and takes longer to unpack).
# From distribution packages only: Debian's cloud kernel, busybox-static, Redis ...; and tests/guest/.
# GUEST_KERNEL=amd64 GUEST_MODULES="..." make it for another kernel, with other drivers.
set -eu
src=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?usage: mkguest.sh DIR}
# A dependency comes before what needs it. What is built into the kernel has no file and is left out.
modules="${GUEST_MODULES:-virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover
 virtio_net virtio_blk} crc16 crc32c_generic mbcache jbd2 ext4 ipv6 evdev button"

need() {
	command -v "$1" >/dev/null || { echo "mkguest.sh: $1 is missing; run scripts/deps.sh check" >&2; exit 1; }
}

copy_library() {
	mkdir -p "$root$(dirname "$1")"
	cp -L "$1" "$root$1"
}

# The libraries of program $1, with the loader, under the paths where the loader looks.
copy_with_libraries() {
	cp -L "$1" "$root/bin/$2"
	for lib in $(ldd "$1" | grep -o '/[^ ]*'); do copy_library "$lib"; done
}

# fio is linked with 80 MB of libraries for storage that a guest does not have (Ceph, Gluster, RDMA ...), and starts only when
# every symbol is there. So they are there, under their versions, in one library with all those names, and do nothing.
copy_fio() {
	fio=$(command -v fio)
	real='linux-vdso|ld-linux|libc\.|libm\.|libz\.|libaio\.'
	cp -L "$fio" "$root/bin/fio"
	objdump -T "$fio" | awk '$0 ~ /[*]UND[*]/ && $0 !~ /GLIBC_|LIBAIO_|__gmon|_ITM_/ && $NF !~ /^(in|de)flate/ {
		print "void *" $NF "(void) { return 0; }"
		version = $(NF - 1)
		if (gsub(/[()]/, "", version)) names[version] = names[version] " " $NF ";"
	}
	END { for (v in names) print v " { global:" names[v] " };" >map }' map="$out/stub.map" >"$out/stub.c"
	${CC:-cc} -shared -fPIC -w -Wl,--version-script="$out/stub.map" -o "$root/lib/stub.so" "$out/stub.c"
	rm "$out/stub.map" "$out/stub.c"
	readelf -d "$fio" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | grep -Ev "$real" | while read -r lib; do
		ln -s stub.so "$root/lib/$lib"
	done
	for lib in $(ldd "$fio" | grep -E "$real" | grep -o '/[^ ]*'); do copy_library "$lib"; done
}

# Uncompressed: a guest under TCG spends seconds on unpacking.
copy_module() {
	file=$(find "$kernel/lib/modules" -name "$1.ko*" | head -1)
	case $file in
	'') return 0 ;;
	*.ko) cp "$file" "$root/modules/" ;;
	*.ko.xz) xz -dc "$file" >"$root/modules/$1.ko" ;;
	*.ko.zst) zstd -dqc "$file" >"$root/modules/$1.ko" ;;
	esac
	echo "$1" >>"$root/modules/order"
}

pack() {
	(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$out/initrd.tmp"
	mv "$out/initrd.tmp" "$out/$1"
}

PATH=$PATH:/usr/sbin:/sbin
for tool in busybox redis-server cpio cc mke2fs e2fsck sqlite3 fio objdump; do need $tool; done
kernel=$("$src/kernel.sh" "${GUEST_KERNEL:-cloud-amd64}")

mkdir -p "$out"
root=$(mktemp -d "$out/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
mkdir -p "$root/bin" "$root/lib64" "$root/modules" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
cp -L "$(command -v busybox)" "$root/bin/busybox"
cp "$src/guest/init" "$root/init"
chmod 755 "$root/init"
copy_with_libraries "$(command -v redis-server)" redis-server
# What acpid runs when somebody presses the power button.
mkdir -p "$root/etc/acpi/PWRF"
cp "$src/guest/power-button" "$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/etc/acpi/PWRF/00000080"
for m in $modules; do copy_module "$m"; done
${CC:-cc} -std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -static -pthread -o "$root/bin/agent" "$src/guest/agent.c"
strip "$root/bin/agent"
cp "$kernel/vmlinuz" "$out/vmlinuz"
pack initrd.img
for program in mke2fs e2fsck sqlite3; do copy_with_libraries "$(command -v $program)" $program; done
cp /etc/mke2fs.conf "$root/etc/"
copy_fio
pack initrd-disk.img
