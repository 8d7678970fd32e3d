"""A lightweight, functional HTTP/1.1 client for asyncio

    request, close = Pool()
    code, headers, body = await request(b'GET', 'https://example.com/')
    async for chunk in body: ...
    await close()

The file reads the way a request travels: errors; bodies; url and head out; framing, and the head in; the body in;
plain and TLS connections; connecting; one exchange on a connection; `Pool`, which holds the state; and redirects, a
layer on top of it.
"""
import asyncio
import collections
import contextlib
import errno
import functools
import ipaddress
import os
import re
import select
import socket
import ssl
import time
import urllib.parse

from aiodnsresolver import TYPES, DnsRecordDoesNotExist, Resolver

__all__ = (
    'Pool', 'streamed', 'buffered', 'redirectable', 'connect_directly', 'get_ssl_context_default',
    'set_sock_options_default', 'IDEMPOTENT', 'replayable', 'origin', 'url_with_params',
    'HttpError', 'HttpRequestError', 'HttpConnectionError', 'HttpDnsError', 'HttpTlsError', 'HttpConnectionTimeout',
    'HttpDataError', 'HttpBodyError', 'HttpConnectionClosedError', 'HttpProtocolError', 'HttpHeaderTooLong',
    'HttpRedirectError', 'HttpDataTimeout',
)

# What one write hands to the kernel, or to TLS, at most: a MemoryBIO holds a second copy of it.
MAX_WRITE = 65536
# Bytes of a record's content at most. RFC 8446 §5.1
MAX_RECORD = 16384
# Bytes of TLS records without data in a row, at most: tickets, and key updates, of which so many take 60 ms. Those of a
# handshake count too: OpenSSL takes chains of certificates of 100 KiB.
MAX_BARREN = 131072
# How many reads, or writes, may follow each other without a turn of the event loop, where none of them blocks: other
# tasks must run, and an early answer be noticed.
CALLS_A_TURN = 16
# Lengths beyond this do not fit the file offsets of any peer.
MAX_LENGTH = 2 ** 63 - 1
# How many hosts' addresses, urls' parts, and heads are remembered: a crawler's memory must not grow with its hosts.
MAX_REMEMBERED = 1024
# Bytes: a longer url, or head, is taken apart, or composed, anew each time.
MAX_REMEMBERED_LENGTH = 4096
# Bytes of a malformed line that an error shows: enough to know it by, and few of a secret that may stand in it.
MAX_SHOWN = 40
# Seconds for which an answer of the DNS stands at least: the resolver gives entries of /etc/hosts no time at all.
MIN_TTL = 1
# Seconds by which a connection is retired before the server's own `keep-alive: timeout`, for bytes on their way.
KEEP_ALIVE_MARGIN = 1
# The methods that a server may be asked twice to do what they ask for once. RFC 9110 §9.2.2
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))


# -------- Errors: whose fault, in which phase, may the request be sent again?


class HttpError(Exception):
    """Any failure of a request; each has a sentence, and the lower error, where there is one, as `__cause__`"""


class HttpRequestError(HttpError, ValueError):
    """The request itself is malformed, or the pool cannot take it: nothing was sent"""


class HttpConnectionError(HttpError):
    """No connection: nothing of the request was sent, any method may be sent again"""


class HttpDnsError(HttpConnectionError):
    """The host's addresses could not be found"""


class HttpTlsError(HttpConnectionError):
    """The TLS handshake failed"""


class HttpConnectionTimeout(HttpConnectionError, asyncio.TimeoutError):
    """Connecting, or the TLS handshake, took longer than `socket_timeout` seconds"""


class HttpDataError(HttpError):
    """Something of the request was, or may have been, sent

    `reused` says whether the connection had carried a request before this one, `answered` whether any byte of the
    response had arrived, over TLS in a whole record: (True, False) is what a server that closes an idle connection
    looks like.
    """
    reused = False
    answered = False


class HttpBodyError(HttpDataError, ValueError):
    """The caller's body did not keep to its content-length, or gave something other than bytes"""


class HttpConnectionClosedError(HttpDataError):
    """The connection ended or was reset before the response was complete"""


class HttpProtocolError(HttpDataError):
    """The peer does not speak HTTP/1.1"""


class HttpHeaderTooLong(HttpProtocolError):
    """A head, a chunk-size line, the trailers or a run of 1xx responses exceeds `max_header_length` bytes"""


class HttpRedirectError(HttpDataError):
    """A redirect that is not followed, or whose target could not be asked; the request before it was answered"""
    answered = True


class HttpDataTimeout(HttpDataError, asyncio.TimeoutError):
    """Nothing moved for `socket_timeout` seconds while a request was sent or its response received"""


def is_timeout(error):
    # The kernel's ETIMEDOUT (keep-alive probes, TCP_USER_TIMEOUT) is a TimeoutError; ours are socket.timeout, which
    # is another class before Python 3.10.
    return isinstance(error, (socket.timeout, TimeoutError))


def data_error(error, doing):
    """The HttpDataError that stands for an OSError of a connection in use"""
    cls = \
        HttpDataTimeout if is_timeout(error) else \
        HttpConnectionClosedError if isinstance(error, ssl.SSLEOFError) or not isinstance(error, ssl.SSLError) else \
        HttpDataError
    return cls(f'While {doing}: {describe(error)}')


def tagged(error, reused, answered):
    error.reused, error.answered = reused, answered
    return error


def describe(error):
    return str(error) or type(error).__name__


# -------- Bodies


def streamed(data):
    """A request body of bytes-like `data`, as long as it is now, which may be sent any number of times"""
    if isinstance(data, str):
        raise HttpRequestError('streamed() takes bytes, got str: encode it first')
    try:
        length = memoryview(data).nbytes
    except (TypeError, ValueError) as error:  # the latter where it was released, or closed
        raise HttpRequestError(f'streamed() takes bytes, got {type(data).__name__}: {error}') from error
    return _Streamed(data, length)


class _Streamed:
    __slots__ = ('_data', 'content_length')

    def __init__(self, data, content_length):
        self._data = data
        self.content_length = content_length

    async def __aiter__(self):
        yield self._data

    def __call__(self):
        return self.__aiter__()  # code that takes functions alone as bodies, as 0.0.89 does, may call it


async def buffered(body):
    """All of a body, an async iterable of bytes-like, as bytes"""
    return b''.join([chunk async for chunk in body])


# -------- The url and the head out
#
# Nothing the caller gave is decoded, cleaned or sorted: it is sent as it is, or refused before a connection is opened.

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
is_token, match_token = re.compile(TOKEN).fullmatch, re.compile(TOKEN + rb'|').match
# Any byte but the controls, of which HTAB alone may stand in a value. RFC 9110 §5.5
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')
is_field_value, match_field_value = FIELD_VALUE.fullmatch, FIELD_VALUE.match
# RFC 3986 appendix B. ASCII, since where case is ignored an `s` would match U+017F too.
URL = re.compile(r'(https?)://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?', re.IGNORECASE | re.ASCII)
AUTHORITY = re.compile(r'(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+))(?::([0-9]{0,5}))?')
HOST_NAME = re.compile(r'[a-z0-9_~-]+(?:\.[a-z0-9_~-]+)*\.?')
MAX_HOST_NAME = 253  # without a dot at its end. RFC 1035 §2.3.4
find_dots = re.compile('[.\u3002\uff0e\uff61]').findall  # between labels. RFC 3490 §3.1
LOOKS_LIKE_IPV4 = re.compile(r'(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?')
# What may stand in a path or a query, and `%`, so that nothing is encoded twice. RFC 3986 §3.3, §3.4
TARGET_SAFE = "%/?:@!$&'()*+,;=~-._"
LONE_PERCENT = re.compile('%(?![0-9A-Fa-f]{2})')  # begins no escape: nginx refuses it
has_surrogate = re.compile('[\ud800-\udfff]').search  # asked, since a UnicodeEncodeError holds all of the text


def split_url(url):
    """(key, authority, target) of a url: ('http', 'example.com', 80), b'example.com', b'/path?query'

    Raises HttpRequestError. `urlsplit` is not used: it silently drops CR, LF and TAB.
    """
    if not isinstance(url, str):
        raise HttpRequestError(f'The url must be a str, got {type(url).__name__}')
    if re.search('[\x00-\x1f\x7f]', url):
        raise HttpRequestError(f'The url contains a control character: {shown(url)!r:.100}')
    if has_surrogate(url):
        raise HttpRequestError(f'The url cannot be encoded as UTF-8: {shown(url)!r:.100}')
    match = URL.fullmatch(url)
    if not match:
        raise HttpRequestError(f'The url must be absolute, with http or https: {shown(url)!r:.100}')
    scheme, authority, path, query = match.groups()
    if '@' in authority:
        # In logs, in `Referer` and to the eye userinfo is a leak or a disguise. RFC 9110 §4.2.4
        raise HttpRequestError('The url contains userinfo, which is not sent: use an authorization header')
    match = AUTHORITY.fullmatch(authority)
    if not match:
        # With an @ further on it may be the beginning of userinfo, whose password has a `/`, `?` or `#`.
        raise HttpRequestError('The url has no valid host and port' + ('' if '@' in url else f': {authority!r:.100}'))
    ipv6, name, port = match.groups()
    scheme = scheme.lower()
    default_port = 443 if scheme == 'https' else 80
    port = int(port) if port else default_port
    if not 0 < port < 65536:
        raise HttpRequestError(f'The port must be from 1 to 65535, got {port}')
    host = ipv6_host(ipv6) if ipv6 else named_host(name)
    authority = f'[{host}]' if ipv6 else host
    if port != default_port:
        authority += f':{port}'
    target = urllib.parse.quote(LONE_PERCENT.sub('%25', (path or '/') + (query or '')), TARGET_SAFE)
    return (scheme, host, port), authority.encode('ascii'), target.encode('ascii')


def shown(url):
    """What an error shows of a url, however malformed: no query or fragment, and no userinfo: they may be secrets"""
    _, at, rest = re.split('[?#]', url, maxsplit=1)[0].rpartition('@')
    return ('...@' if at else '') + rest


def ipv6_host(text):
    try:
        return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        raise HttpRequestError(f'The host is not an IPv6 address: {text!r:.100}') from error


def named_host(text):
    """A host name in lower case, as A-labels, or an IPv4 address"""
    try:
        if len(text) > MAX_HOST_NAME + 1:
            raise UnicodeError(f'longer than {MAX_HOST_NAME + 1} characters')  # 40,000 would take IDNA 0.5 s
        host = text.encode('idna').decode('ascii').lower()
    except UnicodeError as error:
        raise HttpRequestError(f'The host is not a valid name: {text!r:.100} ({error})') from error
    # IDNA may make a delimiter, a dot or an address of what was none: judged afterwards.
    is_name = HOST_NAME.fullmatch(host) and len(find_dots(text)) == host.count('.')
    if not is_name or len(host.rstrip('.')) > MAX_HOST_NAME:
        raise HttpRequestError(f'The host is not a valid name: {text!r:.100}')
    # Shortened, octal and hexadecimal addresses are read differently by different readers: a way round filters.
    if LOOKS_LIKE_IPV4.fullmatch(host) and not is_ip_address(host):
        raise HttpRequestError(f'The host is neither a name nor an IPv4 address: {text!r:.100}')
    return host


def is_ip_address(host):
    try:
        return str(ipaddress.ip_address(host)) == host  # before 3.9.5 leading zeros are let through
    except ValueError:
        return False


def with_params(target, params):
    """The target with `params`, pairs or a mapping, appended to its query; raises HttpRequestError"""
    try:
        pairs = [(name, value) for name, value in (params.items() if hasattr(params, 'items') else params)]
        for name, value in pairs:
            for each in (name,) + (tuple(value) if isinstance(value, (list, tuple)) else (value,)):
                if not isinstance(each, (str, bytes, int, float)):
                    raise TypeError(f'a {type(each).__name__} is not a str, bytes or number')
                if isinstance(each, str) and has_surrogate(each):
                    raise ValueError('a str with a lone surrogate cannot be encoded as UTF-8')
        query = urllib.parse.urlencode(pairs, doseq=True, quote_via=urllib.parse.quote, safe='~')
    except (TypeError, ValueError) as error:
        raise HttpRequestError(f'The params must be pairs or a mapping of strings: {error}') from error
    if query:
        _, mark, own_query = target.partition(b'?')
        separator = b'?' if not mark else b'&' if own_query and not own_query.endswith(b'&') else b''
        target += separator + query.encode('ascii')
    return target


def url_with_params(url, params):
    """The url, a str, with `params`, pairs or a mapping, appended to its query, as `request` does it

    Raises HttpRequestError.
    """
    split_url(url)
    url, mark, fragment = url.partition('#')
    return with_params(url.encode(), params).decode() + mark + fragment


def origin(url):
    """(scheme, host, port) of a url, such as ('https', 'example.com', 443): where its request goes. RFC 6454 §4

    Raises HttpRequestError.
    """
    return split_url(url)[0]


def header_pairs(headers):
    """The caller's headers, pairs or a mapping or None, as a tuple of pairs; raises HttpRequestError"""
    if headers is None:
        return ()
    try:
        return tuple((name, value) for name, value in (headers.items() if hasattr(headers, 'items') else headers))
    except (TypeError, ValueError) as error:
        raise HttpRequestError(f'The headers must be pairs of bytes: {error}') from error


def checked_headers(method, headers):
    """The caller's headers as a tuple of pairs; raises HttpRequestError if they, or the method, may not be sent"""
    if not isinstance(method, bytes) or not is_token(method):
        raise HttpRequestError(f'The method must be a token of bytes, such as b\'GET\', got {method!r:.100}')
    if method == b'CONNECT':
        raise HttpRequestError('CONNECT is not a request for a resource: a tunnel is made by `connect`')
    headers = header_pairs(headers)
    # An error shows no value, which may be a secret, nor what stands in its place where name and value are mixed up.
    for number, (name, value) in enumerate(headers, 1):
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise HttpRequestError('A header must be a pair of bytes, got one of {} and {}: header {} of {}'.format(
                type(name).__name__, type(value).__name__, number, len(headers)))
        if not is_token(name):
            at = match_token(name).end()
            what = f'has the byte 0x{name[at]:02x} at {at}' if name else 'is empty'
            raise HttpRequestError(f'A header\'s name must be a token, and that of header {number} of {len(headers)} '
                                   f'{what}: it has {len(name)} bytes')
        if not is_field_value(value):
            at = match_field_value(value).end()
            raise HttpRequestError(f'The value of header {name!r:.100} contains a control character: the byte '
                                   f'0x{value[at]:02x} at {at} of {len(value)}')
    return headers


def request_framing(method, named, has_body, size):
    """How the request's body is sent: (whether it is played, whether chunked, else its length or None, added lines)

    `named` is `by_name` of its headers, `size` the body's own `content_length`, or None; beside a field that frames
    the body it is not looked at. Raises HttpRequestError. RFC 9112 §6, RFC 9110 §8.6
    """
    lengths = named.get(b'content-length', ())
    codings = named.get(b'transfer-encoding', ())
    if len(named.get(b'host', ())) > 1:
        raise HttpRequestError('There is more than one host header')
    if lengths and codings:
        raise HttpRequestError('There are both content-length and transfer-encoding: which frames the body?')
    if len(lengths) > 1:
        raise HttpRequestError(f'There is more than one content-length: {lengths!r:.100}')
    if codings and [coding.lower() for coding in codings] != [b'chunked']:
        raise HttpRequestError(f'The transfer-encoding must be chunked or absent, got {codings!r:.100}')
    length = parse_length(lengths[0]) if lengths else 0
    if length is None:
        raise HttpRequestError(f'The content-length must be from 0 to {MAX_LENGTH}, got {lengths[0]!r:.100}')
    if has_body and size is not None and not lengths and not codings:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_LENGTH:
            raise HttpRequestError(f'The content_length of a body must be an int from 0 to {MAX_LENGTH}, got '
                                   f'{size!r:.100}')
        has_body = size > 0
    if not has_body:
        if length:
            raise HttpRequestError(f'There is a content-length of {length} but no body')
        if b'expect' in named:
            raise HttpRequestError('There is an expect header but no body')
    if codings:
        return has_body, True, None, b''
    if lengths:
        return has_body, False, length, b''
    if not has_body:
        return False, False, None, length_of_no_body(method)
    if size is not None:
        return True, False, size, b'content-length: %d\r\n' % size
    return True, True, None, b'transfer-encoding: chunked\r\n'


def length_of_no_body(method):
    """The field that says so, for methods of which a body is expected. RFC 9110 §8.6"""
    return b'content-length: 0\r\n' if method in (b'POST', b'PUT', b'PATCH') else b''


LAST_CHUNK = b'0\r\n\r\n'
# What is to be sent before the body, as `head`; `headers` are the caller's. `has_body` is whether a body is played,
# `length` what it must keep to, or None; `expects` is whether it waits for 100 Continue; `closes` is whether the caller
# asked for `connection: close`. `if_empty` is the Message instead of which this one is sent, or None: where nothing
# said how the body is framed, one that ends before its first byte is no body.
Message = collections.namedtuple('Message', 'key method headers head has_body chunked length expects closes if_empty')


def compose(method, url_parts, params, headers, has_body, size):
    """A Message; `size` is the `content_length` of the caller's body, or None. Raises HttpRequestError"""
    key, authority, target = url_parts
    if params:
        target = with_params(target, params)
    headers = checked_headers(method, headers)
    named = by_name([(name.lower(), value) for name, value in headers])
    has_body, chunked, length, added = request_framing(method, named, has_body, size)
    # `host` comes first, where the caller gave none. RFC 9112 §3.2
    host = () if b'host' in named else ((b'host', authority),)
    begin = b'%b %b HTTP/1.1\r\n%b' % (method, target, b''.join([b'%b: %b\r\n' % field for field in host + headers]))
    end = b'\r\n' + LAST_CHUNK if chunked and not has_body else b'\r\n'
    expects = b'100-continue' in list_members(named.get(b'expect', ()))
    message = Message(
        key, method, headers, begin + added + end, has_body, chunked, length, expects, asks_to_close(named), None)
    if chunked and added and b'expect' not in named:
        without_body = message._replace(head=begin + length_of_no_body(method) + b'\r\n', has_body=False, chunked=False)
        message = message._replace(if_empty=without_body)
    return message


def is_async_iterable(value):
    return hasattr(type(value), '__aiter__')  # as Python looks it up: a class that has it is a function that makes one


def check_body(body):
    """Refuses, by HttpRequestError, what cannot be a body"""
    if isinstance(body, (bytes, bytearray, memoryview, str)):
        raise HttpRequestError(f'The body must be an async iterable of bytes, got {type(body).__name__}: '
                               'use body=streamed(data)')
    if not is_async_iterable(body) and not callable(body):
        raise HttpRequestError('The body must be an async iterable of bytes, or a function that returns one, got '
                               f'{type(body).__name__}')
    if has_ended(body):
        raise HttpRequestError(PLAYED_BEFORE)


def has_ended(body):
    """Whether it is a generator that has ended: it would be sent as nothing, which nobody means"""
    return getattr(body, 'ag_frame', body) is None


PLAYED_BEFORE = 'The body is a generator that was played to its end before: give a function that returns a new one'


def replayable(body):
    """Whether a request with this body may be sent twice: None, a function, or an iterable not its own iterator"""
    return body is None or (not hasattr(type(body), '__anext__') if is_async_iterable(body) else callable(body))


class Upload:
    """The caller's body, played once, in the place that `message` has for it

    It is held to the message's `length`, unless that is None. `iterator` is what was begun, or None; `in_callers_code`
    is whether it was the caller's code that raised: where one response is the body of another request, its errors are
    of this module too. `previous` is what an earlier attempt began, for functions that return one generator twice.
    """
    __slots__ = ('_body', '_previous', '_first', '_count', 'message', 'iterator', 'in_callers_code')

    def __init__(self, body, message, previous=None):
        self._body = body
        self._previous = previous
        self._first = None
        self._count = 0
        self.message = message
        self.iterator = None
        self.in_callers_code = False

    def is_replayable(self):
        """Whether another attempt may play the body too: it is not begun, not its own iterator, or known to be none"""
        return self.iterator is None or self.iterator is not self._body or not self.message.has_body

    async def begin(self):
        """Has the first piece made"""
        self._first = await self.next_piece() or b''
        if not self._first and self.message.if_empty is not None:
            self.message = self.message.if_empty

    async def next_piece(self):
        """A non-empty memoryview, or None at the end"""
        if self._first is not None:
            piece, self._first = self._first, None
            return piece or None
        if self.iterator is None:
            self.iterator = self._iterate()
        length = self.message.length
        piece = b''
        while not piece:
            self.in_callers_code = True
            try:
                piece = await self.iterator.__anext__()
                self.in_callers_code = False
            except StopAsyncIteration:
                self.in_callers_code = False
                if length is not None and self._count != length:
                    raise HttpBodyError(f'Expected a body of {length} bytes, got {self._count}') from None
                return None
            try:
                piece = memoryview(piece).cast('B') or b''
            except (TypeError, ValueError) as error:
                raise HttpBodyError(f'The body must give bytes, got {type(piece).__name__}: {error}') from error
        self._count += len(piece)
        if length is not None and self._count > length:
            piece = None
            raise HttpBodyError(f'Expected a body of {length} bytes, got {self._count} or more')
        return piece

    def _iterate(self):
        self.in_callers_code = True
        iterable = self._body if is_async_iterable(self._body) else self._body()
        if not is_async_iterable(iterable):
            if asyncio.iscoroutine(iterable):
                iterable.close()  # or it would warn that it was never awaited
            self.in_callers_code = False
            raise HttpBodyError('The body\'s function must return an async iterable of bytes, got '
                                f'{type(iterable).__name__}')
        iterator = iterable.__aiter__()
        if iterator is self._previous:
            raise tagged(HttpConnectionClosedError(
                'The server closed a reused connection, and the request cannot be sent again: the body\'s '
                'function returned the same iterator twice'), reused=True, answered=False)
        if has_ended(iterable):
            self.in_callers_code = False
            raise HttpBodyError(PLAYED_BEFORE)
        return iterator

    async def end(self):
        """Closes the iterator, if it was begun"""
        self._first = None
        aclose = getattr(self.iterator, 'aclose', None)
        if aclose is not None:
            already, self.in_callers_code = self.in_callers_code, True
            await aclose()
            self.in_callers_code = already


def may_be_sent_again(error, method, upload):
    """Whether `request` itself sends it once more. RFC 9110 §9.2.2, RFC 9112 §9.3.1"""
    return error.reused and not error.answered and method in IDEMPOTENT and \
        (upload is None or upload.is_replayable() and not upload.in_callers_code)


# -------- Framing, and the head in
#
# Pure functions. Strict where the length of a message or the end of a line is at stake, for there two readers that
# differ let one smuggle a message past the other; tolerant inside values, where servers send any byte.
#
# A line of a head, or a trailer, may end in a bare LF: RFC 9112 §2.2 allows it, and curl, Go, h11 and the browsers
# take it. A bare CR may not stand anywhere, and chunk-size lines, and chunks, end in CRLF alone.

FIELD_LINES = rb'(?:' + TOKEN + rb':[^\r\n\x00]*\r?\n)*'
are_field_lines = re.compile(FIELD_LINES).fullmatch
# RFC 9112 §4. The space before an empty reason is often left out. A code below 100 is an error of the server's, which
# the caller is to see: like one of 600 and more it has no meaning, but says where the message ends. RFC 9110 §15
STATUS_LINE = rb'HTTP/(1\.[0-9]) ([0-9]{3})(?: [^\r\n\x00]*)?\r?\n'
match_head = re.compile(STATUS_LINE + rb'(' + FIELD_LINES + rb')\r?\n').fullmatch
is_trailer_section = re.compile(rb'\n' + FIELD_LINES + rb'\r?\n').fullmatch
search_end_of_fields = re.compile(rb'\n\r?\n').search
FOLD = re.compile(rb'\r?\n[ \t]+')
# 16 digits are 64 bits. Blanks after the size are no part of the grammar, but harmless, and sent by old servers.
is_chunk_size_line = re.compile(rb'\r\n([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\x00]*)?\r\n').fullmatch
match_timeout = re.compile(rb'timeout[ \t]*=[ \t"]*([0-9]+)[ \t"]*').fullmatch  # of a keep-alive field
# What decides how a message is framed, and what becomes of its connection.
FRAMING_FIELDS = frozenset((b'content-length', b'transfer-encoding', b'connection', b'keep-alive', b'host', b'expect'))


def by_name(headers):
    """{name: [values]} of the FRAMING_FIELDS among headers with lower-case names: one pass over all of them"""
    named = {}
    for name, value in headers:
        if name in FRAMING_FIELDS:
            named.setdefault(name, []).append(value)
    return named


def list_members(values):
    """The members of comma-separated lists, in lower case. RFC 9110 §5.6.1"""
    return values and [member.strip(b' \t').lower() for value in values for member in value.split(b',')]


def parse_length(digits):
    """A content-length as int; None if it is not ASCII digits of at most 2^63 − 1"""
    if not digits.isdigit():  # no sign, blank or underscore, all of which `int` takes
        return None
    digits = digits.lstrip(b'0') or b'0'
    if len(digits) > 19:  # of 5,000 digits `int` raises in some Pythons, and takes quadratic time in others
        return None
    length = int(digits)
    return length if length <= MAX_LENGTH else None


class HeadReader:
    """Is fed received bytes until `response` is (version, code, headers, rest), those of the final head

    1xx are skipped: `continued` is whether one of them was 100 Continue. `answered` is whether any byte was fed.
    """
    __slots__ = ('_max_header_length', '_held', '_searched', '_spent', 'answered', 'continued', 'response')

    def __init__(self, max_header_length):
        self._max_header_length = max_header_length
        self._held = b''
        self._searched = 0  # no byte is searched twice, however the head is cut
        self._spent = 0     # bytes of 1xx
        self.answered = self.continued = False
        self.response = None

    def feed(self, data):
        """b'' is the end of the connection. Raises HttpProtocolError, HttpHeaderTooLong, HttpConnectionClosedError"""
        if not data:
            raise HttpConnectionClosedError(
                f'The connection was closed after {self._spent + len(self._held)} bytes of the response\'s head')
        self.answered = True
        if self._held:
            self._held += data
            data = self._held
        at, searched = 0, self._searched
        while True:
            match = search_end_of_fields(data, searched)
            end = match.end() if match else len(data)
            is_too_long = self._spent + end - at > self._max_header_length
            if is_too_long or not match:
                break
            version, code, headers = parse_head(bytes(data[at:end]))
            if not code.startswith(b'1'):
                self.response = version, code, headers, bytes(data[end:])
                return
            if code == b'101':
                raise HttpProtocolError('The server switched protocols (101), which was not asked for')
            self.continued = self.continued or code == b'100'
            self._spent += end - at
            at = searched = end
        if not b'HTTP/1.'.startswith(bytes(data[at:at + 7])):
            raise HttpProtocolError(f'The response does not begin with HTTP/1: {bytes(data[at:at + MAX_SHOWN])!r}')
        if is_too_long:
            raise HttpHeaderTooLong(f'The response\'s head, with the 1xx before it, is longer than '
                                    f'{self._max_header_length} bytes')
        if at or data is not self._held:
            self._held = bytearray(data[at:])
        self._searched = max(0, len(self._held) - 2)


def parse_head(head):
    """(version, code, headers) of a head that ends with its empty line; raises HttpProtocolError

    RFC 9112 §4, §5. `headers` is a tuple of pairs of bytes: names in lower case, values without their outer blanks.
    """
    # One pattern judges the whole head, and none of its parts can match in two ways: linear, whatever comes.
    match = match_head(head) or match_head(unfolded(head))
    if not match:
        raise HttpProtocolError(f'The response\'s head is malformed: {malformed_line(head)[:MAX_SHOWN]!r}')
    version, code, fields = match.groups()
    # A higher minor version is to be read as the highest one known. RFC 9110 §2.5
    return b'1.0' if version == b'1.0' else b'1.1', code, tuple([
        (name.lower(), value.strip(b' \t\r'))
        for name, _, value in [line.partition(b':') for line in fields.split(b'\n')[:-1]]
    ])


def unfolded(head):
    """The head with obs-fold, each, replaced by a space; none can follow the status line. RFC 9112 §5.2"""
    status_line, newline, fields = head.partition(b'\n')
    return status_line + newline + FOLD.sub(b' ', fields)


def malformed_line(head):
    """The first line that spoils a head, for the error"""
    lines = head.split(b'\n')
    if not re.fullmatch(STATUS_LINE, lines[0] + b'\n'):
        return lines[0]
    return malformed_field(b'\n'.join(lines[1:]))


def malformed_field(lines):
    """The first of these lines, as bytes, that is no field, for the error"""
    return next((line for line in lines.split(b'\n') if not are_field_lines(line + b'\n') and line.strip(b'\r')), lines)


def response_framing(method, code, version, named):
    """(kind, length) of the response's body: 'none', 'length', 'chunked', or 'close': until the connection closes

    RFC 9112 §6.3. `named` is `by_name` of its headers. Raises HttpProtocolError where two readers could differ.
    """
    if method == b'HEAD' or code in (b'204', b'304') or code.startswith(b'1'):
        return 'none', 0
    codings = named.get(b'transfer-encoding')
    lengths = named.get(b'content-length')
    if codings:
        if lengths:
            raise HttpProtocolError(f'The response has both transfer-encoding {codings!r:.100} and content-length '
                                    f'{lengths!r:.100}')
        if version == b'1.0':
            raise HttpProtocolError(f'The response has a transfer-encoding {codings!r:.100} in HTTP/1.0')
        if [coding.lower() for coding in codings] != [b'chunked']:
            raise HttpProtocolError(f'The response\'s transfer-encoding must be chunked, got {codings!r:.100}')
        return 'chunked', 0
    if lengths:
        length = parse_length(lengths[0])
        if length is None or len(lengths) > 1:
            # `5, 5` and repeats are what proxies make of duplicates: one length, as long as all agree.
            length, *others = {parse_length(member) for member in list_members(lengths)}
            if others or length is None:
                raise HttpProtocolError(f'The response\'s content-length must be one number up to {MAX_LENGTH}, got '
                                        f'{lengths!r:.100}')
        return ('length', length) if length else ('none', 0)
    return 'close', 0


def asks_to_close(named):
    """Whether a request's, or a response's, connection fields say that it is the connection's last. RFC 9112 §9.6"""
    return b'close' in list_members(named.get(b'connection', ()))


def persists(version, named):
    """Whether the connection of this response may carry another request. RFC 9112 §9.3, §6.1"""
    return not asks_to_close(named) and (
        version == b'1.1' or
        b'keep-alive' in list_members(named.get(b'connection', ())) and b'transfer-encoding' not in named)


def keep_alive_seconds(named, most):
    """For how long to keep the connection of this response idle: less than the server's `keep-alive: timeout=N`"""
    for member in list_members(named.get(b'keep-alive', ())):
        match = match_timeout(member)
        if match:
            return min(most, float(match.group(1)) - KEEP_ALIVE_MARGIN)
    return most


# -------- The body in
#
# A decoder is fed received bytes, b'' at the end of the connection, and gives (payload, surplus): all of the body
# that is in them, and None, or, once the body is complete, what came after it.


def length_decoder(length):
    remaining = length

    def decode(data):
        nonlocal remaining
        if not data:
            raise HttpConnectionClosedError(f'The connection was closed early: expected a body of {length} bytes, got '
                                            f'{length - remaining}')
        if len(data) < remaining:
            remaining -= len(data)
            return data, None
        return data[:remaining], data[remaining:]

    return decode


def decode_until_closed(data):
    """For a body that ends with the connection; over TLS the connection has checked that it ended by close_notify"""
    return data, None if data else b''


@functools.lru_cache(MAX_REMEMBERED)
def chunk_size(line):
    """The size that a chunk-size line says, the CRLF before it included, which ends another chunk. RFC 9112 §7.1"""
    match = is_chunk_size_line(line)
    if not match:
        raise HttpProtocolError('A chunk must end in CRLF, and its size be 1 to 16 hexadecimal digits, with CRLF '
                                f'after them, or after a `;` and more: got {line[:MAX_SHOWN]!r}')
    return int(match.group(1), 16)


def chunked_decoder(max_header_length):
    """RFC 9112 §7.1: extensions are skipped; trailers are checked like headers, and skipped"""
    # The beginning of a chunk-size line, or of the trailers. The first line is as if it came after another chunk.
    held = bytearray(b'\r\n')
    longest_line = len(held) + max_header_length
    remaining = 0  # of the chunk's data
    count = 0
    in_trailers = False
    searched = 0

    def decode(data):
        nonlocal held, remaining, count, in_trailers
        if not data:
            raise HttpConnectionClosedError(f'The connection was closed early: got {count} bytes of a chunked body, '
                                            'but not its end')
        if in_trailers:
            return b'', end_of_trailers(data)
        if held:
            held += data
            if b'\n' not in data:  # or a line in small pieces would cost quadratic time
                check_begun_line()
                return b'', None
            data, held = bytes(held), bytearray()
        length = len(data)
        at = remaining  # where the next chunk-size line begins; if beyond the data, these are all of the chunk
        pieces = [data[:at]] if at else []
        while at < length:
            end = data.find(b'\n', at + 2) + 1
            if not end or end - at > longest_line:
                held = bytearray(data[at:])
                check_begun_line()
                break
            # Peers use few sizes: to look one up takes 0.1 µs, to parse it 0.8. Not with an extension, which is long.
            size = (chunk_size if end - at <= 20 else chunk_size.__wrapped__)(data[at:end])
            at = end + size
            if not size:
                in_trailers = True
                break
            pieces.append(data[end:at])
        remaining = max(0, at - length)
        payload = pieces[0] if len(pieces) == 1 else b''.join(pieces)
        count += len(payload)
        return payload, end_of_trailers(data[at - 1:]) if in_trailers else None

    def check_begun_line():
        if not b'\r\n'.startswith(bytes(held[:2])):
            raise HttpProtocolError(f'A chunk must end in CRLF, got {bytes(held[:2])!r:.100}')
        if len(held) > longest_line:
            raise too_long('chunk-size line')

    def end_of_trailers(data):
        nonlocal held, searched
        held += data  # from the LF of the last chunk-size line on, with which an empty section looks like all others
        match = search_end_of_fields(held, searched)
        end = match.end() if match else len(held)
        if end - 1 > max_header_length:
            raise too_long('trailer section')
        if not match:
            searched = max(0, len(held) - 2)
            return None
        trailers = FOLD.sub(b' ', bytes(held[:end]))
        if not is_trailer_section(trailers):
            raise HttpProtocolError(f'A trailer is malformed: {malformed_field(trailers[1:])[:MAX_SHOWN]!r}')
        return bytes(held[end:])

    def too_long(what):
        return HttpHeaderTooLong(f'The {what} of a chunked body is longer than {max_header_length} bytes')

    return decode


class ResponseBody:
    """A response's body: an async iterator of non-empty bytes that owns the connection until the body is complete

    Not an async generator, since one that was never started does not run its `finally`, and would strand the socket.
    """
    __slots__ = ('_ready', '_connection', '_decode', '_release', '_reused', '_reading', '_broken')

    def __init__(self, ready, connection=None, decode=None, release=None, reused=False):
        self._ready = ready
        self._connection = connection
        self._decode = decode
        self._release = release
        self._reused = reused
        self._reading = False
        self._broken = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        """The next bytes, as soon as any are received; raises an HttpDataError"""
        if self._ready:
            ready, self._ready = self._ready, b''
            return ready
        connection = self._connection
        if self._reading:
            raise tagged(HttpDataError('The body is being read by another task'), self._reused, answered=True)
        if connection is None:
            if self._broken:  # it must never look complete
                raise tagged(HttpConnectionClosedError('The body broke off early'), self._reused, answered=True)
            raise StopAsyncIteration
        self._reading = True
        try:
            payload, surplus = b'', None
            while not payload and surplus is None:
                data = await connection.read()
                if self._connection is None:
                    raise ConnectionAbortedError('the body was closed by another task')
                payload, surplus = self._decode(data)
        except BaseException as error:
            self._broken = self._connection is not None  # else it was closed by `aclose`
            self._connection = None
            connection.close()
            if isinstance(error, HttpDataError):
                tagged(error, self._reused, answered=True)
            elif isinstance(error, OSError):
                raise tagged(data_error(error, 'receiving the body'), self._reused, answered=True) from error
            raise
        finally:
            self._reading = False
        if surplus is not None:
            # Without what refers to the pool: a finished body must not keep it, and its idle connections, alive.
            release, self._release, self._decode, self._connection = self._release, None, None, None
            release(connection, not surplus)
            if not payload:
                raise StopAsyncIteration
        return payload

    async def aclose(self):
        """Gives the rest of the body up, and closes the connection"""
        connection, self._connection, self._ready = self._connection, None, b''
        if connection is not None:
            connection.close()

    def __del__(self):
        if self._connection is not None:
            self._connection.abandon()


# -------- Connections


class Connection:
    """The functions by which bytes move, the same over TCP, TLS, and TLS inside TLS

    - `await read(ends_at=None)`: what was received, as bytes; b'' at the end. For one task at a time. `ends_at`, of
      `time.monotonic`, is for a wait shorter than the timeout of each.
    - `await write(view)`: how many bytes were taken; 0 if something was received instead: `read` it, and then write
      *the same* view again.
    - `poll()`: what was received, without waiting: None for nothing, b'' at the end.
    - `watch(callback, seconds)`: calls back with False when something comes and nobody reads, and with True after so
      many seconds; `watch(None)` ends that.
    - `close(last=b'')`: sends what it can of `last`, then closes; a task that waits in `read` gets an OSError.
    - `abandon()`: only closes; for finalisers, which run in any thread, and after a fork.

    `read`, `write` and `watch` raise OSError, of which socket.timeout and ssl.SSLError are kinds. `address` is what the
    DNS must still say of the host for the connection to be reused: (type of record, address), or None. `expires_at`
    is the pool's.
    """
    __slots__ = ('read', 'write', 'poll', 'watch', 'close', 'abandon', 'address', 'expires_at')

    def __init__(self, *functions):
        self.read, self.write, self.poll, self.watch, self.close, self.abandon = functions
        self.address = None
        self.expires_at = 0.0


def runs_elsewhere(loop):
    """Whether another thread runs this loop, so that its readers and timers may not be touched from here"""
    return loop.is_running() and asyncio._get_running_loop() is not loop


def expire(waiter, what, seconds):
    if not waiter.done():
        waiter.set_exception(socket.timeout(f'{what} for {seconds:g} seconds'))


class _Socket(socket.socket):
    """Closes without a ResourceWarning: in a cycle that is collected, it may be finalised before its owner"""
    __slots__ = ()

    def __del__(self):
        if self.fileno() >= 0:
            self.close()


def remove_writer(loop, sock):
    """Before the descriptor is closed, where it, or the loop, is not yet"""
    if sock.fileno() >= 0 and not loop.is_closed():
        loop.remove_writer(sock.fileno())


def socket_connection(loop, sock, socket_timeout, recv_bufsize):
    """A Connection on a connected, non-blocking socket

    `loop.sock_recv` written out: the reader stays registered while the connection is open, is removed when it fires
    with nobody waiting, and receives inside its callback: about half the cost of a small exchange at 32 at once. The
    future waited on is ours, so a timeout is an exception set on it, and never touches the task.
    """
    fileno = sock.fileno()
    pid = os.getpid()
    is_open = True
    waiter = None       # the future of the one task that waits here
    watcher = None      # who is told, while no task waits
    has_reader = False  # else the reader fired with nobody waiting, and there is something to receive
    received = None     # what came while a write was blocked
    is_asked = False    # something was sent since the last read: its answer cannot be there yet
    calls = 0           # that did not block, in a row
    reset = None        # the number of the error that a write was told of: the kernel tells it once
    # To ask the kernel whether there is something to receive: 0.6 µs instead of 2 for a `recv` that finds nothing.
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    # One timer, which moves with its deadline, instead of one each wait: 0.15 µs instead of 1.5 to 2.9.
    timer = None
    fires_at = deadline = patience = 0.0

    def receive():
        data = sock.recv(recv_bufsize)  # raises an OSError where it was closed
        if not data and reset is not None:
            raise OSError(reset, os.strerror(reset))  # what looks like the end of a body is not
        return data

    def on_readable():
        nonlocal has_reader
        if waiter is not None and not waiter.done():
            try:
                data = receive()
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                waiter.set_exception(error)
            else:
                waiter.set_result(data)
        elif watcher is not None:
            watcher(False)
        else:
            loop.remove_reader(fileno)
            has_reader = False

    def on_writable():
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Is given itself, here and by `begin_time`, since a closure that names itself is a reference cycle.
    def on_timer(again):
        nonlocal timer, fires_at
        timer = None
        is_waiting = waiter is not None and not waiter.done()
        if not is_waiting and watcher is None:
            return
        if loop.time() < deadline:
            fires_at, timer = deadline, loop.call_at(deadline, again, again)
        elif is_waiting:
            expire(waiter, 'nothing moved', patience)
        else:
            watcher(True)

    def begin_time(seconds):
        nonlocal timer, fires_at, deadline, patience
        deadline, patience = loop.time() + seconds, seconds
        if timer is None or fires_at > deadline:
            if timer is not None:
                timer.cancel()
            fires_at, timer = deadline, loop.call_at(deadline, on_timer, on_timer)

    def wait(seconds):
        """A future, which its task must let go of: an exception in it would be in a cycle with the task's frame"""
        nonlocal waiter, calls
        calls = 0
        begin_time(seconds)
        waiter = loop.create_future()
        return waiter

    def listen():
        nonlocal has_reader
        if not has_reader:
            loop.add_reader(fileno, on_readable)
            has_reader = True

    async def read(ends_at=None):
        nonlocal waiter, is_asked, calls
        if received is not None:
            return poll()
        if not is_asked or not has_reader:
            # At a reset uvloop tells the reader once, and then is deaf: after the last bytes, the error is found here.
            calls += 1
            if not calls % CALLS_A_TURN:
                await asyncio.sleep(0)
            try:
                return receive()
            except (BlockingIOError, InterruptedError):
                listen()
        is_asked = False
        try:
            return await wait(socket_timeout if ends_at is None else max(0.001, ends_at - time.monotonic()))
        finally:
            waiter = None

    async def write(view):
        nonlocal waiter, received, is_asked, calls, reset
        if not has_reader and received is None:
            received = poll()
        while received is None:
            is_asked = False
            try:
                sent = sock.send(view)
            except (BlockingIOError, InterruptedError):
                listen()
            except OSError as error:
                if error.errno != errno.EPIPE:  # that is a reset after the peer's FIN, whose end is the end
                    reset = error.errno
                raise
            else:
                is_asked = True
                calls += 1
                if not calls % CALLS_A_TURN:
                    await asyncio.sleep(0)
                return sent
            # Writable or readable, whichever is first: a server that has answered may have stopped reading.
            loop.add_writer(fileno, on_writable)
            try:
                received = await wait(socket_timeout)
            finally:
                waiter = None
                remove_writer(loop, sock)
        return 0

    def poll():
        nonlocal received
        if received is not None:
            data, received = received, None
            return data
        if not poller.poll(0):
            return None
        try:
            return receive()
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b''

    def watch(callback, seconds=0):
        nonlocal watcher
        watcher = callback
        if callback is not None:
            listen()
            begin_time(seconds)

    def close(last=b''):
        nonlocal is_open, has_reader, watcher, timer
        if not is_open:
            return
        is_open, watcher = False, None
        # A fork shares the selector, and the stream, with its parent: there, nothing of them may be touched.
        if os.getpid() == pid:
            if not loop.is_closed():
                # Before the descriptor is closed: its number is the next connection's, and the selector would keep it.
                if has_reader:
                    loop.remove_reader(fileno)
                remove_writer(loop, sock)
                if timer is not None:
                    timer.cancel()
                if waiter is not None and not waiter.done():
                    waiter.set_exception(ConnectionAbortedError('the connection was closed on this side'))
            if last:
                with contextlib.suppress(OSError):
                    sock.send(last)
        has_reader, timer = False, None
        sock.close()

    def abandon():
        if os.getpid() == pid and runs_elsewhere(loop):
            with contextlib.suppress(RuntimeError):  # it was closed in between, and has let go of its readers
                loop.call_soon_threadsafe(close)
        else:
            close()

    listen()
    return Connection(read, write, poll, watch, close, abandon)


class RecordQueue:
    """Received TLS records, on their way into `incoming`, an ssl.MemoryBIO, about one at a time

    Not all at once: a MemoryBIO keeps its largest size. An idle connection, after a MiB: 154 KiB instead of 429.
    `barren` counts the bytes given since its owner set it to 0, which it does whenever data moves.
    """
    __slots__ = ('_incoming', '_queue', '_given', '_missing', 'barren')

    def __init__(self, incoming):
        self._incoming = incoming
        self._queue, self._given = b'', 0  # what was received, and how much of it was given
        self._missing = 0                  # bytes to come of the record that was given in part
        self.barren = 0

    def feed(self, data):
        if not data:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, 'the connection was closed without close_notify')
        self._queue, self._given = self._queue[self._given:] + data, 0
        self.advance()

    def advance(self):
        """Gives the next records, the last as far as it has come; whether there was anything to give"""
        queue, given = self._queue, self._given
        if not queue:
            return False
        end, size = given + self._missing, len(queue)
        while end - given < MAX_RECORD and size - end >= 5:
            end += 5 + (queue[end + 3] << 8) + queue[end + 4]  # RFC 8446 §5.1
        at = min(end, size)
        self._incoming.write(queue if at - given == size else memoryview(queue)[given:at])
        self._missing = end - at
        self.barren += at - given
        self._queue, self._given = (queue, at) if size - at >= 5 else (queue[at:], 0)
        return at > given

    def is_cut(self):
        """Whether more is to come of a record that has begun"""
        return bool(self._queue or self._missing)


async def tls_connection(inner, context, host, recv_bufsize):
    """A Connection that is TLS, by an ssl.SSLObject, on the Connection `inner`, once the handshake is done

    Raises OSError, or ssl.CertificateError, a ValueError before Python 3.7.

    `incoming.write_eof()` is never called: the end of `inner` while TLS wants more is a truncation, on every version
    of Python and OpenSSL, and only b'' from TLS is close_notify.
    """
    host = host.rstrip('.')
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    ciphertext = memoryview(b'')  # of `outgoing`, on its way
    taken = 0                     # bytes of the caller's view that TLS has taken, but `inner` has not
    write_failure = None          # makes the error by which `inner` failed to send
    received = None
    is_over = False               # close_notify came
    was_written = False
    failure = None                # makes the error by which TLS failed: asked again, OpenSSL may speak of a good end
    records = RecordQueue(incoming)

    def decrypt():
        """What TLS has in hand: None if it wants more, b'' after close_notify"""
        nonlocal failure, is_over
        pieces = []
        size = 0
        # Asked when nothing is there it raises SSLWantReadError: 2 µs, and thrice in a small exchange.
        while failure is None and size < recv_bufsize and (incoming.pending or tls.pending() or records.advance()):
            try:
                piece = tls.read(recv_bufsize - size)
            except ssl.SSLWantReadError:
                if records.barren > MAX_BARREN:
                    failure = functools.partial(
                        ssl.SSLError, ssl.SSL_ERROR_SSL, f'{records.barren} bytes came in records without data')
                continue
            except ssl.SSLError as error:
                failure = functools.partial(type(error), *error.args)  # not the error itself: it holds its frame
                continue
            if not piece:
                is_over = True
                break
            records.barren = 0
            pieces.append(piece)
            size += len(piece)
        if pieces:  # what came before a failure is good: it is raised the next time
            return b''.join(pieces)
        if failure is not None:
            raise failure()
        return b'' if is_over else None

    async def flush():
        """Sends all that TLS has to send, unless something is received instead"""
        nonlocal ciphertext, write_failure, received
        while received is None and (ciphertext or outgoing.pending):
            if write_failure is not None:
                raise write_failure()
            ciphertext = ciphertext or memoryview(outgoing.read())
            try:
                sent = await inner.write(ciphertext)
            except OSError as error:
                write_failure = functools.partial(type(error), *error.args)
                raise
            ciphertext = ciphertext[sent:]
            if not sent:
                records.feed(await inner.read())
                if outgoing.pending > 4 * MAX_WRITE:  # or key updates would pile up answers
                    raise ssl.SSLError(ssl.SSL_ERROR_SSL, 'the peer sends what TLS must answer, but takes no answers')
                received = decrypt()

    async def read(ends_at=None):
        nonlocal received
        while received is None:
            received = decrypt()
            if received is not None:
                break
            try:
                await flush()  # the answer to a key update or a renegotiation, or the rest of a record
            except OSError as error:
                # The peer takes nothing more; what it has sent before is there all the same.
                if write_failure is None or is_timeout(error):
                    raise
            if received is None:
                if ends_at is not None and time.monotonic() > ends_at:  # parts of records can go on for long
                    raise socket.timeout('nothing came in time')
                records.feed(await inner.read(ends_at))
        return poll()

    async def write(view):
        nonlocal taken, received, was_written
        was_written = True
        while received is None:
            received = decrypt()  # what is in hand already, the socket would never tell
            if received is not None:
                break
            try:
                taken = taken or tls.write(view)
            except ssl.SSLWantReadError:  # the peer renegotiates, as TLS 1.2 may
                await flush()
                if received is None:  # pragma: no branch -- else data came while this handshake's bytes were blocked
                    records.feed(await inner.read())
                continue
            await flush()
            if received is None:
                records.barren = 0
                sent, taken = taken, 0
                return sent
        return 0

    def poll():
        nonlocal received
        if received is not None:
            data, received = received, None
            return data
        while True:
            try:
                data = decrypt()
            except OSError:
                return b''
            if data is not None:
                return data
            data = inner.poll()
            if not data:
                # In the middle of a record something is to come that was sent before: a ticket, after a handshake.
                return b'' if was_written and records.is_cut() else data
            records.feed(data)

    def close(last=b''):
        if ciphertext:
            inner.close()  # in the middle of a record
            return
        with contextlib.suppress(OSError, ValueError):
            if last:
                tls.write(last)
            tls.unwrap()  # raises where there is unread data, but close_notify is queued all the same
        inner.close(outgoing.read())

    is_done = False
    try:
        while not is_done:
            try:
                tls.do_handshake()
                is_done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:  # from Python 3.7 on a refused certificate is one, and a ValueError too
                raise
            except ValueError:  # pragma: no cover -- Python 3.6 alone, and there it is tested
                # It judges the name by its U-label, which no certificate has, where later ones leave that to OpenSSL.
                ssl.match_hostname(tls.getpeercert(), host)
                is_done = True
            await flush()  # what it leaves is sent before all else
            if not is_done and not records.advance():
                records.feed(await inner.read())
    except BaseException:
        close()  # with the alert that says why
        raise
    return Connection(read, write, poll, inner.watch, close, inner.abandon)


# -------- Connecting


def get_ssl_context_default():
    """An ssl.SSLContext that verifies against the system's authorities, and offers HTTP/1.1 by ALPN"""
    # By name: about its own defaults OpenSSL is silent where a file cannot be opened, and the pool would trust nobody
    # for good.
    paths = ssl.get_default_verify_paths()
    context = ssl.create_default_context(cafile=paths.cafile, capath=paths.capath)
    context.set_alpn_protocols(['http/1.1'])
    return context


def set_sock_options_default(sock):
    """No delay; and a peer that has vanished is noticed in about 30 seconds, where the OS can"""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family != socket.AF_INET and sock.family != socket.AF_INET6:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (('TCP_KEEPIDLE', 15), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 3), ('TCP_USER_TIMEOUT', 30000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def connected_socket(loop, family, address, set_sock_options, socket_timeout):
    """A non-blocking stream socket, connected to an address of its family; raises OSError"""
    sock = _Socket(family, socket.SOCK_STREAM)
    fileno = sock.fileno()
    connected = None
    try:
        sock.setblocking(False)
        set_sock_options(sock)
        error = sock.connect_ex(address)
        if error in (errno.EINPROGRESS, errno.EINTR):
            connected = loop.create_future()
            timer = loop.call_later(socket_timeout, expire, connected, 'not connected', socket_timeout)
            try:
                loop.add_writer(fileno, lambda: connected.done() or connected.set_result(None))
                await connected
            finally:
                timer.cancel()
                remove_writer(loop, sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    finally:
        connected = None  # no cycle of future, exception and frame
    return sock


async def connect_directly(scheme, host, port, look_up, open_socket, start_tls):
    """The default of Pool's `connect`: a Connection to the host itself, by its A records, and then its AAAA

    What `connect` is given: `await look_up(host, TYPES.A or TYPES.AAAA)` returns a tuple of str;
    `await open_socket(family, address)` a Connection, or raises OSError; `await start_tls(connection, host)` a
    Connection. All else that it raises are HttpConnectionErrors.
    """
    failures = []
    try:
        for record_type in (None,) if is_ip_address(host) else (TYPES.A, TYPES.AAAA):
            try:
                addresses = (host,) if record_type is None else await look_up(host, record_type)
            except HttpDnsError:
                if not failures:
                    raise
                addresses = ()
            for address in addresses:
                family = socket.AF_INET6 if ':' in address else socket.AF_INET
                try:
                    connection = await open_socket(family, (address, port))
                except OSError as error:
                    failures.append((address, error))
                    continue
                if scheme == 'https':
                    connection = await start_tls(connection, host)
                if record_type is not None:
                    connection.address = (record_type, address)
                return connection
        if not failures:
            raise HttpDnsError(f'There is no A and no AAAA record of {host}')
        error_class = HttpConnectionTimeout if is_timeout(failures[-1][1]) else HttpConnectionError
        why = '; '.join([f'{address}: {describe(error)}' for address, error in failures])
        raise error_class(f'Could not connect to {host} port {port} ({why})') from failures[-1][1]
    finally:
        failures.clear()  # no cycle of exception and frame


# -------- One request and the head of its response, on one connection


def writes(prefix, piece, suffix):
    """What to write of these three: small ones joined; of a large piece only the ends are copied"""
    if not prefix and not suffix:
        return (piece,)
    if len(prefix) + len(piece) + len(suffix) <= MAX_WRITE:
        return (b''.join((prefix, piece, suffix)),)
    cut = max(0, MAX_WRITE - len(prefix))
    rest = piece[cut:]
    head = b''.join((prefix, piece[:cut]))
    return (head, b''.join((rest, suffix))) if len(rest) + len(suffix) <= MAX_WRITE else (head, rest, suffix)


async def send(connection, reader, data):
    """Sends all of it, unless the final answer comes first; the OSError by which sending failed, or None"""
    if len(data) > MAX_WRITE:
        data = memoryview(data)
    part = None
    try:
        while data and reader.response is None:
            part = data[:MAX_WRITE]
            sent = await connection.write(part)
            data = data[sent:]
            if not sent:
                reader.feed(await connection.read())
    except OSError as error:
        if not isinstance(error, (ConnectionError, ssl.SSLError)):  # a timeout, or a want of buffers
            raise data_error(error, 'sending the request') from error
        # The answer may be there all the same: a server that refuses a body, and closes. Without the frames, which from
        # Python 3.12 on would refer to those that hold the error: a cycle.
        return error.with_traceback(None)
    finally:
        # A traceback keeps the frames, and their views would keep the caller from resizing its buffer.
        data = None
        if isinstance(part, memoryview):
            part.release()
    return None


async def await_continue(connection, reader, expect_timeout):
    """RFC 9110 §10.1.1: until 100 or a final answer comes, but not for ever"""
    ends_at = time.monotonic() + expect_timeout
    while reader.response is None and not reader.continued and time.monotonic() < ends_at:
        try:
            reader.feed(await connection.read(ends_at))
        except OSError as error:
            if not is_timeout(error):
                raise data_error(error, 'waiting for 100 Continue') from error


async def send_with_body(connection, reader, message, upload, expect_timeout):
    """Sends a request that has a body, as `send` does"""
    prefix = message.head
    error = None
    if message.expects:
        error = await send(connection, reader, prefix)
        if error is None:
            await await_continue(connection, reader, expect_timeout)
        prefix = b''
    while error is None and reader.response is None:
        piece = await upload.next_piece()
        if piece is None:
            return await send(connection, reader, prefix + (LAST_CHUNK if message.chunked else b''))
        size_line, end_of_chunk = (b'%x\r\n' % len(piece), b'\r\n') if message.chunked else (b'', b'')
        try:
            for data in writes(prefix + size_line, piece, end_of_chunk):
                error = error or await send(connection, reader, data)
        finally:
            piece = data = None  # while it is referred to, the caller cannot resize its buffer
        prefix = b''
    return error


async def exchange(connection, reader, message, upload, expect_timeout):
    """Sends a request, and has `reader` receive the head of its response; whether all was sent

    Raises HttpDataError.
    """
    send_error = await (
        send(connection, reader, message.head) if upload is None else
        send_with_body(connection, reader, message, upload, expect_timeout)
    )
    sent_all = send_error is None and reader.response is None
    try:
        while reader.response is None:
            reader.feed(await connection.read())
    except OSError as error:
        raise data_error(send_error or error, 'receiving the response\'s head') from (send_error or error)
    except HttpConnectionClosedError as error:
        if send_error is None:
            raise
        raise HttpConnectionClosedError(f'The connection failed while the request was being sent, and there was no '
                                        f'answer: {describe(send_error)}; {error}') from send_error
    return sent_all


# -------- The pool


class _Owner:
    """Closes a pool's idle connections when nothing refers to the pool any longer"""
    __slots__ = ('is_open', '_on_drop')

    def __init__(self, on_drop):
        self.is_open = True
        self._on_drop = on_drop

    def __del__(self):
        self._on_drop()


def remember(cache, key, value):
    """Puts it in as the newest; beyond MAX_REMEMBERED the oldest is forgotten"""
    cache.pop(key, None)  # an address that was looked up anew is the newest
    cache[key] = value
    if len(cache) > MAX_REMEMBERED:
        del cache[next(iter(cache))]


# Seconds, of a clock that counts the time asleep: a server does not sleep with a laptop.
idle_clock = functools.partial(time.clock_gettime, getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC))


def Pool(
        get_dns_resolver=Resolver,
        get_ssl_context=get_ssl_context_default,
        connect=connect_directly,
        set_sock_options=set_sock_options_default,
        keep_alive_timeout=15,
        socket_timeout=10,
        expect_timeout=1,
        recv_bufsize=262144,
        max_header_length=65536,
):
    """(request, close) of a pool of connections

    - `get_dns_resolver()`, called in the event loop, once per loop, returns (resolve, clear_cache), as aiodnsresolver's
      Resolver does. The look-up of each type of record takes at most `socket_timeout` seconds.
    - `get_ssl_context()` returns an ssl.SSLContext; called at the first https request.
    - `connect`: see connect_directly. `set_sock_options(sock)` is called before a socket connects.
    - `keep_alive_timeout`: seconds for which an idle connection is kept, unless its server says less.
    - `socket_timeout`: seconds for which any wait on the network may last, without a byte that moves.
    - `expect_timeout`: seconds for which a body with `expect: 100-continue` is held back without an answer.
    - `recv_bufsize`, `max_header_length`: bytes.

    May be called before any event loop runs. The pool belongs to one loop at a time: under a later loop, or after a
    fork, it starts afresh.
    """
    loop = None
    pid = None
    resolve = clear_cache = None
    ssl_context = None
    addresses = {}  # (host, type of record): (expires at, addresses); the oldest is forgotten beyond MAX_REMEMBERED
    messages = {}   # (method, url, headers, whether there is a body, its size): Message; likewise
    idle = {}       # (scheme, host, port): [connections], the most recently used last
    split_url_cached = functools.lru_cache(MAX_REMEMBERED)(split_url)

    async def request(method, url, params=(), headers=(), body=None):
        """(code, headers, body) of the response: bytes, a tuple of pairs of bytes, an async iterator of bytes

        - `method`: bytes. `url`: str, with http or https. `params`: pairs or a mapping, appended to the url's query.
        - `headers`: pairs of bytes, or a mapping of them, sent as they are.
        - `body`: an async iterable of bytes-like, or a function that returns one, or None.

        Raises an HttpError, whose class says whether anything was sent; what the caller's body raises passes through.
        """
        if not owner.is_open:
            raise HttpRequestError('The pool is closed')
        if body is not None:
            check_body(body)
        message = composed(method, url, params, headers, body)
        running_loop = asyncio._get_running_loop()
        if running_loop is not loop or os.getpid() != pid:
            adopt(running_loop)
        upload = Upload(body, message) if message.has_body else None
        try:
            return await attempt(message, upload, *await take(message.key))
        except HttpConnectionClosedError as error:
            if not may_be_sent_again(error, message.method, upload):
                raise
            first_error = error
        try:  # not while the first error is being handled: it would be the context of all others, a cycle
            connection = await open_connection(message.key)
            if upload is not None:
                message = upload.message
                upload = Upload(body, message, upload.iterator) if message.has_body else None
            return await attempt(message, upload, connection, False)
        except HttpConnectionError as connection_error:
            if upload is not None and upload.in_callers_code:
                raise
            raise first_error from connection_error  # for something was sent, the first time
        finally:
            first_error = None

    def composed(method, url, params, headers, body):
        """A Message, remembered where all that it depends on is immutable: 0.4 µs instead of 5 or more"""
        has_body, size = body is not None, getattr(body, 'content_length', None)
        is_short = isinstance(url, str) and len(url) <= MAX_REMEMBERED_LENGTH
        is_plain = is_short and type(headers) is tuple and not params and (size is None or type(size) is int)
        key = (method, url, headers, has_body, size) if is_plain else None
        try:
            message = messages.get(key)
        except (TypeError, ValueError, BytesWarning):  # a list, or what `compose` refuses
            key = message = None
        if message is not None:
            return message
        url_parts = split_url_cached(url) if is_short else split_url(url)
        message = compose(method, url_parts, params, headers, has_body, size)
        # What was given is equal to what is sent: nothing in it can change.
        if key is not None and message.headers == headers and len(message.head) <= MAX_REMEMBERED_LENGTH:
            remember(messages, key, message)
        return message

    async def close():
        """Closes idle connections at once, those in use as soon as their response ends; `request` then raises"""
        if not owner.is_open:
            return
        owner.is_open = False
        if loop is not None and pid == os.getpid() and runs_elsewhere(loop):
            with contextlib.suppress(RuntimeError):  # the loop was closed in between
                # What is idle is of the loop's own thread. Not in the task alone: cancelled at once, it does nothing.
                loop.call_soon_threadsafe(functools.partial(drop_idle, orderly=True))
                asyncio.run_coroutine_threadsafe(close_here(), loop)
                return
        await close_here()

    async def close_here():
        drop_idle(orderly=True)
        addresses.clear()
        messages.clear()
        split_url_cached.cache_clear()
        if clear_cache is not None and pid == os.getpid() and not loop.is_closed():
            await clear_cache()

    def adopt(running_loop):
        """Makes the pool that of the running loop"""
        nonlocal loop, pid, resolve, clear_cache
        if running_loop is None or type(running_loop).add_reader is asyncio.AbstractEventLoop.add_reader:
            raise HttpRequestError('An asyncio event loop with add_reader must run, such as SelectorEventLoop or '
                                   f'uvloop, got {running_loop!r:.100}')
        if loop is not None and pid == os.getpid() and loop is not running_loop and loop.is_running():
            raise HttpRequestError('The pool belongs to another event loop, which is still running')
        drop_idle(orderly=False)
        addresses.clear()
        loop, pid, resolve, clear_cache = running_loop, os.getpid(), None, None

    async def attempt(message, upload, connection, reused):
        """Sends the request on this connection, or on another if it is not open and silent before the first byte"""
        reader = HeadReader(max_header_length)
        try:
            try:
                if upload is not None and not message.expects:
                    await upload.begin()  # which may take long
                    message = upload.message
                # What comes before the request is no answer to it: taken for one, each answer would be that of the
                # request before.
                received = connection.poll()
                while received is not None:
                    connection, reused = await replacement(connection, reused, received, message.key, upload)
                    received = connection.poll()
                sent_all = await exchange(connection, reader, message, upload, expect_timeout)
            finally:
                if upload is not None:
                    await upload.end()
            version, code, fields, rest = reader.response
            named = by_name(fields)
            framing, length = response_framing(message.method, code, version, named)
            keep = sent_all and framing != 'close' and not message.closes and persists(version, named)
            seconds = keep_alive_seconds(named, keep_alive_timeout) if keep else 0
            decode = \
                length_decoder(length) if framing == 'length' else \
                chunked_decoder(max_header_length) if framing == 'chunked' else \
                decode_until_closed
            payload, surplus = \
                (b'', rest) if framing == 'none' else \
                decode(rest) if rest else \
                (b'', None)
            if surplus is None:
                give_back = functools.partial(release, loop, message.key, seconds)
                return code, fields, ResponseBody(payload, connection, decode, give_back, reused)
            release(loop, message.key, seconds, connection, not surplus)
            return code, fields, ResponseBody(payload)
        except BaseException as error:
            connection.close()
            if isinstance(error, HttpDataError) and not (upload is not None and upload.in_callers_code):
                tagged(error, reused, reader.answered)
            raise

    async def replacement(connection, reused, received, key, upload):
        """What `take` gives, instead of a connection that is not open and silent; for a fresh one there is none"""
        try:
            if not reused:
                await refuse(connection, received, key)
            connection.close()
            return await take(key)
        except HttpConnectionError as error:
            if upload is None or upload.is_replayable():
                raise
            # After an HttpConnectionError even a generator is untouched; this one is begun.
            raise HttpConnectionClosedError(f'The connection was closed while the body made its first piece, and '
                                            f'there is no other: {error}') from error

    async def refuse(connection, received, key):
        """Raises the HttpConnectionError for a fresh connection that ended, or had something sent on it, unasked"""
        _, host, port = key
        try:
            received = received or await connection.read()
        except OSError as error:  # TLS knows why it ended
            raise HttpConnectionError(f'{host} port {port} failed before the request: {describe(error)}') from error
        what = f'sent {received[:MAX_SHOWN]!r}' if received else 'closed the connection'
        raise HttpConnectionError(f'{host} port {port} {what} before the request')

    async def take(key):
        """(connection, whether it is a reused one): the last that became idle, if the DNS still gives its address"""
        _, host, _ = key
        while key in idle:
            connection = idle[key][-1]
            is_current = True
            if connection.address is not None:
                record_type, address = connection.address
                is_current = address in await look_up(host, record_type)
                if key not in idle or idle[key][-1] is not connection:
                    continue  # another request took it, or it was closed, meanwhile
            forget(key, connection)
            connection.watch(None)
            if is_current and connection.expires_at > idle_clock():
                return connection, True
            connection.close()
        return await open_connection(key), False

    def release(its_loop, key, seconds, connection, silent):
        """Keeps a connection whose response is complete for the next request, for so many seconds, or closes it

        `its_loop` is the connection's: the pool may be another's by now.
        """
        try:
            if silent and owner.is_open and its_loop is loop and seconds > 0:
                connection.watch(functools.partial(on_idle, key, connection), seconds)
                connection.expires_at = idle_clock() + seconds
                idle.setdefault(key, []).append(connection)
                return
        except OSError:  # no room in the selector: nobody would see it close
            pass
        connection.close()

    def on_idle(key, connection, is_over):
        # Over TLS a session ticket is fine; all else is a server that closed, or that speaks unasked.
        if is_over or connection.poll() is not None:
            if connection in idle.get(key, ()):  # else another thread has dropped it, a moment ago
                forget(key, connection)
            connection.close()

    def forget(key, connection):
        connections = idle[key]
        if connections[-1] is connection:
            connections.pop()  # `remove` would look at all that are idle, at each request
        else:
            connections.remove(connection)
        if not connections:
            del idle[key]

    def drop_idle(orderly):
        connections = [connection for connections in idle.values() for connection in connections]
        idle.clear()
        elsewhere = loop is not None and (pid != os.getpid() or runs_elsewhere(loop))
        for connection in connections:
            if orderly and not elsewhere:
                connection.close()
            else:
                connection.abandon()

    async def open_connection(key):
        try:
            return await connect(*key, look_up, open_socket, start_tls)
        except HttpError:
            raise
        except OSError as error:
            error_class = HttpConnectionTimeout if is_timeout(error) else HttpConnectionError
            raise error_class('Could not connect to {1} port {2}: {0}'.format(describe(error), *key[1:])) from error

    async def open_socket(family, address):
        sock = await connected_socket(loop, family, address, set_sock_options, socket_timeout)
        try:
            return socket_connection(loop, sock, socket_timeout, recv_bufsize)
        except BaseException:  # no room in the selector
            sock.close()
            raise

    async def start_tls(connection, host):
        nonlocal ssl_context
        try:
            if ssl_context is None:
                ssl_context = get_ssl_context()
            return await tls_connection(connection, ssl_context, host, recv_bufsize)
        except BaseException as error:
            connection.close()
            if not isinstance(error, (OSError, ValueError)):
                raise
            error_class = HttpConnectionTimeout if is_timeout(error) else HttpTlsError
            raise error_class(f'The TLS handshake with {host} failed: {describe(error)}') from error

    async def resolved(resolve, clear_cache, host, record_type):
        try:
            return await resolve(host, record_type)
        finally:
            if not owner.is_open:  # closed meanwhile: the resolver keeps a timer for each name
                await clear_cache()

    async def cancelled(task):
        # A loop that is closed next must not find it pending; but nobody waits long for a resolver that goes on.
        task.cancel()
        await asyncio.wait([task], timeout=1)

    async def look_up(host, record_type):
        """The host's current addresses, as a tuple of str; raises HttpDnsError"""
        nonlocal resolve, clear_cache
        expires_at, known = addresses.get((host, record_type), (0, None))
        if expires_at > loop.time():
            return known
        if resolve is None:
            try:
                resolve, clear_cache = get_dns_resolver()
            except Exception as error:
                raise HttpDnsError(f'The resolver could not be made: {describe(error)}') from error
        # A task of its own: the resolver cancels its task at a timeout, without `uncancel`, and an asyncio.timeout
        # around the caller's would break.
        task = loop.create_task(resolved(resolve, clear_cache, host.rstrip('.'), record_type))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            done, _ = await asyncio.wait([task], timeout=socket_timeout)
            timed_out = not done
            if timed_out:
                await cancelled(task)
        except asyncio.CancelledError:
            await cancelled(task)
            raise
        finally:
            task.cancel()
        error = None if timed_out or task.cancelled() else task.exception()
        if timed_out or task.cancelled() or error is not None and not isinstance(error, DnsRecordDoesNotExist):
            # A passing failure: the last answer stands a while longer, or each request would wait for the next one.
            _, known = addresses.get((host, record_type), (0, None))
            if not known:
                raise HttpDnsError('The look-up of {} failed: {}'.format(
                    host, describe(error) if error is not None else f'no answer in {socket_timeout:g} seconds',
                )) from error
            expires_at = loop.time() + socket_timeout
        else:
            answers = () if error is not None else task.result()
            known = tuple(str(address) for address in answers)
            expires_at = min([getattr(address, 'expires_at', 0) for address in answers], default=0)
        remember(addresses, (host, record_type), (max(expires_at, loop.time() + MIN_TTL), known))
        return known

    owner = _Owner(functools.partial(drop_idle, orderly=False))
    return request, close


# -------- A layer: redirects
#
# A layer is a function that takes a `request`, and returns one. It passes on the keywords that it does not know, and
# closes the response that it does not hand over.

FOLLOWED = frozenset((b'301', b'302', b'303', b'307', b'308'))
CREDENTIALS = frozenset((b'authorization', b'cookie', b'proxy-authorization'))
OF_A_BODY = re.compile(rb'content-.*|transfer-encoding|expect|trailer', re.DOTALL)
# RFC 3986 appendix B, with the scheme as in §3.1
REFERENCE = re.compile(r'(?:([A-Za-z][A-Za-z0-9+.-]*):)?(//[^/?#]*)?([^?#]*)(\?[^#]*)?(#.*)?', re.DOTALL)
# Bytes of a redirect's own body, and seconds: what it costs to read them, instead of a new connection.
MAX_DRAINED = 65536
MAX_DRAIN_SECONDS = 1


def redirectable(request, max_redirects=20, dropped=(), downgrade=False, on_redirect=None):
    """A `request` that follows redirects: 301, 302, 303, 307 and 308, with the methods of the Fetch standard

    - `max_redirects`: how many are followed; one more is an error.
    - `dropped`: names of headers, as bytes, that are not sent to another origin, beside authorization, cookie,
      proxy-authorization and host.
    - `downgrade`: whether https may redirect to http.
    - `on_redirect(code, url)`: called before each is followed, with its code as bytes and its absolute url as str; what
      it raises passes through.

    A redirect without a location is a response like any other. One that is not followed raises HttpRedirectError, and
    so does what comes after a redirect and says that nothing was sent: of the caller's request something was. A body is
    sent again where the method stays; one that can be played once, and was begun, is an error.
    """
    if not isinstance(max_redirects, int) or isinstance(max_redirects, bool) or max_redirects < 0:
        raise TypeError(f'max_redirects must be an int of 0 or more, got {max_redirects!r:.100}')
    names = tuple(dropped)
    if not all(isinstance(name, bytes) and is_token(name) for name in names):
        raise TypeError(f'dropped must be names of headers as bytes, such as (b\'x-api-key\',), got {dropped!r:.100}')
    if on_redirect is not None and not callable(on_redirect):
        raise TypeError(f'on_redirect must be a function of the code and the url, got {on_redirect!r:.100}')
    of_this_origin = CREDENTIALS.union((b'host',), [name.lower() for name in names])

    async def redirecting_request(method, url, params=(), headers=(), body=None, **kwargs):
        headers = header_pairs(headers)
        if params:
            url = url_with_params(url, params)
        if is_async_iterable(body) and not replayable(body):
            body = _Once(body)
        count = 0  # of those that were followed
        while True:
            try:
                code, fields, answer = await request(method, url, headers=headers, body=body, **kwargs)
            except (HttpRequestError, HttpConnectionError) as error:
                if not count:
                    raise
                raise HttpRedirectError(f'After {count} redirects, at {shown(url)!r:.100}: {error}') from error
            locations = {value for name, value in fields if name == b'location'} if code in FOLLOWED else ()
            if not any(locations):
                return code, fields, answer
            await drain(answer)
            if count == max_redirects:
                raise HttpRedirectError(f'More than {max_redirects} redirects, the last at {shown(url)!r:.100}')
            target = redirect_target(url, locations, downgrade)
            target_method = redirect_method(method, code)
            if target_method != method:
                method, body = target_method, None
                headers = tuple([field for field in headers if not OF_A_BODY.fullmatch(field[0].lower())])
            elif isinstance(body, _Once) and body.is_begun:
                raise HttpRedirectError(f'The redirect at {shown(url)!r:.100} asks for the body again, which can be '
                                        'played once: give a function that returns a new one')
            if origin(target) != origin(url):
                headers = tuple([field for field in headers if field[0].lower() not in of_this_origin])
            url = target
            count += 1
            if on_redirect is not None:
                on_redirect(code, url)

    return redirecting_request


class _Once:
    """A body that can be played once, and that says whether it was begun"""
    __slots__ = ('_body', 'is_begun', 'content_length', 'aclose')

    def __init__(self, body):
        self._body = body
        self.is_begun = False
        self.content_length = getattr(body, 'content_length', None)
        self.aclose = getattr(body, 'aclose', no_aclose)

    def __aiter__(self):
        return self

    def __anext__(self):
        self.is_begun = True
        return self._body.__anext__()


async def no_aclose():
    pass


async def drain(body):
    """Reads a body to its end, so that its connection serves again, or, where that takes long, closes it"""
    loop = asyncio.get_event_loop()
    size = 0
    # Closing ends the read. Not `wait_for`: before Python 3.12 it can lose a cancellation.
    timer = loop.call_later(MAX_DRAIN_SECONDS, lambda: loop.create_task(body.aclose()))
    try:
        with contextlib.suppress(HttpDataError):  # closed, or broken off: what counts is in the head
            async for piece in body:
                size += len(piece)
                if size > MAX_DRAINED:
                    break
    finally:
        timer.cancel()
        await body.aclose()


def redirect_method(method, code):
    """The method of the request to a redirect's target. Fetch standard, HTTP-redirect fetch; RFC 9110 §15.4"""
    becomes_get = method == b'POST' if code in (b'301', b'302') else code == b'303' and method != b'HEAD'
    return b'GET' if becomes_get else method


def redirect_target(url, locations, downgrade):
    """The url, as str, to which a response to the one of `url` redirects; raises HttpRedirectError"""
    if len(locations) > 1:
        raise HttpRedirectError(f'The redirect at {shown(url)!r:.100} has {len(locations)} locations that differ')
    location, = locations
    try:
        location = location.decode()
    except UnicodeDecodeError:  # some other encoding, in which the server also expects it
        location = re.sub(rb'[\x80-\xff]', lambda match: b'%%%02X' % ord(match.group()), location).decode()
    target = resolved(url, location)
    try:
        scheme, *_ = origin(target)
    except HttpRequestError as error:
        raise HttpRedirectError(f'The redirect at {shown(url)!r:.100} cannot be followed: {error}') from error
    if scheme == 'http' and origin(url)[0] == 'https' and not downgrade:
        raise HttpRedirectError(f'The redirect at {shown(url)!r:.100} is from https to http, which is not followed: '
                                f'{shown(target)!r:.100}')
    return target


def resolved(base, reference):
    """The url that a reference means at the url `base`. RFC 3986 §5.2.2, and for the fragment RFC 9110 §10.2.2

    `urllib.parse.urljoin` drops empty segments of paths.
    """
    scheme, authority, path, query, fragment = REFERENCE.fullmatch(base).groups('')
    to_scheme, to_authority, to_path, to_query, to_fragment = REFERENCE.fullmatch(reference).groups('')
    if to_scheme or to_authority:
        scheme, authority, path, query = to_scheme or scheme, to_authority, without_dots(to_path), to_query
    elif to_path:
        merged = to_path if to_path.startswith('/') else path.rpartition('/')[0] + '/' + to_path  # §5.2.3
        path, query = without_dots(merged), to_query
    elif to_query:
        query = to_query
    return f'{scheme}:{authority}{path}{query}{to_fragment or fragment}'


def without_dots(path):
    """An absolute path, or '', without its `.` and `..`. RFC 3986 §5.2.4"""
    kept = []
    segments = path.split('/')
    for segment in segments:
        if segment == '..':
            del kept[max(1, len(kept) - 1):]  # the first is what is before the leading slash: nothing
        elif segment != '.':
            kept.append(segment)
    if segments[-1] in ('.', '..'):
        kept.append('')
    return '/'.join(kept)
