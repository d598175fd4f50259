"""The faults of a ledger that fails over: a seeded sequence, one fault after another.

A fault begins once all servers follow one primary again and a job has ended since then: the
guarantee for N replicas covers the loss of one server at a time, while replicas may lag.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from tests.chaos.processes import Slot
from tests.chaos.replicated import PATIENCE, ReplicatedStore
from tests.sentinels import Server
from worker.cli.local import stack


@dataclass(frozen=True)
class Level:
    """One way to run a ledger, and what it guarantees."""

    fsync: str
    #: `REGWORKER_REPLICAS`.
    replicas: int
    #: The faults with their weights.
    kinds: Mapping[str, float]
    #: Seconds from one fault to the next. Where each causes doubt, jobs wait until that ends.
    pause: tuple[float, float]
    #: Whether receipts may be lost; these are counted and listed.
    forgets: bool = True
    #: Options of the servers.
    options: Mapping[str, str] = field(default_factory=dict)


#: Without waiting for replicas, a primary that is cut off must soon refuse writes.
_NO_SPLIT = {"min-replicas-to-write": "1", "min-replicas-max-lag": "1"}

_KINDS = {
    "kill_primary": 45,
    "partition_primary": 2,
    "hold_replicas": 1,
    "slow_replicas": 1,
    "cut_replicas": 1,
    "kill_replica": 1,
    "restart_primary": 1,
    "restart_all": 0.5,
}

LEVELS: Mapping[str, Level] = {
    "replicas": Level("always", 2, _KINDS, (0.3, 1.5), forgets=False),
    # While one replica is promoted, the old primary may continue with the other one.
    "replica": Level("always", 1, _KINDS, (8.0, 16.0)),
    "always": Level("always", 0, _KINDS, (8.0, 16.0), options=_NO_SPLIT),
    "everysec": Level(
        "everysec", 0, {**_KINDS, "restart_primary": 45}, (8.0, 16.0), options=_NO_SPLIT
    ),
    "restored": Level("always", 0, {"restore": 3, "kill_primary": 1}, (8.0, 16.0)),
    # Shows sabotage soonest: everything that is not acknowledged by then is lost.
    "all behind": Level("always", 2, {"kill_behind": 1}, (0.5, 1.5), forgets=False),
    "all behind, none awaited": Level("always", 0, {"kill_behind": 1}, (0.5, 1.5)),
}


def sequence(seed: int, kinds: Mapping[str, float]) -> Iterator[tuple[str, random.Random]]:
    """The faults in order: each kind comes once before any is repeated."""
    chance = random.Random(f"failovers {seed}")
    first = chance.sample(list(kinds), len(kinds))
    while True:
        kind = first.pop() if first else chance.choices(list(kinds), list(kinds.values()))[0]
        yield kind, random.Random(chance.random())


#: Seconds in which a job must end after a failover, before the next fault.
WORK = 30.0

STREAM = "{reg}:results"


@dataclass
class Loss:
    """The loss of a primary. Times are in milliseconds since 1970."""

    at: float
    #: Whether another server replaced it.
    promoted: bool = False
    #: When all servers followed one primary again; 0: never.
    whole: float = 0.0


class Failovers:
    """Runs the sequence in a thread of its own."""

    def __init__(
        self, store: ReplicatedStore, level: Level, workers: list[Slot], seed: int, folder: Path
    ) -> None:
        self.done: Counter[str] = Counter()
        self.losses: list[Loss] = []
        self.last = ""
        self.error: BaseException | None = None
        self._store = store
        self._level = level
        self._workers = workers
        self._seed = seed
        self._copy = folder / "copy"
        self._log = folder / "failovers.txt"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="failovers", daemon=True)

    @property
    def failovers(self) -> int:
        """How often a replica was promoted, by the Sentinels' logs."""
        return self._store.failovers

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further fault; when this returns, the last one is over."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(3 * PATIENCE)

    def _run(self) -> None:
        try:
            for kind, chance in sequence(self._seed, self._level.kinds):
                if self._over.wait(chance.uniform(*self._level.pause)):
                    return
                self.last = kind
                self._write(f"begins: {kind}")
                do: Callable[[random.Random], Any] = getattr(self, f"_{kind}")
                do(chance)
                self._store.heal()
                self._write("healed")
                # Make them replicas at once, as an operator would; the Sentinels need ten seconds.
                self._store.wait_until_whole(demotes=chance.random() < 0.9)
                self._write("whole")
                if self.losses and not self.losses[-1].whole:
                    self.losses[-1].whole = time.time() * 1000
                    self._wait_for_work(self.losses[-1].whole)
                self.done[kind] += 1
        except BaseException as error:  # noqa: BLE001 -- shown, and fails the run
            self.error = error

    def _kill_primary(self, chance: random.Random) -> None:
        """None, one or both replicas lag; the data that they lack dies with the primary."""
        store, primary = self._store, self._store.primary
        behind = chance.sample(store.replicas_of(primary), chance.choice((0, 1, 1, 2)))
        store.hold(primary, behind)
        time.sleep(chance.uniform(0.1, 0.8) if behind else 0.0)
        store.cut_power(primary)
        self._note()
        store.heal("reset")
        self._wait_for_failover(primary)
        time.sleep(chance.uniform(0.0, 0.5))
        # Some return as a primary, until the Sentinels correct that.
        follows = store.primary if chance.random() < 0.95 else None
        store.revive(primary, follows=follows)

    def _kill_behind(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        store.hold(primary, store.replicas_of(primary))
        time.sleep(chance.uniform(0.5, 1.0))
        store.cut_power(primary)
        self._note()
        store.heal("reset")
        self._wait_for_failover(primary)
        store.revive(primary, follows=store.primary)

    def _partition_primary(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        worker = chance.choice(self._workers).process
        store.partition(primary, chance.choice(store.sentinels), worker.pid if worker else 0)
        self._note()
        self._wait_for_failover(primary)
        time.sleep(chance.uniform(0.5, 3.0))
        store.heal(chance.choice(("release", "reset")))
        time.sleep(chance.uniform(0.0, 1.5))
        if chance.random() < 0.7:
            store.follow(primary, store.primary)

    def _hold_replicas(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        store.hold(primary, chance.sample(store.replicas_of(primary), chance.choice((1, 2))))
        time.sleep(chance.uniform(0.5, 4.0))
        store.heal(chance.choice(("release", "reset")))

    def _slow_replicas(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        store.hold(primary, store.replicas_of(primary), delay=chance.uniform(0.02, 0.4))
        time.sleep(chance.uniform(1.0, 4.0))

    def _cut_replicas(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        store.cut(primary, chance.sample(store.replicas_of(primary), chance.choice((1, 2))))

    def _kill_replica(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        replica = chance.choice(store.replicas_of(primary))
        store.cut_power(replica)
        time.sleep(chance.uniform(0.0, 2.0))
        store.revive(replica, follows=primary)

    def _restart_primary(self, chance: random.Random) -> None:
        """So soon that usually no Sentinel notices."""
        store, primary = self._store, self._store.primary
        store.cut_power(primary)
        self._note()
        time.sleep(chance.uniform(0.0, 0.1))
        store.revive(primary)

    def _restart_all(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        for one in [*store.replicas_of(primary), *store.sentinels]:
            one.stop()
            store.revive(one)
            store.heal()
            store.wait_until_whole()
        self._kill_primary(chance)

    def _restore(self, chance: random.Random) -> None:
        store, primary = self._store, self._store.primary
        store.copy(primary, self._copy)
        time.sleep(chance.uniform(2.0, 8.0))
        store.restore(primary, self._copy)
        self._note()

    def _wait_for_work(self, since: float) -> None:
        """Wait until a job has ended since then; give up when the report would show it anyway."""

        def goes_on() -> bool:
            with suppress(redis.RedisError), self._store.primary.client() as client:
                newest: Any = client.xrevrange(STREAM, count=1)
                return bool(newest) and int(newest[0][0].partition(b"-")[0]) > since
            return False

        with suppress(stack.StackError):
            stack.until(goes_on, "a job that has ended", WORK)
        self._write("jobs go on")

    def _wait_for_failover(self, primary: Server) -> None:
        self._store.wait_for_failover(primary)
        self.losses[-1].promoted = True
        self._write("another is the primary")

    def _note(self) -> None:
        self.losses.append(Loss(time.time() * 1000))
        self._write("the primary is lost")

    def _write(self, text: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{datetime.now(UTC).isoformat()} {text}\n")
