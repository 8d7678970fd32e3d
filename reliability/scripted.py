"""A scripted peer: what a server does on one connection, as a tuple of steps

    (HEAD, b'HTTP/1.1 200 OK\\r\\ncontent-length: 5\\r\\n\\r\\nhel', Pause(0.1), b'lo', RESET)

    bytes            one segment: written at once, and sent at once
    HEAD             waits for the head of a request
    Read(N)          waits for N bytes more
    Drip(data, s)    a byte at a time, with so many seconds between
    Pause(s)         waits so many seconds
    an Event         waits for it to be set
    SILENT           does nothing more until the client goes away, and reads nothing either
    DRAIN            reads until the client goes away
    HALF_CLOSE       ends its own direction; the steps after it may still read
    CLOSE            closes; over TLS, with close_notify
    ABORT            closes; over TLS, without close_notify
    RESET            closes by a reset (SO_LINGER 0)
    a function       is called with the Peer: for what is not above

A script that ends without an ending closes. The same steps play over TCP and over TLS, whole or cut (`in_bytes`,
`cuts`). What the peer got stands in the Record.
"""
import collections
import contextlib
import select
import ssl
import threading
import time

from reliability.harness import TEST_SECONDS, Peer

Read = collections.namedtuple('Read', 'length')
Pause = collections.namedtuple('Pause', 'seconds')
Drip = collections.namedtuple('Drip', 'data seconds')


def in_bytes(wire):
    return [wire[i:i + 1] for i in range(len(wire))]


def cuts(wire):
    """A wire whole, byte by byte, and in two at each offset"""
    yield [wire]
    yield in_bytes(wire)
    for at in range(1, len(wire)):
        yield [wire[:at], wire[at:]]


def HEAD(peer):
    peer.read_head()


def SILENT(peer):
    # Without reading: what the client has sent stays in the kernel, until it goes away, or the test ends.
    poll = select.poll()
    poll.register(peer.sock, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    poll.poll(TEST_SECONDS * 1000)


def DRAIN(peer):
    peer.read_to_close()


HALF_CLOSE = Peer.half_close
CLOSE = Peer.close
ABORT = Peer.abort
RESET = Peer.reset


class Record:
    """What a scripted peer got: `connections` has the bytes of each, in the order of their acceptance"""

    def __init__(self):
        self.connections = []
        self._lock = threading.Lock()

    def of(self, peer):
        with self._lock:
            peer.received = bytearray()
            self.connections.append(peer.received)

    @property
    def received(self):
        """All bytes, of all connections"""
        return b''.join(map(bytes, self.connections))


def play(peer, steps):
    for step in steps:
        if isinstance(step, (bytes, bytearray)):
            peer.send(step)
        elif isinstance(step, Read):
            peer.read(step.length)
        elif isinstance(step, Drip):
            for byte in in_bytes(step.data):
                peer.send(byte)
                time.sleep(step.seconds)
        elif isinstance(step, Pause):
            time.sleep(step.seconds)
        elif isinstance(step, threading.Event):
            step.wait(TEST_SECONDS)
        else:
            step(peer)


def scripted(*steps, record=None):
    """A function of a Peer that plays these steps, for AsyncTestCase's `serve`"""
    def script(peer):
        if record is not None:
            record.of(peer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            play(peer, steps)
    return script
