"""Errors leave this package without the local variables of its frames.

An error tracker in the host's process reports the local variables of each frame that an error
passed: Sentry does by default. Here these are registrations with passwords, events with customers'
keys, and the keyring. So each public method drops them, in its own frame and all below it, while
file names, lines and functions stay.
"""

import gc
import sys
import traceback
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import cached_property, wraps
from inspect import iscoroutinefunction
from types import AsyncGeneratorType, FrameType, FunctionType, GeneratorType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """Does nothing before it is iterated, by `for` or `async for`; and warns if it never is."""

    def __init__(self, items: Iterator[T] | AsyncIterator[T], warning: str) -> None:
        self._items: Any = guarded_items(items)
        self._warning = warning

    def __iter__(self) -> Iterator[T]:
        return self

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    def __next__(self) -> T:
        self._warning = ""
        return next(self._items)  # type: ignore[no-any-return]

    def __anext__(self) -> Any:
        self._warning = ""
        return anext(self._items)

    def close(self) -> None:
        """End it, as a generator's `close` does: `contextlib.closing`."""
        self._warning = ""
        self._items.close()

    async def aclose(self) -> None:
        """The same for `contextlib.aclosing`."""
        self._warning = ""
        await self._items.aclose()

    def __del__(self) -> None:
        if getattr(self, "_warning", ""):
            warnings.warn(self._warning, RuntimeWarning, stacklevel=2, source=self)


def guarded(kind: type[T]) -> type[T]:
    """A class whose public methods raise errors without their frames' variables."""
    for name, member in list(vars(kind).items()):
        if name.startswith("_") and name not in {"__init__", "__iter__", "__next__"}:
            continue
        if isinstance(member, FunctionType):
            setattr(kind, name, _guarded(member))
        elif isinstance(member, property) and member.fget is not None:
            setattr(kind, name, property(_guarded(member.fget), doc=member.__doc__))
        elif isinstance(member, cached_property):
            # A property before it: its own frame would contain the object's whole dictionary.
            setattr(kind, name, property(_guarded(_once(name, member.func)), doc=member.__doc__))
    return kind


def emptied(error: BaseException, outer: BaseException | None = None) -> None:
    """Drop the local variables of an error's frames, and of those of its causes.

    `outer`: an error that was already being handled; it belongs to the host.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is None or one is outer or id(one) in seen:
            continue
        seen.add(id(one))
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if _ended(frame):
                with suppress(RuntimeError):
                    frame.clear()
        pending += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            pending += one.exceptions


def _once(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    # Without the lock of `cached_property`: before Python 3.12 all objects of a class share it, and
    # a fork may copy it locked.
    def found(self: Any) -> Any:
        kept = vars(self)
        if name not in kept:
            kept[name] = function(self)
        return kept[name]

    return found


def _ended(frame: FrameType) -> bool:
    # A task that caught the same error, and waits to try again, goes on in its frame: before Python
    # 3.13, clearing it would close the task's coroutine. CPython tracks a frame only once it ended.
    return gc.is_tracked(frame)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    return _guarded_async(function) if iscoroutinefunction(function) else _guarded_sync(function)


def _guarded_async(function: Callable[..., Any]) -> Callable[..., Any]:
    # Called here, and not before: a call that is cancelled before it starts then leaves no
    # coroutine that was never awaited.
    @wraps(function)
    async def called(*args: Any, **kwargs: Any) -> Any:
        outer = sys.exc_info()[1]
        try:
            return await function(*args, **kwargs)
        except BaseException as error:
            emptied(error, outer)
            raise
        finally:
            del args, kwargs

    return called


def _guarded_sync(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        outer = sys.exc_info()[1]
        try:
            found = function(*args, **kwargs)
        except BaseException as error:
            emptied(error, outer)
            raise
        finally:
            # This frame cannot be emptied, since it raises.
            del args, kwargs
        return guarded_items(found)

    return called


def guarded_items(found: Any) -> Any:
    """What a generator yields, without its frames' variables in errors; anything else as it is."""
    match found:
        case GeneratorType():
            return _each(found)
        case AsyncGeneratorType():
            return _each_awaited(found)
        case _:
            return found


async def _each_awaited(items: AsyncIterator[Any]) -> AsyncIterator[Any]:
    while True:
        outer = sys.exc_info()[1]
        item = None
        try:
            item = await anext(items)
        except StopAsyncIteration:
            return
        except BaseException as error:
            emptied(error, outer)
            raise
        _emptied_in(item)
        yield item


def _each(items: Iterator[Any]) -> Iterator[Any]:
    while True:
        outer = sys.exc_info()[1]
        item = None
        try:
            item = next(items)
        except StopIteration:
            return
        except BaseException as error:
            emptied(error, outer)
            raise
        _emptied_in(item)
        yield item


def _emptied_in(item: Any) -> None:
    # A refusal is returned and not raised; the host may raise or report it.
    if isinstance(refusal := getattr(item, "error", None), BaseException):
        emptied(refusal)


def kind_of(error: BaseException) -> str:
    """An exception's kind, without its text."""
    return type(error).__name__


def traceback_of(error: BaseException, named: Callable[[BaseException], str] = kind_of) -> str:
    """The frames of an exception, without variables' values; with the text only of exceptions in
    `named`."""
    return "\n".join(_lines(error, named, set()))


def _lines(
    error: BaseException, named: Callable[[BaseException], str], seen: set[int]
) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _lines(before, named, seen)
        yield "-- which led to --"
    for frame in traceback.extract_tb(error.__traceback__):
        yield f"{frame.filename}:{frame.lineno} {frame.name}: {frame.line}"
    yield named(error)
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            if id(one) not in seen:
                yield "-- and in it --"
                yield from _lines(one, named, seen)
