#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""demo.py - protect a real guest, cut the power of its host, and let the client's log be the judge.

Prints a timeline, leaves build/demo/report.json (and the logs of all that ran), exits with 1 when the
client's connection broke or an INCR that it was told of was lost or done twice.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import world  # noqa: E402
from world import Failure, Guest, World, now, percentile, random_wait, wait_for  # noqa: E402

OUT = os.path.join(world.BUILD, 'demo')
LIMIT = 420             # seconds; nothing here may hang
GUEST = Guest('vm1', 0x0a, disk_mb=256)
DIRTY = (32, 2000)      # the background program: MB, pages a second
FLOOR_CYCLES, FLOOR_GAP_MS = 100, 20
PROTECTED_S = (10, 15)  # the cut comes at a random instant of this
AFTERWARDS_S = 5

start = now()


def say(who, what, at=None):
    print(f'[{(at or now()) - start:7.2f} s] {who:<7} {what}', flush=True)


def show(name, line):
    """Lines of the programs themselves; a status line that overwrites itself is for terminals."""
    if not re.match(r'\s*\S*epochs?/s', line):
        say(name.split()[0], f'  | {line}')


class Demo:
    def __init__(self, w):
        self.w, self.report = w, {}

    def tell(self, **figures):
        self.report.update(figures)

    def prepare(self):
        w = self.w
        say('world', 'hosts alpha and beta, a switch, a client: nothing shared but the wire')
        say('beta', '$ ftd')
        self.ftd = w.start_ftd(w.beta, show)
        say('alpha', '$ ft-guest start vm1')
        t = now()
        w.start_guest(w.alpha, 'vm1')
        say('alpha', f'vm1 answers after {now() - t:.1f} s: Linux, 2 vCPUs, {w.guests["vm1"].memory_mb} MB, Redis '
                     f'(appendfsync always) on an ext4 disk of {w.guests["vm1"].disk_mb} MB')
        w.ask('vm1', f'dirty {DIRTY[0]} {DIRTY[1]}', tries=5)
        say('vm1', f'a background program dirties {DIRTY[1]} pages a second in {DIRTY[0]} MB')
        self.incr, self.udp = w.incr('vm1'), w.udp('vm1')
        self.watch = w.watch(w.switch, 'vm1', 'palpha', 'pbeta')
        say('client', f'one TCP connection, INCR as fast as replies come; UDP over IPv6 to {w.guests["vm1"].ip6}')

    def measure_floor(self):
        """What a pause costs without us: stop, device state, cont, under the same load."""
        attach = json.loads(world.read_file(self.w.alpha.path('/run/ft/guests/vm1/attach')))
        qmp = self.w.alpha.path(attach['qmp'])
        done = subprocess.run([world.tool('qmp_floor'), qmp, str(FLOOR_CYCLES), str(FLOOR_GAP_MS), '/run/ft/floor'],
                              capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise Failure(f'qmp_floor: {done.stderr.strip()}')
        floor = percentile([int(us) for us in done.stdout.split()], 50) / 1000
        self.tell(floor_ms_p50=round(floor, 3))
        say('alpha', f'floor: stop + device state + cont alone take {floor:.2f} ms (p50 of {FLOOR_CYCLES})')

    def protect(self):
        w = self.w
        say('alpha', '$ ft-protect vm1 beta')
        t = now()
        self.ft_protect = w.protect(w.alpha, 'vm1', w.beta, show)
        self.protected_at = now()
        status = w.alpha.status('vm1')
        say('alpha', f'vm1 is PROTECTED after {self.protected_at - t:.1f} s '
                     f'({status.get("accel")}, dirty tracker {status.get("tracker")})')

    def guest_time(self):
        """(our clock, the guest's), ns; the guest stamps its answer as soon as it is asked."""
        def ask():
            at = now()
            answer = self.w.ask('vm1', 'time', 2)
            return answer and (at, int(answer.split()[0]) / 1e9)
        return wait_for('the guest to tell the time', ask, 30)

    def run_protected(self):
        length = random_wait(*PROTECTED_S)
        first, end = self.guest_time(), self.protected_at + length
        while end - now() > 2.5:
            self.one_status_line()
            time.sleep(2)
        last = self.guest_time()
        percent = 100 * (last[1] - first[1]) / (last[0] - first[0])
        self.status = self.one_status_line()
        self.tell(guest_clock_percent=round(percent, 2))
        time.sleep(max(0, end - now()))

    def one_status_line(self):
        s = self.w.alpha.status('vm1')
        if not s:
            raise Failure(f'ft-ctl status vm1 --json says nothing; ft-protect: {self.ft_protect.tail(5)}')
        say('alpha', f'epoch {s["epoch"]}, acknowledged {s["acked_epoch"]}, pause p50 {s["pause_us"]["p50"] / 1000:.2f} ms, '
                     f'{s["dirty_pages"]} pages, sent {s["bytes_sent"] / 1e6:.1f} MB of {s["bytes_dirty"] / 1e6:.1f} MB dirty')
        return s

    def cut(self):
        self.cut_at = self.w.power_cut(self.w.alpha)
        say('alpha', f'POWER CUT, {self.cut_at - self.protected_at:.3f} s after protection began', self.cut_at)

    def take_over(self):
        w = self.w
        reply = wait_for("the client's next reply", lambda: self.incr.reply_after(self.cut_at + 0.05) or self.incr.broken(), 30)
        if reply is not True:
            say('client', f'first reply {1000 * (reply - self.cut_at):.0f} ms after the cut', reply)
        w.beta.wait_state('vm1', 'RUNNING', 30)
        time.sleep(AFTERWARDS_S)

    def instants_of_takeover(self):
        """When beta decided, and when the guest ran: from ftd's own lines."""
        after = [(t, line) for t, line in self.ftd.lines if t >= self.cut_at]
        decided = next((t for t, line in after if 'taking over' in line), None)
        runs = next((t for t, line in after if '-> RUNNING' in line), None)
        return decided, runs

    def check_disk(self):
        """The guest ends in order; is its file system on beta in order, too?"""
        self.w.tell_guest('vm1', 'poweroff')
        wait_for('the guest to power off', lambda: 'running' not in self.w.beta.call('ft-guest status vm1').stdout, 60)
        wait_for("its disk's server to end", lambda: not self.w.beta.pids('nbdkit'), 30)
        done = self.w.beta.call(f'fsck.ext4 -fn {GUEST.image}', 60)
        say('beta', f'$ fsck.ext4 -fn {GUEST.image}: {"clean" if not done.returncode else done.stdout[-300:]}')
        self.tell(disk_consistent=not done.returncode)
        return not done.returncode

    def judge(self):
        self.incr.stop()
        self.udp.stop()
        tcp, udp = self.incr.verdict(since=self.cut_at), self.udp.verdict(since=self.cut_at)
        kept = int(self.w.redis('vm1', 'GET demo') or -1)
        while_protected = sorted(r[1] - r[0] for r in self.incr.replies() if self.protected_at <= r[1] <= self.cut_at)
        decided, runs = self.instants_of_takeover()
        s = self.status
        first_frame = next((f[0] for f in self.watch.frames('pbeta')), None)
        self.tell(epochs=s['epoch'], pause_ms_p50=s['pause_us']['p50'] / 1000, pause_ms_p99=s['pause_us']['p99'] / 1000,
                  reply_ms_p50=ms(percentile(while_protected, 50)), reply_ms_p99=ms(percentile(while_protected, 99)),
                  detect_ms=ms(decided - self.cut_at) if decided else None,
                  resume_ms=ms(runs - decided) if decided and runs else None,
                  first_frame_ms=first_frame and ms(first_frame - self.cut_at), client_gap_ms=ms(tcp['gap']), udp_gap_ms=ms(udp['gap']), connection_survived=tcp['survived'],
                  acked=tcp['acked'], lost=tcp['lost'], repeated=tcp['repeated'], udp_answers=udp['answers'],
                  udp_backwards=udp['backwards'], redis_value=kept,
                  bytes_dirty=s['bytes_dirty'], bytes_wire=s['bytes_sent'],
                  disk_bytes_mirrored=s['disks'][0]['mirrored_bytes'], accel=s['accel'], tracker=s['tracker'],
                  protected_s=round(self.cut_at - self.protected_at, 3))
        clean = self.check_disk()
        # Redis may hold one more than was acknowledged: an INCR whose reply was still held.
        return clean and tcp['survived'] and not (tcp['lost'] or tcp['repeated'] or udp['backwards']) and kept >= tcp['last']


def ms(seconds):
    return round(1000 * seconds, 2)


def print_verdict(r, good):
    print()
    print(f'  epochs {r["epochs"]}: pause p50 {r["pause_ms_p50"]:.2f} ms, p99 {r["pause_ms_p99"]:.2f} ms; floor {r["floor_ms_p50"]:.2f} ms')
    print(f'  replies while protected: p50 {r["reply_ms_p50"]:.2f} ms, p99 {r["reply_ms_p99"]:.2f} ms')
    print(f'  takeover: detected after {r["detect_ms"]} ms, guest running {r["resume_ms"]} ms later; '
          f'its first frame {r["first_frame_ms"]} ms after the cut; the client waited {r["client_gap_ms"]:.0f} ms')
    print(f'  wire: {r["bytes_wire"] / 1e6:.1f} MB for {r["bytes_dirty"] / 1e6:.1f} MB of dirty memory; '
          f'guest clock {r["guest_clock_percent"]:.1f} % of real time')
    print(f'  disk: {r["disk_bytes_mirrored"] / 1e6:.1f} MB mirrored; '
          f'its file system on beta is {"clean" if r["disk_consistent"] else "DAMAGED"}')
    print(f'  accelerator {r["accel"]}, dirty tracker {r["tracker"]}')
    print(f'  the client was told of {r["acked"]} INCR: {r["lost"]} lost, {r["repeated"]} repeated, '
          f'connection {"survived" if r["connection_survived"] else "BROKE"}')
    print(f'\nVERDICT: {"nothing was lost" if good else "FAILED"}', flush=True)


def run(w):
    demo = Demo(w)
    try:
        demo.prepare()
        demo.measure_floor()
        demo.protect()
        demo.run_protected()
        demo.cut()
        demo.take_over()
        good = demo.judge()
    finally:
        w.save_logs(OUT)
    with open(os.path.join(OUT, 'report.json'), 'w', encoding='utf-8') as f:
        json.dump(demo.report, f, indent=2)
        f.write('\n')
    print_verdict(demo.report, good)
    return good


def interrupted(signum, frame):
    raise KeyboardInterrupt


def too_long(signum, frame):
    raise Failure(f'the demo takes more than {LIMIT} s')


def main():
    if os.geteuid():
        sys.exit('demo: hosts are made of namespaces; run it as root')
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, interrupted)
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    try:
        with World({'vm1': GUEST}) as w:
            good = run(w)
    except KeyboardInterrupt:
        sys.exit('\ndemo: interrupted; everything it made is gone')
    except Failure as e:
        sys.exit(f'\nVERDICT: FAILED: {e}\n(logs: {OUT})')
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
