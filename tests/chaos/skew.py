"""A clock that can be set: libfaketime for one server, which reads its offset from a file.

Only the time of day changes. The monotonic clock, by which the server measures durations, continues
as it does when an administrator sets a machine's clock.
"""

import math
import shlex
import time
from contextlib import suppress
from pathlib import Path

import redis

#: Where Debian, Fedora, Alpine and a local build install it. The variant for programs with threads,
#: since Valkey has some.
LIBRARIES = (
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib64/faketime/libfaketimeMT.so.1"),
    Path("/usr/lib/faketime/libfaketimeMT.so.1"),
    Path("/usr/local/lib/faketime/libfaketimeMT.so.1"),
)

#: The message of a run that cannot set clocks.
MISSING = (
    "no clock jumps are injected: there is no libfaketime on this machine"
    " (Debian and Ubuntu: apt-get install faketime)"
)


def library() -> Path | None:
    """The path of the library, if it is installed."""
    return next((path for path in LIBRARIES if path.exists()), None)


class Clock:
    """The clock of one server."""

    def __init__(self, folder: Path, library: Path) -> None:
        self.offset = 0.0
        self._library = library
        self._file = folder / "clock"
        self._start = folder / "with-clock"
        self.set(0.0)

    def set(self, offset: float) -> None:
        """Set it so many seconds ahead of the machine's clock."""
        self.offset = offset
        written = self._file.with_suffix(".new")
        written.write_text(f"{offset:+g}\n")
        # Atomically: the server may read it at any moment.
        written.replace(self._file)

    def command(self, program: Path) -> Path:
        """The command that starts a program with this clock."""
        environment = {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # Older versions use the one name, newer versions the other.
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        self._start.write_text(
            f'#!/bin/sh\nexport {exports}\nexec {shlex.quote(str(program))} "$@"\n'
        )
        self._start.chmod(0o755)
        return self._start


def sweep(pid: int) -> None:
    """Remove the files of a killed process: a new process with its id could not start otherwise."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        with suppress(OSError):
            Path("/dev/shm", name).unlink()


class Watch:
    """How far a server's clock was observed to move against the machine's."""

    def __init__(self) -> None:
        self._least = math.inf
        self._most = -math.inf

    def look(self, server: "redis.Redis") -> None:
        """Compare the clocks. A difference that the round trip can explain does not count."""
        before = time.time()
        seconds, micros = server.time()
        after = time.time()
        server_time = seconds + micros / 1e6
        self._least = min(self._least, server_time - before)
        self._most = max(self._most, server_time - after)

    @property
    def moved(self) -> float:
        """Seconds, at least."""
        return max(0.0, self._most - self._least)
