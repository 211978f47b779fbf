#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest's own life: it reboots, powers off, reads the clock; and two of them at once."""
import time

from lab import Lab, check, main, test
from world import Failure, now, wait_for


def guest_clocks(lab, limit=30):
    """(our clock, the guest's monotonic, the guest's realtime) in seconds; the guest answers at once when asked."""
    def ask():
        at = now()
        answer = lab.w.ask('vm1', 'time', 2)
        return answer and (at, *(int(ns) / 1e9 for ns in answer.split()))
    return wait_for('the guest to tell the time', ask, limit)


@test(limit=180)
def the_guest_clock_keeps_time_at_the_busiest(lab):
    w = lab.protected()
    w.ask('vm1', 'dirty 32 8000', tries=5)
    first = guest_clocks(lab)
    time.sleep(10)
    last = guest_clocks(lab)
    epochs = lab.primary.status('vm1')['epoch']
    percent = 100 * (last[1] - first[1]) / (last[0] - first[0])
    print(f'# {percent:.2f} % of real time, {epochs} epochs')
    check(abs(percent - 100) < 2, f'the guest clock runs at {percent:.2f} % of real time')


@test(limit=180)
def the_guest_clock_never_goes_back_over_a_takeover(lab):
    lab.protected()
    before = guest_clocks(lab)
    lab.cut_power_of_primary()
    after = guest_clocks(lab)
    check(after[1] > before[1] and after[2] > before[2], f'guest time went from {before} to {after}')
    time.sleep(5)
    later = guest_clocks(lab)
    percent = 100 * (later[1] - before[1]) / (later[0] - before[0])
    print(f'# {percent:.2f} % of real time over the takeover')
    check(abs(percent - 100) < 15, f'guest time ran at {percent:.2f} % over the takeover')
    lab.check_goes_on()
    lab.reverse()


def boot_id(lab):
    answer = lab.w.ask('vm1', 'stat', 2)
    return answer and answer.split('boot=')[1]


def reboot(lab):
    old = wait_for('the guest to answer', lambda: boot_id(lab), 30)
    answers, told = [old], [0]

    def came_up():
        if answers[-1] == old and now() > told[0] + 10:
            lab.w.tell_guest('vm1', 'reboot')   # a datagram: it may be lost
            told[0] = now()
        answers.append(boot_id(lab))
        return answers[-1] not in (None, old)
    try:
        wait_for('the guest to come up again', came_up, 120)
    except Failure as e:
        raise Failure(f'{e}; it answered {answers.count(old) - 1} times as before, then {answers[-1]}') from e
    lab.w.wait_guest('vm1')


@test(limit=240)
def a_reboot_is_protected_like_the_rest(lab):
    lab.protected()
    reboot(lab)
    lab.wait_state('PROTECTED')
    lab.primary.run('ft-ctl verify vm1', 60)
    lab.incr.stop()
    lab.protected()
    lab.check_goes_on()


@test(limit=300)
def a_guest_that_was_taken_over_can_reboot(lab):
    lab.protected()
    lab.cut_power_of_primary()
    lab.check_goes_on()
    reboot(lab)


@test(limit=240)
def a_guest_that_powers_off_ends_protection_and_stays_off(lab):
    lab.close()
    w = lab.protected()
    w.tell_guest('vm1', 'poweroff')
    status = lab.ft_protect.wait(60)
    check(status == 0, f'ft-protect ended with {status}: {lab.ft_protect.tail()}')
    time.sleep(2)
    check(lab.backup.state('vm1') != 'RUNNING', 'the backup resurrected a guest that powered off')
    check(not w.ask('vm1', 'stat', 1), 'somebody answers for a guest that is off')
    check('stopped' in lab.primary.call('ft-guest status vm1').stdout, 'its attach record stays')
    check(not lab.primary.run('ls /dev/shm/ft').split(), 'its memory stays')
    lab.close()


@test(limit=240)
def two_guests_protect_each_other_s_hosts(lab):
    w = lab.protected()
    w.start_guest(lab.backup, 'vm2')
    other = w.protect(lab.backup, 'vm2', lab.primary)
    incr2 = w.incr('vm2')
    time.sleep(3)
    lab.cut_power_of_primary()
    lab.check_goes_on()
    # vm2 has lost its backup: it stays mute until there is one again, and then nothing was lost.
    w.power_on(lab.primary)
    lab.ftd[lab.primary.name] = w.start_ftd(lab.primary)
    wait_for('vm2 to be protected again', lambda: lab.backup.state('vm2') == 'PROTECTED' or not other.running(), 120)
    check(other.running(), f'ft-protect of vm2 ended: {other.tail()}')
    incr2.wait_replies(20, 60)
    v = incr2.verdict()
    check(v['survived'] and not v['lost'] and not v['repeated'], f'vm2: {v}')


main(Lab())
