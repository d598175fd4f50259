"""The counts and durations of this process, kept until they are read.

`prometheus.py` and `otlp_metrics.py` read them.

Counting takes a dictionary and a lock, so that it costs a job next to nothing. No label belongs to
a job, an event or a customer: each is a name from the settings, or a fixed word.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from regworker.domain.outcome import Outcome, Registered, Rejected
from regworker.domain.states import FINAL
from regworker.ledger.records import Claim, Record, Settled, Stale

Labels = tuple[str, ...]

#: Upper bounds in seconds. Of a call: around the budget's default of 20.
CALL = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0)
#: Of a job: from immediate ends, over retries and settle delays, to the default deadline of a day.
JOB = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400, 86400)
#: Of a round trip to the ledger: one of some milliseconds is slow already.
TRIP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Tally:
    """Counts events by labels."""

    def __init__(self, name: str, help_: str, labels: Labels = ()) -> None:
        self.name, self.help, self.labels = name, help_, labels
        self._counts: dict[Labels, int] = {}
        self._lock = threading.Lock()

    def add(self, *labels: str, n: int = 1) -> None:
        """Add `n`. Thread-safe."""
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
        self.also: Callable[[float, Labels], None] | None = None
        """Called with each duration, for users with histograms of their own (`otlp_metrics.py`)."""

    def add(self, seconds: float, *labels: str) -> None:
        """Add one duration."""
        if self.also is not None:
            self.also(seconds, labels)
        with self._lock:
            found = self._found.get(labels)
            if found is None:
                found = self._found[labels] = ([0] * (len(self.bounds) + 1), [0.0])
            counts, total = found
            counts[bisect_left(self.bounds, seconds)] += 1
            total[0] += seconds

    def read(self) -> dict[Labels, tuple[list[int], float]]:
        """By labels: the number in each bucket, not cumulative, with the last for all longer ones;
        the sum."""
        with self._lock:
            return {
                labels: (counts[:], total[0]) for labels, (counts, total) in self._found.items()
            }


@dataclass(frozen=True, slots=True)
class Reading:
    """A present value that is looked up on request, by labels."""

    name: str
    help: str
    labels: Labels
    read: Callable[[], Mapping[Labels, float]]


Counted = Tally | Timing | Reading
"""A row of the one table of metrics, which Prometheus and OTLP both use."""


class Meter:
    """All counters of a worker process; each method is called where its event happens."""

    def __init__(self) -> None:
        account = ("provider", "account")
        self.attempts = Tally(
            "regworker_attempts",
            "Registration calls (kind call) and look-ups after lost answers (kind ask).",
            (*account, "kind", "outcome"),
        )
        self.attempt_seconds = Timing(
            "regworker_attempt_seconds",
            "Seconds from the claim until the outcome was settled.",
            CALL,
            (*account, "kind"),
        )
        self.outcomes = Tally(
            "regworker_outcomes",
            "Outcomes of jobs: a final state or review; rejections with their first code.",
            (*account, "outcome", "code"),
        )
        self.recovered = Tally(
            "regworker_recovered", "Customers found by a look-up after a lost answer.", account
        )
        self.job_seconds = Timing(
            "regworker_job_seconds",
            "Seconds from a job's acceptance until its final event was published.",
            JOB,
            ("provider", "account", "lane"),
        )
        self.stale = Tally(
            "regworker_stale_settles", "Decisions that came after the lease had ended.", account
        )
        self.leases_lost = Tally("regworker_leases_lost", "Leases that could not be renewed.")
        self.ledger_seconds = Timing(
            "regworker_ledger_seconds",
            "Seconds of a round trip to the ledger: one pipeline of scripts.",
            TRIP,
        )
        self.deliveries = Tally(
            "regworker_delivery_tries",
            "Delivery attempts, by the delivery's state afterwards: delivered, pending, dead.",
            ("endpoint", "result"),
        )
        self.delivery_seconds = Timing(
            "regworker_delivery_seconds", "Seconds of one delivery attempt.", CALL, ("endpoint",)
        )
        self.lacked = Tally(
            "regworker_lacked",
            "How often a job or delivery needed an account, endpoint or key that this worker "
            "lacks.",
            ("kind", "name"),
        )
        self.strays = Tally(
            "regworker_stray_answers",
            "How often bytes arrived that belong to no request (kind account or endpoint).",
            ("kind", "name"),
        )
        self.wakeups = Tally(
            "regworker_wakeups",
            "Wake-ups that a worker published (sent), or the broker did not accept (failed).",
            ("result",),
        )

    def __iter__(self) -> Iterator[Tally | Timing]:
        return iter(vars(self).values())

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
        """A job ended or went to review; `at`: milliseconds by the server's clock."""
        self.outcomes.add(record.provider, record.account, state, code)
        if state in FINAL:
            waited = max(0.0, at - record.accepted_at) / 1000
            self.job_seconds.add(waited, record.provider, record.account, record.lane)

    def delivered(self, endpoint: str, result: str, seconds: float) -> None:
        """One try at a delivery was made."""
        self.deliveries.add(endpoint, result)
        self.delivery_seconds.add(seconds, endpoint)

    def woke(self, wanted: int, sent: int) -> None:
        """Wake-ups were published; `sent` of them were accepted by the broker."""
        if sent:
            self.wakeups.add("sent", n=sent)
        if wanted > sent:
            self.wakeups.add("failed", n=wanted - sent)
