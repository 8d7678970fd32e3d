"""The memory that large bodies take"""
import os
import subprocess
import sys
import unittest

from reliability.harness import CA, TEST_SECONDS, AsyncTestCase, server_context
from tests.servers import GIB, HERE, KIB, MIB, NGINX, Nginx

# A transfer in a fresh process, since the peak of a process's memory never falls. It holds one large piece, whatever
# the size, so that a second copy of a piece shows in the difference.
TRANSFER = '''
import asyncio
import os
import re
import ssl
import sys

sys.path.insert(0, sys.argv[1])
from lowhaio import Pool

url, authority, size, framing = sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
if os.environ.get('LOWHAIO_LOOP') == 'uvloop':
    from uvloop import new_event_loop
else:
    from asyncio import new_event_loop
piece = b'x' * 2 ** 24

async def data():
    left = size
    while left:
        view = memoryview(piece)[:left]
        yield view
        left -= len(view)

async def transfer():
    request, close = Pool(get_ssl_context=lambda: ssl.create_default_context(cafile=authority))
    count = 0
    if framing == 'down':
        code, headers, body = await request(b'GET', url)
    else:
        headers = ((b'content-length', b'%d' % size),) if framing == 'length' else ()
        code, headers, body = await request(b'PUT', url, headers=headers, body=data())
    async for chunk in body:
        count = count + len(chunk) if framing == 'down' else int(chunk)
    await close()
    with open('/proc/self/status') as status:
        print(code.decode(), count, re.search(r'VmHWM:\\s*(\\d+) kB', status.read()).group(1))

loop = new_event_loop()
loop.run_until_complete(transfer())
loop.close()
'''


def play_transfer(peer):
    """Sends as many bytes as the path says; or takes an upload, and answers with how many they were"""
    block = bytearray(MIB)
    with peer.sock.makefile('rb', buffering=65536) as file:
        method, path, _ = file.readline().split(b' ')
        fields = [line.strip().lower() for line in iter(file.readline, b'\r\n')]
        chunked = b'transfer-encoding: chunked' in fields or path.startswith(b'/chunked')

        def receive(size):
            left = size
            while left:
                received = file.readinto(memoryview(block)[:left])
                if not received:
                    raise EOFError(f'The client closed {left} bytes before the end')
                left -= received
            return size

        def receive_chunks():
            count = 0
            while True:
                size = int(file.readline(), 16)
                count += receive(size)
                if file.readline() != b'\r\n':
                    raise ValueError('A chunk does not end in CRLF')
                if not size:
                    return count

        def send(size):
            left = size
            while left:
                part = memoryview(block)[:left]
                peer.send(*((b'%x\r\n' % len(part), part, b'\r\n') if chunked else (part,)))
                left -= len(part)

        if method == b'GET':
            size = int(path.split(b'/')[2])
            peer.send(b'HTTP/1.1 200 OK\r\n' + (
                b'transfer-encoding: chunked\r\n\r\n' if chunked else b'content-length: %d\r\n\r\n' % size))
            send(size)
            peer.send(b'0\r\n\r\n' if chunked else b'')
        else:
            lengths = [int(field.split(b':')[1]) for field in fields if field.startswith(b'content-length:')]
            count = b'%d' % (receive_chunks() if chunked else receive(lengths[0]))
            peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b' % (len(count), count))


class TransferTestCase(AsyncTestCase):

    def transfer(self, url, size, framing, code='200'):
        """The peak of the memory, in bytes, of a process that does nothing else"""
        with CA.cert_pem.tempfile() as authority:
            output = subprocess.check_output(
                [sys.executable, '-c', TRANSFER, HERE, url, authority, str(size), framing], timeout=10 * TEST_SECONDS)
        received_code, count, peak = output.decode().split()
        self.assertEqual(received_code, code)
        if code == '200':
            self.assertEqual(int(count), size)
        return int(peak) * KIB

    def check_transfers(self, size):
        for tls in (None, server_context()):
            base = f'{"https" if tls else "http"}://127.0.0.1:{self.serve(play_transfer, tls=tls)}'
            for path, framing in (('length', 'down'), ('chunked', 'down'), ('up', 'length'), ('up', 'chunked')):
                with self.subTest(base=base, path=path, framing=framing):
                    small, large = (self.transfer(f'{base}/{path}/{n}', n, framing) for n in (KIB, size))
                    self.assertLess(large - small, 10 * MIB)


class TransferTests(TransferTestCase):

    def test_64_mib_either_way_takes_no_more_memory_than_1_kib(self):
        self.check_transfers(64 * MIB)


@unittest.skipUnless(os.environ.get('LOWHAIO_LONG'), 'transfers of 1 GiB are slow: LOWHAIO_LONG=1 runs them')
class LongTransferTests(TransferTestCase):

    def test_1_gib_either_way_takes_no_more_memory_than_1_kib(self):
        self.check_transfers(GIB)

    @unittest.skipUnless(NGINX, 'there is no nginx here (apt-get install nginx)')
    def test_1_gib_either_way_with_nginx_takes_no_more_memory_than_1_kib(self):
        server = Nginx()
        self.addCleanup(server.stop)
        for size in (KIB, GIB):
            with open(server.path(f'files/{size}'), 'wb') as file:
                file.truncate(size)
        for url in server.urls:
            with self.subTest(url=url, way='down'):
                small, large = (self.transfer(f'{url}/files/{size}', size, 'down') for size in (KIB, GIB))
                self.assertLess(large - small, 10 * MIB)
            for framing in ('length', 'chunked'):
                with self.subTest(url=url, way='up', framing=framing):
                    peaks = []
                    for size in (KIB, GIB):
                        peaks.append(self.transfer(f'{url}/files/stored', size, framing, code='201'))
                        self.assertEqual(os.stat(server.path('files/stored')).st_size, size)
                        os.remove(server.path('files/stored'))
                    self.assertLess(peaks[1] - peaks[0], 10 * MIB)
