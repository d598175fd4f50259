"""Several commands in one call have the effect of the same commands one after another."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from regworker.domain.job import Job
from regworker.ledger import calls
from regworker.ledger.admin import Limits, announce, hold
from regworker.ledger.calls import call
from regworker.ledger.records import Claim
from regworker.ledger.transitions import (
    PREFIX,
    WAKING,
    ClaimRules,
    Command,
    Decision,
    Publication,
    SettleRules,
    accept,
    claim,
    job_key,
    ring,
    settle,
)
from tests.integration.ledger_books import CLOCK, controlled

#: Accounts: without limits, with one place, and with a pace.
ACCOUNTS = [
    Limits("acme", "free", 0, 0, 0),
    Limits("acme", "narrow", 0, 0, 2),
    Limits("acme", "slow", 40, 80, 1000),
]
LANES = ("live", "bulk")
NAMES = [one.account for one in ACCOUNTS]
CLAIM = ClaimRules("w", lease=6, settle_delay=5, max_attempts=4, probe=20)
RULES = SettleRules(settle_delay=5, breaker_threshold=2, breaker_pause=3, retention=1000)
JOBS = [
    Job(
        provider="acme",
        account=NAMES[number % len(NAMES)],
        idempotency_key=str(number),
        registration={},
        lane="bulk" if number % 4 == 0 else "live",
        reply_to=("results", "crm") if number % 5 == 0 else ("results",),
    )
    for number in range(12)
]
START = 1_700_000_000_000

#: What happens: a clock that goes on, or several commands at a time.
TIMES = st.integers(0, 9000).map(lambda late: ("later", late))
CHOSEN = st.lists(st.integers(0, len(JOBS) - 1), min_size=1, max_size=len(JOBS))
VERDICTS = ["registered", "rejected", "retry", "unknown", "absent", "unresolvable"]
ENDS = st.tuples(
    # Which of the last claims.
    st.integers(1, len(JOBS)),
    st.sampled_from(["registered", *VERDICTS]),
    st.sampled_from(["ok", "ok", "fault", "refused", ""]),
)
HAPPENS = st.one_of(
    TIMES,
    st.tuples(st.just("accept"), CHOSEN),
    st.tuples(st.just("claim"), CHOSEN),
    st.tuples(st.just("claim"), CHOSEN),
    st.tuples(st.just("settle"), st.lists(ENDS, min_size=1, max_size=len(JOBS))),
    st.tuples(st.just("hold"), st.sampled_from(NAMES)),
    st.tuples(st.just("ring"), st.just(0)),
)


class Pair:
    """Two ledgers with the same history: one gets commands one by one, the other in batches."""

    def __init__(self, url: str) -> None:
        self.each, self.batched = (redis.Redis.from_url(url, db=db) for db in (0, 1))
        self.now = START
        self.claims: list[Claim] = []
        self.paused: set[str] = set()
        self.flush()

    def flush(self) -> None:
        """Empty both."""
        for one in (self.each, self.batched):
            one.flushdb()
            one.set(CLOCK, self.now)
            one.hset(WAKING, mapping={lane: f"q:{lane}\n{lane} $id$ $tag$" for lane in LANES})
        self.both(announce(ACCOUNTS, ["results", "crm"]))

    def both(self, command: Command[Any]) -> Any:
        """Carry out one command on both."""
        [first], [second] = self._call(self.each, [command]), self._call(self.batched, [command])
        assert first == second
        return command.read(first)

    def together(self, commands: list[Command[Any]]) -> list[Any]:
        """Carry out commands in both ways; return their answers, or errors."""
        one_by_one = [found for one in commands for found in self._call(self.each, [one])]
        in_one = self._call(self.batched, commands)
        assert list(map(comparable, in_one)) == list(map(comparable, one_by_one))
        assert content(self.batched) == content(self.each)
        return [
            found if isinstance(found, Exception) else command.read(found)
            for command, found in zip(commands, one_by_one, strict=True)
        ]

    def later(self, late: int) -> None:
        """Let time pass."""
        self.now += late
        for one in (self.each, self.batched):
            one.set(CLOCK, self.now)

    def close(self) -> None:
        """Close both."""
        self.each.close()
        self.batched.close()

    def _call(self, server: redis.Redis, commands: list[Command[Any]]) -> list[Any]:
        wire: Any = server.connection_pool.get_connection()
        try:
            wire.send_command(*call(commands))
            try:
                found = wire.read_response()
            except redis.ResponseError as error:
                return [error] * len(commands)
        finally:
            server.connection_pool.release(wire)
        return [found] if len(commands) == 1 else found


def comparable(answer: Any) -> Any:
    """An answer, or the text of an error without the line of the script."""
    if not isinstance(answer, Exception):
        return answer
    return type(answer), str(answer).partition(" script:")[0]


def content(server: redis.Redis) -> dict[bytes, Any]:
    """Everything that a ledger holds; the entries of streams without their ids, which are times."""
    found: dict[bytes, Any] = {}
    readers: dict[bytes, Any] = {
        b"string": server.get,
        b"hash": server.hgetall,
        b"zset": lambda key: server.zrange(key, 0, -1, withscores=True),
        b"set": server.smembers,
        b"list": lambda key: server.lrange(key, 0, -1),
        b"stream": lambda key: [fields for _, fields in server.xrange(key)],
    }
    for key in server.scan_iter():
        found[key] = (server.ttl(key) > 500, readers[server.type(key)](key))
    return found


@pytest.fixture(scope="module")
def own_scripts() -> Iterator[None]:
    """The scripts with the test's clock."""
    with pytest.MonkeyPatch.context() as patch:
        sources = controlled()
        patch.setattr(calls, "scripts", lambda: sources)
        calls.digest.cache_clear()
        yield
    calls.digest.cache_clear()


@pytest.fixture(scope="module")
def pair(redis_url: str, own_scripts: None) -> Iterator[Pair]:
    """Two ledgers."""
    with closing(redis.Redis.from_url(redis_url)) as server:
        for source in calls.scripts().values():
            server.script_load(source)
    made = Pair(redis_url)
    yield made
    made.close()


def publication(held: Claim, verdict: str) -> Publication | None:
    """The event of a final state."""
    if verdict not in {"registered", "rejected", "unresolvable"}:
        return None
    kind = "review" if verdict == "unresolvable" else verdict
    name = f"{held.id}.{kind}.{held.record.fence}"
    return Publication(name, kind, b'{"a": 1}', "sealed", "kept", tuple(held.record.reply_to))


def happen(pair: Pair, what: str, how: Any) -> None:
    """Carry out one step on both."""
    match what:
        case "later":
            pair.later(how)
        case "accept":
            pair.together([accept(JOBS[one], f"p{one}", ["k:" + "0" * 64], 30) for one in how])
        case "claim":
            asked = [claim(JOBS[one].id, CLAIM, 0.5) for one in how]
            pair.claims += [one for one in pair.together(asked) if isinstance(one, Claim)]
        case "settle":
            if not pair.claims:
                return
            chosen = []
            for number, verdict, health in how:
                held = pair.claims[-1 - number % len(pair.claims)]
                decision = Decision(verdict, "why", 1.5, health=health)
                chosen.append(settle(held, decision, RULES, publication(held, verdict)))
            pair.together(chosen)
        case "hold":
            action = "resume" if how in pair.paused else "pause"
            pair.paused ^= {how}
            pair.both(hold(("acme", how), action, "a test"))
        case _:
            pair.both(ring(20))
            assert content(pair.batched) == content(pair.each)


FREE, NARROW = [0, 3, 6, 9], [1, 4, 7, 10]
OK, FAULT = ("registered", "ok"), ("retry", "fault")


@example([("claim", FREE), ("settle", [(1, *OK), (2, *FAULT), (3, *OK)])]).via("a fault between")
@example(
    [
        *(("claim", FREE[:2]), ("settle", [(1, *FAULT), (2, *FAULT)])),
        *(("later", 4000), ("claim", FREE), ("later", 30_000), ("claim", FREE)),
    ]
).via("one probe for all")
@example(
    [
        *(("claim", NARROW), ("settle", [(1, *OK), (2, *OK)]), ("claim", NARROW)),
        *(("later", 7000), ("claim", NARROW), ("settle", [(1, *OK)]), ("ring", 0)),
    ]
).via("places are passed on")
@settings(max_examples=150, deadline=None)
@given(st.lists(HAPPENS, min_size=1, max_size=30))
def test_a_batch_does_what_its_commands_do_one_by_one(
    pair: Pair, history: list[tuple[str, Any]]
) -> None:
    """Whatever happened before: same answers, same content."""
    pair.now, pair.claims, pair.paused = START, [], set()
    pair.flush()
    happen(pair, "accept", list(range(len(JOBS))))
    for what, how in history:
        happen(pair, what, how)


def test_a_job_that_fails_costs_the_others_nothing(pair: Pair) -> None:
    """Its own caller gets the error, and the ledger holds what it would hold otherwise."""
    pair.now, pair.claims = START, []
    pair.flush()
    happen(pair, "accept", list(range(len(JOBS))))
    for one in (pair.each, pair.batched):
        one.set(job_key(JOBS[1].id), "junk")
        one.set(f"{PREFIX}inflight:acme:slow", "junk")
    answers = pair.together([claim(one.id, CLAIM, 0.5) for one in JOBS])
    faults = [one for one in answers if isinstance(one, redis.ResponseError)]
    assert all("WRONGTYPE" in str(one) for one in faults)
    assert len(faults) == 5, "one record, and the four jobs of an account"
    assert sum(isinstance(one, Claim) for one in answers) == 6


def junk_time(server: redis.Redis) -> None:
    """A record whose time is no number."""
    server.hset(job_key(JOBS[3].id), "accepted_at", "nan")


def junk_index(name: str) -> Callable[[redis.Redis], None]:
    """An index of the wrong type."""

    def spoil(server: redis.Redis) -> None:
        server.delete(f"{PREFIX}{name}")
        server.set(f"{PREFIX}{name}", "junk")

    return spoil


def junk_counter(server: redis.Redis) -> None:
    """Counters that are no numbers."""
    names = ("again", "review", "late_facts", "accepted", "registered:acme:free")
    server.hset(f"{PREFIX}stats", mapping=dict.fromkeys(names, "junk"))


JUNK: dict[str, Callable[[redis.Redis], None]] = {
    "time": junk_time,
    "reviews": junk_index("reviews"),
    "counters": junk_counter,
    "stream": junk_index("results"),
}


@pytest.mark.parametrize("what", JUNK)
@pytest.mark.parametrize("when", ["claim", "settle"])
def test_junk_costs_no_more_in_a_batch(pair: Pair, what: str, when: str) -> None:
    """Whatever is spoiled: each delivery keeps its alarm, and each job what it has alone."""
    pair.now, pair.claims, pair.paused = START, [], set()
    pair.flush()
    happen(pair, "accept", list(range(len(JOBS))))
    if when == "settle":
        happen(pair, "claim", FREE)
    for server in (pair.each, pair.batched):
        JUNK[what](server)
    happen(pair, "claim", FREE)
    ends = ["registered", "unresolvable", "registered", "rejected"]
    settles = [(number, verdict, "ok") for number, verdict in enumerate(ends, 1)]
    happen(pair, "settle", settles)


@pytest.mark.parametrize("index", ["alarms", "open"])
def test_a_batch_that_cannot_write_its_indices_writes_nothing(pair: Pair, index: str) -> None:
    """They are written last: a job must not be ended, or a delivery made, without its alarm."""
    pair.now, pair.claims, pair.paused = START, [], set()
    pair.flush()
    happen(pair, "accept", list(range(len(JOBS))))
    happen(pair, "claim", FREE)
    server, ends = pair.batched, Decision("registered", health="ok")
    junk_index(index)(server)
    before = content(server)
    for commands in (
        [settle(one, ends, RULES, publication(one, "registered")) for one in pair.claims],
        [claim(JOBS[one].id, CLAIM, 0.5) for one in NARROW],
    ):
        answers = pair._call(server, commands)
        assert {type(one) for one in answers} == {redis.ResponseError}
        assert content(server) == before
