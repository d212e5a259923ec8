"""The documents of the running CPython's standard library: module sources and help topics.

One document a module or topic, about 11 MB. Tests, bundled wheels and generated build data are
left out. The list is fixed, with names that 3.11 and 3.12 share; what an installation lacks (some
distributions split off tkinter or idlelib) is skipped, and the content digest tells them apart.
"""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ffn_alloc.errors import BadInput

_MODULES = """
__future__ _aix_support _collections_abc _compat_pickle _compression _markupbase _osx_support
_py_abc _pydecimal _pyio _sitebuiltins _strptime _threading_local _weakrefset abc aifc argparse
ast asyncio base64 bdb bisect bz2 cProfile calendar cgi cgitb chunk cmd code codecs codeop
collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg
crypt csv ctypes curses dataclasses datetime dbm decimal difflib dis doctest email encodings
enum filecmp fileinput fnmatch fractions ftplib functools genericpath getopt getpass gettext
glob graphlib gzip hashlib heapq hmac html http idlelib imaplib imghdr importlib inspect io
ipaddress json keyword lib2to3 linecache locale logging lzma mailbox mailcap mimetypes
modulefinder multiprocessing netrc nntplib ntpath nturl2path numbers opcode operator optparse os
pathlib pdb pickle pickletools pipes pkgutil platform plistlib poplib posixpath pprint profile
pstats pty py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched
secrets selectors shelve shlex shutil signal site smtplib sndhdr socket socketserver sqlite3
sre_compile sre_constants sre_parse ssl stat statistics string stringprep struct subprocess
sunau symtable sysconfig tabnanny tarfile telnetlib tempfile textwrap threading timeit tkinter
token tokenize tomllib trace traceback tracemalloc tty turtle turtledemo types typing unittest
urllib uu uuid venv warnings wave weakref webbrowser wsgiref xdrlib xml xmlrpc zipapp zipfile
zipimport zoneinfo
""".split()

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
_FEWEST_DOCUMENTS = 300  # a full installation has over 600
_ONE_VALIDATION_DOCUMENT_IN = 25


def documents() -> Iterator[tuple[str, bytes]]:
    """(name, UTF-8 text) of every document that is not empty, ordered by name."""
    return iter(_documents())


def is_validation(name: str) -> bool:
    """The split, by the name alone: a module stays on its side in every Python version."""
    value = hashlib.sha256(f"validation/{name}".encode()).digest()
    return int.from_bytes(value[:8], "big") % _ONE_VALIDATION_DOCUMENT_IN == 0


@functools.cache
def digest() -> str:
    """Hexadecimal digest of all names and texts."""
    total = hashlib.sha256()
    for name, text in _documents():
        total.update(f"{name}\n{len(text)}\n".encode())
        total.update(text)
    return total.hexdigest()


@functools.cache
def _documents() -> tuple[tuple[str, bytes], ...]:
    found = sorted([*_modules(Path(sysconfig.get_path("stdlib"))), *_topics()])
    if len(found) < _FEWEST_DOCUMENTS:
        raise BadInput(
            "data.source",
            "python_docs",
            f"this Python has only {len(found)} standard library sources and topics installed",
            "Install its complete standard library, or use another source",
        )
    return tuple(found)


def _modules(library: Path) -> Iterator[tuple[str, bytes]]:
    for name in _MODULES:
        for path in [library / f"{name}.py", *(library / name).rglob("*.py")]:
            relative = path.relative_to(library)
            if path.is_file() and not _EXCLUDED_FOLDERS.intersection(relative.parts):
                if text := path.read_bytes():
                    yield f"modules/{relative.as_posix()}", text


def _topics() -> Iterator[tuple[str, bytes]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions package it separately
        return
    for name, text in topics.items():
        yield f"topics/{name}", text.encode()
