"""The schedule of faults, a pure function of its seed, and the nemesis that carries it out.

The schedule keeps the assumption of the settle delay, without which no client could keep the
guarantee: a request is carried out less than `settle_delay` after its sender stopped waiting. So
`profiles.py` limits how long a link holds data back and how long a worker is stopped.
"""

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tests.chaos.profiles import Profile

#: Links to the ledger and the broker may be cut for longer than a lease.
LONGEST_CUT = 4.0


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault: `at` seconds after the start, for `seconds`."""

    at: float
    kind: str
    target: str
    seconds: float = 0.0
    how: str = ""

    @property
    def until(self) -> float:
        """When it ends."""
        return self.at + self.seconds


def schedule(seed: int, duration: float, profile: Profile) -> tuple[Fault, ...]:
    """The faults of a run. Every kind comes once before any is repeated."""
    chance = random.Random(f"nemesis {seed}")
    kinds = [kind for kind in KINDS if profile.kinds.get(kind)]
    if not kinds:
        return ()
    first = chance.sample(kinds, len(kinds))
    weights = [profile.kinds[kind] for kind in kinds]
    busy: dict[str, float] = {}
    faults: list[Fault] = []
    at = profile.calm
    while at < duration:
        kind = first[-1] if first else chance.choices(kinds, weights)[0]
        fault = KINDS[kind](at, chance, profile)
        # One fault at a time for each target; other targets may have faults at the same time.
        if busy.get(fault.target, 0.0) <= at:
            busy[fault.target] = fault.until + 0.3
            faults.append(fault)
            first = first[:-1]
        at = round(at + chance.uniform(*profile.gap), 3)
    return tuple(faults)


def _worker(chance: random.Random, profile: Profile) -> str:
    return f"worker-{chance.randrange(profile.workers)}"


def _link(chance: random.Random, profile: Profile, servers: tuple[str, ...] = ()) -> str:
    server = chance.choice(servers or profile.links)
    whose = [f"worker-{number}" for number in range(profile.workers)]
    if server != "provider":
        whose.append("producers")
    return f"{chance.choice(whose)}.{server}"


def _seconds(chance: random.Random, shortest: float, longest: float) -> float:
    return round(chance.uniform(shortest, longest), 3)


Maker = Callable[[float, random.Random, Profile], Fault]


def _kill_worker(at: float, chance: random.Random, profile: Profile) -> Fault:
    return Fault(at, "kill_worker", _worker(chance, profile), _seconds(chance, 0.1, 1.5))


def _pause_worker(at: float, chance: random.Random, profile: Profile) -> Fault:
    return Fault(at, "pause_worker", _worker(chance, profile), _seconds(chance, 0.2, 2.0))


def _freeze_worker(at: float, chance: random.Random, profile: Profile) -> Fault:
    seconds = _seconds(chance, *profile.freeze)
    return Fault(at, "freeze_worker", _worker(chance, profile), seconds)


def _stop_worker(at: float, chance: random.Random, profile: Profile) -> Fault:
    # For these seconds, no other fault affects it.
    return Fault(at, "stop_worker", _worker(chance, profile), 6.0)


def _kill_ledger(at: float, chance: random.Random, _: Profile) -> Fault:
    return Fault(at, "kill_ledger", "ledger", _seconds(chance, 0.1, 1.5))


def _kill_broker(at: float, chance: random.Random, _: Profile) -> Fault:
    return Fault(at, "kill_broker", "broker", _seconds(chance, 0.1, 2.0))


def _reset(at: float, chance: random.Random, profile: Profile) -> Fault:
    return Fault(at, "reset", _link(chance, profile))


def _refuse(at: float, chance: random.Random, profile: Profile) -> Fault:
    target = _link(chance, profile)
    return Fault(at, "refuse", target, _seconds(chance, 0.3, 3.0))


def _hold(at: float, chance: random.Random, profile: Profile) -> Fault:
    target = _link(chance, profile)
    longest = profile.longest_hold if target.endswith("provider") else LONGEST_CUT
    seconds = _seconds(chance, 0.3, longest)
    return Fault(at, "hold", target, seconds, chance.choice(["release", "reset"]))


def _partition(at: float, chance: random.Random, profile: Profile) -> Fault:
    seconds = _seconds(chance, *profile.partition)
    how = chance.choice(["release", "reset"])
    return Fault(at, "partition", f"{_worker(chance, profile)}.ledger", seconds, how)


def _mute(at: float, chance: random.Random, profile: Profile) -> Fault:
    target = _link(chance, profile)
    return Fault(at, "mute", target, _seconds(chance, 0.2, 2.0))


def _delay(at: float, chance: random.Random, profile: Profile) -> Fault:
    target = _link(chance, profile)
    seconds, each = _seconds(chance, 0.5, 4.0), _seconds(chance, 0.01, 0.3)
    return Fault(at, "delay", target, seconds, str(each))


def _forget(at: float, chance: random.Random, profile: Profile) -> Fault:
    return Fault(at, "forget", _link(chance, profile, ("ledger", "broker")))


def _jump_clock(at: float, chance: random.Random, profile: Profile) -> Fault:
    forward = str(_seconds(chance, *profile.jump))
    return Fault(at, "jump_clock", "clock", _seconds(chance, 2.0, 8.0), forward)


def _weather(at: float, chance: random.Random, profile: Profile) -> Fault:
    return Fault(at, "weather", "sandbox", 0.0, str(chance.randrange(len(profile.weather))))


def _junk(at: float, chance: random.Random, _: Profile) -> Fault:
    return Fault(at, "junk", "junk", 0.0, str(chance.randrange(1_000_000)))


KINDS: Mapping[str, Maker] = {
    "kill_worker": _kill_worker,
    "pause_worker": _pause_worker,
    "freeze_worker": _freeze_worker,
    "stop_worker": _stop_worker,
    "kill_ledger": _kill_ledger,
    "kill_broker": _kill_broker,
    "reset": _reset,
    "refuse": _refuse,
    "hold": _hold,
    "partition": _partition,
    "mute": _mute,
    "delay": _delay,
    "forget": _forget,
    "jump_clock": _jump_clock,
    "weather": _weather,
    "junk": _junk,
}
"""Kinds of faults: kill -9 (`kill_*`), SIGSTOP for less (`pause`) and more (`freeze`) than a lease,
SIGTERM (`stop`), faults of a link (see `proxy.py`), the ledger's clock set forward and back again
(`jump_clock`), other faults at the provider (`weather`), and a stranger's messages to the broker
(`junk`, see `junk.py`).
"""


class Victim(Protocol):
    """The installation, as a target of faults."""

    def hurt(self, fault: Fault) -> None:
        """Begin a fault."""
        ...

    def undo(self, fault: Fault) -> None:
        """End a fault."""
        ...


class Nemesis:
    """Carries out a schedule in a thread of its own."""

    def __init__(self, faults: tuple[Fault, ...], victim: Victim) -> None:
        self.done: Counter[str] = Counter()
        self.last = ""
        self.error: BaseException | None = None
        self._victim = victim
        self._steps = [
            step
            for number, fault in enumerate(faults)
            for step in ((fault.at, number, "hurt", fault), (fault.until, number, "undo", fault))
        ]
        heapq.heapify(self._steps)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)

    def start(self) -> None:
        """Start; time counts from now."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no further fault. Faults under way are not ended: see `Cluster.heal`."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(60)

    def _run(self) -> None:
        start = time.monotonic()
        try:
            while self._steps:
                at, _, step, fault = heapq.heappop(self._steps)
                if self._over.wait(max(0.0, start + at - time.monotonic())):
                    return
                if step == "hurt":
                    self.last = f"{fault.kind} {fault.target} {fault.seconds:g}s {fault.how}"
                    self.done[fault.kind] += 1
                getattr(self._victim, step)(fault)
        except BaseException as error:  # noqa: BLE001 -- shown, and fails the run
            self.error = error
