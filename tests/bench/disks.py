# SPDX-License-Identifier: GPL-3.0-or-later
"""disks.py - what mirroring a disk costs (part of bench.py).

The comparison is one protected guest with two disks that differ in one thing: the first is served by nbdkit with our plugin and
mirrored, the second by the same nbdkit with its own file plugin. `nbdkit` in alpha's ft.conf is a script that does so: beside
the file plugin it runs ours on an image that nobody writes to, which is all that ft-protect gets to see of that disk. So it
works in this test world only, and the second disk would not survive a takeover.
"""
import json
import os
import random
import re
import time

import world
from world import Failure, Guest, World, now, percentile, wait_for

GRANULE = 64 << 10
FIO_ROUNDS, FIO_SECONDS = 6, 4

PLAIN_NBDKIT = '''#!/bin/sh
for word in "$@"; do
	case $word in
	image=*) image=${word#image=} ;;
	control=*) control=${word#control=} ;;
	map=*) map=${word#map=} ;;
	*.so) plugin=$word ;;
	esac
done
case $image in *-plain.img) ;; *) exec nbdkit "$@" ;; esac
env -u LISTEN_FDS -u LISTEN_PID nbdkit --foreground --exit-with-parent --unix "$control.nobody" "$plugin" image="$image.decoy" \\
	map="$map" control="$control" 3>&- &
exec nbdkit --foreground file "$image"
'''


class RawDisk(Guest):
    """/dev/vda has no file system."""

    def __init__(self, disk_mb):
        super().__init__('vm1', 0x0a, disk_mb=disk_mb)

    def file(self):
        return super().file().replace(' ft.disk=ext4 ft.redis=aof', ' ft.disk=raw')


class TwoDisks(RawDisk):
    """/dev/vda is mirrored, /dev/vdb is not."""

    def __init__(self, disk_mb):
        super().__init__(disk_mb)
        self.plain = self.image.replace('.img', '-plain.img')

    def file(self):
        return super().file() + f'[disk]\nimage = {self.plain}\n'

    def make_image(self, host):
        super().make_image(host)
        size = f'bs=1M count={self.disk_mb}'
        host.run(f'dd if=/dev/urandom of={self.image} {size} 2>/dev/null && cp {self.image} {self.plain} && '
                 f'truncate -s {self.disk_mb}M {self.plain}.decoy', 120)


def fio(w, disk, mode, block, seconds):
    """Bytes a second of direct I/O with 16 requests in flight."""
    out = w.shell('vm1', f'fio --name=x --filename=/dev/{disk} --direct=1 --ioengine=libaio --iodepth=16 --rw={mode} '
                         f'--bs={block} --runtime={seconds} --time_based --randrepeat=0 --output-format=json', seconds + 60)
    try:
        job = json.loads(out[out.index('{'):])['jobs'][0]
    except (ValueError, KeyError):
        raise Failure(f'fio: {out}') from None
    return job['write' if 'write' in mode else 'read']['bw_bytes']


def bench_fio(report, protected):
    """`protected`: bench.Protected."""
    modes = (('4k random read', 'randread', '4k', 0.9), ('4k random write', 'randwrite', '4k', 0.6),
             ('sequential write of 256k', 'write', '256k', 0.6))
    guest = TwoDisks(256)
    with World({'vm1': guest}) as w:
        w.alpha.write('/etc/ft/nbdkit', PLAIN_NBDKIT, 0o755)
        conf = world.read_file(w.alpha.path('/etc/ft/ft.conf'))
        w.alpha.write('/etc/ft/ft.conf', conf.replace('[ft]', '[ft]\nnbdkit = /etc/ft/nbdkit'))
        w.start_ftd(w.beta)
        w.start_guest(w.alpha, 'vm1')
        with protected(w) as p:
            got = {}
            for n in range(FIO_ROUNDS):
                for what, mode, block, _ in modes:
                    # Who is first changes: what the one has still to send, the other one's turn pays for.
                    for disk in ('vda', 'vdb') if n % 2 else ('vdb', 'vda'):
                        got.setdefault((what, disk), []).append(fio(w, disk, mode, block, FIO_SECONDS))
                        wait_for('the backup to catch up', lambda: not any(d['behind_bytes'] for d in p.status()['disks']), 60)
            for what, _, _, bound in modes:
                ours, plain = got[what, 'vda'], got[what, 'vdb']
                report.row(f'{what}, mirrored', percentile(ours, 50) / 1e6, 'MB/s')
                report.row(f'{what}, file plugin', percentile(plain, 50) / 1e6, 'MB/s')
                report.row(f'{what}, mirrored / file plugin', percentile([a / b for a, b in zip(ours, plain)], 50), 'x',
                           bound, at_most=False)


def differing_images(w, guest, part):
    """The disk is full of random data; on beta that part of its blocks of 64 KB is other data."""
    for host in (w.alpha, w.beta):
        host.run(f'mkdir -p {os.path.dirname(guest.image)}')
    blocks = guest.disk_mb * 16
    other = set(random.Random(5).sample(range(blocks), int(blocks * part)))
    with open(w.alpha.path(guest.image), 'wb') as one, open(w.beta.path(guest.image), 'wb') as two:
        for n in range(blocks):
            data = os.urandom(GRANULE)
            one.write(data)
            two.write(data[::-1] if n in other else data)


def bench_sync(report, protected):
    guest = RawDisk(1024)
    with World({'vm1': guest}) as w:
        differing_images(w, guest, 0.05)
        w.start_ftd(w.beta)
        w.start_guest(w.alpha, 'vm1')
        links, began = [], now()
        for _ in range(2):
            with protected(w) as p:
                s = p.status()
                links.append(s['bytes_link'])
                if len(links) == 1:
                    report.row('1 GB, 5 % of the blocks differ: until protected', now() - began, 's')
                    report.row('  ... compared', s['disks'][0]['copy_total'] / 1e9, 'GB')
                    report.row('  ... bytes of the disk that were sent', 100 * s['disks'][0]['mirrored_bytes'] / 2 ** 30, '%', 6)
        # The second session sends the same memory, and nothing of the disk.
        report.row('  ... bytes on the link, without those of memory', 100 * (links[0] - links[1]) / 2 ** 30, '%', 6)


def rss_anon_mb(pid):
    return int(re.search(r'RssAnon:\s+(\d+)', world.read_file(f'/proc/{pid}/status')).group(1)) / 1024


def bench_slow_link(report, protected):
    """
    A guest that writes more than the link takes: what ft holds lies in its file, not in its memory. nbdkit itself has 16
    threads, each with a buffer for the largest request (2 MB) that it has seen.
    """
    link_mb, log_mb, staging_mb = 4, 64, 128
    guest = RawDisk(512)
    with World({'vm1': guest}) as w:
        w.start_ftd(w.beta)
        w.start_guest(w.alpha, 'vm1')
        with protected(w) as p:
            pids = {'ft-protect': p.process.pid(), "the disk's server": w.alpha.pids('nbdkit')[0]}
            before = {name: rss_anon_mb(pid) for name, pid in pids.items()}
            most, behind = dict(before), 0
            w.shell('vm1', 'fio --name=x --filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=16 --rw=write --bs=256k '
                           '--runtime=15 --time_based </dev/null >/dev/null 2>&1 & echo ok')
            w.wire(f'rate {link_mb << 20}')
            end = now() + 14
            while now() < end:
                time.sleep(0.2)
                most = {name: max(most[name], rss_anon_mb(pid)) for name, pid in pids.items()}
                behind = max(behind, p.status()['disks'][0]['behind_bytes'])
            report.row(f'link of {link_mb} MB/s, a guest that writes: most bytes behind', behind / 2 ** 20, 'MB', 2 * log_mb,
                       at_most=False)
            report.row('  ... ft-protect, growth of anonymous memory', most['ft-protect'] - before['ft-protect'], 'MB',
                       log_mb + staging_mb)
            report.row("  ... the disk's server, the same", most["the disk's server"] - before["the disk's server"], 'MB', 48)
            w.heal()
            wait_for('the backup to catch up', lambda: not p.status()['disks'][0]['behind_bytes'], 120)


def bench_disks(report, protected, section):
    section('A disk, mirrored, and one served by the same nbdkit with its file plugin; same guest, in turn')
    bench_fio(report, protected)
    section('First synchronisation of a disk')
    bench_sync(report, protected)
    section('Memory while the link is too slow')
    bench_slow_link(report, protected)
