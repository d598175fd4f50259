"""What of a process works is told by marks that only the working part leaves."""

import subprocess
import sys

from worker.vitals import Pulse, Vitals, silent


class Clock:
    """A time that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The time, in seconds."""
        return self.now


def test_a_part_that_leaves_no_mark_is_silent_after_patience() -> None:
    """One that goes on is not, whatever the others do."""
    clock = Clock()
    vitals = Vitals(30, 20, Pulse(clock), clock)
    clock.now += 25
    vitals.mark("clock")
    assert silent(vitals.parts()) == {}
    clock.now += 10
    assert silent(vitals.parts()).keys() == {"leases", "loop", "consumer"}
    assert silent(vitals.parts())["leases"] == 35


def test_what_was_seen_a_while_ago_is_that_much_older() -> None:
    """A process that is stopped leaves its last marks; they age all the same."""
    clock = Clock()
    vitals = Vitals(30, 20, Pulse(clock), clock)
    parts = vitals.parts()
    assert silent(parts, since=29) == {}
    assert "clock" in silent(parts, since=31)


def test_a_task_that_does_not_end_is_seen() -> None:
    """Others that come and go beside it hide nothing; a busy worker is well."""
    clock = Clock()
    vitals = Vitals(1000, 1, Pulse(clock), clock)
    with vitals.task():
        clock.now += 900
        with vitals.task():
            assert vitals.running == 2
        assert "tasks" not in silent(vitals.parts())
        clock.now += 900
        assert silent(vitals.parts())["tasks"] == 1800
    assert vitals.running == 0
    assert vitals.parts()["tasks"][0] == 0


FORKING = """
import os
from worker.vitals import consumer
pulse = consumer()
ours, theirs = os.pipe()
if os.fork() == 0:
    os.close(theirs)
    os.read(ours, 1)
    os._exit(0 if consumer().happened() else 1)
pulse.tick()
os.close(theirs)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_pulse_is_felt_by_a_child_that_was_forked_before_it() -> None:
    """With a pool of processes, the parent takes the messages and the children carry them out."""
    subprocess.run([sys.executable, "-c", FORKING], check=True, timeout=60)


def test_signs_of_life_come_often_enough_for_the_patience() -> None:
    """Two may be late, and nobody is called."""
    assert Vitals(30, 20, Pulse()).period <= 10
    assert Vitals(3, 20, Pulse()).period <= 1
