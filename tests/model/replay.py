"""Run a trace of the model on the real Lua scripts, and compare after every step.

The scripts use the test's clock; the n-th step happens n seconds after the start. The whole
trace is known, so each lease, delay and deadline gets exactly the length that ends it at its
step of the trace: the steps of the model can run in any order, without waiting."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import redis

from regworker.domain.event import EventType
from regworker.domain.job import Job
from regworker.domain.outcome import Registered
from regworker.domain.states import FINAL, State
from regworker.event_builder import EventBuilder
from regworker.ledger.admin import Limits, announce, redrive, resolve
from regworker.ledger.calls import scripts
from regworker.ledger.identity import IDENTITY
from regworker.ledger.records import Claim, NotNow, Over, Record, Settled, Spent, Stale, pairs
from regworker.ledger.transitions import (
    ALARMS,
    PREFIX,
    ClaimRules,
    Command,
    Decision,
    Publication,
    SettleRules,
    abandon,
    accept,
    cancel,
    claim,
    job_key,
    renew,
    ring,
    settle,
)
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.jobs import ACTOR
from tests.model.explore import Trace, shown
from tests.model.model import FORGETS, Bounds, Due, Step, World, start

CLOCK = f"{PREFIX}test-clock"
STREAM = f"{PREFIX}results"
#: A command that reads the server's clock. The check of the caller's rights only names it.
TIME = re.compile(r"(?:call|peek)\('TIME'")
NOW = re.compile(r"local function read_clock\(\)\n.*?\nend\n", re.DOTALL)
TEST_NOW = f"local function read_clock() return tonumber(redis.call('GET', '{CLOCK}')) end\n"

#: Milliseconds: of a step; of what never passes in a trace; and of the ledger's first advance.
STEP, NEVER, FIRST_PUSH = 1000, 10**9, 10_000
START = 1_700_000_000_000
JOB = {"provider": "acme", "idempotency_key": "1", "registration": {}}
CLOCK_STEPS = {
    "lease": "the lease runs out",
    "settle": "the settle delay passes",
    "due": "the retry is due",
    "deadline": "the deadline passes",
}
#: How the model names what spends no attempt.
FREE = " for free"
DOUBT = ("doubted_at", "doubt_until")
LEDGER_STEPS = frozenset({"claims", "settles", "abandons", "cancel", "resolve", "redrive"})


class DivergenceError(Exception):
    """The scripts did something different from the model."""


def load(server: "redis.Redis", sources: Mapping[str, str] | None = None) -> dict[str, str]:
    """Load the scripts with the test's clock; return their digests by name."""
    digests = {}
    for name, source in (sources or scripts()).items():
        patched = NOW.sub(TEST_NOW, source)
        assert not TIME.search(patched), f"{name} uses another clock than the test's"
        digests[name] = str(server.script_load(patched))
    return digests


@cache
def announcer() -> EventBuilder:
    """The real event builder, so that events have the same ids and types as in production."""
    key = Keyring.new("test")
    return EventBuilder(Settings.load(sealing_keys=key), Keyring.parse(key))


class Replay:
    """One trace on one empty ledger."""

    def __init__(
        self, server: "redis.Redis", digests: Mapping[str, str], trace: Trace, bounds: Bounds
    ) -> None:
        self._server = server
        self._digests = digests
        self._trace = trace
        self._bounds = bounds
        self._claims: dict[int, Claim] = {}
        self._spent: dict[int, Record] = {}
        self._lease_end = 0
        self._at = 0
        self._job = Job(**JOB, deadline=datetime.fromtimestamp(self._next("deadline") / 1000, UTC))
        self._key = job_key(self._job.id)
        self._found: list[Any] = []
        self._copy: dict[bytes, Any] = {}
        self._doubted_at = 0

    def run(self) -> None:
        """Run the trace. Raises `DivergenceError`, with the trace."""
        self._server.flushdb()
        self._greet()
        self._do(announce([Limits("acme", "default", 0, 0, 0)], ["results"]))
        self._do(accept(self._job, "sealed", ["print"], 60))
        self._compare(start(self._bounds))
        before = start(self._bounds)
        for step, after in self._trace:
            self._at += 1
            if step.act in LEDGER_STEPS:
                self._act(before, step, after)
                self._compare(after)
            elif step.act in CLOCK_STEPS.values():
                self._do(ring(10))
                self._compare(after)
            elif step.act == FORGETS:
                self._forget()
                self._do(ring(10))
                self._compare(after)
            before = after

    # ---- time: T(n) = START + n seconds

    def _now(self) -> int:
        return START + self._at * STEP

    def _next(self, what: str) -> int:
        """The time of the next such clock step (ms); far in the future if there is none."""
        for i in range(self._at, len(self._trace)):
            if self._trace[i][0].act == CLOCK_STEPS[what]:
                return START + (i + 1) * STEP
        return START + NEVER

    def _until(self, what: str) -> float:
        return (self._next(what) - self._now()) / 1000

    def _settle_delay_of_lost_lease(self, settling: bool) -> float:
        if settling:
            return (self._next("settle") - self._lease_end) / 1000
        earlier = range(self._at - 1)
        passed = max(i for i in earlier if self._trace[i][0].act == CLOCK_STEPS["settle"])
        return (START + (passed + 1) * STEP - self._lease_end) / 1000

    # ---- a ledger that forgets

    def _greet(self) -> None:
        """What a worker does when its connection leads to a server that it does not know."""
        if self._bounds.failovers:
            self._server.set(CLOCK, self._now())
            keys = (IDENTITY, f"{PREFIX}mark:test")
            digest = self._digests["identity"]
            self._server.evalsha(digest, 2, *keys, 0, NEVER, 0, 0, 0, NEVER, f"run {self._at}")

    def _keep(self) -> None:
        """Keep a copy of all data."""
        dump = self._server.dump
        self._copy = {key: dump(key) for key in self._server.scan_iter()}

    def _forget(self) -> None:
        """Go back to the copy, on another server."""
        self._server.flushdb()
        for key, value in self._copy.items():
            self._server.restore(key, 0, value)
        self._greet()
        self._doubted_at = self._now()

    # ---- steps

    def _act(self, before: World, step: Step, after: World) -> None:
        job, actor = before.job, step.actor
        match step.act:
            case "claims":
                lost = job.state is State.CALLING and not (job.lease or job.in_doubt)
                delay = self._settle_delay_of_lost_lease(job.settling) if lost else 60
                lease = self._until("lease")
                if job.in_doubt:
                    delay = (self._next("settle") - self._doubted_at) / 1000 - lease
                rules = ClaimRules(f"worker {actor}", lease, delay, self._bounds.attempts, 20)
                if self._bounds.failovers and step.result in {"call", "ask"}:
                    self._keep()
                answer = self._do(claim(self._job.id, rules, 0.5))
                self._claimed(step, answer)
            case "settles":
                held = self._claims.pop(actor)
                outcome = before.workers[actor].outcome
                lost = outcome.startswith(("unknown", "taken")) and not held.asking
                verdict = Decision(
                    outcome.removesuffix(FREE),
                    "why",
                    0 if lost else self._until("due"),
                    spends=not outcome.endswith(FREE),
                )
                delays = SettleRules(self._until("settle"), 1000, 10, 1000)
                kind = "review" if outcome == "unresolvable" else outcome
                answer = self._do(settle(held, verdict, delays, self._event(held.record, kind)))
                self._expect(isinstance(answer, Stale) == step.result.endswith("stale"), answer)
                self._expect(answer.state == after.job.state, answer)
            case "abandons":
                record = self._spent.pop(actor)
                event = self._event(record, "abandoned")
                reason, most = "deadline", self._bounds.attempts
                answer = self._do(abandon(record, reason, most, 1000, event))
                self._expect(isinstance(answer, Stale) == (step.result == "stale"), answer)
            case "cancel":
                record = self._record()
                other = Record.read(self._job.id, [*self._flat(), b"attempts", b"99"])
                refused = self._do(cancel(other, 1000, self._event(other, "cancelled")))
                self._expect(isinstance(refused, Stale), refused)
                answer = self._do(cancel(record, 1000, self._event(record, "cancelled")))
                self._expect(isinstance(answer, Settled), answer)
            case "resolve":
                record = self._record()
                event = self._event(record, step.result) if step.result != "resend" else None
                deadline = self._until("deadline")
                other = replace(record, reopened=record.reopened + 1)
                refused = self._do(resolve(other, step.result, ACTOR, deadline, 1000, event))
                self._expect(refused == Stale("review"), refused)
                answer = self._do(resolve(record, step.result, ACTOR, deadline, 1000, event))
                self._expect(isinstance(answer, Settled), answer)
            case "redrive":
                answer = self._do(redrive(self._job, "sealed", ["print"], self._until("deadline")))
                self._expect(isinstance(answer, Settled), answer)

    def _claimed(self, step: Step, answer: Any) -> None:
        match step.result, answer:
            case "call" | "ask", Claim() as claimed:
                self._expect(claimed.asking == (step.result == "ask"), answer)
                self._claims[step.actor] = claimed
                self._lease_end = self._next("lease")
            case "spent", Spent(record):
                self._spent[step.actor] = record
            case ("later", NotNow()) | ("over", Over()):
                pass
            case _:
                self._expect(False, answer)

    def _event(self, record: Record, kind: str) -> Publication:
        if kind == "registered":
            return announcer().registered(record, self._now(), Registered({}))
        types = {one.word: one for one in EventType}
        known = types.get(kind, EventType.REJECTED)
        return announcer().failed(known, record, self._now(), ())

    def _do(self, command: Command[Any]) -> Any:
        """Run a command twice, as a client does after a lost answer, and compare all data."""
        digest = self._digests[command.script]
        pipeline = self._server.pipeline(transaction=False)
        pipeline.set(CLOCK, self._now())
        for _ in range(2):
            pipeline.evalsha(digest, len(command.keys), *command.keys, *command.args)
            self._look(pipeline)
        for held in self._claims.values():
            # A renewal that does not change the lease.
            renewal = renew([(held.id, held.record.fence)], (self._lease_end - self._now()) / 1000)
            digest = self._digests["renew"]
            pipeline.evalsha(digest, len(renewal.keys), *renewal.keys, *renewal.args)
        self._look(pipeline)
        answers = pipeline.execute()
        first, second, third = answers[2:5], answers[6:9], answers[-3:]
        kept = [one == [1] for one in answers[9:-3]]
        if command.script not in {"ring", "announce"}:
            self._expect(second == first, f"{command.script}, repeated, changed something")
        self._expect(third == second, "a renewal changed something")
        self._found = third
        for held, renewed in zip(self._claims.values(), kept, strict=True):
            record = self._record()
            alive = record.lease_until > self._now() and record.fence == held.record.fence
            self._expect(renewed == alive, f"a lease that is {alive=} was {renewed=}")
        return command.read(answers[1])

    def _look(self, pipeline: Any) -> None:
        pipeline.hgetall(self._key)
        pipeline.zscore(ALARMS, self._job.id)
        pipeline.xrange(STREAM)

    def _flat(self) -> list[Any]:
        return [part for pair in self._found[0].items() for part in pair]

    def _record(self) -> Record:
        return Record.read(self._job.id, self._flat())

    # ---- comparison

    def _compare(self, world: World) -> None:
        record, alarm, stream = self._record(), self._found[1], self._found[2]
        types = [json.loads(fields[b"event"])["type"] for _, fields in stream]
        raw = pairs(self._flat())
        job, now = world.job, self._now()
        held = bool(raw.get("token"))
        ours = {
            "state": job.state,
            "attempts": job.attempts,
            "doubted": job.doubted,
            "held": job.held,
            "lease": job.held and job.lease,
            "alarm": job.alarm,
            "payload": job.payload,
            "events": [event.split()[1] for event in job.events],
            "holders": [i for i, one in enumerate(world.workers) if one.holder and job.held],
        }
        theirs = {
            "state": record.state,
            "attempts": record.attempts,
            "doubted": record.unknowns > 0,
            "held": held,
            "lease": held and record.lease_until > now,
            "alarm": alarm is not None,
            "payload": bool(record.payload),
            "events": [type_.rpartition(".")[2] for type_ in types],
            "holders": [
                i
                for i, one in sorted(self._claims.items())
                if held and one.record.fence == record.fence
                if world.workers[i].phase != "idle"  # a crashed worker's claim belongs to no worker
            ],
        }
        if job.state not in FINAL:
            ours |= {"late": job.late}
            theirs |= {"late": record.deadline_at <= now}
            ours |= {"unproved": job.unproved}
            theirs |= {"unproved": record.unproved}
        if job.state not in FINAL and self._bounds.failovers:
            at, till = (int(one or 0) for one in self._server.hmget(IDENTITY, *DOUBT))
            doubted = record.accepted_at < till and int(raw.get("epoch") or 0) != at
            ours |= {"in doubt": job.in_doubt}
            theirs |= {"in doubt": doubted}
        if job.state in {State.QUEUED, State.UNKNOWN}:
            ours |= {"due": job.due is Due.NOW}
            theirs |= {"due": record.due_at <= now}
        if job.state is State.UNKNOWN:
            ours |= {"settling": job.settling, "sure": job.held and job.sure}
            sure = held and int(raw["claimed_at"]) >= record.settle_until
            theirs |= {"settling": now < record.settle_until, "sure": sure}
        differ = {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}
        self._expect(not differ, f"{differ} (the model's, the ledger's)")
        if alarm is not None:
            wait = record.lease_until if theirs["lease"] else record.due_at
            pushed = FIRST_PUSH * 2 ** int(raw.get("wakes") or 0)
            self._expect(alarm <= max(wait, now) + pushed, f"the alarm rings at {alarm}, too late")

    def _expect(self, holds: bool, what: object) -> None:
        if not holds:
            trace = shown(self._trace[: self._at], self._bounds)
            raise DivergenceError(f"{what}\n{trace}")
