#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests with disks, unprotected: what they write is there when they boot again, and what cannot be a disk is refused."""
import os
import signal

from lab import Lab, check, main, test
from world import Failure, Guest, read_file, wait_for

GUESTS = {'vm1': Guest('vm1', 0x0a, disk_mb=64), 'vm2': Guest('vm2', 0x0b, disk_mb=64)}


def attach(host, guest):
    return host.path(f'/run/ft/guests/{guest}/attach')


def server(host):
    """PID of the one server of a disk here (ours, not the host's)."""
    return wait_for("the disk's server", lambda: host.pids('nbdkit'), 10)[0]


def stop(lab, guest='vm1'):
    host = lab.w.alpha
    host.run(f'ft-guest stop {guest}', 120)
    check(not host.pids('nbdkit'), 'its disk is served on after the guest was stopped')
    check(not os.path.exists(host.path(f'/run/ft/guests/{guest}')), 'its run directory is still there')


def clean(host, guest):
    """No error in the file system, and no journal to be replayed."""
    image = lab_image(guest)
    out = host.run(f'e2fsck -fn {image}')
    check('recovering journal' not in out and 'needs recovery' not in out, out)


def lab_image(guest):
    return GUESTS[guest].image


def refused(host, words, guest='vm1', status=1):
    done = host.call(f'ft-guest start {guest}', 60)
    check(done.returncode == status, f'status {done.returncode}, not {status}: {done.stdout}')
    check(words in done.stdout, f'"{words}" is not in "{done.stdout}"')
    check(not host.pids('qemu') and not host.pids('nbdkit'), 'something runs')


@test(limit=240)
def what_a_guest_wrote_is_there_when_it_boots_again(lab):
    w = lab.running()
    check(' /data ext4 rw' in w.shell('vm1', 'cat /proc/mounts'), w.shell('vm1', 'cat /proc/mounts; dmesg | tail'))
    w.shell('vm1', 'head -c 5000000 /dev/urandom >/data/random; sha256sum /data/random >/data/sum; sync')
    check(w.redis('vm1', 'SET key value') == 'OK', 'Redis takes nothing')
    check('integer' in w.redis('vm1', 'INCR n') or w.redis('vm1', 'GET n') == '1', 'Redis counts nothing')
    stop(lab)
    clean(w.alpha, 'vm1')
    w.start_guest(w.alpha, 'vm1')
    check(w.redis('vm1', 'GET key') == 'value', 'Redis has forgotten')
    out = w.shell('vm1', 'sha256sum -c /data/sum')
    check('random: OK' in out, out)
    out = w.shell('vm1', "sqlite3 /data/db 'create table t(x); insert into t values (7); select x from t;'; "
                         'fstrim -v /data; blockdev --getsize64 /dev/vda')
    check(out.splitlines()[0] == '7' and 'bytes were trimmed' in out.replace('trimmed', 'bytes were trimmed') and
          out.splitlines()[-1] == str(64 << 20), out)


@test(limit=240)
def what_was_synced_survives_the_death_of_qemu(lab):
    w = lab.running()
    check(w.redis('vm1', 'SET synced yes') == 'OK', 'Redis takes nothing')
    w.alpha.run('ft-guest stop vm1 --kill', 60)
    check(not w.alpha.pids('nbdkit'), 'its disk is served on')
    w.start_guest(w.alpha, 'vm1')
    check(w.redis('vm1', 'GET synced') == 'yes', 'Redis has forgotten what it had synced')


@test(limit=240)
def a_guest_waits_for_its_disk_when_the_server_is_killed(lab):
    w = lab.running()
    before = read_file(attach(w.alpha, 'vm1'))
    victim = server(w.alpha)
    os.kill(victim, signal.SIGKILL)
    wait_for('it to be gone', lambda: victim not in w.alpha.pids('nbdkit'), 10)
    out = w.alpha.call('ft-protect --check vm1 beta', 60).stdout
    check('the server of disk' in out and 'ft-guest start vm1' in out, out)
    out = w.alpha.run('ft-guest start vm1')
    check('is started again' in out and 'runs already' in out, out)
    check(server(w.alpha) != victim and read_file(attach(w.alpha, 'vm1')) != before, 'the attach record names the dead one')
    out = w.shell('vm1', 'echo hello >/data/hello && sync && echo 3 >/proc/sys/vm/drop_caches && cat /data/hello; '
                         'dmesg | grep -i "i/o error"', 90)
    check(out == 'hello\n', out)
    w.alpha.run('ft-guest start vm1')
    stop(lab)
    clean(w.alpha, 'vm1')


@test(limit=180)
def one_image_serves_one_guest(lab):
    w = lab.running()
    w.alpha.write('/etc/ft/guests/vm2.conf', GUESTS['vm2'].file().replace('images/vm2', 'images/vm1'))
    done = w.alpha.call('ft-guest start vm2', 60)
    w.alpha.write('/etc/ft/guests/vm2.conf', GUESTS['vm2'].file())
    check(done.returncode == 1 and '/var/lib/images/vm1.img' in done.stdout, f'{done.returncode}: {done.stdout}')
    check(len(w.alpha.pids('nbdkit')) == 1, f'servers: {w.alpha.pids("nbdkit")}')
    check('OK' in w.redis('vm1', 'SET still here'), 'the first guest suffers')
    w.start_guest(w.alpha, 'vm2')
    check(len(w.alpha.pids('nbdkit')) == 2, f'servers: {w.alpha.pids("nbdkit")}')
    w.alpha.run('ft-guest stop vm2 --kill', 60)
    check(len(w.alpha.pids('nbdkit')) == 1, f'servers: {w.alpha.pids("nbdkit")}')
    stop(lab)


@test(limit=120)
def what_is_no_disk_is_refused_with_the_remedy(lab):
    host, image = lab.open().alpha, GUESTS['vm1'].image
    host.run(f'mkdir -p {os.path.dirname(image)}; rm -f {image}')
    refused(host, f"truncate -s 10G {image}")
    host.run(f'truncate -s 1000 {image}')
    refused(host, f'{image} has 1000 bytes')
    host.run(f'qemu-img create -q -f qcow2 {image} 64M')
    refused(host, f'qemu-img convert -O raw {image}')
    host.run(f'rm {image}; mkdir /tmp/ro; mount -t tmpfs none /tmp/ro; truncate -s 64M /tmp/ro/x.img; mount -o remount,ro /tmp/ro; '
             f'ln -s /tmp/ro/x.img {image}')
    refused(host, 'Read-only file system')
    host.run(f'umount /tmp/ro; rm {image}; truncate -s 64M {image}')


@test(limit=180)
def firmware_boots_the_disk(lab):
    """Without a kernel in the guest file: a boot sector that says so on the serial port and stops."""
    host, g = lab.open().alpha, GUESTS['vm1']
    host.run(f'mkdir -p {os.path.dirname(g.image)}; truncate -s 64M {g.image}')
    sector = boot_sector(b'booted from disk')
    with open(host.path(g.image), 'r+b') as f:
        f.write(sector)
    lines = [line for line in g.file().splitlines() if not line.startswith(('kernel', 'initrd', 'cmdline'))]
    host.write('/etc/ft/guests/vm1.conf', '\n'.join(lines))
    host.run('ft-guest start vm1', 60)
    wait_for('the boot sector to speak', lambda: 'booted from disk' in read_file(host.path('/run/ft/guests/vm1/console.log')), 60)
    host.run('ft-guest stop vm1 --kill', 60)
    host.write('/etc/ft/guests/vm1.conf', g.file())


def boot_sector(text):
    """out 0x3f8 for each byte, then hlt for ever."""
    code = b'\xba\xf8\x03' + b''.join(b'\xb0' + bytes([c]) + b'\xee' for c in text + b'\n') + b'\xf4\xeb\xfd'
    if len(code) > 446:
        raise Failure('too long for a boot sector')
    return code.ljust(510, b'\0') + b'\x55\xaa'


main(Lab(GUESTS))
