"""`regworker exporter`: the metrics of the whole installation, for Prometheus."""

import json
import signal
import sys
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from regworker.domain.errors import LedgerUnavailable
from worker.cli.connection import open_observer
from worker.cli.numbers import MOST
from worker.cli.output import note, print_line

if TYPE_CHECKING:
    from worker.monitoring.account_series import AccountSeries
    from worker.monitoring.http_server import Page, Pages
    from worker.monitoring.overview import Observer, Overview


def exporter(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0: any free port.")
    ] = 9808,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    accounts: Annotated[
        str,
        typer.Option(
            metavar="GLOB",
            help="Accounts (PROVIDER/ACCOUNT) with series of their own, however many there are; "
            "* and ? match any.",
        ),
    ] = "",
    per_account_limit: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST,
            help="The number of accounts up to which each one has series of its own.",
        ),
    ] = 200,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics once, and exit.")] = False,
    markdown: Annotated[
        bool,
        typer.Option("--markdown", help="Print a Markdown table of all metrics, and exit."),
    ] = False,
) -> None:
    """Serve the metrics of the whole installation to Prometheus: jobs by state and lane, the age of
    the oldest, accounts, deliveries, alarms, streams, queues, workers, the ledger's server.

    If there are more accounts than --per-account-limit, those that --accounts does not match are
    added up by provider, as account="*". Of these, accounts that are paused, fail, are refused or
    sent stray answers keep gauges of their own, up to the same number, so that alerts name them.
    regworker_accounts_folded says how many accounts have no gauges of their own.

    One exporter is enough for an installation. A scrape takes a few milliseconds, however many jobs
    there are. Each worker serves counts and durations of its own calls (REGWORKER_METRICS_PORT);
    /targets lists the workers for Prometheus' HTTP service discovery. The exporter needs no sealing
    key and shows no secret.

    Examples:
        regworker exporter --address 0.0.0.0 --port 9808
        regworker exporter --once | grep regworker_jobs
        regworker exporter --accounts 'open2b/store-1*' --per-account-limit 500
    """
    from worker.monitoring import prometheus
    from worker.monitoring.account_series import AccountSeries

    if markdown:
        from worker.cli.metrics_table import markdown as rows

        print_line("\n".join(rows()))
        return
    series = AccountSeries(per_account_limit, accounts)

    with open_observer(probe=once) as observer:
        if once:
            found = _look(observer)
            sys.stdout.write(prometheus.of_all(found, series).decode())
            if found is None:
                raise typer.Exit(1)
            return
        _serve(observer, address, port, series)


def _serve(observer: "Observer", address: str, port: int, series: "AccountSeries") -> None:
    from worker.monitoring.http_server import MetricsServer

    ended = threading.Event()
    # The first process of a container receives only the signals that it handles.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    server = MetricsServer.start(address, port, _pages(observer, series), ports=1)
    note(f"metrics at http://{address}:{server.port}/metrics")
    ended.wait()
    server.stop()


def _pages(observer: "Observer", series: "AccountSeries") -> "Pages":
    from worker.monitoring import prometheus
    from worker.monitoring.http_server import JSON, Page

    # Connections must not be shared, and two Prometheus servers may scrape at once.
    lock = threading.Lock()

    def metrics() -> "Page":
        with lock:
            found = _look(observer)
        return Page(prometheus.of_all(found, series), prometheus.TYPE)

    def targets() -> "Page":
        with lock:
            alive = observer.workers()
        targets = [{"targets": [one.metrics], "labels": {}} for one in alive if one.metrics]
        return Page(json.dumps(targets).encode(), JSON)

    return {"/metrics": metrics, "/targets": targets}


def _look(observer: "Observer") -> "Overview | None":
    from redis.exceptions import RedisError

    try:
        return observer.look()
    except (LedgerUnavailable, RedisError) as error:
        note(str(error))
        return None
