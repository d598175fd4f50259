"""The `Dockerfile` as instructions, stage by stage."""

import json
import re
from dataclasses import dataclass

from tests.integration.installation import ROOT

FILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """An instruction of the file, with its continuation lines."""

    name: str
    value: str

    def words(self) -> list[str]:
        """A command in the exec form: without a shell, signals reach the process."""
        words: list[str] = json.loads(self.value)
        return words


def stages() -> list[list[Instruction]]:
    """The instructions of each stage; its FROM comes first."""
    found: list[list[Instruction]] = []
    for one in _instructions():
        if one.name == "FROM":
            found.append([])
        found[-1].append(one)
    return found


def last(name: str) -> Instruction:
    """The instruction of this name that takes effect: the last one of the last stage."""
    return [one for one in stages()[-1] if one.name == name][-1]


def healthcheck() -> list[str]:
    """The command that checks whether a container is healthy."""
    return Instruction("CMD", last("HEALTHCHECK").value.partition("CMD ")[2]).words()


def _instructions() -> list[Instruction]:
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Instruction(name.upper(), value.strip())
        for name, _, value in (line.partition(" ") for line in text.splitlines() if line)
    ]
