"""The test run itself: a test that hangs fails, programs receive signals, skipped tests are
named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HANGING = """
import asyncio, signal, threading
import pytest
from hypothesis import given, strategies
from hypothesis.stateful import RuleBasedStateMachine, rule

def test_waits():
    threading.Event().wait()

@pytest.fixture
def stuck():
    threading.Event().wait()

def test_waits_for_its_fixture(stuck):
    pass

def test_swallows_all_exceptions():
    async def main():
        while True:
            try:
                await asyncio.sleep(100)
            except Exception:
                pass
    asyncio.run(main())

@given(strategies.integers())
def test_hypothesis_waits(_):
    threading.Event().wait()

class Machine(RuleBasedStateMachine):
    @rule()
    def waits(self):
        threading.Event().wait()

TestMachine = Machine.TestCase

def reported(_):
    while signal.getitimer(signal.ITIMER_REAL)[0]:
        pass

def test_fails_just_before_its_limit():
    __tracebackhide__ = reported
    assert False

def test_is_well():
    pass
"""

SIGNALS = [signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM]

SHOW = "import signal, sys; print(signal.getsignal(int(sys.argv[1])) == signal.SIG_IGN)"


def run(*arguments: str, folder: Path, **environment: str) -> str:
    """Run pytest under a shell that ignores all signals; return its output."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    names = " ".join(one.name.removeprefix("SIG") for one in SIGNALS)
    done = subprocess.run(
        ["sh", "-c", f"trap '' {names}; exec \"$@\"", "sh", *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.stdout


def test_a_test_that_hangs_fails(tmp_path: Path) -> None:
    """The failure has its name, whatever it waits for; the other tests run."""
    pytest.importorskip("pytest_timeout")
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    (tmp_path / "test_hanging.py").write_text(HANGING)
    said = run("-n", "1", "-W", "error", folder=tmp_path, PYTEST_TIMEOUT="1")
    for name in (
        "test_waits",
        "test_waits_for_its_fixture",
        "test_swallows_all_exceptions",
        "test_fails_just_before_its_limit",
        "test_hypothesis_waits",
        "TestMachine",
    ):
        assert f"test_hanging.py::{name}" in said
    assert "6 failed, 1 passed" in said or "5 failed, 1 passed, 1 error" in said, said


def test_a_run_ends_with_a_line_that_names_what_it_left_out(tmp_path: Path) -> None:
    """Each reason has its number of tests; a run of all tests also names the commands that it
    does not replace."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text("utf-8"))
    (tmp_path / "test_skipped.py").write_text(
        "import pytest\n\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_it(n):\n    pytest.skip('RabbitMQ: needs rabbitmq-server')\n"
    )
    line = "left out: 2 (RabbitMQ: needs rabbitmq-server); .ci/run installs what they need, "
    whole = run(folder=tmp_path)
    assert line in whole
    assert "REGWORKER_TEST_EVERYTHING=1" in whole
    assert "on RabbitMQ (make test-rabbitmq)" in whole
    part = run("test_skipped.py", folder=tmp_path)
    assert line in part
    assert "make test-rabbitmq" not in part


@pytest.mark.parametrize("number", SIGNALS)
def test_a_program_is_started_with_the_default_of_each_signal(number: signal.Signals) -> None:
    """This holds even if this process was started with ignored signals."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, str(number)], capture_output=True, text=True, check=True
    )
    assert shown.stdout == "False\n"


def test_a_shell_that_ignores_signals_changes_nothing() -> None:
    """Programs inherit ignored signals from their shell, and tests' programs would, too."""
    name = "test_a_program_is_started_with_the_default_of_each_signal"
    said = run(f"{Path(__file__).relative_to(ROOT)}::{name}", folder=ROOT)
    assert f"{len(SIGNALS)} passed" in said
