"""What was counted, as Prometheus reads it: of one process, and of all that is shared.

The names are an interface: dashboards and alerts are built on them (`monitoring/`). No label has
more values than the settings have names, but for consumer groups, which the readers name.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from worker import __version__
from worker.ledger.gauges import Gauges
from worker.lookout import Overview, Server
from worker.metrics import Meter, Tally, Timing
from worker.vitals import Vitals

#: What Prometheus asks for by name, and everything else reads as text.
TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ACCOUNT = ("provider", "account")

#: Memory, CPU and files of this process, read when it is asked.
_PROCESS = ProcessCollector(registry=None)


def of_process(meter: Meter, vitals: Vitals, in_flight: int) -> bytes:
    """What one worker process counts, and how its parts do."""
    return _text([*map(_counted, meter), *_vital(vitals, in_flight), *_PROCESS.collect()])


def of_all(overview: Overview | None) -> bytes:
    """What all workers share; None: the ledger does not answer, which is told too."""
    up = _gauge("regworker_ledger_up", "Whether the ledger answers.", [((), overview is not None)])
    if overview is None:
        return _text([_info(), up])
    return _text(
        [
            _info(),
            up,
            *_jobs(overview.gauges),
            *_totals(overview.gauges),
            *_accounts(overview.gauges),
            *_endpoints(overview.gauges),
            *_streams(overview.gauges),
            *_workers(overview.gauges),
            *_broker(overview),
            *_server(overview.server),
        ]
    )


class _Families:
    """As `generate_latest` wants them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _text(families: Iterable[Metric]) -> bytes:
    given: Any = _Families(families)
    return generate_latest(given)


Samples = Iterable[tuple[tuple[str, ...], float]]


def _gauge(name: str, help_: str, samples: Samples, labels: tuple[str, ...] = ()) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def _counter(name: str, help_: str, samples: Samples, labels: tuple[str, ...] = ()) -> Metric:
    family = CounterMetricFamily(name, help_, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family


def _info() -> Metric:
    python = ".".join(map(str, sys.version_info[:3]))
    samples = [((__version__, python), 1)]
    return _gauge("regworker_info", "What runs.", samples, ("version", "python"))


# -- one process ----------------------------------------------------------------------------------


def _counted(one: Tally | Timing) -> Metric:
    if isinstance(one, Timing):
        family = HistogramMetricFamily(one.name, one.help, labels=one.labels)
        for values, (counts, total) in one.read().items():
            family.add_metric(values, list(_cumulated(one.bounds, counts)), total)
        return family
    make = _gauge if one.level else _counter
    return make(one.name, one.help, one.read().items(), one.labels)


def _cumulated(bounds: Iterable[float], counts: Iterable[int]) -> Iterator[tuple[str, int]]:
    below = 0
    names = [*(f"{float(bound)}" for bound in bounds), "+Inf"]
    for name, number in zip(names, counts, strict=True):
        below += number
        yield name, below


def _vital(vitals: Vitals, in_flight: int) -> Iterator[Metric]:
    parts = vitals.parts()
    yield _info()
    yield _gauge("regworker_leases_held", "Leases that this process holds.", [((), in_flight)])
    yield _gauge("regworker_tasks_running", "Tasks that are running.", [((), vitals.running)])
    yield _gauge(
        "regworker_part_age_seconds",
        "How long ago each part last did its work; of tasks, the age of the oldest.",
        (((part,), age) for part, (age, _) in parts.items()),
        ("part",),
    )
    yield _gauge(
        "regworker_part_limit_seconds",
        "How long that may be.",
        (((part,), limit) for part, (_, limit) in parts.items()),
        ("part",),
    )


# -- all that is shared ---------------------------------------------------------------------------


def _jobs(g: Gauges) -> Iterator[Metric]:
    labels = ("state", "lane")
    yield _gauge(
        "regworker_jobs",
        "Jobs that are not over.",
        (((one.state, one.lane), one.count) for one in g.jobs),
        labels,
    )
    yield _gauge(
        "regworker_jobs_due",
        "Queued jobs that may be tried now, as far as their retries go.",
        (((one.lane,), one.count - one.put_off) for one in g.jobs if one.state == "queued"),
        ("lane",),
    )
    yield _gauge(
        "regworker_oldest_job_seconds",
        "How long ago the oldest job that is not over was accepted; 0 where there is none.",
        (((one.state, one.lane), _since(one.oldest, g.at)) for one in g.jobs),
        labels,
    )
    yield _gauge(
        "regworker_oldest_review_seconds",
        "How long a job has waited for a person; 0 where none does.",
        [((), _since(g.review_since, g.at))],
    )
    yield _gauge("regworker_alarms", "Alarms that are set.", [((), g.alarms)])
    yield _gauge("regworker_alarms_overdue", "Alarms due that have not rung.", [((), g.overdue)])
    yield _gauge(
        "regworker_alarms_overdue_seconds",
        "By how much the first of them is late.",
        [((), g.overdue_by)],
    )
    yield _gauge(
        "regworker_quarantine_messages",
        "Messages from the broker that could not be read, and are kept.",
        [((), g.quarantine)],
    )


#: Names in `{reg}:stats` that are counted of the whole installation.
_COUNTED = {
    "accepted": ("regworker_jobs_accepted", "Jobs accepted."),
    "review": ("regworker_reviews", "Times that a job came to a person."),
    "redriven": ("regworker_jobs_redriven", "Abandoned jobs that were given another life."),
    "late_facts": (
        "regworker_late_facts",
        "Late answers of stale workers for jobs that were over.",
    ),
    "refused": ("regworker_jobs_refused", "Jobs refused at an asynchronous door."),
    "delivered": ("regworker_deliveries_arrived", "Deliveries that arrived."),
    "dead": ("regworker_deliveries_given_up", "Deliveries that were given up."),
    "replayed": ("regworker_deliveries_replayed", "Dead deliveries that were sent again."),
    "endpoints_disabled": ("regworker_endpoint_disables", "Times an endpoint was disabled."),
    "quarantined": ("regworker_quarantined", "Messages that were put into quarantine."),
    "quarantine_dropped": (
        "regworker_quarantine_dropped",
        "Messages in quarantine that were dropped for room.",
    ),
}


def _totals(g: Gauges) -> Iterator[Metric]:
    for field, (name, help_) in _COUNTED.items():
        yield _counter(name, help_, [((), g.stats.get(field, 0))])
    yield _counter(
        "regworker_jobs_finished",
        "Jobs that are over, by their final state.",
        (
            ((state, *account.split(":", 1)), number)
            for (state, _, account), number in _parted(g.stats)
            if account
        ),
        ("state", *_ACCOUNT),
    )


def _parted(stats: Any) -> Iterator[tuple[tuple[str, str, str], int]]:
    for field, number in sorted(stats.items()):
        yield field.partition(":"), number


def _accounts(g: Gauges) -> Iterator[Metric]:
    def each(name: str, help_: str, value: Any) -> Metric:
        samples = (((one.provider, one.account), value(one)) for one in g.accounts)
        return _gauge(f"regworker_account_{name}", help_, samples, _ACCOUNT)

    yield each("in_flight", "Calls under way, of all workers.", lambda one: one.in_flight)
    yield each("in_flight_limit", "Calls at a time; 0: no limit.", lambda one: one.max_in_flight)
    yield each("waiting", "Jobs that wait for the account.", lambda one: one.waiting)
    yield each("rate_limit", "Calls a second by its pace; 0: no limit.", lambda one: one.rate)
    yield each(
        "pace_used_ratio",
        "How much of its pace is used up; from 1 on, calls wait for their slots.",
        lambda one: one.pace_used,
    )
    yield each("paused", "Whether an operator has paused it.", lambda one: one.paused)
    yield each("failures", "Faults since the last success.", lambda one: one.failures)
    yield _gauge(
        "regworker_account_breaker",
        "1 for the state that its breaker is in.",
        (
            ((one.provider, one.account, state), one.breaker == state)
            for one in g.accounts
            for state in ("closed", "open", "refused")
        ),
        (*_ACCOUNT, "state"),
    )


def _endpoints(g: Gauges) -> Iterator[Metric]:
    names = sorted({one.name for one in g.endpoints} | set(g.dead))

    def each(name: str, help_: str, value: Any) -> Metric:
        samples = (((one.name,), value(one)) for one in g.endpoints)
        return _gauge(f"regworker_{name}", help_, samples, ("endpoint",))

    yield each("deliveries_pending", "Deliveries to be made.", lambda one: one.pending)
    yield each("deliveries_trying", "Deliveries that are being tried.", lambda one: one.trying)
    yield each(
        "oldest_delivery_seconds",
        "How long the oldest pending delivery has been there; 0 where there is none.",
        lambda one: _since(one.oldest, g.at),
    )
    yield each("endpoint_disabled", "Whether nothing is sent to it.", lambda one: one.disabled)
    yield each(
        "endpoint_failing_seconds",
        "For how long it has done nothing but fail; 0 where it doesn't.",
        lambda one: _since(one.failing_since, g.at),
    )
    yield _gauge(
        "regworker_deliveries_dead",
        "Deliveries that nobody took, kept to be replayed.",
        (((name,), g.dead.get(name, 0)) for name in names),
        ("endpoint",),
    )


def _streams(g: Gauges) -> Iterator[Metric]:
    yield _gauge(
        "regworker_stream_entries",
        "Entries of a stream in the ledger.",
        (((one.name,), one.length) for one in g.streams),
        ("stream",),
    )
    groups = [(stream.name, group) for stream in g.streams for group in stream.groups]
    labels = ("stream", "group")
    yield _gauge(
        "regworker_stream_group_lag",
        "Entries that a consumer group has not read.",
        (((name, one.name), one.lag) for name, one in groups if one.lag is not None),
        labels,
    )
    yield _gauge(
        "regworker_stream_group_pending",
        "Entries that a consumer group has read and not acknowledged.",
        (((name, one.name), one.pending) for name, one in groups),
        labels,
    )


def _workers(g: Gauges) -> Iterator[Metric]:
    found = [one.condition(g.at) for one in g.workers]
    yield _gauge(
        "regworker_workers",
        "Worker processes: well; stuck in one part; or silent, gone without leave.",
        (((kind,), found.count(kind)) for kind in ("well", "stuck", "silent")),
        ("condition",),
    )
    alive = [one for one in g.workers if one.condition(g.at) != "silent"]
    slots = sum(one.slots for one in alive)
    yield _gauge("regworker_slots", "Jobs that all workers can carry at a time.", [((), slots)])


def _broker(overview: Overview) -> Iterator[Metric]:
    queues = overview.queues
    yield _gauge("regworker_broker_up", "Whether the broker answers.", [((), queues is not None)])
    yield _gauge(
        "regworker_queue_messages",
        "Messages that wait on a queue of the broker.",
        (((name,), number) for name, number in (queues or {}).items()),
        ("queue",),
    )


def _server(server: Server) -> Iterator[Metric]:
    prefix = "regworker_ledger"
    yield _gauge(f"{prefix}_memory_bytes", "Memory the ledger uses.", [((), server.memory)])
    yield _gauge(
        f"{prefix}_memory_limit_bytes", "What it may use; 0: no limit.", [((), server.memory_limit)]
    )
    yield _gauge(f"{prefix}_aof_enabled", "Whether it has an AOF.", [((), server.aof_enabled)])
    yield _gauge(f"{prefix}_aof_ok", "Whether it can write it.", [((), server.aof_ok)])
    yield _gauge(f"{prefix}_primary", "Whether it is the primary.", [((), server.primary)])
    yield _gauge(f"{prefix}_clients", "Connections to it.", [((), server.clients)])


def _since(at: int, now: int) -> float:
    return max(0.0, (now - at) / 1000) if at else 0.0
