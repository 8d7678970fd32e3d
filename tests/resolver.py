"""Names: what is asked of the hosts file, of the name servers and of the system, in which order, and what is made of it

The name servers are scripted, on loopback, with a hosts file, resolv.conf and nsswitch.conf of each test's own. The
system is a function in place of `getaddrinfo`, or the real one in namespaces, for which root is needed.
"""
import asyncio
import contextlib
import errno
import functools
import gc
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
import weakref
from unittest import mock

from aiodnsresolver import TYPES, DnsError, DnsNoMatchingAnswers, DnsRecordDoesNotExist

import lowhaio
import lowhaio_names
from lowhaio import HttpDnsError, Pool, buffered
from lowhaio_names import OrderedAddress, get_dns_resolver_default, system_resolver
from reliability.harness import OK_EMPTY, PATIENCE, AsyncTestCase, current_task, new_event_loop, turns

A, AAAA, CNAME = TYPES.A, TYPES.AAAA, TYPES.CNAME


# -------- A name server that says what it is told to


def wire_name(name):
    return b''.join(bytes((len(part),)) + part.encode() for part in name.split('.')) + b'\0'


def wire_address(address):
    return socket.inet_pton(socket.AF_INET6 if ':' in address else socket.AF_INET, address)


class Query:
    """A question, as it came"""

    def __init__(self, data):
        end = data.index(b'\0', 12)
        self.data = data
        self.labels = data[12:end + 1]
        self.question = data[12:end + 5]
        self.record_type = struct.unpack('!H', data[end + 1:end + 3])[0]
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1:at + 1 + data[at]].decode('latin-1').lower())
            at += 1 + data[at]
        self.name = '.'.join(labels)

    def reply(self, *records, rcode=0, truncated=False):
        """`records` are (owner or None for the name, type, data[, ttl])"""
        answers = b''.join([
            (wire_name(owner) if owner else b'\xc0\x0c') +
            struct.pack('!HHIH', record_type, 1, (ttl or [60])[0], len(data)) + data
            for owner, record_type, data, *ttl in records])
        flags = 0x8180 | (0x0200 if truncated else 0) | rcode
        return self.data[:2] + struct.pack('!HHHHH', flags, 1, len(records), 0, 0) + self.question + answers


def found(*addresses, ttl=60):
    return lambda query: query.reply(*[
        (None, AAAA if ':' in address else A, wire_address(address), ttl) for address in addresses])


def alias(target, *addresses):
    """A CNAME, and, where they are given, the target's addresses beside it"""
    return lambda query: query.reply((None, CNAME, wire_name(target)), *[
        (target, AAAA if ':' in address else A, wire_address(address)) for address in addresses])


def says(rcode):
    return lambda query: query.reply(rcode=rcode)


def late(seconds, script):
    def reply(query):
        time.sleep(seconds)
        return script(query)
    return reply


def lower_case(script):
    def reply(query):
        answer = script(query)
        end = 12 + len(query.labels)
        return answer[:12] + answer[12:end].lower() + answer[end:]
    return reply


def other_case(script):
    """As `lower_case`, but not even by chance the same"""
    def reply(query):
        answer = script(query)
        end = 12 + len(query.labels)
        return answer[:12] + answer[12:end].swapcase() + answer[end:]
    return reply


def truncated(query):
    return query.reply(truncated=True)


def malformed(query):
    return query.data[:2] + b'\x81\x80\0\1\0\1\0\0\0\0' + query.question + b'\xc0'


def short_address(query):
    return query.reply((None, A, b'\x7f'))


def silent(query):
    return None


NO_NAME, SERVFAIL, REFUSED, NO_RECORD = says(3), says(2), says(5), says(0)
MANY = ['127.0.1.%d' % i for i in range(1, 60)]  # more than 512 bytes


def listening(host, port):
    sock = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


class NameServer:
    """Over UDP, in a thread; `asked` are its questions, as 'name A'. What is not in `zone` does not exist

    `zone` is {'name A': script, or a list of them, of which the last stays}, or a script for all.
    """

    def __init__(self, zone, host='127.0.0.1', port=0):
        self.zone = zone
        self.asked = []
        self.sock = listening(host, port)
        self.host, self.port = self.sock.getsockname()[:2]
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def answer(self, data):
        query = Query(data)
        key = f'{query.name} {TYPES(query.record_type)!s}'
        self.asked.append(key)
        script = self.zone if callable(self.zone) else self.zone.get(key, NO_NAME)
        if isinstance(script, list):
            script = script.pop(0) if len(script) > 1 else script[0]
        return script(query)

    def run(self):
        while True:
            data, address = self.sock.recvfrom(4096)
            if not data:
                return
            answer = self.answer(data)
            if answer is not None:
                self.sock.sendto(answer, address)

    def close(self):
        with socket.socket(self.sock.family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b'', (self.host, self.port))
        self.thread.join(PATIENCE)
        self.sock.close()


class FakeSystem:
    """In place of `socket.getaddrinfo`. `names` is {name: [addresses], an EAI_ code, an exception or a function}"""

    def __init__(self, names=()):
        self.names = dict(names)
        self.asked = []

    def __call__(self, host, port, family=0, type=0):
        self.asked.append(host)
        assert (port, family, type) == (None, socket.AF_UNSPEC, socket.SOCK_STREAM), (port, family, type)
        said = self.names.get(host, socket.EAI_NONAME)
        if callable(said):
            said = said()
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, int):
            raise socket.gaierror(said, 'the reason of the system')
        return [(socket.AF_INET6 if ':' in address else socket.AF_INET, type, 6, '', (address, 0)) for address in said]


class Scene:
    """A resolver, and all that it asks"""

    def __init__(self, folder, hosts=b'127.0.0.1 localhost\n', options='', nsswitch='hosts: files dns\n', dns=(),
                 system=(), servers=None, more_servers=(), resolv_conf=None):
        self.folder = folder
        self.server = NameServer(dns if callable(dns) else dict(dns))
        self.others = [NameServer(zone, f'127.0.0.{host}', self.server.port) for host, zone in more_servers]
        if resolv_conf is None:
            resolv_conf = ''.join([f'nameserver {server}\n' for server in servers or ['127.0.0.1']]) + options + '\n'
        self.system = FakeSystem(system)
        self.paths = {name: os.path.join(folder, name) for name in ('hosts', 'resolv_conf', 'nsswitch_conf')}
        for name, content in (('hosts', hosts), ('resolv_conf', resolv_conf), ('nsswitch_conf', nsswitch)):
            if content is not None:
                self.write(name, content)
        self.get_dns_resolver = functools.partial(
            get_dns_resolver_default, **self.paths, port=self.server.port, getaddrinfo=self.system)

    def start(self):
        self.resolve, self.clear_cache = self.get_dns_resolver()
        return self

    def write(self, name, content, age=0):
        """`age` in seconds: a file that has just been written is not taken for unchanged"""
        with open(self.paths[name], 'wb') as file:
            file.write(content if isinstance(content, bytes) else content.encode())
        if age:
            os.utime(self.paths[name], (time.time() - age,) * 2)

    async def result(self, host, record_type):
        """The addresses as str, or the error"""
        try:
            return [str(address) for address in await self.resolve(host, record_type)]
        except Exception as error:
            error.came_at = asyncio.get_event_loop().time()
            return error.with_traceback(None)

    def close(self):
        for server in [self.server] + self.others:
            server.close()


class ResolverTestCase(AsyncTestCase):

    def setUp(self):
        super().setUp()
        self.scenes = []
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def tearDown(self):
        for scene in self.scenes:
            scene.close()
        super().tearDown()

    def scene(self, **kwargs):
        folder = os.path.join(self.folder, str(len(self.scenes)))
        os.mkdir(folder)
        self.scenes.append(Scene(folder, **kwargs))
        return self.scenes[-1]

    def started(self, **kwargs):
        return self.scene(**kwargs).start()

    def constant(self, name, value, module=lowhaio_names):
        patch = mock.patch.object(module, name, value)
        patch.start()
        self.addCleanup(patch.stop)

    def assert_gone(self, result, *reasons, seconds=5):
        """There is no such name, or record, for so long"""
        self.assertIsInstance(result, DnsRecordDoesNotExist)
        now = getattr(result, 'came_at', self.loop.time())
        self.assertAlmostEqual(result.expires_at - now, seconds, delta=min(seconds, 2) / 2)
        for reason in reasons:
            self.assertIn(reason, str(result))

    def assert_failed(self, result, *reasons):
        self.assertIs(type(result), DnsError)
        self.assertFalse(hasattr(result, 'expires_at'))
        for reason in reasons:
            self.assertIn(reason, str(result))

    async def plays(self, rows, seconds=5):
        """Each row, at the same time: (what, arguments of the scene, what is looked up and what must come of it, what
        the name servers are asked, what the system is asked). Several of one row are looked up together. In place of
        addresses: GONE or FAILED, with reasons"""
        async def play(what, arguments, look_ups, *asked):
            scene = self.started(**arguments)
            pairs = [look_up.rpartition(' ')[::2] for look_up in look_ups]
            results = await asyncio.gather(*[scene.result(host, TYPES[name]) for host, name in pairs])
            return what, look_ups.values(), results, asked, (scene.server.asked, scene.system.asked)

        for what, expected, results, asked, really_asked in await asyncio.gather(*[play(*row) for row in rows]):
            with self.subTest(what):
                for each, result in zip(expected, results):
                    if isinstance(each, list):
                        self.assertEqual(result, each)
                    else:
                        check = functools.partial(self.assert_gone, seconds=seconds) if each[0] is GONE else \
                            self.assert_failed
                        check(result, *each[1:])
                for questions, really in zip(asked, really_asked):
                    if isinstance(questions, set):
                        self.assertEqual(questions, set(really))
                    else:
                        self.assertEqual(sorted(questions), sorted(really))


GONE, FAILED = 'gone', 'failed'


@contextlib.contextmanager
def no_descriptors():
    """None can be opened meanwhile, whatever is closed"""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -------- Step 1: the hosts file


class HostsFileTests(ResolverTestCase):

    CONTENT = b'\n'.join([
        b'127.0.0.1\tlocalhost', b'', b'   ', b'# 127.0.9.1 www.test', b'127.0.0.2 www.test www # 127.0.9.2 www.test',
        b'127.0.9.3 xwww.test www.testx www.test.x www-www.test', b'www.test 127.0.9.4', b'127.0.9 www.test',
        b'127.0.9.005 www.test', b'fe80::1%lo0 www.test', b'<<<<<<< www.test', b'\xef\xbb\xbf127.0.9.6 www.test',
        b'127.0.9.7\xa0www.test', b'127.0.9.8 \xffwww.test', b'0x7f.0.0.1 www.test', b'127.0.0.3 WWW.Test',
        b'  ::2 \t other.test\tthird.test\vwww.test\r', b'127.0.0.4 www.test\rnot.test',
        b'127.0.0.5 www.test#', b'::3 www.test.',
        b'127.0.0.2 www.test', b'127.0.9.9 not\0 www.test', b'127.0.9.9.1 www.test', b'::g www.test',
        b'\xe9\xff\x80', b'127.0.0.6 caf\xe9.test cafe.test', b'127.0.0.7 www.test'])

    async def test_odd_lines_and_bytes_are_passed_over_and_all_addresses_come_in_the_order_of_the_lines(self):
        scene = self.started(hosts=self.CONTENT)
        for host in ('www.test', 'WWW.TEST', 'wWw.tesT', 'www.test.'):
            self.assertEqual(await scene.result(host, A),
                             ['127.0.0.2', '127.0.0.3', '127.0.0.4', '127.0.0.5', '127.0.0.7'])
            self.assertEqual(await scene.result(host, AAAA), ['::2', '::3'])
        for host, address in (('www', '127.0.0.2'), ('other.test', '::2'), ('third.test', '::2'),
                              ('not.test', '127.0.0.4'), ('cafe.test', '127.0.0.6'), ('www-www.test', '127.0.9.3'),
                              ('not', '127.0.9.9')):
            self.assertEqual(await scene.result(host, AAAA if ':' in address else A), [address])
        for host in ('127.0.0.2', 'test', 'ww', '#', 'fe80', 'caf\xe9.test'):
            self.assert_gone(await scene.result(host, A), 'no such name')

    async def test_a_name_that_is_in_it_is_asked_of_nobody_else(self):
        await self.plays([
            ('of the other family too', dict(hosts=b'127.0.0.2 four.test\n', nsswitch='hosts: files dns mdns\n'),
             {'four.test A': ['127.0.0.2'], 'four.test AAAA': (GONE, 'hosts file', 'IPv6')}, [], []),
            ('IPv6 alone', dict(hosts=b'::2 six.test\n', dns=silent),
             {'six.test A': (GONE, 'hosts file', 'IPv4'), 'six.test AAAA': ['::2']}, [], []),
            ('neither resolv.conf', dict(hosts=b'127.0.0.2 four.test\n', resolv_conf=''),
             {'four.test A': ['127.0.0.2']}, [], []),
        ], seconds=1)

    async def test_names_under_localhost_are_this_machine(self):
        for host in ('localhost', 'localhost.', 'LOCALHOST', 'a.localhost', 'a.b.localhost.'):
            scene = self.started(hosts=None, dns=found('127.0.9.9'))
            self.assertEqual([await scene.result(host, A), await scene.result(host, AAAA)], [['127.0.0.1'], ['::1']])
            self.assertEqual((scene.server.asked, scene.system.asked), ([], []))
        scene = self.started(hosts=b'127.0.0.2 localhost a.localhost\n', dns={'xlocalhost A': found('127.0.0.9')})
        self.assertEqual(await scene.result('localhost', A), ['127.0.0.2'])
        self.assertEqual(await scene.result('a.localhost', A), ['127.0.0.2'])
        self.assert_gone(await scene.result('localhost', AAAA), 'hosts file', seconds=1)
        self.assertEqual(await scene.result('xlocalhost', A), ['127.0.0.9'])

    async def test_addresses_are_ordered_and_stand_for_a_second(self):
        scene = self.started(hosts=b'127.0.0.2 www.test\n127.0.0.2 www.test\n')
        address, = await scene.resolve('www.test', A)
        self.assertIs(type(address), OrderedAddress)
        self.assertIs(address.is_ordered, True)
        self.assertEqual((address, str(address), hash(address)), ('127.0.0.2', '127.0.0.2', hash('127.0.0.2')))
        self.assertAlmostEqual(address.expires_at, self.loop.time() + 1, delta=0.5)

    async def test_it_is_read_again_when_it_changed_and_looked_at_once_a_second(self):
        self.constant('FILE_TTL', 0.2)
        scene = self.started(hosts=b'127.0.0.2 www.test\n', dns={'www.test A': found('127.0.0.9')})
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
        status = os.stat(scene.paths['hosts'])
        scene.write('hosts', b'127.0.0.3 www.test\n')  # as long as before, and within the same tick
        os.utime(scene.paths['hosts'], ns=(status.st_mtime_ns,) * 2)
        with mock.patch.object(os, 'stat', wraps=os.stat) as stat:
            began = self.loop.time()
            self.assertEqual([await scene.result('www.test', A) for _ in range(100)][0], ['127.0.0.2'])
            while await scene.result('www.test', A) == ['127.0.0.2']:
                await asyncio.sleep(0.01)
            looks = [call for call in stat.call_args_list if call[0] == (scene.paths['hosts'],)]
            self.assertLessEqual(len(looks), (self.loop.time() - began) / 0.2 + 1)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
        os.unlink(scene.paths['hosts'])
        await asyncio.sleep(0.25)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.9'])
        scene.write('hosts', b'127.0.0.4 www.test\n', age=1000)
        await asyncio.sleep(0.25)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.4'])
        with mock.patch('builtins.open', side_effect=AssertionError('read again')):
            await asyncio.sleep(0.25)
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.4'])

    async def test_a_long_one_costs_little(self):
        lines = [b'0.0.0.0 ad%d.tracker%d.test\n' % (i, i % 1000) for i in range(150000)]
        scene = self.started(hosts=b''.join(lines) + b'127.0.0.2 www.test\n')
        began = time.process_time()
        for _ in range(10):
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
        self.assertLess(time.process_time() - began, 0.5)


# -------- Step 2: the names that are asked for


class CandidateTests(unittest.TestCase):

    TABLE = (
        # resolv.conf, host, the names that are asked for
        ('', 'www.test', ['www.test']),
        ('', 'www', ['www']),
        ('search a.test b.test', 'www.test', ['www.test', 'www.test.a.test', 'www.test.b.test']),
        ('search a.test b.test', 'www', ['www.a.test', 'www.b.test', 'www']),
        ('search a.test b.test', 'www.', ['www']),
        ('search a.test b.test', 'www.test.', ['www.test']),
        ('domain a.test b.test', 'www', ['www.a.test', 'www']),
        ('domain a.test\nsearch b.test', 'www', ['www.b.test', 'www']),
        ('search a.test\ndomain b.test', 'www', ['www.b.test', 'www']),
        ('search a.test\nsearch b.test\n# search c.test\n;search d.test', 'www', ['www.b.test', 'www']),
        ('search a.test\nsearch', 'www', ['www']),
        ('search a.test.\toptions', 'www', ['www.a.test', 'www.options', 'www']),
        ('search .', 'www', ['www']),
        ('search . a.test', 'www', ['www', 'www.a.test']),
        ('search a.test a.test', 'www', ['www.a.test', 'www']),
        ('search a.test\noptions ndots:0', 'www', ['www', 'www.a.test']),
        ('search a.test\noptions ndots:2', 'www.test', ['www.test.a.test', 'www.test']),
        ('search a.test\noptions ndots:2', 'www.x.test', ['www.x.test', 'www.x.test.a.test']),
        ('search a.test\noptions rotate ndots:5 edns0', 'w.x.y.z.t', ['w.x.y.z.t.a.test', 'w.x.y.z.t']),
        ('search a.test\noptions ndots:5\noptions rotate', 'w.test', ['w.test.a.test', 'w.test']),
        ('search a.test\noptions ndots:99', 'a' + '.b' * 15, ['a' + '.b' * 15, 'a' + '.b' * 15 + '.a.test']),
        ('search a.test\noptions ndots:x ndots: ndots', 'w.test', ['w.test', 'w.test.a.test']),
        ('search a.test\n\xff\xfe', 'www', ['www.a.test', 'www']),
        ('options ndots:5', 'www', ['www']),
        # what no name server can have is not asked for
        ('search ' + '.'.join(['a' * 60] * 4), 'www.test.www', ['www.test.www']),
        ('search ' + '.'.join(['a' * 60] * 4), 'www.test', ['www.test', '.'.join(['www.test'] + ['a' * 60] * 4)]),
        ('', 'a' * 64, []),
        ('', 'a..b', []),
    )

    def test_they_are_asked_for_in_the_order_of_the_system(self):
        for content, host, expected in self.TABLE:
            with self.subTest((content, host)):
                config = lowhaio_names.parse_resolv_conf(content.encode('latin-1'))
                self.assertEqual(lowhaio_names.candidates(host, config.search, config.ndots), expected)

    def test_name_servers_are_the_ipv4_ones_of_the_first_three(self):
        for content, expected in (
                ('', ()), ('nameserver 127.0.0.1', ('127.0.0.1',)), ('nameserver\t127.0.0.1 # x', ('127.0.0.1',)),
                ('#nameserver 127.0.0.1\n;nameserver 127.0.0.1\nnameserver', ()),
                ('nameserver ::1\nnameserver 127.0.0.1', ('127.0.0.1',)),
                ('nameserver dns.test\nnameserver 127.1\nnameserver 127.0.0.1', ('127.0.0.1',)),
                ('\n'.join([f'nameserver 127.0.0.{i}' for i in range(1, 6)]), ('127.0.0.1', '127.0.0.2', '127.0.0.3'))):
            with self.subTest(content):
                self.assertEqual(lowhaio_names.parse_resolv_conf(content.encode()).servers, expected)

    def test_whether_the_system_may_know_more(self):
        for content, expected in (
                ('hosts: files dns', False), ('hosts: files dns myhostname', False), ('hosts:files', False),
                ('hosts: dns [!UNAVAIL=return] files', False), ('passwd: files sss\nhosts: files dns # mdns', False),
                ('hosts: files mdns4_minimal [NOTFOUND=return] dns', True), ('\thosts:\tfiles resolve dns', True),
                ('passwd: files', False), ('', False), ('# hosts: mdns\nhosts: files dns', False),
                ('hosts: files dns\nhosts: wins', True), ('\xffhosts: mdns', False)):
            with self.subTest(content):
                self.assertIs(lowhaio_names.parse_nsswitch_conf(content.encode('latin-1')), expected)


KUBERNETES = 'search shop.svc.cluster.test svc.cluster.test cluster.test\noptions ndots:5'


class QuickTestCase(ResolverTestCase):
    """Name servers that are silent take less time"""

    def setUp(self):
        super().setUp()
        self.constant('ATTEMPT', 0.2)
        self.constant('PATIENCE', 0.5)


class SearchTests(QuickTestCase):

    async def test_the_first_candidate_that_exists_ends_the_search(self):
        mine, strangers = 'orders.dev.shop.svc.cluster.test', 'orders.dev'
        stranger = {f'{strangers} A': found('127.0.9.9'), f'{strangers} AAAA': found('::9')}
        asked = [f'{mine} A', f'{mine} AAAA']
        all_asked = [f'orders.dev{domain} {name}' for name in ('A', 'AAAA') for domain in (
            '.shop.svc.cluster.test', '.svc.cluster.test', '.cluster.test', '')]
        an_alias = {f'{mine} A': alias('x.test'), f'{mine} AAAA': alias('x.test')}

        def row(what, zone, results, asked=asked, system=(), says=None):
            return (what, dict(options=KUBERNETES, dns=dict(stranger, **zone),
                               system=says or {strangers: ['127.0.9.9', '::9']}),
                    {f'{strangers} {name}': result for name, result in zip(('A', 'AAAA'), results)}, asked, system)

        await self.plays([
            row('both families', {f'{mine} A': found('127.0.0.2'), f'{mine} AAAA': found('::2')},
                (['127.0.0.2'], ['::2'])),
            row('IPv4 alone', {f'{mine} A': found('127.0.0.2'), f'{mine} AAAA': NO_RECORD},
                (['127.0.0.2'], (GONE, 'IPv4 addresses of it alone'))),
            row('IPv4 alone, and IPv6 is said not to exist', {f'{mine} A': found('127.0.0.2')},
                (['127.0.0.2'], (GONE, 'IPv4 addresses of it alone'))),
            row('IPv4 alone, which comes late', {f'{mine} A': late(0.1, found('127.0.0.2')), f'{mine} AAAA': NO_NAME},
                (['127.0.0.2'], (GONE, 'IPv4 addresses of it alone'))),
            row('IPv6 alone', {f'{mine} A': NO_RECORD, f'{mine} AAAA': found('::2')},
                ((GONE, 'no IPv4', 'the reason of the system'), ['::2']), system=[mine + '.']),
            row('IPv6 alone, and IPv4 is said not to exist', {f'{mine} AAAA': found('::2')},
                ((GONE, 'no IPv4', 'the reason of the system'), ['::2']), system=[mine + '.']),
            row('neither', {f'{mine} A': NO_RECORD, f'{mine} AAAA': NO_RECORD},
                ((GONE, 'no IPv4'), (GONE, 'no IPv6')), system=[mine + '.']),
            row('no records, IPv6 said not to exist', {f'{mine} A': NO_RECORD},
                ((GONE, 'no IPv4'), (GONE, 'no IPv6')), system=[mine + '.']),
            row('a failure beside IPv6', {f'{mine} A': SERVFAIL, f'{mine} AAAA': found('::2')},
                ((GONE, 'SERVFAIL', 'the reason of the system'), ['::2']), system=[mine + '.']),
            row('a failure beside no record', {f'{mine} A': SERVFAIL, f'{mine} AAAA': NO_RECORD},
                ((GONE, 'SERVFAIL', 'the reason of the system'), (GONE, 'no IPv6')), system=[mine + '.']),
            row('silence beside no record', {f'{mine} A': silent, f'{mine} AAAA': NO_RECORD},
                ((GONE, 'did not answer', 'the reason of the system'), (GONE, 'no IPv6')),
                asked={f'{mine} AAAA', f'{mine} A'}, system=[mine + '.']),
            row('cut short, and the system has it whole', {f'{mine} A': truncated, f'{mine} AAAA': NO_RECORD},
                (['127.0.0.2'], (GONE, 'no IPv6')), system=[mine + '.'], says={mine + '.': ['127.0.0.2']}),
            row('an alias', dict(an_alias, **{'x.test A': found('127.0.0.2'), 'x.test AAAA': NO_RECORD}),
                (['127.0.0.2'], (GONE, 'IPv4 addresses of it alone')), asked=asked + ['x.test A', 'x.test AAAA']),
            row('an alias of a name that it does not know', an_alias, (['127.0.0.2'], ['::2']),
                asked=asked + ['x.test A', 'x.test AAAA'],
                system=[mine + '.'], says={mine + '.': ['127.0.0.2', '::2']}),
            row('the second candidate', {'orders.dev.svc.cluster.test A': found('127.0.0.2'),
                                         'orders.dev.svc.cluster.test AAAA': NO_RECORD},
                (['127.0.0.2'], (GONE, 'IPv4 addresses of it alone')),
                asked=asked + ['orders.dev.svc.cluster.test A', 'orders.dev.svc.cluster.test AAAA']),
            row('a failure of both: the system knows whether to search on',
                {f'{mine} A': SERVFAIL, f'{mine} AAAA': SERVFAIL}, (['127.0.0.8'], (GONE, 'SERVFAIL')),
                system=[strangers], says={strangers: ['127.0.0.8']}),
            row('the last, IPv6 alone, and IPv4 is said not to exist', {f'{strangers} A': NO_NAME},
                ((GONE, 'no such name'), ['::9']), asked=all_asked),
            row('none: then it is the stranger who is meant', {}, (['127.0.9.9'], ['::9']), asked=all_asked),
        ])

    async def test_ipv6_that_is_not_answered_holds_a_search_up_by_a_quarter_of_a_second_a_name(self):
        self.constant('PATIENCE', PATIENCE)
        def zone(query):
            return silent(query) if query.record_type == AAAA else \
                found('127.0.0.2')(query) if query.name == 'www.test' else NO_NAME(query)

        scene = self.started(options='search a.test b.test\noptions ndots:2', dns=zone)
        began = self.loop.time()
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
        self.assertTrue(0.45 < self.loop.time() - began < 1.5)

    async def test_a_dot_at_the_end_means_no_list(self):
        dns = {'www.test A': found('127.0.0.2'), 'www.test.a.test A': found('127.0.0.3')}
        await self.plays([
            ('without', dict(options='search a.test\noptions ndots:2', dns=dns), {'www.test A': ['127.0.0.3']},
             ['www.test.a.test A'], []),
            ('with', dict(options='search a.test\noptions ndots:2', dns=dns), {'www.test. A': ['127.0.0.2']},
             ['www.test A'], []),
            ('with, and failing', dict(options='search a.test\noptions ndots:2', dns=SERVFAIL,
                                       system={'www.test.': ['127.0.0.4']}),
             {'www.test. A': ['127.0.0.4']}, ['www.test A'], ['www.test.']),
        ])

    async def test_resolv_conf_is_read_again_when_it_changed(self):
        self.constant('FILE_TTL', 0.1)
        scene = self.started(more_servers=[(2, found('127.0.0.4'))], dns={
            'www A': found('127.0.0.2'), 'www.a.test A': found('127.0.0.3')})
        self.assertEqual(await scene.result('www', A), ['127.0.0.2'])
        for content, expected in (('nameserver 127.0.0.1\nsearch a.test', '127.0.0.3'),
                                  ('nameserver 127.0.0.2', '127.0.0.4')):
            scene.write('resolv_conf', content)
            await asyncio.sleep(0.15)
            self.assertEqual(await scene.result('www', A), [expected])


# -------- Step 3: the system


class SystemTests(QuickTestCase):

    async def test_when_it_is_asked(self):
        here, more = {'www.test': ['127.0.0.3', '::3'], 'www.test.': ['127.0.0.4', '::4']}, 'hosts: files mdns dns\n'
        four, six = 'www.test A', 'www.test AAAA'

        def row(what, zone, four_is, six_is, asked=(four, six), system=('www.test',), says=here, **kwargs):
            return (what, dict(dict(dns=zone, system=says), **kwargs), {four: four_is, six: six_is}, asked, system)

        await self.plays([
            row('not where the name servers have it', {four: found('127.0.0.2'), six: found('::2')},
                ['127.0.0.2'], ['::2'], system=[], nsswitch=more),
            row('not where they have IPv4 alone', {four: found('127.0.0.2'), six: NO_RECORD},
                ['127.0.0.2'], (GONE, 'alone'), system=[], nsswitch=more),
            row('where they have IPv6 alone: it looks like one that is cut short', {four: NO_RECORD, six: found('::2')},
                ['127.0.0.4'], ['::2'], system=['www.test.']),
            row('where they have neither', {four: NO_RECORD, six: NO_RECORD}, ['127.0.0.4'], ['::4'],
                system=['www.test.']),
            row('where they say SERVFAIL', SERVFAIL, ['127.0.0.3'], ['::3']),
            row('where they say REFUSED', REFUSED, ['127.0.0.3'], ['::3']),
            row('where they fail for one family', {four: SERVFAIL, six: found('::2')}, ['127.0.0.3'], ['::2']),
            row('where they are silent', silent, ['127.0.0.3'], ['::3'], asked={four, six}),
            row('where they are silent for one family', {four: silent, six: found('::2')}, ['127.0.0.4'], ['::2'],
                asked={four, six}, system=['www.test.']),
            row('where an answer is cut short', truncated, ['127.0.0.4'], ['::4'], system=['www.test.']),
            row('where an answer is over 512 bytes', {four: found(*MANY), six: found('::2')}, ['127.0.0.4'], ['::2'],
                asked={four, six}, system=['www.test.']),
            row('where an answer is malformed', {four: malformed, six: found('::2')}, ['127.0.0.4'], ['::2'],
                asked={four, six}, system=['www.test.']),
            row('where an address is', {four: short_address, six: found('::2')}, ['127.0.0.3'], ['::2']),
            row('where the question comes back in lower case', other_case(found('127.0.0.2')), ['127.0.0.3'], ['::3'],
                asked={four, six}),
            row('where there is an alias that they do not know', {four: alias('x.test', '127.0.0.2'),
                                                                  six: alias('x.test')}, ['127.0.0.4'], ['::4'],
                asked=[four, six, 'x.test A', 'x.test AAAA'], system=['www.test.']),
            row('where an alias is of itself', {four: alias('www.test'), six: found('::2')}, ['127.0.0.3'], ['::2'],
                asked=[four, six]),
            row('where there is no resolv.conf', {}, ['127.0.0.3'], ['::3'], asked=[], resolv_conf=''),
            row('where the name server is IPv6', {}, ['127.0.0.3'], ['::3'], asked=[], servers=['::1']),
            row('not after "no such name" where it has no other sources', {}, (GONE, 'no such name'),
                (GONE, 'no such name'), system=[]),
            row('after "no such name" where it has', {}, ['127.0.0.3'], ['::3'], nsswitch=more),
            row('after "no such name" where there is no nsswitch.conf', {}, ['127.0.0.3'], ['::3'], nsswitch=None),
            row('after "no such name", and it has none either', {}, (GONE, 'no such name', 'the reason of the system'),
                (GONE,), nsswitch=more, says={}),
            row('after "no such name", and it fails', {}, (GONE, 'no such name', 'the reason of the system'), (GONE,),
                system={'www.test'}, nsswitch=more, says={'www.test': socket.EAI_AGAIN}),
            row('after a failure, and it has none', SERVFAIL, (GONE, 'SERVFAIL', 'the reason of the system'), (GONE,),
                says={}),
            row('after a failure, and it has the other family', SERVFAIL, (GONE, 'SERVFAIL', 'no IPv4'), ['::3'],
                says={'www.test': ['::3']}),
            row('after a failure, and it has an address of one link alone', SERVFAIL, (GONE, 'SERVFAIL', 'no IPv4'),
                (GONE, 'SERVFAIL', 'no IPv6'), says={'www.test': ['fe80::1%eth0']}),
            row('after a failure, and there is no name for it', SERVFAIL, (GONE, 'no name that the system'), (GONE,),
                says={'www.test': UnicodeError('long')}),
        ])

    async def test_reasons_are_sentences_of_both(self):
        again = {'www.test': socket.EAI_AGAIN}
        four = {'www.test A': None}
        system = 'the system said: the reason of the system'
        rows = [
            (what, dict(dict(dns=zone, system=again), **arguments), {'www.test A': (FAILED, reason, system)}, asked,
             ['www.test'])
            for what, zone, arguments, reason, asked in (
                ('SERVFAIL', SERVFAIL, {}, 'the name server said SERVFAIL; ', list(four)),
                ('REFUSED', REFUSED, {}, 'the name server said REFUSED; ', list(four)),
                ('another code', says(11), {}, 'the name server said RCODE 11; ', list(four)),
                ('silence', silent, {}, 'the name servers did not answer, or not to', list(four) * 5),
                ('malformed', malformed, {}, 'an answer of the name server is malformed, or longer', list(four) * 5),
                ('an alias of itself', alias('www.test'), {}, 'too long a chain of aliases', list(four)),
                ('no name server', {}, dict(resolv_conf=''), 'resolv.conf names no name server', []),
                ('no route', {}, dict(servers=['0.0.0.0.0', '255.255.255.255']),
                 'the name servers could not be reached: ', []),
            )]
        await self.plays(rows)

    async def test_what_else_the_system_may_say(self):
        await self.plays([
            ('an error of the system', dict(dns=SERVFAIL, system={'www.test': OSError(errno.EIO, 'of the disk')}),
             {'www.test A': (FAILED, 'SERVFAIL; the system could not be asked: of the disk')}, ['www.test A'],
             ['www.test']),
            ('something unheard of', dict(dns=SERVFAIL, system={'www.test': RuntimeError()}),
             {'www.test A': (FAILED, 'SERVFAIL; the system could not be asked: RuntimeError')}, ['www.test A'],
             ['www.test']),
        ])

    async def test_the_name_servers_are_heard_still_while_the_system_is_asked(self):
        event = threading.Event()
        scene = self.started(dns={'www.test A': [silent, silent, silent, found('127.0.0.2')], 'www.test AAAA': silent},
                             system={'www.test': lambda: event.wait(PATIENCE) and ['127.0.0.3']})
        try:
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
            self.assertEqual(scene.system.asked, ['www.test'])
        finally:
            event.set()
        # A word of the other family alone, in the mean time.
        zone = {'www.test A': [silent, silent, silent, found('127.0.0.2')], 'www.test AAAA': NO_RECORD}
        scene = self.started(dns=zone, system={'www.test.': lambda: later.wait(PATIENCE) and []})
        later = threading.Event()
        try:
            four, six = await asyncio.gather(scene.result('www.test', A), scene.result('www.test', AAAA))
            self.assertEqual(four, ['127.0.0.2'])
            self.assert_gone(six, 'alone')
        finally:
            later.set()

    async def test_what_it_says_stands_for_five_seconds_and_a_failure_does_not(self):
        self.constant('TTL', 0.3)
        scene = self.started(dns=SERVFAIL, system={'www.test': ['127.0.0.3', '127.0.0.2', '127.0.0.3', '::3'],
                                                   'fails.test': socket.EAI_AGAIN})
        for record_type, expected in ((A, ['127.0.0.3', '127.0.0.2']), (AAAA, ['::3'])):
            addresses = await scene.resolve('www.test', record_type)
            self.assertEqual(list(addresses), expected)
            for address in addresses:
                self.assertIs(address.is_ordered, True)
                self.assertTrue(0 < address.expires_at - self.loop.time() <= 0.3)
        self.assertEqual(scene.system.asked, ['www.test'])
        await asyncio.sleep(0.35)
        await scene.resolve('www.test', A)
        self.assertEqual(scene.system.asked, ['www.test'] * 2)
        await scene.clear_cache()
        await scene.resolve('www.test', A)
        self.assertEqual(scene.system.asked, ['www.test'] * 3)
        for _ in range(2):
            self.assert_failed(await scene.result('fails.test', A), 'SERVFAIL')
        self.assertEqual(scene.system.asked[3:], ['fails.test'] * 2)

    async def test_it_alone_is_asked_for_a_while_where_the_name_servers_are_deaf(self):
        self.constant('SYSTEM_ALONE', 0.5)

        async def play(first):
            scene = self.started(dns=silent, system={
                'www.test': ['127.0.0.3'], 'none.test': socket.EAI_NONAME, 'fails.test': socket.EAI_AGAIN})
            await scene.result(first, A)
            asked = list(scene.server.asked)
            self.assertEqual(set(asked), {f'{first} A'})
            began = self.loop.time()
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
            self.assert_gone(await scene.result('none.test', A), 'the reason of the system')
            self.assert_failed(await scene.result('fails.test', A), 'name servers have not answered',
                               'the reason of the system')
            self.assertLess(self.loop.time() - began, 0.4)
            self.assertEqual(scene.server.asked, asked)
            await asyncio.sleep(0.5)  # and it is not renewed by what the system said meanwhile
            scene.server.zone = found('127.0.0.2')
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])

        # Of a name that there is not, too: the system waits for nobody to know it.
        await asyncio.gather(play('www.test'), play('none.test'))

    async def test_it_is_not_asked_alone_where_a_name_server_has_said_anything(self):
        async def play(zone, system, alone):
            scene = self.started(dns=zone, system=dict({'www.test': ['127.0.0.3']}, **system))
            await asyncio.gather(scene.result('www.test', A), scene.result('www.test', AAAA))
            scene.server.zone = found('127.0.0.2')
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.3' if alone else '127.0.0.2'])

        four, six = 'www.test A', 'www.test AAAA'
        await asyncio.gather(*[play(*row) for row in (
            (silent, {}, True), (other_case(NO_NAME), {}, True),
            (silent, {'www.test': socket.EAI_AGAIN}, False),
            ({four: silent, six: found('::2')}, {}, False), ({four: silent, six: NO_RECORD}, {}, False),
            ({four: silent, six: NO_NAME}, {}, False), ({four: silent, six: SERVFAIL}, {}, False),
            (SERVFAIL, {}, False),
            )] + [
            self.another_resolv_conf_ends_it()])

    async def another_resolv_conf_ends_it(self):
        scene = self.started(dns=silent, system={'www.test': ['127.0.0.3']}, more_servers=[(2, found('127.0.0.2'))])
        await scene.result('www.test', A)
        scene.write('resolv_conf', 'nameserver 127.0.0.2')
        await asyncio.sleep(1.1)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])

    async def test_where_nobody_could_be_asked_a_mended_file_counts_at_once(self):
        self.constant('FILE_TTL', 0.05)
        scene = self.started(dns=found('127.0.0.2'), system={'www.test': ['127.0.0.3']})
        with mock.patch.object(lowhaio_names, 'Resolver', side_effect=ValueError('of a line')) as made:
            for _ in range(3):
                self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
            self.assertEqual(made.call_count, 1)
            scene.system.names.clear()
            await scene.clear_cache()
            self.assert_gone(await scene.result('www.test', A), 'aiodnsresolver could not be made: of a line')
        scene.write('hosts', b'\n')
        await asyncio.sleep(0.1)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])


class NameServerTests(QuickTestCase):

    seconds_of_patience = lowhaio_names.PATIENCE

    async def test_addresses_are_theirs_with_the_time_that_they_tell(self):
        scene = self.started(dns={'www.test A': found('127.0.0.3', '127.0.0.2', '127.0.0.3', ttl=7)})
        addresses = await scene.resolve('www.test', A)
        self.assertEqual([str(address) for address in addresses], ['127.0.0.3', '127.0.0.2'])
        for address in addresses:
            self.assertFalse(hasattr(address, 'is_ordered'))
            self.assertAlmostEqual(address.expires_at, self.loop.time() + 7, delta=1)

    async def test_twenty_at_once_are_one_question(self):
        scene = self.started(dns={'www.test A': late(0.1, found('127.0.0.2')), 'www.test AAAA': NO_RECORD})
        results = await asyncio.gather(*[scene.result('www.test', A if i % 2 else AAAA) for i in range(20)])
        self.assertEqual(results[1::2], [['127.0.0.2']] * 10)
        self.assertEqual(len({id(error) for error in results[::2]}), 10)
        self.assertEqual(sorted(scene.server.asked), ['www.test A', 'www.test AAAA'])

    async def test_of_two_one_may_be_dead_or_fail(self):
        async def play(first, system_asked):
            scene = self.started(servers=['127.0.0.1', '127.0.0.2'], dns=first, more_servers=[(2, found('127.0.0.2'))])
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
            self.assertEqual((len(scene.server.asked), len(scene.others[0].asked)), (1, 1))
            self.assertEqual(scene.system.asked, system_asked)

        await asyncio.gather(*[play(first, []) for first in (silent, SERVFAIL, REFUSED, malformed)])
        scene = self.started(servers=['127.0.0.3', '127.0.0.1'], dns=found('127.0.0.2'))  # nobody listens at the first
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])

    async def test_the_system_is_asked_after_a_second_of_silence(self):
        self.constant('ATTEMPT', 0.5)
        self.constant('PATIENCE', type(self).seconds_of_patience)
        scene = self.started(dns=silent, system={'www.test': ['127.0.0.3']})
        began = self.loop.time()
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
        self.assertTrue(0.95 < self.loop.time() - began < 2)

    async def test_a_lost_packet_is_asked_again(self):
        scene = self.started(dns={'www.test A': [silent, found('127.0.0.2')]})
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
        self.assertEqual((scene.server.asked, scene.system.asked), (['www.test A'] * 2, []))

    async def test_chains_of_aliases(self):
        scene = self.started(dns={'a.test A': alias('b.test'), 'b.test A': alias('C.Test', '127.0.0.2'),
                                  'c.test A': found('127.0.0.2')})
        self.assertEqual(await scene.result('a.test', A), ['127.0.0.2'])
        self.assertEqual(scene.server.asked, ['a.test A', 'b.test A', 'c.test A'])

    async def test_a_name_that_stopped_to_exist_exists_again(self):
        scene = self.started(dns={'www.test A': [NO_NAME, found('127.0.0.2')]})
        self.assert_gone(await scene.result('www.test', A))
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])

    async def test_a_name_that_cannot_be(self):
        scene = self.started(nsswitch='hosts: files mdns\n')
        for host in ('a' * 64, 'a..b', '.'.join(['a' * 60] * 5)):
            self.assert_gone(await scene.result(host, A), 'no name that a name server may have', 'the system')
        self.assertEqual(scene.server.asked, [])

    async def test_nothing_is_kept_that_grows_or_ticks(self):
        self.constant('MAX_REMEMBERED', 16, lowhaio)
        self.constant('MAX_THREADS', 100)
        scene = self.started(dns=lambda query: (found('127.0.0.2', ttl=3600) if query.name < 'n3' else SERVFAIL)(query))
        before = self._readers_and_timers()
        for first in range(0, 500, 50):
            await asyncio.gather(*[scene.result(f'n{i}.test', A) for i in range(first, first + 50)])
        await turns()
        gc.collect()
        self.assertLess(sum([isinstance(value, lowhaio_names.Word) for value in gc.get_objects()]), 100)
        self.assertEqual(self._readers_and_timers(), before)

    async def test_no_async_generator_is_left_for_the_loop_to_close(self):
        begun = []
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=begun.append)
        try:
            scene = self.started(dns={'www.test A': found('127.0.0.2')})
            self.assertEqual(await scene.result('www.test', A), ['127.0.0.2'])
        finally:
            sys.set_asyncgen_hooks(*hooks)
        self.assertEqual(begun, [])

    async def test_an_error_is_freed_at_once(self):
        scene = self.started(dns={'b.test A': SERVFAIL, 'c.test A': NO_RECORD}, system={'b.test': socket.EAI_AGAIN})
        for host in ('a.test', 'b.test', 'c.test'):
            gc.collect()
            gc.disable()
            try:
                error = None
                try:
                    await scene.resolve(host, A)
                except DnsError as caught:
                    reference = weakref.ref(caught)
                await turns()
                self.assertIsNone(reference(), error)
            finally:
                gc.enable()

    async def test_nothing_is_printed_where_logging_is_not_set_up(self):
        scene = self.started(dns={'www.test A': SERVFAIL, 'b.test A': truncated})
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            logging.getLogger('lowhaio-test').warning('to see that it is not set up')
            self.assertIn('to see that', printed.getvalue())
            await scene.result('www.test', A)
            await scene.result('b.test', A)
            self.assertEqual(printed.getvalue().count('\n'), 1)
        with self.assertLogs('aiodnsresolver', logging.WARNING):  # and all is said where it is
            await scene.result('www.test', A)


# -------- Threads, descriptors, cancellation


class Blocking:
    """A system that answers when it is told to, and counts"""

    def __init__(self):
        self.lock = threading.Lock()
        self.now = self.most = self.count = 0
        self.go = threading.Event()
        self.threads = []

    def __call__(self, host, port, **kwargs):
        self.threads.append(threading.current_thread())
        with self.lock:
            self.now += 1
            self.count += 1
            self.most = max(self.most, self.now)
        self.go.wait(PATIENCE)
        with self.lock:
            self.now -= 1
        return FakeSystem({host: ['127.0.0.3']})(host, port, **kwargs)


class ThreadTests(ResolverTestCase):

    async def wait_for(self, condition):
        while not condition():
            await asyncio.sleep(0.005)

    async def test_at_most_eight_and_the_others_follow(self):
        system = Blocking()
        resolve, _ = system_resolver(system)
        tasks = [self.loop.create_task(resolve(f'n{i // 2}.test', A)) for i in range(60)]
        await self.wait_for(lambda: system.now == 8)
        for task in tasks[2:16]:  # seven whose threads go on: their slots are not free yet
            task.cancel()
        for task in tasks[40:60]:  # ten that have no thread, and need none any more
            task.cancel()
        tasks[16].cancel()  # the name is waited for still, by the next
        await asyncio.sleep(0.05)
        self.assertEqual(system.now, 8)
        system.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        cancelled = {i for i, result in enumerate(results) if isinstance(result, asyncio.CancelledError)}
        self.assertEqual(cancelled, set(range(2, 17)) | set(range(40, 60)))
        self.assertEqual({result for i, result in enumerate(results) if i not in cancelled}, {('127.0.0.3',)})
        self.assertEqual((system.most, system.count), (8, 20))

    async def test_a_definite_no_does_not_wait_for_a_thread(self):
        system = Blocking()
        scene = self.scene(nsswitch='hosts: files mdns\n', dns=lambda query: (
            SERVFAIL if query.name.startswith('n') else NO_NAME)(query))
        scene.get_dns_resolver.keywords['getaddrinfo'] = lambda host, port, **kwargs: (
            FakeSystem() if host.startswith('gone') else system)(host, port, **kwargs)
        scene.start()
        tasks = [self.loop.create_task(scene.result(f'n{i}.test', A)) for i in range(7)]
        await self.wait_for(lambda: system.now == 7)
        self.assert_gone(await scene.result('gone.test', A), 'no such name', 'the reason of the system')
        tasks.append(self.loop.create_task(scene.result('n7.test', A)))
        await self.wait_for(lambda: system.now == 8)
        self.assert_gone(await scene.result('gone1.test', A), 'no such name', 'busy', seconds=1)
        # Nor with one of the same name that waits for a thread.
        tasks.append(self.loop.create_task(scene.result('n8.test', A)))
        await self.wait_for(lambda: 'n8.test A' in scene.server.asked)
        await asyncio.sleep(0.1)
        scene.server.zone = NO_NAME
        self.assert_gone(await scene.result('n8.test', A), 'no such name', 'busy', seconds=1)
        system.go.set()
        self.assertEqual(await asyncio.gather(*tasks), [['127.0.0.3']] * 9)

    async def test_both_families_are_one_question(self):
        system = FakeSystem({'www.test': ['127.0.0.3', '::3']})
        resolve, clear_cache = system_resolver(system)
        self.assertEqual(await asyncio.gather(resolve('www.test', A), resolve('www.test', AAAA)),
                         [('127.0.0.3',), ('::3',)])
        self.assertEqual(system.asked, ['www.test'])
        await clear_cache()

    async def test_waiters_survive_a_cleared_cache(self):
        self.constant('MAX_THREADS', 1)
        system = Blocking()
        resolve, clear_cache = system_resolver(system)
        tasks = []
        for host in ('a.test', 'b.test', 'b.test', 'a.test'):
            tasks.append(self.loop.create_task(resolve(host, A)))
            await turns()
            await clear_cache()
        system.go.set()
        self.assertEqual(await asyncio.gather(*tasks), [('127.0.0.3',)] * 4)
        self.assertEqual((system.most, system.count), (1, 3))

    async def test_where_no_thread_can_be_started(self):
        resolve, _ = system_resolver(FakeSystem({'www.test': ['127.0.0.3']}))
        with mock.patch.object(threading.Thread, 'start', side_effect=RuntimeError("can't start new thread")):
            for _ in range(20):
                error = await self.raises(DnsError, resolve('www.test', A))
                self.assertIn("the system could not be asked: can't start new thread", str(error))
        self.assertEqual(await resolve('www.test', A), ('127.0.0.3',))

    async def test_the_system_alone_is_asked_every_name(self):
        system = FakeSystem({'localhost': ['127.0.0.3'], 'www.test.': ['127.0.0.4']})
        resolve, _ = system_resolver(system)
        self.assertEqual(await resolve('localhost', A), ('127.0.0.3',))
        self.assertEqual(await resolve('www.test.', A), ('127.0.0.4',))
        error = await self.raises(DnsRecordDoesNotExist, resolve('none.test', A))
        self.assert_gone(error, 'the system said')
        error = await self.raises(DnsNoMatchingAnswers, resolve('www.test.', AAAA))
        self.assert_gone(error, 'the system has no IPv6 address of it')
        self.assertEqual(system.asked, ['localhost', 'www.test.', 'none.test'])

    async def test_the_real_system(self):
        resolve, _ = system_resolver()
        self.assertIn('127.0.0.1', await resolve('localhost', A))
        await self.raises(DnsRecordDoesNotExist, resolve('a' * 64, A))

    def test_a_thread_does_not_mind_a_closed_loop(self):
        async def main():
            resolve, _ = system_resolver(system)
            task = loop.create_task(resolve('www.test', A))
            await self.wait_for(lambda: system.now)
            task.cancel()
            await asyncio.wait([task])

        system = Blocking()
        loop = new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            system.go.set()
            system.threads[0].join(PATIENCE)
        self.assertEqual(printed.getvalue(), '')

    def test_a_thread_does_not_hold_up_the_end(self):
        began = time.monotonic()
        output = subprocess.run([sys.executable, '-W', 'error', '-c', textwrap.dedent('''
            import asyncio, time
            import lowhaio_names
            from aiodnsresolver import TYPES

            def slow(*args, **kwargs):
                time.sleep(60)

            async def main():
                resolve, _ = lowhaio_names.system_resolver(slow)
                task = asyncio.get_event_loop().create_task(resolve('www.test', TYPES.A))
                await asyncio.wait([task], timeout=0.1)
                task.cancel()
                await asyncio.wait([task])

            loop = asyncio.new_event_loop()
            loop.run_until_complete(main())
            loop.close()
            print('ended')
        ''')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=PATIENCE)
        self.assertEqual((output.stdout, output.stderr), (b'ended\n', b''))
        self.assertLess(time.monotonic() - began, 20)


class ResolverExhaustionTests(ResolverTestCase):

    async def exhausted(self, awaitable, begin=lambda: None):
        """Is given up for want of descriptors"""
        with no_descriptors():
            begin()
            error = await asyncio.wait_for(asyncio.gather(awaitable, return_exceptions=True), PATIENCE)
        self.assertIsInstance(error[0], OSError)
        self.assertEqual(error[0].errno, errno.EMFILE)
        self.assertNotIsInstance(error[0], DnsError)

    async def test_each_step_says_so_and_works_afterwards(self):
        # What has been read before the descriptors run out: first nothing, then one step more each time.
        self.constant('FILE_TTL', 0.01)
        scene = self.started(hosts=b'127.0.0.2 here.test\n', nsswitch='hosts: files mdns\n', dns={
            'www.test A': found('127.0.0.3'), 'fails.test A': SERVFAIL}, system={'fails.test': ['127.0.0.4']})
        await self.exhausted(scene.resolve('here.test', A))
        self.assertEqual(await scene.result('here.test', A), ['127.0.0.2'])
        await self.exhausted(scene.resolve('www.test', A))  # resolv.conf
        with mock.patch.object(lowhaio_names, 'Resolver', side_effect=OSError(errno.ENFILE, 'of the system')):
            error = await scene.result('www.test', A)
            self.assertEqual((type(error), error.errno), (OSError, errno.ENFILE))
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
        await self.exhausted(scene.resolve('www.test', A))  # aiodnsresolver's socket
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.3'])
        self.assertEqual(await scene.result('fails.test', A), ['127.0.0.4'])
        scene.write('hosts', b'127.0.0.9 here.test\n')
        with no_descriptors():
            await asyncio.sleep(0.05)
            self.assertEqual(await scene.result('here.test', A), ['127.0.0.2'])  # what was read last stands
        await asyncio.sleep(0.05)
        self.assertEqual(await scene.result('here.test', A), ['127.0.0.9'])

    async def test_a_family_that_could_not_be_asked_is_no_leave_to_search_on(self):
        def without_descriptors(get_host, **kwargs):
            async def resolve(name, record_type):
                asked.append(name)
                await get_host(None, name.encode(), record_type)
                raise OSError(errno.EMFILE, 'of AAAA') if record_type == AAAA else DnsRecordDoesNotExist()

            async def clear_cache():
                pass

            return resolve, clear_cache

        asked = []
        scene = self.started(options='search a.test')
        with mock.patch.object(lowhaio_names, 'Resolver', without_descriptors):
            error = await scene.result('www', A)
        self.assertEqual((type(error), error.errno), (OSError, errno.EMFILE))
        self.assertEqual(set(asked), {'www.a.test'})

    async def test_nsswitch_conf(self):
        scene = self.started()
        self.constant('ATTEMPT', PATIENCE)
        self.constant('PATIENCE', PATIENCE)
        asked = threading.Event()
        go = threading.Event()
        scene.server.zone = lambda query: asked.set() or go.wait(PATIENCE) and NO_NAME(query)
        task = self.loop.create_task(scene.resolve('none.test', A))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        await self.exhausted(task, go.set)
        self.assert_gone(await scene.result('none.test', A))

    async def test_the_system(self):
        system = FakeSystem({'www.test': ['127.0.0.3']})
        resolve, _ = system_resolver(system)
        await self.exhausted(resolve('www.test', A))
        self.assertEqual(system.asked, [])
        self.assertEqual(await resolve('www.test', A), ('127.0.0.3',))
        resolve, _ = system_resolver()
        await self.exhausted(resolve('none.test', A))

    async def test_the_system_that_takes_it_for_no_such_name(self):
        for code in (socket.EAI_NONAME, socket.EAI_AGAIN):
            stack = contextlib.ExitStack()

            def getaddrinfo(*args, code=code, stack=stack, **kwargs):
                stack.enter_context(no_descriptors())
                raise socket.gaierror(code, 'the reason of the system')

            for scene in (None, self.scene(dns=SERVFAIL), self.scene(nsswitch='hosts: files mdns\n')):
                if scene is None:
                    resolve, _ = system_resolver(getaddrinfo)
                else:
                    scene.get_dns_resolver.keywords['getaddrinfo'] = getaddrinfo
                    resolve = scene.start().resolve
                try:
                    error, = await asyncio.gather(resolve('www.test', A), return_exceptions=True)
                finally:
                    stack.close()
                self.assertEqual((type(error), error.errno), (OSError, errno.EMFILE))


class ResolverCancellationTests(ResolverTestCase):

    async def test_at_any_moment(self):
        self.constant('ATTEMPT', 0.02)
        self.constant('PATIENCE', 0.03)
        self.constant('TTL', 0.05)
        self.constant('SYSTEM_ALONE', 0.05)
        choose = random.Random(5)

        def zone(query):
            return choose.choice([silent, found('127.0.0.2'), NO_RECORD, NO_NAME, SERVFAIL, alias('www.test')])(query)

        def system():
            time.sleep(choose.random() * 0.02)
            return choose.choice([['127.0.0.3'], [], socket.EAI_NONAME, socket.EAI_AGAIN])

        hosts = ['www.test', 'b.test', 'c.test']
        scene = self.started(dns=zone, options='search a.test', nsswitch=None, system={
            name: system for host in hosts for name in (host, host + '.', host + '.a.test.')})
        tasks, timers = [], []
        for _ in range(300):
            task = self.loop.create_task(scene.result(choose.choice(hosts), choose.choice((A, AAAA))))
            timers.append(self.loop.call_later(choose.random() * 0.06, task.cancel))
            if choose.random() < 0.1:
                await scene.clear_cache()
            tasks.append(task)
            await asyncio.sleep(choose.random() * 0.004)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for timer in timers:
            timer.cancel()
        kinds = {type(result) for result in results}
        self.assertTrue({asyncio.CancelledError, list} <= kinds <= {
            asyncio.CancelledError, list, DnsError, DnsRecordDoesNotExist, DnsNoMatchingAnswers}, kinds)
        self.assertEqual(await asyncio.gather(*[self.again(scene, host) for host in hosts]), [None] * 3)

    async def again(self, scene, host):
        """Every name can be looked up still"""
        while not isinstance(await scene.result(host, A), list):
            pass

    async def test_the_first_of_two_takes_nothing_from_the_second(self):
        scene = self.started(dns={'www.test A': late(0.2, found('127.0.0.2'))})
        first, second = [self.loop.create_task(scene.resolve('www.test', A)) for _ in range(2)]
        await asyncio.sleep(0.1)
        first.cancel()
        self.assertEqual([str(address) for address in await second], ['127.0.0.2'])
        self.assertEqual(scene.server.asked, ['www.test A'])

    async def test_one_that_is_taken_for_a_time_out_is_said_again(self):
        async def deaf():
            for _ in range(2):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(PATIENCE)
            await asyncio.sleep(PATIENCE)

        task = self.loop.create_task(deaf())
        await turns()
        began = self.loop.time()
        await lowhaio_names.ended([task])
        self.assertTrue(task.cancelled())
        self.assertLess(self.loop.time() - began, 5)

    async def test_the_task_itself_is_not_cancelled_by_a_time_out(self):
        self.constant('ATTEMPT', 0.02)
        scene = self.started(dns=silent)
        self.assert_gone(await scene.result('www.test', A))
        task = current_task()
        self.assertEqual(task.cancelling() if hasattr(task, 'cancelling') else 0, 0)


class PoolTests(ResolverTestCase):

    def serve_ok(self):
        def script(peer):
            while peer.read_head():
                peer.send(OK_EMPTY)
        return self.serve(script)

    async def test_a_pool_finds_what_each_of_the_three_knows(self):
        scene = self.scene(hosts=b'127.0.0.1 hosts.test\nodd\n', dns={
            'dns.test A': found('127.0.0.1'), 'system.test A': SERVFAIL}, system={'system.test': ['127.0.0.1']})
        port = self.serve_ok()
        request, _ = self.pool(get_dns_resolver=scene.get_dns_resolver)
        for host in ('hosts.test', 'HOSTS.test', 'dns.test', 'system.test', 'localhost', 'a.localhost'):
            code, _, body = await request(b'GET', f'http://{host}:{port}/')
            self.assertEqual((code, await buffered(body)), (b'200', b''))
        await self.raises(HttpDnsError, request(b'GET', f'http://none.test:{port}/'))

    async def test_a_pool_of_the_system_alone(self):
        request, _ = self.pool(get_dns_resolver=system_resolver)
        code, _, _ = await request(b'GET', f'http://localhost:{self.serve_ok()}/')
        self.assertEqual(code, b'200')

    async def test_a_pool_that_is_dropped_is_not_kept(self):
        scene = self.scene(dns={'dns.test A': found('127.0.0.1', ttl=3600)})
        port = self.serve_ok()

        async def use():
            request, _ = Pool(get_dns_resolver=scene.get_dns_resolver)
            await buffered((await request(b'GET', f'http://dns.test:{port}/'))[2])
            return weakref.ref(request)

        reference = await use()
        gc.collect()
        self.assertIsNone(reference())


# -------- Real name servers, and the real system


@unittest.skipUnless(shutil.which('dnsmasq'), 'dnsmasq is not here')
class DnsmasqTests(ResolverTestCase):

    def dnsmasq(self, *options):
        """(process, port) of one, which answers before this returns; it ends with the test"""
        why = ''
        for _ in range(10):  # the port may be taken between, or be taken for TCP
            with listening('127.0.0.1', 0) as sock:
                port = sock.getsockname()[1]
            process = subprocess.Popen([
                shutil.which('dnsmasq'), '--keep-in-foreground', '--no-resolv', '--no-hosts', '--conf-file=/dev/null',
                '--user=', '--group=', '--pid-file=', '--bind-interfaces', '--listen-address=127.0.0.1',
                '--local=/test/', f'--port={port}', *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
            self.addCleanup(process.stderr.close)
            self.addCleanup(process.wait)
            self.addCleanup(process.kill)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.1)
                sock.connect(('127.0.0.1', port))
                while process.poll() is None:
                    with contextlib.suppress(OSError):
                        sock.send(b'\0\1\1\0\0\1\0\0\0\0\0\0' + wire_name('x.test') + b'\0\1\0\1')
                        if sock.recv(512):
                            return process, port
                    time.sleep(0.01)
            why = process.stderr.read().decode()
        self.skipTest(f'dnsmasq does not run here: {why:.200}')

    async def test_what_it_says(self):
        names = os.path.join(self.folder, 'names')
        with open(names, 'w') as file:
            file.write('127.0.0.2 www.test\n::2 www.test\n127.0.0.3 four.test\n::4 six.test\n')
            file.writelines([f'127.0.1.{i} big.test\n' for i in range(1, 100)])
        process, port = self.dnsmasq(f'--addn-hosts={names}', '--cname=alias.test,www.test', '--local-ttl=7',
                                     '--txt-record=text.test,x')
        scene = self.scene(system={'big.test.': ['127.0.0.9']})
        scene.get_dns_resolver.keywords['port'] = port
        scene.start()
        for host, four, six in (('www.test', ['127.0.0.2'], ['::2']), ('alias.test', ['127.0.0.2'], ['::2']),
                                ('four.test', ['127.0.0.3'], None), ('six.test', None, ['::4']),
                                ('none.test', None, None), ('text.test', None, None)):
            with self.subTest(host):
                for each, result in zip((four, six), await asyncio.gather(
                        scene.result(host, A), scene.result(host, AAAA))):
                    if each:
                        self.assertEqual(result, each)
                    else:
                        self.assert_gone(result)
        address, = await scene.resolve('www.test', A)
        self.assertAlmostEqual(address.expires_at, self.loop.time() + 7, delta=1.5)
        # Truncated, with those that fit, or without any.
        self.assertTrue(await scene.result('big.test', A))
        with open(names, 'w') as file:
            file.write('127.0.0.5 www.test\n')
        process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if await scene.result('www.test', A) == ['127.0.0.5']:
                break
            await asyncio.sleep(0.02)
        self.assertEqual(await scene.result('www.test', A), ['127.0.0.5'])


def in_namespace(case):
    """What each look-up gives, as JSON, with the real /etc, name servers and getaddrinfo of this namespace"""
    case = NAMESPACES[case]
    zone = {key: script for key, script in case['dns'].items() if not key.startswith('tcp ')}
    over_tcp = {key[4:]: script for key, script in case['dns'].items() if key.startswith('tcp ')}
    server = NameServer(zone, case.get('server', '127.0.0.9'), 53)
    listener = socket.socket(server.sock.family, socket.SOCK_STREAM)
    listener.bind((server.host, 53))
    listener.listen(20)

    def serve_tcp():
        while True:
            with contextlib.closing(listener.accept()[0]) as sock, sock.makefile('rb') as file:
                for size in iter(lambda: file.read(2), b''):
                    query = Query(file.read(struct.unpack('!H', size)[0]))
                    answer = over_tcp[f'{query.name} {TYPES(query.record_type)!s}'](query)
                    sock.sendall(struct.pack('!H', len(answer)) + answer)

    async def main():
        resolve, _ = get_dns_resolver_default()
        results = []
        for look_up in case['look_ups']:
            host, _, name = look_up.rpartition(' ')
            try:
                results.append([str(address) for address in await resolve(host, TYPES[name])])
            except DnsError as error:
                results.append(type(error).__name__)
        return results

    threading.Thread(target=serve_tcp, daemon=True).start()
    print(json.dumps(asyncio.new_event_loop().run_until_complete(main())), flush=True)  # noqa: T201
    os._exit(0)


RESOLV_CONF = 'nameserver 127.0.0.9\n'
NAMESPACES = {
    'a line that aiodnsresolver cannot read': dict(
        hosts=b'127.0.1 short.test\n127.0.0.2 WWW.test\n\xff\xfe\n', resolv_conf=RESOLV_CONF,
        dns={'dns.test A': found('127.0.0.3'), 'dns.test AAAA': NO_RECORD},
        look_ups={'www.test A': ['127.0.0.2'], 'dns.test A': ['127.0.0.3']}),
    'no resolv.conf': dict(
        hosts=b'127.0.0.2 www.test\n', resolv_conf=None, server='127.0.0.1',
        dns={'dns.test A': found('127.0.0.3'), 'dns.test AAAA': NO_RECORD},
        look_ups={'www.test A': ['127.0.0.2'], 'dns.test A': ['127.0.0.3']}),
    'no hosts file': dict(
        hosts=None, resolv_conf=RESOLV_CONF, dns={'dns.test A': found('127.0.0.3'), 'dns.test AAAA': NO_RECORD},
        look_ups={'localhost A': ['127.0.0.1'], 'dns.test A': ['127.0.0.3']}),
    'an IPv6 name server': dict(
        hosts=b'', resolv_conf='nameserver ::1\n', server='::1',
        dns={'dns.test A': found('127.0.0.3'), 'dns.test AAAA': found('::3')},
        look_ups={'dns.test A': ['127.0.0.3'], 'dns.test AAAA': ['::3']}),
    'more than 512 bytes hold': dict(
        hosts=b'', resolv_conf=RESOLV_CONF + KUBERNETES + '\n',
        dns={'big.test.shop.svc.cluster.test A': truncated, 'big.test.shop.svc.cluster.test AAAA': NO_RECORD,
             'tcp big.test.shop.svc.cluster.test A': found(*MANY),
             'tcp big.test.shop.svc.cluster.test AAAA': NO_RECORD, 'big.test A': found('127.0.9.9')},
        look_ups={'big.test A': MANY, 'big.test AAAA': 'DnsNoMatchingAnswers'}),
    'a stranger of the same name': dict(
        hosts=b'', resolv_conf=RESOLV_CONF + KUBERNETES + '\n',
        dns={'orders.dev.shop.svc.cluster.test A': NO_RECORD, 'orders.dev.shop.svc.cluster.test AAAA': found('::3'),
             'orders.dev A': found('127.0.9.9')},
        look_ups={'orders.dev A': 'DnsNoMatchingAnswers', 'orders.dev AAAA': ['::3']}),
    'lower case': dict(
        hosts=b'', resolv_conf=RESOLV_CONF, dns={'dns.test A': lower_case(found('127.0.0.3')),
                                                 'dns.test AAAA': lower_case(NO_RECORD)},
        look_ups={'dns.test A': ['127.0.0.3'], 'dns.test AAAA': 'DnsNoMatchingAnswers'}),
}


def namespaces_are_here():
    return os.geteuid() == 0 and shutil.which('unshare') and shutil.which('ip') and subprocess.call(
        ['unshare', '-mn', 'ip', 'link', 'set', 'lo', 'up'], stderr=subprocess.DEVNULL) == 0


@unittest.skipUnless(namespaces_are_here(), 'needs root, and namespaces')
class ResolverNamespaceTests(unittest.TestCase):

    def test_all_that_the_system_finds_is_found(self):
        processes = []
        for name, case in NAMESPACES.items():
            folder = tempfile.mkdtemp()
            self.addCleanup(shutil.rmtree, folder)
            for file_name, content in (('hosts', case['hosts']), ('resolv.conf', case['resolv_conf']),
                                       ('nsswitch.conf', 'hosts: files dns\n')):
                if content is not None:
                    with open(os.path.join(folder, file_name), 'wb') as file:
                        file.write(content if isinstance(content, bytes) else content.encode())
            processes.append(subprocess.Popen([
                'unshare', '-mn', 'sh', '-c', 'ip link set lo up && mount --bind "$1" /etc && shift && exec "$@"', 'sh',
                folder, sys.executable, '-c', f'from tests.resolver import in_namespace; in_namespace({name!r})'],
                stdout=subprocess.PIPE))
        for process, (name, case) in zip(processes, NAMESPACES.items()):
            with self.subTest(name):
                output, _ = process.communicate(timeout=60)
                results = json.loads(output.decode())
                self.assertEqual(results, list(case['look_ups'].values()))
