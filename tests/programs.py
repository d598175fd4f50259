"""Programs that some tests run besides Python's.

`make test` needs none of them: a test whose program is not on the machine is left out, and says so.
Where everything must be tested, `.ci/run` sees to the programs, and their absence is a failure.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

#: Set by `.ci/run`.
EVERYTHING = bool(os.environ.get("REGWORKER_TEST_EVERYTHING"))

#: Seconds for `npm ci`, which fetches what no run before this one has.
FETCHING = 300


def needed(what_for: str, *names: str) -> list[str]:
    """Where these programs are; without one of them, the test is left out (in CI, it fails)."""
    found = {name: shutil.which(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        leave_out(f"{what_for}: needs {', '.join(missing)} on this machine")
    return [path for path in found.values() if path]


def leave_out(why: str) -> None:
    """End this test: it cannot run here."""
    if EVERYTHING:
        pytest.fail(why)
    pytest.skip(why)


def answers(url: str) -> bool:
    """Whether somebody listens at a URL's host and port."""
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 5672), 3).close()
    except OSError:
        return False
    return True


def npm_packages(config: pytest.Config, source: Path, what_for: str) -> Path:
    """A copy of a folder with its npm packages at the pinned versions, kept from run to run."""
    needed(what_for, "node", "npm")
    files = ("package-lock.json", "package.json")
    pinned = b"".join((source / name).read_bytes() for name in files)
    assert config.cache is not None
    made = config.cache.mkdir(source.name) / hashlib.sha256(pinned).hexdigest()[:16]
    if not made.is_dir():
        # Made elsewhere, and put there whole: another run may want it at the same time.
        with tempfile.TemporaryDirectory(dir=made.parent) as folder:
            new = Path(folder) / source.name
            shutil.copytree(source, new, ignore=shutil.ignore_patterns("node_modules"))
            done = subprocess.run(
                ["npm", "ci", "--no-progress"],
                cwd=new,
                capture_output=True,
                text=True,
                timeout=FETCHING,
                check=False,
            )
            assert done.returncode == 0, f"npm ci failed:\n{done.stderr}"
            with suppress(OSError):  # the other run was first
                new.rename(made)
            assert made.is_dir()
    for file in source.glob("*.mjs"):
        # Put there whole, too: somebody may be running it.
        copied = shutil.copy(file, made / f".{file.name}.{os.getpid()}")
        Path(copied).rename(made / file.name)
    return made
