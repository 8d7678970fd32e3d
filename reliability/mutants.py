"""Mutation testing of the framing functions, and of redirects: each mutant must make a test fail, or be explained here

    python -m reliability.mutants [--jobs 2] [--only WORD] [--every N]

The mutations are mutmut's. The runs are not: it has no notion of a region of a file, nor of two workers. A mutant is
killed by the first of COMMANDS that fails, or that takes longer than SECONDS: some mutants wait for ever. Needs
`pip install 'mutmut<3'`.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TREE = pathlib.Path(__file__).resolve().parent.parent
# From the banner of the framing functions to the body's reader, and the framing of requests.
REGIONS = (
    (r'^def field_reader\(', r'^# -+ The url'),
    (r'^def request_framing\(', r'^# What is to be sent before'),
    (r'^# -+ The head in, and framing', r'^class ResponseBody'),
    (r'^# -+ A layer: redirects', None),  # to the end
)
# The quickest first: nearly all mutants fall to it.
COMMANDS = (
    ['-m', 'unittest', '-f', 'reliability.framing.CaseTests.test_each_case_however_it_is_cut'],
    ['test.py', '-f', 'RequestHeadTests', 'RequestFramingTests', 'ResponseFramingTests', 'LimitTests',
     'PersistenceTests'],
    ['-m', 'unittest', '-f', 'reliability.framing.BoundTests', 'reliability.framing.CaseTests'],
    ['test.py', '-f', 'RequestBodyTests', 'ErrorTests', 'ExpectTests', 'EarlyRefusalTests', 'ResponseBodyTests',
     'StreamedAndBufferedTests', 'ReuseTests'],
    ['-m', 'unittest', '-f', 'tests.redirects'],
)
SECONDS = 90

# What may survive: (a pattern for the mutated line, why no test can tell it from the original). What differs only in an
# error's sentence is not run at all: see `is_of_sentence`.
EXPLAINED = (
    (r'len\(digits\) >=? (19|20)', 'bounds the work before `int`: MAX_LENGTH judges the number'),
    (r'XX0XX\'\) or', 'digits alone are left, of which none is an X'),
    (r'XX \\tXX|XX \\t"XX', 'the members are in lower case: none has an X'),
    (r'^length = None$|len\(lengths\) >= 1', 'one length is taken for a list of one: slower, no more'),
    (r'lines\[|^lines = ', 'which line of a malformed head the error shows'),
    (r'searched = (1|max\(1,)', 'an empty line at the beginning is found, or refused, without searching'),
    (r'searched = max\(', 'searches a byte more, or again: `\\n\\r?\\n` begins at none of them'),
    (r'^in_trailers = None$', 'as false as False'),
    (r'while at <= length', 'at the end of the data, where it finds no line'),
    (r'^if len\(held\) >= longest_line', 'a line that fills its bound and has not ended will exceed it'),
    (r'^trailers = FOLD\.sub', 'trailers are judged, and skipped'),
    (r'chunk_size\.__wrapped__', 'which sizes are looked up, and which parsed: the same'),
    (r'MAX_DRAINED|^size = 1$', 'a byte more or less of a redirect that is drained'),
    (r'is_begun = None', 'as false as False'),
    (r'^count (=|-=) len\(payload\)', 'what an error says of how much came'),
)


def lines_of_regions(source):
    """The numbers of the lines, from 0, of the regions"""
    lines = source.split('\n')
    numbers = set()
    for begin, end in REGIONS:
        first = next(n for n, line in enumerate(lines) if re.search(begin, line))
        last = next((n for n, line in enumerate(lines) if n > first and end and re.search(end, line)), len(lines))
        numbers.update(range(first, last))
    return numbers


def is_of_sentence(line):
    """Whether a mutation of this line can only change an error's text"""
    return re.match(r"\s*(f'|f\"|'|raise \w+\(f?'|return HttpHeaderTooLong\(f')", line) is not None


def mutants_of(source):
    """[(mutation's id, line, mutated line, mutated source)] within the regions"""
    from mutmut import Context, list_mutations, mutate
    lines = source.split('\n')
    numbers = lines_of_regions(source)
    found = []
    for mutation_id in list_mutations(Context(source=source, filename='lowhaio.py')):
        if mutation_id.line_number not in numbers or is_of_sentence(lines[mutation_id.line_number]):
            continue
        mutated, count = mutate(Context(source=source, filename='lowhaio.py', mutation_id=mutation_id))
        if count:
            line = mutated.split('\n')[mutation_id.line_number]
            found.append((len(found) + 1, mutation_id.line_number + 1, line.strip(), mutated))
    return found


def survives(mutated):
    """Whether all COMMANDS pass in a copy of the tree with this lowhaio.py"""
    with tempfile.TemporaryDirectory() as directory:
        copy = pathlib.Path(directory, 'tree')
        shutil.copytree(TREE, copy, ignore=shutil.ignore_patterns('.*', 'bench', 'fuzz', '__pycache__', '*.egg-info'))
        (copy / 'lowhaio.py').write_text(mutated)
        environment = dict(os.environ, PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE='1')
        for command in COMMANDS:
            try:
                done = subprocess.run([sys.executable, *command], cwd=copy, env=environment, timeout=SECONDS,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            except subprocess.TimeoutExpired:
                return False
            if done.returncode:
                return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--only', default='', help='only mutants of lines with this text')
    parser.add_argument('--every', type=int, default=1, metavar='N', help='only each N-th mutant')
    arguments = parser.parse_args()
    source = (TREE / 'lowhaio.py').read_text()
    if not survives(source):
        sys.exit('The tests fail without any mutation')
    mutants = [mutant for mutant in mutants_of(source) if arguments.only in mutant[2]][::arguments.every]
    unexplained = explained = 0
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as workers:
        for count, (mutant, survived) in enumerate(zip(mutants, workers.map(lambda m: survives(m[3]), mutants)), 1):
            number, line_number, line, _ = mutant
            reason = next((why for pattern, why in EXPLAINED if survived and re.search(pattern, line)), None)
            explained += reason is not None
            unexplained += survived and reason is None
            if survived:
                print(f'survived: {number}, line {line_number}: {line}\n    {reason or "NOT EXPLAINED"}', flush=True)
            if not count % 25:
                print(f'{count} of {len(mutants)}', flush=True)
    print(f'{"FAILED" if unexplained else "passed"}: {len(mutants)} mutants, {len(mutants) - explained - unexplained} '
          f'killed, {explained} survived and explained, {unexplained} not explained')
    sys.exit(bool(unexplained))


if __name__ == '__main__':
    main()
