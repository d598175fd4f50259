"""Accepts jobs in a service without sealing keys: through the job stream, by a worker that has
them.

The service checks what it can read, and waits for the worker's answer. If no worker answers in
time, the result is unknown: the client repeats the request with the same key.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from regworker.carriers import AsyncShell
from regworker.core import Given
from regworker.domain.actor import Actor
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobForgotten,
    JobNotCancellable,
    Problem,
    UnreadableRecord,
    problems_of,
)
from regworker.domain.event import moment
from regworker.domain.job import Job
from regworker.domain.receipt import Receipt, Refused, Status
from regworker.domain.request import MOST_BYTES
from regworker.domain.states import State
from regworker.ledger.answers import answer_channel, answer_key, offer
from regworker.ledger.endings import Endings
from worker.gateway.problems import NoAnswer

#: Seconds for a worker to answer: several times what a page of the stream takes.
PATIENCE = 10.0

#: Seconds for the ledger to answer a command.
LEDGER_PATIENCE = 5.0

#: The most requests in the job stream: workers take them in order, and beyond this none would
#: answer in time. It also limits what repeated requests leave while no worker runs.
MOST = 2000

#: A compact JWE with `dir`: its second part is empty.
_JWE = re.compile(r"[\w-]+\.\.[\w-]+\.[\w-]*\.[\w-]+", re.ASCII)

_SEAL = Problem(
    "invalid",
    "registration",
    "must be sealed by its sender, as a compact JWE: this service has no sealing keys "
    "(docs/guide/sealing.md shows how)",
)


class KeylessIntake:
    """Accepts and cancels jobs through a worker. One per process."""

    def __init__(self, client: AsyncShell) -> None:
        self._client = client
        self._endings = Endings(client.ledger.redis)

    async def accept(self, given: dict[str, Any], by: str, traceparent: str) -> Receipt | Refused:
        """The result of a job that came with a token named `by`. Raises `NoAnswer`.

        `traceparent`: that of its request, or ''.
        """
        try:
            job = _checked(given)
            said = await self._said({"job": _written(given), "by": by, "traceparent": traceparent})
            if "unreadable" in said:
                raise UnreadableRecord(said["unreadable"])  # noqa: TRY301
            if "errors" in said:
                raise InvalidJob(Problem(**one) for one in said["errors"])  # noqa: TRY301
            if "taken" in said:
                error = JobForgotten if said["gone"] else IdempotencyConflict
                raise error(said["taken"], job.idempotency_key)
        except (InvalidJob, IdempotencyConflict, UnreadableRecord) as error:
            return Refused(0, error)
        at, state = moment(said["accepted_at"]), State(said["state"])
        return Receipt(said["job_id"], job.idempotency_key, state, at, said["repeat"])

    async def accept_many(
        self, batch: Sequence[tuple[int, Given]], by: str, traceparent: str
    ) -> list[Receipt | Refused]:
        """The same for numbered jobs that were read from JSON, in order."""
        given = [dict(one) for _, one in batch if not isinstance(one, Job)]
        return list(await asyncio.gather(*(self.accept(one, by, traceparent) for one in given)))

    async def cancel(self, job_id: str, by: str | None, actor: Actor | None) -> Status:
        """Cancel a job; `by` and `actor` as in `ProducerCore.cancel`. Raises `NoAnswer`."""
        found = await self._client.carry(self._client.core.status(job_id, by))
        if found.state == State.QUEUED:
            await self._said({"cancel": job_id, "by": actor.who if actor else ""})
            found = await self._client.carry(self._client.core.status(job_id, by))
        if found.state != State.CANCELLED:
            raise JobNotCancellable(f"job {job_id} is {found.state}: a call may have left already")
        return found

    async def aclose(self) -> None:
        """Close the connection."""
        await self._endings.aclose()

    async def _said(self, fields: dict[str, str]) -> dict[str, Any]:
        """A worker's answer to a request."""
        id_, ledger = secrets.token_hex(16), self._client.ledger
        end = asyncio.get_running_loop().time() + PATIENCE
        async with self._endings.of(answer_channel(id_)) as heard:
            known = {name: value for name, value in fields.items() if value}
            if not await ledger(offer({**known, "answer": id_}, MOST), LEDGER_PATIENCE):
                raise NoAnswer("too many requests wait in the job stream")
            while True:
                left = end - asyncio.get_running_loop().time()
                await heard(left)
                found = await ledger.patiently(
                    lambda: ledger.ask(lambda redis: redis.get(answer_key(id_))), LEDGER_PATIENCE
                )
                if found:
                    said: dict[str, Any] = json.loads(found)
                    return said
                if left <= 0:
                    raise NoAnswer("no worker answered in time")


def _checked(given: dict[str, Any]) -> Job:
    """The job without its registration; `InvalidJob` names all problems that can be found here."""
    problems: list[Problem] = []
    sealed = given.get("registration")
    if not (isinstance(sealed, str) and _JWE.fullmatch(sealed)):
        problems.append(_SEAL)
    try:
        job = Job.model_validate({**given, "registration": {}})
    except ValidationError as error:
        raise InvalidJob([*problems, *problems_of(error)]) from None
    if problems:
        raise InvalidJob(problems)
    return job


def _written(given: dict[str, Any]) -> str:
    text = json.dumps(given, separators=(",", ":"))
    if len(text) > MOST_BYTES:
        what = f"the job has {len(text)} bytes; at most {MOST_BYTES} are taken"
        raise InvalidJob([Problem("invalid", "", what)])
    return text
