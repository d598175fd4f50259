"""Settings: environment variables `REGWORKER_*`, optionally a TOML file in `REGWORKER_CONFIG`.

Read once, where a process starts; nothing here is read at import. Every duration is in seconds.
"""

import base64
import os
import re
import tomllib
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as Unreadable

from worker.errors import SettingsError

PREFIX = "REGWORKER_"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class _Environment(EnvSettingsSource):
    """The environment, where a value is JSON only if it looks like a list or an object.

    By itself the library takes an application key like `1656e7` for the number 16560000.
    """

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list or an object from JSON; any other text as it stands."""
        if isinstance(value, str) and value.lstrip()[:1] not in {"[", "{"}:
            return value
        return super().decode_complex_value(field_name, field, value)


def _plain_url(url: str) -> str:
    """Refuse an URL of which two readers could think differently where it leads."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # whose text would show a part of it
        raise ValueError("is no URL") from None
    if not host:
        raise ValueError("names no host")
    if "@" in parts.netloc:
        raise ValueError("holds credentials: leave them out, the signature proves who sends")
    if "\\" in url or not url.isprintable():
        raise ValueError("holds a sign that no URL has: percent-encode it")
    last = host.rstrip(".").rpartition(".")[2]
    # 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1 to one library, and a name to another.
    if not parts.netloc.startswith("[") and (last.isdigit() or last.startswith("0x")):
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("its address is not of the form 192.0.2.1") from None
    return url


def _base64(secrets: list[SecretStr]) -> list[SecretStr]:
    """Refuse what no two libraries would read as the same key."""
    for number, one in enumerate(secrets, 1):
        try:
            key = base64.b64decode(one.get_secret_value().removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if not key:
            raise ValueError(
                f"entry {number} is not whsec_ and base64: make one with `regworker webhook secret`"
            )
    return secrets


#: What is on a broker beside results: our own queues, Celery's and kombu's, RabbitMQ's.
_TAKEN = ("registrations", "celery", "unacked", "amq.")


def _not_ours(queue: str) -> str:
    if queue.startswith(_TAKEN):
        raise ValueError(f"is taken: results can't go where names start with {', '.join(_TAKEN)}")
    return queue


#: First words of the ledger's own keys; a stream of one of these names would break it.
LEDGER_WORDS = frozenset(
    {
        *("account", "alarms", "configured", "dead", "delivery", "done", "endpoint", "format"),
        *("inflight", "job", "jobs", "later", "line", "open", "pending", "quarantine", "refusal"),
        *("reviews", "stats", "streams", "trying", "waiting", "worker", "workers"),
    }
)


class StreamEndpoint(BaseModel):
    """Results on a Redis stream of the ledger's server, written with the final state itself."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    kind: Literal["stream"]
    stream: Annotated[str, Field(pattern=r"^\{reg\}:[\w.:-]+$")] = Field(
        "{reg}:results", description="The stream's key; the ledger's hash tag stands in front."
    )
    retention: float = Field(
        604800,
        gt=0,
        description="How long entries are kept. Those that a consumer group has still to read or "
        "to acknowledge are kept until it has.",
    )
    sealed: bool = Field(
        False, description="Write events as JWE, to be opened with `REGWORKER_SEALING_KEYS`."
    )

    @field_validator("stream")
    @classmethod
    def _not_the_ledgers(cls, stream: str) -> str:
        word = re.split(r"[^a-z]", stream.removeprefix("{reg}:"), maxsplit=1)[0]
        if word in LEDGER_WORDS:
            raise ValueError(f"{stream} is a key of the ledger's own; take another name")
        return stream


class DeliveredEndpoint(BaseModel):
    """Results by deliveries, which are tried again where they fail."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    max_in_flight: int = Field(
        10,
        ge=1,
        le=1000,
        description="Events sent at a time across all workers, so that an endpoint that hangs "
        "takes not every slot; at most half of `CONCURRENCY`.",
    )
    disable_after: float = Field(
        432000,
        ge=0,
        description="Disabled after nothing but failures for so long, with an event on the results "
        "stream; 0: never.",
    )


class WebhookEndpoint(DeliveredEndpoint):
    """Results as signed HTTP requests (Standard Webhooks)."""

    kind: Literal["webhook"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+"), AfterValidator(_plain_url)] = Field(
        description="Gets a POST an event; https.", repr=False
    )
    secrets: Annotated[
        list[SecretStr], BeforeValidator(_split), Field(min_length=1), AfterValidator(_base64)
    ] = Field(
        description="`whsec_` and base64, with commas: all sign, so that a receiver can change "
        "over. `regworker webhook secret` makes one."
    )
    allow_http: bool = Field(False, description="Take http:// too. For development.")
    allow_private: bool = Field(
        False, description="Connect to private and loopback addresses too. For development."
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.allow_http and not self.url.startswith("https://"):
            raise ValueError("url must be https:// (or set ALLOW_HTTP=true for this endpoint)")
        return self


class QueueEndpoint(DeliveredEndpoint):
    """Results as plain JSON messages on the Celery broker: a quorum queue, or a Redis list."""

    kind: Literal["queue"]
    # Counted apart: two hundred times any letter, in one pattern, takes 50 ms to compile.
    queue: Annotated[
        str, Field(pattern=r"^[A-Za-z][\w.-]*$", max_length=200), AfterValidator(_not_ours)
    ] = Field(description="The queue's name on RabbitMQ, the list's key on Redis.")


Endpoint = Annotated[StreamEndpoint | WebhookEndpoint | QueueEndpoint, Field(discriminator="kind")]


class Settings(BaseSettings):
    """Everything that can be set. Defaults are safe for production."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        hide_input_in_errors=True,
        frozen=True,
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="The ledger: Redis >= 7 or Valkey >= 8, AOF on, `noeviction`.",
    )
    broker_url: str | None = Field(
        None, description="The Celery broker: `redis://` or `amqp://`. Default: the ledger's."
    )
    sealing_keys: SecretStr = Field(
        description="`kid:base64url,...`: 32-byte keys; the first seals, all open.",
    )
    accounts: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        description="Accounts at the providers: `ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>`.",
        repr=False,
    )
    endpoints: dict[str, Endpoint] = Field(
        default_factory=dict,
        description="Where results may go: `ENDPOINTS__<NAME>__<FIELD>`. `results` is always "
        "there: the stream `{reg}:results`.",
    )
    providers: Annotated[list[str], BeforeValidator(_split)] = Field(
        default=["worker.providers.skypostal:SkyPostal", "worker.providers.open2b:Open2b"],
        description="Import paths of the providers' classes, with commas.",
    )

    call_budget: float = Field(
        20, gt=0, description="All of one call to a provider, from connecting to the last byte."
    )
    settle_delay: float = Field(
        60,
        gt=0,
        description="After a lost answer, how long until absence at the provider is believed. "
        "Longer than `call_budget`: a request may be carried out after we stopped waiting.",
    )
    lease: float = Field(
        12, gt=0, description="How long a claim lasts unless renewed: a dead worker is noticed."
    )
    lease_renewal: float = Field(4, gt=0, description="How often held leases are renewed.")
    clock_period: float = Field(
        1, gt=0, description="How often each worker looks for alarms that are due."
    )
    retry_base: float = Field(2, gt=0, description="Backoff after the first failure, at most.")
    retry_cap: float = Field(300, gt=0, description="Backoff after many failures, at most.")
    max_attempts: int = Field(12, ge=1, description="Calls a job may spend; then `abandoned`.")
    deadline: float = Field(86400, gt=0, description="A job's time, unless it names its own.")
    retention: float = Field(
        604800,
        ge=345600,
        description="How long a finished job's record (and key) is kept: longer than webhooks are "
        "tried (75 h).",
    )
    dead_retention: float = Field(
        2592000,
        ge=86400,
        description="How long a delivery that nobody took is kept, with its event, to be replayed.",
    )
    breaker_threshold: int = Field(
        5, ge=1, description="Consecutive faults of an account after which its breaker opens."
    )
    breaker_pause: float = Field(
        10, gt=0, description="How long an open breaker waits before it lets one probe through."
    )

    require_sealed: bool = Field(
        False,
        description="Refuse jobs at the job stream and the task `registrations.register` whose "
        "registration did not come as JWE, sealed by its sender.",
    )
    pool: Literal["loop", "prefork", "solo"] = Field(
        "loop",
        description="Celery's pool: `loop` (all jobs of a process in one thread), `prefork`, "
        "`solo`.",
    )
    concurrency: int = Field(100, ge=1, description="Jobs at a time in one worker process.")
    allow_unsafe: bool = Field(
        False,
        description="Start although the ledger's server would lose jobs. For development only.",
    )
    source: str = Field(
        "/registration-worker", description="The events' CloudEvents `source` (an URI reference)."
    )
    sentry_dsn: SecretStr | None = Field(None, description="Report faults to this Sentry project.")
    sentry_environment: str = Field(
        "production", description="The environment that Sentry shows faults under."
    )
    sentry_traces_sample_rate: float = Field(
        0,
        ge=0,
        le=1,
        description="The share of jobs that are traced; a producer that traces itself decides for "
        "its own jobs. 0: no traces.",
    )
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Serve `/metrics`, `/health` and `/ready` on this port; 0: any free one. More "
        "processes on a host, and a pool's children, take the next free of the 100 from there on; "
        "the exporter's `/targets` names them all.",
    )
    metrics_address: str = Field("127.0.0.1", description="The address that port is opened on.")
    health_patience: float = Field(
        30,
        gt=0,
        description="How long a part of a worker may do nothing until `regworker health` calls it "
        "stuck.",
    )
    log_format: Literal["json", "console"] = Field(
        "json", description="How log lines look: `json`, `console`."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The least level that is logged: debug, info, warning, error."
    )

    @property
    def broker(self) -> str:
        """The broker's URL: its own, or the ledger's."""
        return self.broker_url or self.redis_url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.settle_delay <= self.call_budget:
            raise ValueError(
                "settle_delay must be longer than call_budget: a request can be carried out "
                "after we stopped waiting for its answer"
            )
        if self.lease < 2 * self.lease_renewal:
            raise ValueError(
                "lease must be at least twice lease_renewal, so that one slow renewal loses none"
            )
        return self

    @model_validator(mode="after")
    def _streams_agree(self) -> Self:
        seen: dict[str, tuple[str, StreamEndpoint]] = {}
        for name, one in self.streams().items():
            other, before = seen.setdefault(one.stream, (name, one))
            if (one.retention, one.sealed) != (before.retention, before.sealed):
                raise ValueError(
                    f"endpoints {other} and {name} name one stream ({one.stream}), and must agree "
                    "in RETENTION and SEALED"
                )
        return self

    def streams(self) -> dict[str, StreamEndpoint]:
        """The endpoints that are streams, by name; `results` among them unless it is another."""
        names = {"results", *self.endpoints}
        found = {name: self.endpoint(name) for name in sorted(names)}
        return {name: one for name, one in found.items() if isinstance(one, StreamEndpoint)}

    def delivered(self) -> dict[str, DeliveredEndpoint]:
        """The endpoints that get their events by deliveries, by name."""
        every = self.endpoints.items()
        return {name: one for name, one in every if isinstance(one, DeliveredEndpoint)}

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name; `results` is there without being configured."""
        if name in self.endpoints:
            return self.endpoints[name]
        return StreamEndpoint(kind="stream") if name == "results" else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the file in `REGWORKER_CONFIG`."""
        sources: tuple[PydanticBaseSettingsSource, ...] = (
            init_settings,
            _Environment(settings_cls),
        )
        if file := os.environ.get(f"{PREFIX}CONFIG"):
            path = Path(file)
            if not path.is_file():
                raise SettingsError([(f"{PREFIX}CONFIG", f"no such file: {file}")])
            sources += (TomlConfigSettingsSource(settings_cls, path),)
        return sources

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the settings; `SettingsError` names each variable that is missing or wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise SettingsError(
                (_variable(item["loc"]), _advice(item))
                for item in error.errors(include_url=False, include_input=False)
            ) from None
        except Unreadable as error:
            # Its cause would show the value, which may be a secret.
            raise SettingsError([(f"{PREFIX}*", str(error))]) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError([(f"{PREFIX}CONFIG", f"is no TOML: {error}")]) from None


def variable(*path: str) -> str:
    """The environment variable of a setting: `variable("accounts", "skypostal")`."""
    return PREFIX + "__".join(part.upper() for part in path)


def _variable(loc: tuple[int | str, ...]) -> str:
    # The discriminator of an endpoint's kind stands in pydantic's path, and in no variable.
    parts = [str(part) for part in loc]
    if len(parts) > 2 and parts[0] == "endpoints" and parts[2] in {"stream", "webhook", "queue"}:
        del parts[2]
    return variable(*parts) if parts else f"{PREFIX}*"


def _advice(item: Any) -> str:
    if item["type"] == "missing":
        if item["loc"] == ("sealing_keys",):
            return "is required: make one with `regworker keys new`"
        return "is required"
    if item["type"] == "extra_forbidden":
        return "is not a setting"
    message: str = item["msg"]
    return message.removeprefix("Value error, ")
