"""`regworker doctor`."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from worker.cli.connection import open_admin
from worker.cli.output import AsJson, plain, print_json, print_line

if TYPE_CHECKING:
    from worker.monitoring.doctor import Finding

_SIGNS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "unsafe": ("UNSAFE", "bold red")}


def doctor(
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Check only the ledger and the broker; ask no provider."),
    ] = False,
    json: AsJson = False,
) -> None:
    """Check the installation: settings that could lose jobs, what waits, and what to change.

    Each account that is configured here is tested with a harmless request to its provider, as by
    `regworker providers check`: it looks up an e-mail address that no customer has.

    With REGWORKER_LEDGERS, every ledger is checked.

    Exit code 1 if anything is unsafe; a worker refuses to start then.

    Examples:
        regworker doctor
        regworker doctor --json | jq 'select(.level != "ok")'
    """
    findings = list(_findings(ways=not offline))
    for finding in findings:
        if json:
            print_json(asdict(finding))
            continue
        sign, style = _SIGNS[finding.level]
        line = Text.assemble((f"{sign:<7}", style), plain(f"{finding.subject}: {finding.found}"))
        if finding.advice:
            line.append(f"\n       → {plain(finding.advice)}")
        print_line(line)
    if any(finding.level == "unsafe" for finding in findings):
        raise typer.Exit(1)


def _findings(*, ways: bool) -> Iterator["Finding"]:
    from regworker.settings import Settings

    settings = Settings.load()
    for ledger in (settings.ledger, *settings.ledgers):
        with open_admin(ledger) as admin:
            for finding in admin.examine(ways=ways):
                subject = f"{ledger}: {finding.subject}" if settings.ledgers else finding.subject
                yield replace(finding, subject=subject)
