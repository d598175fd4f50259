"""The guide in `docs/guide/`: each block of code runs and prints what the page shows."""

import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import regworker
from tests.chaos.proxy import free_port
from tests.integration.examples import EXAMPLES, node_examples
from tests.integration.guide import Block, Reader, blocks, move_in
from tests.integration.installation import ROOT, SECRET, Installation, installation
from tests.programs import needed
from worker.cli.app import COMMANDS

GUIDE = ROOT / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))

#: The programs in the pages' shell blocks, besides our own.
PROGRAMS = ("bash", "curl", "node", "openssl", "redis-cli")


@pytest.fixture(scope="module")
def port() -> int:
    """The port for the apps of the pages on frameworks, one after the other."""
    return free_port()


#: A variable of the file `endpoints.env`, as the guide's first page shows it.
ENDPOINT = re.compile(r"^export REGWORKER_(ENDPOINTS__\w+)='?([^'\n]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Installation]:
    """An installation as `regworker up` starts it, with the endpoints that the guide's first page
    defines."""
    needed("the guide's blocks", *PROGRAMS)
    text = (GUIDE / "README.md").read_text("utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    endpoints = {name.lower(): value for name, value in ENDPOINT.findall(text)}
    # The page makes one of its own.
    endpoints["endpoints__shop__secrets"] = SECRET
    folder = tmp_path_factory.mktemp("guide")
    with installation(folder, broker_url="", **endpoints) as here:
        yield here


@pytest.fixture
def reader(
    here: Installation,
    port: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    """A reader with a checkout and a running development server."""
    node = node_examples(request.config)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "python").symlink_to(EXAMPLES / "python")
    (tmp_path / "examples" / "node").symlink_to(node)
    (tmp_path / "node_modules").symlink_to(node / "node_modules")
    move_in(tmp_path, here.environment, monkeypatch)
    monkeypatch.setenv("WEBHOOK_SECRETS", SECRET)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    servers = {
        "127.0.0.1:6399": urlsplit(here.valkey.connection_url).netloc,
        "127.0.0.1:8900": urlsplit(here.server.url).netloc,
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "127.0.0.1 --port 8000": f"127.0.0.1 --port {port}",
    }
    with closing(Reader(tmp_path, servers)) as reader:
        yield reader
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_each_block_of_a_page_does_what_it_shows(page: Path, reader: Reader) -> None:
    """The blocks run from the top to the end, as a reader would run them."""
    for block in blocks(page):
        reader.read(block)
    reader.close()


def test_each_job_of_the_guide_has_one_customer(here: Installation) -> None:
    """Whatever the pages do to them."""
    duplicates = [here.sandbox.accounts.duplicates(name) for name in ("open2b", "skypostal")]
    assert duplicates == [0, 0]


FRAMEWORKS = ("django", "fastapi", "flask")

#: The errors that a service which enqueues and reads can get.
ERRORS = sorted(
    name
    for name in regworker.__all__
    if isinstance(kind := getattr(regworker, name), type)
    and issubclass(kind, regworker.RegistrationWorkerError)
    and kind is not regworker.RegistrationWorkerError
)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frameworks_page_says_what_to_do_about_each_error(framework: str) -> None:
    """And the page is in the index."""
    text = (GUIDE / f"{framework}.md").read_text("utf-8")
    assert {name for name in ERRORS if f"`{name}`" not in text} == set()
    assert f"({framework}.md)" in (GUIDE / "README.md").read_text("utf-8")


LINKS = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    """From page to page, and to the examples."""
    for target in LINKS.findall(page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_example_and_command_that_the_guide_names_is_there() -> None:
    """`regworker something` and files of `examples/` exist; the guide names all of these."""
    text = "\n".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"(?<![\w/.])regworker (?!import\b)([a-z]+)", text))
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
        ("console server", "$ false 127.0.0.1:1"),
        ("console server", "$ true 127.0.0.1:1"),
        ("js", "console.log(1);\n//> 2"),
        ("json", '{"provider": "open2b", "idempotency_key": "k", "registration": {}}'),
        ("json", '{"job_id": 5}'),
        ("text", "anything"),
        ("", "anything"),
    ],
)
def test_a_block_that_is_wrong_is_found(language: str, text: str, tmp_path: Path) -> None:
    """Output is compared, failures are reported, and no block is skipped."""
    from jsonschema import ValidationError  # takes two seconds

    language, _, file = language.partition(" ")
    with pytest.raises((AssertionError, ValidationError)):
        Reader(tmp_path, {}).read(Block(tmp_path / "page.md", 1, language, file, text))
