"""`expect: 100-continue`: the body waits for its invitation"""
import errno
import select

from lowhaio import HttpConnectionClosedError, buffered, streamed
from reliability.harness import CONTINUE, OK_EMPTY, TOO_LARGE, ScriptedConnection, pieces_of
from reliability.scripted import CLOSE, DRAIN, HEAD, RESET, Pause, Read, Record, in_bytes, scripted
from tests.bodies import BodyOnce
from tests.peers import ExchangeTestCase


def readable(peer):
    """Whether there is more to read than the peer has read"""
    return bool(peer.buffer or select.select([peer.sock], [], [], 0)[0])


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

    async def test_nothing_but_the_head_is_sent_before_100_on_a_real_socket(self):
        # 103 is no invitation: the body goes by the timeout, which is 1000 seconds, or by 100.
        for interim in ((), (b'HTTP/1.1 103 E\r\n\r\n', Pause(0.2))):
            with self.subTest(interim):
                before, record = [], Record()
                url = self.url(scripted(
                    HEAD, *interim, lambda peer, b=before, r=record: b.append((r.received, readable(peer))), CONTINUE,
                    Read(5), OK_EMPTY, HEAD, OK_EMPTY, record=record))
                request, _ = self.pool(expect_timeout=1000)
                accepted = self.accepted
                code, _, _ = await request(b'PUT', url, headers=((b'content-length', b'5'), self.EXPECT),
                                           body=streamed(b'hello'))
                self.assertEqual(code, b'200')
                (received, has_more), = before
                self.assertTrue(received.endswith(b'\r\nExpect: 100-continue\r\n\r\n'))
                self.assertFalse(has_more)
                self.assertEqual(record.received, received + b'hello')
                # Nothing has gone wrong on it: it may be used again.
                await request(b'GET', url)
                self.assertEqual(self.accepted, accepted + 1)

    async def test_after_a_final_answer_no_body_is_sent_and_the_connection_closes(self):
        for answer, code, content in (
                (TOO_LARGE, b'413', b'too large'),
                (b'HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n', b'417', b''),
                (b'HTTP/1.1 103 E\r\n\r\n' + OK_EMPTY, b'200', b''),
                (b'HTTP/1.1 401 U\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n', b'401', b'no'),
        ):
            for headers in (((b'content-length', b'5'), self.EXPECT), (self.EXPECT,)):
                with self.subTest((answer, headers)):
                    record = Record()
                    url = self.url(scripted(HEAD, answer, DRAIN, record=record), scripted(HEAD, OK_EMPTY))
                    accepted = self.accepted
                    request, _ = self.pool(expect_timeout=1000)
                    body = BodyOnce(b'hello')
                    received, _, response = await request(b'POST', url, headers=headers, body=body)
                    self.assertEqual((received, await buffered(response)), (code, content))
                    self.assertEqual(bool(body.asked), bool(body.closed))
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 2)
                    self.assertTrue(record.received.endswith(b'\r\n\r\n'))

    async def test_if_nothing_comes_the_body_is_sent_all_the_same(self):
        for late in (b'', CONTINUE, b'HTTP/1.1 103 E\r\n\r\n'):
            for headers, wire in ((((b'content-length', b'5'), self.EXPECT), b'hello'),
                                  ((self.EXPECT,), b'5\r\nhello\r\n0\r\n\r\n')):
                with self.subTest((late, headers)):
                    record = Record()
                    url = self.url(scripted(HEAD, Read(len(wire)), late + OK_EMPTY, HEAD, OK_EMPTY, record=record))
                    accepted = self.accepted
                    request, _ = self.pool(expect_timeout=0.05)
                    code, _, _ = await request(b'POST', url, headers=headers, body=pieces_of(b'hello'))
                    self.assertEqual((code, record.received.partition(b'\r\n\r\n')[2]), (b'200', wire))
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

    async def test_a_server_that_closes_or_resets_instead_is_an_error(self):
        for end in (CLOSE, RESET):
            body = BodyOnce(b'hello')
            request, _ = self.pool(expect_timeout=1000)
            error = await self.raises(HttpConnectionClosedError, request(
                b'POST', self.url(scripted(HEAD, end)), headers=(self.EXPECT,), body=body))
            self.assertEqual((error.reused, error.answered), (False, False))
            self.assertEqual(bool(body.asked), bool(body.closed))

    async def test_an_answer_is_heard_though_the_head_that_expects_could_not_be_sent(self):
        class Failing(ScriptedConnection):
            def send(self, data):
                raise ConnectionResetError(errno.ECONNRESET, 'reset')

        async def connect(*_):
            return Failing((), [TOO_LARGE])
        request, _ = self.pool(connect=connect)
        body = BodyOnce(b'x')
        code, _, response = await request(b'PUT', 'http://h/', headers=(self.EXPECT,), body=body)
        self.assertEqual((code, await buffered(response), body.asked), (b'413', b'too large', 0))
