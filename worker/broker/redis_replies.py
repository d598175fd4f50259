"""Limits the replies of a Redis server by size before they are read.

One value may have half a gigabyte, and hiredis holds a whole reply before the worker sees it. Here
the bytes are filtered first: the filter follows the protocol line by line, and replaces a value
that is too large by a note of its size, while its content is dropped as it arrives.
"""

from collections.abc import Callable
from typing import Any

from redis import utils
from redis._parsers import _HiredisParser

from worker.broker.envelopes import MAX_VALUE_BYTES, stand_in

#: The most bytes of large values in one reply, which may contain several messages.
MOST_BYTES = 2 * MAX_VALUE_BYTES

#: A value that counts as large. A wake-up has some 500 bytes, an ordinary job a few thousand.
LARGE = 64 * 1024

#: Types of the protocol (RESP 2 and 3): strings with a length, and aggregates with a count.
_STRINGS = frozenset(b"$=!")
_AGGREGATES = {ord("*"): 1, ord("~"): 1, ord(">"): 1, ord("%"): 2, ord("|"): 2}
#: An attribute comes before the reply that it belongs to.
_ATTRIBUTE = ord("|")


class Sieve:
    """A hiredis reader that drops values that are too large."""

    def __init__(self, reader: Any) -> None:
        self.gets = reader.gets
        self.has_data = reader.has_data
        self._feed: Callable[[bytes], None] = reader.feed
        self._line = b""
        """The beginning of a line whose end has not arrived yet."""
        self._passing = 0
        """The bytes of a value that have not arrived yet."""
        self._dropping = 0
        """The same for a value that is dropped."""
        self._note = b""
        """What replaces the dropped value."""
        self._open = 0
        """The parts of the reply that have not arrived yet."""
        self._large = 0
        """The bytes of large values in this reply."""

    def feed(self, buffer: Any, start: int = 0, length: int = -1) -> None:
        """Take received bytes, and pass on what is kept."""
        end = len(buffer) if length < 0 else start + length
        chunk = self._line + bytes(buffer[start:end])
        self._line = b""
        kept = at = 0
        end = len(chunk)
        while at < end:
            if self._passing:
                step = min(self._passing, end - at)
                self._passing -= step
                at += step
            elif self._dropping:
                step = min(self._dropping, end - at)
                self._dropping -= step
                kept = at = at + step
                if not self._dropping:  # not earlier: its reader waits for the next part
                    self._feed(self._note)
            else:
                line = chunk.find(b"\r\n", at)
                if line < 0:
                    self._line = chunk[at:]
                    end = at
                    break
                after = line + 2
                size = self._begin(chunk[at], chunk[at + 1 : line])
                if size:
                    self._feed(chunk[kept:at])
                    note = stand_in(size)
                    self._note = b"$%d\r\n%b\r\n" % (len(note), note)
                    self._dropping = size + 2
                    kept = after
                at = after
        if kept < end:
            self._feed(chunk[kept:end])

    def _begin(self, kind: int, rest: bytes) -> int:
        """Parse the beginning of a value; return its size if it must be dropped."""
        if not self._open:
            self._open, self._large = 1, 0
        self._open -= 1
        if kind in _STRINGS:
            size = int(rest)
            if size >= LARGE:
                if size > MAX_VALUE_BYTES or self._large + size > MOST_BYTES:
                    return size
                self._large += size
            self._passing = size + 2 if size >= 0 else 0
        elif kind in _AGGREGATES:
            self._open += max(0, int(rest)) * _AGGREGATES[kind] + (kind == _ATTRIBUTE)
        return 0


class Parser(_HiredisParser):
    """redis-py's parser with that reader."""

    def on_connect(self, connection: Any, **kwargs: Any) -> None:
        """Start to read from a connection."""
        super().on_connect(connection, **kwargs)  # type: ignore[no-untyped-call]
        self._reader: Any = Sieve(self._reader)


def parser() -> type[Parser] | None:
    """The parser for a broker's connections; None if hiredis is not installed.

    A worker always has hiredis. A process that only publishes reads nothing that others wrote.
    """
    return Parser if utils.HIREDIS_AVAILABLE else None
