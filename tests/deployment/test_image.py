"""The image is built from existing files, and contains no more than it needs."""

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

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]


def test_what_is_copied_is_there_and_sent_along() -> None:
    """Each file and folder exists, and `.dockerignore` lets it through."""
    copied = list(_copied())
    assert "worker" in copied
    for name in copied:
        assert (ROOT / name).exists(), name
        assert _is_sent(name), f"{name} is not in .dockerignore's list"


def test_what_the_wheel_is_built_from_is_copied() -> None:
    """The Dockerfile copies the packages, and each single file that the wheel includes."""
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    files = [PROJECT["readme"], *PROJECT["license-files"], *wheel["force-include"]]
    assert {*wheel["packages"], *files} <= set(_copied())


@pytest.mark.parametrize("name", [".env", ".git", ".regworker", ".venv", "tests", "docs"])
def test_no_secret_and_nothing_idle_is_sent(name: str) -> None:
    """Local files of a checkout stay out of the build, and so out of the image."""
    assert not _is_sent(name)


def test_it_runs_as_nobody_in_particular() -> None:
    """The user is a number, which Kubernetes can tell from root; no shell runs before the first
    process."""
    user, _, group = image.last("USER").value.partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert image.last("ENTRYPOINT").words() == ["tini", "--"]
    assert image.last("CMD").words()[:2] == ["celery", "-A"]
    assert image.last("STOPSIGNAL").value == "SIGTERM"


def test_its_healthcheck_is_a_command_of_ours() -> None:
    """The image contains that command, which asks the worker."""
    name, command = image.healthcheck()
    assert name == "regworker"
    assert command in COMMANDS


def test_nothing_that_builds_is_left() -> None:
    """The last stage has no compiler and no pip; it copies its packages from the stage before."""
    text = "\n".join(one.value for one in image.stages()[-1] if one.name == "RUN")
    assert "pip uninstall" in text
    assert not re.search(r"pip install|build-essential|gcc|apt-get upgrade", text)


@pytest.mark.parametrize(
    ("extras", "modules"),
    [
        (set(), ["regworker.producer", "worker.broker.redis_transport", "kombu.transport.pyamqp"]),
        ({"worker"}, ["worker.process.tasks", "worker.intake.job_stream"]),
        (None, [entry.path.partition(":")[0] for entry in COMMANDS.values()]),
        (None, ["worker.process.tasks", "sandbox.server", "flower.command", "worker.cli.app"]),
    ],
    ids=["a producer's", "a worker's", "commands of the image", "services of the image"],
)
def test_what_is_installed_is_enough(
    tmp_path: Path, extras: set[str] | None, modules: list[str]
) -> None:
    """The code imports only packages that the image installs."""
    with_extras = _extras_of_image() if extras is None else extras
    for name in _needed(with_extras):
        _link(distribution(name), tmp_path)
    if extras is None:
        # Commands that run a whole installation locally start an embedded server, which the image
        # does not need.
        embedded = {
            entry.path.partition(":")[0] for entry in COMMANDS.values() if entry.extra == "embedded"
        }
        modules = [name for name in modules if name not in embedded]
    script = f"import importlib; [importlib.import_module(name) for name in {modules}]"
    # -S: no site-packages; the packages that are linked here replace them.
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'client'}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
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
        # A folder that is sent includes its content; a file that is sent includes its folder.
        if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.split("/")[0], pattern):
            sent = line.startswith("!")
    return sent


def _extras_of_image() -> set[str]:
    [line] = [
        line
        for line in (ROOT / "Makefile").read_text("utf-8").splitlines()
        if "-o requirements/image.txt" in line
    ]
    return set(re.findall(r"--extra (\w+)", line))


def _needed(extras: set[str]) -> set[str]:
    """The distributions that the project requires with these extras, by name."""
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
    """Link a distribution's packages and modules into a folder."""
    tops = {file.parts[0] for file in one.files or [] if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(one.locate_file(top))))
