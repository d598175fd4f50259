"""The cookbook: each recipe runs alone, after the shared blocks at the top of the page."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sandbox.server import SandboxServer
from tests.gateway.service import start
from tests.integration.guide import Block, Reader, blocks, move_in
from tests.integration.installation import ROOT, Installation, installation
from tests.programs import needed
from worker.cli.app import COMMANDS

PAGE = ROOT / "docs" / "cookbook.md"


def recipes() -> dict[str, list[Block]]:
    """The blocks below each heading; under "", those that all recipes share."""
    found: dict[str, list[Block]] = {"": []}
    headings = {
        number: line.removeprefix("## ")
        for number, line in enumerate(PAGE.read_text("utf-8").splitlines(), 1)
        if line.startswith("## ")
    }
    for block in blocks(PAGE):
        above = [title for number, title in headings.items() if number < block.line]
        found.setdefault(above[-1] if above else "", []).append(block)
    assert len(found) == len(headings) + 1, "a recipe shows no code"
    return found


RECIPES = recipes()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installation, str]]:
    """One installation for all recipes, with two stores and the HTTP service; returns its
    address."""
    needed("the cookbook's blocks", "bash", "curl", "redis-cli")
    folder = tmp_path_factory.mktemp("cookbook")
    with ExitStack() as running:
        outlet = running.enter_context(SandboxServer())
        store = {"accounts__open2b__outlet__base_url": outlet.url}
        here = running.enter_context(installation(folder, broker_url="", **store))
        url, _, _ = start(running, folder, here.environment, "--port", "0")
        yield here, url


@pytest.mark.parametrize("title", [title for title in RECIPES if title])
def test_each_block_of_a_recipe_does_what_it_shows(
    title: str,
    here: tuple[Installation, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader needs only the top of the page and the recipe."""
    installed, url = here
    move_in(tmp_path, installed.environment, monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    servers = {
        "127.0.0.1:8900": urlsplit(installed.server.url).netloc,
        "127.0.0.1:8080": urlsplit(url).netloc,
    }
    with closing(Reader(tmp_path, servers)) as reader:
        for block in [*RECIPES[""], *RECIPES[title]]:
            reader.read(block)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    duplicates = [installed.sandbox.accounts.duplicates(name) for name in ("open2b", "skypostal")]
    assert duplicates == [0, 0]


def test_the_list_at_the_top_leads_to_each_recipe() -> None:
    """Every link works, and each command that the page names exists."""
    text = PAGE.read_text("utf-8")
    linked = set(re.findall(r"\]\(#([\w-]+)\)", text))
    assert linked == {title.lower().replace(" ", "-") for title in RECIPES if title}
    assert set(re.findall(r"(?<![\w/.])regworker ([a-z]+)", text)) - {"import"} <= set(COMMANDS)
