"""The Lua scripts do what the model says: its traces are acted out on them, step by step."""

import json
import random
from collections.abc import Iterator, Mapping

import pytest
import redis

from tests.model.conftest import Searched, kind_of
from tests.model.explore import Trace, explore
from tests.model.model import DEFAULT, Bounds, Rules, World, start, steps
from tests.model.replay import STREAM, DivergenceError, Replay, load
from worker.cli import stack
from worker.ledger.client import scripts

#: More of everything than can be explored whole.
WILD = Bounds(workers=3, attempts=3, crashes=4, pauses=3, hands=2)
#: The scripts do as the model does in a world worse than assumed, too.
WORSE = Rules(requests_end=False)
WALKS, LENGTH = 100, 60

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
    "an end keeps the payload": (
        "cancel",
        "\n}))}",
        "\n})), redis.call('HSET', KEYS[1], 'payload', 'kept')}",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator["redis.Redis"]:
    """A server of this folder's own: the clock of its scripts is a key."""
    valkey = stack.start_valkey(None, appendonly="yes")
    client = redis.Redis.from_url(valkey.connection_url)
    yield client
    client.close()
    valkey.stop()


@pytest.fixture(scope="module")
def digests(server: "redis.Redis") -> Mapping[str, str]:
    """The real scripts, by the test's clock."""
    return load(server)


def walk(seed: int, bounds: Bounds = WILD, rules: Rules = WORSE) -> Trace:
    """A random trace. Cancelling is held back, or few walks would get far."""
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


def wander(server: "redis.Redis", digests: Mapping[str, str]) -> None:
    """Act out all walks."""
    for seed in range(WALKS):
        Replay(server, digests, walk(seed), WILD).run()


def spanning(searched: Searched) -> Iterator[Trace]:
    """Traces that hold every kind of step at least once, the longest first."""
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


@pytest.mark.parametrize("bounds", ["two crashes and a pause", "operators lend a hand"])
def test_the_scripts_take_every_kind_of_step_as_the_model_does(
    server: "redis.Redis", digests: Mapping[str, str], searched: dict[str, Searched], bounds: str
) -> None:
    """Whatever a record looks like, and whoever does what to it: model and scripts agree."""
    traces = list(spanning(searched[bounds]))
    assert len(traces) > 200
    for trace in traces:
        Replay(server, digests, trace, DEFAULT[bounds]).run()


def test_the_scripts_follow_the_model_wherever_it_wanders(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """Long random lives, with more workers and faults than can be explored whole."""
    wander(server, digests)


@pytest.mark.parametrize("what", ONE_LESS)
def test_a_script_that_does_otherwise_is_found_out(server: "redis.Redis", what: str) -> None:
    """Model and scripts are held together firmly enough to notice one changed line."""
    name, line, instead = ONE_LESS[what]
    sources = dict(scripts())
    assert sources[name].count(line) == 1, f"{name}.lua no longer holds: {line}"
    sources[name] = sources[name].replace(line, instead)
    changed = load(server, sources)
    with pytest.raises(DivergenceError, match="accept"):
        wander(server, changed)


def test_a_review_and_the_late_answer_after_it_are_two_events(
    server: "redis.Redis", digests: Mapping[str, str]
) -> None:
    """Who drops events by their id must not take the outcome for the review it has seen."""
    found = explore(Rules(events_numbered_by_ledger=False))
    Replay(server, digests, found.trace, found.bounds).run()
    ids = [json.loads(fields[b"event"])["id"] for _, fields in server.xrange(STREAM)]
    assert len(set(ids)) == len(ids) == 2
