"""The commands, variables and files in `docs/operations.md` and `docs/alerts.md` exist."""

import re
import shlex
from contextlib import suppress
from typing import Any

import click
import pytest
import yaml
from typer.main import get_command

from tests.deployment import compose
from tests.integration.installation import ROOT
from worker.cli.app import COMMANDS, app

RUNBOOK = (ROOT / "docs" / "alerts.md").read_text("utf-8")
TEXT = (ROOT / "docs" / "operations.md").read_text("utf-8") + RUNBOOK
ALERTS = {
    rule["alert"]: rule["labels"]["severity"]
    for group in yaml.safe_load((ROOT / "monitoring" / "rules.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
    if "alert" in rule
}

#: The end of one of our commands: a quote, a comment, or a shell operator.
_COMMAND = re.compile(r"\bregworker ((?:[^`#|<>&\n;()]|\n(?=[^\n`]*`))+)")


def commands() -> list[str]:
    """The arguments of each `regworker` in the text."""
    found = (" ".join(match[1].split()) for match in _COMMAND.finditer(TEXT))
    return sorted({one for one in found if re.match(r"[a-z]+", one)})


def test_every_alert_has_its_section_and_no_other_has() -> None:
    """Each alert has one section with its severity, and its `runbook` leads there."""
    found = re.findall(r"^### (Regworker\w+)\nSeverity: (\w+)\.$", RUNBOOK, re.M)
    assert sorted(found) == sorted(ALERTS.items())
    rules = (ROOT / "monitoring" / "rules.yml").read_text("utf-8")
    linked = re.findall(r"docs/alerts\.md#(\w+)", rules)
    assert sorted(linked) == sorted(name.lower() for name in ALERTS)


@pytest.mark.parametrize("line", commands())
def test_every_command_in_it_can_be_run(line: str) -> None:
    """The command line takes it as it is written: each command, option and argument exists, and
    none is missing."""
    words = shlex.split(line)
    found: Any = get_command(app)
    assert words[0] in COMMANDS
    context = click.Context(found, info_name="regworker")
    while hasattr(found, "resolve_command") and words and not words[0].startswith("-"):
        _, found, words = found.resolve_command(context, words)
    with suppress(click.exceptions.Exit):
        found.make_context(line, words, parent=context)


def test_every_variable_and_service_in_it_exists() -> None:
    """Each variable of Compose is in `.env.example` or in the compose file; each service is in
    that file."""
    services = yaml.safe_load(compose.FILE.read_text("utf-8"))["services"]
    named = re.findall(
        r"docker compose (?:exec|ps|logs|restart|build)((?: -\S+| \d+)*) (\w+)", TEXT
    )
    assert {service for _, service in named} <= services.keys()
    example = compose.EXAMPLE.read_text("utf-8") + compose.FILE.read_text("utf-8")
    for variable in re.findall(r"`((?:VALKEY|WORKER|OPERATOR|COMPOSE|RABBITMQ)[A-Z_]*)`", TEXT):
        assert variable in example, variable


def test_every_picture_in_it_is_there() -> None:
    """`tests/unit/test_documents.py` follows the other links."""
    for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
