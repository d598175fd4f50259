"""The `Dockerfile`, read: its instructions, stage by stage."""

import json
import re
from dataclasses import dataclass

from tests.integration.installation import ROOT

FILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """A line of the file, with those that continue it."""

    name: str
    value: str

    def words(self) -> list[str]:
        """A command in the exec form: no shell stands between a signal and it."""
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
    """The instruction of that name that counts: the last one of the last stage."""
    return [one for one in stages()[-1] if one.name == name][-1]


def healthcheck() -> list[str]:
    """The command that tells whether a container is well."""
    return Instruction("CMD", last("HEALTHCHECK").value.partition("CMD ")[2]).words()


def _instructions() -> list[Instruction]:
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Instruction(name.upper(), value.strip())
        for name, _, value in (line.partition(" ") for line in text.splitlines() if line)
    ]
