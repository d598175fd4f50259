"""Runs a page of the guide as a reader does: each of its code blocks, from the top.

python    one after the other in one namespace; lines `#> ` are what it prints
console   a shell; after each `$ command` comes what it says, if anything is shown
js        a module of its own
json      checked against the contract; after its language may stand the file that it is saved as

In what is shown, `…` stands for anything in a line, and in a line of its own for any lines. Nothing
else may stand in a page, so that there is no block that nobody runs.
"""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.integration.installation import PATIENCE, ROOT

SCHEMAS = {
    name: json.loads((ROOT / f"docs/contract/v1/{name}.schema.json").read_text("utf-8"))
    for name in ("job", "cancel", "event")
}

#: What a shell says between two commands.
_NEXT = "-- next --"


@dataclass(frozen=True)
class Block:
    """One code block. `line`: of the page, where it begins."""

    page: Path
    line: int
    language: str
    file: str
    text: str

    @property
    def where(self) -> str:
        """For people: which one it is."""
        return f"{self.page.name}:{self.line} ({self.language})"


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page; each fence opens one or closes it."""
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


class Reader:
    """Somebody who reads a page, in a folder, with the settings in the environment."""

    def __init__(self, folder: Path, servers: dict[str, str]) -> None:
        """`servers`: where is here what the page says is elsewhere."""
        self._folder = folder
        self._servers = servers
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._number = 0

    def read(self, block: Block) -> None:
        """Do what a block shows; `AssertionError` if it is not what is shown."""
        text = block.text
        for there, here in self._servers.items():
            text = text.replace(there, here)
        match block.language:
            case "python":
                self._python(block, text)
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

    def _js(self, block: Block, text: str) -> None:
        self._number += 1
        file = self._folder / f"block{self._number}.mjs"
        file.write_text(text, "utf-8")
        shown = [line[4:] for line in text.splitlines() if line.startswith("//> ")]
        done = self._run(["node", str(file)])
        assert done.returncode == 0, f"{block.where} failed:\n{done.stdout}"
        _as_shown(block, shown, done.stdout.splitlines())

    def _json(self, block: Block, text: str) -> None:
        value = json.loads(text)
        telling = {"specversion": "event", "registration": "job"}
        name = next((name for field, name in telling.items() if field in value), "cancel")
        Draft202012Validator(SCHEMAS[name]).validate(value)
        if block.file:
            (self._folder / block.file).write_text(text, "utf-8")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self._folder,
            env={**os.environ, "PATH": path, "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
        )


def _command(part: str) -> list[str]:
    """A command's lines, and the rest: what it says."""
    lines = part.split("\n")
    end = next(n for n, line in enumerate(lines) if not line.endswith("\\"))
    return [*lines[: end + 1], "\n".join(lines[end + 1 :])]


def _as_shown(block: Block, shown: list[str], said: list[str]) -> None:
    shown, said = [line.rstrip() for line in shown], [line.rstrip() for line in said]
    # Alone in its line it stands for any lines.
    patterns = [
        r"(?:.*\n)*" if line == "…" else re.escape(line).replace("…", ".*") + r"\n"
        for line in shown
    ]
    assert re.fullmatch("".join(patterns), "".join(f"{line}\n" for line in said)), (
        f"{block.where} shows\n" + "\n".join(shown) + "\n\nand it says\n" + "\n".join(said)
    )
