"""Which context a log line has."""

import asyncio

import pytest

from worker.telemetry.context import about, fields


def test_lines_say_what_they_are_about() -> None:
    """Only inside the block; an inner block adds its fields, and its values replace the outer
    ones."""
    with about(job="a", attempt=1):
        assert fields() == {"job": "a", "attempt": 1}
        with about(endpoint="crm", attempt=2):
            assert fields() == {"job": "a", "attempt": 2, "endpoint": "crm"}
        assert fields() == {"job": "a", "attempt": 1}
    assert fields() == {}


def test_steps_at_a_time_are_not_mixed_up() -> None:
    """Each of many coroutines logs its own job, whatever it waited for."""

    async def step(job: str) -> object:
        with about(job=job):
            await asyncio.sleep(0)
            return fields()["job"]

    async def main() -> list[object]:
        return await asyncio.gather(*(step(str(number)) for number in range(10)))

    assert asyncio.run(main()) == [str(number) for number in range(10)]


def test_a_fault_ends_it_too() -> None:
    """The next step starts without these fields."""
    with pytest.raises(ZeroDivisionError), about(job="a"):
        _ = 1 // 0
    assert fields() == {}
