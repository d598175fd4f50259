"""The README and the table of settings agree with the code."""

import re
import shlex
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from importlib.metadata import metadata
from itertools import chain
from pathlib import Path

import pytest

from tests.integration.guide import Reader, blocks
from tests.integration.installation import ROOT, installation
from worker.cli.app import COMMANDS

PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")

#: Commands that cannot run inside a test, with the test that runs each one elsewhere.
ELSEWHERE = {
    "make demo": "tests/integration/test_demo.py",
    "make test": ".ci/run",
    "regworker up": "tests/integration/test_demo.py",
    "pip install ./client '.[worker,cli]'": "tests/integration/test_readme.py",
    "celery -A worker worker": "tests/integration/installation.py",
    "regworker doctor": "tests/integration/test_on_call.py",
}


def test_a_new_user_gets_a_first_outcome_by_the_readmes_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a checkout with its `.venv` and a development server, in the order of the page."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / ".regworker").mkdir()
    ran = set()
    with installation(tmp_path) as here:
        (tmp_path / ".regworker" / "env").write_text(
            "".join(
                f"export {name}={shlex.quote(here.environment[name])}\n"
                for name in ("REGWORKER_REDIS_URL", "REGWORKER_SEALING_KEYS")
            )
        )
        # The reader must not find programs through this process's own environment.
        monkeypatch.setenv("PATH", "/usr/bin:/bin")
        with closing(Reader(tmp_path, {}, programs=None)) as reader:
            for block in blocks(PAGE):
                kept = [
                    line
                    for line in block.text.splitlines()
                    if line.removeprefix("$ ").partition(" #")[0].strip() not in ELSEWHERE
                ]
                if block.language != "console" or kept:
                    reader.read(replace(block, text="\n".join(kept)))
                    ran.add(block.language)
        [account] = here.sandbox.accounts.find(email="adler@example.com")
    assert account.customer_key
    assert ran == {"console", "python"}


def test_what_the_readme_leaves_to_other_tests_is_in_it_and_they_are_there() -> None:
    """Each excused command is in the README, and the test named for it exists."""
    for command, test in ELSEWHERE.items():
        assert f"$ {command}" in README
        assert (ROOT / test).exists()


def test_the_extras_that_the_readme_installs_exist() -> None:
    """In the distribution as it is installed here."""
    named = {
        extra
        for extras in re.findall(r"(?:registration-worker|\.)\[([\w,]+)\]", README)
        for extra in extras.split(",")
    }
    known = metadata("registration-worker").get_all("Provides-Extra")
    assert {"cli", "embedded", "worker"} == named <= set(known or ())


def test_the_readme_is_read_in_two_minutes() -> None:
    """At most 150 lines, and every linked file exists."""
    assert len(README.splitlines()) <= 150
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("command", "name"), [("settings", "settings"), ("exporter", "metrics")])
def test_a_table_of_the_documents_is_that_of_its_command(command: str, name: str) -> None:
    """The output of `regworker settings --markdown` and of `regworker exporter --markdown` is
    between the two marks of its page."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.cli", command, "--markdown"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
    [table] = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", page, re.DOTALL)
    assert table == done.stdout


def test_a_newcomer_can_try_the_pages_one_after_another() -> None:
    """No two of these pages use the same idempotency key or e-mail address. On one server, a key
    that is used again for another job would be refused, and so would a known address."""
    names = ("guide/README.md", "guide/integrate.md", "cookbook.md", "http.md")
    texts = [page.read_text("utf-8") for page in (PAGE, *(ROOT / "docs" / one for one in names))]
    for pattern in (r"\bcrm-\d+\b", r"[\w.]+@example\.com"):
        found = [set(re.findall(pattern, text)) for text in texts]
        assert all(found)
        twice = {one for one, count in Counter(chain.from_iterable(found)).items() if count > 1}
        assert twice == set()


def test_every_command_named_in_the_readme_exists() -> None:
    """`regworker something` in the README is in `regworker --help`."""
    named = set(re.findall(r"regworker (?!import\b|and\b)([a-z]+)", README))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    """Each row of its table is a row of docs/benchmarks.md."""
    measured = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    rows = re.findall(r"^\| [^|]+ \| (\d\.\d\d) \| (\d+) \|$", README, re.M)
    assert len(rows) == 5
    for cpu, jobs in rows:
        bare = measured.replace("*", "")
        assert f"| {cpu} | {jobs} |" in bare, (cpu, jobs)


def test_the_diagrams_are_drawn_from_their_sources(tmp_path: Path) -> None:
    """`make diagrams` would change nothing: states and edges are those of the ledger."""
    images = tmp_path / "images"
    images.mkdir()
    draw = ROOT / "docs" / "diagrams" / "draw.py"
    subprocess.run([sys.executable, str(draw), str(images)], timeout=60, check=True)
    drawn = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in drawn} == {"deployment.svg", "states.svg", "way.svg", "states.md"}
    for file in drawn:
        there = ROOT / "docs" / file.relative_to(tmp_path)
        assert there.read_bytes() == file.read_bytes(), there
