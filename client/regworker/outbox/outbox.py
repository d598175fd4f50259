"""Adding jobs, within the host's own transaction."""

import json
from collections.abc import Mapping
from inspect import isawaitable
from typing import Any

from sqlalchemy import Connection, Insert, Table, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from regworker.acceptance import Intake
from regworker.arguments import of_kind
from regworker.domain.job import Job, job_id
from regworker.forms.registry import Forms
from regworker.frames import guarded
from regworker.outbox.tables import outbox_table
from regworker.sealing.keyring import Keyring
from regworker.settings import Settings


@guarded
class Outbox:
    """Checks jobs, seals their registrations, and writes them as rows.

    Neither the table nor the database's log holds a password: the registration is sealed before
    it is written. It needs no ledger and no network.
    """

    def __init__(self, settings: Settings | None = None, table: Table = outbox_table) -> None:
        """`settings`: default from `REGWORKER_*`; `SettingsError` where they can't be used."""
        if settings is None:
            settings = Settings.load_for_client()
        of_kind("settings", settings, Settings, "Settings")
        keyring = Keyring.parse(settings.sealing_keys.get_secret_value())
        self._intake = Intake(Forms(settings.providers), keyring, settings.deadline)
        self._table = table

    def add(self, connection: Connection, job: Job | Mapping[str, Any]) -> str:
        """Write a job as a row of the connection's transaction; returns the job's id.

        Raises `InvalidJob` (every problem at once), and then writes nothing.
        """
        _executing(connection)
        id_, statement = self.statement(job)
        done: object = connection.execute(statement)
        if isawaitable(done):
            # It has written nothing, and nobody would await it.
            if hasattr(done, "close"):
                done.close()
            raise TypeError("connection is asynchronous: use `await outbox.add_async(...)`")
        return id_

    async def add_async(self, connection: AsyncConnection, job: Job | Mapping[str, Any]) -> str:
        """The same on an async connection."""
        _executing(connection)
        id_, statement = self.statement(job)
        done: object = connection.execute(statement)
        if not isawaitable(done):
            raise TypeError("connection is not asynchronous: use `outbox.add(...)`")
        await done
        return id_

    def statement(self, job: Job | Mapping[str, Any]) -> tuple[str, Insert]:
        """The job's id, and the INSERT for whatever executes it: an ORM session, for instance."""
        sealed = self._intake.sealed(job)
        id_ = job_id(sealed["provider"], sealed["account"], sealed["idempotency_key"])
        return id_, insert(self._table).values(job_id=id_, job=json.dumps(sealed))


def _executing(connection: object) -> None:
    if not hasattr(connection, "execute"):
        kind = type(connection).__name__
        what = f"connection must be a Connection or a Session of SQLAlchemy, not {kind}"
        raise TypeError(f"{what}: a row belongs to its transaction")
