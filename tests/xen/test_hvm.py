#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Guests of type hvm, whose devices are QEMU's: P2 and P4 as of any other Xen guest."""
import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'hosts'))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import xenlab                                                           # noqa: E402  pylint: disable=C0413
from lab import check, main, soak, test                                 # noqa: E402  pylint: disable=C0413
from world import IncrClient, wait_for                 # noqa: E402  pylint: disable=C0413

EPOCHS = soak('XEN_EPOCHS', 5)


class Shared:
    """A lab with a guest of one kind, protected; a test that ruins it, or wants another kind, closes it."""

    def __init__(self):
        self.lab = self.job = None

    def open(self, kind):
        if self.lab and self.lab.kind != kind:
            self.close()
        if not self.lab:
            self.lab = xenlab.Lab(kind=kind)
            self.lab.start_ftd(self.lab.beta)
        return self.lab

    def protected(self, kind):
        lab = self.open(kind)
        if self.job is None or lab.alpha.status(self.job) is not None:
            self.job = lab.protect()
        return lab

    def close(self):
        if self.lab:
            self.lab.close()
        self.lab = self.job = None

    def explain(self, name):
        if not self.lab:
            return []
        self.lab.keep_logs()
        lines = []
        for host, log in ((self.lab.alpha, 'protect'), (self.lab.beta, 'ftd')):
            try:
                lines += [f'{host.name}: {line}' for line in host.call(f'tail -12 /ft/log/{log}.log', 30).stdout.splitlines()]
            except xenlab.Failure as e:
                lines.append(str(e))
        return lines


def compare_epochs(lab):
    check(lab.ask('dirty 16 300', 120) is not None, 'the guest does not answer')
    first = lab.status()['epoch']
    for n in range(EPOCHS):
        done = lab.alpha.call('ft-ctl verify vm1', 240)
        check(done.returncode == 0, f'comparison {n + 1}: {done.stdout.strip()}')
    status = lab.status()
    check(status['epoch'] >= first + EPOCHS, f'only {status["epoch"] - first} epochs')
    lab.ask('dirty 0 0', 60)
    print(f'# {EPOCHS} comparisons in epochs {first} to {status["epoch"]}; last: {done.stdout.strip()}; '
          f'{status["dirty_pages"]} pages written in the last epoch, pause {status["pause_us"]["p50"] / 1000:.0f} ms')


def cut_and_go_on(lab):
    """The power of alpha goes: one TCP connection, each acknowledged request there once."""
    incr = IncrClient(lab, xenlab.GUEST_IP4, 'demo')
    incr.wait_replies(10, 240)
    lab.alpha.cut()
    at = lab.alpha.killed_at
    wait_for('a reply after the cut', lambda: incr.reply_after(at + 0.2) or incr.broken(), 240)
    incr.wait_replies(30, 240)
    v = incr.verdict()
    incr.stop()
    check(v['survived'], "the client's connection broke")
    check(not v['lost'] and not v['repeated'], f'{v["lost"]} lost, {v["repeated"]} repeated')
    log = lab.beta.run('cat /ft/log/ftd.log; xl list')
    check(log.splitlines()[-1].startswith('vm1 '), f'xl list says {log.splitlines()[-1]}')
    ready = next(line for line in log.splitlines() if 'after the command' in line)
    print(f'# client gap {incr.reply_after(at + 0.2) - at:.2f} s with 5 s of silence awaited; {ready.split("ftd: ")[-1]}; {v["acked"]} acknowledged')


@test(limit=2400)
def every_page_of_an_hvm_guest_is_in_its_epoch(shared):
    """Also those that its device model and its firmware have made."""
    compare_epochs(shared.protected('hvm'))


@test(limit=900)
def a_device_model_that_dies_ends_the_domain_and_the_backup_goes_on(shared):
    lab = shared.protected('hvm')
    lab.alpha.run("kill -9 $(xenstore-read /local/domain/$(xl domid vm1)/image/device-model-pid)")
    wait_for('the takeover', lambda: 'RUNNING here' in lab.beta.run('cat /ft/log/ftd.log'), 240, 1)
    check('vm1 ' not in lab.alpha.run('xl list'), 'the guest is on alpha, too')
    check(lab.ask('stat', 240) is not None, 'the guest does not answer')
    shared.close()


@test(limit=900)
def a_killed_ft_protect_does_not_leave_an_hvm_guest_without_devices(shared):
    """Its device model is stopped with it, and the guard lets both go on."""
    lab = shared.protected('hvm')
    domid = lab.alpha.run('xl domid vm1').strip()
    inside = 0
    for delay in (0, 10000, 50000):
        pid = lab.alpha.run('pidof ft-protect').split()[0]
        inside += 'suspended' in lab.alpha.run(f'kill_suspended {domid} {pid} {delay}')
        check(lab.ask('stat', 5) is None, 'output flows without ft-protect')
        wait_for('the device model to run', lambda: 'VM status: running' in monitor(lab.alpha, domid, 'info status'), 60, 1)
        wait_for('the guest to run', lambda: 's' not in lab.alpha.run('xl list vm1').splitlines()[-1].split()[-2], 60, 1)
        shared.job = lab.protect()
    check(inside, 'no kill hit a suspended guest')
    check(lab.ask('stat', 240) is not None, 'the guest does not answer')
    print(f'# {inside} of 3 kills hit the suspended guest')


def monitor(host, domid, line):
    """What the device model answers to a human's command, past ft's connection."""
    return host.run(f"""( echo '{{"execute":"qmp_capabilities"}}'
        echo '{{"execute":"human-monitor-command","arguments":{{"command-line":"{line}"}}}}'; sleep 2 ) |
        socat - UNIX-CONNECT:/var/run/xen/qmp-libxl-{domid}""", 30)


@test(limit=900)
def an_hvm_guest_goes_on_where_the_cut_host_left_it(shared):
    lab = shared.protected('hvm')
    cut_and_go_on(lab)
    shared.close()


@test(limit=2400)
def an_emulated_network_card_is_refused_by_name(shared):
    lab = shared.open('hvm-plain')
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'it has an emulated network card (vif1.0-emu)' in done.stdout, done.stdout)
    shared.close()


if __name__ == '__main__':
    if os.geteuid():
        print('1..0 # SKIP hosts are made of namespaces: run as root')
        sys.exit(77)
    if subprocess.run(['pkg-config', '--exists', 'xencontrol'], check=False).returncode:
        print('1..0 # SKIP ft was built without Xen: install libxen-dev')
        sys.exit(77)
    main(Shared())
