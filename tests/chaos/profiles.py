"""What a run is like: its pace, how much is asked of it, and what goes wrong how often."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Rates = Mapping[str, Any]

#: Seconds from a request's arrival until the provider carries it out, at the latest.
LATE = 1.8

#: The provider's faults, by rate. Which set is in force changes during a run (`weather`).
WEATHER: tuple[Rates, ...] = (
    {
        "drop_before_commit": 0.04,
        "commit_then_drop": 0.06,
        "late_commit": {"probability": 0.05, "delay": LATE},
        "slow": {"probability": 0.25, "delay": 0.5},
        "too_many": {"probability": 0.05, "retry_after": "1"},
        "server_error": {"probability": 0.05, "status": 503, "commit": True},
        "html": {"probability": 0.02, "commit": True},
        "truncated": 0.03,
        "missing_key": 0.03,
        "reset": {"probability": 0.03, "commit": True},
        "hang": {"probability": 0.02, "commit": True},
    },
    {
        "drop_before_commit": 0.06,
        "commit_then_drop": 0.04,
        "late_commit": {"probability": 0.06, "delay": 0.9, "hold": 0.2},
        "slow": {"probability": 0.25, "delay": 0.8},
        "too_many": 0.05,
        "server_error": {"probability": 0.05, "status": 500, "retry_after": "1"},
        "html": {"probability": 0.02, "commit": False},
        "truncated": {"probability": 0.03, "commit": False},
        "missing_key": {"probability": 0.03, "commit": False},
        "reset": 0.03,
        "hang": 0.02,
    },
)

#: Everything that takes minutes in production, in seconds.
PACE: Mapping[str, Any] = {
    "call_budget": 1.2,
    # Longer than a request can be under way: held on its link (1.5 s) and carried out late (1.8 s),
    # and than a frozen worker, which may have checked its lease just before, adds to that; and by
    # as much as the ledger's clock may go forward meanwhile (4 s).
    "settle_delay": 10.0,
    "lease": 3.0,
    "lease_renewal": 1.0,
    "clock_period": 0.2,
    "retry_base": 0.2,
    # So long that a job which is absent is asked after a dozen times until that is believed.
    "retry_cap": 2.0,
    "breaker_threshold": 8,
    "breaker_pause": 0.5,
    "max_attempts": 50,
    "concurrency": 20,
    # The documented 1000 calls in 5 minutes would be all that such a run is about.
    "accounts__open2b__default__rate": 0,
}

KINDS: Mapping[str, float] = {
    "kill_worker": 7,
    "pause_worker": 2,
    "freeze_worker": 2,
    "stop_worker": 2,
    "kill_ledger": 2,
    # So often that half an hour has fifty kills of each kind.
    "kill_broker": 1.7,
    "reset": 3,
    "refuse": 2,
    "hold": 3,
    "partition": 1,
    "mute": 3,
    "delay": 2,
    "forget": 1,
    "jump_clock": 2,
    "weather": 3,
}


@dataclass(frozen=True)
class Profile:
    """One kind of run. Seconds."""

    workers: int = 3
    producers: int = 4
    #: Jobs a second, of all producers.
    rate: float = 25.0
    #: The first fault comes after this.
    calm: float = 1.0
    #: Between one fault and the next.
    gap: tuple[float, float] = (0.6, 1.4)
    kinds: Mapping[str, float] = field(default_factory=lambda: KINDS)
    weather: tuple[Rates, ...] = WEATHER
    #: Whether the providers refuse an e-mail that they know. Off, only our own care prevents
    #: duplicates.
    unique: bool = False
    #: Share of webhooks that the receiver fails.
    hook_faults: float = 0.2
    #: How long each piece takes on the way to the provider and back.
    distance: float = 0.0
    #: How long a link holds the provider's bytes back, at most.
    longest_hold: float = 1.5
    #: How long a worker is stopped that is to lose its leases.
    freeze: tuple[float, float] = (3.4, 4.8)
    #: How long a worker is cut off from the ledger that is to lose its leases.
    partition: tuple[float, float] = (3.5, 6.0)
    #: How far the clock of the ledger's server goes forward, to go back again later. Seen from
    #: there the second is a jump back, and the longest ones end every lease at once.
    jump: tuple[float, float] = (1.0, 4.0)
    pace: Mapping[str, Any] = field(default_factory=lambda: PACE)

    def paced(self, **changes: Any) -> "Profile":
        """The same with another pace."""
        return replace(self, pace={**self.pace, **changes})

    def without(self, kind: str) -> "Profile":
        """The same without one kind of fault."""
        return replace(self, kinds={one: n for one, n in self.kinds.items() if one != kind})


_SHORT = Profile(
    workers=2,
    producers=2,
    rate=20.0,
    calm=0.5,
    gap=(0.8, 1.2),
    kinds={},
    weather=({},),
    hook_faults=0.0,
).paced(call_budget=1.0, settle_delay=2.5, retry_cap=1.0)

#: Runs that bring out one thing, by the sabotage (`sabotage.py`) that they are to find.
PROFILES: Mapping[str, Profile] = {
    "full": Profile(),
    # Workers die while a call is under way that the provider will carry out.
    "lease_to_queued": replace(
        _SHORT,
        # So that a successor, which takes seconds to start, does something before it is killed.
        gap=(2.5, 3.5),
        kinds={"kill_worker": 1},
        weather=({"slow": {"probability": 0.8, "delay": 0.6}},),
    ),
    # A worker is cut off with answers in its hands, which it brings when others have taken over.
    "no_fence": replace(
        _SHORT,
        # So that one is there to take over.
        workers=3,
        gap=(3.0, 4.0),
        kinds={"partition": 1},
        partition=(3.5, 6.0),
        weather=({"too_many": 0.3, "drop_before_commit": 0.3},),
        distance=0.2,
    ),
    # The provider carries out what the worker has stopped waiting for.
    "no_settle_delay": replace(
        _SHORT, weather=({"late_commit": {"probability": 0.6, "delay": 1.2, "hold": 0.1}},)
    ),
    "blind_resend": replace(_SHORT, weather=({"commit_then_drop": 0.5},)),
    "late_event": replace(_SHORT, kinds={"kill_worker": 1}),
    "forgotten_alarm": replace(_SHORT, weather=({"too_many": 0.5},)),
}
