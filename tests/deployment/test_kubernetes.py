"""The Kubernetes manifests are valid, and match the image and the settings."""

import re
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from regworker.settings import PREFIX, Settings, variable
from tests.deployment import image
from tests.deployment.operators import CUSTOM
from tests.integration.installation import ROOT
from worker import __version__

FOLDER = ROOT / "deploy" / "kubernetes"
FILES = sorted(file for file in FOLDER.glob("*.yaml") if file.name != "kustomization.yaml")

#: About the oldest version that is still maintained, and the newest that has schemas.
VERSIONS = ("1.31", "1.37")


def resources(*files: Path) -> list[dict[str, Any]]:
    """All resources of some files, or of all files."""
    texts = [file.read_text("utf-8") for file in files or FILES]
    return list(chain.from_iterable(yaml.safe_load_all(text) for text in texts))


def of_kind(kind: str) -> dict[str, Any]:
    """The resources of a kind, by their names."""
    return {one["metadata"]["name"]: one for one in resources() if one["kind"] == kind}


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    """The one container of a deployment."""
    [found] = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_is_valid(file: Path, version: str) -> None:
    """Kubernetes' schemas accept every resource, without an unknown field."""
    import kubernetes_validate  # takes two seconds

    for one in resources(file):
        if model := CUSTOM.get(one["kind"]):
            model.model_validate(one)
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_is_misspelt_is_found() -> None:
    """The schemas refuse an unknown field; the test above relies on that."""
    import kubernetes_validate

    deployment = of_kind("Deployment")["registration-worker"]
    deployment["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_all_that_can_be_applied_is_named() -> None:
    """`kubectl apply -k` applies every file, except those that need an operator."""
    text = (FOLDER / "kustomization.yaml").read_text("utf-8")
    named = set(yaml.safe_load(text)["resources"])
    optional = set(re.findall(r"^  # - (\S+)$", text, re.M))
    assert named | optional == {file.name for file in FILES} - {"secret.example.yaml"}
    assert not named & optional


def test_every_container_is_this_version_and_can_do_little() -> None:
    """No container runs as root, has privileges, writes outside /tmp or gets a token of the
    cluster."""
    for name, deployment in of_kind("Deployment").items():
        one, pod = container(deployment), deployment["spec"]["template"]["spec"]
        assert one["image"] == f"registration-worker:{__version__}", name
        assert pod["automountServiceAccountToken"] is False
        user = pod["securityContext"]
        assert user["runAsNonRoot"] is True
        assert f"{user['runAsUser']}:{user['runAsGroup']}" == image.last("USER").value
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_probes_ask_ports_that_are_there() -> None:
    """Each probe uses the name of one of the container's ports."""
    for deployment in of_kind("Deployment").values():
        one = container(deployment)
        names = {port["name"] for port in one["ports"]}
        probes = [one[key] for key in one if key.endswith("Probe")]
        asked = [probe.get("httpGet") or probe["tcpSocket"] for probe in probes]
        assert {one["port"] for one in asked} <= names
        assert {"readinessProbe", "livenessProbe"} <= one.keys()


def test_a_worker_has_time_to_end_its_calls() -> None:
    """The grace period is longer than a call and the question after it, each with its whole
    budget."""
    pod = of_kind("Deployment")["registration-worker"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 2 * Settings.model_fields["call_budget"].default


def test_a_worker_outlives_an_outage_of_the_ledger() -> None:
    """Restarting a worker does not help during an outage, and would only make it longer."""
    probe = container(of_kind("Deployment")["registration-worker"])["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 300


def test_selectors_find_what_they_are_for() -> None:
    """Services, the disruption budget and the monitor select labels that pods have."""
    pods = {}
    for name, one in of_kind("Deployment").items():
        pods[name] = one["spec"]["template"]["metadata"]["labels"]
        assert one["spec"]["selector"]["matchLabels"].items() <= pods[name].items()
    for name, one in of_kind("Service").items():
        assert one["spec"]["selector"].items() <= pods[name].items()
        ports = {port["name"] for port in container(of_kind("Deployment")[name])["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    budget = of_kind("PodDisruptionBudget")["registration-worker"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= pods["registration-worker"].items()
    [expression] = of_kind("PodMonitor")["registration-worker"]["spec"]["selector"][
        "matchExpressions"
    ]
    found = {
        name for name, labels in pods.items() if labels[expression["key"]] in expression["values"]
    }
    assert found == {"registration-worker", "registration-exporter"}


def test_what_scales_workers_names_them() -> None:
    """It never scales to less than two workers, because workers ring the alarms."""
    spec = of_kind("ScaledObject")["registration-worker"]["spec"]
    assert spec["scaleTargetRef"]["name"] in of_kind("Deployment")
    assert 1 < spec["minReplicaCount"] < spec["maxReplicaCount"]
    slots = Settings.model_fields["concurrency"].default
    [trigger] = spec["triggers"]
    assert 0 < float(trigger["metadata"]["threshold"]) < slots


def test_every_setting_named_exists() -> None:
    """Each variable in the settings, in the example of secrets and in the containers is a
    setting."""
    known = {variable(name) for name in Settings.model_fields}
    named = set(of_kind("ConfigMap")["registration-worker"]["data"])
    for secret in of_kind("Secret").values():
        named |= set(secret["stringData"])
    for deployment in of_kind("Deployment").values():
        named |= {one["name"] for one in container(deployment).get("env", [])}
    ours = {name.split("__")[0] for name in named if name.startswith(PREFIX)}
    assert ours <= known
    assert {name for name in named if not name.startswith(PREFIX)} == {
        "FLOWER_BASIC_AUTH",
        "FLOWER_MAX_TASKS",
        "FLOWER_READ_ONLY",
        "FLOWER_TASKS_COLUMNS",
    }


def test_only_workers_get_keys_and_accounts() -> None:
    """No other pod gets the secret that holds them; and Flower always has a password."""
    holders = set()
    for name, deployment in of_kind("Deployment").items():
        given = container(deployment)["envFrom"]
        if {"secretRef": {"name": "registration-worker"}} in given:
            holders.add(name)
    assert holders == {"registration-worker"}
    [password] = [
        one
        for one in container(of_kind("Deployment")["registration-flower"])["env"]
        if one["name"] == "FLOWER_BASIC_AUTH"
    ]
    assert not password["valueFrom"]["secretKeyRef"].get("optional")


def test_the_gateway_gets_the_settings_of_the_workers() -> None:
    """Both read the same ConfigMap. Of the Secret, the gateway gets what it needs."""
    found = {name: container(one) for name, one in of_kind("Deployment").items()}
    shared = {"configMapRef": {"name": "registration-worker"}}
    for name in ("registration-worker", "registration-gateway"):
        assert shared in found[name]["envFrom"]
    secrets = {
        one["name"]: one["valueFrom"]["secretKeyRef"]
        for one in found["registration-gateway"]["env"]
    }
    assert {name: one["key"] for name, one in secrets.items()} == {
        name: name for name in map(variable, ("sealing_keys", "serve_password", "sentry_dsn"))
    }
    assert [name for name, one in secrets.items() if not one.get("optional")] == [
        variable("sealing_keys")
    ]


def test_services_are_started_as_compose_starts_them() -> None:
    """The manifests use the commands of the compose file, whose services a test starts."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    for name in ("exporter", "flower", "gateway"):
        one = container(of_kind("Deployment")[f"registration-{name}"])
        assert one["args"] == compose[name]["command"]
    assert "args" not in container(of_kind("Deployment")["registration-worker"])
    assert "command" not in compose["worker"]
