"""All bounds, explored once for all tests of this folder."""

from dataclasses import dataclass, field

import pytest

from tests.model.explore import Explored, explore
from tests.model.model import DEFAULT, FORGETFUL, FORGETS, Job, Step, World
from tests.model.replay import CLOCK_STEPS, LEDGER_STEPS

LEDGER_SEES = LEDGER_STEPS | {FORGETS} | set(CLOCK_STEPS.values())


@dataclass
class Kinds:
    """One trace to every kind of step that the ledger sees: the state of the record, and who did
    what."""

    ways: dict[tuple[Job, object, Step], tuple[int, Step, World]] = field(default_factory=dict)

    def __call__(self, number: int, world: World, step: Step, after: World) -> None:
        """Keep the first step of its kind, which has the shortest trace."""
        kind = kind_of(world, step)
        if kind is not None:
            self.ways.setdefault(kind, (number, step, after))


def kind_of(world: World, step: Step) -> tuple[Job, object, Step] | None:
    """What makes two steps the same to the ledger; None for steps that it doesn't see."""
    if step.act not in LEDGER_SEES:
        return None
    # No script reads what was published, or whether the job was in doubt before.
    job = world.job._replace(events=(), doubted=False)
    actor: object = None
    if step.act == "settles":
        worker = world.workers[step.actor]
        actor = (worker.asking, worker.holder, worker.outcome)
        if step.result.endswith("stale"):
            job = Job(job.state, held=job.held, lease=job.lease)
    if step.act == FORGETS and world.was is not None:
        actor = world.was._replace(events=(), doubted=False)
    return job, actor, step._replace(actor=-1)


@dataclass
class Searched:
    """One of the bounds, explored."""

    found: Explored
    kinds: Kinds


class Searches(dict[str, Searched]):
    """The results for all bounds by name; each is explored on first use."""

    def __missing__(self, name: str) -> Searched:
        kinds = Kinds()
        bounds = (DEFAULT | FORGETFUL)[name]
        found = self[name] = Searched(explore(bounds=bounds, visit=kinds), kinds)
        return found


@pytest.fixture(scope="session")
def searched() -> dict[str, Searched]:
    """Everything that can happen within the bounds."""
    return Searches()
