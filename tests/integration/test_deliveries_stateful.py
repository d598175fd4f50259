"""Whatever workers, endpoints and operators do to deliveries, in any order."""

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import ANY

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from regworker.ledger import SyncLedger
from regworker.ledger.endpoints import bury, disable, enable
from regworker.ledger.endpoints import replay as replay_command
from regworker.ledger.records import Delivery
from regworker.ledger.transitions import (
    ALARMS,
    DEAD,
    PREFIX,
    Command,
    Publication,
    deliver,
    delivered,
    delivery_key,
    ring,
)
from tests.integration.outbox import crm, due, open_shop, texts, woken

LEASE = 30.0
PLACES = 2
EVENT = Publication("crm.disabled", "x", b"{}", "sealed", "kept", ("results",))
PENDING, TRYING, LINE = (f"{PREFIX}{name}:crm" for name in ("pending", "trying", "line"))

#: Milliseconds. The server's clock moves between two reads: leases that end within this time are
#: not compared.
NEAR = 500


@dataclass
class Seen:
    """Everything that the ledger holds of deliveries at one moment."""

    now: int
    records: dict[str, dict[str, str]]
    expires: dict[str, bool]
    zsets: dict[str, dict[str, float]]

    def leased(self) -> dict[str, float]:
        """The deliveries that are being tried, by their records, and until when."""
        found = {id_: float(one.get("lease_until", 0)) for id_, one in self.records.items()}
        return {id_: until for id_, until in found.items() if until > self.now + NEAR}

    def among(self, state: str) -> set[str]:
        """The deliveries in a state."""
        return {id_ for id_, one in self.records.items() if one["state"] == state}


class Outbox(RuleBasedStateMachine):
    """One endpoint with two places, workers that die, and an operator.

    The server's clock cannot be set: instead, all times in the ledger are moved back.
    """

    claims = Bundle("claims")
    numbers = st.integers(0, 7)

    def __init__(self, shop: SyncLedger) -> None:
        super().__init__()
        shop.redis.flushdb()
        self.shop = open_shop(shop)
        self.members: list[str] = []
        self.arrived: set[str] = set()

    # -- what happens -----------------------------------------------------------------------------

    @rule()
    def publish(self) -> None:
        """Two jobs end, and their events are due."""
        number = len(self.members)
        self.members += due(self.shop, f"job-{number}", f"job-{number + 1}")

    @precondition(lambda self: self.members)
    @rule(target=claims, number=numbers, lost=st.booleans())
    def claim(self, number: int, lost: bool) -> Any:
        """A worker is woken for a delivery."""
        member = self.members[number % len(self.members)]
        record = self.look().records.get(member, {})
        not_before = max(int(record.get(name, 0)) for name in ("lease_until", "due_at"))
        command = deliver(member, LEASE)
        one = self.shop(command)
        if not isinstance(one, Delivery):
            return multiple()
        assert one.at >= not_before, "tried by two, or too early"
        if lost:
            assert self.unchanged(command) == replace(one, at=ANY)
        return one

    @rule(
        one=claims,
        verdict=st.sampled_from(["arrived", "arrived", "later", "dead"]),
        lost=st.booleans(),
    )
    def settle(self, one: Delivery, verdict: str, lost: bool) -> None:
        """A worker settles its try, possibly long after its lease, or a second time."""
        before = self.look().records.get(one.member)
        command = delivered(one, verdict, "", 60)
        came = self.shop(command)
        after = self.look().records.get(one.member)
        if before is None:
            assert came.state == "gone"
        elif verdict == "arrived":
            assert (came.state, after) == ("delivered", None)
            self.arrived.add(one.member)
        elif before["fence"] != str(one.fence) or before["state"] == "dead":
            assert after == before, "a stale try changed something"
        elif verdict == "dead" or crm(self.shop).disabled:
            assert after is not None
            assert "pending" not in (came.state, after["state"]) or before.get("settled")
        if lost:
            self.unchanged(command)

    @rule(seconds=st.sampled_from([1, 31, 61, 700]))
    def time_passes(self, seconds: int) -> None:
        """All times in the ledger move into the past; alarms that are due ring."""
        self.shift(seconds)
        self.shop(ring(100))

    @precondition(lambda self: self.members)
    @rule(what=st.sampled_from(["disable", "enable", "enable", "replay", "replay"]), number=numbers)
    def operate(self, what: str, number: int) -> None:
        """What happens now and then: the endpoint is gone, or an operator enables it or replays."""
        match what:
            case "disable":
                self.disable()
            case "enable":
                self.twice(enable("crm"))
            case _:
                self.replay(number)

    def disable(self) -> None:
        """The endpoint answers that it is gone."""
        self.twice(disable(crm(self.shop), "HTTP 410", EVENT, only_if_failing=False))
        leased = set(self.look().leased())
        while self.shop(bury("crm", 2)):
            pass
        assert self.look().among("pending") == leased, "given up, or not"

    def replay(self, number: int) -> None:
        """An operator replays deliveries, dead or not."""
        dead = self.look().among("dead")
        some = dict.fromkeys([self.members[number % len(self.members)], *sorted(dead)[:2]])
        answer = self.twice(replay_command(list(some)))
        off = "disabled" if crm(self.shop).disabled else "replayed"
        assert answer == tuple(off if one in dead else "gone" for one in some)

    # -- invariants -------------------------------------------------------------------------------

    @invariant()
    def each_delivery_is_in_one_place(self) -> None:
        """Pending with an alarm, dead without one, or arrived; nothing of it remains elsewhere."""
        seen = self.look()
        assert set(self.members) - set(seen.records) <= self.arrived, "a delivery is lost"
        pending, dead, leased = seen.among("pending"), seen.among("dead"), seen.leased()
        assert set(seen.zsets[ALARMS]) == set(seen.zsets[PENDING]) == pending
        assert set(seen.zsets[DEAD]) == dead
        assert {id_ for id_, expires in seen.expires.items() if expires} == dead
        trying = seen.zsets[TRYING]
        assert {id_: at for id_, at in trying.items() if at > seen.now + NEAR} == leased
        assert len(leased) <= PLACES
        assert set(seen.zsets[LINE]) <= pending - set(leased)

    def teardown(self) -> None:
        """From whatever state was reached, alarms and a working endpoint finish all deliveries."""
        self.shop(enable("crm"))
        for _ in range(400):
            woken(self.shop)
            wakes = list(self.shop(ring(100)).wakes)
            while wakes:
                one = self.shop(deliver(wakes.pop(0).member, LEASE))
                if isinstance(one, Delivery):
                    self.shop(delivered(one, "arrived", "", 0))
                    wakes += woken(self.shop)
                    self.arrived.add(one.member)
            if not self.shop.redis.zcard(ALARMS):
                break
            self.shift(30)
        self.each_delivery_is_in_one_place()
        seen = self.look()
        assert not seen.among("pending"), "still not over"
        assert not seen.zsets[LINE]

    # -- helpers ----------------------------------------------------------------------------------

    def look(self) -> Seen:
        """Read all deliveries."""
        pipeline: Any = self.shop.redis.pipeline()
        pipeline.time()
        zsets = [ALARMS, PENDING, DEAD, TRYING, LINE]
        for key in zsets:
            pipeline.zrange(key, 0, -1, withscores=True)
        for member in self.members:
            pipeline.hgetall(delivery_key(member))
            pipeline.pttl(delivery_key(member))
        (seconds, micros), *rest = pipeline.execute()
        records, ttls = rest[len(zsets) :: 2], rest[len(zsets) + 1 :: 2]
        return Seen(
            seconds * 1000 + micros // 1000,
            {id_: texts(one) for id_, one in zip(self.members, records, strict=True) if one},
            {id_: ttl > 0 for id_, ttl in zip(self.members, ttls, strict=True)},
            {key: {m.decode(): at for m, at in rest[i]} for i, key in enumerate(zsets)},
        )

    def twice(self, command: Command[Any]) -> Any:
        """Run a command twice, as after a lost answer: the same answer, and no further change."""
        answer = self.shop(command)
        assert self.unchanged(command) == answer, f"{command.script} repeated says something else"
        return answer

    def unchanged(self, command: Command[Any]) -> Any:
        """Repeat the command, as after a lost answer: nothing changes."""
        before = self.everything()
        answer = self.shop(command)
        assert self.everything() == before, f"{command.script} repeated did something"
        return answer

    def everything(self) -> list[Any]:
        """Every key that belongs to no job, raw."""
        client: Any = self.shop.redis
        keys = sorted(key for key in client.keys("*") if not key.startswith(b"{reg}:job:"))
        pipeline = client.pipeline()
        for key in keys:
            pipeline.dump(key)
        return [keys, pipeline.execute()]

    def shift(self, seconds: int) -> None:
        """Move all due times and leases back."""
        seen, past = self.look(), seconds * 1000
        pipeline: Any = self.shop.redis.pipeline()
        for key in (ALARMS, TRYING):
            for member, at in seen.zsets[key].items():
                pipeline.zadd(key, {member: at - past})
        for member, record in seen.records.items():
            for name in ("lease_until", "due_at"):
                if int(record.get(name, 0)):
                    pipeline.hset(delivery_key(member), name, int(record[name]) - past)
        pipeline.execute()


def explore(shop: SyncLedger, profile: settings) -> None:
    """Let Hypothesis drive a machine."""
    run_state_machine_as_test(lambda: Outbox(shop), settings=profile)  # type: ignore[no-untyped-call]


PROFILE = settings(
    max_examples=30,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_no_sequence_of_steps_loses_a_delivery_or_a_place(ledger: SyncLedger) -> None:
    """Deliveries that are tried, late, lost, repeated, given up, replayed, disabled or enabled."""
    explore(ledger, PROFILE)
