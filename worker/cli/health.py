"""`regworker health`: whether the worker here works, or is merely there."""

import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli import moments
from worker.cli.connection import open_ledger
from worker.cli.output import AsJson, print_json, print_line
from worker.errors import LedgerUnavailable

if TYPE_CHECKING:
    from worker.ledger.gauges import Beat, Gauges

#: Seconds the ledger is waited for. A probe has to answer in time, too.
PATIENCE = 3.0


def health(
    worker: Annotated[
        str | None,
        typer.Option(metavar="HOST:PID", help="This worker, and not those of this machine."),
    ] = None,
    any_: Annotated[
        bool, typer.Option("--any", help="One worker that is well is enough, wherever it runs.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Tell whether the workers of this machine, or container, take jobs and ring alarms.

    A process that hangs may look as alive as one that works. So each part of a worker leaves marks
    as it goes: Celery's loop while it takes messages from the broker, the alarm clock, the renewal
    of leases, each task. Exit code 1 if one of them has been silent for REGWORKER_HEALTH_PATIENCE
    seconds, if there is no worker, or if the ledger can't be asked. The same is told by HTTP, at
    /health of REGWORKER_METRICS_PORT.

    Examples:
        regworker health
        regworker health --any --json | jq .workers
    """
    from worker.ledger.gauges import gauges

    if worker is not None and any_:
        raise typer.BadParameter("say --worker or --any, not both")
    try:
        with open_ledger() as ledger:
            found = ledger(gauges(), PATIENCE)
    except LedgerUnavailable as error:
        _tell(json, [], str(error))
        raise typer.Exit(1) from None
    chosen = _chosen(found, worker, any_)
    well = [one.condition(found.at) == "well" for one in chosen]
    healthy = any(well) if any_ else bool(well) and all(well)
    where = f"named {worker}" if worker else "anywhere" if any_ else f"on {socket.gethostname()}"
    _tell(json, [_shown(one, found.at) for one in chosen], "" if chosen else f"no worker {where}",
          healthy=healthy)  # fmt: skip
    if not healthy:
        raise typer.Exit(1)


def _chosen(found: "Gauges", worker: str | None, any_: bool) -> list["Beat"]:
    if worker is not None:
        return [one for one in found.workers if one.name == worker]
    if any_:
        return list(found.workers)
    host = socket.gethostname()
    # What was killed is still remembered; whoever took its place is asked.
    return [one for one in found.workers if one.host == host and _is_there(one.pid)]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _shown(one: "Beat", at: int) -> dict[str, Any]:
    from worker.vitals import SILENT

    condition = one.condition(at)
    silent = one.silent(at)
    if condition == "silent":
        why = "gives no sign of life: it is stopped or dead, or can't reach the ledger"
    else:
        why = "; ".join(SILENT.get(part, part) for part in silent)
    return {
        "worker": one.name,
        "condition": condition,
        "why": why,
        "seen_seconds_ago": round(one.since(at), 3),
        "silent_seconds": {part: round(age, 3) for part, age in silent.items()},
        "running": one.in_flight,
    }


def _tell(json: bool, workers: list[dict[str, Any]], why: str, *, healthy: bool = False) -> None:
    if json:
        print_json({"healthy": healthy, "why": why, "workers": workers})
        return
    if why:
        print_line(why)
    for one in workers:
        if one["condition"] == "well":
            print_line(f"{one['worker']} is well")
            continue
        longest = max(one["silent_seconds"].values(), default=one["seen_seconds_ago"])
        print_line(f"{one['worker']} {one['why']} (for {moments.length(longest)})")
