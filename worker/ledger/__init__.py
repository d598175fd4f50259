"""The ledger: the truth about every job, in Redis or Valkey.

`commands` has one function for each transition, `scripts/` one Lua file for each, `linking` puts in
front of it what it shares with others, and `client` has two ways of carrying a command to the
server: one for the producer's threads, one for the worker's loop.
"""

from worker.ledger.client import AsyncLedger, SyncLedger
from worker.ledger.commands import Command

__all__ = ["AsyncLedger", "Command", "SyncLedger"]
