"""What errors say, and what they never do"""
import asyncio
import socket
import threading

from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpConnectionTimeout, HttpDataError,
    HttpDataTimeout, HttpDnsError, HttpError, HttpHeaderTooLong, HttpProtocolError, HttpRedirectError, HttpRequestError,
    HttpTlsError, buffered,
)
from reliability.harness import CONTINUE, OK, OK_EMPTY, PATIENCE, in_thread, pieces_of
from tests.peers import EMPTY, ExchangeTestCase, chunked_response, with_length


class ErrorTests(ExchangeTestCase):

    def test_the_tree_is_that_of_the_contract(self):
        for error, bases in (
                (HttpError, (Exception,)),
                (HttpRequestError, (HttpError, ValueError)),
                (HttpConnectionError, (HttpError,)),
                (HttpDnsError, (HttpConnectionError,)),
                (HttpTlsError, (HttpConnectionError,)),
                (HttpConnectionTimeout, (HttpConnectionError, asyncio.TimeoutError)),
                (HttpDataError, (HttpError,)),
                (HttpBodyError, (HttpDataError, ValueError)),
                (HttpConnectionClosedError, (HttpDataError,)),
                (HttpProtocolError, (HttpDataError,)),
                (HttpHeaderTooLong, (HttpProtocolError,)),
                (HttpRedirectError, (HttpDataError,)),
                (HttpDataTimeout, (HttpDataError, asyncio.TimeoutError)),
        ):
            with self.subTest(error.__name__):
                self.assertEqual(error.__bases__, bases)

    async def exchange(self, script, is_reused, **kwargs):
        """A POST to a server, its body read; before it a GET if the connection is to be a reused one"""
        def both(peer):
            if is_reused:
                peer.read_head()
                peer.send(OK_EMPTY)
            script(peer)

        request, _ = self.pool(socket_timeout=kwargs.pop('socket_timeout', PATIENCE))
        url = self.url(both)
        if is_reused:
            await request(b'GET', url)
        _, _, body = await request(b'POST', url, **kwargs)
        return await buffered(body)

    async def test_reused_and_answered_say_what_happened(self):
        for what, sent, error, answered, numbers in (
                ('nothing', b'', HttpConnectionClosedError, False, ''),
                ('one byte', b'H', HttpConnectionClosedError, True, '1'),
                ('half a head', OK, HttpConnectionClosedError, True, '17'),
                ('100', CONTINUE, HttpConnectionClosedError, True, '25'),
                ('nonsense', b'nonsense\r\n\r\n', HttpProtocolError, True, ''),
                ('a head that is too long', OK + b'x: ' + b'x' * 70000, HttpHeaderTooLong, True, '65536'),
                ('part of a body', with_length(b'512', b'x' * 100), HttpConnectionClosedError, True, '512 100'),
                ('part of a chunked body', chunked_response(b'5\r\nhello\r\n6\r\nhello'), HttpConnectionClosedError,
                 True, '10'),
                ('a bad chunk', chunked_response(b'5\r\nhelloX'), HttpProtocolError, True, ''),
                ('differing lengths', with_length(b'5, 6'), HttpProtocolError, True, '5 6'),
        ):
            for is_reused in (False, True):
                for reset in (False, True):
                    with self.subTest((what, is_reused, reset)):
                        def script(peer, sent=sent, reset=reset, expected=error):
                            peer.read_head()
                            peer.send(sent)
                            if reset and expected is HttpConnectionClosedError:
                                peer.reset()

                        raised = await self.raises(error, self.exchange(script, is_reused))
                        self.assertEqual((raised.reused, raised.answered), (is_reused, answered))
                        if reset and error is HttpConnectionClosedError:
                            self.assertIsInstance(raised.__cause__, ConnectionResetError)
                        else:
                            for number in numbers.split():
                                self.assertIn(number, str(raised))

    async def test_an_error_of_the_body_says_it_too(self):
        for is_reused in (False, True):
            with self.subTest(is_reused):
                def script(peer):
                    peer.read_to_close()

                raised = await self.raises(HttpBodyError, self.exchange(
                    script, is_reused, headers=((b'content-length', b'512'),), body=pieces_of(b'x' * 100)))
                self.assertEqual((raised.reused, raised.answered), (is_reused, False))
                self.assertIn('512', str(raised))
                self.assertIn('100', str(raised))

    async def test_no_secret_of_the_request_is_in_the_sentence(self):
        request, made = self.scripted(OK_EMPTY)
        for arguments, hint in (
                (dict(headers=((b'authorization', b'Bearer s3cr3t\n'),)), 'b\'authorization\''),
                (dict(headers=((b'a', b'b'), (b'cookie', b's3cr3t\x00'))), '0x00 at 6 of 7'),
                (dict(headers=((b'authorization', 's3cr3t'),)), 'str'),
                (dict(headers={'authorization': b's3cr3t'}), 'str'),
                (dict(headers=((b'authorization', bytearray(b's3cr3t')),)), 'bytearray'),
                (dict(headers=((b'authorization', None, b's3cr3t'),)), 'pairs'),
                (dict(headers=((b'authorization: s3cr3t', b''),)), 'header 1 of 1 has the byte 0x3a at 13'),
                (dict(headers=((b's3cr3t==', b'x-api-key'),)), '0x3d at 6'),
                (dict(headers=(b'authorization: s3cr3t',)), 'pairs'),
                (dict(headers=b'authorization: s3cr3t'), 'pairs'),
                (dict(headers=((b'', b's3cr3t'),)), 'empty'),
                (dict(method=b'http://h/?s3cr3t'), 'http'), (dict(method='s3cr3t'), 'str'),
                (dict(url='ftp://u:s3cr3t?x@h/'), '...'), (dict(url='http://u:s3cr3t#x@h/\n'), '...'),
                (dict(url='u:s3cr3t?@h'), '...'), (dict(url='http://s3cr3t$/@h/'), 'host'),
                (dict(url='http://s3cr3t:99999/@h/'), 'port'), (dict(url='http://1.s3cr3t.0x1/@h/'), 'host'),
                (dict(url='http://[::g]/s3cr3t@h/'), 'host'), (dict(url='http://u:s3cr3t\ud800?@h/'), '...'),
                (dict(url='http://h/\n?s3cr3t'), 'h/'), (dict(url='http://h/x?s3cr3t\n'), 'h/x'),
                (dict(url='http://h/x#s3cr3t\n'), 'h/x'), (dict(url='http://s3cr3t@h/\n'), 'h/'),
                (dict(url='http://u:s3cr3t@h/'), 'userinfo'), (dict(url='ftp://u:s3cr3t@h/x'), 'h/x'),
                (dict(url='http//u:s3cr3t@h/x'), 'h/x'), (dict(url='u:s3cr3t@h/x?y'), 'h/x'),
                (dict(url='/x?s3cr3t'), '/x'), (dict(url='http://h/\ud800?s3cr3t'), 'h/'),
                (dict(url='http://h:x/?s3cr3t'), 'h:x'), (dict(url='http://u:s3cr3t/@h/'), 'host'),
                (dict(url='http://u:s3cr3t?@h/'), 'host'), (dict(url='http://u:s3cr3t#@h/'), 'host'),
                (dict(url='http://[::g]/?s3cr3t'), '::g'), (dict(url='http://a..b/?s3cr3t'), 'a..b'),
                (dict(params={'token': ['s3cr3t', None]}), 'NoneType'), (dict(params={'token': {'s3cr3t': 1}}), 'dict'),
                (dict(params=(('token', 's3cr3t', 1),)), 'pairs'), (dict(params='s3cr3t'), 'pairs'),
                (dict(params={'token': 's3cr3t\ud800'}), 'surrogate'),
        ):
            with self.subTest(arguments):
                error = await self.raises(HttpRequestError, request(
                    **dict(dict(method=b'GET', url='http://h/'), **arguments)))
                self.assertIn(hint, str(error))
                while error is not None:
                    self.assertNotIn('s3cr3t', str(error) + repr(error))
                    error = error.__cause__ or error.__context__
        self.assertEqual(made, [])

    async def test_of_a_malformed_line_of_the_response_no_more_than_its_beginning_is(self):
        secret = b'x: ' + b'.' * 40 + b's3cr3t'
        cookie = b'set-cookie: s3cr3t\r\n'
        for wire in (
                secret + b'\r\n\r\n', b'HTTP/1.1 200 OK' + b'.' * 40 + b's3cr3t\x00\r\n\r\n',
                OK + b'set-cookie : ' + secret + b'\r\n\r\n', OK + b'cookie: s3cr3t\r\nno colon\r\n\r\n',
                OK + secret + b'\x00\r\n\r\n',
                OK + cookie + b'\r\r\n\r\n', OK + b'x: a\r\n s3cr3t\r\nno colon\r\n\r\n',
                b'ICY 200 OK...\r\n' + cookie, b'HTTP/2.0 200 OK...\r\n' + cookie + b'\r\n',
                chunked_response(b'0\r\n' + cookie + b'\r\r\n\r\n'),
                chunked_response(b'z' + secret + b'\r\n'), chunked_response(b'0\r\n' + secret + b'\x00\r\n\r\n'),
                chunked_response(b'0\r\nx: s3cr3t\r\nno colon\r\n\r\n'),
        ):
            with self.subTest(wire):
                error = await self.raises(HttpProtocolError, self.outcome(b'GET', [wire]))
                self.assertNotIn('s3cr3t', str(error))
                self.assertTrue(any(each in str(error) for each in (
                    '...', 'no colon', 'HTTP/1.1 200', "b'set-cookie ", "b'\\r\\r'")))

    async def test_the_offending_bytes_are_in_the_sentence(self):
        for wire, offending in (
                (b'nonsense\r\n\r\n', 'nonsense'),
                (OK + b'no colon\r\n\r\n', 'no colon'),
                (with_length(b'5, 6'), '6'),
                (with_length(b'0x5'), '0x5'),
                (OK + b'transfer-encoding: gzip\r\n\r\n', 'gzip'),
                (chunked_response(b'0x5\r\n'), '0x5'),
                (chunked_response(b'0\r\nno colon\r\n\r\n'), 'no colon'),
        ):
            with self.subTest(wire):
                error = await self.raises(HttpProtocolError, self.outcome(b'GET', [wire]))
                self.assertIn(offending, str(error))
                self.assertLess(len(str(error)), 500)
        # However long they are.
        for wire in (b'x' * 60000 + b'\r\n\r\n', OK + b'x' * 60000 + b'\r\n\r\n', with_length(b'9' * 60000),
                     OK + b'transfer-encoding: ' + b'x' * 60000 + b'\r\n\r\n', chunked_response(b'z' * 60000 + b'\r\n'),
                     chunked_response(b'0\r\n' + b'x' * 60000 + b'\r\n\r\n')):
            with self.subTest(wire[:50]):
                error = await self.raises(HttpProtocolError, self.outcome(b'GET', [wire]))
                self.assertLess(len(str(error)), 1000)

    async def test_a_connect_that_raises_an_oserror_raises_an_httpconnectionerror(self):
        async def connect(*_):
            raise ConnectionRefusedError('no proxy')
        request, _ = self.pool(connect=connect)
        error = await self.raises(HttpConnectionError, request(b'GET', 'http://h:81/'))
        self.assertEqual(str(error), 'Could not connect to h port 81: no proxy')
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)

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
            url = self.url(script)
            await request(b'GET', url)
            await self.raises(expected, request(b'POST', url, body=given))
