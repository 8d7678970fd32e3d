"""Framing and smuggling: what lowhaio takes a response for, whatever its bytes are, and however they come and end

    python -m reliability.framing                 all cases, cut at every offset over TCP and TLS; some minutes
    python -m reliability.framing --sample 10     one in ten of the sweep, and of the cuts over sockets

`CASES` says of each response what it is accepted as, or how it is refused. `judge` says it of any bytes: a reference
of its own, a line at a time where lowhaio has patterns, which the cases hold to the RFCs, and which in turn judges
what no table can list: each byte in each place, each cut.
"""
import argparse
import asyncio
import collections
import contextlib
import gc
import itertools
import multiprocessing
import select
import socket
import ssl
import sys
import time
import tracemalloc

from lowhaio import (
    HttpConnectionClosedError, HttpError, HttpHeaderTooLong, HttpProtocolError, Pool, buffered, connect_directly,
)
from reliability.harness import (
    CONTINUE, OK, OK_EMPTY, PATIENCE, TEST_SECONDS, AsyncTestCase, ClientSockets, Peer, client_context, new_event_loop,
    tls_server,
)
from reliability.scripted import ABORT, CLOSE, RESET, cuts, in_bytes

# -------- The cases
#
# What is accepted is an Answer, `kept` saying whether the connection may carry another request. What is refused is
# the class of the error: the same one however the response is cut.

Answer = collections.namedtuple('Answer', 'code fields body kept')
Case = collections.namedtuple('Case', 'what method wire expected')

BAD = HttpProtocolError
CUT = HttpConnectionClosedError
LONG = HttpHeaderTooLong
REFUSED = frozenset((BAD, CUT))


def answer(body=b'hello', code=b'200', kept=True, fields=None):
    """An Answer, whose fields are those that the reference finds where none are given"""
    return Answer(code, fields, body, kept)


HELLO = answer()
HELLO_LAST = answer(kept=False)
NOTHING = answer(b'')
NOTHING_LAST = answer(b'', kept=False)


def group(what, template, *rows, method=b'GET'):
    """Cases of (what stands in the template, expected)"""
    return tuple(Case('{}: {!r:.80}'.format(what, part), method, template % part, expected) for part, expected in rows)


def refused(*parts, error=BAD):
    return tuple((part, error) for part in parts)


def fields_group(what, *rows):
    """Cases of (field lines, the fields they are, or the error)"""
    length = ((b'content-length', b'0'),)
    return group(what, OK + b'%b\r\ncontent-length: 0\r\n\r\n', *(
        (lines, answer(b'', fields=expected + length) if isinstance(expected, tuple) else expected)
        for lines, expected in rows
    ))


WITH_LENGTH = b'%b\r\ncontent-length: 5\r\n\r\nhello'
CHUNKED = OK + b'transfer-encoding: chunked\r\n\r\n'
CHUNKED_HELLO = b'5\r\nhello\r\n0\r\n\r\n'

CASES = (
    # RFC 9112 §2.3, §4, RFC 9110 §2.5. A higher minor version is read as 1.1. Another major one is another protocol;
    # Go and llhttp take HTTP/2.0 or HTTP/0.9 here, but no server means it. The name is case-sensitive: browsers and
    # curl take `http/1.1`, Go and h11 do not, and it has not been seen but in tests. ICY and HTTP/0.9 are what
    # anything else looks like, such as the greeting of an SMTP server: curl refuses them too unless it is told.
    *group('version', WITH_LENGTH,
           (b'HTTP/1.1 200 OK', HELLO),
           (b'HTTP/1.0 200 OK', HELLO_LAST),
           *((b'HTTP/1.%d 200 OK' % minor, HELLO) for minor in range(2, 10)),
           *refused(b'HTTP/0.9 200 OK', b'HTTP/2.0 200 OK', b'HTTP/3.0 200 OK', b'HTTP/5.6 200 OK', b'HTTP/0.0 200 OK'),
           *refused(b'HTTP/2 200', b'HTTP/3 200 OK', b'HTTP/1 200 OK', b'HTTP/1. 200 OK', b'HTTP/.1 200 OK',
                    b'HTTP/ 200'),
           *refused(b'HTTP/1.01 200 OK', b'HTTP/01.1 200 OK', b'HTTP/11.1 200 OK', b'HTTP/1.10 200 OK',
                    b'HTTP/1.1.1 200'),
           *refused(b'HTTP/1,1 200 OK', b'HTTP/+1.1 200 OK', b'HTTP/1.-1 200 OK', b'HTTP/ 1.1 200 OK',
                    b'HTTP/1. 1 200'),
           *refused(b'HTTP/1.x 200 OK', b'HTTP/x.1 200 OK', b'HTTP/a.b 200 OK', b'HTTP/1.\xef\xbc\x91 200 OK'),
           *refused(b'HTTP 1.1 200 OK', b'HTTP\\1.1 200 OK', b'HTTP//1.1 200 OK', b'HTTP /1.1 200 OK', b'/1.1 200 OK'),
           *refused(b'http/1.1 200 OK', b'Http/1.1 200 OK', b'HTTp/1.1 200 OK'),
           *refused(b'HTP/1.1 200 OK', b'HTTPS/1.1 200 OK', b'HHTTP/1.1 200 OK', b'XHTTP/1.1 200 OK', b'ICY 200 OK'),
           *refused(b'RTSP/1.0 200 OK', b'SIP/2.0 200 OK', b'SSH-2.0-OpenSSH_9.6', b'220 mail ESMTP', b'+OK', b'* OK'),
           *refused(b'200 OK', b'OK', b'GET / HTTP/1.1', b'Content-Type: text/html', b'<html>', b'-foo- swsclose'),
           *refused(b'', b' ', b'\r\n', b'\n', b'\r', b'\x00', b'\x15\x03\x03\x00\x02\x02\x28', b'PRI * HTTP/2.0')),
    # RFC 9112 §2.2 lets a server skip an empty line before a request; a client that did so before a response would
    # take the tail of one for the head of the next.
    *group('before the status line', b'%bHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello',
           *refused(b'\r\n', b'\n', b'\r', b'\r\n\r\n', b' ', b'\t', b'\x00', b'\xef\xbb\xbf', b'hello', b'a: b\r\n')),
    # RFC 9112 §4: three digits. RFC 9110 §15 has a client treat those that are not from 100 to 599 as 5xx: they are
    # given to the caller as they are, as browsers and Go do; curl, h11 and http.client refuse those below 100. Browsers
    # alone take one or two digits.
    *group('code', b'HTTP/1.1 %b\r\ncontent-length: 5\r\n\r\nhello',
           *((code + b' OK', answer(code=code)) for code in (
               b'200', b'201', b'205', b'206', b'226', b'299', b'300', b'301', b'399', b'400', b'407', b'418', b'426',
               b'451', b'499', b'500', b'511', b'599', b'600', b'777', b'999', b'000', b'001', b'077', b'099')),
           (b'299', answer(code=b'299')),
           *refused(b'', b' ', b'OK', b'BLAH', b'0', b'0 OK', b'1 OK', b'20 OK', b'77 OK', b'99 NOT OK'),
           (b'099', answer(code=b'099')),
           *refused(b'1000 BOO', b'0200 BOO', b'2000 OK', b'2000', b'20000 OK', b'65736 X', b'131072 HI',
                    b'4294967496 X'),
           *refused(b'-200 TEST', b'+200 TEST', b'+20 OK', b'-20 OK', b'0xA', b'0xC8 OK', b'0x2 OK', b'C8', b'2x0 OK'),
           *refused(b'200.0 OK', b'200, OK', b'200; OK', b'200:OK', b'2e2 OK', b'20 0 OK', b'2 00 OK', b'"200" OK',
                    b'2_0 OK'),
           *refused(b'\xef\xbc\x92\xef\xbc\x90\xef\xbc\x90 OK', b'\xb2\xb2\xb2 OK', b'20\xb2 OK', b'200\xa0OK')),
    # RFC 9112 §4 lets a recipient split at any blanks, if it wants; all but llhttp and curl take one SP alone. The
    # reason is for people: what stands in it is no error, CR, LF and NUL aside. The space before an empty one is
    # often left out.
    *group('separators and reason', WITH_LENGTH,
           (b'HTTP/1.1 200', HELLO),
           (b'HTTP/1.1 200 ', HELLO),
           (b'HTTP/1.1 200  ', HELLO),
           (b'HTTP/1.1 200  OK', HELLO),
           (b'HTTP/1.1 200 OK ', HELLO),
           (b'HTTP/1.1 200 \tOK\t', HELLO),
           (b'HTTP/1.1 200 404 Not Found', HELLO),
           (b'HTTP/1.1 200 OK: it is', HELLO),
           (b'HTTP/1.1 200 HTTP/1.1 404', HELLO),
           (b'HTTP/1.1 200 \x01\x08\x0b\x0c\x1b[0m\x7f', HELLO),
           (b'HTTP/1.1 200 \xc3\xa7a va \x80\xff', HELLO),
           (b'HTTP/1.1 200 ' + b'x' * 300, HELLO),
           *refused(b'HTTP/1.1', b'HTTP/1.1 ', b'HTTP/1.1200 OK', b'HTTP/1.1  200 OK', b'HTTP/1.1   200',
                    b'HTTP/1.1\t200 OK'),
           *refused(b'HTTP/1.1 \t200 OK', b'HTTP/1.1\x0b200 OK', b'HTTP/1.1\x0c200 OK', b'HTTP/1.1\xa0200 OK'),
           *refused(b'HTTP/1.1 200OK', b'HTTP/1.1 200\tOK', b'HTTP/1.1 200\t', b'HTTP/1.1 200\x0bOK',
                    b'HTTP/1.1 200\x00OK'),
           *refused(b'HTTP/1.1 200 OK\x00', b'HTTP/1.1 200 \x00', b'HTTP/1.1 200 OK\x00\x00'),
           # Blanks after the status line are no line's continuation: §2.2 has such a line refused, or skipped.
           *refused(b'HTTP/1.1 200 OK\r\n ', b'HTTP/1.1 200 OK\r\n\t', b'HTTP/1.1 200 OK\r\n x: y',
                    b'HTTP/1.1 200\n ')),
    # RFC 9112 §2.2. A bare LF ends a line of the head, as for curl, Go, h11 and browsers; llhttp refuses it. A bare CR
    # does nowhere, as for browsers; curl and llhttp's lenient modes read on, and there two readers differ.
    *group('line ends', b'%b',
           (b'HTTP/1.1 200 OK\ncontent-length: 5\n\nhello', HELLO),
           (b'HTTP/1.1 200 OK\r\ncontent-length: 5\n\nhello', HELLO),
           (b'HTTP/1.1 200 OK\ncontent-length: 5\r\n\nhello', HELLO),
           (b'HTTP/1.1 200 OK\ncontent-length: 5\n\r\nhello', HELLO),
           (b'HTTP/1.1 200 OK\ncontent-length: 6\n\n\nhello', answer(b'\nhello')),
           (b'HTTP/1.1 200 OK\n\nhello', HELLO_LAST),
           (b'HTTP/1.1 200\n\r\nhello', HELLO_LAST),
           # After the head a CR is content.
           (b'HTTP/1.1 200 OK\r\n\r\n\r\n\r\r', answer(b'\r\n\r\r', kept=False)),
           *refused(b'\rHTTP/1.1 200 OK\n\nhello', b'HTTP\r/1.1 200 OK\n\nhello', b'HTTP/\r1.1 200 OK\n\nhello'),
           *refused(b'HTTP/1\r.1 200 OK\n\nhello', b'HTTP/1.\r1 200 OK\n\nhello', b'HTTP/1.1\r200 OK\n\nhello'),
           *refused(b'HTTP/1.1\r 200 OK\n\nhello', b'HTTP/1.1 \r200 OK\n\nhello', b'HTTP/1.1 2\r00 OK\n\nhello'),
           *refused(b'HTTP/1.1 200\rOK\n\nhello', b'HTTP/1.1 200\r OK\n\nhello', b'HTTP/1.1 200 \rOK\n\nhello'),
           *refused(b'HTTP/1.1 200 O\rK\n\nhello', b'HTTP/1.1 200 OK\r\r\n\nhello', b'HTTP/1.1 200 OK\ra: b\n\nhello'),
           *refused(b'HTTP/1.1 200 OK\n\ra: b\n\nhello', b'HTTP/1.1 200 OK\na\rb: c\n\nhello',
                    b'HTTP/1.1 200 OK\na\r: c\n\nhello'),
           *refused(b'HTTP/1.1 200 OK\na:\rb\n\nhello', b'HTTP/1.1 200 OK\na: \rb\n\nhello',
                    b'HTTP/1.1 200 OK\na: b\rc\n\nhello'),
           *refused(b'HTTP/1.1 200 OK\na: b\rcontent-length: 1\n\nhello', b'HTTP/1.1 200 OK\na: b\r\r\n\nhello'),
           *refused(b'HTTP/1.1 200 OK\r\na: b\n\rc: d\r\n\r\nhello', b'HTTP/1.1 200 OK\na: b\r\n\rc: d\n\nhello'),
           # These have no empty line at all.
           *refused(b'HTTP/1.1 200 OK\r\n\r', b'HTTP/1.1 200 OK\r\n\rhello', b'HTTP/1.1 200 OK\n\r\rhello', error=CUT),
           *refused(b'HTTP/1.1 200 OK\r\r\r\rhello', b'HTTP/1.1 200 OK\ra: b\r\rhello',
                    b'HTTP/1.1 200 OK\r\n\r\r\nhello', error=CUT),
           *refused(b'', b'H', b'HTTP', b'HTTP/1.', b'HTTP/1.1', b'HTTP/1.1 200 OK', b'HTTP/1.1 200 OK\r', error=CUT),
           *refused(b'HTTP/1.1 200 OK\r\n', b'HTTP/1.1 200 OK\r\na', b'HTTP/1.1 200 OK\r\na: b\r\n', OK_EMPTY[:-1],
                    error=CUT),
           *refused(b'h', b'<', b'{}', b'\r', b'\n', b'HTTP/2', b'HTTP/1x', b'HTTPS', b'hello')),
    # RFC 9112 §5, RFC 9110 §5.1. Browsers skip a line without colon, and curl did; Go, h11, llhttp and curl today
    # refuse it, for what one reader skips another may join to the line before.
    *fields_group(
        'names',
        (b'A: b', ((b'a', b'b'),)),
        (b'0: b', ((b'0', b'b'),)),
        (b"!#$%&'*+-.^_`|~: b", ((b"!#$%&'*+-.^_`|~", b'b'),)),
        (b'Content_Length: 7', ((b'content_length', b'7'),)),
        (b'Content-Length-: 7', ((b'content-length-', b'7'),)),
        (b'TE: chunked', ((b'te', b'chunked'),)),
        (b'x' * 300 + b': b', ((b'x' * 300, b'b'),)),
        (b'b: 2\r\nA: 1\r\nB: 3\r\nb: 2', ((b'b', b'2'), (b'a', b'1'), (b'b', b'3'), (b'b', b'2'))),
        (b'Set-Cookie: A=B, C\r\nset-cookie: D', ((b'set-cookie', b'A=B, C'), (b'set-cookie', b'D'))),
        *refused(b':', b': b', b':b', b'::', b' : b', b'x', b'no colon', b'HTTP/1.1 200 OK', b'a: b\r\nx',
                 b'x\r\na: b', b'='),
        # §5.1: a server must refuse blanks before a colon, a proxy must remove them, and so two readers differ.
        *refused(b'a : b', b'a\t: b', b'a  : b', b'content-length : 5', b'Transfer-Encoding : chunked', b'a\x0b: b',
                 b'a\xa0: b'),
        *refused(b'a b: c', b'a\tb: c', b'a b', b' a: b', b'\ta: b', b'\x0ba: b', b'\x0ca: b', b'\xa0a: b'),
        *refused(*(b'a%b: c' % bytes([byte]) for byte in b'\x00\x01\x08\x0b\x0c\x0e\x1f"(),/;<=>?@[\\]{}')),
        *refused(*(b'a%b: c' % bytes([byte]) for byte in b'\x7f\x80\x85\xa0\xc4\xff')),
        *refused(b'\x00: b', b'\x00a: b', b'\xef\xbb\xbfa: b', b'\xc3\xa4: b', b'"a": b', b'Cont\xc4\xb1nue: b'),
    ),
    # RFC 9110 §5.5: CR, LF and NUL are an error; other controls may be kept where they are harmless, and servers send
    # them. SP and HTAB alone are blanks around a value: what else `strip()` takes is a part of it.
    *fields_group(
        'values',
        (b'a:b', ((b'a', b'b'),)),
        (b'a:', ((b'a', b''),)),
        (b'a: \t ', ((b'a', b''),)),
        (b'a: \t b  c\td \t', ((b'a', b'b  c\td'),)),
        (b'a::b: c', ((b'a', b':b: c'),)),
        (b'a: b: c', ((b'a', b'b: c'),)),
        (b'a: "b\\"', ((b'a', b'"b\\"'),)),
        (b'a: ,', ((b'a', b','),)),
        (b'a: \x0bb\x0c', ((b'a', b'\x0bb\x0c'),)),
        (b'a: \x85b\xa0', ((b'a', b'\x85b\xa0'),)),
        (b'a: \x1cb\x1f', ((b'a', b'\x1cb\x1f'),)),
        (b'a: \x01\x08\x0e\x1b\x7f', ((b'a', b'\x01\x08\x0e\x1b\x7f'),)),
        (b'a: \xc3\xa4\x80\xe9\xff', ((b'a', b'\xc3\xa4\x80\xe9\xff'),)),
        (b'a: =?utf-8?q?b?= %0d%0a', ((b'a', b'=?utf-8?q?b?= %0d%0a'),)),
        (b'a: ' + b'x' * 300, ((b'a', b'x' * 300),)),
        *refused(b'a: \x00', b'a:\x00', b'a: b\x00', b'a: b\x00c', b'a: b\x00\r\nc: d', b'a: b\rc', b'a: b\r\r',
                 b'a:\r', b'a: \r b'),
    ),
    # RFC 9112 §5.2: a fold is replaced by a space, as curl, Go and browsers do; h11 and llhttp refuse it by default.
    # It is the reader behind a line that may differ, not the one in front, and old servers fold.
    *fields_group(
        'obs-fold',
        (b'a: b\r\n c', ((b'a', b'b c'),)),
        (b'a: b\r\n\tc', ((b'a', b'b c'),)),
        (b'a: b\n c', ((b'a', b'b c'),)),
        (b'a: b\r\n \t c \t', ((b'a', b'b c'),)),
        (b'a:\r\n b', ((b'a', b'b'),)),
        (b'a: b\r\n ', ((b'a', b'b'),)),
        (b'a: b\r\n c\r\n d', ((b'a', b'b c d'),)),
        (b'a: b\r\n c: d', ((b'a', b'b c: d'),)),
        (b'a: b\r\n content-length: 7', ((b'a', b'b content-length: 7'),)),
        (b'a: b\r\n c\r\nd: e', ((b'a', b'b c'), (b'd', b'e'))),
        *refused(b'a\r\n : b', b'a\r\n b: c', b'x\r\n y', b'a: b\r\n\x0bc', b'a: b\r\n\x0cc', b'a: b\r\r\n c',
                 b'a: b\r\n c\rd'),
        *refused(b'a: b\r\n \x00', b'a: b\r c', b'a: b\r\n\xa0c', b' \r\na: b', b'\t\r\n a: b'),
    ),
    # RFC 9112 §6.3, RFC 9110 §8.6. Browsers take a length that is none for no length, and read until the close; curl,
    # Go and h11 refuse it, as §6.3 says. A list is what proxies make of repeats: its members must be the same number.
    # An empty member is legal in lists (§5.6.1), and still refused, as by browsers, Go and h11: here it is a mistake.
    *group('a length', OK + b'%b\r\n\r\nhello',
           *((b'content-length:' + value, HELLO) for value in (
               b'5', b' 5', b'\t5', b' \t 5 \t ', b' 05', b' 00005', b' ' + b'0' * 40 + b'5', b' 5,5', b' 5, 5',
               b' 5 ,5',
               b' 5\t,\t5', b' 5,5,5,5', b' 5, 05', b'\r\n 5', b' 5\r\n ', b' 5,\r\n 5')),
           *((lines, HELLO) for lines in (
               b'CONTENT-LENGTH: 5', b'content-length: 5\r\ncontent-length: 5',
               b'Content-Length: 5\r\na: b\r\ncontent-length: 5',
               b'content-length: 5, 5\r\ncontent-length: 5', b'content_length: 9\r\ncontent-length: 5',
               b'x-content-length: 9\r\ncontent-length: 5', b'content-encoding: gzip\r\ncontent-length: 5')),
           *((b'content-length: ' + value, NOTHING_LAST) for value in (b'0', b'00', b'0,0', b'0' * 100)),
           *((b'content-length: %d' % length, answer(b'hello'[:length], kept=False)) for length in range(1, 5)),
           *refused(*(b'content-length: ' + value for value in (
               b'', b'+5', b'-5', b'-0', b'--5', b'5-', b'5+', b'5.0', b'5.', b'.5', b'5e0', b'0x5', b'0b1', b'0o5',
               b'5h', b'5abc',
               b'five', b'NaN', b'inf', b'null', b'5_0', b'_5', b'5 5', b'5\t5', b'5;', b'5; 5', b'5:', b'5/5', b'5=',
               b'"5"',
               b"'5'", b'(5)', b'*', b'5\x0b', b'\x0b5', b'5\x0c', b'\x0c5', b'5\x1c', b'\x1f5', b'5\x7f', b'\xa05',
               b'5\x85',
               b'\xef\xbc\x95', b'\xd9\xa5', b'\xb2', b'\xe2\x91\xa4', b'\xef\xbb\xbf5', b'5\x00', b'\x005', b'5\r',
               b'\r5',
               b'5,', b',5', b',', b',,', b'5,,5', b'5, ,5', b'5,6', b'6,5', b'5, 5, 6', b'5,+5', b'5,-5', b'5,x',
               b'x,5', b'x,x',
               b'5, "5"', b'5;5', b'5\r\n 5', b'5\r\n 0', b'5,5\r\n ,', b'0, 5', b'-1', b'-1, -1'))),
           *refused(*(b'content-length: %d' % length for length in (
               2 ** 63, 2 ** 63 + 5, 2 ** 64 - 1, 2 ** 64, 2 ** 64 + 5, 2 ** 65, 10 ** 19, 10 ** 20 + 5, 10 ** 99))),
           *refused(b'content-length: ' + b'5' * 5000, b'content-length: 5, ' + b'1' * 5000,
                    b'content-length: 5,' + b' ' * 300),
           *refused(b'content-length: 5\r\ncontent-length: 6', b'content-length: 6\r\ncontent-length: 5'),
           *refused(b'content-length: 5\r\ncontent-length:', b'content-length:\r\ncontent-length: 5'),
           *refused(b'content-length:\r\ncontent-length:', b'content-length: 5\r\na: b\r\nContent-Length: 0'),
           *refused(b'content-length: 5\r\ncontent-length: 5, 6', b'content-length: 5\r\ncontent-length: +5'),
           *refused(*(b'content-length: %d' % length for length in (
               6, 42, 2 ** 31, 2 ** 32, 2 ** 32 + 5, 2 ** 53, 2 ** 63 - 1)), error=CUT),
           *refused(b'content-length: 6, 6', b'content-length: 6\r\ncontent-length: 6', error=CUT),
           (b'content-length: ' + b'0' * 5000 + b'5', HELLO),
           (b'content-length: 5' + b',5' * 2000, HELLO)),
    # RFC 9112 §6.1, §6.3, §7. No `te` is sent, so that no coding but chunked may come; `identity` was withdrawn. With
    # content-length, or in HTTP/1.0, RFC 9112 lets a client process the message and close, as curl and browsers do:
    # it "ought to be handled as an error", and is.
    *group('a coding', OK + b'%b\r\n\r\n' + CHUNKED_HELLO,
           *((b'transfer-encoding:' + value, HELLO) for value in (
               b'chunked', b' chunked', b'\t chunked \t', b' Chunked', b' CHUNKED', b' cHuNkEd', b'\r\n chunked',
               b' chunked\r\n ')),
           (b'TRANSFER-ENCODING: chunked', HELLO),
           (b'transfer-encoding: chunked\r\nte: gzip\r\ntransfer_encoding: gzip', HELLO),
           (b'transfer-encoding: chunked\r\ntrailer: a', HELLO),
           (b'transfer-encoding: chunked\r\ncontent-encoding: gzip', HELLO),
           *refused(*(b'transfer-encoding: ' + value for value in (
               b'', b',', b'identity', b'Identity', b'gzip', b'deflate', b'x-gzip', b'compress', b'br',
               b'gzip, chunked',
               b'chunked, gzip', b'chunked, identity', b'identity, chunked', b'chunked, chunked', b'chunked,',
               b',chunked', b', chunked',
               b'chunked ,', b'chunked;', b'chunked;a=b', b'chunked; q=0.5', b'"chunked"', b"'chunked'", b'chunk',
               b'chunke',
               b'chunkedd', b'xchunked', b'x-chunked', b'chunked chunked', b'not chunked', b'chunked\x0b',
               b'\x0bchunked', b'chunked\x0c',
               b'\x0cchunked', b'\xa0chunked', b'chunked\x85', b'\x1fchunked', b'chunked\x00', b'\x00chunked',
               b'chun\x00ked',
               b'chunked\r', b'\rchunked', b'chun\r\n ked', b'gzip\r\n chunked', b'chunked\r\n gzip',
               b'chun\xe2\x84\xaaed',
               b'\xef\xbd\x83hunked', b'chunked\xef\xbb\xbf', b'0', b'true', b'hello'))),
           *refused(b'transfer-encoding: chunked\r\ntransfer-encoding: chunked',
                    b'transfer-encoding: gzip\r\ntransfer-encoding: chunked'),
           *refused(b'transfer-encoding: chunked\r\ntransfer-encoding: identity',
                    b'transfer-encoding: chunked\r\ntransfer-encoding:'),
           *refused(b'transfer-encoding: chunked\r\nTransfer-Encoding: x',
                    b'transfer-encoding:\r\ntransfer-encoding: chunked'),
           *refused(b'transfer-encoding: chunked\r\ncontent-length: 5',
                    b'content-length: 15\r\ntransfer-encoding: chunked'),
           *refused(b'transfer-encoding: chunked\r\ncontent-length: 0',
                    b'transfer-encoding: chunked\r\ncontent-length:'),
           *refused(b'transfer-encoding: identity\r\ncontent-length: 5', b'transfer-encoding:\r\ncontent-length: 5'),
           *refused(b'transfer-encoding: chunked\r\ncontent-length: -1',
                    b'transfer-encoding : chunked\r\ncontent-length: 5')),
    *group('a coding in HTTP/1.0', b'HTTP/1.0 200 OK\r\n%b\r\n\r\n' + CHUNKED_HELLO,
           *refused(b'transfer-encoding: chunked', b'connection: keep-alive\r\ntransfer-encoding: chunked'),
           *refused(b'transfer-encoding: identity', b'transfer-encoding: chunked\r\ncontent-length: 5')),
    # RFC 9112 §7.1. Hexadecimal digits and nothing else, 16 at most: 2^64 and beyond would wrap around elsewhere.
    # Blanks after it were sent by old servers, and curl, Go and h11 skip them. Only CRLF ends a chunk-size line, and a
    # chunk: curl and Go take a bare LF, but what one reader takes for the end of an extension is to another a part.
    *group('a chunk size', CHUNKED + b'%b\r\nhello\r\n0\r\n\r\n',
           *((size, HELLO) for size in (b'5', b'05', b'005', b'0000000000000005', b'5 ', b'5\t', b'5 \t ')),
           *refused(b'', b' ', b' 5', b'\t5', b'+5', b'-5', b'0x5', b'0X5', b'x5', b'5h', b'h', b'g', b'G', b'5.0',
                    b'5,', b'5:', b'5=', b'"5"',
                    b'5_0', b'_5', b'5 5', b'5 0', b'5\t5', b'five', b'#5', b'$5', b'&h5', b'%35', b'-0', b'5-',
                    b'5+', b'*', b'5"', b'/5'),
           *refused(b'5\x00', b'\x005', b'5\x0b', b'5\x0c', b'5\xa0', b'\xef\xbc\x95', b'\xb2', b'\xd9\xa5',
                    b'5\xef\xbb\xbf', b'\x7f5', b'5\x01'),
           *refused(b'00000000000000005', b'10000000000000005', b'100000000000000000005', b'0' * 300 + b'5',
                    b'f' * 17, b'f' * 5000),
           *refused(b'5\n', b'\n5', b'\r\n5', b'5\r', b'\r5', b'5\r\r', b'5\n\r', b'5 \n', b'5\r ', b'5\r\n'),
           *refused(b'4', b'3', b'1', error=BAD),
           *refused(b'f', b'fffffff', b'7fffffff', b'80000000', b'ffffffff', b'100000005', b'7fffffffffffffff',
                    b'8000000000000000', b'ffffffffffffffff', b'FFFFFFFFFFFFFFFF', b'0123456789abcdef', error=CUT)),
    # RFC 9112 §7.1.1: extensions are skipped unread, so that their grammar is not held to: an empty name, a control, a
    # quote that does not end are nothing to a reader who looks for the CRLF alone. CR, LF and NUL are refused.
    *group('a chunk extension', CHUNKED + b'5%b\r\nhello\r\n0%b\r\n\r\n' % (b'%b', b''),
           *((extension, HELLO) for extension in (
               b';a', b';a=b', b';a="b"', b';a=b;c=d', b' ; a = b', b'\t;\ta', b';a="b;c"', b';a="b\\"c"', b';a="',
               b';a=""', b';', b'; ',
               b';;', b';=', b';=b', b';a=', b';a=b c', b';5', b';a="0"', b'; 5', b';a\x01\x0b\x0c\x7f', b';\x80\xff',
               b';\xc3\xa4=\xc3\xa4',
               b';"hello"', b';a=' + b'x' * 300, b';a:b', b';%0d%0a', b';a\\')),
           *refused(b';\x00', b';a\x00b', b';a="\x00"', b';a\rb', b';\r', b';a\r', b';a="\r"', b';a\nb', b';\n',
                    b';a\n', b';a\n\r', b';a\r\r'),
           *refused(b';a="\n"', b';a="\r\n"', b'a=b', b':a=b', b',a=b', b' a', b'\x00;a', b'\x0b;a', b'\n;a', b'\r;a',
                    b'-;a', b'"a"')),
    *group('chunks', CHUNKED + b'%b',
           (b'0\r\n\r\n', NOTHING),
           (b'000\r\n\r\n', NOTHING),
           (b'0000000000000000\r\n\r\n', NOTHING),
           (b'0;a=b\r\n\r\n', NOTHING),
           (b'0 \r\n\r\n', NOTHING),
           (b'1\r\nh\r\n4\r\nello\r\n0\r\n\r\n', HELLO),
           (b'1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n', HELLO),
           (b'5;a=b\r\nhello\r\n0;c\r\n\r\n', HELLO),
           (b'A\r\n0123456789\r\n0\r\n\r\n', answer(b'0123456789')),
           (b'1f\r\n%b\r\n0\r\n\r\n' % (b'x' * 31), answer(b'x' * 31)),
           (b'5e0\r\n%b\r\n0\r\n\r\n' % (b'x' * 0x5e0), answer(b'x' * 0x5e0)),
           (b'7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n', answer(b'\r\n0\r\n\r\n')),
           (b'2\r\n\r\n\r\n0\r\n\r\n', answer(b'\r\n')),
           (b'1\r\n\x00\r\n0\r\n\r\n', answer(b'\x00')),
           # What comes after the response is not read, but ends the connection.
           (CHUNKED_HELLO + b'x', HELLO_LAST),
           (CHUNKED_HELLO + b'\r\n', HELLO_LAST),
           (CHUNKED_HELLO + CHUNKED_HELLO, HELLO_LAST),
           (CHUNKED_HELLO + OK_EMPTY, HELLO_LAST),
           *refused(b'\r\n', b'\n', b'hello\r\n', b'\r\n5\r\nhello\r\n0\r\n\r\n', b'5\nhello\n0\n\n',
                    b'5\r\nhello\n0\r\n\r\n', b'0\n\n'),
           *refused(b'5\r\nhello0\r\n\r\n', b'5\r\nhelloX\r\n0\r\n\r\n', b'5\r\nhello\rX0\r\n\r\n',
                    b'5\r\nhello\r\r\n0\r\n\r\n'),
           *refused(b'5\r\nhello\n\r0\r\n\r\n', b'5\r\nhello\r\n\r\n0\r\n\r\n', b'5\r\nhello \r\n0\r\n\r\n',
                    b'5\r\nhello\r0\r\n\r\n'),
           *refused(b'5\r\nhell\r\n0\r\n\r\n', b'5\r\nhello!\r\n0\r\n\r\n', b'5\r\nhello\r\n-0\r\n\r\n',
                    b'5\r\nhello\r\n0x0\r\n\r\n'),
           *refused(b'5\r\nhello\r\n 0\r\n\r\n', b'5\r\nhello\r\n0\n\r\n', b'5\r\nhello\r\n00000000000000000\r\n\r\n',
                    b'5\r\rhello\r\n0\r\n'),
           *refused(b'', b'5', b'5\r', b'5\r\n', b'5\r\nhell', b'5\r\nhello', b'5\r\nhello\r', b'5\r\nhello\r\n',
                    b'5\r\nhello\r\n0', error=CUT),
           *refused(b'5\r\nhello\r\n0\r', b'5\r\nhello\r\n0\r\n', b'5\r\nhello\r\n0\r\n\r',
                    b'5\r\nhello\r\n0\r\na: b\r\n', error=CUT),
           *refused(b'5\r\nhello\r\n0\r\na: b', b'5;a', b'5;a\r', b'0;', b'0\r\n\r', b'5\r\nhello\r\n0\r\n\r0',
                    error=CUT)),
    # RFC 9112 §7.1.2: checked like the fields of a head, for they end the message; and dropped, so that none of them
    # can change what the head has said.
    *group('trailers', CHUNKED + b'5\r\nhello\r\n0\r\n%b\r\n\r\n',
           *((lines, HELLO) for lines in (
               b'a: b', b'a:', b'A:b\r\nc: d', b'a: b\nc: d', b'a: b\r\n c', b'a: b\r\n ', b'a: \x01\x7f\xff',
               b'content-length: 9',
               b'transfer-encoding: gzip', b'connection: close', b'content-length: x\r\ncontent-length: y',
               b'a: ' + b'x' * 300)),
           *refused(b'x', b':', b': b', b' a: b', b'\ta: b', b'a : b', b'a b: c', b'a\x00: b', b'a: b\x00',
                    b'a: b\rc', b'a: b\r\nx', b'x\r\na: b',
                    b'\xe9: b', b'a: b\r\r', b'\ra: b', b'5', b'0', b'5\r\nhello', b'HTTP/1.1 200 OK', b'a',
                    b'a: b\r\n\x0bc', b'a@b: c')),
    *group('the end of trailers', CHUNKED + b'5\r\nhello\r\n0\r\n%b',
           (b'\n', HELLO),
           (b'a: b\n\n', HELLO),
           (b'a: b\r\n\n', HELLO),
           (b'a: b\n\r\n', HELLO),
           (b'\n\r\n', HELLO_LAST),
           (b'\r\n\r\n', HELLO_LAST),
           (b'a: b\r\n\r\nc: d\r\n\r\n', HELLO_LAST),
           *refused(b'\r\r\n', b'a: b\r\r\n', b'a: b\r\n\r', b'a: b\r\r\r\r', b'a: b\r\n\r\r\n', error=CUT),
           *refused(b'\r\r\n\r\n', b'\rx\r\n\r\n', b' \r\n\r\n')),
    # RFC 9112 §6.3, 1 and 2: no content, whatever the fields say, and so their quarrels do not matter: there is nothing
    # that two readers could divide. What comes all the same is never taken for the next response.
    *itertools.chain.from_iterable(
        group(what, begin + b'%b\r\n', *((lines, answer(b'', code)) for lines in (
            b'', b'content-length: 5\r\n', b'content-length: 5, 6\r\n', b'content-length: 5\r\ncontent-length: 6\r\n',
            b'content-length: x\r\n', b'content-length: 99999999999999999999\r\n', b'transfer-encoding: chunked\r\n',
            b'transfer-encoding: gzip\r\n', b'transfer-encoding: chunked\r\ncontent-length: 5\r\n')), method=method) +
        group(what + ', and content', begin + b'content-length: 5\r\n\r\n%b', *(
            (content, answer(b'', code, kept=False)) for content in (b'h', b'hello', b'\r\n', CHUNKED_HELLO, OK_EMPTY)),
            method=method)
        for what, method, begin, code in (
            ('HEAD', b'HEAD', OK, b'200'), ('HEAD and 404', b'HEAD', b'HTTP/1.1 404 X\r\n', b'404'),
            ('204', b'GET', b'HTTP/1.1 204 No Content\r\n', b'204'), ('304', b'GET', b'HTTP/1.1 304 Not Modified\r\n',
            b'304'),
            ('204 for POST', b'POST', b'HTTP/1.1 204 No Content\r\n', b'204'), ('HEAD and 304', b'HEAD',
            b'HTTP/1.1 304\r\n', b'304'))),
    *group('no content in HTTP/1.0', b'HTTP/1.0 204 X\r\n%b\r\n',
           (b'', answer(b'', b'204', kept=False)),
           (b'connection: keep-alive\r\n', answer(b'', b'204')),
           (b'transfer-encoding: chunked\r\n', answer(b'', b'204', kept=False)),
           # RFC 9112 §6.1: it cannot know the field, and so may have sent what it takes for a body.
           *((b'connection: keep-alive\r\n' + field, answer(b'', b'204', kept=False)) for field in (
               b'transfer-encoding: chunked\r\n', b'transfer-encoding:\r\n', b'Transfer-Encoding: x\r\n'))),
    # RFC 9110 §15.3.6 has 205 sent without content, but frames it like any other.
    *group('205', b'HTTP/1.1 205 Reset Content\r\n%b',
           (b'content-length: 0\r\n\r\n', answer(b'', b'205')),
           (b'content-length: 5\r\n\r\nhello', answer(code=b'205')),
           (b'transfer-encoding: chunked\r\n\r\n' + CHUNKED_HELLO, answer(code=b'205')),
           (b'\r\nhello', answer(code=b'205', kept=False))),
    # RFC 9110 §15.2: any number may come, of codes unknown too. 101 is no answer to a request without `upgrade`. Fields
    # of framing in them are against RFC 9112 §6.1, and say nothing. They are as strict as any head.
    *group('1xx', b'%bHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello',
           *((interim, HELLO) for interim in (
               CONTINUE, CONTINUE * 2, CONTINUE * 9, b'HTTP/1.1 100\r\n\r\n', b'HTTP/1.1 100 \r\n\r\n',
               b'HTTP/1.1 100 C\n\n', b'HTTP/1.0 100 C\r\n\r\n',
               b'HTTP/1.1 102 Processing\r\n\r\n', b'HTTP/1.1 103 E\r\nlink: </a>\r\n\r\n', b'HTTP/1.1 104 U\r\n\r\n',
               b'HTTP/1.1 199 X\r\n\r\n',
               CONTINUE + b'HTTP/1.1 103 E\r\na: b\r\n\r\n' + CONTINUE, b'HTTP/1.1 100 C\r\na: b\r\n c\r\n\r\n',
               b'HTTP/1.1 100 C\r\ncontent-length: 5\r\n\r\n', b'HTTP/1.1 100 C\r\ncontent-length: 0\r\n\r\n',
               b'HTTP/1.1 103 E\r\ncontent-length: 5, 6\r\n\r\n',
               b'HTTP/1.1 103 E\r\ntransfer-encoding: chunked\r\n\r\n',
               b'HTTP/1.1 100 C\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n',
               b'HTTP/1.1 100 C\r\nconnection: close\r\n\r\n')),
           *refused(b'HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n', b'HTTP/1.1 101\r\n\r\n',
                    CONTINUE + b'HTTP/1.1 101 X\r\n\r\n'),
           *refused(CONTINUE + b'hello', CONTINUE + b'\r\n', b'HTTP/1.1 100 C\r\ncontent-length: 5\r\n\r\nhello',
                    b'HTTP/1.1 103 E\r\n\r\n0\r\n\r\n'),
           *refused(b'HTTP/1.1 100 C\r\nx\r\n\r\n', b'HTTP/1.1 100 C\r\na : b\r\n\r\n', b'HTTP/1.1 1000 C\r\n\r\n',
                    b'HTTP/1.1 10 C\r\n\r\n'),
           *refused(b'HTTP/1.1 100 C\r\n', b'HTTP/1.1 100 C\r\na: \x00\r\n\r\n', b'HTTP/2 100\r\n\r\n',
                    b'100 Continue\r\n\r\n')),
    *group('1xx and no more', b'%b',
           *refused(CONTINUE, CONTINUE * 3, CONTINUE + b'H', CONTINUE + OK, CONTINUE[:-1], b'HTTP/1.1 199 X\r\n\r\n',
                    error=CUT)),
    *group('1xx before other framings', CONTINUE + b'%b',
           (CHUNKED + CHUNKED_HELLO, HELLO),
           (OK + b'\r\nhello', HELLO_LAST),
           (OK_EMPTY, NOTHING),
           (b'HTTP/1.1 204 X\r\n\r\n', answer(b'', b'204'))),
    *group('1xx before HEAD', CONTINUE + b'%b', (OK + b'content-length: 5\r\n\r\n', NOTHING), method=b'HEAD'),
    # RFC 9112 §6.3, 8. There is nothing by which to tell whether it is whole but an orderly end: `CutTests`.
    *group('until the close', b'%b',
           (OK + b'\r\n', NOTHING_LAST),
           (OK + b'\r\nhello', HELLO_LAST),
           (OK + b'\r\n' + OK_EMPTY, answer(OK_EMPTY, kept=False)),
           (OK + b'connection: keep-alive\r\n\r\nhello', HELLO_LAST),
           (OK + b'keep-alive: timeout=5\r\n\r\nhello', HELLO_LAST),
           (OK + b'content-length-x: 3\r\n\r\nhello', HELLO_LAST),
           (OK + b'te: chunked\r\n\r\n' + CHUNKED_HELLO, answer(CHUNKED_HELLO, kept=False)),
           (OK + b'content-type: multipart/byteranges; boundary=a\r\n\r\n--a--\r\n', answer(b'--a--\r\n', kept=False)),
           (OK + b'upgrade: websocket\r\nconnection: upgrade\r\n\r\nhello', HELLO_LAST),
           (b'HTTP/1.0 200 OK\r\n\r\nhello', HELLO_LAST),
           (b'HTTP/1.0 200 OK\r\nconnection: keep-alive\r\n\r\nhello', HELLO_LAST),
           (b'HTTP/1.1 404 X\r\n\r\n\x00\r\n\xff', answer(b'\x00\r\n\xff', b'404', kept=False))),
    # RFC 9112 §9.3: a token of a list, in any case, of any of the fields. `proxy-connection` is nobody's standard.
    *group('persistence', b'HTTP/1.%b\r\ncontent-length: 5\r\n\r\nhello',
           *((b'1 200 OK\r\n' + lines, HELLO) for lines in (
               b'connection: keep-alive', b'connection:', b'connection: ,', b'connection: x', b'connection: closed',
               b'connection: not-close',
               b'connection: "close"', b'connection: clos e', b'connection: close;a', b'connection: close=1',
               b'proxy-connection: close',
               b'connection: upgrade\r\nupgrade: h2c', b'x-connection: close', b'connection: \x0bclose')),
           *((b'1 200 OK\r\n' + lines, HELLO_LAST) for lines in (
               b'connection: close', b'Connection: Close', b'CONNECTION:CLOSE', b'connection:\tclose\t',
               b'connection: keep-alive, close',
               b'connection: close, keep-alive', b'connection: ,close,', b'connection: a,b ,\tclose',
               b'connection: x\r\nconnection: close',
               b'connection: close\r\nconnection: keep-alive', b'connection: close\r\nconnection: close',
               b'connection: a,\r\n close')),
           *((b'0 200 OK\r\n' + lines, HELLO) for lines in (
               b'connection: keep-alive', b'Connection: Keep-Alive', b'connection: x, keep-alive',
               b'connection: x\r\nconnection: keep-alive')),
           *((b'0 200 OK\r\n' + lines, HELLO_LAST) for lines in (
               b'a: b', b'connection: close', b'connection: keep-alive, close', b'connection: keepalive',
               b'keep-alive: timeout=5',
               b'proxy-connection: keep-alive', b'connection: keep-alive\r\nconnection: close')),
           (b'2 200 OK\r\na: b', HELLO),
           (b'9 200 OK\r\nconnection: close', HELLO_LAST)),
    *group('surplus', OK + b'content-length: 5\r\n\r\nhello%b',
           *((surplus, HELLO_LAST) for surplus in (b'!', b'\r\n', b'\n', b'\x00', b'H', b'hello', OK_EMPTY, CONTINUE))),
)


# -------- The reference


class Refusal(Exception):
    """The response is refused, or not complete"""


def require(condition):
    if not condition:
        raise Refusal


def judge(method, wire, orderly=True):
    """What a client makes of all that a peer sent, `wire`, and of the end after it: an Answer, or REFUSED

    `orderly` is an end that the peer meant: over TCP a FIN, over TLS close_notify. Any other, a reset among them, ends
    no body that lasts until the close; to all that is complete by itself the end does not matter.
    """
    try:
        return judged(method, wire, orderly)
    except Refusal:
        return REFUSED


TCHARS = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
HEXDIGITS = frozenset(b'0123456789abcdefABCDEF')


def line_at(wire, at):
    """(a line without its LF, where the next one begins)"""
    end = wire.find(b'\n', at)
    require(end >= 0)
    return wire[at:end], end + 1


def text_line_at(wire, at):
    """A line of a head, or of the trailers, which a bare LF may end"""
    line, at = line_at(wire, at)
    line = line[:-1] if line.endswith(b'\r') else line
    require(b'\r' not in line and b'\x00' not in line)
    return line, at


def fields_at(wire, at):
    """(fields up to an empty line, where it ends)"""
    fields = []
    while True:
        line, at = text_line_at(wire, at)
        if not line:
            return tuple((name.lower(), value.strip(b' \t')) for name, value in fields), at
        if line[:1] in (b' ', b'\t'):
            require(fields)
            name, value = fields.pop()
            fields.append((name, value + b' ' + line.lstrip(b' \t')))
        else:
            name, colon, value = line.partition(b':')
            require(colon and name and TCHARS.issuperset(name))
            fields.append((name, value))


def head_at(wire, at):
    """(version, code, fields, where the head ends)"""
    line, at = text_line_at(wire, at)
    version, code, rest = line[:8], line[9:12], line[12:]
    require(version[:7] == b'HTTP/1.' and version[7:].isdigit() and line[8:9] == b' ')
    require(len(code) == 3 and code.isdigit() and rest[:1] in (b'', b' '))
    fields, at = fields_at(wire, at)
    return version, code, fields, at


def members(fields, name):
    return [member.strip(b' \t') for each, value in fields if each == name for member in value.split(b',')]


def chunks_at(wire, at):
    """(the body, where the trailers end)"""
    body = b''
    while True:
        line, at = line_at(wire, at)
        require(line.endswith(b'\r') and b'\r' not in line[:-1] and b'\x00' not in line)
        size = line[:-1].partition(b';')[0].rstrip(b' \t')
        require(0 < len(size) <= 16 and HEXDIGITS.issuperset(size))
        size = int(size, 16)
        if not size:
            return body, fields_at(wire, at)[1]
        body += wire[at:at + size]
        at += size + 2
        require(wire[at - 2:at] == b'\r\n')


def judged(method, wire, orderly):
    version, code, fields, at = head_at(wire, 0)
    while code[:1] == b'1':
        require(code != b'101')
        version, code, fields, at = head_at(wire, at)
    codings = [value.lower() for name, value in fields if name == b'transfer-encoding']
    lengths = members(fields, b'content-length')
    until_close = False
    if method == b'HEAD' or code in (b'204', b'304'):
        body = b''
    elif codings:
        require(codings == [b'chunked'] and not lengths and version != b'HTTP/1.0')
        body, at = chunks_at(wire, at)
    elif lengths:
        distinct = {length.lstrip(b'0') or b'0' for length in lengths}
        require(all(length.isdigit() for length in lengths) and len(distinct) == 1)
        digits, = distinct
        require(len(digits) < 20 and int(digits) < 2 ** 63)
        body = wire[at:at + int(digits)]
        require(len(body) == int(digits))
        at += len(body)
    else:
        require(orderly)
        body, at, until_close = wire[at:], len(wire), True
    options = [option.lower() for option in members(fields, b'connection')]
    persists = b'close' not in options and (version != b'HTTP/1.0' or b'keep-alive' in options and not codings)
    return Answer(code, fields, body, persists and not until_close and at == len(wire))


# -------- Deliveries in memory


class Delivery:
    """What `connect` may return in place of a socket: reads give the pieces, one each, and then the end"""
    address = None
    expires_at = 0.0

    def __init__(self, pieces):
        self.pieces = iter(pieces)
        self.taken = 0
        self.is_there = self.is_closed = False

    async def wait(self, sending=False, seconds=None):
        self.is_there = True

    def receive(self):
        if not self.is_there:
            return None
        data = next(self.pieces, b'')
        self.taken += len(data)
        return data

    def send(self, data):
        self.is_there = False
        return len(data)

    def has_unsent(self):
        return False

    def poll(self):
        return None

    def watch(self, callback, seconds=0):
        pass

    def close(self, last=b''):
        self.is_closed = True

    abandon = close


async def outcome(request, method, url, headers=()):
    """The Answer, but for `kept`, or the class of the HttpError; all else is a foreign exception, and goes through"""
    try:
        code, fields, body = await request(method, url, headers=headers)
        return Answer(code, fields, await buffered(body), None)
    except HttpError as error:
        return type(error)


async def receive(method, delivery, **kwargs):
    """The outcome of one request, whose response is delivered"""
    async def connect(*_):
        return delivery

    request, close = Pool(connect=connect, **kwargs)
    result = await outcome(request, method, 'http://127.0.0.1/')
    if isinstance(result, Answer):
        result = result._replace(kept=not delivery.is_closed and next(delivery.pieces, None) is None)
    else:
        assert delivery.is_closed, 'a connection that failed was not closed'
    await close()
    return result


# Every experiment is an asynchronous generator of (what, outcome, expected), of which a frozenset is any of these.


def agree(result, expected):
    return result in expected if isinstance(expected, frozenset) else result == expected


def expected_of(case):
    """The Answer with the fields that the reference finds; or the error's class"""
    if isinstance(case.expected, type):
        return case.expected
    return judge(case.method, case.wire)


def without_kept(expected):
    """For requests that ask for the connection to be closed"""
    return expected._replace(kept=None) if isinstance(expected, Answer) else expected


async def cases_in_memory(step=1):
    """Each case whole, byte by byte, and in two at each offset, or at each so many"""
    for number, case in enumerate(CASES):
        expected = expected_of(case)
        for at, pieces in enumerate(cuts(case.wire)):
            if at < 2 or (at + number) % step == 0 and len(case.wire) < 1000:
                yield (case.what, pieces[:2]), await receive(case.method, Delivery(pieces)), expected


SMALL_RESPONSES = (
    b'HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 5\r\n\r\nhello',
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a="b"\r\nhello\r\n0\r\nc: d\r\n\r\n',
    b'HTTP/1.1 200 OK\r\na: b\r\n\r\nhello',
    CONTINUE + b'HTTP/1.0 200 OK\r\nconnection: close\r\na: b\r\n c\r\n\r\nhello',
)
# Those to which the grammar gives a meaning, and their neighbours; for the short form.
TELLING_BYTES = b'\x00\x01\x08\t\n\x0b\x0c\r\x1f "(+,-./059:;@Aafgz{\x7f\x80\x85\xa0\xff'


def mutations(wire, values):
    """The wire with each of the values in place of, and before, each of its bytes, and after the last; and without
    each of its bytes"""
    for at in range(len(wire) + 1):
        for value in (bytes([value]) for value in values):
            yield wire[:at] + value + wire[at:]
            if wire[at:at + 1] not in (value, b''):
                yield wire[:at] + value + wire[at + 1:]
        yield wire[:at] + wire[at + 1:]


async def sweep(values, step=1):
    """Mutated small responses, whole, byte by byte and in two, as the reference judges them"""
    wires = itertools.chain.from_iterable(mutations(wire, values) for wire in SMALL_RESPONSES)
    for number, wire in enumerate(itertools.islice(wires, 0, None, step)):
        expected = judge(b'GET', wire)
        at = 1 + number % (len(wire) - 1)
        whole = await receive(b'GET', Delivery([wire]))
        yield wire, whole, expected
        for pieces in (in_bytes(wire), [wire[:at], wire[at:]]):
            yield (wire, len(pieces), at), await receive(b'GET', Delivery(pieces)), whole


# -------- On sockets, and cut


def late(ending):
    """So that the end comes while it is waited for, and not with the last bytes"""
    def ends_late(peer):
        time.sleep(0.02)
        ending(peer)
    return ends_late


ENDINGS = {'close': CLOSE, 'abort': ABORT, 'reset': RESET, 'late-close': late(CLOSE), 'late-reset': late(RESET)}
OVER_TCP = ('close', 'reset')
OVER_TLS = ('close', 'abort', 'reset')
FOR_LAST = ((b'connection', b'close'),)


def player(wires):
    """A script: sends what the request's target names, `/which wire/how much of it/ending`, and ends"""
    def script(peer):
        index, length, ending = peer.read_head().split(b' ')[1][1:].decode().split('/')
        peer.send(wires[int(index)][:int(length)])
        ENDINGS[ending](peer)
    return script


async def some_at_once(calls):
    """(what, outcome, expected) of each (what, awaitable, expected)"""
    for batch in iter(lambda: list(itertools.islice(calls, 8)), []):
        results = await asyncio.gather(*(call for _, call, _ in batch))
        for (what, _, expected), result in zip(batch, results):
            yield what, result, expected


def cases_on_sockets(request, url):
    """Each case as a real socket receives it"""
    return some_at_once((
        case.what,
        outcome(request, case.method, '{}/{}/{}/close'.format(url, index, len(case.wire)), FOR_LAST),
        without_kept(expected_of(case)),
    ) for index, case in enumerate(CASES))


def distinct_cuts(cases, endings, step=1):
    """(method, index of the case, length, ending, expected) of each beginning of these wires, each once

    What is cut is refused, unless it is complete all the same: by its position, since what is missing is surplus, or
    no more than the end; or by its framing, if that is the end of the connection, and this end is an orderly one. By
    its own class, where the wire would have been accepted: a cut is never taken for a breach of the protocol.
    """
    seen = {}
    for index, case in enumerate(cases):
        for length in range(len(case.wire) + 1 if len(case.wire) < 200 else 0):
            key = case.method, case.wire[:length]
            known = seen.get(key)
            seen[key] = (known[0] if known else index, (known and known[1]) or isinstance(case.expected, Answer))
    for number, ((method, wire), (index, is_good)) in enumerate(seen.items()):
        if number % step:
            continue
        for ending in endings:
            expected = judge(method, wire, ending in ('close', 'late-close'))
            expected = CUT if expected is REFUSED and is_good else without_kept(expected)
            yield method, index, len(wire), ending, expected


def cut_cases(request, url, cases, endings, step=1):
    """Each case, cut at every offset by each ending"""
    return some_at_once((
        (method, cases[index].wire[:length], ending),
        outcome(request, method, '{}/{}/{}/{}'.format(url, index, length, ending), FOR_LAST),
        expected,
    ) for method, index, length, ending, expected in distinct_cuts(cases, endings, step))


# -------- Bounds

# What begins, and never ends, though it is always received: (what, how it begins, what follows for ever)
ENDLESS = (
    ('a status line', b'HTTP/1.1 200 ', b'x'),
    ('a code', b'HTTP/1.1 2', b'0'),
    ('a name', OK, b'x'),
    ('a value', OK + b'a: ', b'x'),
    ('blanks before a value', OK + b'a:', b' \t'),
    ('fields', OK, b'a: b\r\n'),
    ('fields and bare LF', OK, b'a:\n'),
    ('a length', OK + b'content-length: ', b'5'),
    ('a list of lengths', OK + b'content-length: 5', b', 5'),
    ('folds', OK + b'a: b\r\n', b' c\r\n'),
    ('folds of nothing', OK + b'a: b', b'\r\n \t'),
    ('CRs', OK, b'\r'),
    ('1xx', b'', CONTINUE),
    ('a 1xx', b'HTTP/1.1 103 E\r\n', b'link: </a>\r\n'),
    ('a head after 1xx', CONTINUE * 9 + OK, b'a: b\r\n'),
    ('a chunk size', CHUNKED, b'0'),
    ('blanks after a chunk size', CHUNKED + b'5', b' '),
    ('an extension', CHUNKED + b'5;', b'x'),
    ('extensions', CHUNKED + b'5', b';a="b"'),
    ('a later extension', CHUNKED + b'5\r\nhello\r\n5;', b'x'),
    ('an extension of the last chunk', CHUNKED + b'5\r\nhello\r\n0;', b'x'),
    ('a trailer', CHUNKED + b'0\r\na: ', b'x'),
    ('trailers', CHUNKED + b'5\r\nhello\r\n0\r\n', b'a: b\r\n'),
    ('trailers and bare LF', CHUNKED + b'0\r\n', b'a:\n'),
    ('folds of a trailer', CHUNKED + b'0\r\na: b\r\n', b' c\r\n'),
)


def in_pieces(wire, size):
    return in_bytes(wire) if size == 1 else [wire[at:at + size] for at in range(0, len(wire), size)]


async def endless_in_memory(sizes_and_limits):
    """That each ends in HttpHeaderTooLong, with the limit and one receive taken at most, and not much more held"""
    for (what, begin, unit), (size, limit) in itertools.product(ENDLESS, sizes_and_limits):
        wire = begin + unit * ((2 * limit + 4 * size) // len(unit))
        delivery = Delivery(in_pieces(wire, size))
        tracemalloc.start()
        result = await receive(b'GET', delivery, max_header_length=limit)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        yield (what, size, limit), result, LONG
        most = len(begin) + limit + size
        yield (what, size, limit, 'taken', delivery.taken, 'of', most), delivery.taken <= most, True
        # What is held, what is received, and a copy of both while one becomes the other; 50 kB is the pool itself.
        most = 2 * (limit + size) + 50000
        yield (what, size, limit, 'peak', peak, 'of', most), peak <= most, True


def endless_player(peer):
    """A script: sends without end what the request's target names, until the client goes away"""
    index = int(peer.read_head().split(b' ')[1][1:])
    _, begin, unit = ENDLESS[index]
    peer.send(begin)
    while True:
        peer.send(unit * 4096)


async def endless_on_sockets(url, sizes_and_limits):
    taken = 0

    async def counted_connect(*args):
        connection = await connect_directly(*args)
        receive = connection.receive

        def counted_receive():
            nonlocal taken
            data = receive()
            taken += len(data or b'')
            return data

        connection.receive = counted_receive
        return connection

    for size, limit in sizes_and_limits:
        request, close = Pool(connect=counted_connect, recv_bufsize=size, max_header_length=limit,
                              socket_timeout=PATIENCE)
        for index, (what, begin, _) in enumerate(ENDLESS):
            taken = 0
            yield (what, size, limit), await outcome(request, b'GET', '{}/{}'.format(url, index)), LONG
            most = len(begin) + limit + size
            yield (what, size, limit, 'taken', taken, 'of', most), taken <= most, True
        await close()


# What there may be many of: (what, a response with n of them, its body)
MANY = (
    ('fields', lambda n: OK + b'a: b\r\n' * n + b'content-length: 5\r\n\r\nhello', lambda n: b'hello'),
    ('folds', lambda n: OK + b'a: b' + b'\r\n c' * n + b'\r\ncontent-length: 5\r\n\r\nhello', lambda n: b'hello'),
    ('lengths', lambda n: OK + b'content-length: 5' + b', 5' * n + b'\r\n\r\nhello', lambda n: b'hello'),
    ('1xx', lambda n: b'HTTP/1.1 103\n\n' * n + OK + b'content-length: 5\r\n\r\nhello', lambda n: b'hello'),
    ('chunks', lambda n: CHUNKED + b'1\r\nx\r\n' * n + b'0\r\n\r\n', lambda n: b'x' * n),
    ('extensions', lambda n: CHUNKED + b'5' + b';a=b' * n + b'\r\nhello\r\n0\r\n\r\n', lambda n: b'hello'),
    ('trailers', lambda n: CHUNKED + b'5\r\nhello\r\n0\r\n' + b'a: b\r\n' * n + b'\r\n', lambda n: b'hello'),
)
# How much more four times as many may cost: linear is 4, quadratic 16. Of the long form's sizes blocks of memory pass
# one from which the system gives each anew, page by page: up to 7 was seen.
MOST_FOR_FOUR = 7
MOST_FOR_FOUR_AT_LENGTH = 9


async def seconds_for(wire, body, size, repeats):
    """Of the process, for a response in such pieces; the least of some, since others share the machine"""
    pieces = in_pieces(wire, size)
    seconds = []
    for _ in range(repeats):
        gc.collect()
        gc.disable()  # its passes are not the parser's
        try:
            began = time.process_time()
            result = await receive(b'GET', Delivery(pieces), max_header_length=len(wire))
            seconds.append(time.process_time() - began)
        finally:
            gc.enable()
        assert result.body == body
    return min(seconds)


async def costs(size, count, most=MOST_FOR_FOUR, attempts=6, tell=lambda line: None):
    """That n, 2n and 4n, `count`, of each take time that grows with them"""
    for what, response, body in MANY:
        for attempt in range(1, attempts + 1):
            seconds = [await seconds_for(response(n), body(n), size, attempt) for n in (count // 4, count // 2, count)]
            ratio = seconds[2] / max(seconds[0], 1e-6)
            if ratio < most:
                break
        figures = '{:>10} {:>6}, by {:>8}: {:.3f} {:.3f} {:.3f} s, ×{:.1f} for ×4'.format(
            what, count, size, *seconds + [ratio])
        tell(figures)
        yield figures, ratio < most, True


WHOLE = 2 ** 30


# -------- The short form


class FramingTestCase(AsyncTestCase):

    async def assert_all(self, results):
        """That each outcome is the expected one; the first that are not are shown"""
        wrong = []
        count = 0
        async for what, result, expected in results:
            count += 1
            if not agree(result, expected):
                wrong.append((what, result, expected))
        self.assertEqual(wrong[:20], [], '{} of {}'.format(len(wrong), count))
        self.assertGreater(count, 0)

    def play(self, script, tls=None):
        return '{}://127.0.0.1:{}'.format('https' if tls else 'http', self.serve(script, tls=tls))


class CaseTests(FramingTestCase):

    def test_the_reference_and_the_cases_agree(self):
        for case in CASES:
            with self.subTest(case.what):
                found = judge(case.method, case.wire)
                if isinstance(case.expected, Answer):
                    self.assertIsInstance(found, Answer)
                    self.assertEqual(found._replace(fields=case.expected.fields or found.fields),
                                     case.expected._replace(fields=case.expected.fields or found.fields))
                else:
                    self.assertEqual(found, REFUSED)

    async def test_each_case_however_it_is_cut(self):
        await self.assert_all(cases_in_memory(5))

    async def test_each_case_on_a_socket_whole_and_byte_by_byte(self):
        url = self.play(player([case.wire for case in CASES]))
        for size in (65536, 1):
            request, _ = self.pool(recv_bufsize=size, socket_timeout=PATIENCE)
            await self.assert_all(cases_on_sockets(request, url))

    async def test_any_byte_anywhere(self):
        await self.assert_all(sweep(TELLING_BYTES, 5))


class CutTests(FramingTestCase):

    CASES = tuple(Case('', method, wire, expected) for method, wire, expected in (
        (b'GET', SMALL_RESPONSES[0], HELLO),
        (b'GET', SMALL_RESPONSES[1], HELLO),
        (b'GET', SMALL_RESPONSES[2], HELLO_LAST),
        (b'GET', SMALL_RESPONSES[3], HELLO_LAST),
        (b'GET', b'HTTP/1.1 204 X\r\ncontent-length: 5\r\n\r\nhello', answer(b'', b'204', kept=False)),
        (b'HEAD', OK + b'content-length: 5\r\n\r\nhello', NOTHING_LAST),
        (b'GET', OK + b'content-length: 5, 6\r\n\r\nhello', BAD),
        (b'GET', CHUNKED + b'5\r\nhelloX', BAD),
    ))

    async def test_over_tcp(self):
        url = self.play(player([case.wire for case in self.CASES]))
        for size in (65536, 1):
            request, _ = self.pool(recv_bufsize=size, socket_timeout=PATIENCE)
            await self.assert_all(cut_cases(request, url, self.CASES, OVER_TCP))
        await self.assert_all(cut_cases(request, url, self.CASES, ('late-close', 'late-reset'), 7))

    async def test_over_tls(self):
        url = self.play(player([case.wire for case in self.CASES]), tls_server())
        request, _ = self.pool(get_ssl_context=client_context, socket_timeout=PATIENCE)
        await self.assert_all(cut_cases(request, url, self.CASES, OVER_TLS, 3))

    async def test_a_reset_that_a_write_was_told_of(self):
        """The kernel tells of a reset once: if a write has heard it, a read meets what looks like an orderly end"""
        def end_and_reset(peer):
            peer.half_close()
            peer.reset()

        for ending, wire, expected in (
                (RESET, OK + b'\r\nhel', CUT),
                (RESET, OK + b'\r\n', CUT),
                (RESET, b'HTTP/1.0 200 OK\r\n\r\nhel', CUT),
                # The end came first, in its order: EPIPE tells so.
                (end_and_reset, OK + b'\r\nhel', b'hel'),
                (RESET, OK + b'content-length: 3\r\n\r\nhel', b'hel'),
                (RESET, CHUNKED + b'3\r\nhel\r\n0\r\n\r\n', b'hel'),
                (RESET, OK + b'content-length: 5\r\n\r\nhel', CUT),
                (RESET, CHUNKED + b'5\r\nhel', CUT),
        ):
            with self.subTest((ending, wire)):
                def script(peer, wire=wire, ending=ending):
                    peer.read_until(b'first')
                    peer.send(wire)
                    ending(peer)

                sockets = ClientSockets()

                async def body(sockets=sockets):
                    yield b'first'
                    # The loop stands still, as in a busy process, so that nobody reads before the next write.
                    sock, = sockets.alive()
                    poll = select.poll()
                    poll.register(sock, select.POLLHUP)
                    self.assertTrue(poll.poll(PATIENCE * 1000))
                    del sock
                    yield b'second'

                request, _ = self.pool(set_sock_options=sockets, socket_timeout=PATIENCE)
                try:
                    _, _, response = await request(b'POST', self.play(script), body=body())
                    result = await buffered(response)
                except HttpError as error:
                    result = type(error)
                self.assertEqual(result, expected)


class BoundTests(FramingTestCase):

    async def test_what_has_no_end_is_refused(self):
        await self.assert_all(endless_in_memory(((65536, 65536), (7, 16384), (1, 4096))))

    async def test_what_has_no_end_is_refused_on_a_socket(self):
        await self.assert_all(endless_on_sockets(self.play(endless_player), ((65536, 65536), (7, 4096), (1, 1000))))

    async def test_the_cost_of_many_is_linear_in_their_number(self):
        await self.assert_all(costs(WHOLE, 40000))
        await self.assert_all(costs(65536, 60000))
        await self.assert_all(costs(1, 24000))


# -------- The long form


@contextlib.contextmanager
def served(script, tls=None):
    """The url of a server in a process of its own, one connection after the other"""
    def serve():
        while True:
            sock, _ = listener.accept()
            sock.settimeout(TEST_SECONDS)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError, ssl.SSLError), sock:
                script(Peer(tls.wrap_socket(sock, server_side=True) if tls else sock))

    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(1024)
        process = multiprocessing.get_context('fork').Process(target=serve, daemon=True)
        process.start()
        try:
            yield '{}://127.0.0.1:{}'.format('https' if tls else 'http', listener.getsockname()[1])
        finally:
            process.terminate()
            process.join()


def tell(line):
    sys.stdout.write(line + '\n')
    sys.stdout.flush()


class Tally:

    def __init__(self):
        self.cases = 0
        self.failures = 0

    async def count(self, what, results):
        began, cases, failures = time.monotonic(), self.cases, self.failures
        told = began
        async for which, result, expected in results:
            self.cases += 1
            if not agree(result, expected):
                self.failures += 1
                if self.failures - failures <= 20:
                    tell('  failed: {!r}\n    gave {!r:.300}\n    not  {!r:.300}'.format(which, result, expected))
            if time.monotonic() - told > 15:
                told = time.monotonic()
                tell('  … {} cases of {}'.format(self.cases - cases, what))
        tell('{:>7} cases, {} failures, {:>4.0f} s: {}'.format(
            self.cases - cases, self.failures - failures, time.monotonic() - began, what))


async def long_form(tally, step, tcp_url, tls_url, endless_url):
    tell('{} responses in the table: {} accepted, {} refused'.format(
        len(CASES), *(sum(isinstance(case.expected, kind) for case in CASES) for kind in (Answer, type))))
    await tally.count('each case whole, byte by byte and in two at each offset', cases_in_memory())
    for size in (65536, 1):
        request, close = Pool(recv_bufsize=size, socket_timeout=PATIENCE)
        await tally.count('each case on a socket, {} bytes a receive'.format(size), cases_on_sockets(request, tcp_url))
        await close()
    await tally.count('0x00 to 0xff in, and at, each place of small responses', sweep(range(256), step))
    for what, endings, url, size in (
            ('TCP', OVER_TCP, tcp_url, 65536), ('TCP, byte by byte', OVER_TCP, tcp_url, 1),
            ('TLS', OVER_TLS, tls_url, 65536),
    ):
        request, close = Pool(recv_bufsize=size, socket_timeout=PATIENCE, get_ssl_context=client_context)
        await tally.count('each case cut at each offset, over {}'.format(what),
                          cut_cases(request, url, CASES, endings, step))
        await close()
    await tally.count('what has no end, in memory', endless_in_memory(((65536, 65536), (7, 65536), (1, 16384))))
    await tally.count('what has no end, on sockets', endless_on_sockets(
        endless_url, ((65536, 65536), (7, 65536), (1, 16384))))
    for size, count in ((WHOLE, 400000), (65536, 400000), (7, 400000), (1, 100000)):
        await tally.count('cost, {} bytes a receive'.format(size), costs(
            size, count, MOST_FOR_FOUR_AT_LENGTH, tell=tell))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--sample', type=int, default=1, metavar='N', help='only every N-th of the sweep and the cuts')
    options = parser.parse_args()
    tally = Tally()
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    script = player([case.wire for case in CASES])
    with served(script) as tcp_url, served(script, tls_server()) as tls_url, served(endless_player) as endless_url:
        loop.run_until_complete(long_form(tally, options.sample, tcp_url, tls_url, endless_url))
    loop.close()
    tell('{}: {} cases, {} failures'.format('FAILED' if tally.failures else 'passed', tally.cases, tally.failures))
    return 1 if tally.failures else 0


if __name__ == '__main__':
    sys.exit(main())
