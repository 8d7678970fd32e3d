"""What is sent again, and what is not"""
import asyncio
import threading

import lowhaio
from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpDataError, HttpDataTimeout, HttpDnsError,
    HttpProtocolError, buffered, streamed,
)
from reliability.harness import CONTINUE, OK, OK_EMPTY, TEST_SECONDS, Peer, pieces_of, refusing_port, server_context
from reliability.scripted import DRAIN
from tests.bodies import BodyAgain, BodyMethods, BodyOnce, CountedBody, pieces_again
from tests.peers import LAST_CHUNK, MUCH, ExchangeTestCase, answering, reply_after_body, reply_of


class SentAgainBodyTests(ExchangeTestCase):
    """A reused connection that the server closes before one byte of answer"""

    def server_that_closes(self, got, last=b'0\r\n\r\n', times=1):
        """A server whose first connections answer once, and close when the second request is in"""
        def closes(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            got.append(peer.read_until(last))

        def answers(peer):
            data = peer.read_until(last)
            got.append(data)
            if data:
                peer.send(OK_EMPTY)

        def closes_at_once(peer):
            got.append(peer.read_until(last))

        return self.url(closes, *([closes_at_once] * (times - 1) + [answers]))

    async def test_a_body_that_can_be_sent_again_is(self):
        for method in (b'PUT', b'DELETE', b'GET', b'OPTIONS'):
            for what, body in (
                    ('a function', pieces_again),
                    ('an async generator function', BodyMethods().give),
                    ('an iterable', BodyAgain(b'ab', b'cde')),
                    ('streamed', streamed(b'abcde')),
                    ('a generator that gives nothing', pieces_of(b'')),
            ):
                with self.subTest((method, what)):
                    got = []
                    end = {'streamed': b'\r\n\r\nabcde', 'a generator that gives nothing': b'\r\n\r\n'}.get(
                        what, b'\r\nab\r\n3\r\ncde\r\n0\r\n\r\n')
                    url = self.server_that_closes(got, end)
                    accepted = self.accepted
                    request, _ = self.pool()
                    await request(b'GET', url)
                    code, _, _ = await request(method, url, body=body)
                    self.assertEqual(code, b'200')
                    self.assertEqual(self.accepted, accepted + 2)
                    first, second = got
                    self.assertEqual(first, second)
                    self.assertTrue(second.endswith(end))

    async def test_no_body_is_sent_again_too(self):
        for method in (b'GET', b'HEAD', b'PUT', b'DELETE', b'OPTIONS', b'TRACE'):
            with self.subTest(method):
                got = []
                url = self.server_that_closes(got, b'\r\n\r\n')
                request, _ = self.pool()
                await request(b'GET', url)
                code, _, _ = await request(method, url)
                self.assertEqual(code, b'200')
                self.assertEqual(len(got), 2)
                self.assertEqual(got[0], got[1])

    async def test_nothing_else_is_sent_twice(self):
        def same_generator():
            generator = pieces_of(b'ab', b'cde')
            return lambda: generator

        for what, method, body in (
                ('POST and a function', b'POST', pieces_again),
                ('PATCH and a function', b'PATCH', pieces_again),
                ('another method and a function', b'PROPFIND', pieces_again),
                ('POST and streamed', b'POST', streamed(b'abcde')),
                ('a generator', b'PUT', pieces_of(b'ab', b'cde')),
                ('an iterator', b'PUT', BodyOnce(b'ab', b'cde')),
                ('a function that returns one generator', b'PUT', same_generator()),
        ):
            with self.subTest(what):
                got = []
                url = self.server_that_closes(got, b'cde' if what == 'POST and streamed' else b'0\r\n\r\n')
                request, _ = self.pool()
                await request(b'GET', url)
                error = await self.raises(HttpConnectionClosedError, request(method, url, body=body))
                self.assertEqual((error.reused, error.answered), (True, False))
                self.assertEqual([data.count(b'cde') for data in got if data], [1])
                self.assertEqual(getattr(body, 'closed', 1), 1)

    async def test_nothing_else_without_a_body_is_sent_twice(self):
        for method in (b'POST', b'PATCH', b'PROPFIND'):
            with self.subTest(method):
                got = []
                url = self.server_that_closes(got, b'\r\n\r\n')
                accepted = self.accepted
                request, _ = self.pool()
                await request(b'GET', url)
                error = await self.raises(HttpConnectionClosedError, request(method, url))
                self.assertEqual((error.reused, error.answered), (True, False))
                self.assertEqual((len(got), self.accepted), (1, accepted + 1))

    async def test_it_is_sent_again_once(self):
        got = []
        url = self.server_that_closes(got, times=2)
        request, _ = self.pool()
        await request(b'GET', url)
        body = BodyAgain(b'ab', b'cde')
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=body))
        self.assertEqual((error.reused, error.answered), (False, False))
        self.assertEqual((len(got), body.count, self.accepted), (2, 2, 2))

    async def test_on_a_fresh_connection_nothing_is_sent_again(self):
        def script(peer):
            peer.read_until(b'0\r\n\r\n')

        request, _ = self.pool()
        url = self.url(script)
        body = BodyAgain(b'ab')
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=body))
        self.assertEqual((error.reused, error.answered, body.count, self.accepted), (False, False, 1, 1))

    async def test_after_a_byte_of_answer_nothing_is_sent_again(self):
        for begun in (b'H', OK, CONTINUE, OK + b'content-length: 5\r\n\r\n'):
            with self.subTest(begun):
                def script(peer, begun=begun):
                    peer.read_head()
                    peer.send(OK_EMPTY)
                    peer.read_until(b'0\r\n\r\n')
                    peer.send(begun)

                url = self.url(script)
                accepted = self.accepted
                request, _ = self.pool()
                await request(b'GET', url)
                body = BodyAgain(b'ab')
                with self.assertRaises(HttpConnectionClosedError) as caught:
                    _, _, response = await request(b'PUT', url, body=body)
                    await buffered(response)
                error = caught.exception
                self.assertEqual((error.reused, error.answered, body.count), (True, True, 1))
                self.assertEqual(self.accepted, accepted + 1)


class SentAgainTests(ExchangeTestCase):

    async def reused(self, *scripts, **kwargs):
        """A request function of a pool that has an idle connection, whose script has answered once, and the port"""
        port = self.serve(*scripts, **kwargs)
        request, _ = self.pool(socket_timeout=kwargs.get('socket_timeout', 10))
        await self.text(request, port, scheme='https' if kwargs.get('tls') else 'http')
        return request, port

    async def test_an_idempotent_request_is_sent_again_where_a_reused_connection_was_closed_without_an_answer(self):
        for method in (b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'):
            for name, leave in (('closed', Peer.abort), ('reset', Peer.reset)):
                with self.subTest(method=method, how=name):
                    seen = []
                    request, port = await self.reused(
                        answering(reply_of(), leave, seen=seen, number=0), answering(reply_of(), seen=seen, number=1))
                    await self.text(request, port, method=method)
                    self.assertEqual(seen, [(0, b'GET'), (0, method), (1, method)])

    async def test_over_tls_too(self):
        for name, leave in (('close_notify', Peer.close), ('closed', Peer.abort)):
            with self.subTest(name):
                seen = []
                request, port = await self.reused(
                    answering(reply_of(), leave, seen=seen, number=0),
                    answering(reply_of(b'again'), seen=seen, number=1), tls=server_context())
                self.assertEqual(await self.text(request, port, scheme='https'), b'again')
                self.assertEqual(seen, [(0, b'GET'), (0, b'GET'), (1, b'GET')])

    async def test_any_other_request_is_not_and_its_error_says_what_was_known(self):
        for method in (b'POST', b'PATCH', b'PURGE', b'get'):
            with self.subTest(method=method):
                seen = []
                request, port = await self.reused(
                    answering(reply_of(), Peer.abort, seen=seen, number=0), answering(reply_of(), seen=seen, number=1))
                error = await self.raises(HttpConnectionClosedError, self.text(request, port, method=method))
                self.assertEqual((error.reused, error.answered), (True, False))
                self.assertEqual(seen, [(0, b'GET'), (0, method)])

    async def test_nor_is_one_on_a_fresh_connection(self):
        for name, leave in (('closed', Peer.abort), ('reset', Peer.reset)):
            with self.subTest(name):
                seen = []
                port = self.serve(answering(leave, seen=seen))
                request, _ = self.pool()
                error = await self.raises(HttpConnectionClosedError, self.text(request, port))
                self.assertEqual((error.reused, error.answered), (False, False))
                self.assertEqual(seen, [(0, b'GET')])

    async def test_nor_is_one_of_whose_answer_a_single_byte_came(self):
        for part in (b'H', b'HTTP/1.1 200 OK\r\n', b'HTTP/1.1 100 Continue\r\n\r\n'):
            with self.subTest(part=part):
                def cut(peer, part=part):
                    peer.send(part)
                    peer.abort()
                seen = []
                request, port = await self.reused(
                    answering(reply_of(), cut, seen=seen, number=0), answering(reply_of(), seen=seen, number=1))
                error = await self.raises(HttpConnectionClosedError, self.text(request, port))
                self.assertEqual((error.reused, error.answered), (True, True))
                self.assertEqual(seen, [(0, b'GET'), (0, b'GET')])

    async def test_nor_one_that_timed_out_or_was_answered_by_nonsense(self):
        for error_class, reply in (
                (HttpDataTimeout, lambda peer: peer.read_to_close()),
                (HttpProtocolError, b'nonsense\r\n\r\n'),
        ):
            with self.subTest(error_class=error_class):
                seen = []
                port = self.serve(
                    answering(reply_of(), reply, seen=seen, number=0), answering(reply_of(), seen=seen, number=1))
                request, _ = self.pool(socket_timeout=0.3)
                await self.text(request, port)
                error = await self.raises(error_class, self.text(request, port))
                self.assertEqual((error.reused, error.answered), (True, error_class is HttpProtocolError))
                self.assertEqual(seen, [(0, b'GET'), (0, b'GET')])

    async def test_it_is_sent_again_once_only(self):
        seen = []
        request, port = await self.reused(
            answering(reply_of(), Peer.abort, seen=seen, number=0), answering(Peer.abort, seen=seen, number=1))
        error = await self.raises(HttpConnectionClosedError, self.text(request, port))
        self.assertEqual((error.reused, error.answered), (False, False))
        self.assertEqual(seen, [(0, b'GET'), (0, b'GET'), (1, b'GET')])

    async def test_it_is_sent_again_on_a_fresh_connection_though_another_idles(self):
        # The other one is as likely to be dead, and there is no third time.
        seen = []
        begun = threading.Barrier(2)

        def first(peer):
            begun.wait(TEST_SECONDS)
            peer.send(reply_of())
        port = self.serve(
            answering(first, Peer.abort, seen=seen), answering(first, Peer.abort, seen=seen),
            answering(reply_of(b'fresh'), seen=seen))
        request, _ = self.pool()
        await asyncio.gather(self.text(request, port), self.text(request, port))
        self.assertEqual(await self.text(request, port), b'fresh')
        self.assertEqual(self.accepted, 3)
        self.assertEqual(len(seen), 4)

    async def test_bodies_that_can_be_had_again_are_sent_again(self):
        class Iterable:
            async def __aiter__(self):
                yield b'0123'
                yield b'4567'

        counted = CountedBody(b'0123', b'4567')
        for name, body in (
                ('function', counted), ('iterable', Iterable()), ('streamed', streamed(b'01234567')),
                ('lambda', lambda: streamed(b'01234567')),
        ):
            with self.subTest(name):
                got = []

                def whole(peer, got=got):
                    got.append(peer.read(8))
                    peer.send(reply_of(b'done'))

                def lost(peer, got=got):
                    got.append(peer.read(8))
                    peer.abort()
                request, port = await self.reused(answering(reply_of(), lost), answering(whole))
                headers = ((b'content-length', b'8'),)
                self.assertEqual(await self.text(request, port, method=b'PUT', headers=headers, body=body), b'done')
                self.assertEqual(got, [b'01234567'] * 2)
        self.assertEqual((counted.begun, counted.ended), (2, 2))

    async def test_a_body_that_breaks_off_while_it_is_sent_is_sent_again(self):
        request, port = await self.reused(answering(reply_of(), Peer.reset), answering(reply_after_body(MUCH, b'done')))
        headers = ((b'content-length', b'%d' % MUCH),)
        body = CountedBody(*[bytes(MUCH // 4)] * 4)
        self.assertEqual(await self.text(request, port, method=b'PUT', headers=headers, body=body), b'done')
        self.assertEqual((body.begun, body.ended), (2, 2))

    async def test_a_generator_is_never_sent_again(self):
        counted = CountedBody(b'01234567')
        iterator = counted()

        class OwnIterator:
            def __aiter__(self):
                return self

            async def __anext__(self):
                if self.pieces:
                    return self.pieces.pop()
                raise StopAsyncIteration

            pieces = [b'01234567']

        for name, body in (('generator', counted()), ('iterator', OwnIterator()),
                           ('function that returns one generator twice', lambda: iterator)):
            with self.subTest(name):
                seen = []

                def lost(peer):
                    peer.read(8)
                    peer.abort()
                request, port = await self.reused(
                    answering(reply_of(), lost, seen=seen, number=0),
                    answering(reply_after_body(8), seen=seen, number=1))
                headers = ((b'content-length', b'8'),)
                await self.raises(
                    HttpConnectionClosedError,
                    self.text(request, port, method=b'PUT', headers=headers, body=body))
                self.assertEqual(seen, [(0, b'GET'), (0, b'PUT')])
        self.assertEqual((counted.begun, counted.ended), (2, 2))

    async def test_what_the_callers_body_raises_is_not_taken_for_the_connections_failure(self):
        # A body may itself be a response, as in a proxy, and break off with the very same class of error.
        raised = []

        async def generate():
            yield b'01'
            error = HttpConnectionClosedError('The upstream connection was closed')
            error.reused, error.answered = False, True
            raised.append(error)
            raise error
        seen = []
        gone = threading.Event()

        def script(peer):
            answering(reply_of(), lambda peer: peer.read_to_close() and gone.set(), seen=seen, number=0)(peer)
        request, port = await self.reused(script, answering(reply_after_body(8), seen=seen, number=1))
        headers = ((b'content-length', b'8'),)
        error = await self.raises(
            HttpBodyError, self.text(request, port, method=b'PUT', headers=headers, body=generate))
        await self.happens(gone)
        self.assertIs(error.__cause__, raised[0])
        self.assertEqual(len(raised), 1)
        self.assertEqual((raised[0].reused, raised[0].answered), (False, True), 'is left untouched')
        self.assertEqual((error.reused, error.answered), (True, False))
        self.assertEqual(seen, [(0, b'GET'), (0, b'PUT')])

    async def test_where_there_is_no_second_connection_the_error_still_says_that_something_was_sent(self):
        ports = []

        async def connect(scheme, host, _, *args):
            return await lowhaio.connect_directly(scheme, host, ports.pop(0), *args)
        ports += [self.serve(answering(reply_of(), Peer.abort)), refusing_port()]
        request, _ = self.pool(connect=connect)
        await self.text(request, 80)
        with self.assertRaises(HttpDataError) as caught:
            await self.text(request, 80)
        self.assertEqual((caught.exception.reused, caught.exception.answered), (True, False))
        self.assertEqual(ports, [])

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
        url = self.url(first, Peer.close)
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
        url = self.url(first, DRAIN)
        await request(b'GET', url)
        error = await self.raises(HttpBodyError, request(b'PUT', url, body=body))
        self.assertIsInstance(error.__cause__, HttpDnsError)
        self.assertIn('another', str(error))
