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


def classes_of(package):
    """{name: class} of the tests of a package

    To be loaded, a file has to be in the folder, no more. Its classes of tests are TestCases that it defines itself,
    whose names end in Tests, and are unlike those of all others: by its name a class is asked for.
    """
    found = {}
    for _, module_name, _ in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module('{}.{}'.format(package.__name__, module_name))
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and \
                    value.__module__ == module.__name__ and unittest.defaultTestLoader.getTestCaseNames(value):
                assert name.endswith('Tests') and name not in found, '{} cannot be loaded by its name'.format(value)
                found[name] = value
    return found


CLASSES = dict(classes_of(reliability))
for each in classes_of(tests).values():
    assert CLASSES.setdefault(each.__name__, each) is each, '{} has the name of another'.format(each)
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
