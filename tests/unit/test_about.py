"""What lines say of the step that they are told in."""

import asyncio

import pytest

from worker.telemetry.about import about, told


def test_lines_say_what_they_are_about() -> None:
    """Inside, and not before or after; steps in steps say both, the inner one last."""
    with about(job="a", attempt=1):
        assert told() == {"job": "a", "attempt": 1}
        with about(endpoint="crm", attempt=2):
            assert told() == {"job": "a", "attempt": 2, "endpoint": "crm"}
        assert told() == {"job": "a", "attempt": 1}
    assert told() == {}


def test_steps_at_a_time_are_not_mixed_up() -> None:
    """Each of many coroutines tells of its own job, after whatever it waited for."""

    async def step(job: str) -> object:
        with about(job=job):
            await asyncio.sleep(0)
            return told()["job"]

    async def main() -> list[object]:
        return await asyncio.gather(*(step(str(number)) for number in range(10)))

    assert asyncio.run(main()) == [str(number) for number in range(10)]


def test_a_fault_ends_it_too() -> None:
    """Nothing is left behind for the next step."""
    with pytest.raises(ZeroDivisionError), about(job="a"):
        _ = 1 // 0
    assert told() == {}
