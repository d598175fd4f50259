"""Log lines, metrics, traces, and reports of errors."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from regworker.settings.base import SettingsPart, blank

_PROJECT = re.compile(r"/\d+$")


def _dsn(dsn: SecretStr) -> SecretStr:
    """Refuse an invalid Sentry DSN: the library's error would not name the variable."""
    try:
        parts = urlsplit(dsn.get_secret_value())
        named, _ = parts.hostname and parts.username, parts.port
    except ValueError:
        named = None
    if not named or parts.scheme not in {"http", "https"} or not _PROJECT.search(parts.path):
        raise ValueError("is not of the form https://<key>@<host>/<project's number>")
    return dsn


class MonitoringSettings(SettingsPart):
    """What is logged and measured, and where it is sent."""

    sentry_dsn: Annotated[
        Annotated[SecretStr, AfterValidator(_dsn)] | None, BeforeValidator(blank)
    ] = Field(None, description="Report errors to this Sentry project.")
    sentry_environment: str = Field(
        "production", description="The environment of the errors in Sentry."
    )
    sentry_traces_sample_rate: float = Field(
        0,
        ge=0,
        le=1,
        description="The share of jobs that are traced. A producer that traces decides for its "
        "own jobs. 0: no traces.",
    )
    opentelemetry: bool = Field(
        False,
        description="Send traces and metrics by OTLP (extra `otel`). The standard variables "
        "`OTEL_*` name the receiver.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Serve `/metrics`, `/health` and `/ready` on this port; 0: any free one. "
        "Further processes on a host use the next free port of the following 100; "
        "the exporter's `/targets` lists them all.",
    )
    metrics_address: str = Field("127.0.0.1", description="The address of that port.")
    health_patience: float = Field(
        30,
        gt=0,
        description="After how long without work a part of a worker counts as stuck in "
        "`regworker health`.",
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="The form of log lines: `json`, `console`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest level that is logged: debug, info, warning, error."
    )
