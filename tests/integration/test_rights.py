"""A user without a right writes nothing with any script, and the error names the right; real
server."""

import asyncio
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from regworker.domain.errors import SettingsError, UnknownJob
from regworker.ledger import SyncLedger
from regworker.ledger.admin import lacking
from regworker.ledger.calls import digest, scripts
from regworker.ledger.rights import _READING, commands
from regworker.producer import AsyncProducer, Producer
from regworker.results import AsyncResultConsumer, Result, ResultConsumer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings
from tests.integration.installation import KEYS, PATIENCE, SECRET, ended, installation
from tests.integration.jobs import skypostal
from worker.cli.local import stack
from worker.operations.roles import ROLES

NOBODY = "00000000-0000-8000-8000-000000000000"
USER, PASSWORD = "lacks", "secret"
WRITING = sorted(name for name, source in scripts().items() if not {*commands(source)} <= _READING)
CASES = [(name, command) for name in WRITING for command in commands(scripts()[name])]


@pytest.fixture(scope="module")
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A server with an administrator and a user whose rights change; all scripts are loaded."""
    client = redis.Redis.from_url(redis_url)
    for source in scripts().values():
        client.script_load(source)
    yield client
    client.execute_command("ACL", "DELUSER", USER)
    client.close()


def allow(server: redis.Redis, *rules: str) -> None:
    """Give the user all rights except these."""
    every = ("reset", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    server.execute_command("ACL", "SETUSER", USER, *every, *rules)


def everything(server: redis.Redis) -> dict[bytes, Any]:
    """Everything that is stored."""
    return {key: server.dump(key) for key in server.keys("*")}


@pytest.mark.parametrize("name", WRITING)
def test_a_script_that_lacks_a_right_writes_nothing(server: redis.Redis, name: str) -> None:
    """For each command and channel that the script may use, whatever its arguments."""
    server.flushdb()
    server.zadd("{reg}:open", {"x": 1})
    before = everything(server)
    keys = [f"{{reg}}:k{number}" for number in range(5)]
    for command in commands(scripts()[name]):
        rule = f"-{command.lower().replace(' ', '|')}"
        for one in [rule, *(["resetchannels"] if command == "PUBLISH" else [])]:
            allow(server, one)
            with (
                redis.Redis.from_pool(
                    redis.ConnectionPool(
                        **{
                            **server.connection_pool.connection_kwargs,
                            "username": USER,
                            "password": PASSWORD,
                        }
                    )
                ) as client,
                pytest.raises(redis.exceptions.NoPermissionError) as caught,
            ):
                client.evalsha(digest(name), len(keys), *keys, *["1"] * 20)
            assert command in str(caught.value)
            assert everything(server) == before


def test_no_call_of_a_script_is_overlooked() -> None:
    """Each `redis.call` contains its command as a literal, so that the check finds it."""
    for name, source in scripts().items():
        for call in re.findall(r"redis\.call\(([^,)]*)", source):
            assert re.findall(r"'([A-Z]+)'", call), f"{name}: redis.call({call}"


def test_who_only_reads_pays_for_no_look() -> None:
    """A script that does not write needs no check, since it cannot stop halfway."""
    assert {"look", "page", "gauges"}.isdisjoint(WRITING)
    assert {"accept", "claim", "settle", "cancel", "resolve"} <= set(WRITING)


@pytest.mark.parametrize(
    "role", [one for one in ROLES if one.calls is None], ids=lambda one: one.name
)
def test_the_rights_that_are_printed_are_enough_for_every_script(
    server: redis.Redis, role: Any, redis_url: str
) -> None:
    """If a right is removed, it is named."""
    reset, on, *rest = role.rules()
    server.execute_command("ACL", "SETUSER", USER, reset, on, f">{PASSWORD}", *rest)
    url = redis_url.replace("://", f"://{USER}:{PASSWORD}@")
    with closing(SyncLedger(url)) as ledger:
        assert ledger(lacking()) == []
        server.execute_command("ACL", "SETUSER", USER, "-xadd", "resetchannels")
        assert ledger(lacking()) == ["publish", "xadd"]


@pytest.mark.parametrize(
    ("rules", "words"), [(["resetchannels"], "publish"), (["-info"], "info"), (["-zadd"], "zadd")]
)
def test_a_worker_without_a_right_does_not_start(
    tmp_path: Path, rules: list[str], words: str
) -> None:
    """One line names the right; the job waits, and no step of it was done."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        admin: Any = here.ledger.redis
        allow(admin, *rules)
        url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{here.valkey.port}/0"
        worker = here.start_worker(redis_url=url)
        stack.until(lambda: worker.poll() is not None, "its end", 90)
        said = here.log().read_text("utf-8")
        assert worker.returncode != 0
        assert "REGWORKER_REDIS_URL" in said
        assert words in said
        assert "regworker acl" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("command", ["EVALSHA", "SCRIPT"])
def test_a_server_that_lacks_a_command_is_named(tmp_path: Path, command: str) -> None:
    """No key is to blame for it, as the doctor said."""
    config: dict[str, Any] = {"appendonly": "yes", "rename-command": f'{command} ""'}
    server = stack.start_valkey(tmp_path, **config)
    try:
        environment = stack.environment(server.connection_url, "http://127.0.0.1:1", KEYS, SECRET)
        for line in (stack.worker_command(), [sys.executable, "-m", "worker.cli", "doctor"]):
            done = ended(line, environment, tmp_path)
            said = done.stdout + done.stderr
            assert done.returncode == 1
            assert f"unknown command '{command}'" in said
            assert "no `rename-command`" in said
            assert "key's type" not in said
    finally:
        server.stop()


def test_a_wrong_password_is_named_with_its_setting(tmp_path: Path) -> None:
    """By a worker, which does not start, and by the doctor."""
    with installation(tmp_path, workers=0, broker_url="") as here:
        allow(here.ledger.redis)
        url = f"redis://{USER}:wrong@127.0.0.1:{here.valkey.port}/0"
        worker = here.start_worker(redis_url=url)
        stack.until(lambda: worker.poll() is not None, "its end", 90)
        said = here.log().read_text("utf-8")
        assert worker.returncode == 1
        assert "REGWORKER_REDIS_URL: invalid username-password pair" in said
        assert "correct user and password in its URL" in said
        assert "Traceback" not in said
        found = subprocess.run(
            [sys.executable, "-m", "worker.cli", "doctor"],
            env={**os.environ, **here.environment, "REGWORKER_REDIS_URL": url},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert found.returncode == 1
        assert "correct user and password in its URL" in found.stdout


RIGHT, WRONG = "right-password", "wrong-password"

#: Logins that a server refuses, as in a URL.
REFUSED = {
    "wrong password": f":{WRONG}@",
    "wrong password of a user": f"{USER}:{WRONG}@",
    "unknown user": f"nobody:{RIGHT}@",
    "no password": "",
}


@pytest.fixture(scope="module", params=["", "HELLO"])
def guarded_port(request: pytest.FixtureRequest) -> Iterator[int]:
    """A server that requires a password; also one that lacks the command."""
    lacks = {"rename-command": f'{request.param} ""'} if request.param else {}
    server = stack.start_valkey(None, **lacks)
    try:
        with redis.Redis(port=server.port, protocol=2) as client:
            allow(client)
            client.config_set("requirepass", RIGHT)
        yield server.port
    finally:
        server.stop()


def calls(port: int, user: str) -> dict[str, Callable[[], Any]]:
    """What a host calls, with that login."""
    settings = Settings.load(
        redis_url=f"redis://{user}127.0.0.1:{port}/0", sealing_keys=Keyring.new("test")
    )

    def producer(call: Callable[[Producer], Any]) -> Callable[[], Any]:
        def made() -> Any:
            with Producer(settings) as one:
                return call(one)

        return made

    def async_producer(call: Callable[[AsyncProducer], Any]) -> Callable[[], Any]:
        async def made() -> Any:
            async with AsyncProducer(settings) as one:
                return await call(one)

        return lambda: asyncio.run(made())

    async def received() -> Any:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            return await consumer.receive(0)

    async def acknowledged() -> Any:
        async with AsyncResultConsumer("crm", settings=settings) as consumer:
            return await consumer.ack(Result("1-0", {}))

    def receive() -> Any:
        with ResultConsumer("crm", settings=settings) as consumer:
            return consumer.receive(0)

    def ack() -> Any:
        with ResultConsumer("crm", settings=settings) as consumer:
            return consumer.ack(Result("1-0", {}))

    return {
        "enqueue": producer(lambda one: one.enqueue(skypostal())),
        "status": producer(lambda one: one.status(NOBODY)),
        "wait": producer(lambda one: one.wait(NOBODY)),
        "enqueue async": async_producer(lambda one: one.enqueue(skypostal())),
        "status async": async_producer(lambda one: one.status(NOBODY)),
        "wait async": async_producer(lambda one: one.wait(NOBODY)),
        "receive": receive,
        "ack": ack,
        "receive async": lambda: asyncio.run(received()),
        "ack async": lambda: asyncio.run(acknowledged()),
    }


@pytest.mark.parametrize("how", REFUSED)
def test_a_login_that_is_refused_is_a_host_s_setting(guarded_port: int, how: str) -> None:
    """Whatever the host calls, it gets an error of this package, which quotes nothing."""
    for call in calls(guarded_port, REFUSED[how]).values():
        with pytest.raises(SettingsError, match=r"^REGWORKER_REDIS_URL: .* the login") as caught:
            call()
        assert not any(word in str(caught.value) for word in (RIGHT, WRONG, "HELLO"))


@pytest.mark.parametrize("user", [f":{RIGHT}@", f"{USER}:{PASSWORD}@"])
def test_a_login_needs_no_hello(guarded_port: int, user: str) -> None:
    """Old servers, and proxies in between, do not know it."""
    of = calls(guarded_port, user)
    for name in ("status", "wait", "status async", "wait async"):
        with pytest.raises(UnknownJob):
            of[name]()
    for name in ("receive", "receive async", "ack", "ack async"):
        assert not of[name]()


def test_a_server_without_hello_quotes_no_password() -> None:
    """Its error names the arguments of a command that it does not know."""
    server = stack.start_valkey(None, **{"rename-command": 'HELLO ""'})
    try:
        for call in calls(server.port, f":{RIGHT}@").values():
            try:
                call()
            except Exception as error:  # noqa: BLE001 -- whatever it is
                said = "".join(traceback.format_exception(error))
                assert RIGHT not in said
    finally:
        server.stop()
