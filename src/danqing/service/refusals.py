"""What moderation refused, kept for the operator: whose, at which level, said by whom. Never the text or picture itself."""

from __future__ import annotations

from collections.abc import Callable

from danqing.db import log_queries, task_queries
from danqing.db.rows import RefusalRow
from danqing.db.session import Database
from danqing.domain.errors import ContentRefused, DanqingError
from danqing.domain.ids import uuid7
from danqing.observability.logging import get_logger
from danqing.service.inputs import storable
from danqing.service.ledger import wall_clock_ms

log = get_logger(__name__)

KEPT_DAYS = 180
"""As long as the records of unlabelled images: half a year."""
_DAY_MS = 86_400_000


class Refusals:
    """A list that only grows, until what is old is forgotten."""

    def __init__(self, db: Database, clock_ms: Callable[[], int] = wall_clock_ms) -> None:
        self._db = db
        self._clock_ms = clock_ms

    async def note(
        self,
        error: ContentRefused,
        *,
        account_id: str,
        dialect: str,
        model: str,
        end_user: str | None,
        task_id: str | None = None,
    ) -> None:
        """Log and keep a refusal. Raises nothing: a database that is away refuses no less."""
        row = RefusalRow(
            id=uuid7(),
            account_id=account_id,
            task_id=task_id,
            dialect=dialect,
            model=model,
            end_user=_kept(end_user),
            role=error.role,
            level=error.level,
            subject=error.subject,
            source=error.source,
            category=_kept(error.category),
            created_ms=self._clock_ms(),
        )
        log.warning(
            "content_refused",
            account=account_id,
            end_user=row.end_user,
            task=task_id,
            role=row.role,
            level=row.level,
            subject=row.subject,
            source=row.source,
            category=row.category,
        )
        try:
            await self._db.write(lambda conn: log_queries.insert_refusal(conn, row))
        except DanqingError as fault:
            log.error("refusal_not_kept", account=account_id, code=fault.code)

    async def page(
        self, after: str, rows_max: int, account_id: str | None = None
    ) -> list[RefusalRow]:
        """Refusals behind the one with the id `after`, oldest first; of one account, or of all."""
        return await self._db.read(
            lambda conn: log_queries.refusals_after(conn, after, rows_max, account_id)
        )

    async def prune(self) -> int:
        """Forget those of more than KEPT_DAYS ago; how many there were."""
        before_id = task_queries.first_id(self._clock_ms() - KEPT_DAYS * _DAY_MS)
        return await self._db.write(lambda conn: log_queries.prune_refusals(conn, before_id))


def _kept(text: str | None) -> str | None:
    """The text, where a database takes it: both are somebody else's words."""
    return text if text is None or storable(text) else None
