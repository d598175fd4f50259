"""The table of all metrics, for docs/metrics.md."""

from collections.abc import Iterator

from prometheus_client.core import Metric

from regworker.ledger.snapshot import Snapshot
from worker.gateway import metrics as gateway
from worker.monitoring import prometheus
from worker.monitoring.liveness import Liveness, consumer, readings
from worker.monitoring.metrics import Meter
from worker.monitoring.overview import Overview, Server

#: An installation in which nothing has happened: only names and help texts matter here.
_NOTHING = Overview(
    Snapshot(
        at=0,
        jobs=(),
        accounts=(),
        endpoints=(),
        streams=(),
        workers=(),
        alarms=0,
        overdue=0,
        overdue_by=0,
        reviews=0,
        review_since=0,
        dead={},
        quarantine=0,
        stats={},
        unreadable=(),
    ),
    Server("", None, None, None, None, primary=True, clients=None),
    None,
)


def markdown() -> Iterator[str]:
    """Name, type, labels, who serves it, and meaning of each metric of ours."""
    yield "| metric | type | labels | served by | meaning |"
    yield "|---|---|---|---|---|"
    worker = (*Meter(), *readings(Liveness(0, 0, consumer()), {}))
    served = {
        "worker": prometheus.families_of_process(worker),
        "exporter": prometheus.families_of_all(_NOTHING),
        "gateway": prometheus.families_of_process((gateway.requests(), gateway.refusals())),
    }
    who: dict[str, list[str]] = {}
    found: dict[str, Metric] = {}
    for name, families in served.items():
        for one in families:
            if one.name.startswith("regworker_"):
                who.setdefault(one.name, []).append(name)
                found[one.name] = one
    for one in found.values():
        name = one.name + ("_total" if one.type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in prometheus.labels_of(one))
        by = ", ".join(who[one.name])
        yield f"| `{name}` | {one.type} | {labels} | {by} | {_meaning(one.documentation)} |"


def _meaning(text: str) -> str:
    # The page says once what the sum of several accounts is.
    return text.removesuffix(prometheus.FOLDED).strip().replace("*", r"\*")
