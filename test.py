"""The tests of lowhaio: real sockets on loopback, and peers whose bytes each test states

    python test.py                                    all of them
    python test.py UrlTests                           those of a class
    python test.py UrlTests.test_ipv6_is_connected_to one

This page only loads them: from tests/, a file for each subject; and from reliability/, the short forms of its long
runs against hostile, broken and unlucky peers. What they all stand on is in reliability/harness.py.
"""
import importlib
import pkgutil
import unittest

import reliability
import tests


def classes_of(package):
    """{name: class} of the tests of a package

    To be loaded, a file has to be in the folder, and a class of it to be a TestCase with a name that ends in Tests,
    unlike that of any other: by this name it can be asked for.
    """
    found = {}
    for _, module_name, _ in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module('{}.{}'.format(package.__name__, module_name))
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, unittest.TestCase) and \
                    value.__module__ == module.__name__ and any(each.startswith('test') for each in dir(value)):
                assert name not in found, '{} and {} have the same name'.format(found[name], value)
                found[name] = value
    return found


for each in (reliability, tests):
    globals().update(classes_of(each))

if __name__ == '__main__':
    unittest.main()
