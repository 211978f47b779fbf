# SPDX-License-Identifier: GPL-3.0-or-later
"""The test world: hosts alpha and beta, a switch, a client, and a cable between the hosts.

Each of them has its own network, mounts, processes and name (tests/tools/hostinit.c is its PID 1), its own
/etc, /var/lib, /run, /dev/shm and /tmp; nothing is shared but the wire. All of it hangs on this process: when
it ends, however it ends, the kernel takes everything away, and only the files of the hosts' "disks"
(build/world/PID, /dev/shm/ft-worlds/PID) have to be removed, if need be by the next world.

    client ---- switch ---- br0 alpha eth1 ==wire== eth1 beta br0 ---- switch
      10.77.0.100            10.77.0.1  10.78.0.1    10.78.0.2  10.77.0.2

    with World() as w:
        w.start_guest(w.alpha, 'vm1')
        w.alpha.run('ft-ctl list')
        w.power_cut(w.alpha)
"""
import bisect
import contextlib
import ctypes
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(TOP, os.environ.get('BUILD', 'build'))
OBJ = os.environ.get('FT_OBJ') or os.path.join(BUILD, 'obj')
TOOLS = os.environ.get('FT_TOOLS') or os.path.join(OBJ, 'tools')
GUEST = os.path.join(BUILD, 'guest')
STAGE = os.environ.get('FT_STAGE') or os.path.join(OBJ, 'stage')
WORLDS, WORLDS_RAM = os.path.join(BUILD, 'world'), '/dev/shm/ft-worlds'
PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
ENVIRONMENT = {**{k: v for k, v in os.environ.items() if k.startswith(('FT_', 'ASAN_', 'UBSAN_', 'TSAN_'))}, 'PATH': PATH}
LAN4, LAN6, REPL4, REPL6 = '10.77.0.', 'fd77::', '10.78.0.', 'fd78::'
CONTROL_PORT, ECHO_PORT, SHELL_PORT = 7001, 7002, 7004
LIBC, CLONE_NEWNET = ctypes.CDLL(None, use_errno=True), 0x40000000


class Failure(Exception):
    """A promise was not kept, or the world could not be made."""


def now():
    """Seconds, CLOCK_MONOTONIC: the one clock of all hosts here and of all logs."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wait_for(what, predicate, limit, every=0.02):
    """The predicate's first true value. The limit is generous: it only ends a test that is lost."""
    end = now() + limit
    while True:
        value = predicate()
        if value:
            return value
        if now() > end:
            raise Failure(f'{what}: not within {limit} s')
        time.sleep(every)


def tool(name):
    return os.path.join(TOOLS, name)


def in_netns(pid, command):
    done = subprocess.run(['nsenter', '-t', str(pid), '-n', 'sh', '-c', command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f'"{command}": {done.stderr.strip()}')


# ---- processes ----

class Process:
    """A program on a host. Each line it prints is kept with the instant it came."""

    def __init__(self, name, popen, show=None):
        self.name, self.popen, self.show = name, popen, show
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for raw in self.popen.stdout:
            for line in raw.decode(errors='replace').replace('\r', '\n').splitlines():
                if line.strip():
                    self.lines.append((now(), line))
                    if self.show:
                        self.show(self.name, line)

    def pid(self):
        """The program itself: tests/tools/enter is its parent."""
        me = self.popen.pid
        path = f'/proc/{me}/task/{me}/children'
        return wait_for(f'{self.name} to start', lambda: [int(p) for p in read_file(path).split()], 10)[0]

    def kill(self, sig=signal.SIGTERM):
        try:
            os.kill(self.pid(), sig)
        except (ProcessLookupError, Failure):
            pass

    def wait(self, limit):
        try:
            rc = self.popen.wait(limit)
        except subprocess.TimeoutExpired:
            raise Failure(f'{self.name} still runs after {limit} s') from None
        self._reader.join(0.5)          # a child of its own may keep the pipe open
        return rc

    def stop(self, limit=10):
        if self.popen.poll() is None:
            self.kill()
        return self.wait(limit)

    def running(self):
        return self.popen.poll() is None

    def logged(self, part):
        """The instant of the first line that contains it, or None."""
        return next((t for t, line in list(self.lines) if part in line), None)

    def tail(self, n=30):
        return '\n'.join(line for _, line in self.lines[-n:])


def read_file(path):
    try:
        with open(path, encoding='utf-8', errors='replace') as f:
            return f.read()
    except OSError:
        return ''


class Node:
    """A network, mount and PID namespace with its PID 1: a host, the switch or the client."""

    def __init__(self, world, name, mounts=()):
        self.world, self.name, self.mounts = world, name, list(mounts)
        self.init = self.pid1 = None

    def power_on(self):
        self.init = subprocess.Popen([tool('hostinit'), self.name, *self.mounts], stdout=subprocess.PIPE,
                                     start_new_session=True)
        line = self.init.stdout.readline()
        if not line:
            raise Failure(f'{self.name}: no namespaces here (are you root?)')
        self.pid1 = int(line)
        self.run('ip link set lo up')

    def power_off(self):
        if not self.init:
            return
        try:
            os.kill(self.pid1, signal.SIGKILL)      # hostinit itself waits for it and ends
        except (ProcessLookupError, TypeError):
            self.init.kill()
        self._gone()

    def _gone(self):
        self.init.wait()
        self.init.stdout.close()
        self.init = None

    def net(self, command):
        """In its network only: PIDs are ours, so that a cable to another node can be named."""
        in_netns(self.pid1, command)

    def _enter(self, command):
        argv = ['sh', '-c', command] if isinstance(command, str) else list(command)
        return [tool('enter'), str(self.pid1), *argv]

    def call(self, command, limit=30):
        """Run it to its end: a CompletedProcess with text output, both streams together in stdout."""
        try:
            return subprocess.run(self._enter(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=limit, text=True, errors='replace',
                                  start_new_session=True, env=ENVIRONMENT, check=False)
        except subprocess.TimeoutExpired as e:
            raise Failure(f'{self.name}: "{command}" hangs for more than {limit} s: {e.output}') from None

    def run(self, command, limit=30):
        done = self.call(command, limit)
        if done.returncode:
            raise Failure(f'{self.name}: "{command}" failed with status {done.returncode}: {done.stdout.strip()}')
        return done.stdout

    def spawn(self, command, show=None, name=None):
        words = shlex.split(command) if isinstance(command, str) else command
        popen = subprocess.Popen(self._enter(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, start_new_session=True, env=ENVIRONMENT)
        process = Process(name or os.path.basename(words[0]), popen, show)
        self.world.processes.append(process)
        return process

    def path(self, path):
        """The host's file as this process reaches it."""
        return f'/proc/{self.pid1}/root{path}'

    def pids(self, command):
        """PIDs (ours, not the host's) of programs here whose command line starts so, oldest first."""
        mine, found = os.readlink(f'/proc/{self.pid1}/ns/pid'), []
        for pid in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.readlink(f'/proc/{pid}/ns/pid') != mine:
                    continue
            except OSError:
                continue
            args = read_file(f'/proc/{pid}/cmdline').split('\0')
            if ' '.join([os.path.basename(args[0]), *args[1:]]).startswith(command):
                found.append(int(pid))
        return sorted(found)


class Host(Node):
    """alpha or beta: a node with disks that outlive a power cut, a bridge br0 and the programs installed."""

    def __init__(self, world, name, number):
        self.number, self.etc, var = number, os.path.join(world.ram, name), os.path.join(world.dir, name)
        shutil.copytree('/etc', self.etc, symlinks=True, ignore_dangling_symlinks=True)
        os.makedirs(var)
        mounts = ['-b', self.etc, '/etc', '-b', var, '/var/lib', '-b', GUEST, '/srv']
        if os.path.isdir(STAGE):
            mounts += ['-b', os.path.join(STAGE, 'usr/local'), '/usr/local']
        else:
            mounts += ['-t', '/usr/local']
        mounts += ['-t', '/dev/shm', '-t', '/run']
        if not TOP.startswith('/tmp/'):
            mounts += ['-t', '/tmp']
        super().__init__(world, name, mounts)

    def plug_in(self):
        """Cables, addresses and the bridge: what an operator's network configuration does at boot."""
        n, port = self.number, f'p{self.name}'
        # The kernel takes a dead host's end away in its own time.
        self.world.switch.net(f'ip link del {port} 2>/dev/null; ip link add {port} type veth peer name eth0 netns {self.pid1} && '
                              f'ip link set {port} master sw0 up')
        in_netns(self.world.wire_pid(), f'ip link del w{n - 1} 2>/dev/null; '
                                        f'ip link add w{n - 1} type veth peer name eth1 netns {self.pid1}')
        self.world.wire(f'attach {n - 1}')
        mac = f'02:f7:00:00:{n:02x}:'            # cards keep their addresses over a power cut
        self.run(f'ip link set eth0 address {mac}00 && ip link set eth1 address {mac}01 && '
                 f'ip link add br0 address {mac}00 type bridge forward_delay 0 && '
                 f'ip link set eth0 master br0 up && ip link set br0 up && ip addr add {LAN4}{n}/24 dev br0 && '
                 f'ip -6 addr add {LAN6}{n}/64 dev br0 nodad && '
                 f'ip link set eth1 up && ip addr add {REPL4}{n}/24 dev eth1 && '
                 f'ip -6 addr add {REPL6}{n}/64 dev eth1 nodad')

    def write(self, path, text, mode=0o644):
        real = self.path(path)
        os.makedirs(os.path.dirname(real), exist_ok=True)
        with open(real, 'w', encoding='utf-8') as f:
            f.write(text)
        os.chmod(real, mode)

    def status(self, guest):
        """What `ft-ctl status GUEST --json` says, or None where nobody protects or keeps the guest."""
        done = self.call(['ft-ctl', 'status', guest, '--json'], 15)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            return None
        return answer if done.returncode == 0 and isinstance(answer, dict) else None

    def state(self, guest):
        answer = self.status(guest)
        return str(answer.get('state', '')).upper() if answer else ''

    def wait_state(self, guest, state, limit=60):
        wait_for(f'{guest} on {self.name} to be {state}', lambda: self.state(guest) == state, limit, every=0.25)


# ---- what a guest is ----

class Guest:
    """With `disk_mb` it has an ext4 file system on its first disk, and Redis keeps its data there."""

    def __init__(self, name, number, memory_mb=256, vcpus=2, disk_mb=0):
        self.name, self.memory_mb, self.vcpus, self.disk_mb = name, memory_mb, vcpus, disk_mb
        self.mac = f'52:54:00:77:00:{number:02x}'
        self.ip4, self.ip6 = f'{LAN4}{number}', f'{LAN6}{number:x}'
        self.image = f'/var/lib/images/{name}.img'      # on each host

    def file(self):
        disk = f'[disk]\nimage = {self.image}\n' if self.disk_mb else ''
        return (f'[guest]\nname = {self.name}\nmemory = {self.memory_mb}M\nvcpus = {self.vcpus}\n'
                f'kernel = /srv/vmlinuz\ninitrd = /srv/initrd{"-disk" if disk else ""}.img\n'
                f'cmdline = console=ttyS0 quiet nokaslr panic=5 clocksource=hpet tsc=unstable '
                f'ft.ip4={self.ip4}/24 ft.ip6={self.ip6}/64{" ft.disk=ext4 ft.redis=aof" if disk else ""}\n'
                f'{disk}[nic]\nmac = {self.mac}\nbridge = br0\n')

    def make_image(self, host):
        """Empty; the guest formats it."""
        host.run(f'mkdir -p {os.path.dirname(self.image)} && truncate -s {self.disk_mb}M {self.image}')


GUESTS = {'vm1': Guest('vm1', 0x0a), 'vm2': Guest('vm2', 0x0b)}


# ---- the world ----

class World:
    def __init__(self, guests=None, policy='', tell=None):
        """policy: lines for [policy] of both hosts. tell: called with a line for each thing done."""
        self.guests = dict(guests or GUESTS)
        self.policy, self.tell = policy, tell or (lambda line: None)
        self.dir = os.path.join(WORLDS, str(os.getpid()))       # what must feel like a disk
        self.ram = os.path.join(WORLDS_RAM, str(os.getpid()))   # many small files that must not
        self.processes, self.nodes = [], []
        self._wire = None

    # -- making and unmaking --

    def __enter__(self):
        try:
            self._sweep()
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc):
        self.close()

    def _sweep(self):
        """What a world left that was killed before it could tidy up: only files."""
        for parent in (WORLDS, WORLDS_RAM):
            for pid in os.listdir(parent) if os.path.isdir(parent) else ():
                if not os.path.exists(f'/proc/{pid}') or pid == str(os.getpid()):
                    shutil.rmtree(os.path.join(parent, pid), ignore_errors=True)

    def _remove_files(self):
        for directory in (self.dir, self.ram):
            shutil.rmtree(directory, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(directory))    # unless another world is there

    def _make(self):
        if not os.path.isdir(GUEST):
            raise Failure(f'{GUEST} is missing: make guest')
        os.makedirs(os.path.join(self.dir, 'logs'))
        self.switch = self._node(Node(self, 'switch'))
        self.client = self._node(Node(self, 'client'))
        self.switch.net('ip link add sw0 type bridge forward_delay 0 mcast_snooping 0 && ip link set sw0 up && '
                        f'ip link add pclient type veth peer name eth0 netns {self.client.pid1} && '
                        'ip link set pclient master sw0 up')
        self.client.run(f'ip link set eth0 up && ip addr add {LAN4}100/24 dev eth0 && '
                        f'ip -6 addr add {LAN6}100/64 dev eth0 nodad')
        self._wire = subprocess.Popen([tool('wire')], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                      start_new_session=True)
        self._wire_answer('start')
        self.alpha, self.beta = Host(self, 'alpha', 1), Host(self, 'beta', 2)
        for host in (self.alpha, self.beta):
            self._node(host)
            host.plug_in()
        self._configure()

    def _node(self, node):
        self.nodes.append(node)
        node.power_on()
        return node

    def _configure(self):
        """What the walk-through in the README does by hand."""
        names = ''.join(f'{REPL4}{h.number} {h.name}\n' for h in (self.alpha, self.beta))
        for host, peer in ((self.alpha, self.beta), (self.beta, self.alpha)):
            host.write('/etc/hosts', f'127.0.0.1 localhost\n::1 localhost\n{names}')
            host.write('/etc/ft/ft.conf', f'[ft]\nhost = {host.name}\n[policy]\n{self.policy}\n'
                                          f'[peer {peer.name}]\naddress = {peer.name}\nguests = *\n')
            for guest in self.guests.values():
                host.write(f'/etc/ft/guests/{guest.name}.conf', guest.file())
            host.run('mkdir -p /var/lib/ft /var/lib/images /etc/ft/tls')
        self.certify()

    def certify(self):
        for host in (self.alpha, self.beta):
            self.issue(os.path.join(self.dir, 'ca'), host.name, host)

    @staticmethod
    def issue(ca, name, host):
        """A certificate for `name` of that CA (made if need be, on the admin's machine), installed on the host."""
        cert = os.path.join(STAGE, 'usr/local/bin/ft-cert')
        for command in ([] if os.path.exists(ca) else [[cert, 'ca', ca]]) + [[cert, 'host', name, ca]]:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for source, target in (('ca.pem', 'ca.pem'), (f'{name}.pem', 'cert.pem'), (f'{name}.key', 'key.pem')):
            shutil.copy(os.path.join(ca, source), os.path.join(host.etc, 'ft/tls', target))

    def close(self):
        for node in reversed(self.nodes):
            node.power_off()
        if self._wire:
            self._wire.kill()
            self._wire.wait()
            self._wire.stdin.close()
            self._wire.stdout.close()
        for process in self.processes:
            process.popen.kill()
            process.popen.wait()
            process.popen.stdout.close()
        self.nodes, self.processes, self._wire = [], [], None
        self._remove_files()

    # -- the cable --

    def wire_pid(self):
        return self._wire.pid

    def wire(self, command):
        self._wire.stdin.write(command + '\n')
        self._wire.stdin.flush()
        return self._wire_answer(command)

    def _wire_answer(self, command):
        answer = self._wire.stdout.readline().split(None, 1)
        if not answer or answer[0] != 'ok':
            raise Failure(f'wire: "{command}": {" ".join(answer[1:]) or "died"}')
        return answer[1].strip() if len(answer) > 1 else ''

    def cut_replication(self, one_way_from=None):
        """Both directions, or only what that host sends."""
        for host in (self.alpha, self.beta):
            if one_way_from in (None, host):
                self.wire(f'pass {host.number - 1} off')

    def heal(self):
        for end in (0, 1):
            self.wire(f'pass {end} on')
        self.wire('delay 0')
        self.wire('loss 0')
        self.wire('rate 0')

    def unplug_lan(self, host, plugged=False):
        self.wire(f'port {self.switch.pid1} p{host.name} {"up" if plugged else "down"}')

    def power_cut(self, host):
        """Links down and SIGKILL of PID 1, as one act. Returns when it happened, in seconds."""
        at = int(self.wire(f'power {host.pid1} {self.switch.pid1} p{host.name} {host.number - 1}')) / 1e9
        host._gone()
        return at

    def power_on(self, host):
        """After a power cut: same disks, nothing else."""
        host.power_on()
        host.plug_in()
        host.run('mkdir -p /etc/ft/guests')

    # -- the guest, seen from the client --

    def ask(self, guest, command, limit=5, tries=1):
        """One command to the guest's agent; its answer ("ok" or what follows it), or None when there is none."""
        g = self.guests[guest]
        for _ in range(tries):
            answer = self._datagram(g.ip4, CONTROL_PORT, command, limit)
            if answer is not None:
                if not answer.startswith('ok'):
                    raise Failure(f'{guest}: "{command}": {answer}')
                return answer[3:] or answer
        return None

    def _datagram(self, address, port, text, limit):
        with self._socket_at(self.client, socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(limit)
            s.connect((address, port))
            try:
                s.send(text.encode())
                return s.recv(512).decode()
            except OSError:
                return None

    def tell_guest(self, guest, command):
        """Without waiting for an answer (it may be held)."""
        with self._socket_at(self.client, socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(command.encode(), (self.guests[guest].ip4, CONTROL_PORT))

    def shell(self, guest, script, limit=60):
        """What a shell script in a guest with a disk prints; its errors, too."""
        with self._socket_at(self.client, socket.AF_INET, socket.SOCK_STREAM) as s:
            s.settimeout(limit)
            s.connect((self.guests[guest].ip4, SHELL_PORT))
            s.sendall(f'exec 2>&1\n{script}\n'.encode())
            s.shutdown(socket.SHUT_WR)
            return b''.join(iter(lambda: s.recv(65536), b'')).decode(errors='replace')

    @staticmethod
    def _socket_at(node, family, kind):
        """A socket of the node's network in this process."""
        made = []

        def make():             # a thread has a network namespace of its own
            with open(f'/proc/{node.pid1}/ns/net', encoding='ascii') as ns:
                if LIBC.setns(ns.fileno(), CLONE_NEWNET) == 0:
                    made.append(socket.socket(family, kind))
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not made:
            raise Failure(f'{node.name}: no socket there')
        return made[0]

    def start_guest(self, host, guest):
        if self.guests[guest].disk_mb and not os.path.exists(host.path(self.guests[guest].image)):
            self.guests[guest].make_image(host)
        host.run(f'ft-guest start {guest}', 60)
        self.wait_guest(guest)

    def wait_guest(self, guest, limit=180):
        """Until its services answer."""
        wait_for(f'{guest} to boot', lambda: self.ask(guest, 'stat', 1), limit)
        wait_for(f'{guest} to serve Redis', lambda: 'PONG' in self.redis(guest, 'PING'), limit)

    def redis(self, guest, command, limit=10):
        return self.client.call(f'timeout {limit} redis-cli -h {self.guests[guest].ip4} {command}', limit + 5).stdout.strip()

    def start_ftd(self, host, show=None):
        ftd = host.spawn('ftd', show, f'{host.name} ftd')
        wait_for('ftd to listen', lambda: not ftd.running() or f':{7800}' in host.call('ss -Htln sport = :7800').stdout, 20)
        if not ftd.running():
            raise Failure(f'ftd on {host.name} ended: {ftd.tail()}')
        return ftd

    def protect(self, host, guest, peer, show=None, limit=120):
        """`ft-protect GUEST PEER` typed on the host, until the state is PROTECTED."""
        process = host.spawn(f'ft-protect {guest} {peer.name}', show, f'{host.name} ft-protect')

        wait_for(f'{guest} to be protected', lambda: process.logged('-> PROTECTED') or not process.running(), limit)
        if not process.running():
            raise Failure(f'ft-protect ended with status {process.wait(5)}: {process.tail()}')
        host.wait_state(guest, 'PROTECTED')
        return process

    # -- clients --

    def incr(self, guest, key='demo'):
        return IncrClient(self, self.guests[guest].ip4, key)

    def udp(self, guest, interval_ms=20):
        return UdpClient(self, self.guests[guest].ip6, interval_ms)

    def watch(self, node, guest, *interfaces):
        return FrameWatch(self, node, self.guests[guest].mac, interfaces)

    def log_path(self, kind):
        return os.path.join(self.dir, 'logs', f'{len(self.processes)}-{kind}.log')

    @staticmethod
    def _registers(host, guest):
        """Where the processors of a guest are: what one that hangs does. Nothing when QEMU has gone, or has another client."""
        said = []

        def ask(execute, **arguments):
            s.send(json.dumps({'execute': execute, 'arguments': arguments}).encode())
            answer = next(a for a in map(json.loads, lines) if 'event' not in a).get('return')
            said.append(answer if isinstance(answer, str) else json.dumps(answer))

        def monitor(command):
            ask('human-monitor-command', **{'command-line': command})

        try:
            with socket.socket(socket.AF_UNIX) as s:
                s.settimeout(2)
                s.connect(host.path(f'/run/ft/guests/{guest}/qmp.sock'))
                lines = s.makefile()
                lines.readline()
                ask('qmp_capabilities')
                ask('query-status')
                monitor('info registers -a')
                for stack in re.findall('[ER]SP=([0-9a-f]+)', said[-1]):
                    monitor(f'x/192xg 0x{stack}')
                monitor('info registers -a')            # a moment later
        except (OSError, ValueError, StopIteration):
            pass
        return '\n'.join(said[1:])

    def save_logs(self, directory):
        """What every program said and saw, for people."""
        shutil.copytree(os.path.join(self.dir, 'logs'), directory, dirs_exist_ok=True)
        for n, process in enumerate(self.processes):
            if process.lines:
                with open(os.path.join(directory, f'{n}-{process.name.replace(" ", "-")}.out'), 'w', encoding='utf-8') as f:
                    f.writelines(f'{t:.4f} {line}\n' for t, line in list(process.lines))
        for host in [n for n in self.nodes if isinstance(n, Host) and n.init]:
            for guest in self.guests:
                texts = {log: read_file(host.path(f'/run/ft/guests/{guest}/{log}.log')) for log in ('console', 'qemu')}
                texts['registers'] = self._registers(host, guest)
                for log, text in texts.items():
                    if text:
                        with open(os.path.join(directory, f'{host.name}-{guest}-{log}.txt'), 'w', encoding='utf-8') as f:
                            f.write(text)


class Logged:
    """A program that writes what it sees to a log of its own, from which everything is judged."""

    def __init__(self, world, node, kind, command):
        self.log = world.log_path(kind)
        self._seen, self._offset = [], 0
        self.process = node.spawn([word if word != 'LOG' else self.log for word in command], name=kind)
        wait_for(f'{kind} to start', lambda: os.path.exists(self.log) or not self.process.running(), 10)

    def records(self, letter=None):
        """Complete lines, split. Reads only what is new: tests ask often, and the hosts share the CPUs."""
        with open(self.log, 'rb') as f:
            f.seek(self._offset)
            new = f.read()
        end = new.rfind(b'\n') + 1
        self._offset += end
        self._seen += [line.split(' ') for line in new[:end].decode().splitlines()]
        return [r for r in self._seen if r[0] == letter] if letter else self._seen

    def stop(self):
        return self.process.stop()


class IncrClient(Logged):
    def __init__(self, world, address, key):
        super().__init__(world, world.client, 'incr', [tool('incr_client'), address, '6379', key, 'LOG'])
        wait_for('the client to connect', lambda: self.records('R') or self.broken(), 60)

    def replies(self):
        """[(sent, replied, value)] in seconds."""
        return [(int(r[1]) / 1e9, int(r[2]) / 1e9, int(r[3])) for r in self.records('R')]

    def reply_after(self, instant):
        """When the first reply came that came later than that, or None."""
        records = self.records()
        tail = records[bisect.bisect(records, instant * 1e9, key=lambda r: int(r[2] if r[0] == 'R' else r[1])):]
        return next((int(r[2]) / 1e9 for r in tail if r[0] == 'R'), None)

    def broken(self):
        return not self.process.running()

    def wait_replies(self, more, limit):
        n = len(self.records()) + more
        wait_for(f'{more} more replies', lambda: len(self.records()) >= n or self.broken(), limit)

    def verdict(self, since=None):
        return judge(self.replies(), self.records('B'), since)


def judge(replies, broke, since=None):
    """From the client's log alone. Values must count up by one: less means lost, more means done twice."""
    lost = repeated = 0
    for (_, _, before), (_, _, value) in zip(replies, replies[1:]):
        lost += max(0, before + 1 - value)
        repeated += max(0, value - before - 1)
    gaps = [b[1] - a[1] for a, b in zip(replies, replies[1:]) if since is None or b[1] >= since]
    waits = [r[1] - r[0] for r in replies]
    return {'acked': len(replies), 'lost': lost, 'repeated': repeated, 'last': replies[-1][2] if replies else 0,
            'survived': bool(replies) and not broke, 'gap': max(gaps, default=0),
            'reply_p50': percentile(waits, 50), 'reply_p99': percentile(waits, 99)}


class UdpClient(Logged):
    def __init__(self, world, address, interval_ms):
        super().__init__(world, world.client, 'udp',
                         [tool('udp_client'), address, str(ECHO_PORT), str(interval_ms), 'LOG'])

    def verdict(self, since=None):
        answers = [(int(r[2]) / 1e9, int(r[1]), int(r[3])) for r in self.records('R')]
        # In order of counting: a counter seen twice, or a later question with an earlier count, is forgotten state.
        counters = [c for _, _, c in answers]
        back = len(counters) - len(set(counters))
        by_seq = [c for _, _, c in sorted(answers, key=lambda a: a[1])]
        back += sum(1 for a, b in zip(by_seq, by_seq[1:]) if b < a)
        gaps = [b[0] - a[0] for a, b in zip(answers, answers[1:]) if since is None or b[0] >= since]
        return {'answers': len(answers), 'backwards': back, 'gap': max(gaps, default=0)}


class FrameWatch(Logged):
    def __init__(self, world, node, mac, interfaces):
        super().__init__(world, node, 'frames', [tool('frame_watch'), 'LOG', mac, *interfaces])
        wait_for('the watcher to listen', lambda: self.process.lines or not self.process.running(), 10)
        if not self.process.running():
            raise Failure(f'frame_watch: {self.process.tail()}')

    def frames(self, interface=None, since=0, until=None):
        """[(instant, interface, ethertype, bytes, text)]"""
        out = [(int(r[0]) / 1e9, r[1], r[2], int(r[3]), ' '.join(r[4:])) for r in self.records()]
        return [f for f in out if f[0] >= since and (until is None or f[0] <= until) and interface in (None, f[1])]

    def numbered(self, kind, interface=None):
        """Numbers of the guest's "FTT KIND NUMBER" frames in the order they came."""
        return [int(f[4].split()[1]) for f in self.frames(interface) if f[4].startswith(kind + ' ')]


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p / 100))] if values else 0


def random_wait(low, high):
    """The instant of a power cut is nobody's choice; it is printed, not reproduced."""
    return random.SystemRandom().uniform(low, high)
