"""The image is made of what is there, and holds no more than it needs."""

import fnmatch
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.deployment import image
from tests.integration.installation import ROOT
from worker.cli.app import COMMANDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_what_is_copied_is_there_and_sent_along() -> None:
    """Each file and folder exists, and `.dockerignore` lets it through."""
    copied = list(_copied())
    assert "worker" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert _is_sent(name), f"{name} is not in .dockerignore's list"


@pytest.mark.parametrize("name", [".env", ".git", ".regworker", ".venv", "tests", "docs"])
def test_no_secret_and_nothing_idle_is_sent(name: str) -> None:
    """What lies about in a checkout stays out of the build, and so of the image."""
    assert not _is_sent(name)


def test_it_runs_as_nobody_in_particular() -> None:
    """A numbered user, whom Kubernetes can tell from root; no shell before the first process."""
    user, _, group = image.last("USER").value.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert image.last("ENTRYPOINT").words() == ["tini", "--"]
    assert image.last("CMD").words()[:2] == ["celery", "-A"]
    assert image.last("STOPSIGNAL").value == "SIGTERM"


def test_its_healthcheck_is_a_command_of_ours() -> None:
    """Which its containers have, and a worker answers."""
    name, command = image.healthcheck()
    assert name == "regworker"
    assert command in COMMANDS


def test_nothing_that_builds_is_left() -> None:
    """No compiler, no pip: the last stage takes its packages from the one before."""
    text = "\n".join(one.value for one in image.stages()[-1] if one.name == "RUN")
    assert "pip uninstall" in text
    assert not re.search(r"pip install|build-essential|gcc|apt-get upgrade", text)


@pytest.mark.parametrize(
    ("extras", "modules"),
    [
        (set(), ["worker.producer", "worker.redis_broker", "kombu.transport.pyamqp"]),
        ({"worker"}, ["worker.tasks", "worker.inbox"]),
        (None, [entry.path.partition(":")[0] for entry in COMMANDS.values()]),
        (None, ["worker.tasks", "sandbox.server", "flower.command", "worker.cli.app"]),
    ],
    ids=["a producer's", "a worker's", "commands of the image", "services of the image"],
)
def test_what_is_installed_is_enough(
    tmp_path: Path, extras: set[str] | None, modules: list[str]
) -> None:
    """Nothing is imported that only happens to be installed where the tests run."""
    with_extras = _extras_of_image() if extras is None else extras
    for name in _needed(with_extras):
        _link(distribution(name), tmp_path)
    if extras is None:
        # Those that run a whole installation here have a server of their own, which an image has
        # no use for.
        embedded = {
            entry.path.partition(":")[0] for entry in COMMANDS.values() if entry.extra == "embedded"
        }
        modules = [name for name in modules if name not in embedded]
    script = f"import importlib; [importlib.import_module(name) for name in {modules}]"
    # -S: no site-packages; what is linked here stands in their place.
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _copied() -> Iterator[str]:
    for stage in image.stages():
        for one in stage:
            if one.name == "COPY" and not one.value.startswith("--from="):
                yield from one.value.split()[:-1]


def _is_sent(name: str) -> bool:
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        # A folder that is let through lets through what is in it; a file, its folder.
        if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[0], pattern):
            sent = line.startswith("!")
    return sent


def _extras_of_image() -> set[str]:
    [run] = [
        one.value for one in image.stages()[0] if one.name == "RUN" and "constraints" in one.value
    ]
    [names] = re.findall(r"'\.\[([a-z,]+)\]'", run)
    return set(names.split(","))


def _needed(extras: set[str]) -> set[str]:
    """The distributions that the project with these extras brings along, by name."""
    wanted = [(text, "") for text in PROJECT["dependencies"]]
    wanted += [(text, "") for name in extras for text in PROJECT["optional-dependencies"][name]]
    found: set[tuple[str, str]] = set()
    while wanted:
        text, extra = wanted.pop()
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"extra": extra}):
            continue
        for name in {"", *one.extras} - {name for known, name in found if known == one.name}:
            if one.name != PROJECT["name"]:
                found.add((one.name, name))
                wanted += [(text, name) for text in distribution(one.name).requires or []]
            elif name:
                wanted += [(text, "") for text in PROJECT["optional-dependencies"][name]]
    return {name for name, _ in found}


def _link(one: Distribution, folder: Path) -> None:
    """Put a distribution's packages and modules into a folder."""
    tops = {file.parts[0] for file in one.files or [] if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(one.locate_file(top))))
