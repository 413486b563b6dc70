"""The outbox as the webhooks' sender sees it. Knows the database; sends nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from danqing.db import log_queries
from danqing.db.rows import OutboxRow
from danqing.db.session import Database


class Outbox:
    """Implements webhooks.OutboxStore; several processes may work it off."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claim(
        self, now_ms: int, until_ms: int, rows_max: int, busy: Collection[str]
    ) -> Sequence[OutboxRow]:
        """Take rows that are due, but none of the accounts in `busy`."""
        return await self._db.write(
            lambda conn: log_queries.claim_outbox(conn, now_ms, until_ms, rows_max, busy)
        )

    async def delivered(self, row_id: str, now_ms: int) -> None:
        """The row is done."""
        await self._db.write(lambda conn: log_queries.outbox_delivered(conn, row_id, now_ms))

    async def failed(self, row_id: str, now_ms: int, retry_at_ms: int | None, note: str) -> None:
        """The attempt failed; due again at `retry_at_ms`, or never."""
        await self._db.write(
            lambda conn: log_queries.outbox_failed(conn, row_id, now_ms, retry_at_ms, note)
        )
