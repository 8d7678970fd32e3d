"""The README's snippets"""
import contextlib
import os
import re
import subprocess
import sys
import tempfile

from reliability.harness import CA, TEST_SECONDS, AsyncTestCase, server_context
from tests.servers import DATA, HERE

SNIPPET = '''
import asyncio
import sys
import textwrap

sys.path.insert(0, sys.argv[1])
# As a coroutine's body, for there are snippets that await.
names = {}
exec('async def snippet():\\n' + textwrap.indent(sys.stdin.read(), '    '), names)
loop = asyncio.new_event_loop()
loop.run_until_complete(names['snippet']())
loop.run_until_complete(loop.shutdown_asyncgens())
loop.close()
'''


class ReadmeTests(AsyncTestCase):
    """Each Python snippet runs as it stands, but for its url, in a process of its own, and without a warning"""

    def test_each_snippet_does_its_requests(self):
        requests = []

        def answer(peer):
            while True:
                head = peer.read_head()
                if not head:
                    return
                length = re.search(rb'\r\ncontent-length: (\d+)\r\n', head)
                body = peer.read(int(length.group(1))) if length else b''
                requests.append((head.split(b' ')[0], body))
                peer.send(b'HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nanswered')

        with open(os.path.join(HERE, 'README.md'), encoding='utf-8') as file:
            snippets = re.findall(r'^```python\n(.*?)^```', file.read(), re.MULTILINE | re.DOTALL)
        self.assertGreaterEqual(len(snippets), 2)
        base = f'https://127.0.0.1:{self.serve(answer, tls=server_context())}'
        with contextlib.ExitStack() as stack:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            authority = stack.enter_context(CA.cert_pem.tempfile())
            with open(os.path.join(directory, 'my.file'), 'wb') as file:
                file.write(DATA)
            for number, snippet in enumerate(snippets, 1):
                with self.subTest(snippet=number):
                    del requests[:]
                    process = subprocess.Popen(
                        [sys.executable, '-W', 'error', '-c', SNIPPET, HERE], cwd=directory,
                        env=dict(os.environ, SSL_CERT_FILE=authority),
                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    )
                    code = snippet.replace('https://example.com', base).encode('utf-8')
                    _, errors = process.communicate(code, TEST_SECONDS)
                    self.assertEqual((process.returncode, errors.decode()), (0, ''))
                    self.assertGreaterEqual(len(requests), 1)
                    if 'my.file' in snippet:
                        self.assertTrue(requests[0] == (b'POST', DATA))
                    if 'some-data' in snippet:
                        self.assertEqual(requests[0], (b'POST', b'some-data'))
