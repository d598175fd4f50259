"""The ledger: the authoritative record of every job, in Redis or Valkey.

`transitions` has one function for each transition, `scripts/` one Lua file for each,
`script_loader` puts the shared functions that it uses before it, `calls` puts several commands into
one call, and `client` sends them to the server in two ways: for the producer's threads, and for the
worker's loop.
"""

from regworker.ledger.client import AsyncLedger, SyncLedger
from regworker.ledger.transitions import Command

__all__ = ["AsyncLedger", "Command", "SyncLedger"]
