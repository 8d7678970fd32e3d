"""What is heard while the caller's body is awaited, what is good before a fault, and bodies that make requests"""
import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import queue
import re
import socket
import ssl
import struct
import termios
import threading
import time
import types
import unittest

from aiodnsresolver import DnsRecordDoesNotExist

import lowhaio
from lowhaio import (
    HttpBodyError,
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpConnectionTimeout,
    HttpDataError,
    HttpDataTimeout,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpProtocolError,
    HttpRedirectError,
    HttpRequestError,
    HttpTlsError,
    buffered,
    redirectable,
    streamed,
)
from reliability.harness import (
    CONTINUE,
    OK,
    OK_EMPTY,
    PATIENCE,
    SMALL_SEND_BUFFER,
    USE_UVLOOP,
    AsyncTestCase,
    ClientSockets,
    ManualTls,
    ScriptedConnection,
    client_context,
    current_task,
    in_thread,
    pieces_of,
    refusing_port,
    tls_server,
    turns,
)
from tests.peers import WithoutCollector

try:
    import anyio
except ImportError:
    anyio = None
try:
    import contextvars
except ImportError:  # Python 3.6
    contextvars = None

IS_HEARD = hasattr(asyncio.Task, 'cancelling')
if_heard = unittest.skipUnless(
    IS_HEARD, 'Before Python 3.11 the answer is heard at the next piece: the caller\'s own cancellation could not be '
              'told from the interruption')
if_timeout = unittest.skipUnless(hasattr(asyncio, 'timeout'), 'asyncio.timeout came with Python 3.11')
trusting_context = functools.lru_cache(None)(client_context)  # it takes 20 ms to make one
REFUSAL = b'HTTP/1.1 401 Unauthorized\r\ncontent-length: 6\r\n\r\nno key'
REFUSED = b'401', b'no key', False
EARLY = OK + b'content-length: 5\r\n\r\nearly'
EXPECTS = ((b'expect', b'100-continue'),)
LENGTH = ((b'content-length', b'100'),)


class Waiting:
    """A body's function: it gives `before`, awaits `first()`, sets `asked`, awaits `wait(seen)`, and gives `after`

    `seen` is what it saw: the class of each exception, and at last 'closed'.
    """

    def __init__(self, wait=None, before=(b'first',), after=(), first=turns):
        self.wait = wait or for_ever
        self.first = first
        self.before = before
        self.after = after
        self.asked = threading.Event()
        self.seen = []

    async def __call__(self):
        try:
            for piece in self.before:
                yield piece
            await self.first()
            self.asked.set()
            await self.wait(self.seen)
            for piece in self.after:
                yield piece
        except BaseException as error:
            self.seen.append(type(error))
            raise
        finally:
            self.seen.append('closed')


async def for_ever(seen):
    await asyncio.sleep(PATIENCE)
    raise AssertionError('what the body awaited was not cancelled')


async def for_ever_and_after(seen):
    try:
        await for_ever(seen)
    finally:
        await for_ever(seen)


INTERRUPTED = [asyncio.CancelledError, 'closed']
# Seconds, longer than those after which a cancellation of the caller's is looked at again
LOOKED_AGAIN = 0.15


class HeardConnection(ScriptedConnection):
    """What `connect` may return: gives `pieces`, and raises those that are errors. More may come at any moment

    After b'', and, as the kernel has it, after an error, there is only the end.
    """
    watcher = None
    is_over = False

    def watch(self, callback, seconds=0):
        self.watcher = callback

    def comes(self, *pieces):
        """These are there now, and who watches is told"""
        self.pieces += pieces
        if self.watcher is not None:
            self.watcher(False)

    def receive(self):
        piece = self.pieces.pop(0) if self.pieces else b'' if self.is_over else None
        self.is_over = self.is_over or piece == b'' or isinstance(piece, Exception)
        if isinstance(piece, Exception):
            raise piece
        return piece

    def poll(self):
        return None

    async def wait(self, sending=False, seconds=None, receiving=True):
        while not (self.pieces or self.is_over or self.is_closed):
            await asyncio.sleep(0)


class ListeningTestCase(AsyncTestCase):

    def setUp(self):
        super().setUp()
        self.sockets = ClientSockets()

    def play(self, asked, *steps, tls=None):
        """The url of a server that, once `asked` is set, sends and calls these steps, then reads on"""
        def script(peer):
            if b'100-continue' in peer.read_head():
                peer.send(CONTINUE)
            assert asked.wait(PATIENCE)
            for step in steps:
                peer.send(step) if isinstance(step, bytes) else step(peer)
            if peer.sock.fileno() != -1:
                peer.read_to_close()

        return '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))

    def shrink_receive_buffer(self):
        """Of connections that the last server will accept: what it does not read soon blocks the client"""
        self._listeners[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

    async def post(self, url, body, headers=(), method=b'POST', **kwargs):
        """(code, content, sent_all) of the answer, or (class, answered) of the error"""
        request, _ = self.pool(get_ssl_context=trusting_context, set_sock_options=self.sockets,
                               socket_timeout=kwargs.pop('socket_timeout', PATIENCE), **kwargs)
        try:
            code, _, answer = await request(method, url, headers=headers, body=body)
            return code, await buffered(answer), answer.sent_all
        except HttpError as error:
            self.assertGreater(len(str(error)), 10)
            return type(error), getattr(error, 'answered', False)

    async def refused(self, body, headers=(), tls=None):
        """A POST that is answered 401 while its body waits; the task itself is not cancelled, and nothing stays open"""
        url = self.play(body.asked, REFUSAL, tls=tls)
        self.sockets = ClientSockets()
        self.assertEqual(await self.post(url, body, headers), REFUSED)
        self.assertEqual(self.sockets.count_open(), 0)
        self.assertEqual(current_task().cancelling(), 0)

    async def waiting(self, body, headers=(), is_read=True, **kwargs):
        """(connection, task) of a POST on a HeardConnection, once its body waits: of `post`, or of `request` alone"""
        async def connect(*endpoint):
            made.append(HeardConnection(endpoint, ()))
            return made[-1]

        made = []
        if is_read:
            posting = self.post('http://h/', body, headers, connect=connect, **kwargs)
        else:
            request, _ = self.pool(connect=connect, **kwargs)
            posting = request(b'POST', 'http://h/', headers=headers, body=body)
        task = self.loop.create_task(posting)
        while not body.asked.is_set():
            await asyncio.sleep(0)
        await turns()
        return made[0], task

    async def end_of(self, task):
        """What the task gave, or the class of what it raised"""
        await asyncio.wait([task], timeout=PATIENCE)
        self.assertTrue(task.done(), 'it hangs')
        return asyncio.CancelledError if task.cancelled() else task.exception() or task.result()


# -------- What comes while the body waits

# what, a function that gives TLS or None, headers of the request, whether 100 Continue comes before
UPLOADS = (
    ('chunked', lambda: None, (), False),
    ('by length', lambda: None, LENGTH, False),
    ('after 100', lambda: None, LENGTH + EXPECTS, True),
    ('over TLS', tls_server, (), False),
    ('over TLS, after 100', tls_server, EXPECTS, True),
)


def over_tls(peer):
    return isinstance(peer.sock, ssl.SSLSocket)


def reset(peer):
    peer.abort() if over_tls(peer) else peer.reset()  # of the TCP beneath it the wrapped socket has none


def end(peer):
    peer.close() if over_tls(peer) else peer.half_close()


# what, steps of the server, the answer or the error's class
EVENTS = (
    ('a refusal', (REFUSAL,), REFUSED),
    ('a refusal in two cuts', (REFUSAL[:30], lambda peer: time.sleep(0.01), REFUSAL[30:]), REFUSED),
    ('a refusal after 1xx', (b'HTTP/1.1 103 E\r\n\r\nHTTP/1.1 102 P\r\n\r\n' + REFUSAL,), REFUSED),
    ('a refusal and the end', (REFUSAL, end), REFUSED),
    ('a refusal and a reset', (REFUSAL, reset), REFUSED),
    ('a redirect', (b'HTTP/1.1 300 M\r\ncontent-length: 2\r\n\r\nno',), (b'300', b'no', False)),
    ('a code below 100', (b'HTTP/1.1 099 M\r\ncontent-length: 2\r\n\r\nno',), (b'099', b'no', False)),
    ('the end', (end,), HttpConnectionClosedError),
    ('a reset', (reset,), HttpConnectionClosedError),
    ('the end of half a head', (REFUSAL[:30], end), HttpConnectionClosedError),
    ('garbage', (b'220 smtp\r\n',), HttpProtocolError),
    ('101', (b'HTTP/1.1 101 S\r\n\r\n',), HttpProtocolError),
    ('a head that is too long', (OK + b'a: b\r\n' * 20000,), HttpHeaderTooLong),
)


class WhatComesTests(ListeningTestCase):

    @if_heard
    async def test_a_refusal_the_end_and_a_failure_are_heard_in_every_framing(self):
        for what, tls, headers, is_continued in UPLOADS:
            for event, steps, expected in EVENTS:
                for before in ((b'first',), (b'first', b'', b'second')) + (((),) if is_continued else ()):
                    with self.subTest((what, event, before)):
                        body = Waiting(before=before)
                        url = self.play(body.asked, *steps, tls=tls())
                        result = await self.post(url, body, headers)
                        self.assertEqual(body.seen, INTERRUPTED)
                        has_bytes = is_continued or bool(steps) and isinstance(steps[0], bytes)
                        self.assertEqual(result, (expected, has_bytes) if isinstance(expected, type) else expected)
                        self.assertEqual((self.sockets.count_open(), current_task().cancelling()), (0, 0))

    async def test_before_the_first_piece_nothing_is_sent_nor_heard(self):
        # There is no request yet that it could answer: so it is told once the piece is there, as of any connection.
        for steps in ((REFUSAL,), (end,), (reset,)):
            with self.subTest(steps):
                there, got = threading.Event(), queue.Queue()

                async def wait(seen, there=there):
                    await in_thread(there.wait)
                    await turns()

                body = Waiting(wait, (), (b'first',))

                def script(peer, steps=steps, body=body, there=there, got=got):
                    assert body.asked.wait(PATIENCE)
                    for step in steps:
                        peer.send(step) if isinstance(step, bytes) else step(peer)
                    there.set()
                    got.put(peer.read_to_close() if peer.sock.fileno() != -1 else b'')

                result = await self.post(f'http://127.0.0.1:{self.serve(script)}/', body)
                self.assertEqual(result, (HttpConnectionError, False))
                self.assertEqual((body.seen, await in_thread(got.get)), ([GeneratorExit, 'closed'], b''))

    async def test_1xx_alone_and_half_a_head_interrupt_no_body(self):
        for what, tls, headers, _ in UPLOADS:
            for early, last in (((b'HTTP/1.1 102 P\r\n\r\n',) * 9, REFUSAL), ((CONTINUE[:9], CONTINUE[9:]), REFUSAL),
                                ((REFUSAL[:20],), REFUSAL[20:]), ((EARLY[:-6],), EARLY[-6:])):
                with self.subTest((what, early)):
                    asked, there = threading.Event(), threading.Event()

                    async def wait(seen, asked=asked, there=there):
                        asked.set()
                        await in_thread(there.wait)
                        await turns()

                    def read_rest(peer, headers=headers):
                        if LENGTH[0] in headers:
                            peer.read(100)
                        else:
                            peer.read_until(b'second\r\n0\r\n\r\n')

                    body = Waiting(wait, after=(b'second' if LENGTH[0] not in headers else b's' * 95,))
                    url = self.play(asked, *early, lambda peer, there=there: there.set(), read_rest, last, tls=tls())
                    code, content, sent_all = await self.post(url, body, headers)
                    self.assertEqual((code, content), REFUSED[:2] if last in REFUSAL else (b'200', b'early'))
                    self.assertEqual((sent_all, body.seen), (True, ['closed']))

    @if_heard
    async def test_a_refusal_is_heard_as_soon_as_its_head_is_whole(self):
        head = REFUSAL.index(b'no key')
        for at in range(1, len(REFUSAL)):
            with self.subTest(REFUSAL[:at]):
                body = Waiting()
                connection, task = await self.waiting(body)
                connection.comes(REFUSAL[:at])
                await turns(10)
                self.assertEqual(body.seen, INTERRUPTED if at >= head else [])
                connection.comes(REFUSAL[at:])
                self.assertEqual(await self.end_of(task), REFUSED)
                self.assertEqual((body.seen, connection.is_closed), (INTERRUPTED, True))

    @if_heard
    async def test_half_a_record_of_tls_is_no_answer_yet(self):
        there, go_on = threading.Event(), threading.Event()

        def script(peer):
            tls = ManualTls(peer, tls_server())
            tls.handshake()
            data = b''
            while b'first' not in data:
                data += tls.read()
            assert body.asked.wait(PATIENCE)
            tls.tls.write(REFUSAL)
            record = tls.outgoing.read()
            for at in range(len(record) - 1):
                peer.send(record[at:at + 1])
            there.set()
            assert go_on.wait(PATIENCE)
            peer.send(record[-1:])
            peer.read_to_close()

        async def wait(seen):
            await in_thread(there.wait)
            await turns()
            seen.append('not interrupted')
            go_on.set()
            await for_ever(seen)

        body = Waiting(wait)
        self.assertEqual(await self.post(f'https://127.0.0.1:{self.serve(script)}/', body), REFUSED)
        self.assertEqual(body.seen, ['not interrupted'] + INTERRUPTED)

    async def test_once_all_of_a_length_was_given_the_bodys_epilogue_is_its_own(self):
        """And the answer is in good time: the connection serves again, were it a refusal"""
        there = queue.Queue()

        async def wait(seen):
            await in_thread(there.get, True, PATIENCE)
            await turns()
            seen.append('epilogue')

        def script(peer):
            for answer in (EARLY, REFUSAL, CONTINUE + EARLY):
                peer.read_head()
                peer.read(5)
                peer.send(answer)
                there.put(None)
            peer.read_head()
            peer.send(OK_EMPTY)

        for tls in (None, tls_server()):
            request, _ = self.pool(get_ssl_context=trusting_context)
            url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
            accepted = self.accepted
            for code in (b'200', b'401', b'200'):
                body = Waiting(wait, (b'he', b'llo'))
                got, _, answer = await request(b'POST', url, headers=((b'content-length', b'5'),), body=body)
                self.assertEqual((got, answer.sent_all, await buffered(answer)),
                                 (code, True, b'no key' if code == b'401' else b'early'))
                self.assertEqual(body.seen, ['epilogue', 'closed'])
            await request(b'GET', url)
            self.assertEqual(self.accepted, accepted + 1)

    async def test_nor_do_the_end_and_a_failure_interrupt_the_epilogue(self):
        for what, came in (('the end', b''), ('a reset', ConnectionResetError('reset')), ('garbage', b'220 smtp\r\n')):
            with self.subTest(what):
                go_on = self.loop.create_future()
                body = Waiting(lambda seen, go_on=go_on: go_on, (b'hello',))
                connection, task = await self.waiting(body, ((b'content-length', b'5'),))
                connection.comes(came)
                await turns()
                self.assertEqual(body.seen, [])
                go_on.set_result(None)
                error, _ = await self.end_of(task)
                self.assertEqual(error, HttpProtocolError if what == 'garbage' else HttpConnectionClosedError)
                self.assertEqual(body.seen, ['closed'])

    async def test_what_the_body_gave_is_on_its_way_while_it_waits(self):
        """Also what TLS has taken, but the socket has not yet: the body may wait for what the server makes of it"""
        for tls in (None, tls_server()):
            with self.subTest(tls is not None):
                begun, there = threading.Event(), threading.Event()
                begun.set()

                async def wait(seen, there=there):
                    seen.append(await in_thread(there.wait, PATIENCE / 3))

                def read(peer, there=there):
                    time.sleep(0.1)  # the client is blocked meanwhile
                    peer.read(60000)
                    there.set()
                    peer.read_until(b'0\r\n\r\n')

                self.sockets = ClientSockets(SMALL_SEND_BUFFER)
                body = Waiting(wait, before=(bytes(60000),))
                url = self.play(begun, read, EARLY, tls=tls)
                self.shrink_receive_buffer()
                self.assertEqual(await self.post(url, body), (b'200', b'early', True))
                self.assertEqual(body.seen, [True, 'closed'])

    @if_heard
    async def test_it_is_sent_again_on_a_fresh_connection_where_that_may_be(self):
        """The server closed a connection that it had used before, while the body waited; and then it refuses"""
        def first(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_until(b'first\r\n')

        def second(peer):
            peer.read_until(b'first\r\n')
            peer.send(REFUSAL)
            peer.read_to_close()

        for method in (b'PUT', b'POST'):
            with self.subTest(method):
                request, _ = self.pool()
                url = f'http://127.0.0.1:{self.serve(first, second)}/'
                accepted = self.accepted
                await request(b'GET', url)
                body = Waiting()
                if method == b'POST':
                    error = await self.raises(HttpConnectionClosedError, request(method, url, body=body))
                    self.assertEqual((error.reused, error.answered), (True, False))
                else:
                    code, _, answer = await request(method, url, body=body)
                    self.assertEqual((code, await buffered(answer), answer.reused), (b'401', b'no key', False))
                count = 1 if method == b'POST' else 2
                self.assertEqual((body.seen, self.accepted), (INTERRUPTED * count, accepted + count))

    @if_heard
    async def test_a_refusal_that_breaks_off_is_given_as_far_as_it_is_good(self):
        for rest, error in ((b'5\r\nhello\r\nzz\r\n', HttpProtocolError), (b'9\r\nhello', HttpConnectionClosedError)):
            for cut in (None, -1):
                with self.subTest((rest, cut)):
                    wire = b'HTTP/1.1 401 No\r\ntransfer-encoding: chunked\r\n\r\n' + rest
                    body = Waiting()
                    connection, task = await self.waiting(body, is_read=False)
                    connection.comes(*[wire[:cut], wire[cut:]] if cut else [wire], b'')
                    code, headers, answer = await task
                    self.assertEqual((code, len(headers), body.seen), (b'401', 1, INTERRUPTED))
                    await self.assert_good_before_error(answer, b'hello', error)

    async def assert_good_before_error(self, answer, good, error):
        got = b''
        with self.assertRaises(error) as caught:
            async for piece in answer:
                got += piece
        self.assertEqual((got, type(caught.exception)), (good, error))


class EarlySuccessWhileWaitingTests(ListeningTestCase):
    """An early 2xx leaves the body alone, whatever it waits for, unless the connection ends"""

    def early(self, *steps, answer=EARLY):
        """(body, steps of a server that answers early, which takes `steps` after the body's piece that follows)"""
        there = threading.Event()

        async def wait(seen):
            await in_thread(there.wait)
            await turns()
            seen.append('not interrupted')

        body = Waiting(wait, after=(b'second',))
        return body, (answer, lambda peer: there.set(), *steps)

    async def test_a_server_that_reads_on_gets_all_and_serves_again(self):
        for what, tls, headers, _ in UPLOADS:
            for answer in (EARLY, b'HTTP/1.1 299 Q\r\ncontent-length: 5\r\n\r\nearly', CONTINUE + EARLY,
                           OK + b'transfer-encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n'):
                with self.subTest((what, answer)):
                    def go_on(peer, headers=headers):
                        if LENGTH[0] in headers:
                            peer.read(100)
                        else:
                            peer.read_until(b'second\r\n0\r\n\r\n')
                        assert peer.read_head().startswith(b'GET')
                        peer.send(OK_EMPTY)

                    body, steps = self.early(go_on, answer=answer)
                    if LENGTH[0] in headers:
                        body.after = (b's' * 95,)
                    request, _ = self.pool(get_ssl_context=trusting_context)
                    url = self.play(body.asked, *steps, tls=tls())
                    accepted = self.accepted
                    code, _, answer = await request(b'POST', url, headers=headers, body=body)
                    self.assertEqual((code[:1], await buffered(answer), answer.sent_all), (b'2', b'early', True))
                    self.assertEqual(body.seen, ['not interrupted', 'closed'])
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

    async def test_a_server_that_stops_reading_is_a_timeout_of_the_sending_and_not_of_the_body(self):
        for tls in (None, tls_server()):
            with self.subTest(tls is not None):
                gone = threading.Event()
                body, steps = self.early(lambda peer, gone=gone: gone.wait(PATIENCE))
                is_early = body.wait

                async def wait(seen, is_early=is_early):
                    await is_early(seen)
                    await asyncio.sleep(0.5)  # longer than the timeout
                    seen.append('not timed')

                body.wait, body.after = wait, (bytes(30000000),)
                request, _ = self.pool(get_ssl_context=trusting_context, socket_timeout=0.3, connect_timeout=PATIENCE)
                error = await self.raises(HttpDataTimeout, request(
                    b'POST', self.play(body.asked, *steps, tls=tls), body=body))
                gone.set()
                self.assertEqual((error.answered, error.sending), (True, True))
                self.assertEqual(body.seen[:2], ['not interrupted', 'not timed'])

    @if_heard
    async def test_a_server_that_closes_or_resets_has_given_its_answer(self):
        for what, tls, headers, _ in UPLOADS:
            for ends in (end, reset):
                with self.subTest((what, ends.__name__)):
                    is_ending = threading.Event()

                    def ends_late(peer, ends=ends, is_ending=is_ending):
                        assert is_ending.wait(PATIENCE)
                        ends(peer)

                    body, steps = self.early(ends_late)
                    is_early = body.wait

                    async def wait(seen, is_early=is_early, is_ending=is_ending):
                        await is_early(seen)
                        is_ending.set()
                        await for_ever(seen)

                    body.wait = wait
                    url = self.play(body.asked, *steps, tls=tls())
                    self.assertEqual(await self.post(url, body, headers), (b'200', b'early', False))
                    self.assertEqual(body.seen, ['not interrupted'] + INTERRUPTED)
                    self.assertEqual(self.sockets.count_open(), 0)

    @if_heard
    async def test_a_reset_breaks_off_an_answer_that_was_not_whole_after_what_is_good(self):
        for answer, good in ((OK + b'content-length: 9\r\n\r\nearly', b'early'), (OK + b'\r\nearly', b'early'),
                             (OK + b'transfer-encoding: chunked\r\n\r\n5\r\nearly\r\n', b'early'),
                             (OK + b'content-length: 9\r\n\r\n', b'')):
            for cut in (len(answer), len(answer) - len(good), len(answer) - 1):
                with self.subTest((answer, cut)):
                    body = Waiting()
                    connection, task = await self.waiting(body, is_read=False)
                    connection.comes(answer[:cut])
                    await turns()
                    self.assertEqual(body.seen, [])
                    connection.comes(*([answer[cut:]] if answer[cut:] else []), ConnectionResetError('reset'))
                    code, _, got = await task
                    self.assertEqual((code, got.sent_all, body.seen), (b'200', False, INTERRUPTED))
                    if good:
                        self.assertEqual(await got.__anext__(), good)
                    error = await self.raises(HttpConnectionClosedError, got.__anext__())
                    self.assertTrue(error.answered)
                    self.assertTrue(connection.is_closed)

    async def test_of_a_long_answer_that_is_held_the_upload_goes_on_to_its_end(self):
        """Where the last of it waits in TLS: by then as much of the answer is held as may be"""
        for tls in (None, tls_server()):
            for headers in (((b'content-length', b'60000'),), ()):
                with self.subTest((tls is not None, headers)):
                    def script(peer):
                        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4000000)
                        peer.read_head()
                        peer.send(OK + b'content-length: 300000\r\n\r\n' + bytes(300000))
                        time.sleep(0.2)  # the client is blocked meanwhile
                        peer.read_to_close()

                    self.sockets = ClientSockets(SMALL_SEND_BUFFER)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
                    self.shrink_receive_buffer()
                    task = self.loop.create_task(self.post(url, pieces_of(bytes(60000)), headers))
                    await asyncio.wait([task], timeout=PATIENCE / 3)
                    task.cancel()
                    self.assertEqual(await self.end_of(task), (b'200', bytes(300000), True))

    @if_heard
    async def test_of_a_long_answer_no_more_is_held_and_nobody_is_called_again_and_again(self):
        go_on = self.loop.create_future()
        body = Waiting(lambda seen: go_on)
        connection, task = await self.waiting(body, recv_bufsize=1000)
        connection.comes(OK + b'content-length: 9000\r\n\r\n', *[bytes(900)] * 10)
        await turns()
        self.assertEqual((len(connection.pieces), connection.watcher, body.seen), (8, None, []))
        go_on.set_result(None)
        self.assertEqual(await self.end_of(task), (b'200', bytes(9000), True))


# -------- What the body waits for


async def child(seen):
    seen.append('child')
    try:
        await asyncio.sleep(PATIENCE)
    except asyncio.CancelledError:
        await asyncio.sleep(0.01)
        seen.append('child cancelled')
        raise


class Awaitable:
    def __await__(self):
        future = asyncio.get_event_loop().create_future()
        future._asyncio_future_blocking = True
        yield future


async def lock(seen):
    held = asyncio.Lock()
    await held.acquire()
    await held.acquire()


async def condition(seen):
    held = asyncio.Condition()
    async with held:
        try:
            await held.wait()
        finally:
            assert held.locked()  # it has got it back


async def shielded(seen):
    task = asyncio.get_event_loop().create_task(asyncio.sleep(0.05))
    try:
        await asyncio.shield(task)
    finally:
        assert not task.done()
        await task


async def thread(seen):
    done = threading.Event()
    try:
        await asyncio.get_event_loop().run_in_executor(None, done.wait, PATIENCE)
    finally:
        done.set()


async def turns_first(seen):
    await turns(200)  # without anything that could be cancelled
    await asyncio.get_event_loop().create_future()


async def runs_out():
    for _ in range(3):
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.005)


async def runs_out_by_asyncio():
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.sleep(PATIENCE)


async def asyncio_timeout(seen):
    async with asyncio.timeout(PATIENCE):
        await asyncio.sleep(PATIENCE)


async def task_group(seen):
    async with asyncio.TaskGroup() as group:
        group.create_task(child(seen))
        await asyncio.sleep(PATIENCE)


async def end_of_task_group(seen):
    async with asyncio.TaskGroup() as group:
        group.create_task(child(seen))


async def anyio_child(seen):
    seen.append('child')
    try:
        await anyio.sleep(PATIENCE)
    except BaseException:
        seen.append('child cancelled')
        raise


async def runs_out_by_anyio():
    with anyio.move_on_after(0.005):
        await anyio.sleep(PATIENCE)
    with anyio.CancelScope() as scope:
        asyncio.get_event_loop().call_soon(scope.cancel)
        await anyio.sleep(PATIENCE)
    assert scope.cancelled_caught


async def anyio_scope(seen):
    with anyio.move_on_after(PATIENCE) as scope:
        try:
            await anyio.sleep(PATIENCE)
        finally:
            assert not scope.cancel_called


async def anyio_fail_after(seen):
    with anyio.fail_after(PATIENCE):
        await anyio.Event().wait()


async def anyio_task_group(seen):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio_child, seen)
        await anyio.sleep(PATIENCE)


async def end_of_anyio_task_group(seen):
    async with anyio.create_task_group() as group:
        group.start_soon(anyio_child, seen)


async def anyio_stream(seen):
    sends, receives = anyio.create_memory_object_stream(0)
    with sends, receives:
        await receives.receive()


# what, a function of `seen` that gives what is awaited; and one of what is awaited before
WAITS = (
    ('a sleep', for_ever),
    ('a queue', lambda seen: asyncio.Queue().get()),
    ('an event', lambda seen: asyncio.Event().wait()),
    ('a lock', lock),
    ('a condition', condition),
    ('a future', lambda seen: asyncio.get_event_loop().create_future()),
    ('an awaitable of its own', lambda seen: Awaitable()),
    ('a task', lambda seen: asyncio.get_event_loop().create_task(child(seen))),
    ('a gather', lambda seen: asyncio.gather(child(seen), child(seen))),
    ('a shield', shielded),
    ('wait', lambda seen: asyncio.wait([asyncio.get_event_loop().create_future()])),
    ('wait_for, after others that ran out', lambda seen: asyncio.wait_for(child(seen), PATIENCE), runs_out),
    ('a thread', thread),
    ('turns of the loop first', turns_first),
) + ((
    ('asyncio.timeout, after others that ran out', asyncio_timeout, runs_out_by_asyncio),
    ('a task group', task_group),
    ('the end of a task group', end_of_task_group),
) if IS_HEARD else ())
ANYIO_WAITS = (
    ('a scope, after others that were cancelled', anyio_scope, runs_out_by_anyio),
    ('fail_after', anyio_fail_after),
    ('a task group', anyio_task_group),
    ('the end of a task group', end_of_anyio_task_group),
    ('a stream', anyio_stream),
    ('an event, after scopes that were cancelled', lambda seen: anyio.Event().wait(), runs_out_by_anyio),
)


@if_heard
class WhatTheBodyAwaitsTests(ListeningTestCase):
    """It is cancelled, once, as `Task.cancel` does it"""

    async def assert_cancelled(self, wait, first=turns):
        body = Waiting(wait, first=first)
        await self.refused(body)
        self.assertEqual(body.seen[-2:], INTERRUPTED)
        self.assertEqual(body.seen.count('child'), body.seen.count('child cancelled'))
        self.assertEqual([what for what in body.seen if isinstance(what, type)], INTERRUPTED[:1])

    async def test_it_is_cancelled_whatever_it_is(self):
        for what, *waits in WAITS:
            with self.subTest(what):
                await self.assert_cancelled(*waits)

    async def test_so_it_is_where_the_loop_debugs(self):
        self.loop.set_debug(True)
        for what, *waits in WAITS:
            with self.subTest(what):
                await self.assert_cancelled(*waits)

    @unittest.skipUnless(hasattr(asyncio, 'eager_task_factory'), 'eager tasks came with Python 3.12')
    @unittest.skipIf(USE_UVLOOP, 'uvloop passes arguments that the factory of Python 3.12 and 3.13 does not take')
    async def test_so_it_is_in_eager_tasks(self):
        self.loop.set_task_factory(asyncio.eager_task_factory)
        try:
            for what, *waits in WAITS:
                with self.subTest(what):
                    await self.loop.create_task(self.assert_cancelled(*waits))
        finally:
            self.loop.set_task_factory(None)

    @unittest.skipUnless(anyio, 'anyio is not installed')
    async def test_so_is_what_it_awaits_by_anyio(self):
        for what, *waits in ANYIO_WAITS:
            with self.subTest(what):
                await self.assert_cancelled(*waits)

    async def test_the_error_that_it_sees_says_why(self):
        async def wait(seen):
            try:
                await self.loop.create_future()
            except asyncio.CancelledError as error:
                seen.append(str(error))
                raise

        body = Waiting(wait)
        await self.refused(body)
        self.assertIn('answer', body.seen[0])

    async def test_iterators_that_give_futures_and_tasks_are_bodies_too(self):
        class Giving:
            """`__anext__` gives what awaits, and is no coroutine function"""

            def __init__(self, *awaitables):
                self.awaitables = list(awaitables)
                self.asked = threading.Event()

            def __aiter__(self):
                return self

            def __anext__(self):
                if len(self.awaitables) == 1:
                    self.asked.set()
                return self.awaitables.pop(0)

        seen = []
        for waited in (self.loop.create_future(), self.loop.create_task(child(seen))):
            first = self.loop.create_future()
            first.set_result(b'first')
            await self.refused(Giving(first, waited))
            self.assertTrue(waited.cancelled())
        self.assertEqual(seen, ['child', 'child cancelled'])

    async def test_the_body_runs_in_the_callers_task_and_context(self):
        variable = contextvars.ContextVar('variable')
        variable.set('of the caller')
        task = current_task()

        async def wait(seen):
            seen.append((current_task() is task, variable.get()))
            variable.set('of the body')
            try:
                await for_ever(seen)
            finally:
                seen.append((current_task() is task, variable.get()))
                variable.set('of its clean-up')

        body = Waiting(wait)
        await self.refused(body)
        self.assertEqual(body.seen, [(True, 'of the caller'), (True, 'of the body')] + INTERRUPTED)
        self.assertEqual(variable.get(), 'of its clean-up')

    async def test_a_body_that_is_the_body_of_another_response_is_interrupted_and_closed(self):
        closed = queue.Queue()

        def halts(peer):
            peer.read_head()
            peer.send(OK + b'content-length: 100\r\n\r\nfirst')
            closed.put(peer.read_to_close())

        def refuses(peer):
            peer.read_until(b'first\r\n')
            peer.send(REFUSAL)
            peer.read_to_close()

        request, _ = self.pool()
        _, _, body = await request(b'GET', f'http://127.0.0.1:{self.serve(halts)}/')
        self.assertEqual(await self.post(f'http://127.0.0.1:{self.serve(refuses)}/', body), REFUSED)
        self.assertEqual(await in_thread(closed.get, True, PATIENCE), b'')
        await self.raises(HttpConnectionClosedError, buffered(body))

    async def test_a_body_that_makes_an_upload_of_its_own_has_it_interrupted(self):
        inner = Waiting()
        silent = self.play(inner.asked)
        request, _ = self.pool()
        body = Waiting(lambda seen: request(b'POST', silent, body=inner))
        url = self.play(inner.asked, REFUSAL)
        self.assertEqual(await self.post(url, body), REFUSED)
        self.assertEqual((inner.seen, body.seen), (INTERRUPTED, INTERRUPTED))

    async def test_an_inner_refusal_is_the_inner_uploads_alone(self):
        inner = Waiting()

        async def wait(seen):
            seen.append(await self.post(self.play(inner.asked, REFUSAL), inner))

        there = threading.Event()
        body = Waiting(wait, after=(b'second',))

        def reads(peer):
            peer.read_until(b'second\r\n0\r\n\r\n')
            peer.send(EARLY)

        there.set()
        self.assertEqual(await self.post(self.play(there, reads), body), (b'200', b'early', True))
        self.assertEqual((inner.seen, body.seen), (INTERRUPTED, [REFUSED, 'closed']))


# -------- The body's clean-up


async def cleans_up_slowly(seen):
    try:
        await for_ever(seen)
    finally:
        for _ in range(3):
            await asyncio.sleep(0.01)
        seen.append('clean')


async def cleans_up_a_task(seen):
    task = asyncio.get_event_loop().create_task(child(seen))
    try:
        await for_ever(seen)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        seen.append('clean')


async def cleans_up_in_time(seen):
    try:
        await for_ever(seen)
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(PATIENCE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(PATIENCE), 0.01)
        seen.append('clean')


async def cleans_up_in_a_shielded_scope(seen):
    try:
        await for_ever(seen)
    finally:
        with anyio.move_on_after(0.01, shield=True):
            await anyio.sleep(PATIENCE)
        seen.append('clean')


async def raises_another_cancelled_error(seen):
    try:
        await for_ever(seen)
    except asyncio.CancelledError:
        seen.append('clean')
        raise asyncio.CancelledError('another')  # noqa: B904


async def swallows(seen):
    with contextlib.suppress(asyncio.CancelledError):
        await for_ever(seen)
    seen.append('swallowed')


@if_heard
class CleanUpTests(ListeningTestCase):

    async def test_it_may_take_its_time(self):
        for wait in (cleans_up_slowly, cleans_up_a_task, cleans_up_in_time, raises_another_cancelled_error,
                     *([cleans_up_in_a_shielded_scope] if anyio else [])):
            with self.subTest(wait.__name__):
                body = Waiting(wait)
                await self.refused(body)
                self.assertEqual(body.seen[-3:], ['clean'] + INTERRUPTED)

    async def test_what_a_body_gives_that_goes_on_is_dropped(self):
        # It is asked for no further piece, be it too short, too long or no bytes, and is closed.
        for headers in ((), LENGTH, LENGTH + EXPECTS):
            for after in ((b'more',), (b'more', b'and more'), (bytes(1000),), (b'',), ('no bytes',), (None,)):
                with self.subTest((headers, after)):
                    body = Waiting(swallows, after=after)
                    await self.refused(body, headers)
                    self.assertEqual(body.seen, ['swallowed', GeneratorExit, 'closed'])

    async def test_a_body_that_ends_where_it_was_interrupted_was_not_sent(self):
        # Its last chunk, or the rest of its length, is missing: the connection must not be used again.
        for headers in ((), LENGTH, LENGTH + EXPECTS):
            with self.subTest(headers):
                body = Waiting(swallows)
                await self.refused(body, headers)
                self.assertEqual(body.seen, ['swallowed', 'closed'])

    async def test_and_nothing_of_it_is_sent(self):
        got = queue.Queue()

        def script(peer):
            peer.read_until(b'first\r\n')
            assert body.asked.wait(PATIENCE)
            peer.send(REFUSAL)
            got.put(peer.read_to_close())

        body = Waiting(swallows, after=(b'more',))
        self.assertEqual(await self.post(f'http://127.0.0.1:{self.serve(script)}/', body), REFUSED)
        self.assertEqual(await in_thread(got.get, True, PATIENCE), b'')

    async def test_what_else_it_raises_passes_with_the_interruption_as_its_context(self):
        for raised in (KeyError('own'), OSError('own'), TimeoutError('own'), ValueError('own')):
            for steps in ((REFUSAL,), (end,), (reset,)):
                with self.subTest((raised, steps)):
                    async def wait(seen, raised=raised):
                        try:
                            await for_ever(seen)
                        finally:
                            raised.__context__ = None
                            raise raised

                    body = Waiting(wait)
                    with self.assertRaises(type(raised)) as caught:
                        await self.post(self.play(body.asked, *steps), body)
                    self.assertIs(caught.exception, raised)
                    self.assertIs(type(raised.__context__), asyncio.CancelledError)
                    self.assertEqual(self.sockets.count_open(), 0)

    async def test_an_http_error_that_it_raises_is_an_error_of_the_body(self):
        for inner in (HttpConnectionError('inner'), HttpDataTimeout('inner'), HttpRequestError('inner'),
                      HttpBodyError('inner')):
            for step, answered in ((REFUSAL, True), (end, False)):
                with self.subTest((inner, answered)):
                    async def wait(seen, inner=inner):
                        try:
                            await for_ever(seen)
                        finally:
                            inner.__context__ = None
                            raise inner

                    body = Waiting(wait)
                    request, _ = self.pool()
                    error = await self.raises(HttpBodyError, request(
                        b'POST', self.play(body.asked, step), body=body))
                    self.assertIs(error.__cause__, inner)
                    self.assertIs(type(inner.__context__), asyncio.CancelledError)
                    self.assertEqual((error.answered, error.reused), (answered, False))

    async def test_what_its_aclose_raises_is_told_too(self):
        class Closing:
            """Its `aclose` fails; that of a generator that was interrupted has nothing to do any more"""

            def __init__(self, body, late):
                self.body, self.late = body, late

            def __aiter__(self):
                self.iterator = self.body()
                return self

            def __anext__(self):
                return self.iterator.__anext__()

            async def aclose(self):
                raise self.late

        for late in (KeyError('late'), HttpConnectionError('late')):
            body = Waiting()
            request, _ = self.pool()
            with self.assertRaises((KeyError, HttpBodyError)) as caught:
                await request(b'POST', self.play(body.asked, REFUSAL), body=Closing(body, late))
            self.assertIs(caught.exception.__cause__ or caught.exception, late)
            body = Waiting()
            error = await self.raises(HttpConnectionClosedError, request(
                b'POST', self.play(body.asked, end), body=Closing(body, late)))
            self.assertIs(error.__context__, late)


# -------- The caller's own cancellation


class ListeningCancellationTests(ListeningTestCase):

    async def test_what_the_body_raises_of_its_own_passes(self):
        async def raises(seen):
            await asyncio.sleep(0)
            raise KeyError('own')

        async def awaits_a_cancelled_task(seen):
            task = self.loop.create_task(asyncio.sleep(PATIENCE))
            self.loop.call_soon(task.cancel)
            await task

        async def cancels_its_own_task(seen):
            current_task().cancel()
            await for_ever(seen)

        for wait, error in ((raises, KeyError), (awaits_a_cancelled_task, asyncio.CancelledError),
                            (cancels_its_own_task, asyncio.CancelledError)):
            with self.subTest(wait.__name__):
                body = Waiting(wait)
                _, task = await self.waiting(body)
                end = await self.end_of(task)
                self.assertIs(end if isinstance(end, type) else type(end), error)
                self.assertEqual(body.seen, [error, 'closed'])

    async def test_a_cancellation_that_comes_first_is_the_callers(self):
        for times in (1, 2):
            for wait in (for_ever, child, lambda seen: self.loop.create_task(child(seen)), cleans_up_slowly):
                with self.subTest((times, wait)):
                    body = Waiting(wait)
                    connection, task = await self.waiting(body)
                    for _ in range(times):
                        task.cancel()
                    connection.comes(REFUSAL)  # in the same turn
                    self.assertIs(await self.end_of(task), asyncio.CancelledError)
                    self.assertEqual((body.seen[-2:], connection.is_closed), (INTERRUPTED, True))
        await asyncio.sleep(LOOKED_AGAIN)

    async def test_nor_does_an_answer_interrupt_the_clean_up_after_it(self):
        for came in (REFUSAL, b'', ConnectionResetError('reset')):
            with self.subTest(came):
                go_on = self.loop.create_future()

                async def wait(seen, go_on=go_on):
                    try:
                        await for_ever(seen)
                    finally:
                        seen.append('cleans up')
                        await go_on
                        seen.append('clean')

                body = Waiting(wait)
                connection, task = await self.waiting(body)
                task.cancel()
                await turns()
                connection.comes(came)
                await asyncio.sleep(LOOKED_AGAIN)
                self.assertEqual(body.seen, ['cleans up'])
                go_on.set_result(None)
                self.assertIs(await self.end_of(task), asyncio.CancelledError)
                self.assertEqual(body.seen, ['cleans up', 'clean'] + INTERRUPTED)
        await asyncio.sleep(LOOKED_AGAIN)

    @if_heard
    async def test_a_cancellation_that_comes_second_is_the_callers_too(self):
        for when in ('at once', 'in the next turn'):
            for wait in (for_ever, lambda seen: self.loop.create_task(child(seen)), cleans_up_slowly):
                with self.subTest((when, wait)):
                    body = Waiting(wait)
                    connection, task = await self.waiting(body)
                    connection.comes(REFUSAL[:-6])  # the rest of its body is waited for
                    if when == 'at once':
                        task.cancel()
                    else:
                        self.loop.call_soon(task.cancel)
                    self.assertIs(await self.end_of(task), asyncio.CancelledError)
                    self.assertEqual((body.seen[-2:], connection.is_closed), (INTERRUPTED, True))
        await asyncio.sleep(LOOKED_AGAIN)

    @if_heard
    async def test_a_cancellation_reaches_the_clean_up_of_an_interrupted_body(self):
        async def wait(seen):
            try:
                await for_ever(seen)
            finally:
                try:
                    await for_ever(seen)
                finally:
                    seen.append('reached')

        body = Waiting(wait)
        connection, task = await self.waiting(body)
        connection.comes(REFUSAL)
        await turns()
        self.assertEqual(body.seen, [])
        task.cancel()
        self.assertIs(await self.end_of(task), asyncio.CancelledError)
        self.assertEqual(body.seen, ['reached'] + INTERRUPTED)

    @if_heard
    async def test_a_cancellation_that_the_body_takes_back_only_delays_the_interruption(self):
        """As its own asyncio.timeout does, that runs out in the turn in which the answer comes"""
        async def wait(seen):
            try:
                await for_ever(seen)
            except asyncio.CancelledError:
                seen.append('its own')
                current_task().uncancel()
            await for_ever(seen)

        body = Waiting(wait)
        connection, task = await self.waiting(body)
        task.cancel()
        connection.comes(REFUSAL)
        self.assertEqual(await self.end_of(task), REFUSED)
        self.assertEqual(body.seen, ['its own'] + INTERRUPTED)

    @if_heard
    @unittest.skipUnless(anyio, 'anyio is not installed')
    async def test_so_does_a_scope_of_anyio(self):
        scopes = []

        async def wait(seen):
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await anyio.sleep(PATIENCE)
            seen.append('its own')
            await anyio.sleep(PATIENCE)

        body = Waiting(wait)
        connection, task = await self.waiting(body)
        scopes[0].cancel()
        connection.comes(REFUSAL)
        self.assertEqual(await self.end_of(task), REFUSED)
        self.assertEqual(body.seen, ['its own'] + INTERRUPTED)

    @if_heard
    async def test_a_piece_in_the_same_turn_is_not_sent(self):
        for headers in ((), ((b'content-length', b'11'),), LENGTH):
            for after in ((b'second',), (b'',), ()):
                with self.subTest((headers, after)):
                    go_on = self.loop.create_future()
                    body = Waiting(lambda seen, go_on=go_on: go_on, after=after)
                    connection, task = await self.waiting(body, headers)
                    count = len(connection.writes())
                    go_on.set_result(None)
                    connection.comes(REFUSAL)
                    end = await self.end_of(task)
                    is_short = headers and after != (b'second',)
                    # A body that ends short of its length, of its own accord, is wrong all the same.
                    self.assertEqual(end, (HttpBodyError, True) if is_short else REFUSED)
                    self.assertEqual((len(connection.writes()), connection.is_closed), (count, True))
                    self.assertEqual(body.seen[-1], 'closed')
                    self.assertNotIn(asyncio.CancelledError, body.seen)

    @if_heard
    async def test_a_body_that_wakes_in_the_same_turn_and_waits_again_is_interrupted_then(self):
        for count in (0, 1, 5):
            with self.subTest(count):
                go_on = self.loop.create_future()

                async def wait(seen, go_on=go_on, count=count):
                    await go_on
                    await turns(count)
                    seen.append('awake')
                    await for_ever(seen)

                body = Waiting(wait)
                connection, task = await self.waiting(body)
                go_on.set_result(None)
                connection.comes(REFUSAL)
                self.assertEqual(await self.end_of(task), REFUSED)
                self.assertEqual(body.seen, ['awake'] + INTERRUPTED)

    @if_heard
    async def test_in_the_clean_up_of_a_cancelled_task_it_is_heard_too(self):
        ends = []

        async def work():
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                body = Waiting()
                ends.append(await self.post(self.play(body.asked, REFUSAL), body))
                ends.append(body.seen)

        task = self.loop.create_task(work())
        await turns()
        task.cancel()
        self.assertIs(await self.end_of(task), asyncio.CancelledError)
        self.assertEqual(ends, [REFUSED, INTERRUPTED])

    async def test_wait_for_bounds_the_whole(self):
        for steps in ((), (REFUSAL,)):
            with self.subTest(steps):
                body = Waiting(for_ever_and_after if steps and IS_HEARD else for_ever)
                with self.assertRaises(asyncio.TimeoutError):
                    await asyncio.wait_for(self.post(self.play(body.asked, *steps if IS_HEARD else ()), body), 0.1)
                await turns()  # before Python 3.7 wait_for does not wait for what it cancels
                self.assertEqual(body.seen, INTERRUPTED)

    @if_timeout
    async def test_a_timeout_of_asyncio_bounds_the_whole(self):
        for steps, waits in (((), for_ever), ((REFUSAL,), for_ever_and_after)):
            with self.subTest(steps):
                body = Waiting(waits)
                with self.assertRaises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self.post(self.play(body.asked, *steps), body)
                self.assertEqual((body.seen, current_task().cancelling()), (INTERRUPTED, 0))

    @if_heard
    @unittest.skipUnless(anyio, 'anyio is not installed')
    async def test_so_does_a_scope_of_anyio_around_it(self):
        for steps, waits in (((), for_ever), ((REFUSAL,), for_ever_and_after)):
            with self.subTest(steps):
                body = Waiting(waits)
                with anyio.move_on_after(0.1) as scope:
                    await self.post(self.play(body.asked, *steps), body)
                self.assertEqual((scope.cancelled_caught, current_task().cancelling()), (True, 0))
        body = Waiting()
        with anyio.move_on_after(PATIENCE) as scope:
            await self.refused(body)
        self.assertFalse(scope.cancelled_caught)

    @if_timeout
    async def test_in_a_task_group_that_fails_it_is_cancelled_and_the_count_is_right(self):
        async def fails():
            while not body.asked.is_set():
                await asyncio.sleep(0)
            raise KeyError('of another task')

        body = Waiting()
        with self.assertRaises(BaseException) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.post(self.play(body.asked), body))
                group.create_task(fails())
        self.assertEqual([type(error) for error in caught.exception.exceptions], [KeyError])
        self.assertEqual(body.seen, INTERRUPTED)


# -------- What is left


class LeftTests(WithoutCollector, ListeningTestCase):
    """The end of each test looks for tasks, timers, readers and descriptors; here the garbage collector is off"""

    def cycles(self):
        """What only the collector could free: errors, and what is of lowhaio's code"""
        return self.garbage(lambda thing: repr(thing)[:200] if isinstance(
            thing, (HttpError, asyncio.CancelledError, socket.socket, ssl.SSLObject)) or self.is_ours(thing) else None)

    @staticmethod
    def is_ours(thing):
        code = next((getattr(thing, name) for name in ('f_code', 'cr_code', 'ag_code', '__code__')
                     if isinstance(getattr(type(thing), name, None), (types.GetSetDescriptorType,
                                                                     types.MemberDescriptorType))), None)
        return type(thing).__module__ == 'lowhaio' or getattr(code, 'co_filename', None) == lowhaio.__file__

    async def test_the_check_finds_a_cycle(self):
        error = HttpError('kept')
        error.own = error
        del error
        self.assertEqual(len(self.cycles()), 1)
        self.assertEqual(self.cycles(), [])

    @if_heard
    async def test_no_cycle_is_left(self):
        async def fails(seen):
            try:
                await for_ever(seen)
            finally:
                raise KeyError('own')

        for tls in (None, tls_server()):
            for event, steps, _ in EVENTS:
                for wait in (for_ever, swallows, fails):
                    with self.subTest((tls is not None, event, wait.__name__)):
                        body = Waiting(wait)
                        url = self.play(body.asked, *steps, tls=tls)
                        with contextlib.suppress(KeyError):
                            await self.post(url, body)
                        del body
                        await turns()
                        self.assertEqual(self.cycles(), [])

    async def test_none_is_left_of_a_task_that_ends_with_the_error(self):
        """A task refers to the error that it ended with, and so to the frames that this came through"""
        async def fails(seen):
            raise KeyError('own')

        async def fails_of_ours(seen):
            raise HttpError('own')

        for what, wait, came, is_cancelled in (
                ('cancelled', for_ever, None, True), ('cancelled, and an answer', for_ever, REFUSAL, True),
                ('an answer, and cancelled', cleans_up_slowly, REFUSAL, True), ('its error', fails, None, False),
                ('its HttpError', fails_of_ours, None, False), *((
                    ('the end', for_ever, b'', False), ('a reset', for_ever, ConnectionResetError, False),
                    ('garbage', for_ever, b'220 smtp\r\n', False)) if IS_HEARD else ())):
            with self.subTest(what):
                body = Waiting(wait)
                connection, task = await self.waiting(body, is_read=False)
                if what.startswith('cancelled'):
                    task.cancel()
                if came is not None:
                    connection.comes(came('reset') if isinstance(came, type) else came)
                if what.endswith('cancelled'):
                    await turns()
                    task.cancel()
                await asyncio.wait([task], timeout=PATIENCE)
                self.assertTrue(task.done())
                self.assertEqual(task.cancelled(), is_cancelled)
                self.assertTrue(is_cancelled or task.exception())
                del task, body, connection
                self._pools.clear()
                await asyncio.sleep(LOOKED_AGAIN)
                self.assertEqual(self.cycles(), [])

    @if_heard
    @unittest.skipIf(USE_UVLOOP, 'uvloop does not tell its timers')
    async def test_no_timer_is_left_by_a_cancellation_of_the_caller(self):
        body = Waiting()
        connection, task = await self.waiting(body)
        task.cancel()
        connection.comes(REFUSAL)
        self.assertIs(await self.end_of(task), asyncio.CancelledError)

    async def test_nobody_listens_once_the_answer_is_given(self):
        for came in (REFUSAL, EARLY):
            go_on = self.loop.create_future()
            body = Waiting(lambda seen, go_on=go_on: go_on)
            connection, task = await self.waiting(body)
            connection.comes(came)
            await turns()
            if not go_on.done():
                go_on.set_result(None)
            await self.end_of(task)
            if came is REFUSAL:
                self.assertIsNone(connection.watcher)
            else:  # it is idle
                self.assertNotIn('interruptible', repr(connection.watcher))

    async def test_where_no_task_runs_it_the_body_is_sent_all_the_same(self):
        async def connect(*endpoint):
            return ScriptedConnection(endpoint, [OK_EMPTY])

        def step():
            try:
                request(b'POST', 'http://h/', body=pieces_of(b'first', b'second')).send(None)
            except StopIteration as stop:
                done.set_result(stop.value[0])
            except BaseException as error:
                done.set_exception(error)

        done = self.loop.create_future()
        request, _ = self.pool(connect=connect)
        self.loop.call_soon(step)
        self.assertEqual(await done, b'200')

    async def test_many_pieces_that_wait_are_all_sent(self):
        def script(peer):
            data = peer.read_until(b'\r\n0\r\n\r\n')
            peer.send(OK + b'content-length: %d\r\n\r\n' % len(b'%d' % data.count(b'piece')) +
                      b'%d' % data.count(b'piece'))

        async def body():
            for number in range(300):
                await asyncio.sleep(0.0005 if number % 3 else 0)
                yield b'piece'

        url = f'http://127.0.0.1:{self.serve(script)}/'
        self.assertEqual(await self.post(url, body), (b'200', b'300', True))


# -------- What is good before a fault

LIMIT = 70  # of a head, and of what is like one
BY_LENGTH = OK + b'content-length: 9\r\n\r\n'
CHUNKED = OK + b'transfer-encoding: chunked\r\n\r\n'
CHUNK = b'5\r\nhello\r\n'
UNTIL_CLOSE = OK + b'a: b\r\n\r\n'
FIN, RESET, TRUNCATED = b'', ConnectionResetError(104, 'reset'), ssl.SSLEOFError(8, 'EOF occurred in violation')

# what, all that comes, what is good of its body, the error's class; then it is silent
BROKEN = (
    ('a size that is none', CHUNKED + CHUNK + b'zz\r\n', b'hello', HttpProtocolError),
    ('the first size is none', CHUNKED + b'0x5\r\nhello\r\n', b'', HttpProtocolError),
    ('a size without CR', CHUNKED + CHUNK + b'5\nhello', b'hello', HttpProtocolError),
    ('no size', CHUNKED + CHUNK + CHUNK + b'\r\n', b'hellohello', HttpProtocolError),
    ('no CRLF after a chunk', CHUNKED + CHUNK + b'3\r\nabcX\r\n', b'helloabc', HttpProtocolError),
    ('no CRLF after the first', CHUNKED + b'5\r\nhello0\r\n\r\n', b'hello', HttpProtocolError),
    ('LF alone after a chunk', CHUNKED + b'5\r\nhello\n0\r\n\r\n', b'hello', HttpProtocolError),
    ('a trailer without a colon', CHUNKED + CHUNK + b'0\r\nno colon\r\n\r\n', b'hello', HttpProtocolError),
    ('a second trailer with a blank', CHUNKED + CHUNK + b'0\r\na: b\r\nc : d\r\n\r\n', b'hello', HttpProtocolError),
    ('a trailer, and no chunk', CHUNKED + b'0\r\nno colon\r\n\r\n', b'', HttpProtocolError),
    ('a size line that is too long', CHUNKED + CHUNK + b'5;' + b'x' * LIMIT, b'hello', HttpHeaderTooLong),
    ('a whole one that is', CHUNKED + CHUNK + b'5;' + b'x' * LIMIT + b'\r\nhello', b'hello', HttpHeaderTooLong),
    ('trailers that are too long', CHUNKED + CHUNK + b'0\r\n' + b'a: b\r\n' * 12, b'hello', HttpHeaderTooLong),
    ('whole ones that are', CHUNKED + CHUNK + b'0\r\na: ' + b'x' * LIMIT + b'\r\n\r\n', b'hello', HttpHeaderTooLong),
)
# what, all that comes before the connection ends, what is good of its body
CUT = (
    ('a length, and no body', BY_LENGTH, b''),
    ('a length', BY_LENGTH + b'hello', b'hello'),
    ('a length, but for one byte', BY_LENGTH + b'12345678', b'12345678'),
    ('no chunk', CHUNKED, b''),
    ('the first size', CHUNKED + b'5', b''),
    ('a chunk', CHUNKED + CHUNK + b'9\r\nabc', b'helloabc'),
    ('the CRLF after a chunk', CHUNKED + CHUNK[:-1], b'hello'),
    ('a size', CHUNKED + CHUNK + b'5', b'hello'),
    ('the last chunk', CHUNKED + CHUNK, b'hello'),
    ('the trailers', CHUNKED + CHUNK + b'0\r\na: b', b'hello'),
    ('the end of the trailers', CHUNKED + CHUNK + b'0\r\na: b\r\n', b'hello'),
)
# The end of the connection ends this; else it is cut
OPEN = (('until close, and no body', UNTIL_CLOSE, b''), ('until close', UNTIL_CLOSE + b'hello', b'hello'))


def faults():
    """(what, wire, the connection's end or None, what is good, the error's class)"""
    for what, wire, good, error in BROKEN:
        yield what, wire, None, good, error
    for (what, wire, good), close in itertools.product(CUT, (FIN, RESET, TRUNCATED)):
        yield what, wire, close, good, HttpConnectionClosedError
    for (what, wire, good), close in itertools.product(OPEN, (RESET, TRUNCATED)):
        yield what, wire, close, good, HttpConnectionClosedError


def cuts(wire):
    """The wire whole, each byte alone, and in two at each offset"""
    yield [wire]
    yield [wire[at:at + 1] for at in range(len(wire))]
    for at in range(1, len(wire)):
        yield [wire[:at], wire[at:]]


class GoodBeforeFaultTests(ListeningTestCase):

    async def assert_good_first(self, responding, wire, good, error_class, is_sent=True):
        """Code and headers, all that is good, the error, and again an error; the response is that of `responding`"""
        code, headers, body = await responding
        name, value = re.search(b'\r\n([a-z-]+): ([a-z0-9]+)\r\n\r\n', wire).groups()
        self.assertEqual((code, headers, body.sent_all), (b'200', ((name, value),), is_sent))
        got = []
        with self.assertRaises(error_class) as caught:
            while True:
                got.append(await body.__anext__())
        self.assertIs(type(caught.exception), error_class)
        self.assertGreater(len(str(caught.exception)), 10)
        self.assertEqual((caught.exception.answered, caught.exception.reused), (True, False))
        self.assertEqual((b''.join(got), b'' in got), (good, False))
        await self.raises(HttpConnectionClosedError, body.__anext__())

    async def test_however_the_network_cuts_it(self):
        class Delivery(HeardConnection):
            async def wait(self, sending=False, seconds=None):
                assert self.pieces, 'the fault was not found'

        async def connect(*endpoint):
            made.append(Delivery(endpoint, pieces if not made else [OK_EMPTY]))
            return made[-1]

        for what, wire, close, good, error in faults():
            with self.subTest((what, close)):
                for pieces in cuts(wire):
                    pieces += [] if close is None else [type(close)(*close.args) if close else close]
                    made = []
                    request, _ = self.pool(connect=connect, max_header_length=LIMIT)
                    await self.assert_good_first(request(b'GET', 'http://h/'), wire, good, error)
                    self.assertTrue(made[0].is_closed)
                    await request(b'GET', 'http://h/')
                    self.assertEqual((len(made), made[1].is_closed), (2, False))
                    self._pools.clear()  # or there would be thousands

    async def test_on_sockets_whole_and_byte_by_byte(self):
        rows = list(faults())

        def script(peer):
            while True:
                path = re.match(rb'GET /(\d*)', peer.read_head())
                if not path or not path.group(1):
                    break
                _, wire, close, _, _ = rows[int(path.group(1))]
                peer.send(*(wire[at:at + 1] for at in range(len(wire))) if is_cut else (wire,))
                if close is None:
                    peer.read_to_close()
                elif close is TRUNCATED:
                    peer.abort()
                elif close is RESET:
                    while struct.unpack('i', fcntl.ioctl(peer.sock, termios.TIOCOUTQ, bytes(4)))[0]:
                        time.sleep(0.001)  # or what is not on its way yet would be dropped
                    peer.reset()
                return  # FIN, over TLS after close_notify
            if path:
                peer.send(OK_EMPTY)

        for tls, is_cut, size in ((None, False, 65536), (None, False, 1), (tls_server(), False, 65536),
                                  (tls_server(), True, 65536)):
            scheme = 'https' if tls else 'http'
            url = f'{scheme}://127.0.0.1:{self.serve(script, tls=tls)}/'
            for number, (what, wire, close, good, error) in enumerate(rows):
                if close is (RESET if tls else TRUNCATED):  # of the TCP beneath TLS the wrapped socket has no reset
                    continue
                with self.subTest((tls is not None, is_cut, size, what, close)):
                    sockets = ClientSockets()
                    request, _ = self.pool(get_ssl_context=trusting_context, set_sock_options=sockets,
                                           max_header_length=LIMIT, recv_bufsize=size, socket_timeout=PATIENCE)
                    await self.assert_good_first(request(b'GET', f'{url}{number}'), wire, good, error)
                    accepted = self.accepted
                    self.assertEqual(sockets.count_open(), 0)
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

    async def test_what_tls_has_read_before_a_record_that_is_broken(self):
        """The good records and the broken one come in one read"""
        def script(peer):
            tls = ManualTls(peer, tls_server())
            tls.handshake()
            tls.read()
            tls.tls.write(wire[:20])
            tls.tls.write(wire[20:])
            peer.send(tls.outgoing.read() + b'\x17\x03\x03\x00\x20' + bytes(32))
            peer.read_to_close()

        url = f'https://127.0.0.1:{self.serve(script)}/'
        for what, wire, good in CUT + OPEN:
            with self.subTest(what):
                request, _ = self.pool(get_ssl_context=trusting_context, set_sock_options=self.sockets,
                                       socket_timeout=PATIENCE)
                await self.assert_good_first(request(b'GET', url), wire, good, HttpDataError)
                self.assertEqual(self.sockets.count_open(), 0)

    @if_heard
    async def test_where_it_comes_early_while_the_body_of_the_request_waits(self):
        """Held until the end of the upload, where that is not the end of the connection"""
        for what, wire, close, good, error in faults():
            with self.subTest((what, close)):
                for pieces in itertools.islice(cuts(wire), 0, None, 5):
                    pieces += [] if close is None else [type(close)(*close.args) if close else close]
                    go_on = self.loop.create_future()
                    body = Waiting(lambda seen, go_on=go_on: go_on)
                    connection, task = await self.waiting(body, is_read=False, max_header_length=LIMIT)
                    connection.comes(*pieces)
                    await turns()
                    self.assertEqual(body.seen, [] if close is None else INTERRUPTED)
                    if close is None:
                        go_on.set_result(None)
                    await self.assert_good_first(task, wire, good, error, close is None)
                    self.assertTrue(connection.is_closed)
                    self._pools.clear()


# -------- Bodies that make requests


def readmes_retries():
    """`with_retries` of the README, as it stands there"""
    with open(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 'README.md'),
              encoding='utf-8') as file:
        code = re.search(r'^def with_retries.*?^    return retrying_request$', file.read(), re.MULTILINE | re.DOTALL)
    names = {'HttpConnectionError': HttpConnectionError}
    exec(code.group(), names)
    return names['with_retries']


class BodyWithRequestsTests(ListeningTestCase):
    """What a request of the body's own raises says nothing of the request whose body it is"""

    def failing(self):
        """(class, a function that makes a request, which raises it) of each kind of error"""
        async def resolve(host, record_type):
            raise DnsRecordDoesNotExist()

        async def clear_cache():
            pass

        request, _ = self.pool(get_dns_resolver=lambda: (resolve, clear_cache), get_ssl_context=trusting_context,
                               max_header_length=1000)

        def answering(answer):
            return f'http://127.0.0.1:{self.answer(answer)}/'

        silent = self.serve(lambda peer: peer.read_to_close())
        get = functools.partial(request, b'GET')
        rows = (
            (HttpRequestError, get, 'ftp://h/', {}),
            (HttpConnectionError, get, f'http://127.0.0.1:{refusing_port()}/', {}),
            (HttpDnsError, get, 'http://h.test/', {}),
            (HttpTlsError, get, f'https://127.0.0.1:{self.serve(lambda peer: peer.send(b"no TLS" * 9))}/', {}),
            (HttpConnectionTimeout, get, f'https://127.0.0.1:{silent}/', {'connect_timeout': 0.01}),
            (HttpDataTimeout, get, f'http://127.0.0.1:{silent}/', {'socket_timeout': 0.01}),
            (HttpConnectionClosedError, get, answering(b''), {}),
            (HttpProtocolError, get, answering(b'220 smtp\r\n'), {}),
            (HttpHeaderTooLong, get, answering(OK + b'a: ' + bytes(2000)), {}),
            (HttpBodyError, functools.partial(request, b'POST'), f'http://127.0.0.1:{silent}/',
             {'headers': LENGTH, 'body': streamed(b'short')}),
            (HttpRedirectError, functools.partial(redirectable(request), b'GET'),
             answering(b'HTTP/1.1 302 F\r\nlocation: ftp://h/\r\ncontent-length: 0\r\n\r\n'), {}),
        )
        return [(row[0], functools.partial(row[1], row[2], **row[3])) for row in rows]

    def bodies(self, fail, error):
        """(where it is raised, a body, how many requests the server sees): `fail()` is awaited there, or, where nothing
        can be, its error raised"""
        def raises():
            raise error

        class Raises:
            __aiter__ = staticmethod(raises)

        class Closing:
            def __aiter__(self):
                return pieces_of_closing(fail)

        async def first():
            await fail()
            yield b'first'

        async def later():
            yield b'first'
            await fail()

        async def at_the_end():
            try:
                yield b'first'
            finally:
                await fail()

        def pieces_of_closing(fail):
            class Iterator:
                pieces = [b'first']

                def __aiter__(self):
                    return self

                async def __anext__(self):
                    if not self.pieces:
                        raise StopAsyncIteration
                    return self.pieces.pop()

                async def aclose(self):
                    await fail()

            return Iterator()

        return (('in its function', raises, 0), ('in __aiter__', Raises(), 0), ('at the first piece', first, 0),
                ('later', later, 1), ('in its finally', at_the_end, 1), ('in aclose', Closing(), 1))

    async def test_it_is_an_error_of_the_body_and_nothing_is_sent_again(self):
        def script(peer):
            heads = []
            try:
                while True:
                    head = peer.read_head()
                    if not head:
                        return
                    heads.append(head)
                    if b'100-continue' in head:
                        peer.send(CONTINUE)
                    if head.startswith(b'GET') or peer.read_until(b'\r\n0\r\n\r\n').endswith(b'0\r\n\r\n'):
                        peer.send(OK_EMPTY)
            finally:
                got.put(heads)

        got = queue.Queue()  # of each connection, the heads of its requests
        url = f'http://127.0.0.1:{self.serve(script)}/'
        for error_class, fail in self.failing():
            error = await self.raises(error_class, fail())
            for where, body, count in self.bodies(fail, error):
                for method, reused, headers in ((b'POST', False, ()), (b'PUT', True, ()), (b'POST', True, EXPECTS)):
                    with self.subTest((error_class.__name__, where, method, reused, headers)):
                        request, _ = self.pool(set_sock_options=self.sockets, expect_timeout=PATIENCE)
                        if reused:
                            await request(b'GET', url)
                        raised = await self.raises(HttpBodyError, readmes_retries()(request)(
                            method, url, headers=headers, body=body))
                        self.assertIs(type(raised.__cause__), error_class)
                        self.assertIn(str(raised.__cause__), str(raised))
                        self.assertEqual((raised.reused, raised.sending), (reused, False))
                        self.assertIs(raised.answered, bool(headers) or where == 'in aclose')
                        # With `expect` the head is on its way before the body is asked.
                        heads = await in_thread(got.get, True, PATIENCE)
                        self.assertEqual(len(heads), reused + (1 if headers else count))
                        self.assertTrue(got.empty())
                        self.assertEqual(self.sockets.count_open(), 0)

    async def test_so_it_is_where_its_request_is_interrupted_and_fails_then(self):
        if not IS_HEARD:
            self.skipTest('Before Python 3.11 the answer is heard at the next piece')

        async def wait(seen):
            try:
                await for_ever(seen)
            finally:
                await request(b'GET', f'http://127.0.0.1:{refusing_port()}/')

        body = Waiting(wait)
        request, _ = self.pool()
        error = await self.raises(HttpBodyError, readmes_retries()(request)(
            b'POST', self.play(body.asked, REFUSAL), body=body))
        self.assertIs(type(error.__cause__), HttpConnectionError)
        self.assertEqual((error.answered, self.accepted), (True, 1))

    async def test_what_a_retry_layer_may_send_again_it_still_does(self):
        """The body's errors are told from those of the request around it"""
        request, _ = self.pool()
        calls = []

        def body():
            calls.append(None)
            return pieces_of(b'first')

        port = refusing_port()
        await self.raises(HttpConnectionError, readmes_retries()(request)(
            b'POST', f'http://127.0.0.1:{port}/', body=body))
        self.assertEqual(calls, [])
        attempts = []

        async def counted(*args, **kwargs):
            attempts.append(None)
            return await request(*args, **kwargs)

        await self.raises(HttpConnectionError, readmes_retries()(counted)(
            b'POST', f'http://127.0.0.1:{port}/', body=body))
        self.assertEqual((len(attempts), calls), (3, []))


if __name__ == '__main__':
    unittest.main()
