"""Enqueue registration jobs, and read what became of them.

    from regworker import Producer

    with Producer(redis_url="redis://ledger:6379/0", sealing_keys="...") as producer:
        receipt = producer.enqueue({"provider": "skypostal", "idempotency_key": "crm-8841",
                                    "registration": {...}})
        event = producer.wait(receipt.job_id, timeout=30)

Importing this costs next to nothing: each name loads what it needs when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regworker.domain.errors import (
        IdempotencyConflict,
        InvalidJob,
        JobForgotten,
        JobNotCancellable,
        LedgerUnavailable,
        Problem,
        RegistrationWorkerError,
        SealingError,
        SettingsError,
        UnknownJob,
        UnreadableRecord,
    )
    from regworker.domain.event import Event, Notice
    from regworker.domain.job import Job
    from regworker.domain.receipt import Receipt, Refused, Status
    from regworker.forms.open2b import Open2bAddress, Open2bCustomer, Open2bRegistration
    from regworker.forms.skypostal import SkyPostalAddress, SkyPostalPhone, SkyPostalRegistration
    from regworker.producer import AsyncProducer, Producer
    from regworker.results import (
        AsyncResultConsumer,
        MissingKey,
        Result,
        ResultConsumer,
        UnreadableEvent,
    )
    from regworker.settings import Settings

_HOMES = {
    "regworker.domain.errors": (
        *("IdempotencyConflict", "InvalidJob", "JobForgotten", "JobNotCancellable"),
        *("LedgerUnavailable",),
        *("Problem", "RegistrationWorkerError", "SealingError", "SettingsError", "UnknownJob"),
        "UnreadableRecord",
    ),
    "regworker.domain.event": ("Event", "Notice"),
    "regworker.domain.job": ("Job",),
    "regworker.domain.receipt": ("Receipt", "Refused", "Status"),
    "regworker.forms.open2b": ("Open2bAddress", "Open2bCustomer", "Open2bRegistration"),
    "regworker.forms.skypostal": (
        *("SkyPostalAddress", "SkyPostalPhone", "SkyPostalRegistration"),
    ),
    "regworker.producer": ("AsyncProducer", "Producer"),
    "regworker.results": (
        *("AsyncResultConsumer", "MissingKey", "Result", "ResultConsumer", "UnreadableEvent"),
    ),
    "regworker.settings": ("Settings",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncProducer",
    "AsyncResultConsumer",
    "Event",
    "IdempotencyConflict",
    "InvalidJob",
    "Job",
    "JobForgotten",
    "JobNotCancellable",
    "LedgerUnavailable",
    "MissingKey",
    "Notice",
    "Open2bAddress",
    "Open2bCustomer",
    "Open2bRegistration",
    "Problem",
    "Producer",
    "Receipt",
    "Refused",
    "RegistrationWorkerError",
    "Result",
    "ResultConsumer",
    "SealingError",
    "Settings",
    "SettingsError",
    "SkyPostalAddress",
    "SkyPostalPhone",
    "SkyPostalRegistration",
    "Status",
    "UnknownJob",
    "UnreadableEvent",
    "UnreadableRecord",
]


def __getattr__(name: str) -> Any:
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(module), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
