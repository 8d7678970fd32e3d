"""Who owns a connection: what is let go of is closed, and nothing is left"""
import asyncio
import collections
import functools
import gc
import os
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import weakref

from aiodnsresolver import DnsTimeout

import lowhaio
from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpConnectionTimeout, HttpDataTimeout, HttpDnsError,
    HttpProtocolError, HttpRequestError, HttpTlsError, Pool, buffered, streamed,
)
from reliability.harness import (
    OK, OK_EMPTY, TEST_SECONDS, ClientSockets, Peer, client_context, full_backlog, in_thread, new_event_loop, outcome,
    refusing_port, server_context, turns,
)
from tests.name_servers import FakeNames
from tests.peers import (
    MUCH, ExchangeTestCase, WithoutCollector, answering, halting, reply_after_body, reply_of, until_closed,
)


class OwnershipTests(ExchangeTestCase):
    """How else a body may be given up, and at which of its bytes, is in reliability/exhaustion.py"""

    PARTIAL = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n'

    async def test_a_body_dropped_in_a_thread_while_the_loop_is_blocked_is_closed_when_it_turns(self):
        gone = threading.Event()
        port = self.serve(until_closed(gone, self.PARTIAL), answering(reply_of(b'sound')))
        request, _ = self.pool()
        bodies = [(await request(b'GET', 'http://127.0.0.1:%d/' % port))[2]]
        thread = threading.Thread(target=bodies.clear)
        thread.start()
        thread.join(TEST_SECONDS)
        self.assertEqual(await self.text(request, port), b'sound')
        await self.happens(gone)

    async def test_a_body_dropped_in_a_thread_leaves_the_loops_readers_to_the_loops_own_thread(self):
        threads = set()
        real = self.loop.remove_reader

        def remove_reader(fd):
            threads.add(threading.current_thread())
            return real(fd)
        gone = threading.Event()
        port = self.serve(until_closed(gone, self.PARTIAL))
        request, _ = self.pool()
        bodies = [(await request(b'GET', 'http://127.0.0.1:%d/' % port))[2]]
        self.loop.remove_reader = remove_reader
        try:
            await in_thread(bodies.clear)
            await self.happens(gone)
        finally:
            del self.loop.remove_reader
        self.assertLessEqual(threads, {threading.current_thread()})

    async def test_a_request_outlives_its_function(self):
        port = self.serve(answering(reply_of(b'sound')))
        _, _, body = await lowhaio.Pool()[0](b'GET', 'http://127.0.0.1:%d/' % port)
        self.assertEqual(await buffered(body), b'sound')

    async def test_a_pool_that_is_dropped_closes_what_is_idle(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                gone = threading.Event()
                port = self.serve(until_closed(gone, reply_of(b'x')), tls=tls)
                sockets = ClientSockets()
                request, _ = Pool(get_ssl_context=client_context, set_sock_options=sockets)
                await self.text(request, port, scheme='https' if tls else 'http')
                self.assertEqual(sockets.count_open(), 1)
                del request, _
                gc.collect()
                await self.happens(gone)
                self.assertEqual(sockets.count_open(), 0)

    async def test_a_body_outlives_its_pool(self):
        gone, go_on = threading.Event(), threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na')
            go_on.wait(TEST_SECONDS)
            peer.send(b'b')
            peer.read_to_close()
            gone.set()
        port = self.serve(script)
        request, _ = Pool()
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % port)
        del request, _
        gc.collect()
        go_on.set()
        self.assertEqual(await buffered(body), b'ab')
        del body
        gc.collect()
        await self.happens(gone)

    def test_a_loop_that_is_closed_with_idle_connections_leaves_nothing_behind(self):
        port = self.serve(answering(reply_of(b'x')))
        partial_port = self.serve(answering(self.PARTIAL))
        for drop_first in (True, False):
            with self.subTest(drop_first=drop_first):
                sockets = ClientSockets()
                request, close = Pool(set_sock_options=sockets)
                loop = new_event_loop()
                loop.run_until_complete(self.text(request, port))
                _, _, body = loop.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % partial_port))
                self.assertEqual(sockets.count_open(), 2)
                if drop_first:
                    del request, close, body
                    gc.collect()
                    loop.run_until_complete(asyncio.sleep(0))
                loop.close()
                if not drop_first:
                    del request, close, body
                    gc.collect()
                self.assertEqual(sockets.count_open(), 0)

    def test_a_program_like_the_seeds_ends_without_a_word(self):
        # With warnings as errors, and the pool at module level, where it lives until the interpreter ends.
        port = self.serve(answering(reply_of(b'x')))
        program = textwrap.dedent('''
            import asyncio
            from lowhaio import Pool, buffered

            request, _ = Pool()
            kept = []

            async def main():
                code, headers, body = await request(b'GET', 'http://127.0.0.1:{0}/')
                assert await buffered(body) == b'x'
                kept.append(await request(b'GET', 'http://127.0.0.1:{1}/'))

            for _ in range(2):
                loop = asyncio.new_event_loop()
                loop.run_until_complete(main())
                loop.close()
        ''').format(port, self.serve(answering(self.PARTIAL)))
        environment = dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(lowhaio.__file__)))
        process = subprocess.Popen(
            [sys.executable, '-X', 'dev', '-W', 'error', '-c', program], env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output, _ = process.communicate(timeout=TEST_SECONDS / 2)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.assertEqual((output, process.returncode), (b'', 0))

    async def test_a_body_in_a_reference_cycle_is_finalised_in_any_order(self):
        ended = threading.Event()
        go_on = threading.Semaphore(0)

        def script(peer):
            peer.read_head()
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n')
            go_on.acquire(timeout=30)
            peer.send(b'x')
            peer.read_to_close()
            ended.set()
        request, _ = self.pool()
        port = self.serve(script)
        for _ in range(5):
            ended.clear()
            _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % port)
            cycle = [body]
            cycle.append(cycle)
            go_on.release()
            while self._readers_and_timers()[0]:  # until it has fired with nobody waiting
                await asyncio.sleep(0)
            del body, cycle
            gc.collect()
            await in_thread(ended.wait, 30)

    async def test_a_finished_body_does_not_keep_a_dropped_pool(self):
        go_on, ended = threading.Event(), threading.Event()
        script = halting(OK + b'content-length: 3\r\n\r\n', go_on, b'abc', ended)
        request, close = Pool(keep_alive_timeout=1000)
        _, _, body = await request(b'GET', self.url(script))
        go_on.set()
        self.assertEqual(await buffered(body), b'abc')
        del request, close
        gc.collect()
        await self.happens(ended)

    async def test_a_pool_that_a_thread_drops_as_its_timer_fires_closes_silently(self):
        request, close = Pool(keep_alive_timeout=0.2)
        await request(b'GET', self.url(answering(OK_EMPTY)))
        pool = [(request, close)]
        del request, close
        self.loop.call_later(0.1, time.sleep, 0.2)   # the pool's timer, and the next, fall into one turn
        self.loop.call_later(0.11, time.sleep, 0.3)  # in which the pool is dropped
        thread = threading.Thread(target=lambda: time.sleep(0.45) or pool.clear())
        thread.start()
        await asyncio.sleep(0.8)
        thread.join(TEST_SECONDS)


class CycleTests(WithoutCollector, ExchangeTestCase):
    """With the garbage collector off: what is done with is freed by counting references, or it is in a cycle"""

    def cycles(self):
        """What of lowhaio, and which sockets, only the collector could free"""
        return collections.Counter(self.garbage(self.ours))

    @staticmethod
    def ours(thing):
        kind = type(thing).__name__
        code = next((getattr(thing, name) for name in ('f_code', 'cr_code', 'gi_code', 'ag_code', '__code__')
                     if hasattr(type(thing), name)), None)
        if code is not None:
            return code.co_filename == lowhaio.__file__ and '{} of {}'.format(kind, code.co_name)
        return (isinstance(thing, (socket.socket, ssl.SSLObject)) or type(thing).__module__ == 'lowhaio') and kind

    async def test_the_check_finds_cycles(self):
        async def loses(sock):
            own = {}
            own['own'] = own, sock
        with socket.socket() as sock:
            await loses(sock)
            self.assertEqual(self.cycles(), {})
        await loses(sock)
        del sock
        self.assertEqual(self.cycles(), {'socket': 1})

    async def test_requests_make_no_reference_cycles(self):
        context = server_context()
        trusting = client_context()
        partial = b'HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart'

        async def whole(request, url, **kwargs):
            _, _, body = await request(b'PUT' if 'body' in kwargs else b'GET', url, **kwargs)
            await buffered(body)

        async def dropped(request, url):
            await request(b'GET', url)

        async def closed(request, url):
            _, _, body = await request(b'GET', url)
            await body.__anext__()
            await body.aclose()

        async def cancelled(request, url):
            task = self.loop.create_task(outcome(whole(request, url)))
            await asyncio.sleep(0.05)
            task.cancel()
            await task

        async def early_body_error(request, url):
            async def body():
                yield b'too long'
            await whole(request, url, headers=((b'content-length', b'3'),), body=body())

        async def own_body_error(request, url):
            async def body():
                yield b'x'
                raise KeyError('of the caller')
            await whole(request, url, body=body())

        async def uploaded(request, url):
            await whole(request, url, headers=((b'content-length', b'8'),), body=streamed(b'01234567'))

        async def blocked(request, url):
            await whole(request, url, headers=((b'content-length', b'%d' % MUCH),), body=streamed(bytes(MUCH)))

        silent = answering(lambda peer: peer.read_to_close())
        finish = threading.Event()

        async def twice(request, url):
            await whole(request, url)
            await whole(request, url)

        def reads_nothing(peer):
            peer.read_head()
            finish.wait(TEST_SECONDS)
        for name, play, script, expected in (
                ('whole', whole, answering(reply_of(b'x')), None),
                ('uploaded', uploaded, answering(reply_after_body(8)), None),
                ('dropped', dropped, answering(partial), None),
                ('closed', closed, answering(partial), None),
                ('cancelled', cancelled, silent, None),
                ('cancelled in the body', cancelled, answering(partial), None),
                ('nothing answered', whole, answering(Peer.abort), HttpConnectionClosedError),
                ('nothing answered on a reused connection', twice, answering(reply_of(), Peer.abort), None),
                ('truncated', whole, answering(lambda peer: (peer.send(partial), peer.abort())),
                 HttpConnectionClosedError),
                ('nonsense', whole, answering(b'nonsense\r\n\r\n'), HttpProtocolError),
                ('nonsense in the body', whole,
                 answering(b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n'), HttpProtocolError),
                ('timeout', whole, silent, HttpDataTimeout),
                ('timeout in the body', whole, answering(partial), HttpDataTimeout),
                ('timeout while sending', blocked, reads_nothing, HttpDataTimeout),
                ('refused while sending', blocked, answering(Peer.reset), HttpConnectionClosedError),
                ('too long a body', early_body_error, silent, HttpBodyError),
                ('a body that raises', own_body_error, silent, KeyError),
        ):
            for tls in (None, context):
                with self.subTest(name, tls=tls is not None):
                    port = self.serve(script, tls=tls)
                    sockets = ClientSockets()
                    request, close = self.pool(
                        get_ssl_context=functools.partial(lambda context: context, trusting),
                        set_sock_options=sockets, socket_timeout=0.1)
                    url = '{}://127.0.0.1:{}/'.format('https' if tls else 'http', port)
                    self.assertIs(await outcome(play(request, url)), expected)
                    await close()
                    await asyncio.sleep(0)
                    self.assertEqual(len(sockets.references), 2 if play is twice else 1)
                    self.assertEqual(sockets.alive(), [])
                    self.assertEqual(self.cycles(), {})
        finish.set()

    async def test_requests_that_are_sent_again_in_vain_make_no_reference_cycles(self):
        seen = []

        async def connect(scheme, host, port, *args):
            return await lowhaio.connect_directly(scheme, host, ports.pop(0), *args)
        for name, second in (('answered by neither', None), ('no second connection', refusing_port())):
            with self.subTest(name):
                ports = [self.serve(answering(reply_of(), Peer.abort, seen=seen)), second or self.serve(
                    answering(Peer.abort, seen=seen))]
                sockets = ClientSockets()
                request, _ = self.pool(connect=connect, set_sock_options=sockets)
                await self.text(request, 80)
                self.assertIs(await outcome(self.text(request, 80)), HttpConnectionClosedError)
                self.assertEqual((ports, sockets.alive()), ([], []))
                self.assertEqual(self.cycles(), {})
        self.assertEqual(len(seen), 5)

    async def test_connections_that_fail_make_no_reference_cycles(self):
        names = FakeNames({'one.test': ['127.0.0.1'], 'two.test': ['127.0.0.1', '127.0.0.2'], 'lost.test': DnsTimeout})
        trusting = client_context()
        port = self.serve(answering(reply_of()), tls=server_context())
        with full_backlog() as full_port:
            for name, url, expected in (
                    ('refused', 'http://127.0.0.1:%d/' % refusing_port(), HttpConnectionError),
                    ('refused twice', 'http://two.test:%d/' % refusing_port(), HttpConnectionError),
                    ('not answered', 'http://127.0.0.1:%d/' % full_port, HttpConnectionTimeout),
                    ('not found', 'http://none.test/', HttpDnsError),
                    ('not found for now', 'http://lost.test/', HttpDnsError),
                    ('another name', 'https://one.test:%d/' % port, HttpTlsError),
                    ('no TLS', 'https://127.0.0.1:%d/' % self.serve(lambda peer: peer.send(b'HTTP/1.1 400 \r\n\r\n')),
                     HttpTlsError),
                    ('closed in the handshake', 'https://127.0.0.1:%d/' % self.serve(lambda peer: None), HttpTlsError),
                    ('silent in the handshake',
                     'https://127.0.0.1:%d/' % self.serve(lambda peer: peer.read_to_close()), HttpConnectionTimeout),
                    ('refused by the pool', 'ftp://127.0.0.1/', HttpRequestError),
            ):
                with self.subTest(name):
                    sockets = ClientSockets()
                    request, _ = self.pool(
                        get_dns_resolver=names, set_sock_options=sockets, socket_timeout=0.2,
                        get_ssl_context=functools.partial(lambda context: context, trusting))
                    self.assertIs(await outcome(request(b'GET', url)), expected)
                    await turns()
                    self.assertEqual(sockets.alive(), [])
                    self.assertEqual(self.cycles(), {})

    async def test_a_pool_is_no_reference_cycle(self):
        port = self.serve(answering(reply_of()))
        sockets = ClientSockets()
        request, close = Pool(set_sock_options=sockets)
        await self.text(request, port)
        references = weakref.ref(request), weakref.ref(close)
        del request, close
        await turns()
        self.assertEqual([reference() for reference in references], [None, None])
        self.assertEqual(sockets.alive(), [])
        self.assertEqual(self.cycles(), {})
