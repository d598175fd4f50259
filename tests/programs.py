"""Programs besides Python's that some tests run.

`make test` needs none of them: a test whose program is not installed is left out, and the run
says so. `.ci/run` installs all programs, and there a missing program is a failure."""

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

#: Seconds for `npm ci`, which downloads packages that are not cached yet.
FETCHING = 300


def needed(what_for: str, *names: str) -> list[str]:
    """The paths of these programs; if one is missing, the test is left out (in CI it fails)."""
    found = {name: shutil.which(name) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        leave_out(f"{what_for}: needs {', '.join(missing)} on this machine")
    return [path for path in found.values() if path]


def leave_out(why: str) -> None:
    """End this test, which cannot run here."""
    if EVERYTHING:
        pytest.fail(why)
    pytest.skip(why)


def answers(url: str) -> bool:
    """Whether something listens at the host and port of a URL."""
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
        # Installed elsewhere, and moved here as a whole: another run may want it at the same time.
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
            with suppress(OSError):  # another run was first
                new.rename(made)
            assert made.is_dir()
    for file in sorted(set(source.iterdir()) - {source / name for name in files}):
        # Moved here as a whole, too: another process may be running it.
        copied = shutil.copy(file, made / f".{file.name}.{os.getpid()}")
        Path(copied).rename(made / file.name)
    return made
