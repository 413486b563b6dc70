"""What is kept no longer, and what nobody knows: images past their time, blobs without a row, rows without a blob.

Several servers and the command line may sweep at once: a blob that is gone is gone, and a row says so once. Nothing that
is paid for and not past its time is ever deleted. Knows no HTTP and no drawing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from danqing.db import image_queries, log_queries, queries
from danqing.db.rows import ImageRow
from danqing.db.session import Database
from danqing.domain.errors import DanqingError
from danqing.observability.logging import get_logger
from danqing.observability.metrics import Metrics
from danqing.service.delivery import day_folder, task_ms
from danqing.service.ledger import Ledger, wall_clock_ms
from danqing.service.references import is_input
from danqing.service.thumbnails import copies_of, is_copy, stem_of
from danqing.storage.blobs import Blobs, is_folder, is_key

log = get_logger(__name__)

ORPHAN_AGE_S = 3600.0
"""A blob that is no image's is deleted after this long: younger ones may be on their way into the books."""
ORPHAN_DAYS = 2
"""How many days back a server looks for them by itself; the command looks everywhere."""
PRUNE_DAYS = 30
_DAY_MS = 86_400_000
_BATCH = 200
_DAY = re.compile(r"[0-9]{8}")
_TASK_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(slots=True)
class Swept:
    """What a sweep found. Keys are blobs', but for `missing`."""

    expired: int = 0
    """Images past their time,"""
    expired_bytes: int = 0
    """and what they and nothing else took."""
    orphans: list[str] = field(default_factory=list[str])
    """Blobs that no image and no open task has: of servers that died."""
    parts: int = 0
    """Files that were left half written."""
    strangers: list[str] = field(default_factory=list[str])
    """Blobs of tasks that this database does not know, and folders ("NAME/") and files that are not ours: never deleted."""
    missing: list[str] = field(default_factory=list[str])
    """Images that are in the books and not in the store, by id: they cannot be served."""


class Retention:
    """Deletes what is kept no longer. `dry_run` finds the same and deletes nothing."""

    def __init__(
        self,
        db: Database,
        ledger: Ledger,
        blobs: Blobs,
        metrics: Metrics | None = None,
        clock_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._db = db
        self._ledger = ledger
        self._blobs = blobs
        self._metrics = metrics or Metrics()
        self._clock_ms = clock_ms

    async def sweep(self, *, dry_run: bool = False) -> Swept:
        """Everything, of all days: what a server does by the hour, and the search for rows without a blob."""
        swept = Swept()
        if dry_run:
            async for rows in self._expired():
                swept.expired += len(rows)
                swept.expired_bytes += sum(row.bytes for row in rows)
        else:
            swept.expired, swept.expired_bytes = await self._delete_expired()
        now_ms = self._clock_ms()
        swept.strangers += await self._blobs.strange_files()
        for day in sorted({*await self._blobs.folders(), *await self._days()}):
            if not is_folder(day):  # e.g. lost+found, where a disk is mounted: not looked into
                swept.strangers.append(f"{day}/")
                continue
            keys = await self._blobs.list(day)
            await self._look_for_orphans(keys, now_ms, ORPHAN_AGE_S, swept)
            if _DAY.fullmatch(day):
                await self._look_for_missing(day, set(keys), now_ms, swept)
        old_s = now_ms / 1000 - ORPHAN_AGE_S
        swept.parts = await self._blobs.sweep_parts(old_s, dry_run=dry_run)
        if not dry_run:
            await self.delete(swept.orphans, "orphan")
        return swept

    async def delete_expired(self) -> int:
        """Delete images past their time; how many."""
        return (await self._delete_expired())[0]

    async def delete_orphans(self, older_than_s: float = ORPHAN_AGE_S) -> int:
        """Delete the last days' blobs that are no image's and whose task is over; how many.

        Most are deleted with their tasks: these are of servers that were stopped for longer than
        their leases, and died right after they woke and wrote.
        """
        now_ms = self._clock_ms()
        swept = Swept(parts=await self._blobs.sweep_parts(now_ms / 1000 - older_than_s))
        for day in range(ORPHAN_DAYS):
            keys = await self._blobs.list(day_folder(now_ms - day * _DAY_MS))
            await self._look_for_orphans(keys, now_ms, older_than_s, swept)
        await self.delete(swept.orphans, "orphan")
        return swept.parts + len(swept.orphans)

    async def prune(self) -> None:
        """Forget webhooks that were delivered or given up, and sessions that were over, a month ago."""
        before_ms = self._clock_ms() - PRUNE_DAYS * _DAY_MS
        await self._db.write(lambda conn: log_queries.prune_outbox(conn, before_ms))
        await self._db.write(lambda conn: queries.prune_sessions(conn, before_ms))

    async def delete(self, keys: Iterable[str], why: str) -> set[str]:
        """Delete blobs; those that are gone. What cannot be deleted now is found again."""
        gone: set[str] = set()
        for key in keys:
            try:
                await self._blobs.delete(key)
                gone.add(key)
                self._metrics.blobs_deleted.labels(why).inc()
                log.info("blob_deleted", key=key, why=why)
            except DanqingError as error:
                log.error("blob_left_behind", key=key, code=error.code)
        return gone

    async def _expired(self) -> AsyncIterator[list[ImageRow]]:
        """All images past their time, in batches; none twice where none is marked as deleted."""
        now_ms, behind = self._clock_ms(), (0, "")
        while True:
            rows = await self._db.read(
                lambda conn, behind=behind: image_queries.expired_images(
                    conn, now_ms, behind, _BATCH
                )
            )
            if rows:
                yield rows
            if len(rows) < _BATCH:
                return
            behind = (rows[-1].expires_ms, rows[-1].id)

    async def _delete_expired(self) -> tuple[int, int]:
        count = size = 0
        async for rows in self._expired():
            # The blobs first, an image's copies before it: whatever happens between, the rows are found again.
            keys = [key for row in rows for key in (*copies_of(row.blob_key), row.blob_key)]
            gone = await self.delete(keys, "expired")
            done = [row for row in rows if row.blob_key in gone]
            now_ms = self._clock_ms()
            await self._db.write(
                lambda conn, done=done, now_ms=now_ms: image_queries.mark_images_deleted(
                    conn, [row.id for row in done], now_ms
                )
            )
            count += len(done)
            size += sum(row.bytes for row in done)
        return count, size

    async def _days(self) -> set[str]:
        """The folders that images which are kept must lie in."""
        oldest = await self._db.read(image_queries.oldest_kept)
        if oldest is None:
            return set()
        first_ms, now_ms = task_ms(oldest), self._clock_ms()
        return {day_folder(at_ms) for at_ms in range(first_ms, now_ms + _DAY_MS, _DAY_MS)}

    async def _look_for_orphans(
        self, keys: list[str], now_ms: int, older_than_s: float, swept: Swept
    ) -> None:
        for at in range(0, len(keys), _BATCH):
            for key in await self._unknown(keys[at : at + _BATCH]):
                await self._judge(key, now_ms - older_than_s * 1000, swept)

    async def _unknown(self, keys: list[str]) -> list[str]:
        """Which of these are no kept image's, and no copy of one."""
        found = await self._db.read(lambda conn: image_queries.blobs_named_by(conn, keys))
        stems = {stem_of(key) for key in found}
        return [
            key for key in keys if key not in found and not (is_copy(key) and stem_of(key) in stems)
        ]

    async def _judge(self, key: str, before_ms: float, swept: Swept) -> None:
        """Say what a blob is that no image has."""
        task_id = key.rpartition("/")[0].rpartition("/")[2]
        is_task = is_key(key) and _TASK_ID.fullmatch(task_id) is not None
        row = await self._ledger.task(task_id) if is_task else None
        if not is_task:
            swept.strangers.append(key)
        elif row is None and is_input(key):
            # The one kind of blob that is written before its task: a server died in between.
            if task_ms(task_id) < before_ms:
                swept.orphans.append(key)
        elif row is None:
            # A task is written before its blobs: these are another installation's, or of a
            # time that the database has lost. Not ours to delete.
            log.error("blob_without_task", key=key)
            swept.strangers.append(key)
        elif row.finished_ms is not None and row.finished_ms < before_ms:
            swept.orphans.append(key)

    async def _look_for_missing(
        self, day: str, keys: set[str], listed_ms: int, swept: Swept
    ) -> None:
        """Images of one day that are kept, by the books, and not in the store."""
        first_ms = int(datetime.strptime(day + "+0000", "%Y%m%d%z").timestamp() * 1000)
        behind = ("", 0)
        while True:
            rows = await self._db.read(
                lambda conn, behind=behind: image_queries.kept_between(
                    conn,
                    first_ms,
                    first_ms + _DAY_MS,
                    now_ms=listed_ms,
                    after=behind,
                    rows_max=_BATCH,
                )
            )
            for row in rows:
                if row.blob_key in keys or row.created_ms > listed_ms - ORPHAN_AGE_S * 1000:
                    continue
                # Version 0.1.0 kept blobs in other folders.
                if await self._blobs.size(row.blob_key) is None:
                    log.error("image_without_blob", image=row.id, key=row.blob_key)
                    swept.missing.append(row.id)
            if len(rows) < _BATCH:
                return
            behind = (rows[-1].task_id, rows[-1].idx)
