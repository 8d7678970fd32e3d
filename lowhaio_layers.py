"""Layers for lowhaio: what people expect of a client, as functions around `request`

    request, close = Pool()
    request = limited(request, total=100, per_origin=10)
    request = authorised(request, 'https://api.example.com/', bearer(token))
    request = decompressed(request)
    request = retried(request)
    request = cookied(request)
    request = redirectable(request)

A layer takes a `request` and returns one. None knows of another; the order is the one above, and docs/layers.md says
what another order means. What holds for each of them:

1. It passes on the keywords that it does not know, and the caller's headers in their order.
2. Before it sends again, it closes the response it had.
3. A body that it wraps is an object, not a generator: `aclose` ends another task's read, and `when_done`, `reused` and
   `sent_all` are those of the body inside.
4. Once an attempt was sent, no later error says that nothing was.
5. A body is sent again only if it is `replayable`.
6. Credentials belong to an origin, which is an argument, and go nowhere else.

The file has what the layers share; the layers, each readable alone; bodies of requests; and readers of responses.
"""
import asyncio
import base64
import collections
import contextlib
import datetime
import email.utils
import functools
import hashlib
import http.cookiejar
import itertools
import json
import logging
import mimetypes
import os
import random
import re
import time
import urllib.parse
import zlib

from lowhaio import (
    IDEMPOTENT,
    HttpBodyError,
    HttpConnectionClosedError,
    HttpConnectionError,
    HttpConnectionTimeout,
    HttpDataError,
    HttpError,
    HttpProtocolError,
    HttpRedirectError,
    HttpRequestError,
    check_count,
    check_function,
    check_seconds,
    describe,
    is_async_iterable,
    is_field_value,
    is_ip_address,
    is_token,
    pairs_of,
    parse_length,
    place,
    remember,
    replayable,
    runs_elsewhere,
    split_url,
    streamed,
    url_with_params,
    with_facts,
)

__all__ = (
    'retried', 'fetched', 'decompressed', 'limited', 'authorised', 'basic', 'bearer', 'digest', 'cookied', 'logged',
    'json_body', 'form', 'multipart', 'file_body', 'json_of', 'lines', 'server_sent_events', 'Event', 'saved',
    'HttpLimitTimeout', 'HttpTooLarge', 'HttpStatusError',
)

# Bytes of a piece that `decompressed` hands over: brotli's blocks are of 98,272 where 65,536 are asked for.
MAX_PIECE = 65536
# Bytes that a decoder is given at once: what it leaves of them is copied for each piece, and for each member.
MAX_FED = 16384
# A response has had more than one content coding only where somebody erred, or attacked.
MAX_CODINGS = 3
# Items from one received piece until the event loop has a turn: 4 MiB of decompressed zeros take 4 ms.
ITEMS_BEFORE_YIELD = 64
# Bytes of a whole body, a line or an event, where the caller does not say.
MAX_WHOLE = 2 ** 26
MAX_LINE = 2 ** 24
# Bytes of a set-cookie field. Browsers take 4,096 of name and value, and 1,024 of an attribute. RFC 6265 §6.1
MAX_COOKIE = 8192
# Of the urls that were taken apart.
MAX_REMEMBERED = 1024
MAX_REMEMBERED_LENGTH = 4096


# -------- Errors


class HttpLimitTimeout(HttpConnectionTimeout):
    """`limited` had no slot free in time: nothing was sent, and to try again at once would be to queue again"""


class HttpTooLarge(HttpDataError):
    """A body, a line or an event is longer than the caller's bound; its connection is closed"""
    answered = True


class HttpStatusError(HttpDataError):
    """A response whose code is not one that its reader can use; it has its `code` and `headers`"""
    answered = True

    def __init__(self, message, code=b'', headers=()):
        super().__init__(message)
        self.code = code
        self.headers = headers


@contextlib.contextmanager
def after_an_attempt(earlier, answered):
    """In which an HttpError is of a later attempt, where an earlier one was sent: it must not say that nothing was"""
    try:
        yield
    except HttpDataError as error:
        error.answered = error.answered or answered
        raise
    except HttpError as error:
        raise with_facts(HttpDataError(f'After {earlier}: {describe(error)}'), False, answered) from error


# -------- What layers share


def values(headers, name):
    """The values of a header, by its name in lower case"""
    return [value for each, value in headers if isinstance(each, bytes) and each.lower() == name]


def parts_of_urls():
    """`split_url` that remembers: 0.1 µs for a url that it knows, instead of 8"""
    known = functools.lru_cache(MAX_REMEMBERED)(split_url)

    def parts_of(url):
        return known(url) if type(url) is str and len(url) <= MAX_REMEMBERED_LENGTH else split_url(url)

    return parts_of


def with_own_params(url, params):
    """The url with its params, which may be an iterator, so that it can be sent more than once"""
    return url_with_params(url, params) if params else url


async def next_piece(body):
    """The next of a body's pieces, or b'' at its end"""
    try:
        return await body.__anext__()
    except StopAsyncIteration:
        return b''


class WrappedBody:
    """A response's body around another: the connection is the inner one's affair"""
    __slots__ = ('_body',)

    def __init__(self, body):
        self._body = body

    @property
    def reused(self):
        return self._body.reused

    @property
    def sent_all(self):
        return self._body.sent_all

    def when_done(self, callback):
        self._body.when_done(callback)

    def __aiter__(self):
        return self

    async def aclose(self):
        await self._body.aclose()


class FedBody(WrappedBody):
    """A body whose pieces go through `feed`, which is told of the end by b''

    `feed` returns an iterable of what is to be handed over; None in it is a step without a result.
    """
    __slots__ = ('_feed', '_items', '_count', '_is_read', '_failure')

    def __init__(self, body, feed):
        super().__init__(body)
        self._feed = feed  # None once the body ended, or was closed
        self._items = iter(())
        self._count = 0
        self._is_read = False
        self._failure = None  # a function that makes the error that each further read raises

    async def __anext__(self):
        if self._is_read:
            raise self._with_facts(HttpDataError('The body is being read by another task'))
        self._is_read = True
        try:
            return await self._next()
        finally:
            self._is_read = False

    async def _next(self):
        while True:
            self._count += 1
            if self._count >= ITEMS_BEFORE_YIELD:
                self._count = 0
                await asyncio.sleep(0)
            try:
                item = next(self._items, END)
            except HttpDataError as error:
                self._with_facts(error)
                self._give_up(functools.partial(type(error), *error.args))
                await self._body.aclose()
                raise
            if item is END:
                if self._failure is not None:
                    raise self._with_facts(self._failure())
                if self._feed is None:
                    raise StopAsyncIteration
                data = await next_piece(self._body)
                if self._feed is not None:  # it was not closed meanwhile
                    self._items = iter(self._feed(data))
                    self._feed = self._feed if data else None
            elif item is not None:
                return item

    def _with_facts(self, error):
        return with_facts(error, getattr(self._body, 'reused', False), answered=True)

    def _give_up(self, failure):
        self._feed, self._items, self._failure = None, iter(()), failure

    async def aclose(self):
        # A reader that waits for the inner body is told by that; one that waits for its turn would see an end.
        closed = functools.partial(HttpConnectionClosedError, 'The body was closed by another task')
        self._give_up(closed if self._is_read else self._failure)
        await super().aclose()


END = object()


async def read_within(body, most):
    """All of a body as bytes; more than `most` are an HttpTooLarge. Whatever happens, it is closed"""
    pieces, size = [], 0
    try:
        async for piece in body:
            size += len(piece)
            if size > most:
                raise HttpTooLarge(f'The body is longer than {most} bytes')
            pieces.append(piece)
    finally:
        await body.aclose()
    return b''.join(pieces)


# -------- retried, and fetched: the same request more than once


def jittered_delay(attempt):
    """Seconds to wait after so many attempts, at random: those who failed together do not come back together"""
    return random.uniform(0, min(8, 0.25 * 2 ** min(attempt, 5)))


def retried(request, attempts=4, statuses=(b'429', b'502', b'503', b'504'), backoff=jittered_delay, max_delay=60,
            idempotent=IDEMPOTENT):
    """A `request` that sends again what may be sent again

    - After an HttpConnectionError nothing was sent: any method is sent again. After another error, an idempotent one is
      whose body is `replayable`; never after HttpProtocolError, HttpBodyError, HttpRedirectError or HttpLimitTimeout.
    - After one of `statuses` an idempotent method is, and after 429, which is no answer, any; if the body can be.
    - `attempts`: in all. After the last its error is raised, or its response given.
    - `backoff(attempt)`: seconds to wait after the attempt of that number, from 1; a longer Retry-After stands.
    - `max_delay`: seconds; a response whose Retry-After is longer is given to the caller.
    - `idempotent`: the methods that may be done twice; add one that the server at hand makes so.
    """
    check_count('attempts', attempts, 1)
    check_function('backoff', backoff, 'of the number of the attempt')
    check_seconds('max_delay', max_delay, 0)
    statuses, idempotent = frozenset(statuses), frozenset(idempotent)

    async def retrying_request(method, url, params=(), headers=(), body=None, **kwargs):
        if attempts > 1:
            url, params, headers = with_own_params(url, params), (), pairs_of('headers', headers)
        sent = None  # of the last attempt of which anything was: what became of it, whether it was answered
        attempt = 0
        while True:
            attempt += 1
            try:
                code, fields, answer = await request(method, url, params=params, headers=headers, body=body, **kwargs)
            except HttpError as error:
                if attempt == attempts or not may_be_repeated(error, method, body, idempotent):
                    if sent is None:
                        raise
                    with after_an_attempt(*sent):
                        raise
                if isinstance(error, HttpDataError):
                    sent = f'an attempt that failed ({describe(error)})', error.answered
                delay = backoff(attempt)
            else:
                if attempt == attempts or code not in statuses or not replayable(body) or \
                        method not in idempotent and code != b'429':
                    return code, fields, answer
                asked = retry_after(fields)
                if asked > max_delay:
                    return code, fields, answer
                sent = f'an attempt that was answered with {code.decode()}', True
                delay = max(asked, backoff(attempt))
                await answer.aclose()
            await asyncio.sleep(delay)

    return retrying_request


def may_be_repeated(error, method, body, idempotent):
    """Whether the same request may be sent once more after this error, and not in vain"""
    if isinstance(error, HttpConnectionError):
        return not isinstance(error, HttpLimitTimeout)
    if isinstance(error, (HttpProtocolError, HttpBodyError, HttpRedirectError, HttpTooLarge, HttpStatusError)):
        return False
    return isinstance(error, HttpDataError) and method in idempotent and replayable(body)


def retry_after(fields):
    """The seconds that a response's Retry-After asks for; 0 where there is none that can be read. RFC 9110 §10.2.3"""
    asked, own_time = values(fields, b'retry-after'), values(fields, b'date')
    if not asked:
        return 0
    if asked[0].isdigit():
        return int(asked[0][:9])
    until, now = http_date(asked[0]), http_date(own_time[0]) if own_time else None
    return max(0, until - (time.time() if now is None else now)) if until is not None else 0


def http_date(value):
    """The time that a field says, in seconds since 1970; None where it is no date"""
    try:
        *parts, _, _, _, zone = email.utils.parsedate_tz(value.decode('latin-1'))
        return datetime.datetime(*parts, tzinfo=datetime.timezone.utc).timestamp() - (zone or 0)
    except (TypeError, ValueError, IndexError, OverflowError):  # the standard library's, for what it cannot read
        return None


def fetched(request, most=MAX_WHOLE, **kwargs):
    """As `retried`, whose arguments it takes, with the whole body as bytes in place of a body

    So an answer that breaks off in the middle is asked for again too, where the method is idempotent. A body of more
    than `most` bytes raises HttpTooLarge.
    """
    async def whole_request(*args, **kwargs):
        code, fields, body = await request(*args, **kwargs)
        return code, fields, WholeBody(await read_within(body, most))

    return retried(whole_request, **kwargs)


class WholeBody(bytes):
    """Bytes, which a layer may close as it closes any body"""

    async def aclose(self):
        pass


# -------- decompressed


def decompressed(request, codings=None):
    """A `request` that asks for compressed responses, and gives their bodies decompressed, in pieces of at most 96 KiB

    - `codings`: those to ask for, as bytes. The default is all that can be read: gzip and deflate; br where `brotli` is
      installed, from 1.2, since before it cannot be bounded; zstd from Python 3.14, or with `backports.zstd`.

    What a response has is decompressed, also where the caller asked by `accept-encoding`; but neither a 206, which is a
    part of something, nor a 304, nor a coding that is not known: these are the caller's as they are. A request with a
    `range` asks for nothing. A body that ends within its coding raises HttpProtocolError, as one that is malformed;
    bytes after the last member of gzip, deflate or zstd are ignored (brotli's decoder cannot tell them from a fault).
    """
    known = decoders()
    accepted = b', '.join(name for name in known if name != b'x-gzip') if codings is None else b', '.join(codings)

    async def decompressing_request(method, url, params=(), headers=(), body=None, **kwargs):
        headers = pairs_of('headers', headers)
        if not any(values(headers, name) for name in (b'accept-encoding', b'range')):
            headers += ((b'accept-encoding', accepted),)
        code, fields, answer = await request(method, url, params=params, headers=headers, body=body, **kwargs)
        coded = values(fields, b'content-encoding')
        if not coded or code in (b'204', b'206', b'304') or method == b'HEAD':
            return code, fields, answer
        names = [name.strip(b' \t') for name in b','.join(coded).lower().split(b',')]
        names = [name for name in names if name not in (b'', b'identity')]
        if not names or not known.keys() >= set(names):
            return code, fields, answer
        if len(names) > MAX_CODINGS:
            await answer.aclose()
            raise HttpProtocolError(f'The response has {len(names)} content codings, of which {MAX_CODINGS} are read')
        for name in reversed(names):
            answer = FedBody(answer, guarded(known[name](), name.decode()))
        fields = tuple([field for field in fields if field[0] not in (b'content-encoding', b'content-length')])
        return code, fields, answer

    return decompressing_request


def decoders():
    """{content coding: a function that makes its feed}, of all that are to be had here"""
    found = {b'gzip': gzip_feed, b'x-gzip': gzip_feed, b'deflate': deflate_feed}
    try:
        import brotli
        if hasattr(brotli.Decompressor, 'can_accept_more_data'):  # since 1.2, with the bound
            found[b'br'] = functools.partial(brotli_feed, brotli.Decompressor)
    except ImportError:
        pass
    try:
        try:
            from compression import zstd
        except ImportError:
            from backports import zstd
        found[b'zstd'] = functools.partial(zstd_feed, zstd)
    except ImportError:
        pass
    return found


def guarded(feed, name):
    """A decoder's feed, by slices, whose faults are HttpProtocolErrors"""
    def guarded_feed(data):
        try:
            for at in range(0, len(data) or 1, MAX_FED):
                yield from feed(data[at:at + MAX_FED])
        except HttpError:
            raise
        except Exception as error:  # each decoder has its own class
            raise HttpProtocolError(f'The body, whose coding is {name}, is malformed: {describe(error)}') from error
    return guarded_feed


def gzip_feed():
    return feed_of_members(lambda data: Inflater(31), lambda data: data.startswith(b'\x1f\x8b'))


def deflate_feed():
    # `deflate` is the zlib format, but some servers send it bare. RFC 9110 §8.4.1.2, RFC 1950 §2.2
    def is_zlib(data):
        return data[0] & 15 == 8 and int.from_bytes(data[:2].ljust(2, b'\0'), 'big') % 31 == 0

    return feed_of_members(lambda data: Inflater(15 if is_zlib(data) else -15), lambda data: False)


def zstd_feed(zstd):
    # A window of more than 8 MiB need not be had. RFC 9659 §3
    options = {zstd.DecompressionParameter.window_log_max: 23}

    def begins_frame(data):  # or a skippable one. RFC 8878 §3.1
        return data.startswith(b'\x28\xb5\x2f\xfd') or data[1:4] == b'\x2a\x4d\x18' and data[0] >> 4 == 5

    return feed_of_members(lambda data: zstd.ZstdDecompressor(options=options), begins_frame)


class Inflater:
    """zlib's decompressor as those of the newer modules are: it keeps what of its input it has not come to"""
    __slots__ = ('_inner', 'needs_input')

    def __init__(self, wbits):
        self._inner = zlib.decompressobj(wbits)

    def decompress(self, data, most):
        piece = self._inner.decompress(self._inner.unconsumed_tail + data, most)
        # Of a full piece more may be there, though all input was taken.
        self.needs_input = not self._inner.unconsumed_tail and len(piece) < most
        return piece

    @property
    def eof(self):
        return self._inner.eof

    @property
    def unused_data(self):
        return self._inner.unused_data


def feed_of_members(new_decoder, begins_member):
    """A feed of a coding of which several streams may follow each other; what begins none of them is ignored"""
    decoder, held, is_over = None, b'', False

    def feed(data):
        nonlocal decoder, held, is_over
        is_last = not data
        data, held = held + data, b''
        while data and not is_over or decoder is not None and not decoder.eof:
            if decoder is None or decoder.eof:
                if len(data) < 4 and not is_last:  # too little to tell what it is
                    held = data
                    return
                is_over = decoder is not None and not begins_member(data)
                if is_over:
                    return
                decoder = new_decoder(data)
            piece = decoder.decompress(data, MAX_PIECE)
            data = decoder.unused_data if decoder.eof else b''
            yield piece or None
            if not decoder.eof and decoder.needs_input:
                break
        if is_last and decoder is not None and not decoder.eof:
            raise HttpProtocolError('The body ended before the end of its compressed stream')

    return feed


def brotli_feed(new_decoder):
    decoder, is_begun = new_decoder(), False

    def feed(data):
        nonlocal is_begun
        if not data and is_begun and not decoder.is_finished():
            raise HttpProtocolError('The body ended before the end of its compressed stream')
        is_begun = is_begun or bool(data)
        # `can_accept_more_data` says so also where there is more to take out.
        piece = data and decoder.process(data, output_buffer_limit=MAX_PIECE)
        while piece:
            yield piece
            piece = b'' if decoder.is_finished() else decoder.process(b'', output_buffer_limit=MAX_PIECE)

    return feed


# -------- limited


def limited(request, total, per_origin=None, timeout=None):
    """A `request` of which at most `total` are under way, and `per_origin` to one origin: those beyond wait in turn

    A slot is held until the response's body needs its connection no longer: it ended, broke off, was closed or dropped.

    - `timeout`: seconds to wait for a slot at most, which is another clock than that of connecting. Then it raises
      HttpLimitTimeout.
    """
    check_count('total', total, 1)
    if per_origin is not None:
        check_count('per_origin', per_origin, 1)
    if timeout is not None:
        check_seconds('timeout', timeout, 0)
    parts_of = parts_of_urls()
    own_loop, own_pid, slots, slots_of = None, None, None, {}  # {origin: Slots} of those in use

    async def limited_request(method, url, params=(), headers=(), body=None, **kwargs):
        nonlocal own_loop, own_pid, slots, slots_of
        loop = asyncio.get_event_loop()
        if loop is not own_loop:
            if own_loop is not None and own_pid == os.getpid() and runs_elsewhere(own_loop):
                raise HttpRequestError('The limit belongs to another event loop, which still runs')
            # What the last loop did not give back is gone with it.
            own_loop, own_pid, slots, slots_of = loop, os.getpid(), Slots(total), {}
        ends_at = None if timeout is None else loop.time() + timeout
        held = []
        try:
            # The origin's first: who waits for one of all keeps nobody but those to the same origin waiting.
            if per_origin is not None:
                origin = parts_of(url)[0]
                own = slots_of.get(origin) or slots_of.setdefault(origin, Slots(per_origin))
                own.users += 1
                held.append(functools.partial(leave, slots_of, origin, own))
                await own.take(loop, ends_at, timeout)
                held.append(own.give)
            if slots.free:
                slots.free -= 1
            else:
                await slots.take(loop, ends_at, timeout)
            held.append(slots.give)
            code, fields, answer = await request(method, url, params=params, headers=headers, body=body, **kwargs)
            answer.when_done(functools.partial(give_all, held))
        except BaseException:
            give_all(held)
            raise
        return code, fields, answer

    return limited_request


def leave(slots_of, origin, slots):
    slots.users -= 1
    if not slots.users:
        del slots_of[origin]


def give_all(held):
    while held:
        held.pop()()


class Slots:
    """A semaphore whose slots go from hand to hand: who comes later never passes who waits"""
    __slots__ = ('free', 'users', '_total', '_waiters')

    def __init__(self, total):
        self.free = self._total = total
        self.users = 0
        self._waiters = collections.OrderedDict()  # to leave from the middle takes no time either

    async def take(self, loop, ends_at, timeout):
        if self.free:  # then nobody waits
            self.free -= 1
            return
        waiter = loop.create_future()
        self._waiters[waiter] = None
        timer = None if ends_at is None else loop.call_at(ends_at, self._expire, waiter, timeout)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.give()  # it was given one in the same turn of the loop
            raise
        finally:
            self._waiters.pop(waiter, None)
            if timer is not None:
                timer.cancel()
            waiter = None  # no cycle of exception and frame

    def _expire(self, waiter, timeout):
        if not waiter.done():
            waiter.set_exception(HttpLimitTimeout(
                f'No slot was free within {timeout} s: of {self._total} requests under way none ended'))

    def give(self):
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_result(None)
                return
        self.free += 1


# -------- authorised, and digest


def basic(user, password):
    """The value of `authorization` for a user and a password, str, as UTF-8. RFC 7617"""
    if ':' in user:
        raise ValueError('A user\'s name may not have a colon: what is after it would be taken for the password')
    return b'Basic ' + base64.b64encode(f'{user}:{password}'.encode())


def bearer(token):
    """The value of `authorization` for a token, str. RFC 6750"""
    return b'Bearer ' + token.encode('ascii')


def authorised(request, at, credentials):
    """A `request` with `authorization` where it goes to the origin of the url `at`, and nowhere else

    - `credentials`: the field's value as bytes, such as `basic(user, password)` or `bearer(token)`; or a coroutine
      function that returns one. This is called before the first request, and again after a 401, once for all requests
      that were sent with the old one; then the request is sent again, once, if its body can be. What it raises passes
      through, to all that wait for it.

    A request that has the header already is left as it is. Let the function ask by another `request` than this one.
    """
    if callable(credentials):
        return authorised_by_function(request, split_url(at)[0], credentials)
    check_credentials(credentials)
    its_origin, parts_of = split_url(at)[0], parts_of_urls()

    async def authorised_request(method, url, params=(), headers=(), body=None, **kwargs):
        if parts_of(url)[0] == its_origin:
            headers = pairs_of('headers', headers)
            if not values(headers, b'authorization'):
                headers += ((b'authorization', credentials),)
        return await request(method, url, params=params, headers=headers, body=body, **kwargs)

    return authorised_request


def authorised_by_function(request, its_origin, get_credentials):
    parts_of = parts_of_urls()
    other_than, forget = asked_once(get_credentials)

    async def authorised_request(method, url, params=(), headers=(), body=None, **kwargs):
        headers = pairs_of('headers', headers)
        if parts_of(url)[0] != its_origin or values(headers, b'authorization'):
            return await request(method, url, params=params, headers=headers, body=body, **kwargs)

        async def attempt(used):
            return await request(method, url, headers=headers + ((b'authorization', used.value),), body=body, **kwargs)

        url = with_own_params(url, params)
        used = await other_than(None)
        code, fields, answer = await attempt(used)
        if code == b'401' and not replayable(body):
            forget(used)
        elif code == b'401':
            await answer.aclose()
            with after_an_attempt('an attempt that was answered with 401', True):
                return await attempt(await other_than(used))
        return code, fields, answer

    return authorised_request


def check_credentials(value):
    if not isinstance(value, bytes):
        raise TypeError('The credentials must be bytes, such as basic(user, password) gives, or a coroutine function '
                        f'that returns them, got {type(value).__name__}')


class Credentials:
    """One answer, equal to itself alone: the function may give the same bytes again"""
    __slots__ = ('value',)

    def __init__(self, value):
        check_credentials(value)
        self.value = value


def asked_once(get):
    """(other_than, forget): `await other_than(old)` gives Credentials that are not `old`, asked for once for all

    Whoever comes first asks, in its own task; where that is cancelled, the next of those who wait does.
    """
    current, asking = None, None  # asking is the future of the call under way: of its error, or None

    async def other_than(old):
        nonlocal current, asking
        while current is None or current is old:
            failure, waited = None, asking
            try:
                if waited is not None:
                    await asyncio.wait([waited])
                    failure = waited.result()
                    if failure is not None:
                        raise failure
                    continue
                asking = asyncio.get_event_loop().create_future()
                try:
                    current = Credentials(await get())
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    failure = error
                    raise
                finally:
                    asking, told = None, asking
                    told.set_result(failure)
            finally:
                failure = waited = told = None  # no cycle of exception and frame
        return current

    def forget(old):
        nonlocal current
        if current is old:
            current = None

    return other_than, forget


def digest(request, at, user, password):
    """A `request` that answers the Digest challenges of the origin of the url `at`, and no other's: RFC 7616, qop auth

    - `user`, `password`: str; never sent as they are.

    The first request is sent without credentials, and again with them once it was challenged, if its body can be; those
    that follow use the same nonce until it is stale. A challenge of another algorithm than MD5 and SHA-256 is the
    caller's. Outside of a layer that follows redirects it signs the first target, which is of no use at the second.
    """
    its_origin, parts_of, known = split_url(at)[0], parts_of_urls(), None

    async def digesting_request(method, url, params=(), headers=(), body=None, **kwargs):
        nonlocal known
        headers = pairs_of('headers', headers)
        if parts_of(url)[0] != its_origin or values(headers, b'authorization'):
            return await request(method, url, params=params, headers=headers, body=body, **kwargs)

        async def attempt(challenge):
            credentials = () if challenge is None else (
                (b'authorization', digest_credentials(
                    challenge, user, password, method, parts_of(url)[2], base64.b16encode(os.urandom(16)))),)
            return await request(method, url, headers=headers + credentials, body=body, **kwargs)

        url, used = with_own_params(url, params), known
        code, fields, answer = await attempt(used)
        challenge = digest_challenge(fields) if code == b'401' else None
        if challenge is None or not replayable(body):
            known = known if challenge is None else challenge
            return code, fields, answer
        known = challenge
        await answer.aclose()
        with after_an_attempt('an attempt that was answered with 401', True):
            code, fields, answer = await attempt(challenge)
        if code == b'401' and known is challenge:
            known = None  # the password is wrong: the next request tells it no more often than this one
        return code, fields, answer

    return digesting_request


DIGEST_HASHES = {'MD5': hashlib.md5, 'SHA-256': hashlib.sha256}
# A scheme, or a parameter of the scheme before it. RFC 9110 §11.2
CHALLENGE_PART = re.compile(
    r'([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=]+)))?')


def digest_challenge(fields):
    """The first Digest challenge that can be answered, as a dict, or None

    It has the parameters, as latin-1, and the `count` of its uses.
    """
    for value in values(fields, b'www-authenticate'):
        if not is_field_value(value):
            continue  # what is in it could not be sent back
        scheme, parameters = '', {}
        for match in itertools.chain(CHALLENGE_PART.finditer(value.decode('latin-1')), (None,)):
            if match is not None and match.lastindex > 1:
                name, quoted, bare = match.groups()
                parameters.setdefault(name.lower(), re.sub(r'\\(.)', r'\1', quoted or '') or bare or '')
                continue
            if scheme == 'digest' and is_answerable(parameters):
                return dict(parameters, count=0)
            scheme, parameters = match is not None and match.group(1).lower(), {}
    return None


def is_answerable(parameters):
    return 'nonce' in parameters and 'realm' in parameters and digest_algorithm(parameters)[0] in DIGEST_HASHES and (
        'qop' not in parameters or 'auth' in [each.strip().lower() for each in parameters['qop'].split(',')])


def digest_algorithm(parameters):
    """(name of the hash, whether it is the variant with a key of the session). RFC 7616 §3.4.2"""
    name = parameters.get('algorithm', 'MD5').upper()
    return (name[:-5], True) if name.endswith('-SESS') else (name, False)


def digest_credentials(challenge, user, password, method, target, cnonce):
    """The value of `authorization`, and one more use of the challenge. RFC 7616 §3.4"""
    name, has_session_key = digest_algorithm(challenge)

    def h(*parts):
        return DIGEST_HASHES[name](b':'.join(parts)).hexdigest().encode()

    challenge['count'] += 1
    count = b'%08x' % challenge['count']
    realm, nonce = challenge['realm'].encode('latin-1'), challenge['nonce'].encode('latin-1')
    key = h(user.encode(), realm, password.encode())
    if has_session_key:
        key = h(key, nonce, cnonce)
    # Without qop, as RFC 2069 had it, and cameras have it still.
    with_qop = (count, cnonce, b'auth') if 'qop' in challenge else ()
    response = h(key, nonce, *with_qop, h(method, target))

    def quoted(value):
        return b'"%b"' % re.sub(rb'(["\\])', rb'\\\1', value)

    is_ascii = all(character < '\x80' for character in user)
    parts = [
        b'username=' + quoted(user.encode()) if is_ascii else
        b"username*=UTF-8''" + urllib.parse.quote(user, safe='').encode(),
        b'realm=' + quoted(realm), b'nonce=' + quoted(nonce), b'uri=' + quoted(target), b'response=' + quoted(response)]
    if 'algorithm' in challenge:
        parts.append(b'algorithm=' + challenge['algorithm'].encode('latin-1'))
    if 'opaque' in challenge:
        parts.append(b'opaque=' + quoted(challenge['opaque'].encode('latin-1')))
    if with_qop:
        parts.append(b'qop=auth, nc=%b, cnonce=%b' % (count, quoted(cnonce)))
    return b'Digest ' + b', '.join(parts)


# -------- cookied


def cookied(request, jar=None, path=None):
    """A `request` that keeps the cookies of responses, and sends them where they belong

    - `jar`: an http.cookiejar.CookieJar; its policy decides. The default is stricter than the standard library's, but
      knows no list of public suffixes: `github.io` is a domain like any other to it, as `co.uk` is not. It is a jar for
      each of the last 1,024 sites that set one, since a jar looks through all it has for each request.
    - `path`: a file, readable by its owner alone, from which the cookies come, and to which they go whenever one is
      set, those of a session too. It is that of an LWPCookieJar, and excludes a `jar`.

    A request that has a `cookie` header is sent with that alone. A set-cookie field with a control character, or of
    more than 8 KiB, is passed over: every later request would be refused with it. This layer belongs inside of one that
    follows redirects: outside it would take the cookies of the last response for those of the first url.
    """
    if path is not None and jar is not None:
        raise TypeError('cookied() takes a jar, or the path of its own, and not both')
    parts_of, policy, jars = parts_of_urls(), StrictPolicy(), {}
    if path is not None:
        path = os.fsdecode(path)
        jar = http.cookiejar.LWPCookieJar(path, policy=policy)
        if os.path.exists(path):
            jar.load(ignore_discard=True)

    async def cookied_request(method, url, params=(), headers=(), body=None, **kwargs):
        headers = pairs_of('headers', headers)
        asked = CookieRequest(*parts_of(url))
        own_jar = jars.get(asked.site) if jar is None else jar
        if own_jar is not None and not values(headers, b'cookie'):
            own_jar.add_cookie_header(asked)
            if asked.cookies is not None:
                headers += ((b'cookie', asked.cookies.encode('latin-1')),)
        code, fields, answer = await request(method, url, params=params, headers=headers, body=body, **kwargs)
        received = [value.decode('latin-1') for value in values(fields, b'set-cookie')
                    if len(value) <= MAX_COOKIE and not has_control(value)]
        if received and jar is None:
            own_jar = jars.get(asked.site)  # another request may have made it meanwhile
            own_jar = http.cookiejar.CookieJar(policy) if own_jar is None else own_jar
            remember(jars, asked.site, own_jar)
        if received:
            own_jar.extract_cookies(CookieResponse(received), asked)
            if path is not None:
                save_cookies(jar, path)
        return code, fields, answer

    return cookied_request


has_control = re.compile(rb'[\x00-\x1f\x7f]').search


class StrictPolicy(http.cookiejar.DefaultCookiePolicy):
    """A cookie without a domain is its host's alone, and one of an address is that address's alone

    The standard library's default sends the one of a.test to www.a.test too, and would take one of 127.0.0.1 for the
    domain 0.0.1, which is also 9.0.0.1's.
    """

    def __init__(self):
        super().__init__(strict_domain=True, strict_ns_domain=self.DomainStrictNonDomain)

    def set_ok_domain(self, cookie, request):
        is_other = cookie.domain_specified and cookie.domain.lstrip('.') != request.host
        return not (is_other and is_ip_address(request.host)) and super().set_ok_domain(cookie, request)


def save_cookies(jar, path):
    """To a new file that then takes the place of the old one: half of one would be no cookies at all"""
    new = f'{path}.{os.getpid()}.new'
    os.close(os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600))
    jar.save(new, ignore_discard=True)
    os.replace(new, path)


class CookieRequest:
    """What http.cookiejar wants to know of a request: a urllib.request.Request would take 10 µs to make"""
    unverifiable = False

    def __init__(self, key, authority, target):
        self.type, self.host, _ = key
        self.origin_req_host = self.host
        self.site = '.'.join(self.host.split('.')[-2:])  # no cookie is for fewer labels
        self._url = f'{self.type}://{authority.decode()}{target.decode()}'
        self.cookies = None

    def get_full_url(self):
        return self._url

    def has_header(self, name):
        return False

    def add_unredirected_header(self, name, value):
        if name == 'Cookie':
            self.cookies = value


class CookieResponse:
    """What it wants to know of a response"""

    def __init__(self, received):
        self._received = received

    def info(self):
        return self

    def get_all(self, name, default=None):
        return self._received if name.lower() == 'set-cookie' else default


# -------- logged


def logged(request, logger=None, level=logging.INFO):
    """A `request` of which each leaves one record with `logger`, an own one by default, once its body is done with

    The record has these attributes: `http_method`, `http_origin`, `http_code`, str; `http_reused`, whether the
    connection had carried another request; `http_seconds_to_head` and `http_seconds`, to the end; `http_bytes` of the
    body as they were handed over; `http_error`, the error's class, and for an HttpError its text. What was not come to
    is None. No value of a header, no path and no query is in it.
    """
    logger = logging.getLogger('lowhaio') if logger is None else logger

    async def logged_request(method, url, params=(), headers=(), body=None, **kwargs):
        if not logger.isEnabledFor(level):
            return await request(method, url, params=params, headers=headers, body=body, **kwargs)
        log = Log(logger, level, method, url)
        try:
            code, fields, answer = await request(method, url, params=params, headers=headers, body=body, **kwargs)
        except BaseException as error:
            log.end(error)
            raise
        log.begin(code.decode(), answer.reused)
        if has_no_body(method, code, fields):
            log.end()
        return code, fields, LoggedBody(answer, log)

    return logged_request


def has_no_body(method, code, fields):
    """Whether there is nothing to wait for: many a caller does not read such a body to its end"""
    return method == b'HEAD' or code in (b'204', b'304') or (b'content-length', b'0') in fields


class Log:
    """The facts of one request, until they are a record"""
    __slots__ = ('_logger', '_level', '_facts', '_began', 'is_over', 'bytes')

    def __init__(self, logger, level, method, url):
        self._logger, self._level = logger, level
        try:
            (scheme, _, _), authority, _ = split_url(url)
            origin = f'{scheme}://{authority.decode()}'
        except HttpRequestError:
            origin = None
        method = method.decode() if isinstance(method, bytes) and is_token(method) else None
        self._facts = dict(http_method=method, http_origin=origin, http_code=None, http_reused=None,
                           http_seconds_to_head=None)
        self._began, self.is_over, self.bytes = time.monotonic(), False, 0

    def begin(self, code, reused):
        self._facts.update(http_code=code, http_reused=reused, http_seconds_to_head=time.monotonic() - self._began)

    def end(self, error=None):
        if self.is_over:
            return
        self.is_over = True
        what = None if error is None else \
            f'{type(error).__name__}: {error}' if isinstance(error, HttpError) else type(error).__name__
        facts = dict(self._facts, http_seconds=time.monotonic() - self._began, http_bytes=self.bytes, http_error=what)
        self._logger.log(
            self._level, '%s %s: %s in %.3f s, %d bytes%s', facts['http_method'], facts['http_origin'],
            facts['http_code'], facts['http_seconds'], self.bytes, '' if what is None else f', {what}', extra=facts)


class LoggedBody(WrappedBody):
    __slots__ = ('_log', '_loop')

    def __init__(self, body, log):
        super().__init__(body)
        self._log = log
        self._loop = asyncio.get_event_loop()

    async def __anext__(self):
        try:
            piece = await self._body.__anext__()
        except StopAsyncIteration:
            self._log.end()
            raise
        except BaseException as error:
            self._log.end(error)
            raise
        self._log.bytes += len(piece)
        return piece

    async def aclose(self):
        try:
            await super().aclose()
        finally:
            self._log.end()

    def __del__(self):
        # A finaliser may run in any thread, and in the middle of anything, such as another record's writing.
        if not self._log.is_over:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._log.end)


# -------- Bodies of requests: each function but `file_body` gives (headers, body)


def json_body(value):
    """(headers, body) of a value as JSON; raises what `json.dumps` does, also for NaN and infinities: JSON has none"""
    return ((b'content-type', b'application/json'),), streamed(json.dumps(value, allow_nan=False).encode('ascii'))


def form(fields):
    """(headers, body) of an HTML form: pairs, or a mapping; a value may be a list. WHATWG URL §5"""
    try:
        encoded = urllib.parse.urlencode(fields, doseq=True)
    except (TypeError, ValueError) as error:
        raise HttpRequestError(f'The fields of a form must be pairs or a mapping: {type(error).__name__}') from error
    return ((b'content-type', b'application/x-www-form-urlencoded'),), streamed(encoded.encode('ascii'))


def multipart(fields):
    """(headers, body) of multipart/form-data, which may hold files. RFC 7578

    - `fields`: (name, value), (name, value, filename) or (name, value, filename, content type); all are str but the
      value, which may be bytes, or a body that can be sent again, such as `file_body(path)`. The content type of a file
      is guessed from its name where none is given.

    It has a length where each value has one. Raises HttpRequestError for a body that can be played once.
    """
    boundary = base64.b16encode(os.urandom(16))
    parts = []
    for name, value, *of_file in fields:
        head = b'--%b\r\ncontent-disposition: form-data; name="%b"' % (boundary, quoted_name(name))
        if of_file:
            filename, content_type = (of_file + [None])[:2]
            content_type = content_type or mimetypes.guess_type(filename)[0] or 'application/octet-stream'
            if not re.fullmatch('[\x20-\x7e]+', content_type):
                raise HttpRequestError(f'The content type of {name!r:.100} has a character that it may not have')
            head += b'; filename="%b"\r\ncontent-type: %b' % (quoted_name(filename), content_type.encode())
        value = streamed(value.encode()) if isinstance(value, str) else \
            streamed(value) if isinstance(value, (bytes, bytearray, memoryview)) else value
        if not replayable(value) or value is None:
            raise HttpRequestError(f'The value of {name!r:.100} must be str, bytes, or a body that can be sent again, '
                                   f'got {type(value).__name__}')
        parts += [streamed(head + b'\r\n\r\n'), value, streamed(b'\r\n')]
    parts.append(streamed(b'--%b--\r\n' % boundary))
    return ((b'content-type', b'multipart/form-data; boundary=' + boundary),), Joined(parts)


def quoted_name(text):
    """As browsers do it: a line break would begin another header. WHATWG HTML §4.10.21.8"""
    return text.replace('"', '%22').replace('\r', '%0D').replace('\n', '%0A').encode()


class Joined:
    """A body of several bodies, one after another"""

    def __init__(self, parts):
        self._parts = parts
        lengths = [getattr(part, 'content_length', None) for part in parts]
        if None not in lengths:
            self.content_length = sum(lengths)

    async def __aiter__(self):
        for part in self._parts:
            pieces = (part if is_async_iterable(part) else part()).__aiter__()
            try:
                async for piece in pieces:
                    yield piece
            finally:
                if hasattr(pieces, 'aclose'):
                    await pieces.aclose()


def file_body(path, progress=None):
    """A body of the bytes that a file has now, which can be sent again

    - `progress(count, size)`: called after each piece was taken, with the bytes so far; again from the beginning where
      it is sent again.

    The file is opened when it is sent, and read in the event loop's thread: 64 KiB that the system has in memory take
    10 µs. If it has become shorter the request raises HttpBodyError, what was appended is not sent.
    """
    return FileBody(path, os.stat(path).st_size, progress)


class FileBody:
    __slots__ = ('_path', '_progress', 'content_length')

    def __init__(self, path, content_length, progress):
        self._path = path
        self._progress = progress
        self.content_length = content_length

    async def __aiter__(self):
        with open(self._path, 'rb', buffering=0) as file:
            count = 0
            while count < self.content_length:
                piece = file.read(min(65536, self.content_length - count))
                if not piece:
                    return
                yield piece
                count += len(piece)
                if self._progress is not None:
                    self._progress(count, self.content_length)


# -------- Readers of responses


async def json_of(body, most=MAX_WHOLE):
    """The value of a body that is JSON; raises HttpTooLarge, and ValueError for what is no JSON"""
    return json.loads(await read_within(body, most))


def lines(body, most=MAX_LINE):
    """The lines of a body, as bytes without their LF or CRLF: an async iterator, with `aclose`

    The last need not end. One of more than `most` bytes raises HttpTooLarge.
    """
    splitter = LineSplitter(re.compile(b'\n'), most, 'A line')

    def feed(data):
        for line in splitter.split(data) if data else [bytes(splitter.held)] if splitter.held else []:
            yield line[:-1] if line.endswith(b'\r') else line

    return FedBody(body, feed)


class LineSplitter:
    """Makes lines of pieces: what is not complete is `held`, in a bytearray, since to join bytes would be quadratic"""
    __slots__ = ('_split', '_most', '_what', 'held')

    def __init__(self, ends, most, what):
        self._split, self._most, self._what = ends.split, most, what
        self.held = bytearray()

    def split(self, data):
        *complete, rest = self._split(data)
        for line in complete:
            if self.held:
                line = bytes(self.held + line)
                self.held.clear()
            self._check(len(line))
            yield line
        self.held += rest
        self._check(len(self.held))

    def _check(self, length):
        if length > self._most:
            raise HttpTooLarge(f'{self._what} is longer than {self._most} bytes')


# `retry`, in milliseconds, is what the stream has said last, or None.
Event = collections.namedtuple('Event', 'type data id retry')


def server_sent_events(body, most=MAX_LINE):
    """The events of a text/event-stream, an async iterator of `Event`s with `aclose`. WHATWG HTML §9.2

    A stream that ends within an event raises HttpConnectionClosedError; an event of over `most` bytes HttpTooLarge.
    Whether and when to ask again, with `last-event-id`, is the caller's to decide.
    """
    return FedBody(body, EventReader(most).feed)


class EventReader:
    """The fields of the event that is being read, and what outlives it: the last id, and the time to retry"""

    def __init__(self, most):
        self._splitter = LineSplitter(re.compile(b'\r\n|\r|\n'), most, 'An event')
        self._most = most
        self._ends_in_cr = False
        self._is_first = True
        self._last_id, self._retry = '', None
        self._begin()

    def _begin(self):
        self._type, self._data, self._size, self._is_begun = '', [], 0, False

    def feed(self, data):
        if not data and (self._is_begun or self._splitter.held):
            raise HttpConnectionClosedError('The event stream ended within an event')
        if self._ends_in_cr and data.startswith(b'\n'):  # a line ends at its CR, not later: the next may take hours
            data = data[1:]
            self._ends_in_cr = False
        if not data:
            return
        self._ends_in_cr = data.endswith(b'\r')
        for line in self._splitter.split(data):
            event = self._take(line)
            if event is not None:
                yield event

    def _take(self, line):
        if self._is_first:
            self._is_first = False
            line = line[3:] if line.startswith(b'\xef\xbb\xbf') else line
        if not line:
            event = Event(self._type or 'message', '\n'.join(self._data), self._last_id, self._retry)
            is_event = bool(self._data)
            self._begin()
            return event if is_event else None
        self._size += len(line)
        if self._size > self._most:
            raise HttpTooLarge(f'An event is longer than {self._most} bytes')
        name, _, value = line.decode('utf-8', 'replace').partition(':')
        value = value[1:] if value.startswith(' ') else value
        self._is_begun = self._is_begun or bool(name)  # else it is a comment
        if name == 'event':
            self._type = value
        elif name == 'data':
            self._data.append(value)
        elif name == 'id' and '\0' not in value:
            self._last_id = value
        elif name == 'retry' and re.fullmatch('[0-9]{1,9}', value):
            self._retry = int(value)
        return None


# -------- saved


async def saved(request, url, path, headers=(), attempts=5, progress=None, backoff=jittered_delay, **kwargs):
    """Downloads a url to a file, which appears when it is whole; returns its size in bytes

    - `attempts`: how many in a row may fail without a byte that is new. Each goes on where the last broke off, and so
      does a later call, where the server can (RFC 9110 §13.1.5, §14): what there is stands beside the file, as `.part`,
      with the validator in `.etag`.
    - `progress(count, size)`: called after each piece; the size is None where the server does not say it.

    Raises HttpStatusError for another code than 200 and 206, and what the last attempt raised. One call at a time may
    save to a path. It is written in the event loop's thread.
    """
    check_count('attempts', attempts, 1)
    check_function('backoff', backoff, 'of the number of failures in a row')
    headers = pairs_of('headers', headers)
    if not values(headers, b'accept-encoding'):
        headers += ((b'accept-encoding', b'identity'),)  # ranges are of the bytes as they are coded
    part = Part(os.fsdecode(path), url)
    failures, sent = 0, None
    try:
        while True:
            begin = part.size()
            try:
                size = await save_rest(request, url, headers, part, progress, kwargs)
                break
            except HttpError as error:
                failures = 1 if part.size() > begin else failures + 1
                if failures >= attempts or not may_be_repeated(error, b'GET', None, IDEMPOTENT):
                    if sent is None:
                        raise
                    with after_an_attempt(*sent):
                        raise
                if isinstance(error, HttpDataError):
                    sent = f'an attempt that failed ({describe(error)})', error.answered
            await asyncio.sleep(backoff(failures))
        part.finish()
        return size
    finally:
        part.tidy()


async def save_rest(request, url, headers, part, progress, kwargs):
    """One attempt: what the file lacks is appended, or it is begun anew. Returns its size"""
    at, size, etag = part.stands_at()
    asked = ((b'range', b'bytes=%d-' % at), (b'if-range', etag)) if at else ()
    code, fields, body = await request(b'GET', url, headers=headers + asked, **kwargs)
    try:
        if code == b'200':
            lengths, etags = values(fields, b'content-length'), values(fields, b'etag')
            at, size = 0, parse_length(lengths[0]) if lengths else None
            part.restart(size, etags[0] if etags and etags[0].startswith(b'"') else None)  # a weak one is of no use
        elif code == b'416' and asked and content_range(fields) == (None, at):
            return at  # an earlier call got all of it, and did not come to an end
        elif code not in (b'206', b'416') or not asked:
            raise HttpStatusError(f'Expected 200 or 206 for {place(url)}, got {code.decode()}', code, fields)
        elif code == b'416' or content_range(fields) not in ((at, size), (at, None)):
            part.discard()
            raise HttpDataError(f'Asked for the bytes from {at} of {size}, and got others')
        with open(part.path, 'ab') as file:
            async for piece in body:
                file.write(piece)
                at += len(piece)
                if progress is not None:
                    progress(at, size)
    finally:
        await body.aclose()
    if size is not None and at != size:
        raise HttpDataError(f'Expected {size} bytes, got {at}')
    return at


def content_range(fields):
    """(first byte, size of all) of a part; either is None where it is not said. RFC 9110 §14.4"""
    match = re.fullmatch(rb'bytes (?:([0-9]{1,18})-[0-9]{1,18}|\*)/(?:([0-9]{1,18})|\*)',
                         (values(fields, b'content-range') or [b''])[0])
    return tuple([None if digits is None else int(digits) for digits in match.groups()]) if match else (None, None)


class Part:
    """A file that is not whole yet, and beside it of what it is a part: a hash of the url, the size and the ETag"""
    __slots__ = ('path', '_final', '_beside', '_url')

    def __init__(self, path, url):
        self._final, self.path, self._beside = path, path + '.part', path + '.etag'
        self._url = hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest().encode()

    def size(self):
        try:
            return os.path.getsize(self.path)
        except FileNotFoundError:
            return 0

    def stands_at(self):
        """(bytes that are there, size of all, ETag); (0, None, None) where there are none that may be used"""
        try:
            with open(self._beside, 'rb') as file:
                url, size, etag = file.read().split(b' ', 2)
        except (FileNotFoundError, ValueError):
            return 0, None, None
        at = self.size()
        return (at, int(size), etag) if url == self._url and 0 < at <= int(size) else (0, None, None)

    def restart(self, size, etag):
        self.discard()
        open(self.path, 'wb').close()
        if size is not None and etag is not None:
            with open(self._beside, 'wb') as file:
                file.write(b'%b %d %b' % (self._url, size, etag))

    def discard(self):
        # First what would say that the other is good.
        for path in (self._beside, self.path):
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)

    def finish(self):
        os.replace(self.path, self._final)
        self.discard()

    def tidy(self):
        """Leaves nothing behind with which no later call could go on"""
        if not self.stands_at()[0]:
            self.discard()
