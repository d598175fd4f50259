"""A job: its calls, leases, retries and retention, and what people do to it."""

from typing import Self

from pydantic import Field, model_validator

from regworker.settings.base import SettingsPart


class JobSettings(SettingsPart):
    """When calls, leases and retries happen, and how long records are kept."""

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
