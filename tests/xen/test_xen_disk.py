#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A Xen guest with a mirrored disk: ext4, Redis that syncs each write; power cuts, a killed server, the way back."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'hosts'))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import xenlab                                                           # noqa: E402  pylint: disable=C0413
from lab import check, test                                             # noqa: E402  pylint: disable=C0413
from shared import Shared, an_epoch, create, cut_and_go_on, run, said             # noqa: E402  pylint: disable=C0413
from world import IncrClient, now, wait_for                             # noqa: E402  pylint: disable=C0413

IMAGE, IMAGE_MB = '/ft/disk/vm1.raw', 48
MEMORY = 160            # its initrd is larger
DISK = ' ft.disk=ext4 ft.redis=aof'
# By the kind of guest: its initrd, and its first disk's name in xl's configuration.
KINDS = {'guest': ('guest.cpio', 'xvda'), 'hvm': ('guest.zst', 'xvde')}


def guest_file(kind='guest'):
    return with_disk(kind, xenlab.guest_file(kind)) + f'\n[disk]\nimage = {IMAGE}\n'


def xl_cfg(kind):
    return with_disk(kind, xenlab.xl_cfg(kind)) + f'disk = [ "vdev={KINDS[kind][1]},script=block-ft,target=vm1:0" ]\n'


def with_disk(kind, text):
    initrd = KINDS[kind][0]
    for old, new in ((xenlab.CMDLINE, xenlab.CMDLINE + DISK), (initrd, initrd.replace('guest', 'guest-disk')),
                     (f'memory = {xenlab.MEMORY}', f'memory = {MEMORY}')):
        text = text.replace(old, new)
    return text


def give_initrd(host, kind):
    cpio, name = os.path.join(xenlab.XEN, 'guest-disk.cpio'), KINDS[kind][0].replace('guest', 'guest-disk')
    if name.endswith('.zst'):
        xenlab.sh('zstd', '-q', '-9', '-f', '-o', host.share(name), cpio)
    else:
        shutil.copy(cpio, host.share(name))
    host.run(f'cp /host/{name} /ft/guest/ && mkdir -p /ft/disk', 120)


class SharedDisk(Shared):
    """vm1 runs on alpha, with a disk; on beta there is only the directory of its image."""

    def make(self, kind):
        self.lab = lab = xenlab.Lab(guest_on=None, kind=kind)
        for host in lab.hosts:
            give_initrd(host, kind)
            host.write('/etc/ft/guests/vm1.conf', guest_file(kind))
            lab.start_ftd(host)
        lab.alpha.run(f'truncate -s {IMAGE_MB}M {IMAGE}')
        create(lab, xl_cfg(kind), 1200 if kind == 'hvm' else 400)


def disk(lab, host=None):
    """A loaded host's ft-protect may not answer at once."""
    return wait_for('a status with disks', lambda: lab.status(host).get('disks'), 120, 1)[0]


def check_image(lab, host):
    """The guest ends in order; its image is a clean file system."""
    said = lab.shell('dmesg | grep -i -E "ext4-fs (error|warning)|I/O error|journal.*abort" || echo none')
    check(said.strip() == 'none', f'the guest complains about its disk: {said}')
    try:
        lab.shell('sh /etc/acpi/PWRF/00000080', 30)
    except OSError:
        pass
    wait_for('vm1 to end', lambda: host.call('xl domid vm1').returncode, 120, 1)
    wait_for("its disk's server to end", lambda: host.call('pidof nbdkit').returncode, 60, 1)
    check(not int(host.run('cat /sys/block/nbd0/size')), 'the device is connected still')
    host.run(f'cp {IMAGE} /host/image', 120)
    done = subprocess.run(['e2fsck', '-fn', host.share('image')], capture_output=True, text=True, check=False)
    check(not done.returncode, f'e2fsck: {done.stdout}{done.stderr}')


def on_disk(lab):
    """How many INCRs the append-only file has, as the disk has it, not as the guest's memory remembers it."""
    return int(lab.shell("sync; echo 3 >/proc/sys/vm/drop_caches; cat /data/appendonlydir/*.aof | grep -a -i -c '^incr'", 120))


def verify(lab, host):
    done = host.call('ft-ctl verify vm1', 240)
    check(done.returncode == 0 and 'disk' in done.stdout, f'verify: {done.stdout.strip()}')
    return done.stdout.strip().splitlines()[-1]


def refuses(host, command, why):
    done = host.call(command, 120)
    check(done.returncode and why in done.stdout, f'{host.name}: {command}: {done.returncode}: {done.stdout}')
    return done.returncode


@test(limit=600)
def what_is_the_toolstacks_is_left_to_it_and_a_disk_in_use_is_not_let_go_of(shared):
    lab = shared.open()
    check('runs already (domain' in lab.alpha.run('ft-guest start vm1'), 'ft-guest start says no word of the domain that runs')
    check(refuses(lab.alpha, 'ft-guest stop vm1', "'xl shutdown' does that") == 4, 'status')
    check(refuses(lab.alpha, 'ft-guest disk-detach vm1:0', 'has it: it is let go of when that domain ends') == 4, 'status')
    check(refuses(lab.beta, 'ft-guest start vm1', "'xl create' does that") == 4, 'status')
    check(refuses(lab.beta, 'ft-guest stop vm1', 'does not run here') == 3, 'status')
    lab.alpha.run('kill -9 $(pidof nbdkit)')
    wait_for('the server to be gone', lambda: lab.alpha.call('pidof nbdkit').returncode, 30, 0.2)
    lab.alpha.run('ft-guest start vm1')
    lab.shell('echo 3 >/proc/sys/vm/drop_caches; cat /data/appendonlydir/*.aof >/dev/null; sync', 120)


@test(limit=1200)
def disks_that_would_not_be_there_after_a_takeover_are_refused_by_name(shared):
    lab = shared.open()
    more = f'\n[disk]\nimage = {IMAGE}.2\nread-only = yes\n'
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file() + more)
    lab.alpha.run(f'truncate -s 8M {IMAGE}.2; xl block-attach vm1 vdev=xvdb,access=ro,script=block-ft,target=vm1:1', 120)
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file())
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'device 51728, that is not in its guest file' in done.stdout, done.stdout)
    lab.alpha.run('xl block-detach vm1 xvdb', 120)
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file() + more)
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'no disk xvdb served by ft' in done.stdout, done.stdout)
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file())
    node = f'/local/domain/0/backend/vbd/{lab.alpha.run("xl domid vm1").strip()}/51712/feature-persistent'
    check(lab.alpha.run(f'xenstore-read {node}').strip() == '0', 'the back end keeps grants')
    lab.alpha.run(f'xenstore-write {node} 1')           # as if block-ft had not switched them off
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'xvda uses persistent grants' in done.stdout, done.stdout)
    lab.alpha.run(f'xenstore-write {node} 0')
    lab.beta.run('mv /etc/xen/scripts/block-ft /etc/xen/scripts/kept')
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    lab.beta.run('mv /etc/xen/scripts/kept /etc/xen/scripts/block-ft')
    check(done.returncode and 'on beta there is no /etc/xen/scripts/block-ft' in done.stdout, done.stdout)


@test(limit=1200)
def a_server_that_is_killed_is_started_again_and_the_guest_sees_no_error(shared):
    lab = shared.protected()
    incr = IncrClient(lab, xenlab.GUEST_IP4, 'demo')
    incr.wait_replies(5, 120)
    lab.alpha.run('kill -9 $(pidof nbdkit)')
    at = now()
    wait_for('a reply after that', lambda: incr.reply_after(at + 5) or incr.broken(), 400)
    wait_for('PROTECTED', lambda: lab.state() == 'PROTECTED', 240, 1)
    incr.wait_replies(5, 120)
    v = incr.verdict()
    incr.stop()
    check(v['survived'] and not v['lost'] and not v['repeated'], f'{v}')
    said = lab.shell('dmesg | grep -i -E "ext4-fs (error|warning)|I/O error|journal.*abort" || echo none')
    check(said.strip() == 'none', f'the guest complains about its disk: {said}')
    print(f'# {verify(lab, lab.alpha)}')


@test(limit=1200)
def a_disk_that_is_another_under_the_same_name_stops_releases(shared):
    """xenstore says so as after a block-detach and a block-attach of another, which the guest need not allow."""
    lab = shared.protected()
    domid = lab.alpha.run('xl domid vm1').strip()
    params, touched = f'/local/domain/0/backend/vbd/{domid}/51712/params', f'/local/domain/{domid}/device/vbd/51712/touched'
    lab.alpha.run(f'xenstore-write {params} other:0 {touched} 1')
    wait_for('ft to notice', lambda: said(lab, 'it has other devices than when protection began'), 60, 0.2)
    first = an_epoch(lab)['epoch']
    lab.alpha.run('sleep 3', 120)
    check(an_epoch(lab)['epoch'] == first, 'epochs go on')
    lab.alpha.run(f'xenstore-write {params} vm1:0 {touched} 2')
    wait_for('more epochs', lambda: lab.state() == 'PROTECTED' and lab.status().get('epoch', 0) > first + 3, 180, 1)


def protect_back(lab):
    job = lab.beta.begin('export FT_DEBUG=1; ft-protect vm1 alpha >>/ft/log/protect.log 2>&1')
    wait_for('PROTECTED', lambda: lab.beta.status(job) is not None or lab.state(lab.beta) == 'PROTECTED', 300, 1)
    check(lab.beta.status(job) is None, f'ft-protect ended: {lab.beta.run("tail -5 /ft/log/protect.log")}')


@test(limit=1200)
def a_planned_failover_takes_the_disk_along_and_back(shared):
    lab = shared.protected()
    lab.shell('echo there >/data/there; sync')
    lab.alpha.run('ft-ctl failover vm1', 120)
    wait_for('the takeover', lambda: 'RUNNING here' in lab.beta.run('cat /ft/log/ftd.log'), 120, 1)
    check(lab.shell('echo 3 >/proc/sys/vm/drop_caches; cat /data/there', 120).strip() == 'there', 'the file is not there')
    check(lab.alpha.call('pidof nbdkit').returncode, 'alpha still serves the disk')
    refuses(lab.alpha, 'xl create /ft/guest/vm1.cfg', 'was handed over to beta')
    refuses(lab.alpha, 'ft-guest start vm1', 'was handed over to beta')
    refuses(lab.alpha, 'ft-protect vm1 beta', 'does not run here: it was handed over to beta: protect it there')
    protect_back(lab)
    lab.beta.run('ft-ctl unprotect vm1', 120)
    refuses(lab.alpha, 'xl create /ft/guest/vm1.cfg', 'stayed with beta')
    protect_back(lab)
    lab.shell('echo back >/data/back; sync', 120)
    print(f'# back towards alpha: {verify(lab, lab.beta)}')
    lab.beta.run('ft-ctl failover vm1', 120)
    wait_for('the takeover', lambda: 'RUNNING here' in lab.alpha.run('cat /ft/log/ftd.log'), 120, 1)
    check(lab.shell('echo 3 >/proc/sys/vm/drop_caches; cat /data/there /data/back', 120).split() == ['there', 'back'], 'the files are not there')


def written_is_there_after_a_power_cut(shared, kind, limit):
    """What the client was told is there, once: in the guest's memory, in the file on its disk, and the disk is in order."""
    lab = shared.protected(kind=kind)
    incr = IncrClient(lab, xenlab.GUEST_IP4, 'demo')
    incr.wait_replies(10, limit)
    print(f'# {verify(lab, lab.alpha)}')
    mirrored = disk(lab)['mirrored_bytes']
    incr.wait_replies(10, limit)
    check(disk(lab)['mirrored_bytes'] > mirrored, 'nothing is mirrored')
    lab.beta.write('/ft/again.cfg', xl_cfg(kind))
    refuses(lab.beta, 'xl create -p /ft/again.cfg', 'has its replica here and runs on alpha')
    refuses(lab.beta, 'ft-guest start vm1', 'has its replica here and runs on alpha')
    refuses(lab.beta, 'ft-guest disk-detach vm1:0', 'has it: it is let go of when that domain ends')
    v = cut_and_go_on(lab, incr, 20, limit)
    kept = on_disk(lab)
    check(v['last'] <= kept <= v['last'] + 1, f'the client was told of {v["last"]}, the append-only file has {kept}')
    check_image(lab, lab.beta)
    shared.close()


@test(limit=1200)
def what_was_written_and_acknowledged_is_there_once_after_a_power_cut(shared):
    written_is_there_after_a_power_cut(shared, 'guest', 120)


@test(limit=2400)
def what_an_hvm_guest_wrote_is_there_once_after_a_power_cut(shared):
    """Its disk is xvde; xvda, which its device model would emulate, is refused."""
    lab = shared.open('hvm')
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file('hvm') + f'\n[disk]\nimage = {IMAGE}.2\n')
    lab.alpha.run(f'truncate -s 8M {IMAGE}.2; xl block-attach vm1 vdev=xvda,script=block-ft,target=vm1:1', 120)
    lab.alpha.write('/etc/ft/guests/vm1.conf', guest_file('hvm'))
    done = lab.alpha.call('ft-protect --check vm1 beta', 120)
    check(done.returncode and 'device 51712, that its device model emulates, too' in done.stdout, done.stdout)
    lab.alpha.run('xl block-detach vm1 xvda', 120)
    written_is_there_after_a_power_cut(shared, 'hvm', 240)


if __name__ == '__main__':
    if not shutil.which('nbdkit'):
        print('1..0 # SKIP no nbdkit')
        sys.exit(77)
    run(SharedDisk())
