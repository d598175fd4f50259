"""`regworker keys`."""

import re
import secrets
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from worker.cli.lazy import new_app, texts
from worker.cli.output import AsJson, note, print_json

app = new_app(no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make keys that seal secrets at rest."""


def new(
    kid: Annotated[
        str | None,
        typer.Option(help="The key's name. Default: today's date and four random signs."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print a new key, as an entry of REGWORKER_SEALING_KEYS.

    The first key of the setting seals, all of them open. To rotate: add the new entry at the end,
    at every worker and producer; then move it to the front; take the old one out once no job of
    its time is kept any more (a week, unless REGWORKER_RETENTION says otherwise).

    Examples:
        export REGWORKER_SEALING_KEYS="$(regworker keys new)"
        export REGWORKER_SEALING_KEYS="$REGWORKER_SEALING_KEYS,$(regworker keys new --kid 2027)"
    """
    from worker.sealing import Keyring

    if kid is None:
        kid = f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(2)}"
    elif not re.fullmatch(r"[\w.-]{1,64}", kid, re.ASCII):
        raise typer.BadParameter("takes letters, digits, `.`, `_` and `-`", param_hint="--kid")
    entry = Keyring.new(kid)
    if json:
        print_json({"kid": kid, "entry": entry})
        return
    sys.stdout.write(f"{entry}\n")
    if sys.stdout.isatty():
        note("Keep it secret, and keep it: without it no unfinished job can be opened.")


app.command("new", **texts(new))(new)
