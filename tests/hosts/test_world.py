#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The world itself: what the other host tests rely on is true. Its guest is not protected."""
import time

from lab import Lab, check, main, test
from world import judge, now, wait_for


def reaches(host, peer):
    return host.call(f'busybox ping -c1 -W1 {peer.name}').returncode == 0


@test(limit=60)
def hosts_share_nothing_but_the_wire(lab):
    w = lab.open()
    w.alpha.write('/run/mine', 'x')
    w.alpha.write('/dev/shm/mine', 'x')
    w.alpha.write('/etc/ft/mine', 'x')
    w.alpha.write('/var/lib/ft/mine', 'x')
    found = w.beta.call('ls /run/mine /dev/shm/mine /etc/ft/mine /var/lib/ft/mine 2>/dev/null').stdout
    check(not found, f'beta sees what alpha wrote: {found}')
    check(w.alpha.run('hostname').strip() == 'alpha', 'alpha does not know its name')
    check(not w.alpha.pids('ftd') or set(w.alpha.pids('ftd')).isdisjoint(w.beta.pids('ftd')), 'processes are shared')


@test(limit=60)
def the_wire_can_be_cut_each_way_and_delayed(lab):
    w = lab.open()
    check(reaches(w.alpha, w.beta), 'alpha does not reach beta')
    w.cut_replication()
    check(not reaches(w.alpha, w.beta), 'a cut wire carries frames')
    w.heal()
    w.cut_replication(one_way_from=w.beta)
    check(not reaches(w.alpha, w.beta), 'answers pass a wire that is cut one way')
    w.heal()
    w.wire('delay 50000')
    began = now()
    check(reaches(w.alpha, w.beta) and now() - began > 0.1, 'a delayed wire delays nothing')
    w.heal()


@test(limit=10)
def the_judge_sees_what_is_lost_or_done_twice(lab):
    def verdict(*values, broke=()):
        v = judge([(n, n + 0.5, value) for n, value in enumerate(values)], list(broke))
        return v['lost'], v['repeated'], v['survived']
    check(verdict(1, 2, 3) == (0, 0, True), 'a good log is not good')
    check(verdict(1, 2, 3, 3, 4) == (1, 0, True), 'a forgotten INCR is not seen')
    check(verdict(1, 2, 3, 1) == (3, 0, True), 'three forgotten INCR are not seen')
    check(verdict(1, 2, 4) == (0, 1, True), 'an INCR done twice is not seen')
    check(verdict(1, 2, broke=['B']) == (0, 0, False), 'a broken connection is not seen')


@test(limit=150)
def an_unprotected_guest_is_seen_everywhere(lab):
    """The control to what P1 forbids: the same frames, the same watchers."""
    w = lab.running()
    watches = [w.watch(w.client, 'vm1', 'eth0'), w.watch(w.switch, 'vm1', 'palpha'), w.watch(w.alpha, 'vm1', 'br0')]
    w.tell_guest('vm1', 'frames 20 20 0')
    for watch in watches:
        for kind in ('v4', 'v6', 'vlan', '88b5'):
            wait_for(f'{kind} frames', lambda f=watch, k=kind: f.numbered(k) == list(range(20)), 10)
        watch.stop()


@test(limit=150)
def a_power_cut_is_silent(lab):
    """Without protection the guest is gone, and nobody says goodbye: no FIN, no RST, no frame."""
    w = lab.running()
    incr, udp = w.incr('vm1', 'cut'), w.udp('vm1')
    incr.wait_replies(100, 30)
    watch = w.watch(w.switch, 'vm1', 'palpha')
    w.alpha.run('echo x >/var/lib/ft/kept; echo x >/run/lost')
    began = now()
    at = w.power_cut(w.alpha)
    check(now() - began < 5, 'a power cut takes its time')
    time.sleep(2)
    check(incr.process.running() and not incr.records('B'), f'the client was told: {incr.records("B")}')
    check(not watch.frames(since=at + 0.05), 'the dead guest still sends')
    incr.stop()
    udp.stop()
    v = incr.verdict()
    check(v['acked'] > 100 and not v['lost'] and not v['repeated'], f'{v}')
    w.power_on(w.alpha)
    wait_for('the wire', lambda: reaches(w.beta, w.alpha), 10)
    check(not w.alpha.call('ls /var/lib/ft/kept').returncode and w.alpha.call('ls /run/lost').returncode, 'disks and RAM are mixed up')


main(Lab())
