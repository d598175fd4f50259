"""`regworker top`: an installation on one screen, in a terminal of any size, and in a pipe."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console

from regworker.domain.job import Job
from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce, hold
from regworker.ledger.snapshot import Beat, beat, snapshot
from regworker.ledger.transitions import accept
from tests.integration.installation import PATIENCE
from worker.cli.commands.stats import numbers
from worker.cli.screen import ROWS, Screen
from worker.monitoring.overview import Overview, Server

SERVER = Server("valkey 9.1", 3 << 20, 0, aof_enabled=True, aof_ok=True, primary=True, clients=3)


class Terminal:
    """A user's terminal: what it shows, and what is typed."""

    def __init__(self, main: int, process: subprocess.Popen[bytes]) -> None:
        self._main = main
        self.process = process
        self.shown = ""

    def wait_for(self, text: str) -> None:
        """Wait until this text is shown."""
        end = time.monotonic() + PATIENCE * 2
        seen = len(self.shown)
        while text not in self.shown[seen:]:
            assert time.monotonic() < end, f"{text!r} is not shown: {self.shown[-2000:]!r}"
            assert self._read(1.0), f"ended before {text!r}: {self.shown[-2000:]!r}"

    def press(self, key: str) -> None:
        """Type a key."""
        os.write(self._main, key.encode())

    def end(self) -> int:
        """Read until the command ends; return its exit code."""
        while self._read(PATIENCE):
            pass
        return self.process.wait(PATIENCE)

    def cooked(self) -> bool:
        """Whether the terminal echoes lines, as a shell needs it."""
        return bool(termios.tcgetattr(self._main)[3] & (termios.ICANON | termios.ECHO))

    def _read(self, seconds: float) -> bool:
        if not select.select([self._main], [], [], seconds)[0]:
            return True
        try:
            found = os.read(self._main, 65536)
        except OSError:  # the terminal is closed
            return False
        self.shown += found.decode("utf-8", "replace")
        return bool(found)


@contextmanager
def terminal(url: str, *options: str, rows: int = 24, columns: int = 80) -> Iterator[Terminal]:
    """Run `top` in a terminal of that size."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    environment = {
        name: os.environ[name] for name in os.environ if name not in {"COLUMNS", "LINES"}
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "top", *options],
        env={**environment, "REGWORKER_REDIS_URL": url, "TERM": "xterm-256color"},
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
    )
    os.close(side)
    try:
        yield Terminal(main, process)
    finally:
        process.kill()
        process.wait()
        os.close(main)


@pytest.fixture
def busy(ledger: SyncLedger) -> Iterator[SyncLedger]:
    """Two lanes, an account, an endpoint, a worker."""
    ledger(announce([Limits("acme", "default", 100, 1000, 5)], ["results", "crm"]))
    for key, lane in (("1", "live"), ("2", "bulk"), ("3", "bulk")):
        job = Job(provider="acme", idempotency_key=key, registration={}, lane=lane)
        ledger(accept(job, "sealed", ["k:1"], 3600))
    ledger(beat(sign("host:1"), 600))
    yield ledger
    ledger.redis.flushdb()


def sign(name: str, age: float = 0) -> Beat:
    """A worker's heartbeat."""
    parts = {"loop": (0.0, 1e6), "consumer": (age, 30.0)}
    return Beat(name, "host", 1, "0.1.0", "threads", 10, 5, 2, "", parts, 0)


@pytest.mark.parametrize("key", ["q", "\x03"], ids=["q", "Ctrl-C"])
def test_top_goes_on_until_it_is_left(busy: SyncLedger, redis_url: str, key: str) -> None:
    """Changes appear at once; afterwards the terminal is as before."""
    with terminal(redis_url, "--interval", "0.2") as screen:
        screen.wait_for("acme/default")
        screen.wait_for("last ")
        busy(beat(sign("host:2"), 600))
        screen.wait_for("host:2")
        if key == "q":
            screen.press("x")  # an unknown key
            screen.press(key)
        else:
            os.killpg(screen.process.pid, signal.SIGINT)
        assert screen.end() == 0
        assert "\x1b[?1049h" in screen.shown, "a screen of its own"
        assert screen.shown.rindex("\x1b[?1049l") > screen.shown.rindex("acme/default")
        assert screen.cooked()


def test_top_outlives_the_ledger(own_valkey: object) -> None:
    """While the ledger is away, the screen says so; then it continues."""
    server = own_valkey(appendfsync="always")  # type: ignore[operator]
    ledger = SyncLedger(server.connection_url)
    ledger(announce([Limits("acme", "default", 100, 1000, 5)], ["results"]))
    ledger.close()
    with terminal(server.connection_url, "--interval", "0.2") as screen:
        screen.wait_for("acme/default")
        process, port = server._process, server.port
        process.send_signal(signal.SIGSTOP)
        try:
            screen.wait_for("the ledger did not answer")
        finally:
            process.send_signal(signal.SIGCONT)
        screen.wait_for("q quits")
        screen.press("q")
        assert screen.end() == 0
    assert port


def test_top_prints_one_look_into_a_pipe(busy: SyncLedger, redis_url: str) -> None:
    """Without terminal escapes; `--json` prints the same as `stats`."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", "top"],
        env={**os.environ, "REGWORKER_REDIS_URL": redis_url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=True,
    )
    assert "\x1b" not in done.stdout
    lanes = [line.split() for line in done.stdout.splitlines() if line[:4] in {"live", "bulk"}]
    assert [line[:3] for line in lanes] == [["live", "1", "1"], ["bulk", "2", "2"]]
    assert "acme/default" in done.stdout
    assert "in all: accepted 3" in done.stdout
    with subprocess.Popen(
        [sys.executable, "-m", "worker.cli", "top", "--json", "--interval", "0.1"],
        env={**os.environ, "REGWORKER_REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
    ) as following:
        assert following.stdout is not None
        looks = [json.loads(following.stdout.readline()) for _ in range(2)]
        following.kill()
    assert looks[0]["at"] < looks[1]["at"]
    assert looks[0]["jobs"]["queued"] == {"live": 1, "bulk": 2}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (200, 60)])
def test_a_screen_holds_what_matters_of_a_large_installation(
    busy: SyncLedger, width: int, height: int
) -> None:
    """Omitted lines are counted; a stuck worker is shown before the others."""
    busy(
        announce(
            [Limits("acme", f"account-{n}", 100, 1000, 5) for n in range(30)],
            ["results", *(f"hook-{n}" for n in range(20))],
        )
    )
    for number in range(40):
        busy(beat(sign(f"host:{1000 + number}"), 600))
    busy(beat(sign("host:9999", age=99), 600))
    found = Overview(busy(snapshot()), SERVER, {"registrations.live": 3})
    console = Console(width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(Screen().fitting(found, height, "q quits"))
    lines = capture.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for heading in ("account (31)", "endpoint (21)", "worker (42)"):
        assert heading in text
    assert "host:9999" in text
    assert "stuck: consumer" in text
    assert "! 1 worker stuck or silent" in text
    assert lines[-1].strip() == "q quits"


def test_a_whole_screen_has_the_first_of_very_many_rows(busy: SyncLedger) -> None:
    """Accounts with a problem come first."""
    busy(announce([Limits("acme", f"b{number:03}", 0, 0, 5) for number in range(60)], []))
    busy(hold(("acme", "b059"), "pause", "maintenance"))
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(Screen().whole(Overview(busy(snapshot()), SERVER, {})))
    text = capture.get()
    rows = re.findall(r"acme/\S+", text)
    assert len(rows) == ROWS
    assert rows[0] == "acme/b059"
    assert re.search(r"account \(\d+\)", text)


def test_outcomes_are_counted_since_the_screen_began_and_then_over_a_minute(
    busy: SyncLedger,
) -> None:
    """The screen names the seconds that it has observed, and does not extrapolate."""
    screen = Screen()
    first = busy(snapshot())

    def later(seconds: int, registered: int) -> str:
        stats = {**first.stats, "registered:acme:default": registered}
        made = Overview(
            type(first)(**{
                **{name: getattr(first, name) for name in first.__slots__},
                "at": first.at + seconds * 1000,
                "stats": stats,
            }),
            SERVER,
            {},
        )  # fmt: skip
        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(screen.whole(made))
        return capture.get()

    assert "in all: accepted 3  registered 500" in later(0, 500)
    assert "last 30 s: accepted 0  registered 50 " in later(30, 550)
    later(60, 600)
    assert "last 60 s: accepted 0  registered 60 " in later(90, 610)


def test_stats_are_json_for_scripts(busy: SyncLedger) -> None:
    """Everything that `top` shows, as valid JSON."""
    found = numbers(Overview(busy(snapshot()), SERVER, None))
    assert json.loads(json.dumps(found)) == found
    assert found["jobs"]["queued"] == found["due"] == {"live": 1, "bulk": 2}
    assert found["accounts"][0]["rate"] == 10
    assert found["workers"][0]["condition"] == "well"
    assert found["queues"] is None
