"""What a cancelled request leaves: a closed connection, a closed body, and a pool that is sound

Every kind of cancellation, at the suspensions of every kind of exchange, is in reliability/exhaustion.py.
"""
import asyncio
import functools
import itertools
import sys
import time
from unittest import mock

from lowhaio import Pool, buffered
from reliability.exhaustion import Interrupted, by_task, let_go, pending
from reliability.harness import (
    SMALL_SEND_BUFFER, TEST_SECONDS, ClientSockets, client_context, full_backlog, outcome, tls_server, turns,
)
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import ExchangeTestCase, answering, never, reply_of


def exchange(peer):
    """A server that takes bodies in both framings, and answers /down with many pieces; of a connection that asks for
    /third the third request is not answered"""
    for number in itertools.count(1):
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
        if b'/third' in head and number == 3:
            return peer.abort()
        if b'/down' in head:
            peer.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
            for _ in range(4):
                time.sleep(0.001)  # so that most pieces are waited for
                peer.send(b'1000\r\n' + bytes(4096) + b'\r\n')
            peer.send(b'0\r\n\r\n')
        else:
            peer.send(reply_of())


async def slowly():
    await turns()
    return ['127.0.0.1']


LENGTH, EXPECT = ((b'content-length', b'262144'),), ((b'content-length', b'262144'), (b'expect', b'100-continue'))

# (what, method, host, path, headers, whether the connection is reused, at least so many suspensions: of receiving, of
# sending, of the body where it may wait)
PLAYS = (
    ('a download', b'GET', '127.0.0.1', 'down', (), False, 2),
    ('a download on a reused connection', b'GET', '127.0.0.1', 'down', (), True, 2),
    ('an upload', b'PUT', '127.0.0.1', '', LENGTH, False, 2),
    ('a chunked upload', b'PUT', '127.0.0.1', '', (), False, 2),
    ('an upload that waits for 100', b'PUT', '127.0.0.1', '', EXPECT, False, 2),
    ('a look-up', b'GET', 'one.test', '', (), False, 2),
    ('what is sent again', b'GET', '127.0.0.1', 'third', (), True, 3),
)


class CancellationTests(ExchangeTestCase):

    async def test_an_exchange_may_be_cancelled_or_let_go_of_at_every_suspension(self):
        context = client_context()
        for how, tls, (what, method, host, path, headers, reused, least) in itertools.product(
                (pending, let_go), (None, tls_server()), PLAYS):
            # Before Python 3.13 `close` does not reach into an async generator that waits, which then cannot be closed
            # by anybody.
            between = None if how is let_go and sys.version_info < (3, 13) else lambda: asyncio.sleep(0)
            body = CountedBody(*[bytes(65536)] * 4, between=between) if method == b'PUT' else None
            port = self.serve(exchange, tls=tls)
            scheme = 'https' if tls else 'http'
            if tls and host == 'one.test':
                continue

            async def play(request, path=path, method=method, headers=headers, body=body,
                           url='{}://{}:{}/'.format(scheme, host, port)):
                for _ in range(2 if path == 'third' else 1):
                    _, _, response = await request(method, url + path, headers=headers, body=body and body())
                    self.assertEqual(len(await buffered(response)), 4 * 4096 if path == 'down' else 0)

            with self.subTest(what, how=how.__name__, tls=tls is not None):
                new_pool = functools.partial(
                    Pool, get_ssl_context=lambda: context, recv_bufsize=4096, expect_timeout=TEST_SECONDS,
                    get_dns_resolver=FakeNames({'one.test': slowly}))
                await self.sweep(how, play, new_pool, port, scheme, reused,
                                 least + 1 if between and body is not None else least)
                if body is not None:
                    self.assertEqual(body.begun, body.ended)

    async def sweep(self, how, play, new_pool, port, scheme, reused, least):
        """Interrupts `play(request)` at every one of its suspensions in turn, until it has no more; each time the pool
        must be sound afterwards"""
        for n in itertools.count():
            sockets = ClientSockets(SMALL_SEND_BUFFER)
            request, close = new_pool(set_sock_options=sockets)
            if reused:
                await self.text(request, port, scheme=scheme)
            interrupted = Interrupted(self.loop, play(request), n, how)
            task = self.loop.create_task(by_task(interrupted))
            try:
                await task
            except asyncio.CancelledError:
                self.assertTrue(interrupted.reached and how is not let_go)
            else:
                self.assertTrue(how is let_go or not interrupted.reached, 'a cancellation was swallowed')
            if interrupted.reached:
                self.assertEqual(sockets.count_open(), 0, 'at suspension {}'.format(n))
                self.assertEqual(await self.text(request, port, scheme=scheme), b'', 'after suspension {}'.format(n))
            await close()
            self.assertEqual(sockets.count_open(), 0)
            if not interrupted.reached:
                break
        self.assertGreaterEqual(n, least, 'so many suspensions there are at least')

    async def cancelled(self, coroutine):
        task = self.loop.create_task(outcome(coroutine))
        await asyncio.sleep(0.02)
        self.assertFalse(task.done())
        task.cancel()
        self.assertIs(await task, asyncio.CancelledError)

    async def test_an_idle_connection_is_closed_where_its_look_up_is_cancelled(self):
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        port = self.serve(answering(reply_of(b'sound')))
        with mock.patch('lowhaio.MIN_TTL', 0.01):
            await self.text(request, port, 'one.test')
            names.records['one.test'] = never
            await asyncio.sleep(0.02)
            await self.cancelled(self.text(request, port, 'one.test'))
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_request_may_be_cancelled_while_it_connects(self):
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        with full_backlog() as port:
            await self.cancelled(self.text(request, port))
        self.assertEqual((len(sockets.references), sockets.count_open()), (1, 0))
        self.assertEqual(await self.text(request, self.serve(answering(reply_of(b'sound')))), b'sound')
