"""What is sent again, and what is not: a reused connection that the server closes before one byte of answer.
RFC 9110 §9.2.2, RFC 9112 §9.3.1"""
import asyncio
import collections
import threading

import lowhaio
from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpDataTimeout, HttpProtocolError, buffered,
    streamed,
)
from reliability.harness import (
    CONTINUE, OK, OK_EMPTY, PATIENCE, TEST_SECONDS, Peer, pieces_of, refusing_port, tls_server,
)
from reliability.scripted import ABORT, CLOSE, DRAIN, HEAD, RESET, SILENT, Record, scripted
from tests.bodies import BodyAgain, BodyMethods, BodyOfItsOwn, BodyOnce, CountedBody, pieces_again
from tests.peers import LAST_CHUNK, MUCH, ExchangeTestCase, answering, reply_after_body, reply_of


def REQUEST(peer):
    """Reads a request whose body, if it has one, is abcde"""
    head = peer.read_head()
    if b'chunked' in head:
        peer.read_until(LAST_CHUNK)
    elif b'content-length: 5' in head:
        peer.read(5)


class GeneratorAsIterator:
    async def __aiter__(self):
        yield b'ab'
        yield b'cde'


def one_generator():
    generator = pieces_of(b'ab', b'cde')
    return lambda: generator


# Functions that make a body anew, for each row.
NONE, GENERATOR, ITERATOR = lambda: None, lambda: pieces_of(b'ab', b'cde'), lambda: BodyOnce(b'ab', b'cde')
FUNCTION, ITERABLE, STREAMED = lambda: CountedBody(b'ab', b'cde'), lambda: BodyAgain(b'ab', b'cde'), \
    lambda: streamed(b'abcde')
OTHERS_AGAIN = (lambda: pieces_again, lambda: BodyMethods().give, lambda: BodyOfItsOwn, GeneratorAsIterator,
                lambda: lambda: streamed(b'abcde'))
LENGTH, CHUNKED = ((b'content-length', b'5'),), ((b'transfer-encoding', b'chunked'),)
CLOSED, ANSWERED = (REQUEST, ABORT), (REQUEST, OK_EMPTY)

Row = collections.namedtuple('Row', 'what method body headers second third error reused answered')


def row(what, method, body=NONE, headers=(), second=CLOSED, third=ANSWERED, error=None, reused=True, answered=False):
    """What the second request of a connection meets, and the third, over the next connection; without an error it is
    sent twice, and answered"""
    return Row(what, method, body, headers, second, third, error, reused, answered)


ROWS = (
    *(row('idempotent', method, second=(REQUEST, end))
      for method in (b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE') for end in (ABORT, RESET, CLOSE)),
    *(row('a body that can be had again', method, body, headers) for method in (b'GET', b'PUT', b'DELETE', b'OPTIONS')
      for body in (FUNCTION, ITERABLE, STREAMED) for headers in (LENGTH, CHUNKED, ())),
    *(row('a body that can be had again', b'PUT', body, headers) for body in OTHERS_AGAIN for headers in (LENGTH, ())),
    row('a generator that gives nothing', b'PUT', lambda: pieces_of(b'')),
    *(row('any other method', method, body, error=HttpConnectionClosedError)
      for method in (b'POST', b'PATCH', b'PURGE', b'PROPFIND', b'get') for body in (NONE, FUNCTION, STREAMED)),
    *(row('a body that cannot be had again', b'PUT', body, headers, error=HttpConnectionClosedError)
      for body in (GENERATOR, ITERATOR, one_generator) for headers in (LENGTH, ())),
    *(row('a byte of answer', method, body, second=(REQUEST, begun, ABORT), error=HttpConnectionClosedError,
          answered=True)
      for begun in (b'H', OK, CONTINUE, OK + b'content-length: 5\r\n\r\n')
      for method, body in ((b'GET', NONE), (b'PUT', ITERABLE))),
    row('once only', b'GET', third=CLOSED, error=HttpConnectionClosedError, reused=False),
    row('once only, and its body', b'PUT', ITERABLE, third=CLOSED, error=HttpConnectionClosedError, reused=False),
    row('nonsense', b'GET', second=(REQUEST, b'nonsense\r\n\r\n'), error=HttpProtocolError, answered=True),
    row('silence', b'GET', second=(REQUEST, SILENT), error=HttpDataTimeout),
)


class SentAgainTests(ExchangeTestCase):

    async def test_what_is_sent_again_is_sent_twice_alike_and_all_else_once(self):
        for tls in (None, tls_server()):
            for each in ROWS:
                with self.subTest((tls is not None, each.what, each.method, each.headers, each.second)):
                    await self.check(each, tls)

    async def check(self, each, tls):
        record = Record()
        url = self.url(scripted(HEAD, OK_EMPTY, *each.second, record=record), scripted(*each.third, record=record),
                       tls=tls)
        request, _ = self.pool(socket_timeout=0.3 if SILENT in each.second else PATIENCE)
        await request(b'GET', url)
        before = len(record.received)
        body = each.body()

        async def whole():
            code, _, response = await request(each.method, url, headers=each.headers, body=body)
            await buffered(response)
            return code

        if each.error is None:
            self.assertEqual(await whole(), b'200')
        else:
            error = await self.raises(each.error, whole())
            self.assertEqual((error.reused, error.answered), (each.reused, each.answered))
        is_twice = each.error is None or not each.reused
        first = bytes(record.connections[0])[before:]
        # A connection may be opened in vain, where only the body shows that it has been played.
        self.assertEqual([bytes(other) for other in record.connections[1:] if other], [first] if is_twice else [])
        self.assertTrue(first.startswith(each.method + b' / '))
        self.assertEqual(first.count(b'cde'), each.body is not NONE and each.what != 'a generator that gives nothing')
        # Each iterator that was begun is closed, and none is begun in vain.
        self.assertEqual(getattr(body, 'begun', 1 + is_twice), 1 + is_twice)
        self.assertEqual(getattr(body, 'ended', 1 + is_twice), 1 + is_twice)
        self.assertEqual(getattr(body, 'closed', 1), 1)

    async def test_on_a_fresh_connection_nothing_is_sent_again(self):
        for end in (ABORT, RESET):
            for method, body in ((b'GET', None), (b'PUT', CountedBody(b'ab', b'cde'))):
                with self.subTest((end, method)):
                    record = Record()
                    request, _ = self.pool()
                    error = await self.raises(HttpConnectionClosedError, request(
                        method, self.url(scripted(REQUEST, end, record=record)), body=body))
                    self.assertEqual((error.reused, error.answered, len(record.connections)), (False, False, 1))
                    self.assertEqual(getattr(body, 'begun', 1), 1)

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
        self.assertEqual((self.accepted, len(seen)), (3, 4))

    async def test_a_body_that_breaks_off_while_it_is_sent_is_sent_again(self):
        port = self.serve(answering(reply_of(), Peer.reset), answering(reply_after_body(MUCH, b'done')))
        request, _ = self.pool()
        await self.text(request, port)
        headers = ((b'content-length', b'%d' % MUCH),)
        body = CountedBody(*[bytes(MUCH // 4)] * 4)
        self.assertEqual(await self.text(request, port, method=b'PUT', headers=headers, body=body), b'done')
        self.assertEqual((body.begun, body.ended), (2, 2))

    async def test_what_the_callers_body_raises_is_the_callers_each_time_it_is_played(self):
        # A body may itself be a response, as in a proxy, and break off with the very same class of error.
        raised = HttpConnectionClosedError('The upstream connection was closed')
        raised.reused, raised.answered = False, True
        for times, second, expected in ((1, DRAIN, (True, False)), (2, REQUEST, (False, False))):
            with self.subTest(times):
                begun = []

                async def body(begun=begun, times=times):
                    begun.append(True)
                    if len(begun) == times == 2:
                        raise raised
                    yield b'x'
                    if times == 1:
                        raise raised
                url = self.url(scripted(HEAD, OK_EMPTY, second), scripted(DRAIN))
                request, _ = self.pool()
                await request(b'GET', url)
                error = await self.raises(HttpBodyError, request(b'PUT', url, body=body))
                self.assertIs(error.__cause__, raised)
                self.assertIn(str(raised), str(error))
                self.assertEqual((error.reused, error.answered), expected)
                self.assertEqual((raised.reused, raised.answered), (False, True), 'is left untouched')
                self.assertEqual(len(begun), times)

    async def test_after_it_was_sent_no_error_says_that_nothing_was(self):
        async def body():
            await asyncio.sleep(0.2 if not ports else 0)  # while the second connection is closed
            yield b'x'

        async def connect(scheme, host, _, *args):
            return await lowhaio.connect_directly(scheme, host, ports.pop(0), *args)

        for what, second, given in (('none to be had', refusing_port(), None),
                                    ('one that is closed before its use', self.serve(CLOSE), body)):
            with self.subTest(what):
                ports = [self.serve(scripted(HEAD, OK_EMPTY, REQUEST)), second]
                request, _ = self.pool(connect=connect)
                await self.text(request, 80)
                error = await self.raises(HttpConnectionClosedError, self.text(request, 80, method=b'PUT', body=given))
                self.assertEqual((error.reused, error.answered, ports), (True, False, []))
                self.assertIsInstance(error.__cause__, HttpConnectionError)
