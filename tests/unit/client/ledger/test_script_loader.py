"""A script is sent with the parts of `_lib.lua` that it uses, and with nothing else."""

import re
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regworker.ledger.calls import scripts
from regworker.ledger.script_loader import link, pieces

LIB = (resources.files("regworker.ledger") / "scripts" / "_lib.lua").read_text("utf-8")
LIB_NAMES = [
    name
    for made in re.findall(r"^local (?:function )?(\w+(?:, \w+)*)", LIB, re.MULTILINE)
    for name in made.split(", ")
]


def linked(shared: str, script: str) -> str:
    """The code that is put in front of a script."""
    return link(pieces(shared), script).removesuffix(script)


@pytest.mark.parametrize("name", sorted(scripts()))
def test_what_a_script_names_of_the_shared_part_is_made_above(name: str) -> None:
    """A script uses each name of `_lib.lua` only after its definition."""
    code = re.sub(r"--.*", "", scripts()[name])
    for word in LIB_NAMES:
        if first := re.search(rf"\b{word}\b", code):
            made = re.search(rf"^local (?:function )?(?:\w+, )*{word}\b", code, re.MULTILINE)
            assert made, f"{word} is not defined"
            assert made.end() == first.end(), f"{word} is used before its definition"


@pytest.mark.parametrize("name", sorted(scripts()))
def test_a_script_gives_nothing_the_name_of_a_shared_piece(name: str) -> None:
    """The piece would be sent with the script, and its commands would need the caller's rights."""
    own = re.sub(r"--.*", "", scripts()[name].partition(f"-- {name}: ")[2])
    made = re.findall(r"\b(?:(?:local(?! function)|for)\b[\w, ]+|function\b[\w(, ]+)", own)
    assert not {*re.findall(r"\w+", " ".join(made))} & {*LIB_NAMES}


def test_each_shared_piece_is_of_use_to_a_script() -> None:
    """Every piece of `_lib.lua` is sent with at least one script."""
    together = "\n".join(scripts().values())
    assert [piece for piece in pieces(LIB) if piece.source not in together] == []


def test_a_script_that_uses_nothing_is_sent_alone() -> None:
    """A script that uses nothing of `_lib.lua` is sent without it."""
    assert scripts()["look"].startswith("-- look: ")


SHARED = """\
-- what all share

local A, B = 1, 2  -- the second is of b
local T = {
  one = A,
}

-- of b, and of A
local function b()
  return B

end
local function c(x) return b() + x end
"""


def test_a_piece_is_a_statement_without_the_comments_around_it() -> None:
    """A piece begins with `local`; the indented lines and the closing line after it belong to
    it."""
    found = [(piece.source, sorted(piece.makes)) for piece in pieces(SHARED)]
    assert found == [
        ("local A, B = 1, 2  -- the second is of b", ["A", "B"]),
        ("local T = {\n  one = A,\n}", ["T"]),
        ("local function b()\n  return B\nend", ["b"]),
        ("local function c(x) return b() + x end", ["c"]),
    ]


@pytest.mark.parametrize(
    ("script", "makes"),
    [
        ("return 1", []),
        ("return T", ["A", "T"]),
        ("return b()", ["A", "b"]),
        ("return c(1)", ["A", "b", "c"]),
        ("return 'a'..b()", ["A", "b"]),
        ("return {A}", ["A"]),
        ("return '--' .. B", ["A"]),
        ("return '\\'' .. T", ["A", "T"]),
        ("return cc + b1 + _A", []),
        ("return 1 -- c() would do", []),
        ("return 'c' .. \"T\"", []),
    ],
)
def test_a_script_gets_the_pieces_that_it_names_and_those_that_they_name(
    script: str, makes: list[str]
) -> None:
    """A name in a comment, in a string or in a longer word does not count."""
    assert [min(piece.makes) for piece in pieces(linked(SHARED, script))] == makes


@pytest.mark.parametrize(
    "line", ["A = 2", "function d() end", "for _ = 1, 2 do", "  return 1", "localA = 1"]
)
def test_a_statement_that_is_not_local_is_refused(line: str) -> None:
    """Otherwise it would silently be missing from the scripts that need it."""
    with pytest.raises(ValueError, match=re.escape(line)):
        pieces(f"{line}\n{SHARED}")


#: Forms of a piece, and of the text around it.
FORMS = st.sampled_from(
    [
        "local function f{n}() return {uses} end\n",
        "local function f{n}()\n  -- not f0\n\n  return {uses}\nend\n",
        "\n-- f0, f1, f2\nlocal f{n}, z{n} = function()\n  return {uses}\nend, 1\n",
        "local f{n} = make({{\n  'f1',\n  {uses},\n}})\n-- end\n",
    ]
)


@given(st.data())
def test_a_script_gets_all_that_it_needs_in_order_and_nothing_else(data: st.DataObject) -> None:
    """For any dependencies between pieces and any text around them, exactly the needed ones are
    sent."""
    count = data.draw(st.integers(1, 8))
    some = st.sets(st.integers(0, count - 1))
    uses = [{one for one in data.draw(some) if one < number} for number in range(count)]
    shared = "".join(data.draw(FORMS).format(n=n, uses=called(uses[n])) for n in range(count))
    wanted = data.draw(some)
    reached = set(wanted)
    while more := {one for number in reached for one in uses[number]} - reached:
        reached |= more
    found = pieces(linked(shared, f"return {called(wanted)}\n"))
    assert [min(piece.makes) for piece in found] == [f"f{number}" for number in sorted(reached)]


def called(numbers: set[int]) -> str:
    """An expression that uses these pieces."""
    return " + ".join(["0", *(f"f{number}()" for number in numbers)])


@pytest.mark.parametrize("name", sorted(scripts()))
def test_no_pattern_is_tried_at_each_character_of_a_text(name: str) -> None:
    """A pattern that is anchored only at its end takes the square of the text's length."""
    patterns = re.findall(r":g?match\('((?:\\.|[^'\\])*)'", scripts()[name])
    for one in patterns:
        assert not one.endswith("$") or one.startswith(("^", r"\n")), one
