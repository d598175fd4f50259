"""The ledger, looked at whole after every command, and what must hold whatever was done.

The scripts run by a clock of the test's own: `now()` is the one thing that is replaced.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import redis
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
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
)
from worker.ledger.gauges import LATER, OPEN, place
from worker.ledger.records import (
    Claim,
    Record,
    pairs,
)
from worker.lifecycle import FINAL, PARKED, UNFINISHED, State, may

T = TypeVar("T")

LEASE, SETTLE, DEADLINE, RETENTION = 12_000, 60_000, 3_600_000, 86_400_000
MAX_ATTEMPTS = 3
#: The longest that a ring or a full account may push an alarm ahead (`LAST_PUSH`).
LAST_PUSH = 60_000
#: For how long a place that is passed on is kept for whom it was passed to (`KEPT`).
KEPT = 2_000
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


@cache
def controlled() -> dict[str, str]:
    """The scripts, running by the test's clock."""
    found = {}
    for name, source in scripts().items():
        found[name] = source.replace(REAL_CLOCK, TEST_CLOCK)
        assert "'TIME'" not in found[name], f"{name} goes by a clock that is not the test's"
    return found


def load(client: redis.Redis, sources: dict[str, str]) -> dict[str, str]:
    """Load scripts; their digests by name."""
    return {
        name: client.script_load(source)
        for name, source in {**sources, "everything": EVERYTHING}.items()
    }


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
    open: dict[str, float] = field(default_factory=dict)
    later: dict[str, float] = field(default_factory=dict)
    pending: dict[str, float] = field(default_factory=dict)
    trying: dict[str, float] = field(default_factory=dict)
    line: dict[str, float] = field(default_factory=dict)

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
            OPEN: found.open,
            LATER: found.later,
            f"{PREFIX}pending:crm": found.pending,
            f"{PREFIX}trying:crm": found.trying,
            f"{PREFIX}line:crm": found.line,
        }
        for key, ttl, content in json.loads(answer):
            found.expires[key] = ttl > 0
            if key.startswith(f"{PREFIX}job:"):
                found.jobs[key.removeprefix(f"{PREFIX}job:")] = pairs(content)
            elif key.startswith(f"{PREFIX}delivery:"):
                found.deliveries[key.removeprefix(f"{PREFIX}delivery:")] = pairs(content)
            elif key == f"{PREFIX}endpoint:crm":
                found.rest[key] = pairs(content)
            elif key in zsets:
                zsets[key].update({name: float(at) for name, at in pairs(content).items()})
            elif key == RESULTS:
                found.events = [json.loads(event) for event in content]
            elif key == ACCOUNT_KEY:
                found.rest[key] = pairs(content)
            else:
                assert key in {CLOCK, f"{PREFIX}stats", f"{PREFIX}configured"}, f"stray key {key}"
        return found


class Books(RuleBasedStateMachine):
    """Carries commands out, and compares all keys with the design and the test's own books."""

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
        self.check_index()
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
        id_ = event_id(record.id, record.fence, EventType.of(kind))
        event = {"id": id_, "subject": record.id, "type": kind}
        return Publication(
            event["id"], json.dumps(event).encode(), "sealed", "kept", record.reply_to
        )

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

    def check_index(self) -> None:
        """What jobs are counted by says of each what its record says."""
        jobs = {id_: job for id_, job in self.seen.jobs.items() if job["state"] not in FINAL}
        assert self.seen.open == {
            id_: place(State(job["state"]), job["lane"], int(job["accepted_at"]))
            for id_, job in jobs.items()
        }, "open"
        assert self.seen.later == {
            id_: place(State.QUEUED, job["lane"], int(job["due_at"]))
            for id_, job in jobs.items()
            if job["state"] == State.QUEUED and int(job.get("due_at") or 0)
        }, "later"

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
        assert set(self.seen.pending) == pending, "pending deliveries"
        leased = {
            id_: float(self.seen.deliveries[id_]["lease_until"])
            for id_ in pending
            if int(self.seen.deliveries[id_].get("lease_until", 0)) > self.now
        }
        trying = {id_: at for id_, at in self.seen.trying.items() if at > self.now}
        assert trying == leased, "places among an endpoint's tries"
        assert set(self.seen.line) <= pending - set(leased), "in line, for nothing"
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
        """Who holds a lease is in flight; nobody else is but for whom a place is kept a while."""
        leased = {
            id_: float(job["lease_until"])
            for id_, job in self.seen.jobs.items()
            if self.live_in_record(job)
        }
        inflight = {id_: at for id_, at in self.seen.inflight.items() if at > self.now}
        kept = {id_ for id_, at in inflight.items() if id_ not in leased and at <= self.now + KEPT}
        assert {id_: at for id_, at in inflight.items() if id_ not in kept} == leased, "in flight"
        for job_id in self.seen.waiting:
            assert self.state(job_id) in {State.QUEUED, State.UNKNOWN}, "waits, for nothing"
            assert job_id not in leased, "waits, and is called"

    @invariant()
    def leases_are_held(self) -> None:
        """Every lease in the ledger is one that a worker was given and did not settle."""
        for job_id, job in self.seen.jobs.items():
            assert self.live_in_record(job) == self.live(job_id), "a lease that nobody holds"
