"""`regworker audit`: the actions of operators."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from worker.cli import time_arguments
from worker.cli.connection import open_ledger
from worker.cli.output import AsJson, plain, print_json, print_line, time_text

if TYPE_CHECKING:
    from worker.operations.audit import AuditEntry

#: Seconds of one wait for the next entry.
WAIT = 3.0


def audit(
    since: Annotated[str | None, typer.Option(help=f"Since {time_arguments.HOW}.")] = None,
    who: Annotated[str, typer.Option(help="Actions of this person.")] = "",
    what: Annotated[
        str, typer.Option(help="Actions of this kind: review, review.rejected, account.pause.")
    ] = "",
    job: Annotated[str, typer.Option(metavar="ID", help="Actions on this job.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", help="Print new actions as they happen.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Show the actions of operators: who, in which role, from where, what, why, before and after.

    Every action has an entry: one script carries out the action and writes the entry. A refused
    action changed nothing and has no entry. Entries are kept for REGWORKER_AUDIT_RETENTION seconds,
    a year by default.

    Examples:
        regworker audit --since 1d
        regworker audit --who ann --what review --json
        regworker audit --job 6a1f0b0e-9b58-8f0c-8d4e-0f0e3f1f2a3b
    """
    from worker.operations.audit import AuditFilter, AuditLog

    wanted = AuditFilter(time_arguments.parse(since, "--since"), None, who, what, job)
    with open_ledger() as ledger:
        log = AuditLog(ledger)
        # Read before the list: entries written meanwhile are in both, and are shown once.
        last = log.last() if follow else ""
        seen = ""
        for entry in log.entries(wanted):
            _show(entry, json=json)
            seen = entry.id
        after = max(seen, last, key=_order) if follow else ""
        while follow:
            log.wait(after, WAIT)
            for entry in log.entries(AuditFilter(), after):
                after = entry.id
                if wanted.wants(entry):
                    _show(entry, json=json)


def _order(id_: str) -> tuple[int, ...]:
    return tuple(map(int, id_.split("-"))) if id_ else ()


def _show(entry: "AuditEntry", *, json: bool) -> None:
    from regworker.domain.event import moment

    at = moment(entry.at)
    if json:
        print_json(
            {
                "id": entry.id,
                "at": at.isoformat(),
                "who": entry.who,
                "role": entry.role,
                "from": entry.where,
                "what": entry.what,
                "on": entry.on,
                "why": entry.why,
                "before": entry.before,
                "after": entry.after,
            }
        )
        return
    change = f"{entry.before} -> {entry.after}"
    parts = [
        Text(time_text(at), style="dim"),
        Text(plain(f"{entry.who} ({entry.role}, {entry.where})"), style="bold"),
        Text(plain(entry.what)),
        Text(plain(entry.on)),
        Text(plain(change), style="dim"),
        Text(plain(entry.why)),
    ]
    print_line(Text("  ").join(part for part in parts if part.plain))
