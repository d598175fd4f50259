"""Rules without input or output: generators that yield their requests to the ledger.

Such a generator is sent each answer, or the error is raised in it, and it returns its result.
The caller may block (`carry`) or await (`carry_async`).
"""

from collections.abc import Awaitable, Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from regworker.ledger.transitions import Command

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is none of our commands; `question` gets redis-py's client."""

    question: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Commands that are sent together on one connection, and have one answer."""

    commands: list[tuple[str | bytes, ...]]


@dataclass(frozen=True, slots=True)
class Each:
    """Our commands; the answer of one that fails alone is its error (`client.lone`)."""

    commands: Iterable[Command[Any]]


Step = Iterable[Command[Any]] | Each | Ask | Exchange
"""The answer to our commands is a list."""

Steps = Generator[Step, Any, T]


def carry(steps: Generator[S, Any, T], do: Callable[[S], Any]) -> T:
    """Carry out steps one after another with `do`; return their result."""
    go_on: Callable[[Any], S] = steps.send
    answer: Any = None
    while True:
        try:
            step = go_on(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            answer, go_on = do(step), steps.send
        except Exception as error:  # noqa: BLE001 -- the steps may handle it
            answer, go_on = error, steps.throw


async def carry_async(steps: Generator[S, Any, T], do: Callable[[S], Awaitable[Any]]) -> T:
    """The same for asyncio."""
    go_on: Callable[[Any], S] = steps.send
    answer: Any = None
    while True:
        try:
            step = go_on(answer)
        except StopIteration as done:
            result: T = done.value
            return result
        try:
            answer, go_on = await do(step), steps.send
        except Exception as error:  # noqa: BLE001 -- the steps may handle it
            answer, go_on = error, steps.throw
