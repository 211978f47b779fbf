#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""protocol_check.py [--doc PROTOCOL.md] FILE... - is a captured stream what docs/PROTOCOL.md allows?

Sizes, senders and field offsets are read from the tables of the document itself; the rules under "Order" are
coded here a second time, from the document, with no code of ft. Pages are decoded and applied to a memory of
our own, and VERIFY's hashes must be the hashes of that memory.

A capture is what both sides sent, in the order of sending: 'C' for a new connection, '>' and a record (header
and body) from the primary, '<' and a record from the backup.
"""
import argparse
import collections
import ctypes
import os
import re
import struct
import sys

PAGE = 4096
GRANULE, REGION = 65536, 4 << 20
HERE = os.path.dirname(os.path.abspath(__file__))
xxhash = ctypes.CDLL('libxxhash.so.0')
xxhash.XXH3_64bits.restype = ctypes.c_uint64
xxhash.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
lz4 = ctypes.CDLL('liblz4.so.1')


class Violation(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Violation(what)


def xxh3(data):
    return xxhash.XXH3_64bits(bytes(data), len(data))


# --- the document ---

class Document:
    def __init__(self, path):
        with open(path, encoding='utf-8') as f:
            text = f.read()
        self.records = {}               # type: (name, from, least, most)
        for row in self.rows(text, 'Records'):
            if len(row) == 5 and row[0].isdigit():
                self.records[int(row[0])] = (row[1], row[2], int(row[3]), int(row[4]))
        self.fields = {}                # record: [(offset, size, field)]
        for name, *_ in self.records.values():
            self.fields[name] = [(int(r[0]), int(r[1]), r[2]) for r in self.rows(text, name)
                                 if len(r) == 4 and r[0].isdigit() and r[1].isdigit()]
        self.reasons = {int(r[0]): r[1] for r in self.rows(text, 'Reasons') if r[0].isdigit()}
        need(len(self.records) >= 20 and self.reasons, f'{path}: the tables of records and reasons are not there')

    @staticmethod
    def rows(text, heading):
        found = re.search(rf'^##+ {re.escape(heading)}$(.*?)(?=^##|\Z)', text, re.M | re.S)
        lines = found.group(1).splitlines() if found else []
        return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]

    def unpack(self, name, body):
        """The fixed fields of a body, by the names and offsets of the document. Reserved ones must be 0."""
        out = {}
        for offset, size, field in self.fields[name]:
            raw = body[offset:offset + size]
            need(len(raw) == size, f'{name} ends before its field {field}')
            if size > 8:
                out[field] = bytes(raw)
                continue
            out[field] = int.from_bytes(raw, 'little')
            need(not field.startswith('reserved') or out[field] == 0, f'{name}: {field} is not 0')
        return out


# --- PAGES ---

def varint(block, at):
    value = 0
    for i in range(5):
        need(at < len(block), 'PAGES: varint is cut off')
        byte = block[at]
        at += 1
        value |= (byte & 0x7f) << (7 * i)
        if not byte & 0x80:
            need(byte or i == 0, 'PAGES: varint is not the shortest form')
            return value, at
    raise Violation('PAGES: varint is too long')


def runs_of(block, nr_pages):
    """[(first page, pages, how)], and where the payload starts."""
    need(len(block) >= 8, 'PAGES: shorter than its header')
    flags, nr_runs, reserved, raw_len = struct.unpack_from('<BBHI', block)
    need(not flags & ~1 and not reserved and 1 <= nr_runs <= 64 and raw_len <= 64 * PAGE, 'PAGES: header out of range')
    runs, at, page, total = [], 8, 0, 0
    for _ in range(nr_runs):
        need(at < len(block), 'PAGES: runs are cut off')
        how, nr = block[at] >> 6, (block[at] & 63) + 1
        skip, at = varint(block, at + 1)
        need(how <= 2, 'PAGES: no such way to travel')
        page += skip
        runs.append((page, nr, how))
        page += nr
        total += nr
    need(total <= 64 and page <= nr_pages, 'PAGES: too many pages, or beyond the guest')
    return runs, at, flags & 1, raw_len


def payload_of(block, at, packed, raw_len):
    if not packed:
        need(len(block) - at == raw_len, 'PAGES: payload is not raw_len bytes')
        return block[at:]
    out = ctypes.create_string_buffer(max(raw_len, 1))
    src = bytes(block[at:])
    need(lz4.LZ4_decompress_safe(src, out, len(src), raw_len) == raw_len, 'PAGES: LZ4 does not give raw_len bytes')
    return out.raw[:raw_len]


def take_delta(payload, at):
    """[(word, xor)] of one page, and where the next page's bytes start."""
    start, words = at, []
    need(at + 8 <= len(payload), 'PAGES: delta is cut off')
    lines = int.from_bytes(payload[at:at + 8], 'little')
    at += 8
    need(lines, 'PAGES: delta without a line')
    for line in (i for i in range(64) if lines >> i & 1):
        need(at < len(payload) and payload[at], 'PAGES: changed line without a word')
        mask, at = payload[at], at + 1
        for word in (j for j in range(8) if mask >> j & 1):
            need(at + 8 <= len(payload), 'PAGES: delta is cut off')
            xor = int.from_bytes(payload[at:at + 8], 'little')
            need(xor, 'PAGES: changed word that did not change')
            words.append((line * 8 + word, xor))
            at += 8
    need(at - start <= PAGE, 'PAGES: delta longer than a page')
    return words, at


def decode(block, nr_pages):
    """[(page, how, content)]: content is None, the bytes of the page, or a list of (word, xor)."""
    runs, at, packed, raw_len = runs_of(block, nr_pages)
    payload, at, pages = payload_of(block, at, packed, raw_len), 0, []
    for first, nr, how in runs:
        for page in range(first, first + nr):
            content = None
            if how == 1:
                content, at = payload[at:at + PAGE], at + PAGE
                need(len(content) == PAGE, 'PAGES: page is cut off')
            elif how == 2:
                content, at = take_delta(payload, at)
            pages.append((page, how, content))
    need(at == len(payload), 'PAGES: bytes left over')
    return pages


# --- what both sides said ---

class Epoch:
    def __init__(self, begin):
        self.number, self.base, self.flags = begin['epoch'], begin['base'], begin['flags']
        self.blocks, self.covered, self.bodies = [], set(), []
        self.pages, self.batches, self.has_state = 0, 0, False


class Session:
    def __init__(self, hello, welcome):
        self.id, self.generation, self.nr_pages = welcome['session'], hello['generation'], hello['nr_pages']
        self.firmware = self.ready = False
        self.ram = {}                   # page: bytearray; zero pages are not in it
        self.whole, self.acked = [], 0  # epochs sent whole and not acknowledged; last acknowledged
        self.last = 0                   # last one sent whole, or that of a resume
        self.disks = self.disks_here = None
        self.asked = []
        self.disk_seq, self.acked_seq, self.durable = [0] * 8, [0] * 8, [0] * 8

    def ack(self, epoch):
        while self.whole and self.whole[0].number <= epoch:
            e = self.whole.pop(0)
            self.acked_seq = e.disk_seq
            for block in e.blocks:
                for page, how, content in block:
                    self.put(page, how, content)
        self.acked = epoch

    def put(self, page, how, content):
        if how == 0:
            self.ram.pop(page, None)
        elif how == 1:
            self.ram[page] = bytearray(content)
        else:
            ram = self.ram.setdefault(page, bytearray(PAGE))
            for word, xor in content:
                at = word * 8
                ram[at:at + 8] = (int.from_bytes(ram[at:at + 8], 'little') ^ xor).to_bytes(8, 'little')

    def hashes(self):
        zero = bytes(PAGE)
        for first in range(0, self.nr_pages, 256):
            yield xxh3(b''.join(bytes(self.ram.get(p, zero)) for p in range(first, min(first + 256, self.nr_pages))))


class Checker:
    def __init__(self, doc):
        self.doc = doc
        self.seen = collections.Counter()
        self.session = None
        self.generation = 0             # the highest a session had
        self.connect()

    def connect(self):
        self.hello = self.welcome = self.epoch = None
        self.over = {'primary': False, 'backup': False}
        self.drilling = self.verifying = self.handed_over = self.disarming = False
        self.told_durable = set()       # disks
        self.pings = {'primary': collections.Counter(), 'backup': collections.Counter()}

    def record(self, side, type_, body):
        known = self.doc.records.get(type_)
        need(known, f'record of unknown type {type_} from the {side}')
        name, sender, least, most = known
        need(sender in (side, 'both'), f'{name} from the {side}')
        need(least <= len(body) <= most, f'{name} of {len(body)} bytes, allowed are {least} to {most}')
        need(not self.over[side], f'{name} from the {side} after its last word')
        self.seen[name] += 1
        free = ('PING', 'PONG', 'ERROR')
        if side == 'primary' and name not in free:
            need(name == 'HELLO' or (self.welcome and self.welcome['reason'] == 0), f'{name} before the session stands')
        if side == 'backup' and name not in free:
            need(name == 'WELCOME' or self.welcome, f'{name} before WELCOME')
        getattr(self, 'on_' + name.lower())(side, self.doc.unpack(name, body), body)

    # greeting
    def on_hello(self, _, f, body):
        need(not self.hello, 'second HELLO in a connection')
        need(1 <= f['version_min'] <= f['version_max'], 'HELLO: versions')
        need(not f['flags'] & ~7, 'HELLO: unknown flags')
        need(f['generation'] and 1 <= f['nr_pages'] <= 1 << 30, 'HELLO: generation or nr_pages')
        need(56 + f['spec_len'] + f['facts_len'] == len(body), 'HELLO: lengths do not add up')
        facts = body[56 + f['spec_len']:].decode()
        need(all('=' in line for line in facts.splitlines()), 'HELLO: facts are not key=value')
        self.hello = f

    def on_welcome(self, _, f, body):
        need(self.hello and not self.welcome, 'WELCOME out of turn')
        need(f['reason'] in self.doc.reasons and f['replica'] <= 3, 'WELCOME: reason or replica')
        self.welcome = f
        if f['reason']:
            self.over['backup'] = self.over['primary'] = True
            return
        need(self.hello['version_min'] <= f['version'] <= self.hello['version_max'], 'WELCOME: version')
        need(1 <= f['silence_ms'] <= 3600000, 'WELCOME: silence_ms')
        resumed = self.session and f['session'] == self.session.id
        if resumed:
            self.resume(f)
        else:
            need(any(f['session']), 'WELCOME: session without an id')
            need(self.hello['generation'] > self.generation, 'new session without a new generation')
            self.session = Session(self.hello, f)
            self.generation = self.hello['generation']

    def resume(self, f):
        s = self.session
        need(self.hello['resume'] == s.id and self.hello['generation'] == s.generation, 'resumed without being asked')
        need(f['replica'] == 1 and f['generation'] == s.generation, 'resumed without a replica of the session')
        need(f['epoch'] == s.acked or f['epoch'] in [e.number for e in s.whole], 'resumed at an epoch that was never whole')
        s.ack(f['epoch'])
        s.whole, s.last = [], f['epoch']
        s.disk_seq, s.asked = list(s.acked_seq), []

    def on_firmware(self, *_):
        s = self.session
        need(not s.firmware and bool(s.disks) == bool(s.disks_here), 'FIRMWARE out of turn')
        s.firmware = True

    def on_ready(self, *_):
        need(self.session.firmware and not self.session.ready, 'READY out of turn')
        self.session.ready = True

    # epochs
    def on_epoch_begin(self, _, f, __):
        s = self.session
        full, direct = f['flags'] & 1, f['flags'] & 2
        need(s.ready and not self.epoch and not self.handed_over and not self.disarming, 'EPOCH_BEGIN out of turn')
        need(not f['flags'] & ~3 and (full or not direct), 'EPOCH_BEGIN: flags')
        need(f['epoch'] > f['base'] and (f['base'] == 0) == bool(full), 'EPOCH_BEGIN: base')
        need(full or s.last, 'first epoch of a session is not FULL')
        need(full or s.acked, 'epoch before the first of its session is acknowledged')
        need(full or f['base'] == s.last, f'epoch builds on {f["base"]}, the one before was {s.last}')
        need(not direct or self.welcome['replica'] != 1, 'DIRECT over a replica that may have to start')
        self.epoch = Epoch(f)

    def on_pages(self, _, f, body):
        e = self.epoch
        need(e and not e.has_state, 'PAGES out of turn')
        pages = decode(body, self.session.nr_pages)
        if e.flags & 1:
            for page, how, _content in pages:
                need(how != 2 or page in e.covered, 'delta before its page in a full epoch')
                e.covered.add(page)
        e.blocks.append(pages)
        e.bodies.append(body)
        e.pages += len(pages)
        need(e.flags & 2 or e.pages <= 16 * self.session.nr_pages, 'more pages than an epoch may have')

    def on_state(self, _, f, body):
        need(self.epoch and not self.epoch.has_state, 'STATE out of turn')
        self.epoch.has_state = True
        self.epoch.bodies.append(body)

    def on_epoch_end(self, _, f, __):
        e, s = self.epoch, self.session
        need(e and e.has_state and f['epoch'] == e.number, 'EPOCH_END out of turn')
        need(f['blocks'] == len(e.blocks) and f['pages'] == e.pages and f['batches'] == e.batches,
             'EPOCH_END: counts')
        need(f['checksum'] == xxh3(b''.join(e.bodies)), 'EPOCH_END: checksum')
        need(not e.flags & 1 or len(e.covered) == s.nr_pages, 'full epoch without every page')
        e.bodies, e.disk_seq = [], list(s.disk_seq)
        s.whole.append(e)
        s.last, self.epoch = e.number, None

    def on_ack(self, _, f, __):
        s = self.session
        need(f['epoch'] in [e.number for e in s.whole], f'ACK of epoch {f["epoch"]}, which was not sent or is acknowledged')
        s.ack(f['epoch'])

    # disks
    def on_disks(self, _, f, body):
        s = self.session
        need(not s.firmware and not s.disks, 'DISKS out of turn')
        s.disks = [self.doc.unpack('DISKS', body[at:at + 32]) for at in range(0, len(body), 32)]
        need(len(body) % 32 == 0 and all(d['bytes'] <= 1 << 44 and not d['flags'] & ~3 for d in s.disks), 'DISKS: values')

    def on_disk_map(self, _, f, body):
        s = self.session
        need(s.disks and not s.disks_here and f['disk'] < len(s.disks), 'DISK_MAP out of turn')
        need((len(body) - 16) % 8 == 0, 'DISK_MAP: half a word')
        need((f['region'] + (len(body) - 16) // 8 - 1) * REGION < s.disks[f['disk']]['bytes'], 'DISK_MAP beyond the disk')

    def on_disks_here(self, _, f, body):
        s = self.session
        need(s.disks and not s.disks_here and len(body) == 32 * len(s.disks), 'DISKS_HERE out of turn')
        s.disks_here = [self.doc.unpack('DISKS', body[at:at + 32]) for at in range(0, len(body), 32)]

    def on_disk_ask(self, _, f, __):
        s = self.session
        to_copy, to_verify = s.ready and not s.last, s.last and s.acked == s.last and not self.epoch and not self.drilling
        need((to_copy or to_verify) and s.disks_here and f['disk'] < len(s.disks), 'DISK_ASK out of turn')
        last = f['region'] * REGION + (f['granules'].bit_length() - 1) * GRANULE
        need(f['granules'] and last < s.disks[f['disk']]['bytes'], 'DISK_ASK beyond the disk')
        s.asked.append((f['disk'], f['region'], f['granules']))

    def on_disk_hashes(self, _, f, body):
        s = self.session
        need(s.asked and s.asked.pop(0) == (f['disk'], f['region'], f['granules']), 'DISK_HASHES that nobody asked for')
        need(len(body) == 24 + 16 * bin(f['granules']).count('1'), 'DISK_HASHES: one hash a granule')

    def on_disk(self, _, f, body):
        e, s = self.epoch, self.session
        need(e and not e.has_state and s.disks_here and f['disk'] < len(s.disks), 'DISK out of turn')
        raw = bytes(body[16:])
        if f['flags']:
            out = ctypes.create_string_buffer(f['raw_len'] + 1)
            n = lz4.LZ4_decompress_safe(raw, out, len(raw), f['raw_len'])
            need(f['flags'] == 1 and n == f['raw_len'], 'DISK: LZ4')
            raw = out.raw[:n]
        need(len(raw) == f['raw_len'] <= 262168, 'DISK: raw_len')
        at, ops = 0, 0
        while at < len(raw):
            need(at + 24 <= len(raw), 'DISK: operation is cut off')
            seq, offset, length, op = struct.unpack_from('<QQII', raw, at)
            need(seq > s.disk_seq[f['disk']], f'DISK: operation {seq} after {s.disk_seq[f["disk"]]}')
            need(op in (1, 2, 3) and offset + length <= s.disks[f['disk']]['bytes'], 'DISK: operation')
            s.disk_seq[f['disk']] = seq
            at, ops = at + 24 + (length if op == 1 else 0), ops + 1
        need(at == len(raw) and ops == f['nr_ops'], 'DISK: operations do not add up')
        e.bodies.append(body)
        e.batches += 1

    def on_disk_durable(self, _, f, __):
        s = self.session
        least = s.durable[f['disk']] + (f['disk'] in self.told_durable)         # the first on a connection may repeat
        need(least <= f['seq'] <= s.disk_seq[f['disk']], 'DISK_DURABLE of what was not sent, or said')
        s.durable[f['disk']] = f['seq']
        self.told_durable.add(f['disk'])

    # requests
    def on_drill(self, _, f, __):
        need(self.session.acked and f['epoch'] <= self.session.acked and not self.drilling, 'DRILL out of turn')
        self.drilling = True

    def on_drilled(self, _, f, __):
        need(self.drilling and f['ok'] <= 1, 'DRILLED out of turn')
        self.drilling = False

    def on_verify(self, _, f, body):
        s = self.session
        need(not self.drilling and not self.verifying and not s.whole and not self.epoch, 'VERIFY out of turn')
        need(f['epoch'] == s.acked, 'VERIFY of another epoch than the last')
        hashes = [h for (h,) in struct.iter_unpack('<Q', body[8:])]
        need(hashes == list(s.hashes()), 'VERIFY: hashes are not those of the memory that was sent')
        self.verifying = f['epoch']

    def on_verified(self, _, f, __):
        need(self.verifying == f['epoch'], 'VERIFIED out of turn')
        need(f['differing'] == 0, 'VERIFIED: the replica differs')
        self.verifying = False

    def on_disarm(self, _, f, __):
        need(f['generation'] == self.session.generation, 'DISARM of another generation')
        self.disarming = True

    def on_disarmed(self, _, f, __):
        need(self.disarming and f['generation'] == self.session.generation, 'DISARMED out of turn')

    def on_handover(self, _, f, __):
        s = self.session
        need(f['epoch'] == 0 or (f['epoch'] == s.acked and not s.whole and not self.epoch), 'HANDOVER out of turn')
        self.handed_over = True

    def on_running(self, _, f, __):
        need(self.handed_over and f['generation'] > self.session.generation, 'RUNNING out of turn')

    # both
    def on_ping(self, side, f, _):
        self.pings[side][f['clock']] += 1

    def on_pong(self, side, f, _):
        other = 'backup' if side == 'primary' else 'primary'
        need(self.pings[other][f['clock']] > 0, 'PONG without its PING')
        self.pings[other][f['clock']] -= 1

    def on_error(self, side, f, _):
        need(f['reason'] in self.doc.reasons and f['reason'], 'ERROR: reason')
        self.over[side] = True


def items(data):
    """(mark, offset, type, body) of a capture."""
    at = 0
    while at < len(data):
        mark, start = chr(data[at]), at
        at += 1
        if mark == 'C':
            yield mark, start, 0, b''
            continue
        need(mark in '<>' and at + 8 <= len(data), f'capture is damaged at byte {start}')
        type_, length = struct.unpack_from('<II', data, at)
        at += 8
        need(at + length <= len(data), f'capture ends within a record at byte {start}')
        yield mark, start, type_, data[at:at + length]
        at += length


def check(doc, path):
    checker, where = Checker(doc), 0
    with open(path, 'rb') as f:
        data = f.read()
    try:
        for mark, where, type_, body in items(data):
            if mark == 'C':
                checker.connect()
            else:
                checker.record('primary' if mark == '>' else 'backup', type_, body)
    except Violation as v:
        print(f'{path}: byte {where}: {v}')
        return None
    return checker.seen


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--doc', default=os.path.join(HERE, '..', 'docs', 'PROTOCOL.md'))
    parser.add_argument('files', nargs='+')
    args = parser.parse_args()
    doc, total, bad = Document(args.doc), collections.Counter(), 0
    for path in args.files:
        seen = check(doc, path)
        bad += seen is None
        total += seen or {}
    print(' '.join(f'{name}={n}' for name, n in sorted(total.items())))
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main()
