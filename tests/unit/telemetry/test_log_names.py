"""docs/logs.md has a row for each line that our code logs, and a title for each alert."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import worker
from worker.telemetry.sentry import TITLES
from worker.telemetry.third_party_logs import SAID

ROOT = Path(worker.__file__).parent
PAGE = (ROOT.parent / "docs" / "logs.md").read_text("utf-8")

LEVELS = {"info", "warning", "error", "critical", "exception", "log"}

#: What a log call is made on, and functions that log.
LOGGERS = {"log", "logger"}
FUNCTIONS = {"alert", "warn_of_junk", "_warn"}

#: Logged by a thread that a signal's handler starts.
ELSEWHERE = {"worker stops"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Each log call above debug, with its module."""
    for file in sorted(ROOT.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if name in FUNCTIONS:
                    yield module, node
                case ast.Call(func=ast.Attribute(ast.Name(logger), level)) if (
                    logger in LOGGERS and level in LEVELS
                ):
                    yield module, node
                case ast.Call(func=ast.Attribute(ast.Call() as made, level)) if (
                    level in LEVELS and ast.unparse(made.func).endswith("get_logger")
                ):
                    yield module, node


def names() -> set[str]:
    """The name of each line; `…` for what a template fills in. Lines of `logging` that
    `third_party_logs.py` renames have their new name."""
    found = set()
    for module, call in calls():
        level = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        said = call.args[1 if level == "log" else 0]
        # One of two names, or an f-string around another line, which is not a name.
        for part in (said.body, said.orelse) if isinstance(said, ast.IfExp) else (said,):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                found.add(_renamed(module, part.value))
    return found


def _renamed(module: str, text: str) -> str:
    for one in SAID:
        if one.logger and module.startswith(one.logger) and text.startswith(one.begins):
            return one.event
    return re.sub(r"%[\w.]+", "…", text)


def documented() -> set[str]:
    """The names in the first column of the page's tables; those of templates are beginnings."""
    rows = re.findall(r"^\| (`[^|]+`) \| (?:info|warning|error|critical)", PAGE, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_each_line_that_the_worker_logs_is_documented() -> None:
    """And so is each name that another library's line gets. An operator searches for it."""
    logged = names() | ELSEWHERE | {one.event for one in SAID if one.event}
    beginnings = documented()
    assert {one for one in logged if not one.startswith(tuple(beginnings))} == set()
    assert {one for one in beginnings if not any(name.startswith(one) for name in logged)} == set()


def test_each_alert_has_a_title_and_is_documented() -> None:
    """Sentry has one issue for each kind; the page names them all."""
    kinds = {
        word.value.value
        for _, call in calls()
        for word in call.keywords
        if word.arg in {"alert", "kind"} and isinstance(word.value, ast.Constant)
    }
    assert kinds <= TITLES.keys()
    table = PAGE.partition("\n| `alert` | title")[2]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == TITLES.keys()
