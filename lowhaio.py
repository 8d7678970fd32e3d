"""A lightweight, functional HTTP/1.1 client for asyncio

    request, close = Pool()
    code, headers, body = await request(b'GET', 'https://example.com/')
    async for chunk in body: ...
    await close()

The file reads the way a request travels, and nothing in it calls upward: errors; fields; the url; the head out; the
body out; the head in, and framing; the body in; TCP and TLS connections; names; connecting; one exchange on a
connection; `Pool`, which holds the state; and redirects, a layer on top of it.
"""
import asyncio
import collections
import contextlib
import errno
import functools
import inspect
import ipaddress
import os
import re
import select
import socket
import ssl
import threading
import time
import urllib.parse
import weakref

try:
    import contextvars
except ImportError:  # pragma: no cover -- Python 3.6 alone, and there it is tested
    contextvars = None

from aiodnsresolver import TYPES, DnsRecordDoesNotExist, Resolver

__all__ = (
    'Pool', 'streamed', 'buffered', 'redirectable', 'connect_directly', 'get_ssl_context_default',
    'set_sock_options_default', 'IDEMPOTENT', 'replayable', 'origin', 'url_with_params', 'Request', 'ResponseBody',
    'Connection',
    'HttpError', 'HttpRequestError', 'HttpConnectionError', 'HttpDnsError', 'HttpTlsError', 'HttpConnectionTimeout',
    'HttpDataError', 'HttpBodyError', 'HttpConnectionClosedError', 'HttpProtocolError', 'HttpHeaderTooLong',
    'HttpRedirectError', 'HttpDataTimeout',
)

# Bytes that one send hands to the kernel, or to TLS, at most: a MemoryBIO holds a second copy of them.
MAX_SEND = 65536
# Bytes that a receive asks for, until one was full. From 128 KiB on malloc takes each from the system: 12 µs.
FIRST_RECEIVE = 65536
# Yield to the event loop after this many sends and receives that did not block: other tasks must run.
CALLS_BEFORE_YIELD = 16
# Bytes of content in a TLS record at most. RFC 8446 §5.1
MAX_RECORD = 16384
# At most this many bytes of TLS records without application data in a row. Key updates are the dearest: 128 KiB cost
# 60 ms. A handshake counts too: OpenSSL takes chains of certificates of 100 KiB.
MAX_BYTES_WITHOUT_DATA = 131072
# Bytes: longer ones do not fit the file offsets of any peer.
MAX_LENGTH = 2 ** 63 - 1
# How many each of urls, heads, names of fields and addresses are remembered: a crawler's memory must not grow.
MAX_REMEMBERED = 1024
# Bytes: a longer url, or head, is taken apart, or composed, anew each time.
MAX_REMEMBERED_LENGTH = 4096
# Bytes of a malformed line that an error shows: enough to know it by, and few of a secret that may stand in it.
MAX_SHOWN = 40
# Seconds for which an answer of the DNS stands at least: the resolver gives entries of /etc/hosts no time at all.
MIN_TTL = 1
# Seconds for which the last answer stands where a look-up failed for a passing reason.
STANDING_SECONDS = 10
# Seconds by which a connection is retired before the server's own `keep-alive: timeout`, for bytes on their way.
KEEP_ALIVE_MARGIN = 1
# The methods that a server may be asked twice to do what they ask for once. RFC 9110 §9.2.2
IDEMPOTENT = frozenset((b'GET', b'HEAD', b'OPTIONS', b'TRACE', b'PUT', b'DELETE'))
__version__ = '0.1.0'


def remember(cache, key, value):
    """Puts it in as the newest; beyond MAX_REMEMBERED the oldest is forgotten"""
    cache.pop(key, None)
    cache[key] = value
    if len(cache) > MAX_REMEMBERED:
        del cache[next(iter(cache))]


def check_seconds(name, seconds, least=None):
    """Raises TypeError or ValueError if it is not a number above 0, or of `least` or more"""
    what = f'{name} must be a number of seconds ' + ('above 0' if least is None else f'of {least} or more')
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f'{what}, float(\'inf\') for no limit, got {seconds!r:.100}')
    if not (seconds > 0 if least is None else seconds >= least):  # as NaN is not
        raise ValueError(f'{what}, got {seconds!r:.100}')


def check_count(name, count, least):
    """Raises TypeError or ValueError if it is not an int of `least` or more"""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f'{name} must be an int of {least} or more, got {count!r:.100}')
    if count < least:
        raise ValueError(f'{name} must be {least} or more, got {count}')


def check_callable(name, function, what):
    """Raises TypeError if it cannot be called"""
    if not callable(function):
        raise TypeError(f'{name} must be a function {what}, got {type(function).__name__}')


def check_function(name, function, what):
    """Raises TypeError if it is no plain function, but a coroutine function, or nothing that can be called"""
    check_callable(name, function, what)
    if inspect.iscoroutinefunction(function):
        raise TypeError(f'{name} must be a plain function {what}, got a coroutine function')


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
    """Connecting, or the TLS handshake, took longer than `connect_timeout` seconds"""


class HttpDataError(HttpError):
    """Something of the request was, or may have been, sent

    `reused` says whether the connection had carried a request before this one, `answered` whether any byte of the
    response had arrived, over TLS in a whole record: (True, False) is what a server that closes an idle connection
    looks like. `sending` is whether it was the sending that failed, or timed out.
    """
    reused = False
    answered = False
    sending = False


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


def with_facts(error, reused, answered):
    error.reused, error.answered = reused, answered
    return error


def describe(error):
    return str(error) or type(error).__name__


# -------- Fields, as they are read in both directions

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # RFC 9110 §5.6.2
is_token, match_token = re.compile(TOKEN).fullmatch, re.compile(TOKEN + rb'|').match


class _FieldNames(dict):
    """{a field's name: the same in lower case} of tokens that were seen: to look one up takes 0.03 µs, to judge it 0.5

    Raises ValueError for what is no token.
    """
    __slots__ = ()

    def __missing__(self, name):
        if not is_token(name):
            raise ValueError('not a token')
        lowered = name.lower()
        if len(name) <= 64:
            remember(self, name, lowered)
        return lowered


def field_reader():
    """A function that gives the fields of a section of lines, up to its empty line: a tuple of pairs of bytes

    Names are in lower case, values without their outer blanks. It raises ValueError for what is no field: no colon, no
    token before it, a NUL, or a CR that ends no line. RFC 9112 §2.2, §5, RFC 9110 §5.5

    The lines of the last section are known, since few change from one to the next: 0.03 µs a line instead of 0.3.
    """
    names = _FieldNames()
    known = {}

    def fields_of(section):
        nonlocal known
        lines = section.split(b'\n')[:-2]
        try:
            fields = [*map(known.__getitem__, lines)]
            return tuple(fields)  # of what has a length: else it is made too large, and its memory is not used again
        except KeyError:
            pass
        fields = tuple([
            (names[name], value.strip(b' \t\r'))
            for name, colon, value in [line.partition(b':') for line in lines] if colon])
        if has_stray_byte(section) or len(fields) != len(lines):
            raise ValueError('a stray byte, or no colon')
        known = dict(zip(lines, fields))
        return fields

    return fields_of


def has_stray_byte(lines):
    """Whether there is a NUL, or a CR that ends no line"""
    return b'\0' in lines or b'\r' in lines.replace(b'\r\n', b'\n')


fields_of = field_reader()


def by_name(headers):
    """{name: value} of headers with lower-case names; repeats are joined, as lists are. RFC 9110 §5.3"""
    fields = dict(headers)
    if len(fields) != len(headers):
        values = {}
        for name, value in headers:
            values.setdefault(name, []).append(value)
        fields = {name: b', '.join(each) for name, each in values.items()}
    return fields


def list_members(value):
    """The members of a comma-separated list, in lower case. RFC 9110 §5.6.1"""
    return [member.strip(b' \t') for member in value.lower().split(b',')]


def parse_length(digits):
    """A content-length as int; None if it is not ASCII digits of at most 2^63 − 1"""
    if not digits.isdigit():  # no sign, blank or underscore, all of which `int` takes
        return None
    if len(digits) > 19:  # of 5,000 digits `int` raises in some Pythons, and takes quadratic time in others
        digits = digits.lstrip(b'0') or b'0'
        if len(digits) > 19:
            return None
    length = int(digits)
    return length if length <= MAX_LENGTH else None


def asks_to_close(fields):
    """Whether a request's, or a response's, connection fields say that it is the connection's last. RFC 9112 §9.6"""
    return b'connection' in fields and b'close' in list_members(fields[b'connection'])


# -------- The url
#
# Nothing the caller gave is decoded, cleaned or sorted: it is sent as it is, or refused before a connection is opened.

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
    scheme = scheme.lower()
    default_port = 443 if scheme == 'https' else 80
    # With an @ further on it may be the beginning of userinfo, whose password has a `/`, `?` or `#`.
    host, port = split_authority(authority, default_port, '...' if '@' in url else authority)
    authority = f'[{host}]' if ':' in host else host
    if port != default_port:
        authority += f':{port}'
    target = urllib.parse.quote(LONE_PERCENT.sub('%25', (path or '/') + (query or '')), TARGET_SAFE)
    return (scheme, host, port), authority.encode('ascii'), target.encode('ascii')


def shown(url):
    """What an error shows of a url, however malformed: no query or fragment, and no userinfo: they may be secrets"""
    visible = re.split('[?#]', url, maxsplit=1)[0]
    _, at, rest = visible.rpartition('@')
    return '...' if '@' in url[len(visible):] else f'...@{rest}' if at else visible


def split_authority(text, default_port, visible):
    """(host, port) of a url's authority; raises HttpRequestError, of which this much is visible"""
    match = AUTHORITY.fullmatch(text)
    if not match:
        raise HttpRequestError(f'The url has no valid host and port: {visible!r:.100}')
    ipv6, name, port = match.groups()
    port = int(port) if port else default_port
    if not 0 < port < 65536:
        raise HttpRequestError(f'The port must be from 1 to 65535: {visible!r:.100}')
    try:
        return str(ipaddress.IPv6Address(ipv6)) if ipv6 else named_host(name), port
    except ValueError as error:
        reason = str(error) if visible == text else 'its reason may be a secret'
        failure = HttpRequestError(f'The host is neither a valid name nor an address: {visible!r:.100} ({reason:.200})')
    raise failure


def named_host(text):
    """A host name in lower case, as A-labels, or an IPv4 address; raises ValueError"""
    if len(text) > MAX_HOST_NAME + 1:
        raise ValueError(f'longer than {MAX_HOST_NAME + 1} characters')  # 40,000 would take IDNA 0.5 s
    host = text.encode('idna').decode('ascii').lower()
    # IDNA may make a delimiter, a dot or an address of what was none: judged afterwards.
    if not HOST_NAME.fullmatch(host) or len(find_dots(text)) != host.count('.'):
        raise ValueError('not letters, digits, `-`, `_` and `~`, in labels')
    if len(host.rstrip('.')) > MAX_HOST_NAME:
        raise ValueError(f'longer than {MAX_HOST_NAME} characters')
    # Shortened, octal and hexadecimal addresses are read differently by different readers: a way round filters.
    if LOOKS_LIKE_IPV4.fullmatch(host) and not is_ip_address(host):
        raise ValueError('neither a name nor an IPv4 address')
    return host


def is_ip_address(host):
    try:
        return str(ipaddress.ip_address(host)) == host  # before 3.9.5 leading zeros are let through
    except ValueError:
        return False


def pairs_of(what, given):
    """The caller's pairs, or mapping, or None, as a tuple of pairs; raises HttpRequestError, without what is in them"""
    if given is None:
        return ()
    expected = f'The {what} must be pairs, ((name, value), (name, value)), or a mapping, got'
    try:
        items = tuple(given.items() if hasattr(given, 'items') else given)
    except TypeError:
        items = None
    if items is None or isinstance(given, (str, bytes, bytearray, memoryview)):
        raise HttpRequestError(f'{expected} {type(given).__name__}')
    for number, item in enumerate(items, 1):
        is_sequence = isinstance(item, (tuple, list))
        if not is_sequence or len(item) != 2:
            seen = f'{type(item).__name__} of {len(item)}' if is_sequence else type(item).__name__
            comma = '; one pair alone has a comma after it: ((name, value),)' if len(items) == 2 and number == 1 else ''
            raise HttpRequestError(f'{expected} a {seen}, number {number} of {len(items)}{comma}')
    return tuple([(name, value) for name, value in items])


def with_params(target, params):
    """The target with `params`, pairs or a mapping, appended to its query; raises HttpRequestError"""
    pairs = pairs_of('params', params)
    try:
        for name, value in pairs:
            for each in (name,) + (tuple(value) if isinstance(value, (list, tuple)) else (value,)):
                if not isinstance(each, (str, bytes, int, float)):
                    raise TypeError(f'a {type(each).__name__} is not a str, bytes or number')
                if isinstance(each, str) and has_surrogate(each):
                    raise ValueError('a str with a lone surrogate cannot be encoded as UTF-8')
        query = urllib.parse.urlencode(pairs, doseq=True, quote_via=urllib.parse.quote, safe='~')
    except (TypeError, ValueError) as error:
        raise HttpRequestError(f'The params must have str, bytes or numbers, or lists of them: {error}') from error
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


# -------- The head out

# Any byte but the controls, of which HTAB alone may stand in a value. RFC 9110 §5.5
FIELD_VALUE = re.compile(rb'[^\x00-\x08\x0a-\x1f\x7f]*')
is_field_value, match_field_value = FIELD_VALUE.fullmatch, FIELD_VALUE.match
LAST_CHUNK = b'0\r\n\r\n'


def checked_headers(method, headers):
    """The caller's headers as a tuple of pairs; raises HttpRequestError if they, or the method, may not be sent"""
    if not isinstance(method, bytes) or not is_token(method):
        raise HttpRequestError('The method must be a token of bytes, such as b\'GET\', got ' + (
            f'{method[:match_token(method).end()]!r:.100}, and more that is no token' if isinstance(method, bytes) else
            type(method).__name__))
    if method == b'CONNECT':
        raise HttpRequestError('CONNECT is not a request for a resource: a tunnel is made by `connect`')
    headers = pairs_of('headers', headers)
    # An error shows no value, which may be a secret, nor a name that is none, which may be a value too.
    for number, (name, value) in enumerate(headers, 1):
        if not isinstance(name, bytes) or not isinstance(value, bytes):
            raise HttpRequestError(
                f'A header must be a pair of bytes, such as (b\'accept\', b\'*/*\'), got {type(name).__name__} and '
                f'{type(value).__name__}, number {number} of {len(headers)}')
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


def request_framing(method, fields, has_body, size):
    """How the request's body is sent: (whether it is played, whether chunked, else its length or None, added lines)

    `fields` is `by_name` of its headers, `size` the body's own `content_length`, or None; beside a field that frames
    the body it is not looked at. Raises HttpRequestError. RFC 9112 §6, RFC 9110 §8.6
    """
    length, coding = fields.get(b'content-length'), fields.get(b'transfer-encoding')
    if length is not None and coding is not None:
        raise HttpRequestError('There are both content-length and transfer-encoding: which frames the body?')
    if coding is not None and coding.lower() != b'chunked':
        raise HttpRequestError(f'The transfer-encoding must be chunked or absent, got {coding!r:.100}')
    if length is not None:
        length = parse_length(length)
        if length is None:
            raise HttpRequestError(f'The content-length must be from 0 to {MAX_LENGTH}, got '
                                   f'{fields[b"content-length"]!r:.100}')
    is_framed = length is not None or coding is not None
    if has_body and size is not None and not is_framed:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_LENGTH:
            raise HttpRequestError(f'The content_length of a body must be an int from 0 to {MAX_LENGTH}, got '
                                   f'{size!r:.100}')
        has_body = size > 0
    if not has_body and length:
        raise HttpRequestError(f'There is a content-length of {length} but no body')
    if not has_body and b'expect' in fields:
        raise HttpRequestError('There is an expect header but no body')
    if is_framed:
        return has_body, coding is not None, length, b''
    if not has_body:
        return False, False, None, length_of_no_body(method)
    if size is not None:
        return True, False, size, b'content-length: %d\r\n' % size
    return True, True, None, b'transfer-encoding: chunked\r\n'


def length_of_no_body(method):
    """The field that says so, for methods of which a body is expected. RFC 9110 §8.6"""
    return b'content-length: 0\r\n' if method in (b'POST', b'PUT', b'PATCH') else b''


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
    lowered = [(name.lower(), value) for name, value in headers]
    for name in (b'host', b'content-length'):
        if [each for each, _ in lowered].count(name) > 1:
            raise HttpRequestError(f'There is more than one {name.decode()} header')
    fields = by_name(lowered)
    has_body, chunked, length, added = request_framing(method, fields, has_body, size)
    # `host` comes first, where the caller gave none. RFC 9112 §3.2
    host = () if b'host' in fields else ((b'host', authority),)
    begin = b'%b %b HTTP/1.1\r\n%b' % (method, target, b''.join([b'%b: %b\r\n' % field for field in host + headers]))
    end = b'\r\n' + LAST_CHUNK if chunked and not has_body else b'\r\n'
    expects = b'100-continue' in list_members(fields.get(b'expect', b''))
    message = Message(
        key, method, headers, begin + added + end, has_body, chunked, length, expects, asks_to_close(fields), None)
    if chunked and added and b'expect' not in fields:
        without_body = message._replace(head=begin + length_of_no_body(method) + b'\r\n', has_body=False, chunked=False)
        message = message._replace(if_empty=without_body)
    return message


# -------- The body out


def streamed(data):
    """A request body of bytes-like `data`, as long as it is now, which may be sent any number of times"""
    if isinstance(data, str):
        raise HttpRequestError('streamed() takes bytes, got str: encode it first')
    try:
        length = memoryview(data).cast('B').nbytes
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


def is_async_iterable(value):
    return hasattr(type(value), '__aiter__')  # of its type: a *class* that has it is a function that makes an iterable


def replayable(body):
    """Whether a request with this body may be sent twice: None, a function, or an iterable not its own iterator"""
    return body is None or (not hasattr(type(body), '__anext__') if is_async_iterable(body) else callable(body))


def has_ended(body):
    """Whether it is a generator that has ended: it would be sent as nothing, which nobody means"""
    return getattr(body, 'ag_frame', body) is None


PLAYED_BEFORE = 'The body is a generator that was played to its end before: give a function that returns a new one'


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


class Upload:
    """The caller's body, in the place that `message` has for it, and held to the message's length

    `is_over` is whether all of it was given. Once it `is_interrupted`, what it still gives is dropped.

    What the caller's code raises passes through, but for errors of this module, as where the body itself makes
    requests: they would say of this one that nothing was sent.
    """
    __slots__ = ('_body', '_previous', '_iterator', '_open', '_count', '_piece', 'message', 'is_over', 'is_interrupted')

    def __init__(self, body, message):
        self._body = body
        self._iterator = self._previous = self._piece = None
        self._open = None  # the iterator, until it is closed
        self._count = 0
        self.message = message
        self.is_over = self.is_interrupted = False

    def is_complete(self):
        """Whether its length is reached: only its end may follow"""
        return self._count == self.message.length

    def may_be_played_again(self):
        """It is not begun, not its own iterator, or known to be none"""
        return self._iterator is None or self._iterator is not self._body or not self.message.has_body

    def rewind(self):
        """Begins at its beginning with the next part"""
        self._previous, self._iterator, self._count = self._iterator, None, 0
        self.is_over = self.is_interrupted = False

    def _begin(self):
        try:
            iterable = self._body if is_async_iterable(self._body) else self._body()
            iterator = iterable.__aiter__() if is_async_iterable(iterable) else None
        except HttpError as error:
            raise body_error(error) from error
        if iterator is None:
            if asyncio.iscoroutine(iterable):
                iterable.close()  # or it would warn that it was never awaited
            raise HttpBodyError('The body\'s function must return an async iterable of bytes, got '
                                f'{type(iterable).__name__}')
        if iterator is self._previous:
            raise HttpConnectionError('The body\'s function returned the same iterator twice')
        if has_ended(iterator):
            raise HttpBodyError(PLAYED_BEFORE)
        self._iterator = self._open = iterator

    async def next_parts(self, head=b''):
        """What is to be sent next, after `head`, as a list of bytes-like: small ones joined, large ones not copied"""
        self.release()
        if self._iterator is None:
            self._begin()
        piece = b''
        while not piece and not self.is_over:
            try:
                piece = await self._iterator.__anext__()
            except StopAsyncIteration:
                self.is_over = True
            except HttpError as error:
                raise body_error(error) from error
            if self.is_interrupted:
                self.is_over = False  # what is missing of the message was not sent
                return []
            try:
                piece = self._piece = piece if type(piece) is bytes else memoryview(piece).cast('B') or b''
            except (TypeError, ValueError) as error:
                raise HttpBodyError(f'The body must give bytes, got {type(piece).__name__}: {error}') from error
        if self.is_over and not self._count and self.message.if_empty is not None:
            self.message = self.message.if_empty
            return [self.message.head]
        self._count += len(piece)
        chunked, length = self.message.chunked, self.message.length
        if length is not None and (self._count > length or self.is_over and self._count < length):
            or_more = '' if self.is_over else ' or more'
            raise HttpBodyError(f'Expected a body of {length} bytes, got {self._count}{or_more}')
        before, after = (head + b'%x\r\n' % len(piece), b'\r\n') if chunked and piece else (head, b'')
        parts = [part for part in (before, piece, after, LAST_CHUNK if chunked and self.is_over else b'') if part]
        return [b''.join(parts)] if len(parts) > 1 and len(piece) <= MAX_SEND else parts

    def release(self):
        """Lets go of what the caller gave: while it is referred to, the caller cannot resize its buffer"""
        if isinstance(self._piece, memoryview):
            self._piece.release()
        self._piece = None

    async def end(self, error=None):
        """Closes the iterator, if it was begun. What that raises is the context of the error that is on its way"""
        self.release()
        iterator, self._open = self._open, None
        if not hasattr(iterator, 'aclose'):
            return
        try:
            await iterator.aclose()
        except asyncio.CancelledError:
            raise
        except Exception as late:
            if error is None and isinstance(late, HttpError):
                raise body_error(late) from late
            if error is None:
                raise
            late.__context__, error.__context__ = error.__context__, late
        finally:
            error = None  # no cycle of exceptions and frame


def body_error(error):
    return HttpBodyError(f'The body failed: {describe(error)}')


def may_be_sent_again(error, method, upload):
    """Whether `request` itself sends it once more. RFC 9110 §9.2.2, RFC 9112 §9.3.1"""
    return error.reused and not error.answered and method in IDEMPOTENT and \
        (upload is None or upload.may_be_played_again())


# -------- The head in, and framing
#
# Pure functions. Strict where the length of a message or the end of a line is at stake, for there two readers that
# differ let one smuggle a message past the other; tolerant inside values, where servers send any byte.
#
# A line of a head, or a trailer, may end in a bare LF: RFC 9112 §2.2 allows it, and curl, Go, h11 and the browsers
# take it. A bare CR may not stand anywhere, and chunk-size lines, and chunks, end in CRLF alone.

# RFC 9112 §4. The space before an empty reason is often left out. A code below 100 is an error of the server's, which
# the caller is to see: like one of 600 and more it has no meaning, but says where the message ends. RFC 9110 §15
match_status_line = re.compile(rb'HTTP/(1\.[0-9]) ([0-9]{3})(?: [^\r\n\x00]*)?\r?\n').match
search_end_of_fields = re.compile(rb'\n\r?\n').search
FOLD = re.compile(rb'\r?\n[ \t]+')
# 16 digits are 64 bits. Blanks after the size are no part of the grammar, but harmless, and sent by old servers.
is_chunk_size_line = re.compile(rb'\r\n([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n\x00]*)?\r\n').fullmatch
match_timeout = re.compile(rb'timeout[ \t]*=[ \t"]*([0-9]+)[ \t"]*').fullmatch  # of a keep-alive field


def whole_head(data, most):
    """(version, code, headers, rest) of a final head that stands whole in the first bytes received, as nearly all do

    None if it does not: then a HeadReader reads it. Raises HttpProtocolError.
    """
    match = search_end_of_fields(data)
    end = match.end() if match else most + 1
    if end > most:
        return None
    version, code, headers = parse_head(data[:end])
    return None if is_interim(code) else (version, code, headers, data[end:])


def is_interim(code):
    return code < b'200' and code >= b'100'


class HeadReader:
    """Is fed received bytes until `head` is there: (version, code, headers) of the final one

    1xx are skipped: `continued` is whether one of them was 100 Continue. What comes after the head is held, as `rest`;
    then `is_over` is whether the connection has ended. `failure` is the error by which receiving failed, or None.
    """
    head = failure = None
    rest = b''
    continued = is_over = False
    _held = b''
    _searched = 0  # no byte is searched twice, however the head is cut
    _spent = 0     # bytes of 1xx

    def __init__(self, max_header_length, most_held):
        self._max_header_length = max_header_length
        self._most_held = most_held

    def is_full(self):
        """Whether as much is held as may be"""
        return len(self.rest) >= self._most_held

    def ends_sending(self):
        """Whether there is an answer that does: a refusal; or a 2xx, after which the connection ended. RFC 9112 §9.5"""
        return self.head is not None and (self.is_over or not self.head[1].startswith(b'2'))

    def fail(self):
        """Raises the failure, and forgets it, or it would be in a cycle with the frames that it comes through"""
        failure, self.failure = self.failure, None
        try:
            raise failure
        finally:
            del failure

    def feed(self, data):
        """b'' is the end of the connection. Raises HttpProtocolError, HttpHeaderTooLong, HttpConnectionClosedError"""
        if self.head is not None:
            self.rest += data
            self.is_over = not data
            return
        if not data:
            raise HttpConnectionClosedError(
                f'The connection was closed after {self._spent + len(self._held)} bytes of the response\'s head')
        if self._held:
            self._held += data
            data = self._held
        begin, match = 0, search_end_of_fields(data, self._searched)
        while match and self._spent + match.end() - begin <= self._max_header_length:
            end = match.end()
            version, code, headers = parse_head(bytes(data[begin:end]))
            if not is_interim(code):
                self.head, self.rest = (version, code, headers), bytearray(data[end:])
                return
            if code == b'101':
                raise HttpProtocolError('The server switched protocols (101), which was not asked for')
            self.continued = self.continued or code == b'100'
            self._spent += end - begin
            begin, match = end, search_end_of_fields(data, end)
        if not b'HTTP/1.'.startswith(bytes(data[begin:begin + 7])):
            raise HttpProtocolError(f'The response does not begin with HTTP/1: {first_line(data[begin:])!r}')
        if match or self._spent + len(data) - begin > self._max_header_length:
            raise HttpHeaderTooLong(f'The response\'s head, with the 1xx before it, is longer than '
                                    f'{self._max_header_length} bytes')
        if begin or data is not self._held:
            self._held = bytearray(data[begin:])
        self._searched = max(0, len(self._held) - 2)


def parse_head(head):
    """(version, code, headers) of a head that ends with its empty line; raises HttpProtocolError

    RFC 9112 §4, §5. `headers` is a tuple of pairs of bytes: names in lower case, values without their outer blanks.
    """
    match = match_status_line(head)
    if not match:
        raise malformed_head(head)
    version, code = match.groups()
    try:
        headers = fields_of(head[match.end():])
    except ValueError:  # as where obs-fold is. RFC 9112 §5.2
        unfolded = match.group() + FOLD.sub(b' ', head[match.end():])
        if unfolded == head:
            raise malformed_head(head) from None
        return parse_head(unfolded)
    # A higher minor version is to be read as the highest one known. RFC 9110 §2.5
    return b'1.0' if version == b'1.0' else b'1.1', code, headers


def first_line(data):
    """The beginning of the first line, for an error"""
    return bytes(data[:MAX_SHOWN]).partition(b'\n')[0]


def malformed_head(head):
    """An HttpProtocolError that shows the first line that spoils a head"""
    line, *lines = head.split(b'\n')
    what = 'The response\'s head'
    return malformed(what, lines) if match_status_line(line + b'\n') else malformed_line(what, line)


def malformed(what, lines):
    """An HttpProtocolError that shows the first of these lines that is no field"""
    def is_field(line):
        name, colon, _ = line.partition(b':')
        return line in (b'', b'\r') or colon and is_token(name) and not has_stray_byte(line + b'\n')

    return malformed_line(what, next((line for line in lines if not is_field(line)), b''))


def malformed_line(what, line):
    return HttpProtocolError(f'{what} is malformed: {line[:MAX_SHOWN]!r}')


def response_framing(method, code, version, fields):
    """(kind, length) of the response's body: 'none', 'length', 'chunked', or 'close': until the connection closes

    RFC 9112 §6.3. `fields` is `by_name` of its headers. Raises HttpProtocolError where two readers could differ.
    """
    if method == b'HEAD' or code in (b'204', b'304') or is_interim(code):
        return 'none', 0
    coding, lengths = fields.get(b'transfer-encoding'), fields.get(b'content-length')
    if coding is not None:
        if lengths is not None:
            raise HttpProtocolError(f'The response has both transfer-encoding {coding!r:.100} and content-length '
                                    f'{lengths!r:.100}')
        if version == b'1.0':
            raise HttpProtocolError(f'The response has a transfer-encoding {coding!r:.100} in HTTP/1.0')
        if coding.lower() != b'chunked':
            raise HttpProtocolError(f'The response\'s transfer-encoding must be chunked, got {coding!r:.100}')
        return 'chunked', 0
    if lengths is not None:
        length = parse_length(lengths)
        if length is None:
            # `5, 5` and repeats are what proxies make of duplicates: one length, as long as all agree.
            length, *others = {parse_length(member) for member in list_members(lengths)}
            if others or length is None:
                raise HttpProtocolError(f'The response\'s content-length must be one number up to {MAX_LENGTH}, got '
                                        f'{lengths!r:.100}')
        return ('length', length) if length else ('none', 0)
    return 'close', 0


def persists(version, fields):
    """Whether the connection of this response may carry another request. RFC 9112 §9.3, §6.1"""
    return not asks_to_close(fields) and (
        version == b'1.1' or
        b'keep-alive' in list_members(fields.get(b'connection', b'')) and b'transfer-encoding' not in fields)


def keep_alive_seconds(version, fields, most):
    """For how long to keep the connection of this response idle, 0 if not at all

    That is less than the server's `keep-alive: timeout=N`.
    """
    is_usual = version == b'1.1' and fields.get(b'connection', b'keep-alive') == b'keep-alive'
    if not is_usual and not persists(version, fields):
        return 0
    if b'keep-alive' in fields:
        for member in list_members(fields[b'keep-alive']):
            match = match_timeout(member)
            if match:
                return min(most, float(match.group(1)) - KEEP_ALIVE_MARGIN)
    return most


# -------- The body in
#
# A decoder is fed received bytes, b'' at the end of the connection, and gives (payload, end): all of the body that is
# in them, and None; or, once the body is complete, what came after it; or the HttpProtocolError by which it broke off.


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
        nonlocal count
        if not data:
            raise HttpConnectionClosedError(f'The connection was closed early: got {count} bytes of a chunked body, '
                                            'but not its end')
        pieces = []
        try:
            end = end_of_trailers(data) if in_trailers else end_of_chunks(data, pieces)
        except HttpProtocolError as error:
            end = error.with_traceback(None)
        payload = pieces[0] if len(pieces) == 1 else b''.join(pieces)
        count += len(payload)
        return payload, end

    def end_of_chunks(data, pieces):
        nonlocal held, remaining, in_trailers
        if held:
            held += data
            if b'\n' not in data:  # or a line in small pieces would cost quadratic time
                check_begun_line()
                return None
            data, held = bytes(held), bytearray()
        length = len(data)
        at = remaining  # where the next chunk-size line begins; if beyond the data, these are all of the chunk
        if at:
            pieces.append(data[:at])
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
                return end_of_trailers(data[at - 1:])
            pieces.append(data[end:at])
        remaining = max(0, at - length)
        return None

    def check_begun_line():
        if not b'\r\n'.startswith(bytes(held[:2])):
            raise HttpProtocolError(f'A chunk must end in CRLF, got {bytes(held[:2])!r:.100}')
        if len(held) > longest_line:
            raise too_long('chunk-size line')

    def end_of_trailers(data):
        nonlocal held, searched
        held += data  # starts at the size line's LF, so that an empty section needs no special case
        match = search_end_of_fields(held, searched)
        end = match.end() if match else len(held)
        if end - 1 > max_header_length:
            raise too_long('trailer section')
        if not match:
            searched = max(0, len(held) - 2)
            return None
        section = FOLD.sub(b' ', bytes(held[1:end]))
        try:
            fields_of(section)
        except ValueError:
            raise malformed('A trailer', section.split(b'\n')) from None
        return bytes(held[end:])

    def too_long(what):
        return HttpHeaderTooLong(f'The {what} of a chunked body is longer than {max_header_length} bytes')

    return decode


def runs_elsewhere(loop):
    """Whether another thread runs this loop, so that its readers and timers may not be touched from here"""
    return loop.is_running() and asyncio._get_running_loop() is not loop


def call_back(loop, callbacks):
    """Calls each; what one raises hinders no other, and goes to the loop's exception handler"""
    for callback in callbacks:
        try:
            callback()
        except Exception as error:
            if loop is None:
                raise
            loop.call_exception_handler({'message': 'A callback of when_done failed', 'exception': error})


class ResponseBody:
    """A response's body: an async iterator of non-empty bytes

    `reused` is whether the connection had carried a request before, `sent_all` whether the whole request was sent: not
    where the connection ended before it was.
    """
    __slots__ = ('_ready', '_failure', 'reused', 'sent_all')

    def __init__(self, ready, failure, reused, sent_all):
        self._ready = ready
        self._failure = failure  # is raised once what is ready was given
        self.reused = reused
        self.sent_all = sent_all

    def __aiter__(self):
        return self

    async def __anext__(self):
        """The next bytes, as soon as any are received; raises an HttpDataError"""
        return self._next()

    def _next(self):
        ready, self._ready = self._ready, b''
        if ready:
            return ready
        if self._failure is None:
            raise StopAsyncIteration
        raise self._broken_off()

    def _broken_off(self):
        """What is raised now; something else the next time: what broke off must never look complete"""
        failure, self._failure = self._failure, HttpConnectionClosedError('The body broke off early')
        return with_facts(failure, self.reused, answered=True)

    async def aclose(self):
        """Gives the rest of the body up, and closes the connection"""
        self._ready = b''

    def when_done(self, callback):
        """Calls `callback()` once the body needs its connection no more: ended, broke off, closed or dropped

        At once, if that is so already. Any number of them, each is called once, in this order. Where the body is
        dropped in another thread, by the loop's `call_soon_threadsafe`. A callback must not refer to the body: it would
        never be dropped.
        """
        check_function('callback', callback, 'without arguments')
        call_back(asyncio._get_running_loop(), (callback,))


class _ReceivedBody(ResponseBody):
    """One of which more is to come: it owns the connection until the body is complete

    Not an async generator, since one that was never started does not run its `finally`, and would strand the socket.
    """
    __slots__ = ('_connection', '_decode', '_release', '_seconds', '_is_read', '_loop', '_callbacks')

    def __init__(self, ready, connection, sent_all, decode, release, seconds):
        super().__init__(ready, None, connection.reused, sent_all)
        self._connection = connection
        self._decode = decode
        self._release = release
        self._seconds = seconds  # that each wait may last
        self._is_read = False
        self._loop = connection.loop
        self._callbacks = ()

    async def __anext__(self):
        if self._is_read:
            raise with_facts(HttpDataError('The body is being read by another task'), self.reused, answered=True)
        if not self._ready and self._connection is not None:
            self._is_read = True
            try:
                await self._receive(self._connection, self._decode)
            finally:
                self._is_read = False
        return self._next()

    async def _receive(self, connection, decode):
        payload, end = b'', None
        try:
            while not payload and end is None:
                data = connection.receive()
                if data is not None:
                    payload, end = decode(data)
                    continue
                await connection.wait(False, self._seconds)
                if self._connection is None:
                    raise ConnectionAbortedError('the body was closed by another task')
        except BaseException as error:
            if self._connection is not None:  # else it was closed by `aclose`
                self._connection, self._failure = None, HttpConnectionClosedError('The body broke off early')
            connection.close()
            self._done()
            if isinstance(error, OSError):
                raise with_facts(data_error(error, 'receiving the body'), self.reused, answered=True) from error
            if isinstance(error, HttpDataError):
                with_facts(error, self.reused, answered=True)
            raise
        self._ready = payload
        if end is not None:
            # Without what refers to the pool: a finished body must not keep it, and its idle connections, alive.
            release, self._release, self._decode, self._connection = self._release, None, None, None
            self._failure = end if isinstance(end, HttpError) else None
            release(connection, end == b'')
            self._done()

    async def aclose(self):
        connection, self._connection, self._ready = self._connection, None, b''
        if connection is not None:
            connection.close()
            self._done()

    def when_done(self, callback):
        check_function('callback', callback, 'without arguments')
        if self._connection is None:
            call_back(self._loop, (callback,))
        else:
            self._callbacks += (callback,)

    def _done(self):
        callbacks, self._callbacks = self._callbacks, ()
        call_back(self._loop, callbacks)

    def __del__(self):
        if self._connection is None:
            return
        self._connection.abandon()
        if not self._callbacks or not runs_elsewhere(self._loop):
            self._done()
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(call_back, self._loop, self._callbacks)


async def buffered(body, most=None):
    """All of a body, an async iterable of bytes-like, as bytes; more than `most` of them raise HttpDataError

    Then the body is closed.
    """
    if most is None and type(body) is ResponseBody and body._failure is None:
        ready, body._ready = body._ready, b''  # complete: 2 µs less
        return ready
    if most is None:
        return b''.join([piece async for piece in body])
    check_count('most', most, 0)
    pieces, size, iterator = [], 0, body.__aiter__()
    async for piece in iterator:
        pieces.append(piece)
        size += memoryview(piece).nbytes
        if size > most:
            if hasattr(iterator, 'aclose'):
                await iterator.aclose()
            error = HttpDataError(f'The body is longer than {most} bytes')
            raise with_facts(error, getattr(body, 'reused', False), answered=True)
    return b''.join(pieces)


# -------- TCP connections


class Connection:
    """The functions by which bytes move, the same over TCP, TLS, and TLS inside TLS: none of them waits but `wait`

    - `receive()`: what was received, as bytes; b'' at the end, None for nothing.
    - `send(data)`: how many bytes were taken; 0 if none can be now.
    - `await wait(sending, seconds)`: until it is worth while to call `receive`, or, if `sending`, `send` again; raises
      socket.timeout after so many seconds. For one task at a time, and when `receive` has given None, or what it gave
      is not wanted yet. What comes of it is found by those two: it may end for nothing.
    - `watch(callback, seconds)`: for an idle connection: calls back with False when something comes, and with True
      after so many seconds. Without seconds, for one in use: calls back when something comes and nobody waits, until
      that is received. `watch(None)` ends both.
    - `close(last=b'')`: sends what it can of `last`, then closes; a task that waits gets an OSError.
    - `abandon()`: only closes; for finalisers, which run in any thread, and after a fork.
    - `poll()`: as `receive`, between two requests: where one may not follow the other, it gives b''.
    - `has_unsent()`: whether something that `send` took is not on its way yet; `wait` and `receive` go on with it.

    All but `watch(None)`, `close` and `abandon` raise OSError, of which socket.timeout and ssl.SSLError are kinds.
    `address` is what the DNS must still say of the host for the connection to be reused: (type of record, address), or
    None. The rest is the pool's.
    """
    __slots__ = ('receive', 'send', 'wait', 'watch', 'close', 'abandon', 'poll', 'has_unsent', 'address', 'key', 'loop',
                 'reused', 'answered', 'expires_at')

    def __init__(self, receive, send, wait, watch, close, abandon, poll=None, has_unsent=bool):
        self.receive, self.send, self.wait = receive, send, wait
        self.watch, self.close, self.abandon, self.poll = watch, close, abandon, poll or receive
        self.has_unsent = has_unsent
        self.address = None


class _Socket(socket.socket):
    """Closes without a ResourceWarning: in a cycle that is collected, it may be finalised before its owner"""
    __slots__ = ()

    def __del__(self):
        if self.fileno() >= 0:
            self.close()


def in_empty_context(function, *args):
    """Calls it in an empty context: a connection must not keep that of the task that opened it"""
    return function(*args) if contextvars is None else contextvars.Context().run(function, *args)


def moving_timer(loop, on_time):
    """(begin, cancel) of a timer that calls `on_time(seconds)` so many seconds after the last `begin(seconds)`

    One handle, which moves when it fires too early, instead of one for each wait: 0.15 µs instead of 1.5 to 2.9. For
    infinitely many seconds there is none.
    """
    # asyncio's own `loop.time` is a plain function around it: another 0.05 µs.
    clock = time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time
    handle = None
    fires_at, deadline, patience = float('inf'), 0.0, 0.0

    def begin(seconds):
        nonlocal deadline, patience
        deadline, patience = clock() + seconds, seconds
        if deadline < fires_at:
            cancel()
            arm(on_handle)

    # Both are given the callback: naming itself would be a reference cycle.
    def arm(callback):
        nonlocal handle, fires_at
        fires_at, handle = deadline, in_empty_context(loop.call_at, deadline, callback, callback)

    def on_handle(itself):
        nonlocal handle, fires_at
        handle, fires_at = None, float('inf')
        if clock() >= deadline:
            on_time(patience)
        elif deadline < float('inf'):
            arm(itself)

    def cancel():
        nonlocal handle, fires_at
        if handle is not None:
            handle.cancel()
        handle, fires_at = None, float('inf')

    return begin, cancel


def socket_calls(sock, recv_bufsize, on_refused):
    """(receive, send, heard, yielded, idle): the system calls of a non-blocking socket, and no more of them than needed

    `receive` and `send` are those of a Connection. After CALLS_BEFORE_YIELD calls they do nothing, but call
    `on_refused()`, until the event loop had its turn: `heard` or `yielded`.
    """
    received = None  # what `heard` received, and `receive` was not asked for yet
    is_there = None  # whether there is something to receive; None where the kernel must be asked
    calls = 0        # since the event loop had its turn
    reset = None     # errno of a failed send; the kernel reports it once, so `recv` would show a clean EOF
    size = first_size = min(recv_bufsize, FIRST_RECEIVE)
    # To ask the kernel whether there is something to receive: 0.6 µs instead of 2 for a `recv` that finds nothing.
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLIN)

    def receive():
        nonlocal received
        if received is not None:
            data, received = received, None
            return data
        if is_there is False or is_there is None and not poller.poll(0) or refuses():
            return None
        return receive_now()

    def refuses():
        if calls >= CALLS_BEFORE_YIELD:
            on_refused()
        return calls >= CALLS_BEFORE_YIELD

    def receive_now():
        nonlocal is_there, calls, size
        is_there = None
        try:
            data = sock.recv(size)  # raises an OSError where it was closed
        except (BlockingIOError, InterruptedError):
            return None
        calls += 1
        if len(data) == size:
            is_there, size = True, recv_bufsize
        elif not data and reset is not None:
            raise OSError(reset, os.strerror(reset))  # otherwise a reset would pass for the end of the body
        return data

    def send(data):
        nonlocal is_there, calls, reset
        if refuses():
            return 0
        try:
            sent = sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            is_there = True  # the peer may have answered before
            if error.errno != errno.EPIPE:  # EPIPE: the peer had already finished, so EOF is genuine
                reset = error.errno
            raise
        calls += 1
        if is_there is None:
            is_there = False  # the answer cannot be there yet: the event loop will tell of it
        return sent

    def heard(is_awaited):
        """The event loop found it readable; whether who waits is to be woken"""
        nonlocal received, is_there, calls
        calls = 0
        if not is_awaited or received is not None:
            is_there = True
            return False
        received = receive_now()  # here: to tell of it alone would cost a second, stale wake for each answer
        return received is not None

    def yielded():
        nonlocal calls
        calls = 0

    def idle():
        nonlocal is_there, size
        is_there, size = is_there or None, first_size

    return receive, send, heard, yielded, idle


def tcp_connection(loop, sock, recv_bufsize):
    """A Connection on a connected, non-blocking stream socket

    `loop.sock_recv` written out: the reader stays registered while the connection is open, and is removed when it fires
    and what came is not taken: about half the cost of a small exchange at 32 at once. The future waited on is ours, so
    a timeout is an exception set on it, and never touches the task.
    """
    fileno = sock.fileno()
    pid = os.getpid()
    is_open = True
    waiter = None   # the future of the one task that waits here
    watcher = None  # who is told, while no task waits
    has_reader = has_writer = False
    is_turn_due = False  # of the event loop, before more is received, or sent

    def on_refused():
        nonlocal is_turn_due
        is_turn_due = True

    def wait(sending, seconds, receiving=True):
        """A future, which whoever ends it lets go of: an exception in it would be in a cycle with the task's frame"""
        nonlocal waiter, is_turn_due, has_writer
        if is_turn_due:
            is_turn_due = False
            yielded()
            loop.call_soon(wake)
        elif sending and not has_writer:
            loop.add_writer(fileno, wake)
            has_writer = True
        if receiving is not has_reader:
            if receiving:
                listen()
            else:
                stop_listening()
        begin_timer(seconds)
        waiter = loop.create_future()
        return waiter

    def listen():
        nonlocal has_reader
        if not has_reader:
            in_empty_context(loop.add_reader, fileno, on_readable)
            has_reader = True

    def stop_listening():
        nonlocal has_reader
        if has_reader:
            loop.remove_reader(fileno)
            has_reader = False

    def on_readable():
        try:
            is_received = heard(waiter is not None)
        except OSError as error:
            wake(error)
            return
        if is_received:
            wake()
        elif waiter is None and watcher is not None:
            watcher(False)
        elif waiter is None:
            stop_listening()

    def on_time(seconds):
        if waiter is not None:
            wake(socket.timeout(f'nothing moved for {seconds:g} seconds'))
        elif watcher is not None:
            watcher(True)

    def wake(error=None):
        nonlocal waiter, has_writer
        if has_writer:
            has_writer = False
            loop.remove_writer(fileno)
        its, waiter = waiter, None
        if its is None or its.done():
            return
        if error is None:
            its.set_result(None)
        else:
            its.set_exception(error)
            its.exception()  # a coroutine that was let go of does not retrieve it

    def watch(callback, seconds=None):
        nonlocal watcher
        watcher = callback
        if callback is not None:
            listen()
        if seconds is not None:
            idle()
            begin_timer(seconds)

    def close(last=b''):
        nonlocal is_open, has_reader, watcher
        if not is_open:
            return
        is_open, watcher = False, None
        heard(False)  # or `receive` would ask the kernel about the number of another's descriptor
        # A fork shares the selector, and the stream, with its parent: there, nothing of them may be touched.
        if os.getpid() == pid:
            if not loop.is_closed():
                # Before the descriptor is closed: its number is the next connection's, and the selector would keep it.
                stop_listening()
                cancel_timer()
                wake(ConnectionAbortedError('the connection was closed on this side'))
            if last:
                with contextlib.suppress(OSError):
                    sock.send(last)
        has_reader = False
        sock.close()

    def abandon():
        if os.getpid() == pid and runs_elsewhere(loop):
            with contextlib.suppress(RuntimeError):  # it was closed in between, and has let go of its readers
                loop.call_soon_threadsafe(close)
        else:
            close()

    receive, send, heard, yielded, idle = socket_calls(sock, recv_bufsize, on_refused)
    begin_timer, cancel_timer = moving_timer(loop, on_time)
    listen()
    return Connection(receive, send, wait, watch, close, abandon)


# -------- TLS connections


def record_queue(incoming):
    """(feed, advance, is_cut, new_data): received TLS records on their way into `incoming`, about one at a time

    Not all at once: a MemoryBIO keeps its largest size. An idle connection, after a MiB: 154 KiB instead of 429.
    """
    queue, given = b'', 0   # what was received, and how much of it was given
    missing = 0             # bytes to come of the record that was given in part
    bytes_without_data = 0  # given since there was application data

    def feed(data):
        nonlocal queue, given
        if not data:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, 'the connection was closed without close_notify')
        queue, given = (queue[given:] + data if given < len(queue) else data), 0

    def advance():
        """Gives the next records, the last as far as it has come; whether there was anything to give"""
        nonlocal queue, given, missing, bytes_without_data
        if not queue:
            return False
        end, size = given + missing, len(queue)
        while end - given < MAX_RECORD and size - end >= 5:
            end += 5 + (queue[end + 3] << 8) + queue[end + 4]  # RFC 8446 §5.1
        at = min(end, size)
        count = at - given
        incoming.write(queue if count == size else memoryview(queue)[given:at])
        missing = end - at
        bytes_without_data += count
        queue, given = (queue, at) if size - at >= 5 else (queue[at:], 0)
        return count > 0

    def is_cut():
        """Whether more is to come of a record that has begun"""
        return bool(queue or missing)

    def without_data(is_data=False):
        """How many bytes were given since there was data; with `is_data`, there is now"""
        nonlocal bytes_without_data
        if is_data:
            bytes_without_data = 0
        return bytes_without_data

    return feed, advance, is_cut, without_data


def record_sender(outgoing, inner):
    """(flush, is_blocked, has_failed): what TLS has to send, from `outgoing` into the Connection `inner`"""
    ciphertext = memoryview(b'')
    failure = None  # makes the error by which `inner` failed

    def flush():
        """Sends as far as that can be; whether nothing is left"""
        nonlocal ciphertext, failure
        while ciphertext or outgoing.pending:
            if failure is not None:
                raise failure()
            ciphertext = ciphertext or memoryview(outgoing.read())
            try:
                sent = inner.send(ciphertext)
            except OSError as error:
                failure = copied(error)
                raise
            if not sent:
                return False
            ciphertext = ciphertext[sent:]
        return True

    def is_blocked():
        """Whether it is in the middle of what was to be sent"""
        return len(ciphertext) > 0

    def has_failed():
        return failure is not None

    return flush, is_blocked, has_failed


def copied(error):
    """A function that makes this error anew: itself it holds the frames that it came through"""
    return functools.partial(type(error), *error.args)


def is_handshake_done(tls, host):
    """Goes on with the handshake, as far as what TLS was given suffices; raises ssl.SSLError or CertificateError"""
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLError:  # from Python 3.7 on a refused certificate is one, and a ValueError too
        raise
    except ValueError:  # pragma: no cover -- Python 3.6 alone, and there it is tested
        # It judges the name by its U-label, which no certificate has, where later ones leave that to OpenSSL.
        ssl.match_hostname(tls.getpeercert(), host)
    return True


async def tls_connection(inner, context, host, recv_bufsize, seconds):
    """A Connection that is TLS, by an ssl.SSLObject, on the Connection `inner`, once the handshake is done

    `seconds` is how long each wait of the handshake may last. Raises OSError, or ssl.CertificateError, a ValueError
    before Python 3.7.

    `incoming.write_eof()` is never called: the end of `inner` while TLS wants more is a truncation, on every version
    of Python and OpenSSL, and only b'' from TLS is close_notify.
    """
    host = host.rstrip('.')
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=host)
    feed, advance, is_cut, without_data = record_queue(incoming)
    flush, is_blocked, has_failed = record_sender(outgoing, inner)
    failure = None      # makes the error by which TLS failed: asked again, OpenSSL may speak of a good end
    is_over = False     # close_notify came
    is_used = False     # something was sent
    is_starved = False  # TLS takes nothing before it is fed, as where the peer renegotiates, in TLS 1.2

    def receive():
        nonlocal failure, is_over, is_starved
        pieces, size = [], 0
        while failure is None and not is_over and size < recv_bufsize:
            # Asked when nothing is there it raises SSLWantReadError: 2 µs, and thrice in a small exchange.
            if not (incoming.pending or tls.pending()):
                if advance():
                    is_starved = False
                elif pieces or not refill():
                    break
                continue
            try:
                piece = tls.read(min(MAX_RECORD, recv_bufsize - size))
            except ssl.SSLWantReadError:
                if without_data() > MAX_BYTES_WITHOUT_DATA:
                    failure = functools.partial(
                        ssl.SSLError, ssl.SSL_ERROR_SSL, f'{without_data()} bytes came in records without data')
            except ssl.SSLError as error:
                failure = copied(error)
            else:
                is_over = not piece
                without_data(True)
                pieces.append(piece)
                size += len(piece)
        if size:  # what came before a failure, or the end, is good: they are told the next time
            return b''.join(pieces)
        if failure is not None:
            raise failure()
        return b'' if is_over else None

    def refill():
        """Takes what was received; whether there was anything"""
        try:
            flush()  # the answer to a key update or a renegotiation, or the rest of a record
        except (ConnectionError, ssl.SSLError):
            pass  # the peer takes nothing more; what it has sent before is there all the same
        if outgoing.pending > 4 * MAX_SEND:  # or key updates would pile up answers
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, 'the peer sends what TLS must answer, but takes no answers')
        data = inner.receive()
        if data is not None:
            feed(data)
        return data is not None

    def send(data):
        nonlocal is_used, is_starved
        is_used = True
        taken = 0
        if flush():
            try:
                taken = tls.write(data)
                without_data(True)
            except ssl.SSLWantReadError:
                is_starved = True
            flush()
        return taken

    def wait(sending, seconds, *receiving):
        return inner.wait(not has_failed() and (is_blocked() or sending and not is_starved), seconds, *receiving)

    def has_unsent():
        with contextlib.suppress(OSError):  # which whoever receives, or sends, is told of
            flush()
        return is_blocked() or inner.has_unsent()

    def poll():
        data = receive()
        # Half a record is pending: the peer is still speaking; or we are. A ticket that comes in two parts is fine, but
        # on a connection that was never used.
        return b'' if data is None and is_used and (is_blocked() or is_cut()) else data

    def close(last=b''):
        if is_blocked():
            inner.close()  # in the middle of a record
            return
        with contextlib.suppress(OSError, ValueError):
            if last:
                tls.write(last)
            tls.unwrap()  # raises where there is unread data, but close_notify is queued all the same
        inner.close(outgoing.read())

    try:
        while not is_handshake_done(tls, host):
            while not advance():
                is_sent = flush()
                data = inner.receive()
                if data is None:
                    await inner.wait(not is_sent, seconds)
                else:
                    feed(data)
        flush()  # what it leaves is sent before all else
    except BaseException:
        close()  # with the alert that says why
        raise
    return Connection(receive, send, wait, inner.watch, close, inner.abandon, poll, has_unsent)


# -------- The addresses of names


def Names(loop, get_dns_resolver):
    """(look_up, close) of the addresses of hosts, in this event loop"""
    is_open = True
    resolve = clear_cache = None
    addresses = {}  # (host, type of record): (expires at, addresses); the oldest is forgotten beyond MAX_REMEMBERED

    async def resolved(host, record_type):
        try:
            return await resolve(host, record_type)
        finally:
            if not is_open:  # closed meanwhile: the resolver keeps a timer for each name
                await clear_cache()

    async def cancelled(task):
        # A loop that is closed next must not find it pending; but nobody waits long for a resolver that goes on.
        task.cancel()
        await asyncio.wait([task], timeout=1)

    async def look_up(host, record_type, seconds):
        """The host's current addresses, as a tuple of str, within so many seconds; raises HttpDnsError"""
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
        task = loop.create_task(resolved(host.rstrip('.'), record_type))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            done, _ = await asyncio.wait([task], timeout=seconds if seconds < float('inf') else None)
            if not done:
                await cancelled(task)
        except asyncio.CancelledError:
            await cancelled(task)
            raise
        finally:
            task.cancel()
        error = \
            asyncio.TimeoutError(f'no answer in {seconds:g} seconds') if not done else \
            asyncio.CancelledError() if task.cancelled() else \
            task.exception()
        least = MIN_TTL
        if error is None:
            answers = task.result()
        elif isinstance(error, DnsRecordDoesNotExist):
            answers = ()
        else:
            # A passing failure: the last answer stands a while longer, or each request would wait for the next one.
            _, answers = addresses.get((host, record_type), (0, ()))
            least = STANDING_SECONDS
            if not answers:
                raise HttpDnsError(f'The look-up of {host} failed: {describe(error)}') from error
        known = tuple(str(address) for address in answers)
        expires_at = min([getattr(address, 'expires_at', 0) for address in answers], default=0)
        remember(addresses, (host, record_type), (max(expires_at, loop.time() + least), known))
        return known

    async def close():
        nonlocal is_open
        is_open = False
        addresses.clear()
        if clear_cache is not None:
            await clear_cache()

    return look_up, close


# -------- Connecting


def get_ssl_context_default():
    """An ssl.SSLContext that verifies against the system's authorities, and offers HTTP/1.1 by ALPN"""
    # Named explicitly: with its own defaults OpenSSL ignores an unreadable file, and then trusts nobody.
    paths = ssl.get_default_verify_paths()
    context = ssl.create_default_context(cafile=paths.cafile, capath=paths.capath)
    context.set_alpn_protocols(['http/1.1'])
    return context


def checked_context(get_ssl_context):
    """A function that calls it once, and gives its ssl.SSLContext; raises HttpTlsError for anything else"""
    @functools.lru_cache(1)
    def ssl_context():
        context = get_ssl_context()
        if not isinstance(context, ssl.SSLContext):
            raise HttpTlsError(f'get_ssl_context must return an ssl.SSLContext, got {type(context).__name__}')
        return context

    return ssl_context


def set_sock_options_default(sock):
    """No delay; and a peer that has vanished is noticed in about 30 seconds, where the OS can"""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sock.family != socket.AF_INET and sock.family != socket.AF_INET6:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (('TCP_KEEPIDLE', 15), ('TCP_KEEPINTVL', 5), ('TCP_KEEPCNT', 3), ('TCP_USER_TIMEOUT', 30000)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def time_out(waiter, seconds):
    if not waiter.done():
        waiter.set_exception(socket.timeout(f'not connected for {seconds:g} seconds'))


async def connected_socket(loop, family, address, set_sock_options, seconds):
    """A non-blocking stream socket, connected to an address of its family within so many seconds; raises OSError"""
    sock = _Socket(family, socket.SOCK_STREAM)
    fileno = sock.fileno()
    connected = None
    try:
        sock.setblocking(False)
        set_sock_options(sock)
        error = sock.connect_ex(address)
        if error in (errno.EINPROGRESS, errno.EINTR):
            connected = loop.create_future()
            timer = None
            if seconds < float('inf'):  # cancelled, it stays in the loop's heap for a while, and its context with it
                timer = in_empty_context(loop.call_later, seconds, time_out, connected, seconds)
            try:
                loop.add_writer(fileno, lambda: connected.done() or connected.set_result(None))
                await connected
            finally:
                if timer is not None:
                    timer.cancel()
                loop.is_closed() or loop.remove_writer(fileno)
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


def fault_of(connection):
    """Why no request may be sent on it: (what it did, the error by which it failed or None). None if it may

    What comes before the request is no answer to it: taken for one, each answer would be that of the request before.
    """
    try:
        received = connection.poll()
    except OSError as error:
        return f'failed: {describe(error)}', error.with_traceback(None)
    if received is None:
        return None
    return f'sent {first_line(received)!r}' if received else 'closed the connection', None


def send_from(connection, part, at):
    """Sends of `part`, from `at` on, as much as one call takes; how many bytes that was. Raises OSError"""
    # While a view is referred to, be it by a traceback, the caller cannot resize its buffer.
    with memoryview(part)[at:at + MAX_SEND] as view:
        return connection.send(view)


def interruptible(connection, upload, reader):
    """`upload.next_parts`, which hears the connection while the caller's body is awaited

    What comes is fed to `reader`. Once that ends the sending, or the connection has failed, what the body awaits is
    cancelled, as `Task.cancel` does it. The task itself is not, so that nothing is to be uncancelled; nor does the body
    run in another one, where it would lose its caller's context, timeouts and cancel scopes.
    """
    # Before Python 3.11 the caller's own cancellation could not be told from this one.
    task = asyncio.current_task() if hasattr(asyncio.Task, 'cancelling') else None
    if not hasattr(task, '_fut_waiter'):
        return upload.next_parts, functools.partial(connection.watch, None)
    loop = connection.loop
    later = None  # looks at a cancellation by others again
    cancelling = None  # of the task, by others, when the body was asked; None while it is not

    def on_event(_):
        # All is given: an answer is in good time, and what the body still does is its own.
        while not upload.is_complete() and not reader.is_full() and not has_to_end():
            data = hear(connection, reader)
            if data is None:
                return
        connection.watch(None)
        if has_to_end():
            interrupt(interrupt)

    def has_to_end():
        return reader.failure is not None or reader.ends_sending()

    def interrupt(itself):
        nonlocal later
        if cancelling is None:
            return
        waiter = task._fut_waiter
        if task.cancelling() > cancelling:  # which a timeout of the body's own takes back
            later = loop.call_later(0.1, itself, itself)
        elif waiter is None or waiter.done():  # the task runs next
            loop.call_soon(itself, itself)
        else:
            upload.is_interrupted = True
            waiter.cancel(msg='The answer came, or the connection failed, before the next piece of the body')

    async def next_parts():
        nonlocal cancelling
        cancelling = task.cancelling()
        try:
            return await upload.next_parts()
        except asyncio.CancelledError:
            if not upload.is_interrupted or task.cancelling() > cancelling:
                raise
            return []
        finally:
            cancelling = None

    def stop():
        nonlocal task
        connection.watch(None)
        if later is not None:
            later.cancel()
        task = None  # which may end with an error, that refers to the frames here

    connection.watch(on_event)
    return next_parts, stop


def hear(connection, reader):
    """Feeds the reader what is there; what that was, or None for nothing. Its `failure` may be known then"""
    try:
        data = connection.receive()
        if data:
            connection.answered = True
        if data is not None:
            reader.feed(data)
    except (OSError, HttpDataError) as error:
        # Without frames, which from Python 3.12 on would refer to those that hold the error: a cycle.
        data, reader.failure = b'', error.with_traceback(None)
    return data


async def exchange(connection, message, upload, part, parts, limits):
    """Sends a request, of which `part` and then `parts` come first, and receives the head of its response

    Gives (version, code, headers, rest, sent_all, failure): of the final head, `rest` what was received after it,
    `sent_all` whether the whole request was sent, and `failure` the OSError by which receiving failed since, or None.

    One loop: what can be sent is sent, what is there is received, and where neither moves it waits for either. So an
    answer that comes early is heard, and one that lies behind a failure to send is found. A refusal, of 300 or more,
    ends the sending. An early 2xx does not, since a server may answer with its progress, and read on: it is held until
    all is sent. RFC 9112 §9.5

    Raises HttpDataError, and what the caller's body raises.
    """
    reader = stop = None
    at = 0  # as far as that the part was sent
    has_more = upload is not None and not upload.is_over
    is_expecting, ends_at = message.expects, None
    is_asking, is_blocked, send_error = False, False, None
    try:
        while True:
            is_blocked = upload is not None and not part and connection.has_unsent()  # TLS has taken it, at most
            if not part and has_more and not is_expecting and not is_blocked:
                if stop is None:  # not before: nothing is to come between the last look at the connection and its head
                    reader = reader or new_reader(limits)
                    next_parts, stop = interruptible(connection, upload, reader)
                is_asking = True  # here alone the caller's code is waited for
                part, *parts = await next_parts() or (b'',)
                is_asking, has_more = False, not upload.is_over  # what came meanwhile is heard before more is sent
                if reader.failure is not None:
                    reader.fail()
            elif part:
                try:
                    sent = send_from(connection, part, at) if at or len(part) > MAX_SEND else connection.send(part)
                except (ConnectionError, ssl.SSLError) as error:
                    # The answer may be there all the same: a server that refuses a body, and closes.
                    send_error, part, has_more, is_expecting = error.with_traceback(None), b'', False, False
                else:
                    is_blocked, at = not sent, at + sent
                    if at == len(part):
                        part, at = b'', 0
                        if parts:
                            part, *parts = parts
            is_sent = not part and not has_more
            data = None if reader is not None and reader.is_full() else connection.receive()
            if data is not None:
                if data:
                    connection.answered = True
                if reader is None:
                    head = whole_head(data, limits.max_header_length)
                    if head is not None and is_sent:
                        version, code, headers, rest = head
                        return version, code, headers, rest, send_error is None, None
                    reader = new_reader(limits)
                reader.feed(data)
                is_expecting = is_expecting and not reader.continued
            if reader is not None and reader.head is not None:
                is_all_sent = is_sent and not connection.has_unsent()
                if is_all_sent or is_expecting or reader.ends_sending():
                    return (*reader.head, bytes(reader.rest), is_all_sent and send_error is None, None)
            if data is not None:
                continue
            if is_blocked and reader is not None and reader.is_full():
                await connection.wait(True, limits.socket_timeout, False)
            elif is_blocked or is_sent:
                await connection.wait(is_blocked, limits.socket_timeout)
            elif is_expecting and not part:  # RFC 9110 §10.1.1: for 100, or a final answer, but not for ever
                ends_at = ends_at or time.monotonic() + limits.expect_timeout
                is_expecting = ends_at > time.monotonic()
                if is_expecting:
                    with contextlib.suppress(socket.timeout):
                        await connection.wait(False, ends_at - time.monotonic())
    except (OSError, HttpConnectionClosedError) as error:
        if is_asking:
            raise
        if reader is not None and reader.head is not None and not is_timeout(error):
            return (*reader.head, bytes(reader.rest), False, error.with_traceback(None))
        if isinstance(error, HttpError) and send_error is None:
            raise
        raise exchange_error(error, send_error, is_blocked) from (send_error or error)
    finally:
        if stop is not None:
            stop()


def new_reader(limits):
    return HeadReader(limits.max_header_length, min(FIRST_RECEIVE, limits.recv_bufsize))


def exchange_error(error, send_error, is_blocked):
    """The HttpDataError for what ended an exchange; `send_error` is the one by which sending failed before, or None"""
    if isinstance(error, HttpError):
        raised = HttpConnectionClosedError(f'The connection failed while the request was being sent, and there was no '
                                           f'answer: {describe(send_error)}; {error}')
    else:
        doing = 'sending the request' if is_blocked else 'receiving the response\'s head'
        raised = data_error(send_error or error, doing)
    raised.sending = is_blocked or send_error is not None
    return raised


# -------- The pool


# Seconds, of a clock that counts the time asleep: a server does not sleep with a laptop.
idle_clock = functools.partial(time.clock_gettime, getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC))
# Of a pool, as its arguments say
Limits = collections.namedtuple('Limits', (
    'keep_alive_timeout', 'connect_timeout', 'socket_timeout', 'expect_timeout', 'max_idle', 'recv_bufsize',
    'max_header_length'))


def check_limits(limits):
    check_seconds('keep_alive_timeout', limits.keep_alive_timeout, 0)
    check_seconds('connect_timeout', limits.connect_timeout)
    check_seconds('socket_timeout', limits.socket_timeout)
    check_seconds('expect_timeout', limits.expect_timeout, 0)
    check_count('max_idle', limits.max_idle, 0)
    check_count('recv_bufsize', limits.recv_bufsize, 1)
    check_count('max_header_length', limits.max_header_length, 1)


def of_request(limits, connect_timeout, socket_timeout):
    """The Limits of a request that has these seconds of its own; raises HttpRequestError"""
    own = [(name, seconds) for name, seconds in
           (('connect_timeout', connect_timeout), ('socket_timeout', socket_timeout)) if seconds is not None]
    try:
        for name, seconds in own:
            check_seconds(name, seconds)
    except (TypeError, ValueError) as error:
        failure = HttpRequestError(str(error))
    else:
        return limits._replace(**dict(own))
    raise failure


def composer():
    """(composed, forget): `compose`, remembered where all it depends on is immutable: 0.4 µs instead of 5 or more"""
    messages = {}  # (method, url, headers, whether there is a body, its size): Message
    split_url_cached = functools.lru_cache(MAX_REMEMBERED)(split_url)

    def composed(method, url, params, headers, body):
        has_body = body is not None
        size = getattr(body, 'content_length', None) if has_body else None
        is_plain = type(headers) is tuple and not params and (size is None or type(size) is int)
        key = (method, url, headers, has_body, size) if is_plain else None
        try:
            message = messages.get(key)
        except (TypeError, ValueError, BytesWarning):  # a list, or what `compose` refuses
            key = message = None
        if message is None:
            is_short = isinstance(url, str) and len(url) <= MAX_REMEMBERED_LENGTH
            url_parts = (split_url_cached if is_short else split_url)(url)
            message = compose(method, url_parts, params, headers, has_body, size)
            # Only if the headers were immutable as they were given: pairs that are lists are equal to none of these.
            is_short = is_short and len(message.head) <= MAX_REMEMBERED_LENGTH
            if is_short and key is not None and message.headers == headers:
                remember(messages, key, message)
        return message

    def forget():
        messages.clear()
        split_url_cached.cache_clear()

    return composed, forget


def idle_connections(max_idle):
    """(keep, take, drop): connections that wait for another request, by their key, the most recently used last"""
    idle = {}    # (scheme, host, port): [connections]
    by_age = {}  # {connection: None} of all of these, the least recently used first

    def keep(connection, seconds):
        try:
            connection.watch(functools.partial(on_idle, connection), seconds)
        except OSError:  # no room in the selector: nobody would see it close
            connection.close()
            return
        connection.expires_at = idle_clock() + seconds
        idle.setdefault(connection.key, []).append(connection)
        by_age[connection] = None
        if len(by_age) > max_idle:
            retire(next(iter(by_age)))

    def retire(connection):
        del by_age[connection]
        connections = idle[connection.key]
        connections.remove(connection)
        if not connections:
            del idle[connection.key]
        connection.close()

    def take(key):
        """The most recently used whose time is not over, which is the caller's now, or None"""
        while True:
            connections = idle.pop(key, None)
            if connections is None:
                return None
            connection = connections.pop()
            if connections:
                idle[key] = connections
            del by_age[connection]
            connection.watch(None)
            if connection.expires_at > idle_clock():
                connection.reused, connection.answered = True, False
                return connection
            connection.close()

    def on_idle(connection, is_over):
        # Over TLS a session ticket is fine; all else is a server that closed, or that speaks unasked.
        if not is_over and fault_of(connection) is None:
            return
        if connection in by_age:  # else another thread has dropped it, a moment ago
            retire(connection)

    def drop(abandoned):
        """Closes all, or only lets go of them where they may not be touched"""
        connections = list(by_age)
        by_age.clear()
        idle.clear()
        for connection in connections:
            if abandoned:
                connection.abandon()
            else:
                connection.close()

    return keep, take, drop


def opener(loop, connect, look_up, get_ssl_context, set_sock_options, recv_bufsize):
    """A function that opens a connection in this event loop: `await open_connection(key, seconds)` gives a Connection

    `seconds` is how long each step may last.
    """

    async def open_connection(key, seconds):
        try:
            connection = await connect(*key, *[
                functools.partial(step, seconds=seconds) for step in (look_up, open_socket, start_tls)])
        except HttpError:
            raise
        except OSError as error:
            error_class = HttpConnectionTimeout if is_timeout(error) else HttpConnectionError
            raise error_class('Could not connect to {1} port {2}: {0}'.format(describe(error), *key[1:])) from error
        connection.key, connection.loop, connection.reused, connection.answered = key, loop, False, False
        return connection

    async def open_socket(family, address, seconds):
        sock = await connected_socket(loop, family, address, set_sock_options, seconds)
        try:
            return tcp_connection(loop, sock, recv_bufsize)
        except BaseException:  # no room in the selector
            sock.close()
            raise

    async def start_tls(connection, host, seconds):
        try:
            return await tls_connection(connection, get_ssl_context(), host, recv_bufsize, seconds)
        except BaseException as error:
            connection.close()
            if not isinstance(error, (OSError, ValueError)):
                raise
            error_class = HttpConnectionTimeout if is_timeout(error) else HttpTlsError
            raise error_class(f'The TLS handshake with {host} failed: {describe(error)}') from error

    return open_connection


def body_of(message, connection, limits, release, version, code, headers, rest, sent_all, failure):
    """The ResponseBody of what `exchange` gave

    It owns the connection until it is complete, as it may be now; then it calls `release(seconds, connection,
    is_reusable)`. Raises HttpProtocolError.
    """
    fields = by_name(headers)
    framing, length = response_framing(message.method, code, version, fields)
    seconds = 0 if not sent_all or message.closes or framing == 'close' else \
        keep_alive_seconds(version, fields, limits.keep_alive_timeout)
    if framing == 'none' or framing == 'length' and len(rest) >= length:
        payload, end = rest[:length], rest[length:]
    else:
        decode = \
            length_decoder(length) if framing == 'length' else \
            chunked_decoder(limits.max_header_length) if framing == 'chunked' else \
            decode_until_closed
        payload, end = decode(rest) if rest else (b'', None)
        if end is None and failure is None:
            give_back = functools.partial(release, seconds)
            return _ReceivedBody(payload, connection, sent_all, decode, give_back, limits.socket_timeout)
        if end is None:
            end = data_error(failure, 'receiving the body')
    release(seconds, connection, end == b'' and failure is None)
    return ResponseBody(payload, end if isinstance(end, HttpError) else None, connection.reused, sent_all)


class Request:
    """The type of `request`, and of what a layer returns, for annotations: see `Pool`. In the stubs it is a Protocol"""


class _Owner:
    """Is referred to by what a pool still needs, so that its finaliser closes what is idle when nothing does"""
    is_open = True


def Pool(
        get_dns_resolver=Resolver,
        get_ssl_context=get_ssl_context_default,
        connect=connect_directly,
        set_sock_options=set_sock_options_default,
        keep_alive_timeout=15,
        connect_timeout=10,
        socket_timeout=10,
        expect_timeout=1,
        max_idle=256,
        recv_bufsize=262144,
        max_header_length=65536,
):
    """(request, close) of a pool of connections

    - `get_dns_resolver()`, called in the event loop, once per loop, returns (resolve, clear_cache), as aiodnsresolver's
      Resolver does.
    - `get_ssl_context()` returns an ssl.SSLContext; called at the first https request.
    - `connect`: see connect_directly. `set_sock_options(sock)` is called before a socket connects.
    - `keep_alive_timeout`: seconds for which an idle connection is kept, unless its server says less.
    - `connect_timeout`: seconds for which each step to a connection may last: the look-up of a type of record, an
      attempt to connect to an address, a wait of the TLS handshake.
    - `socket_timeout`: seconds for which any later wait on the network may last, without a byte that moves.
    - `expect_timeout`: seconds for which a body with `expect: 100-continue` is held back without an answer.
    - `max_idle`: how many idle connections are kept; for one more, the least recently used is closed.
    - `recv_bufsize`, `max_header_length`: bytes.

    float('inf') seconds are no limit. Raises TypeError or ValueError for what is none of these.

    May be called before any event loop runs. The pool belongs to one loop at a time: under a later loop, or after a
    fork, it starts afresh.
    """
    pool_limits = Limits(keep_alive_timeout, connect_timeout, socket_timeout, expect_timeout, max_idle, recv_bufsize,
                         max_header_length)
    check_limits(pool_limits)
    check_function('get_dns_resolver', get_dns_resolver, 'that returns (resolve, clear_cache)')
    check_function('get_ssl_context', get_ssl_context, 'that returns an ssl.SSLContext')
    check_callable('connect', connect, 'like connect_directly')
    check_function('set_sock_options', set_sock_options, 'of a socket')
    owner = _Owner()
    loop = pid = None
    moving = threading.Lock()  # never waited for: after a fork it may be held for good
    look_up = close_names = open_connection = None  # in this loop
    ssl_context = checked_context(get_ssl_context)
    composed, forget = composer()
    keep, take, drop = idle_connections(max_idle)

    async def request(method, url, params=(), headers=(), body=None, *, connect_timeout=None, socket_timeout=None):
        """(code, headers, body) of the response: bytes, a tuple of pairs of bytes, an async iterator of bytes

        - `method`: bytes. `url`: str, with http or https. `params`: pairs or a mapping, appended to the url's query.
        - `headers`: pairs of bytes, or a mapping of them, sent as they are.
        - `body`: an async iterable of bytes-like, or a function that returns one, or None.
        - `connect_timeout`, `socket_timeout`: seconds of this request alone; None is the pool's.

        Raises an HttpError, whose class says whether anything was sent; what the caller's body raises passes through.
        """
        if not owner.is_open:
            raise HttpRequestError('The pool is closed')
        if body is not None:
            check_body(body)
        message = composed(method, url, params, headers, body)
        limits = pool_limits
        if connect_timeout is not None or socket_timeout is not None:
            limits = of_request(limits, connect_timeout, socket_timeout)
        running_loop = asyncio._get_running_loop()
        if running_loop is not loop or os.getpid() != pid:
            move_to_loop(running_loop)
        upload = Upload(body, message) if message.has_body else None
        connection = take(message.key)
        if connection is None or connection.address is not None:
            connection = await current(connection, message.key, limits.connect_timeout)
        try:
            return await attempt(message, upload, connection, limits)
        except HttpConnectionClosedError as error:
            if not may_be_sent_again(error, message.method, upload):
                raise
            first_error = error
        if upload is not None and not upload.message.has_body:
            message, upload = upload.message, None
        try:  # outside `except`, so the first error does not become the `__context__` of later ones: a cycle
            connection = await open_connection(message.key, limits.connect_timeout)
            return await attempt(message, upload, connection, limits)
        except HttpConnectionError as connection_error:
            raise first_error from connection_error  # for something was sent, the first time
        finally:
            first_error = None

    async def attempt(message, upload, connection, limits):
        """Sends the request on this connection, or on another if it is not open and silent before the first byte"""
        try:
            part, parts = message.head, ()
            if upload is not None:
                upload.rewind()
                if not message.expects:
                    part, *parts = await upload.next_parts(message.head)  # which may take long
                    message = upload.message
            fault = fault_of(connection)
            while fault is not None:
                connection = await replacement(connection, *fault, upload, limits.connect_timeout)
                fault = fault_of(connection)
            version, code, headers, rest, sent_all, failure = await exchange(
                connection, message, upload, part, parts, limits)
            if upload is not None:
                await upload.end()
            return code, headers, body_of(
                message, connection, limits, release, version, code, headers, rest, sent_all, failure)
        except BaseException as error:
            connection.close()
            if isinstance(error, HttpDataError):
                with_facts(error, connection.reused, connection.answered)
            if upload is not None:
                await upload.end(error)
            raise

    def release(seconds, connection, is_reusable):
        """Keeps a connection whose response is complete for the next request, for so many seconds, or closes it"""
        if is_reusable and seconds > 0 and owner.is_open and connection.loop is loop:  # or another loop's by now
            keep(connection, seconds)
        else:
            connection.close()

    async def current(connection, key, seconds):
        """This idle connection, or the next, if the DNS still gives its address; or a fresh one"""
        while connection is not None:
            is_current = connection.address is None
            if not is_current:
                record_type, address = connection.address
                try:
                    is_current = address in await look_up(key[1], record_type, seconds)
                except BaseException:
                    connection.close()
                    raise
            if is_current:
                return connection
            connection.close()
            connection = take(key)
        return await open_connection(key, seconds)

    async def replacement(connection, fault, cause, upload, seconds):
        """Another connection, instead of one that is not open and silent; for a fresh one there is none"""
        try:
            connection.close()
            if not connection.reused:
                _, host, port = connection.key
                raise HttpConnectionError(f'Before the request {host} port {port} {fault}') from cause
            return await current(take(connection.key), connection.key, seconds)
        except HttpConnectionError as error:
            if upload is None or upload.may_be_played_again():
                raise
            # After an HttpConnectionError even a generator is untouched; this one is begun.
            raise HttpConnectionClosedError(f'The connection was closed while the body made its first piece, and '
                                            f'there is no other: {error}') from error

    def move_to_loop(running_loop):
        """Makes the pool that of the running loop"""
        nonlocal loop, pid, look_up, close_names, open_connection
        if running_loop is None or type(running_loop).add_reader is asyncio.AbstractEventLoop.add_reader:
            raise HttpRequestError('An asyncio event loop with add_reader must run, such as SelectorEventLoop or '
                                   f'uvloop, got {running_loop!r:.100}')
        # Of two threads that come here at once, one must not overtake the other between the question and the answer.
        is_first = moving.acquire(False)
        try:
            if not is_first or loop is not None and pid == os.getpid() and loop.is_running():
                raise HttpRequestError('The pool belongs to another event loop, which is still running')
            drop(abandoned=True)
            look_up, close_names = Names(running_loop, get_dns_resolver)
            open_connection = opener(running_loop, connect, look_up, ssl_context, set_sock_options, recv_bufsize)
            loop, pid = running_loop, os.getpid()
        finally:
            if is_first:
                moving.release()

    async def close():
        """Closes idle connections at once, those in use as soon as their response ends; `request` then raises"""
        if not owner.is_open:
            return
        owner.is_open = False
        if loop is not None and pid == os.getpid() and runs_elsewhere(loop):
            with contextlib.suppress(RuntimeError):  # the loop was closed in between
                # Only the loop's thread may touch idle connections. `call_soon` first: a task that is cancelled at once
                # would never start.
                loop.call_soon_threadsafe(drop, False)
                asyncio.run_coroutine_threadsafe(close_here(), loop)
                return
        await close_here()

    async def close_here():
        drop(abandoned=pid != os.getpid())
        forget()
        if loop is not None and pid == os.getpid() and not loop.is_closed():
            await close_names()

    weakref.finalize(owner, drop, abandoned=True).atexit = False
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

    A redirect without a location is a response like any other. One that is not followed raises HttpRedirectError. After
    a redirect an HttpConnectionError is raised as HttpRedirectError too, since the caller's request was sent, and
    answered. A body is sent again where the method stays; one that can be played once, and was begun, is an error.
    """
    check_count('max_redirects', max_redirects, 0)
    names = tuple(dropped)
    if not all(isinstance(name, bytes) and is_token(name) for name in names):
        raise TypeError(f'dropped must be names of headers as bytes, such as (b\'x-api-key\',), got {dropped!r:.100}')
    if on_redirect is not None:
        check_callable('on_redirect', on_redirect, 'of the code and the url')
    of_this_origin = CREDENTIALS.union((b'host',), [name.lower() for name in names])

    async def redirecting_request(method, url, params=(), headers=(), body=None, **kwargs):
        headers = pairs_of('headers', headers)
        if params:
            url = url_with_params(url, params)
        if body is not None:
            check_body(body)
            body = body if replayable(body) else _Once(body)
        count = 0  # of those that were followed
        while True:
            try:
                code, fields, answer = await request(method, url, headers=headers, body=body, **kwargs)
            except HttpError as error:
                if not count:
                    raise
                if isinstance(error, HttpDataError):
                    error.answered = True  # that is, the caller's request was
                    raise
                raise HttpRedirectError(f'After redirect {count}, to {place(url)}: {error}') from error
            locations = {value for name, value in fields if name == b'location'} if code in FOLLOWED else ()
            if not any(locations):
                return code, fields, answer
            await drain(answer, fields)
            if count == max_redirects:
                raise HttpRedirectError(f'More than {max_redirects} redirects, the last at {place(url)}')
            target = redirect_target(url, locations, downgrade)
            target_method = redirect_method(method, code)
            if target_method != method:
                method, body = target_method, None
                headers = tuple([field for field in headers if not OF_A_BODY.fullmatch(field[0].lower())])
            elif isinstance(body, _Once) and body.is_begun:
                raise HttpRedirectError(f'The redirect at {place(url)} asks for the body again, which can be played '
                                        'once: give a function that returns a new one')
            if origin(target) != origin(url):
                headers = tuple([field for field in headers if field[0].lower() not in of_this_origin])
            url = target
            count += 1
            told = on_redirect(code, url) if on_redirect is not None else None
            if asyncio.iscoroutine(told):
                told.close()  # or it would warn that it was never awaited
                raise TypeError('on_redirect must be a plain function, and is a coroutine function')

    return redirecting_request


class _Once:
    """A body that is its own iterator, and so can be played once; says whether it was begun"""
    __slots__ = ('_body', '_iterator', 'is_begun', 'content_length')

    def __init__(self, body):
        self._body = body
        self.is_begun = False
        self.content_length = getattr(body, 'content_length', None)

    def __aiter__(self):
        self._iterator = self._body.__aiter__()
        return self

    def __anext__(self):
        self.is_begun = True
        return self._iterator.__anext__()

    async def aclose(self):
        if hasattr(self._iterator, 'aclose'):
            await self._iterator.aclose()


async def drain(body, headers):
    """Reads a body to its end, so that its connection serves again; where that takes long, or is in vain, closes it"""
    async def read():
        size = 0
        try:
            with contextlib.suppress(HttpDataError):  # it broke off: what counts is in the head
                async for piece in body:
                    size += len(piece)
                    if size > MAX_DRAINED:
                        break
        finally:
            await body.aclose()

    if type(body) is ResponseBody or asks_to_close(by_name(headers)):  # it is complete, or the connection is its last
        await body.aclose()
        return
    # A task, since of a body that is another layer's generator `aclose` does not end a read. Not `wait_for`: before
    # Python 3.12 it can lose a cancellation.
    task = asyncio.get_event_loop().create_task(read())
    try:
        await asyncio.wait([task], timeout=MAX_DRAIN_SECONDS)
    finally:
        task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def redirect_method(method, code):
    """The method of the request to a redirect's target. Fetch standard, HTTP-redirect fetch; RFC 9110 §15.4"""
    becomes_get = method == b'POST' if code in (b'301', b'302') else code == b'303' and method != b'HEAD'
    return b'GET' if becomes_get else method


def redirect_target(url, locations, downgrade):
    """The url, as str, to which a response to the one of `url` redirects; raises HttpRedirectError"""
    if len(locations) > 1:
        raise HttpRedirectError(f'The redirect at {place(url)} has {len(locations)} locations that differ')
    location, = locations
    try:
        location = location.decode()
    except UnicodeDecodeError:  # some other encoding, in which the server also expects it
        location = re.sub(rb'[\x80-\xff]', lambda match: b'%%%02X' % ord(match.group()), location).decode()
    target = resolved_reference(url, location)
    try:
        scheme, *_ = origin(target)
    except HttpRequestError as error:
        raise HttpRedirectError(f'The redirect at {place(url)} cannot be followed: {error}') from error
    if scheme == 'http' and origin(url)[0] == 'https' and not downgrade:
        raise HttpRedirectError(f'The redirect at {place(url)} is from https to http, which is not followed: '
                                f'{place(target)}')
    return target


def place(url):
    """What an error shows of a url that is well-formed: its origin and path"""
    (scheme, _, _), authority, target = split_url(url)
    return f'{scheme}://{authority.decode()}{target.partition(b"?")[0].decode():.100}'


def resolved_reference(base, reference):
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
