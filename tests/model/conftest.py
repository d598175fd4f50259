"""The default bounds, explored once for all tests of this folder."""

from dataclasses import dataclass, field

import pytest

from tests.model.explore import Explored, explore
from tests.model.model import DEFAULT, Job, Step, World
from tests.model.replay import CLOCK_STEPS, LEDGER_STEPS

LEDGER_SEES = LEDGER_STEPS | set(CLOCK_STEPS.values())


@dataclass
class Kinds:
    """One way to every kind of step that the ledger sees: what the record was, who did what."""

    ways: dict[tuple[Job, object, Step], tuple[int, Step, World]] = field(default_factory=dict)

    def __call__(self, number: int, world: World, step: Step, after: World) -> None:
        """Keep the first of its kind, which is the one with the shortest way."""
        kind = kind_of(world, step)
        if kind is not None:
            self.ways.setdefault(kind, (number, step, after))


def kind_of(world: World, step: Step) -> tuple[Job, object, Step] | None:
    """What makes two steps the same to the ledger; None for steps that it doesn't see."""
    if step.act not in LEDGER_SEES:
        return None
    # What was published, and whether it was in doubt before, no script looks at.
    job = world.job._replace(events=(), doubted=False)
    actor: object = None
    if step.act == "settles":
        worker = world.workers[step.actor]
        actor = (worker.asking, worker.holder, worker.outcome)
        if step.result.endswith("stale"):
            job = Job(job.state, held=job.held, lease=job.lease)
    return job, actor, step._replace(actor=-1)


@dataclass
class Searched:
    """One of the default bounds, explored."""

    found: Explored
    kinds: Kinds


@pytest.fixture(scope="session")
def searched() -> dict[str, Searched]:
    """Everything that can happen within the default bounds."""
    result = {}
    for name, bounds in DEFAULT.items():
        kinds = Kinds()
        result[name] = Searched(explore(bounds=bounds, visit=kinds), kinds)
    return result
