"""The tests of lowhaio: real sockets on loopback, and peers whose bytes each test states

    python test.py                                    all of them
    python test.py UrlTests                           those of a class
    python test.py UrlTests.test_ipv6_is_connected_to one

This page only loads them: from tests/, a file for each subject; and from reliability/, the short forms of its long
runs against hostile, broken and unlucky peers. What they all stand on is in reliability/harness.py.
"""
import collections
import importlib
import pkgutil
import platform
import unittest

import reliability
import tests
from reliability.harness import USE_UVLOOP

SECONDS = 80  # that all of them take, where nothing else runs on two cores


def is_loaded(value, module):
    return isinstance(value, type) and issubclass(value, unittest.TestCase) and \
        value.__module__ == module.__name__ and bool(unittest.defaultTestLoader.getTestCaseNames(value))


def classes_of(*packages):
    """{name: class} of the tests of these packages

    To be loaded, a file has to be in the folder, no more. Its classes of tests are TestCases that it defines itself,
    whose names end in Tests, and are unlike those of all others: by its name a class is asked for.
    """
    found = {}
    for package in packages:
        for _, module_name, _ in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
            module = importlib.import_module(module_name)
            for name, value in vars(module).items():
                if is_loaded(value, module):
                    assert name.endswith('Tests') and name not in found, '{} cannot be asked for by name'.format(value)
                    found[name] = value
    return found


CLASSES = classes_of(reliability, tests)
globals().update(CLASSES)


class Runner(unittest.TextTestRunner):
    """Says at the start what it will do, and at the end what it has not done, and why"""

    def run(self, test):
        count = test.countTestCases()
        whole = sum(len(unittest.defaultTestLoader.getTestCaseNames(each)) for each in CLASSES.values())
        self.stream.writeln('{} of {} tests, by Python {} and {}. They stay on loopback, and take {}.'.format(
            count, whole, platform.python_version(), 'uvloop' if USE_UVLOOP else 'the event loop of asyncio',
            'about {} seconds if nothing else runs here'.format(SECONDS) if count == whole else
            'less than all do, which is about {} seconds'.format(SECONDS)))
        self.stream.flush()
        result = super().run(test)
        skipped = collections.defaultdict(list)
        for each, reason in result.skipped:
            class_name, name = each.id().partition(' ')[0].split('.')[-2:]
            skipped[reason, class_name].append(name)
        for (reason, class_name), names in sorted(skipped.items()):
            is_whole = len(names) == len(unittest.defaultTestLoader.getTestCaseNames(CLASSES[class_name]))
            for name in [class_name] if is_whole else sorted('{}.{}'.format(class_name, name) for name in names):
                self.stream.writeln('Skipped: {}: {}'.format(name, reason))
        return result


if __name__ == '__main__':
    unittest.main(testRunner=Runner)
