"""`regworker exporter`: what all workers share, for Prometheus."""

import json
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.connection import open_lookout
from worker.cli.output import note
from worker.errors import LedgerUnavailable

if TYPE_CHECKING:
    from worker.lookout import Lookout, Overview
    from worker.scrape import Page, Pages


def exporter(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 9808,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once, and end.")] = False,
) -> None:
    """Serve the metrics that all workers share, for Prometheus: jobs by state and lane, how old the
    oldest is, accounts, deliveries, alarms, streams, queues, workers, the ledger's server.

    One is enough for an installation. A scrape takes the same few milliseconds however many jobs
    there are. Counts and times of calls are told by each worker (REGWORKER_METRICS_PORT); /targets
    names these for Prometheus' HTTP service discovery. Needs no sealing key, and shows no secret.

    Examples:
        regworker exporter --address 0.0.0.0 --port 9808
        regworker exporter --once | grep regworker_jobs
    """
    from worker import exposition

    with open_lookout() as lookout:
        if once:
            found = _look(lookout)
            sys.stdout.write(exposition.of_all(found).decode())
            if found is None:
                raise typer.Exit(1)
            return
        _serve(lookout, address, port)


def _serve(lookout: "Lookout", address: str, port: int) -> None:
    from worker.scrape import Scrape

    ended = threading.Event()
    # A process that is the first of a container gets no signal that it doesn't ask for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = Scrape.start(address, port, _pages(lookout), ports=1)
    note(f"metrics at http://{address}:{server.port}/metrics")
    ended.wait()
    server.stop()


def _pages(lookout: "Lookout") -> "Pages":
    from worker import exposition
    from worker.scrape import JSON, Page

    # Connections are not to be shared; two Prometheus servers may ask at once.
    lock = threading.Lock()

    def metrics() -> "Page":
        with lock:
            found = _look(lookout)
        return Page(exposition.of_all(found), exposition.TYPE)

    def targets() -> "Page":
        with lock:
            found = lookout.gauges()
        alive = [one.metrics for one in found.workers if one.condition(found.at) != "silent"]
        told = [{"targets": [one], "labels": {}} for one in alive if one]
        return Page(json.dumps(told).encode(), JSON)

    return {"/metrics": metrics, "/targets": targets}


def _look(lookout: "Lookout") -> "Overview | None":
    try:
        return lookout.look()
    except LedgerUnavailable as error:
        note(str(error))
        return None
