"""What is measured, as data: scenarios, what they transfer, and how near lowhaio is to be"""
import collections
import functools
import hashlib
import random

MiB = 2 ** 20
PIECE = 65536     # bytes of one piece of an upload
# Bytes of one receive of the floors: of a whole body, and of one in pieces. What glibc's malloc does for more than
# 128 KiB, in a process that never freed as much, is no part of a small GET.
RECEIVE, RECEIVE_BULK = 65536, 262144

ALL = (
    'lowhaio', 'floor', 'kept floor', 'blocking', 'aiohttp', 'httpx', 'httpx2', 'niquests', 'pyreqwest', 'wreq',
    'pyqwest', 'aiosonic',
)
LIMITS = {
    'floor': 'loop.sock_sendall and loop.sock_recv, the length known, nothing parsed; at import, asyncio and ssl '
             'themselves',
    'kept floor': 'the same with a reader that stays registered, and receives in its callback',
    'blocking': 'blocking sockets, the length known, nothing parsed: what asyncio is built on',
}
REMARKS = {
    'lowhaio': 'its pool may keep as many idle connections as there are requests at once, or idle hosts (`max_idle`, '
               'where it has that argument)',
    'niquests': 'uploads in chunks, since it would send chunks within a given length too',
    'aiosonic': 'uploads in chunks, since it would send chunks within a given length too',
    'pyreqwest': 'does TLS in Rust, and resumes its sessions on new connections',
    'wreq': 'does TLS by BoringSSL, in threads of Rust',
    'pyqwest': 'does TLS in Rust, and resumes its sessions on new connections',
}
# Where all of them would take longer than they tell.
GROWTH = ('lowhaio', 'floor', 'kept floor', 'aiohttp', 'pyreqwest', 'wreq', 'pyqwest')
AGAIN = ('lowhaio', 'floor', 'kept floor', 'blocking', 'aiohttp', 'pyreqwest', 'wreq', 'pyqwest')

# `tls`: the version that both sides agree on, or None; `fresh`: whether the process has never freed a large block.
Scenario = collections.namedtuple('Scenario', 'name title content act at_once tls host uvloop idle_hosts fresh clients')


def scenario(
        name, title, content='small', act='get', at_once=1, tls=None, host='127.0.0.1', uvloop=False, idle_hosts=0,
        fresh=False, clients=ALL,
):
    return Scenario(name, title, content, act, at_once, tls, host, uvloop, idle_hosts, fresh, clients)


SCENARIOS = (
    scenario('get', 'small GET, sequential'),
    scenario('get-32', 'small GET, 32 at once', at_once=32),
    scenario('get-256', 'small GET, 256 at once', at_once=256),
    scenario('get-name', 'small GET, by name', host='localhost'),
    scenario('get-tls', 'small GET, kept-alive TLS 1.3', tls='1.3'),
    scenario('get-tls-1.2', 'small GET, kept-alive TLS 1.2', tls='1.2', clients=AGAIN),
    scenario('get-fresh', 'small GET, fresh process', fresh=True, clients=AGAIN),
    scenario('get-32-fresh', '32 at once, fresh process', at_once=32, fresh=True, clients=AGAIN),
    scenario('get-tls-fresh', 'TLS 1.3, fresh process', tls='1.3', fresh=True, clients=AGAIN),
    scenario('headers-20', '20 response headers', 'headers-20'),
    scenario('64k', '64 KiB', '64k'),
    scenario('chunks-40', '2,500 chunks of 40 bytes', 'chunks-40', act='down'),
    scenario('down', '256 MiB down', '256m', act='down'),
    scenario('down-chunked', '256 MiB down, chunked', 'chunks-16k', act='down'),
    scenario('down-tls', '256 MiB down, TLS 1.3', '256m', act='down', tls='1.3'),
    scenario('down-tls-1.2', '256 MiB down, TLS 1.2', '256m', act='down', tls='1.2', clients=AGAIN),
    scenario('up', '256 MiB up', '256m', act='up'),
    scenario('up-tls', '256 MiB up, TLS 1.3', '256m', act='up', tls='1.3'),
    scenario('up-tls-1.2', '256 MiB up, TLS 1.2', '256m', act='up', tls='1.2', clients=AGAIN),
    scenario('connect', 'new connection each', 'close'),
    scenario('connect-tls', 'new connection each, TLS 1.3', 'close', tls='1.3'),
    scenario('connect-tls-1.2', 'new connection each, TLS 1.2', 'close', tls='1.2', clients=AGAIN),
    scenario('uvloop-get', 'small GET, uvloop', uvloop=True),
    scenario('uvloop-get-32', '32 at once, uvloop', at_once=32, uvloop=True),
    scenario('uvloop-down', '256 MiB down, uvloop', '256m', act='down', uvloop=True, clients=GROWTH),
    scenario('uvloop-down-tls', '256 MiB down, TLS 1.3, uvloop', '256m', act='down', tls='1.3', uvloop=True,
             clients=GROWTH),
    *(scenario(f'at-once-{n}', f'{n:,} requests at once', at_once=n, clients=GROWTH) for n in (1, 10, 100, 1000, 5000)),
    *(scenario(f'idle-{n}', f'{n:,} idle hosts in the pool', idle_hosts=n, clients=GROWTH) for n in (0, 10, 100, 1000)),
    *(scenario(f'head-{n}', f'a head of {n:,} fields', f'head-{n}', clients=GROWTH) for n in (1, 10, 100, 1000)),
    scenario('import', 'import, beyond asyncio and ssl', act='import'),
)
# Those that show how one cost grows: (prefix of their names, title, what is counted).
SERIES = (
    ('at-once-', 'requests at once', 'requests'),
    ('idle-', 'idle hosts in the pool', 'hosts'),
    ('head-', 'fields in the head', 'fields'),
)

# CPU of lowhaio at `scenario`, at most so many times that of another client, or of lowhaio elsewhere.
REACH = (
    ('get', 'get', 'floor', 1.0),
    ('get', 'get', 'aiohttp', 0.46),
    ('get', 'get', 'wreq', 0.36),
    *((name, name, client, at_most) for name in ('get-32', 'get-256') for client, at_most in (
        ('floor', 0.8), ('aiohttp', 0.26), ('pyreqwest', 0.42), ('wreq', 0.65))),
    ('get-32-fresh', 'get-32', 'lowhaio', 1.05),
    ('headers-20', 'headers-20', 'floor', 1.35),
    ('at-once-5000', 'at-once-1', 'lowhaio', 1.0),
    ('get-tls', 'get-tls', 'aiohttp', 0.5),
    ('get-tls-1.2', 'get-tls-1.2', 'aiohttp', 0.5),
    ('down', 'down', 'floor', 0.6),
    ('down', 'down', 'aiohttp', 0.4),
    ('up', 'up', 'floor', 1.1),
    ('up', 'up', 'aiohttp', 1.05),
    *((name, name, client, at_most) for version in ('', '-1.2') for name, client, at_most in (
        (f'down-tls{version}', 'blocking', 1.2), (f'down-tls{version}', 'aiohttp', 0.97),
        (f'up-tls{version}', 'blocking', 1.1), (f'up-tls{version}', 'aiohttp', 1.0))),
    ('connect', 'connect', 'floor', 1.45),
)
# What lowhaio may take at `scenario` by itself: (scenario, what, field, so many times, unit, at most).
REACH_ALONE = (
    ('get-fresh', 'page faults per request', 'faults', 1, '', 0),
    ('get-32-fresh', 'page faults per request', 'faults', 1, '', 0),
    ('get-tls-fresh', 'page faults per request', 'faults', 1, '', 0),
    ('at-once-5000', 'memory of a request in flight', 'beyond', 1 / 1024 / 5000, ' KiB', 20),
    ('import', 'CPU', 'cpu', 1000, ' ms', 15),
)


def family(scenario):
    """Of scenarios whose figures are divided by each other: they are measured one soon after the other"""
    prefix = next((prefix for prefix, _, _ in SERIES if scenario.name.startswith(prefix)), None)
    return prefix or scenario.name.replace('-fresh', '').replace('-1.2', '')


def reason_not(client, scenario):
    """Why a client is not measured at a scenario, where that is known beforehand; None if it is"""
    if client not in LIMITS:
        return None
    if scenario.act == 'import':
        return None if client == 'floor' else 'nothing to import'
    if scenario.idle_hosts:
        return 'has no pool'
    if scenario.content.startswith('chunks-'):
        return 'does not decode chunks'
    if scenario.host != '127.0.0.1':
        return 'takes addresses alone'
    if client == 'blocking':
        return 'one at a time' if scenario.at_once > 1 else 'has no loop' if scenario.uvloop else None
    return 'asyncio has no TLS for bare sockets' if scenario.tls else None


@functools.lru_cache(None)
def block(size):
    return random.Random(0).getrandbits(8 * size).to_bytes(size, 'big')


# Of each content the bytes of its body, and how often they are repeated.
SIZES = {'64k': (65536, 1), '256m': (MiB, 256), 'chunks-16k': (MiB, 256), 'chunks-40': (40, 2500)}


def body_of(content):
    """(bytes, how often they are repeated), made here alone: a large block that is freed warms malloc"""
    if content not in SIZES:
        return b'Hello, world\n', 1
    size, repeats = SIZES[content]
    return block(size), repeats


@functools.lru_cache(None)
def expected(content):
    """(length, SHA-256) of a content's body"""
    data, repeats = body_of(content)
    digest = hashlib.sha256()
    for _ in range(repeats):
        digest.update(data)
    return len(data) * repeats, digest.hexdigest()
