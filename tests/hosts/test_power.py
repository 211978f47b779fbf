#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""P4: a host may lose power at any instant, and nothing that a client was told is lost.

One client keeps one connection over all cuts: after each, the dead host comes back and protects the survivor.
SOAK_CUTS says how many (5).
"""
import time

from lab import check, main, soak, test, undone
from world import random_wait, wait_for

CUTS = soak('SOAK_CUTS', 5)


@test(limit=60 + 60 * CUTS)
def power_cuts_at_random_instants_lose_nothing(lab):
    lab.protected()
    udp = lab.w.udp('vm1')
    for n in range(CUTS):
        wait = random_wait(0.5, 3)
        time.sleep(wait)
        at = lab.cut_power_of_primary()
        wait_for('a reply after the cut', lambda at=at: lab.incr.reply_after(at + 0.05) or lab.incr.broken(), 30)
        v = lab.check_goes_on()
        gap = lab.incr.verdict(since=at)['gap']
        print(f'# cut {n + 1}: {lab.primary.name} after {wait:.3f} s, client gap {1000 * gap:.0f} ms, {v["acked"]} acknowledged')
        if n + 1 < CUTS:
            lab.reverse()
    udp.stop()
    check(udp.verdict()['backwards'] == 0, "the guest's count of datagrams went backwards")


@test(limit=120)
def a_host_that_comes_back_does_not_start_the_guest_again(lab):
    lab.protected()
    lab.cut_power_of_primary()
    lab.w.power_on(lab.primary)
    done = lab.primary.call('ft-guest start vm1', 60)
    check(done.returncode != 0, f'{lab.primary.name} started vm1 although {lab.backup.name} runs it: {done.stdout}')
    lab.check_goes_on()
    lab.close()


@test(limit=240)
def what_a_survivor_is_and_whose_the_guest_is_outlives_what_came_of_protecting_it(lab):
    lab.protected()
    lab.cut_power_of_primary()
    lab.w.power_on(lab.primary)
    lab.ftd[lab.primary.name] = lab.w.start_ftd(lab.primary)
    lab.primary, lab.backup = lab.backup, lab.primary
    ram = '/dev/shm/ft/vm1.ram'
    with undone(lab.backup, f'mkdir -p {ram}/in-the-way', f'rm -r {ram}'):
        refused = lab.primary.call(f'ft-protect vm1 {lab.backup.name}', 60)
    check(refused.returncode == 4 and ram in refused.stdout, f'{refused.returncode}: {refused.stdout}')
    role = lab.primary.call('ft-guest status vm1').stdout
    check('RUNNING' in role, f'a refusal made the host forget that it took over: {role}')
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.primary.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)
    second = lab.backup.call('ft-guest start vm1', 60)
    check(second.returncode == 4 and f'stayed with {lab.primary.name}' in second.stdout,
          f'{lab.backup.name} started vm1, which runs on {lab.primary.name}: {second.returncode}: {second.stdout}')
    lab.check_goes_on()
    lab.close()


main()
