"""What readers of the code found"""
import array
import asyncio
import contextlib
import ctypes
import errno
import gc
import itertools
import mmap
import queue
import socket
import ssl
import threading
import time
import tracemalloc
from unittest import mock

from aiodnsresolver import TYPES

import lowhaio
from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpConnectionTimeout, HttpDataTimeout, HttpDnsError,
    HttpRequestError, Pool, buffered, streamed,
)
from reliability.harness import (
    CONTINUE, OK, OK_EMPTY, OK_LAST, PATIENCE, TEST_SECONDS, TOO_LARGE, ManualTls, Peer, ScriptedConnection, all_tasks,
    client_context, in_thread, outcome, server_context, tls_server, tls_versions,
)
from reliability.scripted import DRAIN
from tests.bodies import BodyOnce, CountedBody, ResizedBody
from tests.peers import (
    LAST_CHUNK, ConnectionTestCase, answering, halting, in_loop_of_its_own, numbered, reply_after_body,
)


def connect_slowly(until=None):
    """A `connect` that takes some time, as the handshake of a proxy may, and at least until this threading.Event"""
    async def connect(*args):
        connection = await lowhaio.connect_directly(*args)
        if until is not None:
            await in_thread(until.wait, TEST_SECONDS)
        await asyncio.sleep(0.05)
        return connection
    return connect


class ReviewTests(ConnectionTestCase):
    """What readers of the code found, by their scripts"""

    async def test_of_all_addresses_that_fail_the_last_is_the_cause(self):
        errors = {'127.0.0.1': ConnectionRefusedError('refused'), '127.0.0.2': socket.timeout('slow')}

        async def look_up(host, record_type):
            return addresses if record_type == TYPES.A else ()

        async def open_socket(family, address):
            raise errors[address[0]]

        for addresses, cls in ((('127.0.0.1', '127.0.0.2'), HttpConnectionTimeout),
                               (('127.0.0.2', '127.0.0.1'), HttpConnectionError)):
            error = await self.raises(
                cls, lowhaio.connect_directly('http', 'h.test', 80, look_up, open_socket, None))
            self.assertIs(error.__cause__, errors[addresses[-1]])
            self.assertIn('127.0.0.1: refused', str(error))
            self.assertIn('127.0.0.2: slow', str(error))

    async def test_a_piece_that_was_released_or_closed_is_an_error_of_the_body(self):
        released = memoryview(b'x')
        released.release()
        closed = mmap.mmap(-1, 10)
        closed.close()
        for piece in (released, closed):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                url = 'http://127.0.0.1:{}/'.format(self.serve(lambda peer: peer.read_to_close()))
                self.assertRaises(HttpRequestError, streamed, piece)
                error = await self.raises(HttpBodyError, request(b'PUT', url, body=CountedBody(piece)))
                self.assertIn('released' if piece is released else 'closed', str(error))
        for piece, sent in ((ctypes.c_int(5), bytes(ctypes.c_int(5))), (array.array('H', (1, 2)), b'\1\0\2\0')):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                port = self.serve(reply_after_body(len(sent)))
                headers = ((b'content-length', b'%d' % len(sent)),)
                await self.text(request, port, method=b'PUT', headers=headers, body=streamed(piece))

    async def test_what_a_bodys_function_returns_is_told_of_a_reused_connection(self):
        request, _ = self.pool()
        url = 'http://127.0.0.1:{}/'.format(self.serve(*numbered()))
        for reused in (False, True):
            error = await self.raises(HttpBodyError, request(b'PUT', url, body=lambda: None))
            self.assertEqual((error.reused, error.answered), (reused, False))
            await request(b'GET', url)

    async def test_what_comes_on_a_fresh_connection_before_the_request_is_no_answer(self):
        def greets(peer):
            peer.send(OK + b'content-length: 5\r\n\r\nstray')
            done.set()
            got.put(peer.read_to_close())

        def closes(peer):
            if isinstance(peer.sock, ssl.SSLSocket):
                peer.sock.settimeout(0)
                with contextlib.suppress(ssl.SSLWantReadError):  # the other's close_notify is not waited for
                    peer.sock.unwrap()
            peer.abort()
            done.set()

        expects = ((b'expect', b'100-continue'),)
        for tls, (script, seen) in itertools.product(
                (None, *(configure(server_context()) for _, configure in tls_versions())),
                ((greets, 'b\'HTTP/1.1 200 OK'), (closes, 'closed'))):
            for method, headers, body in (
                    (b'GET', (), None), (b'HEAD', (), None), (b'POST', (), None), (b'POST', (), streamed(b'x')),
                    (b'PUT', (), streamed(b'x')), (b'PUT', expects, streamed(b'x'))):
                with self.subTest((tls is not None, script.__name__, method, headers)):
                    got, done = queue.Queue(), threading.Event()
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
                    request, _ = self.pool(connect=connect_slowly(done), get_ssl_context=client_context)
                    accepted = self.accepted
                    error = await self.raises(
                        HttpConnectionError, request(method, url, headers=headers, body=body))
                    self.assertIs(type(error), HttpConnectionError)
                    self.assertIn(seen, str(error))
                    self.assertEqual(self.accepted, accepted + 1)
                    if script is greets:
                        self.assertEqual(await in_thread(got.get, True, PATIENCE), b'')
        # A generator that made its first piece is spent, which an HttpConnectionError would deny.
        done = threading.Event()
        request, _ = self.pool(connect=connect_slowly(done))
        url = 'http://127.0.0.1:{}/'.format(self.serve(closes))
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=CountedBody(b'x')()))
        self.assertEqual((error.reused, error.answered), (False, False))

    async def test_why_tls_ended_before_the_request_is_said(self):
        def script(peer):
            tls = ManualTls(peer, server_context())
            tls.handshake()
            peer.send(b'\x17\x03\x03\x00\x20' + bytes(32))
            peer.read_to_close()

        request, _ = self.pool(connect=connect_slowly(), get_ssl_context=client_context)
        error = await self.raises(HttpConnectionError, self.text(request, self.serve(script), scheme='https'))
        self.assertIsInstance(error.__cause__, ssl.SSLError)
        self.assertIn(str(error.__cause__), str(error))

    async def test_the_callers_buffer_is_let_go_of_before_its_body_is_closed(self):
        for what, script, tls, fields, expected in (
                ('a peer that reads nothing', lambda peer: peer.sock.recv(1, socket.MSG_PEEK) and time.sleep(0.5), None,
                 (), HttpDataTimeout),
                ('the same over TLS', lambda peer: time.sleep(0.5), tls_server(), (), HttpDataTimeout),
                ('a reset', lambda peer: peer.read_head() and peer.reset(), None, (), HttpConnectionClosedError),
                ('a body too long', Peer.read_to_close, None, ((b'content-length', b'5'),), HttpBodyError),
        ):
            with self.subTest(what):
                port = self.serve(script, tls=tls)
                request, _ = self.pool(socket_timeout=0.2 if expected is HttpDataTimeout else 10,
                                       get_ssl_context=client_context)
                body = ResizedBody()
                await self.raises(expected, request(
                    b'PUT', 'http{}://127.0.0.1:{}/'.format('s' if tls else '', port), headers=fields, body=body))
                self.assertTrue(body.is_closed)

    async def test_the_callers_buffer_is_let_go_of_when_the_request_is_cancelled(self):
        port = self.serve(lambda peer: peer.sock.recv(1, socket.MSG_PEEK) and time.sleep(0.5))
        request, _ = self.pool()
        body = ResizedBody()
        task = self.loop.create_task(request(b'PUT', 'http://127.0.0.1:%d/' % port, body=body))
        await asyncio.sleep(0.2)
        task.cancel()
        self.assertIs(await outcome(task), asyncio.CancelledError)
        self.assertTrue(body.is_closed)

    async def test_after_a_request_was_sent_no_error_says_that_nothing_was(self):
        def first(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_until(LAST_CHUNK)

        made = []

        async def connect(*args):
            if len(made) == 2:
                raise ConnectionRefusedError('nobody listens')
            made.append(await lowhaio.connect_directly(*args))
            return made[-1]

        async def body():
            await asyncio.sleep(0.2 if len(made) == 2 else 0)  # while the second connection is closed
            yield b'x'
        request, _ = self.pool(connect=connect)
        url = 'http://127.0.0.1:%d/' % self.serve(first, Peer.close)
        await request(b'GET', url)
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=body))
        self.assertIs(error.reused, True)
        self.assertIsInstance(error.__cause__, HttpConnectionError)

    async def test_what_the_callers_body_raises_stays_the_callers_also_when_it_is_sent_again(self):
        def first(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_until(LAST_CHUNK)

        begun = []

        async def body():
            begun.append(True)
            if len(begun) == 2:
                raise HttpDnsError('of another request, whose response this body is')
            yield b'x'
        request, _ = self.pool()
        url = 'http://127.0.0.1:%d/' % self.serve(first, DRAIN)
        await request(b'GET', url)
        error = await self.raises(HttpBodyError, request(b'PUT', url, body=body))
        self.assertIsInstance(error.__cause__, HttpDnsError)
        self.assertIn('another', str(error))

    async def test_an_answer_is_heard_though_the_head_that_expects_could_not_be_sent(self):
        class Failing(ScriptedConnection):
            def send(self, data):
                raise ConnectionResetError(errno.ECONNRESET, 'reset')

        async def connect(*_):
            return Failing((), [TOO_LARGE])
        request, _ = self.pool(connect=connect)
        body = BodyOnce(b'x')
        code, _, response = await request(b'PUT', 'http://h/', headers=((b'expect', b'100-continue'),), body=body)
        self.assertEqual((code, await buffered(response), body.asked), (b'413', b'too large', 0))

    async def test_a_readiness_that_was_none_is_not_an_end(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            with mock.patch('select.poll') as poll:
                poll.return_value.poll.return_value = [(ours.fileno(), 1)]
                connection = lowhaio.tcp_connection(self.loop, ours, 65536)
            self.assertIsNone(connection.poll())
            connection.close()

    async def test_an_iterator_that_has_ended_is_not_asked_again(self):
        for pieces in ((), (b'x',)):
            with self.subTest(pieces):
                body = BodyOnce(*pieces)
                request, _ = self.scripted_pool()
                await request(b'PUT', 'http://127.0.0.1/', body=body)
                self.assertEqual(body.asked, len(pieces) + 1)

    def scripted_pool(self):
        async def connect(*_):
            return ScriptedConnection((), [OK_EMPTY])
        return self.pool(connect=connect)

    async def test_a_body_that_is_none_is_found_after_the_head_was_sent(self):
        request, _ = self.pool()
        port = self.serve(lambda peer: peer.read_head() and peer.send(CONTINUE) and peer.read_to_close())
        await self.raises(HttpBodyError, request(
            b'POST', 'http://127.0.0.1:%d/' % port, headers=((b'expect', b'100-continue'),), body=lambda: 5))

    async def test_what_is_refused_is_refused_whatever_was_sent_before(self):
        request, _ = self.scripted_pool()
        await request(b'GET', 'http://127.0.0.1/', headers=((b'a', b'b'),))
        for method, headers in ((b'GET', ((b'a', memoryview(bytearray(b'b'))),)), (bytearray(b'GET'), ()), ([], ()),
                                (b'GET', ([b'a', 5],)), (b'GET', ((b'a', []),))):
            with self.subTest((method, headers)):
                await self.raises(HttpRequestError, request(method, 'http://127.0.0.1/', headers=headers))

    async def test_headers_that_change_are_sent_as_they_are(self):
        sent = []

        async def connect(*_):
            sent.append(ScriptedConnection((), [OK_LAST]))
            return sent[-1]
        request, _ = self.pool(connect=connect)
        pair, pairs = [b'a', b'1'], [(b'a', b'1')]
        for headers in ((pair,), pairs, iter(pairs)):
            await request(b'GET', 'http://127.0.0.1/', headers=headers)
        pair[1], pairs[0] = b'2', (b'a', b'2')
        for headers in ((pair,), pairs, iter(pairs)):
            await request(b'GET', 'http://127.0.0.1/', headers=headers)
        self.assertEqual([b'a: 2' in connection.writes()[0] for connection in sent], [False] * 3 + [True] * 3)

    async def test_long_urls_are_not_remembered(self):
        request, _ = self.scripted_pool()
        sizes = []
        for number in range(3):
            tracemalloc.start()
            for each in range(100):
                await request(b'GET', 'http://127.0.0.1/{}#{}'.format('x' * 100000, number * 100 + each))
            sizes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        self.assertLess(max(sizes), 2000000)

    async def test_a_finished_body_does_not_keep_a_dropped_pool(self):
        go_on, ended = threading.Event(), threading.Event()
        script = halting(OK + b'content-length: 3\r\n\r\n', go_on, b'abc', ended)
        request, close = Pool(keep_alive_timeout=1000)
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % self.serve(script))
        go_on.set()
        self.assertEqual(await buffered(body), b'abc')
        del request, close
        gc.collect()
        await self.happens(ended)

    def test_a_pool_closed_from_a_thread_as_its_loop_ends_is_closed(self):
        ended = threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_to_close()
            ended.set()
        request, close = Pool()

        async def main():
            await request(b'GET', url)
            thread = threading.Thread(target=in_loop_of_its_own, args=(close,))
            thread.start()
            thread.join(TEST_SECONDS)  # the loop stands still, and ends with the next turn
        url = 'http://127.0.0.1:%d/' % self.serve(script)
        self.loop.run_until_complete(main())
        for task in all_tasks(self.loop):
            task.cancel()  # as `asyncio.run` does it
        self.loop.run_until_complete(asyncio.sleep(0))
        self.assertTrue(ended.wait(TEST_SECONDS / 2))

    async def test_a_pool_that_a_thread_drops_as_its_timer_fires_closes_silently(self):
        request, close = Pool(keep_alive_timeout=0.2)
        await request(b'GET', 'http://127.0.0.1:%d/' % self.serve(answering(OK_EMPTY)))
        pool = [(request, close)]
        del request, close
        self.loop.call_later(0.1, time.sleep, 0.2)   # the pool's timer, and the next, fall into one turn
        self.loop.call_later(0.11, time.sleep, 0.3)  # in which the pool is dropped
        thread = threading.Thread(target=lambda: time.sleep(0.45) or pool.clear())
        thread.start()
        await asyncio.sleep(0.8)
        thread.join(TEST_SECONDS)
