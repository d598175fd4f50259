"""Puts in front of a script what it uses of the part that all share, and no more.

The server runs a script from its first line at each call: a function that stands there is made anew
each time, called or not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Comments and texts go by, so that what is found in them is no name.
_NAME = re.compile(r"""--.*|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|([A-Za-z_]\w*)""")

#: How a piece begins, with the names that it makes; how its other lines do: further in, or closing
#: what was opened; and what stands between pieces.
_FIRST = re.compile(r"local (?:function )?([\w, ]+)")
_OTHER = re.compile(r"\s|end\b|[})]")
_BETWEEN = re.compile(r"--|$")


@dataclass(frozen=True, slots=True)
class Piece:
    """One statement of the shared part."""

    source: str
    makes: frozenset[str]
    """The names that whatever stands below it may use."""
    uses: frozenset[str]
    """The names that occur in it, those of pieces above it among them."""


def pieces(shared: str) -> list[Piece]:
    """The statements of the shared part, in their order, without the comments between them.

    `ValueError` for one that is not `local`: nothing would show which scripts need it.
    """
    found: list[tuple[str, list[str]]] = []
    for line in shared.splitlines():
        if first := _FIRST.match(line):
            found.append((first[1], [line]))
        elif found and _OTHER.match(line):
            found[-1][1].append(line)
        elif not _BETWEEN.match(line):
            raise ValueError(f"what scripts share is made of `local` statements, unlike: {line}")
    statements = [(made, "\n".join(lines)) for made, lines in found]
    return [Piece(source, _names(made), _names(source)) for made, source in statements]


def link(shared: Sequence[Piece], script: str) -> str:
    """A script, behind the pieces that it uses, itself or by way of others."""
    used = [script]
    needed = _names(script)
    # A name holds only below where it is made: one way up comes by all that is used.
    for piece in reversed(shared):
        if piece.makes & needed:
            used.append(piece.source)
            needed |= piece.uses
    return "\n".join(reversed(used))


def _names(source: str) -> frozenset[str]:
    return frozenset(filter(None, _NAME.findall(source)))
