#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cannot work is refused in one clear line that names the object, with a documented exit status, and the
guest does not notice.
"""
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import time
import zlib

from lab import Lab, check, main, test, undone
from world import read_file, wait_for

OBSTACLE, REFUSED, USAGE = 3, 4, 2


def stop_ftd(lab):
    """Its children too, which keep nothing here: a child goes by the configuration that it was started with."""
    for pid in lab.backup.pids('ftd'):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_for('ftd to end', lambda: not lab.backup.pids('ftd'), 20)


def restart_ftd(lab):
    stop_ftd(lab)
    lab.ftd[lab.backup.name] = lab.w.start_ftd(lab.backup)


@contextlib.contextmanager
def edited(lab, host, path, edit, restart=False):
    """The file reads otherwise for a while."""
    before = read_file(host.path(path))
    mode = os.stat(host.path(path)).st_mode & 0o777
    host.write(path, edit(before), mode)
    try:
        if restart:
            restart_ftd(lab)
        yield
    finally:
        host.write(path, before, mode)
        if restart:
            restart_ftd(lab)


@contextlib.contextmanager
def no_ftd(lab):
    stop_ftd(lab)
    try:
        yield
    finally:
        lab.ftd[lab.backup.name] = lab.w.start_ftd(lab.backup)


def readable_key(lab):
    return undone(lab.primary, 'chmod 644 /etc/ft/tls/key.pem', 'chmod 600 /etc/ft/tls/key.pem')


def small_shm(lab):
    return undone(lab.backup, 'mount -o remount,size=64M /dev/shm', 'mount -o remount,size=50% /dev/shm')


def no_ram_file(lab):
    return undone(lab.primary, 'mv /dev/shm/ft/vm1.ram /dev/shm/ft/away', 'mv /dev/shm/ft/away /dev/shm/ft/vm1.ram')


def no_guest_file(lab):
    return undone(lab.backup, 'mv /etc/ft/guests/vm1.conf /etc/ft/vm1.away', 'mv /etc/ft/vm1.away /etc/ft/guests/vm1.conf')


@contextlib.contextmanager
def certificate_of(lab, host, name, ca=None):
    """The host presents the certificate of somebody else, or one of another CA."""
    tls = os.path.join(host.etc, 'ft/tls')
    saved = tls + '.saved'
    shutil.copytree(tls, saved)
    lab.w.issue(ca or os.path.join(lab.w.dir, 'ca'), name, host)
    try:
        restart_ftd(lab)
        yield
    finally:
        for file in os.listdir(saved):
            shutil.copy(os.path.join(saved, file), tls)
        shutil.rmtree(saved)
        restart_ftd(lab)


@contextlib.contextmanager
def expired_certificate(lab, host):
    cert, ca = os.path.join(host.etc, 'ft/tls/cert.pem'), os.path.join(lab.w.dir, 'ca')
    before, text = read_file(cert), os.path.join(lab.w.dir, 'ext')
    with open(text, 'w', encoding='utf-8') as f:
        f.write(f'subjectAltName = DNS:{host.name}\nextendedKeyUsage = serverAuth, clientAuth\n')
    sign = (f'openssl req -new -key {host.etc}/ft/tls/key.pem -subj /CN={host.name} | openssl x509 -req -CA {ca}/ca.pem '
            f'-CAkey {ca}/ca.key -set_serial 7 -extfile {text} -out {cert} ')
    # OpenSSL 3.5 refuses a lifetime in the past, 3.0 knows no dates here.
    subprocess.run(f'{sign} -not_before 20200101000000Z -not_after 20200102000000Z || {sign} -days -1', shell=True, check=True,
                   stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        with open(cert, 'w', encoding='utf-8') as f:
            f.write(before)


@contextlib.contextmanager
def other_qemu(lab, case):
    """The backup's QEMU answers some questions otherwise."""
    lab.backup.write('/etc/ft/qemu', f'#!/bin/sh\ncase "$*" in\n{case} ;;\n*) exec qemu-system-x86_64 "$@" ;;\nesac\n', 0o755)
    with edited(lab, lab.backup, '/etc/ft/ft.conf', lambda text: text.replace('[ft]', '[ft]\nqemu = /etc/ft/qemu'), True):
        yield


@contextlib.contextmanager
def stopped_qemu(lab):
    pids = lab.primary.pids('qemu')
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def in_place_of_ftd(lab, script):
    """A Python program on the backup that gets every connection to ftd's port as `c`."""
    program = ('import socket, ssl, struct\ns = socket.create_server(("", 7800))\nprint("listens", flush=True)\n'
               'while True:\n    c, _ = s.accept()\n    try:\n' + ''.join(f'        {line}\n' for line in script.splitlines()) +
               '    except OSError as e:\n        print(e, flush=True)\n')
    with no_ftd(lab):
        server = lab.backup.spawn(['python3', '-c', program], name='fake')
        wait_for('the other server', lambda: server.logged('listens'), 20)
        try:
            yield
        finally:
            server.kill(signal.SIGKILL)
            server.wait(10)


TALKS_FIRST = 'c.send(b"220 beta.example ESMTP ready\\r\\n")\nc.recv(4096)'
SAYS_NOTHING = 'while c.recv(4096): pass'
OTHER_VERSION = """\
while len(c.recv(8, socket.MSG_PEEK)) < 8: pass
c.recv(8)
t = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
t.minimum_version = ssl.TLSVersion.TLSv1_3
t.num_tickets = 1
t.load_cert_chain("/etc/ft/tls/cert.pem", "/etc/ft/tls/key.pem")
t.load_verify_locations("/etc/ft/tls/ca.pem")
t.verify_mode = ssl.CERT_REQUIRED
c = t.wrap_socket(c, server_side=True)
c.recv(4096)
text = b"we speak 7 to 9"
c.send(struct.pack("<II", 32, 56 + len(text)) + struct.pack("<II", 0, 1) + bytes(48) + text)
c.recv(4096)"""


@contextlib.contextmanager
def as_it_is(lab):
    yield


def conf_of(host, old, new):
    return lambda lab: edited(lab, getattr(lab, host), '/etc/ft/ft.conf', lambda text: text.replace(old, new), host == 'backup')


def guest_file(host, old, new):
    return lambda lab: edited(lab, getattr(lab, host), '/etc/ft/guests/vm1.conf', lambda text: text.replace(old, new))


# name: how things are, the command, its status, what its output must name, and what ftd's must
TABLE = {
    'an_unknown_guest': (as_it_is, 'ft-protect nobody beta', OBSTACLE, ['nobody']),
    'a_guest_that_does_not_run': (as_it_is, 'ft-protect vm2 beta', OBSTACLE, ['vm2', 'ft-guest start']),
    'no_host': (as_it_is, 'ft-protect vm1', USAGE, ['which host', 'ft-protect vm1 HOST']),
    'this_host_as_its_own_backup': (as_it_is, 'ft-protect vm1 alpha', USAGE, ['alpha is this host']),
    'a_status_asked_by_a_user': (as_it_is, 'setpriv --reuid 65534 --clear-groups ft-ctl status vm1', 1, ['vm1', 'run as root']),
    'a_second_ftd': (as_it_is, 'ftd', 1, ['7800', 'does ftd run already']),
    'a_backup_without_the_bridge': (guest_file('backup', 'br0', 'br7'), 'ft-protect vm1 beta', REFUSED,
                                    ['beta', 'lacks what the guest needs', 'no bridge br7', 'ip link add br7']),
    'no_arguments': (as_it_is, 'ft-protect', USAGE, ['usage']),
    'a_tracker_that_is_none': (as_it_is, 'ft-protect --tracker magic vm1 beta', USAGE, ['--tracker', 'magic', 'soft-dirty']),
    'an_unknown_host': (as_it_is, 'ft-protect vm1 gamma', REFUSED, ['gamma']),
    'a_backup_where_nobody_listens': (no_ftd, 'ft-protect vm1 beta', REFUSED, ['beta']),
    'a_key_that_all_can_read': (readable_key, 'ft-protect vm1 beta', OBSTACLE, ['/etc/ft/tls/key.pem']),
    'a_backup_with_another_name': (lambda lab: certificate_of(lab, lab.backup, 'delta'), 'ft-protect vm1 beta', REFUSED, ['beta']),
    'a_backup_of_another_ca': (lambda lab: certificate_of(lab, lab.backup, 'beta', os.path.join(lab.w.dir, 'ca2')),
                               'ft-protect vm1 beta', REFUSED, ['beta', 'certificate']),
    'a_guest_that_is_not_permitted': (conf_of('backup', 'guests = *', 'guests = vm2'), 'ft-protect vm1 beta', REFUSED, ['vm1']),
    'a_backup_without_the_guest_file': (lambda lab: edited(lab, lab.backup, '/etc/ft/guests/vm1.conf',
                                                            lambda text: text.replace('vm1', 'vm9')),
                                        'ft-protect vm1 beta', REFUSED, ['vm1']),
    'a_guest_file_that_differs': (guest_file('backup', 'vcpus = 2', 'vcpus = 1'), 'ft-protect vm1 beta', REFUSED, ['vcpus']),
    'a_backup_without_room': (small_shm, 'ft-protect vm1 beta', REFUSED, ['no room', 'beta', '/dev/shm', 'free some'], '/dev/shm'),
    'a_backup_without_qemu': (conf_of('backup', '[ft]', '[ft]\nqemu = /nowhere/qemu'), 'ft-protect vm1 beta',
                              REFUSED, ['beta', '/nowhere/qemu', 'install'], '/nowhere/qemu'),
    'a_backup_that_has_no_guest_file': (no_guest_file, 'ft-protect vm1 beta', REFUSED, ['vm1.conf', 'copy it']),
    'a_backup_with_another_qemu': (lambda lab: other_qemu(lab, '*--version*) echo QEMU emulator version 1.2.3'), 'ft-protect vm1 beta',
                                   REFUSED, ['QEMU 1.2.3', 'beta', 'install the same version']),
    'a_backup_without_the_machine_type': (lambda lab: other_qemu(lab, '"-machine help") echo "none  empty machine"'),
                                          'ft-protect vm1 beta', REFUSED, ['machine type pc-', 'beta', "'machine'"]),
    'a_backup_whose_certificate_has_expired': (lambda lab: expired_certificate(lab, lab.backup), 'ft-protect vm1 beta', REFUSED,
                                               ['beta', 'expired', 'ft-cert']),
    'an_expired_certificate_of_our_own': (lambda lab: expired_certificate(lab, lab.primary), 'ft-protect vm1 beta', OBSTACLE,
                                          ['cert.pem', 'expired', 'ft-cert']),
    'a_server_that_greets_first': (lambda lab: in_place_of_ftd(lab, TALKS_FIRST), 'ft-protect vm1 beta', REFUSED, ['beta', 'TLS', 'port in ft.conf']),
    'a_server_that_says_nothing': (lambda lab: in_place_of_ftd(lab, SAYS_NOTHING), 'ft-protect vm1 beta', REFUSED, ['beta', 'ftd']),
    'a_backup_of_another_protocol_version': (lambda lab: in_place_of_ftd(lab, OTHER_VERSION), 'ft-protect vm1 beta', REFUSED,
                                             ['beta', 'version', '7 to 9']),
    'a_qemu_that_does_not_answer': (stopped_qemu, 'ft-protect vm1 beta', OBSTACLE, ['vm1', 'qmp.sock', 'kill -CONT']),
    'a_guest_without_its_ram_file': (no_ram_file, 'ft-protect vm1 beta', OBSTACLE, ['vm1', '/dev/shm/ft/vm1.ram', 'start']),
    'an_operator_who_is_not_root': (as_it_is, 'setpriv --reuid 65534 --clear-groups ft-protect vm1 beta', OBSTACLE,
                                    ['vm1/attach', 'Permission denied', 'run as root']),
    'a_wrong_word_in_the_configuration': (conf_of('primary', '[policy]', '[policy]\nsilence-ms = soon'), 'ft-protect vm1 beta', USAGE,
                                          ['ft.conf:4', 'silence-ms']),
    'a_wrong_word_in_the_guest_file': (guest_file('primary', 'vcpus = 2', 'vcpus = two'), 'ft-protect vm1 beta', OBSTACLE,
                                       ['vm1.conf:4', 'vcpus']),
}


def check_untouched(lab):
    """The guest answers as before, and nothing of ours is left on either host."""
    incr = lab.w.incr('vm1', 'untouched')
    incr.wait_replies(20, 20)
    incr.stop()
    rules = lab.primary.call('nft list ruleset; iptables-save; ip6tables-save').stdout
    check('NFQUEUE' not in rules and 'queue' not in rules, f'rules are left: {rules}')
    wait_for('the parked replica to go', lambda: not lab.backup.pids('qemu'), 20)


def make_test(name, how, command, status, words, told_there=''):
    def refusal(lab):
        lab.running()
        with how(lab):
            done = lab.primary.call(command, 60)
            asked = lab.primary.call('ft-protect --check vm1 beta', 60) if command == 'ft-protect vm1 beta' else None
            check(not told_there or lab.ftd[lab.backup.name].logged(told_there), f'ftd does not name {told_there}')
        said = done.stdout.strip()
        check(done.returncode == status, f'"{command}" ended with {done.returncode}, not {status}: {said}')
        for word in words:
            check(word in said, f'"{command}" does not name {word}: {said}')
            check(not asked or word in asked.stdout, f'--check does not name {word}: {asked and asked.stdout}')
        check(not asked or asked.returncode == (USAGE if status == USAGE else OBSTACLE), f'--check: {asked and asked.returncode}')
        check_untouched(lab)
    refusal.__name__ = f'{name}_is_refused'
    return refusal


for the_name, row in TABLE.items():
    test(limit=120)(make_test(the_name, *row))


PRIMARY_OF_VERSIONS_7_TO_9 = """
import socket, ssl, struct
t = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
t.load_cert_chain("/etc/ft/tls/cert.pem", "/etc/ft/tls/key.pem")
t.load_verify_locations("/etc/ft/tls/ca.pem")
s = socket.create_connection(("beta", 7800))
s.send(b"FTr1\\x03vm1")
s = t.wrap_socket(s, server_hostname="beta")
s.send(struct.pack("<II", 1, 56) + struct.pack("<IIIIQQII", 7, 9, 0, 0, 1, 65536, 0, 0) + bytes(16))
got = b""
while len(got) < 16:
    got += s.recv(4096) or exit("closed without a WELCOME")
print("type %u version %u reason %u" % (*struct.unpack("<I", got[:4]), *struct.unpack("<II", got[8:16])))
"""


@test(limit=120)
def a_primary_of_another_protocol_version_is_refused(lab):
    lab.running()
    done = lab.primary.call(['python3', '-c', PRIMARY_OF_VERSIONS_7_TO_9])
    check('type 32 version 0 reason 1' in done.stdout, f'the answer: {done.stdout}')
    check(lab.ftd[lab.backup.name].logged('version'), 'ftd does not say so')
    check_untouched(lab)


STRANGERS = """
import socket, sys, time
kept = []
for n in range(int(sys.argv[1])):
    name = (sys.argv[2] % n if '%' in sys.argv[2] else sys.argv[2]).encode()
    kept.append(socket.create_connection(("beta", 7800)))
    kept[-1].send(b"FTr1" + bytes([len(name)]) + name)
print("said", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def strangers(lab, count, name):
    """Connections that say a guest's name and then nothing."""
    them = lab.primary.spawn(['python3', '-c', STRANGERS, str(count), name], name='strangers')
    wait_for('the strangers', lambda: them.logged('said'), 20)
    try:
        yield
    finally:
        them.kill(signal.SIGKILL)
        them.wait(10)


@test(limit=120)
def names_of_strangers_start_no_children(lab):
    lab.running()
    before = lab.backup.run('ls /run/ft/guests 2>/dev/null || true')
    with strangers(lab, 40, 'nobody%d'):
        wait_for('somebody to answer', lambda: len(lab.backup.pids('ftd')) > 1, 20)
        time.sleep(1)
        check(len(lab.backup.pids('ftd --')) <= 2, f'{len(lab.backup.pids("ftd --"))} children for guests that are unknown')
        check(lab.backup.run('ls /run/ft/guests 2>/dev/null || true') == before, 'they left directories')
    with no_guest_file(lab):        # and a peer that is one of ours is told, if need be among them
        lab.backup.run('rm -f /var/lib/ft/vm1.record')
        with strangers(lab, 20, 'nobody%d'):
            done = lab.primary.call('ft-protect vm1 beta', 60)
    check(done.returncode == REFUSED and 'copy it' in done.stdout, f'status {done.returncode}: {done.stdout}')


@test(limit=120)
def silent_connections_do_not_lock_the_primary_out(lab):
    lab.running()
    with strangers(lab, 40, 'vm1'):
        lab.protected()
        lab.check_goes_on()
    lab.primary.run('ft-ctl unprotect vm1', 60)
    lab.ft_protect.wait(30)


@test(limit=120)
def a_child_waits_until_the_one_before_it_has_ended(lab):
    """The lock stands for a child that has closed its door and still ends its links and its QEMU."""
    lab.running()
    stop_ftd(lab)
    lab.ftd[lab.backup.name] = ftd = lab.w.start_ftd(lab.backup)
    os.makedirs(lab.backup.path('/run/ft/guests/vm1'), exist_ok=True)
    with open(lab.backup.path('/run/ft/guests/vm1/standby.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked = lab.primary.spawn('ft-protect --check vm1 beta')
        wait_for('a child', lambda: ftd.logged('started its child'), 20)
        inode = f':{os.fstat(lock.fileno()).st_ino} '
        wait_for('it to wait', lambda: any('->' in line and inode in line for line in read_file('/proc/locks').splitlines()), 20)
        check(asked.running(), 'answered before the predecessor ended')
    check(asked.wait(30) == 0, f'refused: {asked.tail()}')


@test(limit=120)
def the_same_guest_is_not_protected_twice(lab):
    lab.protected()
    done = lab.primary.call('ft-protect vm1 beta', 30)
    check(done.returncode == OBSTACLE and 'vm1' in done.stdout, f'status {done.returncode}: {done.stdout}')
    done = lab.primary.call('ft-protect --check vm1 beta', 30)
    check(done.returncode == OBSTACLE and 'protected already' in done.stdout, f'status {done.returncode}: {done.stdout}')
    lab.wait_state('PROTECTED')
    lab.check_goes_on()


@test(limit=120)
def a_replica_that_may_be_started_elsewhere_forbids_another_peer(lab):
    """Of two backups neither knows what the other may start."""
    lab.protected()
    lab.ft_protect.kill(signal.SIGKILL)
    lab.ft_protect.wait(10)
    for command in ('ft-protect vm1 gamma', 'ft-protect --check vm1 gamma'):
        done = lab.primary.call(command, 30)
        check(done.returncode == OBSTACLE and 'beta may still start' in done.stdout, f'{command}: {done.returncode}: {done.stdout}')
    lab.ft_protect = lab.w.protect(lab.primary, 'vm1', lab.backup)
    lab.check_goes_on()


@test(limit=60)
def noise_on_the_port_harms_nobody(lab):
    lab.protected()
    for noise in ('head -c 100000 /dev/urandom', 'head -c 3 /dev/urandom', 'printf "GET / HTTP/1.0\\r\\n\\r\\n"', 'true'):
        lab.primary.call(f'{noise} | timeout 5 busybox nc {lab.backup.name} 7800 >/dev/null', 20)
    lab.wait_state('PROTECTED')
    check(lab.ftd[lab.backup.name].running(), 'ftd died of noise')
    lab.check_goes_on()


@test(limit=120)
def check_names_every_obstacle_and_touches_nothing(lab):
    lab.close()
    lab.running()
    before = lab.primary.run('nft list ruleset; iptables-save; find /run/ft /var/lib/ft /dev/shm | sort')
    done = lab.primary.call('ft-protect --check vm1 beta', 60)
    check(done.returncode == 0, f'--check finds obstacles where there are none: {done.stdout}')
    with readable_key(lab), no_ftd(lab):
        done = lab.primary.call('ft-protect --check vm1 beta', 60)
    check(done.returncode == OBSTACLE and 'key.pem' in done.stdout, f'status {done.returncode}: {done.stdout}')
    after = lab.primary.run('nft list ruleset; iptables-save; find /run/ft /var/lib/ft /dev/shm | sort')
    check(before == after, f'--check left something:\n{before}\n---\n{after}')


@test(limit=120)
def what_a_guest_that_ended_on_the_backup_left_is_no_obstacle(lab):
    """A fresh instance here just needs a larger generation, and --check knows; what else is in the way is still named."""
    lab.close()
    lab.running()
    text = 'ft-record 1 7 RUNNING alpha '
    lab.backup.write('/var/lib/ft/vm1.record', f'{text}{zlib.crc32(text.encode()):08x}\n')
    with guest_file('backup', 'vcpus = 2', 'vcpus = 1')(lab):
        done = lab.primary.call('ft-protect --check vm1 beta', 60)
    check(done.returncode == OBSTACLE and 'vcpus' in done.stdout, f'status {done.returncode}: {done.stdout}')
    done = lab.primary.call('ft-protect --check vm1 beta', 60)
    check(done.returncode == 0, f'--check finds an obstacle: {done.stdout}')
    lab.protected()
    check(lab.backup.run('cat /var/lib/ft/vm1.record').startswith('ft-record 1 8 ARMED'), 'not the next generation')


main(Lab())
