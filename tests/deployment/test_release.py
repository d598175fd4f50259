"""`make release` builds a release that anybody can install, and the same one on every machine."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import worker
from regworker import __version__
from release.__main__ import checksums, interpreter, problems
from tests.integration.installation import ROOT

# Two builds of both distributions.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `python -m release` builds. The release itself also installs it, and runs the demo."""
    out = tmp_path_factory.mktemp("release") / "dist"
    done = subprocess.run(
        [sys.executable, "-m", "release", "--draft", "--out", out, "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "byte for byte the same" in done.stderr
    return out


def test_both_distributions_and_the_bill_of_materials_are_built(dist: Path) -> None:
    """A release has wheels, source archives, what the image installs, and a checksum of each."""
    files = {
        f"registration-worker-{__version__}.cdx.json",
        f"registration_worker-{__version__}-py3-none-any.whl",
        f"registration_worker-{__version__}.tar.gz",
        f"regworker-{__version__}-py3-none-any.whl",
        f"regworker-{__version__}.tar.gz",
    }
    assert files <= {path.name for path in dist.iterdir()}
    lines = (dist / "SHA256SUMS").read_text().splitlines()
    assert {name: digest for digest, name in map(str.split, lines)} == checksums(dist)


def test_the_bill_of_materials_names_all_that_the_image_installs(dist: Path) -> None:
    """Each package of requirements/image.txt is in the SBOM, in its version and with its hash."""
    bill = json.loads((dist / f"registration-worker-{__version__}.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    named = {(one["name"], one["version"]) for one in bill["components"]}
    pinned = re.findall(
        r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements/image.txt").read_text(), re.M
    )
    assert named == set(pinned)
    assert all(link["hashes"] for one in bill["components"] for link in one["externalReferences"])


def test_a_wheel_holds_what_runs_and_nothing_else(dist: Path) -> None:
    """No tests and no benchmarks are installed; scripts, templates and types are."""
    wheel = zipfile.ZipFile(dist / f"registration_worker-{__version__}-py3-none-any.whl")
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"worker", "sandbox", f"registration_worker-{__version__}.dist-info"}
    client = zipfile.ZipFile(dist / f"regworker-{__version__}-py3-none-any.whl")
    assert {"regworker/py.typed", "regworker/ledger/scripts/accept.lua"} <= set(client.namelist())


def test_no_archive_holds_what_was_made_on_this_machine(dist: Path) -> None:
    """Caches, environments and local settings are in no archive."""
    for name in ("registration_worker", "regworker"):
        with tarfile.open(dist / f"{name}-{__version__}.tar.gz") as archive:
            for member in archive.getmembers():
                assert not re.search(
                    r"/(\.venv|\.env|\.regworker|__pycache__|node_modules|dist)(/|$)", member.name
                )
                assert member.uid == member.gid == 0, member.name


def test_the_version_is_the_same_wherever_it_is_named() -> None:
    """`client/regworker/__init__.py` has it; the other files read it, or the release refuses
    them."""
    assert worker.__version__ == __version__
    assert [one for one in problems() if "CHANGELOG" not in one and "committed" not in one] == []


def test_a_release_waits_for_its_changelog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that the changelog does not name is not built; the message says so."""
    monkeypatch.setattr("release.__main__.__version__", "99.0.0")
    found = "\n".join(problems())
    assert "CHANGELOG.md has no section `## [99.0.0]" in found
    assert "pyproject.toml does not depend on regworker==99.0.0" in found


def test_each_python_is_found_wherever_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken pyenv shim on the PATH does not hide the Python that pyenv has."""
    version = "{}.{}".format(*sys.version_info)
    kept = tmp_path / f"pyenv/versions/{version}.99/bin/python{version}"
    shim = tmp_path / f"shims/python{version}"
    for file in (kept, shim):
        file.parent.mkdir(parents=True)
    shim.write_text("#!/bin/sh\necho 'command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", str(shim.parent))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert interpreter(version) is None
    kept.symlink_to(sys.executable)
    assert interpreter(version)


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name
)
def test_a_workflow_has_no_more_rights_than_it_needs(path: Path) -> None:
    """Each workflow may only read, except the jobs that say what else they need."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert "steps" in job
        assert "runs-on" in job
