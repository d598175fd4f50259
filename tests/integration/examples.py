"""Runs the programs in `examples/`, each in a process of its own, as their users do."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.installation import PATIENCE, ROOT
from tests.programs import npm_packages
from worker.cli.local import stack

EXAMPLES = ROOT / "examples"


def node_examples(config: pytest.Config) -> Path:
    """`examples/node` with its packages at the pinned versions; kept between runs."""
    return npm_packages(config, EXAMPLES / "node", "the examples in JavaScript")


@dataclass
class Example:
    """A running example; `output`: the file to which it writes."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        """Everything that it has written so far."""
        return self.output.read_text("utf-8", "replace")

    def wait_for(self, text: str) -> str:
        """Wait until it writes this text; return the line that contains it."""

        def says() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.said()}"
            return any(text in line for line in self._lines())

        stack.until(says, f"{text!r} from an example", PATIENCE)
        return next(line for line in self._lines() if text in line)

    def _lines(self) -> list[str]:
        return self.said().split("\n")[:-1]  # whole ones


@contextmanager
def running(command: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[Example]:
    """Run an example in a folder of its own until the end of the block."""
    folder.mkdir(exist_ok=True)
    output = folder / "output.txt"
    with (
        output.open("ab") as file,
        stack.process(command, environment, folder, file) as process,
    ):
        yield Example(process, output)


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> str:
    """Run an example to its end; return what it wrote."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def python(name: str, *arguments: str) -> list[str]:
    """The command that runs an example in Python."""
    return [sys.executable, str(EXAMPLES / "python" / name), *arguments]
