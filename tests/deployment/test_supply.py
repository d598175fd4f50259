"""Everything that is installed and run is pinned by its hash, not only by its version."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deployment import image
from tests.integration.installation import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
CLIENT = tomllib.loads((ROOT / "client/pyproject.toml").read_text("utf-8"))["project"]
OURS = {one["name"]: one for one in (PROJECT, CLIENT)}
CONSTRAINTS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
}

# The input of each file (`make lock`).
FILES = {
    "build": PYPROJECT["dependency-groups"]["build"] + PYPROJECT["build-system"]["requires"],
    "image": [f"{PROJECT['name']}[cli,flower,sandbox]"],
    "dev": [f"{PROJECT['name']}[dev]"],
    "bench": [f"{PROJECT['name']}[bench]"],
}

NOT_BY_DIGEST = {
    "registration-worker": "ours: whoever deploys it names the digest of what they built",
    "rabbitmq": "no digest of this tag was confirmed by two sources",
    "prom/prometheus": "no digest of this tag was confirmed by two sources",
}


@pytest.mark.parametrize("name", FILES)
def test_each_pin_has_a_hash_and_no_address(name: str) -> None:
    """Pip refuses a file that differs from the locked one, wherever it was downloaded."""
    text = _text(name)
    assert not re.search(r"://|^-|--(index|extra-index|find-links|trusted)", text, re.MULTILINE)
    for entry in _entries(text):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry.splitlines()[0]


@pytest.mark.parametrize("name", FILES)
def test_the_files_are_in_step(name: str) -> None:
    """Each file has everything that pyproject.toml asks for, in the versions of constraints.txt."""
    pinned = _pinned(name)
    for one in _direct(FILES[name]):
        version = pinned.get(canonicalize_name(one.name))
        assert version is not None, f"{one.name} is missing: run `make lock`"
        assert one.specifier.contains(version), f"{one} is not {version}: run `make lock`"
    others = {
        one: (version, CONSTRAINTS[one]) for one, version in pinned.items() if one in CONSTRAINTS
    }
    assert {one: both for one, both in others.items() if both[0] != both[1]} == {}, (
        "run `make lock`"
    )


def test_each_constraint_is_in_a_file() -> None:
    """A version that no file installs is not tested."""
    assert set(CONSTRAINTS) <= {one for name in FILES for one in _pinned(name)}


def test_nothing_is_installed_that_was_not_locked() -> None:
    """Each installation checks hashes, or installs only our own package."""
    for name in ["Dockerfile", "setup.sh", "benchmarks/setup.sh"]:
        text = (ROOT / name).read_text("utf-8").replace("\\\n", "")
        for line in re.split(r"\n|&&", text):
            if line.strip().startswith(("#", "pip=")):
                continue
            if re.search(r"(pip\b.* (install|wheel)|\$pip) ", line) and "arq.txt" not in line:
                assert "--require-hashes" in line or "--no-deps" in line, f"{name}: {line}"


def test_each_image_is_named_by_its_digest() -> None:
    """A tag can be moved to another image; a digest can't."""
    files = [ROOT / "docker-compose.yml", *(ROOT / "deploy").rglob("*.yaml")]
    images = [stage[0].value.split()[0] for stage in image.stages()]
    for file in files:
        # An alias of YAML (`*name`) is checked at its anchor (`&name`).
        named_here = r"^\s*(?:- )?image: *(?:&\w+ )?([^*\s]\S*)"
        images += re.findall(named_here, file.read_text("utf-8"), re.MULTILINE)
    assert len(images) > len(NOT_BY_DIGEST)
    named = set()
    for one in images:
        if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", one):
            named.add(one.removeprefix("${REGWORKER_IMAGE:-").split(":")[0])
    assert named == set(NOT_BY_DIGEST)


def test_each_action_is_named_by_its_commit() -> None:
    """A tag or a branch of an action can be moved to other code; a commit can't."""
    files = [*(ROOT / ".github").rglob("*.yml"), *(ROOT / ".github").rglob("*.yaml")]
    text = "\n".join(one.read_text("utf-8") for one in files)
    used = re.findall(r"\buses: *(?!\./)(\S.*)", text)
    assert used
    pinned = r"[\w./-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+"
    assert [one for one in used if not re.fullmatch(pinned, one)] == []
    commits = {one.partition("@")[0]: set[str]() for one in used}
    for one in used:
        commits[one.partition("@")[0]].add(one)
    assert [name for name, ways in commits.items() if len(ways) > 1] == []


def _text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")


def _entries(text: str) -> list[str]:
    return [one for one in re.split(r"\n(?=\S)", text.strip()) if one]


def _pinned(name: str) -> dict[str, str]:
    pairs = (re.match(r"([\w.-]+)==([^\s;]+)", entry) for entry in _entries(_text(name)))
    return {canonicalize_name(pair[1]): pair[2] for pair in pairs if pair is not None}


def _direct(wanted: list[str]) -> list[Requirement]:
    """The requirements that both pyproject.toml files name, with all of our extras."""
    found = []
    for one in map(Requirement, wanted):
        if (ours := OURS.get(one.name)) is None:
            found.append(one)
            continue
        found += _direct(ours["dependencies"])
        for extra in one.extras:
            found += _direct(ours["optional-dependencies"][extra])
    return found
