#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# mklab.sh DIR - what the Xen lab boots, in DIR, from distribution packages; nothing is installed on this machine.
#
# DIR/xen        the hypervisor, unpacked           DIR/dom0.cpio   dom0's initramfs: xl, xenstored, the programs here
# DIR/vmlinux    the kernel of dom0 and guests      DIR/guest.cpio  the guest of the host tests, with Xen's front ends
# DIR/guest-disk.cpio  the same for guests with disks
# DIR/model.tar  for /: what HVM guests need: QEMU as their device model, firmware, and kernel and initramfs as firmware
#                loads them, byte by byte, so that both are compressed
# DIR/version    what it was made from
# Ends with status 77 when packages cannot be had here.
set -eu -o pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:?usage: mklab.sh DIR}")
# The release's own: 4.17 in Debian 12, 4.20 in Debian 13.
newest() {
	apt-cache search --names-only "$1" 2>/dev/null | sed 's/ .*//' | sort -V | tail -1
}
version=$(newest '^xen-hypervisor-[0-9.]+-amd64$' | sed 's/.*hypervisor-\(.*\)-amd64/\1/')
packages="xen-hypervisor-$version-amd64 xen-utils-$version xen-utils-common xenstore-utils libxenmisc$version libxencall1
 libxendevicemodel1 libxenevtchn1 libxenforeignmemory1 libxengnttab1 libxenhypfs1 libxenstore4 libxentoolcore1 libxentoollog1
 libyajl2 libfdt1 libnl-3-200 libnl-route-3-200 $(newest '^libpython3\.[0-9]+$') socat libwrap0 nftables libnftables1 libedit2
 qemu-system-xen qemu-system-data seabios ipxe-qemu"
modules="xen-evtchn xen-gntdev xen-privcmd xenfs xen-netback xen-blkback nbd virtio_pci virtio_console virtio_net 9pnet_virtio 9p tun bridge
 nf_tables nfnetlink nfnetlink_queue nft_queue nft_objref nft_meta_bridge nft_limit nft_ct nft_reject_bridge nft_compat xt_NFQUEUE
 xt_physdev ifb sch_plug sch_ingress sch_prio act_mirred cls_u32"

cannot() {
	echo "mklab.sh: $*" >&2
	exit 77
}

fetch() {
	mkdir -p "$out/debs" "$out/stage"
	for p in $packages; do
		compgen -G "$out/debs/${p}_*.deb" >/dev/null && continue
		(cd "$out/debs" && apt-get -q -o APT::Sandbox::User=root download "$p" >&2) || cannot "cannot download $p (apt-get update?)"
		dpkg-deb -x "$out/debs/${p}"_*.deb "$out/stage"
	done
}

# Nothing is to be decompressed under emulation.
unpack_kernel() {
	python3 - "$kernel/vmlinuz" "$out/vmlinux.new" <<'PY'
import lzma, struct, subprocess, sys
image = open(sys.argv[1], 'rb').read()
setup = (image[0x1f1] or 4) + 1
offset, length = struct.unpack_from('<II', image, 0x248)
payload = image[setup * 512 + offset:][:length]
if payload[:6] == b'\xfd7zXZ\0':
    elf = lzma.LZMADecompressor().decompress(payload)
else:
    elf = subprocess.run(['zstd', '-dqc'], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
assert elf[:4] == b'\x7fELF'
open(sys.argv[2], 'wb').write(elf)
PY
	strip "$out/vmlinux.new"
	mv "$out/vmlinux.new" "$out/vmlinux"
}

# The libraries that $@ need, from the packages first.
add_libraries() {
	local missing
	missing=$(LD_LIBRARY_PATH=$libs ldd "$@" 2>/dev/null | sed -n 's/ => not found//p' | sort -u)
	[ -z "$missing" ] || { echo "mklab.sh: no package here has" $missing >&2; exit 1; }
	LD_LIBRARY_PATH=$libs ldd "$@" 2>/dev/null | grep -o '/[^ ]*' | grep -v ':$' | sort -u | while read -r lib; do
		case $lib in
		*/ld-linux-x86-64.so.2) install -D "$lib" "$root/lib64/ld-linux-x86-64.so.2" ;;
		*) install -D "$lib" "$root/lib/x86_64-linux-gnu/$(basename "$lib")" ;;
		esac
	done
}

# Module $1 and what it depends on, in the order of loading.
add_module() {
	local file
	for file in $(modprobe -d "$kernel" -S "$release" --show-depends "$1" 2>/dev/null | awk '$1 == "insmod" { print $2 }'); do
		grep -qx "$(basename "$file")" "$root/modules/order" && continue
		cp "$file" "$root/modules/"
		basename "$file" >>"$root/modules/order"
	done
}

make_dom0() {
	local xen=$out/stage/usr/lib/xen-$version
	root=$out/dom0
	libs=$out/stage/usr/lib/x86_64-linux-gnu:$out/stage/lib/x86_64-linux-gnu:$xen/lib/x86_64-linux-gnu
	rm -rf "$root"
	mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,proc,sys,dev,etc/xen/scripts,tmp,root,host,run,modules,ft} \
		"$root"/var/{lock,log/xen/console,lib/xen,lib/xenstored,lib/ft} "$root/usr/lib/xen-$version/bin"
	ln -s ../run "$root/var/run"
	cp -L "$(command -v busybox)" "$root/bin/busybox"
	ln -s busybox "$root/bin/sh"
	for b in xl libxl-save-helper xenstored xenconsoled xen-init-dom0 xenctx; do
		cp "$xen/bin/$b" "$root/usr/lib/xen-$version/bin/"
	done
	ln -s "/usr/lib/xen-$version/bin/xl" "$root/usr/sbin/xl"
	cp "$out/stage/usr/bin/xenstore" "$root/usr/bin/"
	for a in read write ls list rm exists watch; do ln -s xenstore "$root/usr/bin/xenstore-$a"; done
	cp "$out/stage/usr/bin/socat" "$root/usr/bin/"
	cp "$out/stage/usr/sbin/nft" "$root/usr/sbin/"
	add_libraries "$root/usr/lib/xen-$version"/bin/* "$root"/usr/bin/{xenstore,socat} "$root/usr/sbin/nft"
	# What no program is linked with: pthread_cancel's, and those that ft will ask for.
	for lib in libgcc_s.so.1 libnss_files.so.2; do install -D "/lib/x86_64-linux-gnu/$lib" "$root/lib/x86_64-linux-gnu/$lib"; done
	printf 'autoballoon="off"\n' >"$root/etc/xen/xl.conf"
	echo 'root::0:0:root:/root:/bin/sh' >"$root/etc/passwd"
	echo 'root:x:0:' >"$root/etc/group"
	install -m 755 "$here/dom0/vif-bridge" "$root/etc/xen/scripts/vif-bridge"
	install -m 755 "$here/dom0/init" "$root/init"
	: >"$root/modules/order"
	for m in $modules; do add_module "$m"; done
	(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$out/dom0.cpio"
}

# Apart from dom0's image, which every host of the lab unpacks when it boots.
make_model() {
	local stage=$out/stage xen=usr/lib/xen-$version rom
	root=$out/model
	rm -rf "$root"
	install -D "$stage/usr/libexec/xen-qemu-system-i386" "$root/usr/libexec/xen-qemu-system-i386"
	install -D "$stage/$xen/boot/hvmloader" "$root/$xen/boot/hvmloader"
	install -D "$stage/usr/share/seabios/bios-256k.bin" "$root/usr/share/seabios/bios-256k.bin"
	mkdir -p "$root/usr/share/qemu/keymaps"
	cp "$stage"/usr/share/qemu/linuxboot*.bin "$root/usr/share/qemu/"
	cp "$stage"/usr/share/qemu/keymaps/en-us "$root/usr/share/qemu/keymaps/"
	rom=$(cd "$stage" && find usr -name efi-rtl8139.rom)    # releases differ in where
	install -D "$stage/$rom" "$root/$rom"
	add_libraries "$root/usr/libexec/xen-qemu-system-i386"
	(cd "$out/dom0" && find . -type f) | (cd "$root" && xargs rm -f)
	install -D "$kernel/vmlinuz" "$root/ft/guest/vmlinuz"
	zstd -q -9 -o "$root/ft/guest/guest.zst" "$out/guest.cpio"
	tar -C "$root" --owner=0 --group=0 -cf "$out/model.tar" .
	rm -rf "$root"
}

make_guest() {
	GUEST_KERNEL=amd64 GUEST_MODULES="xen-netfront xen-blkfront mii 8139cp" "$here/../hosts/mkguest.sh" "$out/guest"
	mv "$out/guest/initrd.img" "$out/guest.cpio"
	mv "$out/guest/initrd-disk.img" "$out/guest-disk.cpio"
}

export PATH=$PATH:/usr/sbin:/sbin
kernel=$("$here/../kernel.sh" amd64) || cannot "no kernel for dom0"
release=$(ls "$kernel/lib/modules")
[ -n "$version" ] || cannot "apt knows no xen-hypervisor-VERSION-amd64 (apt-get update?)"
now="$release $version $(cat "$0" "$here"/dom0/* "$here"/../guest/* "$here/../hosts/mkguest.sh" | sha256sum | cut -c1-16)"
mkdir -p "$out"
exec 9>"$out/lock"
flock 9
[ "$(cat "$out/version" 2>/dev/null)" != "$now" ] || exit 0
fetch
gzip -dc "$out/stage/boot/xen-$version-amd64.gz" >"$out/xen"
unpack_kernel
make_dom0
make_guest
make_model
rm -f "$out"/*.state
echo "$now" >"$out/version"
