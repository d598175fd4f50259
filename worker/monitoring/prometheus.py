"""The metrics for Prometheus: of one process, and of the whole installation.

The names are an interface: dashboards and alerts are built on them (`monitoring/`). No label has
more values than the settings have names, except consumer groups, which the readers name.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from regworker.domain.states import FINAL
from regworker.ledger.snapshot import AccountSnapshot, BrokerOf, Snapshot
from worker import __version__
from worker.monitoring.account_series import OTHERS, AccountSeries, folded
from worker.monitoring.metrics import Counted, Reading, Timing
from worker.monitoring.overview import Overview, Server

#: The type that Prometheus requests by name, and everything else reads as text.
TYPE = "text/plain; version=0.0.4; charset=utf-8"

_ACCOUNT = ("provider", "account")

#: Memory, CPU and files of this process, read on request.
_PROCESS = ProcessCollector(registry=None)


def of_process(counted: Iterable[Counted]) -> bytes:
    """The metrics of one process: a worker, or `regworker serve`."""
    return _text(families_of_process(counted))


def families_of_process(counted: Iterable[Counted]) -> list[Metric]:
    """The metrics of one process, with names, types and help texts."""
    return [_info(), *map(_counted, counted), *_PROCESS.collect()]


def of_all(overview: Overview | None, series: AccountSeries = AccountSeries()) -> bytes:  # noqa: B008
    """The metrics of the whole installation; None: the ledger does not answer, which is a metric
    too. `series`: which accounts have their own."""
    return _text(families_of_all(overview, series))


def families_of_all(
    overview: Overview | None,
    series: AccountSeries = AccountSeries(),  # noqa: B008
) -> list[Metric]:
    """The metrics of the whole installation, with names, types and help texts."""
    up = _gauge(
        "regworker_ledger_up",
        "1 if the ledger answers, and has its indexes.",
        [((), overview is not None)],
    )
    if overview is None:
        return [_info(), up]
    return [
        _info(),
        up,
        *_jobs(overview.snapshot),
        *_totals(overview.snapshot, series),
        *_accounts(overview.snapshot, series),
        *_endpoints(overview.snapshot),
        *_strays(overview.snapshot, series),
        *_streams(overview.snapshot),
        *_workers(overview.snapshot),
        *_broker(overview),
        *_server(overview.server),
    ]


def labels_of(family: Metric) -> tuple[str, ...]:
    """The names of a family's labels; its library keeps them to itself."""
    return tuple(getattr(family, "_labelnames", ()))


class _Families:
    """The families of metrics, as `generate_latest` needs them."""

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


def _counted(one: Counted) -> Metric:
    if isinstance(one, Timing):
        family = HistogramMetricFamily(one.name, one.help, labels=one.labels)
        for values, (counts, total) in one.read().items():
            family.add_metric(values, list(_cumulated(one.bounds, counts)), total)
        return family
    make = _gauge if isinstance(one, Reading) else _counter
    return make(one.name, one.help, one.read().items(), one.labels)


def _cumulated(bounds: Iterable[float], counts: Iterable[int]) -> Iterator[tuple[str, int]]:
    below = 0
    names = [*(f"{float(bound)}" for bound in bounds), "+Inf"]
    for name, number in zip(names, counts, strict=True):
        below += number
        yield name, below


# -- shared by all workers ------------------------------------------------------------------------


def _jobs(g: Snapshot) -> Iterator[Metric]:
    labels = ("state", "lane")
    yield _gauge(
        "regworker_jobs",
        "Unfinished jobs.",
        (((one.state, one.lane), one.count) for one in g.jobs),
        labels,
    )
    yield _gauge(
        "regworker_jobs_due",
        "Queued jobs whose retry delay, if any, has passed.",
        (((one.lane,), one.count - one.put_off) for one in g.jobs if one.state == "queued"),
        ("lane",),
    )
    yield _gauge(
        "regworker_oldest_job_seconds",
        "Age of the oldest unfinished job; 0 if there is none.",
        (((one.state, one.lane), _since(one.oldest, g.at)) for one in g.jobs),
        labels,
    )
    yield _gauge(
        "regworker_oldest_review_seconds",
        "How long the oldest job in review has waited; 0 if there is none.",
        [((), _since(g.review_since, g.at))],
    )
    yield _gauge("regworker_alarms", "Alarms that are set.", [((), g.alarms)])
    yield _gauge(
        "regworker_alarms_overdue", "Alarms that are due and not processed.", [((), g.overdue)]
    )
    yield _gauge(
        "regworker_alarms_overdue_seconds",
        "Seconds by which the first of them is late.",
        [((), g.overdue_by)],
    )
    yield _gauge(
        "regworker_quarantine_messages",
        "Unreadable messages from the broker that are kept.",
        [((), g.quarantine)],
    )
    yield _gauge(
        "regworker_records_unreadable",
        "Records, counters and keys with invalid content.",
        [((), len(g.unreadable))],
    )


#: Names in `{reg}:stats` that count the whole installation.
_COUNTED = {
    "accepted": ("regworker_jobs_accepted", "Jobs accepted."),
    "review": ("regworker_reviews", "How often a job came to review."),
    "redriven": ("regworker_jobs_redriven", "Abandoned jobs that were redriven."),
    "late_facts": (
        "regworker_late_facts",
        "Late answers of stale workers for jobs that had ended.",
    ),
    "refused": ("regworker_jobs_refused", "Jobs refused at an asynchronous entry point."),
    "refused_unreported": (
        "regworker_refusals_unreported",
        "Refused jobs without an event, because too many were refused.",
    ),
    "delivered": ("regworker_deliveries_arrived", "Deliveries that arrived."),
    "dead": ("regworker_deliveries_given_up", "Deliveries whose retries ended without success."),
    "replayed": ("regworker_deliveries_replayed", "Dead deliveries that were replayed."),
    "endpoints_disabled": ("regworker_endpoint_disables", "How often an endpoint was disabled."),
    "quarantined": ("regworker_quarantined", "Messages that were quarantined."),
    "quarantine_dropped": (
        "regworker_quarantine_dropped",
        "Quarantined messages that were dropped because the quarantine was full.",
    ),
}


def _totals(g: Snapshot, series: AccountSeries) -> Iterator[Metric]:
    for field, (name, help_) in _COUNTED.items():
        yield _counter(name, help_, [((), g.stats.get(field, 0))])
    yield _counter(
        "regworker_jobs_finished",
        f"Finished jobs, by final state. {FOLDED}",
        _finished(g, series),
        ("state", *_ACCOUNT),
    )


#: The meaning of a series for several accounts; ends the help text of each metric that has one.
FOLDED = f'account="{OTHERS}": the accounts that regworker_accounts_folded counts, together.'


def _finished(g: Snapshot, series: AccountSeries) -> Iterator[tuple[tuple[str, ...], int]]:
    all_own = len(g.accounts) <= series.limit
    found: Counter[tuple[str, str, str]] = Counter()
    # From 0 on: for Prometheus a series that starts with 1 has not increased, so the first
    # abandoned job of an account would raise no alert.
    begun = {f"{state}:{one.provider}:{one.account}": 0 for one in g.accounts for state in FINAL}
    for field, number in (*begun.items(), *g.stats.items()):
        state, _, rest = field.partition(":")
        provider, _, account = rest.partition(":")
        if rest:
            # By its name alone: if it changed places when no worker has it, the sum would fall.
            named = all_own or series.always_own(provider, account)
            found[state, provider, account if named else OTHERS] += number
    yield from sorted(found.items())


def _accounts(g: Snapshot, series: AccountSeries) -> Iterator[Metric]:
    own = series.own(g.accounts) | series.alerting(g.accounts)
    groups: dict[tuple[str, str], list[AccountSnapshot]] = {}
    for one in g.accounts:
        named = (one.provider, one.account) in own
        groups.setdefault((one.provider, one.account if named else OTHERS), []).append(one)

    def each(name: str, help_: str, value: Any, together: Any = sum) -> Metric:
        samples = ((labels, together(map(value, some))) for labels, some in groups.items())
        return _gauge(f"regworker_account_{name}", f"{help_} {FOLDED}", samples, _ACCOUNT)

    yield _gauge(
        "regworker_accounts_folded",
        f'Accounts without gauges of their own: the series account="{OTHERS}" are their sums, of '
        "pace_used_ratio the highest (regworker exporter --accounts, --per-account-limit).",
        (((provider,), number) for provider, number in folded(g.accounts, own).items()),
        ("provider",),
    )
    yield each("in_flight", "Calls in flight, of all workers.", lambda one: one.in_flight)
    yield each(
        "in_flight_limit", "Limit of calls in flight; 0: no limit.", lambda one: one.max_in_flight
    )
    yield each(
        "waiting", "Jobs that wait for a free place of the account.", lambda one: one.waiting
    )
    yield each(
        "rate_limit",
        "Calls per second that the rate limit allows; 0: no limit.",
        lambda one: one.rate,
    )
    yield each(
        "pace_used_ratio",
        "The used share of the rate limit; from 1 on, calls wait.",
        lambda one: one.pace_used,
        max,
    )
    yield each("paused", "1 if an operator has paused it.", lambda one: one.paused)
    yield each("failures", "Consecutive failures since the last success.", lambda one: one.failures)
    yield _gauge(
        "regworker_account_breaker",
        f"1 for the state that its breaker is in. {FOLDED}",
        (
            ((*labels, state), sum(one.breaker == state for one in some))
            for labels, some in groups.items()
            for state in ("closed", "open", "refused")
        ),
        (*_ACCOUNT, "state"),
    )


def _strays(g: Snapshot, series: AccountSeries) -> Iterator[Metric]:
    own = series.own(g.accounts) | series.alerting(g.accounts)
    accounts = [
        ("account", f"{one.provider}/{one.account}", one.stray_at)
        for one in g.accounts
        if (one.provider, one.account) in own
    ]
    endpoints = [("endpoint", one.name, one.stray_at) for one in g.endpoints]
    yield _gauge(
        "regworker_stray_answers_seen",
        "1 if it ever sent bytes that belong to no request; each call then uses its own "
        "connection.",
        (((kind, name), at > 0) for kind, name, at in accounts + endpoints),
        ("kind", "name"),
    )


def _endpoints(g: Snapshot) -> Iterator[Metric]:
    names = sorted({one.name for one in g.endpoints} | set(g.dead))

    def each(name: str, help_: str, value: Any) -> Metric:
        samples = (((one.name,), value(one)) for one in g.endpoints)
        return _gauge(f"regworker_{name}", help_, samples, ("endpoint",))

    yield each("deliveries_pending", "Pending deliveries.", lambda one: one.pending)
    yield each("deliveries_trying", "Deliveries in flight.", lambda one: one.trying)
    yield each(
        "oldest_delivery_seconds",
        "Age of the oldest pending delivery; 0 if there is none.",
        lambda one: _since(one.oldest, g.at),
    )
    yield each(
        "endpoint_disabled", "1 if it is disabled: nothing is sent to it.", lambda one: one.disabled
    )
    yield each(
        "endpoint_failing_seconds",
        "How long all deliveries to it have failed; 0 if they succeed.",
        lambda one: _since(one.failing_since, g.at),
    )
    yield _gauge(
        "regworker_deliveries_dead",
        "Dead deliveries, kept for replay.",
        (((name,), g.dead.get(name, 0)) for name in names),
        ("endpoint",),
    )


def _streams(g: Snapshot) -> Iterator[Metric]:
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


def _workers(g: Snapshot) -> Iterator[Metric]:
    found = [one.condition(g.at) for one in g.workers]
    yield _gauge(
        "regworker_workers",
        "Worker processes: well; stuck in one part; or silent (stopped responding).",
        (((kind,), found.count(kind)) for kind in ("well", "stuck", "silent")),
        ("condition",),
    )
    lacking = Counter(name for one in g.workers for name in one.lacks)
    yield _gauge(
        "regworker_workers_lacking",
        "Workers that lack an account, endpoint or key that a job or delivery needed lately.",
        ((name.partition(":")[::2], number) for name, number in lacking.items()),
        ("kind", "name"),
    )
    alive = [one for one in g.workers if one.condition(g.at) != "silent"]
    owners = Counter(one.broker for one in alive)
    yield _gauge(
        "regworker_workers_at_broker",
        "Live workers, by the owner of their broker: this installation; other: another one uses "
        "it, too; unknown: the worker's user may not look.",
        (((owner,), owners[owner]) for owner in get_args(BrokerOf)),
        ("owner",),
    )
    slots = sum(one.slots for one in alive)
    yield _gauge(
        "regworker_slots", "Jobs that all workers together can run at a time.", [((), slots)]
    )


def _broker(overview: Overview) -> Iterator[Metric]:
    queues = overview.queues
    yield _gauge("regworker_broker_up", "1 if the broker answers.", [((), queues is not None)])
    yield _gauge(
        "regworker_queue_messages",
        "Messages that wait in a queue of the broker.",
        (((name,), number) for name, number in (queues or {}).items()),
        ("queue",),
    )


def _server(server: Server) -> Iterator[Metric]:
    for name, help_, value in (
        ("memory_bytes", "Memory the ledger uses.", server.memory),
        ("memory_limit_bytes", "Its memory limit; 0: no limit.", server.memory_limit),
        ("aof_enabled", "1 if its append-only file is on.", server.aof_enabled),
        ("aof_ok", "1 if it can write its append-only file.", server.aof_ok),
        ("primary", "1 if it is the primary.", server.primary),
        ("clients", "Open client connections.", server.clients),
    ):
        # Without a sample, no alert can fire on a value that the server does not show.
        samples = [] if value is None else [((), float(value))]
        yield _gauge(f"regworker_ledger_{name}", help_, samples)


def _since(at: int, now: int) -> float:
    return max(0.0, (now - at) / 1000) if at else 0.0
