"""A batch stops where nothing is known of a line; errors of the library become problems."""

import asyncio
import selectors
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from starlette.requests import Request

from regworker.domain.errors import LedgerUnavailable, SealingError
from regworker.domain.receipt import Receipt
from regworker.domain.states import State
from worker.gateway.api import batch, parsing
from worker.gateway.auth import Principal
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


class Intake:
    """Accepts each job unless it names an exception, which fails all jobs of its call."""

    def __init__(self) -> None:
        self.calls = 0

    async def accept_many(self, jobs: Any, _by: str, _trace: str) -> list[Receipt]:
        """The receipts."""
        self.calls += 1
        for _, given in jobs:
            if error := given.get("raises"):
                raise {"bug": ArithmeticError(SECRET), "away": LedgerUnavailable()}[error]
        at = datetime.now(UTC)
        return [Receipt("1", given["key"], State.QUEUED, at, repeat=False) for _, given in jobs]


SECRET = "I9bV2crS"

#: Lines, and the statuses of their results.
FAULTS: dict[str, tuple[list[bytes], list[int]]] = {
    "a fault of one": ([b'{"key": ""}', b'{"raises": "bug"}', b'{"key": ""}'], [201, 500, 201]),
    "of all": ([b'{"raises": "bug"}'] * 2, [500, 500]),
    "no ledger": ([b'{"key": ""}', b'{"raises": "away"}', b'{"key": ""}'], [503, 503, 503]),
    "no ledger any more": (
        [b'{"raises": "bug"}', b'{"raises": "away"}', *[b'{"key": ""}'] * 50],
        [500, *[503] * 51],
    ),
    "another fault": ([b'{"key": ""}', b"{", b'{"raises": "bug"}'], [201, 422, 500]),
    "a fault of parsing": ([b"fault", b'{"key": ""}'], [500, 201]),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_of_a_line_is_its_own(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are accepted; it says `repeat it`, and is logged without its text."""
    lines, statuses = FAULTS[what]

    def parsed(line: bytes) -> Any:
        if line == b"fault":
            raise ArithmeticError(SECRET)
        return parsing.parsed(line)

    monkeypatch.setattr(batch, "parsed", parsed)

    async def recheck(_principal: Any) -> None:
        pass

    intake = Intake()
    here: Any = SimpleNamespace(gate=SimpleNamespace(recheck=recheck), way_in=intake)
    group: Any = list(enumerate(lines, 1))
    with structlog.testing.capture_logs() as logged:
        found = asyncio.run(batch._accepted(here, Principal("shop", "token", ""), group, ""))
    assert [one["line"] for one in found] == list(range(1, len(lines) + 1))
    assert [one["status"] for one in found] == statuses
    assert all(one["verdict"] == "repeat it" for one in found if one["status"] >= 500)
    assert SECRET not in str(found)
    assert [one["event"] for one in logged] == ["a line of a batch failed"] * statuses.count(500)
    assert intake.calls < 5


@pytest.mark.parametrize(("status", "groups"), [(500, 2), (503, 1), (401, 1), (422, 2)])
def test_the_answer_ends_only_where_no_later_line_could_be_accepted(
    status: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that fails ends nothing: repeated, the batch would end there again."""
    seen: list[Any] = []

    async def accepted(_here: Any, _principal: Any, group: Any, _trace: str) -> Any:
        seen.append(group)
        return [{"verdict": "", "status": status}]

    monkeypatch.setattr(batch, "_accepted", accepted)
    parts = [b"{}\n", b"{}\n", b""]

    async def receive() -> Any:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(part)}

    async def send(_message: Any) -> None:
        pass

    async def run() -> None:
        scope = {"type": "http", "headers": []}
        here: Any = SimpleNamespace(gate=SimpleNamespace(waits=_waits))
        nobody: Any = None
        await batch._Results(Request(scope, receive), here, nobody)(scope, receive, send)

    asyncio.run(run())
    assert len(seen) == groups


def test_an_event_that_cannot_be_opened_means_repeat_it() -> None:
    """The service lacks a key; the job itself is not refused."""
    problem = problem_of(SealingError("sealed under kid 2025"))
    assert (problem.status, problem.verdict) == (503, "repeat it")
