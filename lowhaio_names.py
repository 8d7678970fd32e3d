"""Where lowhaio's addresses come from: the hosts file, then the name servers, then the system

    request, close = Pool()                                    # get_dns_resolver_default
    request, close = Pool(get_dns_resolver=system_resolver)    # the system alone, by its getaddrinfo

Both are called in an event loop, and return (resolve, clear_cache), as aiodnsresolver's Resolver does. What
`await resolve(host, TYPES.A or TYPES.AAAA)` returns, or raises:

- a tuple of addresses, none twice. Each has `expires_at`, in the loop's time. Those of the hosts file and of the system
  are an `OrderedAddress`: a str whose `is_ordered` is True, since their order is a choice that somebody made. Those of
  the name servers are ipaddress objects, whose order says nothing;
- DnsRecordDoesNotExist, where there are none. Its `expires_at` says how long that stands;
- DnsError, where nobody could tell. Its text has the reasons of all that were asked;
- OSError, with EMFILE or ENFILE as its `errno`, where there were no descriptors left to ask with.

Nothing runs between look-ups, and what is remembered is bounded. A look-up may be cancelled at any moment: a thread in
`getaddrinfo` cannot be stopped, and then ends alone.
"""
import asyncio
import collections
import errno
import functools
import logging
import os
import re
import socket
import struct
import threading
import time

from aiodnsresolver import (
    TYPES, DnsCnameChainTooLong, DnsError, DnsNoMatchingAnswers, DnsPointerLoop, DnsRecordDoesNotExist,
    DnsResponseCode, Resolver,
)

from lowhaio import remember

__all__ = ('get_dns_resolver_default', 'system_resolver', 'OrderedAddress')

HOSTS, RESOLV_CONF, NSSWITCH_CONF = '/etc/hosts', '/etc/resolv.conf', '/etc/nsswitch.conf'
# Seconds between two looks at a file, and for which what the hosts file says stands.
FILE_TTL = 1
# Name servers that are asked at most, as the system does: a C library knows no more.
MAX_NAME_SERVERS = 3
# Seconds that a name server has to answer, and how often all are asked: aiodnsresolver's own figures.
ATTEMPT, ROUNDS = 0.5, 5
# Seconds without an answer of the name servers after which the system is asked too.
PATIENCE = 1
# Seconds that one family waits for what the name servers say of the other, where only that tells whether a name exists.
OTHER_FAMILY = 0.25
# Look-ups of the system at once: each is a thread.
MAX_THREADS = 8
# Seconds for which an answer of the system stands, and that a name does not exist: neither tells a time.
TTL = 5
# The same, where the system might have known the name, but had no thread free.
BUSY_TTL = 1
# Seconds for which the system alone is asked, after the name servers were deaf and the system was not.
SYSTEM_ALONE = 60
MAX_NAME = 253  # letters, without a dot at its end. RFC 1035 §2.3.4

OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
NO_SUCH_NAME = [getattr(socket, name) for name in ('EAI_NONAME', 'EAI_NODATA', 'EAI_ADDRFAMILY')
                if hasattr(socket, name)]
LOOPBACK = {TYPES.A: ['127.0.0.1'], TYPES.AAAA: ['::1']}
FAMILY = {TYPES.A: 'IPv4', TYPES.AAAA: 'IPv6'}
RCODES = {1: 'FORMERR', 2: 'SERVFAIL', 4: 'NOTIMP', 5: 'REFUSED', 9: 'NOTAUTH'}  # RFC 1035 §4.1.1, RFC 2136 §2.2

current_task = getattr(asyncio, 'current_task', None) or asyncio.Task.current_task

# Where logging is not set up, aiodnsresolver's warnings would go to stderr.
logging.getLogger('aiodnsresolver').addHandler(logging.NullHandler())


class OrderedAddress(str):
    """An address of the hosts file or the system: it is tried after those before it, and not rotated

    `expires_at` is when it is to be looked up again, in the loop's time.
    """
    is_ordered = True

    def __new__(cls, address, expires_at):
        ordered = super().__new__(cls, address)
        ordered.expires_at = expires_at
        return ordered


# What one source says of a name. `kind` is one of those below; `why` a sentence without its dot; `exists` the name,
# where the source has records of it, of whichever type; `number` an errno. An exception would hold its frames.
Word = collections.namedtuple('Word', 'kind why addresses exists number')
Word.__new__.__defaults__ = ((), None, None)
FOUND = 'found'
NO_NAME = 'no name'        # of no type
NO_RECORD = 'no record'    # of this type; perhaps it was cut off
ABSENT = 'absent'          # of this type, for sure: there is one of the other
FAILED = 'failed'
EXHAUSTED = 'exhausted'    # of descriptors
BUSY = 'busy'
ANSWERS = (FOUND, NO_NAME, NO_RECORD)


def unique(addresses):
    return tuple(collections.OrderedDict.fromkeys(addresses))


def failure(error, what):
    """The Word for an exception"""
    number = getattr(error, 'errno', None)
    if isinstance(error, OSError) and not isinstance(error, socket.gaierror) and number in OUT_OF_FILES:
        return Word(EXHAUSTED, f'{what}: {os.strerror(number)}', number=number)
    return Word(FAILED, f'{what}: {getattr(error, "strerror", None) or str(error) or type(error).__name__}')


def outcome(words, expires_at):
    """The exception for what all who were asked have said, none of which found it; if there is none, how long so"""
    why = '; '.join([word.why for word in words])
    for word in words:
        if word.kind == EXHAUSTED:
            return OSError(word.number, why)
    kinds = {word.kind for word in words}
    error_class = \
        DnsNoMatchingAnswers if kinds & {NO_RECORD, ABSENT} else \
        DnsRecordDoesNotExist if NO_NAME in kinds else \
        DnsError
    error = error_class(why)
    if error_class is not DnsError:
        error.expires_at = expires_at
    return error


async def ended(tasks):
    """Cancels tasks, and waits for their end: a loop that is closed next must not find them"""
    pending = [task for task in tasks if not task.done()]
    while pending:
        for task in pending:
            task.cancel()
        # And again, if need be: aiodnsresolver takes one that comes as it times out for its own.
        _, pending = await asyncio.wait(pending, timeout=0.1)


# -------- The files, read as the C library reads them


def file_reader(path, parse, missing, clock):
    """A function that returns what `parse` makes of the file's bytes, or `missing`; looked at once a FILE_TTL

    It raises OSError where there are no descriptors left to read it first; later what was read last stands.
    """
    looked_at = seen = parsed = None

    def read():
        nonlocal looked_at, seen, parsed
        if looked_at is not None and clock() < looked_at + FILE_TTL:
            return parsed
        try:
            status = os.stat(path)
            now = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if now != seen:
                with open(path, 'rb') as file:
                    parsed = parse(file.read())
                # A file that is written twice within a tick of its clock looks the same: one so new is read again.
                seen = now if time.time() - status.st_mtime > 1 else None
        except OSError as error:
            if error.errno not in OUT_OF_FILES:
                seen, parsed = None, missing
            elif looked_at is None:
                raise
        looked_at = clock()
        return parsed

    return read


def normalised_hosts(content):
    """The bytes of a hosts file such that `hosts_addresses` finds a name: in lower case, with spaces alone"""
    return b'\n' + content.lower().translate(bytes.maketrans(b'\t\r\v\f', b'    ')) + b'\n'


def hosts_addresses(content, name):
    """{type of record: [addresses]} of a name in a hosts file; None if it is not there

    The file is not made into a dict: those that block advertisements have 150,000 lines, of which few are asked for.
    """
    found = {TYPES.A: [], TYPES.AAAA: []}
    name = name.encode()
    at = content.find(b' ' + name)
    while at != -1:
        begin, end = content.rfind(b'\n', 0, at) + 1, content.find(b'\n', at)
        address, *names = re.split(b'[#\0]', content[begin:end], maxsplit=1)[0].split() or [b'']
        record_type = record_type_of(address)
        if record_type and (name in names or name + b'.' in names):
            found[record_type].append(address.decode())
        at = content.find(b' ' + name, end)
    return found if any(found.values()) else None


def record_type_of(address):
    """TYPES.A or TYPES.AAAA for the bytes of an address; None for what is none to the C library"""
    for family, record_type in ((socket.AF_INET, TYPES.A), (socket.AF_INET6, TYPES.AAAA)):
        try:
            socket.inet_pton(family, address.decode('ascii'))
        except (OSError, ValueError):  # ValueError: not ASCII, or a NUL
            continue
        return record_type
    return None


ResolvConf = collections.namedtuple('ResolvConf', 'servers search ndots')


def parse_resolv_conf(content):
    """Its IPv4 name servers, the domains to search, and how many dots make a name one that is tried as it is first"""
    servers, search, ndots = [], [], 1
    for line in content.split(b'\n'):
        word, *values = line.decode('latin-1').split() or ['']
        if word == 'nameserver':
            servers += values[:1]
        elif word in ('search', 'domain'):  # the last of them counts
            search = values if word == 'search' else values[:1]
        elif word == 'options':
            for value in values:
                match = re.fullmatch('ndots:([0-9]{1,9})', value)
                ndots = min(int(match.group(1)), 15) if match else ndots
    # A name in place of an address would be looked up, and the event loop stand still meanwhile.
    asked = [server for server in servers[:MAX_NAME_SERVERS] if record_type_of(server.encode()) == TYPES.A]
    return ResolvConf(tuple(asked), tuple([domain.strip('.') for domain in search]), ndots)


def parse_nsswitch_conf(content):
    """Whether the system may know names that neither the hosts file nor the name servers have"""
    lines = re.findall(rb'^[ \t]*hosts:([^#\n]*)', content, re.MULTILINE)
    sources = re.sub(rb'\[[^]]*\]', b' ', b' '.join(lines)).split()
    return not set(sources) <= {b'files', b'dns', b'myhostname'}


def candidates(host, search, ndots):
    """The names that the system would ask for, in its order. An empty domain is the root: the name as it is"""
    if host.endswith('.'):
        names = [host.rstrip('.')]
    else:
        listed = [f'{host}.{domain}' if domain else host for domain in search]
        names = [host] + listed if host.count('.') >= ndots else listed + [host]
    return [name for name in unique(names) if is_dns_name(name)]


def is_dns_name(name):
    try:
        return len(name.encode('idna')) <= MAX_NAME
    except UnicodeError:
        return False


# -------- The name servers


class _AsyncIterator:
    """A plain generator as an async iterator: an async one that is left half-way is closed later, by a task"""

    def __init__(self, generator):
        self._generator = generator

    def __aiter__(self):
        return self

    async def __anext__(self):
        for each in self._generator:
            return each
        raise StopAsyncIteration


def sharing(loop):
    """share(key, make, seconds): what a coroutine returns, which all who give its key at the same time wait for

    It is cancelled once the last of them has left. None where it has not ended after so many seconds.
    """
    running = {}  # key: [task, how many wait for it]

    async def share(key, make, seconds=None):
        if key not in running:
            running[key] = [loop.create_task(make()), 0]
        entry = running[key]
        task, _ = entry
        entry[1] += 1
        try:
            await asyncio.wait([task], timeout=seconds)
        finally:
            entry[1] -= 1
            if not entry[1]:
                del running[key]
                await ended([task])
        return task.result() if task.done() and not task.cancelled() else None

    return share


def name_server_failure(error):
    """(the Word for what aiodnsresolver raised, where it is not that there is no record; whether a server was heard)"""
    cause = error.__cause__
    if isinstance(error, DnsResponseCode):
        code, = error.args
        return Word(FAILED, f'the name server said {RCODES.get(code, f"RCODE {code}")}'), True
    if isinstance(error, DnsCnameChainTooLong):
        return Word(FAILED, 'the name server has too long a chain of aliases of it'), True
    if isinstance(cause, (struct.error, IndexError, DnsPointerLoop)) or isinstance(error, ValueError):
        return Word(FAILED, 'an answer of the name server is malformed, or longer than 512 bytes'), True
    if isinstance(error, DnsError) and cause is None:
        return Word(FAILED, 'the name servers did not answer, or not to the question as it was asked'), False
    return failure(cause or error, 'the name servers could not be reached'), False


def NameServers(loop, hosts, resolv_conf, port):
    """(look_up, known_to_exist, are_deaf_since, clear): the name servers, asked by aiodnsresolver

    - await look_up(host, record_type) is a Word; it is of the first candidate that exists, be it without this family.
    - known_to_exist(host) is that candidate, as far as it was heard of in the last seconds, or None.
    - are_deaf_since(time): whether they were asked since, and nothing was heard.
    """
    share = sharing(loop)
    asked_for = {}  # task: the name that it asks for, which after an alias is another
    heard = {}      # (name, type of record): (when, Word)
    asked_at = heard_at = float('-inf')
    resolve = forget = None
    refused = refused_with = None  # a Word of why aiodnsresolver could not be made, and with what files

    async def get_host(_, name, __):
        asked_for[current_task()] = name  # and nothing: the hosts file was asked before, by the name itself

    def servers():
        nonlocal asked_at
        for _ in range(ROUNDS):
            began = loop.time()
            for server in resolv_conf().servers:
                asked_at = loop.time()
                yield ATTEMPT, (server, port)
            # All have refused, and no answer can have been lost. Half, since timers may be some milliseconds early.
            if loop.time() < began + ATTEMPT / 2:
                return

    def make():
        """Makes aiodnsresolver's Resolver, which reads the files too, and by stricter rules; a Word if it cannot"""
        nonlocal resolve, forget, refused, refused_with
        files = hosts(), resolv_conf()
        if not files[1].servers:
            return Word(FAILED, 'resolv.conf names no name server with an IPv4 address')
        if resolve is None and refused_with != files:
            try:
                resolve, forget = Resolver(get_host=get_host, get_nameservers=lambda _, __: _AsyncIterator(servers()))
            except Exception as error:
                word = failure(error, 'aiodnsresolver could not be made')
                if word.kind == EXHAUSTED:
                    return word
                refused, refused_with = word, files
        return None if resolve else refused

    async def question(name, record_type):
        nonlocal heard_at
        task = current_task()
        was_heard = True
        try:
            word = make()
            if word is None:
                found = await resolve(name, record_type)
                word = Word(FOUND, '', unique(found), name)
            else:
                was_heard = False
        except DnsNoMatchingAnswers:
            word = Word(NO_RECORD, f'the name server has no {FAMILY[record_type]} address of it', exists=name)
        except DnsRecordDoesNotExist:
            word = Word(NO_NAME, 'the name server says that there is no such name') \
                if asked_for[task].lower() == name.lower().encode('idna') else \
                Word(FAILED, 'the name server has an alias of it, and says that there is no such name', exists=name)
        except Exception as error:
            word, was_heard = name_server_failure(error)
        finally:
            asked_for.pop(task, None)
            if forget is not None:
                await forget()  # the pool remembers; here each would keep a timer, and thereby a pool that is dropped
        if was_heard:
            heard_at = loop.time()
        if word.kind != EXHAUSTED:
            remember(heard, (name, record_type), (loop.time(), word))
        return word

    def ask(name, record_type, seconds=None):
        return share((name, record_type), functools.partial(question, name, record_type), seconds)

    def recent(name, record_type):
        when, word = heard.get((name, record_type), (float('-inf'), None))
        return word if when > loop.time() - TTL else None

    async def look_up(host, record_type):
        other = TYPES.A if record_type == TYPES.AAAA else TYPES.AAAA
        names = candidates(host, *resolv_conf()[1:])
        word = Word(NO_NAME, 'it is no name that a name server may have')
        for name in names:
            word = await ask(name, record_type)
            if word.kind == FOUND or word.kind == EXHAUSTED:
                return word
            beside = None  # what is said of the other family, where that tells whether the name exists
            if word.kind == NO_RECORD and record_type == TYPES.AAAA:
                beside = recent(name, other) or await ask(name, other)
            elif word.kind == NO_NAME and name != names[-1] or word.kind == FAILED and len(names) > 1:
                # Some servers say of a name that has but the other family that it does not exist (RFC 4074 §4.2). To
                # search on would be to go to a stranger's host.
                beside = recent(name, other) or await ask(name, other, OTHER_FAMILY)
            if beside and beside.kind == EXHAUSTED:
                return beside
            exists = word.exists or beside and beside.exists
            if word.kind == NO_NAME and not exists:
                continue
            if word.kind != FAILED and record_type == TYPES.AAAA and beside and beside.kind == FOUND:
                return Word(ABSENT, 'the name server has IPv4 addresses of it alone')
            if word.kind == NO_NAME:
                word = Word(NO_RECORD, f'the name server has no {FAMILY[record_type]} address of it')
            return word._replace(exists=exists)
        return word

    def known_to_exist(host):
        for name in candidates(host, *resolv_conf()[1:]):
            for word in (recent(name, TYPES.A), recent(name, TYPES.AAAA)):
                if word and word.exists:
                    return name
        return None

    def are_deaf_since(began):
        return heard_at < began <= asked_at

    async def clear():
        heard.clear()
        if forget is not None:
            await forget()

    return look_up, known_to_exist, are_deaf_since, clear


# -------- The system


def need_descriptors():
    """Raises OSError where there are none: then glibc says that there is no such name, or that this may pass"""
    for descriptor in os.pipe():
        os.close(descriptor)


def look_up_by_system(getaddrinfo, name):
    """The Word of the system's getaddrinfo, of both families: for one glibc searches on past a name without it"""
    try:
        need_descriptors()
        infos = getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return Word(FOUND, '', unique([info[4][0] for info in infos]), name)
    except UnicodeError:
        return Word(NO_NAME, 'it is no name that the system may have')
    except socket.gaierror as error:
        try:
            need_descriptors()  # they may have run out meanwhile
        except OSError as its_error:
            return failure(its_error, 'the system could not be asked')
        if error.errno in NO_SUCH_NAME:
            return Word(NO_NAME, f'the system said: {error.strerror}')
        return failure(error, 'the system said')
    except Exception as error:
        return failure(error, 'the system could not be asked')


class _SystemLookUp:
    """One name's: what it is, or will be, and how many wait for it"""
    __slots__ = ('answered', 'waiters', 'expires_at')

    def __init__(self, answered):
        self.answered = answered
        self.waiters = 0
        self.expires_at = float('inf')


def System(loop, getaddrinfo):
    """(look_up, clear): the system, asked in at most MAX_THREADS threads

    `await look_up(name, record_type, may_wait)` is a Word; BUSY where no thread is free, and it may not wait for one.
    """
    look_ups = {}                          # name: _SystemLookUp
    waiting = collections.OrderedDict()    # the same, of those that have no thread yet
    running = 0

    def start():
        nonlocal running
        while waiting and running < MAX_THREADS:
            name, entry = waiting.popitem(last=False)
            try:
                # Of its own and a daemon: a thread of the loop's executor would hold up the end of `asyncio.run`.
                threading.Thread(target=run, args=(name, entry), daemon=True).start()
            except RuntimeError as error:
                settle(name, entry, failure(error, 'the system could not be asked'))
            else:
                running += 1

    def run(name, entry):
        word = look_up_by_system(getaddrinfo, name)
        try:
            loop.call_soon_threadsafe(finish, name, entry, word)
        except RuntimeError:  # the loop is closed
            pass

    def finish(name, entry, word):
        nonlocal running
        running -= 1
        settle(name, entry, word)
        start()

    def settle(name, entry, word):
        entry.expires_at = loop.time() + TTL
        entry.answered.set_result(word)
        if word.kind in (FAILED, EXHAUSTED) and look_ups.get(name) is entry:  # a failure does not stand
            del look_ups[name]

    async def look_up(name, record_type, may_wait=True):
        entry = waiting.get(name) or look_ups.get(name)
        if entry is None or entry.expires_at <= loop.time():
            if not may_wait and running >= MAX_THREADS:
                return Word(BUSY, 'the system was busy')
            entry = _SystemLookUp(loop.create_future())
            remember(look_ups, name, entry)
            waiting[name] = entry
        elif not may_wait and name in waiting:
            return Word(BUSY, 'the system was busy')
        entry.waiters += 1
        start()
        try:
            await asyncio.wait([entry.answered])  # to await it itself would be to cancel it for all
        finally:
            entry.waiters -= 1
            if not entry.waiters and waiting.get(name) is entry:
                del waiting[name]
                look_ups.pop(name, None)
        word = entry.answered.result()
        if word.kind != FOUND:
            return word
        # Without those of one link alone, such as fe80::1%eth0: they are of neither type.
        addresses = tuple([OrderedAddress(address, entry.expires_at) for address in word.addresses
                           if record_type_of(address.encode()) == record_type])
        return word._replace(addresses=addresses) if addresses else \
            Word(NO_RECORD, f'the system has no {FAMILY[record_type]} address of it', exists=name)

    async def clear():
        look_ups.clear()

    return look_up, clear


def system_resolver(getaddrinfo=socket.getaddrinfo):
    """For Pool's `get_dns_resolver`: the system alone, which knows what all other programs know

    Whatever nsswitch.conf names is asked, in a thread, of which there are at most 8 at once. It tells no time: an
    answer stands for 5 seconds. `getaddrinfo` is called in place of the socket module's.
    """
    loop = asyncio.get_event_loop()
    look_up, clear = System(loop, getaddrinfo)

    async def resolve(host, record_type):
        word = await look_up(host, record_type)
        if word.kind != FOUND:
            raise outcome([word], loop.time() + TTL)
        return word.addresses

    return resolve, clear


# -------- All three


def get_dns_resolver_default(hosts=HOSTS, resolv_conf=RESOLV_CONF, nsswitch_conf=NSSWITCH_CONF, port=53,
                             getaddrinfo=socket.getaddrinfo):
    """Pool's default `get_dns_resolver`: by the hosts file, else by the name servers, else by the system

    The arguments are the paths of files to read, the port of name servers, and what is called in place of the socket
    module's `getaddrinfo`: `functools.partial` gives a function for Pool.
    """
    loop = asyncio.get_event_loop()
    read_hosts = file_reader(hosts, normalised_hosts, b'', loop.time)
    read_resolv_conf = file_reader(resolv_conf, parse_resolv_conf, ResolvConf((), (), 1), loop.time)
    system_knows_more = file_reader(nsswitch_conf, parse_nsswitch_conf, True, loop.time)
    by_name_servers, known_to_exist, are_deaf_since, clear_name_servers = \
        NameServers(loop, read_hosts, read_resolv_conf, port)
    by_system, clear_system = System(loop, getaddrinfo)
    alone_until, alone_with = float('-inf'), None  # the system; and with which resolv.conf

    def by_hosts(name, record_type):
        """The Word of the hosts file; None if the others are to be asked"""
        known = hosts_addresses(read_hosts(), name)
        if known is None and f'.{name}'.endswith('.localhost'):  # RFC 6761 §6.3
            known = LOOPBACK
        if known is None:
            return None
        expires_at = loop.time() + FILE_TTL
        addresses = tuple([OrderedAddress(address, expires_at) for address in unique(known[record_type])])
        return Word(FOUND, '', addresses) if addresses else \
            Word(ABSENT, f'the hosts file has no {FAMILY[record_type]} address of it')

    async def by_the_others(host, record_type):
        """The Words of the name servers and of the system, up to the first that settles it"""
        nonlocal alone_until, alone_with
        began = loop.time()
        config = read_resolv_conf()
        is_system_alone = began < alone_until and alone_with == config
        words = [Word(FAILED, 'the name servers have not answered of late, and are not asked')] * is_system_alone
        unasked, tasks, is_no_name, exists = words, [], False, None
        try:
            if not is_system_alone:
                tasks.append(loop.create_task(by_name_servers(host, record_type)))
                await asyncio.wait(tasks, timeout=PATIENCE)
                word = tasks[0].result() if tasks[0].done() else None
                is_no_name = word is not None and word.kind == NO_NAME
                if word and word.kind in (FOUND, ABSENT, EXHAUSTED) or is_no_name and not system_knows_more():
                    return [word]
                exists = word.exists if word else known_to_exist(host)
            system = loop.create_task(by_system(exists + '.' if exists else host, record_type, not is_no_name))
            tasks.append(system)
            pending = tasks
            while pending and not any(word.kind in (FOUND, ABSENT) for word in words):
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                words = unasked + [task.result() for task in tasks if task.done()]
                if system.done() and system.result().kind in ANSWERS and are_deaf_since(began):
                    alone_until, alone_with = loop.time() + SYSTEM_ALONE, config
            return words
        finally:
            await ended(tasks)

    async def resolve(host, record_type):
        word = by_hosts(host.rstrip('.').lower(), record_type)
        words = [word] if word else await by_the_others(host, record_type)
        for each in words:
            if each.kind == FOUND:
                return each.addresses
        ttl = FILE_TTL if word else BUSY_TTL if words[-1].kind == BUSY else TTL
        raise outcome(words, loop.time() + ttl)

    async def clear_cache():
        await clear_name_servers()
        await clear_system()

    return resolve, clear_cache
