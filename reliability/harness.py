"""What all tests stand on: event loops that must end empty, peers in threads, certificates, and scripted bytes

Peers are threads with blocking sockets, so that all that stands in the event loop is the client's own: after each
test no socket, task, reader or timer may be left in it.
"""
import asyncio
import contextlib
import functools
import gc
import inspect
import os
import select
import socket
import ssl
import struct
import sys
import threading
import unittest
import warnings
import weakref

import trustme

from lowhaio import Pool

USE_UVLOOP = os.environ.get('LOWHAIO_LOOP') == 'uvloop'
if USE_UVLOOP:
    import uvloop
# What one test may take before it counts as hung.
TEST_SECONDS = 60


def new_event_loop():
    return uvloop.new_event_loop() if USE_UVLOOP else asyncio.new_event_loop()


def all_tasks(loop):
    return {task for task in getattr(asyncio, 'all_tasks', getattr(asyncio.Task, 'all_tasks', None))(loop)
            if not task.done()}


def open_sockets():
    """The descriptors of this process that are sockets, as {descriptor: inode}"""
    found = {}
    for name in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            target = os.readlink('/proc/self/fd/' + name)
            if target.startswith('socket:'):
                found[int(name)] = target
    return found


class Peer:
    """One accepted connection, played by a thread with a blocking socket"""

    def __init__(self, sock):
        self.sock = sock
        self.buffer = b''
        self.received = None  # a bytearray, where all that comes is to be recorded

    def _fill(self):
        data = self.sock.recv(65536)
        self.buffer += data
        if self.received is not None:
            self.received += data
        return data

    def read_until(self, end=b'\r\n\r\n'):
        """Up to and with `end`; what came so far (b'' perhaps) if the client closes before"""
        while end not in self.buffer:
            if not self._fill():
                data, self.buffer = self.buffer, b''
                return data
        head, _, rest = self.buffer.partition(end)
        self.buffer = rest
        return head + end

    read_head = read_until

    def read(self, length):
        while len(self.buffer) < length and self._fill():
            pass
        data, self.buffer = self.buffer[:length], self.buffer[length:]
        return data

    def read_to_close(self):
        """All until the client closes (or resets)"""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self._fill():
                pass
        data, self.buffer = self.buffer, b''
        return data

    def send(self, *segments):
        for segment in segments:
            self.sock.sendall(segment)

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.sock.close()

    def close(self):
        """Over TLS: close_notify first; `abort` closes without it"""
        if isinstance(self.sock, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                self.sock.settimeout(0.2)
                self.sock.unwrap()
        self.sock.close()

    def abort(self):
        self.sock.close()


class AsyncTestCase(unittest.TestCase):
    """`async def test_…` run in a loop of their own, and leave nothing behind"""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name, method in list(vars(cls).items()):
            if name.startswith('test') and inspect.iscoroutinefunction(method):
                setattr(cls, name, cls._in_loop(method))

    @staticmethod
    def _in_loop(method):
        @functools.wraps(method)
        def run(self):
            self.loop.run_until_complete(asyncio.wait_for(method(self), TEST_SECONDS))
        return run

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # What the modules hold is looked through once, and not three times in each test. Since Python 3.7.
        gc.collect()
        if hasattr(gc, 'freeze'):
            gc.freeze()

    @classmethod
    def tearDownClass(cls):
        if hasattr(gc, 'freeze'):
            gc.unfreeze()  # hypothesis judges by `gc.get_referrers`, which does not see what is frozen
        super().tearDownClass()

    def setUp(self):
        gc.collect()
        self._caught = warnings.catch_warnings(record=True)
        self._warnings = self._caught.__enter__()
        warnings.simplefilter('always')
        self._unraisable = []
        if hasattr(sys, 'unraisablehook'):
            previous = sys.unraisablehook
            sys.unraisablehook = lambda args: self._unraisable.append(repr(args.exc_value))
            self.addCleanup(setattr, sys, 'unraisablehook', previous)
        self._sockets_before = open_sockets()
        self.loop = new_event_loop()
        asyncio.set_event_loop(self.loop)
        self._loop_errors = []
        self.loop.set_exception_handler(lambda _, context: self._loop_errors.append(context))
        self._sockets_of_loop = {fd: s for fd, s in open_sockets().items() if fd not in self._sockets_before}
        self._listeners = []
        self._peers = []
        self._threads = []
        self._pools = []
        self.peer_errors = []
        self.accepted = 0

    def tearDown(self):
        # A closed pool whose bodies have ended has nothing left; the turns are for tasks that were cancelled.
        for close in self._pools:
            self.loop.run_until_complete(close())
        for _ in range(5):
            self.loop.run_until_complete(asyncio.sleep(0))
        gc.collect()
        tasks = all_tasks(self.loop)
        readers, timers = self._readers_and_timers()
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for sock in self._peers:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TEST_SECONDS)
            self.assertFalse(thread.is_alive(), 'a peer still runs')
        for sock in self._peers:
            sock.close()
        sockets = {fd: s for fd, s in open_sockets().items()
                   if self._sockets_before.get(fd) != s and self._sockets_of_loop.get(fd) != s}
        if hasattr(self.loop, 'shutdown_asyncgens'):
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        asyncio.set_event_loop(None)
        gc.collect()
        self._caught.__exit__(None, None, None)
        self.assertEqual((tasks, readers, timers, sockets), (set(), [], [], {}),
                         'left: tasks, readers, timers, sockets')
        self.assertEqual([str(w.message) for w in self._warnings if not self._foreign(w)], [])
        self.assertEqual(self._unraisable, [])
        self.assertEqual(self._loop_errors, [])
        if self.peer_errors:
            raise self.peer_errors[0]

    @staticmethod
    def _foreign(warning):
        """Deprecations told of a library's own files are theirs; a ResourceWarning is always ours"""
        return 'site-packages' in warning.filename and not issubclass(warning.category, ResourceWarning)

    def _readers_and_timers(self):
        if USE_UVLOOP:  # keeps its handles to itself; the sockets and tasks are counted all the same
            return [], []
        selector_map = self.loop._selector.get_map()
        readers = [key.fd for key in selector_map.values() if key.fd not in self._sockets_of_loop]
        timers = [handle for handle in self.loop._scheduled if not handle._cancelled]
        return readers, timers

    def pool(self, **kwargs):
        """(request, close) of a Pool that the end of the test closes; its time-outs are one, unless both are given"""
        kwargs.setdefault('connect_timeout', kwargs.get('socket_timeout', 10))
        request, close = Pool(**kwargs)
        self._pools.append(close)
        return request, close

    def serve(self, *scripts, tls=None, host='127.0.0.1', backlog=1024):
        """The port of a server whose n-th connection is played by the n-th of `scripts`; the last one by all
        that follow. A script is a plain function of a Peer, run in a thread; the connection is closed when it
        returns. `tls` is an ssl.SSLContext. An exception in a script fails the test, but for the client's
        going away."""
        listener = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        listener.listen(backlog)
        self._listeners.append(listener)

        def accept():
            count = 0
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                self.accepted += 1
                self._peers.append(sock)
                sock.settimeout(TEST_SECONDS)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                start(functools.partial(play, sock, scripts[min(count, len(scripts) - 1)]))
                count += 1

        def play(sock, script):
            try:
                if tls is not None:
                    sock = tls.wrap_socket(sock, server_side=True)
                    self._peers.append(sock)
                peer = Peer(sock)
                script(peer)
                peer.close()
            except (ConnectionError, ssl.SSLError):
                sock.close()
            except BaseException as exception:
                sock.close()
                self.peer_errors.append(exception)

        def start(function):
            thread = threading.Thread(target=function, daemon=True)
            self._threads.append(thread)
            thread.start()

        start(accept)
        return listener.getsockname()[1]

    def answer(self, response, tls=None):
        """The port of a server that reads each request's head and answers these bytes, then closes"""
        def script(peer):
            if peer.read_head():
                peer.send(response)
        return self.serve(script, tls=tls)

    async def raises(self, error, awaitable):
        """The exception that awaiting gives; it must be of exactly this class, with a sentence"""
        with self.assertRaises(error) as caught:
            await awaitable
        self.assertIs(type(caught.exception), error)
        self.assertGreater(len(str(caught.exception)), 10)
        return caught.exception


async def in_thread(function, *args):
    """Waits for a blocking call, such as an Event's `wait`, in a thread"""
    loop = asyncio.get_event_loop()
    done = loop.create_future()

    def run():
        result = function(*args)
        loop.call_soon_threadsafe(lambda: done.done() or done.set_result(result))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return await done


CA = trustme.CA()


def server_context(*names):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if hasattr(ssl, 'PROTOCOL_TLS_SERVER') else ssl.PROTOCOL_TLS)
    CA.issue_cert(*(names or ('localhost', '127.0.0.1', '::1'))).configure_cert(context)
    return context


def client_context():
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return context


# Seconds that nothing takes unless it never comes; a busy machine may stand still for several.
PATIENCE = 30
OK = b'HTTP/1.1 200 OK\r\n'
OK_EMPTY = OK + b'content-length: 0\r\n\r\n'
OK_LAST = OK + b'content-length: 0\r\nconnection: close\r\n\r\n'
TOO_LARGE = b'HTTP/1.1 413 Content Too Large\r\ncontent-length: 9\r\n\r\ntoo large'
CONTINUE = b'HTTP/1.1 100 Continue\r\n\r\n'


async def pieces_of(*pieces):
    for piece in pieces:
        yield piece


class ScriptedConnection:
    """What `connect` may return in place of a socket: reads give `pieces`, one each, and then the end

    No piece is there before something was written: it is an answer.
    """
    address = None
    expires_at = 0.0

    def __init__(self, endpoint, pieces):
        self.endpoint = endpoint
        self.pieces = list(pieces)
        self.calls = []
        self.is_closed = False
        self.ends = 0
        self.is_there = False

    async def wait(self, sending=False, seconds=None):
        self.is_there = True

    def receive(self):
        if not self.is_there:
            return None
        self.is_there = False
        if not self.pieces:
            self.ends += 1
            assert self.ends < 10, 'read again and again after the end'
        data = self.pieces.pop(0) if self.pieces else b''
        self.calls.append(('read', data))
        return data

    def send(self, data):
        self.is_there = False
        self.calls.append(('write', bytes(data)))
        return len(data)

    def has_unsent(self):
        return False

    def poll(self):
        return self.pieces.pop(0) if self.pieces and self.writes() else None

    def watch(self, callback, seconds=0):
        pass

    def close(self, last=b''):
        self.is_closed = True

    def abandon(self):
        self.is_closed = True

    def writes(self):
        return [data for name, data in self.calls if name == 'write']


@functools.lru_cache(None)
def tls_server():
    """The context of a TLS server for 127.0.0.1; one for all, since its key takes time to make"""
    return server_context()


class ClientSockets:
    """A pool's `set_sock_options` that remembers, weakly, which sockets there were"""

    def __init__(self, *options):
        self.options = options
        self.references = []

    def __call__(self, sock):
        for option in self.options:
            sock.setsockopt(*option)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.references.append(weakref.ref(sock))

    def alive(self):
        return [sock for sock in (reference() for reference in self.references) if sock is not None]

    def count_open(self):
        return sum(1 for sock in self.alive() if sock.fileno() != -1)


SMALL_SEND_BUFFER = (socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)


def current_task():
    return getattr(asyncio, 'current_task', getattr(asyncio.Task, 'current_task', None))()


async def outcome(awaitable):
    """What it gives, or the class of what it raises; the exception itself is let go of at once"""
    try:
        return await awaitable
    except BaseException as error:
        return type(error)


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


@contextlib.contextmanager
def full_backlog():
    """The port of a listener to which connecting neither succeeds nor fails: its queue is full"""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(('127.0.0.1', 0))
        listener.listen(0)
        is_full = False
        while not is_full:
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(listener.getsockname())
            is_full = not select.select([], [sock], [], 0.05)[1]
        yield listener.getsockname()[1]


def refusing_port():
    """A port of loopback at which nothing listens"""
    with socket.socket() as sock:
        sock.bind(('127.0.0.1', 0))
        return sock.getsockname()[1]


class ManualTls:
    """A server's TLS over two MemoryBIOs: it can tell close_notify from a bare end, whatever the version's defaults"""

    def __init__(self, peer, context):
        self.peer = peer
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)

    def flush(self):
        self.peer.sock.sendall(self.outgoing.read())

    def receive(self):
        data = self.peer.sock.recv(65536)
        if data:
            self.incoming.write(data)
        return data

    def handshake(self, flush_last=True):
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                if not self.receive():
                    return
        if flush_last:
            self.flush()

    def read(self):
        """Bytes; b'' for close_notify, None for an end without it"""
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLZeroReturnError:
                return b''
            except ssl.SSLWantReadError:
                self.flush()
                if not self.receive():
                    return None

    def write(self, data):
        self.tls.write(data)
        self.flush()


def tls_versions():
    """(name, a function that has a server's context speak only it)"""
    def only(version):
        def configure(context):
            if hasattr(context, 'minimum_version'):
                context.minimum_version = context.maximum_version = \
                    ssl.TLSVersion.TLSv1_2 if version == '1.2' else ssl.TLSVersion.TLSv1_3
            else:
                context.options |= ssl.OP_NO_TLSv1_3 if version == '1.2' else ssl.OP_NO_TLSv1_2
            return context
        return configure
    return [(version, only(version)) for version in ('1.2', '1.3')
            if version == '1.2' or getattr(ssl, 'HAS_TLSv1_3', False)]
