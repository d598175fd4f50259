"""What the ledger's server reports, even if a managed service hides `INFO`.

Managed services deny or rename `INFO` or `CONFIG`. `HELLO`, which needs no permission, still shows
version and role there, and `WAIT` counts the replicas.
"""

from collections.abc import Generator, Mapping
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

from regworker.ledger.identity import hidden
from regworker.ledger.steps import carry, carry_async

HIDDEN = "hidden"
"""Replaces `INFO`'s fields if it was refused: the reason."""

ONLINE = "replicas_online"
"""Replaces `INFO`'s list of replicas: how many follow, counted up to the wanted number."""

#: Milliseconds for replicas to acknowledge; those that follow have acknowledged already.
_COUNTED = 500

Steps = Generator[tuple[Any, ...], Any, dict[str, Any]]


def look(client: Any, wanted: int = 0) -> dict[str, Any]:
    """`INFO`, or what can be found out without it; `wanted`: `REGWORKER_REPLICAS`.

    `client`: redis-py's, which has no types for this.
    """
    try:
        return dict(client.info())
    except ResponseError as error:
        if not hidden(error):
            raise
        steps = _without_info(error, wanted)
    return carry(steps, lambda command: client.execute_command(*command))


async def look_async(client: Any, wanted: int = 0) -> dict[str, Any]:
    """The same for asyncio."""
    try:
        return dict(await client.info())
    except ResponseError as error:
        if not hidden(error):
            raise
        steps = _without_info(error, wanted)
    return await carry_async(steps, lambda command: client.execute_command(*command))


def _without_info(error: ResponseError, wanted: int) -> Steps:
    why = "its user may not run INFO" if isinstance(error, NoPermissionError) else "it has no INFO"
    answer = _pairs((yield ("HELLO",)))
    name = "valkey" if answer.get("server") == "valkey" else "redis"
    found: dict[str, Any] = {
        HIDDEN: why,
        f"{name}_version": answer.get("version", "0"),
        "role": answer.get("role", "master"),
    }
    if wanted and found["role"] == "master":
        found[ONLINE] = yield ("WAIT", wanted + 1, _COUNTED)
    return found


def _pairs(answer: Any) -> dict[str, str]:
    """An answer in RESP 2 or 3, as pairs."""
    items = (
        answer.items()
        if isinstance(answer, Mapping)
        else zip(answer[::2], answer[1::2], strict=False)
    )
    return {_text(name): _text(value) for name, value in items}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
