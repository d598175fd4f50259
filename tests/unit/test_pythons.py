"""All places that name the supported versions of Python name the same."""

import re
import tomllib
from pathlib import Path

import pytest

from release.__main__ import PYTHONS

ROOT = Path(__file__).parents[2]
FIRST, LAST = PYTHONS[0], PYTHONS[-1]


@pytest.mark.parametrize("file", ["pyproject.toml", "client/pyproject.toml"])
def test_a_distribution_allows_and_names_them(file: str) -> None:
    """Its range and its classifiers."""
    project = tomllib.loads((ROOT / file).read_text("utf-8"))["project"]
    major, minor = map(int, LAST.split("."))
    assert project["requires-python"] == f">={FIRST},<{major}.{minor + 1}"
    named = [
        one.rpartition(" :: ")[2] for one in project["classifiers"] if ":: Python :: 3." in one
    ]
    assert tuple(named) == PYTHONS


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/guide/README.md", "setup.sh"]
)
def test_who_sets_it_up_is_told(page: str) -> None:
    """The first and the last."""
    text = (ROOT / page).read_text("utf-8")
    assert f"Python {FIRST} to {LAST}" in text
    assert not re.search(r"Python 3\.\d+, 3\.\d+", text), "a list is a second statement"


def test_the_setup_and_the_release_try_all() -> None:
    """And no other."""
    setup = (ROOT / "setup.sh").read_text("utf-8")
    [names] = re.findall(r"^for name in .*; do$", setup, re.MULTILINE)
    assert re.findall(r"python(3\.\d+)", names) == [*reversed(PYTHONS)]
    major, minor = map(int, LAST.split("."))
    assert f"< ({major}, {minor + 1}))" in setup
    workflow = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    assert re.findall(r"^ +(3\.\d+)$", workflow, re.MULTILINE) == [*reversed(PYTHONS)]
