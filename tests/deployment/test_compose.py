"""The compose file works as documented: Compose reads it, and its services run."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import yaml
from celery import Celery
from kombu import Exchange, Queue

from regworker.domain.errors import UnknownJob
from regworker.domain.job import job_id
from regworker.producer import Producer
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings, variable
from tests.chaos.proxy import free_port
from tests.deployment import compose, helm, image
from tests.deployment.test_kubernetes import FOLDER, resources
from tests.integration.installation import PATIENCE
from tests.integration.jobs import open2b, skypostal
from tests.programs import needed
from tests.rabbitmq import amqp_url
from worker.broker.wakeups import REQUESTS
from worker.cli.local import stack

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

SECRETS = {
    "REGWORKER_SEALING_KEYS": Keyring.new("compose"),
    "OPERATOR_PASSWORD": "passw0rd",
    "LEDGER_PASSWORD": "l3dgerkey",
}

#: Seconds. On a slow CPU a healthcheck alone takes some.
LONG = 2 * PATIENCE

#: The services that run our own image.
OURS = ("worker", "flower", "exporter", "gateway", "sandbox")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The services as Compose reads them."""
    return compose.services(tmp_path_factory.mktemp("read"), SECRETS)


@pytest.mark.parametrize("name", SECRETS)
def test_nothing_starts_without_its_secrets(tmp_path: Path, name: str) -> None:
    """Keys and passwords have no defaults: without one, Compose refuses to start, and says what
    to do."""
    rest = {key: value for key, value in SECRETS.items() if key != name}
    done = compose.read(tmp_path, rest)
    assert done.returncode != 0
    assert "put it into .env" in done.stderr


def test_the_example_names_every_variable_of_the_file() -> None:
    """Every variable is in `.env.example`, at least in a comment."""
    asked = set(re.findall(r"\$\{([A-Z_]+)", compose.FILE.read_text("utf-8")))
    named = set(re.findall(r"^#? *(?:echo \")?([A-Z_]+)=", compose.EXAMPLE.read_text(), re.M))
    assert asked <= named


def test_nothing_is_published_beyond_this_machine(services: dict[str, dict[str, Any]]) -> None:
    """The ledger has no TLS, so an operator must choose to publish it beyond this machine."""
    addresses = {one for service in services.values() for one, _ in compose.published(service)}
    assert addresses == {"127.0.0.1"}


def test_every_service_comes_back_and_says_how_it_is(services: dict[str, dict[str, Any]]) -> None:
    """Every service restarts when it ends, has a healthcheck, and uses an image of a fixed
    version."""
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert ("healthcheck" in service) or name == "worker", name
        version = service["image"].rpartition(":")[2]
        assert version not in {"", "latest", service["image"]}, name


def test_no_service_takes_all_of_the_machines_memory(services: dict[str, dict[str, Any]]) -> None:
    """Every service has a memory limit; for our own services it is the chart's."""
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text("utf-8"))
    for name, service in services.items():
        limit = str(service["mem_limit"])
        if name in values:
            wanted = values[name]["resources"]["limits"]["memory"]
            assert _bytes(limit) == _bytes(wanted.removesuffix("i").lower()), name
        assert _bytes(limit) >= _bytes("192m"), name


def _bytes(text: str) -> int:
    unit = {"m": 1024**2, "g": 1024**3}.get(text[-1:])
    return int(text[:-1]) * unit if unit else int(text)


def test_our_containers_can_do_little(services: dict[str, dict[str, Any]]) -> None:
    """They have no capabilities and no new privileges, and write only to /tmp and to mounted
    folders."""
    for name in OURS:
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]
        assert services[name]["read_only"] is True


def test_only_workers_get_keys_and_accounts(services: dict[str, dict[str, Any]]) -> None:
    """Flower and the exporter open no payload; the gateway seals, and calls no provider."""
    key = SECRETS["REGWORKER_SEALING_KEYS"]
    holders = {name for name, one in services.items() if key in _values(one)}
    assert holders == {"worker", "gateway"}
    called = {name for name, one in services.items() if "ACCOUNTS__" in " ".join(_names(one))}
    assert called == {"worker"}


#: Settings that the gateway does not get from `.env`: the file itself sets some, it has one ledger,
#: and only workers and commands need the others.
NOT_GIVEN = {
    *("redis_url", "broker_url", "sealing_keys", "ledgers", "account_ledgers", "ledger"),
    *("accounts", "endpoints", "proxy", "client_cert_file", "client_key_file"),
    *("outbox_url", "operator"),
}


def test_the_gateway_gets_the_settings_of_the_workers(tmp_path: Path) -> None:
    """A setting in `.env` is the same for workers and the gateway."""
    names = {variable(name) for name in Settings.model_fields if name not in NOT_GIVEN}
    given = {name: f"the-{name}" for name in names}
    found = compose.services(tmp_path, {**SECRETS, **given})
    assert found["gateway"]["environment"].items() >= given.items()
    # These two are fixed by the file: many workers share the machine.
    metrics = {variable("metrics_address"), variable("metrics_port")}
    theirs = {name: found["worker"]["environment"][name] for name in names - metrics}
    assert given.items() >= theirs.items()


def test_a_setting_that_is_not_given_is_not_set(services: dict[str, dict[str, Any]]) -> None:
    """Settings that `.env` does not have keep their defaults in the gateway."""
    environment = services["gateway"]["environment"]
    assert environment.get(variable("retention")) is None
    assert environment[variable("require_sealed")] == "true"


def test_a_password_of_the_operators_is_no_workers(services: dict[str, dict[str, Any]]) -> None:
    """Workers get all of `.env` except Compose's own variables, so that scaling restarts no
    worker."""
    password = SECRETS["OPERATOR_PASSWORD"]
    holders = {name for name, one in services.items() if password in " ".join(_values(one))}
    assert holders == {"flower", "grafana"}
    given = services["worker"]["environment"]
    asked = re.findall(r"\$\{([A-Z_]+)", compose.FILE.read_text("utf-8"))
    mixed = {name for name in asked if given.get(name) and not name.startswith("REGWORKER_")}
    assert not mixed


def test_a_worker_that_is_stopped_has_time_to_end_its_calls(
    services: dict[str, dict[str, Any]],
) -> None:
    """The grace period is longer than a call and the question after it, each with its whole
    budget."""
    [grace] = re.findall(r"^(?:(\d+)m)?(\d+)s$", services["worker"]["stop_grace_period"])
    minutes, seconds = (int(part or 0) for part in grace)
    budget = Settings.model_fields["call_budget"].default
    assert 60 * minutes + seconds > 2 * budget


def _names(service: dict[str, Any]) -> list[str]:
    return list(service.get("environment") or {})


def _values(service: dict[str, Any]) -> list[str]:
    return [str(value) for value in (service.get("environment") or {}).values()]


class Running:
    """The services of the file, started here in the file's order."""

    def __init__(self, moved: compose.Moved, folder: Path) -> None:
        self.moved = moved
        self._folder = folder
        self._stack = ExitStack()
        self.sick_before: set[str] = set()

    def start(self, name: str, **environment: str) -> Path:
        """Check that the healthcheck of a service fails, start the service, and return its log."""
        if not environment and not self.is_well(name):
            self.sick_before.add(name)
        file = self._folder / f"{name}{len(environment) or ''}.log"
        log = self._stack.enter_context(file.open("wb"))
        # A container sees nothing of this process' environment.
        command = ["env", "-i"]
        command += [f"{key}={value}" for key, value in self.moved.environment(name).items()]
        command += [f"{key}={value}" for key, value in environment.items()]
        command += self.moved.command(name)
        child = stack.process(command, {}, self.moved.folder / "app", log)
        self._stack.enter_context(child)
        return file

    def is_well(self, name: str) -> bool:
        """Whether the healthcheck passes."""
        return self.moved.healthcheck(name, image.healthcheck()) == 0

    def wait_for(self, name: str) -> None:
        """Wait until the healthcheck passes; if it does not, the error holds the end of its log."""
        try:
            stack.until(lambda: self.is_well(name), f"{name} to be well", LONG)
        except stack.StackError as error:
            said = (self._folder / f"{name}.log").read_text("utf-8", "replace")
            raise AssertionError(f"{error}; it said: {said[-3000:]}") from None

    def url(self, port: int) -> str:
        """The local URL of a port of a container."""
        return f"http://127.0.0.1:{self.moved.ports[port]}"

    def close(self) -> None:
        """Stop them in reverse order."""
        self._stack.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The installation that `docker compose up` starts."""
    folder = tmp_path_factory.mktemp("compose")
    found = compose.services(folder / "project", SECRETS)
    here = Running(compose.Moved(found, folder, image.last("CMD").words()), folder)
    try:
        for name in ("valkey", "sandbox", "worker", "flower", "exporter", "gateway"):
            here.start(name)
            if name == "valkey":
                here.wait_for(name)
        for name in OURS:
            here.wait_for(name)
        yield here
    finally:
        here.close()


def producer(running: Running, **more: str) -> Producer:
    """A producer outside of the containers, which uses the ledger's published port."""
    url = f"redis://:{SECRETS['LEDGER_PASSWORD']}@127.0.0.1:{running.moved.ports[6379]}/0"
    keys = SECRETS["REGWORKER_SEALING_KEYS"]
    return Producer(Settings.load(redis_url=url, sealing_keys=keys, **more))


def test_a_job_from_outside_is_done(running: Running) -> None:
    """After `docker compose up`, jobs for both providers end as registered customers."""
    with producer(running) as outside:
        for job in (skypostal(), open2b()):
            event = outside.wait(outside.enqueue(job).job_id, PATIENCE)
            assert event["type"] == "registration.registered"


def test_no_command_line_holds_a_secret(services: dict[str, dict[str, Any]]) -> None:
    """Everybody on the machine can read command lines."""
    for service in services.values():
        line = " ".join(service.get("command") or ())
        assert not [name for name, secret in SECRETS.items() if secret in line], line


@pytest.mark.parametrize("name", ["valkey", "replica-1"])
def test_a_servers_password_is_on_no_command_line(tmp_path: Path, name: str) -> None:
    """A server reads it from elsewhere, as it runs: it asks for it, and shows it to its
    primary; after a change, the new one."""
    found = compose.services(tmp_path / "project", SECRETS)
    moved = compose.Moved(found, tmp_path, [])
    for password in (SECRETS["LEDGER_PASSWORD"], "an0ther", "an'o\"t\\h $e#r"):
        for each in ("VALKEYCLI_AUTH", "REDISCLI_AUTH"):
            found[name]["environment"][each] = password
        here = Running(moved, tmp_path)
        with redis.Redis(port=moved.ports[6379], password=password) as client:
            try:
                here.start(name)
                here.wait_for(name)
                line = (tmp_path / "home" / "arguments").read_text()
                assert "--maxmemory" in line
                assert password not in line
                settings = client.config_get("*")
                assert settings["requirepass"] == settings["masterauth"] == password
                assert settings["appendonly"] == "yes"
                if name != "valkey":
                    assert client.info("replication")["role"] == "slave"
            finally:
                here.close()


def test_the_ledger_asks_for_the_password(running: Running) -> None:
    """It asks every client, on this machine too."""
    with (
        redis.Redis(port=running.moved.ports[6379]) as stranger,
        pytest.raises(redis.AuthenticationError),
    ):
        stranger.ping()


def test_a_healthcheck_fails_while_its_service_does_not_run(running: Running) -> None:
    """A healthcheck that always passes would show nothing."""
    assert running.sick_before == {"valkey", *OURS}


def test_flower_asks_for_the_password_and_only_shows(running: Running) -> None:
    """Without the password no page opens; with it, pages can be read and nothing can be changed."""
    assert _ask(f"{running.url(5555)}/tasks") == 401
    assert _ask(f"{running.url(5555)}/api/workers") == 401
    assert _ask(f"{running.url(5555)}/tasks", "operator:wrong") == 401
    known = f"operator:{SECRETS['OPERATOR_PASSWORD']}"
    assert _ask(f"{running.url(5555)}/tasks", known) == 200
    [worker] = json.loads(_read(f"{running.url(5555)}/api/workers?refresh=1", known))
    assert _ask(f"{running.url(5555)}/api/worker/shutdown/{worker}", known, "POST") == 403


def test_the_exporter_tells_of_all_workers_and_a_worker_of_itself(running: Running) -> None:
    """Both metrics pages that Prometheus reads are there."""
    assert "regworker_jobs{" in _read(f"{running.url(9808)}/metrics")
    assert "regworker_tasks_running" in _read(f"{running.url(compose.METRICS)}/metrics")


def test_a_worker_on_rabbitmq_does_jobs(running: Running) -> None:
    """If `.env` sets `REGWORKER_BROKER_URL`, RabbitMQ is the broker and carries the wake-ups."""
    port = str(free_port())
    log = running.start("worker", REGWORKER_BROKER_URL=amqp_url(), REGWORKER_METRICS_PORT=port)
    stack.until(lambda: " ready." in log.read_text(), "the worker on RabbitMQ", LONG)
    with (
        producer(running) as outside,
        Celery("other", broker=amqp_url(), set_as_current=False) as client,
    ):
        # By the Celery task: only workers read that broker. Sealed, because the shipped settings
        # require it.
        job = outside._shell.core._intake.sealed(skypostal())
        client.conf.broker_transport_options = {"confirm_publish": True}  # as the guide says
        client.conf.task_queues = [
            Queue(REQUESTS, Exchange(REQUESTS), routing_key=REQUESTS, no_declare=True)
        ]
        client.send_task("registrations.register", args=[job], queue=REQUESTS)
        id_ = job_id(job["provider"], job["account"], job["idempotency_key"])
        stack.until(lambda: known(outside, id_), "the job is accepted", PATIENCE)
        assert outside.wait(id_, PATIENCE)["type"] == "registration.registered"


def known(producer: Producer, id_: str) -> bool:
    """Whether the ledger has a job."""
    try:
        return bool(producer.status(id_).job_id)
    except UnknownJob:
        return False


@pytest.fixture(scope="module")
def prometheus(running: Running) -> Iterator[str]:
    """Prometheus as the profile `monitoring` starts it, with a shorter interval; its address."""
    moved = running.moved
    [binary] = needed("the profile `monitoring`", "prometheus")
    port = moved.ports[9090]
    command = moved.command("prometheus")
    [config] = [part.partition("=")[2] for part in command if "config.file" in part]
    settings = yaml.safe_load(moved.move("prometheus", Path(config).read_text("utf-8")))
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in settings["scrape_configs"]:
        # Prometheus' own resolver would look the service's name up in the network.
        for found in job.pop("dns_sd_configs", []):
            assert found["names"] == ["worker"]
            job["static_configs"] = [{"targets": [f"127.0.0.1:{found['port']}"]}]
    here = moved.folder / "prometheus.yml"
    here.write_text(yaml.safe_dump(settings))
    for file in settings["rule_files"]:
        (moved.folder / file).write_text((Path(config).parent / file).read_text("utf-8"))
    command = [part.replace(config, str(here)) for part in command]
    command = [binary, *command, f"--web.listen-address=127.0.0.1:{port}"]
    with (
        (moved.folder / "prometheus.log").open("wb") as log,
        stack.process(command, {}, moved.folder, log),
    ):
        url = running.url(9090)
        stack.until(lambda: _ask(f"{url}/-/ready") == 200, "Prometheus", LONG)
        yield url


def test_prometheus_reads_the_workers_and_the_exporter(prometheus: str) -> None:
    """Prometheus finds the targets of each job in its configuration."""

    def up() -> dict[str, str]:
        targets = json.loads(_read(f"{prometheus}/api/v1/targets"))["data"]["activeTargets"]
        return {one["labels"]["job"]: one["health"] for one in targets}

    wanted = {"regworker-exporter": "up", "regworker-worker": "up"}
    stack.until(lambda: up() == wanted, "both to be up", LONG)


def test_its_alerts_are_evaluated(prometheus: str) -> None:
    """Prometheus evaluates every rule without an error."""

    def rules() -> list[dict[str, str]]:
        groups = json.loads(_read(f"{prometheus}/api/v1/rules"))["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    stack.until(lambda: {one["health"] for one in rules()} == {"ok"}, "all rules", LONG)


def test_what_scales_workers_is_one_number(prometheus: str) -> None:
    """KEDA's query returns one number, also when the installation has no work."""
    [scaled] = resources(FOLDER / "scaling.yaml")
    query = quote(scaled["spec"]["triggers"][0]["metadata"]["query"])

    def asked() -> list[str]:
        answer = json.loads(_read(f"{prometheus}/api/v1/query?query={query}"))
        return [one["value"][1] for one in answer["data"]["result"]]

    stack.until(lambda: asked() == ["0"], "a number", PATIENCE)


def test_grafana_finds_its_dashboards_and_prometheus(services: dict[str, dict[str, Any]]) -> None:
    """The provisioned dashboards are where Compose mounts them, and the data source has the
    service's name."""
    folder = compose.ROOT / "monitoring" / "grafana"
    text = (folder / "provisioning/dashboards/registration-worker.yml").read_text("utf-8")
    [provider] = yaml.safe_load(text)["providers"]
    targets = {
        str(one["target"] if isinstance(one, dict) else one.split(":")[1])
        for one in services["grafana"]["volumes"]
    }
    assert provider["options"]["path"] in targets
    text = (folder / "provisioning/datasources/prometheus.yml").read_text("utf-8")
    [source] = yaml.safe_load(text)["datasources"]
    assert source["url"] == "http://prometheus:9090"
    for file in (folder / "dashboards").glob("*.json"):
        assert json.loads(file.read_text("utf-8"))["panels"]


def _ask(url: str, user: str = "", method: str = "GET") -> int:
    """The status of the answer to a request."""
    try:
        with urllib.request.urlopen(_request(url, user, method), timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return 0


def _read(url: str, user: str = "") -> str:
    with urllib.request.urlopen(_request(url, user, "GET"), timeout=PATIENCE) as answer:
        text: str = answer.read().decode()
        return text


def _request(url: str, user: str, method: str) -> urllib.request.Request:
    request = urllib.request.Request(url, method=method)
    if user:
        request.add_header("Authorization", f"Basic {b64encode(user.encode()).decode()}")
    return request
