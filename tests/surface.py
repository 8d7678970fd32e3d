"""What a pool is given, and what it gives: checked arguments, bounds, `when_done`, `buffered(body, most)`, types"""
import asyncio
import contextlib
import gc
import inspect
import ssl
import threading
import unittest
import unittest.mock
import weakref

import lowhaio
from lowhaio import (
    Connection,
    HttpConnectionClosedError,
    HttpDataError,
    HttpRequestError,
    HttpTlsError,
    Pool,
    Request,
    ResponseBody,
    buffered,
    streamed,
)
from reliability.harness import (
    OK,
    OK_EMPTY,
    PATIENCE,
    AsyncTestCase,
    ClientSockets,
    client_context,
    in_thread,
    new_event_loop,
    pieces_of,
    server_context,
)
from tests.peers import ExchangeTestCase

try:
    import contextvars
except ImportError:
    contextvars = None


def hello_script(peer):
    while peer.read_head():
        peer.send(OK + b'content-length: 5\r\n\r\nhello')


class ArgumentsTests(AsyncTestCase):

    async def test_what_is_no_function_is_refused_by_pool(self):
        async def coroutine_function(*_):
            pass

        for name, what in (
                ('get_dns_resolver', r'that returns \(resolve, clear_cache\)'),
                ('get_ssl_context', 'that returns an ssl.SSLContext'),
                ('connect', 'like connect_directly'),
                ('set_sock_options', 'of a socket')):
            for value in (None, ssl.create_default_context(), 5, 'text', ()):
                with self.subTest((name, value)):
                    with self.assertRaisesRegex(TypeError, f'{name} must be a function {what}, got '
                                                           f'{type(value).__name__}$'):
                        Pool(**{name: value})
            if name != 'connect':
                with self.assertRaisesRegex(TypeError, f'{name} must be a plain function {what}, got a coroutine'):
                    Pool(**{name: coroutine_function})

    async def test_what_is_no_count_is_refused_by_pool(self):
        for name, least in (('max_idle', 0), ('recv_bufsize', 1), ('max_header_length', 1)):
            for value, error in ((None, TypeError), ('5', TypeError), (1.0, TypeError), (True, TypeError),
                                 (float('inf'), TypeError), (least - 1, ValueError), (-5, ValueError), (least, None)):
                with self.subTest((name, value)):
                    if error is None:
                        Pool(**{name: value})
                        continue
                    with self.assertRaisesRegex(error, f'{name} must be .*{least} or more, got'):
                        Pool(**{name: value})

    async def test_get_ssl_context_that_gives_none_is_an_error_of_the_request(self):
        url = f'https://127.0.0.1:{self.serve(lambda peer: peer.read_to_close())}/'
        for given in (None, 'context', (client_context(),)):
            request, _ = self.pool(get_ssl_context=lambda given=given: given)
            with self.assertRaisesRegex(HttpTlsError, f'must return an ssl.SSLContext, got {type(given).__name__}'):
                await request(b'GET', url)


class PairsTests(AsyncTestCase):

    async def test_what_are_no_pairs_is_refused_by_a_sentence_that_shows_the_mend(self):
        def sentence(seen):
            return r'must be pairs, \(\(name, value\), \(name, value\)\), or a mapping, got ' + seen

        comma = r'; one pair alone has a comma after it: \(\(name, value\),\)$'
        request, _ = self.pool()
        for what in ('headers', 'params'):
            for given, seen in (
                    (5, 'int$'), ('text', 'str$'), (b'text', 'bytes$'), (bytearray(b'ab'), 'bytearray$'),
                    ((b'secret', b'token'), 'a bytes, number 1 of 2' + comma),
                    (('secret', 'token'), 'a str, number 1 of 2' + comma),
                    ([b'ab'], 'a bytes, number 1 of 1$'), (((b'a', b'b'), None), 'a NoneType, number 2 of 2$'),
                    (((b'a', b'b', b'secret'),), 'a tuple of 3, number 1 of 1$'),
                    ((b'a', b'b', b'c'), 'a bytes, number 1 of 3$'), ([[b'a']], 'a list of 1, number 1 of 1$')):
                with self.subTest((what, given)):
                    with self.assertRaisesRegex(HttpRequestError, f'^The {what} ' + sentence(seen)) as caught:
                        await request(b'GET', 'http://127.0.0.1:1/', **{what: given})
                    self.assertNotIn('secret', str(caught.exception))
        with self.assertRaisesRegex(HttpRequestError, r'such as .*, got str and str, number 1 of 1$'):
            await request(b'GET', 'http://127.0.0.1:1/', headers={'secret': 'token'})

    async def test_none_is_none(self):
        port = self.serve(lambda peer: heads.append(peer.read_head()) or peer.send(OK_EMPTY))
        heads = []
        request, _ = self.pool()
        await request(b'GET', f'http://127.0.0.1:{port}/', params=None, headers=None)
        self.assertEqual(heads, [b'GET / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n' % port])


class MaxIdleTests(AsyncTestCase):

    async def get(self, request, port, **kwargs):
        code, _, body = await request(b'GET', f'http://127.0.0.1:{port}/', **kwargs)
        self.assertEqual((code, await buffered(body)), (b'200', b'hello'))
        return body.reused

    async def test_the_least_recently_used_is_closed_for_one_more(self):
        ports = [self.serve(hello_script) for _ in range(4)]
        request, _ = self.pool(max_idle=3)
        for port in ports[:3]:
            self.assertFalse(await self.get(request, port))
        self.assertTrue(await self.get(request, ports[0]))  # now the second is the least recently used
        self.assertFalse(await self.get(request, ports[3]))
        self.assertEqual([await self.get(request, port) for port in (ports[0], ports[2], ports[3])], [True] * 3)
        self.assertFalse(await self.get(request, ports[1]))

    async def test_those_of_one_host_count_each(self):
        port = self.serve(hello_script)
        request, _ = self.pool(max_idle=3)
        await asyncio.gather(*[self.get(request, port) for _ in range(8)])
        self.assertEqual(sum(await asyncio.gather(*[self.get(request, port) for _ in range(8)])), 3)

    async def test_of_0_none_is_kept(self):
        port = self.serve(hello_script)
        request, _ = self.pool(max_idle=0)
        self.assertEqual([await self.get(request, port) for _ in range(3)], [False] * 3)

    async def test_what_is_in_use_is_not_counted_nor_closed(self):
        def script(peer):
            while peer.read_head():
                peer.send(OK + b'content-length: 5\r\n\r\nhe')
                going_on.wait(PATIENCE)
                peer.send(b'llo')

        going_on = threading.Event()
        ports = [self.serve(script) for _ in range(3)]
        request, _ = self.pool(max_idle=1)
        bodies = [(await request(b'GET', f'http://127.0.0.1:{port}/'))[2] for port in ports]
        going_on.set()
        self.assertEqual([await buffered(body) for body in bodies], [b'hello'] * 3)
        self.assertEqual([await self.get(request, port) for port in ports], [False, False, False])
        self.assertTrue(await self.get(request, ports[2]))

    async def test_what_a_server_closed_is_forgotten(self):
        def script(peer):
            peer.read_head()
            peer.send(OK + b'content-length: 5\r\n\r\nhello')

        closing, kept = self.serve(script), self.serve(hello_script)
        request, _ = self.pool(max_idle=2)
        await self.get(request, kept)
        for _ in range(3):
            await self.get(request, closing)
            await asyncio.sleep(0.1)
        self.assertTrue(await self.get(request, kept))


@unittest.skipUnless(contextvars, 'Python 3.6 has no context variables: the test of them is skipped')
class ContextTests(AsyncTestCase):
    """A connection does not keep the context of the task that opened it, or that used it"""

    async def test_an_idle_connection_keeps_no_context_alive(self):
        class Large:
            pass

        async def get(url):
            large = Large()
            variable.set(large)
            held.append(weakref.ref(large))
            _, _, body = await request(b'GET', url)
            await buffered(body)

        variable = contextvars.ContextVar('variable')
        for scheme in ('http', 'https'):
            held = []
            request, _ = self.pool(get_ssl_context=client_context)
            tls = server_context() if scheme == 'https' else None
            url = f'{scheme}://127.0.0.1:{self.serve(hello_script, tls=tls)}/'
            for _ in range(3):  # opened, used again, and its timer moved
                await self.loop.create_task(get(url))
            self.assertEqual(self.accepted, 1)
            self.accepted = 0
            await asyncio.sleep(0)
            gc.collect()
            self.assertEqual([each() for each in held], [None] * 3)


class TwoThreadsTests(AsyncTestCase):

    def test_of_two_loops_that_begin_at_once_one_is_refused(self):
        def slow_names(*args):
            """Is called between the question whose the pool is, and the answer"""
            with contextlib.suppress(threading.BrokenBarrierError):
                between.wait(0.5)
            return names(*args)

        async def get():
            try:
                _, _, body = await request(b'GET', f'http://127.0.0.1:{port}/')
                return await buffered(body)
            except HttpRequestError as error:
                return str(error)
            finally:
                await in_thread(both.wait, PATIENCE)  # neither loop ends before the other has asked

        def run():
            loop = new_event_loop()
            try:
                result = loop.run_until_complete(get())
                results.append(result)
                if result == b'hello':  # the pool is this loop's
                    loop.run_until_complete(close())
            finally:
                loop.close()

        port = self.serve(hello_script)
        names, results = lowhaio.Names, []
        between, both = threading.Barrier(2), threading.Barrier(2)
        request, close = Pool()
        with unittest.mock.patch.object(lowhaio, 'Names', slow_names):
            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        self.assertEqual(sorted(results, key=str), [
            'The pool belongs to another event loop, which is still running', b'hello'])


class WhenDoneTests(ExchangeTestCase):

    async def halted(self, rest=b'', **kwargs):
        """A body of which 3 of 6 bytes have come, an event after which the server sends `rest`, or closes"""
        def script(peer):
            peer.read_head()
            peer.send(OK + b'content-length: 6\r\n\r\nabc')
            going_on.wait(PATIENCE)
            if rest:
                peer.send(rest)
                peer.read_to_close()

        going_on = self.hold()
        request, _ = self.pool(**kwargs)
        _, _, body = await request(b'GET', f'http://127.0.0.1:{self.serve(script)}/')
        return body, going_on

    def told(self, body, what='done'):
        told = []
        body.when_done(lambda: told.append(what))
        return told

    async def test_of_a_body_that_is_complete_at_once(self):
        def script(peer):
            for answer in (OK_EMPTY, b'HTTP/1.1 204 No\r\n\r\n', OK + b'content-length: 2\r\n\r\nab'):
                peer.read_head()
                peer.send(answer)

        request, _ = self.pool()
        url = f'http://127.0.0.1:{self.serve(script)}/'
        for _ in range(3):
            _, _, body = await request(b'GET', url)
            self.assertEqual(self.told(body), ['done'])
            await buffered(body)
            self.assertEqual(self.told(body), ['done'])

    async def test_at_its_end_in_order_when_the_connection_is_free_and_once(self):
        body, going_on = await self.halted(b'def')
        told = []
        for number in range(3):
            body.when_done(lambda number=number: told.append(number))
        self.assertEqual([await body.__anext__(), told], [b'abc', []])
        going_on.set()
        self.assertEqual([await body.__anext__(), told], [b'def', [0, 1, 2]])
        await body.aclose()
        self.assertEqual([told, self.told(body)], [[0, 1, 2], ['done']])

    async def test_the_connection_is_given_back_before(self):
        sockets = ClientSockets()
        body, going_on = await self.halted(b'def', set_sock_options=sockets, max_idle=0)  # given back it is closed
        opened = []
        body.when_done(lambda: opened.append(sockets.count_open()))
        going_on.set()
        self.assertEqual((await buffered(body), opened), (b'abcdef', [0]))

    async def test_where_it_breaks_off(self):
        body, going_on = await self.halted()
        told = self.told(body)
        going_on.set()
        with self.assertRaises(HttpConnectionClosedError):
            await buffered(body)
        self.assertEqual(told, ['done'])

    async def test_where_its_reader_is_cancelled(self):
        body, _ = await self.halted()
        told = self.told(body)
        await body.__anext__()
        task = self.loop.create_task(body.__anext__())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        self.assertEqual((task.cancelled(), told), (True, ['done']))

    async def test_where_it_is_closed(self):
        body, _ = await self.halted()
        told = self.told(body)
        await body.aclose()
        self.assertEqual((told, self.told(body)), (['done'], ['done']))

    async def test_where_it_is_closed_while_it_is_read(self):
        body, _ = await self.halted()
        told = self.told(body)
        await body.__anext__()
        task = self.loop.create_task(body.__anext__())
        await asyncio.sleep(0)
        await body.aclose()
        with self.assertRaises(HttpConnectionClosedError):
            await task
        self.assertEqual(told, ['done'])

    async def test_where_it_is_dropped(self):
        body, _ = await self.halted()
        told = self.told(body)
        del body
        gc.collect()
        self.assertEqual(told, ['done'])

    async def test_where_it_is_dropped_in_another_thread(self):
        body, _ = await self.halted()
        held, told = [body], []
        body.when_done(lambda: told.append(threading.current_thread()))
        del body
        await in_thread(held.clear)
        for _ in range(3):
            await asyncio.sleep(0)
        self.assertEqual(told, [threading.main_thread()])

    def test_where_it_is_dropped_in_another_thread_when_the_loop_is_closed(self):
        body, _ = self.loop.run_until_complete(self.halted())
        held, told = [body], self.told(body)
        del body
        loop = new_event_loop()
        loop.close()
        held[0]._loop = loop
        # As where it is closed a moment after the question.
        with unittest.mock.patch.object(lowhaio, 'runs_elsewhere', lambda _: True):
            held.clear()
        self.assertEqual(told, [])

    async def test_what_one_raises_hinders_neither_the_others_nor_the_reader(self):
        def failing():
            raise ZeroDivisionError('of a callback')

        body, going_on = await self.halted(b'def')
        body.when_done(failing)
        told = self.told(body)
        going_on.set()
        self.assertEqual((await buffered(body), told), (b'abcdef', ['done']))
        body.when_done(failing)
        errors, self._loop_errors = self._loop_errors, []
        self.assertEqual([repr(each['exception']) for each in errors],
                         [repr(ZeroDivisionError('of a callback'))] * 2)

    def test_without_a_loop_what_one_raises_passes(self):
        with self.assertRaises(ZeroDivisionError):
            ResponseBody(b'', None, False, True).when_done(lambda: 1 // 0)

    async def test_what_is_no_function_is_refused(self):
        body, _ = await self.halted()
        with self.assertRaisesRegex(TypeError, 'callback must be a function without arguments, got NoneType'):
            body.when_done(None)

    async def test_a_callback_that_does_not_refer_to_the_body_lets_it_be_dropped(self):
        body, _ = await self.halted()
        told = self.told(body)
        reference = weakref.ref(body) if hasattr(type(body), '__weakref__') else None
        del body
        self.assertEqual((told, reference and reference()), (['done'], None))


class BufferedTests(AsyncTestCase):

    async def test_more_than_most_is_an_error_and_the_body_is_closed(self):
        def script(peer):
            while peer.read_head():
                peer.send(OK + b'content-length: 6\r\n\r\nabc')
                peer.send(b'def')

        url = f'http://127.0.0.1:{self.serve(script)}/'
        request, _ = self.pool()
        for most, is_enough in ((None, True), (6, True), (7, True), (5, False), (1, False), (0, False)):
            with self.subTest(most):
                _, _, body = await request(b'GET', url)
                if is_enough:
                    self.assertEqual(await buffered(body, most), b'abcdef')
                    continue
                with self.assertRaisesRegex(HttpDataError, f'longer than {most} bytes') as caught:
                    await buffered(body, most)
                self.assertTrue(caught.exception.answered)
                with self.assertRaises(StopAsyncIteration):
                    await body.__anext__()

    async def test_of_any_iterable(self):
        closed = []

        async def generator():
            try:
                yield bytearray(b'abc')
                yield memoryview(b'defg').cast('H')
                raise AssertionError('more than was wanted is asked for')
            finally:
                closed.append(True)

        class Iterator:
            def __aiter__(self):
                return self

            async def __anext__(self):
                return b'abc'

        self.assertEqual(await buffered(streamed(b'abc'), 3), b'abc')
        for body in (streamed(b'abcdefg'), Iterator(), generator()):
            with self.assertRaisesRegex(HttpDataError, 'longer than 6 bytes'):
                await buffered(body, 6)
        self.assertEqual(closed, [True])
        self.assertEqual(await buffered(pieces_of(b'ab', b'c'), 3), b'abc')

    async def test_most_is_a_count(self):
        for most, error in ((-1, ValueError), (1.5, TypeError), ('1', TypeError), (True, TypeError)):
            with self.assertRaisesRegex(error, 'most must be'):
                await buffered(streamed(b''), most)


class TypesTests(AsyncTestCase):

    async def test_public_types_can_be_used_in_annotations(self):
        def layer(request: Request, connection: Connection) -> ResponseBody:
            pass

        self.assertEqual(inspect.signature(layer).parameters['request'].annotation, Request)
        for name in lowhaio.__all__:
            self.assertTrue(hasattr(lowhaio, name), name)

    async def test_every_body_is_a_response_body(self):
        def script(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_head()
            peer.send(OK + b'content-length: 3\r\n\r\n')
            peer.read_to_close()

        request, _ = self.pool()
        url = f'http://127.0.0.1:{self.serve(script)}/'
        for _ in range(2):
            _, _, body = await request(b'GET', url)
            self.assertIsInstance(body, ResponseBody)
            await body.aclose()

    async def test_the_version_is_that_of_the_changelog(self):
        with open('CHANGELOG.md', encoding='utf-8') as file:
            self.assertIn(f'\n## [{lowhaio.__version__}]', file.read())
