"""Ways to break the guarantees, to prove that the chaos run detects it.

Each patches text of the Lua scripts in a worker process (or the call around them): if the text is
missing, the worker does not start.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import regworker.ledger.client as client
from regworker.ledger import calls, replication


def patch(script: str, old: str, new: str) -> None:
    """Replace a part of a script in this process, and of the same for several jobs; for `_lib`, in
    each script that uses it."""
    sources = dict(calls.scripts())
    names = [name for name in (script, script + calls.BATCH) if name in sources]
    if script == "_lib":
        shared = {name: sources[name].partition(f"-- {name}: ")[0] for name in sources}
        names = [name for name in sources if old in shared[name]]
    if not names:
        raise ValueError(f"no script uses of {script}.lua: {old}")
    for name in names:
        if sources[name].count(old) != 1:
            raise ValueError(f"{script}.lua has {sources[name].count(old)} times: {old}")
        sources[name] = sources[name].replace(old, new)
    calls.digest.cache_clear()
    calls.scripts = client.scripts = _Cached(sources)


class _Cached:
    """Replaces `calls.scripts`."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def __call__(self) -> dict[str, str]:
        return self._sources


def hurry() -> None:
    """No sabotage: speeds up what takes minutes in production and has no setting."""
    from worker.execution import delivery
    from worker.publishers import webhook

    # Make up for a lost wake-up within seconds.
    patch("_lib", "FIRST_PUSH, LAST_PUSH = 10000, 60000", "FIRST_PUSH, LAST_PUSH = 2000, 8000")
    delivery.SCHEDULE = (0.3, *(1.0,) * 60)
    delivery.LEASE = 4.0
    webhook.BUDGET = 2.0


def lease_to_queued() -> None:
    """When a lease expires during a call, the job returns to `queued`."""
    patch(
        "claim",
        "state = 'unknown', fence = next_fence(), unknowns",
        "state = 'queued', fence = next_fence(), unknowns",
    )


def no_fence() -> None:
    """A settle counts, whoever holds the lease now."""
    patch(
        "settle",
        "local holder = fence == job.fence and job.token ~= ''\n  and (",
        "local holder = (",
    )


def no_settle_delay() -> None:
    """Absence is believed at once."""
    patch(
        "settle",
        "if verdict == 'absent' and job.claimed_at < job.settle_until then",
        "if false then",
    )


def blind_resend() -> None:
    """An unknown request is sent again, as if it provably had no effect."""
    patch(
        "settle",
        "-- The same settle once more",
        "if verdict == 'unknown' and job.state == 'calling' then verdict = 'retry' end\n"
        "-- The same settle once more",
    )


def late_event() -> None:
    """The result event is written after the settle, not as part of it."""
    from worker.execution import attempt

    patch(
        "_lib",
        "redis.call('XADD', stream, '*', 'event', event)",
        "local _ = event",
    )
    settle_command = attempt.settle
    ledger_call = client.AsyncLedger.__call__

    def settle(claim: Any, verdict: Any, rules: Any, publication: Any) -> Any:
        command = settle_command(claim, verdict, rules, publication)
        late[id(command)] = publication
        return command

    async def carry(self: Any, command: Any, patience: float = 30.0, **how: Any) -> Any:
        settled = await ledger_call(self, command, patience, **how)
        publication = late.pop(id(command), None)
        if publication is not None and getattr(settled, "until", None) is not None:
            await asyncio.sleep(0.2)
            if "results" in publication.endpoints:
                await self.redis.xadd("{reg}:results", {"event": publication.event})
        return settled

    late: dict[int, Any] = {}
    attempt.settle = settle
    client.AsyncLedger.__call__ = carry  # type: ignore[method-assign]


def forgotten_alarm() -> None:
    """A job that will be retried later has no alarm."""
    patch(
        "settle",
        "alarm(id, math.min(till, math.max(job.deadline_at, at)))",
        "redis.call('ZREM', ALARMS, id)",
    )


def borrowed_answers() -> None:
    """Bytes that arrived on an idle connection count as the next call's answer, as in aiohttp."""
    from aiohttp.client_proto import ResponseHandler

    from worker.http.connections import Watched

    def rest(_: Watched, *, answered: bool) -> None:
        pass

    Watched.data_received = ResponseHandler.data_received  # type: ignore[method-assign]
    Watched._quiet = ResponseHandler.is_connected  # type: ignore[method-assign,assignment]
    Watched.rest = rest  # type: ignore[method-assign]


def no_wait() -> None:
    """Workers wait for no replica. (The guard is off too: its lookups would make up for it.)"""
    no_guard()
    replication.Followed.known = property(  # type: ignore[assignment,method-assign]
        lambda _: replication.Wanted()
    )


def sends_at_once() -> None:
    """A claim counts once the primary has it; the answer of WAIT is ignored."""
    no_guard()

    def ask(self: Any, wanted: Any, command: Any) -> Any:
        answer = self._connection.ask_packed(command)
        self._connection.ask(*wanted.command).add_done_callback(lambda heard: heard.exception())
        return answer

    replication.DurableLine.ask = ask  # type: ignore[method-assign]


def no_guard() -> None:
    """After a server that may have lost data, nothing is looked up."""
    patch("identity", "if doubtful then", "if false then")


def id_by_fence() -> None:
    """An event's id is derived from the claim, not from the job and its end."""
    from regworker.event_builder import EventBuilder

    publication = EventBuilder._publication

    def of_fence(self: Any, kind: Any, record: Any, *rest: Any) -> Any:
        return publication(self, kind, replace(record, reopened=record.fence), *rest)

    EventBuilder._publication = of_fence  # type: ignore[method-assign]


SABOTAGES: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        lease_to_queued,
        no_fence,
        no_settle_delay,
        blind_resend,
        late_event,
        forgotten_alarm,
        borrowed_answers,
        no_wait,
        sends_at_once,
        no_guard,
        id_by_fence,
    )
}


#: How the ledger is run (`failovers.py`) for sabotage that only failovers show.
LEVEL_OF = {
    "no_wait": "all behind",
    "sends_at_once": "all behind",
    "no_guard": "all behind, none awaited",
    "id_by_fence": "all behind, none awaited",
}


def apply(name: str) -> None:
    """Apply a sabotage; the empty name applies none."""
    if name:
        SABOTAGES[name]()
