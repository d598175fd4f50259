"""Ways to break the promise, to prove that the chaos run would notice.

Each is a patch of the Lua scripts in a worker process (or of the one call around them), by text:
if the text is not there any more, the worker does not start.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import worker.ledger.client as client


def patch(script: str, old: str, new: str) -> None:
    """Replace a part of a script, in this process; of `_lib`, in each script that uses it."""
    sources = dict(client.scripts())
    names = [script]
    if script == "_lib":
        shared = {name: sources[name].partition(f"-- {name}: ")[0] for name in sources}
        names = [name for name in sources if old in shared[name]]
    if not names:
        raise ValueError(f"no script uses of {script}.lua: {old}")
    for name in names:
        if sources[name].count(old) != 1:
            raise ValueError(f"{script}.lua has {sources[name].count(old)} times: {old}")
        sources[name] = sources[name].replace(old, new)
    client.scripts.cache_clear()
    client.digest.cache_clear()
    client.scripts = _Cached(sources)


class _Cached:
    """Stands where `client.scripts` stood."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def __call__(self) -> dict[str, str]:
        return self._sources

    def cache_clear(self) -> None:
        pass


def hurry() -> None:
    """No sabotage: what takes minutes in production and is no setting."""
    from worker import delivery
    from worker.publishers import webhook

    # A lost wake-up is made up for within seconds.
    patch("_lib", "FIRST_PUSH, LAST_PUSH = 10000, 60000", "FIRST_PUSH, LAST_PUSH = 2000, 8000")
    delivery.SCHEDULE = (0.3, *(1.0,) * 60)
    delivery.LEASE = 4.0
    webhook.BUDGET = 2.0


def lease_to_queued() -> None:
    """A lease that runs out while calling goes back to `queued`."""
    patch(
        "claim",
        "state = 'unknown', fence = job.fence + 1, unknowns",
        "state = 'queued', fence = job.fence + 1, unknowns",
    )


def no_fence() -> None:
    """A settle counts whoever holds the lease by now."""
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
    """What is unknown is sent again, as if it were provably without effect."""
    patch(
        "settle",
        "-- The same settle once more",
        "if verdict == 'unknown' and job.state == 'calling' then verdict = 'retry' end\n"
        "-- The same settle once more",
    )


def late_event() -> None:
    """The result event is written after the settle instead of within it."""
    from worker import attempt

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

    async def carry(self: Any, command: Any, patience: float = 30.0) -> Any:
        settled = await ledger_call(self, command, patience)
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
    """A job that is to be tried again later has no alarm for it."""
    patch(
        "settle",
        "alarm(id, math.min(till, math.max(job.deadline_at, at)))",
        "redis.call('ZREM', ALARMS, id)",
    )


SABOTAGES: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        lease_to_queued,
        no_fence,
        no_settle_delay,
        blind_resend,
        late_event,
        forgotten_alarm,
    )
}


def apply(name: str) -> None:
    """Break it; nothing is broken by the empty name."""
    if name:
        SABOTAGES[name]()
