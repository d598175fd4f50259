"""A batch stops where nothing is known of a line; errors of the library become problems."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from regworker.domain.errors import SealingError
from worker.gateway.api import batch
from worker.gateway.problems import problem_of


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
        nobody: Any = None
        answer = batch._Results(Request(scope, receive), nobody, nobody)
        await answer(scope, receive, send)

    asyncio.run(run())
    assert len(groups) == 1
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_an_event_that_cannot_be_opened_means_repeat_it() -> None:
    """The service lacks a key; the job itself is not refused."""
    problem = problem_of(SealingError("sealed under kid 2025"))
    assert (problem.status, problem.verdict) == (503, "repeat it")
