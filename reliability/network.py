"""A bad network: everything finishes right, verified by its hash, or raises within the timeout's rule

    python -m reliability.network [--quick]

First through relays on loopback, which delay, cut, stall, half-close and reset. Then, as root and with iproute2,
between two network namespaces that the run makes, and removes: a veth pair that goes down, gets narrow, or leads
nowhere, and a pair of tun devices between which packets are delayed, lost, doubled and reordered, by `tc netem` too
where the kernel has it. Where that cannot be, the exit code is 3.
"""
import argparse
import asyncio
import collections
import contextlib
import ctypes
import fcntl
import functools
import heapq
import itertools
import json
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import NamedTuple

from aiodnsresolver import TYPES

from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpConnectionTimeout,
    HttpDataError,
    HttpDataTimeout,
    HttpDnsError,
    HttpTlsError,
    Pool,
    set_sock_options_default,
)
from reliability.harness import CA, Peer, new_event_loop, server_context
from reliability.soak import (
    Caller,
    Plan,
    Server,
    WrongBody,
    left_over,
    listen,
    play,
    process,
    quiet,
    resolver,
    serve_names,
    trusting,
)

# Seconds of `socket_timeout` where it must not be reached, however busy the machine, and where it must.
PATIENT, HASTY = 20, 2
# Seconds by which a wait may exceed its bound, besides those for which the machine was seen to stand still.
SLACK = 1.5
# Seconds after which a scenario counts as hung.
HANG_SECONDS = 90


# -------- What is sent


class Job(NamedTuple):
    """Requests of one kind, one after another"""
    scheme: str
    plan: Plan
    caller: Caller = Caller()
    repeats: int = 1
    every: float = 0.0  # seconds between them


def traffic(size, pace=0.0, schemes=('http', 'https'), framings=('length', 'chunked', 'close'), repeats=20):
    """All kinds of requests: downloads, uploads, and small ones that reuse a connection"""
    small = Job('', Plan(size=100), repeats=repeats, every=5 * pace)
    return tuple(job._replace(scheme=scheme) for scheme in schemes for job in (
        *[Job('', Plan(framing=framing, size=size, pace=pace)) for framing in framings],
        *[Job('', Plan(method='PUT', upload=size), Caller(framing, pause=pace)) for framing in ('length', 'chunked')],
        small, small._replace(plan=Plan(method='POST', upload=100, size=100)),
    ))


# About 2 seconds each, so that what happens to the network happens in the middle.
STREAMS = traffic(800000, pace=0.01)
DOWNLOADS = tuple(job for job in STREAMS if job.plan.pace)
UPLOADS = tuple(job for job in STREAMS if job.caller.pause)
BULK = traffic(300000)
SMALL = traffic(500, repeats=3)
PROBES = tuple(Job(scheme, Plan(method=method, upload=upload, size=1000))
               for scheme in ('http', 'https') for method, upload in (('GET', -1), ('PUT', 1000), ('GET', -1)))
POSTS = tuple(Job(scheme, Plan(method='POST', upload=100)) for scheme in ('http', 'https'))
HTTPS_PROBES = tuple(job for job in PROBES if job.scheme == 'https')
FORGOTTEN = tuple(job._replace(plan=job.plan._replace(fault='forgotten')) for job in PROBES)


class Scenario(NamedTuple):
    """What happens to the network, and what must come of each job: RIGHT, or exactly one of these classes"""
    name: str
    jobs: tuple
    expected: tuple
    steps: tuple = ()           # (after so many seconds, what): a command of `ip` or `tc`, or what befalls packets
    host: str = 'near.test'
    timeout: float = PATIENT    # the pool's `connect_timeout` and `socket_timeout`
    waits: int = 1              # for how many such timeouts one wait of the caller may last
    limit: float = 0.0          # seconds, in place of that
    kind: str = 'plain'         # which of the server's ports, or the name of a relay
    names: tuple = ('198.18.0.2', (0.5, 1, 2, 4))  # the name server, and the waits for it
    options: tuple = ()         # of sockets, besides the default ones
    again: tuple = (PROBES, ('right',))  # jobs of the same pool once the network is mended, and what must come of them
    quick: bool = False


RIGHT = ('right',)
TIMES_OUT = (HttpDataTimeout,)


# -------- Relays


class Way(NamedTuple):
    """What a relay does with one direction of a connection"""
    piece: int = 65536      # bytes forwarded at a time
    delay: float = 0.0      # seconds before each
    gathers: float = 0.0    # seconds for which bytes are collected, to be forwarded together
    then: str = ''          # pause, stall, half-close or reset
    at: range = range(0)    # after how many bytes that happens: one of these, by chance


def at(offset):
    return range(offset, offset + 1)


STRAIGHT = Way()
# name: (to the client, to the server). A TLS handshake takes more than 1,000 bytes to the client, less than 4,000.
RELAYS = {
    'delays': (Way(delay=0.02), Way(delay=0.02)),
    'single bytes': (Way(piece=1), Way(piece=1)),
    'odd pieces': (Way(piece=777), Way(piece=333)),
    'gathers': (Way(gathers=0.03), Way(gathers=0.03)),
    'pauses the answer': (Way(then='pause', at=range(5000)), STRAIGHT),
    'pauses the request': (STRAIGHT, Way(then='pause', at=range(3000))),
    'stalls the answer at once': (Way(then='stall', at=at(0)), STRAIGHT),
    'stalls the handshake': (Way(then='stall', at=at(500)), STRAIGHT),
    'stalls the body': (Way(then='stall', at=at(9000)), STRAIGHT),
    'stalls the request': (STRAIGHT, Way(then='stall', at=at(4000))),
    'half-closes the handshake': (Way(then='half-close', at=at(500)), STRAIGHT),
    'half-closes the body': (Way(then='half-close', at=at(9000)), STRAIGHT),
    'half-closes the request': (STRAIGHT, Way(then='half-close', at=at(4000))),
    'resets the handshake': (Way(then='reset', at=at(500)), STRAIGHT),
    'resets the body': (Way(then='reset', at=at(9000)), STRAIGHT),
    'resets the request': (STRAIGHT, Way(then='reset', at=at(4000))),
    'resets anywhere': (Way(then='reset', at=range(40000)), STRAIGHT),
}
DELIMITED = ('length', 'chunked')  # over plain TCP the end of the connection is an end like another
BIG = traffic(100000, framings=DELIMITED)
BIG_DOWNLOADS = tuple(job for job in BIG if job.plan.upload < 0 and job.repeats == 1)
BIG_UPLOADS = tuple(job for job in BIG if job.plan.upload > 1000)
CLOSE_OVER_TLS = traffic(100000, schemes=('https',), framings=('close',))[:1]


def relayed(kind, jobs, expected, timeout=PATIENT, quick=False):
    return Scenario(f'relay {kind}', jobs, expected, host='127.0.0.1', timeout=timeout, kind=kind,
                    again=((), RIGHT), quick=quick)


RELAY_SCENARIOS = (
    relayed('delays', BULK, RIGHT),
    relayed('single bytes', SMALL, RIGHT, quick=True),
    relayed('odd pieces', BULK, RIGHT),
    relayed('gathers', SMALL, RIGHT, quick=True),
    relayed('pauses the answer', BULK, RIGHT, quick=True),
    relayed('pauses the request', BULK, RIGHT),
    relayed('stalls the answer at once', traffic(2000, schemes=('http',)), TIMES_OUT, HASTY),
    relayed('stalls the handshake', HTTPS_PROBES, (HttpConnectionTimeout,), HASTY, quick=True),
    relayed('stalls the body', BIG_DOWNLOADS + CLOSE_OVER_TLS, TIMES_OUT, HASTY, quick=True),
    relayed('stalls the request', BIG_UPLOADS, TIMES_OUT, HASTY),
    relayed('half-closes the handshake', HTTPS_PROBES, (HttpTlsError,), quick=True),
    relayed('half-closes the body', BIG_DOWNLOADS + CLOSE_OVER_TLS, (HttpConnectionClosedError,), quick=True),
    # Over TLS the server may tell what it thinks of that: an alert.
    relayed('half-closes the request', BIG_UPLOADS, (HttpConnectionClosedError, HttpDataError), quick=True),
    relayed('resets the handshake', HTTPS_PROBES, (HttpTlsError,), quick=True),
    relayed('resets the body', BIG_DOWNLOADS + CLOSE_OVER_TLS, (HttpConnectionClosedError,), quick=True),
    relayed('resets the request', BIG_UPLOADS, (HttpConnectionClosedError,), quick=True),
    relayed('resets anywhere', (BIG_DOWNLOADS + CLOSE_OVER_TLS) * 8, (HttpConnectionClosedError, HttpTlsError),
            quick=True),
)


async def forward(reader, writer, way, reset):
    left = random.choice(way.at) if way.at else -1  # bytes until something happens
    while True:
        data = await reader.read(65536)
        if not data:
            writer.write_eof()
            return
        if way.gathers:
            await asyncio.sleep(way.gathers)
            with contextlib.suppress(asyncio.TimeoutError):
                data += await asyncio.wait_for(reader.read(1024 * 1024), 0.01)
        while data:
            if not left:
                left = -1
                if way.then == 'pause':
                    await asyncio.sleep(1)
                elif way.then == 'stall':
                    await asyncio.sleep(HANG_SECONDS)
                elif way.then == 'half-close':
                    writer.write_eof()
                    await asyncio.sleep(HANG_SECONDS)
                elif way.then == 'reset':
                    reset()
                    return
            size = min(len(data), way.piece, left if left > 0 else len(data))
            piece, data = data[:size], data[size:]
            left -= min(size, max(0, left))
            await asyncio.sleep(way.delay)
            writer.write(piece)
            await writer.drain()


async def relay(port, to_client, to_server, reader, writer):
    server_reader, server_writer = await asyncio.open_connection('127.0.0.1', port)

    def reset():
        for each in (writer, server_writer):
            if each.transport.is_closing():
                continue
            each.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            each.transport.abort()

    ways = [asyncio.ensure_future(forward(server_reader, writer, to_client, reset)),
            asyncio.ensure_future(forward(reader, server_writer, to_server, reset))]
    await asyncio.wait(ways)
    for way in ways:
        if isinstance(way.exception(), OSError):
            reset()
    writer.close()
    server_writer.close()


async def start_relays(ports):
    """{name: {scheme: port}}"""
    told = {}
    for name, ways in RELAYS.items():
        told[name] = {}
        for scheme, port in ports.items():
            server = await asyncio.start_server(functools.partial(relay, port, *ways), '127.0.0.1', 0)
            told[name][scheme] = server.sockets[0].getsockname()[1]
    return told


# -------- The server's process


class ForgettingServer(Server):

    def answer(self, peer, plan, head, is_last):
        is_kept = super().answer(peer, plan, head, is_last)
        if is_kept and plan.fault == 'forgotten':
            # A reset while the link is down: never to arrive, and never repeated.
            time.sleep(1)
            peer.reset()
            return False
        return is_kept


RECORDS = {
    'near.test': {TYPES.A: [(60, '198.18.0.2')]},
    'brief.test': {TYPES.A: [(1, '198.18.0.2')]},
    'six.test': {TYPES.AAAA: [(60, '2001:db8::2')]},
    'half-lost.test': {TYPES.A: [(60, '198.18.0.8'), (60, '198.18.0.2')]},
    'lost.test': {TYPES.A: [(60, '198.18.0.8'), (60, '198.18.0.7')]},
    'vanishing.test': {TYPES.A: [(60, '198.18.0.9')]},
    'far.test': {TYPES.A: [(60, '198.18.1.2')]},
}


def records(name, qtype, _):
    return RECORDS[name].get(qtype, ()) if name in RECORDS else None


def serve(has_relays):
    server = ForgettingServer()
    context = server_context('127.0.0.1', '198.18.0.2', *RECORDS)

    def play_late(peer):
        # Between the client's hello and the server's a second passes.
        time.sleep(1)
        server.play(False, Peer(context.wrap_socket(peer.sock, server_side=True)))

    play_plan = functools.partial(server.play, False)
    host = '127.0.0.1' if has_relays else '::'
    plain = {'http': listen(host, 0, play_plan), 'https': listen(host, 0, play_plan, context)}
    ports = {'plain': plain, 'late': {'https': listen(host, 0, play_late)}}
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    if has_relays:
        ports.update(loop.run_until_complete(start_relays(plain)))
    else:
        for address in ('198.18.0.2', '198.18.0.3', '198.18.1.2'):
            serve_names(address, 53, records)
    sys.stdout.write(json.dumps(dict(ports=ports, ca=CA.cert_pem.bytes().decode())) + '\n')
    sys.stdout.flush()
    loop.add_reader(sys.stdin.fileno(), os._exit, 0)
    loop.run_forever()


# -------- Two namespaces


class CannotBe(Exception):
    """There is no bad network to be had here"""


class PacketLink:
    """Forwards packets between two tun devices, and has them suffer: what `tc netem` does, in this process"""

    def __init__(self):
        self.descriptors = []
        self.heal()

    def heal(self):
        self.suffer()

    def suffer(self, latency=0.0, jitter=0.0, loss=0.0, doubled=0.0, loss_to_client=0.0):
        """Seconds, of which `jitter` is by chance, so that packets overtake each other; and shares of all packets"""
        self.latency, self.jitter, self.loss, self.doubled = latency, jitter, loss, doubled
        self.loss_to_client = loss_to_client

    def add_device(self, name):
        descriptor = os.open('/dev/net/tun', os.O_RDWR)
        self.descriptors.append(descriptor)
        TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454ca, 1, 0x1000
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack('16sH22x', name.encode(), IFF_TUN | IFF_NO_PI))

    def run(self):
        rng = random.Random(1)
        client, server = self.descriptors
        on_their_way = []  # heap of (due, number, descriptor, packet)
        numbers = itertools.count()
        while True:
            now = time.monotonic()
            while on_their_way and on_their_way[0][0] <= now:
                _, _, descriptor, packet = heapq.heappop(on_their_way)
                with contextlib.suppress(OSError):  # the device is down
                    os.write(descriptor, packet)
            timeout = on_their_way[0][0] - now if on_their_way else None
            for descriptor in select.select(self.descriptors, (), (), timeout)[0]:
                packet = os.read(descriptor, 65536)
                loss = self.loss if descriptor == client else max(self.loss, self.loss_to_client)
                if rng.random() < loss:
                    continue
                for _ in range(2 if rng.random() < self.doubled else 1):
                    due = time.monotonic() + self.latency + self.jitter * rng.random()
                    heapq.heappush(on_their_way, (
                        due, next(numbers), server if descriptor == client else client, packet))


def netem(latency=0.0, jitter=0.0, loss=0.0, doubled=0.0):
    return (f'tc -n {{client}} qdisc replace dev cli root netem delay {latency:f}s {jitter:f}s loss {100 * loss:f}% '
            f'duplicate {100 * doubled:f}%')


def run_tool(command, text=None):
    try:
        result = subprocess.run(command.split(), input=text, universal_newlines=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as error:
        return 1, f'{error}'
    return result.returncode, result.stdout.strip()


class Network:
    """Two namespaces, with a veth pair and a PacketLink between them; this process enters the client's"""

    def __init__(self):
        self.client, self.server = (f'lowhaio-{os.getpid()}-{role}' for role in ('client', 'server'))
        self.link = PacketLink()
        self.has_netem = False

    def must(self, command, text=None):
        status, output = run_tool(command.format(client=self.client, server=self.server), text)
        if status:
            raise CannotBe(f'{command}: {output}')

    def apply(self, what):
        if isinstance(what, str):
            self.must(what)
        else:
            self.link.suffer(**what)

    def __enter__(self):
        try:
            self.make()
        except OSError as error:
            self.__exit__()
            raise CannotBe(f'{error}') from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def make(self):
        if os.getuid():
            raise CannotBe('it takes root to make network namespaces')
        for pid, name in re.findall(r'(?m)^(?=lowhaio-([0-9]+)-)(\S+)', run_tool('ip netns list')[1]):
            if not os.path.exists('/proc/' + pid):  # it was killed, and had no time to clean up
                run_tool('ip netns del ' + name)
        self.must('ip netns add {client}')
        self.must('ip netns add {server}')
        self.must('ip link add cli netns {client} address 02:00:00:00:00:01 type veth '
                  'peer name srv netns {server} address 02:00:00:00:00:02')
        for role in ('client', 'server'):
            device = f'lh{os.getpid()}{role[0]}'
            self.link.add_device(device)
            self.must(f'ip link set {device} netns {{{role}}} name tun')
        # So that the single packets are as large as they say, and not segmented at their end.
        self.must('ip -n {client} link set cli gso_max_segs 1')
        self.must('ip -n {server} link set srv gso_max_segs 1')
        self.mend()
        probe = f'tc -n {self.client} qdisc add dev lo root netem delay 1ms'
        self.has_netem = not run_tool(probe)[0]
        threading.Thread(target=self.link.run, daemon=True).start()
        with open('/run/netns/' + self.client) as file:
            CLONE_NEWNET = 0x40000000
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def mend(self):
        """Makes all of it as it was in the beginning"""
        self.link.heal()
        for side, device, mac, last, others in (
                ('{client}', 'cli', '02', 1, ()), ('{server}', 'srv', '01', 2, (3, 9))):
            run_tool(f'tc -n {side} qdisc del dev {device} root'.format(client=self.client, server=self.server))
            # The addresses .7 and .8 lead to the server's host, which drops what is for neither.
            far = (2, 3, 7, 8, 9) if device == 'cli' else (1,)
            lines = [
                'link set lo up',
                f'link set {device} up mtu 1500',
                'link set tun up',
                f'addr replace 198.18.0.{last}/24 dev {device}',
                *[f'addr replace 198.18.0.{other}/32 dev {device}' for other in others],
                f'addr replace 198.18.1.{last}/24 dev tun',
                f'addr replace 2001:db8::{last}/64 dev {device} nodad',
                *[f'neigh replace 198.18.0.{each} lladdr 02:00:00:00:00:{mac} dev {device}' for each in far],
                *[f'route flush table main type {kind}' for kind in ('blackhole', 'unreachable', 'prohibit')],
            ]
            self.must(f'ip -n {side} -batch -', '\n'.join(lines) + '\n')

    def __exit__(self, *_):
        for name in (self.client, self.server):
            run_tool('ip netns del ' + name)


NEAR_DOWN, NEAR_UP = ('ip -n {client} link set cli ' + state for state in ('down', 'up'))
FAR_DOWN, FAR_UP = ('ip -n {server} link set srv ' + state for state in ('down', 'up'))
ANSWERS_LOST = 'ip -n {server} route replace blackhole 198.18.0.1/32'
ANSWERS_FOUND = 'ip -n {server} route del blackhole 198.18.0.1/32'
NAMES_LOST = 'ip -n {server} addr del 198.18.0.3/32 dev srv'
VANISHED = 'ip -n {server} addr del 198.18.0.9/32 dev srv'
NARROW = tuple((0, f'tc -n {{{role}}} qdisc replace dev {device} root tbf rate 8mbit burst 3000 limit 9000')
               for role, device in (('client', 'cli'), ('server', 'srv')))


def no_route(kind):
    return f'ip -n {{client}} route replace {kind} 198.18.0.2/32'


def mtu(role, device, size):
    return f'ip -n {{{role}}} link set {device} mtu {size}'


def repeated(first, second, times, every, lasting):
    """Steps: the first of two, and after so many seconds the other"""
    return tuple(step for number in range(times)
                 for step in ((0.2 + number * every, first), (0.2 + number * every + lasting, second)))


ADDRESS = '198.18.0.2'
QUICK_PROBES = tuple((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in (
    ('TCP_KEEPIDLE', 1), ('TCP_KEEPINTVL', 1), ('TCP_KEEPCNT', 3), ('TCP_USER_TIMEOUT', 4000)))

NAMESPACE_SCENARIOS = (
    Scenario('nothing happens', STREAMS, RIGHT, quick=True),
    Scenario('nothing happens, over IPv6', STREAMS, RIGHT, host='six.test'),
    Scenario('narrow: real loss by overflow', BULK, RIGHT, NARROW, quick=True),
    # Before there is a connection.
    Scenario('near link down before the look-up', PROBES, (HttpDnsError,), ((0, NEAR_DOWN),), timeout=HASTY),
    Scenario('far link down before the look-up', PROBES, (HttpDnsError,), ((0, FAR_DOWN),), timeout=HASTY),
    Scenario('near link down before connecting', PROBES, (HttpConnectionError,), ((0, NEAR_DOWN),), ADDRESS, waits=0,
             quick=True),
    Scenario('far link down before connecting', PROBES, (HttpConnectionTimeout,), ((0, FAR_DOWN),), ADDRESS, HASTY,
             quick=True),
    Scenario('far link down while connecting, then up', PROBES, RIGHT, ((0, FAR_DOWN), (0.7, FAR_UP)), ADDRESS),
    *[Scenario(f'{kind} route before connecting', PROBES, (HttpConnectionError,), ((0, no_route(kind)),), ADDRESS,
               waits=0, quick=kind == 'blackhole')
      for kind in ('blackhole', 'unreachable', 'prohibit')],
    Scenario('all answers lost before connecting', PROBES, (HttpConnectionTimeout,), ((0, ANSWERS_LOST),), ADDRESS,
             HASTY),
    Scenario('all answers lost while connecting, then not', PROBES, RIGHT, ((0, ANSWERS_LOST), (0.7, ANSWERS_FOUND)),
             ADDRESS),
    Scenario('the first of two addresses is lost', PROBES, RIGHT, host='half-lost.test', timeout=HASTY, quick=True),
    Scenario('both of two addresses are lost', PROBES, (HttpConnectionTimeout,), host='lost.test', timeout=HASTY,
             waits=2, again=((), RIGHT)),
    Scenario('link down in the handshake', HTTPS_PROBES, (HttpConnectionTimeout,), ((0.4, FAR_DOWN),), ADDRESS, HASTY,
             kind='late', again=(HTTPS_PROBES, RIGHT), quick=True),
    Scenario('link down in the handshake, then up', HTTPS_PROBES, RIGHT, ((0.4, FAR_DOWN), (1.6, FAR_UP)), ADDRESS,
             kind='late', again=(HTTPS_PROBES, RIGHT)),
    # Names.
    Scenario('name server lost, which is asked four times', PROBES, (HttpDnsError,), timeout=HASTY,
             names=('198.18.0.8', (0.3,) * 4), again=((), RIGHT), quick=True),
    Scenario('name server lost, for longer than the timeout', PROBES, (HttpDnsError,), timeout=HASTY,
             names=('198.18.0.8', (30,)), again=((), RIGHT)),
    Scenario('name server lost in the middle: the last answer stands', STREAMS, RIGHT, ((0.5, NAMES_LOST),),
             'brief.test', names=('198.18.0.3', (0.2,) * 4), quick=True),
    # In the middle.
    Scenario('far link down for a second', STREAMS, RIGHT, ((0.6, FAR_DOWN), (1.6, FAR_UP)), quick=True),
    Scenario('near link down for a second', STREAMS, RIGHT, ((0.6, NEAR_DOWN), (1.6, NEAR_UP))),
    Scenario('far link flaps', STREAMS, RIGHT, repeated(FAR_DOWN, FAR_UP, 5, 0.4, 0.06)),
    Scenario('answers lost now and then', STREAMS, RIGHT, repeated(ANSWERS_LOST, ANSWERS_FOUND, 8, 0.25, 0.05)),
    Scenario('far link down for good', STREAMS, TIMES_OUT, ((0.6, FAR_DOWN),), timeout=HASTY, quick=True),
    Scenario('near link down for good', STREAMS, TIMES_OUT, ((0.6, NEAR_DOWN),), timeout=HASTY),
    Scenario('all answers lost for good', STREAMS, TIMES_OUT, ((0.6, ANSWERS_LOST),), timeout=HASTY),
    *[Scenario(f'{kind} route in the middle', STREAMS, TIMES_OUT, ((0.6, no_route(kind)),), timeout=HASTY,
               quick=kind == 'prohibit')
      for kind in ('blackhole', 'unreachable', 'prohibit')],
    Scenario('MTU smaller at both ends', STREAMS, RIGHT,
             ((0.6, mtu('client', 'cli', 600)), (0.6, mtu('server', 'srv', 600)))),
    Scenario('MTU smaller at the far end alone: downloads', DOWNLOADS, RIGHT, ((0.6, mtu('server', 'srv', 600)),)),
    Scenario('MTU smaller at the far end alone: uploads', UPLOADS, TIMES_OUT, ((0.6, mtu('server', 'srv', 600)),),
             timeout=HASTY),
    # Idle connections that the server has forgotten, and the client cannot know of.
    Scenario('forgotten while the link was down', FORGOTTEN, RIGHT, ((0.5, FAR_DOWN), (1.5, FAR_UP)), quick=True),
    Scenario('forgotten while the link was down: POST', FORGOTTEN, RIGHT, ((0.5, FAR_DOWN), (1.5, FAR_UP)),
             again=(POSTS, (HttpConnectionClosedError,))),
    # Nothing but the kernel's own patience ends these: keep-alive probes, and TCP_USER_TIMEOUT.
    Scenario('host vanishes, options scaled down', STREAMS, TIMES_OUT, ((0.6, VANISHED),), 'vanishing.test', 60,
             limit=12, options=QUICK_PROBES, quick=True),
    Scenario('host vanishes, default options', STREAMS, TIMES_OUT, ((0.6, VANISHED),), 'vanishing.test', 60, limit=45),
)
SUFFERINGS = {
    'latency': dict(latency=0.1),
    'loss of 3 %': dict(latency=0.005, loss=0.03),
    'reordering': dict(latency=0.005, jitter=0.03),
    'duplication': dict(latency=0.005, doubled=0.3),
    'all of it': dict(latency=0.02, jitter=0.02, loss=0.02, doubled=0.1),
}
PACKET_SCENARIOS = (
    *[Scenario(f'packets: {name}', BULK, RIGHT, ((0, what),), 'far.test', quick=name == 'all of it')
      for name, what in SUFFERINGS.items()],
    Scenario('packets: all lost for a second', STREAMS, RIGHT, ((0.6, dict(loss=1)), (1.6, dict())), 'far.test'),
    Scenario('packets: all lost for good', STREAMS, TIMES_OUT, ((0.6, dict(loss=1)),), 'far.test', HASTY),
    Scenario('packets: answers lost for good', STREAMS, TIMES_OUT, ((0.6, dict(loss_to_client=1)),), 'far.test',
             HASTY, quick=True),
)
NETEM_SCENARIOS = tuple(Scenario(f'netem: {name}', BULK, RIGHT, ((0, netem(**what)),))
                        for name, what in SUFFERINGS.items())


# -------- The run


class Watch:
    """The longest time between two signs of life, in any of the jobs of a scenario"""

    def __init__(self):
        self.longest = 0.0

    def of_job(self):
        last = time.monotonic()

        def moved():
            nonlocal last
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now

        return moved


async def seconds_stood_still(longest):
    """Notes in longest[0] for how long this process could not run, though it wanted to"""
    while True:
        began = time.monotonic()
        await asyncio.sleep(0.05)
        longest[0] = max(longest[0], time.monotonic() - began - 0.05)


class Report:

    def __init__(self):
        self.seeds = itertools.count(1)
        self.scenarios = self.requests = self.right = self.raised = self.wrong = self.hung = self.failed = 0
        self.longest = 0.0

    async def run_jobs(self, jobs, request, host, ports, watch):
        """How each ended: 'right', or what it raised"""
        async def run(job):
            moved = watch.of_job()
            url = f'{job.scheme}://{host}:{ports[job.scheme]}'
            try:
                for _ in range(job.repeats):
                    moved()
                    self.requests += 1
                    plan = job.plan._replace(seed=next(self.seeds))
                    end, _ = await play(request, url, plan, job.caller, moved)
                    self.right += 1
                    moved()
                    await asyncio.sleep(job.every)
                return end
            except Exception as error:
                moved()
                self.raised += 1
                self.wrong += isinstance(error, WrongBody)
                return error

        tasks = [asyncio.ensure_future(run(job)) for job in jobs]
        done, hung = await asyncio.wait(tasks, timeout=HANG_SECONDS) if tasks else ((), ())
        self.hung += len(hung)
        for task in hung:
            task.cancel()
        return [task.result() if task in done else 'hung' for task in tasks]

    async def run_scenario(self, scenario, site, network):
        loop = asyncio.get_event_loop()
        before = left_over(loop)
        address, waits = scenario.names

        def set_sock_options(sock):
            set_sock_options_default(sock)
            for option in scenario.options:
                sock.setsockopt(*option)

        request, close = Pool(resolver(address, 53, waits), trusting(site['ca']), set_sock_options=set_sock_options,
                              connect_timeout=scenario.timeout, socket_timeout=scenario.timeout)
        ports = site['ports'][scenario.kind]
        watch = Watch()
        stood_still = [0.0]
        requests, right = self.requests, self.right
        began = loop.time()

        async def take_steps():
            for at_second, what in scenario.steps:
                if at_second:
                    await asyncio.sleep(began + at_second - loop.time())
                    network.apply(what)

        for at_second, what in scenario.steps:
            if not at_second:
                network.apply(what)
        clock = asyncio.ensure_future(seconds_stood_still(stood_still))
        steps = asyncio.ensure_future(take_steps())
        ends = await self.run_jobs(scenario.jobs, request, scenario.host, ports, watch)
        await steps
        bound = (scenario.limit or scenario.waits * scenario.timeout) + SLACK + stood_still[0]
        problems = list(unexpected(scenario.expected, ends))
        if watch.longest > bound:
            problems.append(f'a wait of {watch.longest:.1f} seconds, where at most {bound:.1f} are due')
        longest = watch.longest

        if network is not None:
            network.mend()
        jobs, expected = scenario.again
        problems += unexpected(expected, await self.run_jobs(jobs, request, scenario.host, ports, watch), 'again: ')
        clock.cancel()
        await close()
        left = await quiet(loop, before)
        if left != before:
            problems.append(f'left are {left} of sockets, descriptors, tasks, timers; there were {before}')

        self.scenarios += 1
        self.failed += bool(problems)
        self.longest = max(self.longest, longest)
        counts = collections.Counter(type(end).__name__ for end in ends if isinstance(end, Exception))
        out('{:52} {:7.1f} {:8d} {:8d} {:8.2f} {:7.1f}  {}{}'.format(
            scenario.name, loop.time() - began, self.requests - requests, self.right - right, longest, bound,
            ', '.join(f'{count} {name}' for name, count in counts.items()), ' FAILED' if problems else ''))
        for problem in problems:
            out('    ' + problem)


def unexpected(expected, ends, when=''):
    for end in ends:
        what = type(end) if isinstance(end, Exception) else end
        if what not in expected:
            yield f'{when}{end!r}'
        elif what is HttpConnectionClosedError and when and not (end.reused and not end.answered):
            yield f'{when}{end!r} says reused={end.reused}, answered={end.answered}'


def out(line):
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


def run(report, scenarios, options, site, network=None):
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    for scenario in scenarios:
        if (scenario.quick or not options.quick) and options.only in scenario.name:
            loop.run_until_complete(report.run_scenario(scenario, site, network))
    loop.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--quick', action='store_true', help='a part of it, in less than a minute')
    parser.add_argument('--only', default='', help='scenarios with this in their name')
    parser.add_argument('--serve', choices=('relays', 'namespace'), help='be the server: for its own use')
    options = parser.parse_args()
    if options.serve:
        serve(options.serve == 'relays')
    # Such that the namespaces are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    began = time.monotonic()
    report = Report()
    command = (sys.executable, '-m', 'reliability.network', '--serve')
    out('{:52} {:>7} {:>8} {:>8} {:>8} {:>7}  {}'.format(
        'scenario', 'seconds', 'requests', 'right', 'longest', 'bound', 'raised'))
    with process(*command, 'relays') as site:
        run(report, RELAY_SCENARIOS, options, site)
    cannot_be = None
    try:
        with Network() as network, process('ip', 'netns', 'exec', network.server, *command, 'namespace') as site:
            run(report, NAMESPACE_SCENARIOS + PACKET_SCENARIOS, options, site, network)
            if network.has_netem:
                run(report, NETEM_SCENARIOS, options, site, network)
            else:
                out('This kernel has no netem: packets suffered between tun devices alone')
    except CannotBe as error:
        cannot_be = error
        out(f'NOT RUN: the part with network namespaces, which takes root, iproute2 and tun devices: {error}')
    out('{}: {} scenarios, {} failures; {} requests, {} right, {} raised, {} hung, {} wrong bodies; '
        'longest wait {:.1f} seconds; {:.0f} seconds'.format(
            'FAILED' if report.failed else 'passed', report.scenarios, report.failed, report.requests, report.right,
            report.raised, report.hung, report.wrong, report.longest, time.monotonic() - began))
    sys.exit(1 if report.failed else 3 if cannot_be else 0)


if __name__ == '__main__':
    main()
