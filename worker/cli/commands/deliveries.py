"""`regworker deliveries`: pending and dead deliveries, and their endpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from worker.cli import time_arguments
from worker.cli.acting import By, Why, actor
from worker.cli.bulk import All, BulkCommand, DryRun, Ids, Yes, act_on, filtered, open_bulk
from worker.cli.connection import open_ledger
from worker.cli.lazy import new_app, texts
from worker.cli.numbers import MOST
from worker.cli.output import (
    AsJson,
    connections,
    new_table,
    note,
    note_unreadable,
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
    from regworker.ledger.endpoints import EndpointState, Waiting
    from worker.operations.deliveries import DeliveryAdmin, Filter

app = new_app(no_args_is_help=True)

#: Deliveries shown without --json or --count.
SHOWN = 200


class DeliveryState(StrEnum):
    """The values of `--state`."""

    PENDING = "pending"
    DEAD = "dead"


Endpoint = Annotated[
    str | None, typer.Option(metavar="NAME", help="Only deliveries to this endpoint.")
]
Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help=f"Only deliveries created since this time: {time_arguments.HOW}."
    ),
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Only deliveries created until this time, in the same format."
    ),
]


@app.callback()
def deliveries() -> None:
    """List and replay events that could not be delivered, and enable endpoints again."""


def list_(
    endpoint: Endpoint = None,
    state: Annotated[
        DeliveryState | None, typer.Option(help="Only deliveries in this state.")
    ] = None,
    since: Since = None,
    until: Until = None,
    count: Annotated[
        int | None, typer.Option(min=1, max=MOST, metavar="N", help="Stop after this many.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List deliveries that are pending, and those that are dead: retries have ended, and they are
    kept for replay.

    Workers retry a pending delivery for 75 hours in all. Each line shows the id, the number of
    attempts, the age, the time of the next attempt, and the result of the last one.

    Examples:
        regworker deliveries list
        regworker deliveries list --state dead --endpoint crm --since 2d
        regworker deliveries list --state dead --json | jq -r .why | sort | uniq -c
    """
    wanted = _filter(endpoint, state, since, until)
    most = count or (None if json else SHOWN)
    with _open() as admin:
        found = admin.deliveries(wanted)
        shown = islice(found, most)
        if json:
            for one in shown:
                print_json(_json(one))
            note_unreadable(admin.unreadable)
            return
        rows = list(shown)
        more = next(found, None) is not None
        note_unreadable(admin.unreadable)
    if rows:
        _print(rows)
    else:
        print_line("no delivery is pending or dead" if wanted.state is None else "none")
    if more:
        note(f"these are the first {len(rows)}; --count shows more, --json all")


def endpoints(json: AsJson = False) -> None:
    """List the endpoints that workers deliver to: how many deliveries wait, and whether it accepts
    them.

    Examples:
        regworker deliveries endpoints
        regworker deliveries endpoints --json | jq 'select(.disabled)'
    """
    with _open() as admin:
        found = admin.endpoints()
        note_unreadable(admin.unreadable)
    if json:
        for one in found:
            print_json(_endpoint_json(one))
        return
    if not found:
        print_line("no worker has announced an endpoint")
        return
    table = new_table("endpoint", "pending", "being sent", "in line", "state", "connections", "why")
    for one in found:
        numbers = (str(one.pending), f"{one.trying} of {one.max_in_flight}", str(one.in_line))
        table.add_row(
            Text(plain(one.name)),
            *numbers,
            _standing(one),
            connections(one.stray_at),
            Text(plain(_why(one))),
        )
    out().print(table)


def replay(
    ids: Ids = None,
    endpoint: Endpoint = None,
    since: Since = None,
    until: Until = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Send dead deliveries again, with the same ids, from the start of the retry schedule.

    Choose deliveries by ids, by endpoint, by time, or by the last two. With options, the command
    shows all matching deliveries and asks for confirmation (--yes in scripts), then sends exactly
    these. Deliveries to a disabled endpoint stay dead: enable it first. Exit code 1 if any was not
    replayed; `regworker plans resume` continues an interrupted run.

    Examples:
        regworker deliveries replay --endpoint crm --dry-run
        regworker deliveries replay --since 2026-11-22T02:00Z --until 2026-11-22T04:30Z --yes
        regworker deliveries replay d:01b0e5f2.registered:crm
    """
    by_filter = filtered(ids, (endpoint, since, until, all_), _OPTIONS)
    words = ("replayed", "gone", "disabled")
    command = BulkCommand("delivery.replay", "send {} deliveries again", words, yes, dry_run, json)
    wanted = _filter(endpoint, DeliveryState.DEAD, since, until)
    _send(command, ids, wanted, actor(by, why), by_filter=by_filter)


def retry(
    ids: Ids = None,
    endpoint: Endpoint = None,
    since: Since = None,
    until: Until = None,
    all_: All = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Try pending deliveries now, without waiting for the next retry.

    Choose them as for `replay`. Use it when the receiver works again and the next retry is hours
    away. Exit code 1 if any is not pending any more.

    Examples:
        regworker deliveries retry --endpoint crm --yes --why "the receiver is back"
        regworker deliveries retry d:01b0e5f2.registered:crm
    """
    by_filter = filtered(ids, (endpoint, since, until, all_), _OPTIONS)
    words = ("due", "trying", "gone")
    command = BulkCommand("delivery.retry", "try {} deliveries now", words, yes, dry_run, json)
    wanted = _filter(endpoint, DeliveryState.PENDING, since, until)
    _send(command, ids, wanted, actor(by, why), by_filter=by_filter)


_OPTIONS = "--endpoint, --since, --until, --all"


def _send(
    command: BulkCommand,
    ids: list[str] | None,
    wanted: "Filter",
    person: "Actor",
    *,
    by_filter: bool,
) -> None:
    with open_bulk() as bulk:
        if wanted.endpoint is not None:
            bulk.deliveries.endpoint(wanted.endpoint)
        chosen = bulk.dead_or_pending(wanted) if by_filter else bulk.named(ids or ())
        act_on(bulk, command, chosen, person, named=not by_filter)


def enable(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The endpoint.")],
    with_replay: Annotated[
        bool,
        typer.Option(
            "--replay/--no-replay",
            help="Replay the deliveries that died since the endpoint first failed.",
        ),
    ] = True,
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Enable an endpoint that was disabled, and replay what it missed.

    An endpoint is disabled when it answers 410, or when all deliveries fail for days; then an event
    of type `endpoint.disabled` is on the results stream. Run `regworker webhook test` first, and
    enable the endpoint only if that succeeds: otherwise it is disabled again.

    Examples:
        regworker deliveries enable crm
        regworker deliveries enable crm --no-replay
    """
    replayed, person = 0, actor(by, why)
    with _open() as admin:
        before = admin.enable(name, person)
        if with_replay and before.disables:
            # Also if it is enabled already: the command that enabled it may have been interrupted.
            died = list(admin.died(name, before.since))

            def how_far() -> str:
                again = "run the command again, which replays the rest"
                return f"{name} is enabled, {replayed} of {len(died)} are replayed; {again}"

            with saying_how_far(how_far), progress() as bar:
                for _, word in bar.track(admin.replay(died, person), total=len(died)):
                    replayed += word == "replayed"
    if json:
        print_json({"endpoint": name, "was_disabled": before.disabled, "replayed": replayed})
        return
    print_line(f"enabled {name}" if before.disabled else f"{name} is not disabled")
    if replayed or before.disabled:
        print_line(f"replayed {replayed}" if with_replay else "nothing replayed")


def trust(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The endpoint.")],
    by: By = "",
    why: Why = "",
    json: AsJson = False,
) -> None:
    """Reuse a webhook's connections again, after a stray answer.

    A stray answer belongs to no request: the receiver, or a proxy in front of it, sent an answer
    twice or without a request. From then on each request uses its own connection, which costs some
    time. Run this after the cause is fixed: on a reused connection, a late answer can be mistaken
    for the answer to the next event.

    Examples:
        regworker deliveries trust crm
    """
    with _open() as admin:
        was = admin.trust(name, actor(by, why))
    if json:
        print_json({"endpoint": name, "was_distrusted": was})
        return
    print_line(f"{name} is trusted again" if was else f"{name} has sent no stray answer")


@contextmanager
def _open() -> Iterator["DeliveryAdmin"]:
    from worker.operations.deliveries import DeliveryAdmin

    with open_ledger() as ledger:
        yield DeliveryAdmin(ledger)


def _filter(
    endpoint: str | None, state: DeliveryState | None, since: str | None, until: str | None
) -> "Filter":
    from worker.operations.deliveries import Filter

    return Filter(
        endpoint,
        state.value if state else None,
        time_arguments.parse(since, "--since"),
        time_arguments.parse(until, "--until"),
    )


def _print(found: list["Waiting"]) -> None:
    from regworker.domain.event import moment

    now = time.time() * 1000
    table = new_table("delivery", "state", "tries", "age", "next try", "last")
    for one in found:
        left = (one.due_at - now) / 1000
        table.add_row(
            Text(plain(one.id)),
            Text(one.state, style="red" if one.state == "dead" else "cyan"),
            str(one.tries),
            time_arguments.length((now - one.created_at) / 1000),
            time_text(moment(one.due_at)) if one.state == "pending" and left > 0 else "",
            Text(plain(one.why)),
        )
    out().print(table)


def _standing(one: "EndpointState") -> Text:
    if one.disabled:
        return Text("disabled", style="red")
    if one.failing_since:
        return Text("failing", style="yellow")
    return Text("ok", style="green")


def _why(one: "EndpointState") -> str:
    if one.disabled:
        return f"{one.why} (since {_time(one.disabled_at)})"
    if one.failing_since:
        return f"{one.failures} failures since {_time(one.failing_since)}"
    return ""


def _time(ms: int) -> str:
    from regworker.domain.event import moment

    return time_text(moment(ms))


def _json(one: "Waiting") -> dict[str, Any]:
    return {
        "id": one.id,
        "job_id": one.job_id,
        "event_id": one.event_id,
        "endpoint": one.endpoint,
        "state": one.state,
        "tries": one.tries,
        "created_at": _iso(one.created_at),
        "next_try_at": _iso(one.due_at) if one.state == "pending" else None,
        "dead_at": _iso(one.dead_at),
        "why": one.why,
    }


def _endpoint_json(one: "EndpointState") -> dict[str, Any]:
    return {
        "endpoint": one.name,
        "pending": one.pending,
        "in_flight": one.trying,
        "in_line": one.in_line,
        "max_in_flight": one.max_in_flight,
        "failing_since": _iso(one.failing_since),
        "failures": one.failures,
        "disabled": one.disabled,
        "disabled_at": _iso(one.disabled_at) if one.disabled else None,
        "why": one.why if one.disabled else "",
        "stray_at": _iso(one.stray_at),
    }


def _iso(ms: int) -> str | None:
    from regworker.domain.event import moment

    return moment(ms).isoformat() if ms else None


app.command("list", **texts(list_))(list_)
app.command("endpoints", **texts(endpoints))(endpoints)
app.command("replay", **texts(replay))(replay)
app.command("retry", **texts(retry))(retry)
app.command("enable", **texts(enable))(enable)
app.command("trust", **texts(trust))(trust)
