"""The client in other processes: it changes no global state and uses no import name of the host."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import redis
from packaging.requirements import Requirement

from regworker.ledger import SyncLedger
from regworker.ledger.admin import Limits, announce
from regworker.sealing.keyring import Keyring
from tests.integration.installation import PATIENCE, ROOT

KEYS = Keyring.new("host")

Run = Callable[..., dict[str, Any]]

#: How a host enqueues: settings are arguments, and the environment is empty.
ENQUEUE = """
import json, sys
from regworker import Producer

def job(key):
    address = {"firstName": "Jabez", "lastName": "Wilson", "email": "wilson@example.com"}
    customer = {"address": address, "privacyConsents": [12], "password": "I9bV2crS"}
    return {"provider": "open2b", "idempotency_key": key, "registration": {"customer": customer}}

def made():
    return Producer(redis_url=sys.argv[1], sealing_keys=sys.argv[2])

def show(**found):
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders with the client, its requirements and the host's own packages; nothing else."""
    made: dict[tuple[str, ...], Path] = {}

    def folder(*hosts: str) -> Path:
        if hosts not in made:
            made[hosts] = tmp_path_factory.mktemp("installed")
            (made[hosts] / "regworker").symlink_to(ROOT / "client" / "regworker")
            for name in needed("regworker", *hosts) - {"regworker"}:
                link(distribution(name), made[hosts])
        return made[hosts]

    return folder


@pytest.fixture
def host(
    installed: Callable[..., Path], tmp_path: Path, ledger: SyncLedger, redis_url: str
) -> Iterator[Run]:
    """Runs a host's program in a folder of its own; returns what it shows."""
    ledger(announce([Limits("open2b", "default", 0, 0, 0)], ["results"]))

    def run(program: str, *extras: str, **files: str) -> dict[str, Any]:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(dedent(text))
        (tmp_path / "common.py").write_text(ENQUEUE)
        (tmp_path / "host.py").write_text("from common import *\n" + dedent(program))
        done = subprocess.run(
            [sys.executable, "-S", "host.py", redis_url, KEYS],
            env={"PYTHONPATH": f"{tmp_path}:{installed(*extras)}", "PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    yield run
    with redis.Redis.from_url(f"{redis_url}/1") as client:
        client.flushdb()


def needed(*names: str) -> set[str]:
    """Distributions with all their requirements, by name."""
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                wanted.append(one.name)
    return found


def link(one: Distribution, folder: Path) -> None:
    """Put a distribution's packages and modules into a folder."""
    tops = {file.parts[0] for file in one.files or [] if file.parts[0] not in {"..", "__pycache__"}}
    for top in tops:
        if not (folder / top).exists():
            (folder / top).symlink_to(Path(str(one.locate_file(top))))


def test_the_client_brings_nothing_of_a_workers(host: Run) -> None:
    """No Celery, HTTP client or command, and no import name that a host may use."""
    found = host(
        """
        from importlib.util import find_spec
        names = ["worker", "sandbox", "tests", "celery", "kombu", "httpx", "aiohttp", "typer",
                 "rich", "structlog", "sentry_sdk"]
        show(found=[name for name in names if find_spec(name)])
        """
    )
    assert found == {"found": []}


def test_importing_it_loads_nothing(host: Run) -> None:
    """Each name loads its modules at its first use."""
    found = host(
        """
        import subprocess
        code = "import sys, regworker; print(*sys.modules)"
        said = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
        heavy = {"pydantic", "redis", "cryptography", "joserfc", "asyncio", "json"}
        show(found=sorted(heavy & set(said.stdout.split())))
        """
    )
    assert found == {"found": []}


def test_a_host_may_have_a_worker_and_a_sandbox(host: Run) -> None:
    """Many back-ends have a module of that name."""
    found = host(
        """
        import worker, sandbox
        with made() as producer:
            receipt = producer.enqueue(job("of-names"))
            show(state=producer.status(receipt.job_id).state, own=[worker.NAME, sandbox.NAME])
        """,
        worker="NAME = 'the host\\'s worker'",
        sandbox="NAME = 'the host\\'s sandbox'",
    )
    assert found == {"state": "queued", "own": ["the host's worker", "the host's sandbox"]}


def test_a_host_keeps_its_celery(host: Run, redis_url: str) -> None:
    """Its tasks go to its own broker, before and after, from every thread; only the host reads
    its configuration.
    """
    found = host(
        """
        import threading
        from celery import Celery, current_app, shared_task

        app = Celery("host", broker=sys.argv[1] + "/1")
        app.set_default()

        @shared_task
        def mail():
            pass

        def enqueue(key):
            with made() as producer:
                producer.enqueue(job(key))
            mail.delay()

        mail.delay()
        enqueue("of-the-main-thread")
        thread = threading.Thread(target=enqueue, args=["of-another"])
        thread.start()
        thread.join()
        show(app=current_app.main)
        """,
        "celery",
        "packaging",
        "redis",
        celeryconfig="raise SystemExit('read by somebody')",
    )
    assert found == {"app": "host"}
    with redis.Redis.from_url(f"{redis_url}/1") as client:
        assert client.llen("celery") == 3
    with redis.Redis.from_url(redis_url) as client:
        assert not client.exists("celery")


def test_nothing_of_the_process_is_changed(host: Run) -> None:
    """No signal, hook, logger, thread, variable or default of the interpreter changes."""
    found = host(
        """
        import asyncio, atexit, gc, locale, logging, os, signal, socket, threading, warnings
        import concurrent.futures.thread

        def state():
            return {
                "signals": [str(signal.getsignal(one)) for one in signal.valid_signals()],
                "hooks": [str(one) for one in (sys.excepthook, sys.unraisablehook,
                threading.excepthook)],
                "handlers": [str(one) for one in logging.getLogger().handlers],
                "level": [logging.getLogger().level, logging.root.manager.disable],
                "record": str(logging.getLogRecordFactory()),
                "policy": str(asyncio.events._event_loop_policy),
                "at exit": atexit._ncallbacks(),
                "threads": threading.active_count(),
                "environment": dict(os.environ),
                "timeout": socket.getdefaulttimeout(),
                "filters": [str(one) for one in warnings.filters],
                "locale": locale.setlocale(locale.LC_ALL),
                "gc": [gc.isenabled(), gc.get_threshold()],
                "limits": [sys.getrecursionlimit(), sys.getswitchinterval()],
                "stderr": str(sys.stderr),
                "path": sys.path,
            }

        before = json.loads(json.dumps(state()))
        with made() as producer:
            producer.status(producer.enqueue(job("of-the-process")).job_id)
        after = json.loads(json.dumps(state()))
        show(changed=[name for name in before if before[name] != after[name]])
        """
    )
    assert found == {"changed": []}


def test_a_host_that_closes_nothing_ends(host: Run) -> None:
    """Producers and consumers leave no thread that would keep the process from ending."""
    found = host(
        """
        import asyncio, threading
        from regworker import AsyncProducer, ResultConsumer

        producer = made()
        producer.enqueue(job("never-closed"))
        consumer = ResultConsumer("host", settings=producer.settings)
        consumer.take(0.1)

        async def main():
            later = AsyncProducer(producer.settings)
            await later.enqueue(job("never-closed"))

        asyncio.run(main())
        show(threads=[one.name for one in threading.enumerate()])
        """
    )
    assert found == {"threads": ["MainThread"]}


def test_the_wheel_holds_and_asks_for_nothing_of_a_workers(tmp_path: Path) -> None:
    """`pip install ./client` installs one typed import name, no command, no Celery."""
    shutil.copytree(ROOT / "client", tmp_path / "client")
    build = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "client", check=True)
    [file] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
        [info] = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
        entries = wheel.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"regworker", info}
    assert "regworker/py.typed" in names
    assert any(name.endswith(".lua") for name in names)
    assert re.findall(r"^\[(.+)\]$", entries, re.MULTILINE) == ["pytest11"]
    asked = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    assert {one.name for one in asked if "extra" not in str(one.marker)} == {
        *("cryptography", "hiredis", "pydantic", "pydantic-settings", "redis")
    }


@pytest.mark.parametrize("version", ["6.1.0", "7.1.0"])
def test_the_client_works_with_every_redis_py_that_it_allows(
    host: Run, version: str, tmp_path: Path
) -> None:
    """It overrides methods of that library's connections: here with its oldest version, and a later
    one."""
    [asked] = [text for text in distribution("regworker").requires or [] if "redis" in text[:5]]
    assert Requirement(asked).specifier.contains(version)
    # As setup.sh does: an environment that uv made has no pip.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    installer = pip if find_spec("pip") else ["uv", "pip"]
    wanted = ["--quiet", "--no-deps", "--target", str(tmp_path), f"redis=={version}"]
    subprocess.run([*installer, "install", *wanted], check=True)
    found = host(
        """
        import asyncio
        import redis
        from regworker import AsyncProducer

        async def main():
            async with AsyncProducer(redis_url=sys.argv[1], sealing_keys=sys.argv[2]) as producer:
                await producer.enqueue(job("b"))
                many = [one async for one in producer.enqueue_many([job("a"), job("b")])]
                return [one.repeat for one in many]

        with made() as producer:
            receipt = producer.enqueue(job("a"))
            state = producer.status(receipt.job_id).state
        show(version=redis.__version__, state=state, repeats=asyncio.run(main()))
        """
    )
    assert found == {"version": version, "state": "queued", "repeats": [True, True]}


def test_settings_that_do_not_work_are_an_error_and_no_exit(host: Run) -> None:
    """A host can catch the error and report it in its own way."""
    found = host(
        """
        from regworker import SettingsError
        try:
            Producer(redis_url=sys.argv[1])
        except SettingsError as error:
            show(named=[name for name, _ in error.problems])
        """
    )
    assert found == {"named": ["REGWORKER_SEALING_KEYS"]}


def test_a_producer_made_before_a_fork_works_in_each_child(host: Run) -> None:
    """Under `gunicorn --preload`, also if it was used before the fork; the children share no
    connection and no random number.
    """
    found = host(
        """
        import os, signal, socket, subprocess, time
        from urllib.request import urlopen

        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = subprocess.Popen(
            [sys.executable, "-S", "-m", "gunicorn", "--preload", "-w", "3", "--log-level",
            "critical",
             "-b", f"127.0.0.1:{port}", f"web:application({sys.argv[1]!r}, {sys.argv[2]!r})"])
        try:
            end, answers = time.monotonic() + 60, []
            while len({pid for pid, _ in answers}) < 2 or len(answers) < 40:
                try:
                    with urlopen(f"http://127.0.0.1:{port}/{len(answers)}", timeout=10) as answer:
                        answers.append(answer.read().decode().split())
                except OSError:
                    assert time.monotonic() < end
                    time.sleep(0.05)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        with made() as producer:
            states = {producer.status(id_).state for _, id_ in answers}
        show(jobs=len({id_ for _, id_ in answers}) == len(answers), states=sorted(states))
        """,
        "gunicorn",
        web="""
        import os, sys
        from regworker import Producer

        def application(url, keys):
            from common import job
            producer = Producer(redis_url=url, sealing_keys=keys)
            producer.enqueue(job("before-the-fork"))

            def serve(environ, start_response):
                receipt = producer.enqueue(job(f"after-the-fork{environ['PATH_INFO']}"))
                start_response("200 OK", [])
                return [f"{os.getpid()} {receipt.job_id}".encode()]

            return serve
        """,
    )
    assert found == {"jobs": True, "states": ["queued"]}


def test_a_child_waits_for_no_lock_of_its_parents_threads(host: Run) -> None:
    """A fork copies locks as they are; the threads that would release them are not copied."""
    found = host(
        """
        import os, signal, threading, warnings
        from contextlib import ExitStack
        from regworker import Job

        # From Python 3.12 on, a fork beside a thread warns of the locks that this test is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        with made() as producer:
            first = producer.enqueue(job("before-the-fork"))
            pool = producer._shell._ledger.redis.connection_pool
            owners = pool, getattr(pool, "_event_dispatcher", None), vars(Job)["id"]
            names = "_lock", "lock"
            locks = [getattr(one, name) for one in owners for name in names if hasattr(one, name)]
            held, ended = threading.Event(), threading.Event()

            def hold():
                with ExitStack() as all:
                    for lock in locks:
                        all.enter_context(lock)
                    held.set()
                    ended.wait()

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                receipt = producer.enqueue(job("in-the-child"))
                os._exit(producer.status(receipt.job_id).idempotency_key != "in-the-child")
            _, ending = os.waitpid(child, 0)
            ended.set()
            thread.join()
            show(locks=bool(locks), ending=ending, state=producer.status(first.job_id).state)
        """
    )
    assert found == {"locks": True, "ending": 0, "state": "queued"}


def test_a_host_patched_by_gevent_enqueues_from_its_greenlets(host: Run) -> None:
    """A hundred at once; each gets its own answer."""
    found = host(
        """
        import gevent
        with made() as producer:
            keys = [f"of-greenlet-{n}" for n in range(100)]
            jobs = [gevent.spawn(producer.enqueue, job(key)) for key in keys]
            gevent.joinall(jobs, timeout=60, raise_error=True)
            receipts = [one.value for one in jobs]
            show(
                keys=[one.idempotency_key for one in receipts] == keys,
                jobs=len({one.job_id for one in receipts}),
            )
        """,
        "gevent",
        sitecustomize="""
        from gevent import monkey
        monkey.patch_all()
        """,
    )
    assert found == {"keys": True, "jobs": 100}
