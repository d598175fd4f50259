"""Runs a page of the guide as a reader does: each of its code blocks, from the top.

python    one after another in one namespace; lines with `#> ` are the printed output.
          A file name may follow the language: the block is saved under it
console   a shell; the output of each `$ command` follows it, if it is shown.
          `server` after the language: a command that runs until the page ends, and stops at SIGTERM
js        a module of its own
json      checked against the contract; a file name may follow the language: it is saved under it

In output, `…` stands for any text in a line, and in a line of its own for any lines. A page must
not contain any other block, so that each block is run.
"""

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.installation import PATIENCE, ROOT
from worker.cli.local import stack

SCHEMAS = {
    name: json.loads((ROOT / f"docs/contract/v1/{name}.schema.json").read_text("utf-8"))
    for name in ("job", "cancel", "event")
}

#: What a shell prints between two commands.
_NEXT = "-- next --"


@dataclass(frozen=True)
class Block:
    """One code block. `line`: the line of the page where it begins."""

    page: Path
    line: int
    language: str
    file: str
    text: str

    @property
    def where(self) -> str:
        """The block's page and line, for error messages."""
        return f"{self.page.name}:{self.line} ({self.language})"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page; fences alternately open and close a block."""
    found: list[Block] = []
    inside: Block | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r"\s*(```|~~~)\s*(\S*) ?(.*)", line)
        if fence is None:
            assert inside is not None or not line.startswith("    "), f"{page}:{number}: no fence"
            lines.append(line)
        elif inside is None:
            inside, lines = Block(page, number, fence[2], fence[3], ""), []
        else:
            found.append(Block(page, inside.line, inside.language, inside.file, "\n".join(lines)))
            inside = None
    assert inside is None, f"{page}: a block has no end"
    return found


def move_in(folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder like that of a reader who has started a development server beside it."""
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / ".regworker").mkdir()
    (folder / ".regworker" / "env").write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)


class Reader:
    """Follows a page as a reader does, in a folder, with the settings in the environment."""

    def __init__(
        self, folder: Path, servers: dict[str, str], programs: Path | None = Path(sys.executable)
    ) -> None:
        """`servers`: replaces the servers that the page names with those of the test. `programs`:
        the folder with the programs; None: the page itself says how to install them."""
        self._folder = folder
        self._programs = programs
        self._servers = servers
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._number = 0
        self._started: list[tuple[Block, subprocess.Popen[bytes], Path]] = []

    def close(self) -> None:
        """Stop the servers that the page started, the last one first."""
        with ExitStack() as stopping:
            for block, process, log in self._started:
                stopping.callback(_stop, block, process, log)
        self._started.clear()

    def read(self, block: Block) -> None:
        """Run a block; `AssertionError` if the result differs from what the page shows."""
        text = block.text
        for there, here in self._servers.items():
            text = text.replace(there, here)
        match block.language:
            case "python" if block.file:
                file = self._folder / block.file
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, "utf-8")
            case "python":
                self._python(block, text)
            case "console" if block.file == "server":
                self._server(block, text)
            case "console":
                self._console(block, text)
            case "js":
                self._js(block, text)
            case "json":
                self._json(block, text)
            case _:
                raise AssertionError(f"{block.where}: nobody runs this language")

    def _python(self, block: Block, text: str) -> None:
        shown = [line[3:] for line in text.splitlines() if line.startswith("#> ")]
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile("\n" * block.line + text, str(block.page), "exec"), self._names)
        _as_shown(block, shown, said.getvalue().splitlines())

    def _console(self, block: Block, text: str) -> None:
        commands: list[tuple[str, list[str]]] = []
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            *first, last = _command(part)
            commands.append(("\n".join(first), last.splitlines()))
        assert commands, f"{block.where}: no command"
        script = "".join(f"{command}\necho '{_NEXT}'\n" for command, _ in commands)
        done = self._run(["bash", "-e", "-o", "pipefail", "-c", script])
        assert done.returncode == 0, f"{block.where} failed:\n{done.stdout}"
        said = done.stdout.split(f"{_NEXT}\n")
        for (_, shown), answer in zip(commands, said, strict=False):
            if shown:
                _as_shown(block, shown, answer.splitlines())

    def _server(self, block: Block, text: str) -> None:
        command = text.removeprefix("$ ")
        self._number += 1
        log = self._folder / f"server{self._number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._started.append((block, process, log))
        if port := re.search(r"127\.0\.0\.1(?::| --port )(\d+)", command):
            stack.until(
                lambda: process.poll() is not None or _listens(int(port[1])),
                f"{block.where} does not listen",
                PATIENCE,
            )
            assert process.poll() is None, f"{block.where} ended:\n{log.read_text('utf-8')}"

    def _js(self, block: Block, text: str) -> None:
        self._number += 1
        file = self._folder / f"block{self._number}.mjs"
        file.write_text(text, "utf-8")
        shown = [line[4:] for line in text.splitlines() if line.startswith("//> ")]
        done = self._run(["node", str(file)])
        assert done.returncode == 0, f"{block.where} failed:\n{done.stdout}"
        _as_shown(block, shown, done.stdout.splitlines())

    def _json(self, block: Block, text: str) -> None:
        from jsonschema import Draft202012Validator  # takes two seconds

        value = json.loads(text)
        markers = {"specversion": "event", "registration": "job"}
        name = next((name for field, name in markers.items() if field in value), "cancel")
        Draft202012Validator(SCHEMAS[name]).validate(value)
        if block.file:
            (self._folder / block.file).write_text(text, "utf-8")

    def _environment(self) -> dict[str, str]:
        path = os.environ["PATH"]
        if self._programs is not None:
            path = f"{self._programs.parent}{os.pathsep}{path}"
        return {**os.environ, "PATH": path, "COLUMNS": "200"}

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def _stop(block: Block, process: subprocess.Popen[bytes], log: Path) -> None:
    assert process.poll() is None, f"{block.where} ended:\n{log.read_text('utf-8', 'replace')}"
    process.terminate()
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    said = log.read_text("utf-8", "replace")
    # uvicorn ends itself with the signal, after its shutdown.
    assert code in {0, -signal.SIGTERM}, f"{block.where} ended with {code}:\n{said}"
    assert "Traceback" not in said, f"{block.where} says\n{said}"


def _command(part: str) -> list[str]:
    """The lines of a command, and the rest: the output that the page shows."""
    lines = part.split("\n")
    end = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
    if lines[end].endswith("<<'END'"):
        end = lines.index("END")
    return [*lines[: end + 1], "\n".join(lines[end + 1 :])]


def _as_shown(block: Block, shown: list[str], said: list[str]) -> None:
    shown, said = [line.rstrip() for line in shown], [line.rstrip() for line in said]
    # A line that consists of `…` stands for any number of lines.
    patterns = [
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shown
    ]
    assert re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in said)), (
        f"{block.where} shows\n" + "\n".join(shown) + "\n\nand it says\n" + "\n".join(said)
    )
