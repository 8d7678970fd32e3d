"""Properties, by hypothesis: what must hold of every response, every mutation of one, and every request

    python -m reliability.properties [--examples N]

The whole client is driven in memory: `connect` returns a connection that plays a wire in pieces. What must come of a
wire is said by a *judge*, a reader of whole wires by the letter of the RFCs that shares no code with lowhaio; and of
the generated responses also by a model, which knows what each was made from. Two other readers, h11 and http.client,
are asked as well: where they differ, a row of a table must say why.
"""
import argparse
import array
import atexit
import collections
import contextlib
import functools
import http.client
import io
import itertools
import re
import shutil
import signal
import string
import sys
import tempfile
import time
import tracemalloc
import unittest

import h11
import hypothesis
import hypothesis.configuration
from hypothesis import strategies as st

from lowhaio import (
    HttpBodyError,
    HttpConnectionClosedError,
    HttpDataError,
    HttpError,
    HttpHeaderTooLong,
    HttpProtocolError,
    HttpRequestError,
    Pool,
    buffered,
    split_url,
    streamed,
)
from reliability.harness import new_event_loop, pieces_of

# Its caches go to a folder of their own: by default they are left in the current one.
_CACHES = tempfile.mkdtemp()
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)
hypothesis.configuration.set_hypothesis_home_dir(_CACHES)

TCHAR = frozenset(b"!#$%&'*+-.^_`|~" + string.ascii_letters.encode() + string.digits.encode())
DIGITS = frozenset(string.digits.encode())
HEX_DIGITS = frozenset(string.hexdigits.encode())
GET, HEAD = b'GET', b'HEAD'
MAX_HEADER_LENGTH = 65536
# Seconds of CPU time, of which no example takes more than a few thousandths.
HANG = 20


# -------- The judge


class Refusal(Exception):
    """By which error (or errors, where two rules are broken by one byte), by which rule, known at which offset"""

    def __init__(self, errors, rule, at):
        super().__init__(errors, rule, at)
        self.errors, self.rule, self.at = errors, rule, at


class Verdict:
    """What a client must make of a wire that is all that ever comes, and then the end of the connection

    `errors` are the classes of which one must be raised, () where the response is good; `rule` says why. `spans` are
    the (begin, end) of its body's bytes in the wire, as far as it is good. At `at` bytes all is known, the end of the
    connection counted as one: nothing more may be read. `persists` is whether the connection may be used again.
    """

    def __init__(self, wire):
        self.wire = wire
        self.errors, self.rule, self.at = (), None, None
        self.code = self.headers = self.persists = None
        self.spans = []

    @property
    def body(self):
        return b''.join(self.wire[begin:end] for begin, end in self.spans)

    def body_size(self, received):
        """How many bytes of the body are within the first `received` of the wire"""
        return sum(max(0, min(end, received) - begin) for begin, end in self.spans)

    @property
    def outcome(self):
        return None if self.errors else (self.code, self.headers, self.body, self.persists)


def judged(method, wire, limit=MAX_HEADER_LENGTH):
    verdict = Verdict(wire)
    try:
        _judge(verdict, method, wire, limit)
    except Refusal as refusal:
        verdict.errors, verdict.rule, verdict.at = refusal.errors, refusal.rule, refusal.at
    return verdict


def _judge(verdict, method, wire, limit):
    at, interim = 0, True
    while interim:
        _judge_protocol_name(wire, at, limit)
        lines, at = _section(wire, at, limit, 0, 'head')
        version, code = _status_line(lines[0], at)
        headers = _fields(lines[1:], at)
        if code == b'101':
            raise Refusal((HttpProtocolError,), 'switching protocols', at)
        interim = code[:1] == b'1'
    verdict.code, verdict.headers = code, tuple(headers)
    kind, length = _framing(method, code, version, headers, at)
    options = _members(headers, b'connection')
    end = \
        at if kind == 'none' else \
        len(wire) if kind == 'close' else \
        _counted(verdict, wire, at, length, 'length') if kind == 'length' else \
        _chunks(verdict, wire, at, limit)
    if kind == 'close':
        verdict.spans.append((at, end))
    verdict.at = end + (kind == 'close')
    verdict.persists = (
        kind != 'close' and end == len(wire) and b'close' not in options and
        (version != b'HTTP/1.0' or
         b'keep-alive' in options and not any(name == b'transfer-encoding' for name, _ in headers)) and
        # It is kept for a second less than the server says.
        not any(seconds.lstrip(b'0') in (b'', b'1') for seconds in _timeouts(headers)[:1])
    )


def _judge_protocol_name(wire, at, limit):
    """What does not begin with HTTP/1 is refused at the first wrong byte"""
    for offset, byte in enumerate(b'HTTP/1.', at):
        if wire[offset:offset + 1] not in (b'', bytes((byte,))):
            errors = (HttpProtocolError,) if offset < limit else (HttpProtocolError, HttpHeaderTooLong)
            raise Refusal(errors, 'no HTTP/1', min(offset, limit) + 1)


def _line(wire, at, begin, limit, what):
    """(a line without its LF, the offset after it) of a part that began at `begin`, and may have `limit` bytes"""
    end = wire.find(b'\n', at) + 1
    if not end or end - begin > limit:
        if len(wire) - begin > limit:
            raise Refusal((HttpHeaderTooLong,), 'too long: ' + what, begin + limit + 1)
        raise Refusal((HttpConnectionClosedError,), 'the end within the ' + what, len(wire) + 1)
    return wire[at:end - 1], end


def _section(wire, at, limit, begin, what):
    """(lines up to an empty one, without their ends; the offset after it). Either LF or CRLF ends a line"""
    lines = []
    while True:
        line, at = _line(wire, at, begin, limit, what)
        line = line[:-1] if line[-1:] == b'\r' else line
        if not line:
            return lines, at
        lines.append(line)


def _status_line(line, at):
    version, _, rest = line.partition(b' ')
    code, _, reason = rest.partition(b' ')
    if len(version) != 8 or version[7] not in DIGITS:
        raise Refusal((HttpProtocolError,), 'version', at)
    if len(code) != 3 or not set(code) <= DIGITS:
        raise Refusal((HttpProtocolError,), 'code', at)
    _judge_bytes(reason, 'reason', at)
    return version, code


def _judge_bytes(value, what, at):
    for byte, name in ((b'\r', 'bare CR'), (b'\0', 'NUL')):
        if byte in value:
            raise Refusal((HttpProtocolError,), '{} in a {}'.format(name, what), at)


def _fields(lines, at):
    """[(lower-case name, value)] of field lines, of which those that begin with a blank continue the one before"""
    logical = []
    for line in lines:
        if line[:1] not in (b' ', b'\t'):
            logical.append(line)
        elif logical:
            logical[-1] += b' ' + line.lstrip(b' \t')
        else:
            raise Refusal((HttpProtocolError,), 'a fold that continues no field', at)
    fields = []
    for line in logical:
        name, colon, value = line.partition(b':')
        if not colon:
            raise Refusal((HttpProtocolError,), 'no colon', at)
        if name != name.rstrip(b' \t'):
            raise Refusal((HttpProtocolError,), 'a blank before the colon', at)
        if not name or not set(name) <= TCHAR:
            raise Refusal((HttpProtocolError,), 'a name that is no token', at)
        _judge_bytes(value, 'value', at)
        fields.append((name.lower(), value.strip(b' \t')))
    return fields


def _values(headers, wanted):
    return [value for name, value in headers if name == wanted]


def _members(headers, wanted):
    return [member.strip(b' \t').lower() for value in _values(headers, wanted) for member in value.split(b',')]


def _timeouts(headers):
    """The digits of each `keep-alive: timeout=N`"""
    pairs = [member.partition(b'=') for member in _members(headers, b'keep-alive')]
    values = [value.strip(b' \t"') for name, _, value in pairs if name.strip(b' \t') == b'timeout']
    return [value for value in values if value and set(value) <= DIGITS]


def _framing(method, code, version, headers, at):
    """RFC 9112 §6.3, and where it leaves a choice, the strict one"""
    if method == b'HEAD' or code in (b'204', b'304'):
        return 'none', 0
    codings, lengths = _values(headers, b'transfer-encoding'), _members(headers, b'content-length')
    if codings and (version == b'HTTP/1.0' or len(codings) > 1 or codings[0].lower() != b'chunked'):
        raise Refusal((HttpProtocolError,), 'transfer-encoding', at)
    if codings and lengths:
        raise Refusal((HttpProtocolError,), 'transfer-encoding and content-length', at)
    if codings:
        return 'chunked', None
    if not lengths:
        return 'close', None
    if not all(length and set(length) <= DIGITS for length in lengths):
        raise Refusal((HttpProtocolError,), 'a content-length that is no number', at)
    if len({length.lstrip(b'0') for length in lengths}) > 1:
        raise Refusal((HttpProtocolError,), 'content-lengths that differ', at)
    digits = lengths[0].lstrip(b'0') or b'0'
    if (len(digits), digits) > (19, b'9223372036854775807'):
        raise Refusal((HttpProtocolError,), 'a content-length beyond 2^63', at)
    return ('length', int(digits)) if digits != b'0' else ('none', 0)


def _counted(verdict, wire, at, size, what):
    """The offset after so many bytes of body"""
    verdict.spans.append((at, min(at + size, len(wire))))
    if at + size > len(wire):
        raise Refusal((HttpConnectionClosedError,), 'the end within the ' + what, len(wire) + 1)
    return at + size


def _chunks(verdict, wire, at, limit):
    """The offset after the trailers of a chunked body"""
    begin, size = at, None
    while size != 0:
        # The CRLF of the chunk before counts towards the line.
        line, at = _line(wire, at, begin, limit, 'chunk-size line')
        if line[-1:] != b'\r':
            raise Refusal((HttpProtocolError,), 'a chunk-size line that ends in LF alone', at)
        _judge_bytes(line[:-1], 'chunk-size line', at)
        digits = line[:-1].partition(b';')[0].rstrip(b' \t')
        if not 1 <= len(digits) <= 16 or not set(digits) <= HEX_DIGITS:
            raise Refusal((HttpProtocolError,), 'a chunk size', at)
        size = int(digits, 16)
        if size:
            begin = at = _counted(verdict, wire, at, size, 'chunk')
            for byte in b'\r\n':
                if wire[at:at + 1] not in (b'', bytes((byte,))):
                    raise Refusal((HttpProtocolError,), 'a chunk that does not end in CRLF', at + 1)
                at += 1
    lines, end = _section(wire, at, limit, at, 'trailers')
    _fields(lines, end)
    return end


# -------- The whole client, in memory


class Wire:
    """What `connect` returns: plays the answers to its requests, each in pieces, and then the end

    `takes` are the sizes that its writes take of what they are given, again and again. `on_read(received)` is called
    before each read, with how much of the present answer there was so far.
    """
    address = None
    expires_at = 0.0

    def __init__(self, answers, takes=(65536,), on_read=None):
        self.answers, self.takes, self.on_read = answers, itertools.cycle(takes), on_read
        self.pieces = collections.deque()
        self.sent = bytearray()
        self.received = 0
        self.is_answered = True
        self.is_there = self.has_ended = self.is_closed = False

    async def wait(self, sending=False, seconds=None):
        self.is_there = True

    def send(self, view):
        self.is_there = False
        if self.is_answered and self.answers:
            self.is_answered, self.received = False, 0
            self.pieces.extend(self.answers.popleft())
        size = min(len(view), next(self.takes))
        self.sent += view[:size]
        return size

    def receive(self):
        assert not self.is_closed, 'a read after it was closed'
        if not self.is_there:
            return None
        assert not self.has_ended, 'a read after the end'
        if self.on_read is not None:
            self.on_read(self.received)
        self.is_answered = True
        self.has_ended = not self.pieces
        piece = self.pieces.popleft() if self.pieces else b''
        self.received += len(piece)
        return piece

    def has_unsent(self):
        return False

    def poll(self):
        return self.pieces.popleft() if self.pieces and self.is_answered else None

    def watch(self, callback, seconds=0):
        pass

    def close(self, last=b''):
        self.is_closed = True

    abandon = close


def cut(wire, sizes):
    """The wire in pieces of these sizes, again and again; whole, if there are none"""
    pieces, at, sizes = [], 0, itertools.cycle(sizes or (max(1, len(wire)),))
    while at < len(wire):
        size = next(sizes)
        pieces.append(wire[at:at + size])
        at += size
    return pieces


class Client:
    """Pools on one event loop, which is kept: a new one would take longer than an example"""

    def __init__(self):
        self.loop = new_event_loop()

    def close(self):
        self.loop.close()

    def play(self, exchanges, limit=MAX_HEADER_LENGTH):
        """(outcomes, how many connections were made) of (method, wire, sizes) after each other, by one pool

        An outcome is (code, headers, body, whether the connection may be used again), or the class of the error.
        While it reads, the client must not ask for more than it needs, nor hold what it could give.
        """
        return self.loop.run_until_complete(self._play(exchanges, limit))

    async def _play(self, exchanges, limit):
        answers = collections.deque(cut(wire, sizes) for _, wire, sizes in exchanges)
        connections = []
        content = bytearray()
        verdict = None

        def on_read(received):
            assert received < verdict.at, ('read on', received, verdict.at, verdict.rule)
            assert len(content) == verdict.body_size(received), ('held', received, len(content))

        async def connect(*_):
            connections.append(Wire(answers, on_read=on_read))
            return connections[-1]

        request, close = Pool(connect=connect, max_header_length=limit)
        outcomes = []
        for method, wire, sizes in exchanges:
            verdict = judged(method, wire, limit)
            largest = max(map(len, cut(wire, sizes)), default=0)
            content.clear()
            body = None
            try:
                code, headers, body = await request(method, 'http://a.test/')
                async for piece in body:
                    assert 0 < len(piece) <= largest
                    content += piece
                connection = connections[-1]
                kept = not connection.is_closed and not connection.pieces
                outcomes.append((code, headers, bytes(content), kept))
            except HttpError as error:
                assert connections[-1].is_closed
                assert len(str(error)) > 10
                assert error.answered == bool(wire), (error.answered, wire)
                assert verdict.body.startswith(bytes(content)), ('a wrong body', content, verdict.body)
                outcomes.append(type(error))
                if body is not None:
                    await never_looks_complete(body)
        await close()
        assert all(connection.is_closed for connection in connections)
        return outcomes, len(connections)

    def drain(self, pieces):
        """(the class of the error or None, bytes of the body, bytes read, most bytes held) of a long response"""
        return self.loop.run_until_complete(self._drain(pieces))

    async def _drain(self, pieces):
        connection = Wire(collections.deque((pieces,)))

        async def connect(*_):
            return connection

        request, close = Pool(connect=connect)
        error, size = None, 0
        tracemalloc.start()
        try:
            _, _, body = await request(GET, 'http://a.test/')
            async for piece in body:
                size += len(piece)
        except HttpError as raised:
            error = type(raised)
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        await close()
        return error, size, connection.received, peak

    def send(self, arguments, takes=(65536,)):
        """(the error or None, what was written or None where no connection was made) of a request"""
        return self.loop.run_until_complete(self._send(arguments, takes))

    async def _send(self, arguments, takes):
        connections = []

        async def connect(*_):
            connections.append(Wire(collections.deque(([b'HTTP/1.1 204 \r\n\r\n'],)), takes))
            return connections[-1]

        request, close = Pool(connect=connect, expect_timeout=0)
        caught = None
        try:
            await request(**arguments)
        except HttpError as error:
            caught = error
        await close()
        assert all(connection.is_closed for connection in connections)
        assert len(connections) < 2
        return caught, bytes(connections[0].sent) if connections else None


async def never_looks_complete(body):
    try:
        await body.__anext__()
    except HttpDataError:
        return
    raise AssertionError('a body that broke off looks complete')


@contextlib.contextmanager
def no_hang():
    """Ends what takes HANG seconds of this process's own time: a busy machine does not count"""
    def on_alarm(*_):
        raise AssertionError('hangs')

    previous = signal.signal(signal.SIGVTALRM, on_alarm)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


# -------- Responses, and what they mean by the way they were made

choose = functools.lru_cache(None)(lambda *options: st.sampled_from(options))
# Fields that say something of the connection, or of the length, are made apart.
OWN_FIELDS = (b'content-length', b'transfer-encoding', b'connection', b'keep-alive')
TOKENS = st.lists(st.sampled_from(sorted(TCHAR)), min_size=1, max_size=8).map(bytes)
NAMES = st.one_of(
    choose(b'server', b'set-cookie', b'x-content-length', b'te', b'a', b"!#$%&'*+-.^_`|~0"),
    TOKENS.map(bytes.lower).filter(lambda name: name not in OWN_FIELDS),
)
# Any bytes but CR, LF and NUL; their outer blanks are not part of them.
VALUES = st.one_of(
    choose(b'', b'b', b'b c', b'b: c, \td e'),
    st.binary(max_size=12).map(lambda value: value.translate(None, b'\r\n\0').strip(b' \t')),
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=3)
CONTENT = st.one_of(
    st.binary(max_size=40),
    choose(b'0\r\n\r\n', b'HTTP/1.1 200 OK\r\n\r\n', b'\r\n\r\n', b'\n', bytes(range(256))),
)
SIZES = st.one_of(choose((), (1,)), st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple))
BLANKS = choose(b'', b' ', b' ', b'\t', b' \t ')
FOLDS = choose(*(b' ',) * 9, b'\r\n ', b'\n\t', b'\r\n \t ')
LINE_ENDS = choose(b'\r\n', b'\r\n', b'\n')
LENGTHS = choose(  # how a length may be written, as the values of one or more fields
    (b'%d',), (b'%d',), (b'000%d',), (b'%d, %d',), (b'%d ,\t0%d',), (b'%d', b'%d'), (b'%d, %d', b'%d'),
)
WITHOUT_MEANING = choose(  # what frames nothing, where there cannot be a body
    (), ((b'content-length', b'5'),), ((b'transfer-encoding', b'chunked'),),
    ((b'content-length', b'5'), (b'transfer-encoding', b'gzip')), ((b'content-length', b'x'),),
)
OPTIONS = choose(  # of the connection, and whether it persists in HTTP/1.1 and in HTTP/1.0
    ((), True, False), ((), True, False),
    (((b'connection', b'close'),), False, False),
    (((b'connection', b'keep-alive'),), True, True),
    (((b'connection', b'Keep-Alive, x'), (b'keep-alive', b'timeout=5, max=9')), True, True),
    (((b'connection', b'x, Close'), (b'connection', b'keep-alive')), False, False),
    (((b'keep-alive', b'max=9, timeout=1'),), False, False),
)
EXTENSIONS = choose(
    b'', b'', b'', b'', b' ', b'\t ', b';', b';a=b', b';a;b', b';"\\";\t\x01"', b';\xff', b' \t;a = "b"',
)
Made = collections.namedtuple('Made', 'method wire code headers body persists')


def field_lines(draw, fields):
    """These fields as they may be written: in any case, with blanks, folds, and CRLF or LF at the end of each line"""
    wire = b''
    for name, value in fields:
        name = draw(choose(bytes.lower, bytes.title, bytes.upper))(name)
        # A single space may have been a fold, and any of the blanks around the value.
        value = re.sub(b'(?<![ \t]) (?![ \t])', draw(FOLDS), value)
        wire += name + b':' + draw(BLANKS) + draw(FOLDS) + value + draw(BLANKS) + draw(LINE_ENDS)
    return wire


def head(draw, version, code, fields):
    reason = draw(choose(b'', b' ', b' OK', b' Not \xe9 \x01:Found', b'  \t'))
    return version + b' ' + code + reason + draw(LINE_ENDS) + field_lines(draw, fields) + draw(LINE_ENDS)


def chunked(draw, body):
    """A chunked coding of the body: sizes as they may be written, extensions, trailers"""
    wire, at = b'', 0
    while at < len(body):
        size = draw(st.integers(1, len(body) - at))
        wire += chunk_size_line(draw, size) + body[at:at + size] + b'\r\n'
        at += size
    return wire + chunk_size_line(draw, 0) + field_lines(draw, draw(FIELDS)) + draw(LINE_ENDS)


def chunk_size_line(draw, size):
    return draw(choose(b'%x', b'%X', b'0%x', b'%016x')) % size + draw(EXTENSIONS) + b'\r\n'


@st.composite
def responses(draw):
    """A Made: any response that the grammar can produce, the 1xx before it included"""
    method = draw(choose(b'GET', b'GET', b'GET', b'POST', b'HEAD'))
    version = draw(choose(b'HTTP/1.1', b'HTTP/1.1', b'HTTP/1.1', b'HTTP/1.9', b'HTTP/1.0'))
    code = draw(choose(b'200', b'200', b'200', b'205', b'404', b'099', b'999', b'204', b'304'))
    body = draw(CONTENT)
    kind = draw(choose('length', 'chunked', 'chunked', 'close'))
    if method == b'HEAD' or code in (b'204', b'304'):
        kind, framing, content, body = 'none', draw(WITHOUT_MEANING), b'', b''
    elif kind == 'chunked' and version != b'HTTP/1.0':
        framing = ((b'transfer-encoding', draw(choose(b'chunked', b'Chunked'))),)
        content = chunked(draw, body)
    elif kind == 'length':
        framing = tuple((b'content-length', value % ((len(body),) * value.count(b'%'))) for value in draw(LENGTHS))
        content = body
    else:
        kind, framing, content = 'close', (), body
    options, *persists = draw(OPTIONS)
    fields = draw(st.permutations(draw(FIELDS) + list(framing + options)))
    interim = b''.join(
        head(draw, b'HTTP/1.1', interim, draw(FIELDS) + list(draw(WITHOUT_MEANING)))
        for interim in draw(choose((), (), (b'100',), (b'103', b'100'), (b'102', b'199', b'100')))
    )
    surplus = draw(choose(*(b'',) * 9, b'\r\n', b'HTTP/1.1 200 OK\r\n\r\n')) if kind != 'close' else b''
    is_faulty = version == b'HTTP/1.0' and any(name == b'transfer-encoding' for name, _ in framing)
    wire = interim + head(draw, version, code, fields) + content + surplus
    return Made(method, wire, code, tuple(fields), body,
                persists[version == b'HTTP/1.0'] and kind != 'close' and not surplus and not is_faulty)


# -------- Mutations of them

# What framing turns on.
SPLINTERS = choose(
    b'\r', b'\n', b'\r\n', b'\r\n\r\n', b'\n\n', b'\0', b' ', b'\t', b':', b',', b';', b'"', b'0', b'1', b'+', b'-',
    b'_', b'0x', b'f', b'G', b'\x0b', b'\x0c', b'\x1c', b'\x85', b'\xa0', b'\xb2', b'chunked', b'gzip, ', b'identity',
    b'content-length: 3\r\n', b'Content-Length:7\n', b'transfer-encoding: chunked\r\n', b'connection: close\r\n',
    b'0\r\n\r\n', b'5\r\nhello\r\n', b'3;x=y\r\n', b'HTTP/1.1 100 \r\n\r\n', b'HTTP/1.0 200 OK\r\n', b'\r\n folded',
    b'99999999999999999999', b'9223372036854775808', b'ffffffffffffffff',
)
# Anywhere, or beside the end of a line, counted from the last one.
PLACES = st.one_of(st.integers(0, 400), st.tuples(st.integers(1, 8), st.integers(-3, 2)))


def swapped(wire, i, j, k):
    i, j, k = sorted((i, j, k))
    return wire[:i] + wire[j:k] + wire[i:j] + wire[k:]


MUTATIONS = st.one_of(
    st.tuples(choose(lambda wire, i, bit: wire[:i] + bytes(byte ^ 1 << bit for byte in wire[i:i + 1]) + wire[i + 1:]),
              PLACES, st.integers(0, 7)),
    st.tuples(choose(lambda wire, i, new: wire[:i] + new + wire[i:]), PLACES, SPLINTERS),
    st.tuples(choose(lambda wire, i, new: wire[:i] + new + wire[i + len(new):]), PLACES, SPLINTERS),
    st.tuples(choose(lambda wire, i, size: wire[:i] + wire[i + size:]), PLACES, st.integers(1, 8)),
    st.tuples(choose(lambda wire, i, size: wire[:i + size] + wire[i:]), PLACES, st.integers(1, 40)),
    st.tuples(choose(swapped), PLACES, st.integers(0, 400), st.integers(0, 400)),
    st.tuples(choose(lambda wire, i: wire[:i]), PLACES),
)


def mutated(wire, mutations):
    for mutate, place, *how in mutations:
        if isinstance(place, tuple):
            line, beside = place
            ends = [match.end() for match in re.finditer(b'\n', wire)] or [0]
            place = max(0, ends[-line % len(ends)] + beside)
        wire = mutate(wire, place % (len(wire) + 1), *how)
    return wire


@st.composite
def mutants(draw):
    """(method, a response that was changed in one to four places)"""
    made = draw(responses())
    return made.method, mutated(made.wire, draw(st.lists(MUTATIONS, min_size=1, max_size=4)))


# -------- Properties as tests


def holds(examples, cost=1, **strategies):
    """A test that a property holds for so many examples, or for the long run's, fewer by the cost of each"""
    def decorate(method):
        @functools.wraps(method)
        def test(self):
            self.check(method, self.examples // cost if self.examples else examples, strategies)
        return test
    return decorate


class PropertyTestCase(unittest.TestCase):
    """Of which each test is a property; the same examples each time, unless `examples` says how many, and no `seed`"""
    examples = seed = None
    counts = {}

    @classmethod
    def setUpClass(cls):
        cls.client = Client()

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def count(self):
        self.counts[self.id()] = self.counts.get(self.id(), 0) + 1

    def check(self, method, examples, strategies):
        def example(**drawn):
            self.count()
            with no_hang():
                method(self, **drawn)

        settings = hypothesis.settings(
            max_examples=examples, derandomize=self.examples is None, database=None, deadline=None,
            print_blob=False, suppress_health_check=[hypothesis.HealthCheck.too_slow])
        test = hypothesis.given(**strategies)(settings(example))
        (test if self.seed is None else hypothesis.seed(self.seed)(test))()

    def assert_outcome(self, outcome, verdict):
        if verdict.errors:
            self.assertIn(outcome, verdict.errors, verdict.rule)
        else:
            self.assertEqual(outcome, verdict.outcome)


# Found by what is below, or by fuzzing: (limit, wire).
FOUND = (
    # A wrong first byte was an HttpHeaderTooLong, where all came at once.
    (20, b'hello, this is no HTTP at all\r\n\r\n'),
    (20, b'hello, this is no HTTP at all'),
    # A malformed chunk-size line was one that is too long, if enough came after it in the same read.
    (60, b'HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\nx\r\n' + b'hello ' * 20),
    (60, b'HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\nx\r\n' + b'hello ' * 20),
    # The other way round: one that is too long was malformed, if its end came in the same read.
    (60, b'HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n' + b'hello ' * 20 + b'\r\n'),
)


# Of each kind of response a small one, for all that one byte can spoil.
SMALL = (
    b'HTTP/1.1 200 O\r\nA: b\r\n c\r\nContent-Length: 5, 5\r\n\r\nhello',
    b'HTTP/1.1 200\ntransfer-encoding:chunked\n\n3;a\r\nhel\r\n2\r\nlo\r\n0\r\na: b\r\n\r\n',
    b'HTTP/1.1 100 \r\n\r\nHTTP/1.0 404 \r\nconnection: close\r\n\r\nhello',
)
SPOILERS = b'\0\t\n\r +,-019:;_ax\x80'


class ResponsePropertyTests(PropertyTestCase):

    def test_one_byte_more_less_or_other_means_what_the_rules_say(self):
        for wire, byte in itertools.product(SMALL, SPOILERS if self.examples is None else range(256)):
            new = bytes((byte,))
            for at in range(len(wire)):
                before, after = wire[:at], wire[at + 1:]
                for spoiled in (before + new + wire[at:], before + new + after, before + after):
                    self.count()
                    (outcome,), _ = self.client.play([(GET, spoiled, (1,) if byte % 2 else ())])
                    self.assert_outcome(outcome, judged(GET, spoiled))

    def test_what_was_found(self):
        for limit, wire in FOUND:
            for sizes in ((), (1,), (7,)):
                with self.subTest((wire, sizes)):
                    (outcome,), _ = self.client.play([(GET, wire, sizes)], limit)
                    self.assert_outcome(outcome, judged(GET, wire, limit))

    def test_no_more_is_held_than_one_read_and_the_limit(self):
        mebibytes = 1
        for what, begin, repeated, error in (
                ('a body by length', b'content-length: %d\r\n\r\n' % (mebibytes << 20), b'x', None),
                ('a body to the end', b'\r\n', b'x', None),
                ('small chunks', b'transfer-encoding: chunked\r\n\r\n', b'a;x\r\n0123456789\r\n',
                 HttpConnectionClosedError),
                ('a large chunk', b'transfer-encoding: chunked\r\n\r\nfffffff\r\n', b'x', HttpConnectionClosedError),
                ('a field', b'a: ', b'x', HttpHeaderTooLong),
                ('fields', b'', b'a: b\r\n', HttpHeaderTooLong),
                ('1xx', b'\r\n', b'HTTP/1.1 100 \r\n\r\n', HttpHeaderTooLong),
                ('a chunk size', b'transfer-encoding: chunked\r\n\r\n', b'0', HttpHeaderTooLong),
                ('an extension', b'transfer-encoding: chunked\r\n\r\n5;', b'x', HttpHeaderTooLong),
                ('trailers', b'transfer-encoding: chunked\r\n\r\n0\r\n', b'a: b\r\n', HttpHeaderTooLong),
        ):
            piece = (repeated * 65536)[:65536 // len(repeated) * len(repeated)]
            first = (b'HTTP/1.1 100 \r\n' if what == '1xx' else b'HTTP/1.1 200 \r\n') + begin
            with self.subTest(what):
                raised, size, received, peak = self.client.drain([first] + [piece] * (mebibytes * 16))
                self.assertIs(raised, error)
                # Of a read of chunks of 10 bytes each is, for a moment, an object of 43.
                self.assertLess(peak, 12 * 65536)
                if error is HttpHeaderTooLong:
                    self.assertLessEqual(received, len(first) + 2 * len(piece))
                else:
                    self.assertGreater(size, mebibytes << 19)

    @holds(250, made=responses(), sizes=SIZES)
    def test_a_response_means_the_same_however_it_is_cut(self, made, sizes):
        meaning = (made.code, made.headers, made.body, made.persists)
        self.assertEqual(judged(made.method, made.wire).outcome, meaning)
        self.assertEqual(self.client.play([(made.method, made.wire, sizes)]), ([meaning], 1))

    @holds(20, cost=20, made=responses(), sizes=SIZES)
    def test_a_response_that_ends_anywhere_means_what_is_complete_of_it(self, made, sizes):
        for end in range(len(made.wire)):
            wire = made.wire[:end]
            (outcome,), _ = self.client.play([(made.method, wire, sizes)])
            self.assert_outcome(outcome, judged(made.method, wire))

    @holds(70, several=st.lists(responses(), min_size=2, max_size=3), sizes=SIZES)
    def test_responses_on_one_connection_do_not_mix(self, several, sizes):
        outcomes, connections = self.client.play([(made.method, made.wire, sizes) for made in several])
        self.assertEqual(outcomes, [(made.code, made.headers, made.body, made.persists) for made in several])
        self.assertEqual(connections, 1 + sum(not made.persists for made in several[:-1]))

    @holds(450, mutant=mutants(), sizes=SIZES, limit=choose(MAX_HEADER_LENGTH, MAX_HEADER_LENGTH, 100, 60, 20))
    def test_a_mutation_means_what_the_rules_say_however_it_is_cut(self, mutant, sizes, limit):
        method, wire = mutant
        verdict = judged(method, wire, limit)
        for each in ((), sizes):
            (outcome,), _ = self.client.play([(method, wire, each)], limit)
            self.assert_outcome(outcome, verdict)


# -------- Requests, and what must stand on the wire

UNRESERVED = string.ascii_letters + string.digits + '-._~'
TARGET_SAFE = UNRESERVED + "!$&'()*+,;=:@/?"
CHARACTERS = choose(*"aZ0/%+;=&~!'()*,:@ []{}|\\^`\"<>$-._", '%2F', '%20', '%zz', '..', '//', '\xe9', '\u6f22',
                    '\U0001f600', '\x80', '\xa0', '\u2028')
TEXTS = st.lists(CHARACTERS, max_size=6).map(''.join)
HOSTS = choose(  # as written, and as it must be sent
    ('a.test', 'a.test'), ('A-1.Test', 'a-1.test'), ('a_b.test.', 'a_b.test.'),
    ('b\xfccher.test', 'xn--bcher-kva.test'), ('127.0.0.1', '127.0.0.1'), ('[::1]', '[::1]'),
    ('[2001:DB8::0:1]', '[2001:db8::1]'),
)
PORTS = choose(  # scheme, the port as written, and as it must be sent
    ('http', '', ''), ('http', ':', ''), ('HTTP', ':80', ''), ('http', ':8080', ':8080'), ('http', ':443', ':443'),
    ('http', ':0080', ''), ('https', '', ''), ('Https', ':443', ''), ('https', ':80', ':80'),
)


def encoded(text, safe):
    data = text if isinstance(text, bytes) else str(text).encode()
    return ''.join(chr(byte) if chr(byte) in safe else '%{:02X}'.format(byte) for byte in data)


@st.composite
def urls(draw):
    """(url, authority, target): a url, and what must be sent for it: nothing decoded, nothing encoded twice"""
    (scheme, port, sent_port), (host, sent_host) = draw(PORTS), draw(HOSTS)
    path = draw(choose('', '/', '/')) and '/' + draw(TEXTS) + draw(choose('', '', '&'))
    query = draw(choose('', '?')) and '?' + draw(TEXTS) + draw(choose('', '?', '&'))
    fragment = draw(choose('', '#')) and '#' + draw(TEXTS) + '?#'
    first, *rest = ((path or '/') + query).split('%')
    target = encoded(first, TARGET_SAFE) + ''.join([
        ('%' if len(HEX_DIGITS.intersection(part[:2].encode())) == len(set(part[:2])) and len(part) > 1 else '%25') +
        encoded(part, TARGET_SAFE) for part in rest])
    return scheme + '://' + host + port + path + query + fragment, (sent_host + sent_port).encode(), target.encode()


PARAM_VALUES = st.one_of(TEXTS, st.binary(max_size=4), st.integers(-9, 99), choose(1.5, '&a=b', 'a=b&', '#', '\r\n'))
PARAMS = st.lists(st.tuples(PARAM_VALUES, st.one_of(PARAM_VALUES, st.lists(PARAM_VALUES, max_size=2))), max_size=3)


def with_params_encoded(target, pairs):
    query = '&'.join(
        encoded(name, UNRESERVED) + '=' + encoded(each, UNRESERVED)
        for name, value in pairs for each in (value if isinstance(value, list) else [value])
    ).encode()
    if not query:
        return target
    if b'?' not in target:
        return target + b'?' + query
    own = target.split(b'?', 1)[1]
    return target + (b'&' if own and own[-1:] != b'&' else b'') + query


# Any bytes but the controls, of which HTAB alone may stand in a value.
SENT_VALUES = st.binary(max_size=12).map(
    lambda value: value.translate(None, bytes(byte for byte in range(32) if byte != 9) + b'\x7f'))
SENT_FIELDS = st.lists(st.tuples(
    TOKENS.filter(lambda name: name.lower() not in (b'content-length', b'transfer-encoding', b'host', b'expect')),
    SENT_VALUES), max_size=3)
PIECES = st.lists(st.one_of(
    st.sampled_from((b'', b'0\r\n\r\n', b'GET / HTTP/1.1\r\n\r\n', b'x' * 70000,
                     bytearray(b'abc'), memoryview(b'abcd')[1:3], array.array('H', [1, 2, 3]))),
    st.binary(max_size=20),
), max_size=4)
TAKES = choose((65536,), (1, 70000), (3, 50, 9000))


class Iterable:
    """A body that is an iterable, but not its own iterator"""

    def __init__(self, pieces):
        self.pieces = pieces

    def __aiter__(self):
        return pieces_of(*self.pieces)


def body_of(kind, pieces):
    return {
        'none': lambda: None,
        'a generator': lambda: pieces_of(*pieces),
        'a function': lambda: lambda: pieces_of(*pieces),
        'an iterable': lambda: Iterable(pieces),
        'streamed': lambda: streamed(b''.join(pieces)),
    }[kind]()


Asked = collections.namedtuple('Asked', 'arguments request')


@st.composite
def requests(draw):
    """An Asked: the arguments of a request that is well-formed, and the request that must be sent for it"""
    method = draw(st.one_of(choose(b'GET', b'POST', b'PUT', b'HEAD', b'get'), TOKENS))
    hypothesis.assume(method != b'CONNECT')
    url, authority, target = draw(urls())
    params, fields, pieces = draw(PARAMS), draw(SENT_FIELDS), draw(PIECES)
    kind = draw(choose('none', 'a generator', 'a function', 'an iterable', 'streamed'))
    framing = draw(choose('nothing', 'length', 'chunked'))
    content = b'' if kind == 'none' else b''.join(pieces)
    own = [(b'Host', b'other.test:1')] * draw(choose(0, 0, 1))
    if framing == 'length':
        own.append((b'Content-Length', draw(choose(b'%d', b'00%d')) % len(content)))
    elif framing == 'chunked':
        own.append((b'Transfer-Encoding', draw(choose(b'chunked', b'Chunked'))))
    expects = kind != 'none' and (framing != 'nothing' or kind != 'streamed' or content) and draw(choose(0, 0, 1))
    own += [(b'Expect', b'100-continue')] * bool(expects)
    headers = draw(st.permutations(fields + own))
    added = \
        [] if framing != 'nothing' else \
        [(b'content-length', b'%d' % len(content))] if kind == 'streamed' and content else \
        [(b'transfer-encoding', b'chunked')] if content or expects else \
        [(b'content-length', b'0')] if method in (b'POST', b'PUT', b'PATCH') else \
        []
    host = [] if own[:1] and own[0][0] == b'Host' else [(b'host', authority)]
    arguments = dict(method=method, url=url, headers=headers, body=body_of(kind, pieces),
                     params=draw(choose(list, iter))(params))
    sent = host + [(name, value.strip(b' \t')) for name, value in headers] + added
    return Asked(arguments, (method, with_params_encoded(target, params), sent, content))


class Unfinished(Exception):
    """What stands on the wire is the beginning of a request"""


def expect(condition, rule):
    assert condition, rule


def partitioned(data, separator):
    before, found, after = data.partition(separator)
    if not found:
        raise Unfinished
    return before, after


def read_request(wire):
    """(method, target, fields, body) of exactly one request, by the letter of RFC 9112, nothing tolerated"""
    section, rest = partitioned(wire, b'\r\n\r\n')
    first, *lines = section.split(b'\r\n')
    method, target, version = first.split(b' ')
    expect(method and set(method) <= TCHAR, 'a method is a token')
    expect(target[:1] == b'/' and all(0x21 <= byte <= 0x7e and byte != 0x23 for byte in target), 'origin-form')
    expect(version == b'HTTP/1.1', 'version')
    fields = []
    for line in lines:
        name, colon, value = line.partition(b':')
        expect(colon and name and set(name) <= TCHAR, 'a name is a token')
        expect(all(byte == 9 or 32 <= byte != 127 for byte in value), 'no controls in a value')
        fields.append((name, value.strip(b' \t')))
    names = [name.lower() for name, _ in fields]
    expect(names.count(b'host') == 1, 'one host')
    framing = [(name, value) for name, value in zip(names, (value for _, value in fields))
               if name in (b'content-length', b'transfer-encoding')]
    expect(len(framing) < 2, 'one field that frames the body')
    kind, value = framing[0] if framing else (b'content-length', b'0')
    if kind == b'content-length':
        expect(value and set(value) <= DIGITS, 'a length is digits')
        if len(rest) < int(value):
            raise Unfinished
        body, surplus = rest[:int(value)], rest[int(value):]
    else:
        expect(value.lower() == b'chunked', 'chunked')
        body, surplus = read_chunks(rest)
    expect(not surplus, 'one request')
    return method, target, fields, body


def read_chunks(wire):
    body = b''
    while True:
        size, wire = partitioned(wire, b'\r\n')
        expect(size and set(size) <= HEX_DIGITS, 'a size')
        size = int(size, 16)
        if len(wire) < size + 2:
            raise Unfinished
        expect(wire[size:size + 2] == b'\r\n', 'the end of a chunk')
        body, wire = body + wire[:size], wire[size + 2:]
        if not size:
            return body, wire


H11_VERSION = tuple(map(int, h11.__version__.split('.')[:2]))


def read_request_by_h11(wire):
    """(method, target, fields, body), or None if it refuses the head"""
    server = h11.Connection(h11.SERVER, max_incomplete_event_size=len(wire) + 1)
    server.receive_data(wire)
    try:
        head, body = server.next_event(), b''
    except h11.RemoteProtocolError:
        return None
    while True:
        event = server.next_event()
        if event is h11.NEED_DATA:
            raise Unfinished
        if type(event) is h11.EndOfMessage:
            expect(server.trailing_data == (b'', False), 'one request')
            return head.method, head.target, [tuple(map(bytes, field)) for field in head.headers], body
        body += event.data


def as_h11_gives(method, target, fields, content):
    fields = [(name.lower(), value) for name, value in fields]
    if H11_VERSION >= (0, 16) and any(n == b'content-length' and len(v) > 20 for n, v in fields):
        return None  # it counts the leading zeros, which RFC 9110 §8.6 allows
    return method, target, [(n, v.lower() if n == b'transfer-encoding' else v) for n, v in fields], content


HOSTILE_TEXT = st.lists(st.one_of(CHARACTERS, choose(
    '\r', '\n', '\r\n', '\r\nx: y\r\n\r\n', '\0', '\t', '\x7f', '\x85', '#', '?', '\ud800', '\uff0f', '\uff0e',
    '\uff20', '\uff1a', '\u2100', '\u017f', '\u212a', '\u3002', '\xad', '\u200d', '%0d%0a', '%00', 'user@', '0x7f.1',
    ' HTTP/1.1',
)), max_size=4).map(''.join)
JUNK = st.sampled_from(
    (None, 5, 'text', b'', b'\r\n', b'a b', b'a:', b'x\r\ny: z', b'x\0', b'x\n y', bytearray(b'a'), (), object()))
HOSTILE_VALUES = st.one_of(
    SENT_VALUES, JUNK,
    st.tuples(
        choose(b'', b'a'), choose(b'\n', b'\r', b'\r\n', b'\0', b'\x0b', b'\x7f', b'\n '), choose(b'', b'b: c'),
    ).map(b''.join),
)
FRAMING_FIELDS = st.tuples(
    choose(b'host', b'Host', b'Content-Length', b'content-length', b'transfer-encoding', b'expect'),
    choose(b'0', b'3', b'+3', b' 3', b'3, 3', b'1_0', b'\xb2', b'9' * 5000, b'0' * 21, b'chunked',
           b'gzip, chunked', b'100-continue', b'a.test'))
HOSTILE_FIELDS = st.one_of(
    st.lists(FRAMING_FIELDS, max_size=3),
    st.lists(st.one_of(st.tuples(TOKENS, HOSTILE_VALUES), FRAMING_FIELDS), max_size=2),
    st.lists(st.tuples(st.one_of(st.binary(max_size=4), JUNK), SENT_VALUES), max_size=2),
    st.lists(JUNK, min_size=1, max_size=2),
    JUNK,
)
HOSTILE_PIECES = st.lists(st.one_of(st.binary(max_size=4), choose(b'', 'text', None, 5, b'abc')), max_size=3)


@st.composite
def hostile_requests(draw):
    """(arguments of `request` of which one or two may be malformed, the pieces of the body)"""
    pieces = draw(HOSTILE_PIECES)
    hostile = dict(
        method=st.one_of(choose(b'CONNECT'), st.binary(max_size=4), JUNK),
        url=st.one_of(st.tuples(
            choose('', 'http://', 'http://a.test', 'http://a.test/', 'http://a.test/?', 'http://[', '//', 'ftp://'),
            HOSTILE_TEXT, choose('', '/'), HOSTILE_TEXT).map(''.join), JUNK),
        headers=HOSTILE_FIELDS,
        params=st.one_of(PARAMS, st.dictionaries(HOSTILE_TEXT, HOSTILE_TEXT, max_size=2), JUNK),
        body=st.one_of(
            choose('none', 'a generator', 'a function', 'an iterable').map(lambda kind: body_of(kind, pieces)), JUNK,
            choose(lambda: 5, lambda: None, lambda: 'text')),
    )
    arguments = dict(method=b'POST', url='http://a.test/', headers=(), params=(), body=body_of('a generator', pieces))
    for name in draw(st.lists(st.sampled_from(sorted(hostile)), min_size=1, max_size=2)):
        arguments[name] = draw(hostile[name])
    return arguments, pieces


def check_hostile_request(client, arguments, pieces, takes=(65536,)):
    """That it is refused, and nothing sent, or exactly one request, with what was given, is on the wire"""
    error, wire = client.send(arguments, takes)
    if isinstance(error, HttpRequestError):
        assert not wire
        return
    assert not re.search('[\0-\x1f\x7f]', arguments['url']), 'a control in the url, which must be refused'
    if error is not None:
        assert type(error) is HttpBodyError
        with contextlib.suppress(Unfinished):
            read_request(wire)
        return
    method, target, fields, content = read_request(wire)
    assert read_request_by_h11(wire) == as_h11_gives(method, target, fields, content)
    assert method == arguments['method']
    assert content == (b''.join(pieces) if arguments['body'] is not None else b'')
    given = [(name, value.strip(b' \t')) for name, value in arguments['headers'] or ()]
    added = [field for field in fields if field not in given]
    assert [field for field in fields if field in given] == given
    assert {name for name, _ in added} <= {b'host', b'transfer-encoding', b'content-length'}, added


class RequestPropertyTests(PropertyTestCase):

    @holds(200, asked=requests(), takes=TAKES)
    def test_exactly_the_request_that_was_asked_for_is_sent(self, asked, takes):
        error, wire = self.client.send(asked.arguments, takes)
        self.assertIsNone(error)
        self.assertEqual(read_request(wire), asked.request)
        self.assertEqual(read_request_by_h11(wire), as_h11_gives(*asked.request))

    @holds(400, hostile=hostile_requests(), takes=TAKES)
    def test_a_hostile_request_is_refused_before_anything_is_sent_or_is_one_request(self, hostile, takes):
        check_hostile_request(self.client, *hostile, takes)

    @holds(100, pieces=PIECES, difference=st.integers(-3, 3), takes=TAKES)
    def test_a_body_that_does_not_keep_to_its_length_is_no_request_and_never_more(self, pieces, difference, takes):
        content = b''.join(pieces)
        length = max(0, len(content) + difference)
        headers = [(b'content-length', b'%d' % length)]
        error, wire = self.client.send(
            dict(method=b'PUT', url='http://a.test/', headers=headers, body=pieces_of(*pieces)), takes)
        sent = wire.partition(b'\r\n\r\n')[2]
        self.assertIs(type(error), type(None) if length == len(content) else HttpBodyError)
        self.assertLessEqual(len(sent), length)
        self.assertTrue(content.startswith(sent))

    @holds(100, url=urls(), hostile=HOSTILE_TEXT)
    def test_a_url_that_was_split_is_split_alike_again(self, url, hostile):
        for each in (url[0], url[0] + hostile, 'http://' + hostile):
            with contextlib.suppress(HttpRequestError):
                key, authority, target = split_url(each)
                self.assertRegex(authority, b'^[0-9a-z._~:\\[\\]-]+$')
                again = '{}://{}{}'.format(key[0], authority.decode(), target.decode())
                self.assertEqual(split_url(again), (key, authority, target))
        self.assertEqual(split_url(url[0])[1:], url[1:])

    @holds(30, data=st.one_of(st.binary(), st.binary().map(bytearray), st.binary().map(memoryview)))
    def test_what_is_streamed_is_buffered_again_and_again(self, data):
        body = streamed(data)
        for _ in range(2):
            self.assertEqual(self.client.loop.run_until_complete(buffered(body)), bytes(data))


# -------- Two other readers: h11, and the standard library's http.client


def read_by_h11(method, wire):
    """(code, headers, body), or None where the response is refused or incomplete"""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_LENGTH)
    client.send(h11.Request(method=method, target='/', headers=[('Host', 'a.test')]))
    client.send(h11.EndOfMessage())
    head, body, data = None, b'', [wire, b'']
    try:
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(data.pop(0))
            elif type(event) is h11.Response:
                head = event
            elif type(event) is h11.Data:
                body += event.data
            elif type(event) is h11.EndOfMessage:
                headers = tuple((bytes(name), bytes(value)) for name, value in head.headers)
                return b'%d' % head.status_code, headers, body
            elif type(event) is not h11.InformationalResponse:
                return None
    except (h11.RemoteProtocolError, IndexError):
        return None


class _Socket:
    def __init__(self, wire):
        self.wire = wire

    def makefile(self, mode):
        return io.BytesIO(self.wire)


def read_by_http_client(method, wire):
    """The same; without the headers, which the parser for e-mail reads"""
    response = http.client.HTTPResponse(_Socket(wire), method=method.decode())
    try:
        response.begin()
        return b'%d' % response.status, None, response.read()
    except (http.client.HTTPException, ValueError, OSError):
        return None
    finally:
        response.close()


# The names by which rows may call a reader.
NAMES_OF_READERS = {
    'h11': ('h11', 'h11 from 0.16' if H11_VERSION >= (0, 16) else 'h11 to 0.15'), 'http.client': ('http.client',),
}
READERS = {'h11': read_by_h11, 'http.client': read_by_http_client}


def disagreement(reader, method, wire, verdict):
    """'takes' or 'refuses', what the other reader does and lowhaio does not, or 'code', 'headers' or 'body', in which
    they differ where both take the response; None where they agree"""
    theirs = READERS[reader](method, wire)
    if verdict.errors:
        return 'takes' if theirs else None
    if theirs is None:
        return 'refuses'
    code, headers, body = theirs
    if code != verdict.code:
        return 'code'
    if headers is not None and without_framing(headers) != without_framing(verdict.headers):
        return 'headers'
    return None if body == verdict.body else 'body'


def without_framing(headers):
    """h11 gives these as it understood them, not as they were sent"""
    return [field for field in headers if field[0] not in (b'content-length', b'transfer-encoding')]


Row = collections.namedtuple('Row', 'reader what rule pattern method wire reason')
OK = b'HTTP/1.1 200 OK\r\n'
CHUNKED = OK + b'transfer-encoding: chunked\r\n\r\n'
TAKEN = 'taken'
# A blank or a fold, any number of them; what follows a value that is complete.
B = rb'(?:[ \t]|\r?\n[ \t])*'
END = B + rb'\r?\n(?![ \t])'
LENGTH, CODING = rb'\ncontent-length:', rb'\ntransfer-encoding:'
OTHER_1XX = rb'\A(?:[^\n]* 100\b.*?\n\r?\n)*[^\n]* 1(?!00)\d\d\b'
UNHEARD_CODING = CODING + rb'[ \t]*(?:\r?\n[ \t]+chunked|chunked[ \t])'
UNHEARD_LENGTH = LENGTH + rb'[^:]*,'
NO_BODY = 'for HEAD, 1xx, 204 and 304 there is no body, whatever a field says (RFC 9112 §6.3): it is not judged'
BELOW_100 = 'three digits are a code; one without a meaning is to be treated as a 5xx (RFC 9110 §15)'
NOT_CHECKED = 'it does not look'
EMAIL = 'its parser, that of e-mail, takes the line, or makes it the end of the fields: the ways of smuggling'
INT = 'it is read by `int`, which takes signs, blanks, underscores and other digits, and if not, by none'
AT_THE_END = 'the end of the connection counts as the end of it: what was cut off looks complete'
# Each kind of disagreement: what the other reader does; the rule by which lowhaio refuses the response, or `taken`;
# a pattern of the wire; an example; and why it stays as it is. `rule` and `pattern` are regular expressions.
ROWS = [Row(*row) for row in (
    ('h11', 'refuses', TAKEN, LENGTH + B + rb'(?!\d+(?:%b,%b\d+)*%b)' % (B, B, END),
     HEAD, OK + b'content-length: x\r\n\r\n', NO_BODY),
    ('h11 from 0.16', 'refuses', TAKEN, LENGTH + rb'[^:]*\d{21}',
     HEAD, OK + b'content-length: 999999999999999999999\r\n\r\n', NO_BODY),
    ('h11', 'refuses', TAKEN, LENGTH + rb'[^:]*\d.*' + LENGTH,
     HEAD, OK + b'content-length: 5\r\ncontent-length: 6\r\n\r\n', NO_BODY),
    ('h11', 'refuses', TAKEN, CODING + B + rb'(?!chunked%b)' % END,
     HEAD, OK + b'transfer-encoding: gzip\r\n\r\n', NO_BODY),
    ('h11', 'refuses', TAKEN, CODING + rb'.*' + CODING,
     HEAD, OK + b'transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n', NO_BODY),
    ('h11', 'refuses', TAKEN, LENGTH + rb'[^:]*\b0\d',
     GET, OK + b'content-length: 5, 05\r\n\r\nhello', 'one number, written in two ways: it compares the digits'),
    ('h11', 'refuses', TAKEN, rb'[0-9a-f][ \t]+;',
     GET, CHUNKED + b'5 ;a\r\nhello\r\n0\r\n\r\n', 'blanks before an extension are in the grammar, RFC 9112 §7.1.1'),
    ('h11', 'refuses', TAKEN, rb'[\x0b\x0c]',
     GET, OK + b'a: \x0b\r\ncontent-length: 0\r\n\r\n', 'of all controls in values it refuses VT and FF alone'),
    ('h11', 'refuses', TAKEN, rb'HTTP/1\.[0-9] 0\d\d\b',
     GET, b'HTTP/1.1 099 \r\n\r\n', BELOW_100),
    ('h11', 'takes', 'no HTTP/1', rb'HTTP/[02-9]\.[0-9] ',
     GET, b'HTTP/2.0 200 OK\r\n\r\n', 'another major version is another protocol, RFC 9110 §2.5'),
    ('h11', 'takes', 'transfer-encoding', rb'HTTP/1\.0 ',
     GET, b'HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
     'RFC 9112 §6.1: the framing is then to be treated as faulty'),
    ('h11', 'takes', 'transfer-encoding and content-length', LENGTH,
     GET, OK + b'content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n',
     'RFC 9112 §6.3 allows both; it is how one message is smuggled past another reader'),
    ('h11', 'takes', 'a chunk size', rb'[0-9a-f]{17,20}',
     GET, CHUNKED + b'00000000000000005\r\nhello\r\n0\r\n\r\n', '16 digits are 64 bits; it takes 20'),
    ('h11', 'takes', '(?:NUL|bare CR) in a chunk-size line', rb';[^\n]*[\r\0]',
     GET, CHUNKED + b'5;\0\r\nhello\r\n0\r\n\r\n', 'refused, as everywhere: where the line ends is in doubt'),
    ('h11 to 0.15', 'takes', 'a chunk that does not end in CRLF', b'',
     GET, CHUNKED + b'5\r\nhello!!0\r\n\r\n', NOT_CHECKED),
    ('http.client', 'refuses|takes|code|body', '.*', OTHER_1XX,
     GET, b'HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 \r\n\r\n', 'it skips 100 alone: another 1xx is the answer'),
    ('http.client', 'refuses', TAKEN, rb'HTTP/1\.[0-9] 0\d\d\b',
     GET, b'HTTP/1.1 099 \r\n\r\n', BELOW_100),
    ('http.client', 'takes', 'switching protocols', rb' 101\b',
     GET, b'HTTP/1.1 101 Switching Protocols\r\n\r\n', 'what follows is not HTTP, and nothing was to be switched'),
    ('http.client', 'refuses', TAKEN, rb' (?:204|304)\b.*' + CODING,
     GET, b'HTTP/1.1 204 \r\ntransfer-encoding: chunked\r\n\r\n', NO_BODY),
    ('http.client', 'body|takes', TAKEN + '|.*chunk.*|the end within the trailers', UNHEARD_CODING,
     GET, OK + b'transfer-encoding: chunked \r\n\r\n0\r\n\r\n', 'a blank or a fold beside `chunked` hides it'),
    ('http.client', 'body|takes', TAKEN + '|the end within the length', UNHEARD_LENGTH,
     GET, OK + b'content-length: 5, 5\r\n\r\nhello more', 'a list of one same length is none to it'),
    ('http.client', 'takes', 'transfer-encoding', b'',
     GET, OK + b'transfer-encoding: gzip\r\n\r\n', 'another coding frames nothing to it'),
    ('http.client', 'takes', 'transfer-encoding and content-length', b'',
     GET, OK + b'content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n', 'chunked wins'),
    ('http.client', 'takes', 'a content-length that is no number', b'',
     GET, OK + b'content-length: +5\r\n\r\nhello', INT),
    ('http.client', 'takes', 'content-lengths that differ', b'',
     GET, OK + b'content-length: 5\r\ncontent-length: 6\r\n\r\nhello', 'the first one wins'),
    ('http.client', 'takes', 'a chunk size', b'',
     GET, CHUNKED + b'0x5\r\nhello\r\n0\r\n\r\n', INT),
    ('http.client', 'takes', 'a chunk-size line that ends in LF alone', b'',
     GET, CHUNKED + b'5\nhello\r\n0\r\n\r\n', NOT_CHECKED),
    ('http.client', 'takes', 'a chunk that does not end in CRLF', b'',
     GET, CHUNKED + b'5\r\nhello!!0\r\n\r\n', NOT_CHECKED),
    ('http.client', 'takes', '(?:NUL|bare CR) in a chunk-size line', b'',
     GET, CHUNKED + b'5;\0\r\nhello\r\n0\r\n\r\n', NOT_CHECKED),
    ('http.client', 'takes', 'the end within the (?:head|trailers)', b'',
     GET, OK + b'a: b\r\n', AT_THE_END),
    ('http.client', 'takes', 'the end within the chunk-size line', rb'[^0-9a-f]0+[ \t]*(?:;[^\n]*)?\r?\Z',
     GET, CHUNKED + b'5\r\nhello\r\n0', AT_THE_END),
    ('http.client', 'takes', 'no HTTP/1|version', b'',
     GET, b' HTTP/1.99 200 OK\r\n\r\n', 'blanks around the status line are stripped; HTTP/1 and what follows is 1.1'),
    ('http.client', 'takes', 'code', b'',
     GET, b'HTTP/1.1  +200 OK\r\n\r\n', INT),
    ('http.client', 'takes', '(?:NUL|bare CR) in a (?:reason|value)', b'',
     GET, OK + b'a: \0\r\n\r\n', EMAIL),
    ('http.client', 'takes', 'a fold that continues no field|no colon|a blank before the colon|a name that is no token',
     b'', GET, OK + b'transfer-encoding : chunked\r\n\r\n0\r\n\r\n', EMAIL),
)]
# What all readers take, or all refuse.
AGREED = (
    (GET, OK + b'content-length: 5\r\n\r\nhello'),
    (GET, OK + b'content-length: 6\r\n\r\nhello'),
    (GET, OK + b'content-length: 4\r\n\r\nhello'),
    (GET, OK + b'connection: close\r\n\r\nhello'),
    (GET, b'HTTP/1.0 200 OK\r\n\r\nhello'),
    (GET, b'HTTP/1.1 100 Continue\r\n\r\n' * 2 + OK + b'content-length: 5\r\n\r\nhello'),
    (GET, b'HTTP/1.1 200\ncontent-length: 5\n\nhello'),
    (GET, OK + b'a:b\r\n c\r\nContent-Length:\t5 \r\n\r\nhello'),
    (GET, CHUNKED + b'5;a=b\r\nhello\r\n6\r\n world\r\n000\r\na: b\r\n\r\n'),
    (GET, CHUNKED + b'5\r\nhello\r\n'),
    (GET, CHUNKED + b'g\r\nhello\r\n0\r\n\r\n'),
    (GET, CHUNKED + b'-5\r\nhello\r\n0\r\n\r\n'),
    (HEAD, OK + b'content-length: 5\r\n\r\n'),
    (GET, b'HTTP/1.1 204 \r\n\r\n'),
    (GET, b'HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n'),
    (GET, b''),
    (GET, b'hello'),
    (GET, b'HTTP/1.1 OK 200\r\n\r\n'),
    (GET, b'HTTP/1.1 99 \r\n\r\n'),
)


def explaining(reader, what, verdict):
    """The rows that say why a reader and lowhaio differ"""
    return [row for row in ROWS if row.reader in NAMES_OF_READERS[reader] and re.fullmatch(row.what, what) and
            re.fullmatch(row.rule, verdict.rule or TAKEN) and
            re.search(row.pattern, verdict.wire, re.IGNORECASE | re.DOTALL)]


class DifferentialTests(PropertyTestCase):
    """lowhaio, h11 and http.client on the same wires; lowhaio's outcome is the judge's, and that is tested here too"""

    def assert_explained(self, method, wire):
        verdict = judged(method, wire)
        (outcome,), _ = self.client.play([(method, wire, ())])
        self.assert_outcome(outcome, verdict)
        for reader in READERS:
            what = disagreement(reader, method, wire, verdict)
            if what is not None:
                self.assertTrue(explaining(reader, what, verdict), (reader, what, verdict.rule))

    @holds(150, made=responses())
    def test_differences_in_responses_are_explained(self, made):
        self.assert_explained(made.method, made.wire)

    @holds(250, mutant=mutants())
    def test_differences_in_mutations_are_explained(self, mutant):
        self.assert_explained(*mutant)

    def test_each_row_explains_its_example(self):
        for reader, names in NAMES_OF_READERS.items():
            for row in (row for row in ROWS if row.reader in names):
                with self.subTest(row):
                    verdict = judged(row.method, row.wire)
                    what = disagreement(reader, row.method, row.wire, verdict) or 'agrees'
                    self.assertIn(row, explaining(reader, what, verdict))
                    self.assert_explained(row.method, row.wire)

    def test_what_is_agreed_needs_no_row(self):
        for method, wire in AGREED:
            with self.subTest(wire):
                for reader in READERS:
                    self.assertIsNone(disagreement(reader, method, wire, judged(method, wire)), reader)


# -------- The long run


def main():
    parser = argparse.ArgumentParser(description='The properties, with many examples')
    parser.add_argument('--examples', type=int, default=4000, help='of each property')
    parser.add_argument('--seed', type=int, help='by which the examples are the same each time')
    options = parser.parse_args()
    PropertyTestCase.examples, PropertyTestCase.seed = options.examples, options.seed
    begun = time.monotonic()
    cases = (ResponsePropertyTests, RequestPropertyTests, DifferentialTests)
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(case) for case in cases)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    for name, count in PropertyTestCase.counts.items():
        sys.stdout.write('{:6} {}\n'.format(count, name.rpartition('.')[2].replace('_', ' ')))
    failures = len(result.failures) + len(result.errors)
    sys.stdout.write('{}: {} examples, {} failures, {:.0f} seconds\n'.format(
        'failed' if failures else 'passed', sum(PropertyTestCase.counts.values()), failures, time.monotonic() - begun))
    sys.exit(bool(failures))


if __name__ == '__main__':
    main()
