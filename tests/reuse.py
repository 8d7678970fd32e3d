"""Which connections are used again, and when they are closed"""
import asyncio
import contextlib
import functools
import gc
import itertools
import queue
import ssl
import threading
import time
from unittest import mock

import lowhaio
from lowhaio import HttpConnectionClosedError, HttpConnectionError, buffered, streamed
from reliability.harness import (
    CONTINUE, OK, OK_EMPTY, PATIENCE, TEST_SECONDS, USE_UVLOOP, ClientSockets, client_context, in_thread,
    server_context, tls_server, tls_versions,
)
from reliability.scripted import DRAIN, HALF_CLOSE, HEAD, RESET, Read, Record, scripted
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import (
    EMPTY, LAST_CHUNK, ExchangeTestCase, answering, chunked_response, connect_slowly, numbered, reply_of,
    times_of_close, with_length,
)


def whole(response):
    """A script that answers each request of a connection, for as long as the client keeps it"""
    def script(peer):
        while peer.read_head():
            peer.send(response)
    return script


class PersistenceTests(ExchangeTestCase):
    """What a response alone says of it is in the table of reliability/framing.py too"""

    # Whether it is used again; the version; and of (connection fields of the response, those of the request) each
    CASES = (
        (True, b'1.1', ((), ()), ((b'keep-alive',), ()), ((b'upgrade',), ()), ((b'closed',), ()), ((b'x-close',), ()),
         ((b'',), ()), ((), (b'keep-alive',))),
        (False, b'1.1', ((b'close',), ()), ((b'CLOSE',), ()), ((b'keep-alive, close',), ()),
         ((b'foo ,\tClose\t, bar',), ()), ((b'keep-alive', b'close'), ()), ((b'close', b'keep-alive'), ()),
         ((), (b'close',)), ((), (b'Close',)), ((), (b'te, close',)), ((), (b'te', b'close')),
         ((b'keep-alive',), (b'close',))),
        (True, b'1.0', ((b'Keep-Alive',), ()), ((b'foo, keep-alive',), ()), ((b'foo', b'keep-alive'), ())),
        (False, b'1.0', ((), ()), ((), (b'keep-alive',)), ((b'foo',), ()), ((b'close',), ()), ((b'keep-alive-x',), ()),
         ((b'keep-alive, close',), ()), ((b'keep-alive', b'close'), ()), ((b'keep-alive',), (b'close',))),
    )

    async def test_a_connection_is_used_again_if_it_persists(self):
        for expected, version, *fields in self.CASES:
            for response, sent in fields:
                with self.subTest((version, response, sent)):
                    named, sent_named = (
                        lowhaio.by_name(((b'a', b'close'),) + tuple((b'connection', value) for value in values))
                        for values in (response, sent))
                    self.assertIs(lowhaio.keep_alive_seconds(version, named, 15) == 15
                                  and not lowhaio.asks_to_close(sent_named), expected)
                    lines = b''.join(b'Connection: ' + value + b'\r\n' for value in response)
                    url = self.url(whole(
                        b'HTTP/' + version + b' 200 OK\r\n' + lines + b'content-length: 5\r\n\r\nhello'))
                    request, _ = self.pool()
                    accepted = self.accepted
                    for _ in range(3):
                        _, _, body = await request(b'GET', url, headers=[(b'Connection', value) for value in sent])
                        self.assertEqual(await buffered(body), b'hello')
                    self.assertEqual(self.accepted - accepted, 1 if expected else 3)

    def test_the_servers_keep_alive_is_its_timeout_in_seconds(self):
        for values, expected in (
                ((), None), ((b'timeout=5',), 5), ((b'max=7, Timeout=5',), 5), ((b'max=7', b'timeout=5'), 5),
                ((b' timeout = "5" ',), 5), ((b'timeout=5, timeout=6',), 5), ((b'timeout',), None),
                ((b'timeout=',), None), ((b'timeout=-5',), None), ((b'timeout=5.5',), None), ((b'XtimeoutX=5',), None),
                ((b'timeout=X5X',), None), ((b'xtimeout=5',), None), ((b'timeout=' + b'9' * 400,), float('inf')),
        ):
            with self.subTest(values):
                named = lowhaio.by_name([(b'keep-alive', value) for value in values])
                seconds = 999 if expected is None else expected - lowhaio.KEEP_ALIVE_MARGIN
                self.assertEqual(lowhaio.keep_alive_seconds(b'1.1', named, 999), min(999, seconds))
                self.assertEqual(lowhaio.keep_alive_seconds(b'1.1', named, 3), min(3, seconds))

    async def test_a_response_that_is_complete_with_its_head_gives_its_connection_back_before_request_returns(self):
        for method, wire, content in (
                (b'HEAD', with_length(b'5', b''), b''),
                (b'DELETE', b'HTTP/1.1 204 No Content\r\n\r\n', b''),
                (b'GET', b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n', b''),
                (b'GET', CONTINUE + OK_EMPTY, b''),
                (b'GET', chunked_response(LAST_CHUNK), b''),
                (b'GET', with_length(b'5'), b'hello'),
                (b'GET', chunked_response(b'5\r\nhello\r\n', LAST_CHUNK), b'hello'),
                (b'GET', chunked_response(b'5\r\nhello\r\n0\r\nconnection: close\r\n\r\n'), b'hello'),
        ):
            with self.subTest(wire):
                url = self.url(whole(wire))
                sockets = ClientSockets()
                request, _ = self.pool(set_sock_options=sockets)
                accepted = self.accepted
                # None of whose bodies is touched, or let go of, while the requests go on
                responses = [await request(method, url) for _ in range(3)]
                self.assertEqual((self.accepted - accepted, sockets.count_open()), (1, 1))
                self.assertEqual([await buffered(body) for _, _, body in responses], [content] * 3)

    async def test_a_connection_with_surplus_is_not_used_again(self):
        for wire, method, body in (
                (with_length(b'5', b'hello!'), b'POST', b'hello'),
                (OK_EMPTY + b'!', b'POST', b''),
                (OK_EMPTY + OK_EMPTY, b'POST', b''),
                (with_length(b'5'), b'HEAD', b''),
                (b'HTTP/1.1 204 No Content\r\n\r\nx', b'POST', b''),
                (chunked_response(LAST_CHUNK, b'\r\n'), b'POST', b''),
                (chunked_response(b'5\r\nhello\r\n', LAST_CHUNK, LAST_CHUNK), b'POST', b'hello'),
        ):
            for kwargs in ({}, {'recv_bufsize': 1}):
                with self.subTest((wire, kwargs)):
                    url = self.url(whole(wire))
                    # Byte by byte, the surplus is in the socket when the response is complete. A POST is not saved by
                    # being sent again.
                    request, _ = self.pool(**kwargs)
                    accepted = self.accepted
                    for _ in range(3):
                        code, _, response = await request(method, url)
                        self.assertEqual((code[:2], await buffered(response)), (b'20', body))
                    self.assertEqual(self.accepted - accepted, 3)

    async def test_a_body_until_close_leaves_nothing_to_use_again(self):
        request, made = self.scripted(OK + b'\r\n', b'hello')
        for _ in range(2):
            _, _, body = await request(b'GET', 'http://h/')
            self.assertEqual(await buffered(body), b'hello')
        self.assertEqual([connection.is_closed for connection in made], [True, True])


class ReuseTests(ExchangeTestCase):

    async def test_the_most_recently_idle_connection_is_taken_first(self):
        for order in ((0, 1), (1, 0)):
            with self.subTest(order=order):
                finish = [threading.Event(), threading.Event()]

                def begin(number, peer, finish=finish):
                    peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n')
                    finish[number].wait(TEST_SECONDS)
                    peer.send(b'-')
                port = self.serve(*(
                    answering(functools.partial(begin, number), reply_of(b'%d' % number)) for number in range(2)))
                request, close = self.pool()
                bodies = [(await request(b'GET', 'http://127.0.0.1:%d/' % port))[2] for _ in range(2)]
                for number in order:
                    finish[number].set()
                    self.assertEqual(await buffered(bodies[number]), b'-')
                self.assertEqual([await self.text(request, port) for _ in range(3)], [b'%d' % order[1]] * 3)
                # The other one is kept too, for when there are two requests at once.
                both = await asyncio.gather(self.text(request, port), self.text(request, port))
                self.assertEqual(sorted(both), [b'0', b'1'])
                await close()

    async def test_a_connection_is_only_for_the_host_it_was_opened_for(self):
        port = self.serve(*numbered())
        request, _ = self.pool(get_dns_resolver=FakeNames({'one.test': ['127.0.0.1'], 'two.test': ['127.0.0.1']}))
        hosts = ('one.test', 'two.test', '127.0.0.1', 'one.test', 'two.test', '127.0.0.1')
        self.assertEqual([await self.text(request, port, host) for host in hosts], [b'0', b'1', b'2'] * 2)

    async def test_a_connection_is_only_for_the_port_it_was_opened_for(self):
        ports = self.serve(answering(reply_of(b'one'))), self.serve(answering(reply_of(b'two')))
        request, _ = self.pool()
        self.assertEqual([await self.text(request, port) for port in ports * 2], [b'one', b'two'] * 2)
        self.assertEqual(self.accepted, 2)

    async def test_a_connection_is_only_for_the_scheme_it_was_opened_for(self):
        context = server_context()

        def over_tls(peer):
            peer.sock = context.wrap_socket(peer.sock, server_side=True)
            self._peers.append(peer.sock)
            answering(reply_of(b'over tls'))(peer)
        port = self.serve(answering(reply_of(b'plain')), over_tls)
        request, _ = self.pool()
        schemes = ('http', 'https', 'http', 'https')
        self.assertEqual([await self.text(request, port, scheme=scheme) for scheme in schemes],
                         [b'plain', b'over tls'] * 2)

    async def test_the_default_port_given_or_not_is_one_port(self):
        port = self.serve(*numbered())
        opened = []

        async def connect(scheme, host, asked_port, *args):
            opened.append((scheme, host, asked_port))
            return await lowhaio.connect_directly(scheme, host, port, *args)
        request, _ = self.pool(connect=connect)
        for url in ('http://127.0.0.1/', 'http://127.0.0.1:80/', 'http://127.0.0.1:/'):
            _, _, body = await request(b'GET', url)
            self.assertEqual(await buffered(body), b'0')
        self.assertEqual(opened, [('http', '127.0.0.1', 80)])

    async def test_an_idle_connection_is_closed_when_its_time_is_over(self):
        for timeout, fields, least, most in (
                (0.2, (), 0.2, 10),
                (0.2, (b'keep-alive: timeout=60',), 0.2, 10),  # the server's word shortens, and never lengthens
                (0.2, (b'keep-alive: timeout=soon',), 0.2, 10),
                (60, (b'keep-alive: timeout=1',), 0, 1),       # and it must be over before the server's own is
                (60, (b'Keep-Alive: max=100, timeout=1',), 0, 1),
        ):
            with self.subTest(timeout=timeout, fields=fields):
                times = []
                port = self.serve(times_of_close(times, reply_of(b'x', *fields)))
                sockets = ClientSockets()
                request, close = self.pool(keep_alive_timeout=timeout, set_sock_options=sockets)
                await self.text(request, port)
                await self.closed_at(times, 1)
                self.assertGreaterEqual(times[0], least * 0.9)
                self.assertLess(times[0], most)
                self.assertEqual(sockets.count_open(), 0)
                await close()

    async def closed_at(self, times, count):
        until = time.monotonic() + TEST_SECONDS / 2
        while len(times) < count and time.monotonic() < until:
            await asyncio.sleep(0.01)
        self.assertEqual(len(times), count)

    async def test_each_idle_connection_has_its_own_time_though_they_share_a_timer(self):
        times = [], []
        ports = [self.serve(times_of_close(own, reply_of(b'x'))) for own in times]
        request, _ = self.pool(keep_alive_timeout=0.4)
        await self.text(request, ports[0])
        await asyncio.sleep(0.2)
        await self.text(request, ports[1])
        for own in times:
            await self.closed_at(own, 1)
            self.assertGreaterEqual(own[0], 0.36)
            self.assertLess(own[0], 10)

    async def test_a_connection_with_less_time_is_closed_before_one_that_was_idle_earlier(self):
        patient, hasty = [], []
        ports = [self.serve(times_of_close(patient, reply_of(b'x'))),
                 self.serve(times_of_close(hasty, reply_of(b'x', b'keep-alive: timeout=2')))]
        request, close = self.pool(keep_alive_timeout=60)
        await self.text(request, ports[0])
        await self.text(request, ports[1])
        await self.closed_at(hasty, 1)
        self.assertLess(hasty[0], 2)
        self.assertEqual(patient, [])
        await close()
        await self.closed_at(patient, 1)

    async def test_a_servers_timeout_of_some_seconds_leaves_time_for_reuse(self):
        port = self.serve(*[answering(reply_of(b'%d' % n, b'keep-alive: timeout=3')) for n in range(3)])
        request, _ = self.pool()
        self.assertEqual([await self.text(request, port) for _ in range(3)], [b'0'] * 3)

    async def test_a_connection_whose_time_is_over_is_not_reused_though_the_timer_had_no_turn(self):
        port = self.serve(*numbered())
        request, _ = self.pool(keep_alive_timeout=0.1)
        self.assertEqual(await self.text(request, port), b'0')
        time.sleep(0.15)  # blocks the loop, as an application may: that is the point
        self.assertEqual(await self.text(request, port), b'1')

    async def test_a_connection_has_one_timer_for_its_waits_and_its_idleness_and_none_when_it_is_closed(self):
        if USE_UVLOOP:
            self.skipTest('uvloop keeps its timers to itself')
        ask, gone = threading.Event(), threading.Event()

        def closing(peer):
            peer.read_head()
            peer.send(reply_of())
            ask.wait(TEST_SECONDS)
            peer.half_close()
            peer.read_to_close()
            gone.set()
        request, close = self.pool(keep_alive_timeout=1000, socket_timeout=900)
        for port in [self.serve(answering(reply_of())) for _ in range(3)]:
            await self.text(request, port)
        self.assertEqual(self.timers_beyond(500), 3)
        await self.text(request, self.serve(closing))
        self.assertEqual(self.timers_beyond(500), 4)
        ask.set()
        await self.happens(gone)
        self.assertEqual(self.timers_beyond(500), 3)
        await close()
        self.assertEqual(self.timers_beyond(500), 0)

    async def test_a_connection_that_is_used_again_and_again_makes_no_further_timers(self):
        if USE_UVLOOP:
            self.skipTest('uvloop keeps its timers to itself')
        for keep_alive_timeout, socket_timeout in ((1000, 900), (900, 1000)):
            with self.subTest((keep_alive_timeout, socket_timeout)):
                request, _ = self.pool(keep_alive_timeout=keep_alive_timeout, socket_timeout=socket_timeout)
                port = self.serve(answering(*[reply_of() for _ in range(20)]))
                await self.text(request, port)
                with mock.patch.object(self.loop, 'call_at', side_effect=self.loop.call_at) as call_at:
                    for _ in range(19):
                        await self.text(request, port)
                self.assertEqual([args for _, args, _ in call_at.mock_calls if args[0] > self.loop.time() + 500], [])

    async def test_what_ends_an_idle_connection_has_it_replaced_before_anything_is_sent(self):
        def close_notify(peer):
            peer.sock.settimeout(0)
            with contextlib.suppress(OSError):  # the client's own is not waited for
                peer.sock.unwrap()
            peer.sock.settimeout(PATIENCE)

        async def happen(is_blocking):
            ask.set()
            if is_blocking:  # so that only a look at the socket itself can tell
                self.assertTrue(left.wait(PATIENCE))
            else:
                await self.happens(left if in_body or leave is RESET else gone)

        async def body():
            if in_body:
                await happen(is_blocking)
            yield b'01234'
            yield b'56789'

        # A POST from a generator is sent once only, so that its answer says over which connection it went.
        for tls, leave, in_body, is_blocking in itertools.product(
                (None, tls_server()), (reply_of(b'unasked'), HALF_CLOSE, RESET, close_notify),
                (False, True), (False, True)):
            if leave is (RESET if tls else close_notify):
                continue
            with self.subTest((tls is not None, leave, in_body, is_blocking)):
                ask, left, gone, record = self.hold(), threading.Event(), threading.Event(), Record()
                after = () if leave is RESET else (DRAIN, lambda peer, gone=gone: gone.set())
                url = self.url(
                    scripted(HEAD, reply_of(b'0'), ask, leave, lambda peer, left=left: left.set(), *after,
                             record=record),
                    scripted(HEAD, Read(10), reply_of(b'1'), record=record), tls=tls)
                sockets = ClientSockets()
                request, _ = self.pool(set_sock_options=sockets, keep_alive_timeout=1000)
                _, _, response = await request(b'GET', url)
                self.assertEqual((await buffered(response), sockets.count_open()), (b'0', 1))
                if not in_body:
                    await happen(is_blocking)
                    if not is_blocking and leave is not RESET:
                        self.assertEqual(sockets.count_open(), 0, 'it is noticed at once')
                _, _, response = await request(b'POST', url, headers=((b'content-length', b'10'),), body=body())
                self.assertEqual(await buffered(response), b'1')
                first, second = map(bytes, record.connections)
                self.assertNotIn(b'POST', first)
                self.assertTrue(second.endswith(b'\r\n\r\n0123456789'))

    async def test_all_dead_connections_are_passed_over_until_a_living_one(self):
        ask = threading.Event()
        closed = [threading.Event(), threading.Event()]
        begun = threading.Barrier(2)

        def dying(event, peer):
            peer.read_head()
            begun.wait(TEST_SECONDS)  # both are in use at once
            peer.send(reply_of())
            ask.wait(TEST_SECONDS)
            peer.half_close()
            event.set()
            self.assertNotIn(b'POST', peer.read_to_close())

        async def body():
            ask.set()
            for event in closed:
                self.assertTrue(event.wait(TEST_SECONDS))
            yield b'x'
        port = self.serve(*(functools.partial(dying, event) for event in closed), answering(reply_of(b'living')))
        request, _ = self.pool()
        await asyncio.gather(self.text(request, port), self.text(request, port))
        self.assertEqual(await self.text(request, port, method=b'POST', body=body()), b'living')
        self.assertEqual(self.accepted, 3)

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
                    url = self.url(script, tls=tls)
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
        url = self.url(closes)
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=CountedBody(b'x')()))
        self.assertEqual((error.reused, error.answered), (False, False))
