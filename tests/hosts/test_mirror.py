#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A guest with a mirrored disk: ext4, Redis that syncs each write, SQLite; power cuts, faults, resynchronisation."""
import os
import signal
import subprocess
import time

import world
from lab import Lab, check, main, soak, test
from world import Guest, now, random_wait, read_file, wait_for

VM1 = Guest('vm1', 0x0a, disk_mb=256)
IMAGE = VM1.image


def shell(lab, script, limit=60):
    return lab.w.shell('vm1', script, limit)


def disk(lab, host=None):
    return (host or lab.primary).status('vm1')['disks'][0]


def quiet(lab):
    """The guest writes nothing more, and what it wrote is acknowledged."""
    lab.incr.stop()
    lab.w.ask('vm1', 'dirty 0 0', tries=5)
    shell(lab, 'sync')
    wait_for('all writes to be acknowledged', lambda: disk(lab)['behind_bytes'] == 0, 30)


def same_images(lab):
    """Both images, byte for byte, while the guest is paused between two writes."""
    one, two = (host.path(IMAGE) for host in (lab.w.alpha, lab.w.beta))
    return wait_for('the images to be the same', lambda: not subprocess.run(['cmp', '-s', one, two], check=False).returncode, 30)


def check_file_system(lab):
    """The guest's own view of its disk; then it ends in order, and the image is checked."""
    said = shell(lab, 'dmesg | grep -i -E "ext4-fs (error|warning)|I/O error|journal.*abort" || echo none')
    check(said.strip() == 'none', f'the guest complains about its disk: {said}')
    host = next(h for h in (lab.backup, lab.primary) if h.init and 'running' in h.call('ft-guest status vm1').stdout)
    host.run('ft-guest stop vm1', 90)           # by its power button: it unmounts
    wait_for("its disk's server to end", lambda: not host.pids('nbdkit'), 30)
    done = host.call(f'fsck.ext4 -fn {IMAGE}', 120)
    check(not done.returncode, f'fsck: {done.stdout}{done.stderr}')


INSERTS = '''
sqlite3 /data/t.db 'PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY);' >/dev/null
n=$(sqlite3 /data/t.db 'SELECT coalesce(max(n),0) FROM t')
while :; do n=$((n+1)); sqlite3 /data/t.db "PRAGMA synchronous=FULL; INSERT INTO t VALUES($n);" && echo $n || exit 1; done
'''


def start_inserts(lab):
    """A client that has the guest insert rows, each synced, and is told of each."""
    path = os.path.join(lab.w.dir, 'inserts.sh')
    with open(path, 'w', encoding='utf-8') as f:
        f.write(f'exec 2>&1\n{INSERTS}\n')
    return lab.w.client.spawn(['sh', '-c', f'exec busybox nc {VM1.ip4} {world.SHELL_PORT} <{path}'], name='inserts')


CUTS = soak('SOAK_DISK_CUTS', 2)


@test(limit=180 + 60 * CUTS)
def acknowledged_writes_are_on_the_disk_after_each_power_cut(lab):
    for _ in range(CUTS):
        lab.protected()
        time.sleep(random_wait(1, 4))
        at = lab.cut_power_of_primary()
        v = lab.check_client(since=at)
        kept = int(lab.w.redis('vm1', 'GET demo') or -1)
        check(kept >= v['last'], f'the client was told of {v["last"]}, Redis has {kept}')
        # The append-only file as the disk has it, not as the guest's memory remembers it.
        said = shell(lab, "sync; echo 3 >/proc/sys/vm/drop_caches; cat /data/appendonlydir/*.aof | grep -a -i -c '^incr'")
        check(int(said) >= v['last'], f'the client was told of {v["last"]}, the append-only file has {said}')
        lab.reverse()
        lab.protected()
    lab.check_goes_on()


@test(limit=240)
def rows_that_sqlite_has_committed_are_there_once_after_a_power_cut(lab):
    lab.protected()
    inserts = start_inserts(lab)
    wait_for('the first rows', lambda: len(inserts.lines) > 5, 60)
    time.sleep(random_wait(1, 3))
    lab.cut_power_of_primary()
    told = len(inserts.lines)
    wait_for('more rows after the takeover', lambda: len(inserts.lines) > told + 3, 60)
    inserts.kill()
    last = int(inserts.lines[-1][1])
    check([int(line) for _, line in inserts.lines] == list(range(1, last + 1)), 'the client was told of a row twice, or not')
    said = shell(lab, "sqlite3 -cmd '.timeout 20000' /data/t.db 'PRAGMA integrity_check; SELECT count(*) FROM t'").split()
    check(said[0] == 'ok' and int(said[1]) >= last, f'the client was told of {last} rows, the database says {said}')
    lab.reverse()
    lab.check_goes_on()


@test(limit=240)
def what_both_hosts_have_is_compared_and_only_differences_travel(lab):
    lab.protected()
    quiet(lab)
    before = disk(lab)['mirrored_bytes']
    same_images(lab)
    lab.primary.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)
    shell(lab, 'dd if=/dev/urandom of=/data/blob bs=64k count=100 2>/dev/null; sync')
    t = now()
    lab.protected()
    d = disk(lab)
    print(f'# {before} bytes mirrored before; resynchronised in {now() - t:.1f} s: compared {d["copy_total"]}, sent {d["mirrored_bytes"]}')
    check(100 * 65536 <= d['mirrored_bytes'] < 40 << 20, f'6.4 MB were written; the new session sent {d["mirrored_bytes"]}')
    check(d['copy_total'] < 200 << 20, f'compared {d["copy_total"]} bytes of 256 MB')
    quiet(lab)
    same_images(lab)


@test(limit=240)
def a_server_that_is_killed_is_started_again_and_nothing_is_lost(lab):
    lab.protected()
    wait_for('the server of the disk', lambda: lab.primary.pids('nbdkit'), 10)
    for pid in lab.primary.pids('nbdkit'):
        os.kill(pid, signal.SIGKILL)
    lab.wait_state('PROTECTED', limit=90)
    lab.check_goes_on(60)
    at = lab.cut_power_of_primary()
    lab.check_client(since=at)
    lab.check_goes_on()
    check_file_system(lab)
    lab.close()


# Past the page cache, requests of all sizes, some synced. What was written is read back and compared soon after: so at any instant there
# is something that only memory knows to be on the disk.
FIO = ('fio --name=v --directory=/data --size=8m --rw=randwrite --bsrange=4k-64k --ioengine=libaio --iodepth=8 --direct=1 '
       '--fdatasync=64 --verify=crc32c --verify_fatal=1 --verify_backlog=24 --loops=12')


@test(limit=240)
def what_fio_writes_is_there_and_the_file_system_clean_after_a_takeover_in_the_middle(lab):
    lab.protected()
    shell(lab, f'({FIO} >/tmp/fio.log 2>&1; echo "ended with $?" >>/tmp/fio.log) </dev/null >/dev/null 2>&1 & echo ok')
    wait_for('fio to write', lambda: disk(lab)['mirrored_bytes'] > 1 << 20, 30)
    time.sleep(random_wait(0, 2))
    at = lab.cut_power_of_primary()
    check('fio' in shell(lab, 'pidof fio >/dev/null && echo fio'), 'fio had ended before the power was cut')
    lab.check_client(since=at)
    log = wait_for('fio to end', lambda: [x for x in [shell(lab, 'cat /tmp/fio.log')] if 'ended with' in x], 150, every=0.5)[0]
    check('ended with 0' in log and 'err= 0' in log, f'fio says: {log}')
    lab.check_goes_on()
    check_file_system(lab)
    lab.close()


@test(limit=240)
def a_planned_failover_takes_the_disk_along(lab):
    lab.protected()
    shell(lab, 'echo kept >/data/kept; sync')
    lab.primary.run('ft-ctl failover vm1', 60)
    lab.wait_state('RUNNING', lab.backup)
    lab.check_goes_on()
    said = shell(lab, 'echo 3 >/proc/sys/vm/drop_caches; cat /data/kept')
    check(said.strip() == 'kept', f'the file says {said}')
    check_file_system(lab)
    lab.close()


@test(limit=240)
def two_sides_with_data_of_their_own_are_left_alone(lab):
    lab.close()
    lab.protected()
    quiet(lab)
    lab.primary.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)
    shell(lab, 'echo alpha >/data/side; sync')
    # Somebody starts the other copy as well, without network to the clients it would disturb.
    lab.backup.run(f'sed -i s/br0/lo/ /etc/ft/guests/vm1.conf && sed -i "/\\[nic\\]/,/bridge/d" /etc/ft/guests/vm1.conf')
    lab.backup.run('ft-guest start vm1 --force', 60)
    console = lab.backup.path('/run/ft/guests/vm1/console.log')
    wait_for('that guest to write to its disk', lambda: 'guest: up after' in read_file(console), 90)
    lab.backup.run('ft-guest stop vm1 --force', 60)
    lab.backup.write('/etc/ft/guests/vm1.conf', VM1.file())
    p = lab.primary.spawn('ft-protect vm1 beta')
    status = p.wait(60)
    check(status == 4 and any('data' in line for _, line in p.lines), f'ft-protect ended with {status}: {p.tail()}')
    check(shell(lab, 'cat /data/side').strip() == 'alpha', 'the running guest was harmed')
    lab.close()


main(Lab({'vm1': VM1}))
