"""What real peers do too rarely to wait for"""
import asyncio
import gc
import socket
import threading
from unittest import mock

from aiodnsresolver import TYPES, DnsError, IPv4AddressExpiresAt

import lowhaio
from lowhaio import HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpRequestError, buffered, streamed
from reliability.harness import AsyncTestCase, in_thread
from tests.peers import EMPTY, empty_answers


class RareTurnsTests(AsyncTestCase):

    async def test_streamed_takes_bytes_alone(self):
        for data in ('text', 5, None, [b'x']):
            with self.assertRaisesRegex(HttpRequestError, 'takes bytes, got ' + type(data).__name__):
                streamed(data)
        with self.assertRaisesRegex(HttpRequestError, 'contiguous'):
            streamed(memoryview(b'abcdef')[::2])

    async def test_a_body_in_a_reference_cycle_is_finalised_in_any_order(self):
        ended = threading.Event()
        go_on = threading.Semaphore(0)

        def script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n')
            go_on.acquire(timeout=30)
            peer.send(b'x')
            peer.read_to_close()
            ended.set()
        request, _ = self.pool()
        port = self.serve(script)
        for _ in range(5):
            ended.clear()
            _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % port)
            cycle = [body]
            cycle.append(cycle)
            go_on.release()
            while self._readers_and_timers()[0]:  # until it has fired with nobody waiting
                await asyncio.sleep(0)
            del body, cycle
            gc.collect()
            await in_thread(ended.wait, 30)

    async def test_addresses_in_disguise_are_refused(self):
        request, _ = self.pool()
        for host in ('127.1', '2130706433', '0x7f.0.0.1', '127.0.0.01', '1.2.3.4.5', 'example.1'):
            error = await self.raises(HttpRequestError, request(b'GET', 'http://{}/'.format(host)))
            self.assertIn('neither a name nor an IPv4 address', str(error))

    async def test_a_coroutine_function_is_no_body(self):
        async def body():
            raise AssertionError('it is not awaited')
        request, _ = self.pool()
        port = self.serve(empty_answers)
        error = await self.raises(HttpBodyError, request(b'POST', 'http://127.0.0.1:%d/' % port, body=body))
        self.assertIn('coroutine', str(error))

    async def test_a_body_closed_as_its_last_bytes_arrive_is_an_error_where_it_is_read(self):
        state = {}

        async def wait(sending=False, seconds=None):
            if 'body' in state:
                await state['body'].aclose()
            state['data'] = b'hello' if 'body' in state else b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n'

        async def connect(*_):
            return lowhaio.Connection(
                lambda: state.pop('data', None), len, wait, lambda _: None, lambda last=b'': None, lambda: None)

        request, _ = self.pool(connect=connect)
        _, _, state['body'] = await request(b'GET', 'http://h/')
        error = await self.raises(HttpConnectionClosedError, buffered(state['body']))
        self.assertEqual((error.reused, error.answered), (False, True))

    async def test_what_tls_swallows_on_an_idle_connection_leaves_it_idle(self):
        opened, there = [], []

        async def wait(sending=False, seconds=None):
            there.append(EMPTY)

        async def connect(*_):
            connection = lowhaio.Connection(
                lambda: there.pop() if there else None, len, wait,
                lambda callback, seconds=0: watchers.append(callback), lambda last=b'': None, lambda: None)
            opened.append(connection)
            return connection

        watchers = []
        request, _ = self.pool(connect=connect)
        await request(b'GET', 'http://h/')
        watchers[-1](False)
        await request(b'GET', 'http://h/')
        self.assertEqual(len(opened), 1)

    async def test_a_connect_that_raises_an_oserror_raises_an_httpconnectionerror(self):
        async def connect(*_):
            raise ConnectionRefusedError('no proxy')
        request, _ = self.pool(connect=connect)
        error = await self.raises(HttpConnectionError, request(b'GET', 'http://h:81/'))
        self.assertEqual(str(error), 'Could not connect to h port 81: no proxy')
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)

    async def test_a_reset_while_100_is_awaited_is_an_error(self):
        def script(peer):
            peer.read_head()
            peer.reset()
        request, _ = self.pool()
        port = self.serve(script)
        error = await self.raises(HttpConnectionClosedError, request(
            b'POST', 'http://127.0.0.1:%d/' % port, headers=((b'expect', b'100-continue'),), body=streamed(b'x')))
        self.assertFalse(error.answered)

    async def test_a_generator_that_was_begun_is_not_called_untouched(self):
        # It was, on a reused connection that died meanwhile, and there is no other.
        gone, making = threading.Event(), threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(EMPTY)
            making.wait(30)
            self._listeners[-1].shutdown(socket.SHUT_RDWR)
            peer.close()
            gone.set()

        async def body():
            making.set()
            await in_thread(gone.wait, 30)
            yield b'x'

        for given, expected in ((body(), HttpConnectionClosedError), (body, HttpConnectionError)):
            gone.clear()
            making.clear()
            request, _ = self.pool()
            url = 'http://127.0.0.1:%d/' % self.serve(script)
            await request(b'GET', url)
            await self.raises(expected, request(b'POST', url, body=given))

    def resolver(self, answers):
        """A resolver of (name, type): addresses, or an exception; it waits for `self.go_on` where that is set"""
        self.go_on = None
        self.asked = []

        async def resolve(host, record_type):
            self.asked.append((host, record_type))
            if self.go_on is not None:
                await self.go_on.wait()
            answer = answers[host, record_type]
            if isinstance(answer, Exception):
                raise answer
            return answer

        async def clear_cache():
            pass
        return lambda: (resolve, clear_cache)

    async def test_a_failed_look_up_of_ipv6_does_not_hide_why_ipv4_failed(self):
        with socket.socket() as unused:
            unused.bind(('127.0.0.1', 0))
            port = unused.getsockname()[1]
            request, _ = self.pool(get_dns_resolver=self.resolver({
                ('h', TYPES.A): (IPv4AddressExpiresAt('127.0.0.1', 0),), ('h', TYPES.AAAA): DnsError()}))
            error = await self.raises(HttpConnectionError, request(b'GET', 'http://h:%d/' % port))
            self.assertIn('127.0.0.1: ', str(error))

    async def test_a_connection_taken_during_the_look_up_is_left_to_who_took_it(self):
        port = self.serve(empty_answers)
        request, _ = self.pool(get_dns_resolver=self.resolver({
            (host, TYPES.A): (IPv4AddressExpiresAt('127.0.0.1', 0),) for host in 'ab'}))
        with mock.patch('lowhaio.MIN_TTL', -1):  # nothing stands
            await request(b'GET', 'http://a:%d/' % port)
            self.go_on = asyncio.Event()
            both = [self.loop.create_task(request(b'GET', 'http://a:%d/' % port)) for _ in range(2)]
            while len(self.asked) < 3:
                await asyncio.sleep(0)
            self.go_on.set()
            await asyncio.gather(*both)
        self.assertEqual(self.accepted, 2)

    async def test_the_oldest_names_are_forgotten(self):
        port = self.serve(empty_answers)
        request, _ = self.pool(get_dns_resolver=self.resolver({
            (host, TYPES.A): (IPv4AddressExpiresAt('127.0.0.1', 0),) for host in 'ab'}))
        with mock.patch('lowhaio.MAX_REMEMBERED', 1):
            for host in 'aabba':
                await request(b'GET', 'http://%s:%d/' % (host, port))
        self.assertEqual([host for host, _ in self.asked], ['a', 'b', 'a'])

    async def test_idle_connections_are_dropped_whichever_is_closed_first(self):
        close_first = threading.Event()
        gone = threading.Event()

        def first(peer):
            peer.read_head()
            close_first.wait(30)
            peer.send(EMPTY)
            peer.read_head()

        def second(peer):
            peer.read_head()
            peer.send(EMPTY)
            gone.wait(30)

        port = self.serve(first, second)
        request, _ = self.pool()
        url = 'http://127.0.0.1:%d/' % port
        slow = self.loop.create_task(request(b'GET', url))
        while not self.accepted:
            await asyncio.sleep(0)
        await request(b'GET', url)
        close_first.set()
        await slow
        gone.set()  # the one that became idle first, and is not the next to be taken
        while [thread for thread in self._threads if thread.is_alive()][2:]:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        gc.collect()
