"""How commands are sent: a script's source and hash, and several commands in one call.

Jobs that are accepted, claimed or settled at the same time have much in common: the server's time,
their account, the indices. One call for all of them reads and writes that once, and so takes less
than half of the commands. Its script is made of the one for a single job (`_batch.lua`).
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any, Protocol

from redis.exceptions import (
    ConnectionError,  # noqa: A004
    RedisError,
)

from regworker.ledger.rights import guarded, reads_only
from regworker.ledger.script_loader import link, pieces, replaced
from regworker.ledger.sync_connections import packed
from regworker.ledger.transitions import ABSENT, Argument, Command

#: Scripts that know a key by its name, and access only the stream that they are given. A reader of
#: results has permission for that stream only.
_ONE_STREAM = frozenset({"left"})

#: The scripts of which there is one for several jobs, under this name and suffix.
BATCHED = frozenset({"accept", "claim", "settle"})
BATCH = "_batch"

#: Jobs in one call: they hold the server for less than a millisecond, or four if each is large.
MOST = 25

#: Bytes of the arguments in one call, above which no other job is added.
LARGE = 64 * 1024


@cache
def scripts() -> dict[str, str]:
    """Every script's whole source, by name: after the shared functions that it uses."""
    folder = resources.files("regworker.ledger") / "scripts"
    sources = {
        entry.name.removesuffix(".lua"): entry.read_text("utf-8")
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }
    shared, batch = pieces(sources.pop("_lib")), pieces(sources.pop("_batch"))
    found = {name: link(shared, source) for name, source in sources.items()}
    for name in sorted(BATCHED):
        title = f"-- {name}{BATCH}:" + sources[name].partition(":")[2].partition("\n")[0]
        one = f"{title}\nlocal function one(KEYS, ARGV)\n{sources[name]}\nend\n"
        whole = f"{one}return for_each(one, KEYS, ARGV)\n"
        found[name + BATCH] = link(replaced(shared, batch), whole)
    return {name: guarded(source) for name, source in found.items()}


@cache
def digest(name: str) -> str:
    """The hash by which a script is called."""
    return hashlib.sha1(scripts()[name].encode(), usedforsecurity=False).hexdigest()


@cache
def _may_end_half_done(name: str) -> bool:
    """Whether a script writes, and computes some of its keys itself."""
    source = scripts()[name]
    return "PREFIX" in source and not reads_only(source) and name not in _ONE_STREAM


def evalsha(command: Command[Any]) -> tuple[Any, ...]:
    """A command in redis-py's form."""
    keys = (*command.keys, ABSENT) if _may_end_half_done(command.script) else command.keys
    return (digest(command.script), len(keys), *keys, *command.args)


class NotReached(RedisError):  # noqa: N818
    """A command of a batch was not run, since the answers before it are large: it is sent again."""


def shifted() -> ConnectionError:
    """The error for an answer that cannot be that of its command: a server or a proxy has lost an
    answer, or sent one twice, and so all later ones belong to other commands. The connection must
    be closed; repeating is safe."""
    return ConnectionError("the answers on this connection belong to other commands")


def parts(answer: Any, count: int) -> list[Any]:
    """The answers to the commands of one call, with `NotReached` where there is none. Raises
    `shifted()` if it is not the answer to so many."""
    if not isinstance(answer, list) or len(answer) != count:
        raise shifted()
    return [NotReached() if one is None else one for one in answer]


class Recipient(Protocol):
    """What gets the answer to a call, as a future does."""

    def done(self) -> bool:
        """Whether nobody needs it any more."""

    def set_result(self, result: Any, /) -> None:
        """It has come."""

    def set_exception(self, exception: Exception, /) -> None:
        """It is an error, or there is none."""


def call(commands: Sequence[Command[Any]]) -> tuple[Any, ...]:
    """One command of the server for all of these, which are of one script."""
    if len(commands) == 1:
        return ("EVALSHA", *evalsha(commands[0]))
    first, flat = commands[0], list[Argument]()
    for one in commands:
        flat.append(len(one.args))
        flat += one.args
    keys = [*[one.keys[0] for one in commands], *first.keys[1:], ABSENT]
    return ("EVALSHA", digest(first.script + BATCH), len(keys), *keys, len(commands), *flat)


class Bundle:
    """Commands of one script that may be one call."""

    __slots__ = ("commands", "size")

    def __init__(self) -> None:
        self.commands: list[Command[Any]] = []
        self.size = 0

    def has_room(self, command: Command[Any]) -> bool:
        """Whether it may get another."""
        return len(self.commands) < MOST and self.size + command.size <= LARGE

    def add(self, command: Command[Any]) -> None:
        """Add a command."""
        self.commands.append(command)
        self.size += command.size


def joined(commands: Iterable[Command[Any]]) -> list[list[Command[Any]]]:
    """Commands of one script in groups, of which each may be one call."""
    found: list[Bundle] = []
    for one in commands:
        if not found or not found[-1].has_room(one):
            found.append(Bundle())
        found[-1].add(one)
    return [one.commands for one in found]


Sent = tuple[bytes, Recipient]
"""Bytes to send, and what gets the answer to them."""


def merged(
    asked: Iterable[tuple[bytes | Command[Any], Recipient]],
    apart: Callable[[Exception], Exception],
) -> list[Sent]:
    """What to send: packed commands as they are, and the others of one script together, at the
    place of the first of them.

    `apart`: makes of an error one for each caller. A command that is no valid text is its caller's
    error.
    """
    found: list[Sent | _Batch] = []
    filling: dict[str, _Batch] = {}
    for command, answer in asked:
        if isinstance(command, bytes):
            found.append((command, answer))
            continue
        batch = filling.get(command.script)
        if batch is None or not batch.has_room(command):
            batch = filling[command.script] = _Batch(apart)
            found.append(batch)
        batch.add(command)
        batch.answers.append(answer)
    sent: list[Sent] = []
    for one in found:
        sent += one.sent() if isinstance(one, _Batch) else (one,)
    return sent


class _Batch(Bundle):
    """Such commands with their callers, of which each gets its own answer."""

    __slots__ = ("_apart", "answers")

    def __init__(self, apart: Callable[[Exception], Exception]) -> None:
        super().__init__()
        self.answers: list[Recipient] = []
        self._apart = apart

    def sent(self) -> list[Sent]:
        """The call, and what gets its answer."""
        try:
            data = packed(call(self.commands))
        except Exception as error:  # noqa: BLE001 -- its caller's, of whatever kind
            return self._one_by_one(error)
        return [(data, self.answers[0] if len(self.commands) == 1 else self)]

    def _one_by_one(self, error: Exception) -> list[Sent]:
        if len(self.commands) == 1:
            if not self.answers[0].done():
                self.answers[0].set_exception(error)
            return []
        sent: list[Sent] = []
        for command, answer in zip(self.commands, self.answers, strict=True):
            single = _Batch(self._apart)
            single.add(command)
            single.answers.append(answer)
            sent += single.sent()
        return sent

    def done(self) -> bool:
        """Whether all callers have gone."""
        return all(one.done() for one in self.answers)

    def set_result(self, found: Any) -> None:
        """Give each caller its answer. Raises `shifted()`, which each of them gets then."""
        for answer, one in zip(self.answers, parts(found, len(self.answers)), strict=True):
            if answer.done():
                continue  # its caller has gone
            if isinstance(one, Exception):
                answer.set_exception(one)
            else:
                answer.set_result(one)

    def set_exception(self, error: Exception) -> None:
        """Give each caller the error."""
        for answer in self.answers:
            if not answer.done():
                answer.set_exception(self._apart(error))
