"""Puts the shared functions that a script uses before it, and no others.

The server runs a script from its first line at each call: a function in it is created each time,
called or not.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: Comments and strings are matched first, so that nothing in them counts as a name.
_NAME = re.compile(r"""--.*|'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|([A-Za-z_]\w*)""")

#: How a statement begins, with the names that it defines; its other lines are indented, or close
#: it; and the text between statements.
_FIRST = re.compile(r"local (?:function )?([\w, ]+)")
_OTHER = re.compile(r"\s|end\b|[})]")
_BETWEEN = re.compile(r"--|$")


@dataclass(frozen=True, slots=True)
class Piece:
    """One statement of the shared file."""

    source: str
    makes: frozenset[str]
    """The names that it defines for the code below it."""
    uses: frozenset[str]
    """The names that occur in it, including those of statements above it."""


def pieces(shared: str) -> list[Piece]:
    """The statements of the shared file, in order, without the comments between them.

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
    """A script after the statements that it uses, directly or indirectly."""
    used = [script]
    needed = _names(script)
    # A name is valid only below its definition: one pass upwards finds everything that is used.
    for piece in reversed(shared):
        if piece.makes & needed:
            used.append(piece.source)
            needed |= piece.uses
    return "\n".join(reversed(used))


def replaced(shared: Sequence[Piece], others: Sequence[Piece]) -> list[Piece]:
    """The shared statements, with others in the place of those that define the same names.

    Additions before the first of these go to the front, all later ones to the end.
    """
    instead = {name: piece for piece in others for name in piece.makes}
    if shared_out := [one.makes for one in shared if len(one.makes) > 1 and one.makes & {*instead}]:
        raise ValueError(f"one name of several cannot be replaced: {shared_out}")
    made = frozenset[str]().union(*(piece.makes for piece in shared))
    added = [(piece, bool(piece.makes & made)) for piece in others]
    first = next((i for i, (_, replaces) in enumerate(added) if replaces), len(added))
    return [
        *(piece for piece, _ in added[:first]),
        *(instead.get(next(iter(piece.makes)), piece) for piece in shared),
        *(piece for piece, replaces in added[first:] if not replaces),
    ]


def _names(source: str) -> frozenset[str]:
    return frozenset(filter(None, _NAME.findall(source)))
