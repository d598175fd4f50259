"""`regworker keys`."""

import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.connection import open_rotation
from worker.cli.lazy import new_app, texts
from worker.cli.output import (
    AsJson,
    note,
    out,
    plain,
    print_json,
    print_line,
    progress,
    time_text,
)

if TYPE_CHECKING:
    from worker.rotation import Rotation, Tally

app = new_app(no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make keys that seal secrets at rest, see which are in use, and change over to a new one."""


def new(
    kid: Annotated[
        str | None,
        typer.Option(help="The key's name. Default: today's date and four random signs."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print a new key, as an entry of REGWORKER_SEALING_KEYS.

    The first key of the setting seals, all of them open. To change over: add the new entry at the
    end, at every worker and producer; then move it to the front, everywhere; then run
    `regworker keys rotate`; and take the old one out when `regworker keys list` says so.

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


def list_(json: AsJson = False) -> None:
    """List the keys that are set or in use, by name: what is sealed under each, and since when not.

    All records are looked at. A key may be taken out of the setting when nothing is under it any
    more. By `repeats` a finished job is known when its producer brings it again; what that takes is
    kept as long as the job's record. Taken out earlier, such a repeat is refused as a conflict: no
    customer is registered twice.

    Examples:
        regworker keys list
        regworker keys list --json | jq -r 'select(.removable) | .kid'
    """
    with open_rotation() as rotation:
        _show(rotation, _watched(rotation, writing=False), json=json)


def rotate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be changed.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Put all that is kept sealed under the first key, while workers and producers go on.

    Payloads of jobs that are not over, kept events, deliveries, and messages in quarantine. Do this
    once every worker and producer has the new key in front: one that hasn't goes on sealing under
    the old one. It may be run again at any time, and cut off.

    Examples:
        regworker keys rotate --dry-run
        regworker keys rotate && regworker keys list
    """
    with open_rotation() as rotation:
        tally = _watched(rotation, writing=not dry_run)
        first, shut = rotation.kids[0], sum(tally.shut.values())
        others = _others(tally, first)
        if json:
            print_json(
                {
                    "first": first,
                    "resealed": tally.resealed,
                    "left": others,
                    "unopened": dict(tally.shut),
                    "dry_run": dry_run,
                }
            )
        elif dry_run:
            print_line(f"{others} values would be put under {plain(first)}")
        else:
            print_line(f"{tally.resealed} values put under {plain(first)}; {others} left")
        for kid, count in sorted(tally.shut.items()):
            note(f"{count} could not be opened with the key of kid {plain(kid)}: is it set here?")
        if shut:
            raise typer.Exit(1)


#: What can be put under another key by looking at it once more.
_MOVABLE = ("payloads", "events", "deliveries", "quarantine", "fingerprints")


def _others(tally: "Tally", first: str) -> int:
    kept = (tally.under(kid) for kid in tally.kids() if kid != first)
    return sum(found[kind] for found in kept for kind in _MOVABLE)


def _show(rotation: "Rotation", tally: "Tally", *, json: bool) -> None:
    from worker.rotation import KINDS

    kids = [*rotation.kids, *sorted(tally.kids() - set(rotation.kids))]
    rows = [_row(kid, rotation.kids, tally) for kid in kids]
    if json:
        for row in rows:
            print_json(row)
        return
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in ("key", "use", *KINDS, "to be taken out"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        counts = (str(row[kind]) for kind in KINDS)
        cells = (row["kid"], row["use"], *counts, row["advice"])
        table.add_row(*(Text(plain(cell)) for cell in cells))
    out().print(table)


def _row(kid: str, known: tuple[str, ...], tally: "Tally") -> dict[str, Any]:
    found = tally.under(kid)
    until = tally.until.get(kid, 0) / 1000
    use = "not set" if kid not in known else "seals" if kid == known[0] else "opens"
    removable = use == "opens" and not any(found.values())
    return {
        "kid": kid,
        "use": use,
        **found,
        "repeats_until": datetime.fromtimestamp(until, UTC).isoformat() if until else None,
        "removable": removable,
        "advice": _advice(use, found, until, removable=removable),
    }


def _advice(use: str, found: dict[str, int], until: float, *, removable: bool) -> str:
    if use == "not set":
        return "is missing: what is under it can't be opened"
    if use == "seals":
        return "no: it seals"
    if removable:
        return "now"
    if any(found[kind] for kind in _MOVABLE):
        return "after `regworker keys rotate`"
    if found["streams"]:
        return "when the streams' entries under it are trimmed"
    left = max(0.0, until - time.time())
    return f"{time_text(datetime.fromtimestamp(until, UTC))} (in {left / 86400:.1f} days)"


def _watched(rotation: "Rotation", *, writing: bool) -> "Tally":
    """Look at everything, with a bar on stderr where that is a terminal."""
    with progress() as shown:
        task = shown.add_task("records", total=rotation.size())
        for tally in rotation.turns(writing=writing):
            shown.update(task, completed=tally.done)
    return tally


app.command("new", **texts(new))(new)
app.command("list", **texts(list_))(list_)
app.command("rotate", **texts(rotate))(rotate)
