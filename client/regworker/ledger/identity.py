"""Whether the ledger is still on the same server, and what that server may have lost.

A restored backup, a power cut or an asynchronous failover may have lost that a job was claimed. A
worker checks the server whenever it connects, before it sends a claim. In doubt, jobs are looked up
before they are sent: lost data costs a lookup, never a second customer.
"""

from collections.abc import Callable
from typing import Any

import redis.asyncio
from redis.exceptions import NoPermissionError, ResponseError

from regworker.ledger.replication import Wanted
from regworker.ledger.transitions import ABSENT, PREFIX, Command, ms

IDENTITY = f"{PREFIX}identity"
"""Which server had the ledger when a worker last connected, and since when jobs are in doubt."""

#: Seconds. A ledger without a heartbeat for so long may be a restored backup.
FRESH = 60.0

#: Seconds after a doubt in which new jobs are looked up, too: a producer repeats a job that the
#: ledger has lost.
MARGIN = 120.0

#: Seconds for which a stopped worker, and a missing replica, are expected back.
KEPT = 86400.0


#: Before a worker's first claim.
NO_CLAIM = ("", 0)

#: Replaces a run id that is not shown.
HIDDEN = "hidden"


def hidden(error: ResponseError) -> bool:
    """Whether an answer says that a command is denied to this user, or unknown by that name."""
    return isinstance(error, NoPermissionError) or "unknown command" in str(error).lower()


class Memory:
    """What a worker process remembers of the ledger, to notice lost data: its last mark, and its
    last claim since then."""

    def __init__(
        self,
        name: str,
        wanted: Wanted,
        last_claim: Callable[[], tuple[str, int]] = lambda: NO_CLAIM,
    ) -> None:
        """`name`: the unique name of this process. `last_claim`: job id and fence of the last claim
        under which a customer may have been created."""
        self._last_claim = last_claim
        self._marked = NO_CLAIM
        self._keys = (IDENTITY, f"{PREFIX}mark:{name}")
        self._wanted = wanted
        self._mark = 0
        self._keeps = 0
        self._may_ask = True

    async def greet(self, connection: Any, source: str) -> bool:
        """Check the server of a new connection; return whether jobs are in doubt because of it.

        `source`: the script `identity`, which a server that has just started does not know.
        """
        try:
            info = _fields(await _ask(connection, "INFO"))
        except ResponseError as error:
            if not hidden(error):
                raise
            # A managed service hides it: what remains is each worker's own mark.
            info = {"run_id": HIDDEN}
        always = await _always(connection)
        self._may_ask = always is not None
        self._keeps = int(info.get("aof_enabled", "0")) * (always or 0)
        claim = self._last_claim()
        if claim == self._marked:
            # A mark that followed it proves as much, also once the job's record is deleted.
            claim = NO_CLAIM
        said = (*self._said(), info["run_id"], *claim)
        return self._heard(await _ask(connection, "EVAL", source, 3, *self._keys, ABSENT, *said))

    async def look(self, redis: "redis.asyncio.Redis") -> None:
        """Check again whether the server syncs before it answers: that can be changed while it
        runs.

        Without the permission it is not tried again: the server logs each refusal for its operator.
        """
        if not self._may_ask:
            return
        try:
            found = await redis.config_get("append*")
        except ResponseError:
            self._keeps = 0
        else:
            kept = (found.get("appendonly"), found.get("appendfsync"))
            self._keeps = int(kept == ("yes", "always"))

    def mark(self) -> Command[bool]:
        """A heartbeat: this worker's mark rises in the ledger, and is remembered here.

        Reads whether jobs are in doubt from now on, like `greet`.
        """
        claim = self._last_claim()

        def heard(answer: Any) -> bool:
            self._marked = claim
            return self._heard(answer)

        # Marked as durable, so that it is sent after a greeting, like claims.
        return Command("identity", self._keys, self._said(), heard, durable=True)

    def _said(self) -> tuple[int, ...]:
        return (self._mark, ms(KEPT), self._wanted.replicas, self._keeps, ms(FRESH), ms(MARGIN))

    def _heard(self, answer: Any) -> bool:
        self._mark = max(self._mark, int(answer[0]))
        return bool(answer[1])


async def _always(connection: Any) -> int | None:
    """Whether a server syncs its file before it answers; None: this user may not ask."""
    try:
        [_, kept] = await _ask(connection, "CONFIG", "GET", "appendfsync")
    except ResponseError:
        return None
    except ValueError:
        return 0
    return int(kept == b"always")


async def _ask(connection: Any, *command: Any) -> Any:
    await connection.send_command(*command)
    return await connection.read_response()


def _fields(info: bytes) -> dict[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)
