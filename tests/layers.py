"""Layers: each alone by tables, against real servers, and all at once: cancelled, abandoned, and in every order"""
import asyncio
import collections
import contextlib
import email.parser
import email.policy
import email.utils
import functools
import gc
import gzip
import hashlib
import http.cookiejar
import importlib.util
import inspect
import itertools
import json
import logging
import os
import random
import re
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import warnings
import weakref
import zlib
from unittest import mock

import lowhaio
import lowhaio_layers
from lowhaio import (
    HttpBodyError,
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpConnectionTimeout,
    HttpDataError,
    HttpDataTimeout,
    HttpDnsError,
    HttpError,
    HttpProtocolError,
    HttpRedirectError,
    HttpRequestError,
    HttpTlsError,
    buffered,
    redirectable,
    streamed,
)
from lowhaio_layers import (
    Event,
    HttpLimitTimeout,
    HttpStatusError,
    HttpTooLarge,
    authorised,
    basic,
    bearer,
    cookied,
    decompressed,
    digest,
    fetched,
    file_body,
    form,
    json_body,
    json_of,
    limited,
    lines,
    logged,
    multipart,
    retried,
    saved,
    server_sent_events,
)
from reliability.exhaustion import Interrupted, by_task, let_go, pending, with_the_result
from reliability.harness import (
    OK,
    OK_EMPTY,
    PATIENCE,
    ClientSockets,
    new_event_loop,
    pieces_of,
    refusing_port,
    server_context,
    turns,
)
from tests.redirects import Again, Once, RedirectTestCase, redirect

try:
    import brotli
    brotli = brotli if hasattr(brotli.Decompressor, 'can_accept_more_data') else None
except ImportError:
    brotli = None
try:
    from compression import zstd
except ImportError:
    try:
        from backports import zstd
    except ImportError:
        zstd = None
HAS_HTTPBIN = all(importlib.util.find_spec(name) for name in ('httpbin', 'waitress'))
HAS_MOTO = all(importlib.util.find_spec(name) for name in ('moto', 'botocore'))
NGINX = shutil.which('nginx', path=os.environ.get('PATH', os.defpath) + ':/usr/local/sbin:/usr/sbin')

NO_BROTLI = 'brotli 1.2 is not installed: its tests are skipped'
NO_ZSTD = 'there is no compression.zstd, and no backports.zstd is installed: its tests are skipped'
NO_HTTPBIN = 'httpbin and waitress are not installed: the tests against httpbin are skipped'
NO_MOTO = 'moto is not installed (pip install moto[server,s3]): the tests against its S3 are skipped'
NO_NGINX = 'there is no nginx here (apt-get install nginx): the tests against it are skipped'


def at_once(attempt):
    """A backoff of none"""
    return 0


class FakeBody:
    """A body that gives `pieces`; an exception among them is raised. What becomes of it can be asked"""
    reused, sent_all = False, True

    def __init__(self, *pieces):
        self.pieces = collections.deque(pieces)
        self.is_done = self.is_closed = False
        self.callbacks = []

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.pieces:
            self.end()
            raise StopAsyncIteration
        piece = self.pieces.popleft()
        if isinstance(piece, BaseException):
            self.end()
            raise piece
        return piece

    async def aclose(self):
        self.is_closed = True
        self.pieces.clear()
        self.end()

    def when_done(self, callback):
        self.callbacks.append(callback)
        if self.is_done:
            callback()

    def end(self):
        if not self.is_done:
            self.is_done = True
            for callback in self.callbacks:
                callback()


class Scripted:
    """A `request` each of whose calls raises one of `outcomes`, or answers with it: a code, or it, fields and pieces"""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = []
        self.bodies = []

    async def __call__(self, method, url, params=(), headers=(), body=None, **kwargs):
        self.calls.append((method, url, params, lowhaio.pairs_of('headers', headers), body, kwargs))
        outcome = self.outcomes.pop(0) if self.outcomes else b'200'
        if isinstance(outcome, BaseException):
            try:
                raise outcome
            finally:
                outcome = None  # else it and this frame would be a cycle
        code, fields, *pieces = outcome if isinstance(outcome, tuple) else (outcome, ())
        self.bodies.append(FakeBody(*pieces))
        return code, fields, self.bodies[-1]

    def values(self, name, call=-1):
        return [value for each, value in self.calls[call][3] if each.lower() == name]


def with_facts(error, **facts):
    for name, value in facts.items():
        setattr(error, name, value)
    return error


def halts(peer):
    peer.send(OK + b'content-length: 5\r\nx: secret\r\n\r\nhe')
    peer.read_to_close()


def breaks_off(peer):
    peer.send(OK + b'content-length: 5\r\nx: secret\r\n\r\nhe')
    peer.abort()


class LayerTestCase(RedirectTestCase):

    def fields(self, index=-1):
        """{lower-case name: [values]} of a request that the site saw"""
        found = collections.defaultdict(list)
        for name, value in self.seen[index][2]:
            found[name.lower()].append(value)
        return found


class RetriedTests(LayerTestCase):

    ERRORS = (
        # error, whether any method is sent again after it, whether an idempotent one is
        (HttpConnectionError('refused'), True, True),
        (HttpDnsError('no such name'), True, True),
        (HttpTlsError('handshake'), True, True),
        (HttpConnectionTimeout('too slow'), True, True),
        (HttpLimitTimeout('no slot'), False, False),
        (HttpDataError('something'), False, True),
        (HttpConnectionClosedError('closed'), False, True),
        (HttpDataTimeout('silent'), False, True),
        (HttpProtocolError('nonsense'), False, False),
        (lowhaio.HttpHeaderTooLong('too long'), False, False),
        (HttpBodyError('of the caller'), False, False),
        (HttpRedirectError('too many'), False, False),
        (HttpTooLarge('too large'), False, False),
        (HttpStatusError('not found', b'404'), False, False),
        (HttpRequestError('malformed'), False, False),
        (ValueError('of the caller'), False, False),
    )
    METHODS = (
        (b'GET', True), (b'HEAD', True), (b'OPTIONS', True), (b'TRACE', True), (b'PUT', True), (b'DELETE', True),
        (b'POST', False), (b'PATCH', False), (b'get', False), (b'PROPFIND', False))
    BODIES = (
        (lambda: None, True), (lambda: streamed(b'x'), True), (lambda: lambda: pieces_of(b'x'), True), (Again, True),
        (lambda: pieces_of(b'x'), False))

    async def test_each_error_with_each_method_and_body(self):
        for (error, any_method, idempotent), (method, is_idempotent), (make, is_replayable) in itertools.product(
                self.ERRORS, self.METHODS, self.BODIES):
            body = make()
            with self.subTest((type(error), method, body)):
                expected = any_method or idempotent and is_idempotent and is_replayable
                request = Scripted(error, b'200')
                sending = retried(request, backoff=at_once)(method, 'http://a.test/', body=body)
                if expected:
                    self.assertEqual((await sending)[0], b'200')
                else:
                    with self.assertRaises(type(error)) as caught:
                        await sending
                    self.assertIs(caught.exception, error)
                self.assertEqual(len(request.calls), 1 + expected)
            if hasattr(body, 'aclose'):
                await body.aclose()

    async def test_each_code_with_each_method_and_body(self):
        for (code, any_method, idempotent), (method, is_idempotent), (make, is_replayable) in itertools.product(
                ((b'429', True, True), (b'502', False, True), (b'503', False, True), (b'504', False, True),
                 (b'500', False, False), (b'200', False, False), (b'404', False, False), (b'408', False, False)),
                self.METHODS, self.BODIES):
            body = make()
            with self.subTest((code, method, body)):
                request = Scripted((code, (), b'busy'), b'200')
                answer = await retried(request, backoff=at_once)(method, 'http://a.test/', body=body)
                expected = is_replayable and (any_method or idempotent and is_idempotent)
                self.assertEqual(answer[0], b'200' if expected else code)
                self.assertEqual(len(request.calls), 1 + expected)
                self.assertEqual(request.bodies[0].is_closed, expected)
                if not expected:
                    self.assertEqual(await buffered(answer[2]), b'busy')
            if hasattr(body, 'aclose'):
                await body.aclose()

    async def test_the_last_is_the_callers_be_it_error_or_response(self):
        for attempts in (1, 2, 5):
            errors = [HttpConnectionClosedError(str(number)) for number in range(attempts)]
            request = Scripted(*errors)
            with self.assertRaises(HttpConnectionClosedError) as caught:
                await retried(request, attempts=attempts, backoff=at_once)(b'GET', 'http://a.test/')
            self.assertIs(caught.exception, errors[-1])
            request = Scripted(*[(b'503', (), b'%d' % number) for number in range(attempts)])
            code, _, body = await retried(request, attempts=attempts, backoff=at_once)(b'GET', 'http://a.test/')
            self.assertEqual((code, await buffered(body)), (b'503', b'%d' % (attempts - 1)))
            self.assertEqual([body.is_closed for body in request.bodies], [True] * (attempts - 1) + [False])

    async def test_the_callers_statuses_and_methods(self):
        request = Scripted(b'500', b'200')
        self.assertEqual((await retried(request, statuses=(b'500',), backoff=at_once)(b'GET', 'http://a.test/'))[0],
                         b'200')
        for statuses in ((b'500',), ()):
            request = Scripted(b'503')
            self.assertEqual((await retried(request, statuses=statuses)(b'GET', 'http://a.test/'))[0], b'503')
        request = Scripted(HttpConnectionClosedError('closed'), b'503', b'200')
        code, _, _ = await retried(request, idempotent=(b'POST',), backoff=at_once)(b'POST', 'http://a.test/')
        self.assertEqual(code, b'200')

    async def test_once_one_was_sent_no_error_says_that_nothing_was(self):
        closed = with_facts(HttpConnectionClosedError('reset'), reused=True)
        for method, outcomes, raised, answered, texts in (
                (b'GET', (closed, HttpConnectionError('refused')), HttpDataError, False, ('reset', 'refused')),
                (b'GET', (b'503', HttpConnectionError('refused')), HttpDataError, True, ('503', 'refused')),
                (b'POST', (b'429', HttpConnectionError('refused')), HttpDataError, True, ('429', 'refused')),
                (b'POST', (b'429', HttpLimitTimeout('no slot')), HttpDataError, True, ('429', 'no slot')),
                (b'POST', (b'429', HttpRequestError('closed pool')), HttpDataError, True, ('429', 'closed pool')),
                (b'POST', (b'429', HttpConnectionClosedError('was cut off')), HttpConnectionClosedError, True,
                 ('cut',)),
                (b'GET', (b'503', closed, HttpDnsError('gone')), HttpDataError, False, ('reset', 'gone')),
                (b'GET', (HttpConnectionError('refused'), HttpDnsError('all is gone')), HttpDnsError, None, ('gone',))):
            with self.subTest((method, outcomes)):
                request = Scripted(*outcomes)
                error = await self.raises(raised, retried(request, attempts=len(outcomes), backoff=at_once)(
                    method, 'http://a.test/', body=streamed(b'x')))
                self.assertEqual(getattr(error, 'answered', None), answered)
                for text in texts:
                    self.assertIn(text, str(error))
                if raised is HttpDataError:
                    self.assertIs(error.__cause__, outcomes[-1])

    RETRY_AFTER = (
        # fields, seconds
        ((), 0), ((b'0',), 0), ((b'7',), 7), ((b'007',), 7), ((b'120', b'7'), 120), ((b'9' * 5000,), 999999999),
        ((b'-1',), 0), ((b'1.5',), 0), ((b'',), 0), ((b'soon',), 0), ((b'\xb2',), 0), ((b'Wed',), 0),
        ((b'Wed, 21 Oct 2015 07:28:00 GMT',), 5), ((b'Wednesday, 21-Oct-15 07:28:00 GMT',), 5),
        ((b'Wed Oct 21 07:28:00 2015',), 5), ((b'Wed, 21 Oct 2015 07:27:00 GMT',), 0),
        ((b'Wed, 99 Oct 2015 07:28:00 GMT',), 0), ((b'Wed, 21 Oct 99999999 07:28:00 GMT',), 0),
    )

    def test_retry_after_in_both_forms(self):
        for asked, seconds in self.RETRY_AFTER:
            with self.subTest(asked):
                fields = tuple((b'retry-after', value) for value in asked) + (
                    (b'date', b'Wed, 21 Oct 2015 07:27:55 GMT'),)  # by the server's clock, not by ours
                self.assertEqual(lowhaio_layers.retry_after(fields), seconds)
        for own_time in ((), ((b'date', b'nonsense'),)):
            soon = email.utils.formatdate(time.time() + 100, usegmt=True).encode()
            self.assertAlmostEqual(lowhaio_layers.retry_after(((b'retry-after', soon),) + own_time), 100, delta=5)

    async def test_a_retry_after_is_waited_for_unless_it_is_too_long(self):
        for asked, max_delay, least, calls in ((b'1', 60, 1, 2), (b'61', 60, 0, 1), (b'2', 1, 0, 1), (b'0', 60, 0, 2)):
            with self.subTest((asked, max_delay)):
                request = Scripted((b'503', ((b'retry-after', asked),)), b'200')
                began = self.loop.time()  # the clock of its timers: uvloop's are 1 ms early by any other
                code, _, _ = await retried(request, backoff=at_once, max_delay=max_delay)(b'GET', 'http://a.test/')
                self.assertTrue(least <= self.loop.time() - began < least + PATIENCE / 2)
                self.assertEqual((code, len(request.calls)), (b'200' if calls == 2 else b'503', calls))

    async def test_the_pause_grows_and_differs(self):
        delays = {attempt: [lowhaio_layers.jittered_delay(attempt) for _ in range(200)]
                  for attempt in (1, 2, 3, 10, 5000)}
        for attempt, most in ((1, 0.5), (2, 1), (3, 2), (10, 8), (5000, 8)):
            self.assertTrue(all(0 <= delay <= most for delay in delays[attempt]))
            self.assertGreater(len(set(delays[attempt])), 100)
            self.assertGreater(max(delays[attempt]), most / 2)
        told = []
        request = Scripted(*[HttpConnectionError('refused')] * 3)
        await retried(request, backoff=lambda attempt: told.append(attempt) or 0)(b'GET', 'http://a.test/')
        self.assertEqual(told, [1, 2, 3])

    async def test_a_cancellation_in_the_pause_passes(self):
        request = Scripted((b'503', (), b'x'), b'200')
        task = self.loop.create_task(retried(request, backoff=lambda _: 60)(b'GET', 'http://a.test/'))
        await turns()
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertTrue(request.bodies[0].is_closed)
        self.assertEqual(len(request.calls), 1)

    async def test_what_the_caller_gave_is_sent_each_time(self):
        for headers, params in ((((b'a', b'1'), (b'A', b'2')), {'p': ['1', '2']}),
                                (iter([(b'a', b'1'), (b'A', b'2')]), iter([('p', 1), ('p', '2')]))):
            request = Scripted(b'503', HttpConnectionError('refused'), b'200')
            body = streamed(b'x')
            await retried(request, backoff=at_once)(
                b'PUT', 'http://a.test/x?y', params=params, headers=headers, body=body, socket_timeout=3, other=None)
            self.assertEqual(request.calls, [
                (b'PUT', 'http://a.test/x?y&p=1&p=2', (), ((b'a', b'1'), (b'A', b'2')), body,
                 dict(socket_timeout=3, other=None))] * 3)

    def test_what_cannot_be_an_argument_is_refused_at_once(self):
        for arguments in (dict(attempts=0), dict(attempts=-1), dict(attempts='3'), dict(attempts=None),
                          dict(attempts=True),
                          dict(backoff=1), dict(max_delay=-1), dict(max_delay='1')):
            with self.assertRaisesRegex((TypeError, ValueError), next(iter(arguments)) + ' .* got'):
                retried(None, **arguments)

    async def test_a_post_is_not_sent_twice_by_a_server_that_goes_away(self):
        self.answers = [lambda peer: peer.abort()] * 3
        request, _ = self.pool()
        url = f'http://a.test:{self.site()}/'
        await self.raises(HttpConnectionClosedError, retried(request, backoff=at_once)(b'POST', url,
                                                                                       body=streamed(b'x')))
        self.assertEqual(len(self.seen), 1)
        code, _, _ = await retried(request, backoff=at_once)(b'PUT', url, body=streamed(b'x'))
        self.assertEqual(code, b'200')
        self.assertEqual([method for method, *_ in self.seen], [b'POST', b'PUT', b'PUT', b'PUT'])

    async def test_a_post_is_not_sent_twice_by_a_redirect_to_where_nobody_is(self):
        request, _ = self.pool()
        for order in (lambda request: retried(redirectable(request), backoff=at_once),
                      lambda request: redirectable(retried(request, backoff=at_once))):
            del self.seen[:]
            self.answers = [redirect(b'307', b'http://127.0.0.1:%d/' % refusing_port())]
            await self.raises(HttpRedirectError, order(request)(
                b'POST', f'http://a.test:{self.site()}/', body=streamed(b'x')))
            self.assertEqual(len(self.seen), 1)

    async def test_a_generator_waits_untouched_until_a_connection_is_open(self):
        accepted = []

        def refuse_twice(sock):
            accepted.append(sock)
            if len(accepted) < 3:
                raise ConnectionRefusedError('not yet')

        request, _ = self.pool(set_sock_options=refuse_twice)
        await retried(request, backoff=at_once)(
            b'POST', f'http://a.test:{self.site()}/', body=pieces_of(b'he', b'llo'))
        self.assertEqual(self.seen[0][3], b'2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n')
        del accepted[:]


class FetchedTests(LayerTestCase):

    async def test_an_answer_that_breaks_off_is_asked_for_again(self):
        def breaks_off(peer):
            peer.send(OK + b'content-length: 10\r\n\r\nhello')
            peer.abort()

        request, _ = self.pool()
        url = f'http://a.test:{self.site()}/'
        whole = OK + b'content-length: 10\r\n\r\nhelloworld'
        self.answers = [breaks_off, breaks_off, whole]
        code, fields, content = await fetched(request, backoff=at_once)(b'GET', url)
        self.assertEqual((code, fields, content), (b'200', ((b'content-length', b'10'),), b'helloworld'))
        self.assertEqual(len(self.seen), 3)
        self.answers = [breaks_off, whole]
        error = await self.raises(HttpConnectionClosedError, fetched(request, backoff=at_once)(
            b'POST', url, body=streamed(b'x')))
        self.assertTrue(error.answered)
        self.assertEqual(len(self.seen), 4)

    async def test_it_retries_as_retried_does(self):
        request = Scripted((b'503', (), b'busy'), HttpConnectionError('refused'), (b'429', (), b'late'),
                           (b'200', (), b'a', b'b'))
        code, _, content = await fetched(request, backoff=at_once)(b'GET', 'http://a.test/', params={'a': 'b'})
        self.assertEqual((code, content), (b'200', b'ab'))
        self.assertEqual([call[1] for call in request.calls], ['http://a.test/?a=b'] * 4)
        self.assertTrue(all(body.is_closed for body in request.bodies))
        request = Scripted((b'503', (), b'busy'), (b'503', (), b'still'))
        code, _, content = await fetched(request, backoff=at_once, attempts=2)(b'GET', 'http://a.test/')
        self.assertEqual((code, content), (b'503', b'still'))

    async def test_more_than_the_bound_is_an_error_that_is_not_repeated(self):
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        url = f'http://a.test:{self.site()}/'
        for size, most, is_whole in ((1000, 1000, True), (1001, 1000, False), (2000000, 1000, False), (0, 0, True)):
            with self.subTest((size, most)):
                before = len(self.seen)
                self.answers = [OK + b'content-length: %d\r\n\r\n' % size + bytes(size)]
                fetching = fetched(request, most=most, backoff=at_once)(b'GET', url)
                if is_whole:
                    self.assertEqual((await fetching)[2], bytes(size))
                else:
                    error = await self.raises(HttpTooLarge, fetching)
                    self.assertTrue(error.answered)
                    self.assertIn(str(most), str(error))
                self.assertEqual(len(self.seen), before + 1)
        self.assertLessEqual(sockets.count_open(), 1)


# -------- decompressed


def gzipped(data):
    return gzip.compress(data)


def bare_deflated(data):
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compress.compress(data) + compress.flush()


CODINGS = (
    # content-encoding, how it is made, whether several members are one body
    (b'gzip', gzipped, True),
    (b'x-gzip', gzipped, True),
    (b'deflate', zlib.compress, False),
    (b'deflate', bare_deflated, False),
)
CODINGS += ((b'br', brotli.compress, False),) if brotli else ()
CODINGS += ((b'zstd', zstd.compress, True),) if zstd else ()
TEXT = b''.join(b'%d bottles of beer on the wall, ' % number for number in range(20))


def cut(data, size):
    return [data[at:at + size] for at in range(0, len(data), size)]


class DecompressedTests(LayerTestCase):

    @unittest.skipIf(brotli is None, NO_BROTLI)
    def test_brotli_is_tested(self):
        self.assertIn(b'br', lowhaio_layers.decoders())

    @unittest.skipIf(zstd is None, NO_ZSTD)
    def test_zstd_is_tested(self):
        self.assertIn(b'zstd', lowhaio_layers.decoders())

    def test_what_is_not_installed_is_not_asked_for(self):
        with mock.patch.dict(sys.modules, {'brotli': None, 'compression': None, 'backports': None,
                                           'backports.zstd': None}):
            self.assertEqual(set(lowhaio_layers.decoders()), {b'gzip', b'x-gzip', b'deflate'})
        without_bound = mock.Mock(spec_set=('Decompressor',), Decompressor=bytes)
        with mock.patch.dict(sys.modules, {'brotli': without_bound}):
            self.assertNotIn(b'br', lowhaio_layers.decoders())
        both = {'compression': None, 'backports': mock.Mock(), 'brotli': mock.Mock()}
        with mock.patch.dict(sys.modules, both):
            self.assertLessEqual({b'zstd', b'br'}, set(lowhaio_layers.decoders()))

    async def body(self, coding, *pieces, **kwargs):
        request = Scripted((b'200', ((b'content-encoding', coding), (b'content-length', b'5'), (b'x', b'y'))) + pieces)
        code, fields, body = await decompressed(request, **kwargs)(b'GET', 'http://a.test/')
        self.assertEqual((code, fields), (b'200', ((b'x', b'y'),)))
        self.inner = request.bodies[0]
        return body

    async def test_each_coding_however_it_is_cut(self):
        for coding, compress, _ in CODINGS:
            for text, sizes in ((TEXT, (1, 2, 7, 100, 10 ** 6)), (b'', (1, 10 ** 6)), (b'x', (1, 10 ** 6)),
                                (TEXT * 2000, (1000, 10 ** 6)), (os.urandom(200000), (999, 10 ** 6))):
                for size in sizes:
                    body = await self.body(coding, *cut(compress(text), size))
                    pieces = [piece async for piece in body]
                    self.assertEqual(b''.join(pieces), text)
                    self.assertTrue(all(0 < len(piece) <= 98304 for piece in pieces))
            self.assertEqual(await buffered(await self.body(coding)), b'')  # as of a 204, or where all is length 0

    async def test_several_members_are_one_body(self):
        for coding, compress, has_members in CODINGS:
            if not has_members:
                continue
            data = compress(b'one,') + compress(b'') + compress(TEXT) + compress(b'three')
            for size in (1, 3, 1000, 10 ** 6):
                self.assertEqual(await buffered(await self.body(coding, *cut(data, size))), b'one,' + TEXT + b'three')
        if zstd is not None:
            skippable = b'\x5a\x2a\x4d\x18\x03\0\0\0abc'
            data = skippable + zstd.compress(b'one,') + skippable + zstd.compress(b'two')
            for size in (1, 1000):
                self.assertEqual(await buffered(await self.body(b'zstd', *cut(data, size))), b'one,two')

    async def test_what_follows_the_last_member_is_ignored(self):
        for coding, compress, _ in CODINGS:
            if coding == b'br':  # whose decoder tells no difference
                for size in (1, 1000):
                    await self.raises(HttpProtocolError, buffered(
                        await self.body(coding, *cut(compress(TEXT) + b'more', size))))
                continue
            for more, size in itertools.product((b'\0', b'\0' * 4, b'\0' * 5000, b'more and more', b'\x1f',
                                                 b'\x28\xb5\x2f'),
                                                (1, 3, 10 ** 6)):
                data = compress(TEXT) + more
                body = await self.body(coding, *cut(data, size))
                self.assertEqual(await buffered(body), TEXT)
                self.assertTrue(self.inner.is_done and not self.inner.is_closed)  # read to its end: it may serve again

    async def test_a_truncated_stream_never_looks_whole(self):
        for coding, compress, has_members in CODINGS:
            data = compress(TEXT)
            for end in range(1, len(data)):
                for size in (1, 10 ** 6) if end % 10 == 0 else (10 ** 6,):
                    body = await self.body(coding, *cut(data[:end], size))
                    await self.raises(HttpProtocolError, buffered(body))
                    await self.raises(HttpProtocolError, buffered(body))  # nor later
                    self.assertTrue(self.inner.is_closed)
            if has_members:
                for end in range(4, len(data)):
                    await self.raises(HttpProtocolError, buffered(await self.body(coding, data + data[:end])))

    async def test_what_is_malformed_is_an_error_that_names_the_coding(self):
        for coding, _, _ in CODINGS:
            for nonsense in (b'nonsense nonsense', b'\xff' * 100, b'<html></html>'):
                body = await self.body(coding, nonsense)
                error = await self.raises(HttpProtocolError, buffered(body))
                self.assertIn(coding.decode(), str(error))
                self.assertTrue(self.inner.is_closed)
                await self.raises(HttpProtocolError, buffered(body))
        broken = gzipped(TEXT)[:-8] + bytes(8)  # checksum and length
        await self.raises(HttpProtocolError, buffered(await self.body(b'gzip', broken)))

    async def test_an_error_of_the_body_passes_and_stays(self):
        for coding, compress, _ in CODINGS:
            error = HttpConnectionClosedError('reset')
            body = await self.body(coding, compress(TEXT)[:20], error)
            with self.assertRaises(HttpConnectionClosedError) as caught:
                await buffered(body)
            self.assertIs(caught.exception, error)

    async def test_up_to_three_codings_in_their_order(self):
        for names, makers in (
                (b'deflate, gzip', (zlib.compress, gzipped)), (b'gzip,gzip ,\tGZIP', (gzipped,) * 3),
                (b'identity, gzip', (gzipped,)), (b', gzip,', (gzipped,))):
            data = functools.reduce(lambda data, make: make(data), makers, TEXT)
            for size in (1, 1000):
                self.assertEqual(await buffered(await self.body(names, *cut(data, size))), TEXT)
        request = Scripted((b'200', ((b'content-encoding', b'deflate'), (b'content-encoding', b'gzip')),
                            gzipped(zlib.compress(TEXT))))
        _, _, body = await decompressed(request)(b'GET', 'http://a.test/')
        self.assertEqual(await buffered(body), TEXT)
        request = Scripted((b'200', ((b'content-encoding', b'gzip, gzip, gzip, gzip'),), b'x'))
        error = await self.raises(HttpProtocolError, decompressed(request)(b'GET', 'http://a.test/'))
        self.assertIn('4', str(error))
        self.assertTrue(request.bodies[0].is_closed)

    async def test_what_is_left_as_it_is(self):
        for method, code, coding in (
                (b'GET', b'206', b'gzip'), (b'GET', b'304', b'gzip'), (b'GET', b'204', b'gzip'),
                (b'HEAD', b'200', b'gzip'), (b'GET', b'200', b'compress'),
                (b'GET', b'200', b'gzip, aes128gcm'), (b'GET', b'200', b'identity'), (b'GET', b'200', b''),
                (b'GET', b'200', None)):
            with self.subTest((method, code, coding)):
                fields = ((b'content-length', b'3'),) + (((b'content-encoding', coding),) if coding is not None else ())
                request = Scripted((code, fields, b'raw'))
                answer = await decompressed(request)(method, 'http://a.test/')
                self.assertEqual(answer, (code, fields, request.bodies[0]))

    async def test_what_is_asked_for(self):
        own = ((b'Accept-Encoding', b'identity'),)
        a_range = ((b'Range', b'bytes=0-'),)
        has = lowhaio_layers.decoders()
        every = b'gzip, deflate' + (b', br' if b'br' in has else b'') + (b', zstd' if b'zstd' in has else b'')
        for kwargs, headers, expected in (
                ({}, (), [every]), (dict(codings=(b'gzip',)), (), [b'gzip']),
                (dict(codings=(b'br', b'gzip')), (), [b'br, gzip']),
                ({}, own, [b'identity']), ({}, a_range, []), ({}, None, [every]),
                ({}, {b'accept-encoding': b'br'}, [b'br']),
                ({}, iter(own), [b'identity'])):
            request = Scripted(b'200')
            await decompressed(request, **kwargs)(b'GET', 'http://a.test/', headers=headers, params={'a': 'b'}, x=5)
            self.assertEqual(request.values(b'accept-encoding'), expected)
            self.assertEqual(request.calls[0][2::3], ({'a': 'b'}, {'x': 5}))

    async def test_from_a_real_connection_and_the_connection_serves_again(self):
        request, _ = self.pool()
        url = f'http://a.test:{self.site()}/'
        data = gzipped(TEXT) + b'\0' * 1000
        for _ in range(3):
            self.answers = [OK + b'content-encoding: gzip\r\ncontent-length: %d\r\n\r\n' % len(data) + data]
            _, _, body = await decompressed(request)(b'GET', url)
            self.assertEqual(await buffered(body), TEXT)
        self.assertEqual((self.accepted, body.reused, body.sent_all), (1, True, True))

    async def test_its_body_is_like_any_other(self):
        def halts(peer):
            peer.send(OK + b'content-encoding: gzip\r\ncontent-length: 100000\r\n\r\n' + gzipped(TEXT)[:50])
            peer.read_to_close()

        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        for how in ('closed by another task', 'two readers', 'abandoned', 'closed early', 'cancelled'):
            with self.subTest(how):
                self.answers = [halts]
                done = []
                _, _, body = await decompressed(request)(b'GET', f'http://a.test:{self.site()}/')
                body.when_done(lambda: done.append(True))  # noqa: B023
                reading = self.loop.create_task(buffered(body)) if how not in ('abandoned', 'closed early') else None
                await asyncio.sleep(0.05)
                self.assertEqual(done, [])
                if how == 'two readers':
                    await self.raises(HttpDataError, buffered(body))
                if how == 'cancelled':
                    reading.cancel()
                    with self.assertRaises(asyncio.CancelledError):
                        await reading
                elif how != 'abandoned':
                    await body.aclose()
                    await body.aclose()
                    if reading is not None:
                        await self.raises(HttpConnectionClosedError, reading)
                reading = body = None
                await turns()
                self.assertEqual((done, sockets.count_open()), ([True], 0))

    async def test_closing_it_while_it_lets_others_run_ends_the_read(self):
        body = await self.body(b'gzip', gzipped(bytes(10 ** 7)))

        async def read():
            async for _ in body:
                read.count += 1

        read.count = 0
        task = self.loop.create_task(read())
        while not read.count:
            await asyncio.sleep(0)
        self.assertLess(read.count, 10 ** 7 // 65536)
        await self.raises(HttpDataError, body.__anext__())  # by two at once
        await body.aclose()
        await self.raises(HttpConnectionClosedError, task)
        body = await self.body(b'gzip', gzipped(bytes(10 ** 7)))
        await body.__anext__()
        await body.aclose()
        self.assertEqual([piece async for piece in body], [])

    async def test_closing_it_ends_a_read_of_a_body_that_just_ends_then(self):
        body = FakeBody()
        body.gate = self.loop.create_future()

        async def waits():
            await body.gate
            raise StopAsyncIteration

        body.__class__ = type('Waits', (FakeBody,), {'__anext__': lambda self: waits()})
        wrapped = lines(body)
        task = self.loop.create_task(buffered(wrapped))
        await turns()
        await wrapped.aclose()
        body.gate.set_result(None)
        await self.raises(HttpConnectionClosedError, task)

    async def test_others_run_while_a_bomb_goes_off(self):
        ticks = []
        task = self.loop.create_task(self.tick(ticks))
        for data, least in ((gzipped(bytes(10 ** 8)), 23), (gzipped(b'') * 30000, 468)):
            del ticks[:]
            async for _ in await self.body(b'gzip', data):
                pass
            self.assertGreaterEqual(len(ticks), least)  # one for each 64 pieces, or members
        task.cancel()

    async def test_tiny_members_take_linear_time(self):
        began = time.process_time()
        self.assertEqual(await buffered(await self.body(b'gzip', gzipped(b'') * 200000)), b'')
        self.assertLess(time.process_time() - began, 2)  # 0.3 s; where each copied all that follows, 6 s

    async def test_what_was_flushed_is_given_though_nothing_follows(self):
        for size in range(65537, 65837, 4):
            compress = zlib.compressobj(9, zlib.DEFLATED, -15)
            flushed = compress.compress(bytes(size)) + compress.flush(zlib.Z_PARTIAL_FLUSH)
            body = await self.body(b'deflate', flushed, HttpConnectionClosedError('and then it was cut off'))
            count = 0
            with contextlib.suppress(HttpConnectionClosedError):
                async for piece in body:
                    count += len(piece)
            self.assertEqual(count, size)

    @unittest.skipIf(zstd is None, NO_ZSTD)
    async def test_zstd_that_asks_for_a_large_window_is_refused(self):
        """As RFC 9659 has it: 128 MiB of memory, which is the library's own bound, would be the server's to take"""
        for log, is_read in ((23, True), (24, False), (27, False)):
            compress = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: log})
            body = await self.body(b'zstd', compress.compress(TEXT) + compress.flush())
            if is_read:
                self.assertEqual(await buffered(body), TEXT)
            else:
                await self.raises(HttpProtocolError, buffered(body))

    @staticmethod
    async def tick(ticks):
        while True:
            ticks.append(True)
            await asyncio.sleep(0)

    SIZE = 2 ** 31 if os.environ.get('LOWHAIO_LONG') else 2 ** 26

    def test_a_bomb_takes_no_memory(self):
        """2 GiB of zeros where LOWHAIO_LONG is set; by default 64 MiB, which are too many to hold as well"""
        for coding, make in (
                (b'gzip', functools.partial(zlib.compressobj, 9, zlib.DEFLATED, 31)),
                (b'gzip, gzip', None), (b'deflate', functools.partial(zlib.compressobj, 9)),
                (b'br', brotli and functools.partial(brotli.Compressor, quality=5)),
                (b'zstd', zstd and functools.partial(zstd.ZstdCompressor, 3))):
            if make is None and coding != b'gzip, gzip':
                continue
            with self.subTest(coding):
                data = zeros_compressed(make, self.SIZE) if make is not None else gzipped(data)  # noqa: F821
                self.loop.run_until_complete(self.go_off(coding, data))  # without a limit to its time

    async def go_off(self, coding, data):
        body, size = await self.body(coding, *cut(data, 262144)), 0
        before = reset_peak_memory()
        async for piece in body:
            size += len(piece)
            self.assertLessEqual(len(piece), 98304)
        self.assertEqual(size, self.SIZE)
        self.assertLess(peak_memory() - before, 8 * 2 ** 20)


def zeros_compressed(make, size):
    compressor, zeros = make(), bytes(2 ** 20)
    add = getattr(compressor, 'process', None) or compressor.compress
    pieces = [add(zeros) for _ in range(size // len(zeros))]
    return b''.join(pieces) + (compressor.finish() if hasattr(compressor, 'finish') else compressor.flush())


def reset_peak_memory():
    """Bytes that this process has resident; the peak begins anew"""
    gc.collect()
    with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    return peak_memory()


def peak_memory():
    with open('/proc/self/status') as file:
        return int(re.search(r'VmHWM:\s+([0-9]+) kB', file.read()).group(1)) * 1024


# -------- limited


class Holding:
    """A `request` whose answers are there at once, and whose bodies end when they are told to: how many are at once?"""

    def __init__(self, seconds=None):
        self.seconds = seconds
        self.bodies = []
        self.under_way = self.most = 0
        self.by_url = collections.Counter()
        self.most_by_url = collections.Counter()
        self.order = []

    async def __call__(self, method, url, params=(), headers=(), body=None, **kwargs):
        self.order.append(url)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.by_url[url] += 1
        self.most_by_url[url] = max(self.most_by_url[url], self.by_url[url])
        answer = FakeBody(b'x')
        answer.when_done(functools.partial(self.leave, url))
        try:
            if self.seconds is not None:
                await asyncio.sleep(self.seconds * random.random())
            if random.random() < kwargs.get('fails', 0):
                raise HttpConnectionClosedError('broke off')
        except BaseException:
            answer.end()
            raise
        self.bodies.append(answer)
        return b'200', (), answer

    def leave(self, url):
        self.under_way -= 1
        self.by_url[url] -= 1


class LimitedTests(LayerTestCase):

    async def test_so_many_are_under_way_and_the_others_come_in_turn(self):
        holding = Holding()
        request = limited(holding, 3)
        tasks = [self.loop.create_task(request(b'GET', f'http://a.test/{number}')) for number in range(10)]
        for count in range(3, 11):
            await turns()
            self.assertEqual((holding.order, holding.under_way), (
                [f'http://a.test/{number}' for number in range(count)], 3))
            holding.bodies[count - 3].end()
        await asyncio.wait(tasks)
        self.assertEqual(holding.most, 3)

    async def test_an_origin_has_its_own_limit_and_keeps_no_other_waiting(self):
        holding = Holding()
        request = limited(holding, 3, per_origin=2)
        a = [self.loop.create_task(request(b'GET', url)) for url in ('http://a.test/', 'HTTP://A.test:80/',
                                                                     'http://a.test/x')]
        await turns()
        self.assertEqual(holding.under_way, 2)
        b = [self.loop.create_task(request(b'GET', 'https://a.test/')) for _ in range(2)]
        await turns()
        self.assertEqual((holding.under_way, len(holding.order)), (3, 3))
        holding.bodies[2].end()  # the one to https
        await turns()
        self.assertEqual(holding.order[-1], 'https://a.test/')
        holding.bodies[0].end()
        await turns()
        self.assertEqual(holding.order[-1], 'http://a.test/x')
        for body in holding.bodies:
            body.end()
        await asyncio.wait(a + b)
        self.assertEqual(len(holding.bodies), 5)

    async def test_a_slot_is_free_again_however_a_response_ends(self):
        whole = OK + b'content-length: 5\r\n\r\nhello'
        request, _ = self.pool()
        request = limited(request, 1, per_origin=1, timeout=PATIENCE)
        url = f'http://a.test:{self.site()}/'
        kept = []
        for how, answer in (
                ('a 204 kept in a variable', b'HTTP/1.1 204 No Content\r\n\r\n'), ('one of no length kept', OK_EMPTY),
                ('a complete one kept', whole), ('read', whole), ('closed', halts), ('dropped', halts),
                ('dropped in another thread', halts), ('breaks off', breaks_off), ('times out', halts),
                ('malformed', b'nonsense\r\n\r\n'), ('no answer', lambda peer: peer.abort()), ('cancelled', halts),
                ('HEAD', whole)):
            with self.subTest(how):
                self.answers = [answer]
                if how in ('malformed', 'no answer'):
                    with self.assertRaises(HttpDataError):
                        await request(b'POST', url)
                    continue
                _, _, body = await request(b'HEAD' if how == 'HEAD' else b'GET', url,
                                           socket_timeout=0.2 if how == 'times out' else None)
                if how.endswith('kept') or how.startswith('a 204') or how == 'HEAD':
                    kept.append(body)
                elif how == 'closed':
                    await body.aclose()
                elif how == 'cancelled':
                    task = self.loop.create_task(buffered(body))
                    await asyncio.sleep(0.05)
                    task.cancel()
                    await asyncio.wait([task])
                elif how == 'dropped in another thread':
                    holder = [body]
                    body = None
                    thread = threading.Thread(target=holder.clear)
                    thread.start()
                    thread.join()
                elif how != 'dropped':
                    with contextlib.suppress(HttpDataError):
                        await buffered(body)
                task = body = None
        code, _, _ = await request(b'GET', url)
        self.assertEqual(code, b'200')

    async def test_waiting_has_its_own_clock_and_error(self):
        holding = Holding()
        request = limited(holding, 1, timeout=0.1)
        _, _, body = await request(b'GET', 'http://a.test/')
        began = time.monotonic()
        error = await self.raises(HttpLimitTimeout, request(b'GET', 'http://a.test/'))
        self.assertIsInstance(error, HttpConnectionTimeout)
        self.assertIsInstance(error, asyncio.TimeoutError)
        self.assertTrue(0.09 < time.monotonic() - began < 5)
        self.assertIn('0.1 s', str(error))
        body.end()
        await request(b'GET', 'http://a.test/')
        request = limited(Holding(), 5, per_origin=1, timeout=0.1)
        await request(b'GET', 'http://a.test/')
        waiting = [self.loop.create_task(request(b'GET', 'http://a.test/')) for _ in range(3)]
        await request(b'GET', 'http://b.test/')
        for task in waiting:
            await self.raises(HttpLimitTimeout, task)

    async def test_an_origin_is_remembered_only_while_something_is_under_way_to_it(self):
        holding = Holding()
        request = limited(holding, 100, per_origin=2)
        for number in range(50):
            await request(b'GET', f'http://site{number}.test/')
        remembered = inspect.getclosurevars(request).nonlocals['slots_of']
        self.assertEqual(len(remembered), 50)
        for body in holding.bodies:
            body.end()
        self.assertEqual(remembered, {})

    async def test_those_that_gave_up_are_not_remembered(self):
        slots = lowhaio_layers.Slots(1)
        await slots.take(self.loop, None, None)
        tasks = [self.loop.create_task(slots.take(self.loop, self.loop.time() + number % 2 * 9, 9))
                 for number in range(100)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            self.assertTrue(task.cancelled() or isinstance(task.exception(), HttpLimitTimeout))
        self.assertEqual(len(slots._waiters), 0)

    async def test_one_that_got_its_slot_in_the_turn_in_which_its_time_was_over_has_it(self):
        for ends_after, outcome in ((0.05, b'200'), (0.15, HttpLimitTimeout)):
            request = limited(Holding(), 1, timeout=0.1)
            _, _, body = await request(b'GET', 'http://a.test/')
            task = self.loop.create_task(request(b'GET', 'http://a.test/'))
            self.loop.call_later(ends_after, body.end)
            await asyncio.sleep(0)
            time.sleep(0.2)  # then both are due in the same turn
            if outcome == b'200':
                _, _, body = await task
            else:
                await self.raises(outcome, task)
            body.end()
            await asyncio.wait_for(request(b'GET', 'http://a.test/'), 5)

    async def test_a_layer_that_retries_passes_that_on_at_once(self):
        request = limited(Holding(), 1, timeout=0.05)
        await request(b'GET', 'http://a.test/')
        began = time.monotonic()
        await self.raises(HttpLimitTimeout, retried(request, backoff=lambda _: 60)(b'GET', 'http://a.test/'))
        self.assertLess(time.monotonic() - began, 5)

    async def test_of_10000_tasks_with_thousands_cancelled_every_slot_is_free_afterwards(self):
        urls = [f'http://{name}.test/' for name in 'abcdefgh']

        async def one(request, url):
            _, _, body = await request(b'GET', url, fails=0.1)
            if random.random() < 0.5:
                await asyncio.sleep(0)
            await body.aclose()

        for timeout, seconds, count, cancelled in ((None, 0.002, 9000, 5000), (0.05, 0.05, 1000, 300)):
            holding = Holding(seconds)
            request = limited(holding, 100, per_origin=20, timeout=timeout)
            tasks = [self.loop.create_task(one(request, random.choice(urls))) for _ in range(count)]
            for task in random.sample(tasks, cancelled):
                if random.random() < 0.02:
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait(tasks)
            outcomes = collections.Counter('cancelled' if task.cancelled() else type(task.exception())
                                           for task in tasks)
            self.assertGreater(outcomes['cancelled'], cancelled // 4)
            self.assertGreater(outcomes[HttpConnectionClosedError], 0)
            self.assertEqual(outcomes[HttpLimitTimeout] > 0, timeout is not None)
            self.assertLessEqual(set(outcomes), {'cancelled', type(None), HttpConnectionClosedError, HttpLimitTimeout})
            self.assertLessEqual(holding.most, 100)
            self.assertLessEqual(max(holding.most_by_url.values()), 20)
            for body in holding.bodies:  # of those that were cancelled before they closed theirs
                body.end()
            self.assertEqual(holding.under_way, 0)
            holding.seconds = None
            full = [self.loop.create_task(request(b'GET', url)) for url in urls[:5] for _ in range(20)]
            await turns()
            self.assertTrue(all(task.done() for task in full))
            for url in (urls[0], urls[5]):
                task = self.loop.create_task(request(b'GET', url))
                await turns()
                self.assertFalse(task.done())
                task.cancel()
                await asyncio.wait([task])

    async def test_one_that_is_cancelled_in_the_turn_in_which_it_got_a_slot_gives_it_back(self):
        for per_origin in (None, 1):
            holding = Holding()
            request = limited(holding, 1, per_origin=per_origin)
            _, _, body = await request(b'GET', 'http://a.test/')
            waiting = self.loop.create_task(request(b'GET', 'http://a.test/'))
            await turns()
            body.end()
            waiting.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await waiting
            await asyncio.wait_for(request(b'GET', 'http://a.test/'), 5)

    async def test_1000_requests_at_once_with_256_descriptors_all_succeed(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        port = self.site()
        bare, _ = self.pool()
        request = limited(bare, 60)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

        async def one(number):
            code, _, body = await request(b'GET', f'http://a.test:{port}/{number}')
            return code, await buffered(body)

        outcomes = await asyncio.gather(*[one(number) for number in range(1000)])
        self.assertEqual(set(outcomes), {(b'200', b'')})
        self.assertEqual(len(self.seen), 1000)
        self.assertLessEqual(self.accepted, 60)

    def test_it_begins_anew_in_another_loop(self):
        request = limited(Holding(), 1, per_origin=1)
        for _ in range(2):
            loop = new_event_loop()
            loop.run_until_complete(request(b'GET', 'http://a.test/'))  # whose body is never told to end
            loop.close()

    async def test_while_its_loop_runs_another_may_not_use_it(self):
        request = limited(Holding(), 1)
        await request(b'GET', 'http://a.test/')
        raised = []

        def elsewhere():
            loop = new_event_loop()
            try:
                loop.run_until_complete(request(b'GET', 'http://a.test/'))
            except HttpRequestError as error:
                raised.append(error)
            loop.close()

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        self.assertIn('another event loop', str(raised[0]))

    async def test_a_child_of_a_fork_begins_anew(self):
        request = limited(Holding(), 1)
        await request(b'GET', 'http://a.test/')  # whose slot is not given back
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other threads, which earlier tests have left to the executor
            child = os.fork()
        if not child:
            try:
                asyncio._set_running_loop(None)
                new_event_loop().run_until_complete(asyncio.wait_for(request(b'GET', 'http://a.test/'), 5))
                os._exit(0)
            finally:
                os._exit(1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    async def test_a_request_without_when_done_leaves_no_slot_behind(self):
        async def request(method, url, params=(), headers=(), body=None):
            return b'200', (), pieces_of(b'x')

        request = limited(request, 1)
        for _ in range(2):
            with self.assertRaises(AttributeError):
                await request(b'GET', 'http://a.test/')

    def test_what_cannot_be_an_argument_is_refused_at_once(self):
        for arguments in (dict(total=0), dict(total=True), dict(total=None), dict(total='5'),
                          dict(per_origin=0, total=5),
                          dict(per_origin='x', total=5), dict(timeout='x', total=5), dict(timeout=-1, total=5)):
            with self.assertRaisesRegex((TypeError, ValueError), next(iter(arguments)) + ' .* got'):
                limited(None, **arguments)

    async def test_a_malformed_url_takes_no_slot(self):
        request = limited(Holding(), 1, per_origin=1)
        for url in ('nonsense', 'ftp://a.test/', None, [], 'http://a.test/' + 'x' * 5000 + '\n'):
            await self.raises(HttpRequestError, request(b'GET', url))
        await request(b'GET', 'http://a.test/' + 'x' * 5000)


# -------- authorised, and digest


class AuthorisedTests(LayerTestCase):

    async def sites(self):
        http, other, https = self.site(), self.site(), self.site(tls=server_context('a.test', 'b.test'))
        return dict(base=f'http://a.test:{http}', case=f'HTTP://A.TEST:{http}', host=f'http://b.test:{http}',
                    port=f'http://a.test:{other}', subdomain=f'http://www.a.test:{http}', dot=f'http://a.test.:{http}',
                    scheme=f'https://a.test:{https}')

    def layers(self, at):
        async def token():
            return bearer('secret')

        return (
            ('basic', functools.partial(authorised, at=at, credentials=basic('user', 'secret'))),
            ('bearer', functools.partial(authorised, at=at, credentials=bearer('secret'))),
            ('token', functools.partial(authorised, at=at, credentials=token)))

    async def test_credentials_go_to_their_origin_and_nowhere_else(self):
        at = await self.sites()
        request, _ = self.pool()
        for name, layer in self.layers(at['base'] + '/some/path'):
            for where, url in at.items():
                with self.subTest((name, where)):
                    await layer(request)(b'GET', url + '/', headers=((b'x', b'y'),))
                    self.assertEqual(bool(self.fields()[b'authorization']), where in ('base', 'case'))
                    self.assertEqual(self.fields()[b'x'], [b'y'])
                    self.assertNotIn('secret', str([f for f in self.seen[-1][2] if f[0].lower() != b'authorization']))

    async def test_scheme_host_and_port_are_compared_each(self):
        for _, layer in self.layers('http://a.test:8080'):
            for url in ('https://a.test:8080/', 'http://a.test/', 'http://b.test:8080/', 'http://a.test:8080/'):
                request = Scripted()
                await layer(request)(b'GET', url)
                self.assertEqual(len(request.values(b'authorization')), url == 'http://a.test:8080/')

    async def test_credentials_follow_no_redirect_to_another_origin(self):
        at = await self.sites()
        request, _ = self.pool()
        for name, layer in self.layers(at['base']):
            for order in (lambda request: redirectable(layer(request), downgrade=True),  # noqa: B023
                          lambda request: layer(redirectable(request, downgrade=True))):  # noqa: B023
                for where, code in itertools.product(at, (b'301', b'303', b'307')):
                    with self.subTest((name, where, code)):
                        self.answers = [redirect(code, (at[where] + '/').encode())]
                        await order(request)(b'GET', at['base'] + '/')
                        self.assertEqual(len(self.fields(-2)[b'authorization']), 1)
                        self.assertEqual(len(self.fields()[b'authorization']), where in ('base', 'case'))

    async def test_the_callers_own_stands(self):
        for _, layer in self.layers('http://a.test/'):
            for headers in (((b'Authorization', b'own'),), {b'authorization': b'own'},
                            iter([(b'AUTHORIZATION', b'own')])):
                request = Scripted(b'401')
                code, _, body = await layer(request)(b'GET', 'http://a.test/', headers=headers)
                self.assertEqual((code, request.values(b'authorization'), len(request.calls)), (b'401', [b'own'], 1))
                self.assertFalse(body.is_closed)

    def test_the_values(self):
        self.assertEqual(basic('Aladdin', 'open sesame'), b'Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==')  # RFC 7617 §2
        self.assertEqual(basic('test', '123\xa3'), b'Basic dGVzdDoxMjPCow==')
        self.assertEqual(bearer('mF_9.B5f-4.1JqM'), b'Bearer mF_9.B5f-4.1JqM')
        with self.assertRaises(ValueError):
            basic('user:name', 'x')

    async def test_what_cannot_be_credentials_is_refused_and_not_shown(self):
        for credentials in ('Bearer secret', None, 5, ('user', 'secret')):
            with self.assertRaisesRegex(TypeError, 'bytes') as caught:
                authorised(None, 'http://a.test/', credentials)
            self.assertNotIn('secret', str(caught.exception))
        with self.assertRaises(HttpRequestError):
            authorised(None, 'a.test', b'x')

        async def token():
            return 'secret'

        with self.assertRaisesRegex(TypeError, 'bytes') as caught:
            await authorised(Scripted(), 'http://a.test/', token)(b'GET', 'http://a.test/')
        self.assertNotIn('secret', str(caught.exception))

    async def test_a_malformed_url_is_refused_as_without(self):
        for _, layer in self.layers('http://a.test/'):
            await self.raises(HttpRequestError, layer(Scripted())(b'GET', 'nonsense'))


class Tokens:
    """A token function, and a `request` that takes only its latest: t1, t2, ..."""

    def __init__(self, *outcomes, accepts=None):
        self.count = 0
        self.outcomes = list(outcomes)  # of calls to come, where they are exceptions
        self.accepts = accepts
        self.calls = []
        self.closed = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self):
        self.count += 1
        count = self.count
        await self.gate.wait()
        if self.outcomes:
            outcome = self.outcomes.pop(0)
            if outcome is not None:
                raise outcome
        return b't%d' % count

    async def request(self, method, url, params=(), headers=(), body=None, **kwargs):
        used = [value for name, value in headers if name == b'authorization']
        self.calls.append((url, used, kwargs))
        await asyncio.sleep(0)
        code = b'200' if used == [self.accepts] else b'401'
        body = FakeBody(code)
        body.when_done(self.close)
        return code, (), body

    def close(self):
        self.closed += 1


class TokenTests(LayerTestCase):

    async def test_it_is_asked_for_once_by_all_and_renewed_once_for_all(self):
        tokens = Tokens(accepts=b't1')
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        for accepts, count, calls in ((b't1', 1, 100), (b't1', 1, 100), (b't2', 2, 200)):
            del tokens.calls[:]
            tokens.accepts = accepts
            answers = await asyncio.gather(*[request(b'GET', 'http://a.test/', params={'a': 'b'}) for _ in range(100)])
            self.assertEqual({code for code, _, _ in answers}, {b'200'})
            self.assertEqual((tokens.count, len(tokens.calls)), (count, calls))
        self.assertEqual({url for url, *_ in tokens.calls}, {'http://a.test/?a=b'})
        self.assertEqual(tokens.closed, 100)  # those of the 401s

    async def test_one_that_is_refused_twice_is_the_callers_answer(self):
        tokens = Tokens(accepts=None)
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        for count in (2, 3, 4):
            code, _, body = await request(b'GET', 'http://a.test/', x=count)
            self.assertEqual((code, await buffered(body), tokens.count), (b'401', b'401', count))
        self.assertEqual([kwargs['x'] for *_, kwargs in tokens.calls], [2, 2, 3, 3, 4, 4])

    async def test_a_body_that_can_be_sent_once_is_not_sent_again_but_the_token_is_renewed(self):
        tokens = Tokens(accepts=b't2')
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        code, _, body = await request(b'PUT', 'http://a.test/', body=pieces_of(b'x'))
        self.assertEqual((code, await buffered(body), len(tokens.calls)), (b'401', b'401', 1))
        code, _, _ = await request(b'PUT', 'http://a.test/', body=streamed(b'x'))
        self.assertEqual((code, len(tokens.calls), tokens.count), (b'200', 2, 2))

    async def test_what_it_raises_passes_to_all_that_wait_and_the_next_asks_again(self):
        for error in (KeyError('own'), HttpConnectionClosedError('broke off'), HttpConnectionError('refused')):
            tokens = Tokens(error, accepts=b't2')
            tokens.gate.clear()
            request = authorised(tokens.request, 'http://a.test/', tokens.get)
            tasks = [self.loop.create_task(request(b'GET', 'http://a.test/')) for _ in range(10)]
            await turns()
            tokens.gate.set()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                self.assertIs(outcome, error)
            self.assertEqual((tokens.count, tokens.calls), (1, []))
            code, _, _ = await request(b'GET', 'http://a.test/')
            self.assertEqual((code, tokens.count), (b'200', 2))
            error.__traceback__ = None
            del tasks[:], outcome

    async def test_after_a_401_what_it_raises_never_says_that_nothing_was_sent(self):
        for error, raised in ((HttpConnectionError('refused'), HttpDataError),
                              (HttpRequestError('is closed'), HttpDataError),
                              (HttpConnectionClosedError('was cut off'), HttpConnectionClosedError)):
            tokens = Tokens(None, error, accepts=b't2')
            caught = await self.raises(raised, authorised(tokens.request, 'http://a.test/', tokens.get)(
                b'POST', 'http://a.test/'))
            self.assertTrue(caught.answered)
            self.assertIn(str(error), str(caught))
            if raised is HttpDataError:
                self.assertIn('401', str(caught))
        request = Scripted(b'401', HttpConnectionError('refused'))
        error = await self.raises(HttpDataError, authorised(request, 'http://a.test/', Tokens().get)(
            b'POST', 'http://a.test/'))
        self.assertTrue(error.answered)
        self.assertTrue(request.bodies[0].is_closed)

    async def test_where_the_one_that_asks_is_cancelled_the_next_asks(self):
        tokens = Tokens(accepts=b't2')
        tokens.gate.clear()
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        tasks = [self.loop.create_task(request(b'GET', 'http://a.test/')) for _ in range(5)]
        await turns()
        tasks[1].cancel()
        tasks[0].cancel()
        await turns()
        self.assertEqual(tokens.count, 2)
        tokens.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self.assertEqual([isinstance(each, asyncio.CancelledError) for each in outcomes],
                         [True, True, False, False, False])
        self.assertEqual({each[0] for each in outcomes[2:]}, {b'200'})
        self.assertEqual(tokens.count, 2)

    async def test_a_401_of_an_old_token_to_a_body_that_can_be_sent_once_does_not_renew_the_new_one(self):
        tokens = Tokens(accepts=b't2')
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        bodies = [pieces_of(b'x'), None, pieces_of(b'x')]
        tasks = [self.loop.create_task(request(b'PUT', 'http://a.test/', body=body)) for body in bodies]
        codes = [code for code, _, _ in await asyncio.gather(*tasks)]
        self.assertEqual(codes, [b'401', b'200', b'401'])
        await request(b'GET', 'http://a.test/')
        self.assertEqual(tokens.count, 2)

    async def test_one_that_is_given_again_counts_as_another(self):
        async def get():
            asked.append(True)
            return b'always'

        asked, request = [], Scripted(b'401', b'200')
        code, _, _ = await authorised(request, 'http://a.test/', get)(b'GET', 'http://a.test/')
        self.assertEqual((code, len(asked)), (b'200', 2))

    async def test_a_stray_401_of_an_old_token_does_not_renew_the_new_one(self):
        tokens = Tokens(accepts=b't1')
        request = authorised(tokens.request, 'http://a.test/', tokens.get)
        await request(b'GET', 'http://a.test/')
        tokens.accepts = b't2'
        slow = self.loop.create_task(request(b'GET', 'http://a.test/'))
        await request(b'GET', 'http://a.test/')
        await slow
        self.assertEqual(tokens.count, 2)


CHALLENGE = b'Digest realm="r", nonce="n", qop="auth"'


class DigestTests(LayerTestCase):

    def test_the_example_of_rfc_7616(self):
        """§3.9.1"""
        for algorithm, response in (
                ('MD5', b'8ca523f5e9506fed4657c9700eebdbec'),
                ('SHA-256', b'753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1')):
            challenge = dict(realm='http-auth@example.org', qop='auth, auth-int', algorithm=algorithm, count=0,
                             nonce='7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v',
                             opaque='FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS')
            self.assertEqual(lowhaio_layers.digest_credentials(
                challenge, 'Mufasa', 'Circle of Life', b'GET', b'/dir/index.html',
                b'f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ'),
                b'Digest username="Mufasa", realm="http-auth@example.org", '
                b'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", uri="/dir/index.html", response="' + response +
                b'", algorithm=' + algorithm.encode() + b', opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS", '
                b'qop=auth, nc=00000001, cnonce="f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"')
            self.assertEqual(challenge['count'], 1)

    CHALLENGES = (
        # values of www-authenticate, the nonce of the one that is answered
        ((), None), ((b'',), None), ((b'Basic realm="r"',), None), ((b'Digest',), None), ((b'Digest realm="r"',), None),
        ((b'Digest nonce="n"',), None), ((CHALLENGE,), 'n'), ((b'DIGEST Realm="r",NONCE="n"',), 'n'),
        ((b'Basic realm="x", Digest realm="r", nonce="n", Negotiate abc==',), 'n'),
        ((b'Negotiate', b'Basic realm="x"', b'digest realm="" , nonce=n',), 'n'),
        ((b'Digest realm="r", nonce="1", algorithm=SHA-512-256, Digest realm="r", nonce="2", algorithm=MD5',), '2'),
        ((b'Digest realm="r", nonce="1", algorithm=sha-256, Digest realm="r", nonce="2"',), '1'),
        ((b'Digest realm="r", nonce="1", qop="auth-int"',), None),
        ((b'Digest realm="r", nonce="1", qop="auth-int, AUTH"',), '1'),
        ((b'Digest realm="a, Digest nonce=x", nonce="q\\"\\\\"',), 'q"\\'),
        ((b'Digest realm="r", nonce="1", nonce="2"',), '1'), ((b'Digest\trealm="r",\tnonce="1"',), '1'),
        ((b'Digest realm="r\x01", nonce="1"',), None), ((b'Digest realm="\x7f", nonce="1"', CHALLENGE), 'n'),
        ((b'Digest realm="r, nonce="1',), None), ((b'"' * 10000,), None), ((b'Digest ' + b'a="\\' * 10000,), None),
        ((b'Digest ' + b' ' * 100000 + b'\x80',), None), ((b'a=' * 50000,), None),
    )

    def test_which_challenge_is_answered(self):
        for values, nonce in self.CHALLENGES:
            with self.subTest(values[:1] and values[0][:50]):
                began = time.process_time()
                found = lowhaio_layers.digest_challenge([(b'www-authenticate', value) for value in values])
                self.assertEqual(found and found['nonce'], nonce)
                self.assertLess(time.process_time() - began, 0.5)

    async def test_it_answers_once_challenged_and_keeps_the_nonce(self):
        request = Scripted((b'401', ((b'www-authenticate', CHALLENGE),), b'x'), b'200', b'200')
        layer = digest(request, 'http://a.test', 'user', 'secret')
        for _ in range(2):
            code, _, _ = await layer(b'GET', 'http://a.test/x y?z', params={'a': 'b'}, headers={b'x': b'y'}, other=5)
            self.assertEqual(code, b'200')
        self.assertEqual([url for _, url, *_ in request.calls], ['http://a.test/x y?z&a=b'] * 3)
        sent = [request.values(b'authorization', index) for index in range(3)]
        self.assertEqual((len(request.calls), sent[0]), (3, []))
        self.assertTrue(request.bodies[0].is_closed)
        for (value,), count in zip(sent[1:], (b'nc=00000001', b'nc=00000002')):
            self.assertIn(count, value)
            self.assertIn(b'uri="/x%20y?z&a=b"', value)
            self.assertNotIn(b'secret', value)
        self.assertNotEqual(*[re.search(b'cnonce="(.+?)"', value).group(1) for value, in sent[1:]])

    async def test_stale_nonces_wrong_passwords_and_what_cannot_be_sent_again(self):
        again = b'Digest realm="r", nonce="m", stale=true'
        refused = (b'401', ((b'www-authenticate', CHALLENGE),), b'no')
        requests = []
        layer = digest(lambda *args, **kwargs: requests[-1](*args, **kwargs), 'http://a.test', 'user', 'x')
        for what, outcomes, code, calls in (
                ('challenged', (refused, b'200'), b'200', 2),
                ('stale', ((b'401', ((b'www-authenticate', again),)), b'200'), b'200', 2),
                ('wrong', (refused, refused), b'401', 2), ('wrong again', (refused, refused), b'401', 2),
                ('not digest', ((b'401', ((b'www-authenticate', b'Basic realm="x"'),)),), b'401', 1),
                ('403', (b'403',), b'403', 1), ('challenged once more', (refused, b'200'), b'200', 2)):
            with self.subTest(what):
                request = Scripted(*outcomes)
                requests.append(request)
                answer = await layer(b'PUT', 'http://a.test/', body=streamed(b'x'))
                self.assertEqual((answer[0], len(request.calls)), (code, calls))
                if what == 'wrong again':  # the wrong one is told once in a request, and not twice
                    self.assertEqual([len(request.values(b'authorization', index)) for index in (0, 1)], [0, 1])
        request = Scripted(refused, b'200')
        layer = digest(request, 'http://a.test', 'user', 'x')
        code, _, body = await layer(b'PUT', 'http://a.test/', body=pieces_of(b'x'))
        self.assertEqual((code, await buffered(body)), (b'401', b'no'))
        code, _, _ = await layer(b'PUT', 'http://a.test/', body=pieces_of(b'x'))
        self.assertEqual((code, len(request.values(b'authorization'))), (b'200', 1))

    async def test_after_a_401_no_error_says_that_nothing_was_sent(self):
        request = Scripted((b'401', ((b'www-authenticate', CHALLENGE),)), HttpConnectionError('refused'))
        error = await self.raises(HttpDataError, digest(request, 'http://a.test', 'u', 'p')(b'POST', 'http://a.test/'))
        self.assertTrue(error.answered)
        self.assertIn('401', str(error))
        self.assertIn('refused', str(error))

    async def test_another_origins_challenge_is_not_answered_and_the_callers_own_header_stands(self):
        for url, headers in (('http://b.test/', ()), ('https://a.test:80/', ()), ('http://a.test:81/', ()),
                             ('http://a.test/', ((b'Authorization', b'own'),))):
            request = Scripted((b'401', ((b'www-authenticate', CHALLENGE),)))
            layer = digest(request, 'http://a.test', 'user', 'secret')
            code, _, _ = await layer(b'GET', url, headers=headers)
            self.assertEqual((code, len(request.calls), request.calls[0][3]), (b'401', 1, headers))

    def test_what_is_sent_for_each_kind_of_challenge(self):
        def h(algorithm, *parts):
            return hashlib.new(algorithm, b':'.join(parts)).hexdigest().encode()

        for user, realm, extra, response, also in (
                ('u', 'r', {}, h('md5', h('md5', b'u', b'r', b'p'), b'n', h('md5', b'GET', b'/')), ()),
                ('u', 'r', dict(algorithm='SHA-256-sess'),
                 h('sha256', h('sha256', h('sha256', b'u', b'r', b'p'), b'n', b'c'), b'n', h('sha256', b'GET', b'/')),
                 (b'algorithm=SHA-256-sess',)),
                ('u"\\', '\xe9"', {}, h('md5', h('md5', b'u"\\', b'\xe9"', b'p'), b'n', h('md5', b'GET', b'/')),
                 (b'username="u\\"\\\\"', b'realm="\xe9\\""')),
                ('J\xe4s\xf8n', 'r', {}, h('md5', h('md5', 'J\xe4s\xf8n'.encode(), b'r', b'p'), b'n',
                                           h('md5', b'GET', b'/')),
                 (b"username*=UTF-8''J%C3%A4s%C3%B8n",))):
            with self.subTest((user, extra)):
                value = lowhaio_layers.digest_credentials(
                    dict(extra, realm=realm, nonce='n', count=0), user, 'p', b'GET', b'/', b'c')
                self.assertIn(b'response="' + response + b'"', value)
                self.assertNotIn(b'nc=', value)
                for part in also:
                    self.assertIn(part, value)


# -------- cookied


class CookiedTests(LayerTestCase):

    SITES = (
        # url that sets, set-cookie, {url: what is sent there}
        ('http://a.test/', 'n=v', {'http://a.test/': 'n=v', 'http://a.test/x/y': 'n=v', 'HTTP://A.TEST:80/': 'n=v',
                                   'https://a.test/': 'n=v', 'http://a.test:81/': 'n=v', 'http://b.test/': None,
                                   'http://www.a.test/': None, 'http://xa.test/': None,
                                   'http://a.test.evil.test/': None}),
        ('http://www.a.test/', 'n=v; domain=a.test', {'http://a.test/': 'n=v', 'http://www.a.test/': 'n=v',
                                                      'http://x.a.test/': 'n=v', 'http://xa.test/': None}),
        ('http://www.a.test/', 'n=v; Domain=.A.test', {'http://x.a.test/': 'n=v'}),
        ('http://www.a.test/', 'n=v; domain=b.test', {'http://b.test/': None, 'http://www.a.test/': None}),
        ('http://a.test/', 'n=v; domain=www.a.test', {'http://www.a.test/': None}),
        ('http://www.a.co.uk/', 'n=v; domain=co.uk', {'http://b.co.uk/': None, 'http://www.a.co.uk/': None}),
        ('http://a.test/', 'n=v; domain=test', {'http://b.test/': None, 'http://a.test/': None}),
        ('http://a.com/', 'n=v; domain=.com', {'http://b.com/': None, 'http://a.com/': None}),
        ('http://127.0.0.1/', 'n=v', {'http://127.0.0.1/': 'n=v', 'http://1.127.0.0.1.test/': None,
                                      'http://127.0.0.2/': None}),
        ('http://127.0.0.1/', 'n=v; domain=0.0.1', {'http://9.0.0.1/': None, 'http://127.0.0.1/': None}),
        ('http://127.0.0.1/', 'n=v; domain=127.0.0.1', {'http://127.0.0.1/': 'n=v', 'http://1.127.0.0.1.test/': None}),
        ('http://[::1]/', 'n=v; domain=1]', {'http://[::1]/': None}),
        ('http://[::1]/', 'n=v', {'http://[0:0::1]/': 'n=v', 'http://[::2]/': None}),
        ('http://a.test/', 'n=v; secure', {'http://a.test/': None, 'https://a.test/': 'n=v'}),
        ('http://a.test/x/y', 'n=v; path=/x', {'http://a.test/x': 'n=v', 'http://a.test/x/z': 'n=v',
                                               'http://a.test/y': None,
                                               'http://a.test/xx': None, 'http://a.test/x?q': 'n=v'}),
        ('http://a.test/x/y', 'n=v', {'http://a.test/x/z': 'n=v', 'http://a.test/z': None}),
        ('http://a.test/', 'n=v; max-age=0', {'http://a.test/': None}),
        ('http://a.test/', 'n=v; max-age=-1', {'http://a.test/': None}),
        ('http://a.test/', 'n=v; expires=Wed, 21 Oct 2015 07:28:00 GMT', {'http://a.test/': None}),
        ('http://a.test/', 'n=v; max-age=100; HttpOnly; SameSite=Lax', {'http://a.test/': 'n=v'}),
        ('http://a.test/', 'n="a b"', {'http://a.test/': 'n="a b"'}),
        ('http://a.test/', 'n=\xe9', {'http://a.test/': 'n=\xe9'}),
        ('http://b\xfccher.test/', 'n=v', {'http://xn--bcher-kva.test/': 'n=v'}),
        ('http://a.test/', 'n=a\x01b', {'http://a.test/': None}),
        ('http://a.test/', 'n=a\tb', {'http://a.test/': None}),
        ('http://a.test/', 'n=a\x7fb', {'http://a.test/': None}),
        ('http://a.test/', 'n=' + 'x' * 8190, {'http://a.test/': 'n=' + 'x' * 8190}),
        ('http://a.test/', 'n=' + 'x' * 8191, {'http://a.test/': None}),
        ('http://a.test/', '', {'http://a.test/': None}),
        ('http://a.test/', ';;;=', {'http://a.test/': None}),
    )

    async def test_cookies_go_where_they_belong(self):
        for where, cookie, urls in self.SITES:
            request = Scripted((b'200', ((b'set-cookie', cookie.encode('latin-1')),)))
            layer = cookied(request)
            await layer(b'GET', where)
            self.assertEqual(request.values(b'cookie'), [])
            for url, expected in urls.items():
                with self.subTest((where, cookie, url)):
                    await layer(b'GET', url, x=5)
                    self.assertEqual(request.values(b'cookie'),
                                     [] if expected is None else [expected.encode('latin-1')])
                    self.assertEqual(request.calls[-1][5], dict(x=5))

    async def test_a_cookie_with_a_control_character_does_not_spoil_the_requests_that_follow(self):
        request, _ = self.pool()
        layer = cookied(request)
        url = f'http://a.test:{self.site()}/'
        self.answers = [OK + b'content-length: 0\r\nset-cookie: bad=a\x01b\r\nset-cookie: good=1\r\n\r\n']
        for _ in range(2):
            await layer(b'GET', url)
        self.assertEqual(self.fields()[b'cookie'], [b'good=1'])

    async def test_several_are_one_field_and_the_last_of_a_name_stands(self):
        request = Scripted(
            (b'200', ((b'set-cookie', b'a=1'), (b'x', b'y'), (b'set-cookie', b'b=2; path=/'))),
            (b'200', ((b'set-cookie', b'a=3'),)))
        layer = cookied(request)
        for _ in range(3):
            await layer(b'GET', 'http://a.test/')
        self.assertEqual([sorted(b'; '.join(request.values(b'cookie', index)).split(b'; ')) for index in (1, 2)],
                         [[b'a=1', b'b=2'], [b'a=3', b'b=2']])

    async def test_the_callers_own_stands(self):
        request = Scripted((b'200', ((b'set-cookie', b'a=1'),)))
        layer = cookied(request)
        await layer(b'GET', 'http://a.test/')
        for headers in (((b'Cookie', b'own=1'),), {b'cookie': b'own=1'}, iter([(b'COOKIE', b'own=1')])):
            await layer(b'GET', 'http://a.test/', headers=headers)
            self.assertEqual(request.values(b'cookie'), [b'own=1'])

    async def test_they_go_along_with_redirects_each_to_its_own_site(self):
        port, other = self.site(), self.site()
        request, _ = self.pool()
        layer = redirectable(cookied(request))
        self.answers = [
            redirect(b'302', b'http://b.test:%d/' % other, b'set-cookie: at=a'),
            redirect(b'302', b'/y', b'set-cookie: at=b'),
            redirect(b'302', b'http://a.test:%d/z' % port)]
        await layer(b'GET', f'http://a.test:{port}/')
        self.assertEqual([self.fields(index)[b'cookie'] for index in range(4)], [[], [], [b'at=b'], [b'at=a']])

    async def test_a_jar_of_the_callers(self):
        jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(blocked_domains=['b.test']))
        request = Scripted(*[(b'200', ((b'set-cookie', b'a=1'),))] * 2)
        for url in ('http://a.test/', 'http://b.test/'):
            await cookied(request, jar)(b'GET', url)
        self.assertEqual([(cookie.name, cookie.domain) for cookie in jar], [('a', 'a.test')])
        await cookied(request, jar)(b'GET', 'http://a.test/')
        self.assertEqual(request.values(b'cookie'), [b'a=1'])
        # This one would have Cookie2 sent, which no server knows.
        jar.set_policy(http.cookiejar.DefaultCookiePolicy(rfc2965=True))
        await cookied(request, jar)(b'GET', 'http://a.test/')
        self.assertEqual((request.values(b'cookie'), request.values(b'cookie2')), ([b'a=1'], []))

    async def test_as_many_sites_as_a_crawler_comes_to_take_little_memory_and_time(self):
        request = Scripted(*[(b'200', ((b'set-cookie', b'a=1'),)) for _ in range(1500)])
        layer = cookied(request)
        for number in range(1500):
            await layer(b'GET', f'http://www.site{number}.test/')
        began = time.process_time()
        for number in range(1400, 1500):
            await layer(b'GET', f'http://www.site{number}.test/')
            self.assertEqual(request.values(b'cookie'), [b'a=1'])
        self.assertLess(time.process_time() - began, 0.2)  # with all in one jar 1 s
        await layer(b'GET', 'http://www.site0.test/')
        self.assertEqual(request.values(b'cookie'), [])

    async def test_two_at_once_keep_the_cookies_of_both(self):
        async def request(method, url, params=(), headers=(), body=None):
            await asyncio.sleep(0)
            return b'200', ((b'set-cookie', url[-1:].encode() + b'=1; path=/'),), dict(headers).get(b'cookie', b'')

        layer = cookied(request)
        await asyncio.gather(*[layer(b'GET', f'http://a.test/{name}') for name in 'abc'])
        _, _, cookies = await layer(b'GET', 'http://a.test/a')
        self.assertEqual(sorted(cookies.split(b'; ')), [b'a=1', b'b=1', b'c=1'])

    async def test_they_are_kept_in_a_file_that_is_the_owners_alone(self):
        with tempfile.TemporaryDirectory() as folder:
            for path in (os.path.join(folder, 'cookies'), os.path.join(folder, 'cookies').encode() + b'2'):
                request = Scripted((b'200', ((b'set-cookie', b'a="1; 2"; max-age=100'), (b'set-cookie', b'session=x'))))
                await cookied(request, path=path)(b'GET', 'http://a.test/')
                self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
                await cookied(request, path=path)(b'GET', 'http://a.test/')
                self.assertEqual(set(request.values(b'cookie')[0].split(b'; ')) & {b'session=x'}, {b'session=x'})
            self.assertEqual(sorted(os.listdir(folder)), ['cookies', 'cookies2'])
            with self.assertRaisesRegex(TypeError, 'not both'):
                cookied(None, http.cookiejar.CookieJar(), os.path.join(folder, 'cookies'))

    async def test_a_malformed_url_is_refused_as_without(self):
        await self.raises(HttpRequestError, cookied(Scripted())(b'GET', 'nonsense'))


# -------- logged


class LoggedTests(LayerTestCase):

    def setUp(self):
        super().setUp()
        self.records = []
        self.logger = logging.Logger('tests')
        handler = logging.Handler()
        handler.emit = self.records.append
        self.logger.addHandler(handler)

    FIELDS = ('http_method', 'http_origin', 'http_code', 'http_reused', 'http_bytes')

    def record(self):
        record, = self.records
        del self.records[:]
        self.assertEqual(record.levelno, logging.INFO)
        self.assertNotIn('secret', record.getMessage() + repr(vars(record)))
        self.assertGreaterEqual(record.http_seconds, record.http_seconds_to_head or 0)
        return record

    async def test_one_record_for_each_request_however_it_ends(self):
        whole = OK + b'content-length: 5\r\n\r\nhello'
        request, _ = self.pool()
        request = logged(request, self.logger)
        port = self.site()
        for how, answer, reused, code, count, error in (
                ('read', whole, False, '200', 5, None), ('read', whole, True, '200', 5, None),
                ('kept', OK_EMPTY, True, '200', 0, None), ('kept', b'HTTP/1.1 204 N\r\n\r\n', True, '204', 0, None),
                ('HEAD', whole.replace(b'hello', b''), True, '200', 0, None),
                ('closed', halts, True, '200', 0, None), ('dropped', halts, False, '200', 0, None),
                ('read', breaks_off, False, '200', 2, 'HttpConnectionClosedError: '),
                ('read', halts, False, '200', 2, 'HttpDataTimeout: '),
                ('cancelled', halts, False, '200', 2, 'CancelledError'),
                ('no answer', lambda peer: peer.abort(), None, None, 0, 'HttpConnectionClosedError: ')):
            with self.subTest((how, answer)):
                self.answers = [answer]
                sending = request(b'HEAD' if how == 'HEAD' else b'POST', f'http://a.test:{port}/path?secret',
                                  {'a': 'secret'},
                                  ((b'authorization', b'secret'),), streamed(b'secret'),
                                  socket_timeout=0.2 if error == 'HttpDataTimeout: ' else None)
                if how == 'no answer':
                    with self.assertRaises(HttpDataError):
                        await sending
                else:
                    _, _, body = await sending
                    if how == 'closed':
                        await body.aclose()
                    elif how == 'cancelled':
                        await body.__anext__()
                        task = self.loop.create_task(buffered(body))
                        await turns()
                        task.cancel()
                        await asyncio.wait([task])
                    elif how == 'dropped':
                        body = sending = None
                        await turns()
                    elif how == 'read':
                        with contextlib.suppress(HttpDataError):
                            await buffered(body)
                record = self.record()
                self.assertEqual([getattr(record, name) for name in self.FIELDS], [
                    'HEAD' if how == 'HEAD' else 'POST', f'http://a.test:{port}', code, reused, count])
                self.assertEqual(record.http_seconds_to_head is None, code is None)
                (self.assertIsNone if error is None else functools.partial(self.assertIn, error))(record.http_error)
                task = body = None
                await turns()
                self.assertEqual(self.records, [])

    async def test_its_body_is_like_any_other(self):
        request = Scripted((b'200', (), b'he', b'llo'))
        _, _, body = await logged(request, self.logger)(b'GET', 'http://a.test/')
        done = []
        body.when_done(lambda: done.append(True))
        self.assertEqual(([piece async for piece in body], done), ([b'he', b'llo'], [True]))
        self.assertEqual((body.reused, body.sent_all), (False, True))
        await body.aclose()
        self.assertEqual(self.record().http_bytes, 5)
        body = None
        await turns()
        self.assertEqual(self.records, [])

    async def test_what_is_malformed_is_logged_without_its_text(self):
        for method, url in ((b'GET', 'http://user:secret@a.test/'), (b'no token', 'http://a.test/'), ('secret', 5)):
            request, _ = self.pool()
            with self.assertRaises(HttpRequestError):
                await logged(request, self.logger)(method, url)
            self.assertIn('HttpRequestError: ', self.record().http_error)

    async def test_an_error_of_the_callers_is_logged_by_its_class_alone(self):
        with self.assertRaises(KeyError):
            await logged(Scripted(KeyError('secret')), self.logger)(b'GET', 'http://a.test/')
        self.assertEqual(self.record().http_error, 'KeyError')

    async def test_where_nobody_listens_nothing_is_done(self):
        self.logger.setLevel(logging.WARNING)
        request = Scripted()
        _, _, body = await logged(request, self.logger)(b'GET', 'http://a.test/', x=5)
        self.assertIs(body, request.bodies[0])
        self.assertEqual(request.calls[0][5], dict(x=5))
        with mock.patch.object(logging.getLogger('lowhaio'), 'isEnabledFor', return_value=False) as is_enabled:
            await logged(request)(b'GET', 'http://a.test/')
        is_enabled.assert_called_once_with(logging.INFO)

    def test_one_dropped_after_its_loop_was_closed_is_silent(self):
        loop = new_event_loop()
        _, _, body = loop.run_until_complete(logged(Scripted((b'200', (), b'x')), self.logger)(b'GET',
                                                                                               'http://a.test/'))
        loop.close()
        del body
        self.assertEqual(self.records, [])


# -------- Bodies of requests


def parsed_form(headers, content):
    """[(name, filename, content type, value)] of multipart/form-data, by the standard library's parser of mails"""
    head = b''.join(b'%b: %b\r\n' % field for field in headers)
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + b'\r\n' + content)
    return [(part.get_param('name', header='content-disposition'), part.get_filename(), part.get('content-type'),
             part.get_payload(decode=True)) for part in message.iter_parts()]


class BodyTests(LayerTestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def file(self, content, name='file.bin'):
        path = os.path.join(self.folder, name)
        with open(path, 'wb') as file:
            file.write(content)
        return path

    async def sent(self, body, headers=(), method=b'POST'):
        request, _ = self.pool()
        await request(method, f'http://a.test:{self.site()}/', headers=headers, body=body)
        return self.seen[-1][3]

    async def test_json(self):
        for value in ({'a': [1, 2.5, None, True]}, 'caf\xe9 \u2603 \U0001f600', [], 0, None):
            headers, body = json_body(value)
            self.assertEqual(headers, ((b'content-type', b'application/json'),))
            self.assertEqual(json.loads((await self.sent(body, headers)).decode()), value)
            self.assertEqual(self.fields()[b'content-length'], [b'%d' % body.content_length])
            self.assertTrue(lowhaio.replayable(body))
        for value, error in ((float('nan'), ValueError), (float('inf'), ValueError), ({1, 2}, TypeError),
                             (b'x', TypeError)):
            with self.assertRaises(error):
                json_body(value)

    async def test_forms(self):
        for fields, expected in (
                ({'a': '1 2', 'b': '\xe9&='}, b'a=1+2&b=%C3%A9%26%3D'), ([('a', 1), ('a', '~')], b'a=1&a=~'),
                ({'a': ['1', '2']}, b'a=1&a=2'), ({}, b'')):
            headers, body = form(fields)
            self.assertEqual(headers, ((b'content-type', b'application/x-www-form-urlencoded'),))
            # A `~` may be encoded: Python 3.6 does. WHATWG URL §5.2
            self.assertEqual((await self.sent(body, headers)).replace(b'%7E', b'~'), expected)
        for fields in (5, [1], ['a']):
            await self.raises(HttpRequestError, self.made(form, fields))

    async def made(self, make, *args):
        return make(*args)

    async def test_multipart(self):
        path = self.file(os.urandom(200000), 'image.png')
        content = open_and_read(path)
        fields = [
            ('plain', 'va\r\nlue'), ('\xe9', b'\x00\xff'), ('empty', ''), ('view', memoryview(b'abc')),
            ('f', file_body(path), 'image.png'), ('g', b'x', 'name', 'text/x-own; charset=utf-8'),
            ('h', 'x', 'no-such.suffix'),
            ('function', lambda: pieces_of(b'he', b'llo')), ('iterable', Again(), 'a.txt')]
        expected = [
            ('plain', None, None, b'va\r\nlue'), ('\xe9', None, None, b'\x00\xff'), ('empty', None, None, b''),
            ('view', None, None, b'abc'), ('f', 'image.png', 'image/png', content),
            ('g', 'name', 'text/x-own; charset=utf-8', b'x'), ('h', 'no-such.suffix', 'application/octet-stream', b'x'),
            ('function', None, None, b'hello'), ('iterable', 'a.txt', 'text/plain', b'hello')]
        for count in (0, 1, 4, 7, 9):
            headers, body = multipart(iter(fields[:count]))
            for _ in range(2):  # it can be sent again
                data = await self.sent(body, headers)
                if count == 9:  # of some the length is not known
                    self.assertIn(b'transfer-encoding', self.fields())
                    data = unchunked(data)
                else:
                    self.assertEqual(len(data), body.content_length)
                    self.assertEqual(self.fields()[b'content-length'], [b'%d' % len(data)])
                found = parsed_form(headers, data) if count else []
                self.assertEqual([(name, filename, kind and filename and kind.replace('"', ''), value)
                                  for name, filename, kind, value in found],
                                 expected[:count])
        self.assertNotEqual(*[multipart([])[0] for _ in range(2)])

    async def test_a_part_need_not_be_a_generator(self):
        _, body = multipart([('a', Once)])
        for _ in range(2):
            self.assertIn(b'\r\n\r\nhello\r\n', await buffered(body))

    async def test_no_name_of_a_field_or_a_file_injects_a_header(self):
        headers, body = multipart([('a"\r\nx: y', 'v'), ('b', 'v', 'f"\r\nx: y"', 'text/plain')])
        data = await buffered(body)
        self.assertNotIn(b'\r\nx: y', data)
        self.assertIn(b'name="a%22%0D%0Ax: y"\r\n', data)
        self.assertIn(b'filename="f%22%0D%0Ax: y%22"\r\n', data)
        for kind in ('text/plain\r\nx: y', 'a\x00', 'caf\xe9'):
            await self.raises(HttpRequestError, self.made(multipart, [('a', 'v', 'f', kind)]))

    async def test_a_part_that_can_be_played_once_is_refused(self):
        for value in (5, None, ['x'], Once()):
            error = await self.raises(HttpRequestError, self.made(multipart, [('a', value)]))
            self.assertIn(type(value).__name__, str(error))

    async def test_a_part_is_closed_if_the_request_ends_in_its_middle(self):
        closed = []

        async def endless():
            try:
                while True:
                    yield bytes(100000)
            finally:
                closed.append(True)

        def refuses(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n')
            peer.read_to_close()

        headers, body = multipart([('a', endless)])
        request, _ = self.pool()
        code, _, _ = await request(b'POST', f'http://a.test:{self.serve(refuses)}/', headers=headers, body=body)
        self.assertEqual((code, closed), (b'413', [True]))

    async def test_files(self):
        for size in (0, 1, 65536, 65537, 300000):
            content = os.urandom(size)
            path, told = self.file(content), []
            body = file_body(path, progress=lambda *args: told.append(args))  # noqa: B023
            for _ in range(2):
                del told[:]
                self.assertEqual(await self.sent(body), content)
                self.assertEqual(self.fields()[b'content-length'], [b'%d' % size])
                self.assertEqual(told, [(min(at, size), size) for at in range(65536, size + 65536, 65536)])
            self.answers = [redirect(b'307', b'/again')]
            request, _ = self.pool()
            await redirectable(request)(b'PUT', f'http://a.test:{self.site()}/', body=file_body(path))
            self.assertEqual(self.seen[-1][3], content)
        with self.assertRaises(FileNotFoundError):
            file_body(os.path.join(self.folder, 'nothing'))

    async def test_of_a_file_that_changes_as_much_is_sent_as_was_said(self):
        path = self.file(b'x' * 1000)
        body = file_body(path)
        self.file(b'y' * 5000)
        self.assertEqual(await self.sent(body), b'y' * 1000)
        self.file(b'z' * 10)
        request, _ = self.pool()
        error = await self.raises(HttpBodyError, request(b'POST', f'http://a.test:{self.site()}/', body=body))
        self.assertIn('1000', str(error))
        self.assertIn('10', str(error))
        os.remove(path)
        with self.assertRaises(FileNotFoundError):
            await request(b'POST', f'http://a.test:{self.site()}/', body=body)

    async def test_a_file_is_closed_if_the_request_ends_in_its_middle(self):
        def refuses(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n')
            peer.read_to_close()

        path = os.path.join(self.folder, 'sparse')
        with open(path, 'wb') as file:
            file.truncate(10 ** 8)
        request, _ = self.pool()
        code, _, _ = await request(b'POST', f'http://a.test:{self.serve(refuses)}/', body=file_body(path))
        self.assertEqual(code, b'413')
        self.assertNotIn(path, [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')
                                if os.path.exists(f'/proc/self/fd/{fd}')])


def open_and_read(path):
    with open(path, 'rb') as file:
        return file.read()


def unchunked(data):
    content = b''
    while data:
        size, _, data = data.partition(b'\r\n')
        content, data = content + data[:int(size, 16)], data[int(size, 16) + 2:]
    return content


# -------- Readers of responses


class JsonTests(LayerTestCase):

    async def test_values(self):
        for text in (b'{"a": [1, 2.5, null]}', b'"caf\xc3\xa9"', '"caf\xe9"'.encode('utf-16'), b' 1 '):
            self.assertEqual(await json_of(FakeBody(*cut(text, 3))), json.loads(text))
        for text in (b'', b'{', b'<html>', b'\xff', b'1 2'):
            body = FakeBody(text) if text else FakeBody()
            with self.assertRaises(ValueError):
                await json_of(body)
            self.assertTrue(body.is_closed)
        body = FakeBody(*[b'1'] * 11)
        await self.raises(HttpTooLarge, json_of(body, most=10))
        self.assertTrue(body.is_closed)
        self.assertEqual(await json_of(FakeBody(*[b'1'] * 10), most=10), 1111111111)


class LinesTests(LayerTestCase):

    TEXTS = (
        # text, its lines
        (b'', []), (b'\n', [b'']), (b'a', [b'a']), (b'a\n', [b'a']), (b'a\nb', [b'a', b'b']),
        (b'a\r\nb\r\n', [b'a', b'b']),
        (b'\n\na\n\n', [b'', b'', b'a', b'']), (b'a\rb\r\n', [b'a\rb']), (b'a\r\r\n', [b'a\r']), (b'a\r', [b'a']),
        (b'\xff\x00\x0b\x0c\x85\xe2\x80\xa8\n', [b'\xff\x00\x0b\x0c\x85\xe2\x80\xa8']),
        (b'abc\n' * 1000, [b'abc'] * 1000),
    )

    async def test_lines_however_they_are_cut(self):
        for text, expected in self.TEXTS:
            for size in (1, 2, 3, 5, 10 ** 6):
                with self.subTest((text[:20], size)):
                    self.assertEqual([line async for line in lines(FakeBody(*cut(text, size)))], expected)

    async def test_one_too_long_is_an_error_at_once(self):
        for text, size in itertools.product((b'x' * 11, b'ok\n' + b'x' * 11, b'x' * 11 + b'\n', b'x' * 1000),
                                            (1, 4, 1000)):
            body = FakeBody(*cut(text, size) + [b'\n'])
            await self.raises(HttpTooLarge, buffered(lines(body, most=10)))
            self.assertTrue(body.is_closed)
        self.assertEqual([line async for line in lines(FakeBody(b'x' * 10 + b'\n'), most=10)], [b'x' * 10])

    async def test_long_lines_in_small_pieces_take_linear_time(self):
        began = time.process_time()
        async for _ in lines(FakeBody(*[b'xy' * 10] * 100000)):
            pass
        self.assertLess(time.process_time() - began, 2)

    async def test_what_breaks_off_is_an_error_and_the_rest_is_no_line(self):
        got = []
        with self.assertRaises(HttpConnectionClosedError):
            async for line in lines(FakeBody(b'a\nb', HttpConnectionClosedError('reset'))):
                got.append(line)
        self.assertEqual(got, [b'a'])

    async def test_abandoned_in_the_middle_the_connection_is_closed(self):
        def goes_on(peer):
            peer.send(OK + b'\r\na\nb\n')
            peer.read_to_close()

        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        for reader in (lines, server_sent_events):
            self.answers = [goes_on]
            _, _, body = await request(b'GET', f'http://a.test:{self.site()}/')
            if reader is lines:
                async for _ in reader(body):
                    break
            reader = reader(body)
            body = None
            await (reader.aclose() if reader is not None else turns())
            self.assertEqual(sockets.count_open(), 0)


def whatwg_events(text):
    """The events of a stream that is there as a whole, written down from the standard's own steps. HTML §9.2.6"""
    text = text.decode('utf-8', 'replace')
    text = text[1:] if text.startswith('\ufeff') else text
    events, data, kind, last_id, retry = [], '', '', '', None
    for line in re.split('\r\n|\r|\n', text)[:-1]:
        if line == '':
            if data != '':
                events.append(Event(kind or 'message', data[:-1], last_id, retry))
            data, kind = '', ''
            continue
        name, value = line.split(':', 1) if ':' in line else (line, '')
        value = value[1:] if value[:1] == ' ' else value
        if name == 'event':
            kind = value
        elif name == 'data':
            data += value + '\n'
        elif name == 'id':
            last_id = last_id if '\0' in value else value
        elif name == 'retry' and value and all(c in '0123456789' for c in value):
            retry = int(value)
    return events


class EventTests(LayerTestCase):

    def event(self, data, kind='message', last_id='', retry=None):
        return Event(kind, data, last_id, retry)

    async def events(self, *pieces, **kwargs):
        return [event async for event in server_sent_events(FakeBody(*pieces), **kwargs)]

    async def test_the_examples_of_the_standard(self):
        for text, expected in (
                (b'data: YHOO\ndata: +2\ndata: 10\n\n', [self.event('YHOO\n+2\n10')]),
                (b': test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n',
                 [self.event('first event', last_id='1'), self.event('second event'), self.event(' third event')]),
                (b'data\n\ndata\ndata\n\n', [self.event(''), self.event('\n')]),
                (b'data:test\n\ndata: test\n\n', [self.event('test')] * 2),
                (b'event: add\ndata: 1\n\ndata: 2\n\n', [self.event('1', 'add'), self.event('2')]),
                (b'event: none\n\n', []), (b'id: 7\n\ndata: x\n\n', [self.event('x', last_id='7')]),
                (b'id: 7\0\ndata: x\n\n', [self.event('x')]),
                (b'retry: 100\ndata: x\n\n', [self.event('x', retry=100)]),
                (b'retry: 1s\nretry:\nretry: \xc2\xb2\ndata: x\n\n', [self.event('x')]),
                (b'\xef\xbb\xbfdata: x\n\n', [self.event('x')]), (b'\n\xef\xbb\xbfdata: x\n\n', []),
                (b'data: \xff\n\n', [self.event('\ufffd')]), (b': comment', None), (b'DATA: x\n\n', []), (b'', [])):
            for end in (b'\n', b'\r', b'\r\n'):
                for size in (1, 2, 7, 10 ** 6):
                    with self.subTest((text, end, size)):
                        pieces = cut(text.replace(b'\n', end), size)
                        if expected is None:
                            await self.raises(HttpConnectionClosedError, self.events(*pieces))
                        else:
                            self.assertEqual(await self.events(*pieces), expected)

    async def test_random_streams_give_what_the_standard_says(self):
        parts = (b'data', b'event', b'id', b'retry', b':', b': ', b' ', b'x', b'1', b'\n', b'\r', b'\r\n', b'\n\n',
                 b'\0',
                 b'\xef\xbb\xbf', b'\xe9', b'data: y\n', b'other')
        for number in range(1500):
            rng = random.Random(number)
            text = b''.join(rng.choice(parts) for _ in range(rng.randrange(40))) + b'\n\n'
            pieces = []
            while text[sum(map(len, pieces)):]:
                at = sum(map(len, pieces))
                pieces.append(text[at:at + rng.randrange(1, 12)])
            self.assertEqual(await self.events(*pieces), whatwg_events(text), (number, text))

    async def test_an_event_is_given_as_soon_as_its_last_line_ends(self):
        for end in (b'\n', b'\r', b'\r\n'):
            gate = asyncio.Event()

            class Waits(FakeBody):
                async def __anext__(self):
                    if not self.pieces:
                        await gate.wait()  # noqa: B023
                    return await super().__anext__()

            events = server_sent_events(Waits(b'data: x' + end + end))
            self.assertEqual((await asyncio.wait_for(events.__anext__(), 5)).data, 'x')
            gate.set()
            self.assertEqual([event async for event in events], [])

    async def test_a_stream_that_is_cut_never_looks_whole(self):
        for text in (b'data: x', b'data: x\n', b'event: x\n', b'id: 1\r\n', b'data: x\n\ndata', b'\n\nd',
                     b'data: y\n\nretry: 1\n'):
            events = server_sent_events(FakeBody(text))
            got = []
            with self.assertRaises(HttpConnectionClosedError) as caught:
                async for event in events:
                    got.append(event)
            self.assertTrue(caught.exception.answered)
            self.assertEqual(len(got), text.count(b'\n\nd') and text.startswith(b'data') or b'y' in text)
            await self.raises(HttpConnectionClosedError, buffered(events))
        self.assertEqual(await self.events(b': comment\n'), [])
        error = HttpConnectionClosedError('reset')
        with self.assertRaises(HttpConnectionClosedError) as caught:
            await self.events(b'data: x\n', error)
        self.assertIs(caught.exception, error)

    async def test_one_too_long_is_an_error(self):
        for text in (b'data: ' + b'x' * 100, b'data: xxxx\n' * 20, b'data: ' + b'x' * 100 + b'\n\n'):
            for size in (1, 1000):
                await self.raises(HttpTooLarge, self.events(*cut(text, size), most=50))
        self.assertEqual(len(await self.events(b'data: xxxx\n\n' * 20, most=50)), 20)


# -------- saved


NGINX_CONF = '''
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 100; }}
http {{
  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi; default_type application/octet-stream;
  server {{ listen 127.0.0.1:{port}; location / {{ root files; }} }}
}}
'''


def wait_for_port(port, process):
    ends_at = time.monotonic() + PATIENCE
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(('127.0.0.1', port), timeout=PATIENCE):
            return
        time.sleep(0.01)
    raise RuntimeError(f'{process.args[0]} does not run: {process.poll()}')


@unittest.skipUnless(NGINX, NO_NGINX)
class SavedFromNginxTests(LayerTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = tempfile.mkdtemp(prefix='lowhaio-layers-')
        os.mkdir(os.path.join(cls.root, 'files'))
        cls.port = refusing_port()
        with open(os.path.join(cls.root, 'nginx.conf'), 'w') as file:
            file.write(NGINX_CONF.format(port=cls.port))
        cls.nginx = subprocess.Popen([NGINX, '-p', cls.root, '-c', os.path.join(cls.root, 'nginx.conf')],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(cls.port, cls.nginx)

    @classmethod
    def tearDownClass(cls):
        cls.nginx.terminate()
        cls.nginx.wait(PATIENCE)
        shutil.rmtree(cls.root)
        super().tearDownClass()

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(folder.name, 'file')
        self.asked = []  # the ranges

    def publish(self, content, name='file'):
        """A new file each time, that another may still be read"""
        path = os.path.join(self.root, 'files', name)
        with open(path + '.new', 'wb') as file:
            file.write(content)
        os.replace(path + '.new', path)

    def relay(self, *cuts):
        """The port of what passes everything on to nginx and back, but breaks off after so many bytes of an answer"""
        cuts = list(cuts)

        def script(peer):
            head = peer.read_head()
            found = re.search(b'\r\nrange: (.*)\r\n', head)
            self.asked.append(found and found.group(1))
            cut_at = cuts.pop(0) if cuts else None
            with socket.create_connection(('127.0.0.1', self.port)) as sock:
                sock.sendall(head.replace(b'\r\n\r\n', b'\r\nconnection: close\r\n\r\n'))
                count = 0
                while True:
                    data = sock.recv(65536)[:None if cut_at is None else cut_at - count]
                    if not data:
                        return
                    peer.send(data)
                    count += len(data)
        return self.serve(script)

    def left(self):
        return sorted(os.listdir(self.folder))

    async def test_it_goes_on_where_it_broke_off(self):
        content = os.urandom(3000000)
        self.publish(content)
        told = []
        request, _ = self.pool()
        port = self.relay(1000000, 100, 500000, 5)
        size = await saved(request, f'http://a.test:{port}/file', self.path, progress=lambda *args: told.append(args),
                           backoff=at_once)
        self.assertEqual((size, open_and_read(self.path)), (3000000, content))
        self.assertEqual(self.left(), ['file'])
        self.assertEqual(len(self.asked), 5)
        self.assertEqual(self.asked[0], None)
        starts = [int(asked[6:-1]) for asked in self.asked[1:]]
        self.assertTrue(900000 < starts[0] < 1000000 and starts[0] == starts[1] < starts[2] == starts[3])
        self.assertEqual(told[-1], (3000000, 3000000))
        self.assertEqual(told, sorted(told))

    async def test_a_later_call_goes_on_too_unless_the_file_is_another(self):
        for is_new in (False, True):
            content = os.urandom(500000)
            self.publish(content)
            request, _ = self.pool()
            url = f'http://a.test:{self.relay(300000)}/file'
            await self.raises(HttpConnectionClosedError, saved(request, url, self.path, attempts=1))
            self.assertEqual(self.left(), ['file.etag', 'file.part'])
            if is_new:
                content = os.urandom(400000)
                self.publish(content)
            self.assertEqual(await saved(request, url, self.path), len(content))
            self.assertEqual(open_and_read(self.path), content)
            self.assertIsNotNone(self.asked[-1])
            self.assertEqual(self.left(), ['file'])
            os.remove(self.path)

    async def test_one_that_is_whole_and_was_not_come_to_an_end_with(self):
        content = os.urandom(100000)
        self.publish(content)
        request, _ = self.pool()
        url = f'http://a.test:{self.relay(50000)}/file'
        await self.raises(HttpConnectionClosedError, saved(request, url, self.path, attempts=1))
        with open(self.path + '.part', 'wb') as file:
            file.write(content)
        self.assertEqual(await saved(request, url, self.path), 100000)
        self.assertEqual(self.asked[-1], b'bytes=100000-')
        self.assertEqual((open_and_read(self.path), self.left()), (content, ['file']))

    async def test_what_stands_beside_it_of_another_url_or_of_nothing_is_not_used(self):
        content = os.urandom(100000)
        self.publish(content)
        self.publish(content[::-1], 'other')
        request, _ = self.pool()
        port = self.relay(50000)
        await self.raises(HttpConnectionClosedError, saved(request, f'http://a.test:{port}/other', self.path,
                                                           attempts=1))
        for part, beside in ((None, None), (b'x' * 200000, None), (b'', None), (b'x' * 5, b''), (b'x' * 5, b'a b c'),
                             (b'x' * 5, b'nonsense')):
            for suffix, text in (('.part', part), ('.etag', beside)):
                if text is not None:
                    with open(self.path + suffix, 'wb') as file:
                        file.write(text)
            await saved(request, f'http://a.test:{port}/file', self.path)
            self.assertEqual((open_and_read(self.path), self.left(), self.asked[-1]), (content, ['file'], None))


class SavedTests(LayerTestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.path = os.path.join(folder.name, 'file')

    def left(self):
        return {name: open_and_read(os.path.join(self.folder, name)) for name in os.listdir(self.folder)
                if not name.endswith('.etag')}

    CUT = HttpConnectionClosedError('was cut off')
    WHOLE = ((b'content-length', b'10'), (b'etag', b'"x"'))
    PART = (b'206', ((b'content-range', b'bytes 4-9/10'),), b'efghij')
    BEGUN = (b'200', WHOLE, b'abcd', CUT)
    NO_ETAG = (b'200', ((b'content-length', b'10'),), b'abcd', CUT)

    async def test_each_answer_to_what_is_asked(self):
        whole = (b'200', self.WHOLE, b'abcdefghij')
        for what, outcomes, asked, outcome, left in (
                ('whole', (whole,), [None], 10, b'abcdefghij'),
                ('empty', ((b'200', ((b'content-length', b'0'),)),), [None], 0, b''),
                ('of no length', ((b'200', (), b'abc', b'd'),), [None], 4, b'abcd'),
                ('resumed', (self.BEGUN, self.PART), [None, b'bytes=4-'], 10, b'abcdefghij'),
                ('resumed, its size not said', (self.BEGUN, (b'206', ((b'content-range', b'bytes 4-9/*'),), b'efghij')),
                 [None, b'bytes=4-'], 10, b'abcdefghij'),
                ('resumed by less than was asked for', (self.BEGUN,
                                                        (b'206', ((b'content-range', b'bytes 4-5/10'),), b'ef'),
                                                        (b'206', ((b'content-range', b'bytes 6-9/10'),), b'ghij')),
                 [None, b'bytes=4-', b'bytes=6-'], 10, b'abcdefghij'),
                ('no ETag', (self.NO_ETAG, whole), [None, None], 10, b'abcdefghij'),
                ('a weak ETag', ((b'200', ((b'content-length', b'10'), (b'etag', b'W/"x"')), b'abcd', self.CUT), whole),
                 [None, None], 10, b'abcdefghij'),
                ('anew', (self.BEGUN, (b'200', ((b'content-length', b'2'),), b'zz')), [None, b'bytes=4-'], 2, b'zz'),
                ('other bytes', (self.BEGUN, (b'206', ((b'content-range', b'bytes 3-9/10'),), b'defghij'), whole),
                 [None, b'bytes=4-', None], 10, b'abcdefghij'),
                ('of another size', (self.BEGUN, (b'206', ((b'content-range', b'bytes 4-9/11'),), b'efghij'), whole),
                 [None, b'bytes=4-', None], 10, b'abcdefghij'),
                ('no content-range', (self.BEGUN, (b'206', (), b'efghij'), whole), [None, b'bytes=4-', None], 10,
                 b'abcdefghij'),
                ('416', (self.BEGUN, (b'416', ((b'content-range', b'bytes */3'),)), whole),
                 [None, b'bytes=4-', None], 10, b'abcdefghij'),
                ('too little', ((b'200', self.WHOLE, b'abcd'), self.PART), [None, b'bytes=4-'], 10, b'abcdefghij'),
                ('too much', ((b'200', self.WHOLE, b'abcdefghijk'), whole), [None, None], 10, b'abcdefghij'),
                ('404', ((b'404', (), b'gone'),), [None], HttpStatusError, None),
                ('206 unasked', ((b'206', ((b'content-range', b'bytes 0-9/10'),), b'abcdefghij'),), [None],
                 HttpStatusError, None),
                ('416 unasked', ((b'416', ()),), [None], HttpStatusError, None),
                ('404 later', (self.BEGUN, (b'404', ())), [None, b'bytes=4-'], HttpStatusError, b'abcd'),
                ('malformed', (HttpProtocolError('nonsense came'),), [None], HttpProtocolError, None),
                ('no connection', (HttpConnectionError('was refused'),) * 3, [None] * 3, HttpConnectionError, None),
                ('cut each time', (self.NO_ETAG, self.NO_ETAG, self.NO_ETAG), [None] * 3, HttpConnectionClosedError,
                 None),
                ('no connection later', (self.BEGUN, HttpConnectionError('refused'), HttpDnsError('no name')),
                 [None, b'bytes=4-', b'bytes=4-'], HttpDataError, b'abcd')):
            with self.subTest(what):
                request = Scripted(*outcomes)
                saving = saved(request, 'http://a.test/x?secret', self.path, headers=((b'x', b'y'),), attempts=3,
                               backoff=at_once, other=5)
                if isinstance(outcome, int):
                    self.assertEqual(await saving, outcome)
                    self.assertEqual(self.left(), {'file': left})
                else:
                    error = await self.raises(outcome, saving)
                    self.assertNotIn('secret', str(error))
                    self.assertEqual(self.left(), {} if left is None else {'file.part': left})
                self.assertEqual([(request.values(b'range', index) or [None])[0]
                                  for index in range(len(request.calls))], asked)
                for _, _, _, headers, _, kwargs in request.calls:
                    self.assertEqual((headers[:2], kwargs), (
                        ((b'x', b'y'), (b'accept-encoding', b'identity')), dict(other=5)))
                    self.assertEqual((b'if-range', b'"x"') in headers, any(name == b'range' for name, _ in headers))
                self.assertTrue(all(body.is_closed for body in request.bodies))
            for name in os.listdir(self.folder):
                os.remove(os.path.join(self.folder, name))

    async def test_an_error_that_stays_has_the_code_and_the_last_is_told_with_what_was_before_it(self):
        error = await self.raises(HttpStatusError, saved(Scripted((b'404', ((b'x', b'y'),))), 'http://a.test/',
                                                         self.path))
        self.assertEqual((error.code, error.headers, error.answered), (b'404', ((b'x', b'y'),), True))
        request = Scripted(with_facts(HttpConnectionClosedError('was cut off'), answered=True),
                           HttpDnsError('no such name'))
        error = await self.raises(HttpDataError, saved(request, 'http://a.test/', self.path, attempts=2,
                                                       backoff=at_once))
        self.assertTrue(error.answered)
        self.assertIn('was cut off', str(error))
        self.assertIn('no such name', str(error))

    async def test_attempts_are_those_in_a_row_without_a_new_byte(self):
        outcomes = [(b'200', self.WHOLE, b'a', self.CUT)]
        for at in range(1, 9):
            outcomes += [HttpConnectionError('refused'),
                         (b'206', ((b'content-range', b'bytes %d-9/10' % at),), b'abcdefghij'[at:at + 1], self.CUT)]
        request = Scripted(*outcomes, (b'206', ((b'content-range', b'bytes 9-9/10'),), b'j'))
        told = []
        await saved(request, 'http://a.test/', self.path, attempts=3, backoff=lambda count: told.append(count) or 0)
        self.assertEqual(self.left(), {'file': b'abcdefghij'})
        self.assertEqual(told, [1, 2] * 8 + [1])

    async def test_what_the_file_was_stays_until_the_new_one_is_whole(self):
        with open(self.path, 'wb') as file:
            file.write(b'old')
        await self.raises(HttpConnectionClosedError, saved(Scripted(self.NO_ETAG), 'http://a.test/', self.path,
                                                           attempts=1))
        self.assertEqual(self.left(), {'file': b'old'})
        await saved(Scripted((b'200', (), b'new')), 'http://a.test/', os.fsencode(self.path))
        self.assertEqual(self.left(), {'file': b'new'})

    async def test_cancelled_or_failed_by_the_caller_it_leaves_what_a_later_call_can_use(self):
        gate = asyncio.Event()

        class Waits(FakeBody):
            async def __anext__(self):
                if not self.pieces:
                    await gate.wait()
                return await super().__anext__()

        for fields, left in ((self.WHOLE, {'file.part': b'abcd'}), ((), {})):
            async def request(method, url, headers=(), body=None):
                return b'200', fields, Waits(b'abcd')  # noqa: B023

            task = self.loop.create_task(saved(request, 'http://a.test/', self.path))
            await turns()
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            self.assertEqual(self.left(), left)
            for name in os.listdir(self.folder):
                os.remove(os.path.join(self.folder, name))

        def refuse(count, size):
            raise KeyError(count)

        with self.assertRaises(KeyError):
            await saved(Scripted((b'200', (), b'x')), 'http://a.test/', self.path, progress=refuse)
        self.assertEqual(self.left(), {})

    async def test_of_what_was_decompressed_nothing_is_resumed(self):
        data = gzipped(TEXT)
        fields = ((b'content-length', b'%d' % len(data)), (b'etag', b'"x"'), (b'content-encoding', b'gzip'))
        request = Scripted((b'200', fields, data[:len(data) // 2], self.CUT), (b'200', fields, data))
        await saved(decompressed(request), 'http://a.test/', self.path, backoff=at_once)
        self.assertEqual(self.left(), {'file': TEXT})
        self.assertEqual([request.values(b'range', index) for index in (0, 1)], [[], []])
        request = Scripted(b'200')
        await saved(request, 'http://a.test/', self.path, headers={b'Accept-Encoding': b'gzip'})
        self.assertEqual(request.values(b'accept-encoding'), [b'gzip'])

    async def test_what_cannot_be_an_argument_is_refused(self):
        with self.assertRaises(ValueError):
            await saved(Scripted(), 'http://a.test/', self.path, attempts=0)


# -------- A real application: httpbin


HTTPBIN = '''
import sys, warnings
warnings.simplefilter('ignore')
import httpbin, waitress
server = waitress.create_server(httpbin.app, host='127.0.0.1', port=0, threads=4)
print(server.effective_port, flush=True)
server.run()
'''


@unittest.skipUnless(HAS_HTTPBIN, NO_HTTPBIN)
class HttpbinTests(LayerTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.process = subprocess.Popen([sys.executable, '-c', HTTPBIN], stdout=subprocess.PIPE,
                                       stderr=subprocess.DEVNULL)
        cls.url = 'http://127.0.0.1:%d' % int(cls.process.stdout.readline())

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(PATIENCE)
        cls.process.stdout.close()
        super().tearDownClass()

    def client(self, *layers):
        request, _ = self.pool()
        for layer in layers:
            request = layer(request)
        return request

    async def test_what_is_compressed(self):
        request = self.client(decompressed)
        for path, key in (('gzip', 'gzipped'), ('deflate', 'deflated')) + ((('brotli', 'brotli'),) if brotli else ()):
            _, fields, body = await request(b'GET', f'{self.url}/{path}')
            self.assertTrue((await json_of(body))[key])
            self.assertNotIn(b'content-encoding', dict(fields))

    async def test_basic_and_bearer(self):
        for credentials, code in ((basic('us er', 'pa:ss'), b'200'), (basic('us er', 'no'), b'401')):
            request = self.client(functools.partial(authorised, at=self.url, credentials=credentials))
            self.assertEqual((await request(b'GET', f'{self.url}/basic-auth/us er/pa:ss'))[0], code)
        _, _, body = await self.client(functools.partial(authorised, at=self.url, credentials=bearer('abc')))(
            b'GET', f'{self.url}/bearer')
        self.assertEqual((await json_of(body))['token'], 'abc')

    async def test_digest(self):
        for algorithm, password, code in (
                ('MD5', 'pw', b'200'), ('SHA-256', 'pw', b'200'), ('MD5', 'wrong', b'401'),
                ('SHA-256', 'wrong', b'401'),
                ('SHA-512', 'pw', b'401')):
            with self.subTest((algorithm, password)):
                # httpbin knows its challenge again by a cookie. It fails of itself where there is a query.
                request = self.client(cookied, functools.partial(digest, at=self.url, user='user', password=password))
                for _ in range(2):
                    answer = await request(b'GET', f'{self.url}/digest-auth/auth/user/pw/{algorithm}')
                    self.assertEqual(answer[0], code)

    async def test_cookies(self):
        request = self.client(cookied, redirectable)
        _, _, body = await request(b'GET', f'{self.url}/cookies/set?a=1&b=2')
        self.assertEqual(await json_of(body), {'cookies': {'a': '1', 'b': '2'}})
        _, _, body = await request(b'GET', f'{self.url}/cookies/delete?a')
        self.assertEqual(await json_of(body), {'cookies': {'b': '2'}})

    async def test_bodies(self):
        request = self.client()
        headers, body = json_body({'a': ['\xe9']})
        _, _, body = await request(b'POST', f'{self.url}/post', headers=headers, body=body)
        self.assertEqual((await json_of(body))['json'], {'a': ['\xe9']})
        headers, body = form({'a': ['1 2', '\xe9'], 'b': '&'})
        _, _, body = await request(b'POST', f'{self.url}/post', headers=headers, body=body)
        self.assertEqual((await json_of(body))['form'], {'a': ['1 2', '\xe9'], 'b': '&'})
        headers, body = multipart([('a', '\xe9'), ('f', b'content', 'name.txt'), ('g', streamed(b'other'), '\xe9.bin')])
        _, _, body = await request(b'POST', f'{self.url}/post', headers=headers, body=body)
        found = await json_of(body)
        self.assertEqual((found['form'], found['files']), ({'a': '\xe9'}, {'f': 'content', 'g': 'other'}))

    async def test_readers_and_retries(self):
        request = self.client(retried)
        _, _, body = await request(b'GET', f'{self.url}/stream/5')
        self.assertEqual([json.loads(line.decode())['id'] async for line in lines(body)], [0, 1, 2, 3, 4])
        code, _, _ = await self.client(functools.partial(retried, attempts=2, backoff=at_once))(
            b'GET', f'{self.url}/status/503')
        self.assertEqual(code, b'503')
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'file')
            self.assertEqual(await saved(request, f'{self.url}/range/5000', path), 5000)


# -------- All at once


async def new_token():
    return bearer('secret')


def all_layers(at, total=5, **kwargs):
    """{name: a function that puts that layer around a request}, in the order that is documented, from outside"""
    return collections.OrderedDict([
        ('redirectable', redirectable),
        ('cookied', cookied),
        ('retried', functools.partial(retried, backoff=at_once)),
        ('decompressed', decompressed),
        ('authorised', functools.partial(authorised, at=at, credentials=kwargs.get('credentials', new_token))),
        ('limited', functools.partial(limited, total=total, per_origin=total, timeout=kwargs.get('timeout', 5))),
    ])


def with_layers(request, layers, order):
    for name in reversed(order):
        request = layers[name](request)
    return request


class Internet:
    """Origins that answer as their paths say, and what was asked of them"""

    def __init__(self):
        self.calls = []
        self.under_way = self.most = 0

    async def __call__(self, method, url, params=(), headers=(), body=None, **kwargs):
        headers = dict(headers)
        (_, host, _), _, target = lowhaio.split_url(url)
        self.calls.append((method, url, headers))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            if host == 'nowhere.test':
                raise HttpDnsError('nowhere.test does not exist')
            code, fields, *pieces = self.answer(host, target, headers)
        except BaseException:
            self.leave()
            raise
        answer = FakeBody(*pieces)
        answer.when_done(self.leave)
        return code, fields, answer

    def leave(self):
        self.under_way -= 1

    def count(self, *urls):
        return sum(url in urls for _, url, _ in self.calls)

    def answer(self, host, target, headers):
        is_first = self.count(self.calls[-1][1]) == 1
        if host == 'evil.test':
            return b'200', ((b'set-cookie', b'session=evil'),), b'evil'
        return {
            b'/': lambda: (b'200', (), b'hello'),
            b'/login': lambda: (b'200', ((b'set-cookie', b'session=own'),)),
            b'/away': lambda: (b'302', ((b'location', b'http://evil.test/'),), b'gone'),
            b'/lost': lambda: (b'307', ((b'location', b'http://nowhere.test/'),)),
            b'/busy': lambda: (b'503', (), b'busy') if is_first else (
                b'200', ((b'content-encoding', b'gzip'),), gzipped(b'at last')),
            b'/done': lambda: (b'303', ((b'location', b'/later'),)),
            b'/later': lambda: (b'429', (), b'busy') if is_first else (b'200', (), b'later'),
            b'/created': lambda: (b'303', ((b'location', b'/private'),)),
            b'/private': lambda: (b'401', (), b'no') if is_first else (b'200', (), b'private'),
            b'/malformed': lambda: (b'200', ((b'content-encoding', b'gzip'),), b'nonsense and more'),
        }[target]()


class OrderTests(LayerTestCase):
    """Every order of the six, 720: what holds in each, and what is documented not to"""

    async def run_each(self, scenario):
        failures = []
        for order in itertools.permutations(all_layers('http://a.test/')):
            internet = Internet()
            request = with_layers(internet, all_layers('http://a.test/', total=1), order)

            def is_outside(outer, inner):
                return order.index(outer) < order.index(inner)  # noqa: B023

            try:
                await scenario(internet, request, is_outside)
                self.assertEqual((internet.under_way, internet.most), (0, 1))
            except Exception as error:
                failures.append((order, repr(error)))
        self.assertEqual(failures[:3], [])

    async def get(self, request, url, method=b'GET', **kwargs):
        code, _, body = await request(method, url, **kwargs)
        return code, await buffered(body)

    async def test_what_is_busy_and_compressed_arrives(self):
        async def scenario(internet, request, is_outside):
            self.assertEqual(await self.get(request, 'http://a.test/busy'), (b'200', b'at last'))
            self.assertEqual(internet.count('http://a.test/busy'), 2)
            with self.assertRaises(HttpProtocolError):
                await self.get(request, 'http://a.test/malformed')
            self.assertEqual(internet.count('http://a.test/malformed'), 1)
        await self.run_each(scenario)

    async def test_no_token_and_no_cookie_goes_to_another_origin(self):
        async def scenario(internet, request, is_outside):
            await self.get(request, 'http://a.test/login')
            self.assertEqual(await self.get(request, 'http://a.test/away'), (b'200', b'evil'))
            method, url, headers = internet.calls[-1]
            self.assertEqual((url, b'authorization' in headers, b'cookie' in headers),
                             ('http://evil.test/', False, False))
        await self.run_each(scenario)

    async def test_another_sites_cookie_is_not_taken_for_ones_own_but_where_documented(self):
        async def scenario(internet, request, is_outside):
            await self.get(request, 'http://a.test/login')
            await self.get(request, 'http://a.test/away')
            await self.get(request, 'http://a.test/')
            self.assertEqual(internet.calls[-1][2][b'cookie'],
                             b'session=evil' if is_outside('cookied', 'redirectable') else b'session=own')
        await self.run_each(scenario)

    async def test_a_post_is_not_sent_twice_by_a_redirect_to_where_nobody_is(self):
        async def scenario(internet, request, is_outside):
            with self.assertRaises(HttpRedirectError):
                await self.get(request, 'http://a.test/lost', b'POST', body=streamed(b'x'))
            self.assertEqual(internet.count('http://a.test/lost'), 1)
        await self.run_each(scenario)

    async def test_a_post_is_not_sent_twice_by_what_comes_after_it_was_done_but_where_documented(self):
        async def scenario(internet, request, is_outside):
            self.assertEqual((await self.get(request, 'http://a.test/done', b'POST', body=streamed(b'x')))[1], b'later')
            self.assertEqual(internet.count('http://a.test/done'), 1 + is_outside('retried', 'redirectable'))
            self.assertEqual((await self.get(request, 'http://a.test/created', b'POST', body=streamed(b'x')))[1],
                             b'private')
            self.assertEqual(internet.count('http://a.test/created'), 1 + is_outside('authorised', 'redirectable'))
        await self.run_each(scenario)


class AllAtOnceTests(LayerTestCase):

    async def test_no_header_is_injected_through_a_redirect_or_a_cookie_or_a_challenge(self):
        url = f'http://a.test:{self.site()}'
        bare, _ = self.pool()
        for location, target in ((b'/x%0d%0aevil:%20y', b'/x%0d%0aevil:%20y'), (b'/x\x0b', None),
                                 (b'/x\x01evil: y', None),
                                 (b'//evil\x7f.test/', None), ('/\u010d\u010a'.encode(), b'/%C4%8D%C4%8A')):
            with self.subTest(location):
                del self.seen[:]
                layers = all_layers(url)
                request = with_layers(bare, layers, list(layers))
                self.answers = [redirect(b'302', location, b'set-cookie: a=b\x0bevil: y')]
                if target is None:
                    await self.raises(HttpRedirectError, request(b'GET', url))
                else:
                    await request(b'GET', url)
                    self.assertEqual(self.seen[-1][1], target)
                for _, _, fields, _ in self.seen:
                    self.assertNotIn(b'evil', [name for name, _ in fields])
                    self.assertNotIn(b'cookie', [name for name, _ in fields])

    async def test_readers_read_what_was_decompressed(self):
        text = b''.join(b'data: %d\n\n' % number for number in range(1000))
        for reader, seen in ((lines, lambda line: line), (server_sent_events, lambda event: event.data)):
            data = gzipped(text)
            self.answers = [OK + b'content-encoding: gzip\r\ncontent-length: %d\r\n\r\n' % len(data) + data]
            request, _ = self.pool()
            _, _, body = await decompressed(request)(b'GET', f'http://a.test:{self.site()}/')
            done = []
            body = reader(body)
            body.when_done(lambda: done.append(True))  # noqa: B023
            found = [seen(each) async for each in body]
            self.assertEqual((len(found), found[0], done), (
                2000 if reader is lines else 1000, b'data: 0' if reader is lines else '0', [True]))

    async def test_an_error_is_no_part_of_a_cycle(self):
        def request_that(*outcomes):
            return Scripted(*[outcome() if callable(outcome) else outcome for outcome in outcomes])

        async def token():
            raise HttpConnectionError('refused')

        async def read_twice(body):
            with contextlib.suppress(HttpError):
                await buffered(body)
            await buffered(body)

        def refused():
            return HttpConnectionError('refused')

        coded = (b'200', ((b'content-encoding', b'gzip'),), b'nonsense')
        nothing_free = limited(Holding(), 1, timeout=0)
        await nothing_free(b'GET', 'http://a.test/')
        for make in (
                lambda: retried(request_that(b'503', refused, refused), attempts=3, backoff=at_once)(b'GET',
                                                                                                     'http://a.test/'),
                lambda: fetched(request_that((b'200', (), b'xx')), most=1)(b'GET', 'http://a.test/'),
                lambda: authorised(request_that(), 'http://a.test/', token)(b'GET', 'http://a.test/'),
                lambda: digest(request_that((b'401', ((b'www-authenticate', CHALLENGE),)), refused), 'http://a.test/',
                               'u', 'p')(
                    b'GET', 'http://a.test/'),
                lambda: nothing_free(b'GET', 'http://a.test/'),
                lambda: self.read_decompressed(request_that(coded), read_twice),
                lambda: read_twice(lines(FakeBody(b'xxx'), most=2)),
                lambda: read_twice(server_sent_events(FakeBody(b'data: x'))),
                lambda: logged(request_that(refused))(b'GET', 'http://a.test/')):
            gc.collect()
            gc.disable()
            self.addCleanup(gc.enable)
            reference = await self.reference_to_error(make())
            await turns()
            self.assertIsNone(reference(), reference())
            gc.enable()

    @staticmethod
    async def read_decompressed(request, read):
        _, _, body = await decompressed(request)(b'GET', 'http://a.test/')
        await read(body)

    async def reference_to_error(self, awaitable):
        try:
            await awaitable
        except HttpError as error:
            return weakref.ref(error)
        self.fail('it raised nothing')

    def site_of_all(self):
        """The port of a server that answers /KIND/NUMBER, each of whose bodies has the number"""
        def answer(peer):
            while True:
                head = peer.read_head()
                if not head.endswith(b'\r\n\r\n'):
                    return
                _, kind, number = head.split(b' ')[1].split(b'/')
                if b'\r\ncontent-length: ' in head:
                    peer.read(int(re.search(b'\r\ncontent-length: ([0-9]+)', head).group(1)))
                elif b'\r\ntransfer-encoding: ' in head:
                    peer.read_until(b'0\r\n\r\n')
                content = (number + b',') * 3000
                if kind in (b'busy', b'secret', b'moved') and random.random() < 0.5:
                    peer.send({
                        b'busy': b'HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy',
                        b'secret': b'HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n',
                        b'moved': redirect(b'307', b'/plain/' + number, b'set-cookie: n=' + number)}[kind])
                    continue
                if kind == b'cut':
                    data = gzipped(content)
                    peer.send(OK + b'content-encoding: gzip\r\ncontent-length: %d\r\n\r\n' % len(data) + data[:-9])
                    return peer.abort()
                if kind == b'slow':
                    data = gzipped(content)
                    peer.send(OK + b'content-encoding: gzip\r\ncontent-length: %d\r\n\r\n' % len(data) + data[:20])
                    time.sleep(0.002)
                    peer.send(data[20:])
                    continue
                if kind == b'gone':
                    return peer.abort()
                peer.send(OK + b'content-length: %d\r\n\r\n' % len(content) + content)
        return self.serve(answer)

    KINDS = ('plain', 'busy', 'secret', 'moved', 'cut', 'slow', 'gone')

    async def one(self, request, url, kind, number, counts):
        try:
            code, _, body = await request(
                random.choice((b'GET', b'POST', b'PUT')), f'{url}/{kind}/{number}',
                body=random.choice((None, streamed(b'x' * 10), lambda: pieces_of(b'x'))))
            if random.random() < 0.2:
                return  # its body is abandoned
            if random.random() < 0.2:
                await body.__anext__()
                return
            content = await buffered(body)
            if code == b'200':
                self.assertEqual(content, b'%d,' % number * 3000)
            counts[code] += 1
        except (HttpDataError, StopAsyncIteration) as error:
            counts[type(error).__name__] += 1
        except asyncio.CancelledError:
            counts['cancelled'] += 1
            raise

    async def test_1500_random_cancellations_leave_nothing_behind(self):
        async def token():
            await asyncio.sleep(random.random() * 0.002)
            return bearer('secret')

        logger = logging.Logger('tests')
        logger.addHandler(logging.NullHandler())
        url = f'http://a.test:{self.site_of_all()}'
        sockets, counts = ClientSockets(), collections.Counter()
        bare, close = self.pool(set_sock_options=sockets)
        layers = all_layers(url, total=8, credentials=token, timeout=None)
        request = logged(with_layers(bare, layers, list(layers)), logger)
        number = 0
        while counts['cancelled'] < 1500:
            tasks = []
            for _ in range(20):
                number += 1
                tasks.append(self.loop.create_task(self.one(request, url, random.choice(self.KINDS), number, counts)))
            for task in random.sample(tasks, 20):
                if random.random() < 0.2:
                    await asyncio.sleep(random.random() * 0.004)
                task.cancel()
                if random.random() < 0.2:
                    task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled() and task.exception() is not None:
                    raise task.exception()
            del tasks[:], task
        self.assertLessEqual(sockets.count_open(), 8)
        # Every slot is free: as many requests as there are have theirs at once.
        gate = asyncio.Event()

        async def holds(number):
            _, _, body = await request(b'GET', f'{url}/plain/{number}')
            under_way.append(number)
            await gate.wait()
            await buffered(body)

        under_way = []
        tasks = [self.loop.create_task(holds(-number)) for number in range(1, 9)]
        while len(under_way) < 8:
            await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*tasks)
        await close()
        await turns()
        self.assertEqual(sockets.count_open(), 0)
        self.assertGreater(len(counts), 4)

    async def test_it_may_be_interrupted_at_every_suspension(self):
        url = f'http://a.test:{self.site()}'
        data = gzipped(TEXT)

        async def get_all(request):
            _, _, body = await request(b'POST', url + '/x', body=streamed(b'hello'))
            return await buffered(body)

        for how in (pending, with_the_result, let_go):
            for n in itertools.count():
                with self.subTest((how.__name__, n)):
                    sockets = ClientSockets()
                    bare, close = self.pool(set_sock_options=sockets)
                    layers = all_layers(url, total=1)
                    request = with_layers(bare, layers, list(layers))
                    self.answers = [
                        b'HTTP/1.1 429 Busy\r\ncontent-length: 4\r\n\r\nbusy',
                        b'HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n',
                        redirect(b'307', b'/y', b'set-cookie: a=b', body=b'moved'),
                        OK + b'content-encoding: gzip\r\ncontent-length: %d\r\n\r\n' % len(data) + data]
                    interrupted = Interrupted(self.loop, get_all(request), n, how)
                    task = self.loop.create_task(by_task(interrupted))
                    with contextlib.suppress(asyncio.CancelledError):
                        outcome = await task
                        self.assertTrue(how is let_go or not interrupted.reached, 'a cancellation was swallowed')
                        self.assertEqual(outcome, None if interrupted.reached else TEXT)
                    if not interrupted.reached:
                        break
                    del self.answers[:]
                    code, _, _ = await asyncio.wait_for(request(b'GET', url + '/slot'), PATIENCE)  # its slot is free
                    self.assertEqual(code, b'200')
                    await close()
                    self.assertEqual(sockets.count_open(), 0)
            self.assertGreaterEqual(n, 4)


# -------- docs/layers.md


def recipes():
    """{name: function} of all that the code of docs/layers.md defines"""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'docs', 'layers.md')
    with open(path, encoding='utf-8') as file:
        blocks = re.findall(r'```python\n(.*?)```', file.read(), re.DOTALL)
    defined = {}
    for block in blocks:
        if 'botocore' not in block or HAS_MOTO:
            exec(compile(block, 'docs/layers.md', 'exec'), defined)
    return blocks, defined


class DocsTests(LayerTestCase):

    def setUp(self):
        super().setUp()
        self.blocks, self.recipes = recipes()

    def test_each_recipe_is_short(self):
        self.assertGreater(len(self.blocks), 7)
        for block in self.blocks:
            self.assertLessEqual(len([line for line in block.splitlines() if line and 'import' not in line]), 15, block)

    def test_what_there_is_is_what_is_told(self):
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'docs', 'layers.md')) as file:
            told = file.read()
        for name in lowhaio_layers.__all__:
            self.assertIn(name, told)

    async def test_a_client(self):
        url = f'http://a.test:{self.site()}'
        with mock.patch.object(lowhaio, 'Pool', self.pool):
            exec(compile(self.blocks[0], 'docs/layers.md', 'exec'), self.recipes)
        request, close = self.recipes['client'](url, 'secret')
        self.answers = [redirect(b'302', b'/x', b'set-cookie: a=b'), b'HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n']
        code, _, body = await request(b'GET', url)
        self.assertEqual((code, await buffered(body)), (b'200', b''))
        fields = self.fields()
        self.assertEqual((fields[b'authorization'], fields[b'cookie']), ([b'Bearer secret'], [b'a=b']))
        self.assertIn(b'gzip', fields[b'accept-encoding'][0])
        self.assertEqual(len(self.seen), 3)
        await close()

    async def test_a_layer_of_ones_own(self):
        request = Scripted()
        layer = self.recipes['with_api_key'](request, 'http://a.test/', b'secret')
        for url, expected in (('http://a.test/x', [b'secret']), ('http://b.test/', [])):
            await layer(b'GET', url, headers=((b'x', b'y'),), body=streamed(b''), other=5)
            self.assertEqual((request.values(b'x-api-key'), request.values(b'x')), (expected, [b'y']))

    async def test_a_crawler(self):
        request, _ = self.pool()
        base = f'http://a.test:{self.site()}'
        urls = [f'{base}/{number}' for number in range(30)] + ['nonsense', f'http://127.0.0.1:{refusing_port()}/']
        with mock.patch.object(lowhaio_layers, 'jittered_delay', at_once), \
                mock.patch.object(lowhaio_layers.retried, '__defaults__',
                                  tuple([at_once if callable(value) else value for value in retried.__defaults__])):
            outcomes = await self.recipes['crawl'](request, urls)
        self.assertEqual([outcomes[url][::2] for url in urls[:30]], [(b'200', b'')] * 30)
        self.assertEqual([type(outcomes[url]) for url in urls[30:]], [HttpRequestError, HttpConnectionError])
        self.assertLessEqual(self.accepted, 4)
        outcomes.clear()

    async def test_an_llm(self):
        events = b''.join([b'data: %b\n\n' % json.dumps({'choices': [{'delta': {'content': word}}]}).encode()
                           for word in ('Hello', ' world')]) + b'data: [DONE]\n\n'
        self.answers = [OK + b'content-length: %d\r\n\r\n' % len(events) + events,
                        b'HTTP/1.1 400 No\r\ncontent-length: 2\r\n\r\nno']
        request, _ = self.pool()
        url = f'http://a.test:{self.site()}/'
        self.assertEqual([text async for text in self.recipes['chat'](request, url, 'hi')], ['Hello', ' world'])
        self.assertEqual(json.loads(self.seen[0][3].decode())['messages'][0]['content'], 'hi')
        with self.assertRaisesRegex(RuntimeError, 'no'):
            async for _ in self.recipes['chat'](request, url, 'hi'):
                pass

    async def test_oauth(self):
        def token(number):
            text = b'{"access_token": "t%d"}' % number
            return OK + b'content-length: %d\r\n\r\n' % len(text) + text

        request, _ = self.pool()
        url = f'http://a.test:{self.site()}'
        self.answers = [token(1), b'HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n', token(2), OK_EMPTY, OK_EMPTY]
        layer = self.recipes['with_oauth'](request, url, url + '/token', 'me', 'secret&')
        for _ in range(2):
            self.assertEqual((await layer(b'GET', url + '/x'))[0], b'200')
        self.assertEqual([self.fields(index)[b'authorization'] for index in range(5)],
                         [[], [b'Bearer t1'], [], [b'Bearer t2'], [b'Bearer t2']])
        self.assertIn(b'client_secret=secret%26', self.seen[0][3])

    async def test_an_upload(self):
        request, _ = self.pool()
        told = []
        with tempfile.NamedTemporaryFile() as file:
            file.write(b'x' * 100000)
            file.flush()
            code = await self.recipes['upload'](
                request, f'http://a.test:{self.site()}/', file.name, lambda *args: told.append(args))
        self.assertEqual((code, told), (b'200', [(65536, 100000), (100000, 100000)]))
        self.assertIn(b'x' * 100000, self.seen[0][3])

    async def test_a_fake(self):
        request = self.recipes['fake_request']({(b'GET', 'http://a.test/'): (b'200', b'[1]')})
        code, _, body = await retried(decompressed(request))(b'GET', 'http://a.test/')
        self.assertEqual((code, await json_of(body)), (b'200', [1]))


@unittest.skipUnless(HAS_MOTO, NO_MOTO)
class S3Tests(LayerTestCase):

    SIZE = 2 ** 30 if os.environ.get('LOWHAIO_LONG') else 2 ** 24

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.port = refusing_port()
        cls.process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', 'moto.server', '-H', '127.0.0.1', '-p', str(cls.port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(cls.port, cls.process)

    @classmethod
    def tearDownClass(cls):
        cls.process.terminate()
        cls.process.wait(PATIENCE)
        super().tearDownClass()

    def test_put_get_and_multipart(self):
        """A file of 1 GiB where LOWHAIO_LONG is set, and of 16 MiB by default; and one in three parts"""
        self.loop.run_until_complete(self.put_and_get())  # without a limit to its time

    async def put_and_get(self):
        from botocore.credentials import Credentials
        _, defined = recipes()
        request, _ = self.pool()
        url = f'http://127.0.0.1:{self.port}'
        signed = defined['s3_signed'](request, url, 'us-east-1', Credentials('key', 'secret', 'token'))
        with tempfile.TemporaryDirectory() as folder:
            path, back = os.path.join(folder, 'file'), os.path.join(folder, 'back')
            piece = os.urandom(2 ** 20)
            with open(path, 'wb') as file:
                for _ in range(self.SIZE // len(piece)):
                    file.write(piece)
            code, _, body = await signed(b'PUT', f'{url}/bucket')
            self.assertEqual((code, await buffered(body)), (b'200', b''))
            before = reset_peak_memory()
            code, _, body = await signed(b'PUT', f'{url}/bucket/a b+c', body=file_body(path), socket_timeout=300)
            self.assertEqual((code, await buffered(body)), (b'200', b''))
            self.assertEqual(await saved(signed, f'{url}/bucket/a b+c', back, socket_timeout=300), self.SIZE)
            self.assertLess(peak_memory() - before, 8 * 2 ** 20)
            self.assertEqual(digest_of(back), digest_of(path))
            _, _, body = await signed(b'POST', f'{url}/bucket/parts', params={'uploads': ''})
            upload = re.search(b'<UploadId>(.+?)</UploadId>', await buffered(body)).group(1).decode()
            count, tags = 3, []
            for number in range(1, count + 1):
                _, headers, _ = await signed(b'PUT', f'{url}/bucket/parts',
                                             params={'partNumber': number, 'uploadId': upload},
                                             body=streamed(piece * 5))
                tags.append(dict(headers)[b'etag'].decode())
            xml = ''.join(f'<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>'
                          for number, tag in enumerate(tags, 1))
            code, _, _ = await signed(
                b'POST', f'{url}/bucket/parts', params={'uploadId': upload},
                body=streamed(f'<CompleteMultipartUpload>{xml}</CompleteMultipartUpload>'.encode()))
            self.assertEqual(code, b'200')
            self.assertEqual(await saved(signed, f'{url}/bucket/parts', back), count * 5 * len(piece))

    async def test_the_signature_is_of_what_is_sent_and_goes_to_its_origin_alone(self):
        from botocore.credentials import Credentials
        _, defined = recipes()
        request = Scripted()
        signed = defined['s3_signed'](request, 'https://s3.test', 'us-east-1', Credentials('key', 'secret'))
        await signed(b'PUT', 'https://s3.test/a/b%2Fc', params={'x': 'y z'}, headers={b'x': b'y'}, body=streamed(b'x'))
        self.assertEqual(request.values(b'x-amz-content-sha256'), [b'UNSIGNED-PAYLOAD'])
        self.assertIn(b'Credential=key/', request.values(b'authorization')[0])
        self.assertEqual(request.calls[0][1], 'https://s3.test/a/b%2Fc?x=y%20z')
        await signed(b'PUT', 'https://evil.test/')
        self.assertEqual(request.values(b'authorization'), [])


def digest_of(path):
    found = hashlib.sha256()
    with open(path, 'rb') as file:
        for piece in iter(lambda: file.read(2 ** 20), b''):
            found.update(piece)
    return found.hexdigest()
