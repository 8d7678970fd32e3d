"""Cancellation and exhaustion: whatever is interrupted, or runs out, nothing hangs, leaks, or gets another's answer

    python -m reliability.exhaustion    # the long form: every case, 10,000 cancellations, 2,000 requests at once

The server is a process of its own, so that the descriptors, and the threads, of this one are the client's alone.
Each request has a number, which its answer's head repeats and of which the answer's body is made: whatever a
connection still has to give of an earlier response shows.
"""
import argparse
import asyncio
import builtins
import collections
import contextlib
import errno
import functools
import gc
import hashlib
import itertools
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import warnings
from unittest import mock

from aiodnsresolver import (
    RESPONSE,
    TYPES,
    DnsRecordDoesNotExist,
    IPv4AddressExpiresAt,
    Message,
    Resolver,
    ResourceRecord,
    pack,
    parse,
)

import lowhaio
from lowhaio import (
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpDataError,
    HttpDnsError,
    HttpError,
    HttpRequestError,
    HttpTlsError,
    Pool,
    buffered,
)
from reliability import harness
from reliability.harness import (
    CA,
    CONTINUE,
    PATIENCE,
    SMALL_SEND_BUFFER,
    AsyncTestCase,
    ClientSockets,
    Peer,
    all_tasks,
    client_context,
    current_task,
    in_thread,
    new_event_loop,
    outcome,
    tls_server,
    turns,
)

Size = collections.namedtuple('Size', 'every_case cancellations at_once tls_at_once rounds')
QUICK = Size(every_case=False, cancellations=300, at_once=200, tls_at_once=40, rounds=3)
LONG = Size(every_case=True, cancellations=10000, at_once=2000, tls_at_once=200, rounds=4)
size = QUICK
counts = collections.Counter()


def some(one_in, cases):
    """Every case, or, in the quick form, one in so many: a prime, so that it comes by all values of each column"""
    told = time.monotonic()
    for case in itertools.islice(cases, 0, None, 1 if size.every_case else one_in):
        yield case
        counts['cases'] += 1
        if size.every_case and time.monotonic() - told > 10:
            told = time.monotonic()
            tell(dict(counts))


def tell(*what):
    print(*what, flush=True)  # noqa: T201


# -------- The server


def content(number, length):
    piece = b'%d,' % number
    return (piece * (length // len(piece) + 1))[:length]


def in_chunks(data):
    half = len(data) // 2
    return b''.join(b'%x\r\n%b\r\n' % (len(piece), piece) for piece in (data[:half], data[half:]) if piece) + \
        b'0\r\n\r\n'


FRAMINGS = {
    'length': lambda data: (b'content-length: %d\r\n' % len(data), data),
    'chunked': lambda data: (b'transfer-encoding: chunked\r\n', in_chunks(data)),
    'close': lambda data: (b'', data),
}


def read_body(peer, head):
    """The request's body; None if the client went away before its end"""
    if b'\r\ntransfer-encoding: chunked\r\n' in head:
        lines = peer.read_until(b'\r\n0\r\n\r\n').split(b'\r\n')
        sizes, pieces = lines[:-3:2], lines[1:-3:2]
        complete = lines[-3:] == [b'0', b'', b''] and all(
            int(length, 16) == len(piece) for length, piece in zip(sizes, pieces))
        return b''.join(pieces) if complete else None
    length = int(head.partition(b'\r\ncontent-length: ')[2].partition(b'\r\n')[0] or b'0')
    body = peer.read(length)
    return body if len(body) == length else None


def answer(peer):
    """Answers requests for /NUMBER/FRAMING/LENGTH/OPTION

    `slow`: late, and in pieces. `early`: refused, before the request's body is read. `drop`: a connection that has
    carried a request is closed instead. `reset`: it is reset, somewhere. `hold-N`: N bytes of the body, and then
    nothing.
    """
    for served in itertools.count():
        head = peer.read_head()
        if not head.endswith(b'\r\n\r\n'):
            return
        number, framing, length, option = head.split(b' ')[1].decode().strip('/').split('/')
        number, length = int(number), int(length)
        if option == 'drop' and served:
            return
        if option == 'reset' and number % 3 == 0:
            return peer.reset()
        if b'\r\nexpect: ' in head and option != 'early':
            peer.send(CONTINUE)
        if option == 'slow':
            time.sleep(0.001)
        received = b'' if option == 'early' else read_body(peer, head)
        if received is None:
            return
        field, wire = FRAMINGS[framing](content(number, length))
        response = b'HTTP/1.1 %b\r\nnumber: %d\r\nreceived: %b\r\n%b%b\r\n' % (
            b'403 Refused' if option == 'early' else b'200 OK', number,
            hashlib.sha256(received).hexdigest().encode(), field,
            b'connection: close\r\n' if option == 'early' else b'')
        if option == 'slow':
            for segment in (response[:9], response[9:], wire[:9], wire[9:-3], wire[-3:]):
                peer.send(segment)
                time.sleep(0.0005)
        elif option == 'reset':
            peer.send(response[:9] if number % 3 == 1 else response + wire[:-9])
            return peer.reset()
        elif option.startswith('hold-'):
            peer.send(response + wire[:int(option[5:])])
            if len(wire) > int(option[5:]) or framing == 'close':
                return peer.read_to_close()
        else:
            peer.send(response + wire)
        if option == 'early':
            return peer.read_to_close()
        if framing == 'close':
            return


def answer_names(sock):
    """A name server by which a name is 127.0.0.1, for a minute, and not IPv6; `none` does not exist, and of `silent` it
    says nothing"""
    while True:
        data, client = sock.recvfrom(512)
        time.sleep(0.002)  # or the answer would be there before anybody waits for it
        query = parse(data)
        question = query.qd[0]
        if question.name.lower().startswith(b'silent'):
            continue
        answers = (ResourceRecord(question.name, TYPES.A, 1, 60, bytes((127, 0, 0, 1))),)
        if question.qtype != TYPES.A or question.name.lower().startswith(b'none'):
            answers = ()
        sock.sendto(pack(Message(
            qid=query.qid, qr=RESPONSE, opcode=0, aa=0, tc=0, rd=0, ra=1, z=0, rcode=0 if answers else 3, qd=query.qd,
            an=answers, ns=(), ar=(),
        )), client)


def serve(listener, tls):
    def play(sock):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(sock.close)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(PATIENCE)
            peer = Peer(sock if tls is None else stack.enter_context(tls.wrap_socket(sock, server_side=True)))
            answer(peer)
            if peer.sock.fileno() != -1:
                peer.close()

    while True:
        threading.Thread(target=play, args=(listener.accept()[0],), daemon=True).start()


@contextlib.contextmanager
def server_process():
    """(port, port over TLS, port of a name server) of a process that ends with the block, or with this process"""
    with contextlib.ExitStack() as stack:
        plain, tls, names = (
            stack.enter_context(socket.socket(socket.AF_INET, kind))
            for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM))
        for sock in (plain, tls, names):
            sock.bind(('127.0.0.1', 0))
        for sock in (plain, tls):
            # Small, so that an upload waits; and then the window is told at once, not by a delayed ACK.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            sock.listen(4096)
        ports = [sock.getsockname()[1] for sock in (plain, tls, names)]
        context = tls_server()
        ended, end = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other threads, of which the child needs none
            pid = os.fork()
        if not pid:
            os.close(end)
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
            threading.stack_size(256 * 1024)
            for function in (functools.partial(serve, plain, None), functools.partial(serve, tls, context),
                             functools.partial(answer_names, names)):
                threading.Thread(target=function, daemon=True).start()
            os.read(ended, 1)
            os._exit(0)
        os.close(ended)
    try:
        yield ports
    finally:
        os.close(end)
        os.waitpid(pid, 0)


# -------- The client's side


UPLOAD = 100000  # more than what the buffers of a socket hold, so that sending it waits
DOWNLOAD = 9000


class Upload:
    """A body that can be sent again; whatever iterator of it was begun must be closed, once"""

    def __init__(self, data, piece=30000):
        self.pieces = [data[at:at + piece] for at in range(0, len(data), piece)]
        self.begun = []
        self.closed = []

    def __aiter__(self):
        return _Upload(self)


class _Upload:
    def __init__(self, upload):
        self.upload = upload
        self.pieces = None

    async def __anext__(self):
        if self.pieces is None:
            self.upload.begun.append(self)
            self.pieces = list(self.upload.pieces)
        await asyncio.sleep(0)
        if not self.pieces:
            raise StopAsyncIteration
        return self.pieces.pop(0)

    async def aclose(self):
        self.upload.closed.append(self)
        await asyncio.sleep(0)


# An exchange, as data: `upload` is how the request's body is framed, `option` the server's, `reads` how much of the
# response's body is read.
Exchange = collections.namedtuple('Exchange', 'tls upload framing option reads')
UPLOADS = {
    None: lambda length: (),
    'length': lambda length: ((b'content-length', b'%d' % length),),
    'chunked': lambda length: (),
    'expect': lambda length: ((b'content-length', b'%d' % length), (b'expect', b'100-continue')),
    'expect, chunked': lambda length: ((b'expect', b'100-continue'),),
}
PLAIN_GET = Exchange(False, None, 'length', '-', 'all')


class ExhaustionTestCase(AsyncTestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.context = client_context()
        cls.server = server_process()
        cls.port, cls.tls_port, cls.name_server = cls.server.__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)
        super().tearDownClass()

    def setUp(self):
        super().setUp()
        self.numbers = itertools.count(1)

    def new_pool(self, **kwargs):
        return Pool(**{'get_ssl_context': functools.partial(lambda context: context, self.context), **kwargs})

    def url(self, tls, host='127.0.0.1'):
        return f'https://{host}:{self.tls_port}/' if tls else f'http://{host}:{self.port}/'

    def resolver(self):
        """For Pool's `get_dns_resolver`: aiodnsresolver's, at the name server of this class"""
        async def get_nameservers(_, __):
            yield PATIENCE, ('127.0.0.1', self.name_server)

        async def get_host(_, __, ___):
            return None
        return Resolver(get_host=get_host, get_nameservers=get_nameservers)

    async def opened(self, request, exchange, length=DOWNLOAD, upload_length=UPLOAD, host='127.0.0.1'):
        """(body, content) of a numbered request: what comes, and what must come"""
        number = next(self.numbers)
        data = b'' if exchange.upload is None else content(number, upload_length)
        upload = None if exchange.upload is None else Upload(data)
        url = f'{self.url(exchange.tls, host)}{number}/{exchange.framing}/{length}/{exchange.option}'
        try:
            code, fields, body = await request(
                b'PUT' if upload else b'GET', url, body=upload, headers=UPLOADS[exchange.upload](len(data)))
        finally:
            if upload:
                self.assertEqual(upload.begun, upload.closed, 'each iterator that was begun is closed, once')
        fields = dict(fields)
        self.assertEqual((code, fields[b'number']), (b'403' if exchange.option == 'early' else b'200', b'%d' % number))
        if exchange.option != 'early':
            self.assertEqual(fields[b'received'].decode(), hashlib.sha256(data).hexdigest())
        return body, content(number, length)

    async def exchange(self, request, exchange, *args, **kwargs):
        """One numbered request, of which all that comes back must be its own"""
        body, expected = await self.opened(request, exchange, *args, **kwargs)
        if exchange.reads == 'late':
            await asyncio.sleep(0.005)  # what comes meanwhile finds nobody waiting
        if exchange.reads == 'part':
            self.assertTrue(expected.startswith(await body.__anext__()), 'the body is of another response')
            await body.aclose()
        else:
            self.assertTrue(await buffered(body) == expected, 'the body is of another response')
        counts['responses'] += 1

    def left(self):
        """What is in the loop"""
        readers, timers = self._readers_and_timers()
        return {*all_tasks(self.loop), *readers, *timers}

    async def assert_left(self, before, sockets=None):
        """Nothing more in the loop than there was, and no socket open"""
        def left():
            return self.left() - before, 0 if sockets is None else sockets.count_open()
        for _ in range(10):  # what was cancelled needs turns to end
            if left() == (set(), 0):
                return
            await asyncio.sleep(0)
        gc.collect()  # a body may be held by the frames of an exception
        await asyncio.sleep(0)
        self.assertEqual(left(), (set(), 0))


# -------- (a), (f): interrupted at every suspension


class Interrupted:
    """Awaits a coroutine, and has `how` interrupt it at its n-th suspension: `how(self, what it waits for)`"""

    def __init__(self, loop, coroutine, n, how):
        self.loop = loop
        self.coroutine = coroutine
        self.n = n
        self.how = how
        self.cancel_task = None  # the way to it is the wrapper's
        self.cancels = 0
        self.close = None        # the pool's
        self.closing = []
        self.reached = False

    def cancel(self, _=None):
        self.cancels += self.cancel_task() is not False  # it is where the task is done

    def __await__(self):
        try:
            waited = self.coroutine.send(None)
            for count in itertools.count():
                if count == self.n or count > self.n and self.how is again:
                    self.reached = True
                    self.how(self, waited)
                try:
                    value = yield waited
                except BaseException as error:
                    waited = self.coroutine.throw(error)
                else:
                    waited = self.coroutine.send(value)
        except StopIteration as stop:
            return stop.value


def when_done(interrupted, waited, callback):
    if waited is None:  # a bare yield, as of sleep(0)
        interrupted.loop.call_soon(callback, None)
    else:
        waited.add_done_callback(callback)


def pending(interrupted, waited):
    interrupted.cancel()


def twice(interrupted, waited):
    interrupted.cancel()
    interrupted.cancel()


def again(interrupted, waited):
    interrupted.cancel()  # and at each suspension that follows, such as in the body's `aclose`


def a_turn_before(interrupted, waited):
    time.sleep(0.002)  # what it waits for is there, but nobody was told
    interrupted.cancel()


def with_the_result(interrupted, waited):
    when_done(interrupted, waited, interrupted.cancel)


def let_go(interrupted, waited):
    interrupted.coroutine.close()  # as the garbage collector does it
    raise StopIteration


def a_turn_after(interrupted, waited):
    when_done(interrupted, waited, lambda _: interrupted.loop.call_soon(interrupted.cancel))


def next_turn_twice(interrupted, waited):
    interrupted.cancel()
    interrupted.loop.call_soon(interrupted.cancel)


def closed(interrupted, waited):
    interrupted.closing.append(interrupted.loop.create_task(interrupted.close()))


def closed_twice(interrupted, waited):
    closed(interrupted, waited)
    closed(interrupted, waited)


def closed_elsewhere(interrupted, waited):
    in_a_thread(in_another_loop, interrupted.close)


def in_a_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def in_another_loop(coroutine_function):
    loop = new_event_loop()
    loop.run_until_complete(coroutine_function())
    loop.close()


CANCELLATIONS = (pending, twice, again, a_turn_before, with_the_result, a_turn_after, next_turn_twice)
CLOSES = (closed, closed_twice, closed_elsewhere)


async def awaited(awaitable):
    return await awaitable


# The ways that a cancellation takes. Each returns what the coroutine does, or raises as it should.


async def by_task(interrupted):
    interrupted.cancel_task = current_task().cancel
    return await interrupted


async def by_wait_for(interrupted):
    interrupted.cancel_task = current_task().cancel
    return await asyncio.wait_for(awaited(interrupted), PATIENCE)


async def by_timeout(interrupted):
    async with asyncio.timeout(None) as timeout:
        interrupted.cancel_task = lambda: timeout.reschedule(interrupted.loop.time())
        return await interrupted


async def by_group(interrupted):
    sibling = interrupted.loop.create_future()
    interrupted.cancel_task = lambda: sibling.set_exception(KeyError('of a sibling'))
    async with asyncio.TaskGroup() as group:
        group.create_task(awaited(sibling))
        task = group.create_task(awaited(interrupted))
        task.add_done_callback(lambda _: sibling.cancel())
        return await task


# Each with what it raises where the cancellation wins, and what `task.cancelling()` is afterwards, for so many cancels:
# not judged of groups, which in some Pythons leave it at 1.
WAYS = (
    (by_task, asyncio.CancelledError, lambda cancels: cancels),
    (by_wait_for, asyncio.CancelledError, lambda cancels: cancels),
    (by_timeout, asyncio.TimeoutError, lambda cancels: 0),
    (by_group, getattr(builtins, 'BaseExceptionGroup', None), None),
)
HAS_TIMEOUT = hasattr(asyncio, 'timeout')


def exchanges():
    for tls, upload, framing, reads in itertools.product((False, True), UPLOADS, FRAMINGS, ('all', 'part', 'late')):
        yield Exchange(tls, upload, framing, 'slow', reads)
    for tls, upload, framing in itertools.product((False, True), list(UPLOADS)[1:], ('length', 'chunked')):
        yield Exchange(tls, upload, framing, 'early', 'all')


def interruptions():
    for way, error, cancelling in WAYS if HAS_TIMEOUT else WAYS[:2]:
        for how in CANCELLATIONS if way is by_task else (pending, with_the_result):
            yield how, way, error, cancelling
    for how in CLOSES:
        yield how, by_task, None, lambda cancels: 0


def fake_resolver():
    async def resolve(name, record_type):
        await turns(2)
        if record_type != TYPES.A:
            raise DnsRecordDoesNotExist()
        return (IPv4AddressExpiresAt('127.0.0.1', 0),)

    async def clear_cache():
        await asyncio.sleep(0)

    return resolve, clear_cache


class InterruptionTests(ExhaustionTestCase):

    async def sweep(self, exchange, connection, interruption, host='127.0.0.1', **kwargs):
        """Interrupts an exchange at each of its suspensions in turn, until it has no more"""
        how, way, error, cancelling = interruption
        before = self.left()
        for n in itertools.count():
            sockets = ClientSockets(SMALL_SEND_BUFFER)
            request, close = self.new_pool(
                set_sock_options=sockets, recv_bufsize=4096, expect_timeout=PATIENCE, **kwargs)
            if connection != 'fresh':
                await self.exchange(request, PLAIN_GET._replace(tls=exchange.tls), host=host)
            interrupted = Interrupted(self.loop, self.exchange(
                request, exchange._replace(option='drop') if connection == 'resent' else exchange, host=host), n, how)
            interrupted.close = close
            was_cancelled, cancels, count_open = await self.judged(interrupted, way, error, sockets)
            if cancels is not None and cancelling is not None:
                self.assertEqual(cancels, cancelling(interrupted.cancels))
            if was_cancelled:
                self.assertTrue(interrupted.reached)
                if way is by_task and exchange.reads != 'late':  # else the body may have been the caller's to close
                    self.assertEqual(count_open, 0)
            else:
                is_late = not interrupted.reached or how in (*CLOSES, a_turn_after) or way is not by_task
                self.assertTrue(is_late, 'a cancellation was swallowed')
            if how in CLOSES and interrupted.reached:
                await asyncio.gather(*interrupted.closing)
                self.assertEqual(sockets.count_open(), 0, 'a pool that is closed keeps no connection')
            else:
                await self.exchange(request, PLAIN_GET._replace(tls=exchange.tls), host=host)
            await close()
            await self.assert_left(before, sockets)
            counts['interruptions'] += interrupted.reached
            if not interrupted.reached:
                break
        self.assertGreater(n, 0, 'it never waits')

    async def judged(self, interrupted, way, error, sockets):
        """(whether it was cancelled, and so raised this error; the task's `cancelling()`; how many sockets were open
        while the task, which may hold all that took part, was there)"""
        task = self.loop.create_task(way(interrupted))
        await asyncio.wait([task])
        interrupted.cancel_task = None  # it refers to the task, and to the frames of its exception
        cancels = task.cancelling() if hasattr(task, 'cancelling') else None
        count_open = sockets.count_open()
        if task.cancelled():
            self.assertIs(error, asyncio.CancelledError)
        elif task.exception() is not None:
            if error in (None, asyncio.CancelledError) or not isinstance(task.exception(), error):
                raise task.exception()
        else:
            return False, cancels, count_open
        return True, cancels, count_open

    async def test_an_exchange_may_be_interrupted_at_every_suspension(self):
        for exchange, connection, interruption in some(113, itertools.product(
                exchanges(), ('fresh', 'reused', 'resent'), interruptions())):
            with self.subTest((exchange, connection, names_of(interruption))):
                await self.sweep(exchange, connection, interruption)

    async def test_a_look_up_may_be_interrupted_at_every_suspension(self):
        for get_dns_resolver, tls, interruption in some(1, itertools.product(
                (fake_resolver, self.resolver), (False, True), interruptions())):
            with self.subTest((get_dns_resolver.__name__, tls, names_of(interruption))):
                await self.sweep(Exchange(tls, None, 'length', '-', 'all'), 'fresh', interruption, 'localhost',
                                 get_dns_resolver=get_dns_resolver)

    async def test_of_two_look_ups_of_one_name_the_other_is_not_disturbed(self):
        for host, expected in (('localhost', None), ('none.test', HttpDnsError)):
            for first, how in itertools.product((True, False), CANCELLATIONS):
                for n in itertools.count():
                    with self.subTest(host, first=first, how=how.__name__, n=n):
                        before = self.left()
                        request, close = self.new_pool(get_dns_resolver=self.resolver)
                        exchanges = [self.exchange(request, PLAIN_GET, host=host) for _ in range(2)]
                        interrupted = Interrupted(self.loop, outcome(exchanges[not first]), n, how)
                        exchanges[not first] = by_task(interrupted)
                        results = await asyncio.gather(*map(outcome, exchanges))
                        self.assertIs(results[first], expected)
                        self.assertIn(results[not first], (expected, asyncio.CancelledError))
                        interrupted.cancel_task = None
                        await close()
                        await self.assert_left(before)
                    if not interrupted.reached:
                        break
                    counts['interruptions'] += 1

    async def test_a_pool_may_be_closed_by_another_thread_between_any_two_lines(self):
        code_of_pool = {each for each in Pool.__code__.co_consts if hasattr(each, 'co_code')}
        get = PLAIN_GET._replace(option='slow')
        for n in itertools.count():
            sockets = ClientSockets()
            request, close = self.new_pool(set_sock_options=sockets, get_dns_resolver=fake_resolver)
            await asyncio.gather(*[self.exchange(request, get, host='localhost') for _ in range(2)])
            lines = itertools.count()
            reached = False

            def trace(frame, event, _, n=n, close=close, lines=lines):
                nonlocal reached
                if frame.f_code not in code_of_pool:
                    return None
                if event == 'line' and next(lines) == n:
                    reached = True
                    in_a_thread(in_another_loop, close)
                return trace
            previous = sys.gettrace()
            sys.settrace(trace)
            try:
                result = await outcome(self.exchange(request, get, host='localhost'))
            finally:
                sys.settrace(previous)
            with self.subTest(n=n):
                self.assertIn(result, (None, HttpRequestError))
                if reached:
                    await turns()
                    self.assertEqual(sockets.count_open(), 0)
            await close()
            if not reached:
                break
            counts['interruptions'] += 1


def names_of(interruption):
    return [function.__name__ for function in interruption[:2]]


# -------- (b), (d): under load


async def ended(task):
    """Whether the task was cancelled; what it raises but for that, it raises"""
    await asyncio.wait([task])
    return task.cancelled() or bool(task.result())


async def cancelled_once(loop, coroutine, seconds):
    task = loop.create_task(coroutine)
    await asyncio.sleep(seconds)
    task.cancel()
    return await ended(task)


async def cancelled_twice(loop, coroutine, seconds):
    task = loop.create_task(coroutine)
    for _ in range(2):
        await asyncio.sleep(seconds / 2)
        task.cancel()
    return await ended(task)


async def out_of_time(awaitable):
    try:
        await awaitable
    except asyncio.TimeoutError as error:
        if isinstance(error, HttpError):
            raise
        return True
    return False


async def waited_for(loop, coroutine, seconds):
    return await out_of_time(asyncio.wait_for(coroutine, seconds))


async def timed_out(loop, coroutine, seconds):
    async def run():
        async with asyncio.timeout(seconds):
            await coroutine
    return await out_of_time(run())


async def with_a_sibling_that_fails(loop, coroutine, seconds):
    async def fail():
        await asyncio.sleep(seconds)
        raise KeyError('of a sibling')
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(coroutine)
            sibling = group.create_task(fail())
            await asyncio.wait([task])
            sibling.cancel()
    except builtins.BaseExceptionGroup as errors:
        if [type(error) for error in errors.exceptions] != [KeyError]:
            raise
        return True
    return await ended(task)


class LoadTests(ExhaustionTestCase):

    async def test_cancellations_at_random_times_harm_nobody_else(self):
        chance = random.Random(5)
        request, close = self.new_pool(recv_bufsize=8192, socket_timeout=PATIENCE)
        before = self.left()
        ways = (cancelled_once, cancelled_twice, waited_for) + \
            ((timed_out, with_a_sibling_that_fails) if HAS_TIMEOUT else ())
        cancelled = 0

        def at_random():
            upload = chance.choice(list(UPLOADS))
            option = chance.choice(('-', '-', 'slow', 'drop') + (('early',) if upload else ()))
            exchange = Exchange(
                chance.random() < 0.5, upload, chance.choice(['length', 'chunked'] + ['close'] * (option != 'early')),
                option, chance.choice(('all', 'all', 'part', 'late')))
            return self.exchange(request, exchange, chance.randrange(10, 30000), chance.randrange(1, 60000))

        async def cancel():
            nonlocal cancelled
            while cancelled < size.cancellations:
                was_cancelled = await chance.choice(ways)(self.loop, at_random(), chance.random() ** 3 * 0.2)
                cancelled += was_cancelled
                counts['cancellations'] += was_cancelled
                if size.every_case and was_cancelled and not cancelled % 1000:
                    tell(dict(counts))

        async def do_not_cancel():
            while cancelled < size.cancellations:
                await at_random()
        await asyncio.gather(*[cancel() for _ in range(56)], *[do_not_cancel() for _ in range(8)])
        await close()
        await self.assert_left(before)

    async def test_many_at_once(self):
        before = self.left()
        for tls, at_once in ((False, size.at_once), (True, size.tls_at_once)):
            blocks = []
            for _ in range(size.rounds):
                sockets = ClientSockets()
                request, close = self.new_pool(set_sock_options=sockets, socket_timeout=PATIENCE)
                for resets in (0, 2):
                    results = await asyncio.gather(*[outcome(self.exchange(request, Exchange(
                        tls, None, framing, 'reset' if resets and not n % resets else 'slow', 'all')))
                        for n, framing in zip(range(at_once), itertools.cycle(FRAMINGS))])
                    # A third of those that are reset is so before the first byte.
                    expected = collections.Counter({None: at_once}) if not resets else collections.Counter({
                        None: at_once // 2, HttpConnectionClosedError: at_once // 2})
                    self.assertEqual(collections.Counter(results), expected)
                self.assertLessEqual(sockets.count_open(), at_once)
                await close()
                self.assertEqual(sockets.count_open(), 0)
                del request, close, sockets, results
                gc.collect()
                blocks.append(sys.getallocatedblocks())
            self.assertLess(blocks[-1] - blocks[-2], at_once, f'the memory grows: {blocks}')
        await self.assert_left(before)


# -------- (c): nothing left to open


@contextlib.contextmanager
def descriptors(spare):
    """In the block, no more than so many may be opened"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')) + spare + 50, hard))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(taken.pop())
        for descriptor in taken:
            stack.callback(os.close, descriptor)
        yield


async def error_of(awaitable):
    try:
        await awaitable
    except Exception as error:
        return error
    return None


# What fails: of the socket, or of the loop; whether by what it returns, and with which errors; and whether it does so
# only while connecting.
Fault = collections.namedtuple('Fault', 'of name errors returns connecting')
FAULTS = (
    Fault('socket', '__init__', (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM), False, True),
    Fault('socket', 'setsockopt', (errno.EPERM, errno.ENOPROTOOPT, errno.EINVAL), False, True),
    Fault('socket', 'connect_ex', (
        errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EAGAIN, errno.EADDRINUSE,
    ), True, True),
    Fault('socket', 'getsockopt', (errno.ECONNREFUSED, errno.ETIMEDOUT), True, True),
    Fault('socket', 'recv', (errno.ENOMEM, errno.EIO), False, False),
    Fault('socket', 'send', (errno.ENOBUFS, errno.ENOMEM), False, False),
    Fault('loop', 'add_reader', (errno.ENOSPC, errno.ENOMEM), False, False),
    Fault('loop', 'add_writer', (errno.ENOSPC, errno.ENOMEM), False, False),
)


class Failing:
    """In its block, a function fails from its n-th call on"""

    def __init__(self, target, fault, number, n):
        self.target = target
        self.fault = fault
        self.number = number
        self.n = n
        self.reached = False

    def __enter__(self):
        real = getattr(self.target, self.fault.name)
        calls = itertools.count()

        def function(*args):
            if next(calls) < self.n:
                return real(*args)
            self.reached = True
            if self.fault.returns:
                return self.number
            raise OSError(self.number, os.strerror(self.number))
        self.patch = mock.patch.object(self.target, self.fault.name, function)
        self.patch.start()
        return self

    def __exit__(self, *_):
        self.patch.stop()


class ExhaustionTests(ExhaustionTestCase):

    async def test_without_descriptors_those_that_cannot_connect_fail_and_the_others_go_on(self):
        before = self.left()
        request, close = self.new_pool(get_dns_resolver=self.resolver)
        get, get_tls = PLAIN_GET, PLAIN_GET._replace(tls=True)
        both = (get, get_tls)
        busy = [await self.opened(request, each, 2 ** 20) for each in both * 4]
        for body, expected in busy:
            self.assertTrue(expected.startswith(await body.__anext__()))
        for each in both:
            await self.exchange(request, each)  # and now it is idle

        async def file():
            with open(os.devnull, 'rb') as opened:
                yield opened.read() or b'x'
        for name in ('a.test', 'b.test'):  # the first makes the resolver, too
            with descriptors(0):
                for each in both:
                    errors = await asyncio.gather(*[error_of(self.exchange(request, each)) for _ in range(20)])
                    errors = list(filter(None, errors))
                    self.assertTrue(10 < len(errors) < 20, 'the idle ones serve')
                    for error in errors:
                        self.assertEqual((type(error), error.__cause__.errno), (HttpConnectionError, errno.EMFILE))
                error = await error_of(self.exchange(request, get, host=name))
                self.assertEqual((type(error), error.__cause__.errno), (HttpDnsError, errno.EMFILE))
                for body, expected in (busy.pop(), busy.pop()):
                    self.assertTrue(expected.endswith(await buffered(body)), 'the others are unharmed')
                began = time.process_time()
                await asyncio.sleep(0.3)
                self.assertLess(time.process_time() - began, 0.2, 'it spins')
                # The caller's own error, as it is.
                error = await error_of(request(b'PUT', self.url(False) + '1/length/0/-', body=file()))
                self.assertEqual((type(error), error.errno), (OSError, errno.EMFILE))
            error = errors = None
            for each in both:
                await asyncio.gather(*[self.exchange(request, each) for _ in range(5)])
            await self.exchange(request, get, host=name)
        for body, expected in busy:
            self.assertTrue(expected.endswith(await buffered(body)))
        await close()
        del body, busy
        await self.assert_left(before)

    async def test_authorities_that_cannot_be_opened_are_not_forgotten_for_good(self):
        # The one descriptor is the socket's: the file with the authorities cannot be opened.
        with tempfile.NamedTemporaryFile() as file:
            CA.cert_pem.write_to_path(file.name)
            with mock.patch.dict(os.environ, SSL_CERT_FILE=file.name):
                request, close = Pool()
                get = PLAIN_GET._replace(tls=True)
                with descriptors(1):
                    error = await error_of(self.exchange(request, get))
                self.assertIs(type(error), HttpTlsError)
                await self.exchange(request, get)
                await close()

    async def test_whatever_call_of_the_system_fails_is_an_error_and_leaves_nothing(self):
        for fault, exchange in some(1, itertools.product(FAULTS, (
                Exchange(False, None, 'length', '-', 'late'), Exchange(False, 'length', 'length', 'slow', 'late'),
                Exchange(True, 'chunked', 'chunked', 'slow', 'all'), Exchange(True, None, 'close', 'slow', 'late')))):
            for number in fault.errors:
                with self.subTest((fault, number, exchange)):
                    await self.fail_at_each_call(fault, number, exchange)

    async def fail_at_each_call(self, fault, number, exchange):
        before = self.left()
        for n in range(100):
            sockets = ClientSockets(SMALL_SEND_BUFFER)
            request, close = self.new_pool(set_sock_options=sockets, socket_timeout=5)
            target = lowhaio._Socket if fault.of == 'socket' else self.loop
            with Failing(target, fault, number, n) as failing, mock.patch('lowhaio.time_out') as expire:
                expire.side_effect = lambda waiter, *_: waiter.set_exception(AssertionError('for what did it wait?'))
                error = await error_of(self.exchange(request, exchange))
            if error is not None:
                self.assertTrue(failing.reached)
                if not isinstance(error, HttpConnectionError if fault.connecting else HttpError):
                    raise error
                # With the error at hand, whose frames may refer to all that took part.
                self.assertEqual(sockets.count_open(), 0, f'after call {n}')
            await self.exchange(request, PLAIN_GET._replace(tls=exchange.tls))
            await close()
            await self.assert_left(before, sockets)
            if not failing.reached:
                break
        self.assertGreater(n, 0, 'it is never called')


# -------- (e): bodies that are given up


async def read_of(body, length):
    """Reads so much, of what is there"""
    while length:
        length -= len(await body.__anext__())


async def dropped_unread(held, length, test):
    pass


async def dropped(held, length, test):
    await read_of(held[0], length)


async def broken_off(held, length, test):
    if length:
        async for piece in held[0]:
            length -= len(piece)
            if not length:
                break


async def given_up_by_an_exception(held, length, test):
    with contextlib.suppress(KeyError):
        if length:
            async for piece in held[0]:
                length -= len(piece)
                if not length:
                    raise KeyError('of the caller')


async def aclosed(held, length, test):
    await read_of(held[0], length)
    for _ in range(2):
        await held[0].aclose()
        test.assertIs(await outcome(held[0].__anext__()), StopAsyncIteration)


async def in_a_cycle(held, length, test):
    await read_of(held[0], length)
    cycle = [held.pop()]
    cycle.append(cycle)
    del cycle
    gc.collect()


async def in_another_thread(held, length, test):
    await read_of(held[0], length)
    await in_thread(held.clear)


async def as_an_argument_of_a_coroutine_that_never_ran(held, length, test):
    await read_of(held[0], length)
    coroutine = buffered(held.pop())
    coroutine.close()


async def by_a_reader_that_is_cancelled(held, length, test):
    await read_of(held[0], length)
    task = test.loop.create_task(buffered(held[0]))
    await turns(2)
    task.cancel()
    test.assertIs(await outcome(task), asyncio.CancelledError)
    test.assertIs(await outcome(held[0].__anext__()), HttpConnectionClosedError, 'it must not look complete')


async def aclosed_under_a_reader(held, length, test):
    await read_of(held[0], length)
    task = test.loop.create_task(buffered(held[0]))
    await turns(2)
    await held[0].aclose()
    test.assertIs(await outcome(task), HttpConnectionClosedError)
    test.assertIs(await outcome(held[0].__anext__()), StopAsyncIteration)


async def aclosed_as_the_reader_is_cancelled(held, length, test):
    await read_of(held[0], length)
    task = test.loop.create_task(buffered(held[0]))
    await turns(2)
    await held[0].aclose()
    task.cancel()
    test.assertIs(await outcome(task), asyncio.CancelledError)


async def by_the_first_of_two_readers(held, length, test):
    await read_of(held[0], length)
    task = test.loop.create_task(held[0].__anext__())
    await turns(2)
    test.assertIs(await outcome(held[0].__anext__()), HttpDataError)
    test.assertFalse(task.done(), 'the first is not disturbed')
    task.cancel()
    test.assertIs(await outcome(task), asyncio.CancelledError)


async def layered(body):
    async for piece in body:
        yield piece


async def aclosed_behind_a_generator(held, length, test):
    generator = layered(held.pop())
    await read_of(generator, length)
    await generator.aclose()


async def dropped_behind_a_generator(held, length, test):
    await read_of(layered(held.pop()), length)


WAYS_OF_GIVING_UP = (
    dropped_unread, dropped, broken_off, given_up_by_an_exception, aclosed, in_a_cycle, in_another_thread,
    as_an_argument_of_a_coroutine_that_never_ran, aclosed_behind_a_generator, dropped_behind_a_generator,
)
# Those that wait for more than is there.
WAYS_OF_WAITING = (
    by_a_reader_that_is_cancelled, aclosed_under_a_reader, aclosed_as_the_reader_is_cancelled,
    by_the_first_of_two_readers,
)


def stages():
    """(framing, how much of the body's wire has come, how much of the body that is, whether it is all)"""
    data = content(1, 10)
    for framing in FRAMINGS:
        _, wire = FRAMINGS[framing](data)
        for at in range(len(wire) + 1):
            # Two chunks of 5, after the 3 bytes of each chunk-size line.
            length = at if framing != 'chunked' else sum(sorted((0, at - begin, 5))[1] for begin in (3, 13))
            yield framing, at, length, at == len(wire) and framing != 'close'


# Programs that end with bodies open. Each of `urls` gives the half of a body, and then nothing.
PROGRAM = '''
import asyncio, contextlib, functools, gc, logging, sys
from aiodnsresolver import Resolver
from lowhaio import Pool, buffered

# Of a slow machine, in the debug mode that comes with -X dev.
logging.getLogger('asyncio').addFilter(lambda record: not record.getMessage().startswith('Executing'))

async def get_nameservers(_, __):
    yield 30, ('127.0.0.1', int(sys.argv[1]))

request, close = Pool(get_dns_resolver=functools.partial(Resolver, get_nameservers=get_nameservers))
urls = sys.argv[2:]
kept = []

async def opened(begun=True):
    for url in urls:
        kept.append((await request(b'GET', url))[2])
        if begun:
            await kept[-1].__anext__()

async def upload():
    try:
        while True:
            yield bytes(65536)
    finally:
        kept.append('ended')

def in_flight():
    loop = asyncio.get_event_loop()
    tasks = [loop.create_task(coroutine) for coroutine in (
        request(b'GET', 'http://silent.test/'), request(b'GET', 'https://silent.test/'), *map(buffered, kept),
        *[request(b'PUT', url, body=upload()) for url in urls])]
    return asyncio.wait(tasks, timeout=0.1)

async def opened_and_failed():
    await opened()
    raise KeyError('of the caller')

async def opened_and_in_flight():
    await opened()
    await in_flight()

async def layered(body):
    async for piece in body:
        yield piece

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
'''
ENDS = {
    'the loop is closed, and then the program ends': '''
        loop.run_until_complete(opened())
        loop.close()
    ''',
    'nothing was begun': '''
        loop.run_until_complete(opened(begun=False))
        loop.close()
    ''',
    'dropped when the loop was closed': '''
        loop.run_until_complete(opened())
        loop.close()
        kept.clear()
    ''',
    'dropped while the loop stands still': '''
        loop.run_until_complete(opened())
        kept.clear()
        loop.close()
    ''',
    'dropped with all else, in a cycle': '''
        loop.run_until_complete(opened())
        kept.append(kept)
        del kept, request, close, opened, opened_and_failed, opened_and_in_flight, in_flight, upload
        loop.close()
        gc.collect()
    ''',
    'the loop is stopped from within': '''
        async def main():
            await opened()
            loop.stop()
        task = loop.create_task(main())
        loop.run_forever()
        loop.close()
    ''',
    'aclosed in a later loop': '''
        loop.run_until_complete(opened())
        loop.close()
        later = asyncio.new_event_loop()
        for body in kept:
            later.run_until_complete(body.aclose())
        later.run_until_complete(close())
        later.close()
    ''',
    'a look-up that was cancelled was the last thing': '''
        task = loop.create_task(request(b'GET', 'http://silent.test/'))
        loop.call_later(0.05, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.close()
        gc.collect()
    ''',
}
# As the above, by asyncio.run, which cancels what is in flight.
ENDS_OF_RUN = {
    'asyncio.run, with requests, uploads, readers and look-ups in flight': 'asyncio.run(opened_and_in_flight())',
    'asyncio.run ends in an exception': '''
        with contextlib.suppress(KeyError):
            asyncio.run(opened_and_failed())
    ''',
    'asyncio.run ends in a KeyboardInterrupt': '''
        async def main():
            await opened_and_in_flight()
            raise KeyboardInterrupt
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(main())
    ''',
    'asyncio.run, with the bodies behind generators': '''
        async def main():
            await opened(begun=False)
            kept.extend([layered(body) for body in kept])
            for generator in kept[len(urls):]:
                await generator.__anext__()
        asyncio.run(main())
    ''',
    'two loops, one after the other': '''
        asyncio.run(opened())
        asyncio.run(opened())
        asyncio.run(close())
    ''',
}


class AbandonmentTests(ExhaustionTestCase):

    async def test_a_body_may_be_given_up_at_each_stage(self):
        cases = [(way, stage) for way, stage in itertools.product(WAYS_OF_GIVING_UP + WAYS_OF_WAITING, stages())
                 if way in WAYS_OF_GIVING_UP or not stage[3]]
        for (way, (framing, at, length, complete)), tls in some(7, itertools.product(cases, (False, True))):
            with self.subTest((way.__name__, framing, at, tls)):
                before = self.left()
                sockets = ClientSockets()
                request, close = self.new_pool(set_sock_options=sockets)
                held = [(await self.opened(
                    request, Exchange(tls, None, framing, f'hold-{at}', None), len(content(1, 10))))[0]]
                await way(held, length, self)
                held.clear()
                await turns(3)
                if not complete:
                    self.assertEqual(sockets.count_open(), 0)
                await self.exchange(request, PLAIN_GET._replace(tls=tls))
                await close()
                await self.assert_left(before, sockets)

    def test_a_loop_or_the_interpreter_may_end_with_bodies_open(self):
        ends = {**ENDS, **(ENDS_OF_RUN if hasattr(asyncio, 'run') else {})}
        urls = [f'{self.url(tls)}{number}/{framing}/40/hold-20' for number, (tls, framing) in enumerate(
            itertools.product((False, True), FRAMINGS))]
        with tempfile.NamedTemporaryFile() as file:
            CA.cert_pem.write_to_path(file.name)
            environment = dict(
                os.environ, SSL_CERT_FILE=file.name, PYTHONPATH=os.path.dirname(os.path.abspath(lowhaio.__file__)))
            processes = [(name, subprocess.Popen(
                [sys.executable, '-X', 'dev', '-W', 'error', '-c', PROGRAM + textwrap.dedent(end),
                 str(self.name_server), *urls], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
                for name, end in ends.items()]
            for name, process in processes:
                output, _ = process.communicate(timeout=harness.TEST_SECONDS)
                with self.subTest(name):
                    self.assertEqual((output.decode(), process.returncode), ('', 0))
                counts['cases'] += 1


# -------- The long form


def main():
    global size
    parser = argparse.ArgumentParser(description='Cancellation and exhaustion, in the long form')
    parser.add_argument('--quick', action='store_true', help='the form that test.py runs')
    parser.add_argument('tests', nargs='*', help='such as LoadTests.test_many_at_once; all, if there are none')
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else LONG
    harness.TEST_SECONDS = 3600
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    begun = time.monotonic()
    names = arguments.tests or [name for name, value in globals().items() if name.endswith('Tests')]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names, sys.modules[__name__])
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    failures = len(result.failures) + len(result.errors)
    tell(f'{"failed" if failures else "passed"}: ' + ', '.join(f'{count} {what}' for what, count in counts.items()) +
         f', {time.monotonic() - begun:.0f} seconds, {failures} failures')
    sys.exit(bool(failures))


if __name__ == '__main__':
    main()
