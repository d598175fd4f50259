"""A batch stops where nothing is known of a line; errors of the library become problems."""

import asyncio
import selectors
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request

from regworker.domain.errors import SealingError
from worker.gateway.api import batch
from worker.gateway.problems import problem_of


@asynccontextmanager
async def _waits(_principal: Any) -> AsyncIterator[None]:
    yield


class Jumping(asyncio.SelectorEventLoop):
    """A loop whose time jumps to the next timer whenever nothing else is to be done."""

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        """Seconds since it was made."""
        return self._now


#: Parts of a body, the seconds before each, and whether they are all read.
SENDERS: dict[str, tuple[list[bytes], float, bool]] = {
    "a byte a minute": ([b" "] * 100, 59, False),
    "a line every ten seconds": ([b"{}" + b" " * 100 + b"\n"] * 100, 10, False),
    "much, and then a byte a minute": ([b"{}\n" * 10**6, *[b" "] * 100], 59, False),
    "nothing": ([b"{}\n"], 61, False),
    "a small body in one minute": ([b"{}\n"] * 6, 8, True),
    "a network of the second generation": ([b"x" * 500] * 2000, 1, True),
    "a fast one for an hour": ([b"{}" + b" " * 5000 + b"\n"] * 3600, 1, True),
    "a pause now and then": ([b"x" * 20_000] * 100, 50, True),
}


@pytest.mark.parametrize("who", SENDERS)
def test_a_client_that_sends_next_to_nothing_is_not_waited_for(who: str) -> None:
    """A slow network is fast enough."""
    sent, pause, expected = SENDERS[who]
    parts = iter([*sent, b""])

    async def receive() -> Any:
        await asyncio.sleep(pause)
        part = next(parts)
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def read() -> None:
        async for _ in batch._groups(Request({"type": "http", "headers": []}, receive)):
            pass

    with asyncio.Runner(loop_factory=Jumping) as runner:
        if expected:
            runner.run(read())
        else:
            with pytest.raises(TimeoutError):
                runner.run(read())


@pytest.mark.parametrize("unknown", [0, 1])
def test_nothing_is_read_after_a_group_with_an_unknown_line(
    unknown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the line is in its group."""
    groups: list[Any] = []

    async def accepted(_here: Any, _principal: Any, group: Any, _trace: str) -> Any:
        groups.append(group)
        results = [{"verdict": "not accepted", "status": 422} for _ in group]
        results[unknown] = {"verdict": "repeat it", "status": 503}
        return results

    monkeypatch.setattr(batch, "_accepted", accepted)
    parts = [b"{}\n{}\n", b"{}\n{}\n", b""]
    sent: list[Any] = []

    async def receive() -> Any:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        scope = {"type": "http", "headers": []}
        here: Any = SimpleNamespace(gate=SimpleNamespace(waits=_waits))
        nobody: Any = None
        answer = batch._Results(Request(scope, receive), here, nobody)
        await answer(scope, receive, send)

    asyncio.run(run())
    assert len(groups) == 1
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_an_event_that_cannot_be_opened_means_repeat_it() -> None:
    """The service lacks a key; the job itself is not refused."""
    problem = problem_of(SealingError("sealed under kid 2025"))
    assert (problem.status, problem.verdict) == (503, "repeat it")
