#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""P3: when only the replication link is cut, the client LAN stays up, and still there is one guest."""
import time

from lab import Lab, check, main, test
from world import wait_for


def first_frame_of_backup(lab, watch):
    return wait_for('a frame from the backup', lambda: watch.frames(f'p{lab.backup.name}'), 30)[0][0]


@test(limit=180)
def a_cut_link_gives_the_guest_to_one_host_only(lab):
    w = lab.protected()
    time.sleep(1)
    watch = w.watch(w.switch, 'vm1', f'p{lab.primary.name}', f'p{lab.backup.name}')
    w.cut_replication()
    lab.wait_state('RUNNING', lab.backup, 30)
    began = first_frame_of_backup(lab, watch)
    lab.check_goes_on()
    time.sleep(3)
    old = watch.frames(f'p{lab.primary.name}', since=began)
    check(not old, f'{len(old)} frames of the old guest after the new one spoke: {old[:5]}')
    w.heal()
    status = lab.ft_protect.wait(60)
    check(status == 5, f'ft-protect ended with {status}, not 5 (taken over): {lab.ft_protect.tail()}')
    wait_for('the old guest to stop', lambda: not lab.primary.pids('qemu'), 30)
    time.sleep(1)
    old = watch.frames(f'p{lab.primary.name}', since=began)
    check(not old, f'{len(old)} frames of the old guest after the link healed: {old[:5]}')
    lab.check_goes_on()
    lab.close()


@test(limit=180)
def a_short_cut_is_no_failure(lab):
    """Shorter than the silence window: nobody takes over, nobody notices but by a pause."""
    w = lab.protected()
    for _ in range(5):
        w.cut_replication()
        time.sleep(0.1)
        w.heal()
        time.sleep(0.5)
    check(lab.backup.state('vm1') != 'RUNNING', 'a takeover after a cut of 100 ms')
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


@test(limit=180)
def a_bad_link_slows_down_and_loses_nothing(lab):
    w = lab.protected()
    w.wire('delay 5000')
    w.wire('loss 5')
    time.sleep(5)
    w.heal()
    lab.wait_state('PROTECTED')
    check(lab.backup.state('vm1') != 'RUNNING', 'a takeover on a link that is only bad')
    lab.check_goes_on()


main(Lab())
