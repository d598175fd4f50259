"""The profiles of runs: pace, load, and how often each fault occurs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Rates = Mapping[str, Any]

#: Seconds from a request's arrival until the provider carries it out, at most.
LATE = 1.8

#: The provider's faults with their rates. A run switches between these sets (`weather`).
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
        # With the answer, not later: a repetition that arrives when the next request is written
        # cannot be distinguished from an answer in HTTP/1.1, until the account is known for it.
        "repeated": {"probability": 0.03, "delay": 0},
        "bomb": {"probability": 0.02, "commit": True},
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
        "repeated": {"probability": 0.03, "delay": 0},
        "bomb": 0.02,
    },
)

#: What takes minutes in production takes seconds here.
PACE: Mapping[str, Any] = {
    "call_budget": 1.2,
    # Longer than a request can be under way: held on its link (1.5 s) and carried out late (1.8 s);
    # plus the time of a frozen worker that checked its lease just before; plus the time by which
    # the ledger's clock may be set forward meanwhile (4 s).
    "settle_delay": 10.0,
    "lease": 3.0,
    "lease_renewal": 1.0,
    "clock_period": 0.2,
    "retry_base": 0.2,
    # Long enough to limit the lookups of an absent job to a dozen.
    "retry_cap": 2.0,
    "breaker_threshold": 8,
    "breaker_pause": 0.5,
    "max_attempts": 50,
    "concurrency": 20,
    # The documented 1000 calls in 5 minutes would limit the whole run.
    "accounts__open2b__default__rate": 0,
}

KINDS: Mapping[str, float] = {
    "kill_worker": 7,
    "pause_worker": 2,
    "freeze_worker": 2,
    "stop_worker": 2,
    "kill_ledger": 2,
    # Often enough for fifty kills of each kind in half an hour.
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
    "junk": 3,
}


@dataclass(frozen=True)
class Profile:
    """One kind of run. Times are in seconds."""

    workers: int = 3
    producers: int = 4
    #: Jobs per second of all producers together.
    rate: float = 25.0
    #: The first fault comes after this time.
    calm: float = 1.0
    #: The time from one fault to the next.
    gap: tuple[float, float] = (0.6, 1.4)
    kinds: Mapping[str, float] = field(default_factory=lambda: KINDS)
    weather: tuple[Rates, ...] = WEATHER
    #: Whether the providers refuse a known e-mail. If not, only the worker's own care prevents
    #: duplicates.
    unique: bool = False
    #: The share of webhooks that the receiver fails.
    hook_faults: float = 0.2
    #: How many other workers must be ready before one is killed or stopped.
    spares: int = 0
    #: The delay of each piece of data to the provider and back.
    distance: float = 0.0
    #: The longest time for which a link holds the provider's data back.
    longest_hold: float = 1.5
    #: How long a worker is frozen to make it lose its leases.
    freeze: tuple[float, float] = (3.4, 4.8)
    #: How long a worker is cut off from the ledger to make it lose its leases.
    partition: tuple[float, float] = (3.5, 6.0)
    #: How far the clock of the ledger's server is set forward; it is set back later, which is a
    #: jump into the past. The longest jumps end every lease at once.
    jump: tuple[float, float] = (1.0, 4.0)
    pace: Mapping[str, Any] = field(default_factory=lambda: PACE)
    #: The links that get faults; those with more to show are listed more than once.
    links: tuple[str, ...] = ("ledger", "ledger", "broker", "provider", "provider")

    def paced(self, **changes: Any) -> "Profile":
        """The same profile with another pace."""
        return replace(self, pace={**self.pace, **changes})

    def without(self, kind: str) -> "Profile":
        """The same profile without one kind of fault."""
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

#: Faults beside those of the ledger, which are in `failovers.py`.
_BESIDE = {
    "kill_worker": 3,
    "pause_worker": 2,
    "stop_worker": 1,
    "kill_broker": 1,
    "reset": 2,
    "weather": 2,
    "junk": 1,
}

# Jobs that the ledger lost run again.
_FORGETTING = replace(_SHORT, producers=8, rate=30.0).paced(lease=2.0, lease_renewal=0.5)

#: Runs that each show one thing, named after the sabotage (`sabotage.py`) that they must detect.
PROFILES: Mapping[str, Profile] = {
    "full": Profile(),
    # A doubt lasts for a lease and the settle delay: both are short here, and so are the provider's
    # delays; otherwise the run would only wait.
    "failovers": Profile(
        rate=10.0,
        gap=(1.5, 3.0),
        # Otherwise the time after a failover would be the time that a worker needs to start.
        spares=1,
        kinds=_BESIDE,
        weather=tuple({**one, "late_commit": 0, "hang": 0} for one in WEATHER),
        links=("broker", "provider"),
    ).paced(settle_delay=4.0, lease=4.0),
    # Workers die during a call that the provider will carry out.
    "lease_to_queued": replace(
        _SHORT,
        # Calls are under way when the first worker is killed.
        calm=3.0,
        # A successor takes seconds to start, and must do something before it is killed.
        gap=(2.5, 3.5),
        kinds={"kill_worker": 1},
        weather=({"slow": {"probability": 0.8, "delay": 0.6}},),
    ),
    # A worker is cut off while it has answers, and settles them after others have taken over.
    "no_fence": replace(
        _SHORT,
        # One worker must be there to take over.
        workers=3,
        gap=(3.0, 4.0),
        kinds={"partition": 1},
        partition=(3.5, 6.0),
        weather=({"too_many": 0.3, "drop_before_commit": 0.3},),
        distance=0.2,
    ),
    # The provider carries out a request after the worker stopped waiting for it.
    "no_settle_delay": replace(
        _SHORT, weather=({"late_commit": {"probability": 0.6, "delay": 1.2, "hold": 0.1}},)
    ),
    "blind_resend": replace(_SHORT, weather=({"commit_then_drop": 0.5},)),
    "late_event": replace(_SHORT, kinds={"kill_worker": 1}),
    "forgotten_alarm": replace(_SHORT, weather=({"too_many": 0.5},)),
    # The provider repeats its answers on idle connections.
    "borrowed_answers": replace(
        _SHORT, weather=({"repeated": {"probability": 0.5, "delay": 0.02}},)
    ),
    **dict.fromkeys(("no_wait", "sends_at_once", "no_guard", "id_by_fence"), _FORGETTING),
}
