"""How responses are understood, and how long what has no length may be"""
import lowhaio
from lowhaio import HttpConnectionClosedError, HttpError, HttpHeaderTooLong, HttpProtocolError, buffered
from reliability.harness import CONTINUE, OK, OK_EMPTY
from reliability.scripted import in_bytes
from tests.peers import CHUNKED, LAST_CHUNK, ExchangeTestCase, chunked_response, with_length

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


def splits(wire):
    """The wire whole, byte by byte, and split in two at each offset"""
    return [[wire] if wire else [], in_bytes(wire)] + [[wire[:i], wire[i:]] for i in range(1, len(wire))]


def framing_of(method, code, version, headers):
    return lowhaio.response_framing(method, code, version, lowhaio.by_name(headers))


def by_pure_functions(method, pieces):
    """(code, headers, body, surplus) as the functions without input or output understand these pieces"""
    reader = lowhaio.HeadReader(65536)
    pieces = iter(pieces)
    head = None
    while head is None:
        head = reader.feed(next(pieces, b''))
    version, code, headers, rest = head
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


class ResponseFramingTests(ExchangeTestCase):

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


class LimitTests(ExchangeTestCase):

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
