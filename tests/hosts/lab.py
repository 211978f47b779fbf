# SPDX-License-Identifier: GPL-3.0-or-later
"""Host tests: the TAP runner, and a protected guest that the tests of a file share.

    @test(limit=60)
    def a_promise_in_words(lab):
        lab.protected()
        ...

A test that fails takes the shared world with it: the next one starts from nothing.
"""
import contextlib
import glob
import os
import re
import shutil
import signal
import sys
import traceback

import world
from world import Failure, World, now, wait_for

TESTS = []


class Skip(Exception):
    """This machine cannot run the test; says why."""


class TimeLimit(Exception):
    pass


def test(limit=120):
    def register(function):
        TESTS.append((function, limit))
        return function
    return register


def check(condition, what):
    if not condition:
        raise Failure(what)


class Lab:
    """vm1 runs on `primary` and is protected by `backup`; alpha and beta at first."""

    def __init__(self, guests=None, policy=''):
        self.guests, self.policy = guests, policy
        self.w = None

    # -- the shared world --

    def open(self):
        """A world with ftd on both hosts; nothing runs yet."""
        if not self.w:
            self.w = World(self.guests, self.policy).__enter__()
            self.primary, self.backup = self.w.alpha, self.w.beta
            self.ftd = {host.name: self.w.start_ftd(host) for host in (self.w.alpha, self.w.beta)}
            self.ft_protect = self.incr = None
        return self.w

    def close(self):
        if self.w:
            self.w.close()
        self.w = None

    def running(self):
        """vm1 runs, protected or not."""
        w = self.open()
        if not w.ask('vm1', 'stat', 1):
            w.start_guest(self.primary, 'vm1')
        return w

    def protected(self):
        """vm1 is PROTECTED, writes memory, and a client counts."""
        w = self.running()
        if not self.primary.init:
            self.reverse()
        elif not self.ft_protect or not self.ft_protect.running():
            self.ft_protect = w.protect(self.primary, 'vm1', self.backup)
        else:
            self.wait_state('PROTECTED')
        wait_for('the guest to write memory', lambda: w.ask('vm1', 'dirty 16 1000', 2), 30)
        if not self.incr or not self.incr.process.running():
            self.incr = w.incr('vm1')
        return w

    def wait_state(self, state, host=None, limit=60):
        (host or self.primary).wait_state('vm1', state, limit)

    # -- what tests do --

    def cut_power_of_primary(self):
        at = self.w.power_cut(self.primary)
        self.wait_state('RUNNING', self.backup, 30)
        return at

    def reverse(self):
        """The dead host comes back with its disks, and the survivor is protected by it."""
        self.w.power_on(self.primary)
        self.ftd[self.primary.name] = self.w.start_ftd(self.primary)
        self.primary, self.backup = self.backup, self.primary
        self.ft_protect = self.w.protect(self.primary, 'vm1', self.backup)

    def child(self, host=None):
        """ftd's child for vm1: the second of the two."""
        host = host or self.backup
        return wait_for("ftd's child", lambda: host.pids('ftd --guest'), 20)[0]

    def check_client(self, gap=None, since=None):
        """Nothing that the client was told is lost or was done twice, and its connection stands."""
        v = self.incr.verdict(since)
        check(v['survived'], f'the client\'s connection broke: {self.incr.records("B")}')
        check(not v['lost'], f'{v["lost"]} acknowledged INCR are lost')
        check(not v['repeated'], f'{v["repeated"]} INCR were done twice')
        check(gap is None or v['gap'] < gap, f'the client waited {v["gap"]:.2f} s')
        return v

    def check_goes_on(self, limit=30):
        self.incr.wait_replies(50, limit)
        return self.check_client()

    def explain(self, name):
        """What the programs said, for a failed test; all of it goes into build/failed/NAME."""
        if not self.w:
            return []
        directory = os.path.join(world.BUILD, 'failed', name)
        shutil.rmtree(directory, ignore_errors=True)
        self.w.save_logs(directory)
        lines = [f'logs: {directory}']
        for process in self.w.processes:
            if process.name.split()[-1] in ('ftd', 'ft-protect'):
                lines += [f'{process.name}: {t:.3f} {line}' for t, line in process.lines[-15:]]
        for console in sorted(glob.glob(os.path.join(directory, '*-console.txt'))):
            lines += [f'{os.path.basename(console)[:-12]}: {line}' for line in world.read_file(console).splitlines()[-5:]]
        for registers in sorted(glob.glob(os.path.join(directory, '*-registers.txt'))):
            text = world.read_file(registers)
            lines += [f'{os.path.basename(registers)[:-14]}: {text.splitlines()[0]} {" ".join(re.findall("RIP=[0-9a-f]+", text))}']
        return lines


def _on_alarm(signum, frame):
    raise TimeLimit


def _interrupted(signum, frame):
    raise KeyboardInterrupt


def _run_one(lab, function, limit):
    """None, or why it failed."""
    signal.alarm(limit)
    try:
        function(lab)
        return None
    except TimeLimit:
        return [f'time limit of {limit} s'] + traceback.format_exc().splitlines()[-6:]
    except Failure as e:
        return [str(e)]
    except Skip:
        raise
    except Exception:   # pylint: disable=broad-except
        return traceback.format_exc().splitlines()
    finally:
        signal.alarm(0)


def main(lab=None):
    """Run the file's tests, or those whose name contains the first argument."""
    if os.geteuid():
        print('1..0 # SKIP hosts are made of namespaces: run as root')
        sys.exit(77)
    for sig in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, _interrupted)
    signal.signal(signal.SIGALRM, _on_alarm)
    lab = lab or Lab()
    wanted = [(f, limit) for f, limit in TESTS if len(sys.argv) < 2 or sys.argv[1] in f.__name__]
    failed = 0
    try:
        for n, (function, limit) in enumerate(wanted, 1):
            began, skipped, why = now(), None, None
            try:
                why = _run_one(lab, function, limit)
            except Skip as e:
                skipped = str(e)
            if why:
                failed += 1
                for line in lab.explain(function.__name__) + why:     # why it failed next to the verdict
                    print('# ' + line)
                lab.close()
            print(f'{"not ok" if why else "ok"} {n} {function.__name__}' + (f' # SKIP {skipped}' if skipped else ''))
            print(f'# {now() - began:.1f} s', flush=True)
        print(f'1..{len(wanted)}')
    except KeyboardInterrupt:
        print('Bail out! interrupted')
        failed += 1
    finally:
        lab.close()
    sys.exit(1 if failed else 0)


@contextlib.contextmanager
def undone(host, do, undo):
    """What the one command changes on the host and the other puts back."""
    host.run(do)
    try:
        yield
    finally:
        host.run(undo)


def soak(name, default):
    """How often: `default` in make check, what the environment asks for in make soak."""
    return int(os.environ.get(name, default))


__all__ = ['Lab', 'Skip', 'check', 'main', 'soak', 'test', 'world']
