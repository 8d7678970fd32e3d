"""A request's url and head, as they are sent, or why they are refused"""
import itertools
import tracemalloc

from lowhaio import HttpRequestError
from reliability.harness import OK_EMPTY, OK_LAST, server_context
from reliability.scripted import HEAD, Record, scripted
from tests.name_servers import FakeNames
from tests.peers import ExchangeTestCase

LONGEST_NAME = '.'.join(['a' * 63] * 3 + ['a' * 61])  # 253 characters


class UrlTests(ExchangeTestCase):

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
        # A percent sign that begins no escape is one itself.
        ('/100%', b'/100%25'), ('/%zz', b'/%25zz'), ('/%e', b'/%25e'), ('/%%', b'/%25%25'),
        ('/%%20', b'/%25%20'), ('/%20%2', b'/%20%252'), ('/%2g?%g2&%', b'/%252g?%25g2&%25'),
        ('/%\uff12\uff10', b'/%25%EF%BC%92%EF%BC%90'), ('/%aF%Fa%09', b'/%aF%Fa%09'),
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

    async def test_only_what_may_not_stand_in_a_target_is_encoded_and_nothing_twice(self):
        for given, target in self.TARGETS:
            for path in (given, target.decode('ascii')):
                with self.subTest(path):
                    self.assertEqual(await self.sent(b'GET', 'http://h' + path),
                                     b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % target)

    async def test_params_are_appended_to_the_query_of_the_url(self):
        for params, added in self.PARAMS:
            for path, separator in (
                    (b'/p', b'?'), (b'/p?x=%2F+y', b'&'), (b'/p?', b''), (b'/p?x&', b''), (b'/', b'?'), (b'', b'/?'),
                    # Data, and not the beginning of the query
                    (b'/p?x=?', b'&'), (b'/p??', b'&'),
            ):
                with self.subTest((params, path)):
                    target = path + separator + added if added else path or b'/'
                    self.assertEqual(await self.sent(b'GET', f'http://h{path.decode("ascii")}#f', params=params),
                                     b'GET %b HTTP/1.1\r\nhost: h\r\n\r\n' % target)

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
        record = Record()
        port = self.serve(scripted(HEAD, OK_EMPTY, record=record))
        request, _ = self.pool()
        await request(b'GET', 'http://127.0.0.1:{}/a%2Fb%20c+;?x=%2F+#f'.format(port), params={'y': 'a b'})
        self.assertEqual(record.received, b'GET /a%%2Fb%%20c+;?x=%%2F+&y=a%%20b HTTP/1.1\r\n'
                                          b'host: 127.0.0.1:%d\r\n\r\n' % port)

    async def test_ipv6_is_connected_to(self):
        record = Record()
        port = self.serve(scripted(HEAD, OK_EMPTY, record=record), host='::1')
        request, _ = self.pool()
        code, _, _ = await request(b'GET', 'http://[::1]:{}/'.format(port))
        self.assertEqual((code, record.received), (b'200', b'GET / HTTP/1.1\r\nhost: [::1]:%d\r\n\r\n' % port))

    async def test_names_are_looked_up_and_told_to_tls_as_a_labels(self):
        for tls, (given, name) in itertools.product((False, True), (
                ('some.example', 'some.example'), ('b\xfccher.example', 'xn--bcher-kva.example'))):
            with self.subTest((tls, given)):
                seen, record = [], Record()
                context = server_context(name)
                context.set_servername_callback(lambda _, its_name, __, seen=seen: seen.append(its_name))
                port = self.serve(scripted(HEAD, OK_LAST, record=record), tls=context if tls else None)
                names = FakeNames({name: ['127.0.0.1']})
                request, _ = self.pool(get_dns_resolver=names)
                code, _, _ = await request(b'GET', 'http{}://{}:{}/'.format('s' if tls else '', given, port))
                self.assertEqual((code, names.asked), (b'200', [(name, 'A')]))
                self.assertEqual(record.received, b'GET / HTTP/1.1\r\nhost: %b:%d\r\n\r\n' % (name.encode(), port))
                # Python 3.6 tells the server's side the U-label.
                self.assertEqual([each.encode('idna') for each in seen], [name.encode()] if tls else [])

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

    async def test_addresses_in_disguise_are_refused(self):
        request, _ = self.pool()
        for host in ('127.1', '2130706433', '0x7f.0.0.1', '127.0.0.01', '1.2.3.4.5', 'example.1'):
            error = await self.raises(HttpRequestError, request(b'GET', 'http://{}/'.format(host)))
            self.assertIn('neither a name nor an IPv4 address', str(error))

    async def test_long_urls_are_not_remembered(self):
        request, made = self.scripted(OK_EMPTY)
        sizes = []
        for number in range(3):
            tracemalloc.start()
            for each in range(100):
                await request(b'GET', 'http://127.0.0.1/{}#{}'.format('x' * 100000, number * 100 + each))
                made.clear()
            sizes.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.stop()
        self.assertLess(max(sizes), 2000000)


class RequestHeadTests(ExchangeTestCase):

    # The headers given, and what is sent of them
    HEADERS = (
        ((), b'host: h\r\n'), (None, b'host: h\r\n'), ({}, b'host: h\r\n'),
        # Order, case and number
        (((b'X-B', b'2'), (b'x-a', b'1'), (b'X-b', b'3'), (b'X-B', b'2')),
         b'host: h\r\nX-B: 2\r\nx-a: 1\r\nX-b: 3\r\nX-B: 2\r\n'),
        # The host stays where the caller put it.
        (((b'a', b'1'), (b'HOST', b'other'), (b'b', b'2')), b'a: 1\r\nHOST: other\r\nb: 2\r\n'),
        # What others add or remove
        (((b'User-Agent', b'u'), (b'Accept-Encoding', b'gzip'), (b'Cookie', b'c'), (b'authorization', b'a'),
          (b'Connection', b'close')),
         b'host: h\r\nUser-Agent: u\r\nAccept-Encoding: gzip\r\nCookie: c\r\nauthorization: a\r\n'
         b'Connection: close\r\n'),
        # Any byte but controls
        (((b"!#$%&'*+-.^_`|~09azAZ", b' !"\x80\xe9\xff\tx'),),
         b"host: h\r\n!#$%&'*+-.^_`|~09azAZ:  !\"\x80\xe9\xff\tx\r\n"),
        (((b'a', b''),), b'host: h\r\na: \r\n'),
        # Lists and a mapping
        ([[b'a', b'1']], b'host: h\r\na: 1\r\n'),
        ({b'A': b'1', b'b': b'2'}, b'host: h\r\nA: 1\r\nb: 2\r\n'),
    )

    async def test_headers_are_sent_in_the_order_case_and_number_given(self):
        for headers, fields in self.HEADERS + ((iter([(b'a', b'1')]), b'host: h\r\na: 1\r\n'),):
            with self.subTest(fields):
                self.assertEqual(await self.sent(b'GET', 'http://h/', headers=headers),
                                 b'GET / HTTP/1.1\r\n' + fields + b'\r\n')

    async def test_the_method_is_sent_as_given(self):
        for method in (b'GET', b'HEAD', b'DELETE', b'OPTIONS', b'TRACE', b'PROPFIND', b'M-SEARCH', b'get', b'Connect',
                       b"!#$%&'*+-.^_`|~09azAZ"):
            with self.subTest(method):
                self.assertEqual(await self.sent(method, 'http://h/'), method + b' / HTTP/1.1\r\nhost: h\r\n\r\n')

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

    async def test_what_is_refused_is_refused_whatever_was_sent_before(self):
        request, _ = self.scripted(OK_EMPTY)
        await request(b'GET', 'http://127.0.0.1/', headers=((b'a', b'b'),))
        for method, headers in ((b'GET', ((b'a', memoryview(bytearray(b'b'))),)), (bytearray(b'GET'), ()), ([], ()),
                                (b'GET', ([b'a', 5],)), (b'GET', ((b'a', []),))):
            with self.subTest((method, headers)):
                await self.raises(HttpRequestError, request(method, 'http://127.0.0.1/', headers=headers))

    async def test_headers_that_change_are_sent_as_they_are(self):
        request, made = self.scripted(OK_LAST)
        pair, pairs = [b'a', b'1'], [(b'a', b'1')]
        for _ in range(2):
            for headers in ((pair,), pairs, iter(pairs)):
                await request(b'GET', 'http://127.0.0.1/', headers=headers)
            pair[1], pairs[0] = b'2', (b'a', b'2')
        self.assertEqual([b'a: 2' in connection.writes()[0] for connection in made], [False] * 3 + [True] * 3)
