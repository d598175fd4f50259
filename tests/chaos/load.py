"""Producers: they enqueue at a rate, repeat keys, send conflicts, cancel; and keep a log.

A producer that gets `LedgerUnavailable` repeats the same job until it has an answer; the key makes
that safe. Accepted jobs are appended to a file.
"""

import copy
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from regworker.domain.errors import (
    IdempotencyConflict,
    JobNotCancellable,
    LedgerUnavailable,
    UnknownJob,
)
from regworker.domain.job import job_id
from regworker.producer import Producer
from regworker.settings import Settings
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION

#: The weights of what is enqueued: new jobs, repeats, the same key with other content.
CHOICES = {"fresh": 80, "repeat": 12, "conflict": 8}

#: The weights of new jobs.
SORTS = {"plain": 85, "refused": 5, "hurried": 3, "cancelled": 7}

#: Seconds until the deadline of a hurried job.
HURRY = 4.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that its producer knows to be accepted."""

    job_id: str
    key: str
    provider: str
    email: str
    sort: str
    webhook: bool
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a producer does next."""

    choice: str
    sort: str
    email: str
    job: dict[str, Any]


def offers(seed: int, number: int) -> Iterator[Offer]:
    """Everything that one producer enqueues: a pure function of the seed and its number."""
    chance = random.Random(f"producer {seed} {number}")
    before: list[Offer] = []
    count = 0
    while True:
        choice = chance.choices(list(CHOICES), list(CHOICES.values()))[0]
        if choice == "fresh" or not before:
            count += 1
            sort = chance.choices(list(SORTS), list(SORTS.values()))[0]
            offer = _fresh(chance, sort, f"p{number}-{count}")
            before.append(offer)
        elif choice == "repeat":
            again = chance.choice(before[-50:])
            offer = Offer("repeat", again.sort, again.email, again.job)
        else:
            again = chance.choice(before[-50:])
            other = _fresh(chance, "plain", f"conflict{number}-{count}-{chance.randrange(10**9)}")
            key, provider = again.job["idempotency_key"], again.job["provider"]
            if other.job["provider"] != provider:
                continue
            job = {**other.job, "idempotency_key": key}
            offer = Offer("conflict", again.sort, other.email, job)
        yield offer


def _fresh(chance: random.Random, sort: str, name: str) -> Offer:
    email = f"{name}@example.com"
    # Only for Open2b is a refusal documented well enough to cause it.
    if sort == "refused" or chance.random() < 0.5:
        provider, registration = "open2b", copy.deepcopy(OPEN2B_SIGN_UP)
        registration["customer"]["address"]["email"] = email
        if sort == "refused":
            registration["customer"]["cart"] = "0" * 32
    else:
        provider, registration = "skypostal", copy.deepcopy(SKYPOSTAL_REGISTRATION)
        del registration["copa_id"]
        registration["customer_email"] = email
    job = {
        "provider": provider,
        "idempotency_key": name,
        "registration": registration,
        "reply_to": ["results", "crm"] if chance.random() < 0.5 else ["results"],
        "lane": "bulk" if chance.random() < 0.3 else "live",
        "metadata": {"sort": sort},
    }
    return Offer("fresh", sort, email, job)


@dataclass
class Load:
    """All producers of a run, each in a thread."""

    settings: Settings
    log: Path
    seed: int
    rate: float
    counts: Counter[str] = field(default_factory=Counter)
    #: E-mails of refused jobs: no account may exist for them.
    refused: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    """Errors that a producer must never get."""
    #: Whether the ledger may lose jobs that it acknowledged.
    forgets: bool = False
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, producers: int) -> None:
        """Start the producers."""
        for number in range(producers):
            thread = threading.Thread(
                target=self._guarded, args=(number, self.rate / producers), daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def stop(self, patience: float = 60.0) -> None:
        """Let every producer finish its last job. One that cannot is an error."""
        self._over.set()
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                self.wrong.append(f"{thread.name}: enqueue() did not return in {patience:g} s")

    def accepted(self) -> list[Accepted]:
        """The accepted jobs in the log."""
        if not self.log.exists():
            return []
        with self.log.open(encoding="utf-8") as lines:
            found = [Accepted(**json.loads(line)) for line in lines]
        # A job that was cancelled later is logged twice.
        return list({one.job_id: one for one in found}.values())

    def _guarded(self, number: int, rate: float) -> None:
        try:
            with Producer(self.settings) as producer:
                self._produce(producer, number, rate)
        except Exception as error:  # noqa: BLE001 -- shown, and fails the run
            self.wrong.append(f"producer {number}: {type(error).__name__}: {error}")

    def _produce(self, producer: Producer, number: int, rate: float) -> None:
        pauses = random.Random(f"pauses {self.seed} {number}")
        for offer in offers(self.seed, number):
            if self.forgets and offer.choice == "conflict":
                continue  # if the ledger lost the first content, it would accept this one
            if self._over.wait(pauses.expovariate(rate)):
                return
            self._offer(producer, offer)

    def _offer(self, producer: Producer, offer: Offer) -> None:
        job = offer.job
        if offer.sort == "hurried" and offer.choice == "fresh":
            deadline = datetime.now(UTC) + timedelta(seconds=HURRY)
            job = {**job, "deadline": deadline.isoformat()}
        id_ = job_id(job["provider"], job.get("account", "default"), job["idempotency_key"])
        try:
            receipt = self._until_known(lambda: producer.enqueue(job))
        except IdempotencyConflict:
            with self._lock:
                self.counts["conflicts"] += 1
                self.refused.add(offer.email)
            if offer.choice != "conflict":
                self.wrong.append(f"{offer.choice} job {id_}: IdempotencyConflict")
            return
        if offer.choice == "conflict":
            self.wrong.append(f"job {id_}: other content was taken under its key")
        if receipt.job_id != id_:
            self.wrong.append(f"job {id_}: its receipt says {receipt.job_id}")
        with self._lock:
            self.counts["repeats" if offer.choice == "repeat" else "enqueued"] += 1
        if offer.choice != "fresh":
            return
        known = Accepted(
            id_,
            job["idempotency_key"],
            job["provider"],
            offer.email,
            offer.sort,
            "crm" in job["reply_to"],
        )
        self._note(known)
        if offer.sort == "cancelled":
            try:
                self._until_known(lambda: producer.cancel(id_))
            except JobNotCancellable:
                return
            except UnknownJob:
                if not self.forgets:
                    self.wrong.append(f"job {id_}: UnknownJob, right after it was accepted")
                return
            self._note(Accepted(**{**asdict(known), "cancelled": True}))

    def _until_known(self, do: Callable[[], Any]) -> Any:
        while True:
            try:
                return do()
            except LedgerUnavailable:
                with self._lock:
                    self.counts["ledger away"] += 1

    def _note(self, known: Accepted) -> None:
        with self._lock, self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(known)) + "\n")


@contextmanager
def load(settings: Settings, log: Path, seed: int, rate: float) -> Iterator[Load]:
    """Producers that stop at the end of the block, if necessary in the middle of a job."""
    made = Load(settings, log, seed, rate)
    try:
        yield made
    finally:
        made._over.set()
