"""End users nobody draws for: of one account, or everywhere. Knows who is blocked, not what a request is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from danqing.db import queries
from danqing.db.rows import BlockedUserRow
from danqing.db.session import Connection, Database
from danqing.domain.errors import EndUserBlocked, NotFound, PermissionDenied
from danqing.service.inputs import check_text, live, storable
from danqing.service.ledger import wall_clock_ms
from danqing.service.trail import Trail, of_account

END_USER_CHARS_MAX = 512
BLOCKS_MAX = 10_000
"""Of one account."""


class Blocks:
    """An end user is a text that an account's requests name their people by, compared as it is."""

    def __init__(
        self, db: Database, trail: Trail, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._db = db
        self._trail = trail
        self._clock_ms = clock_ms

    async def block(self, end_user: str, *, account_id: str | None, reason: str, by: str) -> None:
        """Block for an account, or everywhere (None); again replaces the record of who did and why.

        Raises InvalidField, NotFound (no such account), PermissionDenied (it has BLOCKS_MAX).
        """
        check_text(end_user, "end_user", END_USER_CHARS_MAX)
        check_text(reason, "reason")

        def work(conn: Connection) -> None:
            if account_id is not None:
                live(conn, account_id)
            row = BlockedUserRow(account_id, end_user, reason, by, self._clock_ms())
            queries.block_user(conn, row)
            if account_id is not None and queries.blocks_of(conn, account_id) > BLOCKS_MAX:
                raise PermissionDenied(
                    f"The account has {BLOCKS_MAX} blocked end users: lift some of them first."
                )
            detail = {"end_user": end_user, "reason": reason}
            self._trail.within(conn, by, "user.block", _subject(account_id), detail)

        await self._trail.write(work)

    async def unblock(self, end_user: str, *, account_id: str | None, by: str) -> None:
        """Lift the block of an account, or the one everywhere (None). Raises NotFound."""

        def work(conn: Connection) -> None:
            if not storable(end_user) or not queries.unblock_user(conn, account_id, end_user):
                raise NotFound("This end user is not blocked.", "end_user")
            detail = {"end_user": end_user}
            self._trail.within(conn, by, "user.unblock", _subject(account_id), detail)

        await self._trail.write(work)

    async def list(self, account_id: str | None) -> Sequence[BlockedUserRow]:
        """Who is blocked for an account (also everywhere), or all records, oldest first."""
        return await self._db.read(lambda conn: queries.blocked(conn, account_id))

    async def require_free(self, account_id: str, end_user: str | None) -> None:
        """Raises EndUserBlocked where a request names somebody who is blocked."""
        if not end_user or not storable(end_user):
            return
        if await self._db.read(lambda conn: queries.is_blocked(conn, account_id, end_user)):
            raise EndUserBlocked


def _subject(account_id: str | None) -> str:
    return "everywhere" if account_id is None else of_account(account_id)
