"""What a person may do to a running installation: settle reviews, hold accounts, redrive jobs."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from redis.exceptions import RedisError

from worker import doctor
from worker.announcer import Announcer
from worker.celery import new_app
from worker.errors import (
    IdempotencyConflict,
    LedgerUnavailable,
    NotInReview,
    NotRedrivable,
    UnknownJob,
)
from worker.event import EventType
from worker.groups import groups, streams
from worker.intake import Intake
from worker.job import Job
from worker.ledger import SyncLedger
from worker.ledger.commands import (
    ALARMS,
    CONFIGURED,
    PREFIX,
    REVIEWS,
    Publication,
    account_key,
    look,
)
from worker.ledger.operations import hold, redrive, resolve
from worker.ledger.records import Conflict, Record, Settled, Stale, Wake
from worker.outcome import Code, Fault, Registered
from worker.providers.registry import Registry
from worker.sealing import Keyring
from worker.settings import Settings
from worker.wakeups import Wakeups

#: Jobs let go by one script when an account is resumed: some milliseconds at the most.
BATCH = 500


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account as all workers see it. `breaker`: closed, open, refused; times in ms."""

    provider: str
    account: str
    paused: bool
    breaker: str
    reason: str
    failures: int
    in_flight: int
    max_in_flight: int
    waiting: int
    rate: float
    """Calls a second; 0: no limit."""
    retry_at: int


class Operator:
    """The night shift's hands. Close it, or use it as a context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._announcer = Announcer(settings, self._keyring)
        self._intake = Intake(Registry(settings.providers), self._keyring, settings.deadline)
        self._ledger = SyncLedger(settings.redis_url)
        self._app = new_app(settings)
        self._wake = Wakeups(self._app)

    def reviews(self) -> Iterator[Record]:
        """Jobs that wait for a person, those that wait longest first."""
        ids: Any = self._ledger.redis.zrange(REVIEWS, 0, -1)
        for job_id in ids:
            record = self._ledger(look(job_id.decode()))
            if record is not None:
                yield record

    def registered(self, job_id: str, outcome: dict[str, Any], who: str) -> Settled:
        """Say that the customer exists; `outcome`: what the provider gave, as in its events."""
        record = self._record(job_id)
        found = Registered(outcome, recovered=True)
        publication = self._announcer.registered(record, _now(), found)
        return self._resolve(record, "registered", who, publication)

    def rejected(self, job_id: str, message: str, who: str) -> Settled:
        """Say that there will be no customer, and why."""
        record = self._record(job_id)
        error = Fault(Code.PROVIDER_ERROR, "", message)
        kind = EventType.REJECTED
        publication = self._announcer.failed(kind, record, _now(), (error,))
        return self._resolve(record, "rejected", who, publication)

    def resend(self, job_id: str, who: str) -> Settled:
        """Let the job go on: the provider is asked first, and called if nobody is there."""
        return self._resolve(self._record(job_id), "resend", who, None)

    def redrive(self, given: Job | Mapping[str, Any]) -> Settled:
        """Give an abandoned job another life, with the content that its producer brings again.

        The provider is asked before anything is sent. Raises `InvalidJob`, `IdempotencyConflict`,
        `NotRedrivable`, `UnknownJob`.
        """
        job, registration = self._intake.check(given)
        fingerprints = self._intake.fingerprints(job, registration)
        payload = self._keyring.seal(registration)
        done = self._ledger(redrive(job, payload, fingerprints, self._settings.deadline))
        match done:
            case Conflict():
                raise IdempotencyConflict(job.id, job.idempotency_key)
            case Stale("gone"):
                raise UnknownJob(f"no job {job.id}: enqueue it as a new one")
            case Stale(state):
                raise NotRedrivable(f"job {job.id} is {state}; only abandoned jobs are redriven")
            case Settled():
                self._wake([Wake(job.id, job.lane)])
                return done

    def accounts(self) -> list[AccountState]:
        """Every account that a worker has announced."""
        names: Any = self._ledger.redis.smembers(CONFIGURED)
        found = []
        for name in sorted(one.decode() for one in names):
            kind, _, rest = name.partition(":")
            if kind == "account":
                found.append(self._account(*rest.split(":", 1)))
        return found

    def pause(self, provider: str, account: str, why: str) -> None:
        """Let no call of an account through, until it is resumed. Jobs wait, and lose nothing."""
        self._known(provider, account)
        self._ledger(hold(provider, account, "pause", why))

    def resume(self, provider: str, account: str) -> int:
        """Close an account's breaker, end its pause, and let go who waits; how many did."""
        self._known(provider, account)
        total = 0
        while let_go := self._ledger(hold(provider, account, "resume", "", BATCH)):
            total += let_go
        return total

    def examine(self) -> list[doctor.Finding]:
        """Everything `regworker doctor` looks at; never raises for what it finds."""
        redis = self._ledger.redis
        try:
            info: Any = self._ledger.patiently(redis.info, 3)
            first: Any = redis.zrange(ALARMS, 0, 0, withscores=True)
            seconds, micros = redis.time()
            reviews: Any = redis.zcard(REVIEWS)
            configured: Any = redis.scard(CONFIGURED)
            readers = [one for name in streams(self._ledger) for one in groups(self._ledger, name)]
        except (LedgerUnavailable, RedisError) as error:
            return [doctor.Finding("unsafe", "ledger", str(error), "start the server, or name it")]
        overdue = seconds + micros / 1e6 - first[0][1] / 1000 if first else 0.0
        findings = [*doctor.server(info), *doctor.pace(self._settings), doctor.alarms(overdue)]
        findings.append(doctor.announced(configured))
        findings.append(doctor.waiting_for_a_person(reviews))
        findings += [doctor.account(f"{a.provider}/{a.account}", a.breaker, a.paused, a.reason)
                     for a in self.accounts()]  # fmt: skip
        findings += [doctor.consumer_group(g.name, g.stream, g.behind, g.lag) for g in readers]
        findings.append(self._broker())
        return findings

    def close(self) -> None:
        """Close all connections."""
        self._ledger.close()
        self._wake.close()
        self._app.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _resolve(
        self, record: Record, decision: str, who: str, publication: Publication | None
    ) -> Settled:
        done = self._ledger(
            resolve(
                record.id,
                decision,
                who,
                self._settings.deadline,
                self._settings.retention,
                publication,
            )
        )
        if isinstance(done, Stale):
            raise NotInReview(f"job {record.id} is {done.state}, not in review")
        self._wake(done.wakes or ([Wake(record.id, record.lane)] if not publication else []))
        return done

    def _record(self, job_id: str) -> Record:
        record = self._ledger(look(job_id))
        if record is None:
            raise UnknownJob(f"no job {job_id}: never accepted here, or past its retention")
        return record

    def _known(self, provider: str, account: str) -> None:
        if not any((a.provider, a.account) == (provider, account) for a in self.accounts()):
            raise UnknownJob(f"no worker has announced an account {provider}/{account}")

    def _account(self, provider: str, account: str) -> AccountState:
        redis = self._ledger.redis
        name = f"{provider}:{account}"
        fields: Any = redis.hgetall(account_key(provider, account))
        values = {key.decode(): value.decode() for key, value in fields.items()}
        in_flight: Any = redis.zcount(f"{PREFIX}inflight:{name}", _now(), "+inf")
        waiting: Any = redis.zcard(f"{PREFIX}waiting:{name}")
        interval = float(values.get("interval") or 0)
        return AccountState(
            provider=provider,
            account=account,
            paused=values.get("paused") == "1",
            breaker=values.get("breaker", "closed"),
            reason=values.get("reason", ""),
            failures=int(values.get("failures") or 0),
            in_flight=in_flight,
            max_in_flight=int(values.get("max_in_flight") or 0),
            waiting=waiting,
            rate=1000 / interval if interval else 0.0,
            retry_at=int(float(values.get("retry_at") or 0)),
        )

    def _broker(self) -> doctor.Finding:
        try:
            with self._app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=3)
        except Exception as error:  # noqa: BLE001 -- whatever a transport raises
            return doctor.Finding(
                "warning",
                "broker",
                f"not reached ({type(error).__name__}): wake-ups wait for the alarm clock",
                "check REGWORKER_BROKER_URL",
            )
        return doctor.Finding("ok", "broker", "reached")


def _now() -> float:
    return time.time() * 1000
