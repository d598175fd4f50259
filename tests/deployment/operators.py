"""Resources of operators, of which Kubernetes' own schemas know nothing: as far as we use them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    """Takes no field that the resource does not have."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(Strict):
    """Of any resource."""

    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")]
    labels: dict[str, str] = {}


class ScaleTarget(Strict):
    """What KEDA scales."""

    name: str


class Fallback(Strict):
    """What KEDA does while its source can't be asked."""

    failure_threshold: Annotated[int, Field(ge=1)]
    replicas: Annotated[int, Field(ge=1)]


class PrometheusMetadata(Strict):
    """Strings, all of them (keda.sh/docs, "Prometheus", "Parameter list")."""

    server_address: Annotated[str, Field(pattern=r"^https?://")]
    query: str
    threshold: Annotated[str, Field(pattern=r"^\d+(\.\d+)?$")]
    ignore_null_values: Literal["true", "false"] = "true"


class Trigger(Strict):
    """Where KEDA reads from."""

    type: Literal["prometheus"]
    metadata: PrometheusMetadata


class ScaledObjectSpec(Strict):
    """Those fields we use (keda.sh/docs, "ScaledObject specification")."""

    scale_target_ref: ScaleTarget
    min_replica_count: Annotated[int, Field(ge=0)]
    max_replica_count: Annotated[int, Field(ge=1)]
    fallback: Fallback
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Strict):
    """KEDA's own resource, of which Kubernetes' schemas know nothing."""

    api_version: Literal["keda.sh/v1alpha1"]
    kind: Literal["ScaledObject"]
    metadata: Metadata
    spec: ScaledObjectSpec


class Expression(Strict):
    """Of a label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: list[str]


class Selector(Strict):
    """By labels."""

    match_expressions: list[Expression]


class Endpoint(Strict):
    """A port of a pod that Prometheus reads."""

    port: str
    path: Annotated[str, Field(pattern="^/")]
    interval: Annotated[str, Field(pattern=r"^\d+s$")]


class PodMonitorSpec(Strict):
    """Those fields we use (prometheus-operator.dev, "API reference", "PodMonitorSpec")."""

    selector: Selector
    pod_metrics_endpoints: list[Endpoint]


class PodMonitor(Strict):
    """The Prometheus operator's own resource."""

    api_version: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: PodMonitorSpec


#: By the kind of a resource.
CUSTOM: dict[str, type[Strict]] = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor}
