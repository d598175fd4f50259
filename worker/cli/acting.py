"""Who acts on the command line, and why: options of every command that changes something."""

import getpass
import os
from typing import Annotated

import typer

from regworker.domain.actor import Actor
from worker.cli.output import plain

By = Annotated[
    str,
    typer.Option(
        "--by",
        "--who",
        metavar="NAME",
        help="Who acts, for the audit. Default: REGWORKER_OPERATOR, SUDO_USER, or your login name.",
    ),
]

Why = Annotated[
    str,
    typer.Option(
        "--why", metavar="REASON", help="Why, for the audit. Name no customer and no secret."
    ),
]

#: Login names that do not identify a person.
NOBODY = frozenset({"root", "nobody", "admin", "app", "worker", "regworker", "daemon", "unknown"})


def actor(by: str, why: str = "", *, person: bool = False) -> Actor:
    """Who acts. `person`: the act needs a person's name, not that of a shared account."""
    name = plain(by or os.environ.get("REGWORKER_OPERATOR", "") or _login())
    if person and name.strip().lower() in NOBODY | {""}:
        raise typer.BadParameter(
            f"{name.strip() or 'nobody'!r} is no person's name: say who decides, with --by NAME or "
            "in REGWORKER_OPERATOR",
            param_hint="--by",
        )
    return Actor(name.strip() or "unknown", why=plain(why))


def required(text: str, option: str) -> str:
    """A text that others will read; a usage error if it is blank, as an empty variable makes it."""
    if not text.strip():
        raise typer.BadParameter("is blank: write a reason", param_hint=option)
    return text


def _login() -> str:
    if sudo := os.environ.get("SUDO_USER", ""):
        return sudo
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without a name.
        return "unknown"
