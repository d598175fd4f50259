"""`regworker keys`."""

import re
import secrets
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from worker.cli.acting import By, Why, actor
from worker.cli.connection import open_rotation
from worker.cli.lazy import new_app, texts
from worker.cli.output import (
    AsJson,
    new_table,
    note,
    out,
    plain,
    print_json,
    print_line,
    progress,
    saying_how_far,
    time_text,
)

if TYPE_CHECKING:
    from regworker.domain.actor import Actor
    from worker.operations.key_rotation import Rotation, RotationTally

app = new_app(no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Create the keys that encrypt stored data, list those in use, and rotate them."""


def new(
    kid: Annotated[
        str | None,
        typer.Option(help="The key's name. Default: today's date and four random characters."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print a new key, as an entry of REGWORKER_SEALING_KEYS.

    The first key of the setting encrypts; all keys decrypt. To rotate: add the new entry at the
    end, at every worker and producer; then move it to the front, everywhere; then run `regworker
    keys rotate`; and remove the old key when `regworker keys list` says so.

    Examples:
        export REGWORKER_SEALING_KEYS="$(regworker keys new)"
        export REGWORKER_SEALING_KEYS="$REGWORKER_SEALING_KEYS,$(regworker keys new --kid 2027)"
    """
    from regworker.sealing.keyring import Keyring

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
        note("Keep this key, and keep it secret: without it, unfinished jobs cannot be decrypted.")


def list_(json: AsJson = False) -> None:
    """List the keys that are set or in use: what is sealed with each, and when each can be removed.

    The command reads all records. A key can be removed from the setting when nothing is sealed with
    it. `repeats` are fingerprints of finished jobs: they recognise a job that its producer enqueues
    again, and are kept as long as the job's record. If the key is removed earlier, such a repeat is
    refused as a conflict; no customer is registered twice.

    Examples:
        regworker keys list
        regworker keys list --json | jq -r 'select(.removable) | .kid'
    """
    with open_rotation() as rotation:
        _show(rotation, _watched(rotation, writing=False), json=json)


def rotate(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print what would be changed.")
    ] = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Seal all stored data with the first key, while workers and producers keep running.

    This covers payloads of unfinished jobs, kept events, deliveries, and messages in quarantine.
    Run it when every worker and producer has the new key in front: one that has not still seals
    with the old key. It can be interrupted, and run again at any time.

    Examples:
        regworker keys rotate --dry-run
        regworker keys rotate && regworker keys list
    """
    with open_rotation() as rotation:
        tally = _watched(rotation, writing=not dry_run, person=actor(by, why))
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
            print_line(f"{others} values would be sealed with {plain(first)}")
        else:
            print_line(f"{tally.resealed} values sealed with {plain(first)}; {others} left")
        for kid, count in sorted(tally.shut.items()):
            note(f"{count} could not be opened with the key of kid {plain(kid)}: is it set here?")
        if shut:
            raise typer.Exit(1)


#: What `rotate` can seal with another key.
_MOVABLE = ("payloads", "events", "deliveries", "quarantine", "fingerprints")


def _others(tally: "RotationTally", first: str) -> int:
    kept = (tally.under(kid) for kid in tally.kids() if kid != first)
    return sum(found[kind] for found in kept for kind in _MOVABLE)


def _show(rotation: "Rotation", tally: "RotationTally", *, json: bool) -> None:
    from worker.operations.key_rotation import KINDS

    kids = [*rotation.kids, *sorted(tally.kids() - set(rotation.kids))]
    rows = [_row(kid, rotation.kids, tally) for kid in kids]
    if json:
        for row in rows:
            print_json(row)
        return
    table = new_table("key", "use", *KINDS, "can be removed")
    for row in rows:
        counts = (str(row[kind]) for kind in KINDS)
        cells = (row["kid"], row["use"], *counts, row["advice"])
        table.add_row(*(Text(plain(cell)) for cell in cells))
    out().print(table)


def _row(kid: str, known: tuple[str, ...], tally: "RotationTally") -> dict[str, Any]:
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
        return "is missing: what is sealed with it cannot be opened"
    if use == "seals":
        return "no: new data is sealed with it"
    if removable:
        return "now"
    if any(found[kind] for kind in _MOVABLE):
        return "after `regworker keys rotate`"
    if found["streams"]:
        return "when the stream entries sealed with it are trimmed"
    left = max(0.0, until - time.time())
    return f"{time_text(datetime.fromtimestamp(until, UTC))} (in {left / 86400:.1f} days)"


def _watched(
    rotation: "Rotation", *, writing: bool, person: "Actor | None" = None
) -> "RotationTally":
    """Read all records, with a progress bar if stderr is a terminal."""
    read = sealed = 0

    def how_far() -> str:
        done = f"{read} records were read" + (f", {sealed} values sealed anew" if writing else "")
        return f"{done}; run the command again, which reads all of them" if read else ""

    with saying_how_far(how_far), progress() as shown:
        task = shown.add_task("records", total=rotation.size())
        for tally in rotation.turns(writing=writing, actor=person):
            shown.update(task, completed=tally.done)
            read, sealed = tally.done, tally.resealed
    return tally


app.command("new", **texts(new))(new)
app.command("list", **texts(list_))(list_)
app.command("rotate", **texts(rotate))(rotate)
