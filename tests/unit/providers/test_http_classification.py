"""What an error proves, with and without a connection."""

from collections.abc import Iterator

import aiohttp
import pytest

from worker.providers.base import Lost, NotSent
from worker.providers.http import classify


def tree(kind: type[aiohttp.ClientError]) -> Iterator[type[aiohttp.ClientError]]:
    """Yield an error and all errors below it."""
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


ERRORS = sorted(set(tree(aiohttp.ClientError)), key=lambda kind: kind.__name__)


#: Errors of our own, and of libraries, that do not concern the network.
OTHERS = [ZeroDivisionError, UnicodeEncodeError, ValueError, MemoryError, OSError, KeyError]


def made(kind: type[Exception]) -> Exception:
    """Make an error of a kind, whatever arguments it needs."""
    return kind.__new__(kind)


@pytest.mark.parametrize("kind", [*ERRORS, *OTHERS])
def test_without_a_connection_nothing_was_sent_whatever_the_error(kind: type[Exception]) -> None:
    """No connection was handed over, so no byte was sent."""
    assert isinstance(classify(made(kind), connected=False), NotSent)


@pytest.mark.parametrize("kind", [*ERRORS, *OTHERS])
def test_with_a_connection_no_error_proves_anything(kind: type[Exception]) -> None:
    """Something may have been sent, whatever the error is."""
    assert isinstance(classify(made(kind), connected=True), Lost)


def test_reasons_hold_no_text_of_the_error() -> None:
    """Texts of errors contain URLs and parts of bodies, and reasons are logged."""
    error = aiohttp.ClientConnectionError("https://user:hunter2@example.com/")
    assert classify(error, connected=True) == Lost("ClientConnectionError")
