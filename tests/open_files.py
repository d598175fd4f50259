"""A process with few files: that of a test, or one that it starts."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def at_most(count: int) -> Iterator[None]:
    """Let this process open no file numbered `count` or higher, nor those that it starts, unless
    they ask for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_more() -> Iterator[None]:
    """Let this process open no further file."""
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    with at_most(free):
        yield
