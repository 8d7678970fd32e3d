import os
import re

from setuptools import setup

HERE = os.path.dirname(os.path.abspath(__file__))

with open(os.path.join(HERE, 'README.md'), encoding='utf-8') as file:
    LONG_DESCRIPTION = file.read()

with open(os.path.join(HERE, 'lowhaio.py'), encoding='utf-8') as file:
    VERSION = re.search("^__version__ = '(.+)'$", file.read(), re.MULTILINE).group(1)

# The pip that comes with Python 3.6 takes no wheels newer than manylinux1, and asks for a compiler instead; and from
# an index that does not tell it, it does not learn that a release needs a later Python. So the last that suit it are
# named here. aiohttp would need eight more: without it the tests against its server say that they are skipped.
PYTHON_36 = '; python_version < "3.7"'
PYTHON_37 = '; python_version >= "3.7"'
PYTHON_37_38 = PYTHON_37 + ' and python_version < "3.9"'
PYTHON_39 = '; python_version >= "3.9"'
# What it makes up for is in the standard library from 3.14 on, and it needs 3.10.
BACKPORTS_ZSTD = 'backports.zstd>=1; python_version >= "3.10" and python_version < "3.14"'

MODULES = ['lowhaio', 'lowhaio_names', 'lowhaio_layers']

setup(
    name='lowhaio',
    version=VERSION,
    description='A lightweight, functional HTTP/1.1 client for asyncio: one module, bodies streamed both ways',
    long_description=LONG_DESCRIPTION,
    long_description_content_type='text/markdown',
    author='lowhaio contributors',
    license='MIT',
    py_modules=MODULES,
    # A module of a single file cannot carry `py.typed`: its types are a package of their own (PEP 561).
    packages=[f'{module}-stubs' for module in MODULES],
    package_data={f'{module}-stubs': ['__init__.pyi'] for module in MODULES},
    python_requires='>=3.6.3',
    install_requires=['aiodnsresolver>=0.0.140'],
    extras_require={
        # For lowhaio_layers. Before 1.2 what brotli gives at once had no bound.
        'brotli': ['brotli>=1.2'],
        'zstd': [BACKPORTS_ZSTD],
        'tests': [
            'trustme==0.9.0' + PYTHON_36,
            'cryptography==3.3.2' + PYTHON_36,
            'cffi==1.14.6' + PYTHON_36,
            'pycparser==2.21' + PYTHON_36,
            'idna==3.4' + PYTHON_36,
            'uvloop==0.14.0' + PYTHON_36,
            'hypothesis==6.31.6' + PYTHON_36,
            'attrs==21.4.0' + PYTHON_36,
            'sortedcontainers==2.4.0' + PYTHON_36,
            'h11==0.13.0' + PYTHON_36,
            'dataclasses==0.8' + PYTHON_36,
            'typing-extensions==4.1.1' + PYTHON_36,
            'trustme>=0.9.0' + PYTHON_37,
            # Later ones warn that they will leave these Pythons, and in the tests a warning is an error.
            'cryptography<44' + PYTHON_37_38,
            'aiohttp>=3.8' + PYTHON_37,
            'hypothesis>=6.79' + PYTHON_37,
            'h11>=0.14' + PYTHON_37,
            'uvloop>=0.17' + PYTHON_37,
            'brotli>=1.2' + PYTHON_39,
            BACKPORTS_ZSTD,
            'httpbin>=0.10' + PYTHON_39,
            'waitress>=3' + PYTHON_39,
        ],
        'example': [
            'tqdm==4.62.3' + PYTHON_36,
            'tqdm>=4.62.3' + PYTHON_37,
        ],
    },
    classifiers=[
        'Development Status :: 4 - Beta',
        'Framework :: AsyncIO',
        'Intended Audience :: Developers',
        'License :: OSI Approved :: MIT License',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Internet :: WWW/HTTP',
        'Typing :: Typed',
    ],
)
