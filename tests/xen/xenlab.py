# SPDX-License-Identifier: GPL-3.0-or-later
"""The Xen lab: real Xen hosts under QEMU's software emulation, on a switch of this process's own network.

    alpha eth1 ---- lan ---- eth1 beta          lan: 10.77.0.100 is this process, the client; guests' vifs
    alpha eth0 ---- wire --- eth0 beta          wire: 10.78.0.1, .2: what the hosts say to each other

Hosts start from snapshots (build/xen/*.state) of a booted one, made when they are not there. All of it hangs on this
process: its network namespace and its QEMUs end with it, however it ends. build/xen-run/PID holds logs and shares.

    with Lab(guest_on='alpha') as lab:
        lab.alpha.run('xl list')
        lab.alpha.cut()
"""
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), 'hosts'))
from world import BUILD, CONTROL_PORT, OBJ, SHELL_PORT, STAGE, TOP, Failure, Process, now, read_file, wait_for      # noqa: E402  pylint: disable=C0413

XEN = os.path.join(BUILD, 'xen')
RUNS = os.path.join(BUILD, 'xen-run')
LIBC, CLONE_NEWNET, PR_SET_PDEATHSIG = ctypes.CDLL(None, use_errno=True), 0x40000000, 1
NUMBERS = {'alpha': 1, 'beta': 2, 'snap': 9}
GUEST_IP4, GUEST_IP6, GUEST_MAC = '10.77.0.10', 'fd77::10', '52:54:00:f7:00:01'
MEMORY = 128
CMDLINE = f'console=hvc0 mitigations=off quiet ft.ip4={GUEST_IP4}/24 ft.ip6={GUEST_IP6}/64 ft.tick=50'
XL_CFG = f'''name = "vm1"
type = "pvh"
kernel = "/ft/guest/vmlinux"
ramdisk = "/ft/guest/guest.cpio"
extra = "{CMDLINE}"
memory = {MEMORY}
vcpus = 1
vif = [ "mac={GUEST_MAC},bridge=xenbr0" ]
'''
# Of type hvm, by the snapshot's name: with Xen's drivers, and without, on a network card that QEMU emulates.
HVM = {'hvm': ('', 'type=vif'), 'hvm-plain': (' xen_nopv no_timer_check', 'type=ioemu,model=rtl8139')}


def guest_cmdline(kind):
    return CMDLINE + (HVM[kind][0] if kind in HVM else '')


def xl_cfg(kind):
    if kind not in HVM:
        return XL_CFG
    return f'''name = "vm1"
type = "hvm"
kernel = "/ft/guest/vmlinuz"
ramdisk = "/ft/guest/guest.zst"
extra = "{guest_cmdline(kind)}"
memory = {MEMORY}
vcpus = 1
vga = "none"
vnc = 0
usb = 0
vkb_device = 0
vif = [ "mac={GUEST_MAC},bridge=xenbr0,{HVM[kind][1]}" ]
'''


# Without AES, what TLS costs is all that one would measure.
CPU = 'qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq'
CPUS = int(os.environ.get('XEN_CPUS', 1))       # of each host; from two on, dom0 has one and the guest does not use that one
HYPERVISOR_ARGS = ('console=com1 com1=115200,8n1 dom0_mem=640M,max:640M dom0_max_vcpus=1 loglvl=info guest_loglvl=info watchdog=0 '
                   'spec-ctrl=no xpti=no pv-l1tf=no iommu=no cpuidle=0 cpufreq=none ucode=no')
DOM0_ARGS = 'console=hvc0 mitigations=off nokaslr panic=-1 net.ifnames=0'


def sh(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f'{" ".join(command)}: {done.stderr.strip()}')
    return done.stdout


def die_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def make_network():
    """A namespace for this process, with two bridges. What is in it goes when this process goes, or makes another."""
    if LIBC.unshare(CLONE_NEWNET):
        raise Failure(f'unshare: {os.strerror(ctypes.get_errno())} (root is needed)')
    sh('ip', 'link', 'set', 'lo', 'up')
    for bridge in ('lan', 'wire'):
        sh('ip', 'link', 'add', bridge, 'type', 'bridge')
        sh('ip', 'link', 'set', bridge, 'up')
    sh('ip', 'addr', 'add', '10.77.0.100/24', 'dev', 'lan')
    sh('ip', 'addr', 'add', 'fd77::100/64', 'dev', 'lan', 'nodad')
    # A guest whose answer to ARP waits for an epoch is slow to answer here, and three questions are all that Linux asks.
    for address in (GUEST_IP4, GUEST_IP6):
        sh('ip', 'neigh', 'replace', address, 'lladdr', GUEST_MAC, 'dev', 'lan', 'nud', 'permanent')


def make_images():
    """Exit status 77 of mklab.sh: cannot be had here."""
    done = subprocess.run([os.path.join(HERE, 'mklab.sh'), XEN], stdout=sys.stderr, check=False)
    if done.returncode == 77:
        print('1..0 # SKIP the packages of the Xen lab cannot be had here')
        sys.exit(77)
    if done.returncode:
        raise Failure('mklab.sh failed')


class Done:
    def __init__(self, rc, text):
        self.returncode, self.stdout = rc, text


class Host:
    """A machine with Xen; its dom0 runs what `call` is given."""

    def __init__(self, directory, name):
        self.name, self.number = name, NUMBERS[name]
        self.ip = f'10.78.0.{self.number}'
        self.dir = os.path.join(directory, name)
        self.jobs = 0
        self.popen = self.killed_at = None
        os.makedirs(os.path.join(self.dir, 'share'))
        for fifo in ('ctl.in', 'ctl.out'):
            os.mkfifo(self.path(fifo))

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def share(self, *parts):
        return self.path('share', *parts)

    # -- the machine --

    def _nic(self, n, bridge):
        tap = f'{self.name}{n}'
        sh('ip', 'tuntap', 'add', tap, 'mode', 'tap')
        sh('ip', 'link', 'set', tap, 'master', bridge, 'up')
        return ['-netdev', f'tap,id=n{n},ifname={tap},script=no,downscript=no',
                '-device', f'virtio-net-pci,netdev=n{n},mac=52:54:00:00:0{n}:09']

    def start(self, state=None):
        command = ['qemu-system-x86_64', '-name', self.name, '-machine', 'q35,hpet=off', '-accel', 'tcg,thread=multi,tb-size=256',
                   '-cpu', CPU, '-smp', str(CPUS), '-m', '1664', '-nodefaults', '-no-user-config', '-display', 'none',
                   '-no-reboot', '-kernel', os.path.join(XEN, 'xen'), '-append', HYPERVISOR_ARGS,
                   '-initrd', f'{XEN}/vmlinux {DOM0_ARGS},{XEN}/dom0.cpio',
                   '-chardev', f'file,id=serial,path={self.path("serial.log")}', '-serial', 'chardev:serial',
                   '-chardev', f'pipe,id=ctl,path={self.path("ctl")}',
                   '-device', 'virtio-serial-pci', '-device', 'virtserialport,chardev=ctl,name=ctl',
                   '-fsdev', f'local,id=fs0,path={self.path("share")},security_model=none',
                   '-device', 'virtio-9p-pci,fsdev=fs0,mount_tag=hostshare',
                   '-qmp', f'unix:{self.path("qmp")},server=on,wait=off',
                   *self._nic(0, 'wire'), *self._nic(1, 'lan')]
        if state:
            command += ['-incoming', f'exec:zstd -dqc {state}']
        with open(self.path('qemu.log'), 'wb') as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        if 'XEN_LAB_NICE' in os.environ:
            self._renice(os.environ['XEN_LAB_NICE'])
        if state:
            self._wait_incoming()
        else:
            wait_for(f'{self.name} to boot', lambda: '@@ ready' in self.serial(), 300, 0.2)
        self._personalise()

    def _renice(self, nice):
        """A session's processes are weighed among themselves, where the kernel groups them, so the group counts, too."""
        os.setpriority(os.PRIO_PROCESS, self.popen.pid, int(nice))
        try:
            with open(f'/proc/{self.popen.pid}/autogroup', 'w', encoding='utf-8') as f:
                f.write(nice)
        except OSError:
            pass

    def serial(self):
        self.check_alive()
        try:
            with open(self.path('serial.log'), encoding='utf-8', errors='replace') as f:
                return f.read()
        except FileNotFoundError:
            return ''

    def check_alive(self):
        if not self.popen or self.popen.poll() is not None:
            raise Failure(f'{self.name}: QEMU is gone: {read_file(self.path("qemu.log"))[-500:]}')

    def qmp(self, *commands):
        """The last command's answer. QEMU turns a connection away while the one before is still ending."""
        return wait_for(f'{self.name}: QMP', lambda: self._qmp(commands), 60)[0]

    def _qmp(self, commands):
        self.check_alive()
        answer = {'return': None}
        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(self.path('qmp'))
                f = s.makefile('rw')
                f.readline()
                for command, arguments in [('qmp_capabilities', {}), *commands]:
                    f.write(json.dumps({'execute': command, 'arguments': arguments}) + '\n')
                    f.flush()
                    answer = json.loads(f.readline())
                    while 'event' in answer:
                        answer = json.loads(f.readline())
                    if 'error' in answer:
                        raise Failure(f'{self.name}: {command}: {answer["error"]["desc"]}')
        except (OSError, ValueError):
            return None
        return (answer['return'],)

    def _wait_incoming(self):
        """The machine was stopped when its state was taken, so it comes up paused."""
        wait_for(f'{self.name} to load', lambda: self.qmp(('query-status', {}))['status'] != 'inmigrate', 120, 0.1)
        self.qmp(('cont', {}))

    def _personalise(self):
        self.run(f'hostname {self.name}; date -s @{int(time.time())} >/dev/null; '
                 f'for n in 0 1; do ip link set eth$n down; ip link set eth$n address 52:54:00:00:0$n:0{self.number}; ip link set eth$n up; done; '
                 f'ip addr flush dev eth0; ip addr flush dev xenbr0; ip addr add {self.ip}/24 dev eth0; ip addr add 10.77.0.{self.number}/24 dev xenbr0')
        if CPUS > 1:
            self.run('xl vcpu-pin Domain-0 all 0')

    def save(self, state):
        """Stop, and leave what the machine is in @state."""
        with open(self.path('ctl.in'), 'w', encoding='utf-8') as f:
            f.write('UNSHARE\n')
        wait_for('the share to be let go', lambda: '@@ unshared' in self.serial(), 60)
        self.qmp(('stop', {}), ('migrate-set-parameters', {'max-bandwidth': 4 << 30}),
                 ('migrate', {'uri': f'exec:zstd -1 -q -f -o {state}.new'}))
        status = lambda: self.qmp(('query-migrate', {})).get('status')      # noqa: E731
        wait_for('the snapshot', lambda: status() in ('completed', 'failed'), 300, 0.2)
        if status() != 'completed':
            raise Failure(f'{self.name}: no snapshot: {self.qmp(("query-migrate", {}))}')
        self.cut()
        os.rename(state + '.new', state)

    def cut(self):
        """The power goes."""
        if self.popen and self.popen.poll() is None:
            self.popen.kill()
        if self.popen:
            self.killed_at = now()
            self.popen.wait()
        self.popen = None

    # -- dom0 --

    def begin(self, command):
        """Start @command; returns the job's id."""
        self.check_alive()
        self.jobs += 1
        job = f'j{self.jobs}'
        with open(self.share(job + '.sh'), 'w', encoding='utf-8') as f:
            f.write(command + '\n')
        with open(self.path('ctl.in'), 'w', encoding='utf-8') as f:
            f.write(job + '\n')
        return job

    def output(self, job):
        try:
            with open(self.share(job + '.out'), encoding='utf-8', errors='replace') as f:
                return f.read()
        except FileNotFoundError:
            return ''

    def status(self, job):
        try:
            with open(self.share(job + '.rc'), encoding='utf-8') as f:
                return int(f.read())
        except FileNotFoundError:
            self.check_alive()
            return None

    def call(self, command, limit=120):
        job = self.begin(command)
        rc = wait_for(f'{self.name}: {command[:60]}', lambda: (self.status(job) is not None and (self.status(job),)), limit, 0.02)[0]
        return Done(rc, self.output(job))

    def run(self, command, limit=120):
        done = self.call(command, limit)
        if done.returncode:
            raise Failure(f'{self.name}: "{command[:200]}" ended with {done.returncode}: {done.stdout[-2000:]}')
        return done.stdout

    def write(self, path, text):
        with open(self.share('file'), 'w', encoding='utf-8') as f:
            f.write(text)
        self.run(f'mkdir -p {os.path.dirname(path)} && cp /host/file {path}')

    def give_model(self):
        """What HVM guests need is not in dom0's image."""
        shutil.copy(os.path.join(XEN, 'model.tar'), self.share('model.tar'))
        self.run('tar -C / -xf /host/model.tar; rm /host/model.tar')

    def save_logs(self):
        if self.popen and self.popen.poll() is None:
            self.call('mkdir -p /host/logs; cp -r /var/log/xen /ft/log/* /run/ft/guests/*/*.log /host/logs/ 2>/dev/null; '
                      'dmesg | tail -50 >/host/logs/dmesg; xl dmesg | tail -50 >/host/logs/xl-dmesg; xl list >/host/logs/xl-list; '
                      'xenstore-ls -f >/host/logs/xenstore; true', 120)


class Local(Process):
    """A program on this side: the client."""

    def pid(self):
        return self.popen.pid


class Client:
    def spawn(self, command, name):
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=die_with_parent)
        return Local(name, popen)


# -- snapshots --

def _make_ready(directory, state):
    """A host that has booted and holds the guest's files; nothing of ft."""
    host = Host(directory, 'snap')
    try:
        os.makedirs(host.share('guest'))
        for name in ('vmlinux', 'guest.cpio'):
            os.link(os.path.join(XEN, name), host.share('guest', name))
        host.start()
        host.run('cp -r /host/guest /ft/ && mkdir -p /ft/log')
        host.save(state)
    finally:
        host.cut()


def _make_guest(directory, state, kind='guest'):
    """The same with vm1 on it, paused: QEMU cannot load a processor that is inside a guest."""
    host = Host(directory, 'snap')
    try:
        host.start(snapshot(directory, 'ready'))
        if kind in HVM:
            host.give_model()
        host.write('/ft/guest/vm1.cfg', xl_cfg(kind))
        host.run('xl create /ft/guest/vm1.cfg', 120)
        wait_for('vm1 to be up', lambda: ask('stat', 5) is not None, 1200 if kind in HVM else 600, 1)
        host.run('xl pause vm1')
        host.save(state)
    finally:
        host.cut()


def snapshot(directory, kind):
    state = os.path.join(XEN, kind + ('' if CPUS == 1 else f'-{CPUS}cpus') + '.state')
    if not os.path.exists(state):
        print(f'# making the snapshot {kind}', flush=True)
        make = os.path.join(directory, 'make-' + kind)
        os.makedirs(make)
        if kind == 'ready':
            _make_ready(make, state)
        else:
            _make_guest(make, state, kind)
        for tap in ('snap0', 'snap1'):
            subprocess.run(['ip', 'link', 'del', tap], check=False, stderr=subprocess.DEVNULL)
    return state


def sweep():
    """What labs left behind whose process is gone."""
    for pid in os.listdir(RUNS) if os.path.isdir(RUNS) else []:
        if pid.isdigit() and not os.path.exists(f'/proc/{pid}'):
            shutil.rmtree(os.path.join(RUNS, pid), ignore_errors=True)


def ask(command, limit=10):
    """One command to the guest's agent, said again each five seconds; its answer, or None."""
    end = now() + limit
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5)
        while now() < end:
            try:
                s.sendto(command.encode(), (GUEST_IP4, CONTROL_PORT))
                return s.recv(512).decode()
            except OSError:
                pass
    return None


class Lab:
    """@hosts by name; vm1, of @kind, runs on @guest_on."""

    def __init__(self, hosts=('alpha', 'beta'), guest_on='alpha', software=True, kind='guest'):
        make_images()
        sweep()
        self.dir = os.path.join(RUNS, str(os.getpid()))
        os.makedirs(self.dir, exist_ok=True)
        make_network()
        self.hosts, self.client, self.kind = [], Client(), kind
        try:
            for name in hosts:
                state = snapshot(self.dir, kind if name == guest_on else 'ready')
                host = Host(self.dir, name)
                setattr(self, name, host)
                self.hosts.append(host)
                host.start(state)
                if name == guest_on:
                    if CPUS > 1:
                        host.run(f'xl vcpu-pin vm1 all 1-{CPUS - 1}')
                    host.run('xl unpause vm1')
                elif kind in HVM:
                    host.give_model()
            if software:
                self.install()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind:
            self.keep_logs()
        self.close()

    def keep_logs(self):
        for host in self.hosts:
            try:
                host.save_logs()
            except Failure as e:
                print(f'# {e}')
        kept = os.path.join(BUILD, 'xen-failed')
        shutil.rmtree(kept, ignore_errors=True)
        ignore = shutil.ignore_patterns('ft.tar', 'guest', 'ctl.*', 'qmp', 'root', 'pki', 'make-*')
        shutil.copytree(self.dir, kept, ignore=ignore, dirs_exist_ok=True)
        print(f'# logs are kept in {kept}', flush=True)

    def close(self):
        for host in self.hosts:
            host.cut()
        self.hosts = []
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- what world.py's clients want of a world --

    def log_path(self, kind):
        self.logs = getattr(self, 'logs', 0) + 1
        return os.path.join(self.dir, f'{self.logs}-{kind}.log')

    def ask(self, command, limit=10):
        return ask(command, limit)

    @staticmethod
    def shell(script, limit=60):
        """What a shell script in a guest with a disk prints; its errors, too."""
        with socket.create_connection((GUEST_IP4, SHELL_PORT), limit) as s:
            s.sendall(f'exec 2>&1\n{script}\n'.encode())
            s.shutdown(socket.SHUT_WR)
            return b''.join(iter(lambda: s.recv(65536), b'')).decode(errors='replace')

    # -- ft on the hosts --

    def start_ftd(self, host):
        host.run('kill $(pidof ftd) 2>/dev/null; ftd >>/ft/log/ftd.log 2>&1 &')

    def protect(self, debug=True):
        """ft-protect on alpha; returns its job when vm1 is PROTECTED. To ask it each second would cost what is waited for."""
        log = '/ft/log/protect.log'
        seen = self.alpha.begin(f"touch {log}; mkfifo /ft/lines; tail -n 0 -f {log} >/ft/lines & "
                                "grep -q -m1 -e '-> PROTECTED' /ft/lines; rm /ft/lines; kill $!")
        job = self.alpha.begin(f'{"export FT_DEBUG=1; " * debug}ft-protect vm1 beta >>{log} 2>&1')
        wait_for('PROTECTED', lambda: self.alpha.status(job) is not None or self.alpha.status(seen) is not None, 600, 0.2)
        if self.alpha.status(job) is not None:
            raise Failure(f'ft-protect ended: {self.alpha.run("tail -5 /ft/log/protect.log")}')
        return job

    def status(self, host=None):
        done = (host or self.alpha).call('ft-ctl status vm1 --json', 60)
        return json.loads(done.stdout) if done.returncode == 0 and done.stdout.startswith('{') else {}

    def state(self, host=None):
        return self.status(host).get('state')

    def install(self):
        """Programs with the libraries that dom0 lacks, certificates, configuration."""
        archive = pack(self.dir)
        for host in self.hosts:
            shutil.copy(archive, host.share('ft.tar'))
            host.run('tar -C / -xf /host/ft.tar && rm /host/ft.tar')
            host.run(f'cd /etc/ft/tls && mv {host.name}.pem cert.pem && mv {host.name}.key key.pem && chmod 600 key.pem')
            peer = 'beta' if host.name == 'alpha' else 'alpha'
            host.write('/etc/ft/ft.conf', f'[ft]\nhost = {host.name}\n\n[policy]\nsilence-ms = 5000\nheartbeat-ms = 500\nstaging-mb = 32\ngrace-ms = 60000\n\n'
                       f'[peer {peer}]\naddress = 10.78.0.{NUMBERS[peer]}\nguests = vm1\n')
            host.write('/etc/ft/guests/vm1.conf', guest_file(self.kind))


GUEST_FILE = f'''[guest]
name = vm1
hypervisor = xen
memory = {MEMORY}M
vcpus = 1
kernel = /ft/guest/vmlinux
initrd = /ft/guest/guest.cpio
cmdline = {CMDLINE}

[nic]
mac = {GUEST_MAC}
bridge = xenbr0
'''


def guest_file(kind):
    if kind not in HVM:
        return GUEST_FILE
    text = GUEST_FILE.replace('= xen\n', '= xen\ntype = hvm\n').replace('/vmlinux', '/vmlinuz').replace('/guest.cpio', '/guest.zst')
    return text.replace(CMDLINE, guest_cmdline(kind))


def libraries(programs):
    """{name: path} of what they are linked with and what dom0's image lacks."""
    have = set(os.listdir(os.path.join(XEN, 'dom0/lib/x86_64-linux-gnu'))) | {'ld-linux-x86-64.so.2'}
    found = {}
    for program in programs:
        out = subprocess.run(['ldd', program], capture_output=True, text=True, check=False).stdout
        for word in out.split():
            if word.startswith('/') and os.path.basename(word) not in have:
                found[os.path.basename(word)] = word
    return found


def pack(directory):
    """One archive for all hosts, to be unpacked at /."""
    root = os.path.join(directory, 'root')
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(STAGE, root)
    tools = os.path.join(root, 'usr/local/bin')
    xen_tools = os.path.join(OBJ, 'xen')
    for name in os.listdir(xen_tools) if os.path.isdir(xen_tools) else []:
        if os.access(os.path.join(xen_tools, name), os.X_OK) and not name.endswith('.d'):
            shutil.copy(os.path.join(xen_tools, name), tools)
    if shutil.which('nbdkit'):
        shutil.copy(shutil.which('nbdkit'), tools)
    programs = [os.path.join(d, f) for d, _, names in os.walk(root) for f in names]
    os.makedirs(os.path.join(root, 'lib/x86_64-linux-gnu'))
    for name, path in libraries(programs).items():
        shutil.copy(path, os.path.join(root, 'lib/x86_64-linux-gnu', name))
    tls = os.path.join(root, 'etc/ft/tls')
    os.makedirs(tls)
    cert = os.path.join(STAGE, 'usr/local/bin/ft-cert')
    pki = os.path.join(directory, 'pki')
    if not os.path.exists(pki):
        sh(cert, 'ca', pki)
        for host in ('alpha', 'beta'):
            sh(cert, 'host', host, pki)
    for name in ('ca.pem', 'alpha.pem', 'alpha.key', 'beta.pem', 'beta.key'):
        shutil.copy(os.path.join(pki, name), tls)
    archive = os.path.join(directory, 'ft.tar')
    sh('tar', '-C', root, '--owner=0', '--group=0', '-cf', archive, '.')
    return archive
