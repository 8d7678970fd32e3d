"""TLS: certificates, close_notify, tickets, and what real peers do too rarely to wait for"""
import asyncio
import itertools
import ssl
import sys
import tempfile
import threading

import lowhaio
from lowhaio import HttpConnectionError, HttpTlsError, buffered
from reliability.harness import (
    CA, TEST_SECONDS, AsyncTestCase, ClientSockets, ManualTls, client_context, outcome, server_context, tls_versions,
)
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import ExchangeTestCase, answering, connect_slowly, numbered, reply_of


class TlsTests(ExchangeTestCase):

    async def test_the_certificate_is_that_of_the_name_or_address_asked_for(self):
        names = FakeNames({'localhost': ['127.0.0.1'], 'xn--bcher-kva.test': ['127.0.0.1']})
        context = server_context('localhost', '127.0.0.1', 'xn--bcher-kva.test')
        asked = []
        if hasattr(context, 'sni_callback'):
            context.sni_callback = lambda _, name, __: asked.append(name)
        port = self.serve(answering(reply_of(b'secret')), tls=context)
        request, _ = self.pool(get_dns_resolver=names)
        for host in ('127.0.0.1', 'localhost', 'b\u00fccher.test'):
            with self.subTest(host=host):
                self.assertEqual(await self.text(request, port, host, 'https'), b'secret')
        if asked:
            self.assertEqual(asked, [None, 'localhost', 'xn--bcher-kva.test'])
        self.assertEqual([name for name, _ in names.asked], ['localhost', 'xn--bcher-kva.test'])

    async def test_a_certificate_of_another_is_an_error_before_anything_is_sent(self):
        # What else may fail in a handshake is in reliability/life.py.
        for name, tls, get_ssl_context in (
                ('of another name', server_context('other.test'), client_context),
                ('of another address', server_context('127.0.0.2'), client_context),
                ('of an authority not trusted', server_context(), ssl.create_default_context),
        ):
            with self.subTest(name):
                sockets = ClientSockets()
                request, _ = self.pool(get_ssl_context=get_ssl_context, set_sock_options=sockets,
                                       get_dns_resolver=FakeNames({'localhost': ['127.0.0.1']}))
                body = CountedBody(b'x')
                port = self.serve(answering(reply_of()), tls=tls)
                error = await self.raises(HttpTlsError, self.text(
                    request, port, 'localhost', 'https', b'POST', body=body()))
                self.assertIsNotNone(error.__cause__)
                self.assertEqual((body.begun, sockets.count_open()), (0, 0))

    async def test_a_context_that_cannot_be_made_leaves_no_connection_behind(self):
        class OwnError(Exception):
            pass

        def get_ssl_context():
            raise OwnError()
        port = self.serve(lambda peer: peer.read_to_close())
        sockets = ClientSockets()
        request, _ = self.pool(get_ssl_context=get_ssl_context, set_sock_options=sockets)
        self.assertIn(await outcome(self.text(request, port, scheme='https')), (OwnError, HttpTlsError))
        self.assertEqual(sockets.count_open(), 0)

    async def test_closing_sends_close_notify(self):
        async def by_the_pool(request, close, url):
            await buffered((await request(b'GET', url + 'whole'))[2])
            await close()

        async def by_time(request, close, url):
            await buffered((await request(b'GET', url + 'whole'))[2])

        async def by_connection_close(request, close, url):
            await buffered((await request(b'GET', url + 'whole', headers=((b'connection', b'close'),)))[2])

        async def by_aclose(request, close, url):
            _, _, body = await request(b'GET', url)
            self.assertEqual(await body.__anext__(), b'part')
            await body.aclose()

        for version, configure in tls_versions():
            for how in (by_the_pool, by_time, by_connection_close, by_aclose):
                with self.subTest(version=version, how=how.__name__):
                    context = configure(server_context())
                    last, gone = [], threading.Event()

                    def script(peer, context=context, last=last, gone=gone):
                        tls = ManualTls(peer, context)
                        tls.handshake()
                        head = tls.read()
                        tls.write(reply_of(b'whole') if b'/whole' in head else
                                  b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart')
                        last.append(tls.read())
                        gone.set()
                    port = self.serve(script)
                    request, close = self.pool(keep_alive_timeout=0.2)
                    await how(request, close, 'https://127.0.0.1:%d/' % port)
                    await self.happens(gone)
                    self.assertEqual(last, [b''])

    async def test_a_connection_with_session_tickets_is_reused(self):
        for version, configure in tls_versions():
            with self.subTest(version=version):
                port = self.serve(*numbered(), tls=configure(server_context()))
                request, _ = self.pool()
                for _ in range(4):
                    self.assertEqual(await self.text(request, port, scheme='https'), b'0')

    async def test_a_handshake_may_be_longer_than_what_tls_is_given_at_once(self):
        # About 90 KB on the wire, of 100 that OpenSSL takes; four characters of PEM are three bytes.
        authority = CA.cert_pem.bytes()
        chain = CA.issue_cert('127.0.0.1').private_key_and_cert_chain_pem.bytes()
        chain += authority * (120000 // len(authority))
        for version, configure in tls_versions():
            with self.subTest(version=version):
                context = configure(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
                with tempfile.NamedTemporaryFile() as file:
                    file.write(chain)
                    file.flush()
                    context.load_cert_chain(file.name)
                port = self.serve(*numbered(), tls=context)
                request, _ = self.pool()
                for _ in range(2):
                    self.assertEqual(await self.text(request, port, scheme='https'), b'0')

    async def test_session_tickets_that_come_before_the_first_byte_is_sent_are_no_sign_of_death(self):
        if not getattr(ssl, 'HAS_TLSv1_3', False):
            self.skipTest('no TLS 1.3 here')
        context = server_context()
        go_on, sent = threading.Event(), threading.Event()

        def script(peer):
            tls = ManualTls(peer, context)
            tls.handshake(flush_last=False)  # the tickets are what is last
            self.assertGreater(tls.outgoing.pending, 0)
            go_on.wait(TEST_SECONDS)
            tls.flush()
            sent.set()
            data = b''
            while not data.endswith(b'0\r\n\r\n'):
                data += tls.read()
            tls.write(reply_of(b'0'))
            tls.read()

        async def body():
            go_on.set()
            self.assertTrue(sent.wait(TEST_SECONDS))
            yield b'x'
        port = self.serve(script)
        request, _ = self.pool()
        self.assertEqual(await self.text(request, port, scheme='https', method=b'POST', body=body()), b'0')
        self.assertEqual(self.accepted, 1)

    async def test_there_is_one_context_made_at_the_first_https_request(self):
        made = []

        def get_ssl_context():
            made.append(None)
            return client_context()
        plain = self.serve(answering(reply_of()))
        ports = [self.serve(answering(reply_of()), tls=server_context()) for _ in range(2)]
        request, _ = self.pool(get_ssl_context=get_ssl_context)
        await self.text(request, plain)
        self.assertEqual(len(made), 0)
        await asyncio.gather(*[self.text(request, port, scheme='https') for port in ports * 2])
        for port in ports:
            await self.text(request, port, scheme='https', headers=((b'connection', b'close'),))
            await self.text(request, port, scheme='https')
        self.assertEqual(len(made), 1)

    async def test_why_tls_ended_before_the_request_is_said(self):
        def script(peer):
            tls = ManualTls(peer, server_context())
            tls.handshake()
            peer.send(b'\x17\x03\x03\x00\x20' + bytes(32))
            peer.read_to_close()

        request, _ = self.pool(connect=connect_slowly(), get_ssl_context=client_context)
        error = await self.raises(HttpConnectionError, self.text(request, self.serve(script), scheme='https'))
        self.assertIsInstance(error.__cause__, ssl.SSLError)
        self.assertIn(str(error.__cause__), str(error))


class MemoryTls:
    """A TLS server in memory, and a Connection to it that plays what the test puts into `errors`"""

    def __init__(self):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server_context().wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.errors = []
        self.blocked = 0
        self.waits = []
        self.closed_with = None
        self.inner = lowhaio.Connection(
            self.receive, self.send, self.wait, lambda _: None, self.close, lambda: None)

    async def connect(self, host='localhost'):
        connection = await lowhaio.tls_connection(self.inner, client_context(), host, 65536, 10)
        self.server.do_handshake()
        return connection

    def receive(self):
        try:
            self.server.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self.outgoing.read() or None

    def send(self, data):
        if self.errors:
            raise self.errors.pop(0)
        if self.blocked:
            self.blocked -= 1
            return 0
        return self.incoming.write(data)

    async def wait(self, sending=False, seconds=None):
        self.waits.append((sending, seconds))

    def close(self, last=b''):
        if self.closed_with is None:
            self.closed_with = last


class TlsInMemoryTests(AsyncTestCase):

    async def test_received_records_are_understood_wherever_they_are_cut(self):
        for cuts in ((10 ** 6,), (1,), (3, 7), (262144,), (16384, 5, 40000), (4, 16389)):
            with self.subTest(cuts):
                peer = MemoryTls()
                connection = await peer.connect()
                self.assertIsNone(connection.receive())
                for length in (1, 5, 100, 16384, 16640, 3, 65535, 16379, 7):
                    peer.server.write(bytes([length % 256]) * length)
                wire, at, pieces = peer.outgoing.read(), 0, []
                for cut in itertools.cycle(cuts):
                    peer.outgoing.write(wire[at:at + cut])
                    at += cut
                    while True:
                        data = connection.receive()
                        if data is None:
                            break
                        self.assertLessEqual(len(data), 65536)
                        pieces.append(data)
                    if at >= len(wire):
                        break
                self.assertEqual(b''.join(pieces), b''.join(
                    bytes([length % 256]) * length for length in (1, 5, 100, 16384, 16640, 3, 65535, 16379, 7)))

    async def test_a_record_that_has_begun_is_not_silence_but_before_the_first_request(self):
        for at in (1, 4, 5, 6, 20):
            for is_used in (False, True):
                with self.subTest((at, is_used)):
                    peer = MemoryTls()
                    connection = await peer.connect()
                    self.assertIsNone(connection.poll())
                    if is_used:
                        self.assertEqual(connection.send(b'request'), 7)
                        self.assertIsNone(connection.poll())
                    peer.server.write(b'answer')
                    wire = peer.outgoing.read()
                    peer.outgoing.write(wire[:at])
                    self.assertEqual(connection.poll(), b'' if is_used else None)
                    peer.outgoing.write(wire[at:])
                    self.assertEqual(connection.poll(), b'answer')

    async def test_the_name_to_verify_is_without_the_dot_at_its_end(self):
        await MemoryTls().connect('localhost.')

    async def test_a_peer_whose_certificate_is_refused_is_told_so(self):
        peer = MemoryTls()
        with self.assertRaises((ssl.SSLError, ssl.CertificateError)):
            await peer.connect('other.test')
        if sys.version_info >= (3, 7):  # before, Python judges the name itself, after the handshake
            peer.incoming.write(peer.closed_with)
            with self.assertRaises(ssl.SSLError) as caught:
                peer.server.do_handshake()
            self.assertIn('alert', str(caught.exception).lower())
        self.assertIsNotNone(peer.closed_with)

    async def test_what_came_before_a_bad_record_is_given_and_then_its_error(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.server.write(b'good')
        peer.outgoing.write(b'\x17\x03\x03\x00\x20' + bytes(32))
        self.assertEqual(connection.receive(), b'good')
        for _ in range(2):
            with self.assertRaises(ssl.SSLError):
                connection.receive()

    async def test_a_bad_record_on_an_idle_connection_is_told(self):
        peer = MemoryTls()
        connection = await peer.connect()
        self.assertIsNone(connection.poll())
        peer.outgoing.write(b'\x17\x03\x03\x00\x20' + bytes(32))
        with self.assertRaises(ssl.SSLError):
            connection.poll()

    async def test_what_comes_while_a_send_is_blocked_is_received_before_it_goes_on(self):
        for how in ('receive', 'poll'):
            with self.subTest(how):
                peer = MemoryTls()
                connection = await peer.connect()
                peer.server.write(b'early')
                peer.blocked = 2
                self.assertEqual(connection.send(b'upload'), 6)  # taken, and on its way
                self.assertEqual(connection.send(b'more'), 0)
                self.assertEqual(getattr(connection, how)(), b'early')
                self.assertEqual(connection.send(b'more'), 4)
                self.assertEqual(peer.server.read(100) + peer.server.read(100), b'uploadmore')

    async def test_what_the_peer_had_sent_is_received_though_it_takes_nothing_more(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.errors.append(BrokenPipeError('gone'))
        with self.assertRaises(BrokenPipeError):
            connection.send(b'upload')
        peer.server.write(b'answer')
        self.assertEqual(connection.receive(), b'answer')
        self.assertIsNone(connection.receive())
        await connection.wait(False, 10)
        self.assertEqual(peer.waits[-1], (False, 10))  # it would be told at once, again and again
        for _ in range(2):  # what failed is not sent, and not said to be
            with self.assertRaises(BrokenPipeError):
                connection.send(b'more')
        connection.close()
        self.assertEqual(peer.closed_with, b'')  # nothing in the middle of a record

    async def test_a_receive_that_finds_the_peer_gone_goes_on_receiving(self):
        peer = MemoryTls()
        connection = await peer.connect()
        peer.server.write(b'first')
        peer.blocked = 1
        self.assertEqual(connection.send(b'upload'), 6)
        self.assertEqual(connection.receive(), b'first')
        peer.errors.append(BrokenPipeError('gone'))
        self.assertIsNone(connection.receive())
        peer.server.write(b'second')
        self.assertEqual(connection.receive(), b'second')

    async def test_a_wait_with_the_rest_of_a_record_to_send_is_for_sending_too(self):
        peer = MemoryTls()
        connection = await peer.connect()
        self.assertIsNone(connection.receive())
        peer.blocked = 2
        self.assertEqual(connection.send(b'upload'), 6)
        self.assertIsNone(connection.receive())
        await connection.wait(False, 10)
        self.assertEqual(peer.waits[-1], (True, 10))
        self.assertIsNone(connection.receive())
        await connection.wait(False, 5)
        self.assertEqual(peer.waits[-1], (False, 5))
        self.assertEqual(peer.server.read(100), b'upload')

    async def test_the_last_bytes_and_close_notify_go_out_at_close(self):
        peer = MemoryTls()
        connection = await peer.connect()
        connection.close(b'last')
        peer.incoming.write(peer.closed_with)
        self.assertEqual(peer.server.read(100), b'last')
        self.assertEqual(peer.server.read(100), b'')
