"""Each working part of a process leaves marks, and these show what still works."""

from regworker.domain.liveness import silent
from worker.monitoring.liveness import Liveness, Pulse


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def test_a_part_that_leaves_no_mark_is_silent_after_patience() -> None:
    """Other parts that leave marks do not hide it."""
    clock = Clock()
    liveness = Liveness(30, 20, Pulse(clock), clock)
    clock.now += 25
    liveness.mark("clock")
    assert silent(liveness.parts()) == {}
    clock.now += 10
    assert silent(liveness.parts()).keys() == {"leases", "loop", "consumer"}
    assert silent(liveness.parts())["leases"] == 35


def test_what_was_seen_a_while_ago_is_that_much_older() -> None:
    """The last marks of a stopped process age like others."""
    clock = Clock()
    liveness = Liveness(30, 20, Pulse(clock), clock)
    parts = liveness.parts()
    assert silent(parts, since=29) == {}
    assert "clock" in silent(parts, since=31)


def test_a_task_that_does_not_end_is_seen() -> None:
    """Shorter tasks beside it do not hide it; a busy worker is healthy."""
    clock = Clock()
    liveness = Liveness(1000, 1, Pulse(clock), clock)
    with liveness.task():
        clock.now += 900
        with liveness.task():
            assert liveness.running == 2
        assert "tasks" not in silent(liveness.parts())
        clock.now += 900
        assert silent(liveness.parts())["tasks"] == 1800
    assert liveness.running == 0
    assert liveness.parts()["tasks"][0] == 0


def test_signs_of_life_come_often_enough_for_the_patience() -> None:
    """Two marks in a row may be late without an alarm."""
    assert Liveness(30, 20, Pulse()).period <= 10
    assert Liveness(3, 20, Pulse()).period <= 1
