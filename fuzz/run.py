"""Fuzzes lowhaio, and says how often it was executed

    python -m fuzz.run [response|request] [--seconds N] [--keep FOLDER]
    python -m fuzz.run [response|request] --executions N    # the same ones each time

A finding is saved as `fuzz/found-*`, and the exit code is not 0; `--play FILE` plays it again.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# What framing turns on, as libFuzzer's dictionary.
TOKENS = (
    b'HTTP/1.1 ', b'HTTP/1.0 ', b'HTTP/1.1 100 \r\n\r\n', b'200 OK', b'204', b'304', b'101', b'\r\n', b'\r\n\r\n',
    b'\n\n', b'\r\n ', b'\n\t', b'\0', b' :', b', ', b'content-length: ', b'content-length: 5\r\n', b'5, 5',
    b'transfer-encoding: ', b'transfer-encoding: chunked\r\n', b'chunked', b'connection: close\r\n', b'host', b'expect',
    b'connection: keep-alive\r\n', b'keep-alive: timeout=5\r\n', b'0\r\n\r\n', b'5\r\nhello\r\n', b';a="b"\r\n',
    b'9223372036854775808', b'ffffffffffffffff', b'http://', b'https://', b'[::1]', b':8080', b'xn--', b'%0d%0a',
    b'user@', b'\xff',
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('target', choices=('response', 'request'), nargs='?', default='response')
    parser.add_argument('--seconds', type=int, default=900)
    parser.add_argument('--executions', type=int, help='how many, and from one seed, instead of until a time')
    parser.add_argument('--keep', help='a folder, in which what adds coverage is kept')
    parser.add_argument('--play', help='a file, which is played alone')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dictionary, kept = os.path.join(folder, 'dictionary'), options.keep or os.path.join(folder, 'kept')
        os.makedirs(kept, exist_ok=True)
        with open(dictionary, 'w', encoding='ascii') as file:
            file.writelines('"{}"\n'.format(''.join('\\x%02x' % byte for byte in token)) for token in TOKENS)
        arguments = [options.play] if options.play else [
            kept, os.path.join(HERE, 'corpus', options.target), '-dict=' + dictionary,
            '-max_len=500', '-len_control=0', '-use_value_profile=1', '-timeout=60', '-report_slow_units=60',
            '-print_final_stats=1', '-artifact_prefix=' + os.path.join(HERE, 'found-'),
        ] + (['-seed=1', '-runs={}'.format(options.executions)] if options.executions else
             ['-max_total_time={}'.format(options.seconds)])
        # In a process of its own: libFuzzer ends it without a cleaning up.
        fuzzer = subprocess.Popen(
            [sys.executable, '-m', 'fuzz.targets', options.target] + arguments,
            stderr=subprocess.PIPE, universal_newlines=True, errors='replace',
            env=dict(os.environ, TMPDIR=folder, **{'PYTHONHASHSEED': '1'} if options.executions else {}))
        executions = 0
        for line in fuzzer.stderr:
            sys.stderr.write(line)
            match = re.match(r'stat::number_of_executed_units: +(\d+)', line)
            executions = int(match.group(1)) if match else executions
        failed = fuzzer.wait()
    result = 'failed' if failed else 'passed'
    sys.stdout.write('{}: {} executions of the {}\n'.format(result, executions, options.target))
    sys.exit(bool(failed))


if __name__ == '__main__':
    main()
