"""Servers that others wrote"""
import asyncio
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import unittest

import lowhaio
from lowhaio import buffered, streamed
from reliability.harness import CA, TEST_SECONDS, AsyncTestCase, client_context

HERE = os.path.dirname(os.path.abspath(lowhaio.__file__))
KIB, MIB, GIB = 2 ** 10, 2 ** 20, 2 ** 30

# No two parts of it are alike: a piece lost, doubled or out of turn shows.
DATA = b''.join(b'%015d\n' % n for n in range(200 * KIB))


async def slices_of(data, size=65536):
    for at in range(0, len(data), size):
        yield data[at:at + size]


def length_of(data):
    return ((b'content-length', b'%d' % len(data)),)


CHUNKED_HEADERS = ((b'transfer-encoding', b'chunked'),)
EXPECT = ((b'expect', b'100-continue'),)

# (what, headers, the body: a function of its bytes, its bytes)
UPLOADS = (
    ('a length', length_of(DATA), slices_of, DATA),
    ('a length, one large piece', length_of(DATA), streamed, DATA),
    ('a length, after 100', length_of(DATA) + EXPECT, slices_of, DATA),
    ('a length of 1', length_of(b'x'), streamed, b'x'),
    ('a length of 0', length_of(b''), streamed, b''),
    ('chunked', CHUNKED_HEADERS, slices_of, DATA),
    ('chunked, one large piece', CHUNKED_HEADERS, streamed, DATA),
    ('chunked, pieces that fit no buffer', CHUNKED_HEADERS, lambda data: slices_of(data, 65537), DATA),
    ('chunked, after 100', CHUNKED_HEADERS + EXPECT, slices_of, DATA),
    ('chunked, nothing in it', CHUNKED_HEADERS, streamed, b''),
    ('nothing said', (), slices_of, DATA),
    ('nothing said, and no body', (), lambda data: None, b''),
)

# (what, range, what of DATA)
RANGES = (
    ('from the beginning', b'bytes=0-99', slice(0, 100)),
    ('one byte', b'bytes=65536-65536', slice(65536, 65537)),
    ('to the end', b'bytes=1000000-', slice(1000000, None)),
    ('from the end', b'bytes=-1', slice(-1, None)),
)

NGINX = shutil.which('nginx', path=os.environ.get('PATH', os.defpath) + ':/usr/local/sbin:/usr/sbin')

NGINX_CONFIG = '''
daemon off;
{user}
error_log "{directory}/error.log";
pid "{directory}/nginx.pid";
events {{ worker_connections 2048; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path "{directory}/temp";
    proxy_temp_path "{directory}/temp";
    fastcgi_temp_path "{directory}/temp";
    uwsgi_temp_path "{directory}/temp";
    scgi_temp_path "{directory}/temp";
    client_max_body_size 0;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port};
        listen 127.0.0.1:{tls_port} ssl;
        ssl_certificate "{directory}/certificate.pem";
        ssl_certificate_key "{directory}/certificate.pem";
        ssl_protocols TLSv1.2 TLSv1.3;
        root "{directory}";
        location /files/ {{ dav_methods PUT DELETE; }}
        # Only PUT is stored, so that is what a POST becomes.
        location /posts/ {{ proxy_pass http://127.0.0.1:{port}/files/; proxy_method PUT; proxy_http_version 1.1; }}
        location /limited/ {{ dav_methods PUT; client_max_body_size 1k; }}
        # What may hold includes has no length beforehand.
        location /chunked/ {{ alias "{directory}/files/"; ssi on; ssi_types *; }}
        location /closed/ {{ alias "{directory}/files/"; ssi on; ssi_types *; chunked_transfer_encoding off; }}
        location = /connection {{ return 200 "$connection $connection_requests $args"; }}
        location = /no-content {{ return 204; }}
        location = /moved {{ return 301 /files/data; }}
    }}
}}
'''


class Nginx:
    """An nginx of the tests' own, plain and TLS, with all it reads and writes in one directory"""

    def __init__(self):
        self.directory = tempfile.mkdtemp(prefix='lowhaio-nginx-')
        # It inherits its sockets, as at an upgrade: no port is taken by another between its choice and its use, and
        # it can be connected to at once.
        listeners = [socket.socket() for _ in range(2)]
        for listener in listeners:
            listener.bind(('127.0.0.1', 0))
            listener.listen(1024)
            listener.setblocking(False)
        port, tls_port = (listener.getsockname()[1] for listener in listeners)
        self.urls = (f'http://127.0.0.1:{port}', f'https://127.0.0.1:{tls_port}')
        os.mkdir(self.path('files'))
        with open(self.path('files/data'), 'wb') as file:
            file.write(DATA)
        with open(self.path('nginx.conf'), 'w') as file:
            file.write(NGINX_CONFIG.format(
                # As root it would give up its rights to this directory.
                user='user root root;' if os.geteuid() == 0 else '',
                directory=self.directory, port=port, tls_port=tls_port,
            ))
        CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.write_to_path(self.path('certificate.pem'))
        self._output = open(self.path('output'), 'wb+')
        self._process = subprocess.Popen(
            [NGINX, '-p', self.directory, '-c', self.path('nginx.conf')],
            env=dict(os.environ, NGINX=''.join(f'{listener.fileno()};' for listener in listeners)),
            pass_fds=[listener.fileno() for listener in listeners],
            stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
        )
        for listener in listeners:
            listener.close()
        try:
            with socket.create_connection(('127.0.0.1', port), TEST_SECONDS) as sock:
                sock.sendall(b'GET /no-content HTTP/1.0\r\n\r\n')
                answer = sock.recv(65536)
        except OSError as error:
            answer = str(error).encode()
        if b' 204 ' not in answer:
            self._output.seek(0)
            output = self._output.read()
            self.stop()
            raise RuntimeError(f'nginx does not run: {answer!r}, {output!r}')

    def path(self, name):
        return os.path.join(self.directory, name)

    def stop(self):
        self._process.terminate()
        self._process.wait(TEST_SECONDS)
        self._output.close()
        shutil.rmtree(self.directory)


def in_time(awaitable):
    return asyncio.wait_for(awaitable, TEST_SECONDS / 4)


def on_plain_and_tls(test):
    """Runs a test against each url of its class's server, with a pool for each"""
    @functools.wraps(test)
    async def run(self):
        for url in self.server.urls:
            with self.subTest(url=url):
                # Longer than `in_time` allows: where a 100 is not heard, a test fails.
                request, _ = self.pool(get_ssl_context=client_context, expect_timeout=2 * TEST_SECONDS, max_idle=500)
                await test(self, url, request)
    return run


class ServerTestCase(AsyncTestCase):
    """What is the same against each `Server`, whose /connection answers `connection count query`: a name of the
    connection, how many requests it has had, and the url's query"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server = cls.Server()

    @classmethod
    def tearDownClass(cls):
        cls.server.stop()
        super().tearDownClass()

    async def connection(self, url, request, params=()):
        code, _, body = await request(b'GET', url + '/connection', params)
        name, count, query = (await buffered(body)).split(b' ')
        self.assertEqual((code, query), (b'200', b'&'.join(b'%b=%d' % pair for pair in params)))
        return name, int(count)

    async def check_a_thousand_in_turn(self, url, request):
        names, counts = zip(*[await self.connection(url, request) for _ in range(1000)])
        self.assertEqual(len(set(names)), 1)
        self.assertEqual(counts, tuple(range(1, 1001)))

    async def check_500_at_once(self, url, request):
        first, second = [
            await asyncio.gather(*(self.connection(url, request, ((b'n', n),)) for n in range(500))) for _ in range(2)
        ]
        self.assertEqual(len(set(first)), 500)
        self.assertEqual({count for _, count in first}, {1})
        self.assertEqual(set(second), {(name, 2) for name, _ in first})


@unittest.skipUnless(NGINX, 'there is no nginx here (apt-get install nginx)')
class NginxTests(ServerTestCase):
    Server = Nginx

    @on_plain_and_tls
    async def test_get_gives_the_file_and_keeps_the_connection(self, url, request):
        for path, framing in (
                ('/files/data', (b'content-length', b'%d' % len(DATA))),
                ('/chunked/data', (b'transfer-encoding', b'chunked')),
        ):
            number, count = await self.connection(url, request)
            code, headers, body = await request(b'GET', url + path)
            self.assertEqual(code, b'200')
            self.assertIn(framing, headers)
            self.assertTrue(await buffered(body) == DATA)
            self.assertEqual(await self.connection(url, request), (number, count + 2))

    @on_plain_and_tls
    async def test_a_body_until_the_connection_closes_is_whole(self, url, request):
        number, _ = await self.connection(url, request)
        code, headers, body = await request(b'GET', url + '/closed/data')
        self.assertEqual((code, dict(headers)[b'connection']), (b'200', b'close'))
        self.assertFalse({b'content-length', b'transfer-encoding'} & set(dict(headers)))
        self.assertTrue(await buffered(body) == DATA)
        self.assertNotEqual((await self.connection(url, request))[0], number)

    @on_plain_and_tls
    async def test_what_is_uploaded_is_what_is_stored(self, url, request):
        number, _ = await self.connection(url, request)
        for what, headers, make_body, data in UPLOADS:
            for method, path in ((b'PUT', '/files/stored'), (b'POST', '/posts/stored')):
                with self.subTest(what=what, method=method):
                    code, _, body = await in_time(
                        request(method, url + path, headers=headers, body=make_body(data)))
                    self.assertEqual((code, await buffered(body)), (b'201', b''))
                    code, _, body = await request(b'GET', url + '/files/stored')
                    self.assertEqual(code, b'200')
                    self.assertTrue(await buffered(body) == data)
                    code, _, body = await request(b'DELETE', url + '/files/stored')
                    self.assertEqual((code, await buffered(body)), (b'204', b''))
        self.assertEqual((await self.connection(url, request))[0], number)

    @on_plain_and_tls
    async def test_answers_without_a_body_end_at_their_head_and_keep_the_connection(self, url, request):
        _, headers, body = await request(b'GET', url + '/files/data')
        await buffered(body)
        etag = dict(headers)[b'etag']
        number, count = await self.connection(url, request)
        for what, method, path, headers, expected in (
                ('HEAD, length', b'HEAD', '/files/data', (), b'200'),
                ('HEAD, chunked', b'HEAD', '/chunked/data', (), b'200'),
                ('HEAD, not found', b'HEAD', '/files/none', (), b'404'),
                ('204', b'GET', '/no-content', (), b'204'),
                ('304', b'GET', '/files/data', ((b'if-none-match', etag),), b'304'),
        ):
            with self.subTest(what=what):
                code, headers, body = await request(method, url + path, headers=headers)
                self.assertEqual((code, await buffered(body)), (expected, b''))
                if what == 'HEAD, length':
                    self.assertEqual(dict(headers)[b'content-length'], b'%d' % len(DATA))
                count += 2
                self.assertEqual(await self.connection(url, request), (number, count))

    @on_plain_and_tls
    async def test_ranges_give_the_parts(self, url, request):
        for what, ranges, part in RANGES:
            with self.subTest(what=what):
                code, headers, body = await request(b'GET', url + '/files/data', headers=((b'range', ranges),))
                self.assertEqual(code, b'206')
                self.assertTrue(await buffered(body) == DATA[part])
                begin, end, _ = part.indices(len(DATA))
                self.assertIn((b'content-range', b'bytes %d-%d/%d' % (begin, end - 1, len(DATA))), headers)
        code, headers, body = await request(b'GET', url + '/files/data', headers=((b'range', b'bytes=0-9,20-29'),))
        self.assertEqual((code, dict(headers)[b'content-type'].split(b';')[0]), (b'206', b'multipart/byteranges'))
        parts = await buffered(body)
        self.assertIn(b'\r\n\r\n' + DATA[0:10] + b'\r\n', parts)
        self.assertIn(b'\r\n\r\n' + DATA[20:30] + b'\r\n', parts)
        code, _, body = await request(b'GET', url + '/files/data', headers=((b'range', b'bytes=99999999-'),))
        self.assertEqual(code, b'416')
        self.assertIn(b'416', await buffered(body))

    @on_plain_and_tls
    async def test_a_refused_body_is_not_sent_after_expect(self, url, request):
        given = []

        async def body_data():
            for piece in (DATA[:MIB], DATA[MIB:2 * MIB]):
                given.append(piece)
                yield piece
        headers = ((b'content-length', b'%d' % (2 * MIB)),) + EXPECT
        code, _, body = await in_time(
            request(b'PUT', url + '/limited/refused', headers=headers, body=body_data()))
        self.assertEqual(code, b'413')
        self.assertIn(b'413', await buffered(body))
        self.assertLessEqual(len(given), 1)
        self.assertEqual((await self.connection(url, request))[1], 1)

    @on_plain_and_tls
    async def test_a_body_refused_while_it_is_sent_shows_as_413(self, url, request):
        for what, headers in (('a length', ((b'content-length', b'%d' % (64 * MIB)),)), ('chunked', CHUNKED_HEADERS)):
            with self.subTest(what=what):
                given = []

                async def body_data():
                    for _ in range(64):
                        given.append(None)  # noqa: B023
                        yield DATA[:MIB]
                code, _, body = await request(b'PUT', url + '/limited/refused', headers=headers, body=body_data())
                self.assertEqual(code, b'413')
                self.assertIn(b'413', await buffered(body))
                self.assertLess(len(given), 64)
        self.assertEqual((await self.connection(url, request))[1], 1)

    @on_plain_and_tls
    async def test_a_redirect_is_the_callers(self, url, request):
        code, headers, body = await request(b'GET', url + '/moved')
        self.assertEqual((code, dict(headers)[b'location']), (b'301', (url + '/files/data').encode()))
        self.assertIn(b'301', await buffered(body))

    @on_plain_and_tls
    async def test_a_thousand_requests_in_turn_use_one_connection(self, url, request):
        await self.check_a_thousand_in_turn(url, request)

    @on_plain_and_tls
    async def test_500_requests_at_once_are_each_answered_and_their_connections_kept(self, url, request):
        await self.check_500_at_once(url, request)


# In a process of its own: so it can be slow, leak, and warn as it likes. It ends with its standard input.
AIOHTTP_SERVER = '''
import asyncio
import os
import socket
import ssl
import sys

from aiohttp import web

requests = {}

async def connection(request):
    name = request.transport.get_extra_info('peername')[1]
    # Not the port, which a later connection may have again.
    requests[request.protocol] = requests.get(request.protocol, 0) + 1
    return web.Response(text='{} {} {}'.format(name, requests[request.protocol], request.query_string))

async def echo(request):
    data = await request.read()
    response = web.StreamResponse(headers={
        'x-method': request.method,
        'x-length': request.headers.get('content-length', 'none'),
        'x-encoding': request.headers.get('transfer-encoding', 'none'),
    })
    if 'length' in request.query:
        response.content_length = int(request.query['length'])
    if 'close' in request.query:
        response.force_close()
    await response.prepare(request)
    for at in range(0, len(data), 50000):
        await response.write(data[at:at + 50000])
    await response.write_eof()
    return response

async def code(request):
    return web.Response(status=int(request.match_info['code']))

async def refused(request):
    return web.Response(status=413, text='413: too large')

async def main():
    app = web.Application(client_max_size=2 ** 30)
    app.router.add_get('/connection', connection)
    app.router.add_route('*', '/echo', echo)
    app.router.add_route('*', '/code/{code}', code)
    app.router.add_route('PUT', '/refused', refused)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    for ssl_context in (None, context):
        sock = socket.socket()
        sock.bind(('127.0.0.1', 0))
        await web.SockSite(runner, sock, ssl_context=ssl_context, backlog=1024).start()
        print(sock.getsockname()[1], flush=True)
    await asyncio.get_event_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)

asyncio.new_event_loop().run_until_complete(main())
'''


class AiohttpServer:

    def __init__(self):
        with CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.tempfile() as certificate:
            self._process = subprocess.Popen(
                [sys.executable, '-W', 'ignore', '-c', AIOHTTP_SERVER, certificate],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            ports = [self._process.stdout.readline().decode().strip() for _ in range(2)]
        self.urls = (f'http://127.0.0.1:{ports[0]}', f'https://127.0.0.1:{ports[1]}')
        if not all(ports):
            self.stop()
            raise RuntimeError('The aiohttp server does not run')

    def stop(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(TEST_SECONDS)


@unittest.skipUnless(importlib.util.find_spec('aiohttp'),
                     'there is no aiohttp here (pip install aiohttp)')
class AiohttpServerTests(ServerTestCase):
    Server = AiohttpServer

    @on_plain_and_tls
    async def test_what_is_uploaded_comes_back_in_each_framing(self, url, request):
        name, _ = await self.connection(url, request)
        for what, headers, make_body, data in UPLOADS:
            length = b'%d' % len(data) if what.startswith('a length') else b'0' if not data else b'none'
            for path in ('/echo', '/echo?length=%d' % len(data)):
                for method in (b'PUT', b'POST'):
                    with self.subTest(what=what, path=path, method=method):
                        code, answer, body = await in_time(
                            request(method, url + path, headers=headers, body=make_body(data)))
                        self.assertEqual(code, b'200')
                        self.assertTrue(await buffered(body) == data)
                        answer = dict(answer)
                        self.assertEqual(answer[b'x-method'], method)
                        expected = (b'none', b'chunked') \
                            if CHUNKED_HEADERS[0] in headers or length == b'none' else (length, b'none')
                        self.assertEqual((answer[b'x-length'], answer[b'x-encoding']), expected)
                        self.assertEqual(b'content-length' in answer, 'length=' in path)
        self.assertEqual((await self.connection(url, request))[0], name)

    @on_plain_and_tls
    async def test_answers_without_a_body_end_at_their_head_and_keep_the_connection(self, url, request):
        name, count = await self.connection(url, request)
        for method, path, expected in (
                (b'HEAD', '/connection', b'200'),
                (b'HEAD', '/code/404', b'404'),
                (b'GET', '/code/204', b'204'),
                (b'GET', '/code/304', b'304'),
        ):
            with self.subTest(method=method, path=path):
                code, _, body = await request(method, url + path)
                self.assertEqual((code, await buffered(body)), (expected, b''))
                after, count_after = await self.connection(url, request)
                self.assertEqual(after, name)
                self.assertGreater(count_after, count)

    @on_plain_and_tls
    async def test_a_connection_that_the_server_ends_is_not_used_again(self, url, request):
        name, _ = await self.connection(url, request)
        code, headers, body = await request(b'POST', url + '/echo?close', body=streamed(DATA))
        self.assertEqual((code, dict(headers)[b'connection']), (b'200', b'close'))
        self.assertTrue(await buffered(body) == DATA)
        self.assertNotEqual((await self.connection(url, request))[0], name)

    @on_plain_and_tls
    async def test_a_body_refused_while_it_is_sent_shows_as_413(self, url, request):
        for what, headers in (('a length', ((b'content-length', b'%d' % (64 * MIB)),)), ('chunked', CHUNKED_HEADERS)):
            with self.subTest(what=what):
                code, _, body = await request(
                    b'PUT', url + '/refused', headers=headers, body=slices_of(bytes(64 * MIB), MIB))
                self.assertEqual((code, await buffered(body)), (b'413', b'413: too large'))

    @on_plain_and_tls
    async def test_a_thousand_requests_in_turn_use_one_connection(self, url, request):
        await self.check_a_thousand_in_turn(url, request)

    @on_plain_and_tls
    async def test_500_requests_at_once_are_each_answered_and_their_connections_kept(self, url, request):
        await self.check_500_at_once(url, request)
