"""The guide in `docs/guide/`: each block of code in it is run, and says what is shown."""

import re
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from jsonschema import ValidationError

from tests.integration.examples import EXAMPLES, node_examples
from tests.integration.guide import Block, Reader, blocks
from tests.integration.installation import ROOT, Installation, installation
from tests.programs import needed
from worker.cli.app import COMMANDS

GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))

#: What the pages show in a shell, besides what is ours.
PROGRAMS = ("bash", "curl", "node", "openssl", "redis-cli")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation as `regworker up` starts it, and an endpoint of each other kind."""
    needed("the guide's blocks", *PROGRAMS)
    endpoints = {
        "endpoints__warehouse__kind": "queue",
        "endpoints__warehouse__queue": "warehouse.results",
        "endpoints__billing__kind": "stream",
        "endpoints__billing__stream": "{reg}:billing",
        "endpoints__billing__sealed": "true",
    }
    folder = tmp_path_factory.mktemp("guide")
    with installation(folder, broker_url="", **endpoints) as here:
        yield here


@pytest.fixture
def reader(
    here: Installation,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    """A reader in a checkout, who has started a development server."""
    node = node_examples(request.config)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "python").symlink_to(EXAMPLES / "python")
    (tmp_path / "examples" / "node").symlink_to(node)
    (tmp_path / "node_modules").symlink_to(node / "node_modules")
    (tmp_path / ".regworker").mkdir()
    (tmp_path / ".regworker" / "env").write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in here.environment.items())
    )
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    servers = {
        "127.0.0.1:6399": urlsplit(here.valkey.connection_url).netloc,
        "127.0.0.1:8900": urlsplit(here.server.url).netloc,
    }
    yield Reader(tmp_path, servers)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_of_a_page_does_what_it_shows(page: Path, reader: Reader) -> None:
    """From the top to the end, as somebody reads it."""
    for block in blocks(page):
        reader.read(block)


def test_each_job_of_the_guide_has_one_customer(here: Installation) -> None:
    """Whatever the pages do to them."""
    duplicates = [here.sandbox.accounts.duplicates(name) for name in ("open2b", "skypostal")]
    assert duplicates == [0, 0]


LINKS = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """From page to page, and to the examples."""
    for target in LINKS.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_example_and_command_that_the_guide_names_is_there() -> None:
    """`regworker something`, and files of `examples/`; and all of these are named."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"(?<![\w/.])regworker ([a-z]+)", text))
    assert named <= set(COMMANDS), named - set(COMMANDS)
    files = {
        str(file.relative_to(ROOT))
        for file in [*EXAMPLES.glob("python/*.py"), *EXAMPLES.glob("node/*.mjs")]
    }
    shown = set(re.findall(r"examples/(?:python|node)/\w+\.(?:py|mjs)", text))
    assert shown == files


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("python", "print(1)\n#> 2"),
        ("console", "$ echo 1\n2"),
        ("console", "$ false"),
        ("console", "$ false | true"),
        ("js", "console.log(1);\n//> 2"),
        ("json", '{"provider": "open2b", "idempotency_key": "k", "registration": {}}'),
        ("json", '{"job_id": 5}'),
        ("text", "anything"),
        ("", "anything"),
    ],
)
def test_a_block_that_is_wrong_is_found(language: str, text: str, tmp_path: Path) -> None:
    """What is shown is compared, what fails is told, and nothing is left out."""
    with pytest.raises((AssertionError, ValidationError)):
        Reader(tmp_path, {}).read(Block(tmp_path / "page.md", 1, language, "", text))
