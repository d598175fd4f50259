"""The design's invariants hold whatever workers, providers, producers and the clock do.

The machine is in `ledger_machine.py`, its checks are in `ledger_books.py`. To prove that the checks
can fail, the second half breaks the scripts in one place at a time and asserts that the same
machine notices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis
from hypothesis import Phase, settings

from tests.integration.ledger_books import controlled
from tests.integration.ledger_machine import PROFILE, explore

#: Stop at the first failure: the failing example need not be shrunk.
HUNT = settings(PROFILE, max_examples=2000, phases=[Phase.generate], database=None)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of a database of its own."""
    client = redis.Redis.from_url(redis_url, db=1)
    yield client
    client.flushdb()
    client.close()


def test_no_sequence_of_steps_breaks_an_invariant(client: redis.Redis) -> None:
    """Whatever is claimed, lost, late, stale, repeated, paused or refused: all invariants hold."""
    explore(client, controlled(), PROFILE)


@dataclass(frozen=True)
class Mutation:
    """A change that breaks one place in one script."""

    script: str
    """The script's name; `_lib` for the shared functions."""
    was: str
    becomes: str
    seed: int = 0
    """A seed with which Hypothesis finds it within seconds. With others it takes longer."""

    def of(self, sources: dict[str, str]) -> dict[str, str]:
        """The scripts with this change; the script must contain the text exactly once.

        A shared function is changed in each script that uses it, at least in one.
        """
        hit = [self.script]
        if self.script == "_lib":
            shared = {name: sources[name].partition(f"-- {name}: ")[0] for name in sources}
            hit = [name for name in sources if self.was in shared[name]]
            assert hit, f"{self.was!r} in no script"
        for name in hit:
            assert sources[name].count(self.was) == 1, f"{self.was!r} in {name}"
        return sources | {name: sources[name].replace(self.was, self.becomes) for name in hit}


MUTATIONS = {
    "a lease that ran out means queued": Mutation(
        "claim",
        "state = 'unknown', fence = next_fence(), unknowns",
        "state = 'queued', fence = next_fence(), unknowns",
        seed=2,
    ),
    "a second worker gets the lease too": Mutation(
        "claim",
        "if job.lease_until > at then return {'later' .. mine, at, 'leased', job.lease_until} end",
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
        "claim", "redis.call('ZADD', inflight, at + lease, id)", "0"
    ),
    "settled without looking at the fence": Mutation(
        "settle", "fence == job.fence and job.token ~= ''", "job.token ~= ''", seed=1
    ),
    "absence is believed at once": Mutation(
        "settle", "job.claimed_at < job.settle_until", "false", seed=1
    ),
    "absence is believed by the time of the answer": Mutation(
        "settle", "job.claimed_at < job.settle_until", "at < job.settle_until", seed=7
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
        "settle", "if job.settled == settled then", "if false then", seed=1
    ),
    "no alarm after a retry": Mutation(
        "settle",
        "alarm(id, math.min(till, math.max(job.deadline_at, at)))",
        "redis.call('ZREM', KEYS[2], id)",
        seed=1,
    ),
    "the place in flight is kept": Mutation("settle", "  leave(id, job, at, was)\n", ""),
    "an alarm for who is in review": Mutation(
        "settle", "no_alarm(id)\n  redis.call('ZADD'", "redis.call('ZADD'", seed=1
    ),
    "review without an event": Mutation("settle", "  tell(id, at, ARGV, 12, job)\n", "", seed=1),
    "no event": Mutation("_lib", "redis.call('XADD', stream, '*', 'event', event)", ""),
    "the event twice": Mutation(
        "_lib",
        "redis.call('XADD', stream, '*', 'event', event)",
        "for _ = 1, 2 do redis.call('XADD', stream, '*', 'event', event) end",
    ),
    "the payload is kept": Mutation("_lib", "'payload', 'token'", "'token'"),
    "the alarm outlives the job": Mutation("_lib", "no_alarm(id)\n  if was", "if was"),
    "the record stays for ever": Mutation(
        "_lib", "redis.call('PEXPIRE', job_key(id), retention)", ""
    ),
    "who is over still waits": Mutation(
        "_lib",
        "local _, _, waiting = account_keys(job)\n    redis.call('ZREM', waiting, id)",
        "",
        seed=3,
    ),
    "two alarms": Mutation(
        "_lib",
        "local function alarm(member, at) redis.call(",
        "local function alarm(member, at) redis.call('ZADD', ALARMS, 1, member .. '+') redis.call(",
    ),
    "no alarm for a delivery": Mutation(
        "_lib", "alarm(member, woken and at + FIRST_PUSH or at)", ""
    ),
    "no alarm for a new job": Mutation("accept", "alarm(id, at + FIRST_PUSH)", ""),
    "a key is taken twice": Mutation(
        "accept", "\n  return {'conflict' .. mine, state, accepted_at}", "\n", seed=1
    ),
    "an alarm that rang is gone": Mutation(
        "ring",
        "redis.call('ZADD', KEYS[1], at + push_of(wakes), member)",
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
        "cancel", "if job.state == 'cancelled' then", "if false then", seed=2
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
        "delivered", "if not holder and verdict ~= 'arrived' then", "if false then", seed=1
    ),
    "what is redriven is called for at once": Mutation(
        "redrive", "state = 'unknown', ticket", "state = 'queued', ticket", seed=1
    ),
    "what is resolved stays in review": Mutation(
        "resolve", "'resend' then\n  redis.call('ZREM', REVIEWS, id)", "'resend' then", seed=1
    ),
    "an old view of a review decides it": Mutation(
        "resolve",
        "if job.state ~= 'review' or not seen then",
        "if job.state ~= 'review' then",
        seed=1,
    ),
    "what is corrected is corrected again": Mutation(
        "correct", "if corrected then", "if false then", seed=2
    ),
    "what nobody decided is corrected": Mutation(
        "correct", "if decided ~= job.state then", "if false then", seed=1
    ),
    "who asked and was put off still waits": Mutation(
        "_lib", "if was ~= 'calling' then", "if false then", seed=1
    ),
    "the index does not follow": Mutation(
        "_lib", "if job.state ~= was then place(id, job, was, was_due) end", ""
    ),
    "a look-up that finds nobody weighs more than a duplicate": Mutation(
        "settle", "verdict == 'taken' or job.unproved == TAKEN", "verdict == 'taken'", seed=3
    ),
    "a duplicate whose look-up is lost is forgotten": Mutation(
        "settle", "unproved == TAKEN and TAKEN or job.unproved", "job.unproved", seed=1
    ),
    "a refusal by status is not counted": Mutation(
        "settle", "job.refusals + (by_status and 1 or 0)", "job.refusals", seed=1
    ),
    "any refusal is counted": Mutation(
        "settle", "(by_status and 1 or 0)", "(ARGV[8]:find('refused') and 1 or 0)", seed=1
    ),
    "a refused look-up is not counted": Mutation(
        "settle",
        "due_at = at + delay, refusals = refusals,",
        "due_at = at + delay,",
        seed=1,
    ),
    "what may have a customer is abandoned": Mutation(
        "claim", "if job.unproved == 0 then return", "if true then return", seed=3
    ),
    "a person does not end the doubt": Mutation(
        "resolve", "changes.unproved, changes.refusals = 0, 0", "", seed=3
    ),
    "the doubt outlives the job": Mutation(
        "_lib", "'epoch', 'unproved', 'refusals'}", "'epoch'}", seed=1
    ),
    "a change is not written": Mutation(
        "_lib", "if value ~= (job[name] or '') then", "if not job[name] then", seed=1
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_machine_notices_a_broken_script(name: str, client: redis.Redis) -> None:
    """The machine fails on a ledger that breaks an invariant in one place."""
    mutation = MUTATIONS[name]
    sources = mutation.of(controlled())
    with pytest.raises((AssertionError, redis.ResponseError)):
        explore(client, sources, HUNT, mutation.seed)
