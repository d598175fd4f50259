"""`regworker doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from worker.cli.connection import open_admin
from worker.cli.output import AsJson, plain, print_json, print_line

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

    Exit code 1 if anything is unsafe; a worker refuses to start then.

    Examples:
        regworker doctor
        regworker doctor --json | jq 'select(.level != "ok")'
    """
    with open_admin() as admin:
        findings = admin.examine(ways=not offline)
    for finding in findings:
        if json:
            print_json(asdict(finding))
            continue
        sign, style = _SIGNS[finding.level]
        line = Text.assemble((f"{sign:<7}", style), f"{finding.subject}: {plain(finding.found)}")
        if finding.advice:
            line.append(f"\n       → {finding.advice}")
        print_line(line)
    if any(finding.level == "unsafe" for finding in findings):
        raise typer.Exit(1)
