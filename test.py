"""The tests of lowhaio: real sockets on loopback, and peers whose bytes each test states

What they stand on is in reliability/harness.py. The tests against hostile, broken and unlucky peers are in
reliability/ too, and run with these: the short form of what its modules do at length.
"""
import array
import asyncio
import builtins
import collections
import contextlib
import ctypes
import datetime
import errno
import functools
import gc
import hashlib
import importlib.util
import inspect
import ipaddress
import itertools
import logging
import mmap
import os
import queue
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import tracemalloc
import unittest
import warnings
import weakref
from unittest import mock

from aiodnsresolver import (
    RESPONSE,
    TYPES,
    DnsError,
    DnsNoMatchingAnswers,
    DnsRecordDoesNotExist,
    DnsResponseCode,
    DnsTimeout,
    IPv4AddressExpiresAt,
    IPv6AddressExpiresAt,
    Message,
    Resolver,
    ResourceRecord,
    pack,
    parse,
)

import lowhaio
from lowhaio import (
    HttpBodyError,
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpConnectionTimeout,
    HttpDataError,
    HttpDataTimeout,
    HttpDnsError,
    HttpError,
    HttpHeaderTooLong,
    HttpProtocolError,
    HttpRedirectError,
    HttpRequestError,
    HttpTlsError,
    Pool,
    buffered,
    streamed,
)
from reliability.exhaustion import (  # noqa: F401
    AbandonmentTests, ExhaustionTests, Interrupted, InterruptionTests, LoadTests, by_task, let_go, pending,
    with_the_result,
)
from reliability.framing import BoundTests, CaseTests, CutTests  # noqa: F401
from reliability.harness import (
    CA,
    CONTINUE,
    OK,
    OK_EMPTY,
    OK_LAST,
    PATIENCE,
    SMALL_SEND_BUFFER,
    TEST_SECONDS,
    TOO_LARGE,
    USE_UVLOOP,
    AsyncTestCase,
    ClientSockets,
    ManualTls,
    Peer,
    ScriptedConnection,
    all_tasks,
    client_context,
    current_task,
    full_backlog,
    in_thread,
    new_event_loop,
    outcome,
    pieces_of,
    refusing_port,
    server_context,
    tls_server,
    tls_versions,
    turns,
)
from reliability.life import (  # noqa: F401
    EarlyAnswerTests,
    HandMadeTlsTests,
    HandshakeTests,
    IdleCloseTests,
    OpensslServerTests,
    RecordTests,
    ResetTests,
    SlowPeerTests,
    UnaskedBytesTests,
)
from reliability.properties import DifferentialTests, RequestProperties, ResponseProperties  # noqa: F401
from reliability.scripted import DRAIN
from reliability.soak import SoakTests  # noqa: F401
from tests.early_answers import EarlySuccessTests  # noqa: F401
from tests.surface import (  # noqa: F401
    ArgumentsTests, BufferedTests, ContextTests, MaxIdleTests, PairsTests, TwoThreadsTests, TypesTests, WhenDoneTests,
)
from tests.timeouts import TimeoutsTests  # noqa: F401
from tests.redirects import (  # noqa: F401
    RedirectAnswerTests, RedirectBodyTests, RedirectFailureTests, RedirectLimitTests, RedirectMethodTests,
    RedirectOriginTests, RedirectTargetTests, UrlHelperTests,
)

# ======== The messages: what goes on the wire, and what is made of what comes back


# -------- Bodies of requests, of every kind


class BodyAgain:
    """An iterable that is not its own iterator, and counts how often it was iterated"""

    def __init__(self, *pieces):
        self.pieces = pieces
        self.count = 0

    def __aiter__(self):
        self.count += 1
        return pieces_of(*self.pieces)


class BodyOfItsOwn(BodyAgain):
    """As a class: a function that returns an iterable"""

    def __init__(self):
        super().__init__(b'ab', b'cde')


class BodyOnce:
    """An iterator that says what was asked of it; a piece may be an exception to raise, or a coroutine function
    to await first"""

    def __init__(self, *pieces):
        self.pieces = list(pieces)
        self.asked = 0
        self.closed = 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.asked += 1
        while self.pieces and inspect.iscoroutinefunction(self.pieces[0]):
            await self.pieces.pop(0)()
        if not self.pieces:
            raise StopAsyncIteration
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def aclose(self):
        self.closed += 1


class BodyWithoutEnd(BodyOnce):
    """Gives its one piece again and again, though not for ever, so that a test that fails also ends"""

    def __init__(self, piece, at_most=100000):
        super().__init__()
        self.piece = piece
        self.at_most = at_most

    async def __anext__(self):
        self.asked += 1
        if self.asked > self.at_most:
            raise StopAsyncIteration
        return self.piece


class BodyWithoutAclose:
    def __init__(self, *pieces):
        self.pieces = list(pieces)

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.pieces:
            raise StopAsyncIteration
        return self.pieces.pop(0)


class BodyMethods:
    """A body as a bound method, and as an object that can be called"""

    async def give(self):
        yield b'ab'
        yield b'cde'

    def __call__(self):
        return self.give()


def pieces_again():
    return pieces_of(b'ab', b'cde')


# -------- A connection that follows a script


def fake_resolver(records, asked):
    """For Pool's `get_dns_resolver`: answers from {name: IPv4 address}, and notes what it was asked"""
    def get_dns_resolver():
        async def resolve(fqdn, qtype):
            asked.append(fqdn)
            if qtype != TYPES.A or fqdn not in records:
                raise DnsRecordDoesNotExist()
            return (ipaddress.IPv4Address(records[fqdn]),)

        async def clear_cache():
            pass

        return resolve, clear_cache

    return get_dns_resolver


class MessageTestCase(AsyncTestCase):

    def setUp(self):
        super().setUp()
        self.holds = []

    def tearDown(self):
        for event in self.holds:
            event.set()
        super().tearDown()

    def pool(self, **kwargs):
        kwargs.setdefault('socket_timeout', PATIENCE)
        return super().pool(**kwargs)

    def hold(self):
        """An event on which a peer may wait: the end of the test sets it"""
        self.holds.append(threading.Event())
        return self.holds[-1]

    def scripted(self, *pieces, **kwargs):
        """request, and the list of the connections that it makes: each plays these pieces"""
        made = []

        async def connect(scheme, host, port, look_up, open_socket, start_tls):
            made.append(ScriptedConnection((scheme, host, port), pieces))
            return made[-1]

        request, _ = self.pool(connect=connect, **kwargs)
        return request, made

    async def outcome(self, method, pieces, **kwargs):
        """(code, headers, body, whether the connection was kept) of a response that comes in these pieces"""
        made = []

        async def connect(*endpoint):
            made.append(ScriptedConnection(endpoint[:3], pieces))
            return made[-1]

        request, close = Pool(connect=connect, **kwargs)
        try:
            code, headers, body = await request(method, 'http://127.0.0.1/')
            content = await buffered(body)
            connection, = made
            return code, headers, content, not connection.is_closed and not connection.pieces
        except HttpError:
            self.assertTrue(made[0].is_closed)
            self.unread = made[0].pieces
            raise
        finally:
            await close()

    async def assert_on_the_wire(self, expected, method=b'GET', path='/', **kwargs):
        """That all of a request's bytes are `expected`, in which HOST:PORT stands for those of the server"""
        got = queue.Queue()

        def script(peer):
            data = peer.read(len(wanted))
            peer.send(OK_LAST)
            got.put(data + peer.read_to_close())

        port = self.serve(script)
        wanted = expected.replace(b'HOST:PORT', b'127.0.0.1:%d' % port)
        request, _ = self.pool()
        code = None
        with contextlib.suppress(HttpDataTimeout):  # too few bytes: the comparison says which
            code, _, _ = await request(method, 'http://127.0.0.1:{}{}'.format(port, path), **kwargs)
        self.assertEqual(await in_thread(got.get, True, PATIENCE), wanted)
        self.assertEqual(code, b'200')

    async def assert_refused(self, cases):
        """That each of (what, arguments of `request`, a part of the error's sentence) raises HttpRequestError
        before a connection is opened; their bodies are not begun. The url is the server's where none is given."""
        port = self.answer(OK_LAST)
        url = 'http://127.0.0.1:{}/'.format(port)
        request, _ = self.pool()
        for what, arguments, sentence in cases:
            with self.subTest(what):
                arguments = dict({'method': b'POST', 'url': url}, **arguments)
                error = await self.raises(HttpRequestError, request(**arguments))
                self.assertIsInstance(error, ValueError)
                self.assertIn(sentence.lower(), str(error).lower())
                self.assertEqual(getattr(arguments.get('body'), 'asked', 0), 0)
        # Connections are accepted in their order: were there one for a refused request, it would be counted by now.
        await request(b'GET', url)
        self.assertEqual(self.accepted, 1)


# -------- (a) The request


LONGEST_NAME = '.'.join(['a' * 63] * 3 + ['a' * 61])  # 253 characters


class TestTarget(MessageTestCase):

    # url, host field, endpoint, target
    URLS = (
        ('http://127.0.0.1', b'127.0.0.1', ('http', '127.0.0.1', 80), b'/'),
        ('http://127.0.0.1/', b'127.0.0.1', ('http', '127.0.0.1', 80), b'/'),
        ('http://127.0.0.1:80/', b'127.0.0.1', ('http', '127.0.0.1', 80), b'/'),
        ('http://127.0.0.1:8080/', b'127.0.0.1:8080', ('http', '127.0.0.1', 8080), b'/'),
        ('http://127.0.0.1:443/', b'127.0.0.1:443', ('http', '127.0.0.1', 443), b'/'),
        ('https://127.0.0.1/', b'127.0.0.1', ('https', '127.0.0.1', 443), b'/'),
        ('https://127.0.0.1:443/', b'127.0.0.1', ('https', '127.0.0.1', 443), b'/'),
        ('https://127.0.0.1:80/', b'127.0.0.1:80', ('https', '127.0.0.1', 80), b'/'),
        ('http://[::1]', b'[::1]', ('http', '::1', 80), b'/'),
        ('http://[::1]:8080/p', b'[::1]:8080', ('http', '::1', 8080), b'/p'),
        ('https://[2001:db8::1]/', b'[2001:db8::1]', ('https', '2001:db8::1', 443), b'/'),
        ('http://example.com/', b'example.com', ('http', 'example.com', 80), b'/'),
        ('HTTP://example.com:1234/', b'example.com:1234', ('http', 'example.com', 1234), b'/'),
        ('https://b\xfccher.example/', b'xn--bcher-kva.example', ('https', 'xn--bcher-kva.example', 443), b'/'),
        ('http://\u4f8b\u3048.\u30c6\u30b9\u30c8:8080/', b'xn--r8jz45g.xn--zckzah:8080',
         ('http', 'xn--r8jz45g.xn--zckzah', 8080), b'/'),
        ('http://h?a=1', b'h', ('http', 'h', 80), b'/?a=1'),
        ('http://h#f', b'h', ('http', 'h', 80), b'/'),
        ('http://1\uff12\uff17\u30020\uff0e0\uff611/', b'127.0.0.1', ('http', '127.0.0.1', 80), b'/'),
        ('http://{}/'.format(LONGEST_NAME), LONGEST_NAME.encode('ascii'), ('http', LONGEST_NAME, 80), b'/'),
        ('http://{}./'.format(LONGEST_NAME), LONGEST_NAME.encode('ascii') + b'.',
         ('http', LONGEST_NAME + '.', 80), b'/'),
        # An @ or a colon after the authority is no userinfo, and no port.
        ('http://h/a@b:c', b'h', ('http', 'h', 80), b'/a@b:c'),
        ('http://h?x=a@b:c', b'h', ('http', 'h', 80), b'/?x=a@b:c'),
        ('http://h#a@b:c', b'h', ('http', 'h', 80), b'/'),
        ('http://h//other.example/p', b'h', ('http', 'h', 80), b'//other.example/p'),
    )

    # What stands after the host, and the target that is sent.
    TARGETS = (
        ('/a?b=c&d=e', b'/a?b=c&d=e'),
        ('/a?', b'/a?'),
        ('/a??b?', b'/a??b?'),
        ('/a#f', b'/a'),
        ('/a#', b'/a'),
        ('/a?b#f?c#g', b'/a?b'),
        ('/%2F%2f%20+;%41?%2F%2f%20+;=%41', b'/%2F%2f%20+;%41?%2F%2f%20+;=%41'),
        ("/-._~!$&'()*+,;=:@?-._~!$&'()*+,;=:@/?", b"/-._~!$&'()*+,;=:@?-._~!$&'()*+,;=:@/?"),
        ('//a///b/', b'//a///b/'),
        ('/a/../b/./c/%2e%2e/', b'/a/../b/./c/%2e%2e/'),
        ('/a b?c d', b'/a%20b?c%20d'),
        ('/\xe9?\u20ac=\U0001f600', b'/%C3%A9?%E2%82%AC=%F0%9F%98%80'),
        ('/"<>\\^`{|}?"<>\\^`{|}', b'/%22%3C%3E%5C%5E%60%7B%7C%7D?%22%3C%3E%5C%5E%60%7B%7C%7D'),
        ('/\x80\x9f', b'/%C2%80%C2%9F'),
    )

    # params, and what they add to /p and to /p?x=%2F+y
    PARAMS = (
        ((), b''),
        ({}, b''),
        ((('a', '1'), ('b', '2'), ('a', '3')), b'a=1&b=2&a=3'),
        ({'a': '1'}, b'a=1'),
        ({'a': ['1', '2'], 'b': '3'}, b'a=1&a=2&b=3'),
        ((('a', ('1', '2')), ('b', '3')), b'a=1&a=2&b=3'),
        ([['a', '1'], ['b', ['2', '3']]], b'a=1&b=2&b=3'),
        ({'a': []}, b''),
        ({'abc': 'def'}, b'abc=def'),
        ({'a': 1}, b'a=1'),
        ({'a': ''}, b'a='),
        ({'a b': 'c d'}, b'a%20b=c%20d'),
        ({'&=+#': '%20&=+#;'}, b'%26%3D%2B%23=%2520%26%3D%2B%23%3B'),
        ({'\xe9': '\u20ac'}, b'%C3%A9=%E2%82%AC'),
        ({'a': '\r\n\x00'}, b'a=%0D%0A%00'),
    )

    async def test_each_part_of_a_url_goes_where_it_belongs(self):
        for url, host, endpoint, target in self.URLS:
            with self.subTest(url):
                request, made = self.scripted(OK_EMPTY)
                await request(b'GET', url)
                connection, = made
                self.assertEqual(connection.endpoint, endpoint)
                self.assertEqual(connection.writes(), [b'GET %b HTTP/1.1\r\nhost: %b\r\n\r\n' % (target, host)])

    async def test_only_what_may_not_stand_in_a_target_is_encoded(self):
        for given, sent in self.TARGETS:
            with self.subTest(given):
                request, made = self.scripted(OK_EMPTY)
                await request(b'GET', 'http://h' + given)
                self.assertEqual(made[0].writes(), [b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % sent])

    async def test_nothing_is_encoded_twice(self):
        for _, sent in self.TARGETS:
            with self.subTest(sent):
                request, made = self.scripted(OK_EMPTY)
                await request(b'GET', 'http://h' + sent.decode('ascii'))
                self.assertEqual(made[0].writes(), [b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % sent])

    async def test_a_percent_sign_that_begins_no_escape_is_one_itself(self):
        for given, sent in (
                ('/100%', b'/100%25'), ('/%zz', b'/%25zz'), ('/%e', b'/%25e'), ('/%%', b'/%25%25'),
                ('/%%20', b'/%25%20'), ('/%20%2', b'/%20%252'), ('/%2g?%g2&%', b'/%252g?%25g2&%25'),
                ('/%\uff12\uff10', b'/%25%EF%BC%92%EF%BC%90'), ('/%aF%Fa%09', b'/%aF%Fa%09')):
            with self.subTest(given):
                for path in (given, sent.decode('ascii')):
                    request, made = self.scripted(OK_EMPTY)
                    await request(b'GET', 'http://h' + path)
                    self.assertEqual(made[0].writes(), [b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % sent])

    async def test_params_are_appended_to_the_query_of_the_url(self):
        for params, added in self.PARAMS:
            for path, separator in (
                    (b'/p', b'?'), (b'/p?x=%2F+y', b'&'), (b'/p?', b''), (b'/p?x&', b''), (b'/', b'?'),
                    # Data, and not the beginning of the query
                    (b'/p?x=?', b'&'), (b'/p??', b'&'),
            ):
                with self.subTest((params, path)):
                    request, made = self.scripted(OK_EMPTY)
                    await request(b'GET', 'http://h{}#f'.format(path.decode('ascii')), params=params)
                    target = path + separator + added if added else path
                    self.assertEqual(made[0].writes(), [b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % target])
        request, made = self.scripted(OK_EMPTY)
        await request(b'GET', 'http://h', params={'a': '1'})
        self.assertTrue(made[0].writes()[0].startswith(b'GET /?a=1 '))

    async def test_no_request_is_sent_for_another(self):
        request, made = self.scripted(*[OK_EMPTY] * 8)
        asked = (
            (dict(params={'a': '1'}), b'/?a=1', b''), (dict(headers=[(b'x', b'1')]), b'/', b'x: 1\r\n'),
            (dict(params={'b': '2'}, headers=((b'x', b'2'),)), b'/?b=2', b'x: 2\r\n'), ({}, b'/', b''),
        )
        for arguments, target, fields in asked * 2:
            await request(b'GET', 'http://h/', **arguments)
            sent = b''.join(made[-1].writes())
            self.assertTrue(sent.endswith(b'GET %b HTTP/1.1\r\nhost: h\r\n%b\r\n' % (target, fields)), sent)

    async def test_the_target_and_the_host_are_so_on_a_real_wire(self):
        await self.assert_on_the_wire(b'GET /a%2Fb%20c+;?x=%2F+&y=a%20b HTTP/1.1\r\nhost: HOST:PORT\r\n\r\n',
                                      path='/a%2Fb%20c+;?x=%2F+#f', params={'y': 'a b'})

    async def test_ipv6_is_connected_to(self):
        heads = queue.Queue()

        def script(peer):
            heads.put(peer.read_head())
            peer.send(OK_EMPTY)

        port = self.serve(script, host='::1')
        request, _ = self.pool()
        code, _, _ = await request(b'GET', 'http://[::1]:{}/'.format(port))
        self.assertEqual(code, b'200')
        self.assertEqual(heads.get(), b'GET / HTTP/1.1\r\nhost: [::1]:%d\r\n\r\n' % port)

    async def test_names_are_looked_up_idn_as_a_labels(self):
        for given, name in (('some.example', 'some.example'), ('b\xfccher.example', 'xn--bcher-kva.example')):
            with self.subTest(given):
                heads = queue.Queue()

                def script(peer, heads=heads):
                    heads.put(peer.read_head())
                    peer.send(OK_EMPTY)

                port = self.serve(script)
                asked = []
                request, _ = self.pool(get_dns_resolver=fake_resolver({name: '127.0.0.1'}, asked))
                code, _, _ = await request(b'GET', 'http://{}:{}/'.format(given, port))
                self.assertEqual((code, asked), (b'200', [name]))
                self.assertEqual(heads.get(), b'GET / HTTP/1.1\r\nhost: %b:%d\r\n\r\n' % (name.encode('ascii'), port))

    async def test_an_idn_is_an_a_label_to_tls_too(self):
        seen = []
        context = server_context('xn--bcher-kva.example')
        context.set_servername_callback(lambda sock, name, _: seen.append(name))

        def script(peer):
            peer.read_head()
            peer.send(OK_LAST)

        port = self.serve(script, tls=context)
        request, _ = self.pool(
            get_dns_resolver=fake_resolver({'xn--bcher-kva.example': '127.0.0.1'}, []),
            get_ssl_context=client_context)
        code, _, _ = await request(b'GET', 'https://b\xfccher.example:{}/'.format(port))
        # Python 3.6 tells the server's side the U-label.
        self.assertEqual((code, [name.encode('idna') for name in seen]), (b'200', [b'xn--bcher-kva.example']))

    async def test_what_is_no_url_of_http_is_refused(self):
        request, made = self.scripted(OK_EMPTY)
        for url in (
                # Not absolute, or of another scheme
                '', '/', '/p', '//h/p', 'h', 'h/p', 'h:80', 'http', 'http:', 'http:/h', 'http:h', 'ftp://h/', 'ws://h/',
                'file:///p', 'httpx://h/', 'xhttp://h/',
                # Which is an s where only letter case is ignored
                'http\u017f://h/', 'HTTP\u017f://h/',
                # No host
                'http://', 'http:///p', 'http://?a', 'http://#f', 'http://:80/', 'http://[]/',
                # No port
                'http://h:65536/', 'http://h:99999999999999999999/', 'http://h:-1/', 'http://h:+80/', 'http://h:8_0/',
                'http://h:x/', 'http://h:\uff18\uff10/', 'http://h:80:80/', 'http://h:80 /', 'http://h:0x50/',
                # No address
                'http://::1/', 'http://[::1/', 'http://::1]/', 'http://[::1]x/', 'http://[::1]:x/', 'http://[zz]/',
                'http://[1.2.3.4]/',
                # No name
                'http://a b/', 'http://a%20b/', 'http://a\\b/', 'http://a"b/', 'http://a<b/', 'http://a..b/',
                'http://.a/',
                'http://\u2100.example/', 'http://{}/'.format('a' * 70),
                # IDNA makes dots of these, where a filter, or the eye, sees none
                'http://127\u20240.0.1/', 'http://example\u2024com/', 'http://a\u2488com/', 'http://a\ufe52b/',
                # Longer than the DNS takes
                'http://{}a/'.format(LONGEST_NAME), 'http://{}a./'.format(LONGEST_NAME),
                'http://{}/'.format('\xe9.' * 120),
                # No UTF-8, and no str
                'http://h/\ud800', 'http://h/?\udfff', 'http://\ud800/', b'http://h/', None, 1,
        ):
            with self.subTest(url):
                await self.raises(HttpRequestError, request(b'GET', url))
                self.assertEqual(made, [])

    async def test_a_long_name_is_refused_before_it_is_encoded(self):
        request, made = self.scripted(OK_EMPTY)
        # Encoding it takes 0.1 s, and all that there is at once, and then says something else.
        error = await self.raises(HttpRequestError, request(b'GET', 'http://{}/'.format('\u0227.\u0301' * 3000)))
        self.assertIn('longer than 254', str(error))
        self.assertEqual(made, [])

    async def test_userinfo_is_refused_and_the_error_says_why(self):
        request, made = self.scripted(OK_EMPTY)
        for url in ('http://u@h/', 'http://u:p@h/', 'https://u:p@h', 'http://@h/', 'http://:@h/', 'http://u:p@[::1]/',
                    'http://a@b@h/', 'http://h\\@other/', 'http://h:80@other:81/?a'):
            with self.subTest(url):
                error = await self.raises(HttpRequestError, request(b'GET', url))
                self.assertIn('userinfo', str(error))
                self.assertEqual(made, [])

    async def test_a_control_anywhere_in_a_url_is_refused(self):
        request, made = self.scripted(OK_EMPTY)
        for control in [chr(i) for i in range(32)] + ['\x7f']:
            for template in ('http://h/a{}b', 'http://h/{}', 'http://h/?a{}', 'http://h{}/', 'http://h{}x/',
                             'http://{}h/', 'http:{}//h/', 'ht{}tp://h/', '{}http://h/',
                             'http://h:8{}0/', 'http://h/p#{}'):
                with self.subTest((control, template)):
                    await self.raises(HttpRequestError, request(b'GET', template.format(control)))
        self.assertEqual(made, [])

    async def test_params_that_cannot_be_encoded_are_refused(self):
        request, made = self.scripted(OK_EMPTY)
        for params in ('a', 'ab=c', 1, (('a',),), (('a', 'b', 'c'),), {'a': None}, {'a': object()}, {'a': '\ud800'},
                       {'\ud800': 'a'}):
            with self.subTest(params):
                await self.raises(HttpRequestError, request(b'GET', 'http://h/', params=params))
                self.assertEqual(made, [])


class TestRequestHead(MessageTestCase):

    async def test_headers_are_sent_in_the_order_case_and_number_given(self):
        for what, headers, sent in (
                ('none', (), b'host: HOST:PORT\r\n'),
                ('order, case, number', ((b'X-B', b'2'), (b'x-a', b'1'), (b'X-b', b'3'), (b'X-B', b'2')),
                 b'host: HOST:PORT\r\nX-B: 2\r\nx-a: 1\r\nX-b: 3\r\nX-B: 2\r\n'),
                ('host stays where the caller put it', ((b'a', b'1'), (b'HOST', b'other'), (b'b', b'2')),
                 b'a: 1\r\nHOST: other\r\nb: 2\r\n'),
                ('what others add or remove', ((b'User-Agent', b'u'), (b'Accept-Encoding', b'gzip'), (b'Cookie', b'c'),
                                               (b'authorization', b'a'), (b'Connection', b'close')),
                 b'host: HOST:PORT\r\nUser-Agent: u\r\nAccept-Encoding: gzip\r\nCookie: c\r\nauthorization: a\r\n'
                 b'Connection: close\r\n'),
                ('any byte but controls', ((b"!#$%&'*+-.^_`|~09azAZ", b' !"\x80\xe9\xff\tx'),),
                 b"host: HOST:PORT\r\n!#$%&'*+-.^_`|~09azAZ:  !\"\x80\xe9\xff\tx\r\n"),
                ('an empty value', ((b'a', b''),), b'host: HOST:PORT\r\na: \r\n'),
                ('a list', [[b'a', b'1']], b'host: HOST:PORT\r\na: 1\r\n'),
        ):
            with self.subTest(what):
                await self.assert_on_the_wire(b'GET / HTTP/1.1\r\n' + sent + b'\r\n', headers=headers)
        with self.subTest('an iterator'):
            await self.assert_on_the_wire(b'GET / HTTP/1.1\r\nhost: HOST:PORT\r\na: 1\r\n\r\n',
                                          headers=iter(((b'a', b'1'),)))

    async def test_the_method_is_sent_as_given(self):
        for method in (b'GET', b'HEAD', b'DELETE', b'OPTIONS', b'TRACE', b'PROPFIND', b'M-SEARCH', b'get', b'Connect',
                       b"!#$%&'*+-.^_`|~09azAZ"):
            with self.subTest(method):
                await self.assert_on_the_wire(method + b' / HTTP/1.1\r\nhost: HOST:PORT\r\n\r\n', method=method)

    async def test_a_mapping_of_headers_and_none(self):
        for headers, sent in (({b'A': b'1', b'b': b'2'}, b'A: 1\r\nb: 2\r\n'), (None, b''), ({}, b'')):
            await self.assert_on_the_wire(b'GET / HTTP/1.1\r\nhost: HOST:PORT\r\n' + sent + b'\r\n', headers=headers)

    async def test_what_may_not_stand_in_a_head_is_refused_before_a_connection_is_opened(self):
        controls = [bytes((i,)) for i in range(32)] + [b'\x7f']
        await self.assert_refused(
            [(('method', method), {'method': method}, 'method') for method in (
                b'', b' ', b'G T', b'GET ', b' GET', b'GET / HTTP/1.1\r\nx:', b'G:', b'G/', b'(GET)', b'G\xc9T', 'GET',
                None,
            )] +
            [(('method', control), {'method': b'G' + control + b'T'}, 'method') for control in controls] +
            [('CONNECT', {'method': b'CONNECT'}, 'CONNECT')] +
            [(('name', name), {'headers': ((name, b'v'),)}, 'name') for name in (
                b'', b' ', b'a ', b' a', b'a b', b'a:', b':a', b'a\r\nb', b'\xe9', b'(a)', b'a=', b'a"', b'a,b', b'a/b',
            )] +
            [(('name', control), {'headers': ((b'a' + control, b'v'),)}, 'name') for control in controls] +
            [(('value', control), {'headers': ((b'a', b'v' + control + b'w'),)}, 'control')
             for control in controls if control != b'\t'] +
            [(('value', value), {'headers': ((b'a', value),)}, 'control') for value in (
                b'\r\n', b'v\r\n', b'v\n', b'\nv', b'v\r', b'v\r\n w', b'v\r\nb: c', b'v\x00',
            )] +
            [(('no pair of bytes', headers), {'headers': headers}, 'header') for headers in (
                (('a', b'v'),), ((b'a', 'v'),), ((b'a', None),), ((b'a', 1),), ((b'a',),), ((b'a', b'b', b'c'),),
                b'ab', ('ab',), 1, {'a': 'b'},
            )])


class TestRequestFraming(MessageTestCase):

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
                await self.assert_on_the_wire(method + b' / HTTP/1.1\r\nhost: HOST:PORT\r\n' + sent, method=method,
                                              headers=headers, body=body)

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

        request, made = self.scripted(OK_EMPTY)
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
                del made[:]
                await request(b'POST', 'http://h/', headers=((b'connection', b'close'),), body=body)
                self.assertEqual(b''.join(made[0].writes()).partition(b'close\r\n')[2], framing)

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

    async def test_the_first_piece_is_in_hand_before_a_reused_connection_is_relied_on(self):
        go_on, is_closed = self.hold(), self.hold()

        def closes(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            go_on.wait()
            peer.close()
            is_closed.set()

        def answers(peer):
            got.put(peer.read_until(b'0\r\n\r\n'))
            peer.send(OK_EMPTY)

        async def body():
            go_on.set()
            await in_thread(is_closed.wait)
            yield b'ab'

        got = queue.Queue()
        url = 'http://127.0.0.1:{}/'.format(self.serve(closes, answers))
        request, _ = self.pool()
        await request(b'GET', url)
        # Neither the method nor the generator may be sent again: nothing was sent.
        code, _, _ = await request(b'POST', url, body=body())
        self.assertEqual((code, self.accepted), (b'200', 2))
        self.assertTrue(got.get().endswith(b'\r\n\r\n2\r\nab\r\n0\r\n\r\n'))

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

    async def test_a_large_upload_arrives_whole(self):
        size = 3000001
        piece = (bytes(range(251)) * (size // 251 + 1))[:size]
        for tls in (None, tls_server()):
            for what, headers, body, before, after in (
                    ('a length', ((b'content-length', b'%d' % size),), streamed(piece), b'', b''),
                    ('chunked', (), pieces_of(piece), b'%x\r\n' % size, b'\r\n0\r\n\r\n'),
            ):
                with self.subTest((what, tls is not None)):
                    got = queue.Queue()

                    def script(peer, got=got, length=len(before) + size + len(after)):
                        peer.read_head()
                        got.put(peer.read(length))
                        peer.send(OK_LAST)

                    port = self.serve(script, tls=tls)
                    request, _ = self.pool(get_ssl_context=client_context)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port)
                    code, _, _ = await request(b'POST', url, headers=headers, body=body)
                    self.assertEqual(code, b'200')
                    self.assertTrue(got.get() == before + piece + after)


class TestRequestBody(MessageTestCase):

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
                request, made = self.scripted(OK_EMPTY)
                await request(b'POST', 'http://h/', headers=((b'content-length', b'5'),), body=body)
                self.assertEqual(b''.join(made[0].writes()),
                                 b'POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nabcde')

    async def test_a_response_body_can_be_the_body_of_a_request(self):
        source = self.answer(OK + b'transfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n')
        request, _ = self.pool()
        _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(source))
        await self.assert_on_the_wire(b'POST / HTTP/1.1\r\nhost: HOST:PORT\r\ncontent-length: 5\r\n\r\nabcde',
                                      method=b'POST', headers=((b'content-length', b'5'),), body=body)

    async def test_a_body_may_fill_the_same_buffer_again(self):
        async def body():
            buffer = bytearray()
            for piece in (b'ab', b'', b'cde', b'f'):
                buffer += piece
                yield buffer
                buffer.clear()

        request, made = self.scripted(OK_EMPTY)
        await request(b'POST', 'http://h/', headers=((b'content-length', b'6'),), body=body())
        self.assertTrue(b''.join(made[0].writes()).endswith(b'\r\n\r\nabcdef'))

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
        for returned in (None, b'ab', [b'ab']):
            with self.subTest(returned):
                request, made = self.scripted(OK_EMPTY)
                with self.assertRaises(HttpError) as caught:
                    await request(b'PUT', 'http://h/', body=lambda returned=returned: returned)
                self.assertIn(type(returned).__name__, str(caught.exception))
                self.assertEqual([connection.is_closed for connection in made], [True])
                self.assertEqual(made[0].writes(), [])

    async def test_a_body_that_does_not_keep_to_its_length_is_an_error_and_closes_the_connection(self):
        # length, pieces, the numbers in the error's sentence, what was sent of the body at most
        for length, pieces, numbers, at_most in (
                (5, (), '5 0', b''), (5, (b'',), '5 0', b''), (5, (b'ab',), '5 2', b'ab'),
                (5, (b'ab', b'cd'), '5 4', b'abcd'), (5, (b'abcdef',), '5 6', b'abcde'),
                (5, (b'abc', b'def'), '5 6', b'abcde'), (5, (b'abcde', b'f'), '5 6', b'abcde'),
                (0, (b'a',), '0 1', b''), (0, (b'', b'ab'), '0 2', b''),
        ):
            for kind in (BodyOnce, BodyAgain):
                with self.subTest((length, pieces, kind.__name__)):
                    got = queue.Queue()

                    def first(peer):
                        peer.read_head()
                        peer.send(OK_EMPTY)

                    def second(peer, got=got):
                        # The first request is there so that the second is on a reused connection: even so an
                        # idempotent request whose body is wrong is not sent again.
                        first(peer)
                        peer.read_head()
                        got.put(peer.read_to_close())

                    port = self.serve(second, first)
                    url = 'http://127.0.0.1:{}/'.format(port)
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
                    # Never more than the length, else the rest would be the beginning of another request.
                    self.assertTrue(at_most.startswith(await in_thread(got.get, True, PATIENCE)))
                    self.assertEqual(body.closed if kind is BodyOnce else body.count, 1)
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

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
        got = queue.Queue()

        def script(peer):
            peer.read_head()
            got.put(peer.read_to_close())

        port = self.serve(script)
        request, _ = self.pool()
        error = ValueError('of the body')
        body = BodyOnce(b'ab', error)
        with self.assertRaises(ValueError) as caught:
            await request(b'POST', 'http://127.0.0.1:{}/'.format(port), body=body)
        self.assertIs(caught.exception, error)
        self.assertEqual(await in_thread(got.get, True, PATIENCE), b'2\r\nab\r\n')
        self.assertEqual(body.closed, 1)

    async def test_a_body_is_not_begun_before_a_connection_stands(self):
        listener = socket.socket()
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
        listener.close()
        request, _ = self.pool()
        generator = pieces_of(b'ab')
        body = BodyOnce(b'ab')
        for each in (generator, body):
            error = await self.raises(HttpConnectionError, request(
                b'POST', 'http://127.0.0.1:{}/'.format(port), body=each))
            self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertEqual((body.asked, body.closed), (0, 0))
        # Even the generator can be sent to where a connection can be made.
        await self.assert_on_the_wire(b'POST / HTTP/1.1\r\nhost: HOST:PORT\r\ntransfer-encoding: chunked\r\n\r\n'
                                      b'2\r\nab\r\n0\r\n\r\n', method=b'POST', body=generator)

    async def test_a_body_that_was_begun_is_closed_on_every_way_out(self):
        hold = self.hold()

        def answers(peer):
            peer.read_until(b'0\r\n\r\n')
            peer.send(OK_EMPTY)

        def refuses(peer):
            peer.read_head()
            peer.send(TOO_LARGE)
            peer.read_to_close()

        def closes(peer):
            peer.read_head()

        def resets(peer):
            peer.read_head()
            peer.reset()

        def speaks_nonsense(peer):
            peer.read_until(b'0\r\n\r\n')
            peer.send(b'nonsense\r\n\r\n')

        def reads_nothing(peer):
            hold.wait()

        for what, script, body, error in (
                ('complete', answers, BodyOnce(b'ab'), None),
                ('empty', answers, BodyOnce(), None),
                ('refused', refuses, BodyWithoutEnd(bytes(65536)), None),
                ('closed by the server', closes, BodyWithoutEnd(bytes(65536)), HttpConnectionClosedError),
                ('reset by the server', resets, BodyWithoutEnd(bytes(65536)), HttpConnectionClosedError),
                ('nonsense', speaks_nonsense, BodyOnce(b'ab'), HttpProtocolError),
                ('nothing moves', reads_nothing, BodyWithoutEnd(bytes(65536)), HttpDataTimeout),
        ):
            with self.subTest(what):
                port = self.serve(script)
                request, _ = self.pool(socket_timeout=0.3 if error is HttpDataTimeout else PATIENCE)
                sent = request(b'POST', 'http://127.0.0.1:{}/'.format(port), body=body)
                if error is None:
                    _, _, response = await sent
                    await buffered(response)
                else:
                    await self.raises(error, sent)
                self.assertEqual(body.closed, 1)

    async def test_a_body_is_closed_when_the_caller_is_cancelled(self):
        hold = self.hold()
        reads_all = self.serve(lambda peer: peer.read_to_close())
        reads_nothing = self.serve(lambda peer: hold.wait())
        is_waiting = asyncio.Event()

        async def wait():
            is_waiting.set()
            await asyncio.get_event_loop().create_future()

        class FirstPiece(BodyWithoutEnd):
            async def __anext__(self):
                is_waiting.set()
                return await super().__anext__()

        for what, port, body in (
                ('while the body waits before its first piece', reads_all, BodyOnce(wait)),
                ('while the body waits later', reads_all, BodyOnce(b'ab', wait)),
                ('while sending', reads_nothing, FirstPiece(bytes(1 << 24))),
                ('while receiving', reads_all, BodyOnce(b'ab')),
        ):
            with self.subTest(what):
                is_waiting.clear()
                request, _ = self.pool()
                task = asyncio.ensure_future(request(b'PUT', 'http://127.0.0.1:{}/'.format(port), body=body))
                if what == 'while receiving':
                    while body.asked < 2:
                        await asyncio.sleep(0)
                else:
                    await is_waiting.wait()
                for _ in range(10):
                    await asyncio.sleep(0)
                self.assertFalse(task.done())
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                self.assertEqual(body.closed, 1)

    async def test_the_finally_of_a_generator_has_run_when_request_returns(self):
        ended = []

        async def body():
            try:
                while True:
                    yield bytes(65536)
            finally:
                await asyncio.sleep(0)
                ended.append(True)

        def script(peer):
            peer.read_head()
            peer.send(TOO_LARGE)
            peer.read_to_close()

        request, _ = self.pool()
        code, _, response = await request(b'POST', 'http://127.0.0.1:{}/'.format(self.serve(script)), body=body())
        self.assertEqual((code, ended), (b'413', [True]))
        self.assertEqual(await buffered(response), b'too large')


class TestSentAgain(MessageTestCase):
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

        return 'http://127.0.0.1:{}/'.format(self.serve(closes, *([closes_at_once] * (times - 1) + [answers])))

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
        url = 'http://127.0.0.1:{}/'.format(self.serve(script))
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

                url = 'http://127.0.0.1:{}/'.format(self.serve(script))
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


# -------- (b) The framing of the response


def chunked_response(*lines):
    return OK + b'transfer-encoding: chunked\r\n\r\n' + b''.join(lines)


def with_length(value, body=b'hello', name=b'content-length'):
    return OK + name + b': ' + value + b'\r\n\r\n' + body


LAST_CHUNK = b'0\r\n\r\n'
CHUNKED = OK + b'transfer-encoding: chunked\r\n'

# what, method, all that the server sends before it closes, code, body, whether the connection may be used again
GOOD_RESPONSES = (
    # 1. No body, whatever the headers say
    ('HEAD, a length', b'HEAD', with_length(b'5', b''), b'200', b'', True),
    ('HEAD, chunked', b'HEAD', CHUNKED + b'\r\n', b'200', b'', True),
    ('HEAD, neither', b'HEAD', OK + b'\r\n', b'200', b'', True),
    ('HEAD, both', b'HEAD', CHUNKED + b'content-length: 5\r\n\r\n', b'200', b'', True),
    ('HEAD, differing lengths', b'HEAD', OK + b'content-length: 5, 6\r\n\r\n', b'200', b'', True),
    ('HEAD, a body all the same', b'HEAD', with_length(b'5'), b'200', b'', False),
    ('204, neither', b'GET', b'HTTP/1.1 204 No Content\r\n\r\n', b'204', b'', True),
    ('204, a length', b'GET', b'HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n', b'204', b'', True),
    ('204, chunked', b'GET', b'HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n', b'204', b'', True),
    ('204, a body all the same', b'GET', b'HTTP/1.1 204 No Content\r\n\r\nhello', b'204', b'', False),
    ('304, neither', b'GET', b'HTTP/1.1 304 Not Modified\r\n\r\n', b'304', b'', True),
    ('304, a length', b'GET', b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n', b'304', b'', True),
    ('304, chunked', b'GET', b'HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n', b'304', b'', True),
    ('100 first', b'GET', CONTINUE + with_length(b'5'), b'200', b'hello', True),
    ('102 and 103 first', b'GET', b'HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n' +
     with_length(b'5'), b'200', b'hello', True),
    ('1xx with a length and a coding', b'GET', b'HTTP/1.1 103 E\r\ncontent-length: 5\r\n\r\n'
     b'HTTP/1.1 199 X\r\ntransfer-encoding: chunked\r\n\r\n' + with_length(b'5'), b'200', b'hello', True),
    ('1xx with close', b'GET', b'HTTP/1.1 100 C\r\nconnection: close\r\n\r\n' + OK_EMPTY, b'200', b'', True),
    ('100 before HEAD', b'HEAD', CONTINUE + with_length(b'5', b''), b'200', b'', True),
    ('100 before chunked', b'GET', CONTINUE + chunked_response(b'5\r\nhello\r\n', LAST_CHUNK), b'200', b'hello', True),
    # 2. chunked
    ('chunked, empty', b'GET', chunked_response(LAST_CHUNK), b'200', b'', True),
    ('chunked', b'GET', chunked_response(b'5\r\nhello\r\n', b'1\r\n!\r\n', LAST_CHUNK), b'200', b'hello!', True),
    ('chunked, in capitals', b'GET', OK + b'Transfer-ENCODING: Chunked\r\n\r\n' + LAST_CHUNK, b'200', b'', True),
    ('chunked, hexadecimal in capitals', b'GET', chunked_response(b'A\r\n0123456789\r\n', LAST_CHUNK), b'200',
     b'0123456789', True),
    ('chunked, hexadecimal', b'GET', chunked_response(b'a\r\n0123456789\r\n', LAST_CHUNK), b'200', b'0123456789', True),
    ('chunked, two digits', b'GET', chunked_response(b'1f\r\n' + b'x' * 31 + b'\r\n', LAST_CHUNK), b'200', b'x' * 31,
     True),
    ('chunked, leading zeros', b'GET', chunked_response(b'0000000000000005\r\nhello\r\n', LAST_CHUNK), b'200', b'hello',
     True),
    ('chunked, many zeros at last', b'GET', chunked_response(b'0000000000000000\r\n\r\n'), b'200', b'', True),
    ('chunked, extensions', b'GET', chunked_response(b'5;a=b;c="d;e"\r\nhello\r\n', b'1;x\r\n!\r\n', b'0;y=z\r\n\r\n'),
     b'200', b'hello!', True),
    ('chunked, an extension after a blank', b'GET', chunked_response(b'5 ; a=b\r\nhello\r\n', LAST_CHUNK), b'200',
     b'hello', True),
    ('chunked, what looks like a chunk inside one', b'GET', chunked_response(b'7\r\n\r\n0\r\n\r\n\r\n', LAST_CHUNK),
     b'200', b'\r\n0\r\n\r\n', True),
    ('chunked, trailers', b'GET', chunked_response(b'5\r\nhello\r\n0\r\na: b\r\nC-d: \xff\r\n\r\n'), b'200', b'hello',
     True),
    ('chunked, a trailer that looks like framing', b'GET', chunked_response(
        b'5\r\nhello\r\n0\r\ncontent-length: 9\r\nconnection: close\r\n\r\n'), b'200', b'hello', True),
    ('chunked, surplus', b'GET', chunked_response(b'5\r\nhello\r\n', LAST_CHUNK, b'x'), b'200', b'hello', False),
    ('chunked, surplus after trailers', b'GET', chunked_response(b'0\r\na: b\r\n\r\n', OK_EMPTY), b'200', b'', False),
    ('chunked, surplus CRLF', b'GET', chunked_response(LAST_CHUNK, b'\r\n'), b'200', b'', False),
    ('chunked, close', b'GET', CHUNKED + b'connection: close\r\n\r\n5\r\nhello\r\n' + LAST_CHUNK, b'200', b'hello',
     False),
    # 3. content-length
    ('a length', b'GET', with_length(b'5'), b'200', b'hello', True),
    ('a length of nothing', b'GET', OK_EMPTY, b'200', b'', True),
    ('a length in capitals', b'GET', with_length(b'5', name=b'CONTENT-Length'), b'200', b'hello', True),
    ('a length, leading zeros', b'GET', with_length(b'00000000000000000000000005'), b'200', b'hello', True),
    ('a list of one length', b'GET', with_length(b'5, 5,5'), b'200', b'hello', True),
    ('repeats of one length', b'GET', OK + b'content-length: 5\r\na: b\r\nContent-Length: 5\r\n\r\nhello', b'200',
     b'hello', True),
    ('a length between blanks', b'GET', with_length(b' \t 5 \t '), b'200', b'hello', True),
    ('a length, surplus', b'GET', with_length(b'5', b'hello!'), b'200', b'hello', False),
    ('a length, surplus that looks like a response', b'GET', with_length(b'5') + OK_EMPTY, b'200', b'hello', False),
    ('no length, surplus', b'GET', OK_EMPTY + b'x', b'200', b'', False),
    ('a length, close', b'GET', OK + b'connection: close\r\ncontent-length: 5\r\n\r\nhello', b'200', b'hello', False),
    ('a length, HTTP/1.0', b'GET', b'HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello', b'200', b'hello', False),
    ('a length, HTTP/1.0, keep-alive', b'GET',
     b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello', b'200', b'hello', True),
    ('a body that looks like the end of a head', b'GET', with_length(b'8', b'\r\n\r\n\n\n\r\n'), b'200',
     b'\r\n\r\n\n\n\r\n', True),
    ('an error with a body', b'GET', b'HTTP/1.1 500 Oh\r\ncontent-length: 5\r\n\r\nhello', b'500', b'hello', True),
    # 4. Until the connection closes
    ('until close', b'GET', OK + b'\r\nhello', b'200', b'hello', False),
    ('until close, nothing', b'GET', OK + b'\r\n', b'200', b'', False),
    ('until close, HTTP/1.0', b'GET', b'HTTP/1.0 200 OK\r\n\r\nhello', b'200', b'hello', False),
    ('until close, keep-alive all the same', b'GET', OK + b'connection: keep-alive\r\n\r\nhello', b'200', b'hello',
     False),
    ('until close, HTTP/1.0, keep-alive all the same', b'GET',
     b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nhello', b'200', b'hello', False),
    # Heads
    ('bare LF', b'GET', b'HTTP/1.1 200 OK\na: b\ncontent-length: 5\n\nhello', b'200', b'hello', True),
    ('bare LF, and a body that looks like the end of a head', b'GET',
     b'HTTP/1.1 200 OK\ncontent-length: 4\n\n\r\n\r\n', b'200', b'\r\n\r\n', True),
    ('bare LF at the end only', b'GET', OK + b'content-length: 5\r\n\nhello', b'200', b'hello', True),
    ('bare LF before the end', b'GET', OK + b'content-length: 5\n\r\nhello', b'200', b'hello', True),
    ('bare LF in a 1xx', b'GET', b'HTTP/1.1 100 C\n\n' + with_length(b'5'), b'200', b'hello', True),
    ('obs-fold in a length', b'GET', OK + b'content-length:\r\n 5\r\n\r\nhello', b'200', b'hello', True),
    ('obs-fold in a coding', b'GET', OK + b'transfer-encoding:\r\n\tchunked\r\n\r\n' + LAST_CHUNK, b'200', b'', True),
    ('no reason', b'GET', b'HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello', b'200', b'hello', True),
    ('no reason, and no space', b'GET', b'HTTP/1.1 200\r\ncontent-length: 5\r\n\r\nhello', b'200', b'hello', True),
    ('a reason in another language', b'GET', b'HTTP/1.1 200 \xc3\xa7a va: bien\r\ncontent-length: 5\r\n\r\nhello',
     b'200', b'hello', True),
    ('an unknown code', b'GET', b'HTTP/1.1 299 X\r\ncontent-length: 5\r\n\r\nhello', b'299', b'hello', True),
)

# what, method, all that the server sends before it closes, error
BAD_RESPONSES = (
    ('101', b'GET', b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n', HttpProtocolError),
    ('101 after 100', b'GET', CONTINUE + b'HTTP/1.1 101 X\r\n\r\n' + OK_EMPTY, HttpProtocolError),
    ('1xx and no more', b'GET', CONTINUE, HttpConnectionClosedError),
    # transfer-encoding
    ('both', b'GET', CHUNKED + b'content-length: 5\r\n\r\n' + LAST_CHUNK, HttpProtocolError),
    ('both, the other way round', b'GET', OK + b'content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n' + LAST_CHUNK,
     HttpProtocolError),
    ('chunked, HTTP/1.0', b'GET', b'HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n' + LAST_CHUNK,
     HttpProtocolError),
    ('chunked, HTTP/1.0, keep-alive', b'GET',
     b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n' + LAST_CHUNK,
     HttpProtocolError),
    ('two codings', b'GET', CHUNKED + CHUNKED[len(OK):] + b'\r\n' + LAST_CHUNK, HttpProtocolError),
) + tuple(
    (('coding', coding), b'GET', OK + b'transfer-encoding: ' + coding + b'\r\n\r\n' + LAST_CHUNK, HttpProtocolError)
    for coding in (b'gzip', b'gzip, chunked', b'chunked, gzip', b'chunked, chunked', b'identity', b'', b'xchunked',
                   b'chunked;a=b', b'\x0bchunked', b'chunked\x0c', b'"chunked"', b'chunked,')
) + tuple(
    # content-length
    (('length', value), b'GET', with_length(value), HttpProtocolError)
    for value in (b'', b'five', b'+5', b'-5', b'-0', b'5.0', b'0x5', b'5_0', b'5 5', b'5;', b'\xef\xbc\x95', b'\xb2',
                  b'5, 6', b'6,5', b'5, x', b'5\x0b', b'9223372036854775808', b'99999999999999999999999')
) + (
    ('differing lengths', b'GET', OK + b'content-length: 5\r\nContent-Length: 6\r\n\r\nhello', HttpProtocolError),
    ('differing lengths of three', b'GET', OK + b'content-length: 5, 5\r\ncontent-length: 6\r\n\r\nhello',
     HttpProtocolError),
    ('the largest length, cut', b'GET', with_length(b'9223372036854775807'), HttpConnectionClosedError),
    ('a length, cut', b'GET', with_length(b'6'), HttpConnectionClosedError),
) + tuple(
    # Chunks
    (('chunk', chunk), b'GET', chunked_response(chunk, LAST_CHUNK), HttpProtocolError)
    for chunk in (
        b'0x5\r\nhello\r\n', b'+5\r\nhello\r\n', b'1_0\r\n0123456789abcdef\r\n', b'-1\r\nhello\r\n', b'\r\nhello\r\n',
        b'g\r\nhello\r\n', b' 5\r\nhello\r\n', b'5 5\r\nhello\r\n', b'5\nhello\r\n', b'5\rhello\r\n',
        b';a\r\nhello\r\n', b'00000000000000005\r\nhello\r\n', b'\xef\xbc\x95\r\nhello\r\n', b'5;a\nhello\r\n',
        b'5;a=b\x0a\r\nhello\r\n', b'5,5\r\nhello\r\n', b'five\r\nhello\r\n', b'5\r\nhello', b'5\r\nhelloX\r\n',
        b'5\r\nhello\n', b'5\r\nhello\r', b'5\r\nhello\rX', b'5\r\nhello\n\r', b'5\r\nhell\r\n',
        b'5\r\nhello!\r\n', b'5\r\nhello\r\n\r\n', b'-0\r\n\r\n',
    )
) + tuple(
    (('trailer', trailer), b'GET', chunked_response(b'5\r\nhello\r\n0\r\n', trailer, b'\r\n\r\n'), HttpProtocolError)
    for trailer in (b'x', b': v', b' a: b', b'a : b', b'a b: c', b'a\x00: b', b'a: b\x00', b'a: b\rc', b'a: b\r\nx',
                    b'\xe9: b', b'x\r\na: b')
) + (
    ('chunked, cut in the data', b'GET', chunked_response(b'6\r\nhello'), HttpConnectionClosedError),
    ('chunked, the largest chunk', b'GET', chunked_response(b'ffffffffffffffff\r\nhello'), HttpConnectionClosedError),
    ('chunked, no last chunk', b'GET', chunked_response(b'5\r\nhello\r\n'), HttpConnectionClosedError),
    ('chunked, no empty line', b'GET', chunked_response(b'5\r\nhello\r\n0\r\n'), HttpConnectionClosedError),
    ('chunked, cut in the trailers', b'GET', chunked_response(b'0\r\na: b\r\n'), HttpConnectionClosedError),
) + tuple(
    # Heads
    (('status line', line), b'GET', line + b'\r\ncontent-length: 5\r\n\r\nhello', HttpProtocolError)
    for line in (b'ICY 200 OK', b'http/1.1 200 OK', b'HTTP/2 200 OK', b'HTTP/2.0 200 OK', b'HTTP/1 200 OK',
                 b'HTTP/11.1 200 OK', b'HTTP/1.10 200 OK', b'HTTP/1.x 200 OK', b'HTTP/1.1200 OK', b'HTTP/1.1\t200 OK',
                 b'HTTP/1.1 20 OK', b'HTTP/1.1 2000 OK', b'HTTP/1.1 2x0 OK', b'HTTP/1.1 +20 OK', b'HTTP/1.1 OK',
                 b'HTTP/1.1 \xef\xbc\x92\xef\xbc\x90\xef\xbc\x90 OK', b'HTTP/1.1', b'HTTP/1.1 ', b'XHTTP/1.1 200 OK',
                 b'HTTP/1.1 200OK', b' HTTP/1.1 200 OK', b'SSH-2.0-OpenSSH', b'HTTP/1.1 200 O\rK',
                 b'HTTP/1.1 200 OK\x00')
) + tuple(
    (('field line', line), b'GET', OK + line + b'\r\ncontent-length: 5\r\n\r\nhello', HttpProtocolError)
    for line in (b'x', b':', b': v', b'a b: c', b'a : b', b'a\t: b', b'transfer-encoding : chunked', b' a: b',
                 b'\ta: b', b'a\x00: b', b'a: b\x00c', b'a: b\rc', b'\ra: b', b'a: b\r\r', b'a\rb: c', b'\xe9: b',
                 b'(a): b', b'a@: b', b'HTTP/1.1 200 OK')
) + (
    ('no HTTP at all', b'GET', b'<html>', HttpProtocolError),
    ('nothing', b'GET', b'', HttpConnectionClosedError),
    ('a head, cut', b'GET', OK + b'content-le', HttpConnectionClosedError),
)


def in_bytes(wire):
    return [wire[i:i + 1] for i in range(len(wire))]


def splits(wire):
    """The wire whole, byte by byte, and split in two at each offset"""
    return [[wire] if wire else [], in_bytes(wire)] + [[wire[:i], wire[i:]] for i in range(1, len(wire))]


def framing_of(method, code, version, headers):
    return lowhaio.response_framing(method, code, version, lowhaio.by_name(headers))


def by_pure_functions(method, pieces):
    """(code, headers, body, surplus) as the functions without input or output understand these pieces"""
    reader = lowhaio.HeadReader(65536, 65536)
    pieces = iter(pieces)
    while reader.head is None:
        reader.feed(next(pieces, b''))
    (version, code, headers), rest = reader.head, bytes(reader.rest)
    kind, length = framing_of(method, code, version, headers)
    if kind == 'none':
        return code, headers, b'', rest + b''.join(pieces)
    decode = \
        lowhaio.length_decoder(length) if kind == 'length' else \
        lowhaio.chunked_decoder(65536) if kind == 'chunked' else \
        lowhaio.decode_until_closed
    body = b''
    payload, surplus = decode(rest) if rest else (b'', None)
    body += payload
    while surplus is None:
        payload, surplus = decode(next(pieces, b''))
        body += payload
    if isinstance(surplus, HttpError):
        raise surplus
    return code, headers, body, surplus + b''.join(pieces)


class TestResponseFraming(MessageTestCase):

    async def test_responses_are_understood_wherever_they_are_cut(self):
        for what, method, wire, code, body, kept in GOOD_RESPONSES:
            with self.subTest(what):
                whole = None
                for pieces in splits(wire):
                    outcome = await self.outcome(method, pieces)
                    self.assertEqual((outcome[0], outcome[2], outcome[3]), (code, body, kept), pieces)
                    whole = whole or outcome
                    self.assertEqual(outcome, whole, pieces)

    async def test_bad_responses_are_refused_wherever_they_are_cut(self):
        for what, method, wire, error in BAD_RESPONSES:
            with self.subTest(what):
                for pieces in splits(wire):
                    raised = await self.raises(error, self.outcome(method, pieces))
                    self.assertEqual((raised.reused, raised.answered), (False, bool(wire)), pieces)

    def test_the_pure_functions_understand_them_wherever_they_are_cut(self):
        for what, method, wire, code, body, kept in GOOD_RESPONSES:
            with self.subTest(what):
                whole = by_pure_functions(method, [wire])
                self.assertEqual((whole[0], whole[2]), (code, body))
                self.assertTrue(wire.endswith(whole[3]))
                if kept:
                    self.assertEqual(whole[3], b'')
                for pieces in splits(wire):
                    self.assertEqual(by_pure_functions(method, pieces), whole, pieces)

    def test_the_pure_functions_refuse_bad_ones_wherever_they_are_cut(self):
        for what, method, wire, error in BAD_RESPONSES:
            with self.subTest(what):
                for pieces in splits(wire):
                    with self.assertRaises(error) as caught:
                        by_pure_functions(method, pieces)
                    self.assertIs(type(caught.exception), error)

    async def test_responses_are_understood_on_a_real_socket_whole_and_byte_by_byte(self):
        wires = [row[2] for row in GOOD_RESPONSES] + [row[2] for row in BAD_RESPONSES]

        def script(peer):
            index = int(peer.read_head().split(b' ')[1][1:])
            peer.send(wires[index])

        port = self.serve(script)
        for kwargs in ({}, {'recv_bufsize': 1}):
            request, _ = self.pool(**kwargs)

            async def outcome(method, index, request=request):
                # The connection is closed by this side too, so that the next request does not meet one which the
                # server is about to close.
                code, _, response = await request(method, 'http://127.0.0.1:{}/{}'.format(port, index),
                                                  headers=((b'connection', b'close'),))
                return code, await buffered(response)

            for index, (what, method, _, code, body, _) in enumerate(GOOD_RESPONSES):
                with self.subTest((what, kwargs)):
                    self.assertEqual(await outcome(method, index), (code, body))
            for index, (what, method, wire, error) in enumerate(BAD_RESPONSES, len(GOOD_RESPONSES)):
                with self.subTest((what, kwargs)):
                    raised = await self.raises(error, outcome(method, index))
                    self.assertEqual((raised.reused, raised.answered), (False, bool(wire)))

    async def test_an_end_before_the_end_is_an_error_at_every_offset(self):
        for what, wire in (
                ('a length', with_length(b'5')),
                ('a length after 100', CONTINUE + with_length(b'5')),
                ('a length and bare LF', b'HTTP/1.1 200 OK\ncontent-length: 5\n\nhello'),
                ('chunked', chunked_response(b'5\r\nhello\r\n', b'b;x=y\r\nhello world\r\n', LAST_CHUNK)),
                ('chunked and trailers', chunked_response(b'5\r\nhello\r\n', b'0\r\na: b\r\nc: d\r\n\r\n')),
        ):
            for end in range(len(wire)):
                for pieces in ([wire[:end]] if end else [], in_bytes(wire[:end])):
                    with self.subTest((what, wire[:end], len(pieces))):
                        error = await self.raises(HttpConnectionClosedError, self.outcome(b'GET', pieces))
                        self.assertEqual((error.reused, error.answered), (False, end > 0))
            with self.subTest((what, 'whole')):
                self.assertEqual((await self.outcome(b'GET', [wire]))[3], True)

    async def test_5000_digits_are_judged_as_digits(self):
        for digits, error in (
                (b'9' * 5000, HttpProtocolError),
                (b'1' + b'0' * 5000, HttpProtocolError),
                (b'0' * 5000 + b'5', None),
        ):
            for pieces in ([with_length(digits)], in_bytes(with_length(digits))):
                with self.subTest((digits[:2], len(pieces))):
                    if error is None:
                        self.assertEqual((await self.outcome(b'GET', pieces))[2], b'hello')
                    else:
                        await self.raises(error, self.outcome(b'GET', pieces))

    def test_framing_is_a_function_of_method_code_version_and_headers(self):
        length, chunked = (b'content-length', b'5'), (b'transfer-encoding', b'chunked')
        for method in (b'GET', b'POST', b'PUT', b'DELETE', b'OPTIONS', b'get', b'head'):
            for code in (b'200', b'201', b'205', b'206', b'301', b'400', b'404', b'413', b'500', b'599'):
                for version, headers, framing in (
                        (b'1.1', (), ('close', 0)),
                        (b'1.0', (), ('close', 0)),
                        (b'1.1', (length,), ('length', 5)),
                        (b'1.0', (length,), ('length', 5)),
                        (b'1.1', (length, length), ('length', 5)),
                        (b'1.1', ((b'content-length', b'0'),), ('none', 0)),
                        (b'1.1', ((b'content-length', b'9223372036854775807'),), ('length', 2 ** 63 - 1)),
                        (b'1.1', ((b'content-length', b'000' + b'9223372036854775807'),), ('length', 2 ** 63 - 1)),
                        (b'1.1', (chunked,), ('chunked', 0)),
                        (b'1.1', ((b'a', b'content-length'), (b'x-content-length', b'5')), ('close', 0)),
                        (b'1.0', (chunked,), HttpProtocolError),
                        (b'1.1', (chunked, length), HttpProtocolError),
                        (b'1.1', (chunked, chunked), HttpProtocolError),
                        (b'1.1', (length, (b'content-length', b'6')), HttpProtocolError),
                        (b'1.1', ((b'content-length', b'9223372036854775808'),), HttpProtocolError),
                ):
                    with self.subTest((method, code, version, headers)):
                        if isinstance(framing, tuple):
                            self.assertEqual(framing_of(method, code, version, headers), framing)
                        else:
                            with self.assertRaises(framing):
                                framing_of(method, code, version, headers)
        for method, code in ((b'HEAD', b'200'), (b'HEAD', b'500'), (b'GET', b'204'), (b'POST', b'304'),
                             (b'GET', b'100'), (b'GET', b'103'), (b'GET', b'199')):
            for version in (b'1.0', b'1.1'):
                for headers in ((), (length,), (chunked,), (length, chunked), ((b'content-length', b'x'),)):
                    with self.subTest((method, code, version, headers)):
                        self.assertEqual(framing_of(method, code, version, headers), ('none', 0))

    async def test_headers_come_in_order_lower_cased_duplicates_kept(self):
        for what, fields, expected in (
                ('none', b'', ()),
                ('order, duplicates', b'B: 2\r\na: 1\r\nB: 3\r\nb: 2\r\n',
                 ((b'b', b'2'), (b'a', b'1'), (b'b', b'3'), (b'b', b'2'))),
                ('blanks around', b'a:1\r\nb: \t 2 \t \r\nc:\t3 4\t5\r\n',
                 ((b'a', b'1'), (b'b', b'2'), (b'c', b'3 4\t5'))),
                ('nothing', b'a:\r\nb: \r\nc:\t \r\n', ((b'a', b''), (b'b', b''), (b'c', b''))),
                ('any byte', b"!#$%&'*+-.^_`|~09azAZ: \x01\x7f\x80\xe9\xff:;\"\r\n",
                 ((b"!#$%&'*+-.^_`|~09azaz", b'\x01\x7f\x80\xe9\xff:;"'),)),
                ('case of values', b'Set-Cookie: A=B; Path=/\r\nset-cookie: C=D\r\n',
                 ((b'set-cookie', b'A=B; Path=/'), (b'set-cookie', b'C=D'))),
                ('obs-fold', b'a: b\r\n c\r\nd: e\r\n\tf\r\n', ((b'a', b'b c'), (b'd', b'e f'))),
                ('obs-fold, twice and long', b'a: b\r\n \t  c\r\n d\r\n', ((b'a', b'b c d'),)),
                ('obs-fold at the beginning', b'a:\r\n b\r\n', ((b'a', b'b'),)),
                ('obs-fold at the end', b'a: b\r\n \r\n', ((b'a', b'b'),)),
                ('obs-fold and what looks like a field', b'a: b\r\n c: d\r\n', ((b'a', b'b c: d'),)),
                ('obs-fold after bare LF', b'a: b\n c\n', ((b'a', b'b c'),)),
        ):
            with self.subTest(what):
                wire = OK + fields + b'content-length: 0\r\n\r\n'
                for pieces in splits(wire):
                    _, headers, _, _ = await self.outcome(b'GET', pieces)
                    self.assertIsInstance(headers, tuple)
                    # Each fold may become one or more spaces.
                    headers = tuple((name, b' '.join(value.split(b' '))) for name, value in headers)
                    self.assertEqual(headers, expected + ((b'content-length', b'0'),), pieces)

    def test_parse_head_gives_version_code_and_headers(self):
        for head, expected in (
                (b'HTTP/1.1 200 OK\r\n\r\n', (b'1.1', b'200', ())),
                (b'HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n', (b'1.0', b'404', ((b'a', b'b'),))),
                (b'HTTP/1.1 200\n\n', (b'1.1', b'200', ())),
        ):
            with self.subTest(head):
                self.assertEqual(lowhaio.parse_head(head), expected)


class TestLimits(MessageTestCase):

    LIMIT = 200

    def cuts(self, wire):
        return ([wire], in_bytes(wire), [wire[i:i + 7] for i in range(0, len(wire), 7)],
                [wire[i:i + 150] for i in range(0, len(wire), 150)])

    async def assert_within(self, what, wire, body):
        for pieces in self.cuts(wire):
            with self.subTest((what, 'within', len(pieces))):
                _, _, content, _ = await self.outcome(b'GET', pieces, max_header_length=self.LIMIT)
                self.assertTrue(content == body)

    async def assert_too_long(self, what, wire, endless=False):
        for pieces in self.cuts(wire):
            with self.subTest((what, 'too long', len(pieces))):
                error = await self.raises(HttpHeaderTooLong, self.outcome(b'GET', pieces, max_header_length=self.LIMIT))
                self.assertIn(str(self.LIMIT), str(error))
                self.assertEqual((error.reused, error.answered), (False, True))
                if endless and len(pieces) > 1:
                    # What has come when the limit is passed: the limit itself, and the last piece.
                    read = len(wire) - sum(map(len, self.unread))
                    self.assertLessEqual(read, endless + self.LIMIT + len(pieces[0]))

    async def test_the_head_is_bounded(self):
        def head(length, end=b'\r\n\r\n'):
            begin = OK + b'content-length: 5\r\na: '
            return begin + b'x' * (length - len(begin) - len(end)) + end

        def many_fields(length):
            begin, end = OK + b'content-length: 5\r\n', b'\r\n'
            fields = b'a: b\r\n' * ((length - len(begin) - len(end)) // 6)
            return begin + fields + end

        await self.assert_within('one field', head(self.LIMIT) + b'hello', b'hello')
        await self.assert_too_long('one field', head(self.LIMIT + 1) + b'hello')
        await self.assert_within('many fields', many_fields(self.LIMIT) + b'hello', b'hello')
        await self.assert_too_long('many fields', many_fields(self.LIMIT + 7) + b'hello')
        await self.assert_too_long('no end', head(self.LIMIT * 20, b''), 1)
        await self.assert_too_long('no end of the status line', b'HTTP/1.1 200 ' + b'x' * self.LIMIT * 20, 1)
        await self.assert_too_long('bare LF', head(self.LIMIT + 1, b'\n\n') + b'hello')
        # A body that came with its head is not part of it.
        size = self.LIMIT * 20
        await self.assert_within('a long body', with_length(b'%d' % size, b'x' * size), b'x' * size)

    async def test_a_run_of_1xx_is_bounded(self):
        final = with_length(b'5')
        head_length = len(final) - 5
        count = (self.LIMIT - head_length) // len(CONTINUE)
        self.assertGreater(count, 2)
        await self.assert_within('few', CONTINUE * count + final, b'hello')
        await self.assert_too_long('many', CONTINUE * (count + 1) + final)
        await self.assert_too_long('endless', CONTINUE * 200, 1)
        await self.assert_too_long('a long one', b'HTTP/1.1 103 E\r\nlink: ' + b'x' * self.LIMIT + b'\r\n\r\n' + final)

    async def test_a_chunk_size_line_with_its_extension_is_bounded(self):
        begin = len(chunked_response())
        for what, before, body in (('the first', b'', b''), ('a later one', b'5\r\nhello\r\n', b'hello')):
            for length, check in ((self.LIMIT, 'within'), (self.LIMIT + 1, 'too long')):
                extension = b';' + b'x' * (length - 4)
                for last in (False, True):
                    wire = chunked_response(before, b'0' + extension + b'\r\n\r\n') if last else \
                        chunked_response(before, b'1' + extension + b'\r\n!\r\n', LAST_CHUNK)
                    name = (what, last)
                    if check == 'within':
                        await self.assert_within(name, wire, body if last else body + b'!')
                    else:
                        await self.assert_too_long(name, wire)
            await self.assert_too_long((what, 'endless'), chunked_response(before, b'5;', b'x' * self.LIMIT * 20),
                                       begin + len(before))
        # The lines are bounded each, not together, and the data not at all. Nor is any but the shortest remembered.
        lowhaio.chunk_size.cache_clear()
        await self.assert_within('extended', chunked_response(b'1;' + b'x' * 99 + b'\r\n!\r\n', LAST_CHUNK), b'!')
        self.assertEqual(lowhaio.chunk_size.cache_info().currsize, 1)  # that of the last chunk
        count = self.LIMIT
        await self.assert_within('many lines', chunked_response(b'1;abc\r\n!\r\n' * count, LAST_CHUNK), b'!' * count)
        size = self.LIMIT * 20
        await self.assert_within('a large chunk', chunked_response(b'%x\r\n' % size, b'x' * size, b'\r\n', LAST_CHUNK),
                                 b'x' * size)

    async def test_the_trailers_are_bounded_together(self):
        begin = len(chunked_response(b'5\r\nhello\r\n0\r\n'))

        def response(trailers):
            return chunked_response(b'5\r\nhello\r\n0\r\n', trailers, b'\r\n')

        await self.assert_within('one', response(b'a: ' + b'x' * (self.LIMIT - 7) + b'\r\n'), b'hello')
        await self.assert_too_long('one', response(b'a: ' + b'x' * (self.LIMIT - 6) + b'\r\n'))
        await self.assert_within('many', response(b'a: b\r\n' * ((self.LIMIT - 2) // 6)), b'hello')
        await self.assert_within('surplus after them', response(b'a: b\r\n') + b'x' * self.LIMIT * 20, b'hello')
        await self.assert_too_long('many', response(b'a: b\r\n' * (self.LIMIT // 6 + 1)))
        for what, trailers in (
                ('endless', b'a: b\r\n' * self.LIMIT * 10), ('one endless', b'a: ' + b'x' * self.LIMIT * 20),
        ):
            await self.assert_too_long(what, chunked_response(b'5\r\nhello\r\n0\r\n', trailers), begin)

    async def test_a_head_of_60000_bytes_is_taken_by_default(self):
        fields = b'set-cookie: ' + b'x' * 60000 + b'\r\n'
        for kwargs, port in (
                ({}, self.answer(OK + fields + b'content-length: 5\r\n\r\nhello')),
                ({'recv_bufsize': 100}, self.answer(OK + fields + b'content-length: 5\r\n\r\nhello')),
        ):
            request, _ = self.pool(**kwargs)
            _, headers, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(port))
            self.assertEqual(len(headers[0][1]), 60000)
            self.assertEqual(await buffered(body), b'hello')


class TestPersistence(MessageTestCase):

    # version, connection fields of the response, connection fields of the request, whether it is used again
    CASES = (
        (b'1.1', (), (), True),
        (b'1.1', (b'keep-alive',), (), True),
        (b'1.1', (b'close',), (), False),
        (b'1.1', (b'Close',), (), False),
        (b'1.1', (b'CLOSE',), (), False),
        (b'1.1', (b'keep-alive, close',), (), False),
        (b'1.1', (b'close, keep-alive',), (), False),
        (b'1.1', (b'foo ,\tClose\t, bar',), (), False),
        (b'1.1', (b',close',), (), False),
        (b'1.1', (b'keep-alive', b'close'), (), False),
        (b'1.1', (b'close', b'keep-alive'), (), False),
        (b'1.1', (b'upgrade',), (), True),
        (b'1.1', (b'closed',), (), True),
        (b'1.1', (b'x-close',), (), True),
        (b'1.1', (b'close-x',), (), True),
        (b'1.1', (b'XcloseX',), (), True),
        (b'1.1', (b'',), (), True),
        (b'1.1', (), (b'keep-alive',), True),
        (b'1.1', (), (b'close',), False),
        (b'1.1', (), (b'Close',), False),
        (b'1.1', (), (b'te, close',), False),
        (b'1.1', (), (b'te', b'close'), False),
        (b'1.1', (b'keep-alive',), (b'close',), False),
        (b'1.0', (), (), False),
        (b'1.0', (), (b'keep-alive',), False),
        (b'1.0', (b'foo',), (), False),
        (b'1.0', (b'close',), (), False),
        (b'1.0', (b'keep-alive',), (), True),
        (b'1.0', (b'Keep-Alive',), (), True),
        (b'1.0', (b'foo, keep-alive',), (), True),
        (b'1.0', (b'foo', b'keep-alive'), (), True),
        (b'1.0', (b'keep-alive, close',), (), False),
        (b'1.0', (b'keep-alive', b'close'), (), False),
        (b'1.0', (b'keep-alive',), (b'close',), False),
        (b'1.0', (b'keep-alive-x',), (), False),
    )

    def server(self, response):
        """Answers each request of a connection, for as long as the client keeps it"""
        def script(peer):
            while peer.read_head():
                peer.send(response)

        return 'http://127.0.0.1:{}/'.format(self.serve(script))

    def test_persists_is_a_function_of_version_and_connection_fields(self):
        for version, response, sent, expected in self.CASES:
            with self.subTest((version, response, sent)):
                named, sent_named = (
                    lowhaio.by_name(((b'a', b'close'),) + tuple((b'connection', value) for value in values))
                    for values in (response, sent)
                )
                seconds = lowhaio.keep_alive_seconds(version, named, 15)
                self.assertIs(seconds == 15 and not lowhaio.asks_to_close(sent_named), expected)

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

    async def test_a_connection_is_used_again_if_it_persists(self):
        for version, response, sent, expected in self.CASES:
            with self.subTest((version, response, sent)):
                fields = b''.join(b'Connection: ' + value + b'\r\n' for value in response)
                url = self.server(b'HTTP/' + version + b' 200 OK\r\n' + fields + b'content-length: 5\r\n\r\nhello')
                headers = tuple((b'Connection', value) for value in sent)
                request, _ = self.pool()
                accepted = self.accepted
                for _ in range(3):
                    _, _, body = await request(b'GET', url, headers=headers)
                    self.assertEqual(await buffered(body), b'hello')
                self.assertEqual(self.accepted - accepted, 1 if expected else 3)

    async def test_a_complete_response_gives_its_connection_back(self):
        for what, method, wire, _, body, kept in GOOD_RESPONSES:
            if not kept:
                continue
            with self.subTest(what):
                url = self.server(wire)
                request, _ = self.pool()
                accepted = self.accepted
                for _ in range(3):
                    _, _, response = await request(method, url)
                    self.assertEqual(await buffered(response), body)
                self.assertEqual(self.accepted - accepted, 1)

    async def test_a_response_without_body_gives_it_back_before_request_returns(self):
        for method, wire in (
                (b'HEAD', with_length(b'5', b'')),
                (b'GET', b'HTTP/1.1 204 No Content\r\n\r\n'),
                (b'GET', b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n'),
                (b'GET', OK_EMPTY),
                (b'GET', chunked_response(LAST_CHUNK)),
                # Complete when its head arrives, since it comes with it.
                (b'GET', with_length(b'5')),
                (b'GET', chunked_response(b'5\r\nhello\r\n', LAST_CHUNK)),
        ):
            with self.subTest(wire):
                url = self.server(wire)
                request, _ = self.pool()
                accepted = self.accepted
                # Neither read nor dropped.
                responses = [await request(method, url) for _ in range(3)]
                self.assertEqual((len(responses), self.accepted - accepted), (3, 1))

    async def test_a_connection_with_surplus_is_not_used_again(self):
        for wire, method, body in (
                (with_length(b'5', b'hello!'), b'GET', b'hello'),
                (OK_EMPTY + b'!', b'GET', b''),
                (OK_EMPTY + OK_EMPTY, b'GET', b''),
                (with_length(b'5'), b'HEAD', b''),
                (b'HTTP/1.1 204 No Content\r\n\r\nx', b'GET', b''),
                (chunked_response(LAST_CHUNK, b'\r\n'), b'GET', b''),
                (chunked_response(b'5\r\nhello\r\n', LAST_CHUNK, LAST_CHUNK), b'GET', b'hello'),
        ):
            for kwargs in ({}, {'recv_bufsize': 1}):
                with self.subTest((wire, kwargs)):
                    url = self.server(wire)
                    # Byte by byte, the surplus is in the socket when the response is complete.
                    request, _ = self.pool(**kwargs)
                    accepted = self.accepted
                    for _ in range(3):
                        # Not idempotent: it is not saved by being sent again.
                        code, _, response = await request(b'POST' if method == b'GET' else method, url)
                        self.assertEqual((code[:2], await buffered(response)), (b'20', body))
                    self.assertEqual(self.accepted - accepted, 3)

    async def test_a_connection_on_which_something_comes_unasked_is_not_used_again(self):
        spoken = threading.Event()

        def speaks(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            asked.wait()
            peer.send(OK + b'content-length: 4\r\n\r\nevil')
            spoken.set()
            peer.read_to_close()

        def answers(peer):
            peer.read_head()
            peer.send(with_length(b'5'))

        asked = threading.Event()
        url = 'http://127.0.0.1:{}/'.format(self.serve(speaks, answers))
        request, _ = self.pool()
        await request(b'POST', url)
        asked.set()
        spoken.wait()
        _, _, body = await request(b'POST', url)
        self.assertEqual((await buffered(body), self.accepted), (b'hello', 2))

    async def test_a_body_until_close_leaves_nothing_to_use_again(self):
        port = self.answer(OK + b'\r\nhello')
        request, made = self.scripted(OK + b'\r\n', b'hello')
        for _ in range(2):
            _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(port))
            self.assertEqual(await buffered(body), b'hello')
        self.assertEqual([connection.is_closed for connection in made], [True, True])


# -------- (c) Early answers


class TestExpect(MessageTestCase):

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

        url = 'http://127.0.0.1:{}/'.format(self.serve(script))
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

                    url = 'http://127.0.0.1:{}/'.format(self.serve(script, answers))
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

                    url = 'http://127.0.0.1:{}/'.format(self.serve(script))
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
        await request(b'POST', 'http://127.0.0.1:{}/'.format(self.serve(script)),
                      headers=((b'content-length', b'5'), self.EXPECT), body=streamed(b'hello'))
        self.assertEqual((got.get(), got.get()), (None, b'hello'))

    async def test_a_server_that_closes_instead_is_an_error(self):
        def script(peer):
            peer.read_head()

        body = BodyOnce(b'hello')
        request, _ = self.pool(expect_timeout=1000)
        error = await self.raises(HttpConnectionClosedError, request(
            b'POST', 'http://127.0.0.1:{}/'.format(self.serve(script)), headers=(self.EXPECT,), body=body))
        self.assertEqual((error.reused, error.answered), (False, False))
        self.assertEqual(bool(body.asked), bool(body.closed))


class SmallPieces(BodyWithoutEnd):
    """No send of them blocks, but the loop turns between them"""

    async def __anext__(self):
        await asyncio.sleep(0)
        return await super().__anext__()


class TestEarlyAnswer(MessageTestCase):

    def uploads(self):
        return (
            ('chunked', (), BodyWithoutEnd(bytes(65536))),
            ('a length', ((b'content-length', b'1000000000000'),), BodyWithoutEnd(bytes(65536))),
            ('one large piece', ((b'content-length', b'%d' % (1 << 25)),), BodyOnce(bytes(1 << 25))),
            ('small pieces', (), BodyWithoutEnd(b'x' * 100)),
            ('small pieces with pauses', (), SmallPieces(b'x' * 100)),
        )

    async def test_a_413_in_the_middle_of_an_upload_is_a_413(self):
        def close(peer, done):
            peer.close()

        def reset(peer, done):
            peer.reset()

        def stop_reading(peer, done):
            done.wait(PATIENCE)

        def read_on(peer, done):
            peer.read_to_close()

        for tls in (None, tls_server()):
            for ending in (close, reset, stop_reading, read_on):
                for before in (0, 100000):
                    for what, headers, body in self.uploads():
                        with self.subTest((tls is not None, ending.__name__, before, what)):
                            await self.assert_413(tls, ending, before, headers, body)

    async def assert_413(self, tls, ending, before, headers, body):
        done = threading.Event()

        def refuses(peer):
            peer.read_head()
            peer.read(before)
            peer.send(TOO_LARGE)
            ending(peer, done)

        def answers(peer):
            peer.read_head()
            peer.send(OK_EMPTY)

        url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(refuses, answers, tls=tls))
        accepted = self.accepted
        request, _ = self.pool(get_ssl_context=client_context)
        try:
            code, response_headers, response = await request(b'POST', url, headers=headers, body=body)
            self.assertEqual((code, await buffered(response)), (b'413', b'too large'))
            self.assertEqual(response_headers, ((b'content-length', b'9'),))
            self.assertEqual(body.closed, 1)
            await request(b'GET', url)
            self.assertEqual(self.accepted, accepted + 2)
        finally:
            done.set()

    async def test_an_answer_whose_body_comes_later_is_read_whole(self):
        done = threading.Event()
        content = bytes(range(256)) * 2000

        def refuses(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 413 X\r\ncontent-length: %d\r\n\r\n' % len(content))
            begun.wait(PATIENCE)
            peer.send(content)
            done.wait(PATIENCE)

        begun = threading.Event()
        request, _ = self.pool()
        try:
            code, _, response = await request(b'POST', 'http://127.0.0.1:{}/'.format(self.serve(refuses)),
                                              body=BodyWithoutEnd(bytes(65536)))
            begun.set()
            self.assertEqual(code, b'413')
            self.assertTrue(await buffered(response) == content)
        finally:
            begun.set()
            done.set()

    async def test_a_slow_body_is_not_sent_on_when_the_answer_is_in(self):
        # The server reads on, as many do for a while, so that no send ever blocks, nor fails.
        for tls in (None, tls_server()):
            for what, pause in (('that waits', True), ('that does not wait', False)):
                with self.subTest((tls is not None, what)):
                    answered = threading.Event()

                    def script(peer, answered=answered):
                        peer.read_head()
                        peer.send(TOO_LARGE)
                        answered.set()
                        peer.read_to_close()

                    class Slow(BodyWithoutEnd):
                        async def __anext__(self, pause=pause, answered=answered):
                            if self.asked == 1:
                                await in_thread(answered.wait)
                            if pause:
                                await asyncio.sleep(0)
                            return await super().__anext__()

                    body = Slow(b'x' * 10, at_most=300)
                    request, _ = self.pool(get_ssl_context=client_context)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
                    code, _, response = await request(b'POST', url, body=body)
                    self.assertEqual((code, await buffered(response)), (b'413', b'too large'))
                    self.assertLess(body.asked, 50)

    async def test_a_body_that_waits_is_not_timed_and_is_interrupted_by_a_refusal(self):
        def script(peer):
            peer.read_head()
            answering.wait(PATIENCE)
            peer.send(TOO_LARGE)
            answered.set()
            peer.read_to_close()

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
        task = asyncio.ensure_future(request(b'POST', f'http://127.0.0.1:{self.serve(script)}/', body=body))
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
                    got = queue.Queue()

                    def script(peer, early=early, last=last, got=got):
                        peer.read_head()
                        data = b''
                        for each in early:
                            # By now the client's next send blocks, or soon will.
                            data += peer.read(100000)
                            peer.send(each)
                        got.put(data + peer.read(size - len(data)))
                        peer.send(last)
                        if peer.read_head():
                            peer.send(OK_EMPTY)

                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
                    accepted = self.accepted
                    request, _ = self.pool(get_ssl_context=client_context)
                    code, _, response = await request(b'PUT', url, headers=((b'content-length', b'%d' % size),),
                                                      body=streamed(content))
                    self.assertEqual((code, await buffered(response)), (b'200', b''))
                    self.assertTrue(await in_thread(got.get, True, PATIENCE) == content)
                    # The answer was complete after the whole body: nothing was early about it.
                    await request(b'GET', url)
                    self.assertEqual(self.accepted, accepted + 1)

    async def test_a_bad_answer_in_the_middle_of_an_upload_is_an_error(self):
        for answer, error in (
                (b'nonsense\r\n\r\n', HttpProtocolError),
                (b'HTTP/1.1 101 X\r\n\r\n', HttpProtocolError),
                (OK + b'a: ' + b'x' * 70000, HttpHeaderTooLong),
                (OK + b'a: b', HttpConnectionClosedError),
        ):
            with self.subTest(answer[:30]):
                def script(peer, answer=answer):
                    peer.read_head()
                    peer.send(answer)
                    peer.half_close()
                    peer.read_to_close()

                request, _ = self.pool()
                body = BodyWithoutEnd(bytes(65536))
                raised = await self.raises(error, request(
                    b'POST', 'http://127.0.0.1:{}/'.format(self.serve(script)), body=body))
                self.assertEqual((raised.reused, raised.answered, body.closed), (False, True, 1))

    async def test_no_answer_at_all_in_the_middle_of_an_upload_is_an_error(self):
        def close(peer):
            peer.read_head()

        def reset(peer):
            peer.read_head()
            peer.reset()

        def half_close(peer):
            peer.read_head()
            peer.half_close()
            peer.read_to_close()

        for script in (close, reset, half_close):
            for what, headers, body in self.uploads():
                with self.subTest((script.__name__, what)):
                    request, _ = self.pool()
                    error = await self.raises(HttpConnectionClosedError, request(
                        b'POST', 'http://127.0.0.1:{}/'.format(self.serve(script)), headers=headers, body=body))
                    self.assertEqual((error.reused, error.answered, body.closed), (False, False, 1))


class TestStreamedAndBuffered(MessageTestCase):

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
        for data in (b'', b'hello'):
            with self.subTest(data):
                await self.assert_on_the_wire(
                    b'POST / HTTP/1.1\r\nhost: HOST:PORT\r\ncontent-length: %d\r\n\r\n%b' % (len(data), data),
                    method=b'POST', headers=((b'content-length', b'%d' % len(data)),), body=streamed(data))
                await self.assert_on_the_wire(
                    b'POST / HTTP/1.1\r\nhost: HOST:PORT\r\ncontent-length: %d\r\n\r\n%b' % (len(data), data),
                    method=b'POST', body=streamed(data))
        # An empty piece would be the last chunk.
        await self.assert_on_the_wire(
            b'POST / HTTP/1.1\r\nhost: HOST:PORT\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n', method=b'POST',
            headers=((b'transfer-encoding', b'chunked'),), body=streamed(b''))


class TestResponseBody(MessageTestCase):

    async def held_response(self, sent, later=b'', **kwargs):
        """(body, go_on, closed): a response of which `sent` has come, and `later` comes when `go_on` is set; `closed`
        gets what came from the client until it closed"""
        go_on = self.hold()
        closed = queue.Queue()

        def script(peer):
            peer.read_head()
            peer.send(sent)
            if later:
                go_on.wait(PATIENCE)
                peer.send(later)
            closed.put(peer.read_to_close())

        request, _ = self.pool(**kwargs)
        _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(self.serve(script)))
        return body, go_on, closed

    async def test_a_piece_is_handed_over_as_soon_as_it_is_received(self):
        for what, head, first, second, end in (
                ('a length', OK + b'content-length: 6\r\n\r\n', b'abc', b'def', b''),
                ('chunked', CHUNKED + b'\r\n', b'6\r\nabc', b'def\r\n', LAST_CHUNK),
                ('chunked, in its first chunk', CHUNKED + b'\r\n', b'3\r\nabc\r\n3', b'\r\ndef\r\n', LAST_CHUNK),
                ('until close', OK + b'connection: close\r\n\r\n', b'abc', b'def', None),
        ):
            for with_head in (True, False):
                with self.subTest((what, with_head)):
                    go_on = [threading.Event(), threading.Event(), threading.Event()]

                    def script(peer, head=head, first=first, second=second, end=end, with_head=with_head, go_on=go_on):
                        peer.read_head()
                        if with_head:
                            peer.send(head + first)
                        else:
                            peer.send(head)
                            go_on[0].wait(PATIENCE)
                            peer.send(first)
                        go_on[1].wait(PATIENCE)
                        peer.send(second)
                        go_on[2].wait(PATIENCE)
                        if end:
                            peer.send(end)

                    request, _ = self.pool()
                    _, _, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(self.serve(script)))
                    go_on[0].set()
                    self.assertEqual(await body.__anext__(), b'abc')
                    go_on[1].set()
                    self.assertEqual(await body.__anext__(), b'def')
                    go_on[2].set()
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
                        request, _ = self.pool(recv_bufsize=recv_bufsize, get_ssl_context=client_context)
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

    async def test_aclose_closes_the_connection_of_a_body_that_is_not_complete(self):
        for read_before in (0, 1):
            with self.subTest(read_before):
                body, _, closed = await self.held_response(OK + b'content-length: 6\r\n\r\nabc')
                for _ in range(read_before):
                    self.assertEqual(await body.__anext__(), b'abc')
                self.assertIsNone(await body.aclose())
                self.assertEqual(await in_thread(closed.get, True, PATIENCE), b'')
                # As of a generator that was closed.
                with self.assertRaises(StopAsyncIteration):
                    await body.__anext__()
                await body.aclose()

    async def test_a_body_that_is_dropped_closes_its_connection(self):
        for read_before in (0, 1):
            with self.subTest(read_before):
                body, _, closed = await self.held_response(OK + b'content-length: 6\r\n\r\nabc')
                for _ in range(read_before):
                    await body.__anext__()
                del body
                self.assertEqual(await in_thread(closed.get, True, PATIENCE), b'')

    async def test_two_readers_at_once_are_an_error_which_does_not_disturb_the_first(self):
        body, go_on, _ = await self.held_response(OK + b'content-length: 6\r\n\r\n', b'abcdef')
        first = asyncio.ensure_future(body.__anext__())
        await asyncio.sleep(0)
        for _ in range(2):
            with self.assertRaises((HttpDataError, RuntimeError)) as caught:
                await body.__anext__()
            self.assertGreater(len(str(caught.exception)), 10)
        self.assertFalse(first.done())
        go_on.set()
        self.assertEqual(await first, b'abcdef')
        with self.assertRaises(StopAsyncIteration):
            await body.__anext__()

    async def test_aclose_ends_a_read_that_another_task_waits_in(self):
        for tls in (None, tls_server()):
            for wire in (OK + b'content-length: 6\r\n\r\nabc', chunked_response(b'6\r\nabc'), OK + b'\r\nabc'):
                with self.subTest((wire, tls is not None)):
                    hold = threading.Event()

                    def script(peer, wire=wire, hold=hold):
                        peer.read_head()
                        peer.send(wire)
                        hold.wait(PATIENCE)

                    request, _ = self.pool(get_ssl_context=client_context)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
                    _, _, body = await request(b'GET', url)
                    self.assertEqual(await body.__anext__(), b'abc')
                    reader = asyncio.ensure_future(body.__anext__())
                    for _ in range(3):
                        await asyncio.sleep(0)
                    self.assertFalse(reader.done())
                    await body.aclose()
                    error = await self.raises(HttpConnectionClosedError, asyncio.wait_for(reader, PATIENCE))
                    self.assertEqual((error.reused, error.answered), (False, True))
                    hold.set()

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

    async def test_a_body_whose_read_was_cancelled_never_looks_complete(self):
        body, _, closed = await self.held_response(OK + b'content-length: 6\r\n\r\nabc')
        await body.__anext__()
        reader = asyncio.ensure_future(body.__anext__())
        await asyncio.sleep(0)
        reader.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await reader
        self.assertEqual(await in_thread(closed.get, True, PATIENCE), b'')
        with self.assertRaises(HttpDataError):
            await buffered(body)

    async def test_a_body_that_timed_out_never_looks_complete(self):
        body, _, closed = await self.held_response(OK + b'content-length: 6\r\n\r\nabc', socket_timeout=0.5)
        await body.__anext__()
        error = await self.raises(HttpDataTimeout, body.__anext__())
        self.assertEqual((error.reused, error.answered), (False, True))
        self.assertIsInstance(error, asyncio.TimeoutError)
        self.assertEqual(await in_thread(closed.get, True, PATIENCE), b'')
        with self.assertRaises(HttpDataError):
            await buffered(body)


# -------- (d) Errors


class TestMessageErrors(MessageTestCase):

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
        url = 'http://127.0.0.1:{}/'.format(self.serve(both))
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

    async def test_timeouts_say_it_too(self):
        cases = [(is_reused, sent, answered) for is_reused in (False, True) for sent, answered in (
            (b'', False), (b'HTTP', True), (CONTINUE, True), (with_length(b'6'), True),
        )]

        def server(sent):
            def script(peer):
                peer.read_head()
                peer.send(sent)
                peer.read_to_close()
            return script

        # All at once, since each takes the time that it is about.
        results = await asyncio.gather(*(
            self.exchange(server(sent), is_reused, socket_timeout=0.5) for is_reused, sent, _ in cases
        ), return_exceptions=True)
        for (is_reused, sent, answered), error in zip(cases, results):
            with self.subTest((is_reused, sent)):
                self.assertIs(type(error), HttpDataTimeout)
                self.assertIsInstance(error, asyncio.TimeoutError)
                self.assertEqual((error.reused, error.answered), (is_reused, answered))
                self.assertIn('0.5', str(error))
                self.assertIsInstance(error.__cause__, OSError)

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


# ======== What may be sent again, and the life of connections


# Its warning of each name server that fails goes to stderr otherwise.
logging.getLogger('aiodnsresolver').addHandler(logging.NullHandler())

# Bodies that no socket buffer swallows whole, so that sending them blocks while the peer does not read.
MUCH = 16 * 1024 * 1024


def reply_of(body=b'', *fields):
    return b''.join((
        b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n' % len(body), *(field + b'\r\n' for field in fields), b'\r\n', body,
    ))


def answering(*replies, seen=None, number=0):
    """A script: the n-th request of a connection gets the n-th of these, bytes or a function of the peer; the last
    one all that follow, until the client closes. `seen` is told (number, method) of each"""
    def script(peer):
        for reply in itertools.chain(replies, itertools.repeat(replies[-1])):
            head = peer.read_head()
            if not head.endswith(b'\r\n\r\n'):
                return
            if seen is not None:
                seen.append((number, head.partition(b' ')[0]))
            if callable(reply):
                reply(peer)
            else:
                peer.send(reply)
            if peer.sock.fileno() == -1:
                return
    return script


def numbered(count=10):
    """Scripts that answer with the number of their connection, so that an answer says how it came"""
    return [answering(reply_of(b'%d' % number)) for number in range(count)]


def reply_after_body(length, body=b''):
    def reply(peer):
        if len(peer.read(length)) == length:
            peer.send(reply_of(body))
    return reply


def until_closed(event, *replies):
    """A script that answers, and sets the event when the client has closed the connection"""
    def script(peer):
        for reply in replies:
            peer.read_head()
            peer.send(reply)
        peer.read_to_close()
        event.set()
    return script


def times_of_close(times, reply):
    """A script that appends the seconds between its answer and the client's closing the connection"""
    def script(peer):
        peer.read_head()
        began = time.monotonic()
        peer.send(reply)
        peer.read_to_close()
        times.append(time.monotonic() - began)
    return script


class CountedBody:
    """A function body: a new generator at each call, of which each that was begun must have ended"""

    def __init__(self, *pieces, between=None):
        self.pieces = pieces
        self.between = between
        self.begun = 0
        self.ended = 0

    def __call__(self):
        return self.generate()

    async def generate(self):
        self.begun += 1
        try:
            for piece in self.pieces:
                if self.between is not None:
                    await self.between()
                yield piece
        finally:
            self.ended += 1


class FakeNames:
    """Stands in for aiodnsresolver's Resolver. `records` maps a name to what both types of look-up give, or (name,
    type) to what one gives: addresses, an exception class, or a coroutine function that returns either of them"""

    def __init__(self, records, ttl=60):
        self.records = records
        self.ttl = ttl
        self.asked = []
        self.tasks = []
        self.made_in = []
        self.cleared = 0

    def __call__(self):
        loop = asyncio.get_event_loop()
        if not loop.is_running():
            raise RuntimeError('The resolver must be made inside the loop')
        self.made_in.append(weakref.ref(loop))

        async def resolve(name, qtype, **_):
            self.asked.append((name, str(qtype)))
            self.tasks.append(weakref.ref(current_task()))
            answer = self.records.get((name, str(qtype)), self.records.get(name, DnsRecordDoesNotExist))
            if callable(answer) and not isinstance(answer, type):
                answer = await answer()
            if isinstance(answer, type):
                raise answer()
            made = IPv4AddressExpiresAt if qtype == TYPES.A else IPv6AddressExpiresAt
            answers = tuple(
                made(address, expires_at=loop.time() + self.ttl if self.ttl else 0)
                for address in answer if (':' in address) is (qtype == TYPES.AAAA)
            )
            if not answers:
                raise DnsNoMatchingAnswers()
            return answers

        async def clear_cache(**_):
            await asyncio.sleep(0)
            self.cleared += 1

        return resolve, clear_cache

    def count(self, qtype='A'):
        return [asked for _, asked in self.asked].count(qtype)


async def never():
    await asyncio.get_event_loop().create_future()


class ConnectionTestCase(AsyncTestCase):

    async def happens(self, event):
        self.assertTrue(await in_thread(event.wait, TEST_SECONDS / 2), 'it did not happen')

    async def text(self, request, port, host='127.0.0.1', scheme='http', method=b'GET', **kwargs):
        """The whole body of an answer that must be 200"""
        code, _, body = await request(method, '{}://{}:{}/'.format(scheme, host, port), **kwargs)
        self.assertEqual(code, b'200')
        return await buffered(body)

    def timers_beyond(self, seconds):
        """How many timers of the loop are due later than in so many seconds: a way to tell a pool's from others"""
        return len([handle for handle in self.loop._scheduled
                    if not handle._cancelled and handle._when > self.loop.time() + seconds])


class ReuseTest(ConnectionTestCase):

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
        request, _ = self.pool(get_ssl_context=client_context)
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

    async def test_a_server_that_closes_an_idle_connection_is_noticed_at_once(self):
        def close_notify(peer):
            # Raises or not, as the client's own close_notify comes: the event says what is asked.
            with contextlib.suppress(OSError):
                peer.sock.unwrap()

        for name, leave, tls in (
                ('plain', Peer.half_close, None),
                ('TLS, close_notify alone', close_notify, server_context()),
                ('TLS, without close_notify', Peer.half_close, server_context()),
        ):
            with self.subTest(name):
                ask, gone = threading.Event(), threading.Event()

                def script(peer, ask=ask, gone=gone, leave=leave):
                    peer.read_head()
                    peer.send(reply_of(b'x'))
                    ask.wait(TEST_SECONDS)
                    leave(peer)
                    peer.read_to_close()
                    gone.set()
                port = self.serve(script, tls=tls)
                sockets = ClientSockets()
                request, _ = self.pool(
                    set_sock_options=sockets, get_ssl_context=client_context, keep_alive_timeout=1000)
                await self.text(request, port, scheme='https' if tls else 'http')
                self.assertEqual(sockets.count_open(), 1)
                ask.set()
                await self.happens(gone)
                self.assertEqual(sockets.count_open(), 0)

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

    async def test_bytes_that_nobody_asked_for_end_an_idle_connection(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                ask, gone = threading.Event(), threading.Event()

                def script(peer, ask=ask, gone=gone):
                    peer.read_head()
                    peer.send(reply_of(b'0'))
                    ask.wait(TEST_SECONDS)
                    peer.send(reply_of(b'unasked'))
                    peer.read_to_close()
                    gone.set()
                port = self.serve(script, answering(reply_of(b'1')), tls=tls)
                request, _ = self.pool(get_ssl_context=client_context)
                text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                self.assertEqual(await text(), b'0')
                ask.set()
                await self.happens(gone)
                self.assertEqual(await text(), b'1')

    async def test_unasked_bytes_and_closes_that_the_loop_has_not_seen_yet_are_noticed_before_sending(self):
        # The loop is blocked until they are there, so that only a look at the socket itself can tell.
        for name, leave in (('bytes', lambda peer: peer.send(reply_of(b'unasked'))), ('close', Peer.half_close),
                            ('reset', Peer.reset)):
            for tls in (None, server_context()):
                if tls and name == 'reset':
                    continue
                with self.subTest(name, tls=tls is not None):
                    ask, done = threading.Event(), threading.Event()

                    def script(peer, ask=ask, done=done, leave=leave):
                        peer.read_head()
                        peer.send(reply_of(b'0'))
                        ask.wait(TEST_SECONDS)
                        leave(peer)
                        done.set()
                        if leave is not Peer.reset:
                            self.assertNotIn(b'POST', peer.read_to_close())
                    port = self.serve(script, answering(reply_of(b'1')), tls=tls)
                    request, _ = self.pool(get_ssl_context=client_context)
                    text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                    self.assertEqual(await text(), b'0')
                    ask.set()
                    self.assertTrue(done.wait(TEST_SECONDS))
                    # A POST is never sent twice, so that this answer says where it went first.
                    self.assertEqual(await text(method=b'POST'), b'1')

    async def test_a_connection_found_dead_with_the_first_piece_in_hand_is_replaced(self):
        # Nothing was sent yet: even a POST from a generator goes over another connection.
        for tls in (None, server_context()):
            for blocking in (True, False):
                with self.subTest(tls=tls is not None, blocking=blocking):
                    ask, gone = threading.Event(), threading.Event()

                    def script(peer, ask=ask, gone=gone):
                        peer.read_head()
                        peer.send(reply_of(b'0'))
                        ask.wait(TEST_SECONDS)
                        peer.half_close()
                        gone.set()
                        self.assertNotIn(b'POST', peer.read_to_close())
                    seen = []

                    def other(peer, seen=seen):
                        peer.read_head()
                        seen.append(peer.read(10))
                        peer.send(reply_of(b'1'))

                    async def body(ask=ask, gone=gone, blocking=blocking):
                        ask.set()
                        if blocking:  # the loop has no turn in which to notice it
                            self.assertTrue(gone.wait(TEST_SECONDS))
                        else:
                            await self.happens(gone)
                        yield b'01234'
                        yield b'56789'
                    port = self.serve(script, other, tls=tls)
                    request, _ = self.pool(get_ssl_context=client_context)
                    text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                    self.assertEqual(await text(), b'0')
                    headers = ((b'content-length', b'10'),)
                    self.assertEqual(await text(method=b'POST', headers=headers, body=body()), b'1')
                    self.assertEqual(seen, [b'0123456789'])

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

    async def test_responses_that_are_complete_with_their_head_give_the_connection_back_before_request_returns(self):
        for name, method, answer in (
                ('204', b'DELETE', b'HTTP/1.1 204 No Content\r\n\r\n'),
                ('304', b'GET', b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n'),
                ('HEAD', b'HEAD', b'HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n'),
                ('empty', b'GET', reply_of()),
                ('empty, chunked', b'GET', b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n'),
                ('whole', b'GET', reply_of(b'whole')),
        ):
            with self.subTest(name):
                before = self.accepted
                port = self.serve(answering(answer))
                sockets = ClientSockets()
                request, _ = self.pool(set_sock_options=sockets)
                responses = []  # none of whose bodies is touched, or let go of, while the requests go on
                for _ in range(3):
                    responses.append(await request(method, 'http://127.0.0.1:%d/' % port))
                self.assertEqual((self.accepted - before, sockets.count_open()), (1, 1))
                for _, _, body in responses:
                    self.assertEqual(await buffered(body), b'whole' if name == 'whole' else b'')


class SentAgainTest(ConnectionTestCase):

    async def reused(self, *scripts, **kwargs):
        """A request function of a pool that has an idle connection, whose script has answered once, and the port"""
        port = self.serve(*scripts, **kwargs)
        request, _ = self.pool(get_ssl_context=client_context, socket_timeout=kwargs.get('socket_timeout', 10))
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


class Clock:
    """The loop's clock, which can be put forward; timers come the sooner for it"""

    def __init__(self, loop):
        self._ahead = 0
        real = loop.time
        loop.time = lambda: real() + self._ahead

    async def forward(self, seconds):
        self._ahead += seconds
        await turns(2)


@contextlib.contextmanager
def name_server(records, losing=0):
    """(port, names asked for) of a real DNS server on loopback. `records` are {(name, type): (ttl, bytes)}; the
    first `losing` packets get no answer"""
    asked = []
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(('127.0.0.1', 0))

    def serve():
        while True:
            data, client = sock.recvfrom(512)
            if not data:
                return
            query = parse(data)
            question = query.qd[0]
            asked.append((question.name.lower(), question.qtype))
            if len(asked) <= losing:
                continue
            known = records.get(asked[-1])
            sock.sendto(pack(Message(
                qid=query.qid, qr=RESPONSE, opcode=0, aa=0, tc=0, rd=0, ra=1, z=0, rcode=0 if known else 3,
                qd=query.qd, ns=(), ar=(),
                an=(ResourceRecord(question.name, question.qtype, 1, *known),) if known else (),
            )), client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1], asked
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopping:
            stopping.sendto(b'', sock.getsockname())
        thread.join(TEST_SECONDS)
        sock.close()


def real_resolver(port, wait=0.2):
    async def get_nameservers(_, __):
        for _ in range(5):
            yield wait, ('127.0.0.1', port)
    return functools.partial(Resolver, get_nameservers=get_nameservers)


class NamesTest(ConnectionTestCase):
    """One connection per request, unless the test is of their reuse: `connection: close` asks for that"""

    CLOSE = ((b'connection', b'close'),)

    def where_it_came(self):
        """The port of a server on all of 127.0.0.0/8 that answers with the address it was reached at"""
        return self.serve(answering(
            lambda peer: peer.send(reply_of(peer.sock.getsockname()[0].encode()))), host='0.0.0.0')

    async def test_an_answer_stands_for_its_time_and_is_asked_for_again_after_it(self):
        clock = Clock(self.loop)
        ttl = 8
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl)
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        for headers in (self.CLOSE, ()):
            before = names.count()
            for _ in range(3):
                await self.text(request, port, 'one.test', headers=headers)
            await clock.forward(ttl * 0.6)
            await self.text(request, port, 'one.test', headers=headers)
            self.assertEqual(names.count() - before, 1 if headers else 0)
            await clock.forward(ttl * 0.6)
            await self.text(request, port, 'one.test', headers=headers)
            self.assertEqual(names.count() - before, 2 if headers else 1)

    async def test_an_answer_without_any_time_stands_for_a_second(self):
        clock = Clock(self.loop)
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        await clock.forward(0.5)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        self.assertEqual(names.count(), 1)
        await clock.forward(0.8)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        self.assertEqual(names.count(), 2)

    async def test_an_idle_connection_whose_address_left_the_records_is_not_reused(self):
        clock = Clock(self.loop)
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=1)
        port = self.where_it_came()
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.1')
        for addresses, expected, accepted in (
                (['127.0.0.2', '127.0.0.1'], b'127.0.0.1', 1),  # still one of them
                (['127.0.0.2', '127.0.0.3'], b'127.0.0.2', 2),
                (['127.0.0.3', '127.0.0.2'], b'127.0.0.2', 2),
                (['127.0.0.1'], b'127.0.0.1', 3),
        ):
            names.records['one.test'] = addresses
            await clock.forward(1.1)
            self.assertEqual(await self.text(request, port, 'one.test'), expected)
            self.assertEqual(self.accepted, accepted)
        self.assertEqual(sockets.count_open(), 1, 'the connections to addresses that are gone are closed')

    async def test_a_passing_failure_leaves_the_last_addresses_standing(self):
        async def times_out(*_):
            return DnsTimeout

        async def is_cancelled():
            raise asyncio.CancelledError()

        clock = Clock(self.loop)
        for name, failure in (('timeout', DnsTimeout), ('SERVFAIL', lambda: times_out()), ('socket', OSError),
                              ('cancels itself', is_cancelled), ('says nothing', never)):
            for headers in (self.CLOSE, ()):
                with self.subTest(name, headers=headers):
                    before = self.accepted
                    port = self.where_it_came()
                    names = FakeNames({'one.test': ['127.0.0.5']}, ttl=1)
                    request, _ = self.pool(get_dns_resolver=names, socket_timeout=0.2)
                    await self.text(request, port, 'one.test', headers=headers)
                    names.records['one.test'] = failure
                    await clock.forward(1.1)
                    self.assertEqual(await self.text(request, port, 'one.test', headers=headers), b'127.0.0.5')
                    self.assertEqual(self.accepted - before, 2 if headers else 1)
                    self.assertEqual(names.count(), 2)

    async def test_a_name_that_is_gone_takes_its_addresses_with_it(self):
        clock = Clock(self.loop)
        for headers in (self.CLOSE, ()):
            for gone in (DnsRecordDoesNotExist, DnsNoMatchingAnswers):
                with self.subTest(headers=headers, gone=gone):
                    before = self.accepted
                    port = self.where_it_came()
                    names = FakeNames({'one.test': ['127.0.0.1']}, ttl=1)
                    request, _ = self.pool(get_dns_resolver=names)
                    await self.text(request, port, 'one.test', headers=headers)
                    names.records['one.test'] = gone
                    await clock.forward(1.1)
                    await self.raises(HttpDnsError, self.text(request, port, 'one.test', headers=headers))
                    # They do not come back with a passing failure.
                    names.records['one.test'] = DnsTimeout
                    await clock.forward(1.1)
                    await self.raises(HttpDnsError, self.text(request, port, 'one.test', headers=headers))
                    self.assertEqual(self.accepted - before, 1)

    async def test_a_host_without_a_records_is_reached_by_its_aaaa(self):
        if not socket.has_ipv6:
            self.skipTest('no IPv6 here')
        try:
            port = self.serve(answering(reply_of(b'IPv6')), host='::1')
        except OSError:
            self.skipTest('no IPv6 here')
        names = FakeNames({('six.test', 'AAAA'): ['::1']})
        request, _ = self.pool(get_dns_resolver=names)
        self.assertEqual(await self.text(request, port, 'six.test'), b'IPv6')
        self.assertEqual(await self.text(request, port, 'six.test'), b'IPv6')
        self.assertEqual(self.accepted, 1)
        self.assertEqual(names.asked, [('six.test', 'A'), ('six.test', 'AAAA')])
        self.assertEqual(await self.text(request, port, '[::1]'), b'IPv6')

    async def test_a_host_that_refuses_at_its_a_records_is_reached_by_its_aaaa(self):
        try:
            port = self.serve(answering(reply_of(b'IPv6')), host='::1')
        except OSError:
            self.skipTest('no IPv6 here')
        request, _ = self.pool(get_dns_resolver=FakeNames({'both.test': ['127.0.0.1', '::1']}))
        self.assertEqual(await self.text(request, port, 'both.test'), b'IPv6')

    async def test_where_one_address_refuses_the_next_is_tried(self):
        port = self.serve(answering(reply_of(b'here')), host='127.0.0.3')
        names = FakeNames({'many.test': ['127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4']})
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        self.assertEqual(await self.text(request, port, 'many.test'), b'here')
        self.assertEqual((len(sockets.references), sockets.count_open()), (3, 1))

    async def test_where_all_refuse_the_error_names_them(self):
        names = FakeNames({'many.test': ['127.0.0.1', '127.0.0.2']})
        request, _ = self.pool(get_dns_resolver=names)
        body = CountedBody(b'x')
        error = await self.raises(
            HttpConnectionError, self.text(request, refusing_port(), 'many.test', method=b'POST', body=body()))
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertIn('127.0.0.1', str(error))
        self.assertIn('127.0.0.2', str(error))
        self.assertEqual(body.begun, 0)

    async def test_a_look_up_that_fails_is_a_dns_error_and_the_next_one_is_a_new_one(self):
        async def hangs():
            await never()
        for failure, cause in (
                (DnsTimeout, DnsTimeout), (DnsResponseCode, DnsResponseCode), (OSError, OSError),
                (DnsRecordDoesNotExist, None), (UnicodeError, UnicodeError), (RuntimeError, RuntimeError),
                (lambda: hangs(), None),
        ):
            with self.subTest(failure=failure):
                names = FakeNames({'one.test': failure}, ttl=1)
                request, _ = self.pool(get_dns_resolver=names, socket_timeout=0.3)
                body = CountedBody(b'x')
                port = self.serve(answering(reply_of(b'found')))
                error = await self.raises(
                    HttpDnsError, self.text(request, port, 'one.test', method=b'POST', body=body()))
                self.assertIn('one.test', str(error))
                if cause is not None:
                    self.assertIs(type(error.__cause__), cause)
                self.assertEqual(body.begun, 0)
                if failure is not DnsRecordDoesNotExist:  # which stands for a while, as any answer does
                    names.records['one.test'] = ['127.0.0.1']
                    self.assertEqual(await self.text(request, port, 'one.test'), b'found')

    async def test_a_resolver_that_cannot_be_made_is_a_dns_error(self):
        def get_dns_resolver():
            raise OSError('There is no /etc/resolv.conf')
        request, _ = self.pool(get_dns_resolver=get_dns_resolver)
        await self.raises(HttpDnsError, self.text(request, 80, 'one.test'))

    async def test_names_that_cannot_be_names_are_errors_of_this_tree(self):
        # The real resolver, whose name server is not asked: nothing can be.
        with name_server({}) as (name_port, asked):
            request, _ = self.pool(get_dns_resolver=real_resolver(name_port))
            for host in ('a..b', 'a' * 70 + '.test', '.', 'a.', '\u00e4' * 70 + '.test'):
                with self.subTest(host=host):
                    with self.assertRaises((HttpDnsError, HttpRequestError)) as caught:
                        await self.text(request, 80, host)
                    self.assertGreater(len(str(caught.exception)), 10)
            self.assertTrue({name for name, _ in asked} <= {b'a'}, asked)

    async def test_an_address_in_the_url_is_not_looked_up(self):
        names = FakeNames({})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        self.assertEqual(await self.text(request, port, '127.0.0.7'), b'127.0.0.7')
        self.assertEqual(await self.text(request, port, '127.0.0.7'), b'127.0.0.7')
        self.assertEqual(names.asked, [])

    async def test_a_look_up_runs_in_a_task_of_its_own_and_may_cancel_it(self):
        # As aiodnsresolver does, without `uncancel`, when one packet is lost.
        async def cancels_itself():
            current_task().cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
            return ['127.0.0.1']
        names = FakeNames({'one.test': cancels_itself})
        request, _ = self.pool(get_dns_resolver=names)
        self.assertEqual(await self.text(request, self.where_it_came(), 'one.test'), b'127.0.0.1')
        self.assertIsNot(names.tasks[0](), current_task())
        if hasattr(asyncio.Task, 'cancelling'):
            self.assertEqual(current_task().cancelling(), 0)

    async def test_a_look_up_is_cancelled_with_its_caller(self):
        begun, ended = asyncio.Event(), asyncio.Event()

        async def hangs():
            begun.set()
            try:
                await never()
            finally:
                ended.set()
        names = FakeNames({'one.test': hangs})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names, socket_timeout=TEST_SECONDS)
        task = self.loop.create_task(outcome(self.text(request, port, 'one.test')))
        await begun.wait()
        task.cancel()
        self.assertIs(await task, asyncio.CancelledError)
        await ended.wait()
        names.records['one.test'] = ['127.0.0.1']
        self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.1')

    async def test_a_look_up_is_not_cancelled_with_another_caller(self):
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def waits():
            begun.set()
            await go_on.wait()
            return ['127.0.0.1']
        request, _ = self.pool(get_dns_resolver=FakeNames({'one.test': waits}))
        port = self.where_it_came()
        tasks = [self.loop.create_task(outcome(self.text(request, port, 'one.test'))) for _ in range(3)]
        await begun.wait()
        await turns()
        tasks[0].cancel()
        await turns()
        go_on.set()
        self.assertEqual(await asyncio.gather(*tasks), [asyncio.CancelledError, b'127.0.0.1', b'127.0.0.1'])

    async def test_the_resolver_is_made_once_and_its_cache_is_cleared_by_close(self):
        names = FakeNames({'one.test': ['127.0.0.1'], 'two.test': ['127.0.0.1']})
        port = self.where_it_came()
        request, close = self.pool(get_dns_resolver=names)
        self.assertEqual(names.made_in, [])
        for host in ('one.test', 'two.test', 'one.test'):
            await self.text(request, port, host, headers=self.CLOSE)
        self.assertEqual([loop() for loop in names.made_in], [self.loop])
        self.assertEqual(names.cleared, 0)
        await close()
        self.assertEqual(names.cleared, 1)

    async def test_a_pool_that_looked_nothing_up_is_closed_without_a_resolver(self):
        names = FakeNames({})
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, self.where_it_came())
        await close()
        self.assertEqual(names.cleared, len(names.made_in))

    def test_each_loop_has_a_resolver_of_its_own(self):
        names = FakeNames({'one.test': ['127.0.0.1']})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        self.loop.run_until_complete(self.text(request, port, 'one.test'))
        other = new_event_loop()
        try:
            other.run_until_complete(self.text(request, port, 'one.test'))
            self.assertEqual([loop() for loop in names.made_in], [self.loop, other])
        finally:
            other.close()

    async def test_the_real_resolver_with_a_real_server(self):
        records = {(b'one.test', TYPES.A): (60, socket.inet_aton('127.0.0.9'))}
        with name_server(records) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port))
            port = self.where_it_came()
            for _ in range(3):
                self.assertEqual(await self.text(request, port, 'One.test', headers=self.CLOSE), b'127.0.0.9')
            self.assertEqual(asked, [(b'one.test', TYPES.A)])
            error = await self.raises(HttpDnsError, self.text(request, port, 'none.test'))
            self.assertIn('none.test', str(error))
            await close()  # which ends the timers of its cache

    async def test_a_packet_that_is_lost_leaves_the_callers_timeout_sound(self):
        records = {(b'one.test', TYPES.A): (60, socket.inet_aton('127.0.0.9'))}
        with name_server(records, losing=1) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port))
            port = self.where_it_came()
            self.assertEqual(await asyncio.wait_for(self.text(request, port, 'one.test'), TEST_SECONDS), b'127.0.0.9')
            self.assertEqual(asked, [(b'one.test', TYPES.A)] * 2)
            await close()
        if not hasattr(asyncio, 'timeout'):
            return
        with name_server(records, losing=1) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port, wait=0.1))
            # Were the caller's task cancelled by the resolver, this would end as CancelledError.
            with self.assertRaises(asyncio.TimeoutError):
                async with asyncio.timeout(0.5):
                    self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.9')
                    await never()
            self.assertEqual(len(asked), 2)
            self.assertEqual(current_task().cancelling(), 0)
            await close()


class TlsTest(ConnectionTestCase):

    async def test_the_certificate_is_that_of_the_name_or_address_asked_for(self):
        names = FakeNames({'localhost': ['127.0.0.1'], 'xn--bcher-kva.test': ['127.0.0.1']})
        context = server_context('localhost', '127.0.0.1', 'xn--bcher-kva.test')
        asked = []
        if hasattr(context, 'sni_callback'):
            context.sni_callback = lambda _, name, __: asked.append(name)
        port = self.serve(answering(reply_of(b'secret')), tls=context)
        request, _ = self.pool(get_dns_resolver=names, get_ssl_context=client_context)
        for host in ('127.0.0.1', 'localhost', 'b\u00fccher.test'):
            with self.subTest(host=host):
                self.assertEqual(await self.text(request, port, host, 'https'), b'secret')
        if asked:
            self.assertEqual(asked, [None, 'localhost', 'xn--bcher-kva.test'])
        self.assertEqual([name for name, _ in names.asked], ['localhost', 'xn--bcher-kva.test'])

    async def test_a_handshake_that_fails_is_an_error_before_anything_is_sent(self):
        expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # The trustme of Python 3.6 to 3.8 cannot date a certificate: there, it is one of another name.
        dates = {'not_before': datetime.datetime(2019, 1, 1), 'not_after': datetime.datetime(2020, 1, 1)}
        if 'not_before' in inspect.signature(CA.issue_cert).parameters:
            CA.issue_cert('localhost', **dates).configure_cert(expired)
        else:
            CA.issue_cert('other.test').configure_cert(expired)

        def speak_http(peer):
            peer.sock.recv(65536)
            peer.send(b'HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n')
            peer.read_to_close()

        def end(peer):
            peer.sock.recv(65536)

        def reset(peer):
            peer.sock.recv(65536)
            peer.reset()

        good = answering(reply_of())
        for name, script, tls, get_ssl_context in (
                ('a certificate of another name', good, server_context('other.test'), client_context),
                ('a certificate of another address', good, server_context('127.0.0.2'), client_context),
                ('a certificate of an authority not trusted', good, server_context(), ssl.create_default_context),
                ('a certificate that has expired', good, expired, client_context),
                ('a server that speaks HTTP without TLS', speak_http, None, client_context),
                ('a server that closes', end, None, client_context),
                ('a server that closes at once', lambda peer: None, None, client_context),
                ('a server that resets', reset, None, client_context),
        ):
            with self.subTest(name):
                port = self.serve(script, tls=tls)
                sockets = ClientSockets()
                request, _ = self.pool(
                    get_ssl_context=get_ssl_context, set_sock_options=sockets,
                    get_dns_resolver=FakeNames({'localhost': ['127.0.0.1']}))
                body = CountedBody(b'x')
                error = await self.raises(HttpTlsError, self.text(
                    request, port, 'localhost', 'https', b'POST', body=body()))
                self.assertIsNotNone(error.__cause__)
                self.assertEqual((body.begun, sockets.count_open()), (0, 0))

    async def test_a_context_that_cannot_be_made_leaves_no_connection_behind(self):
        class OwnError(Exception):
            pass

        def get_ssl_context():
            raise OwnError()
        port = self.serve(lambda peer: peer.read_to_close())
        sockets = ClientSockets()
        request, _ = self.pool(get_ssl_context=get_ssl_context, set_sock_options=sockets)
        self.assertIn(await outcome(self.text(request, port, scheme='https')), (OwnError, HttpTlsError))
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_server_that_does_not_answer_the_handshake_is_a_connection_timeout(self):
        gone = threading.Event()
        port = self.serve(until_closed(gone))
        request, _ = self.pool(socket_timeout=0.2, get_ssl_context=client_context)
        body = CountedBody(b'x')
        began = time.monotonic()
        error = await self.raises(
            HttpConnectionTimeout, self.text(request, port, scheme='https', method=b'POST', body=body()))
        self.assertIsInstance(error, asyncio.TimeoutError)
        self.assertGreater(time.monotonic() - began, 0.15)
        self.assertEqual(body.begun, 0)
        await self.happens(gone)

    async def test_a_body_that_ends_with_the_connection_must_end_with_close_notify(self):
        def script(end, peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\n\r\nsome of it')
            end(peer)
        for version, configure in tls_versions():
            with self.subTest(version=version):
                request, _ = self.pool(get_ssl_context=client_context)
                port = self.serve(functools.partial(script, Peer.close), tls=configure(server_context()))
                self.assertEqual(await self.text(request, port, scheme='https'), b'some of it')

                port = self.serve(functools.partial(script, Peer.abort), tls=configure(server_context()))
                code, _, body = await request(b'GET', 'https://127.0.0.1:%d/' % port)
                self.assertEqual(code, b'200')
                error = await self.raises(HttpConnectionClosedError, buffered(body))
                self.assertEqual((error.reused, error.answered), (False, True))

    async def test_an_answer_that_says_its_length_needs_no_close_notify(self):
        def script(peer):
            peer.read_head()
            peer.send(reply_of(b'all of it'))
            peer.abort()
        request, _ = self.pool(get_ssl_context=client_context)
        port = self.serve(script, tls=server_context())
        self.assertEqual(await self.text(request, port, scheme='https'), b'all of it')

    async def test_closing_sends_close_notify(self):
        async def by_the_pool(request, close, url):
            await buffered((await request(b'GET', url + 'whole'))[2])
            await close()

        async def by_time(request, close, url):
            await buffered((await request(b'GET', url + 'whole'))[2])

        async def by_connection_close(request, close, url):
            await buffered((await request(b'GET', url + 'whole', headers=((b'connection', b'close'),)))[2])

        async def by_aclose(request, close, url):
            _, _, body = await request(b'GET', url)
            self.assertEqual(await body.__anext__(), b'part')
            await body.aclose()

        for version, configure in tls_versions():
            for how in (by_the_pool, by_time, by_connection_close, by_aclose):
                with self.subTest(version=version, how=how.__name__):
                    context = configure(server_context())
                    last, gone = [], threading.Event()

                    def script(peer, context=context, last=last, gone=gone):
                        tls = ManualTls(peer, context)
                        tls.handshake()
                        head = tls.read()
                        tls.write(reply_of(b'whole') if b'/whole' in head else
                                  b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart')
                        last.append(tls.read())
                        gone.set()
                    port = self.serve(script)
                    request, close = self.pool(get_ssl_context=client_context, keep_alive_timeout=0.2)
                    await how(request, close, 'https://127.0.0.1:%d/' % port)
                    await self.happens(gone)
                    self.assertEqual(last, [b''])

    async def test_a_client_certificate_refused_after_the_handshake_is_an_error_of_the_exchange(self):
        for version, configure in tls_versions():
            with self.subTest(version=version):
                context = configure(server_context())
                context.verify_mode = ssl.CERT_REQUIRED
                CA.configure_trust(context)
                port = self.serve(answering(reply_of()), tls=context)
                request, _ = self.pool(get_ssl_context=client_context)
                # With TLS 1.3 the alert comes after the handshake: before the first byte is sent, or after it.
                classes = HttpTlsError if version == '1.2' else (HttpDataError, HttpConnectionError)
                with self.assertRaises(classes) as caught:
                    await self.text(request, port, scheme='https', method=b'POST', body=streamed(b'x' * 100))
                self.assertGreater(len(str(caught.exception)), 10)
                if isinstance(caught.exception, HttpDataError):
                    self.assertEqual((caught.exception.reused, caught.exception.answered), (False, False))
                self.assertIsNotNone(caught.exception.__cause__)

    async def test_a_connection_with_session_tickets_is_reused(self):
        for version, configure in tls_versions():
            with self.subTest(version=version):
                port = self.serve(*numbered(), tls=configure(server_context()))
                request, _ = self.pool(get_ssl_context=client_context)
                for _ in range(4):
                    self.assertEqual(await self.text(request, port, scheme='https'), b'0')

    async def test_a_handshake_may_be_longer_than_what_tls_is_given_at_once(self):
        # About 90 KB on the wire, of 100 that OpenSSL takes; four characters of PEM are three bytes.
        authority = CA.cert_pem.bytes()
        chain = CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.bytes()
        chain += authority * (120000 // len(authority))
        for version, configure in tls_versions():
            with self.subTest(version=version):
                context = configure(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
                with tempfile.NamedTemporaryFile() as file:
                    file.write(chain)
                    file.flush()
                    context.load_cert_chain(file.name)
                port = self.serve(*numbered(), tls=context)
                request, _ = self.pool(get_ssl_context=client_context)
                for _ in range(2):
                    self.assertEqual(await self.text(request, port, scheme='https'), b'0')

    async def test_session_tickets_that_come_before_the_first_byte_is_sent_are_no_sign_of_death(self):
        if not getattr(ssl, 'HAS_TLSv1_3', False):
            self.skipTest('no TLS 1.3 here')
        context = server_context()
        go_on, sent = threading.Event(), threading.Event()

        def script(peer):
            tls = ManualTls(peer, context)
            tls.handshake(flush_last=False)  # the tickets are what is last
            self.assertGreater(tls.outgoing.pending, 0)
            go_on.wait(TEST_SECONDS)
            tls.flush()
            sent.set()
            data = b''
            while not data.endswith(b'0\r\n\r\n'):
                data += tls.read()
            tls.write(reply_of(b'0'))
            tls.read()

        async def body():
            go_on.set()
            self.assertTrue(sent.wait(TEST_SECONDS))
            yield b'x'
        port = self.serve(script)
        request, _ = self.pool(get_ssl_context=client_context)
        self.assertEqual(await self.text(request, port, scheme='https', method=b'POST', body=body()), b'0')
        self.assertEqual(self.accepted, 1)

    async def test_much_goes_both_ways_unharmed(self):
        data = os.urandom(3 * 1024 * 1024 + 12345)
        digest = hashlib.sha256(data).hexdigest()

        def script(peer):
            peer.read_head()
            peer.send(reply_of(hashlib.sha256(peer.read(len(data))).hexdigest().encode()))
            peer.read_head()
            peer.send(reply_of(data))
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
            for start in range(0, len(data), 100000):
                piece = data[start:start + 100000]
                peer.send(b'%x\r\n%b\r\n' % (len(piece), piece))
            peer.send(b'0\r\n\r\n')
        for version, configure in tls_versions():
            for recv_bufsize in (65536, 5000):
                with self.subTest(version=version, recv_bufsize=recv_bufsize):
                    port = self.serve(script, tls=configure(server_context()))
                    request, _ = self.pool(get_ssl_context=client_context, recv_bufsize=recv_bufsize)
                    text = functools.partial(self.text, request, port, scheme='https')
                    headers = ((b'content-length', b'%d' % len(data)),)
                    self.assertEqual(await text(method=b'POST', headers=headers, body=streamed(data)), digest.encode())
                    for _ in range(2):
                        _, _, body = await request(b'GET', 'https://127.0.0.1:%d/' % port)
                        received, longest = hashlib.sha256(), 0
                        async for piece in body:
                            received.update(piece)
                            longest = max(longest, len(piece))
                        self.assertEqual(received.hexdigest(), digest)
                        self.assertLessEqual(longest, recv_bufsize)
        self.assertEqual(self.accepted, 2 * len(tls_versions()))

    async def test_there_is_one_context_made_at_the_first_https_request(self):
        made = []

        def get_ssl_context():
            made.append(None)
            return client_context()
        plain = self.serve(answering(reply_of()))
        ports = [self.serve(answering(reply_of()), tls=server_context()) for _ in range(2)]
        request, _ = self.pool(get_ssl_context=get_ssl_context)
        await self.text(request, plain)
        self.assertEqual(len(made), 0)
        await asyncio.gather(*[self.text(request, port, scheme='https') for port in ports * 2])
        for port in ports:
            await self.text(request, port, scheme='https', headers=((b'connection', b'close'),))
            await self.text(request, port, scheme='https')
        self.assertEqual(len(made), 1)


class TimeTest(ConnectionTestCase):

    async def within(self, least, most, awaitable):
        began = time.monotonic()
        result = await awaitable
        took = time.monotonic() - began
        self.assertGreaterEqual(took, least)
        self.assertLess(took, most)
        return result

    async def test_connecting_is_bounded(self):
        body = CountedBody(b'x')
        sockets = ClientSockets()
        request, _ = self.pool(socket_timeout=0.2, set_sock_options=sockets)
        with full_backlog() as port:
            error = await self.within(0.18, 5, self.raises(
                HttpConnectionTimeout, self.text(request, port, method=b'POST', body=body())))
        self.assertIsInstance(error, asyncio.TimeoutError)
        self.assertIsInstance(error, HttpConnectionError)
        self.assertIn('0.2', str(error))
        self.assertEqual((body.begun, sockets.count_open()), (0, 0))

    async def test_an_address_that_does_not_answer_is_followed_by_the_next(self):
        # Both addresses have one port: the first's queue is full, at the second a server answers.
        with full_backlog() as port:
            listener = socket.socket()
            self._listeners.append(listener)
            listener.bind(('127.0.0.2', port))
            listener.listen(5)

            def play():
                sock, _ = listener.accept()
                answering(reply_of(b'second'))(Peer(sock))
                sock.close()
            thread = threading.Thread(target=play, daemon=True)
            thread.start()
            request, close = self.pool(
                socket_timeout=0.2, get_dns_resolver=FakeNames({'two.test': ['127.0.0.1', '127.0.0.2']}))
            self.assertEqual(await self.text(request, port, 'two.test'), b'second')
            await close()
            await in_thread(thread.join, TEST_SECONDS)

    async def test_sending_is_bounded_where_the_peer_stops_reading(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                finish = threading.Event()

                def script(peer, finish=finish):
                    peer.read_head()
                    finish.wait(TEST_SECONDS)
                port = self.serve(script, tls=tls)
                sockets = ClientSockets()
                request, _ = self.pool(
                    socket_timeout=0.3, get_ssl_context=client_context, set_sock_options=sockets)
                body = CountedBody(bytes(MUCH))
                error = await self.within(0.27, 10, self.raises(HttpDataTimeout, self.text(
                    request, port, scheme='https' if tls else 'http', method=b'PUT', body=body())))
                self.assertIsInstance(error, asyncio.TimeoutError)
                self.assertEqual((error.reused, error.answered), (False, False))
                self.assertEqual((body.begun, body.ended, sockets.count_open()), (1, 1, 0))
                finish.set()

    async def test_a_reset_while_sending_is_noticed_at_once(self):
        # What the loop says of such a socket, and how often, differs between loops.
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                port = self.serve(answering(Peer.reset), tls=tls)
                request, _ = self.pool(get_ssl_context=client_context)
                for _ in range(5):
                    await self.within(0, 5, self.raises(HttpConnectionClosedError, self.text(
                        request, port, scheme='https' if tls else 'http', method=b'PUT',
                        headers=((b'content-length', b'%d' % MUCH),), body=streamed(bytes(MUCH)))))

    async def test_receiving_is_bounded_at_each_place(self):
        places = (
            ('before the head', b'', False),
            ('in the head', b'HTTP/1.1 200 OK\r\ncon', True),
            ('after an interim response', b'HTTP/1.1 100 Continue\r\n\r\n', True),
            ('before the body', b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n', True),
            ('in the body', b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc', True),
            ('in a chunk', b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nabc', True),
            ('in a body until the end', b'HTTP/1.1 200 OK\r\n\r\nabc', True),
        )
        request, _ = self.pool(socket_timeout=0.4, get_ssl_context=client_context)

        async def times_out(part, tls):
            gone = threading.Event()
            port = self.serve(until_closed(gone, part), tls=tls)
            error = await self.within(0.36, 10, self.raises(
                HttpDataTimeout, self.text(request, port, scheme='https' if tls else 'http')))
            await self.happens(gone)
            return isinstance(error, asyncio.TimeoutError), error.reused, error.answered
        for tls in (None, server_context()):
            results = await asyncio.gather(*[times_out(part, tls) for _, part, _ in places])
            for number, (name, _, answered) in enumerate(places):
                with self.subTest(name, tls=tls is not None):
                    self.assertEqual(results[number], (True, False, answered))

    async def test_the_time_begins_anew_with_each_byte_received(self):
        answers = (
            b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc',
            b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n',
        )

        def script(answer, peer):
            peer.read_head()
            for start, end in ((0, 3), (3, -9), (-9, -7), (-7, -2), (-2, -1), (-1, None)):
                time.sleep(0.12)
                peer.send(answer[start:end])
        request, _ = self.pool(socket_timeout=0.5, get_ssl_context=client_context)
        texts = [
            self.within(0.6, 10, self.text(
                request, self.serve(functools.partial(script, answer), tls=tls), scheme='https' if tls else 'http'))
            for answer in answers for tls in (None, server_context())
        ]
        self.assertEqual(await asyncio.gather(*texts), [b'abc'] * 4)

    async def test_the_time_begins_anew_with_each_byte_sent(self):
        def script(peer):
            # At most so much is on its way, so that the client is blocked nearly all of the time.
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
            peer.read_head()
            for _ in range(8):
                time.sleep(0.12)
                peer.read(MUCH // 8)
            peer.send(reply_of(b'done'))
        request, _ = self.pool(socket_timeout=0.6, get_ssl_context=client_context)
        headers = ((b'content-length', b'%d' % MUCH),)
        texts = [
            self.within(0.9, 20, self.text(
                request, self.serve(script, tls=tls), scheme='https' if tls else 'http', method=b'PUT', headers=headers,
                body=streamed(bytes(MUCH))))
            for tls in (None, server_context())
        ]
        self.assertEqual(await asyncio.gather(*texts), [b'done'] * 2)

    async def test_neither_the_callers_body_nor_its_reading_is_timed(self):
        async def body():
            yield b'x'
            await asyncio.sleep(0.4)
            yield b'y'

        def script(peer):
            peer.read_until(b'0\r\n\r\n')
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc')
            go_on.wait(TEST_SECONDS)
            peer.send(b'def')
        go_on = threading.Event()
        request, _ = self.pool(socket_timeout=0.2)
        _, _, response = await request(b'PUT', 'http://127.0.0.1:%d/' % self.serve(script), body=body())
        self.assertEqual(await response.__anext__(), b'abc')
        go_on.set()
        await asyncio.sleep(0.4)
        self.assertEqual(await buffered(response), b'def')

    async def test_a_timer_of_one_request_does_not_reach_the_next(self):
        port = self.serve(*numbered())
        request, _ = self.pool(socket_timeout=0.8)
        self.assertEqual(await self.text(request, port), b'0')
        await asyncio.sleep(0.9)
        self.assertEqual(await self.text(request, port), b'0')

        def late(peer):
            time.sleep(0.5)
            peer.send(reply_of(b'late'))
        # The second wait begins when the first one's time is nearly over.
        port = self.serve(answering(late))
        for _ in range(2):
            self.assertEqual(await self.text(request, port), b'late')

    async def test_a_timeout_does_not_cancel_the_callers_task(self):
        port = self.serve(answering(lambda peer: peer.read_to_close()))
        request, _ = self.pool(socket_timeout=0.1)
        self.assertIs(await outcome(self.text(request, port)), HttpDataTimeout)
        if hasattr(asyncio.Task, 'cancelling'):
            self.assertEqual(current_task().cancelling(), 0)
        await turns()  # where a cancellation of this task would come out

    async def test_a_deadline_around_a_request_works_and_leaves_the_pool_sound(self):
        gone = threading.Event()
        port = self.serve(until_closed(gone, b''), answering(reply_of(b'sound')))
        request, _ = self.pool()
        self.assertIs(await outcome(asyncio.wait_for(self.text(request, port), 0.1)), asyncio.TimeoutError)
        await self.happens(gone)
        self.assertEqual(await self.text(request, port), b'sound')

    @unittest.skipUnless(hasattr(asyncio, 'timeout'), 'since Python 3.11')
    async def test_asyncio_timeout_around_a_request_works_at_each_place(self):
        for name, part, tls in (
                ('before the head', b'', None), ('in the body', b'HTTP/1.1 200 OK\r\n\r\nabc', None),
                ('over TLS', b'', server_context()),
        ):
            with self.subTest(name):
                gone = threading.Event()
                port = self.serve(until_closed(gone, part), answering(reply_of(b'sound')), tls=tls)
                request, _ = self.pool(get_ssl_context=client_context)
                text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                with self.assertRaises(TimeoutError) as caught:
                    async with asyncio.timeout(0.5):
                        await text()
                self.assertNotIsInstance(caught.exception, HttpError)
                self.assertEqual(current_task().cancelling(), 0)
                await self.happens(gone)
                self.assertEqual(await text(), b'sound')

    @unittest.skipUnless(hasattr(asyncio, 'timeout'), 'since Python 3.11')
    async def test_a_socket_timeout_inside_asyncio_timeout_keeps_its_own_name(self):
        port = self.serve(answering(lambda peer: peer.read_to_close()))
        request, _ = self.pool(socket_timeout=0.1)
        async with asyncio.timeout(TEST_SECONDS):
            await self.raises(HttpDataTimeout, self.text(request, port))

    @unittest.skipUnless(hasattr(asyncio, 'TaskGroup'), 'since Python 3.11')
    async def test_a_task_group_cancels_requests_and_is_failed_by_them(self):
        gone = threading.Event()
        port = self.serve(until_closed(gone, b''), answering(reply_of(b'sound')))
        request, _ = self.pool()

        async def fails():
            await asyncio.sleep(0.05)
            raise KeyError('of a sibling')
        with self.assertRaises(builtins.BaseExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.text(request, port))
                group.create_task(fails())
        self.assertEqual([type(error) for error in caught.exception.exceptions], [KeyError])
        await self.happens(gone)
        self.assertEqual(await self.text(request, port), b'sound')

        request, _ = self.pool(socket_timeout=0.1)
        port = self.serve(answering(lambda peer: peer.read_to_close()))
        with self.assertRaises(builtins.BaseExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.text(request, port))
                group.create_task(never())
        self.assertEqual([type(error) for error in caught.exception.exceptions], [HttpDataTimeout])


class CancellationTest(ConnectionTestCase):

    async def cancelled(self, coroutine, at):
        """Cancels a task when `at`, a threading or asyncio Event or nothing, has happened"""
        task = self.loop.create_task(outcome(coroutine))
        if isinstance(at, threading.Event):
            await self.happens(at)
        elif at is not None:
            await at.wait()
        await asyncio.sleep(0.02)  # it may not wait yet: to be too early is only another place
        self.assertFalse(task.done())
        task.cancel()
        self.assertIs(await task, asyncio.CancelledError)

    async def test_a_request_may_be_cancelled_wherever_it_waits(self):
        async def hangs():
            begun.set()
            await never()

        async def waiting_body():
            try:
                yield b'x'
                begun.set()
                await never()
            finally:
                ended.append(None)

        def hold(*replies):
            def script(peer):
                for reply in replies:
                    peer.read_head()
                    peer.send(reply)
                if not replies:
                    peer.sock.recv(1, socket.MSG_PEEK)
                reached.set()
                peer.read_to_close()
                gone.set()
            return script

        def blocked(peer):
            peer.read_head()
            reached.set()
            finish.wait(TEST_SECONDS)
            peer.read_to_close()
            gone.set()

        partial_body = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart'
        big = ((b'content-length', b'%d' % MUCH),)
        expects = ((b'content-length', b'3'), (b'expect', b'100-continue'))
        context = server_context()
        for name, scheme, script, arguments, at in (
                ('handshake', 'https', hold(), {}, 'reached'),
                ('sending', 'http', blocked, dict(headers=big, body=streamed(bytes(MUCH))), 'reached'),
                ('sending, TLS', 'tls', blocked, dict(headers=big, body=streamed(bytes(MUCH))), 'reached'),
                ('head', 'http', hold(b''), {}, 'reached'),
                ('head, TLS', 'tls', hold(b''), {}, 'reached'),
                ('in the head', 'http', hold(b'HTTP/1.1 2'), {}, 'reached'),
                ('body', 'http', hold(partial_body), {}, 'reached'),
                ('body, TLS', 'tls', hold(partial_body), {}, 'reached'),
                ('expect', 'http', hold(b''), dict(headers=expects, body=streamed(b'abc')), 'reached'),
                ('look-up', 'name', until_closed, dict(host='hangs.test'), 'begun'),
                ('the body\'s own wait', 'http', until_closed, dict(body=waiting_body), 'begun'),
                ('the body\'s own wait, TLS', 'tls', until_closed, dict(body=waiting_body), 'begun'),
        ):
            with self.subTest(name):
                reached, gone, finish = threading.Event(), threading.Event(), threading.Event()
                begun, ended = asyncio.Event(), []
                if script is until_closed:
                    script = until_closed(gone)
                sockets = ClientSockets()
                request, _ = self.pool(
                    get_ssl_context=client_context, set_sock_options=sockets, expect_timeout=TEST_SECONDS,
                    get_dns_resolver=FakeNames({'hangs.test': hangs, 'one.test': ['127.0.0.1']}))
                port = self.serve(script, tls=context if scheme == 'tls' else None)
                method = b'PUT' if 'body' in arguments else b'GET'
                scheme = 'https' if scheme in ('https', 'tls') else 'http'
                await self.cancelled(
                    self.text(request, port, scheme=scheme, method=method, **arguments),
                    dict(reached=reached, begun=begun).get(at))
                self.assertEqual(sockets.count_open(), 0)
                finish.set()
                if name != 'look-up':
                    await self.happens(gone)
                if arguments.get('body') is waiting_body:
                    self.assertEqual(ended, [None])
                port = self.serve(answering(reply_of(b'sound')))
                self.assertEqual(await self.text(request, port, 'one.test'), b'sound')

    async def test_an_idle_connection_is_closed_where_its_look_up_is_cancelled(self):
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        port = self.serve(answering(reply_of(b'sound')))
        with mock.patch('lowhaio.MIN_TTL', 0.01):
            await self.text(request, port, 'one.test')
            names.records['one.test'] = never
            await asyncio.sleep(0.02)
            await self.cancelled(self.text(request, port, 'one.test'), None)
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_request_may_be_cancelled_while_it_connects(self):
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        with full_backlog() as port:
            await self.cancelled(self.text(request, port), None)
        self.assertEqual((len(sockets.references), sockets.count_open()), (1, 0))
        self.assertEqual(await self.text(request, self.serve(answering(reply_of(b'sound')))), b'sound')

    async def sweep(self, how, play, script, tls=None, reused=False, least=1, **kwargs):
        """Interrupts `play(request, url)` at every one of its suspensions in turn, until it has no more; each time
        the pool must be sound afterwards"""
        port = self.serve(script, tls=tls)
        scheme = 'https' if tls else 'http'
        for n in itertools.count():
            sockets = ClientSockets(SMALL_SEND_BUFFER)
            request, close = Pool(
                get_ssl_context=functools.partial(lambda context: context, self.context), set_sock_options=sockets,
                recv_bufsize=4096, **kwargs)
            if reused:
                await self.text(request, port, scheme=scheme)
            interrupted = Interrupted(self.loop, play(request, '{}://127.0.0.1:{}/'.format(scheme, port)), n, how)
            task = self.loop.create_task(by_task(interrupted))
            try:
                await task
            except asyncio.CancelledError:
                self.assertTrue(interrupted.reached and how is not let_go)
            else:
                self.assertTrue(how is let_go or not interrupted.reached, 'a cancellation was swallowed')
            if not interrupted.reached:
                await close()
                break
            self.assertEqual(sockets.count_open(), 0, 'at suspension {}'.format(n))
            self.assertEqual(await self.text(request, port, scheme=scheme), b'', 'after suspension {}'.format(n))
            await close()
            self.assertEqual(sockets.count_open(), 0)
        self.assertGreaterEqual(n, least, 'so many suspensions there are at least')

    def sweeps(self):
        self.context = client_context()
        for how in (pending, with_the_result, let_go):
            for tls in (None, server_context()):
                yield how, tls

    @staticmethod
    def between(how):
        """What a body waits for: nothing where the coroutine is dropped, since before Python 3.13 `close` does not
        reach into an async generator that waits, which then cannot be closed by anybody"""
        return None if how is let_go and sys.version_info < (3, 13) else lambda: asyncio.sleep(0)

    @staticmethod
    def exchange(peer):
        """A server that takes bodies in both framings, and answers /down with many pieces"""
        while True:
            head = peer.read_head()
            if not head.endswith(b'\r\n\r\n'):
                return
            if b'100-continue' in head:
                peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            if b'chunked' in head:
                if not peer.read_until(b'\r\n0\r\n\r\n').endswith(b'\r\n0\r\n\r\n'):
                    return
            elif b'PUT' in head:
                length = int(head.partition(b'content-length: ')[2].partition(b'\r\n')[0])
                if len(peer.read(length)) < length:
                    return
            if b'/down' in head:
                peer.send(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n')
                for _ in range(4):
                    time.sleep(0.001)  # so that most pieces are waited for
                    peer.send(b'1000\r\n' + bytes(4096) + b'\r\n')
                peer.send(b'0\r\n\r\n')
            else:
                peer.send(reply_of())

    async def test_a_download_may_be_interrupted_at_every_suspension(self):
        async def play(request, url):
            _, _, body = await request(b'GET', url + 'down')
            self.assertEqual(len(await buffered(body)), 4 * 4096)

        for how, tls in self.sweeps():
            for reused in (False, True):
                with self.subTest(how=how.__name__, tls=tls is not None, reused=reused):
                    await self.sweep(how, play, self.exchange, tls, reused, least=2)

    async def test_an_upload_may_be_interrupted_at_every_suspension(self):
        for how, tls in self.sweeps():
            for headers in ((), ((b'content-length', b'262144'),)):
                with self.subTest(how=how.__name__, tls=tls is not None, headers=headers):
                    body = CountedBody(*[bytes(65536)] * 4, between=self.between(how))

                    async def play(request, url, headers=headers, body=body):
                        _, _, response = await request(b'PUT', url, headers=headers, body=body())
                        await buffered(response)
                    # Sending and receiving wait; so does the body, where it may.
                    await self.sweep(how, play, self.exchange, tls, least=3 if self.between(how) else 2)
                    self.assertEqual(body.begun, body.ended)

    async def test_an_upload_that_waits_for_100_may_be_interrupted_at_every_suspension(self):
        headers = ((b'content-length', b'8'), (b'expect', b'100-continue'))
        for how, tls in self.sweeps():
            with self.subTest(how=how.__name__, tls=tls is not None):
                body = CountedBody(b'0123', b'4567', between=self.between(how))

                async def play(request, url, body=body):
                    _, _, response = await request(b'PUT', url, headers=headers, body=body())
                    await buffered(response)
                await self.sweep(how, play, self.exchange, tls, least=3 if self.between(how) else 2,
                                 expect_timeout=TEST_SECONDS)
                self.assertEqual(body.begun, body.ended)

    async def test_a_look_up_may_be_interrupted_at_every_suspension(self):
        async def slowly():
            await turns()
            return ['127.0.0.1']

        async def play(request, url):
            await self.text(request, int(url.rpartition(':')[2].rstrip('/')), 'one.test')

        self.context = None
        for how in (pending, with_the_result, let_go):
            with self.subTest(how):
                names = FakeNames({'one.test': slowly})
                await self.sweep(how, play, self.exchange, get_dns_resolver=names, least=2)

    async def test_a_request_that_is_sent_again_may_be_interrupted_at_every_suspension(self):
        # Connections that carry three requests at most, the third of which is not answered.
        def script(peer):
            for _ in range(2):
                if not peer.read_head().endswith(b'\r\n\r\n'):
                    return
                peer.send(reply_of())
            if peer.read_head():
                peer.abort()

        async def play(request, url):
            for _ in range(2):
                _, _, response = await request(b'GET', url)
                await buffered(response)
        for how, tls in self.sweeps():
            with self.subTest(how=how.__name__, tls=tls is not None):
                await self.sweep(how, play, script, tls, reused=True, least=3)

    async def test_closing_a_body_ends_the_read_of_another_task(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                gone = threading.Event()
                port = self.serve(until_closed(gone, b'HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n'), tls=tls)
                request, _ = self.pool(get_ssl_context=client_context)
                _, _, body = await request(b'GET', '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port))
                task = self.loop.create_task(outcome(body.__anext__()))
                await turns()
                await body.aclose()
                self.assertIs(await task, HttpConnectionClosedError)
                await self.happens(gone)


class OwnershipTest(ConnectionTestCase):

    PARTIAL = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n'

    async def test_a_body_that_is_let_go_of_closes_its_connection(self):
        async def never_iterated(body):
            pass

        async def begun(body):
            self.assertEqual(await body.__anext__(), b'part')

        async def begun_by_a_loop(body):
            async for _ in body:
                break

        async def cancelled(body):
            await body.__anext__()
            task = self.loop.create_task(outcome(body.__anext__()))
            await turns()
            task.cancel()
            await task

        async def closed(body):
            await body.aclose()

        async def closed_twice(body):
            await body.__anext__()
            await body.aclose()
            await body.aclose()
            with self.assertRaises(StopAsyncIteration):
                await body.__anext__()

        async def dropped_in_another_thread(body):
            bodies.append(body)
        for tls in (None, server_context()):
            for use in (never_iterated, begun, begun_by_a_loop, cancelled, closed, closed_twice,
                        dropped_in_another_thread):
                with self.subTest(use.__name__, tls=tls is not None):
                    gone, bodies = threading.Event(), []
                    port = self.serve(
                        until_closed(gone, self.PARTIAL + b'part'), answering(reply_of(b'sound')), tls=tls)
                    sockets = ClientSockets()
                    request, _ = self.pool(get_ssl_context=client_context, set_sock_options=sockets)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port)
                    _, _, body = await request(b'GET', url)
                    self.assertEqual(sockets.count_open(), 1)
                    await use(body)
                    del body
                    await in_thread(bodies.clear)
                    await self.happens(gone)
                    self.assertEqual(sockets.count_open(), 0)
                    # The next one has the same descriptor, as likely as not.
                    _, _, body = await request(b'GET', url)
                    self.assertEqual(await buffered(body), b'sound')

    async def test_a_body_dropped_in_a_thread_while_the_loop_is_blocked_is_closed_when_it_turns(self):
        gone = threading.Event()
        port = self.serve(until_closed(gone, self.PARTIAL), answering(reply_of(b'sound')))
        request, _ = self.pool()
        bodies = [(await request(b'GET', 'http://127.0.0.1:%d/' % port))[2]]
        thread = threading.Thread(target=bodies.clear)
        thread.start()
        thread.join(TEST_SECONDS)
        self.assertEqual(await self.text(request, port), b'sound')
        await self.happens(gone)

    async def test_a_body_dropped_in_a_thread_leaves_the_loops_readers_to_the_loops_own_thread(self):
        threads = set()
        real = self.loop.remove_reader

        def remove_reader(fd):
            threads.add(threading.current_thread())
            return real(fd)
        gone = threading.Event()
        port = self.serve(until_closed(gone, self.PARTIAL))
        request, _ = self.pool()
        bodies = [(await request(b'GET', 'http://127.0.0.1:%d/' % port))[2]]
        self.loop.remove_reader = remove_reader
        try:
            await in_thread(bodies.clear)
            await self.happens(gone)
        finally:
            del self.loop.remove_reader
        self.assertLessEqual(threads, {threading.current_thread()})

    async def test_a_coroutine_that_is_let_go_of_closes_its_connection(self):
        for name, reply, suspensions in (('in the request', b'', 1), ('in the body', self.PARTIAL, 2)):
            with self.subTest(name):
                gone = threading.Event()
                port = self.serve(until_closed(gone, reply), answering(reply_of(b'sound')))
                sockets = ClientSockets()
                request, _ = self.pool(set_sock_options=sockets)
                interrupted = Interrupted(self.loop, self.text(request, port), suspensions, let_go)
                await interrupted
                self.assertTrue(interrupted.reached)
                self.assertEqual(sockets.count_open(), 0)
                await self.happens(gone)
                self.assertEqual(await self.text(request, port), b'sound')

    async def test_a_request_outlives_its_function(self):
        port = self.serve(answering(reply_of(b'sound')))
        _, _, body = await lowhaio.Pool()[0](b'GET', 'http://127.0.0.1:%d/' % port)
        self.assertEqual(await buffered(body), b'sound')

    async def test_a_pool_that_is_dropped_closes_what_is_idle(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                gone = threading.Event()
                port = self.serve(until_closed(gone, reply_of(b'x')), tls=tls)
                sockets = ClientSockets()
                request, _ = Pool(get_ssl_context=client_context, set_sock_options=sockets)
                await self.text(request, port, scheme='https' if tls else 'http')
                self.assertEqual(sockets.count_open(), 1)
                del request, _
                gc.collect()
                await self.happens(gone)
                self.assertEqual(sockets.count_open(), 0)

    async def test_a_body_outlives_its_pool(self):
        gone, go_on = threading.Event(), threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na')
            go_on.wait(TEST_SECONDS)
            peer.send(b'b')
            peer.read_to_close()
            gone.set()
        port = self.serve(script)
        request, _ = Pool()
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % port)
        del request, _
        gc.collect()
        go_on.set()
        self.assertEqual(await buffered(body), b'ab')
        del body
        gc.collect()
        await self.happens(gone)

    def test_a_loop_that_is_closed_with_idle_connections_leaves_nothing_behind(self):
        port = self.serve(answering(reply_of(b'x')))
        partial_port = self.serve(answering(self.PARTIAL))
        for drop_first in (True, False):
            with self.subTest(drop_first=drop_first):
                sockets = ClientSockets()
                request, close = Pool(set_sock_options=sockets)
                loop = new_event_loop()
                loop.run_until_complete(self.text(request, port))
                _, _, body = loop.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % partial_port))
                self.assertEqual(sockets.count_open(), 2)
                if drop_first:
                    del request, close, body
                    gc.collect()
                    loop.run_until_complete(asyncio.sleep(0))
                loop.close()
                if not drop_first:
                    del request, close, body
                    gc.collect()
                self.assertEqual(sockets.count_open(), 0)

    def test_a_program_like_the_seeds_ends_without_a_word(self):
        # With warnings as errors, and the pool at module level, where it lives until the interpreter ends.
        port = self.serve(answering(reply_of(b'x')))
        program = textwrap.dedent('''
            import asyncio
            from lowhaio import Pool, buffered

            request, _ = Pool()
            kept = []

            async def main():
                code, headers, body = await request(b'GET', 'http://127.0.0.1:{0}/')
                assert await buffered(body) == b'x'
                kept.append(await request(b'GET', 'http://127.0.0.1:{1}/'))

            for _ in range(2):
                loop = asyncio.new_event_loop()
                loop.run_until_complete(main())
                loop.close()
        ''').format(port, self.serve(answering(self.PARTIAL)))
        environment = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(lowhaio.__file__)))
        process = subprocess.Popen(
            [sys.executable, '-X', 'dev', '-W', 'error', '-c', program], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=TEST_SECONDS / 2)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual((output, process.returncode), (b'', 0))


def in_loop_of_its_own(coroutine_function, *args):
    """What it gives, or the class of what it raises, in a new loop in the calling thread"""
    loop = new_event_loop()
    try:
        return loop.run_until_complete(outcome(coroutine_function(*args)))
    finally:
        loop.close()


def halting(first, go_on, rest, gone):
    """A script that answers one request in two parts, the second after `go_on`, and sets `gone` at the close"""
    def script(peer):
        peer.read_head()
        peer.send(first)
        go_on.wait(TEST_SECONDS)
        peer.send(rest)
        if not peer.read_to_close():
            gone.set()
    return script


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """As the Proactor loop of Windows is: it has no readers but for itself"""
    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader
    add_writer = asyncio.AbstractEventLoop.add_writer
    remove_writer = asyncio.AbstractEventLoop.remove_writer


class LoopsTest(ConnectionTestCase):

    def test_a_pool_may_be_made_before_any_loop(self):
        asyncio.set_event_loop(None)
        try:
            request, _ = self.pool()
        finally:
            asyncio.set_event_loop(self.loop)
        port = self.serve(answering(reply_of(b'x')))
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'x')

    def test_a_pool_may_be_made_in_a_thread_without_a_loop(self):
        port = self.serve(answering(reply_of(b'x')))
        pools = []
        thread = threading.Thread(target=lambda: pools.append(self.pool()))
        thread.start()
        thread.join(TEST_SECONDS)
        (request, _), = pools
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'x')

    def test_a_connection_of_an_earlier_loop_is_not_kept_for_a_later_one(self):
        go_on, gone = threading.Event(), threading.Event()
        port = self.serve(halting(OK + b'content-length: 3\r\n\r\nab', go_on, b'c', gone), *numbered()[1:])
        request, close = self.pool()
        first, second = new_event_loop(), new_event_loop()
        try:
            _, _, body = first.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % port))
            self.assertEqual(second.run_until_complete(self.text(request, port)), b'1')
            go_on.set()
            self.assertEqual(first.run_until_complete(buffered(body)), b'abc')
            self.assertTrue(gone.wait(TEST_SECONDS), 'the connection of the first loop is still open')
            self.assertEqual(second.run_until_complete(self.text(request, port)), b'1')
            second.run_until_complete(close())
        finally:
            first.close()
            second.close()

    def test_under_a_later_loop_a_pool_starts_afresh(self):
        for tls in (None, server_context()):
            for how in ('closed', 'stopped'):
                with self.subTest(how, tls=tls is not None):
                    gone = threading.Event()
                    port = self.serve(
                        until_closed(gone, reply_of(b'0')), *numbered()[1:], tls=tls)
                    sockets = ClientSockets()
                    request, close = self.pool(get_ssl_context=client_context, set_sock_options=sockets)
                    text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                    first, second = new_event_loop(), new_event_loop()
                    try:
                        self.assertEqual(first.run_until_complete(text()), b'0')
                        if how == 'closed':
                            first.close()
                        self.assertEqual(second.run_until_complete(text()), b'1')
                        self.assertTrue(gone.wait(TEST_SECONDS), 'the old connection is still open')
                        self.assertEqual(second.run_until_complete(text()), b'1')
                        self.assertEqual(sockets.count_open(), 1)
                        if how == 'stopped':
                            self.assertEqual(first.run_until_complete(text()), b'2')
                            self.assertEqual(first.run_until_complete(text()), b'2')
                        self.assertEqual(sockets.count_open(), 1)
                    finally:
                        first.close()
                        second.close()
                    self.assertEqual(self.loop.run_until_complete(text()), b'3' if how == 'stopped' else b'2')
                    self.loop.run_until_complete(close())
                    self.assertEqual(sockets.count_open(), 0)

    def test_a_request_that_an_earlier_loop_never_ended_does_no_harm(self):
        # Its task was never run to the end, and its connection belongs to a loop that is closed.
        gone = threading.Event()
        port = self.serve(until_closed(gone, b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n'), *numbered()[1:])
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        first = new_event_loop()
        _, _, body = first.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % port))
        first.close()
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'1')
        self.loop.run_until_complete(body.aclose())
        self.assertTrue(gone.wait(TEST_SECONDS))
        self.assertEqual(sockets.count_open(), 1)
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'1')

    async def test_a_second_loop_is_refused_while_the_first_runs(self):
        port = self.serve(*numbered())
        request, _ = self.pool()
        self.assertEqual(await self.text(request, port), b'0')
        body = CountedBody(b'x')
        refused = await in_thread(in_loop_of_its_own, lambda: self.text(request, port, method=b'PUT', body=body()))
        self.assertIs(refused, HttpRequestError)
        self.assertEqual(body.begun, 0)
        self.assertEqual(await self.text(request, port), b'0')

    async def test_pools_of_two_loops_that_run_are_apart(self):
        port = self.serve(*numbered())
        request, _ = self.pool()
        self.assertEqual(await self.text(request, port), b'0')

        async def elsewhere():
            other_request, other_close = Pool()
            result = await self.text(other_request, port)
            await other_close()
            return result
        self.assertEqual(await in_thread(in_loop_of_its_own, elsewhere), b'1')

    def in_child(self, function):
        """What `function()` gives, bytes, in a forked process, which is killed by its alarm if it hangs"""
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other threads, which are the peers, and hold no locks of ours
            pid = os.fork()
        if not pid:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                os.write(writer, function())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, 'rb') as pipe:
            result = pipe.read()
        os.waitpid(pid, 0)
        return result

    def test_after_a_fork_the_child_starts_afresh_and_the_parent_goes_on(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                ask, gone = threading.Event(), threading.Event()

                def script(peer, ask=ask, gone=gone):
                    for _ in range(2):
                        peer.read_head()
                        peer.send(reply_of(b'0'))
                    ask.wait(TEST_SECONDS)
                    peer.half_close()
                    peer.read_to_close()
                    gone.set()
                port = self.serve(script, *numbered()[1:], tls=tls)
                sockets = ClientSockets()
                request, close = self.pool(get_ssl_context=client_context, set_sock_options=sockets)
                text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')

                async def child(text=text, sockets=sockets, close=close):
                    answers = await text() + await text()
                    count = sockets.count_open()
                    await close()
                    return answers + b', %d open, then %d' % (count, sockets.count_open())
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                self.assertEqual(self.in_child(lambda: in_loop_of_its_own(child)), b'11, 1 open, then 0')
                # Neither a close_notify nor the selector, which the two share, was touched by the child.
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                ask.set()
                self.loop.run_until_complete(self.happens(gone))
                self.assertEqual(sockets.count_open(), 0)

    async def test_a_child_forked_while_the_loop_runs_starts_afresh_too(self):
        port = self.serve(*numbered())
        request, close = self.pool()
        self.assertEqual(await self.text(request, port), b'0')

        async def child():
            answer = await self.text(request, port)
            await close()
            return answer
        self.assertEqual(self.in_child(lambda: in_loop_of_its_own(child)), b'1')
        self.assertEqual(await self.text(request, port), b'0')

    def test_a_child_that_drops_and_closes_all_leaves_the_parents_connections_alone(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                before = self.accepted
                go_on = threading.Event()

                def script(peer, go_on=go_on):
                    peer.read_head()
                    peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n')
                    go_on.wait(TEST_SECONDS)
                    peer.send(b'end')
                idle_port, busy_port = self.serve(*numbered(), tls=tls), self.serve(script, tls=tls)
                request, close = self.pool(get_ssl_context=client_context)
                scheme = 'https' if tls else 'http'
                text = functools.partial(self.text, request, idle_port, scheme=scheme)
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                bodies = [
                    self.loop.run_until_complete(request(b'GET', '{}://127.0.0.1:{}/'.format(scheme, busy_port)))[2]]

                def child(bodies=bodies, close=close):
                    in_loop_of_its_own(bodies[0].aclose)
                    bodies.clear()
                    gc.collect()
                    return in_loop_of_its_own(close) or b'closed'
                self.assertEqual(self.in_child(child), b'closed')
                go_on.set()
                self.assertEqual(self.loop.run_until_complete(buffered(bodies[0])), b'end')
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                self.assertEqual(self.accepted - before, 2)

    async def test_a_closed_pool_refuses_requests(self):
        port = self.serve(*numbered())
        request, close = self.pool()
        await self.text(request, port)
        await close()
        body = CountedBody(b'x')
        await self.raises(HttpRequestError, self.text(request, port, method=b'PUT', body=body()))
        self.assertEqual((self.accepted, body.begun), (1, 0))

    async def test_a_pool_may_be_closed_before_any_request_and_twice(self):
        request, close = self.pool()
        await close()
        await close()
        await self.raises(HttpRequestError, request(b'GET', 'http://127.0.0.1/'))

        names = FakeNames({'one.test': ['127.0.0.1']})
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, self.serve(*numbered()), 'one.test')
        await asyncio.gather(close(), close())
        await close()
        self.assertEqual(names.cleared, 1)

    async def test_idle_connections_are_closed_at_once(self):
        gone = [threading.Event() for _ in range(2)]
        ports = [self.serve(until_closed(event, reply_of())) for event in gone]
        sockets = ClientSockets()
        request, close = self.pool(set_sock_options=sockets)
        for port in ports:
            await self.text(request, port)
        await close()
        self.assertEqual(sockets.count_open(), 0)
        for event in gone:
            await self.happens(event)

    async def test_connections_in_use_are_closed_when_their_response_ends(self):
        gone, go_on, asked = threading.Event(), threading.Event(), threading.Event()

        def script(peer):
            peer.read_head()
            asked.set()
            go_on.wait(TEST_SECONDS)
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc')
            peer.send(b'def')
            peer.read_to_close()
            gone.set()
        sockets = ClientSockets()
        request, close = self.pool(set_sock_options=sockets)
        task = self.loop.create_task(self.text(request, self.serve(script)))
        await self.happens(asked)
        body_gone, body_go_on = threading.Event(), threading.Event()

        def body_script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabc')
            body_go_on.wait(TEST_SECONDS)
            peer.send(b'def')
            peer.read_to_close()
            body_gone.set()
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % self.serve(body_script))
        await close()
        self.assertEqual(sockets.count_open(), 2)
        go_on.set()
        self.assertEqual(await task, b'abcdef')
        await self.happens(gone)
        body_go_on.set()
        self.assertEqual(await buffered(body), b'abcdef')
        await self.happens(body_gone)
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_pool_may_be_closed_from_another_loop_while_its_own_runs(self):
        gone = threading.Event()
        names = FakeNames({'one.test': ['127.0.0.1']})
        port = self.serve(until_closed(gone, reply_of(b'x')))
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, port, 'one.test')
        self.assertIsNone(await in_thread(in_loop_of_its_own, close))
        await self.happens(gone)
        await self.raises(HttpRequestError, self.text(request, port, 'one.test'))
        await turns()
        self.assertEqual(names.cleared, 1)
        await close()

    def test_a_pool_may_be_closed_from_a_later_loop(self):
        for how in ('closed', 'stopped'):
            with self.subTest(how):
                gone = threading.Event()
                port = self.serve(until_closed(gone, reply_of(b'x')))
                names = FakeNames({'one.test': ['127.0.0.1']})
                request, close = self.pool(get_dns_resolver=names)
                first = new_event_loop()
                try:
                    first.run_until_complete(self.text(request, port, 'one.test'))
                    if how == 'closed':
                        first.close()
                    self.loop.run_until_complete(close())
                    self.assertTrue(gone.wait(TEST_SECONDS))
                    self.assertIs(self.loop.run_until_complete(outcome(self.text(request, port))), HttpRequestError)
                finally:
                    first.close()

    def test_a_loop_without_readers_gets_a_clear_error(self):
        request, _ = self.pool()
        loop = LoopWithoutReaders()
        try:
            with self.assertRaises(HttpError) as caught:
                loop.run_until_complete(self.text(request, refusing_port()))
            self.assertIn('add_reader', str(caught.exception))
        finally:
            loop.close()
        # And the pool may be used in a better one.
        self.assertEqual(self.loop.run_until_complete(self.text(request, self.serve(answering(reply_of(b'x'))))), b'x')

    async def test_without_descriptors_to_spare_a_request_fails_and_the_next_may_not(self):
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        port = refusing_port()
        free = os.dup(0)
        os.close(free)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
        try:
            error = await self.raises(HttpConnectionError, self.text(request, port))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        self.assertEqual((error.__cause__.errno, sockets.references), (errno.EMFILE, []))
        self.assertEqual(await self.text(request, self.serve(answering(reply_of(b'x')))), b'x')


class CyclesTest(ConnectionTestCase):
    """With the garbage collector off: what is done with is freed by counting references, or it is in a cycle"""

    def setUp(self):
        super().setUp()
        gc.collect()
        gc.disable()
        self.addCleanup(gc.enable)

    def cycles(self):
        """What of lowhaio, and which sockets, only the collector could free"""
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            gc.collect()
            found = [name for name in map(self.ours, gc.garbage) if name]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
        gc.collect()
        return collections.Counter(found)

    @staticmethod
    def ours(thing):
        kind = type(thing).__name__
        code = next((getattr(thing, name) for name in ('f_code', 'cr_code', 'gi_code', 'ag_code', '__code__')
                     if hasattr(type(thing), name)), None)
        if code is not None:
            return code.co_filename == lowhaio.__file__ and '{} of {}'.format(kind, code.co_name)
        return (isinstance(thing, (socket.socket, ssl.SSLObject)) or type(thing).__module__ == 'lowhaio') and kind

    async def test_the_check_finds_cycles(self):
        async def loses(sock):
            own = {}
            own['own'] = own, sock
        with socket.socket() as sock:
            await loses(sock)
            self.assertEqual(self.cycles(), {})
        await loses(sock)
        del sock
        self.assertEqual(self.cycles(), {'socket': 1})

    async def test_requests_make_no_reference_cycles(self):
        context = server_context()
        trusting = client_context()
        partial = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart'

        async def whole(request, url, **kwargs):
            _, _, body = await request(b'PUT' if 'body' in kwargs else b'GET', url, **kwargs)
            await buffered(body)

        async def dropped(request, url):
            await request(b'GET', url)

        async def closed(request, url):
            _, _, body = await request(b'GET', url)
            await body.__anext__()
            await body.aclose()

        async def cancelled(request, url):
            task = self.loop.create_task(outcome(whole(request, url)))
            await asyncio.sleep(0.05)
            task.cancel()
            await task

        async def early_body_error(request, url):
            async def body():
                yield b'too long'
            await whole(request, url, headers=((b'content-length', b'3'),), body=body())

        async def own_body_error(request, url):
            async def body():
                yield b'x'
                raise KeyError('of the caller')
            await whole(request, url, body=body())

        async def uploaded(request, url):
            await whole(request, url, headers=((b'content-length', b'8'),), body=streamed(b'01234567'))

        async def blocked(request, url):
            await whole(request, url, headers=((b'content-length', b'%d' % MUCH),), body=streamed(bytes(MUCH)))

        silent = answering(lambda peer: peer.read_to_close())
        finish = threading.Event()

        async def twice(request, url):
            await whole(request, url)
            await whole(request, url)

        def reads_nothing(peer):
            peer.read_head()
            finish.wait(TEST_SECONDS)
        for name, play, script, expected in (
                ('whole', whole, answering(reply_of(b'x')), None),
                ('uploaded', uploaded, answering(reply_after_body(8)), None),
                ('dropped', dropped, answering(partial), None),
                ('closed', closed, answering(partial), None),
                ('cancelled', cancelled, silent, None),
                ('cancelled in the body', cancelled, answering(partial), None),
                ('nothing answered', whole, answering(Peer.abort), HttpConnectionClosedError),
                ('nothing answered on a reused connection', twice, answering(reply_of(), Peer.abort), None),
                ('truncated', whole, answering(lambda peer: (peer.send(partial), peer.abort())),
                 HttpConnectionClosedError),
                ('nonsense', whole, answering(b'nonsense\r\n\r\n'), HttpProtocolError),
                ('nonsense in the body', whole,
                 answering(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n'), HttpProtocolError),
                ('timeout', whole, silent, HttpDataTimeout),
                ('timeout in the body', whole, answering(partial), HttpDataTimeout),
                ('timeout while sending', blocked, reads_nothing, HttpDataTimeout),
                ('refused while sending', blocked, answering(Peer.reset), HttpConnectionClosedError),
                ('too long a body', early_body_error, silent, HttpBodyError),
                ('a body that raises', own_body_error, silent, KeyError),
        ):
            for tls in (None, context):
                with self.subTest(name, tls=tls is not None):
                    port = self.serve(script, tls=tls)
                    sockets = ClientSockets()
                    request, close = self.pool(
                        get_ssl_context=functools.partial(lambda context: context, trusting),
                        set_sock_options=sockets, socket_timeout=0.1)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port)
                    self.assertIs(await outcome(play(request, url)), expected)
                    await close()
                    await asyncio.sleep(0)
                    self.assertEqual(len(sockets.references), 2 if play is twice else 1)
                    self.assertEqual(sockets.alive(), [])
                    self.assertEqual(self.cycles(), {})
        finish.set()

    async def test_requests_that_are_sent_again_in_vain_make_no_reference_cycles(self):
        seen = []

        async def connect(scheme, host, port, *args):
            return await lowhaio.connect_directly(scheme, host, ports.pop(0), *args)
        for name, second in (('answered by neither', None), ('no second connection', refusing_port())):
            with self.subTest(name):
                ports = [self.serve(answering(reply_of(), Peer.abort, seen=seen)), second or self.serve(
                    answering(Peer.abort, seen=seen))]
                sockets = ClientSockets()
                request, _ = self.pool(connect=connect, set_sock_options=sockets)
                await self.text(request, 80)
                self.assertIs(await outcome(self.text(request, 80)), HttpConnectionClosedError)
                self.assertEqual((ports, sockets.alive()), ([], []))
                self.assertEqual(self.cycles(), {})
        self.assertEqual(len(seen), 5)

    async def test_connections_that_fail_make_no_reference_cycles(self):
        names = FakeNames({'one.test': ['127.0.0.1'], 'two.test': ['127.0.0.1', '127.0.0.2'], 'lost.test': DnsTimeout})
        trusting = client_context()
        port = self.serve(answering(reply_of()), tls=server_context())
        with full_backlog() as full_port:
            for name, url, expected in (
                    ('refused', 'http://127.0.0.1:%d/' % refusing_port(), HttpConnectionError),
                    ('refused twice', 'http://two.test:%d/' % refusing_port(), HttpConnectionError),
                    ('not answered', 'http://127.0.0.1:%d/' % full_port, HttpConnectionTimeout),
                    ('not found', 'http://none.test/', HttpDnsError),
                    ('not found for now', 'http://lost.test/', HttpDnsError),
                    ('another name', 'https://one.test:%d/' % port, HttpTlsError),
                    ('no TLS', 'https://127.0.0.1:%d/' % self.serve(lambda peer: peer.send(b'HTTP/1.1 400 \r\n\r\n')),
                     HttpTlsError),
                    ('closed in the handshake', 'https://127.0.0.1:%d/' % self.serve(lambda peer: None), HttpTlsError),
                    ('silent in the handshake',
                     'https://127.0.0.1:%d/' % self.serve(lambda peer: peer.read_to_close()), HttpConnectionTimeout),
                    ('refused by the pool', 'ftp://127.0.0.1/', HttpRequestError),
            ):
                with self.subTest(name):
                    sockets = ClientSockets()
                    request, _ = self.pool(
                        get_dns_resolver=names, set_sock_options=sockets, socket_timeout=0.2,
                        get_ssl_context=functools.partial(lambda context: context, trusting))
                    self.assertIs(await outcome(request(b'GET', url)), expected)
                    await turns()
                    self.assertEqual(sockets.alive(), [])
                    self.assertEqual(self.cycles(), {})

    async def test_a_pool_is_no_reference_cycle(self):
        port = self.serve(answering(reply_of()))
        sockets = ClientSockets()
        request, close = Pool(set_sock_options=sockets)
        await self.text(request, port)
        references = weakref.ref(request), weakref.ref(close)
        del request, close
        await turns()
        self.assertEqual([reference() for reference in references], [None, None])
        self.assertEqual(sockets.alive(), [])
        self.assertEqual(self.cycles(), {})


# ======== What real peers do too rarely to wait for


EMPTY = b'HTTP/1.1 204 No Content\r\n\r\n'


class MemoryTls:
    """A TLS server in memory, and a Connection to it that plays what the test puts into `errors`"""

    def __init__(self):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server_context().wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.errors = []
        self.blocked = 0
        self.waits = []
        self.closed_with = None
        self.inner = lowhaio.Connection(
            self.receive, self.send, self.wait, lambda _: None, self.close, lambda: None)

    async def connect(self, host='localhost'):
        connection = await lowhaio.tls_connection(self.inner, client_context(), host, 65536, 10)
        self.server.do_handshake()
        return connection

    def receive(self):
        try:
            self.server.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read() or None

    def send(self, data):
        if self.errors:
            raise self.errors.pop(0)
        if self.blocked:
            self.blocked -= 1
            return 0
        return self.incoming.write(data)

    async def wait(self, sending=False, seconds=None):
        self.waits.append((sending, seconds))

    def close(self, last=b''):
        if self.closed_with is None:
            self.closed_with = last


class TestTlsInMemory(AsyncTestCase):

    async def test_received_records_are_understood_wherever_they_are_cut(self):
        for cuts in ((10 ** 6,), (1,), (3, 7), (262144,), (16384, 5, 40000), (4, 16389)):
            with self.subTest(cuts):
                peer = MemoryTls()
                connection = await peer.connect()
                self.assertIsNone(connection.receive())
                for length in (1, 5, 100, 16384, 16640, 3, 65535, 16379, 7):
                    peer.server.write(bytes([length % 256]) * length)
                wire, at, pieces = peer.outgoing.read(), 0, []
                for cut in itertools.cycle(cuts):
                    peer.outgoing.write(wire[at:at + cut])
                    at += cut
                    while True:
                        data = connection.receive()
                        if data is None:
                            break
                        self.assertLessEqual(len(data), 65536)
                        pieces.append(data)
                    if at >= len(wire):
                        break
                self.assertEqual(b''.join(pieces), b''.join(
                    bytes([length % 256]) * length for length in (1, 5, 100, 16384, 16640, 3, 65535, 16379, 7)))

    async def test_a_record_that_has_begun_is_not_silence_but_before_the_first_request(self):
        for at in (1, 4, 5, 6, 20):
            for is_used in (False, True):
                with self.subTest((at, is_used)):
                    peer = MemoryTls()
                    connection = await peer.connect()
                    self.assertIsNone(connection.poll())
                    if is_used:
                        self.assertEqual(connection.send(b'request'), 7)
                        self.assertIsNone(connection.poll())
                    peer.server.write(b'answer')
                    wire = peer.outgoing.read()
                    peer.outgoing.write(wire[:at])
                    self.assertEqual(connection.poll(), b'' if is_used else None)
                    peer.outgoing.write(wire[at:])
                    self.assertEqual(connection.poll(), b'answer')

    async def test_the_name_to_verify_is_without_the_dot_at_its_end(self):
        await MemoryTls().connect('localhost.')

    async def test_a_peer_whose_certificate_is_refused_is_told_so(self):
        peer = MemoryTls()
        with self.assertRaises((ssl.SSLError, ssl.CertificateError)):
            await peer.connect('other.test')
        if sys.version_info >= (3, 7):  # before, Python judges the name itself, after the handshake
            peer.incoming.write(peer.closed_with)
            with self.assertRaises(ssl.SSLError) as caught:
                peer.server.do_handshake()
            self.assertIn('alert', str(caught.exception).lower())
        self.assertIsNotNone(peer.closed_with)

    async def test_what_came_before_a_bad_record_is_given_and_then_its_error(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.server.write(b'good')
        peer.outgoing.write(b'\x17\x03\x03\x00\x20' + bytes(32))
        self.assertEqual(connection.receive(), b'good')
        for _ in range(2):
            with self.assertRaises(ssl.SSLError):
                connection.receive()

    async def test_a_bad_record_on_an_idle_connection_is_told(self):
        peer = MemoryTls()
        connection = await peer.connect()
        self.assertIsNone(connection.poll())
        peer.outgoing.write(b'\x17\x03\x03\x00\x20' + bytes(32))
        with self.assertRaises(ssl.SSLError):
            connection.poll()

    async def test_what_comes_while_a_send_is_blocked_is_received_before_it_goes_on(self):
        for how in ('receive', 'poll'):
            with self.subTest(how):
                peer = MemoryTls()
                connection = await peer.connect()
                peer.server.write(b'early')
                peer.blocked = 2
                self.assertEqual(connection.send(b'upload'), 6)  # taken, and on its way
                self.assertEqual(connection.send(b'more'), 0)
                self.assertEqual(getattr(connection, how)(), b'early')
                self.assertEqual(connection.send(b'more'), 4)
                self.assertEqual(peer.server.read(100) + peer.server.read(100), b'uploadmore')

    async def test_what_the_peer_had_sent_is_received_though_it_takes_nothing_more(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.errors.append(BrokenPipeError('gone'))
        with self.assertRaises(BrokenPipeError):
            connection.send(b'upload')
        peer.server.write(b'answer')
        self.assertEqual(connection.receive(), b'answer')
        self.assertIsNone(connection.receive())
        await connection.wait(False, 10)
        self.assertEqual(peer.waits[-1], (False, 10))  # it would be told at once, again and again
        for _ in range(2):  # what failed is not sent, and not said to be
            with self.assertRaises(BrokenPipeError):
                connection.send(b'more')
        connection.close()
        self.assertEqual(peer.closed_with, b'')  # nothing in the middle of a record

    async def test_a_receive_that_finds_the_peer_gone_goes_on_receiving(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.server.write(b'first')
        peer.blocked = 1
        self.assertEqual(connection.send(b'upload'), 6)
        self.assertEqual(connection.receive(), b'first')
        peer.errors.append(BrokenPipeError('gone'))
        self.assertIsNone(connection.receive())
        peer.server.write(b'second')
        self.assertEqual(connection.receive(), b'second')

    async def test_a_wait_with_the_rest_of_a_record_to_send_is_for_sending_too(self):
        peer = MemoryTls()
        connection = await peer.connect()
        self.assertIsNone(connection.receive())
        peer.blocked = 2
        self.assertEqual(connection.send(b'upload'), 6)
        self.assertIsNone(connection.receive())
        await connection.wait(False, 10)
        self.assertEqual(peer.waits[-1], (True, 10))
        self.assertIsNone(connection.receive())
        await connection.wait(False, 5)
        self.assertEqual(peer.waits[-1], (False, 5))
        self.assertEqual(peer.server.read(100), b'upload')

    async def test_the_last_bytes_and_close_notify_go_out_at_close(self):
        peer = MemoryTls()
        connection = await peer.connect()
        connection.close(b'last')
        peer.incoming.write(peer.closed_with)
        self.assertEqual(peer.server.read(100), b'last')
        self.assertEqual(peer.server.read(100), b'')


class TestSocketsOnly(AsyncTestCase):

    def connection(self):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(10)
        self._peers.append(theirs)
        return lowhaio.tcp_connection(self.loop, ours, 65536), ours, theirs

    async def blocked_send(self, connection):
        while connection.receive() is None:
            if not connection.send(bytes(65536)):
                await connection.wait(True, 10)

    async def test_a_blocked_send_ends_when_something_comes(self):
        connection, _, theirs = self.connection()
        send = self.loop.create_task(self.blocked_send(connection))
        await asyncio.sleep(0)
        theirs.sendall(b'early')
        await send
        self.assertIsNone(connection.poll())
        connection.close()

    async def test_a_blocked_send_ends_when_the_connection_is_closed(self):
        connection, _, theirs = self.connection()
        send = self.loop.create_task(self.blocked_send(connection))
        await asyncio.sleep(0)
        connection.close()
        with self.assertRaises(ConnectionAbortedError):
            await send

    async def test_in_a_forked_child_only_the_descriptor_is_closed(self):
        connection, ours, theirs = self.connection()
        fileno = ours.fileno()
        with mock.patch('lowhaio.os.getpid', return_value=-1):
            connection.close(b'last')
        self.assertEqual(ours.fileno(), -1)
        self.assertEqual(theirs.recv(10), b'')
        # The parent's selector was left alone; uvloop does not tell.
        self.assertTrue(self.loop.remove_reader(fileno) or USE_UVLOOP)

    async def test_a_timer_that_fires_as_the_wait_ends_does_nothing(self):
        done = self.loop.create_future()
        done.set_result(None)
        lowhaio.time_out(done, 1)
        self.assertIsNone(await done)

    async def test_unix_sockets_connect_by_the_same_function(self):
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            path = os.path.join(folder, 'socket')
            with self.assertRaises(FileNotFoundError):
                await lowhaio.connected_socket(self.loop, socket.AF_UNIX, path, lowhaio.set_sock_options_default, 1)
            listener.bind(path)
            listener.listen(1)
            sock = await lowhaio.connected_socket(
                self.loop, socket.AF_UNIX, path, lowhaio.set_sock_options_default, 1)
            sock.close()

    def test_a_loop_that_is_closed_while_a_socket_connects_leaves_no_socket(self):
        with full_backlog() as port:
            loop = asyncio.SelectorEventLoop()
            connecting = lowhaio.connected_socket(loop, socket.AF_INET, ('127.0.0.1', port), lambda _: None, 10)
            connecting.send(None)
            loop.close()
            connecting.close()

    def test_options_that_an_os_does_not_have_are_left_out(self):
        value = socket.TCP_USER_TIMEOUT
        del socket.TCP_USER_TIMEOUT
        try:
            with socket.socket() as sock:
                lowhaio.set_sock_options_default(sock)
                self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, value), 0)
        finally:
            socket.TCP_USER_TIMEOUT = value
        with socket.socket() as sock:
            lowhaio.set_sock_options_default(sock)
            self.assertEqual(sock.getsockopt(socket.IPPROTO_TCP, value), 30000)
            self.assertTrue(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def test_the_default_context_verifies(self):
        context = lowhaio.get_ssl_context_default()
        self.assertEqual((context.verify_mode, context.check_hostname), (ssl.CERT_REQUIRED, True))


def empty_answers(peer):
    while peer.read_head():
        peer.send(EMPTY)


class TestRareTurns(AsyncTestCase):

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


# ======== Servers that others wrote; the memory that large bodies take; the README's snippets


HERE = os.path.dirname(os.path.abspath(lowhaio.__file__))
KIB, MIB, GIB = 2 ** 10, 2 ** 20, 2 ** 30
# No two parts of it are alike: a piece lost, doubled or out of turn shows.
DATA = b''.join(b'%015d\n' % n for n in range(200 * KIB))


class ResizedBody:
    """A body that resizes its buffer when it is closed: where a view of it is still held, that raises a BufferError"""

    def __init__(self, size=1 << 20):
        self.buffer = bytearray(size)
        self.is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return self.buffer

    async def aclose(self):
        self.buffer.clear()
        self.is_closed = True


def connect_slowly(until=None):
    """A `connect` that takes some time, as the handshake of a proxy may, and at least until this threading.Event"""
    async def connect(*args):
        connection = await lowhaio.connect_directly(*args)
        if until is not None:
            await in_thread(until.wait, TEST_SECONDS)
        await asyncio.sleep(0.05)
        return connection
    return connect


class TestFoundInReview(ConnectionTestCase):
    """What readers of the code found, by their scripts"""

    async def test_of_all_addresses_that_fail_the_last_is_the_cause(self):
        errors = {'127.0.0.1': ConnectionRefusedError('refused'), '127.0.0.2': socket.timeout('slow')}

        async def look_up(host, record_type):
            return addresses if record_type == TYPES.A else ()

        async def open_socket(family, address):
            raise errors[address[0]]

        for addresses, cls in ((('127.0.0.1', '127.0.0.2'), HttpConnectionTimeout),
                               (('127.0.0.2', '127.0.0.1'), HttpConnectionError)):
            error = await self.raises(
                cls, lowhaio.connect_directly('http', 'h.test', 80, look_up, open_socket, None))
            self.assertIs(error.__cause__, errors[addresses[-1]])
            self.assertIn('127.0.0.1: refused', str(error))
            self.assertIn('127.0.0.2: slow', str(error))

    async def test_a_piece_that_was_released_or_closed_is_an_error_of_the_body(self):
        released = memoryview(b'x')
        released.release()
        closed = mmap.mmap(-1, 10)
        closed.close()
        for piece in (released, closed):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                url = 'http://127.0.0.1:{}/'.format(self.serve(lambda peer: peer.read_to_close()))
                self.assertRaises(HttpRequestError, streamed, piece)
                error = await self.raises(HttpBodyError, request(b'PUT', url, body=CountedBody(piece)))
                self.assertIn('released' if piece is released else 'closed', str(error))
        for piece, sent in ((ctypes.c_int(5), bytes(ctypes.c_int(5))), (array.array('H', (1, 2)), b'\1\0\2\0')):
            with self.subTest(type(piece).__name__):
                request, _ = self.pool()
                port = self.serve(reply_after_body(len(sent)))
                headers = ((b'content-length', b'%d' % len(sent)),)
                await self.text(request, port, method=b'PUT', headers=headers, body=streamed(piece))

    async def test_what_a_bodys_function_returns_is_told_of_a_reused_connection(self):
        request, _ = self.pool()
        url = 'http://127.0.0.1:{}/'.format(self.serve(*numbered()))
        for reused in (False, True):
            error = await self.raises(HttpBodyError, request(b'PUT', url, body=lambda: None))
            self.assertEqual((error.reused, error.answered), (reused, False))
            await request(b'GET', url)

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
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', self.serve(script, tls=tls))
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
        url = 'http://127.0.0.1:{}/'.format(self.serve(closes))
        error = await self.raises(HttpConnectionClosedError, request(b'PUT', url, body=CountedBody(b'x')()))
        self.assertEqual((error.reused, error.answered), (False, False))

    async def test_why_tls_ended_before_the_request_is_said(self):
        def script(peer):
            tls = ManualTls(peer, server_context())
            tls.handshake()
            peer.send(b'\x17\x03\x03\x00\x20' + bytes(32))
            peer.read_to_close()

        request, _ = self.pool(connect=connect_slowly(), get_ssl_context=client_context)
        error = await self.raises(HttpConnectionError, self.text(request, self.serve(script), scheme='https'))
        self.assertIsInstance(error.__cause__, ssl.SSLError)
        self.assertIn(str(error.__cause__), str(error))

    async def test_the_callers_buffer_is_let_go_of_before_its_body_is_closed(self):
        for what, script, tls, fields, expected in (
                ('a peer that reads nothing', lambda peer: peer.sock.recv(1, socket.MSG_PEEK) and time.sleep(0.5), None,
                 (), HttpDataTimeout),
                ('the same over TLS', lambda peer: time.sleep(0.5), tls_server(), (), HttpDataTimeout),
                ('a reset', lambda peer: peer.read_head() and peer.reset(), None, (), HttpConnectionClosedError),
                ('a body too long', Peer.read_to_close, None, ((b'content-length', b'5'),), HttpBodyError),
        ):
            with self.subTest(what):
                port = self.serve(script, tls=tls)
                request, _ = self.pool(socket_timeout=0.2 if expected is HttpDataTimeout else 10,
                                       get_ssl_context=client_context)
                body = ResizedBody()
                await self.raises(expected, request(
                    b'PUT', 'http{}://127.0.0.1:{}/'.format('s' if tls else '', port), headers=fields, body=body))
                self.assertTrue(body.is_closed)

    async def test_the_callers_buffer_is_let_go_of_when_the_request_is_cancelled(self):
        port = self.serve(lambda peer: peer.sock.recv(1, socket.MSG_PEEK) and time.sleep(0.5))
        request, _ = self.pool()
        body = ResizedBody()
        task = self.loop.create_task(request(b'PUT', 'http://127.0.0.1:%d/' % port, body=body))
        await asyncio.sleep(0.2)
        task.cancel()
        self.assertIs(await outcome(task), asyncio.CancelledError)
        self.assertTrue(body.is_closed)

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
        url = 'http://127.0.0.1:%d/' % self.serve(first, Peer.close)
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
        url = 'http://127.0.0.1:%d/' % self.serve(first, DRAIN)
        await request(b'GET', url)
        error = await self.raises(HttpBodyError, request(b'PUT', url, body=body))
        self.assertIsInstance(error.__cause__, HttpDnsError)
        self.assertIn('another', str(error))

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

    async def test_a_readiness_that_was_none_is_not_an_end(self):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            with mock.patch('select.poll') as poll:
                poll.return_value.poll.return_value = [(ours.fileno(), 1)]
                connection = lowhaio.tcp_connection(self.loop, ours, 65536)
            self.assertIsNone(connection.poll())
            connection.close()

    async def test_an_iterator_that_has_ended_is_not_asked_again(self):
        for pieces in ((), (b'x',)):
            with self.subTest(pieces):
                body = BodyOnce(*pieces)
                request, _ = self.scripted_pool()
                await request(b'PUT', 'http://127.0.0.1/', body=body)
                self.assertEqual(body.asked, len(pieces) + 1)

    def scripted_pool(self):
        async def connect(*_):
            return ScriptedConnection((), [OK_EMPTY])
        return self.pool(connect=connect)

    async def test_a_body_that_is_none_is_found_after_the_head_was_sent(self):
        request, _ = self.pool()
        port = self.serve(lambda peer: peer.read_head() and peer.send(CONTINUE) and peer.read_to_close())
        await self.raises(HttpBodyError, request(
            b'POST', 'http://127.0.0.1:%d/' % port, headers=((b'expect', b'100-continue'),), body=lambda: 5))

    async def test_what_is_refused_is_refused_whatever_was_sent_before(self):
        request, _ = self.scripted_pool()
        await request(b'GET', 'http://127.0.0.1/', headers=((b'a', b'b'),))
        for method, headers in ((b'GET', ((b'a', memoryview(bytearray(b'b'))),)), (bytearray(b'GET'), ()), ([], ()),
                                (b'GET', ([b'a', 5],)), (b'GET', ((b'a', []),))):
            with self.subTest((method, headers)):
                await self.raises(HttpRequestError, request(method, 'http://127.0.0.1/', headers=headers))

    async def test_headers_that_change_are_sent_as_they_are(self):
        sent = []

        async def connect(*_):
            sent.append(ScriptedConnection((), [OK_LAST]))
            return sent[-1]
        request, _ = self.pool(connect=connect)
        pair, pairs = [b'a', b'1'], [(b'a', b'1')]
        for headers in ((pair,), pairs, iter(pairs)):
            await request(b'GET', 'http://127.0.0.1/', headers=headers)
        pair[1], pairs[0] = b'2', (b'a', b'2')
        for headers in ((pair,), pairs, iter(pairs)):
            await request(b'GET', 'http://127.0.0.1/', headers=headers)
        self.assertEqual([b'a: 2' in connection.writes()[0] for connection in sent], [False] * 3 + [True] * 3)

    async def test_long_urls_are_not_remembered(self):
        request, _ = self.scripted_pool()
        sizes = []
        for number in range(3):
            tracemalloc.start()
            for each in range(100):
                await request(b'GET', 'http://127.0.0.1/{}#{}'.format('x' * 100000, number * 100 + each))
            sizes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        self.assertLess(max(sizes), 2000000)

    async def test_a_finished_body_does_not_keep_a_dropped_pool(self):
        go_on, ended = threading.Event(), threading.Event()
        script = halting(OK + b'content-length: 3\r\n\r\n', go_on, b'abc', ended)
        request, close = Pool(keep_alive_timeout=1000)
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % self.serve(script))
        go_on.set()
        self.assertEqual(await buffered(body), b'abc')
        del request, close
        gc.collect()
        await self.happens(ended)

    def test_a_pool_closed_from_a_thread_as_its_loop_ends_is_closed(self):
        ended = threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_to_close()
            ended.set()
        request, close = Pool()

        async def main():
            await request(b'GET', url)
            thread = threading.Thread(target=in_loop_of_its_own, args=(close,))
            thread.start()
            thread.join(TEST_SECONDS)  # the loop stands still, and ends with the next turn
        url = 'http://127.0.0.1:%d/' % self.serve(script)
        self.loop.run_until_complete(main())
        for task in all_tasks(self.loop):
            task.cancel()  # as `asyncio.run` does it
        self.loop.run_until_complete(asyncio.sleep(0))
        self.assertTrue(ended.wait(TEST_SECONDS / 2))

    async def test_a_pool_that_a_thread_drops_as_its_timer_fires_closes_silently(self):
        request, close = Pool(keep_alive_timeout=0.2)
        await request(b'GET', 'http://127.0.0.1:%d/' % self.serve(answering(OK_EMPTY)))
        pool = [(request, close)]
        del request, close
        self.loop.call_later(0.1, time.sleep, 0.2)   # the pool's timer, and the next, fall into one turn
        self.loop.call_later(0.11, time.sleep, 0.3)  # in which the pool is dropped
        thread = threading.Thread(target=lambda: time.sleep(0.45) or pool.clear())
        thread.start()
        await asyncio.sleep(0.8)
        thread.join(TEST_SECONDS)


async def slices_of(data, size=65536):
    for at in range(0, len(data), size):
        yield data[at:at + size]


def length_of(data):
    return ((b'content-length', b'%d' % len(data)),)


CHUNKED_HEADERS = ((b'transfer-encoding', b'chunked'),)
EXPECT = ((b'expect', b'100-continue'),)

# (what, headers, the body: a function of its bytes, its bytes)
UPLOADS = (
    ('a length', length_of(DATA), slices_of, DATA),
    ('a length, one large piece', length_of(DATA), streamed, DATA),
    ('a length, after 100', length_of(DATA) + EXPECT, slices_of, DATA),
    ('a length of 1', length_of(b'x'), streamed, b'x'),
    ('a length of 0', length_of(b''), streamed, b''),
    ('chunked', CHUNKED_HEADERS, slices_of, DATA),
    ('chunked, one large piece', CHUNKED_HEADERS, streamed, DATA),
    ('chunked, pieces that fit no buffer', CHUNKED_HEADERS, lambda data: slices_of(data, 65537), DATA),
    ('chunked, after 100', CHUNKED_HEADERS + EXPECT, slices_of, DATA),
    ('chunked, nothing in it', CHUNKED_HEADERS, streamed, b''),
    ('nothing said', (), slices_of, DATA),
    ('nothing said, and no body', (), lambda data: None, b''),
)

# (what, range, what of DATA)
RANGES = (
    ('from the beginning', b'bytes=0-99', slice(0, 100)),
    ('one byte', b'bytes=65536-65536', slice(65536, 65537)),
    ('to the end', b'bytes=1000000-', slice(1000000, None)),
    ('from the end', b'bytes=-1', slice(-1, None)),
)


NGINX = shutil.which('nginx', path=os.environ.get('PATH', os.defpath) + ':/usr/local/sbin:/usr/sbin')
NGINX_CONFIG = '''
daemon off;
{user}
error_log "{directory}/error.log";
pid "{directory}/nginx.pid";
events {{ worker_connections 2048; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path "{directory}/temp";
    proxy_temp_path "{directory}/temp";
    fastcgi_temp_path "{directory}/temp";
    uwsgi_temp_path "{directory}/temp";
    scgi_temp_path "{directory}/temp";
    client_max_body_size 0;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate "{directory}/certificate.pem";
        ssl_certificate_key "{directory}/certificate.pem";
        ssl_protocols TLSv1.2 TLSv1.3;
        root "{directory}";
        location /files/ {{ dav_methods PUT DELETE; }}
        # Only PUT is stored, so that is what a POST becomes.
        location /posts/ {{ proxy_pass http://127.0.0.1:{port}/files/; proxy_method PUT; proxy_http_version 1.1; }}
        location /limited/ {{ dav_methods PUT; client_max_body_size 1k; }}
        # What may hold includes has no length beforehand.
        location /chunked/ {{ alias "{directory}/files/"; ssi on; ssi_types *; }}
        location /closed/ {{ alias "{directory}/files/"; ssi on; ssi_types *; chunked_transfer_encoding off; }}
        location = /connection {{ return 200 "$connection $connection_requests $args"; }}
        location = /no-content {{ return 204; }}
        location = /moved {{ return 301 /files/data; }}
    }}
}}
'''


class Nginx:
    """An nginx of the tests' own, plain and TLS, with all it reads and writes in one directory"""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix='lowhaio-nginx-')
        # It inherits its sockets, as at an upgrade: no port is taken by another between its choice and its use, and
        # it can be connected to at once.
        listeners = [socket.socket() for _ in range(2)]
        for listener in listeners:
            listener.bind(('127.0.0.1', 0))
            listener.listen(1024)
            listener.setblocking(False)
        port, tls_port = (listener.getsockname()[1] for listener in listeners)
        self.urls = (f'http://127.0.0.1:{port}', f'https://127.0.0.1:{tls_port}')
        os.mkdir(self.path('files'))
        with open(self.path('files/data'), 'wb') as file:
            file.write(DATA)
        with open(self.path('nginx.conf'), 'w') as file:
            file.write(NGINX_CONFIG.format(
                # As root it would give up its rights to this directory.
                user='user root root;' if os.geteuid() == 0 else '',
                directory=self.directory, port=port, tls_port=tls_port,
            ))
        CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(self.path('certificate.pem'))
        self._output = open(self.path('output'), 'wb+')
        self._process = subprocess.Popen(
            [NGINX, '-p', self.directory, '-c', self.path('nginx.conf')],
            env=dict(os.environ, NGINX=''.join(f'{listener.fileno()};' for listener in listeners)),
            pass_fds=[listener.fileno() for listener in listeners],
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
        )
        for listener in listeners:
            listener.close()
        try:
            with socket.create_connection(('127.0.0.1', port), TEST_SECONDS) as sock:
                sock.sendall(b'GET /no-content HTTP/1.0\r\n\r\n')
                answer = sock.recv(65536)
        except OSError as error:
            answer = str(error).encode()
        if b' 204 ' not in answer:
            self._output.seek(0)
            output = self._output.read()
            self.stop()
            raise RuntimeError(f'nginx does not run: {answer!r}, {output!r}')

    def path(self, name):
        return os.path.join(self.directory, name)

    def stop(self):
        self._process.terminate()
        self._process.wait(TEST_SECONDS)
        self._output.close()
        shutil.rmtree(self.directory)


def in_time(awaitable):
    return asyncio.wait_for(awaitable, TEST_SECONDS / 4)


def on_plain_and_tls(test):
    """Runs a test against each url of its class's server, with a pool for each"""
    @functools.wraps(test)
    async def run(self):
        for url in self.server.urls:
            with self.subTest(url=url):
                # Longer than `in_time` allows: where a 100 is not heard, a test fails.
                request, _ = self.pool(get_ssl_context=client_context, expect_timeout=2 * TEST_SECONDS, max_idle=500)
                await test(self, url, request)
    return run


class ServerTestCase(AsyncTestCase):
    """What is the same against each `Server`, whose /connection answers `connection count query`: a name of the
    connection, how many requests it has had, and the url's query"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        super().tearDownClass()

    async def connection(self, url, request, params=()):
        code, _, body = await request(b'GET', url + '/connection', params)
        name, count, query = (await buffered(body)).split(b' ')
        self.assertEqual((code, query), (b'200', b'&'.join(b'%b=%d' % pair for pair in params)))
        return name, int(count)

    async def check_a_thousand_in_turn(self, url, request):
        names, counts = zip(*[await self.connection(url, request) for _ in range(1000)])
        self.assertEqual(len(set(names)), 1)
        self.assertEqual(counts, tuple(range(1, 1001)))

    async def check_500_at_once(self, url, request):
        first, second = [
            await asyncio.gather(*(self.connection(url, request, ((b'n', n),)) for n in range(500))) for _ in range(2)
        ]
        self.assertEqual(len(set(first)), 500)
        self.assertEqual({count for _, count in first}, {1})
        self.assertEqual(set(second), {(name, 2) for name, _ in first})


@unittest.skipUnless(NGINX, 'there is no nginx here (apt-get install nginx): the tests against it are skipped')
class NginxTests(ServerTestCase):
    Server = Nginx

    @on_plain_and_tls
    async def test_get_gives_the_file_and_keeps_the_connection(self, url, request):
        for path, framing in (
                ('/files/data', (b'content-length', b'%d' % len(DATA))),
                ('/chunked/data', (b'transfer-encoding', b'chunked')),
        ):
            number, count = await self.connection(url, request)
            code, headers, body = await request(b'GET', url + path)
            self.assertEqual(code, b'200')
            self.assertIn(framing, headers)
            self.assertTrue(await buffered(body) == DATA)
            self.assertEqual(await self.connection(url, request), (number, count + 2))

    @on_plain_and_tls
    async def test_a_body_until_the_connection_closes_is_whole(self, url, request):
        number, _ = await self.connection(url, request)
        code, headers, body = await request(b'GET', url + '/closed/data')
        self.assertEqual((code, dict(headers)[b'connection']), (b'200', b'close'))
        self.assertFalse({b'content-length', b'transfer-encoding'} & set(dict(headers)))
        self.assertTrue(await buffered(body) == DATA)
        self.assertNotEqual((await self.connection(url, request))[0], number)

    @on_plain_and_tls
    async def test_what_is_uploaded_is_what_is_stored(self, url, request):
        number, _ = await self.connection(url, request)
        for what, headers, make_body, data in UPLOADS:
            for method, path in ((b'PUT', '/files/stored'), (b'POST', '/posts/stored')):
                with self.subTest(what=what, method=method):
                    code, _, body = await in_time(
                        request(method, url + path, headers=headers, body=make_body(data)))
                    self.assertEqual((code, await buffered(body)), (b'201', b''))
                    code, _, body = await request(b'GET', url + '/files/stored')
                    self.assertEqual(code, b'200')
                    self.assertTrue(await buffered(body) == data)
                    code, _, body = await request(b'DELETE', url + '/files/stored')
                    self.assertEqual((code, await buffered(body)), (b'204', b''))
        self.assertEqual((await self.connection(url, request))[0], number)

    @on_plain_and_tls
    async def test_answers_without_a_body_end_at_their_head_and_keep_the_connection(self, url, request):
        _, headers, body = await request(b'GET', url + '/files/data')
        await buffered(body)
        etag = dict(headers)[b'etag']
        number, count = await self.connection(url, request)
        for what, method, path, headers, expected in (
                ('HEAD, length', b'HEAD', '/files/data', (), b'200'),
                ('HEAD, chunked', b'HEAD', '/chunked/data', (), b'200'),
                ('HEAD, not found', b'HEAD', '/files/none', (), b'404'),
                ('204', b'GET', '/no-content', (), b'204'),
                ('304', b'GET', '/files/data', ((b'if-none-match', etag),), b'304'),
        ):
            with self.subTest(what=what):
                code, headers, body = await request(method, url + path, headers=headers)
                self.assertEqual((code, await buffered(body)), (expected, b''))
                if what == 'HEAD, length':
                    self.assertEqual(dict(headers)[b'content-length'], b'%d' % len(DATA))
                count += 2
                self.assertEqual(await self.connection(url, request), (number, count))

    @on_plain_and_tls
    async def test_ranges_give_the_parts(self, url, request):
        for what, ranges, part in RANGES:
            with self.subTest(what=what):
                code, headers, body = await request(b'GET', url + '/files/data', headers=((b'range', ranges),))
                self.assertEqual(code, b'206')
                self.assertTrue(await buffered(body) == DATA[part])
                begin, end, _ = part.indices(len(DATA))
                self.assertIn((b'content-range', b'bytes %d-%d/%d' % (begin, end - 1, len(DATA))), headers)
        code, headers, body = await request(b'GET', url + '/files/data', headers=((b'range', b'bytes=0-9,20-29'),))
        self.assertEqual((code, dict(headers)[b'content-type'].split(b';')[0]), (b'206', b'multipart/byteranges'))
        parts = await buffered(body)
        self.assertIn(b'\r\n\r\n' + DATA[0:10] + b'\r\n', parts)
        self.assertIn(b'\r\n\r\n' + DATA[20:30] + b'\r\n', parts)
        code, _, body = await request(b'GET', url + '/files/data', headers=((b'range', b'bytes=99999999-'),))
        self.assertEqual(code, b'416')
        self.assertIn(b'416', await buffered(body))

    @on_plain_and_tls
    async def test_a_refused_body_is_not_sent_after_expect(self, url, request):
        given = []

        async def body_data():
            for piece in (DATA[:MIB], DATA[MIB:2 * MIB]):
                given.append(piece)
                yield piece
        headers = ((b'content-length', b'%d' % (2 * MIB)),) + EXPECT
        code, _, body = await in_time(
            request(b'PUT', url + '/limited/refused', headers=headers, body=body_data()))
        self.assertEqual(code, b'413')
        self.assertIn(b'413', await buffered(body))
        self.assertLessEqual(len(given), 1)
        self.assertEqual((await self.connection(url, request))[1], 1)

    @on_plain_and_tls
    async def test_a_body_refused_while_it_is_sent_shows_as_413(self, url, request):
        for what, headers in (('a length', ((b'content-length', b'%d' % (64 * MIB)),)), ('chunked', CHUNKED_HEADERS)):
            with self.subTest(what=what):
                given = []

                async def body_data():
                    for _ in range(64):
                        given.append(None)  # noqa: B023
                        yield DATA[:MIB]
                code, _, body = await request(b'PUT', url + '/limited/refused', headers=headers, body=body_data())
                self.assertEqual(code, b'413')
                self.assertIn(b'413', await buffered(body))
                self.assertLess(len(given), 64)
        self.assertEqual((await self.connection(url, request))[1], 1)

    @on_plain_and_tls
    async def test_a_redirect_is_the_callers(self, url, request):
        code, headers, body = await request(b'GET', url + '/moved')
        self.assertEqual((code, dict(headers)[b'location']), (b'301', (url + '/files/data').encode()))
        self.assertIn(b'301', await buffered(body))

    @on_plain_and_tls
    async def test_a_thousand_requests_in_turn_use_one_connection(self, url, request):
        await self.check_a_thousand_in_turn(url, request)

    @on_plain_and_tls
    async def test_500_requests_at_once_are_each_answered_and_their_connections_kept(self, url, request):
        await self.check_500_at_once(url, request)


# In a process of its own: so it can be slow, leak, and warn as it likes. It ends with its standard input.
AIOHTTP_SERVER = '''
import asyncio
import os
import socket
import ssl
import sys

from aiohttp import web

requests = {}

async def connection(request):
    name = request.transport.get_extra_info('peername')[1]
    # Not the port, which a later connection may have again.
    requests[request.protocol] = requests.get(request.protocol, 0) + 1
    return web.Response(text='{} {} {}'.format(name, requests[request.protocol], request.query_string))

async def echo(request):
    data = await request.read()
    response = web.StreamResponse(headers={
        'x-method': request.method,
        'x-length': request.headers.get('content-length', 'none'),
        'x-encoding': request.headers.get('transfer-encoding', 'none'),
    })
    if 'length' in request.query:
        response.content_length = int(request.query['length'])
    if 'close' in request.query:
        response.force_close()
    await response.prepare(request)
    for at in range(0, len(data), 50000):
        await response.write(data[at:at + 50000])
    await response.write_eof()
    return response

async def code(request):
    return web.Response(status=int(request.match_info['code']))

async def refused(request):
    return web.Response(status=413, text='413: too large')

async def main():
    app = web.Application(client_max_size=2 ** 30)
    app.router.add_get('/connection', connection)
    app.router.add_route('*', '/echo', echo)
    app.router.add_route('*', '/code/{code}', code)
    app.router.add_route('PUT', '/refused', refused)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    for ssl_context in (None, context):
        sock = socket.socket()
        sock.bind(('127.0.0.1', 0))
        await web.SockSite(runner, sock, ssl_context=ssl_context, backlog=1024).start()
        print(sock.getsockname()[1], flush=True)
    await asyncio.get_event_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)

asyncio.new_event_loop().run_until_complete(main())
'''


class AiohttpServer:

    def __init__(self):
        with CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.tempfile() as certificate:
            self._process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', AIOHTTP_SERVER, certificate],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            ports = [self._process.stdout.readline().decode().strip() for _ in range(2)]
        self.urls = (f'http://127.0.0.1:{ports[0]}', f'https://127.0.0.1:{ports[1]}')
        if not all(ports):
            self.stop()
            raise RuntimeError('The aiohttp server does not run')

    def stop(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TEST_SECONDS)


@unittest.skipUnless(importlib.util.find_spec('aiohttp'),
                     'there is no aiohttp here (pip install aiohttp): the tests against its server are skipped')
class AiohttpServerTests(ServerTestCase):
    Server = AiohttpServer

    @on_plain_and_tls
    async def test_what_is_uploaded_comes_back_in_each_framing(self, url, request):
        name, _ = await self.connection(url, request)
        for what, headers, make_body, data in UPLOADS:
            length = b'%d' % len(data) if what.startswith('a length') else b'0' if not data else b'none'
            for path in ('/echo', '/echo?length=%d' % len(data)):
                for method in (b'PUT', b'POST'):
                    with self.subTest(what=what, path=path, method=method):
                        code, answer, body = await in_time(
                            request(method, url + path, headers=headers, body=make_body(data)))
                        self.assertEqual(code, b'200')
                        self.assertTrue(await buffered(body) == data)
                        answer = dict(answer)
                        self.assertEqual(answer[b'x-method'], method)
                        expected = (b'none', b'chunked') \
                            if CHUNKED_HEADERS[0] in headers or length == b'none' else (length, b'none')
                        self.assertEqual((answer[b'x-length'], answer[b'x-encoding']), expected)
                        self.assertEqual(b'content-length' in answer, 'length=' in path)
        self.assertEqual((await self.connection(url, request))[0], name)

    @on_plain_and_tls
    async def test_answers_without_a_body_end_at_their_head_and_keep_the_connection(self, url, request):
        name, count = await self.connection(url, request)
        for method, path, expected in (
                (b'HEAD', '/connection', b'200'),
                (b'HEAD', '/code/404', b'404'),
                (b'GET', '/code/204', b'204'),
                (b'GET', '/code/304', b'304'),
        ):
            with self.subTest(method=method, path=path):
                code, _, body = await request(method, url + path)
                self.assertEqual((code, await buffered(body)), (expected, b''))
                after, count_after = await self.connection(url, request)
                self.assertEqual(after, name)
                self.assertGreater(count_after, count)

    @on_plain_and_tls
    async def test_a_connection_that_the_server_ends_is_not_used_again(self, url, request):
        name, _ = await self.connection(url, request)
        code, headers, body = await request(b'POST', url + '/echo?close', body=streamed(DATA))
        self.assertEqual((code, dict(headers)[b'connection']), (b'200', b'close'))
        self.assertTrue(await buffered(body) == DATA)
        self.assertNotEqual((await self.connection(url, request))[0], name)

    @on_plain_and_tls
    async def test_a_body_refused_while_it_is_sent_shows_as_413(self, url, request):
        for what, headers in (('a length', ((b'content-length', b'%d' % (64 * MIB)),)), ('chunked', CHUNKED_HEADERS)):
            with self.subTest(what=what):
                code, _, body = await request(
                    b'PUT', url + '/refused', headers=headers, body=slices_of(bytes(64 * MIB), MIB))
                self.assertEqual((code, await buffered(body)), (b'413', b'413: too large'))

    @on_plain_and_tls
    async def test_a_thousand_requests_in_turn_use_one_connection(self, url, request):
        await self.check_a_thousand_in_turn(url, request)

    @on_plain_and_tls
    async def test_500_requests_at_once_are_each_answered_and_their_connections_kept(self, url, request):
        await self.check_500_at_once(url, request)


# A transfer in a fresh process, since the peak of a process's memory never falls. It holds one large piece, whatever
# the size, so that a second copy of a piece shows in the difference.
TRANSFER = '''
import asyncio
import os
import re
import ssl
import sys

sys.path.insert(0, sys.argv[1])
from lowhaio import Pool

url, authority, size, framing = sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
if os.environ.get('LOWHAIO_LOOP') == 'uvloop':
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop
piece = b'x' * 2 ** 24

async def data():
    left = size
    while left:
        view = memoryview(piece)[:left]
        yield view
        left -= len(view)

async def transfer():
    request, close = Pool(get_ssl_context=lambda: ssl.create_default_context(cafile=authority))
    count = 0
    if framing == 'down':
        code, headers, body = await request(b'GET', url)
    else:
        headers = ((b'content-length', b'%d' % size),) if framing == 'length' else ()
        code, headers, body = await request(b'PUT', url, headers=headers, body=data())
    async for chunk in body:
        count = count + len(chunk) if framing == 'down' else int(chunk)
    await close()
    with open('/proc/self/status') as status:
        print(code.decode(), count, re.search(r'VmHWM:\\s*(\\d+) kB', status.read()).group(1))

loop = new_event_loop()
loop.run_until_complete(transfer())
loop.close()
'''


def play_transfer(peer):
    """Sends as many bytes as the path says; or takes an upload, and answers with how many they were"""
    block = bytearray(MIB)
    with peer.sock.makefile('rb', buffering=65536) as file:
        method, path, _ = file.readline().split(b' ')
        fields = [line.strip().lower() for line in iter(file.readline, b'\r\n')]
        chunked = b'transfer-encoding: chunked' in fields or path.startswith(b'/chunked')

        def receive(size):
            left = size
            while left:
                received = file.readinto(memoryview(block)[:left])
                if not received:
                    raise EOFError(f'The client closed {left} bytes before the end')
                left -= received
            return size

        def receive_chunks():
            count = 0
            while True:
                size = int(file.readline(), 16)
                count += receive(size)
                if file.readline() != b'\r\n':
                    raise ValueError('A chunk does not end in CRLF')
                if not size:
                    return count

        def send(size):
            left = size
            while left:
                part = memoryview(block)[:left]
                peer.send(*((b'%x\r\n' % len(part), part, b'\r\n') if chunked else (part,)))
                left -= len(part)

        if method == b'GET':
            size = int(path.split(b'/')[2])
            peer.send(b'HTTP/1.1 200 OK\r\n' + (
                b'transfer-encoding: chunked\r\n\r\n' if chunked else b'content-length: %d\r\n\r\n' % size))
            send(size)
            peer.send(b'0\r\n\r\n' if chunked else b'')
        else:
            lengths = [int(field.split(b':')[1]) for field in fields if field.startswith(b'content-length:')]
            count = b'%d' % (receive_chunks() if chunked else receive(lengths[0]))
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(count), count))


class TransferTestCase(AsyncTestCase):

    def transfer(self, url, size, framing, code='200'):
        """The peak of the memory, in bytes, of a process that does nothing else"""
        with CA.cert_pem.tempfile() as authority:
            output = subprocess.check_output(
                [sys.executable, '-c', TRANSFER, HERE, url, authority, str(size), framing], timeout=10 * TEST_SECONDS)
        received_code, count, peak = output.decode().split()
        self.assertEqual(received_code, code)
        if code == '200':
            self.assertEqual(int(count), size)
        return int(peak) * KIB

    def check_transfers(self, size):
        for tls in (None, server_context()):
            base = f'{"https" if tls else "http"}://127.0.0.1:{self.serve(play_transfer, tls=tls)}'
            for path, framing in (('length', 'down'), ('chunked', 'down'), ('up', 'length'), ('up', 'chunked')):
                with self.subTest(base=base, path=path, framing=framing):
                    small, large = (self.transfer(f'{base}/{path}/{n}', n, framing) for n in (KIB, size))
                    self.assertLess(large - small, 10 * MIB)


class TransferTests(TransferTestCase):

    def test_64_mib_either_way_takes_no_more_memory_than_1_kib(self):
        self.check_transfers(64 * MIB)


@unittest.skipUnless(os.environ.get('LOWHAIO_LONG'), 'transfers of 1 GiB are slow: LOWHAIO_LONG=1 runs them')
class LongTransferTests(TransferTestCase):

    def test_1_gib_either_way_takes_no_more_memory_than_1_kib(self):
        self.check_transfers(GIB)

    @unittest.skipUnless(NGINX, 'there is no nginx here (apt-get install nginx): the tests against it are skipped')
    def test_1_gib_either_way_with_nginx_takes_no_more_memory_than_1_kib(self):
        server = Nginx()
        self.addCleanup(server.stop)
        for size in (KIB, GIB):
            with open(server.path(f'files/{size}'), 'wb') as file:
                file.truncate(size)
        for url in server.urls:
            with self.subTest(url=url, way='down'):
                small, large = (self.transfer(f'{url}/files/{size}', size, 'down') for size in (KIB, GIB))
                self.assertLess(large - small, 10 * MIB)
            for framing in ('length', 'chunked'):
                with self.subTest(url=url, way='up', framing=framing):
                    peaks = []
                    for size in (KIB, GIB):
                        peaks.append(self.transfer(f'{url}/files/stored', size, framing, code='201'))
                        self.assertEqual(os.stat(server.path('files/stored')).st_size, size)
                        os.remove(server.path('files/stored'))
                    self.assertLess(peaks[1] - peaks[0], 10 * MIB)


SNIPPET = '''
import asyncio
import sys
import textwrap

sys.path.insert(0, sys.argv[1])
# As a coroutine's body, for there are snippets that await.
names = {}
exec('async def snippet():\\n' + textwrap.indent(sys.stdin.read(), '    '), names)
loop = asyncio.new_event_loop()
loop.run_until_complete(names['snippet']())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
'''


class ReadmeTests(AsyncTestCase):
    """Each Python snippet runs as it stands, but for its url, in a process of its own, and without a warning"""

    def test_each_snippet_does_its_requests(self):
        requests = []

        def answer(peer):
            while True:
                head = peer.read_head()
                if not head:
                    return
                length = re.search(rb'\r\ncontent-length: (\d+)\r\n', head)
                body = peer.read(int(length.group(1))) if length else b''
                requests.append((head.split(b' ')[0], body))
                peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nanswered')

        with open(os.path.join(HERE, 'README.md'), encoding='utf-8') as file:
            snippets = re.findall(r'^```python\n(.*?)^```', file.read(), re.MULTILINE | re.DOTALL)
        self.assertGreaterEqual(len(snippets), 2)
        base = f'https://127.0.0.1:{self.serve(answer, tls=server_context())}'
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            authority = stack.enter_context(CA.cert_pem.tempfile())
            with open(os.path.join(directory, 'my.file'), 'wb') as file:
                file.write(DATA)
            for number, snippet in enumerate(snippets, 1):
                with self.subTest(snippet=number):
                    del requests[:]
                    process = subprocess.Popen(
                        [sys.executable, '-W', 'error', '-c', SNIPPET, HERE], cwd=directory,
                        env=dict(os.environ, SSL_CERT_FILE=authority),
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    )
                    code = snippet.replace('https://example.com', base).encode('utf-8')
                    _, errors = process.communicate(code, TEST_SECONDS)
                    self.assertEqual((process.returncode, errors.decode()), (0, ''))
                    self.assertGreaterEqual(len(requests), 1)
                    if 'my.file' in snippet:
                        self.assertTrue(requests[0] == (b'POST', DATA))
                    if 'some-data' in snippet:
                        self.assertEqual(requests[0], (b'POST', b'some-data'))


if __name__ == '__main__':
    unittest.main()
