"""Resolvers and name servers that the tests play"""
import asyncio
import contextlib
import functools
import logging
import socket
import threading
import weakref

from aiodnsresolver import (
    RESPONSE, TYPES, DnsNoMatchingAnswers, DnsRecordDoesNotExist, IPv4AddressExpiresAt, IPv6AddressExpiresAt, Message,
    Resolver, ResourceRecord, pack, parse,
)

from reliability.harness import TEST_SECONDS, current_task

# Its warning of each name server that fails goes to stderr otherwise.
logging.getLogger('aiodnsresolver').addHandler(logging.NullHandler())


class FakeNames:
    """Stands in for aiodnsresolver's Resolver. `records` maps a name to what both types of look-up give, or (name,
    type) to what one gives: addresses, an exception class, or a coroutine function that returns either of them"""

    def __init__(self, records, ttl=60):
        self.records = records
        self.ttl = ttl
        self.asked = []
        self.tasks = []
        self.made_in = []
        self.cleared = 0

    def __call__(self):
        loop = asyncio.get_event_loop()
        if not loop.is_running():
            raise RuntimeError('The resolver must be made inside the loop')
        self.made_in.append(weakref.ref(loop))

        async def resolve(name, qtype, **_):
            self.asked.append((name, str(qtype)))
            self.tasks.append(weakref.ref(current_task()))
            answer = self.records.get((name, str(qtype)), self.records.get(name, DnsRecordDoesNotExist))
            if callable(answer) and not isinstance(answer, type):
                answer = await answer()
            if isinstance(answer, type):
                raise answer()
            made = IPv4AddressExpiresAt if qtype == TYPES.A else IPv6AddressExpiresAt
            answers = tuple(
                made(address, expires_at=loop.time() + self.ttl if self.ttl else 0)
                for address in answer if (':' in address) is (qtype == TYPES.AAAA)
            )
            if not answers:
                raise DnsNoMatchingAnswers()
            return answers

        async def clear_cache(**_):
            await asyncio.sleep(0)
            self.cleared += 1

        return resolve, clear_cache

    def count(self, qtype='A'):
        return [asked for _, asked in self.asked].count(qtype)


@contextlib.contextmanager
def name_server(records, losing=0):
    """(port, names asked for) of a real DNS server on loopback. `records` are {(name, type): (ttl, bytes)}; the
    first `losing` packets get no answer"""
    asked = []
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(('127.0.0.1', 0))

    def serve():
        while True:
            data, client = sock.recvfrom(512)
            if not data:
                return
            query = parse(data)
            question = query.qd[0]
            asked.append((question.name.lower(), question.qtype))
            if len(asked) <= losing:
                continue
            known = records.get(asked[-1])
            sock.sendto(pack(Message(
                qid=query.qid, qr=RESPONSE, opcode=0, aa=0, tc=0, rd=0, ra=1, z=0, rcode=0 if known else 3,
                qd=query.qd, ns=(), ar=(),
                an=(ResourceRecord(question.name, question.qtype, 1, *known),) if known else (),
            )), client)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield sock.getsockname()[1], asked
    finally:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stopping:
            stopping.sendto(b'', sock.getsockname())
        thread.join(TEST_SECONDS)
        sock.close()


def real_resolver(port, wait=0.2):
    async def get_nameservers(_, __):
        for _ in range(5):
            yield wait, ('127.0.0.1', port)
    return functools.partial(Resolver, get_nameservers=get_nameservers)
