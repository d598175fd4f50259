"""Deliveries: at least once, each endpoint independent; given up in time and always visible."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr

from regworker.ledger import AsyncLedger, SyncLedger
from regworker.ledger.endpoints import bury, disable, enable, replay
from regworker.ledger.job_data import forget
from regworker.ledger.records import Delivery, Idle, Tried, Wake
from regworker.ledger.transitions import (
    ALARMS,
    DEAD,
    STATS,
    Publication,
    deliver,
    delivered,
    delivery_key,
    look,
    ring,
)
from regworker.sealing.keyring import Keyring
from regworker.settings import WebhookEndpoint
from sandbox.server import ReceiverServer
from tests.integration.installation import PATIENCE, SECRET
from tests.integration.jobs import ACTOR
from tests.integration.outbox import (
    DAY,
    KEYRING,
    alarm,
    crm,
    due,
    failing,
    open_shop,
    published,
    record,
    settled,
    tried,
    woken,
)
from worker.cli.local import stack
from worker.execution.delivery import (
    LONGEST_LIFE,
    OWN_FAULT_DELAY,
    SCHEDULE,
    Deliveries,
    DeliveryRules,
)
from worker.publishers.base import Delivered, Gone, Later, Misplaced, NotTried
from worker.publishers.webhook import WebhookPublisher

RULES = DeliveryRules("/test", {"crm": 5 * DAY})
EVENT = Publication("crm.1.disabled", "x", b"{}", "sealed", "kept", ("results",))


@pytest.fixture
def shop(ledger: SyncLedger) -> SyncLedger:
    """A ledger to which a worker has announced two endpoints, each with two places."""
    return open_shop(ledger)


# ── a place among the endpoint's tries ────────────────────────────────────────────────────────


def test_a_claim_whose_answer_was_lost_is_the_same_claim(shop: SyncLedger) -> None:
    """The repeat does not wait for its own lease to expire; another worker still has to wait."""
    [member] = due(shop, "a")
    command = deliver(member, 30)
    first, again = shop(command), shop(command)
    assert isinstance(first, Delivery)
    assert isinstance(again, Delivery)
    assert (first.fence, crm(shop).trying) == (again.fence, 1)
    assert isinstance(shop(deliver(member, 30)), Idle)


def test_an_endpoint_gets_no_more_at_a_time_than_it_may(shop: SyncLedger) -> None:
    """A delivery without a free place is queued and is not retried for a minute."""
    a, b, c = due(shop, "a", "b", "c")
    tried(shop, a)
    tried(shop, b)
    waits = shop(deliver(c, 30))
    assert isinstance(waits, Idle)
    assert waits.state == "full"
    assert (crm(shop).trying, crm(shop).in_line) == (2, 1)
    assert alarm(shop, c) > 60


def test_one_endpoints_places_are_not_anothers(shop: SyncLedger) -> None:
    """A full endpoint does not delay the others."""
    for member in due(shop, "a", "b"):
        tried(shop, member)
    [other] = due(shop, "c", to="erp")
    tried(shop, other)


@pytest.mark.parametrize("verdict", ["arrived", "later", "dead"])
def test_a_place_that_gets_free_is_passed_on_the_oldest_first(
    shop: SyncLedger, verdict: str
) -> None:
    """Whatever the result of the try; the next delivery is woken at once and has an alarm."""
    a, b, c, d = due(shop, "a", "b", "c", "d")
    first = tried(shop, a)
    tried(shop, b)
    for member in (d, c):
        shop(deliver(member, 30))
    settled(shop, first, verdict, 300)
    assert woken(shop) == [Wake(c, "delivery")]
    assert alarm(shop, c) <= 10
    tried(shop, c)
    assert isinstance(shop(deliver(d, 30)), Idle)


def test_a_place_is_passed_on_to_a_delivery_that_exists(shop: SyncLedger) -> None:
    """Of those that wait, some may be gone."""
    a, b, c, d = due(shop, "a", "b", "c", "d")
    first = tried(shop, a)
    tried(shop, b)
    for member in (c, d):
        shop(deliver(member, 30))
    shop.redis.delete(delivery_key(c))
    settled(shop, first, "arrived")
    assert woken(shop) == [Wake(d, "delivery")]


def test_an_erased_job_passes_its_places_on_to_others(shop: SyncLedger) -> None:
    """And not to another delivery of the same job, which is erased as well."""
    a, b, c, d = due(shop, "a", "b", "c", "d")
    for member in (a, b):
        tried(shop, member)
    for member in (c, d):
        shop(deliver(member, 30))
    job_id = a.split(":")[1].split(".")[0]
    found = shop(look(job_id))
    woken(shop)
    assert shop(forget(job_id, found, ACTOR, [], [a, c])) is not None
    assert woken(shop) == [Wake(d, "delivery")]


def test_a_settle_whose_answer_was_lost_passes_one_place_on(shop: SyncLedger) -> None:
    """And it counts one failure."""
    a, b, c, d = due(shop, "a", "b", "c", "d")
    first = tried(shop, a)
    for member in (b, c, d):
        shop(deliver(member, 30))
    command = delivered(first, "later", "HTTP 503", 300)
    shop(command)
    shop(command)
    assert (crm(shop).in_line, crm(shop).failures) == (1, 1)


def test_a_dead_workers_places_are_given_out_again(shop: SyncLedger) -> None:
    """Both places are given out, though only one delivery asked."""
    a, b, c, d = due(shop, "a", "b", "c", "d")
    tried(shop, a, lease=0.001)
    tried(shop, b, lease=0.001)
    stack.until(lambda: crm(shop).trying == 0, "the leases run out", PATIENCE)
    tried(shop, c)
    shop.redis.zadd("{reg}:line:crm", {d: 1})
    tried(shop, a)
    assert isinstance(shop(deliver(b, 30)), Idle)


def test_who_has_a_place_stands_in_line_no_more(shop: SyncLedger) -> None:
    """Also if no place was passed on, but a lease expired."""
    a, b, c = due(shop, "a", "b", "c")
    tried(shop, a, lease=0.5)
    tried(shop, b)
    assert isinstance(shop(deliver(c, 30)), Idle)
    stack.until(lambda: crm(shop).trying == 1, "the lease runs out", PATIENCE)
    tried(shop, c)
    assert crm(shop).in_line == 0


# ── an endpoint that fails ────────────────────────────────────────────────────────────────────


def test_failures_are_counted_from_the_first_since_a_success(shop: SyncLedger) -> None:
    """One success of any delivery resets the count."""
    a, b = due(shop, "a", "b")
    assert settled(shop, tried(shop, a), "later").failing < 60
    failing(shop, days=3)
    assert settled(shop, tried(shop, a), "later").failing >= 3 * DAY
    assert settled(shop, tried(shop, b), "arrived").failing == 0
    assert (crm(shop).failing_since, crm(shop).failures) == (0, 0)
    assert settled(shop, tried(shop, a), "later").failing < 60


def test_a_failure_after_days_of_silence_says_nothing_of_these(shop: SyncLedger) -> None:
    """Nothing was sent in between: the endpoint may have worked."""
    [a] = due(shop, "a")
    settled(shop, tried(shop, a), "later")
    failing(shop, days=20, last=3)
    assert settled(shop, tried(shop, a), "later").failing < 60


def test_a_fault_of_ours_is_not_the_endpoints(shop: SyncLedger) -> None:
    """A worker that lacks a key does not count as a failure of the endpoint."""
    [a] = due(shop, "a")
    answer = shop(delivered(tried(shop, a), "later", "not configured", 0, blame=False))
    assert answer == Tried("pending", 0)
    assert crm(shop).failing_since == 0
    settled(shop, tried(shop, a), "later")
    failing(shop, days=50)
    answer = shop(delivered(tried(shop, a), "later", "not configured", 0, blame=False))
    assert answer == Tried("pending", 0), "it says nothing of these days"
    assert (crm(shop).failures, record(shop, a)["tries"]) == (1, "1")


class Endpoints:
    """Tries deliveries as a worker does, with a receiver of webhooks."""

    def __init__(self, shop: SyncLedger, url: str, server: ReceiverServer) -> None:
        self.shop, self.url, self.receiver = shop, url, server.receiver
        self._hooks = f"{server.url}/hooks"

    def __call__(self, *members: str, configured: bool = True, keyring: Keyring = KEYRING) -> Any:
        """Try deliveries one after another; return the results."""
        return asyncio.run(self._try(members, configured, keyring))

    async def _try(self, members: tuple[str, ...], configured: bool, keyring: Keyring) -> list[str]:
        ledger = AsyncLedger(self.url)
        publishers = {
            name: WebhookPublisher(
                WebhookEndpoint(
                    kind="webhook",
                    url=f"{self._hooks}/{name}",
                    secrets=[SecretStr(SECRET)],
                    allow_http=True,
                    allow_private=True,
                )
            )
            for name in (("crm", "erp") if configured else ())
        }
        deliveries = Deliveries(ledger, keyring, publishers, RULES)
        try:
            return [await deliveries(member) for member in members]
        finally:
            for publisher in publishers.values():
                await publisher.aclose()
            await ledger.aclose()

    def answer(self, *script: int) -> None:
        """Set the receiver's next answer."""
        self.receiver.behave({"script": [{"status": one} for one in script]})


@pytest.fixture(scope="module")
def receiver() -> Iterator[ReceiverServer]:
    """A receiver of webhooks for this file."""
    with ReceiverServer([SECRET]) as server:
        yield server


@pytest.fixture
def endpoints(shop: SyncLedger, redis_url: str, receiver: ReceiverServer) -> Endpoints:
    """The receiver in its initial state."""
    receiver.receiver.reset()
    return Endpoints(shop, redis_url, receiver)


def test_410_disables_an_endpoint(endpoints: Endpoints) -> None:
    """Its event is published, and its pending deliveries are dead with the reason, without a
    request."""
    shop = endpoints.shop
    a, b, c = due(shop, "a", "b", "c")
    [other] = due(shop, "d", to="erp")
    endpoints.answer(410)
    assert endpoints(a) == ["dead: HTTP 410"]
    for member in (b, c):
        assert record(shop, member)["state"] == "dead"
        assert record(shop, member)["why"] == "the endpoint is disabled: HTTP 410"
    [event] = published(shop)
    assert (event.type, event.subject, event.id) == ("endpoint.disabled", "crm", "crm.1.disabled")
    assert event.data.model_dump(exclude={"since"}) == {
        "endpoint": "crm",
        "reason": "HTTP 410",
        "dead": 3,
    }
    [late] = due(shop, "e")
    assert endpoints(late, other) == [
        "dead: the endpoint is disabled: HTTP 410",
        "delivered: HTTP 204",
    ]
    assert [one.name for one in endpoints.receiver.log] == ["crm", "erp"]
    assert shop.redis.zcard(DEAD) == 4
    assert shop.redis.zcard(ALARMS) == 0


def test_days_of_nothing_but_failure_disable_an_endpoint(endpoints: Endpoints) -> None:
    """Counted from the first failure since a success; not a moment earlier."""
    shop = endpoints.shop
    a, b = due(shop, "a", "b")
    endpoints.answer(503, 503)
    endpoints(a)
    failing(shop, days=4.9)
    shop.redis.hset(delivery_key(a), "due_at", 0)
    assert endpoints(a) == ["pending: HTTP 503"]
    assert not crm(shop).disabled
    failing(shop, days=5)
    endpoints.answer(500)
    endpoints(b)
    assert crm(shop).disabled
    assert crm(shop).why == "all deliveries have failed for 5.0 days; last: HTTP 500"
    [event] = published(shop)
    assert event.model_dump()["data"]["dead"] == 2
    assert datetime.now(UTC) - event.model_dump()["data"]["since"] >= timedelta(days=5)
    assert {record(shop, one)["state"] for one in (a, b)} == {"dead"}


def test_a_success_that_comes_meanwhile_keeps_an_endpoint_enabled(shop: SyncLedger) -> None:
    """A worker that saw only failures checks again before it disables the endpoint."""
    a, b = due(shop, "a", "b")
    settled(shop, tried(shop, a), "later", 300)
    seen = crm(shop)
    settled(shop, tried(shop, b), "arrived")
    assert not shop(disable(seen, "why", EVENT, only_if_failing=True))
    assert not crm(shop).disabled
    assert shop.redis.xlen("{reg}:results") == 0


def test_a_worker_that_lacks_something_tries_later(endpoints: Endpoints) -> None:
    """The failure is not the endpoint's, and nothing is sent."""
    a, b = due(endpoints.shop, "a", "b")
    [came] = endpoints(a, configured=False)
    assert came == "pending: endpoint crm is not configured at this worker"
    [came] = endpoints(b, keyring=Keyring.parse(Keyring.new("another")))
    assert "kid 'test'" in came
    assert crm(endpoints.shop).failing_since == 0
    assert endpoints.receiver.log == []


@pytest.mark.parametrize("came", [NotTried("fault in the worker"), Misplaced("not its event")])
def test_a_try_that_was_not_made_disables_no_endpoint(
    shop: SyncLedger, redis_url: str, came: Delivered
) -> None:
    """Even if all tries that were made have failed for weeks."""
    a, b = due(shop, "a", "b")
    settled(shop, tried(shop, b), "later", 300)
    failing(shop, days=50)
    asyncio.run(_once(redis_url, a, came))
    assert not crm(shop).disabled
    assert record(shop, b)["state"] == "pending"
    shop.redis.hset(delivery_key(b), "due_at", 0)
    assert asyncio.run(_once(redis_url, b, Later("HTTP 503"))) == "pending: HTTP 503"
    assert crm(shop).disabled, "a try that was made does"


def test_an_endpoint_is_disabled_once_and_told_of_once(shop: SyncLedger) -> None:
    """Also if the command is repeated after a lost answer, or two workers send it."""
    seen = crm(shop)
    one = disable(seen, "HTTP 410", EVENT, only_if_failing=False)
    another = disable(seen, "HTTP 410", EVENT, only_if_failing=False)
    assert [shop(command) for command in (one, one, another)] == [True] * 3
    assert shop.redis.xlen("{reg}:results") == 1
    assert shop.redis.hget(STATS, "endpoints_disabled") == b"1"
    shop(enable("crm"))
    assert not shop(one), "who saw it before it was enabled knows nothing"
    assert not crm(shop).disabled


def test_an_old_410_does_not_disable_an_endpoint_that_was_enabled_since(
    shop: SyncLedger, redis_url: str
) -> None:
    """Its request was sent before the receiver was repaired; the delivery is tried again."""
    a, b = due(shop, "a", "b")

    class Repaired(Says):
        async def publish(self, *args: Any, **more: Any) -> Delivered:
            """Meanwhile another is refused, and an operator repairs the receiver."""
            shop(disable(crm(shop), "HTTP 410", EVENT, only_if_failing=False))
            shop(enable("crm"))
            return await super().publish(*args, **more)

    async def work() -> str:
        ledger = AsyncLedger(redis_url)
        publisher = Repaired(Gone("HTTP 410"))
        said = await Deliveries(ledger, KEYRING, {"crm": publisher}, RULES)(a)
        await ledger.aclose()
        return said

    assert asyncio.run(work()) == "pending: HTTP 410"
    assert not crm(shop).disabled
    # A worker whose first answer was lost asks for the same try again.
    shop(disable(crm(shop), "HTTP 410", EVENT, only_if_failing=False))
    shop(enable("crm"))
    again = deliver(b, 30)
    first, second = shop(again), shop(again)
    assert isinstance(first, Delivery)
    assert isinstance(second, Delivery)
    assert first.disables == second.disables == 2
    assert record(shop, b)["state"] == "pending"
    shop.redis.hset(delivery_key(a), "due_at", 0)
    assert asyncio.run(_once(redis_url, a, Gone("HTTP 410"))).startswith("dead"), "a new one does"
    assert crm(shop).disabled


def test_what_is_being_tried_when_its_endpoint_is_disabled_settles_itself(
    shop: SyncLedger,
) -> None:
    """It may still arrive; if it fails, it is not retried."""
    a, b, c = due(shop, "a", "b", "c")
    arrives, fails = tried(shop, a), tried(shop, b)
    shop(disable(crm(shop), "HTTP 410", EVENT, only_if_failing=False))
    assert shop(bury("crm", 100)) == 1
    assert shop(bury("crm", 100)) == 0
    assert record(shop, c)["state"] == "dead"
    assert settled(shop, arrives, "arrived").state == "delivered"
    assert settled(shop, fails, "later", 300).state == "dead"
    assert shop.redis.zcard(ALARMS) == 0


# ── retries, and their end ────────────────────────────────────────────────────────────────────


class Says:
    """An endpoint that returns a given answer."""

    def __init__(self, came: Delivered) -> None:
        self.came = came

    async def publish(
        self, event_id: str, event: bytes, *, fresh: bool = False, traceparent: str = ""
    ) -> Delivered:
        """Return the answer."""
        return self.came

    async def aclose(self) -> None:
        """Nothing to close."""


def pause(shop: SyncLedger, url: str, member: str, came: Delivered, chance: float = 0.5) -> float:
    """Seconds until a delivery is retried, after a try with this result."""

    async def work() -> None:
        ledger = AsyncLedger(url)
        deliveries = Deliveries(
            ledger, KEYRING, {"crm": Says(came)}, replace(RULES, chance=lambda: chance)
        )
        await deliveries(member)
        await ledger.aclose()

    shop.redis.hset(delivery_key(member), "due_at", 0)
    asyncio.run(work())
    return alarm(shop, member)


def test_it_is_tried_for_75_hours(shop: SyncLedger, redis_url: str) -> None:
    """Ten tries with growing pauses; then the delivery is dead and kept for a month."""
    [a] = due(shop, "a")
    pauses = [pause(shop, redis_url, a, Later("HTTP 503")) for _ in SCHEDULE]
    assert [round(one, -1) for one in pauses[1:]] == list(SCHEDULE[1:])
    assert 75 * 3600 <= sum(SCHEDULE) < 76 * 3600
    shop.redis.hset(delivery_key(a), "due_at", 0)
    settled(shop, tried(shop, a), "dead")
    assert record(shop, a)["tries"] == "10"
    assert 29 * DAY < shop.redis.ttl(delivery_key(a)) <= 30 * DAY  # type: ignore[operator]
    assert 29 * DAY < shop.redis.ttl(DEAD) <= 30 * DAY  # type: ignore[operator]


@pytest.mark.parametrize(
    ("asked", "chance", "least", "most"),
    [
        (None, 0.0, 4, 4.5),
        (None, 1.0, 5, 5.5),
        (1, 0.5, 4.5, 5),
        (600, 0.0, 599, 600),
        (600, 1.0, 659, 660),
        (1e9, 0.0, DAY - 1, DAY),
    ],
)
def test_an_endpoint_may_ask_for_a_longer_pause(
    shop: SyncLedger,
    redis_url: str,
    asked: float | None,
    chance: float,
    least: float,
    most: float,
) -> None:
    """Not for a shorter one, nor for more than a day; retries of one moment are spread."""
    [a] = due(shop, "a")
    found = pause(shop, redis_url, a, Later("HTTP 429", asked), chance)
    assert least - 2 <= found <= most


def test_no_endpoint_puts_an_event_off_for_ever(shop: SyncLedger, redis_url: str) -> None:
    """After four days of pauses that it asked for, the event is dead, because its job's record
    expires."""
    [a] = due(shop, "a")
    start = int(record(shop, a)["created_at"])
    shop.redis.hset(delivery_key(a), "created_at", start - round((LONGEST_LIFE - 3600) * 1000))
    assert pause(shop, redis_url, a, Later("HTTP 503", 1e9), 0) <= 3600
    shop.redis.hset(delivery_key(a), "created_at", start - round(LONGEST_LIFE * 1000))
    shop.redis.hset(delivery_key(a), "due_at", 0)
    assert asyncio.run(_once(redis_url, a, Later("HTTP 503", 1e9))) == "dead: HTTP 503"


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_tries_that_were_not_made_are_not_counted(
    shop: SyncLedger, redis_url: str, chance: float
) -> None:
    """A worker that lacks something tries again soon, however often; the schedule is for the
    endpoint. The job's timeline has one line about it."""
    [a] = due(shop, "a")
    lacking = NotTried("endpoint crm is not configured at this worker")
    for _ in range(2 * len(SCHEDULE)):
        found = pause(shop, redis_url, a, lacking, chance)
        assert 0.9 * OWN_FAULT_DELAY - 2 <= found <= 1.1 * OWN_FAULT_DELAY
    assert record(shop, a)["tries"] == "0"
    assert pause(shop, redis_url, a, Later("HTTP 503")) <= SCHEDULE[0] * 1.1
    log = shop.redis.hget("{reg}:job:" + a.split(":")[1].partition(".")[0], "log")
    assert log.count(b"not configured") == 1  # type: ignore[union-attr]
    start = int(record(shop, a)["created_at"])
    shop.redis.hset(
        delivery_key(a),
        mapping={"created_at": start - round(LONGEST_LIFE * 1000), "due_at": 0},
    )
    assert asyncio.run(_once(redis_url, a, lacking)) == f"dead: {lacking.reason}"


async def _once(url: str, member: str, came: Delivered) -> str:
    ledger = AsyncLedger(url)
    said = await Deliveries(ledger, KEYRING, {"crm": Says(came)}, RULES)(member)
    await ledger.aclose()
    return said


def test_an_endpoint_that_is_never_to_be_disabled_is_not(shop: SyncLedger, redis_url: str) -> None:
    """Failures never disable it; only the endpoint's own 410 does."""
    [a] = due(shop, "a", to="erp")
    settled(shop, tried(shop, a), "later")
    since = round((shop.redis.time()[0] - 50 * DAY) * 1000)  # type: ignore[index]
    shop.redis.hset("{reg}:endpoint:erp", "failing_since", since)

    async def work(came: Delivered) -> None:
        ledger = AsyncLedger(redis_url)
        await Deliveries(ledger, KEYRING, {"erp": Says(came)}, RULES)(a)
        await ledger.aclose()

    for came, disabled in ((Later("HTTP 503"), False), (Gone("HTTP 410"), True)):
        shop.redis.hset(delivery_key(a), "due_at", 0)
        asyncio.run(work(came))
        assert crm(shop, "erp").disabled is disabled


# ── dead deliveries ───────────────────────────────────────────────────────────────────────────


def test_what_is_dead_is_replayed_from_the_start(shop: SyncLedger) -> None:
    """With the same id and a full retry schedule; once, even if the answer was lost."""
    [a] = due(shop, "a")
    settled(shop, tried(shop, a), "later")
    settled(shop, tried(shop, a), "dead")
    command = replay([a, "d:nobody:crm"])
    assert [shop(command), shop(command)] == [("replayed", "gone")] * 2
    assert shop.redis.hget(STATS, "replayed") == b"1"
    assert shop(replay([a])) == ("gone",), "it is on its way"
    assert shop.redis.ttl(delivery_key(a)) == -1
    assert shop.redis.zcard(DEAD) == 0
    assert alarm(shop, a) <= 0
    again = tried(shop, a)
    assert again.tries == 0
    assert again.event_id == a.split(":")[1]


def test_many_are_replayed_as_many_at_a_time_as_the_endpoint_may_get(shop: SyncLedger) -> None:
    """The rest is queued and woken as places become free, not all at once."""
    members = due(shop, *"abcdef")
    for member in members:
        settled(shop, tried(shop, member), "dead")
    assert set(shop(replay(members))) == {"replayed"}
    let_go = [one for one in members if alarm(shop, one) <= 0]
    assert (len(let_go), crm(shop).in_line) == (2, 4)
    arrived = 0
    while wakes := list(shop(ring(100)).wakes):
        while wakes:
            settled(shop, tried(shop, wakes.pop(0).member), "arrived")
            wakes += woken(shop)
            arrived += 1
    assert (arrived, crm(shop).pending, crm(shop).in_line) == (6, 0, 0)


def test_nothing_is_replayed_to_an_endpoint_that_is_disabled(shop: SyncLedger) -> None:
    """The delivery would be dead again at once."""
    [a] = due(shop, "a")
    settled(shop, tried(shop, a), "dead")
    shop(disable(crm(shop), "HTTP 410", EVENT, only_if_failing=False))
    assert shop(replay([a])) == ("disabled",)
    command = enable("crm")
    assert [shop(command), shop(command), shop(enable("crm"))] == [True, True, False]
    assert shop(replay([a])) == ("replayed",)


def test_what_is_dead_for_long_is_forgotten(shop: SyncLedger) -> None:
    """It also leaves the list, when the next delivery dies."""
    a, b = due(shop, "a", "b")
    settled(shop, tried(shop, a), "dead")
    shop.redis.zadd(DEAD, {a: 1})
    settled(shop, tried(shop, b), "dead")
    assert shop.redis.zrange(DEAD, 0, -1) == [b.encode()]
    assert shop.redis.hget(STATS, "dead_dropped") == b"1"


def test_a_late_arrival_of_what_is_dead_counts(shop: SyncLedger) -> None:
    """The delivery then leaves no data behind."""
    [a] = due(shop, "a")
    late = tried(shop, a, lease=0)
    settled(shop, tried(shop, a), "dead")
    assert settled(shop, late, "arrived").state == "delivered"
    assert record(shop, a) == {}
    assert shop.redis.zcard(DEAD) == 0
    assert shop(deliver(a, 30)) == Idle("over", "gone")


def test_what_an_endpoint_did_is_in_the_jobs_timeline(endpoints: Endpoints) -> None:
    """Each try, and why the delivery is dead."""
    [a] = due(endpoints.shop, "a")
    endpoints.answer(503, 410)
    endpoints(a)
    endpoints.shop.redis.hset(delivery_key(a), "due_at", 0)
    endpoints(a)
    log: Any = endpoints.shop.redis.hget("{reg}:job:" + a.split(":")[1].partition(".")[0], "log")
    steps = [line.partition(" ")[2] for line in log.decode().splitlines()]
    assert steps[-2:] == ["delivery to crm: later HTTP 503", "delivery to crm: dead HTTP 410"]
