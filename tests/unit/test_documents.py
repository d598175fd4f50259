"""The links of the documents work, and the records of decisions have one form."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

PAGES = sorted(
    page
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
    if "node_modules" not in page.parts
)

LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Git forges make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_to_a_file_and_to_a_heading_that_exist(page: Path) -> None:
    """A reader who follows a link gets to the section that it names."""
    for target, anchor in LINK.findall(prose(page)):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_each_path_that_contributors_read_of_exists() -> None:
    """The map of the code leads to a file or a folder."""
    text = prose(ROOT / "CONTRIBUTING.md")
    tops = "client|docs|examples|monitoring|requirements|tests|worker"
    paths = re.findall(rf"`((?:{tops})/[\w./-]*)`", text)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_record_of_a_decision_has_its_own_number_and_three_parts() -> None:
    """The list of contents has every record."""
    page = ROOT / "docs" / "decisions.md"
    contents, *records = re.split(r"^### ", prose(page), flags=re.MULTILINE)
    assert records
    titles = [record.partition("\n")[0] for record in records]
    assert re.findall(r"^- \[(.+)\]\(", contents, re.MULTILINE) == titles
    numbers = [int(title.partition(". ")[0]) for title in titles]
    assert sorted(numbers) == list(range(1, len(titles) + 1))
    for record in records:
        parts = re.findall(r"^- \*\*(\w+):\*\* \S", record, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence"], record.partition("\n")[0]


def test_updates_and_reviewers_are_set_up_for_what_is_there() -> None:
    """Each folder with dependencies gets updates; each path of CODEOWNERS matches files."""
    owners = (ROOT / ".github" / "CODEOWNERS").read_text("utf-8").splitlines()
    for path in [line.split()[0] for line in owners if not line.startswith("#")]:
        assert path == "*" or list(ROOT.glob(path.strip("/"))), path
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text("utf-8"))["updates"]
    watched: dict[str, set[str]] = {}
    for one in updates:
        folders = one.get("directories") or [one["directory"]]
        watched.setdefault(one["package-ecosystem"], set()).update(folders)
    for ecosystem, manifest in (("pip", "pyproject.toml"), ("npm", "package.json")):
        found = {f"/{file.parent.relative_to(ROOT)}".removesuffix(".") for file in own(manifest)}
        assert found == watched[ecosystem]


def own(name: str) -> list[Path]:
    """Our files of this name, without those that were installed or built here."""
    foreign = {"node_modules", ".venv", "build", "site"}
    found = [*ROOT.glob(name), *ROOT.glob(f"[a-z]*/{name}"), *ROOT.glob(f"[a-z]*/*/**/{name}")]
    return [file for file in found if not foreign & set(file.parts)]


@pytest.mark.parametrize(
    "text",
    [
        "It mends the file.",  # codespell:ignore
        "He stands in line.",  # codespell:ignore
        "He asked after it.",  # codespell:ignore
    ],
)
def test_make_check_refuses_words_that_are_not_plain_english(text: str, tmp_path: Path) -> None:
    """The message suggests another word."""
    page = tmp_path / "page.md"
    page.write_text(f"{text} `told`\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.count("==>")) == (65, 1), done.stdout
