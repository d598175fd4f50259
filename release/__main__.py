"""`make release`: builds both distributions, the bill of materials and the image, and checks each.

Everything is built twice, from two copies of the sources; the two must be the same byte for byte.
The result is in `dist/`. Nothing is published here: `.github/workflows/release.yml` does that.
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from regworker import __version__

ROOT = Path(__file__).parents[1]

#: The folders that hold a `pyproject.toml`. The client is first: the other distribution needs it.
SOURCES = (Path("client"), Path())

#: The time (seconds) of the files in the archives, if neither the caller nor git gives one.
LONG_AGO = "1577836800"

PYTHONS = ("3.11", "3.12", "3.13", "3.14")

console = Console(stderr=True, highlight=False)


def say(text: str, style: str = "") -> None:
    """Write a line about what was done; it is not wrapped, so that one can search in it."""
    console.print(text, style=style, soft_wrap=True, markup=False)


class NotReadyError(Exception):
    """What must be done before this version can be released."""


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a program; its output.

    Raises:
        NotReadyError: It failed; with what it printed.
    """
    done = subprocess.run(
        [str(one) for one in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        text = f"{done.stdout}{done.stderr}".strip()
        raise NotReadyError(f"{' '.join(str(one) for one in command)} failed:\n{text}")
    return done.stdout


def problems() -> Iterator[str]:
    """What names another version than `client/regworker/__init__.py`, and what is not committed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    if f"regworker=={__version__}" not in project["dependencies"]:
        yield f"pyproject.toml does not depend on regworker=={__version__}"
    for path in sorted((ROOT / "deploy").rglob("*.yaml")):
        for line in path.read_text("utf-8").splitlines():
            if "image: registration-worker:" in line and not line.endswith(f":{__version__}"):
                yield f"{path.relative_to(ROOT)} names another version: {line.strip()}"
    if f"## [{__version__}] - " not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        yield f"CHANGELOG.md has no section `## [{__version__}] - YYYY-MM-DD`"
    if shutil.which("git") and (ROOT / ".git").exists() and run("git", "status", "--porcelain"):
        yield "there are changes that are not committed (git status)"


def epoch() -> str:
    """The time that the archives' files get: the caller's, or that of the last commit."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    if shutil.which("git") and (ROOT / ".git").exists():
        return run("git", "log", "-1", "--format=%ct").strip()
    return LONG_AGO


def build(into: Path, *, by_way_of_the_archive: bool) -> None:
    """Build both distributions from a copy of the sources, in a new folder each time.

    By way of the archive, a wheel is made from what its source archive holds, and not from the
    sources: were the two builds equal and a file missing, both would lack it.
    """
    ignored = (ROOT / ".gitignore").read_text("utf-8").replace("/", "").split()
    how = (
        ("build", "--no-isolation", "--outdir", into)
        if by_way_of_the_archive
        else ("hatchling", "build", "--directory", into)
    )
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "sources"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", *ignored))
        for source in SOURCES:
            run(sys.executable, "-m", *how, cwd=copy / source, SOURCE_DATE_EPOCH=epoch())


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by its name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    }


def build_twice(out: Path) -> None:
    """Build into `out`, build again in another way, and compare.

    Raises:
        NotReadyError: The two differ; the files are named.
    """
    with tempfile.TemporaryDirectory() as again:
        build(out, by_way_of_the_archive=True)
        build(Path(again), by_way_of_the_archive=False)
        first, second = checksums(out), checksums(Path(again))
    if differ := sorted(name for name in first | second if first.get(name) != second.get(name)):
        raise NotReadyError(f"two builds of the same sources differ in {', '.join(differ)}")


def bill_of_materials(out: Path, *, validate: bool) -> None:
    """Write what the image installs as CycloneDX, with the hash of each file."""
    run(
        *(Path(sys.executable).parent / "cyclonedx-py", "requirements", "requirements/image.txt"),
        *("--output-reproducible", "--of", "JSON", "--pyproject", "pyproject.toml"),
        "--validate" if validate else "--no-validate",
        *("-o", out / f"registration-worker-{__version__}.cdx.json"),
        SOURCE_DATE_EPOCH=epoch(),
    )


def interpreter(version: str) -> str | None:
    """A Python of that version that runs: on the PATH, or where uv or pyenv keep theirs."""
    found = [shutil.which(f"python{version}")]
    if uv := shutil.which("uv"):
        asked = subprocess.run([uv, "python", "find", version], capture_output=True, text=True)
        found.append(asked.stdout.strip())
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python{version}")))
    for path in filter(None, found):
        # A shim of pyenv is on the PATH also for a version that is not switched on.
        code = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
        if done.stdout.startswith(f"{version} "):
            return done.stdout.split(maxsplit=1)[1].strip()
    return None


def install(python: str, environment: Path, *wheels: str) -> None:
    """Make an empty environment, and install wheels into it: by uv where it is there, else by pip.

    Dependencies have the versions of `constraints.txt`. Each wheel of ours is named by its file: by
    its name and version, uv would take one of an earlier build from its cache.
    """
    asked = ("--constraint", str(ROOT / "constraints.txt"), *wheels)
    if uv := shutil.which("uv"):
        run(uv, "venv", "--quiet", "--python", python, environment)
        run(uv, "pip", "install", "--quiet", "--python", environment / "bin/python", *asked)
    else:
        run(python, "-m", "venv", environment)
        pip = (environment / "bin/python", "-m", "pip", "install", "--quiet")
        run(*pip, "--disable-pip-version-check", *asked)


def installed(out: Path, python: str) -> None:
    """Install the wheels into empty environments of one Python, and run what a newcomer would run.

    The client's environment holds nothing but the client. The other one has all that the
    demonstration and `regworker up` need.
    """
    [client], [worker] = out.glob("regworker-*.whl"), out.glob("registration_worker-*.whl")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        install(python, home / "client", str(client))
        run(home / "client/bin/python", "-c", "from regworker import Producer", cwd=home)
        # Where the README has it.
        install(python, home / ".venv", str(client), f"{worker}[embedded]")
        program = home / ".venv/bin/regworker"
        run(program, "--version", cwd=home)
        run(program, "demo", cwd=home, HOME=name)
        readme(home)


def readme(home: Path) -> None:
    """Run the README's first job, by its own lines, beside a development server.

    Raises:
        NotReadyError: With what was printed, if it differs from what the README shows.
    """
    # Half of the time that `--quick` would take.
    from worker.cli.local import stack

    page = (ROOT / "README.md").read_text("utf-8")
    [lines] = re.findall(r"^```python first.py\n(.*?)^```", page, re.M | re.S)
    (home / "first.py").write_text(lines, "utf-8")
    [shown] = re.findall(r"^```console\n([^`]*?^\$ python first.py\n.*?)^```", page, re.M | re.S)
    commands = [line[2:] for line in shown.splitlines() if line.startswith("$ ")]
    ports = [
        part
        for name in ("--port", "--sandbox-port", "--flower-port", "--gateway-port")
        for part in (name, str(stack.free_port()))
    ]
    with (home / "up.txt").open("wb") as log:
        up = subprocess.Popen([home / ".venv/bin/regworker", "up", *ports], cwd=home, stderr=log)
        try:
            stack.until(lambda: up.poll() is not None or "Ready." in said(log.name), "not ready")
            if up.poll() is not None:
                raise NotReadyError(f"regworker up failed:\n{said(log.name)}")
            printed = run("sh", "-ec", "\n".join([*commands, "regworker doctor"]), cwd=home)
        finally:
            up.send_signal(signal.SIGINT)
            up.wait()
    if "registration.registered {'customer_key': " not in printed:
        raise NotReadyError(f"the README's first job printed:\n{printed}")


def said(file: str) -> str:
    """What a program has written so far."""
    return Path(file).read_text("utf-8", "replace")


def image(out: Path) -> str:
    """Build the image where a Docker engine answers; what came of it."""
    engine = shutil.which("docker")
    if engine is None or subprocess.run([engine, "info"], capture_output=True).returncode:
        return "left out: no Docker engine answers"
    tag = f"registration-worker:{__version__}"
    run(engine, "build", "--build-arg", f"SOURCE_DATE_EPOCH={epoch()}", "--tag", tag, ".")
    (out / "image.txt").write_text(run(engine, "image", "inspect", "--format", "{{.Id}}", tag))
    return tag


def release(out: Path, *, draft: bool, quick: bool) -> None:
    """Build and check everything.

    Raises:
        NotReadyError: With what must be done first.
    """
    pythons = {} if quick else {version: interpreter(version) for version in PYTHONS}
    found = [
        *problems(),
        *(
            f"the wheels are not tried with Python {one}: not on the PATH, nor kept by uv or pyenv"
            for one, path in pythons.items()
            if path is None
        ),
    ]
    if found:
        text = "\n".join(f"- {one}" for one in found)
        if not draft:
            raise NotReadyError(f"not ready to be released as {__version__}:\n{text}")
        say(f"A draft. Before a release:\n{text}", style="yellow")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with console.status("building both distributions, twice"):
        build_twice(out)
    say("built twice, byte for byte the same")
    archives = sorted(out.iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *archives)
    wheels = [path for path in archives if path.suffix == ".whl"]
    run(Path(sys.executable).parent / "check-wheel-contents", *wheels)
    say("metadata and contents of the wheels checked")
    bill_of_materials(out, validate=not quick)
    for version, python in pythons.items():
        if python:
            with console.status(f"Python {version}: installing the wheels, running the demo"):
                installed(out, python)
            say(f"Python {version}: the wheels alone run the demo and the README's first job")
    say(f"image: {image(out)}")
    lines = [f"{digest}  {name}\n" for name, digest in checksums(out).items()]
    (out / "SHA256SUMS").write_text("".join(lines))
    say(f"{out}: {', '.join(path.name for path in sorted(out.iterdir()))}")


def main() -> int:
    """Read the arguments, and build; 1 where something must be done first."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where to (default: dist/)")
    parser.add_argument(
        "--draft", action="store_true", help="build although the changelog or the commit is missing"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="do not validate the bill of materials, nor install the wheels and run the demo",
    )
    options = parser.parse_args()
    try:
        release(options.out.resolve(), draft=options.draft, quick=options.quick)
    except NotReadyError as error:
        say(str(error), style="red")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
