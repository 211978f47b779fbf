#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests of type hvm, whose devices are QEMU's: P2 and P4 as of any other Xen guest."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'hosts'))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import xenlab                                                           # noqa: E402  pylint: disable=C0413
from lab import check, soak, test                                       # noqa: E402  pylint: disable=C0413
from shared import Shared, begin_migration, compare_epochs, cut_and_go_on, hold_back_and_release, listed, run, said   # noqa: E402  pylint: disable=C0413
from world import IncrClient, wait_for                                  # noqa: E402  pylint: disable=C0413

EPOCHS = soak('XEN_EPOCHS', 5)


@test(limit=2400)
def every_page_of_an_hvm_guest_is_in_its_epoch(shared):
    """Also those that its device model and its firmware have made."""
    compare_epochs(shared.protected(kind='hvm'), EPOCHS, 240)


@test(limit=900)
def nothing_of_an_unacknowledged_epoch_of_an_hvm_guest_is_seen_outside(shared):
    hold_back_and_release(shared.protected(kind='hvm'), 240)


@test(limit=1800)
def a_guest_that_ballooned_before_it_is_protected_may_grow_again(shared):
    """What its balloon holds when it is found is of its memory, too."""
    shared.close()
    lab = shared.open('hvm')
    lab.alpha.run(f'xl mem-set vm1 {xenlab.MEMORY - 24}m', 120)
    wait_for('a smaller guest', lambda: listed(lab.alpha).memory < xenlab.MEMORY - 22, 120, 1)
    shared.job = lab.protect()
    lab.alpha.run(f'xl mem-set vm1 {xenlab.MEMORY}m', 120)
    wait_for('the guest to have grown', lambda: listed(lab.alpha).memory > xenlab.MEMORY - 2, 120, 1)
    check(lab.ask('dirty 32 1000', 60) is not None, 'the guest does not answer')
    done = lab.alpha.call('ft-ctl verify vm1', 300)
    pages = int((re.findall(r'all (\d+) pages', done.stdout) or ['0'])[0])
    check(done.returncode == 0 and pages >= xenlab.MEMORY * 256 - 256, done.stdout.strip())
    lab.alpha.cut()
    check(lab.ask('whole', 180) == 'ok', 'the guest that was taken over is not whole')
    shared.close()


@test(limit=900)
def a_device_model_that_dies_ends_the_domain_and_the_backup_goes_on(shared):
    lab = shared.protected(kind='hvm')
    lab.alpha.run("kill -9 $(xenstore-read /local/domain/$(xl domid vm1)/image/device-model-pid)")
    wait_for('the takeover', lambda: 'RUNNING here' in lab.beta.run('cat /ft/log/ftd.log'), 240, 1)
    check('vm1 ' not in lab.alpha.run('xl list'), 'the guest is on alpha, too')
    check(lab.ask('stat', 240) is not None, 'the guest does not answer')
    shared.close()


@test(limit=900)
def a_killed_ft_protect_does_not_leave_an_hvm_guest_without_devices(shared):
    """Its device model is stopped with it, and the guard lets both go on."""
    lab = shared.protected(kind='hvm')
    domid = lab.alpha.run('xl domid vm1').strip()
    inside = 0
    for delay in (0, 10000, 50000):
        pid = lab.alpha.run('pidof ft-protect').split()[0]
        inside += 'suspended' in lab.alpha.run(f'kill_suspended {domid} {pid} {delay}')
        check(lab.ask('stat', 5) is None, 'output flows without ft-protect')
        wait_for('the device model to run', lambda: 'VM status: running' in monitor(lab.alpha, domid, 'info status'), 60, 1)
        wait_for('the guest to run', lambda: 's' not in listed(lab.alpha).state, 60, 1)
        shared.job = lab.protect()
    check(inside, 'no kill hit a suspended guest')
    check(lab.ask('stat', 240) is not None, 'the guest does not answer')
    print(f'# {inside} of 3 kills hit the suspended guest')


def monitor(host, domid, line):
    """What the device model answers to a human's command, past ft's connection."""
    return host.run(f"""( echo '{{"execute":"qmp_capabilities"}}'
        echo '{{"execute":"human-monitor-command","arguments":{{"command-line":"{line}"}}}}'; sleep 2 ) |
        socat - UNIX-CONNECT:/var/run/xen/qmp-libxl-{domid}""", 30)


@test(limit=2400)
def a_migration_of_an_hvm_guest_that_fails_leaves_it_here_with_its_device_model(shared):
    """xl tells the device model to log no more, and it dies of being told so twice."""
    lab = shared.protected(kind='hvm')
    job = begin_migration(lab)
    wait_for('ft to notice', lambda: said(lab, 'somebody else reads the log'), 300, 1)
    lab.alpha.run('kill -9 $(pidof socat)')
    wait_for('xl migrate to fail', lambda: lab.alpha.status(job) is not None, 300, 1)
    wait_for('ft to have the log again', lambda: said(lab, 'nobody else reads the log'), 300, 1)
    wait_for('PROTECTED', lambda: lab.state() == 'PROTECTED', 600, 2)
    done = lab.alpha.call('ft-ctl verify vm1', 300)
    check(done.returncode == 0, done.stdout.strip())
    lab.alpha.run('ft-ctl unprotect vm1', 60)
    check(lab.ask('stat', 240) is not None, 'the guest does not answer')
    check('VM status: running' in monitor(lab.alpha, lab.alpha.run('xl domid vm1').strip(), 'info status'), 'no device model')


@test(limit=900)
def an_hvm_guest_goes_on_where_the_cut_host_left_it(shared):
    lab = shared.protected(kind='hvm')
    incr = IncrClient(lab, xenlab.GUEST_IP4, 'demo')
    incr.wait_replies(10, 240)
    cut_and_go_on(lab, incr, 30, 240)
    shared.close()


@test(limit=2400)
def a_domain_whose_firmware_is_at_work_is_not_remembered_as_it_is(shared):
    """It makes itself memory that was not there when ft first looked."""
    lab = shared.open(kind='hvm')
    lab.alpha.run('ft-ctl unprotect vm1; xl destroy vm1; xl create /ft/guest/vm1.cfg', 120)
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode == 3 and 'its firmware is still at work' in done.stdout, done.stdout)
    wait_for('its firmware', lambda: lab.alpha.call('ft-protect --check vm1 beta', 120).returncode == 0, 300, 1)
    wait_for('vm1 to be up', lambda: lab.ask('stat', 5) is not None, 1200, 1)
    compare_epochs(shared.protected(kind='hvm'), 1, 240)


@test(limit=2400)
def an_emulated_network_card_is_refused_by_name(shared):
    lab = shared.open('hvm-plain')
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'it has an emulated network card (vif1.0-emu)' in done.stdout, done.stdout)
    shared.close()


if __name__ == '__main__':
    run(Shared())
