"""Redirects: which are followed, to where, with what method, headers and body, and what becomes of the connection"""
import asyncio
import contextlib
import ipaddress
import itertools
import time
from unittest import mock

from aiodnsresolver import TYPES, DnsRecordDoesNotExist

import lowhaio
from lowhaio import (
    HttpBodyError, HttpConnectionClosedError, HttpConnectionError, HttpDataTimeout, HttpRedirectError, HttpRequestError,
    buffered, origin, redirectable, replayable, streamed, url_with_params,
)
from reliability.exhaustion import Interrupted, by_task, let_go, pending, with_the_result
from reliability.harness import (
    OK_EMPTY, PATIENCE, AsyncTestCase, ClientSockets, client_context, pieces_of, refusing_port, server_context,
)
from tests.bodies import BodyWithoutAclose


def redirect(code, location, *fields, body=b''):
    lines = [b'location: ' + location] if location is not None else []
    return b'HTTP/1.1 %b Redirect\r\n' % code + b''.join(
        [line + b'\r\n' for line in (*lines, b'content-length: %d' % len(body), *fields)]) + b'\r\n' + body


def get_dns_resolver():
    """Every name under .test is this machine"""
    async def resolve(host, record_type):
        if record_type != TYPES.A or not host.endswith('.test'):
            raise DnsRecordDoesNotExist()
        return (ipaddress.IPv4Address('127.0.0.1'),)

    async def clear_cache():
        pass

    return resolve, clear_cache


class RedirectTestCase(AsyncTestCase):

    def setUp(self):
        super().setUp()
        self.seen = []     # (method, target, fields, body) of each request, at whichever server
        self.answers = []  # for the requests to come, in their order; then OK_EMPTY

    def pool(self, **kwargs):
        kwargs = dict(dict(get_dns_resolver=get_dns_resolver, get_ssl_context=client_context,
                           socket_timeout=PATIENCE), **kwargs)
        return super().pool(**kwargs)

    def site(self, tls=None):
        """The port of a server that reads each request whole, and answers as `answers` say"""
        def script(peer):
            while True:
                head = peer.read_head()
                if not head.endswith(b'\r\n\r\n'):  # it ended, or is of a stranger, who had this port before
                    return
                line, *lines = head[:-4].split(b'\r\n')
                method, target, _ = line.split(b' ')
                fields = [tuple(field.split(b': ', 1)) for field in lines]
                lowered = {name.lower(): value for name, value in fields}
                content = \
                    peer.read(int(lowered[b'content-length'])) if b'content-length' in lowered else \
                    peer.read_until(b'0\r\n\r\n') if b'transfer-encoding' in lowered and b'expect' not in lowered else \
                    b''
                self.seen.append((method, target, fields, content))
                answer = self.answers.pop(0) if self.answers else OK_EMPTY
                if callable(answer):
                    answer(peer)
                else:
                    peer.send(answer)
                if peer.sock.fileno() == -1:
                    return
        return self.serve(script, tls=tls)

    async def targets(self, *locations, base='/', codes=(b'302',) * 100, **kwargs):
        """What is asked of a server that redirects a GET so"""
        del self.seen[:]
        port = self.site()
        self.answers = [redirect(code, location.replace(b'PORT', b'%d' % port))
                        for code, location in zip(codes, locations)]
        request, _ = self.pool()
        code, _, _ = await redirectable(request, **kwargs)(b'GET', f'http://a.test:{port}{base}')
        self.assertEqual(code, b'200')
        return [target for _, target, _, _ in self.seen[1:]]


class RedirectMethodTests(RedirectTestCase):

    # Fetch standard, HTTP-redirect fetch. A method is its letters: `post` is none of HTTP's.
    METHODS = (
        # method, codes to which it stays, codes at which it becomes GET
        (b'GET', (b'301', b'302', b'303', b'307', b'308'), ()),
        (b'HEAD', (b'301', b'302', b'303', b'307', b'308'), ()),
        (b'POST', (b'307', b'308'), (b'301', b'302', b'303')),
        (b'PUT', (b'301', b'302', b'307', b'308'), (b'303',)),
        (b'PATCH', (b'301', b'302', b'307', b'308'), (b'303',)),
        (b'DELETE', (b'301', b'302', b'307', b'308'), (b'303',)),
        (b'OPTIONS', (b'301', b'302', b'307', b'308'), (b'303',)),
        (b'PROPFIND', (b'301', b'302', b'307', b'308'), (b'303',)),
        (b'post', (b'301', b'302', b'307', b'308'), (b'303',)),
    )
    OF_THE_BODY = ((b'Content-Type', b'a/b'), (b'content-language', b'de'), (b'CONTENT-md5', b'x'),
                   (b'Trailer', b'x'))
    OTHERS = ((b'accept', b'*/*'), (b'x-content-type', b'z'), (b'Accept', b'a/b'))

    async def test_each_method_at_each_code(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        for (method, stays, becomes_get), has_body in itertools.product(self.METHODS, (True, False)):
            for code in stays + becomes_get:
                for framing in ((), ((b'Content-Length', b'5'),), ((b'Transfer-Encoding', b'chunked'),)):
                    with self.subTest((method, code, has_body, framing)):
                        del self.seen[:]
                        self.answers = [redirect(code, b'/there')]
                        own = self.OTHERS + self.OF_THE_BODY + (framing if has_body else ())
                        await redirectable(request)(
                            method, url + 'here', headers=own, body=streamed(b'hello') if has_body else None)
                        first, second = self.seen
                        self.assertEqual(first[:2], (method, b'/here'))
                        if code in stays:
                            self.assertEqual(second, (method, b'/there') + first[2:])
                        else:
                            host = first[2][0]
                            self.assertEqual(second, (b'GET', b'/there', [host, *self.OTHERS], b''))

    async def test_what_is_expected_of_a_body_goes_with_it(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        self.answers = [redirect(b'303', b'/there')]
        await redirectable(request)(
            b'POST', url, headers=((b'Expect', b'100-continue'), (b'x', b'y')), body=pieces_of(b'hello'))
        self.assertEqual([name for name, _ in self.seen[1][2]], [b'host', b'x'])

    async def test_other_codes_and_redirects_without_a_location_are_the_answer(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        for code in (b'200', b'201', b'300', b'304', b'305', b'306', b'309', b'399', b'404', b'503'):
            with self.subTest(code):
                self.answers = [redirect(code, b'/there')]
                self.assertEqual((await redirectable(request)(b'GET', url))[0], code)
        for code in (b'301', b'302', b'303', b'307', b'308'):
            for name, fields in (('none', ()), ('empty', (b'location:',)), ('blank', (b'Location: \t ',)),
                                 ('two, empty', (b'location:', b'location:'))):
                with self.subTest((code, name)):
                    self.answers = [redirect(code, None, *fields, body=b'said')]
                    answered, _, body = await redirectable(request)(b'GET', url)
                    self.assertEqual((answered, await buffered(body)), (code, b'said'))
        self.assertEqual((len(self.seen), self.accepted), (10 + 5 * 4, 1))


class RedirectTargetTests(RedirectTestCase):

    # Where http://a/b/c/d;p?q refers. RFC 3986 §5.4
    REFERENCES = (
        ('g', 'http://a/b/c/g'), ('./g', 'http://a/b/c/g'), ('g/', 'http://a/b/c/g/'), ('/g', 'http://a/g'),
        ('//g', 'http://g'), ('?y', 'http://a/b/c/d;p?y'), ('g?y', 'http://a/b/c/g?y'), ('#s', 'http://a/b/c/d;p?q#s'),
        ('g#s', 'http://a/b/c/g#s'), ('g?y#s', 'http://a/b/c/g?y#s'), (';x', 'http://a/b/c/;x'),
        ('g;x', 'http://a/b/c/g;x'), ('g;x?y#s', 'http://a/b/c/g;x?y#s'), ('', 'http://a/b/c/d;p?q'),
        ('.', 'http://a/b/c/'), ('./', 'http://a/b/c/'), ('..', 'http://a/b/'), ('../', 'http://a/b/'),
        ('../g', 'http://a/b/g'), ('../..', 'http://a/'), ('../../', 'http://a/'), ('../../g', 'http://a/g'),
        ('../../../g', 'http://a/g'), ('../../../../g', 'http://a/g'), ('/./g', 'http://a/g'), ('/../g', 'http://a/g'),
        ('g.', 'http://a/b/c/g.'), ('.g', 'http://a/b/c/.g'), ('g..', 'http://a/b/c/g..'), ('..g', 'http://a/b/c/..g'),
        ('./../g', 'http://a/b/g'), ('./g/.', 'http://a/b/c/g/'), ('g/./h', 'http://a/b/c/g/h'),
        ('g/../h', 'http://a/b/c/h'), ('g;x=1/./y', 'http://a/b/c/g;x=1/y'), ('g;x=1/../y', 'http://a/b/c/y'),
        ('g?y/./x', 'http://a/b/c/g?y/./x'), ('g?y/../x', 'http://a/b/c/g?y/../x'), ('g#s/./x', 'http://a/b/c/g#s/./x'),
        ('g#s/../x', 'http://a/b/c/g#s/../x'), ('https:g', 'https:g'),
        # Empty segments stay, and dots remove but one of them.
        ('//g//h', 'http://g//h'), ('/g//h/', 'http://a/g//h/'), ('g//../h', 'http://a/b/c/g/h'), ('.//g', 'http://a/b/c//g'),
        ('https://g/x/../y?z', 'https://g/y?z'), ('https://g?z', 'https://g?z'), ('?', 'http://a/b/c/d;p?'),
        ('#', 'http://a/b/c/d;p?q#'), ('g/..', 'http://a/b/c/'), ('/..', 'http://a/'), ('/.', 'http://a/'),
        # No scheme begins with a digit.
        ('10:30', 'http://a/b/c/10:30'), ('./x:y', 'http://a/b/c/x:y'),
    )

    def test_references_are_resolved_as_rfc_3986_says(self):
        for reference, url in self.REFERENCES:
            with self.subTest(reference):
                self.assertEqual(lowhaio.resolved_reference('http://a/b/c/d;p?q', reference), url)
        for base, reference, url in (
                ('http://a', 'g', 'http://a/g'), ('http://a?q', 'g', 'http://a/g'), ('http://a?q', '?y', 'http://a?y'),
                ('http://a/x/../y?q', '?z', 'http://a/x/../y?z'), ('http://a/x//y', 'g', 'http://a/x//g'),
                ('http://a/x//', '../g', 'http://a/x/g'), ('http://a/b?c/d', 'g', 'http://a/g'),
                ('http://a/b#f', 'g', 'http://a/g#f'), ('http://a/b#f', 'g#h', 'http://a/g#h'),
                ('http://a/b#f', '//g', 'http://g#f'), ('http://a/b#f', '#', 'http://a/b#'),
                ('https://a/b', '//g/h', 'https://g/h')):
            with self.subTest((base, reference)):
                self.assertEqual(lowhaio.resolved_reference(base, reference), url)

    async def test_each_shape_of_a_location(self):
        for location, target in (
                (b'/x', b'/x'), (b'x', b'/one/x'), (b'../x', b'/x'), (b'?y=2', b'/one/two?y=2'), (b'?', b'/one/two?'),
                (b'#f', b'/one/two?x=1'), (b'#', b'/one/two?x=1'), (b'x?y#f', b'/one/x?y'),
                (b'//a.test:PORT/x', b'/x'), (b'http://a.test:PORT', b'/'), (b'http://b.test:PORT/x?y', b'/x?y'),
                (b'HTTP://A.TEST:PORT/x', b'/x'), (b'//b.test:PORT?y', b'/?y'),
                (b'/x//y/', b'/x//y/'), (b'/x/../y/./z', b'/y/z'), (b'.', b'/one/'),
                (b'  /x \t', b'/x'), (b'/x y', b'/x%20y'), (b'/x%09y', b'/x%09y'),
                (b'/\xc3\xa9?\xc3\xa9', b'/%C3%A9?%C3%A9'), (b'/\xe9?\xe9', b'/%E9?%E9'),
                (b'/\xe9\xc3\xa9', b'/%E9%C3%A9'), (b'/%2F%e9%', b'/%2F%e9%25'),
                (b'/x|y"<>\\^`{}', b'/x%7Cy%22%3C%3E%5C%5E%60%7B%7D'),
                (b'/\xc2\xa0\xe2\x80\xa8', b'/%C2%A0%E2%80%A8'), (b'/x;y,z', b'/x;y,z'), (b'/12:30', b'/12:30')):
            with self.subTest(location):
                self.assertEqual(await self.targets(location, base='/one/two?x=1'), [target])

    async def test_what_no_request_can_be_sent_to_is_an_error(self):
        port = self.site()
        url = f'http://a.test:{port}/one?token=secret'
        request, _ = self.pool()
        for location in (
                b'ftp://a.test/', b'mailto:a@b.test', b'javascript:alert(1)', b'data:text/plain,x', b'file:///etc/passwd',
                b'about:blank', b'http:/x', b'http:///x', b'http:x', b'http:', b'http://', b'//', b'///x', b'https:x',
                b'http://user@a.test/', b'http://user:secret@a.test/', b'//user:secret@a.test/', b'http://a.test:0/',
                b'http://a.test:65536/', b'http://a.test:x/', b'http://[::1/', b'http://[::g]/', b'http://a b/',
                b'http://a..test/', b'http://\xe9.test/', b'http://1.2.3/', b'http://0x7f.1/', b'http://a%2e.test/',
                b'/x\x01?secret', b'/x\x7f', b'/x\ty?secret', b'http://a.test\t/', b'\x0b/x', b'http://a.test\\@b.test/',
                b'httpx://a.test/'):
            with self.subTest(location):
                before = len(self.seen)
                self.answers = [redirect(b'302', location)]
                error = await self.raises(HttpRedirectError, redirectable(request)(b'GET', url))
                self.assertTrue(error.answered)
                self.assertIn(f'a.test:{port}/one', str(error))
                self.assertNotIn('secret', str(error))
                self.assertEqual(len(self.seen), before + 1)
        self.assertEqual(self.accepted, 1)

    async def test_several_locations_are_one_if_they_agree(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        self.answers = [redirect(b'302', b'/x', b'Location: /x')]
        await redirectable(request)(b'GET', url)
        self.assertEqual([target for _, target, _, _ in self.seen], [b'/', b'/x'])
        for others in ((b'location: /y',), (b'location: /x', b'location: /X'), (b'location:',)):
            with self.subTest(others):
                self.answers = [redirect(b'302', b'/x', *others)]
                error = await self.raises(HttpRedirectError, redirectable(request)(b'GET', url))
                self.assertIn('2 locations', str(error))

    async def test_params_are_of_the_first_url_and_stay_where_only_the_fragment_changes(self):
        for location, target in ((b'/x', b'/x'), (b'#f', b'/here?a=1&b=2%203&b=4'), (b'?y', b'/here?y')):
            for params in ([('b', '2 3'), ('b', 4)], {'b': ['2 3', 4]}, iter([('b', '2 3'), ('b', 4)])):
                with self.subTest((location, params)):
                    del self.seen[:]
                    self.answers = [redirect(b'302', location)]
                    request, _ = self.pool()
                    await redirectable(request)(b'GET', f'http://a.test:{self.site()}/here?a=1', params=params)
                    self.assertEqual([target for _, target, _, _ in self.seen], [b'/here?a=1&b=2%203&b=4', target])

    async def test_the_caller_is_told_of_each_with_its_absolute_url(self):
        told = []
        await self.targets(b'../x#f', b'//b.test:PORT/y', b'?z#', codes=(b'301', b'302', b'307'), base='/one/two#e',
                           on_redirect=lambda *args: told.append(args))
        port = told[0][1].split('/')[2].split(':')[1]
        self.assertEqual(told, [(b'301', f'http://a.test:{port}/x#f'), (b'302', f'http://b.test:{port}/y#f'),
                                (b'307', f'http://b.test:{port}/y?z#')])

    async def test_what_the_caller_raises_when_told_passes_and_nothing_follows(self):
        def refuse(code, url):
            raise KeyError(url)

        self.answers = [redirect(b'302', b'/x')]
        request, _ = self.pool()
        with self.assertRaises(KeyError):
            await redirectable(request, on_redirect=refuse)(b'GET', f'http://a.test:{self.site()}/')
        self.assertEqual(len(self.seen), 1)


class RedirectLimitTests(RedirectTestCase):

    async def test_so_many_are_followed_and_one_more_is_an_error(self):
        for most, kwargs in ((20, {}), (0, dict(max_redirects=0)), (1, dict(max_redirects=1)),
                             (30, dict(max_redirects=30))):
            with self.subTest(most):
                self.assertEqual(await self.targets(*[b'/%d' % number for number in range(most)], **kwargs),
                                 [b'/%d' % number for number in range(most)])
                error = await self.raises(HttpRedirectError, self.targets(*[b'/'] * (most + 1), **kwargs))
                self.assertIn(f'More than {most} ', str(error))
                self.assertEqual(len(self.seen), most + 1)

    def test_what_cannot_be_an_argument_is_refused_at_once(self):
        for arguments in (dict(max_redirects='5'), dict(max_redirects=True),
                          dict(max_redirects=None), dict(dropped=b'x-api-key'), dict(dropped='x-api-key'),
                          dict(dropped=('x-api-key',)), dict(dropped=(b'x-api-key', None)), dict(dropped=(b'',)),
                          dict(dropped=(b'x: y',)), dict(on_redirect=5)):
            with self.subTest(arguments):
                with self.assertRaises(TypeError) as caught:
                    redirectable(None, **arguments)
                self.assertIn(next(iter(arguments)), str(caught.exception))
        with self.assertRaisesRegex(ValueError, 'max_redirects .* got -1'):
            redirectable(None, max_redirects=-1)


class RedirectOriginTests(RedirectTestCase):

    SECRETS = ((b'Authorization', b'secret'), (b'authorization', b'secret'), (b'COOKIE', b'a=secret'),
               (b'Cookie', b'b=secret'), (b'proxy-Authorization', b'secret'), (b'X-Api-Key', b'secret'),
               (b'x-api-key', b'secret'))
    OTHERS = ((b'accept', b'*/*'), (b'Referer', b'x'), (b'x-api-keys', b'y'), (b'accept', b'a/b'))

    def headers_after(self, index):
        return [field for field in self.seen[index][2] if field[0] != b'host']

    async def test_credentials_go_to_their_own_origin_alone(self):
        http, other, https = self.site(), self.site(), self.site(tls=server_context('a.test', 'b.test'))
        at = dict(base=f'http://a.test:{http}', host=f'http://b.test:{http}', port=f'http://a.test:{other}',
                  subdomain=f'http://www.a.test:{http}', dot=f'http://a.test.:{http}', scheme=f'https://a.test:{https}')
        own = tuple(itertools.chain(*itertools.zip_longest(self.SECRETS, self.OTHERS, fillvalue=(b'x', b'y'))))
        request, _ = self.pool()
        for what, begin, locations, kept in (
                ('the same', 'base', ('base', '', '?x', 'base'), (True, True, True, True)),
                ('another host', 'base', ('host',), (False,)),
                ('a subdomain', 'base', ('subdomain',), (False,)),
                ('a dot at the end', 'base', ('dot',), (False,)),
                ('another port', 'base', ('port',), (False,)),
                ('another scheme', 'base', ('scheme',), (False,)),
                ('https to http', 'scheme', ('base',), (False,)),
                ('away and back', 'base', ('base', 'host', 'base', 'base'), (True, False, False, False)),
        ):
            for code in (b'301', b'303', b'307'):
                with self.subTest((what, code)):
                    del self.seen[:]
                    self.answers = [redirect(code, (at.get(each, each) + '/').encode()) for each in locations]
                    await redirectable(request, dropped=(b'X-api-KEY',), downgrade=True)(
                        b'GET', at[begin] + '/', headers=own)
                    self.assertEqual(self.headers_after(0), list(own))
                    for index, is_kept in enumerate(kept, 1):
                        self.assertEqual(self.headers_after(index), [
                            field for field in own if is_kept or field not in self.SECRETS])

    async def test_what_is_not_named_is_sent_and_names_may_come_from_anywhere_once(self):
        http, other = self.site(), self.site()
        request, _ = self.pool()
        for dropped in ((), iter([b'x-api-key']), {b'X-API-KEY'}):
            follow = redirectable(request, dropped=dropped)
            for _ in range(2):
                del self.seen[:]
                self.answers = [redirect(b'302', b'http://a.test:%d/' % other)]
                await follow(b'GET', f'http://a.test:{http}/', headers=((b'x-api-key', b'k'), (b'cookie', b'c')))
                self.assertEqual(self.headers_after(1), [] if dropped != () else [(b'x-api-key', b'k')])

    async def test_the_callers_host_is_of_its_origin(self):
        http, other = self.site(), self.site()
        request, _ = self.pool()
        self.answers = [redirect(b'302', b'/x'), redirect(b'302', b'http://a.test:%d/' % other),
                        redirect(b'302', b'http://a.test:%d/' % http)]
        await redirectable(request)(b'GET', f'http://a.test:{http}/', headers=((b'Host', b'virtual.test'),))
        hosts = [value for _, _, fields, _ in self.seen for name, value in fields if name.lower() == b'host']
        self.assertEqual(hosts, [
            b'virtual.test', b'virtual.test', b'a.test:%d' % other, b'a.test:%d' % http])

    async def test_https_does_not_become_http_unless_asked(self):
        http, https = self.site(), self.site(tls=server_context('a.test'))
        request, _ = self.pool()
        location = b'http://a.test:%d/x?secret' % http
        self.answers = [redirect(b'302', location)]
        error = await self.raises(HttpRedirectError, redirectable(request)(b'GET', f'https://a.test:{https}/'))
        self.assertIn(f'a.test:{http}/x', str(error))
        self.assertNotIn('secret', str(error))
        self.assertEqual(len(self.seen), 1)
        self.answers = [redirect(b'302', location)]
        await redirectable(request, downgrade=True)(b'GET', f'https://a.test:{https}/')
        self.assertEqual(len(self.seen), 3)

    async def test_headers_of_every_kind_are_sent_each_time(self):
        pairs = ((b'a', b'1'), (b'b', b'2'))
        for name, headers in (('pairs', pairs), ('lists', [list(pair) for pair in pairs]), ('iterator', iter(pairs)),
                              ('mapping', dict(pairs)), ('none', None)):
            with self.subTest(name):
                del self.seen[:]
                self.answers = [redirect(b'302', b'/x')]
                request, _ = self.pool()
                await redirectable(request)(b'GET', f'http://a.test:{self.site()}/', headers=headers)
                for index in (0, 1):
                    self.assertEqual(self.headers_after(index), [] if headers is None else list(pairs))


class Again:
    """A body that is an iterable, and not its own iterator"""

    def __aiter__(self):
        return pieces_of(b'he', b'llo')


class Once(BodyWithoutAclose):
    """A body that is its own iterator, of which `content_length` may be said"""

    def __init__(self, **attributes):
        super().__init__(b'he', b'llo')
        vars(self).update(attributes)


class Begun(Once):
    """Its own iterator, which has nothing to give before `__aiter__`"""

    def __init__(self):
        pass

    def __aiter__(self):
        self.pieces = [b'he', b'llo']
        return self


class RedirectBodyTests(RedirectTestCase):

    BODIES = (
        # what, body, whether it can be played again
        ('none', lambda: None, True),
        ('streamed', lambda: streamed(b'hello'), True),
        ('a function', lambda: lambda: pieces_of(b'he', b'llo'), True),
        ('a class', lambda: Again, True),
        ('an iterable', Again, True),
        ('a generator', lambda: pieces_of(b'he', b'llo'), False),
        ('an iterator', Once, False),
        ('an iterator of known length', lambda: Once(content_length=5), False),
        ('an iterator that begins when it is iterated', Begun, False),
    )

    def test_which_bodies_can_be_played_again(self):
        for what, make, is_replayable in self.BODIES:
            with self.subTest(what):
                self.assertIs(replayable(make()), is_replayable)

    async def test_bodies_are_sent_again_where_they_can_be(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        for code, (what, make, is_replayable) in itertools.product((b'307', b'308'), self.BODIES):
            with self.subTest((code, what)):
                del self.seen[:]
                self.answers = [redirect(code, b'/x')]
                following = redirectable(request)(b'POST', url, body=make())
                if is_replayable:
                    await following
                    self.assertEqual(self.seen[0][2:], self.seen[1][2:])
                else:
                    error = await self.raises(HttpRedirectError, following)
                    self.assertIn('once', str(error))
                    self.assertEqual(len(self.seen), 1)
                    content = b'hello' if what.endswith('length') else b'2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n'
                    self.assertEqual(self.seen[0][3], content)

    async def test_a_body_that_is_not_asked_for_again_may_be_of_any_kind(self):
        url = f'http://a.test:{self.site()}/'
        request, _ = self.pool()
        for code, (what, make, _) in itertools.product((b'301', b'302', b'303'), self.BODIES):
            with self.subTest((code, what)):
                del self.seen[:]
                self.answers = [redirect(code, b'/x')]
                await redirectable(request)(b'POST', url, body=make())
                self.assertEqual([(method, content) for method, _, _, content in self.seen[1:]], [(b'GET', b'')])

    async def test_a_generator_that_was_not_begun_is_sent_to_the_target(self):
        def answers_at_once(peer):
            peer.send(redirect(b'307', b'http://a.test:%d/x' % port))
            peer.abort()

        def asks_for_the_body(peer):
            peer.send(b'HTTP/1.1 100 Continue\r\n\r\n')
            received.append(peer.read_until(b'0\r\n\r\n'))
            peer.send(OK_EMPTY)

        port, received = self.site(), []
        request, _ = self.pool(expect_timeout=PATIENCE)
        for body in (pieces_of(b'hello'), Once()):
            self.answers = [answers_at_once, asks_for_the_body]
            code, _, _ = await redirectable(request)(
                b'POST', f'http://a.test:{port}/', headers=((b'expect', b'100-continue'),), body=body)
            self.assertEqual(code, b'200')
        self.assertEqual(received, [b'5\r\nhello\r\n0\r\n\r\n', b'2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n'])

    async def test_a_function_that_returns_a_spent_generator_sends_nothing_in_its_place(self):
        generator = pieces_of(b'hello')
        self.answers = [redirect(b'307', b'/x')]
        request, _ = self.pool()
        await self.raises(HttpBodyError, redirectable(request)(
            b'POST', f'http://a.test:{self.site()}/', body=lambda: generator))
        self.assertEqual(len(self.seen), 1)

    async def test_what_is_no_body_is_refused_as_without_redirects(self):
        request, _ = self.pool()
        spent = pieces_of(b'hello')
        await buffered(spent)
        for body in (b'hello', 'hello', 5, [b'hello'], spent):
            error = await self.raises(HttpRequestError, redirectable(request)(b'POST', 'http://a.test/', body=body))
            self.assertIn('body', str(error))

    async def test_a_body_is_closed_once_it_was_played(self):
        closed = []

        class Closed(Once):
            async def aclose(self):
                closed.append(len(self.pieces))

        self.answers = [redirect(b'302', b'/x')]
        request, _ = self.pool()
        await redirectable(request)(b'POST', f'http://a.test:{self.site()}/', body=Closed())
        self.assertEqual(closed, [0])


class RedirectAnswerTests(RedirectTestCase):
    """What becomes of the answer that redirects, and of its connection"""

    async def follow(self, answer, accepted, least=0.0, most=PATIENCE / 2, layer=lambda request: request, **kwargs):
        """A GET whose redirect is `answer`, and whether it took so many connections and seconds"""
        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets, **kwargs)
        self.answers = [answer]
        before, began = self.accepted, time.monotonic()
        code, _, body = await redirectable(layer(request))(b'GET', f'http://a.test:{self.site()}/')
        self.assertEqual((code, await buffered(body)), (b'200', b''))
        self.assertTrue(least <= time.monotonic() - began <= most)
        self.assertEqual(self.accepted, before + accepted)
        self.assertEqual(sockets.count_open(), 1)

    async def test_a_short_one_is_read_and_its_connection_serves_again(self):
        for name, answer in (
                ('none', redirect(b'302', b'/x')),
                ('a length', redirect(b'302', b'/x', body=b'moved')),
                ('64 KiB', redirect(b'302', b'/x', body=bytes(65536))),
                ('chunked', b'HTTP/1.1 302 F\r\nlocation: /x\r\ntransfer-encoding: chunked\r\n\r\n'
                            b'5\r\nmoved\r\n0\r\n\r\n')):
            with self.subTest(name):
                await self.follow(answer, 1)

    async def test_of_a_long_one_the_connection_is_closed(self):
        def endless(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\n\r\n')
            while True:
                peer.send(bytes(100000))

        with mock.patch.object(lowhaio, 'MAX_DRAIN_SECONDS', PATIENCE):
            await self.follow(redirect(b'302', b'/x', body=bytes(1000000)), 2)
            await self.follow(endless, 2)
            await self.follow(endless, 2, recv_bufsize=1000)

    async def test_of_one_that_drips_or_halts_the_connection_is_closed_in_time(self):
        def drips(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 1000\r\n\r\n')
            while True:
                peer.send(b'x')
                time.sleep(0.01)

        def halts(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 1000\r\n\r\n' + bytes(999))
            peer.read_to_close()

        self.assertEqual(lowhaio.MAX_DRAIN_SECONDS, 1)
        with mock.patch.object(lowhaio, 'MAX_DRAIN_SECONDS', 0.2):
            for answer in (drips, halts):
                with self.subTest(answer.__name__):
                    await self.follow(answer, 2, least=0.2)

    async def test_the_same_where_a_layer_between_made_it_a_generator(self):
        def as_generators(request):
            async def generating_request(*args, **kwargs):
                code, headers, body = await request(*args, **kwargs)

                async def pieces():
                    try:
                        async for piece in body:
                            yield piece
                    finally:
                        await body.aclose()
                return code, headers, pieces()
            return generating_request

        def halts(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 1000\r\n\r\n' + bytes(999))
            peer.read_to_close()

        with mock.patch.object(lowhaio, 'MAX_DRAIN_SECONDS', 0.2):
            for answer, accepted in ((halts, 2), (redirect(b'302', b'/x', body=bytes(5000)), 1)):
                await self.follow(answer, accepted, layer=as_generators)

    async def test_of_the_last_of_its_connection_nothing_is_read(self):
        def halts(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 9\r\nconnection: close\r\n\r\nx')
            peer.read_to_close()

        with mock.patch.object(lowhaio, 'MAX_DRAIN_SECONDS', PATIENCE):
            await self.follow(halts, 2)

    async def test_what_another_layer_raises_while_it_is_read_passes(self):
        async def request(method, url, headers=(), body=None):
            async def pieces():
                yield b'x'
                raise KeyError('of a layer')
            return b'302', ((b'location', b'/x'),), pieces()

        with self.assertRaises(KeyError):
            await redirectable(request)(b'GET', 'http://a.test/')

    async def test_one_that_breaks_off_counts_all_the_same(self):
        def breaks_off(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 5\r\n\r\nmo')
            peer.abort()

        await self.follow(breaks_off, 2)
        await self.follow(b'HTTP/1.1 302 F\r\nlocation: /x\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n', 2)

    async def test_it_is_closed_though_it_is_not_followed(self):
        def refuse(code, url):
            raise KeyError(url)

        for location, kwargs in ((b'ftp://x/', {}), (b'/x', dict(max_redirects=0)), (b'/x', dict(on_redirect=refuse))):
            sockets = ClientSockets()
            request, close = self.pool(set_sock_options=sockets)
            self.answers = [redirect(b'302', location, body=bytes(1000000))]
            with self.assertRaises((HttpRedirectError, KeyError)):
                await redirectable(request, **kwargs)(b'GET', f'http://a.test:{self.site()}/')
            self.assertEqual(sockets.count_open(), 0)


class RedirectFailureTests(RedirectTestCase):

    async def test_what_fails_before_a_redirect_fails_as_without(self):
        request, _ = self.pool()
        follow = redirectable(request)
        await self.raises(HttpConnectionError, follow(b'GET', f'http://127.0.0.1:{refusing_port()}/'))
        await self.raises(lowhaio.HttpDnsError, follow(b'GET', 'http://nowhere.invalid/'))
        for arguments in (dict(url='nonsense'), dict(method='GET'), dict(headers=((b'a', b'\n'),)), dict(headers=5),
                          dict(params=5), dict(url='nonsense', params={'a': 'b'})):
            with self.subTest(arguments):
                await self.raises(HttpRequestError, follow(
                    **dict(dict(method=b'GET', url='http://a.test/'), **arguments)))

    async def test_after_one_nothing_says_that_nothing_was_sent(self):
        port, closing = self.site(), self.serve(lambda peer: peer.abort())
        posts = []

        def with_retries(request, attempts=3):  # the README's
            async def retrying_request(method, url, **kwargs):
                for attempt in range(1, attempts + 1):
                    try:
                        return await request(method, url, **kwargs)
                    except HttpConnectionError:
                        if attempt == attempts:
                            raise
            return retrying_request

        async def counted(method, url, **kwargs):
            posts.append(method)
            return await request(method, url, **kwargs)

        request, _ = self.pool()
        for what, location, cause in (
                ('refused', b'http://127.0.0.1:%d/x?secret' % refusing_port(), HttpConnectionError),
                ('no such name', b'http://nowhere.invalid/x?secret', lowhaio.HttpDnsError),
                ('no TLS', b'https://a.test:%d/x?secret' % closing, lowhaio.HttpTlsError)):
            for code, count in itertools.product((b'303', b'307'), (1, 3)):
                with self.subTest((what, code, count)):
                    del self.seen[:], posts[:]
                    self.answers = [redirect(code, b'/y')] * (count - 1) + [redirect(code, location)]
                    error = await self.raises(HttpRedirectError, with_retries(redirectable(counted))(
                        b'POST', f'http://a.test:{port}/', body=streamed(b'hello')))
                    self.assertIs(type(error.__cause__), cause)
                    self.assertEqual((len(self.seen), len(posts)), (count, count + 1))
                    self.assertIn(f'redirect {count}', str(error))
                    self.assertIn(str(error.__cause__), str(error))
                    self.assertNotIn('secret', str(error))

    async def test_a_request_that_is_refused_after_one_is_no_request_error(self):
        async def request(method, url, headers=(), body=None):
            if url.endswith('/y'):
                raise HttpRequestError('The pool is closed')
            return b'303', ((b'location', b'/y'),), pieces_of()

        error = await self.raises(HttpRedirectError, redirectable(request)(b'POST', 'http://a.test/'))
        self.assertIsInstance(error.__cause__, HttpRequestError)

    async def test_what_fails_after_its_request_was_sent_says_so_itself(self):
        request, _ = self.pool(socket_timeout=0.2)
        for what, answer, raised in (('closed', lambda peer: peer.abort(), HttpConnectionClosedError),
                                     ('silent', lambda peer: peer.read_to_close(), HttpDataTimeout)):
            with self.subTest(what):
                self.answers = [redirect(b'303', b'/x', b'connection: close'), answer]
                error = await self.raises(raised, redirectable(request)(b'POST', f'http://a.test:{self.site()}/'))
                self.assertTrue(error.answered)  # that is, the caller's request was

    async def test_a_post_that_was_answered_never_looks_like_one_that_met_a_closing_server(self):
        def closes_all(peer):
            closed.append(True)
            peer.abort()

        def refuse(sock):
            if closed:
                raise ConnectionRefusedError('closed')

        closed = []
        request, _ = self.pool(set_sock_options=refuse)
        url = f'http://a.test:{self.site()}/'
        await request(b'GET', url)
        self.answers = [redirect(b'303', b'/done'), closes_all]
        error = await self.raises(HttpConnectionClosedError, redirectable(request)(b'POST', url))
        self.assertEqual((error.reused, error.answered), (True, True))
        self.assertEqual([method for method, *_ in self.seen], [b'GET', b'POST', b'GET'])

    async def test_an_error_names_the_origin_and_the_path_of_what_it_is_about(self):
        port = self.site()
        url = f'http://a.test:{port}/@scope/pkg?secret'
        request, _ = self.pool()
        self.answers = [redirect(b'302', b'ftp://x/'), redirect(b'302', b'/@a/b?secret'), redirect(b'302', b'/c')]
        for kwargs, expected in (({}, '/@scope/pkg'), (dict(max_redirects=1), '/@a/b')):
            error = await self.raises(HttpRedirectError, redirectable(request, **kwargs)(b'GET', url))
            self.assertIn(f'http://a.test:{port}{expected}', str(error))
            self.assertNotIn('secret', str(error))

    async def test_who_is_told_may_not_be_a_coroutine_function(self):
        async def told(code, url):
            raise AssertionError('it is not awaited')

        self.answers = [redirect(b'302', b'/x')]
        request, _ = self.pool()
        with self.assertRaisesRegex(TypeError, 'on_redirect'):
            await redirectable(request, on_redirect=told)(b'GET', f'http://a.test:{self.site()}/')

    async def test_keywords_that_it_does_not_know_are_passed_on_each_time(self):
        calls = []

        async def request(method, url, headers=(), body=None, **kwargs):
            calls.append((method, url, headers, kwargs))
            return (b'302' if len(calls) < 3 else b'200'), ((b'location', b'/x'),), pieces_of()

        await redirectable(request)(b'GET', 'http://a.test/', socket_timeout=3, other=None)
        self.assertEqual([kwargs for *_, kwargs in calls], [dict(socket_timeout=3, other=None)] * 3)

    async def test_it_may_be_interrupted_at_every_suspension(self):
        def drips(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: http://b.test:%d/x\r\ncontent-length: 4\r\n\r\n' % port)
            for _ in range(4):
                time.sleep(0.005)
                peer.send(b'x')

        port = self.site()
        for how in (pending, with_the_result, let_go):
            for n in itertools.count():
                with self.subTest((how.__name__, n)):
                    sockets = ClientSockets()
                    request, close = self.pool(set_sock_options=sockets)
                    self.answers = [drips, redirect(b'307', b'/y', body=b'moved')]
                    interrupted = Interrupted(self.loop, redirectable(request)(
                        b'POST', f'http://a.test:{port}/', body=streamed(b'hello')), n, how)
                    task = self.loop.create_task(by_task(interrupted))
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                        self.assertTrue(how is let_go or not interrupted.reached, 'a cancellation was swallowed')
                    if not interrupted.reached:
                        break
                    await close()
                    self.assertEqual(sockets.count_open(), 0)
            self.assertGreaterEqual(n, 4)

    async def test_a_cancelled_one_closes_a_body_that_halts(self):
        def halts(peer):
            peer.send(b'HTTP/1.1 302 F\r\nlocation: /x\r\ncontent-length: 1000\r\n\r\n')
            peer.read_to_close()

        sockets = ClientSockets()
        request, _ = self.pool(set_sock_options=sockets)
        self.answers = [halts]
        task = self.loop.create_task(redirectable(request)(b'GET', f'http://a.test:{self.site()}/'))
        while not self.seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        self.assertEqual(sockets.count_open(), 0)


class UrlHelperTests(RedirectTestCase):

    def test_an_origin_is_scheme_host_and_port(self):
        for url, expected in (
                ('http://a.test', ('http', 'a.test', 80)), ('HTTPS://A.test/x', ('https', 'a.test', 443)),
                ('http://a.test:443?x', ('http', 'a.test', 443)), ('https://a.test:443/', ('https', 'a.test', 443)),
                ('http://[::0:1]:8080/#f', ('http', '::1', 8080)),
                ('http://b\xfccher.test', ('http', 'xn--bcher-kva.test', 80)),
                ('http://127.0.0.1/', ('http', '127.0.0.1', 80))):
            with self.subTest(url):
                self.assertEqual(origin(url), expected)
        for url in ('a.test', '/x', 'ftp://a.test', None, b'http://a.test'):
            with self.assertRaises(HttpRequestError):
                origin(url)

    def test_params_become_part_of_a_url_and_nothing_else_in_it_changes(self):
        for url, params, expected in (
                ('http://A.test', {'a': 'b'}, 'http://A.test?a=b'), ('http://a.test/#f', {'a': 'b'}, 'http://a.test/?a=b#f'),
                ('http://a.test/x?y', [('a', 1), ('a', 2)], 'http://a.test/x?y&a=1&a=2'),
                ('http://a.test/x?', {'a': 'b c'}, 'http://a.test/x?a=b%20c'),
                ('http://a.test/x?y&', {'a': ['b', '&']}, 'http://a.test/x?y&a=b&a=%26'),
                ('http://a.test/\xe9%?\xe9', {'\xe9': '\xe9'}, 'http://a.test/\xe9%?\xe9&%C3%A9=%C3%A9'),
                ('http://a.test/x#y?z', {'a': 'b'}, 'http://a.test/x?a=b#y?z'),
                ('http://a.test/x?y#f', (), 'http://a.test/x?y#f')):
            with self.subTest(url):
                self.assertEqual(url_with_params(url, params), expected)
        for url, params in (('a.test', {}), ('http://u@a.test', {}), ('http://a.test/\r', {}), ('http://a.test', 5),
                            ('http://a.test', {'a': None}), ('http://a.test/\ud800', {})):
            with self.subTest((url, params)), self.assertRaises(HttpRequestError):
                url_with_params(url, params)
