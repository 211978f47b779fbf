#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""P4 and P5: any one of our processes may die or hang, in any phase, and the guest is neither lost nor doubled.

The whole table runs when SOAK_TABLE is set; else one row of each process.
"""
import os
import signal
import time

from lab import Lab, check, main, soak, test
from world import now, wait_for

FULL = soak('SOAK_TABLE', 0)
HANG_S = 5


class Row:
    """What to hit, when, and what must be true then."""

    def __init__(self, where, what, but=None, taken_over=False, restart=None):
        self.where, self.what, self.but = where, what, but
        self.taken_over, self.restart = taken_over, restart

    def pid(self, lab):
        """The oldest whose command line starts with `what`, but not with `but`."""
        host = lab.primary if self.where == 'primary' else lab.backup

        def candidates():
            others = host.pids(self.but) if self.but else []
            return [pid for pid in host.pids(self.what) if pid not in others]
        return wait_for(f'{self.what} on {host.name}', candidates, 20)[0]


ROWS = {
    'ft-protect': Row('primary', 'ft-protect vm1', restart='ft-protect'),
    'guard': Row('primary', 'ft-guard'),
    'ftd': Row('backup', 'ftd', but='ftd --', restart='ftd'),
    "ftd's child": Row('backup', 'ftd --guest'),
    'parked QEMU': Row('backup', 'qemu'),
    'primary QEMU': Row('primary', 'qemu', taken_over=True),
}
PHASES = ('syncing', 'protected')
CHECKED = {('ft-protect', 'kill', 'protected'), ('guard', 'kill', 'protected'), ('ftd', 'kill', 'protected'),
           ("ftd's child", 'stop', 'protected'), ('parked QEMU', 'kill', 'protected'),
           ('primary QEMU', 'kill', 'protected')}


def hit(pid, how):
    if how == 'kill':
        os.kill(pid, signal.SIGKILL)
        return
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(HANG_S)
    finally:
        os.kill(pid, signal.SIGCONT)


def start_again(lab, program):
    """What systemd would do."""
    if program == 'ftd':
        lab.ftd[lab.backup.name] = lab.w.start_ftd(lab.backup)
    elif not lab.ft_protect.running():
        lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)


def reach(lab, phase):
    if phase == 'protected':
        lab.protected()
        return
    w = lab.running()
    lab.incr = w.incr('vm1')
    w.wire('rate 4000000')          # so that the first copy takes a while
    lab.ft_protect = lab.primary.spawn(f'ft-protect vm1 {lab.backup.name}', name=f'{lab.primary.name} ft-protect')
    lab.wait_state('SYNCING')


def protect_again(lab):
    """Before anything is armed, ft-protect may end instead of trying again: then systemd starts it."""
    wait_for('vm1 to be protected, or ft-protect to end',
             lambda: not lab.ft_protect.running() or lab.primary.state('vm1') == 'PROTECTED', 90)
    if not lab.ft_protect.running():
        start_again(lab, 'ft-protect')
    lab.wait_state('PROTECTED', limit=90)


def guest_runs(lab):
    """Not left paused: its clock moves, as QEMU sees it from outside."""
    wait_for('the guest to answer', lambda: lab.w.ask('vm1', 'time', 2), 60)


def one_row(lab, process, how, phase):
    row = ROWS[process]
    reach(lab, phase)
    hit(row.pid(lab), how)
    if phase == 'syncing':
        lab.w.heal()
    if how == 'kill' and row.restart:
        time.sleep(1)
        start_again(lab, row.restart)
    if row.taken_over and how == 'kill' and phase == 'protected':
        lab.wait_state('RUNNING', lab.backup, 30)
    else:
        protect_again(lab)
        check(lab.backup.state('vm1') != 'RUNNING', 'a takeover although the guest was well')
    guest_runs(lab)
    lab.check_goes_on(60)
    if row.taken_over or phase != 'protected':
        lab.close()


def make_test(process, how, phase):
    def row(lab):
        if phase == 'syncing' and process == 'primary QEMU' and how == 'kill':
            return          # nothing protects the guest yet: a crash is a crash
        one_row(lab, process, how, phase)
    row.__name__ = f'{process}_{how}_{phase}'.replace(' ', '_').replace("'", '')
    return row


for the_phase in PHASES:
    for the_process in ROWS:
        for the_way in ('kill', 'stop'):
            if FULL or (the_process, the_way, the_phase) in CHECKED:
                test(limit=240)(make_test(the_process, the_way, the_phase))


@test(limit=120)
def the_watched_process_is_the_one_named(lab):
    """The table is worth nothing when it hits somebody else."""
    lab.protected()
    before = now()
    pids = {name: row.pid(lab) for name, row in ROWS.items()}
    check(len(set(pids.values())) == len(pids), f'two rows hit one process: {pids}')
    check(now() - before < 60, 'looking for processes hangs')


main(Lab())
