"""A provider that returns and raises values that no provider should."""

import asyncio
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from regworker.domain.outcome import (
    Absent,
    Code,
    Fault,
    Registered,
    Rejected,
    Retryable,
    Unknown,
    Unresolvable,
)
from worker.providers import base
from worker.providers.base import Send


def deep(levels: int) -> Any:
    """Nest lists."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def loop() -> dict[str, Any]:
    """Make a dictionary that contains itself."""
    value: dict[str, Any] = {}
    value["self"] = value
    return value


ODD: Any = Registered
"""`Registered` with a value that the type checker would reject."""


#: Data that cannot be stored: the job goes to review at once.
class Raising(dict[str, Any]):
    """Data of a plugin that raises when it is read."""

    def items(self) -> Any:  # noqa: D102
        raise RuntimeError("canary")


UNFIT: dict[str, Any] = {
    "nothing": None,
    "data that raises": Registered(Raising(customer_key="key")),
    "a text": "registered",
    "a class": Registered,
    "an exception": ValueError("no"),
    "no data": ODD(None),
    "data that is a text": ODD("key"),
    "a lone surrogate": Registered({"customer_key": "\ud800"}),
    "a lone surrogate in a name": Registered({"\ud800": "key"}),
    "bytes": Registered({"customer_key": b"\xff"}),
    "an object": Registered({"customer_key": object()}),
    "a set": Registered({"customer_key": {1}}),
    "a name that is a number": ODD({1: "key"}),
    "NaN": Registered({"box": float("nan")}),
    "infinity": Registered({"box": [1, {"in": float("-inf")}]}),
    "a number of 5000 digits": Registered({"box": 10**5000}),
    "10 MB": Registered({"customer_key": "x" * 10_000_000}),
    "10 MB in pieces": Registered({"keys": ["x" * 10] * 1_000_000}),
    "nested 40 deep": Registered({"key": deep(40)}),
    "nested 240 deep": Registered({"key": deep(240)}),
    "nested 5000 deep": Registered({"key": deep(5000)}),
    "itself": Registered(loop()),
    "no errors": Rejected(()),
    "errors that are none": Rejected(("no",)),  # type: ignore[arg-type]
    "errors that are a number": Rejected(5),  # type: ignore[arg-type]
    "a code of its own": Rejected((Fault("teapot", "", "no"),)),  # type: ignore[arg-type]
    "a message that is none": Rejected((Fault(Code.INVALID, "", None),)),  # type: ignore[arg-type]
    "a reason that is none": Unknown(None),  # type: ignore[arg-type]
    "a wait that is a text": Retryable("wait", "soon"),  # type: ignore[arg-type]
    "a wait that is a number of a million digits": Unresolvable(10**100),  # type: ignore[arg-type]
}

#: Only a text is odd: the outcome counts, and its text is repaired.
REPAIRED: dict[str, Any] = {
    "a lone surrogate in a message": Rejected((Fault(Code.INVALID, "\ud800", "\ud800", "\ud800"),)),
    "a field that quotes the customer": Rejected((Fault(Code.INVALID, "name=Ann Adler", "no"),)),
    "NUL in a message": Rejected((Fault(Code.INVALID, "", "a\0b"),)),
    "a message of 10 MB": Rejected((Fault(Code.INVALID, "x" * 10**6, "x" * 10**7, "x" * 10**6),)),
    "a million errors": Rejected((Fault(Code.INVALID, "x", "x"),) * 1_000_000),
    "a list of errors": Rejected([Fault(Code.INVALID, "x", "x")]),  # type: ignore[arg-type]
}

#: Accepted as they are.
FIT: dict[str, Any] = {
    "NUL in a key": Registered({"customer_key": "a\0b"}),
    "every letter": Registered({"customer_key": "é€😀\u2028"}),
}

#: Raised instead of returning an outcome.
RAISED: dict[str, BaseException] = {
    "an exception": ValueError("no"),
    "the end of the process": SystemExit(3),
    "Ctrl-C": KeyboardInterrupt(),
    "a cancellation of its own": asyncio.CancelledError(),
    "the end of a generator": GeneratorExit(),
    "no memory": MemoryError(),
    "a group": BaseExceptionGroup("no", [SystemExit(3), ValueError("no")]),
    "an iteration's end": StopAsyncIteration(),
    "a text with a surrogate": ValueError("\ud800"),
}

#: Odd waits, before the job ends.
WAITS: dict[str, Any] = {
    "a wait that is larger than any number": Retryable("wait", 10**400),
    "a wait of NaN": Retryable("wait", float("nan")),
    "a negative wait": Retryable("wait", -5),
    "a reason with a surrogate": Retryable("\ud800"),
    "a reason of 10 MB": Retryable("x" * 10**7),
}


class OddRegistration(BaseModel):
    """A registration that names the outcome to return."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    name: str


class Odd:
    """An account at it."""

    name: ClassVar[str] = "odd"
    Registration: ClassVar[type[BaseModel]] = OddRegistration
    Account: ClassVar[type[base.Account]] = base.Account

    def __init__(self, account: base.Account, send: Send) -> None:
        self._seen = _SEEN

    async def register(self, registration: OddRegistration) -> Any:
        """Return or raise what the registration names."""
        await asyncio.sleep(0)
        match registration.kind:
            case "returned":
                return {**UNFIT, **REPAIRED, **FIT}[registration.name]
            case "waits":
                if registration.name in self._seen:
                    return Rejected((Fault(Code.INVALID, "", "the second time"),))
                self._seen.add(registration.name)
                return WAITS[registration.name]
            case _:
                raise RAISED[registration.name]

    async def find_out(self, registration: OddRegistration) -> Any:
        """Find no customer; or fail in the same way, as bugs do."""
        await asyncio.sleep(0)
        if registration.kind == "raised twice":
            raise RAISED[registration.name]
        return Absent("nobody")


_SEEN: set[str] = set()
