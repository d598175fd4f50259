"""What this process has counted and timed, kept until somebody asks (`exposition.py`).

Counting is a dictionary and a lock, so that it costs a job next to nothing whether anybody asks or
not. No label is a job's, an event's or a customer's: each is a name out of the settings, or one of
ours.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from worker.ledger.records import Claim, Record, Settled, Stale
from worker.lifecycle import FINAL
from worker.outcome import Outcome, Registered, Rejected

Labels = tuple[str, ...]

#: Upper bounds in seconds. Of a call: around the budget's default of 20.
CALL = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0)
#: Of a job: from at once, over retries and settle delays, to the deadline's default of a day.
JOB = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
#: Of a round trip to the ledger: one of some milliseconds is slow already.
TRIP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Tally:
    """Counts by labels: what has happened, or (`Tally.level`) how much there is now."""

    def __init__(self, name: str, help_: str, labels: Labels = (), *, level: bool = False) -> None:
        self.name, self.help, self.labels, self.level = name, help_, labels, level
        self._counts: dict[Labels, int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, n: int = 1) -> None:
        """Count `n` more; also from several threads at once."""
        with self._lock:
            self._counts[labels] = self._counts.get(labels, 0) + n

    def read(self) -> dict[Labels, int]:
        """The counts by labels; without labels there is always one."""
        with self._lock:
            return {(): 0, **self._counts} if not self.labels else dict(self._counts)


class Timing:
    """A histogram of seconds, by labels."""

    def __init__(self, name: str, help_: str, bounds: Sequence[float], labels: Labels = ()) -> None:
        self.name, self.help, self.labels, self.bounds = name, help_, labels, tuple(bounds)
        self._found: dict[Labels, tuple[list[int], list[float]]] = {}
        self._lock = threading.Lock()

    def add(self, seconds: float, *labels: str) -> None:
        """One more that took so long."""
        with self._lock:
            found = self._found.get(labels)
            if found is None:
                found = self._found[labels] = ([0] * (len(self.bounds) + 1), [0.0])
            counts, total = found
            counts[bisect_left(self.bounds, seconds)] += 1
            total[0] += seconds

    def read(self) -> dict[Labels, tuple[list[int], float]]:
        """By labels: how many in each bucket, not added up, with those above all; the sum."""
        with self._lock:
            return {
                labels: (counts[:], total[0]) for labels, (counts, total) in self._found.items()
            }


class Meter:
    """All that a worker process counts; each method is called where it happens."""

    def __init__(self) -> None:
        account = ("provider", "account")
        self.attempts = Tally(
            "regworker_attempts",
            "Calls to register (kind call) and questions after lost answers (kind ask).",
            (*account, "kind", "outcome"),
        )
        self.attempt_seconds = Timing(
            "regworker_attempt_seconds",
            "From the claim until the outcome was settled.",
            CALL,
            (*account, "kind"),
        )
        self.outcomes = Tally(
            "regworker_outcomes",
            "What jobs came to: a final state or review; rejections with their first code.",
            (*account, "outcome", "code"),
        )
        self.recovered = Tally(
            "regworker_recovered", "Customers found by asking after a lost answer.", account
        )
        self.job_seconds = Timing(
            "regworker_job_seconds",
            "From a job's acceptance until its final event was published.",
            JOB,
            ("provider", "account", "lane"),
        )
        self.in_flight = Tally(
            "regworker_calls_in_flight", "Attempts under way in this process.", account, level=True
        )
        self.stale = Tally(
            "regworker_stale_settles", "Decisions that came after the lease had ended.", account
        )
        self.leases_lost = Tally("regworker_leases_lost", "Leases that could not be renewed.")
        self.ledger_seconds = Timing(
            "regworker_ledger_seconds", "Round trips to the ledger: one pipeline of scripts.", TRIP
        )
        self.deliveries = Tally(
            "regworker_delivery_tries",
            "Tries at delivering an event, by what the delivery is then: delivered, pending, dead.",
            ("endpoint", "result"),
        )
        self.delivery_seconds = Timing(
            "regworker_delivery_seconds", "One try at delivering an event.", CALL, ("endpoint",)
        )
        self.wakeups = Tally(
            "regworker_wakeups",
            "Wake-ups published (result sent), or not taken by the broker (result failed).",
            ("result",),
        )

    def __iter__(self) -> Iterator[Tally | Timing]:
        return iter(vars(self).values())

    @contextmanager
    def calling(self, record: Record) -> Iterator[None]:
        """An attempt is under way."""
        self.in_flight.add(record.provider, record.account)
        try:
            yield
        finally:
            self.in_flight.add(record.provider, record.account, n=-1)

    def attempted(
        self, claimed: Claim, outcome: Outcome, settled: Settled | Stale, seconds: float
    ) -> None:
        """An attempt was settled, `seconds` after its claim."""
        record = claimed.record
        account = (record.provider, record.account)
        kind = "ask" if claimed.asking else "call"
        self.attempts.add(*account, kind, type(outcome).__name__.lower())
        self.attempt_seconds.add(seconds, *account, kind)
        if isinstance(settled, Stale):
            self.stale.add(*account)
            return
        if isinstance(outcome, Registered) and outcome.recovered:
            self.recovered.add(*account)
        code = outcome.errors[0].code if isinstance(outcome, Rejected) else ""
        if settled.state in FINAL or settled.state == "review":
            self.ended(record, settled.state, code, claimed.at + seconds * 1000)

    def ended(self, record: Record, state: str, code: str, at: float) -> None:
        """A job came to its end, or to a person; `at`: milliseconds by the server's clock."""
        self.outcomes.add(record.provider, record.account, state, code)
        if state in FINAL:
            waited = max(0.0, at - record.accepted_at) / 1000
            self.job_seconds.add(waited, record.provider, record.account, record.lane)

    def delivered(self, endpoint: str, result: str, seconds: float) -> None:
        """One try at a delivery was made."""
        self.deliveries.add(endpoint, result)
        self.delivery_seconds.add(seconds, endpoint)

    def woke(self, wanted: int, sent: int) -> None:
        """Wake-ups were published, as many as the broker took."""
        if sent:
            self.wakeups.add("sent", n=sent)
        if wanted > sent:
            self.wakeups.add("failed", n=wanted - sent)
