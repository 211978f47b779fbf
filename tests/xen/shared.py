# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests on Xen hosts have in common: a lab that those of a file share, and a power cut."""
import os
import subprocess
import sys

import xenlab
from lab import check, main
from world import wait_for


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


def compare_epochs(lab, epochs, limit=120):
    """The replica's memory is compared with the suspended guest's, all of it, in so many epochs of a guest that writes."""
    check(lab.ask('dirty 16 300', limit // 2) is not None, 'the guest does not answer')
    first = lab.status()['epoch']
    for n in range(epochs):
        done = lab.alpha.call('ft-ctl verify vm1', limit)
        check(done.returncode == 0, f'comparison {n + 1}: {done.stdout.strip()}')
    status = lab.status()
    check(status['epoch'] >= first + epochs, f'only {status["epoch"] - first} epochs')
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


def run(shared):
    if os.geteuid():
        print('1..0 # SKIP hosts are made of namespaces: run as root')
        sys.exit(77)
    if subprocess.run(['pkg-config', '--exists', 'xencontrol'], check=False).returncode:
        print('1..0 # SKIP ft was built without Xen: install libxen-dev')
        sys.exit(77)
    main(shared)
