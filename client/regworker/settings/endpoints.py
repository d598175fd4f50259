"""Endpoints for results: a stream, a webhook, a queue."""

import base64
import re
from ipaddress import IPv4Address
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from regworker import addresses, way_out
from regworker.settings.base import SettingsPart, bounded, split


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
    if not parts.netloc.startswith("[") and addresses.like_an_address(host):
        try:
            IPv4Address(host)
        except ValueError:
            raise ValueError("its host is no name, and not of the form 192.0.2.1") from None
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


#: Names on a broker besides results: our own queues, Celery's and kombu's, RabbitMQ's.
_TAKEN = ("registrations", "celery", "unacked", "amq.")


def _not_ours(queue: str) -> str:
    if queue.startswith(_TAKEN):
        raise ValueError(f"is reserved: queues for results must not start with {', '.join(_TAKEN)}")
    return queue


#: First words of the ledger's own keys; a stream with one of these names would overwrite it.
LEDGER_WORDS = frozenset(
    {
        *("absent", "account", "act"),
        *("alarms", "announced", "answer", "audit", "configured", "dead"),
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
    _lengths = field_validator("*")(bounded)

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
    _lengths = field_validator("*")(bounded)

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
        list[SecretStr], BeforeValidator(split), Field(min_length=1), AfterValidator(_base64)
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


Endpoint = Annotated[StreamEndpoint | WebhookEndpoint | QueueEndpoint, Field(discriminator="kind")]


KINDS: dict[str, type[BaseModel]] = {
    "stream": StreamEndpoint,
    "webhook": WebhookEndpoint,
    "queue": QueueEndpoint,
}


class EndpointSettings(SettingsPart):
    """The endpoints, by name."""

    endpoints: dict[str, Endpoint] = Field(
        default_factory=dict,
        description="Endpoints for results: `ENDPOINTS__<NAME>__<FIELD>`. `results` always "
        "exists: the stream `{reg}:results`.",
    )

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
