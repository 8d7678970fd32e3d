"""`expect: 100-continue`: the body waits for its invitation"""
import errno
import queue
import socket
import threading

from lowhaio import HttpConnectionClosedError, buffered, streamed
from reliability.harness import CONTINUE, OK_EMPTY, PATIENCE, TOO_LARGE, ScriptedConnection, in_thread, pieces_of
from reliability.scripted import in_bytes
from tests.bodies import BodyOnce
from tests.peers import ExchangeTestCase


class ExpectTests(ExchangeTestCase):

    EXPECT = (b'Expect', b'100-continue')

    async def test_the_body_waits_for_100(self):
        for headers, sent in (
                (((b'content-length', b'5'),), [b'abcde']),
                ((), [b'2\r\nab\r\n', b'3\r\ncde\r\n', b'0\r\n\r\n']),
        ):
            for interim in ([CONTINUE], in_bytes(CONTINUE), [b'HTTP/1.1 103 E\r\n\r\n', CONTINUE],
                            [b'HTTP/1.1 102 P\r\n\r\n' + CONTINUE[:5], CONTINUE[5:]]):
                for value in (b'100-continue', b'100-Continue'):
                    with self.subTest((headers, interim, value)):
                        request, made = self.scripted(*(interim + [OK_EMPTY]))
                        code, _, _ = await request(b'POST', 'http://h/', headers=headers + ((b'Expect', value),),
                                                   body=pieces_of(b'ab', b'cde'))
                        self.assertEqual(code, b'200')
                        calls = made[0].calls
                        head, calls = calls[0], calls[1:]
                        self.assertTrue(head[1].endswith(b'\r\n\r\n'))
                        self.assertEqual([data for name, data in calls[:len(interim)]], interim)
                        self.assertEqual(b''.join(data for name, data in calls[len(interim):-1]), b''.join(sent))
                        self.assertEqual({name for name, data in calls[len(interim):-1]}, {'write'})
                        self.assertFalse(made[0].is_closed)

    async def test_100_comes_and_the_body_is_sent_on_a_real_socket(self):
        got = queue.Queue()

        def script(peer):
            head = peer.read_head()
            got.put(head)
            got.put(peer.buffer)
            peer.send(CONTINUE)
            got.put(peer.read(5))
            peer.send(OK_EMPTY)
            if peer.read_head():
                peer.send(OK_EMPTY)

        url = self.url(script)
        # Were 100 not heard, nothing would be sent for longer than the test may take.
        request, _ = self.pool(expect_timeout=1000)
        code, _, _ = await request(b'PUT', url, headers=((b'content-length', b'5'), self.EXPECT),
                                   body=streamed(b'hello'))
        self.assertEqual(code, b'200')
        self.assertTrue(got.get().endswith(b'\r\nExpect: 100-continue\r\n\r\n'))
        self.assertEqual((got.get(), got.get()), (b'', b'hello'))
        # Nothing has gone wrong on it: it may be used again.
        await request(b'GET', url)
        self.assertEqual(self.accepted, 1)

    async def test_after_a_final_answer_no_body_is_sent_and_the_connection_closes(self):
        for answer, code, content in (
                (TOO_LARGE, b'413', b'too large'),
                (b'HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n', b'417', b''),
                (b'HTTP/1.1 103 E\r\n\r\n' + OK_EMPTY, b'200', b''),
                (b'HTTP/1.1 401 U\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n', b'401', b'no'),
        ):
            for headers in (((b'content-length', b'5'), self.EXPECT), (self.EXPECT,)):
                with self.subTest((answer, headers)):
                    got = queue.Queue()

                    def script(peer, answer=answer, got=got):
                        peer.read_head()
                        peer.send(answer)
                        got.put(peer.read_to_close())

                    def answers(peer):
                        peer.read_head()
                        peer.send(OK_EMPTY)

                    url = self.url(script, answers)
                    accepted = self.accepted
                    request, _ = self.pool(expect_timeout=1000)
                    body = BodyOnce(b'hello')
                    received, _, response = await request(b'POST', url, headers=headers, body=body)
                    self.assertEqual((received, await buffered(response)), (code, content))
                    self.assertEqual(await in_thread(got.get, True, PATIENCE), b'')
                    self.assertEqual(bool(body.asked), bool(body.closed))
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 2)

    async def test_if_nothing_comes_the_body_is_sent_all_the_same(self):
        for late in (b'', CONTINUE, b'HTTP/1.1 103 E\r\n\r\n'):
            for headers, wire in ((((b'content-length', b'5'), self.EXPECT), b'hello'),
                                  ((self.EXPECT,), b'5\r\nhello\r\n0\r\n\r\n')):
                with self.subTest((late, headers)):
                    got = queue.Queue()

                    def script(peer, late=late, wire=wire, got=got):
                        peer.read_head()
                        got.put(peer.read(len(wire)))
                        peer.send(late + OK_EMPTY)
                        if peer.read_head():
                            peer.send(OK_EMPTY)

                    url = self.url(script)
                    accepted = self.accepted
                    request, _ = self.pool(expect_timeout=0.05)
                    code, _, _ = await request(b'POST', url, headers=headers, body=pieces_of(b'hello'))
                    self.assertEqual((code, got.get()), (b'200', wire))
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

    async def test_other_1xx_do_not_let_the_body_go(self):
        # 103 is no invitation: the body goes by the timeout, which is 1000 seconds, or by 100.
        invited = threading.Event()
        got = queue.Queue()

        def script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 103 E\r\n\r\n')
            peer.sock.settimeout(0.2)
            try:
                got.put(peer.sock.recv(100))
            except socket.timeout:
                got.put(None)
            peer.sock.settimeout(PATIENCE)
            invited.set()
            peer.send(CONTINUE)
            got.put(peer.read(5))
            peer.send(OK_EMPTY)

        request, _ = self.pool(expect_timeout=1000)
        await request(b'POST', self.url(script),
                      headers=((b'content-length', b'5'), self.EXPECT), body=streamed(b'hello'))
        self.assertEqual((got.get(), got.get()), (None, b'hello'))

    async def test_a_server_that_closes_instead_is_an_error(self):
        def script(peer):
            peer.read_head()

        body = BodyOnce(b'hello')
        request, _ = self.pool(expect_timeout=1000)
        error = await self.raises(HttpConnectionClosedError, request(
            b'POST', self.url(script), headers=(self.EXPECT,), body=body))
        self.assertEqual((error.reused, error.answered), (False, False))
        self.assertEqual(bool(body.asked), bool(body.closed))

    async def test_a_reset_while_100_is_awaited_is_an_error(self):
        def script(peer):
            peer.read_head()
            peer.reset()
        request, _ = self.pool()
        port = self.serve(script)
        error = await self.raises(HttpConnectionClosedError, request(
            b'POST', 'http://127.0.0.1:%d/' % port, headers=((b'expect', b'100-continue'),), body=streamed(b'x')))
        self.assertFalse(error.answered)

    async def test_an_answer_is_heard_though_the_head_that_expects_could_not_be_sent(self):
        class Failing(ScriptedConnection):
            def send(self, data):
                raise ConnectionResetError(errno.ECONNRESET, 'reset')

        async def connect(*_):
            return Failing((), [TOO_LARGE])
        request, _ = self.pool(connect=connect)
        body = BodyOnce(b'x')
        code, _, response = await request(b'PUT', 'http://h/', headers=((b'expect', b'100-continue'),), body=body)
        self.assertEqual((code, await buffered(response), body.asked), (b'413', b'too large', 0))
