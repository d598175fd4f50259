"""`regworker deliveries`: what is due to endpoints, and what they did not take."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from worker.cli import moments
from worker.cli.connection import open_ledger
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
    from worker.ledger.endpoints import EndpointState, Waiting
    from worker.outbox import Filter, Outbox

app = new_app(no_args_is_help=True)

#: Deliveries shown to a person; more are for a program to read.
SHOWN = 200


class State(StrEnum):
    """What `--state` takes."""

    PENDING = "pending"
    DEAD = "dead"


Endpoint = Annotated[str | None, typer.Option(metavar="NAME", help="Only those to this endpoint.")]
Since = Annotated[
    str | None, typer.Option(metavar="TIME", help=f"Only those made since then: {moments.HOW}.")
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only those made until then, given likewise.")
]


@app.callback()
def deliveries() -> None:
    """See and replay events that endpoints did not take, and enable endpoints again."""


def list_(
    endpoint: Endpoint = None,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    since: Since = None,
    until: Until = None,
    count: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after so many.")
    ] = None,
    json: AsJson = False,
) -> None:
    """List deliveries that are pending, and those that are dead: given up, and kept to be replayed.

    A pending one is tried again by itself, for 75 hours in all. Each line tells its id, how often
    it was tried, its age, when it is tried next, and what the last try came to.

    Examples:
        regworker deliveries list
        regworker deliveries list --state dead --endpoint crm --since 2d
        regworker deliveries list --state dead --json | jq -r .why | sort | uniq -c
    """
    wanted = _filter(endpoint, state, since, until)
    most = count or (None if json else SHOWN)
    with _open() as outbox:
        found = outbox.deliveries(wanted)
        shown = islice(found, most)
        if json:
            for one in shown:
                print_json(_json(one))
            return
        rows = list(shown)
        more = next(found, None) is not None
    if rows:
        _print(rows)
    else:
        print_line("no delivery is pending or dead" if wanted.state is None else "none")
    if more:
        note(f"these are the first {len(rows)}; --count shows more, --json all")


def endpoints(json: AsJson = False) -> None:
    """List the endpoints that workers deliver to: what waits for each, and whether it takes it.

    Examples:
        regworker deliveries endpoints
        regworker deliveries endpoints --json | jq 'select(.disabled)'
    """
    with _open() as outbox:
        found = outbox.endpoints()
    if json:
        for one in found:
            print_json(_endpoint_json(one))
        return
    if not found:
        print_line("no worker has announced an endpoint that it delivers to")
        return
    table = _table("endpoint", "pending", "being sent", "in line", "state", "why")
    for one in found:
        numbers = (str(one.pending), f"{one.trying} of {one.max_in_flight}", str(one.in_line))
        table.add_row(Text(plain(one.name)), *numbers, _standing(one), Text(plain(_why(one))))
    out().print(table)


def replay(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="From the list.")] = None,
    endpoint: Endpoint = None,
    since: Since = None,
    until: Until = None,
    json: AsJson = False,
) -> None:
    """Send dead deliveries again, under the same ids, from the start of their schedule.

    Say which: by their ids, by endpoint, by time, or both. Those of an endpoint that is disabled
    stay dead: enable it first. Exit code 1 if any that was asked for could not be replayed.

    Examples:
        regworker deliveries replay --endpoint crm
        regworker deliveries replay --since 2026-11-22T02:00Z --until 2026-11-22T04:30Z
        regworker deliveries replay d:01b0e5f2.1.registered:crm
    """
    filtered = (endpoint, since, until) != (None, None, None)
    if bool(ids) == filtered:
        raise typer.BadParameter("say which: either ids, or --endpoint, --since, --until")
    with _open() as outbox:
        if endpoint is not None:
            outbox.endpoint(endpoint)
        chosen = ids or [
            one.id for one in outbox.deliveries(_filter(endpoint, State.DEAD, since, until))
        ]
        replayed, refused = _replay(outbox, chosen)
    # What was chosen by a filter, and has gone since, was replayed by somebody else.
    failed = len(refused["disabled"]) + (len(refused["gone"]) if ids else 0)
    if json:
        print_json({"replayed": replayed, **{why: len(which) for why, which in refused.items()}})
    else:
        print_line(f"replayed {replayed}")
        if ids:
            for id_ in refused["gone"]:
                note(f"{id_} is not dead: it arrived, is pending, or was not kept any more")
        if refused["disabled"]:
            note(
                f"{len(refused['disabled'])} stay dead: their endpoint is disabled "
                "(regworker deliveries enable)"
            )
    raise typer.Exit(1 if failed else 0)


def enable(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The endpoint.")],
    with_replay: Annotated[
        bool,
        typer.Option("--replay/--no-replay", help="Replay what went dead since it first failed."),
    ] = True,
    json: AsJson = False,
) -> None:
    """Send to an endpoint again that was disabled, and replay what it missed.

    An endpoint is disabled when it answers 410, or does nothing but fail for days; then an event
    of type `endpoint.disabled` is on the results stream. Try it first, with `regworker webhook
    test`, and enable it when it is well: it would be disabled again.

    Examples:
        regworker deliveries enable crm
        regworker deliveries enable crm --no-replay
    """
    replayed = 0
    with _open() as outbox:
        before = outbox.enable(name)
        if with_replay and before.disables:
            # Also where it is enabled already: whoever did that may have been interrupted.
            replayed, _ = _replay(outbox, list(outbox.died(name, before.since)))
    if json:
        print_json({"endpoint": name, "was_disabled": before.disabled, "replayed": replayed})
        return
    print_line(f"enabled {name}" if before.disabled else f"{name} is not disabled")
    if replayed or before.disabled:
        print_line(f"replayed {replayed}" if with_replay else "nothing replayed")


@contextmanager
def _open() -> Iterator["Outbox"]:
    from worker.outbox import Outbox

    with open_ledger() as ledger:
        yield Outbox(ledger)


def _filter(
    endpoint: str | None, state: State | None, since: str | None, until: str | None
) -> "Filter":
    from worker.outbox import Filter

    return Filter(
        endpoint,
        state.value if state else None,
        moments.parse(since, "--since"),
        moments.parse(until, "--until"),
    )


def _replay(outbox: "Outbox", ids: list[str]) -> tuple[int, dict[str, list[str]]]:
    """Replay, with a bar on stderr where that is a terminal; how many, and who was not and why."""
    replayed, refused = 0, {"gone": list[str](), "disabled": list[str]()}
    for id_, said in _watched(outbox.replay(ids), len(ids)):
        if said == "replayed":
            replayed += 1
        else:
            refused[said].append(id_)
    return replayed, refused


def _watched(done: Iterable[tuple[str, str]], total: int) -> Iterator[tuple[str, str]]:
    with progress() as shown:
        yield from shown.track(done, total=total)


def _print(found: list["Waiting"]) -> None:
    from worker.event import moment

    now = time.time() * 1000
    table = _table("delivery", "state", "tries", "age", "next try", "last")
    for one in found:
        left = (one.due_at - now) / 1000
        table.add_row(
            Text(plain(one.id)),
            Text(one.state, style="red" if one.state == "dead" else "cyan"),
            str(one.tries),
            moments.length((now - one.created_at) / 1000),
            time_text(moment(one.due_at)) if one.state == "pending" and left > 0 else "",
            Text(plain(one.why)),
        )
    out().print(table)


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


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
    from worker.event import moment

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
    }


def _iso(ms: int) -> str | None:
    from worker.event import moment

    return moment(ms).isoformat() if ms else None


app.command("list", **texts(list_))(list_)
app.command("endpoints", **texts(endpoints))(endpoints)
app.command("replay", **texts(replay))(replay)
app.command("enable", **texts(enable))(enable)
