"""The clients, each used as its own documentation says for speed: one session, kept-alive, bodies streamed

Each is an async context manager, client(setting), that gives three functions:

- `await get(url)`: the body of the response, whole.
- `await down(url, consume)`: calls `consume` with each piece of the body.
- `await up(url, pieces, length)`: PUTs what `pieces()`, an async generator, yields.

Each imports what it needs itself, so that a process holds one client alone.
"""
import asyncio
import collections
import contextlib
import functools
import inspect
import re
import socket
import ssl
import urllib.parse

from scenarios import RECEIVE, RECEIVE_BULK

# `at_once`: how many requests; `idle_hosts`: how many other hosts have an idle connection; `ca`: path of the
# authority's certificate.
Setting = collections.namedtuple('Setting', 'at_once idle_hosts ca')


def tls_context(setting):
    context = ssl.create_default_context(cafile=setting.ca)
    context.set_alpn_protocols(['http/1.1'])
    return context


@contextlib.asynccontextmanager
async def lowhaio(setting):
    import lowhaio
    bound = {'max_idle': setting.at_once + setting.idle_hosts}
    options = {name: value for name, value in bound.items() if name in inspect.signature(lowhaio.Pool).parameters}
    request, close = lowhaio.Pool(get_ssl_context=functools.partial(tls_context, setting), **options)

    async def get(url):
        _, _, body = await request(b'GET', url)
        return await lowhaio.buffered(body)

    async def down(url, consume):
        _, _, body = await request(b'GET', url)
        async for piece in body:
            consume(piece)

    async def up(url, pieces, length):
        headers = ((b'content-length', b'%d' % length),)
        _, _, body = await request(b'PUT', url, headers=headers, body=pieces)
        await lowhaio.buffered(body)

    yield get, down, up
    await close()


# -------- The limits: nothing is parsed, since all is known from a first request outside of what is measured

Known = collections.namedtuple('Known', 'address tls get head_length length closes')


@functools.lru_cache(None)
def known(url):
    parts = urllib.parse.urlsplit(url)
    get = b'GET %b HTTP/1.1\r\nhost: %b\r\n\r\n' % (parts.path.encode(), parts.netloc.encode())
    address = (parts.hostname, parts.port)
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_connection(address))
        if parts.scheme == 'https':
            sock = stack.enter_context(ssl._create_unverified_context().wrap_socket(sock))
        sock.sendall(get)
        received = b''
        while b'\r\n\r\n' not in received:
            received += sock.recv(RECEIVE)
    head = received[:received.index(b'\r\n\r\n') + 4]
    length = int(re.search(rb'(?i)\ncontent-length: (\d+)', head).group(1))
    return Known(address, parts.scheme == 'https', get, len(head), length, b'connection: close' in head.lower())


def put_head(url, length):
    parts = urllib.parse.urlsplit(url)
    return b'PUT %b HTTP/1.1\r\nhost: %b\r\ncontent-length: %d\r\n\r\n' % (
        parts.path.encode(), parts.netloc.encode(), length)


def bare(connect, send, receive, close):
    """get, down and up from functions that take what `connect(known)` returns"""
    idle = []

    async def get(url):
        response = known(url)
        connection = idle.pop() if idle else await connect(response)
        await send(connection, response.get)
        total = response.head_length + response.length
        data = await receive(connection, RECEIVE)
        while len(data) < total:
            data += await receive(connection, RECEIVE)
        if response.closes:
            close(connection)
        else:
            idle.append(connection)
        return data[response.head_length:]

    async def down(url, consume):
        response = known(url)
        connection = idle.pop() if idle else await connect(response)
        await send(connection, response.get)
        data = b''
        while len(data) < response.head_length:
            data += await receive(connection, RECEIVE_BULK)
        data = data[response.head_length:]
        remaining = response.length - len(data)
        consume(data)
        while remaining:
            data = await receive(connection, RECEIVE_BULK)
            remaining -= len(data)
            consume(data)
        idle.append(connection)

    async def up(url, pieces, length):
        connection = idle.pop() if idle else await connect(known(url.rpartition('/up/')[0] + '/small'))
        await send(connection, put_head(url, length))
        async for piece in pieces():
            await send(connection, piece)
        data = await receive(connection, RECEIVE)
        while b'\r\n\r\n' not in data:
            data += await receive(connection, RECEIVE)
        idle.append(connection)

    def close_idle():
        while idle:
            close(idle.pop())

    return get, down, up, close_idle


async def connected(response):
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    await asyncio.get_running_loop().sock_connect(sock, response.address)
    return sock


@contextlib.asynccontextmanager
async def floor(setting):
    loop = asyncio.get_running_loop()
    *functions, close_idle = bare(connected, loop.sock_sendall, loop.sock_recv, socket.socket.close)
    yield functions
    close_idle()


@contextlib.asynccontextmanager
async def kept_floor(setting):
    loop = asyncio.get_running_loop()

    async def connect(response):
        return kept(await connected(response))

    def kept(sock):
        fileno = sock.fileno()
        waiter = None
        has_reader = False
        is_asked = False  # then a receive cannot have data yet
        wanted = RECEIVE

        def on_readable():
            nonlocal has_reader
            if waiter is None or waiter.done():
                loop.remove_reader(fileno)
                has_reader = False
                return
            try:
                waiter.set_result(sock.recv(wanted))
            except BlockingIOError:
                pass

        def send(data):
            nonlocal is_asked
            is_asked = True
            return loop.sock_sendall(sock, data)

        async def receive(size):
            nonlocal waiter, has_reader, is_asked, wanted
            if not is_asked or not has_reader:
                try:
                    return sock.recv(size)
                except BlockingIOError:
                    pass
            if not has_reader:
                loop.add_reader(fileno, on_readable)
                has_reader = True
            is_asked = False
            wanted = size
            waiter = loop.create_future()
            return await waiter

        def close():
            loop.remove_reader(fileno)
            sock.close()

        return send, receive, close

    *functions, close_idle = bare(
        connect,
        lambda connection, data: connection[0](data),
        lambda connection, size: connection[1](size),
        lambda connection: connection[2](),
    )
    yield functions
    close_idle()


@contextlib.asynccontextmanager
async def blocking(setting):
    context = tls_context(setting)

    # Coroutines that never wait.
    async def connect(response):
        sock = socket.create_connection(response.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(sock, server_hostname=response.address[0]) if response.tls else sock

    async def send(sock, data):
        sock.sendall(data)

    async def receive(sock, size):
        return sock.recv(size)

    *functions, close_idle = bare(connect, send, receive, socket.socket.close)
    yield functions
    close_idle()


# -------- Other clients


@contextlib.asynccontextmanager
async def aiohttp(setting):
    import aiohttp
    connector = aiohttp.TCPConnector(limit=0, ssl=tls_context(setting))
    options = dict(cookie_jar=aiohttp.DummyCookieJar(), max_headers=2000)
    async with aiohttp.ClientSession(connector=connector, **options) as session:

        async def get(url):
            async with session.get(url) as response:
                return await response.read()

        async def down(url, consume):
            async with session.get(url) as response:
                async for piece in response.content.iter_any():
                    consume(piece)

        async def up(url, pieces, length):
            async with session.put(url, data=pieces(), headers={'content-length': str(length)}) as response:
                await response.read()

        yield get, down, up


@contextlib.asynccontextmanager
async def httpx(setting, module='httpx'):
    httpx = __import__(module)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(verify=tls_context(setting), limits=limits, timeout=60) as client:

        async def get(url):
            return (await client.get(url)).content

        async def down(url, consume):
            async with client.stream('GET', url) as response:
                async for piece in response.aiter_raw():
                    consume(piece)

        async def up(url, pieces, length):
            await client.put(url, content=pieces(), headers={'content-length': str(length)})

        yield get, down, up


@contextlib.asynccontextmanager
async def niquests(setting):
    import niquests
    session = niquests.AsyncSession(pool_connections=10, pool_maxsize=setting.at_once, verify=setting.ca)
    async with session:

        async def get(url):
            return (await session.get(url)).content

        async def down(url, consume):
            response = await session.get(url, stream=True)
            async for piece in await response.iter_raw():
                consume(piece)

        async def up(url, pieces, length):
            # Chunked: it would send chunks within a length too.
            await session.put(url, data=pieces())

        yield get, down, up


@contextlib.asynccontextmanager
async def pyreqwest(setting):
    import pyreqwest.client
    with open(setting.ca, 'rb') as file:
        certificate = file.read()
    async with pyreqwest.client.ClientBuilder().add_root_certificate_pem(certificate).build() as client:

        async def get(url):
            return await (await client.get(url).build().send()).bytes()

        async def down(url, consume):
            async with client.get(url).build_streamed() as response:
                piece = await response.body_reader.read_chunk()
                while piece is not None:
                    consume(piece)
                    piece = await response.body_reader.read_chunk()

        async def up(url, pieces, length):
            request = client.put(url).header('content-length', str(length)).body_stream(pieces()).build()
            await (await request.send()).bytes()

        yield get, down, up


@contextlib.asynccontextmanager
async def wreq(setting):
    import wreq
    with open(setting.ca, 'rb') as file:
        authorities = wreq.CertStore.from_pem_stack(file.read())
    options = dict(tls_verify=authorities, http1_only=True, no_proxy=True, pool_max_idle_per_host=setting.at_once)
    async with wreq.Client(**options) as client:

        async def get(url):
            async with client.get(url) as response:
                return await response.bytes()

        async def down(url, consume):
            async with client.get(url) as response, response.stream() as pieces:
                async for piece in pieces:
                    consume(piece)

        async def up(url, pieces, length):
            async with client.put(url, body=pieces(), headers={'content-length': str(length)}) as response:
                await response.bytes()

        yield get, down, up


@contextlib.asynccontextmanager
async def pyqwest(setting):
    import pyqwest
    with open(setting.ca, 'rb') as file:
        certificate = file.read()
    # It would keep two idle connections, and trace.
    options = dict(http_version=pyqwest.HTTPVersion.HTTP1, pool_max_idle_per_host=setting.at_once, enable_otel=False)
    async with pyqwest.HTTPTransport(tls_ca_cert=certificate, **options) as transport:
        client = pyqwest.Client(transport)

        async def get(url):
            return (await client.get(url)).content

        async def down(url, consume):
            async with client.stream('GET', url) as response:
                async for piece in response.content:
                    consume(piece)

        async def up(url, pieces, length):
            await client.put(url, {'content-length': str(length)}, pieces())

        yield get, down, up


@contextlib.asynccontextmanager
async def aiosonic(setting):
    import aiosonic
    from aiosonic.pools import PoolConfig
    pool = PoolConfig(size=setting.at_once, max_conn_requests=None)
    context = tls_context(setting)

    def options(url):  # it uses a context for http too
        return {'ssl': context} if url.startswith('https') else {}

    async with aiosonic.HTTPClient(aiosonic.TCPConnector(pool_configs={':default': pool})) as client:

        async def get(url):
            return await (await client.get(url, **options(url))).content()

        async def down(url, consume):
            async with client.stream('GET', url, **options(url)) as response:
                async for piece in response.read_chunks():
                    consume(piece)

        async def up(url, pieces, length):
            # Chunked: it would send chunks within a length too.
            await (await client.put(url, data=pieces(), **options(url))).content()

        yield get, down, up


CLIENTS = {
    'lowhaio': lowhaio,
    'floor': floor,
    'kept floor': kept_floor,
    'blocking': blocking,
    'aiohttp': aiohttp,
    'httpx': httpx,
    'httpx2': functools.partial(httpx, module='httpx2'),
    'niquests': niquests,
    'pyreqwest': pyreqwest,
    'wreq': wreq,
    'pyqwest': pyqwest,
    'aiosonic': aiosonic,
}
