"""What a worker process does, and the relay of an outbox."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator

from regworker.settings.base import SettingsPart, blank

#: What to do instead of using another pool of Celery's.
ONE_POOL = (
    "the only pool is `loop`: it runs up to REGWORKER_CONCURRENCY jobs at a time in one process. "
    "Remove REGWORKER_POOL and `--pool`; to use more cores, start more workers"
)


def _uri(value: str) -> str:
    if not value or " " in value or not value.isprintable():
        raise ValueError("is no URI reference: it is empty, or has a blank or a line break")
    return value


class WorkerSettings(SettingsPart):
    """How worker processes run, and what they accept."""

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
    outbox_url: Annotated[SecretStr | None, BeforeValidator(blank)] = Field(
        None,
        description="The database of `regworker outbox`, as an SQLAlchemy URL: "
        "`postgresql+psycopg://user:password@host/database`.",
    )
    source: Annotated[str, AfterValidator(_uri)] = Field(
        "/registration-worker", description="The events' CloudEvents `source` (an URI reference)."
    )

    @field_validator("pool", mode="before")
    @classmethod
    def _only_loop(cls, pool: Any) -> Any:
        if pool != "loop":
            raise ValueError(ONE_POOL)
        return pool
