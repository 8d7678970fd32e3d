"""Instructions by valgrind: a figure without noise, which is held under the ceilings in ceilings.json

    python bench/instructions.py [--set]
    python bench/instructions.py --profile     # bytecodes of a small GET, by function

Takes a Python that has lowhaio's one dependency and trustme, and `valgrind`. Each thing is done by lowhaio, and by a
floor that does no more than it must; what is compared with the ceiling is the ratio of the two, since both change alike
with the build of Python, and the machine. Instructions of the kernel are not counted: a system call is only as dear as
the way to it. Exits with 1 if a ceiling is exceeded by more than TOLERANCE.
"""
import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import gc
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
CEILINGS = HERE / 'ceilings.json'
# Repeated runs differ by less than 0.1 %.
TOLERANCE = 0.02

# With the fields that nginx sends.
HEAD = b'HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 24 Nov 2025 10:00:00 GMT\r\n' \
       b'Content-Type: text/plain\r\nContent-Length: 13\r\nConnection: keep-alive\r\n\r\n'
RESPONSE = HEAD + b'Hello, world\n'
HEAD_20 = HEAD[:-2] + b''.join(b'x-header-%02d: the value of header %02d\r\n' % (i, i) for i in range(15)) + b'\r\n'
CHUNKS = 2500
CHUNKED = b'28\r\n%b\r\n' % (b'x' * 40) * CHUNKS
RECEIVED_CHUNKED = [CHUNKED[at:at + 65536] for at in range(0, len(CHUNKED), 65536)] + [b'0\r\n\r\n']


# -------- What is counted: each takes how often it is to be done, and the port of the server


async def get(count, port):
    from lowhaio import Pool, buffered
    request, close = Pool()
    for _ in range(count):
        _, _, body = await request(b'GET', f'http://127.0.0.1:{port}/small')
        await buffered(body)
    await close()


async def get_floor(count, port):
    # With a reader that stays: `sock_recv` tries before it waits, and so its count depends on who is quicker.
    loop = asyncio.get_running_loop()
    request = b'GET /small HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n' % port
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ('127.0.0.1', port))
        loop.add_reader(sock, lambda: waiter.set_result(sock.recv(65536)))
        for _ in range(count):
            waiter = loop.create_future()
            sock.send(request)
            await waiter
        loop.remove_reader(sock)


async def chunks(count, port):
    from lowhaio import chunked_decoder
    for _ in range(count):
        decode = chunked_decoder(65536)
        for data in RECEIVED_CHUNKED:
            decode(data)


async def chunks_floor(count, port):
    for _ in range(count):
        data, pieces, at = CHUNKED, [], 0
        while at < len(data):
            end = data.index(b'\r\n', at)
            size = int(data[at:end], 16)
            pieces.append(data[end + 2:end + 2 + size])
            at = end + size + 4
        b''.join(pieces)


async def head(count, port):
    from lowhaio import parse_head
    for _ in range(count):
        parse_head(HEAD_20)


async def head_floor(count, port):
    for _ in range(count):
        tuple(tuple(line.lower().split(b': ', 1)) for line in HEAD_20.split(b'\r\n')[1:-2])


def new_heads(count):
    """So many heads of 20 fields, no line of which was seen before"""
    return [b'HTTP/1.1 200 OK\r\n' + b''.join(
        b'x-header-%02d: the value of header %06d\r\n' % (i, n * 20 + i) for i in range(20)) + b'\r\n'
        for n in range(count)]


async def new_head(count, port):
    from lowhaio import parse_head
    for head in NEW_HEADS[:count]:
        parse_head(head)


async def new_head_floor(count, port):
    for head in NEW_HEADS[:count]:
        tuple(tuple(line.lower().split(b': ', 1)) for line in head.split(b'\r\n')[1:-2])


async def tls(count, port):
    from lowhaio import Pool, buffered
    request, close = Pool(get_ssl_context=tls_context)
    for _ in range(count):
        _, _, body = await request(b'GET', f'https://127.0.0.1:{port + 1}/small')
        await buffered(body)
    await close()


async def tls_floor(count, port):
    request = b'GET /small HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n' % (port + 1)
    with socket.create_connection(('127.0.0.1', port + 1)) as sock, tls_context().wrap_socket(sock) as sock:
        for _ in range(count):
            sock.send(request)
            sock.recv(65536)


def tls_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # what is counted is kept alive
    return context


# `count`: how often it is done; `each`: how many of the unit that is, each time.
Work = collections.namedtuple('Work', 'unit count each done floor')
WORKS = {
    'get': Work('small GET', 200, 1, get, get_floor),
    'chunks': Work('chunk of 40 bytes', 10, CHUNKS, chunks, chunks_floor),
    'head': Work('head of 20 fields', 500, 1, head, head_floor),
    'new head': Work('head of 20 fields, never seen', 500, 1, new_head, new_head_floor),
    'tls': Work('small GET over TLS', 200, 1, tls, tls_floor),
}
NEW_HEADS = new_heads(1 + WORKS['new head'].count)


async def do(name, which, port):
    """All of the works a little, the same in every process, so that what comes once cancels; and one of them more"""
    for each, work in WORKS.items():
        for its, function in (('done', work.done), ('floor', work.floor)):
            await function(1 + (work.count if (each, its) == (name, which) else 0), port)


def serve(server, context=None):
    """Answers each request a while later, so that no client ever finds the answer before it waits for it"""
    def answer(sock):
        with sock if context is None else context.wrap_socket(sock, server_side=True) as sock:
            while sock.recv(65536):
                time.sleep(0.005)
                sock.sendall(RESPONSE)

    while True:
        threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()


@contextlib.contextmanager
def servers():
    """The port of a server, and beside it one of TLS"""
    import trustme
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert('127.0.0.1').configure_cert(context)
    with contextlib.ExitStack() as stack:
        while True:
            plain = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
            port = plain.getsockname()[1]
            with contextlib.suppress(OSError):  # the next port is another's
                secure = stack.enter_context(socket.create_server(('127.0.0.1', port + 1)))
                break
        threading.Thread(target=serve, args=(plain,), daemon=True).start()
        threading.Thread(target=serve, args=(secure, context), daemon=True).start()
        yield port


def instructions(name, which, port):
    """All that a process that does this executes"""
    process = subprocess.run(
        ['valgrind', '--tool=cachegrind', '--cache-sim=no', '--cachegrind-out-file=/dev/null',
         sys.executable, __file__, '--do', name, which, str(port)],
        env=dict(os.environ, PYTHONHASHSEED='0', PYTHONPATH=str(HERE.parent)), capture_output=True, text=True)
    match = re.search(r'I +refs: +([\d,]+)', process.stderr)
    if process.returncode or not match:
        raise SystemExit(process.stderr)
    return int(match.group(1).replace(',', ''))


def profile(port):
    """Prints the calls and the bytecodes that lowhaio's functions take for a small GET: the profile without noise"""
    calls, bytecodes = collections.Counter(), collections.Counter()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith('lowhaio.py'):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        name = frame.f_code.co_qualname.replace('.<locals>', '')
        calls[name] += event == 'call'
        bytecodes[name] += event == 'opcode'
        return trace

    async def traced(count):
        from lowhaio import Pool, buffered
        request, close = Pool()
        for n in range(count + 1):
            sys.settrace(trace if n else None)  # not the first, which connects
            _, _, body = await request(b'GET', f'http://127.0.0.1:{port}/small')
            await buffered(body)
        sys.settrace(None)
        await close()

    count = 20
    asyncio.run(traced(count))
    print('bytecodes  calls  function')
    for name, number in bytecodes.most_common():
        print(f'{number / count:9.0f}  {calls[name] / count:5.0f}  {name}')
    print(f'{sum(bytecodes.values()) / count:9.0f}  {sum(calls.values()) / count:5.0f}  all')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--set', action='store_true', help='makes what is found the ceilings of this version of Python')
    parser.add_argument('--profile', action='store_true', help='bytecodes of a small GET, by function, instead')
    parser.add_argument('--do', nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        name, which, port = options.do
        gc.disable()  # or a collection falls into one of two runs
        asyncio.run(do(name, which, int(port)))
        return 0
    with servers() as port:
        if options.profile:
            sys.path.insert(0, str(HERE.parent))
            profile(port)
            return 0
        tasks = [('nothing', '')] + [(name, which) for name in WORKS for which in ('done', 'floor')]
        with concurrent.futures.ThreadPoolExecutor(2) as executor:
            found = dict(zip(tasks, executor.map(lambda task: instructions(*task, port), tasks)))
    version = '{} {}.{}'.format(sys.implementation.name, *sys.version_info[:2])
    ceilings = json.loads(CEILINGS.read_text()) if CEILINGS.exists() else {}
    ratios = {}
    for name, work in WORKS.items():
        done, floor = (
            (found[name, which] - found['nothing', '']) / (work.count * work.each) for which in ('done', 'floor')
        )
        ratios[name] = done / floor
        ceiling = ceilings.get(version, {}).get(name)
        verdict = \
            f'no ceiling for {version}' if ceiling is None else \
            f'at most {ceiling}' if ratios[name] <= ceiling * (1 + TOLERANCE) else f'EXCEEDS {ceiling}'
        print(f'{work.unit}: {done:,.0f} instructions, {ratios[name]:.3f} × the floor\'s {floor:,.0f}; {verdict}')
    if options.set:
        ceilings[version] = {name: round(ratio, 3) for name, ratio in ratios.items()}
        CEILINGS.write_text(json.dumps(ceilings, indent=4, sort_keys=True) + '\n')
        return 0
    exceeded = [name for name, ceiling in ceilings.get(version, {}).items() if ratios[name] > ceiling * (1 + TOLERANCE)]
    print(f'{len(WORKS) - len(exceeded)} passed, {len(exceeded)} failed')
    return 1 if exceeded else 0


if __name__ == '__main__':
    sys.exit(main())
