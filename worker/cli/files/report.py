"""What became of a file's jobs: the report of `regworker submit`."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from regworker.domain.errors import Problem
from worker.cli.output import new_table, note, out, plain, print_json, print_line

#: The most problems in the table for people; a wrong file usually has one error everywhere.
_SHOWN = 50


@dataclass
class Report:
    """What became of a file's jobs."""

    accepted: int = 0
    repeated: int = 0
    refused: int = 0
    problems: list[tuple[int, str | None, Problem]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """The accepted jobs: all of them if the command waits for them, otherwise only the first."""
    outcomes: Counter[str] = field(default_factory=Counter)
    events: list[dict[str, Any]] = field(default_factory=list)

    def refuse(self, number: int, key: str | None, problems: tuple[Problem, ...]) -> None:
        """Count and keep a refused line."""
        self.refused += 1
        self.problems.extend((number, key, problem) for problem in problems)

    @property
    def job_id(self) -> str | None:
        """The id of the job, if there was only one."""
        return self.ids[0] if self.ids and self.accepted + self.repeated == 1 else None

    def print(self, *, json: bool, wait: bool) -> None:
        """Print it on stdout, for people or as one JSON object. `wait`: the command waited for the
        jobs."""
        self.problems.sort(key=lambda problem: problem[0])
        if json:
            print_json(_as_json(self, wait=wait))
            return
        if self.problems:
            out().print(_table(self.problems[:_SHOWN]))
        if (more := len(self.problems) - _SHOWN) > 0:
            note(f"and {more} more; --json lists all")
        counts = f"accepted {self.accepted}, repeated {self.repeated}, refused {self.refused}"
        print_line(f"{counts}: job {self.job_id}" if self.job_id else counts)


def _as_json(report: Report, *, wait: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "accepted": report.accepted,
        "repeated": report.repeated,
        "refused": report.refused,
        "job_id": report.job_id,
        "problems": [
            {
                "line": number,
                "idempotency_key": key,
                "field": problem.field,
                "code": problem.code,
                "message": problem.message,
            }
            for number, key, problem in report.problems
        ],
    }
    if wait:
        made |= {"outcomes": report.outcomes, "events": report.events}
    return made


def _table(problems: list[tuple[int, str | None, Problem]]) -> Table:
    table = new_table()
    table.add_column("line", justify="right")
    table.add_column("key", overflow="fold", max_width=40)
    table.add_column("problem", overflow="fold")
    for number, key, problem in problems:
        cells = (str(number), key or "", f"{problem} ({problem.code})")
        table.add_row(*(Text(plain(cell)) for cell in cells))
    return table
