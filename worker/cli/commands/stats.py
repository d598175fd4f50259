"""`regworker stats`: the numbers of the whole installation, once."""

from typing import TYPE_CHECKING, Any

from worker.cli.connection import open_observer
from worker.cli.output import AsJson, out, print_json
from worker.monitoring.totals import finished

if TYPE_CHECKING:
    from worker.monitoring.overview import Overview


def stats(json: AsJson = False) -> None:
    """Show the numbers of the installation: jobs by state and lane, outcomes, the age of the oldest
    job, accounts, endpoints, workers, streams, queues, the ledger's server.

    A table has up to 50 rows, those with a problem first; --json shows all.

    Needs no sealing key. `regworker top` shows the same live; `regworker exporter` serves it to
    Prometheus.

    Examples:
        regworker stats
        regworker stats --json | jq .jobs.queued
    """
    from worker.cli.screen import Screen

    with open_observer() as observer:
        found = observer.look()
    if json:
        print_json(numbers(found))
    else:
        out().print(Screen().whole(found))


def numbers(found: "Overview") -> dict[str, Any]:
    """Everything as JSON. Times in seconds; `at` in milliseconds since 1970."""
    g = found.snapshot
    return {
        "at": g.at,
        "jobs": {
            state: {one.lane: one.count for one in g.jobs if one.state == state}
            for state in dict.fromkeys(one.state for one in g.jobs)
        },
        "due": {one.lane: one.count - one.put_off for one in g.jobs if one.state == "queued"},
        "oldest_seconds": {
            state: {one.lane: _since(one.oldest, g.at) for one in g.jobs if one.state == state}
            for state in dict.fromkeys(one.state for one in g.jobs)
        },
        "oldest_review_seconds": _since(g.review_since, g.at),
        "alarms": {"set": g.alarms, "overdue": g.overdue, "overdue_seconds": g.overdue_by},
        "accepted": g.stats.get("accepted", 0),
        "finished": finished(g),
        "quarantine": g.quarantine,
        "accounts": [
            {
                "provider": one.provider,
                "account": one.account,
                "breaker": one.breaker,
                "paused": one.paused,
                "reason": one.reason,
                "in_flight": one.in_flight,
                "max_in_flight": one.max_in_flight,
                "waiting": one.waiting,
                "rate": one.rate,
                "pace_used": round(one.pace_used, 3),
            }
            for one in g.accounts
        ],
        "endpoints": [
            {
                "endpoint": one.name,
                "pending": one.pending,
                "oldest_seconds": _since(one.oldest, g.at),
                "dead": g.dead.get(one.name, 0),
                "disabled": one.disabled,
                "failing_seconds": _since(one.failing_since, g.at),
            }
            for one in g.endpoints
        ],
        "dead_deliveries": sum(g.dead.values()),
        "streams": [
            {
                "stream": one.name,
                "entries": one.length,
                "groups": {
                    group.name: {"lag": group.lag, "pending": group.pending} for group in one.groups
                },
            }
            for one in g.streams
        ],
        "workers": [
            {
                "worker": one.name,
                "condition": one.condition(g.at),
                "in_flight": one.in_flight,
                "slots": one.slots,
                "up_seconds": one.up,
                "seen_seconds_ago": one.since(g.at),
                "version": one.version,
                "metrics": one.metrics,
                "broker": one.broker,
            }
            for one in g.workers
        ],
        "queues": None if found.queues is None else dict(found.queues),
        "ledger": {
            "version": found.server.version,
            "memory_bytes": found.server.memory,
            "memory_limit_bytes": found.server.memory_limit,
            "aof_ok": found.server.written,
            "primary": found.server.primary,
        },
    }


def _since(at: int, now: int) -> float:
    return max(0.0, (now - at) / 1000) if at else 0.0
