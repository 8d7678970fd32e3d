"""Names and addresses"""
import asyncio
import socket
from unittest import mock

from aiodnsresolver import TYPES, DnsNoMatchingAnswers, DnsRecordDoesNotExist, DnsResponseCode, DnsTimeout

import lowhaio
from lowhaio import HttpConnectionError, HttpConnectionTimeout, HttpDnsError, HttpRequestError
from reliability.harness import TEST_SECONDS, ClientSockets, current_task, new_event_loop, outcome, refusing_port, turns
from tests.bodies import CountedBody
from tests.name_servers import FakeNames, name_server, real_resolver
from tests.peers import ExchangeTestCase, answering, never, reply_of


class Clock:
    """The loop's clock, which can be put forward; timers come the sooner for it"""

    def __init__(self, loop):
        self._ahead = 0
        real = loop.time
        loop.time = lambda: real() + self._ahead

    async def forward(self, seconds):
        self._ahead += seconds
        await turns(2)


class NamesTests(ExchangeTestCase):
    """One connection per request, unless the test is of their reuse: `connection: close` asks for that"""

    CLOSE = ((b'connection', b'close'),)

    def where_it_came(self):
        """The port of a server on all of 127.0.0.0/8 that answers with the address it was reached at"""
        return self.serve(answering(
            lambda peer: peer.send(reply_of(peer.sock.getsockname()[0].encode()))), host='0.0.0.0')

    async def test_an_answer_stands_for_its_time_and_is_asked_for_again_after_it(self):
        clock = Clock(self.loop)
        ttl = 8
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl)
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        for headers in (self.CLOSE, ()):
            before = names.count()
            for _ in range(3):
                await self.text(request, port, 'one.test', headers=headers)
            await clock.forward(ttl * 0.6)
            await self.text(request, port, 'one.test', headers=headers)
            self.assertEqual(names.count() - before, 1 if headers else 0)
            await clock.forward(ttl * 0.6)
            await self.text(request, port, 'one.test', headers=headers)
            self.assertEqual(names.count() - before, 2 if headers else 1)

    async def test_an_answer_without_any_time_stands_for_a_second(self):
        clock = Clock(self.loop)
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        await clock.forward(0.5)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        self.assertEqual(names.count(), 1)
        await clock.forward(0.8)
        await self.text(request, port, 'one.test', headers=self.CLOSE)
        self.assertEqual(names.count(), 2)

    async def test_an_idle_connection_whose_address_left_the_records_is_not_reused(self):
        clock = Clock(self.loop)
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=1)
        port = self.where_it_came()
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.1')
        for addresses, expected, accepted in (
                (['127.0.0.2', '127.0.0.1'], b'127.0.0.1', 1),  # still one of them
                (['127.0.0.2', '127.0.0.3'], b'127.0.0.2', 2),
                (['127.0.0.3', '127.0.0.2'], b'127.0.0.2', 2),
                (['127.0.0.1'], b'127.0.0.1', 3),
        ):
            names.records['one.test'] = addresses
            await clock.forward(1.1)
            self.assertEqual(await self.text(request, port, 'one.test'), expected)
            self.assertEqual(self.accepted, accepted)
        self.assertEqual(sockets.count_open(), 1, 'the connections to addresses that are gone are closed')

    async def test_a_passing_failure_leaves_the_last_addresses_standing(self):
        async def times_out(*_):
            return DnsTimeout

        async def is_cancelled():
            raise asyncio.CancelledError()

        clock = Clock(self.loop)
        for name, failure in (('timeout', DnsTimeout), ('SERVFAIL', lambda: times_out()), ('socket', OSError),
                              ('cancels itself', is_cancelled), ('says nothing', never)):
            for headers in (self.CLOSE, ()):
                with self.subTest(name, headers=headers):
                    before = self.accepted
                    port = self.where_it_came()
                    names = FakeNames({'one.test': ['127.0.0.5']}, ttl=1)
                    request, _ = self.pool(get_dns_resolver=names, socket_timeout=0.2)
                    await self.text(request, port, 'one.test', headers=headers)
                    names.records['one.test'] = failure
                    await clock.forward(1.1)
                    self.assertEqual(await self.text(request, port, 'one.test', headers=headers), b'127.0.0.5')
                    self.assertEqual(self.accepted - before, 2 if headers else 1)
                    self.assertEqual(names.count(), 2)

    async def test_a_name_that_is_gone_takes_its_addresses_with_it(self):
        clock = Clock(self.loop)
        for headers in (self.CLOSE, ()):
            for gone in (DnsRecordDoesNotExist, DnsNoMatchingAnswers):
                with self.subTest(headers=headers, gone=gone):
                    before = self.accepted
                    port = self.where_it_came()
                    names = FakeNames({'one.test': ['127.0.0.1']}, ttl=1)
                    request, _ = self.pool(get_dns_resolver=names)
                    await self.text(request, port, 'one.test', headers=headers)
                    names.records['one.test'] = gone
                    await clock.forward(1.1)
                    await self.raises(HttpDnsError, self.text(request, port, 'one.test', headers=headers))
                    # They do not come back with a passing failure.
                    names.records['one.test'] = DnsTimeout
                    await clock.forward(1.1)
                    await self.raises(HttpDnsError, self.text(request, port, 'one.test', headers=headers))
                    self.assertEqual(self.accepted - before, 1)

    async def test_a_host_without_a_records_or_that_refuses_at_them_is_reached_by_its_aaaa(self):
        try:
            port = self.serve(answering(reply_of(b'IPv6')), host='::1')
        except OSError:
            self.skipTest('no IPv6 here')
        for name, records in (('six.test', {('six.test', 'AAAA'): ['::1']}),
                              ('both.test', {'both.test': ['127.0.0.1', '::1']})):
            names = FakeNames(records)
            request, _ = self.pool(get_dns_resolver=names)
            accepted = self.accepted
            self.assertEqual([await self.text(request, port, name) for _ in range(2)], [b'IPv6'] * 2)
            self.assertEqual(self.accepted, accepted + 1)
            self.assertEqual(names.asked, [(name, 'A'), (name, 'AAAA')])
        self.assertEqual(await self.text(request, port, '[::1]'), b'IPv6')

    async def test_where_one_address_refuses_the_next_is_tried(self):
        port = self.serve(answering(reply_of(b'here')), host='127.0.0.3')
        names = FakeNames({'many.test': ['127.0.0.1', '127.0.0.2', '127.0.0.3', '127.0.0.4']})
        sockets = ClientSockets()
        request, _ = self.pool(get_dns_resolver=names, set_sock_options=sockets)
        self.assertEqual(await self.text(request, port, 'many.test'), b'here')
        self.assertEqual((len(sockets.references), sockets.count_open()), (3, 1))

    async def test_where_all_refuse_the_error_names_them(self):
        names = FakeNames({'many.test': ['127.0.0.1', '127.0.0.2']})
        request, _ = self.pool(get_dns_resolver=names)
        body = CountedBody(b'x')
        error = await self.raises(
            HttpConnectionError, self.text(request, refusing_port(), 'many.test', method=b'POST', body=body()))
        self.assertIsInstance(error.__cause__, ConnectionRefusedError)
        self.assertIn('127.0.0.1', str(error))
        self.assertIn('127.0.0.2', str(error))
        self.assertEqual(body.begun, 0)

    async def test_a_look_up_that_fails_is_a_dns_error_and_the_next_one_is_a_new_one(self):
        async def hangs():
            await never()
        for failure, cause in (
                (DnsTimeout, DnsTimeout), (DnsResponseCode, DnsResponseCode), (OSError, OSError),
                (DnsRecordDoesNotExist, None), (UnicodeError, UnicodeError), (RuntimeError, RuntimeError),
                (lambda: hangs(), None),
        ):
            with self.subTest(failure=failure):
                names = FakeNames({'one.test': failure}, ttl=1)
                request, _ = self.pool(get_dns_resolver=names, socket_timeout=0.3)
                body = CountedBody(b'x')
                port = self.serve(answering(reply_of(b'found')))
                error = await self.raises(
                    HttpDnsError, self.text(request, port, 'one.test', method=b'POST', body=body()))
                self.assertIn('one.test', str(error))
                if cause is not None:
                    self.assertIs(type(error.__cause__), cause)
                self.assertEqual(body.begun, 0)
                if failure is not DnsRecordDoesNotExist:  # which stands for a while, as any answer does
                    names.records['one.test'] = ['127.0.0.1']
                    self.assertEqual(await self.text(request, port, 'one.test'), b'found')

    async def test_a_resolver_that_cannot_be_made_is_a_dns_error(self):
        def get_dns_resolver():
            raise OSError('There is no /etc/resolv.conf')
        request, _ = self.pool(get_dns_resolver=get_dns_resolver)
        await self.raises(HttpDnsError, self.text(request, 80, 'one.test'))

    async def test_names_that_cannot_be_names_are_errors_of_this_tree(self):
        # The real resolver, whose name server is not asked: nothing can be.
        with name_server({}) as (name_port, asked):
            request, _ = self.pool(get_dns_resolver=real_resolver(name_port))
            for host in ('a..b', 'a' * 70 + '.test', '.', 'a.', '\u00e4' * 70 + '.test'):
                with self.subTest(host=host):
                    with self.assertRaises((HttpDnsError, HttpRequestError)) as caught:
                        await self.text(request, 80, host)
                    self.assertGreater(len(str(caught.exception)), 10)
            self.assertTrue({name for name, _ in asked} <= {b'a'}, asked)

    async def test_an_address_in_the_url_is_not_looked_up(self):
        names = FakeNames({})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        self.assertEqual(await self.text(request, port, '127.0.0.7'), b'127.0.0.7')
        self.assertEqual(await self.text(request, port, '127.0.0.7'), b'127.0.0.7')
        self.assertEqual(names.asked, [])

    async def test_a_look_up_runs_in_a_task_of_its_own_and_may_cancel_it(self):
        # As aiodnsresolver does, without `uncancel`, when one packet is lost.
        async def cancels_itself():
            current_task().cancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
            return ['127.0.0.1']
        names = FakeNames({'one.test': cancels_itself})
        request, _ = self.pool(get_dns_resolver=names)
        self.assertEqual(await self.text(request, self.where_it_came(), 'one.test'), b'127.0.0.1')
        self.assertIsNot(names.tasks[0](), current_task())
        if hasattr(asyncio.Task, 'cancelling'):
            self.assertEqual(current_task().cancelling(), 0)

    async def test_a_look_up_is_cancelled_with_its_caller(self):
        begun, ended = asyncio.Event(), asyncio.Event()

        async def hangs():
            begun.set()
            try:
                await never()
            finally:
                ended.set()
        names = FakeNames({'one.test': hangs})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names, socket_timeout=TEST_SECONDS)
        task = self.loop.create_task(outcome(self.text(request, port, 'one.test')))
        await begun.wait()
        task.cancel()
        self.assertIs(await task, asyncio.CancelledError)
        await ended.wait()
        names.records['one.test'] = ['127.0.0.1']
        self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.1')

    async def test_the_resolver_is_made_once_and_its_cache_is_cleared_by_close(self):
        names = FakeNames({'one.test': ['127.0.0.1'], 'two.test': ['127.0.0.1']})
        port = self.where_it_came()
        request, close = self.pool(get_dns_resolver=names)
        self.assertEqual(names.made_in, [])
        for host in ('one.test', 'two.test', 'one.test'):
            await self.text(request, port, host, headers=self.CLOSE)
        self.assertEqual([loop() for loop in names.made_in], [self.loop])
        self.assertEqual(names.cleared, 0)
        await close()
        self.assertEqual(names.cleared, 1)

    async def test_a_pool_that_looked_nothing_up_is_closed_without_a_resolver(self):
        names = FakeNames({})
        request, close = self.pool(get_dns_resolver=names)
        await self.text(request, self.where_it_came())
        await close()
        self.assertEqual(names.cleared, len(names.made_in))

    def test_each_loop_has_a_resolver_of_its_own(self):
        names = FakeNames({'one.test': ['127.0.0.1']})
        port = self.where_it_came()
        request, _ = self.pool(get_dns_resolver=names)
        self.loop.run_until_complete(self.text(request, port, 'one.test'))
        other = new_event_loop()
        try:
            other.run_until_complete(self.text(request, port, 'one.test'))
            self.assertEqual([loop() for loop in names.made_in], [self.loop, other])
        finally:
            other.close()

    async def test_the_real_resolver_with_a_real_server(self):
        records = {(b'one.test', TYPES.A): (60, socket.inet_aton('127.0.0.9'))}
        with name_server(records) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port))
            port = self.where_it_came()
            for _ in range(3):
                self.assertEqual(await self.text(request, port, 'One.test', headers=self.CLOSE), b'127.0.0.9')
            self.assertEqual(asked, [(b'one.test', TYPES.A)])
            error = await self.raises(HttpDnsError, self.text(request, port, 'none.test'))
            self.assertIn('none.test', str(error))
            await close()  # which ends the timers of its cache

    async def test_a_packet_that_is_lost_leaves_the_callers_timeout_sound(self):
        records = {(b'one.test', TYPES.A): (60, socket.inet_aton('127.0.0.9'))}
        with name_server(records, losing=1) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port))
            port = self.where_it_came()
            self.assertEqual(await asyncio.wait_for(self.text(request, port, 'one.test'), TEST_SECONDS), b'127.0.0.9')
            self.assertEqual(asked, [(b'one.test', TYPES.A)] * 2)
            await close()
        if not hasattr(asyncio, 'timeout'):
            return
        with name_server(records, losing=1) as (name_port, asked):
            request, close = self.pool(get_dns_resolver=real_resolver(name_port, wait=0.1))
            # Were the caller's task cancelled by the resolver, this would end as CancelledError.
            with self.assertRaises(asyncio.TimeoutError):
                async with asyncio.timeout(0.5):
                    self.assertEqual(await self.text(request, port, 'one.test'), b'127.0.0.9')
                    await never()
            self.assertEqual(len(asked), 2)
            self.assertEqual(current_task().cancelling(), 0)
            await close()

    async def test_a_failed_look_up_of_ipv6_does_not_hide_why_ipv4_failed(self):
        names = FakeNames({('one.test', 'A'): ['127.0.0.1'], ('one.test', 'AAAA'): DnsTimeout})
        request, _ = self.pool(get_dns_resolver=names)
        error = await self.raises(HttpConnectionError, self.text(request, refusing_port(), 'one.test'))
        self.assertIn('127.0.0.1: ', str(error))

    async def test_a_connection_taken_during_the_look_up_is_left_to_who_took_it(self):
        async def waits():
            await go_on.wait()
            return ['127.0.0.1']
        port = self.where_it_came()
        names = FakeNames({'one.test': ['127.0.0.1']}, ttl=0)
        request, _ = self.pool(get_dns_resolver=names)
        with mock.patch('lowhaio.MIN_TTL', -1):  # nothing stands
            await self.text(request, port, 'one.test')
            go_on, names.records['one.test'] = asyncio.Event(), waits
            both = [self.loop.create_task(self.text(request, port, 'one.test')) for _ in range(2)]
            while names.count() < 3:
                await asyncio.sleep(0)
            go_on.set()
            await asyncio.gather(*both)
        self.assertEqual(self.accepted, 2)

    async def test_the_oldest_names_are_forgotten(self):
        port = self.where_it_came()
        names = FakeNames({host: ['127.0.0.1'] for host in 'ab'})
        request, _ = self.pool(get_dns_resolver=names)
        with mock.patch('lowhaio.MAX_REMEMBERED', 1):
            for host in 'aabba':
                await self.text(request, port, host)
        self.assertEqual([host for host, _ in names.asked], ['a', 'b', 'a'])

    async def test_of_all_addresses_that_fail_the_last_is_the_cause(self):
        errors = {'127.0.0.1': ConnectionRefusedError('refused'), '127.0.0.2': socket.timeout('slow')}

        async def look_up(host, record_type):
            return addresses if record_type == TYPES.A else ()

        async def open_socket(family, address):
            raise errors[address[0]]

        for addresses, cls in ((('127.0.0.1', '127.0.0.2'), HttpConnectionTimeout),
                               (('127.0.0.2', '127.0.0.1'), HttpConnectionError)):
            error = await self.raises(
                cls, lowhaio.connect_directly('http', 'h.test', 80, look_up, open_socket, None))
            self.assertIs(error.__cause__, errors[addresses[-1]])
            self.assertIn('127.0.0.1: refused', str(error))
            self.assertIn('127.0.0.2: slow', str(error))
