"""Compares the whole ledger with the design after every command.

The scripts run on the test's own clock: only their function `now()` is replaced.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import redis
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
)

from regworker.domain.event import EventType, event_id
from regworker.domain.job import Job
from regworker.domain.states import FINAL, PARKED, UNFINISHED, State, may
from regworker.ledger import Command
from regworker.ledger.calls import scripts
from regworker.ledger.records import USUAL, Claim, Record, pairs
from regworker.ledger.snapshot import LATER, OPEN, place
from regworker.ledger.transitions import (
    ALARMS,
    ANNOUNCED,
    AUDIT,
    BULK_WAKES,
    CONFIGURED,
    DEAD,
    PREFIX,
    REVIEWS,
    URGENT_WAKES,
    WAKES,
    ClaimRules,
    Publication,
    SettleRules,
)

T = TypeVar("T")

LEASE, SETTLE, DEADLINE, RETENTION = 12_000, 60_000, 3_600_000, 86_400_000
MAX_ATTEMPTS = 3
#: The longest time by which a ring or a full account may put off an alarm (`LAST_PUSH`).
LAST_PUSH = 60_000
#: How long a place is reserved for the job to which it was passed on (`KEPT`).
KEPT = 2_000
#: The most wake-ups that may be queued for workers to pass on (`MOST_WAKES`).
MOST_WAKES = 10_000
#: Within this time, working attempts must have ended every job, whatever happened before.
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

#: A command that reads the server's clock. The check of the caller's rights only names it.
TIME = re.compile(r"(?:call|peek)\('TIME'")
REAL_CLOCK = """local function read_clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end"""
TEST_CLOCK = f"local function read_clock() return tonumber(redis.call('GET', '{CLOCK}')) end"

#: Everything that the ledger holds, in one round trip: [key, ttl, content] of each key, as JSON.
EVERYTHING = """
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local kind, content = redis.call('TYPE', key).ok, ''
  if kind == 'hash' then content = redis.call('HGETALL', key)
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then content = redis.call('LRANGE', key, 0, -1)
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
    """The scripts, changed to use the test's clock."""
    found = {}
    for name, source in scripts().items():
        found[name] = source.replace(REAL_CLOCK, TEST_CLOCK)
        assert not TIME.search(found[name]), f"{name} goes by a clock that is not the test's"
    return found


def load(client: redis.Redis, sources: dict[str, str]) -> dict[str, str]:
    """Load scripts; their digests by name."""
    return {
        name: client.script_load(source)
        for name, source in {**sources, "everything": EVERYTHING}.items()
    }


@dataclass
class Held:
    """A claim that a worker got once, and what the worker did with it. Never deleted."""

    claim: Claim
    lease_end: int
    sent_at: int | None = None
    """When its request left; for a question, when it was asked."""
    reported: bool = False
    """Whether it has settled; nothing is sent after that."""
    truths: list[str] = field(default_factory=list)
    """The verdicts it can settle without lying."""


@dataclass
class Ledger:
    """Everything that the ledger holds, as raw data."""

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
        """Sort every key by its kind; fail on a key of an unknown kind."""
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
            elif key in {WAKES, BULK_WAKES, URGENT_WAKES}:
                assert len(content) <= MOST_WAKES, "wake-ups that nobody passes on"
            elif key == RESULTS:
                found.events = [json.loads(event) for event in content]
            elif key == ACCOUNT_KEY:
                found.rest[key] = pairs(content)
            else:
                listed = key.startswith((AUDIT, f"{PREFIX}ended:"))
                known = {CLOCK, f"{PREFIX}stats", CONFIGURED, ANNOUNCED}
                assert listed or key in known, f"stray key {key}"
        return found


class Books(RuleBasedStateMachine):
    """Runs commands, and compares all keys with the design and with the test's own records."""

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
        self.decided: set[str] = set()
        """Jobs whose review a person has ended."""
        self.corrected: set[str] = set()
        self.unproved: Counter[str] = Counter()
        """As in the records: 1 if only the login has denied the customer, `TAKEN` if the provider
        has refused the job because the customer exists."""
        self.refusals: Counter[str] = Counter()
        """How often each job was refused by status."""

    # -- run a command, and check afterwards -------------------------------------------------------

    def do(self, command: Command[T]) -> T:
        """Run a command and check all invariants."""
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
        """Repeat the same command, as after a lost answer: it must change nothing."""
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
        """The state of a job."""
        job = self.seen.jobs.get(job_id)
        return State(job["state"]) if job else None

    def pick(self, number: int) -> str:
        """A job to work on: mostly one that can still change."""
        jobs = sorted(self.seen.jobs)
        ready = [one for one in jobs if one in self.seen.alarms and not self.live(one)]
        found = ready if ready and number < 5 else jobs
        return found[number % len(found)]

    def among(self, *states: State) -> list[str]:
        """The jobs in these states."""
        return sorted(one for one, job in self.seen.jobs.items() if job["state"] in states)

    def live(self, job_id: str) -> bool:
        """Whether somebody holds a lease, by the test's own records."""
        return job_id in self.holder and self.holder[job_id].lease_end > self.now

    def publication(self, record: Record, kind: str) -> Publication:
        """An event as a worker builds it, from the record that the worker saw."""
        id_ = event_id(record.id, record.reopened, EventType.of(kind))
        event = {"id": id_, "subject": record.id, "type": kind}
        return Publication(
            event["id"], kind, json.dumps(event).encode(), "sealed", "kept", record.reply_to
        )

    # -- invariants --------------------------------------------------------------------------------

    def check_jobs(self, before: Ledger) -> None:
        """States follow the edges, fences never decrease; payloads and records are deleted as they
        must."""
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
            for name, kept in (("unproved", self.unproved), ("refusals", self.refusals)):
                assert name not in job if state in FINAL else kept[job_id] == int(job.get(name, 0))

    def live_in_record(self, job: dict[str, str]) -> bool:
        """Whether somebody holds a lease, by the job's record."""
        return int(job.get("lease_until") or 0) > self.now

    def check_index(self) -> None:
        """The indexes by which jobs are counted agree with the jobs' records."""
        unfinished = (one for one in self.seen.jobs.items() if one[1]["state"] not in FINAL)
        jobs = {id_: {**USUAL, **job} for id_, job in unfinished}
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
        """One final event for each end of a job and none before; event ids are unique."""
        ids = Counter(event["id"] for event in self.seen.events)
        assert not [one for one, count in ids.items() if count > 1], "an event id twice"
        finals = Counter(
            event["subject"] for event in self.seen.events if event["type"] in set(FINAL)
        )
        for job_id, job in self.seen.jobs.items():
            assert finals[job_id] == self.ends[job_id], "final events"
            types = [event["type"] for event in self.seen.events if event["subject"] == job_id]
            assert types.count("corrected") == (job_id in self.corrected), "corrections"
            last = [one for one in types if one != "corrected"][-1:]
            if job["state"] in FINAL | PARKED:
                assert last == [job["state"]], "the last event says something else"
        parked = {id_ for id_, job in self.seen.jobs.items() if State(job["state"]) in PARKED}
        assert set(self.seen.reviews) == parked, "reviews"

    def check_alarms(self) -> None:
        """Each unfinished job and delivery has one alarm, early enough; nothing else has an
        alarm."""
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
        """The jobs in flight are those with a lease, and those for which a place is briefly
        reserved."""
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
        """Every lease in the ledger was given to a worker that has not settled."""
        for job_id, job in self.seen.jobs.items():
            assert self.live_in_record(job) == self.live(job_id), "a lease that nobody holds"
