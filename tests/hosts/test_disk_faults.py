#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks that are in the way of protection, and disks that fail during it, on both hosts: one line that names the object, output
held rather than wrong, nothing lost.
"""
import contextlib
import errno
import fcntl
import os
import struct
import subprocess
import threading
import time

import world
from lab import Lab, Skip, check, main, test, undone
from world import Guest, wait_for

OBSTACLE, REFUSED = 3, 4
EIO_SO = os.path.join(world.TOOLS, 'eio.so')


class TwoDisks(Guest):
    """Its ext4 and Redis are on /dev/vda; what the primary cannot write is on /dev/vdb, or the guest would rightly complain."""

    def __init__(self):
        super().__init__('vm1', 0x0a, disk_mb=64)
        self.second = '/var/lib/second/vm1-b.img'

    def file(self):
        text = super().file().replace('[guest]\n', '[guest]\ndurability = journal\n')
        return text + f'[disk]\nimage = {self.second}\n'

    def make_image(self, host):
        super().make_image(host)
        host.run(f'mkdir -p {os.path.dirname(self.second)} && truncate -s 16M {self.second}')


VM1 = TwoDisks()
IMAGE, SECOND = VM1.image, VM1.second


class FaultLab(Lab):
    """What serves disks on alpha, and what keeps them on beta, can be made to fail."""

    def open(self):
        if self.w:
            return self.w
        w = super().open()
        # The second disk's file system is smaller than the disk, on alpha.
        w.alpha.run(f'mkdir -p {os.path.dirname(SECOND)} && mount -t tmpfs -o size=2M second {os.path.dirname(SECOND)}')
        w.beta.run(f'mkdir -p {os.path.dirname(SECOND)}')
        w.alpha.write('/etc/ft/nbdkit', f'#!/bin/sh\nLD_PRELOAD={EIO_SO} exec nbdkit "$@"\n', 0o755)
        conf = world.read_file(w.alpha.path('/etc/ft/ft.conf'))
        w.alpha.write('/etc/ft/ft.conf', conf.replace('[ft]', '[ft]\nnbdkit = /etc/ft/nbdkit'))
        self.restart_ftd()
        return w

    def restart_ftd(self):
        self.ftd['beta'].stop()
        wait_for('ftd to end', lambda: not self.w.beta.pids('ftd'), 20)
        self.ftd['beta'] = self.w.beta.spawn(['env', f'LD_PRELOAD={EIO_SO}', 'ftd'], name='beta ftd')
        wait_for('ftd to listen', lambda: ':7800' in self.w.beta.call('ss -Htln sport = :7800').stdout, 20)


# ---- what is in the way before ----

@contextlib.contextmanager
def in_use(host, path):
    """Another program on that host has locked it as a guest's server does."""
    host.run(f'truncate -s 64M {path}')
    with open(host.path(path), 'r+b') as f:
        fcntl.fcntl(f, fcntl.F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        try:
            yield
        finally:
            os.unlink(host.path(path))


def read_only(host, path, make='true', unmake='true'):
    return undone(host, f'{make}; mount --bind {path} {path} && mount -o remount,ro,bind {path}', f'umount {path}; {unmake}')


def other_guest(host):
    return undone(host, 'printf "[guest]\\nname = vm9\\nmemory = 64M\\nvcpus = 1\\n[disk]\\n image=%s\\n" '
                        f'{IMAGE} >/etc/ft/guests/vm9.conf', 'rm /etc/ft/guests/vm9.conf')


def moved(host, path):
    return undone(host, f'mv {path} {path}.away', f'mv {path}.away {path}')


def resized(host, path, megabytes, before):
    return undone(host, f'truncate -s {megabytes}M {path}', f'truncate -s {before}M {path}' if before else f'rm {path}')


# name: (how, what the line says, how ft-protect ends)
OBSTACLES = {
    'an_image_that_is_gone': (lambda a, b: moved(a, IMAGE), [IMAGE, 'there is no disk image'], OBSTACLE),
    'an_image_that_has_grown': (lambda a, b: resized(a, IMAGE, 65, 64), [IMAGE, 'restore its size', 'truncate -s 67108864'], OBSTACLE),
    'an_image_that_has_shrunk': (lambda a, b: resized(a, SECOND, 15, 16), [SECOND, 'restore its size', 'truncate -s 16777216'], OBSTACLE),
    'an_image_that_became_read_only': (lambda a, b: read_only(a, IMAGE), [IMAGE, 'Read-only', 'make it writable'], OBSTACLE),
    'an_image_of_two_guests': (lambda a, b: other_guest(a), [IMAGE, 'vm9.conf', 'of its own'], OBSTACLE),
    'an_image_of_two_guests_on_the_backup': (lambda a, b: other_guest(b), [IMAGE, 'vm9.conf', 'of its own'], REFUSED),
    'an_image_of_another_size_on_the_backup': (lambda a, b: resized(b, IMAGE, 65, 0), [IMAGE, '68157440', '67108864'], REFUSED),
    'an_image_in_use_on_the_backup': (lambda a, b: in_use(b, IMAGE), [IMAGE, 'use'], REFUSED),
    'an_image_that_is_read_only_on_the_backup': (
        lambda a, b: read_only(b, IMAGE, f'truncate -s 64M {IMAGE}', f'rm {IMAGE}'), [IMAGE, 'Read-only'], REFUSED),
    'no_directory_for_the_image_on_the_backup': (
        lambda a, b: undone(b, 'mv /var/lib/images /var/lib/away', 'mv /var/lib/away /var/lib/images'),
        [IMAGE, 'on beta', 'mkdir -p /var/lib/images'], REFUSED),
    'no_nbdkit_on_the_backup': (
        lambda a, b: undone(b, "sed -i.bak 's,^.ft.$,&\\nnbdkit = /nowhere/nbdkit,' /etc/ft/ft.conf", 'mv /etc/ft/ft.conf.bak /etc/ft/ft.conf'),
        ['on beta', 'install nbdkit'], REFUSED),
    'no_room_for_the_image_on_the_backup': (
        lambda a, b: undone(b, 'mount -t tmpfs -o size=1M none /var/lib/images', 'umount /var/lib/images'),
        [IMAGE, '/var/lib/images', 'make room'], REFUSED),
}


def left_behind(w):
    """What protection would have changed on either host. (The primary's servers make maps as soon as ft-protect speaks to them.)"""
    look = 'cd /var/lib/ft && ls; cat *.record; find /var/lib/images /var/lib/second'
    found = [host.call(look).stdout for host in (w.alpha, w.beta)]
    return [found[0].replace('vm1.disk0.map\n', '').replace('vm1.disk1.map\n', ''), found[1], w.alpha.call('nft list tables').stdout]


@test(limit=400)
def what_is_wrong_with_disks_on_either_host_is_named_and_protection_does_not_begin(lab):
    w = lab.running()
    w.beta.run('mkdir -p /var/lib/images')
    w.shell('vm1', 'dd if=/dev/urandom of=/data/fill bs=1M count=4; sync')
    done = w.alpha.call('ft-protect --check vm1 beta', 60)
    check(done.returncode == 0, f'--check finds an obstacle: {done.stdout}')
    before = left_behind(w)
    for name, (how, words, status) in OBSTACLES.items():
        with how(w.alpha, w.beta):
            done = w.alpha.call('ft-protect --check vm1 beta', 60)
            real = w.alpha.call('ft-protect vm1 beta', 60)
        check(done.returncode == OBSTACLE, f'{name}: --check ends with {done.returncode}: {done.stdout}')
        check(real.returncode == status, f'{name}: ft-protect ends with {real.returncode}: {real.stdout}')
        for word in words:
            check(word in done.stdout, f'{name}: --check does not say {word}: {done.stdout}')
            check(word in real.stdout, f'{name}: ft-protect does not say {word}: {real.stdout}')
        check(done.stdout.count('obstacle: ') == 1, f'{name}: more than one line: {done.stdout}')
        check(left_behind(w) == before, f'{name}: {left_behind(w)} were {before}')
    check('OK' in w.redis('vm1', 'SET still here'), 'the guest suffers')


# ---- what fails meanwhile ----

@contextlib.contextmanager
def failing(host, call, code, part):
    host.write('/run/eio', f'{call} {code} {part}\n')
    try:
        yield
    finally:
        os.unlink(host.path('/run/eio'))


def write_second(lab, at_mb, blocks=8):
    """The guest writes /dev/vdb, past its cache; what its dd says."""
    return lab.w.shell('vm1', f'dd if=/dev/urandom of=/dev/vdb bs=64k count={blocks} seek={at_mb * 16} oflag=direct', 90)


def equal(lab):
    """The guest goes on, and everything on the backup is what it should be."""
    lab.wait_state('PROTECTED', limit=90)
    lab.check_goes_on(60)
    said = wait_for('a comparison', lambda: [d for d in [lab.primary.call('ft-ctl verify vm1', 100)] if 'epoch' in d.stdout], 60)[0]
    check(said.returncode == 0 and 'disk 0: 64 MB equal' in said.stdout and 'disk 1: 16 MB equal' in said.stdout, said.stdout)


def check_mute(lab, what):
    """No client hears of what the backup does not have."""
    time.sleep(1)                       # what was acknowledged before is out
    n = len(lab.incr.replies())
    time.sleep(2)
    check(len(lab.incr.replies()) == n, f'{what}: replies of what the backup does not have')


def said_by_ftd(lab, seen, *words):
    return [line for _, line in lab.ftd['beta'].lines[seen:] if all(word in line for word in words)]


def in_background(function, *args):
    """Its result comes out of the list."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function(*args)), daemon=True)
    thread.start()
    return result


def dd(megabytes, at_mb=0):
    return f'dd if=/dev/urandom of=/dev/vdb bs=64k count={megabytes * 16} seek={at_mb * 16} oflag=direct'


@test(limit=240)
def a_primary_without_room_lets_the_guest_stand_still_until_there_is(lab):
    lab.close()
    w = lab.protected()
    host, small = w.alpha, os.path.dirname(SECOND)
    copies = sum('full copy sent' in line for _, line in lab.ft_protect.lines)
    said = in_background(w.shell, 'vm1', dd(6) + '; dmesg | grep -i "i/o error"', 90)
    trouble = wait_for('ft-ctl status to say why', lambda: (host.status('vm1') or {}).get('trouble'), 60)
    check(SECOND in trouble and 'No space left' in trouble and 'make room' in trouble, trouble)
    check(any('stands still' in line and SECOND in line for _, line in lab.ft_protect.lines), lab.ft_protect.tail())
    print(f'# {trouble}')
    check(not said and host.state('vm1') == 'PROTECTED' and lab.backup.state('vm1') == 'ARMED', f'{said}, {host.state("vm1")}')
    before = host.status('vm1')['acked_epoch']
    wait_for('epochs to go on', lambda: host.status('vm1')['acked_epoch'] > before, 20)
    host.run(f'mount -o remount,size=32M {small}')
    wait_for('the guest to go on', lambda: said, 60)
    check('96+0 records out' in said[0] and 'error' not in said[0].lower(), f'the guest was told: {said}')
    wait_for('no trouble', lambda: not host.status('vm1')['trouble'], 20)
    check(lab.ft_protect.logged('the guest goes on') and copies == sum('full copy sent' in x for _, x in lab.ft_protect.lines),
          f'the session was lost: {lab.ft_protect.tail()}')
    equal(lab)

    # Who is not protected is told, too, and let run by hand.
    host.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)
    used = int(host.run(f"df --output=used -k {small} | tail -1"))
    host.run(f'mount -o remount,size={used + 64}k {small}')
    said = in_background(w.shell, 'vm1', dd(2, at_mb=8), 90)
    wait_for('ft-guest to say so', lambda: 'has no room' in host.call('ft-guest status vm1').stdout, 60)
    host.run(f'mount -o remount,size=32M {small}')
    check('it goes on' in host.run('ft-guest start vm1'), 'ft-guest start does not let it run')
    wait_for('the guest to go on', lambda: said, 60)
    check('32+0 records out' in said[0], f'the guest was told: {said}')

    # A standing guest can be protected, and a power cut takes what waits for room along: there is room on beta.
    host.run(f'mount -o remount,size={used + (2 << 10) + 64}k {small}')
    said = in_background(w.shell, 'vm1', dd(2, at_mb=12), 90)
    wait_for('ft-guest to say so', lambda: 'has no room' in host.call('ft-guest status vm1').stdout, 60)
    lab.ft_protect = w.protect(host, 'vm1', lab.backup)
    check(host.status('vm1')['trouble'], 'nobody says that the guest stands still')
    at = lab.cut_power_of_primary()
    wait_for('the guest to go on', lambda: said, 60)
    check('32+0 records out' in said[0], f'the guest was told: {said}')
    lab.check_client(since=at)
    lab.check_goes_on()
    lab.close()


@test(limit=300)
def a_backup_without_room_for_a_write_acknowledges_nothing_until_there_is(lab):
    lab.protected()
    for part, named in (('.img', IMAGE), ('.journal', 'journal of vm1 in /var/lib/ft')):
        seen = len(lab.ftd['beta'].lines)
        with failing(lab.backup, 'pwrite', errno.ENOSPC, part):
            wait_for('beta to say so', lambda: said_by_ftd(lab, seen, named, os.strerror(errno.ENOSPC)), 60)
            check_mute(lab, part)
        print(f'# {part}: {said_by_ftd(lab, seen, named)[0]}')
        equal(lab)


@test(limit=300)
def verify_finds_what_differs_on_a_disk(lab):
    lab.protected()
    with open(lab.backup.path(SECOND), 'r+b') as f:
        f.seek(12 << 20)                # the guest writes nothing there
        f.write(b'rotten')
    said = lab.primary.call('ft-ctl verify vm1', 100)
    check(said.returncode == 1 and 'disk 0: 64 MB equal' in said.stdout and
          'disk 1 DIFFERS in 1 blocks of 64 KB, first at byte 12582912' in said.stdout, said.stdout)
    with open(lab.backup.path(SECOND), 'r+b') as f:
        f.seek(12 << 20)
        f.write(bytes(6))
    equal(lab)


@test(limit=300)
def a_backup_that_cannot_sync_an_image_is_believed_again_only_after_a_comparison(lab):
    """The kernel tells of a failed write once: what was written is not known any more."""
    lab.protected()
    seen, copies = len(lab.ftd['beta'].lines), len(lab.ft_protect.lines)
    with failing(lab.backup, 'fdatasync', errno.EIO, '.img'):
        wait_for('beta to say so', lambda: said_by_ftd(lab, seen, '.img: sync', 'replace the disk'), 60)
        check_mute(lab, 'sync')
    print(f'# {said_by_ftd(lab, seen, ".img: sync")[0]}')
    # A later sync that succeeds proves nothing: the session is not resumed, and all of the image is compared.
    wait_for('beta to begin anew', lambda: said_by_ftd(lab, seen, 'has lost what was written to it'), 60)
    wait_for('a new copy', lambda: any('-> DRILLING: full copy sent' in line for _, line in lab.ft_protect.lines[copies:]), 90)
    equal(lab)


@test(limit=300)
def a_primary_that_cannot_write_an_image_tells_the_guest_and_compares_again(lab):
    lab.protected()
    for part, at_mb in ((SECOND, 0), ('disk1.map', 8)):     # the map is written for a region that was not written lately
        with failing(lab.primary, 'pwrite', errno.EIO, part):
            said = write_second(lab, at_mb)
            check('I/O error' in said or 'error' in said.lower(), f'{part}: the guest was told that it is written: {said}')
        lines = [line for _, line in lab.ft_protect.lines if 'failed' in line or 'cannot' in line]
        log = lab.primary.run('cat /run/ft/guests/vm1/disk1.log')
        check(part in log and os.strerror(errno.EIO) in log, f'its log does not name {part}: {log}')
        print(f'# {part}: {lines[-1:]}; log: {log.splitlines()[-1]}')
        equal(lab)
        check('8+0 records out' in write_second(lab, at_mb), f'{part}: the disk stays broken')
    at = lab.cut_power_of_primary()
    lab.check_client(since=at)
    lab.check_goes_on()


SLOW_S, GRACE_MS = 6, 4000


@test(limit=240)
def a_primary_with_a_slow_disk_is_not_taken_for_a_dead_one(lab):
    """A pause waits for the guest's requests: longer than the guard lets a dead ft-protect pause, or hang."""
    lab.close()                         # alpha's is the disk that can be made slow
    lab.protected()
    before = len(lab.ft_protect.lines)
    with failing(lab.primary, 'pwrite', -1000 * SLOW_S, SECOND):
        began = time.monotonic()
        said = write_second(lab, 4, blocks=1)
    check('1+0 records out' in said and time.monotonic() - began >= SLOW_S, said)
    lab.check_goes_on()
    lines = [line for _, line in lab.ft_protect.lines[before:] if 'revoked' in line or 'CUT_OFF' in line or 'void' in line]
    check(lab.ft_protect.running() and not lines, f'{lines}, {lab.ft_protect.tail(5)}')


# ---- block devices ----

@contextlib.contextmanager
def loop_device(host, megabytes):
    """A block device whose blocks are on that host's disk."""
    path = os.path.join(host.world.dir, f'{host.name}-{megabytes}.blocks')
    with open(path, 'wb') as f:
        f.truncate(megabytes << 20)
    made = subprocess.run(['losetup', '-f', '--show', path], capture_output=True, text=True, check=False)
    if made.returncode:
        raise Skip(f'no loop devices here: {made.stderr.strip()}')
    device = made.stdout.strip()
    try:
        host.write('/etc/ft/guests/vm1.conf', VM1.file().replace(f'image = {IMAGE}\n', f'image = {device}\n'))
        yield device
    finally:
        for other in (host.world.alpha, host.world.beta):
            other.power_off()           # nobody has it open any more
        wait_for('the loop device to be free', lambda: not subprocess.run(
            ['losetup', '-d', device], check=False, stderr=subprocess.DEVNULL).returncode, 20)


@test(limit=240)
def block_devices_are_disks_of_either_host(lab):
    lab.close()
    w = lab.open()
    try:
        with loop_device(w.alpha, 64), loop_device(w.beta, 48) as small:
            VM1.make_image(w.alpha)
            w.alpha.run('ft-guest start vm1', 60)
            w.wait_guest('vm1')
            done = w.alpha.call('ft-protect --check vm1 beta', 60)
            check(done.returncode == OBSTACLE and small in done.stdout and 'size' in done.stdout, f'--check: {done.stdout}')
            with loop_device(w.beta, 64) as device:
                lab.protected()
                equal(lab)
                at = lab.cut_power_of_primary()
                lab.check_client(since=at)
                lab.check_goes_on()
                check(device in w.beta.run('cat /run/ft/guests/vm1/attach'), 'the guest is not on that device')
                said = w.shell('vm1', 'dmesg | grep -i -E "ext4-fs (error|warning)|I/O error" || echo none')
                check(said.strip() == 'none', f'the guest complains about its disk: {said}')
    finally:
        lab.close()


main(FaultLab({'vm1': VM1}, f'silence-ms = 1000\ngrace-ms = {GRACE_MS}'))
