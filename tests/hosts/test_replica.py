#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""P2: the replica is exactly one committed epoch of the guest, whatever the guest writes meanwhile."""
import re
import time

from lab import Lab, Skip, check, main, test
from world import GUESTS, Guest, now, read_file, wait_for

LARGE = 3584    # MB: some of the RAM lies above 4 GB


def free_mb():
    words = read_file('/proc/meminfo').split()
    return int(words[words.index('MemAvailable:') + 1]) // 1024


@test(limit=240)
def the_replica_equals_the_paused_guest_while_it_writes(lab):
    w = lab.protected()
    w.ask('vm1', 'dirty 32 4000', tries=5)
    w.ask('vm1', 'burn 2', tries=5)
    udp = w.udp('vm1')
    epochs = set()
    end = now() + 120
    while len(epochs) < 20 and now() < end:
        lab.primary.run('ft-ctl verify vm1', 60)
        epochs.add(lab.primary.status('vm1')['acked_epoch'])
    check(len(epochs) >= 20, f'only {len(epochs)} epochs verified')
    w.ask('vm1', 'burn 0', tries=5)
    udp.stop()
    check(udp.verdict()['answers'] > 0, 'no datagram was answered')
    lab.check_goes_on()


@test(limit=180)
def an_epoch_under_way_at_the_cut_is_thrown_away(lab):
    """The link is so slow that the cut comes in the middle of an epoch: what runs then is the one before."""
    w = lab.protected()
    check(w.ask('vm1', 'fill 32 1', 10, tries=3) is not None, 'the guest did not fill its pattern')
    w.wire('rate 4000000')
    time.sleep(1)
    w.tell_guest('vm1', 'fill 32 2')        # 32 MB that do not compress: 8 s on this link
    wait_for('the large epoch to be under way', lambda: lab.primary.status('vm1')['in_flight'] > 0, 20)
    time.sleep(2)
    acked = lab.primary.status('vm1')['acked_epoch']
    lab.cut_power_of_primary()
    w.heal()
    said = next(line for _, line in lab.ftd[lab.backup.name].lines if 'taking over at epoch' in line)
    kept = int(re.search(r'at epoch (\d+)', said).group(1))
    check(kept >= acked, f'epoch {acked} was acknowledged, {kept} runs')
    # Either pattern, whole: never half of each.
    answers = [w._datagram(w.guests['vm1'].ip4, 7001, f'check 32 {seed}', 20) for seed in (1, 2)]
    check('ok' in answers, f'the pattern in memory is neither: {answers}')
    lab.check_goes_on()
    lab.close()


@test(limit=300)
def a_guest_of_more_than_3_gb_is_copied_whole(lab):
    need = 5 * LARGE
    if free_mb() < need:
        raise Skip(f'{need} MB of free memory are needed for a guest of {LARGE} MB and its copies')
    lab.close()
    lab.guests = {**GUESTS, 'vm1': Guest('vm1', 0x0a, LARGE)}
    w = lab.protected()
    w.ask('vm1', 'fill 512 3', 60)
    w.ask('vm1', 'dirty 256 4000', 10)
    for _ in range(3):
        lab.primary.run('ft-ctl verify vm1', 120)
    lab.check_goes_on()


main(Lab())
