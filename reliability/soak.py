"""Soak: mixed traffic for minutes, every body verified by its hash in both directions, memory and descriptors flat

    python -m reliability.soak --seconds 600

A request is a Plan: the client sends it, and in its url tells the server, a process of its own, what to do about it:
how to frame the answer, where to break off, which garbage to send. So both sides know what must come of it. Traffic
pauses now and then, and what is left of it then, in sockets, tasks, timers and memory, is a sample of the curve.
"""
import argparse
import asyncio
import collections
import contextlib
import ctypes
import functools
import gc
import hashlib
import itertools
import json
import logging
import os
import random
import re
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from typing import NamedTuple

from aiodnsresolver import RESPONSE, TYPES, Message, Resolver, ResourceRecord, pack, parse

from lowhaio import (
    IDEMPOTENT,
    MAX_REMEMBERED,
    HttpConnectionClosedError,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpProtocolError,
    Pool,
)
from reliability.harness import (
    CA,
    CONTINUE,
    PATIENCE,
    TEST_SECONDS,
    AsyncTestCase,
    Peer,
    all_tasks,
    new_event_loop,
    open_sockets,
    server_context,
)

# Answers of the name servers are lost on purpose.
logging.getLogger('aiodnsresolver').addHandler(logging.NullHandler())

MEBIBYTE = 1024 * 1024
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# -------- Plans and bodies, the same on both sides


class Plan(NamedTuple):
    """One request, and what the server does about it"""
    seed: int = 0            # of both bodies, and unlike that of any other request
    method: str = 'GET'
    upload: int = -1         # bytes of the request's body, if it has one
    framing: str = 'length'  # of the response: length, chunked, close; or 204 or 304, which have no body
    size: int = 0            # bytes of the response's body
    interim: int = 0         # how many 1xx come first
    fault: str = ''          # one of FAULTS or REFUSALS
    at: int = 0              # the byte of the body at which it happens
    last: int = 0            # whether the server says `connection: close`
    pace: float = 0.0        # seconds between pieces of 4 KiB of the response's body

    def target(self):
        fields = {name: value for name, value in self._asdict().items() if value != getattr(Plan(), name)}
        return '/?' + urllib.parse.urlencode(fields)

    @classmethod
    def of(cls, head):
        query = head.split(b' ', 2)[1].partition(b'?')[2].decode()
        fields = dict(urllib.parse.parse_qsl(query))
        return cls(**{name: type(getattr(cls(), name))(value) for name, value in fields.items()})


# What the client must raise. Offsets are into the response's body, but for 'upload reset'.
FAULTS = {
    'reset': HttpConnectionClosedError,
    'cut': HttpConnectionClosedError,
    'upload reset': HttpConnectionClosedError,
    'garbage': HttpProtocolError,
    'bad chunk': HttpProtocolError,
    'endless head': HttpHeaderTooLong,
    'no name': HttpDnsError,
}
# 413 before the body was read; then the server reads on until the client goes, or closes at once.
REFUSALS = ('refused', 'refused and dropped')
GARBAGE = (
    b'\x15\x03\x01\x00\x02\x02\x28',
    b'220 mail.test ESMTP\r\n',
    b'HTTP/2 200\r\n\r\n',
    b'HTTP/1.1 200 OK\r\nno colon\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n',
    b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
)
EXTENSIONS = (b'', b'', b';a', b';name=value', b' ; q="quoted; \\" text"', b';' + b'x' * 300)
TRAILERS = (b'', b'', b'x-trailer: value\r\n', b'a: 1\r\nb: 2\r\n' * 20)
BLOCK = random.Random(0).getrandbits(8 * 65536).to_bytes(65536, 'big')


def content(seed, size):
    """The pieces of a body; each has a number, so that one lost, swapped or doubled shows in the hash"""
    for number in itertools.count():
        if not size:
            return
        piece = (struct.pack('>QI', seed, number) + BLOCK)[:size]
        size -= len(piece)
        yield piece


def small_pieces(piece):
    return [piece[at:at + 4096] for at in range(0, len(piece), 4096)]


def answer_seed(plan):
    return 2 * plan.seed


def upload_seed(plan):
    return 2 * plan.seed + 1


def digest(pieces):
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return sha256.hexdigest()


# -------- The server


def listen(host, port, play, tls=None):
    """The port at which `play(peer)` is run in a thread for each connection, which it closes"""
    listener = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)

    def accept():
        while True:
            sock, _ = listener.accept()
            start(run, sock)

    def run(sock):
        try:
            sock.settimeout(TEST_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                sock = tls.wrap_socket(sock, server_side=True)
            play(Peer(sock))
        except (OSError, ValueError):  # the client went away: a ValueError where that is seen in `unwrap`
            pass
        finally:
            sock.close()

    start(accept)
    return listener.getsockname()[1]


def start(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()


def close_orderly(peer):
    """Over TLS by close_notify, however long what was sent before takes; Peer.close gives that little time"""
    if isinstance(peer.sock, ssl.SSLSocket):
        peer.sock.unwrap()
    peer.sock.close()


def upload_pieces(peer, head):
    length = re.search(rb'\r\ncontent-length: ([0-9]+)', head)
    left = int(length.group(1)) if length else 0
    is_chunked = b'\r\ntransfer-encoding: chunked' in head
    while left or is_chunked:
        if not left:
            left = int(peer.read_until(b'\r\n'), 16)
            is_chunked = left > 0
        piece = peer.read(min(left, 65536))
        if left and not piece:
            raise ConnectionError('the client went away in the middle of its body')
        left -= len(piece)
        yield piece
        if length is None and not left:
            peer.read(2)


def in_chunks(pieces, rng, size):
    largest = max(rng.choice((1, 7, 1000, 100000)), size // 500)
    for piece in pieces:
        chunks = []
        while piece:
            chunk = piece[:rng.randint(1, largest)]
            piece = piece[len(chunk):]
            chunks.append(b'%x%b\r\n%b\r\n' % (len(chunk), rng.choice(EXTENSIONS), chunk))
        yield b''.join(chunks)


class Server:
    """Plays plans. A rude one closes connections between requests without a word; a polite one says so before"""

    def __init__(self):
        self.posts = set()

    def play(self, is_rude, peer):
        rng = random.Random()
        for count in itertools.count(1):
            head = peer.read_head()
            if not head.endswith(b'\r\n\r\n'):
                return
            plan = Plan.of(head)
            if not self.answer(peer, plan, head, count % 50 == 0):
                return
            if is_rude and rng.random() < 0.1:
                time.sleep(rng.choice((0, 0.001, 0.05)))
                # What is not yet sent at a reset is lost: a small answer is.
                rng.choice((close_orderly, Peer.abort, Peer.reset if plan.size < 1000 else Peer.abort))(peer)
                return

    def answer(self, peer, plan, head, is_last):
        """Whether the connection may carry another request"""
        if plan.method == 'POST' and plan.seed in self.posts:  # it was sent twice
            peer.send(b'HTTP/1.1 500 Twice\r\nconnection: close\r\n\r\n')
            return False
        self.posts.add(plan.seed)
        rng = random.Random(plan.seed)
        is_refused = plan.fault in REFUSALS
        if b'\r\nexpect: 100-continue' in head and not is_refused:
            peer.send(CONTINUE)
        received, got = hashlib.sha256(), 0
        for piece in upload_pieces(peer, head):
            received.update(piece)
            got += len(piece)
            if got > plan.at and is_refused:
                break
            if got > plan.at and plan.fault == 'upload reset':
                peer.reset()
                return False
        for _ in range(plan.interim):
            peer.send(rng.choice((CONTINUE, b'HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n')))
        if plan.fault == 'garbage':
            peer.send(rng.choice(GARBAGE))
            close_orderly(peer)
            return False
        if plan.fault == 'endless head':
            peer.send(b'HTTP/1.1 200 OK\r\n')
            while True:
                peer.send(b'x-filler: %b\r\n' % (b'x' * 8000))
        is_last = is_last or plan.last or is_refused or plan.framing == 'close'
        peer.send(b'HTTP/1.1 %b Reason\r\nx-upload: %b\r\n%b%b\r\n' % (
            b'413' if is_refused else plan.framing.encode() if plan.framing.isdigit() else b'200',
            received.hexdigest().encode(),
            b'connection: close\r\n' if is_last else b'',
            b'transfer-encoding: chunked\r\n' if plan.framing == 'chunked' else
            b'content-length: %d\r\n' % plan.size if plan.framing in ('length', '304') else b'',
        ))
        if plan.method != 'HEAD' and not plan.framing.isdigit() and not self.send_body(peer, plan, rng):
            return False
        if plan.fault == 'refused':
            peer.half_close()
            peer.read_to_close()
        elif is_last and not is_refused:
            close_orderly(peer)
        return not is_last

    @staticmethod
    def send_body(peer, plan, rng):
        """Whether all of it was sent"""
        is_broken = plan.fault in ('reset', 'cut', 'bad chunk')
        pieces = content(answer_seed(plan), plan.at if is_broken else plan.size)
        if plan.pace:
            pieces = itertools.chain.from_iterable(map(small_pieces, pieces))
        for piece in in_chunks(pieces, rng, plan.size) if plan.framing == 'chunked' else pieces:
            peer.send(piece)
            time.sleep(plan.pace)
        if is_broken:
            if plan.fault == 'bad chunk':
                peer.send(rng.choice((b'-1\r\n', b'0x5\r\n', b'5 5\r\n', b'11111111111111111\r\n', b'\x00\r\n')))
            {'reset': Peer.reset, 'cut': Peer.abort, 'bad chunk': close_orderly}[plan.fault](peer)
        elif plan.framing == 'chunked':
            peer.send(b'000', b'\r\n' + rng.choice(TRAILERS) + b'\r\n')
        return not is_broken


def serve_names(host, port, addresses):
    """The port of a DNS server. `addresses(name, qtype, count)` are (ttl, address as text), None is a name that does
    not exist, and 'lost' an answer that never comes"""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))

    def serve():
        for count in itertools.count():
            data, client = sock.recvfrom(512)
            query = parse(data)
            question = query.qd[0]
            found = addresses(question.name.lower().decode(), question.qtype, count)
            if found == 'lost':
                continue
            sock.sendto(pack(Message(
                qid=query.qid, qr=RESPONSE, opcode=0, aa=0, tc=0, rd=0, ra=1, z=0, rcode=3 if found is None else 0,
                qd=query.qd, ns=(), ar=(), an=tuple(
                    ResourceRecord(question.name, question.qtype, 1, ttl,
                                   socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address))
                    for ttl, address in found or ()),
            )), client)

    start(serve)
    return sock.getsockname()[1]


def resolver(host, port, waits):
    """A pool's `get_dns_resolver` that asks this name server, as often as there are seconds to wait for it"""
    async def get_nameservers(_, __):
        for wait in waits:
            yield wait, (host, port)
    return functools.partial(Resolver, get_nameservers=get_nameservers)


def soak_addresses(name, qtype, count):
    if count % 50 == 49:
        return 'lost'
    if qtype != TYPES.A:
        return ()
    return {
        'soak.test': [(1, '127.0.0.1')],
        # Whose address changes: an idle connection to the old one may not be used.
        'moving.test': [(1, f'127.0.0.{1 + int(time.monotonic() / 2) % 2}')],
    }.get(name)


HOSTS = ('127.0.0.1', 'soak.test', 'moving.test')
Origin = collections.namedtuple('Origin', 'scheme is_rude port')


def serve():
    """The server's process: tells its ports on standard output, and lives until standard input ends"""
    server = Server()
    context = server_context(*HOSTS, '127.0.0.2')
    origins = []
    for scheme, is_rude in itertools.product(('http', 'https'), (False, True)):
        tls = context if scheme == 'https' else None
        play = functools.partial(server.play, is_rude)
        port = listen('127.0.0.1', 0, play, tls)
        listen('127.0.0.2', port, play, tls)
        origins.append(Origin(scheme, is_rude, port))
    told = dict(origins=origins, names=serve_names('127.0.0.1', 0, soak_addresses), ca=CA.cert_pem.bytes().decode())
    sys.stdout.write(json.dumps(told) + '\n')
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)


@contextlib.contextmanager
def process(*command):
    """A process that tells what it serves by a line of JSON, and ends with its standard input"""
    with subprocess.Popen(command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            yield json.loads(server.stdout.readline().decode())
        finally:
            server.stdin.close()
            server.wait()


def trusting(ca):
    def get_ssl_context():
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=ca)
        return context
    return get_ssl_context


# -------- The client


class WrongBody(Exception):
    """What must never happen: a body that looks complete, and is another"""


class Caller(NamedTuple):
    """How the client goes about a request"""
    framing: str = 'chunked'       # of the upload: length, chunked, expect
    may_resend: bool = True        # whether the body can be made again
    leaves_at: int = -1            # the byte of the response's body at which it leaves
    closes: bool = False           # whether it then calls `aclose`
    headers: tuple = ()
    pause: float = 0.0             # seconds between pieces of 4 KiB of the upload


async def upload_body(plan, pause, moved):
    for piece in content(upload_seed(plan), plan.upload):
        for part in small_pieces(piece) if pause else (piece,):
            moved()
            yield part
            await asyncio.sleep(pause)


async def play(request, url, plan, caller, moved=lambda: None):
    """Plays a plan, and verifies what came of it: (how it ended, bytes verified)

    `moved()` is called before each piece of the upload, and after each of the response.
    """
    headers, body = caller.headers, None
    if plan.upload >= 0:
        make = functools.partial(upload_body, plan, caller.pause, moved)
        body = make if caller.may_resend else make()
        if caller.framing != 'chunked':
            headers += ((b'content-length', b'%d' % plan.upload),)
        if caller.framing == 'expect':
            headers += ((b'expect', b'100-continue'),)
    code, fields, response = await request(plan.method.encode(), url + plan.target(), headers=headers, body=body)
    moved()
    is_refused = plan.fault in REFUSALS
    expected_code = b'413' if is_refused else plan.framing.encode() if plan.framing.isdigit() else b'200'
    sent = digest(content(upload_seed(plan), max(0, plan.upload))).encode()
    if code != expected_code or not is_refused and dict(fields).get(b'x-upload') != sent:
        raise WrongBody(f'got {code} {fields}, expected {expected_code} and {sent}')
    size = 0 if plan.method == 'HEAD' or plan.framing.isdigit() else plan.size
    received, got = hashlib.sha256(), 0
    async for piece in response:
        moved()
        received.update(piece)
        got += len(piece)
        if 0 <= caller.leaves_at <= got:
            if caller.closes:
                await response.aclose()
            return 'left', 0
    if (got, received.hexdigest()) != (size, digest(content(answer_seed(plan), size))):
        raise WrongBody(f'got {got} bytes, expected {size}')
    return 'refused' if is_refused else 'right', got + (0 if is_refused else max(0, plan.upload))


def any_size(rng):
    """Mostly small, up to 10 MiB"""
    largest = rng.choice((1, 1000, 1000, 65536, 65536, 10 * MEBIBYTE))
    return int(largest ** rng.random()) - 1 if rng.random() < 0.98 else largest


def any_request(rng, seed):
    """(plan, caller), such that what must come of them is certain"""
    method = rng.choice(('GET', 'GET', 'GET', 'HEAD', 'OPTIONS', 'DELETE', 'POST', 'POST', 'PUT', 'PUT', 'PATCH'))
    upload = any_size(rng) if method in ('POST', 'PUT', 'PATCH') else -1
    framing = rng.choice(('length', 'length', 'chunked', 'chunked', 'close', '204', '304'))
    size = 0 if framing == '204' else any_size(rng)
    fault, at = '', 0
    if rng.random() < 0.12 and method != 'HEAD':
        fault = rng.choice(list(FAULTS) + list(REFUSALS))
    if fault in ('reset', 'cut', 'bad chunk'):
        framing = 'chunked' if fault == 'bad chunk' else rng.choice(('length', 'chunked'))
        size += 1
        at = rng.randrange(size)
    elif fault in REFUSALS or fault == 'upload reset':
        # What is not yet sent when a server drops the connection is lost: a small answer is.
        method, upload, framing, size = rng.choice(('POST', 'PUT')), upload + 2, 'length', min(size, 1000)
        at = rng.randrange(upload)
    plan = Plan(seed, method, upload, framing, size, int(rng.random() < 0.1) * rng.randint(1, 3), fault, at,
                int(rng.random() < 0.05))
    leaves = not fault and rng.random() < 0.05
    return plan, Caller(
        'length' if fault == 'upload reset' else rng.choice(('length', 'chunked', 'expect')),
        rng.random() < 0.7,
        rng.randrange(size + 1) if leaves else -1,
        rng.random() < 0.5,
        ((b'connection', b'close'),) if rng.random() < 0.05 else (),
    )


def is_scripted(error, plan, caller, origin):
    """Whether this HttpError is what the script made"""
    if type(error) is FAULTS.get(plan.fault):
        return True
    # A rude server closes idle connections: then what may not be sent again inside is for the caller to decide.
    is_resent = plan.method.encode() in IDEMPOTENT and (plan.upload < 0 or caller.may_resend)
    return origin.is_rude and not is_resent and type(error) is HttpConnectionClosedError and \
        error.reused and not error.answered


# What a play may take before it counts as hung: the machine may be busy.
HANG_SECONDS = 200


class Totals:
    """Counts, of bounded memory"""

    def __init__(self):
        self.ends = collections.Counter()
        self.verified = 0
        self.wrong_bodies = 0
        self.failed = 0
        self.failures = []  # sentences; of many, the first ones

    @property
    def requests(self):
        return sum(self.ends.values())

    def fail(self, sentence):
        self.failed += 1
        if len(self.failures) < 10:
            self.failures.append(sentence)


async def one_request(request, rng, seed, site, totals):
    loop = asyncio.get_event_loop()
    plan, caller = any_request(rng, seed)
    origin = Origin(*rng.choice(site['origins']))
    host = 'missing.test' if plan.fault == 'no name' else rng.choice(HOSTS)
    task = loop.create_task(play(request, f'{origin.scheme}://{host}:{origin.port}', plan, caller))
    is_cancelled = rng.random() < 0.05
    timer = loop.call_later(rng.choice((0.001, 0.01, 0.1)) * rng.random(), task.cancel) if is_cancelled else None
    await asyncio.wait([task], timeout=HANG_SECONDS)
    if timer is not None:
        timer.cancel()
    where = f'{plan} at {origin} by {caller}'
    if not task.done():
        task.cancel()
        totals.fail('hung: ' + where)
        totals.ends['hung'] += 1
        return
    if task.cancelled():
        end, verified = 'cancelled', 0
        if not is_cancelled:
            totals.fail('CancelledError out of nowhere: ' + where)
    elif task.exception() is None:
        end, verified = task.result()
        if plan.fault in FAULTS:
            totals.fail(f'{end} should have raised: {where}')
    else:
        end, verified = type(task.exception()).__name__, 0
        totals.wrong_bodies += end == WrongBody.__name__
        if not isinstance(task.exception(), HttpError) or not is_scripted(task.exception(), plan, caller, origin):
            totals.fail(f'{task.exception()!r}: {where}')
    totals.ends[end] += 1
    totals.verified += verified


def left_over(loop):
    """(sockets, descriptors, other tasks, timers): how many there are"""
    timers = [handle for handle in getattr(loop, '_scheduled', ()) if not handle._cancelled]
    return len(open_sockets()), len(os.listdir('/proc/self/fd')), len(all_tasks(loop)), len(timers)


async def quiet(loop, before, patience=PATIENCE):
    """What is left, once it is no more than before, or after `patience` seconds"""
    ends_at = loop.time() + patience
    while True:
        # Of cancelled tasks the last step; of idle connections and names, the end of their time.
        await asyncio.sleep(0.05)
        left = left_over(loop)
        if left == before or loop.time() > ends_at:
            return left


Sample = collections.namedtuple('Sample', 'seconds requests verified resident heap blocks objects left')


def resident_memory():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost')]


def heap():
    """Bytes that malloc gave and did not get back: OpenSSL's, and what Python has of more than 512 bytes.
    None where there is no mallinfo2(3), of glibc since 2.33"""
    mallinfo2 = getattr(ctypes.CDLL(None), 'mallinfo2', None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


async def soak(site, seconds, workers, seed, totals, on_sample=lambda sample: None):
    """The samples of so many seconds of traffic"""
    loop = asyncio.get_event_loop()
    request, close = Pool(
        get_dns_resolver=resolver('127.0.0.1', site['names'], (1, 1, 2, 5, 10)),
        get_ssl_context=trusting(site['ca']),
        keep_alive_timeout=0.5,
        socket_timeout=TEST_SECONDS,
    )
    seeds = itertools.count(1)
    samples = []
    before = left_over(loop)
    began = loop.time()
    round_seconds = min(10, max(1, seconds / 15))

    async def work(rng, until):
        while loop.time() < until:
            await one_request(request, rng, next(seeds), site, totals)

    for number in itertools.count():
        until = loop.time() + round_seconds
        await asyncio.gather(*[work(random.Random(f'{seed} {number} {worker}'), until)
                               for worker in range(workers)])
        gc.collect()
        left = await quiet(loop, before)
        if left != before:
            totals.fail(f'left after round {number} are {left} of sockets, descriptors, tasks, timers; '
                        f'there were {before}')
        gc.collect()
        samples.append(Sample(loop.time() - began, totals.requests, totals.verified, resident_memory(), heap(),
                              sys.getallocatedblocks(), len(gc.get_objects()), left))
        on_sample(samples[-1])
        if samples[-1].seconds >= seconds:
            await close()
            return samples


class SoakTests(AsyncTestCase):

    async def test_a_few_seconds_of_mixed_traffic(self):
        totals = Totals()
        with process(sys.executable, '-m', 'reliability.soak', '--serve') as site:
            await soak(site, 3, 24, 1, totals)
        self.assertEqual(totals.failures, [])
        self.assertGreater(totals.requests, 24)
        self.assertGreater(totals.verified, 0)


# -------- The report


def plot(values, height=8, width=64):
    """Lines of text"""
    columns = [statistics.median(values[at * len(values) // width:max(at * len(values) // width + 1,
                                                                      (at + 1) * len(values) // width)])
               for at in range(min(width, len(values)))] if len(values) > width else values
    lowest, highest = min(columns), max(columns)
    step = (highest - lowest) / (height - 1) or 1
    for row in reversed(range(height)):
        yield '{:9.2f} |{}'.format(lowest + row * step, ''.join(
            '*' if round((value - lowest) / step) == row else ' ' for value in columns))


Bound = collections.namedtuple('Bound', 'what most of_sample unit warm')
# By how much what a process holds may grow after so many seconds of warm-up, beside what each sample itself takes. What
# is allocated is the same in each pause, within 5 KB and 500 blocks: a block that every tenth request of 20 seconds
# leaves would show, or one that every 400th of ten minutes leaves. What is resident follows late, and in steps, as
# malloc's free pieces come to fit: 3 MiB in the first half minute, nothing after.
BOUNDS = (
    Bound('heap', 65536, 0, 'bytes', 6),
    Bound('blocks', 1000, 12, 'blocks', 6),
    Bound('objects', 300, 2, 'objects', 6),
    Bound('resident', 3 * MEBIBYTE, 1000, 'bytes', 60),
)


def growth(samples, seconds, out):
    """Sentences that tell what grew, between the first tenth of the time after a warm-up, and the last tenth"""
    tenth = seconds / 10
    judged = 0
    for what, most, of_sample, unit, warm_seconds in BOUNDS:
        # Each url is new: until as many are remembered as may be, they grow too.
        warm = [sample for sample in samples if sample.seconds >= warm_seconds and sample.requests > MAX_REMEMBERED]
        if not warm or warm[-1].seconds - warm[0].seconds < 2 * tenth:
            out(f'{what}: not judged, the run is too short')
            continue
        if getattr(warm[0], what) is None:
            out(f'{what}: not judged, it cannot be told here')
            continue
        judged += 1
        most += of_sample * len(samples)
        first = [sample for sample in warm if sample.seconds <= warm[0].seconds + tenth]
        last = [sample for sample in warm if sample.seconds >= samples[-1].seconds - tenth]
        begin, end = (statistics.median(getattr(sample, what) for sample in part) for part in (first, last))
        told = f'{what}: first {begin:.0f}, last {end:.0f}: {end - begin:+.0f} {unit}, at most {most:+}'
        out(f'{told}; medians of {tenth:.0f} seconds each, after {warm[0].seconds:.0f}')
        if end - begin > most:
            yield told
    if not judged:
        yield 'memory was not judged: the run is too short'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=float, default=600)
    parser.add_argument('--workers', type=int, default=48, help='requests at once')
    parser.add_argument('--seed', default=str(time.time_ns() if hasattr(time, 'time_ns') else time.time()))
    parser.add_argument('--serve', action='store_true', help='be the server: for its own use')
    options = parser.parse_args()
    if options.serve:
        serve()

    def out(line):
        sys.stdout.write(line + '\n')
        sys.stdout.flush()

    next_line = 0.0

    def on_sample(sample):
        nonlocal next_line
        if sample.seconds >= min(next_line, options.seconds):
            next_line += min(30, options.seconds / 6)
            out('{:7.0f} {:9d} {:9.0f} {:9.2f} {:8.3f} {:8d} {:8d} {:8d} {:12d} {:6d} {:7d}'.format(
                sample.seconds, sample.requests, sample.verified / MEBIBYTE, sample.resident / MEBIBYTE,
                (sample.heap or 0) / MEBIBYTE, sample.blocks, sample.objects, *sample.left))

    out('seed {}, {} requests at once; each line is of a pause in the traffic'.format(options.seed, options.workers))
    out('seconds  requests  verified  resident     heap   blocks  objects  sockets  descriptors  tasks  timers')
    out('                       (MiB)     (MiB)    (MiB)')
    totals = Totals()
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    with process(sys.executable, '-m', 'reliability.soak', '--serve') as site:
        samples = loop.run_until_complete(
            soak(site, options.seconds, options.workers, options.seed, totals, on_sample))
    loop.close()

    out('\nresident memory in MiB, over the time:')
    for line in plot([sample.resident / MEBIBYTE for sample in samples]):
        out(line)
    for sentence in growth(samples, options.seconds, out):
        totals.fail(sentence)
    for end, count in totals.ends.most_common():
        out('{:9d} {}'.format(count, end))
    for sentence in totals.failures:
        out('FAILED: ' + sentence)
    seconds = samples[-1].seconds
    out('{}: {} requests, {} wrong bodies, {} failures, {:.0f} MiB verified, {:.0f} seconds, {:.0f} requests a second'
        .format('FAILED' if totals.failed else 'passed', totals.requests, totals.wrong_bodies, totals.failed,
                totals.verified / MEBIBYTE, seconds, totals.requests / seconds))
    sys.exit(1 if totals.failed else 0)


if __name__ == '__main__':
    main()
