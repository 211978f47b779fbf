#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""ft against `xl remus`: the same two hosts, the same guest, the same measuring program, taking turns.

Lines of JSON, then a table. RUNS=5 turns of each; SECONDS=20 of measuring each; XEN_WRITES=1000 pages a second.
What measures is neither's own: a program in dom0 that sees the domain suspended, and dom0's counter of sent bytes.
"""
import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import xenlab                                                           # noqa: E402  pylint: disable=C0413
from xenlab import Failure, Lab, now, wait_for                          # noqa: E402  pylint: disable=C0413
from world import FrameWatch                                            # noqa: E402  pylint: disable=C0413

RUNS = int(os.environ.get('RUNS', 5))
SECONDS = int(os.environ.get('SECONDS', 20))
WRITES = int(os.environ.get('XEN_WRITES', 1000))
INTERVAL_MS = 500
FASTEST_MS = 5
REMUS_RECEIVE = ('socat TCP-LISTEN:7000,reuseaddr,keepalive,keepidle=2,keepintvl=1,keepcnt=3 '
                 'EXEC:"xl migrate-receive -r -e",nofork >/ft/log/receive.log 2>&1 &')
REMUS_SEND = "xl -vvv remus -F -n -d -e -i {} -s '' vm1 'socat -b 262144 - TCP:10.78.0.2:7000' >/ft/log/remus.log 2>&1"


def say(**what):
    print(json.dumps(what), flush=True)


class Ft:
    name = 'ft'

    def __init__(self, lab):
        self.lab = lab

    def start(self, interval_ms):
        for host in self.lab.hosts:
            host.run(f"sed -i '/interval-fixed-ms/d; s/^silence-ms/interval-fixed-ms = {interval_ms}\\nsilence-ms/' /etc/ft/ft.conf")
        self.lab.start_ftd(self.lab.beta)
        self.job = self.lab.protect()

    def stop(self):
        self.lab.alpha.run('ft-ctl unprotect vm1', 120)
        wait_for('ft-protect to end', lambda: self.lab.alpha.status(self.job) is not None, 60)
        self.lab.beta.run('kill $(pidof ftd)')
        wait_for('the replica to go', lambda: 'vm1' not in self.lab.beta.run('xl list'), 120, 1)


class Remus:
    name = 'xl remus'

    def __init__(self, lab):
        self.lab = lab

    def start(self, interval_ms):
        self.lab.beta.begin(REMUS_RECEIVE)
        time.sleep(1)
        self.job = self.lab.alpha.begin(REMUS_SEND.format(interval_ms))
        sent = lambda: int(self.lab.alpha.call('grep -c "guest has suspended" /ft/log/remus.log').stdout)       # noqa: E731
        wait_for('checkpoints', lambda: sent() >= 3 or self.lab.alpha.status(self.job) is not None, 300, 1)
        if self.lab.alpha.status(self.job) is not None:
            raise Failure('xl remus ended: ' + self.lab.alpha.run('tail -5 /ft/log/remus.log'))

    def stop(self):
        """The receiver first, and by force: one that sees the stream end starts the guest."""
        beta = self.lab.beta
        beta.call('kill -STOP $(pidof xl libxl-save-helper socat); kill -9 $(pidof xl libxl-save-helper socat)')
        wait_for('xl remus to end', lambda: self.lab.alpha.status(self.job) is not None, 120, 0.5)
        beta.run('for d in $(xl list | sed -n "s/^vm1[^ ]* *\\([0-9]*\\) .*/\\1/p"); do xl destroy $d; done')
        self.lab.alpha.run('xl list vm1')


def measure(lab, side, load, interval_ms=INTERVAL_MS):
    domid = lab.alpha.run('xl domid vm1').strip()
    side.start(interval_ms)
    sent = lambda: int(lab.alpha.run('cat /sys/class/net/eth0/statistics/tx_bytes'))    # noqa: E731
    before, begin = sent(), now()
    out = lab.alpha.run(f'suspend_watch {domid} {SECONDS}', SECONDS + 120)
    seconds, wire = now() - begin, sent() - before
    side.stop()
    rows = [[int(n) for n in line.split()] for line in out.splitlines()]
    asked = [r for r in rows if 0 < r[0] <= r[1]]
    result = {'side': side.name, 'load': load, 'interval_ms': interval_ms, 'checkpoints': len(rows), 'rate': len(rows) / seconds,
              'wire_bytes_per_s': wire / seconds, 'wire_bytes_per_checkpoint': wire / max(1, len(rows)),
              'handshake_ms': statistics.median([(s - a) / 1e6 for a, s, _ in asked]) if asked else None,
              'suspended_ms': statistics.median([(r - s) / 1e6 for _, s, r in rows]) if rows else None,
              'whole_ms': statistics.median([(r - a) / 1e6 for a, _, r in asked]) if asked else None}
    say(**result)
    return result


def takeover(make, silence_ms):
    """From the power cut of A to the first frame of the guest at B."""
    with Lab() as lab:
        side = make(lab)
        if silence_ms:
            for host in lab.hosts:
                host.run(f"sed -i 's/^silence-ms.*/silence-ms = {silence_ms}/' /etc/ft/ft.conf")
        side.start(INTERVAL_MS)
        time.sleep(5)
        watch = FrameWatch(lab, lab.client, xenlab.GUEST_MAC, ['beta1'])
        lab.alpha.cut()
        first = wait_for('the guest on B', lambda: watch.frames(since=lab.alpha.killed_at), 180)[0]
        total = first[0] - lab.alpha.killed_at
        say(side=side.name, takeover_s=total, detection_s=(silence_ms or 5000) / 1e3, resume_s=total - (silence_ms or 5000) / 1e3)
        return total


def table(results, takeovers):
    def median(side, load, key, interval):
        values = [r[key] for r in results if (r['side'], r['load'], r['interval_ms']) == (side, load, interval) and r[key] is not None]
        return statistics.median(values) if values else float('nan')

    print(f'{"medians of runs":44} {"ft":>12} {"xl remus":>12} {"ratio":>7} {"target":>7}')
    rows = [('handshake, ms', 'handshake_ms', INTERVAL_MS, ''), ('suspended: scan, copy, resume, ms', 'suspended_ms', INTERVAL_MS, '0.4'),
            ('whole, ms', 'whole_ms', INTERVAL_MS, '0.9'), ('bytes on the wire a checkpoint', 'wire_bytes_per_checkpoint', INTERVAL_MS, '0.5'),
            ('highest rate, checkpoints a second', 'rate', FASTEST_MS, '1.3')]
    for load in ('idle', f'{WRITES} pages/s'):
        for label, key, interval, target in rows:
            ours, theirs = median('ft', load, key, interval), median('xl remus', load, key, interval)
            print(f'{load + ": " + label:44} {ours:12.1f} {theirs:12.1f} {ours / theirs:7.2f} {target:>7}')
    for label, ours, theirs in takeovers:
        print(f'{label:44} {ours:12.2f} {theirs:12.2f} {ours / theirs:7.2f}')


def main():
    if os.geteuid() or subprocess.run(['pkg-config', '--exists', 'xencontrol'], check=False).returncode:
        sys.exit('bench.py: needs root and an ft that was built with libxen-dev')
    results, takeovers = [], []
    with Lab() as lab:
        sides = [Ft(lab), Remus(lab)]
        for load, command in (('idle', 'dirty 0 0'), (f'{WRITES} pages/s', f'dirty 16 {WRITES}')):
            if lab.ask(command, 60) is None:
                raise Failure('the guest does not answer')
            for _ in range(RUNS):
                results += [measure(lab, side, load) for side in sides]
            results += [measure(lab, side, load, FASTEST_MS) for side in sides]
    if os.environ.get('XEN_TAKEOVER', '1') != '0':
        takeovers.append(('kill to first frame, 5 s of detection, s', takeover(Ft, 5000), takeover(Remus, 0)))
    table(results, takeovers)


if __name__ == '__main__':
    main()
