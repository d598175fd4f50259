"""`regworker doctor`."""

from dataclasses import asdict

import typer
from rich.text import Text

from worker.cli.connection import open_operator
from worker.cli.output import AsJson, plain, print_json, print_line

_SIGNS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "unsafe": ("UNSAFE", "bold red")}


def doctor(json: AsJson = False) -> None:
    """Check the installation: what would lose jobs, what waits, and what to change.

    Exit code 1 if anything is unsafe; a worker refuses to start then.

    Examples:
        regworker doctor
        regworker doctor --json | jq 'select(.level != "ok")'
    """
    with open_operator() as operator:
        findings = operator.examine()
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
