#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an operator does on purpose: drill, planned failover, unprotect; and what each policy does when the backup
is lost.
"""
import os
import signal
import time

from lab import Lab, check, main, test
from world import now, read_file, wait_for

STATUS_KEYS = ('guest role state generation peer backend accel tracker epoch acked_epoch interval_ms pause_us ack_us '
               'dirty_pages bytes_dirty bytes_sent held_packets dropped_packets in_flight staging_bytes').split()
HOOK = '#!/bin/sh\necho "$FT_GUEST $FT_ROLE $FT_WAS $FT_STATE" >>/var/lib/ft/hook.log\n'
OK, TAKEN_OVER = 0, 5


@test(limit=120)
def status_says_all_that_is_promised(lab):
    lab.protected()
    status = lab.primary.status('vm1')
    missing = [key for key in STATUS_KEYS if key not in status]
    check(not missing, f'status lacks {missing}')
    check({'p50', 'p99', 'max'} <= set(status['pause_us']) and {'p50', 'p99'} <= set(status['ack_us']), f'{status}')
    check(status['heartbeat_rtt_us'] > 0, 'no heartbeat was echoed')
    check(status['tracker'] in ('uffd-wp-async', 'soft-dirty', 'compare'), f'tracker is {status["tracker"]}')
    status = lab.backup.status('vm1')
    missing = [key for key in STATUS_KEYS if key not in status]
    check(not missing, f"the backup's status lacks {missing}")
    check(status['role'] == 'backup' and status['accel'] and status['pause_us'] == {'p50': None, 'p99': None, 'max': None}, f'{status}')
    for host in (lab.primary, lab.backup):
        check('vm1' in host.run('ft-ctl list'), f'{host.name} does not list vm1')


@test(limit=120)
def a_program_that_does_not_answer_is_stalled(lab):
    lab.protected()
    child = lab.child()
    os.kill(child, signal.SIGSTOP)
    status = lab.backup.status('vm1')
    os.kill(child, signal.SIGCONT)
    check((status['role'], status['state'], status['peer']) == ('backup', 'STALLED', lab.primary.name), f'{status}')
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


@test(limit=120)
def a_drill_runs_the_replica_and_disturbs_nobody(lab):
    lab.protected()
    before = lab.primary.status('vm1')['acked_epoch']
    said = lab.primary.run('ft-ctl drill vm1', 60)
    check('ms' in said, f'the drill does not say how long it took: {said}')
    check(len(lab.backup.pids('qemu')) == 1, 'the scratch guest is still there')
    wait_for('epochs to go on', lambda: lab.primary.status('vm1')['acked_epoch'] > before, 20)
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


@test(limit=180)
def a_replica_does_not_suffer_for_what_its_guest_left_here(lab):
    """The guest died on alpha when it was not protected, and was started on beta: alpha has its replica now."""
    lab.close()
    w = lab.open()
    w.start_guest(lab.primary, 'vm1')
    os.kill(lab.primary.pids('qemu')[0], signal.SIGKILL)
    wait_for('the guest to be dead', lambda: 'dead' in lab.primary.call('ft-guest status vm1').stdout, 20)
    lab.primary, lab.backup = lab.backup, lab.primary
    lab.protected()
    done = lab.backup.call('ft-guest stop vm1')
    check(done.returncode == 4 and 'only its replica' in done.stdout, f'it was stopped: {done}')
    done = lab.backup.call('ft-guest stop vm1 --force')
    check(done.returncode == 3, f'it was stopped by force: {done}')
    lab.primary.run('ft-ctl verify vm1', 60)
    lab.cut_power_of_primary()
    lab.check_goes_on()
    lab.close()


@test(limit=180)
def a_planned_failover_loses_nothing(lab):
    lab.protected()
    began = now()
    lab.primary.run('ft-ctl failover vm1', 60)
    lab.wait_state('RUNNING', lab.backup, 30)
    lab.check_goes_on()
    print(f'# client gap {1000 * lab.incr.verdict(since=began)["gap"]:.0f} ms')
    status = lab.ft_protect.wait(30)
    check(status in (OK, TAKEN_OVER), f'ft-protect ended with {status}: {lab.ft_protect.tail()}')
    wait_for('the old guest to go', lambda: not lab.primary.pids('qemu'), 30)
    lab.primary, lab.backup = lab.backup, lab.primary
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


def fail_over(lab):
    """The guest moves to the backup on purpose, and is protected towards where it came from."""
    lab.primary.run('ft-ctl failover vm1', 60)
    lab.wait_state('RUNNING', lab.backup, 30)
    lab.check_goes_on()
    lab.ft_protect.wait(30)
    rules = lab.primary.call('nft list tables').stdout
    check('ft' not in rules, f'rules of the old instance are left on {lab.primary.name}: {rules}')
    lab.primary, lab.backup = lab.backup, lab.primary
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=240)
def a_guest_can_go_over_and_come_back(lab):
    """There and back again, and there once more: the host where it was knows nothing that would mute it."""
    lab.protected()
    for _ in range(3):
        fail_over(lab)


STALE = """nft add table bridge ft-vm1
nft 'add chain bridge ft-vm1 gate { type filter hook prerouting priority -999; }'
nft add rule bridge ft-vm1 gate iifname 'ft*' drop"""


@test(limit=180)
def rules_that_a_dead_instance_left_do_not_mute_its_successor(lab):
    """Its ft-protect and guard were killed before they could take them out."""
    lab.close()
    w = lab.open()
    for command in STALE.splitlines():
        done = lab.backup.call(command)
        check(not done.returncode, f'{command}: {done.stdout}')
    lab.protected()
    began = now()
    w.power_cut(lab.primary)
    lab.wait_state('RUNNING', lab.backup, 30)
    lab.check_goes_on()
    print(f'# client gap {1000 * lab.incr.verdict(since=began)["gap"]:.0f} ms')
    lab.close()


@test(limit=180)
def an_unprotected_guest_runs_on_and_is_not_taken_over(lab):
    lab.protected()
    lab.primary.run('ft-ctl unprotect vm1', 60)
    status = lab.ft_protect.wait(30)
    check(status == OK, f'ft-protect ended with {status}: {lab.ft_protect.tail()}')
    rules = lab.primary.call('nft list ruleset; iptables-save; ip6tables-save').stdout
    check('queue' not in rules.lower(), f'rules are left: {rules}')
    wait_for('the guard to end', lambda: not lab.primary.pids('ft-guard'), 20)
    lab.check_goes_on()
    lab.w.cut_replication()
    time.sleep(2)
    lab.w.heal()
    check(lab.backup.state('vm1') != 'RUNNING', 'the backup took over a guest that is not protected')
    lab.check_goes_on()
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=120)
def ctrl_c_in_the_first_copy_leaves_the_guest_as_it_was(lab):
    """Nothing can be started over there yet, so nothing has to be promised."""
    lab.protected()
    lab.primary.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)
    lab.w.wire('rate 4000000')
    lab.ft_protect = lab.primary.spawn(f'ft-protect vm1 {lab.backup.name}', name=f'{lab.primary.name} ft-protect')
    lab.wait_state('SYNCING')
    lab.ft_protect.kill(signal.SIGINT)
    status = lab.ft_protect.wait(10)
    lab.w.heal()
    check(status == OK, f'ft-protect ended with {status}: {lab.ft_protect.tail()}')
    check(not lab.ft_protect.logged('stay shut'), f'it warns of what is not so: {lab.ft_protect.tail()}')
    rules = lab.primary.call('nft list ruleset').stdout
    check('queue' not in rules, f'rules are left: {rules}')
    lab.check_goes_on()


@test(limit=240)
def frozen_without_its_backup_the_guest_goes_on_when_it_is_back(lab):
    """Policy freeze, the default: clients wait, and nothing is lost."""
    lab.protected()
    lab.w.power_cut(lab.backup)
    cut = now()
    time.sleep(3)
    late = lab.incr.reply_after(cut + 1)
    check(not late, 'the guest speaks although nobody acknowledges')
    lab.w.power_on(lab.backup)
    lab.ftd[lab.backup.name] = lab.w.start_ftd(lab.backup)
    lab.wait_state('PROTECTED', limit=120)
    lab.check_goes_on(60)


@test(limit=240)
def a_backup_that_is_dead_for_good_can_be_left_behind(lab):
    """The output opens at the operator's word; when the backup is there again, protection starts from nothing."""
    lab.protected()
    refused = lab.primary.call('ft-ctl unprotect --force vm1', 30)
    check(refused.returncode == 1 and lab.backup.name in refused.stdout, f'a backup that answers is given up: {refused.stdout}')
    lab.w.power_cut(lab.backup)
    lab.wait_state('CUT_OFF')
    lab.primary.run('ft-ctl unprotect --force vm1', 30)
    status = lab.ft_protect.wait(30)
    check(status == OK, f'ft-protect ended with {status}: {lab.ft_protect.tail()}')
    lab.check_goes_on()
    lab.w.power_on(lab.backup)
    lab.ftd[lab.backup.name] = lab.w.start_ftd(lab.backup)
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=240)
def a_replica_that_is_given_up_is_not_started(lab):
    """The guest is said to live elsewhere; it may be protected again."""
    lab.protected()
    refused = lab.backup.call('ft-ctl unprotect --force vm1', 30)
    check(refused.returncode == 1 and 'is connected' in refused.stdout, f'the replica of a connected primary is given up: {refused.stdout}')
    lab.ft_protect.kill(signal.SIGKILL)
    lab.ft_protect.wait(10)
    wait_for('the replica to be given up', lambda: lab.backup.call('ft-ctl unprotect --force vm1', 30).returncode == 0, 30)
    os.kill(lab.primary.pids('ft-guard')[0], signal.SIGKILL)
    time.sleep(3)                       # longer than the silence after which a backup takes over
    check(lab.backup.state('vm1') != 'RUNNING', 'the backup took over')
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=240)
def alone_without_its_backup_the_guest_goes_on_at_once(lab):
    """Policy continue: the guest goes on unprotected, and is protected again when the backup is back."""
    lab.close()
    lab.policy = 'on-peer-loss = continue\nhook = /etc/ft/hook\ngrace-ms = 2000'
    w = lab.open()
    for host in (lab.primary, lab.backup):
        host.write('/etc/ft/hook', HOOK, 0o755)
    lab.protected()
    w.power_cut(lab.backup)
    cut = now()
    wait_for('the guest to go on alone', lambda: lab.incr.reply_after(cut + 1) or lab.incr.broken(), 30)
    lab.check_goes_on()
    w.power_on(lab.backup)
    lab.ftd[lab.backup.name] = w.start_ftd(lab.backup)
    lab.wait_state('PROTECTED', limit=120)
    lab.check_goes_on()


QUERY_STATUS = """
import json, socket
s = socket.socket(socket.AF_UNIX)
s.connect("/run/ft/guests/vm1/qmp.sock")
f = s.makefile("rw")
for command in ("qmp_capabilities", "query-status"):
    f.write(json.dumps({"execute": command}) + "\\n")
    f.flush()
for line in f:
    if "status" in json.loads(line).get("return", {}):
        exit(json.loads(line)["return"]["status"])
"""


@test(limit=120)
def alone_and_without_ft_protect_the_guest_is_not_given_up_for_nobody(lab):
    """Under `continue` the backup does not take over by itself: so the guard pauses no guest for it."""
    lab.protected()
    lab.ft_protect.kill(signal.SIGKILL)
    lab.ft_protect.wait(10)
    time.sleep(4)
    said = lab.primary.call(['python3', '-c', QUERY_STATUS]).stdout.strip()
    check(said == 'running', f'the guest is {said}')
    check(lab.backup.state('vm1') != 'RUNNING', 'the backup took over')
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=60)
def each_change_of_state_runs_the_hook(lab):
    lab.protected()
    said = read_file(lab.primary.path('/var/lib/ft/hook.log'))
    for line in ('vm1 primary DRILLING PROTECTED', 'vm1 primary PROTECTED'):
        check(line in said, f'the hook was not told "{line}": {said}')


main(Lab())
