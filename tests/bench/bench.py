#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""bench.py - what protection costs, as ratios within one run.

Prints a table and leaves build/bench/report.json. QUICK=1 measures the main figures in under a minute: no
disks, no takeover, no codec.
A row with a bound says whether it was kept; machines are shared, so a broken bound is reported, not fatal
(BENCH_STRICT=1 makes it fatal).
"""
import json
import os
import re
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'hosts'))
import disks  # noqa: E402
import world  # noqa: E402
from world import Failure, Guest, World, now, percentile, wait_for  # noqa: E402

QUICK = bool(os.environ.get('QUICK'))
OUT = os.path.join(world.BUILD, 'bench')
PAGE_MB = 1 / 256


class Report:
    def __init__(self):
        self.rows = []

    def row(self, what, value, unit, bound=None, at_most=True):
        kept = None if bound is None else (value <= bound if at_most else value >= bound)
        self.rows.append({'what': what, 'value': value, 'unit': unit, 'bound': bound,
                          'sense': None if bound is None else '<=' if at_most else '>=', 'kept': kept})
        limit = '' if bound is None else f'{"<=" if at_most else ">="} {bound:.4g}  {"ok" if kept else "MISSED"}'
        print(f'  {what:<62} {value:>10.4g} {unit:<10} {limit}', flush=True)
        return value

    def save(self):
        os.makedirs(OUT, exist_ok=True)
        with open(os.path.join(OUT, 'report.json'), 'w', encoding='utf-8') as f:
            json.dump({'quick': QUICK, 'rows': self.rows}, f, indent=1)
            f.write('\n')

    def missed(self):
        return [r['what'] for r in self.rows if r['kept'] is False]


def section(title):
    print(f'\n{title}', flush=True)


def memcpy_page_us():
    """Microseconds to copy a page, cold on both sides, as capture does."""
    size = 64 << 20
    source, target = bytearray(os.urandom(1 << 20) * 64), bytearray(size)
    view = memoryview(source)
    best = min(_timed(lambda: target.__setitem__(slice(None), view)) for _ in range(5))
    return best * 1e6 / (size / 4096)


def _timed(call):
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Protected:
    """ft-protect with options for the length of a `with`; unprotected in order afterwards."""

    def __init__(self, w, options=''):
        self.w, self.options = w, options

    def __enter__(self):
        w = self.w
        self.process = w.alpha.spawn(f'ft-protect {self.options} vm1 beta', None, 'alpha ft-protect')
        wait_for('vm1 to be protected', lambda: self.process.logged('-> PROTECTED') or not self.process.running(), 120)
        if not self.process.running():
            raise Failure(f'ft-protect ended: {self.process.tail()}')
        return self

    def status(self):
        return self.w.alpha.status('vm1')

    def __exit__(self, *exc):
        if self.process.running():
            self.w.alpha.run('ft-ctl unprotect vm1', limit=60)
            self.process.wait(30)


def replies(w, seconds):
    """Reply times in ms of a fresh client."""
    incr = w.incr('vm1')
    time.sleep(seconds)
    waits = [1000 * (r[1] - r[0]) for r in incr.replies()[5:]]
    incr.stop()
    if not waits:
        raise Failure('the client got no replies')
    return waits


def floor_us(w, cycles):
    attach = json.loads(world.read_file(w.alpha.path('/run/ft/guests/vm1/attach')))
    out = subprocess.run([world.tool('qmp_floor'), w.alpha.path(attach['qmp']), str(cycles), '10', '/run/ft/floor'],
                         capture_output=True, text=True, timeout=120, check=True)
    return [int(us) for us in out.stdout.split()]


def bench_pause(w, report):
    section('Pause (floor: stop, device state, cont and nothing else; same guest, same client, interleaved)')
    rounds, cycles, seconds = (2, 100, 4) if QUICK else (4, 60, 8)
    floor, pauses, p99, dirty, waits = [], [], [], [], []
    for _ in range(rounds):
        incr = w.incr('vm1')
        floor += floor_us(w, cycles)
        incr.stop()
        with Protected(w) as p:
            waits += replies(w, seconds)
            s = p.status()
            pauses.append(s['pause_us']['p50'])
            p99.append(s['pause_us']['p99'])
            dirty.append(s['bytes_dirty'] / 4096 / s['epoch'])
    copy = memcpy_page_us() * percentile(dirty, 50)
    floor_p50, pause = percentile(floor, 50), percentile(pauses, 50)
    report.row(f'floor p50 ({len(floor)} cycles)', floor_p50 / 1000, 'ms')
    report.row('floor p99', percentile(floor, 99) / 1000, 'ms')
    report.row('pause p50', pause / 1000, 'ms', (1.5 * floor_p50 + copy) / 1000)
    report.row('pause p99', percentile(p99, 50) / 1000, 'ms')
    report.row('pause p50 / floor p50', pause / floor_p50, 'x')
    return pause / 1000, waits


def bench_replies(w, report, pause_ms, waits):
    section('Replies to one synchronous Redis client')
    seconds = 3 if QUICK else 8
    plain = replies(w, seconds)
    report.row('unprotected: reply p50', percentile(plain, 50), 'ms')
    report.row('default policy: reply p50', percentile(waits, 50), 'ms', 2 * pause_ms + 0.5)
    report.row('default policy: reply p99', percentile(waits, 99), 'ms')
    for interval in () if QUICK else (25, 200):
        with Protected(w, f'--interval {interval}'):
            fixed = replies(w, seconds)
        report.row(f'fixed {interval} ms: reply p50', percentile(fixed, 50), 'ms')


def burnt(w, seconds):
    def rounds():
        return int(re.search(r'burnt=(\d+)', wait_for('the guest', lambda: w.ask('vm1', 'stat', 2), 30)).group(1))
    first, began = rounds(), now()
    time.sleep(seconds)
    last, ended = rounds(), now()
    return (last - first) / (ended - began)


def bench_cpu(w, report):
    section('A CPU-bound guest that also answers a client')
    seconds = 4 if QUICK else 10
    wait_for('the guest', lambda: w.ask('vm1', 'burn 2', 2), 30)
    incr = w.incr('vm1')
    plain = burnt(w, seconds)
    with Protected(w):
        protected = burnt(w, seconds)
    plain = (plain + burnt(w, seconds)) / 2
    incr.stop()
    wait_for('the guest', lambda: w.ask('vm1', 'burn 0', 2), 30)
    report.row('speed, protected / unprotected', protected / plain, 'x', 0.65, at_most=False)


def bench_rate(w, report):
    section('Sustained epochs (checkpoint interval 1 ms)')
    with Protected(w, '--interval 1') as p:
        for mb, rate in ((0, 0), (8, 8000), (32, 60000), (96, 1000000)):
            wait_for('the guest', lambda m=mb, r=rate: w.ask('vm1', f'dirty {m} {r}', 2), 30)
            time.sleep(2)
            a, began = p.status(), now()
            time.sleep(6)
            b, ended = p.status(), now()
            epochs = b['acked_epoch'] - a['acked_epoch']
            pages = (b['bytes_dirty'] - a['bytes_dirty']) / 4096 / max(1, epochs)
            report.row(f'epochs/s at {pages:.0f} dirty pages an epoch', epochs / (ended - began), '1/s')
            if mb == 32:
                sent = b['bytes_sent'] - a['bytes_sent']
                report.row('  dirty bytes / bytes on the wire', (b['bytes_dirty'] - a['bytes_dirty']) / max(1, sent), 'x')
        w.ask('vm1', 'dirty 0 0', 5)


def rss_mb(w, host, pid):
    """Anonymous memory: the guest's RAM file is mapped shared and belongs to the guest."""
    text = world.read_file(f'/proc/{pid}/status')
    return int(re.search(r'RssAnon:\s+(\d+)', text).group(1)) / 1024


def bench_memory(w, report):
    section('Memory')
    with Protected(w) as p:
        wait_for('the guest', lambda: w.ask('vm1', 'dirty 160 2000000', 2), 30)
        time.sleep(5)
        shadow, staging = 256, 128
        protect = rss_mb(w, w.alpha, p.process.pid())
        child = w.beta.pids('ftd')[1]
        report.row('ft-protect, anonymous memory, all of RAM dirty', protect, 'MB', shadow + staging + 64)
        report.row("ftd's child, anonymous memory (the image is the RAM file)", rss_mb(w, w.beta, child), 'MB', 128 + 64)
        w.ask('vm1', 'dirty 0 0', 5)
        if QUICK:
            return
        wait_for('the guest', lambda: w.ask('vm1', 'dirty 4 500', 2), 30)
        incr = w.incr('vm1')
        first = p.status()['epoch']
        time.sleep(5)
        before = rss_mb(w, w.alpha, p.process.pid()), rss_mb(w, w.beta, child)
        wait_for('10,000 epochs', lambda: p.status()['epoch'] > first + 10000, 900, every=1)
        after = rss_mb(w, w.alpha, p.process.pid()), rss_mb(w, w.beta, child)
        incr.stop()
        report.row('ft-protect, growth over 10,000 epochs', after[0] - before[0], 'MB', 1)
        report.row("ftd's child, growth over 10,000 epochs", after[1] - before[1], 'MB', 1)


def takeover_ms(memory_mb, report):
    """Command to running, as beta's log has it; and the seconds of the first full copy."""
    with World({'vm1': Guest('vm1', 0x0a, memory_mb)}) as w:
        ftd = w.start_ftd(w.beta)
        w.start_guest(w.alpha, 'vm1')
        process = w.protect(w.alpha, 'vm1', w.beta)
        sync = [t for t, line in process.lines if '-> SYNCING' in line or '-> DRILLING' in line]
        time.sleep(2)
        w.power_cut(w.alpha)
        w.beta.wait_state('vm1', 'RUNNING', 60)
        line = next(text for _, text in ftd.lines if 'after the command' in text)
        return float(re.search(r'([\d.]+) ms after the command', line).group(1)), sync[1] - sync[0]


def bench_takeover(report):
    section('Takeover and first full copy')
    small, large = [], []
    for _ in range(3):
        small.append(takeover_ms(256, report)[0])
        large.append(takeover_ms(2048, report)[0])
    report.row('takeover of 256 MB, command to running', percentile(small, 50), 'ms')
    report.row('takeover of 2 GB', percentile(large, 50), 'ms')
    report.row('2 GB / 256 MB', percentile(large, 50) / percentile(small, 50), 'x', 1.3)
    sync = takeover_ms(1024, report)[1]
    report.row('first full copy of 1 GB', sync, 's')
    report.row('  ... / memcpy of 1 GB', sync / (memcpy_page_us() * 262144 / 1e6), 'x')


def bench_programs(report, wanted):
    """C programs that print JSON lines of their own."""
    for name, arguments in wanted:
        program = os.path.join(os.environ['FT_OBJ'], 'bench', name)
        section(f'{name} {" ".join(arguments)}')
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=900, check=False)
        for line in done.stdout.splitlines():
            if line.startswith('{'):
                report.rows.append(json.loads(line))
            print('  ' + line, flush=True)
        if done.returncode:
            raise Failure(f'{name}: {done.stderr.strip()}')


def main():
    if os.geteuid():
        sys.exit('bench: hosts are made of namespaces; run it as root')
    report = Report()
    began = now()
    try:
        with World() as w:
            w.start_ftd(w.beta)
            w.start_guest(w.alpha, 'vm1')
            pause_ms, waits = bench_pause(w, report)
            bench_replies(w, report, pause_ms, waits)
            bench_cpu(w, report)
            if not QUICK:
                bench_rate(w, report)
            bench_memory(w, report)
        if not QUICK:
            disks.bench_disks(report, Protected, section)
            bench_takeover(report)
            bench_programs(report, [('bench_tracker', []), ('bench_codec', []), ('bench_link', [])])
    except Failure as e:
        report.save()
        sys.exit(f'bench: {e}')
    report.save()
    print(f'\n{now() - began:.0f} s; {os.path.join(OUT, "report.json")}')
    if report.missed():
        print('missed: ' + '; '.join(report.missed()))
        sys.exit(1 if os.environ.get('BENCH_STRICT') else 0)


if __name__ == '__main__':
    main()
