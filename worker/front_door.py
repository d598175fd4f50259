"""Door 1, behind `producer.py`: what is handed over in Python goes straight into the ledger."""

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from worker.announcer import Announcer
from worker.celery import new_app
from worker.errors import (
    IdempotencyConflict,
    InvalidJob,
    JobNotCancellable,
    UnknownJob,
)
from worker.event import EventType, moment
from worker.intake import Intake, admitted
from worker.job import Job, job_id
from worker.ledger import SyncLedger
from worker.ledger.commands import LOOKS, Command, cancel, done_channel, look
from worker.ledger.records import Accepted, Conflict, Record, Settled, Unconfigured, Wake
from worker.lifecycle import State
from worker.providers.registry import Registry
from worker.receipt import Receipt, Refused, Status
from worker.sealing import Keyring
from worker.settings import Settings
from worker.tracing import span
from worker.wakeups import Wakeups

#: Jobs in one pipeline of `enqueue_many`: enough to spread the round trip.
BATCH = 500

#: Seconds between looks while `wait` listens for the end: should the telling get lost.
LOOK_AGAIN = 1.0


class FrontDoor:
    """What a `Producer` does. Synchronous, and safe to share between threads."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()
        self._keyring = Keyring.parse(self.settings.sealing_keys.get_secret_value())
        self._ledger = SyncLedger(self.settings.redis_url)
        self._announcer = Announcer(self.settings, self._keyring)
        registry = Registry(self.settings.providers)
        self._intake = Intake(registry, self._keyring, self.settings.deadline)
        self._app = new_app(self.settings)
        self._wake = Wakeups(self._app)

    def enqueue_many(self, jobs: Iterable[Job | Mapping[str, Any]]) -> Iterator[Receipt | Refused]:
        """Accept jobs, a batch each time that the results of one are used up."""
        numbered = iter(enumerate(jobs))
        while batch := list(islice(numbered, BATCH)):
            with span("queue.publish", "registrations.enqueue"):
                results = list(self._batch(batch))
            yield from results

    def status(
        self,
        id_: str | None,
        key: str | None,
        provider: str,
        account: str,
    ) -> Status:
        """Where a job stands."""
        if id_ is None:
            if key is None:
                raise TypeError("status() takes a job's id, or key=, provider= and account=")
            id_ = job_id(provider, account, key)
        return self._status(self._record(id_))

    def wait(self, id_: str, timeout: float) -> dict[str, Any]:
        """Wait for a job's end; its event."""
        end = time.monotonic() + timeout
        listener = self._ledger.listener()
        try:
            self._ledger.patiently(lambda: listener.subscribe(done_channel(id_)), timeout)
            while True:
                status = self._status(self._record(id_))
                if status.final and status.event is not None:
                    return status.event
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"job {id_} is {status.state} after {timeout} s")
                self._ledger.patiently(
                    lambda left=left: listener.get_message(timeout=min(left, LOOK_AGAIN)),  # type: ignore[misc]
                    timeout,
                )
        finally:
            listener.close()

    def cancel(self, id_: str) -> Status:
        """Take a job back before anything of it leaves."""
        state: str = State.QUEUED
        for _ in range(LOOKS):
            record = self._record(id_)
            now = time.time() * 1000
            publication = self._announcer.failed(EventType.CANCELLED, record, now, ())
            done = self._ledger(cancel(record, self.settings.retention, publication))
            if isinstance(done, Settled):
                self._wake(done.wakes)
                return self._status(self._record(id_))
            state = done.state
            if state != State.QUEUED:
                break
        raise JobNotCancellable(f"job {id_} is {state}: a call may have left already")

    def close(self) -> None:
        """Close all connections."""
        self._ledger.close()
        self._wake.close()
        self._app.close()

    def _batch(
        self, batch: list[tuple[int, Job | Mapping[str, Any]]]
    ) -> Iterator[Receipt | Refused]:
        results: dict[int, Receipt | Refused] = {}
        checked: list[tuple[int, Job]] = []

        def commands() -> Iterator[Command[Accepted | Conflict | Unconfigured]]:
            # One by one, so that the server is at the first ones while the last are checked.
            for number, given in batch:
                try:
                    job, registration = self._intake.check(given)
                except InvalidJob as error:
                    results[number] = Refused(number, error)
                    continue
                checked.append((number, job))
                yield self._intake.command(job, registration)

        wakes = []
        answers = self._ledger.many(commands())
        for (number, job), answer in zip(checked, answers, strict=True):
            try:
                accepted = admitted(job, answer)
            except (InvalidJob, IdempotencyConflict) as error:
                results[number] = Refused(number, error)
                continue
            results[number] = Receipt(
                accepted.job_id,
                job.idempotency_key,
                accepted.state,
                moment(accepted.accepted_at),
                accepted.repeat,
            )
            if not accepted.repeat:
                wakes.append(Wake(accepted.job_id, job.lane))
        self._wake(wakes)
        for number, _ in batch:
            yield results[number]

    def _record(self, id_: str) -> Record:
        record = self._ledger(look(id_))
        if record is None:
            raise UnknownJob(f"no job {id_}: never accepted here, or past its retention")
        return record

    def _status(self, record: Record) -> Status:
        return Status(
            job_id=record.id,
            idempotency_key=record.idempotency_key,
            provider=record.provider,
            account=record.account,
            state=record.state,
            attempts=record.attempts,
            accepted_at=moment(record.accepted_at),
            deadline=moment(record.deadline_at),
            due=moment(record.due_at) if record.due_at and not record.final else None,
            finished_at=moment(record.finished_at) if record.finished_at else None,
            why=record.why,
            timeline=tuple((moment(at), what) for at, what in record.timeline),
            event=self._announcer.last(record),
        )
