"""What is fuzzed: python -m fuzz.targets TARGET [options and folders of libFuzzer]; see fuzz.run"""
import sys

import atheris

# The judge too: lowhaio's patterns are opaque to coverage, and the judge's steps are not.
with atheris.instrument_imports(include=['lowhaio', 'reliability.properties']):
    from lowhaio import HttpRequestError, split_url
    from reliability.properties import Client, body_of, check_hostile_request, judged

METHODS = (b'GET', b'GET', b'HEAD', b'POST')
LIMITS = (65536, 65536, 200, 50)
BODIES = ('none', 'a generator', 'a function', 'an iterable')

client = Client()


def fuzz_response(data):
    """Four bytes choose the method, two ways to cut, and the limit; the others are the wire"""
    if len(data) < 4:
        return
    method, limit, wire = METHODS[data[0] % 4], LIMITS[data[3] % 4], data[4:]
    verdict = judged(method, wire, limit)
    for size in (data[1], data[2]):
        (outcome,), _ = client.play([(method, wire, (size,) if size else ())], limit)
        assert outcome in verdict.errors if verdict.errors else outcome == verdict.outcome, \
            (outcome, verdict.errors, verdict.rule, verdict.outcome)


def fuzz_request(data):
    """Parts, with 0xFF between: kind of body and method, url, a param, two fields, and the pieces of the body"""
    method, url, *parts = data.split(b'\xff') + [b''] * (7 - data.count(b'\xff'))
    param, fields, pieces = tuple(parts[:2]), [tuple(parts[2:4]), tuple(parts[4:6])], parts[6:]
    kind, method = BODIES[sum(method[:1]) % 4], method[1:]
    url = url.decode('utf-8', 'surrogateescape')
    check_hostile_request(client, dict(
        method=method, url=url, params=[param] if any(param) else (),
        headers=[field for field in fields if any(field)], body=body_of(kind, pieces)), pieces)
    try:
        key, authority, target = split_url(url)
    except HttpRequestError:
        return
    assert split_url('{}://{}{}'.format(key[0], authority.decode(), target.decode())) == (key, authority, target)


if __name__ == '__main__':
    target = {'response': fuzz_response, 'request': fuzz_request}[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
