"""Bodies of requests: how they are framed, played, held to their length, and closed"""
import array
import asyncio
import ctypes
import functools
import itertools
import mmap
import queue
import socket
import threading
import time

from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpDataError, HttpDataTimeout, HttpDnsError,
    HttpError, HttpRequestError, buffered, streamed,
)
from reliability.harness import (
    CONTINUE, OK_EMPTY, PATIENCE, TOO_LARGE, Peer, in_thread, outcome, pieces_of, refusing_port, tls_server,
)
from reliability.scripted import DRAIN, HEAD, SILENT, Pause, Record, scripted
from tests.bodies import (
    BodyAgain, BodyMethods, BodyOfItsOwn, BodyOnce, BodyWithoutAclose, CountedBody, ResizedBody, pieces_again,
)
from tests.peers import LAST_CHUNK, ExchangeTestCase, chunked_response, reply_after_body


class RequestFramingTests(ExchangeTestCase):

    # method, headers, pieces of the body, what follows the host: field lines and body
    FRAMINGS = (
        # Neither, no body
        (b'GET', (), None, b'\r\n'),
        (b'HEAD', (), None, b'\r\n'),
        (b'DELETE', (), None, b'\r\n'),
        (b'OPTIONS', (), None, b'\r\n'),
        (b'PROPFIND', (), None, b'\r\n'),
        (b'POST', (), None, b'content-length: 0\r\n\r\n'),
        (b'PUT', (), None, b'content-length: 0\r\n\r\n'),
        (b'PATCH', (), None, b'content-length: 0\r\n\r\n'),
        # content-length
        (b'POST', ((b'content-length', b'0'),), None, b'content-length: 0\r\n\r\n'),
        (b'GET', ((b'Content-Length', b'0'),), None, b'Content-Length: 0\r\n\r\n'),
        (b'POST', ((b'content-length', b'0'),), (), b'content-length: 0\r\n\r\n'),
        (b'POST', ((b'content-length', b'0'),), (b'',), b'content-length: 0\r\n\r\n'),
        (b'POST', ((b'content-length', b'5'),), (b'ab', b'cde'), b'content-length: 5\r\n\r\nabcde'),
        (b'GET', ((b'CONTENT-length', b'5'), (b'b', b'c')), (b'ab', b'cde'), b'CONTENT-length: 5\r\nb: c\r\n\r\nabcde'),
        (b'PUT', ((b'content-length', b'5'),), (b'', b'ab', b'', b'cde', b''), b'content-length: 5\r\n\r\nabcde'),
        # transfer-encoding: chunked
        (b'POST', ((b'transfer-encoding', b'chunked'),), (b'ab', b'cde'),
         b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n'),
        (b'POST', ((b'Transfer-ENCODING', b'chunked'), (b'b', b'c')), (b'a' * 26,),
         b'Transfer-ENCODING: chunked\r\nb: c\r\n\r\n1a\r\n' + b'a' * 26 + b'\r\n0\r\n\r\n'),
        (b'POST', ((b'transfer-encoding', b'chunked'),), (b'', b'ab', b'', b'', b'cde', b''),
         b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n'),
        (b'POST', ((b'transfer-encoding', b'chunked'),), (), b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        (b'POST', ((b'transfer-encoding', b'chunked'),), (b'', b''), b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        # A head that says chunked must be followed by a last chunk, or the server waits for it.
        (b'POST', ((b'transfer-encoding', b'chunked'),), None, b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        # Neither, a body
        (b'POST', (), (b'ab', b'cde'), b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n'),
        (b'PUT', ((b'b', b'c'),), (b'abcde',), b'b: c\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n'),
        (b'GET', (), (b'ab',), b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n'),
    )

    async def test_the_headers_that_the_caller_gave_frame_the_body(self):
        for method, headers, pieces, sent in self.FRAMINGS:
            with self.subTest((method, headers, pieces)):
                body = None if pieces is None else pieces_of(*pieces)
                self.assertEqual(await self.sent(method, 'http://h/', headers=headers, body=body),
                                 method + b' / HTTP/1.1\r\nhost: h\r\n' + sent)

    # Fields of the caller's that frame the body, or none; the body's own `content_length`; its pieces; then, with the
    # method POST and with DELETE, what follows the host; or the error
    SIZES = (
        # The caller's own field comes first, and then the body's length is not looked at.
        ((b'content-length', b'2'), 3, (b'ab',), b'content-length: 2\r\n\r\nab', None),
        ((b'content-length', b'2'), 'x', (b'ab',), b'content-length: 2\r\n\r\nab', None),
        ((b'content-length', b'2'), 0, (b'ab',), b'content-length: 2\r\n\r\nab', None),
        ((b'transfer-encoding', b'chunked'), 3, (b'ab',),
         b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n', None),
        ((b'transfer-encoding', b'chunked'), -1, (), b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n', None),
        ((b'transfer-encoding', b'chunked'), 0, (), b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n', None),
        # Then the body's, which it is held to
        (None, 5, (b'ab', b'', b'cde'), b'content-length: 5\r\n\r\nabcde', None),
        (None, 1, (b'a',), b'content-length: 1\r\n\r\na', None),
        (None, 5, (), HttpBodyError, None),
        (None, 5, (b'abcd',), HttpBodyError, None),
        (None, 5, (b'abcd', b'ef'), HttpBodyError, None),
        (None, 2 ** 63 - 1, (b'a',), HttpBodyError, None),
        ((b'expect', b'100-continue'), 2, (b'ab',), b'expect: 100-continue\r\ncontent-length: 2\r\n\r\nab', None),
        # One of none is no body, and not begun.
        (None, 0, (b'never asked for',), b'content-length: 0\r\n\r\n', b'\r\n'),
        ((b'expect', b'100-continue'), 0, (b'never asked for',), HttpRequestError, None),
        # What is no length
        *[(None, size, (b'a',), HttpRequestError, None)
          for size in (-1, 2 ** 63, True, False, 1.0, '1', b'1', object())],
        # It is not said: with expect the body is not asked before the head.
        ((b'expect', b'100-continue'), None, (b'ab',),
         b'expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n', None),
        ((b'expect', b'100-continue'), None, (),
         b'expect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n', None),
        ((b'Expect', b'other'), None, (), b'Expect: other\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n', None),
        # What ends before its first byte is no body.
        (None, None, (), b'content-length: 0\r\n\r\n', b'\r\n'),
        (None, None, (b'', b''), b'content-length: 0\r\n\r\n', b'\r\n'),
        ((b'x', b'y'), None, (), b'x: y\r\ncontent-length: 0\r\n\r\n', b'x: y\r\n\r\n'),
        # Any other
        (None, None, (b'', b'ab'), b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n', None),
    )

    async def test_the_length_that_a_body_says_is_judged_in_its_turn(self):
        for field, size, pieces, by_post, by_delete in self.SIZES:
            for method in (b'POST', b'PUT', b'PATCH', b'DELETE', b'GET', b'HEAD'):
                sent = by_post if method.startswith(b'P') else by_delete or by_post
                for kind in (BodyAgain, BodyOnce):
                    with self.subTest((method, field, size, pieces, kind.__name__)):
                        body = kind(*pieces)
                        if size is not None:
                            body.content_length = size
                        request, made = self.scripted(CONTINUE, OK_EMPTY)
                        arguments = dict(headers=(field,) if field else (), body=body)
                        if isinstance(sent, type):
                            await self.raises(sent, request(method, 'http://h/', **arguments))
                            self.assertEqual(bool(made), sent is HttpBodyError)
                        else:
                            code, _, _ = await request(method, 'http://h/', **arguments)
                            self.assertEqual((code, b''.join(made[0].writes())),
                                             (b'200', method + b' / HTTP/1.1\r\nhost: h\r\n' + sent))
                            is_played = b'never asked for' not in pieces
                            self.assertEqual(bool(getattr(body, 'asked', 0) or getattr(body, 'count', 0)), is_played)

    async def test_the_length_of_a_body_is_that_of_what_was_given_and_remembered_for_nothing_else(self):
        class Sized(BodyAgain):
            content_length = 5

        for body, framing in (
                (Sized(b'abcde'), b'content-length: 5\r\n\r\nabcde'),
                (lambda: Sized(b'ab'), b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n'),
                (streamed(b'abc'), b'content-length: 3\r\n\r\nabc'),
                (streamed(array.array('H', [1, 2])), b'content-length: 4\r\n\r\n' + array.array('H', [1, 2]).tobytes()),
                (lambda: streamed(b'abc'), b'transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n'),
                (streamed(b''), b'content-length: 0\r\n\r\n'),
                (None, b'content-length: 0\r\n\r\n'),
                (lambda: pieces_of(), b'content-length: 0\r\n\r\n'),
                (lambda: pieces_of(b'a'), b'transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n'),
                (streamed(b'a'), b'content-length: 1\r\n\r\na'),
        ):
            with self.subTest(framing):
                sent = await self.sent(b'POST', 'http://h/', body=body)
                self.assertEqual(sent.partition(b'host: h\r\n')[2], framing)

    async def test_what_could_be_framed_in_two_ways_is_refused_before_a_connection_is_opened(self):
        length, other_length = (b'content-length', b'5'), (b'Content-Length', b'6')
        chunked = (b'transfer-encoding', b'chunked')
        await self.assert_refused(
            [(what, {'headers': headers, 'body': BodyOnce(b'ab', b'cde')}, sentence) for what, headers, sentence in (
                ('both', (length, chunked), 'both'),
                ('both, the other way round', (chunked, other_length), 'both'),
                ('two lengths', (length, other_length), 'more than one content-length'),
                ('two equal lengths', (length, (b'a', b'b'), length), 'more than one content-length'),
                ('two hosts', ((b'host', b'a'), (b'Host', b'a')), 'host'),
                ('chunked twice', (chunked, chunked), 'transfer-encoding'),
            )] +
            [(('another transfer-encoding', coding), {
                'headers': ((b'Transfer-Encoding', coding),), 'body': BodyOnce(b'a'),
            }, 'transfer-encoding') for coding in (
                b'gzip', b'gzip, chunked', b'chunked, gzip', b'chunked, chunked', b'identity', b'', b'xchunked',
                b'chunked;a=b', b'chunked,',
            )] +
            [(('another transfer-encoding, no body', coding), {
                'headers': ((b'transfer-encoding', coding),),
            }, 'transfer-encoding') for coding in (b'gzip', b'identity')] +
            [(('no length', value), {
                'headers': ((b'content-length', value),), 'body': BodyOnce(b'ab', b'cde'),
            }, 'length') for value in (
                b'', b'+5', b'-5', b'-0', b'5.0', b'0x5', b'5_0', b'5, 5', b'5 5', b'five', b'\xef\xbc\x95', b'\xb2',
                str(2 ** 63).encode('ascii'), b'9' * 5000,
            )] +
            [('a length but no body', {'headers': (length,)}, '5'),
             ('a length but no body, with GET', {'method': b'GET', 'headers': (length,)}, '5'),
             ('expect but no body', {'headers': ((b'Expect', b'100-continue'),)}, 'expect')])

    async def test_the_head_and_the_first_piece_leave_in_one_write(self):
        for what, headers, body, sent in (
                ('a length', ((b'content-length', b'5'),), pieces_of(b'ab', b'cde'),
                 [b'content-length: 5\r\n\r\nab', b'cde']),
                ('chunked', (), pieces_of(b'ab', b'cde'),
                 [b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n', b'3\r\ncde\r\n', b'0\r\n\r\n']),
                ('after an empty piece', ((b'content-length', b'2'),), pieces_of(b'', b'ab'),
                 [b'content-length: 2\r\n\r\nab']),
                ('streamed', ((b'content-length', b'2'),), streamed(b'ab'), [b'content-length: 2\r\n\r\nab']),
        ):
            with self.subTest(what):
                request, made = self.scripted(OK_EMPTY)
                await request(b'POST', 'http://h/', headers=headers, body=body)
                sent[0] = b'POST / HTTP/1.1\r\nhost: h\r\n' + sent[0]
                self.assertEqual(made[0].writes(), sent)

    async def test_the_head_and_the_first_piece_arrive_in_one_segment(self):
        received = queue.Queue()

        def script(peer):
            received.put(peer.sock.recv(65536))
            go_on.set()
            peer.read(2)
            peer.send(OK_EMPTY)

        async def body():
            yield b'ab'
            await in_thread(go_on.wait)
            yield b'cd'

        go_on = threading.Event()
        port = self.serve(script)
        request, _ = self.pool()
        await request(b'POST', 'http://127.0.0.1:{}/'.format(port), headers=((b'content-length', b'4'),), body=body())
        self.assertEqual(received.get(), b'POST / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\ncontent-length: 4\r\n\r\nab' % port)

    async def test_a_large_piece_is_sent_in_slices_of_at_most_64_kib(self):
        for size in (65535, 65536, 65537, 300000):
            piece = bytes(range(256)) * (size // 256) + b'x' * (size % 256)
            for what, headers, before, after in (
                    ('a length', ((b'content-length', str(size).encode('ascii')),), b'', b''),
                    ('chunked', (), b'%x\r\n' % size, b'\r\n0\r\n\r\n'),
            ):
                with self.subTest((what, size)):
                    request, made = self.scripted(OK_EMPTY)
                    await request(b'POST', 'http://h/', headers=headers, body=pieces_of(piece))
                    writes = made[0].writes()
                    self.assertLessEqual(max(map(len, writes)), 65536)
                    self.assertLessEqual(len(writes), size // 65536 + 4)
                    _, _, body = b''.join(writes).partition(b'\r\n\r\n')
                    self.assertEqual(body, before + piece + after)


class RequestBodyTests(ExchangeTestCase):

    def kinds(self):
        return (
            ('a generator', pieces_of(b'ab', b'cde')),
            ('a function', pieces_again),
            ('a lambda', lambda: pieces_of(b'ab', b'cde')),
            ('a partial', functools.partial(pieces_of, b'ab', b'cde')),
            ('an async generator function', BodyMethods().give),
            ('an object to call', BodyMethods()),
            ('a class', BodyOfItsOwn),
            ('an iterable', BodyAgain(b'ab', b'cde')),
            ('a function that returns an iterable', lambda: BodyAgain(b'ab', b'cde')),
            ('an iterator', BodyOnce(b'ab', b'cde')),
            ('an iterator without aclose', BodyWithoutAclose(b'ab', b'cde')),
            ('a function that returns streamed', lambda: streamed(b'abcde')),
            ('streamed', streamed(b'abcde')),
            ('bytearray', pieces_of(bytearray(b'ab'), bytearray(b'cde'))),
            ('memoryview', pieces_of(memoryview(b'xabx')[1:3], memoryview(bytearray(b'cde')))),
            # Bytes are counted, not items.
            ('array', pieces_of(array.array('H', (0x6162, 0x6364) if array.array('H', (1,)).tobytes()[0] == 0
                                            else (0x6261, 0x6463)), b'e')),
        )

    async def test_every_kind_of_body_is_sent(self):
        for what, body in self.kinds():
            with self.subTest(what):
                self.assertEqual(await self.sent(b'POST', 'http://h/', headers=((b'content-length', b'5'),), body=body),
                                 b'POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nabcde')

    async def test_a_response_body_can_be_the_body_of_a_request(self):
        request, _ = self.pool()
        _, _, body = await request(b'GET', self.url(scripted(HEAD, chunked_response(b'2\r\nab\r\n'), Pause(0.01),
                                                             b'3\r\ncde\r\n' + LAST_CHUNK)))
        self.assertEqual(await self.sent(b'POST', 'http://h/', headers=((b'content-length', b'5'),), body=body),
                         b'POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nabcde')

    async def test_a_body_may_fill_the_same_buffer_again(self):
        async def body():
            buffer = bytearray()
            for piece in (b'ab', b'', b'cde', b'f'):
                buffer += piece
                yield buffer
                buffer.clear()

        sent = await self.sent(b'POST', 'http://h/', headers=((b'content-length', b'6'),), body=body())
        self.assertTrue(sent.endswith(b'\r\n\r\nabcdef'))

    async def test_what_is_no_body_is_refused_with_a_pointer_to_streamed(self):
        async def coroutine_function():
            pass  # pragma: no cover

        coroutine = coroutine_function()
        await self.assert_refused(
            [(body, {'body': body}, 'streamed') for body in (
                b'', b'ab', bytearray(b'ab'), memoryview(b'ab'), 'ab', '',
            )] +
            [(body, {'body': body, 'headers': ((b'content-length', b'2'),)}, 'streamed') for body in (b'ab', 'ab')] +
            [(str(body), {'body': body}, 'body') for body in (0, 1, False, [b'ab'], (b'ab',), {}, coroutine, object())])
        coroutine.close()

    async def test_a_generator_that_has_ended_is_no_body(self):
        spent, closed, begun = pieces_of(b'ab'), pieces_of(b'ab'), pieces_of(b'ab', b'cde')
        await buffered(spent)
        await closed.aclose()
        await begun.__anext__()
        await self.assert_refused([('spent', {'body': spent}, 'played'), ('closed', {'body': closed}, 'played')])
        for body in (lambda: spent, lambda: closed):
            request, made = self.scripted(OK_EMPTY)
            error = await self.raises(HttpBodyError, request(b'POST', 'http://h/', body=body))
            self.assertIn('played', str(error))
            self.assertEqual(made[0].writes(), [])
        request, made = self.scripted(OK_EMPTY)
        await request(b'POST', 'http://h/', body=begun)
        self.assertIn(b'\r\n3\r\ncde\r\n', b''.join(made[0].writes()))

    async def test_a_piece_that_is_not_bytes_is_an_error(self):
        for piece in ('ab', 5, None, [97, 98], object()):
            for before in ((), (b'ab',)):
                for headers in ((), ((b'content-length', b'4'),)):
                    with self.subTest((piece, before, headers)):
                        request, made = self.scripted(OK_EMPTY)
                        body = BodyOnce(*(before + (piece, b'cd')))
                        error = await self.raises(HttpBodyError, request(
                            b'PUT', 'http://h/', headers=headers, body=body))
                        self.assertIn(type(piece).__name__, str(error))
                        self.assertEqual((len(made), made[0].is_closed, body.closed), (1, True, 1))

    async def test_a_function_that_returns_no_body_is_an_error(self):
        async def coroutine_function():
            raise AssertionError('it is not awaited')

        expect = ((b'expect', b'100-continue'),)
        for (is_reused, headers), (body, kind) in itertools.product(((False, ()), (True, ()), (False, expect)), (
                (lambda: None, 'NoneType'), (lambda: b'ab', 'bytes'), (lambda: [b'ab'], 'list'), (lambda: 5, 'int'),
                (coroutine_function, 'coroutine'))):
            with self.subTest((is_reused, headers, kind)):
                request, made = self.scripted(OK_EMPTY if is_reused else CONTINUE)
                if is_reused:
                    await request(b'GET', 'http://h/')
                error = await self.raises(HttpBodyError, request(b'PUT', 'http://h/', headers=headers, body=body))
                self.assertIn(kind, str(error))
                self.assertEqual((error.reused, error.answered), (is_reused, bool(headers)))
                connection, = made
                # Where it expects, the head alone was sent before the body is asked for.
                self.assertEqual((connection.is_closed, len(connection.writes())), (True, is_reused + len(headers)))

    async def test_a_body_that_does_not_keep_to_its_length_is_an_error_and_closes_the_connection(self):
        # length, pieces, the numbers in the error's sentence, what was sent of the body at most
        for (length, pieces, numbers, at_most), kind in itertools.product((
                (5, (), '5 0', b''), (5, (b'',), '5 0', b''), (5, (b'ab',), '5 2', b'ab'),
                (5, (b'ab', b'cd'), '5 4', b'abcd'), (5, (b'abcdef',), '5 6', b'abcde'),
                (5, (b'abc', b'def'), '5 6', b'abcde'), (5, (b'abcde', b'f'), '5 6', b'abcde'),
                (0, (b'a',), '0 1', b''), (0, (b'', b'ab'), '0 2', b''),
        ), (BodyOnce, BodyAgain)):
            with self.subTest((length, pieces, kind.__name__)):
                # On a reused connection: even so an idempotent request whose body is wrong is not sent again.
                record = Record()
                url = self.url(scripted(HEAD, OK_EMPTY, HEAD, DRAIN, record=record), scripted(HEAD, OK_EMPTY))
                request, _ = self.pool()
                await request(b'GET', url)
                accepted = self.accepted
                body = kind(*pieces)
                error = await self.raises(HttpBodyError, request(
                    b'PUT', url, headers=((b'content-length', b'%d' % length),), body=body))
                self.assertIsInstance(error, ValueError)
                self.assertEqual((error.reused, error.answered), (True, False))
                for number in numbers.split():
                    self.assertIn(number, str(error))
                self.assertEqual(body.closed if kind is BodyOnce else body.count, 1)
                await request(b'GET', url)
                self.assertEqual(self.accepted, accepted + 1)
                # Never more than the length, else the rest would be the beginning of another request.
                head, _, sent = bytes(record.connections[0]).partition(b'\r\ncontent-length: %d\r\n\r\n' % length)
                self.assertTrue(at_most.startswith(sent))

    async def test_what_a_body_raises_passes_and_the_connection_is_closed(self):
        closed_error = HttpConnectionClosedError('of another request, whose response is this body')
        # Were it taken for an error of this exchange, the request would be sent again.
        closed_error.reused, closed_error.answered = True, False
        for error in (
                ValueError('v'), KeyError('k'), OSError('o'), ConnectionResetError('c'), BrokenPipeError('b'),
                socket.timeout('t'), asyncio.TimeoutError(), EOFError(), TypeError('t'), BlockingIOError(),
                HttpBodyError('b'), HttpDataError('d'), HttpConnectionError('c'), closed_error,
        ):
            for before in ((), (b'ab',), (b'ab', b'cde')):
                for headers in ((), ((b'content-length', b'5'),)):
                    for kind in (BodyOnce, BodyAgain):
                        with self.subTest((error, before, headers, kind.__name__)):
                            await self.assert_raised_by_body(error, before, headers, kind)
        self.assertEqual((closed_error.reused, closed_error.answered), (True, False))

    async def assert_raised_by_body(self, error, before, headers, kind):
        class Again(BodyAgain):
            def __aiter__(self):
                self.count += 1
                once.append(BodyOnce(*self.pieces))
                return once[-1]

        # An idempotent request on a reused connection: what is raised must not be taken for the server's closing.
        request, made = self.scripted(OK_EMPTY)
        await request(b'GET', 'http://h/')
        once = []
        body = (BodyOnce if kind is BodyOnce else Again)(*(before + (error,)))
        # An error of this module would say of this request what it says of another.
        is_ours = isinstance(error, HttpError)
        with self.assertRaises(HttpBodyError if is_ours else type(error)) as caught:
            await request(b'PUT', 'http://h/', headers=headers, body=body)
        self.assertIs(caught.exception.__cause__ if is_ours else caught.exception, error)
        self.assertIsNone(error.__cause__)
        if is_ours:
            self.assertIn(str(error), str(caught.exception))
            self.assertEqual((caught.exception.reused, caught.exception.answered), (True, False))
        connection, = made
        self.assertTrue(connection.is_closed)
        self.assertEqual([b.closed for b in ([body] if kind is BodyOnce else once)], [1])
        # The message must not look complete.
        self.assertFalse(connection.writes()[-1].endswith(b'0\r\n\r\n'))
        self.assertIn(len(connection.writes()) - 1, (len(before), 0))

    async def test_what_a_bodys_function_raises_passes_likewise(self):
        for error in (KeyError('k'), HttpConnectionError('c')):
            def body(error=error):
                raise error

            request, made = self.scripted(OK_EMPTY)
            with self.assertRaises((KeyError, HttpBodyError)) as caught:
                await request(b'PUT', 'http://h/', body=body)
            self.assertIs(caught.exception.__cause__ or caught.exception, error)
            self.assertEqual((made[0].writes(), made[0].is_closed), ([], True))

    async def test_what_closing_a_body_raises_replaces_no_error(self):
        class Closing(BodyOnce):
            def __init__(self, late, *pieces):
                super().__init__(*pieces)
                self.late = late

            async def aclose(self):
                self.closed += 1
                raise self.late

        late_of_ours = HttpConnectionError('of another request')
        for late in (KeyError('late'), late_of_ours, OSError('late'), asyncio.CancelledError()):
            for pieces in ((b'ab',), (b'ab', ValueError('first')), (b'ab', HttpDnsError('first'))):
                with self.subTest((late, pieces)):
                    request, made = self.scripted(OK_EMPTY)
                    body = Closing(late, *pieces)
                    with self.assertRaises(BaseException) as caught:
                        await request(b'PUT', 'http://h/', body=body)
                    error = caught.exception
                    if isinstance(late, asyncio.CancelledError):
                        self.assertIs(error, late)
                    elif len(pieces) == 1:
                        self.assertIs(error.__cause__ if late is late_of_ours else error, late)
                        self.assertIs(type(error), HttpBodyError if late is late_of_ours else type(late))
                    else:
                        self.assertIn('first', str(error))
                        self.assertIs(error.__context__, late)
                    self.assertEqual((body.closed, made[0].is_closed), (1, True))

    async def test_a_body_that_raises_leaves_the_server_with_half_a_message(self):
        record, gone = Record(), threading.Event()
        request, _ = self.pool()
        body = BodyOnce(b'ab', ValueError('of the body'))
        self.assertIs(await outcome(request(b'POST', self.url(scripted(
            DRAIN, lambda peer: gone.set(), record=record)), body=body)), ValueError)
        await self.happens(gone)
        self.assertTrue(record.received.endswith(b'\r\n\r\n2\r\nab\r\n'))
        self.assertEqual(body.closed, 1)

    async def test_a_body_is_not_begun_before_a_connection_stands(self):
        url = 'http://127.0.0.1:{}/'.format(refusing_port())
        request, _ = self.pool()
        generator, body = pieces_of(b'ab'), BodyOnce(b'ab')
        for each in (generator, body):
            error = await self.raises(HttpConnectionError, request(b'POST', url, body=each))
            self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertEqual((body.asked, body.closed), (0, 0))
        # Even the generator can be sent to where a connection can be made.
        self.assertTrue((await self.sent(b'POST', 'http://h/', body=generator)).endswith(b'\r\n2\r\nab\r\n0\r\n\r\n'))

    async def test_the_finally_of_a_generator_has_run_when_request_returns(self):
        async def body():
            try:
                while True:
                    yield bytes(65536)
            finally:
                await asyncio.sleep(0)
                ended.append(True)

        ended = []
        request, _ = self.pool()
        code, _, response = await request(b'POST', self.url(scripted(HEAD, TOO_LARGE, DRAIN)), body=body())
        self.assertEqual((code, ended, await buffered(response)), (b'413', [True], b'too large'))

    async def test_a_piece_that_was_released_or_closed_is_an_error_of_the_body(self):
        released = memoryview(b'x')
        released.release()
        closed = mmap.mmap(-1, 10)
        closed.close()
        for piece in (released, closed):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                url = self.url(lambda peer: peer.read_to_close())
                self.assertRaises(HttpRequestError, streamed, piece)
                error = await self.raises(HttpBodyError, request(b'PUT', url, body=CountedBody(piece)))
                self.assertIn('released' if piece is released else 'closed', str(error))
        for piece, sent in ((ctypes.c_int(5), bytes(ctypes.c_int(5))), (array.array('H', (1, 2)), b'\1\0\2\0')):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                port = self.serve(reply_after_body(len(sent)))
                headers = ((b'content-length', b'%d' % len(sent)),)
                await self.text(request, port, method=b'PUT', headers=headers, body=streamed(piece))

    async def test_the_callers_buffer_is_let_go_of_before_its_body_is_closed(self):
        for what, script, tls, fields, expected in (
                ('a peer that reads nothing', lambda peer: peer.sock.recv(1, socket.MSG_PEEK) and time.sleep(0.5), None,
                 (), HttpDataTimeout),
                ('the same over TLS', lambda peer: time.sleep(0.5), tls_server(), (), HttpDataTimeout),
                ('a reset', lambda peer: peer.read_head() and peer.reset(), None, (), HttpConnectionClosedError),
                ('a body too long', Peer.read_to_close, None, ((b'content-length', b'5'),), HttpBodyError),
                ('a cancellation', SILENT, None, (), asyncio.CancelledError),
        ):
            with self.subTest(what):
                request, _ = self.pool(socket_timeout=0.2 if expected is HttpDataTimeout else PATIENCE)
                body = ResizedBody()
                task = self.loop.create_task(request(b'PUT', self.url(script, tls=tls), headers=fields, body=body))
                if expected is asyncio.CancelledError:
                    await asyncio.sleep(0.2)
                    task.cancel()
                self.assertIs(await outcome(task), expected)
                self.assertTrue(body.is_closed)

    async def test_an_iterator_that_has_ended_is_not_asked_again(self):
        for pieces in ((), (b'x',)):
            with self.subTest(pieces):
                body = BodyOnce(*pieces)
                await self.sent(b'PUT', 'http://h/', body=body)
                self.assertEqual(body.asked, len(pieces) + 1)


class StreamedAndBufferedTests(ExchangeTestCase):

    async def test_streamed_and_buffered_are_inverse(self):
        for data in (b'', b'a', b'hello', bytes(range(256)) * 1000, bytes(1 << 20)):
            for kind in (bytes, bytearray, memoryview):
                with self.subTest((len(data), kind.__name__)):
                    body = streamed(kind(data))
                    self.assertEqual(body.content_length, len(data))
                    for again in (body, body(), body, body()):  # it can be sent again
                        content = await buffered(again)
                        self.assertIs(type(content), bytes)
                        self.assertTrue(content == data)

    async def test_buffered_takes_any_async_iterable_of_bytes(self):
        self.assertEqual(await buffered(pieces_of(b'ab', bytearray(b'c'), memoryview(b'de'))), b'abcde')
        self.assertEqual(await buffered(BodyAgain(b'ab')), b'ab')
        self.assertEqual(await buffered(pieces_of()), b'')

    async def test_streamed_is_sent_as_it_is(self):
        for data, headers, framed in (
                (b'', ((b'content-length', b'0'),), b'content-length: 0\r\n\r\n'),
                (b'hello', ((b'content-length', b'5'),), b'content-length: 5\r\n\r\nhello'),
                (b'', (), b'content-length: 0\r\n\r\n'),
                (b'hello', (), b'content-length: 5\r\n\r\nhello'),
                # An empty piece would be the last chunk.
                (b'', ((b'transfer-encoding', b'chunked'),), b'transfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
        ):
            with self.subTest((data, headers)):
                self.assertEqual(await self.sent(b'POST', 'http://h/', headers=headers, body=streamed(data)),
                                 b'POST / HTTP/1.1\r\nhost: h\r\n' + framed)

    async def test_streamed_takes_bytes_alone(self):
        for data in ('text', 5, None, [b'x']):
            with self.assertRaisesRegex(HttpRequestError, 'takes bytes, got ' + type(data).__name__):
                streamed(data)
        with self.assertRaisesRegex(HttpRequestError, 'contiguous'):
            streamed(memoryview(b'abcdef')[::2])
