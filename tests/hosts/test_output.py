#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""P1: nothing leaves the primary before the backup has acknowledged it; P5: and nothing leaks when rules vanish.

Acknowledgements are withheld by stopping the backup's process (SIGSTOP), which also ends the right to speak,
or by losing everything that the backup sends. Frames are looked for at the client, at the switch and on the host itself.
"""
import os
import signal
import time

from lab import Lab, check, main, test
from world import now, wait_for

KINDS = ('v4', 'v6', 'vlan', '88b5')
# What the guest asks for while it is mute must not count as the client's trouble: no takeover in these tests.
FRAMES, EVERY_MS = 150, 50


class Watchers:
    """Everywhere a frame of the guest could be seen."""

    def __init__(self, lab):
        w, host = lab.w, lab.primary
        self.client = w.watch(w.client, 'vm1', 'eth0')
        self.all = [self.client, w.watch(w.switch, 'vm1', f'p{host.name}'), w.watch(host, 'vm1', 'br0')]

    def numbered(self):
        return [(f.process.name, kind, n) for f in self.all for kind in KINDS for n in f.numbered(kind)]

    def since(self, at):
        return [frame for f in self.all for frame in f.frames(since=at)]

    def stop(self):
        for f in self.all:
            f.stop()


def send_frames(lab, seconds):
    lab.w.tell_guest('vm1', f'frames {int(seconds * 1000 / EVERY_MS)} {EVERY_MS} 0')
    return int(seconds * 1000 / EVERY_MS)


def check_all_in_order(watchers, count):
    """What was held has come, all of it, in the order in which the guest sent it."""
    for kind in ('v4', 'v6'):
        wait_for(f'the held {kind} frames', lambda k=kind: len(watchers.client.numbered(k)) >= count, 60)
        numbers = watchers.client.numbered(kind)
        check(numbers == list(range(count)), f'{kind} frames came as {numbers}')
    for kind in ('vlan', '88b5'):
        numbers = watchers.client.numbered(kind)
        check(numbers == sorted(set(numbers)), f'{kind} frames came as {numbers}')


@test(limit=180)
def nothing_is_seen_while_acknowledgements_are_withheld(lab):
    lab.protected()
    watchers, child = Watchers(lab), lab.child()
    os.kill(child, signal.SIGSTOP)
    try:
        stopped = now()
        count = send_frames(lab, 8)
        time.sleep(10)
        seen = watchers.numbered()
        check(not seen, f'{len(seen)} frames left the host before their epoch was acknowledged: {seen[:5]}')
        # ARP may pass while the right to speak lasts (240 ms, and what was under way), not later.
        late = watchers.since(stopped + 1)
        check(not late, f'{len(late)} frames of a mute guest: {late[:5]}')
    finally:
        os.kill(child, signal.SIGCONT)
    check_all_in_order(watchers, count)
    watchers.stop()
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


@test(limit=180)
def a_backup_that_hears_but_is_not_heard_keeps_the_guest_mute(lab):
    w = lab.protected()
    watchers = Watchers(lab)
    w.cut_replication(one_way_from=lab.backup)
    cut = now()
    send_frames(lab, 2)
    time.sleep(4)
    late = watchers.since(cut + 1)
    w.heal()
    check(not late, f'{len(late)} frames of a mute guest: {late[:5]}')
    watchers.stop()
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


def flush_rules(lab, command):
    """Rules vanish while nothing may be released: held frames must not get out by it, nor later ones."""
    lab.protected()
    watchers, child = Watchers(lab), lab.child()
    os.kill(child, signal.SIGSTOP)
    try:
        stopped = now()
        send_frames(lab, 4)
        time.sleep(1.5)
        lab.primary.run(command)
        time.sleep(4)
        seen, late = watchers.numbered(), watchers.since(stopped + 1)
        check(not seen and not late, f'"{command}" let frames out: {(seen + late)[:5]}')
    finally:
        os.kill(child, signal.SIGCONT)
    watchers.stop()


@test(limit=180)
def nft_flush_ruleset_shuts_the_output(lab):
    flush_rules(lab, 'nft flush ruleset')
    lab.close()


@test(limit=180)
def iptables_flush_shuts_the_output(lab):
    flush_rules(lab, 'iptables -F; iptables -t raw -F; ip6tables -F; ip6tables -t raw -F')
    lab.close()


@test(limit=180)
def a_flush_under_way_loses_nothing(lab):
    """Rules vanish while all is well: the client sees a pause at most, never a wrong answer."""
    lab.protected()
    lab.primary.run('nft flush ruleset')
    time.sleep(2)
    lab.check_client()
    lab.close()


main(Lab())
