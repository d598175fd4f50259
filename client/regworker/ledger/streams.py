"""Reads streams that anybody may write to: the server checks the size of entries.

An entry that is too large is returned without its content, and a page of entries has a limited
size. Redis's own reads return everything: a single entry of 100 MB would make a reader use several
times as much memory. So scripts read (`read.lua`, `left.lua`, `page.lua`), and new entries are
awaited with a blocking read whose answer the server skips on request.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from regworker.domain.request import MOST_BYTES
from regworker.ledger.calls import evalsha
from regworker.ledger.records import text
from regworker.ledger.transitions import Argument, Command, ms

#: Entries in one page: enough to share round trips, few enough to open and seal in milliseconds.
PAGE = 50

#: Bytes after which a page is full, so that it exceeds this by less than one entry.
PAGE_BYTES = 4 * 1024 * 1024

#: Bytes of the largest entry of the job stream that is read: the largest request, and its field
#: names.
LARGEST_JOB = MOST_BYTES + 1024

#: The same for a results stream. An event contains a job's metadata and its provider's data, and
#: sealing adds a third.
LARGEST_EVENT = 2 * 1024 * 1024

Asking = list[tuple[str | bytes, ...]]
"""Commands that have one answer."""

START = "0-0"
"""The cursor from which a group's entries are searched."""


#: The member of a group that holds what others released, so that these need not stay.
RELEASED = "released"

#: Milliseconds. Longer than any `claim_after`: the next reader claims a released entry.
LONG_AGO = 7 * 86_400_000


@dataclass(frozen=True, slots=True)
class Found:
    """One entry of a stream, as far as it is read. `size`: bytes of names and values."""

    entry: str
    times: int
    """How often it was delivered to the group, including this time; 0: read without a group."""
    size: int
    fields: dict[bytes, bytes] = field(repr=False)
    """Empty for an entry that is too large."""
    shown: dict[bytes, bytes] = field(repr=False)
    """For an entry that is too large: its first fields, with names and values cut short."""

    @property
    def too_large(self) -> bool:
        """Whether it is larger than the limit."""
        return not self.fields


@dataclass(frozen=True, slots=True)
class GroupReader:
    """A reader of a stream, in its group. `largest`: bytes of the largest entry that it accepts;
    `page`: the most entries that it gets at a time."""

    stream: str
    name: str
    reader: str
    largest: int
    page: int = PAGE

    def read(self, after: str = "-", *, again: bool = False) -> Command[list[Found]]:
        """Its unacknowledged entries after one that it knows, and then new ones.

        `again`: only its unacknowledged entries, which count as delivered once more.
        """
        args = (self.name, self.reader, after, int(again), self.page, PAGE_BYTES, self.largest)
        return Command("read", (self.stream,), args, _found)

    def left(self, idle: float, cursor: str = START) -> Command[tuple[str, list[Found]]]:
        """Take over entries that any reader got `idle` seconds ago; `0-0`: all were searched."""
        args = (self.name, self.reader, ms(idle), cursor, self.page, PAGE_BYTES, self.largest)
        return Command(
            "left", (self.stream,), args, lambda answer: (text(answer[0]), _found(answer[1:]))
        )

    def leave(self, entries: Iterable[str], *, named: bool) -> Command[int]:
        """End this reader, and release entries that it did not return: the next one gets them.

        `named`: its name is permanent, so it stays in the group.
        """
        heir = self.reader if named else RELEASED
        args: tuple[Argument, ...] = (self.name, self.reader, heir, LONG_AGO, *entries)
        return Command("leave", (self.stream,), args, int)

    def asking(self, command: Command[Any], wait: float = 0.0) -> Asking:
        """How to run `command`: at once, or when something new arrives, after at most `wait`
        seconds.

        The reader then owns the new entry. Only `command` is answered: the server skips the answer
        to the blocking read, which would contain the whole entry.
        """
        read = ("XREADGROUP", "GROUP", self.name, self.reader)
        return _asking(command, read, (self.stream, ">"), wait)


def page(stream: str, after: str, largest: int = LARGEST_EVENT) -> Command[list[Found]]:
    """The next entries of a stream after one (`-`: from the first), without a group."""
    return Command("page", (stream,), (after, PAGE, PAGE_BYTES, largest), _found)


def asking(command: Command[Any], stream: str, after: str, wait: float = 0.0) -> Asking:
    """The same without a group: waits until there is an entry after this one."""
    return _asking(command, ("XREAD",), (stream, after), wait)


def edge(stream: str, after: str = "-") -> Command[str]:
    """The id of a stream's first entry after one (`-`: of all; `+`: the last of all), or ''."""
    return Command("edge", (stream,), (after,), text)


def later(one: str, other: str) -> str:
    """The later of two entries' ids; `-` is before all others."""
    return max(one, other, key=lambda id_: tuple(map(int, id_.split("-"))) if id_ != "-" else ())


def _asking(
    command: Command[Any], read: tuple[str, ...], what: tuple[str, str], wait: float
) -> Asking:
    asked: Asking = [("EVALSHA", *evalsha(command))]
    if wait > 0:
        # 0 milliseconds would mean for ever.
        block = str(max(1, round(wait * 1000)))
        blocking = (*read, "COUNT", "1", "BLOCK", block, "STREAMS", *what)
        asked = [("CLIENT", "REPLY", "SKIP"), blocking, *asked]
    return asked


def _found(answer: Sequence[Any]) -> list[Found]:
    return [
        Found(text(entry), int(times), int(size), _fields(flat), _fields(shown))
        for entry, times, size, flat, shown in answer
    ]


def _fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
