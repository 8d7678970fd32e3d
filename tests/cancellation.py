"""A request may be cancelled wherever it waits"""
import asyncio
import functools
import itertools
import socket
import sys
import threading
import time
from unittest import mock

from lowhaio import HttpConnectionClosedError, Pool, buffered, streamed
from reliability.exhaustion import Interrupted, by_task, let_go, pending, with_the_result
from reliability.harness import (
    SMALL_SEND_BUFFER, TEST_SECONDS, ClientSockets, client_context, full_backlog, outcome, server_context, turns,
)
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import MUCH, ExchangeTestCase, answering, never, reply_of, until_closed


class CancellationTests(ExchangeTestCase):

    async def cancelled(self, coroutine, at):
        """Cancels a task when `at`, a threading or asyncio Event or nothing, has happened"""
        task = self.loop.create_task(outcome(coroutine))
        if isinstance(at, threading.Event):
            await self.happens(at)
        elif at is not None:
            await at.wait()
        await asyncio.sleep(0.02)  # it may not wait yet: to be too early is only another place
        self.assertFalse(task.done())
        task.cancel()
        self.assertIs(await task, asyncio.CancelledError)

    async def test_a_request_may_be_cancelled_wherever_it_waits(self):
        async def hangs():
            begun.set()
            await never()

        async def waiting_body():
            try:
                yield b'x'
                begun.set()
                await never()
            finally:
                ended.append(None)

        def hold(*replies):
            def script(peer):
                for reply in replies:
                    peer.read_head()
                    peer.send(reply)
                if not replies:
                    peer.sock.recv(1, socket.MSG_PEEK)
                reached.set()
                peer.read_to_close()
                gone.set()
            return script

        def blocked(peer):
            peer.read_head()
            reached.set()
            finish.wait(TEST_SECONDS)
            peer.read_to_close()
            gone.set()

        partial_body = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart'
        big = ((b'content-length', b'%d' % MUCH),)
        expects = ((b'content-length', b'3'), (b'expect', b'100-continue'))
        context = server_context()
        for name, scheme, script, arguments, at in (
                ('handshake', 'https', hold(), {}, 'reached'),
                ('sending', 'http', blocked, dict(headers=big, body=streamed(bytes(MUCH))), 'reached'),
                ('sending, TLS', 'tls', blocked, dict(headers=big, body=streamed(bytes(MUCH))), 'reached'),
                ('head', 'http', hold(b''), {}, 'reached'),
                ('head, TLS', 'tls', hold(b''), {}, 'reached'),
                ('in the head', 'http', hold(b'HTTP/1.1 2'), {}, 'reached'),
                ('body', 'http', hold(partial_body), {}, 'reached'),
                ('body, TLS', 'tls', hold(partial_body), {}, 'reached'),
                ('expect', 'http', hold(b''), dict(headers=expects, body=streamed(b'abc')), 'reached'),
                ('look-up', 'name', until_closed, dict(host='hangs.test'), 'begun'),
                ('the body\'s own wait', 'http', until_closed, dict(body=waiting_body), 'begun'),
                ('the body\'s own wait, TLS', 'tls', until_closed, dict(body=waiting_body), 'begun'),
        ):
            with self.subTest(name):
                reached, gone, finish = threading.Event(), threading.Event(), threading.Event()
                begun, ended = asyncio.Event(), []
                if script is until_closed:
                    script = until_closed(gone)
                sockets = ClientSockets()
                request, _ = self.pool(
                    get_ssl_context=client_context, set_sock_options=sockets, expect_timeout=TEST_SECONDS,
                    get_dns_resolver=FakeNames({'hangs.test': hangs, 'one.test': ['127.0.0.1']}))
                port = self.serve(script, tls=context if scheme == 'tls' else None)
                method = b'PUT' if 'body' in arguments else b'GET'
                scheme = 'https' if scheme in ('https', 'tls') else 'http'
                await self.cancelled(
                    self.text(request, port, scheme=scheme, method=method, **arguments),
                    dict(reached=reached, begun=begun).get(at))
                self.assertEqual(sockets.count_open(), 0)
                finish.set()
                if name != 'look-up':
                    await self.happens(gone)
                if arguments.get('body') is waiting_body:
                    self.assertEqual(ended, [None])
                port = self.serve(answering(reply_of(b'sound')))
                self.assertEqual(await self.text(request, port, 'one.test'), b'sound')

    async def test_an_idle_connection_is_closed_where_its_look_up_is_cancelled(self):
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        port = self.serve(answering(reply_of(b'sound')))
        with mock.patch('lowhaio.MIN_TTL', 0.01):
            await self.text(request, port, 'one.test')
            names.records['one.test'] = never
            await asyncio.sleep(0.02)
            await self.cancelled(self.text(request, port, 'one.test'), None)
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_request_may_be_cancelled_while_it_connects(self):
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        with full_backlog() as port:
            await self.cancelled(self.text(request, port), None)
        self.assertEqual((len(sockets.references), sockets.count_open()), (1, 0))
        self.assertEqual(await self.text(request, self.serve(answering(reply_of(b'sound')))), b'sound')

    async def sweep(self, how, play, script, tls=None, reused=False, least=1, **kwargs):
        """Interrupts `play(request, url)` at every one of its suspensions in turn, until it has no more; each time
        the pool must be sound afterwards"""
        port = self.serve(script, tls=tls)
        scheme = 'https' if tls else 'http'
        for n in itertools.count():
            sockets = ClientSockets(SMALL_SEND_BUFFER)
            request, close = Pool(
                get_ssl_context=functools.partial(lambda context: context, self.context), set_sock_options=sockets,
                recv_bufsize=4096, **kwargs)
            if reused:
                await self.text(request, port, scheme=scheme)
            interrupted = Interrupted(self.loop, play(request, '{}://127.0.0.1:{}/'.format(scheme, port)), n, how)
            task = self.loop.create_task(by_task(interrupted))
            try:
                await task
            except asyncio.CancelledError:
                self.assertTrue(interrupted.reached and how is not let_go)
            else:
                self.assertTrue(how is let_go or not interrupted.reached, 'a cancellation was swallowed')
            if not interrupted.reached:
                await close()
                break
            self.assertEqual(sockets.count_open(), 0, 'at suspension {}'.format(n))
            self.assertEqual(await self.text(request, port, scheme=scheme), b'', 'after suspension {}'.format(n))
            await close()
            self.assertEqual(sockets.count_open(), 0)
        self.assertGreaterEqual(n, least, 'so many suspensions there are at least')

    def sweeps(self):
        self.context = client_context()
        for how in (pending, with_the_result, let_go):
            for tls in (None, server_context()):
                yield how, tls

    @staticmethod
    def between(how):
        """What a body waits for: nothing where the coroutine is dropped, since before Python 3.13 `close` does not
        reach into an async generator that waits, which then cannot be closed by anybody"""
        return None if how is let_go and sys.version_info < (3, 13) else lambda: asyncio.sleep(0)

    @staticmethod
    def exchange(peer):
        """A server that takes bodies in both framings, and answers /down with many pieces"""
        while True:
            head = peer.read_head()
            if not head.endswith(b'\r\n\r\n'):
                return
            if b'100-continue' in head:
                peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            if b'chunked' in head:
                if not peer.read_until(b'\r\n0\r\n\r\n').endswith(b'\r\n0\r\n\r\n'):
                    return
            elif b'PUT' in head:
                length = int(head.partition(b'content-length: ')[2].partition(b'\r\n')[0])
                if len(peer.read(length)) < length:
                    return
            if b'/down' in head:
                peer.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
                for _ in range(4):
                    time.sleep(0.001)  # so that most pieces are waited for
                    peer.send(b'1000\r\n' + bytes(4096) + b'\r\n')
                peer.send(b'0\r\n\r\n')
            else:
                peer.send(reply_of())

    async def test_a_download_may_be_interrupted_at_every_suspension(self):
        async def play(request, url):
            _, _, body = await request(b'GET', url + 'down')
            self.assertEqual(len(await buffered(body)), 4 * 4096)

        for how, tls in self.sweeps():
            for reused in (False, True):
                with self.subTest(how=how.__name__, tls=tls is not None, reused=reused):
                    await self.sweep(how, play, self.exchange, tls, reused, least=2)

    async def test_an_upload_may_be_interrupted_at_every_suspension(self):
        for how, tls in self.sweeps():
            for headers in ((), ((b'content-length', b'262144'),)):
                with self.subTest(how=how.__name__, tls=tls is not None, headers=headers):
                    body = CountedBody(*[bytes(65536)] * 4, between=self.between(how))

                    async def play(request, url, headers=headers, body=body):
                        _, _, response = await request(b'PUT', url, headers=headers, body=body())
                        await buffered(response)
                    # Sending and receiving wait; so does the body, where it may.
                    await self.sweep(how, play, self.exchange, tls, least=3 if self.between(how) else 2)
                    self.assertEqual(body.begun, body.ended)

    async def test_an_upload_that_waits_for_100_may_be_interrupted_at_every_suspension(self):
        headers = ((b'content-length', b'8'), (b'expect', b'100-continue'))
        for how, tls in self.sweeps():
            with self.subTest(how=how.__name__, tls=tls is not None):
                body = CountedBody(b'0123', b'4567', between=self.between(how))

                async def play(request, url, body=body):
                    _, _, response = await request(b'PUT', url, headers=headers, body=body())
                    await buffered(response)
                await self.sweep(how, play, self.exchange, tls, least=3 if self.between(how) else 2,
                                 expect_timeout=TEST_SECONDS)
                self.assertEqual(body.begun, body.ended)

    async def test_a_look_up_may_be_interrupted_at_every_suspension(self):
        async def slowly():
            await turns()
            return ['127.0.0.1']

        async def play(request, url):
            await self.text(request, int(url.rpartition(':')[2].rstrip('/')), 'one.test')

        self.context = None
        for how in (pending, with_the_result, let_go):
            with self.subTest(how):
                names = FakeNames({'one.test': slowly})
                await self.sweep(how, play, self.exchange, get_dns_resolver=names, least=2)

    async def test_a_request_that_is_sent_again_may_be_interrupted_at_every_suspension(self):
        # Connections that carry three requests at most, the third of which is not answered.
        def script(peer):
            for _ in range(2):
                if not peer.read_head().endswith(b'\r\n\r\n'):
                    return
                peer.send(reply_of())
            if peer.read_head():
                peer.abort()

        async def play(request, url):
            for _ in range(2):
                _, _, response = await request(b'GET', url)
                await buffered(response)
        for how, tls in self.sweeps():
            with self.subTest(how=how.__name__, tls=tls is not None):
                await self.sweep(how, play, script, tls, reused=True, least=3)

    async def test_closing_a_body_ends_the_read_of_another_task(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                gone = threading.Event()
                port = self.serve(until_closed(gone, b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n'), tls=tls)
                request, _ = self.pool()
                _, _, body = await request(b'GET', '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port))
                task = self.loop.create_task(outcome(body.__anext__()))
                await turns()
                await body.aclose()
                self.assertIs(await task, HttpConnectionClosedError)
                await self.happens(gone)
