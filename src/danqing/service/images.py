"""Stored images as their holders and operators handle them: list, look up, delete, revoke links. Knows rows; no bytes, no link.

Whoever deletes deletes the blobs afterwards: what a crash leaves, housekeeping finds by the rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from danqing.db import image_queries
from danqing.db.rows import ImageRow, UnlabelledRow
from danqing.db.session import Connection, Database
from danqing.domain.errors import InvalidField, NotFound
from danqing.service.ledger import wall_clock_ms
from danqing.service.trail import Trail, of_account

_ID = re.compile(r"[0-9a-f]{11}|[0-9a-f-]{36}")  # version 0.1.0 had UUIDs
_PLACE = re.compile(r"([0-9a-f-]{36})(?:\.([0-9]{1,4}))?", re.ASCII)


class Images:
    """Every change is in the audit trail with it. `account_id` None is an operator: any account's image will do."""

    def __init__(
        self, db: Database, trail: Trail, clock_ms: Callable[[], int] = wall_clock_ms
    ) -> None:
        self._db = db
        self._trail = trail
        self._clock_ms = clock_ms

    async def page(self, account_id: str, after: str, rows_max: int) -> list[ImageRow]:
        """An account's images that are kept, the newest first, from the one behind `after`. Raises InvalidField."""
        now_ms = self._clock_ms()

        def work(conn: Connection) -> list[ImageRow]:
            behind = self._find(conn, after) if after else None
            if after and (behind is None or behind.account_id != account_id):
                raise InvalidField("'after' is the 'last_id' of an earlier page.", "after")
            return image_queries.images_page(conn, account_id, now_ms, rows_max, behind)

        return await self._db.read(work)

    async def unlabelled(
        self, after: str, rows_max: int, account_id: str | None = None
    ) -> list[UnlabelledRow]:
        """Every image that was given out without the AI label, oldest first, from the one behind `after`.

        Also those of deleted accounts, and those that are kept no longer: nothing ever deletes these records
        (Measures for Labelling AI-Generated Synthetic Content (2025), article 9: six months at least). Raises InvalidField.
        """
        place = _PLACE.fullmatch(after)
        if after and place is None:
            raise InvalidField("'after' is the 'last_id' of an earlier page.", "after")
        behind = ("", -1) if place is None else (place[1], int(place[2] or -1))
        return await self._db.read(
            lambda conn: image_queries.unlabelled(conn, behind, rows_max, account_id)
        )

    async def get(self, image_id: str, account_id: str | None = None) -> ImageRow:
        """An image that is kept. Raises NotFound, also for somebody else's."""
        return await self._db.read(lambda conn: self._kept(conn, image_id, account_id))

    async def delete(self, image_id: str, account_id: str | None = None, *, by: str) -> str:
        """End an image: its links are dead at once. Its blob, for the caller to delete. Raises NotFound."""

        def work(conn: Connection) -> str:
            row = self._kept(conn, image_id, account_id)
            image_queries.expire_image(conn, row.id, self._clock_ms())
            detail = {"image": row.id, "task": row.task_id}
            self._trail.within(conn, by, "image.delete", of_account(row.account_id), detail)
            return row.blob_key

        return await self._trail.write(work)

    async def revoke_links(self, image_id: str, account_id: str | None = None, *, by: str) -> None:
        """Void every link to an image that was given out until now; fresh ones can be had. Raises NotFound."""

        def work(conn: Connection) -> None:
            row = self._kept(conn, image_id, account_id)
            image_queries.revoke_links(conn, row.id)
            detail = {"image": row.id}
            self._trail.within(conn, by, "image.revoke_links", of_account(row.account_id), detail)

        await self._trail.write(work)

    async def revoke_links_of(self, account_id: str, *, by: str) -> int:
        """Void every link to an account's images; how many images."""

        def work(conn: Connection) -> int:
            count = image_queries.revoke_links_of(conn, account_id)
            detail = {"images": count}
            self._trail.within(conn, by, "account.revoke_links", of_account(account_id), detail)
            return count

        return await self._trail.write(work)

    def _kept(self, conn: Connection, image_id: str, account_id: str | None) -> ImageRow:
        row = self._find(conn, image_id)
        is_there = row is not None and row.deleted_ms is None and row.expires_ms > self._clock_ms()
        if row is None or not is_there or (account_id is not None and row.account_id != account_id):
            raise NotFound("No such image, or it is kept no longer.", "image_id")
        return row

    @staticmethod
    def _find(conn: Connection, image_id: str) -> ImageRow | None:
        return image_queries.image_by_id(conn, image_id) if _ID.fullmatch(image_id) else None
