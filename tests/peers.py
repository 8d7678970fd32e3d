"""What peers answer, the scripts by which they do, and the test cases that ask them"""
import asyncio
import gc
import itertools
import threading
import time

import lowhaio
from lowhaio import HttpError, HttpRequestError, Pool, buffered
from reliability.harness import (
    OK, OK_EMPTY, OK_LAST, PATIENCE, TEST_SECONDS, AsyncTestCase, ScriptedConnection, client_context, in_thread,
    new_event_loop, outcome,
)

# Bodies that no socket buffer swallows whole, so that sending them blocks while the peer does not read.
MUCH = 16 * 1024 * 1024

EMPTY = b'HTTP/1.1 204 No Content\r\n\r\n'


def chunked_response(*lines):
    return OK + b'transfer-encoding: chunked\r\n\r\n' + b''.join(lines)


def with_length(value, body=b'hello', name=b'content-length'):
    return OK + name + b': ' + value + b'\r\n\r\n' + body


LAST_CHUNK = b'0\r\n\r\n'
CHUNKED = OK + b'transfer-encoding: chunked\r\n'


def reply_of(body=b'', *fields):
    return b''.join((
        b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n' % len(body), *(field + b'\r\n' for field in fields), b'\r\n', body,
    ))


def answering(*replies, seen=None, number=0):
    """A script: the n-th request of a connection gets the n-th of these, bytes or a function of the peer; the last
    one all that follow, until the client closes. `seen` is told (number, method) of each"""
    def script(peer):
        for reply in itertools.chain(replies, itertools.repeat(replies[-1])):
            head = peer.read_head()
            if not head.endswith(b'\r\n\r\n'):
                return
            if seen is not None:
                seen.append((number, head.partition(b' ')[0]))
            if callable(reply):
                reply(peer)
            else:
                peer.send(reply)
            if peer.sock.fileno() == -1:
                return
    return script


def numbered(count=10):
    """Scripts that answer with the number of their connection, so that an answer says how it came"""
    return [answering(reply_of(b'%d' % number)) for number in range(count)]


def reply_after_body(length, body=b''):
    def reply(peer):
        if len(peer.read(length)) == length:
            peer.send(reply_of(body))
    return reply


def until_closed(event, *replies):
    """A script that answers, and sets the event when the client has closed the connection"""
    def script(peer):
        for reply in replies:
            peer.read_head()
            peer.send(reply)
        peer.read_to_close()
        event.set()
    return script


def times_of_close(times, reply):
    """A script that appends the seconds between its answer and the client's closing the connection"""
    def script(peer):
        peer.read_head()
        began = time.monotonic()
        peer.send(reply)
        peer.read_to_close()
        times.append(time.monotonic() - began)
    return script


def halting(first, go_on, rest, gone):
    """A script that answers one request in two parts, the second after `go_on`, and sets `gone` at the close"""
    def script(peer):
        peer.read_head()
        peer.send(first)
        go_on.wait(TEST_SECONDS)
        peer.send(rest)
        if not peer.read_to_close():
            gone.set()
    return script


async def never():
    await asyncio.get_event_loop().create_future()


def in_loop_of_its_own(coroutine_function, *args):
    """What it gives, or the class of what it raises, in a new loop in the calling thread"""
    loop = new_event_loop()
    try:
        return loop.run_until_complete(outcome(coroutine_function(*args)))
    finally:
        loop.close()


def connect_slowly(until=None):
    """A `connect` that takes some time, as the handshake of a proxy may, and at least until this threading.Event"""
    async def connect(*args):
        connection = await lowhaio.connect_directly(*args)
        if until is not None:
            await in_thread(until.wait, TEST_SECONDS)
        await asyncio.sleep(0.05)
        return connection
    return connect


class WithoutCollector:
    """A TestCase whose garbage collector is off"""

    def setUp(self):
        super().setUp()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)

    def garbage(self, name_of):
        """The names, where there are any, of what only the collector could free"""
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            return [name for name in map(name_of, gc.garbage) if name]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.collect()


class ExchangeTestCase(AsyncTestCase):

    def setUp(self):
        super().setUp()
        self.holds = []

    def tearDown(self):
        for event in self.holds:
            event.set()
        super().tearDown()

    def pool(self, **kwargs):
        kwargs.setdefault('socket_timeout', PATIENCE)
        kwargs.setdefault('get_ssl_context', client_context)
        return super().pool(**kwargs)

    def url(self, *scripts, tls=None):
        """The url of a server that plays these scripts, as `serve` does"""
        return '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(*scripts, tls=tls))

    def hold(self):
        """An event on which a peer may wait: the end of the test sets it"""
        self.holds.append(threading.Event())
        return self.holds[-1]

    def scripted(self, *pieces, **kwargs):
        """request, and the list of the connections that it makes: each plays these pieces"""
        made = []

        async def connect(scheme, host, port, look_up, open_socket, start_tls):
            made.append(ScriptedConnection((scheme, host, port), pieces))
            return made[-1]

        request, _ = self.pool(connect=connect, **kwargs)
        return request, made

    async def sent(self, method, url, **kwargs):
        """What a request writes, all in one, to a connection that answers 200"""
        request, made = self.scripted(OK_EMPTY)
        await request(method, url, **kwargs)
        return b''.join(made[0].writes())

    async def outcome(self, method, pieces, **kwargs):
        """(code, headers, body, whether the connection was kept) of a response that comes in these pieces"""
        made = []

        async def connect(*endpoint):
            made.append(ScriptedConnection(endpoint[:3], pieces))
            return made[-1]

        request, close = Pool(connect=connect, **kwargs)
        try:
            code, headers, body = await request(method, 'http://127.0.0.1/')
            content = await buffered(body)
            connection, = made
            return code, headers, content, not connection.is_closed and not connection.pieces
        except HttpError:
            self.assertTrue(made[0].is_closed)
            self.unread = made[0].pieces
            raise
        finally:
            await close()

    async def assert_refused(self, cases):
        """That each of (what, arguments of `request`, a part of the error's sentence) raises HttpRequestError
        before a connection is opened; their bodies are not begun. The url is the server's where none is given."""
        port = self.answer(OK_LAST)
        url = 'http://127.0.0.1:{}/'.format(port)
        request, _ = self.pool()
        for what, arguments, sentence in cases:
            with self.subTest(what):
                arguments = dict({'method': b'POST', 'url': url}, **arguments)
                error = await self.raises(HttpRequestError, request(**arguments))
                self.assertIsInstance(error, ValueError)
                self.assertIn(sentence.lower(), str(error).lower())
                self.assertEqual(getattr(arguments.get('body'), 'asked', 0), 0)
        # Connections are accepted in their order: were there one for a refused request, it would be counted by now.
        await request(b'GET', url)
        self.assertEqual(self.accepted, 1)

    async def happens(self, event):
        self.assertTrue(await in_thread(event.wait, TEST_SECONDS / 2), 'it did not happen')

    async def text(self, request, port, host='127.0.0.1', scheme='http', method=b'GET', **kwargs):
        """The whole body of an answer that must be 200"""
        code, _, body = await request(method, '{}://{}:{}/'.format(scheme, host, port), **kwargs)
        self.assertEqual(code, b'200')
        return await buffered(body)

    def timers_beyond(self, seconds):
        """How many timers of the loop are due later than in so many seconds: a way to tell a pool's from others"""
        return len([handle for handle in self.loop._scheduled
                    if not handle._cancelled and handle._when > self.loop.time() + seconds])
