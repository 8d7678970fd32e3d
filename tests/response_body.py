"""The body of a response: how it is handed over, given up, and never complete when it is not"""
import asyncio
import threading

import lowhaio
from lowhaio import (
    HttpConnectionClosedError, HttpDataError, HttpDataTimeout, HttpHeaderTooLong, HttpProtocolError, buffered,
)
from reliability.harness import OK, OK_EMPTY, PATIENCE, tls_server, turns
from reliability.scripted import HEAD, in_bytes, scripted
from tests.peers import CHUNKED, LAST_CHUNK, ExchangeTestCase, chunked_response, until_closed, with_length


class ResponseBodyTests(ExchangeTestCase):

    async def test_a_piece_is_handed_over_as_soon_as_it_is_received(self):
        for what, head, first, second, end in (
                ('a length', OK + b'content-length: 6\r\n\r\n', b'abc', b'def', b''),
                ('chunked', CHUNKED + b'\r\n', b'6\r\nabc', b'def\r\n', LAST_CHUNK),
                ('chunked, in its first chunk', CHUNKED + b'\r\n', b'3\r\nabc\r\n3', b'\r\ndef\r\n', LAST_CHUNK),
                ('until close', OK + b'connection: close\r\n\r\n', b'abc', b'def', b''),
        ):
            for with_head in (True, False):
                with self.subTest((what, with_head)):
                    has_head, has_first, has_second = self.hold(), self.hold(), self.hold()
                    begin = (head + first,) if with_head else (head, has_head, first)
                    request, _ = self.pool()
                    _, _, body = await request(b'GET', self.url(
                        scripted(HEAD, *begin, has_first, second, has_second, end)))
                    for event, piece in ((has_head, b'abc'), (has_first, b'def')):
                        event.set()
                        self.assertEqual(await body.__anext__(), piece)
                    has_second.set()
                    with self.assertRaises(StopAsyncIteration):
                        await body.__anext__()

    async def test_pieces_already_in_hand_are_merged(self):
        chunks = b''.join(b'%x\r\n%b\r\n' % (i, b'x' * i) for i in range(1, 50))
        size = sum(range(1, 50))
        request, _ = self.scripted(CHUNKED + b'\r\n', chunks, b'1\r\ny\r\n1\r\nz\r\n' + LAST_CHUNK)
        _, _, body = await request(b'GET', 'http://h/')
        self.assertEqual([piece async for piece in body], [b'x' * size, b'yz'])

    async def test_pieces_are_non_empty_bytes_no_longer_than_was_received_at_a_time(self):
        content = bytes(range(256)) * 400
        half = len(content) // 2
        for what, wire in (
                ('a length', OK + b'content-length: %d\r\n\r\n%b' % (len(content), content)),
                ('one chunk', chunked_response(b'%x\r\n' % len(content), content, b'\r\n', LAST_CHUNK)),
                ('two chunks', chunked_response(b'%x\r\n' % half, content[:half], b'\r\n%x\r\n' % half, content[half:],
                                                b'\r\n', LAST_CHUNK)),
                ('tiny chunks', chunked_response(b''.join(b'1\r\n%b\r\n' % each for each in in_bytes(content[:5000])),
                                                 b'%x\r\n' % (len(content) - 5000), content[5000:], b'\r\n',
                                                 LAST_CHUNK)),
                ('until close', OK + b'\r\n' + content),
        ):
            for tls in (None, tls_server()):
                for recv_bufsize in (1000, 65536):
                    with self.subTest((what, recv_bufsize, tls is not None)):
                        port = self.answer(wire, tls=tls)
                        request, _ = self.pool(recv_bufsize=recv_bufsize)
                        _, _, body = await request(
                            b'GET', '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port))
                        pieces = [piece async for piece in body]
                        self.assertTrue(b''.join(pieces) == content)
                        self.assertEqual({type(piece) for piece in pieces}, {bytes})
                        self.assertGreater(min(map(len, pieces)), 0)
                        self.assertLessEqual(max(map(len, pieces)), recv_bufsize)

    async def test_it_behaves_as_an_async_generator(self):
        for wire in (with_length(b'5'), chunked_response(b'5\r\nhello\r\n', LAST_CHUNK), OK_EMPTY, OK + b'\r\nhello'):
            with self.subTest(wire):
                request, _ = self.pool()
                _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(self.answer(wire)))
                self.assertIs(body.__aiter__(), body)
                self.assertEqual(b''.join([piece async for piece in body]), b'' if wire == OK_EMPTY else b'hello')
                for _ in range(2):
                    with self.assertRaises(StopAsyncIteration):
                        await body.__anext__()
                self.assertEqual(await buffered(body), b'')
                self.assertIsNone(await body.aclose())
                self.assertIsNone(await body.aclose())

    async def test_two_readers_at_once_are_an_error_which_does_not_disturb_the_first(self):
        go_on = self.hold()
        request, _ = self.pool()
        url = self.url(scripted(HEAD, OK + b'content-length: 6\r\n\r\n', go_on, b'abcdef'))
        _, _, body = await request(b'GET', url)
        first = asyncio.ensure_future(body.__anext__())
        await asyncio.sleep(0)
        for _ in range(2):
            error = await self.raises(HttpDataError, body.__anext__())
            self.assertEqual((error.reused, error.answered), (False, True))
        self.assertFalse(first.done())
        go_on.set()
        self.assertEqual((await first, await buffered(body)), (b'abcdef', b''))

    async def test_aclose_ends_a_read_that_another_task_waits_in(self):
        for tls in (None, tls_server()):
            for wire in (OK + b'content-length: 6\r\n\r\nabc', chunked_response(b'6\r\nabc'), OK + b'\r\nabc'):
                with self.subTest((wire, tls is not None)):
                    gone = threading.Event()
                    request, _ = self.pool()
                    _, _, body = await request(b'GET', self.url(until_closed(gone, wire), tls=tls))
                    self.assertEqual(await body.__anext__(), b'abc')
                    reader = asyncio.ensure_future(body.__anext__())
                    await turns(3)
                    self.assertFalse(reader.done())
                    await body.aclose()
                    error = await self.raises(HttpConnectionClosedError, asyncio.wait_for(reader, PATIENCE))
                    self.assertEqual((error.reused, error.answered), (False, True))
                    await self.happens(gone)

    async def test_a_body_that_failed_never_looks_complete(self):
        for what, wire, error in (
                ('a length', OK + b'content-length: 6\r\n\r\nabc', HttpConnectionClosedError),
                ('chunked', chunked_response(b'6\r\nabc'), HttpConnectionClosedError),
                ('chunked, malformed', chunked_response(b'3\r\nabc\r\n', b'x\r\n'), HttpProtocolError),
                ('chunked, too long', chunked_response(b'3\r\nabc\r\n1;', b'x' * 70000), HttpHeaderTooLong),
        ):
            for kwargs in ({}, {'recv_bufsize': 16}):
                with self.subTest((what, kwargs)):
                    request, _ = self.pool(**kwargs)
                    with self.assertRaises(error) as caught:
                        _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(self.answer(wire)))
                        while True:
                            await body.__anext__()
                    self.assertIs(type(caught.exception), error)
                    if kwargs:  # else the error may have come with the head
                        for _ in range(2):
                            with self.assertRaises(HttpDataError) as caught:
                                await buffered(body)
                            self.assertGreater(len(str(caught.exception)), 10)
                            self.assertIs(caught.exception.answered, True)
                        await body.aclose()

    async def test_a_body_that_timed_out_never_looks_complete(self):
        gone = threading.Event()
        request, _ = self.pool(socket_timeout=0.5)
        _, _, body = await request(b'GET', self.url(until_closed(gone, OK + b'content-length: 6\r\n\r\nabc')))
        self.assertEqual(await body.__anext__(), b'abc')
        error = await self.raises(HttpDataTimeout, body.__anext__())
        self.assertEqual((error.reused, error.answered), (False, True))
        await self.happens(gone)
        await self.raises(HttpConnectionClosedError, buffered(body))

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
