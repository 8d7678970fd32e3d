"""How responses are understood, and how long what has no length may be"""
import lowhaio
from lowhaio import HttpHeaderTooLong, HttpProtocolError, buffered
from reliability.harness import CONTINUE, OK
from tests.peers import LAST_CHUNK, ExchangeTestCase, chunked_response, with_length


def framing_of(method, code, version, headers):
    return lowhaio.response_framing(method, code, version, lowhaio.by_name(headers))


class ResponseFramingTests(ExchangeTestCase):
    """Beside the table of reliability/framing.py, which says of each response what it is, however it is cut"""

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

    def test_parse_head_gives_version_code_and_headers(self):
        for head, expected in (
                (b'HTTP/1.1 200 OK\r\n\r\n', (b'1.1', b'200', ())),
                (b'HTTP/1.0 404 Not Found\r\nA: b\r\n\r\n', (b'1.0', b'404', ((b'a', b'b'),))),
                (b'HTTP/1.1 200\n\n', (b'1.1', b'200', ())),
        ):
            with self.subTest(head):
                self.assertEqual(lowhaio.parse_head(head), expected)


LIMIT = 200
FILL = b'x' * LIMIT


def head(length, begin=OK + b'content-length: 5\r\na: ', end=b'\r\n\r\n'):
    """The head of a hello, of so many bytes"""
    return begin + b'x' * (length - len(begin) - len(end)) + end


def fields(length):
    begin, end = OK + b'content-length: 5\r\n', b'\r\n'
    return begin + b'a: b\r\n' * ((length - len(begin) - len(end)) // 6) + end


def size_line(length, size):
    return size + b';' + b'x' * (length - 3 - len(size)) + b'\r\n'


def trailers(*lines):
    return chunked_response(b'5\r\nhello\r\n0\r\n', *lines, b'\r\n')


FINAL = with_length(b'5')
MOST_1XX = (LIMIT - len(FINAL) + 5) // len(CONTINUE)
HELLO_CHUNK = b'5\r\nhello\r\n'

# (what, a response, its body, or None where it is too long)
BOUNDED = (
    ('a field', head(LIMIT) + b'hello', b'hello'),
    ('a field', head(LIMIT + 1) + b'hello', None),
    ('a field and bare LF', head(LIMIT + 1, end=b'\n\n') + b'hello', None),
    ('many fields', fields(LIMIT) + b'hello', b'hello'),
    ('many fields', fields(LIMIT + 7) + b'hello', None),
    ('a body that came with its head', with_length(b'%d' % (20 * LIMIT), FILL * 20), FILL * 20),
    # A run of 1xx is bounded together with the head that it leads to.
    ('1xx', CONTINUE * MOST_1XX + FINAL, b'hello'),
    ('1xx', CONTINUE * (MOST_1XX + 1) + FINAL, None),
    ('a long 1xx', b'HTTP/1.1 103 E\r\nlink: ' + FILL + b'\r\n\r\n' + FINAL, None),
    # Each chunk-size line with its extension, and not all of them together, nor the data.
    *((('a chunk-size line', before), chunked_response(before, size_line(length, size), rest),
       None if length > LIMIT else body)
      for length in (LIMIT, LIMIT + 1)
      for before, size, rest, body in (
          (b'', b'0', b'\r\n', b''), (b'', b'1', b'!\r\n' + LAST_CHUNK, b'!'),
          (HELLO_CHUNK, b'0', b'\r\n', b'hello'), (HELLO_CHUNK, b'1', b'!\r\n' + LAST_CHUNK, b'hello!'))),
    ('many chunk-size lines', chunked_response(b'1;abc\r\n!\r\n' * LIMIT, LAST_CHUNK), b'!' * LIMIT),
    ('a large chunk', chunked_response(b'%x\r\n' % (20 * LIMIT), FILL * 20, b'\r\n', LAST_CHUNK), FILL * 20),
    # Trailers together.
    ('a trailer', trailers(b'a: ' + FILL[7:] + b'\r\n'), b'hello'),
    ('a trailer', trailers(b'a: ' + FILL[6:] + b'\r\n'), None),
    ('trailers', trailers(b'a: b\r\n' * ((LIMIT - 2) // 6)), b'hello'),
    ('trailers', trailers(b'a: b\r\n' * (LIMIT // 6 + 1)), None),
    ('surplus after trailers', trailers(b'a: b\r\n') + FILL * 20, b'hello'),
)


class LimitTests(ExchangeTestCase):
    """What has no end at all, and how much of it is read, is in reliability/framing.py"""

    async def test_lines_are_bounded_wherever_they_are_cut(self):
        self.assertGreater(MOST_1XX, 2)
        for what, wire, body in BOUNDED:
            for size in (1, 7, 150, len(wire)):
                with self.subTest((what, body is not None, size)):
                    pieces = [wire[i:i + size] for i in range(0, len(wire), size)]
                    received = self.outcome(b'GET', pieces, max_header_length=LIMIT)
                    if body is not None:
                        self.assertTrue((await received)[2] == body)
                    else:
                        error = await self.raises(HttpHeaderTooLong, received)
                        self.assertIn(str(LIMIT), str(error))
                        self.assertEqual((error.reused, error.answered), (False, True))

    async def test_none_but_the_shortest_chunk_size_lines_are_remembered(self):
        lowhaio.chunk_size.cache_clear()
        await self.outcome(b'GET', [chunked_response(b'1;' + b'x' * 99 + b'\r\n!\r\n', LAST_CHUNK)])
        self.assertEqual(lowhaio.chunk_size.cache_info().currsize, 1)  # that of the last chunk

    async def test_a_head_of_60000_bytes_is_taken_by_default(self):
        fields = b'set-cookie: ' + b'x' * 60000 + b'\r\n'
        for kwargs in ({}, {'recv_bufsize': 100}):
            port = self.answer(OK + fields + b'content-length: 5\r\n\r\nhello')
            request, _ = self.pool(**kwargs)
            _, headers, body = await request(b'GET', 'http://127.0.0.1:{}/'.format(port))
            self.assertEqual(len(headers[0][1]), 60000)
            self.assertEqual(await buffered(body), b'hello')
