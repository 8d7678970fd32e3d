"""What is timed, and what is not"""
import asyncio
import itertools
import socket
import threading
import time
import unittest

from lowhaio import HttpConnectionError, HttpConnectionTimeout, HttpDataTimeout, buffered, streamed
from reliability.harness import (
    CONTINUE, OK, TEST_SECONDS, ClientSockets, Peer, current_task, full_backlog, in_thread, outcome, server_context,
    turns,
)
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import MUCH, ExchangeTestCase, answering, numbered, reply_of, until_closed


class SocketTimeoutTests(ExchangeTestCase):

    async def within(self, least, most, awaitable):
        began = time.monotonic()
        result = await awaitable
        took = time.monotonic() - began
        self.assertGreaterEqual(took, least)
        self.assertLess(took, most)
        return result

    async def test_connecting_is_bounded(self):
        body = CountedBody(b'x')
        sockets = ClientSockets()
        request, _ = self.pool(socket_timeout=0.2, set_sock_options=sockets)
        with full_backlog() as port:
            error = await self.within(0.18, 5, self.raises(
                HttpConnectionTimeout, self.text(request, port, method=b'POST', body=body())))
        self.assertIsInstance(error, asyncio.TimeoutError)
        self.assertIsInstance(error, HttpConnectionError)
        self.assertIn('0.2', str(error))
        self.assertEqual((body.begun, sockets.count_open()), (0, 0))

    async def test_an_address_that_does_not_answer_is_followed_by_the_next(self):
        # Both addresses have one port: the first's queue is full, at the second a server answers.
        with full_backlog() as port:
            listener = socket.socket()
            self._listeners.append(listener)
            listener.bind(('127.0.0.2', port))
            listener.listen(5)

            def play():
                sock, _ = listener.accept()
                answering(reply_of(b'second'))(Peer(sock))
                sock.close()
            thread = threading.Thread(target=play, daemon=True)
            thread.start()
            request, close = self.pool(
                socket_timeout=0.2, get_dns_resolver=FakeNames({'two.test': ['127.0.0.1', '127.0.0.2']}))
            self.assertEqual(await self.text(request, port, 'two.test'), b'second')
            await close()
            await in_thread(thread.join, TEST_SECONDS)

    async def test_receiving_is_bounded_at_each_place(self):
        places = (
            ('before the head', b'', False),
            ('in the head', b'HTTP/1.1 200 OK\r\ncon', True),
            ('after an interim response', CONTINUE, True),
            ('before the body', OK + b'content-length: 9\r\n\r\n', True),
            ('in the body', OK + b'content-length: 9\r\n\r\nabc', True),
            ('in a chunk', OK + b'transfer-encoding: chunked\r\n\r\n9\r\nabc', True),
            ('in a body until the end', OK + b'\r\nabc', True),
        )

        async def times_out(part, tls, is_reused):
            gone = threading.Event()
            url = self.url(until_closed(gone, *(reply_of(),) * is_reused, part), tls=tls)
            request, _ = self.pool(socket_timeout=0.4)
            if is_reused:
                await request(b'GET', url)

            async def whole():
                _, _, body = await request(b'POST', url)
                await buffered(body)
            error = await self.within(0.36, 10, self.raises(HttpDataTimeout, whole()))
            await self.happens(gone)
            self.assertIsInstance(error, asyncio.TimeoutError)
            self.assertIsInstance(error.__cause__, OSError)
            self.assertIn('0.4', str(error))
            return error.reused, error.answered
        for tls, is_reused in itertools.product((None, server_context()), (False, True)):
            # All at once, since each takes the time that it is about.
            results = await asyncio.gather(*[times_out(part, tls, is_reused) for _, part, _ in places])
            self.assertEqual(results, [(is_reused, answered) for _, _, answered in places])

    async def test_the_time_begins_anew_with_each_byte_sent(self):
        def script(peer):
            # At most so much is on its way, so that the client is blocked nearly all of the time.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
            peer.read_head()
            for _ in range(8):
                time.sleep(0.12)
                peer.read(MUCH // 8)
            peer.send(reply_of(b'done'))
        request, _ = self.pool(socket_timeout=0.6)
        headers = ((b'content-length', b'%d' % MUCH),)
        texts = [
            self.within(0.9, 20, self.text(
                request, self.serve(script, tls=tls), scheme='https' if tls else 'http', method=b'PUT', headers=headers,
                body=streamed(bytes(MUCH))))
            for tls in (None, server_context())
        ]
        self.assertEqual(await asyncio.gather(*texts), [b'done'] * 2)

    async def test_neither_the_callers_body_nor_its_reading_is_timed(self):
        async def body():
            yield b'x'
            await asyncio.sleep(0.4)
            yield b'y'

        def script(peer):
            peer.read_until(b'0\r\n\r\n')
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc')
            go_on.wait(TEST_SECONDS)
            peer.send(b'def')
        go_on = threading.Event()
        request, _ = self.pool(socket_timeout=0.2)
        _, _, response = await request(b'PUT', self.url(script), body=body())
        self.assertEqual(await response.__anext__(), b'abc')
        go_on.set()
        await asyncio.sleep(0.4)
        self.assertEqual(await buffered(response), b'def')

    async def test_a_timer_of_one_request_does_not_reach_the_next(self):
        port = self.serve(*numbered())
        request, _ = self.pool(socket_timeout=0.8)
        self.assertEqual(await self.text(request, port), b'0')
        await asyncio.sleep(0.9)
        self.assertEqual(await self.text(request, port), b'0')

        def late(peer):
            time.sleep(0.5)
            peer.send(reply_of(b'late'))
        # The second wait begins when the first one's time is nearly over.
        port = self.serve(answering(late))
        for _ in range(2):
            self.assertEqual(await self.text(request, port), b'late')

    async def test_a_timeout_does_not_cancel_the_callers_task(self):
        port = self.serve(answering(lambda peer: peer.read_to_close()))
        request, _ = self.pool(socket_timeout=0.1)
        self.assertIs(await outcome(self.text(request, port)), HttpDataTimeout)
        if hasattr(asyncio.Task, 'cancelling'):
            self.assertEqual(current_task().cancelling(), 0)
        await turns()  # where a cancellation of this task would come out

    @unittest.skipUnless(hasattr(asyncio, 'timeout'), 'since Python 3.11')
    async def test_a_socket_timeout_inside_asyncio_timeout_keeps_its_own_name(self):
        port = self.serve(answering(lambda peer: peer.read_to_close()))
        request, _ = self.pool(socket_timeout=0.1)
        async with asyncio.timeout(TEST_SECONDS):
            await self.raises(HttpDataTimeout, self.text(request, port))
