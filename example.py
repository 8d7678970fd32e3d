"""A file is uploaded, and a chunked response downloaded, both as streams; or, given a url, that is fetched

    python example.py               against a small server of its own, on a free port of the loopback interface
    python example.py URL [FILE]    into a file, or to the standard output
"""
import argparse
import asyncio
import contextlib
import http.server
import os
import signal
import socketserver
import sys
import tempfile
import threading
import time

from tqdm import tqdm

from lowhaio import HttpError, Pool, buffered

MIB = 2 ** 20


async def upload_and_download():
    request, close = Pool()
    with own_server() as url, tempfile.NamedTemporaryFile() as file:
        try:
            size = file.truncate(64 * MIB)
            code, headers, body = await request(
                b'POST', url, headers=((b'content-length', b'%d' % size),),
                # A function, and not the generator itself: the body can be made anew, should it have to be sent again.
                body=lambda: with_progress('up', size, file_data(file.name)),
            )
            show(code, headers)
            print((await buffered(body)).decode())

            code, headers, body = await request(b'GET', url)
            show(code, headers)
            count = 0
            async for chunk in with_progress('down', None, body):
                count += len(chunk)
            print(f'received {count} bytes')
        finally:
            await close()


async def fetch(url, path):
    request, close = Pool()
    try:
        code, headers, body = await request(b'GET', url)
        try:
            show(code, headers)
            if code != b'200':
                raise HttpError(f'Expected 200 from {url}, got {code.decode()}: nothing is stored')
            size = dict(headers).get(b'content-length')
            on_terminal = path is None and os.isatty(1)  # where the body and the bar would be mixed
            chunks = body if on_terminal else with_progress('down', size and int(size), body)
            with destination(path) as file:
                async for chunk in chunks:
                    file.write(chunk)
        finally:
            await body.aclose()
    finally:
        await close()


async def file_data(path):
    with open(path, 'rb') as file:
        for chunk in iter(lambda: file.read(65536), b''):
            yield chunk


async def with_progress(label, size, body):
    """The same body, with a bar while the standard error is a terminal, and its rate at the end"""
    count = 0
    began = time.monotonic()
    with tqdm(desc=label, total=size, unit='B', unit_scale=True, unit_divisor=1024, disable=None) as bar:
        async for chunk in body:
            count += len(chunk)
            bar.update(len(chunk))
            yield chunk
    seconds = max(time.monotonic() - began, 1e-6)
    print(f'{label}: {count / MIB:.1f} MiB in {seconds:.2f} s, {count / MIB / seconds:.1f} MiB/s')


def show(code, headers):
    print(code.decode())
    for name, value in headers:
        print(f'    {name.decode()}: {value!r}')  # as bytes, for there may be any in it


@contextlib.contextmanager
def destination(path):
    """A binary file: the standard output, or one that appears at `path` when it is whole, and not before"""
    if path is None:
        with open(1, 'wb', closefd=False) as file:
            yield file
        return
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(f'{path} is not a regular file')
    part = path + '.part'
    file = open(part, 'xb')  # refuses what is there already: it may be another's, at work
    try:
        with file:
            yield file
        os.replace(part, path)
    except BaseException:
        os.remove(part)
        raise


class Handler(http.server.BaseHTTPRequestHandler):
    """Counts what is uploaded, and answers downloads by 64 MiB, chunked"""
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        size = int(self.headers['content-length'])
        received = 0
        while received < size:
            received += len(self.rfile.read(min(MIB, size - received))) or size  # the client went away
        answer = b'the server received %d bytes' % received
        self.send_response(200)
        self.send_header('content-length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        self.send_response(200)
        self.send_header('transfer-encoding', 'chunked')
        self.end_headers()
        for _ in range(64):
            self.wfile.write(b'100000\r\n' + bytes(MIB) + b'\r\n')
        self.wfile.write(b'0\r\n\r\n')

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass  # the client went away: it says so itself


@contextlib.contextmanager
def own_server():
    """The url of a server that runs in a thread"""
    with Server(('127.0.0.1', 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield 'http://{}:{}/'.format(*server.server_address)
        finally:
            server.shutdown()


def run(coroutine):
    """What asyncio.run does, which Python 3.6 has not; Ctrl-C cancels, so that all that is open is closed"""
    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(coroutine)
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, task.cancel)
        loop.run_until_complete(task)
    except (HttpError, OSError) as error:
        sys.exit(f'example.py: {error}')
    except asyncio.CancelledError:
        print('example.py: interrupted', file=sys.stderr)
        sys.exit(130)
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('url', nargs='?', metavar='URL')
    parser.add_argument('file', nargs='?', metavar='FILE')
    arguments = parser.parse_args()
    if arguments.url is None:
        run(upload_and_download())
    else:
        # The standard output is for the body's own bytes, where there is no file for them.
        with contextlib.redirect_stdout(sys.stdout if arguments.file else sys.stderr):
            run(fetch(arguments.url, arguments.file))


if __name__ == '__main__':
    main()
