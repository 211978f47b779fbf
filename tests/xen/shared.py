# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests on Xen hosts have in common: a lab that those of a file share, and a power cut."""
import collections
import contextlib
import os
import socket
import subprocess
import sys
import time

import xenlab
from lab import check, main
from world import FrameWatch, now, wait_for


class Shared:
    """A lab with a guest of one kind; a test that ruins it, or wants another kind, closes it."""

    def __init__(self):
        self.lab = self.job = None

    def open(self, kind='guest'):
        if self.lab and self.lab.kind != kind:
            self.close()
        if not self.lab:
            self.job = None
            self.make(kind)
        return self.lab

    def make(self, kind):
        self.lab = xenlab.Lab(kind=kind)
        self.lab.start_ftd(self.lab.beta)

    def boot(self, config, guest_file, limit=400):
        """A lab of our own, with a vm1 that is not the snapshots': as these files have it."""
        self.close()
        self.lab = xenlab.Lab(guest_on=None)
        self.lab.start_ftd(self.lab.beta)
        for host in self.lab.hosts:
            host.write('/etc/ft/guests/vm1.conf', guest_file)
        create(self.lab, config, limit)
        return self.lab

    def protected(self, **of):
        lab = self.open(**of)
        if self.job is None or lab.alpha.status(self.job) is not None:
            self.job = lab.protect()
        else:
            wait_for('PROTECTED', lambda: lab.state() == 'PROTECTED', 120, 1)
        return lab

    def close(self):
        if self.lab:
            self.lab.close()
        self.lab = self.job = None

    def explain(self, name):
        if not self.lab:
            return []
        self.lab.keep_logs()
        lines = []
        for host, log in ((self.lab.alpha, 'protect'), (self.lab.beta, 'ftd')):
            try:
                lines += [f'{host.name}: {line}' for line in host.call(f'tail -12 /ft/log/{log}.log', 30).stdout.splitlines()]
            except xenlab.Failure as e:
                lines.append(str(e))
        return lines


def create(lab, config, limit):
    lab.alpha.write('/ft/guest/vm1.cfg', config)
    lab.alpha.run('xl create /ft/guest/vm1.cfg', 120)
    wait_for('vm1 to be up', lambda: 'guest: up' in lab.alpha.run('cat /var/log/xen/guest-vm1.log'), limit, 1)


def an_epoch(lab):
    """A status with one: a loaded host's ft-protect may not answer at once."""
    return wait_for('a status', lambda: (lambda s: s.get('epoch') and s)(lab.status()), 60, 1)


@contextlib.contextmanager
def apart_from_the_network():
    """The guest on alpha; hosts have a line of their own."""
    xenlab.sh('ip', 'link', 'set', 'alpha1', 'nomaster')
    try:
        yield
    finally:
        xenlab.sh('ip', 'link', 'set', 'alpha1', 'master', 'lan')


def compare_epochs(lab, epochs, limit=120):
    """The replica's memory is compared with the suspended guest's, all of it, in so many epochs of a guest that writes."""
    check(lab.ask('dirty 16 300', limit // 2) is not None, 'the guest does not answer')
    with apart_from_the_network():                          # no frame comes in a pause, to be written and be in no epoch
        first, again = an_epoch(lab)['epoch'], said(lab, 'once more')
        for n in range(epochs):
            done = lab.alpha.call('ft-ctl verify vm1', limit)
            check(done.returncode == 0, f'comparison {n + 1}: {done.stdout.strip()}')
        status = an_epoch(lab)
        check(status['epoch'] >= first + epochs, f'only {status["epoch"] - first} epochs')
        again, few = said(lab, 'once more') - again, said(lab, 'differs in [12] blocks')
    # An event in the pause: Xen sets its bits in two of the guest's pages, and does not log that.
    check(again <= max(1, epochs // 10) and few >= again, f'{again} times an epoch differed, {few} times by little, and a later one did not')
    print(f'# {epochs} comparisons in epochs {first} to {status["epoch"]}; last: {done.stdout.strip()}; '
          f'{status["dirty_pages"]} pages written in the last epoch, pause {status["pause_us"]["p50"] / 1000:.0f} ms')
    lab.ask('dirty 0 0', 60)


def cut_and_go_on(lab, incr, replies, limit=120):
    """The power of alpha goes: one TCP connection, each acknowledged request there once. The client's verdict."""
    lab.alpha.cut()
    at = lab.alpha.killed_at
    wait_for('a reply after the cut', lambda: incr.reply_after(at + 0.2) or incr.broken(), limit)
    incr.wait_replies(replies, limit)
    v = incr.verdict()
    incr.stop()
    check(v['survived'], "the client's connection broke")
    check(not v['lost'] and not v['repeated'], f'{v["lost"]} lost, {v["repeated"]} repeated')
    log = lab.beta.run('cat /ft/log/ftd.log; xl list')
    check('vm1--replica' not in log.splitlines()[-1] and log.splitlines()[-1].startswith('vm1 '), f'xl list says {log.splitlines()[-1]}')
    ready = [line for line in log.splitlines() if 'after the command' in line][-1]
    print(f'# client gap {incr.reply_after(at + 0.2) - at:.2f} s with 5 s of silence awaited; {ready.split("ftd: ")[-1]}; {v["acked"]} acknowledged')
    return v


def who_has(address):
    """An ARP question to the guest, asked past this host's own cache."""
    own = bytes.fromhex(link_address('lan').replace(':', ''))
    frame = b'\xff' * 6 + own + bytes.fromhex('0806' '0001' '0800' '06' '04' '0001') + own + socket.inet_aton('10.77.0.100') + \
        bytes(6) + socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind(('lan', 0))
        s.send(frame)


def link_address(name):
    return xenlab.sh('ip', '-o', 'link', 'show', name).split('link/ether ')[1].split()[0]


def backup_child(lab):
    """The pid of the process that takes in epochs."""
    return lab.beta.run('ps | grep "[f]td --guest"').split()[0]


def hold_back_and_release(lab, limit=120):
    """IPv4, IPv6, ARP, VLAN and an ethertype that nobody knows, with the backup's acknowledgements withheld."""
    check(lab.ask('stat', limit // 2) is not None, 'the guest does not answer')
    watch = FrameWatch(lab, lab.client, xenlab.GUEST_MAC, ['alpha1'])
    child = backup_child(lab)
    lab.beta.run(f'kill -STOP {child}')
    time.sleep(1.5)                     # acknowledgements that were on their way have come
    begin = now()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b'frames 10 50', (xenlab.GUEST_IP4, xenlab.CONTROL_PORT))
    who_has(xenlab.GUEST_IP4)
    time.sleep(2.5)
    leaked = watch.frames(since=begin)
    lab.beta.run(f'kill -CONT {child}')
    check(not leaked, f'{len(leaked)} frames were seen while nothing was acknowledged: {leaked[:3]}')
    kinds = ('0800', '86dd', '0806', '88b5')
    wait_for('held frames of each kind', lambda: {f[2] for f in watch.frames(since=begin)} >= set(kinds), limit, 0.2)
    print(f'# nothing for 2.5 s, then {len(watch.frames(since=begin))} frames of the kinds {sorted({f[2] for f in watch.frames(since=begin)})}')
    watch.stop()


def begin_migration(lab):
    """`xl migrate` of vm1 to beta, live; returns its job."""
    lab.beta.begin("socat TCP-LISTEN:7000,reuseaddr EXEC:'xl migrate-receive',nofork >/ft/log/receive.log 2>&1")
    time.sleep(2)
    return lab.alpha.begin("xl migrate -s '' vm1 'socat -b 262144 - TCP:10.78.0.2:7000' >/ft/log/migrate.log 2>&1")


Listed = collections.namedtuple('Listed', 'name domid memory vcpus state seconds')


def listed(host, name='vm1'):
    """A line of xl list. No domain has such a name: an error."""
    row = host.run(f'xl list {name}').splitlines()[-1].split()
    return Listed(row[0], int(row[1]), int(row[2]), int(row[3]), row[4], float(row[5]))


def said(lab, text):
    return int(lab.alpha.call(f'grep -c "{text}" /ft/log/protect.log').stdout)


def run(shared):
    if os.geteuid():
        print('1..0 # SKIP hosts are made of namespaces: run as root')
        sys.exit(77)
    if subprocess.run(['pkg-config', '--exists', 'xencontrol'], check=False).returncode:
        print('1..0 # SKIP ft was built without Xen: install libxen-dev')
        sys.exit(77)
    main(shared)
