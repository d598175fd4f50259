"""The watch names code that blocks the loop, and shows no data."""

import asyncio
import threading
from typing import Any

import pytest
from structlog.testing import capture_logs

from worker.monitoring import loop_watch
from worker.monitoring.loop_watch import LoopWatch


def a_provider_that_blocks(until: threading.Event, secret: str) -> str:
    """Blocks as `time.sleep` or `requests.post` would."""
    until.wait()
    return secret


def test_what_blocks_the_loop_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It also reports when the loop continues."""
    monkeypatch.setattr(loop_watch, "PERIOD", 0.02)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    watch = LoopWatch(loop, thread)
    until = threading.Event()

    def said(logs: list[Any], event: str) -> Any:
        while not (found := [one for one in logs if one["event"] == event]):
            pass
        return found[0]

    with capture_logs() as logs:
        thread.start()
        watch.start()
        loop.call_soon_threadsafe(a_provider_that_blocks, until, "canary")
        blocked = said(logs, "the loop is blocked")
        until.set()
        said(logs, "the loop turns again")
        watch.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert any(
        "test_loop_watch.py" in one and "a_provider_that_blocks" in one for one in blocked["where"]
    )
    assert "canary" not in str(logs)
