"""All worlds that can follow from a job, breadth first, and the shortest trace to one with a
flaw."""

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.model.model import Bounds, Rules, Step, World, done, start, steps, wrong, wrong_step

Trace = list[tuple[Step, World]]
"""What happened, and the world after it."""


@dataclass
class Explored:
    """The result. `flaw` and `trace`: the first flaw, and the steps that lead to it."""

    bounds: Bounds
    worlds: list[World] = field(default_factory=list)
    edges: int = 0
    depth: int = 0
    seconds: float = 0.0
    flaw: str = ""
    trace: Trace = field(default_factory=list)
    _came: list[tuple[int, Step]] = field(default_factory=list)

    def before(self, number: int) -> World:
        """The world from which this one was first reached."""
        return self.worlds[self._came[number][0]]

    def way_to(self, number: int) -> Trace:
        """The shortest trace to a world, by its number."""
        way: Trace = []
        while number:
            before, step = self._came[number]
            way.append((step, self.worlds[number]))
            number = before
        return way[::-1]

    def __str__(self) -> str:
        numbers = (
            f"{len(self.worlds)} states, {self.edges} edges, depth {self.depth}, "
            f"{self.seconds:.1f} s"
        )
        if not self.flaw:
            return f"{numbers}: everything holds"
        return f"{numbers}: {self.flaw}\n{shown(self.trace, self.bounds)}"


def explore(
    rules: Rules = Rules(),  # noqa: B008 -- immutable
    bounds: Bounds = Bounds(),  # noqa: B008
    visit: Callable[[int, World, Step, World], None] | None = None,
) -> Explored:
    """Go through all worlds; stop at the first that has a flaw or has no next step.

    Worlds that differ only in which worker is which count as one. `visit` is called for every
    step, with the number of the world before it."""
    began = time.perf_counter()
    first = start(bounds)
    found = Explored(bounds, [first], _came=[(0, Step("accept"))])
    worlds, came = found.worlds, found._came
    numbers = {_alike(first): 0}
    back: list[array[int]] = [array("l")]
    depth = [0]
    at = 0
    while at < len(worlds) and not found.flaw:
        world = worlds[at]
        for step, after in steps(world, rules, bounds):
            found.edges += 1
            if visit is not None:
                visit(at, world, step, after)
            if after is world:
                continue
            key = _alike(after)
            number = numbers.get(key)
            flaw = wrong_step(world, step, after)
            if number is None:
                number = numbers[key] = len(worlds)
                worlds.append(after)
                came.append((at, step))
                depth.append(depth[at] + 1)
                back.append(array("l"))
                flaw = flaw or wrong(after)
            if flaw:
                found.flaw, found.trace = flaw, [*found.way_to(at), (step, after)]
                break
            if not step.fault:
                back[number].append(at)
        at += 1
    found.depth = depth[-1]
    if not found.flaw and (lost := _without_end(worlds, back)) is not None:
        found.flaw, found.trace = "without further faults no end is reached", found.way_to(lost)
    found.seconds = time.perf_counter() - began
    return found


def shown(trace: Trace, bounds: Bounds) -> str:
    """A trace as text, one line for each step."""
    numbered = [(Step("accept"), start(bounds)), *trace]
    return "\n".join(
        f"{i:5}  {step!s:48}{_shown(world)}" for i, (step, world) in enumerate(numbered)
    )


def _alike(world: World) -> World:
    ordered = tuple(sorted(world.workers))
    return world if ordered == world.workers else world._replace(workers=ordered)


def _without_end(worlds: list[World], back: "list[array[int]]") -> int | None:
    """The first world from which no end can be reached by steps that are not faults."""
    reached = bytearray(done(world) for world in worlds)
    todo = [number for number, there in enumerate(reached) if there]
    while todo:
        for before in back[todo.pop()]:
            if not reached[before]:
                reached[before] = 1
                todo.append(before)
    lost = reached.find(0)
    return lost if lost >= 0 else None


def _shown(world: World) -> str:
    job = world.job
    marks = [f"attempts={job.attempts}", *job.events]
    names = ("lease", "sure", "settling", "late")
    marks += [name for name in names if getattr(job, name)]
    marks += [f"not due ({job.due.name.lower()})"] * bool(job.due)
    marks += ["adrift"] * world.adrift + [f"accounts={world.accounts}"] * bool(world.accounts)
    return f"{job.state:10} {', '.join(marks)}"
