"""One measurement, in a process of its own: `python measure.py JOB` prints it, as JSON

JOB, as JSON: `client`, `tree` (the folder of lowhaio.py), `content`, `act`, `at_once`, `url`, `small` (the url of a
small body on the same server), `read_back` (where an upload is found), `hosts` (urls to leave an idle connection to),
`length` and `sha256` of the body, `ca`, `uvloop`, `seconds`, `verify`.
"""
import asyncio
import gc
import hashlib
import json
import os
import resource
import sys
import time
import urllib.request

import scenarios
from clients import CLIENTS, Setting
from servers import pin_client


def memory(field):
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field + ':'))


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


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
    async with CLIENTS[job['client']](Setting(job['at_once'], job['ca'])) as functions:
        once, verified = transfer(job, *functions)
        get = functions[0]
        for url in job['hosts']:
            await get(url)
        # What is imported and made at first use is no part of a request.
        if job['verify']:
            await verified()
        await get(job['small'])
        gc.collect()
        before = memory('VmRSS')
        with open('/proc/self/clear_refs', 'w') as file:
            file.write('5')  # the peak begins anew
        if job['act'] == 'get':
            await all_at_once(job['at_once'], once, 0.05)
        cpu_before, begun = cpu(), time.perf_counter()
        count = await all_at_once(job['at_once'], once, job['seconds'])
        wall, used = time.perf_counter() - begun, cpu() - cpu_before
        peak = memory('VmHWM')
    return {'cpu': used / count, 'wall': wall / count, 'peak': peak * 1024, 'beyond': (peak - before) * 1024,
            'count': count}


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
    result = loop.run_until_complete(measure(job))
    sys.stdout.write(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a thread of pyreqwest's at times makes the interpreter's end a fatal error


if __name__ == '__main__':
    main()
