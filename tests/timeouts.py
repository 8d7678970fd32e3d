"""`connect_timeout` and `socket_timeout`, of a pool and of one request; float('inf') is no limit"""
import asyncio
import threading
import time

from lowhaio import (
    HttpConnectionTimeout,
    HttpDataTimeout,
    HttpDnsError,
    HttpRequestError,
    Pool,
    buffered,
    streamed,
)
from reliability.harness import (
    OK, OK_EMPTY, PATIENCE, USE_UVLOOP, AsyncTestCase, client_context, full_backlog, pieces_of,
)

INF = float('inf')
NAN = float('nan')
SHORT = 0.2


class TimeoutsTests(AsyncTestCase):

    def silent(self, answer=b''):
        """The port of a server that reads a head, answers this, and is silent from then on"""
        def script(peer):
            peer.read_head()
            peer.send(answer)
            peer.read_to_close()

        return self.serve(script)

    async def assert_times_out(self, error_class, seconds, awaitable):
        """It takes about so many seconds: at least those, and nowhere near the patience of the other time-out"""
        start = time.monotonic()
        with self.assertRaisesRegex(error_class, '[0-9]'):
            await awaitable
        elapsed = time.monotonic() - start
        self.assertTrue(seconds * 0.9 <= elapsed < 5, elapsed)

    def assert_no_timer_without_limit(self):
        if not USE_UVLOOP:  # where such a timer cannot be made, and the requests would have failed
            self.assertEqual([handle for handle in self.loop._scheduled if handle._when == INF], [])

    async def test_of_a_request_socket_timeout_bounds_the_wait_for_the_head(self):
        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=PATIENCE)
        url = f'http://127.0.0.1:{self.silent()}/'
        await self.assert_times_out(HttpDataTimeout, SHORT, request(b'GET', url, socket_timeout=SHORT))

    async def test_of_a_request_socket_timeout_bounds_the_waits_of_its_body(self):
        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=PATIENCE)
        url = f'http://127.0.0.1:{self.silent(OK + b"content-length: 9" + bytes((13, 10)) * 2 + b"abc")}/'
        _, _, body = await request(b'GET', url, socket_timeout=SHORT)
        self.assertEqual(await body.__anext__(), b'abc')
        await self.assert_times_out(HttpDataTimeout, SHORT, body.__anext__())

    async def test_of_a_request_socket_timeout_bounds_a_blocked_send(self):
        def script(peer):
            peer.read_head()
            holding.wait(PATIENCE)

        holding = threading.Event()
        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=PATIENCE)
        url = f'http://127.0.0.1:{self.serve(script)}/'
        awaitable = request(b'PUT', url, body=streamed(bytes(30000000)), socket_timeout=SHORT)
        await self.assert_times_out(HttpDataTimeout, SHORT, awaitable)
        holding.set()

    async def test_of_a_request_socket_timeout_may_be_longer_than_the_pools(self):
        def script(peer):
            for _ in range(3):
                peer.read_head()
                time.sleep(4 * SHORT)
                peer.send(OK_EMPTY)

        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=SHORT, keep_alive_timeout=SHORT)
        url = f'http://127.0.0.1:{self.serve(script)}/'
        for seconds in (PATIENCE, INF):  # the second on a connection whose timer has been set before
            code, _, body = await request(b'GET', url, socket_timeout=seconds)
            self.assertEqual((code, await buffered(body)), (b'200', b''))
        self.assertEqual(self.accepted, 1)
        self.assert_no_timer_without_limit()
        # And the pool's own stands for the next request, on the same connection.
        await self.assert_times_out(HttpDataTimeout, SHORT, request(b'GET', url))
        self.assertEqual(self.accepted, 1)

    async def test_connect_timeout_bounds_an_attempt_to_connect(self):
        with full_backlog() as port:
            url = f'http://127.0.0.1:{port}/'
            request, _ = self.pool(connect_timeout=SHORT, socket_timeout=PATIENCE)
            await self.assert_times_out(HttpConnectionTimeout, SHORT, request(b'GET', url))
            request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=SHORT / 10)
            await self.assert_times_out(HttpConnectionTimeout, SHORT, request(b'GET', url, connect_timeout=SHORT))

    async def test_connect_timeout_bounds_a_wait_of_the_handshake(self):
        url = f'https://127.0.0.1:{self.serve(lambda peer: peer.read_to_close())}/'
        request, _ = self.pool(connect_timeout=SHORT, socket_timeout=PATIENCE, get_ssl_context=client_context)
        await self.assert_times_out(HttpConnectionTimeout, SHORT, request(b'GET', url))
        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=PATIENCE, get_ssl_context=client_context)
        await self.assert_times_out(HttpConnectionTimeout, SHORT, request(b'GET', url, connect_timeout=SHORT))

    async def test_connect_timeout_bounds_a_look_up(self):
        async def resolve(host, record_type):
            await asyncio.sleep(PATIENCE)

        async def clear_cache():
            pass

        def get_dns_resolver():
            return resolve, clear_cache

        url = 'http://silent.test/'
        request, _ = self.pool(connect_timeout=SHORT, socket_timeout=PATIENCE, get_dns_resolver=get_dns_resolver)
        await self.assert_times_out(HttpDnsError, SHORT, request(b'GET', url))
        request, _ = self.pool(connect_timeout=PATIENCE, socket_timeout=SHORT / 10, get_dns_resolver=get_dns_resolver)
        await self.assert_times_out(HttpDnsError, SHORT, request(b'GET', url, connect_timeout=SHORT))

    async def test_no_limit_is_taken_in_every_place(self):
        def script(peer):
            while True:
                head = peer.read_head()
                if not head:
                    return
                time.sleep(SHORT)
                if b'100-continue' in head:
                    peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
                peer.read(3 if head.startswith(b'PUT') else 0)
                peer.send(OK + b'content-length: 4\r\n\r\nab')
                time.sleep(SHORT)
                peer.send(b'cd')

        url = f'http://127.0.0.1:{self.serve(script)}/'
        request, _ = self.pool(keep_alive_timeout=INF, connect_timeout=INF, socket_timeout=INF, expect_timeout=INF)
        expecting = ((b'content-length', b'3'), (b'expect', b'100-continue'))
        for method, headers, given in (
                (b'GET', (), None), (b'PUT', (), streamed(b'abc')), (b'PUT', expecting, pieces_of(b'abc'))):
            code, _, body = await request(method, url, headers=headers, body=given)
            self.assertEqual((code, await buffered(body)), (b'200', b'abcd'))
        self.assertEqual(self.accepted, 1)
        self.assert_no_timer_without_limit()

    async def test_what_are_no_seconds_is_refused_by_pool(self):
        for name, zero in (('keep_alive_timeout', True), ('connect_timeout', False), ('socket_timeout', False),
                           ('expect_timeout', True)):
            for value, error in ((None, TypeError), ('5', TypeError), (b'5', TypeError), (True, TypeError),
                                 (1j, TypeError), ((), TypeError), (NAN, ValueError), (-1, ValueError),
                                 (-INF, ValueError), (0, None if zero else ValueError),
                                 (0.0, None if zero else ValueError), (0.5, None), (INF, None), (10 ** 9, None)):
                with self.subTest((name, value)):
                    if error is None:
                        Pool(**{name: value})
                        continue
                    sentence = f'{name} must be a number of seconds (above|of) 0.*got'
                    with self.assertRaisesRegex(error, sentence) as caught:
                        Pool(**{name: value})
                    if error is TypeError:
                        self.assertIn("float('inf') for no limit", str(caught.exception))

    async def test_what_are_no_seconds_is_refused_by_request(self):
        request, _ = self.pool()
        for name in ('connect_timeout', 'socket_timeout'):
            for value in ('5', True, 0, -1, NAN, (5, 5)):
                with self.subTest((name, value)):
                    with self.assertRaisesRegex(HttpRequestError, f'{name} must be a number of seconds above 0.*got'):
                        await request(b'GET', 'http://127.0.0.1:1/', **{name: value})
        with self.assertRaises(TypeError):
            await request(b'GET', 'http://127.0.0.1:1/', (), (), None, 5)  # by name alone
