"""The Lua scripts do what the model does: its traces run on them, step by step."""

import json
import random
from collections.abc import Iterator, Mapping

import pytest
import redis

from regworker.ledger.calls import scripts
from tests.model.conftest import Searched, kind_of
from tests.model.explore import Trace, explore
from tests.model.model import FORGETFUL, Bounds, Rules, World, start, steps
from tests.model.replay import STREAM, DivergenceError, Replay, load
from worker.cli.local import stack

#: The first test that needs a search makes it, which takes minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

#: More workers and faults than can be explored completely.
WILD = Bounds(workers=3, attempts=3, crashes=4, pauses=3, hands=2)
#: The scripts also do as the model does in a world with more faults than assumed.
WORSE = Rules(requests_end=False)
#: Also with a ledger that goes back to an earlier state. No redrives: the doubt's margin has no end
#: here, so the scripts would doubt a job's second life, too.
FORGETFUL_WILD = WILD._replace(failovers=4, hands=0)
#: Also if only the login can be asked. With one worker: more would seldom get as far.
LOGIN_ONLY = Bounds(workers=1, attempts=2, crashes=3, hands=3, login_only=True)
WALKS, LENGTH = 100, 60

#: Bounds whose worlds have every kind of step.
ENOUGH = [
    "two crashes and a pause",
    "operators lend a hand",
    "only the login can be asked",
    *FORGETFUL,
]

ONE_LESS = {
    "a settle looks at no fence": ("settle", "fence == job.fence and ", ""),
    "absence is believed at once": ("settle", "job.claimed_at < job.settle_until", "false"),
    "a retry has no alarm": (
        "settle",
        "alarm(id, math.min(till, math.max(job.deadline_at, at)))",
        "redis.call('ZREM', KEYS[2], id)",
    ),
    "a lost lease is queued": (
        "claim",
        "state = 'unknown', fence",
        "state = 'queued', fence",
    ),
    "the settle delay starts when the lost lease is seen": (
        "claim",
        "settle_until = job.lease_until + settle_ms",
        "settle_until = at + settle_ms",
    ),
    "a dead lease can be renewed": ("renew", "tonumber(held[2] or '0') > at", "true"),
    "what may be forgotten is sent again": (
        "claim",
        "if doubted and (",
        "if false and (",
    ),
    "a claim has the fence of one that is forgotten": (
        "claim",
        "math.max(job.fence + 1, doubted_at)",
        "job.fence + 1",
    ),
    "a forgotten claim is given no time": (
        "claim",
        "doubted_at + lease + settle_ms",
        "doubted_at",
    ),
    "what only the login denied is abandoned": (
        "claim",
        "if job.unproved == 0 then",
        "if true then",
    ),
    "a retry drops the doubt of what only the login denied": (
        "settle",
        "if verdict == 'retry' then unproved = job.unproved end",
        "",
    ),
    "an end keeps the payload": (
        "cancel",
        "\n})\n",
        "\n})\nredis.call('HSET', KEYS[1], 'payload', 'kept')\n",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator["redis.Redis"]:
    """A server with its own folder; the clock of its scripts is a key."""
    valkey = stack.start_valkey(None, appendonly="yes")
    client = redis.Redis.from_url(valkey.connection_url)
    yield client
    client.close()
    valkey.stop()


@pytest.fixture(scope="module")
def digests(server: "redis.Redis") -> Mapping[str, str]:
    """The real scripts, with the test's clock."""
    return load(server)


def walk(seed: int, bounds: Bounds = WILD, rules: Rules = WORSE) -> Trace:
    """A random trace. Cancelling is rare, because otherwise few traces would get far."""
    chance = random.Random(seed)
    world, trace = start(bounds), []
    for _ in range(LENGTH):
        nexts = [
            (step, after)
            for step, after in steps(world, rules, bounds)
            if step.act != "cancel" or chance.random() < 0.05
        ]
        step, world = chance.choice(nexts)
        trace.append((step, world))
    return trace


def wander(server: "redis.Redis", digests: Mapping[str, str], bounds: Bounds = WILD) -> None:
    """Run all random traces."""
    for seed in range(WALKS):
        Replay(server, digests, walk(seed, bounds), bounds).run()


def spanning(searched: Searched) -> Iterator[Trace]:
    """Traces that contain every kind of step at least once, the longest first."""
    covered = set()
    for kind, (number, step, after) in reversed(searched.kinds.ways.items()):
        if kind in covered:
            continue
        trace = [*searched.found.way_to(number), (step, after)]
        before: World = start(searched.found.bounds)
        for taken, world in trace:
            covered.add(kind_of(before, taken))
            before = world
        yield trace


@pytest.mark.parametrize("bounds", ENOUGH)
def test_the_scripts_take_every_kind_of_step_as_the_model_does(
    server: "redis.Redis", digests: Mapping[str, str], searched: dict[str, Searched], bounds: str
) -> None:
    """For every kind of step in every state of a record, model and scripts agree."""
    traces = list(spanning(searched[bounds]))
    assert len(traces) > 200
    for trace in traces:
        Replay(server, digests, trace, searched[bounds].found.bounds).run()


def test_the_scripts_follow_the_model_wherever_it_wanders(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """Long random traces, with more workers and faults than can be explored completely."""
    wander(server, digests)


def test_the_scripts_follow_the_model_where_only_the_login_can_be_asked(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """Model and scripts agree on what a refused login does not prove."""
    wander(server, digests, LOGIN_ONLY)


def test_the_scripts_follow_the_model_on_a_ledger_that_forgets(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """Model and scripts agree when the ledger loses a claim in a failover."""
    wander(server, digests, FORGETFUL_WILD)


@pytest.mark.parametrize("what", ONE_LESS)
def test_a_script_that_does_otherwise_is_found_out(server: "redis.Redis", what: str) -> None:
    """One changed line in a script makes the comparison fail."""
    name, line, instead = ONE_LESS[what]
    sources = dict(scripts())
    assert sources[name].count(line) == 1, f"{name}.lua no longer holds: {line}"
    sources[name] = sources[name].replace(line, instead)
    changed = load(server, sources)
    bounds = FORGETFUL_WILD if "forg" in what else LOGIN_ONLY if "login" in what else WILD
    with pytest.raises(DivergenceError, match="accept"):
        wander(server, changed, bounds)


def test_a_review_and_the_late_answer_after_it_are_two_events(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """A consumer that drops repeated event ids must not drop the outcome that follows a review."""
    found = explore(Rules(events_numbered_by_ledger=False))
    Replay(server, digests, found.trace, found.bounds).run()
    ids = [json.loads(fields[b"event"])["id"] for _, fields in server.xrange(STREAM)]
    assert len(set(ids)) == len(ids) == 2
