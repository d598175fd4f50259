"""The design's invariants hold whatever workers, providers, producers and the clock do.

Hypothesis drives the real Lua scripts with a simulated provider beside them, and looks at every
key after every command. The scripts run by a clock of the test's own: `now()` is the one thing that
is replaced. So that nobody has to believe that this could fail, the second half breaks the scripts
in one place at a time and asserts that the same machine notices.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from worker.event import EventType, event_id
from worker.job import Job
from worker.ledger import Command
from worker.ledger.client import scripts
from worker.ledger.commands import (
    ALARMS,
    DEAD,
    PREFIX,
    REVIEWS,
    ClaimRules,
    Publication,
    SettleRules,
    Verdict,
    abandon,
    accept,
    cancel,
    claim,
    deliver,
    delivered,
    look,
    renew,
    ring,
    settle,
)
from worker.ledger.operations import (
    Limits,
    announce,
    hold,
    redrive,
    resolve,
)
from worker.ledger.records import (
    Accepted,
    Claim,
    Conflict,
    Delivery,
    NotNow,
    Over,
    Record,
    Settled,
    Spent,
    Stale,
    pairs,
)
from worker.lifecycle import FINAL, PARKED, UNFINISHED, State, may

T = TypeVar("T")

LEASE, SETTLE, DEADLINE, RETENTION = 12_000, 60_000, 3_600_000, 86_400_000
MAX_ATTEMPTS = 3
#: The longest that a ring or a full account may push an alarm ahead (`LAST_PUSH`).
LAST_PUSH = 60_000
#: After which honest work must have ended all that was begun, whatever was begun.
PATIENCE = 3 * DEADLINE
START = 1_700_000_000_000
CLOCK = f"{PREFIX}test-clock"
RESULTS = f"{PREFIX}results"
PROVIDER, ACCOUNT = "acme", "default"
ACCOUNT_KEY = f"{PREFIX}account:{PROVIDER}:{ACCOUNT}"
INFLIGHT = f"{PREFIX}inflight:{PROVIDER}:{ACCOUNT}"
WAITING = f"{PREFIX}waiting:{PROVIDER}:{ACCOUNT}"

CLAIM = ClaimRules("w", LEASE / 1000, SETTLE / 1000, MAX_ATTEMPTS, 20)
RULES = SettleRules(SETTLE / 1000, 2, 10, RETENTION / 1000)

REAL_CLOCK = """local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end"""
TEST_CLOCK = f"local function now() return tonumber(redis.call('GET', '{CLOCK}')) end"

#: Everything the ledger holds, in one round trip: [key, ttl, content] of each key, as JSON.
EVERYTHING = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, content = redis.call('TYPE', key).ok, ''
  if kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'stream' then
    content = {}
    for i, entry in ipairs(redis.call('XRANGE', key, '-', '+')) do content[i] = entry[2][2] end
  end
  all[#all + 1] = {key, redis.call('PTTL', key), content}
end
return cjson.encode(all)
"""

JOBS = {
    key: Job(
        provider=PROVIDER,
        account=ACCOUNT,
        idempotency_key=key,
        registration={},
        lane="bulk" if key == "bulk" else "live",
        reply_to=("results", "crm") if key == "hooked" else ("results",),
    )
    for key in ("hooked", "bulk")
}
IDS = {key: job.id for key, job in JOBS.items()}


@dataclass
class Held:
    """A claim that a worker was given once, and what it did under it. Never forgotten."""

    claim: Claim
    lease_end: int
    sent_at: int | None = None
    """When its request left; for a question, when it was asked."""
    told: bool = False
    """Whether it has settled; nothing is sent after that."""
    truths: list[str] = field(default_factory=list)
    """The verdicts it can settle without lying."""


@dataclass
class Ledger:
    """All that the ledger holds, raw."""

    jobs: dict[str, dict[str, str]]
    deliveries: dict[str, dict[str, str]]
    alarms: dict[str, float]
    inflight: dict[str, float]
    waiting: dict[str, float]
    dead: dict[str, float]
    reviews: dict[str, float]
    events: list[dict[str, Any]]
    expires: dict[str, bool]
    rest: dict[str, Any]

    @classmethod
    def read(cls, answer: bytes) -> "Ledger":
        """Sort every key by its kind; one of no known kind has no owner."""
        found = cls({}, {}, {}, {}, {}, {}, {}, [], {}, {})
        zsets = {
            ALARMS: found.alarms,
            INFLIGHT: found.inflight,
            WAITING: found.waiting,
            DEAD: found.dead,
            REVIEWS: found.reviews,
        }
        for key, ttl, content in json.loads(answer):
            found.expires[key] = ttl > 0
            if key.startswith(f"{PREFIX}job:"):
                found.jobs[key.removeprefix(f"{PREFIX}job:")] = pairs(content)
            elif key.startswith(f"{PREFIX}delivery:"):
                found.deliveries[key.removeprefix(f"{PREFIX}delivery:")] = pairs(content)
            elif key in zsets:
                zsets[key].update({name: float(at) for name, at in pairs(content).items()})
            elif key == RESULTS:
                found.events = [json.loads(event) for event in content]
            elif key == ACCOUNT_KEY:
                found.rest[key] = pairs(content)
            else:
                assert key in {CLOCK, f"{PREFIX}stats", f"{PREFIX}configured"}, f"stray key {key}"
        return found


class LedgerMachine(RuleBasedStateMachine):
    """Everybody who may touch the ledger, and the rules they live by."""

    claims = Bundle("claims")
    spents = Bundle("spents")
    tries = Bundle("tries")
    numbers = st.integers(0, 5)
    fates = st.sampled_from(["made", "late", "nothing"])

    def __init__(self, client: redis.Redis, digests: dict[str, str]) -> None:
        super().__init__()
        self.client = client
        self.digests = digests
        self.now = START
        self.healthy = True
        self.seen = Ledger.read(b"[]")
        self.accounts: Counter[str] = Counter()
        self.late: list[tuple[int, Held]] = []
        self.holder: dict[str, Held] = {}
        self.question: dict[str, float] = {}
        """Of which jobs it is unknown whether the customer exists, and until when that may yet
        come about."""
        self.settled: dict[str, tuple[int, str]] = {}
        self.contents: dict[str, str] = {}
        self.looked: dict[str, Record] = {}
        self.arrived: set[str] = set()
        self.ends: Counter[str] = Counter()

    # -- carrying commands, and looking after each ------------------------------------------------

    def do(self, command: Command[T]) -> T:
        """Carry a command out and look whether all is still as it must be."""
        both = self.client.pipeline(transaction=False)
        both.evalsha(self.digests[command.script], len(command.keys), *command.keys, *command.args)
        both.evalsha(self.digests["everything"], 0)
        try:
            answer, everything = both.execute()
            self.look(Ledger.read(everything))
        except BaseException:
            self.healthy = False
            raise
        return command.read(answer)

    def again(self, command: Command[T], expected: T | None = None) -> T:
        """The same command once more, as after a lost answer: nothing changes."""
        before = self.seen
        answer = self.do(command)
        assert self.seen == before, f"{command.script} repeated did something"
        assert expected is None or answer == expected
        return answer

    def look(self, now: Ledger) -> None:
        """Compare all keys with the last look, and with the design."""
        before, self.seen = self.seen, now
        self.check_jobs(before)
        self.check_events()
        self.check_alarms()
        self.check_account()
        assert not [job for job, made in self.accounts.items() if made > 1], "a second customer"

    def state(self, job_id: str) -> State | None:
        """Where a job stands."""
        job = self.seen.jobs.get(job_id)
        return State(job["state"]) if job else None

    def pick(self, number: int) -> str:
        """A job to work on: mostly one with which there is something to do."""
        jobs = sorted(self.seen.jobs)
        ready = [one for one in jobs if one in self.seen.alarms and not self.live(one)]
        found = ready if ready and number < 5 else jobs
        return found[number % len(found)]

    def among(self, *states: State) -> list[str]:
        """The jobs in these states."""
        return sorted(one for one, job in self.seen.jobs.items() if job["state"] in states)

    def live(self, job_id: str) -> bool:
        """Whether, by the test's own books, somebody holds a lease."""
        return job_id in self.holder and self.holder[job_id].lease_end > self.now

    def publication(self, record: Record, kind: str) -> Publication:
        """An event as a worker makes it, of a job as it was when the worker saw it."""
        id_ = event_id(record.id, record.fence, EventType(f"registration.{kind}"))
        event = {"id": id_, "subject": record.id, "type": kind}
        hooks = tuple(name for name in record.reply_to if name != "results")
        return Publication(event["id"], json.dumps(event).encode(), "sealed", (RESULTS,), hooks)

    # -- what must hold ---------------------------------------------------------------------------

    def check_jobs(self, before: Ledger) -> None:
        """States move along edges, fences never back; payloads and records end as they must."""
        assert not set(before.jobs) - set(self.seen.jobs), "a job is gone"
        for job_id, job in self.seen.jobs.items():
            state = State(job["state"])
            old = before.jobs.get(job_id)
            if old:
                was = State(old["state"])
                assert was is state or may(was, state), f"no edge {was} -> {state}"
                self.ends[job_id] += was is not state and state in FINAL
                assert int(job.get("fence", 0)) >= int(old.get("fence", 0)), "a fence went back"
            else:
                assert state is State.QUEUED
            assert ("payload" in job) == (state not in FINAL), f"payload of a {state} job"
            assert self.seen.expires[f"{PREFIX}job:{job_id}"] == (state in FINAL), "expiry"
            assert self.live_in_record(job) <= (state in {State.CALLING, State.UNKNOWN})

    def live_in_record(self, job: dict[str, str]) -> bool:
        """Whether, by a job's record, somebody holds a lease."""
        return int(job.get("lease_until") or 0) > self.now

    def check_events(self) -> None:
        """One final event for each end of a job, none before; no id twice."""
        ids = Counter(event["id"] for event in self.seen.events)
        assert not [one for one, count in ids.items() if count > 1], "an event id twice"
        finals = Counter(
            event["subject"] for event in self.seen.events if event["type"] in set(FINAL)
        )
        for job_id, job in self.seen.jobs.items():
            assert finals[job_id] == self.ends[job_id], "final events"
            last = [event["type"] for event in self.seen.events if event["subject"] == job_id][-1:]
            if job["state"] in FINAL | PARKED:
                assert last == [job["state"]], "the last event says something else"
        parked = {id_ for id_, job in self.seen.jobs.items() if State(job["state"]) in PARKED}
        assert set(self.seen.reviews) == parked, "reviews"

    def check_alarms(self) -> None:
        """Whoever is unfinished has one alarm, and in time; nobody else has any."""
        unfinished = {id_ for id_, job in self.seen.jobs.items() if job["state"] in UNFINISHED}
        pending = {id_ for id_, one in self.seen.deliveries.items() if one["state"] == "pending"}
        dead = {id_ for id_, one in self.seen.deliveries.items() if one["state"] == "dead"}
        assert set(self.seen.alarms) == unfinished | pending, "alarms"
        assert set(self.seen.dead) == dead, "dead deliveries"
        for job_id in unfinished:
            job, at = self.seen.jobs[job_id], self.seen.alarms[job_id]
            if self.live_in_record(job):
                assert at <= int(job["lease_until"]), "nobody looks when the lease runs out"
            elif job["state"] == State.QUEUED:
                assert at <= max(int(job["deadline_at"]), self.now) + LAST_PUSH, "alarm too late"
            else:
                due = max(int(job.get("due_at") or 0), self.now)
                assert at <= due + LAST_PUSH, "alarm too late"

    def check_account(self) -> None:
        """Who is in flight holds a lease, and the other way about; who waits does not."""
        leased = {
            id_: float(job["lease_until"])
            for id_, job in self.seen.jobs.items()
            if self.live_in_record(job)
        }
        inflight = {id_: at for id_, at in self.seen.inflight.items() if at > self.now}
        assert inflight == leased, "in flight"
        for job_id in self.seen.waiting:
            assert self.state(job_id) in {State.QUEUED, State.UNKNOWN}, "waits, for nothing"
            assert job_id not in leased, "waits, and is called"

    @invariant()
    def leases_are_held(self) -> None:
        """Every lease in the ledger is one that a worker was given and did not settle."""
        for job_id, job in self.seen.jobs.items():
            assert self.live_in_record(job) == self.live(job_id), "a lease that nobody holds"

    # -- producers --------------------------------------------------------------------------------

    @initialize(cap=st.sampled_from([0, 1, 2]), interval=st.sampled_from([0, 0, 0, 4000, 30_000]))
    def open_shop(self, cap: int, interval: int) -> None:
        """An empty ledger, to which a worker announces what it serves, and jobs."""
        self.client.flushdb()
        self.client.set(CLOCK, self.now)
        self.do(announce([Limits(PROVIDER, ACCOUNT, interval, 0, cap)], ["results", "crm"]))
        for key in JOBS:
            self.accept(key, "this", False)

    @rule(
        what=st.sampled_from(["accept", "look", "cancel", "pause"]),
        key=st.sampled_from(sorted(JOBS)),
        content=st.sampled_from(["this", "this", "that"]),
        lost=st.booleans(),
    )
    def people(self, what: str, key: str, content: str, lost: bool) -> None:
        """What producers and operators do now and then."""
        match what:
            case "accept":
                self.accept(key, content, lost)
            case "look":
                self.looked[key] = self.do(look(IDS[key]))
            case "cancel" if key in self.looked:
                self.cancel(self.looked[key], lost)
            case "pause":
                self.do(hold(PROVIDER, ACCOUNT, "pause", ""))

    def accept(self, key: str, content: str, lost: bool) -> None:
        """A producer hands a job in, perhaps not for the first time."""
        job = JOBS[key]
        command = accept(job, "sealed", [f"k:{content}"], DEADLINE / 1000)
        first = self.contents.setdefault(job.id, content)
        before = self.state(job.id)
        answer = self.do(command)
        if first != content:
            assert answer == Conflict(job.id)
            return
        assert isinstance(answer, Accepted)
        assert answer.repeat == (before is not None)
        assert answer.state == self.state(job.id)
        if lost:
            self.again(command, answer)

    def cancel(self, record: Record, lost: bool) -> None:
        """A producer takes a job back, going by what it saw some time ago."""
        job = self.seen.jobs[record.id]
        same = int(job.get("attempts", 0)) == record.attempts
        may_be = job["state"] == "cancelled" or (job["state"] == "queued" and same)
        command = cancel(record, RULES.retention, self.publication(record, "cancelled"))
        answer = self.do(command)
        assert isinstance(answer, Settled) == may_be
        if lost:
            assert type(self.again(command)) is type(answer)

    # -- workers ----------------------------------------------------------------------------------

    @rule(target=claims, number=numbers, lost=st.booleans())
    def claim(self, number: int, lost: bool) -> Any:
        """A worker claims a job it was woken for."""
        taken = self.take(self.pick(number), lost)
        return taken if isinstance(taken, Held) else multiple()

    @precondition(lambda self: self.late_jobs())
    @rule(target=spents, number=numbers)
    def find_spent(self, number: int) -> Any:
        """A worker finds a job out of time or attempts, and may abandon it later."""
        late = self.late_jobs()
        return self.take(late[number % len(late)])

    def late_jobs(self) -> list[str]:
        """The jobs that are out of time or attempts."""
        return [one for one in self.among(State.QUEUED) if self.spent(self.seen.jobs[one])]

    def spent(self, job: dict[str, str]) -> bool:
        """Whether a job is out of time or attempts."""
        return int(job["deadline_at"]) <= self.now or int(job.get("attempts", 0)) >= MAX_ATTEMPTS

    def take(self, job_id: str, lost: bool = False) -> Held | Spent | NotNow | Over:
        """Claim a job; what follows from it for the test's own books."""
        before, live = self.state(job_id), self.live(job_id)
        command = claim(job_id, CLAIM, 0.5)
        holder = self.holder.get(job_id)
        if holder and not live and not holder.claim.asking:
            # The lease ran out in the middle of a call: nobody decides any more.
            self.question[job_id] = holder.lease_end + SETTLE
            del self.holder[job_id]
        answer = self.do(command)
        match answer:
            case Claim(record=record):
                assert not live, "a second lease"
                assert answer.asking == (before is not State.QUEUED)
                assert record.payload == "sealed"
                if not answer.asking:
                    assert job_id not in self.question, "called again, and nobody knows"
                    self.question[job_id] = float("inf")
                held = self.holder[job_id] = Held(answer, record.lease_until)
                held.truths = ["unknown", "retry"]
                if not answer.asking:
                    held.truths += ["rejected", "absent"]
                if lost:
                    again = self.again(command)
                    assert isinstance(again, Claim)
                    assert again.record.fence == record.fence
                return held
            case Spent():
                assert before is State.QUEUED
            case NotNow(why):
                assert (why == "leased") == live
            case Over():
                assert before is None or before in FINAL | PARKED
        return answer

    @rule(spent=spents, lost=st.booleans())
    def abandon(self, spent: Spent, lost: bool) -> None:
        """A worker abandons a job, going by what it saw some time ago."""
        job = self.seen.jobs[spent.record.id]
        if job.get("fence", "0") != str(spent.record.fence):
            return  # Redriven since: nobody stands still for as long as a deadline.
        may_be = job["state"] == State.QUEUED and self.spent(job)
        command = self.give_up(spent)
        assert isinstance(self.do(command), Settled) == may_be
        if lost:
            self.again(command)

    def give_up(self, spent: Spent) -> Command[Settled | Stale]:
        """How a spent job is abandoned."""
        event = self.publication(spent.record, "abandoned")
        return abandon(spent.record, "deadline", MAX_ATTEMPTS, RULES.retention, event)

    @rule(
        held=claims,
        fate=st.sampled_from(["made", "late", "late", "nothing"]),
        after=st.sampled_from([0.1, 0.9, 0.999]),
    )
    def send(self, held: Held, fate: str, after: float) -> None:
        """Under a live lease a worker calls, or asks; what becomes of it is the provider's."""
        if held.sent_at is None and not held.told and held.lease_end > self.now:
            self.deal(held, fate, after)

    def deal(self, held: Held, fate: str, after: float = 0.1) -> None:
        """What the provider does with a request."""
        held.sent_at, job_id = self.now, held.claim.id
        if held.claim.asking:
            found = "registered" if self.accounts[job_id] else "absent"
            held.truths = ["unknown", "retry", "unresolvable", found, found]
        elif fate == "made":
            self.make(held)
        elif fate == "late":
            self.late.append((self.now + int(SETTLE * after), held))
            held.truths = ["unknown", "absent"]
        else:
            held.truths.append("unresolvable")

    def make(self, held: Held) -> None:
        """The provider makes a customer, and says so."""
        self.accounts[held.claim.id] += 1
        held.truths = ["registered", "registered", "unknown"]
        if self.accounts[held.claim.id] > 1:
            self.healthy = False
            raise AssertionError("a second customer")

    @rule(
        held=claims,
        which=st.integers(0, 5),
        health=st.sampled_from(["", "", "", "", "", "ok", "fault", "refused"]),
        delay=st.sampled_from([0, 5, 90]),
        lost=st.booleans(),
    )
    def settle(self, held: Held, which: int, health: str, delay: int, lost: bool) -> None:
        """A worker settles a claim of its own, however old, with a verdict that is true."""
        self.conclude(held, held.truths[which % len(held.truths)], health, delay, lost)

    def conclude(
        self, held: Held, verdict: str, health: str = "", delay: int = 0, lost: bool = False
    ) -> None:
        """Settle; decisions count from the holder only, facts from anyone while the job is open."""
        job_id, fence = held.claim.id, held.claim.record.fence
        state, before = self.state(job_id), self.seen
        assert state is not None
        kinds = {"registered": "registered", "rejected": "rejected", "unresolvable": "review"}
        event = self.publication(held.claim.record, kinds[verdict]) if verdict in kinds else None
        command = settle(held.claim, Verdict(verdict, "why\nso", delay, True, health), RULES, event)
        decides, held.told = self.holder.get(job_id) is held, True
        if self.settled.get(job_id) == (fence, verdict):
            assert isinstance(self.again(command), Settled)
            return
        if not decides and (verdict != "registered" or state in FINAL):
            assert isinstance(self.do(command), Stale)
            assert self.seen == before, "a stale holder changed something"
            return
        self.holder.pop(job_id, None)
        self.settled[job_id] = (fence, verdict)
        answer = self.do(command)
        assert isinstance(answer, Settled)
        assert answer.state == self.state(job_id) == self.expected(held, verdict, state)
        self.note(held, answer.state)
        if lost:
            assert isinstance(self.again(command), Settled)

    def expected(self, held: Held, verdict: str, state: State) -> State:
        """The state that a verdict leads to."""
        if verdict in {"registered", "rejected"}:
            return State(verdict)
        if verdict == "unresolvable":
            return State.REVIEW
        if state is State.CALLING:
            return State.QUEUED if verdict == "retry" else State.UNKNOWN
        sure = verdict == "absent" and held.claim.at >= self.question[held.claim.id]
        return State.QUEUED if sure else State.UNKNOWN

    def note(self, held: Held, state: State) -> None:
        """Whether it is known now that the customer exists, or doesn't."""
        job_id = held.claim.id
        if state is not State.UNKNOWN:
            self.question.pop(job_id, None)
        elif not held.claim.asking:
            self.question[job_id] = self.now + SETTLE
            delayed = int(self.seen.jobs[job_id]["settle_until"])
            assert delayed >= self.question[job_id], "no settle delay"
            self.question[job_id] = delayed

    @rule(held=st.lists(claims, min_size=1, max_size=3), lost=st.booleans())
    def renew(self, held: list[Held], lost: bool) -> None:
        """A worker renews what it thinks it holds."""
        leases = [(one.claim.id, one.claim.record.fence) for one in held]
        expected = tuple(self.holder.get(h.claim.id) is h and self.live(h.claim.id) for h in held)
        for one, alive in zip(held, expected, strict=True):
            if alive:
                one.lease_end = self.now + LEASE
        command = renew(leases, LEASE / 1000)
        assert self.do(command) == expected
        if lost:
            self.again(command, expected)

    @rule(
        target=claims,
        number=numbers,
        fate=fates,
        which=numbers,
    )
    def attempt(self, number: int, fate: str, which: int) -> Any:
        """A worker does one attempt from end to end."""
        return self.work(self.pick(number), fate, which) or multiple()

    @rule(
        target=claims,
        number=numbers,
        again=st.booleans(),
        ms=st.sampled_from([SETTLE, SETTLE, LEASE, 1, DEADLINE]),
        others=st.lists(st.tuples(numbers, st.booleans()), max_size=2),
        settles=st.sampled_from([True, True, False]),
    )
    def attempt_slowly(
        self, number: int, again: bool, ms: int, others: list[tuple[int, bool]], settles: bool
    ) -> Any:
        """A worker stands still before it settles, or dies there; others go on meanwhile."""
        job_id = self.pick(number)
        if again:
            self.work(job_id, "late", 0)
        held = self.take(job_id)
        if not isinstance(held, Held):
            return multiple()
        self.deal(held, "late", 0.9)
        self.wait(ms)
        for other, whole in others:
            if whole:
                self.work(self.pick(other), "nothing", -1)
            else:
                self.take(self.pick(other))
        if settles:
            self.conclude(held, held.truths[-1])
        return held

    @rule(target=claims, number=numbers, fate=fates, which=numbers)
    def attempt_again(self, number: int, fate: str, which: int) -> Any:
        """The same: of this there is the most."""
        return self.work(self.pick(number), fate, which) or multiple()

    def work(self, job_id: str, fate: str, which: int) -> Held | None:
        """One attempt, or the end of a job that is spent."""
        taken = self.take(job_id)
        if isinstance(taken, Spent):
            self.do(self.give_up(taken))
            self.again(self.give_up(taken))
        if not isinstance(taken, Held):
            return None
        self.deal(taken, fate)
        self.conclude(taken, taken.truths[which % len(taken.truths)])
        return taken

    # -- the clock --------------------------------------------------------------------------------

    @rule(ms=st.sampled_from([None, None, 1, 900, 5_000, LEASE, LEASE + 1, SETTLE, DEADLINE]))
    def pass_time(self, ms: int | None) -> None:
        """Time passes, by itself or until somebody is due."""
        self.wait_for_an_alarm() if ms is None else self.wait(ms)

    def wait(self, ms: int) -> None:
        """Time passes; what providers put off happens."""
        self.now += ms
        self.client.set(CLOCK, self.now)
        due = [held for at, held in self.late if at <= self.now]
        self.late = [(at, held) for at, held in self.late if at > self.now]
        for held in due:
            self.make(held)

    def wait_for_an_alarm(self) -> None:
        """Time passes until somebody is due."""
        if self.seen.alarms:
            self.wait(max(0, int(min(self.seen.alarms.values())) - self.now))

    @precondition(lambda self: min(self.seen.alarms.values(), default=self.now + 1) <= self.now)
    @rule(most=st.sampled_from([1, 100]))
    def ring(self, most: int) -> None:
        """The clock rings; the wake-ups get lost."""
        due = [id_ for id_, at in self.seen.alarms.items() if at <= self.now]
        rung = self.do(ring(most))
        assert {wake.member for wake in rung.wakes} <= set(due)
        assert len(rung.wakes) == min(most, len(due))
        for wake in rung.wakes:
            assert self.seen.alarms[wake.member] > self.now

    # -- the operator -----------------------------------------------------------------------------

    @precondition(lambda self: self.held_up())
    @rule(most=st.sampled_from([1, 500]))
    def resume(self, most: int) -> None:
        """An operator closes the account's breaker and lets it go on."""
        self.do(hold(PROVIDER, ACCOUNT, "resume", "", most))

    def held_up(self) -> bool:
        """Whether the account is paused, or its breaker not closed."""
        account = self.seen.rest[ACCOUNT_KEY]
        return account.get("paused") == "1" or account.get("breaker", "closed") != "closed"

    @precondition(lambda self: self.seen.reviews)
    @rule(
        number=numbers,
        decision=st.sampled_from(["registered", "rejected", "resend", "resend"]),
        lost=st.booleans(),
    )
    def resolve(self, number: int, decision: str, lost: bool) -> None:
        """An operator settles a review."""
        job_id = sorted(self.seen.reviews)[number % len(self.seen.reviews)]
        state, record = self.state(job_id), self.do(look(job_id))
        assert record is not None
        event = None if decision == "resend" else self.publication(record, decision)
        command = resolve(record.id, decision, "me", DEADLINE / 1000, RULES.retention, event)
        assert isinstance(self.do(command), Settled) == (state is State.REVIEW)
        if decision == "resend":
            self.question[record.id] = int(self.seen.jobs[record.id].get("settle_until", 0))
        if lost:
            assert isinstance(self.again(command), Settled)

    @precondition(lambda self: self.among(State.ABANDONED))
    @rule(number=numbers, content=st.sampled_from(["this", "this", "that"]), lost=st.booleans())
    def redrive(self, number: int, content: str, lost: bool) -> None:
        """An operator brings an abandoned job once more."""
        abandoned = self.among(State.ABANDONED)
        job_id = abandoned[number % len(abandoned)]
        job = next(job for job in JOBS.values() if job.id == job_id)
        command = redrive(job, "sealed", [f"k:{content}"], DEADLINE / 1000)
        answer = self.do(command)
        if self.contents[job_id] != content:
            assert answer == Conflict(job_id)
        else:
            assert isinstance(answer, Settled)
            self.question[job_id] = self.now
        if lost:
            assert type(self.again(command)) is type(answer)

    # -- deliveries -------------------------------------------------------------------------------

    @precondition(lambda self: self.seen.deliveries)
    @rule(target=tries, number=numbers, ms=st.sampled_from([0, 30_000]))
    def deliver(self, number: int, ms: int) -> Any:
        """A worker claims a delivery for one try, which may take longer than it should."""
        members = sorted(self.seen.deliveries)
        found = self.do(deliver(members[number % len(members)], 30))
        self.wait(ms)
        if ms:
            self.do(deliver(members[number % len(members)], 30))
        return found if found else multiple()

    @rule(one=tries, verdict=st.sampled_from(["arrived", "later", "dead"]), lost=st.booleans())
    def delivered(self, one: Delivery, verdict: str, lost: bool) -> None:
        """A worker settles a try, perhaps one that took too long."""
        self.bring(one, verdict, lost)

    def bring(self, one: Delivery, verdict: str, lost: bool = False) -> None:
        """Settle a try; an arrival counts from anyone, nothing else does."""
        before = self.seen.deliveries.get(one.member)
        command = delivered(one, verdict, "", 300)
        answer = self.do(command)
        if before is None:
            assert answer == "gone"
        elif verdict == "arrived":
            assert answer == "delivered"
            assert one.member not in self.seen.deliveries
            self.arrived.add(one.event_id)
        elif before["fence"] != str(one.fence) or before["state"] == "dead":
            assert self.seen.deliveries[one.member] == before, "a stale try changed something"
        if lost:
            self.again(command)

    # -- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """From wherever that led, alarms and honest workers alone bring all jobs to an end."""
        if not self.healthy or not self.seen.rest:
            return
        self.resume(500)
        end = self.now + PATIENCE
        while self.seen.alarms:
            assert self.now < end, f"still not over: {self.seen}"
            self.wait_for_an_alarm()
            for wake in self.do(ring(100)).wakes:
                if wake.lane == "delivery":
                    self.finish_delivery(wake.member)
                else:
                    self.finish_job(wake.member)
        for job_id, job in self.seen.jobs.items():
            assert job["state"] in FINAL | PARKED, f"{job_id} is lost"
        assert not self.seen.waiting, "left waiting"
        hooked = {e["id"] for e in self.seen.events if e["subject"] == IDS["hooked"]}
        dead = {one["event_id"] for one in self.seen.deliveries.values()}
        assert hooked == self.arrived | dead, "an event that nobody got"

    def finish_job(self, job_id: str) -> None:
        """One honest attempt at a provider that is well."""
        taken = self.take(job_id)
        if isinstance(taken, Spent):
            self.do(self.give_up(taken))
        if isinstance(taken, Held):
            self.deal(taken, "made")
            truth = {"registered", "absent"} & set(taken.truths)
            self.conclude(taken, truth.pop(), health="ok", delay=5)

    def finish_delivery(self, member: str) -> None:
        """One delivery to an endpoint that is well."""
        one = self.do(deliver(member, 30))
        if one:
            self.bring(one, "arrived")


def explore(
    client: redis.Redis, sources: dict[str, str], profile: settings, number: int | None = None
) -> None:
    """Let Hypothesis drive a machine over scripts; by the same way each time if by a number."""
    digests = load(client, sources)

    def machine() -> LedgerMachine:
        return LedgerMachine(client, digests)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine if number is None else seed(number)(machine), settings=profile
    )


@cache
def controlled() -> dict[str, str]:
    """The scripts, running by the test's clock."""
    found = {}
    for name, source in scripts().items():
        assert source.count(REAL_CLOCK) == 1
        found[name] = source.replace(REAL_CLOCK, TEST_CLOCK)
    return found


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of a database of its own."""
    client = redis.Redis.from_url(redis_url, db=1)
    yield client
    client.flushdb()
    client.close()


def load(client: redis.Redis, sources: dict[str, str]) -> dict[str, str]:
    """Load scripts; their digests by name."""
    return {
        name: client.script_load(source)
        for name, source in {**sources, "everything": EVERYTHING}.items()
    }


#: How long an example takes is the server's affair, and `too_slow` counts that as drawing.
PROFILE = settings(
    max_examples=150,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


#: Until the first that fails: what it is like is of no interest.
HUNT = settings(PROFILE, max_examples=2000, phases=[Phase.generate], database=None)


def test_no_sequence_of_steps_breaks_an_invariant(client: redis.Redis) -> None:
    """Whatever is claimed, lost, late, stale, repeated, paused or refused: the promise holds."""
    explore(client, controlled(), PROFILE)


@dataclass(frozen=True)
class Mutation:
    """One place in one script, broken."""

    script: str
    """Its name; `_lib` for the part that all share."""
    was: str
    becomes: str
    seed: int = 0
    """One by which Hypothesis gets there within seconds. By any other it does too, but later."""

    def of(self, sources: dict[str, str]) -> dict[str, str]:
        """The scripts with this one broken; the text must be there exactly once."""
        hit = [name for name in sources if self.script in {name, "_lib"}]
        for name in hit:
            assert sources[name].count(self.was) == 1, f"{self.was!r} in {name}"
        return sources | {name: sources[name].replace(self.was, self.becomes) for name in hit}


MUTATIONS = {
    "a lease that ran out means queued": Mutation(
        "claim",
        "job.state, job.fence, job.unknowns = 'unknown', job.fence + 1, job.unknowns + 1",
        "job.state, job.fence, job.unknowns = 'queued', job.fence + 1, job.unknowns + 1",
        seed=2,
    ),
    "a second worker gets the lease too": Mutation(
        "claim",
        "if job.lease_until > at then return {'later', at, 'leased', job.lease_until} end",
        "",
        seed=1,
    ),
    "a claim repeated is another claim": Mutation(
        "claim", "if job.token == token and job.lease_until > at then", "if false then", seed=1
    ),
    "an unknown job is called for": Mutation(
        "claim",
        "local asking = job.state == 'unknown'",
        "local asking = job.state == 'unknown' and job.unknowns > 1",
        seed=1,
    ),
    "nobody looks in time when a lease runs out": Mutation(
        "claim", "alarm(id, at + lease)", "alarm(id, at + lease + 1)"
    ),
    "a cap on calls in flight is passed over": Mutation(
        "claim", "redis.call('ZADD', inflight, string.format('%.0f', at + lease), id)", ""
    ),
    "whoever waits is not taken off the line": Mutation(
        "claim",
        "string.format('%.0f', at + lease), id)\n  redis.call('ZREM', waiting, id)",
        "string.format('%.0f', at + lease), id)",
        seed=3,
    ),
    "settled without looking at the fence": Mutation(
        "settle", "fence == job.fence and job.token ~= nil", "job.token ~= nil", seed=1
    ),
    "absence is believed at once": Mutation(
        "settle", "job.claimed_at < job.settle_until", "false", seed=1
    ),
    "absence is believed by the time of the answer": Mutation(
        "settle", "job.claimed_at < job.settle_until", "at < job.settle_until", seed=1
    ),
    "absence is believed of a call": Mutation(
        "settle", "if job.state == 'calling' and verdict == 'absent' then", "if false then", seed=1
    ),
    "no settle delay after a lost answer": Mutation(
        "settle", "at + math.max(settle_ms, delay)", "at + delay", seed=1
    ),
    "a question that failed queues the job": Mutation(
        "settle", "if job.state == 'unknown' and verdict ~= 'absent' then", "if false then", seed=1
    ),
    "a late fact is refused": Mutation(
        "settle", "not (holder or verdict == 'registered')", "not holder", seed=1
    ),
    "a late fact reopens what is over": Mutation(
        "settle", "if not open or not (holder", "if not (holder", seed=3
    ),
    "a settle repeated is settled again": Mutation(
        "settle", "if job.settled == ARGV[2] .. ' ' .. verdict then", "if false then", seed=1
    ),
    "no alarm after a retry": Mutation(
        "settle",
        "alarm(id, math.min(till, math.max(job.deadline_at, at)))",
        "redis.call('ZREM', KEYS[2], id)",
        seed=1,
    ),
    "the place in flight is kept": Mutation(
        "settle", "local waiter, its_lane = leave(id, job, at)", "local waiter, its_lane"
    ),
    "an alarm for who is in review": Mutation(
        "settle", "redis.call('ZREM', KEYS[2], id)", "", seed=1
    ),
    "review without an event": Mutation(
        "settle", "members = publish(id, job, at, ARGV, 12)", "members = {}", seed=1
    ),
    "no event": Mutation("_lib", "redis.call('XADD', args[i], '*', 'event', event)", ""),
    "the event twice": Mutation(
        "_lib",
        "redis.call('XADD', args[i], '*', 'event', event)",
        "for _ = 1, 2 do redis.call('XADD', args[i], '*', 'event', event) end",
    ),
    "the payload is kept": Mutation("_lib", "'payload', 'token'", "'token'"),
    "the alarm outlives the job": Mutation("_lib", "redis.call('ZREM', ALARMS, id)", ""),
    "the record stays for ever": Mutation(
        "_lib", "redis.call('PEXPIRE', job_key(id), retention)", ""
    ),
    "who is over still waits": Mutation(
        "_lib",
        "local _, _, waiting = account_keys(job)\n  redis.call('ZREM', waiting, id)",
        "",
        seed=3,
    ),
    "two alarms": Mutation(
        "_lib",
        "local function alarm(member, at) redis.call(",
        "local function alarm(member, at) redis.call('ZADD', ALARMS, 1, member .. '+') redis.call(",
    ),
    "no alarm for a delivery": Mutation("_lib", "alarm(member, at + FIRST_PUSH)", ""),
    "no alarm for a new job": Mutation("accept", "alarm(id, at + FIRST_PUSH)", ""),
    "a key is taken twice": Mutation(
        "accept", "return {'conflict', job.state, job.accepted_at}", "", seed=1
    ),
    "an alarm that rang is gone": Mutation(
        "ring",
        "redis.call('ZADD', KEYS[1], string.format('%.0f', at + push_of(wakes)), member)",
        "redis.call('ZREM', KEYS[1], member)",
    ),
    "a lease is renewed for anybody": Mutation("renew", "held[1] == ARGV[i + 1] and", "", seed=3),
    "a lease that ran out is renewed": Mutation(
        "renew", "tonumber(held[2] or '0') > at", "true", seed=1
    ),
    "the place in flight is not renewed": Mutation(
        "renew", "'XX', till, id)", "'NX', till, id)", seed=1
    ),
    "a call is cancelled": Mutation("cancel", "job.state ~= 'queued' or", "", seed=1),
    "a cancel repeated is refused": Mutation(
        "cancel", "if job.state == 'cancelled' then", "if false then", seed=1
    ),
    "what may yet be called is abandoned": Mutation(
        "abandon", "job.state ~= 'queued' or not spent", "not spent", seed=1
    ),
    "a delivery that came to nothing is forgotten": Mutation(
        "delivered",
        "redis.call('ZADD', KEYS[2], till, ARGV[1])",
        "redis.call('ZREM', KEYS[2], ARGV[1])",
        seed=6,
    ),
    "a late try decides": Mutation(
        "delivered", "if not holder and verdict ~= 'arrived' then return 'stale' end", "", seed=1
    ),
    "what is redriven is called for at once": Mutation(
        "redrive", "set(id, {state = 'unknown',", "set(id, {state = 'queued',", seed=1
    ),
    "what is resolved stays in review": Mutation(
        "resolve", "redis.call('ZREM', REVIEWS, id)\n  set(", "set(", seed=1
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_machine_notices_a_broken_script(name: str, client: redis.Redis) -> None:
    """A ledger that breaks its promise in one place is found out."""
    mutation = MUTATIONS[name]
    sources = mutation.of(controlled())
    with pytest.raises((AssertionError, redis.ResponseError)):
        explore(client, sources, HUNT, mutation.seed)
