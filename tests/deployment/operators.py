"""Resources of Kubernetes operators that Kubernetes' own schemas do not know, as far as we use
them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    """Refuses fields that the resource does not have."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    """The metadata of any resource."""

    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")]
    labels: dict[str, str] = {}


class ScaleTarget(Strict):
    """The deployment that KEDA scales."""

    name: str


class Fallback(Strict):
    """What KEDA does while it cannot query its source."""

    failure_threshold: Annotated[int, Field(ge=1)]
    replicas: Annotated[int, Field(ge=1)]


class PrometheusMetadata(Strict):
    """All values are strings (keda.sh/docs, "Prometheus", "Parameter list")."""

    server_address: Annotated[str, Field(pattern=r"^https?://")]
    query: str
    threshold: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]
    ignore_null_values: Literal["true", "false"] = "true"


class Trigger(Strict):
    """The source that KEDA reads."""

    type: Literal["prometheus"]
    metadata: PrometheusMetadata


class ScaledObjectSpec(Strict):
    """The fields that we use (keda.sh/docs, "ScaledObject specification")."""

    scale_target_ref: ScaleTarget
    min_replica_count: Annotated[int, Field(ge=0)]
    max_replica_count: Annotated[int, Field(ge=1)]
    fallback: Fallback
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Strict):
    """KEDA's own resource, which Kubernetes' schemas do not know."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class Expression(Strict):
    """An expression of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]  # codespell:ignore notin
    values: list[str]


class Selector(Strict):
    """A label selector."""

    match_expressions: list[Expression]
    match_labels: dict[str, str] = {}


class Endpoint(Strict):
    """A port of a pod that Prometheus reads."""

    port: str
    path: Annotated[str, Field(pattern="^/")]
    interval: Annotated[str, Field(pattern=r"^\d+s$")]


class PodMonitorSpec(Strict):
    """The fields that we use (prometheus-operator.dev, "API reference", "PodMonitorSpec")."""

    selector: Selector
    pod_metrics_endpoints: list[Endpoint]


class PodMonitor(Strict):
    """The Prometheus operator's own resource."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


class Rule(Strict):
    """An alert in Prometheus' format; promtool tests its expression."""

    model_config = ConfigDict(alias_generator=None)

    alert: str
    expr: str
    for_: Annotated[str, Field(alias="for")] = "0s"
    labels: dict[str, str]
    annotations: dict[str, str]


class RuleGroup(Strict):
    """A group of rules that are evaluated together."""

    name: str
    rules: list[Rule]


class PrometheusRuleSpec(Strict):
    """The fields that we use (prometheus-operator.dev, "API reference", "PrometheusRuleSpec")."""

    groups: list[RuleGroup]


class PrometheusRule(Strict):
    """The Prometheus operator's own resource."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: PrometheusRuleSpec


#: The model of each kind of resource.
CUSTOM: dict[str, type[Strict]] = {
    "ScaledObject": ScaledObject,
    "PodMonitor": PodMonitor,
    "PrometheusRule": PrometheusRule,
}
