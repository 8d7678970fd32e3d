"""Several event loops, forks, and the end of a pool"""
import asyncio
import functools
import gc
import os
import signal
import threading
import warnings

from lowhaio import HttpError, HttpRequestError, Pool, buffered
from reliability.harness import (
    OK, OK_EMPTY, TEST_SECONDS, ClientSockets, all_tasks, in_thread, new_event_loop, outcome, refusing_port,
    server_context, turns,
)
from reliability.scripted import DRAIN, HEAD, scripted
from tests.bodies import CountedBody
from tests.name_servers import FakeNames
from tests.peers import ExchangeTestCase, answering, halting, in_loop_of_its_own, numbered, reply_of, until_closed


class LoopWithoutReaders(asyncio.SelectorEventLoop):
    """As the Proactor loop of Windows is: it has no readers but for itself"""
    add_reader = asyncio.AbstractEventLoop.add_reader
    remove_reader = asyncio.AbstractEventLoop.remove_reader
    add_writer = asyncio.AbstractEventLoop.add_writer
    remove_writer = asyncio.AbstractEventLoop.remove_writer


class LoopTests(ExchangeTestCase):

    def test_a_pool_may_be_made_before_any_loop(self):
        asyncio.set_event_loop(None)
        try:
            request, _ = self.pool()
        finally:
            asyncio.set_event_loop(self.loop)
        port = self.serve(answering(reply_of(b'x')))
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'x')

    def test_a_pool_may_be_made_in_a_thread_without_a_loop(self):
        port = self.serve(answering(reply_of(b'x')))
        pools = []
        thread = threading.Thread(target=lambda: pools.append(self.pool()))
        thread.start()
        thread.join(TEST_SECONDS)
        (request, _), = pools
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'x')

    def test_a_connection_of_an_earlier_loop_is_not_kept_for_a_later_one(self):
        go_on, gone = threading.Event(), threading.Event()
        port = self.serve(halting(OK + b'content-length: 3\r\n\r\nab', go_on, b'c', gone), *numbered()[1:])
        request, close = self.pool()
        first, second = new_event_loop(), new_event_loop()
        try:
            _, _, body = first.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % port))
            self.assertEqual(second.run_until_complete(self.text(request, port)), b'1')
            go_on.set()
            self.assertEqual(first.run_until_complete(buffered(body)), b'abc')
            self.assertTrue(gone.wait(TEST_SECONDS), 'the connection of the first loop is still open')
            self.assertEqual(second.run_until_complete(self.text(request, port)), b'1')
            second.run_until_complete(close())
        finally:
            first.close()
            second.close()

    def test_under_a_later_loop_a_pool_starts_afresh(self):
        for tls in (None, server_context()):
            for how in ('closed', 'stopped'):
                with self.subTest(how, tls=tls is not None):
                    gone = threading.Event()
                    port = self.serve(
                        until_closed(gone, reply_of(b'0')), *numbered()[1:], tls=tls)
                    sockets = ClientSockets()
                    request, close = self.pool(set_sock_options=sockets)
                    text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')
                    first, second = new_event_loop(), new_event_loop()
                    try:
                        self.assertEqual(first.run_until_complete(text()), b'0')
                        if how == 'closed':
                            first.close()
                        self.assertEqual(second.run_until_complete(text()), b'1')
                        self.assertTrue(gone.wait(TEST_SECONDS), 'the old connection is still open')
                        self.assertEqual(second.run_until_complete(text()), b'1')
                        self.assertEqual(sockets.count_open(), 1)
                        if how == 'stopped':
                            self.assertEqual(first.run_until_complete(text()), b'2')
                            self.assertEqual(first.run_until_complete(text()), b'2')
                        self.assertEqual(sockets.count_open(), 1)
                    finally:
                        first.close()
                        second.close()
                    self.assertEqual(self.loop.run_until_complete(text()), b'3' if how == 'stopped' else b'2')
                    self.loop.run_until_complete(close())
                    self.assertEqual(sockets.count_open(), 0)

    def test_a_request_that_an_earlier_loop_never_ended_does_no_harm(self):
        # Its task was never run to the end, and its connection belongs to a loop that is closed.
        gone = threading.Event()
        port = self.serve(until_closed(gone, b'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n'), *numbered()[1:])
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        first = new_event_loop()
        _, _, body = first.run_until_complete(request(b'GET', 'http://127.0.0.1:%d/' % port))
        first.close()
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'1')
        self.loop.run_until_complete(body.aclose())
        self.assertTrue(gone.wait(TEST_SECONDS))
        self.assertEqual(sockets.count_open(), 1)
        self.assertEqual(self.loop.run_until_complete(self.text(request, port)), b'1')

    async def test_a_second_loop_is_refused_while_the_first_runs(self):
        port = self.serve(*numbered())
        request, _ = self.pool()
        self.assertEqual(await self.text(request, port), b'0')
        body = CountedBody(b'x')
        refused = await in_thread(in_loop_of_its_own, lambda: self.text(request, port, method=b'PUT', body=body()))
        self.assertIs(refused, HttpRequestError)
        self.assertEqual(body.begun, 0)
        self.assertEqual(await self.text(request, port), b'0')

    async def test_pools_of_two_loops_that_run_are_apart(self):
        port = self.serve(*numbered())
        request, _ = self.pool()
        self.assertEqual(await self.text(request, port), b'0')

        async def elsewhere():
            other_request, other_close = Pool()
            result = await self.text(other_request, port)
            await other_close()
            return result
        self.assertEqual(await in_thread(in_loop_of_its_own, elsewhere), b'1')

    def in_child(self, function):
        """What `function()` gives, bytes, in a forked process, which is killed by its alarm if it hangs"""
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other threads, which are the peers, and hold no locks of ours
            pid = os.fork()
        if not pid:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                os.write(writer, function())
            except BaseException as error:
                os.write(writer, repr(error).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, 'rb') as pipe:
            result = pipe.read()
        os.waitpid(pid, 0)
        return result

    def test_after_a_fork_the_child_starts_afresh_and_the_parent_goes_on(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                ask, gone = threading.Event(), threading.Event()

                def script(peer, ask=ask, gone=gone):
                    for _ in range(2):
                        peer.read_head()
                        peer.send(reply_of(b'0'))
                    ask.wait(TEST_SECONDS)
                    peer.half_close()
                    peer.read_to_close()
                    gone.set()
                port = self.serve(script, *numbered()[1:], tls=tls)
                sockets = ClientSockets()
                request, close = self.pool(set_sock_options=sockets)
                text = functools.partial(self.text, request, port, scheme='https' if tls else 'http')

                async def child(text=text, sockets=sockets, close=close):
                    answers = await text() + await text()
                    count = sockets.count_open()
                    await close()
                    return answers + b', %d open, then %d' % (count, sockets.count_open())
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                self.assertEqual(self.in_child(lambda: in_loop_of_its_own(child)), b'11, 1 open, then 0')
                # Neither a close_notify nor the selector, which the two share, was touched by the child.
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                ask.set()
                self.loop.run_until_complete(self.happens(gone))
                self.assertEqual(sockets.count_open(), 0)

    async def test_a_child_forked_while_the_loop_runs_starts_afresh_too(self):
        port = self.serve(*numbered())
        request, close = self.pool()
        self.assertEqual(await self.text(request, port), b'0')

        async def child():
            answer = await self.text(request, port)
            await close()
            return answer
        self.assertEqual(self.in_child(lambda: in_loop_of_its_own(child)), b'1')
        self.assertEqual(await self.text(request, port), b'0')

    def test_a_child_that_drops_and_closes_all_leaves_the_parents_connections_alone(self):
        for tls in (None, server_context()):
            with self.subTest(tls=tls is not None):
                before = self.accepted
                go_on = threading.Event()

                def script(peer, go_on=go_on):
                    peer.read_head()
                    peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n')
                    go_on.wait(TEST_SECONDS)
                    peer.send(b'end')
                idle_port, busy_port = self.serve(*numbered(), tls=tls), self.serve(script, tls=tls)
                request, close = self.pool()
                scheme = 'https' if tls else 'http'
                text = functools.partial(self.text, request, idle_port, scheme=scheme)
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                bodies = [
                    self.loop.run_until_complete(request(b'GET', '{}://127.0.0.1:{}/'.format(scheme, busy_port)))[2]]

                def child(bodies=bodies, close=close):
                    in_loop_of_its_own(bodies[0].aclose)
                    bodies.clear()
                    gc.collect()
                    return in_loop_of_its_own(close) or b'closed'
                self.assertEqual(self.in_child(child), b'closed')
                go_on.set()
                self.assertEqual(self.loop.run_until_complete(buffered(bodies[0])), b'end')
                self.assertEqual(self.loop.run_until_complete(text()), b'0')
                self.assertEqual(self.accepted - before, 2)

    async def test_a_closed_pool_refuses_requests(self):
        port = self.serve(*numbered())
        request, close = self.pool()
        await self.text(request, port)
        await close()
        body = CountedBody(b'x')
        await self.raises(HttpRequestError, self.text(request, port, method=b'PUT', body=body()))
        self.assertEqual((self.accepted, body.begun), (1, 0))

    async def test_a_pool_may_be_closed_before_any_request_and_twice(self):
        request, close = self.pool()
        await close()
        await close()
        await self.raises(HttpRequestError, request(b'GET', 'http://127.0.0.1/'))

        names = FakeNames({'one.test': ['127.0.0.1']})
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, self.serve(*numbered()), 'one.test')
        await asyncio.gather(close(), close())
        await close()
        self.assertEqual(names.cleared, 1)

    async def test_connections_in_use_are_closed_when_their_response_ends(self):
        # One of them before its head, and one in its body.
        go_on, gone, asked = self.hold(), [threading.Event(), threading.Event()], threading.Event()
        sockets = ClientSockets()
        request, close = self.pool(set_sock_options=sockets, keep_alive_timeout=1000)
        ports = [self.serve(scripted(HEAD, *begin, go_on, *end, DRAIN, lambda peer, event=event: event.set()))
                 for event, begin, end in zip(gone, ((lambda peer: asked.set(),), (reply_of(b'abcdef')[:-3],)),
                                              ((reply_of(b'abcdef'),), (b'def',)))]
        task = self.loop.create_task(self.text(request, ports[0]))
        await self.happens(asked)
        _, _, body = await request(b'GET', 'http://127.0.0.1:%d/' % ports[1])
        await close()
        self.assertEqual(sockets.count_open(), 2)
        go_on.set()
        self.assertEqual((await task, await buffered(body)), (b'abcdef', b'abcdef'))
        for event in gone:
            await self.happens(event)
        self.assertEqual(sockets.count_open(), 0)

    async def test_a_pool_may_be_closed_from_another_loop_while_its_own_runs(self):
        gone = threading.Event()
        names = FakeNames({'one.test': ['127.0.0.1']})
        port = self.serve(until_closed(gone, reply_of(b'x')))
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, port, 'one.test')
        self.assertIsNone(await in_thread(in_loop_of_its_own, close))
        await self.happens(gone)
        await self.raises(HttpRequestError, self.text(request, port, 'one.test'))
        await turns()
        self.assertEqual(names.cleared, 1)
        await close()

    def test_a_pool_may_be_closed_from_a_later_loop(self):
        for how in ('closed', 'stopped'):
            with self.subTest(how):
                gone = threading.Event()
                port = self.serve(until_closed(gone, reply_of(b'x')))
                names = FakeNames({'one.test': ['127.0.0.1']})
                request, close = self.pool(get_dns_resolver=names)
                first = new_event_loop()
                try:
                    first.run_until_complete(self.text(request, port, 'one.test'))
                    if how == 'closed':
                        first.close()
                    self.loop.run_until_complete(close())
                    self.assertTrue(gone.wait(TEST_SECONDS))
                    self.assertIs(self.loop.run_until_complete(outcome(self.text(request, port))), HttpRequestError)
                finally:
                    first.close()

    def test_a_loop_without_readers_gets_a_clear_error(self):
        request, _ = self.pool()
        loop = LoopWithoutReaders()
        try:
            with self.assertRaises(HttpError) as caught:
                loop.run_until_complete(self.text(request, refusing_port()))
            self.assertIn('add_reader', str(caught.exception))
        finally:
            loop.close()
        # And the pool may be used in a better one.
        self.assertEqual(self.loop.run_until_complete(self.text(request, self.serve(answering(reply_of(b'x'))))), b'x')

    def test_a_pool_closed_from_a_thread_as_its_loop_ends_is_closed(self):
        ended = threading.Event()

        def script(peer):
            peer.read_head()
            peer.send(OK_EMPTY)
            peer.read_to_close()
            ended.set()
        request, close = Pool()

        async def main():
            await request(b'GET', url)
            thread = threading.Thread(target=in_loop_of_its_own, args=(close,))
            thread.start()
            thread.join(TEST_SECONDS)  # the loop stands still, and ends with the next turn
        url = self.url(script)
        self.loop.run_until_complete(main())
        for task in all_tasks(self.loop):
            task.cancel()  # as `asyncio.run` does it
        self.loop.run_until_complete(asyncio.sleep(0))
        self.assertTrue(ended.wait(TEST_SECONDS / 2))
