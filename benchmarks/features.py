"""`python -m benchmarks.features`: what each feature that can be turned on costs a job.

One installation without any of them and one with each, all running; the same bursts go through all
of them in turns. It prints ratios of the CPU a job to the installation without, of the worker and
of the ledger's server: the median of the rounds, and the interval in which the true median is with
95 % probability. "least" is the ratio of the cheapest bursts: what else runs on the machine makes a
burst dearer, and never cheaper. The second installation without features shows the method's error.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.progress import track

from benchmarks.accounts import exporter
from benchmarks.gateway import Client, bare
from benchmarks.growth import measured
from benchmarks.support import stage
from benchmarks.support.contest import Bench, set_up
from benchmarks.support.single import OURS
from regworker.ledger import SyncLedger
from tests.gateway.service import start
from worker.cli.local import stack
from worker.operations.tokens import TokenStore

#: Clients that wait for events in a long poll.
POLLS = 10

#: Seconds between scrapes: Prometheus usually takes 15.
SCRAPES = 5.0


#: Milliseconds of CPU a job, of the worker and of the server.
Cost = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Place:
    """Where what runs beside an installation finds it."""

    running: ExitStack
    folder: Path
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature, and how it is turned on."""

    name: str
    settings: dict[str, str] = field(default_factory=dict)
    """Variables of the worker and of the client; `SINK` in them: the URL of a server that accepts
    everything."""
    beside: Callable[[Place], None] = lambda _: None
    """Starts what runs beside it."""
    replicas: int = 0
    """The ledger's replicas."""
    base: int = 0
    """The index of what it is compared with."""


def gateway(place: Place) -> None:
    """`regworker serve`, without requests."""
    start(place.running, place.folder, place.environment, "--port", "0")


def polled(place: Place) -> None:
    """`regworker serve`, with clients that read all events."""
    url, _, _ = start(place.running, place.folder, place.environment, "--port", "0")
    ledger = SyncLedger(place.environment["REGWORKER_REDIS_URL"])
    token, _ = TokenStore(ledger).new("bench", ("read",), rate=1e9)
    ledger.close()

    async def one(over: threading.Event) -> None:
        async with Client(url, token) as client:
            path = "/v1/events"
            while not over.is_set():
                status, answer = await client.ask("GET", path)
                assert status == 200, answer
                path = f"/v1/events?wait=1&after={json.loads(answer)['cursor']}"

    async def all_(over: threading.Event) -> None:
        await asyncio.gather(*(one(over) for _ in range(POLLS)))

    _meanwhile(place.running, lambda over: asyncio.run(all_(over)))


def scraped(place: Place) -> None:
    """`regworker exporter`, scraped."""
    url, _ = place.running.enter_context(exporter(place.folder, place.environment))

    def scrape(over: threading.Event) -> None:
        while not over.wait(SCRAPES):
            with urllib.request.urlopen(url) as answer:
                answer.read()

    _meanwhile(place.running, scrape)


def _meanwhile(running: ExitStack, work: Callable[[threading.Event], None]) -> None:
    """Run something in a thread, until the event that it gets is set: at the end of `running`."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    running.callback(thread.join)
    running.callback(over.set)


FEATURES = (
    Feature("nothing"),
    Feature("nothing, again"),
    Feature(
        "sealed results stream",
        {"ENDPOINTS__RESULTS__KIND": "stream", "ENDPOINTS__RESULTS__SEALED": "true"},
    ),
    Feature("metrics port; exporter beside it, scraped", {"METRICS_PORT": "0"}, scraped),
    Feature("`regworker serve` beside it, idle", beside=gateway),
    Feature(f"`regworker serve` beside it, {POLLS} clients read all events", beside=polled),
    Feature("Sentry, errors only", {"SENTRY_DSN": "SINK"}),
    Feature("OpenTelemetry, every job traced", {"OPENTELEMETRY": "true"}),
    Feature("two replicas, not waited for", replicas=2),
    Feature("two replicas, `REGWORKER_REPLICAS=1`", {"REPLICAS": "1"}, replicas=2, base=-2),
)


def installation(
    feature: Feature, running: ExitStack, provider: stage.Stub, sink: str, folder: Path
) -> Bench:
    """Start an installation with a feature."""
    folder.mkdir()
    variables = {
        f"REGWORKER_{name}": value.replace("SINK", sink.replace("//", "//key@") + "/1")
        for name, value in feature.settings.items()
    }
    ours = replace(OURS, environment={**variables, "OTEL_EXPORTER_OTLP_ENDPOINT": sink})
    bench = running.enter_context(set_up(ours, provider, folder, replicas=feature.replicas))
    port = bench.server.connection_pool.connection_kwargs["port"]
    url = f"redis://127.0.0.1:{port}/0"
    feature.beside(Place(running, folder, stage.environment_of(ours, url, provider.url)))
    bench.warm_up()
    return bench


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median is with 95 % probability: by the ranks, whatever the distribution."""
    rank = max(0, int((len(values) - 1.96 * sqrt(len(values))) / 2))
    return sorted(values)[rank], sorted(values)[-1 - rank]


def row(name: str, costs: Sequence[Cost], base: Sequence[Cost]) -> str:
    """A row of the table: the ratios to the base's costs in the same round."""
    cells = []
    for part in (0, 1):
        ours, plain = ([cost[part] for cost in side] for side in (costs, base))
        ratios = [one / other for one, other in zip(ours, plain, strict=True)]
        low, high = interval(ratios)
        cells += [
            f"{median(ratios):.3f} ({low:.3f} to {high:.3f})",
            f"{min(ours) / min(plain):.3f}",
        ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure in turns, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, help="jobs a burst (500)")
    parser.add_argument("--rounds", type=int, default=30, help="rounds (30)")
    options = parser.parse_args()
    costs: list[list[Cost]] = [[] for _ in FEATURES]
    console = Console(stderr=True)
    # Interrupted, it prints the rounds until then.
    with suppress(KeyboardInterrupt), stack.ending_by_signal(), ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        provider = running.enter_context(stage.stub(folder))
        sink, _ = bare(running, folder)
        benches = [
            installation(one, running, provider, sink, folder / f"{number}")
            for number, one in enumerate(
                track(FEATURES, "installations", console=console, transient=True)
            )
        ]
        places = range(len(FEATURES))
        for number in track(range(options.rounds), "rounds", console=console, transient=True):
            # Each is at each place of the order equally often.
            for one in places:
                which = (one + number) % len(FEATURES)
                costs[which].append(measured(benches[which], options.jobs))
    if not (rounds := min(map(len, costs))):
        sys.exit("interrupted before the first round was over")
    costs = [cost[:rounds] for cost in costs]
    per_job = [median(cost[part] for cost in costs[0]) for part in (0, 1)]
    print(
        f"{rounds} rounds of {options.jobs} jobs; without any feature: "
        f"{per_job[0]:.3f} ms of the worker's CPU a job, {per_job[1]:.3f} of the ledger's server"
    )
    print("| turned on | the worker's CPU | least | the server's CPU | least |")
    print("|---|---:|---:|---:|---:|")
    for feature, cost in list(zip(FEATURES, costs, strict=True))[1:]:
        print(row(feature.name, cost, costs[feature.base]))


if __name__ == "__main__":
    main()
