"""The ledgers, their brokers, and how they are made durable."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from regworker import addresses, tls
from regworker.settings.account_ledgers import MAIN, NAME, parts
from regworker.settings.base import SettingsPart, blank, split
from regworker.settings.variables import PREFIX, variable


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


LedgerUrl = Annotated[str, _server("redis")]


#: Brokers with our own transport, which is safe against any message. kombu's others read everything
#: without a check, or need packages that are not installed.
BrokerUrl = Annotated[str, _server("redis", "amqp"), AfterValidator(addresses.of_a_broker)]


class LedgerServers(BaseModel):
    """One more ledger."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    redis_url: LedgerUrl = Field(
        description="The server of the ledger `<NAME>`, like `REDIS_URL`.", repr=False
    )
    broker_url: Annotated[BrokerUrl | None, BeforeValidator(blank)] = Field(
        None,
        description="The Celery broker of its workers, like `BROKER_URL`; no other ledger may "
        "have the same. Default: the ledger's.",
        repr=False,
    )

    @property
    def broker(self) -> str:
        """The broker's URL: its own, or the ledger's."""
        return self.broker_url or self.redis_url


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


class LedgerSettings(SettingsPart):
    """The ledgers, and which one each account belongs to."""

    redis_url: LedgerUrl = Field(
        "redis://127.0.0.1:6379/0",
        description="The ledger: Redis >= 7 or Valkey >= 8, AOF on, `noeviction`. "
        "`sentinel://user:password@h1:26379,h2:26379/<service>/0` follows a failover, "
        "`redis://n1:6379,n2:6379/0` a cluster.",
        repr=False,
    )
    broker_url: Annotated[BrokerUrl | None, BeforeValidator(blank)] = Field(
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
    account_ledgers: Annotated[list[str], BeforeValidator(split)] = Field(
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

    @property
    def broker(self) -> str:
        """The broker's URL: its own, or the ledger's."""
        return self.broker_url or self.redis_url

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


class DurabilitySettings(SettingsPart):
    """What must be safe before a job counts as accepted."""

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
