"""Sends jobs of several requests to the ledger together: those of one turn of the loop."""

import asyncio
from collections.abc import Sequence
from typing import Any

from regworker.carriers import AsyncShell
from regworker.core import Given
from regworker.domain.actor import Actor
from regworker.domain.errors import LedgerUnavailable
from regworker.domain.receipt import Receipt, Refused, Status

#: The most jobs that go together: checking so many takes some ten milliseconds.
MOST = 50

_Waiting = tuple[Given, "asyncio.Future[Receipt | Refused]"]


class Batching:
    """Accepts jobs that were read from JSON. One per process; each job gets its own answer."""

    def __init__(self, client: AsyncShell) -> None:
        self._client = client
        self._waiting: dict[tuple[str, str], list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(
        self, given: dict[str, Any], by: str, traceparent: str
    ) -> "asyncio.Future[Receipt | Refused]":
        """The result of a job that came with a token named `by`; errors as of `carry`.

        `traceparent`: that of its request, or ''.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Receipt | Refused] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.setdefault((by, traceparent), []).append((given, answer))
        return answer

    async def accept_many(
        self, batch: Sequence[tuple[int, Given]], by: str, traceparent: str
    ) -> list[Receipt | Refused]:
        """The same for numbered jobs of one request, in order."""
        steps = self._client.core.accept(list(batch), by, traceparent, from_json=True)
        return await self._client.carry(steps)

    async def cancel(self, job_id: str, by: str | None, actor: Actor | None) -> Status:
        """Cancel a job; `by` and `actor` as in `ProducerCore.cancel`."""
        return await self._client.carry(self._client.core.cancel(job_id, by, actor))

    async def aclose(self) -> None:
        """Nothing is open here."""

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for about, jobs in waiting.items():
            for start in range(0, len(jobs), MOST):
                task = asyncio.ensure_future(self._carry(jobs[start : start + MOST], *about))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _carry(self, jobs: list[_Waiting], by: str, traceparent: str) -> None:
        batch = list(enumerate(given for given, _ in jobs))
        try:
            steps = self._client.core.accept(batch, by, traceparent, from_json=True)
            results = await self._client.carry(steps)
        except Exception as error:  # noqa: BLE001 -- each request gets it
            if len(jobs) == 1 or isinstance(error, LedgerUnavailable):
                for _, answer in jobs:
                    if not answer.done():
                        answer.set_exception(error)
                return
            # One of them may be the cause: try each alone.
            for job in jobs:
                await self._carry([job], by, traceparent)
            return
        for (_, answer), result in zip(jobs, results, strict=True):
            if not answer.done():
                answer.set_result(result)
