"""What is answered before an upload is whole: an early 2xx does not stop it, all else does. RFC 9112 §9.5"""
import asyncio
import contextlib
import itertools
import queue
import socket
import threading
import time

from lowhaio import HttpConnectionClosedError, HttpDataTimeout, HttpHeaderTooLong, HttpProtocolError, buffered, streamed
from reliability.harness import (
    CONTINUE, OK, OK_EMPTY, PATIENCE, TOO_LARGE, ClientSockets, ScriptedConnection, in_thread, pieces_of,
    server_context, tls_server,
)
from reliability.scripted import CLOSE, DRAIN, HALF_CLOSE, HEAD, RESET, SILENT, Read, Record, scripted
from tests.bodies import BodyOnce, BodyWithoutEnd, SmallPieces
from tests.peers import ExchangeTestCase

SIZE = 4000000  # of an upload that the buffers of the kernel do not swallow
PIECE = bytes(range(250)) * 40


def of_code(code, body=b'early'):
    return b'HTTP/1.1 %b Early\r\ncontent-length: %d\r\n\r\n%b' % (code, len(body), body)


class EarlySuccessTests(ExchangeTestCase):

    def uploads(self):
        """(what, arguments of the request, what follows its head on the wire)"""
        count = SIZE // len(PIECE)
        chunk = b'%x\r\n%b\r\n' % (len(PIECE), PIECE)
        length = ((b'content-length', b'%d' % SIZE),)
        return (
            ('by length, in pieces', dict(headers=length, body=pieces_of(*[PIECE] * count)), PIECE * count),
            ('by length, one piece', dict(body=streamed(PIECE * count)), PIECE * count),
            ('chunked', dict(body=pieces_of(*[PIECE] * count)), chunk * count + b'0\r\n\r\n'),
            ('after 100', dict(headers=length + ((b'expect', b'100-continue'),), body=streamed(PIECE * count)),
             PIECE * count),
        )

    def serve_early(self, answer, read, tls=None):
        """The url of a server that answers after 1,000 bytes of the body, does `read`, and then waits for a GET. `got`
        is a queue of the bodies that came"""
        def script(peer):
            head = peer.read_head()
            if b'100-continue' in head:
                peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            got.put(peer.read(1000))
            for each in answer:
                peer.send(each) if isinstance(each, bytes) else each(peer)
            read(peer, got)
            if peer.sock.fileno() != -1 and peer.read_head():
                peer.send(OK_EMPTY)

        got = queue.Queue()
        scheme = 'https' if tls else 'http'
        return f'{scheme}://127.0.0.1:{self.serve(script, tls=tls)}/', got

    def post(self, url, **kwargs):
        sockets = ClientSockets((socket.SOL_SOCKET, socket.SO_SNDBUF, 65536))
        request, _ = self.pool(set_sock_options=sockets,
                               socket_timeout=kwargs.pop('socket_timeout', PATIENCE),
                               recv_bufsize=kwargs.pop('recv_bufsize', 262144))
        return request, sockets, request(b'POST', url, **kwargs)

    async def test_a_server_that_answers_and_reads_on_gets_all(self):
        chunked = OK + b'transfer-encoding: chunked\r\n\r\n5\r\nearly\r\n0\r\n\r\n'
        for tls in (None, server_context()):
            for answer in ((of_code(b'200'),), (of_code(b'201')[:20], of_code(b'201')[20:]), (of_code(b'299'),),
                           (chunked,), (b'HTTP/1.1 102 P\r\n\r\n', of_code(b'200'))):
                for what, arguments, wire in self.uploads():
                    with self.subTest((tls is not None, answer, what)):
                        def read(peer, got, wire=wire):
                            got.put(peer.read(len(wire) - 1000))

                        url, got = self.serve_early(answer, read, tls)
                        accepted = self.accepted
                        request, _, posting = self.post(url, **arguments)
                        code, _, body = await posting
                        self.assertEqual((code[:1], await buffered(body), body.sent_all), (b'2', b'early', True))
                        self.assertTrue(got.get() + got.get() == wire)
                        await request(b'GET', url)  # and the connection serves again
                        self.assertEqual(self.accepted, accepted + 1)

    async def test_the_sending_is_decided_at_300(self):
        def read(peer, got):
            got.put(peer.read_to_close() if code >= b'300' or code < b'200' else peer.read(SIZE - 1000))

        for code in (b'200', b'204', b'206', b'299', b'300', b'304', b'308', b'400', b'413', b'500', b'599', b'600',
                     b'999', b'099'):
            with self.subTest(code):
                answer = of_code(code) if code not in (b'204', b'304') else b'HTTP/1.1 %b E\r\n\r\n' % code
                url, got = self.serve_early((answer,), read)
                _, _, posting = self.post(url, body=streamed(bytes(SIZE)))
                answered, _, body = await posting
                await buffered(body)
                self.assertEqual((answered, body.sent_all), (code, code.startswith(b'2')))
                count = len(got.get()) + len(await in_thread(got.get, True, PATIENCE))
                self.assertEqual(count == SIZE, code.startswith(b'2'))

    async def test_the_answer_may_come_in_pieces_while_the_upload_goes_on(self):
        def read(peer, got):
            count = 1000
            for _ in range(10):
                count += len(peer.read(50000))
                peer.send(b'5\r\npiece\r\n')
            count += len(peer.read(SIZE - count))
            peer.send(b'0\r\n\r\n')
            got.put(count)

        for tls in (None, server_context()):
            url, got = self.serve_early((OK + b'transfer-encoding: chunked\r\n\r\n',), read, tls)
            _, _, posting = self.post(url, body=streamed(bytes(SIZE)))
            _, _, body = await posting
            self.assertEqual((await buffered(body), body.sent_all), (b'piece' * 10, True))
            got.get()
            self.assertEqual(got.get(), SIZE)

    async def test_a_body_that_waits_is_neither_interrupted_nor_stopped(self):
        async def pieces():
            yield bytes(1000)
            await in_thread(answered.wait, PATIENCE)
            for _ in range(10):
                await asyncio.sleep(0.001)
                yield bytes(1000)

        for tls in (None, server_context()):
            answered = threading.Event()
            url, got = self.serve_early(
                (of_code(b'200'), lambda peer, event=answered: event.set()),
                lambda peer, got: got.put(peer.read(10000)), tls)
            _, _, posting = self.post(url, headers=((b'content-length', b'11000'),), body=pieces())
            _, _, body = await posting
            self.assertEqual((await buffered(body), body.sent_all, len(got.get() + got.get())), (b'early', True, 11000))

    async def test_where_the_connection_ends_first_the_answer_says_that_not_all_was_sent(self):
        ends = (('fin', lambda peer, got: peer.close()), ('no close_notify', lambda peer, got: peer.abort()),
                ('half', lambda peer, got: (peer.half_close(), peer.read_to_close())),
                ('reset', lambda peer, got: peer.reset()))
        for tls, (what, end), (_, arguments, _) in itertools.product(
                (None, server_context()), ends, self.uploads()):
            if tls and what in ('half', 'reset'):  # of the TCP beneath it the wrapped socket has neither
                continue
            with self.subTest((tls is not None, what)):
                url, _ = self.serve_early((of_code(b'200'),), end, tls)
                _, sockets, posting = self.post(url, **dict(arguments, body=streamed(bytes(SIZE))))
                code, _, body = await posting
                self.assertEqual((code, await buffered(body), body.sent_all), (b'200', b'early', False))
                self.assertEqual(sockets.count_open(), 0)

    async def test_an_answer_that_is_cut_off_says_so_after_what_is_good(self):
        good = OK + b'content-length: 9\r\n\r\nearly'
        for tls in (None, server_context()):
            for answer, end, raised in (
                    (good, lambda peer, got: peer.abort(), HttpConnectionClosedError),
                    (good, lambda peer, got: peer.abort() if hasattr(peer.sock, 'unwrap') else peer.reset(),
                     HttpConnectionClosedError),
                    (OK + b'transfer-encoding: chunked\r\n\r\n5\r\nearly\r\nnonsense\r\n',
                     lambda peer, got: peer.read(SIZE - 1000), HttpProtocolError)):
                with self.subTest((tls is not None, answer)):
                    url, _ = self.serve_early((answer,), end, tls)
                    _, sockets, posting = self.post(url, body=streamed(bytes(SIZE)))
                    code, _, body = await posting
                    self.assertEqual((code, await body.__anext__()), (b'200', b'early'))
                    error = await self.raises(raised, body.__anext__())
                    self.assertTrue(error.answered)
                    self.assertEqual(sockets.count_open(), 0)

    async def test_a_reset_behind_an_early_answer_is_its_bodys(self):
        class Reset(ScriptedConnection):
            """Takes one piece at a time, and has the answer, and then a reset, after the first"""
            def receive(self):
                if len(self.calls) < 2:
                    return None
                if not self.pieces:
                    raise ConnectionResetError('reset')
                return self.pieces.pop(0)

        async def connect(*endpoint):
            made.append(Reset(endpoint, [answer]))
            return made[-1]

        for answer, content, is_whole in (
                (of_code(b'200'), b'early', True), (OK + b'content-length: 9\r\n\r\nearly', b'early', False),
                (OK + b'content-length: 9\r\n\r\n', b'', False), (OK + b'\r\nearly', b'early', False)):
            with self.subTest(answer):
                made = []
                request, _ = self.pool(connect=connect)
                code, _, body = await request(b'POST', 'http://h/', body=pieces_of(b'one', b'two', b'three'))
                self.assertEqual((code, body.sent_all, made[0].is_closed), (b'200', False, True))
                got = b''
                with contextlib.suppress(HttpConnectionClosedError):
                    async for piece in body:
                        got += piece
                    self.assertTrue(is_whole)
                self.assertEqual(got, content)
                if not is_whole:
                    await self.raises(HttpConnectionClosedError, body.__anext__())

    async def test_a_server_that_answers_and_stops_reading_is_a_timeout_of_the_sending(self):
        for tls in (None, server_context()):
            for answer in (of_code(b'200'), OK + b'content-length: 9\r\n\r\nearly'):
                with self.subTest((tls is not None, answer)):
                    gone = threading.Event()
                    url, _ = self.serve_early((answer,), lambda peer, got, gone=gone: gone.wait(PATIENCE), tls)
                    _, sockets, posting = self.post(url, socket_timeout=0.5, body=streamed(bytes(30 * SIZE)))
                    error = await self.raises(HttpDataTimeout, posting)
                    gone.set()
                    self.assertEqual((error.answered, error.sending), (True, True))
                    self.assertEqual(sockets.count_open(), 0)

    async def test_of_a_long_answer_no_more_is_held_than_a_receive_and_64_kib(self):
        def offer(peer):
            """Sends as much of an endless answer as is taken now"""
            peer.sock.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.sock.send(bytes(10000))
            peer.sock.settimeout(PATIENCE)

        def read(peer, got):
            while peer.read(50000):
                offer(peer)
                time.sleep(0.001)  # so that the client is blocked now and then

        for size in (10000, 500000):
            url, _ = self.serve_early((OK + b'content-length: 100000000\r\n\r\n', offer), read)
            request, _ = self.pool(recv_bufsize=size, socket_timeout=PATIENCE)
            _, _, body = await request(b'POST', url, body=streamed(bytes(5 * SIZE)))
            held = len(await body.__anext__())
            self.assertTrue(body.sent_all)
            self.assertTrue(min(size, 65536) <= held <= size + 65536, held)
            await body.aclose()

    async def test_after_expect_no_body_is_sent_to_a_server_that_has_answered(self):
        def script(peer):
            peer.read_head()
            peer.send(of_code(b'200'))
            got.put(peer.read_to_close())

        got = queue.Queue()
        request, _ = self.pool(expect_timeout=PATIENCE)
        code, _, body = await request(b'POST', f'http://127.0.0.1:{self.serve(script)}/', body=streamed(b'hello'),
                                      headers=((b'expect', b'100-continue'),))
        self.assertEqual((code, await buffered(body), body.sent_all), (b'200', b'early', False))
        self.assertEqual(await in_thread(got.get, True, PATIENCE), b'')


class EarlyRefusalTests(ExchangeTestCase):
    """A 413 in a large upload, whatever the server does then, is in reliability/life.py too"""

    def uploads(self):
        return (
            ('chunked', (), BodyWithoutEnd(bytes(65536))),
            ('a length', ((b'content-length', b'1000000000000'),), BodyWithoutEnd(bytes(65536))),
            ('one large piece', ((b'content-length', b'%d' % (1 << 25)),), BodyOnce(bytes(1 << 25))),
            ('small pieces', (), BodyWithoutEnd(b'x' * 100)),
            ('small pieces with pauses', (), SmallPieces(b'x' * 100)),
        )

    async def test_a_413_in_an_upload_of_any_kind_is_a_413_and_its_connection_is_not_used_again(self):
        for tls, (begun, ending) in itertools.product(
                (None, tls_server()), ((0, CLOSE), (100000, RESET), (0, SILENT), (100000, DRAIN))):
            for what, headers, body in self.uploads():
                with self.subTest((tls is not None, ending.__name__, begun, what)):
                    url = self.url(scripted(HEAD, Read(begun), TOO_LARGE, ending), scripted(HEAD, OK_EMPTY), tls=tls)
                    accepted = self.accepted
                    request, _ = self.pool()
                    code, response_headers, response = await request(b'POST', url, headers=headers, body=body)
                    self.assertEqual((code, response_headers, await buffered(response), body.closed),
                                     (b'413', ((b'content-length', b'9'),), b'too large', 1))
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 2)

    async def test_an_answer_whose_body_comes_later_is_read_whole(self):
        begun, content = self.hold(), bytes(range(256)) * 2000
        request, _ = self.pool()
        code, _, response = await request(b'POST', self.url(scripted(
            HEAD, b'HTTP/1.1 413 X\r\ncontent-length: %d\r\n\r\n' % len(content), begun, content, SILENT)),
            body=BodyWithoutEnd(bytes(65536)))
        begun.set()
        self.assertEqual(code, b'413')
        self.assertTrue(await buffered(response) == content)

    async def test_a_slow_body_is_not_sent_on_when_the_answer_is_in(self):
        # The server reads on, as many do for a while, so that no send ever blocks, nor fails.
        class Slow(BodyWithoutEnd):
            async def __anext__(self):
                if self.asked == 1:
                    await in_thread(answered.wait)
                if pause:
                    await asyncio.sleep(0)
                return await super().__anext__()

        for tls, pause in itertools.product((None, tls_server()), (True, False)):
            with self.subTest((tls is not None, pause)):
                answered = threading.Event()
                body = Slow(b'x' * 10, at_most=300)
                request, _ = self.pool()
                code, _, response = await request(b'POST', self.url(
                    scripted(HEAD, TOO_LARGE, lambda peer, event=answered: event.set(), DRAIN), tls=tls), body=body)
                self.assertEqual((code, await buffered(response)), (b'413', b'too large'))
                self.assertLess(body.asked, 50)

    async def test_a_body_that_waits_is_not_timed_and_is_interrupted_by_a_refusal(self):
        class Waits(BodyWithoutEnd):
            interrupted = False

            async def __anext__(self):
                if self.asked == 1:
                    try:
                        await go_on.wait()
                    except asyncio.CancelledError:
                        self.interrupted = True
                        raise
                return await super().__anext__()

        answering, answered, go_on = threading.Event(), threading.Event(), asyncio.Event()
        body = Waits(bytes(65536))
        request, _ = self.pool(socket_timeout=0.1)
        task = asyncio.ensure_future(request(b'POST', self.url(scripted(
            HEAD, lambda peer: answering.wait(PATIENCE), TOO_LARGE, lambda peer: answered.set(), DRAIN)), body=body))
        await asyncio.sleep(0.3)  # thrice the timeout
        self.assertFalse(task.done())
        answering.set()
        is_heard = hasattr(asyncio.Task, 'cancelling')  # before Python 3.11 at the next piece
        if not is_heard:
            await in_thread(answered.wait)
            await asyncio.sleep(0.1)
            self.assertFalse(task.done())
            go_on.set()
        code, _, response = await task
        self.assertEqual((code, await buffered(response), body.interrupted), (b'413', b'too large', is_heard))

    async def test_1xx_and_half_a_head_do_not_stop_an_upload(self):
        size = 4000000
        content = (bytes(range(251)) * (size // 251 + 1))[:size]
        for tls in (None, tls_server()):
            for what, early, last in (
                    ('102', (b'HTTP/1.1 102 Processing\r\n\r\n',), OK_EMPTY),
                    ('100 and 103', (CONTINUE, b'HTTP/1.1 103 E\r\nlink: x\r\n\r\n'), OK_EMPTY),
                    ('1xx in halves', (b'HTTP/1.1 1', b'02 Processing\r\n', b'\r\n'), OK_EMPTY),
                    ('half a head', (OK_EMPTY[:12],), OK_EMPTY[12:]),
                    ('a head but for its last byte', (OK_EMPTY[:-1],), OK_EMPTY[-1:]),
            ):
                with self.subTest((tls is not None, what)):
                    record = Record()
                    # By 100,000 bytes the client's next send blocks, or soon will.
                    steps = itertools.chain.from_iterable((Read(100000), each) for each in early)
                    url = self.url(scripted(HEAD, *steps, Read(size - 100000 * len(early)), last, HEAD, OK_EMPTY,
                                            record=record), tls=tls)
                    accepted = self.accepted
                    request, _ = self.pool()
                    code, _, response = await request(b'PUT', url, headers=((b'content-length', b'%d' % size),),
                                                      body=streamed(content))
                    self.assertEqual((code, await buffered(response)), (b'200', b''))
                    # The answer was complete after the whole body: nothing was early about it.
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)
                    self.assertTrue(content in record.received)

    async def test_any_other_answer_in_the_middle_of_an_upload_is_an_error(self):
        for answer, error in (
                (b'nonsense\r\n\r\n', HttpProtocolError),
                (b'HTTP/1.1 101 X\r\n\r\n', HttpProtocolError),
                (OK + b'a: ' + b'x' * 70000, HttpHeaderTooLong),
                (OK + b'a: b', HttpConnectionClosedError),
        ):
            with self.subTest(answer[:30]):
                request, _ = self.pool()
                body = BodyWithoutEnd(bytes(65536))
                raised = await self.raises(error, request(
                    b'POST', self.url(scripted(HEAD, answer, HALF_CLOSE, DRAIN)), body=body))
                self.assertEqual((raised.reused, raised.answered, body.closed), (False, True, 1))

    async def test_no_answer_at_all_in_the_middle_of_an_upload_is_an_error(self):
        for ending in ((CLOSE,), (RESET,), (HALF_CLOSE, DRAIN)):
            for what, headers, body in self.uploads():
                with self.subTest((ending, what)):
                    request, _ = self.pool()
                    error = await self.raises(HttpConnectionClosedError, request(
                        b'POST', self.url(scripted(HEAD, *ending)), headers=headers, body=body))
                    self.assertEqual((error.reused, error.answered, body.closed), (False, False, 1))
