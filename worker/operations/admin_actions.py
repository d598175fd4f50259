"""A person's actions on a running installation: settle reviews, pause accounts, redrive jobs."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Self

from redis.exceptions import RedisError, ResponseError

from regworker.acceptance import Intake
from regworker.announced import accounts_of, check_key
from regworker.core import ProducerCore, fault_of, known_record
from regworker.domain.actor import Actor
from regworker.domain.errors import (
    IdempotencyConflict,
    InvalidOutcome,
    LedgerUnavailable,
    NotCorrectable,
    NotInReview,
    NotRedrivable,
    Problem,
    RegistrationWorkerError,
    SealingError,
    SettingsError,
    UnknownJob,
    WrongSeal,
)
from regworker.domain.event import EventType, moment
from regworker.domain.job import Job
from regworker.domain.outcome import Code, Fault, Registered
from regworker.domain.pace import Pace
from regworker.domain.receipt import Status
from regworker.domain.states import State
from regworker.event_builder import EventBuilder
from regworker.ledger import SyncLedger
from regworker.ledger.admin import (
    PLAIN,
    correct,
    hold,
    lacking,
    pace,
    redrive,
    resolve,
    trust,
)
from regworker.ledger.admin import seals as ledger_seals
from regworker.ledger.identity import hidden
from regworker.ledger.records import Conflict, Record, Settled, Stale, text
from regworker.ledger.rights import denied
from regworker.ledger.scans import scanned
from regworker.ledger.servers import WrongServer
from regworker.ledger.snapshot import AccountSnapshot, whole
from regworker.ledger.steps import carry
from regworker.ledger.transitions import (
    ALARMS,
    REVIEWS,
    Publication,
    account_key,
    announced,
    job_key,
    look,
)
from regworker.sealing import seals
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, variable
from regworker.settings.account_ledgers import AccountLedgers
from worker.broker.wakeups import Wakeups
from worker.celery import new_app
from worker.monitoring import availability, doctor
from worker.monitoring.server_info import ONLINE
from worker.monitoring.server_info import look as look_at_server
from worker.operations.account_check import check_accounts
from worker.operations.accounts import find_accounts
from worker.operations.consumer_groups import groups as consumer_groups
from worker.operations.consumer_groups import streams
from worker.operations.jobs import mark_of
from worker.providers.registry import Registry

#: Jobs that one script releases when an account is resumed: some milliseconds at most.
BATCH = 500

#: Seconds for which the ledger may be away during a cancel.
PATIENCE = 10.0


class AdminActions:
    """An operator's actions. Close it, or use it as a context manager.

    Each action names its `Actor`, and its script writes it to the audit log. A refused action
    changes nothing and is not in the audit log.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keyring = Keyring.of(settings)
        self._event_builder = EventBuilder(settings, self._keyring)
        self._registry = Registry(settings.providers)
        self._intake = Intake(self._registry, self._keyring, settings.deadline)
        self._ledger = SyncLedger(settings.redis_url)
        self._app = new_app(settings)
        self._wake = Wakeups(self._app)
        self.unreadable: list[str] = []
        """Keys that a list has skipped, because they hold no valid record."""

    def reviews(self) -> Iterator[Record]:
        """Jobs in review, the oldest first."""
        since = self._ledger.ask(lambda redis: scanned(redis, "zscan", REVIEWS))
        for job_id in map(text, sorted(since, key=lambda one: (since[one], one))):
            try:
                record = self._ledger(look(job_id))
            except (ResponseError, LookupError, ValueError):
                self.unreadable.append(job_key(job_id))
                continue
            if record is not None:
                yield record

    def cancel(self, job_id: str, actor: Actor) -> Status:
        """Cancel a job before any request is sent. Raises `JobNotCancellable`, `UnknownJob`."""
        core = ProducerCore(self._settings, self._keyring)
        return carry(
            core.cancel(job_id, actor=actor), lambda step: self._ledger.carry(step, PATIENCE)
        )

    def registered(
        self, job_id: str, outcome: dict[str, Any], actor: Actor, *, seen: str = ""
    ) -> Settled:
        """Record that the customer exists; `outcome`: the provider's data, as in its events.

        `seen`: the job as the person saw it (`mark_of`); `NotInReview` if it has changed since, of
        every decision. '': as it is now. Raises `InvalidOutcome` if the provider never returns such
        data, since this decision is final; and `WrongSeal` if the record was changed since its job
        was accepted: the outcome would go where its producer did not want it.
        """
        record = self._seen(job_id, seen)
        if record.final:
            raise _not_in_review(job_id, record.state)
        if not record.payload:
            raise WrongSeal(f"job {job_id} has no registration any more: its record was changed")
        self._keyring.open(record.payload, seals.payload(record))
        found = self._found(record, outcome)
        publication = self._event_builder.registered(record, self._ledger.now(), found, asked=True)
        return self._resolve(record, "registered", actor, publication)

    def rejected(
        self, job_id: str, message: str, actor: Actor, ticket: str = "", *, seen: str = ""
    ) -> Settled:
        """Record that there will be no customer, and why. `ticket` as in
        `regworker.ledger.admin`."""
        record = self._seen(job_id, seen)
        asked = False
        with suppress(SealingError):
            asked = bool(self._keyring.open(record.payload, seals.payload(record)))
        publication = self._event_builder.failed(
            EventType.REJECTED, record, self._ledger.now(), (_fault(message),), asked=asked
        )
        return self._resolve(record, "rejected", actor, publication, ticket)

    def correct(self, job_id: str, right: dict[str, Any] | str, actor: Actor) -> str:
        """Publish the right result of a wrong decision on a review; `right`: the provider's data,
        or why there is no customer. Returns the state to which the job is corrected.

        Once per job. Raises `NotCorrectable`, and the errors of `registered`.
        """
        record = self._record(job_id)
        if record.corrected:
            raise NotCorrectable(f"job {job_id} was already corrected to {record.corrected}")
        if not record.decided:
            raise NotCorrectable(f"job {job_id} is {record.state}, and no person decided it")
        found = _fault(right) if isinstance(right, str) else self._found(record, right)
        decision = "rejected" if isinstance(found, Fault) else "registered"
        self._check_key()
        publication = self._event_builder.corrected(record, self._ledger.now(), found)
        done = self._ledger(correct(job_id, decision, actor, publication))
        if isinstance(done, Stale):
            raise NotCorrectable(f"job {job_id} is {done.state}: it cannot be corrected")
        return decision

    def resend(self, job_id: str, actor: Actor, ticket: str = "", *, seen: str = "") -> Settled:
        """Let the job continue: the worker looks up first, and calls only if there is no
        customer."""
        return self._resolve(self._seen(job_id, seen), "resend", actor, None, ticket)

    def redrive(self, given: Job | Mapping[str, Any], actor: Actor) -> Settled:
        """Retry an abandoned job with its content, which the producer sends again.

        A lookup comes before any call. Raises `InvalidJob`, `IdempotencyConflict`, `NotRedrivable`,
        `UnknownJob`, `UnreadableRecord`.
        """
        job, registration = self._intake.check(given)
        self._check_key()
        fingerprints = self._intake.fingerprints(job, registration)
        payload = self._keyring.seal(registration, seals.payload(job))
        command = redrive(job, payload, fingerprints, self._settings.deadline, actor)
        try:
            done = self._ledger(command)
        except ResponseError as error:
            raise carry(fault_of(job.id, error), self._ledger.carry) from None
        match done:
            case Conflict():
                raise IdempotencyConflict(job.id, job.idempotency_key)
            case Stale("gone"):
                raise UnknownJob(f"no job {job.id}: enqueue it as a new one")
            case Stale(state):
                raise NotRedrivable(f"job {job.id} is {state}; only abandoned jobs are redriven")
            case Settled():
                return done

    def now(self) -> datetime:
        """The time by the ledger's clock, by which a pause ends."""
        return moment(self._ledger.now())

    def accounts(self) -> list[AccountSnapshot]:
        """Every account that a worker has announced, as in the overview."""
        found = find_accounts(self._ledger)
        self.unreadable += found.unreadable
        return list(found.accounts)

    def account_names(self) -> list[tuple[str, str]]:
        """Provider and account of all that workers have announced, also if a record is junk."""
        return accounts_of(self._ledger.ask(announced))

    def pause(
        self, provider: str, account: str, actor: Actor, until: datetime | None = None
    ) -> None:
        """Allow no call of an account until it is resumed. Jobs wait, and use no attempt.

        `actor.why` is shown with the account. `until`: when the pause ends by itself.
        """
        self._known(provider, account)
        end = round(until.timestamp() * 1000) if until else 0
        self._ledger(hold((provider, account), "pause", actor.why, actor=actor, until=end))

    def pace(
        self, provider: str, account: str, wanted: Pace | None, words: str, actor: Actor
    ) -> str:
        """Set an account's pace for all workers, or return to their settings; return the previous
        one."""
        self._known(provider, account)
        return self._ledger(pace((provider, account), wanted, words, actor))

    def resume(self, provider: str, account: str, actor: Actor) -> int | None:
        """Close an account's breaker, end its pause, and release waiting jobs; return their number,
        or None if it was neither paused nor held by its breaker."""
        self._known(provider, account)
        total, ticket = 0, secrets.token_hex(8)
        command = hold((provider, account), "resume", "", BATCH, actor=actor, ticket=ticket)
        while (let_go := self._ledger(command)) > 0:
            total += let_go
        return None if let_go < 0 and not total else total

    def trust(self, provider: str, account: str, actor: Actor) -> bool:
        """Reuse an account's connections again after a stray answer; False if there was none."""
        self._known(provider, account)
        key = account_key(provider, account)
        return self._ledger(trust(key, "account", f"{provider}/{account}", actor))

    def examine(self, *, ways: bool = False) -> list[doctor.Finding]:
        """All checks of `regworker doctor`; findings are returned, not raised.

        `ways`: also test each account with a harmless lookup at its provider.
        """
        try:
            findings = self._ledgers_findings()
        except SettingsError as error:
            [(name, what)] = error.problems
            return [doctor.Finding("unsafe", "ledger", what, f"change {name}")]
        except (LedgerUnavailable, RedisError) as error:
            return [doctor.unusable(error)]
        findings += doctor.pace(self._settings)
        findings += doctor.encryption(self._settings)
        findings += self._broker()
        findings += self._ways() if ways else []
        return findings

    def _ledgers_findings(self) -> list[doctor.Finding]:
        """What the ledger shows. Each part is looked at by itself: a key that cannot be read is a
        finding, and hides no other."""
        ledger, settings = self._ledger, self._settings
        info = ledger.ask(lambda redis: look_at_server(redis, settings.replicas), 3)
        findings = doctor.server(info, settings.replicas, settings.durability)
        findings += doctor.memory(info)
        findings += availability.examine(ledger.redis, info, settings.replicas, settings.redis_url)

        def by_workers() -> Iterator[doctor.Finding]:
            names = ledger.ask(announced, 3)
            yield doctor.sealing_key(self._keyring.marks[0], names)
            seen = whole(ledger, 3)
            yield from doctor.unreadable(seen)
            if ALARMS not in seen.broken:
                yield doctor.alarms(seen.overdue_by)
            yield doctor.announced(names, seen)
            yield from doctor.broker_owner(seen)
            yield from doctor.lacking(seen, names)
            yield from doctor.of_another_ledger(settings, seen, names)
            if REVIEWS not in seen.broken:
                yield doctor.waiting_for_a_person(seen.reviews)
            for one in seen.accounts:
                name = f"{one.provider}/{one.account}"
                yield doctor.account(name, one.breaker, one.paused, one.reason)

        def by_keys() -> Iterator[doctor.Finding]:
            kid = self._keyring.kids[0]
            yield doctor.seals(kid, ledger(ledger_seals(kid), 3))

        def by_files() -> Iterator[doctor.Finding]:
            plain: Any = ledger.ask(lambda redis: redis.hgetall(PLAIN), 3)
            marks = {text(name): text(mark) for name, mark in plain.items()}
            replicas = int(info.get("connected_slaves", info.get(ONLINE, 0)))
            yield doctor.plain_input(marks, ledger.now(), settings.rewrite_period, replicas)

        def by_readers() -> Iterator[doctor.Finding]:
            for stream in streams(ledger):
                for one in consumer_groups(ledger, stream):
                    yield doctor.consumer_group(
                        one.name, one.stream, one.behind, one.lag, one.pending
                    )

        def by_rights() -> Iterator[doctor.Finding]:
            refused = ledger(lacking(), 3)
            yield doctor.rights(refused)

        for look_at in (by_rights, by_workers, by_keys, by_files, by_readers):
            try:
                findings.extend(look_at())
            except ResponseError as error:
                if denied(error) or hidden(error):
                    findings.append(doctor.unusable(error))
                    continue
                findings.append(doctor.wrong_key(look_at.__name__.removeprefix("by_"), str(error)))
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

    def _check_key(self) -> None:
        """Raise `SettingsError` if no worker could open what these settings seal."""
        check_key(self._keyring.marks[0], self._ledger.ask(announced))

    def _resolve(
        self,
        record: Record,
        decision: str,
        actor: Actor,
        publication: Publication | None,
        ticket: str = "",
    ) -> Settled:
        self._check_key()
        done = self._ledger(
            resolve(
                record,
                decision,
                actor,
                self._settings.deadline,
                self._settings.retention,
                publication,
                ticket,
            )
        )
        if isinstance(done, Stale):
            raise _not_in_review(record.id, done.state)
        return done

    def _found(self, record: Record, outcome: dict[str, Any]) -> Registered:
        return Registered(self._registry.outcome(record.provider, outcome), recovered=True)

    def _record(self, job_id: str) -> Record:
        return carry(known_record(job_id), self._ledger.carry)

    def _seen(self, job_id: str, seen: str) -> Record:
        """A job's record, if it is still as a person has seen it."""
        record = self._record(job_id)
        if seen and mark_of(record) != seen:
            raise _not_in_review(job_id, record.state)
        return record

    def _known(self, provider: str, account: str) -> None:
        # An account that no worker has any more is found too: its jobs may still wait.
        if not self._ledger.ask(lambda redis: redis.exists(account_key(provider, account))):
            other = AccountLedgers(self._settings.account_ledgers).of(provider, account)
            if other != self._settings.ledger:
                what = f"belongs to the ledger {other}: set {variable('ledger')}={other}"
                raise UnknownJob(f"the account {provider}/{account} {what}")
            raise UnknownJob(f"no worker has announced the account {provider}/{account}")

    def _ways(self) -> Iterator[doctor.Finding]:
        """Whether each account's provider can be reached, and accepts its credentials."""
        try:
            found = check_accounts(self._settings, ())
        except RegistrationWorkerError as error:
            yield doctor.Finding("warning", "accounts", str(error), "correct the settings")
            return
        for (provider, account), one in found.items():
            yield doctor.way(f"{provider}/{account}", one.state, one.words)

    def _broker(self) -> Iterator[doctor.Finding]:
        try:
            self._wake.probe()
            differing = list(self._differing_queues())
        except Exception as error:  # noqa: BLE001 -- whatever a transport raises
            # kombu wraps it in an error of its own.
            wrong = next((one for one in _chain(error) if isinstance(one, WrongServer)), None)
            if wrong is None:
                yield doctor.broker(type(error).__name__)
            else:
                advice = f"change {variable('broker_url')}"
                yield doctor.Finding("unsafe", "broker", str(wrong), advice)
            return
        yield doctor.broker("")
        for name, differs in differing:
            yield doctor.queue(name, differs)

    def _differing_queues(self) -> Iterator[tuple[str, str]]:
        """RabbitMQ queues with other arguments than workers declare, and RabbitMQ's message for
        each."""
        with self._app.connection_for_write() as connection:
            for queue in self._app.amqp.queues.values():
                if queue.queue_arguments and (differs := queue.difference(connection.connection)):
                    yield queue.name, differs


def _not_in_review(job_id: str, state: str) -> NotInReview:
    if state == State.REVIEW:
        what = "has changed since you looked at it; look again, and decide on what it shows now"
        return NotInReview(f"job {job_id} {what}")
    return NotInReview(f"job {job_id} is {state}, not in review")


def _fault(message: str) -> Fault:
    if not message.strip():
        # Its producer reads it; a script whose variable is empty must not end a review.
        raise InvalidOutcome([Problem("required", "message", "is blank: say why")])
    return Fault(Code.PROVIDER_ERROR, "", message)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
