"""Settings: environment variables `REGWORKER_*`, optionally a TOML file in `REGWORKER_CONFIG`.

Each value may be in a file of its own (`setting_files.py`). Nothing here is read at import. Every
duration is in seconds.
"""

import base64
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import lru_cache
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
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as Unreadable

from regworker import addresses, setting_files, tls, way_out
from regworker.account_ledgers import MAIN, NAME, AccountLedgers, parts
from regworker.domain.errors import SettingsError
from regworker.serving import ServeSettings
from regworker.variables import PREFIX as PREFIX
from regworker.variables import variable as variable
from regworker.way_out import Authorities, File, Proxy


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return [part for part in map(str.strip, value.split(",")) if part]


#: Whether the accounts at the providers are read from the file.
_ACCOUNTS_TOO: ContextVar[bool] = ContextVar("_ACCOUNTS_TOO", default=True)

#: Whether the caller names the only ledger.
_ONE_LEDGER: ContextVar[bool] = ContextVar("_ONE_LEDGER", default=False)

#: Settings that are not read then.
_OF_SEVERAL = ("ledgers", "account_ledgers", "ledger")

#: Variables with our prefix that are no settings: read elsewhere, by the tests, or by Compose,
#: which passes its whole `.env` to a worker.
_NO_SETTINGS = re.compile(r"(config|debug|image|test_\w+)$")

#: Variables that Kubernetes sets in each container for a service whose name begins like ours.
_OF_KUBERNETES = re.compile(r"\w+_(service_host|service_port(_\w+)?|port_\d+_(tcp|udp)(_\w+)?)$")


class _Environment(EnvSettingsSource):
    """The environment, where a value is JSON only if it looks like a list or an object.

    By itself the library reads an application key like `1656e7` as the number 16560000. A blank
    variable counts as unset.
    """

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        found = self.env_vars.items()
        self.env_vars = {name: value for name, value in found if value and value.strip()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """A list or an object from JSON; any other text unchanged."""
        if isinstance(value, str) and value.lstrip()[:1] not in {"[", "{"}:
            return value
        return super().decode_complex_value(field_name, field, value)

    def __call__(self) -> dict[str, Any]:
        """The values, including those from files."""
        prefix = PREFIX.lower()
        ours = {
            name.removeprefix(prefix): value
            for name, value in self.env_vars.items()
            if name.startswith(prefix)
        }
        files = setting_files.wanted(ours, self.settings_cls.model_fields)
        return _wanted({**super().__call__(), **{name: ours[name] for name in files}})


class _Config(InitSettingsSource):
    """The file in `REGWORKER_CONFIG`."""

    def __call__(self) -> dict[str, Any]:
        """The values, including those from files of their own."""
        return _wanted(super().__call__())


def _wanted(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a source, including those from files of their own."""
    if _ONE_LEDGER.get():
        values = {name: value for name, value in values.items() if name not in _OF_SEVERAL}
    return setting_files.resolved(values)


def _content(file: Path) -> dict[str, Any]:
    content = file.read_bytes()
    if not _ACCOUNTS_TOO.get():
        content = setting_files.without_accounts(content)
    return _parsed(content.decode())


@lru_cache(maxsize=1)
def _parsed(text: str) -> dict[str, Any]:
    """A file of settings.

    A worker that starts reads it five times, which with thousands of accounts took a second of CPU.
    Nothing changes what comes out: `resolved` makes new tables.
    """
    return tomllib.loads(text)


def _web(url: str) -> str:
    """Refuse a URL that no HTTP client would call."""
    if not re.match(r"https?://[^\s/]", url):
        raise ValueError("is not of the form https://host/path")
    return url


def _plain_url(url: str) -> str:
    """Refuse a URL whose destination two parsers could read differently."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text would show a part of the URL
        raise ValueError("is not a URL, or its port is not a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("its port is not a number from 1 to 65535")
    if not host:
        raise ValueError("names no host")
    if "@" in parts.netloc:
        raise ValueError("holds credentials: remove them, because the signature proves the sender")
    if "\\" in url or not url.isprintable():
        raise ValueError("holds a character that is not allowed in URLs: percent-encode it")
    if not addresses.well_encoded(url):
        raise ValueError(addresses.BAD_ENCODING)
    last = host.rstrip(".").rpartition(".")[2]
    # 2130706433, 0x7f.1 and 0177.0.0.1 are all 127.0.0.1 for one library, and a name for another.
    if not parts.netloc.startswith("[") and (last.isdigit() or last.startswith("0x")):
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("its address is not of the form 192.0.2.1") from None
    return url


#: Bytes of a webhook's secret (Standard Webhooks, "Signature scheme": 24 to 64). A shorter one can
#: be guessed from one signed request.
SHORTEST_SECRET = 24


def _base64(secrets: list[SecretStr]) -> list[SecretStr]:
    """Refuse a key that two libraries would decode differently."""
    for number, one in enumerate(secrets, 1):
        try:
            key = base64.b64decode(one.get_secret_value().removeprefix("whsec_"), validate=True)
        except ValueError:
            key = b""
        if len(key) < SHORTEST_SECRET:
            what = (
                f"has {len(key)} bytes of at least {SHORTEST_SECRET}"
                if key
                else ("is not whsec_ and base64")
            )
            raise ValueError(f"entry {number} {what}: make one with `regworker webhook secret`")
    return secrets


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


_PROJECT = re.compile(r"/\d+$")


#: What to do instead of using another pool of Celery's.
ONE_POOL = (
    "the only pool is `loop`: it runs up to REGWORKER_CONCURRENCY jobs at a time in one process. "
    "Remove REGWORKER_POOL and `--pool`; to use more cores, start more workers"
)


#: Seconds: a hundred years. A longer time is a mistake, and exceeds the ledger's clock.
LONGEST = 100 * 365.25 * 86400


def _bounded(value: Any) -> Any:
    if isinstance(value, float) and not value <= LONGEST:
        raise ValueError("is longer than a hundred years (in seconds)")
    return value


def _verified(url: str) -> str:
    """Refuse an option that would weaken TLS."""
    if option := tls.refused(url):
        raise ValueError(
            f"its option {option} is refused: certificate and host name are always verified (set a "
            f"private authority in {PREFIX}CA_FILE)"
        )
    return url


def _server(*kinds: addresses.Kind) -> AfterValidator:
    """Refuse a URL that is not unambiguous."""

    def check(url: str) -> str:
        return _verified(addresses.checked(url, *kinds))

    return AfterValidator(check)


def _blank(value: Any) -> Any:
    """A blank value counts as none, as in the environment."""
    value = addresses.unquoted(value)
    return None if value == "" else value


LedgerUrl = Annotated[str, _server("redis")]
#: Brokers with our own transport, which is safe against any message. kombu's others read everything
#: without a check, or need packages that are not installed.
BrokerUrl = Annotated[str, _server("redis", "amqp"), AfterValidator(addresses.of_a_broker)]


#: Names on a broker besides results: our own queues, Celery's and kombu's, RabbitMQ's.
_TAKEN = ("registrations", "celery", "unacked", "amq.")


def _not_ours(queue: str) -> str:
    if queue.startswith(_TAKEN):
        raise ValueError(f"is reserved: queues for results must not start with {', '.join(_TAKEN)}")
    return queue


#: First words of the ledger's own keys; a stream with one of these names would overwrite it.
LEDGER_WORDS = frozenset(
    {
        *("absent", "account", "alarms", "announced", "answer", "audit", "configured", "dead"),
        *("delivery", "done", "ended", "endpoint", "export", "format", "identity", "inflight"),
        *("job", "jobs", "later", "line", "mark", "open", "pages", "pending", "plain", "plan"),
        *("plans", "quarantine", "refusal", "refusals", "replicas", "reviews", "rotation"),
        *("sealing", "stats", "streams", "tokens", "trying", "waiting", "wakes", "waking"),
        *("worker", "workers"),
    }
)


class StreamEndpoint(BaseModel):
    """Results on a Redis stream of the ledger's server, written with the final state itself."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    _lengths = field_validator("*")(_bounded)

    kind: Literal["stream"]
    stream: Annotated[str, Field(pattern=r"^\{reg\}:[\w.:-]+$")] = Field(
        "{reg}:results", description="The stream's key, with the ledger's hash tag in front."
    )
    retention: float = Field(
        604800,
        gt=0,
        description="How long entries are kept. Entries that a consumer group has not read and "
        "acknowledged are kept until it has.",
    )
    sealed: bool = Field(
        False, description="Write events as JWE; readers open them with `REGWORKER_SEALING_KEYS`."
    )

    @field_validator("stream")
    @classmethod
    def _not_the_ledgers(cls, stream: str) -> str:
        word = re.split(r"[^a-z]", stream.removeprefix("{reg}:"), maxsplit=1)[0]
        if word in LEDGER_WORDS:
            raise ValueError(f"{stream} is a key of the ledger itself; use another name")
        return stream


class DeliveredEndpoint(BaseModel):
    """Results by deliveries, which are tried again where they fail."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)
    _lengths = field_validator("*")(_bounded)

    max_in_flight: int = Field(
        10,
        ge=1,
        le=1000,
        description="Events in flight, across all workers, so that one hanging endpoint cannot "
        "use up every slot; at most half of `CONCURRENCY`.",
    )
    disable_after: float = Field(
        432000,
        ge=0,
        description="The endpoint is disabled when all deliveries have failed for this long; an "
        "event on the results stream reports it. 0: never.",
    )


class WebhookEndpoint(DeliveredEndpoint, way_out.OwnWayOut):
    """Results as signed HTTP requests (Standard Webhooks)."""

    kind: Literal["webhook"]
    url: Annotated[
        str, BeforeValidator(addresses.unquoted), AfterValidator(_web), AfterValidator(_plain_url)
    ] = Field(description="Receives one POST per event; https.", repr=False)
    secrets: Annotated[
        list[SecretStr], BeforeValidator(_split), Field(min_length=1), AfterValidator(_base64)
    ] = Field(
        description="`whsec_` and base64, separated by commas. Each signs, so that a receiver can "
        "switch to a new one. `regworker webhook secret` creates one."
    )
    allow_http: bool = Field(False, description="Allow http:// too. For development.")
    allow_private: bool = Field(
        False, description="Allow private and loopback addresses too. For development."
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        if not self.allow_http and not self.url.startswith("https://"):
            raise ValueError("url must be https:// (or set ALLOW_HTTP=true for this endpoint)")
        return self


class QueueEndpoint(DeliveredEndpoint):
    """Results as plain JSON messages on the Celery broker: a quorum queue, or a Redis list."""

    kind: Literal["queue"]
    # Two patterns: in a single one, two hundred times any letter takes 50 ms to compile.
    queue: Annotated[
        str, Field(pattern=r"^[A-Za-z][\w.-]*$", max_length=200), AfterValidator(_not_ours)
    ] = Field(description="The queue's name on RabbitMQ, the list's key on Redis.")


class LedgerServers(BaseModel):
    """One more ledger."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    redis_url: LedgerUrl = Field(
        description="The server of the ledger `<NAME>`, like `REDIS_URL`.", repr=False
    )
    broker_url: Annotated[BrokerUrl | None, BeforeValidator(_blank)] = Field(
        None,
        description="The Celery broker of its workers, like `BROKER_URL`; no other ledger may "
        "have the same. Default: the ledger's.",
        repr=False,
    )

    @property
    def broker(self) -> str:
        """The broker's URL: its own, or the ledger's."""
        return self.broker_url or self.redis_url


Endpoint = Annotated[StreamEndpoint | WebhookEndpoint | QueueEndpoint, Field(discriminator="kind")]


class Settings(BaseSettings, ServeSettings):
    """Everything that can be set. Defaults are safe for production."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        hide_input_in_errors=True,
        frozen=True,
    )
    _lengths = field_validator("*")(_bounded)
    _files: tuple[Path, ...] = PrivateAttr(())

    redis_url: LedgerUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="The ledger: Redis >= 7 or Valkey >= 8, AOF on, `noeviction`. "
        "`sentinel://user:password@h1:26379,h2:26379/<service>/0` follows a failover, "
        "`redis://n1:6379,n2:6379/0` a cluster.",
        repr=False,
    )
    broker_url: Annotated[BrokerUrl | None, BeforeValidator(_blank)] = Field(
        None,
        description="The Celery broker: `redis://`, `sentinel://` or `amqp://`. "
        "Default: the ledger's.",
        repr=False,
    )
    ledgers: dict[str, LedgerServers] = Field(
        default_factory=dict,
        description="More ledgers beside `REDIS_URL`, which is the ledger `main`: "
        "`LEDGERS__<NAME>__<FIELD>`. The same for clients and workers.",
        repr=False,
    )
    account_ledgers: Annotated[list[str], BeforeValidator(_split)] = Field(
        default_factory=list,
        description="Which account belongs to which ledger: `<provider>/<account>=<ledger>`, "
        "separated by commas; `*`, `?` and `[0-4]` in a name match as in file names. The first "
        "match counts; without one it is `main`. The same for clients and workers.",
    )
    ledger: str = Field(
        MAIN,
        description="The ledger that this worker, gateway or command uses. Producers and readers "
        "of results use all.",
    )
    ca_file: Authorities | None = Field(
        None,
        description="Certificates (PEM) of authorities to trust besides the system's, for "
        "connections to the ledger, the broker, providers and webhooks.",
    )
    proxy: Annotated[Proxy | None, BeforeValidator(_blank)] = Field(
        None, description=f"{way_out.PROXY} For all providers and webhooks."
    )
    client_cert_file: File | None = Field(
        None, description=f"{way_out.CLIENT_CERT_FILE} For all providers and webhooks."
    )
    client_key_file: File | None = Field(None, description=way_out.CLIENT_KEY_FILE)
    sealing_keys: SecretStr = Field(
        description="`kid:base64url,...`: 32-byte keys; the first encrypts, all decrypt.",
    )
    accounts: dict[str, dict[str, dict[str, Any]]] = Field(
        default_factory=dict,
        description="Accounts at the providers: `ACCOUNTS__<PROVIDER>__<ACCOUNT>__<FIELD>`.",
        repr=False,
    )
    endpoints: dict[str, Endpoint] = Field(
        default_factory=dict,
        description="Endpoints for results: `ENDPOINTS__<NAME>__<FIELD>`. `results` always "
        "exists: the stream `{reg}:results`.",
    )
    providers: Annotated[list[str], BeforeValidator(_split)] = Field(
        default=["worker.providers.skypostal:SkyPostal", "worker.providers.open2b:Open2b"],
        description="The providers, separated by commas: names of installed packages' entry "
        "points (group `regworker.providers`), or import paths of classes.",
    )

    durability: Literal["aof", "service"] = Field(
        "aof",
        description="How the ledger is made durable. `aof`: the server's append-only file, which "
        "must be on. `service`: a managed service with its own durability, which may "
        "hide `INFO` and `CONFIG`; set it for workers, exporter and commands.",
    )
    replicas: int = Field(
        0,
        ge=0,
        le=100,
        description="How many of the ledger's replicas must have a job, a claim or a cancel "
        "before it counts, so that a failover loses none. Connect one more replica "
        "than this; see "
        "`docs/operations.md`. 0: none, and a failover may lose the last seconds.",
    )
    replicas_timeout: float = Field(
        1,
        gt=0,
        le=4,
        description="How long to wait for replicas. After that `enqueue` raises "
        "`LedgerUnavailable`, and a worker sends nothing.",
    )

    call_budget: float = Field(
        20,
        gt=0,
        description="The time limit of one call to a provider, from connecting to the last byte.",
    )
    settle_delay: float = Field(
        60,
        gt=0,
        description="After a lost answer: how long until the worker believes that the provider "
        "has no customer. Longer than `call_budget`, because the provider may "
        "process a request after we stopped waiting.",
    )
    lease: float = Field(
        12,
        gt=0,
        description="How long a claim lasts without renewal; after that another worker takes the "
        "job over.",
    )
    lease_renewal: float = Field(4, gt=0, description="How often a worker renews its leases.")
    clock_period: float = Field(
        1, gt=0, description="How often each worker checks for alarms that are due."
    )
    retry_base: float = Field(2, gt=0, description="The longest backoff after the first failure.")
    retry_cap: float = Field(300, gt=0, description="The longest backoff after many failures.")
    max_attempts: int = Field(
        12, ge=1, description="The number of calls of a job; after that the job is `abandoned`."
    )
    deadline: float = Field(
        86400,
        gt=0,
        description="The time from acceptance to the deadline of jobs that name no deadline.",
    )
    retention: float = Field(
        604800,
        ge=345600,
        description="How long a finished job's record (and key) is kept: longer than webhooks "
        "are retried (75 h). Workers announce it in the ledger: a job that a person or its "
        "producer ends is kept for at least as long, whatever their own setting is.",
    )
    dead_retention: float = Field(
        2592000,
        ge=86400,
        description="How long a dead delivery is kept with its event, so that it can be replayed.",
    )
    audit_retention: float = Field(
        31536000,
        ge=86400,
        description="How long the audit log keeps entries (`regworker audit`).",
    )
    operator: str = Field(
        "",
        description="The name of the person on the command line, for the audit log; `--by` "
        "overrides it. Default: `SUDO_USER`, or the login name.",
    )
    breaker_threshold: int = Field(
        5,
        ge=1,
        description="The number of consecutive failures after which an account's breaker opens.",
    )
    breaker_pause: float = Field(
        10, gt=0, description="How long an open breaker waits until it allows one probe."
    )

    require_sealed: bool = Field(
        False,
        description="Refuse jobs from the job stream and the task `registrations.register` if "
        "their sender has not sealed the registration (JWE).",
    )
    rewrite_period: float = Field(
        900,
        ge=0,
        description="The shortest time between two rewrites of the files of the ledger's and the "
        "broker's Redis (`BGREWRITEAOF`, `BGSAVE`). Workers rewrite them after an "
        "unsealed registration, so that the files do not keep it. 0: never.",
    )
    pool: Literal["loop"] = Field(
        "loop",
        description="Celery's pool: all jobs of a process run in one thread. No other "
        "pool is allowed.",
    )
    concurrency: int = Field(
        100, ge=1, description="How many jobs one worker process runs at a time."
    )
    allow_unsafe: bool = Field(
        False,
        description="Start although the ledger's server could lose jobs. For development only.",
    )
    outbox_url: Annotated[SecretStr | None, BeforeValidator(_blank)] = Field(
        None,
        description="The database of `regworker outbox`, as an SQLAlchemy URL: "
        "`postgresql+psycopg://user:password@host/database`.",
    )
    source: str = Field(
        "/registration-worker", description="The events' CloudEvents `source` (an URI reference)."
    )
    sentry_dsn: Annotated[
        Annotated[SecretStr, AfterValidator(_dsn)] | None, BeforeValidator(_blank)
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

    @property
    def way_out(self) -> way_out.WayOut:
        """The route to providers and webhooks, unless they have their own."""
        proxy = way_out.ProxyServer.of(self.proxy)
        return way_out.WayOut(proxy, self.ca_file, self.client_cert_file, self.client_key_file)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files from which any setting came."""
        return self._files

    @property
    def broker(self) -> str:
        """The broker's URL: its own, or the ledger's."""
        return self.broker_url or self.redis_url

    @field_validator("pool", mode="before")
    @classmethod
    def _only_loop(cls, pool: Any) -> Any:
        if pool != "loop":
            raise ValueError(ONE_POOL)
        return pool

    @model_validator(mode="before")
    @classmethod
    def _secured(cls, values: Any) -> Any:
        """URLs name explicitly what their libraries must verify: each library has its own
        default."""
        more = values.get("ledgers")
        several = more.values() if isinstance(more, dict) else ()
        for one in (values, *(one for one in several if isinstance(one, dict))):
            for name in ("redis_url", "broker_url"):
                if isinstance(url := one.get(name), str):
                    with suppress(ValueError):  # not a URL: its own check reports it
                        url = addresses.checked(url, "redis", "amqp")
                        one[name] = tls.secured(url, values.get("ca_file"))
        return values

    @field_validator("ledgers")
    @classmethod
    def _apart(
        cls, ledgers: dict[str, LedgerServers], info: ValidationInfo
    ) -> dict[str, LedgerServers]:
        """Two ledgers on one server would be one; on one broker, each would take the other's
        wake-ups."""
        for name in ledgers:
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name: use a-z, 0-9 and single _ or - in between")
        if MAIN in ledgers:
            raise ValueError(f"{MAIN} is the ledger of {variable('redis_url')}; use another name")
        if not ledgers or not {"redis_url", "broker_url"} <= info.data.keys():
            return ledgers
        main = LedgerServers.model_construct(**info.data)
        seen: dict[object, str] = {}
        for name, one in {MAIN: main, **ledgers}.items():
            if (other := seen.setdefault(_places(one.redis_url), name)) != name:
                raise ValueError(f"{other} and {name} are the same database of the same server")
        seen.clear()
        for name, one in {MAIN: main, **ledgers}.items():
            if (other := seen.setdefault(_places(one.broker), name)) != name:
                raise ValueError(
                    f"{other} and {name} use the same broker: give each its own server, database "
                    "or virtual host"
                )
        return ledgers

    @field_validator("account_ledgers")
    @classmethod
    def _to_known(cls, rules: list[str], info: ValidationInfo) -> list[str]:
        for rule in rules:
            _, name = parts(rule)
            if "ledgers" in info.data:
                _check_ledger(name, info.data["ledgers"])
        return rules

    @field_validator("ledger")
    @classmethod
    def _known(cls, ledger: str, info: ValidationInfo) -> str:
        if "ledgers" in info.data:
            _check_ledger(ledger, info.data["ledgers"])
        return ledger

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.settle_delay <= self.call_budget:
            raise ValueError(
                "settle_delay must be longer than call_budget: a provider can process a request "
                "after we stopped waiting for its answer"
            )
        if self.lease < 2 * self.lease_renewal:
            raise ValueError(
                "lease must be at least twice lease_renewal, so that one slow renewal does not "
                "lose the lease"
            )
        return self

    @model_validator(mode="after")
    def _ways_out(self) -> Self:
        way_out.check_certificate(self.client_cert_file, self.client_key_file)
        way = self.way_out
        for name, one in self.endpoints.items():
            if isinstance(one, WebhookEndpoint) and not way.to(one).carries(one.url):
                raise ValueError(f"endpoint {name}: its URL {way_out.NOT_PLAIN}")
        return self

    @model_validator(mode="after")
    def _streams_agree(self) -> Self:
        seen: dict[str, tuple[str, StreamEndpoint]] = {}
        for name, one in self.streams().items():
            other, before = seen.setdefault(one.stream, (name, one))
            if (one.retention, one.sealed) != (before.retention, before.sealed):
                raise ValueError(
                    f"endpoints {other} and {name} use the same stream ({one.stream}), so their "
                    "RETENTION and SEALED must be equal"
                )
        return self

    def each_ledger(self) -> dict[str, Self]:
        """The settings for a client of each single ledger, by the ledger's name; no accounts."""
        own = LedgerServers.model_construct(redis_url=self.redis_url, broker_url=self.broker_url)
        return {
            name: self.model_copy(
                update={"ledger": name, **dict(servers), "ledgers": {}, "accounts": {}}
            )
            for name, servers in {self.ledger: own, **self.ledgers}.items()
        }

    def _of_its_ledger(self) -> Self:
        """The settings as they were read, but with the servers and accounts of `ledger`.

        From then on, `ledgers` holds all others.
        """
        main = LedgerServers.model_construct(redis_url=self.redis_url, broker_url=self.broker_url)
        others = {MAIN: main, **self.ledgers}
        own = others.pop(self.ledger)
        ledger_of = AccountLedgers(self.account_ledgers).of
        accounts = {
            provider: {
                name: fields
                for name, fields in accounts.items()
                if ledger_of(provider, name) == self.ledger
            }
            for provider, accounts in self.accounts.items()
        }
        return self.model_copy(update={**dict(own), "ledgers": others, "accounts": accounts})

    def streams(self) -> dict[str, StreamEndpoint]:
        """The endpoints that are streams, by name; includes `results` unless it is another kind."""
        names = {"results", *self.endpoints}
        found = {name: self.endpoint(name) for name in sorted(names)}
        return {name: one for name, one in found.items() if isinstance(one, StreamEndpoint)}

    def delivered(self) -> dict[str, DeliveredEndpoint]:
        """The endpoints with deliveries, by name."""
        every = self.endpoints.items()
        return {name: one for name, one in every if isinstance(one, DeliveredEndpoint)}

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint of that name; `results` exists without being configured."""
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
        if file := os.environ.get(f"{PREFIX}CONFIG", "").strip():
            path = Path(file)
            if not path.is_file():
                raise SettingsError([(f"{PREFIX}CONFIG", f"no such file: {file}")])
            setting_files.note(path)
            sources += (_Config(settings_cls, _content(path)),)
        return sources

    @classmethod
    def load_for_client(cls, **values: Any) -> Self:
        """Read the settings, except accounts that are separate tables in the file.

        Only workers use accounts. An installation may have thousands, with keys in files that a
        client must not read.
        """
        token = _ACCOUNTS_TOO.set(False)
        try:
            return cls.load(**values)
        finally:
            _ACCOUNTS_TOO.reset(token)

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Read the settings; `SettingsError` names each variable that is missing or wrong.

        A `redis_url` without `ledgers` is the only ledger.
        """
        problems = list(_unknown())
        token = setting_files.READ.set([])
        one = _ONE_LEDGER.set("redis_url" in values and "ledgers" not in values)
        try:
            settings = cls(**values)
            settings._files = tuple(setting_files.READ.get() or ())
            if settings.ledgers:
                settings = settings._of_its_ledger()
        except SettingsError as error:
            raise SettingsError([*problems, *error.problems]) from None
        except ValidationError as error:
            problems += [
                (_variable(item), _advice(item))
                for item in error.errors(include_url=False, include_input=False)
            ]
        except Unreadable as error:
            # Its cause would show the value, which may be a secret.
            field = re.search(r'field "(\w+)"', str(error))
            name, what = (
                (variable(field[1]), "is not JSON") if field else (f"{PREFIX}*", str(error))
            )
            raise SettingsError([(name, what)]) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError([(f"{PREFIX}CONFIG", f"is not TOML: {error}")]) from None
        finally:
            setting_files.READ.reset(token)
            _ONE_LEDGER.reset(one)
        if problems:
            raise SettingsError(problems)
        return settings


def _places(url: str) -> frozenset[object]:
    """Where a URL leads; several, separated by semicolons, are the nodes of one RabbitMQ."""
    return frozenset(addresses.read(one).place for one in url.split(";"))


def _check_ledger(name: str, ledgers: Iterable[str]) -> None:
    if name not in {MAIN, *ledgers}:
        known = ", ".join((MAIN, *ledgers))
        raise ValueError(
            f"there is no ledger {name!r} (there are: {known}); use one of these, or set "
            f"{variable('ledgers', name, 'redis_url')}"
        )


def _unknown() -> Iterator[tuple[str, str]]:
    """Every variable in the environment that is no setting, since the library ignores these."""
    for name, value in os.environ.items():
        setting = name.lower().removeprefix(PREFIX.lower())
        ours = setting != name.lower() and value.strip()
        if not ours or _NO_SETTINGS.match(setting) or _OF_KUBERNETES.match(setting):
            continue
        first, nested, _ = setting.partition("__")
        if setting_files.names_file(first) and not nested:
            first = first.removesuffix(setting_files.SUFFIX)
        if first not in (setting_files.NESTED if nested else Settings.model_fields):
            yield name, no_setting([setting], Settings.model_fields)


def no_setting(path: Sequence[str], known: Iterable[str]) -> str:
    """The error for an unknown setting, with the setting that was probably meant.

    `known`: the possible settings in its place.
    """
    *before, last = path
    close = difflib.get_close_matches(last, known, n=1, cutoff=0.7)
    meant = variable(*before, *close)
    if not close:
        # `ENDPOINT__CRM__URL`, `ACCOUNTS_OPEN2B__...`: the operator chose the rest.
        first = re.split("_+", path[0])[0]
        close = difflib.get_close_matches(first, setting_files.NESTED, n=1, cutoff=0.7)
        meant = variable(*close, "...")
    return f"is not a setting; did you mean {meant}?" if close else "is not a setting"


_ENDPOINTS: dict[str, type[BaseModel]] = {
    "stream": StreamEndpoint,
    "webhook": WebhookEndpoint,
    "queue": QueueEndpoint,
}


def _path(loc: Sequence[int | str]) -> list[str]:
    # Pydantic's path contains the discriminator of an endpoint's kind; the variable does not.
    parts = [str(part) for part in loc]
    if len(parts) > 2 and parts[0] == "endpoints" and parts[2] in _ENDPOINTS:
        del parts[2]
    return parts


def _variable(item: Any) -> str:
    if item["type"] in _NO_KIND:
        return variable(*_path(item["loc"]), "kind")
    return variable(*_path(item["loc"])) if item["loc"] else f"{PREFIX}*"


#: Pydantic's errors for an endpoint whose kind is missing or wrong.
_NO_KIND = ("union_tag_not_found", "union_tag_invalid")


def _advice(item: Any) -> str:
    if item["type"] in _NO_KIND:
        return f"is required: one of {', '.join(_ENDPOINTS)}"
    if item["type"] == "missing":
        if item["loc"] == ("sealing_keys",):
            return (
                "is required: use the keys of your workers "
                "(beside `regworker up`: run `. .regworker/env`; for a new installation, "
                "`regworker keys new` creates one)"
            )
        return "is required"
    if item["type"] == "extra_forbidden":
        loc = item["loc"]
        fields = Settings.model_fields
        if loc[0] == "endpoints" and len(loc) > 2:
            fields = _ENDPOINTS[loc[2]].model_fields
        if loc[0] == "ledgers":
            fields = LedgerServers.model_fields
        return no_setting(_path(loc), fields)
    message: str = item["msg"]
    return message.removeprefix("Value error, ")
