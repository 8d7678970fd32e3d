"""What is measured, as data: scenarios, what they transfer, and how near lowhaio is to be"""
import collections
import functools
import hashlib
import random

MiB = 2 ** 20
PIECE = 65536     # bytes of one piece of an upload
RECEIVE = 262144  # bytes of one receive of the floors: lowhaio's `recv_bufsize`

ALL = (
    'lowhaio', 'floor', 'kept floor', 'blocking', 'aiohttp', 'httpx', 'httpx2', 'niquests', 'pyreqwest', 'aiosonic',
)
LIMITS = {
    'floor': 'loop.sock_sendall and loop.sock_recv, the length known, nothing parsed; at import, asyncio and ssl '
             'themselves',
    'kept floor': 'the same with a reader that stays registered, and receives in its callback',
    'blocking': 'blocking sockets, the length known, nothing parsed: what asyncio is built on',
}
REMARKS = {
    'niquests': 'uploads in chunks, since it would send chunks within a given length too',
    'aiosonic': 'uploads in chunks, since it would send chunks within a given length too',
    'pyreqwest': 'does TLS in Rust, and, alone of all, resumes its sessions on new connections',
}
# Where all of them would take longer than they tell.
GROWTH = ('lowhaio', 'floor', 'kept floor', 'aiohttp', 'pyreqwest')

Scenario = collections.namedtuple('Scenario', 'name title content act at_once tls host uvloop idle_hosts clients')


def scenario(
        name, title, content='small', act='get', at_once=1, tls=False, host='127.0.0.1', uvloop=False, idle_hosts=0,
        clients=ALL,
):
    return Scenario(name, title, content, act, at_once, tls, host, uvloop, idle_hosts, clients)


SCENARIOS = (
    scenario('get', 'small GET, sequential'),
    scenario('get-32', 'small GET, 32 at once', at_once=32),
    scenario('get-256', 'small GET, 256 at once', at_once=256),
    scenario('get-name', 'small GET, by name', host='localhost'),
    scenario('get-tls', 'small GET, kept-alive TLS', tls=True),
    scenario('headers-20', '20 response headers', 'headers-20'),
    scenario('64k', '64 KiB', '64k'),
    scenario('chunks-40', '2,500 chunks of 40 bytes', 'chunks-40', act='down'),
    scenario('down', '256 MiB down', '256m', act='down'),
    scenario('down-chunked', '256 MiB down, chunked', 'chunks-16k', act='down'),
    scenario('down-tls', '256 MiB down, TLS', '256m', act='down', tls=True),
    scenario('up', '256 MiB up', '256m', act='up'),
    scenario('up-tls', '256 MiB up, TLS', '256m', act='up', tls=True),
    scenario('connect', 'new connection each', 'close'),
    scenario('connect-tls', 'new connection each, TLS', 'close', tls=True),
    scenario('uvloop-get', 'small GET, uvloop', uvloop=True),
    scenario('uvloop-get-32', '32 at once, uvloop', at_once=32, uvloop=True),
    scenario('uvloop-down', '256 MiB down, uvloop', '256m', act='down', uvloop=True, clients=GROWTH),
    scenario('uvloop-down-tls', '256 MiB down, TLS, uvloop', '256m', act='down', tls=True, uvloop=True,
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

# Issue 4: CPU of lowhaio at `scenario`, at most so many times that of another client, or of lowhaio elsewhere.
REACH = (
    ('get', 'get', 'floor', 1.25),
    ('get', 'get', 'aiohttp', 0.4),
    ('get', 'get', 'httpx2', 0.12),
    ('get', 'get', 'pyreqwest', 0.6),
    ('get-32', 'get-32', 'floor', 1.0),
    ('get-32', 'get-32', 'aiohttp', 0.33),
    ('get-32', 'get-32', 'pyreqwest', 0.6),
    ('get-256', 'get-256', 'floor', 1.0),
    ('get-256', 'get-256', 'aiohttp', 0.33),
    ('get-256', 'get-256', 'pyreqwest', 0.6),
    ('get-name', 'get', 'lowhaio', 1.05),
    ('headers-20', 'headers-20', 'floor', 1.5),
    ('chunks-40', 'chunks-40', 'aiohttp', 0.5),
    ('down', 'down', 'floor', 1.05),
    ('down', 'down', 'aiohttp', 0.8),
    ('down-tls', 'down-tls', 'blocking', 1.05),
    ('down-tls', 'down-tls', 'aiohttp', 0.9),
    ('up-tls', 'up-tls', 'blocking', 1.05),
    ('up-tls', 'up-tls', 'aiohttp', 0.9),
    ('up', 'up', 'floor', 1.1),
    ('connect', 'connect', 'floor', 1.5),
    ('connect-tls', 'connect-tls', 'aiohttp', 0.75),
    ('get-tls', 'get-tls', 'aiohttp', 0.6),
    ('at-once-5000', 'at-once-1', 'lowhaio', 1.5),
)
REACH_MEMORY = ('at-once-5000', 20)  # KiB per request in flight
REACH_IMPORT = ('import', 15)        # ms


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


# The body of each content: (bytes, how often they are repeated).
BODIES = {
    '64k': (block(65536), 1),
    '256m': (block(MiB), 256),
    'chunks-16k': (block(MiB), 256),
    'chunks-40': (block(40), 2500),
}


def body_of(content):
    return BODIES.get(content, (b'Hello, world\n', 1))


@functools.lru_cache(None)
def expected(content):
    """(length, SHA-256) of a content's body"""
    data, repeats = body_of(content)
    digest = hashlib.sha256()
    for _ in range(repeats):
        digest.update(data)
    return len(data) * repeats, digest.hexdigest()
