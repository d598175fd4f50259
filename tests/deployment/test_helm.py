"""The Helm chart: rendered by Helm's own code, valid, and its pods run."""

import json
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from regworker.ledger import SyncLedger
from regworker.sealing.keyring import Keyring
from regworker.settings import PREFIX, Settings, variable
from sandbox.server import SandboxServer
from tests.chaos.proxy import free_port
from tests.deployment import helm, image, test_kubernetes
from tests.deployment.operators import CUSTOM
from tests.deployment.test_kubernetes import VERSIONS, container
from tests.integration.installation import KEYS, PATIENCE, ROOT, SECRET
from tests.integration.jobs import open2b, sealed, skypostal
from worker import __version__
from worker.cli.local import stack
from worker.operations.tokens import TokenStore
from worker.publishers.address_check import _INSIDE_4

#: This file starts many programs, one after the other; each may be slow on a busy machine.
pytestmark = pytest.mark.timeout(900)

DIGEST = f"sha256:{'0' * 64}"

#: The values that an installation must set.
LEAST: helm.Values = {"image": {"digest": DIGEST}}

#: The accounts of the sandbox, set as in an installation: each setting is a key of a Secret.
ACCOUNTS = {
    name: value
    for name, value in stack.environment("", "http://127.0.0.1:1", KEYS, SECRET).items()
    if "ACCOUNTS__" in name
}

#: All options switched on.
ALL: helm.Values = {
    **LEAST,
    "flower": {"enabled": True},
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "scaling": {"enabled": True},
    "secrets": {"accounts": {"settings": sorted(ACCOUNTS)}},
}

Resource = dict[str, Any]


def resources(values: helm.Values) -> list[Resource]:
    """All resources that are applied."""
    texts = [text for name, text in helm.render(values).items() if name.endswith(".yaml")]
    return [one for one in chain.from_iterable(map(yaml.safe_load_all, texts)) if one]


@pytest.fixture(scope="module")
def everything() -> list[Resource]:
    """The resources with all options switched on."""
    return resources(ALL)


def of_kind(found: list[Resource], kind: str) -> dict[str, Resource]:
    """The resources of a kind, by their names without the release's name."""
    return {
        one["metadata"]["name"].removeprefix("rw-"): one for one in found if one["kind"] == kind
    }


def pod(deployment: Resource) -> Resource:
    """The pod of a deployment."""
    return dict(deployment["spec"]["template"]["spec"])


def labels(deployment: Resource) -> dict[str, str]:
    """The labels of its pods."""
    return dict(deployment["spec"]["template"]["metadata"]["labels"])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [LEAST, ALL], ids=["least", "all"])
def test_it_is_valid(values: helm.Values, version: str) -> None:
    """Kubernetes' schemas accept every resource, without an unknown field."""
    import kubernetes_validate  # takes two seconds

    for one in resources(values):
        if model := CUSTOM.get(one["kind"]):
            model.model_validate(one)
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_helm_finds_nothing_to_complain_of() -> None:
    """`helm lint --strict` reports nothing."""
    assert helm.lint(ALL) == []


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({}, "/image/digest"),
        ({"image": {"digest": "latest"}}, "/image/digest"),
        ({"gatewey": {}}, "gatewey"),
        ({"worker": {"replica": 3}}, "replica"),
        ({"settings": {"REGWORKER_LEASE": 12}}, "/settings/REGWORKER_LEASE"),
        ({"settings": {"REGWORKER_REDIS_URL": "redis://:secret@x"}}, "REGWORKER_REDIS_URL"),
        ({"secrets": {"keys": {"settings": ["REGWORKER_SEALING_KEYS_FILE"]}}}, "/secrets/keys"),
        ({"networkPolicy": {"outside": {"ports": [0]}}}, "/networkPolicy/outside/ports"),
    ],
)
def test_a_wrong_value_is_refused_by_name(values: helm.Values, why: str) -> None:
    """Helm names the wrong value before anything is applied; values cannot hold a secret."""
    assert why in helm.refusal({**(LEAST if values else {}), **values})
    assert "redis://" not in helm.refusal({**LEAST, **values})


def test_the_example_is_taken() -> None:
    """The schema accepts the values that the other tests render."""
    assert helm.refusal(LEAST) == helm.refusal(ALL) == ""


def test_every_value_has_a_rule_and_every_rule_a_value() -> None:
    """The schema and the documented values name the same settings."""
    values = yaml.safe_load((helm.CHART / "values.yaml").read_text("utf-8"))
    schema = json.loads((helm.CHART / "values.schema.json").read_text("utf-8"))

    def ruled(one: Any, where: str = "") -> set[str]:
        found = set()
        for name, rule in one.get("properties", {}).items():
            found |= {f"{where}/{name}"} | ruled(rule, f"{where}/{name}")
        return found - {"/global"}

    def named(one: Any, where: str = "") -> set[str]:
        found = set()
        for name, value in one.items():
            found.add(f"{where}/{name}")
            if any(rule.startswith(f"{where}/{name}/") for rule in rules):
                found |= named(value, f"{where}/{name}")
        return found

    rules = ruled(schema)
    assert named(values) == rules


def test_versions_are_this_one() -> None:
    """The chart and its application have this version."""
    chart = yaml.safe_load((helm.CHART / "Chart.yaml").read_text("utf-8"))
    assert chart["version"] == chart["appVersion"] == __version__


def test_the_alerts_are_those_that_are_tested(everything: list[Resource]) -> None:
    """The chart holds the same files as `monitoring/`, which promtool tests."""
    source = (ROOT / "monitoring" / "rules.yml").read_bytes()
    assert (helm.CHART / "files" / "rules.yml").read_bytes() == source
    [rule] = of_kind(everything, "PrometheusRule").values()
    assert rule["spec"] == yaml.safe_load(source)
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_every_pod_can_do_little(everything: list[Resource]) -> None:
    """No pod runs as root, writes outside /tmp or has a token; the image is named by its digest."""
    for name, deployment in of_kind(everything, "Deployment").items():
        one, inside = container(deployment), pod(deployment)
        assert one["image"] == f"registration-worker@{DIGEST}", name
        assert inside["automountServiceAccountToken"] is False
        user = inside["securityContext"]
        assert user["runAsNonRoot"] is True
        assert f"{user['runAsUser']}:{user['runAsGroup']}" == image.last("USER").value
        assert one["securityContext"]["readOnlyRootFilesystem"] is True
        assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert one["resources"]["limits"]["memory"]
        keys = [spread["topologyKey"] for spread in inside["topologySpreadConstraints"]]
        assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]


def test_secrets_are_files_and_only_of_whom_they_concern(everything: list[Resource]) -> None:
    """Each secret setting is read from a mounted file; only workers get accounts."""
    given = {}
    for name, deployment in of_kind(everything, "Deployment").items():
        one = container(deployment)
        files = {
            f"{mount['mountPath']}/{item['path']}"
            for volume in pod(deployment)["volumes"]
            for item in volume.get("secret", {}).get("items", [])
            for mount in one["volumeMounts"]
            if mount["name"] == volume["name"]
        }
        named = {e["value"] for e in one["env"] if e["name"].endswith("_FILE")}
        assert named == files, name
        given[name] = {Path(file).name for file in files}
        plain = {e["name"] for e in one["env"] if "value" in e and not e["name"].endswith("_FILE")}
        assert not plain & {*ACCOUNTS, "REGWORKER_REDIS_URL"}
    ledger, keys = {"REGWORKER_REDIS_URL"}, {"REGWORKER_SEALING_KEYS"}
    assert given == {
        "worker": ledger | keys | set(ACCOUNTS),
        "gateway": ledger | keys,
        "exporter": ledger,
        "flower": ledger,
    }


#: A gateway without sealing keys.
KEYLESS: helm.Values = {**ALL, "flower": {"enabled": False}, "gateway": {"sealingKeys": False}}


def test_a_gateway_can_do_without_sealing_keys() -> None:
    """Its pods get only the ledger's secret; the workers keep the keys."""
    found = of_kind(resources(KEYLESS), "Deployment")
    given = {
        name: [volume["name"] for volume in pod(one)["volumes"] if "secret" in volume]
        for name, one in found.items()
    }
    assert given == {
        "worker": ["connections", "keys", "accounts"],
        "gateway": ["connections"],
        "exporter": ["connections"],
    }
    assert "SEALING_KEYS" not in json.dumps(found["gateway"])
    assert helm.refusal({**LEAST, "gateway": {"sealingKeys": "no"}})


def test_every_setting_named_exists(everything: list[Resource]) -> None:
    """Each variable in the values and in the containers is a setting."""
    known = {variable(name) for name in Settings.model_fields}
    names = set(of_kind(everything, "ConfigMap")["settings"]["data"])
    for deployment in of_kind(everything, "Deployment").values():
        names |= {one["name"].removesuffix("_FILE") for one in container(deployment)["env"]}
    assert {name.split("__")[0] for name in names if name.startswith(PREFIX)} <= known


def test_what_comes_in_and_goes_out_is_listed(everything: list[Resource]) -> None:
    """Each pod has its own policy for both directions; only workers may connect outside the
    cluster."""
    policies = of_kind(everything, "NetworkPolicy")
    deployments = of_kind(everything, "Deployment")
    assert policies.keys() == deployments.keys()
    outside = "0.0.0.0/0"
    for name, policy in policies.items():
        spec = policy["spec"]
        assert spec["podSelector"]["matchLabels"].items() <= labels(deployments[name]).items()
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert (outside in json.dumps(spec["egress"])) == (name == "worker")
        ports = {port["name"] for port in container(deployments[name])["ports"]}
        opened = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
        assert opened == (set() if name == "flower" else ports)
    ways = policies["worker"]["spec"]["egress"][-1]["to"][0]["ipBlock"]
    private = {"private", "link-local"}
    assert set(ways["except"]) == {
        one for kind, networks in _INSIDE_4.items() if kind in private for one in networks
    }
    assert not of_kind(resources({**ALL, "networkPolicy": {"enabled": False}}), "NetworkPolicy")


def test_selectors_find_what_they_are_for(everything: list[Resource]) -> None:
    """Services, budgets, autoscaling and Prometheus' monitors select existing pods."""
    deployments = of_kind(everything, "Deployment")
    for kind in ("Service", "PodDisruptionBudget"):
        for name, one in of_kind(everything, kind).items():
            selector = one["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert wanted.items() <= labels(deployments[name]).items()
    scaled = of_kind(everything, "ScaledObject")["worker"]["spec"]
    assert scaled["scaleTargetRef"]["name"] == "rw-worker"
    assert "replicas" not in deployments["worker"]["spec"]
    selector = of_kind(everything, "PodMonitor")["worker"]["spec"]["selector"]
    [expression] = selector["matchExpressions"]
    found = {
        name
        for name, one in deployments.items()
        if labels(one)[expression["key"]] in expression["values"]
        and selector["matchLabels"].items() <= labels(one).items()
    }
    assert found == {"worker", "exporter"}


def test_it_starts_what_the_plain_manifests_start(everything: list[Resource]) -> None:
    """The chart has the same commands, ports and probes as the plain manifests."""
    plain = test_kubernetes.of_kind("Deployment")
    for name, deployment in of_kind(everything, "Deployment").items():
        ours, theirs = container(deployment), container(plain[f"registration-{name}"])
        same = ("args", "ports", "startupProbe", "readinessProbe", "livenessProbe")
        assert [ours.get(one) for one in same] == [theirs.get(one) for one in same]


# ── the pods, running ─────────────────────────────────────────────────────────────────────────


class Pods:
    """The pods of a release as processes, with only their own environment and files."""

    def __init__(self, found: list[Resource], folder: Path, secrets: dict[str, str]) -> None:
        self._deployments = of_kind(found, "Deployment")
        self._settings = of_kind(found, "ConfigMap")["settings"]["data"]
        self.folder = folder
        self._secrets = secrets
        self._running = ExitStack()
        self.ports: dict[str, int] = {}

    def start(self, name: str) -> None:
        """Start a deployment's pod; its port is in `ports`."""
        one, inside = container(self._deployments[name]), pod(self._deployments[name])
        root = self.folder / name
        for volume in inside["volumes"]:
            [mount] = [m for m in one["volumeMounts"] if m["name"] == volume["name"]]
            here = root / mount["mountPath"].lstrip("/")
            here.mkdir(parents=True)
            for item in volume.get("secret", {}).get("items", []):
                (here / item["path"]).write_text(self._secrets[item["key"]])
        [port] = [port["containerPort"] for port in one["ports"]]
        self.ports[name] = free_port()

        def moved(text: str) -> str:
            text = re.sub(r"^/etc/registration-worker", str(root / "etc/registration-worker"), text)
            return text.replace("0.0.0.0", "127.0.0.1").replace(str(port), str(self.ports[name]))

        given = {**self._settings, **{e["name"]: e["value"] for e in one["env"]}}
        command = ["env", "-i", f"PATH={Path(sys.executable).parent}:/usr/bin:/bin"]
        command += [f"HOME={root}", f"TMPDIR={root / 'tmp'}", f"PYTHONPATH={ROOT}"]
        command += [f"{key}={moved(value)}" for key, value in given.items()]
        command += [moved(part) for part in one.get("args") or image.last("CMD").words()]
        log = self._running.enter_context((self.folder / f"{name}.log").open("wb"))
        self._running.enter_context(stack.process(command, {}, root, log))

    def probed(self, name: str) -> bool:
        """The status of the readiness probe."""
        probe = container(self._deployments[name])["readinessProbe"]["httpGet"]
        try:
            return httpx.get(f"{self.url(name)}{probe['path']}", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def url(self, name: str) -> str:
        """The local URL of a pod."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def close(self) -> None:
        """Stop them in reverse order."""
        self._running.close()


@pytest.fixture(scope="module")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pods, SandboxServer, str]]:
    """The release, with a local ledger and local providers."""
    folder = tmp_path_factory.mktemp("release")
    with ExitStack() as running:
        valkey = running.enter_context(stack.valkey(folder / "valkey", fsync="always"))
        server = running.enter_context(SandboxServer())
        secrets = stack.environment(valkey.connection_url, server.url, KEYS, SECRET)
        values = {**ALL, "flower": {"enabled": False}}
        here = Pods(resources(values), folder, secrets)
        running.callback(here.close)
        for name in ("worker", "gateway", "exporter"):
            here.start(name)
        for name in ("worker", "gateway", "exporter"):
            stack.until(lambda name=name: here.probed(name), f"{name} is ready", 2 * PATIENCE)
        yield here, server, valkey.connection_url


def test_a_release_registers_customers(pods: tuple[Pods, SandboxServer, str]) -> None:
    """A job that is sent to the gateway ends as a customer, and the exporter counts it."""
    here, server, ledger_url = pods
    ledger = SyncLedger(ledger_url)
    token, _ = TokenStore(ledger).new("shop", ("enqueue", "read"))
    ledger.close()
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(base_url=here.url("gateway"), headers=headers, timeout=90) as shop:
        for job in (skypostal(), open2b()):
            job_id = shop.post("/v1/jobs", json=job).json()["job_id"]
            while not (found := shop.get(f"/v1/jobs/{job_id}?wait=30").json())["final"]:
                pass
            assert found["state"] == "registered"
    assert len(server.sandbox.accounts.find()) == 2

    def counted() -> bool:
        with urllib.request.urlopen(f"{here.url('exporter')}/metrics", timeout=30) as answer:
            return 'regworker_workers{condition="well"} 1' in answer.read().decode()

    # The worker may have registered both before its first heartbeat.
    stack.until(counted, "the exporter counts the worker", PATIENCE)


def test_a_release_whose_gateway_has_no_keys_registers_what_is_sealed(
    pods: tuple[Pods, SandboxServer, str], tmp_path: Path
) -> None:
    """The gateway refuses a plain registration; a worker opens a sealed one, and the job ends as
    a customer."""
    _, _, ledger_url = pods
    ledger = SyncLedger(ledger_url)
    token, _ = TokenStore(ledger).new("sealer", ("enqueue", "read"))
    ledger.close()
    with ExitStack() as running:
        keyless = Pods(resources(KEYLESS), tmp_path, {"REGWORKER_REDIS_URL": ledger_url})
        running.callback(keyless.close)
        keyless.start("gateway")
        stack.until(lambda: keyless.probed("gateway"), "the gateway is ready", 2 * PATIENCE)
        headers = {"authorization": f"Bearer {token}"}
        url = keyless.url("gateway")
        shop = running.enter_context(httpx.Client(base_url=url, headers=headers, timeout=90))
        job = open2b()
        assert shop.post("/v1/jobs", json=job).status_code == 422
        answer = shop.post("/v1/jobs", json=sealed(job, Keyring.parse(KEYS)))
        assert answer.status_code == 201, answer.text
        while not (found := shop.get(f"{answer.headers['location']}?wait=30").json())["final"]:
            pass
        assert found["state"] == "registered"


def test_no_secret_of_a_release_is_in_an_environment(
    pods: tuple[Pods, SandboxServer, str], everything: list[Resource]
) -> None:
    """Many can read a process's environment; only the process reads a mounted file."""
    rendered = json.dumps(everything)
    assert KEYS.partition(":")[2] not in rendered
    here, _, ledger_url = pods
    environments = [
        Path(f"/proc/{pid}/environ").read_bytes()
        for pid in (one.name for one in Path("/proc").iterdir() if one.name.isdigit())
        if _cwd(pid).startswith(str(here.folder))
    ]
    assert len(environments) >= 3
    for one in environments:
        assert KEYS.partition(":")[2].encode() not in one
        assert f"={ledger_url}".encode() not in one


def _cwd(pid: str) -> str:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return ""
