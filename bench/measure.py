"""One measurement, in a process of its own: `python measure.py JOB` prints it, as JSON

JOB, as JSON: `client`, `tree` (the folder of lowhaio.py), `content`, `act`, `at_once`, `url`, `small` (the url of a
small body on the same server), `tls` (the version of TLS that is to be agreed on, and the url that tells it), `fresh`
(whether malloc is left as it is), `read_back` (where an upload is found), `hosts` (urls to leave an idle connection
to), `length` and `sha256` of the body, `ca`, `uvloop`, `seconds`, `verify`.
"""
import asyncio
import ctypes
import gc
import hashlib
import json
import os
import resource
import sys
import textwrap
import time
import urllib.request

import scenarios
from clients import CLIENTS, Setting
from servers import pin_client


def memory(field):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ':'))


def usage():
    """(seconds of CPU, page faults)"""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_minflt


def is_malloc_fresh():
    """Whether blocks of 256 KiB are still mappings of their own, as in glibc until one as large was freed, or come
    from the heap; None where there is no glibc to tell. Asked last, since the asking changes it."""
    class Mallinfo(ctypes.Structure):
        _fields_ = [(name, ctypes.c_size_t) for name in (
            'arena', 'ordblks', 'smblks', 'hblks', 'hblkhd', 'usmblks', 'fsmblks', 'uordblks', 'fordblks', 'keepcost')]

    mallinfo = getattr(ctypes.CDLL(None), 'mallinfo2', None)
    if mallinfo is None:
        return None
    mallinfo.restype = Mallinfo
    before = mallinfo().hblks
    kept = [bytes(2 ** 18) for _ in range(16)]  # more than the heap has free
    return mallinfo().hblks > before and bool(kept)


class WrongBytes(Exception):
    pass


def transfer(job, get, down, up):
    """(once(), which counts the bytes of one request; verified(), which hashes them)"""
    data, repeats = scenarios.body_of(job['content'])
    pieces = [data[at:at + scenarios.PIECE] for at in range(0, len(data), scenarios.PIECE)] * repeats

    def check(what, got, wanted):
        if got != wanted:
            raise WrongBytes(f'{what} is {got}, not {wanted}')

    async def body():
        for piece in pieces:
            yield piece

    async def once():
        count = 0

        def consume(piece):
            nonlocal count
            count += len(piece)

        if job['act'] == 'get':
            count = len(await get(job['url']))
        elif job['act'] == 'down':
            await down(job['url'], consume)
        else:
            await up(job['url'], body, job['length'])
            count = job['length']
        if count != job['length']:
            check('the length', count, job['length'])

    async def verified():
        digest = hashlib.sha256()
        if job['act'] == 'get':
            digest.update(await get(job['url']))
        elif job['act'] == 'down':
            await down(job['url'], digest.update)
        else:
            await up(job['url'], body, job['length'])
            read_back(job['read_back'], digest.update)
        check('the hash', digest.hexdigest(), job['sha256'])

    return once, verified


def read_back(url, consume):
    with urllib.request.urlopen(url) as response:
        for piece in iter(lambda: response.read(scenarios.PIECE), b''):
            consume(piece)


async def measure(job):
    if not job['fresh']:
        bytes(scenarios.MiB)
    setting = Setting(job['at_once'], len(job['hosts']), job['ca'])
    async with CLIENTS[job['client']](setting) as functions:
        once, verified = transfer(job, *functions)
        get = functions[0]
        for url in job['hosts']:
            await get(url)
        # What is imported and made at first use is no part of a request.
        if job['verify']:
            await verified()
        if job['verify'] and job['tls']:
            wanted, url = job['tls']
            agreed = bytes(await get(url)).decode()
            if agreed != wanted:
                raise WrongBytes(f'{agreed} was agreed on, not {wanted}')
        await get(job['small'])
        gc.collect()
        before = memory('VmRSS')
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')  # the peak begins anew
        if job['act'] == 'get':
            await all_at_once(job['at_once'], once, 0.05)
        (cpu_before, faults_before), begun = usage(), time.perf_counter()
        count = await all_at_once(job['at_once'], once, job['seconds'])
        wall, (cpu, faults) = time.perf_counter() - begun, usage()
        peak = memory('VmHWM')
    return {'cpu': (cpu - cpu_before) / count, 'wall': wall / count, 'faults': (faults - faults_before) / count,
            'peak': peak * 1024, 'beyond': (peak - before) * 1024, 'fresh': is_malloc_fresh(), 'count': count}


async def all_at_once(tasks, once, seconds):
    """How many requests were made in about so many seconds, at least one by each task"""
    ends = time.perf_counter() + seconds

    async def repeatedly():
        count = 0
        while not count or time.perf_counter() < ends:
            await once()
            count += 1
        return count

    return await repeatedly() if tasks == 1 else sum(await asyncio.gather(*(repeatedly() for _ in range(tasks))))


def main():
    job = json.loads(sys.argv[1])
    sys.path.insert(0, job['tree'])
    pin_client()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if job['uvloop']:
        import uvloop
        loop = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    try:
        result = loop.run_until_complete(measure(job))
    except Exception as error:
        result = {'error': textwrap.shorten(f'{type(error).__name__}: {error}', 240)}
    sys.stdout.write(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a thread of pyreqwest's at times makes the interpreter's end a fatal error


if __name__ == '__main__':
    main()
