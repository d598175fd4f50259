"""`regworker health`: whether the worker on this machine works, or only exists."""

import os
import socket
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regworker.domain.errors import LedgerUnavailable
from worker.cli import time_arguments
from worker.cli.connection import open_ledger
from worker.cli.output import AsJson, print_json, print_line

if TYPE_CHECKING:
    from regworker.ledger.snapshot import Beat, Snapshot

#: Seconds to wait for the ledger. A probe has a time limit of its own.
PATIENCE = 3.0


def health(
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Check this worker: its name in `regworker top`, or HOST:PID."
        ),
    ] = None,
    any_: Annotated[
        bool, typer.Option("--any", help="Succeed if any worker of the installation works.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Check whether the workers of this machine or container take jobs and ring alarms.

    A process that hangs can look alive. So each part of a worker records when it last worked:
    Celery's loop that takes messages from the broker, the alarm clock, the renewal of leases, each
    task. Exit code 1 if a part has recorded nothing for REGWORKER_HEALTH_PATIENCE seconds, if there
    is no worker, or if the ledger does not answer. HTTP has the same check: /health on
    REGWORKER_METRICS_PORT.

    Examples:
        regworker health
        regworker health --any --json | jq .workers
    """
    from regworker.ledger.snapshot import snapshot

    if worker is not None and any_:
        raise typer.BadParameter("say --worker or --any, not both")
    try:
        with open_ledger(probe=True) as ledger:
            found = ledger(snapshot(), PATIENCE)
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


def _chosen(found: "Snapshot", worker: str | None, any_: bool) -> list["Beat"]:
    if worker is not None:
        return [
            one for one in found.workers if one.name == worker or one.name.startswith(f"{worker}:")
        ]
    if any_:
        return list(found.workers)
    host = socket.gethostname()
    # A killed worker is still listed; check the worker that replaced it.
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
    from worker.monitoring.liveness import SILENT

    condition = one.condition(at)
    silent = one.silent(at)
    if condition == "silent":
        why = "sends no heartbeat: it is stopped or dead, or cannot write to the ledger"
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
        print_line(f"{one['worker']} {one['why']} (for {time_arguments.length(longest)})")
